"""The record of a stage: what `record.json` in its folder says, and whether the folder still holds just that.

A run folder may come from elsewhere: nothing that a record names is read or deleted before it was checked. The digest
tells accidents and edits; it is no signature, since whoever can write the folder can compute it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lingraft.records import (
    Stamp,
    canonical_json,
    fingerprint_of,
    from_json,
    hash_file,
    hash_once,
    is_foreign,
    keep_hash,
    path_inside,
    read_json,
    to_json,
    write_json_atomically,
)

RECORD = "record.json"  # what a stage records, in its folder; written last
FORMAT = 3
"""Of record.json; files of earlier versions have no digest. Another meaning or name of a field raises it."""


class DamagedRecordError(ValueError):
    """A record cannot be read, was edited, or names what it must not; the message says why."""


class OtherFormatError(DamagedRecordError):
    """A record was written by another version of lingraft."""


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


@dataclass(frozen=True)
class StageRecord:
    """What a stage depends on, what it found and which files it left.

    Attributes:
        stage: Its kind.
        inputs: All that the result depends on, as JSON.
        result: What was found, as JSON.
        artefacts: By path inside the stage's folder, with `/` between its parts.
    """

    stage: str
    inputs: dict[str, Any]
    result: dict[str, Any]
    artefacts: dict[str, Artefact]

    @property
    def fingerprint(self) -> str:
        """Hash of kind and inputs: the stage's name."""
        return fingerprint_of({"kind": self.stage, **self.inputs})

    @property
    def has_discarded(self) -> bool:
        """Whether `keep` deleted any of its files."""
        return any(one.discarded for one in self.artefacts.values())

    def discarded(self) -> StageRecord:
        """Return it with all files marked as deleted."""
        return replace(
            self, artefacts={name: replace(one, discarded=True) for name, one in self.artefacts.items()}
        )

    def write(self, folder: Path) -> None:
        """Write it into the stage's folder, atomically.

        Raises:
            DamagedRecordError: It could not be read again.
        """
        # As it is read back: the digest is of JSON values.
        content = json.loads(json.dumps({"format": FORMAT, "fingerprint": self.fingerprint, **to_json(self)}))
        _check_names(folder, content["artefacts"])
        write_json_atomically(folder / RECORD, content | {"digest": _digest(content)})


def read_record(folder: Path, name: str | None = None) -> StageRecord:
    """Return the record of a stage's folder.

    Args:
        folder: The folder.
        name: What it is called when it is published; None: what it is called.

    Raises:
        FileNotFoundError: There is none.
        OtherFormatError: Another version of lingraft wrote it.
        DamagedRecordError: It is damaged, was edited, is of another stage than the folder's name says, or names a file
            outside of the folder.
        OSError: It cannot be read, whatever it holds.
    """
    if folder.is_symlink() or (folder / RECORD).is_symlink():
        raise DamagedRecordError("it is a link")
    try:
        content = read_json(folder / RECORD)
    except (IsADirectoryError, NotADirectoryError):
        raise DamagedRecordError("it is no file") from None
    except ValueError as error:
        raise DamagedRecordError(f"it cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise DamagedRecordError("it is no object")
    if "digest" not in content and content.get("format") != FORMAT:
        raise OtherFormatError(f"it is of format {content.get('format')}")
    try:
        if content.pop("digest", None) != _digest(content):
            raise DamagedRecordError("it does not fit its digest: it was damaged or edited")
        if content.pop("format") != FORMAT:
            raise OtherFormatError("it is of a later format")
        fingerprint = content.pop("fingerprint")
        record = from_json(StageRecord, content)
        if record.fingerprint != fingerprint or (name or folder.name) != f"{record.stage}-{fingerprint}":
            raise DamagedRecordError("it is of another stage")
        _check_names(folder, record.artefacts)
    except DamagedRecordError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedRecordError(str(error)) from None
    return record


def stamps_of_whole(folder: Path, record: StageRecord, *, is_trusted: bool = False) -> dict[str, Stamp]:
    """Return the stamps of the files that a record lists as kept, all of which have their size and hash.

    Args:
        folder: The stage's folder.
        record: Its record.
        is_trusted: Believe the hashes: another process of the same run has just taken them.

    Raises:
        DamagedRecordError: One is missing, is no file or differs.
    """
    stamps = {}
    for name, one in record.artefacts.items():
        if one.discarded:
            continue
        try:
            path = path_inside(folder, name)
            stamps[name] = stamp = Stamp.of(path)  # before it is hashed
            if not path.is_file():
                raise DamagedRecordError(f"{name} is no file")
            if stamp.bytes != one.bytes or (not is_trusted and hash_once(path) != one.sha256):
                raise DamagedRecordError(f"{name} was changed or damaged")
            if is_trusted:
                keep_hash(path, stamp, one.sha256)
        except FileNotFoundError:
            raise DamagedRecordError(f"{name} is missing") from None
        except NotADirectoryError:
            raise DamagedRecordError(f"{name} is no file") from None
    return stamps


def files_made(folder: Path, besides: frozenset[str]) -> Iterator[tuple[str, Path]]:
    """Yield the files of a stage's folder that its work made, by name: none of those in `besides`, and none foreign."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if parts[0] in besides or any(map(is_foreign, parts)) or path.is_symlink():
            continue
        if path.is_file():
            yield "/".join(parts), path


def artefact_of(path: Path) -> Artefact:
    """Return a file as a record lists it."""
    return Artefact(path.stat().st_size, hash_file(path))


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content).encode("utf-8")).hexdigest()


def _check_names(folder: Path, artefacts: Mapping[str, object]) -> None:
    """Refuse names that lead out of the folder, stand for files that are no artefacts, or are one on some disks."""
    alike: set[str] = set()
    for name in artefacts:
        try:
            path_inside(folder, name)
        except ValueError as error:
            raise DamagedRecordError(str(error)) from None
        if any(map(is_foreign, name.split("/"))) or name.casefold() in alike | {RECORD}:
            raise DamagedRecordError(f"{name!r} is listed, which is no artefact or stands twice")
        alike.add(name.casefold())
