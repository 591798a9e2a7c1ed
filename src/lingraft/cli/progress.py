"""The live progress of a study on stderr: stage, step, loss, tokens/s, time left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lingraft.cli.output import stack_of, standard_error
from lingraft.errors import harmless
from lingraft.study.events import StageProgress, Watcher

if TYPE_CHECKING:
    from lingraft.data.tokenizer_cost import LanguageCost
    from lingraft.strategies.base import FreezePlanRow

_SECONDS_BETWEEN_LINES = 15.0  # where stderr is no terminal, as in a log file


class _Pace:
    """Estimates the time to the end of a count from what passed since it began; what was done before costs nothing."""

    def __init__(self) -> None:
        self._done, self._since = 0, 0.0
        self._step: tuple[str, int] | None = None

    def seconds_left(self, step: str, done: int, total: int) -> float | None:
        """Return the seconds left; None: nothing has been done yet, or the total is unknown."""
        now = time.monotonic()
        if self._step != (step, total) or done < self._done:
            self._step, self._done, self._since = (step, total), done, now
        if not total or done == self._done:
            return None
        return (now - self._since) / (done - self._done) * (total - done)


class ProgressWatcher(Watcher):
    """Draws a bar for the study and one for the stage at work; plain lines where stderr is no terminal."""

    def __init__(self) -> None:
        self._console = standard_error()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._study: TaskID | None = None
        self._stage: TaskID | None = None
        self._label = ""
        self._last_line = 0.0
        self._pace = _Pace()

    def __enter__(self) -> ProgressWatcher:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._bars.stop()

    def preparing(self, step: str, done: int, total: int) -> None:
        """Move the bar of a data set that is read."""
        if self._stage is None or step != self._label:
            self._label = step
            self._last_line = time.monotonic()
            self._stage = self._bars.add_task(step, total=None, figures="lines")
            self._say(f"  {step} ...")
        self.stage_progressed(StageProgress(done, total))
        if done == total:
            self._bars.remove_task(self._stage)
            self._stage = None

    def tokenizer_costs(self, data: str, costs: Mapping[str, LanguageCost]) -> None:
        """Draw what each language of a data set costs in tokens."""
        from lingraft.cli.output import print_table
        from lingraft.report.tables import cost_table

        print_table(cost_table(costs), f"What the tokenizer makes of {data}", self._bars.console)

    def study_started(self, stages: int) -> None:
        """Show how many stages there are."""
        self._study = self._bars.add_task("study", total=stages, figures="stages")

    def stage_started(self, label: str) -> None:
        """Show the stage at work."""
        self._label = label
        self._last_line = time.monotonic()
        self._stage = self._bars.add_task(label, total=None, figures="")
        self._say(f"  {label} ...")

    def stage_progressed(self, progress: StageProgress) -> None:
        """Move the stage's bar."""
        if progress.seconds_left is None:
            left = self._pace.seconds_left(self._label, progress.done, progress.total)
            progress = replace(progress, seconds_left=left)
        figures = _figures(progress)
        if self._stage is not None:
            self._bars.update(self._stage, completed=progress.done, total=progress.total, figures=figures)
        if not self._console.is_terminal and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._print(f"    {progress.done}/{progress.total}  {figures}")

    def stage_finished(self, label: str, seconds: float, reused: bool) -> None:
        """Move the study's bar on."""
        if self._stage is not None:
            self._bars.remove_task(self._stage)
            self._stage = None
        if self._study is not None:
            self._bars.advance(self._study)
        self._print(f"✓ {label}  " + ("(finished before)" if reused else f"{seconds:.0f} s"))

    def freeze_plan(self, label: str, plan: Sequence[FreezePlanRow]) -> None:
        """Draw the plan before training."""
        drawn = Table(title=Text(f"What trains in {label}"), title_justify="left")
        drawn.add_column("part")
        for column in ("trained", "frozen"):
            drawn.add_column(column, justify="right")
        for row in plan:
            drawn.add_row(Text(row.part), f"{row.trainable_parameters:,}", f"{row.frozen_parameters:,}")
        self._bars.console.print(drawn)

    def noted(self, message: str) -> None:
        """Print what was dropped, truncated or fell short."""
        self._print(f"! {message}", style="yellow")

    def cell_failed(self, label: str, reason: str, error: Exception) -> None:
        """Print a failed cell's reason."""
        if self._stage is not None:
            self._bars.remove_task(self._stage)
            self._stage = None
        self._print(f"✗ {label} failed: {reason}", style="red")
        stack = stack_of(error)
        if stack is not None:
            self._print(stack)

    def _say(self, text: str) -> None:
        if not self._console.is_terminal:
            self._print(text)

    def _print(self, text: str, style: str | None = None) -> None:
        self._bars.console.print(harmless(text), markup=False, highlight=False, style=style, soft_wrap=True)


def _figures(progress: StageProgress) -> str:
    parts = [] if progress.unit is None else [progress.unit]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:.0f} tokens/s")
    if progress.seconds_left is not None:
        parts.append(_left(progress.seconds_left))
    return "  ".join(parts)


def _left(seconds_left: float) -> str:
    minutes, seconds = divmod(round(seconds_left), 60)
    return f"{minutes}:{seconds:02d} left"


class StepBars:
    """Bars for steps that are not a study's; plain lines where stderr is no terminal."""

    def __init__(self) -> None:
        self._console = standard_error()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last_line = time.monotonic()
        self._pace = _Pace()

    def __enter__(self) -> StepBars:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._bars.stop()

    def progressed(self, step: str, done: int, total: int) -> None:
        """Move the bar of a step; a total of 0 is unknown."""
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(step, total=None)
        self._bars.update(self._tasks[step], completed=done, total=total or None)
        left = self._pace.seconds_left(step, done, total)
        if not self._console.is_terminal and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            told = "" if left is None else f"  {_left(left)}"
            self._console.print(f"  {step} {done}/{total or '?'}{told}", markup=False, highlight=False)
