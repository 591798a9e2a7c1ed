"""What does a model's tokenizer make of parallel text in many languages?

    python benchmarks/tokenizer_cost.py FOLDER [--model embedded:smollm2-135m]

FOLDER holds one LANGUAGE.jsonl per language, whose row number n is the same content in every file, with the fields
`title` and `text` (a list of paragraphs), such as the Universal Declaration of Human Rights. Prints the table of
`lingraft show data` as Markdown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lingraft.data.example import Example, Message
from lingraft.data.tokenizer_cost import language_costs
from lingraft.models.loading import load_tokenizer
from lingraft.report.tables import cost_table


def read(path: Path) -> list[Example]:
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    turns = [
        (Message("user", row["title"] or "-"), Message("assistant", "\n".join(row["text"]))) for row in rows
    ]
    return [Example(str(n), turn, path.stem, f"row {n}", str(path)) for n, turn in enumerate(turns)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="embedded:smollm2-135m")
    options = parser.parse_args()
    examples = [example for path in sorted(options.folder.glob("*.jsonl")) for example in read(path)]
    costs = language_costs(examples, load_tokenizer(options.model))
    table = cost_table(dict(sorted(costs.items(), key=lambda item: item[1].content_against_english or 0.0)))
    lines = [[column.title for column in table.columns], ["---"] * len(table.columns), *table.rows]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


if __name__ == "__main__":
    main()
