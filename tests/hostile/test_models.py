"""Odd and hostile models are refused in one line before anything is trained, and none of their code runs."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lingraft.errors import ModelError
from lingraft.models.adapters import load_merged
from lingraft.stage import given_model
from lingraft.text.templates import BoundedEnvironment

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Change = Callable[[Path], object]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def settings(file: str, **changed: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / file
        own = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(own | changed))

    return change


def written(file: str, content: str | bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    return lambda folder: save_file(
        change(load_file(folder / SINGLE)), folder / SINGLE, metadata={"format": "pt"}
    )


def replaced(put: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return what puts something else in the place of a model's weights."""

    def put_there(folder: Path) -> None:
        (folder / SINGLE).unlink()
        put(folder / SINGLE)

    return put_there


def header(change: Callable[[dict[str, Any]], Any]) -> Change:
    """What changes the description of the tensors, and leaves their bytes."""

    def write(folder: Path) -> None:
        raw = (folder / SINGLE).read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        made = change(json.loads(raw[8 : 8 + length]))
        own = made if isinstance(made, bytes) else json.dumps(made).encode()
        (folder / SINGLE).write_bytes(struct.pack("<Q", len(own)) + own + raw[8 + length :])

    return write


def index(file: str) -> Change:
    """What puts all tensors into a shard of that name, by the index."""

    def write(folder: Path) -> None:
        names = list(load_file(folder / SINGLE))
        shutil.copy(folder / SINGLE, folder.parent / "x.safetensors")
        (folder / SINGLE).rename(folder / "a.bin")
        (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))

    return write


