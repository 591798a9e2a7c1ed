"""Progress of a study and of single steps: rich's bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lingraft.cli import output
from lingraft.cli.log_lines import LogLines, figures, log_lines
from lingraft.cli.output import stack_of, standard_error
from lingraft.errors import escape_control_characters
from lingraft.stage import StageProgress
from lingraft.study.events import Watcher

if TYPE_CHECKING:
    from rich.console import Console

    from lingraft.data.tokenizer_cost import LanguageCost
    from lingraft.strategies.base import FreezePlanRow


def _lines_of(console: Console) -> LogLines:
    """Return what prints plain lines on a console; on stderr the command's own."""
    return log_lines() if console is output.standard_error() else LogLines(console)


class _Bars(Progress):
    """Bars of steps. The time left is estimated over all updates of a step, as they may be minutes apart."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            transient=True,
            get_time=time.monotonic,
            speed_estimate_period=math.inf,
        )

    def add(self, step: str) -> TaskID:
        """Add the bar of a step whose total is not known yet."""
        return self.add_task(step, total=None, unit=None, figures="")

    def move(self, bar: TaskID, progress: StageProgress) -> StageProgress:
        """Move a bar, and return the progress with the seconds left; None where they are not known yet."""
        (task,) = (one for one in self.tasks if one.id == bar)
        if progress.done < task.completed or progress.unit != task.fields["unit"]:
            self.reset(bar)  # another count of the same step
        beside = [] if progress.unit is None else [progress.unit]
        self.update(
            bar,
            completed=progress.done,
            total=progress.total or None,
            unit=progress.unit,
            figures="  ".join([*beside, *figures(progress)]),
        )
        left = task.time_remaining if progress.seconds_left is None else progress.seconds_left
        return replace(progress, seconds_left=None if left is None or math.isinf(left) else left)


class ProgressWatcher(Watcher):
    """Draws a bar for the study and one for the stage at work; plain lines where stderr is no terminal.

    `name` is the study's.
    """

    def __init__(self, name: str = "study") -> None:
        self._name = name
        self._console = standard_error()
        self._lines = _lines_of(self._console)
        self._study = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("stages"),
            console=self._console,
        )
        self._stages = self._study.add_task("study", total=None, visible=False)
        self._bars = _Bars(self._console)
        self._bar: TaskID | None = None
        self._label = ""
        self._finished, self._total = 0, 0
        self.said: set[str] = set()  # notes: what holds for every model or cell is printed once
        self._open = ExitStack()

    def __enter__(self) -> ProgressWatcher:
        self._open.enter_context(self._lines.running(self._name))
        self._lines.at("preparing")
        if self._console.is_terminal:
            self._open.enter_context(
                Live(Group(self._study, self._bars), console=self._console, transient=True)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._open.close()

    def preparing(self, step: str, done: int, total: int) -> None:
        """Move the bar of a data set that is read."""
        if self._bar is None or step != self._label:
            self._begin(step)
        self.stage_progressed(StageProgress(done, total))
        if total and done == total:
            self._end()

    def tokenizer_costs(self, data: str, costs: Mapping[str, LanguageCost]) -> None:
        """Draw what each language of a data set costs in tokens."""
        from lingraft.cli.output import print_table
        from lingraft.report.tables import cost_table

        print_table(cost_table(costs), f"What the tokenizer makes of {data}", self._console)

    def study_started(self, stages: int) -> None:
        """Show how many stages there are."""
        self._total = stages
        self._study.update(self._stages, total=stages, visible=True)
        self._end()

    def stage_started(self, label: str) -> None:
        """Show the stage at work."""
        self._begin(label)

    def stage_progressed(self, progress: StageProgress) -> None:
        """Move the stage's bar."""
        if self._bar is not None:
            progress = self._bars.move(self._bar, progress)
        self._lines.progressed(self._place, progress)

    def stage_finished(self, label: str, seconds: float, reused: bool) -> None:
        """Move the study's bar on."""
        self._finished += 1
        self._study.update(self._stages, completed=self._finished)
        self._end()
        self._print(f"✓ {label}  " + ("(finished before)" if reused else f"{seconds:.0f} s"))

    def freeze_plan(self, label: str, plan: Sequence[FreezePlanRow]) -> None:
        """Draw the plan before training."""
        drawn = Table(title=Text(f"What trains in {label}"), title_justify="left")
        drawn.add_column("part")
        for column in ("trained", "frozen"):
            drawn.add_column(column, justify="right")
        for row in plan:
            drawn.add_row(Text(row.part), f"{row.trainable_parameters:,}", f"{row.frozen_parameters:,}")
        self._console.print(drawn)

    def noted(self, message: str) -> None:
        """Print what was dropped, truncated or fell short."""
        if message not in self.said:
            self.said.add(message)
            self._print(f"! {message}", style="yellow")

    def noted_of(self, label: str, message: str) -> None:
        """Print it of the first that it holds for."""
        if message not in self.said:
            self.said.add(message)
            self._print(f"! {label}: {message}", style="yellow")

    def cell_failed(self, label: str, reason: str, error: Exception) -> None:
        """Print a failed cell's reason."""
        self._end()
        self._print(f"✗ {label} failed: {reason}", style="red")
        stack = stack_of(error)
        if stack is not None:
            self._print(stack)

    @property
    def _place(self) -> str:
        """The stage at work and its number; before the first one, what is read."""
        return f"stage {self._finished + 1} of {self._total}, {self._label}" if self._total else self._label

    def _begin(self, label: str) -> None:
        self._end()
        self._label = label
        self._bar = self._bars.add(label)
        self._lines.at(self._place)
        if not self._console.is_terminal:
            self._print(f"  {label} ...")

    def _end(self) -> None:
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None
        self._lines.at(f"{self._finished} of {self._total} stages are done" if self._total else "preparing")

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(
            escape_control_characters(text), markup=False, highlight=False, style=style, soft_wrap=True
        )


class StepBars(Watcher):
    """Bars for the steps of a command, or for its stages, whose notes it leaves to the command.

    Plain lines where stderr is no terminal.
    """

    def __init__(self) -> None:
        self._console = standard_error()
        self._bars = _Bars(self._console)
        self._by_step: dict[str, TaskID] = {}
        self._stage = ""
        self._lines = _lines_of(self._console)
        self._open = ExitStack()

    def __enter__(self) -> StepBars:
        self._open.enter_context(self._lines.running())
        if self._console.is_terminal:
            self._open.enter_context(self._bars)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._open.close()

    def progressed(self, step: str, done: int, total: int) -> None:
        """Move the bar of a step; a total of 0 is unknown."""
        self._move(step, StageProgress(done, total))

    def stage_started(self, label: str) -> None:
        """Name the stage at work; its kind is the command's name, with which lines begin."""
        self._stage = label.partition(" ")[2]
        self._lines.at(self._stage)

    def stage_progressed(self, progress: StageProgress) -> None:
        """Move the bar of the stage at work."""
        self._move(self._stage, progress)

    def _move(self, step: str, progress: StageProgress) -> None:
        if step not in self._by_step:
            self._by_step[step] = self._bars.add(step)
        self._lines.progressed(step, self._bars.move(self._by_step[step], progress))
