"""What a strategy names in a model is looked for before anything is prepared or trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import Study
from lingraft.errors import ConfigError
from lingraft.models.loading import load_model, parameter_names
from lingraft.study.materials import gather


def study(model: Path, *strategies: Any) -> Study:
    german = {"source": "worldbook:lookup/de", "limit": 8}
    phases: list[dict[str, Any]] = [
        {"name": "one", "checkpoint": str(model)},
        {"name": "two", "data": {"german": german}, "strategies": strategies},
    ]
    return Study.model_validate({"name": "named", "phases": phases, "measures": [], "held_out": 2})


def test_the_names_are_those_of_the_loaded_model(tiny_model: Path) -> None:
    assert parameter_names(tiny_model) == tuple(name for name, _ in load_model(tiny_model).named_parameters())


def test_every_part_that_the_model_lacks_is_told_before_anything_runs(tiny_model: Path) -> None:
    wrong = (
        {"freeze_modules": {"layers": "0-99"}},
        [{"generative_replay": {"prompts": "self"}}, {"revert": {"modules": ["q_prj"]}}],
        {"interpolate": {"layers": {"98": 0.5}, "alpha": [0.1, 0.2]}},
    )
    with pytest.raises(ConfigError) as caught:
        gather(study(tiny_model, "plain", *wrong), Path())
    told = str(caught.value).splitlines()
    assert len(told) == 4  # a sweep is two cells
    assert told[0].startswith(
        "phase 'two', data 'german', strategy 'freeze_modules': 'freeze_modules': layers 0-99"
    )
    assert "no layer has a module 'q_prj'. Did you mean 'q_proj'" in told[1]
    gather(study(tiny_model, "plain", {"freeze_modules": {"layers": 0}}), Path())
