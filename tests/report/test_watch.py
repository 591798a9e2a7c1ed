"""The page of a run that is under way, over real connections: a study that runs, is killed, goes on and ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import httpx
import psutil
import pytest
import yaml
from example_result import failed_cell, result

from lingraft.config.named import named
from lingraft.errors import ConfigError
from lingraft.report import watch
from lingraft.report.watch import serving
from lingraft.stage import Json, StageSpec, Work, Workplace
from lingraft.study.execute import Executor
from lingraft.study.plan import Plan, listed_stages
from lingraft.study.result import write_result
from lingraft.study.store import Store
from lingraft.study.under_way import UnderWayFile
from lingraft.study.unused import write_plan

LINGRAFT = [sys.executable, "-c", "from lingraft.cli.main import main; main()"]
_EVALUATED = [{"task": "worldbook:lookup", "limit": 12, "max_new_tokens": 16}]


def study_file(folder: Path, model: Path) -> Path:
    content = {
        "name": "tiny",
        "model": str(model),
        "phases": [
            {"name": "one", "data": {"english": {"source": "worldbook:lookup/en", "limit": 24}}},
            {"name": "two", "data": {"new": {"source": "worldbook:lookup/de", "limit": 24}}},
        ],
        "training": {"learning_rate": 1e-3, "tokens_per_batch": 256, "epochs": 25, "precision": "float32"},
        "held_out": 2,
        "measures": [],
        "evaluate": {
            "task_ability": _EVALUATED,
            "language_ability": _EVALUATED,
            "batch_size": 2,
            "precision": "float32",
        },
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@contextmanager
def started(study: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A study that runs in a process of its own while the block runs."""
    run = subprocess.Popen(
        [*LINGRAFT, "run", str(study), "--runs", str(study.parent)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield run
    finally:
        run.kill()
        run.wait()


def asked(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/status").raise_for_status().json()
    return found


def until(
    client: httpx.Client, holds: Callable[[dict[str, Any]], Any], seconds: float = 300.0
) -> dict[str, Any]:
    """Return the first status that something holds for."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = asked(client)
        if holds(found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"it never came: {found}")


@pytest.mark.slow
def test_a_study_is_watched_from_its_beginning_over_its_death_to_its_end(
    tiny_model: Path, tmp_path: Path
) -> None:
    study = study_file(tmp_path, tiny_model)
    folder = tmp_path / "tiny"
    folder.mkdir()
    with serving(named(str(folder))) as address, httpx.Client(base_url=address, timeout=60) as client:
        assert asked(client)["status"]["state"] == "not begun"
        page = client.get("/").text
        assert "There are no results yet" in page
        assert 'id="under-way"' in page
        with started(study) as run:
            found = until(client, lambda one: any(len(own["losses"]) > 1 for own in one["status"]["at_work"]))
            assert found["status"]["state"] == "under way"
            assert found["status"]["holder"]["process"] == run.pid
            assert found["status"]["at_work"][0]["kind"] == "train"
            assert found["status"]["at_work"][0]["progress"]["total"] > 1
            run.kill()
            killed = until(client, lambda one: one["status"]["state"] != "under way")["status"]
            assert killed["state"] == "stopped"
            assert killed["holder"] is None
            assert "done" in {one["state"] for one in killed["stages"]}  # the base model's evaluation
        with started(study) as run:
            found = until(client, lambda one: any(own["answers"] for own in one["status"]["at_work"]))
            assert found["status"]["at_work"][0]["kind"] == "evaluate"
            answer = found["status"]["at_work"][0]["answers"][0]
            assert answer["task"].startswith("worldbook:lookup")
            assert answer["prompt"].startswith("<|im_start|>user\n")
            assert run.wait(300) == 0
        done = until(client, lambda one: one["status"]["state"] != "under way")
        assert done["status"]["state"] == "done"
        assert done["status"]["at_work"] == []
        before = int(done["page"])
        until(client, lambda one: int(one["page"]) > before or one["status"] is None)
        page = client.get("/").text
        assert "new" in page
        assert 'id="results"' in page
        assert f'data-version="{asked(client)["page"]}"' in page
        shutil.rmtree(folder)
        gone = until(client, lambda one: one["status"] is None)
        assert str(gone["problem"]).startswith(
            f"The run cannot be read: {folder}: there is no such run folder;"
        )
        assert client.get("/").status_code == 200  # the last page
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


@dataclass(frozen=True, eq=False)
class Asking(StageSpec):
    """An evaluation that does what a test says."""

    kind: ClassVar[str] = "evaluate"

    act: Callable[[Workplace], None]

    @property
    def inputs(self) -> dict[str, Json]:
        return {"label": self.label}

    def work(self, place: Workplace) -> Work:
        self.act(place)
        return Work({}, {})


def test_a_page_follows_a_run_and_opens_anew_with_its_results(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    with serving(named(str(tmp_path))) as address, httpx.Client(base_url=address, timeout=60) as client:
        first = client.get("/").text
        assert "There are no results yet" in first
        assert f'data-version="{asked(client)["page"]}"' in first

        def ask(place: Workplace) -> None:
            place.watcher.answered(hostile, hostile, hostile)
            place.progressed(1, 4, "items")
            found = until(client, lambda one: any(own["answers"] for own in one["status"]["at_work"]))
            assert found["status"]["state"] == "under way"
            assert found["status"]["at_work"][0]["answers"][0]["answer"] == hostile
            assert client.get("/status").headers["content-type"] == "application/json"
            assert hostile not in client.get("/").text

        stage = Asking("base", ask)
        plan = Plan((stage,), None, (), (), frozenset({stage.fingerprint}), frozenset(), {}, ())
        with Store(tmp_path) as store, UnderWayFile(tmp_path) as said:
            (tmp_path / "study.yaml").touch()
            write_plan(tmp_path, listed_stages(plan))
            list(Executor(store, said=said).run(plan))
            write_result(result(tmp_path, [failed_cell("lora")]))
        done = until(client, lambda one: one["status"]["state"] == "done")
        until(client, lambda one: int(one["page"]) > int(done["page"]) or "lora" in client.get("/").text)
        page = client.get("/").text
        assert 'id="results"' in page
        assert "lora" in page
        assert f'data-version="{asked(client)["page"]}"' in page


@pytest.fixture(scope="module")
def empty_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a run that has not begun."""
    with serving(named(str(tmp_path_factory.mktemp("run")))) as address:
        yield address


@pytest.mark.parametrize("place", ["", "status"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1]"])
def test_a_page_of_another_name_gets_nothing(empty_run: str, host: str, place: str) -> None:
    answer = httpx.get(empty_run + place, headers={"host": host})
    assert answer.status_code == 400
    assert "lingraft" not in answer.text
    assert httpx.get(empty_run + place, headers={"host": "localhost:1234"}, timeout=60).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_sent(empty_run: str, method: str) -> None:
    assert httpx.request(method, empty_run + "status").status_code == 405


def test_every_answer_says_what_a_browser_may_do_with_it(empty_run: str) -> None:
    for place in ("", "status", "nothing", "../../etc/passwd", "status/"):
        headers = httpx.get(empty_run + place, timeout=60).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert policy.endswith("frame-ancestors 'none'")
        assert ("connect-src 'self'" in policy) == (place == "")
        assert "unsafe" not in policy


def test_many_readers_and_some_that_never_ask_leave_nothing_behind(empty_run: str) -> None:
    process, port = psutil.Process(), int(empty_run.rsplit(":", 1)[1].strip("/"))
    httpx.get(empty_run, timeout=60)
    files, threads = process.num_fds(), process.num_threads()
    with ExitStack() as open_ones:
        for number in range(60):
            silent = open_ones.enter_context(socket.create_connection(("127.0.0.1", port)))
            if number % 2:
                silent.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")  # and never ends
            else:
                silent.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")  # and never reads
        problems: list[Exception] = []

        def read() -> None:
            try:
                with httpx.Client(base_url=empty_run, timeout=20) as client:
                    for _ in range(20):
                        assert asked(client)["status"]["state"] == "not begun"
            except Exception as error:
                problems.append(error)

        readers = [threading.Thread(target=read) for _ in range(20)]
        for one in readers:
            one.start()
        for one in readers:
            one.join()
        assert problems == []
    end = time.monotonic() + 20
    while process.num_fds() > files and time.monotonic() < end:
        time.sleep(0.1)
    assert process.num_fds() <= files
    assert process.num_threads() <= threads + 8  # a pool's, which is bounded


def test_a_server_with_all_connections_taken_refuses_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_MOST_CONNECTIONS", 3)
    with serving(named(str(tmp_path))) as address:
        port = int(address.rsplit(":", 1)[1].strip("/"))
        with ExitStack() as open_ones:
            for _ in range(5):
                open_ones.enter_context(socket.create_connection(("127.0.0.1", port)))
            assert httpx.get(address + "status").status_code == 503
        end = time.monotonic() + 10
        while httpx.get(address + "status").status_code != 200 and time.monotonic() < end:
            time.sleep(0.1)
        assert httpx.get(address + "status").status_code == 200


def test_results_that_cannot_be_read_leave_a_page_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").touch()
    (tmp_path / "result.json").write_text('{"format": ')
    with serving(named(f"<b>mine={tmp_path}")) as address:
        page = httpx.get(address, timeout=60).text
        assert "result.json" in page
        assert 'id="under-way"' in page
        assert "&lt;b&gt;mine" in page
        assert "<b>mine" not in page


def test_a_port_that_is_taken_and_a_folder_that_is_no_run_are_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"--port {port}: cannot be had .address already in use."),
            serving(named(str(tmp_path)), port),
        ):
            pass
    (tmp_path / "notes").touch()
    with pytest.raises(ConfigError, match="is no run folder"), serving(named(str(tmp_path))):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_a_signal_and_says_that_the_run_goes_on(tmp_path: Path, number: int) -> None:
    command = subprocess.Popen(
        [*LINGRAFT, "report", str(tmp_path), "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert command.stdout is not None
        address = command.stdout.readline().strip()
        assert json.loads(httpx.get(address + "status").text)["status"]["state"] == "not begun"
        with httpx.stream("GET", address, timeout=1):  # a page is being drawn
            pass
    except httpx.ReadTimeout:
        pass
    finally:
        command.send_signal(number)
        out, err = command.communicate(timeout=20)
    assert command.returncode == 128 + number
    assert out == ""
    assert err.splitlines()[-1].endswith("the page is not served any more; the run does not need it.")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--port", "8000"], "--port: goes with --watch"),
        (["--watch", "--output", "page.html"], "--output: goes without --watch"),
        (["--watch", "--json"], "--json: goes without --watch"),
        (["--watch", "other"], "--watch: follows one run, and 2 are named"),
        (["--watch", "--port", "0"], "'--port'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, arguments: list[str], problem: str
) -> None:
    done = subprocess.run(
        [*LINGRAFT, "report", str(tmp_path), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert problem in done.stderr + done.stdout
