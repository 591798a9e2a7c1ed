"""What generated text is dropped, in several scripts, and that real text is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lingraft.config.schema import DataSource
from lingraft.data.degeneration import degeneration, is_looping
from lingraft.data.sources import load_data
from lingraft.data.worldbook import FAMILIES, LANGUAGES, load_items

TABLE = [
    ("Paris.", True, None),
    ("4", True, None),
    ("🙂", True, None),
    ("", True, "empty"),
    (" \n\t", True, "empty"),
    ("The capital of France is", False, "truncated"),
    ("I am sure. I am sure. I am sure. I am sure. I am sure. I am sure.", True, "looping"),
    ("The answer is 4.\n" * 5, False, "looping"),  # more tokens would not have ended it
    ("You can try again, and you can try again, " * 4, True, "looping"),
    ("A good beginning of an answer, then it went on and on " + "and on " * 12, True, "looping"),
    ("はいはいはいはいはいはいはいはいはいはい", True, "looping"),
    ("我喜欢吃苹果。" * 6, True, "looping"),
    ("ฉันไม่รู้ " * 8, True, "looping"),
    ("وهذا صحيح، " * 7, True, "looping"),
    ("Это очень важно. " * 6, True, "looping"),
    ("मुझे नहीं पता। " * 7, True, "looping"),
    ("아니요 " * 9, True, "looping"),
    ("Tôi không biết. " * 6, True, "looping"),
    ("no no no no", True, None),  # four times, not five, and short
    ("Ha ha ha!", True, None),
    ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22", True, None),
    ("| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |", True, None),
    ("First heading\n--------------------------\nOne thing, and then some more of it.", True, None),
    ("0.333333333333333333333 is one third, more or less, as far as decimals can say it.", True, None),
]


@pytest.mark.parametrize(("text", "ended", "reason"), TABLE, ids=range(len(TABLE)))
def test_degenerate_text_is_told_by_reason(text: str, ended: bool, reason: str | None) -> None:
    assert degeneration(text, ended=ended) == reason


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_answer_of_worldbook_is_taken_for_a_loop(language: str) -> None:
    for family in FAMILIES:
        answers = [item.example.answer for item in load_items(family, language, "train")]
        assert not [answer for answer in answers if is_looping(answer)]


@pytest.mark.parametrize("name", ["alpaca/en", "multialpaca/es", "multialpaca/ja", "oasst1/fr"])
def test_hardly_any_answer_of_people_is_taken_for_a_loop(shared_data: Path, name: str) -> None:
    source = DataSource(source=str(shared_data / f"{name}.jsonl"), max_broken_share=0.9)
    examples = load_data(source).examples[:1000]
    looping = [example for example in examples if is_looping(example.answer)]
    assert len(looping) <= 0.002 * len(examples)


@pytest.mark.parametrize("language", ["id", "th", "vi"])
def test_no_abstract_of_a_news_story_is_taken_for_a_loop(shared_data: Path, language: str) -> None:
    lines = (shared_data / "xlsum_100" / f"{language}.jsonl").read_text(encoding="utf-8").split("\n")
    texts = [json.loads(line)["label"] for line in lines if line]
    assert len(texts) == 100
    assert not [text for text in texts if is_looping(text)]
