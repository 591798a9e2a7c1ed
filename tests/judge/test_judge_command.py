"""`lingraft judge`, and the predictions of an evaluation judged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from judge_server import (
    ANSWERS,
    REFERENCE,
    JudgeServer,
    Request,
    Response,
    outputs,
    prefers_longer,
    settings,
    verdict,
    write_rows_to,
)

from lingraft.cli.main import _run
from lingraft.errors import EvaluationError
from lingraft.evaluate.predictions import Prediction, read_rows, write_predictions
from lingraft.evaluate.tasks.alpaca_eval.task import judge_predictions, read_outputs
from lingraft.judge.win_rate import Output, Preference, judge_answers


def test_the_command_prints_win_rate_order_effect_and_cost(
    command: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert _run([*command, "--price-in", "2.5", "--price-out", "10"]) == 0
    printed = capfd.readouterr().out
    assert "Win rate of answers against reference: 50.0% (" in printed
    assert "n = 4 of 4: 2 wins, 2 losses, 0 ties" in printed
    assert "Shown first, an answer gains +0.000" in printed
    assert "8 verdicts, 8 of them new, 0 weighted; 800 tokens read, 8 written, cost 0.0021" in printed
    assert f"Verdicts are kept in {tmp_path / 'answers.jsonl.verdicts.jsonl'}" in printed
    assert _run([command[0], f"new model={command[1]}", *command[2:]]) == 0
    assert "Win rate of new model against reference: 50.0% (" in capfd.readouterr().out


def test_the_command_gives_one_object_the_items_and_a_record(
    command: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = ["--items", str(tmp_path / "items.parquet"), "--record", str(tmp_path / "record.json")]
    assert _run([*command, "--limit", "3", "--json", *files]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["win_rate"]["n"], found["wins"], found["length_controlled"]) == (3, 2, None)
    assert [one.score for one in read_rows(tmp_path / "items.parquet", Preference)] == [1, 0, 1]
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["measure"] == "judge"
    assert set(record["inputs"]) == {"answers", "reference"}
    assert record["result"] == found


def prediction(row: int, response: str, task: str = "alpaca_eval") -> Prediction:
    item = f"{task}/en/{row}"
    reference = REFERENCE[row].output
    return Prediction("task_ability", task, "en", item, item, 1.0, "<user>", response, reference)


def test_the_command_takes_the_predictions_of_an_evaluation(
    command: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "predictions.parquet"
    write_predictions(
        path, [prediction(2, "longest of all"), prediction(0, "x"), prediction(1, "a", "other")]
    )
    assert _run(["judge", str(path), *command[2:], "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["win_rate"]["value"], found["win_rate"]["n"]) == (0.5, 2)


def test_a_judges_preferences_take_the_place_of_the_tasks_score(
    judge_server: JudgeServer, tmp_path: Path
) -> None:
    judge_server.behaviour = lambda asked: (
        verdict("?") if "Say 3" in asked.question else prefers_longer(asked)
    )
    given = [prediction(row, one.output) for row, one in enumerate(ANSWERS)]
    scored, judged = judge_predictions(
        given, REFERENCE, settings(judge_server), cache=tmp_path / "kept.jsonl"
    )
    assert [(one.item, one.score) for one in scored] == [
        (f"alpaca_eval/en/{row}", score) for row, score in enumerate((1, 0, 1))
    ]
    assert judged.left_out[0].startswith("alpaca_eval/en/3: the verdict '?'")
    with pytest.raises(EvaluationError, match="alpaca_eval/en/0 was not made with this reference: row 0"):
        judge_predictions(given, outputs("other"), settings(judge_server), cache=tmp_path / "kept.jsonl")


def test_a_killed_command_goes_on_and_asks_nothing_again_that_it_kept(
    command: list[str], judge_server: JudgeServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_rows_to(tmp_path / "answers.jsonl", outputs(*(["an answer"] * 30)))
    write_rows_to(tmp_path / "reference.jsonl", outputs(*(["reference"] * 30)))
    killed = threading.Event()

    def stalls(asked: Request) -> Response:
        if len(judge_server.requests) > 20:
            killed.wait(60)
        return prefers_longer(asked)

    judge_server.behaviour = stalls
    code = f"import sys; sys.argv = ['lingraft', *{command!r}]; from lingraft.cli.main import main; main()"
    cache = tmp_path / "answers.jsonl.verdicts.jsonl"
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not (cache.exists() and cache.read_bytes().count(b"\n") == 20):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    killed.set()
    assert cache.read_bytes().count(b"\n") == 20
    judge_server.requests.clear()
    judge_server.behaviour = prefers_longer
    assert _run([*command, "--json"]) == 0
    assert len(judge_server.questions) == 40
    assert json.loads(capfd.readouterr().out)["usage"]["new"] == 40


def test_the_local_copy_of_alpaca_eval_is_read_and_judged(
    shared_data: Path, judge_server: JudgeServer, tmp_path: Path
) -> None:
    reference = read_outputs(shared_data / "alpaca_eval" / "en_text_davinci_003.jsonl")
    assert len(reference) == 805
    answers = [
        Output(one.item, one.instruction, one.output[: 100 * (n % 2)]) for n, one in enumerate(reference[:20])
    ]
    found = judge_answers(answers, reference, settings(judge_server), cache=tmp_path / "kept.jsonl")
    expected = [
        0.5 if one.output == two.output else 0.0 for one, two in zip(answers, reference, strict=False)
    ]
    assert [one.score for one in found.preferences] == expected
    assert found.reference_items == 805
