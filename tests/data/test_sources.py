"""Reading, counting what is broken, splitting and limiting."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest

from lingraft.config.schema import DataSource, Filters
from lingraft.data.example import Example, Message
from lingraft.data.sources import LoadedData, load_data, split_data
from lingraft.errors import DataError

GOOD = '{"instruction": "a", "output": "b"}'


def write(folder: Path, name: str, content: str | bytes) -> DataSource:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return DataSource(source=name)


def allowing(spec: DataSource, share: float = 0.99) -> DataSource:
    return spec.model_copy(update={"max_broken_share": share})


BROKEN_LINES: list[tuple[bytes, str]] = [
    (b'{"instruction": "a", "output"', "not JSON: Expecting ':' delimiter at character 30"),
    (b'{"instruction": "\xff", "output": "b"}', "not UTF-8 at byte 18 of the line"),
    (b'{"instruction": "a"}', "field 'output' is missing"),
    (b'{"instruction": "a", "output": ""}', "field 'output' is empty"),
    (b'{"instruction": "a", "output": [4]}', "field 'output' must be text, not a list ([4])"),
    (b'{"instruction": "a", "output": NaN}', "field 'output' is NaN"),
    (b'["a", "b"]', "the row must be an object, not list (['a', 'b'])"),
    (b"[" * 100_000, "not usable JSON: maximum recursion depth exceeded"),
    (b'{"n": ' + b"9" * 5000 + b"}", "not usable JSON: Exceeds the limit"),
    (
        b'{"instruction": "a", "output": "\\ud800"}',
        "field 'output' holds half a surrogate pair at character 0",
    ),
]


def test_every_kind_of_broken_row_is_named_by_file_and_line(tmp_path: Path) -> None:
    lines = [GOOD.encode(), b"", *(line for line, _ in BROKEN_LINES)]
    loaded = load_data(allowing(write(tmp_path, "x.jsonl", b"\n".join(lines))), base_folder=tmp_path)
    assert loaded.n_rows == 1 + len(BROKEN_LINES)
    assert [example.id for example in loaded.examples] == ["1"]
    for number, (row, (_, problem)) in enumerate(zip(loaded.broken, BROKEN_LINES, strict=True), start=3):
        assert row.place == f"x.jsonl:{number}"
        assert row.problem.startswith(problem)


def test_too_many_broken_rows_fail_with_the_first_places_and_the_count(tmp_path: Path) -> None:
    spec = write(tmp_path, "x.jsonl", "\n".join([GOOD] * 3 + ["{}"] * 7))
    with pytest.raises(DataError) as raised:
        load_data(allowing(spec, 0.69), base_folder=tmp_path)
    message = str(raised.value)
    assert "7 of 10 rows (70.00%) are broken" in message
    assert [f"x.jsonl:{n}" in message for n in range(3, 11)] == [False, *[True] * 5, False, False]
    assert "and 2 more" in message
    assert len(load_data(allowing(spec, 0.7), base_folder=tmp_path).examples) == 3


def test_a_file_of_broken_json_alone_fails_with_its_places(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 2 rows .*\n  x.jsonl:1: not JSON"):
        load_data(allowing(write(tmp_path, "x.jsonl", "a\nb\n")), base_folder=tmp_path)


def test_lines_are_split_at_line_feeds_only(tmp_path: Path) -> None:
    separators = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
    row = json.dumps({"instruction": "a", "output": "b" + "\u2028\u2029\x85" + "c"}, ensure_ascii=False)
    escaped = json.dumps({"instruction": "a", "output": f"x{separators}x"})
    loaded = load_data(write(tmp_path, "x.jsonl", f"{row}\r\n{escaped}\n"), base_folder=tmp_path)
    assert [example.answer for example in loaded.examples] == ["b\u2028\u2029\x85c", f"x{separators}x"]


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    for name, content in (("x.jsonl", GOOD), ("x.json", f"[{GOOD}]")):
        loaded = load_data(write(tmp_path, name, b"\xef\xbb\xbf" + content.encode()), base_folder=tmp_path)
        assert len(loaded.examples) == 1


def test_a_json_list_is_read_and_its_rows_named_by_their_lines(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": "c"}, {"prompt": "p"}, 3, {"prompt": "q", "completion": "d"}]
    spec = allowing(write(tmp_path, "x.json", json.dumps(rows, indent=1)))
    loaded = load_data(spec, base_folder=tmp_path)
    assert (loaded.format, loaded.n_rows) == ("prompt_completion", 4)
    assert [(row.place, row.problem) for row in loaded.broken] == [
        ("x.json:6", "field 'completion' is missing"),
        ("x.json:9", "the row must be an object, not int (3)"),
    ]
    assert [example.id for example in loaded.examples] == ["2", "10"]


def test_json_lines_in_a_json_file_are_read(tmp_path: Path) -> None:
    assert len(load_data(write(tmp_path, "x.json", f"{GOOD}\n{GOOD}\n"), base_folder=tmp_path).examples) == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (f"[{GOOD},\n{GOOD}", "x.json:2: after this row, ',' or ']' is missing"),
        (f'[{GOOD},\n{{"a"', "x.json:2: the file is not valid JSON from this row on"),
        (b'[{"a":\n "\xff"}]', "x.json:2: the file is not UTF-8"),
        ("[]", "x.json: there are no rows in it"),
        ("", "x.json: there are no rows in it"),
    ],
)
def test_a_broken_json_list_is_named_by_line(tmp_path: Path, content: str | bytes, problem: str) -> None:
    with pytest.raises(DataError) as raised:
        load_data(allowing(write(tmp_path, "x.json", content)), base_folder=tmp_path)
    assert problem in str(raised.value)


def test_parquet_is_read_like_json_lines(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows: list[dict[str, Any]] = [{"messages": turns, "group": "g1"}, {"messages": turns[:1], "group": None}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x.parquet")
    loaded = load_data(allowing(DataSource(source="x.parquet")), base_folder=tmp_path)
    assert loaded.format == "messages"
    assert loaded.examples[0].messages == (Message("user", "a"), Message("assistant", "b"))
    assert loaded.examples[0].group == "g1"
    assert [(row.place, row.problem) for row in loaded.broken] == [
        ("x.parquet:2", "field 'messages' has no assistant turn")
    ]


def test_a_damaged_parquet_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x.parquet: the parquet file cannot be read"):
        load_data(write(tmp_path, "x.parquet", b"PAR1 no"), base_folder=tmp_path)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (DataSource(source="none.jsonl"), "there is no such file"),
        (DataSource(source="./x.csv"), "there is no such file"),
        (DataSource(source="no hub id!"), "neither a worldbook set, a local"),
        (
            DataSource(source="x.jsonl", revision="main", split="test"),
            "a local file has no revision ('main'), split ('test')",
        ),
        (DataSource(source="worldbook:lookup/en", format="alpaca"), "worldbook has no format ('alpaca')"),
        (DataSource(source="worldbook:lookup/en", split="test"), "worldbook has no split ('test')"),
        (DataSource(source="worldbook:lookup/en", fields={"output": "a"}), "worldbook has no fields"),
    ],
)
def test_a_wrong_source_says_what_is_wrong(tmp_path: Path, spec: DataSource, problem: str) -> None:
    write(tmp_path, "x.jsonl", GOOD)
    with pytest.raises(DataError) as raised:
        load_data(spec, base_folder=tmp_path)
    assert problem in str(raised.value)
    assert spec.source in str(raised.value)


def test_a_format_given_is_not_guessed(tmp_path: Path) -> None:
    both = '{"instruction": "a", "output": "b", "prompt": "c", "completion": "d"}'
    spec = write(tmp_path, "x.jsonl", both).model_copy(update={"format": "prompt_completion"})
    assert load_data(spec, base_folder=tmp_path).examples[0].instruction == "c"


def test_the_format_is_that_of_the_first_row_that_has_one(tmp_path: Path) -> None:
    loaded = load_data(
        allowing(write(tmp_path, "x.jsonl", f'{{"instruction": "a"}}\n{GOOD}')), base_folder=tmp_path
    )
    assert loaded.format == "alpaca"
    assert [row.problem for row in loaded.broken] == ["field 'output' is missing"]


def test_the_search_for_a_format_ends_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lingraft.data.sources._ROWS_WITHOUT_FORMAT", 3)
    spec = allowing(write(tmp_path, "x.jsonl", "\n".join(["no json"] * 4 + [GOOD])))
    with pytest.raises(DataError, match=r"none of the first 3 rows .* The first: x.jsonl:1: not JSON"):
        load_data(spec, base_folder=tmp_path)


def test_a_repeated_id_is_broken(tmp_path: Path) -> None:
    row = '{"instruction": "a", "output": "b", "id": "q"}'
    loaded = load_data(allowing(write(tmp_path, "x.jsonl", f"{row}\n{row}")), base_folder=tmp_path)
    assert (
        loaded.broken[0].problem == "field 'id' is 'q', as in x.jsonl:1; use `parallel: id` for parallel rows"
    )


def test_the_content_hash_follows_the_bytes(tmp_path: Path) -> None:
    first = load_data(write(tmp_path, "x.jsonl", GOOD), base_folder=tmp_path)
    same = load_data(write(tmp_path, "y.jsonl", GOOD), base_folder=tmp_path)
    other = load_data(write(tmp_path, "x.jsonl", GOOD.replace("b", "c")), base_folder=tmp_path)
    assert first.content_hash == same.content_hash != other.content_hash


def test_a_hub_set_that_cannot_be_reached_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"someone/something: cannot be read .* give a local file"):
        load_data(DataSource(source="someone/something"))


@dataclass
class PreparedRows:
    """What load_dataset returns, as far as it is used: rows, and where the cache holds them."""

    rows: list[dict[str, str]]
    cache_files: list[dict[str, str]]

    def __iter__(self) -> Iterator[dict[str, str]]:
        return iter(self.rows)


class FakeHub:
    """Stands for datasets.load_dataset: notes how it was called and gives prepared rows of one commit."""

    def __init__(self, commit: str) -> None:
        self.commit = commit
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, *arguments: Any, **options: Any) -> PreparedRows:
        self.calls.append((arguments, options))
        rows = [{"instruction": "a", "output": "b"}, {"instruction": "a", "output": ""}]
        return PreparedRows(rows, [{"filename": f"cache/a___b/default/0.0.0/{self.commit}/b-train.arrow"}])


def test_a_hub_set_is_read_with_its_options_and_its_commit_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub("a" * 40)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    spec = DataSource(source="a/b", config="c", revision="main", split="test", max_broken_share=0.5)
    loaded = load_data(spec)
    assert hub.calls == [(("a/b", "c"), {"split": "test", "revision": "main"})]
    assert (loaded.revision, loaded.n_rows, loaded.broken[0].place) == ("a" * 40, 2, "a/b:2")
    with pytest.raises(
        DataError, match=f"revision {'b' * 40} was asked for, but only {'a' * 40} is in the cache"
    ):
        load_data(spec.model_copy(update={"revision": "b" * 40}))


def test_worldbook_is_read_with_its_languages_and_filtered_as_any_data_set() -> None:
    loaded = load_data(DataSource(source="worldbook:counting/de,fr"))
    assert {example.language for example in loaded.examples} == {"de", "fr"}
    assert (loaded.format, loaded.n_rows, loaded.broken) == ("worldbook", len(loaded.examples), ())
    assert (
        load_data(DataSource(source="worldbook:counting/de", language="de")).content_hash
        != loaded.content_hash
    )
    with pytest.raises(DataError, match="its languages are de, not es"):
        load_data(DataSource(source="worldbook:counting/de", language="es"))
    filtered = load_data(DataSource(source="worldbook:counting/de,fr", filters=Filters(near_duplicates=0.5)))
    left_out = sum(filtered.filtered.values())
    assert left_out > 0
    assert len(filtered.examples) == filtered.n_rows - left_out == loaded.n_rows - left_out
    assert {one.id for one in filtered.examples} < {one.id for one in loaded.examples}


@pytest.mark.parametrize(
    ("name", "format_name", "rows", "broken"),
    [
        ("alpaca/en.jsonl", "alpaca", 3000, 4),
        ("multialpaca/es.jsonl", "alpaca", 3000, 0),
        ("multialpaca/ja.jsonl", "alpaca", 3000, 0),
        ("gsm8k_instruct/en.jsonl", "alpaca", 3000, 0),
        ("gpteacher_roleplay/en.jsonl", "alpaca", 1000, 0),
        ("rasbt_instruct/en.jsonl", "alpaca", 1100, 0),
        ("dolly_alpagasus/en.jsonl", "alpaca", 2996, 0),
        ("alpaca_eval/en_text_davinci_003.jsonl", "alpaca", 805, 2),
        ("t0_p3/en.jsonl", "prompt_completion", 2818, 0),
    ],
)
def test_real_data_load_whole(shared_data: Path, name: str, format_name: str, rows: int, broken: int) -> None:
    loaded = load_data(DataSource(source=name, max_broken_share=0.01), base_folder=shared_data)
    assert (loaded.format, loaded.n_rows, len(loaded.broken)) == (format_name, rows, broken)
    assert {row.problem for row in loaded.broken} <= {"field 'output' is empty"}
    assert len(loaded.examples) == rows - broken


def test_real_data_of_another_format_are_refused_by_name(shared_data: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"en.jsonl:1: the row has none of the known formats \(fields: 'question_id'.* --field output=",
    ):
        load_data(DataSource(source="mt_bench/en.jsonl"), base_folder=shared_data)


def parallel(groups: int, languages: str) -> LoadedData:
    examples = tuple(
        Example(f"{language}{g}", (Message("user", "a"), Message("assistant", "b")), language, f"g{g}", "set")
        for g in range(groups)
        for language in languages.split()
    )
    return LoadedData(examples, "worldbook", len(examples), (), "hash")


def test_held_out_groups_are_whole_and_depend_on_nothing_but_the_groups() -> None:
    loaded = parallel(50, "de es fr")
    splits = [
        split_data(loaded, limit=limit, held_out_groups=10, seed=s)
        for limit, s in ((None, 0), (30, 0), (30, 9))
    ]
    for split in splits:
        groups = {example.group for example in split.held_out}
        assert len(groups) == 10
        assert len(split.held_out) == 30
        assert not groups & {example.group for example in split.train}
        assert split.held_out == splits[0].held_out
        assert split.available == 120
    half = LoadedData(tuple(e for e in loaded.examples if e.language == "de"), "worldbook", 50, (), "hash")
    german = split_data(half, limit=None, held_out_groups=10, seed=0)
    assert {e.group for e in german.held_out} == {e.group for e in splits[0].held_out}


def test_the_limit_counts_the_whole_set_and_shares_it_between_languages_and_groups() -> None:
    train = split_data(parallel(100, "de es fr"), limit=70, held_out_groups=10, seed=0).train
    assert sorted(Counter(example.language for example in train).values()) == [23, 23, 24]
    assert len({example.group for example in train}) == 70


def test_groups_are_shared_only_once_all_are_taken() -> None:
    train = split_data(parallel(20, "de es fr"), limit=30, held_out_groups=0, seed=0).train
    assert len(train) == len({(e.language, e.group) for e in train}) == 30
    assert sorted(Counter(example.language for example in train).values()) == [10, 10, 10]
    assert len({example.group for example in train}) == 20


def test_where_one_language_has_too_few_rows_the_others_fill_up() -> None:
    loaded = parallel(40, "de es")
    few = tuple(e for e in loaded.examples if e.language == "de" or int(e.group[1:]) < 5)
    train = split_data(LoadedData(few, "worldbook", 45, (), "h"), limit=30, held_out_groups=0, seed=3).train
    assert Counter(example.language for example in train) == {"de": 25, "es": 5}


def test_the_seed_decides_the_draw_and_a_smaller_limit_is_a_subset() -> None:
    loaded = parallel(100, "de es")
    first, again, other = (split_data(loaded, limit=40, held_out_groups=5, seed=s).train for s in (1, 1, 2))
    assert first == again
    assert {e.id for e in first} != {e.id for e in other}
    fewer = split_data(loaded, limit=15, held_out_groups=5, seed=1).train
    assert {e.id for e in fewer} < {e.id for e in first}
    assert [e.language for e in first] != sorted(e.language for e in first)


def test_a_shortfall_is_visible() -> None:
    split = split_data(parallel(10, "de"), limit=15, held_out_groups=2, seed=0)
    assert (len(split.train), split.available, split.requested, split.shortfall) == (8, 8, 15, 7)
    assert split_data(parallel(10, "de"), limit=None, held_out_groups=2, seed=0).shortfall == 0


def test_holding_out_everything_is_refused() -> None:
    with pytest.raises(DataError, match="set: 10 groups are to be held out, but there are only 10"):
        split_data(parallel(10, "de es"), limit=None, held_out_groups=10, seed=0)


def messages_row(**second: Any) -> str:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", **second},
        {"role": "user", "content": "c", "weight": 0},
        {"role": "assistant", "content": "d"},
    ]
    return json.dumps({"messages": turns})


@pytest.mark.parametrize("mask", [{"weight": 0}, {"train": False}, {"loss": False}, {"loss": 0}])
def test_an_answer_may_say_that_it_is_not_trained(tmp_path: Path, mask: dict[str, Any]) -> None:
    rows = [messages_row(**mask), messages_row(**dict.fromkeys(mask, 1)), messages_row(**dict.fromkeys(mask))]
    (example, *others) = load_data(write(tmp_path, "x.jsonl", "\n".join(rows)), base_folder=tmp_path).examples
    assert [one.supervised for one in example.messages if one.role == "assistant"] == [False, True]
    for other in others:
        assert all(one.supervised for one in other.messages if one.role == "assistant")


def test_a_weight_between_is_broken(tmp_path: Path) -> None:
    spec = write(tmp_path, "x.jsonl", messages_row(weight=0.5))
    with pytest.raises(DataError, match=r"messages\[1\].weight' must be 0 or 1 .*0\.5"):
        load_data(spec, base_folder=tmp_path)


def test_masks_of_sharegpt_and_masks_on_disk_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0}] * 2
    rows = "\n".join(json.dumps({"conversations": turns, "system": "s"}) for _ in range(3))
    spec = write(tmp_path, "x.jsonl", rows).model_copy(update={"system": "fold"})
    in_memory = load_data(spec, base_folder=tmp_path).examples
    monkeypatch.setattr("lingraft.data.spool.BYTES_IN_MEMORY", 0)
    assert list(load_data(spec, base_folder=tmp_path).examples) == list(in_memory)
    assert [one.supervised for one in in_memory[0].messages] == [True, True, False, True, False]
    assert in_memory[0].fold_system


def test_keys_of_messages_that_nothing_reads_are_counted(tmp_path: Path) -> None:
    rows = [
        messages_row(timestamp=3),
        messages_row(timestamp=4, wieght=0),
        messages_row(timestamp=None),
        GOOD,
    ]
    spec = write(tmp_path, "x.jsonl", "\n".join(rows[:3]))
    assert load_data(spec, base_folder=tmp_path).unknown_keys == {"timestamp": 2, "wieght": 1}
    assert load_data(write(tmp_path, "y.jsonl", rows[3]), base_folder=tmp_path).unknown_keys == {}
