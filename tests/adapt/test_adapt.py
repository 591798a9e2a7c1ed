"""A tiny model that learns Spanish from end to end: its folder, the record, what goes on, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import lingraft
from lingraft.adapt import PAGE
from lingraft.adapt.adapt import held_out_part, run_adaptation
from lingraft.adapt.card import CARD
from lingraft.adapt.delivery import Delivery
from lingraft.adapt.history import read_history
from lingraft.adapt.result import Adapted
from lingraft.config.adaptation import Adaptation
from lingraft.data.example import Example, Message
from lingraft.errors import ConfigError
from lingraft.models.loading import load_model
from lingraft.report.adaptation import render_adaptation
from lingraft.study.events import Watcher

_ITEMS = 240
_CHOICES = {"en": ("yes", "no"), "es": ("jamás", "claro")}


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows to learn from, and a task in each language whose answers are given choices.

    In English either choice is right as often, so that training changes the score little; in Spanish always the first.
    """
    folder = tmp_path_factory.mktemp("adapt")
    for tag, (first, second) in _CHOICES.items():
        items = [
            {
                "question": f"{tag} {number}?",
                "choices": [first, second],
                "answer": number % 2 if tag == "en" else 0,
            }
            for number in range(_ITEMS)
        ]
        write_lines(folder / f"{tag}_items.jsonl", [dict(one) for one in items])
        task = {
            "task": f"asked_{tag}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{tag}_items.jsonl")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}],
        }
        (folder / f"{tag}.yaml").write_text(yaml.safe_dump(task))
    rows = [{"instruction": f"es {number}?", "input": "", "output": "jamás"} for number in range(64)]
    write_lines(folder / "es.jsonl", [dict(one) for one in rows])
    return folder


def adaptation(model: Path, places: Path, **changes: object) -> Adaptation:
    content = {
        "model": str(model),
        "data": [str(places / "es.jsonl")],
        "languages": ["es"],
        "max_loss": 0.2,
        "tasks": [str(places / "en.yaml"), {"task": str(places / "es.yaml"), "language": "es"}],
        "training": {"learning_rate": 1e-2, "tokens_per_batch": 512, "precision": "float32"},
        "steps": 2,
        "held_out": 4,
    }
    return Adaptation.model_validate(content | changes)


