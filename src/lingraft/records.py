"""Canonical JSON, content hashes and atomic writes: what every stage's record stands on."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

_HASH_BLOCK_BYTES = 1 << 20
Typed = TypeVar("Typed")


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no spaces, so that equal values give equal text.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON cannot carry.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


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


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` so that `path` holds either all of it or what it held before, also after a crash."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write `content` as `write_text_atomically` does."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json_atomically(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically; keys sorted, so equal values give equal files."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    write_text_atomically(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file written by `write_json_atomically`."""
    return json.loads(path.read_text(encoding="utf-8"))


def to_json(value: object) -> Any:
    """Return a dataclass as JSON values."""
    from pydantic import TypeAdapter

    return TypeAdapter(type(value)).dump_python(value, mode="json")


def from_json(kind: type[Typed], value: Any) -> Typed:
    """Return the dataclass that `to_json` made `value` of.

    Raises:
        ValueError: A field is absent, unknown or of another type; the message names the first.
    """
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(kind)
    try:
        found: Typed = adapter.validate_json(
            json.dumps(value, allow_nan=False), strict=True
        )  # keeps the order of names
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if adapter.dump_python(found, mode="json") != value:
        raise ValueError(f"it holds fields that {kind.__name__} does not have")
    return found


def cache_folder() -> Path:
    """Return the folder of what can be made again: LINGRAFT_CACHE, else `lingraft` in the user's cache folder."""
    if given := os.environ.get("LINGRAFT_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lingraft"
