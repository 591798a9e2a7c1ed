"""Generation: against a plain loop over tokens, whatever stands beside a row, and stopped where it must."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from lingraft.data.chat_format import chat_format
from lingraft.data.chat_template import FALLBACK_TEMPLATE
from lingraft.data.example import Message
from lingraft.errors import ModelError
from lingraft.models.empty_turn import empty_user_turn
from lingraft.models.generation import (
    Ending,
    Generated,
    Sampling,
    TokenPrompt,
    TransformersGenerator,
    _processors,
    answer_ending,
    empty_cache,
    finished,
    generate,
    keeps_all,
)
from lingraft.models.generation_log import GenerationLog
from lingraft.models.loading import load_model, load_tokenizer

QUESTIONS = [
    "Say a.",
    "What is the weekday after Monday, and what comes before it?",
    "Why?",
    "Ja?",
    "Two plus two",
]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    loaded: Any = load_model(tiny_model)
    with torch.no_grad():  # so that answers differ and some of them end
        torch.manual_seed(1)
        for parameter in loaded.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return loaded


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


def asked(tokenizer: Any, questions: Sequence[str] = QUESTIONS) -> list[TokenPrompt]:
    return [
        TokenPrompt(tuple(chat_format(tokenizer).prompt_ids([Message("user", text)])), seed)
        for seed, text in enumerate(questions)
    ]


def answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[TokenPrompt],
    sampling: Sampling,
    ending: Ending,
    batch: int = 16,
) -> list[Generated]:
    found: dict[int, Generated] = {}
    for one in generate(TransformersGenerator(model, tokenizer, batch), prompts, sampling, ending):
        found |= one
    return [found[row] for row in range(len(prompts))]


def test_greedy_answers_are_those_of_a_plain_loop(tiny_model: Path, model: Any, tokenizer: Any) -> None:
    ending = answer_ending(tiny_model, tokenizer)
    for prompt, found in zip(
        asked(tokenizer),
        answers(model, tokenizer, asked(tokenizer), Sampling(max_new_tokens=12), ending),
        strict=True,
    ):
        ids = list(prompt.ids)
        with torch.inference_mode():
            while len(ids) < len(prompt.ids) + 12 and (
                len(ids) == len(prompt.ids) or ids[-1] not in ending.tokens
            ):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert found == finished(ids[len(prompt.ids) :], ending, tokenizer)


@pytest.mark.parametrize(
    "sampling", [Sampling(max_new_tokens=20), Sampling(1.0, 0.9, 20)], ids=["greedy", "drawn"]
)
def test_an_answer_does_not_depend_on_its_neighbours(
    tiny_model: Path, model: Any, tokenizer: Any, sampling: Sampling
) -> None:
    ending, prompts = answer_ending(tiny_model, tokenizer), asked(tokenizer)
    together = answers(model, tokenizer, prompts, sampling, ending)
    assert answers(model, tokenizer, prompts, sampling, ending, batch=2) == together
    assert [answers(model, tokenizer, [one], sampling, ending)[0] for one in prompts] == together
    assert answers(model, tokenizer, prompts[::-1], sampling, ending)[::-1] == together
    assert len({one.text for one in together}) > 1


@pytest.mark.parametrize("beginning", [(), tuple(range(5, 25))])
def test_prompts_that_are_read_in_portions_get_the_same_answers(
    tiny_model: Path, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, beginning: tuple[int, ...]
) -> None:
    ending = answer_ending(tiny_model, tokenizer)
    prompts = [TokenPrompt((*beginning, *one.ids), one.seed) for one in asked(tokenizer)]
    prompts.append(TokenPrompt((*beginning, 7)))
    alone = [answers(model, tokenizer, [one], Sampling(), ending)[0] for one in prompts]
    for tokens in (1, 40):
        monkeypatch.setattr("lingraft.models.generation._READ_TOKENS", tokens)
        assert answers(model, tokenizer, prompts, Sampling(), ending) == alone


def test_a_shared_beginning_limits_and_leaving_rows_change_no_answer(
    tiny_model: Path, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48}
    shape |= {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    windowed: Any = MistralForCausalLM(MistralConfig(**shape, sliding_window=16))
    windowed.train(mode=False)
    ending = answer_ending(tiny_model, tokenizer)
    beginning = tuple(range(5, 45))
    prompts = [
        TokenPrompt((*beginning, *one.ids), one.seed, limit)
        for one, limit in zip(asked(tokenizer), (3, 20, 7, 12, 1), strict=True)
    ]
    for one, is_plain in ((model, True), (windowed, False)):
        cache = empty_cache(one)
        assert cache is not None
        assert keeps_all(cache) is is_plain  # a window would count the padding after a shared beginning
        for sampling in (Sampling(), Sampling(1.0, 0.9)):
            alone = [answers(one, tokenizer, [prompt], sampling, ending)[0] for prompt in prompts]
            with monkeypatch.context() as patched:
                rows = rows_of_each_call(one, patched)
                assert answers(one, tokenizer, prompts, sampling, ending) == alone
            assert rows[0] == 5
            assert rows == sorted(rows, reverse=True)
            assert rows[-1] < 5


def rows_of_each_call(model: Any, patched: pytest.MonkeyPatch) -> list[int]:
    """Watch how many rows transformers' generate is given."""
    rows: list[int] = []
    inner = model.generate

    def watched(ids: Any, **options: Any) -> Any:
        rows.append(len(ids))
        return inner(ids, **options)

    patched.setattr(model, "generate", watched)
    return rows


