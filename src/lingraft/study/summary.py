"""What the stages of a study found, summed up as its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lingraft.config.schema import StrategyChoice, Study
from lingraft.errors import LingraftError
from lingraft.evaluate.common_items import CommonItems, common_items, unpaired_sentence
from lingraft.evaluate.predictions import read_predictions
from lingraft.evaluate.scores import differences, differences_over_seeds
from lingraft.evaluate.task_records import read_task_records
from lingraft.measures.base import FROM_PHASE_ONE, Column, Found, Measured
from lingraft.models.compute import compute_for, device_name
from lingraft.stage import CHECKPOINT, FinishedStage, StageSpec
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.forgetting import PhaseEnd, forgetting_of
from lingraft.study.materials import Materials
from lingraft.study.plan import Plan, PlannedCell, PlannedPhase
from lingraft.study.stages.evaluate import PREDICTIONS


class Summary:
    """Collects the result of a study while its stages are made."""

    def __init__(
        self, study: Study, materials: Materials, plan: Plan, executor: Executor, watcher: Watcher
    ) -> None:
        self._study = study
        self._materials = materials
        self._plan = plan
        self._executor = executor
        self._watcher = watcher
        self._base_reason: str | None = None
        self._phase_ones: dict[str, dict[str, Any]] = {}
        self._cells: list[dict[str, Any]] = []
        self._compared: dict[tuple[str, str], list[tuple[FinishedStage, FinishedStage]]] = {}

    def sum_up_base(self, error: Exception | None) -> None:
        """Take over the base model's evaluation, or why it failed."""
        self._base_reason = None if error is None else self._reported("base", error)

    def sum_up_cell(self, planned: PlannedCell) -> None:
        """Take over a cell whose stages are all done or have failed."""
        cell = planned.cell
        entry: dict[str, Any] = {
            "data": cell.data,
            "strategy": cell.strategy,
            "seed": cell.seed,
            "options": options_of(cell.steps[-1].strategy),
        }
        if (evaluation := self._executor.done.get(planned.phase_one_evaluate.fingerprint)) is not None:
            step = None if planned.phase_one is None else planned.phase_one.step
            self._phase_ones.setdefault(
                evaluation.fingerprint,
                {
                    "data": None if step is None else step.data,
                    "strategy": None if step is None else step.strategy.label,
                    "seed": None if step is None else cell.seed,
                    "scores": evaluation.result["scores"],
                    "predictions": predictions_of(evaluation),
                },
            )
        failures = (self._executor.failed.get(one.fingerprint) for one in planned.stages)
        try:
            error = next((one for one in failures if one is not None), None)
            if error is not None:
                raise error
            self._cells.append(entry | {"status": "done", "reason": None} | self._cell(planned))
        except Exception as failure:  # whatever it is, the other cells go on and the reason is shown
            reason = self._reported(cell.label, failure)
            self._cells.append(entry | {"status": "failed", "reason": reason})

    def result(self, folder: Path) -> dict[str, Any]:
        """Return the result of the study in `folder`, all of whose cells were taken over."""
        base = None if self._plan.base is None else self._executor.done.get(self._plan.base.fingerprint)
        phase_ones = list(self._phase_ones.values())
        trained = [one for cell in self._cells if cell["status"] == "done" for one in cell["phases"]]
        evaluated = compute_for(self._study.evaluate.precision)
        return {
            "run": str(folder),
            "base": None if base is None else base.result["scores"],
            "base_reason": self._base_reason,
            "base_predictions": None if base is None else predictions_of(base),
            "phase_one": phase_ones[0]["scores"] if phase_ones else None,
            "phase_ones": phase_ones,
            "cells": self._cells,
            "over_seeds": [
                {"data": data, "strategy": strategy, "seeds": len(pairs)}
                | differences_over_seeds(
                    [(before, after) for before, after in (common_of(pair).models for pair in pairs)]
                )
                for (data, strategy), pairs in self._compared.items()
                if len(pairs) > 1
            ],
            "precision": {  # what `auto` stands for on this machine
                "training": sorted({one["training"]["precision"] for one in trained}),
                "evaluation": evaluated.precision,
                "device": device_name(evaluated.device),
            },
        }

    def _cell(self, planned: PlannedCell) -> dict[str, Any]:
        """Return what was found of a cell that is done."""
        cell, done, note = planned.cell, self._executor.done, self._watcher.noted
        last = planned.phases[-1]
        compared = (self._done(planned.phase_one_evaluate), self._done(last.evaluate))
        before, after = (one.result["scores"] for one in compared)
        common = common_of(compared)
        for task, count in common.unpaired.items():
            judged = compared[1].result["tasks"][task]["judged"] is not None
            note(f"{cell.label}: {unpaired_sentence(task, count, judged=judged)}")
        for problem in common.refused.values():
            note(f"{cell.label}: {problem}")
        self._compared.setdefault((cell.data, cell.strategy), []).append(compared)
        ends = [PhaseEnd(one.step.phase, self._done(one.evaluate)) for one in planned.phases]
        if cell.is_mixed:
            ends = [PhaseEnd(cell.strategy, compared[1])]
        elif planned.phase_one is None:
            ends.insert(0, PhaseEnd(self._study.phases[0].name, compared[0]))
        base = None if self._plan.base is None else done.get(self._plan.base.fingerprint)
        forgetting = forgetting_of(self._study, self._materials, cell, ends, base)
        for problem in (forgetting["ability"] or {"not_paired": {}})["not_paired"].values():
            note(f"{cell.label}: the base model stands in no matrix of abilities: {problem}")
        measured = self._measured(planned)
        phases = [self._phase(one, own) for one, own in zip(planned.phases, measured, strict=True)]
        own_stages: dict[str, StageSpec] = {
            one.fingerprint: one for one in (last.train, last.made, last.evaluate)
        }
        for taken in planned.measures.values():
            own_stages |= {one.fingerprint: one for one in taken[-1].stages.values()}
        return {
            "retention": after["task_ability"]["value"] / before["task_ability"]["value"]
            if before["task_ability"]["value"] > 0
            else None,
            "gain": after["language_ability"]["value"] - before["language_ability"]["value"],
            "difference": differences(*common.models),
            "unpaired": common.unpaired,
            "not_paired": common.refused,
            "forgetting": forgetting,
            "scores": after,
            "predictions": predictions_of(compared[1]),
            "phase_one_predictions": predictions_of(compared[0]),
            "training": phases[-1]["training"],
            "cost": self._cost(last),
            "phases": phases,
            "checkpoint": None
            if self._study.keep == "none"
            else str(self._done(last.made).folder / CHECKPOINT),
            "seconds": sum(self._done(one).seconds for one in own_stages.values()),
        } | _old_keys(measured[-1])

    def _phase(self, phase: PlannedPhase, measured: dict[str, Measured]) -> dict[str, Any]:
        """Return what was found of one trained phase."""
        trained = self._done(phase.train).result
        des, mpd = (measured.get(name, Measured({})) for name in ("des", "mpd"))
        return {
            "phase": phase.step.phase,
            "data": phase.step.data,
            "strategy": phase.step.strategy.label,
            "options": options_of(phase.step.strategy),
            "des": _both(des, "des"),
            "des_reason": des.reason,
            "mpd": _both(mpd, "mpd"),
            "scores": self._done(phase.evaluate).result["scores"],
            "training": {key: value for key, value in trained.items() if key not in ("losses", "plan")},
            "losses": trained["losses"],
        }

    def _measured(self, planned: PlannedCell) -> list[dict[str, Measured]]:
        """Return what each measure found, phase by phase."""
        found: list[dict[str, Measured]] = [{} for _ in planned.phases]
        for measure in self._plan.measures:
            for number, taken in enumerate(planned.measures[measure.name]):
                stages = {place: measure.found(self._done(one)) for place, one in taken.stages.items()}
                found[number][measure.name] = Measured(stages, taken.reason)
        return found

    def _cost(self, phase: PlannedPhase) -> dict[str, Any]:
        """Return what a phase took: of the machine's state, unlike all else in a result."""
        timing = self._done(phase.train).timing
        states = [self._executor.done.get(one.fingerprint) for one in phase.train.states.values()]
        prepared = [one for one in states if one is not None]
        return {
            "prepare_seconds": sum(stage.seconds for stage in prepared),
            "training_seconds": timing["training_seconds"],
            "resumed_from": timing["resumed_from"],
            "combine_seconds": 0.0 if phase.combine is None else self._done(phase.combine).seconds,
            "peak_bytes": max([timing["peak_bytes"], *(stage.timing["peak_bytes"] for stage in prepared)]),
        }

    def _done(self, stage: StageSpec) -> FinishedStage:
        return self._executor.done[stage.fingerprint]

    def _reported(self, label: str, error: Exception) -> str:
        """Report that something failed, and return the reason."""
        reason = str(error) if isinstance(error, LingraftError) else f"{type(error).__name__}: {error}"
        self._watcher.cell_failed(label, reason, error)
        return reason


