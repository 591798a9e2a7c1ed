"""The table of a study: made once here, drawn in the terminal and on the page.

Every row carries the interval; the arrow says whether task ability differs from Phase 1's on the same items:
▲ or ▼ where the 95 % interval of the paired difference excludes 0, = where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from lingraft.text.language_tags import ENGLISH

if TYPE_CHECKING:
    from lingraft.data.summary import DataSummary
    from lingraft.data.tokenizer_cost import LanguageCost

ABSENT = "-"
FAILED = "failed"
_DRIFT = "drift"
_FURTHER = "further languages"
BITS = "bits_per_character"


@dataclass(frozen=True)
class Column:
    """One column: its title, and a longer explanation."""

    title: str
    meaning: str


_KEYS = (Column("data", "data set of the last phase"), Column("strategy", "how forgetting was held back"))


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; the first `n_keys` columns name the row."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    n_keys: int

    def part(self, chosen: Sequence[int]) -> Table:
        """Return the table of the chosen columns, for narrow terminals."""
        return Table(
            tuple(self.columns[i] for i in chosen),
            tuple(tuple(row[i] for i in chosen) for row in self.rows),
            self.n_keys,
        )


def study_table(result: dict[str, Any]) -> Table:
    """Return the table of a study's result (the object of `lingraft run --json`): one row per data and strategy.

    With several seeds a row holds the mean over them, in place of an interval with the lowest and the highest in
    parentheses; their number stands beside it. `seed_table` has them one by one.
    """
    languages = _languages(result)
    several = len({cell["seed"] for cell in result["cells"]}) > 1
    keys = (*_KEYS, Column("seeds", "seeds that are done")) if several else _KEYS
    rows = (
        []
        if result["base"] is None
        else [("base model", "", *([""] if several else []), *_alone(result, languages))]
    )
    for (data, strategy), entries in _grouped(phase_one_models(result)).items():
        figures = [_figures(None, entry["scores"], languages) for entry in entries]
        counted = (
            ABSENT if entries[0]["seed"] is None else str(len(entries))
        )  # a checkpoint has no seed of ours
        rows.append((data, strategy, *([counted] if several else []), *_summed(figures)))
    for (data, strategy), cells in _grouped(result["cells"]).items():
        done = [cell for cell in cells if cell["status"] == "done"]
        counted = str(len(cells)) if len(done) == len(cells) else f"{len(done)} of {len(cells)}"
        figures = [_figures(cell, cell["scores"], languages) for cell in done]
        rows.append((data, strategy, *([counted] if several else []), *_summed_or_failed(figures, languages)))
    return _without_unmeasured(Table((*keys, *_columns(languages)), tuple(rows), len(keys)))


def seed_table(result: dict[str, Any]) -> Table | None:
    """Return the table with a row for every seed, or None where there is only one."""
    if len({cell["seed"] for cell in result["cells"]}) < 2:
        return None
    languages = _languages(result)
    rows: list[tuple[str, ...]] = []
    for entry in phase_one_models(result):
        seed = ABSENT if entry["seed"] is None else str(entry["seed"])
        figures = _figures(None, entry["scores"], languages)
        rows.append((entry["data"], entry["strategy"], seed, *_summed([figures])))
    for cell in result["cells"]:
        done = [_figures(cell, cell["scores"], languages)] if cell["status"] == "done" else []
        key = (cell["data"], cell["strategy"], str(cell["seed"]))
        rows.append((*key, *_summed_or_failed(done, languages)))
    keys = (*_KEYS, Column("seed", "seed of every phase of the cell"))
    return _without_unmeasured(Table((*keys, *_columns(languages)), tuple(rows), len(keys)))


def change_table(result: dict[str, Any]) -> Table | None:
    """Return each strategy's mean change over its seeds, with 95 % intervals, or None where no strategy has several.

    Intervals cover the choice of items at these seeds, not the choice of seeds.
    """
    columns = (
        *_KEYS,
        Column("seeds", "seeds that are done"),
        Column("change", "of task ability against Phase 1, mean over seeds"),
        Column("by seed", "the same, lowest to highest"),
        Column("gain", "of language ability against Phase 1, mean over seeds"),
        Column(
            "smallest visible", "the smallest change of task ability that would have been found (80 % power)"
        ),
    )
    rows = []
    for one in result["over_seeds"]:
        task = one["task_ability"]
        own = [_change(cell["difference"]["task_ability"]) for cell in _cells_of(result, one)]
        single = sorted(figure.value for figure in own if figure.value is not None)
        changed = replace(_change(task), arrow=arrow(task))
        rows.append(
            (
                *(one["data"], one["strategy"], str(one["seeds"])),
                changed.text(),
                " to ".join(own[0].number(value, 2) for value in (single[0], single[-1])),
                _change(one["language_ability"]).text(),
                _number(task["minimum_detectable_effect"]),
            )
        )
    return Table(columns, tuple(rows), len(_KEYS)) if rows else None


def _cells_of(result: dict[str, Any], one: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the finished cells of a strategy on a data set."""
    wanted = (one["data"], one["strategy"], "done")
    return [cell for cell in result["cells"] if (cell["data"], cell["strategy"], cell["status"]) == wanted]


