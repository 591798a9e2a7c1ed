"""The rows of a phase with what strategies mix in, as a data set for a script's own Trainer."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from lingraft.config.schema import Training
from lingraft.data.chat import EncodedData, encode_examples
from lingraft.data.encoded import EncodedTable
from lingraft.data.example import Example
from lingraft.data.given_rows import GivenRows, rows_of
from lingraft.errors import DataError, StrategyError
from lingraft.models.loading import model_folder
from lingraft.strategies.base import Context, Mix
from lingraft.strategies.composition import Composition, composition_of

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

REPLAYED = "replayed"
"""Column that tells which rows a strategy mixed in."""

_IGNORED = -100  # label that no loss of transformers or TRL counts
_ROWS_AT_ONCE = 1000


def mixed_rows(
    rows: GivenRows,
    strategies: object,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    previous: str | Path | None = None,
    base: str | Path | None = None,
    english: GivenRows = (),
    previous_data: GivenRows = (),
    seed: int = 0,
    folder: str | Path | None = None,
    max_length: int = Training().max_length,
    trust_remote_code: bool = False,
) -> Dataset:
    """Return a phase's rows with what the strategies mix in among them, as a `datasets.Dataset` to train on.

    Its rows are what lingraft's own training of the same rows, strategies and seed would see, in the same order before
    the batches are drawn. Strategies that mix nothing in leave the rows as they are, so one list of strategies serves
    here and in `apply_strategies`. What is dropped, truncated or short is counted in a warning.

    Args:
        rows: The new language's: a file's name, a `datasets.Dataset`, dicts, or examples.
        strategies: One strategy or a list that is applied together, as in a study file: `"english_replay"`,
            `["english_replay", {"ssu": {"share": 0.5}}]`.
        tokenizer: Of the model. With it rows are tokens: `input_ids`, and `labels` with -100 where lingraft's training
            takes no loss (all but answers). None: rows are conversations, `messages`, which the trainer encodes.
        previous: Folder or hub id of the model that training starts from; its answers are what generative_replay mixes
            in.
        base: Folder or hub id of the base model; for a strategy of your own.
        english: English rows to draw from; parallel ones first.
        previous_data: Phase 1's training rows, where a strategy says `from: phase_one`.
        seed: Decides what is drawn and where it stands.
        folder: Where generated answers are kept and found again; None: nowhere.
        max_length: Longest row in tokens, with a tokenizer; the rest is cut off.
        trust_remote_code: Run Python code that the model brings along.

    Returns:
        The rows; the column `replayed` is true where a strategy mixed the row in.

    Raises:
        ConfigError: A strategy or option is unknown.
        StrategyError: What a strategy draws from is not given, or is empty.
        DataError: The rows cannot be read, or the chat template leaves none of them.
    """
    composition = composition_of(strategies)
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        context = context_of(
            previous=previous,
            base=base,
            english=english,
            previous_data=previous_data,
            seed=seed,
            folder=Path(temporary if folder is None else folder),
            trust_remote_code=trust_remote_code,
            noted=notes.append,
        )
        for part in composition.parts:
            needed: frozenset[str] = part.needs if part.mixes else frozenset()
            given = {"english": context.english, "previous_data": context.previous_data, "previous": previous}
            for name in sorted(needed & set(given)):
                if not given[name]:
                    raise StrategyError(
                        f"{part.kind!r} mixes in what it takes from `{name}`: call mixed_rows with {name}=..., too."
                    )
        new = rows_of(rows, "rows", seed=seed, noted=notes.append)
        if not len(new):
            raise DataError("rows: there are no rows to train on.")
        mix = composition.mix(new, context)
        if tokenizer is None:
            table = _conversations(mix.examples)
            notes += notes_on_mix(composition, mix)
        else:
            encoded = encode_examples(mix.examples, tokenizer, max_length)
            table = _tokens(encoded.examples)
            notes += notes_on_mix(composition, mix, encoded, max_length)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    from datasets import Dataset

    return Dataset(table)


def notes_on_mix(
    composition: Composition, mix: Mix, encoded: EncodedData | None = None, max_length: int = 0
) -> Iterator[str]:
    """Say what of a mix fell short, and what of it was truncated or dropped where it is encoded."""
    rows, replayed = len(mix.examples), mix.replayed
    if encoded is not None:
        rows, replayed = len(encoded.examples), encoded.examples.replayed_rows
    share = replayed / rows
    if mix.shortfall:
        yield f"{mix.shortfall} replay examples fewer than asked for; the realised share is {share:.3f}."
    idle = [part.kind for part in composition.parts if part.holds_replayed]
    if idle and not replayed:
        yield (
            f"{idle[0]!r} acts on replayed rows, and there are none: the phase is trained without it. "
            "Give it a `share`, or compose it with a strategy that replays."
        )
    if mix.dropped:
        dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(mix.dropped.items()))
        yield f"replay examples that were dropped: {dropped}."
    if encoded is None:
        return
    if encoded.truncated or encoded.dropped:
        yield (
            f"{encoded.truncated} examples truncated to {max_length} tokens, "
            f"{len(encoded.dropped)} dropped because the chat template refuses them or no answer was left."
        )
    for number, what in encoded.handled_sentences():
        yield f"{number} {what}."
    lost = mix.replayed - replayed
    if lost:
        yield f"{lost} of the dropped examples were replayed; the realised share is {share:.3f}."


def context_of(
    *,
    previous: str | Path | None,
    base: str | Path | None,
    english: GivenRows,
    previous_data: GivenRows,
    seed: int,
    folder: Path,
    trust_remote_code: bool,
    noted: Callable[[str], None],
) -> Context:
    """Return what the past left, as a script names it; see `mixed_rows`."""

    def found(model: str | Path | None, name: str) -> Path | None:
        if model is None:
            return None
        if not isinstance(model, (str, Path)) or not str(model).strip():
            shown = repr(model) if isinstance(model, str) else type(model).__name__
            raise StrategyError(
                f"{name}: {shown} is no folder or hub id, and strategies read a model's files."
            )
        return model_folder(str(model), trust_remote_code=trust_remote_code)

    return Context(
        base=found(base, "base"),
        previous=found(previous, "previous") or Path(),
        previous_data=rows_of(previous_data, "previous_data", seed=seed, noted=noted),
        english=rows_of(english, "english", seed=seed, noted=noted),
        seed=seed,
        folder=folder,
        cache=folder,
        trust_remote_code=trust_remote_code,
        noted=noted,
    )


def _conversations(examples: Sequence[Example]) -> pa.Table:
    """Return rows as TRL and chat templates take them."""
    import pyarrow as pa

    rows = [
        {"messages": [turn.to_template() for turn in one.messages], REPLAYED: one.origin.kind != "original"}
        for one in examples
    ]
    table = pa.Table.from_pylist(rows)
    tools = [one.tools or None for one in examples]
    return table.append_column("tools", pa.array(tools, pa.string())) if any(tools) else table


def _tokens(encoded: EncodedTable) -> pa.Table:
    """Return rows of tokens, with labels where the loss sees them."""
    import pyarrow as pa

    tokens = pa.list_(pa.int32())
    schema = pa.schema({"input_ids": tokens, "labels": tokens, REPLAYED: pa.bool_()})
    batches, remaining = [], iter(encoded)
    while piece := list(islice(remaining, _ROWS_AT_ONCE)):
        labels = [
            [token if seen else _IGNORED for token, seen in zip(one.input_ids, one.supervised, strict=True)]
            for one in piece
        ]
        columns = [pa.array([one.input_ids for one in piece], tokens), pa.array(labels, tokens)]
        columns.append(pa.array([one.replayed for one in piece]))
        batches.append(pa.RecordBatch.from_arrays(columns, schema=schema))
    return pa.Table.from_batches(batches)
