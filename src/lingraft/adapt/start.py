"""The model that an adaptation starts from: the one that was named, or an adapter merged into its base."""

from __future__ import annotations

from lingraft.models.adapters import AdaptedReader
from lingraft.models.loading import local_folder
from lingraft.models.model_names import EMBEDDED_PREFIX
from lingraft.models.tensor_files import is_adapter
from lingraft.stage import CHECKPOINT, given_model
from lingraft.study.execute import Executor
from lingraft.study.stages.merge import Merge


def whole_model(name: str, executor: Executor, *, trust_remote_code: bool = False) -> tuple[str, str | None]:
    """Return the name of a whole model, which training can start from, and what was done for that, in a sentence.

    The name of an adapter (a folder or a hub id) becomes the folder of the stage that merges it, made once; any other
    is returned as it is, with None.

    Args:
        name: The model, as the user named it.
        executor: Makes the stage, in an open store.
        trust_remote_code: Run Python code that the model brings along.

    Raises:
        ModelError: The model, or an adapter's base, cannot be had; or the adapter is not plain LoRA or does not fit.
    """
    if name.startswith(EMBEDDED_PREFIX):
        return name, None
    folder = local_folder(name, trust_remote_code=trust_remote_code)
    if not is_adapter(folder):
        return name, None
    base = AdaptedReader(folder, trust_remote_code=trust_remote_code).base_folder  # refuses what does not fit
    adapter = given_model(str(folder), trust_remote_code=trust_remote_code)
    merged = executor.make(Merge(name, adapter, trust_remote_code), with_artefacts=True)
    return str(merged.folder / CHECKPOINT), (
        f"{name}: is a LoRA adapter; it is merged into its base ({base}), and what is written is a whole model."
    )
