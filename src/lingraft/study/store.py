"""The run folder: stages with fingerprints, each complete exactly when its record and artefacts exist.

    runs/<name>/
        study.yaml
        stages/<kind>-<fingerprint>/record.json     a finished stage; the folder appears whole, by one rename
                                   /timing.json     times and machine; never compared
                                   /...             artefacts, listed in the record with size and hash
        work/<kind>-<fingerprint>.<n>/              what the n-th owner of a stage has made so far
        claims/<thing>/<n>                          who may make a stage, and who runs the study (`run`)
        failures.jsonl                              attempts that failed
        cache/                                      what several stages share; may be thrown away

Many processes, on many machines, may make stages in one run folder. Who makes a stage claims it (`claims`) and works in
a folder of its own. The next owner, after one that died or gave no sign of life, renames that folder before it goes on:
what its stage may continue from stays, all else is thrown away, and the former owner, should it go on after all, has
nothing left to publish. A run folder may come from elsewhere, or from a disk that failed: what of it does not fit is
made again, with a word.
"""

from __future__ import annotations

import errno
import gc
import re
import secrets
import shutil
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lingraft import stopping
from lingraft.claims import (
    CLAIMS,
    SECONDS_UNTIL_LOST,
    Claim,
    claim,
    claim_when_free,
    note_if_owned,
    note_if_unseen,
    owner_of,
)
from lingraft.errors import (
    ClaimedError,
    ClaimLostError,
    ConfigError,
    DiskError,
    LingraftError,
    as_disk_error,
    disk_error,
)
from lingraft.records import (
    Stamp,
    canonical_json,
    flush,
    keep_hash,
    look_anew,
    path_inside,
    read_json,
    remove,
    remove_temporaries,
    stamps_of,
    write_json_atomically,
)
from lingraft.stage import FOLDER_NAME, FinishedStage, StageSpec, Work
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
RUN = "run"  # the claim of whoever runs the study, among those of the stages
FORMER = ".former"  # in a folder that is published: the one whose place it takes
_WORK = re.compile(rf"({FOLDER_NAME.pattern})\.([1-9][0-9]{{0,17}})")
_SECONDS_BETWEEN_LOOKS = 0.2
_MOST_SECONDS = 1e10  # three centuries: no stage took longer, and sums of them are finite
_UNLISTED = (RECORD, TIMING, "trackers")  # trackers write times, which two equal runs do not share


