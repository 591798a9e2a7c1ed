"""A report of several runs compares nothing that was asked otherwise, and one of a damaged run says what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from example_result import done_cell, failed_cell, result, scores

from lingraft.claims import claim
from lingraft.config.load import save_study
from lingraft.config.schema import Study
from lingraft.errors import ConfigError
from lingraft.intervals.macro_mean import Ratio
from lingraft.report import older
from lingraft.report.contents import Lines, PlacedTable
from lingraft.report.merge import MergedResult
from lingraft.report.page import render_page
from lingraft.report.runs import Report, read_report
from lingraft.report.sections import contents_of
from lingraft.report.tables import study_table, task_table
from lingraft.study.event_log import EventLog, event_file, output_file
from lingraft.study.failures import record_failure
from lingraft.study.limits import LimitPlan, LimitResult
from lingraft.study.made import noted_in
from lingraft.study.result import CellResult, FailedCell, PendingCell, StudyResult, read_result, write_result

Write = Callable[..., Path]
HOME = "/".join(("", "home", "anna"))  # of nobody


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a run folder of a study with the cells plain and lora, of which the result may hold others."""

    def run(name: str, *cells: CellResult | FailedCell, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        phases: list[dict[str, Any]] = [
            {"name": "one", "data": {"e": {"source": "e.jsonl"}}},
            {"name": "two", "data": {"similar": {"source": "d.jsonl"}}, "strategies": ["plain", "lora"]},
        ]
        study = Study.model_validate({"name": name, "model": "a/model", "phases": phases})
        save_study(study, folder / "study.yaml")
        write_result(replace(result(folder, cells or [done_cell("plain"), failed_cell()]), **changes))
        return folder

    return run


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Report:
    path = folder / "result.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return read_report([str(folder)])


def names(of: StudyResult) -> list[str]:
    return [" / ".join(row[:2]) for row in study_table(of).rows]


def test_several_runs_are_one_result_with_data_sets_named_after_them(write: Write) -> None:
    plain, other = done_cell("plain"), replace(done_cell("lora"), limits={})
    limits = {"task_ability": LimitPlan(limit=0.03, needed=9, available=40, assumed_share=0.1)}
    kept = {"task_ability": LimitResult(limit=0.03, low=0.0, high=0.1, answer="held")}
    first = write("first", replace(plain, limits=kept), limits=limits, language_notes=("shared", "own"))
    second = write("second", other, language_notes=("shared",))
    report = read_report([str(first), f"2nd={second}"])
    assert report.title == "first, 2nd"
    assert names(report.result) == [
        "base model / ",
        "phase 1 / ",
        "first: similar / plain",
        "2nd: similar / lora",
    ]
    assert report.result.language_notes == ("shared", "first: own")
    table = study_table(report.result)
    place = [column.title for column in table.columns].index("limit task ability 0.03")
    assert [row[place] for row in table.rows[2:]] == ["held", "-"]
    assert "2nd: similar" in render_page(report)


def test_base_models_that_differ_each_have_a_row(write: Write) -> None:
    runs = [write("first"), write("second", base=scores(0.3, 0.1))]
    report = read_report([str(run) for run in runs])
    assert isinstance(report.result, MergedResult)
    assert names(report.result)[:2] == ["first: base model / ", "second: base model / "]


def test_what_only_one_run_measures_or_asks_is_absent_of_the_other(write: Write) -> None:
    without = done_cell("lora")
    phases = tuple(replace(phase, measures={}) for phase in without.phases)
    other = replace(without, phases=phases, scores=replace(without.scores, tasks={}))
    runs = [write("first", done_cell("plain")), write("second", other)]
    found = read_report([str(run) for run in runs]).result
    assert [list(cell.measures) for cell in found.done] == [list(done_cell("plain").measures)] * 2
    table = task_table(found)
    assert table is not None
    scores_of = {row[:2]: row[2] for row in table.rows}
    assert scores_of["second: similar", "lora"] == "-"
    assert scores_of["first: similar", "plain"] == "0.400 (p 0.012) ▼"


def test_a_run_or_a_name_that_is_given_twice_is_refused(write: Write) -> None:
    first, second = write("first"), write("second")
    with pytest.raises(ConfigError, match="is given 2 times"):
        read_report([str(first), f"again={first}/"])
    with pytest.raises(ConfigError, match="a: is the name of"):
        read_report([f"a={first}", f"a={second}"])


def test_scores_of_runs_whose_evaluations_are_gone_are_said_not_to_be_comparable(write: Write) -> None:
    report = read_report([str(write("first")), str(write("second", done_cell("plain", seed=1)))])
    said = "\n".join(report.remarks)
    assert "other seeds (first: 0; second: 1)" in said
    assert "first: its evaluations cannot be read" in said


def test_a_result_of_an_earlier_version_is_shown_as_far_as_it_says_something(write: Write) -> None:
    def older(content: dict[str, Any]) -> None:
        content["format"] = 1
        del content["unused"]
        for cell in content["cells"]:
            if cell["status"] == "done":
                cell["retention"] = 0.8
                cell["scores"]["of_then"] = 1
                for one in cell["difference"]["tasks"].values():
                    del one["margin"], one["answer"]

    report = changed(write("first"), older)
    (done,) = report.result.done
    assert done.retention == Ratio(0.8, None, None, 0, None)
    assert done.difference == done_cell("plain").difference
    said = "\n".join(report.runs[0].remarks)
    assert "An earlier version of lingraft wrote result.json (of format 1; now 2)" in said
    assert "it does not say unused" in said
    assert "cells.scores.of_then is of no meaning to this version" in said
    assert contents_of(report)[1].title == "Read this first"


def test_a_result_of_a_later_version_is_refused(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"a later version of lingraft wrote it .* update lingraft"):
        changed(write("first"), lambda content: content.update(format=3))


def test_a_result_that_this_version_wrote_is_read_whole_and_not_field_by_field(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write("first")
    monkeypatch.delattr(older, "_result")
    assert read_report([str(folder)]).result == replace(read_result(folder), run=str(folder))


def test_a_result_that_is_nested_too_deep_is_one_that_is_damaged(write: Write) -> None:
    folder = write("first")
    (folder / "result.json").write_text('{"format": 2, "cells": ' + "[" * 100_000 + "]" * 100_000 + "}")
    report = read_report([str(folder)])
    assert [type(cell) for cell in report.result.cells] == [PendingCell, PendingCell]
    assert "result.json was cut or damaged" in report.runs[0].remarks[0]


def test_of_a_result_that_was_cut_the_whole_cells_are_shown(write: Write) -> None:
    folder = write("first", done_cell("plain"), done_cell("lora"))
    path = folder / "result.json"
    text = path.read_text()
    path.write_text(text[: text.index('"lora"')])
    report = read_report([str(folder)])
    assert [(type(cell), cell.strategy) for cell in report.result.cells] == [
        (CellResult, "plain"),
        (PendingCell, "lora"),
    ]
    assert "result.json was cut or damaged: what stands before that place is shown." in report.runs[0].remarks
    assert "result.json was cut" in render_page(report)


def test_a_cell_that_does_not_fit_is_shown_as_failed_with_the_reason(write: Write) -> None:
    def damage(content: dict[str, Any]) -> None:
        del content["cells"][0]["difference"]["task_ability"]["low"]

    report = changed(write("first"), damage)
    assert isinstance(cell := report.result.cells[0], FailedCell)
    assert "cells.difference.task_ability.low is missing" in cell.reason


def test_a_run_without_a_result_has_the_cells_of_its_study_as_pending(write: Write) -> None:
    folder = write("first")
    (folder / "result.json").unlink()
    (folder / "stages").mkdir()
    report = read_report([str(folder)])
    assert [type(cell) for cell in report.result.cells] == [PendingCell, PendingCell]
    assert "result.json is missing: which cells are done is not known." in report.runs[0].remarks
    render_page(report)


def test_a_study_file_that_cannot_be_read_is_said_and_costs_nothing_else(write: Write) -> None:
    folder = write("first")
    (folder / "study.yaml").write_text("nonsense: 1\n")
    report = read_report([str(folder)])
    assert report.title == "first"
    assert "study.yaml cannot be read by this version" in report.runs[0].remarks[0]
    assert len(report.result.done) == 1


def test_a_run_that_is_at_work_is_said_to_be_and_not_disturbed(write: Write) -> None:
    folder = write("first")
    with claim(folder / "claims" / "run"):
        assert any("at work" in remark for remark in read_report([str(folder)]).runs[0].remarks)
    assert not any("at work" in remark for remark in read_report([str(folder)]).runs[0].remarks)


def table_of(report: Report, name: str) -> list[list[str]]:
    blocks = [block for section in contents_of(report) for block in section.blocks]
    (placed,) = [block for block in blocks if isinstance(block, PlacedTable) and block.name == name]
    return [list(row) for row in placed.table.rows]


def test_what_cells_share_is_counted_once_and_the_largest_share_comes_first(write: Write) -> None:
    def with_truncated(cell: CellResult, truncated: int) -> CellResult:
        (*before, last) = cell.phases
        training = replace(last.training, truncated=truncated, examples=100, dropped=0)
        return replace(cell, phases=(*before, replace(last, training=training)))

    run = write("first", with_truncated(done_cell("plain"), 60), with_truncated(done_cell("lora"), 20))
    found = {row[0]: row[1:] for row in table_of(read_report([str(run)]), "left-out")}
    # Each strategy trained on its own examples; both read the same rows of the same set.
    last = f"{done_cell('plain').phases[-1].data}"
    assert found["examples cut to `max_length`"][:3] == ["80", "200 examples", "40.0%"]
    assert found["examples cut to `max_length`"][3].startswith(last)
    broken = sum(data.broken for data in done_cell("plain").phases[-1].training.data)
    assert found["rows that could not be read"][0] == str(broken)
    shares = [float(row[2].rstrip("%")) for row in found.values() if row[2] != "-"]
    assert shares == sorted(shares, reverse=True)


def test_a_reason_that_failed_several_cells_stands_once(write: Write) -> None:
    cells = [
        failed_cell(),
        failed_cell(seed=1),
        failed_cell(strategy="ewc", reason=f"no room in {HOME}/x"),
    ]
    report = read_report([str(write("first", *cells))])
    (section,) = [one for one in contents_of(report) if one.name == "problems"]
    failed = section.blocks[0]
    assert isinstance(failed, Lines)
    assert failed.lines == (
        "2 cells (similar / lora / seed 0, similar / lora / seed 1): no memory",
        "similar / ewc / seed 0: no room in ~/x",
    )


def test_failed_attempts_name_their_log_and_whether_the_stage_was_made_since(write: Write) -> None:
    folder = write("first")
    made, single, lost = (f"train-{number:016x}" for number in range(3))
    (folder / "stages" / made).mkdir(parents=True)
    (folder / "stages" / made / "record.json").touch()
    for stage in (made, made, single, lost):
        record_failure(folder, stage, OSError(f"no route from {HOME}/x"), where="node-1, process 7")
    with EventLog(event_file(folder, lost, 3)) as log:
        log.stage_started("train")
    output_file(folder, lost, 3).touch()
    (section,) = [one for one in contents_of(read_report([str(folder)])) if one.name == "problems"]
    block = section.blocks[1]
    assert isinstance(block, Lines)
    assert block.lines == (
        f"{made}: 2 attempts, the last on node-1, process 7: no route from ~/x; made since",
        f"{lost}: 1 attempt, the last on node-1, process 7: no route from ~/x "
        f"(log: logs/{lost}/3.log in the run folder)",
    )


def test_the_report_says_how_the_run_was_made_and_hides_what_is_secret(write: Write) -> None:
    folder = write("first")
    study = (folder / "study.yaml").read_text().replace("e.jsonl", f"{HOME}/e.jsonl")
    (folder / "study.yaml").write_text(study)
    with noted_in(folder, ["lingraft", "run", "a.yaml", "judge.url=https://me:pw@host"], 1) as ending:
        ending.outcome = "done"
    report = read_report([str(folder)])
    (row,) = table_of(report, "calls")
    assert row[2:5] == ["done", "lingraft run a.yaml judge.url=https://***@host", version("lingraft")]
    assert dict(report.facts)["Model"] == "a/model"
    assert dict(report.facts)["Cells"] == "1 of 2 done, 1 failed"
    page = render_page(report)
    assert "anna" not in page
    assert "me:pw" not in page
    assert "~/e.jsonl" in page


def test_a_task_that_is_given_as_a_file_is_called_by_its_name(write: Write) -> None:
    file = "tasks/toy_pt.yaml"

    def asked(cell: CellResult, **changes: Any) -> CellResult:
        own, change = cell.scores.tasks, cell.difference.tasks
        tasks = {f"{file}/pt": own["worldbook:lookup/en"]}
        difference = replace(cell.difference, tasks={f"{file}/pt": change["worldbook:lookup/en"]})
        truncated = {f"{file}/pt": 3}
        scores = replace(cell.scores, tasks=tasks, truncated_prompts=truncated, left_out=(f"{file}: no",))
        return replace(cell, scores=scores, difference=difference, **changes)

    failed = failed_cell(reason=f"the task {file}: no such column")
    cells = [asked(done_cell("plain")), asked(done_cell("ssu")), failed]
    first, second = write("first", *cells), write("second", *cells)
    manifest = first / Path(done_cell("plain").predictions).with_name("manifest.json")
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"libraries": {}, "tasks": {f"language_ability|{file}|pt|toy": {}}}))
    for runs in ([first], [first, second]):  # of the second nothing is known
        report = read_report([str(run) for run in runs])
        assert report.task_names == {file: "toy"}
        table = task_table(report.result)
        assert table is not None
        assert "toy/pt" in [column.title for column in table.columns]
        page = render_page(report)
        assert "toy/pt: 3 prompts" in page
        without_reason = page.replace(failed.reason, "")
        assert failed.reason in page  # who mends that looks for the file
        assert file not in without_reason
    assert read_report([str(second)]).task_names == {file: "toy_pt"}
