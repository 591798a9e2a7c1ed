"""`lingraft rescue`: what is wrong is said at once; its answer is its exit code, and `--json` prints one object."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from lingraft.models.loading import load_model

Lingraft = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "Missing option '--before'"),
        (("--before", "here"), "Missing option '--after'"),
        (("--max-loss", "1"), "--max-loss 1.0: must be a share from 0 to below 1"),
        (("--max-loss", "-0.1"), "--max-loss -0.1: must be a share from 0 to below 1"),
        (("--after", "no/such/model/here"), "'no/such/model/here': there is no such folder"),
        (("--dtype", "int8"), "--dtype 'int8': take one of bf16, float16, float32"),
        (("--precision", "fp8"), "--precision"),
        (("--rounds", "2", "--n", "20"), "--n, --rounds: belong to a repair; add --train"),
        (("--train", "--learning-rate", "7"), "--learning-rate"),
        (("--train", "--prompts", "absent.txt"), "absent.txt"),
        (("--train", "--answer-tokens", "100000"), "--answer-tokens 100000: leaves no room for a prompt"),
        (("--languages", "e*s"), "--languages 'e*s': is not a BCP-47 tag"),
        (("--languages", "klingon"), "--languages tlh: no task is in tlh"),
        (("--task", "es=worldbook", "--languages", "es"), "none of the tasks is in English"),
        (("--train", "--prompts", "few.txt"), "few.txt: holds 3 prompts; a repair needs at least 16"),
        (("--suite", "absent"), "absent"),
        (("--output", "full"), "full: is not empty, and lingraft did not write it"),
        (("--output", "."), "--output .: would hold runs/rescue/"),
        (("--output", "runs"), "--output runs: would hold runs/rescue/runs as well"),
        (("--after", "{before}"), "is the same model as --before"),
        (("--after", "new={before}"), "is the same model as --before"),
        (("--before", "a={before}", "--after", "a={after}"), "a: is the name of"),
        (("--before", "={before}"), "write NAME=PATH, or the path alone"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(
    lingraft: Lingraft, tiny_model: Path, talkative_model: Path, options: tuple[str, ...], said: str
) -> None:
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    Path("few.txt").write_text("a\nb\nc\n")
    given = [one.format(before=tiny_model, after=talkative_model) for one in options]
    if said.startswith("Missing"):
        base: list[str] = []
    else:
        base = ["--before", str(tiny_model), "--after", str(talkative_model)]
        base += [] if "--task" in options or "--suite" in options else ["--task", "worldbook"]
    done = lingraft("rescue", *base, *given)
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.split())
    assert not Path("runs").exists()
    assert not Path("rescued").exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads it
def test_its_answer_is_its_exit_code_also_where_the_damaged_model_is_an_adapter(
    lingraft: Lingraft, tiny_model: Path
) -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        load_model(tiny_model), LoraConfig(r=1, target_modules=["q_proj"], init_lora_weights=False)
    )
    model.save_pretrained("adapter")
    rows = [{"question": f"{n}?", "choices": ["yes", "no"], "answer": n % 2} for n in range(60)]
    Path("items.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    task = {
        "task": "asked",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    Path("asked.yaml").write_text(yaml.safe_dump(task))
    base = [
        "rescue",
        "--before",
        str(tiny_model),
        "--after",
        "adapter",
        "--task",
        "asked.yaml",
        "--steps",
        "1",
    ]
    done = lingraft(*base, "--groups", "0", "--max-loss", "0.9", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["answer"]) == (0, "held"), done.stderr
    assert (found["command"], found["trained"], found["repair"]) == ("rescue", "adapter", None)
    assert [one["part"] for one in found["given_back"]] == ["embeddings"]
    assert Path("rescued/adapter/model.safetensors").is_file()
    # So few items cannot certify that nothing is lost.
    done = lingraft(*base, "--groups", "0", "--max-loss", "0", "--overwrite")
    assert done.returncode == 3, done.stderr
    assert "English lost" in done.stdout
    assert "What adapter loses, and with a part of it given back from tiny" in " ".join(done.stdout.split())
    shutil.rmtree("rescued")


@pytest.mark.parametrize("command", ["adapt", "rescue"])
def test_commands_that_write_a_model_refuse_a_private_repository_that_nothing_goes_to(
    lingraft: Lingraft, tiny_model: Path, talkative_model: Path, command: str
) -> None:
    Path("rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    given = {
        "adapt": (str(tiny_model), "--data", "rows.jsonl", "--languages", "es,de", "--dtype", "bfloat16"),
        "rescue": ("--before", str(tiny_model), "--after", str(talkative_model), "--language", "es"),
    }[command]
    done = lingraft(command, *given, "--private")
    assert done.returncode == 2
    assert "--private: belongs to an upload; add --push OWNER/NAME" in " ".join(done.stderr.split())
