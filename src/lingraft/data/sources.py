"""From a DataSource of the study file to examples: read, count what is broken, split, limit.

`load_data` reads everything there is; `split_data` sets groups aside that are never trained on and takes the
training rows from the rest.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from heapq import merge
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from lingraft.config.load import section_of
from lingraft.config.paths import path_of
from lingraft.config.schema import DataSource
from lingraft.data.conversations import unknown_keys
from lingraft.data.example import Example
from lingraft.data.example_table import (
    Columns,
    Duplicate,
    ExampleCollector,
    Rows,
    columns_of,
    select,
    sorted_by_digest,
)
from lingraft.data.field_paths import with_field_paths
from lingraft.data.files import is_local
from lingraft.data.filters import RowFilter
from lingraft.data.formats import OASST_TREES, detect_format, example_from_row
from lingraft.data.parallel import Grouper, incomplete_groups
from lingraft.data.readers import RawRow, row_of
from lingraft.data.row_fields import AnswerError, is_nothing
from lingraft.data.rows import check_hub_id, local_files, open_rows, options_given
from lingraft.data.spool import Spool
from lingraft.data.trees import conversations_of
from lingraft.errors import ConfigError, DataError, escape_control_characters
from lingraft.records import canonical_json

WORLDBOOK_PREFIX = "worldbook:"
WORLDBOOK_FORMAT = "worldbook"
SAME_FILE = "same_file_again"  # files, not rows: named more than once, by links or patterns, and read once

_LISTED_PLACES = 5
_PROBLEM_CHARACTERS = 500
_UNKNOWN_KEYS = 100  # different ones that are counted by name
_OTHER_KEYS = "(other keys)"
_ROWS_PER_REPORT = 10_000
_ROWS_WITHOUT_FORMAT = 100_000  # rows kept in memory while none has a known format


@dataclass(frozen=True)
class BrokenRow:
    """A row that was left out: where it stands (`file.jsonl:17`) and what is wrong with it."""

    place: str
    problem: str

    def to_json(self) -> list[str]:
        """Return it as JSON values."""
        return [self.place, self.problem]

    @classmethod
    def from_json(cls, values: list[str]) -> BrokenRow:
        """Return what `to_json` was called on."""
        return cls(*values)


@dataclass(frozen=True)
class LoadedData:
    """A data set as it was read, before any limit; its rows are not shown when it is printed."""

    # Every row that could be used, in the order of the source; a tuple where they are few (16 MB), else a
    # sequence that reads them from a nameless temporary file (see `data.spool`).
    examples: Sequence[Example] = field(repr=False)
    format: str  # one of `formats.FORMATS`, or "worldbook"
    n_rows: int  # rows read, broken ones included; blank lines are no rows
    broken: Sequence[BrokenRow] = field(repr=False)  # the rows left out
    content_hash: str  # SHA-256 of a file's bytes, else of the examples
    revision: str | None = None  # the commit of a hub data set, where known
    # Rows that `filters` left out or changed, by reason, and those whose language is undetermined; and SAME_FILE.
    filtered: Mapping[str, int] = field(default_factory=dict)
    without_answer: int = 0  # how many of the broken rows have no answer and no other fault
    # Groups in which a language of the set is missing; None: the rows are not said to be parallel.
    incomplete_groups: int | None = None
    # Of keys in messages that nothing reads, the rows that have them.
    unknown_keys: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSplit:
    """Training rows and the rows that are never trained on."""

    train: Sequence[Example]  # in the order in which they were drawn
    # All rows of the held-out groups, whatever their language, in the order of the source.
    held_out: Sequence[Example]
    held_out_groups: int  # how many groups these are
    available: int  # rows that could have been trained on, before the limit
    requested: int | None  # the limit, or None

    @property
    def shortfall(self) -> int:
        """Rows by which the data set fell short of the limit; 0 without one."""
        return 0 if self.requested is None else max(0, self.requested - len(self.train))


def data_source_of(given: object, place: str = "data") -> DataSource:
    """Return where data lie, of what a user gives: a file, folder, pattern, hub id or `worldbook:...`, or a section.

    Args:
        given: A name or path, a DataSource, or its fields in a mapping.
        place: What messages call it.

    Raises:
        ConfigError: A field is wrong.
        DataError: It is none of these.
    """
    if isinstance(given, (str, Path)):
        return section_of(DataSource, {"source": str(given)}, place)
    if isinstance(given, (DataSource, Mapping)):
        return section_of(DataSource, given, place)
    raise DataError(
        f"{place}: {_named(given)} names no data; give a file, a folder, a hub id or `worldbook:FAMILY/LANGUAGES`, or "
        "the fields of a DataSource. Rows in memory: write them to a .jsonl file first."
    )


def examples_of(given: object, place: str, *, answered: bool) -> Sequence[Example]:
    """Return the examples that a user gives: themselves, as `load_data` returns them, or by where they lie.

    Args:
        given: Examples, LoadedData, or what `data_source_of` takes.
        place: What messages call it.
        answered: Whether rows need an answer.

    Raises:
        DataError, ConfigError: It is none of these, or the data cannot be read.
    """
    if isinstance(given, LoadedData):
        return given.examples
    if isinstance(given, Sequence) and not isinstance(given, str):
        if not given or isinstance(given[0], Example):
            return given
        raise DataError(
            f"{place}: a {type(given).__name__} of {type(given[0]).__name__} holds no lingraft.Example; give where the "
            "rows lie (a .jsonl file), or what load_data returns."
        )
    return load_data(data_source_of(given, place), answered=answered).examples


def _named(given: object) -> str:
    return "None" if given is None else f"a {type(given).__name__}"


def load_data(
    spec: DataSource | str | Path | Mapping[str, Any],
    *,
    base_folder: str | Path = Path(),
    on_progress: Callable[[int, int], None] | None = None,
    answered: bool = True,
    first: int | None = None,
) -> LoadedData:
    """Read all rows of a data set; `spec.limit` is not applied.

    Memory does not grow with the rows but for some 50 bytes each.

    Args:
        spec: Where the data lie and how they are read: a DataSource or its fields, or its `source` alone: a file,
            folder, pattern, hub id or `worldbook:FAMILY/LANGUAGES`.
        base_folder: Folder that relative file names start from.
        on_progress: Called with the lines read so far and their number, 0 where it is unknown.
        answered: Whether rows need an answer. Where instructions alone are read, as for DES, a row without one is
            sound, and its conversation ends with the user's turn.
        first: Read only the first so many rows of each file, or of the hub's or worldbook's set; None: all.

    Raises:
        DataError: The data cannot be had or read, their format is not known, or a larger share of the rows
            than `spec.max_broken_share` is broken; then the first places are listed. Or a file changed meanwhile.
        ConfigError: A field is wrong.
    """
    spec, base_folder = data_source_of(spec), path_of(base_folder, "base_folder")
    if first is not None and (not isinstance(first, int) or first < 1):
        raise ConfigError(f"first {first!r}: must be 1 or more; None reads all rows.")
    if spec.source.startswith(WORLDBOOK_PREFIX):
        return _load_worldbook(spec, first)
    opened = open_rows(spec, base_folder=base_folder, first=first, null_in_tables=True)
    content_hash, lines = opened.hash_and_lines()
    rows = iter(opened) if on_progress is None else _watched(opened, lines, on_progress)
    try:
        loaded = _collect(spec, rows, answered)
    except DataError:
        opened.check_hash(content_hash)  # what broke the rows may have been a write
        raise
    opened.check_hash(content_hash)
    again = sum(len(file.also) for file in opened.files)
    return replace(
        loaded,
        content_hash=content_hash or _content_hash(loaded.examples),
        revision=opened.revision,
        filtered=dict(loaded.filtered) | ({SAME_FILE: again} if again else {}),
    )


def load_rows(rows: Iterable[Mapping[str, Any]], spec: DataSource) -> LoadedData:
    """Read rows that are in memory already, as those of a file; `spec.source` is only what messages call them.

    Raises:
        DataError: As `load_data`.
    """
    found = (row_of(fields, f"{spec.source}:{number}", number) for number, fields in enumerate(rows, start=1))
    loaded = _collect(spec, found, answered=True)
    return replace(loaded, content_hash=_content_hash(loaded.examples))


def split_data(loaded: LoadedData, *, limit: int | None, held_out_groups: int, seed: int) -> DataSplit:
    """Set whole groups aside, and draw the training rows from the others.

    The held-out groups are the first by a salted hash of the group's name: neither seed nor limit changes them. Of the
    rest, at most `limit` rows of the whole set are taken (None: all), from the languages equally (where one has too few
    the others fill up), preferring groups that no other language was given. The seed decides which, and their order. A
    smaller limit with the same seed draws a subset of what a larger one draws.

    Raises:
        DataError: Nothing is left to train on.
    """
    columns = columns_of(loaded.examples)
    is_held_out = _is_held_out(loaded, columns, held_out_groups)
    available: Rows = np.flatnonzero(~is_held_out)
    drawn = draw_rows(loaded.examples, available, limit, seed)
    order = sorted_by_digest(
        select(loaded.examples, drawn), ("order", seed), lambda example: (example.language, example.id)
    )
    return DataSplit(
        train=select(loaded.examples, drawn[order]),
        held_out=select(loaded.examples, np.flatnonzero(is_held_out)),
        held_out_groups=held_out_groups,
        available=len(available),
        requested=limit,
    )


def draw_rows(examples: Sequence[Example], available: Rows, limit: int | None, seed: int) -> Rows:
    """Return the places of at most `limit` of the rows at `available`, in the order of the source.

    They are drawn as `split_data` draws training rows; without a limit none is read.
    """
    if limit is None or limit >= len(available):
        return available
    columns = columns_of(examples)
    order = available[
        sorted_by_digest(
            select(examples, available),
            ("draw", seed),
            lambda example: (example.group, example.language, example.id),
        )
    ]
    waiting = [_Waiting(order[columns.language[order] == code]) for code in range(len(columns.languages))]
    group_of, is_taken = array("i", columns.group.tobytes()), bytearray(columns.groups)
    drawn: list[int] = []
    while len(drawn) < limit:
        for language in waiting:  # in turn, each from a group that is not yet taken if it can
            row = language.next(group_of, is_taken) if len(drawn) < limit else None
            if row is not None:
                is_taken[group_of[row]] = True
                drawn.append(row)
    return np.sort(np.array(drawn, np.int64))


def hold_out(loaded: LoadedData, held_out_groups: int) -> Sequence[Example]:
    """Return the rows that `split_data` never trains on, without drawing the others.

    Raises:
        DataError: Nothing is left to train on.
    """
    is_held_out = _is_held_out(loaded, columns_of(loaded.examples), held_out_groups)
    return select(loaded.examples, np.flatnonzero(is_held_out))


def _is_held_out(loaded: LoadedData, columns: Columns, groups: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    check_something_left(loaded, _name(loaded))
    if groups >= columns.groups:
        raise DataError(
            f"{_name(loaded)}: {groups} groups are to be held out, but there are only {columns.groups}, so "
            "nothing is left for training. Lower `held_out`, or give more data."
        )
    return columns.group < groups


def check_source(spec: DataSource, base_folder: Path, *, with_text: bool = False) -> None:
    """Refuse a source that names nothing: an unknown part of worldbook, missing files, no hub id; nothing is read.

    Args:
        spec: Where the data lie.
        base_folder: Folder that relative file names start from.
        with_text: Take a .txt file too.

    Raises:
        DataError, ConfigError: There is no such thing, or an option does not fit it.
    """
    if spec.source.startswith(WORLDBOOK_PREFIX):
        _check_worldbook(spec)
    elif is_local(spec.source, base_folder):
        local_files(spec, base_folder, with_text=with_text)
    else:
        check_hub_id(spec)


def _check_worldbook(spec: DataSource) -> None:
    from lingraft.data.worldbook import parse_source

    given = options_given(spec, "format", "config", "revision", "fields", "split")
    if given:
        raise DataError(f"{spec.source}: worldbook has no {given}: leave that out.")
    _, languages, _ = parse_source(spec.source)
    if spec.language is not None and set(languages) != {spec.language}:
        raise DataError(
            f"{spec.source}: its languages are {', '.join(sorted(languages))}, not {spec.language}; "
            "leave `language` out, worldbook knows them."
        )


def _load_worldbook(spec: DataSource, first: int | None) -> LoadedData:
    from lingraft.data.worldbook import load_examples

    _check_worldbook(spec)
    examples = load_examples(spec.source)[:first]
    row_filter = RowFilter(spec.filters)
    return LoadedData(
        examples=tuple(example for example in examples if row_filter.reason(example) is None),
        format=WORLDBOOK_FORMAT,
        n_rows=len(examples),
        broken=(),
        content_hash=_content_hash(examples),
        filtered=dict(sorted(row_filter.counts.items())),
    )


def _collect(spec: DataSource, rows: Iterator[RawRow], answered: bool) -> LoadedData:
    """Make examples of the rows; their hash and revision are the caller's to add."""
    if spec.fields:
        rows = with_field_paths(rows, spec.fields)
    format_name, seen = (spec.format, []) if spec.format is not None else _detected(rows, answered)
    rows = chain(seen, rows)
    if format_name == OASST_TREES:
        rows = conversations_of(rows)
    collector, left_out = ExampleCollector(), _LeftOut()
    grouper, row_filter = Grouper(spec.parallel), RowFilter(spec.filters)
    without_answer = 0
    unknown: Counter[str] = Counter()
    ids_given = False
    for row in rows:
        has_id = not is_nothing(row.value.get("id"))
        ids_given = ids_given or has_id
        # Among rows with ids the number of one without may be another's id.
        name = row.place if ids_given and not has_id else row.name or str(row.number)
        try:
            for key in unknown_keys(row.value):
                unknown[key if key in unknown or len(unknown) < _UNKNOWN_KEYS else _OTHER_KEYS] += 1
            if row.problem is not None:
                raise DataError(row.problem)
            if answered and row_filter.leaves_out_rejected(row.value):
                continue
            example = example_from_row(
                row.value,
                format_name,
                id=name,
                source=spec.source,
                language=spec.language or row.language,
                likely_language=row.likely_language,
                fold_system=spec.system == "fold",
                answered=answered,
            )
            example = row_filter.cleaned(grouper.grouped(example, has_id=has_id))
            if row_filter.reason(example) is None:
                collector.add(example, row.place, has_own_id=has_id)
        except RecursionError:
            left_out.add(BrokenRow(row.place, "the row is nested too deeply"), len(collector))
        except DataError as error:
            if isinstance(error, AnswerError):
                if row_filter.leaves_out_unanswered():
                    continue
                without_answer += 1
            left_out.add(BrokenRow(row.place, _as_written(str(error))), len(collector))
    examples, duplicates = collector.finish()
    broken = left_out.finish(duplicates)
    n_rows = len(examples) + len(broken) + row_filter.left_out
    _check_broken(spec, broken, n_rows)
    grouper.check(spec.source, len(broken))
    return LoadedData(
        examples=examples,
        format=format_name,
        n_rows=n_rows,
        broken=broken,
        filtered=dict(sorted(row_filter.counts.items())),
        without_answer=without_answer,
        incomplete_groups=None if spec.parallel is None else incomplete_groups(examples),
        unknown_keys=dict(sorted(unknown.items())),
        content_hash="",
    )


