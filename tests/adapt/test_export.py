"""A model's folder is an ordinary one, in the type that is asked for, and whole or not there."""

from __future__ import annotations

import errno
import json
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lingraft.adapt import export
from lingraft.adapt import folder as folder_module
from lingraft.adapt.export import stored_type, type_of_start, write_model
from lingraft.adapt.folder import new_folder
from lingraft.adapt.history import HISTORY, History, Learnt, read_history, write_history
from lingraft.data.chat_template import FALLBACK_TEMPLATE
from lingraft.errors import ConfigError, DiskError, LingraftError, ModelError
from lingraft.models import shards
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.models.tensor_files import CheckpointReader
from lingraft.records import read_json, write_json_atomically


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("shard_bytes", [export.SHARD_BYTES, 40_000])
def test_the_written_model_is_the_rounded_one_for_every_architecture(
    tiny_model: Path,
    tiny_configuration: Callable[..., Any],
    tmp_path: Path,
    architecture: str,
    shard_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards, "_ELEMENTS_AT_ONCE", 100)  # several pieces of every matrix
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_configuration(architecture, len(tokenizer)))  # type: ignore[no-untyped-call]
    source, made = tmp_path / "source", tmp_path / "new" / "made"
    model.save_pretrained(source, max_shard_size="30KB")
    tokenizer.save_pretrained(source)
    written = write_model(source, made, dtype="bf16", shard_bytes=shard_bytes)
    loaded: Any = AutoModelForCausalLM.from_pretrained(made, dtype="auto", output_loading_info=True)
    found, info = loaded
    assert not any(info.values())
    assert found.dtype == torch.bfloat16
    expected = load_model(source, dtype=torch.bfloat16).state_dict()
    assert found.state_dict().keys() == expected.keys()
    for name, own in found.state_dict().items():
        assert torch.equal(own, expected[name]), name
    sizes = [path.stat().st_size for path in made.glob("*.safetensors")]
    assert written.bytes <= sum(sizes)
    if shard_bytes == 40_000:
        index = read_json(made / "model.safetensors.index.json")
        assert set(index["weight_map"].values()) == {path.name for path in made.glob("*.safetensors")}
        assert index["metadata"]["total_size"] == written.bytes
        reader = CheckpointReader(made)
        largest = max(reader.tensor(name).nbytes for name in reader.names)
        assert len(sizes) > 1
        assert max(sizes) < max(largest, shard_bytes) + 10_000  # its header
    else:
        assert left(made.parent) == ["made"]
        assert [path.name for path in made.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("float16", torch.float16), (None, torch.float32)]
)
def test_every_type_is_written_and_stated(
    tiny_model: Path, tmp_path: Path, name: Any, dtype: torch.dtype
) -> None:
    written = write_model(tiny_model, tmp_path / "made", dtype=name)
    assert read_json(tmp_path / "made" / "config.json")["dtype"] == str(dtype).removeprefix("torch.")
    assert stored_type(tmp_path / "made") == written.dtype == (name or "float32")
    again = load_model(tmp_path / "made", dtype=dtype).state_dict()
    for own, value in load_model(tiny_model).state_dict().items():
        assert torch.equal(again[own], value.to(dtype))


def test_all_that_belongs_to_a_model_is_copied_and_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    shutil.copytree(tiny_model, source)
    (source / "chat_template.jinja").write_text(FALLBACK_TEMPLATE)
    (source / "generation_config.json").write_text(
        '{"temperature": 0.7, "do_sample": true, "eos_token_id": 2}'
    )
    (source / "modeling_own.py").write_text("raise SystemExit('was run')\n")
    for name in ("optimizer.pt", "pytorch_model.bin", "training_args.bin", "notes.txt", "README.md"):
        (source / name).write_text("x")
    write_model(source, made)
    assert set(left(made)) == {*left(tiny_model), "chat_template.jinja", "modeling_own.py", HISTORY}
    assert read_history(made).files == tuple(left(made))
    assert (made / "generation_config.json").read_bytes() == (source / "generation_config.json").read_bytes()
    assert load_tokenizer(made).chat_template == FALLBACK_TEMPLATE


def test_a_tokenizer_without_template_is_given_the_one_it_was_scored_with(
    tiny_model: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_model, source)
    (source / "chat_template.jinja").unlink()
    assert write_model(tiny_model, tmp_path / "one").own_template
    assert not write_model(source, tmp_path / "two").own_template
    assert AutoTokenizer.from_pretrained(tmp_path / "two").chat_template == FALLBACK_TEMPLATE


def test_what_is_no_whole_model_is_refused_and_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    def changed(name: str, **config: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_model, folder)
        write_json_atomically(folder / "config.json", read_json(folder / "config.json") | config)
        return folder

    quantised = changed("quantised", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="weights are quantised"):
        write_model(quantised, tmp_path / "made", dtype="bf16")
    coded = changed(
        "coded", auto_map={"AutoModelForCausalLM": "modeling_own.Own", "AutoConfig": "hub/one--a.B"}
    )
    with pytest.raises(ModelError, match=r"names code in modeling_own.py, which is not there"):
        write_model(coded, tmp_path / "made", dtype="bf16")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is a LoRA adapter"):
        write_model(adapter, tmp_path / "made")
    large = tmp_path / "large"
    model = load_model(tiny_model)
    model.get_parameter("model.norm.weight").data[3] = 1e5
    model.save_pretrained(large)
    load_tokenizer(tiny_model).save_pretrained(large)
    with pytest.raises(
        ModelError, match=r"model.norm.weight holds values above 65504, which float16 cannot hold"
    ):
        write_model(large, tmp_path / "made", dtype="float16")
    assert left(tmp_path) == ["adapter", "coded", "large", "quantised"]


