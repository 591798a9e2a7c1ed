"""Live progress on stderr: bars in a terminal, elsewhere now and then a line."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lingraft.cli import output
from lingraft.cli.log_lines import LogLines, duration, figures, log_lines
from lingraft.cli.output import stack_of, standard_error
from lingraft.errors import escape_control_characters
from lingraft.stage import StageProgress
from lingraft.study.events import Watcher

if TYPE_CHECKING:
    from rich.console import Console

    from lingraft.data.tokenizer_cost import LanguageCost
    from lingraft.strategies.base import FreezePlanRow


class _Pace:
    """Estimates the time to the end of a count from what passed since it began; what was done before costs nothing."""

    def __init__(self) -> None:
        self._done, self._since = 0, 0.0
        self._step: tuple[str, str | None, int] | None = None

    def estimated(self, step: str, progress: StageProgress) -> StageProgress:
        """Return the progress with the seconds left; without, where nothing was done yet or the total is unknown."""
        if progress.seconds_left is not None:
            return progress if math.isfinite(progress.seconds_left) else replace(progress, seconds_left=None)
        now = time.monotonic()
        key = (step, progress.unit, progress.total)
        if self._step != key or progress.done < self._done:
            self._step, self._done, self._since = key, progress.done, now
        done, left = progress.done - self._done, progress.total - progress.done
        if not progress.total or done == 0:
            return progress
        return replace(progress, seconds_left=(now - self._since) / done * left)


def _lines_of(console: Console) -> LogLines:
    """Return what prints plain lines on a console; on stderr the command's own."""
    return log_lines() if console is output.standard_error() else LogLines(console)


class ProgressWatcher(Watcher):
    """Draws a bar for the study and one for the stage at work; plain lines where stderr is no terminal.

    `name` is the study's.
    """

    def __init__(self, name: str = "study") -> None:
        self._name = name
        self._console = standard_error()
        self._lines = _lines_of(self._console)
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
        self._finished, self._stages = 0, 0
        self._pace = _Pace()
        self._open = ExitStack()

    def __enter__(self) -> ProgressWatcher:
        self._open.enter_context(self._lines.running(self._name))
        self._lines.at("preparing")
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._bars.stop()
        self._open.close()

    def preparing(self, step: str, done: int, total: int) -> None:
        """Move the bar of a data set that is read."""
        if self._stage is None or step != self._label:
            self._label = step
            self._stage = self._bars.add_task(step, total=None, figures="lines")
            self._say(f"  {step} ...")
        self.stage_progressed(StageProgress(done, total))
        if total and done == total:
            self._bars.remove_task(self._stage)
            self._stage = None
            self._lines.at("preparing")

    def tokenizer_costs(self, data: str, costs: Mapping[str, LanguageCost]) -> None:
        """Draw what each language of a data set costs in tokens."""
        from lingraft.cli.output import print_table
        from lingraft.report.tables import cost_table

        print_table(cost_table(costs), f"What the tokenizer makes of {data}", self._bars.console)

    def study_started(self, stages: int) -> None:
        """Show how many stages there are."""
        self._study = self._bars.add_task("study", total=stages, figures="stages")
        self._stages = stages
        self._between_stages()

    def stage_started(self, label: str) -> None:
        """Show the stage at work."""
        self._label = label
        self._stage = self._bars.add_task(label, total=None, figures="")
        self._lines.at(self._place)
        self._say(f"  {label} ...")

    def stage_progressed(self, progress: StageProgress) -> None:
        """Move the stage's bar."""
        progress = self._pace.estimated(self._label, progress)
        if self._stage is not None:
            self._bars.update(
                self._stage, completed=progress.done, total=progress.total, figures=_beside_the_bar(progress)
            )
        self._lines.progressed(self._place, progress)

    def stage_finished(self, label: str, seconds: float, reused: bool) -> None:
        """Move the study's bar on."""
        if self._stage is not None:
            self._bars.remove_task(self._stage)
            self._stage = None
        if self._study is not None:
            self._bars.advance(self._study)
        self._finished += 1
        self._between_stages()
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
        self._between_stages()
        self._print(f"✗ {label} failed: {reason}", style="red")
        stack = stack_of(error)
        if stack is not None:
            self._print(stack)

    @property
    def _place(self) -> str:
        """The stage at work and its number; before the first one, what is read."""
        return f"stage {self._finished + 1} of {self._stages}, {self._label}" if self._stages else self._label

    def _between_stages(self) -> None:
        self._lines.at(f"{self._finished} of {self._stages} stages are done")

    def _say(self, text: str) -> None:
        if not self._console.is_terminal:
            self._print(text)

    def _print(self, text: str, style: str | None = None) -> None:
        self._bars.console.print(
            escape_control_characters(text), markup=False, highlight=False, style=style, soft_wrap=True
        )


def _beside_the_bar(progress: StageProgress) -> str:
    unit = [] if progress.unit is None else [progress.unit]
    left = [] if progress.seconds_left is None else [f"{duration(progress.seconds_left)} left"]
    return "  ".join([*unit, *figures(progress), *left])


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
        self._lines = _lines_of(self._console)
        self._pace = _Pace()
        self._open = ExitStack()

    def __enter__(self) -> StepBars:
        self._open.enter_context(self._lines.running())
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._bars.stop()
        self._open.close()

    def progressed(self, step: str, done: int, total: int) -> None:
        """Move the bar of a step; a total of 0 is unknown."""
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(step, total=None)
        self._bars.update(self._tasks[step], completed=done, total=total or None)
        self._lines.progressed(step, self._pace.estimated(step, StageProgress(done, total)))
