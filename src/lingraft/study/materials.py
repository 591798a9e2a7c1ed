"""What a study needs before its first stage: data read and split, models found, strategies built.

Everything here is cheap beside training, and all of it happens before training, so that what can be known
to be wrong is known first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import numpy as np

from lingraft.config.schema import DataSource, PathStep, PhaseData, Study
from lingraft.data.example import UNDETERMINED_LANGUAGE, Example
from lingraft.data.example_table import columns_of, select, share_a_group
from lingraft.data.sources import DataSplit, LoadedData, draw_rows, hold_out, load_data, split_data
from lingraft.data.tokenizer_cost import LanguageCost, cost_warnings, language_costs
from lingraft.errors import ConfigError, ModelError, StrategyError
from lingraft.evaluate.held_out import item_of
from lingraft.models.loading import load_tokenizer, parameter_names, stated_rows
from lingraft.models.token_ids import check_token_ids, unknown_words
from lingraft.records import fingerprint_of, from_json
from lingraft.representation.prompts import Prompt, prompt_of, read_prompts
from lingraft.stage import GivenModel, Json, given_model
from lingraft.strategies.base import Need
from lingraft.strategies.composition import build
from lingraft.study.checks import place_of
from lingraft.study.events import Watcher
from lingraft.study.grid import Cell, cells_of, trained_phases
from lingraft.study.result import DataCounts
from lingraft.text.language_tags import ENGLISH, is_english

_SHOWN_BROKEN = 3  # places named in the record; all are counted


@dataclass(frozen=True)
class DataSet:
    """One named data set of a phase, read and split.

    Attributes:
        name: As the study file names it.
        loaded: All rows, and what was broken.
        held_out: Examples that are never trained on.
        identity: What decides its content, for fingerprints.
    """

    name: str
    source: DataSource
    loaded: LoadedData
    held_out: Sequence[Example]
    held_out_groups: int
    _splits: dict[int, DataSplit] = field(default_factory=dict, repr=False, compare=False)

    def split(self, seed: int) -> DataSplit:
        """Return the training rows that `seed` draws, and the held-out ones (the same for every seed)."""
        if seed not in self._splits:  # millions of rows take a minute, and are asked for several times
            self._splits[seed] = split_data(
                self.loaded, limit=self.source.limit, held_out_groups=self.held_out_groups, seed=seed
            )
        return self._splits[seed]

    @property
    def identity(self) -> dict[str, Json]:
        """All that decides the set's rows, as JSON; the seed comes from the cell."""
        return {
            "content": self.loaded.content_hash,
            "format": self.loaded.format,
            "fields": {str(name): place for name, place in self.source.fields.items()},
            "filters": self.source.filters.model_dump(mode="json"),
            "parallel": self.source.parallel,
            "system": self.source.system,
            "language": self.source.language,
            "limit": self.source.limit,
            "held_out": self.held_out_groups,
        }

    def counts(self, *, held_out: int, withheld: int, drawn: int, available: int) -> DataCounts:
        """Return what was read, dropped, withheld (see `Materials.drawn`) and fell short, for the record."""
        broken = self.loaded.broken
        return DataCounts(
            source=self.source.source,
            rows=self.loaded.n_rows,
            broken=len(broken),
            first_broken=tuple(f"{row.place}: {row.problem}" for row in broken[:_SHOWN_BROKEN]),
            filtered=dict(self.loaded.filtered),
            incomplete_groups=self.loaded.incomplete_groups,
            unknown_keys=dict(self.loaded.unknown_keys),
            max_broken_share=self.source.max_broken_share,
            held_out=held_out,
            withheld=withheld,
            train=drawn - withheld,
            shortfall=max(0, (self.source.limit or 0) - available),
        )

    @property
    def languages(self) -> tuple[str, ...]:
        """BCP-47 tags of its rows, sorted."""
        return columns_of(self.loaded.examples).languages


@dataclass(frozen=True)
class Drawn:
    """The rows of a data set that a phase may train on.

    Attributes:
        rows: What the set's limit and seed draw, without the withheld ones.
        withheld: The items of those that another set (or row) of the study holds out.
        identity: What decides them, for fingerprints.
        counts: What of the set was read, dropped, withheld and fell short, for the record.
    """

    rows: Sequence[Example]
    withheld: tuple[str, ...]
    identity: Mapping[str, Json]
    counts: DataCounts


