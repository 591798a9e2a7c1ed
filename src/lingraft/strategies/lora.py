"""LoRA: train low-rank adapters in place of the weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from lingraft.errors import StrategyError, did_you_mean
from lingraft.models.four_bits import are_in_four_bits, check_bitsandbytes, hold_in_four_bits
from lingraft.models.layers import tied_parameters
from lingraft.strategies.base import Context, Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ALL_LINEAR = "all-linear"
ADAPTER = "adapter"  # the folder, in the stage's
_WEIGHTS = "adapter_model.safetensors"


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

    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: float | None = Field(None, gt=0)
    """Scale; null: twice the rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    target_modules: str | tuple[str, ...] = Field(_ALL_LINEAR, min_length=1)
    """Module names that get adapters; `all-linear`: every linear layer that text reaches but the head and
    routers that return more than their product."""

    base: Literal["full", "nf4"] = "full"
    """What the weights are held in while the adapters train: `full`: the precision of training; `nf4`: 4 bits (QLoRA).
    The adapters are merged into the weights of the files either way."""
    keep_adapter: bool = False
    """Keep the adapters beside the merged model too, unmerged, in PEFT's format (`adapter/` in the stage's folder)."""

    @property
    def identity(self) -> Mapping[str, object]:
        """The options; `base: full` is left out, as before there was another."""
        options = dict(super().identity)
        if self.base == "full":
            del options["base"]
        return options

    @property
    def can_be_divided(self) -> bool:
        """Not weights in 4 bits, which need a quarter of the memory as they are."""
        return self.base == "full"

    def check(self, names: Collection[str]) -> None:  # noqa: ARG002
        """Refuse 4 bits where bitsandbytes is absent."""
        if self.base == "nf4":
            check_bitsandbytes()

    def wrap(self, model: PreTrainedModel, context: Context) -> PreTrainedModel:
        """Return the model with adapters.

        Raises:
            StrategyError: No module has such a name, or it shares its weights with another one.
        """
        import torch
        from peft import LoraConfig, get_peft_model

        from lingraft.models.text_parts import reached_by_text

        # A list even of one name: PEFT takes a single string for a regular expression.
        targets: str | list[str] = _ALL_LINEAR
        if self.target_modules != _ALL_LINEAR:
            targets = (
                [self.target_modules] if isinstance(self.target_modules, str) else [*self.target_modules]
            )
        # Adapters of modules that text does not reach would never have a gradient.
        reached: dict[str, bool] = {}
        names = reached_by_text(model)
        for name, _ in model.named_parameters():
            module = name.rpartition(".")[0]
            reached[module] = reached.get(module, False) or name in names
        left_out = [module for module, is_reached in reached.items() if not is_reached]
        left_out += _choosing_modules(model)
        if isinstance(targets, list):
            _check_targets(model, targets, left_out)
            left_out = [name for name in left_out if any(_is_called(name, target) for target in targets)]
        own: Any = model
        if self.base == "nf4":
            check_bitsandbytes()
            hold_in_four_bits(model, _linear_layers(model, left_out), context.compute)
        with _adapters_made():
            torch.manual_seed(context.seed_of(self.kind))
            # PEFT makes adapters of the type of the weights under them: while it does, those seem to be float32.
            low = {one: one.data for one in model.parameters() if one.dtype == torch.bfloat16}
            for one in low:
                one.data = torch.zeros((), device=one.device).expand(one.shape)
            own.is_loaded_in_4bit = self.base == "nf4"  # PEFT asks
            try:
                wrapped: Any = get_peft_model(
                    model,
                    LoraConfig(
                        r=self.rank,
                        lora_alpha=2 * self.rank if self.alpha is None else self.alpha,
                        lora_dropout=self.dropout,
                        target_modules=targets,
                        exclude_modules=left_out or None,
                        task_type="CAUSAL_LM",
                    ),
                )
            except ValueError as error:
                raise StrategyError(f"'lora': target_modules {self.target_modules!r}: {error}") from None
            finally:
                for one, values in low.items():
                    one.data = values
                del own.is_loaded_in_4bit
        return wrapped  # type: ignore[no-any-return]

    def trainable(self, model: PreTrainedModel, context: Context) -> frozenset[str]:  # noqa: ARG002
        """Return the adapters' parameters."""
        return frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)

    def keep(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the adapters, to be put on the model that the phase started from, whose folder they name."""
        if not self.keep_adapter:
            return
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        wrapped: Any = model
        weights = get_peft_model_state_dict(wrapped)
        own = wrapped.peft_config["default"]
        base = own.base_model_name_or_path or None  # what the phase started from
        if base is not None and Path(base).is_dir():  # else a hub id, in a script of one's own
            base = str(Path(base).absolute())
        config = replace(own, base_model_name_or_path=base, inference_mode=True)
        config.save_pretrained(folder / ADAPTER)
        save_file({name: one.contiguous() for name, one in weights.items()}, folder / ADAPTER / _WEIGHTS)


def merge(model: PreTrainedModel, load: Callable[[], PreTrainedModel] | None = None) -> PreTrainedModel:
    """Return a trained model as a plain one, its adapters added to the weights; a plain one as it is.

    Args:
        model: The trained one.
        load: Returns the model that training started from, whose weights are taken where those of `model` have 4 bits.
    """
    trained: Any = model
    if not hasattr(trained, "merge_and_unload"):
        return model
    if are_in_four_bits(model):
        from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

        assert load is not None, "weights in 4 bits are no model to merge into"
        with _adapters_made():
            whole: Any = get_peft_model(load(), replace(trained.peft_config["default"], inference_mode=False))
        adapters = {name: one.float().cpu() for name, one in get_peft_model_state_dict(trained).items()}
        set_peft_model_state_dict(whole, adapters)
        trained = whole
    return trained.merge_and_unload()  # type: ignore[no-any-return]


@contextmanager
def _adapters_made() -> Iterator[None]:
    """Leave torch's random numbers outside as they are, and PEFT's warnings that mean nothing to a user unsaid."""
    import torch

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # It reads a name that transformers 5 has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        # It sees by itself how a weight is stored, and of a mixture's experts adapts the stacks that they are in.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        yield


def _linear_layers(model: PreTrainedModel, left_out: Collection[str]) -> list[str]:
    """Return the linear layers that are held in 4 bits: all but the head and what is left out of adapters."""
    from torch import nn

    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return [
        name
        for name, module in model.named_modules()
        if type(module).forward is nn.Linear.forward and module is not head and name not in left_out
    ]


def _choosing_modules(model: PreTrainedModel) -> list[str]:
    """Return the linear layers that return more than their product, as some routers do: PEFT cannot adapt them."""
    import torch
    from torch import nn

    def returns_a_product(module: nn.Linear) -> bool:
        weight = module.weight
        with torch.inference_mode():
            return isinstance(module(torch.zeros_like(weight[:1])), torch.Tensor)

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        if type(module).forward is not nn.Linear.forward and not returns_a_product(module)
    ]


def _is_called(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _check_targets(model: PreTrainedModel, targets: list[str], left_out: list[str]) -> None:
    """Refuse what PEFT would let pass: a name that fits nothing beside one that fits, and tied weights."""
    modules = [name for name, _ in model.named_modules()]
    tied = {name.rpartition(".")[0] for group in tied_parameters(model) for name in group}
    for target in targets:
        found = [name for name in modules if _is_called(name, target)]
        if not found:
            from torch import nn

            linear = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)}
            hint = did_you_mean(target, {*linear, _ALL_LINEAR})
            raise StrategyError(f"'lora': no module of the model is called {target!r}. {hint}")
        if set(found) <= set(left_out):
            raise StrategyError(
                f"'lora': {target!r} names only modules that text does not reach ({found[0]}), which cannot learn from "
                "it, or routers, to which no adapter can be added. Leave it out of `target_modules`."
            )
        if tied.intersection(found):
            raise StrategyError(
                f"'lora': {target!r} shares its weights with another module ({', '.join(sorted(tied))}), which "
                "merging would change too. Leave it out of `target_modules`."
            )
