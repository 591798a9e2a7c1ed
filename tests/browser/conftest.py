"""Report pages in a real browser: Debian's Chromium, driven by Playwright. Where one is missing, tests are skipped.

`quickstart.tar.xz` is the run folder that `lingraft run recipes/quickstart.yaml` made on two cores: results, records
and answers of SmolLM2-135M-Instruct to worldbook's questions; what is missing is weights and tokenizers.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, Request

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_LOADED_ALONE = ("file:", "data:", "blob:")

_REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`refused by the policy: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window; closed with the module, as Playwright's event loop is in the way of others."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the browser's driver is missing: pip install playwright"
    )
    if _CHROMIUM is None:
        pytest.skip("no browser: apt install chromium")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=_CHROMIUM, args=["--disable-gpu", *(["--no-sandbox"] if root else [])]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """A function that opens a file as a reader does, who double-clicks it, or an address; options are those of
    Playwright's contexts.

    Whatever a test does with the page, it fails in the end where the page asked for anything outside of itself, said an
    error or a warning on the console, broke its own policy or opened a dialog.
    """
    contexts: list[BrowserContext] = []
    faults: list[str] = []
    own: list[str] = [*_LOADED_ALONE]

    def request(one: Request) -> None:
        if not one.url.startswith(tuple(own)):
            faults.append(f"asks for {one.url}")

    def console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            faults.append(message.text)

    def dialog(one: Dialog) -> None:
        faults.append(f"opens a dialog: {one.message}")
        one.dismiss()

    def open_it(place: Path | str, anchor: str = "", **options: Any) -> Page:
        address = place if isinstance(place, str) else place.as_uri()
        own.extend([place] if isinstance(place, str) else ())
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"} | options
        )
        contexts.append(context)
        context.set_default_timeout(30_000)
        context.add_init_script(_REPORT_VIOLATIONS)
        context.route(lambda url: not url.startswith(tuple(own)), lambda route: route.abort())
        page = context.new_page()
        page.on("request", request)
        page.on("console", console)
        page.on("pageerror", lambda error: faults.append(f"raises {error}"))
        page.on("dialog", dialog)
        page.goto(address + anchor)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert not faults, faults


@pytest.fixture(scope="module")
def quickstart_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the quickstart's study, as it was made; shared by a module, which does not change it."""
    folder = tmp_path_factory.mktemp("runs")
    with tarfile.open(Path(__file__).with_name("quickstart.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder / "quickstart"


@pytest.fixture(scope="module")
def quickstart_page(quickstart_run: Path) -> Path:
    """Its page, as `lingraft report` writes it."""
    from lingraft.cli.main import _run

    assert _run(["report", str(quickstart_run)]) == 0
    return quickstart_run / "report" / "index.html"
