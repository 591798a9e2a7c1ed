"""A study's records and fingerprints hold the precision that was computed in, never `auto`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import Evaluation, EvaluationTask, StrategyChoice, Training
from lingraft.data.example import Example, Message
from lingraft.evaluate.predictions import read_predictions
from lingraft.models import adapters
from lingraft.records import read_json
from lingraft.stage import RECORD, FinishedStage, GivenModel
from lingraft.study.execute import Executor
from lingraft.study.stages import train
from lingraft.study.stages.evaluate import PREDICTIONS, Evaluate, questions
from lingraft.study.stages.job import TrainingJob
from lingraft.study.stages.prepare import Prepare
from lingraft.study.stages.train import Train
from lingraft.study.store import Store
from lingraft.train.phase import with_resolved_precision
from lingraft.train.processes import Processes
from lingraft.train.run import PhaseTask

ROWS = tuple(
    Example(
        str(n), (Message("user", f"question {n}"), Message("assistant", f"answer {n}")), "en", str(n), "rows"
    )
    for n in range(8)
)
TASK = EvaluationTask(task="worldbook:lookup", limit=2, max_new_tokens=2)


@contextmanager
def executor_in(folder: Path) -> Iterator[Executor]:
    with Store(folder) as store:
        yield Executor(store)


def job(model: Path, written: Any = "plain", precision: str = "auto") -> TrainingJob:
    return TrainingJob(
        label="job",
        parent=GivenModel({"weights": "tiny"}, model),
        examples=ROWS,
        data=[],
        counts=[],
        choice=StrategyChoice.model_validate(written),
        training=with_resolved_precision(
            Training(learning_rate=1e-3, tokens_per_batch=256, precision=precision)
        ),
        seed=0,
        previous_data=ROWS,
        replay_data={"old_english": {"content": "rows"}},
    )


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "float32")])
def test_a_training_is_known_by_the_precision_that_auto_stood_for(
    tiny_model: Path,
    tmp_path: Path,
    processor: Callable[[bool], None],
    has_bf16: bool,
    expected: str,
) -> None:
    processor(has_bf16)
    with executor_in(tmp_path) as executor:
        stage = executor.make(Train("job", job(tiny_model)))
        named = Train("job", job(tiny_model, precision=expected))
        processor(not has_bf16)
        elsewhere = Train("job", job(tiny_model))
    assert named.fingerprint == stage.fingerprint
    assert elsewhere.fingerprint != stage.fingerprint
    record = read_json(stage.folder / RECORD)
    assert record["inputs"]["training"]["precision"] == record["result"]["precision"] == expected
    assert stage.timing["precision"] == expected
    assert "auto" not in repr(record)


def evaluated(executor: Executor, model: Path, precision: str = "auto") -> FinishedStage:
    evaluation = Evaluation(task_ability=(TASK,), language_ability=(TASK,), precision=precision)
    stage = Evaluate("model", GivenModel({"weights": "x"}, model), questions(evaluation, ["de"]))
    return executor.make(stage)


def test_an_evaluation_on_another_kind_of_processor_is_another_one(
    tiny_model: Path, tmp_path: Path, processor: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    load = adapters.load_merged

    def watched(*args: Any, **options: Any) -> Any:
        held.append(options["dtype"])
        return load(*args, **options)

    monkeypatch.setattr(adapters, "load_merged", watched)
    with executor_in(tmp_path) as executor:
        processor(True)
        quick = evaluated(executor, tiny_model)
        assert evaluated(executor, tiny_model, "bf16").fingerprint == quick.fingerprint
        processor(False)
        slow = evaluated(executor, tiny_model)
        assert evaluated(executor, tiny_model, "float32").fingerprint == slow.fingerprint
    assert [str(one) for one in held] == ["torch.bfloat16", "torch.float32"]
    assert quick.fingerprint != slow.fingerprint
    for stage, expected in ((quick, "bf16"), (slow, "float32")):
        record = read_json(stage.folder / RECORD)
        assert (
            record["inputs"]["manifest"]["evaluation"]["precision"]
            == record["result"]["precision"]
            == expected
        )
        assert (stage.timing["precision"], stage.timing["device"]) == (expected, "cpu")
        assert read_predictions(stage.folder / PREDICTIONS)
        assert "auto" not in repr(record)


@pytest.mark.parametrize("kind", ["ssu", "ewc"])
def test_what_strategies_prepare_is_known_by_its_arithmetic(
    tiny_model: Path, tmp_path: Path, processor: Callable[[bool], None], kind: str
) -> None:
    asked = {kind: {"tokens": 100}}
    found = []
    with executor_in(tmp_path) as executor:
        for precision in ("auto", "bf16", "bf16_pure", "float32"):
            processor(True)
            one = job(tiny_model, asked, precision)
            (part,) = one.composition.parts
            found.append(executor.make(Prepare("state", one, part)))
    assert (
        len({state.fingerprint for state in found[:3]}) == 1
    )  # the weights are float32 while it looks at them
    assert found[3].fingerprint != found[0].fingerprint
    assert [state.timing["precision"] for state in (found[0], found[3])] == ["bf16", "float32"]


def test_several_processes_are_told_the_precision_and_do_not_measure_it(
    tiny_model: Path,
    tmp_path: Path,
    processor: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class ToldError(Exception):
        pass

    def started(_: Processes, task: PhaseTask, **__: Any) -> None:
        raise ToldError(task.training.precision)

    monkeypatch.setattr(train, "train_on", started)
    processor(True)
    with executor_in(tmp_path) as executor, pytest.raises(ToldError, match=r"^bf16$"):
        executor.make(Train("job", job(tiny_model), processes=Processes(2)))
