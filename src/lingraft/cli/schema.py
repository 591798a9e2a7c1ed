"""`lingraft schema`: the JSON schema of a study file or an adaptation's, for editors."""

from __future__ import annotations

from typing import Annotated

import typer

from lingraft.cli.output import print_json
from lingraft.errors import ConfigError, did_you_mean

_KINDS = ("study", "adapt")


def schema(
    kind: Annotated[str, typer.Argument(metavar="[study|adapt]", help="Whose file.")] = "study",
) -> None:
    """Print the JSON schema of the file of a study, or of an adaptation."""
    if kind not in _KINDS:
        raise ConfigError(f"{kind!r}: is neither study nor adapt. {did_you_mean(kind, _KINDS)}")
    if kind == "adapt":
        from lingraft.config.adaptation import Adaptation

        print_json(Adaptation.model_json_schema())
        return
    from lingraft.config.schema import Study
    from lingraft.measures import REGISTRY

    found = Study.model_json_schema()
    found["properties"]["measures"]["items"] = {"enum": list(REGISTRY), "type": "string"}
    print_json(found)
