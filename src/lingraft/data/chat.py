"""From messages to token ids, with the tokens marked that the loss sees: the assistant's, and no others.

The spans of the assistant's turns are found in the *text* that the chat template renders, and carried over to
tokens by the places of the tokens in that text: the tokenizer's offsets, or, where the tokens are the text's bytes in
pieces, their sizes. Nothing is ever concluded from what a token is: a pad token may equal the end token, and a user may
write the end token's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers.decoders import ByteLevel

from lingraft.data.encoded import Bools, EncodedBatch, EncodedTable, EncodedTableWriter, Int32s, Int64s
from lingraft.data.encoded import EncodedExample as EncodedExample  # noqa: PLC0414 - others import it from here
from lingraft.data.example import Example, Message
from lingraft.data.sources import BrokenRow
from lingraft.data.special_tokens import special_tokens
from lingraft.data.spool import Spool
from lingraft.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FALLBACK_TEMPLATE = (
    "{{ bos_token if bos_token is defined and bos_token else '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Response:\n' }}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{{ '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
"""Used where a tokenizer has no chat template: Alpaca's headings, an end token after every answer.

    BOS? [SYSTEM, blank line] "### Instruction:" USER, blank line, "### Response:" ANSWER EOS, blank line, ...

Headings and answers are on lines of their own. Only what tokenizers of base models have is needed: an end token.
"""

SUPERVISED_START, SUPERVISED_END = "⟦", "⟧"

_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_BATCH = 512  # conversations rendered and tokenised together
_DATE = (
    "26 Jul 2024"  # what Llama 3 writes where it has no clock; today's date would change the data overnight
)

Span = tuple[int, int]
_Text = tuple[str, tuple[Span, ...]]  # a rendered conversation and the spans of its answers


@dataclass(frozen=True)
class EncodedData:
    """Encoded examples, and what was lost on the way.

    Attributes:
        examples: Those with at least one supervised token, in a table on disk.
        truncated: How many of `examples` were cut off at the end.
        dropped: Examples that the template refuses, or of whose answers the cut left nothing.
    """

    examples: EncodedTable
    truncated: int
    dropped: Sequence[BrokenRow]


@dataclass(frozen=True, slots=True)
class WholeBatch:
    """Some conversations encoded whole, and those that the template refuses.

    Attributes:
        examples: Those that are encoded.
        encoded: Their rows.
        refused: The others.
    """

    examples: tuple[Example, ...]
    encoded: EncodedBatch
    refused: tuple[BrokenRow, ...]


@dataclass(frozen=True, slots=True)
class _Rendered:
    example: Example
    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class _Template:
    """What rendering needs of a tokenizer, worked out once instead of for every row."""

    source: str
    is_marked: bool
    options: dict[str, Any]
    special: tuple[str, ...]
    model: str


def chat_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, bool]:
    """Return the tokenizer's chat template and False, or FALLBACK_TEMPLATE and True where it has none.

    Raises:
        ModelError: It has neither a template nor an end token, so it could not learn where to stop.
    """
    try:
        template = None if tokenizer.chat_template is None else str(tokenizer.get_chat_template())
    except ValueError as error:  # several named templates and no default one
        raise ModelError(f"{tokenizer.name_or_path}: {error}") from error
    if template is not None and template != FALLBACK_TEMPLATE:
        return template, False
    if tokenizer.eos_token is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has neither a chat template nor an end token; "
            "set `eos_token` or `chat_template` in its tokenizer_config.json."
        )
    return FALLBACK_TEMPLATE, True


def encode_example(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedExample:
    """Encode one conversation; what exceeds `max_length` tokens is cut off at the end.

    A token that holds characters of both the prompt and the answer counts as the answer's: it cannot be
    divided, and leaving it out would hide the answer's first word from the loss where a template ends in a space.

    Raises:
        DataError: The template refuses the conversation, or no supervised token is left.
        ModelError: The template or the tokenizer does not allow to tell the assistant's tokens.
    """
    (rendered,) = _rendered([example], _template(tokenizer))
    if isinstance(rendered, DataError):
        raise rendered
    encoded = truncate(_single(_encode([rendered], _backend(tokenizer))), max_length)
    if not any(encoded.supervised):
        raise DataError(f"{_place(example)}: {_nothing_left(max_length)}")
    return encoded


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
        on_progress: Called with the examples done and their number.

    Raises:
        DataError: None is left.
        ModelError: The template or the tokenizer does not allow to tell the assistant's tokens.
    """
    dropped: Spool[BrokenRow] = Spool(BrokenRow.to_json, BrokenRow.from_json)
    with EncodedTableWriter(folder) as writer:
        for whole in encode_whole(examples, tokenizer, on_progress):
            dropped.extend(whole.refused)
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
        table = writer.finish()
    return EncodedData(table, table.truncated_rows, lost)


