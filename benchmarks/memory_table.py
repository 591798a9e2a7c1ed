"""What does training take of cards of 80 GB, by the plan that `lingraft plan` and `lingraft run` make?

    python benchmarks/memory_table.py [--card 80] [--tokens 4096] [--length 1024] [--write]

Three models' sizes are built from their configurations without weights; of each way to train, the plan of one card and
of eight that divide the model (--processes 8 --sharded) is printed: bytes of a card, and how a step is computed so that
it fits. Every card computes --tokens tokens of rows of --length in a step, three quarters of them learned. --write puts
the table into docs/performance.md, between its markers. Nothing is measured here: tests/train/test_memory_measured.py
compares plans with what small models take.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoConfig

from lingraft.config.schema import StrategyChoice, Training
from lingraft.study.cards import CardTraining, card_training
from lingraft.study.stages.job import shape_in
from lingraft.train.memory_plan import LargestBatch, host_memory
from lingraft.train.processes import Processes

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
_GROUPED = {"num_key_value_heads": 8, "vocab_size": 128_256}
MODELS: dict[str, dict[str, Any]] = {
    "LLaMA-3.2-1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "LLaMA-3-8B": {
        "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "LLaMA-3-70B": {
        "hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "tie_word_embeddings": False,
    },
}  # fmt: skip
# How it is called, the strategy, and training options.
WAYS: tuple[tuple[str, Any, Training], ...] = (
    ("bf16 (float32 weights)", "plain", Training(precision="bf16")),
    ("bf16_pure", "plain", Training(precision="bf16_pure")),
    ("adamw_8bit", "plain", Training(precision="bf16_pure", optimizer="adamw_8bit")),
    ("LoRA, rank 16", "lora", Training(precision="bf16")),
    ("QLoRA, rank 16", {"lora": {"base": "nf4"}}, Training(precision="bf16")),
)


def cell(one: CardTraining) -> str:
    """Return what stands in the table."""
    size = f"{one.memory_bytes / 1e9:.0f} GB"
    if not one.fits:
        return f"does not fit ({size})"
    how = (["checkpointing"] if one.gradient_checkpointing else []) + (
        [f"{one.pieces} pieces"] if one.pieces > 1 else []
    )
    return ", ".join([size, *how])


def table(card: int, tokens: int, length: int) -> str:
    """Return the table, as Markdown."""
    batch = LargestBatch(tokens // length, length, 3 * tokens // 4)
    lines = [
        "| model | way | trained | 1 card | 8 cards, sharded (QLoRA: whole on each) | host memory of 8 | disk |",
        "| --- | --- | ---: | --- | --- | ---: | ---: |",
    ]
    for name, sizes in MODELS.items():
        with TemporaryDirectory() as folder:
            configuration = AutoConfig.for_model(
                "llama", architectures=["LlamaForCausalLM"], **_GROUPED, **sizes
            )
            configuration.save_pretrained(folder)
            shapes = [
                shape_in(Path(folder), StrategyChoice.model_validate(strategy)) for _, strategy, _ in WAYS
            ]
        for (words, strategy, training), shape in zip(WAYS, shapes, strict=True):
            assert shape is not None
            choice = StrategyChoice.model_validate(strategy)
            cells = []
            for cards in (1, 8):
                processes = Processes(cards, sharded=cards > 1 and not shape.in_four_bits)
                one, setup = card_training("", choice, training, shape, batch, card, processes)
                cells.append(cell(one))
            lines.append(
                f"| {name} | {words} | {shape.trained / 1e9:.2f} billion | {' | '.join(cells)} "
                f"| {host_memory(shape, setup).total / 1e9:.0f} GB | {one.disk_bytes / 1e9:.0f} GB |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--card", type=float, default=80, help="GB of a card.")
    parser.add_argument("--tokens", type=int, default=4096, help="That a card computes in a step.")
    parser.add_argument("--length", type=int, default=1024, help="Tokens of a row.")
    parser.add_argument("--write", action="store_true", help="Put it into docs/performance.md.")
    options = parser.parse_args()
    found = table(int(options.card * 1e9), options.tokens, options.length)
    print(found)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        pattern = re.compile(r"(<!-- memory table -->\n\n).*?(\n\n<!-- end of memory table -->)", re.DOTALL)
        PAGE.write_text(pattern.sub(lambda match: match[1] + found + match[2], page), encoding="utf-8")


if __name__ == "__main__":
    main()