@dataclass(frozen=True)
class Materials:
    """All that the stages draw from.

    Attributes:
        data: By phase and set name.
        english: The English parallel sets that some cell takes rows of, by how they are read; two sets may share one.
        instructions: The data set that stands for the instructions of a checkpoint Phase 1, if one is named.
        base: The base model, if the study names one.
        checkpoint: The model that stands for Phase 1, if it is not trained.
        languages: The languages other than English that are trained, sorted.
        cells: The grid.
        given_prompts: The prompts that the study names for drift; empty: it names none.
    """

    data: dict[tuple[str, str], DataSet]
    english: dict[str, DataSet]
    instructions: DataSet | None
    base: GivenModel | None
    checkpoint: GivenModel | None
    languages: tuple[str, ...]
    cells: tuple[Cell, ...]
    given_prompts: tuple[Prompt, ...] = ()

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """What drift is measured on: the prompts that the study names, else those of the held-out examples."""
        return self.given_prompts or tuple(map(prompt_of, self.held_out))

    @cached_property
    def held_out(self) -> tuple[Example, ...]:
        """The held-out examples of all trained sets, each once, in an order that the file's does not change."""
        found = {item_of(e): e for one in self.data.values() for e in one.held_out}
        return tuple(found[key] for key in sorted(found))

    def english_of(self, source: PhaseData) -> DataSet | None:
        """Return the English parallel of a set, or None where it names none or no cell takes rows of it."""
        english = _english_source(source)
        return None if english is None else self.english.get(english.model_dump_json())

    @cached_property
    def _held_out_turns(self) -> frozenset[str]:
        return frozenset(_turns(example) for example in self.held_out)

    @cached_property
    def _drawn(self) -> dict[tuple[int, int], Drawn]:
        return {}

    def drawn(self, data: DataSet, seed: int) -> Drawn:
        """Return the rows of a set that `seed` draws and that may be trained on.

        A set leaves out its own held-out groups. Where two sets of a study share conversations, one may hold out
        what the other would train on, under whatever id, group or language: such rows are withheld, so that what
        is measured was never trained on.
        """
        key = (id(data), seed)
        if key not in self._drawn:
            split = data.split(seed)
            rows, withheld = self._withhold(split.train)
            counts = data.counts(
                held_out=len(split.held_out),
                withheld=len(withheld),
                drawn=len(split.train),
                available=split.available,
            )
            self._drawn[key] = Drawn(rows, withheld, _identity(data, withheld), counts)
        return self._drawn[key]

    @cached_property
    def _drawn_english(self) -> dict[tuple[int, int, int | None], Drawn]:
        return {}

    def drawn_english(self, source: PhaseData, data: DataSet, seed: int) -> Drawn | None:
        """Return the rows of a set's English parallel that may be replayed; None: no cell takes any.

        They are the ones of groups that the set does not hold out, of these as many as the parallel's own `limit`
        allows, and of these the ones that no set holds out. Large ones stay on disk, and are gone through once a study
        (with a limit, once a seed).

        Args:
            source: The set, as the study file names it.
            data: The set, read.
            seed: Draws the rows where there is a limit.
        """
        english = self.english_of(source)
        if english is None:
            return None
        limit = english.source.limit
        key = (id(english), id(data), None if limit is None else seed)
        if key not in self._drawn_english:
            examples = english.loaded.examples
            available = np.flatnonzero(~share_a_group(examples, data.held_out))
            drawn = draw_rows(examples, available, limit, seed)
            rows, withheld = self._withhold(select(examples, drawn))
            identity: dict[str, Json] = {"english": _identity(english, withheld), "without": data.identity}
            identity |= {} if limit is None else {"seed": seed}
            counts = english.counts(
                held_out=0, withheld=len(withheld), drawn=len(drawn), available=len(available)
            )
            self._drawn_english[key] = Drawn(rows, withheld, identity, counts)
        return self._drawn_english[key]

    def _withhold(self, examples: Sequence[Example]) -> tuple[Sequence[Example], tuple[str, ...]]:
        """Return the examples that no set of the study holds out, and the items of the others."""
        if not self._held_out_turns:
            return examples, ()
        withheld = {
            row: item_of(one) for row, one in enumerate(examples) if _turns(one) in self._held_out_turns
        }
        if not withheld:
            return examples, ()
        kept = np.delete(np.arange(len(examples)), list(withheld))
        return select(examples, kept), tuple(sorted(withheld.values()))