def test_a_start_in_bf16_comes_out_as_bf16_though_a_study_stores_float32(
    tiny_model: Path, tmp_path: Path
) -> None:
    start, run = tmp_path / "start", tmp_path / "runs" / "one"
    load_model(tiny_model, dtype=torch.bfloat16).save_pretrained(start)
    checkpoint = run / "stages" / "train-0123456789abcdef" / "checkpoint"
    shutil.copytree(tiny_model, checkpoint)
    assert (stored_type(start), type_of_start(checkpoint)) == ("bf16", "float32")  # in no run folder
    (checkpoint.parent / "record.json").write_text("{}")
    study = {
        "name": "one",
        "phases": [
            {"name": "1", "checkpoint": str(start)},
            {"name": "2", "data": {"de": {"source": "worldbook:lookup/de"}}},
        ],
    }
    (run / "study.yaml").write_text(json.dumps(study))
    assert type_of_start(checkpoint) == "bf16"
    assert write_model(checkpoint, tmp_path / "made").dtype == "bf16"
    shutil.rmtree(start)
    with pytest.raises(
        ModelError, match=r"start: cannot be found any more, so its type is not known.*--dtype bf16"
    ):
        type_of_start(checkpoint)


def test_a_folder_that_is_not_empty_is_refused_and_only_ones_own_is_replaced(
    tiny_model: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / ".DS_Store").touch()
    write_model(tiny_model, made)  # what systems leave is nothing
    before = (made / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="is not empty; name another folder, or replace it by --overwrite"):
        write_model(tiny_model, made)
    (made / "notes.txt").write_text("mine")
    with (
        pytest.raises(ConfigError, match=r"holds notes.txt, which lingraft did not write"),
        new_folder(made, overwrite=True),
    ):
        pass
    (made / "notes.txt").unlink()

    def fail_half_way() -> None:
        with new_folder(made, overwrite=True) as own:
            (own / "half").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert (made / "config.json").read_bytes() == before
    with new_folder(made, overwrite=True) as own:
        write_model(tiny_model, own, dtype="bf16")
        (own / "report").mkdir()
        (own / "report" / "index.html").write_text("x")
    assert stored_type(made) == "bf16"
    assert "report/index.html" in read_history(made).files
    for other in (tmp_path / "foreign", tmp_path / "file"):
        if other.name == "file":
            other.write_text("x")
        else:
            other.mkdir()
            (other / "model.safetensors").write_text("x")
        with (
            pytest.raises(ConfigError, match=r"is a file|lingraft did not write it"),
            new_folder(other, overwrite=True),
        ):
            pass
    assert left(tmp_path) == ["file", "foreign", "made"]


def test_a_full_disk_is_one_error_and_leaves_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        with pytest.raises(DiskError, match="may not be that large"):
            write_model(tiny_model, tmp_path / "made")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left(tmp_path) == []

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(folder_module, "flush_folder", full)
        with pytest.raises(DiskError, match="the disk is full"):
            write_model(tiny_model, tmp_path / "made")
    assert left(tmp_path) == []
    small = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: small)
    with pytest.raises(DiskError, match=r"the model takes 0.0 GB, and 0.0 GB of the disk are free"):
        write_model(tiny_model, tmp_path / "made")
    assert left(tmp_path) == []


def test_what_a_killed_process_left_is_cleared_and_two_at_once_are_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / ".made.part").mkdir()
    (tmp_path / ".made.part" / "model-00001-of-00009.safetensors").write_text("x")
    write_model(tiny_model, tmp_path / "made")
    assert left(tmp_path) == ["made"]
    with (
        new_folder(tmp_path / "two"),
        pytest.raises(LingraftError, match="another lingraft writes it"),
        new_folder(tmp_path / "two"),
    ):
        pass


def test_a_mounted_disk_is_written_file_by_file(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == made)
    write_model(tiny_model, made)
    expected = left(made)
    assert "config.json" in expected
    assert not [name for name in expected if name.startswith(".")]
    with new_folder(made, overwrite=True) as own:
        write_model(tiny_model, own, dtype="bf16", shard_bytes=40_000)
    assert stored_type(made) == "bf16"
    assert "model.safetensors" not in left(made)
    assert load_model(made).dtype == torch.float32


def test_a_history_comes_back_and_one_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    learnt = Learnt(
        date="2026-05-01",
        languages=("th",),
        data={"rows.jsonl": 600},
        strategy="english_replay",
        alpha=0.6,
        kept_back=None,
        max_loss=0.01,
        losses=(),
        gain=None,
        start="owner/name",
        start_identity="abc",
        lingraft="1.0",
    )
    assert read_history(tmp_path) == History()
    history = History(learnt=(learnt,), files=("config.json",))
    write_history(tmp_path, history)
    assert read_history(tmp_path) == history
    assert history.languages == ("th",)
    local = replace(learnt, start="/data/jane/start", data={"/data/jane/a/x.csv": 1, "~/x.csv": 2})
    write_history(tmp_path, replace(history, learnt=(local,)))
    published = replace(learnt, start="start", data={"x.csv": 3})
    assert read_history(tmp_path).learnt == (published,)
    written = read_json(tmp_path / HISTORY)
    for wrong in (
        "{",
        "[]",
        json.dumps(written | {"format": 2}),
        json.dumps(written | {"learnt": [{"date": 1}]}),
        json.dumps(written | {"more": 1}),
    ):
        (tmp_path / HISTORY).write_text(wrong)
        with pytest.raises(ModelError, match=r"cannot be used .*to go without, remove it"):
            read_history(tmp_path)
