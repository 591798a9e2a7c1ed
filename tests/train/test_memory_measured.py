"""What a plan says of memory is within a tenth of what real small models take, each trained in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_CHILD = """
import json, random, sys, warnings
from pathlib import Path
from types import SimpleNamespace
warnings.simplefilter("ignore")
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from tokenizers import Tokenizer, models
from lingraft.config.schema import StrategyChoice, Training
from lingraft.data.encoded import EncodedExample, write_table
from lingraft.models.compute import compute_for
from lingraft.models.shape import shape_of
from lingraft.strategies.base import Context
from lingraft.strategies.composition import build
from lingraft.train.memory_plan import Cut, Setup, held_now, largest_batch, training_memory
from lingraft.train.phase import train_phase, with_resolved_precision
from lingraft.train.trainer import BatchPlan

options, strategy, cut, place = json.loads(sys.argv[1]), sys.argv[2], Cut(**json.loads(sys.argv[3])), Path(sys.argv[4])
vocabulary, draw = 4000, random.Random(0)
rows = []
for number in range(16):
    length = draw.randint(90, 128)
    ids = tuple(draw.randrange(1, vocabulary) for _ in range(length))
    supervised = (False,) * (length // 2) + (True,) * (length - length // 2)
    rows.append(EncodedExample(str(number), "en", ids, supervised, 0))
table = write_table(rows)
training = with_resolved_precision(Training(tokens_per_batch=512, save_minutes=0, compile=False, **options))
compute = compute_for(training.precision)
base = held_now(compute)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=vocabulary, hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=4, tie_word_embeddings=False, max_position_embeddings=256,
))
composition = build(StrategyChoice.model_validate(strategy))
context = Context(
    base=None, previous=place, previous_data=(), english=(), seed=0, folder=place, cache=place
)
model = composition.wrap(model, context)
names = composition.trainable(model, context)
shape = shape_of(model, names)
largest = largest_batch(BatchPlan(table.lengths, training, 0).shapes, table.predicted_tokens)
plan = training_memory(shape, largest.part(cut.pieces), Setup.of(training, compute, cut), base=base)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), pad_token="<pad>")
done = train_phase(model, tokenizer, table, training, trainable=names, folder=place, cut=cut)
print(json.dumps([base, plan.total, done.peak_bytes, done.steps]))
"""


@pytest.mark.parametrize(
    ("options", "strategy", "cut"),
    [
        ({"precision": "float32"}, "plain", {}),
        pytest.param(
            {"precision": "float32"}, "plain", {"checkpointing": True, "pieces": 2}, marks=pytest.mark.slow
        ),
        pytest.param({"precision": "bf16"}, "plain", {}, marks=pytest.mark.slow),
        pytest.param({"precision": "bf16"}, "lora", {}, marks=pytest.mark.slow),
        pytest.param({"precision": "bf16_pure"}, "plain", {}, marks=pytest.mark.slow),
        pytest.param({"optimizer": "adamw_8bit"}, "plain", {}, marks=pytest.mark.slow),
    ],
    ids=lambda one: "-".join(map(str, one.values())) if isinstance(one, dict) else one,
)
def test_a_plan_is_within_a_tenth_of_what_training_takes(
    options: dict[str, Any], strategy: str, cut: dict[str, Any], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(options), strategy, json.dumps(cut), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    base, planned, took, steps = json.loads(done.stdout.splitlines()[-1])
    assert steps >= 3
    assert took - base > 150e6, "the model is what is measured, not the libraries"
    assert planned == pytest.approx(took, rel=0.1), f"of it {base / 1e6:.0f} MB before"
