"""What a report is of: one run, or several that it compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lingraft.config.load import load_study
from lingraft.config.schema import Study
from lingraft.errors import ConfigError
from lingraft.records import path_inside
from lingraft.study.result import STUDY, StudyResult, read_result


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


def read_report(folders: Sequence[Path]) -> Report:
    """Return the report of run folders.

    Raises:
        ConfigError: A folder holds no result.
    """
    (folder,) = folders
    try:
        study = load_study(folder / STUDY)
    except ConfigError:
        study = None
    return report_of(read_result(folder), study)
