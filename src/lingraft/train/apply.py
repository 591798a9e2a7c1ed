"""Strategies in a Trainer that a script made: transformers.Trainer, TRL's SFTTrainer, or a class of its own.

`mixed_rows` makes the rows before there is a trainer; `apply_strategies` does all else. The trainer keeps its loop, its
loss, its optimizer and its callbacks.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from lingraft.data.encoded import TokenArrays
from lingraft.data.given_rows import GivenRows
from lingraft.errors import StrategyError
from lingraft.models.compute import compute_for, machine_with
from lingraft.models.loading import load_model, load_tokenizer, model_content_hash
from lingraft.models.loss import collate, token_losses
from lingraft.models.weights import ModelWeights
from lingraft.records import fingerprint_of, write_json_atomically
from lingraft.strategies.base import Context, FreezePlanRow, Strategy, count_masked, freeze_plan
from lingraft.strategies.composition import Composition, composition_of
from lingraft.train.mixed_rows import REPLAYED, context_of
from lingraft.train.restrained import RestrainedTrainer
from lingraft.train.restraints import frozen_changed, frozen_hashes
from lingraft.train.sharding import beside, own_piece, whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IGNORED = -100  # label that no loss of transformers or TRL counts
_COMPARED = 1024  # elements of each weight that tell whether the model is the one that it is said to be


@dataclass(frozen=True, slots=True)
class AppliedStrategies:
    """What a trainer will do besides its own.

    Attributes:
        label: The strategies' names, joined by `+`.
        parts: What trains and what is frozen, part by part of the model.
        masked_parameters: Parameters that a frozen mask keeps inside of tensors that train.
        folder: Where prepared states and kept adapters lie.
    """

    label: str
    parts: tuple[FreezePlanRow, ...]
    masked_parameters: int
    folder: Path

    @property
    def trainable_parameters(self) -> int:
        """How many parameters train; those under a frozen mask are among them."""
        return sum(part.trainable_parameters for part in self.parts)

    @property
    def frozen_parameters(self) -> int:
        """How many do not."""
        return sum(part.frozen_parameters for part in self.parts)

    def __str__(self) -> str:
        masked = f", {self.masked_parameters:,} of them under a frozen mask" if self.masked_parameters else ""
        trained = f"{self.trainable_parameters:,} parameters train{masked}"
        return f"{self.label}: {trained}; {self.frozen_parameters:,} are frozen"


def apply_strategies(
    trainer: Any,
    strategies: object,
    *,
    previous: str | Path | None = None,
    base: str | Path | None = None,
    english: GivenRows = (),
    previous_data: GivenRows = (),
    seed: int = 0,
    folder: str | Path | None = None,
    trust_remote_code: bool = False,
) -> AppliedStrategies:
    """Let a trainer of your own train with strategies; call it once, before `trainer.train()`.

    What they prepare is prepared here; adapters are put on, parameters frozen. In training, pulls and frozen masks act
    on each optimiser step's whole gradients before they are clipped, and what a mask freezes gets its bits back after
    each step. When training ends, frozen bits are compared, and `trainer.model` becomes the phase's final model:
    adapters are merged and weights combined, in place, so `trainer.save_model()` writes it. Checkpoints that the
    trainer saved on the way hold the model as it trained.

    What was frozen before stays frozen. Rows that strategies mix in must be in the trainer's data already: see
    `mixed_rows`, which takes the same arguments.

    Cost: as the strategies' pages say, and of `distill` a forward and a backward pass of the replayed rows more, since
    the trainer's own loss is left as it is.

    Args:
        trainer: A transformers.Trainer of any class; it has not trained yet, and has no optimizer.
        strategies: One strategy or a list that is applied together, as in a study file: `"half"`,
            `["english_replay", {"ssu": {"share": 0.5}}, "l2_anchor"]`.
        previous: Folder or hub id of the model that the trainer starts from, for strategies that read its files. None:
            where the trainer's model says that it came from.
        base: Folder or hub id of the base model, which freeze_changed needs.
        english: English rows; ssu and ewc calibrate on them where there are no `previous_data`.
        previous_data: Phase 1's training rows; ssu and ewc calibrate on them.
        seed: Decides what is drawn: frozen layers, adapters, calibration rows.
        folder: Where prepared states are kept and found again, and adapters; None: `lingraft` in the trainer's
            `output_dir`.
        trust_remote_code: Run Python code that the models bring along.

    Raises:
        ConfigError: A strategy or option is unknown.
        StrategyError: They cannot be applied to this trainer; says why and what to do. It is left as it was.
        ModelError, DataError: A model or rows cannot be read.
    """
    composition = composition_of(strategies)
    if not isinstance(trainer, Trainer):
        raise StrategyError(
            f"apply_strategies takes a transformers.Trainer, such as TRL's SFTTrainer, not {type(trainer).__name__}."
        )
    _check_trainer(trainer)
    _check_parts(trainer, composition.parts)
    model: Any = trainer.model
    names = [name for name, _ in model.named_parameters()]
    composition.check(names)
    start: str | Path | None = None
    if any(_reads_start(part) for part in composition.parts):
        start = getattr(model, "name_or_path", "") if previous is None else previous
        if not start:
            raise StrategyError(
                f"{composition.label!r} reads the files of the model that training starts from, and the trainer's "
                "model does not say where they are: give previous=FOLDER."
            )
    place = Path(trainer.args.output_dir or "") / "lingraft" if folder is None else Path(folder)
    context = context_of(
        previous=start,
        base=base,
        english=english,
        previous_data=previous_data,
        seed=seed,
        folder=place,
        trust_remote_code=trust_remote_code,
        noted=lambda line: warnings.warn(line, stacklevel=3),
    )
    is_bf16 = trainer.args.bf16 or next(model.parameters()).dtype == torch.bfloat16
    context = replace(
        context, compute=compute_for("bf16" if is_bf16 else "float32", machine_with(trainer.args.device))
    )
    if start is not None:
        _check_start(model, context)
    for part in composition.parts:
        if "base" in part.needs and context.base is None:
            raise StrategyError(f"{part.kind!r} needs the base model: give base=FOLDER.")
    context = replace(context, states=_prepared_states(trainer, composition, context))

    allowed = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    wrapped: Any = composition.wrap(model, context)
    trainable = composition.trainable(wrapped, context)
    if wrapped is model:
        trainable &= allowed
        if not trainable:
            raise StrategyError(
                f"nothing is left to train: all that {composition.label!r} lets train was frozen before. Set "
                "requires_grad on it, or leave a strategy out."
            )
    rules = composition.rules(wrapped, context)
    for name, parameter in wrapped.named_parameters():
        parameter.requires_grad_(name in trainable)
    if wrapped is not model:
        trainer.model = trainer.model_wrapped = wrapped
        trainer.callback_handler.model = wrapped
    own = type(trainer)
    named_as_before = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    trainer.__class__ = type(own.__name__, (StrategyTrainer, own), named_as_before)
    assert isinstance(trainer, StrategyTrainer)
    # Which optimizers move what has no gradient is theirs to say: the masked elements always get their bits back.
    trainer.restrain(rules, restore=True)
    if rules.output_penalties:
        trainer._set_signature_columns_if_needed()
        read: Any = trainer._signature_columns  # transformers gives it no type
        read.append(REPLAYED)
        trainer.data_collator = _MarkingCollator(trainer.data_collator)
    trainer.add_callback(_Ending(trainer, composition, context))
    return AppliedStrategies(
        composition.label,
        freeze_plan(wrapped, trainable),
        count_masked(wrapped, trainable, rules.frozen_mask),
        place,
    )


class StrategyTrainer(RestrainedTrainer):
    """What a script's own trainer becomes, in front of its class: its loss, and what strategies add to it."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the trainer's own loss, in training with penalties on the outputs of replayed rows.

        They are divided as the loss is: by the supervised tokens of the optimiser step where the trainer counts them,
        else by those of the micro-batch.
        """
        replayed = inputs.pop(REPLAYED, None)
        before = dict(inputs)  # some trainers take the labels out
        result: Any = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        if replayed is None or not model.training or not bool(replayed.any()):
            return result
        penalty = self._penalty(self.accelerator.unwrap_model(model), before, replayed)
        if num_items_in_batch is None or self.loss_is_scaled_for_ga is False:
            penalty = penalty / (before["labels"][:, 1:] != _IGNORED).sum().clamp(min=1)
        else:
            penalty = penalty / num_items_in_batch
            # Gradients are averaged over processes, and each divides by the tokens of all.
            if self.args.average_tokens_across_devices:
                penalty = penalty * (self.accelerator.num_processes // self.get_tp_size())
        return (result[0] + penalty, *result[1:]) if return_outputs else result + penalty

    def _penalty(self, model: Any, inputs: Mapping[str, Any], replayed: Tensor) -> Tensor:
        """Return the sum of the penalties over the replayed rows' supervised tokens, in nats.

        These rows run through the model once more: a trainer's own loss need not make logits, and whoever makes them
        may keep them. They are padded on the right, whatever the trainer's collator does.
        """
        host = {name: inputs[name].cpu().numpy() for name in ("input_ids", "labels")}
        mask = inputs.get("attention_mask")
        real = np.ones(host["labels"].shape, bool) if mask is None else mask.bool().cpu().numpy()
        rows = [
            TokenArrays(
                host["input_ids"][row][real[row]], host["labels"][row][real[row]] != _IGNORED, replayed=True
            )
            for row in np.flatnonzero(replayed.cpu().numpy())
        ]
        batch = {name: own.to(replayed.device) for name, own in collate(rows).items()}
        losses = token_losses(model, batch)
        penalties = [penalty(losses.logits, losses.rows, batch) for penalty in self.rules.output_penalties]
        return torch.stack(penalties).sum()


class _MarkingCollator:
    """A trainer's own collator, whose batches say besides which of their rows were replayed."""

    def __init__(self, collator: Callable[..., Any]) -> None:
        self._collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self._collator(
            [{key: value for key, value in row.items() if key != REPLAYED} for row in rows]
        )
        if REPLAYED in rows[0]:
            batch[REPLAYED] = torch.tensor([bool(row[REPLAYED]) for row in rows])
        return batch


