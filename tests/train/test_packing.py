"""Rows laid end to end teach what padded ones do, on a processor by a mask in place of the cards' kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    DeepseekV3Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

from lingraft.config.schema import Training
from lingraft.data.encoded import EncodedExample
from lingraft.models.loss import Batch, collate, supervised_loss
from lingraft.train import compiled, packing, phase
from lingraft.train.packing import Packing, can_pack, packed, packed_attention, packing_for
from lingraft.train.phase import train_phase

Build = Callable[..., Any]
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_implementation": "sdpa",
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}


def made(config: Any) -> Any:
    torch.manual_seed(0)
    kind: Any = AutoModelForCausalLM
    return kind.from_config(config).train()


def losses_and_gradients(model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    total, count = supervised_loss(model, batch)
    torch.autograd.backward(total / count)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return total.detach() / count, gradients


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES, tie_word_embeddings=True),
        MistralConfig(**SIZES, sliding_window=64),
        Qwen2Config(**SIZES),
        Qwen3Config(**SIZES, head_dim=16),
        OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2),
    ],
    ids=lambda config: config.model_type,
)
def test_packed_rows_have_the_losses_and_gradients_of_padded_ones(config: Any, examples: Build) -> None:
    model, rows = made(config), examples(7)
    assert can_pack(model, 24)
    batch = collate(rows)
    expected = losses_and_gradients(model, batch)
    how = packing_for([range(7)], [len(row.input_ids) for row in rows])
    with packed_attention(model, how):
        found = losses_and_gradients(model, packed(batch, how))
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_packed_batch_says_where_its_rows_begin_and_pieces_its_padding(examples: Build) -> None:
    rows: list[EncodedExample] = examples(3)
    lengths = [len(row.input_ids) for row in rows]
    how = Packing(length=128, longest=24)
    found = packed(collate(rows), how)
    begins = found["cu_seq_lens_q"]
    assert begins.dtype == torch.int32
    assert begins[:4].tolist() == [0, *np.cumsum(lengths)]
    assert begins[-1] == 128
    assert int(begins.diff().max()) <= 24
    assert int(begins.diff().min()) > 0
    assert found["attention_mask"].sum() == sum(lengths)
    assert found["input_ids"][0, : lengths[0]].tolist() == list(rows[0].input_ids)
    assert found["position_ids"][0, begins[:-1].long()].tolist() == [0] * (len(begins) - 1)
    ids = found["input_ids"][0]
    assert found["targets"].tolist() == ids[found["positions"] + 1].tolist()


def test_one_length_holds_the_batches_of_all_processes() -> None:
    lengths = [10, 20, 30, 40]
    assert packing_for([[0, 1, 2], [3], [4]], lengths) == Packing(64, 40)  # 4 is the silent row
    assert packing_for([[0, 1, 2, 3]], lengths) == Packing(128, 40)


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SIZES, sliding_window=16),
        LlamaConfig(**SIZES | {"attn_logit_softcapping": 50.0}),
        MixtralConfig(**SIZES, num_local_experts=4, output_router_logits=True),
        LlamaConfig(**SIZES, attention_dropout=0.1),
        DeepseekV3Config(
            **SIZES,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=2,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
        ),
        LlamaConfig(**SIZES | {"attn_implementation": "eager"}),
        MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4),
    ],
    ids=["short window", "capped scores", "routed", "dropout", "two widths", "eager", "mamba"],
)
@pytest.mark.filterwarnings("ignore:.*fast path is not available")
def test_models_whose_rows_would_see_each_other_keep_padded_rows(config: Any) -> None:
    assert not can_pack(made(config), 24)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_packed_phase_in_one_graph_learns_what_a_padded_one_does(
    tiny_llama: Build,
    examples: Build,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    precision: str,
) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "_BACKEND", backend)
    monkeypatch.setattr(phase, "PACKING", {("cpu", torch.float32), ("cpu", torch.bfloat16)})
    torch._dynamo.reset()
    outcomes = [
        train_phase(
            tiny_llama(attn_implementation="sdpa"),
            tokenizer,
            examples(16),
            Training(
                learning_rate=1e-2,
                tokens_per_batch=64,
                precision=precision,
                compile=is_on,
                save_minutes=0,
            ),
            folder=tmp_path / str(is_on),
        )
        for is_on in (False, True)
    ]
    assert [one.packed for one in outcomes] == [False, True]
    assert len(graphs) == 1
    before, after = ([loss for _, loss in one.losses] for one in outcomes)
    assert after == pytest.approx(before, rel=1e-5 if precision == "float32" else 0.02)


def test_a_kernel_that_fails_or_is_wrong_is_found_before_training(
    tiny_llama: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, model = torch.device("cpu"), tiny_llama()
    assert packing.kernel_problem(model, cpu, torch.bfloat16) is None

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image\nstack")

    right = packing.attend
    monkeypatch.setattr(packing, "attend", broken)
    assert packing.kernel_problem(model, cpu, torch.float32) == "no kernel image"

    def wrong(*given: Any, **options: Any) -> tuple[Tensor, None]:
        return right(*given, **options)[0] * 1.1, None

    monkeypatch.setattr(packing, "attend", wrong)
    assert packing.kernel_problem(model, cpu, torch.float32) == "it is off by 0.1"