def _without_unmeasured(table: Table) -> Table:
    """Leave out the columns of what is optional, drift and further languages, where no row has any."""
    absent = [all(row[i] == ABSENT for row in table.rows) for i in range(len(table.columns))]
    return table.part(
        [
            i
            for i, column in enumerate(table.columns)
            if not (column.title in (_DRIFT, _FURTHER) and absent[i])
        ]
    )


def task_table(result: dict[str, Any]) -> Table | None:
    """Return the score of every task under every Phase 1 model and every finished cell, or None without cells."""
    seeds = len({cell["seed"] for cell in result["cells"]}) > 1
    models = [*phase_one_models(result), *(cell for cell in result["cells"] if cell["status"] == "done")]
    if not any(cell["status"] == "done" for cell in result["cells"]):
        return None
    tasks: dict[str, int] = {
        name: task["n"] for one in models for name, task in one["scores"]["tasks"].items()
    }
    rows = [(name, str(n), *(_task_score(one, name) for one in models)) for name, n in tasks.items()]
    titles = [model_title(one, with_seed=seeds) for one in models]
    keys = (Column("task", "task and language"), Column("n", "items"))
    meaning = "score, 0 to 1; p: of its change from Phase 1, corrected for the number of tasks"
    return Table((*keys, *(Column(title, meaning) for title in titles)), tuple(rows), 1)


def _task_score(model: dict[str, Any], task: str) -> str:
    """Return a task's score; of a cell with the corrected p-value of its change."""
    score = f"{model['scores']['tasks'][task]['value']:.3f}"
    if "difference" not in model:
        return score
    p = model["difference"]["tasks"][task]["p_adjusted"]
    return f"{score} (p {p:.2g})"


def contamination_table(result: dict[str, Any]) -> Table | None:
    """Return how much of each task stands in the training rows, or None where it was not looked for."""
    found = result.get("contamination")  # results of earlier versions have none
    if not found or not found["tasks"]:
        return None
    columns = (
        Column("task", "task and language"),
        Column("items", "items looked at"),
        Column(
            "contaminated",
            "share of the items of which 80 % of the n-grams, or the whole prompt, stand there",
        ),
        Column("touched", "share of the items that share an n-gram or more with a row: templates do"),
        Column("n-grams", "share of all the task's n-grams"),
    )
    rows = tuple(
        (
            task,
            str(one["items"]),
            f"{one['contaminated']:.1%}",
            f"{one['touched']:.1%}",
            ABSENT if one["coverage"] is None else f"{one['coverage']:.1%}",
        )
        for task, one in found["tasks"].items()
    )
    return Table(columns, rows, 1)


