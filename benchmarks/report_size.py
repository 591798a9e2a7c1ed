"""How large is the page of a large study, how long does it take to make, and how soon can it be used?

    python benchmarks/report_size.py [--folder FOLDER] [--sets 5] [--strategies 20] [--seeds 5] [--items 198]

Writes a run of 500 cells in 12 languages with 100,000 predictions (`tests/report/large_run.py`; FOLDER is kept and used
again), then makes its page with `lingraft report` in a process of its own, and opens it in Chromium: until it has
loaded, until a frame is drawn after that, and until the answers can be read. Memory is the resident memory of the
process and its children, summed, sampled every 0.1 s. Writes benchmarks/results/report_size.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "report"))

from large_run import Size, large_run

RESULTS = Path(__file__).parent / "results" / "report_size.json"
CHROMIUM = "/usr/bin/chromium"
ASKED = {"page_bytes": 15_000_000, "seconds": 60, "peak_bytes": 2_000_000_000, "seconds_to_open": 3}


def made(run: Path) -> dict[str, Any]:
    """Return what the command takes to make the page."""
    command = [sys.executable, "-c", "from lingraft.cli.main import main; main()", "report", str(run)]
    before, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            own = [watched, *watched.children(recursive=True)]
            peak = max(peak, sum(one.memory_info().rss for one in own))
        except psutil.Error:  # it has just ended
            continue
        time.sleep(0.1)
    seconds = time.monotonic() - before
    output, errors = process.communicate()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(errors or output)
    page = run / "report" / "index.html"
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_bytes": peak,
        "page_bytes": page.stat().st_size,
        "said": errors.strip().splitlines(),
    }


def _keep(kept: list[str], said: object) -> None:
    kept.append(str(said))


def opened(page: Path, times: int = 3) -> dict[str, Any]:
    """Return the median seconds until the page has loaded, can be used, and shows the answers."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(times + 1):  # the first is not counted
            tab = browser.new_page(viewport={"width": 1400, "height": 900})
            problems: list[str] = []
            tab.on("console", partial(_keep, problems))
            tab.on("pageerror", partial(_keep, problems))
            meter = tab.context.new_cdp_session(tab)
            meter.send("Performance.enable")
            before = time.monotonic()
            tab.goto(page.as_uri(), wait_until="load")
            loaded = time.monotonic() - before
            tab.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))")
            usable = time.monotonic() - before
            measured = meter.send("Performance.getMetrics")["metrics"]
            used = next(one["value"] for one in measured if one["name"] == "ProcessTime")
            begun = time.monotonic()
            tab.locator("[data-packed]").scroll_into_view_if_needed()
            tab.wait_for_selector(".answers.live")
            found.append((loaded, usable, time.monotonic() - begun, used))
            tab.close()
        browser.close()
    loaded, usable, answers, used = (median(column) for column in zip(*found[1:], strict=True))
    return {
        "seconds_to_load": round(loaded, 2),
        "seconds_to_open": round(usable, 2),
        "processor_seconds_to_open": round(used, 2),
        "seconds_to_answers": round(answers, 2),
        "problems": problems,
    }


def main() -> None:
    """Measure, print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path)
    for name, value in asdict(Size()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = vars(parser.parse_args())
    folder = given.pop("folder") or Path(tempfile.mkdtemp())
    size, run = Size(**given), folder / "large"
    if not (run / "result.json").exists():
        large_run(run, size, lambda done: print(f"\r{done} cells written", end="", file=sys.stderr))
    measured = made(run)
    measured |= opened(run / "report" / "index.html")
    found = {
        "question": __doc__.splitlines()[0],
        "size": asdict(size),
        "cells": size.sets * size.strategies * size.seeds,
        "predictions": (size.sets * size.strategies * size.seeds + size.seeds + 1) * size.items,
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "load_average": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("lingraft", "altair", "vl-convert-python", "jinja2")},
        "asked": ASKED,
        **measured,
    }
    print(json.dumps(found, indent=1))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
