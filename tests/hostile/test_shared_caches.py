"""What stages share beside the store, used by two processes at once: made once, paid once, and whole after a kill."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from judge_server import (
    ANSWERS,
    JudgeServer,
    Request,
    Response,
    outputs,
    prefers_longer,
    running_server,
    settings,
)

from lingraft.append_log import owned_files
from lingraft.claims import CLAIMS, claim
from lingraft.data.chat import encode_examples
from lingraft.data.encodings import encode_once
from lingraft.data.example import Example, Message
from lingraft.evaluate.answers import AnswerLog
from lingraft.judge.win_rate import judge_answers
from lingraft.models.compute import compute_for
from lingraft.models.generation import Sampling, TransformersGenerator
from lingraft.models.loading import load_tokenizer
from lingraft.strategies.replay_rows import ReplaySettings, make_replay

ROWS = [
    Example(f"r{n}", (Message("user", f"Say {n}."), Message("assistant", "yes " * n)), "en", f"g{n}", "rows")
    for n in range(1, 9)
]


@contextmanager
def processes(*works: Callable[[], object]) -> Iterator[Sequence[BaseProcess]]:
    """Run each function in a forked process; at the end all are gone."""
    running = [multiprocessing.get_context("fork").Process(target=_alone, args=(one,)) for one in works]
    with ExitStack() as ends:
        for one in running:
            one.start()
            ends.callback(one.join)
            ends.callback(one.kill)
        yield running


def _alone(work: Callable[[], object]) -> None:
    torch.set_num_threads(1)  # the threads of torch do not survive a fork
    work()


def until(is_true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def note(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(f"{text}\n")


def encoding(
    tiny_model: Path, place: Path, monkeypatch: pytest.MonkeyPatch, slow: float
) -> Callable[[str], None]:
    """Return a function that encodes the rows, so slowly, and writes what it got beside the cache."""
    inner = encode_examples

    def slowly(*arguments: object, folder: Path, **options: object) -> object:
        made = inner(*arguments, folder=folder, **options)  # type: ignore[arg-type]
        note(place / "made", str(os.getpid()))
        time.sleep(slow)
        return made

    monkeypatch.setattr("lingraft.data.encodings.encode_examples", slowly)

    def encode(name: str) -> None:
        found = encode_once(
            ROWS,
            load_tokenizer(tiny_model),
            64,
            place / "cache",
            noted=lambda said: note(place / "noted", said),
        )
        (place / name).write_text(json.dumps([one.input_ids for one in found.examples]))

    return encode


def test_rows_that_two_trainings_want_at_once_are_encoded_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = encoding(tiny_model, tmp_path, monkeypatch, 0.5)
    with processes(lambda: encode("a"), lambda: encode("b"), lambda: encode("c")) as running:
        for one in running:
            one.join(60)
    (made,) = lines(tmp_path / "made")
    said = f"the table of encoded rows: is being made by process {made} on "
    assert any(one.startswith(said) for one in lines(tmp_path / "noted"))
    assert len(json.loads((tmp_path / "a").read_text())) == len(ROWS)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == (tmp_path / "c").read_text()


def test_who_waits_encodes_where_the_other_one_is_killed_and_leaves_nothing_of_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = encoding(tiny_model, tmp_path, monkeypatch, 1.0)
    with processes(lambda: encode("a")) as [first]:
        until(lambda: lines(tmp_path / "made"))
        assert [path.name[0] for path in (tmp_path / "cache" / "encoded").iterdir()] == ["."]
        with processes(lambda: encode("b")) as [second]:
            time.sleep(0.2)
            first.kill()
            second.join(60)
    assert len(lines(tmp_path / "made")) == 2
    assert not (tmp_path / "a").exists()
    assert len(json.loads((tmp_path / "b").read_text())) == len(ROWS)
    (folder,) = (tmp_path / "cache" / "encoded").iterdir()
    assert not folder.name.startswith(".")


def test_answers_go_on_from_those_of_a_killed_process_without_its_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"

    def answer() -> None:
        with claim(tmp_path / CLAIMS / "answers") as held:
            log = AnswerLog(path, held)
            for number in range(1000):
                log.append({f"{number}": number})
                note(tmp_path / "said", f"{number}")
                time.sleep(0.01)

    with processes(answer) as [first]:
        until(lambda: len(lines(tmp_path / "said")) >= 5)
        first.kill()
    said = len(lines(tmp_path / "said"))
    ((_, left),) = owned_files(path)
    with left.open("ab") as file:
        file.write(b'{"asked": "torn')
    with claim(tmp_path / CLAIMS / "answers", patience=None) as held:
        log = AnswerLog(path, held)
        assert all(str(number) in log for number in range(said))
        log.append({"more": 1})
        assert log.damage is None
    ((_, now),) = owned_files(path)
    assert now != left
    with claim(tmp_path / CLAIMS / "answers") as held:
        again = AnswerLog(path, held)
        assert (again["0"], again[f"{said - 1}"], again["more"]) == (0, said - 1, 1)
        again.remove()
    assert owned_files(path) == []


def test_what_an_owner_writes_that_was_stopped_past_its_claim_spoils_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    old = path.with_name("answers.1.jsonl")
    with claim(tmp_path / CLAIMS / "answers") as held:
        assert held.number == 1
        AnswerLog(path, held).append({"a": 1})
    with old.open("ab") as stale, claim(tmp_path / CLAIMS / "answers") as held:
        log = AnswerLog(path, held)
        log.append({"b": 2})
        stale.write(b"half a li")  # of a write that was under way when the process stopped
        stale.flush()
        old.write_bytes(b"as was this")  # and of one that began between its look at the claim and this
        log.append({"c": 3})
    with claim(tmp_path / CLAIMS / "answers") as held:
        last = AnswerLog(path, held)
        assert (last["a"], last["b"], last["c"], last.damage) == (1, 2, 3, None)
    assert [number for number, _ in owned_files(path)] == [held.number]


def test_two_stages_that_need_the_same_generated_rows_share_them_also_where_one_is_killed(
    talkative_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ReplaySettings(Sampling(1.0, 1.0, 16), seed=3, compute=compute_for("float32"), batch_size=2)
    inner = TransformersGenerator.continue_batch

    def slowly(self: TransformersGenerator, prompts: list[object], *options: object) -> object:
        found = inner(self, prompts, *options)  # type: ignore[arg-type]
        note(tmp_path / "asked", f"{os.getpid()} {len(prompts)}")
        time.sleep(0.05)
        return found

    monkeypatch.setattr(TransformersGenerator, "continue_batch", slowly)

    def generate(cache: str, name: str, rows: int) -> None:
        found = make_replay(talkative_model, rows, made, tmp_path / cache)
        texts = [[turn.content for turn in one.messages] for one in found.examples]
        (tmp_path / name).write_text(json.dumps(texts))

    generate("alone", "whole", 6)
    whole = json.loads((tmp_path / "whole").read_text())
    asked_alone = sum(int(one.split()[1]) for one in lines(tmp_path / "asked"))
    (tmp_path / "asked").unlink()
    with processes(lambda: generate("cache", "killed", 6)) as [first]:
        until(lambda: len(lines(tmp_path / "asked")) >= 3)
        with processes(lambda: generate("cache", "all", 6), lambda: generate("cache", "some", 3)) as [
            second,
            third,
        ]:
            time.sleep(0.1)
            first.kill()
            second.join(60)
            third.join(60)
    assert not (tmp_path / "killed").exists()
    assert json.loads((tmp_path / "all").read_text()) == whole
    assert json.loads((tmp_path / "some").read_text()) == whole[:3]
    # At most the batch that was under way was generated twice.
    assert sum(int(one.split()[1]) for one in lines(tmp_path / "asked")) <= asked_alone + made.batch_size


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    for name in (
        "LINGRAFT_JUDGE_KEY",
        "OPENAI_API_KEY",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    importlib.import_module("openai")  # before the processes fork
    with running_server() as running:
        yield running


def test_evaluations_at_once_pay_each_verdict_once_and_one_that_is_killed_only_what_was_under_way(
    server: JudgeServer, tmp_path: Path
) -> None:
    def slowly(asked: Request) -> Response:
        time.sleep(0.05)
        return prefers_longer(asked)

    server.behaviour = slowly
    same = outputs(*(f"answer {number}" for number in range(6)))
    reference = outputs(*["reference"] * 6)
    judge = settings(server, at_once=1)

    def judged(name: str) -> None:
        found = judge_answers(same, reference, judge, cache=tmp_path / "verdicts.jsonl")
        (tmp_path / name).write_text(f"{found.win_rate.n} {found.usage.verdicts}")

    with processes(lambda: judged("killed")) as [first]:
        until(lambda: len(server.requests) >= 3)
        with processes(lambda: judged("a"), lambda: judged("b")) as others:
            first.kill()
            for one in others:
                one.join(60)
    assert not (tmp_path / "killed").exists()
    assert [(tmp_path / name).read_text() for name in "ab"] == ["6 12", "6 12"]
    assert len(server.requests) <= 12 + 1
    assert len(set(server.questions)) == 12


def test_a_judge_that_was_stopped_past_its_claim_appends_no_verdict(
    server: JudgeServer, tmp_path: Path
) -> None:
    cache = tmp_path / "verdicts.jsonl"
    judge = settings(server, at_once=1)

    def stops_the_asker(asked: Request) -> Response:
        os.kill(first.pid or 0, signal.SIGSTOP)
        return prefers_longer(asked)

    server.behaviour = stops_the_asker
    with processes(lambda: judge_answers(ANSWERS, outputs(*["middle"] * 4), judge, cache=cache)) as [first]:
        until(lambda: len(server.requests) >= 1)
        server.behaviour = prefers_longer
        claims = cache.with_name(f".{cache.name}.claims")
        (claims / "2").touch()  # as who takes it over
        os.kill(first.pid or 0, signal.SIGCONT)
        first.join(60)
        assert first.exitcode != 0
    assert lines(cache) == []
