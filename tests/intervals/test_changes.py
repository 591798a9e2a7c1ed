"""What a difference says: three answers by hand, and that none of them is ever said of what could not be seen."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingraft.intervals.changes import (
    Answer,
    LimitAnswer,
    Margins,
    answer,
    answer_over_seeds,
    limit_answer,
    limit_answer_over_seeds,
)


@dataclass(frozen=True)
class Seed:
    low: float | None
    high: float | None
    margin: float = 0.01

    @property
    def answer(self) -> Answer:
        if self.low is None or self.high is None:
            return "undecided"
        return answer(self.low, self.high, self.margin)


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.15, 0.25, 0.01, "rose"),
        (-0.25, -0.15, 0.01, "fell"),
        (-0.77, 0.77, 0.01, "undecided"),
        (-0.77, 0.77, None, "undecided"),
        (-0.004, 0.006, 0.01, "unchanged"),
        (-0.01, 0.01, 0.01, "unchanged"),
        (-0.004, 0.011, 0.01, "undecided"),
        (-0.004, 0.006, None, "undecided"),  # no size was said not to matter
        (-0.008, -0.002, 0.01, "fell"),  # small, but no chance
        (0.0, 0.2, 0.01, "undecided"),
        (0.0, 0.0, 0.01, "unchanged"),
    ],
)
def test_a_difference_says_one_of_three_things(
    low: float, high: float, margin: float | None, expected: str
) -> None:
    assert answer(low, high, margin) == expected


def test_scores_that_are_all_equal_are_never_called_unchanged() -> None:
    assert answer(-0.004, 0.004, 0.01, all_scores=0.0) == "undecided"
    assert answer(-0.004, 0.004, 0.01, all_scores=1.0) == "undecided"


@pytest.mark.parametrize(
    ("pooled", "seeds", "expected"),
    [
        # One of two seeds lost everything.
        ("fell", [(-1.0, -0.9), (-0.1, 0.12)], "seeds_disagree"),
        ("undecided", [(-0.3, -0.1), (0.1, 0.3)], "seeds_disagree"),
        ("unchanged", [(-0.3, -0.1), (0.1, 0.3)], "seeds_disagree"),
        ("fell", [(-0.3, -0.2), (-0.1, -0.05)], "fell"),  # apart, but they say the same
        ("fell", [(-0.3, -0.02), (-0.2, 0.05)], "fell"),
        ("undecided", [(-0.77, 0.77), (-0.5, 0.77)], "undecided"),
        ("unchanged", [(-0.02, -0.001), (-0.009, 0.009)], "undecided"),  # one fell
        ("unchanged", [(-0.02, 0.02), (-0.009, 0.009)], "unchanged"),
        (None, [(-0.3, -0.2), (-0.1, -0.05)], "fell"),
        (None, [(-0.3, -0.02), (-0.2, 0.05)], "undecided"),
        (None, [(-0.3, -0.2), (None, None)], "undecided"),
        (None, [(None, None), (None, None)], "undecided"),
    ],
)
def test_seeds_that_contradict_each_other_disagree(
    pooled: Answer | None, seeds: list[tuple[float | None, float | None]], expected: str
) -> None:
    assert answer_over_seeds(pooled, [Seed(*one) for one in seeds]) == expected


ENDS = st.floats(-1, 1, allow_nan=False)
INTERVALS = st.tuples(ENDS, ENDS).map(lambda ends: Seed(min(ends), max(ends)))
ANSWERS = st.sampled_from(("rose", "fell", "unchanged", "undecided"))


@settings(max_examples=200, deadline=None)
@given(pooled=ANSWERS, seeds=st.lists(INTERVALS, min_size=2, max_size=5))
def test_a_mean_never_hides_a_seed_that_changed(pooled: Answer, seeds: list[Seed]) -> None:
    said, own = answer_over_seeds(pooled, seeds), {one.answer for one in seeds}
    if said == "unchanged":
        assert not own & {"rose", "fell"}
    if said == "rose":
        assert "fell" not in own
    if said == "fell":
        assert "rose" not in own
    if {"rose", "fell"} <= own:
        assert said == "seeds_disagree"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.009, 0.2, "held"),
        (-0.01, 0.2, "undecided"),
        (-0.3, -0.011, "broken"),
        (-0.009, -0.002, "held"),  # less was lost than may be
        (-0.77, 0.77, "undecided"),
    ],
)
def test_a_limit_is_held_where_the_whole_interval_lies_above_it(
    low: float, high: float, expected: str
) -> None:
    assert limit_answer(low, high, 0.01) == expected


def test_a_limit_is_not_held_where_there_was_nothing_to_lose() -> None:
    assert limit_answer(-0.004, 0.004, 0.01, all_scores=0.0) == "undecided"
    assert limit_answer(-0.004, 0.004, 0.01, all_scores=1.0) == "held"


@pytest.mark.parametrize(
    ("pooled", "seeds", "expected"),
    [
        ("held", ("held", "held"), "held"),
        ("held", ("held", "broken"), "seeds_disagree"),
        ("held", ("undecided", "broken"), "seeds_disagree"),
        ("broken", ("undecided", "broken"), "broken"),
        ("broken", ("held", "broken"), "seeds_disagree"),
        ("undecided", ("held", "broken"), "seeds_disagree"),
        ("undecided", ("held", "undecided"), "undecided"),
    ],
)
def test_no_limit_is_held_over_seeds_of_which_one_broke_it(
    pooled: LimitAnswer, seeds: tuple[LimitAnswer, ...], expected: str
) -> None:
    assert limit_answer_over_seeds(pooled, seeds) == expected


def test_the_margin_is_the_first_limit_that_is_stated() -> None:
    margins = Margins({"de": 0.03, "language_ability": 0.02})
    assert margins.of("de", "language_ability") == 0.03
    assert margins.of("es", "language_ability") == 0.02
    assert margins.of("task_ability") == 0.01
