"""Progress of a study and of single steps: rich's bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Group
from rich.live import Live
from rich.progress import Progress, ProgressColumn, Task, TaskID
from rich.table import Column, Table
from rich.text import Text

from lingraft import stopping
from lingraft.cli import output
from lingraft.cli.log_lines import LogLines, Step, duration, figures, log_lines
from lingraft.cli.output import print_drawn, print_message, shown, stack_of, standard_error
from lingraft.stage import StageProgress
from lingraft.study.events import Watcher
from lingraft.study.time_left import Ahead, seconds_until_made

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from lingraft.data.tokenizer_cost import LanguageCost
    from lingraft.strategies.base import FreezePlanRow

_LONGEST_BAR, _SHORTEST_BAR = 24, 10
_SHORTEST_NAME = 8
_GAP = 2  # between the parts of a line
_LINES_BESIDE = 3  # the bars of stages, in a terminal


def _lines_of(console: Console) -> LogLines:
    """Return what prints plain lines on a console; on stderr the command's own."""
    return log_lines() if console is output.standard_error() else LogLines(console)


class _Line(ProgressColumn):
    """Draws a step in one line: its name, a bar, its counters, the time left, and what else fits.

    In a narrow terminal the bar goes first, then figures, then the middle of the name; counters and time stay.
    """

    def __init__(self, console: Console, time_left: Callable[[Task], str]) -> None:
        super().__init__(Column(no_wrap=True))
        self._console, self._time_left = console, time_left

    def render(self, task: Task) -> Text:
        """Return the line."""
        total = "?" if task.total is None else f"{task.total:,.0f}"
        unit = f" {task.fields['unit']}" if task.fields["unit"] else ""
        name = shown(task.description)
        sure = [f"{task.completed:,.0f}/{total}{unit}", self._time_left(task)]
        room = self._console.width - sum(cell_len(part) + _GAP for part in sure if part)
        named = min(cell_len(name), max(room, _SHORTEST_NAME))
        room -= named
        more = []
        for figure in task.fields["figures"]:
            if cell_len(figure) + _GAP <= room:
                more.append(figure)
                room -= cell_len(figure) + _GAP
        line = Text(cut_in_the_middle(name, named))
        if room >= _SHORTEST_BAR + _GAP:
            length = min(_LONGEST_BAR, room - _GAP)
            filled = round(length * min(1.0, task.completed / task.total)) if task.total else 0
            line.append(" " * _GAP)
            line.append("━" * filled, "bar.complete").append("─" * (length - filled), "bar.back")
        for part in filter(None, [*sure, *more]):
            line.append(" " * _GAP + part)
        return line


def cut_in_the_middle(text: str, width: int) -> str:
    """Return a text that takes at most `width` cells of a terminal: its beginning and its end."""
    if cell_len(text) <= width:
        return text
    head, tail = "", ""
    for first, last in zip(text, reversed(text), strict=True):
        if cell_len(head + first + tail) + 1 > width:
            break
        head += first
        if cell_len(head + last + tail) + 1 > width:
            break
        tail = last + tail
    return f"{head}…{tail}"