def test_draws_follow_the_models_probabilities(tiny_model: Path, model: Any, tokenizer: Any) -> None:
    prompt = asked(tokenizer)[0].ids
    with torch.inference_mode():
        scores = model(torch.tensor([prompt])).logits[0, -1]
    wanted = torch.softmax(scores / 0.5, 0)
    kept = int((wanted.sort(descending=True).values.cumsum(0) < 0.6).sum()) + 1
    top = wanted.topk(kept)
    n = 2000
    drawn: Counter[int] = Counter()
    one_token = Ending(frozenset(range(len(tokenizer))))  # whatever comes ends it
    texts = {
        int(token): finished([int(token)], Ending(frozenset({-1})), tokenizer).text for token in top.indices
    }
    sampling = Sampling(temperature=0.5, top_p=0.6, max_new_tokens=1)
    prompts = [TokenPrompt(prompt, seed) for seed in range(n)]
    with torch.inference_mode():
        for start in range(0, n, 500):
            batch: Any = torch.tensor([prompt] * 500)
            draws = [torch.Generator().manual_seed(one.seed) for one in prompts[start : start + 500]]
            found = _processors(sampling, draws)(batch, scores.expand(500, -1))
            drawn.update(found.argmax(-1).tolist())
    assert set(drawn) <= set(texts)
    for token, probability in zip(
        top.indices.tolist(), (top.values / top.values.sum()).tolist(), strict=True
    ):
        assert drawn[token] / n == pytest.approx(probability, abs=4 * (probability / n) ** 0.5 + 1e-3)
    assert answers(model, tokenizer, prompts[:1], sampling, one_token)[0].ended


def test_global_generators_and_the_models_own_defaults_are_left_alone(
    tiny_model: Path, model: Any, tokenizer: Any
) -> None:
    ending, prompts = answer_ending(tiny_model, tokenizer), asked(tokenizer)
    plain = answers(model, tokenizer, prompts, Sampling(max_new_tokens=20), ending)
    own = model.generation_config
    model.generation_config = type(own)(repetition_penalty=5.0, do_sample=True, temperature=0.3, max_length=3)
    try:
        torch.manual_seed(5)
        state = torch.get_rng_state()
        assert answers(model, tokenizer, prompts, Sampling(max_new_tokens=20), ending) == plain
        answers(model, tokenizer, prompts, Sampling(1.0, 1.0, 4), ending)
        assert torch.equal(torch.get_rng_state(), state)
        assert model.generation_config.repetition_penalty == 5.0
    finally:
        model.generation_config = own


def test_a_continuation_ends_at_a_token_at_a_text_or_nowhere(tokenizer: Any) -> None:
    ids = list(tokenizer("Say a.\n\n### Response: b", add_special_tokens=False)["input_ids"])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert finished([*ids, end, end], Ending(frozenset({end})), tokenizer) == Generated(
        "Say a.\n\n### Response: b", len(ids) + 1, ended=True
    )
    assert not finished(ids, Ending(frozenset({end})), tokenizer).ended
    cut = finished(ids, Ending(frozenset({end}), ("### Response:",)), tokenizer)
    assert (cut.text, cut.ended) == ("Say a.\n\n", True)


def test_a_row_stops_at_a_text_and_the_others_go_on(tiny_model: Path, model: Any, tokenizer: Any) -> None:
    prompts, sampling = asked(tokenizer), Sampling(max_new_tokens=20)
    never = answer_ending(tiny_model, tokenizer).tokens
    free = answers(model, tokenizer, prompts, sampling, Ending(never))
    stop = free[0].text[2:4]
    stopped = answers(model, tokenizer, prompts, sampling, Ending(never, (stop,)))
    assert stopped[0].text == free[0].text[: free[0].text.index(stop)]
    assert stopped[0].ended
    assert stopped[0].tokens < free[0].tokens
    for before, after in zip(free, stopped, strict=True):
        assert stop in before.text or before == after


def test_what_ends_an_answer_is_what_training_teaches(tiny_model: Path, tokenizer: Any) -> None:
    named = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert answer_ending(tiny_model, tokenizer).tokens == {named}
    other = load_tokenizer(tiny_model)
    other.eos_token = "<|endoftext|>"
    assert answer_ending(tiny_model, other).tokens == {named, other.convert_tokens_to_ids("<|endoftext|>")}


