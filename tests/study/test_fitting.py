"""What no machine like this could train is refused by the model's config.json alone, with what would fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from lingraft.config.schema import StrategyChoice, Study, Training
from lingraft.errors import ConfigError
from lingraft.models.compute import Compute, compute_for
from lingraft.study import fitting
from lingraft.study.cards import plan_for_cards
from lingraft.study.fitting import misfit
from lingraft.study.stages.job import shape_in
from lingraft.train.memory_plan import Cut, LargestBatch, Setup, chosen_cut, total_memory, training_memory
from lingraft.train.processes import Processes

CARD = Compute("bf16", torch.device("cuda"), torch.bfloat16, torch.bfloat16)
GB = 10**9


def chosen(name: str) -> StrategyChoice:
    return StrategyChoice.model_validate(name)


@pytest.fixture(scope="module")
def llama_8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config.json of LLaMA-3-8B and nothing else."""
    folder = tmp_path_factory.mktemp("llama")
    AutoConfig.for_model(
        "llama",
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine have cards of 80 GB."""
    monkeypatch.setattr(
        fitting,
        "compute_for",
        lambda precision: Compute(precision, CARD.device, CARD.arithmetic, CARD.held),
    )
    monkeypatch.setattr(fitting, "total_memory", lambda _: 80 * GB)
    monkeypatch.setattr(fitting, "total_host", lambda: 400 * GB)


@pytest.mark.usefixtures("cards")
def test_8b_in_bf16_does_not_fit_one_card_and_is_told_what_does(llama_8b: Path) -> None:
    training = Training(precision="bf16")
    said = misfit("phase 'two'", llama_8b, chosen("plain"), training, Processes())
    assert said is not None
    assert "8.03 of 8.03 billion parameters in bf16" in said
    assert "on each device, and there are 80.0 GB" in said
    assert "training.optimizer=adamw_8bit training.precision=bf16_pure (5" in said
    assert "--processes 4 --sharded (" in said
    assert "the strategy lora (" in said
    assert "training.precision=bf16_pure (9" not in said, "96 GB do not fit either"
    small = Training(precision="bf16_pure", optimizer="adamw_8bit")
    assert misfit("", llama_8b, chosen("plain"), small, Processes()) is None
    assert misfit("", llama_8b, chosen("lora"), training, Processes()) is None
    assert misfit("", llama_8b, chosen("plain"), training, Processes(8)) is not None, "each has all weights"
    assert misfit("", llama_8b, chosen("plain"), training, Processes(8, sharded=True)) is None


@pytest.mark.usefixtures("cards")
def test_where_adapters_do_not_fit_a_base_of_4_bits_may(
    llama_8b: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")
    training = Training(precision="bf16", max_length=512)
    monkeypatch.setattr(fitting, "total_memory", lambda _: 16 * GB)
    said = misfit("", llama_8b, chosen("lora"), training, Processes())
    assert said is not None
    assert "the strategy lora with base: nf4 (pip install 'lingraft[qlora]') (" in said
    small = StrategyChoice.model_validate({"lora": {"base": "nf4"}})
    assert misfit("", llama_8b, small, training, Processes()) is None
    whole, in_four_bits = shape_in(llama_8b, chosen("lora")), shape_in(llama_8b, small)
    assert whole is not None
    assert in_four_bits is not None
    assert replace(in_four_bits, in_four_bits=0) == whole, "sizes count weights and not bytes"
    assert in_four_bits.in_four_bits == whole.matrices - whole.trained_matrices


@pytest.mark.usefixtures("cards")
def test_a_model_that_the_machine_cannot_load_or_save_is_refused_on_any_card(
    llama_8b: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "total_host", lambda: 32 * GB)
    said = misfit("phase 'two'", llama_8b, chosen("lora"), Training(precision="bf16"), Processes())
    assert said is not None
    assert "takes 32.3 GB of the machine's own memory, and there are 32.0 GB" in said


def test_8b_on_eight_cards_computes_steps_whole(llama_8b: Path) -> None:
    shape = shape_in(llama_8b, chosen("plain"))
    assert shape is not None
    assert shape.parameters == pytest.approx(8.03e9, rel=1e-3)
    training = Training(precision="bf16", tokens_per_batch=32_768)
    share = LargestBatch(16, 2048, 12_000).part(8)

    def cut(processes: int, **options: Any) -> Cut:
        own = training.model_copy(update=options)

        def planned(cut: Cut) -> Any:
            setup = Setup.of(own, CARD, cut, processes, sharded=processes > 1)
            return training_memory(shape, share.part(cut.pieces), setup)

        return chosen_cut(share, own, planned, 80 * GB)

    assert cut(8) == Cut(1, checkpointing=False)
    assert cut(3) == Cut(2), "less room: in pieces that keep a card busy"
    assert cut(3, accumulation=1) == Cut(1, checkpointing=True), "given: activations are computed again"
    assert cut(8, gradient_checkpointing=True) == Cut(1, checkpointing=True)
    assert cut(2, gradient_checkpointing=False) == Cut(2, checkpointing=False), "a row is not cut"


def test_a_study_that_cannot_fit_ends_before_a_byte_of_the_model_is_read(
    lingraft: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_model / "config.json").read_bytes())  # and no weights at all
    asked = [{"task": "worldbook", "limit": 2}]
    study = {
        "name": "large",
        "phases": [
            {"name": "one", "checkpoint": "model"},
            {"name": "two", "data": {"german": {"source": "worldbook:counting/de", "limit": 8}}},
        ],
        "evaluate": {"task_ability": asked, "language_ability": asked},
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study), encoding="utf-8")
    monkeypatch.setattr(fitting, "total_memory", lambda _: 1000)
    for command in ("run", "plan"):
        done = lingraft(command, "study.yaml")
        assert done.returncode == 2
        assert "takes at least" in done.stderr
        assert "phase 'two', strategy 'plain'" in done.stderr
    monkeypatch.undo()


def card_study(folder: Path, *strategies: Any) -> Study:
    german = {"german": {"source": "worldbook:counting/de"}}
    return Study.model_validate(
        {
            "name": "large",
            "phases": [
                {"name": "one", "checkpoint": str(folder)},
                {"name": "two", "data": german, "strategies": strategies},
            ],
        }
    )


def test_8b_is_planned_for_a_card_that_is_not_here_by_its_config_alone(llama_8b: Path) -> None:
    eight = {"plain": {"name": "eight", "training": {"optimizer": "adamw_8bit"}}}
    four = {"lora": {"base": "nf4", "name": "four"}}
    found = plan_for_cards(card_study(llama_8b, "plain", eight, "lora", four), 80 * GB, Processes())
    by_name = {one.strategy: one for one in found.trainings}
    assert {name: one.fits for name, one in by_name.items()} == {
        "plain": False, "eight": True, "lora": True, "four": True,
    }  # fmt: skip
    assert by_name["plain"].precision == "bf16", "auto is resolved for a card, not for this machine"
    assert by_name["eight"].precision == "bf16_pure"
    assert by_name["plain"].memory_bytes > 18 * 8.03e9
    assert by_name["four"].memory.weights < 0.4 * by_name["lora"].memory.weights
    (problem,) = found.problems
    assert "strategy 'plain'" in problem
    assert "training.optimizer=adamw_8bit" in problem
    assert "lora with base: nf4 (" in problem
    divided = plan_for_cards(card_study(llama_8b, "plain"), 80 * GB, Processes(8, sharded=True))
    assert divided.problems == ()
    small = plan_for_cards(card_study(llama_8b, "plain"), 4 * GB, Processes())
    assert "Nothing fits here. The least would be the strategy lora with base: nf4 (" in small.problems[0]
    with pytest.raises(ConfigError, match="--sharded cannot divide"):
        plan_for_cards(card_study(llama_8b, four), 80 * GB, Processes(8, sharded=True))
    with pytest.raises(ConfigError, match="no-such-model: its config"):
        plan_for_cards(card_study(llama_8b / "no-such-model"), 80 * GB, Processes())


def test_all_memory_is_what_a_container_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = SimpleNamespace(total=0)
    monkeypatch.setattr("lingraft.train.memory_plan.psutil.swap_memory", lambda: none)
    whole = total_memory(compute_for("float32"))
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("lingraft.train.memory_plan._LIMITS", (limit, tmp_path / "none"))
    limit.write_text("max\n")
    assert total_memory(compute_for("float32")) >= whole
    limit.write_text("1234567\n")
    assert total_memory(compute_for("float32")) == 1_234_567
