"""What lies in a run folder that nothing refers to: stages that its study does not list (any more), and leftovers.

    runs/<name>/plan.json    the stages of the study as it was last run, and names of those that earlier ones had

The plan is kept because it cannot be known from the folder alone: data may have moved, and another version of a
library gives other fingerprints. Nothing outside of the folder is looked at, and no symbolic link is followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Literal

from lingraft.errors import ConfigError
from lingraft.records import from_json, read_json, to_json, write_json_atomically
from lingraft.stage import RECORD

PLAN = "plan.json"
_STAGE = re.compile(r"([a-z_]+)-[0-9a-f]{16}")
_TEMPORARY = re.compile(
    r"\.[\w-]+\.(json|jsonl|yaml|html)\.[a-z0-9_]{8}"
)  # of an atomic write that was killed
_OWN_FILES = frozenset({"study.yaml", "result.json", PLAN, ".lock"})
_OF_TRAINING = ("trainer", "task.json")  # what training leaves where it is killed
_TRACKERS = "trackers"
_KEPT_IN_CACHE = re.compile(r"verdicts\.jsonl|(manifest|contamination)-[0-9a-f]{16}\.json|.*\.lock")
_ANSWERS = re.compile(r"answers-[0-9a-f]{16}\.jsonl|replay-[0-9a-f]{16}")


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
    """

    name: str
    is_continued: bool


@dataclass(frozen=True)
class RunPlan:
    """What `plan.json` holds.

    Attributes:
        stages: Those of the study as it was last run, by the name of their folder.
        former: By folder, the names of others that are there from earlier ones.
        format: Version of this file.
    """

    stages: dict[str, ListedStage]
    former: dict[str, str]
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


def write_plan(folder: Path, stages: Mapping[str, ListedStage]) -> None:
    """Write the plan of a run folder; names of stages that are not in it any more stay known while they are there."""
    before = {}
    with suppress(FileNotFoundError, ValueError):  # a damaged one: names are lost, and nothing else
        found = _read_plan(folder)
        before = found.former | {name: one.name for name, one in found.stages.items()}
    former = {
        name: label
        for name, label in before.items()
        if name not in stages and _STAGE.fullmatch(name) and (folder / "stages" / name).is_dir()
    }
    write_json_atomically(folder / PLAN, to_json(RunPlan(dict(stages), former)))


