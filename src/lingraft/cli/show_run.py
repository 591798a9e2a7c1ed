"""`lingraft show run`: how far a run is, what is made where, what failed and what waits, from its folder alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingraft import stopping
from lingraft.cli.options import JsonOption
from lingraft.cli.output import print_drawn, print_json, result_console, shown
from lingraft.errors import EXIT_ANSWER_IS_NO, EXIT_DONE, ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from lingraft.study.status import AtWork, RunStatus, StageState, StageStatus

_SECONDS_BETWEEN_LOOKS = 2.0
_MOST_FAILED, _MOST_NAMED = 10, 3
_WIDEST_HOST = 16
_LEAST_NAME = 16
_GAP = 2


def show_run(
    run: Annotated[Path, typer.Argument(help="A run's folder, such as runs/quickstart.")],
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Follow the run until it ends; elsewhere than in a terminal by lines."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Print how far a run is: stages done, at work and where, failed and why, and the time left.

    Reads the run folder alone, also of a run on other machines, one that was stopped, or one whose process is gone;
    nothing is written, and no process is asked.

    With --watch the exit code says how the run ended: 0 done, 1 stopped, or some stages failed.
    """
    stopping.keeps("the run does not need it, and goes on")
    if watch and json:
        raise ConfigError("--json: goes without --watch, which goes on and on; leave one of the two out.")
    from lingraft.cli.log_lines import log_lines
    from lingraft.config.paths import user_path
    from lingraft.study.status import status_of

    folder = user_path(str(run))
    found = status_of(folder)
    if json:
        from lingraft.records import to_json

        print_json(to_json(found))
        return
    console = result_console()
    if not watch:
        print_drawn(picture(found, console.width), console)
        return
    log_lines().is_silent = True
    try:
        is_drawn = console.is_terminal and not console.is_dumb_terminal
        found = _redraw(folder, found, console) if is_drawn else _tell(folder, found, console)
    finally:
        log_lines().is_silent = False
    raise typer.Exit(EXIT_DONE if found.state == "done" else EXIT_ANSWER_IS_NO)


def picture(status: RunStatus, width: int, height: int | None = None) -> Text:
    """Return how far a run is, as lines of at most `width` characters.

    Args:
        status: How far it is.
        width: Of the terminal.
        height: Most lines; None: as many as there are.
    """
    from rich.text import Text

    head = [f"{shown(status.run)}: {_state_of(status)}", *_time_of(status)]
    failed = _failed_lines(status, width)
    tail = ["", *failed] if failed else []
    tail += _waiting_lines(status, 0 if height is not None else _MOST_NAMED)
    tail += [f"! {shown(one)}" for one in status.remarks]
    room = None if height is None else max(1, height - len(head) - len(tail) - 3)
    lines = [*head, *_work_lines(status, width, room), *tail]
    if height is not None and len(lines) > height:
        lines = [*lines[: height - 1], "..."]
    text = Text()
    for number, line in enumerate(lines):
        style = {"✗": "red", "!": "yellow"}.get(line[:1], "bold" if number == 0 else "")
        text.append(line, style)
        text.append("\n" if number + 1 < len(lines) else "")
    return text


def _state_of(status: RunStatus) -> str:
    """Return the state of a run with its counts."""
    if not status.stages:
        is_looking = status.state == "under way"
        return (
            "under way; it looks at its tasks and data"
            if is_looking
            else "not begun, or still reading its data"
        )
    needed = len(status.stages) - status.count("not needed")
    parts = [f"{status.count('done'):,} of {needed:,} stages done"]
    words: dict[StageState, str] = {
        "under way": "at work",
        "lost": "lost",
        "failed": "failed",
        "waiting": "waiting",
    }
    for state, word in words.items():
        if count := status.count(state):
            parts.append(f"{count:,} {word}")
    ended = {"failed": "ended", "not begun": "not begun"}.get(status.state, status.state)
    return f"{ended}, {', '.join(parts)}"


