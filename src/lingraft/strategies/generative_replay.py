"""GR: mix answers of the previous phase's model into Phase 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from lingraft.config.schema import Backend
from lingraft.data.example import Example
from lingraft.data.example_table import select
from lingraft.data.mixing import interleave, replay_count, replay_order
from lingraft.errors import StrategyError
from lingraft.models.server_engine import check_server, engine_of
from lingraft.strategies.base import Context, Mix, Need, Strategy

Prompts = Literal["parallel", "phase_one", "self"]

_NEEDS: dict[str, Need] = {"parallel": "english", "phase_one": "previous_data", "self": "previous"}


class GenerativeReplay(Strategy):
    """Mix prompts that the previous phase's model answers into the phase (the paper's GR_5 and GR_10).

    n = share / (1 - share) * n_new rows, so that `share` is of the final mix; whether the paper means that is open.
    The prompts are, in this order of preference or as `prompts` says: the set's English parallels, those of the
    phase's own rows first (the paper's way); Phase 1's prompts; prompts that the model writes itself from an empty
    user turn, for which nothing old is needed. Answers that are empty, loop or were cut off are dropped and the next
    prompt is taken; rows that are missing in the end are a shortfall, reported and recorded; nothing is repeated.

    Greedy answers are the default, as in Magpie; how the paper's model answered is not said there. Shares of one run
    share their answers: those of a smaller share are the first of a larger one.

    Cost: one generation of about n answers, then training takes 1 / (1 - share) as long; while it generates, the
    previous model (2 bytes per parameter in bf16) and its key-value cache are in memory, before the one that trains.

    Source: arXiv 2410.16006; prompts from an empty user turn: arXiv 2406.08464. Relatives: english_replay.
    """

    kind: ClassVar[str] = "generative_replay"

    share: float = Field(0.05, ge=0, lt=1)
    """Share of the final mix."""
    prompts: Literal["auto", "parallel", "phase_one", "self"] = "auto"
    """`parallel`: of the set's `english`; `phase_one`: of Phase 1's training rows; `self`: of the model's own making;
    `auto`: the first of these that the study has."""
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Of the answers; 0: greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Of the answers: only the most probable tokens that together have this probability."""
    max_new_tokens: int = Field(256, ge=1)
    """Answers that are longer are dropped."""
    batch_size: int = Field(16, ge=1)
    """Answers generated together by transformers."""
    backend: Backend = "transformers"
    """What generates: transformers, generate or a server, as of `evaluate.backend`."""

    @field_validator("backend")
    @classmethod
    def _is_installed(cls, backend: Backend) -> Backend:
        if not isinstance(backend, str):
            check_server(backend)
        return backend

    @property
    def identity(self) -> Mapping[str, object]:
        """The options; of a server what decides its answers."""
        engine = "transformers" if isinstance(self.backend, str) else engine_of(self.backend)
        return {**super().identity, "backend": engine}

    @property
    def needs(self) -> frozenset[Need]:
        """The previous phase's model, and the prompts that are asked for by name."""
        return frozenset(("previous", _NEEDS.get(self.prompts, "previous")))

    @property
    def uses(self) -> frozenset[Need]:
        """What it needs; with `auto` also whatever prompts there are."""
        return frozenset(_NEEDS.values()) if self.prompts == "auto" else self.needs

    @property
    def mixes(self) -> bool:
        """Unless its share is 0."""
        return self.share > 0

    def mix(self, phase_data: Sequence[Example], context: Context) -> Mix:
        """Return the phase's examples with the generated ones among them.

        Raises:
            StrategyError: There are no prompts, or no answer is fit to train on.
            ModelError: The model cannot generate; see `replay_rows.make_replay`.
        """
        wanted = replay_count(len(phase_data), self.share)
        if not wanted:
            return Mix(phase_data)
        from lingraft.models.generation import Sampling
        from lingraft.strategies.replay_rows import ReplaySettings, make_replay

        source: Prompts
        if self.prompts != "auto":
            source = self.prompts
        elif context.english:
            source = "parallel"
        else:
            source = "phase_one" if context.previous_data else "self"
        pool = None
        if source != "self":  # the rows whose answers are made anew, in the order in which they are taken
            rows = context.english if source == "parallel" else context.previous_data
            parallel_to = phase_data if source == "parallel" else ()
            pool = select(rows, replay_order(rows, context.generator(self.kind), parallel_to))
        made = make_replay(
            context.previous,
            wanted,
            ReplaySettings(
                Sampling(self.temperature, self.top_p, self.max_new_tokens),
                context.seed_of(self.kind),
                context.compute,
                self.backend,
                self.batch_size,
                context.trust_remote_code,
                context.workers,
            ),
            context.cache,
            source=source,
            pool=pool,
            on_progress=context.on_progress,
            noted=context.noted,
        )
        if not made.examples:
            raise StrategyError(
                f"'generative_replay': {wanted} rows are asked for, and no answer to the prompts ({source}) is fit to "
                f"train on; dropped: {made.dropped}. Raise `max_new_tokens`, take other `prompts`, or leave it out."
            )
        mixed = interleave(phase_data, made.examples, context.seed_of(f"{self.kind} order"))
        count = len(made.examples)
        return Mix(mixed, count, wanted - count, made.dropped, ((made.origin, count),))
