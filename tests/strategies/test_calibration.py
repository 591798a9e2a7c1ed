"""What SSU and EWC look at: Phase 1's rows, else the set's English, else what the model writes itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from lingraft.data.example import Example
from lingraft.models.compute import compute_device
from lingraft.stage import GivenModel
from lingraft.strategies.base import Context
from lingraft.strategies.calibration import calibration_of
from lingraft.strategies.ewc import Ewc

Rows = Callable[..., tuple[Example, ...]]


@pytest.fixture
def context(tmp_path: Path, talkative_model: Path) -> Context:
    return Context(
        base=None,
        previous=talkative_model,
        previous_data=(),
        english=(),
        seed=3,
        folder=tmp_path,
        cache=tmp_path / "cache",
    )


def test_phase_one_comes_before_the_english_of_the_set(context: Context, example_rows: Rows) -> None:
    tokenizer = AutoTokenizer.from_pretrained(context.previous)
    known = replace(context, previous_data=example_rows(30, "en"), english=example_rows(30, "de"))
    found = calibration_of("ewc", tokenizer, known, 200)
    assert found.source == "phase_one"
    assert found.tokens >= 200 > found.tokens - len(found.rows[-1].input_ids)
    assert {row.language for row in found.rows} == {"en"}
    assert calibration_of("ewc", tokenizer, replace(known, previous_data=()), 200).source == "english"


def test_without_any_old_row_the_model_writes_them(context: Context) -> None:
    tokenizer = AutoTokenizer.from_pretrained(context.previous)
    found = calibration_of("ewc", tokenizer, context, 600)
    assert found.source == "self"
    assert found.tokens >= 600
    assert found.to_json() == {"source": "self", "rows": len(found.rows), "tokens": found.tokens}
    again = calibration_of("ssu", tokenizer, replace(context, folder=context.folder / "other"), 600)
    assert [row.input_ids for row in again.rows] == [row.input_ids for row in found.rows]


@pytest.mark.parametrize("written", [{"ssu": {"tokens": 100}}, {"ewc": {"tokens": 100}}])
def test_a_study_without_old_rows_trains_all_the_same(
    phases: Any, talkative_model: Path, written: Any
) -> None:
    job = replace(
        phases.job(written),
        previous_data=(),
        english=(),
        replay_data={},
        parent=GivenModel({"weights": "talkative"}, talkative_model),
    )
    phases.make(job)
    prepared = phases.executor.make(phases.states(job)[next(iter(written))])
    assert prepared.reused is False
    assert prepared.result["source"] == "self"
    assert prepared.result["tokens"] >= 100


def test_a_preparation_gets_the_model_on_the_device_that_training_uses(
    phases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []

    def prepare(_self: Ewc, load: Callable[[], Any], *_: Any) -> dict[str, Any]:
        devices.append(load().device.type)
        return {}

    monkeypatch.setattr(Ewc, "prepare", prepare)
    monkeypatch.setattr("lingraft.models.compute.compute_device", lambda: torch.device("meta"))
    job = phases.job("ewc")
    phases.executor.make(phases.states(job)["ewc"])
    assert devices == ["meta"]


def test_without_an_accelerator_training_uses_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert compute_device() == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("xpu"))
    assert compute_device() == torch.device("xpu")
