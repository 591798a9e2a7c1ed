"""The page of the quickstart's run in Chromium, as its readers use it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest
from hostile_run import SCRIPT, hostile_run

from lingraft.cli.main import _run

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

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


@pytest.mark.parametrize("state", ["light", "light and unfolded", "dark and unfolded"])
def test_axe_finds_no_serious_fault(open_page: OpenPage, quickstart_page: Path, state: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe-core is missing: pip install axe-playwright-python",
    )
    colours, _, is_unfolded = state.partition(" and ")
    page = open_page(quickstart_page, color_scheme=colours)
    if is_unfolded:
        read_through(page)
    options = {"resultTypes": ["violations"]}
    if colours == "dark":
        options["runOnly"] = ["color-contrast"]  # all else is the same
    found = axe.Axe().run(page, options=options).response["violations"]
    serious = {
        one["id"]: [node["html"][:200] for node in one["nodes"][:4]]
        for one in found
        if one["impact"] in ("serious", "critical")
    }
    assert not serious, serious


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
    if shutil.which("pdftotext") is None:
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
    assert "english_replay on dissimilar" in page.locator("#verdict").inner_text()
    assert page.locator(".answers article").count() > 0


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


def test_figures_come_alive_and_tell_their_values(open_page: OpenPage, quickstart_page: Path) -> None:
    page = open_page(quickstart_page)
    read_through(page)
    figures = page.locator("figure")
    figures.nth(figures.count() - 1).locator(".is-live").wait_for(timeout=20_000)
    assert page.locator("[data-problem]").count() == 0
    assert page.locator("figure .is-live").count() == figures.count()
    trade_off = page.locator("#figure-trade-off .live")
    trade_off.scroll_into_view_if_needed()
    tip = page.locator("#vg-tooltip-element.visible")
    found = ""
    for mark in trade_off.locator("g.mark-symbol > path").all():
        mark.hover(force=True)
        if tip.count():
            found += tip.inner_text()
            page.keyboard.press("Escape")
            assert tip.count() == 0, "it goes without the pointer being moved"
    assert "english_replay" in found
    assert "0.512" in found, "the task ability, as in the table"


@pytest.mark.parametrize("form", ["SVG", "PNG", "PDF", "CSV"])
def test_a_figure_is_saved(open_page: OpenPage, quickstart_page: Path, tmp_path: Path, form: str) -> None:
    page = open_page(quickstart_page)
    content = saved(page, page.locator("#figure-trade-off"), form, tmp_path)
    if form == "CSV":
        rows = list(csv.DictReader(content.decode().splitlines()))
        assert {"plain", "english_replay", "mixed"} <= {row["strategy"] for row in rows if "strategy" in row}
    elif form == "SVG":
        assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
        assert b"currentColor" not in content or b"color=" in content
    else:
        assert content.startswith(b"\x89PNG\r\n" if form == "PNG" else b"%PDF-")
        assert len(content) > 5_000


@pytest.mark.parametrize("form", ["CSV", "LaTeX", "Markdown"])
def test_a_table_is_saved(open_page: OpenPage, quickstart_page: Path, tmp_path: Path, form: str) -> None:
    page = open_page(quickstart_page)
    text = saved(page, page.locator("#table-results"), form, tmp_path).decode()
    if form == "CSV":
        rows = list(csv.DictReader(text.splitlines()))
        assert len(rows) == 6
        value = next(row["retention"] for row in rows if row["strategy"] == "english_replay")
        assert float(value) == pytest.approx(1.163, abs=0.0005)
        assert len(value) > 8, "the exact value, not the one that is shown"
    else:
        assert ("\\toprule" if form == "LaTeX" else "| --- ") in text
        assert "english" in text


def saved(page: Page, place: Locator, form: str, folder: Path) -> bytes:
    """Return the file that a reader saves by a figure's or a table's menu."""
    place.scroll_into_view_if_needed()
    place.get_by_text("Save", exact=True).click()
    with page.expect_download() as download:
        place.get_by_role("button", name=form).click()
    download.value.save_as(folder / "saved")
    return (folder / "saved").read_bytes()


def column(page: Page, table: str, title: str) -> int:
    heads = page.locator(f"#table-{table} thead th")
    titles = [head.strip() for head in heads.all_inner_texts()]
    return titles.index(title)


def figures_in(page: Page, table: str, place: int) -> list[float | None]:
    """Return the figures of a column from top to bottom; None: absent."""
    found = page.evaluate(
        "([table, place]) => [...document.querySelector(`#table-${table} tbody`).rows]"
        ".map((row) => row.cells[place].dataset.value ?? null)",
        [table, place],
    )
    return [None if one is None else float(one) for one in found]


def test_a_table_sorts_by_its_figures_with_mouse_and_keys(open_page: OpenPage, quickstart_page: Path) -> None:
    page = open_page(quickstart_page)
    place = column(page, "results", "retention")
    at_first = figures_in(page, "results", place)
    head = page.locator("#table-results thead th").nth(place)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    known = sorted(one for one in at_first if one is not None)
    absent = [None] * (len(at_first) - len(known))
    assert known
    assert absent
    assert figures_in(page, "results", place) == known + absent
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert figures_in(page, "results", place) == known[::-1] + absent
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") is None
    assert figures_in(page, "results", place) == at_first


def test_columns_of_details_are_folded_until_asked_for(open_page: OpenPage, quickstart_page: Path) -> None:
    page = open_page(quickstart_page)
    table = page.locator("#table-results")
    detail = table.locator("th.detail").first
    assert not detail.is_visible()
    table.get_by_role("button", name="All columns").click()
    assert detail.is_visible()
    assert table.get_by_role("button", name="All columns").get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_rows_are_filtered_by_what_they_say(open_page: OpenPage, quickstart_page: Path) -> None:
    page = open_page(quickstart_page)
    page.evaluate("document.querySelectorAll('details.fold').forEach((one) => { one.open = true })")
    table = page.locator("#table-forgetting-ability-table")
    n = table.locator("tbody tr").count()
    table.get_by_role("searchbox").fill("dissimilar MIXED")
    shown = [row for row in table.locator("tbody tr").all() if row.is_visible()]
    assert 0 < len(shown) < n
    assert all("dissimilar" in row.inner_text() and "mixed" in row.inner_text() for row in shown)
    assert table.get_by_role("status").inner_text() == f"{len(shown)} of {n} rows"
    table.get_by_role("searchbox").fill("")
    assert table.locator("tbody tr:visible").count() == n


def test_a_term_is_explained_on_hover_and_on_focus(open_page: OpenPage, quickstart_page: Path) -> None:
    page = open_page(quickstart_page)
    tip = page.get_by_role("tooltip")
    term = page.locator("#results .term", has_text="etention").first
    term.scroll_into_view_if_needed()
    page.wait_for_timeout(100)  # scrolling hides it
    term.hover()
    assert "after Phase 1" in tip.inner_text()
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    page.mouse.move(0, 0)
    head = page.locator("#table-results thead th").nth(column(page, "results", "gain")).get_by_role("button")
    page.locator("#table-results thead button").nth(column(page, "results", "data")).focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        if head.evaluate("(one) => one === document.activeElement"):
            break
    assert tip.is_visible(), "the heading of a column says what it means when it is reached by keys"
    assert (head.get_attribute("aria-describedby") or "").split()


def test_answers_stand_side_by_side_and_are_filtered(open_page: OpenPage, quickstart_page: Path) -> None:
    from playwright.sync_api import expect

    page = open_page(quickstart_page)
    answers = page.locator(".answers")
    answers.scroll_into_view_if_needed()
    status = answers.get_by_role("status")
    status.wait_for()
    assert answers.locator("article:visible").count() == 5
    answers.get_by_role("combobox", name="Outcome", exact=True).select_option(label="all items")
    assert "152 items" in status.inner_text()
    answers.get_by_role("combobox", name="Language", exact=True).select_option(label="fr")
    prompt, reference = answers.locator("article:visible dd .said").all()[:2]
    assert (prompt.get_attribute("lang"), reference.get_attribute("lang")) == ("fr", "fr")
    answers.get_by_role("combobox", name="Language", exact=True).select_option(label="all")
    answers.get_by_role("combobox", name="Language", exact=True).select_option("de")
    assert "of 24 items" in status.inner_text()
    answers.get_by_role("combobox", name="Task", exact=True).select_option("worldbook:counting")
    answers.get_by_role("combobox", name="Outcome", exact=True).select_option(label="gained")
    for article in answers.locator("article:visible").all():
        assert "worldbook:counting, de" in article.locator("h4").inner_text()
        assert "gained" in article.inner_text()
    answers.get_by_role("button", name="Reset").click()
    answers.get_by_role("searchbox", name="Text").fill("Netherlands")
    expect(status).to_contain_text("of 1 items")
    answers.get_by_role("combobox", name="Outcome", exact=True).select_option(label="wrong language")
    for article in answers.locator("article:visible").all():
        assert "wrong language" in article.inner_text()


def test_keys_reach_what_the_mouse_does(open_page: OpenPage, quickstart_page: Path) -> None:
    page = open_page(quickstart_page)
    reached: list[str] = []
    while len(reached) < 90 and "retention" not in reached[-1:]:
        page.keyboard.press("Tab")
        name, width = page.evaluate(
            "() => { const one = document.activeElement; return ["
            "(one.getAttribute('aria-label') || one.innerText).trim(), one.getBoundingClientRect().width] }"
        )
        assert width > 0, f"{name} has the focus, and is not in sight"
        reached.append(name)
        if name == "Save the table Result":
            page.keyboard.press("Enter")
            assert page.locator(".save[open]").count() == 1
            page.keyboard.press("Escape")
            assert page.locator(".save[open]").count() == 0
    assert reached[0] == "Skip to the results"
    assert {"☾ Dark", "Verdict", "Save the table Result", "All columns (7 more)", "data"} <= set(reached)
    page.keyboard.press("Enter")
    assert page.locator("#table-results th[aria-sort=ascending]").inner_text().strip() == "retention"


def test_an_answer_has_an_address(open_page: OpenPage, quickstart_page: Path) -> None:
    page = open_page(quickstart_page)
    answers = page.locator(".answers")
    answers.scroll_into_view_if_needed()
    answers.get_by_role("button", name="Next").click()
    answers.get_by_role("link", name="Link to").nth(2).click()
    wanted = answers.locator("article.linked").inner_text()
    again = open_page(quickstart_page, page.url.partition("#")[1] + page.url.partition("#")[2])
    linked = again.locator("article.linked")
    assert linked.inner_text() == wanted
    box = linked.bounding_box()
    assert box is not None
    assert -50 < box["y"] < 800


def test_several_runs_stand_on_one_page(open_page: OpenPage, quickstart_run: Path, tmp_path: Path) -> None:
    again = shutil.copytree(quickstart_run, tmp_path / "again")
    path = tmp_path / "both.html"
    assert _run(["report", f"first={quickstart_run}", f"second={again}", "--output", str(path)]) == 0
    page = open_page(path)
    read_through(page)
    text = page.locator("#table-results").inner_text()
    assert "first: dissimilar" in text
    assert "second: dissimilar" in text
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_run_that_is_half_made_says_so(open_page: OpenPage, quickstart_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(quickstart_run, tmp_path / "half")
    result = json.loads((folder / "result.json").read_text())
    for number, status in enumerate(("pending", "failed")):
        cell = result["cells"][number]
        result["cells"][number] = {key: cell[key] for key in ("data", "strategy", "seed", "options")}
        result["cells"][number] |= {"status": status} | ({"reason": "<b>no</b> memory"} if number else {})
    (folder / "result.json").write_text(json.dumps(result))
    for record in sorted(folder.glob("stages/evaluate-*/record.json"))[:2]:
        shutil.rmtree(record.parent)
    assert _run(["report", str(folder)]) == 0
    page = open_page(folder / "report" / "index.html")
    read_through(page)
    text = page.locator("main").inner_text()
    assert "pending" in page.locator("#table-results").inner_text()
    assert "failed" in page.locator("#table-results").inner_text()
    assert "<b>no</b> memory" in text
