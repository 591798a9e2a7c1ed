"""What a running study reports to its watcher; the command line draws it, tests collect it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lingraft.stage import StageWatcher

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lingraft.data.tokenizer_cost import LanguageCost


class Watcher(StageWatcher):
    """Receives what happens, in order; this one ignores all of it. Override what you want to see."""

    def preparing(self, step: str, done: int, total: int) -> None:
        """Before the first stage, a data set is read: `done` of `total` lines; a total of 0 is unknown."""

    def tokenizer_costs(self, data: str, costs: Mapping[str, LanguageCost]) -> None:
        """What the model's tokenizer makes of each language of a data set; reported before training."""

    def stages_ahead(self, labels: Sequence[str]) -> None:
        """These stages are to be made now; reported before `study_started`, and without those that are finished."""

    def stages_read(self, parents: Mapping[str, Sequence[str]], at_once: int) -> None:
        """What each stage reads, by labels, and how many are made at a time (1 also where nobody knows)."""

    def planned(self, line: str) -> None:
        """What the stages ahead take; reported before the first is made."""

    def study_started(self, stages: int) -> None:
        """`stages` stages will be reported as finished, unless some fail."""

    def stage_started(self, label: str) -> None:
        """A stage begins to work, or to be made anew after an attempt that was lost; others may be at work."""

    def stage_ended(self, label: str) -> None:
        """A stage is at work no more; `stage_finished` follows where it is done."""

    def stage_finished(self, label: str, seconds: float, reused: bool) -> None:
        """A stage is finished, or was finished before (`reused`)."""

    def cell_failed(self, label: str, reason: str, error: Exception) -> None:
        """A cell failed with `error`, reported as `reason`; the others go on."""
