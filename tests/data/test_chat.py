"""The loss mask against a slow check: templates written out in Python, tokens compared byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AddedToken, PreTrainedTokenizerFast

from lingraft.data.chat import (
    SUPERVISED_END,
    SUPERVISED_START,
    encode_example,
    encode_examples,
    show_supervision,
    truncate,
)
from lingraft.data.chat_format import chat_format
from lingraft.data.chat_template import FALLBACK_TEMPLATE, chat_template
from lingraft.data.control_tokens import without_marks
from lingraft.data.encoded import EncodedExample, EncodedTable
from lingraft.data.example import Example, Message
from lingraft.errors import DataError, ModelError

NO_LIMIT = 10**9

SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<s>",
    "</s>",
]
CORPUS = [
    "USER: Hello, how are you?\n\nASSISTANT: I am well.\n\nThank you!\n",
    "¿Cómo estás? Grüße aus Köln. L'été est là. 東京はどこですか。สวัสดี 🤖🤖",
    "\n\n\n1. one\n2. two\n  indented   text\n\n### Response:\n### Instruction:\n[INST] x [/INST] y",
]


def build_tokenizer(
    *, eos: str = "<|im_end|>", bos: str = "<s>", trim_offsets: bool = False
) -> PreTrainedTokenizerFast:
    """Return a tokenizer that merges across words, or one whose offsets leave white space out, as Llama 3's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if trim_offsets:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos, extra_special_tokens=SPECIAL
    )
    wrapped.name_or_path = "tiny"
    return wrapped


Part = tuple[str, bool]  # text, and whether the loss sees it

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED_BEFORE_END = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED_WITH_LINE_BREAK = MARKED_BEFORE_END.replace(
    "{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}",
    "{{ message['content'] + '<|im_end|>\n' }}{%- endgeneration -%}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}",
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set turns = messages %}{% set system = '' %}{% endif %}"
    "{% for message in turns %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ '<s>[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' </s>' }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
SPACED = (  # no end token; header and answer end in a space, which melts into the token after it: the answer's
    "{% for message in messages %}{{ message['role'].upper() + ': ' + message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)


def chatml_parts(messages: Sequence[Message], default_system: str = "You are helpful") -> list[Part]:
    parts: list[Part] = []
    if messages[0].role != "system" and default_system:
        parts.append((f"<|im_start|>system\n{default_system}<|im_end|>\n", False))
    for one in messages:
        answer = one.role == "assistant"
        parts += [(f"<|im_start|>{one.role}\n", False), (f"{one.content}<|im_end|>", answer), ("\n", False)]
    return parts


def marked_parts(messages: Sequence[Message]) -> list[Part]:
    return chatml_parts(messages, default_system="")


def llama_2_parts(messages: Sequence[Message]) -> list[Part]:
    system, parts = "", list[Part]()
    for one in messages:
        if one.role == "system":
            system = f"<<SYS>>\n{one.content}\n<</SYS>>\n\n"
        elif one.role == "user":
            parts.append((f"<s>[INST] {system}{one.content.strip()} [/INST]", False))
            system = ""
        else:
            parts.append((f" {one.content.strip()} </s>", True))
    return parts


def llama_3_parts(messages: Sequence[Message]) -> list[Part]:
    parts: list[Part] = [("<|begin_of_text|>", False)]
    for one in messages:
        parts.append((f"<|start_header_id|>{one.role}<|end_header_id|>\n\n", False))
        parts.append((f"{one.content.strip()}<|eot_id|>", one.role == "assistant"))
    return parts


def spaced_parts(messages: Sequence[Message]) -> list[Part]:
    parts: list[Part] = []
    for one in messages:
        is_answer = one.role == "assistant"  # whose end token is put in: nothing else would end it
        parts += [
            (f"{one.role.upper()}:", False),
            (f" {one.content}" + "</s>" * is_answer, is_answer),
            (" ", False),
        ]
    return parts


def fallback_parts(messages: Sequence[Message]) -> list[Part]:
    parts: list[Part] = [("<s>", False)]
    for one in messages:
        if one.role == "system":
            parts.append((f"{one.content}\n\n", False))
        elif one.role == "user":
            parts.append((f"### Instruction:\n{one.content}\n\n", False))
        else:
            parts += [("### Response:\n", False), (f"{one.content}</s>", True), ("\n\n", False)]
    return parts


@dataclass(frozen=True)
class Style:
    template: str | None
    parts: Callable[[Sequence[Message]], list[Part]]
    eos: str


STYLES = {
    "chatml": Style(CHATML, chatml_parts, "<|im_end|>"),
    "marked before the end token": Style(MARKED_BEFORE_END, marked_parts, "<|im_end|>"),
    "marked with the line break": Style(MARKED_WITH_LINE_BREAK, marked_parts, "<|im_end|>"),
    "llama 2": Style(LLAMA_2, llama_2_parts, "</s>"),
    "llama 3": Style(LLAMA_3, llama_3_parts, "<|eot_id|>"),
    "spaced, no end token": Style(SPACED, spaced_parts, "</s>"),
    "fallback": Style(None, fallback_parts, "</s>"),
}

plain_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
snippets = st.sampled_from(
    ["Hello", " I am well.", "\n\n", "  ", "東京", "🤖🤖", "สวัสดี", "été", "ASSISTANT: ", "[/INST]"]
)
special_names = st.sampled_from(
    ["<|im_end|>", "<|im_start|>assistant\n", "</s>", "<|eot_id|>", "### Response:\n"]
)


def texts(*pieces: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    joined = st.lists(st.one_of(*pieces), min_size=1, max_size=5).map("".join)
    return joined.filter(lambda text: text.strip() != "" and text.strip().strip("\x1c\x1d\x1e\x1f") != "")


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    messages = []
    if draw(st.booleans()):
        messages.append(Message("system", draw(texts(plain_text, snippets))))
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(texts(plain_text, snippets, special_names))))
        messages.append(Message("assistant", draw(texts(plain_text, snippets))))
    return tuple(messages)


