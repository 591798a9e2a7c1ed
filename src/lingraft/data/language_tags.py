"""A language as data sets write it (es, spa, Spanish, es_MX) to its BCP-47 tag."""

from __future__ import annotations

import re
from functools import cache

from lingraft.data.row_fields import RowError, shown

_BCP47 = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


def language_tag(written: str, field: str = "language") -> str:
    """Return the BCP-47 tag of a language that is written as a tag, an ISO 639-3 code or an English name.

    A three-letter code becomes the two-letter one where there is one (spa: es); an underscore counts as a hyphen.

    Raises:
        RowError: Neither; the message names `field`.
    """
    tag = written.strip().replace("_", "-")
    if _BCP47.fullmatch(tag) and len(tag.split("-")[0]) <= 3:
        primary, *rest = tag.split("-")
        return "-".join([_two_letters().get(primary.lower(), primary.lower()), *rest])
    found = _by_name().get(tag.lower())
    if found is None:
        raise RowError(
            field,
            f"is {shown(written)}, neither a BCP-47 tag such as es nor an English name such as Spanish; `language:` "
            "in the study overrides it",
        )
    return found


@cache
def _two_letters() -> dict[str, str]:
    from babel.core import get_global

    aliases = get_global("language_aliases")
    return {code: str(tag) for code, tag in aliases.items() if len(code) == 3 and len(str(tag)) == 2}


@cache
def _by_name() -> dict[str, str]:
    from babel import Locale

    names = Locale.parse("en").languages
    return {
        str(name).lower(): str(tag).replace("_", "-") for tag, name in sorted(names.items(), reverse=True)
    }
