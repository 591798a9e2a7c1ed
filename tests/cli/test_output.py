"""Tables keep their columns whatever script their cells are in."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from lingraft.cli import output
from lingraft.report.tables import Column, Table

CELLS = ["العربية", "ภาษาไทย น้ำ", "日本語", "한국어", "हिन्दी", "English"]


def drawn(monkeypatch: pytest.MonkeyPatch, cells: list[str]) -> list[str]:
    stream = io.StringIO()
    monkeypatch.setattr(output, "_result_stream", stream)
    columns = (Column("name", "a word"), Column("rows", "a number"))
    output.print_table(Table(columns, tuple((cell, "123") for cell in cells), 1))
    return [line for line in stream.getvalue().splitlines() if "123" in line]


def test_numbers_stand_in_one_column_beside_wide_narrow_and_combining_letters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = drawn(monkeypatch, CELLS)
    assert len(lines) == len(CELLS)
    assert len({cell_len(line[: line.index("123")]) for line in lines}) == 1


def test_each_right_to_left_stretch_between_marks_is_isolated() -> None:
    shown = output.readable("<|im_start|>user\nأي شهر؟<|im_end|>\n⟦ديسمبر.<|im_end|>⟧ 日本")
    assert shown == ("<|im_start|>user\n\u2068أي شهر؟\u2069<|im_end|>\n⟦\u2068ديسمبر.\u2069<|im_end|>⟧ 日本")


def test_a_table_on_a_narrow_console_is_cut_into_parts_and_no_cell_is_lost() -> None:
    stream = io.StringIO()
    columns = tuple(Column(name, name) for name in ("key", "first column", "second column", "third column"))
    row = ("language", "11111111111", "22222222222", "33333333333")
    output.print_table(Table(columns, (row,), 1), None, Console(file=stream, width=32))
    for cell in (*row[1:], *(column.title for column in columns)):
        assert cell in stream.getvalue()


def test_a_title_is_taken_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(output, "_result_stream", stream)
    for title in ("models/[/tuned]", "models/[bold]tuned"):
        output.print_table(Table((Column("name", "a word"),), (("a" * 40,),), 1), title)
        assert title in stream.getvalue()


def test_a_right_to_left_cell_is_isolated_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    arabic, thai = drawn(monkeypatch, CELLS[:2])
    assert f"\u2068{CELLS[0]}\u2069" in arabic
    assert "\u2068" not in thai
