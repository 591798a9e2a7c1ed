"""What a turn is: the layouts that chat templates have, and what is told where one cannot be trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import AddedToken

from lingraft.data.chat import encode_answers, encode_example, encode_examples, show_supervision
from lingraft.data.chat_format import CHAT_IDENTITY, ChatFormat, chat_format
from lingraft.data.example import Example, Message
from lingraft.errors import DataError, ModelError
from lingraft.models.generation import Ending, chat_ending, finished

NO_LIMIT = 10**9
TRL = Path(str(find_spec("trl").origin)).parent / "chat_templates"  # type: ignore[union-attr]
AXOLOTL = find_spec("axolotl")  # a folder of templates: nothing of it is imported
FOLDERS = {"trl": TRL}
if AXOLOTL is not None:
    FOLDERS["axolotl"] = Path(str(AXOLOTL.origin)).parent / "utils" / "chat_templates" / "templates"
CONTROL = re.compile(
    r"<\|?[a-zA-Z_]+\|?>|</[a-z]+>|<\uff5c[^\uff5c]+\uff5c>|\[/?[A-Z_]{3,}\]|\[\|[a-z]+\|\]|\[gMASK\]"
)
needs_axolotl = pytest.mark.skipif(
    AXOLOTL is None, reason="axolotl, whose chat templates it reads, is not installed"
)

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A layout in which a turn ends with the next one's header, as ChatGLM's and GLM-4's do.
NEXT_HEADER = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHATML
)
# An empty think block before the last answer alone: what came before is written without, as Qwen3 does.
THINK_LAST = CHATML.replace(
    "message['role'] + '\n'",
    "message['role'] + '\n' + ('<think>\n\n</think>\n\n' if loop.last and message['role'] == 'assistant' else '')",
)


def example(*said: str, roles: str = "ua", **options: Any) -> Example:
    names = {"s": "system", "u": "user", "a": "assistant"}
    messages = tuple(
        Message(names[role], words)  # type: ignore[arg-type]
        for role, words in zip(roles * (len(said) // len(roles)), said, strict=True)
    )
    return Example("1", messages, "en", "1", "test", **options)


def shown(said: Example, tokenizer: Any) -> str:
    return show_supervision(encode_example(said, tokenizer, NO_LIMIT), tokenizer)


@pytest.fixture(scope="module")
def of_trl(build_tokenizer: Any) -> Any:
    """Makes a tokenizer for a template that TRL (or axolotl) ships, with the control tokens that it writes."""

    def make(name: str, eos: str = "</s>", package: str = "trl") -> Any:
        template = (FOLDERS[package] / f"{name}.jinja").read_text(encoding="utf-8")
        found = {one for one in CONTROL.findall(template) if "think" not in one} | {"<s>", "</s>", eos}
        built = build_tokenizer(
            template, sorted(found), eos=eos, bos_token="<s>", ordinary=["<think>", "</think>"]
        )
        built.name_or_path = name
        return built

    return make


# Endings


def test_generation_stops_where_training_ends_an_answer(build_tokenizer: Any) -> None:
    """Qwen's base models: the end token is <|endoftext|>, and the template closes with <|im_end|>."""
    tokenizer = build_tokenizer(CHATML, ["<|im_start|>", "<|im_end|>", "<|endoftext|>"], eos="<|endoftext|>")
    encoded = encode_example(example("a", "b"), tokenizer, NO_LIMIT)
    trained = [one for one, seen in zip(encoded.input_ids, encoded.supervised, strict=True) if seen]
    ids = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert chat_format(tokenizer).endings == {*ids}
    for named in (None, ids[0], [ids[0]]):
        ending = chat_ending(named, tokenizer)
        assert trained[-1] in ending.tokens
        assert finished([*trained, *trained], ending, tokenizer).text == "b"


