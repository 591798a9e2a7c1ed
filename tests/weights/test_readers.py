"""What `difference` reads besides plain checkpoints: pieces, resized vocabularies, a base, and LoRA adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from lingraft.errors import ModelError
from lingraft.models.adapters import open_weights
from lingraft.models.checkpoints import CheckpointReader
from lingraft.weights.difference import parameter_difference


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("elements", [1, 10, 1000])
def test_the_pieces_of_a_tensor_are_its_rows_in_order(
    tmp_path: Path, kind: torch.dtype, elements: int
) -> None:
    values = torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(0)).to(kind)
    reader = CheckpointReader(checkpoint(tmp_path / "a", {"x": values, "one": torch.tensor(2.5).to(kind)}))
    pieces = [piece.clone() for piece in reader.pieces("x", elements)]
    assert all(len(piece) % 6 == 0 for piece in pieces)
    assert torch.equal(torch.cat(pieces), values.flatten())
    first = torch.cat([piece.clone() for piece in reader.pieces("x", elements, rows=3)])
    assert torch.equal(first, values[:3].flatten())
    assert [piece.tolist() for piece in reader.pieces("one", elements)] == [[2.5]]


def test_a_file_that_is_cut_off_while_it_is_read_is_told(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", {"x": torch.zeros(1000)})
    reader = CheckpointReader(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(ModelError, match="x is cut off"):
        list(reader.pieces("x", 100))


def test_types_may_differ(tmp_path: Path) -> None:
    values = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    one = checkpoint(tmp_path / "a", {"x": values})
    other = checkpoint(tmp_path / "b", {"x": values.bfloat16()})
    expected = (values.double() - values.bfloat16().double()).norm().item()
    assert parameter_difference(one, other).tensors[0].l2 == pytest.approx(expected, rel=1e-12)


def test_shards_of_several_types_give_the_naive_value(tmp_path: Path, tiny_model: Path) -> None:
    folders = []
    for seed, (kind, size) in enumerate([(torch.bfloat16, "30KB"), (torch.float16, "50KB")]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.01)
        folders.append(tmp_path / str(seed))
        model.to(kind).save_pretrained(folders[-1], max_shard_size=size)  # type: ignore[arg-type]
        assert len(list(folders[-1].glob("*.safetensors"))) > 1
    one, other = (
        dict(AutoModelForCausalLM.from_pretrained(folder, dtype="auto").named_parameters())
        for folder in folders
    )
    assert {p.dtype for p in one.values()} == {torch.bfloat16}
    naive = [(one[name].double() - other[name].double()).norm().item() for name in one]
    found = parameter_difference(*folders)
    assert found.mpd == pytest.approx(sum(naive) / len(naive), rel=1e-6)
    assert len(found.tensors) == len(naive)


def test_of_a_resized_vocabulary_the_common_rows_are_compared_and_named(tmp_path: Path) -> None:
    old, new = torch.ones(4, 3), torch.cat([torch.full((4, 3), 2.0), torch.full((2, 3), 9.0)])
    one = checkpoint(tmp_path / "a", {"model.embed_tokens.weight": old, "model.norm.weight": torch.ones(3)})
    other = checkpoint(tmp_path / "b", {"model.embed_tokens.weight": new, "model.norm.weight": torch.ones(3)})
    for first, second in ((one, other), (other, one)):
        found = parameter_difference(first, second)
        assert found.resized == ("model.embed_tokens.weight",)
        assert found.tensors[0].l2 == pytest.approx(12**0.5)
        assert found.tensors[0].rows == 4
    third = checkpoint(tmp_path / "c", {"model.embed_tokens.weight": torch.ones(4, 5)})
    with pytest.raises(ModelError, match="embed_tokens"):
        parameter_difference(one, third)


def test_two_updates_from_a_base_are_compared_by_hand(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "0", {"x": torch.tensor([1.0, 1.0, 1.0, 1.0]), "y": torch.zeros(2)})
    one = checkpoint(tmp_path / "1", {"x": torch.tensor([2.0, 3.0, 1.0, 1.0]), "y": torch.zeros(2)})
    other = checkpoint(tmp_path / "2", {"x": torch.tensor([2.0, 0.0, 4.0, 1.0]), "y": torch.ones(2)})
    found = parameter_difference(one, other, base)
    update = found.tensors[0].update
    assert update is not None
    assert update.cosine == pytest.approx((1 * 1 + 2 * -1 + 0) / (5**0.5 * 11**0.5))
    assert (update.agreeing, update.changed, update.sign_agreement) == (1, 2, 0.5)
    still = found.tensors[1].update
    assert still is not None
    assert (still.cosine, still.sign_agreement) == (None, None)
    assert found.whole().update_cosine == pytest.approx(-1 / (5**0.5 * (11 + 2) ** 0.5))
    assert parameter_difference(one, other, one).tensors[0].update is not None
    lacking = checkpoint(tmp_path / "3", {"x": torch.ones(4)})
    assert parameter_difference(one, other, lacking).without_base == ("y",)


def test_groups_are_as_one_long_vector(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    names = [
        f"model.layers.{layer}.mlp.{kind}.weight" for layer in (0, 10) for kind in ("up_proj", "down_proj")
    ]
    models = [
        {name: torch.randn(5, 4, generator=generator) for name in [*names, "lm_head.weight"]} for _ in "ab"
    ]
    found = parameter_difference(*(checkpoint(tmp_path / str(i), model) for i, model in enumerate(models)))
    by_layer = {one.name: one for one in found.by_layer()}
    assert list(by_layer) == ["outside the layers", "0", "10"]
    long = [torch.cat([model[name].flatten().double() for name in names[2:]]) for model in models]
    assert by_layer["10"].l2 == pytest.approx((long[0] - long[1]).norm().item(), rel=1e-12)
    assert by_layer["10"].cosine == pytest.approx(
        torch.cosine_similarity(long[0], long[1], dim=0).item(), rel=1e-12
    )
    assert {one.name: one.tensors for one in found.by_module()} == {
        "up_proj": 2,
        "down_proj": 2,
        "lm_head": 1,
    }


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # a name that peft still uses
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
        {"r": 4, "lora_alpha": 6, "target_modules": ["v_proj"], "use_rslora": True},
        {"r": 2, "lora_alpha": 4, "target_modules": ["embed_tokens", "k_proj"]},
        {
            "r": 2,
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"up_proj": 5},
            "alpha_pattern": {"q_proj": 3},
            "modules_to_save": ["norm"],
        },
    ],
    ids=["plain", "rank-stabilised", "embedding", "patterns and whole modules"],
)
def test_an_adapters_effective_weights_are_those_of_the_merged_model(
    tmp_path: Path, tiny_model: Path, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    untied = tmp_path / "base"  # an adapted embedding would change a tied head, too
    AutoModelForCausalLM.from_pretrained(tiny_model, tie_word_embeddings=False).save_pretrained(untied)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(untied), LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    adapter = open_weights(str(tmp_path / "adapter"))
    merged = CheckpointReader(tmp_path / "merged")
    found = parameter_difference(adapter, merged)
    assert found.missing == ()
    assert max(one.l2 for one in found.tensors) < 1e-5
    from_base, expected = (parameter_difference(untied, other) for other in (adapter, merged))
    assert from_base.mpd == pytest.approx(expected.mpd, rel=1e-5)
    assert from_base.mpd > 0


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # a name that peft still uses
def test_an_adapter_may_lie_on_the_hub(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(tmp_path / "a")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda _id, **_options: str(tmp_path / "a"))
    reader = open_weights("someone/adapter", str(tiny_model))
    assert reader.folder == tmp_path / "a"
    assert reader.architecture == "llama"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # a name that peft still uses
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "IA3"}, "of type 'IA3'"),
        ({"use_dora": True}, "uses use_dora"),
        ({"base_model_name_or_path": None}, "names no base model"),
    ],
)
def test_adapters_that_are_no_plain_lora_are_refused(
    tmp_path: Path, tiny_model: Path, change: dict[str, Any], says: str
) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=says):
        open_weights(str(tmp_path / "a"))
