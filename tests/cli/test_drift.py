"""`lingraft drift` end to end: its tables, its object, its figure and its record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lingraft.cli.main import _run


@pytest.fixture(scope="module")
def other_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drift") / "other"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_two_models_give_one_object_with_every_layer(
    tiny_model: Path, other_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text("Say a.\nWhat is the day after Monday?\nWhy?\n")
    assert (
        _run(["drift", str(tiny_model), str(other_model), "--prompts", str(tmp_path / "p.txt"), "--json"])
        == 0
    )
    found = json.loads(capfd.readouterr().out)
    assert found["prompts"] == 3
    assert found["tokens"] > 3
    assert [one["layer"] for one in found["layers"]] == [0, 1]
    for one in found["layers"]:
        assert -1 < one["mean_cosine"] < 1
        assert 0 < one["cka"] < 1
        assert one["covariance_change"] > 0
        assert one["variance_change"] > 0


def test_several_models_and_languages_give_tables_a_figure_and_a_record(
    tiny_model: Path, other_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = ["--figure", str(tmp_path / "a.svg"), "--record", str(tmp_path / "a.json")]
    sources = [
        "--prompts",
        "worldbook:lookup/en",
        "--prompts",
        "worldbook:lookup/de",
        "--limit",
        "4",
        "--tokens",
        "last",
    ]
    assert _run(["drift", str(tiny_model), str(tiny_model), str(other_model), *sources, *files]) == 0
    printed = capfd.readouterr().out
    assert "By language" in printed
    assert "8 prompts, the last token of each, 8 in all (8 for CKA)" in printed
    assert "The covariance changed in no layer." in printed
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    same, moved = json.loads((tmp_path / "a.json").read_text())["result"]["models"]
    assert all(one["covariance_change"] == pytest.approx(0, abs=1e-12) for one in same["layers"])
    assert all(one["covariance_change"] > 0 for one in moved["layers"])
    assert set(moved["by_language"]) == {"en", "de"}
    assert all(0 < one["cka"] < 1 for own in moved["by_language"].values() for one in own)
    assert moved["cka_tokens"] == 8


def test_the_precision_is_float32_unless_another_is_asked_for_and_always_recorded(
    tiny_model: Path,
    other_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    processor: Callable[[bool], None],
) -> None:
    record = tmp_path / "a.json"
    command = ["drift", str(tiny_model), str(other_model), "--prompts", "worldbook:lookup/en", "--limit", "3"]
    changes: dict[Any, Any] = {}
    for asked, expected, has_bf16 in (
        (None, "float32", True),
        ("bf16", "bf16", False),
        ("auto", "bf16", True),
        ("auto", "float32", False),
    ):
        processor(has_bf16)
        options = [] if asked is None else ["--precision", asked]
        assert _run([*command, "--json", "--record", str(record), *options]) == 0
        found = json.loads(capfd.readouterr().out)
        assert found["precision"] == json.loads(record.read_text())["inputs"]["precision"] == expected
        changes.setdefault(expected, set()).add(found["layers"][0]["covariance_change"])
    assert {kind: len(values) for kind, values in changes.items()} == {"float32": 1, "bf16": 1}
    assert changes["bf16"] != changes["float32"]  # the weights were held in it
    assert _run([*command, "--precision", "fp16"]) == 2
    assert "--precision 'fp16'" in capfd.readouterr().err