def _time_of(status: RunStatus) -> list[str]:
    """Return a line about the time left; none where nothing is ahead."""
    if status.state not in ("under way", "stopped") or not status.stages:
        return []
    at_once = f", {status.at_once} at a time" if status.at_once > 1 else ""
    unknown = ", ".join(status.unknown)
    if status.seconds_left is None:
        return ["time left: not known yet"]
    about = _short(status.seconds_left)
    if unknown:
        return [f"at least {about} left{at_once} (not known yet of: {unknown})"]
    return [f"about {about} left{at_once}"]


def _work_lines(status: RunStatus, width: int, room: int | None) -> list[str]:
    """Return a table of the stages at work; of more than `room`, how many more there are."""
    from rich.cells import cell_len

    from lingraft.cli.progress import cut_in_the_middle

    if not status.at_work:
        return []
    title = "At work" if status.state == "under way" else "Stopped in"
    chosen = (
        status.at_work if room is None or len(status.at_work) <= room else status.at_work[: max(1, room - 1)]
    )
    rows = [(f"{one.kind} {one.name}".strip(), *_figures_of(one, status)) for one in chosen]
    rows.insert(0, (title, "where" if any(row[1] for row in rows) else "", "how far", "time"))
    columns = [[str(shown(row[number])) for row in rows] for number in range(4)]
    widths = [max(map(cell_len, column)) for column in columns]
    others = sum(own + _GAP for own in widths[1:] if own)
    widths[0] = min(widths[0], max(_LEAST_NAME, width - others))
    lines = [""]
    for row in zip(*columns, strict=True):
        parts = [cut_in_the_middle(text, own) for text, own in zip(row, widths, strict=True)]
        padded = [part + " " * (own - cell_len(part)) for part, own in zip(parts, widths, strict=True) if own]
        lines.append((" " * _GAP).join(padded).rstrip())
    if len(chosen) < len(status.at_work):
        lines.append(f"and {len(status.at_work) - len(chosen)} more")
    return lines


def _figures_of(own: AtWork, status: RunStatus) -> tuple[str, str, str]:
    """Return where a stage is made, how far it is, and its time."""
    from lingraft.cli.progress import cut_in_the_middle

    host = own.host.partition(".")[0] or own.host  # the machines of a cluster share their domain
    where = f"{cut_in_the_middle(host, _WIDEST_HOST)} {own.process}" if host else ""
    now, far = own.progress, "begun"
    if now is not None:
        unit = now.unit or ("" if now.loss is None else "steps")
        of = f"/{now.total:,}" if now.total else ""
        far = f"{now.done:,}{of} {unit}".strip()
    if own.lost_since is not None:
        return where, far, f"lost since {_clock(own.lost_since)}"
    if status.state == "under way" and now is not None and now.seconds_left is not None:
        return where, far, f"{_short(now.seconds_left)} left"
    return where, far, f"{_short(own.seconds)} so far"


def _short(seconds: float) -> str:
    """Return a time without seconds, where it is more than a minute."""
    from lingraft.cli.log_lines import duration

    return duration(60 * round(seconds / 60) if seconds >= 60 else seconds).removesuffix(" 0 s")


def _clock(seconds: float) -> str:
    """Return a time of the day, with the day where that is another one."""
    try:
        at = datetime.fromtimestamp(seconds).astimezone()
    except (OverflowError, ValueError, OSError):  # whoever wrote it
        return "?"
    is_today = at.date() == datetime.now().astimezone().date()
    return f"{at:%H:%M}" if is_today else f"{at:%Y-%m-%d %H:%M}"


