"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real public data beside the project; the test is skipped where it is absent."""
    if not _SHARED_DATA.is_dir():
        pytest.skip("the folder of real data, shared/data beside the project, is absent")
    return _SHARED_DATA
