"""Which stage begins first, and what of a machine it gets; engines start and place stages, this module starts nothing.

List scheduling by upward rank (Kwok and Ahmad 1999, ACM Computing Surveys 31, 406; HEFT's rank, Topcuoglu et al. 2002,
IEEE TPDS 13, 260): of the stages that can begin, the one with the longest way to the end of the study goes first, and
before it what needs several cards at once.
Functions of values alone: a run and the simulation of one (`benchmarks/scheduling.py`) call the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lingraft.models.compute import compute_device, compute_for
from lingraft.stage import Needs, StageSpec
from lingraft.study.plan import consumers_of
from lingraft.study.stages.evaluate import Evaluate
from lingraft.study.stages.replay import Replay
from lingraft.study.stages.train import Train

# Seconds of stages that nothing was measured of; only their order matters. Shares of a device's peak: training fills
# it, token by token a model's weights are read for every step of a batch.
_TRAINING_SHARE, _ANSWERING_SHARE = 0.35, 0.05
_PEAK = {"cpu": 1e11}  # FLOPs a second
_PEAK_OF_A_CARD = 1e15
_BYTES_PER_SECOND = 1e9  # of weights that are read, compared or written
_BYTES_PER_TOKEN = 4  # of text, roughly
_ITEM_TOKENS = 300  # that an item's prompt and answer have, roughly
ROUNDS = 8  # of stages that answer: half of the last one is idle, and more cards load the model more often
_LOOKED_AT = 64  # rows of a phase, for the length of all


@dataclass(frozen=True)
class Node:
    """One machine, or the largest of several.

    Attributes:
        cards: Accelerators that stages may use.
        cpus: Processor cores that they may.
        memory_bytes: Its own memory; None: not known.
        threads: With which a process computes where there is no accelerator.
    """

    cards: int
    cpus: int
    memory_bytes: int | None = None
    threads: int = 1


@dataclass(frozen=True)
class Share:
    """What of a machine, or of several, a stage gets.

    Attributes:
        cards: Accelerators; 0: it computes on the processor.
        cpus: Processor cores, at least 1.
        memory_bytes: Of the machine's own memory, for all processes; None: not estimated.
    """

    cards: int
    cpus: int
    memory_bytes: int | None


def share_of(stage: StageSpec, node: Node, cards: int | None = None) -> Share:
    """Return what a stage gets: a card for each of its processes, where there are any, and a core beside each.

    Processes that compute on the processor get as many cores as they have threads, at most all.

    Args:
        stage: The stage.
        node: The machine, the largest of several.
        cards: As `cards_for` says; None: a card for each of its processes.
    """
    needs = stage.needs
    if needs.device == "accelerator" and node.cards:
        own = max(cards or 0, needs.processes)
        per_process = None if needs.host_bytes is None else -(-needs.host_bytes // needs.processes)
        spread = needs.most_processes > needs.processes  # each loads a model of its own
        return Share(own, own, needs.host_bytes if per_process is None or not spread else own * per_process)
    threads = node.threads * needs.processes if needs.device == "accelerator" else 1
    memory = needs.memory_bytes if needs.host_bytes is None else needs.host_bytes
    return Share(0, max(1, min(node.cpus, threads)), memory)


def cards_for(needs: Needs, node: Node, cards: int, answering: int) -> int:
    """Return how many cards of one node a stage takes; 0: it computes on the processor.

    Who trains takes what `--processes` says. Who answers (evaluation, replay) takes one in a large study, and more, by
    powers of two, where one each would be over in fewer than `ROUNDS` rounds: the last round leaves cards idle, and a
    short one fewer of them. All of a run take as many: one that wanted two cards where others hold one each would wait
    until a second is free, and the first stay idle. Answers do not depend on the number of processes.

    Args:
        needs: Of the stage.
        node: The largest machine.
        cards: Of all machines together.
        answering: Stages of the run that answer, also those that are done by now.
    """
    if needs.device != "accelerator" or not node.cards:
        return 0
    most = min(needs.most_processes, node.cards)
    own = needs.processes
    while 2 * own <= most and own * answering < ROUNDS * cards:
        own *= 2
    return own


def is_held_back(cards: int, waiting: Sequence[int]) -> bool:
    """Return whether a stage waits although there is room for it: one before it in the order needs more cards.

    Else stages of one card would take every card that becomes free, and a training, which needs all cards of a node at
    once, would wait until none of them is left.

    Args:
        cards: That the stage takes; who computes on the processor never waits for others.
        waiting: Cards of the stages before it that could begin and have not.
    """
    return 0 < cards < max(waiting, default=0)


def fits_beside(own: int | None, others: Iterable[int | None], free: int | None) -> bool:
    """Return whether what a stage needs is free beside the needs of others; None: not estimated, or not limited."""
    return not own or free is None or own + sum(one or 0 for one in others) <= free


def ranks(stages: Sequence[StageSpec], seconds: Mapping[str, float]) -> dict[str, float]:
    """Return, by fingerprint, the seconds from a stage's beginning to the end of the longest path that follows it.

    Args:
        stages: In an order in which each stands after those that it reads.
        seconds: Of each, by fingerprint; of one that is missing 0.
    """
    readers = consumers_of(stages)
    found: dict[str, float] = {}
    for stage in reversed(stages):
        after = max((found[one.fingerprint] for one in readers[stage.fingerprint]), default=0.0)
        found[stage.fingerprint] = seconds.get(stage.fingerprint, 0.0) + after
    return found


def order(stages: Sequence[StageSpec], seconds: Mapping[str, float]) -> list[StageSpec]:
    """Return stages in the order in which they should begin, each after those that it reads.

    First what needs many cards at once, or leads to a stage that does: once single cards are taken for hours, a node
    is not free as a whole before all of them end. Of these the longest way to the end first (`ranks`); of equals the
    plan's order stays.
    """
    rank, readers = ranks(stages, seconds), consumers_of(stages)
    width: dict[str, int] = {}
    for stage in reversed(stages):
        own = stage.needs.processes if stage.needs.device == "accelerator" else 0
        width[stage.fingerprint] = max([own, *(width[one.fingerprint] for one in readers[stage.fingerprint])])
    return sorted(stages, key=lambda one: (-width[one.fingerprint], -rank[one.fingerprint]))


def estimated_seconds(stages: Sequence[StageSpec], finished: Mapping[str, float]) -> dict[str, float]:
    """Return about how long each stage takes, by fingerprint, to be compared with each other.

    A kind of which some are finished takes as long for as much work; the others are estimated from the model's FLOPs
    and the number of rows and items, and are scaled as the finished ones were.

    Args:
        stages: The stages.
        finished: By fingerprint, the seconds of those that are finished, where they are known.
    """
    guessed = {one.fingerprint: _guessed_seconds(one) for one in stages}
    took, would = defaultdict[str, float](float), defaultdict[str, float](float)
    for stage in stages:
        if finished.get(stage.fingerprint):
            for kind in (stage.kind, ""):
                took[kind] += finished[stage.fingerprint]
                would[kind] += guessed[stage.fingerprint]
    scale = {kind: took[kind] / would[kind] for kind in took if would[kind]}
    return {
        one.fingerprint: finished.get(one.fingerprint)
        or guessed[one.fingerprint] * scale.get(one.kind, scale.get("", 1.0))
        for one in stages
    }


def _guessed_seconds(stage: StageSpec) -> float:
    """Return the seconds of a stage that nothing was measured of: of FLOPs, else of the bytes that it reads."""
    if isinstance(stage, Train) and (shape := stage.job.shape) is not None:
        job, compute = stage.job, compute_for(stage.job.training.precision)
        rows = job.examples
        looked = range(0, len(rows), max(1, len(rows) // _LOOKED_AT))
        longest = job.training.max_length
        text = [sum(len(one.content.encode()) for one in rows[row].messages) for row in looked]
        length = sum(min(longest, own / _BYTES_PER_TOKEN) for own in text) / max(1, len(text))
        replayed = sum(float(getattr(part, "share", 0.0)) for part in job.composition.parts if part.mixes)
        tokens = job.training.epochs * len(rows) / max(0.1, 1 - replayed) * length
        flops = shape.training_flops(tokens, tokens * length, tokens / 2)
        peak = _PEAK.get(compute.device.type, _PEAK_OF_A_CARD) * stage.processes.count
        return flops / (peak * _TRAINING_SHARE)
    if isinstance(stage, Evaluate | Replay):
        items = stage.rows if isinstance(stage, Replay) else stage.questions.number_of_items
        peak = _PEAK.get(compute_device().type, _PEAK_OF_A_CARD)
        return 2.0 * stage.model.parameters * items * _ITEM_TOKENS / (peak * _ANSWERING_SHARE)
    needs = stage.needs
    return max(needs.memory_bytes or 0, needs.disk_bytes or 0) / _BYTES_PER_SECOND
