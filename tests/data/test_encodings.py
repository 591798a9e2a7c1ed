"""A mix of rows is encoded once for a tokenizer and a length, and shared after that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lingraft.data.chat import encode_examples
from lingraft.data.encodings import discard_encodings, encode_once
from lingraft.data.example import Example, Message, Origin
from lingraft.errors import DataError

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def example(name: str, answer: str = "Monday") -> Example:
    turns = (Message("user", "Which day is it?"), Message("assistant", answer))
    return Example(name, turns, "en", name, "rows.jsonl")


@pytest.fixture(scope="module")
def tokenizer(build_tokenizer: Callable[..., Any]) -> Any:
    return build_tokenizer(TEMPLATE, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")


ROWS = [
    example("a"),
    example("b", "Tuesday <|im_end|> " * 30),
    replace(example("c"), messages=(Message("user", "long " * 90), Message("assistant", "yes"))),
]


def test_the_second_call_finds_what_the_first_one_made(tokenizer: Any, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        calls.append((done, total))

    first = encode_once(ROWS, tokenizer, 60, tmp_path, on_progress=note)
    expected, seen = encode_examples(ROWS, tokenizer, 60), len(calls)
    assert seen
    second = encode_once(tuple(ROWS), tokenizer, 60, tmp_path, on_progress=note)
    assert len(calls) == seen
    assert second.examples.folder == first.examples.folder
    for one in (first, second):
        assert list(one.examples) == list(expected.examples)
        assert (one.truncated, list(one.dropped), one.handled) == (
            1,
            list(expected.dropped),
            expected.handled,
        )
    assert (len(first.dropped), first.handled) == (1, {"spelled_tokens": 1})
    assert [path.name for path in (tmp_path / "encoded").iterdir()] == [first.examples.folder.name]  # type: ignore[union-attr]
    discard_encodings(tmp_path)
    assert not list(tmp_path.rglob("*encoded*"))
    assert list(second.examples) == list(expected.examples)  # what is open stays readable


def test_whatever_encoding_reads_makes_another_one(
    tokenizer: Any, build_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    row = example("a")
    silent = (row.messages[0], replace(row.messages[1], supervised=False))
    other = build_tokenizer(TEMPLATE + " ", ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
    folders = {
        encode_once([one, example("z")], which, length, tmp_path).examples.folder
        for one, which, length in (
            (row, tokenizer, 60),
            (row, tokenizer, 61),
            (row, other, 60),
            (example("a", "Tuesday"), tokenizer, 60),
            (replace(row, messages=silent), tokenizer, 60),
            (replace(row, language="de"), tokenizer, 60),
            (replace(row, origin=Origin("english_replay")), tokenizer, 60),
        )
    }
    assert len(folders) == 7


def test_what_is_refused_leaves_nothing(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no example is left"):
        encode_once(ROWS, tokenizer, 2, tmp_path)
    assert list((tmp_path / "encoded").iterdir()) == []


@pytest.mark.parametrize("name", ["index.json", "rows.arrow", "dropped.jsonl", "handled.json"])
def test_a_damaged_encoding_is_made_again(tokenizer: Any, tmp_path: Path, name: str) -> None:
    first = encode_once(ROWS, tokenizer, 60, tmp_path)
    folder, expected = first.examples.folder, (list(first.dropped), first.handled, list(first.examples))
    assert folder is not None
    whole = (folder / name).read_bytes()
    for damage in (
        Path.unlink,
        lambda path: path.write_bytes(whole[: len(whole) // 2]),
        lambda path: path.write_bytes(b""),
    ):
        damage(folder / name)
        again = encode_once(ROWS, tokenizer, 60, tmp_path)
        assert (list(again.dropped), again.handled, list(again.examples)) == expected
        assert (folder / name).read_bytes() == whole
