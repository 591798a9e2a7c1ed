"""A cell of a study comes out as a folder that anybody can load, and what is stored is what was scored."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_server import TOKEN, hub
from huggingface_hub import constants

from lingraft.adapt.choice import choose_cell, label_of
from lingraft.adapt.export import stored_type
from lingraft.adapt.history import read_history
from lingraft.config.load import load_study
from lingraft.errors import ConfigError
from lingraft.intervals.changes import LimitAnswer
from lingraft.intervals.macro_mean import Difference, Interval
from lingraft.models.adapters import load_merged
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.study.limits import LimitResult
from lingraft.study.result import CellResult, FailedCell, PendingCell, StudyResult, read_result
from lingraft.study.run import run_study
from lingraft.study.unused import unused_stages

Lingraft = Callable[..., "subprocess.CompletedProcess[str]"]
NAMED = ("--cell", "de / english_replay")
EXPORT = ("export", "runs/tiny", "out", *NAMED)


def study(folder: Path, start: Path, **changes: Any) -> Path:
    content = {
        "name": "tiny",
        "phases": [
            {"name": "one", "checkpoint": str(start)},
            {
                "name": "two",
                "data": {
                    "de": {"source": "worldbook:lookup/de", "limit": 12, "english": "worldbook:lookup/en"}
                },
                "strategies": [
                    {"english_replay": {"share": 0.2}},
                    {"lora": {"rank": 2, "keep_adapter": True}},
                ],
            },
        ],
        "training": {"tokens_per_batch": 1024, "precision": "float32"},
        "measures": [],
        "evaluate": {
            "precision": "float32",
            "task_ability": [{"task": "worldbook", "limit": 2, "max_new_tokens": 4}],
            "language_ability": [{"task": "worldbook", "limit": 2, "max_new_tokens": 4}],
        },
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def place(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a study that starts from a bf16 model."""
    folder = tmp_path_factory.mktemp("study")
    load_model(tiny_model, dtype=torch.bfloat16).save_pretrained(folder / "start")
    load_tokenizer(tiny_model).save_pretrained(folder / "start")
    (folder / "start" / "README.md").write_text("---\nlicense: mit\n---\n# start\n")
    run_study(load_study(study(folder, folder / "start")), runs=folder / "runs")
    return folder


@pytest.fixture
def runs(place: Path, tmp_path: Path) -> Path:
    """A copy of the run, in the folder in which commands run."""
    shutil.copytree(place / "runs", tmp_path / "runs")
    return tmp_path / "runs"


LOADS = """
import sys
sys.modules["lingraft"] = None  # cannot be imported
import torch
from transformers import AutoModelForCausalLM
model, info = AutoModelForCausalLM.from_pretrained(".", dtype="auto", output_loading_info=True)
assert model.dtype == torch.bfloat16, model.dtype
assert not any(info.values()), info
"""


def test_the_folder_loads_where_lingraft_is_not_and_its_card_s_lines_run(
    runs: Path, lingraft: Lingraft
) -> None:
    done = lingraft(*EXPORT)
    assert done.returncode == 0, done.stderr
    assert "Scored by the study in float32: task ability" in done.stdout
    assert "Scored as it is stored, in bf16: task ability" in done.stdout
    out = runs.parent / "out"
    assert stored_type(out) == "bf16"
    card = (out / "README.md").read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    run = subprocess.run(
        [sys.executable, "-c", LOADS + lines], cwd=out, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "license: mit" in card
    assert "asked what the study asked the cell, which it had scored in float32" in card
    assert "12 | de |" in card
    assert str(runs.parents[1]) not in card + (out / "lingraft.json").read_text()  # no path of this machine
    (learnt,) = read_history(out).learnt
    assert (learnt.languages, learnt.start, learnt.strategy) == (("de",), "start", "english_replay")
    assert learnt.start_identity.startswith("weights ")
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o644}
    assert not unused_stages(runs / "tiny")  # the evaluation of the export is listed


