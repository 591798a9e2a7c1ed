"""Drift: where on the way through the layers the hidden states moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from lingraft.config.schema import Study
from lingraft.data.chat_format import CHAT_IDENTITY
from lingraft.intervals.macro_mean import mean_of_known
from lingraft.measures.base import (
    FROM_PHASE_ONE,
    Column,
    Figure,
    Found,
    Measure,
    MeasuredCell,
    Plot,
    PlottedCell,
    Taken,
)
from lingraft.measures.look import MIXED, PLAIN, SHAPES, WIDTH, Look, looks_of, shapes_of
from lingraft.records import fingerprint_of
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

    def plots(self, cells: Sequence[PlottedCell]) -> Iterator[Plot]:
        """Yield the paper's Figures 1 and 2 for plain training, and Figure C4, the same two for mitigations."""
        layers = {(cell.data, cell.strategy): own for cell in cells if (own := _points(cell))}
        looks = looks_of(cell.strategy for cell in cells)
        shapes = shapes_of(cell.data for cell in cells)
        plain = {key: own for key, own in layers.items() if key[1] == PLAIN}
        yield from _plot(
            "drift-by-layer",
            "Drift of the hidden states, by data set",
            "From Phase 1 to plain training on each data set",
            plain,
            len(plain) > len(SHAPES),
            partial(layer_curves, looks=looks, shapes=shapes),
        )
        if len(layers) > len(plain):
            yield from _plot(
                "drift-with-mitigations",
                "Drift of the hidden states, by strategy",
                "From Phase 1 to each cell",
                layers,
                len({data for data, _ in layers}) > 1,
                partial(layer_curves, looks=looks, shapes=shapes),
            )


