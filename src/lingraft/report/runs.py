"""What a report is of: one run, or several that it compares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from lingraft.claims import CLAIMS, owner_of
from lingraft.config.load import load_study
from lingraft.config.named import all_named, named
from lingraft.config.paths import check_may_read, user_path
from lingraft.config.schema import Study
from lingraft.errors import ConfigError, EvaluationError, did_you_mean
from lingraft.evaluate.common_items import common_items
from lingraft.evaluate.predictions import Prediction, read_predictions
from lingraft.evaluate.results import EvaluationRecord
from lingraft.evaluate.shown_names import names_in_files, names_in_keys, renamed
from lingraft.evaluate.task_records import TaskRecord
from lingraft.records import from_json, path_inside, read_json
from lingraft.report.merge import merged, with_all_measures
from lingraft.report.notes import pending_notes
from lingraft.report.older import read_any_result
from lingraft.report.rivals import Comparer
from lingraft.report.tables import models_of
from lingraft.stage_record import FORMAT, RECORD, read_record
from lingraft.study.made import Invocation, invocations, without_secrets
from lingraft.study.result import RESULT, STUDY, FailedCell, StudyResult
from lingraft.study.store import RUN

MANIFEST: Final = "manifest.json"  # of an evaluation; its stage's own module brings torch
_RECORDS_LOOKED_AT = 20  # of a run's stages, all of which one version made
_NAMED = 3  # tasks in a sentence


@dataclass(frozen=True)
class Run:
    """A run folder, as a report reads it: no model is needed for that.

    Attributes:
        name: What the report calls it: the study's name, or the one that the user gave.
        folder: Where it lies.
        result: What was found, as far as it is made.
        study: The resolved study; None: its file is missing, or of another version.
        remarks: What a reader must know of the run as a whole: another version made it, a file is damaged.
        invocations: The calls that worked on it, the oldest first; empty: an earlier version made it.
        versions: Of lingraft and libraries, as one of its evaluations recorded them, by name; empty: unknown.
        asked: By task as the study file has it, the harness's names of what it stands for.
    """

    name: str
    folder: Path
    result: StudyResult
    study: Study | None
    remarks: tuple[str, ...] = ()
    invocations: tuple[Invocation, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    asked: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The runs that one report shows.

    Attributes:
        runs: At least one; of several, names differ.
        result: What is shown: that of the only run, or of several all their models, each data set named after its run.
        remarks: What a reader who compares the runs must know: their models were asked otherwise, their seeds differ.
        task_names: What tasks that are given as files are called, by their paths; the results have these names already.
    """

    runs: tuple[Run, ...]
    result: StudyResult
    remarks: tuple[str, ...] = ()
    task_names: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Return the heading: the names of the runs."""
        return ", ".join(run.name for run in self.runs)

    @cached_property
    def comparer(self) -> Comparer:
        """Compares the cells; it keeps what it has read and found."""
        return Comparer(self.path_of)

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """What stands below the heading: names and texts, each once."""
        studies = [run.study for run in self.runs if run.study is not None]
        models = [
            name
            for study in studies
            for name in (study.model, study.phases[0].checkpoint)
            if name is not None
        ]
        calls = [one for run in self.runs for one in run.invocations]
        dates = sorted((one.ended or one.began)[:10] for one in calls)
        versions = [one.lingraft for one in calls] or [
            run.versions["lingraft"] for run in self.runs if "lingraft" in run.versions
        ]
        cells = self.result.cells
        seeds = sorted({cell.seed for cell in cells})
        failed = sum(isinstance(cell, FailedCell) for cell in cells)
        found = {
            "Model": ", ".join(dict.fromkeys(map(without_secrets, models))),
            "Made": " to ".join(dict.fromkeys(dates[:1] + dates[-1:])),
            "lingraft": ", ".join(dict.fromkeys(versions)),
            "Cells": f"{len(self.result.done)} of {len(cells)} done"
            + (f", {failed} failed" if failed else ""),
            "Seeds": ", ".join(map(str, seeds)),
            "Computed on": f"{self.result.precision.device}, in {self.result.precision.evaluation}",
        }
        return tuple((name, text) for name, text in found.items() if text)

    def path_of(self, inside: str) -> Path | None:
        """Return where a file of a run folder lies, which the result names; None: no run has it (any more).

        Stages are named by their fingerprints, so what two runs name alike is the same.
        """
        for run in self.runs:
            try:
                path = path_inside(run.folder, inside)
            except ValueError:
                continue
            if path.exists():
                return path
        return None


def report_of(result: StudyResult, study: Study | None) -> Report:
    """Return the report of one run whose result is at hand."""
    folder = Path(result.run)
    name = folder.name if study is None else study.name
    versions, asked = _asked_with(folder, result)
    run = Run(name, folder, result, study, (), invocations(folder), versions, asked)
    return _with_task_names((run,))


def _with_task_names(runs: Sequence[Run]) -> Report:
    """Return the report of runs, with their tasks called by the names in their files, in place of paths."""
    asked: dict[str, set[str]] = {}
    for run in runs:
        for task, own in run.asked.items():
            asked.setdefault(task, set()).update(own)
    names = names_in_files(asked)
    runs = tuple(replace(run, result=renamed(run.result, names)) for run in runs)
    if len(runs) == 1:
        return Report(runs, runs[0].result, (), names)
    between = tuple(renamed(one, names) for one in _between(runs))
    return Report(runs, merged({run.name: run.result for run in runs}), between, names)


def read_report(written: Sequence[str]) -> Report:
    """Return the report of run folders.

    Args:
        written: The folders, each as `PATH` or `NAME=PATH`.

    Raises:
        ConfigError: A folder is no run's, or a later version's; a run or a name is given twice.
    """
    folders = [user_path(named(one).value) for one in written]
    for folder in folders:
        if folder.is_dir():
            check_may_read(folder)
        if not (folder / RESULT).is_file() and not _has_stages(folder):
            raise ConfigError(_no_run(folder))
    places = [folder.resolve() for folder in folders]
    for place, folder in zip(places, folders, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{folder}: is given {places.count(place)} times; name each run once.")
    names = all_named(written, _name_of_study)
    runs = tuple(_read(folder, one.name) for folder, one in zip(folders, names, strict=True))
    return _with_task_names(runs)


def _read(folder: Path, name: str) -> Run:
    """Return a run, as far as it can be read, with what a reader must know of it."""
    remarks = []
    try:
        study = load_study(folder / STUDY)
    except ConfigError as error:
        study = None
        is_there = (folder / STUDY).is_file()
        problem = f"cannot be read by this version ({error.args[0]})" if is_there else "is missing"
        remarks.append(f"{STUDY} {problem}: what the study asked for is not shown in full.")
    result, own = read_any_result(folder, study)
    remarks += own
    if is_at_work(folder):
        remarks.append("lingraft is at work in this folder: this is what was done when the page was written.")
    result = replace(result, cells=tuple(with_all_measures(result.cells)))
    remarks += _stage_remarks(folder, result)
    remarks += pending_notes(result)
    versions, asked = _asked_with(folder, result)
    return Run(name, folder, result, study, tuple(remarks), invocations(folder), versions, asked)


def _asked_with(folder: Path, result: StudyResult) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Return `Run.versions` and `Run.asked`, from the manifest of an evaluation: all of a run were asked alike."""
    models = models_of(result)
    asked: dict[str, set[str]] = {
        label.rpartition("/")[0]: set() for one in models for label in one.scores.tasks
    }
    for model in models:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found = read_json(path_inside(folder, model.predictions).parent / MANIFEST)
            versions = {str(name): str(own) for name, own in found["libraries"].items()}
            return versions, asked | names_in_keys(found["tasks"])
    return {}, asked


