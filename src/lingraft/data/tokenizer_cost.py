"""What a tokenizer makes of each language: tokens per word, per character, and for the same content as English.

A language that needs four times the tokens trains and answers four times slower, and a quarter of it fits `max_length`.
Shown before training, because only another model can change it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lingraft.data.control_tokens import ControlTokens
from lingraft.data.example import Example
from lingraft.data.example_table import Columns, Rows, columns_of, select
from lingraft.data.worldbook import LANGUAGES, load_items
from lingraft.text.language_tags import ENGLISH, nearest_language
from lingraft.text.scripts import writes_spaces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COSTLY = 4.0
"""From how many times English's tokens on a language is warned of."""

MEASURED_ROWS = 2000  # per language; the mean tokens per character of so many rows are known to about 1 %
_FEWEST_GROUPS = 20
_WORLDBOOK_GROUPS = 200
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_BATCH = 256

Basis = Literal["groups", "worldbook"]
_Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True)
class LanguageCost:
    """What the tokenizer makes of one language's text (the turns alone, without the chat template).

    Attributes:
        examples: Rows in this language.
        measured: Rows that were tokenised for this: all, or 2000 spread evenly over the data.
        tokens: Tokens of their turns.
        tokens_per_word: Words are what white space separates; None for languages that write without it.
        tokens_per_character: Characters are Unicode code points.
        partial_share: Share of the tokens, in [0, 1], that are no whole characters: the token alone decodes to
            broken UTF-8 (byte-level BPE), is named <0xNN> (SentencePiece's byte fallback), or is the unknown token.
        words_against_english: tokens_per_word divided by English's, of the data's English rows, else of worldbook's.
        characters_against_english: The same per character. Text per character says less between scripts than
            between languages of one script: a Chinese character says as much as several letters.
        content_against_english: Tokens divided by those of the same content in English; the fairest measure.
            None where there is no parallel text.
        basis: Where the parallel text is from: `groups` of the data that hold both languages (at least 20), else
            `worldbook` in the languages it has: short instructions and answers, with many names, so an estimate.
        parallel_groups: Contents compared.
    """

    examples: int
    measured: int
    tokens: int
    tokens_per_word: float | None
    tokens_per_character: float
    partial_share: float
    words_against_english: float | None
    characters_against_english: float
    content_against_english: float | None
    basis: Basis | None
    parallel_groups: int

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values; ratios are rounded to 4 digits after the point."""
        values = asdict(self)
        return {key: round(one, 4) if isinstance(one, float) else one for key, one in values.items()}

    @property
    def against_english(self) -> float:
        """The fairest ratio to English that there is: content, else characters."""
        content = self.content_against_english
        return self.characters_against_english if content is None else content


def language_costs(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
) -> dict[str, LanguageCost]:
    """Return per language, the most frequent first, what the tokenizer makes of it, against English."""
    columns = columns_of(examples)
    meter = _Meter(tokenizer)
    counts = np.bincount(columns.language, minlength=len(columns.languages))
    texts = {
        tag: meter.count(select(examples, _spread(np.flatnonzero(columns.language == code))))
        for code, tag in enumerate(columns.languages)
    }
    english = texts.get(ENGLISH) or meter.worldbook(ENGLISH)
    english_per_word = english.per_word(ENGLISH)
    costs = {}
    for code in np.argsort(-counts, kind="stable"):
        tag = columns.languages[code]
        text, per_word = texts[tag], texts[tag].per_word(tag)
        content, basis, groups = _parallel(tag, examples, columns, meter) or (None, None, 0)
        costs[tag] = LanguageCost(
            examples=int(counts[code]),
            measured=text.rows,
            tokens=text.tokens,
            tokens_per_word=per_word,
            tokens_per_character=text.per_character,
            partial_share=text.partial / text.tokens if text.tokens else 0.0,
            words_against_english=per_word / english_per_word if per_word and english_per_word else None,
            characters_against_english=text.per_character / english.per_character,
            content_against_english=content,
            basis=basis,
            parallel_groups=groups,
        )
    return costs


def cost_warnings(costs: Mapping[str, LanguageCost]) -> list[str]:
    """Return a sentence for each language that costs more than COSTLY times English."""
    warnings = []
    for tag, cost in costs.items():
        if cost.basis is None:
            on = "per character (no parallel text to compare: unfair to scripts whose characters say more)"
        else:
            source = "groups of the data" if cost.basis == "groups" else "contents of worldbook"
            on = f"for the same content ({cost.parallel_groups} {source})"
        if cost.against_english > COSTLY:
            warnings.append(
                f"{tag} costs {cost.against_english:.1f} times the tokens of English {on}: it trains and answers that "
                "much slower, and max_length holds that much less of it. A model whose tokenizer knows the language "
                "would be cheaper."
            )
    return warnings


@dataclass(frozen=True)
class _Count:
    rows: int
    tokens: int
    partial: int
    words: int
    characters: int

    def per_word(self, language: str) -> float | None:
        return self.tokens / self.words if writes_spaces(language) and self.words else None

    @property
    def per_character(self) -> float:
        return self.tokens / self.characters


class _Meter:
    """Counts tokens, and which of them are no whole characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._control = ControlTokens(tokenizer, str(tokenizer.chat_template or ""))
        self._is_partial = partial_tokens(tokenizer)
        self._worldbook: dict[str, _Count] = {}

    def worldbook(self, language: str) -> _Count:
        """Count the first contents of worldbook, the same in every language."""
        if language not in self._worldbook:
            items = load_items("lookup", language, "train")[:_WORLDBOOK_GROUPS]
            self._worldbook[language] = self.count([item.example for item in items])
        return self._worldbook[language]

    def count(self, examples: Sequence[Example]) -> _Count:
        texts = [message.content for example in examples for message in example.messages]
        tokens = partial = 0
        for start in range(0, len(texts), _BATCH):
            batch = texts[start : start + _BATCH]
            found = self._tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
            for text, ids in zip(batch, found, strict=True):
                marked = self._control.protected(text)
                is_read_otherwise = self._control.has_marks(marked) or self._control.misread(
                    [text], np.array([len(ids)]), np.array(ids, np.int32)
                )
                own = self._control.encode(marked) if is_read_otherwise else ids  # as in training
                tokens += len(own)
                partial += int(self._is_partial[own].sum())
        words = sum(len(text.split()) for text in texts)
        return _Count(len(examples), tokens, partial, words, sum(map(len, texts)))


