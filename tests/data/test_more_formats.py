"""Every format on a row of our own, and on the real rows of public sets where they lie beside the project."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, get_args

import pytest

from lingraft.config.schema import DataSource, RowFormat
from lingraft.data.chat import encode_examples, show_supervision
from lingraft.data.example import Message
from lingraft.data.formats import FORMATS, detect_format, example_from_row
from lingraft.data.row_fields import language_tag
from lingraft.data.sources import load_data
from lingraft.errors import DataError

ROWS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "Q", "input": "C", "output": "A"},
    "messages": {"messages": [{"role": "user", "content": "Q\n\nC"}, {"role": "assistant", "content": "A"}]},
    "prompt_completion": {"prompt": "Q\n\nC", "completion": "A"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q\n\nC"}, {"from": "gpt", "value": "A"}]},
    "conversation": {
        "conversation": [
            {"role": "UTILISATEUR", "content": "Q\n\nC"},
            {"role": "ASSISTANT", "content": "A"},
        ]
    },
    "openorca": {"system_prompt": "", "question": "Q\n\nC", "response": "A"},
    "dolly": {"instruction": "Q", "context": "C", "response": "A", "category": "closed_qa"},
    "aya": {"inputs": "Q\n\nC", "targets": "A", "language": "Standard Arabic", "language_code": "arb"},
    "flan": {"inputs": "Q\n\nC", "targets": "A", "task": "x"},
    "self_instruct": {"instruction": "Q", "instances": [{"input": "C", "output": "A"}]},
}
# Folder and file of the real data, its format, and its rows.
REAL = [
    ("alpaca/en", "alpaca", 3000),
    ("alpaca_12345_mixed/zh_en_mixed", "alpaca", 1000),
    ("alpaca_eval/en_text_davinci_003", "alpaca", 805),
    ("dolly_alpagasus/en", "alpaca", 2996),
    ("gpteacher_roleplay/en", "alpaca", 1000),
    ("gsm8k_instruct/en", "alpaca", 3000),
    ("multialpaca/es", "alpaca", 3000),
    ("multialpaca/ja", "alpaca", 3000),
    ("oasst1/fr", "conversation", 1183),
    ("rasbt_instruct/en", "alpaca", 1100),
    ("seed_tasks_175/en", "self_instruct", 175),
    ("seed_tasks_175/fr", "self_instruct", 175),
    ("t0_p3/en", "prompt_completion", 2818),
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def example(row: dict[str, Any], name: str | None = None) -> Any:
    return example_from_row(row, name or detect_format(row), id="1", source="s", language=None)


def test_every_format_is_tested_described_and_known_to_the_study_file() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert set(ROWS) | {"oasst"} == set(FORMATS) == set(get_args(RowFormat))
    assert [name for name in FORMATS if f"\n| `{name}` | " not in page] == []


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_each_format_is_detected_and_says_the_same(name: str) -> None:
    assert detect_format(ROWS[name]) == name
    assert example(ROWS[name]).messages == (Message("user", "Q\n\nC"), Message("assistant", "A"))


@pytest.mark.parametrize(
    ("fields", "task_type"),
    [
        ({}, ""),
        ({"category": "qa"}, "qa"),
        ({"task": "sum", "category": None}, "sum"),
        ({"task": 7}, ""),
        ({"task_type": "own", "category": "qa"}, "own"),
    ],
)
def test_a_row_may_say_its_task_type(fields: dict[str, Any], task_type: str) -> None:
    assert example({"prompt": "Q", "completion": "A", **fields}).task_type == task_type


def test_a_task_type_that_is_no_text_is_refused() -> None:
    with pytest.raises(match="task_type"):
        example({"prompt": "Q", "completion": "A", "task_type": 7})


@pytest.mark.parametrize(("file", "name", "rows"), REAL, ids=[file for file, _, _ in REAL])
def test_real_rows_are_read_without_loss(shared_data: Path, file: str, name: str, rows: int) -> None:
    path = shared_data / f"{file}.jsonl"
    loaded = load_data(DataSource(source=str(path), max_broken_share=0.01))
    assert (loaded.format, loaded.n_rows) == (name, rows)
    first = json.loads(path.read_text(encoding="utf-8").split("\n", 1)[0])
    said = json.dumps([turn.content for turn in loaded.examples[0].messages], ensure_ascii=False)
    for field in ("instruction", "prompt", "output", "completion", "response"):
        if isinstance(first.get(field), str):
            assert json.dumps(first[field], ensure_ascii=False)[1:-1] in said


def test_an_openorca_system_prompt_is_a_system_turn() -> None:
    assert example({**ROWS["openorca"], "system_prompt": "S"}).messages[0] == Message("system", "S")


def test_a_sharegpt_row_may_bring_its_system_prompt_beside_the_turns() -> None:
    assert example({**ROWS["sharegpt"], "system": "S"}).messages[0] == Message("system", "S")


@pytest.mark.parametrize(
    ("written", "tag"),
    [("es", "es"), ("spa", "es"), ("Spanish", "es"), ("pt_BR", "pt-BR"), ("arb", "ar"), ("THAI", "th")],
)
def test_a_language_is_known_by_tag_code_or_name(written: str, tag: str) -> None:
    assert language_tag(written) == tag
    assert example({**ROWS["flan"], "lang": written}).language == tag


def test_an_aya_row_is_known_by_its_code() -> None:
    assert example(ROWS["aya"]).language == "ar"


def test_self_instruct_rows_with_several_instances_are_refused_rather_than_cut() -> None:
    with pytest.raises(match="holds 2 instances"):
        example({"instruction": "Q", "instances": [{"input": "", "output": "A"}] * 2})


CALL = {
    "tools": [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}],
    "messages": [
        {"role": "user", "content": "What time is it?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}],
        },
        {"role": "tool", "content": "12:00", "name": "now"},
        {"role": "assistant", "content": "Noon."},
    ],
}
TEMPLATE = (
    "{% if tools %}[tools {{ tools | tojson }}]{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}[call {{ c.function.name }} {{ c.function.arguments.zone }}]"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_tool_calls_are_learned_and_their_results_are_not(tiny_model: Path) -> None:
    from lingraft.models.loading import load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = TEMPLATE
    plain = example(ROWS["messages"])
    encoded = encode_examples([plain, example(CALL), plain], tokenizer, 512)
    assert not encoded.dropped
    shown = show_supervision(encoded.examples[1], tokenizer)
    assert shown.startswith('[tools [{"function"')
    assert "⟦[call now UTC]<|im_end|>⟧" in shown
    assert "tool\n12:00<|im_end|>" in shown
    assert "⟦Noon.<|im_end|>⟧" in shown
    assert "[tools" not in show_supervision(encoded.examples[2], tokenizer)


def test_a_template_without_tools_refuses_them_instead_of_losing_them(tiny_model: Path) -> None:
    from lingraft.models.loading import load_tokenizer

    encoded = encode_examples([example(ROWS["messages"]), example(CALL)], load_tokenizer(tiny_model), 512)
    assert [row.problem for row in encoded.dropped] == [
        "the chat template has no place for tools, which would be lost"
    ]


def test_arguments_that_are_no_json_are_named() -> None:
    broken = json.loads(json.dumps(CALL))
    broken["messages"][1]["tool_calls"][0]["function"]["arguments"] = "{zone"
    with pytest.raises(match=r"messages\[1\].tool_calls.function.arguments' is not JSON"):
        example(broken)


def message(name: str, parent: str | None, role: str, text: str, rank: int | None = None) -> dict[str, Any]:
    return {
        "message_id": name,
        "parent_id": parent,
        "message_tree_id": "t" + name[0],
        "role": role,
        "text": text,
        "lang": "es",
        "rank": rank,
    }


TREES = [
    message("a", None, "prompter", "Hola"),
    message("a1", "a", "assistant", "peor", 1),
    message("a2", "a", "assistant", "mejor", 0),
    message("a3", "a2", "prompter", "¿Y?"),
    message("a4", "a3", "assistant", "Sí"),
    message("a5", "a4", "prompter", "gracias"),
    message("b", None, "prompter", "sin respuesta"),
    message("c", None, "prompter", "Adiós"),
    message("c1", "c", "assistant", "Hasta luego"),
]


def test_the_best_path_of_a_tree_is_a_conversation(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "trees.jsonl", TREES)
    loaded = load_data(DataSource(source=str(path), max_broken_share=0.4))
    assert loaded.format == "oasst"
    assert [turn.content for turn in loaded.examples[0].messages] == ["Hola", "mejor", "¿Y?", "Sí"]
    assert (loaded.examples[0].id, loaded.examples[0].language) == ("a", "es")
    assert [turn.content for turn in loaded.examples[1].messages] == ["Adiós", "Hasta luego"]
    assert [(row.place.rpartition(":")[2], row.problem) for row in loaded.broken] == [
        ("7", "field 'messages' has no assistant turn")
    ]


def test_a_tree_that_is_torn_apart_is_told(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "trees.jsonl", [*TREES[:2], *TREES[7:], TREES[2]])
    with pytest.raises(DataError, match=r"trees.jsonl:5: tree 'ta' goes on here: sort the file"):
        load_data(DataSource(source=str(path)))


def test_fields_with_other_names_are_mapped(tmp_path: Path) -> None:
    rows = [{"q": "Q", "answers": [{"text": "A"}], "meta": {"lang": "French"}, "a.b": "C", "key": 7}]
    path = write_lines(tmp_path / "qa.jsonl", rows)
    fields = {
        "instruction": "q",
        "output": "answers.0.text",
        "input": "a.b",
        "language": "meta.lang",
        "id": "key",
    }
    loaded = load_data(DataSource.model_validate({"source": str(path), "fields": fields}))
    (only,) = loaded.examples
    assert (loaded.format, only.id, only.language) == ("alpaca", "7", "fr")
    assert only.messages == (Message("user", "Q\n\nC"), Message("assistant", "A"))


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("questoin", "the row has no 'questoin'. Did you mean 'question'"),
        ("answers.1", "'answers' of the row is a list of 1, which has no '1'"),
        ("question.x", "'question' of the row is no object with fields"),
    ],
)
def test_a_mapped_field_that_is_not_there_is_named(tmp_path: Path, path: str, problem: str) -> None:
    file = write_lines(tmp_path / "qa.jsonl", [{"question": "Q", "answers": ["A"]}])
    fields = {"instruction": path, "output": "answers.0"}
    with pytest.raises(DataError) as raised:
        load_data(DataSource.model_validate({"source": str(file), "fields": fields}))
    assert problem in str(raised.value)
    assert "qa.jsonl:1" in str(raised.value)


def test_csv_fields_may_hold_quotes_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes('\ufeffinstruction,output\r\n"Say ""hi"",\nplease",Hola\r\nB,C\r\n'.encode())
    loaded = load_data(DataSource(source=str(path)))
    assert [e.messages[0].content for e in loaded.examples] == ['Say "hi",\nplease', "B"]
    assert [e.id for e in loaded.examples] == ["2", "4"]


def test_tsv_and_gzip_hold_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("instruction\toutput\nQ\tA\n")
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as file:
        file.write('{"instruction": "Q", "output": "A"}\n')
    tsv, lines = (load_data(DataSource(source=str(tmp_path / name))) for name in ("x.tsv", "x.jsonl.gz"))
    assert tsv.examples[0].messages == lines.examples[0].messages


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.csv", b"a,a\n1,2\n", "x.csv:1: 2 columns are named 'a'"),
        ("x.csv", b"a,\n1,2\n", "x.csv:1: a column has no name"),
        ("x.csv", b"", "x.csv:1: the file is empty"),
        ("x.csv", b"instruction,output\nQ\n", "x.csv:2: the row has 1 columns, the header names 2"),
        ("x.csv", b'instruction,output\n"Q,A\n', "x.csv:2: not valid CSV"),
        ("x.csv", b"instruction,output\nQ,\xff\n", "the file is not UTF-8"),
        ("x.csv", b"instruction,output\nQ,\xff\n", "iconv -f WINDOWS-1252 -t UTF-8"),
        ("x.json", b'[{"prompt": "a", "completion": "\xff"}]', "iconv -f WINDOWS-1252 -t UTF-8"),
        ("x.jsonl", "{}".encode("utf-16"), "x.jsonl:1: the file is UTF-16"),
        ("x.csv", "a,b\nc,d\n".encode("utf-16-le"), "x.csv:1: the file is UTF-16"),
        ("x.jsonl.gz", gzip.compress("{}".encode("utf-16"), mtime=0), "x.jsonl.gz:1: the file is UTF-16"),
        ("x.jsonl.gz", b"nothing", "x.jsonl.gz: the gzip file is broken"),
        ("x.json.gz", b"nothing", "x.json.gz: the gzip file is broken"),
        ("x.json.gz", gzip.compress(b'[{"prompt": "a"}]', mtime=0)[:-9], "is broken or cut off"),
        (
            "x.jsonl.gz",
            gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 99, mtime=0)[:-9],
            "is broken or cut off",
        ),
        ("x.txt", b"", "must end in .json, .jsonl, .csv, .tsv, .parquet"),
    ],
)
def test_a_broken_file_says_where(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        load_data(DataSource(source=str(tmp_path / name)))
    assert problem in str(raised.value)


def test_a_folder_a_pattern_and_alternatives_read_several_files(tmp_path: Path) -> None:
    row = {"instruction": "Q", "output": "A"}
    for name in ("d/b.jsonl", "d/a.jsonl", "d/deep/c.jsonl", "d/.hidden/x.jsonl", "d/notes.txt"):
        write_lines(tmp_path / name, [row])

    def places(source: str) -> list[str]:
        loaded = load_data(DataSource(source=source), base_folder=tmp_path)
        return [one.id.removeprefix(f"{tmp_path}/") for one in loaded.examples]

    assert places("d/") == ["d/a.jsonl:1", "d/b.jsonl:1", "d/deep/c.jsonl:1"]
    assert places("d/*.jsonl") == ["d/a.jsonl:1", "d/b.jsonl:1"]
    assert places("d/{b,a}.jsonl") == ["d/b.jsonl:1", "d/a.jsonl:1"]
    with pytest.raises(DataError, match="no file matches"):
        places("d/*.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data file"):
        places("empty/")


def test_a_file_for_each_language_gives_its_rows_their_language(tmp_path: Path) -> None:
    for name in ("es", "pt-BR", "Thai"):
        write_lines(tmp_path / f"{name}.jsonl", [{"instruction": "Q", "output": name, "language": "fr"}])
    loaded = load_data(DataSource(source=str(tmp_path / "{language}.jsonl")))
    assert {one.messages[1].content: one.language for one in loaded.examples} == {
        "es": "es",
        "pt-BR": "pt-BR",
        "Thai": "th",
    }
    write_lines(tmp_path / "nolanguage1.jsonl", [{"instruction": "Q", "output": "A"}])
    with pytest.raises(DataError, match="which is no language"):
        load_data(DataSource(source=str(tmp_path / "{language}.jsonl")))
