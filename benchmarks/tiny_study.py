"""A study of seconds, made on the spot, for scripts that disturb it: its model, its file, its command, its records.

Phase 1 and a second phase with two strategies, on a random model of 2 layers: trained, combined, evaluated, compared.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import yaml

NAME = "tiny"
LINGRAFT = (sys.executable, "-c", "from lingraft.cli.main import main; main()")
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_study(folder: Path) -> Path:
    """Write a model and a study into a folder, and return the study file; its run folder is `runs/tiny` there."""
    model = folder / "model"
    make_model(model)
    evaluated = [{"task": "worldbook:counting", "limit": 2, "max_new_tokens": 2}]
    study = {
        "name": NAME,
        "model": str(model),
        "phases": [
            {"name": "one", "data": {"english": {"source": "worldbook:lookup/en", "limit": 16}}},
            {
                "name": "two",
                "data": {"german": {"source": "worldbook:lookup/de", "limit": 16}},
                "strategies": ["plain", {"interpolate": {"alpha": 0.5}}],
            },
        ],
        "training": {
            "learning_rate": 1e-2,
            "tokens_per_batch": 256,
            "save_every": 1,
            "precision": "float32",
        },
        "held_out": 2,
        "measures": ["mpd"],
        "evaluate": {
            "task_ability": evaluated,
            "language_ability": evaluated,
            "precision": "float32",
        },
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path


def start(
    study: Path, runs: Path, *arguments: str, stdout: int | IO[str] = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start `lingraft run` on a study, on one thread."""
    return subprocess.Popen(
        [*LINGRAFT, "run", str(study), "--runs", str(runs), *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        start_new_session=True,  # a group of its own, as the job of a terminal
    )


def records(runs: Path) -> dict[str, bytes]:
    """Return the records of a run's stages as they stand on the disk, by the stage's folder."""
    found = sorted((runs / NAME / "stages").glob("*/record.json"))
    return {path.parent.name: path.read_bytes() for path in found}


def make_model(folder: Path, seed: int = 0) -> None:
    """Write a random model of 2 layers with its tokenizer into a folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(special + letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, bos_token=special[0], eos_token=special[1], pad_token=special[1]
    )
    tokenizer.chat_template = _TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
