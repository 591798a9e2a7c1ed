"""A language as data sets write it (es, spa, Spanish, es_MX) to its BCP-47 tag."""

from __future__ import annotations

import re

from lingraft.data.row_fields import RowError, shown
from lingraft.text.language_tags import canonical_tag

_SHORT_CODE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


def language_tag(written: str, field: str = "language") -> str:
    """Return the BCP-47 tag of a language that is written in any way that `canonical_tag` knows.

    A code that the registry does not know, such as one of the user's own, is taken as it is.

    Raises:
        RowError: Neither tag nor name; the message names `field`.
    """
    found = canonical_tag(written)
    if found is not None:
        return found
    tag = written.strip().replace("_", "-")
    if not _SHORT_CODE.fullmatch(tag):
        raise RowError(
            field,
            f"is {shown(written)}, neither a BCP-47 tag such as es nor an English name such as Spanish; `language:` "
            "in the study overrides it",
        )
    primary, _, rest = tag.partition("-")
    return f"{primary.lower()}-{rest}" if rest else primary.lower()
