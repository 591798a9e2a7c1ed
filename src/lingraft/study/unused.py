"""What lies in a run folder that nothing refers to: stages that its study does not list (any more), and leftovers.

    runs/<name>/plan.json    the stages of the study as it was last run, and names of those that earlier ones had

The plan is kept because it cannot be known from the folder alone: data may have moved, and another version of a
library gives other fingerprints. Nothing outside of the folder is looked at, and no symbolic link is followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Literal

from lingraft.claims import owner_of
from lingraft.errors import ConfigError
from lingraft.records import from_json, is_foreign, read_kept, to_json, write_kept
from lingraft.stage import FOLDER_NAME
from lingraft.stage_record import RECORD, DamagedRecordError, OtherFormatError, read_record
from lingraft.study.failures import FAILURES
from lingraft.study.made import MADE
from lingraft.study.store import FORMER, RUN, unfinished
from lingraft.study.under_way import LOSSES, UNDER_WAY

PLAN = "plan.json"
_WORK = re.compile(rf"({FOLDER_NAME.pattern})\.[1-9][0-9]*")  # of an owner of a stage
_LOG = re.compile(r"[1-9][0-9]*\.(log|events\.jsonl)")
_CLAIM = re.compile(r"[1-9][0-9]*")
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{16}|[a-z0-9_]{8})\.part")  # of an atomic write that was killed
_OWN_FILES = frozenset({"study.yaml", "result.json", PLAN, MADE, UNDER_WAY, FAILURES})
_OWN_FOLDERS = frozenset({"stages", "cache", "report", "work", "claims", "logs"})
_OF_TRAINING = ("trainer", "task.json", LOSSES)  # what training leaves where it is killed
_TEMPORARY_FILE = "temporary file of a run that was killed"
_KEPT_IN_CACHE = re.compile(
    r"(\.verdicts\.jsonl\.)?claims|verdicts\.jsonl|(manifest|contamination)-[0-9a-f]{16}\.json|.*\.lock"
)
_ANSWERS = re.compile(r"answers-[0-9a-f]{16}(\.[0-9]+)?\.jsonl|replay-[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class UnusedStage:
    """A stage in the run folder that the study file does not list.

    Attributes:
        name: Of its cell, or what it was called; None: it is older than what the folder knows.
        kind: What it does.
        path: Its folder in the run folder.
        bytes: Of its files.
        is_finished: Whether it has a record.
    """

    name: str | None
    kind: str
    path: str
    bytes: int
    is_finished: bool


@dataclass(frozen=True)
class ListedStage:
    """A stage of the study.

    Attributes:
        name: Of its cell, or of what several share.
        is_continued: Whether the next run goes on with what an interrupted one left.
        parents: The folders of the stages that it reads; empty in a file of an earlier version.
    """

    name: str
    is_continued: bool
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunPlan:
    """What `plan.json` holds.

    Attributes:
        stages: Those of the study as it was last run, by the name of their folder.
        former: By folder, the names of others that are there from earlier ones.
        order: Their folders in the order in which they are made; empty in a file of an earlier version.
        format: Version of this file.
    """

    stages: dict[str, ListedStage]
    former: dict[str, str]
    order: tuple[str, ...] = ()
    format: Literal[1] = 1


@dataclass(frozen=True)
class Leftover:
    """What nothing refers to.

    Attributes:
        path: In the run folder.
        what: What it is.
        bytes: Its size.
        files: What is removed with it, in the run folder; a folder goes when it is empty then.
    """

    path: str
    what: str
    bytes: int
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Leftovers:
    """What lies in a run folder besides what its study uses.

    Attributes:
        removable: What lingraft made.
        foreign: Paths of what it did not make (links as well), in the run folder.
    """

    removable: tuple[Leftover, ...]
    foreign: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """The size of all that can be removed."""
        return sum(one.bytes for one in self.removable)


def write_plan(folder: Path, stages: Mapping[str, ListedStage]) -> None:
    """Write the plan of a run folder; names of stages that are not in it any more stay known while they are there."""
    before = {}
    with suppress(FileNotFoundError, ValueError):  # a damaged one: names are lost, and nothing else
        found = _read_plan(folder)
        before = found.former | {name: one.name for name, one in found.stages.items()}
    former = {
        name: label
        for name, label in before.items()
        if name not in stages
        and FOLDER_NAME.fullmatch(name)
        and ((folder / "stages" / name).is_dir() or unfinished(folder, name) is not None)
    }
    write_kept(folder / PLAN, to_json(RunPlan(dict(stages), former, tuple(stages))))


def unused_stages(folder: Path) -> tuple[UnusedStage, ...]:
    """Return the stages in a run folder that its plan does not have, in the order of their folders' names.

    Raises:
        ConfigError: The folder has no plan.
    """
    plan = read_plan(folder)
    found = []
    for own in [*_paths_in(folder / "stages"), *_paths_in(folder / "work")]:
        name = _stage_of(own)
        if name is not None and name not in plan.stages and (files := _contents(own)[0]):
            found.append(
                UnusedStage(
                    name=plan.former.get(name),
                    kind=name.partition("-")[0],
                    path=own.relative_to(folder).as_posix(),
                    bytes=sum(one.lstat().st_size for one in files),
                    is_finished=own.name == name and _artefacts(own) is not None,
                )
            )
    return tuple(found)


def read_plan(folder: Path) -> RunPlan:
    """Return the plan of a run folder.

    Raises:
        ConfigError: It has none, or a damaged one.
    """
    if not (folder / "study.yaml").is_file():
        raise ConfigError(f"{folder}: is no run folder of a study: it holds no study.yaml.")
    try:
        return _read_plan(folder)
    except (FileNotFoundError, ValueError):
        raise ConfigError(
            f"{folder / PLAN}: is missing or damaged, so nobody knows which stages the study uses. Run the study "
            "once more, which writes it; finished stages are not repeated."
        ) from None


def leftovers(folder: Path) -> Leftovers:
    """Return what lies in a run folder besides what its study uses; its claim must be held.

    What the study goes on with is not in it: checkpoints of an interrupted training, answers of an interrupted
    evaluation, verdicts that were paid for; nor is what another process makes, such as on another machine.

    Raises:
        ConfigError: The folder is no run's, or has no plan.
    """
    plan = read_plan(folder)
    found = _Found()
    for path in found.unknown(folder, _OWN_FILES | _OWN_FOLDERS):
        if path.name == ".lock" and path.is_file():  # no version locks by it any more
            found.add(path, "lock of an earlier version", [path])
            continue
        found.foreign.append(path)
    for path in found.unknown(folder / "report", frozenset({"index.html"})):
        found.foreign.append(path)
    for path in found.unknown(folder / "stages"):
        if _stage_of(path) != path.name:
            found.foreign.append(path)
        elif (listed := plan.stages.get(path.name)) is None:
            found.sort_unlisted(path, plan.former.get(path.name))
        else:
            found.sort_listed(path, listed)
    found.sort_work(folder, plan)
    found.sort_claims_and_logs(folder, plan)
    is_finished = all(_artefacts(folder / "stages" / name) is not None for name in plan.stages)
    for path in found.unknown(folder / "cache"):
        if path.name == "encoded":
            found.add(path, "encoded rows, which are made again", *_contents(path))
        elif _ANSWERS.fullmatch(path.name):
            if is_finished:
                found.add(path, "answers that no stage waits for", *_contents(path))
        elif not _KEPT_IN_CACHE.fullmatch(path.name):
            found.foreign.append(path)

    def inside(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    return Leftovers(
        tuple(
            Leftover(inside(path), what, sum(one.lstat().st_size for one in files), tuple(files))
            for path, what, files in found.removable
        ),
        tuple(sorted({inside(path) for path in found.foreign})),
    )


@dataclass
class _Found:
    """Collects what is removable (path, what it is, its files) and what is not ours."""

    removable: list[tuple[Path, str, list[Path]]] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)

    def add(self, path: Path, what: str, files: list[Path], others: Sequence[Path] = ()) -> None:
        if files or not others:  # else nothing of ours is left in it
            self.removable.append((path, what, files))
        self.foreign += others

    def unknown(self, place: Path, known: frozenset[str] = frozenset()) -> list[Path]:
        """Sort what is in a folder, and return what is neither known by its name nor temporary nor a link."""
        paths = _paths_in(place)
        self.foreign += (path for path in paths if path.is_symlink())
        paths = [path for path in paths if not path.is_symlink()]
        for path in paths:
            if _is_temporary(path):
                self.add(path, _TEMPORARY_FILE, [path])
        return [path for path in paths if path.name not in known and not _is_temporary(path)]

    def sort_unlisted(self, stage: Path, name: str | None) -> None:
        """Sort a stage that the study does not list: what its record lists is ours; without one all is."""
        artefacts = _artefacts(stage)
        files, others = _contents(stage)
        foreign = [one for one in files if not _is_ours(one, stage, artefacts)]
        files, others = [one for one in files if one not in foreign], [*others, *foreign]
        what = "unfinished attempt" if artefacts is None else "stage that the study does not list"
        self.add(stage, _named(what, name), files, others)

    def sort_listed(self, stage: Path, listed: ListedStage) -> None:
        """Sort what a stage of the study does not need in its folder."""
        artefacts = _artefacts(stage)
        files, others = _contents(stage)
        if artefacts is None and not listed.is_continued:  # the next run throws it away
            self.add(stage, _named("unfinished attempt", listed.name), files, others)
            return
        self.foreign += others
        for one in files:
            if one.parent == stage and _is_temporary(one):
                self.add(one, _TEMPORARY_FILE, [one])
            elif artefacts is None:  # what it goes on with
                continue
            elif one.relative_to(stage).parts[0] in _OF_TRAINING:
                self.add(one, "what an interrupted training left", [one])
            elif one.relative_to(stage).parts[0] == FORMER:
                self.add(one, "what was made again since", [one])
            elif artefacts.get(one.relative_to(stage).as_posix()):
                self.add(one, "artefact that `keep` discards", [one])
            elif not _is_ours(one, stage, artefacts):
                self.foreign.append(one)

    def sort_work(self, folder: Path, plan: RunPlan) -> None:
        """Sort what owners of stages have made so far; nothing of one at work, or that the next goes on with."""
        for path in self.unknown(folder / "work"):
            name = _stage_of(path)
            if name is None or name == path.name:
                self.foreign.append(path)
                continue
            if owner_of(folder / "claims" / name) is not None:
                continue
            listed = plan.stages.get(name)
            is_wanted = listed is not None and _artefacts(folder / "stages" / name) is None
            if is_wanted and path == unfinished(folder, name):
                assert listed is not None
                if listed.is_continued or (path / RECORD).is_file():  # a finished one is only to be published
                    continue
            label = listed.name if listed is not None else plan.former.get(name)
            files, others = _contents(path)
            foreign = [one for one in files if not _is_ours(one, path, None)]
            files, others = [one for one in files if one not in foreign], [*others, *foreign]
            self.add(path, _named("unfinished attempt", label), files, others)

    def sort_claims_and_logs(self, folder: Path, plan: RunPlan) -> None:
        """Sort claims and logs: of stages that the study does not list they go with the stage."""
        for place, pattern, what in ((folder / "claims", _CLAIM, "claim"), (folder / "logs", _LOG, "log")):
            for path in self.unknown(place):
                files, others = _contents(path)
                ours = [one for one in files if one.parent == path and pattern.fullmatch(one.name)]
                parts = [one for one in files if one.parent == path and _is_temporary(one)]
                self.foreign += [*others, *(one for one in files if one not in ours and one not in parts)]
                is_of_stage = FOLDER_NAME.fullmatch(path.name) is not None and path.is_dir()
                is_idle = owner_of(folder / "claims" / path.name) is None
                if is_of_stage and is_idle and ours and path.name not in plan.stages:
                    self.add(path, f"{what} of a stage that the study does not list", [*ours, *parts])
                elif is_idle or path.name == RUN:  # which whoever looks holds
                    for one in parts:
                        self.add(one, _TEMPORARY_FILE, [one])


def remove(folder: Path, found: Leftover) -> None:
    """Remove a leftover of a run folder: its files, a stage's record first, and the folders that are empty then."""
    for path in sorted(found.files, key=lambda one: one.name != RECORD):
        path.unlink(missing_ok=True)
    for place, _, _ in os.walk(folder / found.path, topdown=False):
        with suppress(OSError):  # it holds what is not ours
            Path(place).rmdir()


