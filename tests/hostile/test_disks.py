"""A disk that is full, read-only or failing ends a command in one line, leaves no half file, and loses nothing."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from lingraft.append_log import AppendLog
from lingraft.errors import DiskError, ModelError, as_disk_error, disk_error
from lingraft.records import flush_folder, write_json_atomically, write_text_atomically
from lingraft.stage import Json, StageSpec, Work, Workplace
from lingraft.study.execute import Executor
from lingraft.study.plan import Plan
from lingraft.study.store import Store
from lingraft.train.processes import write_failure

LIMIT = 20_000


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_file_that_does_not_fit_keeps_what_it_held_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_text_atomically(path, "before")
    with files_of_at_most(LIMIT), pytest.raises(OSError, match="File too large") as caught:
        write_json_atomically(path, ["x" * 2 * LIMIT])
    assert caught.value.filename == str(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_share_that_flushes_files_alone_is_no_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flushed.append(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    flush_folder(tmp_path / "folder")
    assert len(flushed) == 1


def test_a_log_that_does_not_fit_is_named(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "answers.jsonl", lambda row: int(row["n"]))
    log.append([{"n": 1}])
    with files_of_at_most(LIMIT), pytest.raises(OSError, match="File too large") as caught:
        log.append([{"n": 2, "text": "x" * 2 * LIMIT}])
    assert caught.value.filename == str(tmp_path / "answers.jsonl")


CASES = [
    (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    (
        OSError(errno.ENOSPC, "No space left on device", "/elsewhere/file"),
        "/elsewhere/file: the disk is full",
    ),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "your quota"),
    (OSError(errno.EROFS, "Read-only file system", "x"), "read-only"),
    (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
    (OSError(errno.EIO, "Input/output error"), "the disk fails"),
    (
        OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
        "the disk is full",
    ),
    (
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "the disk is full",
    ),
    (Exception("Read-only file system (os error 30)"), "read-only"),
    (
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        "the disk is full",
    ),
    (OSError(errno.ENOSPC, "No space", "/model/source", None, "/run/copy"), "/run/copy: the disk is full"),
]


@pytest.mark.parametrize(("error", "said"), CASES)
def test_errors_of_the_disk_are_known_whoever_raises_them(error: Exception, said: str) -> None:
    for raised in (error, caused(error)):
        found = disk_error(raised, Path("/run"))
        assert found is not None
        assert said in str(found)
        assert "run the same command again" in str(found)
        assert "\n" not in str(found)
        assert found.exit_code == 2


def caused(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as first:
            raise RuntimeError("while saving") from first
    except RuntimeError as second:
        return second


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/model/config.json"),
        FileNotFoundError(errno.ENOENT, "No such file", "/run/x"),
        ValueError("no space"),
        ConnectionError(errno.ECONNREFUSED, "refused"),
        caused(ModelError("os error 28, a model's own words")),
        ModelError("a server said: No space left on device"),
        RuntimeError(
            "PytorchStreamReader failed reading zip archive: not a ZIP archive, inline_container.cc:143"
        ),
    ],
)
def test_other_errors_are_not_the_disk_s(error: Exception) -> None:
    assert disk_error(error, Path("/run")) is None
    with pytest.raises(type(error)), as_disk_error(Path("/run")):
        raise error


def test_a_missing_permission_in_the_run_folder_is_the_disk_s(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="permission denied"), as_disk_error(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "stages"))


@dataclass
class Disk:
    """What a test's stages did, and which of them finds the disk full."""

    full_for: str = ""
    worked: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Step(StageSpec):
    """Writes a file."""

    kind: ClassVar[str] = "evaluate"

    disk: Disk

    @property
    def inputs(self) -> dict[str, Json]:
        return {"label": self.label}

    def work(self, place: Workplace) -> Work:
        self.disk.worked.append(self.label)
        (place.folder / "half").write_text("x")
        if self.label == self.disk.full_for:
            raise OSError(errno.ENOSPC, "No space left on device")
        return Work({}, {})


def test_a_full_disk_stops_the_study_and_the_same_command_goes_on(tmp_path: Path) -> None:
    disk = Disk(full_for="two")
    stages = tuple(Step(label, disk) for label in ("one", "two", "three"))
    plan = Plan(
        stages=stages,
        base=None,
        cells=(),
        measures=(),
        limits={},
        results=frozenset(one.fingerprint for one in stages),
        kept=frozenset(),
        notes=(),
    )
    with Store(tmp_path) as store, pytest.raises(DiskError, match=f"{tmp_path}: the disk is full"):
        list(Executor(store).run(plan))
    assert disk.worked == ["one", "two"]  # every later one would fail by it as well
    disk.full_for = ""
    with Store(tmp_path) as store:
        executor = Executor(store)
        list(executor.run(plan))
    assert disk.worked == ["one", "two", "two", "three"]
    assert not executor.failed


LINGRAFT = [sys.executable, "-c", "from lingraft.cli.main import main; main()"]


def run(folder: Path, size: int) -> subprocess.CompletedProcess[str]:
    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return subprocess.run(
        [*LINGRAFT, "run", str(folder / "study.yaml"), "--json", "--runs", str(folder / "runs")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        preexec_fn=limited if size else None,
    )


@pytest.mark.slow
def test_a_command_on_a_full_disk_says_one_line_and_goes_on_later(tmp_path: Path, tiny_model: Path) -> None:
    content = {
        "name": "tiny",
        "model": str(tiny_model),
        "phases": [
            {"name": "one", "data": {"a": {"source": "worldbook:lookup/en", "limit": 4}}},
            {
                "name": "two",
                "data": {"b": {"source": "worldbook:lookup/de", "limit": 4}},
                "strategies": ["plain"],
            },
        ],
        "training": {"tokens_per_batch": 512},
        "held_out": 1,
        "measures": [],
        "contamination": None,
        "evaluate": {"task_ability": [{"task": "worldbook", "limit": 1, "max_new_tokens": 2}]},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    full = run(tmp_path, 60_000)
    assert full.returncode == 2, full.stderr
    last = full.stderr.strip().splitlines()[-1]
    assert last.startswith("DiskError: ")
    assert "run the same command again" in last
    assert "Traceback" not in full.stderr
    later = run(tmp_path, 0)
    assert later.returncode == 0, later.stderr


def test_a_full_disk_that_a_training_process_meets_stops_the_study_as_well(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    write_failure(tmp_path, OSError(errno.ENOSPC, "No space left on device"))
    failure = json.loads((tmp_path / "trainer" / "failure.json").read_text())
    assert failure["kind"] == "DiskError"  # which the launcher raises again
    assert "the disk is full" in failure["message"]


def test_who_may_read_a_file_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text_atomically(tmp_path / "index.html", "page")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "index.html").stat().st_mode) == 0o640
