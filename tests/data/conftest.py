"""Small tokenizers of every kind that models have, made on the spot with the control tokens that a template uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerFast

CORPUS = [
    "Hello, how are you? I am well. Thank you! Which day is it? Monday. And then Tuesday.",
    "¿Cómo estás? Grüße aus Köln. L'été est là. 東京はどこですか。",
    "a b c d e f 0 1 2 3 < | i m _ e n d > / s [ I N S T ]",
]
BYTES = [f"<0x{number:02X}>" for number in range(256)]
Build = Callable[[Sequence[str]], Tokenizer]


def _byte_level(special: Sequence[str]) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=list(special)
        ),
    )
    return core


def _bpe_with_bytes(special: Sequence[str]) -> Tokenizer:
    """As Llama 2's: words marked by a leading sign that a normaliser writes, single bytes for what is not known."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=700, show_progress=False, special_tokens=["<unk>", *BYTES, *special]),
    )
    return core


def _unigram(special: Sequence[str]) -> Tokenizer:
    """As T5's or Gemma's predecessors': control tokens are pieces of the vocabulary, which plain text would find."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    core.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=150, show_progress=False, special_tokens=["<unk>", *special], unk_token="<unk>"
        ),
    )
    return core


def _word_piece(special: Sequence[str]) -> Tokenizer:
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(vocab_size=300, show_progress=False, special_tokens=["[UNK]", *special]),
    )
    return core


def _word_level(special: Sequence[str]) -> Tokenizer:
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.train_from_iterator(
        CORPUS, trainers.WordLevelTrainer(show_progress=False, special_tokens=["<unk>", *special])
    )
    return core


KINDS: dict[str, Build] = {
    "byte-level BPE": _byte_level,
    "BPE with byte fallback": _bpe_with_bytes,
    "Unigram": _unigram,
    "WordPiece": _word_piece,
    "WordLevel": _word_level,
}


def _build_tokenizer(
    template: str | None,
    special: Sequence[str | AddedToken],
    *,
    eos: str | None,
    kind: str = "byte-level BPE",
    ordinary: Sequence[str] = (),
    **options: Any,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer.

    Args:
        template: Its chat template.
        special: Its special tokens.
        eos: Which of them is its end token.
        kind: One of KINDS.
        ordinary: Added tokens that are not special.
        options: Passed on, such as `bos_token`.
    """
    core = KINDS[kind]([str(token) for token in special])
    core.add_special_tokens(
        [
            token if isinstance(token, AddedToken) else AddedToken(token, normalized=False, special=True)
            for token in special
        ]
    )
    core.add_tokens([AddedToken(token, normalized=False, special=False) for token in ordinary])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, **options)  # type: ignore[no-untyped-call]
    wrapped.chat_template = template
    wrapped.name_or_path = f"tiny {kind}"
    return wrapped


@pytest.fixture(scope="session")
def build_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """The function that makes them: `build_tokenizer(template, special, eos=..., kind=..., ordinary=...)`."""
    return _build_tokenizer
