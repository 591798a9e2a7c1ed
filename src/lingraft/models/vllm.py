"""Generation by vLLM, which the extra `vllm` installs; nothing heavy is imported before a generator is made."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingraft.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from lingraft.models.generation import Ending, Generated, Sampling, TokenPrompt


def check_vllm() -> None:
    """Refuse vLLM where it is not installed.

    Raises:
        ConfigError: Naming the extra.
    """
    if find_spec("vllm") is None:
        raise ConfigError(
            "backend 'vllm': vLLM is not installed. Install the extra (`pip install 'lingraft[vllm]'`, Linux with a "
            "GPU), or take the backend 'transformers'."
        )


class VllmGenerator:
    """Generation by vLLM; it batches by itself, a batch here is what is saved at once.

    Its seeds are per row too, but its kernels add up in an order that depends on the load: two runs may differ in
    rounding. It keeps its share of the GPU's memory until it is deleted.
    """

    batch_size = 256

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: torch.dtype,
        trust_remote_code: bool,
    ) -> None:
        check_vllm()
        from vllm import LLM

        self._model: Any = LLM(model=str(folder), dtype=dtype, trust_remote_code=trust_remote_code)
        self._tokenizer = tokenizer

    def continue_batch(
        self, prompts: Sequence[TokenPrompt], sampling: Sampling, ending: Ending
    ) -> list[Generated]:
        """Return one continuation per prompt."""
        from vllm import SamplingParams

        from lingraft.models.generation import finished

        common: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop_token_ids": sorted(ending.tokens),
            "stop": list(ending.texts) or None,
        }
        outputs = self._model.generate(
            [{"prompt_token_ids": list(one.ids)} for one in prompts],
            [SamplingParams(seed=one.seed, max_tokens=one.limit(sampling), **common) for one in prompts],
            use_tqdm=False,
        )
        return [finished(list(one.outputs[0].token_ids), ending, self._tokenizer) for one in outputs]
