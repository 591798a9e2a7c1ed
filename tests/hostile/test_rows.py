"""Rows as no well-meaning writer makes them: each is a row, a broken row that is counted, or one clear error."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lingraft.config.schema import DataSource, EvaluationTask
from lingraft.data import readers, spool, tables
from lingraft.data.example import Example
from lingraft.data.formats import FORMATS
from lingraft.data.rows import open_rows
from lingraft.data.sources import LoadedData, load_data
from lingraft.errors import DataError, EvaluationError, LingraftError
from lingraft.evaluate.items_files import items_files
from lingraft.evaluate.loading import _over_local_file
from lingraft.evaluate.tasks.alpaca_eval.task import read_outputs
from lingraft.evaluate.tasks.instructions.task import read_instructions
from lingraft.judge.win_rate import Output
from lingraft.records import canonical_json
from lingraft.representation.prompts import read_prompts


def load(folder: Path, content: str | bytes, name: str = "x.json", **options: Any) -> LoadedData:
    (folder / name).write_bytes(
        content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    )
    return load_data(DataSource(source=name, max_broken_share=0.99, **options), base_folder=folder)


def row(number: int, **more: Any) -> str:
    return json.dumps({"prompt": f"p{number}", "completion": f"c{number}", **more})


def places(loaded: LoadedData) -> list[str]:
    return [one.place for one in loaded.broken]


# --- lists


def test_each_row_of_a_list_on_one_line_is_one(tmp_path: Path) -> None:
    found = load(tmp_path, f"[{row(1)}, {row(2)},{row(3)}]")
    assert [(one.id, one.answer) for one in found.examples] == [("1", "c1"), ("2", "c2"), ("3", "c3")]
    assert (found.n_rows, len(found.broken)) == (3, 0)


def test_progress_through_a_list_on_one_line_never_passes_its_end(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(f"[{', '.join(map(row, range(25_000)))}]")
    seen: list[tuple[int, int]] = []
    spec = DataSource(source="x.json")
    load_data(spec, base_folder=tmp_path, on_progress=lambda *done: seen.append(done))
    assert seen == [(1, 1), (10_001, 0), (20_001, 0), (25_000, 25_000)]


def test_rows_that_share_a_line_amid_a_list_have_ids_and_places_of_their_own(tmp_path: Path) -> None:
    content = f"[\n{row(1)},{row(2)},\n{row(3)}\n,\n\n{row(4)}, 5]"
    found = load(tmp_path, content)
    assert [one.id for one in found.examples] == ["2", "3", "4", "6"]
    assert places(found) == ["x.json:6 (row 5)"]
    assert [one.place for one in open_rows(tmp_path / "x.json")] == [
        f"{tmp_path / 'x.json'}:{place}" for place in ("2", "2 (row 2)", "3 (row 3)", "6", "6 (row 5)")
    ]


@pytest.mark.parametrize("bytes_in_memory", [1 << 20, 0])
def test_a_number_gives_way_to_an_id_that_another_row_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_in_memory: int
) -> None:
    monkeypatch.setattr(spool, "BYTES_IN_MEMORY", bytes_in_memory)
    rows = [
        row(1),
        row(2),
        row(3, id=2),
        row(4),
        row(5, id="2"),
        row(6, id=2.0),
        row(7, id=True),
        row(8, id=None),
    ]
    found = load(tmp_path, f"[{', '.join(rows)}]")
    ids = ["1", "x.json:2", "2", "x.json:4", "x.json:8"]
    assert [one.id for one in found.examples] == [found.examples[n].id for n in range(5)] == ids
    assert places(found) == ["x.json:5", "x.json:6", "x.json:7"]
    check(found)


def test_outputs_for_the_judge_items_and_prompts_of_one_line_are_all_read(tmp_path: Path) -> None:
    outputs = [{"instruction": f"i{n}", "output": f"o{n}"} for n in range(5)]
    (tmp_path / "outputs.json").write_text(json.dumps(outputs))
    read = read_outputs(tmp_path / "outputs.json")
    assert len({one.item for one in read}) == len(read) == 5
    items = [{"key": n, "prompt": f"p{n}", "instruction_id_list": [], "kwargs": []} for n in range(5)]
    (tmp_path / "items.json").write_text(json.dumps(items))
    (found,) = items_files("items.json", tmp_path)
    assert found.rows == 5
    (tmp_path / "prompts.json").write_text(json.dumps([{"turns": [f"t{n}"]} for n in range(5)]))
    assert [one.messages[0].content for one in read_prompts("prompts.json", base_folder=tmp_path)] == [
        f"t{n}" for n in range(5)
    ]


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        ({"item": "alpaca_eval/1"}, "field 'response' is missing"),
        ({"item": "alpaca_eval/1", "response": ["x"]}, "field 'response' must be text"),
        (
            {"item": "alpaca_eval/0", "response": "x"},
            "the item alpaca_eval/0 has an answer already, at .*p.json:1",
        ),
    ],
)
def test_predictions_for_the_judge_that_are_odd_are_named(
    tmp_path: Path, odd: dict[str, Any], problem: str
) -> None:
    reference = [Output(f"r{n}", f"i{n}", f"o{n}") for n in range(2)]
    sound = {"task": "alpaca_eval", "item": "alpaca_eval/0", "response": "a", "reference": "o0"}
    path = tmp_path / "p.json"
    path.write_text(json.dumps([sound, {"other": 1}, {"task": "alpaca_eval", "reference": "o1"} | odd]))
    with pytest.raises(DataError, match=rf"p.json:3: {problem}"):
        read_outputs(path, reference)
    path.write_text(json.dumps([sound, {"other": 1}]))
    assert [one.output for one in read_outputs(path, reference)] == ["a"]


@pytest.mark.parametrize(
    ("odd", "problem"),
    [
        ({"prompt": "\ud800"}, "the row holds half a surrogate pair"),
        ({"kwargs": [{"language": "\ud800"}]}, "the row holds half a surrogate pair"),
        ({"kwargs": [{"language": "no such"}]}, "language:response_language: KeyError"),
        ({"kwargs": [{"language": 5}]}, "language:response_language: "),
    ],
    ids=range(4),
)
def test_odd_items_are_named(tmp_path: Path, odd: dict[str, Any], problem: str) -> None:
    item = {
        "key": 1,
        "prompt": "p",
        "instruction_id_list": ["language:response_language"],
        "kwargs": [{"language": "de"}],
    }
    path = tmp_path / "items.json"
    path.write_text(json.dumps([item, item | odd]))
    with pytest.raises(EvaluationError, match=rf"items.json:2: {problem}"):
        read_instructions(path)


@pytest.mark.parametrize("after", ["\nnote", '{"a": 1, "a": 2}'])
def test_items_of_a_task_come_from_a_sound_list(tmp_path: Path, after: str) -> None:
    path = tmp_path / "items.json"
    path.write_text('[{"a": 1}, {"a": 2}]' + after if after[0] == "\n" else f'[{{"a": 1}}, {after}]')
    entry = EvaluationTask(task="mine", data="items.json")
    with pytest.raises(LingraftError, match=r"^items.json:2: "):
        _over_local_file([{"task": "mine", "test_split": "test"}], entry, path)


@pytest.mark.parametrize(
    ("after", "line"),
    [("\nnote", 2), (f"\n\n[{row(2)}]", 3), (f"{row(2)}", 1), ("]", 1), (",", 1), ("\0", 1)],
)
def test_text_after_the_list_is_refused_with_its_line(tmp_path: Path, after: str, line: int) -> None:
    with pytest.raises(DataError, match=rf"^x.json:{line}: more text stands after the end of the list"):
        load(tmp_path, f"[{row(1)}]{after}")
    assert len(load(tmp_path, f"\ufeff \n[{row(1)}]\n \t\n").examples) == 1


def test_objects_over_several_lines_are_refused_with_what_to_do(tmp_path: Path) -> None:
    pretty = json.dumps({"prompt": "p", "completion": "c"}, indent=1)
    with pytest.raises(
        DataError, match=r"^x.json:5: more text stands after .* write \[...\] around all rows"
    ):
        load(tmp_path, f"{pretty}\n{row(2)}\n")
    with pytest.raises(
        DataError, match=r"^x.json:1: the file is one object .* make the list in 'data' the whole file"
    ):
        load(tmp_path, json.dumps({"version": 1, "data": [json.loads(row(1))]}, indent=1))
    broken_first = load(tmp_path, f'{{"prompt": "p", \n{row(2)}\n')
    assert (places(broken_first), len(broken_first.examples)) == (["x.json:1"], 1)


UNUSABLE = {
    "a key twice": '{"prompt": "a", "prompt": "}]", "completion": "\\""}',
    "a number of 5,000 digits": f'{{"prompt": {"7" * 5000}, "completion": "c"}}',
    "nothing but a number of 5,000 digits": "7" * 5000,
    "lists 100,000 deep": f'{{"prompt": "p", "completion": {"[" * 100_000}{"]" * 100_000}}}',
}


@pytest.mark.parametrize("odd", UNUSABLE.values(), ids=UNUSABLE)
def test_a_row_that_is_json_but_not_usable_is_broken_alone(tmp_path: Path, odd: str) -> None:
    for name, content in (
        ("x.json", f"[{row(1)}, {odd}, {row(3)}]"),
        ("x.jsonl", f"{row(1)}\n{odd}\n{row(3)}\n"),
    ):
        found = load(tmp_path, content, name)
        assert ([one.id for one in found.examples], places(found)) == (["1", "3"], [f"{name}:2"])
        assert found.broken[0].problem.startswith("not usable JSON: ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            f"[{row(1)}, {row(2)}"[:-8],
            r"x.json:2: the file is not valid JSON from this row on: Unterminated string",
        ),
        (
            f"[{row(1)},\n{row(2)}, nul]",
            r"x.json:3: the file is not valid JSON .* Expecting value \(line 2\)",
        ),
        (f"[{row(1)} {row(2)}]", "x.json:1: after this row, ',' or ']' is missing"),
        (f"[{UNUSABLE['lists 100,000 deep'][:-1]}", "x.json:1: the file is not usable JSON from this row on"),
        (f"[{row(1)}]".encode("utf-16"), "x.json:1: the file is UTF-16"),
        (f"[{row(1)}]".encode("utf-16-le"), "x.json:1: the file is UTF-16"),
        (b"[\n" + row(1).encode() + b'\n,"\xe4"]', r"x.json:3: the file is not UTF-8 \(byte"),
        (f"[{row(1)}".encode() + b'\n,"\xc3', r"x.json:2: the file is not UTF-8 \(byte"),
        (f"[[{row(1)}]]", r"x.json:1: the row must be an object, not list"),
    ],
)
def test_a_damaged_list_is_refused_with_its_place(tmp_path: Path, content: str | bytes, problem: str) -> None:
    with pytest.raises(DataError, match=f"^{problem}"):
        load(tmp_path, content)


def test_blocks_may_end_anywhere_in_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"prompt": 'é\n\\"]}' * n, "completion": "€" * 3, "n": -1.5e-7, "id": f"r{n}"} for n in range(1, 9)
    ]
    odd = '{"prompt": "a", "prompt": "}]\\"\\\\", "completion": "c"}'
    content = json.dumps(rows, ensure_ascii=False, indent=1)[:-1] + f",\n{odd}, 12345]\n"
    line = content.count("\n")
    for block in (1, 2, 3, 7, 64):
        monkeypatch.setattr(readers, "_BLOCK_BYTES", block)
        found = list(load(tmp_path, content).examples)
        assert [one.instruction for one in found] == [each["prompt"] for each in rows], block
        assert places(load(tmp_path, content)) == [f"x.json:{line}", f"x.json:{line} (row 10)"], block


# --- sizes


def test_a_bomb_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_ALWAYS_UNPACKED", 1 << 20)
    for name, content in (
        ("x.json.gz", b" "),
        ("x.jsonl.gz", b"["),
        ("x.csv.gz", b"a,b\n"),
        ("x.tsv.gz", b"x"),
    ):
        with pytest.raises(
            DataError, match=rf"^{name}: the gzip file unpacks to more than 1 MB and 100 times"
        ):
            load(tmp_path, gzip.compress(content * (1 << 22)), name)
    plain = "".join(f"{row(n)}\n" for n in range(20_000)).encode()
    assert len(load(tmp_path, gzip.compress(plain, mtime=0), "x.jsonl.gz").examples) == 20_000


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.tsv", "x.jsonl.gz"])
def test_a_row_without_end_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in (readers, tables):
        monkeypatch.setattr(module, "LONGEST_ROW", 1 << 12)
    monkeypatch.setattr(readers, "_BLOCK_BYTES", 1 << 10)
    content = ('[{"prompt": "' if name == "x.json" else "prompt,completion\n") + "x" * (1 << 16)
    with pytest.raises(DataError, match=rf"^{name}:\d+: .*the row is longer than 256 MB") as raised:
        load(tmp_path, gzip.compress(content.encode()) if name.endswith("gz") else content, name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "x.jsonl.gz",
            gzip.compress(row(1).encode() * 9, mtime=0)[:-9],
            "the gzip file is broken or cut off",
        ),
        ("x.jsonl.gz", b"PK\x03\x04zip", "the gzip file is broken or cut off"),
        ("x.jsonl.gz", row(1).encode(), "the gzip file is broken or cut off"),
        (
            "x.jsonl.gz",
            gzip.compress(gzip.compress(row(1).encode(), mtime=0), mtime=0),
            "it is compressed twice",
        ),
        ("x.jsonl", gzip.compress(row(1).encode(), mtime=0), "its name does not end in .gz"),
        ("x.jsonl.gz", b"", "there are no rows in it"),
    ],
)
def test_what_is_no_gzip_file_is_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=rf"^{name}: .*{problem}"):
        load(tmp_path, content, name)


# --- tables


def test_odd_tables_are_read_or_refused(tmp_path: Path) -> None:
    long = "y" * 10_000_000
    found = load(tmp_path, f"prompt,completion\na,{long}\nb\0,c\nd,e,f\ng\n", "x.csv")
    assert [len(one.answer) for one in found.examples] == [10_000_000, 1]
    assert places(found) == ["x.csv:4", "x.csv:5"]
    with pytest.raises(DataError, match="2 columns are named 'prompt'"):
        load(tmp_path, "prompt,prompt,completion\na,b,c\n", "x.csv")
    with pytest.raises(DataError, match=r"^x.csv:4: not valid CSV: unexpected end of data"):
        load(tmp_path, 'prompt,completion\na,"b\nc,d\ne,f\n', "x.csv")


def test_columns_of_one_name_are_refused_in_parquet_too(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    pq.write_table(pa.table(columns, names=["prompt", "completion", "prompt"]), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"^x.parquet: 2 columns are named 'prompt'; rename them"):
        load_data(DataSource(source="x.parquet"), base_folder=tmp_path)


def test_a_value_that_python_cannot_hold_breaks_its_row_alone(tmp_path: Path) -> None:
    prompts = pa.array([b"a", b"\xff\xfe", b"c"]).view(pa.binary()).cast(pa.binary()).view(pa.string())
    times = pa.array([0, 1, 1 << 60], pa.int64()).view(pa.timestamp("us"))
    table = pa.table({"prompt": prompts, "completion": ["x", "y", "z"], "when": times})
    pq.write_table(table, tmp_path / "x.parquet")
    found = load_data(DataSource(source="x.parquet", max_broken_share=0.9), base_folder=tmp_path)
    assert [one.id for one in found.examples] == ["1"]
    assert [(one.place, one.problem[:15]) for one in found.broken] == [
        ("x.parquet:2", "cannot be read:"),
        ("x.parquet:3", "cannot be read:"),
    ]


def test_parquet_values_that_are_no_text_break_their_rows(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = {
        "messages": [turns] * 2,
        "tools": [[{"since": None}], [{"since": pa.scalar(0, pa.timestamp("s")).as_py()}]],
    }
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    found = load_data(DataSource(source="x.parquet", max_broken_share=0.9), base_folder=tmp_path)
    assert [one.problem for one in found.broken] == [
        "field 'tools' cannot be written as JSON: Object of type datetime is not JSON serializable"
    ]
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"^x.parquet: there are no rows in it"):
        load_data(DataSource(source="x.parquet"), base_folder=tmp_path)


# --- odd values

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
ODD: dict[str, dict[str, Any]] = {
    "half a surrogate pair in a category": {"category": "\ud800"},
    "in a task": {"task": "\udfff"},
    "in a task type": {"task_type": "\ud800"},
    "in an id": {"id": "\ud800"},
    "in a group": {"group": "\ud800"},
    "in a tool": {"tools": [{"name": "\ud800"}]},
    "tools of a number": {"tools": [1]},
    "tools of a list": {"tools": [[{"name": "f"}]]},
    "tools of text": {"tools": "[1]"},
    "tools nested too deeply": {"tools": [json.loads('{"a":' * 200 + "1" + "}" * 200)]},
    "tools nested too deeply in text": {"tools": "[" * 100_000},
    "half a pair in a call": {
        "messages": [*TURNS[:1], {"role": "assistant", "tool_calls": [{"name": "\ud800"}]}]
    },
    "calls that are a number": {"messages": [*TURNS[:1], {"role": "assistant", "tool_calls": 5}]},
    "a call's name that is a list": {
        "messages": [*TURNS[:1], {"role": "assistant", "tool_calls": [{"name": [1]}]}]
    },
    "arguments without end": {
        "messages": [
            TURNS[0],
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[" * 100_000}]},
        ]
    },
    "half a pair in a thought": {"messages": [TURNS[0], {**TURNS[1], "reasoning_content": "\ud800"}]},
    "a thought that is a list": {"messages": [TURNS[0], {**TURNS[1], "reasoning_content": [1]}]},
    "a weight that is a list": {"messages": [TURNS[0], {**TURNS[1], "weight": [1]}]},
    "a role that is a list": {"messages": [{"role": [], "content": "a"}, TURNS[1]]},
    "messages that are text": {"messages": "hello"},
    "a language that is a number": {"language": 5},
    "a language without end": {"language": "x" * 1_000_000},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_an_odd_value_breaks_its_row_alone(tmp_path: Path, odd: dict[str, Any]) -> None:
    good = json.dumps({"messages": TURNS})
    found = load(tmp_path, f"{good}\n{json.dumps({'messages': TURNS} | odd)}\n{good}\n", "x.jsonl")
    assert (len(found.examples), places(found)) == (2, ["x.jsonl:2"])
    assert found.broken[0].problem.startswith("field ")
    assert len(found.broken[0].problem) < 600
    check(found)


def test_keys_that_nothing_reads_are_counted_as_records_can_hold_them(tmp_path: Path) -> None:
    turn = {**TURNS[1], **{f"k{n}": 1 for n in range(200)}, "\ud800": 1, "z" * 1_000_000: 1}
    found = load(tmp_path, json.dumps({"messages": [TURNS[0], turn]}), "x.jsonl")
    assert len(found.examples) == 1
    assert sum(found.unknown_keys.values()) == 202
    assert len(found.unknown_keys) == 101
    check(found)


@pytest.mark.parametrize(
    "trees",
    [
        [("a", "a"), ("a", "a"), ("b", "a")],
        [("a", "b"), ("b", "a"), ("c", "a"), ("d", "c")],
        [("a", None), ("a", "a"), ("b", "a")],
        [("a", None), ("b", "a"), ("b", "a"), ("a", None)],
        [(["a"], None), (None, None), ("b", {"a": 1})],
    ],
)
def test_trees_that_go_round_end(tmp_path: Path, trees: list[tuple[Any, Any]]) -> None:
    one = {"role": "prompter", "text": "t"}
    rows = [{"message_id": name, "parent_id": parent, **one} for name, parent in trees]
    whole = [
        {"message_id": "x", "parent_id": None, **one},
        {"message_id": "y", "parent_id": "x", "role": "assistant", "text": "u"},
    ]
    found = load(
        tmp_path, "".join(f"{json.dumps(each)}\n" for each in (*whole, *rows)), "x.jsonl", format="oasst"
    )
    assert found.examples[0].answer == "u"
    assert found.broken
    check(found)


def check(found: LoadedData) -> None:
    """What is kept of data can be written: as records are, and as Parquet tables are."""
    assert found.n_rows == len(found.examples) + len(found.broken) + sum(
        found.filtered.get(reason, 0) for reason in ("rejected_answer", "no_answer")
    )
    kept = [one.to_json() for one in found.broken], dict(found.unknown_keys)
    canonical_json(kept).encode("utf-8")
    for example in found.examples:
        assert isinstance(example, Example)
        told = [example.id, example.group, example.language, example.tools, example.task_type]
        told += [part for turn in example.messages for part in (turn.role, turn.content, turn.details)]
        pa.array(told, pa.string())
        json.loads(example.tools or "[]")
        json.dumps([turn.to_template() for turn in example.messages])
    assert len({one.id for one in found.examples}) == len(found.examples)


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Let a file be refused, by an error that begins with its name."""
    try:
        yield
    except DataError as error:
        if not str(error).startswith(name):
            raise


