"""The verdict names the best of those that kept English and which are as good, and says so where nothing is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from example_result import done_cell, failed_cell, result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lingraft.adapt.choice import candidates_of
from lingraft.evaluate.predictions import Ability, Prediction, write_predictions
from lingraft.evaluate.scores import difference_of, differences, retention, score_summary
from lingraft.intervals.changes import Margins
from lingraft.report.rivals import Comparer, best_cells
from lingraft.report.runs import report_of
from lingraft.report.sections import SECTIONS
from lingraft.report.sections.verdict import section
from lingraft.report.verdict import Verdict, verdict_of
from lingraft.study.limits import LimitPlan, LimitResult, limit_result
from lingraft.study.result import CellResult, FailedCell, PendingCell, StudyResult
from lingraft.study.summary import seed_differences

ITEMS = 800  # enough that no change at all is shown to be none within 0.01


def answered(right: Mapping[str, float], *, items: int = ITEMS) -> list[Prediction]:
    """Return the answers of a model that has a share of the items of each ability right: always the same ones first."""
    kinds: tuple[tuple[Ability, str], ...] = (("task_ability", "en"), ("language_ability", "de"))
    return [
        Prediction(
            ability=ability,
            task="toy",
            language=language,
            cluster=str(i),
            item=str(i),
            score=float(i < round(items * right[language])),
            prompt="a",
            response="b",
            reference="c",
            asked=f"{language} {i}",
        )
        for ability, language in kinds
        for i in range(items)
    ]


PHASE_ONE = {"en": 0.5, "de": 0.1}


def cell(
    folder: Path,
    strategy: str,
    english: float,
    german: float,
    *,
    data: str = "similar",
    seed: int = 0,
    limits: Mapping[str, float] | None = None,
    items: int = ITEMS,
) -> CellResult:
    """Return a cell whose answers lie in the run folder."""
    before, after = answered(PHASE_ONE, items=items), answered({"en": english, "de": german}, items=items)
    place = f"stages/evaluate-{data}-{strategy}-{seed}/predictions.parquet"
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / place, after)
    limits = limits or {}
    return replace(
        done_cell(strategy, seed),
        data=data,
        scores=score_summary(after, {}),
        difference=differences(before, after, margins=Margins(limits)),
        retention=retention([(before, after)]),
        limits={
            name: limit_result(own, difference_of(before, after, name, own)) for name, own in limits.items()
        },
        predictions=place,
    )


def verdict(folder: Path, *cells: CellResult | FailedCell | PendingCell, **changes: object) -> Verdict:
    return verdict_of(report_of(study(folder, *cells, **changes), None))


def study(folder: Path, *cells: CellResult | FailedCell | PendingCell, **changes: object) -> StudyResult:
    done = [one for one in cells if not isinstance(one, PendingCell)]
    return replace(result(folder, done), cells=tuple(cells), **changes)  # type: ignore[arg-type]


def test_the_most_language_ability_of_those_that_kept_english_and_who_is_as_good(tmp_path: Path) -> None:
    found = verdict(
        tmp_path,
        cell(tmp_path, "plain", 0.2, 0.7),
        cell(tmp_path, "replay", 0.5, 0.6),
        cell(tmp_path, "mixed", 0.5, 0.6 - 3 / ITEMS),
        cell(tmp_path, "l2_anchor", 0.5, 0.3),
    )
    assert found.answer == "kept"
    assert found.sentence == (
        "replay kept 100 % [99, 101] of the English score and gained 0.50 [0.47, 0.53] in the new languages: the most "
        "of the 3 of 4 cells that kept English. mixed (the upper bound) is not distinguishable from it."
    )
    assert "plain (the lower bound) kept 40 % [35, 45] of the English score and gained 0.60" in found.notes[0]


def test_of_whom_all_are_behind_it_says_that_it_is_ahead(tmp_path: Path) -> None:
    cells = [cell(tmp_path, name, 0.5, german) for name, german in (("a", 0.6), ("b", 0.4), ("c", 0.57))]
    found = verdict(tmp_path, *cells)
    assert (
        "the most of the 3 cells, all of which kept English. It is ahead of all others of them."
        in found.sentence
    )
    assert found.alike == ()


def test_paired_differences_find_what_overlapping_intervals_do_not(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "a", 0.5, 0.6), cell(tmp_path, "b", 0.5, 0.57)]
    first, second = (one.scores.language_ability for one in cells)
    assert first is not None
    assert second is not None
    assert first.low < second.high
    assert "It is ahead of the other." in verdict(tmp_path, *cells).sentence
    (tmp_path / cells[1].predictions).unlink()
    found = verdict(tmp_path, *cells)
    assert "b is not distinguishable from it." in found.sentence
    assert found.notes[-1].startswith("b: compared by whether the intervals of the two scores overlap")
    (tmp_path / cells[1].predictions).write_bytes(b"no parquet")
    assert verdict(tmp_path, *cells).notes[-1].startswith("b: compared by whether")


def test_items_that_were_asked_otherwise_are_not_paired(tmp_path: Path) -> None:
    cells = [cell(tmp_path, "a", 0.5, 0.6), cell(tmp_path, "b", 0.5, 0.57)]
    others = [replace(one, asked=f"otherwise {one.asked}") for one in answered({"en": 0.5, "de": 0.57})]
    write_predictions(tmp_path / cells[1].predictions, others)
    assert "their answers" not in verdict(tmp_path, *cells).sentence
    assert verdict(tmp_path, *cells).notes[-1].endswith("since answers are gone or were asked otherwise.")


def test_none_kept_english(tmp_path: Path) -> None:
    found = verdict(tmp_path, cell(tmp_path, "plain", 0.2, 0.7), cell(tmp_path, "replay", 0.4, 0.5))
    assert found.answer == "lost"
    assert found.sentence == (
        "None of the 2 cells kept English. replay lost least: it kept 80 % [76, 84] of the English score and gained "
        "0.40 [0.37, 0.43] in the new languages."
    )


def test_too_few_items_to_know_say_how_many_would_show_it(tmp_path: Path) -> None:
    found = verdict(
        tmp_path,
        cell(tmp_path, "plain", 0.0, 0.7, items=40),
        cell(tmp_path, "replay", 0.5, 0.5, items=40),
        cell(tmp_path, "lora", 0.45, 0.6, items=40),
    )
    assert found.answer == "undecided"
    assert found.best is not None
    assert found.best.strategy == "replay"
    assert found.sentence.startswith(
        "None of the 3 cells is shown to have kept English, and 1 lost more than it may. replay did best"
    )
    assert "it has 100 % [" in found.sentence  # nothing is shown to be kept
    assert "but 40 items cannot rule out a loss of more than 0.01." in found.sentence
    assert "lora is not distinguishable from it in English." in found.sentence
    assert any(
        note.startswith("About ") and note.endswith("if nothing was; 40 were asked.") for note in found.notes
    )


def test_a_limit_of_the_study_decides_and_is_named(tmp_path: Path) -> None:
    plan = {"task_ability": LimitPlan(limit=0.2, needed=900, available=800, assumed_share=0.1)}
    cells = [
        cell(tmp_path, name, english, 0.6, limits={"task_ability": 0.2})
        for name, english in (("a", 0.4), ("b", 0.1))
    ]
    found = verdict(tmp_path, *cells, limits=plan)
    assert "a kept 80 %" in found.sentence
    assert "the only one of the 2 cells that is shown to have kept English." in found.sentence
    of_german = [cell(tmp_path, "a", 0.5, 0.09, limits={"de": 0.01})]
    unsure = verdict(tmp_path, *of_german, limits={"de": replace(plan["task_ability"], limit=0.01)})
    assert unsure.answer == "undecided"
    assert "cannot rule out a loss of more than 0.01 of de." in unsure.sentence


def test_one_cell(tmp_path: Path) -> None:
    found = verdict(tmp_path, cell(tmp_path, "replay", 0.5, 0.6))
    assert found.sentence == (
        "replay kept 100 % [99, 101] of the English score and gained 0.50 [0.47, 0.53] in the new languages: it is the "
        "only cell, and kept English."
    )
    lost = verdict(tmp_path, cell(tmp_path, "replay", 0.1, 0.6))
    assert lost.sentence.startswith("The only cell has not kept English. replay kept 20 % [")


def test_nothing_done_failed_and_pending(tmp_path: Path) -> None:
    pending = PendingCell(data="similar", strategy="plain", seed=0, options={})
    assert verdict(tmp_path, pending).sentence == "There is no verdict yet: the only cell is not done."
    assert (
        verdict(tmp_path, failed_cell()).sentence == "There is no verdict: the only cell failed (no memory)."
    )
    both = verdict(tmp_path, failed_cell(), pending)
    assert both.answer == "nothing"
    assert both.sentence == "There is no verdict yet: 1 cell failed (no memory) and 1 is pending."
    some = verdict(tmp_path, cell(tmp_path, "replay", 0.5, 0.6), failed_cell(), pending)
    assert "1 of 3 cells failed: lora on similar." in some.notes
    assert "1 of 3 cells is pending: the verdict may change." in some.notes


def test_only_the_bounds_are_named_as_bounds(tmp_path: Path) -> None:
    found = verdict(tmp_path, cell(tmp_path, "plain", 0.2, 0.7), cell(tmp_path, "mixed", 0.5, 0.6))
    assert found.sentence.startswith("mixed (the upper bound) kept 100 %")
    assert "Nothing but the bounds plain and mixed is done: no strategy is compared." in found.notes


def test_a_bound_that_is_best_leaves_the_best_strategy_to_be_named(tmp_path: Path) -> None:
    plain, mixed = cell(tmp_path, "plain", 0.2, 0.7), cell(tmp_path, "mixed", 0.5, 0.7)
    kept = verdict(
        tmp_path, plain, mixed, cell(tmp_path, "replay", 0.5, 0.6), cell(tmp_path, "ewc", 0.5, 0.3)
    )
    assert kept.sentence.endswith(
        "It is ahead of all others of them. Of the strategies besides the bounds replay did best: it kept 100 % "
        "[99, 101] of the English score and gained 0.50 [0.47, 0.53] in the new languages."
    )
    lost = verdict(
        tmp_path, plain, mixed, cell(tmp_path, "replay", 0.3, 0.6), cell(tmp_path, "ewc", 0.4, 0.3)
    )
    assert (
        "the only one of the 4 cells that is shown to have kept English. No strategy besides" in lost.sentence
    )
    assert "is shown to have kept English; ewc lost least: it kept 80 % [" in lost.sentence


def test_what_lost_in_the_new_languages_is_not_called_the_most(tmp_path: Path) -> None:
    found = verdict(tmp_path, cell(tmp_path, "a", 0.5, 0.05), cell(tmp_path, "b", 0.5, 0.08))
    assert "b kept 100 % [99, 101] of the English score and lost 0.02 [0.01, 0.03] in the" in found.sentence
    assert "the highest score in them of the 2 cells, all of which kept English" in found.sentence
    same = verdict(tmp_path, cell(tmp_path, "a", 0.5, 0.1))
    assert "shows no gain in the new languages (+0.00 [-0.01, +0.01])" in same.sentence


def test_a_limit_on_a_task_keeps_its_name(tmp_path: Path) -> None:
    limits = {"toy_task/en": 0.02}
    own = cell(tmp_path, "a", 0.5, 0.6, items=60)
    one = LimitResult(limit=0.02, low=-0.1, high=0.1, answer="undecided")
    found = verdict(tmp_path, replace(own, limits=dict.fromkeys(limits, one)))
    assert "cannot rule out a loss of more than 0.02 of toy_task/en" in found.sentence


def test_several_data_sets_are_named(tmp_path: Path) -> None:
    found = verdict(
        tmp_path,
        cell(tmp_path, "replay", 0.5, 0.6, data="first run: near"),
        cell(tmp_path, "plain", 0.1, 0.6, data="second run: far"),
    )
    assert found.sentence.startswith("replay on first run: near kept 100 %")
    assert found.notes[0].startswith("plain on second run: far (the lower bound) kept 20 %")


def test_several_seeds_are_judged_by_their_mean(tmp_path: Path) -> None:
    cells = [
        cell(tmp_path, name, 0.5, german + 0.01 * seed, seed=seed)
        for name, german in (("a", 0.6), ("b", 0.3), ("c", 0.6))
        for seed in (0, 1)
    ]
    before = answered(PHASE_ONE)
    means = tuple(
        seed_differences(
            "similar",
            name,
            [(before, answered({"en": 0.5, "de": german + 0.01 * seed})) for seed in (0, 1)],
            {},
        )
        for name, german in (("a", 0.6), ("b", 0.3), ("c", 0.6))
    )
    found = verdict(tmp_path, *cells, over_seeds=means)
    assert found.sentence == (
        "a kept 100 % [99, 101] of the English score and gained 0.51 [0.47, 0.54] in the new languages: the most of "
        "the 3 strategies, all of which kept English. These are means over 2 seeds. c is not distinguishable from it."
    )


def test_without_tasks_in_the_new_languages_the_held_out_loss_decides(tmp_path: Path) -> None:
    def untasked(name: str, bits: float) -> CellResult:
        own = cell(tmp_path, name, 0.5, 0.6)
        example = done_cell(name).scores.per_language["de"]
        assert example.held_out is not None
        german = replace(example, held_out=replace(example.held_out, value=bits))
        return replace(own, scores=replace(own.scores, language_ability=None, per_language={"de": german}))

    found = verdict(tmp_path, untasked("a", 1.5), untasked("b", 1.2))
    assert found.best is not None
    assert found.best.strategy == "b"
    assert "b has the lowest loss of held-out answers in them, 1.20 bits per character" in found.sentence


def test_a_score_of_zero_in_all_new_languages_is_no_gain(tmp_path: Path) -> None:
    own = cell(tmp_path, "a", 0.5, 0.0)
    none = replace(own.difference.language_ability, value=0.0, low=-0.01, high=0.01, all_scores=0.0)
    found = verdict(tmp_path, replace(own, difference=replace(own.difference, language_ability=none)))
    assert "shows no gain, since all answers in the new languages score 0" in found.sentence


def test_the_best_of_each_column_are_marked_with_all_that_are_as_good(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        cell(tmp_path, "plain", 0.2, 0.7),
        cell(tmp_path, "replay", 0.5, 0.6),
        cell(tmp_path, "mixed", 0.5, 0.69),
        failed_cell(),
    )
    best = best_cells(found, report_of(found, None).comparer)
    assert best == {
        "task ability": {("similar", "replay"), ("similar", "mixed")},
        "language ability": {("similar", "plain")},
    }
    alone = study(tmp_path, cell(tmp_path, "plain", 0.2, 0.7))
    assert best_cells(alone, Comparer(lambda _: None)) == {}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=4), st.booleans())
def test_no_cell_that_failed_its_limit_is_ever_called_the_best(
    tmp_path: Path, scores: list[tuple[int, int]], has_limit: bool
) -> None:
    limits = {"task_ability": 0.1} if has_limit else {}
    cells = [
        cell(tmp_path, f"s{i}", english / 20, german / 20, limits=limits, items=60)
        for i, (english, german) in enumerate(scores)
    ]
    found = verdict(tmp_path, *cells)
    kept = {one.strategy for one in candidates_of(study(tmp_path, *cells)) if one.kept == "held"}
    assert (found.answer == "kept") == bool(kept)
    assert found.best is not None
    if found.answer == "kept":
        assert found.best.strategy in kept
        assert {one.strategy for one in found.alike} <= kept - {found.best.strategy}
        highest = max(one.scores.language_ability.value for one in cells if one.strategy in kept)  # type: ignore[union-attr]
        assert found.best.score == highest
    else:
        assert "the most of" not in found.sentence


def test_the_page_begins_with_it(tmp_path: Path) -> None:
    report = report_of(study(tmp_path, cell(tmp_path, "<b>replay</b>", 0.5, 0.6)), None)
    assert SECTIONS[0] is section
    first = section(report)
    assert first.name == "verdict"
    assert first.blocks[0].lines == (verdict_of(report).sentence,)  # type: ignore[union-attr]
    assert first.blocks[0].kind == "verdict"  # type: ignore[union-attr]
