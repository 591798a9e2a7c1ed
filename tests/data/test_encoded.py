"""The table of encoded examples on disk: what goes in comes out, from any process, and nothing half done is read."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lingraft.data.encoded import (
    INDEX_FILE,
    ROWS_FILE,
    EncodedBatch,
    EncodedExample,
    EncodedTable,
    EncodedTableWriter,
    write_table,
)
from lingraft.errors import DataError


@st.composite
def encoded(draw: st.DrawFn) -> EncodedExample:
    tokens = draw(st.lists(st.integers(0, 2**31 - 1), max_size=20))
    supervised = draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    return EncodedExample(
        draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
        draw(st.sampled_from(["en", "th", "zh-Hant"])),
        tuple(tokens),
        tuple(supervised),
        draw(st.integers(0, 9)),
    )


ROWS = st.lists(encoded(), max_size=12)
SOME = [
    EncodedExample("a", "en", (1, 2, 3), (True, False, True), 0),
    EncodedExample("ß", "de", (4,), (True,), 7),
    EncodedExample("", "en", tuple(range(17)), (False, True) * 8 + (True,), 0),
]


@settings(deadline=None)
@given(ROWS)
def test_rows_come_back_as_they_were(rows: list[EncodedExample]) -> None:
    table = write_table(rows)
    assert list(table) == rows
    assert table.lengths.tolist() == [len(row.input_ids) for row in rows]
    assert table.tokens == sum(len(row.input_ids) for row in rows)
    assert table.supervised_tokens == sum(sum(row.supervised) for row in rows)
    assert table.predicted_tokens == sum(sum(row.supervised[1:]) for row in rows)
    assert table.truncated_rows == sum(row.truncated_tokens > 0 for row in rows)
    assert table.predicted_per_row.tolist() == [sum(row.supervised[1:]) for row in rows]
    for number, row in enumerate(rows):
        arrays = table.arrays(number)
        assert tuple(arrays.input_ids.tolist()) == row.input_ids
        assert tuple(arrays.supervised.tolist()) == row.supervised
        assert arrays.replayed is row.replayed


def test_it_is_a_sequence() -> None:
    table = write_table(SOME)
    assert (table[-1], table[1:], len(table)) == (SOME[2], tuple(SOME[1:]), 3)
    with pytest.raises(IndexError, match="row 3 of 3"):
        table[3]


@settings(deadline=None)
@given(ROWS, st.integers(1, 5))
def test_the_content_hash_is_of_the_rows_and_not_of_how_they_were_written(
    rows: list[EncodedExample], size: int
) -> None:
    one = write_table(rows)
    with EncodedTableWriter() as writer:
        for start in range(0, len(rows), size):
            writer.append(batch_of(rows[start : start + size]))
        other = writer.finish()
    assert one.content_hash == other.content_hash
    assert list(other) == rows


def batch_of(rows: list[EncodedExample]) -> EncodedBatch:
    return EncodedBatch(
        ids=[row.example_id for row in rows],
        languages=[row.language for row in rows],
        lengths=np.array([len(row.input_ids) for row in rows]),
        truncated=np.array([row.truncated_tokens for row in rows]),
        tokens=np.array([token for row in rows for token in row.input_ids], np.int32),
        supervised=np.array([seen for row in rows for seen in row.supervised], bool),
        replayed=np.array([row.replayed for row in rows], bool),
    )


def test_another_token_bit_or_length_is_another_content_hash() -> None:
    hashes = {
        write_table(rows).content_hash
        for rows in (
            SOME,
            SOME[:2],
            [SOME[1], SOME[0], SOME[2]],
            [EncodedExample("a", "en", (1, 2, 3), (True, True, True), 0), *SOME[1:]],
            [
                EncodedExample("a", "en", (1, 2), (True, False), 0),
                EncodedExample("b", "en", (3, 4), (True, True), 0),
            ],
        )
    }
    assert len(hashes) == 5


def test_another_process_opens_it_by_its_folder(tmp_path: Path) -> None:
    table = write_table(SOME, tmp_path / "table")
    assert list(EncodedTable.open(tmp_path / "table")) == SOME
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(len, [table]) == [3]
    assert list(pickle.loads(pickle.dumps(table))) == SOME
    with pytest.raises(TypeError, match="nameless"):
        pickle.dumps(write_table(SOME))


def test_datasets_opens_the_same_file(tmp_path: Path) -> None:
    write_table(SOME, tmp_path)
    rows = Dataset.from_file(str(tmp_path / ROWS_FILE))
    assert rows["tokens"][:] == [list(one.input_ids) for one in SOME]
    assert rows[1] == {
        "id": "ß",
        "language": "de",
        "truncated": 7,
        "replayed": False,
        "tokens": [4],
        "supervised": [True],
    }


def test_a_folder_without_its_index_is_no_table(tmp_path: Path) -> None:
    write_table(SOME, tmp_path)
    (tmp_path / INDEX_FILE).unlink()
    with pytest.raises(DataError, match=r"index.json is missing"):
        EncodedTable.open(tmp_path)


def write_halfway(folder: Path) -> None:
    with EncodedTableWriter(folder) as writer:
        writer.append(batch_of(SOME))
        np.zeros(2) + np.zeros(3)


def test_an_error_while_writing_leaves_nothing_that_could_be_read(tmp_path: Path) -> None:
    write_table(SOME, tmp_path)
    with pytest.raises(ValueError, match="broadcast"):
        write_halfway(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / ROWS_FILE).write_bytes(b"1234"), "rows.arrow has 4 bytes"),
        (lambda folder: (folder / INDEX_FILE).write_text(json.dumps({"format": 99})), "has format 99"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, damage: Callable[[Path], object], problem: str) -> None:
    write_table(SOME, tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=problem):
        EncodedTable.open(tmp_path)
