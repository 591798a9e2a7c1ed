"""The pages describe the JSON of results with the fields that these have."""

from __future__ import annotations

import textwrap
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import pytest

from lingraft.adapt.checked import Checked
from lingraft.study.evaluation import PrintedComparison, PrintedEvaluation
from lingraft.study.result import StudyResult

DOCS = Path(__file__).resolve().parents[2] / "docs"
NAMES = {int: "n", float: "x", str: "text", bool: "true|false", NoneType: "null"}


def described(kind: Any, found: dict[str, str]) -> str:
    """Return a type as the page writes it, and add the objects in it to `found`."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind in NAMES:
        return NAMES[kind]
    if origin is Literal:
        return "|".join(map(repr, inner)).replace("'", '"')
    if origin in (Union, UnionType):
        return "|".join(described(one, found) for one in inner)
    if origin is tuple:
        own = [described(one, found) for one in inner if one is not ...]
        return f"[{', '.join(own)}{', ...' if ... in inner else ''}]"
    if origin is dict:
        return f"{{text: {described(inner[1], found)}}}"
    if isinstance(kind, TypeVar):
        return kind.__name__.removesuffix("_co").upper()
    base: Any = origin or kind
    if not hasattr(base, "__dataclass_fields__"):
        return "any"
    if base.__name__ not in found:
        found[base.__name__] = ""  # in its place, before what is inside
        hints = get_type_hints(base)
        own = [f"{field.name}: {described(hints[field.name], found)}" for field in fields(base)]
        found[base.__name__] = "{" + ", ".join(own) + "}"
    for one in inner:  # of a generic class
        described(one, found)
    return str(base.__name__)


def schema(*kinds: type, known: type | None = None) -> str:
    """Return types as a page writes them, without what stands in the description of `known` on another page."""
    elsewhere: dict[str, str] = {}
    if known is not None:
        described(known, elsewhere)
    found = dict(elsewhere)
    for kind in kinds:
        described(kind, found)
    lines = [f"{name} = {fields_of}" for name, fields_of in found.items() if name not in elsewhere]
    return "\n".join(textwrap.fill(line, 140, subsequent_indent="    ") for line in lines)


@pytest.mark.parametrize(
    ("page", "kinds", "known"),
    [
        ("report.md", [StudyResult], None),
        ("check.md", [Checked], None),
        ("evaluation.md", [PrintedEvaluation, PrintedComparison], StudyResult),
    ],
)
def test_the_page_describes_the_fields_of_a_result_as_they_are(
    page: str, kinds: list[type], known: type | None
) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    first = kinds[0].__name__
    block = text.partition(f"```text\n{first} =")[2].partition("```")[0]
    assert f"{first} ={block}".rstrip("\n") == schema(*kinds, known=known)
