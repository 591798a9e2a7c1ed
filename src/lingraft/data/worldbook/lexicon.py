"""Words of one language from Unicode CLDR (babel) and num2words: what the tasks of worldbook are filled with.

Only the `format` context of day and month names is read: stand-alone names of some languages change once
Japanese or Korean have been loaded, and a corpus may not depend on what was loaded before it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from functools import cache

from babel import Locale
from babel.dates import format_skeleton
from babel.languages import get_official_languages
from babel.lists import format_list
from babel.numbers import format_currency
from babel.units import format_unit
from num2words import num2words

# SI symbol in the question -> CLDR unit. Minutes lack: their plural is the same word in English and French.
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
    "PLN",
)  # the euro has one name in three languages
COUNTRIES = (
    "DE", "FR", "ES", "IT", "PT", "PL", "RU", "JP", "CN", "SE", "DK", "FI", "GR", "HU", "RO", "BG",
    "CZ", "NL", "TR", "UA", "VN", "KR", "EE", "LV", "LT", "SI", "HR", "SK", "AL", "IS",
)  # fmt: skip
LARGEST_NUMBER = 99

# CLDR lists German currency adjectives as titles ("Indische Rupien"); within a sentence they are lower case.
_GERMAN_ADJECTIVE = re.compile(r"\b[A-ZÄÖÜ]\w*ische\b")


@cache
def weekdays(language: str) -> tuple[str, ...]:
    """Return the seven day names, Monday first."""
    names = Locale.parse(language).days["format"]["wide"]
    return tuple(str(names[day]) for day in range(7))


@cache
def months(language: str) -> tuple[str, ...]:
    """Return the twelve month names, January first."""
    names = Locale.parse(language).months["format"]["wide"]
    return tuple(str(names[month]) for month in range(1, 13))


def date_in_words(month: int, day: int, language: str) -> str:
    """Return day and month, such as "March 5" or "5. März"; a leap year, so that every date exists."""
    return _plain_spaces(format_skeleton("MMMMd", datetime.date(2024, month, day), locale=language))


def amount_in_words(count: int, symbol: str, language: str) -> str:
    """Return `count` with the full name of a unit of UNITS, such as "12 kilometers"."""
    return _plain_spaces(format_unit(count, UNITS[symbol], "long", locale=language))


def money_in_words(count: int, currency: str, language: str) -> str:
    """Return `count` with the full name of a currency, such as "12 Japanese yen"."""
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
    return _GERMAN_ADJECTIVE.sub(lambda match: match[0].lower(), text) if language == "de" else text


def country_name(territory: str, language: str) -> str:
    """Return the name of a territory, given by its ISO code."""
    return str(Locale.parse(language).territories[territory])


def official_language(territory: str, language: str) -> str:
    """Return the name, in `language`, of the first official language of a territory."""
    return str(Locale.parse(language).languages[get_official_languages(territory)[0]])


@cache
def number_words(language: str) -> tuple[str, ...]:
    """Return the cardinals from 0 to LARGEST_NUMBER as words."""
    return tuple(str(num2words(number, lang=language)) for number in range(LARGEST_NUMBER + 1))


def join_words(words: Sequence[str], language: str) -> str:
    """Return the words as CLDR joins a list: "a, b, and c"."""
    return _plain_spaces(format_list(list(words), locale=language))


def _plain_spaces(text: str) -> str:
    """No-break spaces become plain ones: answers are compared, and should be typed, with plain spaces."""
    return " ".join(text.split())
