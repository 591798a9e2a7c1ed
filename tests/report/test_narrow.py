"""The study's table fits a terminal, and what is left out or cut is said once."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from example_result import done_cell, failed_cell, result
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from lingraft.cli import output
from lingraft.report.narrow import narrow, without_middle
from lingraft.report.tables import Column, Entry, Table, study_table, task_table
from lingraft.study.result import CellResult, StudyResult

QUICKSTART = (
    ("similar", "plain"),
    ("dissimilar", "plain"),
    ("dissimilar", "english_replay"),
    ("dissimilar", "mixed"),
)


def quickstart(tmp_path: Path, seeds: int = 1) -> StudyResult:
    cells = [
        replace(done_cell(strategy, seed), data=data)
        for data, strategy in QUICKSTART
        for seed in range(seeds)
    ]
    return result(tmp_path, cells)


def printed(monkeypatch: pytest.MonkeyPatch, table: Table, columns: str | None) -> list[str]:
    stream = io.StringIO()
    monkeypatch.setattr(output, "_result_stream", stream)
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", columns)
    output.print_table(table, "a study", essential=True)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("columns", ["80", None])
def test_the_essential_columns_of_the_quickstart_fit_80_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str | None
) -> None:
    table = study_table(quickstart(tmp_path))
    *lines, last = printed(monkeypatch, table, columns)
    assert max(map(cell_len, lines)) <= 80
    text = "\n".join(lines)
    assert "…" not in text
    assert "dissimilar  english_replay  0.400 [0.30, 0.50] ▼     80.0 %     0.600  +0.300" in text
    shown = ("data", "strategy", "task ability", "retention", "language ability", "gain")
    assert last.startswith("Not shown (`--wide` shows all): ")
    assert set(last.partition(": ")[2].split(", ")) == {one.title for one in table.columns} - set(shown)


def test_several_seeds_fit_as_well_and_keep_task_ability_with_its_range_and_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = quickstart(tmp_path, seeds=3)
    lines = printed(monkeypatch, study_table(found), "80")
    assert max(map(cell_len, lines[:-1])) <= 80
    row = next(line for line in lines if "english_replay" in line)
    assert row.split()[:3] == ["dissimilar", "english_replay", "3"]
    assert "0.400 (0.40 to 0.40) ▼" in row
    assert "80.0 %" in row


def test_a_wider_terminal_shows_the_intervals_from_the_first_column_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = study_table(quickstart(tmp_path))
    at = {width: "\n".join(printed(monkeypatch, table, str(width))) for width in (100, 140)}
    assert "80.0 % [70.0, 90.0]" in at[100]
    assert "[+0.20, +0.40]" not in at[100]
    assert "+0.300 [+0.20, +0.40]" in at[140]
    assert all("25.0 %" in text for text in at.values())  # answers in a wrong language


def test_long_names_lose_their_middle_which_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "english_replay+l2_anchor+layerwise_rates"
    cells = [replace(done_cell(name), data=f"a_very_long_name_of_the_data_{i}") for i in range(3)]
    lines = printed(monkeypatch, study_table(result(tmp_path, cells)), "80")
    *table, _, note = lines
    assert max(map(cell_len, table)) <= 80
    assert sum("…" in line for line in table) == 3
    assert len({line[:20] for line in table if "…" in line}) == 3  # the ends tell them apart
    names = ", ".join(cell.data for cell in cells)
    assert note == f"4 names are cut in the middle (`--wide` shows them whole): {names} ..."


def test_names_that_are_cut_stay_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("first: similar", "first: dissimilar", "second: similar", "second: dissimilar")
    cells = [replace(done_cell("english_replay"), data=data) for data in names]
    lines = printed(monkeypatch, study_table(result(tmp_path, cells)), "80")
    shown = {line[:15] for line in lines if "▼" in line}
    assert len(shown) == len(names)
    assert max(map(cell_len, lines[:-2])) <= 80


@given(
    st.lists(st.text(alphabet="abc漢", min_size=1, max_size=25), min_size=1, max_size=6), st.integers(30, 60)
)
def test_cut_names_are_as_many_as_before(names: list[str], width: int) -> None:
    columns = (Column("data", "d"), Column("score", "s"))
    table = Table(columns, tuple((name, Entry("0.123", 0.123)) for name in names), 1)
    cut = [row[0] for row in narrow(table, width, 2).table.rows]
    assert len(set(cut)) == len(set(names))


def test_a_file_gets_whole_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a_name_" * 12
    lines = printed(monkeypatch, study_table(result(tmp_path, [done_cell(name)])), None)
    assert any(name in line for line in lines)


def test_a_failed_cell_says_so_in_a_column_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = printed(monkeypatch, study_table(result(tmp_path, [done_cell("plain"), failed_cell()])), "80")
    assert any("lora" in line and "failed" in line for line in lines)


@given(st.text(max_size=30), st.integers(4, 40))
def test_a_name_without_its_middle_fits_and_keeps_both_ends(text: str, width: int) -> None:
    short = without_middle(text, width)
    assert cell_len(short) <= width or short == text
    head, _, tail = short.partition("…") if short != text else (text, "", "")
    assert text.startswith(head)
    assert text.endswith(tail)


@given(
    st.integers(20, 200), st.lists(st.text(alphabet="abé漢", min_size=1, max_size=30), min_size=1, max_size=4)
)
def test_every_width_is_kept_where_two_short_names_and_a_figure_fit(width: int, names: list[str]) -> None:
    entry = Entry(
        "0.123 [0.10, 0.20] ▼", 0.123, 0.1, 0.2, "fell", shorter=("0.123 [0.10, 0.20] ▼", "0.123 ▼")
    )
    columns = (Column("data", "d"), *(Column(title, title) for title in ("first one", "second", "third")))
    found = narrow(Table(columns, tuple((name, entry, entry, entry) for name in names), 1), width, 2)
    lines = [sum(map(cell_len, row)) + 2 * (len(row) - 1) for row in found.table.rows]
    assert max(lines) <= max(width, 12 + 2 + 7)
    assert len(found.table.columns) + len(found.left_out) == len(columns)
    assert found.table.rows[0][1].startswith("0.123")


def test_entries_hold_the_figures_that_they_show(tmp_path: Path) -> None:
    found = quickstart(tmp_path)
    table = study_table(found)
    place = {one.title: i for i, one in enumerate(table.columns)}
    row = table.rows[-1]
    cell = found.cells[-1]
    assert isinstance(cell, CellResult)

    def figure(title: str) -> tuple[float | None, float | None, float | None, object]:
        entry = row[place[title]]
        assert isinstance(entry, Entry)
        return entry.value, entry.low, entry.high, entry.answer

    task = cell.scores.task_ability
    assert task is not None
    assert figure("task ability") == (task.value, task.low, task.high, "fell")
    assert figure("retention") == (0.8, 0.7, 0.9, None)
    assert figure("wrong lang.") == (0.25, None, None, None)
    assert figure("MPD") == (0.31, None, None, None)
    assert all(isinstance(entry, Entry) for row in table.rows for entry in row[2:])


def test_the_mean_over_seeds_is_an_entry_with_the_interval_of_the_mean(tmp_path: Path) -> None:
    table = study_table(quickstart(tmp_path, seeds=2))
    row = dict(zip((one.title for one in table.columns), table.rows[-1], strict=True))
    retention, ability = row["retention"], row["task ability"]
    assert isinstance(retention, Entry)
    assert isinstance(ability, Entry)
    assert (retention.value, retention.low, retention.high) == (0.8, 0.75, 0.85)
    assert (ability.value, ability.low, ability.answer) == (0.4, None, "fell")
    assert retention == "80.0 % [75.0, 85.0] (80.0 to 80.0)"
    assert retention.shorter == ("80.0 % [75.0, 85.0]", "80.0 %")


def test_the_task_table_has_a_row_for_each_model_and_folds_all_but_the_first_tasks(tmp_path: Path) -> None:
    cells = []
    for strategy in ("plain", "lora"):
        own = done_cell(strategy)
        lookup, change = own.scores.tasks["worldbook:lookup/en"], own.difference.tasks["worldbook:lookup/en"]
        names = [f"task/{i}" for i in range(20)]
        cells.append(
            replace(
                own,
                scores=replace(own.scores, tasks=dict.fromkeys(names, lookup)),
                difference=replace(own.difference, tasks=dict.fromkeys(names[:19], change)),
            )
        )
    table = task_table(result(tmp_path, cells))
    assert table is not None
    assert [row[:2] for row in table.rows[-2:]] == [("similar", "plain"), ("similar", "lora")]
    place = [one.title for one in table.columns].index("task/0")
    entry = table.rows[-1][place]
    assert isinstance(entry, Entry)
    assert (entry, entry.value, entry.low, entry.answer) == (
        "0.400 (p 0.012) ▼",
        0.4,
        0.30000000000000004,
        "fell",
    )
    assert table.rows[-1][place + 19] == "0.400"  # it was not compared in this one
    assert sum(not one.is_detail for one in table.columns) == 2 + 12


def test_the_task_table_sums_up_seeds(tmp_path: Path) -> None:
    found = result(tmp_path, [done_cell("plain", seed, task) for seed, task in ((0, 0.4), (1, 0.2))])
    table = task_table(found)
    assert table is not None
    assert table.rows[-1] == ("similar", "plain", "0.300 (0.20 to 0.40) ▼")
