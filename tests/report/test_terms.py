"""A page's terms say what the documentation says, stand for what columns name, and escape the text around them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from example_result import done_cell, result

from lingraft.measures import REGISTRY
from lingraft.report.tables import study_table
from lingraft.report.terms import TERMS, Term, term_of, terms_in, with_terms

DOCS = Path(__file__).resolve().parents[2] / "docs"


def glossary() -> dict[str, str]:
    """Return the meanings of the glossary by term, of which one row may hold several."""
    rows = [
        line.split("|")[1:3]
        for line in (DOCS / "glossary.md").read_text(encoding="utf-8").splitlines()
        if "|" in line
    ]
    return {name.strip(): meaning.strip() for names, meaning in rows for name in names.split(",")}


def anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.name)
def test_a_term_says_what_the_documentation_says(term: Term) -> None:
    page, _, place = term.page.partition("#")
    assert place in anchors(page)
    meaning = glossary().get(term.name)
    if meaning is not None:
        assert term.meaning.lower().startswith(meaning.lower())
    assert term.meaning.endswith(".")


def test_no_two_terms_share_a_spelling_or_a_place() -> None:
    spellings = [one.lower() for term in TERMS for one in (term.name, *term.spellings)]
    assert len(set(spellings)) == len(spellings)
    assert len({term.anchor for term in TERMS}) == len(TERMS)


def test_every_term_that_a_column_names_is_explained(tmp_path: Path) -> None:
    named = {
        column.term for column in study_table(result(tmp_path, [done_cell("plain")])).columns if column.term
    }
    named |= {REGISTRY.get(name).title for name in REGISTRY}
    assert {name for name in named if term_of(name) is None} == set()


def test_the_first_place_of_a_term_leads_to_it_and_the_text_is_escaped() -> None:
    found = with_terms("Retention <b>& gain</b>, not againe; retention again.")
    assert found == (
        '<a class="term" href="#term-retention" data-tip="term-retention">Retention</a> &lt;b&gt;&amp; '
        '<a class="term" href="#term-gain" data-tip="term-gain">gain</a>&lt;/b&gt;, not againe; retention again.'
    )
    assert with_terms("the backward-transfer of DESK") == "the backward-transfer of DESK"


def test_the_terms_of_a_page_are_those_that_stand_on_it() -> None:
    assert [term.name for term in terms_in(["a cell", "MPD and the p-value"])] == [
        "cell",
        "permutation test",
        "MPD",
    ]
