"""Overlap of evaluation items with training rows: by hand, in several scripts, and against a slow obvious count."""

from __future__ import annotations

import random

import pytest

from lingraft.contamination.overlap import EvaluationText, TaskOverlap, overlap
from lingraft.data.example import Example, Message
from lingraft.errors import ConfigError
from lingraft.text.folding import fold_for_overlap

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def row(question: str, answer: str = "Yes.", name: str = "1") -> Example:
    return Example(name, (Message("user", question), Message("assistant", answer)), "en", name, "rows.jsonl")


def asked(prompt: str, reference: str = "no", language: str = "en", item: str = "a") -> EvaluationText:
    return EvaluationText("task", language, item, prompt, reference)


def measured(prompt: str, *rows: Example, language: str = "en", words: int = 13) -> TaskOverlap:
    return overlap([asked(prompt, language=language)], rows, words=words)["task"]


WORDS = " ".join(LETTERS)


def test_an_item_that_a_row_quotes_whole_is_covered_and_its_row_is_named() -> None:
    found = measured(WORDS, row("something else"), row(f"Please read: {WORDS.upper()}!", name="7"))
    assert (found.coverage, found.touched, found.contaminated, found.duplicates) == (1.0, 1.0, 1.0, 0.0)
    assert found.worst[0].row == "rows.jsonl: 7"
    assert found.worst[0].text == WORDS


def test_n_grams_are_counted_as_on_paper() -> None:
    # 26 words have 14 13-grams; a row that quotes the first 20 of them holds 8.
    found = measured(WORDS, row(" ".join(LETTERS[:20])))
    assert found.coverage == pytest.approx(8 / 14)
    assert (found.touched, found.contaminated) == (1.0, 0.0)


def test_twelve_words_in_common_are_none() -> None:
    found = measured(WORDS, row(" ".join(LETTERS[:12])))
    assert (found.coverage, found.touched, found.worst) == (0.0, 0.0, ())


def test_no_n_gram_goes_from_one_turn_to_the_next() -> None:
    assert measured(WORDS, row(" ".join(LETTERS[:12]), " ".join(LETTERS[12:24]))).touched == 0.0


def test_case_punctuation_and_compatible_forms_make_no_difference() -> None:
    assert fold_for_overlap("\uff37hat, is “THIS”?\u2028  Straße—2") == "what is this strasse 2"
    found = measured(WORDS, row(", ".join(LETTERS.upper()) + "."))
    assert (found.coverage, found.duplicates) == (1.0, 1.0)


