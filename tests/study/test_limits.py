"""Limits of what may be lost: what is said before training, and what is found after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lingraft.config.checks import check_study
from lingraft.config.schema import Evaluation, Study
from lingraft.errors import ConfigError
from lingraft.evaluate.predictions import Ability, Prediction
from lingraft.evaluate.scores import difference_of
from lingraft.intervals.macro_mean import paired_difference
from lingraft.stage import Json
from lingraft.study.limits import LimitPlan, limit_result, limit_sentence, plan_limits
from lingraft.study.stages.evaluate import AskedItem, Questions
from lingraft.study.summary import seed_differences


def asked(items: tuple[AskedItem, ...], keys: tuple[str, ...] = ()) -> Questions:
    found: dict[str, Json] = {f"{one.ability}|{one.task}|{one.language}|harness": {} for one in items}
    return Questions(
        evaluation=Evaluation(),
        languages=("de",),
        held_out=(),
        base_folder=Path(),
        skip_missing=False,
        manifest={"tasks": found | {key: {} for key in keys}},
        not_run={},
        items=items,
    )


def english(n: int) -> tuple[AskedItem, ...]:
    return tuple(AskedItem("task_ability", "lookup", "en", str(i)) for i in range(n))


def parallel(n: int) -> tuple[AskedItem, ...]:
    return tuple(
        AskedItem("language_ability", "lookup", tag, str(i)) for tag in ("de", "es", "fr") for i in range(n)
    )


def predictions(
    scores: list[float], ability: Ability = "task_ability", language: str = "en"
) -> list[Prediction]:
    return [
        Prediction(ability, "lookup", language, str(i), str(i), score, "p", "r", "a")
        for i, score in enumerate(scores)
    ]


def test_a_plan_counts_the_independent_items_and_those_that_it_would_take() -> None:
    questions = asked((*english(120), *parallel(40)))
    found = plan_limits(
        {"task_ability": 0.01, "language_ability": 0.1, "de": 0.1, "lookup/en": 0.1}, questions
    )
    assert found["task_ability"] == LimitPlan(limit=0.01, needed=7849, available=120, assumed_share=0.1)
    assert found["language_ability"].available == 40  # one content in three languages is one
    assert found["de"].available == 40
    assert found["lookup/en"].available == 120
    assert found["lookup/en"].needed == 79
    assert plan_limits({"de": 0.3}, questions)["de"].needed == 13  # if none changes; the formula says 9


def test_what_an_earlier_run_resolved_has_no_count_of_items() -> None:
    found = plan_limits({"task_ability": 0.01}, asked((), ("task_ability|lookup|en|harness",)))
    assert found["task_ability"].available is None
    assert "are asked" not in limit_sentence("task_ability", found["task_ability"])


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        (
            120,
            "at least 437 if none changes at all; 120 are asked, so it cannot be shown to hold. Ask more items",
        ),
        (
            1000,
            "1,000 are asked, so it will probably stay undecided. Ask more items, or state a limit of 0.028",
        ),
        (8000, "about 7,849 independent ones show in 4 of 5 cases that no more was lost; 8,000 are asked."),
    ],
)
def test_a_limit_that_the_items_cannot_decide_is_said_to_be_one(available: int, expected: str) -> None:
    plan = LimitPlan(limit=0.01, needed=7849, available=available, assumed_share=0.1)
    assert expected in limit_sentence("task_ability", plan)


def test_the_fewest_items_that_hold_a_limit_without_a_change_are_the_fewest() -> None:
    for n, expected in ((436, "undecided"), (437, "held")):
        scores = predictions([float(i % 2) for i in range(n)])
        found = paired_difference(scores, scores)
        assert limit_result(0.01, found).answer == expected


def test_a_limit_of_nothing_that_is_asked_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"limits: 'lookup/eng' is nothing .* Did you mean 'lookup/en'\?"):
        plan_limits({"lookup/eng": 0.1}, asked(english(3)))
    with pytest.raises(ConfigError, match="limits: 'fr' is nothing that is evaluated"):
        plan_limits({"fr": 0.1}, asked(english(3)))


def study(limits: dict[Any, Any]) -> Study:
    phases = [
        {"name": "one", "data": {"e": {"source": "e"}}},
        {"name": "two", "data": {"d": {"source": "d"}}},
    ]
    return Study.model_validate({"name": "x", "model": "m", "phases": phases, "limits": limits})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("task_abilty", r"Did you mean 'task_ability'\?"),
        ("German", "is no ability, language"),
        ("", "is no ability, language"),
        ("en", "write task_ability"),
        ("en-GB", "write task_ability"),
        (False, "quotation marks"),
        (1, "valid string"),
    ],
)
def test_a_name_that_no_study_could_know_is_refused_at_once(name: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        raise ValueError("\n".join(one.text for one in check_study(study({name: 0.01}))) or "accepted")


@pytest.mark.parametrize(
    "value", [0, -0.01, 1, 1.5, float("nan"), float("inf"), True, False, "1 %", None, [0.1]]
)
def test_a_limit_is_a_share_of_the_score(value: Any) -> None:
    with pytest.raises(ValueError, match="limits"):
        study({"task_ability": value})


@pytest.mark.parametrize("name", ["task_ability", "language_ability", "further_languages", "de", "lookup/en"])
def test_abilities_languages_and_tasks_may_have_a_limit(name: str) -> None:
    assert check_study(study({name: 0.01})) == []


def test_a_language_is_measured_without_the_english_tasks() -> None:
    items = [*predictions([1.0] * 4), *predictions([1.0] * 6, "language_ability", "de")]
    assert difference_of(items, items, "de", 0.1).n == 6  # type: ignore[union-attr]
    assert difference_of(items, items, "lookup/en", 0.1).n == 4  # type: ignore[union-attr]
    assert difference_of(items, items, "es", 0.1) is None


def test_over_seeds_a_limit_is_not_held_where_one_seed_lost_everything() -> None:
    whole = [*predictions([1.0] * 100), *predictions([0.0, 1.0] * 50, "language_ability", "de")]
    lost = [*predictions([0.0] * 100), *predictions([0.0, 1.0] * 50, "language_ability", "de")]
    limits = {"task_ability": 0.3, "de": 0.3}
    found = seed_differences("d", "plain", [(whole, whole), (whole, lost)], limits)
    assert (found.task_ability.value, found.task_ability.answer) == (-0.5, "seeds_disagree")
    assert found.language_ability.answer == "undecided"
    assert found.retention.value == pytest.approx(0.5)
    assert found.limits["task_ability"].answer == "seeds_disagree"
    assert found.limits["de"].answer == "held"
    kept = seed_differences("d", "plain", [(whole, whole), (whole, whole)], limits)
    assert kept.limits["task_ability"].answer == "held"


def test_a_limit_of_what_was_not_compared_stays_undecided() -> None:
    assert limit_result(0.01, None).answer == "undecided"
