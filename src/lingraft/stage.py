"""A stage: one cached step of a study, described as a frozen value before anything is computed.

A description (`StageSpec`) names all that the result depends on, the stages before it and what it needs of the machine,
and does its work in a folder that it is given. The study and its measures describe stages; `study.store` keeps what
they made.
"""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

from lingraft.records import fingerprint_of, hash_file, read_json

if TYPE_CHECKING:
    from lingraft.models.compute import Compute
    from lingraft.strategies.base import FreezePlanRow

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
RECORD = "record.json"  # what a stage records, in its folder; written last
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
    """

    done: int
    total: int
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    unit: str | None = None


class StageWatcher:
    """Receives what happens inside of a stage; this one ignores all of it."""

    def stage_progressed(self, progress: StageProgress) -> None:
        """The stage that began last is this far."""

    def freeze_plan(self, label: str, plan: Sequence[FreezePlanRow]) -> None:
        """Which parts train and which are frozen; reported before training, where anything is frozen."""

    def noted(self, message: str) -> None:
        """Something was dropped, truncated or fell short; counted in the record as well."""


@dataclass(frozen=True)
class Needs:
    """What a stage needs of the machine, estimated from the number of parameters; None: not estimated.

    Attributes:
        device: `accelerator` where there is one, or `processor`.
        memory_bytes: Of weights, gradients and optimiser states on that device. Activations, caches of keys and values
            and the data are not in it.
        disk_bytes: Of its artefacts, with what it keeps there while it works.
    """

    device: str = "processor"
    memory_bytes: int | None = None
    disk_bytes: int | None = None


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
        timing: Seconds and machine figures of the run that made it.
        reused: Whether it was finished before this run.
    """

    kind: str
    fingerprint: str
    folder: Path
    result: dict[str, Any]
    timing: dict[str, Any]
    reused: bool

    @property
    def seconds(self) -> float:
        """Seconds that the stage took when it was made."""
        return float(self.timing["seconds"])


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
    """

    folder: Path
    cache: Path
    watcher: StageWatcher
    folder_of: Callable[[StageSpec], Path]
    shelf: Shelf[Any] = field(default_factory=Shelf)

    def progressed(self, done: int, total: int, unit: str | None = None) -> None:
        """Report how far the stage is."""
        self.watcher.stage_progressed(StageProgress(done, total, unit=unit))

    def model(self, model: Model) -> Path:
        """Return the folder of a model."""
        return self.folder_of(model.stage) / CHECKPOINT if isinstance(model, MadeModel) else model.folder


@dataclass(frozen=True, eq=False)
class StageSpec(ABC):
    """A stage, described; everything that it computes follows from its fields.

    Attributes:
        label: Name in progress lines; not part of the fingerprint.
    """

    kind: ClassVar[str]
    """What it does; the stage's folder begins with it."""
    resumable: ClassVar[bool] = False
    """Whether its work continues from what an interrupted run left in the folder."""
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
    """

    identity: Mapping[str, str]
    folder: Path
    parameters: int = 0


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


def given_model(name: str, *, trust_remote_code: bool = False) -> GivenModel:
    """Return the model of a name: a folder, hub id, `embedded:NAME`, or the folder of a LoRA adapter.

    Raises:
        ModelError: It cannot be had or loaded.
    """
    from lingraft.models.adapters import check_adapter, merged_content_hash
    from lingraft.models.loading import check_model, model_content_hash, model_folder
    from lingraft.models.tensor_files import CheckpointReader, is_adapter

    adapter = Path(name).expanduser()
    if is_adapter(adapter):
        check_adapter(adapter, trust_remote_code=trust_remote_code)
        return GivenModel({"weights": merged_content_hash(name)}, adapter)
    folder = model_folder(name, trust_remote_code=trust_remote_code)
    check_model(name, folder, trust_remote_code=trust_remote_code)
    reader = CheckpointReader(folder)
    parameters = sum(prod(reader.shape(tensor)) for tensor in reader.names)
    made_by = _maker_of(folder)
    identity = {"weights": model_content_hash(folder)} if made_by is None else {"stage": made_by}
    return GivenModel(identity, folder, parameters=parameters)


def _maker_of(folder: Path) -> str | None:
    """Return the fingerprint of the stage that made a checkpoint; None: none did, or a file was changed since.

    So a study's model is the same model to a command that is given its folder.
    """
    try:
        record = read_json(folder.parent / RECORD)
        listed = {name: one["sha256"] for name, one in record["artefacts"].items()}
        fingerprint = str(record["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    files = {
        f"{CHECKPOINT}/{path.relative_to(folder).as_posix()}": path
        for path in folder.rglob("*")
        if path.is_file()
    }
    is_whole = folder.name == CHECKPOINT and bool(files)
    return (
        fingerprint
        if is_whole and all(listed.get(name) == hash_file(path) for name, path in files.items())
        else None
    )


def stages_of(*models: Model | None) -> tuple[StageSpec, ...]:
    """Return the stages that make the models; given ones have none."""
    return tuple(model.stage for model in models if isinstance(model, MadeModel))


def libraries(names: Sequence[str]) -> dict[str, str]:
    """Return the installed version of each library."""
    return {name: version(name) for name in names}


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