def unused_stages(folder: Path) -> tuple[UnusedStage, ...]:
    """Return the stages in a run folder that its plan does not have, in the order of their folders' names.

    Raises:
        ConfigError: The folder has no plan.
    """
    plan = read_plan(folder)
    return tuple(
        UnusedStage(
            name=plan.former.get(own.name),
            kind=own.name.partition("-")[0],
            path=f"stages/{own.name}",
            bytes=sum(one.lstat().st_size for one in _contents(own)[0]),
            is_finished=_artefacts(own) is not None,
        )
        for own in _stage_folders(folder)
        if own.name not in plan.stages
    )


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
    """Return what lies in a run folder besides what its study uses; its lock must be held.

    What the study goes on with is not in it: checkpoints of an interrupted training, answers of an interrupted
    evaluation, verdicts that were paid for.

    Raises:
        ConfigError: The folder is no run's, or has no plan.
    """
    plan = read_plan(folder)
    removable: list[Leftover] = []
    foreign: list[Path] = []

    def add(path: Path, what: str, files: list[Path]) -> None:
        removable.append(
            Leftover(
                path.relative_to(folder).as_posix(),
                what,
                sum(one.lstat().st_size for one in files),
                tuple(files),
            )
        )

    def sort(place: Path, known: frozenset[str]) -> Iterator[Path]:
        """Yield what is in a folder of ours but for the known names, temporary files and what is foreign."""
        for path in sorted(place.iterdir()) if place.is_dir() and not place.is_symlink() else ():
            if path.is_symlink():
                foreign.append(path)
            elif _is_temporary(path):
                add(path, "temporary file of a run that was killed", [path])
            elif path.name not in known:
                yield path

    foreign += sort(folder, _OWN_FILES | {"stages", "cache", "report"})
    foreign += sort(folder / "report", frozenset({"index.html"}))
    folders = set(_stage_folders(folder))
    foreign += (path for path in sort(folder / "stages", frozenset()) if path not in folders)
    is_finished = all(_artefacts(folder / "stages" / name) is not None for name in plan.stages)
    for own in sorted(folders):
        listed, artefacts = plan.stages.get(own.name), _artefacts(own)
        files, others = _contents(own)
        foreign += others
        temporary = [one for one in files if one.parent == own and _is_temporary(one)]
        if artefacts is None:
            if listed is None or not listed.is_continued:
                name = plan.former.get(own.name) if listed is None else listed.name
                add(own, _named("unfinished attempt", name), files)
            else:
                for one in temporary:
                    add(one, "temporary file of a run that was killed", [one])
            continue
        ours = {own / name for name in (RECORD, "timing.json", *artefacts)}
        of_training = [one for one in files if one.relative_to(own).parts[0] in _OF_TRAINING]
        tracked = [one for one in files if one.relative_to(own).parts[0] == _TRACKERS]
        foreign += sorted(set(files) - ours - {*temporary, *of_training, *tracked})
        if listed is None:
            known = [one for one in files if one in ours or one in (*temporary, *of_training, *tracked)]
            add(own, _named("stage that the study does not list", plan.former.get(own.name)), known)
            continue
        for what, some in (
            ("temporary file of a run that was killed", temporary),
            ("what an interrupted training left", of_training),
            ("artefact that `keep` discards", [own / name for name, gone in artefacts.items() if gone]),
        ):
            for one in some:
                if one in files:
                    add(one, what, [one])
    for path in sort(folder / "cache", frozenset()):
        if path.name == "encoded" and path.is_dir():
            files, others = _contents(path)
            foreign += others
            add(path, "encoded rows, which are made again", files)
        elif _ANSWERS.fullmatch(path.name):
            if is_finished:
                files, others = ([path], []) if path.is_file() else _contents(path)
                foreign += others
                add(path, "answers that no stage waits for", files)
        elif not _KEPT_IN_CACHE.fullmatch(path.name):
            foreign.append(path)
    shown = tuple(sorted({path.relative_to(folder).as_posix() for path in foreign}))
    return Leftovers(tuple(removable), shown)


def remove(folder: Path, found: Leftover) -> None:
    """Remove a leftover of a run folder: its files, a stage's record first, and the folders that are empty then."""
    for path in sorted(found.files, key=lambda one: one.name != RECORD):
        path.unlink(missing_ok=True)
    for place, _, _ in os.walk(folder / found.path, topdown=False):
        with suppress(OSError):  # it holds what is not ours
            Path(place).rmdir()


def _read_plan(folder: Path) -> RunPlan:
    found = from_json(RunPlan, read_json(folder / PLAN))
    return replace(
        found, former={name: label for name, label in found.former.items() if name not in found.stages}
    )


def _stage_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders of stages; a link is none, wherever it leads."""
    stages = folder / "stages"
    for path in sorted(stages.iterdir()) if stages.is_dir() and not stages.is_symlink() else ():
        if path.is_dir() and not path.is_symlink() and _STAGE.fullmatch(path.name):
            yield path


def _contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the regular files in a folder, at any depth, and what else there is but folders; no link is followed."""
    files, others = [], []
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
        return {
            str(name): bool(one["discarded"]) for name, one in read_json(stage / RECORD)["artefacts"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_temporary(path: Path) -> bool:
    return _TEMPORARY.fullmatch(path.name) is not None and path.is_file()


def _named(what: str, name: str | None) -> str:
    return what if name is None else f"{what}: {name}"
