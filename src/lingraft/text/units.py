"""The units in which a text is scored: words, and characters or syllables in scripts that write no spaces.

Lowest part of text scoring: `evaluate.tasks` compares units, never raw text. What a unit is depends on the
script of each character, not on the language, so that an English name in a Thai answer stays a word.
"""

from __future__ import annotations

import regex

from lingraft.text.scripts import UNSPACED_SCRIPTS

_NEXT_TO_KANA = "\u30fc\u3006"  # ー and 〆, which Unicode counts to no script
_UNSPACED = (
    "[[" + "".join(rf"\p{{sc={one}}}" for one in UNSPACED_SCRIPTS) + _NEXT_TO_KANA + r"]&&[\p{L}\p{M}\p{N}]]"
)
# A consonant with its marks and the vowels that are written before and after it, which Unicode counts as up to three
# characters. Single ones recur by chance: for telling a Thai summary's article from others they serve worse.
_THAI = r"[\u0E40-\u0E44]?[\u0E01-\u0E2E]\p{M}*[\u0E30\u0E32\u0E33\u0E45]?"
_LAO = r"[\u0EC0-\u0EC4]?[\u0E81-\u0EAE\u0EDC-\u0EDF]\p{M}*[\u0EB0\u0EB2\u0EB3]?"
_UNIT = regex.compile(rf"(?V1){_THAI}|{_LAO}|(?={_UNSPACED})\X|[[\p{{L}}\p{{M}}\p{{N}}]--{_UNSPACED}]+")


def units(folded: str) -> list[str]:
    """Return the units of a folded text in their order.

    Runs of letters, marks and digits are words, whatever separates them; in `UNSPACED_SCRIPTS` each character with
    its marks (grapheme cluster of Unicode annex 29) is a unit, in Thai and Lao each consonant with its marks and
    vowels. Korean words and Vietnamese syllables stand between spaces, so they are runs. Punctuation and symbols are
    in no unit.
    """
    found: list[str] = _UNIT.findall(folded)
    return found
