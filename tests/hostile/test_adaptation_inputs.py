"""Wrong input of `lingraft adapt`: one clear message and exit code 2, before any model says or learns anything."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lingraft.cli import main
from lingraft.data.worldbook import load_items

Refused = Callable[..., str]


def rows_in(tag: str, count: int = 30, **fields: str) -> list[dict[str, str]]:
    return [
        {"instruction": one.example.instruction, "output": one.example.answer, **fields}
        for one in load_items("lookup", tag, "train")[:count]
    ]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


@pytest.fixture
def refused(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Refused:
    """A function that runs `lingraft adapt` on options, and returns the message with which it is refused."""

    def unasked(*_: object, **__: object) -> Any:
        raise AssertionError("a model was loaded although the input is wrong")

    def run(options: str, model: Path | str = tiny_model, code: int = 2) -> str:
        command = ["adapt", str(model), "held_out=4", *shlex.split(options), "--task", "worldbook:lookup"]
        command += ["--task", "th=worldbook:lookup", "--limit", "2", "--output", "out"]
        capfd.readouterr()
        ended = main._run(command)
        shown = capfd.readouterr()
        assert ended == code, shown.err
        assert "Traceback" not in shown.err
        assert shown.out == ""
        assert not (tmp_path / "out").exists()
        return " ".join(shown.err.split())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lingraft.adapt.probe.load_model", unasked)
    monkeypatch.setattr("lingraft.evaluate.running.evaluate_model", unasked)
    write(tmp_path / "th.jsonl", rows_in("th"))
    write(tmp_path / "rows.jsonl", rows_in("th"))
    write(tmp_path / "de.jsonl", rows_in("de"))
    write(tmp_path / "said_th.jsonl", rows_in("th", language="th"))
    write(tmp_path / "said_de.jsonl", rows_in("de", language="de"))
    write(tmp_path / "en.jsonl", rows_in("en"))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    return run


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--data none.jsonl --language th", ("none.jsonl",)),
        ("--data empty.jsonl --language th", ("empty.jsonl", "no rows")),
        ("--data blank.jsonl --language th", ("blank.jsonl", "no rows")),
        ("--data th.jsonl --language th --english-data none.jsonl", ("none.jsonl",)),
        ("--data th.jsonl --language xxx", ("language", "xxx")),
        ("--data th.jsonl --language th --max-loss 1", ("--max-loss is 1.0", "less than 1")),
        ("--data th.jsonl --language th --max-loss -0.1", ("--max-loss is -0.1",)),
        ("--data rows.jsonl", ("do not say their language", "--language es")),
        ("--data en.jsonl", ("all rows are English",)),
        (
            "--data de.jsonl --language th",
            ("30 of 30 rows", "not in th (Thai)", "de (German) 30", "--language de"),
        ),
        ("--data said_de.jsonl --language th", ("say themselves", "de (German) 30", "--language de")),
        ("--data said_th.jsonl --language th --language ar", ("no row is in ar (Arabic)", "--language ar")),
        ("--data en.jsonl --language en-GB", ("'en-GB' is English, the ability that is kept",)),
        ("--data th.jsonl --data de.jsonl --language th", ("de.jsonl: ", "30 of 30 rows")),
    ],
)
def test_data_and_languages(refused: Refused, options: str, says: tuple[str, ...]) -> None:
    message = refused(options)
    assert all(part in message for part in says), message