def partial_tokens(tokenizer: PreTrainedTokenizerBase) -> _Bools:
    """Return for each token id whether the token is no whole characters (see `LanguageCost.partial_share`)."""
    ids = range(len(tokenizer))
    names = tokenizer.convert_ids_to_tokens(list(ids))
    decoded = tokenizer.batch_decode([[one] for one in ids], clean_up_tokenization_spaces=False)
    partial = np.array(
        [
            "\ufffd" in text or _BYTE_TOKEN.fullmatch(name or "") is not None
            for name, text in zip(names, decoded, strict=True)
        ],
        bool,
    )
    replacement = tokenizer("\ufffd", add_special_tokens=False)["input_ids"]
    if len(replacement) == 1:  # the character that stands for broken text may itself be a token
        partial[replacement[0]] = False
    if tokenizer.unk_token_id is not None and tokenizer.unk_token != tokenizer.eos_token:
        partial[tokenizer.unk_token_id] = True
    return partial


def _parallel(
    tag: str, examples: Sequence[Example], columns: Columns, meter: _Meter
) -> tuple[float, Basis, int] | None:
    """Return tokens against English for the same content, where that is from, and the contents compared."""
    if ENGLISH in columns.languages:
        (own_groups, own_rows), (english_groups, english_rows) = (
            (groups, rows[first])
            for rows in (
                np.flatnonzero(columns.language == columns.languages.index(one)) for one in (tag, ENGLISH)
            )
            for groups, first in [np.unique(columns.group[rows], return_index=True)]
        )
        _, one, other = np.intersect1d(own_groups, english_groups, assume_unique=True, return_indices=True)
        pairs = _spread(own_rows[one]), _spread(english_rows[other])
        if len(pairs[0]) >= _FEWEST_GROUPS:
            own, english = (meter.count(select(examples, rows)) for rows in pairs)
            return own.tokens / english.tokens, "groups", len(pairs[0])
    known = nearest_language(tag, LANGUAGES)
    if known is None:
        return None
    own, english = meter.worldbook(known), meter.worldbook(ENGLISH)
    return own.tokens / english.tokens, "worldbook", own.rows


def _spread(rows: Rows) -> Rows:
    """Return all rows, or MEASURED_ROWS of them, evenly spread."""
    if len(rows) <= MEASURED_ROWS:
        return rows
    chosen: Rows = rows[np.arange(MEASURED_ROWS) * len(rows) // MEASURED_ROWS]
    return chosen
