"""The errors that lingraft raises for its users, and the exit code of each.

Lowest layer: everything else may import this module, it imports nothing of lingraft.
A message says what was wrong, the value, where it came from and what to do instead.
"""

from __future__ import annotations

import difflib
import errno
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage

# Control characters; line and paragraph separators; embeddings, overrides and isolates, which turn the direction of
# what follows; halves of surrogate pairs; and what is no character at all, which XML (so SVG) forbids.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

_DISK_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "your quota of the disk is used up: free some space",
    errno.EFBIG: "a file may not be that large here: raise the limit (`ulimit -f`)",
    errno.EROFS: "the file system is read-only: make it writable, or name another folder",
    errno.EACCES: "permission denied: change the permissions, or name another folder",
    errno.EPERM: "the operation is not permitted: change the permissions, or name another folder",
    errno.EISDIR: "a folder is in the way: move it away",
    errno.ENOTDIR: "a file is in the way of a folder: move it away",
    errno.EIO: "the disk fails (input/output error): check it",
}
_ONLY_OF_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
# What libraries that raise errors of their own say in place of these; torch says neither which nor why.
_SAID_BY_LIBRARIES = (
    (re.compile(r"No space left on device|os error 28\b|StorageFull"), errno.ENOSPC),
    (re.compile(r"Disk quota exceeded|os error 122\b|QuotaExceeded"), errno.EDQUOT),
    (re.compile(r"File too large|os error 27\b|FileTooLarge"), errno.EFBIG),
    (re.compile(r"Read-only file system|os error 30\b|ReadOnlyFilesystem"), errno.EROFS),
    (re.compile(r"PytorchStreamWriter failed writing|\bunexpected pos \d+ vs \d+"), errno.ENOSPC),
)

EXIT_DONE = 0
EXIT_ANSWER_IS_NO = 1
EXIT_WRONG_INPUT = 2
EXIT_CANNOT_TELL = 3
EXIT_INTERNAL = 4
EXIT_INTERRUPTED = 130


class LingraftError(Exception):
    """Base of every error that lingraft raises on purpose; printed as one message, without a stack."""

    exit_code = EXIT_WRONG_INPUT


class ConfigError(LingraftError):
    """A study file, an override or an option is wrong."""


class DataError(LingraftError):
    """A data set cannot be found, read, or holds too many broken rows."""


class ModelError(LingraftError):
    """A model cannot be found or loaded, or does not fit what is asked of it."""


class StrategyError(LingraftError):
    """A strategy cannot be applied: it trains nothing, or conflicts with another one."""


class FigureError(LingraftError):
    """A figure cannot be drawn here; all else that was asked for is done."""

    exit_code = EXIT_ANSWER_IS_NO


class EvaluationError(LingraftError):
    """A task cannot be evaluated."""


class DiskError(LingraftError):
    """A file cannot be written: the disk is full or read-only or fails, or a permission is missing."""


class ClaimedError(LingraftError):
    """Another process is at work on a thing that one may make at a time.

    Attributes:
        owner: Who (`claims.Owner`); None: it cannot be read from the claim.
    """

    def __init__(self, message: str, owner: object = None) -> None:
        super().__init__(message)
        self.owner = owner


class ClaimLostError(LingraftError):
    """Another process took over what this one was making, as it gave no sign of life for long."""


class NodeLostError(LingraftError):
    """A machine of a training that runs on several has died or cannot be reached; another attempt goes on."""

    exit_code = EXIT_ANSWER_IS_NO


class ProcessLostError(LingraftError):
    """A process that made something has died; another attempt goes on."""

    exit_code = EXIT_ANSWER_IS_NO


class VerificationError(LingraftError):
    """A promise that lingraft checks itself was broken, such as a frozen weight that changed."""

    exit_code = EXIT_INTERNAL


def disk_error(error: BaseException, place: Path | None = None) -> DiskError | None:
    """Return what to tell of an error that is the disk's; None: it has another cause.

    Args:
        error: Any error. One of lingraft's own keeps its own words.
        place: The folder that is written to: a missing permission elsewhere, as of a file that is read, is not the
            disk's, but where temporary files lie. None: anywhere.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, LingraftError):
            return cause if isinstance(cause, DiskError) else None
        seen.add(id(cause))
        # Of a copy the second is written.
        names = (getattr(cause, "filename2", None), getattr(cause, "filename", None))
        named = next((Path(one) for one in names if isinstance(one, str)), None)
        number = cause.errno if isinstance(cause, OSError) else None
        if number not in _DISK_ADVICE:
            said = str(cause)
            number = next((one for pattern, one in _SAID_BY_LIBRARIES if pattern.search(said)), None)
        if number is not None and (number in _ONLY_OF_WRITING or _lies_in(place, named)):
            # Of an error without a name, such as a library's, the fuller of the two is meant.
            places = [one for one in (place, Path(tempfile.gettempdir())) if one is not None and one.is_dir()]
            shown = named or min(places, key=lambda one: disk_usage(one).free, default="a file")
            return DiskError(
                f"{shown}: {_DISK_ADVICE[number]}, and run the same command again; what is finished stays."
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _lies_in(place: Path | None, file: Path | None) -> bool:
    places = [Path(tempfile.gettempdir()), *([] if place is None else [place])]
    return (
        place is None or file is None or any(file.absolute().is_relative_to(one.absolute()) for one in places)
    )


@contextmanager
def as_disk_error(place: Path) -> Iterator[None]:
    """Raise an error inside that is the disk's as a `DiskError`; see `disk_error`."""
    try:
        yield
    except Exception as error:
        found = disk_error(error, place)
        if found is None or found is error:
            raise
        raise found from error


def did_you_mean(value: str, options: Iterable[str]) -> str:
    """Return a hint: the closest of `options` to `value` if one is close, and the sorted list of all."""
    known = sorted(options)
    close = difflib.get_close_matches(value, known, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Options: {', '.join(known)}."


def in_one_line(error: BaseException) -> str:
    """Return a library's message without its line breaks: what lingraft prints of a problem is one line."""
    return " ".join(str(error).split())


def escape_control_characters(text: str, keep: str = "\n\t") -> str:
    """Return a text that is not ours with what steers a terminal made visible: \\x1b in place of the escape.

    Such texts are a model's, a data set's or a server's; what steers are control characters but for those in `keep`,
    line and paragraph separators, marks that turn the direction of text, halves of surrogate pairs and non-characters.
    Joiners stay: scripts need them.
    """
    return _STEERING.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)
