"""What is refused of the study behind an adaptation is named by the adaptation's own fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from lingraft.adapt.as_study import check_adaptation, words_of_adapt
from lingraft.config.adaptation import Adaptation
from lingraft.errors import ConfigError


def test_all_problems_come_together_each_once_by_the_adaptations_fields(tmp_path: Path) -> None:
    asked = Adaptation.model_validate(
        {
            "model": "embedded:smollm2-135m",
            "data": ["no rows.jsonl", "worldbook:lookup/de"],
            "english_data": "nope.jsonl",
            "suite": "quik",
            "strategy": "loraa",
        }
    )
    with pytest.raises(ConfigError) as refused:
        check_adaptation(asked, tmp_path)
    lines = str(refused.value).split("\n")
    assert [line.partition(":")[0] for line in lines] == ["strategy", "english_data", "data", "suite"]


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("evaluate.language_ability: no task covers 'es'", "tasks: no task covers 'es'"),
        (
            "mine: phase 'adapted', data 'th' (th.jsonl): the rows do not say",
            "data (th.jsonl): the rows do not say",
        ),
        ("phases[1] (adapted).data.a.b.source: x.jsonl: odd", "data: x.jsonl: odd"),
        ("rows.jsonl: holds nothing", "rows.jsonl: holds nothing"),
    ],
)
def test_places_of_the_study_are_called_as_the_user_does(said: str, named: str) -> None:
    assert words_of_adapt(said) == named