def _stage_remarks(folder: Path, result: StudyResult) -> Iterator[str]:
    """Yield what is wrong with the stages that the result names, as far as a report shows them."""
    answers = [model.predictions for model in models_of(result)]
    gone = [place for place in answers if not _is_there(folder, place)]
    if gone:
        yield f"The answers of {len(gone)} of {len(answers)} models are gone: they cannot be shown."
    formats: Counter[object] = Counter()
    for path in sorted((folder / "stages").glob(f"*/{RECORD}"))[:_RECORDS_LOOKED_AT]:
        with suppress(OSError, ValueError, AttributeError):
            formats[read_json(path).get("format")] += 1
    other = [one for one in formats if one != FORMAT]
    if other:
        yield (
            "Its stages were recorded by another version of lingraft (format "
            f"{', '.join(map(str, other))}; now {FORMAT}): this version does not go on with them."
        )


def _is_there(folder: Path, place: str) -> bool:
    try:
        return path_inside(folder, place).exists()
    except ValueError:
        return False


def is_at_work(folder: Path) -> bool:
    """Return whether a lingraft holds the run folder; what it does is not disturbed."""
    return owner_of(folder / CLAIMS / RUN) is not None


def _between(runs: Sequence[Run]) -> Iterator[str]:
    """Yield why figures of several runs may not be comparable: other items, asked otherwise, other seeds."""
    seeds = {run.name: sorted({cell.seed for cell in run.result.cells}) for run in runs}
    if len(set(map(tuple, seeds.values()))) > 1:
        listed = "; ".join(f"{name}: {', '.join(map(str, own))}" for name, own in seeds.items())
        yield f"The runs have other seeds ({listed}): their means are over other seeds."
    evaluated = {run.name: _evaluated(run) for run in runs}
    for name, one in evaluated.items():
        if one is None:
            yield (
                f"{name}: its evaluations cannot be read, so whether its models were asked the same as those of the "
                "other runs is not known; compare scores inside of a run."
            )
    known = {name: one for name, one in evaluated.items() if one is not None}
    first, *others = known or [""]
    for other in others:
        (before, asked_before), (after, asked_after) = known[first], known[other]
        only = sorted({one.label for one in before} ^ {one.label for one in after})
        if only:
            yield (
                f"{first} and {other}: one alone evaluates {_listed(only)}; abilities are means over other tasks."
            )
        common = common_items([before, after], [asked_before, asked_after])
        reasons: dict[str, list[str]] = {}
        for task, sentence in common.refused.items():
            reasons.setdefault(sentence.removeprefix(f"{task}: not compared, because "), []).append(task)
        for reason, tasks in reasons.items():
            yield f"{first} and {other}: do not compare their scores of {_listed(tasks)}: {reason}"
        uneven = {task: count for task, count in common.unpaired.items() if task not in only}
        if uneven:
            yield (
                f"{first} and {other}: {sum(uneven.values())} items of {_listed(list(uneven))} were asked alike in one "
                "of them only; their scores there are over other items."
            )


