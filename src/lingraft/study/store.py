"""The run folder: stages with fingerprints, each complete exactly when its record and artefacts exist.

    runs/<name>/study.yaml
    runs/<name>/stages/<kind>-<fingerprint>/record.json     written last, atomically
                                           /timing.json     times and machine; never compared
                                           /...             artefacts, listed in the record with size and hash
    runs/<name>/cache/                                      what several stages share; may be thrown away

A folder without a record is unfinished work: what its stage may continue from stays, all else is thrown away. A run
folder may come from elsewhere, or from a disk that failed: what of it does not fit is made again, with a word.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lingraft.errors import ConfigError, LingraftError, as_disk_error
from lingraft.records import (
    Stamp,
    path_inside,
    read_json,
    remove,
    remove_temporaries,
    stamps_of,
    write_json_atomically,
)
from lingraft.stage import FinishedStage, StageSpec, Work
from lingraft.stage_record import (
    RECORD,
    Artefact,
    DamagedRecordError,
    OtherFormatError,
    StageRecord,
    artefact_of,
    files_made,
    read_record,
    stamps_of_whole,
)

TIMING = "timing.json"
_UNLISTED = (RECORD, TIMING, "trackers")  # trackers write times, which two equal runs do not share


class Store:
    """The stages of one run folder; holds a lock on it while open, and only reads it otherwise.

    Attributes:
        folder: The run folder.
        stages: Of it, the folder of the stages.
        cache: Of it, what may be thrown away.
        noted: Called with a sentence for each stage that is made again because what lies there does not fit.
    """

    def __init__(self, folder: Path, noted: Callable[[str], None] = lambda _: None) -> None:
        self.folder = folder
        self.stages = folder / "stages"
        self.cache = folder / "cache"
        self.noted = noted
        self._lock = FileLock(folder / ".lock")
        self._done: dict[str, _Whole] = {}
        self._failed: dict[str, Exception] = {}
        self._noted: set[str] = set()

    def __enter__(self) -> Store:
        with as_disk_error(self.folder):
            self._check_places()
            self.stages.mkdir(parents=True, exist_ok=True)
            self._acquire()
            try:
                self._check_formats()
                for path in self.cache.rglob("*"):
                    if path.is_symlink():  # nothing of ours, and it may lead anywhere
                        path.unlink()
                for folder in (self.folder, self.cache, *self.stages.glob("*/")):
                    if not folder.is_symlink():
                        remove_temporaries(folder)
            except BaseException:
                self._lock.release()
                raise
        return self

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock, and leave all else in the folder as it is."""
        with as_disk_error(self.folder):
            self._check_places()
            self._acquire()
            try:
                yield
            finally:
                self._lock.release()

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise LingraftError(
                f"{self.folder}: another lingraft is at work in this folder; wait for it, or name another folder."
            ) from None

    def _check_places(self) -> None:
        """Refuse a run folder whose own folders lie elsewhere, or are none."""
        for path in (self.stages, self.cache, self.folder / "report", self.folder / ".lock"):
            if path.is_symlink():
                raise ConfigError(
                    f"{path}: is a link. What a run folder holds lies inside of it: remove the link (the run folder "
                    "itself may be one), or name another folder."
                )
            if path.exists() and path.is_dir() == (path.name == ".lock"):
                raise ConfigError(
                    f"{path}: is in the way, as a {'folder' if path.is_dir() else 'file'}; remove it, or name another "
                    "folder."
                )

    def _check_formats(self) -> None:
        """Refuse the stages of another version, before any other is computed."""
        for path in sorted(self.stages.glob(f"*/{RECORD}")):
            try:
                read_record(path.parent)
            except OtherFormatError:
                raise ConfigError(
                    f"{self.folder}: holds stages of another version of lingraft (such as {path.parent.name}); run "
                    "anew in another folder, or delete this one first."
                ) from None
            except DamagedRecordError:  # the stage is made again
                continue

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def find(self, stage: StageSpec, *, with_artefacts: bool = False) -> FinishedStage | None:
        """Return the stage finished, or None.

        Args:
            stage: The stage.
            with_artefacts: Also ask for artefacts that `keep` may have discarded.
        """
        whole = self._whole(stage)
        return None if whole is None or (with_artefacts and whole.record.has_discarded) else whole.stage

    def run(
        self, stage: StageSpec, work: Callable[[Path], Work], *, with_artefacts: bool = False
    ) -> FinishedStage:
        """Return the stage finished, doing `work` in its folder if it is not finished yet.

        A stage that failed once in this process fails again at once, with the same error.

        Args:
            stage: The stage.
            work: Writes artefacts into the folder that it is given and returns the result.
            with_artefacts: Discarded artefacts are made again.
        """
        if stage.fingerprint in self._failed:
            raise self._failed[stage.fingerprint]
        found = self.find(stage, with_artefacts=with_artefacts)
        folder = self.folder_of(stage)
        if found is not None:
            _remove_from(folder, stage.continues)  # of a run that was killed right after the record
            return found
        discarded = self._whole(stage)  # its record stays until the artefacts are whole again
        before = {} if discarded is None else discarded.record.artefacts
        kept = {*stage.continues, *((RECORD, TIMING) if discarded is not None else ())}
        if folder.is_symlink() or not folder.is_dir():
            remove(folder)
            folder.mkdir(parents=True)
        _remove_from(folder, [path.name for path in folder.iterdir() if path.name not in kept])
        try:
            done = _finish(stage, folder, work, before)
        except Exception as error:
            _release(error)
            self._failed[stage.fingerprint] = error
            raise
        self._done[stage.fingerprint] = _whole_of(done, read_record(folder), stamps_of([folder / RECORD]))
        return done

    def forget_failure(self, stage: StageSpec) -> None:
        """Let a stage that failed be tried again."""
        self._failed.pop(stage.fingerprint, None)

    def reopen(self, stage: StageSpec) -> None:
        """Let a finished stage be made again, from what it left in its folder and in the cache."""
        (self.folder_of(stage) / RECORD).unlink(missing_ok=True)
        self._done.pop(stage.fingerprint, None)

    def discard(self, stage: StageSpec) -> None:
        """Delete a finished stage's artefacts but keep its record, which says that they were discarded."""
        folder, whole = self.folder_of(stage), self._whole(stage)
        if whole is None:  # damaged since: what it lists may not be the stage's
            return
        if whole.record != whole.record.discarded():
            whole.record.discarded().write(folder)
        for name in whole.record.artefacts:
            with suppress(ValueError):  # a link has come since: what it leads to is not ours
                path_inside(folder, name).unlink(missing_ok=True)

    def folder_of(self, stage: StageSpec) -> Path:
        """Return the folder of a stage."""
        return self.stages / stage.folder_name

    def _whole(self, stage: StageSpec) -> _Whole | None:
        """Return the stage as it was read, read again where a file of it changed since; None: it is not whole."""
        known = self._done.pop(stage.fingerprint, None)
        if known is None or known.stamps != _stamps(known.stage):
            known = self._read(stage)
        if known is not None:
            self._done[stage.fingerprint] = known
        return known

    def _read(self, stage: StageSpec) -> _Whole | None:
        """Return the stage where its record is there and every kept artefact has its size and hash."""
        folder = self.folder_of(stage)
        before = stamps_of([folder / RECORD])
        try:
            if self.stages.is_symlink():
                raise DamagedRecordError("the folder of the stages is a link")
            record = read_record(folder)
            if record.fingerprint != stage.fingerprint:
                raise DamagedRecordError("it is of another stage")
            stamps = stamps_of_whole(folder, record)
        except FileNotFoundError:
            return None
        except DamagedRecordError as problem:
            self._note(stage, f"{folder / RECORD}: {problem}; the stage is made again.")
            return None
        artefacts = {name: one.sha256 for name, one in record.artefacts.items() if name in stamps}
        timing = self._timing(stage)
        found = FinishedStage(
            record.stage, record.fingerprint, folder, record.result, timing, True, artefacts, stamps
        )
        return _whole_of(found, record, before)

    def _timing(self, stage: StageSpec) -> dict[str, Any]:
        """Return what timing.json holds; nothing where it is damaged, as no result depends on it."""
        path = self.folder_of(stage) / TIMING
        try:
            found = None if path.is_symlink() else read_json(path)
        except (FileNotFoundError, IsADirectoryError, ValueError):
            found = None
        if isinstance(found, dict) and isinstance(found.get("seconds"), int | float):
            return found
        self._note(stage, f"{path}: is missing or damaged; the times of this stage are shown as 0.")
        return {}

    def _note(self, stage: StageSpec, sentence: str) -> None:
        if stage.fingerprint not in self._noted:  # asked for again and again while a plan runs
            self._noted.add(stage.fingerprint)
            self.noted(sentence)


