"""Every command answers on stdout with its result alone, and with the exit code that is promised."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from lingraft.cli.output import print_json
from lingraft.judge.budget import BudgetReachedError

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_help_is_the_result_when_it_is_asked_for(lingraft: Command) -> None:
    done = lingraft("--help")
    assert done.returncode == 0
    for command in ("run", "validate", "show", "schema", "copy", "ls"):
        assert f"  {command} " in done.stdout


def test_versions_are_told_without_loading_torch(lingraft: Command) -> None:
    done = lingraft("--version")
    assert done.returncode == 0
    versions = f"lingraft {version('lingraft')}, Python {platform.python_version()}, torch {version('torch')}"
    assert done.stdout == f"{versions}\n"
    assert done.stderr == ""


@pytest.mark.parametrize("command", [(), ("run",), ("show",), ("show", "data"), ("evaluate",)], ids="-".join)
def test_help_has_a_short_name_everywhere(lingraft: Command, command: tuple[str, ...]) -> None:
    short, long = lingraft(*command, "-h"), lingraft(*command, "--help")
    assert (short.returncode, short.stdout, short.stderr) == (0, long.stdout, "")
    assert short.stdout.startswith("Usage: lingraft")


def test_no_command_is_help_and_a_group_without_one_says_its_commands(lingraft: Command) -> None:
    assert lingraft().stdout == lingraft("--help").stdout
    done = lingraft("show")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(r"^\s+predictions ", done.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["ls", "mode"], "ConfigError"),
        (["lss"], "UsageError"),
        (["show"], "UsageError"),
        (["run"], "UsageError"),
        (["evaluate", "a", "--limit", "x"], "UsageError"),
        (["show", "data", "no.jsonl"], "DataError"),
        (["show", "predictions", "no"], "ConfigError"),
        (["validate", "no.yaml"], "ConfigError"),
        (["difference", "no", "no2"], "ModelError"),
    ],
    ids=lambda one: "-".join(one) if isinstance(one, list) else one,
)
def test_an_error_under_json_is_an_object(lingraft: Command, arguments: list[str], kind: str) -> None:
    plain, done = lingraft(*arguments), lingraft(*arguments, "--json")
    error = json.loads(done.stdout)["error"]
    said, of_plain = (  # a busy machine adds signs of life
        [line for line in one.stderr.splitlines() if not line.endswith(" so far")] for one in (done, plain)
    )
    assert set(error) == {"type", "message", "exit_code"}
    assert error["exit_code"] == done.returncode == plain.returncode == 2
    assert said[0].startswith(f"{error['type']}: {error['message']}".partition("\n")[0])
    assert plain.stdout == ""
    if arguments != ["show"]:  # `--json` is the wrong option there
        assert error["type"] == kind
        assert said == of_plain


def test_all_columns_and_json_exclude_each_other(lingraft: Command) -> None:
    done = lingraft("run", "no.yaml", "--wide", "--json")
    assert done.returncode == 2
    assert "--wide: goes without --json" in done.stderr


def test_the_type_of_an_error_is_one_of_the_documented_ones(
    lingraft: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise BudgetReachedError("the budget is spent")

    monkeypatch.setattr("lingraft.study.checks.load_study", fails)
    done = lingraft("validate", "x.yaml", "--json")
    assert json.loads(done.stdout)["error"]["type"] == "EvaluationError"
    assert done.stderr == "EvaluationError: the budget is spent\n"


def test_a_result_that_fails_after_it_was_printed_stays_one_object(
    lingraft: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        print_json({"valid": True})
        raise RuntimeError("too late")

    monkeypatch.setattr("lingraft.study.checks.load_study", fails)
    done = lingraft("validate", "x.yaml", "--json")
    assert done.returncode == 4
    assert json.loads(done.stdout) == {"valid": True}


def test_a_result_that_cannot_be_written_is_one_line() -> None:
    starts = [sys.executable, "-c", "from lingraft.cli.main import main; main()"]
    for arguments in (["ls"], ["--help"], ["ls", "--json"], ["lss", "--json"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [*starts, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
    closed = subprocess.run(["bash", "-c", '"$@" >&- 2>&- <&-', "-", *starts, "ls"], check=False)
    assert closed.returncode == 0


def test_a_recipe_is_copied_validated_and_shown(lingraft: Command, tmp_path: Path) -> None:
    copied = lingraft("copy", "quickstart")
    assert copied.stdout.strip() == "quickstart.yaml"
    assert (tmp_path / "quickstart.yaml").is_file()
    assert lingraft("copy", "quickstart").returncode == 2
    validated = lingraft("validate", "quickstart.yaml", "--json")
    assert json.loads(validated.stdout)["valid"] is True
    shown = lingraft("show", "study", "quickstart.yaml", "seeds=[0, 1]")
    assert yaml.safe_load(shown.stdout)["seeds"] == [0, 1]
    assert "similar / plain / seed 1" in shown.stdout


def test_the_schema_is_json_that_knows_every_section(lingraft: Command) -> None:
    schema = json.loads(lingraft("schema").stdout)
    assert {"PhaseData", "Training", "Evaluation"} <= set(schema["$defs"])
    assert "description" in schema["properties"]["held_out"]
    assert schema["properties"]["measures"]["items"]["enum"] == ["des", "mpd", "mpd_pair", "drift"]


def test_ls_lists_what_a_study_can_name(lingraft: Command) -> None:
    listed = json.loads(lingraft("ls", "--json").stdout)
    assert {"plain", "mixed", "freeze_random", "generative_replay", "ewc", "interpolate"} < set(
        listed["strategies"]
    )
    assert all(listed["strategies"].values())
    assert "worldbook:counting/fr" in listed["worldbook"]
    assert set(listed["suites"]) == {"paper", "paper-lite", "quick", "reading"}
    assert listed["suites"]["quick"].endswith("(worldbook, instructions)")


def test_show_data_prints_counts_and_marks_the_supervised_part(
    lingraft: Command, tmp_path: Path, tiny_model: Path
) -> None:
    rows = [{"instruction": f"Say {word}.", "output": f"Here is {word}."} for word in ("one", "two", "three")]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*(json.dumps(row) for row in rows), "{broken"]))
    done = lingraft("show", "data", str(path), "--model", str(tiny_model), "--language", "en", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["languages"]["en"]["examples"] == 3
    assert "rows.jsonl:4" in json.dumps(summary)
    text = lingraft("show", "data", str(path), "--model", str(tiny_model), "--language", "en").stdout
    assert "Here is" in text


def test_show_data_tells_before_training_what_a_language_costs(
    lingraft: Command, tmp_path: Path, tiny_model: Path
) -> None:
    texts = {
        "ar": "ما عاصمة مصر؟",
        "th": "เมืองหลวงของไทยคือที่ไหน",
        "ja": "日本の首都はどこですか",
        "en": "Where is it?",
    }
    rows = [
        {"instruction": text, "output": text, "language": tag, "group": f"g{n}"}
        for n in range(25)
        for tag, text in texts.items()
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    done = lingraft("show", "data", str(path), "--model", str(tiny_model))
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith((" ar ", " th ", " ja ", " en "))]
    assert len({len(line) for line in table}) == 1
    assert all("25 groups" in line for line in table)
    assert "Warning: th costs" in done.stdout
    assert "for the same content (25 groups of the data)" in done.stdout
    assert "Warning: en" not in done.stdout


def test_show_data_says_where_test_items_go_and_takes_a_limit(
    lingraft: Command, tmp_path: Path, tiny_model: Path
) -> None:
    items = tmp_path / "mgsm_de.tsv"
    items.write_text('"Wie viel?" fragt sie.\t18\n')
    done = lingraft("show", "data", str(items), "--model", str(tiny_model))
    assert done.returncode == 0, done.stderr
    assert (
        "test items of mgsm, no training data. Put it as DIR/mgsm/de.tsv, then: lingraft evaluate"
        in done.stdout
    )
    found = json.loads(lingraft("show", "data", str(items), "--model", str(tiny_model), "--json").stdout)
    assert found["test_items"][0]["places"] == {"mgsm": "mgsm/de.tsv"}
    (tmp_path / "sums.csv").write_text("question,answer\nWie viele Äpfel hat Anna gestern gekauft?,18\n")
    done = lingraft("show", "data", "sums.csv", "--model", str(tiny_model))
    assert "(by the identifier it is de). Convert it to .jsonl, put it as" in done.stdout
    assert (
        "DIR/mgsm/de.jsonl, then: lingraft evaluate MODEL --data-dir DIR --task mgsm --languages de"
        in done.stdout
    )
    reference = {"dataset": "koala", "instruction": "Say a.", "output": "a", "generator": "text_davinci_003"}
    (tmp_path / "reference.jsonl").write_text(json.dumps(reference))
    done = lingraft("show", "data", "reference.jsonl", "--model", str(tiny_model))
    assert "test items of alpaca_eval, no training data" in done.stdout
    rows = [{"instruction": f"Say {n}.", "output": "" if n == 1 else f"{n}</s>"} for n in range(9)]
    (tmp_path / "es.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--limit", "3", "--no-answer-filter", "--special-tokens", "strip", "--json")
    done = lingraft("show", "data", "es.jsonl", "--model", str(tiny_model), *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["first_rows"], found["broken"], list(found["languages"])) == (
        3,
        3,
        0,
        ["es"],
    )
    assert found["filtered"] == {"no_answer": 1, "special_tokens_stripped": 2}


def test_wrong_input_of_a_process_has_exit_code_two_and_an_empty_stdout(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("modle: x\nname: bad\nphases: []\n")
    starts = [sys.executable, "-c", "from lingraft.cli.main import main; main()"]
    done = subprocess.run(
        [*starts, "run", "bad.yaml"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "bad.yaml:1: modle" in done.stderr
    assert "'model'" in done.stderr
