"""A damaged model is rescued: which layers carry the loss, the model that is kept, what is refused before anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lingraft
from lingraft.adapt.card import CARD
from lingraft.adapt.history import History, read_history, write_history
from lingraft.adapt.rescue import RepairOptions, Rescued, rescue
from lingraft.config.schema import Training
from lingraft.data.chat import encode_example
from lingraft.data.example import Example, Message
from lingraft.errors import ConfigError
from lingraft.models.checkpoints import CheckpointReader
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.models.loss import collate, supervised_loss
from lingraft.study.events import Watcher

_ITEMS = 200
_CHOICES = {"en": ("yes", "no"), "es": ("claro", "jamás")}
Run = Callable[..., Rescued]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task in each language, in which the first choice is always right."""
    folder = tmp_path_factory.mktemp("tasks")
    for tag, choices in _CHOICES.items():
        items = [
            {"question": f"{tag} {number}?", "choices": choices, "answer": 0} for number in range(_ITEMS)
        ]
        (folder / f"{tag}.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in items))
        task = {
            "task": f"asked_{tag}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{tag}.jsonl")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}],
        }
        (folder / f"{tag}.yaml").write_text(yaml.safe_dump(task))
    return folder


def row(tokenizer: Any, tag: str, number: int, answer: str) -> Any:
    messages = (Message("user", f"{tag} {number}?"), Message("assistant", answer))
    return encode_example(Example(str(number), messages, tag, str(number), tag), tokenizer, 64)


