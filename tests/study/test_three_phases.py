"""Studies of more than two phases: the forgetting matrix against one computed by hand from the stages' files."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from lingraft.config.load import load_study
from lingraft.config.schema import DataSource
from lingraft.data.sources import load_data, split_data
from lingraft.evaluate.held_out import item_of
from lingraft.evaluate.results import AnyMatrix
from lingraft.measures.base import FROM_PHASE_ONE, FROM_PREVIOUS, Column, Measured
from lingraft.records import read_json
from lingraft.study.events import Watcher
from lingraft.study.result import CellResult, PhaseResult, StudyResult
from lingraft.study.run import run_study

HELD_OUT = 6
WORDS = {"en": ["Monday", "March", "king", "bread"], "de": ["Montag", "März", "König", "Brot"]}
WORDS |= {"es": ["lunes", "marzo", "rey", "pan"], "fr": ["lundi", "mars", "roi", "pain"]}
SOURCES = {"one": "worldbook:lookup/en", "two": "worldbook:lookup/de"}
SOURCES |= {"similar": "worldbook:lookup/es,fr", "dissimilar": "worldbook:counting/es,fr"}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A multiple-choice task per language, on which a random model is right now and then."""
    folder = tmp_path_factory.mktemp("tasks")
    found = {}
    for language, words in WORDS.items():
        draw = random.Random(language)
        rows = [
            {"q": f"{draw.choice(words)} {draw.choice(words)}", "a": draw.randrange(4)} for _ in range(24)
        ]
        data = folder / f"{language}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        content = {
            "task": f"choice_{language}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{q}}",
            "doc_to_target": "{{a}}",
            "doc_to_choice": words,
            "metric_list": [{"metric": "acc"}],
        }
        found[language] = folder / f"choice_{language}.yaml"
        found[language].write_text(yaml.safe_dump(content))
    return found


def study_file(folder: Path, tasks: dict[str, Path], **content: Any) -> Path:
    languages = [tag for tag in tasks if tag != "en"]
    evaluate = {
        "task_ability": [{"task": str(tasks["en"])}],
        "language_ability": [{"task": str(tasks[tag]), "language": tag} for tag in languages],
        "apply_chat_template": False,
    }
    training = {"learning_rate": 1e-2, "tokens_per_batch": 1024}
    path = folder / f"{content['name']}.yaml"
    full = {"training": training, "held_out": HELD_OUT, "evaluate": evaluate, **content}
    path.write_text(yaml.safe_dump(full, sort_keys=False))
    return path


class Counted(Watcher):
    """Counts the stages that were announced and those that were finished."""

    def __init__(self) -> None:
        self.announced = self.finished = 0

    def study_started(self, stages: int) -> None:
        self.announced = stages

    def stage_finished(self, label: str, seconds: float, reused: bool) -> None:  # noqa: ARG002
        self.finished += 1


@pytest.fixture(scope="module")
def three(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tasks: dict[str, Path]
) -> tuple[Path, StudyResult, Counted]:
    """A finished study of three phases: its file, its result, and what its watcher was told."""
    folder = tmp_path_factory.mktemp("three")
    phases = [
        {"name": "one", "data": {"english": {"source": SOURCES["one"], "limit": 32}}},
        {"name": "two", "data": {"german": {"source": SOURCES["two"], "limit": 32}}},
        {
            "name": "three",
            "data": {
                "similar": {"source": SOURCES["similar"], "limit": 32},
                "dissimilar": {
                    "source": SOURCES["dissimilar"],
                    "limit": 32,
                    "strategies": [{"english_replay": {"share": 0.2, "from": "phase_one"}}, "mixed"],
                },
            },
            "strategies": ["plain"],
        },
    ]
    path = study_file(folder, tasks, name="three", model=str(tiny_model), phases=phases)
    watcher = Counted()
    result = run_study(load_study(path), runs=folder / "runs", watcher=watcher)
    return path, result, watcher


def chain_of(run: Path, cell: CellResult) -> list[str | None]:
    """Follow a cell's checkpoint back to the base by the records: fingerprints of its trainings, None the base."""
    assert cell.checkpoint is not None
    folder = (run / cell.checkpoint).parent
    chain: list[str | None] = []
    while True:
        record = read_json(folder / "record.json")
        chain.insert(0, record["fingerprint"])
        parent = record["inputs"]["parent"].get("stage")
        if parent is None:
            return [None, *chain]
        folder = folder.parent / f"train-{parent}"


