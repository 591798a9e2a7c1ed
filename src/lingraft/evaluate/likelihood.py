"""How likely a model finds continuations of contexts, for the harness's likelihood tasks.

A context that several continuations share, such as the choices of a question, is read once; the output head sees the
positions that predict a continuation and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lingraft.models.generation import batches_within, empty_cache, keeps_all, takes_positions
from lingraft.models.loss import SupervisedHead, cross_entropy

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DynamicCache, PreTrainedModel

    from lingraft.models.answering import Answering, Held

_HEAD_TOKENS = 8  # a position whose logits are made counts as so many tokens of a batch

Score = tuple[float, bool]


@dataclass(frozen=True, slots=True)
class Pair:
    """A context and a continuation as token ids; neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a forward pass: a context that `places` share, or a context with the continuation of one place."""

    ids: tuple[int, ...]
    kept: int  # the last positions, which predict something
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Predicted:
    """Tokens that positions predict: N of them, with the place that each belongs to."""

    logits: Tensor  # [N, vocabulary]
    tokens: list[int]
    places: list[int]


@dataclass(frozen=True, slots=True)
class ScoreRows:
    """Rows of one forward pass with the continuations that are scored, by place: a `Batch`."""

    rows: tuple[_Row, ...]
    pairs: Mapping[int, Pair]

    def __call__(self, held: Held) -> dict[int, Score]:
        """Return each place's score."""
        return _scores(held.model, self.rows, self.pairs)


def continuation_scores(
    answering: Answering,
    pairs: Sequence[Pair],
    *,
    max_length: int,
    tokens_per_batch: int,
    is_done: Callable[[int], bool] = lambda _: False,
) -> Iterator[dict[int, Score]]:
    """Score continuations, and yield each batch when it is finished, by place in `pairs`.

    A batch of which anything is missing is made whole again; see `planned_batches`.

    Args:
        answering: Asks a causal language model, which is left as it is.
        pairs: What is scored.
        max_length: Tokens that the model reads; what is longer loses its beginning.
        tokens_per_batch: Most tokens of a batch, padding included, were no context shared.
        is_done: Whether a place's score is not needed.

    Yields:
        By place: the sum of the continuation's log-probabilities in nats, taken in float32, and whether greedy
        decoding would give it.
    """
    # A shared context is followed by padding: the model needs the positions of the tokens after it.
    cache = empty_cache(answering.model)
    can_share = cache is not None and keeps_all(cache) and takes_positions(answering.model)
    rows = _rows(pairs, max_length, can_share=can_share)
    sizes = []  # tokens of each row, and those that its continuations add
    for row in rows:
        if len(row.places) == 1:
            sizes.append((len(row.ids), max(0, _HEAD_TOKENS * row.kept - len(row.ids))))
            continue
        added = [len(pairs[place].continuation) for place in row.places]
        continued = max(len(added) * max(added), _HEAD_TOKENS * sum(added))
        sizes.append((len(row.ids), (len(added) - 1) * len(row.ids) + continued))
    longest_first = sorted(range(len(rows)), key=lambda number: (-sum(sizes[number]), number))
    batches = []
    for batch in batches_within(longest_first, sizes, len(rows), tokens_per_batch):
        own = tuple(rows[number] for number in batch)
        places = [place for row in own for place in row.places]
        if not all(map(is_done, places)):
            batches.append(ScoreRows(own, {place: pairs[place] for place in places}))
    for _, scores in answering.answers(batches):
        yield scores


def _rows(pairs: Sequence[Pair], max_length: int, *, can_share: bool) -> list[_Row]:
    shared: dict[tuple[int, ...], list[int]] = {}
    rows = []
    for place, pair in enumerate(pairs):
        whole = (*pair.context, *pair.continuation)
        if can_share and len(whole) <= max_length:
            shared.setdefault(pair.context, []).append(place)
        else:
            rows.append(_alone(pair, place, max_length))
    for context, places in shared.items():
        alone = len(places) == 1
        rows.append(
            _alone(pairs[places[0]], places[0], max_length) if alone else _Row(context, 1, tuple(places))
        )
    return rows