class Store:
    """The stages of one run folder; holds the claim of the run while open, and only reads the folder otherwise.

    Attributes:
        folder: The run folder.
        stages: Of it, the folder of the finished stages.
        work: Of it, the folder of those that are being made.
        claims: Of it, the folder of the claims.
        cache: Of it, what may be thrown away.
        noted: Called with a sentence for each stage that is made again because what lies there does not fit, or that
            another process makes.
    """

    def __init__(self, folder: Path, noted: Callable[[str], None] = lambda _: None) -> None:
        self.folder = folder
        self.stages = folder / "stages"
        self.work = folder / "work"
        self.claims = folder / CLAIMS
        self.cache = folder / "cache"
        self.noted = noted
        self._is_shared = False
        self._run: Claim | None = None
        self._done: dict[str, _Whole] = {}
        self._failed: dict[str, Exception] = {}
        self._noted: set[str] = set()

    @classmethod
    def shared(cls, folder: Path, noted: Callable[[str], None] = lambda _: None) -> Store:
        """Return the store of a run folder that another process holds: stages are made in it, and nothing tidied up."""
        store = cls(folder, noted)
        store._is_shared = True
        return store

    def __enter__(self) -> Store:
        with as_disk_error(self.folder):
            self._check_places()
            for place in (self.stages, self.work, self.claims):
                place.mkdir(parents=True, exist_ok=True)
            if self._is_shared:
                look_anew(self.stages)  # what the stages read was published by other machines just now
                return self
            self._run = self._claim_run()
            try:
                self._check_renames()
                half_discarded = self._check_formats()
                self._repair()
                self._tidy(half_discarded)
            except BaseException:
                self._run.release()
                raise
        return self

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the claim of the run, and leave all else in the folder as it is."""
        with as_disk_error(self.folder):
            self._check_places()
            with self._claim_run():
                yield

    def check_held(self) -> None:
        """Return where this store still holds the run; does nothing where it never did.

        Raises:
            ClaimLostError: Another lingraft has taken it over.
        """
        if self._run is not None:
            try:
                self._run.check()
            except ClaimLostError as lost:
                raise ClaimLostError(
                    f"{lost} Run the same command again: it goes on with what is finished, or says who is at work."
                ) from None

    def _claim_run(self) -> Claim:
        try:
            note_if_unseen(self.claims / RUN, str(self.folder), self.noted)
            return claim(self.claims / RUN)
        except ClaimedError as error:
            raise ClaimedError(
                f"{self.folder}: another lingraft is at work in this folder: {error.owner or 'a process'}; wait for "
                "it, or name another folder.",
                error.owner,
            ) from None
        except OSError as error:
            if disk_error(error, self.folder) is not None:
                raise
            raise ConfigError(
                f"{self.folder}: no file can be made here in the way that lets one of many processes make it "
                f"({error.strerror or error}); name a folder on another file system."
            ) from None

    def _check_places(self) -> None:
        """Refuse a run folder whose own folders lie elsewhere, or are none."""
        report, logs = self.folder / "report", self.folder / "logs"
        for path in (self.stages, self.work, self.claims, self.cache, report, logs):
            if path.is_symlink():
                raise ConfigError(
                    f"{path}: is a link. What a run folder holds lies inside of it: remove the link (the run folder "
                    "itself may be one), or name another folder."
                )
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{path}: is in the way, as a file; remove it, or name another folder.")

    def _check_renames(self) -> None:
        """Refuse a run folder in which nothing could be published, before any stage is made."""
        name = f".{secrets.token_hex(8)}.part"
        own, target = self.work / name, self.stages / name
        own.mkdir()
        try:
            own.rename(target)
        except OSError as error:
            if error.errno != errno.EPERM and disk_error(error, self.folder) is not None:
                raise
            raise ConfigError(
                f"{self.folder}: a folder cannot be renamed from work/ into stages/ ({error.strerror or error}), by "
                "which finished stages are kept; both must lie on one disk that renames folders. Name another folder."
            ) from None
        finally:
            for path in (own, target):
                remove(path)

    def _repair(self) -> None:
        """Put back what a process that was killed had moved aside to publish a stage anew."""
        for place in sorted(self.work.glob(f"*/{FORMER}")):
            found = _WORK.fullmatch(place.parent.name)
            if found is None or place.is_symlink() or place.parent.is_symlink():
                continue
            with suppress(ClaimedError), claim(self.claims / found[1]):  # else its owner is publishing it
                _put_back(place.parent, self.stages / found[1])

    def _tidy(self, half_discarded: Iterable[Path]) -> None:
        """Remove what killed processes left, where no other one makes a stage here."""
        owners = (owner_of(path) for path in self.claims.iterdir() if path.name != RUN)
        if any(owner is not None for owner in owners):
            return
        for path in self.cache.rglob("*"):
            if path.is_symlink():  # nothing of ours, and it may lead anywhere
                path.unlink()
        for folder in half_discarded:
            for path in _discarded(folder, read_record(folder)):
                path.unlink(missing_ok=True)
        for folder in (self.folder, self.cache, self.stages, self.work, *self.stages.glob("*/")):
            if not folder.is_symlink():
                remove_temporaries(folder)
                if folder.parent == self.stages:
                    remove(folder / FORMER)

    def _check_formats(self) -> list[Path]:
        """Refuse the stages of another version, before any other is computed.

        Returns:
            The folders of those that hold files which their records call discarded: a process was killed over it.
        """
        half_discarded = []
        for path in sorted(self.stages.glob(f"*/{RECORD}")):
            try:
                if any(_discarded(path.parent, read_record(path.parent))):
                    half_discarded.append(path.parent)
            except OtherFormatError:
                raise ConfigError(
                    f"{self.folder}: holds stages of another version of lingraft (such as {path.parent.name}); run "
                    "anew in another folder, or delete this one first."
                ) from None
            except DamagedRecordError:  # the stage is made again
                continue
        return half_discarded

    def __exit__(self, *_: object) -> None:
        if self._run is not None:
            self._run.release()
            self._run = None

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
        """Return the stage finished, doing `work` in a folder of its own if it is not finished yet.

        Where another process makes the stage, that one is waited for, and its result returned. A stage that failed once
        in this process fails again at once, with the same error.

        Args:
            stage: The stage.
            work: Writes artefacts into the folder that it is given and returns the result.
            with_artefacts: Discarded artefacts are made again.
        """
        if stage.fingerprint in self._failed:
            raise self._failed[stage.fingerprint]
        lost_work: list[str] = []
        while True:
            found = self.find(stage, with_artefacts=with_artefacts)
            if found is not None:
                _remove_from(found.folder, stage.continues)  # of a run that was killed right after the record
                _remove_from(self.work, lost_work)
                return found
            claims, above = self.claims / stage.folder_name, max(self._left_by(stage), default=0)
            with claim_when_free(claims, stage.name, self.noted, above=above) as own:
                if self.find(stage, with_artefacts=with_artefacts) is not None:
                    continue  # another process was faster
                try:
                    done = self._make(stage, work, own, with_artefacts=with_artefacts)
                except Exception as error:
                    _release(error)
                    if (lost := _loss_of(own)) is not None:
                        self.noted(f"{stage.name}: {lost}")
                        # Its owner renamed it; the work that did not know has made a folder of this name again.
                        lost_work.append(f"{stage.folder_name}.{own.number}")
                        continue
                    self._failed[stage.fingerprint] = error
                    raise
            if done is not None:
                return done

    def note_if_owned(self, stage: StageSpec) -> None:
        """Note who makes a stage that is about to be given to another process, which waits until that one is done."""
        note_if_owned(self.claims / stage.folder_name, stage.name, self.noted)

    def take_over(self, stage: StageSpec) -> FinishedStage:
        """Return a stage that another process of this run has just published: sizes are checked, hashes believed.

        Raises:
            LingraftError: It is not there, or not whole.
        """
        self._done.pop(stage.fingerprint, None)
        self._failed.pop(stage.fingerprint, None)
        until = time.monotonic() + SECONDS_UNTIL_LOST  # longer than NFS keeps what it knows of a folder
        while (whole := self._read(stage, is_trusted=True)) is None and not self.folder_of(stage).exists():
            if time.monotonic() > until or stopping.requested() is not None:
                break
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        if whole is None:
            raise LingraftError(
                f"{self.folder_of(stage)}: is not there or not whole, though another process has finished it; if it "
                "runs on another machine, both must see the run folder at this place. Run the same command again."
            )
        self._done[stage.fingerprint] = _Whole(replace(whole.stage, reused=False), whole.record, whole.stamps)
        return self._done[stage.fingerprint].stage

    def _make(
        self, stage: StageSpec, work: Callable[[Path], Work], own: Claim, *, with_artefacts: bool
    ) -> FinishedStage | None:
        """Return the stage, made and published; None: it turned out to be there."""
        folder = self._take_up(stage, own)
        if self.find(stage, with_artefacts=with_artefacts) is not None:  # it was only put aside
            remove(folder)
            return None
        if _is_finished(stage, folder):  # by a process that was killed before it published it
            _remove_from(folder, stage.continues)
            self._publish(stage, folder, own, folder.stat().st_ino)
            return None
        _remove_from(folder, [path.name for path in folder.iterdir() if path.name not in stage.continues])
        discarded = self._whole(stage)  # its record stays until the artefacts are whole again
        before = {} if discarded is None else discarded.record.artefacts
        inode = folder.stat().st_ino
        done = _finish(stage, folder, work, before)
        record = read_record(folder, stage.folder_name)
        self._publish(stage, folder, own, inode)
        target = self.folder_of(stage)
        for name, stamp in done.stamps.items():
            keep_hash(target / name, stamp, done.artefacts[name])
        done = replace(done, folder=target)
        self._done[stage.fingerprint] = _whole_of(done, record, stamps_of([target / RECORD]))
        return done

    def _take_up(self, stage: StageSpec, own: Claim) -> Path:
        """Return the folder of this owner, which holds what an earlier one left.

        It is renamed, so that an earlier owner which goes on after all finds no folder of its own any more.
        """
        folder, target = self.work / f"{stage.folder_name}.{own.number}", self.folder_of(stage)
        self.work.mkdir(parents=True, exist_ok=True)
        found = {}
        for number, path in self._left_by(stage).items():
            if number > own.number:
                continue
            if path.is_symlink() or not path.is_dir():
                remove(path)
            else:
                found[number] = path
        for number, path in sorted(found.items()):
            _put_back(path, target)
            if number == max(found):
                path.rename(folder)
            else:  # of an owner that was taken over, and made a file after that
                shutil.rmtree(path, ignore_errors=True)
        if target.is_symlink() or target.is_file():
            remove(target)
        elif target.is_dir() and self._whole(stage) is None:
            # What an earlier version has not finished, or what was damaged since.
            if found:
                remove(target)
            else:
                target.rename(folder)
        folder.mkdir(exist_ok=True)
        return folder

    def _left_by(self, stage: StageSpec) -> dict[int, Path]:
        """Return what lies in the place of work of a stage's owners, by their numbers."""
        places = self.work.glob(f"{stage.folder_name}.*")
        return {int(name[2]): path for path in places if (name := _WORK.fullmatch(path.name)) is not None}

    def _publish(self, stage: StageSpec, folder: Path, own: Claim, inode: int) -> None:
        """Rename the folder of a finished stage into its place; a discarded one there makes room first.

        Raises:
            ClaimLostError: The claim is lost: the folder belongs to another owner by now.
            DiskError: It cannot be renamed; it is published by the next run.
        """
        target = self.folder_of(stage)
        own.check()
        try:
            if folder.stat().st_ino != inode:
                raise FileNotFoundError  # it was renamed, and made anew by a process that did not notice
            flush(folder)
            if target.is_dir():  # moved into our folder, which fails where that was taken over
                target.rename(folder / FORMER)
            folder.rename(target)
        except OSError as error:
            is_published = target.is_dir() and target.stat().st_ino == inode  # NFS may lose the answer
            if not is_published:
                with suppress(OSError):
                    _put_back(folder, target)
                if isinstance(error, FileNotFoundError) or _loss_of(own) is not None:
                    raise ClaimLostError(
                        f"{folder}: was taken over by another process; what this one made is not used."
                    ) from None
                raise DiskError(
                    f"{folder}: cannot be renamed to {target} ({error.strerror or error}); make that possible and run "
                    "the same command again, which goes on with the finished stage."
                ) from error
        for place in (self.stages, self.work):
            flush(place)
        remove(target / FORMER)

    def forget_failure(self, stage: StageSpec) -> None:
        """Let a stage that failed be tried again."""
        self._failed.pop(stage.fingerprint, None)

    def reopen(self, stage: StageSpec) -> None:
        """Let a finished stage be made again, from what it left in its folder and in the cache."""
        (self.folder_of(stage) / RECORD).unlink(missing_ok=True)
        self._done.pop(stage.fingerprint, None)

    def discard(self, stage: StageSpec) -> None:
        """Delete a finished stage's artefacts but keep its record, which says that they were discarded."""
        self.check_held()  # who was stopped for long discards nothing of another one's plan
        folder, whole = self.folder_of(stage), self._whole(stage)
        if whole is None:  # damaged since: what it lists may not be the stage's
            return
        discarded = whole.record.discarded()
        if whole.record != discarded:
            discarded.write(folder)
        for path in _discarded(folder, discarded):
            path.unlink(missing_ok=True)

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

    def _read(self, stage: StageSpec, *, is_trusted: bool = False) -> _Whole | None:
        """Return the stage where its record is there and every kept artefact has its size and hash."""
        folder = self.folder_of(stage)
        look_anew(self.stages)
        before = stamps_of([folder / RECORD])
        try:
            if self.stages.is_symlink():
                raise DamagedRecordError("the folder of the stages is a link")
            record = read_record(folder)
            if record.fingerprint != stage.fingerprint:
                raise DamagedRecordError("it is of another stage")
            stamps = stamps_of_whole(folder, record, is_trusted=is_trusted)
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
            canonical_json(found)  # which has no NaN, nor has the result that the times stand in
        except (FileNotFoundError, IsADirectoryError, ValueError):
            found = None
        if isinstance(found, dict) and seconds_in(found) is not None:
            return found
        self._note(stage, f"{path}: is missing or damaged; the times of this stage are shown as 0.")
        return {}

    def _note(self, stage: StageSpec, sentence: str) -> None:
        if stage.fingerprint not in self._noted:  # asked for again and again while a plan runs
            self._noted.add(stage.fingerprint)
            self.noted(sentence)