def common_of(evaluations: Sequence[FinishedStage]) -> CommonItems:
    """Return the models' predictions, on the items that all of them have a score of."""
    read = [read_predictions(one.folder / PREDICTIONS) for one in evaluations]
    return common_items(read, [read_task_records(one.result["tasks"]) for one in evaluations])


def predictions_of(evaluation: FinishedStage) -> str:
    """Return where an evaluation's answers lie in the run folder, which may be moved."""
    return f"{evaluation.folder.parent.name}/{evaluation.folder.name}/{PREDICTIONS}"


def options_of(choice: StrategyChoice) -> dict[str, Any]:
    """Return the options that the study file gives; of a composition by strategy."""
    if len(choice.parts) == 1:
        return dict(choice.parts[0].options)
    return {part.kind: dict(part.options) for part in choice.parts}


def _both(measured: Measured, figure: str) -> dict[str, float | None]:
    return {
        place: measured.figure(Column("", "", figure, place)).value
        for place in ("from_previous", FROM_PHASE_ONE)
    }


def _old_keys(measured: dict[str, Measured]) -> dict[str, Any]:
    """Return what measures found under the keys that the report reads until it reads `Measured`."""
    des, mpd, pair, drift = (measured.get(name, Measured({})) for name in ("des", "mpd", "mpd_pair", "drift"))
    one: Found | None = des.found.get(FROM_PHASE_ONE)
    corrected = details = None
    if one is not None:
        details = one.details if isinstance(one.details, dict) else {}
        found = one.figures["corrected"]
        corrected = {"value": found.value, "low": found.low, "high": found.high, "n": details["n"]}
    return {
        "des": _both(des, "des")[FROM_PHASE_ONE],
        "des_corrected": corrected,
        "des_reason": des.reason,
        "encoder": None if details is None else details["encoder"],
        "mpd": {
            "from_phase_one": _both(mpd, "mpd")[FROM_PHASE_ONE],
            "pair": pair.figure(Column("", "", "mpd", "pair")).value,
        },
        "drift": drift.found[FROM_PHASE_ONE].details if drift.found else None,
    }