def _failed_lines(status: RunStatus, width: int) -> list[str]:
    """Return why stages failed, those with one reason together, and what failed before and is made again."""
    by_reason: dict[tuple[str, str], list[StageStatus]] = {}
    for stage in status.stages:
        if stage.reason is not None:
            again = "failed" if stage.state == "failed" else f"failed before, {stage.state} now"
            by_reason.setdefault((again, stage.reason), []).append(stage)
    lines = []
    for (again, reason), stages in list(by_reason.items())[:_MOST_FAILED]:
        first = next((one for one in stages if one.log is not None), stages[0])
        attempts = f", {first.failures} attempts" if first.failures > 1 else ""
        more = f", and {len(stages) - 1} more by the same" if len(stages) > 1 else ""
        lines.append(f"✗ {shown(f'{first.kind} {first.name}')} {again}{attempts}{more}:")
        lines += _wrapped(shown(reason), width)
        if first.log is not None:
            lines.append(f"    log: {shown(str(Path(status.run) / first.log))}")
    if len(by_reason) > _MOST_FAILED:
        lines.append(f"✗ and {len(by_reason) - _MOST_FAILED} more reasons (--json has all)")
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    indent = "    "
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _waiting_lines(status: RunStatus, most: int) -> list[str]:
    """Return what waits, by kind, and the names of the first ones; at most `most` of them."""
    waiting = [one for one in status.stages if one.state == "waiting"]
    if not waiting:
        return []
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(one.kind for one in waiting).items())
    named = [f"  {shown(f'{one.kind} {one.name}')}" for one in waiting[:most]]
    more = [f"  and {len(waiting) - most:,} more"] if 0 < most < len(waiting) else []
    return ["", f"Waiting: {kinds}", *named, *more]


def _is_over(status: RunStatus) -> bool:
    """Return whether nothing more will happen; a run that has not begun may begin."""
    return status.state not in ("under way", "not begun")


def _redraw(folder: Path, found: RunStatus, console: Console) -> RunStatus:
    """Draw the run again and again in place until it ends; return how it ended."""
    from rich.live import Live

    from lingraft.study.status import status_of

    with Live(
        picture(found, console.width, console.height),
        console=console,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
        vertical_overflow="crop",
    ) as live:
        while not _is_over(found):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            found = status_of(folder)
            live.update(picture(found, console.width, console.height), refresh=True)
        live.update(picture(found, console.width), refresh=False)
    return found


def _tell(folder: Path, found: RunStatus, console: Console) -> RunStatus:
    """Print a line for whatever changes until the run ends; return how it ended."""
    from lingraft.cli.output import print_message
    from lingraft.study.status import status_of

    def say(lines: Sequence[str]) -> None:
        for line in lines:
            print_message(f"{datetime.now().astimezone():%H:%M:%S} {line}", console=console)

    say([f"{found.run}: {_state_of(found)}", *_time_of(found)])
    while not _is_over(found):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        before, found = found, status_of(folder)
        changes = _changes(before, found)
        say(changes)
        if changes and not _is_over(found):
            say([", ".join([_state_of(found), *_time_of(found)])])
    say([f"{found.run}: {_state_of(found)}"])
    return found


def _changes(before: RunStatus, now: RunStatus) -> list[str]:
    """Return a line for each stage that is in another state, or made anew, than before."""
    from lingraft.cli.log_lines import duration

    then = {one.path: one for one in before.stages}
    attempts = {one.path: one.attempt for one in before.at_work}
    by_path = {one.path: one for one in now.at_work}
    lines = [f"! {one}" for one in now.remarks if one not in before.remarks]
    for stage in now.stages:
        old, own = then.get(stage.path), by_path.get(stage.path)
        name = f"{stage.kind} {stage.name}"
        is_new = old is None or old.state != stage.state
        if (
            stage.state == "under way"
            and own is not None
            and (is_new or own.attempt != attempts.get(stage.path))
        ):
            lines.append(f"  {name}" + (f" on {own.host}, process {own.process}" if own.host else ""))
        elif stage.state == "done" and is_new:
            lines.append(f"✓ {name}" + ("" if stage.seconds is None else f"  {duration(stage.seconds)}"))
        elif stage.state == "failed" and is_new:
            log = "" if stage.log is None else f" (log: {Path(now.run) / stage.log})"
            lines.append(f"✗ {name} failed: {stage.reason}{log}")
        elif stage.state == "lost" and is_new:
            since = "" if own is None or own.lost_since is None else f" since {_clock(own.lost_since)}"
            lines.append(f"! {name}: who makes it gives no sign of life{since}")
        if old is not None and stage.failures > old.failures and stage.state not in ("failed", "done"):
            lines.append(f"! {name} failed and is made again: {stage.reason}")
    return lines
