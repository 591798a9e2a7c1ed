"""Drift: where on the way through the layers the hidden states moved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, ClassVar

from lingraft.config.schema import Study
from lingraft.data.chat_format import CHAT_IDENTITY
from lingraft.intervals.macro_mean import mean_of_known
from lingraft.measures.base import (
    FROM_PHASE_ONE,
    Column,
    Figure,
    Found,
    Measure,
    Measured,
    MeasuredCell,
    Plot,
    Taken,
)
from lingraft.records import fingerprint_of, from_json
from lingraft.stage import (
    MODEL_LIBRARIES,
    FinishedStage,
    Json,
    Model,
    Needs,
    StageSpec,
    Work,
    Workplace,
    libraries,
    machine,
    stages_of,
)

if TYPE_CHECKING:
    import altair as alt

    from lingraft.representation.prompts import Prompt
    from lingraft.representation.states import EncodedPrompts, LayerStates


class Drift(Measure):
    """The drift of the hidden states from Phase 1 to a cell's last model, over every token of the prompts.

    Source: arXiv 2410.16006, Figures 1 and 2.
    """

    name: ClassVar[str] = "drift"
    title: ClassVar[str] = "drift"
    meaning: ClassVar[str] = (
        "Drift: relative change of the hidden states' covariance from Phase 1, mean over the layers."
    )
    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            "drift",
            "relative change of the hidden states' covariance from Phase 1, mean over the layers",
            "covariance",
        ),
    )

    reads_prompts: ClassVar[bool] = True

    def check(self, study: Study) -> Iterator[str]:
        """It needs prompts, or held-out rows that stand for them."""
        if not study.prompts and study.held_out == 0:
            yield "measures: drift needs prompts, and no rows are held out; give the study `prompts`, or `held_out`."

    def stages(self, cell: MeasuredCell) -> Sequence[Taken]:
        """Return the comparison of the last model with Phase 1's."""
        trust = cell.study.trust_remote_code
        last = StatesDrift(f"to {cell.label}", cell.phase_one, cell.phases[-1].model, cell.prompts, trust)
        return [*(Taken() for _ in cell.phases[:-1]), Taken({FROM_PHASE_ONE: last})]

    def found(self, stage: FinishedStage) -> Found:
        """Return the mean over the layers, and all that was measured of each."""
        changes = [one["covariance_change"] for one in stage.result["layers"]]
        return Found({"covariance": Figure(mean_of_known(changes))}, stage.result)

    def plots(self, cells: Sequence[tuple[str, Measured]]) -> Iterator[Plot]:
        """Yield the paper's Figures 1 and 2 for the cells; several seeds are drawn as their mean."""
        from lingraft.representation.drift import LayerDrift

        found: dict[tuple[str, int], list[LayerDrift]] = {}
        for label, measured in cells:
            one = measured.found.get(FROM_PHASE_ONE)
            details = None if one is None else one.details
            layers = details["layers"] if isinstance(details, dict) else []
            for layer in layers if isinstance(layers, list) else []:
                own = from_json(LayerDrift, layer)
                found.setdefault((label, own.layer), []).append(own)
        rows = [
            LayerPoint(
                label,
                layer,
                mean_of_known([one.mean_cosine for one in seeds]),
                mean_of_known([one.covariance_change for one in seeds]),
            )
            for (label, layer), seeds in found.items()
        ]
        if rows:
            yield Plot(
                "drift-by-layer",
                "Drift of the hidden states",
                "From Phase 1 to each cell, layer by layer: the cosine of the mean states (1: same direction) and the "
                "relative change of their covariance, over every token of the prompts. The paper finds that dissimilar "
                "data shift high layers 3 to 4 times as much.",
                partial(layer_curves, rows),
            )


