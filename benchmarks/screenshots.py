"""What does a report's page look like? Pictures of it, for the README and for whoever changes the page.

    python benchmarks/screenshots.py [RUN] [--into FOLDER]

Writes `report-NAME.png` for each entry of SHOTS. RUN is a run folder; without it, the quickstart's of the tests. Needs
Debian's Chromium and Playwright.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "tests" / "browser" / "quickstart.tar.xz"


@dataclass(frozen=True)
class Shot:
    """A picture of a page.

    Attributes:
        name: Of its file.
        anchor: The section at whose top it begins; empty: the page's top.
        width: Of the window in pixels; a picture is as wide.
        height: As width.
        colours: The reader's preference.
    """

    name: str
    anchor: str = ""
    width: int = 1280
    height: int = 900
    colours: Literal["light", "dark"] = "light"


SHOTS = (
    Shot("page", height=1240),
    Shot("table", "results", height=720),
    Shot("answers", "said"),
    Shot("dark", "trade-off", height=800, colours="dark"),
)


def main() -> None:
    from playwright.sync_api import sync_playwright

    from lingraft.report.page import write_page
    from lingraft.report.runs import read_report

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "images")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or "chromium"
    options = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        run = arguments.run
        if run is None:
            with tarfile.open(QUICKSTART) as archive:
                archive.extractall(folder, filter="data")
            run = Path(folder, "quickstart")
        path = write_page(read_report([str(run)]), Path(folder, "page.html"))
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        for shot in SHOTS:
            page = browser.new_page(
                viewport={"width": shot.width, "height": shot.height}, color_scheme=shot.colours
            )
            page.goto(f"{path.as_uri()}#{shot.anchor}")
            page.wait_for_timeout(2500)  # figures in view come alive
            picture = arguments.into / f"report-{shot.name}.png"
            page.screenshot(path=picture)
            print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
