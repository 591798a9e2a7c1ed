"""Drift: how far a model's hidden states moved from those of another, layer by layer.

Source: arXiv 2410.16006, Figures 1 (similarity of mean hidden activations) and 2 (change of their covariance).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lingraft.errors import DataError, ModelError
from lingraft.models.loaded import display_name, model_in_memory, name_of
from lingraft.notebook import InNotebook
from lingraft.representation.covariance import covariance_change, trace_change, variance_change
from lingraft.representation.prompts import prompts_of
from lingraft.representation.similarity import linear_cka, mean_cosine
from lingraft.representation.states import (
    AskedPrompts,
    LayerStates,
    Positions,
    check_alike,
    check_positions,
    encode_alike,
    model_states,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.models.compute import Compute


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """One layer's drift from the first model to another.

    Attributes:
        layer: From 0.
        mean_cosine: Cosine of the mean states, in [-1, 1]; 1: same direction.
        cka: Linear CKA of the states of the same tokens, in [0, 1]; 1: the same up to rotation and scale; None where
            the states do not vary. Leans upwards where there are fewer states than dimensions.
        covariance_change: ||C2 - C1||_F / ||C1||_F of the states' covariances, >= 0.
        trace_change: (tr C2 - tr C1) / tr C1: above 0 the states vary more.
        variance_change: Sum of the changes of the d variances over their sum, >= 0.
    """

    layer: int
    mean_cosine: float | None
    cka: float | None
    covariance_change: float | None
    trace_change: float | None
    variance_change: float | None


@dataclass(frozen=True)
class Drift(InNotebook):
    """A model's drift from the first one.

    Attributes:
        model: Its name.
        layers: Over all prompts.
        by_language: Layers by BCP-47 tag, where the prompts are of several.
        cka_tokens: States of each layer that CKA is of: all of them, or evenly spaced ones where all would take too
            much memory (see `states.KEPT_BYTES`).
    """

    model: str
    layers: tuple[LayerDrift, ...]
    by_language: dict[str, tuple[LayerDrift, ...]]
    cka_tokens: int

    @property
    def most_changed(self) -> tuple[int, ...]:
        """The three layers whose covariance changed most, the most changed first; without those that did not."""
        changed = [one for one in self.layers if one.covariance_change]
        order = sorted(changed, key=lambda one: -(one.covariance_change or 0.0))
        return tuple(one.layer for one in order[:3])

    @property
    def upper_to_lower(self) -> float | None:
        """Mean covariance change of the upper third of the layers over that of the lower third; None: that is 0.

        The paper finds 3 to 4 for dissimilar data pairs.
        """
        third = max(1, len(self.layers) // 3)
        lower = sum(one.covariance_change or 0.0 for one in self.layers[:third])
        upper = sum(one.covariance_change or 0.0 for one in self.layers[-third:])
        return upper / lower if lower > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "model": self.model,
            "layers": [asdict(one) for one in self.layers],
            "by_language": {tag: [asdict(one) for one in own] for tag, own in self.by_language.items()},
            "most_changed": list(self.most_changed),
            "upper_to_lower": self.upper_to_lower,
            "cka_tokens": self.cka_tokens,
        }


@dataclass(frozen=True)
class DriftOfModels(InNotebook):
    """Several models' drift from the first.

    Attributes:
        drifts: Of every model but the first, in their order.
        prompts: How many.
        tokens: States of each layer that the figures are of: the prompts' tokens, or one of each.
        positions: `prompt`: every token of the prompts; `last`: the one after which the answer begins.
        truncated: Prompts that lost their beginning, because they are longer than asked for.
    """

    drifts: tuple[Drift, ...]
    prompts: int
    tokens: int
    positions: Positions
    truncated: int

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values; `layers` are those of the second model."""
        models = [one.to_json() for one in self.drifts]
        return {
            "layers": models[0]["layers"],
            "models": models,
            "prompts": self.prompts,
            "tokens": self.tokens,
            "positions": self.positions,
            "truncated": self.truncated,
        }


