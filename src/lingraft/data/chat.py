"""From messages to token ids, with the tokens marked that the loss sees: the assistant's, and no others.

The spans of the assistant's turns are found in the *text* that the chat template renders, and carried over to
tokens by the tokenizer's offsets. Nothing is ever concluded from token ids: a pad token may equal the end
token, and a user may write the end token's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from lingraft.data.encoded import EncodedExample as EncodedExample  # noqa: PLC0414 - others import it from here
from lingraft.data.example import Example, Message
from lingraft.data.sources import BrokenRow
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
_BATCH = 256  # texts tokenised together
_DATE = (
    "26 Jul 2024"  # what Llama 3 writes where it has no clock; today's date would change the data overnight
)

Span = tuple[int, int]


@dataclass(frozen=True)
class EncodedData:
    """Encoded examples, and what was lost on the way.

    Attributes:
        examples: Those with at least one supervised token.
        truncated: How many of `examples` were cut off at the end.
        dropped: Examples that the template refuses, or of whose answers the cut left nothing.
    """

    examples: tuple[EncodedExample, ...]
    truncated: int
    dropped: tuple[BrokenRow, ...]


@dataclass(frozen=True, slots=True)
class _Rendered:
    example: Example
    text: str
    spans: tuple[Span, ...]


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
    encoded = truncate(_encode([_rendered(example, tokenizer)], tokenizer)[0], max_length)
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
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> EncodedData:
    """Encode many conversations, counting those that are cut off and those that are left out.

    Raises:
        DataError: None is left.
        ModelError: The template or the tokenizer does not allow to tell the assistant's tokens.
    """
    rendered: list[_Rendered] = []
    dropped: list[BrokenRow] = []
    for example in examples:
        try:
            rendered.append(_rendered(example, tokenizer))
        except DataError as error:
            dropped.append(BrokenRow(_place(example), str(error)))
    encoded: list[EncodedExample] = []
    waiting = iter(rendered)
    while batch := list(islice(waiting, _BATCH)):
        for one, whole in zip(batch, _encode(batch, tokenizer), strict=True):
            result = truncate(whole, max_length)
            if any(result.supervised):
                encoded.append(result)
            else:
                dropped.append(BrokenRow(_place(one.example), _nothing_left(max_length)))
    if not encoded:
        first = f" The first: {dropped[0].place}: {dropped[0].problem}." if dropped else ""
        raise DataError(
            f"no example is left to train on out of {len(examples)}.{first} max_length is {max_length}."
        )
    truncated = sum(one.truncated_tokens > 0 for one in encoded)
    return EncodedData(tuple(encoded), truncated, tuple(dropped))


def render_prompt(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text after which the model is to answer: the turns, and the header of an assistant's turn.

    Raises:
        DataError: The template refuses the conversation.
    """
    return _render(messages, tokenizer, add_generation_prompt=True)[0]


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


def _render(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool = False,
    with_spans: bool = False,
) -> tuple[str, tuple[Span, ...]]:
    """Return the rendered text, and the spans of its {% generation %} blocks if asked for."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    options: dict[str, Any] = {**tokenizer.special_tokens_map, "date_string": _DATE}
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        rendered: Any = render_jinja_template(
            [turns],
            chat_template=chat_template(tokenizer)[0],
            return_assistant_tokens_mask=with_spans,
            add_generation_prompt=add_generation_prompt,
            **options,
        )
    except jinja2.TemplateError as error:
        raise DataError(f"the chat template refuses the conversation: {error}") from error
    (text,), spans = rendered
    return text, tuple(spans[0]) if with_spans else ()


def _rendered(example: Example, tokenizer: PreTrainedTokenizerBase) -> _Rendered:
    if _GENERATION_MARKER.search(chat_template(tokenizer)[0]):
        text, spans = _render(example.messages, tokenizer, with_spans=True)
    else:
        text, spans = _spans_by_prefix(example, tokenizer)
    if not spans:
        raise ModelError(
            f"{_place(example)}: the chat template marks no assistant text in this conversation."
        )
    return _Rendered(example, text, _to_end_of_turn(text, spans, _special_texts(tokenizer)))


def _spans_by_prefix(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[str, tuple[Span, ...]]:
    """Find each assistant turn between two renderings that stop before and after it."""
    messages = example.messages
    text, _ = _render(messages, tokenizer)
    spans = []
    for turn, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before, _ = _render(messages[:turn], tokenizer, add_generation_prompt=True)
        after, _ = _render(messages[: turn + 1], tokenizer)
        end = _common_length(after, text)
        # White space may differ at the end of the last turn alone; anything else is another conversation.
        if not text.startswith(before) or after[end:].strip() or end < len(before):
            raise ModelError(
                f"{_place(example)}: the chat template of {tokenizer.name_or_path or 'the model'} renders turn "
                f"{turn} differently once more turns follow or an answer is there, so its answer's tokens cannot be "
                "told. Use a template with {% generation %} marks, or single-turn data."
            )
        spans.append((len(before), end))
    return text, tuple(spans)


def _common_length(one: str, other: str) -> int:
    if other.startswith(one):
        return len(one)
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _special_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the texts of the special tokens, among which are those that end a turn; the longest first."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(
        sorted(added | {str(token) for token in tokenizer.all_special_tokens}, key=len, reverse=True)
    )


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


def _encode(rendered: list[_Rendered], tokenizer: PreTrainedTokenizerBase) -> list[EncodedExample]:
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} gives no character offsets, so the assistant's tokens cannot be told; "
            "use a model with a tokenizer.json."
        )
    with _whole_offsets(tokenizer):
        tokens = tokenizer(
            [one.text for one in rendered],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
    return [
        EncodedExample(
            one.example.id,
            one.example.language,
            tuple(ids),
            _supervised(offsets, one.spans),
            truncated_tokens=0,
        )
        for one, ids, offsets in zip(rendered, tokens["input_ids"], tokens["offset_mapping"], strict=True)
    ]


@contextmanager
def _whole_offsets(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Let the offsets of a token cover its white space too, while inside.

    Llama 3 and others have a post-processor that trims it ("\\n " is given as "\\n"). Without special tokens to
    add it does nothing else, so ids stay the same.
    """
    backend: Any = tokenizer.backend_tokenizer
    trimming = backend.post_processor
    backend.post_processor = None
    try:
        yield
    finally:
        backend.post_processor = trimming


def _supervised(offsets: list[Span], spans: tuple[Span, ...]) -> tuple[bool, ...]:
    """Return for each token whether it holds a character of a span."""
    return tuple(any(start < last and end > first for first, last in spans) for start, end in offsets)


def _nothing_left(max_length: int) -> str:
    return f"no token of an answer is left within max_length {max_length}"


def _place(example: Example) -> str:
    return f"{example.source}, example {example.id}"
