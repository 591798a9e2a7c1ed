"""Delimited text as people have it: any separator, with and without quoting, with what a table writes for nothing."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from lingraft.config.schema import DataSource
from lingraft.data.readers import read_file
from lingraft.data.sources import LoadedData, load_data
from lingraft.errors import DataError


def loaded(path: Path, content: str, **options: Any) -> LoadedData:
    path.write_bytes(content.encode())
    return load_data(DataSource.model_validate({"source": str(path), **options}))


def pairs(data: LoadedData) -> list[tuple[str, str]]:
    return [(one.instruction, one.answer) for one in data.examples]


def values(path: Path, content: str) -> list[tuple[int, list[Any]]]:
    path.write_bytes(content.encode())
    return [(row.number, [*row.value.values()]) for row in read_file(path, path.name)]


QUOTE = '"Go!" said Ann. What is 1 + 1?'


def test_a_line_that_begins_with_a_quotation_mark_is_one_row_of_a_tsv(tmp_path: Path) -> None:
    content = f'instruction\toutput\nA\t1\n{QUOTE}\t2\n"Open\t3\nB\t4\nhe said "yes"\t5\n'
    found = loaded(tmp_path / "x.tsv", content)
    assert pairs(found) == [("A", "1"), (QUOTE, "2"), ('"Open', "3"), ("B", "4"), ('he said "yes"', "5")]
    assert [one.id for one in found.examples] == ["2", "3", "4", "5", "6"]
    assert not found.broken


def test_quotation_marks_that_would_pair_up_over_whole_rows_of_a_tsv_are_text(tmp_path: Path) -> None:
    content = 'instruction\toutput\nA\t"Hello\nB\tfoo\nC\tbye"\n'
    assert pairs(loaded(tmp_path / "x.tsv", content)) == [("A", '"Hello'), ("B", "foo"), ("C", 'bye"')]


def test_a_row_that_a_tsv_lacks_a_column_of_is_broken_and_the_others_are_read(tmp_path: Path) -> None:
    rows = "".join(f"Q{n}\tA{n}\n" for n in range(200))
    found = loaded(tmp_path / "x.tsv", f"instruction\toutput\n{QUOTE}\t2\nalone\n{rows}")
    assert (found.n_rows, len(found.examples)) == (202, 201)
    assert [row.place.rpartition(":")[2] for row in found.broken] == ["3"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_the_csv_module_writes_is_read_back_whatever_the_ending(
    tmp_path: Path, separator: str, ending: str, quoting: Any
) -> None:
    rows = [
        ['Say "hi",\nplease; now|\tor never', "Hola"],
        ["a, b; c", 'say "x"'],
        ["d", "\nlast, line\n\n"],
        ["e", "f"],
    ]
    written = io.StringIO()
    writer = csv.writer(written, delimiter=separator, quoting=quoting, lineterminator="\r\n")
    writer.writerows([["instruction", "output"], *rows])
    found = loaded(tmp_path / f"x.{ending}", "\ufeff" + written.getvalue())
    assert pairs(found) == [(a, b) for a, b in rows]


@pytest.mark.parametrize(("separator", "ending"), [(";", "csv"), ("\t", "csv"), (",", "tsv"), ("|", "csv")])
def test_the_separator_is_the_one_in_which_rows_are_consistent(
    tmp_path: Path, separator: str, ending: str
) -> None:
    header = separator.join(["instruction", "input", "output"])
    lines = [separator.join([f"one, {n}", "two;" if separator != ";" else "two", "x"]) for n in range(9)]
    if separator == ",":
        lines = [line.replace("one, ", "one ") for line in lines]
    found = loaded(tmp_path / f"x.{ending}", "\n".join([header, *lines]) + "\n")
    assert len(found.examples) == 9
    assert found.examples[3].instruction.startswith("one")
    assert found.examples[3].answer == "x"


def test_a_comma_file_is_read_without_quoting_only_where_quoting_makes_no_sense(tmp_path: Path) -> None:
    content = f"instruction,output\n{QUOTE},2\nB,3\n"
    assert pairs(loaded(tmp_path / "x.csv", content)) == [(QUOTE, "2"), ("B", "3")]
    for broken in ('"Q,A\n', '"He said \\"hi\\" to me",5\n'):
        with pytest.raises(DataError, match=r"x.csv:[23]: not valid CSV"):
            loaded(tmp_path / "x.csv", f"instruction,output\n{broken}B,3\n")


def test_a_table_without_a_header_has_numbered_columns(tmp_path: Path) -> None:
    content = f"How much is 9 + 9?\t18\n{QUOTE}\t2\n"
    assert values(tmp_path / "x.tsv", content) == [(1, ["How much is 9 + 9?", "18"]), (2, [QUOTE, "2"])]
    fields = {"instruction": "column_1", "output": "column_2"}
    assert pairs(loaded(tmp_path / "x.tsv", content, fields=fields))[1] == (QUOTE, "2")


NOTHING = ["", " ", "NaN", "nan", "NA", "N/A", "null", "NULL", "None", "<NA>"]


@pytest.mark.parametrize("nothing", NOTHING)
def test_what_a_table_writes_for_nothing_is_absent_or_breaks_the_row(tmp_path: Path, nothing: str) -> None:
    header = "instruction,input,output,id,group,language,task_type\n"
    content = f"{header}A,{nothing},B,{nothing},{nothing},{nothing},{nothing}\nC,D,{nothing},1,,es,\n"
    found = loaded(tmp_path / "x.csv", content, max_broken_share=0.5)
    (only,) = found.examples
    assert (only.instruction, only.id, only.language, only.task_type) == ("A", "2", "und", "")
    assert [row.problem for row in found.broken] == ["field 'output' is null"]
    assert found.without_answer == 1


@pytest.mark.parametrize("word", ["None", "null", "NA", "nan"])
def test_a_word_for_nothing_is_text_where_a_format_has_types(tmp_path: Path, word: str) -> None:
    row = json.dumps({"instruction": "Q", "input": word, "output": word})
    (only,) = loaded(tmp_path / "x.jsonl", row).examples
    assert (only.instruction, only.answer) == (f"Q\n\n{word}", word)
    datasets.Dataset.from_list([json.loads(row)]).to_parquet(tmp_path / "x.parquet")
    (only,) = load_data(DataSource(source=str(tmp_path / "x.parquet"))).examples
    assert only.answer == word


def test_the_nan_of_pandas_is_nothing_in_json_lines_and_parquet(tmp_path: Path) -> None:
    fields = '"input": NaN, "id": NaN, "group": NaN, "language": NaN, "task_type": NaN, "tools": NaN'
    lines = f'{{"instruction": "A", "output": "B", {fields}}}\n{{"instruction": "A", "output": NaN}}\n'
    found = loaded(tmp_path / "x.jsonl", lines, max_broken_share=0.5)
    assert [(one.instruction, one.id, one.language) for one in found.examples] == [("A", "1", "und")]
    assert [row.problem for row in found.broken] == ["field 'output' is NaN"]
    rows = [{"prompt": "A", "completion": "B", "id": float("nan")}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    assert load_data(DataSource(source=str(tmp_path / "x.parquet"))).examples[0].id == "1"


@pytest.mark.parametrize(
    ("written", "read"), [("42", "42"), ("42.0", "42"), ("-3.5", "-3.5"), ("0", "0"), ("1e300", "1e+300")]
)
def test_answers_and_ids_that_are_numbers_become_their_text(tmp_path: Path, written: str, read: str) -> None:
    line = f'{{"instruction": "Q", "output": {written}, "id": {written}, "group": {written}}}'
    (only,) = loaded(tmp_path / "x.jsonl", line).examples
    assert (only.answer, only.id, only.group) == (read, read, read)
    turns = f'[{{"role": "user", "content": 7}}, {{"role": "assistant", "content": {written}}}]'
    (only,) = loaded(tmp_path / "x.jsonl", f'{{"messages": {turns}}}').examples
    assert (only.instruction, only.answer) == ("7", read)


def test_real_sums_written_as_a_table_without_quoting_are_all_read(shared_data: Path, tmp_path: Path) -> None:
    lines = (shared_data / "mgsm" / "de.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    content = "".join(f"{row['question']}\t{row['answer']}\n" for row in rows)
    found = values(tmp_path / "de.tsv", f'"Wie viel?" fragt sie.\t5\n{content}')
    assert len(found) == 251
    assert found[1][1] == [rows[0]["question"], rows[0]["answer"]]


@pytest.mark.parametrize("start", ["\n", "\r\n\n"])
def test_empty_lines_before_the_header_are_no_header(tmp_path: Path, start: str) -> None:
    assert pairs(loaded(tmp_path / "x.csv", f"{start}instruction,output\nA,B\n")) == [("A", "B")]


@pytest.mark.parametrize(("name", "separator"), [("x.csv", ","), ("x.tsv", "\t")])
def test_the_index_that_pandas_writes_is_a_column_that_nothing_reads(
    tmp_path: Path, name: str, separator: str
) -> None:
    rows = [["", "instruction", "output"], ["0", "A", "B"], ["1", "C", "D"]]
    found = loaded(tmp_path / name, "\n".join(separator.join(row) for row in rows))
    assert pairs(found) == [("A", "B"), ("C", "D")]


def test_a_row_whose_id_is_missing_is_never_a_copy_of_another(tmp_path: Path) -> None:
    content = "instruction,output,id\nA,1,1.0\nB,2,\nC,3,NaN\nD,4,3\nE,5,4\n"
    found = loaded(tmp_path / "x.csv", content, max_broken_share=0)
    place = str(tmp_path / "x.csv")
    assert [one.id for one in found.examples] == ["1.0", f"{place}:3", f"{place}:4", "3", "4"]
