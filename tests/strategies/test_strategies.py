"""Each strategy: by hand on a small model, reduced to plain, and the property that it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lingraft.config.schema import StrategyChoice
from lingraft.data.example import Example, Message
from lingraft.errors import ConfigError, StrategyError
from lingraft.models.layers import layer_of
from lingraft.strategies.base import Context, Strategy, freeze_plan
from lingraft.strategies.composition import Composition, build
from lingraft.strategies.freeze_random import FreezeRandom
from lingraft.strategies.lora import merge


def composed(written: Any) -> Composition:
    return build(StrategyChoice.model_validate(written))


def model(seed: int = 0, *, layers: int = 4, tied: bool = True) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )


def context(folder: Path, **changes: Any) -> Context:
    defaults: dict[str, Any] = {
        "base": None,
        "previous": folder,
        "previous_data": (),
        "english": (),
        "seed": 0,
        "folder": folder,
        "cache": folder / "cache",
    }
    return Context(**(defaults | changes))


def rows(count: int, language: str = "de", prefix: str = "g") -> tuple[Example, ...]:
    return tuple(
        Example(
            id=f"{language}{i}",
            messages=(Message("user", f"question {i}"), Message("assistant", f"answer {i}")),
            language=language,
            group=f"{prefix}{i}",
            source=language,
        )
        for i in range(count)
    )


def names(of: Any) -> frozenset[str]:
    return frozenset(name for name, _ in of.named_parameters())


def frozen_layers(of: Any, trainable: frozenset[str]) -> set[int]:
    return {layer for name in names(of) - trainable if (layer := layer_of(name)) is not None}


def test_plain_changes_nothing(tmp_path: Path) -> None:
    plain, data, network = composed("plain"), rows(3), model()
    assert plain.mix(data, context(tmp_path)).examples == data
    assert plain.wrap(network, context(tmp_path)) is network
    assert plain.trainable(network, context(tmp_path)) == names(network)


@pytest.mark.parametrize("kind", ["freeze_random", "freeze_changed"])
def test_freezing_a_share_of_nothing_is_plain(tmp_path: Path, kind: str) -> None:
    phase_one, base = model(1), model(0)
    base.save_pretrained(tmp_path / "base")
    phase_one.save_pretrained(tmp_path / "one")
    there = context(tmp_path, base=tmp_path / "base", previous=tmp_path / "one")
    assert composed({kind: {"share": 0}}).trainable(phase_one, there) == names(phase_one)


def test_freeze_random_freezes_the_share_that_its_seed_draws(tmp_path: Path) -> None:
    network = model(layers=8)
    half = composed({"freeze_random": {"share": 0.5}})
    drawn = [
        frozen_layers(network, half.trainable(network, context(tmp_path, seed=seed))) for seed in range(6)
    ]
    assert {len(layers) for layers in drawn} == {4}
    assert len({tuple(sorted(layers)) for layers in drawn}) > 1
    assert drawn[0] == frozen_layers(network, half.trainable(network, context(tmp_path, seed=0)))
    assert "model.embed_tokens.weight" in half.trainable(network, context(tmp_path))


def test_frozen_embeddings_take_a_tied_head_along(tmp_path: Path) -> None:
    network = model()
    strategy = composed({"freeze_random": {"share": 0.5, "embeddings": True}})
    trainable = strategy.trainable(network, context(tmp_path))
    assert not any("embed_tokens" in name or "lm_head" in name for name in trainable)
    assert "tied" in freeze_plan(network, trainable)[0].part
    assert freeze_plan(network, trainable)[0].frozen_parameters == 40 * 16


def test_freeze_changed_freezes_the_layers_that_moved_most(tmp_path: Path) -> None:
    base = model(0)
    base.save_pretrained(tmp_path / "base")
    phase_one = model(0)
    with torch.no_grad():
        for layer, scale in (
            (0, 1.01),
            (1, 1.5),
            (2, 1.02),
            (3, 2.0),
        ):  # relative changes 0.01, 0.5, 0.02, 1.0
            for parameter in phase_one.model.layers[layer].parameters():
                parameter.mul_(scale)
    phase_one.save_pretrained(tmp_path / "one")
    there = context(tmp_path, base=tmp_path / "base", previous=tmp_path / "one")
    for share, expected in ((0.25, {3}), (0.5, {1, 3}), (0.75, {1, 2, 3})):
        trainable = composed({"freeze_changed": {"share": share}}).trainable(phase_one, there)
        assert frozen_layers(phase_one, trainable) == expected


def test_freeze_changed_refuses_two_equal_models(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path / "base")
    there = context(tmp_path, base=tmp_path / "base", previous=tmp_path / "base")
    with pytest.raises(StrategyError, match="no layer differs"):
        composed("freeze_changed").trainable(model(), there)


def test_english_replay_of_share_nothing_is_plain(tmp_path: Path) -> None:
    mixed = composed({"english_replay": {"share": 0}}).mix(rows(5), context(tmp_path, english=rows(5, "en")))
    assert mixed.examples == rows(5)
    assert (mixed.replayed, mixed.shortfall) == (0, 0)


def test_english_replay_is_a_share_of_the_final_mix(tmp_path: Path) -> None:
    replay = composed({"english_replay": {"share": 0.25, "from": "phase_one"}})
    mixed = replay.mix(rows(30), context(tmp_path, previous_data=rows(50, "en")))
    assert (mixed.replayed, mixed.shortfall, len(mixed.examples)) == (10, 0, 40)
    english = [example for example in mixed.examples if example.language == "en"]
    assert len({example.id for example in english}) == 10
    assert {example.origin.kind for example in english} == {"english_replay"}
    assert {e.origin.kind for e in mixed.examples if e.language == "de"} == {"original"}
    order = [example.language for example in mixed.examples]
    assert order != sorted(order)


def test_english_replay_takes_parallel_rows_first_and_never_repeats(tmp_path: Path) -> None:
    english = (*rows(20, "en", prefix="other"), *rows(6, "en", prefix="g"))
    replay = composed({"english_replay": {"share": 0.5}})
    mixed = replay.mix(rows(6), context(tmp_path, english=english))
    assert {e.group for e in mixed.examples if e.language == "en"} == {f"g{i}" for i in range(6)}
    short = replay.mix(rows(40), context(tmp_path, english=rows(5, "en")))
    assert (short.replayed, short.shortfall, len(short.examples)) == (5, 35, 45)


def test_replay_says_what_it_needs() -> None:
    assert composed("english_replay").needs == {"english"}
    assert composed({"english_replay": {"from": "phase_one"}}).needs == {"previous_data"}
    assert composed(["freeze_changed", {"english_replay": {"from": "phase_one"}}]).needs == {
        "base",
        "previous_data",
    }


def test_lora_starts_at_the_model_and_merges_to_a_plain_one(tmp_path: Path) -> None:
    network, ids = model(), torch.arange(12).reshape(2, 6)
    before = network(input_ids=ids).logits.detach().clone()
    lora = composed({"lora": {"rank": 2}})
    wrapped = lora.wrap(network, context(tmp_path))
    assert torch.equal(wrapped(input_ids=ids).logits, before)
    trainable = lora.trainable(wrapped, context(tmp_path))
    assert trainable
    assert all("lora_" in name for name in trainable)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if name in trainable:
                parameter.add_(0.05)
    adapted = wrapped(input_ids=ids).logits.detach().clone()
    merged = lora.finish(wrapped, tmp_path)
    assert isinstance(merged, LlamaForCausalLM)
    assert not torch.allclose(adapted, before)
    torch.testing.assert_close(merged(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-5)


def test_lora_is_seeded_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, two, other = (
        composed({"lora": {"rank": 2}}).wrap(model(), context(tmp_path, seed=seed)).state_dict()
        for seed in (0, 0, 1)
    )
    key = next(name for name in one if "lora_A" in name)
    assert torch.equal(one[key], two[key])
    assert not torch.equal(one[key], other[key])
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_lora_names_a_module_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match="no_such_module"):
        composed({"lora": {"target_modules": "no_such_module"}}).wrap(model(), context(tmp_path))


def test_lora_names_a_module_that_does_not_exist_beside_one_that_does(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match=r"'q_prj'\. Did you mean 'q_proj'"):
        composed({"lora": {"target_modules": ["v_proj", "q_prj"]}}).wrap(model(), context(tmp_path))


def test_lora_refuses_a_tied_head_since_merging_would_change_the_embeddings(tmp_path: Path) -> None:
    strategy = composed({"lora": {"rank": 2, "target_modules": ["q_proj", "lm_head"]}})
    with pytest.raises(StrategyError, match=r"'lm_head' shares its weights.*embed_tokens"):
        strategy.wrap(model(), context(tmp_path))
    wrapped = strategy.wrap(model(tied=False), context(tmp_path))
    adapted = {n.split(".lora_")[0].split(".")[-1] for n in strategy.trainable(wrapped, context(tmp_path))}
    assert adapted == {"q_proj", "lm_head"}


def test_two_freezing_strategies_leave_what_both_leave(tmp_path: Path) -> None:
    model(0).save_pretrained(tmp_path / "base")
    model(1).save_pretrained(tmp_path / "one")
    there = context(tmp_path, base=tmp_path / "base", previous=tmp_path / "one", seed=3)
    parts: list[Any] = [{"freeze_random": {"share": 0.25}}, {"freeze_changed": {"share": 0.5}}]
    alone = [composed(part).trainable(model(1), there) for part in parts]
    assert composed(parts).trainable(model(1), there) == alone[0] & alone[1]


def test_embeddings_are_frozen_under_other_architectures_names(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    network = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=40, num_hidden_layers=2, **sizes))
    strategy = composed({"freeze_random": {"share": 0, "embeddings": True}})
    trainable = strategy.trainable(network, context(tmp_path))
    assert names(network) - trainable == {"gpt_neox.embed_in.weight"}
    assert freeze_plan(network, trainable)[0].part == "embeddings"


def test_an_option_of_several_types_is_complained_about_once() -> None:
    with pytest.raises(ConfigError) as caught:
        composed({"lora": {"target_modules": 7}})
    assert str(caught.value).count("target_modules") == 1


def test_compositions_intersect_what_trains_and_chain_what_mixes(tmp_path: Path) -> None:
    both = composed(
        [{"freeze_random": {"share": 0.5}}, {"english_replay": {"share": 0.5, "from": "phase_one"}}]
    )
    there = context(tmp_path, previous_data=rows(9, "en"))
    alone = composed({"freeze_random": {"share": 0.5}})
    assert both.trainable(model(), there) == alone.trainable(model(), there)
    assert both.mix(rows(4), there).replayed == 4
    assert both.label == "freeze_random+english_replay"


def test_a_plan_that_trains_nothing_is_refused(tmp_path: Path) -> None:
    everything = composed({"freeze_modules": {"patterns": [".*"]}})
    with pytest.raises(StrategyError, match=r"nothing is left to train: 'freeze_modules'"):
        everything.trainable(model(), context(tmp_path))


def test_the_plan_counts_every_parameter_once() -> None:
    network = model(tied=False)
    plan = freeze_plan(network, frozenset(n for n in names(network) if layer_of(n) == 1))
    assert [row.part for row in plan] == [
        "embeddings",
        *(f"layer {i}" for i in range(4)),
        "final norm and head",
    ]
    total = sum(row.trainable_parameters + row.frozen_parameters for row in plan)
    assert total == sum(parameter.numel() for parameter in network.parameters())
    assert [row.part for row in plan if row.trainable_parameters] == ["layer 1"]


REFUSED = [
    ("lorra", ConfigError, "Did you mean 'lora'"),
    ({"lora": {"rang": 4}}, ConfigError, "'rang' is not an option of 'lora'. Did you mean 'rank'"),
    ({"english_replay": {"frm": "x"}}, ConfigError, "Did you mean 'from'"),
    ({"plain": {"share": 1}}, ConfigError, "'share' is not an option of 'plain'"),
    ({"lora": {"rank": 0}}, ConfigError, "greater than or equal to 1"),
    ({"freeze_random": {"share": 2}}, ConfigError, "2"),
    (["plain", "lora"], StrategyError, "no strategy at all"),
    (["mixed", "lora"], StrategyError, "nothing to protect"),
    (["lora", "freeze_random"], StrategyError, "already freezes"),
    (["freeze_random", "freeze_random"], StrategyError, "twice"),
    ({"lora": {"target_modules": []}}, ConfigError, "'target_modules'"),
]


@pytest.mark.parametrize(
    ("written", "error", "reason"), REFUSED, ids=[str(written) for written, _, _ in REFUSED]
)
def test_what_cannot_be_built_is_refused_with_the_reason(
    written: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error) as caught:
        composed(written)
    assert reason in str(caught.value)


def test_building_any_strategy_imports_no_heavy_library() -> None:
    program = (
        "import sys; from lingraft.config.schema import StrategyChoice as C;"
        "from lingraft.strategies.composition import REGISTRY, build;"
        "[REGISTRY.get(name) for name in REGISTRY];"
        "build(C.model_validate({'freeze_modules': {'layers': '0'}}));"
        "print(sorted({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_replay_with_nothing_to_draw_from_is_refused(tmp_path: Path) -> None:
    for origin in ("parallel", "phase_one"):
        replay = composed({"english_replay": {"share": 0.5, "from": origin}})
        with pytest.raises(StrategyError, match="4 rows are asked for"):
            replay.mix(rows(4), context(tmp_path))


def test_strategies_that_leave_nothing_are_named(tmp_path: Path) -> None:
    class Nothing(Strategy):
        kind = "nothing"

        def trainable(self, model: Any, context: Context) -> frozenset[str]:  # noqa: ARG002
            return frozenset()

    both = Composition((FreezeRandom(), Nothing()), "freeze_random+nothing")
    with pytest.raises(StrategyError, match=r"'freeze_random\+nothing' would freeze every parameter"):
        both.trainable(model(), context(tmp_path))


def test_the_plan_names_the_kinds_of_module_that_train() -> None:
    network = model()
    trainable = frozenset(name for name in names(network) if "layers.2.self_attn" in name)
    kinds = {row.part: row.kinds for row in freeze_plan(network, trainable)}
    trained = [one for one in kinds.pop("layer 2") if one.trainable_parameters]
    assert [one.kind for one in trained] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert {one.frozen_parameters for one in trained} == {0}
    assert {one.trainable_parameters for own in kinds.values() for one in own} == {0}


def test_merging_leaves_a_plain_model_as_it_is() -> None:
    network = model()
    assert merge(network) is network
