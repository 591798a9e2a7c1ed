"""The run folder: stages with fingerprints, each complete exactly when its record and artefacts exist.

    runs/<name>/study.yaml
    runs/<name>/stages/<kind>-<fingerprint>/record.json     written last, atomically
                                           /timing.json     times and machine; never compared
                                           /...             artefacts, listed in the record with size and hash
    runs/<name>/cache/                                      what several stages share; may be thrown away

A folder without a record is unfinished work: it is continued where its stage can resume, else thrown away.
"""

from __future__ import annotations

import gc
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from lingraft.errors import ConfigError, LingraftError
from lingraft.records import hash_file, read_json, write_json_atomically
from lingraft.stage import RECORD, FinishedStage, StageSpec, Work

FORMAT = 2
"""Of record.json; files of earlier versions have none. Another meaning or name of a field raises it."""
TIMING = "timing.json"
_UNLISTED = (RECORD, TIMING, "trackers")  # trackers write times, which two equal runs do not share


@dataclass(frozen=True, slots=True)
class Artefact:
    """A file that a stage left, as its record lists it.

    Attributes:
        bytes: Its size.
        sha256: Its hash.
        discarded: Whether `keep` deleted it.
    """

    bytes: int
    sha256: str
    discarded: bool = False


class Store:
    """The stages of one run folder; holds a lock on it while open, and only reads it otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stages = folder / "stages"
        self.cache = folder / "cache"
        self._lock = FileLock(folder / ".lock")
        self._done: dict[str, FinishedStage] = {}
        self._failed: dict[str, Exception] = {}

    def __enter__(self) -> Store:
        self.stages.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise LingraftError(
                f"{self.folder}: another lingraft is at work in this folder; wait for it, or name another folder."
            ) from None
        try:
            self._check_formats()
        except ConfigError:
            self._lock.release()
            raise
        return self

    def _check_formats(self) -> None:
        """Refuse the stages of another version, before any other is computed."""
        for path in sorted(self.stages.glob(f"*/{RECORD}")):
            try:
                found = read_json(path).get("format")
            except ValueError:  # torn: the stage is not finished
                continue
            if found != FORMAT:
                raise ConfigError(
                    f"{self.folder}: holds stages of another version of lingraft (such as {path.parent.name}); run "
                    "anew in another folder, or delete this one first."
                )

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def find(self, stage: StageSpec, *, with_artefacts: bool = False) -> FinishedStage | None:
        """Return the stage finished, or None.

        Args:
            stage: The stage.
            with_artefacts: Also ask for artefacts that `keep` may have discarded.
        """
        found = self._done.get(stage.fingerprint)
        if found is None:
            found = _read_stage(stage, self.folder_of(stage))
            if found is None:
                return None
            self._done[stage.fingerprint] = found
        if with_artefacts and any(one.discarded for one in _artefacts(found.folder).values()):
            return None
        return found

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
        folder = self.folder_of(stage)
        found = self.find(stage, with_artefacts=with_artefacts)
        if found is not None:
            if self.find(stage, with_artefacts=True) is not None:
                _clear_scratch(stage, folder)  # killed before the record was written, it is of no use now
            return found
        discarded = self.find(stage)  # its record stays until the artefacts are whole again
        before = {} if discarded is None else _artefacts(folder)
        if discarded is None:
            (folder / RECORD).unlink(missing_ok=True)
        if folder.exists() and not stage.resumable:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            done = _finish(stage, folder, work, before)
        except Exception as error:
            _release(error)
            self._failed[stage.fingerprint] = error
            raise
        self._done[stage.fingerprint] = done
        return done

    def reopen(self, stage: StageSpec) -> None:
        """Let a finished stage be made again, from what it left in its folder and in the cache."""
        (self.folder_of(stage) / RECORD).unlink(missing_ok=True)
        self._done.pop(stage.fingerprint, None)

    def discard(self, stage: StageSpec) -> None:
        """Delete a finished stage's artefacts but keep its record, which says that they were discarded."""
        folder = self.folder_of(stage)
        artefacts = _artefacts(folder)
        if not all(one.discarded for one in artefacts.values()):
            gone = {name: asdict(replace(one, discarded=True)) for name, one in artefacts.items()}
            write_json_atomically(folder / RECORD, read_json(folder / RECORD) | {"artefacts": gone})
        for name in artefacts:
            (folder / name).unlink(missing_ok=True)

    def folder_of(self, stage: StageSpec) -> Path:
        """Return the folder of a stage."""
        return self.stages / f"{stage.kind}-{stage.fingerprint}"


def _finish(
    stage: StageSpec, folder: Path, work: Callable[[Path], Work], before: Mapping[str, Artefact]
) -> FinishedStage:
    """Do the work and write the record; `before` are the artefacts of the discarded one that is made again."""
    started = time.monotonic()
    done = work(folder)
    artefacts = {
        str(path.relative_to(folder)): Artefact(path.stat().st_size, hash_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in (*_UNLISTED, stage.scratch)
    }
    timing = {"seconds": time.monotonic() - started, **done.timing}
    changed = [
        name for name in before if name not in artefacts or artefacts[name].sha256 != before[name].sha256
    ]
    if changed:  # on other threads, another device or another number of processes
        timing["remade_otherwise"] = changed
    write_json_atomically(folder / TIMING, timing)
    record = {
        "format": FORMAT,
        "stage": stage.kind,
        "fingerprint": stage.fingerprint,
        "inputs": stage.inputs,
        "result": done.result,
        "artefacts": {name: asdict(one) for name, one in artefacts.items()},
    }
    write_json_atomically(folder / RECORD, record)
    _clear_scratch(stage, folder)
    return FinishedStage(stage.kind, stage.fingerprint, folder, done.result, timing, reused=False)


def _clear_scratch(stage: StageSpec, folder: Path) -> None:
    if stage.scratch is not None:
        shutil.rmtree(folder / stage.scratch, ignore_errors=True)


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


def _artefacts(folder: Path) -> dict[str, Artefact]:
    return {name: Artefact(**one) for name, one in read_json(folder / RECORD)["artefacts"].items()}


def _read_stage(stage: StageSpec, folder: Path) -> FinishedStage | None:
    """Return the stage in `folder` if its record is there and every kept artefact has its size and hash."""
    try:
        record = read_json(folder / RECORD)
        timing = read_json(folder / TIMING)
    except (FileNotFoundError, ValueError):
        return None
    if record.get("format") != FORMAT:
        return None
    for name, one in _artefacts(folder).items():
        path = folder / name
        if not one.discarded and not (
            path.is_file() and path.stat().st_size == one.bytes and hash_file(path) == one.sha256
        ):
            return None
    return FinishedStage(stage.kind, stage.fingerprint, folder, record["result"], timing, reused=True)
