"""Generative replay: its rows are the model's answers, told of truly, and the same after any interruption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lingraft.config.schema import StrategyChoice
from lingraft.data.chat_format import chat_format
from lingraft.data.example import Example, Message
from lingraft.errors import ConfigError, StrategyError
from lingraft.models.compute import compute_for
from lingraft.models.generation import Sampling, TokenPrompt, TransformersGenerator, answer_ending, generate
from lingraft.models.loading import load_model, load_tokenizer, model_folder
from lingraft.strategies.base import Context, Mix
from lingraft.strategies.composition import Composition, build
from lingraft.strategies.replay_rows import ReplayRows, ReplaySettings, _chunks, _seed, make_replay

DRAWN: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 16, "batch_size": 4}
SETTINGS = ReplaySettings(Sampling(1.0, 1.0, 16), seed=3, compute=compute_for("bf16"), batch_size=4)


@pytest.fixture(scope="module")
def chatty(talkative_model: Path) -> Path:
    return talkative_model


def composed(written: Any) -> Composition:
    return build(StrategyChoice.model_validate(written))


def rows(count: int, language: str = "en", prefix: str = "g") -> tuple[Example, ...]:
    return tuple(
        Example(
            f"{language}{i}",
            (Message("user", f"question {prefix} {i}"), Message("assistant", f"answer {i}")),
            language,
            f"{prefix}{i}",
            language,
        )
        for i in range(count)
    )


def context(model: Path, cache: Path, **changes: Any) -> Context:
    defaults: dict[str, Any] = {
        "base": None,
        "previous": model,
        "previous_data": (),
        "english": (),
        "seed": 0,
        "folder": cache,
        "cache": cache,
    }
    return Context(**(defaults | changes))


def mixed(options: dict[str, Any], count: int, there: Context) -> Mix:
    return composed({"generative_replay": DRAWN | options}).mix(rows(count, "de"), there)


def replayed(mix: Mix) -> list[Example]:
    return [one for one in mix.examples if one.origin.kind == "generative_replay"]


def test_share_nothing_is_plain_and_loads_no_model(tmp_path: Path) -> None:
    data = rows(5, "de")
    found = composed({"generative_replay": {"share": 0}}).mix(data, context(tmp_path / "absent", tmp_path))
    assert found == Mix(data)
    assert found.examples is data
    assert not list(tmp_path.iterdir())


def test_the_rows_are_the_models_answers(chatty: Path, tmp_path: Path) -> None:
    pool = rows(4)
    made = make_replay(chatty, 4, SETTINGS, tmp_path, source="parallel", pool=pool)
    tokenizer, model = load_tokenizer(chatty), load_model(chatty, dtype=torch.bfloat16)
    log = [
        json.loads(line) for line in next(tmp_path.glob("*/answers.*.jsonl")).read_text().split("\n") if line
    ]
    prompts = [
        TokenPrompt(
            tuple(chat_format(tokenizer).prompt_ids(one.messages[:-1])), _seed(SETTINGS, "answer", number)
        )
        for number, one in enumerate(pool)
    ]
    direct: dict[int, Any] = {}
    generator = TransformersGenerator(model, tokenizer, 4)
    for batch in generate(generator, prompts, SETTINGS.sampling, answer_ending(chatty, tokenizer)):
        direct |= batch
    assert {one["number"]: one["text"] for one in log} == {place: one.text for place, one in direct.items()}
    fit = [place for place, one in sorted(direct.items()) if one.ended and one.text]
    assert fit
    assert [one.answer for one in made.examples] == [direct[place].text for place in fit]
    assert [one.id for one in made.examples] == [pool[place].id for place in fit]
    assert [one.instruction for one in made.examples] == [pool[place].instruction for place in fit]
    assert sum(made.dropped.values()) == 4 - len(fit)


def test_a_share_is_of_the_final_mix_and_told_in_full(chatty: Path, tmp_path: Path) -> None:
    found = mixed({"share": 0.2}, 24, context(chatty, tmp_path, english=rows(40)))
    own = replayed(found)
    assert (found.replayed, found.shortfall, len(found.examples)) == (6, 0, 30)
    assert len({one.id for one in own}) == len(own) == 6
    assert {one.language for one in own} == {"en"}
    assert all(one.answer and not one.answer.startswith("answer ") for one in own)
    ((origin, count),) = found.origins
    assert count == 6
    assert all(one.origin == origin for one in own)
    assert origin.model is not None
    assert origin.model.startswith("sha256:")
    wanted = {"prompts": "parallel", "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 16}
    assert wanted.items() <= origin.settings.items()
    order = [one.origin.kind for one in found.examples]
    assert order != sorted(order)
    assert found.dropped.keys() <= {"empty", "truncated", "looping"}


def test_auto_takes_parallels_then_phase_one_then_the_model_itself(chatty: Path, tmp_path: Path) -> None:
    old, parallel = rows(30, "en", "old"), rows(30)
    there = context(chatty, tmp_path, previous_data=old, english=parallel)
    for changes, source, prefix in (
        ({}, "parallel", "g"),
        ({"english": ()}, "phase_one", "old"),
        ({"english": (), "previous_data": ()}, "self", "self-"),
    ):
        found = mixed({"share": 0.2}, 8, replace(there, **changes))  # type: ignore[arg-type]
        assert found.origins[0][0].settings["prompts"] == source
        assert all(one.group.startswith(prefix) for one in replayed(found))
        assert found.replayed == 2


def test_what_is_needed_and_what_decides_the_rows() -> None:
    def both(prompts: str) -> tuple[set[str], set[str]]:
        strategy = composed({"generative_replay": {"prompts": prompts}})
        return set(strategy.needs), set(strategy.uses)

    assert both("auto") == ({"previous"}, {"previous", "english", "previous_data"})
    assert both("parallel") == ({"previous", "english"},) * 2
    assert both("phase_one") == ({"previous", "previous_data"},) * 2
    assert both("self") == ({"previous"},) * 2


def test_parallel_rows_of_the_phases_own_come_first(chatty: Path, tmp_path: Path) -> None:
    english = (*rows(60, prefix="other"), *rows(12))
    made = mixed({"share": 0.2}, 12, context(chatty, tmp_path, english=english))
    assert {one.group[0] for one in replayed(made)} == {"g"}


def test_a_smaller_share_is_the_beginning_of_a_larger_one_and_its_answers_are_shared(
    chatty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = context(chatty, tmp_path / "a", english=rows(60))
    small = mixed({"share": 0.1}, 36, there)
    asked = count_answers(monkeypatch)
    large = mixed({"share": 0.2}, 36, there)
    shared = sum(asked)
    assert {one.id for one in replayed(small)} < {one.id for one in replayed(large)}
    asked.clear()
    alone = mixed({"share": 0.2}, 36, replace(there, cache=tmp_path / "b"))
    assert alone == large  # whatever was there before
    assert shared < sum(asked)
    asked.clear()
    assert mixed({"share": 0.1}, 36, there) == small
    assert asked == []
    assert len(list((tmp_path / "a").glob("replay-*"))) == 1


def count_answers(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Note how many prompts each batch has; fail in place of the batch after so many."""
    asked: list[int] = []
    whole = TransformersGenerator.continue_batch

    def counted(self: Any, prompts: Sequence[Any], *rest: Any) -> Any:
        if stop_after is not None and len(asked) == stop_after:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return whole(self, prompts, *rest)

    monkeypatch.setattr(TransformersGenerator, "continue_batch", counted)
    return asked


