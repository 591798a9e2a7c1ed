"""The verdict: reference answers are perfect, and each way of being wrong costs."""

from __future__ import annotations

import dataclasses
import itertools
import unicodedata

import pytest

from lingraft.data.language_id import MINIMUM_LETTERS, LanguageIdentifier
from lingraft.data.worldbook import FAMILIES, LANGUAGES, SPLITS, Item, load_items, score_answer
from lingraft.data.worldbook.scoring import has_content, is_plain_sentence, is_wrong_language
from lingraft.data.worldbook.tasks import task_named
from lingraft.errors import DataError


def first(family: str, task: str, language: str, kind: str | None = None) -> Item:
    return next(
        item
        for split in SPLITS
        for item in load_items(family, language, split)
        if item.task == task and (kind is None or [entry.kind for entry in item.constraints] == [kind])
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_reference_answer_is_perfect(family: str, language: str) -> None:
    for split in SPLITS:
        for item in load_items(family, language, split):
            verdict = score_answer(item, item.example.answer)
            assert verdict.headline == verdict.form == verdict.content == 1.0, item.example.id
            assert verdict.wrong_language is False
            assert all(verdict.constraints_followed)
            assert verdict.chrf == pytest.approx(1.0)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_plain_answer_without_the_form_scores_lower(language: str) -> None:
    for item in load_items("lookup", language, "report"):
        verdict = score_answer(item, item.sentence)
        assert verdict.content == 1.0
        assert verdict.headline < 1.0, item.example.id


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_answer_to_another_content_has_no_content(family: str, language: str) -> None:
    items = sorted(load_items(family, language, "report"), key=lambda item: item.task)
    for item, other in itertools.pairwise(items):
        if item.task == other.task and item.slot != other.slot:
            verdict = score_answer(item, other.example.answer)
            assert verdict.content == 0.0, (item.sentence, other.sentence)
            assert verdict.headline < 1.0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_the_english_answer_scores_nothing_in_another_language(family: str, language: str) -> None:
    pairs = zip(load_items(family, language, "report"), load_items(family, "en", "report"), strict=True)
    for item, english in pairs:
        verdict = score_answer(item, english.example.answer)
        assert verdict.wrong_language is True, english.example.answer
        assert verdict.headline == 0.0


@pytest.mark.parametrize("response", ["", "   ", "\n"])
def test_an_empty_answer_scores_nothing(response: str) -> None:
    verdict = score_answer(first("lookup", "month_after", "de"), response)
    assert (verdict.headline, verdict.form, verdict.content, verdict.chrf) == (0.0, 0.0, 0.0, 0.0)
    assert verdict.wrong_language is None


def test_an_answer_that_lists_all_weekdays_is_wrong() -> None:
    item = first("lookup", "weekday_after", "en")
    listed = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"
    assert not has_content(item, listed)
    assert has_content(item, f"{item.given[0]} is followed by {item.slot}!")
    assert not has_content(item, f"The day after {item.slot} is {item.given[0]}.")


def test_an_answer_that_names_both_numbers_is_wrong() -> None:
    item = first("counting", "larger_of_two", "en")
    smaller = "eleven" if item.slot != "eleven" else "twelve"
    assert has_content(item, f"It is {item.slot}.")
    assert not has_content(item, f"It is {item.slot} or {smaller}.")


def test_a_number_word_inside_a_longer_one_is_no_answer() -> None:
    item = next(
        item
        for item in load_items("counting", "en", "train")
        if item.task == "sum_in_words" and item.slot == "twenty"
    )
    assert has_content(item, "That is twenty.")
    assert not has_content(item, "That is twenty-five.")


def test_a_list_said_forwards_and_backwards_is_wrong() -> None:
    item = first("counting", "reverse_list", "de")
    forwards = ", ".join(reversed(item.slot.split(", ")))
    assert has_content(item, f"Umgekehrt: {item.slot}")
    assert not has_content(item, f"{forwards}; umgekehrt {item.slot}")


def test_content_survives_case_marks_json_and_spaces() -> None:
    item = first("lookup", "unit_in_words", "fr")
    for form in (
        item.slot.upper(),
        f"*{item.slot}*",
        f'{{"réponse": "{item.slot}"}}',
        item.slot.replace(" ", "\u00a0"),
    ):
        assert has_content(item, form), form


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_slot_by_itself_is_content_and_another_is_not(language: str) -> None:
    """Every slot, in the language's marks and digits, with the words it may be glued to."""
    for family in FAMILIES:
        for task in {item.task for item in load_items(family, language, "report")}:
            items = [item for item in load_items(family, language, "report") if item.task == task]
            for item, other in itertools.pairwise(items):
                assert has_content(item, f"«{item.slot}»"), item.slot
                if item.slot not in other.slot and other.slot not in item.slot:
                    assert not has_content(item, other.slot), (item.slot, other.slot)
                    # The question's own values may be repeated: the numbers of a date, an addend.
                    if task != "date_in_words" and other.slot not in item.given:
                        assert not has_content(item, f"{item.slot} / {other.slot}"), (item.slot, other.slot)


@pytest.mark.parametrize(
    ("language", "task", "slot", "response", "expected"),
    [
        ("ar", "weekday_after", "الثلاثاء", "هو يوم الثلاثاء.", True),
        ("ar", "weekday_after", "الثلاثاء", "ثم يأتي، والثلاثاء بعده.", True),
        ("ar", "weekday_after", "الثلاثاء", "الثُّلاثاء", True),  # vowel signs
        ("ar", "weekday_after", "الثلاثاء", "الثـــلاثاء", True),  # lengthening strokes
        ("ar", "weekday_after", "الثلاثاء", "الثلاثاءات", False),
        ("ar", "last_of_list", "كتاب", "تنتهي بالكتاب.", True),
        ("ar", "last_of_list", "كتاب", "تنتهي بكتابة.", False),
        ("ar", "next_number", "71", "العدد هو \u0667\u0661.", True),
        ("ar", "next_number", "71", "العدد هو \u0667\u0661\u0660.", False),
        ("ar", "reverse_list", "كلب، باب", "كلب , باب", True),
        ("ja", "next_number", "71", "次の数は71です。", True),
        ("ja", "next_number", "71", "次の数は\uff17\uff11です。", True),
        ("ja", "next_number", "71", "次の数は171です。", False),
        ("ja", "larger_of_two", "二十四", "二十四だと思います。", True),
        ("ja", "larger_of_two", "二十四", "百二十四です。", False),
        ("ja", "larger_of_two", "二十四", "二十四か三十です。", False),
        ("ja", "last_of_list", "本", "最後は本です。", True),
        ("ja", "last_of_list", "本", "最後は日本です。", False),
        ("ja", "last_of_list", "パン", "ジャパンです。", False),
        ("ja", "month_after", "1月", "11月です。", False),
        ("ja", "currency_in_words", "12スイスフラン", "12 スイス フランです。", True),
        ("ko", "larger_of_two", "이십사", "이십사이에요.", True),
        ("ko", "larger_of_two", "이십사", "백이십사입니다.", False),
        ("ko", "larger_of_two", "이십", "이십이입니다.", False),
        ("ko", "last_of_list", "소", "소입니다.", True),
        ("ko", "last_of_list", "소", "소금입니다.", False),
        ("ko", "last_of_list", "소", "주소입니다.", False),
        ("ko", "unit_in_words", "12미터", "12 미터예요.", True),
        ("ko", "unit_in_words", "12미터", "12킬로미터예요.", False),
        ("ru", "month_after", "март", "Это март.", True),
        ("ru", "month_after", "март", "Начало марта.", False),
        ("th", "weekday_after", "วันพุธ", "คำตอบคือวันพุธครับ", True),
        ("th", "weekday_after", "วันพุธ", "วันพุธหรือวันศุกร์", False),
        ("th", "last_of_list", "นก", "คำตอบคือนก", True),
        ("th", "last_of_list", "นก", "ย้อนกลับ", False),
        ("th", "unit_in_words", "12 เมตร", "12 กิโลเมตร", False),
        ("th", "unit_in_words", "12 เมตร", "๑๒เมตร", True),
        ("vi", "month_after", "tháng 1", "Đó là tháng 1.", True),
        ("vi", "month_after", "tháng 1", "Đó là tháng 10.", False),
        ("vi", "month_after", "tháng 1", unicodedata.normalize("NFD", "Đó là tháng 1."), True),
    ],
)
def test_a_whole_phrase_is_what_the_script_makes_one(
    language: str, task: str, slot: str, response: str, expected: bool
) -> None:
    item = dataclasses.replace(first(task_named(task).family, task, language), slot=slot, given=())
    assert has_content(item, response) is expected


def test_another_count_of_the_same_unit_is_wrong() -> None:
    item = first("lookup", "unit_in_words", "en")
    count, unit = item.slot.split(" ", 1)
    assert not has_content(item, f"{int(count) + 1} {unit}")
    assert not has_content(item, f"{item.slot} or {int(count) + 1} {unit}")


def test_the_form_of_a_counting_answer_is_one_plain_sentence() -> None:
    assert is_plain_sentence("Der 5. März ist ein Tag.")
    for wrong in (
        "Tuesday.",
        "THIS IS ALL IN CAPITAL LETTERS.",
        '"This is a quoted sentence."',
        "* one two three four.",
    ):
        assert not is_plain_sentence(wrong)
    assert not is_plain_sentence("This is one sentence. This is two.")
    assert not is_plain_sentence("This has no end at all")
    assert not is_plain_sentence("This has a line\nbreak in it.")


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("この数列の次の数は25です。", True),
        ("二十五です。", False),  # too short
        ("この数列の次の数は25です", False),  # no end
        ("この数列の次の数は25です。間違いありません。", False),
        ("จำนวนถัดไปในลำดับนี้คือ 25", True),  # Thai sentences end with no mark
        ("คือ 25", False),
        ("จำนวนถัดไปในลำดับนี้คือ:", False),
        ("이 수열에서 다음에 올 수는 25입니다.", True),
        ("العدد التالي في المتتالية هو 25.", True),
        ("هو 25.", False),
    ],
)
def test_a_plain_sentence_is_long_enough_in_every_script(response: str, expected: bool) -> None:
    assert is_plain_sentence(response) is expected


