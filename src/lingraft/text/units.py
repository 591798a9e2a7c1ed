"""The units in which a text is scored: words, and characters or syllables in scripts that write no spaces.

Lowest part of text scoring: `summarisation` and `question_answering` compare units, never raw text. What a unit is
depends on the script of each character, not on the language, so that an English name in a Thai answer stays a word.
"""

from __future__ import annotations

import unicodedata

import regex

from lingraft.text.language_tags import canonical_tag

# They write no spaces between words; segmenting them needs a dictionary, and a score would depend on its version.
UNSPACED_SCRIPTS = ("Han", "Hiragana", "Katakana", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar")

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
_NEXT_TO_KANA = "\u30fc\u3006"  # ー and 〆, which Unicode counts to no script
_UNSPACED = (
    "[[" + "".join(rf"\p{{sc={one}}}" for one in UNSPACED_SCRIPTS) + _NEXT_TO_KANA + r"]&&[\p{L}\p{M}\p{N}]]"
)
# A consonant with its marks and the vowels that are written before and after it, which Unicode counts as up to three
# characters. Single ones recur by chance: for telling a Thai summary's article from others they serve worse.
_THAI = r"[\u0E40-\u0E44]?[\u0E01-\u0E2E]\p{M}*[\u0E30\u0E32\u0E33\u0E45]?"
_LAO = r"[\u0EC0-\u0EC4]?[\u0E81-\u0EAE\u0EDC-\u0EDF]\p{M}*[\u0EB0\u0EB2\u0EB3]?"
_UNIT = regex.compile(rf"(?V1){_THAI}|{_LAO}|(?={_UNSPACED})\X|[[\p{{L}}\p{{M}}\p{{N}}]--{_UNSPACED}]+")
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


def fold(text: str, language: str) -> str:
    """Return a text in the one spelling that stands for all that a reader takes for the same.

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
    text = _FOREIGN_DIGIT.sub(lambda found: _ascii_digit(found[0]), text)
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def _ascii_digit(character: str) -> str:
    """Return a digit as 0-9; one that is newer than Python's own tables stays as it is."""
    value = unicodedata.decimal(character, None)
    return character if value is None else str(value)


def units(folded: str) -> list[str]:
    """Return the units of a folded text in their order.

    Runs of letters, marks and digits are words, whatever separates them; in `UNSPACED_SCRIPTS` each character with
    its marks (grapheme cluster of Unicode annex 29) is a unit, in Thai and Lao each consonant with its marks and
    vowels. Korean words and Vietnamese syllables stand between spaces, so they are runs. Punctuation and symbols are
    in no unit.
    """
    found: list[str] = _UNIT.findall(folded)
    return found


def primary_language(language: str) -> str:
    """Return the first part of a language's canonical tag: pt of pt-BR, por and Portuguese."""
    return (canonical_tag(language) or language).partition("-")[0].lower()
