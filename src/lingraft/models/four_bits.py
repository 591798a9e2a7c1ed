"""Linear layers whose weights are held in 4 bits while adapters train: QLoRA's base, by bitsandbytes.

The weights that adapters are merged into are those of the files: what is held in 4 bits only computes.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lingraft.errors import StrategyError

if TYPE_CHECKING:
    from torch import nn

    from lingraft.models.compute import Compute


def check_bitsandbytes() -> None:
    """Refuse 4 bits where bitsandbytes is not installed.

    Raises:
        StrategyError: With the line to type.
    """
    if find_spec("bitsandbytes") is None:
        raise StrategyError(
            "'lora': base: nf4 needs bitsandbytes, which is not installed: pip install 'lingraft[qlora]', or leave "
            "`base` out."
        )


def hold_in_four_bits(model: nn.Module, names: Collection[str], compute: Compute) -> None:
    """Put layers with weights in NF4 in the place of a model's linear ones, on the device that computes.

    Weights on the meta device are only marked, so that `parameter_count` and `are_in_four_bits` know them.

    Each block of 64 weights has a scale, and these are held in 8 bits (double quantisation): 0.52 bytes for a weight.

    Args:
        model: Changed in place.
        names: Of its linear layers.
        compute: Its arithmetic is that of the layers' products.

    Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314.
    """
    import torch
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    device = compute.device
    if device.type != "cpu":  # of several processes each has its own
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
    for name in names:
        old: Any = model.get_submodule(name)
        if old.weight.is_meta:
            old.weight.quant_state = SimpleNamespace(shape=old.weight.shape)
            continue
        with torch.device("meta"):  # its weights come from the old layer
            new: Any = Linear4bit(  # type: ignore[no-untyped-call]
                old.in_features,
                old.out_features,
                bias=old.bias is not None,
                compute_dtype=compute.arithmetic,
                quant_type="nf4",
            )
        new.bias = old.bias
        weight: Any = Params4bit(old.weight.data, quant_type="nf4", module=new)
        new.weight = weight._quantize(device)
        new.train(old.training)
        place, _, own = name.rpartition(".")
        setattr(model.get_submodule(place), own, new)


def are_in_four_bits(model: nn.Module) -> bool:
    """Return whether a model has layers of `hold_in_four_bits`."""
    return any(map(is_in_four_bits, model.parameters()))


def is_in_four_bits(parameter: Any) -> bool:
    """Return whether a parameter is one of `hold_in_four_bits`."""
    return getattr(parameter, "quant_state", None) is not None


def parameter_count(parameter: Any) -> int:
    """Return how many weights a parameter stands for: of one in 4 bits twice its bytes."""
    return int(parameter.quant_state.shape.numel() if is_in_four_bits(parameter) else parameter.numel())
