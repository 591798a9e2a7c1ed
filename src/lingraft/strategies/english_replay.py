"""ER: mix real English examples into Phase 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from lingraft.data.example import Example, Origin
from lingraft.data.mixing import interleave, replay_count, replay_order
from lingraft.errors import StrategyError
from lingraft.strategies.base import Context, Mix, Need, Strategy


class EnglishReplay(Strategy):
    """Mix real English examples into the phase (the paper's ER_10).

    n = share / (1 - share) * n_new examples are drawn without replacement, so that `share` is of the final mix;
    whether the paper means that is open. `from: parallel`, the paper's way, draws from the set's `english`, rows
    parallel to the phase's own first; `from: phase_one` draws from Phase 1's training rows.

    Cost: training takes 1 / (1 - share) as long; no extra memory. Fewer rows than asked for are a shortfall, which
    is reported and recorded; nothing is repeated.

    Source: arXiv 2410.16006. Relatives: mixed.
    """

    kind: ClassVar[str] = "english_replay"

    share: float = Field(0.1, ge=0, lt=1)
    """Share of the final mix."""
    source: Literal["parallel", "phase_one"] = Field("parallel", alias="from")
    """`parallel`: the set's `english`; `phase_one`: Phase 1's training rows."""

    @property
    def needs(self) -> frozenset[Need]:
        """The English parallel, or Phase 1's data."""
        if self.share == 0:
            return frozenset()
        return frozenset(("english",) if self.source == "parallel" else ("previous_data",))

    @property
    def mixes(self) -> bool:
        """Unless its share is 0."""
        return self.share > 0

    def mix(self, phase_data: Sequence[Example], context: Context) -> Mix:
        """Return the phase's examples with the replayed ones among them.

        Raises:
            StrategyError: There is nothing to replay: the phase would be plain under another name.
        """
        wanted = replay_count(len(phase_data), self.share)
        pool = context.english if self.source == "parallel" else context.previous_data
        if not wanted:
            return Mix(phase_data)
        if not pool:
            source = "the set's `english`" if self.source == "parallel" else "Phase 1's data"
            raise StrategyError(
                f"{self.kind!r}: {wanted} rows are asked for, and {source} have none. Leave it out."
            )
        parallel_to = phase_data if self.source == "parallel" else ()
        drawn = replay_order(pool, context.generator(self.kind), parallel_to)[:wanted]
        origin = Origin(kind="english_replay", settings={"from": self.source})
        replayed = [replace(pool[int(row)], origin=origin) for row in drawn]
        mixed = interleave(phase_data, replayed, context.seed_of(f"{self.kind} order"))
        return Mix(mixed, len(replayed), wanted - len(replayed), origins=((origin, len(replayed)),))