def test_an_answer_that_the_next_header_ends_is_taught_to_end(build_tokenizer: Any) -> None:
    special = ["<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>"]
    tokenizer = build_tokenizer(NEXT_HEADER, special, eos="<|endoftext|>")
    assert shown(example("a", "b"), tokenizer) == "<|user|>\na<|assistant|>\n⟦b<|user|>⟧"
    two = shown(example("a", "b", "c", "d"), tokenizer)
    assert two == "<|user|>\na<|assistant|>\n⟦b<|user|>⟧\nc<|assistant|>\n⟦d<|user|>⟧"
    assert tokenizer.convert_tokens_to_ids("<|user|>") in chat_ending(None, tokenizer).tokens
    assert chat_format(tokenizer).prompt(example("a", "b", "c", "d").messages[:3]) == (
        "<|user|>\na<|assistant|>\nb<|user|>\nc<|assistant|>\n"
    )


def test_an_answer_that_nothing_ends_gets_the_end_token_or_is_refused(build_tokenizer: Any) -> None:
    template = "{% for m in messages %}{{ m['role'] + ':\n' + m['content'] + '\n' }}{% endfor %}"
    tokenizer = build_tokenizer(template, ["</s>"], eos="</s>")
    assert shown(example("a", "b", "c", "d"), tokenizer) == (
        "user:\na\nassistant:\n⟦b</s>⟧\nuser:\nc\nassistant:\n⟦d</s>⟧\n"
    )
    with pytest.raises(ModelError, match=r"tiny .*nothing at which generation could stop.*set `eos_token`"):
        encode_example(example("a", "b"), build_tokenizer(template, [], eos=None), NO_LIMIT)


def test_the_end_is_the_first_of_what_the_template_writes_after_every_answer(of_trl: Any) -> None:
    """Phi-3 writes its end token after the last turn only: it is no part of an answer."""
    tokenizer = of_trl("phi3", eos="<|endoftext|>")
    assert shown(example("a", "b", "c", "d"), tokenizer) == (
        "<|user|>\na<|end|>\n<|assistant|>\n⟦b<|end|>⟧\n<|user|>\nc<|end|>\n<|assistant|>\n⟦d<|end|>⟧\n<|endoftext|>"
    )


# What stands before an answer


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("qwen3", "<think>\n\n</think>\n\n"),
        ("qwen3_5_think", "<think>\n\n</think>\n\n"),
        ("qwen3_5_nothink", "<think>\n\n</think>\n\n"),
        ("deepseek_r1_distill", "<think>\n\n</think>\n\n"),
        ("nemotron_3_nano", "<think></think>"),
        ("glm4moe", "<think></think>\n"),
        ("gptoss", "<|channel|>final<|message|>"),
    ],
)
def test_what_stands_before_an_answer_is_masked_and_given(of_trl: Any, name: str, block: str) -> None:
    tokenizer = of_trl(name)
    form = chat_format(tokenizer)
    assert form.prefix == block
    for said in (example("a", "Yes"), example("a", "Yes", "b", "Maybe")):
        text = shown(said, tokenizer)
        assert text.count(f"{block}⟦") == len(said.messages) // 2
        encoded, characters = encode_answers(said, tokenizer, NO_LIMIT)
        prompt = chat_format(tokenizer).prompt_ids(said.messages[:-1])
        assert list(encoded.input_ids[: len(prompt)]) == prompt
        answer = encoded.input_ids[len(prompt) :]
        assert all(encoded.supervised[len(prompt) : len(prompt) + 2])
        assert finished(answer, Ending(form.endings), tokenizer).text == said.answer
        assert characters == len("Yes") + len("Maybe") * (len(said.messages) == 4)


def test_thoughts_that_a_model_writes_are_no_answer(of_trl: Any) -> None:
    tokenizer = of_trl("qwen3")
    form = chat_format(tokenizer)
    assert form.answer_in("<think>\nHm, 7?\n</think>\n\n8") == "8"
    assert form.answer_in("Hm, 7?</think>8") == "8"
    assert form.answer_in("<think>\nHm, 7? I am cut") == ""
    assert form.answer_in("8") == "8"
    tokenizer.add_special_tokens({"extra_special_tokens": ["<think>", "</think>"]})
    ending = chat_ending(None, tokenizer)
    assert ending.thoughts is not None
    for said, answer in (
        ("<think>7</think>8<|im_end|>", "8"),
        ("<think>7<|im_end|>", ""),
        ("8<|im_end|>", "8"),
    ):
        assert finished(tokenizer.encode(said, add_special_tokens=False), ending, tokenizer).text == answer