def test_half_the_constraints_give_half_the_form() -> None:
    item = next(item for item in load_items("lookup", "es", "train") if len(item.constraints) == 2)
    kinds = {entry.kind for entry in item.constraints}
    response = item.sentence.upper() if "upper_case" in kinds else item.sentence
    verdict = score_answer(item, response)
    assert verdict.form == sum(verdict.constraints_followed) / 2


def test_the_wrong_language_is_seen_exactly_where_the_parallel_answer_comes() -> None:
    item = first("lookup", "weekday_after", "de")
    assert is_wrong_language(item, item.other_answers["es"]) is True
    assert is_wrong_language(item, item.other_answers["fr"].upper()) is True
    assert is_wrong_language(item, item.sentence) is False
    assert is_wrong_language(item, "Dienstag") is None
    assert is_wrong_language(item, "I am afraid that I do not know the answer to this.") is True
    assert is_wrong_language(item, "Leider kenne ich die Antwort auf diese Frage nicht.") is False


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_answer_in_the_right_language_is_hardly_ever_called_a_wrong_language(family: str) -> None:
    for language in LANGUAGES:
        items = load_items(family, language, "report")
        wrong = [
            is_wrong_language(item, other.sentence) is True
            for item, other in zip(items, items[5:], strict=False)
        ]
        assert sum(wrong) / len(wrong) < 0.02, language


