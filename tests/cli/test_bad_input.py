"""Bad input of every kind is answered by one line that names place and value, and by exit code 2."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lingraft.cli import main

Content = str | bytes | Callable[[Path, Path], None]
"""What a file holds, or a function that makes it, given its path and a good model's folder."""


@dataclass(frozen=True)
class Case:
    """One kind of bad input.

    Attributes:
        name: What is wrong, in words.
        files: Content by name, relative to the folder in which the command runs.
        command: What the user typed after `lingraft`; `model` is a good model's folder.
        says: Texts that the message must hold: the place and the value.
        lines: Lines of the message: one for each separate problem.
    """

    name: str
    command: str
    says: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)
    lines: int = 1


ROW = {"instruction": "Say a.", "output": "a"}
GOOD = json.dumps(ROW)
SHOW = "show data {} --model model --max-broken-share 0"


def file(name: str, source: str, content: Content, *says: str, options: str = "", lines: int = 1) -> Case:
    """A data file that is wrong as a whole."""
    return Case(name, f"{SHOW.format(source)} {options}", says, {source: content}, lines)


def rows(name: str, bad: str | bytes | Mapping[str, Any], *says: str) -> Case:
    """A json lines file whose second row is bad."""
    line = json.dumps(bad) if isinstance(bad, Mapping) else bad
    content = GOOD.encode() + b"\n" + (line.encode() if isinstance(line, str) else line) + b"\n"
    return Case(
        name,
        SHOW.format("rows.jsonl"),
        ("DataError: rows.jsonl:2: ", "1 of 2 rows", *says),
        {"rows.jsonl": content},
    )


def chat(name: str, messages: Any, *says: str) -> Case:
    """A json lines file whose second conversation is bad."""
    good = [{"role": "user", "content": "Say a."}, {"role": "assistant", "content": "a"}]
    content = "".join(json.dumps({"messages": turns}) + "\n" for turns in (good, messages))
    return Case(
        name, SHOW.format("chat.jsonl"), ("DataError: chat.jsonl:2: ", *says), {"chat.jsonl": content}
    )


USER = {"role": "user", "content": "Say a."}
ANSWER = {"role": "assistant", "content": "a"}

FILES = [
    Case(
        "no such data file", SHOW.format("absent.jsonl"), ("DataError: absent.jsonl: there is no such file",)
    ),
    file("empty file", "rows.jsonl", "", "DataError: rows.jsonl: there are no rows in it"),
    file("empty JSON list", "rows.json", "[ ]\n", "DataError: rows.json: there are no rows in it"),
    file("wrong suffix", "./rows.xml", GOOD, "rows.xml: a data file's name must end in", "'.xml'"),
    file("UTF-16 file", "rows.jsonl", GOOD.encode("utf-16"), "rows.jsonl:1: ", "UTF-16", "UTF-8"),
    file(
        "Latin-1 list", "rows.json", '[\n{"instruction": "é"}]'.encode("latin-1"), "rows.json:2: ", "byte 20"
    ),
    file("truncated JSON list", "rows.json", f"[{GOOD},\n{GOOD[:-4]}", "rows.json:2: ", "not valid JSON"),
    file("JSON list without its end", "rows.json", f"[\n{GOOD}\n", "rows.json:2: ", "',' or ']' is missing"),
    file("one JSON object that is no row", "rows.json", '{\n "data": []\n}', "rows.json", "{"),
    file(
        "broken parquet",
        "rows.parquet",
        b"PAR1 no table PAR1",
        "rows.parquet: the parquet file cannot be read",
    ),
    file(
        "too many broken rows",
        "rows.jsonl",
        f"{GOOD}\n{{}}\n[]\n",
        "rows.jsonl: 2 of 3 rows (66.67%) are broken",
        "max_broken_share allows (0.00%)",
        "\n  rows.jsonl:2: field 'instruction' is missing",
        "\n  rows.jsonl:3: the row must be an object",
        lines=3,
    ),
    file(
        "rows of two formats at once",
        "rows.jsonl",
        json.dumps(ROW | {"prompt": "a", "completion": "b"}),
        "rows.jsonl:1: ",
        "alpaca and prompt_completion",
        "'prompt'",
    ),
    file("rows without a known format", "rows.jsonl", '{"text": "a"}', "rows.jsonl:1: ", "'text'"),
    file(
        "an unknown format", "rows.jsonl", GOOD, "--format", "'alpacca'", "alpaca", options="--format alpacca"
    ),
    file(
        "the format of other rows",
        "rows.jsonl",
        GOOD,
        "rows.jsonl:1: field 'messages' is missing",
        options="--format messages",
    ),
]