# --- whatever JSON can say, in every field of every format

FIELDS = sorted(
    {
        *("instruction", "input", "output", "response", "messages", "prompt", "completion", "conversations"),
        *(
            "conversation",
            "question",
            "system_prompt",
            "context",
            "inputs",
            "targets",
            "language_code",
            "language",
        ),
        *(
            "lang",
            "instances",
            "message_id",
            "parent_id",
            "message_tree_id",
            "role",
            "text",
            "rank",
            "deleted",
        ),
        *("tools", "system", "category", "task", "task_type", "id", "group", "label"),
    }
)
TURN_FIELDS = [
    "role",
    "content",
    "from",
    "value",
    "text",
    "tool_calls",
    "name",
    "weight",
    "train",
    "type",
    "\ud800",
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(st.characters(exclude_categories=()), max_size=8),
    st.sampled_from(
        ["user", "assistant", "\ud800", "\0", "es", "\x1b[2J", "", " ", "[1]", '{"a": 1}', "false"]
    ),
)
turns = st.dictionaries(st.sampled_from(TURN_FIELDS), scalars, max_size=5) | st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"]), "content": scalars}
)
values = st.recursive(
    scalars | st.lists(turns, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TURN_FIELDS), inner, max_size=3)
    ),
    max_leaves=8,
)
rows = st.dictionaries(st.sampled_from(FIELDS), values, max_size=9)


