"""What `lingraft show data` prints: counts, languages, lengths, the cost of each language, one example."""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lingraft.config.schema import DataSource, Filters
from lingraft.data.chat import cut_batch, encode_example, encode_whole, show_supervision, truncate
from lingraft.data.chat_template import chat_template
from lingraft.data.encoded import EncodedBatch
from lingraft.data.example import UNDETERMINED_LANGUAGE, Example
from lingraft.data.example_table import columns_of, select
from lingraft.data.filters import EXACT_DUPLICATE, RowFilter, special_tokens_in
from lingraft.data.language_id import CLEAR_SHARE, known_tags, shares_of_languages
from lingraft.data.sources import BrokenRow, LoadedData, allowing_share, check_something_left, load_data
from lingraft.data.spool import Spool
from lingraft.data.tokenizer_cost import LanguageCost, cost_warnings, language_costs
from lingraft.errors import DataError
from lingraft.text.language_tags import nearest_language

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LISTED_ROWS = 10  # of those that are left out; all of them are counted
_LISTED_TOKENS = 5
_LISTED_LANGUAGES = 3
_LISTED_SHARE = 0.01
_GUESSED_ROWS = 500
_CHECKED_ROWS = 100  # of each language that rows do say
_GUESSED_CHARACTERS = 1000


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
    """A data set as training would see it."""

    source: str  # as the user named it
    format: str  # of its rows
    fallback_template: bool  # whether the tokenizer has no chat template of its own
    rows: int  # read, broken ones included
    first_rows: int | None  # only so many rows of each file were read; None: all
    broken: int  # how many of them cannot be used
    first_broken: tuple[BrokenRow, ...]  # the first ten of these
    without_answer: int  # how many of the broken ones have no answer and no other fault
    duplicates: int  # rows whose text an earlier row of their language has, of those that can be used
    # Special tokens that answers spell as text -> rows that do, the most frequent first.
    special_tokens: dict[str, int]
    # Of the rows that do not say their language, by the identifier -> share of those that are long enough
    # to tell (a sample of 500), the most frequent first.
    guessed_languages: dict[str, float]
    # Rows that the filters left out, by reason, and those whose language is undetermined.
    filtered: dict[str, int]
    # Parallel groups in which a language is missing; None: the rows are not said to be parallel.
    incomplete_groups: int | None
    languages: dict[str, LanguageCost]  # by BCP-47 tag, the most frequent first
    # A sentence for each language that costs more than four times English, and for what a filter or an
    # option would mend.
    warnings: tuple[str, ...]
    lengths: TokenLengths  # in tokens; `supervised` counts what is left after truncation
    max_length: int  # where examples are cut off
    truncated: int  # examples that are, and keep some of their answer
    unanswered: int  # examples of whose answer nothing is left then; training leaves them out
    refused: int  # examples that the chat template refuses; training leaves them out
    first_refused: tuple[BrokenRow, ...]  # the first ten of these
    example: str  # the first example, its supervised part between ⟦ and ⟧
    handled: dict[str, int]  # what was done to examples; see `data.chat.WholeBatch`
    unknown_keys: dict[str, int]  # of keys in messages that nothing reads, the rows that have them

    def to_json(self) -> Any:
        """Return the summary as JSON values; ratios are rounded to 4 digits after the point."""
        return _rounded(asdict(self))


def summarise_data(
    spec: DataSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 1024,
    base_folder: Path = Path(),
    on_progress: Callable[[str, int, int], None] | None = None,
    first_rows: int | None = None,
) -> DataSummary:
    """Read a whole data set and say what training would see of it; memory grows by some 50 bytes for each row.

    Args:
        spec: Where the data lie; its limit is not applied.
        tokenizer: Whose tokens are counted and whose template is used.
        max_length: Where examples are cut off, in tokens.
        base_folder: Folder that relative file names start from.
        on_progress: Called with the step (read, tokenise), how far it is, and how far it goes (0: unknown).
        first_rows: Look at the first so many rows of each file alone; None: at all.

    Raises:
        DataError: The data cannot be read (see `load_data`), or the template refuses every example.
        ModelError: The template does not show which tokens are the assistant's.
    """
    reading, encoding = (partial(on_progress, step) if on_progress else None for step in ("read", "tokenise"))
    loaded = load_data(spec, base_folder=base_folder, on_progress=reading, first=first_rows)
    check_something_left(loaded, spec.source)
    lengths, contents = _Lengths(max_length), _Contents()
    refused: Spool[BrokenRow] = Spool(BrokenRow.to_json, BrokenRow.from_json)
    handled: Counter[str] = Counter()
    first: Example | None = None
    for batch in encode_whole(loaded.examples, tokenizer, encoding):
        lengths.add(batch.encoded)
        for example in batch.examples:
            contents.add(example)
        refused.extend(batch.refused)
        handled += batch.handled
        first = first or next(iter(batch.examples), None)
    left_out = refused.finish()
    if first is None:
        why = f" The first: {left_out[0].place}: {left_out[0].problem}." if left_out else ""
        raise DataError(f"{spec.source}: no example can be encoded out of {len(loaded.examples)}.{why}")
    costs = language_costs(loaded.examples, tokenizer)
    guessed = _languages_by_identifier(loaded.examples, UNDETERMINED_LANGUAGE, _GUESSED_ROWS)
    return DataSummary(
        source=spec.source,
        format=loaded.format,
        fallback_template=chat_template(tokenizer)[1],
        rows=loaded.n_rows,
        first_rows=first_rows,
        broken=len(loaded.broken),
        first_broken=tuple(loaded.broken[:LISTED_ROWS]),
        without_answer=loaded.without_answer,
        duplicates=contents.duplicates,
        special_tokens=dict(contents.special_tokens.most_common()),
        guessed_languages=guessed,
        filtered=dict(loaded.filtered),
        incomplete_groups=loaded.incomplete_groups,
        languages=costs,
        warnings=(*cost_warnings(costs), *_warnings(loaded, guessed, contents)),
        lengths=lengths.summary(),
        max_length=max_length,
        truncated=lengths.longer - lengths.unanswered,
        unanswered=lengths.unanswered,
        refused=len(left_out),
        first_refused=tuple(left_out[:LISTED_ROWS]),
        example=show_supervision(
            truncate(encode_example(first, tokenizer, sys.maxsize), max_length), tokenizer
        ),
        handled=dict(sorted(handled.items())),
        unknown_keys=dict(loaded.unknown_keys),
    )


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


