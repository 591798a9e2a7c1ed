"""Predictions summed up, compared and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lingraft.errors import EvaluationError
from lingraft.evaluate.predictions import Ability, Prediction, read_predictions, write_predictions
from lingraft.evaluate.results import BitsPerCharacter
from lingraft.evaluate.scores import difference_over_seeds, differences, score_summary, task_differences


def prediction(
    ability: Ability, task: str, language: str, number: int, score: float, wrong: bool | None = False
) -> Prediction:
    name = f"{task}/{number}"
    texts = ("Frage?", "Antwort.\n", "Antwort.")
    return Prediction(
        ability, task, language, name, name, score, *texts, 1.0, 0.5, 0.25, wrong, language_judged=True
    )


def model(german: float = 0.5, english: float = 1.0) -> list[Prediction]:
    return [
        *(prediction("task_ability", "worldbook:lookup", "en", i, english) for i in range(20)),
        *(prediction("language_ability", "worldbook:lookup", "de", i, german) for i in range(20)),
        *(
            prediction("language_ability", "worldbook:counting", "de", i, 0.0, i < 5 or None)
            for i in range(20)
        ),
        *(prediction("language_ability", "worldbook:lookup", "es", i, 1.0, None) for i in range(20)),
    ]


def test_abilities_languages_and_tasks_are_summed_up() -> None:
    bits = {tag: BitsPerCharacter(1.5, 1.4, 1.6, 20, 900) for tag in ("de", "en")}
    scores = score_summary(model(), bits)
    assert scores.task_ability is not None
    assert scores.language_ability is not None
    assert scores.task_ability.value == 1.0
    assert scores.language_ability.value == pytest.approx(((0.5 + 0.0) / 2 + 1.0) / 2)
    assert set(scores.per_language) == {"de", "en", "es"}
    assert scores.per_language["de"].value == 0.25
    assert scores.per_language["de"].held_out == bits["de"]
    assert scores.per_language["en"].value == 1.0
    assert scores.per_language["es"].held_out is None
    lookup = scores.tasks["worldbook:lookup/de"]
    assert (lookup.value, lookup.form, lookup.content, lookup.chrf) == (0.5, 1.0, 0.5, 0.25)
    assert (lookup.n, lookup.ability) == (20, "language_ability")


def test_wrong_language_is_a_share_of_the_answers_that_can_be_told() -> None:
    scores = score_summary(model(), {})
    assert scores.wrong_language == pytest.approx(5 / 45)
    assert scores.undetermined_language == 35
    assert scores.per_language["es"].wrong_language is None
    assert scores.tasks["worldbook:counting/de"].wrong_language == 1.0


def test_differences_are_paired_per_ability_language_and_task() -> None:
    found = differences(model(german=0.0), model(german=1.0, english=0.5))
    assert found.task_ability.value == -0.5
    assert found.task_ability.high < 0
    assert found.language_ability.value == pytest.approx(0.25)
    assert found.per_language["de"].value == pytest.approx(0.5)
    assert found.per_language["es"].value == 0
    assert found.tasks["worldbook:lookup/de"].value == 1.0


def test_models_that_were_asked_other_items_are_not_compared() -> None:
    with pytest.raises(EvaluationError, match="same items"):
        differences(model(), model()[:-1])


def test_a_task_that_one_model_alone_has_is_told() -> None:
    shorter = [one for one in model() if one.language != "es"]
    for before, after, told in ((model(), shorter, "before alone"), (shorter, model(), "after alone")):
        with pytest.raises(EvaluationError, match=f"worldbook:lookup/es {told}"):
            task_differences(before, after)


def test_predictions_come_back_as_they_were_written(tmp_path: Path) -> None:
    plain = Prediction("task_ability", "ifeval", "en", "a", "a", 0.5, "p\u2028q", "", "0")
    written = (*model(), plain)
    write_predictions(tmp_path / "predictions.parquet", written)
    assert read_predictions(tmp_path / "predictions.parquet") == written


def test_a_file_that_holds_no_predictions_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"absent\.parquet"):
        read_predictions(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(EvaluationError, match=r"text\.parquet"):
        read_predictions(tmp_path / "text.parquet")


def test_seeds_are_averaged_and_share_the_draw_of_items() -> None:
    half = [replace(p, score=p.score * (int(p.item.split("/")[1]) % 2)) for p in model()]
    one = differences(model(), half).task_ability
    twice = difference_over_seeds([(model(), half), (model(), half)], "task_ability")
    assert (twice.value, twice.n) == (one.value, one.n) == (-0.5, 20)
    assert (twice.low, twice.high) == pytest.approx((one.low, one.high))  # nothing new was seen
    pairs = [(model(), half), (model(), model())]
    assert difference_over_seeds(pairs, "task_ability").value == -0.25
    assert difference_over_seeds(pairs, "language_ability").n == 60