def evaluation_of(stages: Path, training: str | None) -> Path:
    for folder in stages.glob("evaluate-*"):
        model = read_json(folder / "record.json")["inputs"]["model"]
        if model.get("stage") == training:
            return folder
    raise AssertionError(f"no evaluation of {training}")


def ability(folder: Path, languages: list[str]) -> float:
    """Mean over languages of the share of right answers, in plain code."""
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    means: list[float] = []
    for language in languages:
        wanted = "task_ability" if language == "en" else "language_ability"
        right = [r["score"] for r in rows if r["ability"] == wanted and r["language"] == language]
        assert len(right) == 24
        means.append(sum(right) / 24)
    return sum(means) / len(means)


def held_out_bits(folder: Path, source: str, languages: list[str]) -> float:
    """Mean over languages of bits per character of the source's held-out answers, in plain code."""
    loaded = load_data(DataSource(source=source))
    examples = split_data(loaded, limit=None, held_out_groups=HELD_OUT, seed=0).held_out
    found = {row["item"]: row for row in pq.read_table(folder / "held_out.parquet").to_pylist()}
    means: list[float] = []
    for language in languages:
        rows = [found[item_of(example)] for example in examples if example.language == language]
        answers = [example.answer for example in examples if example.language == language]
        assert sum(row["characters"] for row in rows) == sum(len(answer) for answer in answers)
        means.append(sum(row["bits"] for row in rows) / sum(row["characters"] for row in rows))
    return sum(means) / len(means)


def by_hand(matrix: list[list[float]], sign: int) -> dict[str, float]:
    """Average, transfers and forgetting of rows base, 1, 2, 3 and columns 1, 2, 3, written out."""
    base, one, two, three = ([sign * value for value in row] for row in matrix)
    return {
        "average": sign * (three[0] + three[1] + three[2]) / 3,
        "backward_transfer": ((three[0] - one[0]) + (three[1] - two[1])) / 2,
        "forward_transfer": ((one[1] - base[1]) + (two[2] - base[2])) / 2,
        "forgetting": ((max(one[0], two[0]) - three[0]) + (max(one[1], two[1]) - three[1])) / 2,
    }


FAILING_BASE = """
from lingraft.errors import EvaluationError
from lingraft.study.stages import evaluate as stage
evaluate, calls = stage.evaluate_model, []
def fails_once(*arguments, **options):
    calls.append(1)
    if len(calls) == 1:
        raise EvaluationError("the base cannot be asked")
    return evaluate(*arguments, **options)
stage.evaluate_model = fails_once
"""


