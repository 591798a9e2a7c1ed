"""A folder of `evaluate` or `check` has a page of its own; a damaged one is refused with what to do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from example_result import difference, scores

from lingraft.adapt.checked import FORMAT, Checked
from lingraft.adapt.promise import AbilityLoss
from lingraft.cli.output import write_record
from lingraft.evaluate.results import ModelDifferences, TaskDifference
from lingraft.intervals.macro_mean import Interval
from lingraft.records import to_json

Lingraft = Callable[..., subprocess.CompletedProcess[str]]
ENGLISH = AbilityLoss(
    name="en", before=Interval(0.5, 0.4, 0.6, 40), after=Interval(0.3, 0.2, 0.4, 40), loss=0.4, low=0.3, high=0.5,
    max_loss=0.01, n=40, answer="broken", reason=None, certifiable_loss=0.1, items_needed=900,
)  # fmt: skip
CHECKED = Checked(
    format=FORMAT, answer="broken", model="my/tuned", against="my/start", are_equal=False, abilities=(ENGLISH,),
    tasks=(), deciding_tasks=(), unmeasured={}, not_run={"ifeval/en": "needs <b>punkt</b>"}, unpaired={},
    not_paired={}, notes=(), part="all", precision="float32", folder="x", predictions=None,
)  # fmt: skip
ONE: Any = {
    "scores": to_json(scores(0.4, 0.6)),
    "not_run": {"ifeval/en": "needs <b>punkt</b>"},
    "no_room": {},
}


def record(folder: Path, measure: str, inputs: dict[str, Any], found: Any) -> None:
    folder.mkdir()
    write_record(folder / "record.json", measure, {"suite": "mine", "precision": "float32"} | inputs, found)


@pytest.mark.parametrize("kind", ["check", "evaluate"])
def test_the_page_says_what_was_found_and_its_tables_are_files(
    tmp_path: Path, lingraft: Lingraft, kind: str
) -> None:
    if kind == "check":
        record(tmp_path / "kept", "check", {"model": "my/tuned", "against": "my/start"}, to_json(CHECKED))
        says, table = "my/tuned against my/start: broken", "abilities.csv"
    else:
        record(tmp_path / "kept", "evaluate", {"model": "my/tuned", "name": "tuned"}, ONE)
        says, table = "lookup", "scores-table.csv"
    done = lingraft("report", "kept")
    assert (done.returncode, done.stdout) == (0, "Report: kept/report/index.html\n"), done.stderr
    page = Path("kept/report/index.html").read_text()
    assert says in page
    assert "needs &lt;b&gt;punkt" in page
    assert lingraft("report", "kept", "--figures", "out", "--format", "csv").stdout.endswith(
        "1 file written.\n"
    )
    assert [path.name for path in Path("out").iterdir()] == [table]
    assert json.loads(lingraft("report", "kept", "--json").stdout)["result"] is not None


def test_of_two_models_the_differences_come_first_and_a_path_that_leads_out_is_refused(
    tmp_path: Path, lingraft: Lingraft
) -> None:
    change = difference(-0.2, 0.05)
    in_task = TaskDifference(**asdict(change), p=0.01, p_adjusted=0.02)
    compared = ModelDifferences(
        compared=("start", "tuned"), predictions=("start/a", "tuned/b"), task_ability=change,
        differences={"worldbook:lookup/en": in_task}, unpaired={}, not_paired={},
    )  # fmt: skip
    record(tmp_path / "kept", "evaluate", {"models": ["a", "b"]}, to_json(compared))
    record(tmp_path / "kept" / "tuned", "evaluate", {"model": "b"}, ONE)
    assert lingraft("report", "kept").returncode == 0
    page = Path("kept/report/index.html").read_text()
    assert 0 < page.index("tuned - start") < page.index('id="scores-2"')
    assert "▼ -0.200" in page
    record(tmp_path / "bad", "evaluate", {}, to_json(replace(compared, predictions=("../a", "tuned/b"))))
    refused = lingraft("report", "bad")
    assert refused.returncode == 2
    assert "bad/record.json: is damaged, or of another version of lingraft" in refused.stderr


@pytest.mark.parametrize("text", ["{", "[]", '{"measure": "check", "inputs": {}, "result": {"answer": 3}}'])
def test_a_damaged_record_is_refused(tmp_path: Path, lingraft: Lingraft, text: str) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "record.json").write_text(text)
    refused = lingraft("report", "kept")
    assert refused.returncode == 2
    assert "kept/record.json: is damaged" in refused.stderr
    assert "run the command that made it again" in refused.stderr