def example_of(messages: Sequence[Message]) -> Example:
    return Example("1", tuple(messages), "en", "g", "test")


def bytes_of_tokens(tokenizer: Any, ids: Sequence[int]) -> list[bytes]:
    """Decode every token by itself to the bytes it stands for."""
    visible = [n for n in range(256) if 33 <= n <= 126 or 161 <= n <= 172 or 174 <= n <= 255]
    hidden = [n for n in range(256) if n not in visible]
    byte_of = {chr(n): n for n in visible} | {chr(256 + i): n for i, n in enumerate(hidden)}
    special = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    names = tokenizer.convert_ids_to_tokens(list(ids))
    return [name.encode() if name in special else bytes(byte_of[c] for c in name) for name in names]


def slow_mask(tokenizer: Any, ids: Sequence[int], parts: list[Part]) -> tuple[bool, ...]:
    """A token is supervised if one of its bytes comes from a supervised part."""
    supervised_byte = [seen for text, seen in parts for _ in text.encode()]
    mask, position = [], 0
    for content in bytes_of_tokens(tokenizer, ids):
        mask.append(any(supervised_byte[position : position + len(content)]))
        position += len(content)
    assert position == len(supervised_byte)
    return tuple(mask)


@pytest.fixture(scope="module", params=[False, True], ids=["whole offsets", "trimmed offsets"])
def tokenizers(request: pytest.FixtureRequest) -> dict[str, Any]:
    built = {}
    for name, style in STYLES.items():
        built[name] = build_tokenizer(eos=style.eos, trim_offsets=request.param)
        built[name].chat_template = style.template
    return built


@pytest.mark.parametrize("name", STYLES)
@settings(max_examples=30, deadline=None)
@given(messages=conversations(), max_length=st.integers(1, 120))
def test_mask_equals_a_slow_check_by_bytes(
    tokenizers: dict[str, Any], name: str, messages: tuple[Message, ...], max_length: int
) -> None:
    tokenizer, style = tokenizers[name], STYLES[name]
    parts = style.parts(messages)
    encoded = encode_example(example_of(messages), tokenizer, NO_LIMIT)

    assert b"".join(bytes_of_tokens(tokenizer, encoded.input_ids)).decode() == "".join(
        text for text, _ in parts
    )
    assert encoded.supervised == slow_mask(tokenizer, encoded.input_ids, parts)
    cut = truncate(encoded, max_length)
    assert cut.input_ids == encoded.input_ids[:max_length]
    assert cut.supervised == encoded.supervised[:max_length]
    assert cut.truncated_tokens == len(encoded.input_ids) - len(cut.input_ids)


