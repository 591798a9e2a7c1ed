"""Names of parts of the corpus, as study files write them."""

from __future__ import annotations

import pytest

from lingraft.data.worldbook import load_examples, load_items, parse_source
from lingraft.errors import DataError


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("worldbook:lookup/en", ("lookup", ("en",), "train")),
        ("worldbook:lookup/de,es,fr", ("lookup", ("de", "es", "fr"), "train")),
        ("worldbook:counting/fr, de#report", ("counting", ("fr", "de"), "report")),
        ("worldbook:counting/en#selection", ("counting", ("en",), "selection")),
    ],
)
def test_a_source_names_family_languages_and_split(
    source: str, expected: tuple[str, tuple[str, ...], str]
) -> None:
    assert parse_source(source) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("worldbook:lookpu/en", "Did you mean 'lookup'"),
        ("worldbook:lookup/dee", "Did you mean 'de'"),
        ("worldbook:lookup/en#reports", "Did you mean 'report'"),
        ("worldbook:lookup/en,en", "twice"),
        ("worldbook:lookup", "Write"),
        ("worldbook:lookup/en#", "Write"),
        ("lookup/en", "Write"),
    ],
)
def test_a_wrong_source_is_refused_with_the_source_and_a_hint(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse_source(source)
    assert source in str(caught.value)


def test_languages_of_a_source_alternate_within_each_group() -> None:
    examples = load_examples("worldbook:lookup/de,es,fr")
    assert [example.language for example in examples[:6]] == ["de", "es", "fr"] * 2
    assert len({example.group for example in examples[:3]}) == 1
    assert len(examples) == 3 * len(load_items("lookup", "de", "train"))
    assert len({example.id for example in examples}) == len(examples)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lookups", "en", "train"), "lookup"),
        (("lookup", "dk", "train"), "Did you mean 'de'|Options"),
        (("lookup", "en", "test"), "Options"),
    ],
)
def test_unknown_names_are_refused_with_a_hint(arguments: tuple[str, str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_items(*arguments)
