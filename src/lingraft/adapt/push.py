"""Upload a model's folder to the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from lingraft.adapt.history import HISTORY
from lingraft.errors import ConfigError, LingraftError, in_one_line

_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "*.gguf")


def check_push(repository: str) -> None:
    """Refuse an upload that could not be done, before anything long: by its name, without a token or network.

    A repository that holds a model which lingraft did not write is refused as a folder is.

    Raises:
        ConfigError: With what to do.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import RepositoryNotFoundError

    owner, _, name = repository.partition("/")
    if not owner or not name or "/" in name or not _is_id(repository):
        raise ConfigError(f"--push {repository}: is no id of a repository on the hub; write OWNER/NAME.")
    if HF_HUB_OFFLINE:
        raise ConfigError("--push: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it.")
    if get_token() is None:
        raise ConfigError(
            "--push: there is no token of the Hugging Face hub; log in (`hf auth login`), or set HF_TOKEN to one that "
            "may write."
        )
    api = HfApi()
    try:
        role = api.whoami().get("auth", {}).get("accessToken", {}).get("role")
        files = api.list_repo_files(repository)
    except RepositoryNotFoundError:
        files = []  # it is made
    except Exception as error:  # hub and http errors share no base class
        raise ConfigError(
            f"--push {repository}: the hub does not let it be uploaded ({in_one_line(error)}). Check the token (it "
            "must be valid, and may write) and the connection."
        ) from error
    if role == "read":
        raise ConfigError(
            "--push: the token of the Hugging Face hub may only read; make one that may write, and log in with it "
            "(`hf auth login`), or set HF_TOKEN to it."
        )
    others = [one for one in files if one not in (".gitattributes", "README.md")]
    if others and HISTORY not in files:
        raise ConfigError(
            f"--push {repository}: holds {others[0]} and other files that lingraft did not write; name another "
            "repository."
        )


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a folder to a repository on the hub, which is made where there is none.

    Weights that an earlier upload left and this one does not have are removed there.

    Args:
        folder: The model's.
        repository: OWNER/NAME.
        private: Make a new repository private.

    Returns:
        Its address.

    Raises:
        LingraftError: It could not be uploaded; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not os.isatty(2):  # bars are for people
        disable_progress_bars()
    api = HfApi()
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Upload the model",
            delete_patterns=list(_WEIGHTS),
        )
    except Exception as error:  # hub and http errors share no base class
        raise LingraftError(
            f"{repository}: could not be uploaded ({_said(error)}). The model is whole in {folder}; when the hub "
            f"can be reached: hf upload {repository} {folder}"
        ) from error
    return str(made)


def _said(error: BaseException) -> str:
    """Return what the library says, with what it says of the cause."""
    cause = error.__cause__
    return in_one_line(error) if cause is None else f"{in_one_line(error)} {in_one_line(cause)}"


def _is_id(repository: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        return False
    return True