@pytest.mark.slow  # a quicker test loads the folder as the harness does
def test_the_folder_is_evaluated_by_the_harness_as_it_is(
    runs: Path, lingraft: Lingraft, tmp_path: Path
) -> None:
    assert lingraft(*EXPORT, "--no-evaluate").returncode == 0
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "rows.jsonl").write_text('{"question": "one", "answer": "two"}\n' * 3)
    task = {
        "task": "own",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "tasks" / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "perplexity"}],
    }
    (tmp_path / "tasks" / "own.yaml").write_text(yaml.safe_dump(task))
    without_lingraft = (
        "import sys; sys.modules['lingraft'] = None; from lm_eval.__main__ import cli_evaluate as run; run()"
    )
    asked = [
        "--model",
        "hf",
        "--model_args",
        "pretrained=out,dtype=auto",
        "--tasks",
        "own",
        "--device",
        "cpu",
    ]
    run = subprocess.run(
        [sys.executable, "-c", without_lingraft, *asked, "--include_path", "tasks", "--apply_chat_template"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert re.search(r"perplexity.*\d", run.stdout)


def test_what_is_stored_as_it_was_scored_is_not_asked_again(runs: Path, lingraft: Lingraft) -> None:
    (runs.parent / "out").mkdir()
    done = lingraft(*EXPORT, "--dtype", "float32", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["dtype"] == "float32"
    assert found["exported_scores"] is None
    assert found["is_scored"] is True
    unscored = json.loads(lingraft(*EXPORT, "--overwrite", "--no-evaluate", "--json").stdout)
    assert unscored["dtype"] == "bf16"
    assert unscored["is_scored"] is False
    assert "was not scored itself" in (runs.parent / "out" / "README.md").read_text()
    again = lingraft(*EXPORT)
    assert again.returncode == 2
    assert "is not empty; name another folder, or replace it by --overwrite" in again.stderr


def test_a_discarded_checkpoint_is_named_with_what_to_type_and_trained_again(
    place: Path, lingraft: Lingraft, tmp_path: Path
) -> None:
    shutil.copytree(place / "runs", tmp_path / "runs")
    path = study(tmp_path, place / "start", keep="none", name="tiny")
    assert lingraft("run", str(path), "--runs", "gone").returncode == 0
    command = ("export", "gone/tiny", "out", "--cell", "de/lora", "--no-evaluate")
    done = lingraft(*command)
    assert done.returncode == 2
    assert "the checkpoint of 'de / lora' is not kept (keep: none)" in done.stderr
    assert 'lingraft export gone/tiny --cell "de / lora" out --train' in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
    done = lingraft(*command, "--train")
    assert done.returncode == 0, done.stderr
    kept = (
        tmp_path
        / "runs"
        / "tiny"
        / str(done_cell(read_result(tmp_path / "runs" / "tiny"), "lora").checkpoint)
    )
    expected = load_model(kept).state_dict()
    for name, own in load_model(tmp_path / "out").state_dict().items():
        assert torch.equal(own, expected[name].to(torch.bfloat16).float()), name
    assert not list((tmp_path / "gone").rglob("*.safetensors"))  # `keep` holds for what was made again


def test_an_adapter_names_a_base_that_loads(runs: Path, lingraft: Lingraft, place: Path) -> None:
    done = lingraft("export", "runs/tiny", "out", "--cell", "de / lora", "--adapter")
    assert done.returncode == 0, done.stderr
    out = runs.parent / "out"
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        place / "start"
    )
    merged = runs / "tiny" / str(done_cell(read_result(runs / "tiny"), "lora").checkpoint)
    expected = load_model(merged).state_dict()
    for name, own in load_merged(str(out))[0].state_dict().items():
        torch.testing.assert_close(own, expected[name])
    card = (out / "README.md").read_text()
    assert "library_name: peft" in card
    assert "With transformers, torch and peft" in card
    none = lingraft("export", "runs/tiny", "two", *NAMED, "--adapter")
    assert none.returncode == 2
    assert "there is no adapter of 'de / english_replay': none was kept" in none.stderr
    assert not (runs.parent / "two").exists()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's library itself
def test_it_is_converted_and_uploaded(
    runs: Path, lingraft: Lingraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(
        "import sys, pathlib; '--help' in sys.argv or pathlib.Path(sys.argv[3]).write_text('GGUF')"
    )
    monkeypatch.setenv("LLAMA_CPP", str(script))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        done = lingraft(
            *EXPORT, "--no-evaluate", "--gguf", "q8_0", "--push", "owner/german", "--private", "--json"
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["repository"] == f"{server.address}/owner/german"
        assert found["gguf"] == "out/out-q8_0.gguf"
        files = server.repositories["owner/german"]
        assert {
            "config.json",
            "model.safetensors",
            "README.md",
            "out-q8_0.gguf",
            "lingraft.json",
        } <= files.keys()
        assert b'model="owner/german"' in files["README.md"]
        assert server.private == {"owner/german"}
    assert (runs.parent / "out" / "out-q8_0.gguf").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--cell", "de / nothing"),
            "has no cell 'de / nothing'. Its cells: 'de / english_replay', 'de / lora'.",
        ),
        (("--dtype", "int8"), "--dtype 'int8': take one of bf16, float16, float32"),
        ((*NAMED, "--private"), "--private: belongs to an upload; add --push OWNER/NAME"),
        ((*NAMED, "--push", "name"), "is no id of a repository on the hub; write OWNER/NAME."),
        ((*NAMED, "--gguf", "q9"), "is no type that llama.cpp's converter writes."),
        ((), "no cell can be recommended, since none is shown to have kept English"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(
    runs: Path, lingraft: Lingraft, arguments: tuple[str, ...], said: str
) -> None:
    done = lingraft("export", "runs/tiny", "out", *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert not (runs.parent / "out").exists()
    missing = lingraft("export", "runs/other", "out")
    assert (missing.returncode, "there is no such run folder" in missing.stderr) == (2, True)


def done_cell(result: StudyResult, strategy: str) -> CellResult:
    return next(cell for cell in result.done if cell.strategy == strategy)


def changed(cell: CellResult, task: float, language: float, **more: Any) -> CellResult:
    """Return a cell whose task ability changed by `task`, to a hundredth, and that has some language ability."""

    def difference(value: float) -> Difference:
        answer: Any = "unchanged" if abs(value) < 0.005 else "rose" if value > 0 else "fell"
        return replace(
            cell.difference.task_ability, value=value, low=value - 0.001, high=value + 0.001, answer=answer
        )

    ability = Interval(language, language - 0.1, language + 0.1, 50)
    return replace(
        cell,
        scores=replace(cell.scores, language_ability=ability),
        difference=replace(
            cell.difference, task_ability=difference(task), language_ability=difference(language)
        ),
        **more,
    )


def test_the_most_language_ability_of_those_that_kept_english_is_recommended(place: Path) -> None:
    result = read_result(place / "runs" / "tiny")
    one, two = result.done
    kept, lost = changed(one, 0.0, 0.3), changed(two, -0.1, 0.9)
    chosen = choose_cell(replace(result, cells=(kept, lost)), None)
    assert chosen.label == "de / english_replay"
    assert chosen.reason is not None
    assert "of the 1 of 2 cells that kept English it has the most language ability, 0.300" in chosen.reason
    assert "task ability +0.000 [-0.001, +0.001]: unchanged" in chosen.reason
    # Who may have risen, and is shown to have lost no more than the margin, kept English as well.
    wide = replace(kept.difference.task_ability, low=-0.009, high=0.05, answer="undecided", all_scores=None)
    may_have_risen = replace(kept, difference=replace(kept.difference, task_ability=wide))
    assert choose_cell(replace(result, cells=(may_have_risen, lost)), None).label == "de / english_replay"
    for other in (replace(wide, low=-0.011), replace(wide, answer="fell"), replace(wide, all_scores=1.0)):
        unsure = replace(kept, difference=replace(kept.difference, task_ability=other))
        with pytest.raises(ConfigError, match="none is shown to have kept English"):
            choose_cell(replace(result, cells=(unsure, lost)), None)
    answers: tuple[tuple[CellResult, LimitAnswer], ...] = ((kept, "undecided"), (lost, "held"))
    with_limits = [
        replace(cell, limits={"task_ability": LimitResult(limit=0.2, low=-0.1, high=0.0, answer=answer)})
        for cell, answer in answers
    ]
    chosen = choose_cell(replace(result, cells=tuple(with_limits)), None)
    assert chosen.label == "de / lora"
    assert "limit task_ability 0.2: held" in str(chosen.reason)
    # A limit on something else says nothing of English.
    of_german = {"de": LimitResult(limit=0.2, low=-0.1, high=0.0, answer="held")}
    both = tuple(replace(cell, limits=of_german) for cell in (kept, lost))
    chosen = choose_cell(replace(result, cells=both), None)
    assert chosen.label == "de / english_replay"
    assert "limit de 0.2: held, task ability +0.000" in str(chosen.reason)
    undecided = replace(with_limits[0]), replace(with_limits[0], strategy="lora")
    with pytest.raises(
        ConfigError, match=r"none is shown to have kept English \('de / english_replay': limit task"
    ):
        choose_cell(replace(result, cells=undecided), None)


def test_of_several_seeds_one_is_named_and_cells_without_a_model_say_why(place: Path) -> None:
    result = read_result(place / "runs" / "tiny")
    one = result.done[0]
    seeds = replace(result, cells=(one, replace(one, seed=1)))
    assert [label_of(seeds, cell) for cell in seeds.cells] == [
        "de / english_replay / seed 0",
        "de / english_replay / seed 1",
    ]
    assert choose_cell(seeds, " de /english_replay/ seed 1").cell.seed == 1
    with pytest.raises(
        ConfigError, match=r"has several seeds; name one: 'de / english_replay / seed 0', 'de"
    ):
        choose_cell(seeds, "de / english_replay")
    failed = FailedCell(data="de", strategy="a", seed=0, options={}, reason="no memory")
    pending = PendingCell(data="de", strategy="b", seed=0, options={})
    both = replace(result, cells=(failed, pending))
    with pytest.raises(ConfigError, match="the cell 'de / a' failed, so there is no model: no memory"):
        choose_cell(both, "de / a")
    with pytest.raises(ConfigError, match=r"the cell 'de / b' is not done; run the study on: lingraft run"):
        choose_cell(both, "de / b")
    with pytest.raises(ConfigError, match=r"none is shown to have kept English \(none is done\)"):
        choose_cell(both, None)
