"""Forms in which public sets come besides the plain ones: lists of turns, parts of content, rows without an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import DataSource
from lingraft.data.example import Message
from lingraft.data.formats import detect_format, example_from_row
from lingraft.data.row_fields import AnswerError, RowError
from lingraft.data.sources import LoadedData, load_data
from lingraft.errors import DataError

ASKED, ANSWERED = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
READ = (Message("user", "Q"), Message("assistant", "A"))


def messages(row: dict[str, Any]) -> tuple[Message, ...]:
    return example_from_row(row, detect_format(row), id="1", source="s", language=None).messages


def loaded(path: Path, rows: list[dict[str, Any]], *, answered: bool = True, **options: Any) -> LoadedData:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_data(DataSource.model_validate({"source": str(path), **options}), answered=answered)


@pytest.mark.parametrize(
    ("prompt", "completion"), [([ASKED], [ANSWERED]), ("Q", [ANSWERED]), ([ASKED], "A"), ("Q", "A")]
)
def test_prompt_and_completion_may_be_turns_or_text(prompt: Any, completion: Any) -> None:
    assert messages({"prompt": prompt, "completion": completion}) == READ


def test_a_prompt_of_several_turns_goes_before_the_completion() -> None:
    system = {"role": "system", "content": "S"}
    found = messages({"prompt": [system, ASKED, ANSWERED, ASKED], "completion": [ANSWERED]})
    assert [turn.role for turn in found] == ["system", "user", "assistant", "user", "assistant"]
    learned = [turn.supervised for turn in found if turn.role == "assistant"]
    assert learned == [False, True]  # as in TRL, which learns the completion alone


def test_keys_that_nothing_reads_are_counted_in_prompts_and_completions_too(tmp_path: Path) -> None:
    rows = [{"prompt": [ASKED | {"mood": "glad"}], "completion": [ANSWERED | {"weight": None}]}]
    assert loaded(tmp_path / "x.jsonl", rows).unknown_keys == {"mood": 1}


@pytest.mark.parametrize(
    ("prompt", "completion", "field", "problem"),
    [
        ([ASKED], [], "completion", "has no assistant turn"),
        ([ASKED], [ASKED], "completion", "has no assistant turn"),
        ([ASKED, ANSWERED], [ASKED], "completion", "must end with an assistant turn"),
        ([ASKED], [{"role": "assistant", "content": " "}], "completion[0].content", "is empty"),
        ([ASKED], "", "completion", "is empty"),
        ([ASKED], None, "completion", "is null"),
        ([{"role": "system", "content": "S"}], [ANSWERED], "completion", "has no user turn"),
        ([{"role": "judge", "content": "S"}], [ANSWERED], "prompt[0].role", "is 'judge'"),
        (["Q"], [ANSWERED], "prompt[0]", "must be an object"),
    ],
)
def test_what_is_wrong_with_a_conversational_prompt_or_completion_is_named(
    prompt: Any, completion: Any, field: str, problem: str
) -> None:
    with pytest.raises(RowError) as raised:
        messages({"prompt": prompt, "completion": completion})
    assert (raised.value.field, problem in raised.value.problem) == (field, True)


def part(text: Any, kind: str = "text") -> dict[str, Any]:
    return {"type": kind, "text": text, "image_url": None}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([part("Q")], "Q"),
        ([part("Q"), part("R")], "Q\nR"),
        (["Q", part("R", "input_text")], "Q\nR"),
        ([{"text": "Q"}], "Q"),
    ],
)
def test_parts_of_text_are_joined_by_line_breaks(content: Any, said: str) -> None:
    for key, row in (("role", "messages"), ("from", "conversations")):
        name = "value" if key == "from" else "content"
        turns = [{key: "user", name: content}, {key: "assistant", name: content}]
        assert [turn.content for turn in messages({row: turns})] == [said, said]


def test_a_part_that_is_no_text_breaks_the_row_with_its_reason(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    rows = [{"messages": [{"role": "user", "content": [part("Q"), image]}, ANSWERED]}]
    rows += [{"messages": [ASKED, ANSWERED]}] * 3
    found = loaded(tmp_path / "x.jsonl", rows, max_broken_share=0.3)
    assert [row.problem for row in found.broken] == [
        "field 'messages[0].content[1]' is of type 'image_url'; only text can be trained on"
    ]
    with pytest.raises(AnswerError, match=r"messages\[1\].content' is empty"):
        messages({"messages": [ASKED, {"role": "assistant", "content": []}]})


def rows_with_broken(count: int, broken: int) -> list[dict[str, Any]]:
    return [{"instruction": f"Q{n}", "output": "" if n < broken else "A"} for n in range(count)]


def test_one_row_in_a_hundred_may_be_broken_by_default_and_is_counted(tmp_path: Path) -> None:
    found = loaded(tmp_path / "x.jsonl", rows_with_broken(100, 1))
    assert (len(found.examples), len(found.broken), found.without_answer) == (99, 1, 1)


@pytest.mark.parametrize(("broken", "share"), [(2, 0.02), (7, 0.07), (29, 0.29), (43, 0.43), (57, 0.57)])
def test_more_broken_rows_are_refused_with_the_line_that_allows_them(
    tmp_path: Path, broken: int, share: float
) -> None:
    rows = rows_with_broken(100, broken)
    with pytest.raises(DataError) as raised:
        loaded(tmp_path / "x.jsonl", rows)
    assert f"{broken} of 100 rows ({broken}.00%) are broken" in str(raised.value)
    assert f"write `max_broken_share: {share}` beside the source" in str(raised.value)
    assert len(loaded(tmp_path / "x.jsonl", rows, max_broken_share=share).examples) == 100 - broken


def test_where_every_row_is_broken_no_share_is_advised(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        loaded(tmp_path / "x.jsonl", rows_with_broken(3, 3))
    assert "Mend these rows:" in str(raised.value)


UNANSWERED = [
    {"instruction": "Q", "output": ""},
    {"instruction": "Q", "output": None},
    {"instruction": "Q"},
    {"instruction": "Q", "input": "", "response": " "},
    {"prompt": "Q", "completion": ""},
    {"prompt": [ASKED], "completion": []},
    {"prompt": "Q"},
    {"inputs": "Q", "targets": None},
    {"question": "Q"},
    {"messages": [ASKED]},
    {"messages": [ASKED, {"role": "assistant", "content": ""}]},
    {"conversations": [{"from": "human", "value": "Q"}]},
    {"instruction": "Q", "instances": [{"input": "", "output": ""}]},
    {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Q", "message_tree_id": "a"},
]


@pytest.mark.parametrize("row", UNANSWERED, ids=json.dumps)
def test_instructions_are_read_from_rows_without_an_answer(tmp_path: Path, row: dict[str, Any]) -> None:
    found = loaded(tmp_path / "x.jsonl", [row], answered=False)
    assert [one.instruction for one in found.examples] == ["Q"]
    assert not found.broken


def test_the_context_belongs_to_an_instruction_without_an_answer_too(tmp_path: Path) -> None:
    row = {"instruction": "Q", "context": "C"}
    asked, answered = (
        loaded(tmp_path / f"{len(one)}.jsonl", [one], answered=False)
        for one in (row, row | {"response": "A"})
    )
    assert asked.examples[0].instruction == answered.examples[0].instruction == "Q\n\nC"


PREFERENCE = {"chosen": "A", "rejected": "B", "prompt": "Q"}
CONVERSATIONS = {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, ANSWERED], "prompt": "Q"}


@pytest.mark.parametrize(
    ("row", "fields"), [(PREFERENCE, {"completion": "chosen"}), (CONVERSATIONS, {"messages": "chosen"})]
)
def test_preferences_are_refused_with_the_fields_that_read_the_chosen_answers(
    tmp_path: Path, row: dict[str, Any], fields: dict[str, str]
) -> None:
    with pytest.raises(DataError) as raised:
        loaded(tmp_path / "x.jsonl", [row])
    (name, path) = next(iter(fields.items()))
    assert f"fields: {{{name}: {path}}}" in str(raised.value)
    assert loaded(tmp_path / "x.jsonl", [row], fields=fields).examples[0].messages == READ


def test_a_row_with_its_answer_is_read_whole_where_none_is_needed(tmp_path: Path) -> None:
    found = loaded(tmp_path / "x.jsonl", [{"prompt": "Q", "completion": "A"}], answered=False)
    assert found.examples[0].messages == READ


def test_the_first_rows_of_each_file_can_be_read_alone(tmp_path: Path) -> None:
    for name in ("de", "es"):
        loaded(tmp_path / f"{name}.jsonl", rows_with_broken(5, 0))
    found = load_data(DataSource(source=str(tmp_path / "*.jsonl")), first=2)
    assert [one.language for one in found.examples] == ["de", "de", "es", "es"]
    assert len(load_data(DataSource(source="worldbook:lookup/de"), first=3).examples) == 3


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("es.jsonl", "es"),
        ("pt-BR.jsonl", "pt-BR"),
        ("Spanish.jsonl", "es"),
        ("spa.jsonl", "es"),
        ("x.jsonl", "und"),
        ("new.jsonl", "und"),
        ("qa.jsonl", "und"),
        ("en-train.jsonl", "und"),
        ("iw.jsonl", "he"),
        ("rows.jsonl", "und"),
    ],
)
def test_a_file_that_is_named_by_a_language_is_in_it_where_rows_do_not_say(
    tmp_path: Path, name: str, language: str
) -> None:
    rows = [{"instruction": "Q", "output": "A"}, {"instruction": "Q", "output": "B", "language": "fr"}]
    found = loaded(tmp_path / name, rows)
    assert [one.language for one in found.examples] == [language, "fr"]
    assert {one.language for one in loaded(tmp_path / name, rows, language="de").examples} == {"de"}


@pytest.mark.parametrize(
    ("written", "tag"),
    [("Standard Arabic", "ar"), ("iw", "he"), ("in", "id"), ("ji", "yi"), ("por", "pt"), ("PT_br", "pt-BR")],
)
def test_a_language_is_read_as_it_is_written_in_rows_options_and_names(
    tmp_path: Path, written: str, tag: str
) -> None:
    row = {"inputs": "Q", "targets": "A", "language": written}
    assert loaded(tmp_path / "x.jsonl", [row]).examples[0].language == tag
    assert (
        loaded(tmp_path / "x.jsonl", [row | {"language": "fr"}], language=written).examples[0].language == tag
    )
    (tmp_path / "by-language").mkdir()
    named = tmp_path / "by-language" / f"{written}.jsonl"
    assert loaded(named, [row | {"language": None}]).examples[0].language == tag
    found = load_data(DataSource(source=str(named.with_name("{language}.jsonl"))))
    assert [one.language for one in found.examples] == [tag]


def test_the_language_in_a_files_name_is_part_of_what_the_data_are(tmp_path: Path) -> None:
    rows = [{"instruction": "Q", "output": "A"}]
    hashes = {loaded(tmp_path / f"{name}.jsonl", rows).content_hash for name in ("es", "de", "rows")}
    assert len(hashes) == 3


def test_real_alpaca_is_read_by_default_and_whole_where_instructions_are_enough(shared_data: Path) -> None:
    source = DataSource(source=str(shared_data / "alpaca" / "en.jsonl"))
    found = load_data(source)
    assert (len(found.examples), len(found.broken), found.without_answer) == (2996, 4, 4)
    assert len(load_data(source, answered=False).examples) == 3000