def size_text(count: int) -> str:
    """Return a number of bytes in a unit that suits it."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def _read_plan(folder: Path) -> RunPlan:
    kept = read_kept(folder / PLAN)
    found = from_json(RunPlan, {"order": [], **kept} if isinstance(kept, dict) else kept)
    if not all(FOLDER_NAME.fullmatch(name) for name in (*found.stages, *found.former, *found.order)):
        raise ValueError("a name that is no stage's")  # it would be a path, and stand on a terminal
    return replace(
        found, former={name: label for name, label in found.former.items() if name not in found.stages}
    )


def _stage_of(path: Path) -> str | None:
    """Return the stage that a folder is, or is an owner's work at; a link is none, wherever it leads."""
    if path.is_symlink() or not path.is_dir():
        return None
    own = _WORK.fullmatch(path.name)
    return own[1] if own else path.name if FOLDER_NAME.fullmatch(path.name) else None


def _paths_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []


def _contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the regular files in a folder, at any depth, and what else there is but folders; no link is followed.

    Of a file it is the file itself.
    """
    if folder.is_file():
        return [folder], []
    files: list[Path] = []
    others: list[Path] = []
    for place, folders, names in os.walk(folder):
        for path in (Path(place) / name for name in sorted([*folders, *names])):
            mode = path.lstat().st_mode
            if S_ISREG(mode):
                files.append(path)
            elif not S_ISDIR(mode):
                others.append(path)
    return files, others


def _artefacts(stage: Path) -> dict[str, bool] | None:
    """Return the artefacts that a stage's record lists, each with whether it is discarded; None: it has no record."""
    try:
        return {name: one.discarded for name, one in read_record(stage).artefacts.items()}
    except OtherFormatError:
        return {}  # what it holds is not known to this version
    except (OSError, DamagedRecordError):
        return None


def _is_ours(path: Path, stage: Path, artefacts: Mapping[str, bool] | None) -> bool:
    """Return whether a file in a stage's folder is one that lingraft writes there; `artefacts` are of its record."""
    inside = path.relative_to(stage)
    if (path.parent == stage and _is_temporary(path)) or inside.parts[0] == FORMER:
        return True
    if artefacts is None:  # what was written is not listed yet
        return not any(map(is_foreign, inside.parts))
    return inside.as_posix() in (RECORD, "timing.json", *artefacts) or inside.parts[0] in (
        *_OF_TRAINING,
        "trackers",
    )


def _is_temporary(path: Path) -> bool:
    return _TEMPORARY.fullmatch(path.name) is not None and path.is_file()


def _named(what: str, name: str | None) -> str:
    return what if name is None else f"{what}: {name}"