def _evaluated(run: Run) -> tuple[tuple[Prediction, ...], dict[str, TaskRecord]] | None:
    """Return the answers of one model of a run and how it was asked; all of a run were asked alike. None: unknown."""
    for model in reversed(models_of(run.result)):
        try:
            path = path_inside(run.folder, model.predictions)
            record = from_json(EvaluationRecord, read_record(path.parent).result)
            return read_predictions(path), record.tasks
        except (OSError, ValueError, EvaluationError):
            continue
    return None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _name_of_study(written: str) -> tuple[str, ...]:
    """Return the name of the study whose run folder this is; none: its file cannot be read."""
    try:
        return (load_study(user_path(written) / STUDY).name,)
    except ConfigError:
        return ()


def _has_stages(folder: Path) -> bool:
    return (folder / STUDY).is_file() and (folder / "stages").is_dir()


def _no_run(folder: Path) -> str:
    """Return what to type in place of what is no run folder."""
    if not folder.exists():
        inside = [] if not folder.parent.is_dir() else _runs_in(folder.parent)
        there = f" {did_you_mean(str(folder), map(str, inside))}" if inside else ""
        return f"{folder}: there is no such folder.{there}"
    if folder.name in (RESULT, STUDY, "plan.json") and (folder.parent / RESULT).is_file():
        return f"{folder}: is a file of a run; name its folder: lingraft report {folder.parent}"
    if folder.is_file():
        try:
            name = load_study(folder).name
        except ConfigError:
            return f"{folder}: is a file; name the folder of a run, such as runs/NAME."
        run = Path("runs") / name
        if (run / RESULT).is_file():
            return f"{folder}: is a study file; name the run that it left: lingraft report {run}"
        return f"{folder}: is a study file, and {run} holds no run of it; run it first: lingraft run {folder}"
    inside = _runs_in(folder)
    if inside:
        return f"{folder}: holds runs, and is none; name one or more of them: {', '.join(map(str, inside))}."
    return f"{folder}: holds no {RESULT} of a study; name the folder of a run, such as runs/NAME."


def _runs_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{RESULT}"))
