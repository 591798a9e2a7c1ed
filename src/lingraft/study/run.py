"""Run a study: every cell of the grid, stage by stage, and the result as one object.

A cell that fails does not stop the others. A study that was stopped goes on at the first unfinished stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lingraft.config.load import save_study
from lingraft.config.schema import PLAIN, PathStep, Phase, StrategyChoice, StrategySpec, Study, Training
from lingraft.data.example import Example
from lingraft.data.example_table import joined
from lingraft.errors import LingraftError
from lingraft.evaluate.harness import check_tasks
from lingraft.evaluate.predictions import read_predictions
from lingraft.evaluate.scores import differences
from lingraft.records import write_json_atomically
from lingraft.similarity.embedding_similarity import check_languages
from lingraft.similarity.encoders import Encoder, load_encoder
from lingraft.study.events import Watcher
from lingraft.study.grid import Cell
from lingraft.study.materials import DataSet, Materials, Model, gather, tell_costs
from lingraft.study.stages import PREDICTIONS, ModelReference, Stages, TrainingJob
from lingraft.study.store import Stage, Store

RESULT = "result.json"


def run_study(
    study: Study,
    *,
    runs: Path = Path("runs"),
    base_folder: Path = Path(),
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Run (or go on with) a study and return its result.

    Args:
        study: The study, checked.
        runs: Folder of all runs; this one's is `runs/<study.name>`.
        base_folder: What relative paths in the study are relative to.
        watcher: Is told what happens.

    Returns:
        The object that `lingraft run --json` prints (docs/report.md); also written to `result.json` in the
        run folder. Cells that failed are in it, with their reason.

    Raises:
        ConfigError, DataError, ModelError: Something is wrong with the study as a whole, before any training.
    """
    watcher = watcher or Watcher()
    materials = gather(study, base_folder, watcher)
    costs = tell_costs(materials, watcher, trust_remote_code=study.trust_remote_code)
    check_tasks(study.evaluate, base_folder, languages=materials.languages)
    encoder = _encoder(study, materials)
    folder = runs / study.name
    with Store(folder) as store:
        save_study(study, folder / "study.yaml")
        stages = Stages(store, watcher, base_folder, trust_remote_code=study.trust_remote_code)
        runner = _Runner(study, materials, stages, encoder, watcher)
        result = runner.run(folder) | {"tokenizer_cost": costs}
        write_json_atomically(folder / RESULT, result)
        for stage in runner.discardable():
            store.discard(stage)
    return result


def _encoder(study: Study, materials: Materials) -> Encoder | None:
    if "des" not in study.measures:
        return None
    encoder = load_encoder(study.encoder)
    for one in [*materials.data.values(), *([materials.instructions] if materials.instructions else [])]:
        check_languages(one.loaded.examples, encoder)
    return encoder


@dataclass
class _Trained:
    """A trained phase of a cell."""

    step: PathStep
    stage: Stage
    model: ModelReference
    evaluation: Stage


