"""The stage `similarity`: DES between the instructions of two data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from lingraft.data.example import Example
from lingraft.similarity.embedding_similarity import dataset_embedding_similarity
from lingraft.similarity.encoders import Encoder
from lingraft.stage import MEASURE_LIBRARIES, Json, StageSpec, Work, Workplace, libraries, machine


@dataclass(frozen=True, eq=False)
class Similarity(StageSpec):
    """DES of two sets.

    Needs: not estimated; the encoder's own memory, whatever the size of the sets.

    Attributes:
        first: Rows of the first set.
        first_identity: What decides them.
        second: Rows of the second set.
        second_identity: What decides them.
        encoder: Encodes the instructions.
    """

    kind: ClassVar[str] = "similarity"

    first: Sequence[Example]
    first_identity: Mapping[str, Json]
    second: Sequence[Example]
    second_identity: Mapping[str, Json]
    encoder: Encoder

    @property
    def inputs(self) -> Mapping[str, Json]:
        """Both sets and the encoder."""
        return {
            "first": self.first_identity,
            "second": self.second_identity,
            "encoder": self.encoder.name,
            "libraries": libraries(MEASURE_LIBRARIES),
        }

    def work(self, place: Workplace) -> Work:
        """Encode both sets and compare them."""
        found = dataset_embedding_similarity(
            self.first, self.second, self.encoder, on_progress=partial(place.progressed, unit="instructions")
        )
        return Work(found.to_json(), machine())
