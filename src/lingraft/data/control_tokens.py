"""Keep the text of a data set from turning into control tokens.

A tokenizer takes the spelling of an end token for the token itself, wherever it stands. So what users and models say
is marked before a chat template renders it, with characters that Unicode sets aside for such use inside of a program
(noncharacters): a spelling between marks is text, the others are the template's. `ControlTokens.encode` honours them.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import numpy as np

from lingraft.data.encoded import Bools, Int32s, Int64s

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

TEXT_START, TEXT_END = "\ufdd0", "\ufdd1"  # around a control token's spelling that is text
ANSWER_START, ANSWER_END = "\ufdd2", "\ufdd3"  # around an answer, white space at its ends left outside
_ESCAPE = "\ufdd4"  # before what stands for one of these characters itself
_BREAK = (
    "\ufdd6"  # inside such a spelling: templates look for control tokens in what is said, and act on them
)
_RESERVED = re.compile("[\ufdd0-\ufdd6]")
_ESCAPED = 0x2800  # to U+2806
_PLACE = (
    f"\ufdd5{token_hex(4)}-{{}}\ufdd5"  # stands for a control token of the template; no text can spell it
)
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_TEXT_MARK = re.compile(f"{_ESCAPE}(.)|[{TEXT_START}{TEXT_END}{_BREAK}]")
# A template may cut a pair in two: of half a pair the letters beside the break are text, which splits the spelling.
_PROTECTED = re.compile(
    f"{TEXT_START}([^{TEXT_START}{TEXT_END}]*){TEXT_END}|[^{TEXT_START}]{_BREAK}.", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class SpelledText:
    """A text without marks, and where in it control tokens are spelled that are none, in order."""

    text: str
    protected: tuple[Span, ...] = ()


class ControlTokens:
    """The tokens of a tokenizer that steer a model, and how to write about them.

    These are its special tokens, also those that only its file marks as special, and other added tokens that the chat
    template writes, such as `<tool_call>`. Added tokens that stand for ordinary text, such as runs of spaces or HTML
    tags, are none: what they stand for is theirs wherever it is.

    Args:
        tokenizer: Of the model.
        template: Source of its chat template, and what that writes around messages: templates put tokens together
            ('<|' + role + '|>').
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        added = tokenizer.added_tokens_decoder.items()
        self.ids: dict[str, int] = {
            str(one.content): number
            for number, one in added
            if one.special or (one.content.strip() and one.content in template)
        }
        named = {str(one) for one in tokenizer.all_special_tokens if str(one)}
        numbers: Any = tokenizer.convert_tokens_to_ids(sorted(named))
        self.ids |= dict(zip(sorted(named), numbers, strict=True))
        self.swallowing = tuple(
            str(one.content) for _, one in added if one.rstrip
        )  # the white space after them
        longest_first = sorted(self.ids, key=len, reverse=True)
        alternatives = "|".join(map(re.escape, longest_first)) or "(?!)"
        self.pattern = re.compile(alternatives)
        self.of_template = re.compile(f"(?<!{TEXT_START})(?:{alternatives})")
        self._core: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._slow: Any = None if tokenizer.is_fast else tokenizer
        # Where a normaliser may make control tokens of other spellings: by id, whether a token is one, and all of them.
        self._counted: tuple[Bools, re.Pattern[str]] | None = None
        if self._core is not None and self._core.normalizer is not None:
            unknown = {None, *self._core.encode(_BREAK, add_special_tokens=False).ids}
            names = [
                one for one in longest_first if self._new_name(one) != one and self.ids[one] not in unknown
            ]
            is_control: Bools = np.zeros(1 + max([0, *self._core.get_vocab().values()]), bool)
            is_control[[self.ids[one] for one in names]] = True
            self._counted = is_control, re.compile("|".join(map(re.escape, names)) or "(?!)")

    def protected(self, text: str) -> str:
        """Return a text with marks around every control token that it spells."""
        if not text.isascii():
            text = _RESERVED.sub(lambda one: f"{_ESCAPE}{chr(ord(one[0]) - 0xFDD0 + _ESCAPED)}", text)
        if self.pattern.search(text) is None:
            return text
        return self.pattern.sub(lambda one: f"{TEXT_START}{one[0][0]}{_BREAK}{one[0][1:]}{TEXT_END}", text)

    def protected_value(self, value: Any) -> Any:
        """Return a JSON value, such as a tool's description or arguments, with its texts and keys marked."""
        if isinstance(value, str):
            return self.protected(value)
        if isinstance(value, dict):
            return {self.protected(key): self.protected_value(one) for key, one in value.items()}
        return [self.protected_value(one) for one in value] if isinstance(value, (list, tuple)) else value

    @staticmethod
    def has_marks(text: str) -> bool:
        """Return whether anything in a text is marked."""
        return TEXT_START in text or _ESCAPE in text

    def encode(self, marked: str) -> list[int]:
        """Return the token ids of a text in which what is marked is text; no special tokens are added."""
        if (
            self._core is None
        ):  # a tokenizer written in Python, which knows text from special tokens by itself
            spelled, _ = without_marks(marked)
            ids: list[int] = []
            at = 0
            for start, end in (*spelled.protected, (len(spelled.text),) * 2):
                for part, is_text in ((spelled.text[at:start], False), (spelled.text[start:end], True)):
                    if part:
                        ids += self._slow.encode(part, add_special_tokens=False, split_special_tokens=is_text)
                at = end
            return ids
        if not self.has_marks(marked) and TEXT_END not in marked:
            self._core.no_truncation()
            self._core.no_padding()
            own = [int(one) for one in self._core.encode(marked, add_special_tokens=False).ids]
            is_misread = self.misread([marked], np.array([len(own)]), np.array(own, np.int32))
            return self.encode_spelled(SpelledText(marked))[0] if is_misread else own
        spelled, _ = without_marks(marked)
        return self.encode_spelled(spelled)[0]

    def misread(self, texts: Sequence[str], lengths: Int64s, tokens: Int32s) -> list[int]:
        """Return the numbers of the texts of which the tokenizer made more or fewer control tokens than they spell.

        Some normalise what they read before they look for these: `<|IM_END|>`, or wide letters, become the token.

        Args:
            texts: Without marks.
            lengths: [texts] tokens of each.
            tokens: Of all of them.
        """
        if self._counted is None:
            return []
        is_control, names = self._counted
        rows = np.repeat(np.arange(len(texts)), lengths)
        found = np.bincount(rows[is_control[tokens]], minlength=len(texts))
        return [row for row, text in enumerate(texts) if len(names.findall(text)) != found[row]]

    def encode_spelled(self, spelled: SpelledText) -> tuple[list[int], list[Span]]:
        """Return the token ids of a text and the characters of it that each is of.

        The ids are those of the tokenizer, but that protected spellings are encoded as any other text is: the
        template's control tokens are replaced by stand-ins, and a copy of the tokenizer is asked that knows these
        alone.
        """
        pieces: list[tuple[str, str]] = []  # of the text, and of what the copy is given
        at = 0
        for start, end in (*spelled.protected, (len(spelled.text), len(spelled.text))):
            while at < start:
                match = self.pattern.search(spelled.text, at, start)
                plain_end = match.start() if match else start
                if at < plain_end:
                    pieces.append((spelled.text[at:plain_end],) * 2)
                if match:
                    pieces.append((match[0], self._stand_in(match[0])))
                at = match.end() if match else start
            if start < end:
                pieces.append((spelled.text[start:end],) * 2)
            at = end
        own_ends = [0, *accumulate(len(one) for one, _ in pieces)]
        ends = [0, *accumulate(len(one) for _, one in pieces)]

        def place(of_copy: int) -> int:
            piece = bisect_right(ends, of_copy) - 1
            return min(own_ends[piece] + of_copy - ends[piece], own_ends[min(piece + 1, len(pieces))])

        core, numbers = self._copy
        found = core.encode("".join(one for _, one in pieces), add_special_tokens=False)
        ids = [int(numbers[one]) for one in found.ids]
        return ids, [(place(start), place(end)) for start, end in found.offsets]

    def _stand_in(self, token: str) -> str:
        return _PLACE.format(self.ids[token])

    @cached_property
    def _copy(self) -> tuple[Any, np.ndarray[tuple[int], np.dtype[np.int64]]]:
        """The tokenizer with every control token under its stand-in's name, and the true id of each of its ids.

        The model's own vocabulary is renamed as well: pieces such as `</s>` would be found in plain text otherwise, as
        Unigram models do.
        """
        from tokenizers import Tokenizer

        core = self._core
        written = json.loads(core.to_str())
        written["post_processor"] = written["truncation"] = written["padding"] = None
        for one in written["added_tokens"]:
            if one["content"] in self.ids:
                one.update(content=self._stand_in(one["content"]), normalized=False)
        model = written["model"]
        if isinstance(model["vocab"], list):  # Unigram: [piece, log probability]
            model["vocab"] = [[self._new_name(piece), score] for piece, score in model["vocab"]]
        else:
            model["vocab"] = {self._new_name(piece): number for piece, number in model["vocab"].items()}
            if model.get("unk_token"):
                model["unk_token"] = self._new_name(model["unk_token"])
            pairs = [one if isinstance(one, list) else one.split(" ", 1) for one in model.get("merges", ())]
            if pairs:
                kept = (
                    one for one in pairs if all(self._new_name(part) == part for part in (*one, "".join(one)))
                )
                model["merges"] = list(kept)
        copy = Tokenizer.from_str(json.dumps(written, ensure_ascii=False))
        known = {one.content for one in copy.get_added_tokens_decoder().values()}
        copy.add_special_tokens(  # those that were in the vocabulary alone
            [one for one in map(self._stand_in, self.ids) if one not in known]
        )
        of_stand_in = {self._stand_in(text): number for text, number in self.ids.items()}
        names = copy.get_vocab(with_added_tokens=True)
        originals = core.get_vocab(with_added_tokens=True)
        numbers = np.arange(1 + max(names.values()))
        for name, number in names.items():
            numbers[number] = of_stand_in.get(name, originals.get(name, number))
        return copy, numbers

    def _new_name(self, piece: str) -> str:
        # The model itself looks up single bytes and letters by these names.
        is_control = piece in self.ids and len(piece) > 1 and not _BYTE.fullmatch(piece)
        return self._stand_in(piece) if is_control else piece


def without_marks(marked: str, spans: Sequence[Span] = ()) -> tuple[SpelledText, tuple[Span, ...]]:
    """Return a text without the marks of spellings, and spans of the marked text as spans of that one."""
    if not _TEXT_MARK.search(marked):
        return SpelledText(marked), tuple(spans)
    marks = [one.start() for one in _TEXT_MARK.finditer(marked)]

    def place(at: int) -> int:
        return at - bisect_right(marks, at - 1)

    protected = [one.span() if one[1] is None else one.span(1) for one in _PROTECTED.finditer(marked)]
    spelled = SpelledText(
        _TEXT_MARK.sub(lambda mark: chr(ord(mark[1]) - _ESCAPED + 0xFDD0) if mark[1] else "", marked),
        tuple((place(start), place(end)) for start, end in protected),
    )
    return spelled, tuple((place(start), place(end)) for start, end in spans)
