"""A plan says what the run then does: its counts are those that the run records, its rates this machine's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lingraft.config.schema import Study
from lingraft.evaluate.predictions import read_predictions
from lingraft.models.compute import Compute
from lingraft.records import read_json
from lingraft.stage import StageProgress
from lingraft.study import counts, forecast
from lingraft.study.events import Watcher
from lingraft.study.forecast import Forecast, StageForecast
from lingraft.study.run import forecast_study, run_study
from lingraft.train.memory_plan import free_memory

GERMAN = {"german": {"source": "worldbook:lookup/de", "limit": 24}}


def study(model: Path, **options: Any) -> Study:
    generated = {"task": "worldbook:lookup", "limit": 4, "max_new_tokens": 6}
    return Study.model_validate(
        {
            "name": "planned",
            "model": str(model),
            "phases": [
                {"name": "one", "data": {"english": {"source": "worldbook:lookup/en", "limit": 24}}},
                {
                    "name": "two",
                    "data": GERMAN,
                    "strategies": [
                        {"english_replay": {"share": 0.25, "from": "phase_one"}},
                        {"interpolate": {"alpha": 0.5}},
                    ],
                },
            ],
            "training": {"learning_rate": 1e-3, "tokens_per_batch": 512, "epochs": 2, "accumulation": 2},
            "held_out": 1,
            "contamination": None,
            "measures": ["mpd"],
            "evaluate": {"task_ability": [generated], "language_ability": [generated]},
            **options,
        }
    )


@pytest.fixture(scope="module")
def planned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Forecast, Forecast]:
    """A run folder, and what was planned before and after the run."""
    place = tmp_path_factory.mktemp("planned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINGRAFT_CACHE", str(place / "cache"))
        before = forecast_study(study(tiny_model), runs=place)
        assert list(place.iterdir()) == [], "looking writes nothing"
        run_study(study(tiny_model), runs=place)
        return place / "planned", before, forecast_study(study(tiny_model), runs=place)


def recorded(run: Path, stage: StageForecast) -> dict[str, Any]:
    folder = run / "stages" / f"{stage.kind}-{stage.fingerprint}"
    found: dict[str, Any] = read_json(folder / "record.json")["result"]
    return found


def test_tokens_steps_and_replayed_rows_are_those_of_the_run(
    planned: tuple[Path, Forecast, Forecast],
) -> None:
    run, before, _ = planned
    trained = [stage for stage in before.stages if stage.kind == "train"]
    assert len(trained) == 3
    for stage in trained:
        record, work = recorded(run, stage), stage.training
        assert work is not None
        assert work.is_exact
        assert (work.rows, work.replayed, work.steps) == (
            record["examples"],
            record["replayed"],
            record["steps"],
        )
        assert (work.tokens, work.padded_tokens, work.supervised_tokens, work.trained_parameters) == (
            record["tokens"],
            record["padded_tokens"],
            record["supervised_tokens"],
            record["trainable_parameters"],
        )
        assert stage.flops is not None
        assert stage.flops > 6 * 2 * 32 * 32 * work.padded_tokens
    assert sorted(one.training.replayed for one in trained if one.training is not None) == [0, 0, 8]


def test_prompts_and_answers_are_those_of_the_run(planned: tuple[Path, Forecast, Forecast]) -> None:
    run, before, _ = planned
    for stage in before.stages:
        if stage.kind != "evaluate":
            continue
        assert stage.answers is not None
        folder = run / "stages" / f"evaluate-{stage.fingerprint}"
        assert stage.answers.items == len(read_predictions(folder / "predictions.parquet")) == 8
        assert stage.answers.most_generated == 8 * 6
        assert 8 < stage.answers.expected_generated <= 48
        assert stage.answers.prompt_tokens > 8 * 10


def test_finished_stages_say_what_they_took(planned: tuple[Path, Forecast, Forecast]) -> None:
    _, before, after = planned
    assert {stage.state for stage in before.stages} == {"to do"}
    assert before.seconds is None
    assert before.stages_without_time == len(before.stages)
    assert all(stage.is_finished and stage.seconds_from == "stage" for stage in after.stages)
    assert all((stage.mfu is not None) == (stage.kind == "train") for stage in after.stages)
    assert (after.flops, after.disk_bytes, after.seconds) == (0, 0, 0)
    assert [stage.fingerprint for stage in after.stages] == [stage.fingerprint for stage in before.stages]


def test_an_unfinished_stage_takes_as_long_as_a_finished_one_of_its_kind_for_its_work(
    planned: tuple[Path, Forecast, Forecast], tiny_model: Path
) -> None:
    run, _, after = planned
    asked = study(tiny_model)
    longer = asked.model_copy(
        update={
            "phases": (
                asked.phases[0],
                asked.phases[1].model_copy(
                    update={"training": asked.phases[1].training.model_copy(update={"epochs": 4})}
                ),
            )
        }
    )
    found = forecast_study(longer, runs=run.parent)
    (more,) = [one for one in found.stages if one.kind == "train" and "interpolate" in one.label]
    (own,) = [one for one in after.stages if one.kind == "train" and "interpolate" in one.label]
    done = [one for one in found.stages if one.kind == "train" and one.is_finished]
    assert more.state == "to do"
    assert more.seconds_from == "stage"
    assert more.flops == pytest.approx(2 * (own.flops or 0), rel=0.1)
    spent, worked = (sum(getattr(one, key) for one in done) for key in ("seconds", "flops"))
    assert more.seconds == pytest.approx(spent * (more.flops or 0) / worked)
    assert found.seconds is not None


def test_measured_rates_are_kept_and_say_time_and_memory(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINGRAFT_CACHE", str(tmp_path / "cache"))
    asked = study(tiny_model, phases=[study(tiny_model).phases[0], {"name": "two", "data": GERMAN}])
    found = forecast_study(asked, runs=tmp_path / "runs", measure=True)
    assert not (tmp_path / "runs").exists()
    for stage in found.stages:
        if stage.kind in ("train", "evaluate"):
            assert stage.seconds_from == "measured"
            assert stage.seconds is not None
            assert 0 < stage.seconds < 600
            assert (stage.memory_bytes or 0) > 50e6, "the process is counted as well"
        if stage.kind == "train":
            assert 0 < (stage.mfu or 0) < 1.5, "other work may have the machine while its peak is measured"
    assert found.seconds is not None
    rates = list((tmp_path / "cache" / "rates").iterdir())
    assert len(rates) == 2, "phases that compute alike, and evaluations that ask alike, are measured once"

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(forecast, "measure_training", refuse)
    monkeypatch.setattr(forecast, "measure_answers", refuse)
    again = forecast_study(asked, runs=tmp_path / "runs")
    assert [one.seconds_from for one in again.stages] == [one.seconds_from for one in found.stages]
    rates[0].write_text("{}")
    rates[1].write_text("{}")
    assert forecast_study(asked, runs=tmp_path / "runs").seconds is None, "damaged ones are passed over"


def test_of_many_rows_a_sample_is_encoded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = forecast_study(study(tiny_model), runs=tmp_path)
    monkeypatch.setattr(counts, "MOST_ROWS", 12)
    sampled = forecast_study(study(tiny_model), runs=tmp_path)
    for one, other in zip(exact.stages, sampled.stages, strict=True):
        if one.training is None or other.training is None:
            continue
        assert not other.training.is_exact
        assert (other.training.rows, other.training.replayed) == (one.training.rows, one.training.replayed)
        assert other.training.tokens == pytest.approx(one.training.tokens, rel=0.1)
        assert other.training.steps == pytest.approx(one.training.steps, abs=2)


def test_rows_that_a_model_will_write_are_counted_without_it(tiny_model: Path, tmp_path: Path) -> None:
    phases = [
        study(tiny_model).phases[0],
        {
            "name": "two",
            "data": GERMAN,
            "strategies": [{"generative_replay": {"share": 0.2}}],
        },
    ]
    found = forecast_study(study(tiny_model, phases=phases), runs=tmp_path)
    (work,) = [one.training for one in found.stages if one.training is not None and one.training.replayed]
    assert (work.rows, work.replayed, work.is_exact) == (30, 6, False)


def test_what_does_not_fit_is_said_with_what_to_do(
    planned: tuple[Path, Forecast, Forecast], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before, _ = planned
    assert before.problems == ()
    memory, disk = replace(before, free_memory_bytes=10, free_disk_bytes=10).problems
    assert "of memory are needed" in memory
    assert "training.gradient_checkpointing=true" in memory
    assert "10 B are free" in disk
    assert "keep=none" in disk
    card = Compute("bf16", torch.device("cuda"), torch.bfloat16, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (123, 456))
    assert free_memory(card) == 123


def test_a_run_says_before_it_trains_what_does_not_fit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Listener(Watcher):
        def noted(self, message: str) -> None:
            said.append(message)

        def stage_progressed(self, progress: StageProgress) -> None:
            if progress.loss is not None:
                said.append("trained")

    monkeypatch.setattr("lingraft.study.run.free_disk", lambda _: 10)
    monkeypatch.setattr("lingraft.study.stages.train.free_memory", lambda _: 10)
    run_study(
        study(tiny_model, phases=[study(tiny_model).phases[0], {"name": "two", "data": GERMAN}]),
        runs=tmp_path,
        watcher=Listener(),
    )
    before = said[: said.index("trained")]
    assert any("of disk, and 10 B are free" in one for one in before)
    assert any("of memory are needed, and 0.0 GB are free" in one for one in before)


@pytest.mark.parametrize("keep", ["all", "none"])
def test_the_disk_holds_what_is_kept_and_what_is_at_work(tiny_model: Path, tmp_path: Path, keep: str) -> None:
    found = forecast_study(study(tiny_model, keep=keep), runs=tmp_path)
    train = next(stage for stage in found.stages if stage.kind == "train")
    model = 4 * (train.training.trained_parameters if train.training is not None else 0)  # type: ignore[operator]
    models = sum(stage.kind in ("train", "combine") for stage in found.stages)
    if keep == "all":
        assert found.disk_bytes >= models * model
    else:
        assert found.disk_bytes < models * model + (train.disk_bytes or 0)


def test_a_stage_that_was_interrupted_is_begun(tiny_model: Path, tmp_path: Path) -> None:
    asked = study(tiny_model)
    first = next(one for one in forecast_study(asked, runs=tmp_path).stages if one.kind == "train")
    (tmp_path / "planned" / "stages" / f"train-{first.fingerprint}" / "trainer").mkdir(parents=True)
    assert [one.state for one in forecast_study(asked, runs=tmp_path).stages if one.kind == "train"] == [
        "begun",
        "to do",
        "to do",
    ]