@dataclass(frozen=True)
class _Whole:
    """A finished stage as it was read: the record, and the stamps of it and of the files that it lists as kept."""

    stage: FinishedStage
    record: StageRecord
    stamps: Mapping[Path, Stamp | None]


def _whole_of(found: FinishedStage, record: StageRecord, stamps: Mapping[Path, Stamp | None]) -> _Whole:
    """Return a stage with the stamps that its record and files had when they were read."""
    return _Whole(
        found, record, {**stamps, **{found.folder / name: one for name, one in found.stamps.items()}}
    )


def _stamps(found: FinishedStage) -> dict[Path, Stamp | None]:
    return stamps_of(found.folder / name for name in (RECORD, *found.stamps))


def _remove_from(folder: Path, names: Collection[str]) -> None:
    for name in names:
        remove(folder / name)


def _finish(
    stage: StageSpec, folder: Path, work: Callable[[Path], Work], before: Mapping[str, Artefact]
) -> FinishedStage:
    """Do the work and write the record; `before` are the artefacts of the discarded one that is made again."""
    started = time.monotonic()
    done = work(folder)
    made = dict(files_made(folder, frozenset({*_UNLISTED, *stage.continues})))
    found = stamps_of(made.values())
    artefacts = {name: artefact_of(path) for name, path in made.items()}
    timing = {"seconds": time.monotonic() - started, **done.timing}
    changed = [
        name for name in before if name not in artefacts or artefacts[name].sha256 != before[name].sha256
    ]
    if changed:  # on other threads, another device or another number of processes
        timing["remade_otherwise"] = changed
    write_json_atomically(folder / TIMING, timing)
    StageRecord(stage.kind, dict(stage.inputs), done.result, artefacts).write(folder)
    _remove_from(folder, stage.continues)  # now that what they were for is kept
    return FinishedStage(
        stage.kind,
        stage.fingerprint,
        folder,
        done.result,
        timing,
        reused=False,
        artefacts={name: one.sha256 for name, one in artefacts.items()},
        stamps={name: stamp for name, path in made.items() if (stamp := found[path]) is not None},
    )


def _release(error: BaseException) -> None:
    """Let go of what a failed stage's frames hold, such as a model; the error is kept, and its stack readable."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            pending += [one.__cause__, one.__context__]
    gc.collect()
