"""Scripts: which write no spaces between words, which languages use them, and the characters of some.

Segmenting text without spaces needs a dictionary, and a figure would depend on its version: it is counted and compared
by characters instead.
"""

from __future__ import annotations

from lingraft.text.language_tags import primary_subtag

UNSPACED_SCRIPTS = ("Han", "Hiragana", "Katakana", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar")
_UNSPACED_LANGUAGES = frozenset({"ja", "zh", "th", "lo", "km", "my", "yue"})

# Characters of scripts, for regular expressions' brackets.
HAN_AND_KANA = "\u3005\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
HANGUL = "\uac00-\ud7a3"
THAI = "\u0e01-\u0e3a\u0e40-\u0e4d"


def writes_spaces(tag: str) -> bool:
    """Return whether a language (BCP-47 tag) sets its words apart by spaces."""
    return primary_subtag(tag) not in _UNSPACED_LANGUAGES