@dataclass
class _Runner:
    study: Study
    materials: Materials
    stages: Stages
    encoder: Encoder | None
    watcher: Watcher
    _train_stages: dict[str, Stage] = field(default_factory=dict)
    _kept: set[str] = field(default_factory=set)
    _any_failed: bool = False

    def run(self, folder: Path) -> dict[str, Any]:
        self.watcher.study_started(self._count_stages())
        base = self.materials.base
        base_scores = None if base is None else self._evaluate_base(base)
        phase_one: dict[str, Any] | None = None
        cells = []
        for cell in self.materials.cells:
            entry = self._attempt(cell)
            phase_one = phase_one or entry.pop("_phase_one", None)
            entry.pop("_phase_one", None)
            cells.append(entry)
        return {"run": str(folder), "base": base_scores, "phase_one": phase_one, "cells": cells}

    def _evaluate_base(self, base: Model) -> dict[str, Any] | None:
        try:
            scores: dict[str, Any] = self._evaluate("base", _reference(base)).result["scores"]
        except Exception as error:  # as for a cell: the others go on
            self.watcher.cell_failed("base", str(error), error)
            return None
        return scores

    def discardable(self) -> list[Stage]:
        """Training stages whose checkpoints the study does not keep; none while a cell may still need them."""
        if self.study.keep == "all" or self._any_failed:
            return []
        kept = self._kept if self.study.keep == "final" else set()
        return [stage for fingerprint, stage in self._train_stages.items() if fingerprint not in kept]

    def _attempt(self, cell: Cell) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "data": cell.data,
            "strategy": cell.strategy,
            "seed": cell.seed,
            "options": _options(cell.steps[-1].strategy),
        }
        try:
            return entry | {"status": "done", "reason": None} | self._run_cell(cell)
        except Exception as error:  # whatever it is, the other cells go on and the reason is shown
            reason = str(error) if isinstance(error, LingraftError) else f"{type(error).__name__}: {error}"
            self.watcher.cell_failed(cell.label, reason, error)
            self._any_failed = True
            return entry | {"status": "failed", "reason": reason}

    def _run_cell(self, cell: Cell) -> dict[str, Any]:
        phase_one_model, phase_one_evaluation, trained = self._train_cell(cell)
        last = trained[-1]
        before, after = phase_one_evaluation.result["scores"], last.evaluation.result["scores"]
        mpd, mpd_stages = self._mpd(cell, phase_one_model, last)
        own = [last.stage, last.evaluation, *mpd_stages]
        self._kept.add(last.stage.fingerprint)
        return {
            "des": self._des(cell),
            "encoder": self.encoder.name if self.encoder else None,
            "mpd": mpd,
            "retention": _ratio(after["task_ability"]["value"], before["task_ability"]["value"]),
            "gain": after["language_ability"]["value"] - before["language_ability"]["value"],
            "difference": differences(
                read_predictions(phase_one_evaluation.folder / PREDICTIONS),
                read_predictions(last.evaluation.folder / PREDICTIONS),
            ),
            "scores": after,
            "training": {
                key: value for key, value in last.stage.result.items() if key not in ("losses", "plan")
            },
            "phases": [
                {
                    "phase": one.step.phase,
                    "data": one.step.data,
                    "strategy": one.step.strategy.label,
                    "scores": one.evaluation.result["scores"],
                    "losses": one.stage.result["losses"],
                }
                for one in trained
            ],
            "checkpoint": None if self.study.keep == "none" else str(last.stage.folder / "checkpoint"),
            "seconds": sum(stage.seconds for stage in own),
            "_phase_one": before,
        }

    def _train_cell(self, cell: Cell) -> tuple[ModelReference, Stage, list[_Trained]]:
        """Train a cell's phases; return Phase 1's model and evaluation, and the phases that are the cell's own."""
        parent, trained = self._start(), []
        checkpoint = self.materials.checkpoint
        if checkpoint is not None:
            first = (_reference(checkpoint), self._evaluate(f"phase {self.study.phases[0].name}", parent))
        steps = cell.steps[:1] if cell.is_mixed else cell.steps
        for index in range(len(steps)):
            one = self._train_step(cell, index, parent)
            trained.append(one)
            parent = one.model
            if index == 0 and checkpoint is None:
                first = (one.model, one.evaluation)
                self._kept.add(one.stage.fingerprint)
        if cell.is_mixed:
            trained = [self._train_mixed(cell)]
        return (*first, trained)

    def _start(self) -> ModelReference:
        start = self.materials.checkpoint or self.materials.base
        if start is None:
            raise LingraftError("the study has neither a base model nor a checkpoint.")
        return _reference(start)

    def _train_step(self, cell: Cell, index: int, parent: ModelReference) -> _Trained:
        step = cell.steps[index]
        phase = self._phase(step.phase)
        data = self._data(step)
        english = self.materials.english.get(phase.data[step.data].english or "")
        english_rows: tuple[Example, ...] = ()
        english_identity = None
        if english is not None:
            held_out = {example.group for example in data.held_out}
            english_rows = tuple(e for e in english.loaded.examples if e.group not in held_out)
            english_identity = {"english": english.identity, "without": data.identity}
        past = self._data(cell.steps[0]) if index > 0 and self.materials.checkpoint is None else None
        base = self.materials.base
        label = " > ".join(f"{s.phase}:{s.data}/{s.strategy.label}" for s in cell.steps[: index + 1])
        job = replace(
            self._job(label, step, [data], parent, cell.seed),
            base=None if base is None else _reference(base),
            previous_data=() if past is None else past.split(cell.seed).train,
            english=english_rows,
            replay_data={
                "previous_data": None if past is None else past.identity,
                "english": english_identity,
            },
        )
        return self._train_and_evaluate(step, job)

    def _train_mixed(self, cell: Cell) -> _Trained:
        """Train one phase over the union of the path's sets, from the base."""
        step = cell.steps[-1]
        label = "+".join(f"{one.phase}:{one.data}" for one in cell.steps) + f"/{step.strategy.label}"
        sets = [self._data(one) for one in cell.steps]
        return self._train_and_evaluate(step, self._job(label, step, sets, self._start(), cell.seed))

    def _job(
        self, label: str, step: PathStep, sets: Sequence[DataSet], parent: ModelReference, seed: int
    ) -> TrainingJob:
        """Describe the training of one step on the union of `sets`, with nothing to replay."""
        return TrainingJob(
            label=self._seeded(label, seed),
            parent=parent,
            examples=joined([one.split(seed).train for one in sets]),
            data=[one.identity for one in sets],
            counts=[one.counts(seed) for one in sets],
            choice=step.strategy,
            training=_training(self.study, self._phase(step.phase), step.strategy),
            seed=seed,
        )

    def _train_and_evaluate(self, step: PathStep, job: TrainingJob) -> _Trained:
        stage, model = self.stages.train(job)
        self._train_stages[stage.fingerprint] = stage
        return _Trained(step, stage, model, self._evaluate(job.label, model))

    def _evaluate(self, label: str, model: ModelReference) -> Stage:
        return self.stages.evaluate(
            label, model, self.study.evaluate, self.materials.languages, self.materials.held_out
        )

    def _des(self, cell: Cell) -> float | None:
        """DES between Phase 1's instructions and those of the cell's last set; None where Phase 1's are unknown."""
        if self.encoder is None:
            return None
        if self.materials.checkpoint is None:
            first: DataSet | None = self._data(cell.steps[0])
        else:
            first = self.materials.instructions
        if first is None:
            return None
        last = self._data(cell.steps[-1])
        label = self._seeded(f"{first.name} and {last.name}", cell.seed)
        one, other = ((s.split(cell.seed).train, {**s.identity, "seed": cell.seed}) for s in (first, last))
        stage = self.stages.similarity(label, one, other, self.encoder)
        return float(stage.result["des"])

    def _mpd(
        self, cell: Cell, phase_one: ModelReference, last: _Trained
    ) -> tuple[dict[str, float | None], list[Stage]]:
        found: dict[str, float | None] = {"from_phase_one": None, "pair": None}
        made = []
        if "mpd" in self.study.measures:
            made.append(self.stages.difference(f"from phase one to {cell.label}", phase_one, last.model))
            found["from_phase_one"] = made[-1].result["mpd"]
        if "mpd_pair" in self.study.measures and not cell.is_mixed:
            made.append(self._pair(cell, phase_one))
            found["pair"] = made[-1].result["mpd"]
        return found, made

    def _pair(self, cell: Cell, phase_one: ModelReference) -> Stage:
        """The paper's MPD of a data pair: the base tuned on Phase 1's set against the base tuned on the last set."""
        step = cell.steps[-1].model_copy(
            update={"strategy": StrategyChoice(parts=(StrategySpec(kind=PLAIN),))}
        )
        label = f"base:{step.data}/{PLAIN}"
        job = self._job(label, step, [self._data(step)], self._start(), cell.seed)
        stage, model = self.stages.train(job)
        self._train_stages[stage.fingerprint] = stage
        return self.stages.difference(f"pair {cell.label}", phase_one, model)

    def _phase(self, name: str) -> Phase:
        return next(phase for phase in self.study.phases if phase.name == name)

    def _data(self, step: PathStep) -> DataSet:
        return self.materials.data[step.phase, step.data]

    def _seeded(self, label: str, seed: int) -> str:
        return label if len(self.study.seeds) == 1 else f"{label} (seed {seed})"

    def _count_stages(self) -> int:
        """Count the different stages of the study, so that progress can say how far it is."""
        wanted: set[tuple[object, ...]] = set()
        for name, model in (("base", self.materials.base), ("checkpoint", self.materials.checkpoint)):
            if model is not None:
                wanted.add(("evaluate", name))
        for cell in self.materials.cells:
            depth = 1 if cell.is_mixed else len(cell.steps)
            paths = [_key(cell.steps[: index + 1]) for index in range(depth)]
            if cell.is_mixed:
                paths.append(_key(cell.steps) + "mixed")
            wanted.update((kind, path, cell.seed) for path in paths for kind in ("train", "evaluate"))
            if self.encoder is not None and (
                self.materials.checkpoint is None or self.materials.instructions
            ):
                wanted.add(("similarity", cell.steps[0].data, cell.steps[-1].data, cell.seed))
            if "mpd" in self.study.measures:
                wanted.add(("difference", _key(cell.steps), cell.seed))
            if "mpd_pair" in self.study.measures and not cell.is_mixed:
                wanted.update(
                    (kind, "pair", cell.steps[-1].data, cell.seed) for kind in ("train", "difference")
                )
        return len(wanted)


def _key(steps: Sequence[PathStep]) -> str:
    return repr(steps)


def _reference(model: Model) -> ModelReference:
    return ModelReference(model.identity, lambda: model.folder)


def _training(study: Study, phase: Phase, choice: StrategyChoice) -> Training:
    """Resolve training options: the study's, overridden by the phase's, then by each strategy's in order."""
    training = phase.training.apply_to(study.training)
    for part in choice.parts:
        training = part.training.apply_to(training)
    return training


def _options(choice: StrategyChoice) -> dict[str, Any]:
    if len(choice.parts) == 1:
        return dict(choice.parts[0].options)
    return {part.kind: dict(part.options) for part in choice.parts}


def _ratio(after: float, before: float) -> float | None:
    """Return after / before, or None where there was nothing to retain."""
    return after / before if before > 0 else None
