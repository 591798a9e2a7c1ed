"""One log for all that was paid for in time or money: it only grows, and a torn end costs one line."""

from __future__ import annotations

import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lingraft.append_log import AppendLog, ForeignLineError


def opened(path: Path, begins: bytes | None = None) -> AppendLog[int]:
    return AppendLog(path, lambda row: int(row["n"]), begins=begins)


def test_rows_come_back_and_a_torn_or_foreign_end_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    opened(path).append([{"n": 1, "text": "a\u2028b"}, {"n": 2}])
    whole = path.read_bytes()
    for torn in (b"", b'{"n": 3', b"{}\n", b'[1]\n{"n": 3}\n', b"\0\0\n"):
        path.write_bytes(whole + torn)
        log = opened(path)
        assert log.rows == [1, 2]
        assert path.read_bytes() == whole
    log.append([{"n": 3}])
    assert opened(path).rows == [1, 2, 3]


def test_a_file_that_must_begin_otherwise_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    begins = b'{"n": '
    for content, line in ((b'{"n": 1}\n{"m": 2}\n', 2), (b"mine\n", 1), (b"{}", 1), (b'{"n": "x"}\n', 1)):
        path.write_bytes(content)
        with pytest.raises(ForeignLineError) as caught:
            opened(path, begins)
        assert caught.value.line == line
        assert path.read_bytes() == content
    path.write_bytes(b'{"n": 1}\n{"n')
    assert opened(path, begins).rows == [1]
    assert path.read_bytes() == b'{"n": 1}\n'


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    log = opened(tmp_path / "log.jsonl")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: log.append([{"n": n, "text": "x" * 20_000}]), range(40)))
    assert sorted(opened(tmp_path / "log.jsonl").rows) == list(range(40))


def test_a_full_disk_costs_only_what_did_not_fit(tmp_path: Path) -> None:
    log = opened(tmp_path / "log.jsonl")
    log.append([{"n": 1}])
    limit, before = 30_000, resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(OSError, match="File too large"):
            log.append([{"n": 2, "text": "x" * 2 * limit}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    log.append([{"n": 3}])
    assert opened(tmp_path / "log.jsonl", b'{"n": ').rows == [1, 3]
