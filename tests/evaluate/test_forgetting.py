"""The forgetting matrix: a 3 x 3 one on paper, its properties, and its intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from lingraft.errors import EvaluationError
from lingraft.evaluate.forgetting import Taught, ability_matrix, loss_matrix, transfer
from lingraft.evaluate.held_out import AnswerLoss
from lingraft.evaluate.predictions import Ability, Prediction
from lingraft.evaluate.results import AnyMatrix, MeanBits
from lingraft.intervals.macro_mean import paired_difference

# Rows: after phase 1, 2, 3. Columns: what phase 1, 2, 3 taught.
ON_PAPER = [
    [0.80, 0.10, 0.20],
    [0.90, 0.70, 0.30],
    [0.50, 0.60, 0.90],
]
BASE = [0.20, 0.05, 0.10]


def test_a_matrix_of_three_phases_is_summed_up_as_on_paper() -> None:
    found = transfer(ON_PAPER, [0, 1, 2], BASE)
    assert found.average == pytest.approx((0.50 + 0.60 + 0.90) / 3)
    assert found.backward == pytest.approx(((0.50 - 0.80) + (0.60 - 0.70)) / 2)  # -0.2
    assert found.forward == pytest.approx(((0.10 - 0.05) + (0.30 - 0.10)) / 2)  # 0.125
    assert found.forgetting == pytest.approx(
        ((0.90 - 0.50) + (0.70 - 0.60)) / 2
    )  # 0.25: phase 2 had raised it


def test_without_a_base_there_is_no_forward_transfer() -> None:
    assert transfer(ON_PAPER, [0, 1, 2]).forward is None


def test_one_phase_has_nothing_to_forget() -> None:
    found = transfer([[0.5, 0.7]], [0, 0], [0.1, 0.1])
    assert found.average == pytest.approx(0.6)
    assert (found.backward, found.forward, found.forgetting) == (None, None, None)


@pytest.mark.parametrize("seed", range(20))
def test_forgetting_is_at_least_what_backward_transfer_lost(seed: int) -> None:
    matrix = np.random.default_rng(seed).random((4, 4)).tolist()
    found = transfer(matrix, [0, 1, 2, 3])
    assert found.forgetting is not None
    assert found.backward is not None
    assert found.forgetting >= -found.backward - 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_adding_a_constant_to_every_score_changes_the_average_alone(seed: int) -> None:
    matrix = np.random.default_rng(seed).random((3, 3))
    one, other = transfer(matrix.tolist(), [0, 1, 2]), transfer((matrix + 0.5).tolist(), [0, 1, 2])
    assert other.average == pytest.approx(one.average + 0.5)
    assert (other.backward, other.forgetting) == pytest.approx((one.backward, one.forgetting))


TAUGHT = (
    Taught("one", "english", ("en",), frozenset("ab"), 0),
    Taught("two", "german", ("de",), frozenset("cd"), 1),
    Taught("three", "romance", ("es", "fr"), frozenset("ef"), 2),
)
LANGUAGES = ("en", "de", "es", "fr")


def predictions(scores: dict[str, float], n: int = 20) -> list[Prediction]:
    """Answers whose mean in a language is the given score, to within 1 / n."""
    found = []
    for language in LANGUAGES:
        ability: Ability = "task_ability" if language == "en" else "language_ability"
        for i in range(n):
            right = float(i < round(scores[language] * n))
            found.append(Prediction(ability, "lookup", language, str(i), str(i), right, "?", ".", "."))
    return found


def models() -> tuple[list[tuple[str, Sequence[Prediction]]], list[Prediction]]:
    """Predictions after each phase and of the base, whose matrix is the one on paper (romance: es + 0.1, fr - 0.1)."""

    def row(values: Sequence[float]) -> list[Prediction]:
        english, german, romance = values
        scores = {"en": english, "de": german, "es": romance + 0.1, "fr": romance - 0.1}
        return predictions(scores)

    return [(one.phase, row(values)) for one, values in zip(TAUGHT, ON_PAPER, strict=True)], row(BASE)


def matrix_of(found: AnyMatrix) -> list[list[float]]:
    return [[entry.value for entry in row.scores] for row in found.rows]


def test_the_ability_matrix_measures_each_phase_by_the_languages_of_its_set() -> None:
    phases, base = models()
    found = ability_matrix(TAUGHT, phases, base)
    assert found is not None
    assert [row.after for row in found.rows] == ["base", "one", "two", "three"]
    assert np.array(matrix_of(found)) == pytest.approx(np.array([BASE, *ON_PAPER]))
    assert [one.measured_by for one in found.columns] == [("task ability",), ("de",), ("es", "fr")]
    assert [one.n for one in found.columns] == [20, 20, 40]
    for row in found.rows:
        for entry in row.scores:
            assert 0 <= entry.low <= entry.value <= entry.high <= 1
            assert entry.n in (20, 40)
    assert found.backward_transfer is not None
    assert found.backward_transfer.value == pytest.approx(-0.2)
    assert found.forward_transfer is not None
    assert found.forward_transfer.value == pytest.approx(0.125)
    assert found.forgetting == pytest.approx(0.25)
    assert found.average.value == pytest.approx(2.0 / 3)
    assert [one.forgetting for one in found.columns] == [pytest.approx(0.4), pytest.approx(0.1), None]
    assert [one.forward_transfer is None for one in found.columns] == [True, False, False]


def test_backward_transfer_of_one_column_is_the_paired_difference_of_its_items() -> None:
    phases, base = models()
    found = ability_matrix(TAUGHT, phases, base)
    assert found is not None
    before, after = ([p for p in phases[i][1] if p.language == "de"] for i in (1, 2))
    expected = paired_difference(before, after)
    german = found.columns[1].backward_transfer
    assert german is not None
    assert (german.value, german.low, german.high) == (expected.value, expected.low, expected.high)


def test_the_interval_of_backward_transfer_is_paired_and_covers_every_column_at_once() -> None:
    phases, base = models()
    found = ability_matrix(TAUGHT, phases, base)
    assert found is not None
    backward = found.backward_transfer
    assert backward is not None
    assert backward.low < backward.value < backward.high < 0
    assert backward.n == 40  # English and German, the columns learned before the last phase
    same = [(name, phases[0][1]) for name, _ in phases]
    none = ability_matrix(TAUGHT, same, None)
    assert none is not None
    assert none.backward_transfer is not None
    assert none.backward_transfer.value == 0
    assert none.backward_transfer.exact  # nothing varies: a bootstrap would claim certainty
    assert none.backward_transfer.low < 0 < none.backward_transfer.high
    assert none.forward_transfer is None


def test_models_asked_other_items_have_no_matrix() -> None:
    phases, base = models()
    phases[2] = ("three", phases[2][1][1:])
    with pytest.raises(EvaluationError, match="same items"):
        ability_matrix(TAUGHT, phases, base)


def losses(levels: dict[str, float], n: int = 12) -> list[AnswerLoss]:
    """Losses of items a to f, twelve of each, in bits per character as given, of answers of unequal lengths."""
    languages = {"a": "en", "b": "en", "c": "de", "d": "de", "e": "es", "f": "fr"}
    return [
        AnswerLoss(f"{item}{i}", language, f"{item}{i}", levels[language] * (10 + i), 10 + i)
        for item, language in languages.items()
        for i in range(n)
    ]


LOSS_TAUGHT = tuple(
    Taught(
        one.phase,
        one.data,
        one.languages,
        frozenset(f"{item}{i}" for item in one.items for i in range(12)),
        one.row,
    )
    for one in TAUGHT
)


def test_what_a_column_is_measured_by_and_what_is_missing_are_told() -> None:
    phases, base = models()
    without = [(name, [one for one in own if one.language != "fr"]) for name, own in phases]
    found = ability_matrix(TAUGHT, without, [one for one in base if one.language != "fr"])
    assert found is not None
    assert [one.measured_by for one in found.columns] == [("task ability",), ("de",), ("es",)]
    assert [one.not_measured for one in found.columns] == [(), (), ("fr",)]


def test_answers_that_one_model_cannot_be_measured_on_are_left_out_of_every_row_and_counted() -> None:
    level = {"en": 1.0, "de": 3.0, "es": 3.0, "fr": 5.0}
    phases = [(one.phase, losses(level)) for one in TAUGHT]
    base = [one for one in losses(level) if one.item not in ("a0", "c3", "c4")]
    found = loss_matrix(LOSS_TAUGHT, phases, base)
    assert found is not None
    whole = loss_matrix(LOSS_TAUGHT, phases, losses(level))
    assert whole is not None
    lost = [one.left_out for one in found.columns]
    assert sum(lost) > 0
    assert [one.left_out for one in whole.columns] == [0, 0, 0]
    sizes = [one.n for one in whole.columns]
    for row in found.rows:
        assert [entry.n for entry in row.scores] == [n - m for n, m in zip(sizes, lost, strict=True)]


def test_losses_are_turned_so_that_worse_is_below_zero() -> None:
    levels = [
        {"en": 1.0, "de": 3.0, "es": 3.0, "fr": 5.0},
        {"en": 1.5, "de": 1.0, "es": 2.0, "fr": 4.0},
        {"en": 1.2, "de": 1.6, "es": 1.0, "fr": 2.0},
    ]
    phases = [(one.phase, losses(level)) for one, level in zip(TAUGHT, levels, strict=True)]
    base = losses({"en": 2.0, "de": 4.0, "es": 4.0, "fr": 6.0})
    found = loss_matrix(LOSS_TAUGHT, phases, base)
    assert found is not None
    expected = [[2.0, 4.0, 5.0], [1.0, 3.0, 4.0], [1.5, 1.0, 3.0], [1.2, 1.6, 1.5]]
    assert np.array(matrix_of(found)) == pytest.approx(np.array(expected))
    assert found.backward_transfer is not None
    assert found.backward_transfer.value == pytest.approx(((1.0 - 1.2) + (1.0 - 1.6)) / 2)
    assert (found.backward_transfer.high or 0) < 0
    assert found.forward_transfer is not None
    assert found.forward_transfer.value == pytest.approx(((4.0 - 3.0) + (5.0 - 3.0)) / 2)
    assert found.forgetting == pytest.approx(((1.2 - 1.0) + (1.6 - 1.0)) / 2)


def test_a_loss_over_few_groups_has_no_interval() -> None:
    few = [one for one in losses(dict.fromkeys(LANGUAGES, 1.0)) if one.item in ("a0", "c0", "e0")]
    taught = [
        Taught(t.phase, t.data, t.languages, frozenset({f"{i}0" for i in t.items}), t.row) for t in TAUGHT
    ]
    found = loss_matrix(taught, [(t.phase, few) for t in taught], None)
    assert found is not None
    assert found.rows[0].scores[0] == MeanBits(1.0, None, None, 1)


def test_a_phase_whose_data_are_unknown_is_no_column() -> None:
    checkpoint = Taught("instruct", "", ("en",), frozenset(), 0)
    level = losses(dict.fromkeys(LANGUAGES, 1.0))
    found = loss_matrix([checkpoint, *LOSS_TAUGHT[1:]], [(t.phase, level) for t in TAUGHT], None)
    assert found is not None
    assert found.unmeasured == ("instruct",)
    assert [one.phase for one in found.columns] == ["two", "three"]
    assert loss_matrix([checkpoint], [("instruct", level)], None) is None
