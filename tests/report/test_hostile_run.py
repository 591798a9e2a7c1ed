"""Names, reasons and answers that try to be something else are shown as text, and cost no part of the report."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from hostile_run import CONTROLS, SCRIPT, hostile_run
from page_reader import assert_harmless

from lingraft.errors import EvaluationError
from lingraft.evaluate.predictions import read_predictions
from lingraft.report.drawing import Job, draw
from lingraft.report.page import write_page
from lingraft.report.runs import read_report


class Elements(HTMLParser):
    """The start tags of a page, as a browser finds them, and what its scripts hold."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile_run(tmp_path_factory.mktemp("hostile") / "run")


def test_hostile_names_and_answers_become_no_elements(run: Path) -> None:
    said: list[str] = []
    page = write_page(read_report([str(run)]), reported=said.append)
    assert said == []  # all pictures are there
    assert_harmless(page.read_text(encoding="utf-8"))
    elements = Elements()
    elements.feed(page.read_text(encoding="utf-8"))
    assert not {"img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in elements.found}
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        target = attributes.get("href") or attributes.get("src") or ""
        assert "javascript:" not in target, target
    assert not [one for one in elements.scripts if one.startswith("window.hostile")]


def test_a_name_with_control_characters_is_drawn_with_visible_ones() -> None:
    spec = {
        "data": {"values": [{"a": 1, "b": CONTROLS}, {"a": 2, "b": SCRIPT}]},
        "mark": "point",
        "encoding": {
            "x": {"field": "a", "type": "quantitative"},
            "y": {"field": "b", "type": "nominal", "sort": [CONTROLS, SCRIPT]},  # becomes an expression
        },
    }
    (drawn,) = draw([Job("page", spec)])
    assert drawn.problem == ""
    assert b"a\\x00b\\x1b[31mred" in (drawn.content or b"")


def test_answers_that_are_no_text_are_refused_with_their_file(run: Path) -> None:
    broken = run / "stages/evaluate-4/predictions.parquet"
    with pytest.raises(
        EvaluationError, match=r"evaluate-4/predictions.parquet: cannot be read as rows of Pred"
    ):
        read_predictions(broken)
