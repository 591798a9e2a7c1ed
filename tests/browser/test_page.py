"""The page of the quickstart's run in Chromium, as its readers use it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

OpenPage = Callable[..., "Page"]


def test_opened_from_a_file_it_asks_for_nothing_and_has_no_error(
    open_page: OpenPage, quickstart_page: Path
) -> None:
    page = open_page(quickstart_page)
    assert "quickstart" in page.title()
    page.wait_for_load_state("networkidle")
    for place in range(0, page.evaluate("document.documentElement.scrollHeight"), 700):
        page.evaluate(f"scrollTo(0, {place})")  # figures come alive when they are near
        page.wait_for_timeout(20)