def _identity(data: DataSet, withheld: tuple[str, ...]) -> dict[str, Json]:
    """Return what decides a set's training rows besides the seed."""
    return data.identity | ({"withheld": fingerprint_of(withheld)} if withheld else {})


def _turns(example: Example) -> str:
    """Return a short text that is equal where the conversations are."""
    return fingerprint_of([[message.role, message.content] for message in example.messages])


def gather(
    study: Study,
    base_folder: Path,
    watcher: Watcher | None = None,
    most_held_out: float | None = None,
) -> Materials:
    """Read, find and build all that `study` needs; `watcher` receives how far the data are read.

    Args:
        study: The study.
        base_folder: What relative paths are relative to.
        watcher: See above.
        most_held_out: Share of a set's groups that is held out at most; None: as many as `study.held_out` says.

    Raises:
        ConfigError: A strategy names parts that the model does not have, or a language is unknown; all such problems
            together.
        DataError, ModelError: A data set or model cannot be had.
    """
    cells = cells_of(study)
    used = {(step.phase, step.data) for cell in cells for step in cell.steps}
    read = partial(_read, base_folder=base_folder, watcher=watcher or Watcher(), most_held_out=most_held_out)
    data = {
        (phase.name, name): read(name, source, study.held_out)
        for phase in trained_phases(study)
        for name, source in phase.data.items()
        if (phase.name, name) in used  # `paths` may leave sets out
    }
    replayed = {
        (step.phase, step.data)
        for cell in cells
        for index, step in enumerate(cell.phases_one_by_one)
        if "english" in past_rows(study, index, step)
    }
    parallels = [
        _english_source(source)
        for phase in trained_phases(study)
        for name, source in phase.data.items()
        if (phase.name, name) in replayed
    ]
    sources = {one.model_dump_json(): one for one in parallels if one is not None}
    english = {key: read(one.source, one, 0) for key, one in sources.items()}
    first = study.phases[0]
    instructions = None
    if first.instructions is not None:
        instructions = read(first.name, first.instructions, 0, answered=False)
        _check_language(f"{study.name}: phase {first.name!r}, instructions", instructions)
    find = partial(given_model, trust_remote_code=study.trust_remote_code, is_trained_on=True)
    base = None if study.model is None else find(study.model)
    checkpoint = None if first.checkpoint is None else find(first.checkpoint)
    check_named_parts(cells, checkpoint or base, trust_remote_code=study.trust_remote_code)
    return Materials(
        data=data,
        english=english,
        instructions=instructions,
        base=base,
        checkpoint=checkpoint,
        languages=_languages(study, data),
        cells=cells,
        given_prompts=tuple(
            prompt
            for one in study.prompts
            for prompt in read_prompts(
                one.source, language=one.language, limit=one.limit, base_folder=base_folder
            )
        ),
    )


def past_rows(study: Study, index: int, step: PathStep) -> frozenset[Need]:
    """Return which rows of the past the strategies of a path's `index`-th trained phase take.

    `previous_data`, where Phase 1's rows are known, and `english`; what stands for the old English is one of them.
    """
    uses = build(step.strategy).uses
    known = study.phases[0].checkpoint is None and index > 0
    taken = set(uses)
    if "old_english" in uses:
        taken.add("previous_data" if known else "english")
    return frozenset(taken & ({"english", "previous_data"} if known else {"english"}))


def _english_source(source: PhaseData) -> DataSource | None:
    """Return how a set's English parallel is read, or None where it names none.

    It is grouped as the set itself is: else no row would be known for the parallel of another, held out or not.
    """
    if source.english is None:
        return None
    own = source.english
    return own.model_copy(
        update={"language": own.language or ENGLISH, "parallel": own.parallel or source.parallel}
    )


