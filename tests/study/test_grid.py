"""The grid is the full product, unless paths list its cells."""

from __future__ import annotations

from typing import Any

from lingraft.config.schema import Study
from lingraft.study.grid import cells_of


def study(**changes: Any) -> Study:
    content = {
        "name": "grid",
        "model": "base",
        "phases": [
            {"name": "one", "data": {"english": {"source": "en.jsonl"}}},
            {
                "name": "two",
                "data": {
                    "similar": {"source": "a.jsonl"},
                    "other": {"source": "b.jsonl", "strategies": ["lora", "mixed"]},
                },
                "strategies": ["plain"],
            },
        ],
        **changes,
    }
    return Study.model_validate(content)


def named(cells: Any) -> list[tuple[str, str, int]]:
    return [(cell.data, cell.strategy, cell.seed) for cell in cells]


def test_a_set_has_the_phases_strategies_and_its_own() -> None:
    assert named(cells_of(study(seeds=[0, 3]))) == [
        (data, strategy, seed)
        for seed in (0, 3)
        for data, strategy in [
            ("similar", "plain"),
            ("other", "plain"),
            ("other", "lora"),
            ("other", "mixed"),
        ]
    ]


def test_a_mixed_cell_stands_once_whatever_the_earlier_strategies() -> None:
    phases = study().model_dump(mode="json")["phases"]
    phases[0]["strategies"] = ["plain", "freeze_random"]
    cells = cells_of(study(phases=phases))
    assert [cell.strategy for cell in cells if cell.is_mixed] == ["mixed"]
    assert ("other", "freeze_random > lora", 0) in named(cells)


def test_earlier_sets_are_named_where_there_are_several() -> None:
    phases = study().model_dump(mode="json")["phases"]
    phases[0]["data"]["orca"] = {"source": "orca.jsonl"}
    assert ("orca > other", "lora", 0) in named(cells_of(study(phases=phases)))


def test_paths_replace_the_product() -> None:
    path = [{"phase": "one", "data": "english"}, {"phase": "two", "data": "other", "strategy": ["lora"]}]
    assert named(cells_of(study(paths=[path]))) == [("other", "lora", 0)]


def test_two_mixed_cells_with_names_of_their_own_both_stand() -> None:
    phases = study().model_dump(mode="json")["phases"]
    phases[1]["data"]["other"]["strategies"] = [
        "mixed",
        {"mixed": {"name": "slow", "training": {"epochs": 2}}},
    ]
    assert [cell.strategy for cell in cells_of(study(phases=phases)) if cell.is_mixed] == ["mixed", "slow"]
