"""Mix replayed examples into new ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lingraft.data.example import Example
from lingraft.data.example_table import Rows, joined, select, share_a_group
from lingraft.errors import ConfigError


def replay_count(n_new: int, share: float) -> int:
    """Return how many replayed examples make up `share` of the final mix: share / (1 - share) * n_new.

    A share is of the final mix, not of the new data; the paper leaves it open.

    Raises:
        ConfigError: `share` is outside [0, 1).
    """
    if not 0.0 <= share < 1.0:
        raise ConfigError(
            f"a replay share of {share} cannot be had: it is a share of the final mix, in [0, 1)."
        )
    return round(share / (1.0 - share) * n_new)


def interleave(new: Sequence[Example], replayed: Sequence[Example], seed: int) -> Sequence[Example]:
    """Return both in one seeded shuffled order; nothing is repeated or dropped."""
    both = joined([new, tuple(replayed)])
    return select(both, np.random.default_rng(seed).permutation(len(both)))


def replay_order(
    pool: Sequence[Example], generator: np.random.Generator, parallel_to: Sequence[Example] = ()
) -> Rows:
    """Return the places of all rows of `pool` in the order in which they are replayed.

    It is shuffled; rows of the same group as one of `parallel_to` come first.
    """
    order: Rows = generator.permutation(len(pool))
    if not len(parallel_to):
        return order
    is_other = ~share_a_group(pool, parallel_to)
    return order[np.argsort(is_other[order], kind="stable")]
