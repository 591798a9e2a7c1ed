"""What a running study tells its watcher; the command line draws it, tests collect it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lingraft.data.tokenizer_cost import LanguageCost
    from lingraft.strategies.base import FreezePlanRow


@dataclass(frozen=True)
class StageProgress:
    """How far a stage is.

    Attributes:
        done: Steps or items done, of `total`.
        total: Steps or items in all.
        loss: Training loss in nats per supervised token, where the stage trains.
        tokens_per_second: Training speed, where the stage trains.
        seconds_left: Estimated time to the stage's end, if known.
        unit: What is counted, where it is neither steps nor items.
    """

    done: int
    total: int
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    unit: str | None = None


class Watcher:
    """Receives what happens, in order; this one ignores all of it. Override what you want to see."""

    def preparing(self, step: str, done: int, total: int) -> None:
        """Before the first stage, a data set is read: `done` of `total` lines; a total of 0 is unknown."""

    def tokenizer_costs(self, data: str, costs: Mapping[str, LanguageCost]) -> None:
        """What the model's tokenizer makes of each language of a data set; told before training."""

    def study_started(self, stages: int) -> None:
        """`stages` stages will be visited, finished ones included."""

    def stage_started(self, label: str) -> None:
        """A stage begins to work."""

    def stage_progressed(self, progress: StageProgress) -> None:
        """The stage that began last is this far."""

    def stage_finished(self, label: str, seconds: float, reused: bool) -> None:
        """A stage is finished, or was finished before (`reused`)."""

    def freeze_plan(self, label: str, plan: Sequence[FreezePlanRow]) -> None:
        """Which parts train and which are frozen; told before training, where anything is frozen."""

    def noted(self, message: str) -> None:
        """Something was dropped, truncated or fell short; counted in the record as well."""

    def cell_failed(self, label: str, reason: str, error: Exception) -> None:
        """A cell failed with `error`, told as `reason`; the others go on."""
