"""DES: how alike the instructions of two phases are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from lingraft.measures.base import (
    FROM_PHASE_ONE,
    FROM_PREVIOUS,
    Column,
    Figure,
    Found,
    Instructions,
    Measure,
    Measured,
    MeasuredCell,
    Taken,
)
from lingraft.records import to_json
from lingraft.similarity.encoders import Encoder, load_encoder
from lingraft.stage import (
    MEASURE_LIBRARIES,
    FinishedStage,
    Json,
    StageSpec,
    Work,
    Workplace,
    libraries,
    machine,
)


class Des(Measure):
    """The dataset embedding similarity of the phases' instructions.

    The encoder is loaded where there is something to compare. Of a language that it does not know, and of a checkpoint
    whose instructions the study does not name, DES is null.

    Source: arXiv 2410.16006, Definition 1.
    """

    name: ClassVar[str] = "des"
    title: ClassVar[str] = "DES"
    meaning: ClassVar[str] = "DES: dataset embedding similarity of the phases' instructions"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("DES", "similarity of the instructions of Phase 1 and the last phase, -1 to 1", "des"),
        Column("corrected", "DES without the bias of small sets, with its 95 % interval", "corrected"),
    )
    phase_columns: ClassVar[tuple[Column, ...]] = (
        Column("DES to previous", "similarity of the instructions to the phase before", "des", FROM_PREVIOUS),
    )

    def __init__(self) -> None:
        self._encoder: Encoder | None = None

    def stages(self, cell: MeasuredCell) -> Sequence[Taken]:
        """Return a comparison with each start whose instructions are known and the encoder can read.

        Raises:
            ConfigError: The encoder is needed and cannot be had.
        """
        taken = []
        for phase in cell.phases:
            stages: dict[str, StageSpec] = {}
            reasons: dict[str, str] = {}
            for place, start in phase.starts.items():
                first, second = start.instructions, phase.instructions
                if first is None:
                    continue
                encoder = self._encoder = self._encoder or load_encoder(cell.study.encoder)
                reason = unknown_to(encoder, (first, second))
                if reason is not None:
                    reasons[place] = reason
                    continue
                label = f"{first.name} and {second.name}"
                label = label if cell.has_one_seed else f"{label} (seed {cell.seed})"
                stages[place] = Similarity(label, first, second, encoder)
            reason = reasons.get(FROM_PHASE_ONE)
            if FROM_PHASE_ONE in phase.starts and phase.starts[FROM_PHASE_ONE].instructions is None:
                reason = (
                    f"the instructions of {cell.study.phases[0].name!r}, a checkpoint, are unknown; name a data set "
                    "that stands for them (`instructions: SOURCE`)"
                )
            taken.append(Taken(stages, reason, tuple(reasons.values())))
        return taken

    def found(self, stage: FinishedStage) -> Found:
        """Return the paper's value, the corrected one with its interval, and the encoder."""
        result = stage.result
        corrected = Figure(result["corrected"], result["low"], result["high"])
        details = {"encoder": result["encoder"], "n": result["n"]}
        return Found({"des": Figure(result["des"]), "corrected": corrected}, details)

    def legend(self, measured: Sequence[Measured]) -> str:
        """Return the meaning, with the encoder."""
        found = (one for cell in measured for one in cell.found.values())
        encoder = next((one.details["encoder"] for one in found if isinstance(one.details, dict)), None)
        by = "" if encoder is None else f", by {encoder}"
        return f"{self.meaning}{by}; values of two encoders are not comparable."


def unknown_to(encoder: Encoder, sets: Sequence[Instructions]) -> str | None:
    """Return why the encoder cannot compare the sets' instructions, and what to write; None: it can."""
    from lingraft.similarity.embedding_similarity import unknown_languages

    found = {one.name: unknown for one in sets if (unknown := unknown_languages(one.languages, encoder))}
    if not found:
        return None
    where = " and ".join(f"{name!r} is in {', '.join(map(repr, tags))}" for name, tags in found.items())
    return (
        f"{where}, which the encoder {encoder.name} does not know; write another one, such as `encoder: labse` "
        "(pip install 'lingraft[encoders]')"
    )


@dataclass(frozen=True, eq=False)
class Similarity(StageSpec):
    """DES of two sets.

    Needs: not estimated; the encoder's own memory, whatever the size of the sets.

    Attributes:
        first: The first set.
        second: The second set.
        encoder: Encodes the instructions.
    """

    kind: ClassVar[str] = "similarity"

    first: Instructions
    second: Instructions
    encoder: Encoder

    @property
    def inputs(self) -> Mapping[str, Json]:
        """Both sets and the encoder."""
        return {
            "first": self.first.identity,
            "second": self.second.identity,
            "encoder": self.encoder.name,
            "libraries": libraries(MEASURE_LIBRARIES),
        }

    def work(self, place: Workplace) -> Work:
        """Encode both sets and compare them."""
        from lingraft.similarity.embedding_similarity import dataset_embedding_similarity

        found = dataset_embedding_similarity(
            self.first.rows,
            self.second.rows,
            self.encoder,
            on_progress=partial(place.progressed, unit="instructions"),
        )
        return Work(to_json(found), machine())