def _plot(
    name: str,
    title: str,
    about: str,
    layers: Mapping[tuple[str, str], Sequence[LayerPoint]],
    are_apart: bool,
    draw: Callable[[Sequence[LayerPoint]], alt.VConcatChart],
) -> Iterator[Plot]:
    """Yield the figure of cells, by data set and strategy, each data set in a picture of its own or not."""
    named = dict.fromkeys(strategy for _, strategy in layers)
    strategies = sorted(named, key=lambda one: one not in (PLAIN, MIXED))[:_MOST_LINES]  # the bounds first
    n_layers = max((len(own) for own in layers.values()), default=0)
    if not n_layers:
        return
    most = max(2, min(_MOST_PANELS, _MOST_POINTS // (n_layers * len(strategies))))
    data = list(dict.fromkeys(one for one, _ in layers))[:most]
    drawn = {key: own for key, own in layers.items() if key[0] in data and key[1] in strategies}
    more = f" Drawn are {len(drawn)} of {len(layers)} cells." if len(drawn) < len(layers) else ""
    ratios = [
        f"{' / '.join(key)} {ratio:.1f}"
        for key, own in drawn.items()
        if (ratio := upper_to_lower(own)) is not None
    ]
    yield Plot(
        name,
        title,
        f"{about}, layer by layer: the cosine of the mean states (1: same direction) and the relative change of their "
        "covariance, over every token of the prompts; several seeds are drawn as their mean. The paper finds that "
        "dissimilar data shift high layers 3 to 4 times as much (Figures 1 and 2), and that mitigations shrink the "
        f"shift (Figure C4).{more}",
        partial(
            draw, [replace(one, panel=one.data if are_apart else "") for own in drawn.values() for one in own]
        ),
        "Two line charts over the decoder layers. Mean change of the covariance in the upper third of the layers "
        f"over that in the lower third: {'; '.join(ratios[:_MOST_NAMED]) or 'not known'}.",
    )


_MOST_PANELS: Final = 12  # data sets drawn apart
_MOST_LINES: Final = 10  # strategies of one picture
_MOST_POINTS: Final = 2500  # of all lines
_MOST_NAMED: Final = 12  # cells in a text alternative


@dataclass(frozen=True, slots=True)
class LayerPoint:
    """A layer of a model in the figure.

    Attributes:
        data: Its marks' shape stands for it.
        strategy: Its colour stands for it.
        layer: From 0.
        cosine: Of the mean states.
        covariance: Relative change of the covariance.
        panel: Which picture it is drawn in.
    """

    data: str
    strategy: str
    layer: int
    cosine: float | None
    covariance: float | None
    panel: str = ""


def _points(cell: PlottedCell) -> list[LayerPoint]:
    """Return the layers of a cell, of several seeds their mean."""
    layers: dict[int, list[Mapping[str, Any]]] = {}
    for measured in cell.seeds:
        one = measured.found.get(FROM_PHASE_ONE)
        details = None if one is None else one.details
        found = details.get("layers") if isinstance(details, dict) else None
        for layer in found if isinstance(found, list) else []:
            if isinstance(layer, dict) and isinstance(number := layer.get("layer"), int):
                layers.setdefault(number, []).append(layer)
    return [
        LayerPoint(
            cell.data,
            cell.strategy,
            number,
            mean_of_known([_number(one.get("mean_cosine")) for one in own]),
            mean_of_known([_number(one.get("covariance_change")) for one in own]),
        )
        for number, own in sorted(layers.items())
    ]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def upper_to_lower(points: Sequence[LayerPoint]) -> float | None:
    """Return the mean change of the covariance in the upper third of the layers over that in the lower third.

    None: nothing moved there.
    """
    third = max(1, len(points) // 3)
    lower, upper = (
        mean_of_known([one.covariance for one in own]) for own in (points[:third], points[-third:])
    )
    return upper / lower if lower and upper is not None else None


def layer_curves(
    points: Sequence[LayerPoint], looks: Mapping[str, Look], shapes: Mapping[str, str], model: str = ""
) -> alt.VConcatChart:
    """Draw the cosine of the mean states and the change of the covariance over the layers, a line for each model.

    Args:
        points: The layers.
        looks: Of the strategies.
        shapes: Of the data sets.
        model: Title of the legend, where colours and shapes stand for the same; empty: they do not.
    """
    import altair as alt

    panels = list(dict.fromkeys(one.panel for one in points))
    strategies = {one.strategy for one in points}
    looks = {name: look for name, look in looks.items() if name in strategies}
    data = {one.data for one in points}
    shapes = {name: shape for name, shape in shapes.items() if name in data}
    rows = alt.Data(
        values=[
            {
                name: float(f"{value:.5g}") if isinstance(value, float) else value
                for name, value in asdict(one).items()
            }
            | {"order": panels.index(one.panel)}
            for one in points
        ]
    )
    colours = alt.Scale(domain=list(looks), range=[one.colour for one in looks.values()])
    dashes = alt.Scale(domain=list(looks), range=[one.dash for one in looks.values()])
    many = len(panels) > 1
    key = "data" if model else "strategy"  # one field for all, so that there is one legend
    strategy = alt.Legend(title=model or "strategy", symbolLimit=0) if len(looks) > 1 else None
    shape = alt.Legend(title=model or "data", symbolLimit=0) if len(shapes) > 1 and not many else None
    charts = []
    for field, title, scale in (
        ("cosine", "cosine of mean states", alt.Scale(zero=False)),
        ("covariance", "change of covariance", alt.Scale(zero=True)),
    ):
        lines = alt.Chart().encode(
            x=alt.X("layer:Q", title="decoder layer", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y(f"{field}:Q", title=title, scale=scale),
            color=alt.Color(f"{key}:N", scale=colours, legend=strategy),
            detail="data:N",
        )
        hover = [
            alt.Tooltip("data:N", title=model or "data"),
            *([] if model else [alt.Tooltip("strategy:N", title="strategy")]),
            alt.Tooltip("layer:Q", title="layer"),
            alt.Tooltip(f"{field}:Q", title=title, format=".4f"),
        ]
        chart = alt.layer(
            lines.mark_line(strokeWidth=1.8).encode(
                strokeDash=alt.StrokeDash(f"{key}:N", scale=dashes, legend=strategy)
            ),
            lines.mark_point(size=14 if many else 28, filled=True, opacity=1).encode(
                shape=alt.Shape(
                    "data:N", scale=alt.Scale(domain=list(shapes), range=list(shapes.values())), legend=shape
                ),
                tooltip=hover,
            ),
        ).properties(width=WIDTH // 2 - 40 if many else WIDTH, height=180)
        facet = alt.Facet("panel:N", title=None, sort=alt.EncodingSortField("order", op="min"))
        charts.append(chart.facet(facet=facet, columns=2, data=rows) if many else chart.properties(data=rows))
    return alt.vconcat(*charts)


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
        size = 4 * self.first.parameters or None
        return Needs("accelerator", size, host_bytes=size)

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