def shaped(format_name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Rows that have the fields of a format, with whatever in them, and others besides."""
    needed = [field for field in FIELDS if f"'{field}'" in FORMATS[format_name].needs]
    return st.fixed_dictionaries(dict.fromkeys(needed, values)).flatmap(
        lambda row: rows.map(lambda more: more | row)
    )


def as_lines(found: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, found)).encode()


def as_list(found: list[dict[str, Any]]) -> bytes:
    return json.dumps(found).encode()


WAYS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "x.jsonl": as_lines,
    "x.json": as_list,
    "x.json.gz": lambda found: gzip.compress(as_list(found), 1),
}


SOUND: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "a", "output": "b"},
    "messages": {"messages": TURNS},
    "prompt_completion": {"prompt": "a", "completion": "b"},
    "sharegpt": {"conversations": TURNS},
    "conversation": {"conversation": TURNS},
    "openorca": {"system_prompt": "s", "question": "a", "response": "b"},
    "dolly": {"instruction": "a", "context": "c", "response": "b"},
    "aya": {"inputs": "a", "targets": "b", "language": "es"},
    "flan": {"inputs": "a", "targets": "b"},
    "self_instruct": {"instruction": "a", "instances": [{"input": "", "output": "b"}]},
}
TREE = [
    {"message_id": "sound-1", "parent_id": None, "role": "prompter", "text": "a"},
    {"message_id": "sound-2", "parent_id": "sound-1", "role": "assistant", "text": "b"},
]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), format_name=st.sampled_from(sorted(FORMATS)), name=st.sampled_from(sorted(WAYS)))
def test_whatever_a_row_holds_it_is_used_or_counted_as_broken(
    tmp_path: Path, format_name: str, name: str, data: st.DataObject
) -> None:
    found = data.draw(st.lists(shaped(format_name), min_size=1, max_size=3))
    sound = TREE if format_name == "oasst" else [SOUND[format_name]]
    (tmp_path / name).write_bytes(WAYS[name]([*sound, *found]))
    spec = DataSource(
        source=name, max_broken_share=0.99, format=data.draw(st.sampled_from([format_name, None]))
    )
    loaded = load_data(spec, base_folder=tmp_path, answered=data.draw(st.booleans()))
    assert loaded.n_rows == 1 + len(found) or format_name == "oasst"  # whose rows are messages
    assert len(loaded.examples) >= 1
    check(loaded)


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    cells=st.lists(
        st.lists(st.text(st.sampled_from('ab",;\t\r\n\0|é\u2028'), max_size=6), min_size=2, max_size=4),
        max_size=6,
    ),
    quoted=st.booleans(),
)
def test_whatever_a_table_holds_its_rows_are_used_or_counted(
    tmp_path: Path, name: str, cells: list[list[str]], quoted: bool
) -> None:
    separator = "," if name == "x.csv" else "\t"
    with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
        file.write(f"prompt{separator}completion\n")
        if quoted:
            csv.writer(file, delimiter=separator).writerows(cells)
        else:
            file.writelines(f"{separator.join(one)}\n" for one in cells)
    with refusing(name):
        check(load_data(DataSource(source=name, max_broken_share=0.99), base_folder=tmp_path))


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.parquet", "x.jsonl.gz"])
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    content=st.binary(max_size=80)
    | st.text(st.sampled_from('[]{}",:\\ \n1eE-.tnu\ufeff'), max_size=40).map(str.encode)
)
def test_whatever_bytes_a_file_holds_it_is_read_or_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with refusing(name):
        found = list(open_rows(DataSource(source=name), base_folder=tmp_path))
        assert len({one.place for one in found}) == len({one.number for one in found}) == len(found)
