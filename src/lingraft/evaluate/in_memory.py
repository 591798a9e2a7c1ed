"""The harness's model interface over a model that is already in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lm_eval.models.huggingface import HFLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class InMemoryModel(HFLM):  # type: ignore[misc]
    """The harness's own Hugging Face model, with its bars off and each answer told to a callback.

    Args:
        model: Evaluated as it is.
        tokenizer: The model's own.
        batch_size: Requests generated or scored together; the harness sorts them by length.
        total: Answers in all, for the callback.
        on_progress: Called with the answers so far and in all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        total: int,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        # Sliding-window and long-context models say more than is useful; the harness cuts prompts on the left.
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal")
        self.cache_hook = _Counter(total, on_progress)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Keep the counter: the harness's answer cache is not used."""

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
