"""What a report is of: one run, or several that it compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lingraft.config.load import load_study
from lingraft.config.named import Named
from lingraft.config.paths import user_path
from lingraft.config.schema import Study
from lingraft.errors import ConfigError, did_you_mean
from lingraft.records import path_inside
from lingraft.report.rivals import Comparer
from lingraft.study.result import RESULT, STUDY, StudyResult, read_result


@dataclass(frozen=True)
class Run:
    """A run folder, as a report reads it: no model is needed for that.

    Attributes:
        name: What the report calls it: the study's name, or the one that the user gave.
        folder: Where it lies.
        result: What was found, as far as it is made.
        study: The resolved study; None: its file is missing, or of another version.
        remarks: What a reader must know of the run as a whole: another version made it, a file is damaged.
    """

    name: str
    folder: Path
    result: StudyResult
    study: Study | None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """The runs that one report shows.

    Attributes:
        runs: At least one; of several, names differ.
        result: What is shown: that of the only run, or of several all their models, each data set named after its run.
    """

    runs: tuple[Run, ...]
    result: StudyResult

    @property
    def title(self) -> str:
        """Return the heading: the names of the runs."""
        return ", ".join(run.name for run in self.runs)

    @cached_property
    def comparer(self) -> Comparer:
        """Compares the cells; it keeps what it has read and found."""
        return Comparer(self.path_of)

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
    return Report((Run(folder.name if study is None else study.name, folder, result, study),), result)


def read_report(named: Sequence[Named]) -> Report:
    """Return the report of run folders.

    Args:
        named: The folders, each with the name that the report calls it.

    Raises:
        ConfigError: A folder holds no result.
    """
    if len(named) > 1:
        raise ConfigError(f"{len(named)} runs: name one.")
    (run,) = [_read(one) for one in named]
    return Report((run,), run.result)


def _read(one: Named) -> Run:
    folder = user_path(one.value)
    if not (folder / RESULT).is_file():
        raise ConfigError(_no_run(folder))
    try:
        study = load_study(folder / STUDY)
    except ConfigError:
        study = None
    name = folder.name if study is None else study.name
    return Run(one.name if one.is_given else name, folder, read_result(folder), study)


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
