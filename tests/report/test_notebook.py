"""A notebook shows results as tables: nothing that a name says becomes markup, and there is no script and no style."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from example_result import done_cell, failed_cell, result

import lingraft
from lingraft.notebook import InNotebook
from lingraft.similarity.comparison import Comparison, Overlap
from lingraft.similarity.embedding_similarity import EmbeddingSimilarity
from lingraft.study.result import CellResult, FailedCell

TAGS = {"table", "thead", "tbody", "tr", "th", "td", "p", "strong", "details", "summary"}
EVIL = "<img src=x onerror=alert(1)> \"' </td><script>alert(1)</script>\u202e\x1b[31m"


class _Read(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.cells: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags[-1] in ("td", "strong"):
            self.cells.append(data)


def shown(found: object) -> _Read:
    read = _Read(found._repr_html_())  # type: ignore[attr-defined]
    assert set(read.tags) <= TAGS
    assert read.attributes <= {"scope", "title"}
    return read


def test_a_study_is_its_table_with_the_best_marked_and_the_verdict(tmp_path: Path) -> None:
    cells: list[CellResult | FailedCell] = [
        done_cell("plain", task=0.4),
        done_cell("ssu", task=0.5),
        failed_cell(),
    ]
    read = shown(result(tmp_path, cells))
    assert read.tags.count("table") == 2  # the essential columns, and all of them folded
    assert read.tags.index("details") > read.tags.index("table")
    assert "0.500 [0.40, 0.60] ?" in read.cells
    assert "strong" in read.tags
    assert "similar / lora / seed 0: no memory" in read.text
    assert "is shown to have kept English" in read.text


def test_names_of_a_study_are_text(tmp_path: Path) -> None:
    cells: list[CellResult | FailedCell] = [
        replace(done_cell(EVIL), data=EVIL),
        failed_cell(EVIL, reason=EVIL),
    ]
    found = result(tmp_path, cells)
    read = shown(found)
    assert "<script>alert(1)</script>" in read.text
    assert "\u202e" not in read.text
    assert "\x1b" not in read.text


@pytest.fixture(scope="module")
def drifts(tiny_model: Path) -> lingraft.DriftOfModels:
    return lingraft.drift_of_models([tiny_model, tiny_model], ["Hello", "Name a colour."])


def test_every_result_that_says_so_is_shown_as_tables(
    tiny_model: Path, drifts: lingraft.DriftOfModels
) -> None:
    pair = EmbeddingSimilarity(0.512, 0.534, 0.5, 0.56, (40, 41), EVIL)
    sets = Comparison(
        names=(EVIL, "b"),
        rows=(40, 41),
        encoded=(40, 41),
        pairs={(0, 1): pair},
        by_language=(),
        by_task_type=(),
        too_many_task_types=(),
        overlaps=(Overlap(EVIL, "b", 0.25, (40, 41)), Overlap("b", EVIL, 0.5, (40, 41))),
        closeness=0.9,
        precision=None,
        encoder=EVIL,
    )
    results: list[InNotebook] = [
        drifts,
        drifts.drifts[0],
        lingraft.parameter_difference(tiny_model, tiny_model),
        lingraft.signal_to_noise(tiny_model),
        sets,
        pair,
    ]
    figures = {type(one).__name__: shown(one).cells for one in results}
    assert figures["Drift"][:2] == ["0", "1.0000"]
    assert "q_proj" in " ".join(figures["SignalScan"])
    assert figures["Comparison"][-6:] == ["b", "0.512", "0.534 [0.500, 0.560]", "40, 41", "25.0%", "50.0%"]
    assert figures["EmbeddingSimilarity"] == ["0.512", "0.534", "0.500", "0.560"]
    assert figures["ParameterDifference"][0] == "all"
    assert figures["ParameterDifference"][2] == "0.0000"
    known = {*figures, "StudyResult", "Checked"}
    assert {one.__name__ for one in InNotebook.__subclasses__()} <= known