def model_title(entry: dict[str, Any], *, with_seed: bool) -> str:
    """Return the name of a cell's or a Phase 1 model in figures and headings."""
    seed = f"seed {entry['seed']}" if with_seed and entry["seed"] is not None else ""
    return " / ".join(part for part in (entry["data"], entry["strategy"], seed) if part)


def training_table(result: dict[str, Any]) -> Table | None:
    """Return what each phase of each finished cell was trained on, and what of its data was not; None: no cell."""
    rows = [
        (
            model_title(cell, with_seed=True),
            f"{one['phase']}: {one['data']} / {one['strategy']}",
            *_trained(one),
        )
        for cell in result["cells"]
        if cell["status"] == "done"
        for one in cell["phases"]
    ]
    columns = (
        Column("cell", "data, strategy and seed"),
        Column("phase", "phase, data set and strategy"),
        Column("DES to previous", "similarity of the instructions to the phase before"),
        Column("MPD from previous", "mean L2 distance of the weight tensors from the phase before"),
        Column("broken", "rows that could not be read"),
        Column("filtered", "rows that filters left out or could not judge"),
        Column("incomplete groups", "parallel groups that lack a language"),
        Column("held out", "rows kept for the held-out loss"),
        Column("withheld", "rows that another set of the study holds out"),
        Column("short of limit", "rows fewer than `limit` asked for"),
        Column("examples", "examples trained on, replay included"),
        Column("replayed", "of these from replay"),
        Column("truncated", "examples cut to max_length"),
        Column("dropped", "examples that the chat template refuses or whose answer was cut off"),
        Column("tokens", "tokens of all epochs, without padding"),
        Column("steps", "optimiser steps"),
        Column("tokens per step", "their mean"),
        Column("trained parameters", "numbers that training could change"),
        Column("frozen", "numbers that it could not"),
    )
    return Table(columns, tuple(rows), 2) if rows else None


def strategy_cost_table(result: dict[str, Any]) -> Table | None:
    """Return what each strategy cost, as a ratio to plain of the same data and seed, or None where plain is lacking.

    Several data sets and seeds are summed up by the median, with the lowest and the highest in parentheses.
    """
    done = [
        cell for cell in result["cells"] if cell["status"] == "done" and cell["cost"]["resumed_from"] is None
    ]
    plain = {(cell["data"], cell["seed"]): cell["cost"] for cell in done if cell["strategy"] == "plain"}
    ratios: dict[str, list[tuple[float, float, float]]] = {}
    for cell in done:
        base, own = plain.get((cell["data"], cell["seed"])), cell["cost"]
        if base is None or not base["training_seconds"] or cell["strategy"] in ("plain", "mixed"):
            continue
        seconds = base["training_seconds"]
        ratios.setdefault(cell["strategy"], []).append(
            (
                own["training_seconds"] / seconds,
                (own["prepare_seconds"] + own["combine_seconds"]) / seconds,
                own["peak_bytes"] / base["peak_bytes"],
            )
        )
    columns = (
        Column("strategy", "of the last phase"),
        Column("cells", "data sets and seeds that it was measured on"),
        Column("training", "seconds of training over plain's"),
        Column("before and after", "seconds of preparing and combining over those of plain's training"),
        Column("peak memory", "largest resident memory over plain's; an accelerator's is not in it"),
    )
    rows = [(name, str(len(own)), *map(_spread, zip(*own, strict=True))) for name, own in ratios.items()]
    return Table(columns, tuple(rows), 1) if rows else None


def _spread(values: Sequence[float]) -> str:
    middle = f"{median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def _trained(one: dict[str, Any]) -> tuple[str, ...]:
    counts, sets = one["training"], one["training"]["data"]
    numbers = (
        sum(data["broken"] for data in sets),
        sum(sum(data["filtered"].values()) for data in sets),
        sum(data["incomplete_groups"] or 0 for data in sets),
        *(sum(data[key] for data in sets) for key in ("held_out", "withheld", "shortfall")),
        *(counts[key] for key in ("examples", "replayed", "truncated", "dropped", "tokens", "steps")),
        round(counts["tokens"] / counts["steps"]),
        counts["trainable_parameters"],
        counts["frozen_parameters"],
    )
    return (
        _number(one["des"]["from_previous"]),
        _number(one["mpd"]["from_previous"]),
        *(f"{number:,}" for number in numbers),
    )


