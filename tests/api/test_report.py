"""`lingraft.write_report` writes what `lingraft report` does."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import lingraft
from lingraft.study.result import write_result

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))
example_result = importlib.import_module("example_result")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    write_result(example_result.result(folder, [example_result.done_cell("plain")]))
    return folder


def test_the_page_alone_or_files_alone_or_both(run: Path, tmp_path: Path) -> None:
    assert lingraft.write_report(run) == (run / "report" / "index.html",)
    out = tmp_path / "out"
    tables = lingraft.write_report(f"mine={run}", figures=out, formats=["csv"])
    assert set(tables) == set(out.iterdir())
    both = lingraft.write_report([run], tmp_path / "page.html", figures=out, formats=["markdown"])
    assert both[0] == tmp_path / "page.html"
    assert "<h1>tiny</h1>" in both[0].read_text()
    assert all(path.suffix == ".md" and path.exists() for path in both[1:])


def test_what_cannot_be_written_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(lingraft.ConfigError, match="pfd"):
        lingraft.write_report(run, figures=tmp_path / "out", formats=["pfd"])
    with pytest.raises(lingraft.ConfigError, match="there is no such folder"):
        lingraft.write_report(tmp_path / "absent", figures=tmp_path / "out")
    assert not (tmp_path / "out").exists()
