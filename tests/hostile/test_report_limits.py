"""Whatever becomes of the picture engine, the report is written, and says what is missing from it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lingraft.config.schema import Study
from lingraft.report import drawing
from lingraft.report.drawing import Job, draw
from lingraft.report.formats import Form
from lingraft.report.page import write_page
from lingraft.report.runs import report_of
from lingraft.study.result import StudyResult

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "report"))
example_result = importlib.import_module("example_result")
page_reader = importlib.import_module("page_reader")

CHART = {
    "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
    "data": {"values": [{"a": 1, "b": "</script><script>"}]},
    "mark": "point",
    "encoding": {"x": {"field": "a", "type": "quantitative"}, "y": {"field": "b", "type": "nominal"}},
}
STUDY = Study.model_validate(
    {
        "name": "tiny",
        "model": "embedded:smollm2-135m",
        "phases": [
            {"name": "one", "data": {"e": {"source": "e"}}},
            {"name": "two", "data": {"d": {"source": "d"}}},
        ],
    }
)
ENGINES = {
    "dies of SIGTRAP": ("import os, signal; os.kill(os.getpid(), signal.SIGTRAP)", "died of SIGTRAP"),
    "dies of SIGKILL": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "died of SIGKILL"),
    "hangs": ("import time; time.sleep(60)", "gave no answer in"),
    "prints garbage": ("print('x' * 100_000, flush=True); import os; os._exit(0)", "gave no pictures"),
    "writes to stdout itself": ("import os; os.write(1, b'[]'); os._exit(0)", "gave no pictures"),
    "ends with a code": ("raise SystemExit(3)", "failed (no reason given)"),
    "is broken": ("import a_module_that_is_not_there", "No module named 'a_module_that_is_not_there'"),
    "draws nothing": ("def vegalite_to_svg(spec): return ''", "something else than an SVG"),
    "draws something else": ("def vegalite_to_svg(spec): return b'\\0'", "something else than an SVG"),
    "has no memory": ("def vegalite_to_svg(spec): raise MemoryError", "MemoryError"),
}


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a module in the place of the picture engine."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(drawing, "SECONDS", 5.0)

    def place(code: str) -> None:
        (folder / "vl_convert.py").write_text(code, encoding="utf-8")

    return place


@pytest.fixture
def found(tmp_path: Path) -> Iterator[StudyResult]:
    run = tmp_path / "run"
    run.mkdir()
    result: StudyResult = example_result.result(run, [example_result.done_cell("plain")])
    yield result
    assert [path.name for path in (run / "report").iterdir()] == ["index.html"]  # nothing half written


@pytest.mark.parametrize("name", ENGINES)
def test_a_broken_engine_costs_the_pictures_alone(
    name: str, engine: Callable[[str], None], found: StudyResult
) -> None:
    code, reason = ENGINES[name]
    engine(code)
    said: list[str] = []
    html = write_page(report_of(found, STUDY), reported=said.append).read_text(encoding="utf-8")
    assert len(said) == 1
    assert said[0].startswith("The report has no pictures: ")
    assert reason in said[0]
    assert "\n" not in said[0]
    assert "The report has no pictures: " in html
    assert "<svg" not in html
    assert "0.400 [0.30, 0.50] ▼" in page_reader.read_page(html).text  # the table
    assert "Forgetting" in html  # the matrix as a table


def test_one_figure_that_cannot_be_drawn_costs_no_other(
    engine: Callable[[str], None], found: StudyResult
) -> None:
    engine(
        "n = 0\ndef vegalite_to_svg(spec):\n    global n\n    n += 1\n"
        "    if n == 2: raise ValueError('one\\nodd name')\n    return f'<svg>{n}</svg>'"
    )
    said: list[str] = []
    html = write_page(report_of(found, STUDY), reported=said.append).read_text(encoding="utf-8")
    assert said == ["The report has 4 of 5 pictures: ValueError: one odd name."]
    assert html.count("<svg") == 4


def test_the_engine_is_not_looked_for_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vl_convert.py").write_text("open('was_here', 'w')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (drawn,) = draw([Job("page", CHART)])
    assert (drawn.content or b"").startswith(b"<svg")
    assert not (tmp_path / "was_here").exists()


def test_a_process_that_cannot_be_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    (drawn,) = draw([Job("page", CHART)])
    assert drawn.content is None
    assert "could not be started" in drawn.problem


def test_without_the_library_of_figures_the_page_has_its_tables(
    found: StudyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "lingraft.report.figures", raising=False)
    monkeypatch.setitem(sys.modules, "altair", None)
    said: list[str] = []
    html = write_page(report_of(found, STUDY), reported=said.append).read_text(encoding="utf-8")
    assert said[0].startswith("The report has no pictures: ModuleNotFoundError: import of altair halted")
    assert "Forgetting" in html


@pytest.mark.parametrize("form", ["svg", "png", "pdf", "html"])
def test_a_figure_of_a_file_is_drawn_as_before(form: Form) -> None:
    (drawn,) = draw([Job(form, CHART)])
    content = drawn.content or b""
    assert content.startswith(
        {"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF-", "html": b"<!DOCTYPE html>"}[form]
    )
    assert b"</script><script>" not in content


_CHILD = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import example_result
from lingraft.report.page import write_page
from lingraft.report.runs import report_of
from lingraft.config.schema import Study
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = used + {more} * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
said = []
found = example_result.result(Path({run!r}), [example_result.done_cell("plain")])
path = write_page(report_of(found, Study.model_validate_json({study!r})), reported=said.append)
print(json.dumps([said, path.read_text(encoding="utf-8").count("<svg")]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc and limits of address space")
@pytest.mark.parametrize("more", [1500])
def test_under_a_limit_of_address_space_the_page_is_written_and_says_so(more: int, tmp_path: Path) -> None:
    code = _CHILD.format(
        tests=str(Path(example_result.__file__ or "").parent),
        more=more,
        run=str(tmp_path),
        study=STUDY.model_dump_json(),
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    said, pictures = json.loads(done.stdout)
    assert pictures == 0
    assert len(said) == 1
    assert said[0].startswith("The report has no pictures: ")
    assert not list(tmp_path.glob("core*"))


def test_an_engine_that_hangs_does_not_outlive_its_time(engine: Callable[[str], None]) -> None:
    engine("import time; time.sleep(60)")
    started = time.monotonic()
    (drawn,) = draw([Job("page", CHART)], seconds=3.0)
    assert time.monotonic() - started < 20
    assert drawn.problem == "the picture engine gave no answer in 3 seconds"
