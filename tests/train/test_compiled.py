"""Compiled layers compute what they did, in two graphs for all shapes of batches, under the names that they had."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from lingraft.config.schema import Training
from lingraft.errors import ConfigError
from lingraft.models.layers import decoder_layers
from lingraft.train import attention, compiled
from lingraft.train.attention import grouped_attention
from lingraft.train.compiled import compiled_layers, compiles
from lingraft.train.phase import train_phase
from lingraft.train.watching import Progress

Build = Callable[..., Any]
SHAPES = [(4, 17), (3, 30), (1, 24), (7, 9), (2, 1), (1, 11), (2, 40)]
CPU = torch.device("cpu")
ON_TWO_PROCESSES = """
import random, sys
from types import SimpleNamespace
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from lingraft.config.schema import Training
from lingraft.data.encoded import EncodedExample
from lingraft.train import compiled
from lingraft.train.phase import train_phase

graphs = []
compiled._BACKEND = lambda graph, _: graphs.append(graph) or graph.forward
ids = random.Random(0)
rows = []
for number in range(16):
    length = ids.randint(4, 24)
    taught = (False,) + (True,) * (length - 1)
    rows.append(EncodedExample(str(number), "en", tuple(ids.choices(range(96), k=length)), taught, 0))
sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
for sharded in (False, True):
    losses = []
    for compiles in (False, True):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, **sizes))
        training = Training(
            learning_rate=1e-2, tokens_per_batch=96, precision="float32", compile=compiles,
            gradient_checkpointing=True, save_minutes=0,
        )
        done = train_phase(
            model, SimpleNamespace(pad_token_id=0), rows, training, sharded=sharded,
            folder=f"{sys.argv[1]}/{sharded}-{compiles}",
        )
        assert done.compiled == compiles
        losses.append([loss for _, loss in done.losses])
    assert losses[0] == losses[1], losses
    assert 1 <= len(graphs) <= 2, len(graphs)
    graphs.clear()
    torch._dynamo.reset()
"""


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Graphs that are made; they run as they are, which needs no C++ compiler."""
    made: list[Any] = []

    def backend(graph: Any, _: object) -> Any:
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "_BACKEND", backend)
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


def passes(model: Any) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Return logits and gradients of batches of all shapes."""
    found = []
    for number, shape in enumerate(SHAPES):
        model.zero_grad()
        ids = torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(number))
        logits = model(input_ids=ids, use_cache=False).logits
        logits.logsumexp(-1).sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((logits.detach(), gradients))
    return found


def checkpointed(model: Any) -> Any:
    model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def adapted(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # PEFT asks for it
@pytest.mark.parametrize(
    ("prepare", "kinds"),
    [(lambda model: model, 1), (checkpointed, 1), (adapted, 2)],
    ids=["plain", "checkpointed", "lora"],
)
def test_all_shapes_share_two_graphs_for_each_kind_of_layer_and_compute_the_same(
    tiny_llama: Build, graphs: list[Any], monkeypatch: pytest.MonkeyPatch, prepare: Build, kinds: int
) -> None:
    monkeypatch.setattr(attention, "LONGEST", 32)
    monkeypatch.setattr(compiled, "LONGEST", 32)
    model = prepare(tiny_llama(attn_implementation="sdpa").train())
    names = [name for name, _ in model.named_parameters()]
    with grouped_attention(model):
        expected = passes(model)
        with compiled_layers(model):
            found = passes(model)
            assert [name for name, _ in model.named_parameters()] == names
    assert len(graphs) == 2 * kinds  # without a gradient at its input, the first layer is of another kind
    for (logits, gradients), (own, of_own) in zip(expected, found, strict=True):
        torch.testing.assert_close(own, logits, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(of_own, gradients, rtol=1e-6, atol=1e-6)
    assert not any("forward" in vars(layer) for layer in decoder_layers(model))


def test_more_graphs_than_allowed_are_an_error_and_no_silent_way_back(
    tiny_llama: Build, graphs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_MOST_GRAPHS", 1)
    model = tiny_llama().train()
    refusal = pytest.raises(ConfigError, match="LlamaDecoderLayer cannot be compiled; write `compile: false`")
    with refusal, compiled_layers(model):
        passes(model)
    assert len(graphs) == 1
    passes(model)  # the layers are as they were


def test_a_compiled_phase_learns_what_an_uncompiled_one_does(
    tiny_llama: Build, examples: Build, tokenizer: Any, graphs: list[Any], tmp_path: Path
) -> None:
    losses, outcomes = [], []
    for is_on in (False, True):
        training = Training(
            learning_rate=1e-2,
            epochs=2,
            tokens_per_batch=48,
            precision="bf16",
            compile=is_on,
            save_minutes=0,
        )
        model, seen = tiny_llama(), list[Progress]()
        outcomes.append(
            train_phase(
                model,
                tokenizer,
                examples(),
                training,
                folder=tmp_path / str(is_on),
                on_progress=seen.append,
            )
        )
        losses.append([step.loss for step in seen])
    assert losses[0] == losses[1]
    assert [one.compiled for one in outcomes] == [False, True]
    assert 1 <= len(graphs) <= 2


@pytest.mark.slow  # torchrun; one process is covered above
def test_replicated_and_sharded_processes_compile_the_same_layers(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(ON_TWO_PROCESSES, encoding="utf-8")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = subprocess.run(
        [sys.executable, *torchrun, str(script), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow  # a minute of a C++ compiler; graphs are covered above
@pytest.mark.skipif(compiled.missing_compiler(CPU) is not None, reason="no C++ compiler")
def test_compiled_code_computes_the_same_but_for_rounding(tiny_llama: Build) -> None:
    model = tiny_llama(attn_implementation="sdpa").train()
    torch._dynamo.reset()
    with grouped_attention(model):
        expected = passes(model)
        with compiled_layers(model):
            found = passes(model)
    for (logits, gradients), (own, of_own) in zip(expected, found, strict=True):
        torch.testing.assert_close(own, logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(of_own, gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "flops", "steps", "is_on"),
    [
        ("cpu", 3e14, 500, True),
        ("cpu", 1e14, 500, False),
        ("cpu", 3e14, 20, False),
        ("cpu", None, 500, False),
        ("cuda", 2e17, 500, True),
        ("cuda", 3e14, 500, False),
        ("mps", 2e17, 500, False),
    ],
)
def test_auto_compiles_phases_that_are_long_enough(
    monkeypatch: pytest.MonkeyPatch, kind: str, flops: float | None, steps: int, is_on: bool
) -> None:
    monkeypatch.setattr(compiled, "missing_compiler", lambda _: None)
    of_steps = None if flops is None else [flops / steps] * steps
    cases: list[tuple[Literal["auto"] | bool, bool]] = [("auto", is_on), (False, False), (True, True)]
    for asked, expected in cases:
        assert compiles(asked, torch.device(kind), of_steps, pytest.fail) is expected


def test_without_a_compiler_auto_notes_it_and_true_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    notes: list[str] = []
    assert not compiles("auto", CPU, [1e12] * 1000, notes.append)
    assert ["needs a C++ compiler" in note for note in notes] == [True]
    assert not compiles("auto", CPU, [1e8] * 10, pytest.fail), "a short phase would not be compiled anyway"
    with pytest.raises(
        ConfigError, match=r"training\.compile true: .*C\+\+ compiler.* Or write `compile: false`"
    ):
        compiled.check_compiler(True, CPU)


def test_results_do_not_depend_on_it() -> None:
    assert Training(compile=True).compared() == Training(compile=False).compared() == Training().compared()
