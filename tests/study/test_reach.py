"""What the hub must give is known before data are read, all of it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import Evaluation, Study
from lingraft.errors import ConfigError
from lingraft.study import run
from lingraft.study.reach import Needed, _is_cached, check_reach, needed_of_hub


def study(**changes: Any) -> Study:
    phases = [
        {"name": "one", "data": {"english": {"source": "worldbook:lookup/en"}}},
        {"name": "two", "data": {"german": {"source": "worldbook:lookup/de"}}},
    ]
    return Study.model_validate(
        {"name": "small", "model": "embedded:smollm2-135m", "phases": phases, **changes}
    )


def test_everything_that_is_missing_stands_in_one_message(tmp_path: Path) -> None:
    asked = {
        "task_ability": ["hellaswag", "suite:reading"],
        "language_ability": [{"task": "xquad", "language": "de"}],
        "data_dir": "copies",
    }
    wrong = study(model="lingraft-test/absent@main", evaluate=asked)
    with pytest.raises(ConfigError) as caught:
        check_reach(wrong, tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(
        "model: lingraft-test/absent: is not here, and the Hugging Face hub cannot be reached"
    )
    assert "evaluate: hellaswag: Rowan/hellaswag: " in str(caught.value)
    assert "give the task `data:`" in str(caught.value)
    assert "or take it from a suite (`task: suite:NAME`" in str(caught.value)
    assert "put a copy into the folder of `evaluate.data_dir`, as belebele/en.jsonl" in str(caught.value)
    assert any(line.startswith("evaluate: xquad: ") for line in lines)


def test_what_is_local_embedded_or_cached_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copies" / "belebele").mkdir(parents=True)
    (tmp_path / "copies" / "belebele" / "en.jsonl").write_text("{}\n")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    asked = {
        "task_ability": ["worldbook", {"task": "hellaswag", "data": "rows.jsonl"}, "suite:reading"],
        "data_dir": "copies",
    }
    names = {one.id for one in needed_of_hub(study(evaluate=asked), tmp_path)}
    assert "Rowan/hellaswag" not in names
    assert "facebook/belebele" not in names
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    needed = Needed("model", "model", "some/model", "")
    assert not _is_cached(needed)
    (tmp_path / "hub" / "models--some--model" / "snapshots" / "1").mkdir(parents=True)
    assert _is_cached(needed)


def test_it_is_asked_before_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        pytest.fail("data were read")

    monkeypatch.setattr(run, "gather", never)
    with pytest.raises(ConfigError, match="Rowan/hellaswag"):
        run.run_study(study(evaluate={"task_ability": ["hellaswag"]}), runs=tmp_path, base_folder=tmp_path)


def test_a_study_that_was_run_before_asks_for_what_is_new_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judges: list[str] = []

    def answers(evaluation: Evaluation, **_: object) -> None:
        judges.append("" if evaluation.judge is None else evaluation.judge.model)

    monkeypatch.setattr("lingraft.study.reach.judge_failure", answers)
    judge = {"url": "http://127.0.0.1:9/v1", "model": "first"}
    before = study(evaluate={"task_ability": ["hellaswag", "alpaca_eval"], "judge": judge})
    check_reach(before, tmp_path, before)
    assert judges == []
    other = study(evaluate={"task_ability": ["alpaca_eval"], "judge": judge | {"model": "second"}})
    check_reach(other, tmp_path, before)
    assert judges == ["second"]
    more = study(evaluate={"task_ability": ["hellaswag", "arc_challenge"]})
    with pytest.raises(ConfigError, match="arc_challenge: allenai/ai2_arc") as caught:
        check_reach(more, tmp_path, before)
    assert "hellaswag" not in str(caught.value)
