"""What `lingraft show data` prints: counts, languages, lengths, the cost of each language, one example."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lingraft.config.schema import DataSource
from lingraft.data.chat import chat_template, encode_examples, show_supervision, truncate
from lingraft.data.example import Example
from lingraft.data.sources import BrokenRow, load_data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENGLISH = "en"

_WITHOUT_SPACES = frozenset({"ja", "zh", "th", "lo", "km", "my", "yue"})  # words are not set apart by spaces
_BATCH = 256
_NO_LIMIT = sys.maxsize


@dataclass(frozen=True)
class LanguageCost:
    """What the tokenizer makes of one language's text (the turns alone, without the chat template).

    Attributes:
        examples: Rows in this language.
        tokens: Tokens of their turns.
        tokens_per_word: Words are what white space separates; None for languages that write without it.
        tokens_per_character: Characters are Unicode code points.
        words_against_english: tokens_per_word divided by English's in the same data; None without English.
        characters_against_english: The same per character. Above 1: the language costs more than English. Text
            per character says less between scripts than between languages of one script.
    """

    examples: int
    tokens: int
    tokens_per_word: float | None
    tokens_per_character: float
    words_against_english: float | None
    characters_against_english: float | None


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
        broken: Rows that cannot be used.
        languages: By BCP-47 tag, the most frequent first.
        lengths: In tokens; `supervised` counts what is left after truncation.
        max_length: Where examples are cut off.
        truncated: Examples that are, and keep some of their answer.
        unanswered: Examples of whose answer nothing is left then; training leaves them out.
        refused: Examples that the chat template refuses; training leaves them out.
        example: The first example, its supervised part between ⟦ and ⟧.
    """

    source: str
    format: str
    fallback_template: bool
    rows: int
    broken: tuple[BrokenRow, ...]
    languages: dict[str, LanguageCost]
    lengths: TokenLengths
    max_length: int
    truncated: int
    unanswered: int
    refused: tuple[BrokenRow, ...]
    example: str

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
) -> DataSummary:
    """Read a whole data set and say what training would see of it.

    Args:
        spec: Where the data lie; its limit is not applied.
        tokenizer: Whose tokens are counted and whose template is used.
        max_length: Where examples are cut off, in tokens.
        base_folder: Folder that relative file names start from.

    Raises:
        DataError: The data cannot be read (see `load_data`), or the template refuses every example.
        ModelError: The template does not allow to tell the assistant's tokens.
    """
    loaded = load_data(spec, base_folder=base_folder)
    whole = encode_examples(loaded.examples, tokenizer, _NO_LIMIT)
    lengths = np.array([len(one.input_ids) for one in whole.examples])
    cut = [truncate(one, max_length) for one in whole.examples]
    unanswered = sum(not any(one.supervised) for one in cut)
    return DataSummary(
        source=spec.source,
        format=loaded.format,
        fallback_template=chat_template(tokenizer)[1],
        rows=loaded.n_rows,
        broken=loaded.broken,
        languages=language_costs(loaded.examples, tokenizer),
        lengths=TokenLengths(
            median=float(np.median(lengths)),
            p95=float(np.percentile(lengths, 95)),
            longest=int(lengths.max()),
            total=int(lengths.sum()),
            supervised=sum(sum(one.supervised) for one in cut),
        ),
        max_length=max_length,
        truncated=int((lengths > max_length).sum()) - unanswered,
        unanswered=unanswered,
        refused=whole.dropped,
        example=show_supervision(cut[0], tokenizer),
    )


def language_costs(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
) -> dict[str, LanguageCost]:
    """Return per language how many tokens the tokenizer needs for its text, against English where there is some."""
    rows = Counter(example.language for example in examples)
    tokens, words, characters = Counter[str](), Counter[str](), Counter[str]()
    turns = [(example.language, message.content) for example in examples for message in example.messages]
    for start in range(0, len(turns), _BATCH):
        batch = turns[start : start + _BATCH]
        ids = tokenizer([text for _, text in batch], add_special_tokens=False, verbose=False)["input_ids"]
        for (language, text), own in zip(batch, ids, strict=True):
            tokens[language] += len(own)
            words[language] += len(text.split())
            characters[language] += len(text)
    per_word = {
        language: None if language.split("-")[0] in _WITHOUT_SPACES else tokens[language] / words[language]
        for language in rows
    }
    per_character = {language: tokens[language] / characters[language] for language in rows}
    return {
        language: LanguageCost(
            examples=count,
            tokens=tokens[language],
            tokens_per_word=per_word[language],
            tokens_per_character=per_character[language],
            words_against_english=_ratio(per_word[language], per_word.get(ENGLISH)),
            characters_against_english=_ratio(per_character[language], per_character.get(ENGLISH)),
        )
        for language, count in rows.most_common()
    }


def _ratio(value: float | None, english: float | None) -> float | None:
    return None if value is None or english is None else value / english


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value
