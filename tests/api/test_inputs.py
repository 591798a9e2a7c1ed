"""Public functions take models, data and studies as people have them, or say what to give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import lingraft

EMBEDDED_SETS = ["worldbook:lookup/en", "worldbook:counting/de"]


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def moved(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model with other weights."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("moved") / "model"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [
        {"instruction": f"Name {n} colours.", "output": "Red, green.", "language": "en"} for n in range(8)
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def on_meta(folder: Path) -> Any:
    build: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        return build(AutoConfig.from_pretrained(folder))


# --- data


def test_data_are_loaded_by_name_path_fields_or_section(rows: Path) -> None:
    expected = lingraft.load_data(lingraft.DataSource(source=str(rows))).examples
    assert len(expected) == 8
    for given in (str(rows), rows, {"source": str(rows)}):
        assert lingraft.load_data(given).examples == expected
    tagged = lingraft.load_data({"source": str(rows), "language": "Spanish"})
    assert {one.language for one in tagged.examples} == {"es"}
    assert len(lingraft.load_data(rows.name, base_folder=str(rows.parent), first=3).examples) == 3
    assert "Name 3 colours" not in repr(lingraft.load_data(rows))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (None, lingraft.DataError, "data: None names no data; give a file"),
        ([], lingraft.DataError, "data: a list names no data"),
        ([{"instruction": "a"}], lingraft.DataError, "write them to a .jsonl file"),
        ("", lingraft.ConfigError, "data.source is ''"),
        ({"sorce": "x"}, lingraft.ConfigError, "data.sorce is not a field. Did you mean 'source'"),
        ({1: 2}, lingraft.ConfigError, "give a DataSource, or its fields"),
        ("nowhere.jsonl", lingraft.DataError, "nowhere.jsonl"),
        (b"x", lingraft.DataError, "a bytes names no data"),
        ({"source": "x.jsonl", "limit": 0}, lingraft.ConfigError, "data.limit is 0"),
    ],
)
def test_what_names_no_data_is_refused(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lingraft.load_data(given)


def test_data_sets_are_compared_by_name_examples_or_what_was_loaded() -> None:
    found = lingraft.compare_sets(EMBEDDED_SETS, precision=0.1)
    sets = {name: lingraft.load_data(name) for name in EMBEDDED_SETS}
    again = lingraft.compare_sets(
        {EMBEDDED_SETS[0]: sets[EMBEDDED_SETS[0]].examples, EMBEDDED_SETS[1]: {"source": EMBEDDED_SETS[1]}},
        "embedded",
        precision=0.1,
    )
    assert again == found
    few = [one.examples[:40] for one in sets.values()]
    similarity = lingraft.dataset_embedding_similarity(few[0], few[1])
    assert -1 <= similarity.des < 0.9


@pytest.mark.parametrize(
    ("sets", "options", "error", "message"),
    [
        ("a.jsonl", {}, lingraft.DataError, "give two data sets or more"),
        (None, {}, lingraft.DataError, "give two data sets or more"),
        ([], {}, lingraft.DataError, "two or more"),
        ({"a": None, "b": None}, {}, lingraft.DataError, "a: None names no data"),
        (
            {"a": ["text"], "b": ["text"]},
            {},
            lingraft.DataError,
            "a: a list of str holds no lingraft.Example",
        ),
        ([None, 3], {}, lingraft.DataError, "None: None names no data"),
        (EMBEDDED_SETS, {"encoder": None}, lingraft.ConfigError, "encoder: a NoneType is none"),
        (EMBEDDED_SETS, {"precision": 0}, lingraft.ConfigError, "precision 0: must lie between 0 and 1"),
        (EMBEDDED_SETS, {"closeness": 2}, lingraft.ConfigError, "closeness 2: is a cosine"),
    ],
)
def test_what_are_no_two_sets_is_refused(
    sets: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lingraft.compare_sets(sets, **options)


@pytest.mark.parametrize(
    ("pair", "message"), [((None, []), "first: None names no data"), (([], []), "without|empty|no ")]
)
def test_a_similarity_of_no_sets_is_refused(pair: tuple[Any, Any], message: str) -> None:
    with pytest.raises(lingraft.DataError, match=message):
        lingraft.dataset_embedding_similarity(*pair)


# --- weights


def test_weights_are_compared_by_name_folder_or_in_memory(loaded: Any, tiny_model: Path, moved: Path) -> None:
    expected = lingraft.parameter_difference(tiny_model, moved)
    assert expected.mpd > 0
    other: Any = AutoModelForCausalLM.from_pretrained(moved)
    for first, second in ((str(tiny_model), other), (loaded, moved), (loaded, other)):
        assert lingraft.parameter_difference(first, second) == expected
    assert lingraft.parameter_difference(loaded, loaded).mpd == 0
    with_base = lingraft.parameter_difference(loaded, other, base=tiny_model)
    assert with_base.has_updates
    assert "TensorDifference" not in repr(expected)
    assert lingraft.signal_to_noise(loaded) == lingraft.signal_to_noise(str(tiny_model))


def test_an_adapter_in_memory_is_merged_first(tiny_model: Path) -> None:
    import warnings

    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        wrapped = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(lingraft.ModelError, match=r"holds an adapter .* merge it first"):
        lingraft.parameter_difference(wrapped, tiny_model)


@pytest.mark.parametrize(
    "function", [lingraft.signal_to_noise, lambda one: lingraft.parameter_difference(one, one)]
)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "None: is no model"),
        ([], "a list of 0: is no model"),
        ("", "names no model"),
        (on_meta, "on the meta device"),
        ("no/such/folder/at/all", "there is no such folder"),
        (torch.nn.Linear(2, 2), "Linear .* is no model"),
    ],
)
def test_what_has_no_weights_is_refused(
    function: Callable[[Any], Any], given: Any, message: str, tiny_model: Path
) -> None:
    with pytest.raises(lingraft.ModelError, match=message):
        function(given(tiny_model) if given is on_meta else given)


# --- states


def test_states_are_of_texts_prompts_or_a_source(loaded: Any, tiny_model: Path, tmp_path: Path) -> None:
    texts = ["Hello there.", "Name a colour."]
    loaded.train()
    expected = lingraft.layer_states(loaded, texts)
    assert loaded.training
    loaded.train(mode=False)
    (tmp_path / "prompts.txt").write_text("\n".join(texts) + "\n")
    prompts = [lingraft.Prompt((lingraft.Message("user", text),), "und") for text in texts]
    for model, given in (
        (str(tiny_model), texts),
        (loaded, prompts),
        (tiny_model, tmp_path / "prompts.txt"),
        (loaded, str(tmp_path / "prompts.txt")),
    ):
        drift = lingraft.drift_between("again", expected, lingraft.layer_states(model, given))
        assert [one.covariance_change for one in drift.layers] == [0.0, 0.0]
    lasts = lingraft.layer_states(loaded, texts, positions="last")
    assert lasts[0].whole.n == 2
    with pytest.raises(lingraft.DataError, match="of other prompts or tokens"):
        lingraft.drift_between("other", expected, lasts)


def test_drift_is_of_models_by_name_or_in_memory(loaded: Any, tiny_model: Path, moved: Path) -> None:
    texts = ["Hello there.", "Name a colour.", "One, two, three."]
    expected = lingraft.drift_of_models([str(tiny_model), str(moved)], texts)
    found = lingraft.drift_of_models([loaded, moved], texts)
    assert found.drifts[0].layers == expected.drifts[0].layers
    assert expected.drifts[0].most_changed
    other = AutoModelForCausalLM.from_pretrained(moved)
    with_tokenizer = lingraft.drift_of_models(
        [tiny_model, other], texts, tokenizer=AutoTokenizer.from_pretrained(tiny_model)
    )
    assert with_tokenizer.drifts[0].layers == expected.drifts[0].layers


@pytest.mark.parametrize(
    ("prompts", "options", "error", "message"),
    [
        ([], {}, lingraft.DataError, "there are no prompts"),
        (None, {}, lingraft.DataError, "prompts: None holds none"),
        ([""], {}, lingraft.DataError, r"prompts\[0\] is ''"),
        (["a", 3], {}, lingraft.DataError, r"prompts\[1\] is 3"),
        ("Hello", {}, lingraft.DataError, r'A prompt itself stands in a list: \["Hello"\]'),
        (["a"], {"positions": "all"}, lingraft.ConfigError, "positions 'all': choose prompt or last"),
        (["a"], {"tokenizer": 3}, lingraft.ModelError, "tokenizer: int is no tokenizer"),
    ],
)
def test_what_are_no_prompts_is_refused(
    prompts: Any, options: dict[str, Any], error: type[Exception], message: str, loaded: Any
) -> None:
    with pytest.raises(error, match=message):
        lingraft.layer_states(loaded, prompts, **options)
    with pytest.raises(error, match=message):
        lingraft.drift_of_models([loaded, loaded], prompts, **options)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("a/model", "give two models or more in a list"),
        (None, "give two models or more in a list"),
        (["embedded:smollm2-135m"], "two or more"),
        ([None, None], "None: is no model"),
    ],
)
def test_drift_of_no_two_models_is_refused(models: Any, message: str) -> None:
    with pytest.raises(lingraft.ModelError, match=message):
        lingraft.drift_of_models(models, ["Hello"])


@pytest.mark.parametrize("states", [None, [], [1], "ab"])
def test_drift_between_no_states_is_refused(states: Any, loaded: Any) -> None:
    with pytest.raises(lingraft.DataError, match="states: "):
        lingraft.drift_between("x", states, lingraft.layer_states(loaded, ["Hello"]))


# --- training


def test_a_phase_trains_on_rows_by_name_as_on_encoded_examples(
    tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    from lingraft.data.chat import encode_example

    options = {"epochs": 1, "learning_rate": 1e-3, "precision": "float32"}
    models: list[Any] = [AutoModelForCausalLM.from_pretrained(tiny_model) for _ in range(2)]
    first = lingraft.train_phase(models[0], None, rows, options, folder=str(tmp_path / "a"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    encoded = [encode_example(one, tokenizer, 1024) for one in lingraft.load_data(rows).examples]
    names = [name for name, _ in models[1].named_parameters()]
    training = lingraft.Training(**options)
    second = lingraft.train_phase(
        models[1], tokenizer, encoded, training, trainable=names, folder=tmp_path / "b", seed=0
    )
    assert first.examples == 8
    assert first.losses == second.losses
    states = [model.state_dict() for model in models]
    assert all(torch.equal(own, states[1][name]) for name, own in states[0].items())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "a/model"}, lingraft.ModelError, "load it first"),
        ({"model": None}, lingraft.ModelError, "load it first"),
        ({"model": on_meta}, lingraft.ModelError, "on the meta device"),
        ({"tokenizer": 3}, lingraft.ModelError, "tokenizer: int is no tokenizer"),
        ({"encoded": []}, lingraft.DataError, "at least one example"),
        ({"encoded": None}, lingraft.DataError, "data: None names no data"),
        ({"encoded": ["text"]}, lingraft.DataError, "holds no lingraft.Example"),
        ({"training": {"epoch": 1}}, lingraft.ConfigError, "training.epoch is not a field"),
        ({"training": 3}, lingraft.ConfigError, "training 3: give a Training"),
        ({"trainable": "lm_head"}, lingraft.StrategyError, "give a list of parameters"),
        ({"trainable": []}, lingraft.StrategyError, "nothing would be trained"),
        ({"folder": None}, lingraft.ConfigError, "folder None: give a path"),
        ({"seed": "a"}, lingraft.ConfigError, "seed 'a': must be a whole number"),
        ({"seed": -1}, lingraft.ConfigError, "seed -1: must be a whole number"),
    ],
)
def test_what_no_phase_trains_with_is_refused(
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    loaded: Any,
    tiny_model: Path,
    rows: Path,
    tmp_path: Path,
) -> None:
    given = {"model": loaded, "tokenizer": None, "encoded": rows, "folder": tmp_path} | change
    if given["model"] is on_meta:
        given["model"] = on_meta(tiny_model)
    with pytest.raises(error, match=message):
        lingraft.train_phase(**given)


# --- studies


@pytest.fixture
def content(tiny_model: Path, rows: Path) -> dict[str, Any]:
    task = {"task": "worldbook:lookup", "limit": 2, "max_new_tokens": 4}
    return {
        "name": "mine",
        "phases": [
            {"name": "one", "checkpoint": str(tiny_model)},
            {
                "name": "two",
                "data": {"rows": {"source": str(rows), "language": "de"}},
                "strategies": ["plain"],
            },
        ],
        "held_out": 0,
        "measures": [],
        "contamination": None,
        "training": {"precision": "float32"},
        "evaluate": {"task_ability": [task], "language_ability": [task], "precision": "float32"},
    }


def test_a_study_is_run_by_its_file_or_its_content(
    content: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(json.dumps(content))
    study = lingraft.load_study(content, ["seeds=[3]"], base_folder=str(tmp_path))
    assert study == lingraft.load_study(str(tmp_path / "study.yaml"), ["seeds=[3]"])
    assert lingraft.load_study(study) == study
    with_path = content | {"phases": [{"name": "one", "checkpoint": tiny_model}, *content["phases"][1:]]}
    assert lingraft.load_study(with_path, ["seeds=[3]"]) == study
    places: list[dict[str, Any]] = [{"runs": None}, {"base_folder": None}]
    for place in places:
        with pytest.raises(lingraft.ConfigError, match="None: give a path"):
            lingraft.run_study(study, **place)
    first = lingraft.run_study(tmp_path / "study.yaml", runs=str(tmp_path / "runs"))
    assert len(first.done) == 1
    shown = repr(first)
    assert "1 of 1 cells done\n  rows / plain, seed 0: task ability 0.000 [" in shown
    assert len(shown) < 1000
    again = lingraft.run_study(content, runs=tmp_path / "runs")
    assert again.cells == first.cells


@pytest.mark.parametrize("function", [lingraft.load_study, lingraft.run_study])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "None is no study: give a YAML file"),
        ([], "a list is no study"),
        ({}, "name .*\n.*phases"),
        ({"name": "x", "phasis": []}, "phasis is not a field. Did you mean 'phases'"),
        ("nowhere.yaml", "no such file"),
    ],
)
def test_what_is_no_study_is_refused(function: Callable[[Any], Any], given: Any, message: str) -> None:
    with pytest.raises(lingraft.ConfigError, match=message):
        function(given)


def test_overrides_are_a_list(content: dict[str, Any]) -> None:
    with pytest.raises(lingraft.ConfigError, match=r"overrides 'seeds=.*: give a list"):
        lingraft.load_study(content, "seeds=[1]")


# --- adapting


@pytest.mark.parametrize(
    ("function", "given", "options", "error", "message"),
    [
        (lingraft.adapt, (None, "x.jsonl"), {}, lingraft.ModelError, "model: None is no folder"),
        (lingraft.adapt, (Any, "x.jsonl"), {}, lingraft.ModelError, "in memory: save it"),
        (lingraft.adapt, ("a/b", []), {}, lingraft.ConfigError, r"data \[\]: name the rows"),
        (lingraft.adapt, ("a/b", None), {}, lingraft.ConfigError, "data None: name the rows"),
        (lingraft.adapt, ("a/b", "x", "th", 2), {}, lingraft.ConfigError, "^max_loss is 2"),
        (lingraft.adapt, ("a/b", "x", "th"), {"limit": 0}, lingraft.ConfigError, "^limit is 0"),
        (lingraft.adapt, ("a/b", "x"), {"limt": 0}, TypeError, "unexpected keyword argument 'limt'"),
        (lingraft.adapt, ("a.yaml", "x"), {}, lingraft.ConfigError, "is a YAML file, so data stand in it"),
        (lingraft.check, (Any, Any, 0.1), {}, lingraft.ModelError, "in memory: save it"),
        (lingraft.check, ("a/b", None, 0.1), {}, lingraft.ModelError, "against: None is no folder"),
        (lingraft.check, ("a/b", "c/d"), {}, lingraft.ConfigError, "^max_loss: say what may be lost"),
        (lingraft.check, ("a/b", "c/d", "1"), {}, lingraft.ConfigError, "max_loss '1': is a share"),
        (lingraft.check, ("a/b", "c/d", 1), {}, lingraft.ConfigError, "^max_loss 1: is a share"),
        (lingraft.rescue, (Any, "a/b"), {"output": "o"}, lingraft.ModelError, "before: .* in memory: save"),
        (lingraft.rescue, ("a/b", "c/d", 1), {"output": "o"}, lingraft.ConfigError, "^max_loss 1: must be"),
        (lingraft.adapt, ("a/b", "x", 3), {}, lingraft.ConfigError, "^languages 3: give a list"),
        (lingraft.adapt, ("a/b", "x", [3]), {}, lingraft.ConfigError, r"^languages \[3\]: give a list"),
        (lingraft.adapt, ("a/b", "x", "th"), {"output": 3}, lingraft.ConfigError, "^output 3: give a path"),
        (lingraft.adapt, ("a/b", "x", "th"), {"runs": None}, lingraft.ConfigError, "^runs None: give a path"),
        (lingraft.check, ("a/b", "c/d"), {"limits": [1]}, lingraft.ConfigError, r"^limits \[1\]: name what"),
        (lingraft.check, ("a/b", "c/d", 0), {"limit": True}, lingraft.ConfigError, "^limit True: must be a"),
        (lingraft.check, ("a/b", "c/d", 0), {"suite": 3}, lingraft.ConfigError, "^suite 3: give the name"),
        (lingraft.check, ("a/b", "c/d", 0), {"folder": 3}, lingraft.ConfigError, "^folder 3: give a path"),
        (
            lingraft.rescue,
            ("a/b", "c/d"),
            {"output": None},
            lingraft.ConfigError,
            "^output None: give a path",
        ),
        (
            lingraft.rescue,
            ("a/b", "c/d"),
            {"output": "o", "limit": 0},
            lingraft.ConfigError,
            "^limit 0: must",
        ),
        (
            lingraft.rescue,
            ("a/b", "c/d"),
            {"output": "o", "steps": 0},
            lingraft.ConfigError,
            "^steps 0: must",
        ),
        (
            lingraft.rescue,
            ("a/b", "c/d"),
            {"output": "o", "seed": -1},
            lingraft.ConfigError,
            "^seed -1: must",
        ),
        (
            lingraft.rescue,
            ("a/b", "c/d"),
            {"output": "o", "dtype": "x"},
            lingraft.ConfigError,
            "^dtype 'x': ",
        ),
        (
            lingraft.rescue,
            ("a/b", "c/d"),
            {"output": "o", "precision": "x"},
            lingraft.ConfigError,
            "^precision 'x': ",
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused_by_its_name(
    function: Callable[..., Any],
    given: tuple[Any, ...],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    loaded: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        function(*(loaded if one is Any else one for one in given), **options)
