"""A table's HTML says what the table says, sorts by its figures, and escapes all that it is given."""

from __future__ import annotations

import pytest
from page_reader import read_page

from lingraft.report.markup import drawn
from lingraft.report.tables import Column, Entry, Table

EVIL = '<img src=x onerror="alert(1)">'


def rows_of(*entries: str, n_keys: int = 0) -> str:
    columns = tuple(Column(f"c{place}", "meaning") for place in range(len(entries)))
    return str(drawn(Table(columns, (entries,), n_keys)).rows)


def test_a_figure_has_its_exact_value_its_interval_and_the_name_of_its_sign() -> None:
    entry = Entry("0.400 [0.30, 0.50] ▼", 0.40001234, 0.3, 0.5, "fell")
    assert rows_of(entry) == (
        '<tr><td data-value="0.4000123">0.400 <small>[0.30, 0.50]</small> '
        '<b class="down" role="img" aria-label="fell">▼</b></td></tr>'
    )


@pytest.mark.parametrize(
    "text",
    [
        "0.350 [0.30, 0.40] (0.30 to 0.40) ▲",
        "-12.5 % [-14.0, 3.1]",
        "+0.1 (0.1 to 0.2) seeds disagree",
        "1,234",
        "0.5 =",
        "- (0.1)",
        "3 > 2 [x]",
        "held",
        EVIL,
        f"0.5 [{EVIL}] ?",
    ],
)
def test_what_is_shown_is_the_text(text: str) -> None:
    page = read_page(f"<table>{rows_of('name', text, n_keys=1)}</table>")
    assert page.text == f"name{text}"
    assert {tag for tag, _, _ in page.attributes} <= {"th", "td", "b"}


def test_the_best_is_marked_beside_what_a_word_says() -> None:
    assert '<td class="best" data-value="1">1</td>' in rows_of(Entry("1", 1.0, is_best=True))
    assert rows_of("held", "broken", "-") == (
        '<tr><td class="text up">held</td><td class="text down">broken</td><td class="absent">-</td></tr>'
    )


def test_a_long_name_of_a_row_may_be_broken_and_stays_the_same_text() -> None:
    name = "a_long/name_of_<data>"
    html = rows_of(name, n_keys=1)
    assert html.count("<wbr>") == 3
    assert read_page(html).text == name
    assert "<wbr>" not in rows_of("set_1", n_keys=1)


def test_columns_with_one_meaning_are_explained_together_and_details_are_counted() -> None:
    columns = (Column("a", "same"), Column("b", "same"), Column("c", ""), Column("d", "own", is_detail=True))
    found = drawn(Table(columns, (("1", "2", "3", "4"),), 0))
    assert found.meanings == (("same", ((0, "a"), (1, "b"))), ("own", ((3, "d"),)))
    assert found.detail == 1
    assert '<td class="detail">4</td>' in found.rows


def test_a_line_stands_between_groups_of_rows_alone() -> None:
    columns = (Column("data", ""), Column("strategy", ""), Column("score", ""))

    def firsts(*data: str) -> list[int]:
        table = Table(columns, tuple((one, str(place), "0.5") for place, one in enumerate(data)), 2)
        return [i for i, row in enumerate(drawn(table).rows.split("\n")) if 'class="first"' in row]

    assert firsts("a", "a", "b", "b") == [2]
    assert firsts("a", "b", "c", "c") == []


@pytest.mark.parametrize(("columns", "expected"), [(4, ""), (7, "small"), (14, "wide")])
def test_a_table_gets_smaller_and_then_lies_on_its_side_on_paper(columns: int, expected: str) -> None:
    entry = Entry("0.400 [0.30, 0.50] ▼", 0.4)
    assert drawn(Table((Column("ability", ""),) * columns, ((entry,) * columns,), 0)).on_paper == expected
    details = (Column("ability", ""),) * 4 + (Column("ability", "", is_detail=True),) * columns
    assert drawn(Table(details, ((entry,) * (4 + columns),), 0)).on_paper == ""
