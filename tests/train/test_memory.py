"""The peak of resident memory, on systems that count it otherwise."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lingraft.train import memory


@pytest.mark.parametrize(("system", "expected"), [("linux", 5_000_000 * 1024), ("darwin", 5_000_000)])
def test_the_peak_is_in_bytes_where_macos_counts_bytes_and_others_kibibytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, expected: int
) -> None:
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path / "absent")  # no /proc
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=5_000_000))
    monkeypatch.setattr(sys, "platform", system)
    assert memory.peak_bytes() == expected
