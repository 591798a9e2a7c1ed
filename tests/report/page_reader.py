"""Reads a page as a browser would: what it shows, and what it could run or load."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class ReadPage(HTMLParser):
    """What stands in a page.

    Attributes:
        policy: Its Content-Security-Policy.
        run: Texts of the scripts that a browser runs, and of the styles.
        kept: Types of the scripts that only hold data.
        attributes: All attributes, with the tag.
        texts: What is shown, in order.
        ids: Names of places.
    """

    policy: str = ""
    run: list[tuple[str, str]] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    inside: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in own.items()]
        if own.get("http-equiv") == "Content-Security-Policy":
            self.policy = own["content"]
        if "id" in own:
            self.ids.append(own["id"])
        if tag == "style" or (tag == "script" and not own.get("type")):
            self.inside = tag
            self.run.append((tag, ""))
        elif tag == "script":
            self.inside = "data"
            self.kept.append(own["type"])

    def handle_endtag(self, tag: str) -> None:
        if tag in ("style", "script"):
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside in ("style", "script"):
            tag, text = self.run.pop()
            self.run.append((tag, text + data))
        elif not self.inside:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """Return what is shown, with one space for white space."""
        return re.sub(r"\s+", " ", "".join(self.texts))


def read_page(html: str) -> ReadPage:
    """Return what stands in a page."""
    page = ReadPage()
    page.feed(html)
    page.close()
    return page


def assert_harmless(html: str) -> ReadPage:
    """Assert that a page runs and loads nothing but what its policy names; return it."""
    page = read_page(html)
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    assert rules["default-src"] == "'none'"
    for tag, text in page.run:
        digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules[f"{tag}-src"], text[:200]
    assert rules["script-src"].count("'") == 2 * rules["script-src"].count("'sha256-")
    assert rules["style-src"].count("'") == 2 * rules["style-src"].count("'sha256-")
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name, value)
        assert name != "style", (tag, name, value)
        if name in ("src", "href", "action", "data", "srcset", "poster", "xlink:href"):
            assert value.startswith("#"), (tag, name, value)
    assert len(set(page.ids)) == len(page.ids)
    assert {one for one in page.kept if "javascript" in one or one == "module"} == set()
    return page
