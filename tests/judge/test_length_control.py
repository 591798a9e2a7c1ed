"""The length-controlled win rate, by the package alpaca-eval where it is installed, on made judgements."""

from __future__ import annotations

import csv
import os
import random
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from lingraft.errors import DataError, EvaluationError
from lingraft.judge.length_control import (
    COLUMNS,
    check_package,
    check_reference,
    gamed_data,
    length_controlled,
)
from lingraft.judge.win_rate import Output, Preference

needs_package = pytest.mark.skipif(
    find_spec("alpaca_eval") is None, reason="alpaca-eval (extra `judge`) is absent"
)
INSTRUCTIONS = 805


def preference(row: int, score: float, characters: int, reference_characters: int = 1000) -> Preference:
    item = f"row {row}"
    return Preference(
        "alpaca_eval", "en", item, item, row, score, score, score, characters, reference_characters
    )


@pytest.fixture
def made_data(tmp_path: Path) -> Path:
    """A data file in the form of AlpacaEval's: two sets of judgements that length alone decides, as gamed ones are."""
    generator = random.Random(0)
    difficulty = [generator.gauss(0, 1) for _ in range(INSTRUCTIONS)]
    path = tmp_path / "df_gamed.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for model, sign in (("verbose", -1), ("concise", 1)):
            for row in range(INSTRUCTIONS):
                shift = sign * abs(generator.gauss(1, 0.5))
                liked = 1 / (1 + np.exp(2 * shift))
                rows.writerow([model, liked, row, shift, difficulty[row], False])
    return path


def judged_by_length(strength: float, quality: float, n: int = 400) -> list[Preference]:
    """Return preferences of a judge that likes length so much, for answers twice as long on average."""
    generator = random.Random(1)
    lengths = [round(generator.gauss(2000, 500)) for _ in range(n)]
    spread = float(np.std([1000 - length for length in lengths], ddof=1))
    scores = [1 / (1 + np.exp(strength * np.tanh((1000 - length) / spread) - quality)) for length in lengths]
    return [
        preference(row, score, length)
        for row, (score, length) in enumerate(zip(scores, lengths, strict=True))
    ]


@needs_package
def test_what_length_alone_wins_is_taken_away(made_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lingraft.judge.length_control.RESAMPLES", 10)
    preferences = judged_by_length(strength=2.0, quality=0.0)
    plain = sum(one.score for one in preferences) / len(preferences)
    found = length_controlled(preferences, made_data)
    assert plain > 0.8
    assert found.value < plain - 0.15
    assert found.low <= found.value <= found.high
    assert (found.n, len(found.data)) == (400, 64)
    assert found.is_extreme


@needs_package
def test_it_is_the_packages_own_number(made_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lingraft.judge.length_control.RESAMPLES", 2)
    from lingraft.judge.length_control import _package

    preferences = judged_by_length(strength=1.0, quality=-1.0)
    with _package(made_data):
        import pandas
        from alpaca_eval.metrics.glm_winrate import get_length_controlled_winrate

        table = [
            {
                "instruction": one.item,
                "output_1": "a" * one.reference_characters,
                "output_2": "b" * one.characters,
                "preference": one.score + 1,
                "generator_1": "text_davinci_003",
                "generator_2": "mine",
                "annotator": "judge",
            }
            for one in preferences
        ]
        own = get_length_controlled_winrate(pandas.DataFrame(table), save_weights_dir=None)
    found = length_controlled(preferences, made_data)
    assert found.value == pytest.approx(own["length_controlled_winrate"] / 100, abs=1e-12)


@needs_package
def test_the_packages_side_effects_end_with_it(
    made_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sklearn import get_config

    monkeypatch.setattr("lingraft.judge.length_control.RESAMPLES", 2)
    environment, configuration = dict(os.environ), get_config()
    length_controlled(judged_by_length(1.0, 0.0, n=100), made_data)
    assert (dict(os.environ), get_config()) == (environment, configuration)


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EvaluationError, match=r"pip install 'lingraft\[judge\]'"):
        check_package()


def test_too_few_items_or_one_length_for_all_are_refused(tmp_path: Path) -> None:
    few = [preference(row, 0.5, 10 * row) for row in range(99)]
    alike = [preference(row, 0.5, 10) for row in range(200)]
    for preferences, says in ((few, "there are 99, with 99"), (alike, "there are 200, with 1 ")):
        with pytest.raises(EvaluationError, match=says):
            length_controlled(preferences, tmp_path)


def test_a_reference_of_other_instructions_is_refused(shared_data: Path) -> None:
    from lingraft.evaluate.tasks.alpaca_eval.task import read_outputs

    reference = read_outputs(shared_data / "alpaca_eval" / "en_text_davinci_003.jsonl")
    check_reference(reference)
    for other in (reference[:-1], [*reference[1:], reference[0]], [Output("row 0", "Say a.", "a")]):
        with pytest.raises(EvaluationError, match=rf"this one has {len(other)} that differ"):
            check_reference(other)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ("model,preference\n", "it has no column 'index'"),
        ("", "it has no column 'model'"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_another_data_file_is_refused(tmp_path: Path, content: str | bytes | None, says: str) -> None:
    path = tmp_path / "df.csv"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=says):
        gamed_data(path)


def test_without_the_hub_it_says_what_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no\nconnection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fails)
    with pytest.raises(
        DataError, match=r"df_gamed.csv cannot be read .*OSError: no connection.*--length-data"
    ) as error:
        gamed_data()
    assert len(str(error.value).splitlines()) == 1
