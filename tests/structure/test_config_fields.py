"""No option is validated and then read by nothing."""

from __future__ import annotations

import ast
import inspect
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
    """Return every `x` of an expression `something.x` that is read in the package, the schema left out."""
    read = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == Path(schema.__file__).resolve():
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    return frozenset(read)


@pytest.mark.parametrize(("section", "field"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_of_the_study_file_is_read_by_code(section: type[Section], field: str) -> None:
    assert field in attributes_read(), f"{section.__name__}.{field} is accepted, but no code reads it"


def test_overrides_know_exactly_the_fields_of_training() -> None:
    # apply_to hands them to Training by name, so being read there is being read as an override.
    assert set(TrainingOverrides.model_fields) == set(Training.model_fields)
    assert "apply_to" in attributes_read()


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_of_the_study_file_says_what_it_means(section: type[Section]) -> None:
    undescribed = [name for name, field in section.model_fields.items() if not field.description]
    assert not undescribed
