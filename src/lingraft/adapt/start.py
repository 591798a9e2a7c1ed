"""The model that an adaptation starts from: the one that was named, or an adapter merged into its base."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lingraft.adapt.history import HISTORY
from lingraft.models.adapters import AdaptedReader, load_merged
from lingraft.models.checkpoints import save_checkpoint
from lingraft.models.loading import local_folder
from lingraft.models.model_names import EMBEDDED_PREFIX
from lingraft.models.tensor_files import is_adapter
from lingraft.records import flush_folder
from lingraft.stage import (
    CHECKPOINT,
    MODEL_LIBRARIES,
    GivenModel,
    Json,
    Needs,
    StageSpec,
    Work,
    Workplace,
    given_model,
    libraries,
    machine,
)
from lingraft.study.execute import Executor


@dataclass(frozen=True, eq=False)
class Merge(StageSpec):
    """A LoRA adapter merged into its base, as a whole model in float32.

    Needs: a model in float32 in memory and on disk, which are not estimated.

    Attributes:
        adapter: The adapter.
        trust_remote_code: Run Python code that the base brings along.
    """

    kind: ClassVar[str] = "merge"

    adapter: GivenModel
    trust_remote_code: bool = False

    @property
    def inputs(self) -> Mapping[str, Json]:
        """The adapter and its base."""
        return {"adapter": self.adapter.identity, "libraries": libraries((*MODEL_LIBRARIES, "peft"))}

    @property
    def needs(self) -> Needs:
        """Not estimated: what an adapter's base has in parameters is known when it is read."""
        return Needs()

    def work(self, place: Workplace) -> Work:
        """Write the merged model, with the adapter's tokenizer, else the base's."""
        folder = place.model(self.adapter)
        model, tokenizer = load_merged(str(folder), trust_remote_code=self.trust_remote_code)
        save_checkpoint(model, tokenizer, place.folder / CHECKPOINT)
        if (folder / HISTORY).is_file():
            shutil.copyfile(folder / HISTORY, place.folder / CHECKPOINT / HISTORY)
        flush_folder(place.folder / CHECKPOINT)
        return Work({}, machine())


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
