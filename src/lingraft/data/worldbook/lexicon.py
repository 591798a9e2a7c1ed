"""Words of one language from Unicode CLDR (babel) and num2words: what the tasks of worldbook are filled with.

What is missing there, or has a form that is wrong inside a sentence, stands in corrections.yaml. Only the `format`
context of day and month names is read: stand-alone names of some languages change once Japanese or Korean have been
loaded, and a corpus may not depend on what was loaded before it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from babel import Locale
from babel.dates import format_skeleton
from babel.languages import get_official_languages
from babel.lists import format_list
from babel.numbers import format_currency
from babel.units import format_unit
from num2words import num2words

# SI symbol in the question -> CLDR unit. Minutes are missing: their plural is the same word in English and French.
UNITS = {
    "m": "length-meter",
    "km": "length-kilometer",
    "cm": "length-centimeter",
    "kg": "mass-kilogram",
    "g": "mass-gram",
    "l": "volume-liter",
    "h": "duration-hour",
    "s": "duration-second",
}
CURRENCIES = (
    "USD",
    "GBP",
    "JPY",
    "CHF",
    "INR",
    "MXN",
    "SEK",
    "CAD",
)  # the euro has one name in three languages
COUNTRIES = (
    "DE", "FR", "ES", "IT", "PT", "PL", "RU", "JP", "CN", "SE", "DK", "FI", "GR", "HU", "RO", "BG",
    "CZ", "NL", "TR", "UA", "VN", "KR", "EE", "LV", "LT", "SI", "HR", "SK", "AL", "IS",
)  # fmt: skip
LARGEST_NUMBER = 99
CalendarField = Literal["day", "month"]
_CALENDAR = {"day": "weekdays", "month": "months"}  # keys of corrections.yaml
_CASES = {"day": "weekday_cases", "month": "month_cases"}

# CLDR lists German currency adjectives as titles ("Indische Rupien"); within a sentence they are lower case.
_GERMAN_ADJECTIVE = re.compile(r"\b[A-ZÄÖÜ]\w*ische\b")
# In these languages CLDR begins the name of a currency with a capital, which a sentence does not.
_LOWER_CURRENCIES = ("id", "pt", "vi")
_NUM2WORDS = {"pt": "pt_BR"}  # CLDR's `pt` is Brazilian, that of num2words is European ("dezasseis")


@cache
def _corrections() -> Any:
    return yaml.safe_load((files("lingraft.data.worldbook") / "corrections.yaml").read_text(encoding="utf-8"))


def _correction(language: str, *keys: str) -> Any:
    """Return what corrections.yaml holds at the place, or None."""
    value = _corrections()
    for key in (language, *keys):
        value = None if value is None else value.get(key)
    return value


@cache
def calendar_names(field: CalendarField, language: str) -> tuple[str, ...]:
    """Return the day names, Monday first, or the month names, January first, as the subject of a sentence."""
    locale = Locale.parse(language)
    names = (locale.days if field == "day" else locale.months)["format"]["wide"]
    return tuple(_correction(language, _CALENDAR[field]) or (str(names[number]) for number in sorted(names)))


def calendar_cases(field: CalendarField, language: str) -> dict[str, tuple[str, ...]]:
    """Return these names in the further cases that the language's templates ask for, by the case's name."""
    return {case: tuple(names) for case, names in (_correction(language, _CASES[field]) or {}).items()}


def date_in_words(month: int, day: int, language: str) -> str:
    """Return day and month, such as "March 5" or "5. März"; a leap year, so that every date exists."""
    return _plain_spaces(format_skeleton("MMMMd", datetime.date(2024, month, day), locale=language))


@cache
def amount_in_words(count: int, symbol: str, language: str) -> str:
    """Return `count` with the full name of a unit of UNITS, such as "12 kilometers"."""
    corrected = _counted(count, _correction(language, "units", symbol), language)
    return corrected or _closed_up(
        _plain_spaces(format_unit(count, UNITS[symbol], "long", locale=language)), language
    )


@cache
def money_in_words(count: int, currency: str, language: str) -> str:
    """Return `count` with the full name of a currency, such as "12 Japanese yen"."""
    corrected = _counted(count, _correction(language, "currencies", currency), language)
    if corrected:
        return corrected
    text = _plain_spaces(
        format_currency(
            count,
            currency,
            locale=language,
            format_type="name",
            currency_digits=False,
            decimal_quantization=False,
        )
    )
    if language == "de":
        return _GERMAN_ADJECTIVE.sub(lambda match: match[0].lower(), text)
    if language in _LOWER_CURRENCIES:
        number, _, name = text.partition(" ")
        return f"{number} {name[0].lower()}{name[1:]}"
    return _closed_up(text, language)


def _counted(count: int, patterns: dict[str, str] | None, language: str) -> str | None:
    """Return a corrected amount, by the plural category that CLDR gives to its count."""
    return None if patterns is None else patterns[Locale.parse(language).plural_form(count)].format(count)


def _closed_up(text: str, language: str) -> str:
    """CLDR sets Japanese words apart by spaces, which running text does not have."""
    return text.replace(" ", "") if language == "ja" else text


def country_name(territory: str, language: str) -> str:
    """Return the name of a territory, given by its ISO code."""
    return str(Locale.parse(language).territories[territory])


@cache
def official_language(territory: str, language: str) -> str:
    """Return the name, in `language`, of the first official language of a territory.

    Where the bare name is often the country's own, as in Indonesian and Thai, the word for "language" is part of it.
    """
    tag = get_official_languages(territory)[0]
    name = _correction(language, "languages", territory) or str(Locale.parse(language).languages[tag])
    if language == "vi":  # CLDR lists "Tiếng Đức" as a title
        name = f"{name[0].lower()}{name[1:]}"
    return (_correction(language, "language_pattern") or "{0}").format(name)


@cache
def number_words(language: str) -> tuple[str, ...]:
    """Return the cardinals from 0 to LARGEST_NUMBER as words: in Russian and Arabic as the subject of a sentence."""
    words = (
        num2words(number, lang=_NUM2WORDS.get(language, language)) for number in range(LARGEST_NUMBER + 1)
    )
    # num2words leaves a space after the Arabic "and", which is written onto the next word.
    return tuple(str(word).replace(" و ", " و") for word in words)


def join_words(words: Sequence[str], language: str) -> str:
    """Return the words as CLDR joins a list: "a, b, and c"."""
    joiner = _correction(language, "list_joiner")
    return joiner.join(words) if joiner else _plain_spaces(format_list(list(words), locale=language))


def _plain_spaces(text: str) -> str:
    """No-break spaces become plain ones: answers are compared, and should be typed, with plain spaces."""
    return " ".join(text.split())
