"""What names say wrong is found before any data or model is read, all of it at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lingraft.cli.main import _run
from lingraft.config.schema import Study
from lingraft.errors import ConfigError
from lingraft.study.checks import load_study, name_problems


def content(**changes: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "model": "some/model",
        "phases": [
            {"name": "one", "data": {"english": {"source": "owner/rows"}}},
            {"name": "two", "data": {"german": {"source": "owner/rows"}}, "strategies": ["plain"]},
        ],
        **changes,
    }


CHECKPOINT = [{"name": "one", "checkpoint": "x"}, {"name": "two", "data": {"german": {"source": "x"}}}]


@pytest.mark.parametrize(
    ("changes", "place", "says"),
    [
        ({"measures": ["mpd", "dess"]}, "measures[1]: 'dess'", "Did you mean 'des'"),
        ({"measures": ["mpd_pair"], "phases": CHECKPOINT}, "measures: mpd_pair", "`model`"),
        ({"measures": ["drift"], "held_out": 0}, "measures: drift", "prompts"),
        ({"prompts": ["owner/prompts"]}, "prompts: ", "drift"),
        ({"training": {"report_to": ["tensorbord"]}}, "training.report_to: 'tensorbord'", "'tensorboard'"),
        ({"evaluate": {"task_ability": ["suite:papr"]}}, "evaluate.task_ability[0]: suite:papr", "'paper'"),
        ({"evaluate": {"task_ability": ["worldbook:lokup"]}}, "evaluate.task_ability[0]", "'lookup'"),
        ({"evaluate": {"task_ability": ["absent.yaml"]}}, "evaluate.task_ability[0]", "no such file"),
        ({"evaluate": {"task_ability": ["alpaca_eval"]}}, "evaluate.task_ability[0]: alpaca_eval", "judge"),
        ({"evaluate": {"task_ability": ["suite:paper"]}}, "evaluate.task_ability[0]: suite:paper", "judge"),
        (
            {"evaluate": {"task_ability": [{"task": "suite:reading", "without": ["mmul"]}]}},
            "evaluate.task_ability[0]: suite:reading: without 'mmul'",
            "Options: ",
        ),
        (
            {"evaluate": {"language_ability": [{"task": "worldbook:lookup", "language": "sw"}]}},
            "evaluate.language_ability[0]: worldbook:lookup",
            "'sw'",
        ),
        (
            {"evaluate": {"task_ability": ["suite:reading"], "data_dir": "absent"}},
            "evaluate.data_dir",
            "absent",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_its_place(changes: dict[str, Any], place: str, says: str) -> None:
    (problem,) = name_problems(Study.model_validate(content(**changes)), Path())
    assert problem.text.startswith(place)
    assert says in problem.text


BAD = {"lora": {"training": {"report_to": ["tensorbord"]}}}


@pytest.mark.parametrize(
    ("place", "where"),
    [
        ("phase", "phases[1] (two).strategies"),
        ("data", "phases[1] (two).data.german.strategies"),
        ("path", "paths[0], phase 'two'"),
    ],
)
def test_a_tracker_is_checked_wherever_a_strategy_can_stand(place: str, where: str) -> None:
    changed = content()
    del changed["phases"][1]["strategies"]
    if place == "phase":
        changed["phases"][1]["strategies"] = [BAD]
    elif place == "data":
        changed["phases"][1]["data"]["german"]["strategies"] = [BAD]
    else:
        changed["paths"] = [
            [{"phase": "one", "data": "english"}, {"phase": "two", "data": "german", "strategy": BAD}]
        ]
    (problem,) = name_problems(Study.model_validate(changed), None)
    assert problem.text.startswith(f"{where}, strategy 'lora', training.report_to: 'tensorbord'")


def test_strategies_with_one_name_hide_no_other_problem() -> None:
    changed = content()
    changed["phases"][0]["strategies"] = ["plain", "plain"]
    changed["phases"][1]["strategies"] = ["half", "half", [{"lora": {"rnk": 2}}, {"ewc": {"strenght": 1}}]]
    problems = "\n".join(one.text for one in name_problems(Study.model_validate(changed), None))
    for part in ("2 strategies are named 'plain'", "2 strategies are named 'half'", "'rnk'", "'strenght'"):
        assert part in problems


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        ("plan", "Did you mean 'plain'"),
        ({"lora": {"rnk": 2}}, "Did you mean 'rank'"),
        ({"english_replay": {"share": 2}}, "'share'"),
        ({"english_replay": {}}, "english: SOURCE"),
        ([{"lora": {}}, "half"], "half"),
    ],
)
def test_an_unknown_strategy_or_option_is_refused_with_its_place(strategy: Any, says: str) -> None:
    changed = content()
    changed["phases"][1]["strategies"] = [strategy]
    (problem,) = name_problems(Study.model_validate(changed), None)
    assert problem.text.startswith("phase 'two', ")
    assert says in problem.text


def test_what_is_wrong_with_a_strategy_of_a_phase_is_told_once_for_all_its_data_sets() -> None:
    changed = content()
    changed["phases"][1]["data"]["other"] = {
        "source": "worldbook:counting/de",
        "strategies": [{"lora": {"rnk": 2}}],
    }
    changed["phases"][1]["strategies"] = ["plan"]
    first, second = (one.text for one in name_problems(Study.model_validate(changed), None))
    assert first.startswith("phase 'two', strategy 'plan': ")
    assert second.startswith("phase 'two', data 'other', strategy 'lora': ")


@pytest.mark.parametrize("trained", [True, False])
def test_only_rows_that_the_study_has_are_advised_for_replay(trained: bool) -> None:
    changed = content() if trained else content(phases=CHECKPOINT)
    changed["phases"][1] = {**changed["phases"][1], "strategies": ["english_replay"]}
    (problem,) = name_problems(Study.model_validate(changed), None)
    assert ("phase_one" in problem.text) is trained  # of a finished model the rows are unknown
    assert "english: SOURCE" in problem.text
    assert "self`)" in problem.text


def test_strategies_of_one_name_are_refused_everywhere_a_study_is_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = content()
    sweep = {"interpolate": {"alpha": [0.5, 0.25]}}
    wrong["phases"][0]["strategies"] = ["plain", "plain"]
    wrong["phases"][1]["strategies"] = [sweep, sweep]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(wrong))
    expected = (
        "phases[0] (one).data.english: 2 strategies are named 'plain'",
        "phases[1] (two).data.german: 2 strategies are named 'interpolate-0.5'",
        "phases[1] (two).data.german: 2 strategies are named 'interpolate-0.25'",
    )
    with pytest.raises(ConfigError) as caught:
        load_study(tmp_path / "study.yaml")
    for part in expected:
        assert part in str(caught.value)
    assert _run(["show", "study", str(tmp_path / "study.yaml")]) == 2
    assert expected[2] in capfd.readouterr().err


def test_what_python_reads_leaves_files_to_the_run_which_knows_their_folder(tmp_path: Path) -> None:
    right = content(evaluate={"task_ability": ["own.yaml"]})
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(right))
    assert load_study(tmp_path / "study.yaml").evaluate.task_ability[0].task == "own.yaml"
    with pytest.raises(ConfigError, match=r"own\.yaml"):
        load_study(tmp_path / "study.yaml", base_folder=tmp_path)


def test_a_yaml_task_and_a_local_file_that_are_there_are_right(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "own.yaml").write_text("task: own\n")
    tasks = ["own.yaml", {"task": "worldbook"}, {"task": "gsm8k", "data": "rows.jsonl"}]
    study = Study.model_validate(content(evaluate={"task_ability": tasks}))
    assert name_problems(study, tmp_path) == []
    assert len(name_problems(study, tmp_path / "elsewhere")) == 2


def test_validate_reports_all_problems_at_once_and_loads_no_torch(tmp_path: Path) -> None:
    wrong = content(measures=["dess", "drift"], seeds=[1, 1], evaluate={"task_ability": ["no_such_task"]})
    wrong["phases"][1]["strategies"] = [{"lora": {"rnk": 2}}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(wrong))
    code = (
        "import sys\nfrom lingraft.cli.main import main\ntry: main()\n"
        "finally: print([name for name in ('torch', 'datasets') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, "validate", str(tmp_path / "study.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    for part in ("measures[0]: 'dess'", "seeds: 1", "no_such_task", "'rnk'"):
        assert part in done.stderr
    assert done.stdout.strip() == "[]"
