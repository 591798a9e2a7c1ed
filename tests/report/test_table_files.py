"""Tables as CSV, Markdown and LaTeX: every figure whole, and whatever a name holds stays text."""

from __future__ import annotations

import csv
import shutil
import subprocess
from io import StringIO
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from lingraft.report.latex import latex_text
from lingraft.report.table_files import csv_table, markdown_table, markdown_text, table_texts
from lingraft.report.tables import Column, Entry, Table

FELL = Entry("-0.123 [-0.20, -0.05] ▼", -0.12345678901234567, -0.2, -0.05, "fell", is_best=True)
NAMES = (
    r"\input{/etc/passwd}", r"\write18{id}", "%", "#1 & $x$ ^^M ~ {} _", "[x]", "* y", "^^5cend", "--``''\"",
    "<b>&amp;</b>", "a|b", "`code` _x_ __y__", "http://example.org www.example.org", "![x](y)", "two\n\nlines\r\u2028",
    "\x1b[31m\u202e", "=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\uff1d1", "ภาษาไทย plain 日本語",
    "Tiếng Việt", "Đ þ ħ ĸ", "العربية", "😀", "é ü ß ł \u2013 … “x”", "\\", "snake_case",
)  # fmt: skip


def table(*rows: tuple[str, ...]) -> Table:
    columns = (
        Column("name\n\\end{tabular}", "what it is called"),
        Column("change", "of the score", best="highest"),
        Column("n", "items", is_detail=True),
    )
    return Table(columns, rows, 1)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text, newline="")))


def test_csv_has_every_digit_the_interval_the_sign_and_the_word_in_place_of_a_figure() -> None:
    text = csv_table(table(("a", FELL, Entry("40", 40)), ("b", "failed", "-"), ("c", "-", "-")))
    first, second, third = rows_of(text)
    assert (
        text.splitlines()[0] == "name \\end{tabular},change,change low,change high,change sign,change note,n"
    )
    assert float(first["change"]) == FELL.value
    assert (first["change low"], first["change high"], first["change sign"]) == ("-0.2", "-0.05", "fell")
    assert (first["n"], first["change note"]) == ("40", "")
    assert (second["change"], second["change note"], second["n"]) == ("", "failed", "")
    assert not third["change"] + third["change note"]


def test_a_column_without_intervals_and_signs_stays_one() -> None:
    assert csv_table(table(("a", Entry("0.50", 0.5), "x"))).splitlines()[1] == "a,0.5,x"


@pytest.mark.parametrize("name", NAMES)
def test_a_spreadsheet_finds_no_formula_in_a_name(name: str) -> None:
    (row,) = csv.DictReader(StringIO(csv_table(table((name, FELL, "-"))), newline=""))
    assert next(iter(row.values()))[0] not in "=+-@\t\r\uff1d\uff0b\uff0d\uff20"


def test_what_only_looks_like_a_formula_stays_as_it_is() -> None:
    row = csv_table(table(("-0.31", "+0.10 to -0.20", "-12.5 %"))).splitlines()[1]
    assert row == "-0.31,+0.10 to -0.20,-12.5 %"


def test_markdown_shows_every_name_as_text() -> None:
    html = (
        MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .render(markdown_table(table(*((name, FELL, "-") for name in NAMES))))
    )
    assert html.count("<tr>") == len(NAMES) + 1
    assert html.count("<td") == 2 * len(NAMES)
    assert html.count("<strong>") == len(NAMES)  # the best figures
    assert not any(tag in html for tag in ("<b>", "<em>", "<a ", "<img", "<code>", "<del>"))
    assert "&lt;b&gt;&amp;amp;&lt;/b&gt;" in html
    assert "Left out" not in html


def test_addresses_become_no_links_and_names_stay_readable_in_markdown() -> None:
    assert markdown_text("http://a.b www.c.d english_replay") == r"http\://a.b www\.c.d english_replay"


def test_details_are_left_out_of_a_paper_and_named_unless_it_is_to_be_wide() -> None:
    own = table(("a", FELL, Entry("40", 40)))
    assert "(--wide writes them, CSV has them): n." in table_texts(own).latex
    assert "| 40 |" not in table_texts(own).markdown
    wide = table_texts(own, wide=True)
    assert r"& 40 \\" in wide.latex
    assert "Left out" not in wide.latex
    assert "| 40 |" in wide.markdown


def test_latex_has_the_sign_the_interval_and_the_best_in_bold() -> None:
    text = table_texts(table(("a", FELL, "-"), ("b", "-", "-")), "Title\n\\bad", "How to read it").latex
    assert r"a & \textbf{\(-\)0.123} {\scriptsize [\(-\)0.20, \(-\)0.05]} \(\blacktriangledown\) \\" in text
    assert "b & -- \\\\" in text
    assert r"\begin{tabular}{lr}" in text
    assert (
        "% Bold: the best of a column, and all that cannot be distinguished from it.\n% ▲ rose, ▼ fell,"
        in text
    )
    assert "Bold" not in table_texts(table(("a", Entry("1", 1), "-"))).latex
    assert text.startswith("% Title \\bad\n% How to read it\n")


def test_what_pdflatex_cannot_set_is_kept_for_other_engines() -> None:
    assert latex_text("Việt ไทย") == r"Vi\lingraftforeign{ệ}{e}t \lingraftforeign{ไทย}{(Thai)}"
    assert latex_text("é \u2013 Ł") == "é \u2013 Ł"


def compiled(folder: Path, engine: str, text: str) -> str:
    """Return the words of a document that takes a table from a file."""
    # LuaLaTeX sets its default font from lmodern.
    needed = ["kpsewhich", "lmodern.sty"] if engine == "lualatex" else ["kpsewhich", "booktabs.sty"]
    if shutil.which(engine) is None or subprocess.run(needed, capture_output=True, check=False).returncode:
        pytest.skip(f"{engine} or its fonts are missing: apt-get install texlive-latex-recommended lmodern")
    (folder / "table.tex").write_text(text, encoding="utf-8")
    (folder / "paper.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\usepackage{amssymb}\n"
        "\\begin{document}\nbefore\n\n\\input{table}\n\nafter\n\\end{document}\n"
    )
    done = subprocess.run(
        [engine, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper"],
        cwd=folder,
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "TEXMFVAR": str(folder)},
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said[-2000:]
    return said


@pytest.mark.parametrize("engine", ["pdflatex", "lualatex"])
def test_a_table_of_hostile_names_compiles(tmp_path: Path, engine: str) -> None:
    rows = [(name, FELL, name) for name in NAMES]
    said = compiled(tmp_path, engine, table_texts(table(*rows), wide=True).latex)
    assert "(/etc/passwd" not in said
    assert "Output written on paper.pdf (1 page" in " ".join(said.split())
    if shutil.which("pdftotext"):
        words = subprocess.run(
            ["pdftotext", "-layout", "paper.pdf", "-"], cwd=tmp_path, capture_output=True, check=True
        )
        text = words.stdout.decode()
        assert text.index("before") < text.index("passwd") < text.index("after")
        assert text.count("0.123") == len(NAMES)
        assert "snake case" in text  # an underscore is a line there, not a character