def report_costs(
    materials: Materials, watcher: Watcher, *, trust_remote_code: bool
) -> dict[str, dict[str, LanguageCost]]:
    """Report, before anything is trained, what each language costs in tokens; return it by data set."""
    model = materials.checkpoint or materials.base
    if model is None:
        return {}
    tokenizer = load_tokenizer(model.folder, trust_remote_code=trust_remote_code)
    found: dict[str, dict[str, LanguageCost]] = {}
    warnings: dict[str, None] = {}
    for (phase, name), one in materials.data.items():
        costs = language_costs(one.loaded.examples, tokenizer)
        watcher.tokenizer_costs(f"{phase}: {name}", costs)
        warnings.update(dict.fromkeys(cost_warnings(costs)))
        found[f"{phase}/{name}"] = {
            tag: from_json(LanguageCost, cost.to_json())
            for tag, cost in costs.items()  # rounded
        }
    for warning in warnings:
        watcher.noted(warning)
    return found


def check_added_tokens(materials: Materials, *, trust_remote_code: bool) -> None:
    """Refuse rows that spell a token which was added to the tokenizer alone, before anything is evaluated or trained.

    Raises:
        ModelError: With the first such row of every data set.
    """
    model = materials.checkpoint or materials.base
    rows = None if model is None else stated_rows(model.folder, trust_remote_code=trust_remote_code)
    if model is None or rows is None:
        return
    tokenizer = load_tokenizer(model.folder, trust_remote_code=trust_remote_code)
    words = unknown_words(tokenizer, rows)
    problems = []
    trained = {f"phase {phase!r}, data {name!r}": one for (phase, name), one in materials.data.items()}
    english = {f"english: {one.source.source}": one for one in materials.english.values()}
    for place, one in (trained | english).items() if words else ():
        for example in one.loaded.examples:
            texts = [message.content for message in example.messages]
            if not any(word in text for text in texts for word in words):
                continue
            ids = tokenizer(
                texts, add_special_tokens=False
            ).input_ids  # a word within a longer one may be none
            try:
                check_token_ids(chain.from_iterable(ids), rows, tokenizer, f"{place}, row {example.id}")
            except ModelError as error:
                problems.append(str(error))
                break
    if problems:
        raise ModelError("\n".join(problems))


def check_named_parts(cells: tuple[Cell, ...], start: GivenModel | None, *, trust_remote_code: bool) -> None:
    """Check that the model that all phases train has the layers, modules and ends that strategies name.

    Raises:
        ConfigError: With every problem found.
    """
    names = () if start is None else parameter_names(start.folder, trust_remote_code=trust_remote_code)
    problems: dict[str, None] = {}
    for step in (step for cell in cells for step in cell.steps if names):
        try:
            build(step.strategy).check(names)
        except StrategyError as error:
            problems[f"{place_of(step)}: {error}"] = None
    if problems:
        raise ConfigError("\n".join(problems))


def _read(
    name: str,
    source: DataSource,
    held_out: int,
    base_folder: Path,
    watcher: Watcher,
    most_held_out: float | None,
    answered: bool = True,
) -> DataSet:
    on_progress = partial(watcher.preparing, f"read {source.source}")
    loaded = load_data(source, base_folder=base_folder, on_progress=on_progress, answered=answered)
    if most_held_out is not None:
        held_out = min(held_out, int(columns_of(loaded.examples).groups * most_held_out))
    return DataSet(name, source, loaded, hold_out(loaded, held_out), held_out)


def _languages(study: Study, data: dict[tuple[str, str], DataSet]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for (phase, name), one in data.items():
        _check_language(f"{study.name}: phase {phase!r}, data {name!r}", one)
        found.update(dict.fromkeys(language for language in one.languages if not is_english(language)))
    return tuple(sorted(found))


def _check_language(place: str, one: DataSet) -> None:
    if UNDETERMINED_LANGUAGE in one.languages:
        raise ConfigError(
            f"{place} ({one.source.source}): the rows do not say their language; give the data set `language:` "
            "(a BCP-47 tag such as es; `lingraft adapt`: --language es)."
        )
