"""The evaluation's engine against the harness's own class, interrupted and resumed, in other batches, by others."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from completion_server import CompletionServer, Response, serving
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing

from lingraft.config.schema import Evaluation, EvaluationTask, ServerChoice
from lingraft.data.chat import encode_example
from lingraft.data.chat_format import chat_format
from lingraft.data.example import Example, Message
from lingraft.errors import EvaluationError
from lingraft.evaluate.answers import AnswerLog, ItemCount, request_key
from lingraft.evaluate.in_memory import Batching, InMemoryModel
from lingraft.evaluate.running import evaluate_model
from lingraft.models.generation import Generated, TransformersGenerator
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.models.server import ServerGenerator

QUESTIONS = [
    "Say a.",
    "What is the weekday after Monday, and what comes before it?",
    "Why?",
    "Ja?",
    "Two",
    "Say b.",
]
CHOICES = [" Monday", " the day after", " x"]


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> tuple[Any, Any]:
    """The tiny model in float32, moved so that answers differ and some of them end, and its tokenizer."""
    loaded: Any = load_model(tiny_model)
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in loaded.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return loaded, load_tokenizer(tiny_model)


def instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    """Return requests of a task, each of an item of its own."""
    return [Instance(kind, {}, one, 0, metadata=("task", number, 1)) for number, one in enumerate(arguments)]


def to_generate(*settings: dict[str, Any]) -> list[Instance]:
    prompts = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in QUESTIONS]
    return instances("generate_until", [(text, dict(one)) for one in settings for text in prompts])


def to_score() -> list[Instance]:
    """Choices that share contexts, some of several tokens; a lone one, an empty context, one that is too long."""
    shared = [(text, choice) for text in QUESTIONS for choice in CHOICES]
    return instances(
        "loglikelihood", [*shared, ("Alone", " and so on"), ("", "Say a."), ("Say a. " * 700, " Why?")]
    )


@pytest.fixture
def engine(tiny: tuple[Any, Any]) -> Callable[..., InMemoryModel]:
    def make(
        batching: Batching | None = None, answers: AnswerLog | None = None, **options: Any
    ) -> InMemoryModel:
        count = ItemCount(options.pop("total", 100), options.pop("on_progress", None))
        return InMemoryModel(
            *tiny, batching or Batching(None, 400), answers or AnswerLog(), count, chat=True, **options
        )

    return make


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The lengths of the prompts of every batch that is generated."""
    seen: list[list[int]] = []
    inner = TransformersGenerator.continue_batch

    def watched(self: TransformersGenerator, prompts: Any, *others: Any) -> list[Generated]:
        seen.append([len(one.ids) for one in prompts])
        return inner(self, prompts, *others)

    monkeypatch.setattr(TransformersGenerator, "continue_batch", watched)
    return seen


def test_answers_and_likelihoods_are_those_of_the_harness(
    tiny: tuple[Any, Any], engine: Callable[..., InMemoryModel]
) -> None:
    free = {"until": [], "do_sample": False, "max_gen_toks": 24}
    theirs = HFLM(pretrained=tiny[0], tokenizer=tiny[1], batch_size=1, backend="causal", add_bos_token=False)
    answers = theirs.generate_until(to_generate(free), disable_tqdm=True)
    assert len(set(answers)) > 2
    stop = next(text[3:5] for text in answers if len(text) > 6)
    settings = [free, {**free, "max_gen_toks": 9}, {**free, "until": [stop, "<|endoftext|>"]}]
    wanted = theirs.generate_until(to_generate(*settings), disable_tqdm=True)
    assert wanted != answers * 3
    lm = engine()
    assert lm.generate_until(to_generate(*settings)) == wanted
    assert set(lm.ended.values()) == {True, False}
    scores = theirs.loglikelihood(to_score(), disable_tqdm=True)
    for batching in (Batching(None, 400), Batching(None, 10**6)):
        for own, (value, is_greedy) in zip(engine(batching).loglikelihood(to_score()), scores, strict=True):
            assert own[0] == pytest.approx(value, abs=1e-4)
            assert own[1] == is_greedy
    rolling = instances("loglikelihood_rolling", [("Say a. " * 3,), ("Why?",)])
    assert engine().loglikelihood_rolling(rolling, disable_tqdm=True) == pytest.approx(
        theirs.loglikelihood_rolling(rolling, disable_tqdm=True), abs=1e-4
    )


