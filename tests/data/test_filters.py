"""Filters find what they say, count it, and keep the first of several alike; parallel rows become groups."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import DataSource, Filters
from lingraft.data.example import Example, Message
from lingraft.data.filters import RowFilter
from lingraft.data.sources import load_data, split_data
from lingraft.data.summary import summarise_data
from lingraft.errors import DataError
from lingraft.models.loading import load_tokenizer


def example(text: str, language: str = "en") -> Example:
    return Example("1", (Message("user", text), Message("assistant", "ok")), language, "g", "s")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def words(generator: random.Random, count: int) -> list[str]:
    return ["".join(generator.choices("abcdefghijklmnop", k=6)) for _ in range(count)]


def test_equal_text_is_left_out_whatever_its_case_and_spaces() -> None:
    judge = RowFilter(Filters(near_duplicates=1.0))
    assert judge.reason(example("The same  question")) is None
    assert judge.reason(example("the same question ")) == "exact_duplicate"
    assert judge.reason(example("the same question", language="de")) is None
    assert (judge.counts, judge.left_out) == (Counter(exact_duplicate=1), 1)


def test_near_duplicates_are_found_and_unrelated_rows_are_not() -> None:
    generator = random.Random(0)
    judge = RowFilter(Filters(near_duplicates=0.6))
    originals = [words(generator, 120) for _ in range(60)]
    assert [judge.reason(example(" ".join(text))) for text in originals] == [None] * 60
    found = 0
    for text in originals:
        changed = list(text)
        for place in generator.sample(
            range(120), 3
        ):  # 15 of 116 shingles change: a Jaccard similarity of about 0.77
            changed[place] = "zzz"
        found += judge.reason(example(" ".join(changed))) == "near_duplicate"
    assert found >= 54


def test_languages_without_spaces_are_compared_by_characters() -> None:
    judge = RowFilter(Filters(near_duplicates=0.6))
    text = (
        "日本の首都は東京です。人口は約千四百万人で、世界でも大きな都市の一つとして知られています。江戸時代には江戸と呼ばれ、"
        "明治時代に今の名前になりました。東京には国会や多くの大学、博物館、公園があり、毎年たくさんの人が訪れます。"
    )
    assert judge.reason(example(text, "ja")) is None
    assert judge.reason(example(text.replace("訪れます", "来ます"), "ja")) == "near_duplicate"


def test_a_row_in_another_language_is_left_out_and_short_ones_are_counted() -> None:
    judge = RowFilter(Filters(language=True))
    spanish = "¿Cuál es la capital de Francia y cuántos habitantes tiene la ciudad hoy en día?"
    assert judge.reason(example(spanish, "es")) is None
    assert judge.reason(example(spanish, "en")) == "other_language"
    assert judge.reason(example("hm", "en")) is None
    assert judge.counts == Counter(other_language=1, language_undetermined=1)


def test_a_language_that_cannot_be_identified_is_an_error() -> None:
    with pytest.raises(DataError, match="'tlh' is not known to the language identifier"):
        RowFilter(Filters(language=True)).reason(example("x" * 30, "tlh"))


def test_counts_stand_in_the_data_set(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i % 3}", "completion": "yes"} for i in range(7)]
    spec = {"source": write(tmp_path / "x.jsonl", rows), "filters": {"near_duplicates": 1.0}}
    loaded = load_data(DataSource.model_validate(spec))
    assert (len(loaded.examples), loaded.n_rows, loaded.filtered) == (3, 7, {"exact_duplicate": 4})


@pytest.mark.parametrize(("claimed", "kept"), [("zh", 0.41), ("en", 0.59)])
def test_a_half_translated_set_is_told_apart(shared_data: Path, claimed: str, kept: float) -> None:
    path = shared_data / "alpaca_12345_mixed" / "zh_en_mixed.jsonl"
    spec = {"source": str(path), "language": claimed, "filters": {"language": True}, "max_broken_share": 0.01}
    loaded = load_data(DataSource.model_validate(spec))
    texts = ["".join(turn.content for turn in one.messages) for one in loaded.examples]
    chinese = [any("\u4e00" <= letter <= "\u9fff" for letter in text) for text in texts]
    right = sum(chinese) if claimed == "zh" else len(chinese) - sum(chinese)
    told = len(loaded.examples) - loaded.filtered["language_undetermined"]
    print(claimed, dict(loaded.filtered), len(texts), right, told)
    assert loaded.filtered["other_language"] > 0
    assert right >= 0.95 * told
    assert abs(len(texts) / loaded.n_rows - kept) < 0.05


def test_rows_with_one_id_are_parallel(tmp_path: Path) -> None:
    for language, names in {"en": "abc", "es": "abc", "fr": "ab"}.items():
        rows = [{"id": name, "prompt": name + language, "completion": "x"} for name in names]
        write(tmp_path / f"{language}.jsonl", rows)
    loaded = load_data(DataSource(source=str(tmp_path / "{language}.jsonl"), parallel="id"))
    assert len({one.group for one in loaded.examples}) == 3
    assert {one.id for one in loaded.examples if one.group == "id-c"} == {"en/c", "es/c"}
    assert loaded.incomplete_groups == 1


def test_rows_in_one_order_are_parallel(tmp_path: Path) -> None:
    for language in ("en", "es"):
        write(tmp_path / f"{language}.jsonl", [{"prompt": language + n, "completion": n} for n in "abc"])
    source = str(tmp_path / "{language}.jsonl")
    loaded = load_data(DataSource(source=source, parallel="rows"))
    groups = {one.messages[0].content: one.group for one in loaded.examples}
    assert groups["enb"] == groups["esb"] != groups["ena"]
    assert loaded.incomplete_groups == 0
    write(tmp_path / "fr.jsonl", [{"prompt": "fr", "completion": "x"}])
    with pytest.raises(DataError, match="as many rows of each language, not en 3, es 3, fr 1"):
        load_data(DataSource(source=source, parallel="rows"))


def test_parallel_ids_must_be_there(tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", [{"prompt": "q", "completion": "a"}])
    with pytest.raises(DataError, match="field 'id' is missing; `parallel: id` needs it"):
        load_data(DataSource(source=source, parallel="id"))


def test_broken_rows_and_parallel_order_do_not_go_together(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a"}, {"prompt": "q"}]
    source = write(tmp_path / "x.jsonl", rows)
    with pytest.raises(DataError, match="1 rows are broken, so `parallel: rows` cannot tell"):
        load_data(DataSource(source=source, parallel="rows", max_broken_share=0.9))


def test_real_parallel_sets_become_groups(shared_data: Path) -> None:
    seeds = DataSource(source=str(shared_data / "seed_tasks_175" / "{language}.jsonl"), parallel="id")
    loaded = load_data(seeds)
    assert (len({one.group for one in loaded.examples}), loaded.incomplete_groups) == (175, 0)
    fields = {"instruction": "question", "output": "answer"}
    mgsm = {"source": str(shared_data / "mgsm" / "{language}.jsonl"), "parallel": "rows", "fields": fields}
    found = load_data(DataSource.model_validate(mgsm))
    assert (len(found.examples), len({one.group for one in found.examples})) == (1000, 250)
    assert len({one.messages[1].content for one in found.examples if one.group == "row-7"}) == 1


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        ("3 stars<|endoftext|>", "3 stars"),
        ("Yes.\n<|im_end|>\n", "Yes."),
        ("Yes.<|eot_id|><|end_of_text|>", "Yes."),
        ("<s> Yes.</s></s>", "Yes."),
        ("Yes.<end_of_turn>", "Yes."),
        ("[INST] Q [/INST]Yes.", " Q Yes."),
        ("Yes.<\uff5cend\u2581of\u2581sentence\uff5c>", "Yes."),
        ("Yes.<eos>", "Yes."),
        ("  indented<|endoftext|>", "  indented"),
    ],
)
def test_special_tokens_that_answers_spell_are_taken_out_or_the_rows_are(answer: str, left: str) -> None:
    spelt = Example("1", (Message("user", "<|im_end|>?"), Message("assistant", answer)), "en", "g", "s")
    strip, drop = RowFilter(Filters(special_tokens="strip")), RowFilter(Filters(special_tokens="drop"))
    assert [turn.content for turn in strip.cleaned(spelt).messages] == ["<|im_end|>?", left]
    assert (strip.counts, strip.left_out) == (Counter(special_tokens_stripped=1), 0)
    assert drop.cleaned(spelt) is spelt
    assert drop.reason(spelt) == "special_tokens"
    assert (drop.counts, drop.left_out) == (Counter(special_tokens=1), 1)


@pytest.mark.parametrize(
    "answer",
    ["a < b | c > d", "price: <s>old</s>new", "x[0] <|> y", "<mask id='m'/>", "<b>bold</b>", "[INSTALL]"],
)
def test_other_text_is_no_special_token(answer: str) -> None:
    plain = Example("1", (Message("user", "Q"), Message("assistant", answer)), "en", "g", "s")
    assert RowFilter(Filters(special_tokens="drop")).reason(plain) is None


def test_an_answer_of_special_tokens_alone_is_none(tmp_path: Path) -> None:
    rows = [{"prompt": "Q", "completion": "<|endoftext|>"}, {"prompt": "Q", "completion": "A</s>"}]
    source = write(tmp_path / "x.jsonl", rows)
    spec = {"source": source, "filters": {"special_tokens": "strip"}, "max_broken_share": 0.5}
    loaded = load_data(DataSource.model_validate(spec))
    assert [one.answer for one in loaded.examples] == ["A"]
    assert (len(loaded.broken), loaded.without_answer) == (1, 1)
    assert loaded.filtered == {"special_tokens_stripped": 1}


def test_rows_without_an_answer_are_left_out_by_a_filter_and_then_are_not_broken(tmp_path: Path) -> None:
    answers = ["A", "", None, "B", 7]
    rows = [{"prompt": f"Q{n}", "completion": answer} for n, answer in enumerate(answers)]
    spec = {"source": write(tmp_path / "x.jsonl", rows), "filters": {"no_answer": True}}
    loaded = load_data(DataSource.model_validate(spec))
    assert [one.answer for one in loaded.examples] == ["A", "B", "7"]
    assert (loaded.n_rows, loaded.filtered, len(loaded.broken)) == (5, {"no_answer": 2}, 0)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_answers_that_raters_rejected_are_counted_and_not_trained_on(tmp_path: Path, suffix: str) -> None:
    rows = [{"prompt": f"q{i}", "completion": "a", "label": i % 3 > 0} for i in range(9)]
    if suffix == "jsonl":
        source = write(tmp_path / "x.jsonl", rows)
    else:
        source = str(tmp_path / "x.csv")
        lines = ["prompt,completion,label", *(f"{one['prompt']},a,{one['label']}" for one in rows)]
        Path(source).write_text("\n".join(lines))
    loaded = load_data(DataSource(source=source))
    assert [one.instruction for one in loaded.examples] == [f"q{i}" for i in range(9) if i % 3]
    assert (loaded.n_rows, loaded.broken, loaded.filtered) == (9, (), {"rejected_answer": 3})
    assert len(load_data(DataSource(source=source), answered=False).examples) == 9


def test_the_end_tokens_of_a_real_set_are_all_taken_out(shared_data: Path) -> None:
    source = str(shared_data / "t0_p3" / "en.jsonl")
    strip = {"source": source, "filters": {"special_tokens": "strip", "no_answer": True}}
    loaded = load_data(DataSource.model_validate(strip))
    assert loaded.filtered == {"special_tokens_stripped": 2748, "no_answer": 70}  # 70 hold nothing else
    assert not any("<|" in one.answer for one in loaded.examples)
    drop = {"source": source, "filters": {"special_tokens": "drop"}}
    assert load_data(DataSource.model_validate(drop)).filtered == {"special_tokens": 2818}


def test_filters_that_leave_no_row_are_refused_by_name(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "completion": "b</s>"}\n{"prompt": "a", "completion": ""}\n')
    filters = {"special_tokens": "drop", "no_answer": True}
    spec = DataSource.model_validate({"source": str(path), "filters": filters})
    problem = r"leave none of 2 rows \(no_answer 1, special_tokens 1\)"
    with pytest.raises(DataError, match=problem):
        split_data(load_data(spec), limit=None, held_out_groups=0, seed=0)
    with pytest.raises(DataError, match=problem):
        summarise_data(spec, load_tokenizer(tiny_model))
