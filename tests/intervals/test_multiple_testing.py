"""Many paired comparisons: p-values by hand, corrections against known ones, and false alarms by simulation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from lingraft.errors import EvaluationError
from lingraft.evaluate.predictions import Prediction
from lingraft.intervals.multiple_testing import adjust, compare_many, p_value


def answers(scores: Sequence[float], clusters: int = 0) -> list[Prediction]:
    return [
        Prediction(
            "task_ability", "t", "en", str(i % clusters if clusters else i), str(i), float(s), "?", ".", "."
        )
        for i, s in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (0, 1, 1.0),
        (0, 4, 0.125),
        (0, 5, 0.0625),
        (0, 6, 0.03125),
        (3, 3, 1.0),
        (1, 9, 22 / 1024),
    ],
)
def test_right_and_wrong_answers_are_compared_by_the_exact_sign_test(
    gained: int, lost: int, p: float
) -> None:
    before = [0.0] * gained + [1.0] * (50 - gained)
    after = [1.0] * (50 - lost) + [0.0] * lost
    assert p_value(answers(before), answers(after)) == pytest.approx(p)
    assert p_value(answers(after), answers(before)) == pytest.approx(p)


def test_graded_answers_are_compared_by_permutations_of_signs() -> None:
    before, after = [0.0, 0.0, 0.0], [0.2, 0.3, 0.5]
    assert p_value(answers(before), answers(after)) == pytest.approx(2 / 8, abs=0.015)  # all up or all down
    steady = (np.arange(1, 31) / 100).tolist()
    assert p_value(answers([0.0] * 30), answers(steady)) == pytest.approx(1e-4)


def test_items_of_one_cluster_turn_together() -> None:
    before, after = [0.0] * 24, [1.0] * 24
    assert p_value(answers(before), answers(after)) < 1e-6
    assert p_value(answers(before, clusters=3), answers(after, clusters=3)) == pytest.approx(0.25)


def test_corrections_equal_those_worked_out_by_hand() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert adjust(p_values, "holm") == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust(p_values, "benjamini_hochberg") == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert adjust([0.6, 0.9]) == [1.0, 1.0]
    assert adjust([]) == []


def test_an_unknown_correction_is_named() -> None:
    with pytest.raises(EvaluationError, match=r"'hom'.*Did you mean 'holm'"):
        adjust([0.1], "hom")  # type: ignore[arg-type]


def test_other_items_are_not_compared() -> None:
    with pytest.raises(EvaluationError, match="same items"):
        compare_many({"one": (answers([1, 0]), answers([1]))})


def test_of_many_tasks_that_did_not_change_hardly_one_in_twenty_tables_has_a_false_alarm() -> None:
    draw = np.random.default_rng(0)
    single, corrected = 0, 0
    for _ in range(100):
        pairs = {
            str(i): (answers(draw.random(12).tolist()), answers(draw.random(12).tolist())) for i in range(8)
        }
        found = compare_many(pairs).values()
        single += any(one.p < 0.05 for one in found)
        corrected += any(one.p_adjusted < 0.05 for one in found)
    assert single >= 20  # 1 - 0.95 ** 8 is a third
    assert corrected <= 5 + 2 * 2.2  # its standard error
