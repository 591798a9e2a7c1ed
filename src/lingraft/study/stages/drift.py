"""The stage `drift`: how far a model's hidden states moved from another's, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import ClassVar

from lingraft.data.chat_format import CHAT_IDENTITY
from lingraft.models.compute import compute_for
from lingraft.records import fingerprint_of
from lingraft.representation.drift import drift_between
from lingraft.representation.prompts import Prompt
from lingraft.representation.states import EncodedPrompts, LayerStates, encode_alike, model_states
from lingraft.stage import (
    MODEL_LIBRARIES,
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


@dataclass(frozen=True, eq=False)
class Drift(StageSpec):
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
