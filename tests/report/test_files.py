"""Figures and tables as files: PDF is vectors with its fonts, and what has no font is said."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from lingraft.errors import ConfigError
from lingraft.measures.base import Plot
from lingraft.report import files
from lingraft.report.contents import Lines, PlacedTable, Section
from lingraft.report.drawing import Drawing, Job, draw
from lingraft.report.files import write_figure, write_files
from lingraft.report.fonts import font_warnings
from lingraft.report.formats import DEFAULT_FORMATS, check_files_folder, check_fonts, checked_formats
from lingraft.report.tables import Column, Entry, Table

TABLE = Table((Column("name", "it"), Column("n", "items")), (("a", Entry("1.0", 1.0)),), 1)
NO_FONTS = (
    "<?xml version='1.0'?><!DOCTYPE fontconfig SYSTEM 'fonts.dtd'><fontconfig><dir>{}</dir></fontconfig>"
)


def chart(name: str = "plain") -> Any:
    rows = [{"name": name, "value": 1.0}]
    return alt.Chart(alt.Data(values=rows)).mark_bar().encode(x="value:Q", y="name:N")


def sections(of: Callable[[], Any] = chart) -> tuple[Section, ...]:
    return (
        Section("one", "First", (Plot("drawn", "Drawn", "", of), Lines("", ("said",)))),
        Section("two", "Second", (PlacedTable("listed", "", "", TABLE),)),
    )


def without_fonts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the engine the one font that it brings along."""
    (folder / "none").mkdir()
    (folder / "fonts.conf").write_text(NO_FONTS.format(folder / "none"))
    monkeypatch.setenv("FONTCONFIG_FILE", str(folder / "fonts.conf"))