def drift_of_models(
    models: Sequence[str | Path | PreTrainedModel],
    prompts: AskedPrompts,
    *,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    positions: Positions = "prompt",
    max_length: int = 1024,
    compute: Compute | None = None,
    trust_remote_code: bool = False,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> DriftOfModels:
    """Run models over the same prompts and compare the states of every decoder layer with the first model's.

    One model is in memory at a time, beside what is kept of the first one's states and its own (`layer_states`).

    Args:
        models: Two or more: folders, hub ids, embedded:NAME, or models in memory.
        prompts: A list of texts, of `Prompt` or of `Example`; or a .txt file, MT-Bench file or data set by its name.
        tokenizer: Of the models in memory; None: those that lie where they were loaded from.
        positions: `prompt`: every token of the prompts; `last`: the one after which the answer begins.
        max_length: Tokens of a prompt; longer ones lose their beginning, and are counted.
        compute: What runs models that are loaded by their names, and the type that their weights are held in; None:
            float32. Those in memory run where they are, in their own type.
        trust_remote_code: Run code that a model brings along.
        on_progress: Called with the model's name, its prompts done and all of them.

    Raises:
        ModelError: Fewer than two models, one that cannot be had or is damaged, or models whose states cannot be
            compared: another architecture, width, number of layers, or other tokens of the prompts.
        DataError: There are no prompts, or a chat template refuses one.
    """
    check_positions(positions)
    if isinstance(models, (str, Path)) or not isinstance(models, Sequence):
        raise ModelError(f"models {models!r:.80}: give two models or more in a list.")
    if len(models) < 2:
        raise ModelError(f"{len(models)} model has nothing to drift from; name two or more.")
    known = [name_of(one) or model_in_memory(one) for one in models]
    said = prompts_of(prompts)
    check_alike(known, trust_remote_code=trust_remote_code)
    encoded = encode_alike(
        known, said, tokenizer=tokenizer, max_length=max_length, trust_remote_code=trust_remote_code
    )

    states = (
        model_states(
            model,
            encoded,
            positions=positions,
            compute=compute,
            trust_remote_code=trust_remote_code,
            on_progress=None if on_progress is None else partial(on_progress, display_name(model)),
        )
        for model in known
    )
    first = next(states)
    return DriftOfModels(
        drifts=tuple(drift_between(display_name(model), first, next(states)) for model in known[1:]),
        prompts=len(encoded.ids),
        tokens=sum(map(len, encoded.ids)) if positions == "prompt" else len(encoded.ids),
        positions=positions,
        truncated=encoded.truncated,
    )


def drift_between(name: str, before: Sequence[LayerStates], after: Sequence[LayerStates]) -> Drift:
    """Compare two models' states of the same prompts.

    Args:
        name: The second model's.
        before: From `layer_states`.
        after: The second model's.

    Raises:
        ModelError: The models have not as many layers, or other widths.
        DataError: These are no states, or none of the same prompts.
    """
    for layers in (before, after):
        if not isinstance(layers, Sequence) or [one for one in layers if not isinstance(one, LayerStates)]:
            raise DataError("states: give what layer_states returns, of two models and the same prompts.")
        if not layers:
            raise DataError("states: there are none, of no layer.")
    if len(before) != len(after):
        raise ModelError(f"{name}: has {len(after)} decoder layers, the first model has {len(before)}.")
    for states, other_states in zip(before, after, strict=True):
        width, other_width = (len(next(iter(own.moments.values())).mean) for own in (states, other_states))
        if width != other_width:
            raise ModelError(f"{name}: its states are {other_width} wide, the first model's {width}.")
    for one, other in zip(before, after, strict=True):
        counts, other_counts = (
            {tag: own.n for tag, own in states.moments.items()} for states in (one, other)
        )
        if counts != other_counts:
            raise DataError(f"{name}: its states are of other prompts or tokens than the first model's.")
    languages = list(before[0].moments)
    return Drift(
        model=name,
        layers=_layers(before, after, None),
        by_language={tag: _layers(before, after, tag) for tag in (languages if len(languages) > 1 else ())},
        cka_tokens=sum(map(len, before[0].kept.values())),
    )


def _layers(
    before: Sequence[LayerStates], after: Sequence[LayerStates], language: str | None
) -> tuple[LayerDrift, ...]:
    """Compare the states of one language, or of all (None)."""
    found = []
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        if language is None:
            old, new = one.whole, other.whole
            kept, kept_after = (torch.cat(list(own.kept.values())) for own in (one, other))
        else:
            old, new = one.moments[language], other.moments[language]
            # Of a language of few tokens none may be kept.
            kept, kept_after = (own.kept.get(language, torch.empty(0, len(old.mean))) for own in (one, other))
        found.append(
            LayerDrift(
                layer=number,
                mean_cosine=mean_cosine(old.mean, new.mean),
                cka=linear_cka(kept, kept_after),
                covariance_change=covariance_change(old, new),
                trace_change=trace_change(old, new),
                variance_change=variance_change(old, new),
            )
        )
    return tuple(found)
