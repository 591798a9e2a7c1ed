"""Which rows of several languages say the same: `parallel: id` and `parallel: rows`.

Without it a row's field `group` tells (see `data.formats`). Groups are kept whole where rows are held out, and parallel
text is what tokenizer cost and replay of English compare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from lingraft.data.example import Example
from lingraft.data.example_table import columns_of
from lingraft.data.row_fields import RowError
from lingraft.errors import DataError

Parallel = Literal["id", "rows"]


class Grouper:
    """Gives each row its group, in the order of the source."""

    def __init__(self, parallel: Parallel | None) -> None:
        self._parallel = parallel
        self._rows: Counter[str] = Counter()

    def grouped(self, example: Example, *, has_id: bool) -> Example:
        """Return the example in its group; its id then begins with the language, as parallel rows may share theirs.

        Raises:
            RowError: The row has no id of its own, but `parallel: id` needs it.
        """
        if self._parallel is None:
            return example
        if self._parallel == "id":
            if not has_id:
                raise RowError("id", "is missing; `parallel: id` needs it (or name it: fields: {id: FIELD})")
            group = f"id-{example.id}"
        else:
            group = f"row-{self._rows[example.language]}"
            self._rows[example.language] += 1
        return replace(example, group=group, id=f"{example.language}/{example.id}")

    def check(self, source: str, broken: int) -> None:
        """Refuse rows that cannot be counted off against each other.

        Raises:
            DataError: With `parallel: rows`, a row is broken or the languages have different numbers of rows.
        """
        if self._parallel != "rows":
            return
        if broken:
            raise DataError(
                f"{source}: {broken} rows are broken, so `parallel: rows` cannot tell which rows belong together; mend "
                "them, or use `parallel: id`."
            )
        if len(set(self._rows.values())) > 1:
            counts = ", ".join(f"{language} {count}" for language, count in sorted(self._rows.items()))
            raise DataError(f"{source}: `parallel: rows` needs as many rows of each language, not {counts}.")


def incomplete_groups(examples: Sequence[Example]) -> int:
    """Return in how many groups a language of the data set is missing."""
    columns = columns_of(examples)
    pairs = np.unique(columns.group.astype(np.int64) * len(columns.languages) + columns.language)
    languages = np.bincount(pairs // max(1, len(columns.languages)), minlength=columns.groups)
    return int((languages < len(columns.languages)).sum())
