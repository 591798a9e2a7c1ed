"""A stage: one cached step of a study, described as a frozen value before anything is computed.

A description (`StageSpec`) names all that the result depends on, the stages before it and what it needs of the machine,
and does its work in a folder that it is given. The study and its measures describe stages; `study.store` keeps what
they made.
"""

from __future__ import annotations

import platform
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeAlias, TypeVar

from lingraft.config.paths import user_path
from lingraft.errors import LingraftError, ModelError
from lingraft.records import Stamp, fingerprint_of, hash_once, is_foreign, stamps_of
from lingraft.stage_record import RECORD as RECORD  # noqa: PLC0414 - its old place
from lingraft.stage_record import DamagedRecordError, read_record, stamps_of_whole

if TYPE_CHECKING:
    from lingraft.models.compute import Compute
    from lingraft.strategies.base import FreezePlanRow

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
FOLDER_NAME = re.compile(r"[a-z_]+-[0-9a-f]{16}")  # of a stage
CHECKPOINT = "checkpoint"  # the folder of the model that a stage makes, inside its own
# A result may change with these; a change of any of them makes a stage again.
MEASURE_LIBRARIES = ("lingraft",)
MODEL_LIBRARIES = ("lingraft", "torch", "transformers", "tokenizers")
Held = TypeVar("Held")


@dataclass(frozen=True)
class StageProgress:
    """How far a stage is.

    Attributes:
        done: Steps or items done, of `total`.
        total: Steps or items in all.
        loss: Training loss in nats per supervised token, where the stage trains.
        tokens_per_second: Training speed, where the stage trains.
        seconds_left: Estimated time to the stage's end, if known.
        unit: What is counted, where it is neither steps nor items.
        mfu: Model FLOPs utilisation (`train.watching.Progress`), where the stage trains and it is known.
        stage: Its name in progress lines, as several may be at work; empty inside of the stage itself.
    """

    done: int
    total: int
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    unit: str | None = None
    mfu: float | None = None
    stage: str = ""


def mfu_text(mfu: float) -> str:
    """Return a model FLOPs utilisation as a reader says it: 41%, 0.3%."""
    return f"{mfu:.1%}" if mfu < 0.1 else f"{mfu:.0%}"


class StageWatcher:
    """Receives what happens inside of a stage; this one ignores all of it."""

    def stage_progressed(self, progress: StageProgress) -> None:
        """A stage is this far: the one that it names, else the one that began last."""

    def answered(self, task: str, prompt: str, answer: str) -> None:
        """The stage's model answered this; reported of the first answers of each task alone."""

    def freeze_plan(self, label: str, plan: Sequence[FreezePlanRow]) -> None:
        """Which parts train and which are frozen; reported before training, where anything is frozen."""

    def noted(self, message: str) -> None:
        """Something was dropped, truncated or fell short; counted in the record as well."""

    def noted_of(self, label: str, message: str) -> None:
        """The same of one model or phase; what holds for several may be shown once."""
        self.noted(f"{label}: {message}")


@dataclass(frozen=True)
class Needs:
    """What a stage needs of the machine, estimated from the model's sizes and the options; None: not estimated.

    Attributes:
        device: `accelerator` where there is one, or `processor`.
        memory_bytes: At most on that device (see `train.memory_plan`), without what the process and its data hold.
        disk_bytes: Of its artefacts, with what it keeps there while it works.
        processes: That compute it, each on an accelerator of its own where there are any.
        most_processes: As many as make it faster, where more than `processes` may; see `StageSpec.answered_by`.
        host_bytes: At most of the machine's own memory, of all processes together, beside accelerators where there are
            any.
    """

    device: str = "processor"
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    processes: int = 1
    most_processes: int = 1
    host_bytes: int | None = None


@dataclass(frozen=True)
class Work:
    """What a stage's work returns: the compared result, and figures of time and machine beside it."""

    result: dict[str, Any]
    timing: dict[str, Any]


@dataclass(frozen=True)
class FinishedStage:
    """A stage that is done.

    Attributes:
        kind: What it does.
        fingerprint: Hash of all that its result depends on.
        folder: Where its artefacts lie.
        result: What it recorded.
        timing: Seconds and machine figures of the run that made it; empty where they are lost.
        reused: Whether it was finished before this run.
        artefacts: The hash of each file that it left and that is kept, by name.
        stamps: Of these, as they were when they were hashed.
    """

    kind: str
    fingerprint: str
    folder: Path
    result: dict[str, Any]
    timing: dict[str, Any]
    reused: bool
    artefacts: Mapping[str, str] = field(default_factory=dict, repr=False)
    stamps: Mapping[str, Stamp] = field(default_factory=dict, repr=False, compare=False)

    @property
    def seconds(self) -> float:
        """Seconds that the stage took when it was made; 0 where that is lost."""
        return float(self.timing.get("seconds", 0.0))

    def artefact(self, name: str) -> Path:
        """Return the path of a file that the stage left, which still is what was hashed.

        Raises:
            LingraftError: It was changed since.
        """
        path = self.folder / name
        stamp = stamps_of([path])[path]
        if stamp != self.stamps[name] and (stamp is None or hash_once(path) != self.artefacts[name]):
            raise LingraftError(
                f"{path}: was changed while lingraft was at work; run the same command again."
            )
        return path


