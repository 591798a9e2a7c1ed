"""What `lingraft show data` prints: counts, languages, lengths, the cost of each language, one example."""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lingraft.config.schema import DataSource
from lingraft.data.chat import (
    chat_template,
    cut_batch,
    encode_example,
    encode_whole,
    show_supervision,
    truncate,
)
from lingraft.data.encoded import EncodedBatch, EncodedExample
from lingraft.data.example import Example
from lingraft.data.sources import BrokenRow, load_data
from lingraft.data.spool import Spool
from lingraft.data.tokenizer_cost import LanguageCost, cost_warnings, language_costs
from lingraft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LISTED_ROWS = 10  # of those that are left out; all of them are counted


@dataclass(frozen=True)
class TokenLengths:
    """Lengths of the encoded examples in tokens, template included, before truncation."""

    median: float
    p95: float
    longest: int
    total: int
    supervised: int


@dataclass(frozen=True)
class DataSummary:
    """A data set as training would see it.

    Attributes:
        source: As the user named it.
        format: Of its rows.
        fallback_template: Whether the tokenizer has no chat template of its own.
        rows: Read, broken ones included.
        broken: How many of them cannot be used.
        first_broken: The first ten of these.
        filtered: Rows that the filters left out, by reason, and those whose language could not be told.
        incomplete_groups: Parallel groups that lack a language; None: the rows are not said to be parallel.
        languages: By BCP-47 tag, the most frequent first.
        warnings: A sentence for each language that costs more than four times English.
        lengths: In tokens; `supervised` counts what is left after truncation.
        max_length: Where examples are cut off.
        truncated: Examples that are, and keep some of their answer.
        unanswered: Examples of whose answer nothing is left then; training leaves them out.
        refused: Examples that the chat template refuses; training leaves them out.
        first_refused: The first ten of these.
        example: The first example, its supervised part between ⟦ and ⟧.
        handled: What was done to examples; see `data.chat.WholeBatch`.
        unknown_keys: Of keys in messages that nothing reads, the rows that have them.
    """

    source: str
    format: str
    fallback_template: bool
    rows: int
    broken: int
    first_broken: tuple[BrokenRow, ...]
    filtered: dict[str, int]
    incomplete_groups: int | None
    languages: dict[str, LanguageCost]
    warnings: tuple[str, ...]
    lengths: TokenLengths
    max_length: int
    truncated: int
    unanswered: int
    refused: int
    first_refused: tuple[BrokenRow, ...]
    example: str
    handled: dict[str, int]
    unknown_keys: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain JSON values; ratios are rounded to 4 digits after the point."""
        plain: dict[str, Any] = _rounded(asdict(self))
        return plain


def summarise_data(
    spec: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 1024,
    base_folder: Path = Path(),
    on_progress: Callable[[str, int, int], None] | None = None,
) -> DataSummary:
    """Read a whole data set and say what training would see of it; memory grows by some 50 bytes for each row.

    Args:
        spec: Where the data lie; its limit is not applied.
        tokenizer: Whose tokens are counted and whose template is used.
        max_length: Where examples are cut off, in tokens.
        base_folder: Folder that relative file names start from.
        on_progress: Called with the step (read, tokenise), how far it is, and how far it goes (0: unknown).

    Raises:
        DataError: The data cannot be read (see `load_data`), or the template refuses every example.
        ModelError: The template does not allow to tell the assistant's tokens.
    """
    reading, encoding = (partial(on_progress, step) if on_progress else None for step in ("read", "tokenise"))
    loaded = load_data(spec, base_folder=base_folder, on_progress=reading)
    lengths = _Lengths(max_length)
    refused: Spool[BrokenRow] = Spool(BrokenRow.to_json, BrokenRow.from_json)
    handled: Counter[str] = Counter()
    first: Example | None = None
    for batch in encode_whole(loaded.examples, tokenizer, encoding):
        lengths.add(batch.encoded)
        refused.extend(batch.refused)
        handled += batch.handled
        first = first or next(iter(batch.examples), None)
    left_out = refused.finish()
    if first is None:
        why = f" The first: {left_out[0].place}: {left_out[0].problem}." if left_out else ""
        raise DataError(f"{spec.source}: no example can be encoded out of {len(loaded.examples)}.{why}")
    costs = language_costs(loaded.examples, tokenizer)
    return DataSummary(
        source=spec.source,
        format=loaded.format,
        fallback_template=chat_template(tokenizer)[1],
        rows=loaded.n_rows,
        broken=len(loaded.broken),
        first_broken=tuple(loaded.broken[:LISTED_ROWS]),
        filtered=dict(loaded.filtered),
        incomplete_groups=loaded.incomplete_groups,
        languages=costs,
        warnings=tuple(cost_warnings(costs)),
        lengths=lengths.summary(),
        max_length=max_length,
        truncated=lengths.longer - lengths.unanswered,
        unanswered=lengths.unanswered,
        refused=len(left_out),
        first_refused=tuple(left_out[:LISTED_ROWS]),
        example=show_supervision(truncate(_encoded(first, tokenizer), max_length), tokenizer),
        handled=dict(sorted(handled.items())),
        unknown_keys=dict(loaded.unknown_keys),
    )


def _encoded(example: Example, tokenizer: PreTrainedTokenizerBase) -> EncodedExample:
    return encode_example(example, tokenizer, sys.maxsize)


@dataclass
class _Lengths:
    """Collects lengths batch by batch: 4 bytes for each row."""

    max_length: int
    lengths: array[int] = field(default_factory=lambda: array("i"))
    supervised: int = 0
    unanswered: int = 0

    def add(self, batch: EncodedBatch) -> None:
        self.lengths.frombytes(batch.lengths.astype(np.int32).tobytes())
        cut, unanswered = cut_batch(batch, self.max_length)
        self.supervised += int(cut.supervised.sum())
        self.unanswered += len(unanswered)

    def summary(self) -> TokenLengths:
        lengths = np.frombuffer(self.lengths, np.int32)
        return TokenLengths(
            median=float(np.median(lengths)),
            p95=float(np.percentile(lengths, 95)),
            longest=int(lengths.max()),
            total=int(lengths.sum(dtype=np.int64)),
            supervised=self.supervised,
        )

    @property
    def longer(self) -> int:
        return int((np.frombuffer(self.lengths, np.int32) > self.max_length).sum())


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value