def test_templates_without_thoughts_keep_what_looks_like_them(of_trl: Any) -> None:
    assert chat_format(of_trl("llama3")).answer_in("<think>a</think>b") == "<think>a</think>b"


def test_reasoning_that_a_row_has_is_trained(of_trl: Any) -> None:
    tokenizer = of_trl("qwen3")
    assert shown(example("a", "<think>\nHm\n</think>\n\nYes"), tokenizer).endswith(
        "<|im_start|>assistant\n⟦<think>\nHm\n</think>\n\nYes<|im_end|>⟧\n"
    )


def test_a_whole_block_that_only_the_prompt_has_is_put_in(build_tokenizer: Any) -> None:
    """Gemma 4 of some sizes asks for an answer with an empty channel of thoughts, and writes answers without."""
    template = CHATML.replace("assistant\n' }}", "assistant\n<|channel>thought\n<channel|>' }}")
    special = ["<|im_start|>", "<|im_end|>", "<|channel>", "<channel|>"]
    tokenizer = build_tokenizer(template, special, eos="<|im_end|>")
    assert chat_format(tokenizer).prefix == "<|channel>thought\n<channel|>"
    text = shown(example("a", "b", "c", "d"), tokenizer)
    assert text.count("assistant\n<|channel>thought\n<channel|>⟦") == 2
    asked = example("a", "b", "c", "d").messages[:1]
    assert chat_format(tokenizer).prompt(asked) == own_prompt(asked, tokenizer)


# Templates that write a turn otherwise once others follow


