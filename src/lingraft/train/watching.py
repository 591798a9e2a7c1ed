"""What watches a phase step by step: the clock, and what decides when to save and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from lingraft.config.schema import Training
from lingraft.errors import ModelError
from lingraft.models.compute import Compute
from lingraft.models.peak import peak_of


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a phase stands after an optimiser step.

    Attributes:
        step: Steps done, from 1.
        steps: Steps of the phase.
        loss: Mean loss of this step in nats per supervised token.
        tokens_per_second: Real tokens (no padding) per second since this process began or resumed.
        seconds_left: Expected at that rate.
        mfu: Model FLOPs utilisation in that time: the FLOPs that the model needs for real tokens, recomputed
            activations not counted, over what the devices could have done (`models.peak`); None: not known.
    """

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float
    mfu: float | None = None


class Saving(TrainerCallback):
    """Decides after every step whether to save and whether to stop, in all processes alike.

    Attributes:
        stopped_by: Number of the signal that stopped the phase.

    Args:
        training: How often to save; where both are 0, nothing is.
        stop: Returns the number of a signal that asked to stop.
        agreed: Returns what the processes' wishes come to: the largest of each.
    """

    def __init__(
        self,
        training: Training,
        stop: Callable[[], int | None],
        agreed: Callable[[Sequence[int]], Sequence[int]],
    ) -> None:
        self._every, self._seconds = training.save_every, 60 * training.save_minutes
        self._stop, self._agreed = stop, agreed
        self._saved_at = time.monotonic()
        self.stopped_by: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Start the clock."""
        self._saved_at = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Save when it is time, when asked to stop, and after the last step, so that a failing save repeats none."""
        late = self._seconds > 0 and time.monotonic() - self._saved_at >= self._seconds
        is_late, number = self._agreed([int(late and args.process_index == 0), self._stop() or 0])
        if number:
            self.stopped_by = number
            control.should_training_stop = True
        is_due = is_late or (self._every and state.global_step % self._every == 0)
        is_end = number or state.global_step >= state.max_steps
        control.should_save = bool((self._every or self._seconds) and (is_due or is_end))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Start the clock again."""
        self._saved_at = time.monotonic()


class Clock(TrainerCallback):
    """Watches the steps: reports progress, stops at a loss that is no number.

    Attributes:
        peak: What one device can compute at most; None: the model's FLOPs are not known.
        mfu: See `Progress`, of the steps so far.
        seconds: Since this process began or resumed, until the newest step was done.
        tokens_per_second: Real tokens, in that time.

    Args:
        tokens_after: Real tokens by number of steps done, from 0.
        flops: Of each step; None: not known, or not asked for.
        compute: What computes.
        processes: How many share a step.
        on_progress: Called after every step.
    """

    def __init__(
        self,
        tokens_after: Sequence[int],
        flops: Sequence[float] | None,
        compute: Compute,
        processes: int,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._tokens_after = tokens_after
        self._flops, self._processes = flops, processes
        self.peak = None if flops is None else peak_of(compute)
        self._on_progress = on_progress
        self.mfu: float | None = None
        self._first_step = 0
        self._begin = time.perf_counter()
        self.seconds = 0.0
        self.tokens_per_second = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Start the clock where an interrupted run stood."""
        self._first_step = state.global_step
        self._begin = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Report the step that has just been logged."""
        logs = kwargs["logs"]
        if "loss" not in logs:  # the summary at the end
            return
        step, loss, norm = state.global_step, logs["loss"], logs.get("grad_norm", 0.0)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ModelError(
                f"training diverged: at step {step} of {state.max_steps} the loss is {loss} and the gradient's "
                f"norm {norm}. Lower training.learning_rate ({args.learning_rate}) or raise warmup_share."
            )
        self.seconds = time.perf_counter() - self._begin
        done = self._tokens_after[step] - self._tokens_after[self._first_step]
        self.tokens_per_second = done / max(self.seconds, 1e-9)
        left = (self._tokens_after[-1] - self._tokens_after[step]) / self.tokens_per_second
        if self._flops is not None and self.peak is not None:
            could = self.peak.flops * self._processes * max(self.seconds, 1e-9)
            self.mfu = sum(self._flops[self._first_step : step]) / could
        if self._on_progress is not None:
            self._on_progress(Progress(step, state.max_steps, loss, self.tokens_per_second, left, self.mfu))
