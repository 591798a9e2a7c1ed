"""SSU: shield the input columns of each weight matrix that English uses most."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lingraft.data.batching import token_budget_batches
from lingraft.data.special_tokens import special_tokens
from lingraft.models.layers import layer_of
from lingraft.records import read_json, write_text_atomically
from lingraft.strategies.base import FREEZES_WITH_LORA, Context, Need, Strategy

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SCORES = "scores.safetensors"
_RECORD = "calibration.json"
TOKENS_PER_BATCH = 2048


class Ssu(Strategy):
    """Freeze the input columns that English uses most, in every weight matrix (source-shielded updates).

    On calibration rows of the data that must not be forgotten, column j of a linear layer's weight W scores
    s_j = ||W[:, j]||_2 * mean over tokens of x_j^2, x its input; the round(share * columns) with the highest score are
    frozen. Of vectors (norms, biases) the same share of the largest absolute values is frozen. Embeddings and head
    train, except the rows of special tokens.

    The scores are taken once of the model that the phase starts from and kept beside it; frozen elements have no
    gradient and no weight decay, and are verified bit for bit after training.

    Cost: one forward pass over the calibration tokens; every step one pass over the gradients; with weight decay a copy
    of the weights.

    Defaults: half, as in the paper, which calibrates on about a million tokens. Source: arXiv 2512.04844. Relatives:
    freeze_modules, half.
    """

    kind: ClassVar[str] = "ssu"
    conflicts: ClassVar[dict[str, str]] = FREEZES_WITH_LORA

    share: float = Field(0.5, ge=0, le=1)
    """Share of every matrix's columns that is frozen."""
    tokens: int = Field(32768, ge=1)
    """Calibration tokens: of Phase 1's rows; where unknown of the set's `english`; else of the model's own making."""

    @property
    def uses(self) -> frozenset[Need]:
        """What stands for the data that must not be forgotten, where it is known."""
        return frozenset(("old_english",))

    @property
    def preparation(self) -> Mapping[str, object] | None:
        """The calibration's size; shares of one scan share it."""
        return {"tokens": self.tokens} if self.share > 0 else None

    def prepare(
        self, load: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, context: Context
    ) -> Mapping[str, object]:
        """Write the column scores of every matrix of the decoder layers.

        Raises:
            StrategyError: One of them is no linear layer's, nor an expert's; see `_column_scores`.
        """
        from safetensors.torch import save_file

        from lingraft.strategies.calibration import calibration_of

        calibration = calibration_of(self.kind, tokenizer, context, self.tokens)
        model = load()
        calibration.check(model, tokenizer)
        scores = _column_scores(model, [row.input_ids for row in calibration.rows], context)
        save_file(scores, context.folder / _SCORES)
        record = calibration.to_json() | {"special_tokens": sorted(special_tokens(tokenizer))}
        write_text_atomically(context.folder / _RECORD, json.dumps(record))
        return record

    def held_bytes(self, parameters: int, trained: int, width: int) -> int:  # noqa: ARG002
        """Return the size of the mask: a byte a parameter."""
        return trained

    def frozen_mask(self, model: PreTrainedModel, context: Context) -> Mapping[str, Tensor]:
        """Return the frozen columns [1, in], rows of special tokens [V, 1] and elements of vectors [n].

        Columns are [in, 1] where a weight is stored as [in, out], and [E, 1, in] or [E, in, 1] of a stack of experts.
        """
        if self.share == 0:
            return {}
        import torch
        from safetensors.torch import load_file

        folder = context.states[self.kind]
        scores = load_file(folder / _SCORES)
        special = read_json(folder / _RECORD)["special_tokens"]
        ends: tuple[Any, ...] = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
        masks: dict[str, Tensor] = {}
        if any(
            parameter.is_meta for parameter in model.parameters()
        ):  # the first process alone holds the weights
            from lingraft.models.weights import ModelWeights

            from_files = ModelWeights(context.previous, trust_remote_code=context.trust_remote_code)
        for name, parameter in model.named_parameters():
            if name in scores:  # [in], [in, 1], or of a stack [E, 1, in] or [E, in, 1]
                own = scores[name][None, :] if scores[name].dim() == 1 else scores[name]
                columns = own if own.dim() == 3 else own[None]
                highest = [_highest(one.reshape(-1), self.share).view(one.shape) for one in columns]
                masks[name] = torch.stack(highest).view(own.shape)
            elif _is_vector(name, parameter):
                sizes = (
                    from_files.tensor(name).to(parameter.dtype)
                    if parameter.is_meta
                    else parameter.detach().cpu()
                ).abs()
                rows = sizes.view(-1, sizes.shape[-1])
                masks[name] = torch.stack([_highest(row, self.share) for row in rows]).view(sizes.shape)
            elif any(parameter is end.weight for end in ends):  # not a table of positions
                masks[name] = torch.zeros((parameter.shape[0], 1), dtype=torch.bool)
                masks[name][[token for token in special if token < parameter.shape[0]]] = True
        return masks


