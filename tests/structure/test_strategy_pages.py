"""Every strategy has its page, which names its options and defaults, and whose examples can be built."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lingraft.config.schema import StrategyChoice
from lingraft.strategies.base import Strategy
from lingraft.strategies.composition import REGISTRY, build, swept

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "strategies"
OPTION = re.compile(r"^\| `(?P<name>\w+)` \| (?P<default>[^|]+) \| .+ \|$", re.MULTILINE)
EXAMPLE = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def options_of(kind: type[Strategy]) -> dict[str, Any]:
    return {
        field.alias or name: field.get_default(call_default_factory=True, validated_data={})
        for name, field in kind.model_fields.items()
    }


def default_in(cell: str) -> Any:
    value = yaml.safe_load(cell.strip().strip("`"))
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("name", list(REGISTRY))
def test_a_strategy_has_a_page_that_is_in_the_navigation_and_in_the_overview(name: str) -> None:
    assert (PAGES / f"{name}.md").is_file()
    assert f"- {name}: strategies/{name}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert f"| [`{name}`]({name}.md) |" in (PAGES / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_is_of_a_strategy_that_there_is(page: Path) -> None:
    assert page.stem in {"index", *REGISTRY}


@pytest.mark.parametrize("name", list(REGISTRY))
def test_a_page_names_exactly_the_options_and_their_defaults(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    written = {row["name"]: default_in(row["default"]) for row in OPTION.finditer(page)}
    assert written == options_of(REGISTRY.get(name))


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_the_examples_of_a_page_can_be_built(page: Path) -> None:
    for example in EXAMPLE.findall(page.read_text(encoding="utf-8")):
        choices = [StrategyChoice.model_validate(one) for one in yaml.safe_load(example)["strategies"]]
        labels = [build(one).label for choice in choices for one in swept(choice)]
        assert len(labels) == len(set(labels)), labels


@pytest.mark.parametrize("name", list(REGISTRY))
def test_a_page_names_what_the_strategy_cannot_be_composed_with(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    others = {other for other in REGISTRY if name in REGISTRY.get(other).conflicts}
    assert not [other for other in others | set(REGISTRY.get(name).conflicts) if f"`{other}`" not in page]
