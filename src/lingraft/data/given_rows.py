"""Rows as a script has them: a file, a data source, a `datasets.Dataset`, dicts, or examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from lingraft.config.schema import DataSource
from lingraft.data.example import Example
from lingraft.data.sources import LoadedData, data_source_of, load_data, load_rows, split_data
from lingraft.errors import DataError

GivenRows: TypeAlias = (
    str | Path | DataSource | Mapping[str, Any] | LoadedData | Iterable[Example] | Iterable[Mapping[str, Any]]
)
"""A file or other source by its name, the same with options (`{"source": ..., "limit": ...}`), or the rows themselves:
dicts of any format that a file may have, a `datasets.Dataset`, examples, or what `load_data` returns."""


def rows_of(
    given: GivenRows, name: str, *, seed: int = 0, noted: Callable[[str], None] = lambda _: None
) -> Sequence[Example]:
    """Return rows as examples; none of no rows.

    Args:
        given: See `GivenRows`; of a source with a `limit` so many are drawn.
        name: What messages call rows that have no name of their own.
        seed: Decides what a limit draws.
        noted: Called with a sentence that counts the broken rows, which are left out.

    Raises:
        ConfigError: A field of a source is wrong.
        DataError: They are no rows, or as `load_data`.
    """
    limit = None
    if isinstance(given, (str, Path, DataSource, Mapping)):
        source = data_source_of(given, name)
        loaded, limit, name = load_data(source), source.limit, source.source
    elif isinstance(given, LoadedData):
        loaded = given
    elif not isinstance(given, Iterable):
        raise DataError(
            f"{name}: {type(given).__name__} is no set of rows: give a file's name or a list of dicts."
        )
    else:
        listed: Sequence[Any] = given if isinstance(given, Sequence) else list(given)
        kinds = {type(one) for one in listed}
        if kinds <= {Example}:
            return listed
        others = sorted(kind.__name__ for kind in kinds if not issubclass(kind, Mapping))
        if others:
            raise DataError(
                f"{name}: a row is a dict such as {{'instruction': ..., 'output': ...}} or {{'messages': [...]}}, and "
                f"these are {', '.join(others)}."
            )
        loaded = load_rows(listed, DataSource(source=name))
    if loaded.broken:
        first = loaded.broken[0]
        noted(
            f"{name}: {len(loaded.broken)} of {loaded.n_rows} rows are broken and left out; the first: {first.place}: "
            f"{first.problem}"
        )
    if limit is None:
        return loaded.examples
    return split_data(loaded, limit=limit, held_out_groups=0, seed=seed).train
