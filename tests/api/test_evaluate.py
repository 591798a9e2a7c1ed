"""`lingraft.evaluate` and `lingraft.compare`: what people have goes in, what prints as a table comes out."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lingraft

ASKED: dict[str, Any] = {
    "tasks": ["worldbook:lookup"],
    "languages": ["de", "es"],
    "limit": 3,
    "max_new_tokens": 8,
}


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def by_name(tiny_model: Path) -> lingraft.EvaluationResult:
    return lingraft.evaluate(tiny_model, **ASKED, precision="float32")


@pytest.fixture(scope="module")
def in_memory(loaded: Any) -> lingraft.EvaluationResult:
    return lingraft.evaluate(loaded, **ASKED)


def test_a_result_has_scores_by_ability_language_and_task(by_name: lingraft.EvaluationResult) -> None:
    scores = by_name.scores
    assert scores.task_ability is not None
    assert scores.language_ability is not None
    assert (scores.task_ability.n, scores.language_ability.n) == (3, 6)
    assert list(scores.per_language) == ["de", "en", "es"]
    assert scores.tasks["worldbook:lookup/de"].low <= scores.tasks["worldbook:lookup/de"].value


def test_a_result_prints_as_a_table_without_a_prompt(by_name: lingraft.EvaluationResult) -> None:
    shown = str(by_name)
    assert repr(by_name) == shown
    rows = [line.split()[:4] for line in shown.splitlines()]
    for row in (
        ["task", "ability", "en", "3"],
        ["language", "ability", "all", "6"],
        ["language", "ability", "de", "3"],
    ):
        assert row in rows
    assert len(shown) < 2000
    for text in (shown, by_name._repr_html_()):
        assert not any(one.prompt[:30] in text for one in by_name.predictions)
    assert "<td>worldbook:lookup</td>" in by_name._repr_html_()


def test_a_model_in_memory_answers_as_the_same_model_by_its_name(
    by_name: lingraft.EvaluationResult, in_memory: lingraft.EvaluationResult
) -> None:
    assert in_memory.predictions == by_name.predictions
    assert in_memory.scores == by_name.scores
    assert in_memory.record == by_name.record


def test_a_model_in_memory_is_left_as_it_was(loaded: Any, tiny_model: Path) -> None:
    loaded.train()
    loaded.model.layers[0].train(mode=False)
    before = {name: own.clone() for name, own in loaded.state_dict().items()}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    lingraft.evaluate(loaded, tokenizer, **ASKED)
    assert loaded.training
    assert not loaded.model.layers[0].training
    assert all(torch.equal(own, before[name]) for name, own in loaded.state_dict().items())
    loaded.train(mode=False)


def test_two_results_are_compared_as_the_command_compares_two_models(
    by_name: lingraft.EvaluationResult,
    tiny_model: Path,
    talkative_model: Path,
    tmp_path: Path,
    lingraft_cli: Any,
) -> None:
    other = lingraft.evaluate(talkative_model, **ASKED, precision="float32", cache=tmp_path / "both")
    found = lingraft.compare(by_name, other)
    code, out, error = lingraft_cli(
        *(
            "evaluate",
            str(tiny_model),
            str(talkative_model),
            "--task",
            "worldbook:lookup",
            "--languages",
            "de,es",
        ),
        *("--limit", "3", "--max-new-tokens", "8", "--precision", "float32", "--json", "--output", "both"),
    )
    assert code == 0, error
    printed = json.loads(out)
    for name in ("task_ability", "language_ability", "per_language", "differences", "retention"):
        own = getattr(found, name)
        values = {key: vars_of(one) for key, one in own.items()} if isinstance(own, dict) else vars_of(own)
        assert printed[name] == values
    assert found.per_language.keys() == {"de", "es"}
    assert (
        len(list((tmp_path / "both" / "stages").iterdir())) == 2
    )  # the command found the other's evaluation


def vars_of(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


@pytest.fixture
def lingraft_cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    from lingraft.cli.main import _run

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        code = _run(list(arguments))
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def test_two_models_are_compared_by_name_or_in_memory(
    loaded: Any, tiny_model: Path, in_memory: lingraft.EvaluationResult
) -> None:
    found = lingraft.compare(loaded, tiny_model, **(ASKED | {"languages": []}))
    assert found.task_ability is not None
    assert found.task_ability.value == 0
    assert found.language_ability is None
    assert found.before.scores.task_ability == in_memory.scores.task_ability
    assert "? +0.000" in str(found)
    assert "▲ rose" in str(found)


def test_what_was_asked_otherwise_is_not_compared_and_says_so(
    loaded: Any, by_name: lingraft.EvaluationResult
) -> None:
    half = AutoModelForCausalLM.from_pretrained(loaded.name_or_path, dtype=torch.bfloat16)
    found = lingraft.compare(by_name, lingraft.evaluate(half, **ASKED))
    assert found.task_ability is None
    assert "other precision" in str(found)
    only_english = lingraft.evaluate(loaded, tasks=["worldbook:counting"], limit=2, max_new_tokens=4)
    with pytest.raises(lingraft.EvaluationError, match="no task in common"):
        lingraft.compare(by_name, only_english)


def test_a_tokenizer_without_a_pad_token_or_a_template_will_do(loaded: Any, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token, tokenizer.chat_template = None, None
    found = lingraft.evaluate(loaded, tokenizer, tasks="worldbook:lookup", limit=2, max_new_tokens=4)
    assert found.scores.task_ability is not None
    assert tokenizer.pad_token is None
    by_both = lingraft.evaluate(
        tiny_model, tokenizer, tasks="worldbook:lookup", limit=2, max_new_tokens=4, precision="float32"
    )
    assert by_both.predictions == found.predictions


def test_an_adapter_in_memory_answers_with_it(loaded: Any, in_memory: lingraft.EvaluationResult) -> None:
    import warnings

    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(loaded.name_or_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        wrapped: Any = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.5)
    found = lingraft.evaluate(wrapped, **ASKED)
    assert [one.response for one in found.predictions] != [one.response for one in in_memory.predictions]


def on_meta(folder: Path) -> Any:
    from transformers import AutoConfig

    with torch.device("meta"):
        build: Any = AutoModelForCausalLM.from_config
        return build(AutoConfig.from_pretrained(folder))


def without_head(folder: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (None, {}, lingraft.ModelError, "None: is no model; give a folder"),
        ("", {}, lingraft.ModelError, "names no model"),
        ([], {}, lingraft.ModelError, "a list of 0: is no model"),
        (3, {}, lingraft.ModelError, "int '3': is no model"),
        (on_meta, {}, lingraft.ModelError, "on the meta device"),
        ("nowhere/at/all", {}, lingraft.ModelError, "there is no such folder"),
        (Path, {"tasks": []}, lingraft.ConfigError, "tasks: the list is empty"),
        (Path, {"tasks": [1]}, lingraft.ConfigError, r"tasks \[1\]: give a list of names"),
        (Path, {"tasks": ["worldbok"]}, lingraft.LingraftError, "worldbok"),
        (Path, {"languages": ["xx-"]}, lingraft.ConfigError, r"^languages 'xx-': is not a BCP-47 tag"),
        (Path, {"languages": 3}, lingraft.ConfigError, "languages 3: give a list"),
        (Path, {"limit": 0}, lingraft.ConfigError, "limit 0: must be a whole number from 1 on"),
        (Path, {"repeat": None}, lingraft.ConfigError, "repeat None"),
        (Path, {"precision": "fp16"}, lingraft.ConfigError, "precision 'fp16'"),
        (Path, {"suite": None}, lingraft.ConfigError, "suite None: give the name of a suite"),
        (without_head, {}, lingraft.ModelError, "a LlamaModel is no causal language model"),
        (
            Path,
            {"cache": __file__, "tasks": "worldbook:lookup", "limit": 1},
            lingraft.ConfigError,
            "cannot be made",
        ),
        (Path, {"suite": "quik"}, lingraft.ConfigError, "Did you mean 'quick'"),
        (Path, {"data_dir": "nowhere"}, lingraft.ConfigError, "^data_dir nowhere: there is no such folder"),
        (Path, {"judge": {"url": 3}}, lingraft.ConfigError, "judge.url is 3"),
        (Path, {"judge": "gpt"}, lingraft.ConfigError, "judge 'gpt': give a JudgeChoice"),
        (Path, {"tokenizer": 3}, lingraft.ModelError, "tokenizer: int is no tokenizer"),
        ("loaded", {"cache": "x"}, lingraft.ConfigError, "cache: is for models by their name"),
        ("loaded", {"backend": "vlm"}, lingraft.ConfigError, "backend 'vlm'"),
        ("loaded", {"precision": "bf16"}, lingraft.ConfigError, "in the type of its weights, float32"),
    ],
)
def test_what_is_no_model_or_option_is_refused_by_its_name(
    model: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    loaded: Any,
    tiny_model: Path,
) -> None:
    given = {"loaded": loaded}.get(model, model) if isinstance(model, str) else model
    given = tiny_model if given is Path else given(tiny_model) if given in (on_meta, without_head) else given
    with pytest.raises(error, match=message):
        lingraft.evaluate(given, **options)


def test_a_model_that_came_from_nowhere_needs_its_tokenizer(tiny_llama: Callable[..., Any]) -> None:
    with pytest.raises(lingraft.ModelError, match="does not say where it was loaded from"):
        lingraft.evaluate(tiny_llama(), tasks="worldbook:lookup", limit=1)


@pytest.mark.parametrize("pair", [(None, "embedded:smollm2-135m"), ("embedded:smollm2-135m", [1])])
def test_compare_refuses_what_is_no_model_before_it_evaluates_one(
    pair: tuple[Any, Any], by_name: lingraft.EvaluationResult, tiny_model: Path
) -> None:
    with pytest.raises(lingraft.ModelError, match="is no model"):
        lingraft.compare(*pair)
    with pytest.raises(lingraft.ConfigError, match="two results of evaluate, or two models"):
        lingraft.compare(by_name, tiny_model)
    with pytest.raises(lingraft.ConfigError, match="limit are options of evaluate"):
        lingraft.compare(by_name, by_name, limit=3)
    with pytest.raises(lingraft.ConfigError, match="margin 2"):
        lingraft.compare(by_name, by_name, margin=2)


def test_the_name_of_a_subpackage_is_the_public_function_and_the_subpackage() -> None:
    from lingraft.api.evaluation import evaluate

    importlib.import_module("lingraft.evaluate.running")
    assert inspect.signature(lingraft.evaluate) == inspect.signature(evaluate)
    subpackage: Any = lingraft.evaluate
    assert subpackage.running.evaluate_model
    code = "import lingraft; from lingraft import evaluate; assert callable(evaluate) and callable(lingraft.evaluate)"
    subprocess.run([sys.executable, "-c", code], check=True)