def _as_written(problem: str) -> str:
    """Return a problem as records and pages hold it: of a bounded length, half surrogate pairs and the like escaped."""
    shown = escape_control_characters(problem[:_PROBLEM_CHARACTERS])
    return shown if len(problem) <= _PROBLEM_CHARACTERS else f"{shown}…"


class _LeftOut:
    """The rows that are left out, in the order of the source, although repeated ids are only known at the end."""

    def __init__(self) -> None:
        self._broken: Spool[BrokenRow] = Spool(BrokenRow.to_json, BrokenRow.from_json)
        self._before = array("q")  # examples that had been collected when each of them was met

    def add(self, row: BrokenRow, collected: int) -> None:
        self._broken.append(row)
        self._before.append(collected)

    def finish(self, duplicates: Sequence[Duplicate]) -> Sequence[BrokenRow]:
        broken = self._broken.finish()
        if not duplicates:
            return broken
        advice = "use `parallel: id` for parallel rows"
        repeated = (
            (one.row, 1, BrokenRow(one.place, f"field 'id' is {one.id!r}, as in {one.first_place}; {advice}"))
            for one in duplicates
        )
        met = ((before, 0, row) for before, row in zip(self._before, broken, strict=True))
        both: Spool[BrokenRow] = Spool(BrokenRow.to_json, BrokenRow.from_json)
        both.extend(row for _, _, row in merge(met, repeated, key=lambda one: one[:2]))
        return both.finish()


