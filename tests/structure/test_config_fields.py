"""No option is validated and then read by nothing."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

from lingraft.config import schema
from lingraft.config.schema import Section, Training, TrainingOverrides

PACKAGE = Path(schema.__file__).resolve().parents[1]
SECTIONS = [
    section
    for _, section in inspect.getmembers(schema, inspect.isclass)
    if issubclass(section, Section) and section is not Section
]
FIELDS = [(section, field) for section in SECTIONS for field in section.model_fields]


@cache
def attributes_read() -> frozenset[str]:
    """Return every `x` of an expression `something.x` that the package reads, the schema left out.

    A call such as `text.split(",")` reads no field: fields are values, methods of the same name do not count.
    """
    read = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == Path(schema.__file__).resolve():
            continue
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in called:
                read.add(node.attr)
    return frozenset(read)


@pytest.mark.parametrize(("section", "field"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_of_the_study_file_is_read_by_code(section: type[Section], field: str) -> None:
    assert field in attributes_read(), f"{section.__name__}.{field} is accepted, but no code reads it"


def test_overrides_know_exactly_the_fields_of_training() -> None:
    # apply_to hands them to Training by name, so being read there is being read as an override.
    assert set(TrainingOverrides.model_fields) == set(Training.model_fields)
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert source.count(".apply_to(") >= 1


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_of_the_study_file_says_what_it_means(section: type[Section]) -> None:
    undescribed = [name for name, field in section.model_fields.items() if not field.description]
    assert not undescribed


@pytest.mark.parametrize(("section", "field"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_of_the_study_file_is_in_its_documentation(section: type[Section], field: str) -> None:
    if section.__name__ in ("StrategySpec", "StrategyChoice", "TrainingOverrides"):
        return  # not written as such in the file; the page explains their short form
    page = (PACKAGE.parents[1] / "docs" / "study_file.md").read_text(encoding="utf-8")
    meaning = " ".join((section.model_fields[field].description or "").split()).replace("|", "\\|")
    row = re.compile(rf"^\| `{field}` \| [^|]+ \| {re.escape(meaning)} \|$", re.MULTILINE)
    assert row.search(page), f"docs/study_file.md lacks a row: | `{field}` | default | {meaning} |"
