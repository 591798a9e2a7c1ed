"""How languages are written, as far as questions, answers and their judges need to know it.

Two kinds of knowledge: what a language's sentences and lists look like (`writing_of`), and, by script alone, what may
stand beside a word for it to be whole (`phrase_pattern`), which spellings are one (`fold`) and how long a text is
(`count_words`). Nothing here knows of tasks or templates.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

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


# --- one spelling -----------------------------------------------------------------------------------------

_HAN_KANA = "\u3005\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
_HANGUL = "\uac00-\ud7a3"
_THAI = "\u0e01-\u0e3a\u0e40-\u0e4d"

# Vowel signs and the lengthening stroke of Arabic; zero-width and direction marks.
_INVISIBLE = re.compile(
    "[\u0640\u064b-\u0652\u0656-\u065f\u0670\u061c\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)
_COMMA = re.compile(r"\s*[,\u060c\u3001\uff64]\s*")
_DIGIT = re.compile(r"[^\D0-9]")
# Spaces that a writer may put or leave out: beside digits in Japanese, Korean and Thai, and within Japanese.
_OPTIONAL_SPACE = re.compile(
    rf"(?<=\d) (?=[{_HAN_KANA}{_HANGUL}{_THAI}])|(?<=[{_HAN_KANA}{_HANGUL}{_THAI}]) (?=\d)"
    rf"|(?<=[{_HAN_KANA}]) (?=[{_HAN_KANA}])"
)


def fold(text: str) -> str:
    """Return the text in the one spelling in which contents are compared.

    Unicode NFKC (so full-width forms are plain ones), case folded, digits of any script as 0-9, without Arabic vowel
    signs and lengthening strokes and without invisible marks, Russian ё without its dots, every comma as ", ", one kind
    of space, and none where it is optional.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = _INVISIBLE.sub("", text).replace("\u0451", "\u0435")
    text = _DIGIT.sub(lambda match: str(unicodedata.digit(match[0])), text)
    text = " ".join(_COMMA.sub(", ", text).split())
    return _OPTIONAL_SPACE.sub("", text)


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
    # Thai words cannot be told apart without a dictionary; at least no syllable is cut, and short ones stand alone.
    "thai": (r"(?<![\u0e40-\u0e44])", r"(?![\u0e30-\u0e3a\u0e45\u0e47-\u0e4e])"),
    "short thai": (rf"(?:(?<![{_THAI}]){_THAI_BEFORE})", rf"(?:(?![{_THAI}]){_THAI_AFTER})"),
    "other": (r"(?<!\w)", r"(?!\w)"),
    "mark": ("", ""),
}  # fmt: skip
_SCRIPTS = {
    "digit": r"\d",
    "arabic": "[\u0600-\u06ff]",
    "hangul": f"[{_HANGUL}]",
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
_JAPANESE = re.compile(f"[{_HAN_KANA}]")
_THAI_CHARACTER = re.compile(f"[{_THAI}]")


def count_words(text: str) -> int:
    """Return how many words a text has; where none are separated, two Japanese or four Thai characters are one."""
    japanese, thai = len(_JAPANESE.findall(text)), len(_THAI_CHARACTER.findall(text))
    rest = _THAI_CHARACTER.sub(" ", _JAPANESE.sub(" ", text))
    return japanese // _JAPANESE_PER_WORD + thai // _THAI_PER_WORD + len(re.findall(r"\w+", rest))


def ends_without_mark(text: str) -> bool:
    """Return whether the text is a Thai sentence, which ends with no mark but its last word or number."""
    letters = re.findall(rf"{_LETTER}|[{_THAI}]", text)
    return (
        bool(letters)
        and _THAI_CHARACTER.match(letters[-1]) is not None
        and bool(re.search(rf"[\w{_THAI}]\Z", text))
    )