class _Ending(TrainerCallback):
    """Compares the frozen bits when training ends, and makes the phase's final model of the trained one."""

    def __init__(self, trainer: StrategyTrainer, composition: Composition, context: Context) -> None:
        self._trainer, self._composition, self._context = trainer, composition, context
        model: Any = trainer.model
        # FSDP2 makes its pieces when training begins; what others divide cannot be compared.
        self._frozen = {} if _is_sharded(trainer) else frozen_hashes(model, trainer.rules.frozen_mask)
        self._is_over = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Refuse a second training."""
        if self._is_over:
            raise StrategyError(
                f"{self._composition.label!r} was applied to one training, and that is over: make a new trainer."
            )
        if _has_pieces(self._trainer):
            model: Any = self._trainer.model
            self._frozen = frozen_hashes(model, self._trainer.rules.frozen_mask)

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Compare, keep, merge and combine."""
        self._is_over = True
        trainer, composition, context = self._trainer, self._composition, self._context
        model: Any = trainer.model
        after = frozen_hashes(model, trainer.rules.frozen_mask) if self._frozen else {}
        if after != self._frozen:
            raise frozen_changed(self._frozen, after)
        if any(_has(part, "wrap") for part in composition.parts):
            if trainer.accelerator.is_main_process:
                context.folder.mkdir(parents=True, exist_ok=True)
            model = composition.finish(model, context.folder)
            trainer.model = trainer.model_wrapped = model
            trainer.callback_handler.model = model
        if composition.combines:
            start = ModelWeights(context.previous, trust_remote_code=context.trust_remote_code)
            for name, parameter in model.named_parameters():
                if parameter.is_floating_point():
                    trained = whole(parameter).cpu().float()
                    combined = composition.combine(name, start.tensor(name).float(), trained)
                    own_piece(parameter).copy_(beside(combined, parameter))


