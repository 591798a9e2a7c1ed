"""Claims: who of many processes, on one machine or on many, may make a thing, such as a stage, or hold a run folder.

    claims/<thing>/<n>    a claim; n is its fencing number. It holds who owns it, and is empty once it was released

A claim is a file that is made by one link, which fails where the file exists: on a local disk and on NFS, without any
lock of the file system. Its owner touches it every few seconds. An owner is dead when its process is gone, where that
can be seen from here, or when its file did not change for a minute of the observer's own time. Clocks of two machines
are never compared, and no wall clock decides anything.

Numbers only grow. A process that was taken for dead and goes on finds a higher number than its own; what it makes must
be published so that it fails then, as by a rename of a folder that the next owner has renamed before.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import platform
import re
import secrets
import shlex
import stat
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lingraft.errors import ClaimedError, ClaimLostError, ConfigError, escape_control_characters
from lingraft.records import Stamp, from_json, to_json

CLAIMS = "claims"  # the folder of a run's claims in it, and of those of a cache
SECONDS_BETWEEN_BEATS = 5.0
SECONDS_UNTIL_LOST = 60.0  # without a beat; longer than NFS keeps what it knows of a file
_SECONDS_BETWEEN_LOOKS = (0.02, 1.0)  # first, and at most: they grow
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
HIGHEST = 10**18 - 1  # to which claims count
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})
_GONE = frozenset({errno.ENOENT, errno.ESTALE})  # the second of a file on NFS that another machine removed
_MOST_BYTES = 4096  # of a claim
_MOST_CHARACTERS = 200  # of a command


@dataclass(frozen=True)
class Owner:
    """A process that owns a claim.

    Attributes:
        process: Its number on its machine.
        host: The name of the machine.
        machine: Whose processes see each other: the machine since it was started, and the container on it.
        started: When the process was started, as its machine counts; no time of a clock.
        since: When it took the claim, in seconds since 1970 by its own clock; shown, and compared with nothing.
        command: What was typed, cut.
    """

    process: int
    host: str
    machine: str
    started: str
    since: float
    command: str

    @classmethod
    def this(cls) -> Owner:
        """Return this process."""
        command = shlex.join(sys.argv)
        cut = command if len(command) <= _MOST_CHARACTERS else command[:_MOST_CHARACTERS] + "…"
        own = os.getpid()
        return cls(own, node_name(), _this_machine(), _start_of(own) or "", time.time(), _readable(cut))

    @property
    def is_here(self) -> bool:
        """Whether its process could be seen from here."""
        return self.machine == _this_machine()

    @property
    def is_gone(self) -> bool:
        """Whether its process can be seen to have ended."""
        return self.is_here and _start_of(self.process) not in ("", self.started)

    def __str__(self) -> str:
        try:
            since = f", since {datetime.fromtimestamp(self.since).astimezone():%Y-%m-%d %H:%M %Z}"
        except (OverflowError, ValueError, OSError):  # whoever wrote it
            since = ""
        command = f" ({escape_control_characters(self.command, keep='')})" if self.command else ""
        return f"process {self.process} on {escape_control_characters(self.host, keep='')}{since}{command}"


class Claim:
    """The right to make a thing, held until `release` or the end of the block; a thread keeps it fresh.

    Attributes:
        folder: The thing's folder of claims.
        number: Its fencing number.
    """

    def __init__(self, folder: Path, number: int, owner: Owner) -> None:
        self.folder, self.number = folder, number
        self._owner = owner
        self._path = folder / str(number)
        self._process = os.getpid()
        self._released = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True, name=f"claim of {folder.name}")
        self._beats.start()

    def check(self) -> None:
        """Return where the claim is still held.

        Raises:
            ClaimLostError: Another process has taken it over, or its file was removed.
        """
        numbers = _numbers(self.folder)
        if max(numbers, default=0) > self.number:
            raise ClaimLostError(
                f"{self._path}: this process gave no sign of life for {SECONDS_UNTIL_LOST:.0f} seconds, and another "
                "one goes on with its work; what this one made since is not used."
            )
        if self.number not in numbers or not self._is_own():
            raise ClaimLostError(
                f"{self._path}: was removed while this process held it, so that another one may have begun the same."
            )

    def release(self, *, forget: bool = False) -> None:
        """Give it back: the next one may take it at once. In a forked process nothing happens.

        Args:
            forget: Also remove the folder of the claims, where nobody else has one, so that numbers begin anew: for
                a thing that a former owner cannot spoil once it is there.
        """
        if self._process != os.getpid() or self._released.is_set():
            return
        self._released.set()
        self._beats.join()
        with suppress(OSError, ConfigError):  # read-only by now, or gone: it is taken for dead then
            if not self._is_own():
                return
            if forget:
                self._path.unlink()
                self.folder.rmdir()
            else:
                os.truncate(self._path, 0)  # which needs no space on a full disk

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _is_own(self) -> bool:
        """Return whether the file is this claim's: numbers begin anew where somebody removed the folder."""
        found = _look(self._path)
        return found is not None and found.owner in (None, self._owner)

    def _beat(self) -> None:
        while not self._released.wait(SECONDS_BETWEEN_BEATS):
            with suppress(
                OSError
            ):  # of a file that was removed, or a share that is away: the next beat may come
                os.utime(self._path, follow_symlinks=False)


