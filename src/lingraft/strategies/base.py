"""The strategy protocol: a frozen options class plus hooks that return values; none receives the trainer.

Hooks run in the order prepare, mix, wrap, trainable, frozen_mask, learning_rates, anchor, output_penalty, keep,
combine. `prepare` and `combine` are stages of their own: what the first wrote serves every cell that starts alike,
and the second makes a model of two with no training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict

from lingraft.config.schema import Section
from lingraft.data.example import Example, Origin
from lingraft.models.layers import layer_of, module_type_of, tied_parameters
from lingraft.records import fingerprint_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.models.compute import Compute
    from lingraft.models.loss import OutputPenalty

Need = Literal["base", "previous", "previous_data", "english", "old_english"]


FREEZES_WITH_LORA = {
    "lora": "LoRA already freezes every weight of the model, so freezing some of them would change nothing"
}
ANCHORS_WITH_LORA = {
    "lora": "LoRA trains adapters, which start at random: a pull towards that start protects no weight of the model"
}

# What Llama and most others, GPT-2, Bloom and Falcon, GPT-NeoX, InternLM, OPT and Mamba call theirs.
_EMBEDDINGS = frozenset(
    ("embed_tokens", "wte", "wpe", "word_embeddings", "embed_in", "tok_embeddings", "embed_positions", "embeddings")
)  # fmt: skip


def _automatic() -> Compute:
    from lingraft.models.compute import compute_for

    return compute_for()


@dataclass(frozen=True)
class Context:
    """What the past left.

    Attributes:
        base: Checkpoint folder of the base model; None if unknown or not needed.
        previous: Checkpoint folder that this phase starts from.
        previous_data: Phase 1's training examples; empty if unknown.
        english: The English parallel of this phase's set; empty if there is none.
        seed: The cell's seed.
        folder: The stage's folder; `prepare` writes into it.
        cache: Folder that all cells of a run share, for what they would make twice; a strategy names what it puts
            there by a fingerprint of all that decides it.
        states: Folders that `prepare` filled, by the strategy's kind.
        trust_remote_code: Whether Python code that a model brings along may be run.
        on_progress: Called with how far a long hook is: done and in all.
        compute: What computes where a hook does, and in which types: that of the phase; else as `auto` resolves here.
        noted: Called with a sentence that the user should read.
        workers: Processes that answer where a hook generates; answers do not depend on it.
        load_divided: Loads a model's folder for answers, onto a device and in `compute.held`, of each weight a piece in
            every process; all of them call it, and then the model. None: the phase's model is not divided.
    """

    base: Path | None
    previous: Path
    previous_data: Sequence[Example]
    english: Sequence[Example]
    seed: int
    folder: Path
    cache: Path
    states: Mapping[str, Path] = field(default_factory=dict)
    trust_remote_code: bool = False
    on_progress: Callable[[int, int], None] | None = None
    compute: Compute = field(default_factory=_automatic)
    noted: Callable[[str], None] = lambda _: None
    workers: int = 1
    load_divided: Callable[[Path, torch.device], PreTrainedModel] | None = None

    @property
    def old_english(self) -> Sequence[Example]:
        """What stands for the data that must not be forgotten: Phase 1's rows, else the set's English parallel."""
        return self.previous_data or self.english

    def generator(self, purpose: str) -> np.random.Generator:
        """Return a generator seeded by the cell's seed and `purpose`: two purposes never share draws."""
        return np.random.default_rng(self.seed_of(purpose))

    def seed_of(self, purpose: str) -> int:
        """Return a seed below 2**32 made of the cell's seed and `purpose`."""
        return int(fingerprint_of([self.seed, purpose])[:8], 16)


@dataclass(frozen=True)
class Mix:
    """A phase's examples after mixing.

    Attributes:
        examples: All of them, in order.
        replayed: How many are replayed, before the chat template refuses any.
        shortfall: How many fewer replayed ones there are than asked for.
        dropped: Generated ones that were not taken, by reason.
        origins: Where the replayed ones came from, and how many did.
    """

    examples: Sequence[Example]
    replayed: int = 0
    shortfall: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    origins: tuple[tuple[Origin, int], ...] = ()

    def after(self, earlier: Mix) -> Mix:
        """Return this mix, which was made of `earlier`'s examples, with the counts of both."""
        return Mix(
            self.examples,
            earlier.replayed + self.replayed,
            earlier.shortfall + self.shortfall,
            dict(Counter(earlier.dropped) + Counter(self.dropped)),
            earlier.origins + self.origins,
        )


