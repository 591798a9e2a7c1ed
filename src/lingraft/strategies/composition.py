"""Strategies by name, built from the study file and composed: trainable sets intersect, mixes chain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lingraft.config.schema import MIXED, PLAIN, StrategyChoice
from lingraft.data.example import Example
from lingraft.errors import ConfigError, StrategyError, did_you_mean
from lingraft.registry import Registry
from lingraft.strategies.base import Context, Mix, Need, Strategy, Swept, TrainingRules
from lingraft.strategies.lora import merge

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

REGISTRY = Registry(
    "strategy",
    {
        PLAIN: "lingraft.strategies.plain:Plain",
        MIXED: "lingraft.strategies.mixed:Mixed",
        "freeze_random": "lingraft.strategies.freeze_random:FreezeRandom",
        "freeze_changed": "lingraft.strategies.freeze_changed:FreezeChanged",
        "english_replay": "lingraft.strategies.english_replay:EnglishReplay",
        "generative_replay": "lingraft.strategies.generative_replay:GenerativeReplay",
        "lora": "lingraft.strategies.lora:Lora",
        "freeze_modules": "lingraft.strategies.freeze_modules:FreezeModules",
        "half": "lingraft.strategies.half:Half",
        "spectrum": "lingraft.strategies.spectrum:Spectrum",
        "ssu": "lingraft.strategies.ssu:Ssu",
        "l2_anchor": "lingraft.strategies.l2_anchor:L2Anchor",
        "ewc": "lingraft.strategies.ewc:Ewc",
        "distill": "lingraft.strategies.distill:Distill",
        "interpolate": "lingraft.strategies.interpolate:Interpolate",
        "revert": "lingraft.strategies.revert:Revert",
        "layerwise_rates": "lingraft.strategies.layerwise_rates:LayerwiseRates",
    },
)


_ALONE = {
    PLAIN: "it means no strategy at all",
    MIXED: "it trains one phase with nothing to protect",
}


@dataclass(frozen=True)
class Composition:
    """Strategies applied in order as one."""

    parts: tuple[Strategy, ...]
    label: str

    @property
    def needs(self) -> frozenset[Need]:
        """What any of them needs of the context."""
        return frozenset[Need]().union(*(part.needs for part in self.parts))

    @property
    def uses(self) -> frozenset[Need]:
        """What of the context decides the effect of any of them."""
        return frozenset[Need]().union(*(part.uses for part in self.parts))

    def mix(self, examples: Sequence[Example], context: Context) -> Mix:
        """Chain the mixes; counts of replayed and missing examples add up."""
        whole = Mix(examples)
        for part in self.parts:
            whole = part.mix(whole.examples, context).after(whole)
        return whole

    def wrap(self, model: PreTrainedModel, context: Context) -> PreTrainedModel:
        """Wrap the model by each in order."""
        for part in self.parts:
            model = part.wrap(model, context)
        return model

    def trainable(self, model: PreTrainedModel, context: Context) -> frozenset[str]:
        """Return the parameters that every strategy lets train; all that text reaches, where none says anything.

        What text does not reach, such as an image encoder, is frozen: it would never have a gradient.

        Raises:
            StrategyError: They leave nothing to train.
        """
        from lingraft.models.text_parts import reached_by_text

        names = reached_by_text(model)
        for part in self.parts:
            allowed = part.trainable(model, context)
            names = names if allowed is None else names & allowed
        if not names:
            raise StrategyError(
                f"nothing is left to train: {self.label!r} would freeze every parameter. Lower a `share`, or leave a "
                "strategy out."
            )
        return names

    def check(self, names: Collection[str]) -> None:
        """Refuse a model in which what any of them names is missing."""
        for part in self.parts:
            part.check(names)

    def frozen_mask(self, model: PreTrainedModel, context: Context) -> dict[str, Tensor]:
        """Return what they freeze inside of tensors that train: masks unite. The model's weights may decide it."""
        frozen: dict[str, Tensor] = {}
        for part in self.parts:
            for name, own in part.frozen_mask(model, context).items():
                frozen[name] = own | frozen[name] if name in frozen else own
        return frozen

    def rules(
        self, model: PreTrainedModel, context: Context, frozen_mask: Mapping[str, Tensor] | None = None
    ) -> TrainingRules:
        """Return all that they ask of training: factors multiply, pulls and penalties add.

        Args:
            model: It may lie on the meta device where `frozen_mask` is given.
            context: What strategies need.
            frozen_mask: What `frozen_mask` returned in another process; None: it is asked for.
        """
        frozen = self.frozen_mask(model, context) if frozen_mask is None else frozen_mask
        rates: dict[str, float] = {}
        for part in self.parts:
            for name, factor in part.learning_rates(model).items():
                rates[name] = rates.get(name, 1.0) * factor
        anchors = (part.anchor(model, context) for part in self.parts)
        penalties = (part.output_penalty(context) for part in self.parts)
        return TrainingRules(
            frozen_mask=frozen,
            learning_rates=rates,
            anchors=tuple(one for one in anchors if one is not None),
            output_penalties=tuple(one for one in penalties if one is not None),
        )

    @property
    def needs_logits(self) -> bool:
        """Whether any of them may read the logits of all positions."""
        return any(type(part).output_penalty is not Strategy.output_penalty for part in self.parts)

    @property
    def combines(self) -> bool:
        """Whether the phase's final model is made of the previous one and the trained one."""
        return any(part.combines for part in self.parts)

    def combine(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """Chain the combinations of one tensor."""
        for part in self.parts:
            after = part.combine(name, before, after)
        return after

    def finish(
        self, model: PreTrainedModel, folder: Path, load: Callable[[], PreTrainedModel] | None = None
    ) -> PreTrainedModel:
        """Return the trained model as a plain one: adapters are merged into the weights that they adapt.

        Args:
            model: The trained one, in float32 but for weights in 4 bits.
            folder: The stage's, for what a strategy keeps beside the checkpoint.
            load: Returns the model that the phase started from, in float32: needed where its weights were held in 4
                bits, which nothing is merged into.
        """
        for part in self.parts:
            part.keep(model, folder)
        return merge(model, load)


def swept(choice: StrategyChoice) -> tuple[StrategyChoice, ...]:
    """Return what a choice is trained as: of options with a list of values, one choice for each combination of them."""
    found = [choice]
    for place, part in enumerate(choice.parts):
        # An unknown strategy is refused when it is built.
        fields = REGISTRY.get(part.kind).model_fields if part.kind in REGISTRY else {}
        for key, field in fields.items():
            option = field.alias or key
            values = part.options.get(option)
            if Swept() in field.metadata and isinstance(values, (list, tuple)) and values:
                found = [one.with_option(place, option, value) for one in found for value in values]
    return tuple(found)


def composition_of(strategies: object) -> Composition:
    """Build strategies as a script writes them: one, or a list that is applied together, each as in a study file.

    Raises:
        ConfigError, StrategyError: As `build`; or they are none, or say what only a study decides.
    """
    if isinstance(strategies, StrategyChoice):
        choice = strategies
    else:
        try:
            choice = StrategyChoice.model_validate(strategies)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            problem = str(detail["msg"]).removeprefix("Value error, ")
            if detail["type"] == "too_short":
                problem = "name at least one, such as ['english_replay']"
            raise ConfigError(f"strategies: {problem[:1].lower()}{problem[1:]}") from None
    for part in choice.parts:
        if part.training.model_dump(exclude_none=True):
            raise ConfigError(
                f"{part.kind!r}: `training` sets options of a study's training; in a script of your own set them in "
                "the trainer's arguments."
            )
    composition = build(choice)
    if choice.is_mixed:
        raise StrategyError(
            f"{MIXED!r} is no strategy to apply: train the base model on the rows of both phases instead."
        )
    return composition


def build(choice: StrategyChoice) -> Composition:
    """Build the strategies of a choice.

    Raises:
        ConfigError: Strategies or options are unknown or have a wrong value; all of them.
        StrategyError: They cannot be composed; with the reason.
    """
    parts, problems = [], []
    for spec in choice.parts:
        try:
            kind: type[Strategy] = REGISTRY.get(spec.kind)
            parts.append(kind.model_validate(spec.options))
        except ConfigError as error:
            problems.append(str(error))
        except ValidationError as error:
            # An option of several types fails once per type; the first failure says enough.
            by_option: dict[object, str] = {}
            for detail in error.errors(include_url=False):
                by_option.setdefault(detail["loc"][:1], _problem(kind, detail))
            problems += by_option.values()
    if problems:
        raise ConfigError(" ".join(problems))
    kinds = [part.kind for part in parts]
    for alone, reason in _ALONE.items():
        if alone in kinds and len(parts) > 1:
            others = ", ".join(kind for kind in kinds if kind != alone) or alone
            raise StrategyError(f"{alone!r} cannot be composed with {others}: {reason}.")
    for part in parts:
        if kinds.count(part.kind) > 1:
            raise StrategyError(f"{part.kind!r} stands twice in one composition; keep one.")
        for other in kinds:
            if other in part.conflicts:
                raise StrategyError(
                    f"{part.kind!r} cannot be composed with {other!r}: {part.conflicts[other]}."
                )
    return Composition(tuple(parts), choice.label)


def _problem(kind: type[Strategy], detail: Any) -> str:
    """Return what is wrong with an option of a strategy, in one sentence."""
    message = str(detail["msg"]).removeprefix("Value error, ")
    if not detail["loc"]:  # the options together are wrong
        return f"{kind.kind!r} {message}."
    option = str(detail["loc"][0])
    options = [field.alias or key for key, field in kind.model_fields.items()] or ["none"]
    if detail["type"] == "extra_forbidden":
        return f"{option!r} is not an option of {kind.kind!r}. {did_you_mean(option, options)}"
    return (
        f"the option {option!r} of {kind.kind!r} is {detail['input']!r}: {message[0].lower()}{message[1:]}."
    )
