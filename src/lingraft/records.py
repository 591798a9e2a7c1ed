"""Canonical JSON, content hashes and atomic writes: what every stage's record stands on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

_HASH_BLOCK_BYTES = 1 << 20
_TEMPORARY = ".part"
_CLOCK_NS = 2_000_000_000  # no file system keeps times coarser: within it a file may change unnoticed
_HASHES: dict[Path, tuple[Stamp, str]] = {}  # of files that this process has read or made
_ADAPTERS: dict[Any, Any] = {}  # by type
# What systems and editors leave in folders; files with a dot in front are left out as well.
_FOREIGN = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
Typed = TypeVar("Typed")


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no spaces, so that equal values give equal text.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON cannot carry, or is nested too deep.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise ValueError("nested too deep") from None


def fingerprint_of(value: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of `value`'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()[:16]


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; reads one block at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the file system says of a file: as long as it is the same, so are the bytes."""

    device: int
    inode: int
    bytes: int
    modified: int  # ns
    changed: int  # ns; a copy can keep `modified`, but not this

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Return a file's stamp; of a link the file's that it leads to.

        Raises:
            OSError: There is no such file.
        """
        found = path.stat()
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def hash_once(path: Path) -> str:
    """Return what `hash_file` does; a process reads a file once, as long as its stamp says that it did not change.

    A file that changed a moment ago is read anew: it could change again and keep its stamp.
    """
    stamp = Stamp.of(path)
    known = _HASHES.get(path)
    if known is not None and known[0] == stamp:
        return known[1]
    found = hash_file(path)
    if stamp == Stamp.of(path):
        keep_hash(path, stamp, found)
    return found


def keep_hash(path: Path, stamp: Stamp, sha256: str) -> None:
    """Let `hash_once` know the hash of a file with that stamp, unless it changed a moment ago."""
    if time.time_ns() - stamp.changed > _CLOCK_NS:
        _HASHES[path] = stamp, sha256
    else:
        _HASHES.pop(path, None)


def stamps_of(paths: Iterable[Path]) -> dict[Path, Stamp | None]:
    """Return the stamp of each file, None of a missing one; taken before files are hashed, it tells later changes."""
    found: dict[Path, Stamp | None] = {}
    for path in paths:
        try:
            found[path] = Stamp.of(path)
        except OSError:
            found[path] = None
    return found


def path_inside(folder: Path, name: str) -> Path:
    """Return where a relative name leads that a file of a folder holds, whoever wrote it.

    Raises:
        ValueError: It leads out of the folder: it is absolute, holds `..` or a link stands on the way.
    """
    parts = name.split("/")
    if PureWindowsPath(name).anchor or "\\" in name or "\0" in name or {"", ".", ".."} & set(parts):
        raise ValueError(f"{name!r} is no relative name of a file inside of the folder")
    path = folder
    for part in parts:
        path /= part
        if path.is_symlink():
            raise ValueError(f"{name!r} leads through a link")
    return path


def is_foreign(name: str) -> bool:
    """Return whether a file or folder of this name is none of ours: hidden, temporary, or of a system or editor."""
    return name.startswith(".") or name.endswith("~") or name.lower() in _FOREIGN


def remove(path: Path) -> None:
    """Remove what is at a path, whatever it is; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what processes that were killed while they wrote a file left beside it; none may be writing now."""
    for path in folder.glob(f".*{_TEMPORARY}"):
        remove(path)


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write so that `path` holds either all of `content` or what it held before, also after a crash.

    Who may read it the user's umask says, as of any new file.

    Raises:
        OSError: It cannot be written; the error names `path`.
    """
    temporary = None
    try:
        name = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_TEMPORARY}")
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        temporary = name
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` as `write_bytes_atomically` does."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_json_atomically(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically; keys sorted, so equal values give equal files."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    write_text_atomically(path, text + "\n")


def flush_folder(folder: Path) -> None:
    """Wait until all files of a folder, and their names, are on the disk: what is written next comes after them.

    Raises:
        OSError: The disk is full or fails.
    """
    for path in (*folder.rglob("*"), folder, folder.parent):
        flush(path)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: The disk is full or fails.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno == errno.EINVAL):  # some shares flush files alone
            raise
    finally:
        os.close(handle)


def look_anew(folder: Path) -> None:
    """Let the system ask a network's disk again what a folder holds; of one that is not there, or no folder, nothing.

    NFS believes for up to a minute what it found there, or did not; opening the folder ends that.
    """
    with suppress(OSError):
        os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))


def read_json(path: Path) -> Any:
    """Read a JSON file written by `write_json_atomically`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged, whatever by: no JSON, no UTF-8, nested too deep, a number too long, a pipe or device.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError("no regular file")  # which might never end
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deep") from None


def write_kept(path: Path, value: Any) -> None:
    """Write JSON values into a file of a cache, with their fingerprint; whatever is there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        remove(path)
    write_json_atomically(path, {"content": value, "fingerprint": fingerprint_of(value)})


def read_kept(path: Path) -> Any:
    """Return what `write_kept` wrote.

    Raises:
        FileNotFoundError: There is nothing.
        OSError, ValueError: It cannot be read, or is damaged.
    """
    found = read_json(path)
    if not isinstance(found, dict) or found.keys() != {"content", "fingerprint"}:
        raise ValueError("it is of another form")
    if fingerprint_of(found["content"]) != found["fingerprint"]:
        raise ValueError("it does not fit its fingerprint")
    return found["content"]


def to_json(value: object) -> Any:
    """Return a dataclass as JSON values."""
    return _adapter(type(value)).dump_python(value, mode="json")


def from_json(kind: type[Typed], value: Any) -> Typed:
    """Return the dataclass that `to_json` made `value` of.

    Raises:
        ValueError: A field is unknown, of another type, or absent and without a default; the message names the first.
    """
    from pydantic import ValidationError

    adapter = _adapter(kind)
    try:
        found: Typed = adapter.validate_json(
            json.dumps(value, allow_nan=False), strict=True
        )  # keeps the order of names
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if not _holds(adapter.dump_python(found, mode="json"), value):
        raise ValueError(f"it holds fields that {kind.__name__} does not have")
    return found


def _holds(whole: Any, value: Any) -> bool:
    """Return whether `value` says nothing that `whole` does not: it may leave out what has a default."""
    if isinstance(value, dict) and isinstance(whole, dict):
        return all(name in whole and _holds(whole[name], one) for name, one in value.items())
    if isinstance(value, list) and isinstance(whole, list):
        return len(whole) == len(value) and all(map(_holds, whole, value))
    return bool(whole == value)


def _adapter(kind: Any) -> Any:
    """Return what reads and writes a type: made once, which takes longer than to read most values."""
    from pydantic import TypeAdapter

    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def cache_folder() -> Path:
    """Return the folder of what can be made again: LINGRAFT_CACHE, else `lingraft` in the user's cache folder."""
    if given := os.environ.get("LINGRAFT_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lingraft"
