"""Spectrum: train only the weight matrices with the highest signal-to-noise ratio."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from lingraft.config.paths import user_path
from lingraft.errors import StrategyError
from lingraft.models.layers import layer_of
from lingraft.records import fingerprint_of, read_json, write_text_atomically
from lingraft.strategies.base import FREEZES_WITH_LORA, Context, Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.weights.signal_to_noise import Estimator

_STATE = "scan.json"


class Spectrum(Strategy):
    """Train only the weight matrices with the highest signal-to-noise ratio of their type, and freeze the others.

    The matrices of the model that the phase starts from are ranked within each module type by `lingraft snr`'s
    estimate, and int(share * matrices) of each type train. Norms and biases are frozen; embeddings and head
    train, as in the public scanner's plans, unless `outside: false`.

    Cost: one scan of the start model, the singular values of every matrix; then less than plain training, by the
    frozen matrices' optimiser states and weight gradients.

    Defaults: half of the matrices and the public scanner's estimator; the paper's share is not known. Source: arXiv
    2406.06623. Relatives: freeze_modules, freeze_changed.
    """

    kind: ClassVar[str] = "spectrum"
    conflicts: ClassVar[dict[str, str]] = FREEZES_WITH_LORA
    prepares_by_seed: ClassVar[bool] = False

    share: float = Field(0.5, ge=0, le=1)
    """Share of each type's matrices that trains."""
    estimator: str = Field("reference", pattern="^(reference|median)$")
    """`reference`: the public scanner's; `median`: the sound one (see `lingraft snr`)."""
    outside: bool = True
    """Train embeddings and output head too."""
    plan: str | None = None
    """A plan that `lingraft snr --plan` wrote, in place of a scan: what it lists trains; other options do not count. As
    every path of a study, relative to the folder in which you run lingraft."""

    @field_validator("plan")
    @classmethod
    def _can_be_read(cls, plan: str | None) -> str | None:
        if plan is not None:
            _patterns(plan)
        return plan

    @property
    def preparation(self) -> Mapping[str, object] | None:
        """The estimator, which all shares share, or the content of the plan."""
        if self.plan is not None:
            return {"plan": fingerprint_of(_patterns(self.plan))}
        return {"estimator": self.estimator}

    @property
    def identity(self) -> Mapping[str, object]:
        """With a plan its content, since no other option counts then."""
        return super().identity if self.plan is None else dict(self.preparation or {})

    def prepare(
        self,
        load: Callable[[], PreTrainedModel],  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,  # noqa: ARG002
        context: Context,
    ) -> Mapping[str, object]:
        """Write the scan of the model's files, or the plan."""
        from lingraft.models.weights import ModelWeights
        from lingraft.weights.signal_to_noise import signal_to_noise

        state: dict[str, Any]
        if self.plan is not None:
            state = {"plan": _patterns(self.plan)}
        else:
            estimator: Estimator = "reference" if self.estimator == "reference" else "median"
            weights = ModelWeights(context.previous, trust_remote_code=context.trust_remote_code)
            scan = signal_to_noise(weights, estimator=estimator, on_progress=context.on_progress)
            state = {"modules": [[one.name, one.type, one.rank] for one in scan.modules]}
        write_text_atomically(context.folder / _STATE, json.dumps(state))
        return {key: len(own) for key, own in state.items()}

    def trainable(self, model: PreTrainedModel, context: Context) -> frozenset[str]:
        """Return the selected matrices, and what stands outside of the layers where that trains too.

        Raises:
            StrategyError: An expression of the plan fits no parameter, or a matrix of the files is none of the model.
        """
        state = read_json(context.states[self.kind] / _STATE)
        names = [name for name, _ in model.named_parameters()]
        if "plan" in state:
            found: set[str] = set()
            for pattern in state["plan"]:
                fitting = {name for name in names if re.match(pattern, name)}
                if not fitting and "lm_head" not in pattern:  # a tied head has no parameter of its own
                    raise StrategyError(
                        f"'spectrum': the plan's {pattern!r} fits no parameter of this model; scan this model."
                    )
                found |= fitting
            return frozenset(found)
        unknown = sorted({name for name, _, _ in state["modules"]} - set(names))
        if unknown:  # it would be frozen under another name, and nobody would know
            raise StrategyError(
                f"'spectrum': the model's files hold {unknown[0]}, and no parameter of the loaded model is called so "
                "(files may keep a mixture's experts apart), so the ranking cannot be applied. Take half."
            )
        of_type = Counter(kind for _, kind, _ in state["modules"])
        chosen = {name for name, kind, rank in state["modules"] if rank <= int(of_type[kind] * self.share)}
        if self.outside:
            chosen |= {
                name for name, own in model.named_parameters() if layer_of(name) is None and own.dim() > 1
            }
        return frozenset(names) & chosen


def _patterns(plan: str) -> list[str]:
    """Read a plan's expressions, or raise ValueError."""
    import yaml

    try:
        listed = yaml.safe_load(user_path(plan).read_text(encoding="utf-8"))["unfrozen_parameters"]
        patterns = [str(one) for one in listed]
        for pattern in patterns:
            re.compile(pattern)
    except OSError as error:
        raise ValueError(
            f"cannot be read ({error.strerror}). A relative path starts where you run lingraft: {Path.cwd()}"
        ) from None
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError, re.error) as error:
        raise ValueError(
            f"is no plan with `unfrozen_parameters`, a list of regular expressions ({type(error).__name__})"
        ) from None
    return patterns