@dataclass(frozen=True)
class Anchor:
    """A pull towards the weights that the phase starts from: strength / 2 * sum_i importance_i (w_i - start_i)^2.

    Attributes:
        strength: At least 0.
        importance: By parameter, of its shape, at least 0; None: 1 everywhere. One that is missing is not pulled.
        names: The parameters that it pulls; None: all that train.
    """

    strength: float
    importance: Mapping[str, Tensor] | None = None
    names: frozenset[str] | None = None


@dataclass(frozen=True)
class TrainingRules:
    """What strategies ask of training, besides which parameters train.

    Attributes:
        frozen_mask: By parameter, a bool tensor that can be broadcast to its shape; where it is true, bits stay.
        learning_rates: By parameter, a factor of the learning rate; 1 where absent.
        anchors: Added to the loss once per optimiser step.
        output_penalties: Added to the loss of every micro-batch.
    """

    frozen_mask: Mapping[str, Tensor] = field(default_factory=dict)
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    anchors: tuple[Anchor, ...] = ()
    output_penalties: tuple[OutputPenalty, ...] = ()


@dataclass(frozen=True)
class Swept:
    """Marks an option of which a study may list values, for a cell each: `alpha: Annotated[float, Swept()]`."""


class Strategy(Section):
    """Base of all strategies; its hooks do nothing. A subclass's fields are its options in the study file."""

    model_config = ConfigDict(populate_by_name=True)

    kind: ClassVar[str]
    """Registered name."""
    conflicts: ClassVar[dict[str, str]] = {}
    """Strategies that it cannot be composed with, each with the reason."""

    combines: ClassVar[bool] = False
    """Whether it does nothing but `combine`, so that its training is that of the other strategies alone."""
    prepares_by_seed: ClassVar[bool] = True
    """Whether the cell's seed decides what `prepare` writes, such as by drawing rows; else seeds share one state."""

    @property
    def needs(self) -> frozenset[Need]:
        """What of the context it needs."""
        return frozenset()

    @property
    def preparation(self) -> Mapping[str, object] | None:
        """The options that decide what `prepare` writes; None: it prepares nothing."""
        return None

    @property
    def identity(self) -> Mapping[str, object]:
        """The options as fingerprints know them: of a file what it holds, not where it lies."""
        return self.model_dump(mode="json")

    def prepare(
        self, load: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, context: Context
    ) -> Mapping[str, object]:
        """Look at the model that the phase starts from, write a state into `context.folder`, return its record.

        `load` reads the model in float32 onto the device that training uses; who needs its files alone does not ask
        for it.
        """
        raise NotImplementedError(f"{self.kind} names a preparation, but does none")

    @property
    def uses(self) -> frozenset[Need]:
        """What of the context decides its effect: what it needs, and what it takes where it is there."""
        return self.needs

    @property
    def mixes(self) -> bool:
        """Whether it may mix rows in."""
        return False

    @property
    def can_be_divided(self) -> bool:
        """Whether the weights that it trains beside can be divided between processes (FSDP2)."""
        return True

    @property
    def holds_replayed(self) -> bool:
        """Whether it acts on replayed rows, whoever mixed them in: without any the phase is trained without it."""
        return False

    def mix(self, phase_data: Sequence[Example], context: Context) -> Mix:  # noqa: ARG002
        """Return the phase's examples, others mixed in."""
        return Mix(phase_data)

    def wrap(self, model: PreTrainedModel, context: Context) -> PreTrainedModel:  # noqa: ARG002
        """Return the model to train, such as one with adapters."""
        return model

    def trainable(self, model: PreTrainedModel, context: Context) -> frozenset[str] | None:  # noqa: ARG002
        """Return the names of the parameters that train; None: it does not care."""
        return None

    def check(self, names: Collection[str]) -> None:
        """Refuse a model, by the names of its parameters, in which what the options name is missing.

        Raises:
            StrategyError: It is; says which option and what there is.
        """

    def frozen_mask(self, model: PreTrainedModel, context: Context) -> Mapping[str, Tensor]:  # noqa: ARG002
        """Return which elements of trained parameters are frozen all the same; see `TrainingRules`."""
        return {}

    def learning_rates(self, model: PreTrainedModel) -> Mapping[str, float]:  # noqa: ARG002
        """Return a factor of the learning rate for each parameter that is to have another."""
        return {}

    def anchor(self, model: PreTrainedModel, context: Context) -> Anchor | None:  # noqa: ARG002
        """Return a pull towards the weights that the phase starts from."""
        return None

    def output_penalty(self, context: Context) -> OutputPenalty | None:  # noqa: ARG002
        """Return what is added to the loss for the model's outputs."""
        return None

    def keep(self, model: PreTrainedModel, folder: Path) -> None:
        """Write what is kept of the trained, still wrapped model beside its checkpoint, into the stage's folder."""

    def held_bytes(self, parameters: int, trained: int, width: int) -> int:  # noqa: ARG002
        """Return the bytes of other weights that it holds while the phase trains, such as a teacher's.

        Args:
            parameters: Of the model.
            trained: Of these, those that train.
            width: Bytes of a weight that is only held.
        """
        return 0

    def combine(self, name: str, before: Tensor, after: Tensor) -> Tensor:  # noqa: ARG002
        """Return a tensor of the phase's final model, from the previous phase's and the trained one's, in float32."""
        return after


