"""The grid is the full product, unless paths list its cells."""

from __future__ import annotations

from typing import Any

import pytest

from lingraft.config.schema import Study
from lingraft.study.checks import name_problems
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


def three_phases(**changes: Any) -> Study:
    data = {
        "one": {"english": {"source": "en.jsonl"}},
        "two": {"german": {"source": "de.jsonl"}},
        "three": {"romance": {"source": "es.jsonl"}, "nordic": {"source": "sv.jsonl"}},
    }
    phases = [{"name": name, "data": sets} for name, sets in data.items()]
    phases[1]["strategies"] = ["plain", "lora"]
    phases[2]["strategies"] = ["plain", "mixed"]
    return study(phases=phases, **changes)


def test_three_phases_multiply_and_name_the_middle_strategy() -> None:
    assert named(cells_of(three_phases())) == [
        ("romance", "plain > plain", 0),
        ("romance", "mixed", 0),
        ("nordic", "plain > plain", 0),
        ("nordic", "mixed", 0),
        ("romance", "lora > plain", 0),
        ("nordic", "lora > plain", 0),
    ]


def test_every_cell_of_the_product_goes_through_all_phases() -> None:
    cells = cells_of(three_phases())
    assert {tuple(step.phase for step in cell.steps) for cell in cells} == {("one", "two", "three")}


def test_paths_that_differ_in_an_earlier_phase_only_have_names_of_their_own() -> None:
    def path(*strategies: str) -> list[dict[str, str]]:
        steps = zip(("one", "two", "three"), ("english", "german", "romance"), strategies, strict=True)
        return [{"phase": phase, "data": data, "strategy": strategy} for phase, data, strategy in steps]

    paths = [
        path("plain", "lora", "plain"),
        path("lora", "plain", "plain"),
        path("plain", "plain", "plain"),
    ]
    assert [cell.strategy for cell in cells_of(three_phases(paths=paths))] == [
        "plain > lora > plain",
        "lora > plain > plain",
        "plain > plain > plain",
    ]


@pytest.mark.parametrize(
    "strategies",
    [["plain", "plain"], [{"interpolate": {"alpha": [0.25, 0.5]}}, {"half": {"name": "interpolate-0.5"}}]],
)
def test_two_strategies_of_one_name_are_refused(strategies: list[Any]) -> None:
    phases = [
        {"name": "one", "checkpoint": "some/model"},
        {"name": "two", "data": {"other": {"source": "x.jsonl"}}, "strategies": strategies},
    ]
    (problem,) = name_problems(study(phases=phases), None)
    assert problem.text.startswith("phases[1] (two).data.other: 2 strategies are named")
