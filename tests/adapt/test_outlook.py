"""What is said of an adaptation before it trains, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lingraft.adapt.languages import checked_languages
from lingraft.adapt.outlook import Outlook, look, outlook_lines
from lingraft.config.schema import Study
from lingraft.data.worldbook import load_items
from lingraft.errors import DiskError
from lingraft.records import from_json, to_json
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.run import prepare_study
from lingraft.study.store import Store

Look = Callable[..., Outlook]


def rows_in(language: str, count: int = 40) -> list[dict[str, str]]:
    return [
        {"instruction": one.example.instruction, "output": one.example.answer}
        for one in load_items("lookup", language, "train")[:count]
    ]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path


def study_of(model: Path | str, data: dict[str, Any], **changes: Any) -> Study:
    tasks = [{"task": "worldbook:lookup", "limit": 4}]
    return Study.model_validate(
        {
            "name": "adaptation",
            "held_out": 5,
            "measures": [],
            "phases": [
                {"name": "start", "checkpoint": str(model), **changes},
                {"name": "learn", "data": data, "strategies": ["plain"]},
            ],
            "evaluate": {
                "task_ability": tasks,
                "language_ability": tasks,
                "precision": "float32",
                "part": "selection",
            },
        }
    )


def looked_at(
    folder: Path, model: Path | str, data: dict[str, Any], said: Sequence[str], **changes: Any
) -> Outlook:
    """Look at the adaptation of a model to data sets, in the store of a folder."""
    prepared = prepare_study(study_of(model, data, **changes), folder, Watcher())
    with Store(folder / "run") as store:
        stages = prepared.plan(store, folder).stages
        spoken = checked_languages(prepared.materials, said, folder)
        return look(prepared, Executor(store), spoken=spoken, stages=stages, base_folder=folder)


@pytest.fixture
def looked(tmp_path: Path) -> Look:
    """`looked_at` in a store of the test's own."""
    return partial(looked_at, tmp_path)