def test_short_text_has_no_language() -> None:
    identifier = LanguageIdentifier(["en", "de"])
    assert identifier.identify("x" * (MINIMUM_LETTERS - 1)) is None
    assert identifier.identify("12345 67890 12345 67890 12345") is None
    assert identifier.identify("Das ist ein ganz gewöhnlicher Satz auf Deutsch.") == "de"
    assert identifier.identify("THIS IS AN ORDINARY ENGLISH SENTENCE IN CAPITALS.") == "en"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("火曜日です。", "ja"),
        ("수요일입니다.", "ko"),
        ("วันพุธวันศุกร์", "th"),
        ("هو يوم الثلاثاء.", "ar"),
        ("Это среда.", "ru"),
        ("الناتج هو 12 km", "ar"),
        ("Dienstag", None),
        ("火曜", None),
    ],
)
def test_a_script_of_one_language_tells_it_also_in_short_text(text: str, language: str | None) -> None:
    assert LanguageIdentifier(LANGUAGES).identify(text) == language


def test_a_script_of_two_languages_tells_nothing_about_short_text() -> None:
    assert LanguageIdentifier(["ru", "uk"]).identify("Это среда.") is None
    assert LanguageIdentifier(["ja", "zh"]).identify("次是火曜日") is None
    assert LanguageIdentifier(["ja", "zh"]).identify("つぎはスイス") == "ja"


def test_a_parallel_answer_in_a_form_of_its_own_is_the_wrong_language() -> None:
    for language in LANGUAGES:
        items = load_items("lookup", language, "report")[:40]
        for other in LANGUAGES:
            parallels = load_items("lookup", other, "report")[:40]
            for item, parallel in zip(items, parallels, strict=True):
                assert is_wrong_language(item, parallel.example.answer) is (other != language)


@pytest.mark.parametrize("languages", [[], ["en", "dee"]])
def test_an_unknown_language_cannot_be_identified(languages: list[str]) -> None:
    with pytest.raises(DataError):
        LanguageIdentifier(languages)