def seconds_in(timing: Any) -> float | None:
    """Return the seconds that the content of timing.json says a stage took; None: it is damaged."""
    seconds = timing.get("seconds") if isinstance(timing, dict) else None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    return float(seconds) if 0 <= seconds < _MOST_SECONDS else None


def unfinished(run: Path, name: str) -> Path | None:
    """Return the folder of a run in which a stage is being made, or was; None: there is none.

    Args:
        run: The run folder.
        name: The name of the stage's folder.
    """
    found = {}
    for path in (run / "work").glob(f"{name}.*"):
        own = _WORK.fullmatch(path.name)
        if own is not None and path.is_dir() and not path.is_symlink():
            found[int(own[2])] = path
    if found:
        return found[max(found)]
    former = run / "stages" / name  # where earlier versions worked
    return former if former.is_dir() and not (former / RECORD).exists() else None


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


def _loss_of(own: Claim) -> ClaimLostError | None:
    try:
        own.check()
    except ClaimLostError as lost:
        return lost
    return None


def _is_finished(stage: StageSpec, folder: Path) -> bool:
    """Return whether a folder of work holds a record, and all that it lists."""
    try:
        record = read_record(folder, stage.folder_name)
        stamps_of_whole(folder, record)
    except (OSError, DamagedRecordError):
        return False
    return record.fingerprint == stage.fingerprint and not record.has_discarded


def _put_back(folder: Path, target: Path) -> None:
    """Put back the folder that was moved aside, where the one that was to take its place did not."""
    former = folder / FORMER
    if former.is_dir() and not former.is_symlink():
        if target.exists() or target.is_symlink():
            remove(former)
        else:
            former.rename(target)


def _discarded(folder: Path, record: StageRecord) -> Iterator[Path]:
    """Yield the files that are there though a stage's record says that they were discarded."""
    for name, one in record.artefacts.items():
        with suppress(ValueError, OSError):  # a link has come since: what it leads to is not ours
            if one.discarded and (path := path_inside(folder, name)).is_file():
                yield path


def _remove_from(folder: Path, names: Collection[str]) -> None:
    for name in names:
        remove(folder / name)


def _finish(
    stage: StageSpec, folder: Path, work: Callable[[Path], Work], before: Mapping[str, Artefact]
) -> FinishedStage:
    """Do the work and write the record into its folder; `before`: the artefacts of the one that is made again."""
    started = time.monotonic()
    done = work(folder)
    made = dict(files_made(folder, frozenset({*_UNLISTED, *stage.continues})))
    for path in made.values():
        flush(path)  # what the record lists is there whenever the record is
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
