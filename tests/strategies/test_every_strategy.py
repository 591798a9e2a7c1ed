"""Every strategy on every architecture, as a study trains it: what it promises, what it reduces to, stop and resume."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lingraft.config.schema import StrategyChoice
from lingraft.data.example import Message
from lingraft.errors import ConfigError
from lingraft.models.adapters import open_weights
from lingraft.models.checkpoints import CheckpointReader, save_checkpoint
from lingraft.models.weights import ModelWeights
from lingraft.records import read_json, write_json_atomically
from lingraft.stage import CHECKPOINT, FinishedStage, GivenModel
from lingraft.strategies.base import Context, Strategy, Swept
from lingraft.strategies.composition import REGISTRY, build, swept
from lingraft.study.execute import Executor
from lingraft.study.stages import train
from lingraft.study.store import Store
from lingraft.train.processes import Processes
from lingraft.train.run import PhaseTask, TrainedPhase, train_task

SHIELDED = {"ssu": {"tokens": 300}}
STRATEGIES: dict[str, Any] = {
    "plain": "plain",
    "freeze_random": {"freeze_random": {"share": 0.5, "embeddings": True}},
    "freeze_changed": "freeze_changed",
    "freeze_modules": {"freeze_modules": {"layers": "0", "modules": ["q_proj", "down_proj"], "head": True}},
    "half": "half",
    "spectrum": "spectrum",
    "ssu": SHIELDED,
    "english_replay": {"english_replay": {"share": 0.25, "from": "phase_one"}},
    "generative_replay": {
        "generative_replay": {
            "share": 0.25,
            "prompts": "phase_one",
            "temperature": 1.0,
            "max_new_tokens": 96,
        }
    },
    "lora": {"lora": {"rank": 2}},
    "l2_anchor": {"l2_anchor": {"strength": 0.1}},
    "ewc": {"ewc": {"strength": 0.1, "tokens": 200}},
    "distill": {"distill": {"share": 0.25, "temperature": 2.0}},
    "interpolate": {"interpolate": {"alpha": 0.25, "layers": {"1": 0.75, "embeddings": 1}}},
    "revert": {"revert": {"layers": "1", "embeddings": True}},
    "layerwise_rates": {"layerwise_rates": {"decay": 0.5}},
    "a composition": [
        SHIELDED,
        {"distill": {"share": 0.25}},
        {"l2_anchor": {"strength": 0.1}},
        {"layerwise_rates": {"decay": 0.5}},
        {"interpolate": {"alpha": 0.5}},
    ],
}


def test_every_registered_strategy_is_among_them() -> None:
    tested_elsewhere = {"mixed"}  # a study makes its union: tests/study
    assert set(REGISTRY) - tested_elsewhere <= set(STRATEGIES)


# What depends on an architecture's biases, tied embeddings or norms is tested on all by default.
EVERYWHERE = {"freeze_modules", "spectrum", "ssu", "lora", "a composition"}


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        pytest.param(one, name, marks=() if one == "llama" or name in EVERYWHERE else pytest.mark.slow)
        for one in ("llama", "qwen2", "gemma2")
        for name in STRATEGIES
    ],
)
def test_it_trains_what_it_says_and_leaves_a_plain_model(phases: Any, name: str, architecture: str) -> None:
    done = phases.train(STRATEGIES[name], architecture)
    assert all(0 < loss < 30 for _, loss in done.stage.result["losses"])
    before, after = done.before(), done.tensors()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[one], after[one]) for one in before)
    assert all(bool(own.isfinite().all()) for own in after.values())
    model = AutoModelForCausalLM.from_pretrained(done.folder)
    assert type(model) is type(AutoModelForCausalLM.from_pretrained(done.parent))
    there = Context(
        base=phases.model(architecture, 0),
        previous=done.parent,
        previous_data=phases.job("plain").previous_data,
        english=(),
        seed=0,
        folder=done.parent,
        cache=done.parent,
        states={
            part.kind: state_of(phases, part.kind) for part in done.composition.parts if part.preparation
        },
    )
    original = AutoModelForCausalLM.from_pretrained(done.parent)
    if name == "lora":
        return
    trainable = done.composition.trainable(original, there)
    masks = done.composition.rules(original, there).frozen_mask
    tied = "lm_head.weight" not in before
    for own in before:
        if own == "lm_head.weight" and tied:
            continue
        if own not in trainable:
            assert torch.equal(before[own], after[own]), own
        elif own in masks:
            frozen = masks[own].expand(before[own].shape)
            assert torch.equal(before[own][frozen], after[own][frozen]), own


def state_of(phases: Any, kind: str) -> Path:
    """Return the folder that a strategy prepared in this run."""
    from lingraft.records import read_json

    (found,) = {
        path.parent
        for path in phases.store.folder.glob("stages/prepare-*/record.json")
        if read_json(path)["inputs"]["strategy"] == kind
    }
    return Path(found)


REDUCED = {
    "freeze_random without a share": {"freeze_random": {"share": 0}},
    "freeze_changed without a share": {"freeze_changed": {"share": 0}},
    "ssu without a share": {"ssu": {"share": 0}},
    "replay without a share": {"english_replay": {"share": 0}},
    "generated replay without a share": {"generative_replay": {"share": 0}},
    "distillation without a share": {"distill": {"share": 0}},
    "an anchor without strength": {"l2_anchor": {"strength": 0}},
    "ewc without strength": {"ewc": {"strength": 0}},
    "equal rates": {"layerwise_rates": {"decay": 1}},
    "all of the way": {"interpolate": {"alpha": 1}},
    "several": [{"ssu": {"share": 0}}, {"l2_anchor": {"strength": 0}}, {"interpolate": {"alpha": 1}}],
}


@pytest.mark.parametrize("name", REDUCED)
def test_at_strength_nothing_it_is_plain_bit_for_bit(phases: Any, name: str) -> None:
    plain, reduced = phases.train("plain").tensors(), phases.train(REDUCED[name]).tensors()
    assert all(torch.equal(plain[one], reduced[one]) for one in plain)


def test_the_recorded_share_is_of_the_rows_that_are_trained_on(phases: Any) -> None:
    job = phases.job({"english_replay": {"share": 0.5, "from": "phase_one"}}, max_length=48)
    endless = (Message("user", "on and on " * 48), Message("assistant", "cut off"))
    old = [
        replace(one, messages=endless) if place % 3 == 0 else one
        for place, one in enumerate(job.previous_data)
    ]
    notes: list[str] = []
    phases.watcher.noted = notes.append
    result = phases.make(replace(job, previous_data=old)).result
    assert 0 < result["replayed"] < 12
    assert result["replayed"] == 12 - result["dropped"]  # twelve were drawn
    assert result["examples"] == 12 + result["replayed"]
    assert result["replay_share"] == result["replayed"] / result["examples"]
    assert f"{result['dropped']} of the dropped examples were replayed" in notes[-1]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"distill": {"share": 0}}, True),
        ({"distill": {"share": 0, "weight": 0}}, False),
        ([{"english_replay": {"share": 0.25}}, {"distill": {"share": 0}}], False),
        ("plain", False),
    ],
)
def test_distillation_that_finds_nothing_to_hold_is_reported(phases: Any, written: Any, told: bool) -> None:
    notes: list[str] = []
    phases.watcher.noted = notes.append
    phases.train(written)
    assert any("'distill' acts on replayed rows, and there are none" in note for note in notes) is told


def test_distillation_without_weight_is_replay(phases: Any) -> None:
    replay = {"share": 0.25, "from": "phase_one"}
    one = phases.train({"english_replay": replay}).tensors()
    other = phases.train({"distill": {**replay, "weight": 0}}).tensors()
    assert other.keys() == one.keys()
    # The draw is seeded by the strategy's name, so the rows differ, and so do the weights.
    assert phases.train({"distill": {**replay, "weight": 0}}).stage.result["replayed"] == 4


def test_an_alpha_of_nothing_is_the_model_before(phases: Any) -> None:
    done = phases.train({"interpolate": {"alpha": 0}})
    before, after = done.before(), done.tensors()
    assert all(torch.equal(before[one], after[one]) for one in before)


def test_what_only_combines_shares_the_training_of_plain(phases: Any) -> None:
    plain = phases.train("plain")
    swept = [phases.train({"interpolate": {"alpha": alpha}}) for alpha in (0.25, 0.5)]
    assert {one.stage.fingerprint for one in swept} == {plain.stage.fingerprint}
    assert len({one.made.fingerprint for one in swept}) == 2
    before, trained = plain.before(), plain.tensors()
    for one, alpha in zip(swept, (0.25, 0.5), strict=True):
        for name, tensor in one.tensors().items():
            torch.testing.assert_close(tensor, before[name] + alpha * (trained[name] - before[name]))


def test_a_start_whose_files_name_tensors_otherwise_is_combined_all_the_same(phases: Any) -> None:
    usual = phases.train({"interpolate": {"alpha": 0.25}}).tensors()
    file = phases.model() / "model.safetensors"
    named = {
        name.removeprefix("model."): own for name, own in load_file(file).items()
    }  # as the inner model's
    save_file(named, file, metadata={"format": "pt"})
    job = replace(phases.job({"interpolate": {"alpha": 0.25}}), label="otherwise named")
    parent = replace(job.parent, identity={"weights": "the same ones in other files"})
    made = phases.combine(replace(job, parent=parent))
    reader = CheckpointReader(made.folder / CHECKPOINT)
    assert set(reader.names) == set(usual)
    assert all(torch.equal(reader.tensor(name), own) for name, own in usual.items())
    assert sorted(path.name for path in made.folder.iterdir()) == [CHECKPOINT, "record.json", "timing.json"]


RESUMED = [
    "ssu",
    "l2_anchor",
    "ewc",
    "distill",
    "generative_replay",
    "layerwise_rates",
    "spectrum",
    "half",
    "lora",
    "a composition",
]


# The composition has a mask, a pull, a penalty on outputs and rates; the others freeze parts, or add rows.
RESUMED_ALWAYS = {
    ("ewc", "float32"),
    *((name, precision) for name in ("lora", "a composition") for precision in ("float32", "bf16_pure")),
}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=() if (name, precision) in RESUMED_ALWAYS else pytest.mark.slow)
        for precision in ("float32", "bf16_pure")
        for name in RESUMED
    ],
)
def test_stopped_in_the_middle_and_resumed_it_is_the_undisturbed_run(
    phases: Any, name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = phases.job(STRATEGIES[name], precision=precision, save_every=1)
    undisturbed = phases.job(STRATEGIES[name], precision=precision)
    told = 0

    def stop(progress: Any) -> None:
        nonlocal told
        told += progress.loss is not None
        if told == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(phases.watcher, "stage_progressed", stop)
        with pytest.raises(KeyboardInterrupt):
            phases.make(job)
    resumed = phases.make(job)
    assert resumed.timing["resumed_from"] in (2, 3)
    expected = train_afresh(phases, undisturbed)
    assert expected.timing["resumed_from"] is None
    assert resumed.result["losses"] == expected.result["losses"]
    one, other = (CheckpointReader(stage.folder / CHECKPOINT) for stage in (resumed, expected))
    assert all(torch.equal(one.tensor(own), other.tensor(own)) for own in one.names)


def train_afresh(phases: Any, job: Any) -> FinishedStage:
    """Train a job in a run of its own."""
    with Store(phases.store.folder.parent / "afresh") as store:
        return Executor(store).make(phases.described(replace(job, label="afresh")))


WORKER = Path(__file__).with_name("process_worker.py")
FILE = "model.safetensors"
LOW_BITS: dict[str, tuple[str, dict[str, str]]] = {
    "a composition in bf16_pure": ("a composition", {"precision": "bf16_pure"}),
    "freeze_random in 8 bits": ("freeze_random", {"precision": "bf16_pure", "optimizer": "adamw_8bit"}),
}
TRAINED = "trained.safetensors"


@pytest.fixture(scope="module")
def on_processes(
    phases_in: Callable[[Store], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[list[Any], dict[str, torch.Tensor], Path, Path]]:
    """Train every strategy on one process, and where it is asked for on a group of two.

    Returns a function of a strategy's name and a way (`sharded`, `replicated`; None: one process) that returns the
    losses, the weights, the start and the folder of all.
    """
    folder = tmp_path_factory.mktemp("processes")
    alone: dict[str, PhaseTask] = {}

    def train_alone(_: Processes, task: PhaseTask, **given: Any) -> TrainedPhase:
        alone[label] = task
        trained = train_task(task, **given)
        write_json_atomically(task.folder / "losses.json", trained.outcome.losses)
        return trained

    with pytest.MonkeyPatch.context() as patch, Store(folder / "run") as store:
        patch.setattr(train, "train_on", train_alone)
        phases = phases_in(store)

        def make(name: str, job: Any) -> None:
            made = phases.make(job).folder  # where it was published, after it trained elsewhere
            if name in alone:  # else another one had trained alike
                moved = {"folder": made, "checkpoint": made / CHECKPOINT}
                alone[name] = alone[name].model_copy(update=moved)

        for label, written in STRATEGIES.items():
            make(label, phases.job(written, learning_rate=1e-3, accumulation=2))
        for label, (name, options) in LOW_BITS.items():
            job = phases.job(STRATEGIES[name], learning_rate=1e-3, accumulation=2, **options)
            if "optimizer" in options:  # of fewer than 4,096 elements no piece has moments of 8 bits
                folder_of_wide = wide_model(folder / "wide", job.parent.folder)
                job = replace(job, parent=GivenModel({"weights": "wide"}, folder_of_wide))
            make(label, job)
    for name in {*REGISTRY, *STRATEGIES} - set(alone):  # they train as plain does
        choice = StrategyChoice.model_validate(STRATEGIES.get(name, name))
        alone[name] = alone["plain"].model_copy(update={"choice": choice})

    @cache
    def tasks(way: str | None) -> dict[str, PhaseTask]:
        if way is None:
            return alone
        places = {name: folder / way / name for name in alone}
        own = {
            name: task.model_copy(update={"folder": places[name], "checkpoint": places[name] / CHECKPOINT})
            for name, task in alone.items()
        }
        written = folder / f"{way}.json"
        write_json_atomically(written, {name: task.model_dump(mode="json") for name, task in own.items()})
        run_group(written, *(["--sharded"] if way == "sharded" else []))
        return own

    def found(name: str, way: str | None) -> tuple[list[Any], dict[str, torch.Tensor], Path, Path]:
        task = tasks(way)[name]
        return read_json(task.folder / "losses.json"), load_file(task.checkpoint / FILE), task.parent, folder

    return found


def wide_model(folder: Path, tokenizer_from: Path) -> Path:
    """Write a random model whose matrices, and each half of them, are made of blocks of 256 elements."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(
        tokenizer_from, hidden_size=128, intermediate_size=256, num_attention_heads=4
    )
    save_checkpoint(
        AutoModelForCausalLM.from_config(config),  # type: ignore[no-untyped-call]
        AutoTokenizer.from_pretrained(tokenizer_from),
        folder,
    )
    return folder


