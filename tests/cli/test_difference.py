"""`lingraft difference` end to end: its tables, its object, its figure and its record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lingraft.cli.main import _run


@pytest.fixture(scope="module")
def moved(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models that were moved from the tiny one, each its own way."""
    folder = tmp_path_factory.mktemp("moved")
    found = []
    for number in (1, 2):
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.01)
        model.save_pretrained(folder / str(number))
        found.append(folder / str(number))
    return found[0], found[1]


def test_one_object_with_every_tensor(
    tiny_model: Path, moved: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert _run(["difference", str(tiny_model), str(moved[0]), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["n_tensors"] == len(found["tensors"])
    assert found["mpd"] == pytest.approx(sum(one["l2"] for one in found["tensors"]) / found["n_tensors"])
    assert found["missing"] == []
    assert found["seconds"] > 0
    assert found["peak_bytes"] > 0
    assert {"name", "layer", "module", "l2", "relative", "cosine"} == set(found["tensors"][0])
    assert [one["name"] for one in found["layers"]] == ["outside the layers", "0", "1"]
    assert {"name", "tensors", "mpd", "l2", "relative", "cosine"} == set(found["modules"][0])
    assert "update_cosine" not in found


def test_with_a_base_tables_tell_whether_the_updates_agree(
    tiny_model: Path, moved: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = ["--figure", str(tmp_path / "map.svg"), "--record", str(tmp_path / "record.json")]
    assert _run(["difference", *map(str, moved), "--base", str(tiny_model), *files]) == 0
    printed = capfd.readouterr().out
    assert ", by layer" in printed
    assert "update cosine" in printed
    assert "outside the layers" in printed
    assert "MPD" in printed
    assert "The two updates from the base: cosine" in printed
    assert (tmp_path / "map.svg").read_text().startswith("<svg")
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["inputs"] == {
        "first": str(moved[0]),
        "second": str(moved[1]),
        "base": str(tiny_model),
        "adapter_base": None,
    }
    for one in (record["result"], *record["result"]["layers"], *record["result"]["modules"]):
        assert abs(one["update_cosine"]) < 0.2
    for one in record["result"]["tensors"]:
        if one["module"] not in ("norm", "input_layernorm", "post_attention_layernorm"):
            assert abs(one["update_cosine"]) < 0.2  # independent noise
            assert 0.3 < one["sign_agreement"] < 0.7