def _has(part: Strategy, hook: str) -> bool:
    """Return whether a strategy has a hook of its own."""
    return getattr(type(part), hook) is not getattr(Strategy, hook)


def _reads_start(part: Strategy) -> bool:
    """Return whether a strategy reads the files of the model that training starts from."""
    return part.preparation is not None or part.combines or part.holds_replayed or "base" in part.needs


def _is_sharded(trainer: Trainer) -> bool:
    """Return whether the parameters of a trainer's model are divided between processes."""
    return bool(
        trainer.is_deepspeed_enabled
        or trainer.is_fsdp_enabled
        or trainer.is_fsdp_xla_enabled
        or trainer.is_distributed_loading_by_transformers
    )


def _has_pieces(trainer: Trainer) -> bool:
    """Return whether FSDP2 divides the parameters: each keeps its name, and every process has a piece of it."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    return bool(trainer.is_fsdp_enabled) and getattr(plugin, "fsdp_version", 1) == 2


def _check_trainer(trainer: Any) -> None:
    """Refuse a trainer to which no strategy can be applied."""
    args, model = trainer.args, trainer.model
    if isinstance(trainer, RestrainedTrainer):
        raise StrategyError("strategies were applied to this trainer already: name all of them in one list.")
    if trainer.model_init is not None:
        raise StrategyError(
            "the trainer makes its model anew (model_init) when it trains: give it the model itself."
        )
    if trainer.is_in_train or trainer.state.global_step > 0 or trainer.model_wrapped is not model:
        raise StrategyError("the trainer has trained already: apply strategies to a new one, before train().")
    if trainer.optimizer is not None or trainer.lr_scheduler is not None:
        raise StrategyError(
            "the trainer has an optimizer or scheduler already, made for the parameters that trained before: let the "
            "trainer make them (`optim`, `learning_rate`, `optimizer_cls_and_kwargs`)."
        )
    optimizer = str(getattr(args.optim, "value", args.optim))
    if any(word in optimizer.lower() for word in ("lomo", "layerwise")):
        raise StrategyError(
            f"optim {optimizer!r} moves weights in the backward pass, where no pull or mask can act: take "
            "another, such as adamw_torch_fused."
        )
    if args.torch_compile or any(name.startswith("_orig_mod.") for name, _ in model.named_parameters()):
        raise StrategyError(
            "the model is compiled (torch_compile): its parameters have other names, and what strategies change would "
            "compile it again. Leave torch_compile out."
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise StrategyError(
            "the model is quantised: its weights are codes, to which no strategy applies. Load it whole."
        )


def _check_parts(trainer: Any, parts: Sequence[Strategy]) -> None:
    """Refuse strategies that do not fit a trainer's model, processes, precision, loss or rows."""
    args = trainer.args
    if hasattr(trainer.model, "peft_config"):
        for part in parts:
            reason = part.conflicts.get("lora")
            if part.kind == "lora":
                reason = "the model has adapters already: give the trainer the model without them"
            elif part.combines:
                reason = "its adapters stay the trainer's: name 'lora' among the strategies instead, which merges them"
            if reason is not None:
                raise StrategyError(f"{part.kind!r} cannot be applied to a model with adapters: {reason}.")
    for part in parts:
        if not part.can_be_divided:
            raise StrategyError(
                f"{part.kind!r}: base: nf4 is for phases that lingraft trains, which load the model for it: leave "
                "`base` out in a script of your own."
            )
    for part in parts if _is_sharded(trainer) else ():
        if part.holds_replayed or _has(part, "wrap"):
            raise StrategyError(
                f"{part.kind!r} needs whole tensors, and this trainer divides its parameters (DeepSpeed, FSDP or a "
                "device mesh): train on processes that each hold the model (torchrun alone)."
            )
        acts = any(_has(part, hook) for hook in ("frozen_mask", "learning_rates", "anchor"))
        if (acts or part.combines) and not _has_pieces(trainer):
            raise StrategyError(
                f"{part.kind!r} acts on parameters by name, and this trainer (DeepSpeed, FSDP 1 or a device mesh) "
                'divides them without their names: take FSDP 2 (fsdp=True, fsdp_config={"version": 2}), or processes '
                "that each hold the model (torchrun alone)."
            )
    for part in parts:
        if args.fp16 and _has(part, "anchor"):
            raise StrategyError(
                f"{part.kind!r} adds to gradients, which fp16 scales up: take bf16=True, or float32."
            )
    is_packed = bool(getattr(args, "packing", False) or getattr(args, "padding_free", False))
    for part in parts:
        if part.holds_replayed and trainer.label_smoother is not None:
            raise StrategyError(
                f"{part.kind!r} keeps a distribution that label_smoothing_factor flattens: set that to 0."
            )
        if part.holds_replayed and is_packed:
            raise StrategyError(
                f"{part.kind!r} acts on replayed rows, which packing and padding_free join with others: set both to "
                "False."
            )
        is_needed = part.holds_replayed or (part.mixes and not is_packed)  # packed rows lose their columns
        if is_needed and REPLAYED not in _columns(trainer.train_dataset):
            raise StrategyError(
                f"{part.kind!r} mixes rows in before there is a trainer, and this one's rows have no column "
                f"{REPLAYED!r}: make it with train_dataset=lingraft.mixed_rows(rows, strategies, ...)."
            )