def run_group(tasks: Path, *options: str) -> None:
    """Train tasks on two processes."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [tasks.with_suffix(f".{rank}.log") for rank in range(2)]
    workers = []
    for rank, log in enumerate(logs):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = {
            **os.environ,
            **{key: str(value) for key, value in place.items()},
            "OMP_NUM_THREADS": "1",
        }
        with log.open("w") as errors_go_here:
            workers.append(
                subprocess.Popen(
                    [sys.executable, str(WORKER), str(tasks), *options],
                    env=environment,
                    stderr=errors_go_here,
                )
            )
    assert [one.wait(timeout=300) for one in workers] == [0, 0], "\n".join(map(Path.read_text, logs))


@pytest.mark.parametrize("way", ["sharded", pytest.param("replicated", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sorted({*REGISTRY, *STRATEGIES}))
def test_two_processes_train_what_one_trains(on_processes: Any, name: str, way: str) -> None:
    expected, weights, *_ = on_processes(name, None)
    losses, own, start, _ = on_processes(name, way)
    assert [step for step, _ in losses] == [step for step, _ in expected]
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in expected], abs=1e-5)
    before = load_file(start / FILE)
    assert own.keys() == weights.keys()
    for one, tensor in own.items():
        torch.testing.assert_close(tensor, weights[one], rtol=0, atol=1e-5)
        kept = weights[one] == before[one]  # bit for bit, as in one process
        assert torch.equal(tensor[kept], before[one][kept]), one


@pytest.mark.parametrize("name", LOW_BITS)
def test_bf16_weights_in_pieces_follow_those_of_one_process_but_for_rounding(
    on_processes: Any, name: str
) -> None:
    expected, weights, *_ = on_processes(name, None)
    losses, own, start, _ = on_processes(name, "sharded")
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in expected], rel=0.01)
    before = load_file(start / FILE)
    for one, tensor in own.items():
        # Each is rounded at random to one of its two neighbours in every step.
        # Noise of as many neighbours as there are steps, and no more than a few times what the weights move.
        torch.testing.assert_close(tensor, weights[one], rtol=2**-5, atol=8e-3)
        kept = (weights[one] == before[one]) & (before[one].bfloat16() != before[one])  # what trains is bf16
        assert torch.equal(tensor[kept], before[one][kept]), one
    assert not all(torch.equal(own[one], before[one]) for one in own)


def test_a_model_that_answers_is_in_pieces(on_processes: Any) -> None:
    *_, place = on_processes("distill", "sharded")
    found = read_json(place / "answers.json")
    assert found["held"] == pytest.approx(found["all"] / 2, rel=0.02)
    assert found["away"] < 1e-5


def test_a_trainer_of_ones_own_that_divides_its_model_trains_what_one_process_trains(
    on_processes: Any, tmp_path: Path
) -> None:
    _, _, start, place = on_processes("plain", "sharded")
    worker = runpy.run_path(str(WORKER))
    worker["train_in_a_script"](start, tmp_path, 1)
    expected, found, before = (load_file(one) for one in (tmp_path / TRAINED, place / TRAINED, start / FILE))
    assert expected.keys() == found.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)
        kept = expected[name] == before[name]
        assert torch.equal(tensor[kept], before[name][kept]), name
    assert any(
        (found[name] == before[name]).any() and not torch.equal(found[name], before[name]) for name in found
    )


def test_a_prepared_state_is_shared_by_cells_that_start_alike(phases: Any) -> None:
    for written in ({"ssu": {"tokens": 300, "share": 0.25}}, {"ssu": {"tokens": 300, "share": 0.75}}):
        phases.train(written)
    assert len(list(phases.store.folder.glob("stages/prepare-*"))) == 1
    phases.train({"ssu": {"tokens": 600}})
    assert len(list(phases.store.folder.glob("stages/prepare-*"))) == 2


def test_pure_bf16_gives_frozen_elements_their_float32_bits_back(phases: Any) -> None:
    done = phases.train(SHIELDED, precision="bf16_pure")
    before, after = done.before(), done.tensors()
    name = "model.layers.0.mlp.down_proj.weight"
    same = (before[name] == after[name]).all(dim=0)
    assert int(same.sum()) == before[name].shape[1] // 2
    assert not torch.equal(before[name].bfloat16().float()[:, same], before[name][:, same])


class SweptTwice(Strategy):
    """A strategy of which two options may be swept."""

    kind: ClassVar[str] = "twice"

    alpha: Annotated[float, Swept()] = 0.0
    beta: Annotated[int, Swept()] = 0


SWEEP = {"interpolate": {"alpha": [0.25, 0.5]}}


def test_a_sweep_is_a_cell_for_each_value() -> None:
    choices = swept(StrategyChoice.model_validate(["half", SWEEP]))
    assert [one.label for one in choices] == ["half+interpolate-0.25", "half+interpolate-0.5"]
    assert [build(one).parts[1].model_dump()["alpha"] for one in choices] == [0.25, 0.5]
    (alone,) = swept(StrategyChoice.model_validate("half"))
    assert alone.label == "half"
    (nested,) = swept(StrategyChoice.model_validate({"interpolate": {"alpha": [[0.25, 0.5]]}}))
    with pytest.raises(ConfigError, match=r"'alpha' of 'interpolate' is \[0\.25, 0\.5\]"):
        build(nested)


def test_of_two_swept_options_every_combination_is_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REGISTRY, "_entries", {"twice": f"{__name__}:SweptTwice"})
    choices = swept(
        StrategyChoice.model_validate({"twice": {"beta": [1, 2], "alpha": [0.5, 0.25], "name": "t"}})
    )
    assert [one.label for one in choices] == ["t-0.5-1", "t-0.5-2", "t-0.25-1", "t-0.25-2"]
    assert [build(one).parts[0].model_dump() for one in choices] == [
        {"alpha": alpha, "beta": beta} for alpha in (0.5, 0.25) for beta in (1, 2)
    ]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads a renamed name
@pytest.mark.filterwarnings(
    "ignore:The following .*_pattern keys did not match:RuntimeWarning"
)  # of expert stacks
@pytest.mark.parametrize(
    "architecture",
    [
        "llama",
        "mixtral",
        "qwen3_moe",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("qwen2", "gemma2")),
    ],
)
def test_adapters_that_are_kept_unmerged_make_the_merged_model(phases: Any, architecture: str) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel

    done = phases.train({"lora": {"rank": 2, "keep_adapter": True}}, architecture)
    ids = torch.tensor([[5, 9, 31, 44]])
    start = AutoModelForCausalLM.from_pretrained(done.parent)
    before = start(input_ids=ids).logits
    adapted = PeftModel.from_pretrained(start, str(done.stage.folder / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(done.folder)
    with torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=ids).logits, merged(input_ids=ids).logits)
        assert not torch.allclose(adapted(input_ids=ids).logits, before)
    # It names its base, so that it loads by itself, and lingraft reads of it what was merged.
    named = AutoPeftModelForCausalLM.from_pretrained(done.stage.folder / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(named(input_ids=ids).logits, merged(input_ids=ids).logits)
    reader, expected = open_weights(str(done.stage.folder / "adapter")), ModelWeights(done.folder)
    assert reader.names == expected.names
    for name in reader.names:
        (read,) = reader.pieces(name, 10**6)
        torch.testing.assert_close(read, expected.tensor(name).reshape(-1))
        torch.testing.assert_close(torch.cat([one.clone() for one in reader.pieces(name, 1)]), read)
    again = phases.train({"lora": {"rank": 2}}, architecture)
    assert not (again.stage.folder / "adapter").exists()
