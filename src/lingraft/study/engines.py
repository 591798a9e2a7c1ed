"""What makes the stages of a plan: this process, several of this machine (`study.pool`), or Ray (`study.ray_engine`).

An engine is given stages whose parents are done and says which of them are settled; it decides nothing. Whether a stage
is done is read from the store, by whoever asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from lingraft import stopping
from lingraft.errors import ProcessLostError
from lingraft.stage import StageSpec
from lingraft.study.schedule import Node, Share


class LostError(ProcessLostError):
    """The process or the node that made a stage is gone; what it had saved stays."""


@dataclass(frozen=True)
class Settled:
    """How one attempt at a stage ended.

    Attributes:
        stage: The stage.
        error: Why it is not made; None: it is published in the store.
        where: Who made it, such as `worker 2` or `node 10.0.0.3, process 4711`; empty: this process.
        may_pass: Whether another attempt can end otherwise: its process died, or a connection broke. The executor makes
            those again, as often as `--retries` says.
    """

    stage: StageSpec
    error: Exception | None = None
    where: str = ""
    may_pass: bool = False


def say_saved(said: Sequence[tuple[StageSpec, str]]) -> None:
    """Set what the sentence of a stop says was saved: of each stage what its process said, where that is anything."""
    found = [(stage, what) for stage, what in said if what]
    if len(found) == 1:
        stopping.saved(found[0][1])
    elif found:
        stopping.saved("; ".join(f"{stage.label}: {what}" for stage, what in found))


class Engine(Protocol):
    """Makes stages. A context: at its end none of its processes is left; on a stop they save first.

    A signal is only noted inside (`stopping.finish_first`): `wait` hands it on, waits until what is at work is saved,
    and raises `Stopped`.
    """

    @property
    def room(self) -> int | None:
        """How many more stages it takes now; None: any number, as it queues them by itself."""

    @property
    def node(self) -> Node:
        """The machine on which a stage is made; of several the largest."""

    @property
    def cards(self) -> int:
        """How many accelerators all machines have together."""

    @property
    def memory_bytes(self) -> int | None:
        """What the stages at work may hold together of the machine's own memory; None: it sees to that by itself."""

    def submit(self, stage: StageSpec, share: Share, *, with_artefacts: bool) -> None:
        """Take a stage, whose parents are done and have their artefacts.

        Args:
            stage: The stage.
            share: What it gets; see `schedule`.
            with_artefacts: Artefacts that `keep` has discarded are made again.
        """

    def wait(self, seconds: float) -> list[Settled]:
        """Return what is settled, as soon as anything is, or nothing after `seconds`.

        Raises:
            Stopped: A signal asked for it; what was at work is saved.
        """

    def __enter__(self) -> Engine:
        """Return the engine."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        """End its processes, whatever they do."""