def test_beams_go_the_harnesss_own_way(tiny: tuple[Any, Any], engine: Callable[..., InMemoryModel]) -> None:
    beams = {"until": [], "max_gen_toks": 6, "num_beams": 2}
    theirs = HFLM(pretrained=tiny[0], tokenizer=tiny[1], batch_size=8, backend="causal", add_bos_token=False)
    assert engine().generate_until(to_generate(beams)) == theirs.generate_until(to_generate(beams))


def test_batches_hold_to_their_tokens_and_tasks_share_them(
    engine: Callable[..., InMemoryModel], batches: list[list[int]]
) -> None:
    settings: list[dict[str, Any]] = [{"until": [], "max_gen_toks": limit} for limit in (4, 8)]
    engine().generate_until(to_generate(*settings))
    assert all(len(own) * (max(own) + 8) <= 400 for own in batches)
    assert sum(map(len, batches)) == 12
    assert max(map(len, batches)) > 6  # of both tasks
    batches.clear()
    engine(Batching(5, 10**6)).generate_until(to_generate(*settings))
    assert [len(own) for own in batches] == [5, 5, 2]


def test_an_interrupted_evaluation_goes_on_from_its_finished_batches(
    engine: Callable[..., InMemoryModel], batches: list[list[int]], tmp_path: Path
) -> None:
    requests = to_generate({"until": [], "max_gen_toks": 8})
    whole = engine(Batching(2, 10**6)).generate_until(requests)
    expected = list(batches)
    batches.clear()

    def stop(done: int, _: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        engine(Batching(2, 10**6), AnswerLog(path), on_progress=stop).generate_until(requests)
    assert batches == expected[:2]
    with path.open("a") as file:
        file.write('{"asked": "torn')
    told: list[int] = []
    again = engine(
        Batching(2, 10**6), AnswerLog(path), total=6, on_progress=lambda done, _: told.append(done)
    )
    assert again.generate_until(requests) == whole
    assert batches == expected
    assert told == [1, 2, 3, 4, 5, 6]
    assert engine(Batching(2, 10**6), AnswerLog(path)).generate_until(requests) == whole
    assert batches == expected
    scored = engine(answers=AnswerLog(path)).loglikelihood(to_score())
    assert engine(answers=AnswerLog(path)).loglikelihood(to_score()) == scored


def test_a_repeat_has_other_neighbours_and_other_draws(
    engine: Callable[..., InMemoryModel], batches: list[list[int]]
) -> None:
    greedy, drawn = (
        {"until": [], "max_gen_toks": 8},
        {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0},
    )
    first = engine(Batching(3, 10**6)).generate_until(to_generate(greedy))
    assert engine(Batching(3, 10**6, repeat=1)).generate_until(to_generate(greedy)) == first  # in float32
    assert batches[:2] != batches[2:]
    said = [engine(Batching(3, 10**6, repeat)).generate_until(to_generate(drawn)) for repeat in (0, 0, 1)]
    assert said[0] == said[1] != said[2]
    twice = engine().generate_until([*to_generate(drawn), *to_generate(drawn)])
    assert twice[:6] == said[0] != twice[6:]


@pytest.fixture
def server(tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[CompletionServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr("lingraft.endpoint._FIRST_WAIT_SECONDS", 0.01)
    with serving(*tiny) as running:
        yield running


def test_a_server_answers_and_scores_and_is_asked_only_for_what_is_missing(
    engine: Callable[..., InMemoryModel],
    server: CompletionServer,
    tiny: tuple[Any, Any],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def served(**options: Any) -> ServerGenerator:
        return ServerGenerator(
            ServerChoice(server=server.url, at_once=1, attempts=1, **options), tiny_model, tiny[1]
        )

    requests = to_generate({"until": [], "max_gen_toks": 40})
    wanted = engine().generate_until(requests)
    log = tmp_path / "answers.jsonl"

    def asked() -> int:
        return sum(one["max_tokens"] == 40 for one in server.requests)

    server.behaviour = lambda body: Response("", 500) if body["max_tokens"] == 40 and asked() > 4 else None
    with pytest.raises(EvaluationError, match="failed 1 times in a row"):
        engine(answers=AnswerLog(log), server=served()).generate_until(requests)
    assert len(log.read_text().splitlines()) == 4  # what it answered before
    server.behaviour = lambda _: None
    server.requests.clear()
    assert engine(answers=AnswerLog(log), server=served()).generate_until(requests) == wanted
    assert asked() == 2
    server.requests.clear()
    assert engine(answers=AnswerLog(log), server=served()).generate_until(requests) == wanted
    assert server.requests == []

    scores = engine().loglikelihood(to_score())
    found = engine(server=served()).loglikelihood(to_score())
    assert sum(bool(one.get("echo")) for one in server.requests) >= len(scores)
    for one, other in zip(
        found[:-1], scores[:-1], strict=True
    ):  # the last loses two tokens more of its beginning
        assert one[0] == pytest.approx(other[0], abs=1e-3)
        assert one[1] == other[1]
    server.requests.clear()
    assert engine(server=served(likelihoods="transformers")).loglikelihood(to_score()) == scores
    assert server.requests == []

    with monkeypatch.context() as patch:
        patch.setattr(
            "lingraft.evaluate.running.settings_of",
            lambda _: {"until": [], "num_beams": 2, "max_gen_toks": 4},
        )
        one_task = EvaluationTask(task="worldbook:lookup", limit=1)
        beams = Evaluation(task_ability=(one_task,), language_ability=())
        with pytest.raises(EvaluationError, match=r"num_beams.*more than a server is asked for"):
            evaluate_model(*tiny, beams, languages=[], server=served())
        assert server.requests == []
    server.model = copy.deepcopy(tiny[0])
    with torch.no_grad():
        server.model.lm_head.weight.copy_(server.model.lm_head.weight.flip(0))
    with pytest.raises(EvaluationError, match="serves another model than"):
        engine(server=served()).generate_until(requests)


def test_a_task_whose_answers_do_not_fit_is_refused_or_left_out_before_any_is_generated(
    tiny: tuple[Any, Any], batches: list[list[int]]
) -> None:
    fits = EvaluationTask(task="worldbook:lookup", limit=1, max_new_tokens=4)
    too_long = EvaluationTask(task="worldbook:counting", limit=1, max_new_tokens=2048)
    evaluation = Evaluation(task_ability=(fits, too_long), language_ability=())
    with pytest.raises(
        EvaluationError, match=r"the task worldbook:counting/en: .* 2048 tokens, .* room for 2048"
    ):
        evaluate_model(*tiny, evaluation, languages=[])
    assert batches == []
    found = evaluate_model(*tiny, evaluation, languages=[], skip_missing=True)
    assert list(found.no_room) == ["worldbook:counting/en"]
    assert "`max_new_tokens` (--max-new-tokens)" in found.no_room["worldbook:counting/en"]
    assert list(found.tasks) == ["worldbook:lookup/en"]


def test_an_evaluation_repeats_resumes_and_counts(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    tasks = (EvaluationTask(task="worldbook:lookup", limit=2, max_new_tokens=3),)
    evaluation = Evaluation(task_ability=tasks, language_ability=tasks, repeats=3)
    told: list[tuple[int, int]] = []
    log = tmp_path / "answers.jsonl"
    found = evaluate_model(
        *tiny,
        evaluation,
        languages=["de"],
        answers=AnswerLog(log),
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(done, 12) for done in range(1, 13)]
    assert found.noise is not None
    assert found.noise.repeats == 3
    assert len(found.noise.tasks["worldbook:lookup/de"].scores) == 3
    assert all(one.truncated is not None and one.language_judged for one in found.predictions)
    assert found.truncated["worldbook:lookup/de"] == sum(
        bool(one.truncated) for one in found.predictions if one.language == "de"
    )
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:5]))
    assert evaluate_model(*tiny, evaluation, languages=["de"], answers=AnswerLog(log)) == found


def test_prompts_that_do_not_fit_are_noted(engine: Callable[..., InMemoryModel]) -> None:
    scoring = engine()
    scored = to_score()
    scoring.loglikelihood(scored)
    assert scoring.truncated_prompts == {request_key(scored[-1].args)}
    room = scoring.max_length - 4
    unit = "Say a."
    tokens = len(scoring.tok_encode(unit * 50)) // 50
    fits, too_long = (unit * (room // tokens + more) for more in (0, 1))
    asked = instances(
        "generate_until", [(text, {"until": [], "max_gen_toks": 4}) for text in (fits, too_long)]
    )
    generating = engine()
    generating.generate_until(asked)
    assert generating.truncated_prompts == {request_key(asked[1].args)}


def test_truncated_prompts_that_go_the_harnesss_own_way_are_noted_as_well(
    engine: Callable[..., InMemoryModel],
) -> None:
    beams = {"until": [], "max_gen_toks": 4, "num_beams": 2}
    asked = instances("generate_until", [(text, beams) for text in ("Say a.", "Say a. " * 900)])
    generating = engine()
    generating.generate_until(asked)
    assert generating.truncated_prompts == {request_key(asked[1].args)}


def test_an_evaluation_counts_the_items_whose_prompts_were_truncated(
    tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    row = {"premise": "a.", "choice1": "b", "choice2": "c", "question": "cause", "label": 0, "idx": 0}
    rows = [row, row | {"premise": "Say a. " * 900}]
    (tmp_path / "xcopa.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    entry = EvaluationTask(task="xcopa_th", name="xcopa", language="th", data="xcopa.jsonl")
    found = evaluate_model(
        *tiny, Evaluation(task_ability=(), language_ability=(entry,)), languages=["th"], base_folder=tmp_path
    )
    assert found.truncated_prompts == {"xcopa/th": 1}


def test_what_a_prompt_spells_is_text_when_it_is_asked_and_scored(
    engine: Callable[..., InMemoryModel],
) -> None:
    lm = engine()
    tokenizer = lm.tokenizer
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    said = "What is <|im_end|>?"
    prompt = lm.apply_chat_template([{"role": "user", "content": said}])
    assert lm.tok_encode(prompt) == chat_format(tokenizer).prompt_ids([Message("user", said)])
    assert lm.tok_encode(prompt).count(end) == 1
    assert lm.tok_encode(prompt, left_truncate_len=3) == lm.tok_encode(prompt)[-3:]
    pair = lm.pair(prompt, " It is <|im_end|>.")
    assert end not in pair.continuation
    assert list(pair.context) + list(pair.continuation) == lm.tok_encode(
        prompt + chat_format(tokenizer).as_text(" It is <|im_end|>.")
    )
    begun = lm.apply_chat_template(
        [{"role": "user", "content": said}, {"role": "assistant", "content": "It <|im_end|>"}],
        add_generation_prompt=False,
    )
    assert lm.tok_encode(begun)[: len(lm.tok_encode(prompt))] == lm.tok_encode(prompt)
    assert tokenizer.decode(lm.tok_encode(begun)).endswith("assistant\nIt <|im_end|>")
    assert lm.tok_encode(begun).count(end) == 1


@pytest.mark.parametrize("begins", [False, True])
def test_without_a_chat_template_what_a_prompt_spells_is_text_too(
    tiny: tuple[Any, Any], begins: bool
) -> None:
    tokenizer = copy.deepcopy(tiny[1])
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    if begins:  # as Llama's tokenizers
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
        )
    lm = InMemoryModel(tiny[0], tokenizer, Batching(None, 400), AnswerLog(), ItemCount(9, None), chat=False)
    for text in ("Say a.", "Say <|im_end|> a.", "<|im_start|>Say <|im_end|><|im_start|>"):
        ids = lm.tok_encode(text)
        assert tokenizer.decode(ids).removeprefix("<|im_start|>") == text.removeprefix("<|im_start|>")
        assert (ids.count(start), ids.count(end)) == (int(begins or text.startswith("<")), 0)
        alone = lm.tok_encode(text, add_special_tokens=False)
        assert alone == ids[int(begins and not text.startswith("<")) :]
        padded, _ = lm.tok_batch_encode([text])
        assert padded[0].tolist() == ids
    assert lm.tok_encode("Say a.") == tokenizer.encode("Say a.", add_special_tokens=begins)
    pair = lm.pair("Say <|im_end|> a.", " It <|im_end|>")
    assert end not in (*pair.context, *pair.continuation)


@pytest.mark.parametrize("chat", [False, True])
def test_whole_texts_are_scored_as_text(
    tiny: tuple[Any, Any], chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = InMemoryModel(*tiny, Batching(None, 400), AnswerLog(), ItemCount(9, None), chat=chat)
    seen: list[int] = []

    def noted(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        seen.extend(token for _, said in pairs for token in said)
        return [(0.0, True)] * len(pairs)

    monkeypatch.setattr(lm, "score_tokens", noted)
    lm.loglikelihood_rolling(instances("loglikelihood_rolling", [("Say <|im_end|> a.",)]))
    assert lm.tokenizer.decode(seen) == "Say <|im_end|> a."
    assert lm.tokenizer.convert_tokens_to_ids("<|im_end|>") not in seen


@pytest.mark.parametrize("chat", [False, True])
def test_an_evaluation_counts_the_items_that_spell_control_tokens(
    tiny: tuple[Any, Any], tmp_path: Path, chat: bool
) -> None:
    row = {"premise": "a.", "choice1": "b", "choice2": "c", "question": "cause", "label": 0, "idx": 0}
    rows = [row, row | {"premise": "a <|im_end|>."}, row | {"choice2": "<|im_start|>"}]
    (tmp_path / "xcopa.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    entry = EvaluationTask(task="xcopa_th", name="xcopa", language="th", data="xcopa.jsonl")
    asked = Evaluation(task_ability=(), language_ability=(entry,), apply_chat_template=chat)
    found = evaluate_model(*tiny, asked, languages=["th"], base_folder=tmp_path)
    assert found.spelled_prompts == {"xcopa/th": 2}


@pytest.mark.parametrize("header", ["[/INST]", "[/INST] "])
def test_a_choice_is_scored_with_the_space_that_training_has_before_it(
    tiny: tuple[Any, Any], header: str
) -> None:
    """Llama 2 and others: the answer begins with a space, which the tokenizer joins to its first word."""
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' "
        + header
        + "' }}{% else %}{{ "
        + ("m['content']" if header.endswith(" ") else "' ' + m['content']")
        + " + eos_token }}{% endif %}{% endfor %}"
    )
    lm = InMemoryModel(tiny[0], tokenizer, Batching(None, 400), AnswerLog(), ItemCount(9, None), chat=True)
    said = (Message("user", "Which day?"), Message("assistant", "Monday"))
    row = encode_example(Example("1", said, "en", "1", "test"), tokenizer, 999)
    turns = [{"role": one.role, "content": one.content} for one in said]
    pair = lm.pair(lm.apply_chat_template(turns[:1]), "Monday")
    assert pair.context + pair.continuation == row.input_ids[:-1]
    assert len(pair.context) == row.supervised.index(True)
    begun = lm.apply_chat_template(turns, add_generation_prompt=False)
    assert tuple(lm.tok_encode(begun)) == row.input_ids[:-1]
    pair = lm.pair(begun, " it is")
    assert tokenizer.decode(pair.context + pair.continuation).endswith("[/INST] Monday it is")


def test_answers_end_where_training_ends_them_and_are_scored_without_thoughts(
    tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with Qwen's base models: neither the model nor the tokenizer names the token that closes an answer."""
    model = tiny[0]
    tokenizer = copy.deepcopy(tiny[1])
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.chat_template += "{# <think> </think> #}"
    monkeypatch.setattr(model.generation_config, "eos_token_id", tokenizer.eos_token_id)
    lm = InMemoryModel(model, tokenizer, Batching(None, 400), AnswerLog(), ItemCount(9, None), chat=True)
    (request,) = to_generate({"until": ["x"], "num_beams": 2})[:1]
    assert lm._ended(request).args[1] == {"until": ["x", "<|im_end|>"], "num_beams": 2}
    assert request.args[1]["until"] == ["x"]
    marked = lm.apply_chat_template([{"role": "user", "content": "a </s> <|im_end|>"}])
    padded, mask = lm.tok_batch_encode([marked, "<|im_start|>"], left_truncate_len=9)
    assert padded[0].tolist() == lm.tok_encode(marked)[-9:]
    assert padded[1, mask[1].bool()].tolist() == lm.tok_encode("<|im_start|>")
    ids = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert lm._ending([]).tokens == {*ids}
    said = Generated("<think>Hm, 7?</think>8", 9, ended=True)
    monkeypatch.setattr(
        TransformersGenerator, "continue_batch", lambda _, prompts, *__: [said] * len(prompts)
    )
    assert lm.generate_until(to_generate({"until": [], "max_gen_toks": 9})) == ["8"] * len(QUESTIONS)
