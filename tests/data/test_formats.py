"""Rows become examples, and broken ones say which field is wrong and how."""

from __future__ import annotations

from typing import Any

import pytest

from lingraft.data.example import Message
from lingraft.data.formats import detect_format, example_from_row
from lingraft.data.row_fields import RowError
from lingraft.errors import DataError


def read(row: dict[str, Any], format_name: str = "alpaca", language: str | None = None) -> Any:
    return example_from_row(row, format_name, id="7", source="file.jsonl", language=language)


@pytest.mark.parametrize(
    ("row", "format_name"),
    [
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca"),
        ({"instruction": "a", "response": "b"}, "alpaca"),
        ({"messages": [], "prompt": "a"}, "messages"),
        ({"prompt": "a", "completion": "b", "_template": "x"}, "prompt_completion"),
    ],
)
def test_the_names_of_the_fields_tell_the_format(row: dict[str, Any], format_name: str) -> None:
    assert detect_format(row) == format_name


def test_an_unknown_format_names_the_fields_and_what_is_needed() -> None:
    with pytest.raises(
        DataError, match=r"fields: 'question', 'answer'.*alpaca needs 'instruction' and 'output'"
    ):
        detect_format({"question": "a", "answer": "b"})


def test_two_fitting_formats_are_not_guessed_between() -> None:
    with pytest.raises(DataError, match=r"alpaca and prompt_completion .* format: alpaca"):
        detect_format({"instruction": "a", "output": "b", "prompt": "a", "completion": "b"})


def test_alpaca_joins_instruction_and_input_by_a_blank_line() -> None:
    example = read({"instruction": "Translate.", "input": "house", "output": "casa"}, language="es")
    assert example.messages == (Message("user", "Translate.\n\nhouse"), Message("assistant", "casa"))
    assert (example.id, example.language, example.source) == ("7", "es", "file.jsonl")


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_alpaca_without_input_is_the_instruction_alone(empty: str | None) -> None:
    assert read({"instruction": "Hi.", "input": empty, "output": "Ho."}).instruction == "Hi."


def test_fields_id_language_and_group_are_honoured() -> None:
    row = {"prompt": "a", "completion": "b", "id": 12, "language": "pt-BR", "group": "q1"}
    example = read(row, "prompt_completion")
    assert (example.id, example.language, example.group) == ("12", "pt-BR", "q1")
    assert read(row, "prompt_completion", language="es").language == "es"
    assert read(row | {"language": None}, "prompt_completion").language == "und"


def test_copies_of_a_row_share_a_group_and_others_do_not() -> None:
    first, copy, other = (read({"instruction": text, "output": "b"}).group for text in ("a", "a", "c"))
    assert first == copy != other


def test_messages_keep_their_turns_and_an_empty_system_turn() -> None:
    turns = [("system", ""), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    example = read({"messages": [{"role": role, "content": content} for role, content in turns]}, "messages")
    assert [(message.role, message.content) for message in example.messages] == turns
    assert (example.instruction, example.answer) == ("a\nc", "d")


@pytest.mark.parametrize(
    ("row", "field", "problem"),
    [
        ({"instruction": "a"}, "output", "is missing"),
        ({"instruction": "a", "output": None}, "output", "is null"),
        ({"instruction": "a", "output": " \n"}, "output", "is empty"),
        ({"instruction": "", "output": "b"}, "instruction", "is empty"),
        ({"instruction": "a", "output": True}, "output", "must be text, not true or false (True)"),
        ({"instruction": "a", "output": float("nan")}, "output", "is NaN"),
        ({"instruction": "a", "output": float("inf")}, "output", "must be text, not float (inf)"),
        ({"instruction": "a", "output": ["b"]}, "output", "must be text, not a list (['b'])"),
        ({"instruction": "a", "input": {}, "output": "b"}, "input", "must be text, not an object ({})"),
        ({"instruction": "a", "output": "b\ud800"}, "output", "holds half a surrogate pair at character 1"),
        ({"instruction": "a", "output": "b", "id": True}, "id", "must be text or a number"),
        ({"instruction": "a", "output": "b", "group": [1]}, "group", "must be text or a number"),
        (
            {"instruction": "a", "output": "b", "language": "Klingonese"},
            "language",
            "'Klingonese', neither a BCP-47 tag",
        ),
    ],
)
def test_a_broken_alpaca_row_names_field_and_problem(row: dict[str, Any], field: str, problem: str) -> None:
    with pytest.raises(RowError) as raised:
        read(row)
    assert raised.value.field == field
    assert problem in raised.value.problem
    assert str(raised.value).startswith(f"field {field!r} ")


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("turns", "field", "problem"),
    [
        ("text", "messages", "must be a list"),
        ([], "messages", "has no user turn"),
        ([ASSISTANT], "messages", "has no user turn"),
        ([USER], "messages", "has no assistant turn"),
        ([USER, ASSISTANT, USER], "messages", "must end with an assistant turn, not with 'user'"),
        ([USER, "b"], "messages[1]", "must be an object with {'role', 'content'}"),
        ([USER, {"role": "judge", "content": "b"}], "messages[1].role", "is 'judge'; known are system"),
        ([USER, {"role": "assistant"}], "messages[1].content", "is missing"),
        ([USER, {"role": "assistant", "content": ""}], "messages[1].content", "is empty"),
        ([USER, {"content": "b"}], "messages[1].role", "is missing"),
    ],
)
def test_a_broken_conversation_names_the_turn(turns: Any, field: str, problem: str) -> None:
    with pytest.raises(RowError) as raised:
        read({"messages": turns}, "messages")
    assert raised.value.field == field
    assert problem in raised.value.problem