class Shelf(Generic[Held]):
    """Holds one value in memory for the stages that follow, such as the states of the model that all compare with."""

    def __init__(self) -> None:
        self._held: tuple[str, Held] | None = None

    def get(self, key: str, make: Callable[[], Held]) -> Held:
        """Return the value of `key`, made where another one (which is let go first) or none is held."""
        if self._held is None or self._held[0] != key:
            self._held = None
            self._held = key, make()
        return self._held[1]

    def clear_but(self, keys: Sequence[str]) -> None:
        """Let go of a value that none of `keys` names."""
        if self._held is not None and self._held[0] not in keys:
            self._held = None


@dataclass(frozen=True)
class Workplace:
    """Where a stage works.

    Attributes:
        folder: Its own folder, for its artefacts.
        cache: Folder that all stages of a run share, for what they would make twice; may be thrown away.
        watcher: Receives what happens.
        folder_of: The folder of a parent, whose artefacts are there.
        shelf: Holds what the stages that follow need in memory; see `StageSpec.holds`.
        given: The models asked for that no stage makes.
    """

    folder: Path
    cache: Path
    watcher: StageWatcher
    folder_of: Callable[[StageSpec], Path]
    shelf: Shelf[Any] = field(default_factory=Shelf)
    given: list[GivenModel] = field(default_factory=list)

    @property
    def run_name(self) -> str:
        """The name of the run folder that the stage is in; of a study the study's."""
        return self.cache.absolute().parent.name

    def progressed(self, done: int, total: int, unit: str | None = None) -> None:
        """Report how far the stage is."""
        self.watcher.stage_progressed(StageProgress(done, total, unit=unit))

    def model(self, model: Model) -> Path:
        """Return the folder of a model."""
        if isinstance(model, MadeModel):
            return self.folder_of(model.stage) / CHECKPOINT
        self.given.append(model)
        return model.folder

    def check_given(self) -> None:
        """Refuse models that were changed between the hash that they are known by and now.

        The work calls it when all that it reads of models is in memory; else it is called when the work is done.

        Raises:
            ModelError: One was.
        """
        while self.given:
            self.given.pop().check_unchanged()


