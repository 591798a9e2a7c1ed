"""Several columns at once: reductions to one column, weights, and the coverage of the intervals by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from lingraft.errors import EvaluationError
from lingraft.evaluate.held_out import AnswerLoss, bits_difference, mean_bits
from lingraft.evaluate.predictions import Prediction
from lingraft.intervals.clusters import ClusteredValues, Value
from lingraft.intervals.macro_mean import (
    difference_over_columns,
    macro_mean,
    mean_over_columns,
    paired_difference,
)


def answers(scores: list[float], language: str) -> list[Prediction]:
    return [
        Prediction("language_ability", "lookup", language, str(i), str(i), score, "?", ".", ".")
        for i, score in enumerate(scores)
    ]


@pytest.fixture
def german() -> tuple[list[Prediction], list[Prediction]]:
    draw = np.random.default_rng(0)
    return answers(draw.random(30).tolist(), "de"), answers(draw.random(30).tolist(), "de")


def test_one_column_is_the_macro_mean_and_the_paired_difference(
    german: tuple[list[Prediction], list[Prediction]],
) -> None:
    before, after = german
    assert mean_over_columns([before]) == macro_mean(before)
    assert difference_over_columns([(before, after)]) == paired_difference(before, after)


def test_the_same_column_twice_is_no_more_evidence(
    german: tuple[list[Prediction], list[Prediction]],
) -> None:
    before, after = german
    twice, once = difference_over_columns([(before, after)] * 2), paired_difference(before, after)
    assert (twice.value, twice.low, twice.high) == pytest.approx((once.value, once.low, once.high))
    assert twice.n == once.n == 30


def test_parallel_columns_that_change_against_each_other_cancel_in_every_draw() -> None:
    scores = (np.arange(40) % 2).astype(float).tolist()
    opposite = [1 - score for score in scores]
    up, down = (
        (answers(scores, "de"), answers(opposite, "de")),
        (answers(opposite, "es"), answers(scores, "es")),
    )
    values = ClusteredValues(
        [
            [
                Value("lookup", one.language, one.cluster, later.score - one.score)
                for one, later in zip(*pair, strict=True)
            ]
            for pair in (up, down)
        ]
    )
    assert np.allclose(values.replicates(0), 0.0)


def test_columns_count_alike_whatever_their_sizes() -> None:
    found = mean_over_columns([answers([1.0] * 4, "de"), answers([0.0] * 40, "es")])
    assert found.value == 0.5
    assert found.n == 44


def test_an_empty_column_has_no_mean() -> None:
    with pytest.raises(EvaluationError, match="no items"):
        mean_over_columns([answers([1.0], "de"), []])


def test_bits_weigh_by_characters_inside_a_language_and_alike_between_languages() -> None:
    losses = [
        AnswerLoss("a", "de", "a", 30.0, 10),
        AnswerLoss("b", "de", "b", 30.0, 50),
        AnswerLoss("c", "es", "c", 5.0, 5),
    ]
    assert mean_bits([losses]).value == pytest.approx((60 / 60 + 5 / 5) / 2)
    assert mean_bits([losses[:2]]).value == pytest.approx(1.0)


def test_losses_of_other_examples_are_not_compared() -> None:
    one, other = AnswerLoss("a", "de", "a", 1.0, 1), AnswerLoss("b", "de", "b", 1.0, 1)
    with pytest.raises(EvaluationError, match="same held-out examples"):
        bits_difference([([one], [other])])


def test_the_interval_over_two_columns_holds_the_truth_about_as_often_as_it_says() -> None:
    draw, held = np.random.default_rng(7), 0
    for _ in range(120):
        pairs = []
        for language, drop in (("de", 0.3), ("es", 0.1)):
            before = (draw.random(60) < 0.7).astype(float)
            after = np.where(draw.random(60) < drop, 0.0, before)  # mean change: -0.7 * drop
            pairs.append((answers(before.tolist(), language), answers(after.tolist(), language)))
        found = difference_over_columns(pairs)
        held += found.low <= -0.7 * (0.3 + 0.1) / 2 <= found.high
    assert held >= 0.88 * 120


def test_the_interval_of_a_difference_in_bits_holds_the_truth_about_as_often_as_it_says() -> None:
    draw, held = np.random.default_rng(8), 0
    for _ in range(120):
        characters = draw.integers(10, 60, 40)
        before = characters * draw.normal(2.0, 0.4, 40)
        after = before + characters * draw.normal(0.1, 0.2, 40)
        rows = [
            [
                AnswerLoss(str(i), "de", str(i), float(bits), int(n))
                for i, (bits, n) in enumerate(zip(model, characters, strict=True))
            ]
            for model in (before, after)
        ]
        found = bits_difference([(rows[0], rows[1])])
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.1 <= found.high
    assert held >= 0.88 * 120


def test_a_column_of_few_groups_has_no_interval_in_bits_also_beside_a_large_one() -> None:
    small = [AnswerLoss(f"a{i}", "en", f"a{i}", 10.0 + i, 10) for i in range(4)]
    large = [AnswerLoss(f"b{i}", "de", f"b{i}", 30.0 + i % 3, 10) for i in range(100)]
    assert mean_bits([large]).low is not None
    assert mean_bits([small, large]).low is None


def test_a_draw_without_a_column_counts_in_no_interval() -> None:
    small = [Value("t", "en", f"a{i}", 1.0) for i in range(2)]
    large = [Value("t", "de", f"b{i}", 3.0) for i in range(100)]
    replicates = ClusteredValues([small, large]).replicates(0)
    assert 1000 < len(replicates) < 2000  # e ** -2 of the draws hold none of the two
    assert np.allclose(replicates, 2.0)
