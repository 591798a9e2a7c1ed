"""How a model is named: `embedded:NAME`, a local folder, or a hub id with an optional revision. Imports no torch."""

from __future__ import annotations

import re

from lingraft.config.paths import user_path
from lingraft.errors import LingraftError, ModelError
from lingraft.models.embedded import packed_file

EMBEDDED_PREFIX = "embedded:"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_hub_id(name: str) -> None:
    """Refuse what is no folder and cannot be the hub's name of a model, with or without a revision.

    Raises:
        ModelError: Naming the value.
    """
    if not _HUB_ID.fullmatch(name.partition("@")[0]):
        raise ModelError(
            f"{name!r}: there is no such folder, and it is not a hub id (OWNER/NAME or OWNER/NAME@REVISION) "
            "or `embedded:NAME`."
        )


def model_problem(name: str) -> str | None:
    """Return why there can be no such model, without opening its files or asking the hub; None: there may be one."""
    try:
        if name.startswith(EMBEDDED_PREFIX):
            packed_file(name.removeprefix(EMBEDDED_PREFIX))
            return None
        folder = user_path(name)
        if folder.is_file():
            return f"{name}: is a file. Name the folder that holds config.json and safetensors."
        if not folder.is_dir():
            check_hub_id(name)
        elif not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
            return f"{name}: holds no config.json, so it is not a model's folder."
    except LingraftError as error:
        return str(error)
    return None