def _is_vector(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is no matrix; a stack of experts' biases [E, out] is as many vectors."""
    return parameter.dim() == 1 or name.endswith("bias")


def _highest(scores: Tensor, share: float) -> Tensor:
    """Return where the round(share * n) highest of n scores are; of equal ones the first."""
    import torch

    chosen = torch.argsort(scores, descending=True, stable=True)[: round(share * len(scores))]
    found = torch.zeros(len(scores), dtype=torch.bool)
    found[chosen] = True
    return found


def _column_scores(model: Any, rows: list[tuple[int, ...]], context: Context) -> dict[str, Tensor]:
    """Run the decoder over the rows and return ||W[:, j]||_2 * mean x_j^2 of the columns of every matrix in its layers.

    Returns:
        By parameter: [in] of a linear layer's weight [out, in]; [in, 1] of one that is stored as [in, out]; [E, 1, in]
        of a stack of E experts' weights [E, out, in], [E, in, 1] of [E, in, out], the tokens of each being those that
        it was sent.

    Raises:
        StrategyError: A matrix of a decoder layer meets tokens in another way, so that it has no such columns.
    """
    import torch

    from lingraft.strategies.watched_inputs import WatchedInputs

    watched = WatchedInputs(
        {
            name: parameter
            for name, parameter in model.named_parameters()
            if layer_of(name) is not None and not _is_vector(name, parameter)
        }
    )
    # An expert is sent some tokens of a batch, and which of them fill up a row is no longer known there.
    alone = any("experts" in name for name, _ in model.named_parameters())
    batches = (
        [[row] for row in range(len(rows))]
        if alone
        else token_budget_batches([len(row) for row in rows], TOKENS_PER_BATCH, seed=0, epoch=0)
    )
    done = 0
    with _experts_one_by_one(model), torch.inference_mode(), context.compute.autocast(), watched:
        for batch in batches:
            longest = max(len(rows[row]) for row in batch)
            ids = torch.zeros((len(batch), longest), dtype=torch.long)
            watched.real = torch.zeros((len(batch), longest))
            for place, row in enumerate(batch):
                ids[place, : len(rows[row])] = torch.tensor(rows[row])
                watched.real[place, : len(rows[row])] = 1.0
            model.base_model(input_ids=ids.to(model.device), use_cache=False)  # no head: no logits are needed
            watched.check()
            done += int(watched.real.sum())
            if context.on_progress is not None:
                context.on_progress(done, sum(map(len, rows)))
    total = sum(map(len, rows))
    return {name: own.float() for name, own in watched.scores(total).items()}


@contextmanager
def _experts_one_by_one(model: Any) -> Iterator[None]:
    """Let a mixture multiply each expert's tokens by that expert's own weights, not all of them in one product."""
    before = getattr(model.config, "_experts_implementation", None)
    if before is None or not model._can_set_experts_implementation():
        yield
        return
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)
