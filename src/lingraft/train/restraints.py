"""What strategies ask of the weights while they train: pulls towards the start, frozen cells, rates of their own.

All of it acts once per optimiser step, on whole gradients, and knows nothing of strategies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lingraft.strategies.base import TrainingRules

_PIECE = 1 << 18  # numbers that are pulled at once


class Restraints:
    """Pulls and frozen cells of one training.

    Memory: for each pulled parameter a copy of it; for frozen cells their mask, and where weight decay would move them
    a copy of the parameter.

    Args:
        model: At the start: pulls go towards its weights, and frozen cells keep them.
        rules: What is asked.
        restore: Whether the optimiser moves cells that have no gradient (weight decay does).
    """

    def __init__(self, model: nn.Module, rules: TrainingRules, *, restore: bool) -> None:
        self._parameters = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        self._anchors = rules.anchors
        self._cells = {name: own for name, own in rules.frozen_mask.items() if name in self._parameters}
        pulled = {name for anchor in rules.anchors for name in self._pulled_by(anchor)}
        kept = pulled | (set(self._cells) if restore else set())
        self._restore = restore
        self._start = {name: self._parameters[name].detach().clone() for name in sorted(kept)}
        self._here: dict[tuple[str, int], Tensor] = {}

    def _pulled_by(self, anchor: Any) -> set[str]:
        names = set(self._parameters)
        if anchor.names is not None:
            names &= anchor.names
        return names if anchor.importance is None else names & set(anchor.importance)

    @torch.no_grad()
    def change_gradients(self) -> None:
        """Add each pull's gradient, strength * importance * (w - start); then take frozen cells' gradients away."""
        for number, anchor in enumerate(self._anchors):
            for name in self._pulled_by(anchor):
                parameter = self._parameters[name]
                if parameter.grad is None:
                    continue
                importance = (
                    None if anchor.importance is None else self._placed(name, number, anchor.importance[name])
                )
                start = self._placed(name, -1, self._start[name])
                _pull(parameter, start, importance, parameter.grad, anchor.strength)
        for name, cells in self._cells.items():
            gradient = self._parameters[name].grad
            if gradient is not None:
                gradient.mul_(self._placed(name, -2, ~cells).to(gradient.dtype))

    @torch.no_grad()
    def restore_cells(self) -> None:
        """Give frozen cells the bits that they began with, where the optimiser moves cells without a gradient."""
        if not self._restore:
            return
        for name, cells in self._cells.items():
            parameter = self._parameters[name]
            start, where = self._placed(name, -1, self._start[name]), self._placed(name, -3, cells)
            parameter.copy_(torch.where(where, start, parameter))

    def _placed(self, name: str, kind: int, tensor: Tensor) -> Tensor:
        """Return a tensor on its parameter's device: the Trainer moves the model after this object is made."""
        device = self._parameters[name].device
        if tensor.device == device and kind != -2:
            return tensor
        if (name, kind) not in self._here:
            self._here[name, kind] = tensor.to(device)
        return self._here[name, kind]


def _pull(
    parameter: Tensor, start: Tensor, importance: Tensor | None, gradient: Tensor, strength: float
) -> None:
    """Add a pull's gradient to `gradient`, a piece at a time: a temporary copy of an embedding costs twice the time."""
    used = [one for one in (parameter, start, gradient, importance) if one is not None]
    used = [one[None] if one.ndim == 0 else one for one in used]
    rows = max(1, _PIECE * len(used[0]) // parameter.numel())
    for here, there, own, *weights in zip(*(torch.split(one, rows) for one in used), strict=True):
        way = here.float() - there.float()
        for weight in weights:
            way.mul_(weight)
        own.add_(way.to(own.dtype), alpha=strength)


def split_by_rate(optimizer: torch.optim.Optimizer, model: Any, factors: Mapping[str, float]) -> None:
    """Give parameters whose learning rate has a factor groups of their own; schedules keep the ratios."""
    if not factors:
        return
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        parts: dict[float, list[Tensor]] = {}
        for parameter in group["params"]:
            parts.setdefault(factors.get(names[parameter], 1.0), []).append(parameter)
        groups += [
            {**group, "params": own, "lr": group["lr"] * factor} for factor, own in sorted(parts.items())
        ]
    optimizer.param_groups[:] = groups
