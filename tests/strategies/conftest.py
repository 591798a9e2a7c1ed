"""Tiny models of several architectures on disk, and the way that a study trains a phase with strategies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lingraft.config.schema import StrategyChoice, Training
from lingraft.data.example import Example, Message
from lingraft.models.checkpoints import CheckpointReader, save_checkpoint
from lingraft.stage import CHECKPOINT, FinishedStage, GivenModel, MadeModel
from lingraft.strategies.composition import Composition
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.stages.combine import Combine
from lingraft.study.stages.job import TrainingJob
from lingraft.study.stages.prepare import Prepare
from lingraft.study.stages.train import Train
from lingraft.study.store import Store
from lingraft.train.processes import Processes

TRAINING = Training(
    learning_rate=5e-3,
    epochs=2,
    tokens_per_batch=256,
    precision="float32",
    weight_decay=0.1,
    warmup_share=0.0,
)


def rows(count: int, language: str = "de", prefix: str = "g") -> tuple[Example, ...]:
    return tuple(
        Example(
            id=f"{language}{i}",
            messages=(Message("user", f"question {i} {language}"), Message("assistant", f"answer {i * 7}")),
            language=language,
            group=f"{prefix}{i}",
            source=language,
        )
        for i in range(count)
    )


def make_model(
    folder: Path, architecture: str, seed: int, tokenizer_from: Path, configuration: Callable[..., Any]
) -> Path:
    """Write a random model of two layers, with the tokenizer of another folder."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    torch.manual_seed(seed)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        configuration(architecture, len(tokenizer), **ends)
    )
    save_checkpoint(model, tokenizer, folder)
    return folder


@dataclass
class Trained:
    """What a phase left."""

    stage: FinishedStage
    made: FinishedStage
    folder: Path
    parent: Path
    composition: Composition

    def tensors(self) -> dict[str, torch.Tensor]:
        return read(self.folder)

    def before(self) -> dict[str, torch.Tensor]:
        return read(self.parent)


def read(folder: Path) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(folder)
    return {name: reader.tensor(name).clone() for name in reader.names}


class Phases:
    """Trains phases as a study does, in one run folder."""

    def __init__(self, store: Store, tokenizer_from: Path, configuration: Callable[..., Any]) -> None:
        self.store = store
        self.watcher = Watcher()
        self.executor = Executor(store, self.watcher)
        self.processes = Processes()
        self._tokenizer_from, self._configuration = tokenizer_from, configuration

    def model(self, architecture: str = "llama", seed: int = 1) -> Path:
        folder = self.store.folder / f"{architecture}-{seed}"
        if not folder.exists():
            make_model(folder, architecture, seed, self._tokenizer_from, self._configuration)
        return folder

    def job(self, written: Any, architecture: str = "llama", **training: Any) -> TrainingJob:
        parent, base = self.model(architecture, 1), self.model(architecture, 0)
        return TrainingJob(
            label=json.dumps(written),
            parent=GivenModel({"weights": f"{architecture} 1"}, parent),
            examples=rows(12),
            data=[{"content": "de"}],
            counts=[],
            choice=StrategyChoice.model_validate(written),
            training=TRAINING.model_copy(update=training),
            seed=0,
            base=GivenModel({"weights": f"{architecture} 0"}, base),
            previous_data=rows(30, "en"),
            english=rows(12, "en"),
            replay_data={need: {"content": "en"} for need in ("previous_data", "english", "old_english")},
        )

    def train(self, written: Any, architecture: str = "llama", **training: Any) -> Trained:
        job = self.job(written, architecture, **training)
        stage = made = self.make(job)
        if job.composition.combines:
            made = self.combine(job)
        return Trained(stage, made, made.folder / CHECKPOINT, self.model(architecture, 1), job.composition)

    def make(self, job: TrainingJob) -> FinishedStage:
        return self.executor.make(self.described(job), with_artefacts=True)

    def combine(self, job: TrainingJob) -> FinishedStage:
        combine = Combine(job.label, job.parent, MadeModel(self.described(job)), job.choice)
        return self.executor.make(combine, with_artefacts=True)

    def states(self, job: TrainingJob) -> dict[str, Prepare]:
        parts = (part for part in job.composition.parts if part.preparation is not None)
        return {part.kind: Prepare(job.label, job, part) for part in parts}

    def described(self, job: TrainingJob) -> Train:
        return Train(job.label, job, self.states(job), self.processes)


@pytest.fixture(scope="session")
def phases_in(tiny_model: Path, tiny_configuration: Callable[..., Any]) -> Callable[[Store], Phases]:
    """A function that trains phases in a store."""
    return lambda store: Phases(store, tiny_model, tiny_configuration)


@pytest.fixture
def phases(tmp_path: Path, phases_in: Callable[[Store], Phases]) -> Iterator[Phases]:
    with Store(tmp_path / "run") as store:
        yield phases_in(store)


@pytest.fixture(scope="session")
def example_rows() -> Callable[..., tuple[Example, ...]]:
    return rows