def lingraft(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, after the code `before`."""
    code = f"{before}\nfrom lingraft.cli.main import main\nmain()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def check_matrix(found: AnyMatrix | None, expected: list[list[float]], sign: int) -> None:
    assert found is not None
    assert [row.after for row in found.rows] == ["base", "one", "two", "three"]
    entries = [[entry.value for entry in row.scores] for row in found.rows]
    for row, wanted in zip(entries, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-12)
    wanted_summary = by_hand(expected, sign)
    assert found.forgetting == pytest.approx(wanted_summary.pop("forgetting"), abs=1e-12)
    for name, number in wanted_summary.items():
        one = getattr(found, name)
        assert one.value == pytest.approx(number, abs=1e-12), name
        assert one.low <= one.value <= one.high
    assert len({value for row in entries for value in row}) > 3, "the scores are too alike to show a mistake"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_forgetting_matrix_equals_one_computed_by_hand_from_the_records(
    three: tuple[Path, StudyResult, Counted], number: int
) -> None:
    path, result, _ = three
    cell = result.done[number]
    run = path.parent / "runs/three"
    folders = [evaluation_of(run / "stages", one) for one in chain_of(run, cell)]
    assert len(folders) == 4
    last = SOURCES[cell.data]
    sets = [(SOURCES["one"], ["en"]), (SOURCES["two"], ["de"]), (last, ["es", "fr"])]
    abilities = [[ability(folder, languages) for _, languages in sets] for folder in folders]
    check_matrix(cell.forgetting.ability, abilities, 1)
    losses = [[held_out_bits(folder, *one) for one in sets] for folder in folders]
    check_matrix(cell.forgetting.bits_per_character, losses, -1)


def test_the_matrix_agrees_with_the_scores_of_each_phase(
    three: tuple[Path, StudyResult, Counted],
) -> None:
    _, result, _ = three
    assert result.base is not None
    for cell in result.done[:3]:
        matrix, losses = cell.forgetting.ability, cell.forgetting.bits_per_character
        assert matrix is not None
        assert losses is not None
        assert matrix.rows[0].scores[0] == result.base.task_ability
        for row, phase in zip(matrix.rows[1:], cell.phases, strict=True):
            assert row.scores[0] == phase.scores.task_ability
            assert row.scores[1].value == phase.scores.per_language["de"].value
        english = cell.phases[0].scores.per_language["en"].held_out
        assert english is not None
        assert losses.rows[1].scores[0].value == pytest.approx(english.value)


def test_a_mixed_cell_has_one_row_in_which_all_was_learned_at_once(
    three: tuple[Path, StudyResult, Counted],
) -> None:
    _, result, _ = three
    mixed = result.done[3]
    assert mixed.training.examples == 96
    for matrix in (mixed.forgetting.ability, mixed.forgetting.bits_per_character):
        assert matrix is not None
        assert [row.after for row in matrix.rows] == ["base", "mixed"]
        assert (matrix.backward_transfer, matrix.forward_transfer, matrix.forgetting) == (None, None, None)
        assert matrix.average.value == pytest.approx(sum(entry.value for entry in matrix.rows[1].scores) / 3)


def figure(phase: PhaseResult, measure: str, taken_from: str) -> float | None:
    return phase.measures[measure].figure(Column("", "", measure, taken_from)).value


def test_each_phase_is_compared_with_the_one_before_and_with_phase_one(
    three: tuple[Path, StudyResult, Counted],
) -> None:
    _, result, _ = three
    one, two, last = result.done[1].phases
    assert one.measures["des"] == one.measures["mpd"] == Measured({})
    for name in ("des", "mpd"):
        previous, first = (figure(two, name, place) for place in (FROM_PREVIOUS, FROM_PHASE_ONE))
        assert previous == first != 0
        previous, first = (figure(last, name, place) for place in (FROM_PREVIOUS, FROM_PHASE_ONE))
        assert None not in (previous, first)
        assert previous != first
    assert result.done[1].measures == last.measures
    replayed = result.done[2].phases[2].training
    assert (replayed.replayed, replayed.examples) == (8, 40)  # 0.2 / 0.8 * 32, from Phase 1


def test_as_many_stages_are_finished_as_were_announced(three: tuple[Path, StudyResult, Counted]) -> None:
    _, _, watcher = three
    assert watcher.announced == watcher.finished


def test_the_middle_phase_is_trained_once_and_its_checkpoint_is_not_kept(
    three: tuple[Path, StudyResult, Counted],
) -> None:
    path, result, _ = three
    stages = path.parent / "runs/three/stages"
    assert len(list(stages.glob("train-*"))) == 6  # one, two, and four cells
    middle = chain_of(stages.parent, result.done[0])[2]
    entries = read_json(stages / f"train-{middle}/record.json")["artefacts"].values()
    assert all(entry["discarded"] for entry in entries)
    before = {path: path.stat().st_mtime_ns for path in stages.rglob("*")}
    again = run_study(load_study(path), runs=path.parent / "runs")
    assert again == result
    assert {path: path.stat().st_mtime_ns for path in stages.rglob("*")} == before


@pytest.mark.slow
def test_the_command_prints_the_matrices_and_writes_the_page(
    three: tuple[Path, StudyResult, Counted],
) -> None:
    path, _, _ = three
    done = lingraft("run", str(path), "--runs", str(path.parent / "runs"))
    assert done.returncode == 0, done.stderr
    assert "Forgetting: ability in what each phase taught" in done.stdout
    assert "backward" in done.stdout
    page = (path.parent / "runs/three/report/index.html").read_text(encoding="utf-8")
    for figure in ("trade-off", "changes-by-task", "forgetting-loss", "moved-weights", "trained-parameters"):
        assert f'id="{figure}"' in page or f'id="figure-{figure}"' in page
    assert page.count("<svg") >= 11
    assert "Loss of held-out answers: with intervals" in page


@pytest.mark.slow
def test_four_phases_from_a_checkpoint_by_paths(
    tmp_path: Path, tiny_model: Path, tasks: dict[str, Path]
) -> None:
    def data(source: str) -> dict[str, Any]:
        return {"used": {"source": source, "limit": 16}, "unused": {"source": "worldbook:lookup/fr"}}

    phases = [
        {"name": "instruct", "checkpoint": str(tiny_model)},
        {"name": "two", "data": data("worldbook:lookup/de")},
        {"name": "three", "data": data("worldbook:counting/de")},
        {"name": "four", "data": data("worldbook:lookup/es")},
    ]
    plain = [{"phase": name, "data": "used"} for name in ("two", "three", "four")]
    frozen = [plain[0], {**plain[1], "strategy": {"freeze_random": {"share": 0.5}}}, plain[2]]
    known = {tag: tasks[tag] for tag in ("en", "de", "es")}
    path = study_file(tmp_path, known, name="four", phases=phases, paths=[plain, frozen])
    watcher = Counted()
    result = run_study(load_study(path), runs=tmp_path / "runs", watcher=watcher)
    assert len(result.done) == 2, result.cells
    assert [cell.strategy for cell in result.cells] == ["plain > plain", "freeze_random > plain"]
    assert watcher.announced == watcher.finished
    cell = result.done[1]
    assert set(cell.scores.per_language) == {"de", "en", "es"}, "sets that no path uses are not read"
    two, three, four = cell.phases
    assert [phase.phase for phase in cell.phases] == ["two", "three", "four"]
    assert three.training.frozen_parameters > 0
    assert figure(four, "des", FROM_PHASE_ONE) is None  # the checkpoint's instructions are unknown
    assert figure(two, "des", FROM_PREVIOUS) is None
    assert figure(three, "des", FROM_PREVIOUS) is not None
    assert figure(two, "mpd", FROM_PREVIOUS) == figure(two, "mpd", FROM_PHASE_ONE) != 0
    matrix, losses = cell.forgetting.ability, cell.forgetting.bits_per_character
    assert matrix is not None
    assert losses is not None
    assert [row.after for row in matrix.rows] == ["instruct", "two", "three", "four"]
    assert [one.measured_by for one in matrix.columns] == [("task ability",), ("de",), ("de",), ("es",)]
    assert (matrix.unmeasured, losses.unmeasured) == ((), ("instruct",))
    rows = [[entry.value for entry in row.scores] for row in losses.rows]
    assert losses.backward_transfer is not None
    assert losses.backward_transfer.value == pytest.approx(
        ((rows[1][0] - rows[3][0]) + (rows[2][1] - rows[3][1])) / 2
    )
    assert losses.forward_transfer is None  # there is no base


@pytest.mark.slow
def test_a_failed_base_evaluation_is_a_reason_and_exit_code_one(
    tmp_path: Path, tiny_model: Path, tasks: dict[str, Path]
) -> None:
    phases = [{"name": name, "data": {"d": {"source": SOURCES[name], "limit": 8}}} for name in ("one", "two")]
    known = {tag: tasks[tag] for tag in ("en", "de")}
    path = study_file(
        tmp_path, known, name="based", model=str(tiny_model), phases=phases, measures=[], held_out=2
    )
    done = lingraft("run", str(path), "--json", "--runs", str(tmp_path / "runs"), before=FAILING_BASE)
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert (result["base"], result["base_reason"]) == (None, "the base cannot be asked")
    assert result["cells"][0]["status"] == "done"
    matrix = result["cells"][0]["forgetting"]["ability"]
    assert [row["after"] for row in matrix["rows"]] == ["one", "two"]
    assert matrix["forward_transfer"] is None
    assert "the base cannot be asked" in (tmp_path / "runs/based/report/index.html").read_text()
    assert list((tmp_path / "runs").rglob("*.safetensors")), "nothing is discarded while something failed"


class Recorded(Watcher):
    """Keeps what began and what ended, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def stage_started(self, label: str) -> None:
        self.told.append(("began", label))

    def stage_finished(self, label: str, seconds: float, reused: bool) -> None:  # noqa: ARG002
        self.told.append(("reused" if reused else "ended", label))


@pytest.mark.slow
def test_a_cell_added_later_makes_the_discarded_middle_phase_again_and_one_stage_at_a_time(
    tmp_path: Path, tiny_model: Path, tasks: dict[str, Path]
) -> None:
    phases = [
        {"name": "one", "data": {"d": {"source": SOURCES["one"], "limit": 8}}},
        {"name": "two", "data": {"d": {"source": SOURCES["two"], "limit": 8}}},
        {"name": "three", "data": {"d": {"source": "worldbook:counting/de", "limit": 8}}},
    ]
    known = {tag: tasks[tag] for tag in ("en", "de")}
    options = {"model": str(tiny_model), "phases": phases, "measures": [], "held_out": 2}
    path = study_file(tmp_path, known, name="grown", **options)
    first = run_study(load_study(path), runs=tmp_path / "runs")
    watcher = Recorded()
    more = ["phases.three.strategies=[plain, freeze_random]"]
    second = run_study(load_study(path, more), runs=tmp_path / "runs", watcher=watcher)
    assert second.cells[0] == first.cells[0]
    worked = [entry for entry in watcher.told if entry[0] != "reused"]
    assert worked[0::2] == [("began", label) for _, label in worked[1::2]], "one stage inside another"
    assert [label.split()[0] for kind, label in worked if kind == "began"] == ["train", "train", "evaluate"]
    assert "three:d/freeze_random" not in worked[0][1], "phase two first"


@pytest.mark.slow
def test_a_row_that_another_set_holds_out_is_not_trained_on_and_counted(
    tmp_path: Path, tiny_model: Path, tasks: dict[str, Path]
) -> None:
    rows = [
        {"id": str(i), "language": "de", "instruction": f"Was ist {i}?", "output": f"Es ist {i}."}
        for i in range(40)
    ]
    renamed = [row | {"id": f"x{row['id']}", "language": "de-AT"} for row in rows]  # the same conversations
    for name, own in (("few", rows[:20]), ("many", renamed)):
        lines = (json.dumps(row) + "\n" for row in own)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    few, many = (str(tmp_path / f"{name}.jsonl") for name in ("few", "many"))
    phases = [{"name": n, "data": {"d": {"source": s}}} for n, s in (("one", few), ("two", many))]
    known = {"en": tasks["en"], "de": tasks["de"], "de-AT": tasks["de"]}
    path = study_file(tmp_path, known, name="shared", model=str(tiny_model), phases=phases, measures=[])
    result = run_study(load_study(path), runs=tmp_path / "runs")
    assert result.done, result.cells
    one, two = (phase.training for phase in result.done[0].phases)
    assert two.data[0].withheld > 0
    for phase in (one, two):
        counts = phase.data[0]
        assert phase.examples == counts.train == counts.rows - counts.held_out - counts.withheld


@pytest.mark.slow
def test_mixed_sees_each_set_as_often_as_its_own_phase_does(
    tmp_path: Path, tiny_model: Path, tasks: dict[str, Path]
) -> None:
    phases = [
        {
            "name": "one",
            "data": {"english": {"source": SOURCES["one"], "limit": 16}},
            "training": {"epochs": 3},
        },
        {
            "name": "two",
            "data": {"german": {"source": SOURCES["two"], "limit": 16}},
            "strategies": ["plain", "mixed"],
        },
    ]
    known = {tag: tasks[tag] for tag in ("en", "de")}
    path = study_file(tmp_path, known, name="epochs", model=str(tiny_model), phases=phases, measures=[])
    result = run_study(load_study(path), runs=tmp_path / "runs")
    assert len(result.done) == 2, result.cells
    plain, mixed = result.done
    trained = [read_json(p)["result"] for p in (tmp_path / "runs").glob("*/stages/train-*/record.json")]
    assert mixed.training.examples == 3 * 16 + 16
    assert mixed.training.tokens == sum(one["tokens"] for one in trained) - mixed.training.tokens
    assert plain.training.examples == 16


def test_a_phase_one_whose_cell_fails_stands_in_the_result(
    tmp_path: Path, tiny_model: Path, tasks: dict[str, Path]
) -> None:
    phases = [
        {"name": "one", "data": {"english": {"source": SOURCES["one"], "limit": 16}}},
        {
            "name": "two",
            "data": {"german": {"source": SOURCES["two"], "limit": 16}},
            "training": {"learning_rate": 1.0, "max_gradient_norm": 1e9, "weight_decay": 1.0, "epochs": 60},
        },
    ]
    known = {tag: tasks[tag] for tag in ("en", "de")}
    path = study_file(tmp_path, known, name="fails", model=str(tiny_model), phases=phases, measures=[])
    result = run_study(load_study(path, ["phases.two.training.max_length=8"]), runs=tmp_path / "runs")
    assert result.cells[0].status == "failed"
    assert [entry.data for entry in result.phase_ones] == ["english"]
