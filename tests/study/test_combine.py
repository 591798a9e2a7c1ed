"""The stage that combines two models is known by them, its strategies and its type, and needs no training."""

from __future__ import annotations

from pathlib import Path

import torch

from lingraft.config.schema import StrategyChoice
from lingraft.models.checkpoints import CheckpointReader
from lingraft.records import fingerprint_of
from lingraft.stage import CHECKPOINT, GivenModel, libraries
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.stages.combine import Combine
from lingraft.study.store import Store


def test_what_is_not_rounded_is_known_as_before_and_types_differ(tiny_model: Path, tmp_path: Path) -> None:
    choice = StrategyChoice.model_validate(["english_replay", {"interpolate": {"alpha": 0.5}}])
    before, after = GivenModel({"weights": "1"}, tiny_model), GivenModel({"stage": "2"}, tiny_model, 100)
    stage = Combine("half", before, after, choice)
    assert stage.fingerprint == fingerprint_of(
        {
            "kind": "combine",
            "before": {"weights": "1"},
            "after": {"stage": "2"},
            "strategy": [{"kind": "interpolate", "options": {"alpha": 0.5, "layers": {}}}],
            "libraries": libraries(("lingraft",)),
        }
    )
    rounded = Combine("half", before, after, choice, dtype="bf16")
    assert len({stage.fingerprint, rounded.fingerprint}) == 2
    assert (stage.needs.disk_bytes, rounded.needs.disk_bytes) == (400, 200)
    with Store(tmp_path / "run") as store:
        made = Executor(store, Watcher()).make(rounded, with_artefacts=True)
    reader = CheckpointReader(made.folder / CHECKPOINT)
    assert {reader.kind(name) for name in reader.names} == {torch.bfloat16}
