"""What training asks of a tokenizer; one thread, so that runs compare bit for bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def tokenizer() -> Any:
    """All that training asks of a tokenizer."""
    return SimpleNamespace(pad_token_id=0)
