"""One word per idea: the glossary's last column stands nowhere else, in source, pages and study files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"


def retired_words() -> list[str]:
    """Return what the tables with a column `not` hold in it."""
    found = []
    rows = [line.strip("|").split("|") for line in GLOSSARY.read_text(encoding="utf-8").splitlines()]
    for cells in rows:
        if len(cells) == 3 and (word := cells[2].strip()) and word not in ("not", "---"):
            found.append(word)
    return found


def pattern_of(word: str) -> re.Pattern[str]:
    """Return what finds a word, its plural, and it as a part of a name: `frozen_cells`, `_told`, `Manner`."""
    parts = r"[ _]".join(map(re.escape, word.removesuffix("s").split()))
    return re.compile(rf"(?<![A-Za-z]){parts}s?(?![a-z])", re.IGNORECASE)


def searched_files() -> list[Path]:
    folders = {"src": ("*.py", "*.html", "*.yaml"), "docs": ("*.md",), "recipes": ("*.yaml",)}
    found = [
        path for folder, kinds in folders.items() for kind in kinds for path in (ROOT / folder).rglob(kind)
    ]
    return sorted({*found, ROOT / "README.md", ROOT / "CONTRIBUTING.md"} - {GLOSSARY})


def test_the_glossary_names_retired_words() -> None:
    assert {"cure", "told", "frozen cells", "smallest visible"} <= set(retired_words())


@pytest.mark.parametrize("text", ["frozen_cells", "_told", "Manner", "worked example", "frozen cell,"])
def test_a_retired_word_is_found_in_names_as_well(text: str) -> None:
    assert any(pattern_of(word).search(text) for word in retired_words())


@pytest.mark.parametrize("text", ["secure", "manners_of", "obscured", "toldot", "frozen mask"])
def test_a_word_that_holds_a_retired_one_is_free(text: str) -> None:
    assert not any(pattern_of(word).search(text) for word in retired_words() if word != "manner")


@pytest.mark.parametrize("word", retired_words())
def test_no_retired_word_stands_in_source_or_docs(word: str) -> None:
    pattern = pattern_of(word)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in searched_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"write the glossary's word for {word!r}:\n" + "\n".join(found)
