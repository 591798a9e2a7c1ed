"""Scripts: which write no spaces between words, which languages use them, and the characters of some.

Segmenting text without spaces needs a dictionary, and a figure would depend on its version: it is counted and compared
by characters instead.
"""

from __future__ import annotations

import unicodedata
from functools import cache

import regex

from lingraft.text.language_tags import primary_subtag

UNSPACED_SCRIPTS = ("Han", "Hiragana", "Katakana", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar")
_UNSPACED_LANGUAGES = frozenset({"ja", "zh", "th", "lo", "km", "my", "yue"})

# Characters of scripts, for regular expressions' brackets.
HAN_AND_KANA = "\u3005\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
HANGUL = "\uac00-\ud7a3"
THAI = "\u0e01-\u0e3a\u0e40-\u0e4d"

# Unicode's scripts of ISO 15924's that are several or parts of one.
_PARTS = {
    "Hans": ("Hani", "Bopo"),
    "Hant": ("Hani", "Bopo"),
    "Jpan": ("Hani", "Hira", "Kana"),
    "Kore": ("Hang", "Hani"),
}
# Languages that are much written in other scripts than the one that CLDR finds most likely.
_ALSO_IN = {
    "az": ("Arab", "Cyrl"), "bs": ("Cyrl",), "kk": ("Arab", "Latn"), "ku": ("Arab",), "ms": ("Arab",), "pa": ("Arab",),
    "sd": ("Deva",), "sr": ("Latn",), "tt": ("Latn",), "tk": ("Cyrl",), "ug": ("Cyrl", "Latn"), "uz": ("Cyrl",),
}  # fmt: skip
# As Unicode's names of characters begin, where a reader would not know it.
_SCRIPT_NAMES = {
    "CJK": "Chinese characters",
    "HANGUL": "Korean",
    "COMBINING": "accents",
    "symbols": "symbols",
}
_LETTER = regex.compile(r"\p{L}")


def writes_spaces(tag: str) -> bool:
    """Return whether a language (BCP-47 tag) sets its words apart by spaces."""
    return primary_subtag(tag) not in _UNSPACED_LANGUAGES


def is_in_usual_script(tag: str) -> bool:
    """Return whether a language (BCP-47 tag) is said to be in its most likely script: zh and ru are, ru-Latn is not."""
    return _script(tag) == _script(primary_subtag(tag))


def share_in_script(text: str, tag: str) -> float | None:
    """Return the share of a text's letters that are of a language's script, in [0, 1]; None: it has no letter.

    Args:
        text: The text.
        tag: BCP-47 tag; one that names a script (sr-Latn) is in this one, else the likely one of CLDR and those that
            it is much written in besides.
    """
    letters = _LETTER.findall(text)
    return len(_letters_of(tag).findall(text)) / len(letters) if letters else None


def script_name(character: str) -> str:
    """Return what a character's script is called, such as Thai; of digits, punctuation and pictures `symbols`."""
    if unicodedata.category(character)[0] not in "LM":
        return "symbols"
    name = unicodedata.name(character, "symbols").split()[0].split("-")[0]
    return _SCRIPT_NAMES.get(name, name.capitalize())


def _script(tag: str) -> str:
    from langcodes import Language

    return str(Language.get(tag).maximize().script)


@cache
def _letters_of(tag: str) -> regex.Pattern[str]:
    usual = _script(tag)
    others = _ALSO_IN.get(primary_subtag(tag), ()) if is_in_usual_script(tag) else ()
    scripts = [part for one in (usual, *others) for part in _PARTS.get(one, (one,))]
    return regex.compile("(?V1)[[" + "".join(rf"\p{{sc={one}}}" for one in scripts) + r"]&&[\p{L}]]")