@pytest.mark.parametrize("name", STYLES)
@settings(max_examples=10, deadline=None)
@given(messages=conversations())
def test_every_answer_begins_right_after_the_prompt_of_its_turn(
    tokenizers: dict[str, Any], name: str, messages: tuple[Message, ...]
) -> None:
    tokenizer, style = tokenizers[name], STYLES[name]
    before = "".join(text for text, _ in style.parts(messages[:-1]))
    whole = "".join(text for text, _ in style.parts(messages))
    prompt = without_marks(chat_format(tokenizer).prompt(messages[:-1]))[0].text
    assert prompt.startswith(before)
    assert whole.startswith(prompt)
    joined = b"".join(bytes_of_tokens(tokenizer, chat_format(tokenizer).prompt_ids(messages[:-1])))
    assert joined.decode() == prompt


@pytest.mark.parametrize("name", STYLES)
def test_batches_encode_like_single_examples(
    tokenizers: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lingraft.data.chat._BATCH", 64)
    tokenizer = tokenizers[name]
    examples = [
        example_of([Message("user", "a" * n), Message("assistant", "東京 " * (n % 7) + "b")] * (1 + n % 3))
        for n in range(1, 200)
    ]
    reported: list[tuple[int, int]] = []
    encoded = encode_examples(examples, tokenizer, 60, on_progress=lambda *done: reported.append(done))
    alone = [encode_or_none(example, tokenizer, 60) for example in examples]
    assert list(encoded.examples) == [one for one in alone if one is not None]
    assert len(encoded.dropped) == alone.count(None)
    assert encoded.truncated == sum(one is not None and one.truncated_tokens > 0 for one in alone)
    assert reported == sorted(reported)
    assert len(reported) > 3
    assert reported[-1] == (199, 199)


def encode_or_none(example: Example, tokenizer: Any, max_length: int) -> EncodedExample | None:
    try:
        return encode_example(example, tokenizer, max_length)
    except DataError:
        return None


def test_a_refused_conversation_does_not_take_its_neighbours_along(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["llama 2"]
    good = example_of([Message("user", "x"), Message("assistant", "y")])
    bad = Example("9", (Message("assistant", "x"), Message("assistant", "y")), "en", "g", "test")
    encoded = encode_examples([good, bad, good], tokenizer, NO_LIMIT)
    assert [one.example_id for one in encoded.examples] == ["1", "1"]
    assert [row.place for row in encoded.dropped] == ["test, example 9"]
    assert "roles must alternate" in encoded.dropped[0].problem
    with pytest.raises(
        DataError, match=r"no example is left .* out of 1.* The first: test, example 9: the chat"
    ):
        encode_examples([bad], tokenizer, NO_LIMIT)


def test_encoding_into_a_folder_leaves_a_table_there(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    example = example_of([Message("user", "x"), Message("assistant", "y")])
    encoded = encode_examples([example], tokenizers["chatml"], NO_LIMIT, folder=tmp_path / "encoded")
    assert list(EncodedTable.open(tmp_path / "encoded")) == list(encoded.examples)


def test_what_truncation_costs_is_counted(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["llama 3"]
    short = example_of([Message("user", "x"), Message("assistant", "y")])
    long_answer = example_of([Message("user", "x"), Message("assistant", "y " * 300)])
    long_question = example_of([Message("user", "x " * 300), Message("assistant", "y")])
    encoded = encode_examples([short, long_answer, long_question], tokenizer, 100)
    assert [len(one.input_ids) for one in encoded.examples] == [len(encoded.examples[0].input_ids), 100]
    assert encoded.truncated == 1
    assert [row.problem for row in encoded.dropped] == ["no token of an answer is left within max_length 100"]
    with pytest.raises(DataError, match="no example is left to train on out of 1"):
        encode_examples([long_question], tokenizer, 100)
    with pytest.raises(DataError, match="test, example 1: no token of an answer"):
        encode_example(long_question, tokenizer, 100)


def test_a_conversation_that_the_template_refuses_is_dropped_and_named(tokenizers: dict[str, Any]) -> None:
    fine = example_of([Message("user", "x"), Message("assistant", "y")])
    twice = example_of([Message("user", "x"), Message("user", "x"), Message("assistant", "y")])
    encoded = encode_examples([fine, twice], tokenizers["llama 2"], NO_LIMIT)
    assert len(encoded.examples) == 1
    assert encoded.dropped[0].place == "test, example 1"
    assert encoded.dropped[0].problem == "the chat template refuses the conversation: roles must alternate"


def test_a_template_that_marks_nothing_is_an_error() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{{ messages[0]['content'] }}{% if false %}{% generation %}x{% endgeneration %}{% endif %}"
    )
    with pytest.raises(ModelError, match="tiny: its chat template shows no answer"):
        encode_example(example_of([Message("user", "x"), Message("assistant", "y")]), tokenizer, NO_LIMIT)


def test_a_template_that_prints_the_date_gives_the_same_text_every_day() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        + "{{ date_string }}"
        + CHATML
    )
    assert chat_format(tokenizer).prompt([Message("user", "x")]).startswith("26 Jul 2024<|im_start|>")


def test_fallback_is_named_and_needs_an_end_token() -> None:
    tokenizer = build_tokenizer()
    assert chat_template(tokenizer) == (FALLBACK_TEMPLATE, True)
    tokenizer.chat_template = FALLBACK_TEMPLATE  # as load_tokenizer sets it
    assert chat_template(tokenizer)[1]
    tokenizer.chat_template = CHATML
    assert chat_template(tokenizer) == (CHATML, False)
    tokenizer.chat_template, tokenizer.eos_token = None, None
    with pytest.raises(ModelError, match="neither a chat template nor an end token"):
        chat_template(tokenizer)


def test_supervision_is_shown_for_people(tokenizers: dict[str, Any]) -> None:
    messages = [
        Message("user", "Hola"),
        Message("assistant", "¿Qué tal?"),
        Message("user", "x"),
        Message("assistant", "y"),
    ]
    tokenizer = tokenizers["fallback"]
    shown = show_supervision(encode_example(example_of(messages), tokenizer, NO_LIMIT), tokenizer)
    a, z = SUPERVISED_START, SUPERVISED_END
    assert shown == (
        f"<s>### Instruction:\nHola\n\n### Response:\n{a}¿Qué tal?</s>{z}\n\n"
        f"### Instruction:\nx\n\n### Response:\n{a}y</s>{z}\n\n"
    )
    assert show_supervision(encode_example(example_of(messages), tokenizer, 20), tokenizer).endswith(
        " tokens cut off)"
    )


PIECES = ["<unk>", "<s>", "</s>", "▁[INST]", "▁hi", "▁[/INST]", "▁good", "▁day"]


def test_words_marked_by_a_leading_sign_are_supervised_from_the_first_on() -> None:
    """SentencePiece's way, as in Llama 2: the space before a word is part of its token."""
    vocabulary = {word: number for number, word in enumerate(PIECES)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = LLAMA_2
    messages = [Message("user", "hi"), Message("assistant", "good day")]
    encoded = encode_example(example_of(messages), tokenizer, NO_LIMIT)
    pairs = zip(tokenizer.convert_ids_to_tokens(list(encoded.input_ids)), encoded.supervised, strict=True)
    supervised = [token for token, seen in pairs if seen]
    assert [token for token in supervised if token != "<unk>"] == ["▁good", "▁day", "</s>"]
    assert encoded.supervised[: len(encoded.supervised) - len(supervised)].count(True) == 0


def test_a_token_that_swallows_the_space_beside_it_is_placed_by_its_offsets() -> None:
    """Sizes of tokens do not tell where they lie then: the bytes of the row are more than those of its tokens."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.add_tokens([AddedToken("<mark>", lstrip=True, rstrip=True)])
    messages = [Message("user", "a <mark> b"), Message("assistant", "c <mark> d e")]
    encoded = encode_examples([example_of(messages)], tokenizer, NO_LIMIT).examples[0]
    assert encoded == encode_example(example_of(messages), tokenizer, NO_LIMIT)
    shown = show_supervision(encoded, tokenizer)
    assert shown.partition(SUPERVISED_START)[2].startswith("c")
