"""The page of the quickstart's run in Chromium, as its readers use it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import pytest
from hostile_run import SCRIPT, hostile_run

from lingraft.cli.main import _run

if TYPE_CHECKING:
    from playwright.sync_api import Page

OpenPage = Callable[..., "Page"]
RESULTS = "#results table"

# The luminance, by WCAG's formula, of the page and of its text: 0 is black, 1 white.
LUMINANCE = """() => {
  const value = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((c) => c / 255)
      .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const own = getComputedStyle(document.body);
  const paper = own.backgroundColor === "rgba(0, 0, 0, 0)"
    ? getComputedStyle(document.documentElement).backgroundColor : own.backgroundColor;
  return {paper: value(paper), ink: value(own.color)};
}"""


def test_opened_from_a_file_it_asks_for_nothing_and_has_no_error(
    open_page: OpenPage, quickstart_page: Path
) -> None:
    page = open_page(quickstart_page)
    assert "quickstart" in page.title()
    policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content") or ""
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    read_through(page)


def read_through(page: Page) -> None:
    """Open all folds and bring each figure into sight, where it comes alive."""
    page.evaluate(
        """async () => {
          document.querySelectorAll("details").forEach((one) => { one.open = true });
          for (const one of document.querySelectorAll("figure")) {
            one.scrollIntoView();
            await new Promise((resolve) => setTimeout(resolve, 60));
          }
        }"""
    )


def test_in_the_dark_the_paper_is_dark_and_the_text_is_light(
    open_page: OpenPage, quickstart_page: Path
) -> None:
    found = {
        scheme: open_page(quickstart_page, color_scheme=scheme).evaluate(LUMINANCE)
        for scheme in ("light", "dark")
    }
    assert found["light"]["ink"] < 0.1 < 0.8 < found["light"]["paper"]
    assert found["dark"]["paper"] < 0.1 < 0.6 < found["dark"]["ink"]


@pytest.mark.parametrize("width", [320, 400])
def test_a_phone_shows_scores_and_does_not_scroll_sideways(
    open_page: OpenPage, quickstart_page: Path, width: int
) -> None:
    page = open_page(quickstart_page, viewport={"width": width, "height": 800})
    read_through(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    score = page.locator(RESULTS).first.get_by_text("0.").first
    score.scroll_into_view_if_needed()
    box = score.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + 30 < width, "the first score's digits are in sight"


def test_printed_it_is_whole(open_page: OpenPage, quickstart_page: Path, tmp_path: Path) -> None:
    if which("pdftotext") is None:
        pytest.skip("a PDF cannot be read: apt install poppler-utils")
    page = open_page(quickstart_page)
    page.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
    shown = page.locator(RESULTS).first.locator("thead th:not(.detail)").all_inner_texts()
    text = subprocess.run(
        ["pdftotext", "-layout", tmp_path / "page.pdf", "-"], capture_output=True, check=True, text=True
    ).stdout
    squeezed = "".join(text.split())
    missing = [title for title in shown if title.strip() and "".join(title.split()) not in squeezed]
    assert not missing


def test_without_scripts_verdict_tables_and_pictures_are_there(
    open_page: OpenPage, quickstart_page: Path
) -> None:
    page = open_page(quickstart_page, java_script_enabled=False)
    assert page.locator(RESULTS).first.locator("tbody tr").count() == 6
    assert page.locator("figure svg").first.is_visible()


def test_nothing_of_a_hostile_run_is_more_than_text(open_page: OpenPage, tmp_path: Path) -> None:
    folder = hostile_run(tmp_path / "run")
    assert _run(["report", str(folder)]) == 0
    page = open_page(folder / "report" / "index.html")
    read_through(page)
    assert page.evaluate("window.hostile") is None
    assert page.get_by_text(SCRIPT).count() > 0
    assert page.locator("img[src=x], [onerror], [onload], [href^=javascript], [href^=http]").count() == 0
    assert "lingraft" in page.title()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280, (
        "a long word does not widen the page"
    )
