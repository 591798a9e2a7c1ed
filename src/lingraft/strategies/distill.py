"""Self-distillation: on replayed rows, keep the next-token distribution of the model before the phase."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lingraft.strategies.base import Context
from lingraft.strategies.english_replay import EnglishReplay

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from lingraft.models.loss import OutputPenalty

_ROWS_AT_A_TIME = 64  # of logits in float32


class Distill(EnglishReplay):
    """Replay English rows, and keep on them the distribution of the model that the phase starts from.

    Mixes rows in as english_replay does, and adds to the loss weight * T^2 * KL(p_start || p) over the supervised
    tokens of all replayed rows, both softened by the temperature T. With `share: 0` it mixes in nothing and acts on
    what another strategy of the composition replays; where none does, it is plain training, which is reported.

    Cost: the replayed rows' training and a forward pass of the start model over them; that model in memory, 2 bytes per
    parameter where the phase computes in bf16.

    Source: Hinton et al. 2015, arXiv 1503.02531; Li and Hoiem 2016, arXiv 1606.09282 (learning without forgetting).
    Relatives: english_replay, which it is at weight 0; generative_replay.
    """

    kind: ClassVar[str] = "distill"

    weight: float = Field(1.0, ge=0)
    """Factor of the divergence; 0: none."""
    temperature: float = Field(1.0, gt=0)
    """Softens both distributions; above 1 unlikely tokens count more."""

    @property
    def holds_replayed(self) -> bool:
        """Unless its weight is 0, where it is english_replay."""
        return self.weight > 0

    def held_bytes(self, parameters: int, trained: int, width: int) -> int:  # noqa: ARG002
        """Return the size of the start model."""
        return width * parameters if self.weight > 0 else 0

    def output_penalty(self, context: Context) -> OutputPenalty | None:
        """Return the divergence; None where its weight is 0."""
        if self.weight == 0:
            return None
        return _Divergence(context, self.weight, self.temperature)


class _Divergence:
    def __init__(self, context: Context, weight: float, temperature: float) -> None:
        self._context = context
        self._weight = weight
        self._temperature = temperature
        self._teacher: Any = None

    def __call__(self, logits: Tensor, rows: Tensor, batch: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        import torch

        from lingraft.models.loss import replayed_part, token_losses

        has_replayed = bool(len(batch["replayed_rows"]))
        is_divided = self._context.load_divided is not None
        if not (has_replayed or is_divided):
            return logits.new_zeros((), dtype=torch.float32)
        if self._teacher is None:
            self._teacher = self._load(logits.device)
        with torch.no_grad():
            if not has_replayed:  # another process may have some, and needs this one's pieces
                self._teacher(input_ids=batch["input_ids"][:1, :1], use_cache=False)
                return logits.new_zeros((), dtype=torch.float32)
            teacher = token_losses(self._teacher, replayed_part(batch)).logits
        student = logits.index_select(0, batch["replayed_tokens"])
        parts = zip(torch.split(teacher, _ROWS_AT_A_TIME), torch.split(student, _ROWS_AT_A_TIME), strict=True)
        return torch.stack([soft_divergence(*part, self._temperature) for part in parts]).sum() * self._weight

    def _load(self, device: torch.device) -> PreTrainedModel:
        from lingraft.models.loading import load_model

        context = self._context
        if context.load_divided is not None:
            return context.load_divided(context.previous, device)
        teacher = load_model(
            context.previous, dtype=context.compute.held, trust_remote_code=context.trust_remote_code
        )
        return teacher.to(device)  # type: ignore[arg-type, no-any-return]


def soft_divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return the summed KL divergence in nats of [s, V] logits softened by a temperature, times its square."""
    from torch.nn import functional

    log_p = functional.log_softmax(teacher.float() / temperature, dim=1)
    log_q = functional.log_softmax(student.float() / temperature, dim=1)
    return functional.kl_div(log_q, log_p, reduction="sum", log_target=True) * temperature**2
