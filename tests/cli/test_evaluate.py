"""`lingraft evaluate` end to end on tiny models: tables, files, what is missing, two models, an adapter."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lingraft.cli.main import _run
from lingraft.evaluate.predictions import read_predictions
from lingraft.models.generation import TransformersGenerator
from lingraft.stage import given_model

FIELDS = {"value", "low", "high", "n", "wrong_language"}


@pytest.fixture
def evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in a folder of its own; returns the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = _run(["evaluate", *arguments])
        told = capfd.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a LoRA adapter of the tiny model, which changes its answers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter") / "lora"
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        wrapped = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_model),
            LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        )
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.5)
    wrapped.save_pretrained(folder)
    return folder


WORLDBOOK = ("--task", "worldbook:lookup", "--languages", "de", "--limit", "3")


def test_one_model_gives_a_table_a_record_and_its_predictions(
    evaluate: Callable[..., tuple[int, str, str]], tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, out, _ = evaluate(str(tiny_model), *WORLDBOOK)
    assert code == 0
    assert "already-initialized model" not in caplog.text  # what the harness says of our way to use it
    assert "95 % interval" in out
    lines = [line.split() for line in out.splitlines() if "worldbook:lookup" in line]
    assert [line[:3] for line in lines] == [["worldbook:lookup", "en", "3"], ["worldbook:lookup", "de", "3"]]
    folder = Path("runs/evaluate/tiny-quick")
    assert f"To read answers: lingraft show predictions {folder}" in out
    record = json.loads((folder / "record.json").read_text())
    assert record["inputs"]["model"] == str(tiny_model)
    assert len(record["inputs"]["model_identity"]["weights"]) == 64
    for name in ("worldbook:lookup/en", "worldbook:lookup/de"):
        assert set(record["result"]["scores"]["tasks"][name]) >= FIELDS
        assert {"template", "prompts", "data", "version"} <= set(record["result"]["tasks"][name])
    assert record["result"]["seeds"]["bootstrap"] == 0
    assert len(read_predictions(folder / "predictions.parquet")) == 6


def test_a_study_and_the_command_give_an_evaluation_one_fingerprint_and_share_its_answers(
    evaluate: Callable[..., tuple[int, str, str]], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, error = evaluate(str(tiny_model), *WORLDBOOK, "--output", "alone")
    assert code == 0, error
    (alone,) = Path("alone/stages").iterdir()
    tasks = [{"task": "worldbook:lookup", "limit": 3}]
    german = {"source": "worldbook:lookup/de", "limit": 8}
    study = {
        "name": "mine",
        "phases": [
            {"name": "one", "checkpoint": str(tiny_model)},
            {"name": "two", "data": {"german": german}, "strategies": ["plain"]},
        ],
        "held_out": 0,
        "measures": [],
        "contamination": None,
        "evaluate": {"task_ability": tasks, "language_ability": tasks},
    }
    Path("study.yaml").write_text(json.dumps(study))
    assert _run(["run", "study.yaml", "--json"]) == 0
    made = {stage.name for stage in Path("runs/mine/stages").iterdir()}
    assert alone.name in made
    (checkpoint,) = Path("runs/mine/stages").glob("train-*/checkpoint")
    code, _, error = evaluate(str(checkpoint), *WORLDBOOK, "--output", "trained")
    assert code == 0, error
    assert {stage.name for stage in Path("trained/stages").iterdir()} < made
    (checkpoint / "generation_config.json").write_text("{}")  # no longer what the study made
    assert set(given_model(str(checkpoint)).identity) == {"weights"}

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("the model is loaded although the store has its evaluation")

    monkeypatch.setattr("lingraft.models.engine.ModelFiles.load", loaded)
    code, out, error = evaluate(
        str(tiny_model), *WORLDBOOK, "--output", "alone", "--json"
    )  # the store answers
    assert code == 0, error
    assert json.loads(out)["models"][str(tiny_model)]["scores"]["tasks"]["worldbook:lookup/de"]["n"] == 3
    made_by_study = Path("runs/mine/stages") / alone.name / "predictions.parquet"
    assert read_predictions(made_by_study) == read_predictions(Path("alone/predictions.parquet"))


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "float32")])
def test_the_record_and_the_object_say_what_auto_was_resolved_to(
    evaluate: Callable[..., tuple[int, str, str]],
    tiny_model: Path,
    processor: Callable[[bool], None],
    has_bf16: bool,
    expected: str,
) -> None:
    processor(has_bf16)
    code, out, error = evaluate(str(tiny_model), *WORLDBOOK, "--output", "here", "--json")
    assert code == 0, error
    record = json.loads(Path("here/record.json").read_text())
    assert json.loads(out)["precision"] == record["inputs"]["precision"] == expected
    assert f"Computed in {expected}." in evaluate(str(tiny_model), *WORLDBOOK, "--output", "here")[1]
    assert evaluate(str(tiny_model), *WORLDBOOK, "--output", "here", "--precision", expected)[0] == 0
    processor(not has_bf16)  # on another machine it is another evaluation
    code, _, error = evaluate(str(tiny_model), *WORLDBOOK, "--output", "here")
    assert (code, f"was made with precision '{expected}'" in " ".join(error.split())) == (2, True)


def test_results_of_something_else_are_not_written_over(
    evaluate: Callable[..., tuple[int, str, str]], tiny_model: Path
) -> None:
    assert evaluate(str(tiny_model), *WORLDBOOK, "--output", "here")[0] == 0
    before = Path("here/record.json").read_bytes()
    code, _, error = evaluate(str(tiny_model), *WORLDBOOK, "--no-chat", "--output", "here")
    assert code == 2
    assert "here: was made with chat True, not False" in error
    assert evaluate(str(tiny_model), *WORLDBOOK, "--output", "here")[0] == 0
    assert Path("here/record.json").read_bytes() == before


def test_the_run_folder_of_a_study_takes_no_results_of_an_evaluation(
    evaluate: Callable[..., tuple[int, str, str]], tiny_model: Path
) -> None:
    Path("run").mkdir()
    Path("run/study.yaml").write_text("name: run\n")
    code, _, error = evaluate(str(tiny_model), *WORLDBOOK, "--output", "run")
    assert (code, "run: is the run folder of a study" in error) == (2, True)
    assert [path.name for path in Path("run").iterdir()] == ["study.yaml"]


def test_a_killed_evaluation_goes_on_from_its_answers(
    evaluate: Callable[..., tuple[int, str, str]], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (str(tiny_model), "--task", "worldbook:lookup", "--limit", "24", "--batch-size", "4")
    starts = [sys.executable, "-c", "from lingraft.cli.main import main; main()", "evaluate"]
    process = subprocess.Popen([*starts, *asked, "--output", "killed"], stderr=subprocess.DEVNULL)
    kept = 0
    while kept < 8 and process.poll() is None:
        logs = list(Path("killed/cache").glob("answers-*.jsonl"))
        kept = len(logs[0].read_bytes().splitlines()) if logs else 0
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not Path("killed/record.json").exists()

    batches = []
    inner = TransformersGenerator.continue_batch

    def counted(self: TransformersGenerator, prompts: Any, *settings: Any) -> Any:
        batches.append(len(prompts))
        return inner(self, prompts, *settings)

    monkeypatch.setattr(TransformersGenerator, "continue_batch", counted)
    assert evaluate(*asked, "--output", "killed")[0] == 0
    assert 0 < sum(batches) <= 24 - 8
    assert not list(Path("killed").rglob("answers-*.jsonl"))
    assert evaluate(*asked, "--output", "undisturbed")[0] == 0
    killed, undisturbed = (
        read_predictions(Path(one) / "predictions.parquet") for one in ("killed", "undisturbed")
    )
    assert killed == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_two_processes_end_with_the_command_and_leave_their_answers(
    evaluate: Callable[..., tuple[int, str, str]], tiny_model: Path, number: signal.Signals
) -> None:
    asked = (str(tiny_model), "--task", "worldbook:lookup", "--limit", "60", "--batch-size", "2")
    starts = [sys.executable, "-c", "from lingraft.cli.main import main; main()", "evaluate"]
    command = [*starts, *asked, "--processes", "2", "--output", "stopped"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        kept = 0
        while kept < 8 and process.poll() is None:
            logs = list(Path("stopped/cache").glob("answers-*.jsonl"))
            kept = len(logs[0].read_bytes().splitlines()) if logs else 0
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children()
        process.send_signal(number)
        _, told = process.communicate()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert "the answers so far are kept" in told
        return
    assert evaluate(*asked, "--output", "stopped")[0] == 0  # one process goes on from the answers of two
    assert evaluate(*asked, "--output", "undisturbed")[0] == 0
    stopped, undisturbed = (
        Path(one, "predictions.parquet").read_bytes() for one in ("stopped", "undisturbed")
    )
    assert stopped == undisturbed


def test_a_model_that_was_finished_before_the_interruption_answers_nothing_again(
    evaluate: Callable[..., tuple[int, str, str]],
    tiny_model: Path,
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = (str(tiny_model), str(adapter), *WORLDBOOK, "--output", "both")
    answered = []
    inner = TransformersGenerator.continue_batch

    def counted(self: TransformersGenerator, prompts: Any, *settings: Any) -> Any:
        answered.append(len(prompts))
        if sum(answered) > 6 and stops:
            raise KeyboardInterrupt
        return inner(self, prompts, *settings)

    monkeypatch.setattr(TransformersGenerator, "continue_batch", counted)
    stops = True
    assert evaluate(*asked)[0] == 130
    assert Path("both/tiny/record.json").exists()
    answered.clear()
    stops = False
    assert evaluate(*asked)[0] == 0
    assert sum(answered) == 6  # the second model's
    assert not list(Path("both").rglob("answers-*.jsonl"))


def test_two_models_are_compared_on_the_same_items_and_an_adapter_is_one(
    evaluate: Callable[..., tuple[int, str, str]],
    tiny_model: Path,
    adapter: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    code, out, error = evaluate(str(tiny_model), str(adapter), *WORLDBOOK, "--output", "both", "--json")
    assert code == 0, error
    found = json.loads(out)
    for name, difference in found["differences"].items():
        before, after = (
            found["models"][str(one)]["scores"]["tasks"][name]["value"] for one in (tiny_model, adapter)
        )
        assert difference["value"] == pytest.approx(after - before)
        assert difference["n"] == 3
    plain, adapted = (
        read_predictions(Path("both") / one / "predictions.parquet") for one in ("tiny", "lora")
    )
    assert [one.prompt for one in plain] == [one.prompt for one in adapted]
    assert [one.response for one in plain] != [one.response for one in adapted]
    record = json.loads(Path("both/record.json").read_text())
    assert record["result"]["differences"] == found["differences"]
    capfd.readouterr()
    assert _run(["show", "predictions", "both", "--json", "--worst", "6"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown["model"], shown["before"]) == (str(adapter), str(tiny_model))
    said = {(one.language, one.item): one.response for one in adapted}
    assert {(one["language"], one["item"]): one["response"] for one in shown["items"]} == said
    falls = [one["score"] - one["before"]["score"] for one in shown["items"]]
    assert falls == sorted(falls)
    turned = ["--cell", str(tiny_model), "--worst", "1", "--json"]
    assert _run(["show", "predictions", "both", *turned]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown["model"], shown["before"]) == (str(tiny_model), str(adapter))


def test_a_merged_adapter_computes_what_peft_computes(tiny_model: Path, adapter: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from lingraft.models.adapters import load_merged

    merged: Any = load_merged(str(adapter))[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter).eval()
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, wrapped(ids).logits, atol=1e-5)
        assert not torch.allclose(merged(ids).logits, wrapped.unload()(ids).logits, atol=1e-2)


def test_a_task_without_data_is_named_with_where_they_were_looked_for_and_the_rest_runs(
    evaluate: Callable[..., tuple[int, str, str]], tiny_model: Path
) -> None:
    Path("data").mkdir()
    only = ("--task", "worldbook:lookup", "--task", "th=belebele", "--task", "de=xcopa")
    code, out, error = evaluate(str(tiny_model), *only, "--data-dir", "data", "--limit", "1", "--json")
    assert code == 3  # it was asked for by its name
    result = json.loads(out)["models"][str(tiny_model)]
    assert list(result["scores"]["tasks"]) == ["worldbook:lookup/en"]
    assert list(result["not_run"]) == ["belebele/th"]
    (line,) = {one for one in error.splitlines() if "not run" in one}
    copy = Path("data/belebele/th.jsonl")
    assert line.startswith("! belebele/th: not run: ")
    assert line.endswith(f"Its data: {copy}, or facebook/belebele on the hub.")
    assert "xcopa/de: xcopa has no de" in error


@pytest.mark.slow
def test_the_exit_code_says_whether_an_ability_fell(
    evaluate: Callable[..., tuple[int, str, str]], tiny_model: Path, talkative_model: Path
) -> None:
    Path("data/xcopa").mkdir(parents=True)
    rows = [
        {
            "premise": f"It rained {n} days.",
            "choice1": str(1000 + 37 * n),
            "choice2": str(9999 - 53 * n),
            "question": "cause",
            "idx": n,
        }
        for n in range(40)
    ]

    def write(labels: list[int]) -> None:
        lines = [json.dumps(row | {"label": label}) for row, label in zip(rows, labels, strict=True)]
        Path("data/xcopa/th.jsonl").write_text("\n".join(lines) + "\n")

    asked = ("--suite", "reading", "--task", "th=xcopa", "--data-dir", "data")
    write([0] * 40)
    assert evaluate(str(tiny_model), *asked, "--output", "alone")[0] == 0
    chosen = {
        one.prompt.partition("rained ")[2].partition(" ")[0]: one.score
        for one in read_predictions(Path("alone/predictions.parquet"))
    }
    write([1 - int(chosen[str(n)]) for n in range(40)])  # as the tiny model chooses: it scores 1
    better, worse = str(tiny_model), str(talkative_model)

    code, out, error = evaluate(better, worse, *asked, "--fail-below", "-0.01", "--output", "fell")
    assert code == 1, out + error
    assert "Language ability: broken: it fell below -0.01; the 95 % interval of the difference is [-" in out
    code, out, _ = evaluate(
        worse, better, *asked, "--fail-below", "-0.01", "--output", "rose", "--json", "--task", "worldbook:lookup",
        "--limit", "40", "--max-new-tokens", "1",
    )  # fmt: skip
    found = json.loads(out)
    assert found["limits"]["language_ability"]["answer"] == "held"
    assert found["limits"]["task_ability"]["answer"] == "undecided"  # both answer nothing right
    assert code == 3
    assert found["language_ability"]["low"] > 0
    assert found["per_language"] == {"th": found["language_ability"]}
    assert found["limits"]["language_ability"]["high"] == found["language_ability"]["high"]
    assert evaluate(worse, better, *asked, "--fail-below", "-0.01", "--output", "held")[0] == 0
    code, out, _ = evaluate(better, worse, *asked, "--fail-below", "-0.4", "--output", "unsure")
    assert (code, "Language ability: undecided whether it fell below -0.4" in out) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--fail-below", "0.01"), "To allow a loss of 0.01: --fail-below -0.01."),
        (("--fail-below", "-3"), "--fail-below -3: is the lowest difference that is accepted, from -1 to 0."),
        (("--fail-below", "nan"), "--fail-below nan: is the lowest difference"),
        (("--fail-below", "-0.01"), "--fail-below: needs two models"),
    ],
)
def test_a_difference_to_fail_below_is_refused_before_anything_is_loaded(
    evaluate: Callable[..., tuple[int, str, str]], tiny_model: Path, arguments: tuple[str, ...], said: str
) -> None:
    code, _, error = evaluate(str(tiny_model), *arguments)
    assert code == 2
    assert said in error


def test_what_does_not_fit_into_one_of_two_models_is_told_by_its_name_and_not_compared(
    evaluate: Callable[..., tuple[int, str, str]], tiny_model: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    shutil.copytree(tiny_model, small)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 60}))
    row = {"premise": "a.", "choice1": "b", "choice2": "c", "question": "cause", "label": 0, "idx": 0}
    Path("data/xcopa").mkdir(parents=True)
    Path("data/xcopa/th.jsonl").write_text(json.dumps(row | {"premise": "Say a. " * 90}) + "\n")
    only = ("--suite", "reading", "--task", "th=xcopa", "--task", "worldbook:lookup", "--data-dir", "data")
    code, out, error = evaluate(
        str(tiny_model), str(small), *only, "--limit", "2", "--max-new-tokens", "60", "--output", "both"
    )
    assert code == 3, error
    (line,) = [one for one in error.splitlines() if "not run" in one]
    assert line.startswith(f"! {small}: worldbook:lookup/en: not run: its answers may have 60 tokens")
    assert f"! {small}: xcopa/th: 1 prompts are longer than the model can read" in error
    assert "worldbook:lookup/en: was asked of one of the two models only, and is not compared." in out
    result = json.loads(Path("both/record.json").read_text())["result"]
    assert list(result["differences"]) == ["xcopa/th"]
    assert list(json.loads(Path("both/tiny/record.json").read_text())["result"]["scores"]["tasks"]) == [
        "worldbook:lookup/en",
        "xcopa/th",
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--suite", "papr"), "'papr' is not a suite. Did you mean 'paper'"),
        (("--task", "ifevl"), "ifevl: is no task of lingraft's own and no harness task. Did you mean ifeval"),
        (("--task", "absent.yaml"), "absent.yaml: there is no such file"),
        (("--languages", "de,german!"), "'german!'"),
        (("--data-dir", "absent"), "--data-dir absent: there is no such folder"),
        (("--precision", "int4"), "--precision 'int4'"),
        (("--backend", "tgi"), "--backend 'tgi'"),
        (("--task", "th=belebele"), "none of the tasks can be run here. belebele/th: not run: "),
        (("--languages", "xx"), "--languages xx: no task is in xx (of worldbook, instructions)"),
    ],
)
def test_wrong_input_has_exit_code_two(
    evaluate: Callable[..., tuple[int, str, str]], tiny_model: Path, arguments: tuple[str, ...], told: str
) -> None:
    code, out, error = evaluate(str(tiny_model), *arguments)
    assert (code, out) == (2, "")
    assert told in " ".join(error.split())


@pytest.mark.slow
def test_a_server_is_started_for_a_model_and_says_what_transformers_says(
    evaluate: Callable[..., tuple[int, str, str]],
    tiny_model: Path,
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    code = "import sys, transformers.cli.serve as own; own.Serve(sys.argv[1], port=int(sys.argv[2]), device='cpu')"
    command = f"{sys.executable} -c {shlex.quote(code)} {{model}} {{port}}"
    server = (
        "--backend",
        f"command={command}",
        "--backend",
        "version=transformers serve",
        "--backend",
        "at_once=2",
    )
    refused, _, error = evaluate(str(adapter), *WORLDBOOK, *server)
    assert (refused, "lora is an adapter, and a server reads whole models" in " ".join(error.split())) == (
        2,
        True,
    )
    told = []
    for output, backend in (("here", server), ("there", ())):
        options = ("--precision", "float32", "--limit", "2", "--max-new-tokens", "6", "--output", output)
        done, _, error = evaluate(str(tiny_model), *WORLDBOOK, *backend, *options)
        assert done == 0, error
        told.append([one.response for one in read_predictions(Path(output, "predictions.parquet"))])
    assert told[0] == told[1]
    record = json.loads(Path("here/record.json").read_text())
    assert record["inputs"]["backend"] == f"transformers serve; {command}"
    engine = json.loads(Path("here/manifest.json").read_text())["evaluation"]["engine"]
    assert engine == f"transformers serve; {command}"


@pytest.mark.parametrize(
    ("suite", "languages", "expected"),
    [
        (
            "reading",
            "en,th,vi,id,de,es,fr",
            "belebele/en belebele/th belebele/vi mgsm/en mgsm/de mgsm/es mgsm/fr xcopa/th xcopa/id",
        ),
        pytest.param(
            "paper",
            "vi,de,es",
            "ifeval/en hellaswag/en xquad/de xquad/es xlsum/vi",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "paper",
            "en,id,th,vi",
            "global_mmlu/en global_mmlu/id global_mmlu/vi xquad/en xlsum/id xlsum/th",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_lies_in_the_data_folder_runs(
    suite: str,
    languages: str,
    expected: str,
    evaluate: Callable[..., tuple[int, str, str]],
    tiny_model: Path,
    shared_data: Path,
) -> None:
    wanted = set(expected.split())
    tasks = {one.partition("/")[0] for one in wanted}
    only = [argument for task in sorted(tasks) for argument in ("--task", task)]
    code, out, error = evaluate(
        str(tiny_model), "--suite", suite, "--languages", languages, *only, "--data-dir", str(shared_data),
        "--limit", "1", "--json",
    )  # fmt: skip
    assert code == 0, error
    scores = json.loads(out)["models"][str(tiny_model)]["scores"]["tasks"]
    assert wanted <= set(scores)
    assert all(0 <= scores[name]["low"] <= scores[name]["high"] <= 1 for name in wanted)
