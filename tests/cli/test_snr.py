"""`lingraft snr` end to end: its table, its object, its figure, its record and its plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lingraft.cli.main import _run
from lingraft.report import files as report_files
from lingraft.report.drawing import Drawing


def test_one_object_with_every_module(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert _run(["snr", str(tiny_model), "--estimator", "reference", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["estimator"] == "reference"
    assert len(found["modules"]) == 2 * 7
    assert {"name", "type", "snr", "rank", "selected"} < set(found["modules"][0])


def test_the_table_the_figure_the_record_and_the_plan(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [
        f"--{name}={tmp_path / file}"
        for name, file in (("figure", "a.svg"), ("record", "a.json"), ("plan", "a.yaml"))
    ]
    assert _run(["snr", str(tiny_model), "--share", "0.5", "--no-outside", *files]) == 0
    assert "down_proj" in capfd.readouterr().out
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    modules = json.loads((tmp_path / "a.json").read_text())["result"]["modules"]
    plan = yaml.safe_load((tmp_path / "a.yaml").read_text())
    assert (plan["model"], plan["estimator"], plan["share"]) == (str(tiny_model), "median", 0.5)
    assert sorted(plan["unfrozen_parameters"]) == sorted(
        f"^{one['name']}$" for one in modules if one["selected"]
    )
    assert len(plan["unfrozen_parameters"]) == 7


def test_a_figure_that_cannot_be_drawn_is_missed_after_all_else_is_done(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_files, "draw", lambda *_, **__: [Drawing(None, "the picture engine died")])
    files = [f"--figure={tmp_path / 'a.svg'}", f"--record={tmp_path / 'a.json'}"]
    assert _run(["snr", str(tiny_model), *files, "--json"]) == 1
    said = capfd.readouterr()
    assert len(json.loads(said.out)["modules"]) == 2 * 7  # one object, the result
    assert "a.svg: the figure is not drawn: the picture engine died; all else is done." in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
