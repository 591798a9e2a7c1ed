"""`lingraft show run`: how far a run is, as its folder alone says it, on a terminal and in a pipe."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lingraft.claims import Owner
from lingraft.cli import main, show_run
from lingraft.records import to_json, write_json_atomically
from lingraft.stage import StageProgress
from lingraft.study.event_log import EventLog, event_file, output_file
from lingraft.study.failures import record_failure
from lingraft.study.status import status_of
from lingraft.study.under_way import UNDER_WAY, Holder, StageAtWork, UnderWay
from lingraft.study.unused import ListedStage, write_plan

LIVE = [sys.executable, "-c", "from lingraft.cli.main import main; main()", "show", "run"]


def name_of(number: int) -> str:
    return f"{('train', 'evaluate')[number % 2]}-{number:016x}"


def done(run: Path, *numbers: int) -> None:
    for number in numbers:
        folder = run / "stages" / name_of(number)
        folder.mkdir(parents=True)
        write_json_atomically(folder / "record.json", {})
        write_json_atomically(folder / "timing.json", {"seconds": 60.0})


def said(run: Path, *at_work: int, **changes: Any) -> None:
    now = time.time()
    stages = tuple(
        StageAtWork(
            name_of(number),
            now - 60,
            StageProgress(100 + number, 400, 2.5, seconds_left=120.0),
            now,
            (),
            f"node-{number}.cluster.example.org",
            4000 + number,
            1,
        )
        for number in at_work
    )
    own = UnderWay(Holder.this(), now - 600, now, stages, at_once=max(1, len(stages)))
    write_json_atomically(run / UNDER_WAY, to_json(replace(own, **changes)))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of 40 stages: 4 done, 8 at work on nodes, 2 failed by one reason, the others wait."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "study.yaml").touch()
    write_plan(
        folder,
        {
            name_of(number): ListedStage(f"similar / ewc_with_a_long_name / seed {number}", True)
            for number in range(40)
        },
    )
    done(folder, 0, 1, 2, 3)
    for number in (12, 13):
        with EventLog(event_file(folder, name_of(number), 1)) as log:
            log.stage_started("train")
    output_file(folder, name_of(12), 1).write_text("CUDA out of memory\n")
    reason = "RuntimeError: CUDA out of memory. " + "Tried to allocate 20.00 MiB. " * 4
    record_failure(folder, name_of(12), RuntimeError(reason))
    said(folder, *range(4, 12), failed={name_of(12): reason, name_of(13): reason})
    return folder


def printed(capfd: pytest.CaptureFixture[str], *options: str, code: int = 0) -> str:
    found = main._run(["show", "run", "run", *options])
    out = capfd.readouterr()
    assert found == code, out.err
    return out.out


def test_counts_stand_first_then_where_stages_are_made_what_failed_and_what_waits(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    lines = printed(capfd).splitlines()
    assert lines[0] == "run: under way, 4 of 40 stages done, 8 at work, 2 failed, 26 waiting"
    assert lines[1] == "about 6 min left, 8 at a time"  # 4 of 60 s, one after the other, after 120 s
    assert max(map(len, lines)) <= 80
    assert lines[3].split() == ["At", "work", "where", "how", "far", "time"]
    assert lines[4].split()[-7:] == ["node-4", "4004", "104/400", "steps", "2", "min", "left"]
    text = "\n".join(lines)
    assert "seed 12 failed, and 1 more by the same:\n    RuntimeError: CUDA out of memory." in text
    assert f"log: run/logs/{name_of(12)}/1.log" in text
    assert "Waiting: 13 train, 13 evaluate" in text
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_the_json_object_is_the_status(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capfd, "--json"))
    assert (found["format"], found["state"], len(found["stages"]), len(found["at_work"])) == (
        2,
        "under way",
        40,
        8,
    )
    assert found["at_work"][0]["host"] == "node-4.cluster.example.org"


def test_as_many_stages_as_fit_the_terminal_are_drawn_and_the_others_counted(run: Path) -> None:
    lines = show_run.picture(status_of(run), 80, 20).plain.splitlines()
    assert len(lines) <= 20
    shown = sum("node-" in line for line in lines)
    assert f"and {8 - shown} more" in lines
    assert 3 <= shown < 8


def test_names_that_steer_a_terminal_are_shown_as_text(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_plan(run, {name_of(4): ListedStage("a\x1b[2J\nb[bold]", True), name_of(12): ListedStage("c", True)})
    said(run, 4, failed={name_of(12): "x\x1b[31m\r\ny"})
    text = printed(capfd)
    assert "\x1b" not in text
    assert "[bold]" in text
    write_plan(run, {"tr\x1b[31main-0000000000000001": ListedStage("a", True)})
    text = printed(capfd)
    assert "\x1b" not in text
    assert "plan.json: is missing or damaged" in " ".join(text.split())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("none", "run: stopped, 4 of 40 stages done, 36 waiting"),
        ("plan", "run: not begun, or still reading its data"),
        ("under_way", "run: stopped, 4 of 40 stages done, 36 waiting"),
    ],
)
def test_a_run_that_was_stopped_or_is_damaged_is_shown_as_far_as_it_can_be(
    run: Path, capfd: pytest.CaptureFixture[str], damage: str, says: str
) -> None:
    said(run, ended="stopped")
    (run / "failures.jsonl").unlink()
    if damage != "none":
        (run / f"{damage}.json").write_bytes(b'{"content": {"sta')
    lines = printed(capfd).splitlines()
    assert lines[0] == says
    assert any(line.startswith("! ") for line in lines) == (damage != "none")


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main._run(["show", "run", "nowhere"]) == 2
    assert "nowhere: there is no such run folder" in capfd.readouterr().err
    assert main._run(["show", "run", "run", "--watch", "--json"]) == 2
    assert "--json: goes without --watch" in capfd.readouterr().err


def test_watch_in_a_pipe_prints_what_changes_and_ends_with_the_run(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def goes_on() -> None:
        done(run, 4)
        said(run, 5)

    def ends() -> None:
        said(run, failed={name_of(5): "out of memory"}, ended="done")

    happens = iter((goes_on, ends))
    monkeypatch.setattr(show_run, "time", SimpleNamespace(sleep=lambda _: next(happens)()))
    lines = [line[9:] for line in printed(capfd, "--watch", code=1).splitlines()]  # without the time of day
    assert lines[0] == "run: under way, 4 of 40 stages done, 8 at work, 2 failed, 26 waiting"
    assert "✓ train similar / ewc_with_a_long_name / seed 4  1 min 0 s" in lines
    assert "✗ evaluate similar / ewc_with_a_long_name / seed 5 failed: out of memory" in lines
    assert lines[-1].startswith("run: ended, 5 of 40 stages done, 1 failed")


def test_watch_in_a_pipe_says_why_a_stage_that_is_lost_is_made_again(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies() -> None:
        record_failure(run, name_of(6), RuntimeError("killed by SIGKILL"), is_made_again=True)
        folder = run / "claims" / name_of(6)
        folder.mkdir(parents=True)
        gone = replace(Owner.this(), process=2**22 + 1)
        (folder / "1").write_text(json.dumps(to_json(gone)))

    happens = iter((dies, lambda: said(run, ended="stopped")))
    monkeypatch.setattr(show_run, "time", SimpleNamespace(sleep=lambda _: next(happens)()))
    text = printed(capfd, "--watch", code=1)
    name = "train similar / ewc_with_a_long_name / seed 6"
    assert f"! {name}: who makes it gives no sign of life" in text
    assert f"! {name} failed and is made again: killed by SIGKILL" in text


def test_watch_says_by_its_exit_code_that_the_run_is_done(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done(run, *range(4, 40))
    (run / "failures.jsonl").unlink()
    said(run, ended="done")
    assert "run: done, 40 of 40 stages done" in printed(capfd, "--watch")


def test_watch_redraws_a_terminal_in_place_and_ctrl_c_ends_it_with_130(run: Path) -> None:
    main_end, other_end = pty.openpty()
    process = subprocess.Popen(
        [*LIVE, run.name, "--watch"],
        stdout=other_end,
        stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    )
    os.close(other_end)
    drawn, until = b"", time.monotonic() + 60
    while b"Waiting" not in drawn and time.monotonic() < until:
        drawn += os.read(main_end, 65536)
    done(run, 20)
    while b"5 of 40 stages done" not in drawn and time.monotonic() < until:
        drawn += os.read(main_end, 65536)
    assert b"5 of 40 stages done" in drawn
    process.send_signal(signal.SIGINT)
    threading.Thread(target=lambda: _drain(main_end), daemon=True).start()
    _, messages = process.communicate(timeout=30)
    assert process.returncode == 130
    assert messages.decode().strip() == "Interrupted: the run does not need it, and goes on."
    assert b"\x1b[2K" in drawn  # lines are drawn again


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError:  # its other end is closed
        os.close(descriptor)


def test_a_run_of_500_stages_is_read_quickly(run: Path) -> None:
    parents = {number: (name_of(number - 1),) if number % 2 else () for number in range(500)}
    write_plan(run, {name_of(number): ListedStage("x", True, parents[number]) for number in parents})
    before = time.process_time()
    assert len(status_of(run).stages) == 500
    assert time.process_time() - before < 1.0  # the aim is 0.1 s
