"""How a run was made: date, command, versions and machine of each invocation, in `made.jsonl` of the run folder.

It lies outside of what is compared: two equal runs have other dates. A report shows it, and is shown around, so nothing
of it is secret: keys and home folders are taken out before it is written.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

from lingraft.append_log import AppendLog, rows_so_far
from lingraft.records import from_json, to_json

MADE: Final = "made.jsonl"
_LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "lm_eval", "numpy")
_IN_PYTHON = "lingraft.run_study(...), in Python"
_SECRET = r"(?:api[_-]?key|key|token|secret|password|passwd)"
_VALUE = r"""(?:"[^"\n]*"|'[^'\n]*'|[^\s'"&]+)"""
_SECRETS = (
    (re.compile(r"(//)[^/\s'\"]+@"), r"\1***@"),  # user and password of an address
    (re.compile(rf"([?&][^=&\s]*{_SECRET}=)[^&\s'\"]+", re.IGNORECASE), r"\1***"),
    (re.compile(rf"('(?:[\w-]+\.)*[\w-]*{_SECRET}=)[^'\n]+", re.IGNORECASE), r"\1***"),  # quoted by a shell
    (
        re.compile(
            rf"((?:^|[\s.'\"_-]){_SECRET}['\"]?[ \t]*[=:][ \t]*){_VALUE}", re.IGNORECASE | re.MULTILINE
        ),
        r"\1***",
    ),
    (re.compile(rf"(--[a-z-]*{_SECRET} ){_VALUE}", re.IGNORECASE), r"\1***"),
    (re.compile(r"\b(Bearer )(?=\S{8})[^\s'\"]+", re.IGNORECASE), r"\1***"),
    (
        re.compile(r"\b((?:sk|hf|gsk|gh[pousr]|github_pat|glpat|xoxb)[-_])[A-Za-z0-9_-]{8,}"),
        r"\1***",
    ),  # as services begin their keys
    (re.compile(r"\b(AKIA|AIza)[A-Za-z0-9_-]{12,}"), r"\1***"),
)
_HOME = re.compile(
    r"(?<![\w.~/])(?:/home/[^/\s'\"]+|/Users/[^/\s'\"]+|/root|[A-Za-z]:\\Users\\[^\\\s'\"]+)(?![\w.-])"
)

Outcome = Literal["done", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One call of `lingraft run`, or of `run_study`.

    Attributes:
        format: Version of this line.
        began: When the first stage could be made, in UTC, such as 2026-05-01T12:00:00+00:00.
        command: What was typed, without what is secret.
        lingraft: Its version.
        python: Python's version.
        libraries: Versions of the libraries that results depend on most, by name.
        system: Operating system and kind of machine.
        processor: Its model; empty: unknown.
        cores: Cores that this process may use.
        threads: Threads that torch computes with.
        memory_bytes: Of the machine; None: unknown.
        device: What computed: the accelerator's model, or `cpu`.
        processes: Processes that trained a phase together.
        engine: What made the stages, such as `2 workers` or `Ray (local)`; empty: this process, one after the other.
        ended: When it ended, as `began`; None: it is at work, or was killed.
        outcome: Done: nothing is left to be made; stopped: by a signal; failed: by an error, or a cell is. None as
            `ended`.
    """

    format: Literal[1] = 1
    began: str
    command: str
    lingraft: str
    python: str
    libraries: dict[str, str]
    system: str
    processor: str
    cores: int
    threads: int
    memory_bytes: int | None
    device: str
    processes: int
    engine: str = ""
    ended: str | None = None
    outcome: Outcome | None = None

    @property
    def day_and_minute(self) -> str:
        """When it began, such as 2026-05-01 12:00, in UTC."""
        return self.began[:16].replace("T", " ")


class Ending:
    """How an invocation ends; `failed` until its work says otherwise."""

    def __init__(self) -> None:
        self.outcome: Outcome = "failed"


@contextmanager
def noted_in(
    folder: Path, command: Sequence[str] | None, processes: int, engine: str = ""
) -> Iterator[Ending]:
    """Write into a run folder that it is worked on, and at the end how that ended.

    Args:
        folder: The run folder, whose lock is held.
        command: What was typed; None: it was called from Python.
        processes: That train a phase together.
        engine: See `Invocation`.

    Raises:
        OSError: It cannot be written.
    """
    import torch  # who only reads how a run was made needs none

    from lingraft.models.compute import compute_device, device_name

    own = Invocation(
        began=_now(),
        command=_IN_PYTHON if command is None else without_secrets(shlex.join(command)),
        lingraft=version("lingraft"),
        python=platform.python_version(),
        libraries=dict(_versions()),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_bytes=_memory(),
        device=device_name(compute_device()),
        processes=processes,
        engine=engine,
    )
    log = AppendLog(folder / MADE, _invocation)
    log.append([to_json(own)])
    ending = Ending()
    try:
        yield ending
    except BaseException as error:
        if not isinstance(error, Exception):
            ending.outcome = "stopped"
        with suppress(OSError):  # the error itself is what must be heard
            log.append([to_json(replace(own, ended=_now(), outcome=ending.outcome))])
        raise
    log.append([to_json(replace(own, ended=_now(), outcome=ending.outcome))])


def invocations(folder: Path) -> tuple[Invocation, ...]:
    """Return how a run folder was made, the oldest first; one of an earlier version has none."""
    try:
        rows = rows_so_far(folder / MADE, _invocation)
    except OSError:
        return ()
    return tuple({row.began: row for row in rows}.values())  # the line that has the end comes later


def without_secrets(text: str) -> str:
    """Return a text without keys, passwords and the names of home folders, as a page may show it to anyone."""
    for name, value in os.environ.items():
        if re.search(_SECRET, name, re.IGNORECASE) and len(value) >= len("password"):
            text = text.replace(value, "***")
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    return _HOME.sub("~", text)


def _invocation(value: object) -> Invocation:
    return from_json(Invocation, value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _versions() -> Iterator[tuple[str, str]]:
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            yield name, version(name)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