def _watched(rows: Iterable[RawRow], lines: int, on_progress: Callable[[int, int], None]) -> Iterator[RawRow]:
    """Yield the rows, and report how far the source is read."""
    row = None
    for count, row in enumerate(rows):
        if count % _ROWS_PER_REPORT == 0:
            on_progress(row.number, lines if row.number <= lines else 0)  # a list on one line has more rows
        yield row
    if row is not None:
        read = max(lines, row.number)
        on_progress(read, read)


def _detected(rows: Iterator[RawRow], answered: bool) -> tuple[str, list[RawRow]]:
    """Return the format of the first row that has one, and the rows read so far."""
    seen: list[RawRow] = []
    first_problem: DataError | None = None
    for row in rows:
        seen.append(row)
        try:
            if row.problem is None:
                return detect_format(row.value, answered=answered), seen
        except DataError as error:
            first_problem = first_problem or type(error)(f"{row.place}: {error}")
        if len(seen) == _ROWS_WITHOUT_FORMAT:
            first = first_problem or f"{seen[0].place}: {seen[0].problem}"
            raise DataError(f"none of the first {len(seen)} rows has a known format. The first: {first}")
    if first_problem is not None:
        raise first_problem
    return "unknown", seen  # no row could be read at all: they are all reported as broken