def taught(model: Any, tokenizer: Any, answers: dict[str, str], layer: int | None = None) -> None:
    """Train a model in place to answer the questions of languages so, one layer alone where it is named."""
    parameters = [
        one for name, one in model.named_parameters() if layer is None or f"layers.{layer}." in name
    ]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    rows = [
        row(tokenizer, tag, number, answer)
        for tag, answer in answers.items()
        for number in range(0, _ITEMS, 8)
    ]
    for _ in range(40):
        total, tokens = supervised_loss(model, collate(rows))
        optimizer.zero_grad()
        (total / tokens).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def says(model: Any, tokenizer: Any, tag: str, right: str, wrong: str) -> bool:
    losses = [
        supervised_loss(model, collate([row(tokenizer, tag, 1, answer)]))[0] for answer in (right, wrong)
    ]
    return bool(losses[0] < losses[1])


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model that answers English, and what became of it: layer 0 has learnt Spanish, layer 1 is full of noise."""
    folder = tmp_path_factory.mktemp("models")
    model, tokenizer = load_model(tiny_model), load_tokenizer(tiny_model)
    taught(model, tokenizer, {"en": "yes", "es": "jamás"})
    shutil.copytree(tiny_model, folder / "start")
    model.save_pretrained(folder / "start")
    taught(model, tokenizer, {"en": "yes", "es": "claro"}, layer=0)
    assert says(model, tokenizer, "en", "yes", "no")
    assert says(model, tokenizer, "es", "claro", "jamás")
    last = {name: one.clone() for name, one in model.state_dict().items() if "layers.1." in name}
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        noise = {name: one + torch.randn(one.shape, generator=generator) for name, one in last.items()}
        model.load_state_dict(noise, strict=False)
        if not says(model, tokenizer, "en", "yes", "no"):
            break
    shutil.copytree(tiny_model, folder / "damaged")
    model.save_pretrained(folder / "damaged")
    return folder / "start", folder / "damaged"


@pytest.fixture(scope="module")
def run(models: tuple[Path, Path], tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("rescue")

    def one(name: str = "kept", languages: tuple[str, ...] = ("es",), **options: Any) -> Rescued:
        names = [str(tasks / "en.yaml"), *(f"{tag}={tasks / tag}.yaml" for tag in languages)]
        given: dict[str, Any] = {
            "tasks": names,
            "languages": languages,
            "steps": 2,
            "groups": 2,
            "precision": "float32",
        }
        before, after = options.pop("models", models)
        return rescue(
            before, after, 0.1, output=place / "out" / name, runs=place / "runs", **(given | options)
        )

    return one


@pytest.fixture(scope="module")
def rescued(run: Run) -> Rescued:
    return run()


def test_the_layer_that_carries_the_loss_comes_first(rescued: Rescued) -> None:
    assert rescued.damage[0].answer == "broken"
    worst, *others = rescued.given_back
    assert worst.part == "1"
    assert worst.change.answer == "rose"
    assert worst.losses[0].answer == "held"
    assert worst.gain is not None
    assert {one.part for one in others} == {"0", "embeddings"}
    embeddings = next(one for one in others if one.part == "embeddings")
    assert embeddings.change.value == 0  # they are the start's already
    assert embeddings.losses == rescued.damage


def test_python_rescues_as_the_command_does_and_prints_what_it_found(
    rescued: Rescued, models: tuple[Path, Path], tasks: Path
) -> None:
    place = Path(rescued.adapted.folder).parents[1]
    found = lingraft.rescue(
        models[0],
        models[1],
        0.1,
        output=place / "out" / "kept",
        runs=place / "runs",
        languages="es",
        tasks=[str(tasks / "en.yaml"), f"es={tasks / 'es'}.yaml"],
        steps=2,
        groups=2,
        precision="float32",
    )
    assert found.damage == rescued.damage
    assert found.adapted.walked == rescued.adapted.walked
    shown = str(found)
    assert found.adapted.sentence in shown
    assert f"What {models[1]} loses, and with a part of it given back" in shown
    assert "layer 1" in shown
    assert found.exit_code == 0


def test_the_model_that_keeps_the_language_is_written_with_the_damaged_layer_given_back(
    rescued: Rescued, models: tuple[Path, Path]
) -> None:
    found = rescued.adapted
    assert found.answer == "held", found.sentence
    assert found.walked.chosen is not None
    assert found.walked.chosen.kept_back == "1"
    assert found.report.gain is not None
    assert found.report.gain.answer == "rose"
    start, damaged = (CheckpointReader(one) for one in models)
    written = CheckpointReader(Path(found.folder))
    for name in written.names:
        if "layers.1." in name:
            assert torch.equal(written.tensor(name), start.tensor(name)), name
        elif found.walked.chosen.alpha == 1:
            assert torch.equal(written.tensor(name), damaged.tensor(name)), name
    (learnt,) = read_history(Path(found.folder)).learnt
    assert (learnt.languages, learnt.losses) == (("es",), found.report.losses)
    card = (Path(found.folder) / CARD).read_text()
    assert "The damaged model is damaged" in card
    assert str(models[0].parent) not in card


def test_the_same_command_again_makes_nothing_anew(rescued: Rescued, run: Run) -> None:
    class Seen(Watcher):
        def __init__(self) -> None:
            self.started: list[str] = []

        def stage_started(self, label: str) -> None:
            self.started.append(label)

    seen = Seen()
    assert run(watcher=seen) == rescued
    assert not [one for one in seen.started if not one.startswith("combine")]


def test_another_rescue_whose_folder_is_called_alike_replaces_no_model(
    rescued: Rescued, run: Run, models: tuple[Path, Path], tmp_path: Path
) -> None:
    model = load_model(models[1])
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(0.5)
    shutil.copytree(models[1], tmp_path / "damaged")
    model.save_pretrained(tmp_path / "damaged")
    before = read_history(Path(rescued.adapted.folder))
    with pytest.raises(ConfigError, match="is not empty; name another folder, or replace it by --overwrite"):
        run("kept", models=(models[0], tmp_path / "damaged"))
    assert read_history(Path(rescued.adapted.folder)) == before


def test_what_lingraft_taught_the_damaged_model_is_asked_and_goes_on_in_the_history(
    rescued: Rescued, run: Run, models: tuple[Path, Path], tasks: Path, tmp_path: Path
) -> None:
    asked = [str(tasks / "en.yaml"), f"es={tasks / 'es'}.yaml"]
    taught_before = replace(read_history(Path(rescued.adapted.folder)).learnt[0], damaged_identity="")
    shutil.copytree(models[1], tmp_path / "damaged")
    write_history(tmp_path / "damaged", History(learnt=(taught_before,)))
    found = run("taught", models=(models[0], tmp_path / "damaged"), languages=(), tasks=asked)
    assert found.adapted.learnt == ("es",)
    history = read_history(Path(found.adapted.folder)).learnt
    assert [one.languages for one in history] == [("es",), ("es",)]
    assert history[0] == taught_before


def test_without_languages_the_largest_alpha_that_holds_is_kept_and_that_is_said(run: Run) -> None:
    found = run("unknown", languages=(), by_layer=True)
    chosen = found.adapted.walked.chosen
    assert chosen is not None
    assert (chosen.gain, found.adapted.learnt) == (None, ())
    certified = [one.alpha for one in found.adapted.walked.points if one.certified]
    assert chosen.alpha == max(certified)
    assert any("--languages" in note for note in found.notes)


def test_a_repair_comes_before_the_walk(run: Run, models: tuple[Path, Path], tmp_path: Path) -> None:
    start, _ = models
    model, tokenizer = load_model(start), load_tokenizer(start)
    taught(model, tokenizer, {"en": "no"})
    shutil.copytree(start, tmp_path / "damaged")
    model.save_pretrained(tmp_path / "damaged")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"en {number}?\n" for number in range(1, _ITEMS, 4)))
    training = Training(epochs=4, learning_rate=3e-3, tokens_per_batch=256, precision="float32")
    found = run(
        "repaired",
        models=(start, tmp_path / "damaged"),
        languages=(),
        repair=RepairOptions(str(prompts), 40, 4, training),
        groups=0,
    )
    assert found.repair is not None
    assert found.repair.prompts + found.repair.held_out == 40
    assert found.repair.after.nats < 0.5 * found.repair.before.nats
    # The way leads to the repaired model, of which less is lost than of the damaged one.
    last = max(found.adapted.walked.points, key=lambda one: one.alpha)
    assert found.damage[0].answer == "broken"
    assert (last.alpha, last.losses[0].answer) == (1.0, "held")
    assert (found.adapted.strategy, found.adapted.steps) == ("repair", found.repair.steps)
    assert json.loads(json.dumps(found.to_json()))["repair"]["steps"] == found.repair.steps
