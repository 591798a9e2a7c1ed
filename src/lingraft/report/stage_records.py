"""What of a run's stages is too much for `result.json`: which parameters trained, and how far each tensor moved.

Records are found from what the result names: the evaluation of a cell's model says which stage made the model, and that
stage which one trained it. One that is gone, damaged or of another version is passed over, and the figure without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lingraft.records import read_json
from lingraft.report.runs import Report
from lingraft.stage_record import RECORD, DamagedRecordError, StageRecord, read_record
from lingraft.study.result import CellResult

OUTSIDE: Final = "outside"  # of the layers: embeddings, head, final norm
ALL_MODULES: Final = "all"  # where a record does not tell modules apart
_MISSHAPED: Final = (KeyError, TypeError, ValueError, AttributeError)  # what a record of another shape raises


@dataclass(frozen=True, slots=True)
class TrainedShare:
    """What of one kind of module in one layer was trained.

    Attributes:
        layer: Its number; `OUTSIDE` of none.
        module: Kind of module; `ALL_MODULES` of all together.
        trained: Parameters that training could change.
        of: All its parameters.
    """

    layer: str
    module: str
    trained: int
    of: int


@dataclass(frozen=True, slots=True)
class Moved:
    """How far the tensors of one kind of module in one layer lie from those of Phase 1.

    Attributes:
        layer: Its number; `OUTSIDE` of none.
        module: Kind of module.
        mpd: Mean L2 distance of the tensors.
        relative: Mean L2 distance over the norm of Phase 1's; None: not known.
    """

    layer: str
    module: str
    mpd: float
    relative: float | None


def trained_shares(report: Report, cell: CellResult) -> tuple[TrainedShare, ...]:
    """Return what of the model the last phase of a cell trained; empty: no record tells.

    Where strategies combine two models, it is what was trained before.
    """
    stage = _model_of(report, cell.predictions)
    record = None if stage is None else _record(report, f"train-{stage}")
    if record is None and stage is not None:
        combined = _record(report, f"combine-{stage}")
        after = None if combined is None else _stage_of(combined.inputs.get("after"))
        record = None if after is None else _record(report, f"train-{after}")
    found = []
    try:
        for part in () if record is None else record.result.get("plan", ()):
            name = str(part["part"])
            layer = str(int(name.removeprefix("layer "))) if name.startswith("layer ") else OUTSIDE
            kind = ALL_MODULES if layer != OUTSIDE else name
            for module in part.get("modules") or [
                part | {"kind": kind}
            ]:  # earlier records tell no kinds apart
                trained = int(module["trainable"])
                found.append(
                    TrainedShare(layer, str(module["kind"]), trained, trained + int(module["frozen"]))
                )
    except _MISSHAPED:
        return ()
    return tuple(found)


def differences_of(report: Report) -> Mapping[tuple[str, str], Path]:
    """Return the folders of the stages that compared two models' weights, by the stages that made the models.

    The records are not verified here, which takes long of many; who reads more of one does.
    """
    found = {}
    for run in report.runs:
        for folder in sorted((run.folder / "stages").glob("difference-*")):
            try:
                inputs = read_json(folder / RECORD)["inputs"]
                found[_stage_of(inputs["first"]) or "", _stage_of(inputs["second"]) or ""] = folder
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
    return found


def moved_tensors(
    report: Report, cell: CellResult, differences: Mapping[tuple[str, str], Path]
) -> tuple[Moved, ...]:
    """Return how far a cell's weights lie from Phase 1's, by layer and kind of module; empty: no record tells."""
    first, second = (_model_of(report, path) or "" for path in (cell.phase_one_predictions, cell.predictions))
    folder = differences.get((first, second))
    record = None if folder is None or not second else _read(folder)
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    try:
        for one in () if record is None else record.result.get("tensors", ()):
            layer = OUTSIDE if one["layer"] is None else str(int(one["layer"]))
            groups.setdefault((layer, str(one["module"])), []).append(one)
        return tuple(
            Moved(*key, _mean([one["l2"] for one in own]) or 0.0, _mean([one["relative"] for one in own]))
            for key, own in groups.items()
        )
    except _MISSHAPED:
        return ()


def _mean(values: Sequence[float | None]) -> float | None:
    known = [one for one in values if one is not None]
    return sum(known) / len(known) if known else None


def _model_of(report: Report, predictions: str) -> str | None:
    """Return the fingerprint of the stage that made the model of an evaluation; None: none did, or no record tells."""
    record = _record(report, Path(predictions).parent.name)
    return None if record is None else _stage_of(record.inputs.get("model"))


def _stage_of(identity: object) -> str | None:
    stage = identity.get("stage") if isinstance(identity, dict) else None
    return stage if isinstance(stage, str) else None


def _record(report: Report, name: str) -> StageRecord | None:
    folder = report.path_of(f"stages/{name}")
    return None if folder is None else _read(folder)


def _read(folder: Path) -> StageRecord | None:
    try:
        return read_record(folder)
    except (OSError, DamagedRecordError):
        return None
