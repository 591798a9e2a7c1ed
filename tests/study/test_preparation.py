"""What a study tells before its first stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lingraft.config.schema import Study
from lingraft.data.tokenizer_cost import LanguageCost
from lingraft.study.events import Watcher
from lingraft.study.materials import gather, report_costs


class Notes(Watcher):
    def __init__(self) -> None:
        self.read: list[tuple[str, int, int]] = []
        self.costs: dict[str, list[str]] = {}
        self.notes: list[str] = []

    def preparing(self, step: str, done: int, total: int) -> None:
        self.read.append((step, done, total))

    def tokenizer_costs(self, data: str, costs: Mapping[str, LanguageCost]) -> None:
        self.costs[data] = list(costs)

    def noted(self, message: str) -> None:
        self.notes.append(message)


def test_reading_and_the_cost_of_each_language_are_told_before_training(
    tmp_path: Path, tiny_model: Path
) -> None:
    rows = [
        {"prompt": "ก" * (n + 1), "completion": "ข", "language": "th", "group": f"g{n}"} for n in range(20)
    ]
    (tmp_path / "thai.jsonl").write_text("\n".join(map(json.dumps, rows)))
    study = Study.model_validate(
        {
            "name": "x",
            "model": str(tiny_model),
            "held_out": 3,
            "phases": [
                {"name": "one", "data": {"english": {"source": "worldbook:lookup/en"}}},
                {"name": "two", "data": {"thai": {"source": "thai.jsonl"}}, "strategies": ["plain"]},
            ],
        }
    )
    watcher = Notes()
    materials = gather(study, tmp_path, watcher)
    told = report_costs(materials, watcher, trust_remote_code=False)
    assert ("read thai.jsonl", 20, 20) in watcher.read
    assert watcher.costs == {"one: english": ["en"], "two: thai": ["th"]}
    assert told["two/thai"]["th"].tokens_per_character == 3.0
    assert [note.split()[0] for note in watcher.notes] == ["th"]
    split = materials.data["two", "thai"].split(0)
    assert materials.data["two", "thai"].split(0) is split
    assert list(split.held_out) == list(materials.data["two", "thai"].held_out)
