"""A notice that holds for many models stands once, with the range of its numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from example_result import done_cell, result, scores

from lingraft.intervals.macro_mean import Ratio
from lingraft.report.notes import (
    comparison_notes,
    equal_score_lines,
    equal_score_notes,
    missing_notes,
    model_notes,
    retention_notes,
    summed_up,
)
from lingraft.study.result import CellResult, StudyResult


def study(folder: Path, count: int, tasks: tuple[str, ...] = ("worldbook:lookup/en",)) -> StudyResult:
    """Return a study of so many cells, whose numbers of truncated prompts and of unpaired items differ."""
    cells = []
    for number in range(count):
        own = done_cell(f"s{number}")
        per_task = dict.fromkeys(tasks, own.scores.tasks["worldbook:lookup/en"])
        found = replace(
            own.scores,
            tasks=per_task,
            left_out=(),
            truncated_prompts=dict.fromkeys(tasks, 3 + number),
        )
        cells.append(replace(own, scores=found, unpaired=dict.fromkeys(tasks, 1000 + number)))
    whole = replace(scores(0.5, 0.3), left_out=(), truncated_prompts={})
    found_study = result(folder, cells)
    return replace(
        found_study,
        base=whole,
        phase_ones=tuple(replace(one, scores=whole) for one in found_study.phase_ones),
    )


def test_notices_with_other_numbers_are_one_with_their_range(tmp_path: Path) -> None:
    found = study(tmp_path, 16)
    assert len(model_notes(found)) == 16
    assert summed_up(model_notes(found), found) == [
        "similar / s0 / seed 0, similar / s1 / seed 0, similar / s2 / seed 0 and 13 more: worldbook:lookup/en: 3 to 18 "
        "prompts are longer than the model can read; they lost their beginning."
    ]
    assert summed_up(comparison_notes(found), found) == [
        "similar / s0 / seed 0, similar / s1 / seed 0, similar / s2 / seed 0 and 13 more: left out of the comparison: "
        "1000 to 1015 items of worldbook:lookup/en."
    ]


def test_notices_of_several_tasks_are_one_and_numbers_in_names_stay(tmp_path: Path) -> None:
    found = study(tmp_path, 1, ("mmlu_5/de", "mmlu_5/th", "arc-2/de", "arc-2/th"))
    (line,) = summed_up(model_notes(found), found)
    assert line == (
        "similar / s0 / seed 0: mmlu_5/de, mmlu_5/th, arc-2/de and 1 more: 3 prompts are longer than the model can "
        "read; they lost their beginning."
    )


def test_a_single_notice_stays_as_it_is_and_all_models_are_named_so(tmp_path: Path) -> None:
    found = result(tmp_path, [done_cell("plain")])
    lines = summed_up(model_notes(found), found)
    assert lines[0] == (
        "All models: 1 item is left out and counts nowhere, such as ifeval: item 7: needs punkt."
    )
    assert len(lines) == 2


def equal_in(cell: CellResult, score: float) -> CellResult:
    tasks = {
        name: replace(one, all_scores=score if name.endswith("en") else None)
        for name, one in cell.difference.tasks.items()
    }
    return replace(cell, difference=replace(cell.difference, tasks=tasks))


def test_equal_scores_of_many_cells_are_one_sentence_and_the_page_has_the_list(tmp_path: Path) -> None:
    few = result(tmp_path, [equal_in(done_cell("a"), 0.0), done_cell("b")])
    assert equal_score_notes(few) == equal_score_lines(few)
    many = result(tmp_path, [equal_in(done_cell(f"s{i}"), float(i)) for i in range(5)] + [done_cell("b")])
    assert len(equal_score_lines(many)) == 5
    assert equal_score_notes(many) == [
        "All scores of a cell and of Phase 1 are equal in some tasks of 5 of 6 cells, which cannot tell the two apart: "
        "worldbook:lookup/en in 5 cells."
    ]


def test_missing_retention_and_measures_are_said_once(tmp_path: Path) -> None:
    cells = [
        replace(
            done_cell(f"s{i}"),
            retention=Ratio(
                None, None, None, 40, f"the score before, 0.{i}10, is not to be distinguished from 0"
            ),
        )
        for i in range(5)
    ]
    found = result(tmp_path, [*cells, done_cell("b")])
    assert retention_notes(found) == [
        "Retention is missing where the score before, 0.010 to 0.410, is not to be distinguished from 0: "
        "similar / s0, similar / s1, similar / s2 and 2 more."
    ]
    measured = [
        replace(
            one,
            phases=(
                replace(
                    one.phases[0],
                    measures={"mpd": replace(one.phases[0].measures["mpd"], reason=f"{i} tensors differ")},
                ),
            ),
        )
        for i, one in enumerate(cells)
    ]
    assert missing_notes(result(tmp_path, measured)) == ["MPD is missing where 0 to 4 tensors differ."]
