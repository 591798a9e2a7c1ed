"""Answers of two models stand side by side only where both were asked the same in the same way."""

from __future__ import annotations

import pytest

from lingraft.errors import ConfigError
from lingraft.evaluate.predictions import Prediction
from lingraft.report.answers import Answers, worst_answers


def answers(label: str, *asked: str) -> Answers:
    return Answers(
        label,
        tuple(
            Prediction("task_ability", "t", "en", f"t/{i}", f"t/{i}", 1.0, "?", "!", "", asked=one)
            for i, one in enumerate(asked)
        ),
    )


def test_answers_to_other_prompts_are_not_set_against_each_other() -> None:
    after, before = answers("after", "a", "b", "c"), answers("before", "a", "x", "c")
    found = worst_answers(after, before, language=None, task=None, count=10)
    assert [one.after.item for one in found] == ["t/0", "t/2"]
    with pytest.raises(ConfigError, match="after and before: none of these items was asked alike"):
        worst_answers(after, answers("before", "x", "y", "z"), language=None, task=None, count=10)
    assert len(worst_answers(after, None, language=None, task=None, count=10)) == 3
