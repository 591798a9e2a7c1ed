"""Print the table of a finished run as Markdown, for docs/lab_log.md: python benchmarks/markdown_table.py runs/NAME."""

from __future__ import annotations

import sys
from pathlib import Path

from lingraft.records import read_json
from lingraft.report.tables import study_table


def main() -> None:
    table = study_table(read_json(Path(sys.argv[1]) / "result.json"))
    lines = [[column.title for column in table.columns]]
    lines.append(["---" if i < table.n_keys else "---:" for i in range(len(table.columns))])
    lines.extend(list(row) for row in table.rows)
    for line in lines:
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main()
