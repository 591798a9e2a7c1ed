"""Dataset Embedding Similarity (DES): how alike two data sets' instructions are.

Source: arXiv 2410.16006, Definition 1. The paper reports that it decides whether Phase 2 destroys Phase 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lingraft.data.example import UNDETERMINED_LANGUAGE, Example
from lingraft.data.example_table import columns_of
from lingraft.errors import DataError
from lingraft.similarity.encoders import Encoder

Vector = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class EmbeddingSimilarity:
    """DES of two data sets.

    Attributes:
        des: In [-1, 1]; 1: the mean instructions point the same way.
        n: Instructions encoded of each set.
        encoder: Its name; values of two encoders are not comparable.
    """

    des: float
    n: tuple[int, int]
    encoder: str


def dataset_embedding(texts: Sequence[str], encoder: Encoder) -> Vector:
    """Return e(D): the mean of the texts' embeddings, divided by its L2 norm; [d] float64.

    Raises:
        DataError: There are no texts, or their embeddings cancel to nothing.
    """
    if not texts:
        raise DataError("a data set without instructions has no embedding.")
    mean: Vector = encoder.encode(texts).astype(np.float64).mean(axis=0)
    norm = float(np.linalg.norm(mean))
    if norm == 0.0:
        raise DataError(f"the embeddings of {len(texts)} instructions by {encoder.name} cancel to zero.")
    return mean / norm


def dataset_embedding_similarity(
    first: Sequence[Example], second: Sequence[Example], encoder: Encoder
) -> EmbeddingSimilarity:
    """Return DES(D1, D2) = <e(D1), e(D2)> over the instructions (the user's turns, never the answers).

    Biased below 1 for small sets: two halves of one set of 500 give about 0.97, because each mean carries noise.

    Raises:
        DataError: A set is empty, or in a language that the encoder does not know.
    """
    for examples in (first, second):
        check_languages(examples, encoder)
    one, other = (
        dataset_embedding([e.instruction for e in examples], encoder) for examples in (first, second)
    )
    des = float(np.clip(one @ other, -1.0, 1.0))
    return EmbeddingSimilarity(des, (len(first), len(second)), encoder.name)


def check_languages(examples: Sequence[Example], encoder: Encoder) -> None:
    """Refuse examples in a language that the encoder does not know: it would return numbers all the same.

    Raises:
        DataError: Names the source, the language and the languages known.
    """
    if encoder.languages is None:
        return
    columns = columns_of(examples)
    for code in range(len(columns.languages)):
        example = examples[int(np.argmax(columns.language == code))]
        if example.language == UNDETERMINED_LANGUAGE:
            raise DataError(
                f"{example.source}: row {example.id!r} does not say its language, so whether the encoder "
                f"{encoder.name} knows it cannot be told. Give the data set `language:`, or its rows a `language` "
                "field (a BCP-47 tag such as es)."
            )
        if example.language.partition("-")[0].lower() not in encoder.languages:
            raise DataError(
                f"{example.source}: its rows are in {example.language!r}, which the encoder {encoder.name} does not "
                f"know (it knows {', '.join(sorted(encoder.languages))}). Take another `encoder`, such as labse, "
                "or leave des out of `measures`."
            )
