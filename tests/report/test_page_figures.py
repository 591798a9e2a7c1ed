"""A page carries what its figures and tables become: drawn for all, live where scripts run, and files to save."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pytest
from page_reader import assert_harmless

from lingraft.measures.base import Plot
from lingraft.report import page_figures
from lingraft.report.contents import PlacedTable, Section
from lingraft.report.drawing import Drawing, Job, draw
from lingraft.report.figures import INK
from lingraft.report.page import Page, render
from lingraft.report.page_figures import figures_of
from lingraft.report.table_files import table_texts
from lingraft.report.tables import Column, Entry, Table

HOSTILE = '</script><script>alert("x")</script>'
TABLE = Table((Column("name", "who"), Column("score", "how good")), ((HOSTILE, Entry("0.5", 0.5)),), 1)


def chart() -> alt.Chart:
    rows = [{"a": 1, "b": HOSTILE}, {"a": 2, "b": "y"}]
    return alt.Chart(alt.Data(values=rows)).mark_point(color=INK, clip=True).encode(x="a:Q", y="b:N")


PLOTS = tuple(Plot(name, "A plot", "What it shows.", chart, f"the {name} figure") for name in ("one", "two"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINGRAFT_CACHE", str(cache))


@pytest.fixture(scope="module")
def html(cache: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINGRAFT_CACHE", str(cache))
        section = Section("first", "First", (*PLOTS, PlacedTable("t", "", "", TABLE)))
        return render(Page("title", "kind", (("model", HOSTILE),), (), (section,)))


def carried(html: str, name: str) -> str:
    found = re.search(rf'<script type="application/gzip" id="packed-{name}">([^<]*)</script>', html)
    assert found
    return gzip.decompress(b64decode(found[1])).decode()


def test_the_policy_names_the_engine_that_a_figure_is_drawn_with(html: str) -> None:
    digest = b64encode(hashlib.sha256(carried(html, "engine").encode()).digest()).decode()
    assert f"'sha256-{digest}'" in assert_harmless(html).policy
    assert HOSTILE not in html


def test_a_figure_stands_in_the_page_with_its_alternative_and_what_draws_it_anew(html: str) -> None:
    specs = json.loads(carried(html, "figures"))
    assert list(specs) == ["one", "two"]
    assert specs["one"]["mark"]["color"] == "currentColor"
    assert INK not in json.dumps(specs)
    assert html.count("<svg") == 2
    assert '<div class="still" role="img" aria-label="the one figure">' in html
    pdf = re.search(r'<script type="application/pdf" id="pdf-two">([^<]*)</script>', html)
    assert pdf
    assert b64decode(pdf[1]).startswith(b"%PDF")


def test_clip_paths_of_two_figures_have_different_names(html: str) -> None:
    names = re.findall(r'<clipPath id="([^"]*)"', html)
    assert len(set(names)) == len(names) == 2
    assert {f"url(#{name})" for name in names} == set(re.findall(r"url\(#[^)]*\)", html))


def test_a_table_can_be_saved_as_what_the_command_writes(html: str) -> None:
    texts = table_texts(TABLE, wide=True)
    found = json.loads(carried(html, "tables"))["t"]
    assert (found["csv"], found["latex"], found["markdown"]) == (texts.csv, texts.latex, texts.markdown)


def test_the_engine_is_made_once_and_a_damaged_one_is_made_anew(
    html: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def drawn(jobs: Sequence[Job]) -> list[Drawing]:
        asked.extend(job.form for job in jobs)
        return [Drawing(f"<svg>{job.form}</svg>".encode()) for job in jobs]

    monkeypatch.setattr(page_figures, "draw", drawn)
    assert figures_of(PLOTS[:1]).engine == carried(html, "engine")
    assert asked == ["page", "pdf"]
    (kept,) = cache.glob("page-engine-*.json")
    whole = kept.read_text(encoding="utf-8")
    kept.write_text(whole.replace("vega", "evil", 1), encoding="utf-8")
    asked.clear()
    assert figures_of(PLOTS[:1]).engine == "<svg>engine</svg>"
    assert asked == ["page", "pdf", "engine"]
    kept.write_text(whole, encoding="utf-8")


def test_without_the_engine_and_without_pdf_figures_stand_in_the_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def drawn(jobs: Sequence[Job]) -> list[Drawing]:
        found = draw([job for job in jobs if job.form == "page"])
        return [found.pop(0) if job.form == "page" else Drawing(None, "no memory") for job in jobs]

    monkeypatch.setattr(page_figures, "draw", drawn)
    monkeypatch.setattr(page_figures, "_kept_engine", lambda: "")
    html = render(Page("title", "kind", (), (), (Section("first", "First", PLOTS[:1]),)))
    assert_harmless(html)
    assert html.count("<svg") == 1
    assert "packed-engine" not in re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)


def test_a_figure_that_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(jobs: Sequence[Job]) -> list[Drawing]:
        return [Drawing(None, "no memory")] * len(jobs)

    monkeypatch.setattr(page_figures, "draw", failing)
    monkeypatch.setattr(page_figures, "_kept_engine", lambda: "engine")
    found: Any = figures_of(PLOTS)
    assert (found.pictures, found.problem) == ({}, "The report has no pictures: no memory.")


def test_a_name_that_vega_keeps_no_group_by_is_drawn_as_another() -> None:
    rows = [{"set": one, "a": 1} for one in ("__proto__", "plain")]
    facets = alt.Chart(alt.Data(values=rows)).mark_point().encode(x="a:Q", facet="set:N")
    (drawing,) = draw([Job("page", facets.to_dict())])
    svg = (drawing.content or b"").decode()
    assert "__proto__" in svg
    assert svg.count('aria-roledescription="point"') == 2


def test_a_chart_that_raises_costs_its_picture_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> Any:
        raise KeyError("strategy")

    monkeypatch.setattr(page_figures, "_kept_engine", lambda: "engine")
    found = figures_of([Plot("broken", "Broken", "", failing), *PLOTS])
    assert list(found.pictures) == list(found.specs) == list(found.pdfs) == ["one", "two"]
    assert found.problem == "The report has 2 of 3 pictures: KeyError: 'strategy'."
    alone = figures_of([Plot("broken", "Broken", "", failing)])
    assert (alone.pictures, alone.problem) == ({}, "The report has no pictures: KeyError: 'strategy'.")
