"""Print tables of a finished run as Markdown, for the documentation, and draw its trade-off figure.

python benchmarks/markdown_table.py runs/NAME [--table study|seeds|changes|costs] [--figure FILE.svg]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lingraft.report.charts.trade_off import trade_off
from lingraft.report.drawing import draw
from lingraft.report.figures import job_of, svg_of
from lingraft.report.tables import Table, change_table, seed_table, strategy_cost_table, study_table
from lingraft.study.result import read_result

TABLES = {
    "study": study_table,
    "seeds": seed_table,
    "changes": change_table,
    "costs": strategy_cost_table,
}
INK = "#1a1a1a"  # of a picture beside text that the page's own colour does not reach


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--table", choices=TABLES, default="study")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    result = read_result(options.run)
    table = TABLES[options.table](result)
    if table is None:
        raise SystemExit(f"{options.run} has nothing for the table {options.table}")
    print_markdown(table)
    chart = trade_off(result)
    if options.figure is not None and chart is not None:
        (drawing,) = draw([job_of(chart.properties(background="white"))])
        if drawing.content is None:
            raise SystemExit(drawing.problem)
        svg = svg_of(drawing.content).replace("currentColor", INK)
        options.figure.write_text(svg + "\n", encoding="utf-8")


def print_markdown(table: Table) -> None:
    """Print a table; columns that name the row to the left, figures to the right."""
    lines = [[column.title for column in table.columns]]
    lines.append(["---" if i < table.n_keys else "---:" for i in range(len(table.columns))])
    lines.extend(list(row) for row in table.rows)
    for line in lines:
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