def claim(folder: Path, *, patience: float | None = 0, above: int = 0) -> Claim:
    """Take a claim, after a dead owner or one that released it.

    Args:
        folder: The thing's folder of claims; made where it is missing.
        patience: Seconds to wait for an owner that lives; None: as long as it lives. Of an owner on another machine,
            whether it lives is found out first, which takes up to `SECONDS_UNTIL_LOST`.
        above: The number is higher than this one, also where the claims before it were removed.

    Raises:
        ClaimedError: An owner lives, and was waited for.
        ConfigError: Something that is no claim is in the way.
        OSError: Files cannot be made there.
    """
    if folder.is_symlink():
        raise ConfigError(f"{folder}: is a link, and holds claims; remove it.")
    began = time.monotonic()
    seen = _Seen()
    pause, longest = _SECONDS_BETWEEN_LOOKS
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)  # again where its last owner removed it
        except FileExistsError:  # pathlib looks whether it is a folder, and it was removed in between
            if os.path.lexists(folder) and not folder.is_dir():
                raise ConfigError(f"{folder}: is no folder, and holds claims; remove it.") from None
            continue
        highest = max(_numbers(folder), default=0)
        last = max(highest, above)
        if last >= HIGHEST:
            raise ConfigError(
                f"{folder}: lingraft never counted to {last}; remove what has this number as its name there, or at "
                "the end of its name in work/ of the same run folder."
            )
        found = _look(folder / str(highest)) if highest else None
        if found is None or found.is_over or seen.is_quiet(highest, found.stamp):
            own = Owner.this()
            try:
                if _make(folder, last + 1, own):
                    return Claim(folder, last + 1, own)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
        elif patience is not None and time.monotonic() - began >= patience:
            owner = found.owner
            if (owner is not None and owner.is_here) or seen.has_changed:
                raise ClaimedError(
                    f"{folder}: {owner or 'another process'} is at work on it; wait for it.", owner
                )
        time.sleep(pause)
        pause = min(2 * pause, longest, SECONDS_UNTIL_LOST / 10)


def claim_when_free(folder: Path, what: str, noted: Callable[[str], None], *, above: int = 0) -> Claim:
    """Take a claim, however long its owner lives; a sentence is noted where one is waited for.

    Raises:
        ConfigError, OSError: See `claim`.
    """
    note_if_unseen(folder, what, noted)
    try:
        return claim(folder, above=above)
    except ClaimedError as error:
        _note_waiting(what, error.owner, noted)
        return claim(folder, patience=None, above=above)


def note_if_owned(folder: Path, what: str, noted: Callable[[str], None]) -> None:
    """Note the sentence that `claim_when_free` would, for a process that can be heard by nobody while it waits."""
    owner = owner_of(folder)
    if owner is not None and owner.is_here:
        _note_waiting(what, owner, noted)
    else:
        note_if_unseen(folder, what, noted)


def _note_waiting(what: str, owner: object, noted: Callable[[str], None]) -> None:
    noted(f"{what}: is being made by {owner or 'another process'}; waiting for it.")


def note_if_unseen(folder: Path, what: str, noted: Callable[[str], None]) -> None:
    """Note a sentence where `claim` will look for a while whether an owner lives, who is elsewhere or not known."""
    found = _last(folder)
    if found is not None and not found.is_over and not (found.owner is not None and found.owner.is_here):
        noted(
            f"{what}: held by {found.owner or 'a process that its claim does not name'}; it takes up to "
            f"{SECONDS_UNTIL_LOST:.0f} seconds to see whether it lives."
        )


def owner_of(folder: Path) -> Owner | None:
    """Return who owns a thing, as far as it can be known at once; None: nobody does, or it cannot be read.

    The owner on another machine may be dead for all that is known.
    """
    found = _last(folder)
    return None if found is None or found.is_over else found.owner


@dataclass(frozen=True)
class HeldClaim:
    """A claim that was not released.

    Attributes:
        number: Its fencing number.
        owner: Who took it.
        sign: When it gave the last sign of life, in seconds since 1970 by the clock of the file system.
    """

    number: int
    owner: Owner
    sign: float

    def is_alive(self, now: float) -> bool:
        """Return whether its owner lives, as far as one look tells: of another machine its last sign decides."""
        return not self.owner.is_gone and (self.owner.is_here or now - self.sign < SECONDS_UNTIL_LOST)


