"""The loss against a slow, obvious computation in float64, one example at a time, with all logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaModel

from lingraft.data.encoded import EncodedExample, write_table
from lingraft.errors import ModelError
from lingraft.models.loss import (
    SupervisedHead,
    collate,
    count_supervised,
    cross_entropy,
    replayed_part,
    supervised_loss,
    token_losses,
)

Build = Callable[..., Any]


def naive_loss(model: Any, examples: Sequence[EncodedExample]) -> tuple[torch.Tensor, int]:
    total, count = torch.zeros((), dtype=torch.float64), 0
    for example in examples:
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0]
        for position in range(1, len(example.input_ids)):
            if example.supervised[position]:
                total = total - logits[position - 1].log_softmax(-1)[example.input_ids[position]]
                count += 1
    return total, count


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], relative: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.linalg.norm(found[name] - value) <= relative * torch.linalg.norm(value), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_loss_and_gradients_equal_the_naive_float64_computation(
    tiny_llama: Build, examples: Build, tied: bool, attention: str
) -> None:
    rows = examples()
    model = tiny_llama(tied=tied, attn_implementation=attention)
    naive_model = copy.deepcopy(model).double()
    expected, expected_count = naive_loss(naive_model, rows)
    torch.autograd.backward(expected / expected_count)
    total, count = supervised_loss(model, collate(rows))
    torch.autograd.backward(total / count)
    assert count == expected_count
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert_close(gradients(model), gradients(naive_model), 1e-5)


@pytest.mark.parametrize("rows", [0, 1, 64, 131])  # fewer and more than are computed at a time
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_cross_entropy_and_its_gradient_are_torchs_own_in_float32(rows: int, kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 500, generator=generator).mul(5).to(kind).requires_grad_()
    targets = torch.randint(0, 500, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator)
    reference = logits.detach().float().requires_grad_()
    found = cross_entropy(logits, targets)
    expected = nn.functional.cross_entropy(reference, targets, reduction="none")
    torch.testing.assert_close(found, expected)
    torch.autograd.backward(found, weights)
    torch.autograd.backward(expected, weights)
    assert logits.grad is not None
    assert reference.grad is not None
    torch.testing.assert_close(logits.grad, reference.grad.to(kind))


def test_a_batch_names_the_places_of_what_is_learned() -> None:
    rows = [
        EncodedExample("a", "en", (1, 2, 3), (True, False, True), 0),
        EncodedExample("b", "en", (4, 5, 6, 7, 8), (False, True, True, False, True), 0, replayed=True),
        EncodedExample("c", "en", (9,), (True,), 0, replayed=True),
        EncodedExample("d", "en", (10, 11), (False, True), 0, replayed=True),
    ]
    batch = {name: own.tolist() for name, own in collate(rows, pad_token_id=99).items()}
    assert batch["input_ids"][0] == [1, 2, 3, 99, 99]
    assert batch["attention_mask"][3] == [True, True, False, False, False]
    assert batch["positions"] == [1, 5, 6, 8, 15]
    assert batch["targets"] == [3, 5, 6, 8, 11]
    assert batch["rows"] == [0, 1, 1, 1, 3]
    part = {name: own.tolist() for name, own in replayed_part(collate(rows, pad_token_id=99)).items()}
    alone = collate(rows[1:], pad_token_id=99)
    assert part == {name: alone[name].tolist() for name in part}
    assert batch["replayed_tokens"] == [1, 2, 3, 4]


def test_rows_from_a_table_make_the_same_batch(examples: Build) -> None:
    rows = [replace(row, replayed=number % 2 == 0) for number, row in enumerate(examples(7))]
    table = write_table(rows)
    found = collate([table.arrays(number) for number in range(7)], pad_token_id=3)
    for name, own in collate(rows, pad_token_id=3).items():
        assert torch.equal(found[name], own)
        assert found[name].dtype == own.dtype == (torch.bool if name == "attention_mask" else torch.int64)


def test_eight_accumulated_batches_of_unequal_length_equal_one(tiny_llama: Build, examples: Build) -> None:
    rows = examples(20)
    whole, parts = tiny_llama(), tiny_llama()
    total, count = supervised_loss(whole, collate(rows))
    torch.autograd.backward(total / count)
    accumulated = 0.0
    for number in range(8):
        part, _ = supervised_loss(parts, collate(rows[number::8]))
        torch.autograd.backward(part / count)
        accumulated += part.item()
    assert accumulated == pytest.approx(total.item(), rel=1e-5)
    assert_close(gradients(parts), gradients(whole), 1e-5)


def test_the_head_computes_logits_of_supervised_positions_only(tiny_llama: Build, examples: Build) -> None:
    model, batch = tiny_llama(), collate(examples())
    with SupervisedHead(model, batch["positions"]):
        inside = model(input_ids=batch["input_ids"]).logits
    outside = model(input_ids=batch["input_ids"]).logits
    assert inside.shape == (count_supervised(batch), model.config.vocab_size)
    torch.testing.assert_close(inside, outside.flatten(0, 1)[batch["positions"]])


def test_the_hook_is_gone_after_an_error(tiny_llama: Build, examples: Build) -> None:
    model, batch = tiny_llama(), collate(examples())
    with pytest.raises(RuntimeError, match="stop"), SupervisedHead(model, batch["positions"]):
        raise RuntimeError("stop")
    assert model(input_ids=batch["input_ids"]).logits.shape[:2] == batch["input_ids"].shape


def test_padding_is_never_seen_whatever_id_fills_it(tiny_llama: Build, examples: Build) -> None:
    model, rows = tiny_llama(), examples()
    values = [supervised_loss(model, collate(rows, pad_token_id=pad))[0] for pad in (0, 17)]
    assert torch.equal(values[0], values[1])


def test_token_losses_name_the_row_of_each_value(tiny_llama: Build, examples: Build) -> None:
    model, rows = tiny_llama(), examples()
    losses = token_losses(model, collate(rows))
    sums = torch.zeros(len(rows)).index_add(0, losses.rows, losses.values)
    for row, example in enumerate(rows):
        assert sums[row].item() == pytest.approx(naive_loss(model, [example])[0].item(), rel=1e-4)


def test_a_batch_without_supervised_tokens_gives_zero_and_zero_gradients(tiny_llama: Build) -> None:
    model = tiny_llama()
    silent = EncodedExample("silent", "en", (1, 2, 3), (True, False, False), 0)  # nothing predicts the first
    total, count = supervised_loss(model, collate([silent]))
    torch.autograd.backward(total)
    assert (total.item(), count) == (0.0, 0)
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_the_auxiliary_loss_of_a_mixture_of_experts_is_kept(tiny_mixtral: Build, examples: Build) -> None:
    rows = examples(6)
    batch = collate(rows)
    model = tiny_mixtral()
    labels = torch.full_like(batch["input_ids"], -100)
    labels.view(-1)[batch["positions"] + 1] = batch["targets"]
    reference = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels)
    total, count = supervised_loss(model, batch, with_auxiliary=True)
    plain, _ = supervised_loss(model, batch)
    assert (total / count).item() == pytest.approx(reference.loss.item(), rel=1e-5)
    assert ((total - plain) / count).item() == pytest.approx(0.5 * reference.aux_loss.item(), rel=1e-4)
    torch.autograd.backward(total / count)
    assert model.model.layers[0].mlp.gate.weight.grad.abs().sum() > 0


def test_a_dense_run_of_a_mixture_of_experts_has_no_auxiliary_loss(
    tiny_mixtral: Build, examples: Build
) -> None:
    batch = collate(examples(6))
    model = tiny_mixtral(output_router_logits=False)
    assert token_losses(model, batch).auxiliary is None


def test_a_model_without_head_is_refused(tiny_llama: Build) -> None:
    headless = LlamaModel(tiny_llama().config)
    with pytest.raises(ModelError, match="has no output embedding"):
        SupervisedHead(headless, torch.zeros(1, dtype=torch.long))
