"""From conversations to token ids, with the tokens marked that the loss sees: the assistant's, and no others.

What a turn is, `data.chat_format` says: it gives the *text* of a conversation and the spans of its answers. Here they
become tokens, batch by batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lingraft.data.chat_format import ChatFormat, Rendered, chat_format
from lingraft.data.encoded import (
    Bools,
    EncodedBatch,
    EncodedExample,
    EncodedTable,
    EncodedTableWriter,
    Int32s,
)
from lingraft.data.example import Example
from lingraft.data.sources import BrokenRow, allowing_share
from lingraft.data.spool import Spool
from lingraft.data.text_encoding import (
    bytes_of_tokens,
    encode_by_bytes,
    encode_by_offsets,
    flat,
    plain_core,
    within_spans,
)
from lingraft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUPERVISED_START, SUPERVISED_END = "⟦", "⟧"

_BATCH = 512  # conversations rendered and tokenised together


@dataclass(frozen=True)
class EncodedData:
    """Encoded examples, and what was lost on the way.

    Attributes:
        examples: Those with at least one supervised token, in a table on disk.
        truncated: How many of `examples` were cut off at the end.
        dropped: Examples that the template refuses, or of whose answers the cut left nothing.
        handled: What the examples were treated by; see `WholeBatch`.
    """

    examples: EncodedTable
    truncated: int
    dropped: Sequence[BrokenRow]
    handled: Counter[str] = field(default_factory=Counter)

    def handled_sentences(self) -> Iterator[tuple[int, str]]:
        """See the function of this name."""
        return handled_sentences(self.handled)


@dataclass(frozen=True, slots=True)
class WholeBatch:
    """Some conversations encoded whole, and those that the template refuses.

    Attributes:
        examples: Those that are encoded.
        encoded: Their rows.
        refused: The others.
        handled: How many `masked_answers` there are, which the loss does not see, because the row says so (weight 0) or
            the template writes them otherwise than an answer that is asked for; how many examples had their
            `folded_systems`, a system prompt put before the user's text; in how many `spelled_tokens`, control tokens
            spelled by what is said, were kept as text; and how many hold `plain_headings`, see `Rendered`.
    """

    examples: tuple[Example, ...]
    encoded: EncodedBatch
    refused: tuple[BrokenRow, ...]
    handled: Counter[str]


def encode_example(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedExample:
    """Encode one conversation; what exceeds `max_length` tokens is cut off at the end.

    A token that holds characters of both the prompt and the answer counts as the answer's: left out, it would hide the
    answer's first word from the loss where a template ends in a space.

    Raises:
        DataError: The template refuses the conversation, or no supervised token is left.
        ModelError: See `chat_format`.
    """
    return encode_answers(example, tokenizer, max_length)[0]


def encode_answers(
    example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[EncodedExample, int]:
    """Return `encode_example` and the characters of the answers that are supervised, as the example has them."""
    encoder = _Encoder(tokenizer)
    (rendered,) = encoder.format.render([example])
    if isinstance(rendered, DataError):
        raise rendered
    batch, _ = encoder.encode([rendered])
    tokens, supervised = tuple(batch.tokens.tolist()), tuple(batch.supervised.tolist())
    encoded = truncate(EncodedExample(example.id, example.language, tokens, supervised, 0), max_length)
    if not any(encoded.supervised):
        raise DataError(f"{_place(example)}: {_nothing_left(max_length)}")
    return encoded, rendered.characters


def truncate(encoded: EncodedExample, max_length: int) -> EncodedExample:
    """Return the first `max_length` tokens, adding what is cut off to `truncated_tokens`."""
    cut_off = len(encoded.input_ids) - max_length
    if cut_off <= 0:
        return encoded
    return replace(
        encoded,
        input_ids=encoded.input_ids[:max_length],
        supervised=encoded.supervised[:max_length],
        truncated_tokens=encoded.truncated_tokens + cut_off,
    )


def encode_examples(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    folder: Path | None = None,
    max_refused_share: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> EncodedData:
    """Encode many conversations, counting those that are cut off and those that are left out.

    Memory does not grow with the data: what is encoded goes to disk.

    Args:
        examples: Read once, in order.
        tokenizer: Whose template and tokens are used.
        max_length: Where examples are cut off, in tokens.
        folder: Where the table is written, for other processes to open. None: nameless temporary files, which
            vanish with the table.
        max_refused_share: The largest share of the examples that the template may refuse.
        on_progress: Called with the examples done and their number.

    Raises:
        DataError: None is left, or a larger share is refused than may be.
        ModelError: See `chat_format`.
    """
    dropped: Spool[BrokenRow] = Spool(BrokenRow.to_json, BrokenRow.from_json)
    handled: Counter[str] = Counter()
    refused = 0
    with EncodedTableWriter(folder) as writer:
        for whole in encode_whole(examples, tokenizer, on_progress):
            dropped.extend(whole.refused)
            refused += len(whole.refused)
            handled += whole.handled
            cut, unanswered = cut_batch(whole.encoded, max_length)
            places = (_place(whole.examples[row]) for row in unanswered)
            dropped.extend(BrokenRow(place, _nothing_left(max_length)) for place in places)
            writer.append(cut)
        lost = dropped.finish()
        if not writer.rows:
            first = f" The first: {lost[0].place}: {lost[0].problem}." if lost else ""
            raise DataError(
                f"no example is left to train on out of {len(examples)}.{first} max_length is {max_length}."
            )
        if refused / len(examples) > max_refused_share:
            raise DataError(
                f"{refused} of {len(examples)} examples cannot be trained on with this model's chat template, more "
                f"than max_broken_share allows ({max_refused_share:.2%}). The first: {lost[0].place}: "
                f"{lost[0].problem}. Mend these rows, or write `max_broken_share: "
                f"{allowing_share(refused, len(examples))}` beside the source to leave them out; a system prompt "
                "for which there is no place is kept with `system: fold`."
            )
        table = writer.finish()
    return EncodedData(table, table.truncated_rows, lost, handled)


def encode_whole(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[WholeBatch]:
    """Yield the examples encoded, batch by batch, nothing cut off yet.

    A thread tokenises a batch (outside Python's lock) while the next one is read and rendered. Do not use the
    tokenizer before the last batch is taken.

    Raises:
        ModelError: See `chat_format`.
    """
    encoder = _Encoder(tokenizer, for_many=True)
    reading, done = iter(examples), 0
    with ThreadPoolExecutor(1) as thread:
        waiting: Future[WholeBatch] | None = None
        while batch := list(islice(reading, _BATCH)):
            rendered, places = encoder.format.render(batch), [_place(example) for example in batch]
            ready, waiting = waiting, thread.submit(encoder.whole_batch, rendered, places)
            if ready is not None:
                yield ready.result()
            if on_progress is not None:
                on_progress(done, len(examples))
            done += len(batch)
        if waiting is not None:
            yield waiting.result()
    if on_progress is not None:
        on_progress(done, done)


def cut_batch(batch: EncodedBatch, max_length: int) -> tuple[EncodedBatch, list[int]]:
    """Return the rows cut off at `max_length` tokens, and the numbers of those that kept no supervised token."""
    rows = np.repeat(np.arange(len(batch.lengths)), batch.lengths)
    starts = np.cumsum(batch.lengths) - batch.lengths
    kept = np.arange(len(rows)) - starts[rows] < max_length
    answered = np.bincount(rows[kept & batch.supervised], minlength=len(batch.lengths)) > 0
    kept &= answered[rows]
    lengths = np.minimum(batch.lengths, max_length)
    chosen = [int(row) for row in np.flatnonzero(answered)]
    cut = EncodedBatch(
        ids=[batch.ids[row] for row in chosen],
        languages=[batch.languages[row] for row in chosen],
        lengths=lengths[chosen],
        truncated=(batch.truncated + batch.lengths - lengths)[chosen],
        tokens=batch.tokens[kept],
        supervised=batch.supervised[kept],
        replayed=batch.replayed[chosen],
    )
    return cut, [int(row) for row in np.flatnonzero(~answered)]


def show_supervision(encoded: EncodedExample, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the decoded example, its supervised parts between ⟦ and ⟧, and how much was cut off."""
    parts = []
    pairs = zip(encoded.supervised, encoded.input_ids, strict=True)
    for supervised, run in groupby(pairs, key=lambda pair: pair[0]):
        ids = [token for _, token in run]
        text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        parts.append(f"{SUPERVISED_START}{text}{SUPERVISED_END}" if supervised else text)
    if encoded.truncated_tokens:
        parts.append(f"… ({encoded.truncated_tokens} tokens cut off)")
    return "".join(parts)


def handled_sentences(handled: Mapping[str, int]) -> Iterator[tuple[int, str]]:
    """Yield numbers of examples or answers, and a sentence that reports them; see `WholeBatch.handled`."""
    sentences = {
        "masked_answers": "answers are not trained on, because their weight is 0 or the chat template writes them "
        "otherwise than an answer that is asked for",
        "folded_systems": "system prompts, for which the chat template has no place, stand before the user's text",
        "spelled_tokens": "examples spell control tokens of the model, which are kept as text",
        "plain_headings": "examples hold what the chat template writes between turns in ordinary tokens; the model "
        "cannot tell it from a turn",
    }
    return ((handled[name], sentence) for name, sentence in sentences.items() if handled.get(name))


class _Encoder:
    """Encodes what a tokenizer's chat format renders.

    Args:
        tokenizer: Set to give every token of a text.
        for_many: Whether finding out the sizes of all tokens pays.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, for_many: bool = False) -> None:
        self.format: ChatFormat = chat_format(tokenizer)
        self._core = plain_core(tokenizer)
        self._token_bytes = bytes_of_tokens(self._core) if for_many else None

    def whole_batch(self, rendered: Sequence[Rendered | DataError], places: Sequence[str]) -> WholeBatch:
        """Return the conversations encoded, and those that are refused by their places."""
        accepted = [one for one in rendered if not isinstance(one, DataError)]
        pairs = zip(places, rendered, strict=True)
        refused = tuple(BrokenRow(place, str(one)) for place, one in pairs if isinstance(one, DataError))
        handled = Counter(
            masked_answers=sum(one.masked for one in accepted),
            folded_systems=sum(one.is_folded for one in accepted),
            plain_headings=sum(one.has_headings for one in accepted),
        )
        encoded, handled["spelled_tokens"] = self.encode(accepted)
        return WholeBatch(tuple(one.example for one in accepted), encoded, refused, +handled)

    def encode(self, rendered: Sequence[Rendered]) -> tuple[EncodedBatch, int]:
        """Return the rows of a batch, and how many spell control tokens: these are encoded one by one."""
        plain = [place for place, one in enumerate(rendered) if not one.text.protected]
        texts = [rendered[place].text.text for place in plain]
        spans = [rendered[place].spans for place in plain]
        sizes = self._token_bytes
        found = None if sizes is None else encode_by_bytes(texts, spans, self._core, sizes)
        lengths, tokens, supervised = found or encode_by_offsets(texts, spans, self._core)
        misread = self.format.control.misread(texts, lengths, tokens)
        spelled = {place for place, one in enumerate(rendered) if one.text.protected}
        spelled |= {plain[row] for row in misread}
        if spelled:
            borders = np.cumsum(lengths)[:-1]
            pairs = zip(np.split(tokens, borders), np.split(supervised, borders), strict=True)
            rows: dict[int, tuple[Int32s, Bools]] = dict(
                zip(plain, pairs, strict=False)
            )  # of no text: one empty part
            for place in spelled:
                ids, offsets = self.format.control.encode_spelled(rendered[place].text)
                length, own = flat([ids])
                places = np.array(offsets, np.int64).reshape(-1, 2)
                seen = within_spans(places[:, 0], places[:, 1], length, [rendered[place].spans])
                rows[place] = own, seen
            lengths = np.array([len(rows[place][0]) for place in range(len(rendered))], np.int64)
            tokens = np.concatenate([rows[place][0] for place in range(len(rendered))])
            supervised = np.concatenate([rows[place][1] for place in range(len(rendered))])
        return EncodedBatch(
            ids=[one.example.id for one in rendered],
            languages=[one.example.language for one in rendered],
            lengths=lengths,
            truncated=np.zeros(len(rendered), np.int64),
            tokens=tokens,
            supervised=supervised,
            replayed=np.array([one.example.origin.kind != "original" for one in rendered], bool),
        ), len(spelled)


def _nothing_left(max_length: int) -> str:
    return f"no token of an answer is left within max_length {max_length}"


def _place(example: Example) -> str:
    return f"{example.source}, example {example.id}"
