"""`lingraft report --figures` writes figures and tables as files, and refuses what it could not before it reads."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from example_result import done_cell, result

from lingraft.study.result import write_result

Lingraft = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of which nothing but the result is left."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    write_result(result(folder, [done_cell("plain")]))
    return folder


def test_files_take_the_place_of_the_page_and_are_listed(run: Path, lingraft: Lingraft) -> None:
    done = lingraft("report", "tiny", "--figures", "new/out", "--format", "pdf", "--format", "csv,latex")
    assert done.returncode == 0, done.stderr
    *listed, last = [
        line for line in done.stdout.splitlines() if line.startswith("new/") or "written" in line
    ]
    written = sorted(str(path) for path in Path("new/out").iterdir())
    assert sorted(line.split()[0] for line in listed) == written
    assert last == f"{len(written)} files written."
    assert {"new/out/trade-off.pdf", "new/out/results.csv", "new/out/results.tex"} <= set(written)
    assert Path("new/out/trade-off.pdf").read_bytes().startswith(b"%PDF-")
    assert not (run / "report").exists()


def test_with_an_output_there_are_both(run: Path, lingraft: Lingraft) -> None:
    done = lingraft(
        "report", "tiny", "--figures", "out", "--format", "csv", "--output", "page.html", "--json"
    )
    found = json.loads(done.stdout)
    assert found["page"] == "page.html"
    assert Path("page.html").exists()
    assert found["files"][0]["path"] == "out/results.csv"
    assert {one["path"] for one in found["files"]} == {str(path) for path in Path("out").iterdir()}
    assert run.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--format", "pdf"], "--format: goes with --figures; add --figures FOLDER, or leave --format out."),
        (["--wide", "--json"], "--wide: goes without --json"),
        (["--wide", "--watch"], "--wide: goes without --watch"),
        (
            ["--figures", "out", "--format", "pfd"],
            "--format pfd: is no format of figures or tables. Did you mean",
        ),
        (["--figures", "notes.txt"], "--figures notes.txt: notes.txt is a file; name a folder."),
        (["--figures", "notes.txt/out"], "--figures notes.txt/out: notes.txt is a file"),
        (["--watch", "--fonts", "."], "--fonts: goes with --figures"),
        (["--watch", "--figures", "out"], "--figures: goes without --watch"),
        (["--figures", "out", "--fonts", "."], "--fonts .: holds no font"),
    ],
)
def test_what_could_not_be_written_is_refused(
    run: Path, lingraft: Lingraft, arguments: list[str], says: str
) -> None:
    (run / "result.json").write_text("damaged: it must not be read")
    Path("notes.txt").write_text("mine")
    refused = lingraft("report", "tiny", *arguments)
    assert refused.returncode == 2
    assert says in refused.stderr
    assert "damaged" not in refused.stderr
    assert not Path("out").exists()
    assert Path("notes.txt").read_text() == "mine"