@pytest.mark.parametrize("source", ["parallel", "self"])
@pytest.mark.parametrize("batches", [0, 1, 3])
def test_an_interrupted_run_ends_with_the_rows_of_an_undisturbed_one(
    chatty: Path, tmp_path: Path, source: str, batches: int
) -> None:
    pool = rows(40) if source == "parallel" else None

    def make(cache: Path) -> ReplayRows:
        return make_replay(chatty, 12, SETTINGS, cache, source=source, pool=pool)

    with pytest.MonkeyPatch.context() as patch:
        whole = count_answers(patch)
        undisturbed = make(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        count_answers(patch, stop_after=batches)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "stopped")
    torn = list((tmp_path / "stopped").glob("*/*.jsonl"))
    for log in torn:  # and the machine went down while it wrote
        log.write_bytes(log.read_bytes()[:-9])
    with pytest.MonkeyPatch.context() as patch:
        rest = count_answers(patch)
        assert make(tmp_path / "stopped") == undisturbed
        assert len(rest) <= len(whole) - batches + len(torn)  # of each log one batch is made again
    for log in (tmp_path / "whole").glob("*/*.jsonl"):
        name = f"{log.parent.name}/{log.name.partition('.')[0]}.*.jsonl"  # the number is its owner's
        (resumed,) = (tmp_path / "stopped").glob(name)
        assert sorted(resumed.read_text().split("\n")) == sorted(log.read_text().split("\n"))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"english": rows(30, prefix="other")},
    ],
    ids=["seed", "prompts"],
)
def test_other_rows_are_kept_elsewhere(chatty: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    there = context(chatty, tmp_path, english=rows(30))
    one, other = mixed({"share": 0.2}, 8, there), mixed({"share": 0.2}, 8, replace(there, **change))
    assert one != other
    assert len(list(tmp_path.glob("replay-*"))) == 2
    mixed({"share": 0.2, "top_p": 0.9}, 8, there)
    assert len(list(tmp_path.glob("replay-*"))) == 3


def test_what_cannot_be_answered_or_was_there_before_is_counted(chatty: Path, tmp_path: Path) -> None:
    good = rows(1)[0]
    long = replace(good, messages=(Message("user", "long " * 3000), Message("assistant", "a")))
    pool = (good, good, replace(good, tools="[]"), long)
    made = make_replay(chatty, 4, SETTINGS, tmp_path, source="phase_one", pool=pool)
    assert {"repeated": 1, "tools": 1, "too_long": 1}.items() <= made.dropped.items()
    assert len(made.examples) + sum(made.dropped.values()) == 4


def test_a_conversation_that_the_template_refuses_is_counted(chatty: Path, tmp_path: Path) -> None:
    folder = tmp_path / "strict"
    shutil.copytree(chatty, folder)
    template = (folder / "chat_template.jinja").read_text()
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + template
    (folder / "chat_template.jinja").write_text(strict)
    one = rows(1)[0]
    refused = replace(one, messages=(Message("system", "Be brief."), *one.messages))
    made = make_replay(folder, 2, SETTINGS, tmp_path / "cache", source="phase_one", pool=(refused,))
    assert (made.examples, made.dropped) == ((), {"refused": 1})


def test_fewer_rows_than_asked_for_are_a_shortfall_and_none_is_repeated(chatty: Path, tmp_path: Path) -> None:
    found = mixed({"share": 0.5}, 30, context(chatty, tmp_path, english=rows(8)))
    assert found.replayed + sum(found.dropped.values()) == 8
    assert found.shortfall == 30 - found.replayed
    assert len({one.id for one in replayed(found)}) == found.replayed


def test_a_model_that_never_ends_an_answer_is_given_up_on(tiny_model: Path, tmp_path: Path) -> None:
    there = context(tiny_model, tmp_path, english=rows(300))
    with pytest.raises(StrategyError, match="no answer to the prompts \\(parallel\\) is fit to train on"):
        mixed({"share": 0.1, "max_new_tokens": 2}, 9, there)
    answered = next(tmp_path.glob("*/answers.*.jsonl")).read_text().count("\n")
    assert 68 <= answered < 100  # 4 * 1 + 64, to the end of the chunk


def test_no_prompt_at_all_is_refused(chatty: Path, tmp_path: Path) -> None:
    for source in ("parallel", "phase_one"):
        with pytest.raises(StrategyError, match="4 rows are asked for"):
            mixed({"share": 0.5, "prompts": source}, 4, context(chatty, tmp_path))


def test_prompts_from_an_empty_turn_are_the_models_own_words(chatty: Path, tmp_path: Path) -> None:
    made = make_replay(chatty, 6, SETTINGS, tmp_path)
    log = [
        json.loads(line) for line in next(tmp_path.glob("*/prompts.*.jsonl")).read_text().split("\n") if line
    ]
    texts = {one["number"]: one["text"] for one in log}
    assert len(made.examples) == 6
    for one in made.examples:
        assert one.instruction == texts[int(one.id.removeprefix("self-"))].strip()
        assert one.answer
        assert "<|im" not in one.instruction + one.answer
        assert one.origin.settings["prompt_temperature"] == 1.0
    assert {one.language for one in made.examples} == {"und"}
    assert len({one.instruction for one in made.examples}) == 6


def test_compositions_add_what_each_replays(chatty: Path, tmp_path: Path) -> None:
    both = composed(
        [
            {"english_replay": {"share": 0.2, "from": "phase_one"}},
            {"generative_replay": {"share": 0.2, "prompts": "phase_one", **DRAWN}},
        ]
    )
    found = both.mix(rows(16, "de"), context(chatty, tmp_path, previous_data=rows(60)))
    assert [(origin.kind, count) for origin, count in found.origins] == [
        ("english_replay", 4),
        ("generative_replay", 5),
    ]
    assert (found.replayed, len(found.examples)) == (9, 25)


def test_chunks_cover_every_row_once_and_grow() -> None:
    def sizes(found: Iterator[tuple[int, int]]) -> list[int]:
        return [end - start for start, end in found]

    assert sizes(_chunks(10, 4)) == [4, 4, 2]
    borders = list(_chunks(5000, 16))
    assert [start for start, _ in borders[1:]] == [end for _, end in borders[:-1]]
    assert borders[-1][1] == 5000
    assert sizes(_chunks(5000, 16))[0] == 16
    assert max(sizes(_chunks(5000, 16))) == 256
    assert sizes(_chunks(2000, 512))[0] == 512


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        ("vllm", "command: 'vllm serve {model} --port {port}'"),
        ({"command": "no-such-program {model} {port}"}, "no program 'no-such-program'"),
    ],
)
def test_an_engine_that_is_not_there_is_refused_before_anything_runs(backend: Any, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed({"generative_replay": {"backend": backend}})
    assert says in str(error.value)


def test_of_a_server_its_engine_is_compared_and_not_its_address() -> None:
    def identity(**options: Any) -> Any:
        return composed({"generative_replay": {"backend": options}}).parts[0].identity

    one = identity(server="http://a:1/v1", version="vllm 0.33.0", likelihoods="transformers")
    other = identity(server="http://b:2/v1", version="vllm 0.33.0", likelihoods="transformers", at_once=2)
    assert one == other
    assert one["backend"] == "vllm 0.33.0"


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"max_new_tokens": 0},
        {"prompts": "x"},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        composed({"generative_replay": options})


def test_the_embedded_model_answers_prompts_of_its_own_and_of_others(tmp_path: Path) -> None:
    folder = model_folder("embedded:smollm2-135m")
    settings = ReplaySettings(Sampling(max_new_tokens=12), seed=0, compute=compute_for(), batch_size=4)
    question = Message("user", "What is the capital of France? Answer with one word.")
    pool = (Example("1", (question, Message("assistant", "")), "en", "1", "mine"),)
    made = make_replay(folder, 1, settings, tmp_path, source="parallel", pool=pool)
    assert "Paris" in made.examples[0].answer
    assert "system" not in made.examples[0].answer


@pytest.mark.slow
def test_two_processes_make_the_rows_of_one(chatty: Path, tmp_path: Path) -> None:
    def made(count: int, cache: str, workers: int) -> Any:
        return make_replay(chatty, count, replace(SETTINGS, workers=workers), tmp_path / cache)

    one = made(24, "one", 1)
    assert len(one.examples) == 24
    assert made(3, "two", 1).examples == one.examples[:3]
    assert made(24, "two", 2) == one  # goes on from what one process has made