def _check_broken(spec: DataSource, broken: Sequence[BrokenRow], n_rows: int) -> None:
    if n_rows == 0:
        raise DataError(f"{spec.source}: there are no rows in it.")
    share = len(broken) / n_rows
    if share <= spec.max_broken_share:  # not as a product: 0.29 * 100 is less than 29
        return
    counted = (
        f"{len(broken)} of {n_rows} rows ({share:.2%}) are broken, more than max_broken_share allows "
        f"({spec.max_broken_share:.2%})"
    )
    which, them = ("the row", "it") if len(broken) == 1 else ("these rows", "them")
    advice = f"Mend {which}"
    allowing = allowing_share(len(broken), n_rows)
    if allowing < 1:
        advice += (
            f", or write `max_broken_share: {allowing}` beside the source (--max-broken-share {allowing}) to leave "
            f"{them} out"
        )
    if len(broken) == 1:
        raise DataError(f"{broken[0].place}: {broken[0].problem}; {counted}. {advice}.")
    listed = "".join(f"\n  {row.place}: {row.problem}" for row in broken[:_LISTED_PLACES])
    more = f"\n  and {len(broken) - _LISTED_PLACES} more" if len(broken) > _LISTED_PLACES else ""
    raise DataError(f"{spec.source}: {counted}. {advice}:{listed}{more}")


