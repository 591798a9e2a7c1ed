"""AlpacaEval judged inside of an evaluation and of a study."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from judge_server import (
    REFERENCE,
    JudgeServer,
    failure,
    names_nothing_at_first,
    outputs,
    prefers_longer,
    verdict,
    write_rows_to,
)
from safetensors.torch import load_file, save_file

from lingraft.cli.main import _run
from lingraft.config.schema import Evaluation, EvaluationTask, JudgeChoice
from lingraft.evaluate.predictions import read_predictions
from lingraft.evaluate.running import evaluate_model
from lingraft.models.generation import TransformersGenerator
from lingraft.models.loading import load_model, load_tokenizer


@pytest.fixture
def evaluation_command(judge_server: JudgeServer, tiny_model: Path, tmp_path: Path) -> list[str]:
    """`lingraft evaluate` of AlpacaEval on four rows of a local copy, beside a worldbook task."""
    (tmp_path / "data" / "alpaca_eval").mkdir(parents=True)
    write_rows_to(tmp_path / "data" / "alpaca_eval" / "en.jsonl", REFERENCE)
    only = ["--suite", "paper", "--task", "alpaca_eval", "--task", "worldbook:lookup", "--limit", "3"]
    only += ["--max-new-tokens", "8"]
    where = ["--data-dir", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    return ["evaluate", str(tiny_model), *only, *where]


def test_an_evaluation_has_alpaca_eval_judged(
    evaluation_command: list[str],
    judge_server: JudgeServer,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    judge_server.behaviour = lambda asked: (
        verdict("?") if "Say 1" in asked.question else prefers_longer(asked)
    )
    judge = ["--judge-url", judge_server.url, "--judge-model", "judge", "--price-in", "1", "--price-out", "1"]
    assert _run([*evaluation_command, *judge, "--repeat", "2"]) == 0
    printed = capfd.readouterr().out
    assert "alpaca_eval/en: judged by judge-2026; shown first, an answer gains +0.000" in printed
    assert "6 verdicts, 6 of them new, 0 weighted; 600 tokens read, 6 written, cost 0.0006." in printed
    result = json.loads((tmp_path / "out" / "record.json").read_text())["result"]
    assert result["tasks"]["alpaca_eval/en"]["metric"] == "win_rate"
    assert result["tasks"]["alpaca_eval/en"]["judged"]["reference_items"] == 3
    assert result["scores"]["left_out"] == [
        "alpaca_eval/en: alpaca_eval/en/1: the verdict '?' names neither A nor B"
    ]
    (answers,) = [
        one["answers"] for name, one in result["scores"]["tasks"].items() if name == "alpaca_eval/en"
    ]
    assert (answers["n"], answers["truncated"]) == (2, result["scores"]["truncated"]["alpaca_eval/en"])
    n = [result["scores"]["tasks"][name]["n"] for name in ("alpaca_eval/en", "worldbook:lookup/en")]
    assert n == [2, 3]
    assert list(result["scores"]["noise"]["tasks"]) == ["worldbook:lookup/en"]
    said = {
        one.item: one
        for one in read_predictions(tmp_path / "out" / "predictions.parquet")
        if "alpaca" in one.item
    }
    for row in (0, 2):
        one = said[f"alpaca_eval/en/{row}"]
        assert one.score == (len(one.response) > len("middle"))
    assert _run([*evaluation_command, *judge, "--repeat", "2"]) == 0  # the verdicts were kept, but for two
    assert len(judge_server.requests) == 6 + 2


def test_another_judge_or_another_try_generates_nothing_anew(
    evaluation_command: list[str],
    judge_server: JudgeServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    answered: list[int] = []
    inner = TransformersGenerator.continue_batch

    def counted(self: TransformersGenerator, prompts: Any, *others: Any) -> Any:
        answered.append(len(prompts))
        return inner(self, prompts, *others)

    monkeypatch.setattr(TransformersGenerator, "continue_batch", counted)
    command = [*evaluation_command, "--judge-model", "judge", "--judge-max-tokens", "99", "--judge-url"]
    assert _run([*command, "http://127.0.0.1:9/v1"]) == 2  # nobody is there, which is known before
    assert sum(answered) == 0
    judge_server.behaviour = lambda _: failure(401)
    assert _run([*command, judge_server.url]) == 2
    assert sum(answered) == 6
    judge_server.requests.clear()
    judge_server.behaviour = names_nothing_at_first("Say 1", 2)
    assert _run([*command, judge_server.url]) == 0
    assert list(
        (tmp_path / "out" / "cache").glob("answers-*.jsonl")
    )  # a verdict is missing: it is asked for again
    assert _run([*command, judge_server.url]) == 0
    assert sum(answered) == 6
    assert {one.body["max_tokens"] for one in judge_server.requests} == {99}
    result = json.loads((tmp_path / "out" / "record.json").read_text())["result"]
    assert (result["scores"]["tasks"]["alpaca_eval/en"]["n"], result["scores"]["left_out"]) == (3, [])
    assert not list((tmp_path / "out" / "cache").glob("answers-*.jsonl"))


def test_two_languages_are_judged_each_by_itself(
    judge_server: JudgeServer, tiny_model: Path, tmp_path: Path
) -> None:
    entries = []
    for language, texts in (("en", ["middle"] * 2), ("de", ["ein Satz"] * 3)):
        file = write_rows_to(tmp_path / f"{language}.jsonl", outputs(*texts))
        entries.append(
            EvaluationTask(task="alpaca_eval", language=language, data=str(file), max_new_tokens=8)
        )
    judge = JudgeChoice(url=judge_server.url, model="judge")
    evaluation = Evaluation(task_ability=entries[:1], language_ability=entries[1:], judge=judge)
    model: Any = load_model(tiny_model)
    items: list[tuple[int, int]] = []
    verdicts: list[tuple[int, int]] = []
    found = evaluate_model(
        model,
        load_tokenizer(tiny_model),
        evaluation,
        languages=["de"],
        on_progress=lambda *done: items.append(done),
        on_judged=lambda *done: verdicts.append(done),
    )
    assert items == [(done, 5) for done in range(1, 6)]
    assert sorted(set(verdicts)) == [
        (done, total) for done in range(1, 7) for total in (4, 6) if done <= total
    ]
    rows = {name: task.judged and task.judged.reference_items for name, task in found.tasks.items()}
    assert rows == {"alpaca_eval/en": 2, "alpaca_eval/de": 3}
    assert [one.language for one in found.predictions] == ["en"] * 2 + ["de"] * 3


def test_a_verdict_that_one_of_two_models_lacks_leaves_its_item_out_of_the_comparison(
    evaluation_command: list[str],
    judge_server: JudgeServer,
    tiny_model: Path,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    shutil.copytree(tiny_model, tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    save_file(
        {name: one * 1.5 for name, one in weights.items()},
        tmp_path / "other" / "model.safetensors",
        {"format": "pt"},
    )
    judge_server.behaviour = names_nothing_at_first("Say 1", 2)
    command = [*evaluation_command[:2], str(tmp_path / "other"), *evaluation_command[2:]]
    assert _run([*command, "--judge-url", judge_server.url, "--judge-model", "judge"]) == 0
    assert "alpaca_eval/en: 1 items have a verdict for some of the models only" in capfd.readouterr().out
    result = json.loads((tmp_path / "out" / "record.json").read_text())["result"]
    assert result["unpaired"] == {"alpaca_eval/en": 1}
    assert result["differences"]["alpaca_eval/en"]["n"] == 2
    assert result["differences"]["worldbook:lookup/en"]["n"] == 3
    for model, n in ((tiny_model.name, 2), ("other", 3)):
        own = json.loads((tmp_path / "out" / model / "record.json").read_text())["result"]
        assert own["scores"]["tasks"]["alpaca_eval/en"]["n"] == n


def test_a_verdict_that_one_model_of_a_study_lacks_fails_no_cell(
    judge_server: JudgeServer, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_rows_to(tmp_path / "reference.jsonl", REFERENCE)
    asked = {"task": "alpaca_eval", "data": str(tmp_path / "reference.jsonl"), "max_new_tokens": 8}
    worldbook = {"task": "worldbook:lookup", "limit": 2, "max_new_tokens": 4}

    def phase(name: str, languages: str) -> dict[str, Any]:
        return {"name": name, "data": {name: {"source": f"worldbook:lookup/{languages}", "limit": 8}}}

    study = {
        "name": "judged",
        "model": str(tiny_model),
        "phases": [phase("one", "en"), phase("two", "de") | {"strategies": ["plain"]}],
        "held_out": 2,
        "measures": [],
        "evaluate": {
            "task_ability": [asked, worldbook],
            "language_ability": [worldbook],
            "judge": {"url": judge_server.url, "model": "judge"},
        },
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    judge_server.behaviour = names_nothing_at_first("Say 1", 4)  # for the base model and for phase 1
    code = _run(["run", str(tmp_path / "study.yaml"), "--runs", str(tmp_path / "runs"), "--json"])
    printed = capfd.readouterr()
    assert code == 0, printed.err
    (cell,) = json.loads(printed.out)["cells"]
    assert (cell["status"], cell["unpaired"]) == ("done", {"alpaca_eval/en": 1})
    assert cell["difference"]["tasks"]["alpaca_eval/en"]["n"] == 3
    assert cell["scores"]["tasks"]["alpaca_eval/en"]["n"] == 4
    assert cell["forgetting"]["ability"]["unpaired"] == {"alpaca_eval/en": 1}
    assert "alpaca_eval/en: 1 items have a verdict for some of the models only" in printed.err


def test_an_evaluation_without_a_judge_says_so_and_runs_the_rest(
    evaluation_command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert _run(evaluation_command) == 3  # it was named
    printed = capfd.readouterr()
    assert "! alpaca_eval/en: not run: a judge scores its answers: give its `url` and `model`" in printed.err
    assert "Its data" not in printed.err
    assert "worldbook:lookup" in printed.out
    for half in (["--judge-url", "http://localhost/v1"], ["--judge-model", "j"], ["--budget", "1"]):
        assert _run([*evaluation_command, *half]) == 2
        assert "--judge-url and --judge-model belong together" in capfd.readouterr().err
