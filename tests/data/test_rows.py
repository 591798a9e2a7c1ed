"""One way to read rows: every format gives the same rows, and every problem its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pytest

from lingraft.config.schema import DataSource
from lingraft.data.files import SourceFile
from lingraft.data.readers import FILE_FORMATS
from lingraft.data.rows import open_rows
from lingraft.errors import DataError, EvaluationError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "NA"}]
JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TEXTS = {
    "x.jsonl": JSON_LINES,
    "x.json": json.dumps(ROWS),
    "x.csv": "prompt,completion\na,b\nc,NA\n",
    "x.tsv": "prompt\tcompletion\na\tb\nc\tNA\n",
    "x.jsonl.gz": JSON_LINES,
}


def write(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(TEXTS[name].encode(), mtime=0))
    else:
        path.write_text(TEXTS[name])
    return path


def test_every_format_gives_the_same_rows_with_their_places(tmp_path: Path) -> None:
    names = [*TEXTS, "x.parquet"]
    assert {Path(name.removesuffix(".gz")).suffix for name in names} | {".txt"} == set(FILE_FORMATS)
    for name in names:
        rows = list(open_rows(write(tmp_path, name)))
        assert [row.value for row in rows] == ROWS, name
        assert all(row.place == f"{tmp_path / name}:{row.number}" for row in rows)
    (tmp_path / "x.txt").write_text("\ufeffa\n\n c \n", encoding="utf-8")
    rows = list(open_rows(tmp_path / "x.txt", with_text=True))
    assert [(row.number, row.value) for row in rows] == [(1, {"prompt": "a"}), (3, {"prompt": "c"})]


def test_rows_are_limited_in_each_file_and_known_by_it(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.csv"):
        write(tmp_path, name)
    opened = open_rows(DataSource(source="x.{jsonl,csv}"), base_folder=tmp_path, first=1, null_in_tables=True)
    assert [(row.place, row.name) for row in opened] == [("x.jsonl:1",) * 2, ("x.csv:2",) * 2]
    whole = open_rows(DataSource(source="x.csv"), base_folder=tmp_path, null_in_tables=True)
    assert [row.value["completion"] for row in whole] == ["b", None]
    assert [row.value for row in whole] == [row.value for row in whole]  # read anew each time


def test_where_no_row_may_be_left_out_the_first_broken_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(JSON_LINES + "{\n")
    opened = open_rows(SourceFile(tmp_path / "x.jsonl", "mine"))
    assert [row.problem is None for row in opened] == [True, True, False]
    with pytest.raises(EvaluationError, match=r"^mine:3: not JSON"):
        list(opened.sound(EvaluationError))
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"^mine: there are no rows"):
        list(opened.sound())


@pytest.mark.parametrize("name", ["none.jsonl", "x.txt", "x.md", "x.jsonl"])
def test_what_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    for unknown in ("x.txt", "x.md"):
        (tmp_path / unknown).write_text("a")
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(DataError, match=f"{tmp_path / name}: "):
        open_rows(tmp_path / name)