@dataclass(frozen=True, slots=True)
class LayerPoint:
    """A layer of a model in the figure.

    Attributes:
        model: Name of the model.
        layer: From 0.
        cosine: Of the mean states.
        covariance: Relative change of the covariance.
    """

    model: str
    layer: int
    cosine: float | None
    covariance: float | None


def layer_curves(points: Sequence[LayerPoint]) -> alt.VConcatChart:
    """Draw the cosine of the mean states and the change of the covariance of each model over its layers."""
    import altair as alt

    rows = alt.Data(values=[asdict(one) for one in points])
    base = alt.Chart(rows).mark_line(point=True).properties(width=520, height=220)
    layer = alt.X("layer:Q", title="decoder layer", axis=alt.Axis(tickMinStep=1, format="d"))
    colour = alt.Color("model:N", title="model")
    cosine = alt.Y("cosine:Q", title="cosine of mean states", scale=alt.Scale(zero=False))
    change = alt.Y("covariance:Q", title="change of the covariance")
    return alt.vconcat(
        base.encode(x=layer, y=cosine, color=colour), base.encode(x=layer, y=change, color=colour)
    )


@dataclass(frozen=True, eq=False)
class StatesDrift(StageSpec):
    """The drift of the states of every token of the prompts, measured in float32.

    Needs: one model in float32. The states and their covariances are not in it.

    Attributes:
        first: The model that drift is measured from.
        second: The other one.
        prompts: What both read.
        trust_remote_code: Run Python code that a model brings along.
    """

    kind: ClassVar[str] = "drift"

    first: Model
    second: Model
    prompts: Sequence[Prompt]
    trust_remote_code: bool = False

    @property
    def inputs(self) -> Mapping[str, Json]:
        """Both models, the prompts and the precision: what one phase shifts is small beside what bf16 rounds."""
        from lingraft.models.compute import compute_for

        return {
            "first": self.first.identity,
            "second": self.second.identity,
            "prompts": self._read,
            "precision": compute_for("float32").precision,
            "chat": CHAT_IDENTITY,
            "libraries": libraries(MODEL_LIBRARIES),
        }

    @cached_property
    def _read(self) -> str:
        """Fingerprint of what the models read; a prompt's group changes no state."""
        return fingerprint_of(
            [
                {
                    "messages": [asdict(one) for one in prompt.messages],
                    "language": prompt.language,
                    "fold_system": prompt.fold_system,
                }
                for prompt in self.prompts
            ]
        )

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        """The stages that made the models."""
        return stages_of(self.first, self.second)

    @property
    def needs(self) -> Needs:
        """One model in float32."""
        return Needs("accelerator", 4 * self.first.parameters or None)

    @property
    def holds(self) -> str:
        """The first model's states, which cells that share Phase 1 share."""
        return fingerprint_of([self.first.identity, self._read])

    def work(self, place: Workplace) -> Work:
        """Run both models over the prompts, the first only where its states are not held any more."""
        from lingraft.models.compute import compute_for
        from lingraft.representation.drift import drift_between
        from lingraft.representation.states import encode_alike, model_states

        compute = compute_for("float32")

        def states_before() -> tuple[list[LayerStates], EncodedPrompts]:
            folder = place.model(self.first)
            encoded = encode_alike([str(folder)], self.prompts, trust_remote_code=self.trust_remote_code)
            states = model_states(
                folder,
                encoded,
                compute=compute,
                trust_remote_code=self.trust_remote_code,
                on_progress=place.progressed,
            )
            return states, encoded

        before, encoded = place.shelf.get(self.holds, states_before)
        after = model_states(
            place.model(self.second),
            encoded,
            compute=compute,
            trust_remote_code=self.trust_remote_code,
            on_progress=place.progressed,
        )
        result = drift_between(self.label, before, after).to_json()
        del result["model"]  # a label, which is not what a record is compared by
        counts = {"prompts": len(encoded.ids), "tokens": sum(map(len, encoded.ids))}
        return Work(result | counts | {"truncated": encoded.truncated}, machine(compute))
