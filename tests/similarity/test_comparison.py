"""DES corrected for the size of the sets: by hand, on vectors of known means, and by its interval's coverage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lingraft.config.schema import DataSource
from lingraft.data.example import Example, Message
from lingraft.data.sources import load_data
from lingraft.errors import DataError
from lingraft.similarity.block_sums import BLOCKS, MOST_TASK_TYPES, BlockSums, block_of, encode_rows
from lingraft.similarity.comparison import FIRST_SAMPLE, compare_sets
from lingraft.similarity.embedding_similarity import dataset_embedding_similarity, similarity_of_sums
from lingraft.similarity.encoders import Vectors, load_encoder

WIDTH = 32


class Noisy:
    """Each text `KIND NUMBER` is the direction of its kind and noise that its number decides."""

    name = "noisy"
    languages: frozenset[str] | None = None

    def __init__(self, cosine: float, noise: float) -> None:
        self.kinds = {"a": np.eye(WIDTH)[0], "b": cosine * np.eye(WIDTH)[0]}
        self.kinds["b"] = self.kinds["b"] + np.sqrt(1 - cosine**2) * np.eye(WIDTH)[1]
        self.noise = noise
        self.encoded = 0

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.encoded += len(texts)
        rows = []
        for text in texts:
            kind, number = text.split()
            draw = np.random.default_rng([ord(kind), int(number)])
            rows.append(self.kinds[kind] + draw.normal(size=WIDTH) * self.noise)
        return np.array(rows, dtype=np.float32)


def rows_of(kind: str, numbers: range, groups: str = "own", language: str = "en") -> tuple[Example, ...]:
    return tuple(
        Example(
            str(n),
            (Message("user", f"{kind} {n}"), Message("assistant", "x")),
            language,
            f"{kind}{n}" if groups == "own" else f"{groups}{n}",
            f"{kind}.jsonl",
        )
        for n in numbers
    )


def test_two_halves_of_one_set_are_one_when_corrected() -> None:
    encoder = Noisy(1.0, 0.5)
    found = dataset_embedding_similarity(rows_of("a", range(250)), rows_of("a", range(250, 500)), encoder)
    assert found.des < 0.98
    assert found.corrected == pytest.approx(1.0, abs=0.01)
    assert found.low is not None
    assert found.low < 1.0 == found.high


def test_a_set_against_itself_is_exactly_one() -> None:
    rows = rows_of("a", range(60))
    found = dataset_embedding_similarity(rows, rows, Noisy(1.0, 1.0))
    assert (found.des, found.corrected) == pytest.approx((1.0, 1.0))
    assert found.low == pytest.approx(found.high)


def test_products_within_a_block_count_nowhere() -> None:
    sums, counts = np.zeros((BLOCKS, 2)), np.zeros(BLOCKS)
    sums[0], sums[3], counts[0], counts[3] = (2.0, 0.0), (0.0, 3.0), 2, 1
    other_sums, other_counts = np.zeros((BLOCKS, 2)), np.zeros(BLOCKS)
    other_sums[1], other_sums[2], other_counts[1], other_counts[2] = (1.0, 1.0), (1.0, 0.0), 1, 1
    first, second = BlockSums(sums, counts), BlockSums(other_sums, other_counts)
    found = similarity_of_sums(first, second, "by hand")
    assert found.des == pytest.approx((2 * 2 + 3 * 1) / np.sqrt(13) / np.sqrt(5))
    assert found.corrected is None  # the first set's two blocks are at right angles: nothing but noise
    third = BlockSums(sums + np.roll(other_sums, 5, axis=0), counts + np.roll(other_counts, 5))
    # rows (2,0)/2, (0,3)/1, (1,1)/1, (1,0)/1: products of different blocks, divided by the pairs of rows
    own = 2 * (2 * 0 + 2 * 1 + 2 * 1 + 0 + 3 * 1 + 0 + 1) / (25 - (4 + 1 + 1 + 1))
    cross = (4 * 2 + 4 * 1) / (5 * 2)
    assert similarity_of_sums(third, second, "by hand").corrected == pytest.approx(
        min(1.0, cross / np.sqrt(own * 1.0))
    )


@pytest.mark.parametrize(
    ("cosine", "n", "noise", "groups"),
    [(0.85, 400, 0.5, "own"), (0.3, 100, 0.3, "own"), (0.7, 200, 0.5, "shared"), (1.0, 150, 0.5, "own")],
)
def test_the_interval_holds_the_truth_about_as_often_as_it_says(
    cosine: float, n: int, noise: float, groups: str
) -> None:
    encoder = Noisy(cosine, noise)
    held, estimates, raw = 0, [], []
    for draw in range(100):
        numbers = range(draw * n, (draw + 1) * n)
        one, other = (encode_rows(rows_of(kind, numbers, groups), encoder).whole for kind in "ab")
        found = similarity_of_sums(one, other, "noisy")
        assert found.corrected is not None
        assert found.low is not None
        assert found.high is not None
        estimates.append(found.corrected)
        raw.append(found.des)
        held += found.low <= cosine <= found.high + 1e-12
    assert held >= 90
    assert abs(float(np.mean(estimates)) - cosine) < 0.012
    assert float(np.mean(raw)) < cosine


def test_rows_are_encoded_until_the_interval_is_narrow_enough() -> None:
    encoder = Noisy(0.8, 0.3)
    sets = {"a": rows_of("a", range(20_000)), "b": rows_of("b", range(20_000))}
    found = compare_sets(sets, encoder, precision=0.01)
    pair = found.pairs[0, 1]
    assert pair.half_width is not None
    assert pair.half_width <= 0.01
    assert pair.n == found.encoded
    assert FIRST_SAMPLE < found.encoded[0] < 20_000
    assert encoder.encoded == sum(found.encoded)  # no row twice
    assert compare_sets(sets, encoder, precision=0.01).to_json() == found.to_json()


def test_every_row_is_encoded_where_that_was_asked_for() -> None:
    sets = {"a": rows_of("a", range(1500)), "b": rows_of("b", range(700))}
    found = compare_sets(sets, Noisy(0.8, 0.1), precision=None)
    assert found.encoded == found.rows == (1500, 700)
    whole = dataset_embedding_similarity(sets["a"], sets["b"], Noisy(0.8, 0.1))
    assert found.pairs[0, 1].des == pytest.approx(whole.des, abs=1e-12)
    assert found.pairs[0, 1].corrected == pytest.approx(whole.corrected, abs=1e-12)


def test_languages_are_compared_by_themselves_and_sum_up_to_the_whole() -> None:
    mixed = (*rows_of("a", range(40), language="de"), *rows_of("b", range(40), language="es"))
    found = compare_sets({"a": rows_of("a", range(100, 160)), "mixed": mixed}, Noisy(0.5, 0.05))
    assert [(one.first_language, one.second_language) for one in found.by_language] == [
        ("en", "de"),
        ("en", "es"),
    ]
    german, spanish = (one.similarity for one in found.by_language)
    assert german.des > 0.95
    assert spanish.des == pytest.approx(0.5, abs=0.1)
    assert found.pairs[0, 1].n == (60, 80)


def test_task_types_are_compared_with_the_whole_of_the_other_set() -> None:
    encoder = Noisy(0.6, 0.0)
    two = [replace(row, task_type="one") for row in rows_of("a", range(30))]
    two += [replace(row, task_type="two") for row in rows_of("b", range(40))]
    few = [replace(row, task_type="few") for row in rows_of("b", range(40, 45))]  # too few to be compared
    found = compare_sets({"x": (*two, *few), "y": rows_of("b", range(100, 160))}, encoder, precision=None)
    one, other = found.by_task_type
    assert (one.first, one.task_type, one.second, one.similarity.n) == ("x", "one", "y", (30, 60))
    assert (other.first, other.task_type, other.second, other.similarity.n) == ("x", "two", "y", (40, 60))
    assert (one.similarity.des, other.similarity.des) == pytest.approx((0.6, 1.0), abs=1e-6)
    assert found.to_json()["by_task_type"][0]["task_type"] == "one"


def test_too_many_task_types_are_told_and_not_compared() -> None:
    rows = [replace(row, task_type=row.id) for row in rows_of("a", range(MOST_TASK_TYPES + 1))]
    found = compare_sets({"x": tuple(rows), "y": rows_of("b", range(30))}, Noisy(0.6, 0.0), precision=None)
    assert found.too_many_task_types == ("x",)
    assert not found.by_task_type


def test_close_neighbours_are_counted_in_each_direction() -> None:
    sets = {
        "few": rows_of("a", range(50)),
        "both": (*rows_of("a", range(100, 150)), *rows_of("b", range(50))),
    }
    found = compare_sets(sets, Noisy(0.0, 0.01), closeness=0.9)
    assert [(one.first, one.share) for one in found.overlaps] == [("few", 1.0), ("both", 0.5)]


def test_one_set_or_an_empty_one_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="two or more"):
        compare_sets({"a": rows_of("a", range(3))}, Noisy(1, 0.1))
    with pytest.raises(DataError, match="none: a data set without"):
        compare_sets({"a": rows_of("a", range(3)), "none": ()}, Noisy(1, 0.1))


def test_a_group_is_in_the_same_block_of_every_set() -> None:
    assert block_of("x") == block_of("x")
    assert len({block_of(str(n)) for n in range(5000)}) == BLOCKS


def test_on_real_data_the_papers_order_holds_and_halves_of_alpaca_are_one(shared_data: Path) -> None:
    encoder = load_encoder("embedded")

    def rows(name: str, language: str, count: int = 300) -> tuple[Example, ...]:
        source = DataSource(source=str(shared_data / name), language=language, max_broken_share=0.05)
        return tuple(load_data(source).examples[:count])

    alpaca = rows("alpaca/en.jsonl", "en", 500)
    one, other = (encode_rows(half, encoder).whole for half in (alpaca[::2], alpaca[1::2]))
    halves = similarity_of_sums(one, other, encoder.name)
    assert halves.des == pytest.approx(0.97, abs=0.015)
    assert halves.corrected == pytest.approx(1.0, abs=0.01)
    spanish, japanese, roleplay, mathematics = [
        similarity_of_sums(one + other, encode_rows(rows(*source), encoder).whole, encoder.name)
        for source in (
            ("multialpaca/es.jsonl", "es"),
            ("multialpaca/ja.jsonl", "ja"),
            ("gpteacher_roleplay/en.jsonl", "en"),
            ("gsm8k_instruct/en.jsonl", "en"),
        )
    ]
    for key in ("des", "corrected"):
        near = min(getattr(spanish, key), getattr(japanese, key))
        assert near > getattr(roleplay, key) + 0.05 > getattr(mathematics, key) + 0.1
