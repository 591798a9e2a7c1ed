"""Sharded training: who reads and holds what, what is written, and going on with another number of processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from lingraft.config.schema import StrategyChoice, Training
from lingraft.data.encoded import EncodedExample, write_table
from lingraft.models.checkpoints import save_checkpoint
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.records import read_json, write_json_atomically
from lingraft.train.run import PhaseTask, train_task

TRAINING = Training(
    learning_rate=3e-4,  # where a gradient is almost 0, AdamW makes rounding noise a part of it
    epochs=1,
    tokens_per_batch=96,
    accumulation=2,
    warmup_share=0.1,
    precision="float32",
    save_every=2,
)
HALF = {"freeze_modules": {"layers": "0-0", "embeddings": True}}
Seen = dict[str, list[dict[str, Any]]]


@dataclass
class Bench:
    """Tasks on a tiny model, and what the processes saw that trained them."""

    folder: Path
    parent: Path

    def task(self, name: str, choice: Any = "plain", **options: Any) -> PhaseTask:
        return PhaseTask(
            parent=options.pop("parent", self.parent),
            base=None,
            choice=StrategyChoice.model_validate(choice),
            states={},
            training=TRAINING.model_copy(update=options),
            encoded=self.folder / "encoded",
            folder=self.folder / name,
            checkpoint=self.folder / name / "checkpoint",
            seed=0,
            trust_remote_code=False,
        )

    def run(self, processes: int, tasks: dict[str, dict[str, Any]]) -> Seen:
        """Train tasks on a group of processes, and return what each process saw of each."""
        results = self.folder / f"on {processes}"
        results.mkdir()
        entries = {
            name: {
                "sharded": True,
                "measured": False,
                "asked": None,
                "stop_after": None,
                "fused": False,
                **entry,
            }
            | {"task": entry["task"].model_dump(mode="json")}
            for name, entry in tasks.items()
        }
        write_json_atomically(results / "tasks.json", entries)
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {
            "WORLD_SIZE": processes,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": 1,
        }
        workers, logs = [], [results / f"{rank}.log" for rank in range(processes)]
        script = Path(__file__).with_name("sharded_group.py")
        for rank, log in enumerate(logs):
            place = {key: str(value) for key, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
            with log.open("w") as errors_go_here:
                workers.append(
                    subprocess.Popen(
                        [sys.executable, str(script), str(results / "tasks.json"), str(results)],
                        env={**os.environ, **place},
                        stderr=errors_go_here,
                    )
                )
        try:
            codes = [one.wait(timeout=300) for one in workers]
        finally:
            for one in workers:
                one.kill()
                one.wait()
        assert codes == [0] * processes, "\n".join(map(Path.read_text, logs))
        return {
            name: [read_json(results / f"{name}.{rank}.json") for rank in range(processes)] for name in tasks
        }


@pytest.fixture(scope="module")
def bench(
    tiny_model: Path, examples: Callable[..., list[EncodedExample]], tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    write_table(examples(count=22), folder / "encoded")
    return Bench(folder, tiny_model)


@pytest.fixture(scope="module")
def untied(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose files hold a head of its own, though its configuration says that it is tied."""
    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = False
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("untied") / "model"
    save_checkpoint(LlamaForCausalLM(config), load_tokenizer(tiny_model), folder)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, "tie_word_embeddings": True}))
    return folder


@pytest.fixture(scope="module")
def alone(bench: Bench) -> dict[str, Any]:
    """Losses of one process that is not stopped, and the folder of its model."""
    task = bench.task("alone")
    return {"losses": [list(one) for one in train_task(task).outcome.losses], "folder": task.checkpoint}


