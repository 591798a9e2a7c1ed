"""Memory does not grow with the data, from the file to the planned batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FEW = 8_000

SCRIPT = """
import sys
from pathlib import Path
from lingraft.data import spool
from lingraft.config.schema import DataSource
from lingraft.data.batching import padded_tokens, token_budget_batches
from lingraft.data.chat import encode_examples
from lingraft.data.sources import load_data, split_data
from lingraft.models.loading import load_tokenizer

spool.BYTES_IN_MEMORY = 1 << 20  # so that the few rows lie on disk as well
model, *sources = sys.argv[1:]

def plan(source):
    loaded = load_data(DataSource(source=source))
    train = split_data(loaded, limit=None, held_out_groups=10, seed=0).train
    encoded = encode_examples(train, load_tokenizer(model), 1024, folder=Path(source + ".table")).examples
    batches = token_budget_batches(encoded.lengths, 4096, seed=0, epoch=0)
    assert padded_tokens(batches, encoded.lengths) >= encoded.tokens

for source in sources:
    plan(source)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024)
"""


def rows_of(rows: int, folder: Path) -> str:
    path = folder / f"{rows}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            row = {
                "prompt": f"What is {number} and one?",
                "completion": f"It is {number + 1}.",
                "language": "en",
            }
            file.write(json.dumps(row | {"group": f"g{number // 2}"}) + "\n")
    return str(path)


# As tuples a row takes 2,800 bytes. Few more rows need a wider bound: batches of the table that wait are in it.
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(
    ("more", "bytes_a_row"), [(30_000, 1_000), pytest.param(100_000, 630, marks=pytest.mark.slow)]
)
def test_many_more_rows_take_little_more_memory(
    more: int, bytes_a_row: int, tiny_model: Path, tmp_path: Path
) -> None:
    sources = [rows_of(rows, tmp_path) for rows in (FEW, FEW + more)]
    command = [sys.executable, "-c", SCRIPT, str(tiny_model), *sources]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    few, many = map(int, done.stdout.split())
    assert many - few < bytes_a_row * more, f"{(many - few) / 1e6:.0f} MB more for {more} rows more"