@pytest.fixture(scope="module")
def own_fonts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a font of two letters, one of them Thai."""
    pen = TTGlyphPen(None)
    for move, point in ((pen.moveTo, (100, 0)), (pen.lineTo, (400, 700)), (pen.lineTo, (700, 0))):
        move(point)
    pen.closePath()
    glyph = pen.glyph()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "A", "kokai"])
    font.setupCharacterMap({ord("A"): "A", ord("ก"): "kokai"})
    font.setupGlyf(dict.fromkeys((".notdef", "A", "kokai"), glyph))
    font.setupHorizontalMetrics(dict.fromkeys((".notdef", "A", "kokai"), (800, 100)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Two & Letters", "styleName": "Regular", "psName": "TwoLetters"})
    font.setupOS2()
    font.setupPost()
    folder = tmp_path_factory.mktemp("fonts")
    font.save(folder / "letters.ttf")
    return folder


def parts_of(pdf: bytes) -> bytes:
    """Return a PDF with its compressed parts unpacked."""
    packed = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    unpacked = []
    for one in packed:
        try:
            unpacked.append(zlib.decompress(one))
        except zlib.error:
            continue
    return b"\n".join((pdf, *unpacked))


def test_every_figure_and_table_is_a_file_named_as_in_the_report(tmp_path: Path) -> None:
    found = write_files(sections(), tmp_path, ("pdf", "svg", "png", "csv", "latex", "markdown"))
    assert [one.path.name for one in found.files] == [
        "drawn.pdf",
        "drawn.svg",
        "drawn.png",
        "listed.csv",
        "listed.tex",
        "listed.md",
    ]
    assert [one.title for one in found.files] == ["Drawn"] * 3 + ["Second"] * 3
    assert sorted(tmp_path.iterdir()) == sorted(one.path for one in found.files)
    assert (tmp_path / "drawn.svg").read_text().count("#010203") > 0  # ink, on white
    assert 'fill="white"' in (tmp_path / "drawn.svg").read_text()
    assert not found.warnings + found.problems


def test_a_pdf_is_vectors_with_its_fonts_embedded(tmp_path: Path) -> None:
    write_figure(chart(), tmp_path / "a.pdf")
    pdf = parts_of((tmp_path / "a.pdf").read_bytes())
    assert pdf.startswith(b"%PDF-")
    assert b"/FontFile2" in pdf
    assert b"LiberationSans" in pdf
    assert b"/Subtype /Image" not in pdf


def test_tables_alone_draw_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    def drawn(jobs: Sequence[object], **_: object) -> list[object]:
        made.extend(jobs)
        return []

    monkeypatch.setattr(files, "draw", drawn)
    found = write_files(sections(lambda: made.append("chart")), tmp_path, ("csv",))
    assert [one.path.name for one in found.files] == ["listed.csv"]
    assert made == []


def test_a_figure_that_cannot_be_drawn_costs_itself_alone(tmp_path: Path) -> None:
    (tmp_path / "drawn.pdf").write_bytes(b"before")
    broken = alt.Chart(alt.Data(values=[{"a": 1}])).mark_bar().encode(x="a:Q")

    class Broken:
        def to_dict(self) -> dict[str, Any]:
            return dict(broken.to_dict()) | {"mark": "no-mark"}

    found = write_files(sections(Broken), tmp_path)
    assert [one.path.name for one in found.files] == ["listed.csv", "listed.tex"]
    (problem,) = found.problems
    assert problem.startswith("drawn.pdf: the figure is not drawn: ")
    assert (tmp_path / "drawn.pdf").read_bytes() == b"before"


def test_a_figure_that_cannot_be_made_costs_itself_alone(tmp_path: Path) -> None:
    def failing() -> Any:
        raise KeyError("strategy")

    broken = Section("three", "Third", (Plot("broken", "Broken", "", failing),))
    found = write_files([broken, *sections()], tmp_path, ("pdf", "svg", "csv"))
    assert [one.path.name for one in found.files] == ["drawn.pdf", "drawn.svg", "listed.csv"]
    assert found.problems == tuple(
        f"broken.{form}: the figure is not drawn: KeyError: 'strategy'" for form in ("pdf", "svg")
    )


def test_a_name_that_leads_elsewhere_is_no_file(tmp_path: Path) -> None:
    escaping = Section("one", "First", (PlacedTable("../a", "", "", TABLE),))
    with pytest.raises(ValueError, match="is no name of a file"):
        write_files([escaping], tmp_path, ("csv",))


def test_what_no_font_has_is_said_and_a_folder_of_fonts_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_fonts: Path
) -> None:
    without_fonts(tmp_path, monkeypatch)
    (said,) = write_figure(chart("ก & ก 😀"), tmp_path / "a.pdf")
    assert said.startswith("No font here has Thai, U+1F600: PDF and PNG show boxes.")
    assert "fonts-noto-core" in said
    assert "--fonts FOLDER" in said
    assert write_figure(chart("ก & ก"), tmp_path / "b.pdf", own_fonts) == []
    assert b"TwoLetters" in parts_of((tmp_path / "b.pdf").read_bytes())
    assert write_figure(chart("ก"), tmp_path / "c.svg") == []  # a browser finds fonts of its own


def test_what_the_engines_own_font_has_needs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_fonts(tmp_path, monkeypatch)
    assert write_figure(chart("Việt Ελλάδα Русский עברית ▲▼"), tmp_path / "a.pdf") == []


def test_signs_that_the_engine_sets_over_letters_are_said() -> None:
    pdf, page = draw([Job(form, chart("भाषा").to_dict()) for form in ("pdf", "page")])
    assert pdf.crowded == ("Devanagari",)
    assert page == Drawing(page.content)
    assert font_warnings((), pdf.crowded)[0].startswith("In PDF and PNG signs of Devanagari overlap")
    assert " and 2 more: " in font_warnings(map(str, range(10)), ())[0]
    assert len(font_warnings(("Devanagari", "Devanagari"), pdf.crowded)) == 1  # boxes overlap nothing


def test_formats_may_be_repeated_or_listed() -> None:
    assert checked_formats(None) == DEFAULT_FORMATS
    assert checked_formats(["PDF, csv", "pdf"]) == ("pdf", "csv")
    with pytest.raises(ConfigError, match=r"--format latx: is no format.*Did you mean 'latex'"):
        checked_formats(["pdf", "latx"])


def test_a_folder_of_fonts_must_hold_some(tmp_path: Path, own_fonts: Path) -> None:
    check_fonts(own_fonts)
    with pytest.raises(ConfigError, match="holds no font"):
        check_fonts(tmp_path)
    with pytest.raises(ConfigError, match="there is no such folder"):
        check_fonts(tmp_path / "absent")


def test_the_folder_of_files_is_made_when_it_is_written_and_a_file_is_refused(tmp_path: Path) -> None:
    check_files_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    write_files(sections(), tmp_path / "a" / "b", ("csv",))
    assert (tmp_path / "a" / "b" / "listed.csv").exists()
    (tmp_path / "c").write_text("")
    (tmp_path / "e").symlink_to(tmp_path / "nowhere")
    for place in (tmp_path / "c", tmp_path / "c" / "d"):
        with pytest.raises(ConfigError, match="c is a file; name a folder"):
            check_files_folder(place)
    for place in (tmp_path / "e", tmp_path / "e" / "d"):
        with pytest.raises(ConfigError, match="e is a link to nothing; name a folder"):
            check_files_folder(place)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that holds no files")
def test_a_folder_in_which_no_file_can_be_made_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nothing can be written in /proc .*; name another folder"):
        check_files_folder(Path("/proc/out"))


def test_files_that_are_replaced_are_counted(tmp_path: Path) -> None:
    (tmp_path / "listed.csv").write_text("before")
    assert write_files(sections(), tmp_path, ("csv", "latex")).replaced == 1
    assert "before" not in (tmp_path / "listed.csv").read_text()
