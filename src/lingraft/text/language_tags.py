"""The one home of language tags: tags, old tags, three-letter codes and English names become canonical BCP-47 tags.

Lowest layer, beside the errors. Data come from Unicode CLDR (babel) and the IANA registry (langcodes).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

ENGLISH = "en"
_SHORT_CODE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_NO_LANGUAGE = ("und", "mul", "mis", "zxx")  # undetermined (CLDR finds English likely), several, none
_IN_PARENTHESES = re.compile(r"(.+?)\s*\(([^()]+)\)")


@cache
def canonical_tag(text: str) -> str | None:
    """Return the canonical BCP-47 tag of a language as people and data sets write it; None: it is not known.

    The case of a tag and an underscore do not matter (PT_br: pt-BR); three-letter codes become the two-letter one
    where there is one (por: pt), old tags the new one (iw: he), and the code of the variety that a language is mostly
    written in that language's (arb, Standard Arabic: ar). A script that goes without saying is dropped (deu_Latn: de);
    other scripts and regions stay. What is no tag is an English name of CLDR or of ISO 639-3 in any case (Iranian
    Persian: fa), with a territory in parentheses (Portuguese (Brazil): pt-BR).

    Args:
        text: A tag or a name; where it could be both (Mon), it is a tag.
    """
    written = " ".join(text.replace("_", "-").split())
    return _of_tag(written) or _of_name(written.casefold())


def tag_as_written(text: str) -> str | None:
    """Return the tag of a language as `canonical_tag`, or a code of the user's own; None: it is neither."""
    primary, separator, rest = text.strip().replace("_", "-").partition("-")
    own = f"{primary.lower()}{separator}{rest}"
    return canonical_tag(text) or (own if _SHORT_CODE.fullmatch(own) else None)


def _of_tag(written: str) -> str | None:
    from babel.core import get_global
    from langcodes import standardize_tag, tag_is_valid

    if not _TAG.fullmatch(written) or not tag_is_valid(written):
        return None
    primary, *rest = standardize_tag(written).split("-")
    # CLDR's other codes of languages; those of two letters that the registry keeps (tl, tw) as well.
    current = str(get_global("language_aliases").get(primary, primary)).replace("_", "-")
    return str(standardize_tag("-".join([current, *rest])))


@cache
def nearest_language(tag: str, available: Iterable[str]) -> str | None:
    """Return which of some languages a language is, as written there; None: none of them is the same language.

    The same tag goes first, then one that differs in nothing but the script or region that goes without saying (zh-TW
    and zh-Hant, zh and zh-Hans), then the one that has most of its parts (of zh-HK: zh-Hant, then zh). Another language
    is never taken, however near: nothing stands for gl but gl.

    Args:
        tag: A language, written in any way that `canonical_tag` knows.
        available: Tags to choose from, such as a scorer's languages; hashable, as a tuple is.
    """
    from langcodes import tag_distance

    wanted = canonical_tag(tag)
    if wanted is None or primary_subtag(wanted) in _NO_LANGUAGE:
        return None
    known = {canonical_tag(one) or one: one for one in reversed([*available])}
    if wanted in known:
        return known[wanted]
    likely = _with_likely_parts(wanted)
    same = [one for form, one in known.items() if _with_likely_parts(form) == likely]
    parts = likely.split("-")
    shorter = ("-".join(parts[:kept]) for kept in range(len(parts) - 1, 0, -1))
    # CLDR takes some tags for one language under two codes: no and nb.
    other_codes = [one for form, one in known.items() if tag_distance(form, wanted) <= 1]
    return next(iter([*same, *(known[form] for form in shorter if form in known), *other_codes]), None)


def _with_likely_parts(tag: str) -> str:
    """Return a tag with the script and region that CLDR finds most likely for it: zh is zh-Hans-CN."""
    from langcodes import Language

    return str(Language.get(tag).maximize().to_tag())


def primary_subtag(tag: str) -> str:
    """Return the first part of a BCP-47 tag in lower case: pt of pt-BR."""
    return tag.partition("-")[0].lower()


def primary_language(language: str) -> str:
    """Return the first part of a language's canonical tag: pt of pt-BR, por and Portuguese."""
    return primary_subtag(canonical_tag(language) or language)


def is_english(tag: str) -> bool:
    """Return whether a BCP-47 tag is English, of whatever region: en-GB is no other language than en."""
    return primary_subtag(tag) == ENGLISH


def english_name(tag: str) -> str:
    """Return the English name of a language, of its first part where the whole tag has none; else the tag."""
    from babel import Locale

    names = Locale.parse(ENGLISH).languages
    return str(names.get(tag.replace("-", "_")) or names.get(primary_subtag(tag)) or tag)


def _of_name(name: str) -> str | None:
    """Return the tag of an English name in lower case, also with a territory in parentheses."""
    from babel import Locale

    known = _names()
    first = name.partition(";")[0].strip()  # ISO 639-2 writes "Spanish; Castilian"
    if first in known:
        return known[first]
    divided = _IN_PARENTHESES.fullmatch(first)
    if divided is None:
        return None
    language, part = divided.groups()
    if f"{part} {language}" in known:  # Chinese (Simplified)
        return known[f"{part} {language}"]
    territories = Locale.parse(ENGLISH).territories.items()
    codes = [code for code, territory in territories if str(territory).casefold() == part]
    return _of_tag(f"{known[language]}-{codes[-1]}") if language in known and codes else None


# Names in wide use (FLORES, Aya and NLLB write some of them) that neither CLDR nor ISO 639-3 has.
_FURTHER_NAMES = {
    "eastern panjabi": "pa",
    "eastern punjabi": "pa",
    "farsi": "fa",
    "mandarin": "zh",
    "myanmar": "my",
    "norwegian bokmal": "nb",
    "toba batak": "bbc",
}


@cache
def _names() -> dict[str, str]:
    """Return the tags of English names in lower case; CLDR's go before the registry's."""
    from babel import Locale
    from langcodes.registry_parser import parse_registry

    found = dict(_FURTHER_NAMES)
    entries = [(name, tag) for tag, name in sorted(Locale.parse(ENGLISH).languages.items(), reverse=True)]
    listed = [one for one in parse_registry() if one["Type"] == "language"]
    entries = [*((name, one["Subtag"]) for one in listed for name in one["Description"]), *entries]
    for name, code in entries:
        tag = _of_tag(str(code).replace("_", "-"))
        if tag is not None:
            plain = _IN_PARENTHESES.sub(r"\1", str(name)).casefold()
            found[str(name).casefold()] = tag
            found[plain] = tag if str(name).casefold() == plain or plain not in found else found[plain]
    return found
