"""The walk on scores that are made up, so that what is true of each model is known."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from lingraft.adapt.promise import EXIT_CODES, answer_of, is_certified, loss_of
from lingraft.adapt.walk import Answers, Candidate, Compared, Promise, alphas, compared, layer_groups, walk
from lingraft.errors import EvaluationError
from lingraft.evaluate.predictions import Ability, Prediction


def item(language: str, number: int, score: float, ability: Ability = "language_ability") -> Prediction:
    ability = "task_ability" if language == "en" else ability
    return Prediction(ability, "task", language, str(number), str(number), score, "", "", "")


def scores(language: str, right: int, n: int = 400, start: int = 0) -> list[Prediction]:
    """Return items of which `right` are right, beginning at the item `start`."""
    return [item(language, number, float((number - start) % n < right)) for number in range(n)]


def looks(
    english: Callable[[Candidate], int], learnt: Callable[[Candidate], int], n: int = 400
) -> Callable[[Candidate], tuple[Compared, str, str]]:
    """Return what asks candidates: the start has 200 right in English, and none in Thai."""
    asked: list[Candidate] = []

    def look(one: Candidate) -> tuple[Compared, str, str]:
        assert one not in asked, "a model is asked twice"
        asked.append(one)
        pair = Compared(
            {"en": (scores("en", n // 2, n), scores("en", english(one), n))},
            (scores("th", 0, n), scores("th", learnt(one), n)),
            ([], []),
        )
        return pair, f"model {one}", f"evaluation {one}"

    return look


PROMISE = Promise(0.1, learnt=("th",))


def test_the_walk_stops_at_the_first_model_that_is_not_certified() -> None:
    look = looks(lambda one: 200 if one.alpha < 0.6 else 150, lambda one: int(200 * one.alpha))
    found = walk(PROMISE, look, steps=alphas(5), groups=())
    assert [one.alpha for one in found.points] == [0.2, 0.4, 0.6]
    assert [one.certified for one in found.points] == [True, True, False]
    assert found.chosen is not None
    assert found.chosen.alpha == 0.4
    assert found.answer == "held"


def test_the_trained_model_itself_is_kept_where_it_loses_nothing() -> None:
    found = walk(
        PROMISE, looks(lambda _: 200, lambda one: int(200 * one.alpha)), steps=alphas(5), groups=("0", "1")
    )
    assert found.chosen is not None
    assert (found.chosen.alpha, found.chosen.kept_back) == (1.0, None)
    assert len(found.points) == 5  # groups could only teach less


def test_a_group_that_carries_the_loss_is_kept_back() -> None:
    def english(one: Candidate) -> int:
        return 200 if one.kept_back == "0-9" or one.alpha < 0.4 else 120

    found = walk(
        PROMISE, looks(english, lambda one: int(200 * one.alpha)), steps=alphas(5), groups=("0-9", "10-19")
    )
    assert found.chosen is not None
    assert (found.chosen.alpha, found.chosen.kept_back) == (1.0, "0-9")
    assert found.chosen.certified
    assert not any(one.certified for one in found.points if one.kept_back == "10-19")


def test_the_end_of_a_chain_counts_only_where_all_before_it_do() -> None:
    def english(one: Candidate) -> int:  # the end alone happens to look right
        return 200 if one.alpha == 1.0 and one.kept_back else 100

    found = walk(PROMISE, looks(english, lambda _: 200), steps=alphas(5), groups=("0-9",))
    assert found.chosen is None
    assert found.answer == "broken"
    assert not any(one.certified for one in found.points)


def test_a_model_that_gained_nothing_is_not_found() -> None:
    found = walk(PROMISE, looks(lambda _: 200, lambda _: 0), steps=alphas(2), groups=())
    assert found.chosen is None
    assert found.answer in ("undecided", "broken")
    assert "gain" in found.sentence


def test_few_items_cannot_tell_and_say_how_many_could() -> None:
    found = walk(PROMISE, looks(lambda _: 9, lambda _: 20, n=20), steps=alphas(2), groups=())
    assert found.chosen is None
    assert found.answer == "undecided"
    assert "needs about" in found.sentence


def test_more_was_lost_than_allowed() -> None:
    found = walk(PROMISE, looks(lambda _: 100, lambda _: 100), steps=alphas(2), groups=())
    assert (found.answer, found.chosen, len(found.points)) == ("broken", None, 1)
    assert EXIT_CODES[found.answer] == 1
    assert found.kept == found.points[0]
    assert "strategy=NAME" in found.sentence
    look = looks(lambda _: 100, lambda _: 100)
    rescued = walk(replace(PROMISE, is_rescue=True), look, steps=alphas(2), groups=())
    assert "strategy" not in rescued.sentence  # nothing is trained
    assert "repair the model first (--train)" in rescued.sentence


def test_a_walk_that_may_not_go_on_keeps_what_it_has() -> None:
    asked = iter([True, False])
    look = looks(lambda _: 200, lambda one: int(200 * one.alpha))
    found = walk(PROMISE, look, steps=alphas(5), groups=("0",), may_go_on=lambda: next(asked, False))
    assert found.chosen is not None
    assert found.chosen.alpha == 0.4
    assert "time" in found.sentence


def test_a_limit_of_0_is_certified_only_where_english_rose() -> None:
    same, better = scores("en", 200), scores("en", 260)
    assert loss_of("en", same, same, 0.0).answer == "undecided"
    assert loss_of("en", same, same, 0.0).items_needed is None
    assert loss_of("en", same, better, 0.0).answer == "held"


def test_of_several_abilities_all_must_be_held() -> None:
    start, good, bad = scores("en", 200), scores("en", 200), scores("en", 100)
    held, broken = loss_of("en", start, good, 0.1), loss_of("es", start, bad, 0.1)
    assert answer_of([held]) == "held"
    assert answer_of([held, broken]) == "broken"


def test_an_ability_that_the_start_lacks_cannot_be_lost_or_kept() -> None:
    found = loss_of("en", scores("en", 0), scores("en", 0), 0.1)
    assert (found.answer, found.loss, found.certifiable_loss) == ("undecided", None, None)
    assert found.reason == "the score before is 0"


@pytest.mark.parametrize("error", [0.025, 0.008])
def test_a_model_at_the_limit_is_certified_as_seldom_as_was_said(error: float) -> None:
    generator = random.Random(0)
    hits = 0
    for _ in range(200):
        before = [generator.random() < 0.5 for _ in range(300)]
        after = [one and generator.random() < 0.9 for one in before]  # exactly a loss of 0.1
        pair = [[item("en", i, float(one)) for i, one in enumerate(own)] for own in (before, after)]
        hits += is_certified(pair[0], pair[1], 0.1, error)
    assert hits <= 200 * error + 3 * (200 * error) ** 0.5  # three standard errors


def test_a_promised_language_without_items_is_refused() -> None:
    start = Answers(tuple(scores("en", 10, 20)), {}, ())
    with pytest.raises(EvaluationError, match="es: what was lost of it cannot be known"):
        compared(Promise(0.1, earlier=("es",)), start, start)


def test_layers_are_divided_evenly() -> None:
    assert layer_groups(30, 3) == ("0-9", "10-19", "20-29")
    assert layer_groups(2, 3) == ("0", "1")
    assert layer_groups(7, 0) == ()
