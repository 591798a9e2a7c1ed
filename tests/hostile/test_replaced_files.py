"""What trains and what is evaluated is what was hashed: files that are replaced meanwhile are noticed."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from lingraft.config.load import load_study
from lingraft.config.schema import DataSource, Evaluation
from lingraft.data.sources import load_data
from lingraft.errors import DataError, EvaluationError, LingraftError, ModelError
from lingraft.stage import (
    GivenModel,
    Json,
    MadeModel,
    Model,
    StageSpec,
    Work,
    Workplace,
    given_model,
    stages_of,
)
from lingraft.study.execute import Executor
from lingraft.study.materials import gather
from lingraft.study.stages.evaluate import PREDICTIONS, Evaluate, questions
from lingraft.study.store import Store


@dataclass(frozen=True, eq=False)
class Reading(StageSpec):
    """A stage that asks for a model; the test says what happens while it works."""

    kind: ClassVar[str] = "difference"

    model: Model
    meanwhile: Callable[[], object]

    @property
    def inputs(self) -> dict[str, Json]:
        return {"model": self.model.identity}

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        return stages_of(self.model)

    def work(self, place: Workplace) -> Work:
        place.model(self.model)
        self.meanwhile()
        return Work({}, {})


@dataclass(frozen=True, eq=False)
class Making(StageSpec):
    """A stage that writes a model's folder."""

    kind: ClassVar[str] = "train"

    @property
    def inputs(self) -> dict[str, Json]:
        return {}

    def work(self, place: Workplace) -> Work:
        (place.folder / "checkpoint").mkdir()
        (place.folder / "checkpoint" / "model.safetensors").write_bytes(b"12345")
        return Work({}, {})


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def in_place(path: Path) -> None:
    """Change a byte and keep size and time, as `cp -p` does over a file."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def by_rename(path: Path) -> None:
    shutil.copy2(path, path.with_name("new"))
    in_place(path.with_name("new"))
    path.with_name("new").replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights in place": lambda folder: in_place(folder / "model.safetensors"),
    "weights by rename": lambda folder: by_rename(folder / "model.safetensors"),
    "configuration": lambda folder: (folder / "config.json").write_text("{}"),
    "tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "a template that was not there": lambda folder: (folder / "chat_template.jinja").write_text(
        "{{ messages }}!"
    ),
    "an adapter beside it": lambda folder: (folder / "adapter_config.json").write_text("{}"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_is_replaced_while_a_stage_reads_it_is_refused(
    tmp_path: Path, model: Path, change: str
) -> None:
    stage = Reading("stage", given_model(str(model)), lambda: CHANGES[change](model))
    with Store(tmp_path / "run") as store:
        with pytest.raises(LingraftError) as caught:
            Executor(store).make(stage)
        assert store.find(stage) is None
    assert "\n" not in str(caught.value)
    if not change.startswith("an adapter"):
        assert "was changed since lingraft read it" in str(caught.value)


def test_a_model_that_was_only_touched_or_copied_over_itself_is_the_same(tmp_path: Path, model: Path) -> None:
    def touch() -> None:
        (model / "config.json").touch()
        shutil.copy(model / "model.safetensors", model / "copy")
        (model / "copy").replace(model / "model.safetensors")
        (model / "README.md").write_text("decides nothing")

    with Store(tmp_path / "run") as store:
        assert not Executor(store).make(Reading("stage", given_model(str(model)), touch)).reused


def test_an_artefact_that_is_replaced_while_a_stage_reads_it_is_refused(tmp_path: Path) -> None:
    made = Making("made")
    with Store(tmp_path) as store:
        path = store.folder_of(made) / "checkpoint" / "model.safetensors"
        stage = Reading("stage", MadeModel(made), lambda: path.write_bytes(b"54321"))
        with pytest.raises(LingraftError, match=f"{path.parent.parent}.*was changed while"):
            Executor(store).make(stage)
        assert store.find(stage) is None
    with Store(tmp_path) as store:  # the same command goes on: what was changed is made again first
        Executor(store).make(Reading("stage", MadeModel(made), lambda: None))
        assert path.read_bytes() == b"12345"


def test_a_finished_stage_is_read_as_it_was_hashed(tmp_path: Path) -> None:
    def write(folder: Path) -> Work:
        (folder / "a").write_text("1")
        return Work({}, {})

    with Store(tmp_path) as store:
        done = store.run(Making("made"), write)
        assert done.artefact("a").read_text() == "1"
        done.artefact("a").touch()
        assert done.artefact("a").read_text() == "1"
        (done.folder / "a").write_text("2")
        with pytest.raises(LingraftError, match="was changed while lingraft was at work"):
            done.artefact("a")
        (done.folder / "a").unlink()
        with pytest.raises(LingraftError, match="was changed while"):
            done.artefact("a")


@pytest.fixture
def adapter(tmp_path: Path, tiny_model: Path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        wrapped = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    wrapped.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_all_that_decides_an_adapter_is_in_its_identity(adapter: Path, tiny_model: Path) -> None:
    def identity() -> Any:
        return given_model(str(adapter)).identity

    seen = [identity()]
    assert identity() == seen[0]
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 64}))
    seen.append(identity())
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
    ):  # the one beside it is the one that it is asked with
        shutil.copy(tiny_model / name, adapter)
        seen.append(identity())
    template = (tiny_model / "chat_template.jinja").read_text()
    (adapter / "chat_template.jinja").write_text(template + "{# another one #}")
    seen.append(identity())
    in_place(adapter / "adapter_model.safetensors")
    seen.append(identity())
    assert len({json.dumps(one) for one in seen}) == len(seen)


def test_a_folder_that_holds_a_model_and_an_adapter_is_refused(adapter: Path, model: Path) -> None:
    shutil.copytree(adapter, model, dirs_exist_ok=True)
    with pytest.raises(ModelError, match=r"holds a model \(model.safetensors\) and an adapter"):
        given_model(str(model))


def test_a_study_refuses_an_adapter_before_anything_is_trained(adapter: Path, tmp_path: Path) -> None:
    content = {
        "name": "tiny",
        "model": str(adapter),
        "phases": [
            {"name": "one", "data": {"a": {"source": "worldbook:lookup/en", "limit": 4}}},
            {
                "name": "two",
                "data": {"b": {"source": "worldbook:lookup/de", "limit": 4}},
                "strategies": ["plain"],
            },
        ],
        "evaluate": {"task_ability": [{"task": "worldbook", "limit": 1}]},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ModelError, match="is a LoRA adapter, and a study trains whole models"):
        gather(load_study(tmp_path / "study.yaml"), tmp_path)


ROWS = [{"instruction": f"say {number}", "output": f"{number}"} for number in range(40)]


def lines(rows: list[dict[str, str]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


@pytest.mark.parametrize("change", ["a byte", "more rows", "another file"])
def test_a_data_file_that_is_replaced_while_it_is_read_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(ROWS))

    def replace(done: int, total: int) -> None:
        if done == total:
            return
        if change == "a byte":
            in_place(path)
        elif change == "more rows":
            path.write_text(lines([*ROWS, ROWS[0]]))
        else:
            by_rename(path)

    source = DataSource(source=str(path), language="en")
    with pytest.raises(DataError, match=r"rows.jsonl: was changed while it was read"):
        load_data(source, on_progress=replace)
    path.write_text(lines(ROWS))
    assert len(load_data(source).examples) == len(ROWS)


def test_a_task_whose_items_are_changed_after_they_were_looked_up_is_refused(
    tmp_path: Path, tiny_model: Path
) -> None:
    task = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "items.jsonl").write_text('{"q": "1+1", "a": "2"}\n')
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task))
    evaluation = Evaluation.model_validate({"task_ability": [{"task": str(tmp_path / "mine.yaml")}]})
    asked = questions(evaluation, [])
    stage = Evaluate("model", GivenModel({"weights": "x"}, tiny_model), asked)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task | {"doc_to_text": "{{q}} = ?"}))
    with Store(tmp_path / "run") as store:
        with pytest.raises(EvaluationError, match="a file of a task or of its data was changed"):
            Executor(store).make(stage)
        asked = questions(evaluation, [])
        done = Executor(store).make(Evaluate("model", GivenModel({"weights": "x"}, tiny_model), asked))
        assert done.artefact(PREDICTIONS).is_file()
