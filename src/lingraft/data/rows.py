"""The one way to read rows: `open_rows` of local files or of a data set of the Hugging Face hub.

Training data, prompts, instructions, test items and answers for the judge come through here: a source is found, opened
and decoded in one place, and every problem is named by file and line. Callers only say what a row means.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingraft.config.schema import DataSource
from lingraft.data.files import SourceFile, checked_files, files_of, is_local
from lingraft.data.readers import (
    FILE_FORMATS,
    SUFFIXES,
    RawRow,
    as_data_error,
    data_suffix,
    read_file,
    row_of,
)
from lingraft.data.tables import SEPARATORS, without_nothing
from lingraft.errors import DataError, LingraftError, in_one_line
from lingraft.records import Stamp, fingerprint_of

if TYPE_CHECKING:
    from datasets import Dataset

_BLOCK_BYTES = 1 << 20
_CLOCK_NS = (
    2_000_000_000  # file systems keep times no finer than this: a file may change again unnoticed within it
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PINNED = re.compile(r"[0-9a-f]{7,40}")  # a commit, whole or its beginning, rather than a branch or tag
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_LONGEST_ID = 200


@dataclass(frozen=True)
class OpenedRows:
    """The rows of a source; each iteration reads them anew, from the first on."""

    name: str  # of the source, as the user wrote it
    files: tuple[SourceFile, ...] = ()  # the local files; empty where it is on the hub
    hub: Iterable[Mapping[str, Any]] | None = None  # the hub's data set, or None
    revision: str | None = None  # the hub's commit, where the cache says it
    first: int | None = None  # only so many rows of each file, or of the hub's set; None: all
    # Whether a table's cells of NaN, NA, None, ... are None, as pandas reads them.
    null_in_tables: bool = False
    opened_ns: int = field(default_factory=time.time_ns, compare=False)  # when, by the clock

    def __iter__(self) -> Iterator[RawRow]:
        if self.hub is not None:
            with as_data_error(f"{self.name}: a row of the hub's data set cannot be read"):
                for number, fields in enumerate(islice(self.hub, self.first), start=1):
                    yield row_of(fields, f"{self.name}:{number}", number)
        for file in self.files:
            language, likely, is_one_of_several = file.language, file.likely_language, len(self.files) > 1
            has_nulls = self.null_in_tables and data_suffix(file.path) in SEPARATORS
            stamp = self._stamp(file)
            for row in islice(read_file(file.path, file.name), self.first):
                yield RawRow(
                    row.place,
                    row.number,
                    without_nothing(row.value) if has_nulls else row.value,
                    row.problem,
                    name=row.place if is_one_of_several else "",
                    language=language,
                    likely_language=likely,
                )
            self._check(file, stamp)

    def sound(self, error: type[LingraftError] = DataError) -> Iterator[RawRow]:
        """Yield the rows where none may be left out.

        Raises:
            error: A row cannot be read, or there is none.
        """
        row = None
        for row in self:
            if row.problem is not None:
                raise error(f"{row.place}: {row.problem}. No row is left out here: mend it.")
            try:  # whatever of it is used is written into tables and records
                json.dumps(row.value, ensure_ascii=False, default=repr).encode("utf-8")
            except (UnicodeEncodeError, RecursionError) as problem:
                said = (
                    "half a surrogate pair"
                    if isinstance(problem, UnicodeError)
                    else "lists nested too deeply"
                )
                raise error(f"{row.place}: the row holds {said}. No row is left out here: mend it.") from None
            yield row
        if row is None:
            raise error(f"{self.name}: there are no rows in it.")

    def hash_and_lines(self) -> tuple[str | None, int]:
        """Return a hash of the files' bytes and languages, and their lines, 0 where these cannot be counted.

        The hash of one file whose name says no language is the SHA-256 of its bytes; on the hub there is none.
        """
        hashes, lines = [], 0
        can_count = self.first is None
        for file in self.files:
            digest, last = hashlib.sha256(), b"\n"
            try:
                with file.path.open("rb") as opened:
                    while block := opened.read(_BLOCK_BYTES):
                        digest.update(block)
                        lines += block.count(b"\n")
                        last = block[-1:]
            except OSError as error:
                raise DataError(f"{file.name}: the file cannot be read: {in_one_line(error)}.") from None
            lines += last != b"\n"
            hashes.append((file.language or file.likely_language, digest.hexdigest()))
            is_text = file.path.suffix.lower() == data_suffix(file.path)  # not compressed
            can_count = can_count and is_text and FILE_FORMATS[data_suffix(file.path)].has_lines
        if not hashes:
            return None, 0
        is_plain = len(hashes) == 1 and hashes[0][0] is None
        return hashes[0][1] if is_plain else fingerprint_of(hashes), lines if can_count else 0

    def check_hash(self, content_hash: str | None) -> None:
        """Check that the rows that were read are those whose hash `hash_and_lines` returned.

        Files whose times cannot tell are read once more: those written to within two seconds of being opened, and those
        of which nothing but the time of a change is another one, as where a link to them was made.

        Raises:
            DataError: A file was replaced or written to in between.
        """
        in_doubt = False
        for file in self.files:
            if file.stamp is not None:
                now = self._check(file, file.stamp)
                is_fresh = self.opened_ns - max(now.modified, now.changed) < _CLOCK_NS
                in_doubt = in_doubt or now != file.stamp or is_fresh
        if in_doubt and self.hash_and_lines()[0] != content_hash:
            raise DataError(
                f"{self.name}: was changed while it was read; run again when nothing writes to it."
            )

    def _stamp(self, file: SourceFile) -> Stamp:
        try:
            return Stamp.of(file.path)
        except OSError as error:
            raise DataError(f"{file.name}: the file cannot be read: {in_one_line(error)}.") from None

    def _check(self, file: SourceFile, stamp: Stamp) -> Stamp:
        """Return a file's stamp of now, in which the time of a change may be another one: links change it too.

        Raises:
            DataError: It is another file, or was written to, since it had `stamp`.
        """
        now = self._stamp(file)
        if replace(now, changed=stamp.changed) != stamp:
            raise DataError(
                f"{file.name}: was changed while it was read; run again when nothing writes to it."
            )
        return now


def open_rows(
    source: DataSource | SourceFile | Path,
    *,
    base_folder: Path = Path(),
    first: int | None = None,
    null_in_tables: bool = False,
    with_text: bool = False,
) -> OpenedRows:
    """Find a source and open its rows; a hub set comes from the local cache when the hub is out of reach.

    Code that a data set brings along is never run.

    Args:
        source: A data set of the study file (its format, language and limit are the caller's), or one file.
        base_folder: Folder that relative file names start from.
        first: Only so many rows of each file, or of the hub's set; None: all.
        null_in_tables: See `OpenedRows`.
        with_text: Take a .txt file too, whose lines are rows with the field `prompt`.

    Raises:
        DataError: There is no such file or hub id, its ending is not known, the hub cannot be reached, an option
            does not fit, or the cached copy is of another commit.
    """
    if isinstance(source, Path):
        source = SourceFile(source, str(source))
    if isinstance(source, SourceFile):
        files = checked_files([source], with_text=with_text)
        return OpenedRows(source.name, files, first=first, null_in_tables=null_in_tables)
    if not is_local(source.source, base_folder):
        hub = _load_hub(source)
        return OpenedRows(source.source, hub=hub, revision=commit_of(hub.cache_files), first=first)
    files = local_files(source, base_folder, with_text=with_text)
    return OpenedRows(source.source, files, first=first, null_in_tables=null_in_tables)


def local_files(source: DataSource, base_folder: Path, *, with_text: bool) -> tuple[SourceFile, ...]:
    """Return the files of a source that is local; see `open_rows`."""
    given = options_given(source, "config", "revision", "split")
    if given:
        raise DataError(f"{source.source}: a local file has no {given}: leave that out, or give a hub id.")
    return checked_files(files_of(source.source, base_folder), with_text=with_text)


def options_given(spec: DataSource, *names: str) -> str:
    """Return which options differ from their defaults, with their values, for a message; "" for none."""
    defaults = DataSource(source=spec.source)
    given = {name: getattr(spec, name) for name in names if getattr(spec, name) != getattr(defaults, name)}
    return ", ".join(f"{name} ({value!r})" for name, value in given.items())


def check_hub_id(spec: DataSource) -> None:
    """Refuse a source that is not local and no hub id.

    Raises:
        DataError: Naming the value.
    """
    if not _HUB_ID.fullmatch(spec.source) or len(spec.source) > _LONGEST_ID:
        shown = spec.source if len(spec.source) <= _LONGEST_ID else spec.source[:_LONGEST_ID] + "..."
        raise DataError(
            f"{shown!r} is neither a worldbook set, a local file ({', '.join(SUFFIXES)}) or folder, nor a hub id "
            "(NAME or OWNER/NAME)."
        )


def _load_hub(spec: DataSource) -> Dataset:
    check_hub_id(spec)
    if os.path.isdir(spec.source):  # noqa: PTH112 - never raises; the datasets library would take the folder in place of the hub
        raise DataError(
            f"{spec.source!r} is no folder beside the study file, but one here, which would be read in place of the "
            "hub: run elsewhere for the hub, or write the folder's whole path."
        )
    from datasets import load_dataset

    advice = (
        f"{spec.source}: cannot be read from the Hugging Face hub (configuration {spec.config}, split {spec.split}, "
        f"revision {spec.revision}). Check the id and the connection (HF_HUB_OFFLINE must not be set), or give a "
        "local file"
    )
    with as_data_error(advice):
        data: Dataset = load_dataset(spec.source, spec.config, split=spec.split, revision=spec.revision)
    commit = commit_of(data.cache_files)
    wanted = spec.revision or ""
    # Offline, the datasets library takes whatever it has cached, whatever revision was asked for.
    if _PINNED.fullmatch(wanted) and commit is not None and not commit.startswith(wanted):
        raise DataError(f"{spec.source}: revision {wanted} was asked for, but only {commit} is in the cache.")
    return data


def commit_of(cache_files: Iterable[Mapping[str, str]]) -> str | None:
    """Return the commit in the path of the prepared files: .../CONFIGURATION/VERSION/COMMIT/FILE.arrow."""
    folders = {Path(file["filename"]).parent.name for file in cache_files}
    commits = [folder for folder in folders if _COMMIT.fullmatch(folder)]
    return commits[0] if len(commits) == 1 else None
