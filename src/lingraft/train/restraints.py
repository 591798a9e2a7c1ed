"""What strategies ask of the weights while they train: pulls towards the start, frozen masks, rates of their own.

All of it acts once per optimiser step, on whole gradients, and knows nothing of strategies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lingraft.errors import VerificationError
from lingraft.models.weights import ModelWeights
from lingraft.strategies.base import Anchor, TrainingRules
from lingraft.train.sharding import beside, from_all, own_piece
from lingraft.train.stochastic_rounding import elements_at_once


class Restraints:
    """Pulls and frozen masks of one training. Of a divided model each process acts on its pieces.

    Memory: for each pulled parameter a copy of it, and its importance; for frozen elements their mask, and where weight
    decay would move them a copy of the parameter. All of it of this process's pieces, where they are.

    Args:
        model: At the start, placed and divided as it trains: pulls go towards its weights, and frozen elements keep
            them.
        rules: What is asked.
        restore: Whether the optimiser moves elements that have no gradient (weight decay does).
    """

    def __init__(self, model: nn.Module, rules: TrainingRules, *, restore: bool) -> None:
        self._parameters = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        self._anchors = rules.anchors
        self._restore = restore
        self._masks = {
            name: self._placed(name, own)
            for name, own in rules.frozen_mask.items()
            if name in self._parameters
        }
        self._importance = [
            {name: self._placed(name, (anchor.importance or {})[name]) for name in self._pulled_by(anchor)}
            if anchor.importance is not None
            else None
            for anchor in rules.anchors
        ]
        kept = {name for anchor in rules.anchors for name in self._pulled_by(anchor)}
        kept |= set(self._masks) if restore else set()
        self._start = {name: own_piece(self._parameters[name].detach()).clone() for name in sorted(kept)}

    def _pulled_by(self, anchor: Anchor) -> set[str]:
        names = set(self._parameters)
        if anchor.names is not None:
            names &= anchor.names
        return names if anchor.importance is None else names & set(anchor.importance)

    def _placed(self, name: str, tensor: Tensor) -> Tensor:
        """Return what lies over this process's piece of a parameter, where that is."""
        parameter = self._parameters[name]
        return beside(tensor, parameter).to(parameter.device)

    @torch.no_grad()
    def change_gradients(self) -> None:
        """Add each pull's gradient, strength * importance * (w - start); then take frozen elements' gradients away."""
        for anchor, importance in zip(self._anchors, self._importance, strict=True):
            for name in self._pulled_by(anchor):
                parameter = self._parameters[name]
                if parameter.grad is None:
                    continue
                used = [own_piece(parameter), self._start[name], own_piece(parameter.grad)]
                if importance is not None:
                    used.append(importance[name])
                used = [one[None] if one.ndim == 0 else one for one in used]
                # On a processor a part at a time: a temporary copy of an embedding costs twice the time.
                rows = max(1, elements_at_once(parameter.device) * len(used[0]) // max(1, used[0].numel()))
                for here, start, gradient, *weights in zip(
                    *(torch.split(one, rows) for one in used), strict=True
                ):
                    way = here.float() - start.float()
                    for weight in weights:
                        way.mul_(weight)
                    gradient.add_(way.to(gradient.dtype), alpha=anchor.strength)
        for name, mask in self._masks.items():
            gradient = self._parameters[name].grad
            if gradient is not None:
                own_piece(gradient).masked_fill_(mask, 0)

    @torch.no_grad()
    def restore_frozen(self) -> None:
        """Give frozen elements the bits that they began with, where the optimiser moves them without a gradient."""
        for name, mask in self._masks.items() if self._restore else ():
            parameter = own_piece(self._parameters[name])
            parameter.copy_(torch.where(mask, self._start[name], parameter))


@torch.no_grad()
def give_back_bits(model: nn.Module, frozen_mask: Mapping[str, Tensor], start: ModelWeights) -> None:
    """Give what a mask froze of a divided model the very bits of its start's files, where bf16 did not hold them."""
    for name, parameter in model.named_parameters():
        if name in frozen_mask:
            own = own_piece(parameter)
            before = beside(start.tensor(name), parameter).to(own)
            own.copy_(torch.where(beside(frozen_mask[name], parameter).to(own.device), before, own))


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


def frozen_hashes(model: nn.Module, frozen_mask: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the SHA-256 of the bytes of every parameter that is not trained, and of what a mask freezes of others.

    Of a divided parameter it is that of the processes' hashes of their pieces; every process must call this.
    """
    hashes = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            kept = own_piece(parameter).detach().cpu().contiguous()
        elif name in frozen_mask:
            mask = beside(frozen_mask[name].expand(parameter.shape), parameter)
            kept = own_piece(parameter).detach().cpu()[mask]
        else:
            continue
        hashes[name] = hashlib.sha256(kept.view(-1).view(torch.uint8).numpy().data).hexdigest()
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return hashes
    pieces = from_all(hashes)
    return {
        name: hashlib.sha256("".join(own[name] for own in pieces).encode()).hexdigest() for name in hashes
    }


def frozen_changed(before: Mapping[str, str], after: Mapping[str, str]) -> VerificationError:
    """Return what is raised where `frozen_hashes` before and after training differ."""
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return VerificationError(
        f"{len(changed)} frozen parameters changed in training, the first is {changed[0]!r}. This is a fault of "
        "lingraft or of a callback; the model must not be used."
    )
