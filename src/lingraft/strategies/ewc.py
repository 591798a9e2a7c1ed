"""EWC: pull each weight towards the start as strongly as Phase 1 needs it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lingraft.errors import StrategyError
from lingraft.strategies.base import ANCHORS_WITH_LORA, Anchor, Context, Need, Strategy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.data.encoded import EncodedExample

_FISHER = "fisher.safetensors"
_ELEMENTS_AT_ONCE = 1 << 22
_COPIES = 2
_ONE_ROW = 8 << 30  # bytes: activations, logits and their gradients of 1,024 tokens, and what is lost between


class Ewc(Strategy):
    """Pull each weight towards the start, as strongly as Phase 1's data need it (elastic weight consolidation).

    Adds strength / 2 * sum_i F_i (w_i - start_i)^2 to the loss, once per optimiser step. F is the diagonal of the
    empirical Fisher information of the data that must not be forgotten, at the weights that the phase starts from:
    the mean over examples of the squared gradient of an answer's log likelihood. It is divided by its mean over all
    weights, so that a strength means the same as l2_anchor's, which it is where F is the same everywhere.

    Cost: one forward and backward pass for every calibration example by itself; in training a copy of the weights, F in
    bf16, and a pass over them every step. F lies on disk at half the size of the weights in float32.

    Source: Kirkpatrick et al. 2017, arXiv 1612.00796. Relatives: l2_anchor, ssu.
    """

    kind: ClassVar[str] = "ewc"
    conflicts: ClassVar[dict[str, str]] = ANCHORS_WITH_LORA

    strength: float = Field(0.01, ge=0)
    """Factor of the penalty; 0: none."""
    tokens: int = Field(16384, ge=1)
    """Calibration tokens: of Phase 1's rows; where unknown of the set's `english`; else of the model's own making."""

    @property
    def uses(self) -> frozenset[Need]:
        """What stands for the data that must not be forgotten, where it is known."""
        return frozenset(("old_english",))

    @property
    def preparation(self) -> Mapping[str, object] | None:
        """The calibration's size; strengths share one Fisher."""
        return {"tokens": self.tokens} if self.strength > 0 else None

    def prepare(
        self, load: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, context: Context
    ) -> Mapping[str, object]:
        """Write the diagonal Fisher information, divided by its mean."""
        import torch

        from lingraft.models.compute import accumulated
        from lingraft.models.tensor_files import StoredTensor, write_tensors
        from lingraft.strategies.calibration import calibration_of

        calibration = calibration_of(self.kind, tokenizer, context, self.tokens)
        model = load()
        calibration.check(model, tokenizer)
        fisher = diagonal_fisher(model, calibration.rows, context)
        mean = sum(float(accumulated(one).sum()) for one in fisher.values()) / sum(
            one.numel() for one in fisher.values()
        )
        if not mean > 0:
            raise StrategyError("'ewc': no calibration example has a gradient, so no weight is important.")
        # On disk and in training 8 significant bits of a weight of a pull are enough, whatever is computed in.
        write_tensors(
            context.folder / _FISHER,
            [StoredTensor(name, torch.bfloat16, tuple(one.shape)) for name, one in sorted(fisher.items())],
            lambda stored: (
                (piece / mean).bfloat16().cpu()
                for piece in torch.split(fisher[stored.name].view(-1), _ELEMENTS_AT_ONCE)
            ),
        )
        return calibration.to_json() | {"mean": mean}

    def held_bytes(self, parameters: int, trained: int, width: int) -> int:  # noqa: ARG002
        """Return the size of the weights that the pull goes towards, and of their importance in bf16."""
        return 6 * trained

    def anchor(self, model: PreTrainedModel, context: Context) -> Anchor | None:  # noqa: ARG002
        """Return the weighted pull; None where its strength is 0."""
        if self.strength == 0:
            return None
        from safetensors.torch import load_file

        return Anchor(self.strength, load_file(context.states[self.kind] / _FISHER))


def diagonal_fisher(model: Any, rows: Sequence[EncodedExample], context: Context) -> dict[str, Tensor]:
    """Return the mean over examples of the squared gradients of their answers' summed log likelihood, by parameter.

    In float32: where the model is, or in the host's memory where an accelerator has no room for it (`_fits`).
    """
    from lingraft.models.loss import collate, supervised_loss

    parameters = dict(model.named_parameters())
    sums = _SquareSums(parameters, in_host=not _fits(model))
    handles = []
    for name, own in parameters.items():
        own.requires_grad_(True)

        def square(parameter: Any, name: str = name) -> None:
            sums.add(name, parameter.grad)
            parameter.grad = None  # one example's gradients are never in memory all at once

        handles.append(own.register_post_accumulate_grad_hook(square))
    try:
        for done, row in enumerate(rows, start=1):
            batch = {name: own.to(model.device) for name, own in collate([row]).items()}
            loss, _ = supervised_loss(model, batch, arithmetic=context.compute.autocast())
            loss.backward()  # type: ignore[no-untyped-call]
            if context.on_progress is not None:
                context.on_progress(done, len(rows))
    finally:
        for handle in handles:
            handle.remove()
    return {name: own.div_(len(rows)) for name, own in sums.whole().items()}


def _fits(model: Any) -> bool:
    """Return whether the sums fit where the model is: on a GPU beside bf16 copies of its weights and one row."""
    import torch

    if model.device.type != "cuda":  # there is one memory, or nobody tells what is free
        return True
    sizes = [own.numel() for own in model.parameters()]
    free, _ = torch.cuda.mem_get_info(model.device)
    return bool(6 * sum(sizes) + 8 * max(sizes) + _ONE_ROW < free)


class _SquareSums:
    """Sums of squares of gradients, by parameter, in float32.

    A gradient goes into the host's memory by a copy beside the backward pass, and the processor adds it when it has
    arrived; at most _COPIES are on their way.

    Args:
        parameters: By name.
        in_host: Whether the sums lie in the host's memory; else where the parameters are.
    """

    def __init__(self, parameters: Mapping[str, Tensor], *, in_host: bool) -> None:
        import torch

        self._in_host = in_host
        self._sums = {
            name: torch.zeros(own.shape, dtype=torch.float32, device="cpu" if in_host else own.device)
            for name, own in parameters.items()
        }
        self._coming: deque[tuple[Tensor, Tensor, torch.Event]] = deque()

    def add(self, name: str, gradient: Tensor) -> None:
        """Add a gradient's squares; the gradient may be given up."""
        import torch

        if not self._in_host:
            self._sums[name].addcmul_(gradient, gradient)
            return
        pinned = torch.accelerator.is_available()
        here = torch.empty(gradient.shape, dtype=gradient.dtype, pin_memory=pinned)
        here.copy_(gradient, non_blocking=True)
        arrived = torch.Event(gradient.device)
        arrived.record()
        self._coming.append((self._sums[name], here, arrived))
        if len(self._coming) > _COPIES:
            self._take()

    def _take(self) -> None:
        own, here, arrived = self._coming.popleft()
        arrived.synchronize()
        own.addcmul_(here, here)

    def whole(self) -> dict[str, Tensor]:
        """Return the sums of all gradients that were added."""
        while self._coming:
            self._take()
        return self._sums
