"""Weights go by the names of the model's parameters, whatever the files call them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lingraft.models.checkpoints import combine_checkpoints
from lingraft.models.tensor_files import CheckpointReader
from lingraft.models.weights import ModelWeights
from lingraft.weights.difference import parameter_difference
from lingraft.weights.signal_to_noise import signal_to_noise

VOCABULARY = 60
ARCHITECTURES = ("llama", "gemma3", "phi3", "gpt2", "bloom", "gpt_neox", "mixtral", "qwen3_moe")


@pytest.fixture
def make(tmp_path: Path, tiny_configuration: Callable[..., Any]) -> Callable[..., Any]:
    """A function that saves a random model by transformers, and returns its folder and itself."""

    def build(architecture: str, name: str = "saved", seed: int = 0) -> tuple[Path, Any]:
        torch.manual_seed(seed)
        config = tiny_configuration(architecture, VOCABULARY)
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        model.save_pretrained(tmp_path / name)
        return tmp_path / name, model

    return build


def renamed(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """Return a copy of a checkpoint with other names or tensors in its file."""
    copy = folder.parent / name
    copy.mkdir()
    (copy / "config.json").write_text((folder / "config.json").read_text())
    save_file(change(load_file(folder / "model.safetensors")), copy / "model.safetensors")
    return copy


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_and_values_are_those_of_the_models_parameters(
    make: Callable[..., Any], architecture: str
) -> None:
    folder, model = make(architecture)
    reader = ModelWeights(folder)
    parameters = dict(model.named_parameters())
    assert reader.names == tuple(sorted(parameters))
    for name, own in parameters.items():
        assert reader.shape(name) == tuple(own.shape)
        assert torch.equal(reader.tensor(name), own)
        for elements in (1, 100, 10**6):
            pieces = [piece.clone() for piece in reader.pieces(name, elements)]
            assert torch.equal(torch.cat(pieces), own.flatten())
        assert torch.equal(torch.cat([p.clone() for p in reader.pieces(name, 7, rows=2)]), own[:2].flatten())
    assert signal_to_noise(reader).modules


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "mistral", "qwen2", "qwen3", "gemma2", "olmo2"])
def test_what_transformers_loads_fits_its_configuration(make: Callable[..., Any], architecture: str) -> None:
    folder, _ = make(architecture)
    assert ModelWeights(folder).misfit() is None
    assert ModelWeights(folder).not_finite() is None
    assert ModelWeights(renamed(folder, "hub", as_on_the_hub(architecture))).misfit() is None


def test_what_is_stored_otherwise_than_the_configuration_says_is_named(make: Callable[..., Any]) -> None:
    folder, _ = make("llama")

    def misfit(change: Callable[[dict[str, torch.Tensor]], Any]) -> str:
        name = f"odd {len(list(folder.parent.iterdir()))}"
        return str(ModelWeights(renamed(folder, name, change)).misfit())

    up = "model.layers.1.mlp.up_proj.weight"
    assert "1 weights are not in its files (model.layers.1.mlp.up_proj.weight)" in misfit(
        lambda own: {name: one for name, one in own.items() if name != up}
    )
    assert "up_proj.weight: [48, 31] in its file, [48, 32] by config.json" in misfit(
        lambda own: {**own, up: own[up][:, :31].contiguous()}
    )
    assert "no place for (model.layers.1.mlp.up_proj.bias)" in misfit(
        lambda own: {**own, "model.layers.1.mlp.up_proj.bias": torch.ones(48)}
    )
    assert "by config.json it has 2 layers, its files hold 3" in misfit(
        lambda own: {**own, "model.layers.2.mlp.up_proj.weight": torch.ones(48, 32)}
    )
    assert "holds whole numbers" in misfit(lambda own: {**own, up: own[up].to(torch.int8)})
    assert misfit(lambda own: {**own, "vision.layers.0.weight": torch.ones(2)}) == "None"
    folder, _ = make("gpt2", "gpt2")
    assert (
        "by config.json it has 2 layers, its files hold 3"
        in misfit(  # as the hub's, without `transformer.`
            lambda own: {
                **{name.removeprefix("transformer."): one for name, one in own.items()},
                "h.2.mlp.c_fc.weight": torch.ones(32, 128),
            }
        )
    )


MASK = torch.ones(1, 1, 8, 8).tril()
NO_NUMBERS = torch.full((2,), float("-inf"))


@pytest.mark.parametrize(
    "stored",
    [
        {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)},
        {"model.layers.1.self_attn.maybe_rotary.inv_freq": torch.ones(4)},
        {"model.layers.1.attn.bias": MASK.bool(), "model.layers.1.attn.masked_bias": torch.tensor(-1e9)},
        {"model.layers.1.attn.attention.bias": MASK, "model.layers.1.attn.masked_bias": NO_NUMBERS},
        {"model.layers.1.attn.causal_mask": MASK.to(torch.uint8)},
        {
            "model.layers.1.self_attn.k_scale": torch.ones(()),
            "model.layers.1.self_attn.v_scale": torch.ones(()),
        },
        {"v_head.summary.weight": NO_NUMBERS, "freqs_cis": torch.ones(4, dtype=torch.complex64)},
    ],
)
def test_what_older_versions_stored_and_no_parameter_is_called_is_no_misfit(
    make: Callable[..., Any], stored: dict[str, torch.Tensor]
) -> None:
    folder, _ = make("llama")
    found = ModelWeights(renamed(folder, "old", lambda own: own | stored))
    assert (found.misfit(), found.not_finite()) == (None, None)


def test_layers_that_predict_further_tokens_come_after_those_of_the_model(make: Callable[..., Any]) -> None:
    folder, _ = make("llama")
    old = renamed(folder, "old", lambda own: {**own, "model.layers.2.mlp.up_proj.weight": torch.ones(48, 32)})
    path = old / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": 1}))
    assert ModelWeights(old).misfit() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_value_that_is_no_number_is_found(make: Callable[..., Any], dtype: torch.dtype, value: str) -> None:
    folder, _ = make("mixtral")

    def change(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {name: one.to(dtype) for name, one in own.items()}
        found["model.norm.weight"][5] = float(value)
        return found

    assert "model.norm.weight holds 1 values" in str(
        ModelWeights(renamed(folder, "odd", change)).not_finite()
    )

    def large(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        most = torch.finfo(dtype).max  # their sum overflows
        return {name: torch.full_like(one, most, dtype=dtype) for name, one in own.items()}

    assert ModelWeights(renamed(folder, "large", large)).not_finite() is None


def as_on_the_hub(architecture: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    """Return what makes of a file as transformers saves it one as it lies on the hub."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if architecture in (
            "gpt2",
            "bloom",
        ):  # no prefix of the inner model; gpt2 with the masks of its attention
            found = {name.removeprefix("transformer."): own for name, own in tensors.items()}
            masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 256, 256) for layer in range(2)}
            return {**found, **(masks if architecture == "gpt2" else {})}
        if architecture == "llama":
            return {
                **{f"{name}": own for name, own in tensors.items()},
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
            }
        if architecture == "gemma3":  # the way in which transformers 5 calls its own parameters
            return {
                "model." + name.replace("language_model.model.", "language_model."): own
                for name, own in tensors.items()
            }
        return dict(tensors)

    return change


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "gemma3", "mixtral"])
def test_a_model_against_its_own_copy_under_the_names_of_the_hub_is_nothing_and_misses_nothing(
    make: Callable[..., Any], architecture: str, tmp_path: Path
) -> None:
    folder, model = make(architecture)
    on_the_hub = renamed(folder, "hub", as_on_the_hub(architecture))
    AutoModelForCausalLM.from_pretrained(on_the_hub).save_pretrained(tmp_path / "again")
    for one, other in ((on_the_hub, folder), (on_the_hub, tmp_path / "again")):
        found = parameter_difference(one, other)
        assert found.mpd == 0.0
        assert found.missing == ()
        assert {tensor.name for tensor in found.tensors} == {name for name, _ in model.named_parameters()}


