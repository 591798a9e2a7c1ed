"""The page of a run that is under way in Chromium, as its readers follow it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lingraft.append_log import AppendLog
from lingraft.config.named import named
from lingraft.records import to_json, write_json_atomically
from lingraft.report import watch
from lingraft.report.watch import serving
from lingraft.stage import StageProgress
from lingraft.study.under_way import LOSSES, UNDER_WAY, FirstAnswer, Holder, StageAtWork, UnderWay
from lingraft.study.unused import read_plan

if TYPE_CHECKING:
    from playwright.sync_api import Page

OpenPage = Callable[..., "Page"]
HOSTILE = "<img src=x onerror=alert(1)> " + "x" * 500 + " \u202eabc"


READ = """() => [...document.querySelectorAll("main > section")]
  .map((one) => [one.id, one.getBoundingClientRect().top]).filter((one) => one[1] <= 1).pop()"""


def at_work(run: Path, **changes: Any) -> None:
    """Let a run folder say that this process is at work on a training, with the answers of an evaluation as well."""
    name = next(name for name in read_plan(run).stages if name.startswith("train"))
    now = time.time()
    answers = (FirstAnswer("lookup (de)", HOSTILE, HOSTILE),) * 3
    stage = StageAtWork(name, now - 9, StageProgress(8, 20, 2.5, 900.0, 33.0), now, answers)
    said = UnderWay(Holder.this(), now - 60, now, (stage,))
    write_json_atomically(run / UNDER_WAY, to_json(replace(said, **changes)))
    losses = ({"step": step, "loss": 3.0 - step / 9} for step in range(1, 9))
    AppendLog(run / "stages" / name / LOSSES, dict).append(losses)


@pytest.fixture
def watched(
    quickstart_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, str]]:
    """A run with some results that is at work on a stage, and the address of its page, which is drawn without pause."""
    monkeypatch.setattr(watch, "_PAGE_SHARE", 1.0)
    run = tmp_path / "quickstart"
    shutil.copytree(quickstart_run, run)
    at_work(run)
    with serving(named(str(run))) as address:
        yield run, address


def test_who_follows_a_run_sees_it_without_serious_faults_on_a_phone_and_in_the_dark(
    open_page: OpenPage, watched: tuple[Path, str]
) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright",
        reason="axe-core is missing: pip install axe-playwright-python",
    )
    page = open_page(watched[1], viewport={"width": 400, "height": 800}, color_scheme="dark")
    page.locator("#live-stage").wait_for()
    assert "is under way" in page.locator("#live-state").inner_text()
    page.evaluate("document.querySelectorAll('#under-way details').forEach(one => { one.open = true })")
    page.locator("#live-stages tbody tr").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.evaluate("document.getElementById('live-news').hidden = false")
    for colours in ("dark", "light"):
        page.emulate_media(color_scheme=colours)
        found = axe.Axe().run(page, context="#under-way", options={"resultTypes": ["violations"]})
        serious = {
            one["id"]: [node["html"][:200] for node in one["nodes"][:4]]
            for one in found.response["violations"]
            if one["impact"] in ("serious", "critical")
        }
        assert not serious, (colours, serious)


def test_new_results_leave_the_reader_at_the_place_and_with_the_folds_that_were_open(
    open_page: OpenPage, watched: tuple[Path, str]
) -> None:
    run, address = watched
    page = open_page(address, "#results")
    page.locator("#live-answers").wait_for()
    for fold in ("#live-answers", "#live-stages"):
        page.locator(f"{fold} summary").click()
    page.locator("#live-stages tbody tr").first.wait_for()
    closed = page.locator("main > section:not(#under-way) details:not(.save):not([open])").first
    title = closed.locator("summary").first.inner_text()
    closed.evaluate("one => { one.open = true; scrollTo(0, one.closest('section').offsetTop + 130) }")
    page.wait_for_timeout(500)
    before, version = page.evaluate(READ), page.locator("#under-way").get_attribute("data-version")
    os.utime(run / "result.json")
    page.get_by_role("button", name="Show them").click(timeout=60_000)  # in sight, wherever the reader is
    page.locator(f"#under-way:not([data-version='{version}'])").wait_for()
    page.wait_for_load_state()
    page.locator("#live-stages tbody tr").first.wait_for()
    page.wait_for_timeout(1000)
    section, top = page.evaluate(READ)
    assert section == before[0]
    assert abs(top - before[1]) < 3
    for one in ("#live-answers", "#live-stages"):
        assert page.locator(one).get_attribute("open") is not None
    again = page.locator("main > section:not(#under-way) details[open]").filter(has_text=title)
    assert again.count() >= 1
    assert page.evaluate("history.scrollRestoration") == "auto"


def test_a_page_that_nobody_touched_opens_anew_by_itself_and_ends_with_the_run(
    open_page: OpenPage, watched: tuple[Path, str]
) -> None:
    run, address = watched
    page = open_page(address)
    page.locator("#live-stage").wait_for()
    page.evaluate("scrollTo(0, 900)")
    version = page.locator("#under-way").get_attribute("data-version")
    at_work(run, at_work=(), ended="done")
    page.locator(f"#under-way:not([data-version='{version}'])").wait_for(timeout=60_000)
    page.get_by_text("The run is done").wait_for()
    assert not page.locator("#live-stage").is_visible()


def test_of_several_stages_at_work_each_has_a_row_and_the_chosen_one_is_shown_in_full(
    open_page: OpenPage, watched: tuple[Path, str]
) -> None:
    run, address = watched
    first, second = [name for name in read_plan(run).stages if name.startswith("train")][:2]
    now = time.time()
    stages = (
        StageAtWork(first, now, StageProgress(8, 20, 2.5), now, (), "node-1", 41, 1),
        StageAtWork(second, now, StageProgress(3, 20, 1.25), now, (), "<b>node-2</b>", 42, 1),
    )
    at_work(run, at_work=stages, at_once=2)
    page = open_page(address, viewport={"width": 400, "height": 800})
    table = page.locator("#live-work")
    table.wait_for()
    assert table.locator("tbody td:nth-child(2)").all_inner_texts() == [
        "node-1, process 41",
        "<b>node-2</b>, process 42",
    ]
    assert "loss 2.500" in page.locator("#live-stage").inner_text()
    table.get_by_role("button").nth(1).click()
    assert "loss 1.250" in page.locator("#live-stage").inner_text()
    assert "on <b>node-2</b>" in page.locator("#live-stage").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    at_work(run, at_work=stages[1:])
    table.wait_for(state="hidden")
    assert "loss 1.250" in page.locator("#live-stage").inner_text()
