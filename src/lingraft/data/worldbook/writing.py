"""How languages are written, as far as questions, answers and their judges need to know it.

Two kinds of knowledge: what a language's sentences and lists look like (`writing_of`), and, by script alone, what may
stand beside a word for it to be whole (`phrase_pattern`) and how long a text is (`count_words`). Nothing here knows of
tasks or templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from lingraft.text.scripts import HAN_AND_KANA, HANGUL, THAI

_CASELESS = {"upper_case": "exclamations", "lower_case": "ellipses"}


@dataclass(frozen=True, slots=True)
class Writing:
    """The habits of one language.

    Attributes:
        full_stop: What ends a sentence; empty where nothing does (Thai).
        between_sentences: What stands between two sentences of one line.
        list_separator: What stands between the words of a bare list.
        quotation_marks: What the reference answers are quoted with.
        exclamation: The mark that the reference answers end with where every sentence must.
        realised: Kind of constraint to the kind it becomes in this language, where it has no meaning there: scripts
            without case, and sentences without an end mark.
    """

    full_stop: str = "."
    between_sentences: str = " "
    list_separator: str = ", "
    quotation_marks: tuple[str, str] = ('"', '"')
    exclamation: str = "!"
    realised: Mapping[str, str] = field(default_factory=dict)


_WRITINGS = {
    "ar": Writing(list_separator="، ", realised=_CASELESS),
    "ja": Writing("。", "", "、", ("「", "」"), "\uff01", _CASELESS),
    "ko": Writing(realised=_CASELESS),
    "th": Writing(full_stop="", realised={**_CASELESS, "sentences": "lines"}),
}
_USUAL = Writing()


def writing_of(language: str) -> Writing:
    """Return how a language is written; most have the habits of English."""
    return _WRITINGS.get(language, _USUAL)


# --- whole words ------------------------------------------------------------------------------------------

# What Korean attaches to a noun without a space; a word followed by one of these, and then by no letter, is whole.
_PARTICLES = (
    "은|는|이|가|을|를|의|에|에서|에게|로|으로|와|과|도|만|까지|부터|보다|처럼|이나|나|이며|이고|라고|이라고|라는|이라는|"
    "입니다|이에요|예요|이다|이었습니다|였습니다|인|개"
)
# What Arabic writes onto the front of a word: "and" or "so", then "to", "in" or "like", then the article.
_ARABIC_PREFIXES = (
    r"(?:[\u0648\u0641]?(?:\u0644\u0644|[\u0628\u0643\u0644]?\u0627\u0644|[\u0628\u0643\u0644])?)"
)
# After and before which a short Thai word is taken as whole: is, and, that, with.
_THAI_BEFORE = "".join(f"|(?<={word})" for word in ("คือ", "และ", "ว่า", "กับ"))
_THAI_AFTER = "|(?=และ|กับ|คือ)"
_THAI_SHORT = 5  # characters; a shorter word is found by chance inside others, as นก in ย้อนกลับ
_LETTER = r"[^\W\d_]"

# By script of a phrase's first and last character: what must hold before it and after it.
_BOUNDS = {
    "digit": (r"(?<!\d)", r"(?!\d)"),
    "arabic": (rf"(?<!\w){_ARABIC_PREFIXES}", r"(?!\w)"),
    "hangul": (rf"(?<!{_LETTER})", rf"(?=(?:{_PARTICLES})?(?!{_LETTER}))"),
    # Japanese words end where the kind of character changes; hiragana, mostly grammar, bounds nothing.
    "han": (r"(?<![\u3005\u3400-\u4dbf\u4e00-\u9fff])", r"(?![\u3005\u3400-\u4dbf\u4e00-\u9fff])"),
    "katakana": (r"(?<![\u30a1-\u30fa\u30fc])", r"(?![\u30a1-\u30fa\u30fc])"),
    "hiragana": ("", ""),
    # Thai words cannot be separated without a dictionary; at least no syllable is cut, and short ones stand alone.
    "thai": (r"(?<![\u0e40-\u0e44])", r"(?![\u0e30-\u0e3a\u0e45\u0e47-\u0e4e])"),
    "short thai": (rf"(?:(?<![{THAI}]){_THAI_BEFORE})", rf"(?:(?![{THAI}]){_THAI_AFTER})"),
    "other": (r"(?<!\w)", r"(?!\w)"),
    "mark": ("", ""),
}  # fmt: skip
_SCRIPTS = {
    "digit": r"\d",
    "arabic": "[\u0600-\u06ff]",
    "hangul": f"[{HANGUL}]",
    "han": "[\u3005\u3400-\u4dbf\u4e00-\u9fff]",
    "katakana": "[\u30a1-\u30fa\u30fc]",
    "hiragana": "[\u3041-\u309f]",
    "thai": "[\u0e00-\u0e7f]",
    "other": r"\w",
}


def phrase_pattern(phrase: str) -> str:
    """Return a regular expression that finds a folded phrase as a whole in folded text; its group 1 is the phrase.

    What is whole depends on the script of the phrase's ends: see `_BOUNDS`. Biases: in Thai a phrase is also found
    inside a longer word that starts or ends with it, in Japanese where it ends in hiragana.
    """
    first, last = _script_of(phrase[0]), _script_of(phrase[-1])
    if first == last == "thai" and len(phrase) < _THAI_SHORT:
        first = last = "short thai"
    before, after = _BOUNDS[first][0], _BOUNDS[last][1]
    return f"{before}({re.escape(phrase)}){after}"


def _script_of(character: str) -> str:
    return next((name for name, pattern in _SCRIPTS.items() if re.match(pattern, character)), "mark")


# --- length -----------------------------------------------------------------------------------------------

_JAPANESE_PER_WORD = 2  # characters
_THAI_PER_WORD = 4  # characters, vowel signs and tone marks included
_JAPANESE = re.compile(f"[{HAN_AND_KANA}]")
_THAI_CHARACTER = re.compile(f"[{THAI}]")


def count_words(text: str) -> int:
    """Return how many words a text has; where none are separated, two Japanese or four Thai characters are one."""
    japanese, thai = len(_JAPANESE.findall(text)), len(_THAI_CHARACTER.findall(text))
    rest = _THAI_CHARACTER.sub(" ", _JAPANESE.sub(" ", text))
    return japanese // _JAPANESE_PER_WORD + thai // _THAI_PER_WORD + len(re.findall(r"\w+", rest))


def ends_without_mark(text: str) -> bool:
    """Return whether the text is a Thai sentence, which ends with no mark but its last word or number."""
    letters = re.findall(rf"{_LETTER}|[{THAI}]", text)
    return (
        bool(letters)
        and _THAI_CHARACTER.match(letters[-1]) is not None
        and bool(re.search(rf"[\w{THAI}]\Z", text))
    )