def failures(result: dict[str, Any]) -> list[str]:
    """Return what failed, each with its reason: the base model's evaluation, then cells; empty: nothing."""
    base = result["base_reason"]
    return [
        *([] if base is None else [f"base model: {base}"]),
        *(
            f"{cell['data']} / {cell['strategy']} / seed {cell['seed']}: {cell['reason']}"
            for cell in result["cells"]
            if cell["status"] == "failed"
        ),
    ]


def phase_one_models(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every Phase 1 model of a result, named for tables; where there is one kind only, just as such."""
    entries = result["phase_ones"]
    several = len({(entry["data"], entry["strategy"]) for entry in entries}) > 1
    return [
        {
            **entry,
            "data": f"phase 1: {entry['data']}" if several else "phase 1",
            "strategy": entry["strategy"] if several else "",
        }
        for entry in entries
    ]


def _grouped(entries: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["data"], entry["strategy"]), []).append(entry)
    return groups


def _languages(result: dict[str, Any]) -> tuple[str, ...]:
    """Languages of the language ability; English has a loss but is no new language."""
    everyone = [result["base"], result["phase_one"], *(cell.get("scores") for cell in result["cells"])]
    found: dict[str, None] = {}
    for scores in everyone:
        for language, entry in ((scores or {}).get("per_language") or {}).items():
            if entry.get("value") is not None and language != ENGLISH:
                found[language] = None
    return tuple(found)


def _columns(languages: Sequence[str]) -> tuple[Column, ...]:
    return (
        Column("DES", "similarity of the instructions of Phase 1 and the last phase, -1 to 1"),
        Column("corrected", "DES without the bias of small sets, with its 95 % interval"),
        Column("MPD", "mean L2 distance of the weight tensors from Phase 1"),
        Column(_DRIFT, "relative change of the hidden states' covariance from Phase 1, mean over the layers"),
        Column("task ability", "mean score of the English tasks, 0 to 1, with its 95 % interval"),
        Column("change", "paired difference of task ability to Phase 1, with its 95 % interval"),
        Column("retention", "task ability after / before"),
        *(Column(tag, f"language ability in {tag}") for tag in languages),
        Column("language ability", "mean over the trained languages of the mean over tasks, 0 to 1"),
        Column("gain", "language ability after - before, with its 95 % interval"),
        Column(_FURTHER, "the same mean over the languages that are evaluated and not trained"),
        Column("wrong lang.", "share of answers in another language than asked"),
    )


@dataclass(frozen=True)
class _Figure:
    """One figure of one model: its value and how it is written; `arrow` where it is compared with Phase 1's."""

    value: float | None
    low: float | None = None
    high: float | None = None
    is_percent: bool = False
    is_signed: bool = False
    arrow: str = ""

    def number(self, value: float, digits: int = 3) -> str:
        if self.is_percent:
            return f"{100 * value:.1f} %"
        return f"{value:+.{digits}f}" if self.is_signed else f"{value:.{digits}f}"

    def text(self) -> str:
        if self.value is None:
            return ABSENT
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" [{self.number(self.low, 2)}, {self.number(self.high, 2)}]"
        return f"{self.number(self.value)}{interval}{self.arrow and ' ' + self.arrow}"


def _figures(cell: dict[str, Any] | None, scores: dict[str, Any], languages: Sequence[str]) -> list[_Figure]:
    """Return a model's figures, one per column; `cell` is None for the base model and Phase 1."""
    difference = cell["difference"] if cell else {"task_ability": None, "language_ability": None}
    change = difference["task_ability"]
    return [
        _Figure(cell["des"] if cell else None),
        _corrected(cell),
        _Figure(cell["mpd"]["from_phase_one"] if cell else None),
        _Figure(mean_drift(cell)),
        _score(scores["task_ability"], arrow(change) if change else ""),
        _change(change),
        _Figure(cell["retention"] if cell else None, is_percent=True),
        *(_Figure((scores["per_language"].get(tag) or {}).get("value")) for tag in languages),
        _score(scores["language_ability"]),
        _change(difference["language_ability"]),
        _score(scores.get("further_languages") or {"value": None, "low": None, "high": None}),
        _Figure(scores["wrong_language"], is_percent=True),
    ]


def _score(entry: dict[str, Any], mark: str = "") -> _Figure:
    return _Figure(entry["value"], entry["low"], entry["high"], arrow=mark)


def _change(difference: dict[str, Any] | None) -> _Figure:
    if difference is None:
        return _Figure(None)
    return _Figure(difference["value"], difference["low"], difference["high"], is_signed=True)


def _corrected(cell: dict[str, Any] | None) -> _Figure:
    found = (cell and cell["des_corrected"]) or {"value": None, "low": None, "high": None}
    return _Figure(found["value"], found["low"], found["high"])


def mean_drift(cell: dict[str, Any] | None) -> float | None:
    """Return the mean over the layers of a cell's covariance change; None: drift was not measured."""
    layers = ((cell and cell["drift"]) or {"layers": []})["layers"]
    return mean_of_known([one["covariance_change"] for one in layers])


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of those that are known; None: none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _alone(result: dict[str, Any], languages: Sequence[str]) -> tuple[str, ...]:
    return _summed([_figures(None, result["base"], languages)])


def _summed_or_failed(figures: Sequence[Sequence[_Figure]], languages: Sequence[str]) -> tuple[str, ...]:
    if figures:
        return _summed(figures)
    return (FAILED, *[ABSENT] * (len(_columns(languages)) - 1))


def _summed(models: Sequence[Sequence[_Figure]]) -> tuple[str, ...]:
    """Return the texts of the figures: of one model as they are, of several their means and ranges."""
    if len(models) == 1:
        return tuple(figure.text() for figure in models[0])
    return tuple(over_seeds(figures) for figures in zip(*models, strict=True))


def over_seeds(figures: Sequence[_Figure]) -> str:
    """Return the mean, where one seed has an interval or a sign with (lowest to highest), and the arrow of all."""
    known = [figure.value for figure in figures if figure.value is not None]
    if not known:
        return ABSENT
    one = next((figure for figure in figures if figure.low is not None), figures[0])
    marks = {figure.arrow for figure in figures}
    mark = marks.pop() if len(marks) == 1 else "="
    spread = ""
    if one.low is not None or one.is_signed:
        spread = f" ({one.number(min(known), 2)} to {one.number(max(known), 2)})"
    return f"{one.number(sum(known) / len(known))}{spread}{mark and ' ' + mark}"


def minimum_detectable_effect(result: dict[str, Any]) -> str:
    """Say, in one sentence, how small a difference to Phase 1 the evaluation could have seen in its worst cell."""
    done = [cell["difference"] for cell in result["cells"] if cell["status"] == "done"]
    if not done:
        return "No cell is done, so nothing was compared."
    parts = []
    for ability in ("task_ability", "language_ability"):
        worst = max(difference[ability]["minimum_detectable_effect"] for difference in done)
        items = done[0][ability]["n"]
        parts.append(f"{ability.replace('_', ' ')} {worst:.3f} ({items} items)")
    return f"Smallest difference to Phase 1 that could have been seen (80 % power): {', '.join(parts)}."


def precision_note(result: dict[str, Any]) -> str:
    """Say in which types, and on what, models were trained and evaluated."""
    used = result["precision"]
    trained = f"Trained in {' and '.join(used['training'])}, evaluated" if used["training"] else "Evaluated"
    return f"{trained} in {used['evaluation']} on {used['device']}."


def unpaired_lines(cell: dict[str, Any]) -> list[str]:
    """Return what a finished cell's comparisons leave out, and why; results of earlier versions count less."""
    matrix = cell["forgetting"]["ability"] or {}
    return [
        *(f"{task}: {count} items" for task, count in (cell.get("unpaired") or {}).items()),
        *(cell.get("not_paired") or {}).values(),
        *(f"Base model: {problem}" for problem in (matrix.get("not_paired") or {}).values()),
    ]


def noise_note(result: dict[str, Any]) -> str | None:
    """Say how far scores moved when their answers were generated again, by the model that moved most; None: once."""
    entries = [result["base"], *(one.get("scores") for one in (*result["phase_ones"], *result["cells"]))]
    found = [noise for one in entries if one is not None and (noise := one.get("noise")) is not None]
    return noise_sentence(found) if found else None


def des_note(result: dict[str, Any]) -> str | None:
    """Say why cells have no DES; None: all that were asked for it do."""
    phases = [one for cell in result["cells"] for one in cell.get("phases", ())]
    reasons = dict.fromkeys(reason for one in phases if (reason := one.get("des_reason")) is not None)
    return f"DES is missing where {'; and where '.join(reasons)}." if reasons else None


def noise_sentence(found: Sequence[Mapping[str, Any]]) -> str:
    """Say how far the scores of one or more models moved (`noise.noise_floor`), by the one that moved most."""
    parts = []
    for ability in ("task_ability", "language_ability"):
        known = [one[ability] for one in found if one[ability] is not None]
        if known:
            widest = max(known, key=lambda one: one["high"] - one["low"])
            parts.append(
                f"{ability.replace('_', ' ')} by up to {widest['high'] - widest['low']:.3f} "
                f"(standard deviation {widest['deviation']:.3f})"
            )
    times = found[0]["repeats"]
    return f"Noise floor: generated {times} times, each in other batches, scores moved: {', '.join(parts)}."


def answer_table(result: dict[str, Any]) -> Table | None:
    """Return what was wrong with the generated answers of every model, in counts, or None where nothing is counted."""
    done = [cell for cell in result["cells"] if cell["status"] == "done"]
    models = [(model_title(one, with_seed=True), one["scores"]) for one in [*phase_one_models(result), *done]]
    base = [] if result["base"] is None else [("base model", result["base"])]
    rows = [
        (
            name,
            *(str(answers[key]) for key in ("n", "empty", "looping", "truncated")),
            ABSENT if scores["wrong_language"] is None else f"{scores['wrong_language']:.1%}",
            str(scores["undetermined_language"]),
        )
        for name, scores in base + models
        if (answers := scores.get("answers")) is not None
    ]
    columns = (
        Column("model", "data, strategy and seed"),
        Column("answers", "generated answers, of all tasks"),
        Column("empty", "answers of white space alone"),
        Column("looping", "answers that say the same again and again"),
        Column("truncated", "answers that used all the tokens that they were allowed"),
        Column(
            "wrong lang.", "share of answers in another language than asked, among those that could be told"
        ),
        Column("undetermined", "answers whose language could not be told, mostly for being short"),
    )
    return Table(columns, tuple(rows), 1) if rows else None


MATRICES = ("ability", BITS)


def forgetting_table(result: dict[str, Any], kind: str, *, with_intervals: bool) -> Table | None:
    """Return the forgetting matrices of all cells, one under the other, or None where there are none.

    A row is a cell's model after one phase, a column what one phase taught; a cell's summary stands in its last row.
    With several seeds the entries are means over them.

    Args:
        result: The study's result.
        kind: `ability`, or `bits_per_character` (lower is better).
        with_intervals: Write each entry's 95 % interval, where one seed has it.
    """
    groups = {
        key: matrices
        for key, cells in _grouped([c for c in result["cells"] if c["status"] == "done"]).items()
        if (matrices := [c["forgetting"][kind] for c in cells if c["forgetting"][kind] is not None])
    }
    if not groups:
        return None
    phases = tuple(dict.fromkeys(one["phase"] for own in groups.values() for one in own[0]["columns"]))
    rows = [(*key, *row) for key, own in groups.items() for row in _matrix_rows(own, phases, with_intervals)]
    unit = "score" if kind == "ability" else "bits per character"
    columns = (
        *_KEYS,
        Column("after", "the model after this phase"),
        *(Column(phase, f"{unit} on what phase {phase} taught") for phase in phases),
        Column("average", "mean over the phases' columns after the last phase"),
        Column("backward", "backward transfer: last - just learned, over earlier phases; below 0: forgotten"),
        Column(
            "forward", "forward transfer: just before learning - base model; above 0: earlier phases helped"
        ),
        Column("forgetting", "best of the phases before the last - last, over earlier phases"),
    )
    return Table(columns, tuple(rows), len(_KEYS) + 1)


def _matrix_rows(
    matrices: Sequence[dict[str, Any]], phases: Sequence[str], with_intervals: bool
) -> list[tuple[str, ...]]:
    first = matrices[0]
    places = {one["phase"]: j for j, one in enumerate(first["columns"])}
    summary = [
        _combined([_entry(m[name], is_signed=name != "average") for m in matrices]) for name in _SUMMARY
    ]
    rows = []
    for number, row in enumerate(first["rows"]):
        entries = [
            [_entry(m["rows"][number]["scores"][places[p]], bare=not with_intervals) for m in matrices]
            if p in places
            else [_Figure(None)]
            for p in phases
        ]
        texts = [
            _combined([replace(one, low=None) for one in own] if len(own) > 1 else own) for own in entries
        ]
        is_last = number == len(first["rows"]) - 1
        rows.append((row["after"], *texts, *(summary if is_last else [""] * len(summary))))
    return rows


_SUMMARY = ("average", "backward_transfer", "forward_transfer", "forgetting")


def _entry(value: dict[str, Any] | float | None, *, bare: bool = False, is_signed: bool = False) -> _Figure:
    if not isinstance(value, dict):
        return _Figure(value, is_signed=is_signed)
    low, high = (None, None) if bare else (value["low"], value["high"])
    return _Figure(value["value"], low, high, is_signed=is_signed)


def _combined(figures: Sequence[_Figure]) -> str:
    return figures[0].text() if len(figures) == 1 else over_seeds(figures)


def language_table(summary: DataSummary) -> Table:
    """Return what each language of a data set costs in tokens, against English where that is in the data."""
    return cost_table(summary.languages)


def cost_table(costs: Mapping[str, LanguageCost]) -> Table:
    """Return what each language costs in tokens; `x en` stands for a multiple of English."""
    columns = (
        Column("language", "BCP-47 tag"),
        Column("rows", "examples"),
        Column("per word", "tokens per word"),
        Column("words x en", "tokens per word divided by English's"),
        Column("per character", "tokens per character"),
        Column("characters x en", "tokens per character divided by English's"),
        Column("same content x en", "tokens divided by those of the same content in English"),
        Column("compared", "contents compared, of the data's groups or of worldbook"),
        Column("partial", "share of tokens that are no whole characters"),
    )
    rows = tuple(
        (
            tag,
            str(cost.examples),
            _number(cost.tokens_per_word),
            _number(cost.words_against_english),
            _number(cost.tokens_per_character),
            _number(cost.characters_against_english),
            _number(cost.content_against_english),
            "-" if cost.basis is None else f"{cost.parallel_groups} {cost.basis}",
            f"{cost.partial_share:.1%}",
        )
        for tag, cost in costs.items()
    )
    return Table(columns, rows, 1)


def arrow(difference: dict[str, Any]) -> str:
    """Return ▲ or ▼ where the difference's interval excludes 0, else =."""
    if difference["low"] > 0:
        return "▲"
    return "▼" if difference["high"] < 0 else "="


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}"