def encode_whole(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[WholeBatch]:
    """Yield the examples encoded, batch by batch, nothing cut off yet.

    A thread tokenises a batch (outside Python's lock) while the next one is read and rendered. Do not use the
    tokenizer before the last batch is taken.

    Raises:
        ModelError: The template or the tokenizer does not allow to tell the assistant's tokens.
    """
    template, backend = _template(tokenizer), _backend(tokenizer, for_many=True)
    reading, done = iter(examples), 0
    with ThreadPoolExecutor(1) as thread:
        waiting: Future[WholeBatch] | None = None
        while batch := list(islice(reading, _BATCH)):
            rendered, places = _rendered(batch, template), [_place(example) for example in batch]
            ready, waiting = waiting, thread.submit(_whole_batch, rendered, places, backend)
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


def render_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text after which the model is to answer: the turns, and the header of an assistant's turn.

    Raises:
        DataError: The template refuses the conversation.
    """
    (rendered,) = _render([messages], _template(tokenizer), add_generation_prompt=True)
    if isinstance(rendered, DataError):
        raise rendered
    return rendered[0]


def encode_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of `render_prompt`; the template writes special tokens, none are added.

    Raises:
        DataError: The template refuses the conversation.
    """
    text = render_prompt(messages, tokenizer)
    return [int(token) for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]


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


def _template(tokenizer: PreTrainedTokenizerBase) -> _Template:
    source, _ = chat_template(tokenizer)
    return _Template(
        source=source,
        is_marked=_GENERATION_MARKER.search(source) is not None,
        options={**tokenizer.special_tokens_map, "date_string": _DATE},
        special=_special_texts(tokenizer),
        model=str(tokenizer.name_or_path or "the model"),
    )


def _render(
    conversations: Sequence[Sequence[Message]],
    template: _Template,
    *,
    add_generation_prompt: bool = False,
    with_spans: bool = False,
    tools: str = "",
) -> list[_Text | DataError]:
    """Return each rendered text with the spans of its {% generation %} blocks if asked for, or why it is refused."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = [[one.to_template() for one in messages] for messages in conversations]
    options: dict[str, Any] = {
        **template.options,
        "add_generation_prompt": add_generation_prompt,
        "tools": json.loads(tools) if tools else None,
    }
    try:
        rendered: Any = render_jinja_template(
            turns, chat_template=template.source, return_assistant_tokens_mask=with_spans, **options
        )
    except jinja2.TemplateError as error:
        if len(conversations) == 1:
            return [DataError(f"the chat template refuses the conversation: {error}")]
        return [  # which of them it refuses only shows one by one
            _render(
                [one],
                template,
                add_generation_prompt=add_generation_prompt,
                with_spans=with_spans,
                tools=tools,
            )[0]
            for one in conversations
        ]
    texts, spans = rendered
    return [(text, tuple(spans[row]) if with_spans else ()) for row, text in enumerate(texts)]


def _rendered(examples: Sequence[Example], template: _Template) -> list[_Rendered | DataError]:
    """Return each example's text and the spans of its answers, or why it cannot be rendered."""
    results: list[_Rendered | DataError] = []
    for tools, run in groupby(examples, key=lambda example: example.tools):  # one set of tools a rendering
        results.extend(_rendered_with(tools, list(run), template))
    return results


def _rendered_with(
    tools: str, examples: Sequence[Example], template: _Template
) -> list[_Rendered | DataError]:
    found = _render(
        [example.messages for example in examples], template, with_spans=template.is_marked, tools=tools
    )
    if not template.is_marked:
        found = _with_spans_by_prefix(examples, found, template)
    results: list[_Rendered | DataError] = []
    for example, one in zip(examples, found, strict=True):
        ignored = _ignored_part(example, template)
        if ignored is not None:
            results.append(DataError(f"the chat template has no place for {ignored}, which would be lost"))
        elif isinstance(one, DataError):
            results.append(one)
        elif not one[1]:
            raise ModelError(
                f"{_place(example)}: the chat template marks no assistant text in this conversation."
            )
        else:
            text, spans = one
            results.append(_Rendered(example, text, _to_end_of_turn(text, spans, template.special)))
    return results


def _ignored_part(example: Example, template: _Template) -> str | None:
    """Return what of an example the template does not read: templates without tools leave them out in silence."""
    if example.tools and "tools" not in template.source:
        return "tools"
    calls = any('"tool_calls"' in message.details for message in example.messages)
    return "tool_calls" if calls and "tool_calls" not in template.source else None


def _with_spans_by_prefix(
    examples: Sequence[Example], whole: Sequence[_Text | DataError], template: _Template
) -> list[_Text | DataError]:
    """Find each assistant turn between two renderings that stop before and after it."""
    tools = examples[0].tools  # of all of them
    turns = [
        (row, turn)
        for row, example in enumerate(examples)
        for turn, message in enumerate(example.messages)
        if message.role == "assistant" and not isinstance(whole[row], DataError)
    ]
    before = _render(
        [examples[row].messages[:turn] for row, turn in turns],
        template,
        add_generation_prompt=True,
        tools=tools,
    )
    # Up to its last turn a conversation is rendered already.
    inner = [(row, turn) for row, turn in turns if turn + 1 < len(examples[row].messages)]
    after = dict(
        zip(
            inner,
            _render([examples[r].messages[: t + 1] for r, t in inner], template, tools=tools),
            strict=True,
        )
    )
    found = list(whole)
    for (row, turn), start in zip(turns, before, strict=True):
        text, stop = found[row], after.get((row, turn), whole[row])
        if isinstance(text, DataError):
            continue  # an earlier turn was refused
        if isinstance(start, DataError) or isinstance(stop, DataError):
            found[row] = start if isinstance(start, DataError) else stop
        else:
            found[row] = _with_turn(examples[row], turn, text, start[0], stop[0], template.model)
    return found


def _with_turn(example: Example, turn: int, text: _Text, before: str, after: str, model: str) -> _Text:
    """Return the text with one more span, between the renderings that stop before and after a turn."""
    whole, spans = text
    end = _common_length(after, whole)
    # White space may differ at the end of the last turn alone; anything else is another conversation.
    if not whole.startswith(before) or after[end:].strip() or end < len(before):
        raise ModelError(
            f"{_place(example)}: the chat template of {model} renders turn "
            f"{turn} differently once more turns follow or an answer is there, so its answer's tokens cannot be "
            "told. Use a template with {% generation %} marks, or single-turn data."
        )
    return whole, (*spans, (len(before), end))


def _common_length(one: str, other: str) -> int:
    if other.startswith(one):
        return len(one)
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _special_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the texts of the special tokens, among which are those that end a turn; the longest first."""
    texts = tokenizer.convert_ids_to_tokens(sorted(special_tokens(tokenizer)))
    return tuple(sorted(map(str, texts), key=len, reverse=True))


def _to_end_of_turn(text: str, spans: tuple[Span, ...], special: tuple[str, ...]) -> tuple[Span, ...]:
    """Let each span end with its turn's end token.

    White space after the end token is the template's, which a model never writes: it goes. Some templates
    close the {% generation %} block before the end token, and a model that never sees it cannot learn to
    stop: it joins. What follows the last turn's text can only be its end token, not another turn's start.
    """
    last_end = spans[-1][1]
    closing = next((token for token in special if text.startswith(token, last_end)), None)
    ended = []
    for start, end in spans:
        content = text[start:end].rstrip()
        if content.endswith(special):
            ended.append((start, start + len(content)))
        else:
            joins = closing is not None and text.startswith(closing, end)
            ended.append((start, end + len(closing or "") * joins))
    return tuple(ended)


@dataclass(frozen=True, slots=True)
class _Backend:
    """The tokenizer beneath, set to give every token of a text.

    Attributes:
        core: Of the library tokenizers.
        token_bytes: [vocabulary] bytes of text that each token stands for, where the tokens of a text are its bytes
            cut in pieces (byte-level BPE without a normaliser); else None.
    """

    core: Any
    token_bytes: Int64s | None


def _backend(tokenizer: PreTrainedTokenizerBase, *, for_many: bool = False) -> _Backend:
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} gives no character offsets, so the assistant's tokens cannot be told; "
            "use a model with a tokenizer.json."
        )
    core: Any = tokenizer.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    core.encode_special_tokens = tokenizer.split_special_tokens
    return _Backend(core, _token_bytes(core) if for_many else None)


def _token_bytes(core: Any) -> Int64s | None:
    """Return the bytes of each token of a byte-level tokenizer, which spells every byte as one letter."""
    if core.normalizer is not None or not isinstance(core.decoder, ByteLevel):
        return None
    vocabulary = core.get_vocab(with_added_tokens=True)
    sizes = np.zeros(1 + max(vocabulary.values()), np.int64)
    for token, number in vocabulary.items():
        sizes[number] = len(token)
    for number, added in core.get_added_tokens_decoder().items():  # spelled as they are
        sizes[number] = len(added.content.encode("utf-8"))
    return sizes


def _whole_batch(
    rendered: Sequence[_Rendered | DataError], places: Sequence[str], backend: Any
) -> WholeBatch:
    accepted = [one for one in rendered if not isinstance(one, DataError)]
    refused = tuple(
        BrokenRow(place, str(one))
        for place, one in zip(places, rendered, strict=True)
        if isinstance(one, DataError)
    )
    return WholeBatch(tuple(one.example for one in accepted), _encode(accepted, backend), refused)


def _encode(rendered: Sequence[_Rendered], backend: _Backend) -> EncodedBatch:
    sizes = backend.token_bytes
    found = None if sizes is None else _by_bytes(rendered, backend.core, sizes)
    lengths, tokens, supervised = found or _by_offsets(rendered, backend.core)
    return EncodedBatch(
        ids=[one.example.id for one in rendered],
        languages=[one.example.language for one in rendered],
        lengths=lengths,
        truncated=np.zeros(len(rendered), np.int64),
        tokens=tokens,
        supervised=supervised,
        replayed=np.array([one.example.origin.kind != "original" for one in rendered], bool),
    )


def _by_offsets(rendered: Sequence[_Rendered], core: Any) -> tuple[Int64s, Int32s, Bools]:
    """Return lengths, tokens and which are supervised, by the characters that the tokenizer says they are of."""
    with _whole_offsets(core):
        found = core.encode_batch([one.text for one in rendered], add_special_tokens=False)
    lengths, tokens = _flat([one.ids for one in found])
    offsets = chain.from_iterable(chain.from_iterable(one.offsets for one in found))
    pairs = np.fromiter(offsets, np.int64, 2 * len(tokens)).reshape(-1, 2)
    return lengths, tokens, _supervised(pairs[:, 0], pairs[:, 1], lengths, [one.spans for one in rendered])


def _by_bytes(
    rendered: Sequence[_Rendered], core: Any, token_bytes: Int64s
) -> tuple[Int64s, Int32s, Bools] | None:
    """Return the same without asking for offsets, which takes half of the time again.

    The tokens of a row are its bytes in pieces, so that their sizes tell where they lie. That is checked: None where
    the bytes of a row are not as many as its tokens' (an added token may swallow the space beside it).
    """
    found = core.encode_batch_fast([one.text for one in rendered], add_special_tokens=False)
    lengths, tokens = _flat([one.ids for one in found])
    sizes = token_bytes[tokens]
    ends = np.concatenate([[0], np.cumsum(sizes)])  # over all rows
    row_ends = ends[np.concatenate([[0], np.cumsum(lengths)])]
    if np.diff(row_ends).tolist() != [len(one.text.encode("utf-8")) for one in rendered]:
        return None
    ends = ends[1:] - np.repeat(row_ends[:-1], lengths)
    spans = [_in_bytes(one) for one in rendered]
    return lengths, tokens, _supervised(ends - sizes, ends, lengths, spans)


def _in_bytes(rendered: _Rendered) -> tuple[Span, ...]:
    text = rendered.text
    if text.isascii():
        return rendered.spans
    return tuple(
        (len(text[:start].encode("utf-8")), len(text[:end].encode("utf-8"))) for start, end in rendered.spans
    )


def _flat(ids: Sequence[Sequence[int]]) -> tuple[Int64s, Int32s]:
    lengths = np.array([len(one) for one in ids], np.int64)
    return lengths, np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum()))


@contextmanager
def _whole_offsets(core: Any) -> Iterator[None]:
    """Let the offsets of a token cover its white space too, while inside.

    Llama 3 and others have a post-processor that trims it ("\\n " is given as "\\n"). Without special tokens to
    add it does nothing else, so ids stay the same.
    """
    trimming = core.post_processor
    core.post_processor = None
    try:
        yield
    finally:
        core.post_processor = trimming


def _supervised(starts: Int64s, ends: Int64s, lengths: Int64s, spans: Sequence[tuple[Span, ...]]) -> Bools:
    """Return for each token whether it holds something of a span of its row.

    Args:
        starts: [tokens] where each begins in the row's text, in the unit of the spans.
        ends: [tokens] where it ends.
        lengths: [rows] tokens of each row.
        spans: Of each row.
    """
    seen: Bools = np.zeros(len(starts), bool)
    for turn in range(max(map(len, spans), default=0)):
        # A row with fewer turns gets a span that holds nothing.
        one = np.array([row[turn] if turn < len(row) else (0, 0) for row in spans], np.int64)
        seen |= (starts < np.repeat(one[:, 1], lengths)) & (ends > np.repeat(one[:, 0], lengths))
    return seen


def _single(batch: EncodedBatch) -> EncodedExample:
    return EncodedExample(
        batch.ids[0], batch.languages[0], tuple(batch.tokens.tolist()), tuple(batch.supervised.tolist()), 0
    )


def _nothing_left(max_length: int) -> str:
    return f"no token of an answer is left within max_length {max_length}"


def _place(example: Example) -> str:
    return f"{example.source}, example {example.id}"