def _alone(pair: Pair, place: int, max_length: int) -> _Row:
    ids = (*pair.context, *pair.continuation)[-(max_length + 1) :][:-1]
    return _Row(ids, min(len(pair.continuation), len(ids)), (place,))


@torch.inference_mode()
def _scores(model: PreTrainedModel, rows: Sequence[_Row], pairs: Mapping[int, Pair]) -> dict[int, Score]:
    is_shared = any(len(row.places) > 1 for row in rows)
    cache = empty_cache(model) if is_shared else None
    found = [_first_tokens(model, rows, pairs, cache)]
    later = [
        (number, place)
        for number, row in enumerate(rows)
        if len(row.places) > 1
        for place in row.places
        if len(pairs[place].continuation) > 1
    ]
    if cache is not None and later:
        found.append(_later_tokens(model, rows, pairs, cache, later))
    sums = {place: 0.0 for row in rows for place in row.places}
    greedy = dict.fromkeys(sums, True)
    for one in found:
        tokens = torch.tensor(one.tokens, device=one.logits.device)
        values = (-cross_entropy(one.logits, tokens)).tolist()
        hits = (one.logits.argmax(dim=-1) == tokens).tolist()
        for place, value, hit in zip(one.places, values, hits, strict=True):
            sums[place] += value
            greedy[place] &= hit
    return {place: (value, greedy[place]) for place, value in sums.items()}


def _first_tokens(
    model: PreTrainedModel, rows: Sequence[_Row], pairs: Mapping[int, Pair], cache: DynamicCache | None
) -> _Predicted:
    """Read the rows, padded at their end; return what they predict: of a shared context, each first token."""
    ids = _padded([row.ids for row in rows], model.device)
    kept = [
        number * ids.shape[1] + place
        for number, row in enumerate(rows)
        for place in range(len(row.ids) - row.kept, len(row.ids))
    ]
    with SupervisedHead(model, torch.tensor(kept)):  # no mask: causal, so padding at the end is never seen
        options: dict[str, Any] = {"use_cache": False} if cache is None else {"past_key_values": cache}
        logits = model(input_ids=ids, **options).logits
    chosen: list[int] = []
    tokens: list[int] = []
    places: list[int] = []
    start = 0
    for row in rows:
        for place in row.places:
            said = pairs[place].continuation
            wanted = said[-row.kept :] if len(row.places) == 1 else said[:1]
            chosen += range(start, start + len(wanted))
            tokens += wanted
            places += [place] * len(wanted)
        start += row.kept
    return _Predicted(logits[torch.tensor(chosen, device=logits.device)], tokens, places)


def _later_tokens(
    model: PreTrainedModel,
    rows: Sequence[_Row],
    pairs: Mapping[int, Pair],
    cache: DynamicCache,
    later: Sequence[tuple[int, int]],
) -> _Predicted:
    """Read the continuations after their contexts, whose keys and values are in the cache: by row and place."""
    said = [pairs[place].continuation for _, place in later]
    ids = _padded([one[:-1] for one in said], model.device)
    lengths = torch.tensor([len(rows[number].ids) for number, _ in later])
    before = torch.arange(cache.get_seq_length()) < lengths[:, None]
    steps = torch.arange(ids.shape[1])
    cache.batch_select_indices(torch.tensor([number for number, _ in later], device=model.device))
    read = [number * ids.shape[1] + step for number, one in enumerate(said) for step in range(len(one) - 1)]
    with SupervisedHead(model, torch.tensor(read)):
        logits = model(
            input_ids=ids,
            attention_mask=torch.cat([before, torch.ones(ids.shape, dtype=torch.bool)], dim=1).to(
                model.device
            ),
            position_ids=(lengths[:, None] + steps).to(model.device),
            past_key_values=cache,
        ).logits
    tokens = [token for one in said for token in one[1:]]
    places = [place for (_, place), one in zip(later, said, strict=True) for _ in one[1:]]
    return _Predicted(logits, tokens, places)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
