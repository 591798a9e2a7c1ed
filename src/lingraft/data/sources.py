"""From a DataSource of the study file to examples: read, count what is broken, split, limit.

`load_data` reads everything there is; `split_data` sets groups aside that are never trained on and takes the
training rows from the rest.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from lingraft.config.schema import DataSource
from lingraft.data.example import Example
from lingraft.data.formats import RowError, detect_format, example_from_row
from lingraft.data.readers import RawRow, is_file_name, read_file, read_hub
from lingraft.errors import DataError
from lingraft.records import canonical_json, hash_file

WORLDBOOK_PREFIX = "worldbook:"
WORLDBOOK_FORMAT = "worldbook"

_LISTED_PLACES = 5
_HELD_OUT_SALT = "lingraft held-out groups 1"  # changing it changes which rows every study is measured on


@dataclass(frozen=True)
class BrokenRow:
    """A row that was left out: where it stands (`file.jsonl:17`) and what is wrong with it."""

    place: str
    problem: str


@dataclass(frozen=True)
class LoadedData:
    """A data set as it was read, before any limit.

    Attributes:
        examples: Every row that could be used, in the order of the source.
        format: One of `formats.FORMATS`, or "worldbook".
        n_rows: Rows read, broken ones included; blank lines are no rows.
        broken: The rows left out.
        content_hash: SHA-256 of a file's bytes, else of the examples.
        revision: The commit of a hub data set, where known.
    """

    examples: tuple[Example, ...]
    format: str
    n_rows: int
    broken: tuple[BrokenRow, ...]
    content_hash: str
    revision: str | None = None


@dataclass(frozen=True)
class DataSplit:
    """Training rows and the rows that are never trained on.

    Attributes:
        train: In the order in which they were drawn.
        held_out: All rows of the held-out groups, whatever their language, in the order of the source.
        held_out_groups: How many groups these are.
        available: Rows that could have been trained on, before the limit.
        requested: The limit, or None.
    """

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    held_out_groups: int
    available: int
    requested: int | None

    @property
    def shortfall(self) -> int:
        """Rows by which the data set fell short of the limit; 0 without one."""
        return 0 if self.requested is None else max(0, self.requested - len(self.train))


def load_data(spec: DataSource, *, base_folder: Path = Path()) -> LoadedData:
    """Read all rows of a data set; `spec.limit` is not applied.

    Args:
        spec: Where the data lie and how they are read.
        base_folder: Folder that relative file names start from.

    Raises:
        DataError: The data cannot be had or read, their format is not known, or a larger share of the rows
            than `spec.max_broken_share` is broken; then the first places are listed.
    """
    if spec.source.startswith(WORLDBOOK_PREFIX):
        return _load_worldbook(spec)
    path = base_folder / Path(spec.source).expanduser()
    if is_file_name(spec.source) or path.is_file():
        _refuse_hub_options(spec)
        return _collect(spec, read_file(path, spec.source), content_hash=hash_file(path))
    hub = read_hub(spec)
    return _collect(spec, hub.rows, revision=hub.commit)


def split_data(loaded: LoadedData, *, limit: int | None, held_out_groups: int, seed: int) -> DataSplit:
    """Set whole groups aside, and draw the training rows from the others.

    The held-out groups are the first by a salted hash of the group's name: neither seed nor limit changes
    them. Of the rest, at most `limit` rows are taken, from the languages equally (where one has too few
    the others fill up), preferring groups that no other language was given. A smaller limit with the same
    seed draws a subset of what a larger one draws.

    Args:
        loaded: The whole data set.
        limit: Training rows of the whole set; None: all.
        held_out_groups: Groups that are never trained on.
        seed: Decides which rows are drawn, and their order.

    Raises:
        DataError: Nothing is left to train on.
    """
    groups = {example.group for example in loaded.examples}
    if held_out_groups >= len(groups):
        raise DataError(
            f"{_name(loaded)}: {held_out_groups} groups are to be held out, but there are only {len(groups)}, so "
            "nothing is left for training. Lower `held_out`, or give more data."
        )
    kept_out = set(sorted(groups, key=lambda group: _digest(_HELD_OUT_SALT, group))[:held_out_groups])
    available = [example for example in loaded.examples if example.group not in kept_out]
    drawn = _draw(available, len(available) if limit is None else limit, seed)
    return DataSplit(
        train=tuple(sorted(drawn, key=lambda example: _digest("order", seed, example.language, example.id))),
        held_out=tuple(example for example in loaded.examples if example.group in kept_out),
        held_out_groups=held_out_groups,
        available=len(available),
        requested=limit,
    )


def _load_worldbook(spec: DataSource) -> LoadedData:
    from lingraft.data.worldbook import load_examples

    if spec.format is not None or spec.config is not None or spec.revision is not None:
        raise DataError(
            f"{spec.source}: format, config and revision mean nothing for worldbook; leave them out."
        )
    examples = load_examples(spec.source)
    languages = {example.language for example in examples}
    if spec.language is not None and languages != {spec.language}:
        raise DataError(
            f"{spec.source}: its languages are {', '.join(sorted(languages))}, not {spec.language}; "
            "leave `language` out, worldbook knows them."
        )
    return LoadedData(examples, WORLDBOOK_FORMAT, len(examples), (), _content_hash(examples))


def _refuse_hub_options(spec: DataSource) -> None:
    meaningless = [name for name in ("config", "revision") if getattr(spec, name) is not None]
    if spec.split != "train":
        meaningless.append("split")
    if meaningless:
        raise DataError(
            f"{spec.source}: a local file has no {', '.join(meaningless)}: leave that out, or give a hub id."
        )


def _collect(
    spec: DataSource, rows: Iterable[RawRow], *, content_hash: str | None = None, revision: str | None = None
) -> LoadedData:
    rows = iter(rows)
    format_name, seen = (spec.format, []) if spec.format is not None else _detected(rows)
    examples: list[Example] = []
    broken: list[BrokenRow] = []
    place_of: dict[str, str] = {}
    for row in chain(seen, rows):
        try:
            example = _example(row, format_name, spec)
            if example.id in place_of:
                raise RowError(
                    "id", f"is {example.id!r}, as in {place_of[example.id]}; use 'group' for parallel rows"
                )
        except DataError as error:
            broken.append(BrokenRow(row.place, str(error)))
            continue
        place_of[example.id] = row.place
        examples.append(example)
    _check_broken(spec, broken, len(examples) + len(broken))
    return LoadedData(
        examples=tuple(examples),
        format=format_name,
        n_rows=len(examples) + len(broken),
        broken=tuple(broken),
        content_hash=content_hash or _content_hash(examples),
        revision=revision,
    )


def _detected(rows: Iterator[RawRow]) -> tuple[str, list[RawRow]]:
    """Return the format of the first row that has one, and the rows read so far."""
    seen: list[RawRow] = []
    first_problem: str | None = None
    for row in rows:
        seen.append(row)
        try:
            if row.problem is None:
                return detect_format(row.value), seen
        except DataError as error:
            first_problem = first_problem or f"{row.place}: {error}"
    if first_problem is not None:
        raise DataError(first_problem)
    return "unknown", seen  # no row could be read at all: they are all reported as broken


def _example(row: RawRow, format_name: str, spec: DataSource) -> Example:
    if row.problem is not None:
        raise DataError(row.problem)
    return example_from_row(
        row.value, format_name, id=str(row.number), source=spec.source, language=spec.language
    )


def _check_broken(spec: DataSource, broken: list[BrokenRow], n_rows: int) -> None:
    if n_rows == 0:
        raise DataError(f"{spec.source}: there are no rows in it.")
    if len(broken) <= spec.max_broken_share * n_rows:
        return
    listed = "".join(f"\n  {row.place}: {row.problem}" for row in broken[:_LISTED_PLACES])
    more = f"\n  and {len(broken) - _LISTED_PLACES} more" if len(broken) > _LISTED_PLACES else ""
    raise DataError(
        f"{spec.source}: {len(broken)} of {n_rows} rows ({len(broken) / n_rows:.2%}) are broken, more than "
        f"max_broken_share allows ({spec.max_broken_share:.2%}):{listed}{more}\n"
        "Mend these rows, or raise max_broken_share to leave them out."
    )


def _draw(examples: list[Example], limit: int, seed: int) -> list[Example]:
    """Take up to `limit` examples, the languages in turn, each from a group that is not yet taken if it can."""
    fresh: dict[str, deque[Example]] = {
        language: deque() for language in sorted({e.language for e in examples})
    }
    for example in sorted(examples, key=lambda e: _digest("draw", seed, e.group, e.language, e.id)):
        fresh[example.language].append(example)
    passed_over: dict[str, deque[Example]] = {language: deque() for language in fresh}
    taken_groups: set[str] = set()
    drawn: list[Example] = []
    while len(drawn) < min(limit, len(examples)):
        for language, waiting in fresh.items():
            while waiting and waiting[0].group in taken_groups:
                passed_over[language].append(waiting.popleft())
            queue = waiting or passed_over[language]
            if queue and len(drawn) < limit:
                example = queue.popleft()
                taken_groups.add(example.group)
                drawn.append(example)
    return drawn


def _content_hash(examples: Iterable[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(canonical_json(asdict(example)).encode("utf-8") + b"\n")
    return digest.hexdigest()


def _digest(*parts: object) -> bytes:
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode("utf-8")).digest()


def _name(loaded: LoadedData) -> str:
    return loaded.examples[0].source if loaded.examples else "the data set"