@pytest.fixture(scope="module")
def german(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Outlook:
    """The outlook of German rows, some of them items of the evaluation, after English ones of other tasks."""
    folder = tmp_path_factory.mktemp("outlook")
    items = [one for split in ("report", "selection") for one in load_items("lookup", "de", split)[:4]]
    asked = [{"instruction": one.example.instruction, "output": one.example.answer} for one in items]
    write(folder / "rows.jsonl", [*rows_in("de"), *asked, {"instruction": "Was?", "output": ""}])
    source = {"source": "rows.jsonl", "language": "de", "max_broken_share": 0.1}
    return looked_at(folder, tiny_model, {"rows": source}, ["de"], instructions="worldbook:counting/en")


def test_the_outlook_counts_rows_and_costs_and_can_be_written(german: Outlook) -> None:
    data = german.data["rows"]
    assert (data.counts.rows, data.counts.broken, data.counts.held_out, data.counts.train) == (49, 1, 5, 43)
    assert data.languages.rows == {"de": 48}
    assert german.has_chat_template
    assert german.alike[0].against == "worldbook:counting/en"
    assert not german.alike[0].sampled
    similarity = german.alike[0].similarity
    assert similarity is not None
    assert 0 < similarity.des < 0.8  # other tasks
    assert from_json(Outlook, to_json(german)) == german
    text = "\n".join(outlook_lines(german))
    assert "49 rows (de 48" in text
    assert "43 are trained on (1 broken, 5 held out to measure on)" in text
    assert f"DES {similarity.corrected:.2f}" in text


def test_items_that_stand_in_the_rows_are_counted_for_both_parts(german: Outlook) -> None:
    assert set(german.contamination) == {"selection", "report"}
    for part in german.contamination.values():
        assert part.tasks["worldbook:lookup/de"].contaminated > 0
        assert part.tasks["worldbook:lookup/en"].contaminated == 0
    assert "! Contamination: " in "\n".join(outlook_lines(german))


def test_a_disk_and_memory_that_may_not_suffice_are_warned_of(german: Outlook) -> None:
    room = german.room
    assert room.memory_bytes is not None
    assert room.largest_bytes is not None
    assert room.memory_bytes >= 16 * german.parameters  # weights, gradients and two moments in float32
    assert not [line for line in outlook_lines(german) if line.startswith(("! Memory", "! Disk"))]
    scarce = replace(room, memory_free=1000, disk_free=room.largest_bytes, disk_bytes=room.largest_bytes + 1)
    lines = [line for line in outlook_lines(replace(german, room=scarce)) if line.startswith("! ")]
    assert [line.split()[1] for line in lines[-2:]] == ["Memory", "Disk:"]


def test_where_no_instructions_are_known_the_model_writes_prompts_once(
    looked: Look, tmp_path: Path, talkative_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lingraft.adapt.outlook.PROMPTS", 40)
    write(tmp_path / "rows.jsonl", rows_in("de"))
    data = {"rows": {"source": "rows.jsonl", "language": "de"}}
    found = looked(talkative_model, data, ["de"])
    (alike,) = found.alike
    assert alike.sampled
    assert alike.similarity is not None
    assert alike.similarity.n == (found.probed.prompts, 35)
    assert found.probed.prompts + sum(found.probed.dropped.values()) == 40
    text = "\n".join(outlook_lines(found))
    assert f"{found.probed.prompts} prompts sampled from the model" in text
    assert "No English data (--english-data) were given" in text
    assert "nothing old is replayed" in text
    assert "No threshold is known" in text
    # The probe and DES are in the store: the model is not even loaded again.
    monkeypatch.setattr("lingraft.adapt.probe.load_model", None)
    monkeypatch.setattr("lingraft.similarity.encoders.EmbeddedEncoder.encode", None)
    assert replace(looked(talkative_model, data, ["de"]), room=found.room) == found


def test_a_model_that_answers_nothing_is_said_to_be_no_instruct_model(
    looked: Look, tmp_path: Path, tiny_model: Path
) -> None:
    write(tmp_path / "rows.jsonl", rows_in("de"))
    silent = tmp_path / "silent"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model.config.tie_word_embeddings = False
    with torch.no_grad():  # after any token the end token is the most probable
        model.model.embed_tokens.weight[:] = 0.0
        model.model.embed_tokens.weight[:, 0] = 1.0
        head = torch.zeros_like(model.model.embed_tokens.weight)
        head[tokenizer.eos_token_id, 0] = 100.0
        model.lm_head.weight = torch.nn.Parameter(head)
    tokenizer.chat_template = None
    model.save_pretrained(silent)
    tokenizer.save_pretrained(silent)
    found = looked(silent, {"rows": {"source": "rows.jsonl", "language": "de"}}, ["de"])
    assert (found.probed.answered, found.probed.faults) == (0, {"empty": 8})
    assert not found.has_chat_template
    (alike,) = found.alike
    assert alike.similarity is None
    text = "\n".join(outlook_lines(found))
    assert "! It answered 0 of 8 plain English questions (8 with nothing)" in text
    assert "! It has no chat template" in text
    assert "DES of rows.jsonl is not known: of 200 prompts that it was to write 0 are of use" in text


def test_a_language_that_the_tokenizer_spells_in_bytes_is_a_stated_cost(
    looked: Look, tmp_path: Path, tiny_model: Path
) -> None:
    write(tmp_path / "rows.jsonl", rows_in("th"))
    found = looked(tiny_model, {"rows": {"source": "rows.jsonl", "language": "th"}}, ["th"])
    cost = found.data["rows"].costs["th"]
    assert cost.partial_share > 0.8
    assert cost.tokens_per_character > 2  # three bytes each, spaces and digits one
    line = next(line for line in outlook_lines(found) if "in bytes" in line)
    assert line.startswith("! The tokenizer spells th in bytes: ")
    assert f"{cost.against_english:.1f} times the tokens of English" in line


def test_des_is_null_with_its_reason_where_the_encoder_does_not_know_the_language(
    looked: Look, tmp_path: Path, tiny_model: Path
) -> None:
    write(tmp_path / "rows.jsonl", rows_in("vi"))
    source = {"source": "rows.jsonl", "language": "vi"}
    found = looked(tiny_model, {"rows": source}, ["vi"], instructions="worldbook:counting/en")
    assert found.alike[0].similarity is None
    assert "'vi', which the encoder" in "\n".join(outlook_lines(found))


def test_a_disk_that_is_too_small_is_refused_before_anything_is_asked(
    looked: Look, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "rows.jsonl", rows_in("de"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("lingraft.adapt.outlook.shutil.disk_usage", lambda _: usage._replace(free=100_000))
    monkeypatch.setattr("lingraft.adapt.probe.load_model", None)
    with pytest.raises(
        DiskError, match=r"100 kB are free on its disk, and training writes up to .*Free some space"
    ):
        looked(tiny_model, {"rows": {"source": "rows.jsonl", "language": "de"}}, ["de"])
