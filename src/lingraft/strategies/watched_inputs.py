"""Sums of squares of what goes into the columns of a model's matrices while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lingraft.errors import StrategyError

# The products that are watched, and where the tokens and the weight stand in their calls.
_OPERANDS: Mapping[Any, tuple[tuple[int, str], tuple[int, str]]] = {
    torch.nn.functional.linear: ((0, "input"), (1, "weight")),
    torch.addmm: ((1, "mat1"), (2, "mat2")),
    torch.mm: ((0, "input"), (1, "mat2")),
    torch.matmul: ((0, "input"), (1, "other")),
    torch.Tensor.matmul: ((0, "self"), (1, "other")),
}


class WatchedInputs(TorchFunctionMode):
    """A context in which products of tokens and weights sum the squares of what goes into each column.

    The products are watched themselves, not modules: an expert's weights are a slice of a stack, a router's weight
    belongs to no linear layer.

    Args:
        parameters: By name, the matrices [out, in] and stacks [E, out, in] to watch; also [in, out] and [E, in, out],
            which their products tell.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._parameters = parameters
        self.real = torch.zeros(0)
        """Of the batch that runs [B, L]: 1 where a token is, 0 where a row was filled up."""
        self._squares: dict[str, Tensor] = {}  # [in], or [E, in]
        self._turned: set[str] = set()
        self._met: set[str] = set()
        self._places: dict[int, tuple[str, tuple[int, ...]]] = {}  # by address: the matrix there
        # An input and its sums: q, k and v read the same one, gate and up as well.
        self._last: list[Tensor] = []
        for name, parameter in parameters.items():
            experts = parameter.shape[0] if parameter.dim() == 3 else 1
            for expert in range(experts):
                matrix = parameter[expert] if parameter.dim() == 3 else parameter
                self._places[matrix.data_ptr()] = (name, (expert,) if parameter.dim() == 3 else ())
            shape = (*parameter.shape[:-2], parameter.shape[-1])
            self._squares[name] = torch.zeros(shape, dtype=torch.float64)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _OPERANDS:
            given, weight = (
                args[place] if place < len(args) else kwargs[name] for place, name in _OPERANDS[function]
            )
            name, expert = self._places.get(weight.data_ptr(), ("", ()))
            if name and weight.dim() == 2:  # a whole stack begins where its first matrix does
                self._add(name, expert, given, weight, linear=function is torch.nn.functional.linear)
        return function(*args, **kwargs)

    def _add(
        self, name: str, expert: tuple[int, ...], given: Tensor, weight: Tensor, *, linear: bool
    ) -> None:
        """Add the squares of what is multiplied with a matrix to its columns' sums."""
        stored = self._parameters[name][expert]
        # GPT-2's layers and gpt-oss's experts multiply by W as it lies there, Falcon's by W.T.
        turned = not linear and (weight.shape, weight.stride()) == (stored.shape, stored.stride())
        if turned and name not in self._turned:
            self._turned.add(name)
            self._squares[name] = torch.zeros(self._parameters[name].shape[:-1], dtype=torch.float64)
        self._met.add(name)
        if not self._last or self._last[0] is not given:
            tokens = given.reshape(-1, given.shape[-1]).float().square()
            if len(tokens) == self.real.numel():  # else some of a row that has no filling
                tokens *= self.real.to(given.device).reshape(-1, 1)  # no product: autocast would round it
            self._last = [given, tokens.sum(dim=0).cpu().double()]
        self._squares[name][expert] += self._last[1]

    def check(self) -> None:
        """Refuse a matrix that no token has met.

        Raises:
            StrategyError: There is one, by name.
        """
        unmet = sorted(set(self._squares) - self._met)
        if unmet:
            raise StrategyError(
                f"'ssu': {unmet[0]} is multiplied with no token as a linear layer's weight is, so its columns "
                "cannot be scored. Take another strategy, such as half."
            )

    def scores(self, total: int) -> dict[str, Tensor]:
        """Return ||W[:, j]||_2 * (sum of x_j^2) / `total` by parameter, float64; see `ssu` for the shapes."""
        found = {}
        for name, sums in self._squares.items():
            weight = self._parameters[name].detach().float()
            norm = weight.norm(dim=-1 if name in self._turned else -2).cpu().double()
            own = norm * sums / total
            if name in self._turned:
                own = own[..., None]
            elif weight.dim() == 3:
                own = own[:, None, :]
            found[name] = own
        return found
