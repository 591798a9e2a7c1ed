"""The table of a study: made once here, drawn in the terminal and on the page.

Every row carries the interval; the arrow says whether task ability differs from Phase 1's on the same items:
▲ or ▼ where the 95 % interval of the paired difference excludes 0, = where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lingraft.data.summary import DataSummary
    from lingraft.data.tokenizer_cost import LanguageCost

ABSENT = "-"
FAILED = "failed"


@dataclass(frozen=True)
class Column:
    """One column: its title, and a longer explanation."""

    title: str
    meaning: str


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
    """Return the table of a study's result (the object of `lingraft run --json`)."""
    languages = _languages(result)
    seeds = {cell["seed"] for cell in result["cells"]}
    columns = _columns(languages, with_seed=len(seeds) > 1)
    rows = []
    for name, scores in (("base model", result["base"]), ("phase 1", result["phase_one"])):
        if scores is not None:
            rows.append(_row((name, ""), None, scores, None, languages))
    rows.extend(_cell_row(cell, languages) for cell in result["cells"])
    if len(seeds) > 1:
        labels = ["", "", *(str(cell["seed"]) for cell in result["cells"])][-len(rows) :]
        rows = [(*row[:2], label, *row[2:]) for row, label in zip(rows, labels, strict=True)]
    return Table(columns, tuple(rows), 3 if len(seeds) > 1 else 2)


def _languages(result: dict[str, Any]) -> tuple[str, ...]:
    """Languages of the language ability; English has a loss but is no new language."""
    everyone = [result["base"], result["phase_one"], *(cell.get("scores") for cell in result["cells"])]
    found: dict[str, None] = {}
    for scores in everyone:
        for language, entry in ((scores or {}).get("per_language") or {}).items():
            if entry.get("value") is not None and language != "en":
                found[language] = None
    return tuple(found)


def _columns(languages: Sequence[str], *, with_seed: bool) -> tuple[Column, ...]:
    keys = [("data", "data set of the last phase"), ("strategy", "how forgetting was held back")]
    if with_seed:
        keys.append(("seed", "seed of every phase of the cell"))
    return (
        *(Column(title, meaning) for title, meaning in keys),
        Column("DES", "similarity of the phases' instructions, -1 to 1"),
        Column("MPD", "mean L2 distance of the weight tensors from Phase 1"),
        Column("task ability", "mean score of the English tasks, 0 to 1, with its 95 % interval"),
        Column("change", "paired difference of task ability to Phase 1, with its 95 % interval"),
        Column("retention", "task ability after / before"),
        *(Column(tag, f"language ability in {tag}") for tag in languages),
        Column("language ability", "mean over languages of the mean over tasks, 0 to 1"),
        Column("gain", "language ability after - before, with its 95 % interval"),
        Column("wrong lang.", "share of answers in another language than asked"),
    )


def _cell_row(cell: dict[str, Any], languages: Sequence[str]) -> tuple[str, ...]:
    keys = (cell["data"], cell["strategy"])
    if cell["status"] == "failed":
        blanks = [ABSENT] * (len(_columns(languages, with_seed=False)) - 3)
        return (*keys, FAILED, *blanks)
    return _row(keys, cell, cell["scores"], cell["difference"], languages)


def _row(
    keys: tuple[str, str],
    cell: dict[str, Any] | None,
    scores: dict[str, Any],
    difference: dict[str, Any] | None,
    languages: Sequence[str],
) -> tuple[str, ...]:
    task, language = scores["task_ability"], scores["language_ability"]
    change = difference["task_ability"] if difference else None
    gain = difference["language_ability"] if difference else None
    return (
        *keys,
        _number(cell["des"] if cell else None),
        _number(cell["mpd"]["from_phase_one"] if cell else None),
        f"{_with_interval(task)}{' ' + arrow(change) if change else ''}",
        _signed_interval(change),
        _percent(cell["retention"] if cell else None),
        *(_number((scores["per_language"].get(tag) or {}).get("value")) for tag in languages),
        _with_interval(language),
        _signed_interval(gain),
        _percent(scores["wrong_language"]),
    )


def smallest_visible(result: dict[str, Any]) -> str:
    """Say, in one sentence, how small a difference to Phase 1 the evaluation could have seen in its worst cell."""
    done = [cell["difference"] for cell in result["cells"] if cell["status"] == "done"]
    if not done:
        return "No cell is done, so nothing was compared."
    parts = []
    for ability in ("task_ability", "language_ability"):
        worst = max(difference[ability]["smallest_visible"] for difference in done)
        items = done[0][ability]["n"]
        parts.append(f"{ability.replace('_', ' ')} {worst:.3f} ({items} items)")
    return f"Smallest difference to Phase 1 that could have been seen (80 % power): {', '.join(parts)}."


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


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f} %"


def _with_interval(score: dict[str, Any]) -> str:
    if score.get("value") is None:
        return ABSENT
    return f"{score['value']:.3f} [{score['low']:.2f}, {score['high']:.2f}]"


def _signed_interval(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return ABSENT
    return f"{difference['value']:+.3f} [{difference['low']:+.2f}, {difference['high']:+.2f}]"