ROWS = [
    rows(
        "broken JSON line",
        '{"instruction": "a", "output"',
        "not JSON: Expecting ':' delimiter at character 30",
    ),
    rows("not UTF-8 in a row", b'{"instruction": "\xff", "output": "b"}', "not UTF-8 at byte 18 of the line"),
    rows("byte order mark in the middle", "\ufeff" + GOOD, "byte order mark"),
    rows("NaN as a row", "NaN", "must be an object, not float (nan)"),
    rows("a list as a row", '["a", "b"]', "must be an object, not list (['a', 'b'])"),
    rows("a number as a row", "17", "must be an object, not int (17)"),
    rows("text as a row", '"abc"', "must be an object, not str ('abc')"),
    rows("too deep JSON", "[" * 100_000, "not usable JSON: "),
    rows("a number of 5000 digits", '{"n": ' + "9" * 5000 + "}", "not usable JSON: ", "4300"),
    rows("missing field", {"instruction": "a"}, "field 'output' is missing"),
    rows("null field", ROW | {"output": None}, "field 'output' is null"),
    rows("empty field", ROW | {"instruction": " \n"}, "field 'instruction' is empty"),
    rows("number field", ROW | {"output": 4}, "field 'output' must be text, not int (4)"),
    rows("list field", ROW | {"input": ["b"]}, "field 'input' must be text, not a list (['b'])"),
    rows("NaN field", '{"instruction": "a", "output": NaN}', "field 'output' must be text, not float (nan)"),
    rows(
        "half a surrogate pair",
        '{"instruction": "a", "output": "x\\ud800"}',
        "field 'output' holds half a surrogate pair at character 1",
    ),
    rows(
        "a bad language tag in a row",
        ROW | {"language": "Spanish (Latin)"},
        "field 'language' is 'Spanish (Latin)'",
        "BCP-47",
    ),
    rows(
        "an id that is a list",
        ROW | {"id": [1]},
        "field 'id' must be text or a whole number, not a list ([1])",
    ),
    rows("an empty group", ROW | {"group": ""}, "field 'group' is empty"),
    rows("the id of another row", ROW | {"id": "1"}, "field 'id' is '1', as in rows.jsonl:1"),
    rows("a key twice in a row", '{"instruction": "a", "output": "b", "output": "c"}', "'output'", "twice"),
    chat("messages that are text", "Hello", "field 'messages' must be a list", "'Hello'"),
    chat("a turn that is text", ["Hello"], "field 'messages[0]' must be an object", "'Hello'"),
    chat("a turn without role", [USER, {"content": "a"}], "field 'messages[1].role' is missing"),
    chat("a turn without content", [{"role": "user"}, ANSWER], "field 'messages[0].content' is missing"),
    chat("an unknown role", [USER, {"role": "gpt", "content": "a"}], "field 'messages[1].role' is 'gpt'"),
    chat("no user turn", [ANSWER], "field 'messages' has no user turn"),
    chat("no answer", [USER], "field 'messages' has no assistant turn"),
    chat("a user turn at the end", [USER, ANSWER, USER], "must end with an assistant turn, not with 'user'"),
]

CASES = [*FILES, *ROWS]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input_is_answered_by_one_line_with_place_and_value(
    case: Case,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model)
    for name, content in case.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path, tiny_model)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    code = main._run(shlex.split(case.command))
    printed = capfd.readouterr()
    assert code == 2, printed.err
    assert printed.out == ""
    message = _message(printed.err)
    for text in case.says:
        assert text in message
    assert len(message.splitlines()) == case.lines, message
    assert "Traceback" not in printed.err


def _message(errors: str) -> str:
    """Return the message; progress, which `run` tells before it, is cut off."""
    found = re.search(r"^[A-Z][A-Za-z]*Error: ", errors, re.MULTILINE)
    assert found, errors
    return errors[found.start() :].rstrip("\n")


def test_the_table_has_no_kind_twice() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40
