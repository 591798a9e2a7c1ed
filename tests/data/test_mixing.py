"""A share is of the final mix."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lingraft.data.mixing import replay_count


@given(st.integers(0, 100_000), st.floats(0, 0.9))
def test_the_realised_share_is_the_asked_one_to_rounding(n_new: int, share: float) -> None:
    replayed = replay_count(n_new, share)
    assert abs(replayed - share * (n_new + replayed)) <= 0.5 + 1e-6


def test_by_hand() -> None:
    assert replay_count(90, 0.1) == 10
    assert replay_count(190, 0.1) == 21
    assert replay_count(50, 0.0) == 0