@dataclass(frozen=True, eq=False)
class StageSpec(ABC):
    """A stage, described; everything that it computes follows from its fields.

    Attributes:
        label: Name in progress lines; not part of the fingerprint.
    """

    kind: ClassVar[str]
    """What it does; the stage's folder begins with it."""
    continues: ClassVar[tuple[str, ...]] = ()
    """Files and folders, inside of its own, from which interrupted work goes on. They are no artefacts, and are
    removed when the record is written; all else that an interrupted run left is removed before the work."""
    is_discardable: ClassVar[bool] = False
    """Whether its artefacts (a model, a state) serve other stages alone, and go when `keep` says so."""

    label: str

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, Json]:
        """All that the result depends on."""

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        """The stages whose artefacts the work reads."""
        return ()

    @property
    def needs(self) -> Needs:
        """What the work needs of the machine."""
        return Needs()

    def answered_by(self, processes: int) -> Self:  # noqa: ARG002 - of those alone that may take several
        """Return the same stage, made by so many processes; one whose number is fixed is as it is.

        Its result and its fingerprint do not depend on the number.
        """
        return self

    @property
    def starts_from(self) -> Model | None:
        """The model that the one that it makes was made of, and whose shape that has; None: it makes none."""
        return None

    @property
    def holds(self) -> str | None:
        """Key of what the work leaves on the shelf for others with the same key; None: nothing."""
        return None

    @abstractmethod
    def work(self, place: Workplace) -> Work:
        """Write artefacts into `place.folder` and return the result."""

    @cached_property
    def fingerprint(self) -> str:
        """Return the hash of kind and inputs: equal stages run once."""
        return fingerprint_of({"kind": self.kind, **self.inputs})

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields without the fingerprint: another process, with its own libraries, hashes them itself."""
        return {name: value for name, value in self.__dict__.items() if name != "fingerprint"}

    @property
    def folder_name(self) -> str:
        """Name of its folder among those of the stages."""
        return f"{self.kind}-{self.fingerprint}"

    @property
    def name(self) -> str:
        """Name in progress lines."""
        return f"{self.kind} {self.label}"


@dataclass(frozen=True)
class GivenModel:
    """A model that no stage makes: the base, or a checkpoint.

    Attributes:
        identity: For fingerprints: the hash of its weights, or the stage of a run folder that made it.
        folder: Where it lies; the folder of a LoRA adapter stands for the adapter merged into its base.
        parameters: Their number; 0: unknown.
        stamps: Of the files that decide it, before they were hashed; empty: they are not watched.
    """

    identity: Mapping[str, str]
    folder: Path
    parameters: int = 0
    stamps: Mapping[Path, Stamp | None] = field(default_factory=dict, repr=False, compare=False)

    def check_unchanged(self) -> None:
        """Refuse a model whose files are not those that its identity was taken of.

        Raises:
            ModelError: A file was changed, added or removed.
        """
        from lingraft.models.adapters import deciding_files

        if not self.stamps:
            return
        found = stamps_of(deciding_files(self.folder))
        if found != self.stamps and _identity_of(self.folder) != self.identity:
            before, now = self.stamps, found
            name = next(
                (path for path in sorted({*before, *now}) if before.get(path) != now.get(path)), self.folder
            )
            raise ModelError(
                f"{name}: was changed since lingraft read it, so the model is another one; run the same command again."
            )


@dataclass(frozen=True)
class MadeModel:
    """The model that a stage writes into its folder `CHECKPOINT`.

    Attributes:
        stage: The stage.
        parameters: Their number; 0: unknown.
    """

    stage: StageSpec
    parameters: int = 0

    @property
    def identity(self) -> Mapping[str, str]:
        """For fingerprints: the stage that makes it, which is known before it is made."""
        return {"stage": self.stage.fingerprint}


Model: TypeAlias = GivenModel | MadeModel


def given_model(name: str, *, trust_remote_code: bool = False, is_trained_on: bool = False) -> GivenModel:
    """Return the model of a name: a folder, hub id, `embedded:NAME`, or the folder of a LoRA adapter.

    Args:
        name: The name.
        trust_remote_code: Run Python code that the model brings along.
        is_trained_on: Whether training may start from it, which an adapter is refused for.

    Raises:
        ModelError: It cannot be had or loaded.
    """
    from lingraft.models.adapters import check_adapter, deciding_files
    from lingraft.models.loading import check_model, model_folder
    from lingraft.models.tensor_files import CheckpointReader, is_adapter

    adapter = user_path(name)
    if is_adapter(adapter):
        if is_trained_on:
            merge = f"AutoPeftModelForCausalLM.from_pretrained({name!r}).merge_and_unload().save_pretrained('merged')"
            raise ModelError(
                f'{name}: is a LoRA adapter, and a study trains whole models. Merge it into its base (python -c "from '
                f"peft import AutoPeftModelForCausalLM; {merge}\"), copy the tokenizer's files there, and name that "
                "folder; `lingraft adapt` does it by itself."
            )
        stamps = stamps_of(deciding_files(adapter))
        check_adapter(adapter, trust_remote_code=trust_remote_code)
        return GivenModel(_identity_of(adapter), adapter, stamps=stamps)
    folder = model_folder(name, trust_remote_code=trust_remote_code)
    stamps = stamps_of(deciding_files(folder))
    check_model(name, folder, trust_remote_code=trust_remote_code)
    reader = CheckpointReader(folder)
    parameters = sum(prod(reader.shape(tensor)) for tensor in reader.names)
    return GivenModel(_identity_of(folder), folder, parameters=parameters, stamps=stamps)


def _identity_of(folder: Path) -> dict[str, str]:
    """Return what a model or adapter is known by: the stage that made its very files, else the hash of these."""
    from lingraft.models.adapters import merged_content_hash

    made_by = _maker_of(folder)
    return {"weights": merged_content_hash(str(folder))} if made_by is None else {"stage": made_by}


def _maker_of(folder: Path) -> str | None:
    """Return the fingerprint of the stage that made a checkpoint; None: none did, or a file was changed since.

    So a study's model is the same model to a command that is given its folder. A record is believed where its digest,
    its fingerprint, its folder's name and the hashes of all files agree.
    """
    if folder.name != CHECKPOINT:
        return None
    stage = folder.absolute().parent
    try:
        record = read_record(stage)
        whole = stamps_of_whole(stage, record)
    except (OSError, DamagedRecordError):
        return None
    found = (path for path in folder.absolute().rglob("*") if not (path.is_dir() or is_foreign(path.name)))
    files = {path.relative_to(stage).as_posix() for path in found}
    return record.fingerprint if files and files <= whole.keys() else None


def root_of(model: Model) -> GivenModel | None:
    """Return the given model that a model was made of, stage by stage; None: a stage does not say."""
    start: Model | None = model
    while isinstance(start, MadeModel):
        start = start.stage.starts_from
    return start


def stages_of(*models: Model | None) -> tuple[StageSpec, ...]:
    """Return the stages that make the models; given ones have none."""
    return tuple(model.stage for model in models if isinstance(model, MadeModel))


def libraries(names: Sequence[str]) -> dict[str, str]:
    """Return the installed version of each library."""
    return {name: version(name) for name in names}


def versions() -> dict[str, str]:
    """Return the versions that all machines of a study have to share: of Python and of the libraries of models."""
    return {"Python": platform.python_version(), **libraries(MODEL_LIBRARIES)}


def machine(compute: Compute | None = None) -> dict[str, Json]:
    """Return what a stage ran on; `compute` is None where it computes on the processor in types of its own."""
    import torch

    from lingraft.models.compute import device_name

    return {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": "cpu" if compute is None else device_name(compute.device),
        "precision": None if compute is None else compute.precision,
        "python": platform.python_version(),
    }
