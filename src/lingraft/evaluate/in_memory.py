"""The harness's model interface over a model that is already in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from lm_eval.models.huggingface import HFLM

from lingraft.data.chat import render_prompt
from lingraft.data.example import Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.data.example import Role


class InMemoryModel(HFLM):  # type: ignore[misc]
    """The harness's own Hugging Face model, with its bars off and each answer told to a callback.

    Args:
        model: Evaluated as it is.
        tokenizer: The model's own.
        batch_size: Requests generated or scored together; the harness sorts them by length.
        total: Answers in all, for the callback.
        on_progress: Called with the answers so far and in all.
        chat: Whether prompts go through the chat template, which then writes all special tokens: the tokenizer
            adds none, as in training.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        total: int,
        on_progress: Callable[[int, int], None] | None,
        *,
        chat: bool,
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            backend="causal",
            add_bos_token=False if chat else None,
        )
        self.cache_hook = _Counter(total, on_progress)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Keep the counter: the harness's answer cache is not used."""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the prompt exactly as training renders it, which a template that writes the date otherwise is not."""
        if not add_generation_prompt:  # an answer that the task has begun: training has no such prompts
            return str(super().apply_chat_template(chat_history, add_generation_prompt=False))
        turns = [Message(cast("Role", turn["role"]), turn["content"]) for turn in chat_history]
        return render_prompt(turns, self.tokenizer)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Answer; see HFLM."""
        answers: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return answers

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Score; see HFLM."""
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return scores


class _Counter:
    """Stands where the harness keeps its cache, which is told of every answer."""

    def __init__(self, total: int, on_progress: Callable[[int, int], None] | None) -> None:
        self._total, self._on_progress, self._done = total, on_progress, 0

    def add_partial(self, *_: Any) -> None:
        self._done += 1
        if self._on_progress is not None:
            self._on_progress(min(self._done, self._total), self._total)
