"""LoRA: train low-rank adapters in place of the weights."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lingraft.errors import StrategyError
from lingraft.strategies.base import Context, Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FREEZES_ALL = "LoRA already freezes every weight of the model, so freezing layers would change nothing"


class Lora(Strategy):
    """Train low-rank adapters in place of the weights; they are merged when the phase ends.

    W' = W + (alpha / rank) B A, with A [rank, in] random and B [out, rank] zero, so that training starts at the
    previous model. It usually wants a learning rate 5 to 10 times that of full fine-tuning.

    Cost: optimiser state and weight gradients for the adapters only (about 4 % of the parameters at rank 16 in a
    135M model); a step takes about as long as plain training's.

    Defaults: rank 16 and alpha twice the rank, common for instruction tuning. Source: arXiv 2106.09685; the paper's
    baseline. Relatives: freeze_random.
    """

    kind: ClassVar[str] = "lora"
    conflicts: ClassVar[dict[str, str]] = {"freeze_random": _FREEZES_ALL, "freeze_changed": _FREEZES_ALL}

    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: float | None = Field(None, gt=0)
    """Scale; null: twice the rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Module names that get adapters; `all-linear`: every linear layer but the output head."""

    def wrap(self, model: PreTrainedModel, context: Context) -> PreTrainedModel:
        """Return the model with adapters.

        Raises:
            StrategyError: No module has such a name.
        """
        import torch
        from peft import LoraConfig, get_peft_model

        targets = self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)
        if isinstance(targets, str) and targets != "all-linear":
            targets = [targets]  # PEFT takes a single string for a regular expression
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT reads a name that transformers 5 has renamed; it means nothing to a user of lingraft.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            torch.manual_seed(context.seed_of(self.kind))
            try:
                wrapped: Any = get_peft_model(
                    model,
                    LoraConfig(
                        r=self.rank,
                        lora_alpha=2 * self.rank if self.alpha is None else self.alpha,
                        lora_dropout=self.dropout,
                        target_modules=targets,
                        task_type="CAUSAL_LM",
                    ),
                )
            except ValueError as error:
                raise StrategyError(f"'lora': target_modules {self.target_modules!r}: {error}") from None
        return wrapped  # type: ignore[no-any-return]

    def trainable(self, model: PreTrainedModel, context: Context) -> frozenset[str]:  # noqa: ARG002
        """Return the adapters' parameters."""
        return frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
