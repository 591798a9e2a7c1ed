"""What each language costs in tokens."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from lingraft.measures.base import Plot
from lingraft.report.contents import Block, Lines, PlacedTable, Section
from lingraft.report.runs import Report
from lingraft.report.tables import cost_table
from lingraft.text.language_tags import ENGLISH

if TYPE_CHECKING:
    import altair as alt

_MOST_TABLES: Final = 20


def section(report: Report) -> Section | None:
    """Return the tokens of each language against English; None: nothing besides English was measured."""
    costs = report.result.tokenizer_cost
    ratios: dict[str, dict[str, float]] = {}
    by_characters = set()
    for data, languages in costs.items():
        for language, cost in languages.items():
            if language != ENGLISH:
                ratios.setdefault(language, {})[data] = cost.against_english
                by_characters |= {language} if cost.content_against_english is None else set()
    if not ratios:
        return None
    means = {language: sum(own.values()) / len(own) for language, own in ratios.items()}
    caption = (
        "Tokens that the model's tokenizer takes for what takes one in English: the same content, translated. A "
        "language that takes twice as many costs twice as much to train and to answer in, and has half of the "
        "context. Of several data sets the mean, with a tick for each."
    )
    if by_characters:
        caption += (
            f" Where no parallel text is known ({', '.join(sorted(by_characters))}), it is tokens per character, which "
            "says less between scripts."
        )
    order = sorted(means, key=lambda one: means[one])
    description = f"Bar chart, English = 1: {'; '.join(f'{name} {means[name]:.2f}' for name in order)}."
    chart = partial(_chart, {name: ratios[name] for name in order})
    blocks: list[Block] = [Plot("tokenizer-cost", "Tokens against English", caption, chart, description)]
    for number, (data, languages) in enumerate(list(costs.items())[:_MOST_TABLES]):
        title = f"Tokens of {data}"
        blocks.append(
            PlacedTable(f"tokenizer-cost-{number + 1}", title, "", cost_table(languages), is_folded=True)
        )
    if len(costs) > _MOST_TABLES:
        blocks.append(
            Lines("", (f"{len(costs) - _MOST_TABLES} more data sets stand in result.json (tokenizer_cost).",))
        )
    return Section("languages", "What languages cost", tuple(blocks))


def _chart(costs: Mapping[str, Mapping[str, float]]) -> alt.TopLevelMixin:
    from lingraft.report.charts.bars import tokenizer_cost

    return tokenizer_cost(costs)
