"""Folding and units, on what readers of each script take for the same or for different."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingraft.text.folding import fold_for_scores
from lingraft.text.units import units

LANGUAGES = ("ar", "de", "hi", "ja", "ko", "ru", "th", "tr", "vi")


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("ar", "مُحَمَّد", "محمد"),  # vowel signs
        ("ar", "الســــلام", "السلام"),  # the dash that widens a word
        ("ar", "\ufefb", "لا"),  # a ligature, as in text taken from PDF files
        ("ar", "٣٠٨", "308"),
        ("fa", "۳۰۸", "308"),  # Persian has digits of its own
        ("fa", "\u0643تاب", "\u06a9تاب"),  # kaf as an Arabic keyboard writes it
        ("ur", "\u064aہ", "\u06ccہ"),  # and yeh
        ("th", "๓๐๘", "308"),
        ("th", "นํ้า", "น้ำ"),  # am typed as ring, tone, aa
        ("th", "น้ํา", "น้ำ"),  # as tone, ring, aa
        ("th", "เเม่", "แม่"),  # ae typed as e twice
        ("th", "แมว\u200bกิน", "แมว กิน"),  # the space of no width that some editors put between words
        ("ja", "ﾊﾞｽ", "バス"),  # half-width kana
        ("ja", "ＮＨＫ１０", "nhk10"),
        ("ja", "か\u3099", "が"),  # the voicing mark on its own
        ("ko", unicodedata.normalize("NFD", "한국어"), "한국어"),
        ("hi", "\u0958", "क\u093c"),  # with its dot as one character or two
        ("hi", "१९४७", "1947"),
        ("hi", "क्\u200dष", "क्ष"),  # an invisible joiner
        ("ru", "Ёлка", "елка"),
        ("uk", "здоров\u02bcя", "здоров'я"),
        ("vi", unicodedata.normalize("NFD", "Đường"), "đường"),
        ("de", "STRASSE", "Straße"),
        ("el", "ΛΟΓΟΣ", "λογος"),  # final sigma
        ("tr", "DIYARBAKIR", "dıyarbakır"),
        ("tr", "İZMİR", "izmir"),
        ("fr", "ﬁn", "fin"),
        ("es", "\ufeffLos", "los"),  # a byte order mark, as in XQuAD's first Spanish passage
    ],
)
def test_what_a_reader_takes_for_the_same_is_folded_into_one(language: str, one: str, other: str) -> None:
    assert fold_for_scores(one, language) == fold_for_scores(other, language)


@pytest.mark.parametrize(
    ("language", "one", "other"),
    [
        ("de", "schon", "schön"),
        ("es", "ano", "año"),
        ("vi", "ma", "má"),
        ("vi", "dường", "đường"),
        ("hi", "कि", "की"),
        ("th", "ขาว", "ข้าว"),
        ("ja", "か", "が"),
        ("ar", "سال", "سأل"),  # a letter with hamza is another letter
        ("ru", "и", "й"),
        ("tr", "ısı", "isi"),
        ("en", "I", "ı"),  # a rule of Turkish only
        ("uk", "елка", "ёлка"),  # a rule of Russian only
    ],
)
def test_what_differs_for_a_reader_stays_different(language: str, one: str, other: str) -> None:
    assert fold_for_scores(one, language) != fold_for_scores(other, language)


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("de", "Das »Haus«, 3½-mal!", "das haus 3½ mal"),
        ("en", "don't snake_case U.S.", "don t snake case u s"),
        ("ar", "ذهب الولد، ثم عاد.", "ذهب الولد ثم عاد"),
        ("hi", "क्षत्रिय यहाँ है।", "क्षत्रिय यहाँ है"),
        ("ko", "대한민국은 2019년에", "대한민국은 2019년에"),
        ("ko", "大韓民國은", "大 韓 民 國 은"),
        ("ja", "ラーメンを2杯、NHKで", "ラ ー メ ン を 2 杯 nhk で"),
        ("zh", "纽约时报(NYT)报道", "纽 约 时 报 nyt 报 道"),
        ("th", "น้ำที่นี่ดี", "น้ำ ที่ นี่ ดี"),
        ("th", "ทีม NFL ชนะ", "ที ม nfl ช นะ"),
        ("th", "ประเทศไทย", "ป ระ เท ศ ไท ย"),
        ("th", "ๆ เ ะ", "ๆ เ ะ"),  # pieces of writing that are no syllable
        ("lo", "ປະເທດລາວ", "ປະ ເທ ດ ລາ ວ"),
        ("lo", "ນ້ຳດີ", "ນ້ຳ ດີ"),
        ("my", "မြန်မာ", "မြ န် မ ာ"),
        ("km", "ភាសា", "ភា សា"),
        ("vi", "Đường phố Hà Nội", "đường phố hà nội"),
        ("ru", "Санкт-Петербург", "санкт петербург"),
        ("ru", "😀 — «!»", ""),
    ],
)
def test_a_text_falls_into_words_or_into_characters_by_its_script(
    language: str, text: str, expected: str
) -> None:
    assert units(fold_for_scores(text, language)) == expected.split()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.sampled_from(LANGUAGES))
def test_folding_twice_changes_nothing_more(text: str, language: str) -> None:
    once = fold_for_scores(text, language)
    assert fold_for_scores(once, language) == once


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.sampled_from(LANGUAGES))
def test_units_hold_every_letter_and_digit_and_no_sign(text: str, language: str) -> None:
    folded = fold_for_scores(text, language)
    kept = [character for character in folded if unicodedata.category(character)[0] in "LMN"]
    counted = [character for unit in units(folded) for character in unit]
    # Python's table of categories may be of another Unicode version than regex's: compare what both know.
    known = [character for character in kept if unicodedata.name(character, "")]
    assert [character for character in counted if unicodedata.name(character, "")] == known