def _columns(rows: Any) -> frozenset[str]:
    """Return the columns of a trainer's data set, as far as it says."""
    named = getattr(rows, "column_names", None)
    if named is None and hasattr(rows, "__getitem__") and hasattr(rows, "__len__") and len(rows):
        named = rows[0] if isinstance(rows[0], Mapping) else None
    return frozenset(named or ())


def _check_start(model: Any, context: Context) -> None:
    """Refuse a model that is not the one in the files that strategies will read."""
    from_files = ModelWeights(context.previous, trust_remote_code=context.trust_remote_code)
    for own_name, parameter in model.named_parameters():
        if parameter.is_meta:  # its values come from the first process, which compares them
            continue
        name = own_name.removeprefix("base_model.model.").replace(".base_layer.", ".")  # PEFT's
        if hasattr(model, "peft_config") and name not in from_files:  # an adapter
            continue
        if name not in from_files or from_files.shape(name) != tuple(parameter.shape):
            raise StrategyError(
                f"{context.previous} has no {name} of the shape {list(parameter.shape)}, so it is not the model that "
                "the trainer starts from: name that as `previous`."
            )
        flat = parameter.detach().reshape(-1)
        step = max(1, -(-flat.numel() // _COMPARED))
        stored = from_files.tensor(name).reshape(-1)[::step].to(flat.dtype)
        if not torch.equal(flat[::step].cpu(), stored):
            raise StrategyError(
                f"the trainer's model is not the one in {context.previous}: {name} differs. Name the model that it "
                "starts from as `previous`; apply strategies before any training."
            )


def _prepared_states(trainer: Trainer, composition: Composition, context: Context) -> dict[str, Path]:
    """Return the folders of what the strategies prepare, by kind; the first process makes what is not there."""
    states: dict[str, Path] = {}
    for part in composition.parts:
        if part.preparation is None:
            continue
        rows = hashlib.sha256()
        for example in context.old_english if "old_english" in part.uses else ():
            rows.update(f"{example.messages!r}\n".encode("utf-8", "surrogatepass"))
        decides = {
            "model": model_content_hash(context.previous),
            "options": part.preparation,
            "rows": rows.hexdigest(),
            "seed": context.seed if part.prepares_by_seed else None,
            "precision": context.compute.inference_precision,
        }
        state = context.folder / f"{part.kind}-{fingerprint_of(decides)}"
        states[part.kind] = state
        if trainer.accelerator.is_main_process and not state.is_dir():
            making = state.with_name(f".{state.name}")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(parents=True)

            def load() -> PreTrainedModel:
                model = load_model(context.previous, trust_remote_code=context.trust_remote_code)
                model.to(context.compute.device)  # type: ignore[arg-type]
                return model

            tokenizer = load_tokenizer(context.previous, trust_remote_code=context.trust_remote_code)
            record = part.prepare(load, tokenizer, replace(context, folder=making))
            write_json_atomically(making / "record.json", {"decided_by": decides, "found": dict(record)})
            making.rename(state)
        trainer.accelerator.wait_for_everyone()
    return states