@pytest.fixture(scope="module")
def mixture(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of four experts, of which each token is sent to two."""
    sizes = AutoConfig.from_pretrained(tiny_model).to_dict()
    kept = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "bos_token_id", "eos_token_id", "pad_token_id",
    )  # fmt: skip
    config = MixtralConfig(
        **{key: sizes[key] for key in kept}, intermediate_size=48, num_local_experts=4, num_experts_per_tok=2
    )
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("mixture") / "model"
    save_checkpoint(MixtralForCausalLM(config), load_tokenizer(tiny_model), folder)
    return folder


@pytest.fixture(scope="module")
def on_two(bench: Bench, untied: Path, mixture: Path) -> Seen:
    return bench.run(
        2,
        {
            "straight": {"task": bench.task("straight"), "measured": True},
            "fused": {"task": bench.task("fused", save_every=0), "fused": True},
            "untied": {"task": bench.task("untied", HALF, parent=untied)},
            "mixture": {"task": bench.task("mixture", save_every=0, parent=mixture)},
            "asked": {"task": bench.task("asked", save_every=0), "asked": 1, "stop_after": 2},
            "replicated": {
                "task": bench.task("replicated", save_every=0),
                "sharded": False,
                "asked": 1,
                "stop_after": 2,
            },
        },
    )


def assert_same_losses(found: Any, expected: Any) -> None:
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], abs=1e-5)


def assert_same_model(found: Path, expected: Path) -> None:
    """The files of weights have the same names, types, marks and, but for rounding, values; all else the same bytes."""
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in expected.iterdir())
    for path in expected.iterdir():
        if path.suffix != ".safetensors":
            assert (found / path.name).read_bytes() == path.read_bytes(), path.name
    own, others = (load_file(folder / "model.safetensors") for folder in (found, expected))
    assert own.keys() == others.keys()
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, others[name], rtol=0, atol=1e-5)
    for folder in (found, expected):
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_the_first_process_alone_reads_weights(on_two: Seen) -> None:
    for name in ("straight", "untied"):
        first, second = on_two[name]
        assert [path for path in first["opened"] if path.endswith("model.safetensors")], name
        assert second["opened"] == [], name


def test_no_other_process_holds_more_than_its_pieces_and_one_whole_tensor(on_two: Seen, bench: Bench) -> None:
    sizes = [4 * one.numel() for one in load_model(bench.parent).parameters()]
    allowed = sum(sizes) / 2 + max(sizes) + 4096  # buffers
    first, second = (seen["most"] for seen in on_two["straight"])
    assert 0 < second <= allowed < first  # which holds the model that it gives away


def test_two_processes_train_and_write_what_one_does(
    on_two: Seen, bench: Bench, alone: dict[str, Any]
) -> None:
    assert_same_losses(on_two["straight"][0]["losses"], alone["losses"])
    assert_same_model(bench.folder / "straight" / "checkpoint", alone["folder"])


def test_so_do_two_whose_logits_are_never_whole(on_two: Seen, bench: Bench, alone: dict[str, Any]) -> None:
    assert_same_losses(on_two["fused"][0]["losses"], alone["losses"])
    assert_same_model(bench.folder / "fused" / "checkpoint", alone["folder"])


def test_frozen_weights_and_a_head_of_its_own_come_out_as_of_one_process(
    on_two: Seen, bench: Bench, untied: Path
) -> None:
    task = bench.task("untied alone", HALF, parent=untied)
    assert_same_losses(on_two["untied"][0]["losses"], train_task(task).outcome.losses)
    assert_same_model(bench.folder / "untied" / "checkpoint", task.checkpoint)


def test_a_resumable_checkpoint_takes_12_bytes_a_parameter(on_two: Seen, bench: Bench) -> None:
    assert on_two["straight"]
    parameters = sum(one.numel() for one in load_model(bench.parent).parameters())
    folders = sorted(
        (bench.folder / "straight" / "trainer").glob("checkpoint-*"), key=lambda one: int(one.name[11:])
    )
    assert len(folders) == 2
    files = [path for path in folders[0].iterdir() if path.suffix == ".safetensors"]
    assert len(files) == 2  # one of each process
    headers = sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in files)
    assert sum(path.stat().st_size for path in files) - headers == 12 * parameters
    assert headers < 512 * 3 * len(list(load_model(bench.parent).parameters()))  # some hundred bytes a tensor
    assert not list(folders[0].glob("*.pt")) + list(folders[0].glob(".metadata"))


@pytest.mark.parametrize("name", ["asked", "replicated"])
def test_asked_in_one_process_all_save_one_step_and_end(on_two: Seen, bench: Bench, name: str) -> None:
    assert all(one.get("stopped") for one in on_two[name])
    assert [path.name for path in (bench.folder / name / "trainer").glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.fixture(scope="module")
def on_three(on_two: Seen, bench: Bench) -> Seen:
    assert on_two["asked"]
    for name in ("asked", "replicated"):
        shutil.copytree(bench.folder / name, bench.folder / f"{name} on 3")
    return bench.run(
        3,
        {
            f"{name} on 3": {"task": bench.task(f"{name} on 3", save_every=0)}
            for name in ("asked", "replicated")
        },
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["asked", "replicated"])
def test_three_processes_go_on_where_two_were_stopped(
    on_three: Seen, bench: Bench, alone: dict[str, Any], name: str
) -> None:
    (done, *_) = on_three[f"{name} on 3"]
    assert done["resumed_from"] == 2
    assert_same_losses(done["losses"], alone["losses"])
    assert_same_model(bench.folder / f"{name} on 3" / "checkpoint", alone["folder"])


@pytest.mark.parametrize("name", ["asked", "replicated"])
def test_one_process_goes_on_where_two_were_stopped(
    on_two: Seen, bench: Bench, alone: dict[str, Any], name: str
) -> None:
    assert on_two[name]
    shutil.copytree(bench.folder / name, bench.folder / f"{name} on 1")
    done = train_task(bench.task(f"{name} on 1", save_every=0)).outcome
    assert done.resumed_from == 2
    assert_same_losses(done.losses, alone["losses"])
    assert_same_model(bench.folder / f"{name} on 1" / "checkpoint", alone["folder"])


def test_tokenizers_are_those_of_the_start(on_two: Seen, bench: Bench) -> None:
    assert on_two["straight"]
    own = AutoTokenizer.from_pretrained(bench.folder / "straight" / "checkpoint")
    assert own.get_vocab() == AutoTokenizer.from_pretrained(bench.parent).get_vocab()


@pytest.mark.slow
def test_groups_that_each_divide_a_whole_model_train_as_one_process(
    bench: Bench, alone: dict[str, Any]
) -> None:
    """Four processes, of which two and two divide the model, as on two nodes; also stopped, frozen and with a pull."""
    choice = [HALF, {"l2_anchor": {"strength": 0.5}}]
    pull = bench.task("pulled alone", choice)
    expected = train_task(pull).outcome
    pulled = bench.task("pulled in groups", choice).model_copy(update={"replicas": 2})
    stopped = bench.task("stopped in groups", save_every=0).model_copy(update={"replicas": 2})
    seen = bench.run(
        4,
        {
            "1 stopped": {"task": stopped, "asked": 3, "stop_after": 2},  # in the order of their names
            "2 goes on": {"task": stopped},
            "3 pulled": {"task": pulled},
        },
    )
    assert [own.get("stopped") for own in seen["1 stopped"]] == [True] * 4
    assert [own["resumed_from"] for own in seen["2 goes on"]] == [2] * 4
    for name, losses in (("2 goes on", alone["losses"]), ("3 pulled", expected.losses)):
        for own in seen[name]:
            assert [one for _, one in own["losses"]] == pytest.approx([one for _, one in losses], abs=1e-5)
    for task, folder in ((stopped, alone["folder"]), (pulled, pull.checkpoint)):
        found = load_model(task.checkpoint).state_dict()
        for name, weight in load_model(folder).state_dict().items():
            torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5)


def test_experts_that_two_processes_share_train_as_on_one(bench: Bench, on_two: Seen, mixture: Path) -> None:
    task = bench.task("mixture alone", save_every=0, parent=mixture)
    losses = train_task(task).outcome.losses
    assert_same_losses(on_two["mixture"][0]["losses"], losses)
    assert_same_model(bench.folder / "mixture" / "checkpoint", task.checkpoint)
    before, after = (load_file(folder / "model.safetensors") for folder in (mixture, task.checkpoint))
    experts = [name for name in before if ".experts." in name]
    assert experts
    assert all(not torch.equal(before[name], after[name]) for name in experts), "all of them trained"
