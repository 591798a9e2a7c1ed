"""Freeze the parts that are named: layers, kinds of module, patterns, embeddings, head."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar

from pydantic import field_validator, model_validator

from lingraft.errors import StrategyError
from lingraft.models.layers import tied_parameters
from lingraft.strategies.base import FREEZES_WITH_LORA, Context, Strategy
from lingraft.strategies.selection import (
    LayerRanges,
    check_ends,
    check_layers,
    check_modules,
    is_head,
    is_named,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FreezeModules(Strategy):
    """Freeze the parts that are named, and train all else.

    `layers` and `modules` together name those modules of those layers; everything else named is frozen besides.
    Freezing one end of tied embeddings freezes the other, and the plan that is shown before training says so.

    Cost: less than plain training, by the frozen parts' optimiser states and weight gradients.

    Relatives: freeze_random and freeze_changed, which choose layers themselves; spectrum, which chooses modules.
    """

    kind: ClassVar[str] = "freeze_modules"
    conflicts: ClassVar[dict[str, str]] = FREEZES_WITH_LORA

    layers: LayerRanges | None = None
    """Decoder layers, such as `0-9` or `0-3,28,29`, from 0."""
    modules: tuple[str, ...] = ()
    """Kinds of module, such as `[q_proj, k_proj]`."""
    patterns: tuple[str, ...] = ()
    """Regular expressions that a parameter's whole name must match, such as `model[.]norm[.]weight`."""
    embeddings: bool = False
    """Freeze the input embeddings."""
    head: bool = False
    """Freeze the output head."""

    @field_validator("patterns")
    @classmethod
    def _are_expressions(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
        return patterns

    @model_validator(mode="after")
    def _names_something(self) -> FreezeModules:
        if not (self.layers or self.modules or self.patterns or self.embeddings or self.head):
            raise ValueError("names nothing to freeze; give layers, modules, patterns, embeddings or head")
        return self

    def check(self, names: Collection[str]) -> None:
        """Refuse layers, modules, ends and patterns that fit nothing."""
        if self.layers is not None:
            check_layers(self.kind, self.layers, names)
        check_modules(self.kind, self.modules, names)
        # Without a head of its own a model's embeddings are the head.
        head_is_embeddings = self.head and not any(is_head(name) for name in names)
        check_ends(self.kind, names, embeddings=self.embeddings or head_is_embeddings, head=False)
        for pattern in self.patterns:
            if not any(re.fullmatch(pattern, name) for name in names):
                example = next(iter(names), "")
                raise StrategyError(
                    f"{self.kind!r}: patterns: {pattern!r} matches no parameter's whole name, such as {example!r}."
                )

    def trainable(self, model: PreTrainedModel, context: Context) -> frozenset[str]:  # noqa: ARG002
        """Return the names of all parameters that are not named."""
        names = [name for name, _ in model.named_parameters()]
        tied = {name for group in tied_parameters(model) for name in group}

        def is_frozen(name: str) -> bool:
            # Tied embeddings are the head as well.
            embeddings = self.embeddings or (self.head and name in tied)
            return any(re.fullmatch(pattern, name) for pattern in self.patterns) or is_named(
                name, layers=self.layers, modules=self.modules, embeddings=embeddings, head=self.head
            )

        return frozenset(name for name in names if not is_frozen(name))