def test_vowel_signs_and_tone_marks_do_not_part_a_word() -> None:
    assert fold_for_overlap("น้ำ กี่ทีม?") == fold_for_overlap("น้ำ กี่ทีม")
    assert len(fold_for_overlap("हिन्दी में").split()) == 2


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("th", "ประเทศไทยมีเมืองหลวงชื่อกรุงเทพมหานครและมีแม่น้ำเจ้าพระยาไหลผ่านกลางเมืองหลวง"),
        (
            "ja",
            "日本の首都は東京であり、人口は一千万人を超えている。東京は世界でも有数の大都市として知られ、多くの観光客が毎年訪れる場所である。",
        ),
        (
            "zh-Hant",
            "臺灣的首都是臺北、人口超過兩百萬。臺北是世界知名的城市、每年有許多觀光客前來參觀、並且享受當地的美食與文化、也喜歡逛夜市。",
        ),
    ],
)
def test_languages_without_spaces_are_compared_by_characters(language: str, text: str) -> None:
    quoted = measured(text, row(f"อ่าน 読む 看: {text} ..."), language=language)
    assert (quoted.coverage, quoted.contaminated) == (1.0, 1.0)
    other = measured(text, row(text[len(text) // 2 :]), language=language)
    assert (other.coverage, other.contaminated) == (0.0, 0.0)


def test_a_short_prompt_counts_only_as_a_whole_turn() -> None:
    found = measured("What is the capital of France?", row("what is the capital of France"))
    assert (found.coverage, found.duplicates, found.contaminated) == (None, 1.0, 1.0)
    longer = measured("What is the capital of France?", row("Tell me: what is the capital of France?"))
    assert (longer.duplicates, longer.unjudged) == (0.0, 0)


def test_a_prompt_of_a_few_words_is_not_judged_and_counted() -> None:
    found = measured("Thank you!", row("Thank you!"))
    assert (found.unjudged, found.contaminated) == (1, 0.0)


def test_an_items_own_texts_are_found_where_its_template_and_options_hide_them() -> None:
    question = "Which of these four towns lies by the old river?"
    options = " ".join(f"{one}. A town by the name of {one * 5} in the far north." for one in "ABCD")
    rows = [row(question, "A town by the name of AAAAA in the far north.")]
    plain = EvaluationText("task", "en", "a", f"Q: {question} {options} Answer:", "A")
    own = EvaluationText(*(plain.task, "en", "b", plain.prompt, "A"), readings=((question,),))
    found = overlap([plain, own], rows)["task"]
    assert (found.contaminated, found.duplicates) == (0.5, 0.5)
    assert found.worst[0].item == "b"


def test_texts_of_an_item_are_found_apart_and_in_one() -> None:
    first, second = " ".join(LETTERS[:20]), " ".join(LETTERS[20:])
    item = EvaluationText(
        "task", "en", "a", f"Say what follows these: {WORDS}. And?", "no", ((first, second),)
    )
    for rows in ([row(WORDS)], [row(f"{first} Now:"), row(second, "One. Two.")]):
        assert overlap([item], rows)["task"].coverage == 1.0


def test_a_short_prompt_and_its_answer_count_in_one_turn_or_two() -> None:
    item = asked("Who is it?", "The old king.")
    for rows in ([row("Who is it?", "The old king.")], [row("Who is it? The old king!")]):
        found = overlap([item], rows)["task"]
        assert (found.duplicates, found.unjudged) == (1.0, 0)
    assert overlap([item], [row("Who is it?", "The young king.")])["task"].touched == 0.0


def test_references_are_looked_for_as_well() -> None:
    found = overlap([asked("Say the alphabet, please, as a list of words.", WORDS)], [row("Hm?", WORDS)])[
        "task"
    ]
    assert (found.coverage, found.contaminated) == (1.0, 1.0)


def test_a_template_touches_items_and_contaminates_none() -> None:
    template = (
        "In the following sentence, please find the name of the month and write it down in capital letters: "
    )
    found = measured(
        f"{template} It was a cold and windy day in March when they met again.", row(f"{template} May.")
    )
    assert 0 < found.worst[0].coverage < 0.5
    assert (found.touched, found.contaminated) == (1.0, 0.0)


def test_shares_are_over_the_items_of_each_task() -> None:
    texts = [
        asked(WORDS),
        asked(WORDS[::-1], item="b"),
        EvaluationText("other", "en", "c", WORDS[10:] + " x", "y"),
    ]
    found = overlap(texts, [row(WORDS)])
    assert (found["task"].items, found["task"].contaminated) == (2, 0.5)
    assert found["task"].worst[0].item == "a"
    assert found["other"].contaminated == 1.0


def test_the_count_equals_a_slow_obvious_one() -> None:
    draw = random.Random(0)
    texts = [asked(" ".join(draw.choices("abc", k=30)), item=str(i)) for i in range(20)]
    rows = [row(" ".join(draw.choices("abc", k=40)), name=str(i)) for i in range(30)]
    quoted = [f" {turn.content.lower()} " for one in rows for turn in one.messages]
    total, covered = 0, 0
    for text in texts:
        words = text.prompt.split()
        grams = {" ".join(words[i : i + 4]) for i in range(len(words) - 3)}
        total += len(grams)
        covered += sum(any(f" {gram} " in one for one in quoted) for gram in grams)
    assert overlap(texts, rows, words=4)["task"].coverage == pytest.approx(covered / total)


def test_nothing_is_found_without_items_or_rows() -> None:
    assert overlap([], [row(WORDS)]) == {}
    assert measured(WORDS).touched == 0.0


def test_rows_are_read_once() -> None:
    rows = iter([row(WORDS, name="1"), row(WORDS, name="2")])
    assert overlap([asked(WORDS)], rows)["task"].worst[0].row == "rows.jsonl: 1"


def test_an_n_gram_of_no_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="words"):
        measured(WORDS, words=0)
