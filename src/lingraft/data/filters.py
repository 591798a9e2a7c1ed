"""Leave out rows that say what an earlier row said, that are in another language than they claim or have no answer,
and take spelt special tokens out of answers; all of it is counted."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from lingraft.config.schema import Filters
from lingraft.data.example import UNDETERMINED_LANGUAGE, Example
from lingraft.data.language_id import LanguageIdentifier
from lingraft.data.row_fields import AnswerError, Row
from lingraft.text.folding import composed, fold_for_duplicates
from lingraft.text.language_tags import primary_subtag
from lingraft.text.scripts import writes_spaces

if TYPE_CHECKING:
    from datasketch import MinHash, MinHashLSH

EXACT_DUPLICATE = "exact_duplicate"
NEAR_DUPLICATE = "near_duplicate"
OTHER_LANGUAGE = "other_language"
UNDETERMINED = "language_undetermined"
NO_ANSWER = "no_answer"
SPECIAL_TOKENS = "special_tokens"
STRIPPED = "special_tokens_stripped"
REJECTED = "rejected_answer"
_LEAVING_OUT = (EXACT_DUPLICATE, NEAR_DUPLICATE, OTHER_LANGUAGE, NO_ANSWER, SPECIAL_TOKENS, REJECTED)

# datasketch's default; the error of an estimated similarity is about 1 / sqrt(128) = 0.09
_PERMUTATIONS = 128
_WORDS = 5  # in a shingle, as in Lee et al. 2022
_CHARACTERS = 9  # in a shingle of a language that is written without spaces
_DIGEST_BYTES = 12
# What a row may be in besides the language it claims: the larger languages of the web and of worldbook.
# fmt: off
OTHERS = (
    "ar", "de", "en", "es", "fr", "hi", "id", "it", "ja", "ko", "nl", "pl", "pt", "ru", "th", "tr", "vi", "zh",
)
# fmt: on
# What chat templates and pretraining sets put around texts, in the families that people tune. Not the special tokens of
# the model's tokenizer: a data set's rows are the same for every model. HTML has <s> too, so <s> and </s> count only
# where a text begins or ends with them.
_SPECIAL_TOKEN = re.compile(
    r"<\|[^<>|\s][^<>|\n]{0,60}\|>"  # <|endoftext|>, <|im_end|>, <|eot_id|>, <|END_OF_TURN_TOKEN|>
    r"|<\uff5c[^<>\uff5c\n]{1,60}\uff5c>"  # DeepSeek's, with wide bars
    r"|</?(?:start_of_turn|end_of_turn)>|<(?:bos|eos|pad|unk)>|<extra_id_\d+>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>"
    r"|\A\s*<s>\s*|</s>\s*\Z"
)


class RowFilter:
    """Judges rows one after the other, in the order of the source; the first of several alike stays.

    Duplicates: equal after NFC, case folding and joining white space, or an estimated Jaccard similarity of their
    shingles (five words; nine characters where words are not set apart) of at least `near_duplicates`, among rows of
    one language. Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", arXiv 2107.06499, used
    0.8. MinHash of 128 permutations in a locality-sensitive index (datasketch), so a pair near the threshold may be
    judged either way; the seed is fixed. About 3 KB of memory for each row that stays.

    Language: py3langid among 18 languages and the claimed one. Rows whose text is too short to tell, and rows that
    claim none, stay and are counted as undetermined. Text that is mostly code, numbers or names is misjudged more
    often.

    Special tokens: spelt in an answer as text. Taken out (`strip`) together with white space that then ends the answer;
    an answer of which nothing is left is none.
    """

    def __init__(self, options: Filters) -> None:
        self._options = options
        self._seen: set[tuple[str, bytes]] = set()
        self._indexes: dict[str, MinHashLSH] = {}  # by language
        self._signatures: dict[str, list[MinHash]] = {}  # of the rows that stay, by language
        self._identifiers: dict[str, LanguageIdentifier] = {}
        self.counts: Counter[str] = Counter()

    @property
    def left_out(self) -> int:
        """Rows left out so far."""
        return sum(self.counts[reason] for reason in _LEAVING_OUT)

    def leaves_out_unanswered(self) -> bool:
        """Return whether a row without an answer is left out, which then is counted; else it is broken."""
        if self._options.no_answer:
            self.counts[NO_ANSWER] += 1
        return self._options.no_answer

    def leaves_out_rejected(self, row: Row) -> bool:
        """Return whether a row says of its own answer that it is a bad one, as KTO's do; such a row is counted.

        These have a prompt, a completion and a `label`, which is false (in tables the word) for what raters rejected.
        """
        is_rejected = {"prompt", "completion"} <= row.keys() and str(row.get("label")).lower() == "false"
        if is_rejected:
            self.counts[REJECTED] += 1
        return is_rejected

    def cleaned(self, example: Example) -> Example:
        """Return the example without the special tokens that its answers spell, where the filter says so.

        Raises:
            AnswerError: Nothing is left of an answer.
        """
        if self._options.special_tokens != "strip" or not special_tokens_in(example):
            return example
        turns = []
        for turn in example.messages:
            content = turn.content
            if turn.role == "assistant":
                while (stripped := _SPECIAL_TOKEN.sub("", content)) != content:  # </s></s> ends a text twice
                    content = stripped
                content = content.rstrip()
            turns.append(replace(turn, content=content))
        if any(not turn.content and had.content for turn, had in zip(turns, example.messages, strict=True)):
            raise AnswerError("answer", "is nothing but special tokens")
        self.counts[STRIPPED] += 1
        return replace(example, messages=tuple(turns))

    def reason(self, example: Example) -> str | None:
        """Return why a row is left out, or None; it is counted either way.

        Raises:
            DataError: The identifier does not know the language that the row claims.
        """
        turns = [turn.content for turn in example.messages if turn.role != "system"]
        text = composed("\n".join(turns))
        reason = None
        if self._options.special_tokens == "drop" and special_tokens_in(example):
            reason = SPECIAL_TOKENS
        if reason is None and self._options.language:
            reason = self._in_other_language(text, example.language)
        if reason is None and self._options.near_duplicates is not None:
            reason = self._repeated(
                fold_for_duplicates(text), example.language, self._options.near_duplicates
            )
        if reason is not None:
            self.counts[reason] += 1
        return reason

    def _in_other_language(self, text: str, claimed: str) -> str | None:
        primary = primary_subtag(claimed)
        found = None
        if claimed != UNDETERMINED_LANGUAGE:
            if primary not in self._identifiers:
                self._identifiers[primary] = LanguageIdentifier(sorted({primary, *OTHERS}))
            found = self._identifiers[primary].identify(text)
        if found is None:
            self.counts[UNDETERMINED] += 1
        return OTHER_LANGUAGE if found is not None and found != primary else None

    def _repeated(self, text: str, language: str, threshold: float) -> str | None:
        digest = (language, hashlib.sha256(text.encode("utf-8")).digest()[:_DIGEST_BYTES])
        if digest in self._seen:
            return EXACT_DUPLICATE
        self._seen.add(digest)
        if threshold == 1.0:
            return None
        from datasketch import MinHash, MinHashLSH

        # The pieces whose sets are compared; a text shorter than a piece is one.
        if writes_spaces(language):
            words = text.split(" ")
            pieces = [" ".join(words[i : i + _WORDS]) for i in range(max(1, len(words) - _WORDS + 1))]
        else:
            pieces = [text[i : i + _CHARACTERS] for i in range(max(1, len(text) - _CHARACTERS + 1))]
        if language not in self._indexes:
            self._indexes[language] = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
            self._signatures[language] = []
        index, signatures = self._indexes[language], self._signatures[language]
        own = MinHash(num_perm=_PERMUTATIONS, seed=1)
        own.update_batch([piece.encode("utf-8") for piece in pieces])
        if any(own.jaccard(signatures[number]) >= threshold for number in index.query(own)):
            return NEAR_DUPLICATE
        index.insert(len(signatures), own)
        signatures.append(own)
        return None


def special_tokens_in(example: Example) -> list[str]:
    """Return the special tokens that the answers of an example spell as text, such as <|endoftext|>."""
    answers = (turn.content for turn in example.messages if turn.role == "assistant")
    return [found.strip() for answer in answers for found in _SPECIAL_TOKEN.findall(answer)]