def check_something_left(loaded: LoadedData, name: str) -> None:
    """Check that the filters leave rows of the data set `name`.

    Raises:
        DataError: They leave none.
    """
    if not loaded.examples and loaded.filtered:
        why = ", ".join(f"{reason} {count}" for reason, count in loaded.filtered.items())
        raise DataError(
            f"{name}: the filters leave none of {loaded.n_rows} rows ({why}); take one of them away."
        )


def allowing_share(broken: int, rows: int) -> float:
    """Return the `max_broken_share`, in whole percents, that so many broken ones among some rows need."""
    return math.ceil(round(broken / rows * 100, 6)) / 100


class _Waiting:
    """The rows of one language that are not drawn yet: first those of groups that nobody took, then the others."""

    def __init__(self, rows: Rows) -> None:
        self._fresh = iter(array("q", rows.tobytes()))
        self._passed_over: deque[int] = deque()

    def next(self, group_of: array[int], is_taken: bytearray) -> int | None:
        for row in self._fresh:
            if not is_taken[group_of[row]]:
                return row
            self._passed_over.append(row)
        return self._passed_over.popleft() if self._passed_over else None


def _content_hash(examples: Iterable[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(canonical_json(asdict(example)).encode("utf-8") + b"\n")
    return digest.hexdigest()


def _name(loaded: LoadedData) -> str:
    return loaded.examples[0].source if loaded.examples else "the data set"