def test_a_stack_of_experts_may_be_stored_as_one_tensor_or_expert_by_expert(make: Callable[..., Any]) -> None:
    folder, model = make("mixtral")
    whole = folder.parent / "whole"
    whole.mkdir()
    (whole / "config.json").write_text((folder / "config.json").read_text())
    save_file(
        {name: own.detach().clone() for name, own in model.named_parameters()}, whole / "model.safetensors"
    )
    assert "block_sparse_moe.experts.0.w1" in "".join(load_file(folder / "model.safetensors"))
    found = parameter_difference(folder, whole)
    assert (found.mpd, found.missing) == (0.0, ())


def test_of_a_stack_only_the_experts_of_a_piece_are_read_at_a_time(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = make("mixtral")
    read: list[str] = []
    inner = CheckpointReader.copy_of

    def watched(self: CheckpointReader, name: str) -> torch.Tensor:
        read.append(name)
        return inner(self, name)

    monkeypatch.setattr(CheckpointReader, "copy_of", watched)
    pieces = ModelWeights(folder).pieces("model.layers.0.mlp.experts.gate_up_proj", 1)
    for expert, _piece in enumerate(pieces):
        assert [name.split(".")[-3:-1] for name in read] == [[str(expert), "w1"], [str(expert), "w3"]]
        read.clear()
    assert expert == 3


def test_what_truly_has_no_counterpart_is_missing(make: Callable[..., Any]) -> None:
    folder, _ = make("gpt2")
    lacking = renamed(
        folder,
        "lacking",
        lambda tensors: {
            **{name: own for name, own in tensors.items() if "ln_f.bias" not in name},
            "more.weight": torch.ones(2),
        },
    )
    assert parameter_difference(folder, lacking).missing == ("more.weight", "transformer.ln_f.bias")


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_tied_weights_count_once_however_often_they_are_stored(
    make: Callable[..., Any], architecture: str
) -> None:
    folder, model = make(architecture)
    name = next(one for one, own in model.named_parameters() if own is model.lm_head.weight)
    head = "lm_head.weight"
    twice = renamed(folder, "twice", lambda tensors: {**tensors, head: tensors[name].clone()})
    as_head = renamed(
        folder, "head", lambda tensors: {head if one == name else one: own for one, own in tensors.items()}
    )
    for other in (twice, as_head):
        found = parameter_difference(folder, other)
        assert (found.mpd, found.missing) == (0.0, ())
        assert name in ModelWeights(other).names
        assert head not in ModelWeights(other).names
        assert head in ModelWeights(other)
    apart = renamed(folder, "apart", lambda tensors: {**tensors, head: tensors[name] + 1})
    loaded = AutoModelForCausalLM.from_pretrained(apart)  # which does not tie them either
    reader = ModelWeights(apart)
    assert reader.names == tuple(sorted(one for one, _ in loaded.named_parameters()))
    assert torch.equal(reader.tensor(head), loaded.lm_head.weight)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("shards", [False, True])
def test_two_checkpoints_combine_parameter_by_parameter_whatever_their_files_say(
    make: Callable[..., Any], architecture: str, shards: bool
) -> None:
    before, first = make(architecture, "before", seed=0)
    after, second = make(architecture, "after", seed=1)
    before = renamed(before, "hub", as_on_the_hub(architecture))
    if shards:
        after = after.parent / "shards"
        second.save_pretrained(after, max_shard_size="20KB")
        assert len(list(after.glob("*.safetensors"))) > 2
    seen = set()

    def half(name: str, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        seen.add(name)
        return (old + new) / 2

    combine_checkpoints(before, after, half, after.parent / "made")
    assert seen == {name for name, _ in second.named_parameters()}
    made = AutoModelForCausalLM.from_pretrained(after.parent / "made")
    for name, own in made.named_parameters():
        torch.testing.assert_close(own, (first.get_parameter(name) + second.get_parameter(name)) / 2)
    assert {path.name for path in (after.parent / "made").iterdir()} == {
        path.name for path in after.iterdir()
    }
    files = [load_file(path) for path in (after.parent / "made").glob("*.safetensors")]
    expected = [load_file(path) for path in after.glob("*.safetensors")]
    assert {name for one in files for name in one} == {name for one in expected for name in one}
