"""Every measure is described in docs/measures.md, and every measure described there exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lingraft.measures import REGISTRY
from lingraft.measures.base import Measure

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "measures.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<titles>[^|]*) \|", re.MULTILINE)


def test_the_page_lists_exactly_the_measures() -> None:
    assert [row["name"] for row in ROW.finditer(PAGE)] == list(REGISTRY)


@pytest.mark.parametrize("name", list(REGISTRY))
def test_the_page_names_a_measures_columns(name: str) -> None:
    measure: Measure = REGISTRY.get(name)()
    row = next(row for row in ROW.finditer(PAGE) if row["name"] == name)
    assert measure.name == name
    columns = (*measure.columns, *measure.phase_columns)
    assert [title.strip() for title in row["titles"].split(",")] == [one.title for one in columns]
    for one in columns:
        assert one.meaning
    assert measure.title
    assert measure.meaning.endswith((".", "instructions"))