@pytest.mark.parametrize("kind", ["byte-level BPE", "BPE with byte fallback", "Unigram"])
@pytest.mark.parametrize("header", ["assistant: ", "### Answer:  "])
def test_a_space_at_the_end_of_a_header_is_written_by_the_model(
    build_tokenizer: Any, header: str, kind: str
) -> None:
    """Tokenizers join it to the first word: a prompt that ends in it would hold a token that training never shows."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'user: ' + m['content'] + '\n' }}"
        f"{{% else %}}{{{{ '{header}' + m['content'] + eos_token + '\n' }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ '{header}' }}}}{{% endif %}}"
    )
    tokenizer = build_tokenizer(template, ["<s>", "</s>"], eos="</s>", kind=kind)
    for words in ("Monday", "Hello", "  two spaces", "東京"):
        said = example("Which day", "Tuesday", "Which day", words)
        encoded = encode_example(said, tokenizer, NO_LIMIT)
        prompt = chat_format(tokenizer).prompt_ids(said.messages[:-1])
        assert list(encoded.input_ids[: len(prompt)]) == prompt
        assert encoded.supervised[len(prompt) - 1 : len(prompt) + 1] == (False, True)
        form = chat_format(tokenizer)
        marked = form.prompt(said.messages[:-1])
        whole = form.encode(marked + form.continuation(marked, words.lstrip()) + "</s>\n")
        assert list(encoded.input_ids) == whole or words != words.lstrip()


@pytest.mark.parametrize("kind", ["byte-level BPE", "BPE with byte fallback", "Unigram", "WordPiece"])
@pytest.mark.parametrize("header", ["<|assistant|>\n", "<|assistant|>"])
def test_a_header_that_swallows_white_space_is_not_trained(
    build_tokenizer: Any, kind: str, header: str
) -> None:
    """As Phi-3's: white space at the start of an answer is of the header's token, which holds characters of both."""
    template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ '{header}' }}}}{{% endif %}}"
    )
    special = [
        AddedToken(one, rstrip=True, normalized=False) for one in ("<|user|>", "<|assistant|>", "<|end|>")
    ]
    tokenizer = build_tokenizer(template, special, eos="<|end|>", kind=kind)
    for answer in ("a", " a", "\n\n a"):
        said = example("a", answer)
        encoded = encode_example(said, tokenizer, NO_LIMIT)
        prompt = chat_format(tokenizer).prompt_ids(said.messages[:1])
        assert list(encoded.input_ids[: len(prompt)]) == prompt
        assert encoded.supervised[len(prompt) - 1 : len(prompt) + 1] == (False, True)


def test_an_empty_answer_ends_at_once(build_tokenizer: Any) -> None:
    """Examples of a few-shot prompt may have none; data sets are read without."""
    tokenizer = build_tokenizer(CHATML, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    assert shown(example("a", "", "c", " "), tokenizer) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n⟦<|im_end|>⟧\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n⟦ <|im_end|>⟧\n"
    )
    assert (
        chat_format(tokenizer)
        .prompt(example("a", "", "c", "d").messages[:3])
        .endswith("assistant\n<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")
    )


def test_a_header_that_prompts_lack_is_masked_whatever_an_answer_says(build_tokenizer: Any) -> None:
    """A tag of thoughts in an answer that the template knows nothing of is text like any other."""
    template = CHATML[: CHATML.index("{% if add_generation_prompt")]
    tokenizer = build_tokenizer(template, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    for answer in ("b", "It ends with </think> there"):
        assert shown(example("a", answer), tokenizer).endswith(
            f"<|im_start|>assistant\n⟦{answer}<|im_end|>⟧\n"
        )


THINKERS = ["qwen3", "qwen3_6", "deepseekv3", "deepseek_r1_distill", "nemotron_3_nano", "glm4moe", "llama3"]


@pytest.mark.parametrize("name", THINKERS)
@pytest.mark.parametrize(
    "answer",
    ["Use </think> to end", "The tags <think> and </think> mark it", "<think> begins it", "So: </think>"],
)
def test_tags_of_thoughts_that_an_answer_speaks_of_are_text(of_trl: Any, name: str, answer: str) -> None:
    """They are none of the tags that begin and end thoughts, and no template takes them for such."""
    tokenizer = of_trl(name)
    said = example("What is it?", "A tag", "And then?", answer)
    encoded = encode_example(said, tokenizer, NO_LIMIT)
    prompt = chat_format(tokenizer).prompt_ids(said.messages[:-1])
    assert list(encoded.input_ids[: len(prompt)]) == prompt
    assert encoded.supervised[len(prompt) - 1 : len(prompt) + 1] == (False, True)
    trained = encoded.input_ids[len(prompt) :]
    tags = set(tokenizer.convert_tokens_to_ids(["<think>", "</think>"]))
    assert name == "llama3" or not tags & set(trained)
    assert finished(trained, chat_ending(None, tokenizer), tokenizer).text.strip() == answer


@pytest.mark.parametrize("thought", ["User", "Hm </s>, so"])
def test_reasoning_that_the_template_leaves_out_is_refused(of_trl: Any, thought: str) -> None:
    """Also where its words stand elsewhere, as `User` in a header."""
    with pytest.raises(DataError, match="leaves out the reasoning"):
        encode_example(example("a", f"<think>{thought}</think>b"), of_trl("deepseekv3"), NO_LIMIT)
    text = shown(example("a", f"\n<think>{thought}</think>b"), of_trl("qwen3"))
    assert f"⟦<think>\n{thought}\n</think>\n\nb<|im_end|>⟧" in text
    text = shown(example("a", f"{thought}\n</think>\n\nb"), of_trl("qwen3"))
    assert f"⟦<think>\n{thought}\n</think>\n\nb<|im_end|>⟧" in text


def test_only_the_answer_that_is_written_as_it_is_asked_for_is_trained(build_tokenizer: Any) -> None:
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = build_tokenizer(THINK_LAST, special, eos="<|im_end|>", ordinary=["<think>", "</think>"])
    text = shown(example("a", "b", "c", "d"), tokenizer)
    assert "assistant\nb<|im_end|>" in text
    assert text.endswith("assistant\n<think>\n\n</think>\n\n⟦d<|im_end|>⟧\n")
    rows = [example("a", "b"), example("a", "b", "c", "d")]
    encoded = encode_examples(rows, tokenizer, NO_LIMIT)
    assert (len(encoded.examples), encoded.dropped, encoded.handled) == (2, (), {"masked_answers": 1})
    assert [number for number, _ in encoded.handled_sentences()] == [1]
    last = replace(rows[1].messages[3], supervised=False)
    with pytest.raises(DataError, match="writes every answer of it otherwise than after a question alone"):
        encode_example(replace(rows[1], messages=(*rows[1].messages[:3], last)), tokenizer, NO_LIMIT)


def test_a_row_that_cannot_be_told_does_not_stop_the_others(build_tokenizer: Any) -> None:
    """A template that leaves earlier answers out shows no more than the last one."""
    template = CHATML.replace(
        "message['content'] +",
        "(message['content'] if loop.last or message['role'] == 'user' else '…') +",
    )
    tokenizer = build_tokenizer(template, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    rows = [example("a", "b")] * 99 + [example("a", "b", "c", "d")]
    encoded = encode_examples(rows, tokenizer, NO_LIMIT, max_refused_share=0.01)
    assert len(encoded.examples) == 99
    assert "writes 1 of its 2 answers" in encoded.dropped[0].problem
    with pytest.raises(
        DataError,
        match=r"1 of 50 examples cannot .* allows \(1.00%\)\. .* write `max_broken_share: 0.02` beside the source",
    ):
        encode_examples(rows[50:], tokenizer, NO_LIMIT, max_refused_share=0.01)


# Content as a list of parts


@pytest.mark.parametrize("name", ["smolvlm", "idefics3", "llava_next"])
def test_templates_that_take_parts_get_them(of_trl: Any, name: str) -> None:
    tokenizer = of_trl(name)
    text = shown(example("What is it?", "A cat", "Sure?", "Yes"), tokenizer)
    assert re.findall("⟦(.*?)⟧", text) == [
        f" {one}{end}" for one in ("A cat", "Yes") for end in re.findall(r"⟦ A cat(.*?)⟧", text)
    ]
    assert "What is it?" in text
    assert "Sure?" in text


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ 'always the same' }}", "shows no question"),
        ("{{ messages[0]['content'] }}", "shows no answer"),
        ("{{ raise_exception('no talk today') }}", "refuses a question with its answer .*no talk today"),
        ("{{ 1 / 0 }}", "refuses a question with its answer .*division by zero"),
        (
            "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
            "refuses .*maximum recursion depth",
        ),
        (CHATML.replace("message['content']", "(message['content'] | upper)"), "shows no question"),
        (
            CHATML.replace("message['content']", "message['content'].replace('Mon', 'Sun')"),
            "the chat template leaves out the assistant message",
        ),
    ],
)
def test_a_template_in_which_words_vanish_is_refused(
    build_tokenizer: Any, template: str, problem: str
) -> None:
    tokenizer = build_tokenizer(template, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    with pytest.raises(ModelError, match=f"^tiny byte-level BPE: .*{problem}"):
        encode_examples([example("a", "b")], tokenizer, NO_LIMIT)


def test_of_several_templates_the_default_one_is_used(build_tokenizer: Any) -> None:
    tokenizer = build_tokenizer(None, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    tokenizer.chat_template = {"rag": "{{ 'x' }}", "default": CHATML}
    assert shown(example("a", "b"), tokenizer).endswith("assistant\n⟦b<|im_end|>⟧\n")
    tokenizer.chat_template = {"rag": CHATML, "tools": CHATML}
    with pytest.raises(ModelError, match=r"several chat templates \(rag, tools\).*call the one .* 'default'"):
        chat_format(tokenizer)


def test_an_answer_that_does_not_come_back_is_refused(build_tokenizer: Any) -> None:
    """Words that the template adds would be trained, and scored as the answer's."""
    template = CHATML.replace("message['content'] +", "message['content'] + ' Over.' +")
    tokenizer = build_tokenizer(template, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    with pytest.raises(ModelError, match=r"'Monday' is 'Monday Over.' when it is cut off at its end"):
        chat_format(tokenizer)


# The clock


@pytest.mark.parametrize("name", ["gptoss", "muse_glimmer", "llama3_2"])
def test_templates_are_shown_a_day_that_stands_still(of_trl: Any, name: str) -> None:
    text = chat_format(of_trl(name)).prompt([Message("user", "x")])
    assert "2024-07-26" in text or "26 Jul 2024" in text
    assert CHAT_IDENTITY["clock"] == "2024-07-26"


def test_every_directive_of_the_clock_is_fixed(build_tokenizer: Any) -> None:
    asked = "{% set f = '%A, %B' %}{{ strftime_now(f + ' %-d %Y, %H:%M %j %y/%m/%d 100%%') }}\n"
    asked = asked.replace("\n", "{{ strftime_now(format='!') }}\n")  # as transformers names what it takes
    tokenizer = build_tokenizer(asked + CHATML, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    text = chat_format(tokenizer).prompt([Message("user", "x")])
    assert text.startswith("Friday, July 26 2024, 00:00 208 24/07/26 100%!\n<|im_start|>user")


# Masked answers and system prompts


def test_a_masked_answer_is_not_trained(build_tokenizer: Any) -> None:
    tokenizer = build_tokenizer(CHATML, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    messages = (
        Message("user", "a"),
        Message("assistant", "b", supervised=False),
        Message("user", "c"),
        Message("assistant", "d"),
    )
    said = Example("1", messages, "en", "1", "test")
    assert "assistant\nb<|im_end|>" in shown(said, tokenizer)
    assert re.findall("⟦(.*?)⟧", shown(said, tokenizer)) == ["d<|im_end|>"]
    assert encode_answers(said, tokenizer, NO_LIMIT)[1] == 1
    alone = Example("2", messages[:2], "en", "1", "test")
    encoded = encode_examples([said, alone], tokenizer, NO_LIMIT)
    assert encoded.handled == {"masked_answers": 1}
    assert [row.problem for row in encoded.dropped] == ["every answer of it is masked (weight 0)"]


@pytest.mark.parametrize(
    "template", [NO_SYSTEM, CHATML.replace("{% for", "{% for", 1)], ids=["refused", "taken"]
)
def test_a_system_prompt_without_a_place_is_refused_or_folded(build_tokenizer: Any, template: str) -> None:
    tokenizer = build_tokenizer(template, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    folded = example("Be kind", "a", "b", roles="sua", fold_system=True)
    text = shown(folded, tokenizer)
    encoded = encode_examples([folded, example("a", "b")], tokenizer, NO_LIMIT)
    if template == NO_SYSTEM:
        assert text.startswith("<|im_start|>user\nBe kind\n\na<|im_end|>")
        assert encoded.handled == {"folded_systems": 1}
        with pytest.raises(DataError, match="System role not supported"):
            encode_example(example("Be kind", "a", "b", roles="sua"), tokenizer, NO_LIMIT)
        prompt = chat_format(tokenizer).prompt(folded.messages[:-1], fold_system=True)
        assert prompt.startswith("<|im_start|>user\nBe kind\n\na<|im_end|>")
    else:
        assert text.startswith("<|im_start|>system\nBe kind<|im_end|>")
        assert encoded.handled == {}


def test_a_system_prompt_that_vanishes_is_refused(build_tokenizer: Any) -> None:
    template = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + CHATML
    tokenizer = build_tokenizer(template, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    with pytest.raises(DataError, match="leaves out the system message"):
        encode_example(example("Be kind", "a", "b", roles="sua"), tokenizer, NO_LIMIT)
    for words in (
        "Be kind",
        "user",
    ):  # which others say, and the template
        with pytest.raises(DataError, match="leaves out the system message"):
            encode_example(example(words, "Be kind: a", "b", roles="sua"), tokenizer, NO_LIMIT)
    assert "Be kind\n\na" in shown(example("Be kind", "a", "b", roles="sua", fold_system=True), tokenizer)


# A system prompt that is shown only while the user speaks last


def said_under(prompt: str, *said: str, **options: Any) -> Example:
    plain = example(*said, **options)
    return Example("1", (Message("system", prompt), *plain.messages), "en", "1", "test", **options)


def own_prompt(messages: Sequence[Message], tokenizer: Any) -> str:
    turns = [{"role": one.role, "content": one.content} for one in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


@needs_axolotl
@pytest.mark.parametrize(
    ("name", "single"),
    [
        ("mistral_v2v3", "<s>[INST] Be kind\n\nWhat?[/INST]⟦ A day</s>⟧"),
        ("mistral_v3_tekken", "<s>[INST]Be kind\n\nWhat?[/INST]⟦A day</s>⟧"),
        ("pixtral", "<s>[INST]Be kind\n\nWhat?[/INST]⟦A day</s>⟧"),
    ],
)
def test_a_system_prompt_that_only_the_last_question_shows_is_trained(
    of_trl: Any, name: str, single: str
) -> None:
    tokenizer = of_trl(name, package="axolotl")
    assert shown(said_under("Be kind", "What?", "A day"), tokenizer) == single
    two = said_under("Be kind", "What?", "A day", "Sure?", "Yes")
    text = shown(two, tokenizer)
    assert text.count("Be kind") == 1
    assert re.findall("⟦(.*?)⟧", text) == [single[single.index("⟦") + 1 : -1].replace("A day", "Yes")]
    for row in (said_under("Be kind", "What?", "A day"), two):
        asked = own_prompt(row.messages[:-1], tokenizer)
        assert "Be kind" in asked
        assert chat_format(tokenizer).prompt(row.messages[:-1]) == asked
        encoded, prompt = (
            encode_example(row, tokenizer, NO_LIMIT),
            chat_format(tokenizer).prompt_ids(row.messages[:-1]),
        )
        assert list(encoded.input_ids[: len(prompt)]) == prompt
        assert "".join(map(str, encoded.supervised)).startswith("False" * len(prompt) + "True")
    assert encode_examples([two], tokenizer, NO_LIMIT).handled == {"masked_answers": 1}


@needs_axolotl
def test_such_a_system_prompt_folded_stands_before_the_first_question(of_trl: Any) -> None:
    tokenizer = of_trl("mistral_v2v3", package="axolotl")
    row = said_under("Be kind", "What?", "A day", "Sure?", "Yes", fold_system=True)
    assert shown(row, tokenizer) == (
        "<s>[INST] Be kind\n\nWhat?[/INST]⟦ A day</s>⟧[INST] Sure?[/INST]⟦ Yes</s>⟧"
    )
    assert encode_examples([row], tokenizer, NO_LIMIT).handled == {"folded_systems": 1}


@needs_axolotl
def test_such_a_system_prompt_is_refused_where_a_tool_speaks_last(of_trl: Any) -> None:
    call = {"type": "function", "id": "call00001", "function": {"name": "look_up", "arguments": {}}}
    messages = (
        Message("system", "Be kind"),
        Message("user", "What?"),
        Message("assistant", "", json.dumps({"tool_calls": [call]})),
        Message("tool", "2", json.dumps({"tool_call_id": "call00001"})),
        Message("assistant", "A day"),
    )
    tokenizer = of_trl("mistral_v2v3", package="axolotl")
    with pytest.raises(DataError, match="leaves out the system message"):
        encode_example(Example("1", messages, "en", "1", "test"), tokenizer, NO_LIMIT)
    assert "look_up" in shown(Example("1", messages[1:], "en", "1", "test"), tokenizer)


@pytest.mark.parametrize("prompt", ["S", "INST", "What"])
def test_a_system_prompt_is_not_taken_for_words_that_happen_to_be_there(
    build_tokenizer: Any, prompt: str
) -> None:
    template = (
        "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"
        + CHATML.replace("<|im_start|>", "[INST]")
    )
    tokenizer = build_tokenizer(template, ["[INST]", "<|im_end|>"], eos="<|im_end|>")
    with pytest.raises(DataError, match="leaves out the system message"):
        encode_example(said_under(prompt, "What?", "A day"), tokenizer, NO_LIMIT)


# Tools that a template knows of, but does not write


CALLED = {"type": "function", "function": {"name": "look_up", "arguments": {"x": 1}}}
CALLING = (
    Message("user", "What?"),
    Message("assistant", "", json.dumps({"tool_calls": [CALLED]})),
    Message("tool", "2", json.dumps({"name": "look_up", "tool_call_id": "0"})),
    Message("assistant", "A day"),
)


@pytest.mark.parametrize(
    ("template", "tools", "lost"),
    [
        (CHATML + "{# tool_calls tools #}", "", "the call of look_up"),
        (CHATML + "{# tool_calls tools #}", json.dumps([CALLED]), "the (tool|call of) look_up"),
    ],
)
def test_calls_and_tools_that_vanish_are_refused(
    build_tokenizer: Any, template: str, tools: str, lost: str
) -> None:
    """Command A writes them where documents are given only: the call was trained as an empty answer."""
    tokenizer = build_tokenizer(template, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    with pytest.raises(DataError, match=f"leaves out {lost}, which would be lost"):
        encode_example(Example("1", CALLING, "en", "1", "test", tools=tools), tokenizer, NO_LIMIT)
    if tools:
        plain = Example("1", (CALLING[0], CALLING[-1]), "en", "1", "test", tools=tools)
        with pytest.raises(DataError, match="leaves out the tool look_up"):
            encode_example(plain, tokenizer, NO_LIMIT)


def test_the_header_of_an_answer_that_ends_every_conversation_is_not_trained(build_tokenizer: Any) -> None:
    """As Command R+'s later templates write it, also where tools are called."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|sep|>' + (m['content'] or "
        "(m['tool_calls'] | tojson)) + '<|im_end|>' }}{% endfor %}{{ '<|im_start|>assistant<|sep|>' }}"
    )
    tokenizer = build_tokenizer(template, ["<|im_start|>", "<|sep|>", "<|im_end|>"], eos="<|im_end|>")
    text = shown(Example("1", CALLING, "en", "1", "test"), tokenizer)
    spans = re.findall("⟦(.*?)⟧", text)
    assert len(spans) == 2
    assert spans[0].endswith("}]<|im_end|>")
    assert spans[1] == "A day<|im_end|>"
    assert text.endswith("⟧<|im_start|>assistant<|sep|>")


# All templates


NAMES = sorted(
    (package, path.stem)
    for package, folder in FOLDERS.items()
    for path in folder.glob("*.jinja")
    if not path.stem.endswith("_training")
)


def without_dates(text: str) -> str:
    """The library's own rendering tells today's."""
    return re.sub(r"\d{4}-\d\d-\d\d", "", text)


PARTS = ("smolvlm", "idefics3", "llava_next")


def test_the_templates_of_both_packages_are_there() -> None:
    assert len([name for package, name in NAMES if package == "trl"]) >= 25
    if AXOLOTL is None:
        pytest.skip("axolotl, whose chat templates are tested here too, is not installed")
    assert {("axolotl", name) for name in ("mistral_v1", "mistral_v2v3", "mistral_v7_tekken", "phi_4")} <= {
        *NAMES
    }


@pytest.mark.parametrize(("package", "name"), NAMES)
def test_training_and_evaluation_agree_with_every_template(of_trl: Any, package: str, name: str) -> None:
    """A row, cut at its ending after the prompt, gives the answer back; and the prompt is the template's own."""
    tokenizer = of_trl(name, package=package)
    form = chat_format(tokenizer)
    assert isinstance(form, ChatFormat)
    for said in (example("What?", "A day"), example("What?", "A day", "Sure?", "Yes, </s> sure")):
        encoded = encode_example(said, tokenizer, NO_LIMIT)
        prompt = chat_format(tokenizer).prompt_ids(said.messages[:-1])
        assert list(encoded.input_ids[: len(prompt)]) == prompt
        answer = finished(encoded.input_ids[len(prompt) :], chat_ending(None, tokenizer), tokenizer)
        assert answer.text.strip() == said.answer
        assert answer.ended
    if not form.prefix:
        given = said.messages[:1]
        parts = [{"type": "text", "text": "What?"}] if name in PARTS else "What?"
        clock = {"date_string": "26 Jul 2024"}
        own = tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True, **clock
        )
        assert without_dates(chat_format(tokenizer).prompt(given)) == without_dates(own)
