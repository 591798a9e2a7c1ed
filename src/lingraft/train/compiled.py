"""Compiled decoder layers (`training.compile`): fewer passes over memory.

Elementwise work, norms and rotary positions are fused. Each decoder layer's forward pass is compiled by itself
(regional compilation), since all layers share the code: two graphs, for batches of one row and of several, serve all
lengths. Names of parameters, hooks and what wraps the model stay as they are, so checkpoints, strategies,
DistributedDataParallel and FSDP2 see no difference. Activation checkpointing is inside of a graph. Results differ by
rounding alone.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lingraft.errors import ConfigError, in_one_line
from lingraft.models.layers import decoder_layers
from lingraft.train.attention import LONGEST, is_grouped

PAYS: dict[str, float] = {"cpu": 2e14, "cuda": 1e17}
"""FLOPs of a phase from which `compile: auto` compiles, by kind of device; on others it does not.

On a processor compiling took 15 to 41 s for steps 1.25 times as fast: 2e14 FLOPs are 15 minutes at the 0.22 TFLOP/s of
two cores, of which it saves 3. On a card it takes about a minute: 1e17 FLOPs are 4 minutes of an H100 at 40 % of its
peak, or 2 million tokens of a model of 8 billion parameters. A phase is counted whole, so one that goes on after an
interruption is compiled where it was."""

_FEWEST_STEPS = 50
_BACKEND = "inductor"
_MOST_CHARACTERS = 300
_MOST_GRAPHS = 64  # of all kinds of layers (frozen ones, those with sliding windows, ...) together


def compiles(
    asked: Literal["auto"] | bool,
    device: torch.device,
    flops: Sequence[float] | None,
    noted: Callable[[str], None],
) -> bool:
    """Return whether a phase's layers are compiled: alike in all its processes, and when it goes on.

    Args:
        asked: `training.compile`.
        device: What trains.
        flops: Of each optimiser step of the whole phase; None: not known.
        noted: Receives a sentence where `auto` would compile and cannot.

    Raises:
        ConfigError: It was asked for, and this machine has no compiler.
    """
    if asked is False or (asked == "auto" and not _pays(device, flops)):
        return False
    check_compiler(asked, device)
    missing = missing_compiler(device)
    if missing is not None:
        noted(f"the model's layers are not compiled, which would be faster: {missing}")
    return missing is None


def check_compiler(asked: Literal["auto"] | bool, device: torch.device) -> None:
    """Refuse `compile: true` where this machine cannot compile, before anything is prepared.

    Raises:
        ConfigError: It cannot.
    """
    if asked is True and (missing := missing_compiler(device)) is not None:
        raise ConfigError(f"training.compile true: {missing} Or write `compile: false`.")


def _pays(device: torch.device, flops: Sequence[float] | None) -> bool:
    least = PAYS.get(device.type)
    return least is not None and flops is not None and sum(flops) >= least and len(flops) >= _FEWEST_STEPS


def missing_compiler(device: torch.device) -> str | None:
    """Return what is missing on this machine to compile for a device, and what to do; None: nothing."""
    if device.type != "cpu" and find_spec("triton") is None:
        return "torch.compile needs triton for this device, which is not installed (pip install triton)."
    default = "cl" if sys.platform == "win32" else "clang++" if sys.platform == "darwin" else "g++"
    compiler = os.environ.get("CXX", default)
    if shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler, and there is no {compiler!r}. Install one, or name it in CXX."
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if not headers.exists():
        return f"torch.compile needs Python's headers, and there is no {headers}. Install them (python3-dev)."
    return None


@contextmanager
def compiled_layers(model: nn.Module) -> Iterator[None]:
    """Run the decoder layers of `model` compiled inside; they are compiled at their first batches.

    Where attention on a processor goes another way for long rows (`train.attention`), batches of such rows run as they
    are: they would need graphs of their own.

    Raises:
        ConfigError: No decoder layers are found, or the layers' code cannot be compiled.
    """
    layers = decoder_layers(model)
    if not layers:
        raise ConfigError(
            f"training.compile: no decoder layers are found in {type(model).__name__}; write `compile: false`."
        )
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    compiled = torch.compile(_forward, dynamic=True, fullgraph=True, backend=_BACKEND)
    longest = LONGEST if is_grouped(model) else None

    def of(layer: nn.Module) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            length = hidden.shape[1]
            if not layer.training or length < 2 or (longest is not None and length > longest):
                return _forward(layer, *args, **kwargs)
            try:
                return compiled(layer, *args, **kwargs)
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                raise ConfigError(
                    f"training.compile: {type(layer).__name__} cannot be compiled; write `compile: false`. "
                    f"torch says: {in_one_line(error)[:_MOST_CHARACTERS]}"
                ) from error

        return forward

    # Not module.compile(): it would take the hooks into the graph, of FSDP2 as well. torch.compile(module) would rename
    # the parameters.
    for layer in layers:
        setattr(layer, "forward", of(layer))  # noqa: B010  # mypy lets nobody assign to a method
    try:
        # The limit is an error, not a silent way back to uncompiled layers.
        with (
            config.patch(recompile_limit=_MOST_GRAPHS, fail_on_recompile_limit_hit=True, optimize_ddp=False),
            warnings.catch_warnings(),
        ):
            # Dynamo looks at the gradients of all inputs, and torch uses what it deprecates itself.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
            yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a layer; FSDP2 gives it another class, with a forward of its own, after it was compiled."""
    return type(layer).forward(layer, *args, **kwargs)