@dataclass(frozen=True, slots=True)
class ModulePlan:
    """One kind of module in one part of a model.

    Attributes:
        kind: Such as q_proj.
        trainable_parameters: How many of its parameters train.
        frozen_parameters: How many do not.
    """

    kind: str
    trainable_parameters: int
    frozen_parameters: int


@dataclass(frozen=True, slots=True)
class FreezePlanRow:
    """One part of a model in the plan that is shown before training.

    Attributes:
        part: `embeddings`, `layer 3`, `final norm and head`, `parts that text does not reach`, ...
        trainable_parameters: How many parameters train.
        frozen_parameters: How many do not.
        kinds: The same by kind of module, in the model's order.
    """

    part: str
    trainable_parameters: int
    frozen_parameters: int
    kinds: tuple[ModulePlan, ...]


def freeze_plan(model: PreTrainedModel, trainable: Collection[str]) -> tuple[FreezePlanRow, ...]:
    """Return what trains and what is frozen, part by part in the model's order.

    Freezing tied embeddings freezes the output head, and the reverse: their row says so. What text does not reach, such
    as an image encoder, is a part by itself.
    """
    from lingraft.models.four_bits import parameter_count
    from lingraft.models.text_parts import reached_by_text

    reached = reached_by_text(model)
    tied = {name for group in tied_parameters(model) for name in group}
    parts: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        layer = layer_of(name)
        if name not in reached:
            part = "parts that text does not reach"
        elif layer is not None:
            part = f"layer {layer}"
        elif is_embedding(name):
            part = "embeddings (tied head)" if name in tied else "embeddings"
        else:
            part = "final norm and head"
        parts.setdefault(part, {})[name] = parameter_count(parameter)
    rows = []
    for part, sizes in parts.items():
        kinds: dict[str, tuple[int, int]] = {}
        for name, size in sizes.items():
            kind = module_type_of(name)
            trains, keeps = kinds.get(kind, (0, 0))
            kinds[kind] = (trains + size, keeps) if name in trainable else (trains, keeps + size)
        rows.append(
            FreezePlanRow(
                part=part,
                trainable_parameters=sum(trains for trains, _ in kinds.values()),
                frozen_parameters=sum(keeps for _, keeps in kinds.values()),
                kinds=tuple(ModulePlan(kind, *counts) for kind, counts in kinds.items()),
            )
        )
    return tuple(rows)


def count_masked(
    model: PreTrainedModel, trainable: Collection[str], frozen_mask: Mapping[str, Tensor]
) -> int:
    """Return how many parameters a frozen mask keeps inside of the tensors that train."""
    return sum(
        int(frozen_mask[name].expand(parameter.shape).sum())
        for name, parameter in model.named_parameters()
        if name in trainable and name in frozen_mask
    )


def is_embedding(name: str) -> bool:
    """Return whether a parameter is an input embedding."""
    return layer_of(name) is None and module_type_of(name) in _EMBEDDINGS
