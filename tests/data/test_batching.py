"""Token-budget batches: complete, within the budget, equally many each epoch, and tight."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingraft.data.batching import padded_tokens, token_budget_batches
from lingraft.errors import DataError

LENGTHS = st.lists(st.integers(1, 90), max_size=60)


@given(LENGTHS, st.integers(1, 200), st.integers(0, 5), st.integers(0, 5))
def test_every_row_occurs_exactly_once(lengths: list[int], budget: int, seed: int, epoch: int) -> None:
    batches = token_budget_batches(lengths, budget, seed, epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 200), st.integers(0, 5))
def test_a_batch_keeps_the_budget_unless_it_is_one_long_row(
    lengths: list[int], budget: int, seed: int
) -> None:
    for batch in token_budget_batches(lengths, budget, seed, epoch=0):
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


@given(LENGTHS, st.integers(1, 200), st.integers(0, 3))
def test_the_number_of_batches_is_the_same_in_every_epoch(lengths: list[int], budget: int, seed: int) -> None:
    assert len({len(token_budget_batches(lengths, budget, seed, epoch)) for epoch in range(8)}) == 1


def test_seed_and_epoch_alone_decide_the_order() -> None:
    lengths = [random.Random(1).randint(5, 80) for _ in range(200)]
    first = token_budget_batches(lengths, 512, seed=3, epoch=0)
    assert first == token_budget_batches(lengths, 512, seed=3, epoch=0)
    assert first != token_budget_batches(lengths, 512, seed=3, epoch=1)
    assert first != token_budget_batches(lengths, 512, seed=4, epoch=0)


def test_rows_meet_other_neighbours_in_the_next_epoch() -> None:
    generator = random.Random(2)
    lengths = [generator.randint(20, 120) for _ in range(300)]
    first, second = (token_budget_batches(lengths, 512, seed=0, epoch=epoch) for epoch in (0, 1))
    assert (
        len({frozenset(batch) for batch in first} & {frozenset(batch) for batch in second}) < len(first) / 5
    )


def test_little_is_padding() -> None:
    generator = random.Random(3)
    lengths = [int(generator.lognormvariate(4.2, 0.5)) + 5 for _ in range(400)]
    for epoch in range(5):
        batches = token_budget_batches(lengths, 512, seed=0, epoch=epoch)
        assert padded_tokens(batches, lengths) < 1.05 * sum(lengths)
        assert len(batches) < 1.25 * sum(lengths) / 512


def test_short_and_long_batches_are_mixed_over_the_epoch() -> None:
    lengths = list(range(10, 210))
    batches = token_budget_batches(lengths, 512, seed=0, epoch=0)
    means = [sum(lengths[row] for row in batch) / len(batch) for batch in batches]
    half = len(means) // 2
    assert means != sorted(means)
    assert abs(sum(means[:half]) / half - sum(means[half:]) / (len(means) - half)) < 40


def test_no_rows_give_no_batches() -> None:
    assert token_budget_batches([], 100, seed=0, epoch=0) == []


def test_an_empty_row_is_refused_by_number() -> None:
    with pytest.raises(DataError, match="row 1 has no tokens"):
        token_budget_batches([3, 0, 2], 100, seed=0, epoch=0)


@given(LENGTHS, st.integers(1, 200), st.integers(0, 5), st.integers(0, 5))
def test_the_batches_are_those_of_the_plain_way_over_lists(
    lengths: list[int], budget: int, seed: int, epoch: int
) -> None:
    batches = token_budget_batches(lengths, budget, seed, epoch)
    assert list(batches) == plain_batches(lengths, budget, seed, epoch)
    assert batches == plain_batches(lengths, budget, seed, epoch)
    assert padded_tokens(batches, lengths) == padded_tokens(list(batches), lengths)


def plain_batches(lengths: list[int], budget: int, seed: int, epoch: int) -> list[list[int]]:
    generator = random.Random(f"batches of seed {seed}, epoch {epoch}")
    rows = list(range(len(lengths)))
    generator.shuffle(rows)
    rows.sort(key=lambda row: -lengths[row])
    fewest = plain_cut(rows, lengths, budget)
    if not fewest:
        return []
    first = 1 + (random.Random(seed).randrange(len(rows)) + epoch) % len(fewest[0])
    batches = [rows[:first], *plain_cut(rows[first:], lengths, budget)]
    while len(batches) < min(len(fewest) + 1, len(rows)):
        largest = max(range(len(batches)), key=lambda number: len(batches[number]))
        half = len(batches[largest]) // 2
        batches[largest : largest + 1] = [batches[largest][:half], batches[largest][half:]]
    generator.shuffle(batches)
    return batches


def plain_cut(rows: list[int], lengths: list[int], budget: int) -> list[list[int]]:
    batches = []
    while rows:
        count = max(1, budget // lengths[rows[0]])
        batches.append(rows[:count])
        rows = rows[count:]
    return batches