def held_claim(folder: Path) -> HeldClaim | None:
    """Return the claim on a thing that was taken last; None: it was released, there is none, or it cannot be read."""
    found = _last(folder)
    if found is None or found.stamp.bytes == 0 or found.owner is None:
        return None
    return HeldClaim(found.number, found.owner, found.stamp.modified / 1e9)


@dataclass(frozen=True)
class _Found:
    """A claim as it was just read; `owner` is None where nobody can be read from it."""

    number: int
    stamp: Stamp
    owner: Owner | None

    @property
    def is_over(self) -> bool:
        return self.stamp.bytes == 0 or (self.owner is not None and self.owner.is_gone)


class _Seen:
    """What an observer saw of the highest claim so far."""

    def __init__(self) -> None:
        self._last: tuple[int, Stamp] | None = None
        self._looked = 0.0
        self._quiet = 0.0
        self.has_changed = False

    def is_quiet(self, number: int, stamp: Stamp) -> bool:
        """Return whether nothing changed for `SECONDS_UNTIL_LOST`, of which only what this process was awake counts."""
        now = time.monotonic()
        if self._last == (number, stamp):
            # An observer that was stopped itself has seen nothing meanwhile.
            self._quiet += min(now - self._looked, 2 * _SECONDS_BETWEEN_LOOKS[1])
        else:
            self.has_changed = self._last is not None
            self._last, self._quiet = (number, stamp), 0.0
        self._looked = now
        return self._quiet >= SECONDS_UNTIL_LOST


def _numbers(folder: Path) -> set[int]:
    try:
        return {int(path.name) for path in folder.iterdir() if _NUMBER.fullmatch(path.name)}
    except FileNotFoundError:
        return set()


def _look(path: Path) -> _Found | None:
    """Return what a claim says; None: it was removed just now. Opened anew: NFS asks the server then.

    Raises:
        ConfigError: It is no file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in _GONE:
            return None
        if error.errno == errno.ELOOP:
            raise ConfigError(f"{path}: is a link, and no claim of lingraft's; remove it.") from None
        raise
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{path}: is no file, and no claim of lingraft's; remove it.")
        content = os.read(handle, _MOST_BYTES)
    finally:
        os.close(handle)
    stamp = Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    try:
        owner = from_json(Owner, json.loads(content))
    except (ValueError, RecursionError):  # whoever wrote it: whether it changes tells whether its owner lives
        return _Found(int(path.name), stamp, None)
    return _Found(int(path.name), stamp, owner if 0 < owner.process < 1 << 31 else None)


def _last(folder: Path) -> _Found | None:
    """Return the claim on a thing that was taken last; None: there is none, or it cannot be read."""
    try:
        highest = max(_numbers(folder), default=0)
        return _look(folder / str(highest)) if highest and not folder.is_symlink() else None
    except (OSError, ConfigError):
        return None


def _make(folder: Path, number: int, owner: Owner) -> bool:
    """Make a claim, whole or not at all; return whether it is ours and the highest."""
    path, temporary = folder / str(number), folder / f".{number}.{secrets.token_hex(4)}.part"
    content = json.dumps(to_json(owner)).encode()
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # NFS repeats a request whose answer was lost, and then finds our own link there.
            if temporary.stat().st_nlink != 2:
                return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:  # a file system without links: for an instant it is empty, which fencing makes up for
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                return False
            with os.fdopen(handle, "wb") as file:
                file.write(content)
    finally:
        temporary.unlink(missing_ok=True)
    numbers = _numbers(folder)
    if (
        max(numbers, default=0) != number
    ):  # it was taken, released and cleared away while we looked at a lower one
        path.unlink(missing_ok=True)
        return False
    # One that is about to link such a file finds it gone, and looks again.
    for useless in (*(folder / str(lower) for lower in numbers - {number}), *folder.glob(".*.part")):
        with suppress(OSError):
            useless.unlink()
    return True


@functools.cache
def _this_machine() -> str:
    """Return what tells apart the sets of processes that see each other: names of machines may be alike."""
    parts = [node_name()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    # Containers number their processes each for itself, and may count the time since the start from another one.
    for namespace in ("pid", "time"):
        with suppress(OSError):
            parts.append(str(Path(f"/proc/self/ns/{namespace}").readlink()))
    return " ".join(parts)


def node_name() -> str:
    """Return the name of this machine, as it can be written: of whatever bytes it is."""
    return _readable(platform.node())


def _readable(text: str) -> str:
    """Return a text without what UTF-8 does not have, as in a name of other bytes."""
    return text.encode("utf-8", errors="replace").decode()


def _start_of(process: int) -> str | None:
    """Return when a process was started, in a count that setting a clock does not change.

    None: it has ended. Empty: it is there, and may not be looked at.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:  # it ended, or is another user's and hidden, or this system has no /proc
        pass
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # it is there
        pass
    return ""
