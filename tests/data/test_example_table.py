"""Examples on disk behave like examples in memory, and ids are told apart by the ids, not by their hashes."""

from __future__ import annotations

import json
import random
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingraft.config.schema import DataSource
from lingraft.data import example_table, spool
from lingraft.data.example import Example, Message, Origin
from lingraft.data.example_table import (
    ExampleCollector,
    ExampleView,
    JoinedExamples,
    columns_of,
    joined,
    select,
)
from lingraft.data.sources import BrokenRow, load_data, split_data
from lingraft.data.spool import Spool, SpooledRows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


ROLES = st.sampled_from(["system", "user", "assistant"])


@st.composite
def some_examples(draw: st.DrawFn) -> Example:
    messages = draw(st.lists(st.builds(Message, ROLES, TEXT, TEXT, st.booleans()), min_size=1))
    origin = draw(
        st.sampled_from(
            [Origin(), Origin("english_replay"), Origin("generative_replay", "m", {"top_p": 0.5})]
        )
    )
    language = draw(st.sampled_from(["en", "th"]))
    texts = [draw(TEXT) for _ in range(4)]
    return Example(
        texts[0], tuple(messages), language, texts[1], "set", origin, texts[2], texts[3], draw(st.booleans())
    )


def on_disk(examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> ExampleCollector:
    monkeypatch.setattr(spool, "BYTES_IN_MEMORY", -1)
    collector = ExampleCollector()
    for number, example in enumerate(examples):
        collector.add(example, f"file:{number}")
    return collector


@settings(deadline=None)
@given(st.lists(some_examples(), min_size=1, max_size=8, unique_by=lambda example: example.id))
def test_an_example_comes_back_from_disk_as_it_was(examples: list[Example]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found, duplicates = on_disk(examples, patch).finish()
    assert duplicates == []
    assert isinstance(found, SpooledRows)
    assert (list(found), [found[row] for row in range(len(found))]) == (examples, examples)
    assert found[-1] == examples[-1]
    own, other = columns_of(found), columns_of(examples)
    assert (own.languages, own.groups) == (other.languages, other.groups)
    assert (own.language == other.language).all()
    assert (own.group == other.group).all()


def test_every_field_of_an_example_is_written() -> None:
    assert {field.name for field in fields(Example)} == {
        *("id", "messages", "language", "group", "source", "origin", "tools", "task_type", "fold_system")
    }
    assert {field.name for field in fields(Message)} == {"role", "content", "details", "supervised"}
    assert {field.name for field in fields(Origin)} == {"kind", "model", "settings"}


def rows_with_ids(ids: list[str], folder: Path) -> DataSource:
    lines = [json.dumps({"instruction": "a", "output": f"b{n}", "id": one}) for n, one in enumerate(ids)]
    lines.insert(2, "no json")
    (folder / "x.jsonl").write_text("\n".join(lines))
    return DataSource(source="x.jsonl", max_broken_share=0.9)


@pytest.mark.parametrize("bytes_in_memory", [-1, 1 << 20], ids=["on disk", "in memory"])
@pytest.mark.parametrize("bits", [1, 64], ids=["colliding hashes", "good hashes"])
def test_repeated_ids_are_named_with_their_places_whatever_their_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_in_memory: int, bits: int
) -> None:
    monkeypatch.setattr(spool, "BYTES_IN_MEMORY", bytes_in_memory)
    if bits == 1:
        monkeypatch.setattr(example_table, "hash", lambda text: len(text) % 2, raising=False)
    spec = rows_with_ids(["q", "r", "s", "q", "t", "r", "q"], tmp_path)
    loaded = load_data(spec, base_folder=tmp_path)
    assert [example.id for example in loaded.examples] == ["q", "r", "s", "t"]
    assert [example.answer for example in loaded.examples] == ["b0", "b1", "b2", "b4"]
    assert loaded.n_rows == 8
    assert [(row.place, row.problem.partition(";")[0]) for row in loaded.broken] == [
        ("x.jsonl:3", "not JSON: Expecting value at character 1"),
        ("x.jsonl:5", "field 'id' is 'q', as in x.jsonl:1"),
        ("x.jsonl:7", "field 'id' is 'r', as in x.jsonl:2"),
        ("x.jsonl:8", "field 'id' is 'q', as in x.jsonl:1"),
    ]


@pytest.mark.parametrize("limit", [None, 7, 40, 95])
@pytest.mark.parametrize("repeated", [False, True])
def test_a_split_of_rows_on_disk_is_that_of_rows_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, repeated: bool
) -> None:
    generator = random.Random(0)
    rows = [
        {"instruction": f"a{n}", "output": "b", "language": generator.choice(["de", "en", "th"])}
        | {"group": f"g{generator.randrange(40)}", "id": f"{n // 2 if repeated and n % 9 == 0 else n}"}
        for n in range(130)
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = DataSource(source="x.jsonl", max_broken_share=0.5)
    splits = []
    for bytes_in_memory in (1 << 20, -1):
        monkeypatch.setattr(spool, "BYTES_IN_MEMORY", bytes_in_memory)
        loaded = load_data(spec, base_folder=tmp_path)
        assert isinstance(loaded.examples, tuple) is (bytes_in_memory > 0)
        split = split_data(loaded, limit=limit, held_out_groups=5, seed=3)
        splits.append((list(split.train), list(split.held_out), split.available, split.shortfall))
    assert splits[0] == splits[1]


def numbered(first: int, count: int) -> tuple[Example, ...]:
    turns = (Message("user", "a"), Message("assistant", "b"))
    return tuple(Example(str(n), turns, "en", f"g{n}", "set") for n in range(first, first + count))


def test_joined_parts_are_one_sequence() -> None:
    parts = [numbered(0, 3), ExampleView(numbered(0, 9), np.array([8, 3])), numbered(20, 1)]
    both = joined(parts)
    assert isinstance(both, JoinedExamples)
    assert [one.id for one in both] == [both[row].id for row in range(6)] == ["0", "1", "2", "8", "3", "20"]
    assert (both[-1].id, len(both), [one.id for one in both[2:4]]) == ("20", 6, ["2", "8"])
    assert joined(parts[::2]) == (*parts[0], *parts[2])
    assert joined(parts[:1]) is parts[0]
    with pytest.raises(IndexError):
        both[6]


def test_a_view_selects_and_counts_its_own_rows_alone() -> None:
    view = select(list(numbered(0, 9)), np.array([4, 2]))
    assert isinstance(view, ExampleView)
    assert [one.id for one in view] == ["4", "2"]
    assert columns_of(view).groups == 2
    assert select(numbered(0, 9), np.array([4, 2])) == (numbered(4, 1)[0], numbered(2, 1)[0])


def test_rows_move_to_disk_at_the_bound_and_stay_the_same() -> None:
    rows = [BrokenRow(f"x:{n}", "é" * n) for n in range(3000)]
    for bound, kind in ((10**9, tuple), (1000, SpooledRows)):
        kept: Spool[BrokenRow] = Spool(BrokenRow.to_json, BrokenRow.from_json, bound)
        kept.extend(rows)
        found = kept.finish()
        assert isinstance(found, kind)
        assert list(found) == rows
        assert (found[-1], tuple(found[5:7]), len(found)) == (rows[-1], tuple(rows[5:7]), 3000)


def test_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found, _ = on_disk(list(numbered(0, 5)), monkeypatch).finish()
    assert len(found) == 5
    assert list(tmp_path.iterdir()) == []
