"""Generation by transformers' continuous batching: a paged cache, shared prefixes, CUDA graphs on cards.

A row that has ended makes room for the next one at once, so a batch may be as large as what is asked for; keys and
values take the memory that is free on the card. Greedy tokens are those of `TransformersGenerator` up to rounding. What
the library cannot do as we need it is left to that engine: rows that are drawn (it has one generator for all rows, so a
row's draws would depend on its neighbours), settings of the model's own that change greedy search, and architectures
without such a cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.utils import WorkloadHints

from lingraft.errors import ModelError
from lingraft.models.generation import (
    Ending,
    Generated,
    Sampling,
    TokenPrompt,
    TransformersGenerator,
    empty_cache,
    finished,
    generate,
)
from lingraft.models.token_ids import check_token_ids, embedding_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PAGE_TOKENS = 32  # on a processor, where the cache is as large as what is asked for needs
_STOP_LOOKS_BACK = 16  # tokens at the end of a row among which a stop text must begin
# What of a generation_config.json greedy search does not heed.
_UNHEEDED = frozenset(
    ("bos_token_id", "cache_implementation", "do_sample", "eos_token_id", "max_length", "max_new_tokens", "min_p",
     "pad_token_id", "temperature", "top_k", "top_p", "transformers_version", "typical_p", "use_cache")
)  # fmt: skip


class ContinuousGenerator:
    """Generation of a model in memory by `generate_batch`'s own manager, in the model's precision and on its device.

    Args:
        model: The model; left as it is.
        tokenizer: Its own.
        batch_size: Most rows at a time.
        own_defaults: Keep what its generation_config.json adds to greedy search, such as a repetition penalty.
        tokens_per_batch: As of `generate`, for rows that continuous batching cannot continue.
        noted: Called with a sentence where it cannot continue any.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        *,
        own_defaults: bool,
        tokens_per_batch: int,
        noted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._noted = noted
        self.batch_size = batch_size
        self._model, self._tokenizer, self._tokens = model, tokenizer, tokens_per_batch
        self._otherwise = TransformersGenerator(model, tokenizer, batch_size, own_defaults=own_defaults)
        own = model.generation_config.to_diff_dict() if own_defaults else {}
        heeded = {name for name, value in own.items() if value is not None and not name.startswith("_")}
        self._can = True
        if empty_cache(model) is None:
            self._fall_back("it keeps its states otherwise than by keys and values")
        elif heeded - _UNHEEDED:
            self._fall_back(f"its generation_config.json sets {', '.join(sorted(heeded - _UNHEEDED))}")
        self._rows = embedding_rows(model)

    def continue_batch(
        self, prompts: Sequence[TokenPrompt], sampling: Sampling, ending: Ending
    ) -> list[Generated]:
        """Return one continuation per prompt, in order.

        Raises:
            ModelError: A prompt has tokens that the model does not know, or the library fails.
        """
        if sampling.temperature > 0 or not self._can:
            return self._by_generate(prompts, sampling, ending)
        check_token_ids(
            (token for one in prompts for token in one.ids), self._rows, self._tokenizer, "a prompt"
        )
        found: dict[str, list[int]] = {}
        limits = [one.limit(sampling) for one in prompts]
        # Not in inference mode: the library computes in a thread of its own.
        with torch.no_grad(), self._manager(prompts, limits, ending) as manager:
            if manager is None:  # an architecture that it does not know
                self._fall_back("transformers does not know how to")
                return self._by_generate(prompts, sampling, ending)
            # Rows that begin alike follow each other, so that pages are shared.
            for place in sorted(range(len(prompts)), key=lambda row: prompts[row].ids, reverse=True):
                manager.add_request(
                    list(prompts[place].ids),
                    request_id=str(place),
                    max_new_tokens=limits[place],
                    eos_token_id=sorted(ending.tokens),
                    streaming=bool(ending.texts),
                )
            while len(found) < len(prompts):
                result = manager.get_result(timeout=1)
                if result is None:
                    if not manager.is_running():
                        raise ModelError(self._failed(manager.background_thread_status.fatal_error))
                elif result.error is not None:
                    raise ModelError(self._failed(result.error))
                elif result.request_id not in found:
                    said = list(result.generated_tokens)
                    if result.is_finished():
                        found[result.request_id] = said
                    elif self._has_stop(said, ending):
                        found[result.request_id] = said
                        manager.cancel_request(result.request_id)
        rows = (found[str(place)][: limits[place]] for place in range(len(prompts)))
        return [finished(row, ending, self._tokenizer) for row in rows]

    def _by_generate(
        self, prompts: Sequence[TokenPrompt], sampling: Sampling, ending: Ending
    ) -> list[Generated]:
        found: dict[int, Generated] = {}
        for batch in generate(self._otherwise, prompts, sampling, ending, tokens_per_batch=self._tokens):
            found |= batch
        return [found[place] for place in range(len(prompts))]

    def _fall_back(self, reason: str) -> None:
        self._can = False
        self._noted(
            f"the model's answers are not generated by continuous batching ({reason}), but by transformers' "
            "`generate`, which is slower on a card."
        )

    def _failed(self, reason: object) -> str:
        said = " ".join(str(reason).split())[:300]
        return f"continuous batching failed ({said}); take `backend: generate` (--backend generate)."

    def _has_stop(self, said: Sequence[int], ending: Ending) -> bool:
        back = _STOP_LOOKS_BACK + max(len(text.encode()) for text in ending.texts)
        end = str(self._tokenizer.decode(list(said[-back:]), skip_special_tokens=True))
        return any(text in end for text in ending.texts)

    @contextmanager
    def _manager(
        self, prompts: Sequence[TokenPrompt], limits: Sequence[int], ending: Ending
    ) -> Iterator[Any]:
        """Give the library's manager at work, or None where it does not take the model."""
        is_on_card = self._model.device.type == "cuda"
        lengths = [len(one.ids) for one in prompts]
        pages = sum(
            -(-(length + limit) // _PAGE_TOKENS) + 1 for length, limit in zip(lengths, limits, strict=True)
        )
        sizes: dict[str, Any] = {"page_size": _PAGE_TOKENS, "num_blocks": pages, "max_batch_tokens": 2048}
        config = ContinuousBatchingConfig(
            # What it would fetch from the hub is not taken; what is installed is.
            auto_switch_to_flash=is_on_card and find_spec("flash_attn") is not None,
            **({} if is_on_card else sizes),  # else by what is free
        )
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, max_new_tokens=max(limits), eos_token_id=sorted(ending.tokens), pad_token_id=0
        )
        hints = WorkloadHints(max(lengths), max(limits), len(prompts))
        untyped: Any = self._model
        own = untyped.generation_config
        log = logging.getLogger("ContinuousBatchingLogger")
        level = log.level
        log.setLevel(logging.CRITICAL)  # its errors are raised
        try:
            try:
                manager = untyped.init_continuous_batching(
                    generation_config=settings, continuous_batching_config=config, workload_hints=hints
                )
                manager.warmup()
            except (AttributeError, MemoryError, NotImplementedError, ValueError):  # as it refuses a model
                yield None
                return
            manager.start()
            try:
                yield manager
            finally:
                manager.stop(block=True, timeout=5, hard_stop=True)
                manager.destroy()
        finally:
            log.setLevel(level)
            untyped.generation_config = own
