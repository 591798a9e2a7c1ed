"""Processes that answer batches: each batch once, whoever dies, and no process left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lingraft.errors import ConfigError, LingraftError, ModelError
from lingraft.models.answering import Continue, Held, OnDemand
from lingraft.models.engine import Engine, ModelFiles
from lingraft.models.generation import Ending, Sampling, TokenPrompt
from lingraft.models.workers import Workers, answered_by, worker_count


@dataclass(frozen=True)
class Ask:
    """A batch: dies while a file is there (which it removes, unless it is to kill everybody), or raises, or answers."""

    place: int
    dies: Path | None = None
    by: str = "signal"
    always: bool = False
    error: Exception | None = None

    def __call__(self, held: Held) -> tuple[int, int, int]:
        if self.dies is not None and self.dies.exists():
            if not self.always:
                self.dies.unlink()
            if self.by == "memory":
                raise torch.OutOfMemoryError("no room for a tensor")
            print("a last word", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.error is not None:
            raise self.error
        held.model(torch.tensor([[1, 2]]))
        return self.place, os.getpid(), torch.get_num_threads()


def workers_of(process: int) -> list[psutil.Process]:
    """Return the processes that answer which a process has started."""
    found = []
    for child in psutil.Process(process).children():
        if child.status() != psutil.STATUS_ZOMBIE and "lingraft.models.worker" in child.cmdline():
            found.append(child)
    return found


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """The workers import this file, which holds their batches; each has one thread."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        changed.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def started(tiny_model: Path) -> Iterator[tuple[Workers, list[str]]]:
    notes: list[str] = []
    with answered_by(2, ModelFiles(tiny_model, torch.float32), torch.device("cpu"), notes.append) as workers:
        assert isinstance(workers, Workers)
        yield workers, notes
    assert not workers_of(os.getpid())


def test_both_answer_and_a_batch_that_kills_once_is_asked_again(
    started: tuple[Workers, list[str]], tmp_path: Path
) -> None:
    workers, notes = started
    assert {one.device.type for one in workers.model.parameters()} == {"meta"}
    assert list(workers.answers([])) == []
    (tmp_path / "once").touch()
    (tmp_path / "full").touch()
    asked = [Ask(place) for place in range(12)]
    asked[3] = Ask(3, tmp_path / "once")
    asked[6] = Ask(6, tmp_path / "full", by="memory")
    answers = dict(workers.answers(asked))
    assert {place: answer[0] for place, answer in answers.items()} == {place: place for place in range(12)}
    assert len({pid for _, pid, _ in answers.values()} - {os.getpid()}) >= 2
    assert {threads for _, _, threads in answers.values()} == {1}
    assert sorted(notes) == [
        "a process that answers ran out of memory; its batch is asked again.",
        "a process that answers was killed by SIGKILL; its batch is asked again.",
    ]


def test_a_batch_that_kills_two_is_an_error_with_the_last_lines(
    started: tuple[Workers, list[str]], tmp_path: Path
) -> None:
    workers, _ = started
    (tmp_path / "always").touch()
    with pytest.raises(
        LingraftError, match="over the same batch; the last one was killed by SIGKILL"
    ) as error:
        list(workers.answers([Ask(0), Ask(1, tmp_path / "always", always=True), Ask(2)]))
    assert "fewer --processes" in str(error.value)
    assert str(error.value).endswith("a last word")


def test_what_a_worker_raises_is_raised_here(tiny_model: Path) -> None:
    with Workers(2, ModelFiles(tiny_model, torch.float32), torch.device("cpu"), print) as workers:
        with pytest.raises(LingraftError, match=r"^a process that answers failed with KeyError: 'y'$"):
            list(workers.answers([Ask(0, error=KeyError("y"))]))
        with pytest.raises(ModelError, match=r"^the token 'x' has no embedding$"):  # by the other one
            list(workers.answers([Ask(0, error=ModelError("the token 'x' has no embedding"))]))


def test_a_model_that_cannot_be_loaded_leaves_no_process(tmp_path: Path) -> None:
    before = workers_of(os.getpid())
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        Workers(2, ModelFiles(tmp_path, torch.float32), torch.device("cpu"), print)
    assert workers_of(os.getpid()) == before


@pytest.mark.parametrize(
    ("asked", "devices", "found"), [(None, 0, 1), (3, 0, 3), (None, 8, 8), (2, 8, 2), (1, 8, 1)]
)
def test_one_process_an_accelerator_answers_unless_a_number_is_given(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, devices: int, found: int
) -> None:
    with_devices(monkeypatch, devices)
    assert worker_count(asked) == found


def with_devices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: count)


@pytest.mark.parametrize(("asked", "message"), [(0, "give at least 1"), (9, "there are 8 accelerators")])
def test_a_number_of_processes_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, asked: int, message: str
) -> None:
    with_devices(monkeypatch, 8)
    with pytest.raises(ConfigError, match=rf"--processes {asked}: {message}"):
        worker_count(asked)


def test_beside_a_server_the_model_is_loaded_only_when_a_batch_is_asked(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    inner = ModelFiles.load

    def counted(self: ModelFiles, *, with_weights: bool = True) -> Any:
        loads.append(with_weights)
        return inner(self, with_weights=with_weights)

    monkeypatch.setattr(ModelFiles, "load", counted)
    files = ModelFiles(tiny_model, torch.float32)
    batch = Continue(Engine(), (TokenPrompt((1, 5, 6)),), Sampling(max_new_tokens=4), Ending(frozenset({2})))
    with answered_by(1, files, torch.device("cpu"), beside_server=True) as answering:
        assert isinstance(answering, OnDemand)
        assert loads == [False]
        assert answering.model.device.type == "meta"
        first = list(answering.answers([batch]))
        answering.give_up()
        assert list(answering.answers([batch])) == first
        assert loads == [False, True, True]

    def full(self: torch.nn.Module, device: Any) -> torch.nn.Module:
        if str(device) != "cpu":
            raise torch.OutOfMemoryError
        return self

    monkeypatch.setattr("transformers.PreTrainedModel.to", full)
    noted: list[str] = []
    assert list(OnDemand(files, torch.device("cuda", 0), noted.append).answers([batch])) == first
    assert "cuda:0 has no room for the model" in noted[0]
