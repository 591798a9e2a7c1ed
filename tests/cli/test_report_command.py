"""`lingraft report` writes the page of run folders, and says what to type where it is given something else."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from example_result import done_cell, failed_cell, result

from lingraft.config.load import save_study
from lingraft.config.schema import Study
from lingraft.study.result import write_result

Lingraft = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a cell that is done and one that failed."""
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    write_result(result(folder, [done_cell("plain"), failed_cell()]))
    phases = [{"name": name, "data": {name: {"source": f"{name}.jsonl"}}} for name in ("first", "second")]
    save_study(
        Study.model_validate({"name": "tiny", "model": "a/model", "phases": phases}), folder / "study.yaml"
    )
    return folder


def test_a_run_gets_its_page_and_what_failed_is_said(run: Path, lingraft: Lingraft) -> None:
    done = lingraft("report", "runs/tiny")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "Report: runs/tiny/report/index.html"
    assert "failed: similar / lora / seed 0: no memory" in done.stdout
    assert (
        "The only cell that is done has not kept English. plain (the lower bound) kept 80 % [70, 90]"
        in done.stdout
    )
    assert "Task ability against Phase 1: ▲ rose, ▼ fell" in done.stdout
    assert "Not shown (`--wide` shows all): DES, corrected, MPD, change, de\n" in done.stdout
    whole = lingraft("report", "runs/tiny", "--wide").stdout
    assert "0.934 [0.92, 0.95]" in whole
    assert "Not shown" not in whole
    assert "<h1>tiny</h1>" in (run / "report" / "index.html").read_text()


def test_the_page_goes_where_it_is_asked_to_under_the_name_that_is_given(
    run: Path, lingraft: Lingraft
) -> None:
    done = lingraft("report", "first try=runs/tiny", "--output", "mine.html", "--json")
    found = json.loads(done.stdout)
    assert found["page"] == "mine.html"
    assert [one["name"] for one in found["runs"]] == ["first try"]
    assert len(found["result"]["cells"]) == 2
    assert "<h1>first try</h1>" in Path("mine.html").read_text()
    assert not (run / "report").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["runs"], "holds runs, and is none; name one or more of them: runs/tiny."),
        (["runs/tinny"], "there is no such folder. Did you mean 'runs/tiny'?"),
        (["runs/tiny/study.yaml"], "is a file of a run; name its folder: lingraft report runs/tiny"),
        (["tiny.yaml"], "is a study file; name the run that it left: lingraft report runs/tiny"),
        (["runs/tiny/stages"], "there is no such folder."),
        (["=runs/tiny"], "write NAME=PATH"),
        (["runs/tiny", "--output", "notes.txt"], "is there, and no page of lingraft's"),
        (["runs/tiny", "--output", "paper.pdf"], "a page is HTML; name --output paper.html."),
        (["runs/tiny", "--output", "there/page.html"], "there is no folder there; create it first."),
        (["runs/tiny", "--output", "runs"], "--output runs: is a folder; name a file in it"),
    ],
)
def test_what_is_no_run_is_refused_with_what_to_type(
    run: Path, lingraft: Lingraft, arguments: list[str], says: str
) -> None:
    Path("notes.txt").write_text("mine")
    Path("tiny.yaml").write_text((run / "study.yaml").read_text())
    refused = lingraft("report", *arguments)
    assert refused.returncode == 2
    assert says in refused.stderr
    assert refused.stdout == ""
    assert Path("notes.txt").read_text() == "mine"
    assert not (run / "report").exists()


def test_of_an_adaptation_the_page_that_it_wrote_is_named_or_copied(lingraft: Lingraft) -> None:
    Path("german").mkdir()
    Path("german/adaptation.html").write_text("its page")
    done = lingraft("report", "german")
    assert done.stdout == "Report: german/adaptation.html\n"
    assert lingraft("report", "german", "--output", "copy.html").stdout == "Report: copy.html\n"
    assert Path("copy.html").read_text() == "its page"
    refused = lingraft("report", "german", "--figures", "out")
    assert refused.returncode == 2
    assert "nothing is left but its page" in refused.stderr


def test_a_folder_that_cannot_be_written_gets_its_page_elsewhere(
    run: Path, lingraft: Lingraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_writable(path: Path, mode: int) -> bool:  # as root, all of them are
        return mode != os.W_OK or "runs" not in Path(path).parts

    monkeypatch.setattr(os, "access", is_writable)
    refused = lingraft("report", "runs/tiny")
    assert refused.returncode == 2
    assert (
        "runs/tiny/report/index.html: cannot be written; name another place: --output PAGE.html."
        in refused.stderr
    )
    assert lingraft("report", "runs/tiny", "--output", "page.html").returncode == 0