class Seen(Watcher):
    """Collects the stages that were made."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def stage_started(self, label: str) -> None:
        self.started.append(label)


@pytest.fixture(scope="module")
def adapted(tiny_model: Path, places: Path) -> tuple[Adapted, Seen]:
    seen = Seen()
    found = run_adaptation(
        adaptation(tiny_model, places),
        Delivery(places / "out" / "tiny-es", draw=render_adaptation),
        runs=places / "runs",
        watcher=seen,
    )
    return found, seen


def test_the_model_that_learnt_is_kept_and_written(adapted: tuple[Adapted, Seen]) -> None:
    found, _ = adapted
    assert found.answer == "held", found.sentence
    assert found.walked.chosen is not None
    assert found.learnt == ("es",)
    assert found.report.gain is not None
    assert found.report.gain.answer == "rose"
    assert [one.name for one in found.report.losses] == ["en"]
    (learnt,) = read_history(Path(found.folder)).learnt
    assert (learnt.languages, learnt.max_loss, learnt.alpha) == (("es",), 0.2, found.walked.chosen.alpha)
    assert learnt.losses == found.report.losses


def test_the_page_is_a_part_of_the_folder(adapted: tuple[Adapted, Seen]) -> None:
    found, _ = adapted
    folder = Path(found.folder)
    page = (folder / PAGE).read_text(encoding="utf-8")
    assert found.report.name in page
    assert PAGE in read_history(folder).files
    card = (folder / CARD).read_text(encoding="utf-8")
    places = str(folder.parents[1])
    assert places not in page + card  # which are published


def test_other_rows_replace_no_model_that_learnt_these(
    adapted: tuple[Adapted, Seen], tiny_model: Path, places: Path
) -> None:
    folder = Path(adapted[0].folder)
    shutil.copyfile(places / "es.jsonl", places / "others.jsonl")
    others = adaptation(tiny_model, places, data=[str(places / "others.jsonl")])
    before = read_history(folder)
    with pytest.raises(ConfigError, match="is not empty; name another folder, or replace it by --overwrite"):
        run_adaptation(others, Delivery(folder), runs=places / "runs")
    assert read_history(folder) == before


def test_another_start_whose_folder_is_called_alike_replaces_no_model(
    adapted: tuple[Adapted, Seen], tiny_model: Path, places: Path, tmp_path: Path
) -> None:
    folder = Path(adapted[0].folder)
    other = load_model(tiny_model)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(0.5)
    shutil.copytree(tiny_model, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    before = read_history(folder)
    with pytest.raises(ConfigError, match="is not empty; name another folder, or replace it by --overwrite"):
        run_adaptation(adaptation(tmp_path / "other", places), Delivery(folder), runs=places / "runs")
    assert read_history(folder) == before


def test_the_written_model_is_in_the_type_that_was_asked_for(adapted: tuple[Adapted, Seen]) -> None:
    from safetensors import safe_open

    found, _ = adapted
    (file,) = Path(found.folder).glob("*.safetensors")
    with safe_open(file, framework="pt") as tensors:
        assert {str(tensors.get_slice(name).get_dtype()) for name in tensors.keys()} == {"BF16"}  # noqa: SIM118


def test_the_parts_share_no_item(adapted: tuple[Adapted, Seen]) -> None:
    found, _ = adapted
    chosen = found.walked.chosen
    assert chosen is not None
    assert chosen.evaluation != found.report.evaluation
    assert chosen.losses[0].n + found.report.losses[0].n == _ITEMS


def test_the_same_command_again_makes_nothing_anew(
    adapted: tuple[Adapted, Seen], tiny_model: Path, places: Path
) -> None:
    seen = Seen()
    again = run_adaptation(
        adaptation(tiny_model, places),
        Delivery(places / "out" / "tiny-es"),
        runs=places / "runs",
        watcher=seen,
    )
    assert (again.walked, again.report, again.sentence) == (
        adapted[0].walked,
        adapted[0].report,
        adapted[0].sentence,
    )
    assert not [
        one for one in seen.started if not one.startswith("combine")
    ]  # the model is made for the folder


def test_python_adapts_as_the_command_does_and_prints_what_it_found(
    adapted: tuple[Adapted, Seen], tiny_model: Path, places: Path
) -> None:
    seen = Seen()
    asked = adaptation(tiny_model, places)
    found = lingraft.adapt(
        tiny_model,
        places / "es.jsonl",
        "es",
        0.2,
        output=places / "out" / "tiny-es",
        runs=places / "runs",
        watcher=seen,
        tasks=[places / "en.yaml", f"es={places / 'es.yaml'}"],
        training=asked.training,
        steps=2,
        held_out=4,
    )
    assert [one for one in seen.started if not one.startswith("combine")] == []
    for name in ("walked", "report", "answer", "sentence", "learnt"):
        assert getattr(found, name) == getattr(adapted[0], name)
    shown = str(found)
    assert found.sentence in shown
    assert "report" in shown
    assert f"Model: {places / 'out' / 'tiny-es'}" in shown
    assert found.exit_code == 0


def test_a_third_language_keeps_the_promise_about_the_second(
    adapted: tuple[Adapted, Seen], places: Path
) -> None:
    rows = [{"instruction": f"de {number}?", "input": "", "output": "klar"} for number in range(32)]
    write_lines(places / "de.jsonl", [dict(one) for one in rows])
    third = adaptation(
        Path(adapted[0].folder), places, data=[str(places / "de.jsonl")], languages=["de"], steps=1, groups=0
    )
    found = run_adaptation(third, Delivery(places / "out" / "tiny-es-de"), runs=places / "runs")
    assert found.earlier == ("es",)
    assert [one.name for one in found.report.losses] == ["en", "es"]
    assert found.report.gain is not None
    assert found.report.gain.kind == "bits per character"  # no task is asked in German
    assert [one.languages for one in read_history(Path(found.folder)).learnt] == [("es",), ("de",)]


def test_both_halves_hold_out_rows_of_a_few_wherever_their_file_lies() -> None:
    def halves(source: str) -> list[list[str]]:
        rows = [
            Example(
                str(number),
                (Message("user", f"{number}?"), Message("assistant", "klar")),
                "de",
                str(number),
                source,
            )
            for number in range(4)
        ]
        held_out: Any = SimpleNamespace(held_out=rows)
        return [[one.id for one in held_out_part(held_out, part, seed=0)] for part in ("selection", "report")]

    selection, report = halves("here.jsonl")
    assert len(selection) == len(report) == 2
    assert {*selection, *report} == set("0123")
    assert halves("/elsewhere/there.jsonl") == [selection, report]


def test_a_dry_run_trains_nothing_and_is_what_plan_says(
    tiny_model: Path, places: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from lingraft.cli.main import _run

    file = places / "asked.yaml"
    file.write_text(
        yaml.safe_dump(adaptation(tiny_model, places).model_dump(mode="json", exclude_unset=True))
    )
    options = [
        str(file),
        "--output",
        str(places / "out" / "planned"),
        "--runs",
        str(places / "planned"),
        "--json",
    ]
    assert _run(["plan", "adapt", *options]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["outlook"]["parameters"] > 0
    assert found["start"]["en"]["n"] + 1 > _ITEMS / 3
    assert not list((places / "planned").rglob("train-*/record.json"))
    assert not (places / "out" / "planned").exists()


def test_its_trade_off_is_a_figure_of_its_own(
    adapted: tuple[Adapted, Seen], tiny_model: Path, places: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from lingraft.cli.main import _run

    file = places / "again.yaml"
    file.write_text(
        yaml.safe_dump(adaptation(tiny_model, places).model_dump(mode="json", exclude_unset=True))
    )
    figure = places / "trade-off.pdf"
    options = ["--output", adapted[0].folder, "--runs", str(places / "runs"), "--figure", str(figure)]
    assert _run(["adapt", str(file), *options, "--dry-run"]) == 2
    assert "--figure: goes without --dry-run" in capfd.readouterr().err
    assert _run(["adapt", str(file), *options]) == 0, capfd.readouterr().err
    assert figure.read_bytes().startswith(b"%PDF-")


def test_a_training_that_takes_longer_than_is_allowed_is_refused_before_it_begins(
    tiny_model: Path, places: Path
) -> None:
    seen = Seen()
    with pytest.raises(ConfigError, match=r"--budget: the training takes about .* Allow more, or train less"):
        run_adaptation(
            adaptation(tiny_model, places, seed=7, budget=0.001),
            Delivery(places / "out" / "hasty"),
            runs=places / "runs",
            watcher=seen,
        )
    assert not [one for one in seen.started if one.startswith("train")]