@dataclass
class _Contents:
    """Counts row by row what filters would leave out or take out; some 100 bytes for each row."""

    special_tokens: Counter[str] = field(default_factory=Counter)
    with_special_tokens: int = 0
    _repeated: RowFilter = field(default_factory=lambda: RowFilter(Filters(near_duplicates=1.0)))

    def add(self, example: Example) -> None:
        self._repeated.reason(example)
        found = set(special_tokens_in(example))
        self.special_tokens.update(found)
        self.with_special_tokens += bool(found)

    @property
    def duplicates(self) -> int:
        return self._repeated.counts[EXACT_DUPLICATE]


def _languages_by_identifier(examples: Sequence[Example], claimed: str, rows: int) -> dict[str, float]:
    """Return in which languages the rows are that claim one, by so many of them at most."""
    columns = columns_of(examples)
    if claimed not in columns.languages:
        return {}
    claiming = np.flatnonzero(columns.language == columns.languages.index(claimed))
    chosen = claiming[np.unique(np.linspace(0, len(claiming) - 1, rows).astype(np.int64))]
    texts = (" ".join(turn.content for turn in one.messages) for one in select(examples, chosen))
    return shares_of_languages(text[:_GUESSED_CHARACTERS] for text in texts)


def _warnings(loaded: LoadedData, guessed: dict[str, float], contents: _Contents) -> Iterator[str]:
    """Yield a sentence for what an option or a filter would mend, with what to write."""
    broken, accepted = len(loaded.broken), DataSource(source="any").max_broken_share
    if broken / loaded.n_rows > accepted:  # here they are shown, a study stops
        yield (
            f"A study refuses this set: {broken / loaded.n_rows:.0%} of its rows are broken, and at most "
            f"{accepted:.0%} may be. Mend them, or write `max_broken_share: {allowing_share(broken, loaded.n_rows)}` "
            "beside the source to leave them out."
        )
    if guessed:
        tag, share = next(iter(guessed.items()))
        most = list(guessed.items())[:_LISTED_LANGUAGES]
        listed = ", ".join(f"{share:.0%} {tag}" for tag, share in most if share >= _LISTED_SHARE)
        advice = (
            f"write `language: {tag}` (--language {tag})"
            if share >= CLEAR_SHARE
            else "give each language a file of its own ({language}.jsonl) or the rows a field `language`; `language: "
            f"{tag}` with `filters: {{language: true}}` keeps one of them"
        )
        yield f"Rows do not say their language; by the identifier it is: {listed}. If that is right, {advice}."
    languages = columns_of(loaded.examples).languages
    for claimed in known_tags(languages):  # a file named my.jsonl need not be Burmese
        found = _languages_by_identifier(loaded.examples, claimed, _CHECKED_ROWS)
        tag, share = next(iter(found.items()), (claimed, 0.0))
        if share >= CLEAR_SHARE and nearest_language(claimed, (tag,)) is None:
            alone = f"write `language: {tag}` (--language {tag}), or " if len(languages) == 1 else ""
            yield (
                f"Rows of {claimed}, as they or their file's name say, look like {tag} to the identifier "
                f"({share:.0%}). If that is right, {alone}leave them out by `filters: {{language: true}}` "
                "(--language-filter)."
            )
    if contents.special_tokens:
        listed = ", ".join(repr(token) for token, _ in contents.special_tokens.most_common(_LISTED_TOKENS))
        yield (
            f"{contents.with_special_tokens} rows spell special tokens in their answers ({listed}), which a model "
            "would learn to write: `filters: {special_tokens: strip}` (--special-tokens strip) takes them out, `drop` "
            "leaves the rows out."
        )
    if loaded.without_answer:
        yield (
            f"{loaded.without_answer} rows have no answer and count as broken: `filters: {{no_answer: true}}` "
            "(--no-answer-filter) leaves them out instead."
        )
    if contents.duplicates:
        yield (
            f"{contents.duplicates} rows say what an earlier one says: `filters: {{near_duplicates: 1}}` "
            "(--near-duplicates 1) leaves them out, 0.8 also what is nearly the same."
        )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value
