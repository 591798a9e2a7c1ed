"""A share is of the final mix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingraft.data.example import Example, Message
from lingraft.data.mixing import interleave, replay_count
from lingraft.errors import ConfigError


@given(st.integers(0, 100_000), st.floats(0, 0.9))
def test_the_realised_share_is_the_asked_one_to_rounding(n_new: int, share: float) -> None:
    replayed = replay_count(n_new, share)
    assert abs(replayed - share * (n_new + replayed)) <= 0.5 + 1e-6


def test_by_hand() -> None:
    assert replay_count(90, 0.1) == 10
    assert replay_count(190, 0.1) == 21
    assert replay_count(50, 0.0) == 0


def rows(source: str, count: int) -> tuple[Example, ...]:
    turns = (Message("user", "u"), Message("assistant", "a"))
    return tuple(Example(f"{source}{i}", turns, "en", f"{i}", source) for i in range(count))


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_interleaving_keeps_every_row_once_in_an_order_that_the_seed_decides(
    n_new: int, n_replayed: int, seed: int
) -> None:
    new, replayed = rows("new", n_new), rows("old", n_replayed)
    mixed = interleave(new, replayed, seed)
    assert sorted(e.id for e in mixed) == sorted(e.id for e in (*new, *replayed))
    assert mixed == interleave(new, replayed, seed)


@pytest.mark.parametrize("share", [1.0, 1.5, -0.1, float("nan")])
def test_a_share_that_no_mix_has_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"in \[0, 1\)"):
        replay_count(10, share)
