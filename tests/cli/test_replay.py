"""`lingraft replay` end to end: its rows are a data set, its record says how they were made, and it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lingraft.cli.main import _run
from lingraft.config.schema import DataSource
from lingraft.data.sources import load_data
from lingraft.models.generation import TransformersGenerator

DRAWN = ["--temperature", "1", "--max-new-tokens", "16", "--batch-size", "4"]


@pytest.fixture
def folder(tmp_path: Path, talkative_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(talkative_model)
    return tmp_path


def made(*arguments: str, n: int = 5, output: str = "a.jsonl") -> list[str]:
    return ["replay", "model", "--n", str(n), "--output", output, *DRAWN, *arguments]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_rows_of_the_models_own_prompts_are_a_data_set_with_its_record(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _run(made("--json", "--show", "2")) == 0
    found = json.loads(capfd.readouterr().out)
    written = rows_of(folder / "a.jsonl")
    assert (found["asked"], found["rows"], found["shortfall"], len(written)) == (5, 5, 0, 5)
    assert found["examples"] == written[:2]
    record = json.loads((folder / "a.record.json").read_text())
    assert record["measure"] == "replay"
    assert record["inputs"]["prompts"] == "self"
    assert (found["folder"], found["output"], found["record"]) == (".", "a.jsonl", "a.record.json")
    assert record["result"] == {
        key: value for key, value in found.items() if key not in ("examples", "folder")
    }
    assert all(row["origin"] == found["origin"] for row in written)
    assert found["origin"]["model"] == "model"
    assert found["origin"]["settings"]["max_new_tokens"] == 16
    loaded = load_data(DataSource(source="a.jsonl"), base_folder=folder)
    assert loaded.format == "messages"
    assert [one.id for one in loaded.examples] == [row["id"] for row in written]
    assert [one.answer for one in loaded.examples] == [row["messages"][-1]["content"] for row in written]


def test_prompts_of_a_data_set_keep_their_language_and_group(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _run(made("--prompts", "worldbook:lookup/en")) == 0
    printed = capfd.readouterr().out
    written = rows_of(folder / "a.jsonl")
    assert printed.count("[user] ") == printed.count("[assistant] ") == 3
    assert "5 rows in a.jsonl, 0 fewer than asked for." in printed
    assert "Dropped: " in printed
    source = load_data(DataSource(source="worldbook:lookup/en")).examples
    prompts = {one.group: one.instruction for one in source}
    assert all(prompts[row["group"]] == row["messages"][0]["content"] for row in written)
    assert {row["language"] for row in written} == {"en"}


def test_text_files_are_answered_line_by_line_and_may_be_too_short(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "p.txt").write_text("Say a.\nWhy?\nWhy?\nWho?\n")
    assert _run(made("--prompts", "p.txt", "--json")) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["rows"] + found["dropped"].get("repeated", 0) <= 4
    assert found["shortfall"] == 5 - found["rows"]
    assert found["dropped"]["repeated"] == 1


def test_stopped_and_run_again_it_goes_on(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert _run(made(output="whole.jsonl")) == 0
    with pytest.MonkeyPatch.context() as patch:
        whole, batches = TransformersGenerator.continue_batch, 0

        def stopped(self: Any, *rest: Any) -> Any:
            nonlocal batches
            batches += 1
            if batches == 3:
                raise KeyboardInterrupt
            return whole(self, *rest)

        patch.setattr(TransformersGenerator, "continue_batch", stopped)
        assert _run(made()) == 130
    assert not (folder / "a.jsonl").exists()
    assert _run(made()) == 0
    assert (folder / "a.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    (folder / "a.record.json").unlink()  # killed between rows and record
    assert _run(made()) == 0
    assert (folder / "a.record.json").exists()
    assert _run(made(n=7)) == 0
    assert rows_of(folder / "a.jsonl")[:5] == rows_of(folder / "whole.jsonl")
    assert len(rows_of(folder / "a.jsonl")) == 7
    shutil.rmtree(folder / "a.jsonl.work")
    assert _run(made()) == 0
    assert (folder / "a.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert _run(made("--seed", "1")) == 2
    assert "seed 0, not 1" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("asked", "has_bf16", "expected"),
    [((), True, "bf16"), ((), False, "float32"), (("--precision", "float32"), True, "float32")],
)
def test_every_row_says_in_which_precision_it_was_answered(
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    processor: Callable[[bool], None],
    asked: tuple[str, ...],
    has_bf16: bool,
    expected: str,
) -> None:
    processor(has_bf16)
    assert _run(made("--json", *asked, n=2)) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["origin"]["settings"]["precision"] == expected
    assert {row["origin"]["settings"]["precision"] for row in rows_of(folder / "a.jsonl")} == {expected}
    assert json.loads((folder / "a.record.json").read_text())["inputs"]["precision"] == expected
    processor(not has_bf16)  # the same rows, asked for on another machine
    assert _run(made(*asked, n=2)) == (0 if asked else 2)
    assert _run(made("--precision", "int8", n=2)) == 2
