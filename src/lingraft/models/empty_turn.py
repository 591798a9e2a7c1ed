"""The beginning of a user's turn that nobody has filled: a chat model continues it with a prompt of its own.

Source: Magpie, arXiv 2406.08464, which samples instructions from aligned models this way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lingraft.data.chat_format import chat_format
from lingraft.data.example import Message
from lingraft.data.special_tokens import special_tokens
from lingraft.errors import ModelError
from lingraft.models.generation import Ending

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "LingraftUserTurn"  # stands where the user's words would; no template holds it, and none changes it


def empty_user_turn(tokenizer: PreTrainedTokenizerBase, answer: Ending) -> tuple[tuple[int, ...], Ending]:
    """Return the tokens of a conversation up to where the user's first words stand, and what ends these words.

    A template that begins with a system prompt of its own keeps it. The end is the token that the template puts
    after a user's words; where that is no special token, the text of its next line. The tokens that end an answer end
    a prompt too: a model that stops there has said all.

    Args:
        tokenizer: With the model's chat template.
        answer: What ends the model's answers.

    Raises:
        ModelError: The template refuses a single user turn, does not show the user's words once and unchanged, or puts
            nothing before them.
    """
    rendered = chat_format(tokenizer).prompt([Message("user", _MARK)])
    before, found, after = rendered.partition(_MARK)
    closing = after.strip()
    # Tokenizers join a space to the word after it: the model writes both.
    opening, closing_ids = _ids(before.removesuffix(" "), tokenizer), _ids(closing, tokenizer)
    if not found or _MARK in after or not opening:
        raise ModelError(
            f"{tokenizer.name_or_path}: its chat template does not show where a user's words begin and end, so no "
            "prompts can be sampled from the model; give prompts."
        )
    if set(closing_ids[:1]) & special_tokens(tokenizer):
        return opening, Ending(answer.tokens | set(closing_ids[:1]))
    return opening, Ending(answer.tokens, (closing.split("\n", 1)[0],))


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    return tuple(int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"])
