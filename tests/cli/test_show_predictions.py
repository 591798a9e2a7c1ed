"""`lingraft show predictions`: the worst answers of a run, beside those of the model before, on the terminal."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lingraft.cli import main
from lingraft.errors import escape_control_characters
from lingraft.evaluate.predictions import Prediction, write_predictions

SCORES: dict[str, tuple[float, ...]] = {
    "de": (1.0, 0.5, 0.0),
    "th": (1.0, 1.0, 0.25),
}  # after: by language, of three items


def answers(scores: dict[str, tuple[float, ...]], said: str) -> list[Prediction]:
    return [
        Prediction(
            "language_ability",
            "worldbook:lookup",
            tag,
            f"g{i}",
            f"g{i}",
            score,
            f"Q{i} {tag}?",
            f"{said}{i}",
            f"R{i}",
        )
        for tag, own in scores.items()
        for i, score in enumerate(own)
    ]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_run: Callable[..., None]) -> Path:
    """A run folder of one cell, with the answers of three models."""
    monkeypatch.chdir(tmp_path)
    base = answers({"de": (0.0,) * 3, "th": (0.0,) * 3}, "base ")
    before = answers({"de": (1.0,) * 3, "th": (0.5,) * 3}, "before ")
    write_run(tmp_path / "run", base, before, answers(SCORES, "after "))
    return tmp_path / "run"


def shown(capfd: pytest.CaptureFixture[str], options: str, folder: str = "run") -> str:
    code = main._run(["show", "predictions", folder, *shlex.split(options)])
    printed = capfd.readouterr()
    assert code == 0, printed.err
    return printed.out


def test_the_items_that_fell_most_stand_first_beside_the_phase_one_model(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(shown(capfd, "--json --worst 3"))
    assert (found["model"], found["before"]) == ("similar / plain", "phase 1")
    assert [(one["language"], one["item"]) for one in found["items"]] == [
        ("de", "g2"),
        ("de", "g1"),
        ("th", "g2"),
    ]
    assert found["items"][0]["before"] == {"score": 1.0, "response": "before 2"}
    text = shown(capfd, "--worst 1")
    for part in ("worldbook:lookup/de  g2", "Q2 de?", "=> R2", "phase 1: 1.00", "similar / plain: 0.00"):
        assert part in text
    line = next(line for line in text.splitlines() if "after 2" in line)
    assert line.index("before 2") < line.index("after 2")


def test_a_language_a_task_and_other_models_can_be_chosen(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(shown(capfd, "--json --language th --against 'base model' --task worldbook:lookup/th"))
    assert found["before"] == "base model"
    assert [one["item"] for one in found["items"]] == ["g2", "g0", "g1"]
    base = json.loads(shown(capfd, "--json --cell 'base model' --worst 2"))
    assert (base["before"], base["items"][0]["before"], len(base["items"])) == (None, None, 2)


def test_the_answers_of_one_evaluation_are_shown_alone(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = json.loads(shown(capfd, "--json --worst 1", folder="run/stages/evaluate-two"))
    assert (found["model"], found["items"][0]["score"]) == ("evaluate-two", 0.0)
    assert "after 2" in shown(capfd, "--worst 1", folder="run/stages/evaluate-two")


def test_what_models_say_cannot_steer_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = "[bold red]x[/] \x1b[31m\x1b]0;title\x07 \u202eabc\u2028 \ud800 \r\nعربي"
    one = Prediction(
        "language_ability", "t\x1b[2J", "ar", "g", "g\x9b", 0.0, "\x1b[1m?", said.replace("\ud800", ""), "r"
    )
    write_predictions(tmp_path / "predictions.parquet", [one])
    text = shown(capfd, "", folder=str(tmp_path))
    assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e", "\u2028"} & set(text)
    assert "[bold red]x[/] \\x1b[31m" in text
    assert "\\u202eabc" in text
    assert "\u2068عربي\u2069" in text


def test_joiners_line_breaks_and_tabs_are_no_danger() -> None:
    assert escape_control_characters("न\u200dम\n\tmi\u200cr") == "न\u200dम\n\tmi\u200cr"
    assert escape_control_characters("a\u2066b\x00\x7f\ud800") == "a\\u2066b\\x00\\x7f\\ud800"


def test_answers_are_shown_without_what_only_models_need(run: Path) -> None:
    code = (
        "import atexit, sys\n"
        "heavy = ('torch', 'transformers', 'datasets', 'lm_eval')\n"
        "atexit.register(lambda: print([one for one in heavy if one in sys.modules], file=sys.stderr))\n"
        "sys.argv = ['lingraft', 'show', 'predictions', 'run', '--worst', '1']\n"
        "from lingraft.cli.main import main; main()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "worldbook:lookup/de" in found.stdout
    assert found.stderr.splitlines()[-1] == "[]"