class _Bars(Progress):
    """Bars of steps. The time left is estimated over all updates of a step, as they may be minutes apart."""

    def __init__(self, console: Console) -> None:
        self._drawn_on = console  # looked at while the other is made
        super().__init__(
            _Line(console, lambda task: _time_left(task.fields["left"] or task.time_remaining, task.elapsed)),
            console=console,
            transient=True,
            redirect_stdout=False,  # rich would obey the escapes of what libraries print
            redirect_stderr=False,
            get_time=time.monotonic,
            speed_estimate_period=math.inf,
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        """Return as many bars as fit the terminal, and how many more there are."""
        tasks, room = list(self.tasks), max(2, self._drawn_on.height - _LINES_BESIDE)
        drawn = tasks if len(tasks) <= room else tasks[: room - 1]
        yield self.make_tasks_table(drawn)
        if len(drawn) < len(tasks):
            yield Text(f"and {len(tasks) - len(drawn)} more")

    def add(self, step: str) -> TaskID:
        """Add the bar of a step whose total is not known yet."""
        return self.add_task(step, total=None, unit=None, figures=(), left=None)

    def move(self, bar: TaskID, progress: StageProgress) -> StageProgress:
        """Move a bar, and return the progress with the seconds left; None where they are not known yet."""
        (task,) = (one for one in self.tasks if one.id == bar)
        if progress.done < task.completed or progress.unit != task.fields["unit"]:
            self.reset(bar)  # another count of the same step
        self.update(
            bar,
            completed=progress.done,
            total=progress.total or None,
            unit=progress.unit,
            figures=tuple(figures(progress)),
            left=progress.seconds_left,
        )
        left = task.time_remaining if progress.seconds_left is None else progress.seconds_left
        return replace(progress, seconds_left=None if left is None or math.isinf(left) else left)


def _time_left(seconds: float | None, elapsed: float | None) -> str:
    """Return the time left, or that since the step began where none is known."""
    if seconds is None or math.isinf(seconds):
        return f"{duration(elapsed or 0.0)} so far"
    return f"{duration(seconds)} left"


class StudyTime:
    """Estimates how long a study goes on, from the seconds of finished stages of the same kind.

    Attributes:
        labels: Of the stages that are to be made; the first word is the kind.
        parents: By label, the labels of the stages that each of them reads.
        at_once: How many are made at a time; where nobody knows, as many as were so far.
    """

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.parents: Mapping[str, Sequence[str]] = {}
        self.at_once = 1
        self._seconds: dict[str, list[float]] = {}
        self._at_work: dict[str, _Moving] = {}

    def started(self, label: str) -> None:
        """A stage begins."""
        self._at_work[label] = _Moving(time.monotonic())
        self.at_once = max(self.at_once, len(self._at_work))

    def progressed(self, label: str, seconds_left: float | None) -> None:
        """A stage at work takes so much longer; None: not known."""
        if label in self._at_work:
            self._at_work[label].left, self._at_work[label].updated = seconds_left, time.monotonic()

    def ended(self, label: str) -> None:
        """A stage is at work no more."""
        self._at_work.pop(label, None)

    def finished(self, label: str, seconds: float) -> None:
        """A stage is finished, now or in an earlier run; it took so long."""
        self._seconds.setdefault(_kind(label), []).append(seconds)
        self.ended(label)
        if label in self.labels:
            self.labels.remove(label)

    def seconds(self) -> float | None:
        """Return the seconds left; None: nothing is to be made, or of some kind no stage is finished."""
        usual = {kind: sum(took) / len(took) for kind, took in self._seconds.items()}
        if not self.labels or any(_kind(label) not in usual for label in self.labels):
            return None
        now = time.monotonic()
        waiting, ends = list(self.labels), {}
        for label, own in self._at_work.items():
            if label in waiting:
                waiting.remove(label)
                left = (
                    usual[_kind(label)] - (now - own.since)
                    if own.left is None
                    else own.left - (now - own.updated)
                )
                ends[label] = max(0.0, left)
        later = [Ahead(label, usual[_kind(label)], self.parents.get(label, ())) for label in waiting]
        return seconds_until_made(ends, later, self.at_once)

    def sentence(self) -> str:
        """Return the time left as a line of progress says it; empty where it is not known."""
        left = self.seconds()
        if left is None:
            return ""
        whole = 60 * math.ceil(left / 60) if left > 60 else left
        return f"about {duration(whole).removesuffix(' 0 s')} left"


@dataclass
class _Moving:
    """A stage at work: since when, and how long it takes as of when; in seconds."""

    since: float
    left: float | None = None
    updated: float = 0.0


def _kind(label: str) -> str:
    return label.partition(" ")[0]


@dataclass
class _AtWork:
    """The bar of a stage, and what lines say of it."""

    bar: TaskID
    step: Step


class ProgressWatcher(Watcher):
    """Draws a bar for the study and one for each stage at work; plain lines where stderr is no terminal.

    `name` is the study's.
    """

    def __init__(self, name: str = "study") -> None:
        self._name = name
        self._console = standard_error()
        self._lines = _lines_of(self._console)
        self._ahead = StudyTime()
        self._study = Progress(_Line(self._console, lambda _: self._ahead.sentence()), console=self._console)
        self._stages = self._study.add_task("study", total=None, visible=False, unit="stages", figures=())
        self._bars = _Bars(self._console)
        self._at_work: dict[str, _AtWork] = {}  # by label
        self._read = ""  # what is read before the first stage
        self._finished, self._total = 0, 0
        self.said: set[str] = set()  # notes: what holds for every model or cell is printed once
        self._open = ExitStack()

    def __enter__(self) -> ProgressWatcher:
        self._open.enter_context(self._lines.running(self._name))
        self._lines.at("preparing")
        if self._console.is_terminal:
            self._open.enter_context(
                Live(
                    Group(self._study, self._bars),
                    console=self._console,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._open.close()

    def preparing(self, step: str, done: int, total: int) -> None:
        """Move the bar of a data set that is read."""
        if step != self._read or step not in self._at_work:
            self._end(self._read)
            self._read = step
            self._begin(step)
        self.stage_progressed(StageProgress(done, total, stage=step))
        if total and done == total:
            self._end(step)

    def tokenizer_costs(self, data: str, costs: Mapping[str, LanguageCost]) -> None:
        """Draw what each language of a data set costs in tokens."""
        from lingraft.cli.output import print_table
        from lingraft.report.tables import cost_table

        print_table(cost_table(costs), f"What the tokenizer makes of {data}", self._console)

    def stages_ahead(self, labels: Sequence[str]) -> None:
        """Estimate the study's time left from these on."""
        self._ahead.labels = list(labels)
        self._lines.estimate = self._ahead.sentence

    def stages_read(self, parents: Mapping[str, Sequence[str]], at_once: int) -> None:
        """Estimate it by what waits for what."""
        self._ahead.parents, self._ahead.at_once = parents, at_once

    def planned(self, line: str) -> None:
        """Print what the stages ahead take."""
        self._print(line)

    def study_started(self, stages: int) -> None:
        """Show how many stages there are."""
        self._total = stages
        self._study.update(self._stages, total=stages, visible=True)
        self._end(self._read)
        self._say_what_is_kept()

    def stage_started(self, label: str) -> None:
        """Show a stage at work."""
        self._end(label)  # an attempt that was lost
        self._ahead.started(label)
        self._begin(label)

    def stage_progressed(self, progress: StageProgress) -> None:
        """Move a stage's bar."""
        label = progress.stage or next(reversed(self._at_work), "")
        own = self._at_work.get(label)
        if own is not None:
            progress = self._bars.move(own.bar, progress)
            own.step.progress, own.step.updated = progress, time.monotonic()
        self._ahead.progressed(label, progress.seconds_left)
        if len(self._at_work) > 1:
            self._say_several()
        else:
            self._lines.progressed(self._place(label), progress)

    def stage_ended(self, label: str) -> None:
        """Take the bar of a stage away."""
        self._ahead.ended(label)
        self._end(label)

    def stage_finished(self, label: str, seconds: float, reused: bool) -> None:
        """Move the study's bar on."""
        self._finished += 1
        self._ahead.finished(label, seconds)
        self._say_what_is_kept()
        self._study.update(self._stages, completed=self._finished)
        self._end(label)
        self._print(f"✓ {label}  " + ("(finished before)" if reused else f"{seconds:.0f} s"))

    def freeze_plan(self, label: str, plan: Sequence[FreezePlanRow]) -> None:
        """Draw the plan before training."""
        drawn = Table(title=Text(shown(f"What trains in {label}")), title_justify="left")
        drawn.add_column("part")
        for column in ("trained", "frozen"):
            drawn.add_column(column, justify="right")
        for row in plan:
            drawn.add_row(
                Text(shown(row.part)), f"{row.trainable_parameters:,}", f"{row.frozen_parameters:,}"
            )
        print_drawn(drawn, self._console)

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
        self._print(f"✗ {label} failed: {reason}", style="red")
        stack = stack_of(error)
        if stack is not None:
            self._print(stack)

    def _say_what_is_kept(self) -> None:
        count = (
            f"{self._finished} of {self._total}" if self._total else str(self._finished)
        )  # else nobody knows
        stopping.keeps(f"{count} stages are finished; {stopping.GOES_ON}")

    def _place(self, label: str) -> str:
        """The stage at work and its number; before the first one, what is read."""
        return f"stage {self._finished + 1} of {self._total}, {label}" if self._total else label

    def _begin(self, label: str) -> None:
        self._at_work[label] = _AtWork(self._bars.add(label), Step(label, time.monotonic()))
        self._say_where()
        if not self._console.is_terminal:
            self._print(f"  {label} ...")

    def _end(self, label: str) -> None:
        if (own := self._at_work.pop(label, None)) is not None:
            self._bars.remove_task(own.bar)
        self._say_where()

    def _say_where(self) -> None:
        """Let lines of progress say what is at work now."""
        if len(self._at_work) > 1:
            self._say_several()
        elif self._at_work:
            (own,) = self._at_work.values()
            self._lines.at(self._place(own.step.name))
            if own.step.progress is not None:
                self._lines.progressed(self._place(own.step.name), own.step.progress)
        else:
            self._lines.at(
                f"{self._finished} of {self._total} stages are done" if self._total else "preparing"
            )

    def _say_several(self) -> None:
        first, last = self._finished + 1, self._finished + len(self._at_work)
        numbers = f"stages {first} {'and' if last == first + 1 else 'to'} {last} of {self._total}"
        self._lines.at_several(numbers, [own.step for own in self._at_work.values()])

    def _print(self, text: str, style: str | None = None) -> None:
        print_message(text, style, self._console)


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
