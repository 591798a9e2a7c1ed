"""Length-controlled win rate: what the win rate would be if the answers were as long as the reference's.

The regression is that of the package `alpaca-eval` itself (extra `judge`), so that the number is the one that its users
know: preference on tanh of the standardised difference of lengths, the difficulty of the instruction and the model,
predicted for a difference of 0. Difficulties, and judgements of answers that were made long or short on purpose, which
hold the regression in place, are the package's data file, `df_gamed.csv`. It has them for AlpacaEval's 805 English
instructions only.

Source: Dubois et al. 2024, arXiv 2404.04475.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from lingraft.errors import DataError, EvaluationError, in_one_line
from lingraft.intervals.clusters import percentiles
from lingraft.judge.hub import hub_file
from lingraft.judge.runner import OnProgress
from lingraft.judge.win_rate import Output, Preference
from lingraft.records import fingerprint_of, hash_file

HUB_FILE = "df_gamed.csv"
COLUMNS = ("model", "preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")
INSTRUCTIONS = "d02007bfbcc8fcf6"  # fingerprint of AlpacaEval's 805 instructions in their order
FEWEST_ITEMS = 100  # three coefficients, chosen by cross-validation over five parts
RESAMPLES = 200  # a regression each
_MODEL = "length_controlled_v1"


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A length-controlled win rate.

    Attributes:
        value: In [0, 1].
        low: Lower end of the 95 % interval: percentile bootstrap over items, 200 resamples.
        high: Upper end.
        n: Items.
        is_extreme: Whether the package calls the difference from the plain win rate suspiciously large, which may be a
            failure of the regression.
        package: Version of alpaca-eval.
        data: SHA-256 of the data file.
    """

    value: float
    low: float
    high: float
    n: int
    is_extreme: bool
    package: str
    data: str


def check_package() -> None:
    """Raise EvaluationError where alpaca-eval is not installed."""
    from importlib.util import find_spec

    if find_spec("alpaca_eval") is None:
        raise EvaluationError(
            "the length-controlled win rate needs the package alpaca-eval: pip install 'lingraft[judge]'."
        )


def check_reference(reference: Sequence[Output]) -> None:
    """Raise EvaluationError where the reference is not AlpacaEval's 805 instructions, in their order."""
    if fingerprint_of([one.instruction for one in reference]) != INSTRUCTIONS:
        raise EvaluationError(
            "the length-controlled win rate needs a reference with AlpacaEval's own 805 instructions in their order: "
            f"the difficulty of others is not known; this one has {len(reference)} that differ."
        )


def gamed_data(path: Path | None = None) -> Path:
    """Return the package's data file: a local one, or from the hub.

    Raises:
        DataError: It is absent, another file, or cannot be had from the hub.
    """
    if path is None:
        return hub_file(HUB_FILE, "name a local copy with --length-data")
    try:
        header = path.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({in_one_line(error)}).") from None
    missing = [column for column in COLUMNS if column not in header.strip().split(",")]
    if missing:
        raise DataError(f"{path}: is not AlpacaEval's {HUB_FILE}: it has no column {missing[0]!r}.")
    return path


def length_controlled(
    preferences: Sequence[Preference], data: Path, *, seed: int = 0, on_progress: OnProgress | None = None
) -> LengthControlled:
    """Return the length-controlled win rate, by alpaca-eval's regression `length_controlled_v1`.

    Its own standard error is that of the predictions, which hardly vary; the interval here is a bootstrap.

    Args:
        preferences: At least 100, on a reference that `check_reference` takes.
        data: See `gamed_data`.
        seed: Of the bootstrap.
        on_progress: Called with the regressions so far and in all.

    Raises:
        EvaluationError: Too few items, or all answers differ from the reference's by the same length.
    """
    from importlib.metadata import version

    differences = {one.reference_characters - one.characters for one in preferences}
    if len(preferences) < FEWEST_ITEMS or len(differences) < 2:
        raise EvaluationError(
            f"the length-controlled win rate needs at least {FEWEST_ITEMS} items whose lengths differ from the "
            f"reference's by different amounts; there are {len(preferences)}, with {len(differences)} amounts."
        )
    generator = np.random.default_rng(seed)
    replicates = np.empty(RESAMPLES)
    with _package(data) as fit:
        value, is_extreme = fit(preferences)
        for number in range(RESAMPLES):
            drawn = generator.integers(len(preferences), size=len(preferences))
            replicates[number], _ = fit([preferences[index] for index in drawn])
            if on_progress is not None:
                on_progress(number + 1, RESAMPLES)
    low, high = percentiles(replicates)
    return LengthControlled(
        value,
        min(low, value),
        max(high, value),
        len(preferences),
        is_extreme,
        version("alpaca-eval"),
        hash_file(data),
    )


@contextmanager
def _package(data: Path) -> Iterator[Any]:
    """Give a function that fits the package's regression on a local data file, without its side effects.

    It reads `.env` files into the environment, switches scikit-learn's metadata routing on, downloads its data, and
    uses arguments that scikit-learn is about to drop.
    """
    with patch.dict(os.environ), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pandas
        from alpaca_eval.metrics import glm_winrate
        from sklearn import config_context

        def fit(preferences: Sequence[Preference]) -> tuple[float, bool]:
            # The package's form: 1 is the reference, 2 the answer, and of the texts only lengths count.
            table = pandas.DataFrame(
                {
                    "preference": [1 + one.score for one in preferences],
                    "output_1": ["x" * one.reference_characters for one in preferences],
                    "output_2": ["x" * one.characters for one in preferences],
                    "generator_1": "reference",
                    "generator_2": "answers",
                },
                index=[one.row for one in preferences],
            )
            metrics = glm_winrate.get_length_controlled_winrate(
                table, glm_name=_MODEL, save_weights_dir=None, is_warn_extreme_changes=False
            )
            plain, controlled = float(metrics["win_rate"]), float(metrics["length_controlled_winrate"])
            return controlled / 100, bool(glm_winrate.get_is_extreme_changes(plain, controlled))

        with config_context(), patch.object(glm_winrate, "hf_hub_download", lambda **_: str(data)):
            yield fit
