"""Folding: texts that are the same for a purpose get one spelling. Each purpose has its own function.

| function | Unicode form | besides case |
| --- | --- | --- |
| `fold_for_scores` | NFC | what a reader of the language takes for the same; punctuation stays |
| `fold_for_overlap` | NFKC | only letters, marks and digits stay |
| `fold_for_duplicates` | NFC | white space is joined |
| `fold_for_worldbook` | NFKC | digits, commas, marks and spaces, in all languages of worldbook alike |

Figures depend on each of them: do not make them one.
"""

from __future__ import annotations

import re
import unicodedata

import regex

from lingraft.text.language_tags import primary_language
from lingraft.text.scripts import HAN_AND_KANA, HANGUL, THAI

_SPACES = re.compile(r"\s+")
# The capital of i has a dot where there is a dotless letter too.
_DOTTED_I = (("İ", "i"), ("I", "\u0131"))
# Arabic keyboards write the Arabic kaf and yeh in Persian and Urdu; hazm's normaliser of Persian maps them, too.
_KAF_AND_YEH = (("\u0643", "\u06a9"), ("\u064a", "\u06cc"))
_OWN_LETTERS = {
    "fa": _KAF_AND_YEH,
    "ur": _KAF_AND_YEH,
    "tr": _DOTTED_I,
    "az": _DOTTED_I,
    "ru": (("ё", "е"), ("Ё", "е")),  # noqa: RUF001
}
# Ligatures, half-width kana, full-width Latin and digits, Arabic letters in the shape that their place gave them.
_PRESENTATION_FORMS = regex.compile(r"[\uFB00-\uFDFF\uFE70-\uFEFE\uFF00-\uFFEF]+")
# As in Ukrainian and Uzbek, where an ordinary apostrophe is typed as often.
_LETTER_APOSTROPHE = regex.compile(r"[\u02BB\u02BC]")
_ZERO_WIDTH_SPACE = "\u200b"
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")
# Vowel signs, which Arabic may write or leave out, and the dash that only widens a word.
_OPTIONAL_ARABIC = regex.compile(r"[\u0610-\u061A\u0640\u064B-\u0652\u0670\u06D6-\u06DC\u06DF-\u06ED]")
# Thai vowels typed in pieces that look like one letter: am as a ring and aa, with a tone on either side; ae as e twice.
_AM_IN_PIECES = regex.compile(r"([\u0E48-\u0E4B]?)\u0E4D([\u0E48-\u0E4B]?)\u0E32")
_AE_IN_PIECES = "\u0e40\u0e40"
_FOREIGN_DIGIT = regex.compile(r"(?V1)[\p{Nd}--0-9]")


# Vowel signs and the lengthening stroke of Arabic; zero-width and direction marks.
_WORLDBOOK_INVISIBLE = re.compile(
    "[\u0640\u064b-\u0652\u0656-\u065f\u0670\u061c\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)
_COMMA = re.compile(r"\s*[,\u060c\u3001\uff64]\s*")
_DIGIT = re.compile(r"[^\D0-9]")
# Spaces that a writer may put or leave out: beside digits in Japanese, Korean and Thai, and within Japanese.
_OPTIONAL_SPACE = re.compile(
    rf"(?<=\d) (?=[{HAN_AND_KANA}{HANGUL}{THAI}])|(?<=[{HAN_AND_KANA}{HANGUL}{THAI}]) (?=\d)"
    rf"|(?<=[{HAN_AND_KANA}]) (?=[{HAN_AND_KANA}])"
)


class _OnlyWords(dict[int, int]):
    """A translation table: letters, digits and marks stay, all else becomes a space; filled as it is used."""

    def __missing__(self, code: int) -> int:
        self[code] = code if unicodedata.category(chr(code))[0] in "LMN" else ord(" ")
        return self[code]


_ONLY_WORDS = _OnlyWords()


def fold_for_scores(text: str, language: str) -> str:
    """Return a text in the one spelling that stands for all that a reader takes for the same: answers are scored by it.

    Canonically composed (NFC); presentation forms and widths as plain letters; case folded, in Turkish and Azerbaijani
    by their own rule; decimal digits of every script as 0-9; Arabic without vowel signs and lengthening dash; Persian
    and Urdu with their own kaf and yeh; Russian without the dots of ё; Thai vowels in one piece; apostrophes that count
    as letters as apostrophes; without characters that are not seen (a zero-width space becomes a space). Folding twice
    changes nothing more.

    Args:
        text: As a model or a data set wrote it.
        language: BCP-47 tag; it decides on Turkish and Azerbaijani case, on ё, and on Persian and Urdu letters.
    """
    text = _PRESENTATION_FORMS.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    text = _INVISIBLE.sub("", text.replace(_ZERO_WIDTH_SPACE, " "))
    text = _LETTER_APOSTROPHE.sub("'", text)
    text = unicodedata.normalize("NFC", _OPTIONAL_ARABIC.sub("", text))
    for letter, taken_for in _OWN_LETTERS.get(primary_language(language), ()):
        text = text.replace(letter, taken_for)
    text = _AM_IN_PIECES.sub("\\1\\2\u0e33", text).replace(_AE_IN_PIECES, "\u0e41")
    # A digit that is newer than Python's own tables stays as it is.
    text = _FOREIGN_DIGIT.sub(lambda found: str(unicodedata.decimal(found[0], found[0])), text)
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def fold_for_overlap(text: str) -> str:
    """Return a text as contamination compares it: runs of anything but letters, marks and digits are one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_ONLY_WORDS).split())


def fold_for_duplicates(text: str) -> str:
    """Return a text as the near-duplicate filter compares it: `composed`, and case folded."""
    return composed(text).casefold()


def composed(text: str) -> str:
    """Return a text with its characters composed (NFC) and every run of white space as one space; none at the ends."""
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text)).strip()


def fold_for_worldbook(text: str) -> str:
    """Return a text in the one spelling in which contents of worldbook are compared, whatever its language.

    Unicode NFKC (so full-width forms are plain ones), case folded, digits of any script as 0-9, without Arabic vowel
    signs and lengthening strokes and without invisible marks, Russian ё without its dots, every comma as ", ", one kind
    of space, and none where it is optional.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = _WORLDBOOK_INVISIBLE.sub("", text).replace("\u0451", "\u0435")
    text = _DIGIT.sub(lambda match: str(unicodedata.digit(match[0])), text)
    text = " ".join(_COMMA.sub(", ", text).split())
    return _OPTIONAL_SPACE.sub("", text)