def test_a_folder_that_names_no_end_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    other = load_tokenizer(tiny_model)
    other.chat_template = "{% for m in messages %}{{ '[' + m['content'] + ']' }}{% endfor %}"
    other.eos_token = None
    with pytest.raises(ModelError, match="no end token"):
        answer_ending(tmp_path, other)


def test_an_empty_user_turn_ends_before_the_users_words(tiny_model: Path, tokenizer: Any) -> None:
    answer = answer_ending(tiny_model, tokenizer)
    opening, ending = empty_user_turn(tokenizer, answer)
    assert tokenizer.decode(list(opening)) == "<|im_start|>user\n"
    assert ending == Ending(answer.tokens)
    fallback = load_tokenizer(tiny_model)
    fallback.chat_template = FALLBACK_TEMPLATE
    opening, ending = empty_user_turn(fallback, answer)
    assert fallback.decode(list(opening)) == "<|im_start|>### Instruction:\n"
    assert ending == Ending(answer.tokens, ("### Response:",))


def test_the_space_before_a_users_words_is_written_by_the_model(tiny_model: Path, tokenizer: Any) -> None:
    other = load_tokenizer(tiny_model)
    other.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    opening, ending = empty_user_turn(other, answer_ending(tiny_model, tokenizer))
    for words in ("Which day", "Hello", "a"):
        assert chat_format(other).prompt_ids([Message("user", words)])[: len(opening)] == list(opening)
    assert other.decode(list(opening)) == "[INST]"
    assert ending.texts == ("[/INST]",)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'always the same' }}",
        "{% for m in messages %}{{ '<|im_start|>' + m['content'] + m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    ],
)
def test_a_template_without_an_empty_turn_is_refused(tiny_model: Path, tokenizer: Any, template: str) -> None:
    other = load_tokenizer(tiny_model)
    other.chat_template = template
    with pytest.raises(ModelError, match=r"its chat template (shows no|does not show)"):
        empty_user_turn(other, answer_ending(tiny_model, tokenizer))


class Echo:
    """Says how long each prompt is, and keeps what it was asked."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.asked: list[list[int]] = []

    def continue_batch(self, prompts: Any, *_: Any) -> list[Generated]:
        self.asked.append([len(one.ids) for one in prompts])
        return [Generated(str(len(one.ids)), 1, ended=True) for one in prompts]


def test_batches_of_which_all_is_done_are_left_out_and_others_made_whole() -> None:
    prompts = [TokenPrompt((1,) * length) for length in (2, 9, 4, 7, 5)]
    echo = Echo(2)
    found = list(generate(echo, prompts, Sampling(), Ending(frozenset({0})), {1, 3, 2}.__contains__))
    assert echo.asked == [[5, 4], [2]]  # longest first; 9 and 7 are done, of 5 and 4 one is
    assert [sorted(one) for one in found] == [[2, 4], [0]]


def test_a_batch_holds_as_many_rows_as_its_tokens_allow_or_comes_in_another_order() -> None:
    prompts = [
        TokenPrompt((1,) * length, 0, limit) for length, limit in ((2, 3), (9, 1), (4, 3), (7, 3), (5, 3))
    ]
    echo, ending = Echo(10), Ending(frozenset({0}))
    list(generate(echo, prompts, Sampling(), ending, tokens_per_batch=24))
    assert echo.asked == [[9, 7], [5, 4, 2]]  # 2 x (9 + 3), 3 x (5 + 3)
    list(generate(echo, prompts, Sampling(), ending, tokens_per_batch=3))
    assert echo.asked[2:] == [[9], [7], [5], [4], [2]]
    for shuffle in (1, 1, 2):
        list(generate(echo, prompts, Sampling(), ending, shuffle=shuffle))
    assert sorted(echo.asked[-1]) == [2, 4, 5, 7, 9]
    assert echo.asked[-3] == echo.asked[-2]
    assert [9, 7, 5, 4, 2] not in echo.asked[-2:]
    assert echo.asked[-2] != echo.asked[-1]


def test_a_log_is_read_up_to_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    one, two, other = (Generated(text, 3, ended=True) for text in ("a\u2028b", "ü", "other"))
    GenerationLog(path).append({4: two, 1: one})
    whole = path.read_bytes()
    GenerationLog(path).append({1: other})  # what is there stays
    assert path.read_bytes() == whole
    for torn in (b'{"number": 7, "text": "c', b'{"number": 7}\n', b"\0\0\n", b"[1]\n"):
        path.write_bytes(whole + torn)
        log = GenerationLog(path)
        assert (log[1], log[4], 7 in log) == (one, two, False)
        assert path.read_bytes() == whole
    log.append({7: two})
    assert GenerationLog(path)[7] == two