def with_value(value: float) -> Change:
    def change(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        own["model.norm.weight"][3] = value
        return own

    return tensors(change)


def cut_vocabulary(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: one[:500].clone() if "embed" in name else one for name, one in own.items()}


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def twice(own: dict[str, Any]) -> bytes:
    one = json.dumps({"model.norm.weight": own["model.norm.weight"]})
    return f"{json.dumps(own)[:-1]}, {one[1:]}".encode()


def template(text: str) -> Change:
    return written("chat_template.jinja", text)


NORM = "model.norm.weight"
REFUSED: dict[str, tuple[Change, str]] = {
    "NaN in a weight": (with_value(float("nan")), f"its {NORM} holds 1 values that are no finite numbers"),
    "infinity in a weight": (
        with_value(float("-inf")),
        f"its {NORM} holds 1 values that are no finite numbers",
    ),
    "fewer rows than ids": (
        both(tensors(cut_vocabulary), settings("config.json", vocab_size=500)),
        r"its tokenizer has ids up to \d+, but the model's embedding has 500 rows",
    ),
    "no layers": (settings("config.json", num_hidden_layers=0), "it has 0 layers"),
    "one layer of two": (
        settings("config.json", num_hidden_layers=1),
        "by config.json it has 1 layers, its files hold 2",
    ),
    "a layer too many": (settings("config.json", num_hidden_layers=3), "weights are not in its files"),
    "ten million layers": (settings("config.json", num_hidden_layers=10**7), "it has 10000000 layers"),
    "layers below zero": (settings("config.json", num_hidden_layers=-1), "it has -1 layers"),
    "layers in words": (settings("config.json", num_hidden_layers="two"), "expected int, got str"),
    "another width": (
        settings("config.json", hidden_size=64),
        "weights have another size than config.json says",
    ),
    "a width beyond memory": (
        settings("config.json", hidden_size=10**9),
        "another size than config.json says",
    ),
    "heads that do not divide": (settings("config.json", num_attention_heads=3), "not a multiple"),
    "another vocabulary": (settings("config.json", vocab_size=9999), "another size than config.json says"),
    "an unknown activation": (settings("config.json", hidden_act="odd"), "cannot be built: KeyError: 'odd'"),
    "NaN in config.json": (settings("config.json", rms_norm_eps=float("nan")), "says rms_norm_eps: NaN"),
    "a list as config.json": (written("config.json", "[1]"), "holds no object with settings, but list"),
    "an empty config.json": (written("config.json", ""), "config.json cannot be used"),
    "a deep config.json": (written("config.json", '{"a":' * 10**5), "config.json cannot be used"),
    "a config.json that is no text": (written("config.json", b"{\xff}"), "config.json cannot be used"),
    "a long number": (written("config.json", f'{{"a": {"9" * 5000}}}'), "config.json cannot be used"),
    "code of its own": (
        both(
            settings("config.json", model_type="mine", auto_map={"AutoConfig": "own.Config"}),
            written("own.py", "open('EXECUTED', 'w')"),
        ),
        "contains custom code",
    ),
    "weights in 4 bits": (
        settings("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "are quantised, and cannot be read here",
    ),
    "a missing tensor": (
        tensors(lambda own: {n: t for n, t in own.items() if n != NORM}),
        "not in its files",
    ),
    "a tensor of whole numbers": (
        tensors(lambda own: {**own, NORM: torch.ones(32, dtype=torch.int8)}),
        "whole numbers",
    ),
    "a tensor without a place": (
        tensors(lambda own: {**own, "model.layers.0.mlp.more": torch.ones(1)}),
        r"no place for \(model.layers.0.mlp.more\)",
    ),
    "half a file": (lambda folder: written(SINGLE, (folder / SINGLE).read_bytes()[:-99])(folder), "damaged"),
    "an empty file": (written(SINGLE, b""), "damaged"),
    "an endless header": (written(SINGLE, struct.pack("<Q", 2**62) + b"{}"), "damaged"),
    "a deep header": (header(lambda _: b'{"a":' * 10**5), "damaged"),
    "bytes behind the file": (
        header(lambda own: own | {NORM: own[NORM] | {"data_offsets": [10**12, 10**12 + 128]}}),
        "damaged",
    ),
    "tensors over each other": (
        header(lambda own: own | {NORM: own[NORM] | {"data_offsets": [0, 128]}}),
        "damaged",
    ),
    "a name twice": (header(twice), f"it names {NORM} twice"),
    "an unknown type": (header(lambda own: own | {NORM: own[NORM] | {"dtype": "F17"}}), "damaged"),
    "a folder as weights": (
        replaced(lambda path: path.mkdir()),
        "there are no weights to read",
    ),
    "a link to itself": (
        replaced(lambda path: path.symlink_to(path)),
        "there are no weights to read",
    ),
    "a shard outside": (index("../x.safetensors"), "is outside the folder"),
    "a shard anywhere": (index("/etc/passwd"), "is outside the folder"),
    "a pickled shard": (index("a.bin"), "a.bin is no safetensors file"),
    "a shard that is not there": (index("b.safetensors"), "b.safetensors is missing"),
    "a list as index": (both(index("b"), written(INDEX, "[]")), "not an index of shards"),
    "an index of something else": (
        both(
            lambda folder: save_file({NORM: torch.ones(32)}, folder / "b.safetensors"),
            settings(INDEX, weight_map={NORM: "b.safetensors"}),
        ),
        "name other tensors",
    ),
    "pickles alone": (lambda folder: (folder / SINGLE).rename(folder / "x.bin"), "only pickled weights"),
    "weights and an adapter": (
        settings("adapter_config.json", peft_type="LORA"),
        "holds a model .* and an adapter",
    ),
    "a broken tokenizer": (written("tokenizer.json", "{"), "its tokenizer cannot be loaded"),
    "a deep tokenizer": (written("tokenizer.json", "[" * 10**5), "its tokenizer cannot be loaded"),
    "a list as tokenizer settings": (
        written("tokenizer_config.json", "[]"),
        "its tokenizer cannot be loaded",
    ),
    "a length in words": (
        settings("tokenizer_config.json", model_max_length="x"),
        "says model_max_length: 'x'",
    ),
    "a temperature that is none": (
        settings("generation_config.json", temperature=float("nan")),
        "temperature: nan",
    ),
    "answers of no length": (settings("generation_config.json", max_length=-5), "says max_length: -5"),
    "an end that is no token": (
        settings("generation_config.json", eos_token_id=9999),
        "says eos_token_id: 9999",
    ),
    "an end in words": (settings("generation_config.json", eos_token_id="x"), "says eos_token_id: 'x'"),
    "a list as generation settings": (
        written("generation_config.json", "[]"),
        "holds no object with settings",
    ),
    "broken generation settings": (
        written("generation_config.json", "{"),
        "generation_config.json cannot be used",
    ),
    "an empty template": (template(""), "its chat template shows no question"),
    "a template that refuses": (template("{{ raise_exception('no') }}"), r"refuses the conversation: no\)"),
    "a template that is none": (template("{% for %}"), "its chat template is broken at line 1"),
    "a deep template": (
        template("{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}"),
        "its chat template cannot be used",
    ),
    "a template without an end": (
        both(
            template("{% for m in messages %}{{ m['content'] }}{% endfor %}"),
            settings("tokenizer_config.json", eos_token=None),
        ),
        "nothing at which generation could stop",
    ),
    "a loop for ever": (
        template("{% for i in range(99999) %}" * 3 + "{% set x = i %}" + "{% endfor %}" * 3),
        "takes more than 200,000 steps",
    ),
    "calls for ever": (
        template(
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}"
        ),
        "takes more than 200,000 steps",
    ),
    "a text of any length": (template("{{ 'a' * 10000000000 }}"), "makes a text of any length"),
    "a text that doubles": (
        template(
            "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}"
        ),
        "makes more than",
    ),
    "a text that is joined to itself": (
        template(
            "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
        ),
        "makes more than",
    ),
    "a text that is written again and again": (
        template("{% set x = 'a' * 9999999 %}{% for i in range(99999) %}{{ x }}{% endfor %}"),
        "makes more than",
    ),
    "a wide format": (template("{{ '%999999999999d' % 1 }}"), "makes a text of any length"),
    "a wide format of another kind": (
        template("{{ '{:999999999999}'.format(1) }}"),
        "makes a text of any length",
    ),
    "a text in the middle": (template("{{ 'a' | center(99999999999) }}"), "makes a text of any length"),
    "a replacement in every place": (
        template("{% set x = 'a' * 999999 %}{{ x.replace('a', x) }}"),
        "makes a text of any length",
    ),
    "a number of any length": (
        template("{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x ** 9 %}{% endfor %}"),
        "computes a number that is too large",
    ),
    "a way out of the sandbox": (
        template("{{ cycler.__init__.__globals__.os.system('touch EXECUTED') }}"),
        "is unsafe",
    ),
}


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.parametrize("name", REFUSED)
def test_an_odd_model_is_refused_in_one_line(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, problem = REFUSED[name]
    change(folder)
    monkeypatch.setattr(BoundedEnvironment, "most_steps", 200_000)  # of two million: calls are slow
    started = time.process_time()
    with pytest.raises(ModelError, match=problem) as raised:
        given_model(str(folder))
    assert "\n" not in str(raised.value)
    assert time.process_time() - started < 20
    assert not (folder.parent / "EXECUTED").exists()


def test_a_template_that_loops_over_some_rows_alone_is_refused_with_the_first_of_them(folder: Path) -> None:
    from lingraft.data.chat import encode_examples
    from lingraft.data.example import Example, Message
    from lingraft.models.loading import load_tokenizer

    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i %}{% endfor %}{% endfor %}"
    template(f"{{% if messages[0]['content'] | length > 99 %}}{loop}{{% endif %}}{CHATML}")(folder)
    given_model(str(folder))
    said = [(Message("user", text), Message("assistant", "a")) for text in ("a", "b", "c" * 100, "d" * 100)]
    rows = [Example(str(number), turns, "en", "1", "t") for number, turns in enumerate(said)]
    tokenizer = load_tokenizer(folder)
    assert len(encode_examples(rows[:2], tokenizer, 999).examples) == 2
    with pytest.raises(ModelError, match="takes more than 2,000,000 steps for a conversation"):
        encode_examples(rows, tokenizer, 999)


def test_long_conversations_and_templates_that_do_much_are_no_odd_ones(folder: Path) -> None:
    from lingraft.data.chat_format import chat_format
    from lingraft.data.example import Example, Message
    from lingraft.models.loading import load_tokenizer

    looks_back = (
        "{% for m in messages[::-1] %}{% set x = m['content'].replace('<', '[') | trim ~ '-' %}{% endfor %}"
    )
    template(f"{{% for m in messages %}}{looks_back}{{% endfor %}}{CHATML}")(folder)
    form = chat_format(load_tokenizer(folder))
    turns = [Message(role, "a<b " * 200) for _ in range(150) for role in ("user", "assistant")]
    (found,) = form.render([Example("1", tuple(turns), "en", "1", "t")])
    assert len(found.spans) == 150  # type: ignore[union-attr]


def test_links_into_a_cache_and_code_that_is_not_needed_are_no_odd_ones(folder: Path) -> None:
    """The hub's cache holds links to files elsewhere; a model of a known kind needs no code that it brings along."""
    (folder / SINGLE).rename(folder.parent / "blob")
    (folder / SINGLE).symlink_to(folder.parent / "blob")
    settings("config.json", auto_map={"AutoModelForCausalLM": "own.Model"})(folder)
    written("own.py", "open('EXECUTED', 'w')")(folder)
    given_model(str(folder))
    load_merged(str(folder))
    assert not (folder.parent / "EXECUTED").exists()


def test_an_adapter_whose_base_or_weights_are_odd_is_refused(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    plain = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    settings("adapter_config.json", base_model_name_or_path=str(folder), **plain)(adapter)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    factors = {name.format("A"): torch.ones(2, 32), name.format("B"): torch.zeros(32, 2)}
    save_file(factors, adapter / "adapter_model.safetensors")
    given_model(str(adapter))
    factors[name.format("B")][0, 0] = float("nan")
    save_file(factors, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="q_proj is no finite number"):
        given_model(str(adapter))
    save_file({n: torch.zeros_like(t) for n, t in factors.items()}, adapter / "adapter_model.safetensors")
    settings("config.json", num_hidden_layers=1)(folder)
    with pytest.raises(ModelError, match=r"by config\.json it has 1 layers"):
        given_model(str(adapter))
