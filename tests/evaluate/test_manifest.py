"""What an evaluation's fingerprint depends on, and which scores are paired: what was asked, not how it was written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nltk
import pytest
import yaml
from nltk.tokenize.punkt import PunktTrainer, save_punkt_params
from transformers import AutoTokenizer

from lingraft.config.schema import Evaluation, JudgeChoice
from lingraft.data.worldbook import load_items
from lingraft.evaluate import manifest as manifest_module
from lingraft.evaluate.common_items import common_items, unpaired_sentence
from lingraft.evaluate.lm_eval_compat import ifeval_verifiers
from lingraft.evaluate.manifest import Manifest, chat_identity, manifest_of
from lingraft.evaluate.predictions import Prediction
from lingraft.evaluate.selection import resolve_suites
from lingraft.evaluate.task_records import EvaluationSettings, ScoreSettings, TaskRecord, TaskSettings
from lingraft.evaluate.task_runs import runs_of

WORLDBOOK = {"task": "worldbook:lookup", "limit": 3, "max_new_tokens": 4}
NEEDY = {
    "key": 1,
    "prompt": "Say something in at least three sentences.",
    "instruction_id_list": ["length_constraints:number_sentences"],
    "kwargs": [{"num_sentences": 3, "relation": "at least"}],
}
FREE = {"key": 2, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
LOWER = {
    "key": 3,
    "prompt": "lower.",
    "instruction_id_list": ["change_case:english_lowercase"],
    "kwargs": [{}],
}


@pytest.fixture
def data_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NLTK looks for its data in this empty folder alone."""
    folder = tmp_path / "nltk_data"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(nltk.data, "path", [str(folder)])
    monkeypatch.setattr(nltk, "download", lambda *_, **__: False)
    forget_punkt()
    return folder


def forget_punkt() -> None:
    nltk.tokenize._get_punkt_tokenizer.cache_clear()
    ifeval_verifiers().instructions_registry.instructions.instructions_util._get_sentence_tokenizer.cache_clear()


def install_punkt(data_path: Path) -> None:
    trainer = PunktTrainer()
    trainer.train("\n".join(item.example.answer for item in load_items("lookup", "en", "train")[:100]))
    folder = data_path / "tokenizers" / "punkt_tab" / "english"
    folder.parent.mkdir(parents=True)
    save_punkt_params(trainer.get_params(), dir=str(folder))
    forget_punkt()


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def evaluation(*task_ability: Any, **options: Any) -> Evaluation:
    return Evaluation.model_validate(
        {"task_ability": task_ability, "language_ability": [WORLDBOOK], **options}
    )


def resolve(
    written: Evaluation, folder: Path = Path(), *, trust_remote_code: bool = False, **changes: Any
) -> Manifest:
    found = resolve_suites(written, folder, languages=["de"])
    options = {"precision": "bf16", "chat": "template"} | changes
    runs = runs_of(found, ["de"], folder, trust_remote_code=trust_remote_code)
    return manifest_of(runs, found, **options)


LOCAL = {"task": "mine.yaml"}


def write_task(folder: Path, **changes: Any) -> None:
    """Write a YAML task of the user's over three rows."""
    write_rows(folder / "rows.jsonl", *({"q": f"what is {i}", "a": str(i)} for i in range(3)))
    content = {
        "task": "mine",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "exact_match"}],
        **changes,
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))


def test_few_shot_examples_and_prompts_are_part_of_it(tmp_path: Path) -> None:
    found = []
    for changes in (
        {},
        {"num_fewshot": 1},
        {"num_fewshot": 2},
        {"doc_to_text": "{{q}}?"},
        {"description": "Hear:"},
    ):
        write_task(tmp_path, fewshot_split="test", **changes)
        found.append(resolve(evaluation(LOCAL), tmp_path).fingerprint)
    assert len(set(found)) == len(found)


def steps(pattern: str) -> list[dict[str, Any]]:
    """Return the filter of a task that scores what a pattern finds."""
    found = {"function": "regex", "regex_pattern": pattern}
    return [{"name": "number", "filter": [found, {"function": "take_first"}]}]


ONE_SHOT = {"num_fewshot": 1, "fewshot_split": "test"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"filter_list": steps("(.)")}, {"filter_list": steps("(..)")}),
        ({}, {"gen_prefix": "It is"}),
        ({"gen_prefix": "It is"}, {"gen_prefix": "Answer:"}),
        ({}, {"repeats": 3}),
        (
            {"metric_list": [{"metric": "exact_match", "ignore_case": True}]},
            {"metric_list": [{"metric": "exact_match"}]},
        ),
        (ONE_SHOT, {**ONE_SHOT, "fewshot_config": {"fewshot_delimiter": "#"}}),
        (ONE_SHOT, {**ONE_SHOT, "fewshot_config": {"target_delimiter": "#"}}),
        ({"generation_kwargs": {"do_sample": True, "temperature": 0.5}}, {"generation_kwargs": {}}),
    ],
)
def test_all_of_a_users_task_that_decides_prompts_and_scores_is_part_of_it(
    first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    found = []
    for changes in (first, second, first):
        write_task(tmp_path, **changes)
        found.append(resolve(evaluation(LOCAL), tmp_path).fingerprint)
    assert found[0] == found[2] != found[1]


def test_fields_that_only_a_description_or_prefix_reads_are_part_of_an_item(tmp_path: Path) -> None:
    for field in ("description", "gen_prefix"):
        write_task(tmp_path, **{field: "{{a}}!"}, doc_to_target="{{q}}")
        before = resolve(evaluation(LOCAL), tmp_path).asked
        write_rows(tmp_path / "rows.jsonl", *({"q": f"what is {i}", "a": "7"} for i in range(3)))
        after = resolve(evaluation(LOCAL), tmp_path).asked
        (key,) = [key for key in before if "mine" in key]
        assert not set(before[key].values()) & set(after[key].values())


def test_examples_that_are_drawn_item_after_item_tie_an_item_to_its_place(tmp_path: Path) -> None:
    write_task(tmp_path, **ONE_SHOT)
    all_three = resolve(evaluation(LOCAL), tmp_path).asked
    first_two = resolve(evaluation({**LOCAL, "limit": 2}), tmp_path).asked
    drawn = resolve(evaluation({**LOCAL, "limit": 2, "sample": 1}), tmp_path).asked
    (key,) = [key for key in all_three if "mine" in key]
    assert first_two[key].items() < all_three[key].items()
    assert list(drawn[key]) == ["mine/0", "mine/2"]  # the second of two, and the third of three
    assert drawn[key]["mine/0"] == all_three[key]["mine/0"]
    assert drawn[key]["mine/2"] != all_three[key]["mine/2"]


def test_a_default_of_generation_written_out_changes_nothing(tmp_path: Path) -> None:
    found = set()
    for settings in (
        {},
        {"do_sample": False},
        {"do_sample": False, "temperature": 0.0},
        {"max_gen_toks": 256},
    ):
        write_task(tmp_path, generation_kwargs={"until": ["\n"], **settings})
        found.add(resolve(evaluation(LOCAL), tmp_path).fingerprint)
    assert len(found) == 1


@pytest.fixture
def ifeval(tmp_path: Path) -> Evaluation:
    write_rows(tmp_path / "ifeval.jsonl", NEEDY, FREE, LOWER)
    return evaluation({"task": "ifeval", "data": "ifeval.jsonl", "max_new_tokens": 4})


def test_installing_sentence_data_changes_ifeval_and_nothing_else(
    ifeval: Evaluation, data_path: Path, tmp_path: Path
) -> None:
    before = [resolve(one, tmp_path) for one in (ifeval, evaluation(WORLDBOOK), evaluation("suite:quick"))]
    install_punkt(data_path)
    after = [resolve(one, tmp_path) for one in (ifeval, evaluation(WORLDBOOK), evaluation("suite:quick"))]
    assert [one.fingerprint != other.fingerprint for one, other in zip(before, after, strict=True)] == [
        True,
        False,
        False,
    ]
    assert (before[0].punkt, after[0].punkt is None) == (None, False)
    (key,) = [key for key in before[0].asked if "ifeval" in key]
    assert (
        before[0].asked[key].items() < after[0].asked[key].items()
    )  # the items that there were are asked alike


def test_other_sentence_data_change_the_items_that_need_them(
    ifeval: Evaluation, data_path: Path, tmp_path: Path
) -> None:
    install_punkt(data_path)
    before = resolve(ifeval, tmp_path)
    (data_path / "tokenizers/punkt_tab/english/abbrev_types.txt").write_text("xyz\n")
    manifest_module._hash_of_folder.cache_clear()
    after = resolve(ifeval, tmp_path)
    (key,) = [key for key in before.asked if "ifeval" in key]
    assert {item for item in before.asked[key] if before.asked[key][item] != after.asked[key][item]} == {
        "ifeval/0"
    }


def test_another_langdetect_changes_the_items_that_ask_it(
    ifeval: Evaluation, data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, plain = resolve(ifeval, tmp_path), resolve(evaluation(WORLDBOOK), tmp_path)
    found = manifest_module.installed
    for other in ("9.9", None):
        monkeypatch.setattr(
            manifest_module,
            "installed",
            lambda name, other=other: other if name == "langdetect" else found(name),
        )
        after = resolve(ifeval, tmp_path)
        (key,) = [key for key in before.asked if "ifeval" in key]
        changed = {item for item in before.asked[key] if before.asked[key][item] != after.asked[key][item]}
        assert changed == {"ifeval/2"}
        assert after.fingerprint != before.fingerprint
        assert resolve(evaluation(WORLDBOOK), tmp_path).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("written", "same"),
    [
        (["worldbook"], [{"task": "worldbook", "limit": 100}]),
        (["worldbook"], ["worldbook:counting", "worldbook:lookup"]),
        (["suite:quick"], ["worldbook", "instructions"]),
        (["instructions"], [{"task": "instructions", "limit": 300, "max_new_tokens": 160}]),
        (["instructions"], [{"task": "instructions", "language": "eng"}]),
        ([LOCAL], [{**LOCAL, "max_new_tokens": 256}]),  # the harness's limit where a task names none
        (["instructions"], [{"task": "instructions", "metric": "prompt_level_strict_acc"}]),
    ],
)
def test_how_an_evaluation_is_written_does_not_change_it(
    written: list[Any], same: list[Any], tmp_path: Path
) -> None:
    write_task(tmp_path, doc_to_text="{{q}}")
    if written == ["suite:quick"]:
        names = resolve_suites(evaluation(*written), tmp_path, languages=["de"]).task_ability
        same = [{"task": one.task, "limit": one.limit, "sample": one.sample} for one in names]
        same.reverse()
    assert (
        resolve(evaluation(*written), tmp_path).fingerprint
        == resolve(evaluation(*same), tmp_path).fingerprint
    )


def test_what_changes_no_score_changes_no_fingerprint() -> None:
    judge = JudgeChoice(url="http://localhost/v1", model="judge")
    first = resolve(evaluation(WORLDBOOK, judge=judge)).fingerprint
    dear = judge.model_copy(update={"price_in": 1.0, "price_out": 1.0, "budget": 3.0, "at_once": 9})
    for options in (
        {"judge": dear},
        {"batch_size": 2},
        {"tokens_per_batch": 64},
        {"apply_chat_template": True},
        {"backend": "transformers"},
        {"repeats": 1},
    ):
        assert resolve(evaluation(WORLDBOOK, **{"judge": judge, **options})).fingerprint == first


def test_another_path_to_the_same_data_is_the_same_evaluation(ifeval: Evaluation, tmp_path: Path) -> None:
    first = resolve(ifeval, tmp_path)
    write_rows(tmp_path / "elsewhere" / "renamed.jsonl", NEEDY, FREE, LOWER)
    moved = evaluation({"task": "ifeval", "data": "elsewhere/renamed.jsonl", "max_new_tokens": 4})
    assert resolve(moved, tmp_path).fingerprint == first.fingerprint
    write_rows(tmp_path / "elsewhere" / "renamed.jsonl", FREE, {**LOWER, "prompt": "other"})
    assert resolve(moved, tmp_path).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"max_new_tokens": 5},
        {"metric": "inst_level_strict_acc"},
        {"limit": 2},
        {"cluster": "'all'"},
    ],
)
def test_what_changes_scores_or_their_intervals_changes_the_fingerprint(
    changes: dict[str, Any], ifeval: Evaluation, tmp_path: Path
) -> None:
    (task,) = ifeval.task_ability
    other = ifeval.model_copy(update={"task_ability": (task.model_copy(update=changes),)})
    assert resolve(other, tmp_path).fingerprint != resolve(ifeval, tmp_path).fingerprint


@pytest.mark.parametrize("changes", [{"precision": "float32"}, {"chat": "another"}, {"held_out": ["x"]}])
def test_what_holds_for_all_tasks_is_part_of_it(changes: dict[str, Any]) -> None:
    assert resolve(evaluation(WORLDBOOK), **changes).fingerprint != resolve(evaluation(WORLDBOOK)).fingerprint


def test_another_harness_is_another_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve(evaluation(WORLDBOOK))
    found = manifest_module.installed
    monkeypatch.setattr(
        manifest_module, "installed", lambda name: "9.9" if name == "lm_eval" else found(name)
    )
    after = resolve(evaluation(WORLDBOOK))
    assert after.fingerprint != first.fingerprint
    assert not {one for own in first.asked.values() for one in own.values()} & {
        one for own in after.asked.values() for one in own.values()
    }


def test_a_chat_template_is_known_by_its_text(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with_template, without = Evaluation(), Evaluation(apply_chat_template=False)
    first = chat_identity(tokenizer, with_template)
    plain = chat_identity(tokenizer, without)
    tokenizer.chat_template = tokenizer.chat_template.replace("\\n", " ")
    assert chat_identity(tokenizer, with_template) != first
    assert chat_identity(tokenizer, without) == plain != first


def test_a_users_scoring_code_is_part_of_it(tmp_path: Path) -> None:
    write_task(tmp_path, process_results="SCORE")
    text = (tmp_path / "mine.yaml").read_text().replace("SCORE", "!function code.score")
    (tmp_path / "mine.yaml").write_text(text)
    found = []
    for threshold in (1, 1, 2):
        code = f"def helper():\n    return {threshold}\n\n\ndef score(doc, results):\n    return {{'acc': helper()}}\n"
        (tmp_path / "code.py").write_text(code)
        found.append(resolve(evaluation({"task": "mine.yaml"}), tmp_path, trust_remote_code=True).fingerprint)
    assert found[0] == found[1] != found[2]


def prediction(item: str, asked: str, task: str = "t", score: float = 1.0) -> Prediction:
    return Prediction("task_ability", task, "en", f"c{item}", item, score, "?", "!", "", asked=asked)


def asked_by(how: EvaluationSettings, **metrics: str) -> dict[str, TaskRecord]:
    """Return the record of the task t, whose parts have these metrics."""
    parts = {
        part: TaskSettings("1", metric, "none", "generate_until", "", "", "", "", "")
        for part, metric in metrics.items()
    }
    return {"t/en": TaskRecord("1", "m", "none", 1, "", "", (), None, ScoreSettings(how, parts))}


HOW = EvaluationSettings("e 1", "1", "bf16", "x")


def test_items_are_found_again_by_what_was_asked_and_the_rest_is_counted() -> None:
    first = [prediction("t/0", "a"), prediction("t/1", "b"), prediction("t/2", "c")]
    second = [prediction("t/0", "x"), prediction("t/1", "a"), prediction("t/2", "b", score=0.0)]
    found = common_items([first, second], [asked_by(HOW, t="m")] * 2)
    assert [[(one.item, one.cluster, one.score) for one in own] for own in found.models] == [
        [("t/0", "ct/0", 1.0), ("t/1", "ct/1", 1.0)],
        [("t/0", "ct/0", 1.0), ("t/1", "ct/1", 0.0)],
    ]
    assert found.unpaired == {"t/en": 2}
    assert found.refused == {}
    assert "2 items were asked alike of some of the models only" in unpaired_sentence("t/en", 2, judged=False)


def test_no_part_of_a_group_is_compared_where_another_part_is_refused() -> None:
    own = [[prediction("t/0", "a"), prediction("u/0", other)] for other in ("b", "c")]
    tasks = [asked_by(HOW, t="m", u=metric) for metric in ("m", "n")]
    found = common_items(own, tasks)
    assert found.models == ((), ())
    assert list(found.refused) == ["t/en"]


def test_items_that_ask_the_same_are_paired_one_by_one() -> None:
    twice = [prediction("t/0", "a"), prediction("t/1", "a")]
    found = common_items([twice, [prediction("t/5", "a")]], [asked_by(HOW)] * 2)
    assert [[one.item for one in own] for own in found.models] == [["t/0"], ["t/0"]]
    assert found.unpaired == {"t/en": 1}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"chat_template": "y"}, r"other chat template.*--no-chat"),
        ({"precision": "float32"}, r"other precision.*give both the same"),
        ({"harness": "2"}, r"other harness.*same version of lm_eval"),
    ],
)
def test_scores_of_other_prompts_or_settings_are_refused_with_what_to_do(
    changed: dict[str, str], told: str
) -> None:
    import re

    found = common_items(
        [[prediction("t/0", "a")], [prediction("t/0", "b")]],
        [asked_by(HOW), asked_by(replace(HOW, **changed))],
    )
    assert found.models == ((), ())
    assert found.unpaired == {}
    assert re.search(told, found.refused["t/en"])


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    from lingraft.cli.main import _run

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = _run(list(arguments))
        told = capfd.readouterr()
        return code, told.out, told.err

    return run


def test_models_with_other_chat_templates_are_scored_and_not_compared(
    command: Callable[..., tuple[int, str, str]], tiny_model: Path, tmp_path: Path
) -> None:
    other = with_another_template(tiny_model, tmp_path / "other")
    asked = ("evaluate", str(tiny_model), str(other), "--task", "worldbook:lookup", "--limit", "2")
    options = ("--max-new-tokens", "4", "--output")
    code, out, err = command(*asked, *options, "chat")
    assert code == 0, err
    assert "worldbook:lookup/en: not compared" in out
    result = json.loads(Path("chat/record.json").read_text())["result"]
    assert result["differences"] == {}
    assert "chat template" in result["not_paired"]["worldbook:lookup/en"]
    code, out, err = command(*asked, "--no-chat", *options, "plain")
    assert code == 0, err
    result = json.loads(Path("plain/record.json").read_text())["result"]
    assert (result["differences"]["worldbook:lookup/en"]["n"], result["not_paired"]) == (2, {})


def test_a_command_may_be_repeated_after_sentence_data_were_installed_or_its_options_written_otherwise(
    command: Callable[..., tuple[int, str, str]], tiny_model: Path, tmp_path: Path, data_path: Path
) -> None:
    write_rows(tmp_path / "data" / "ifeval" / "en.jsonl", NEEDY, FREE, LOWER)
    asked = ("evaluate", str(tiny_model), "--task", "ifeval", "--max-new-tokens", "4", "--output", "out")
    assert command(*asked, "--data-dir", "data")[0] == 0
    first = json.loads(Path("out/record.json").read_text())
    assert first["result"]["scores"]["tasks"]["ifeval/en"]["n"] == 2
    shutil.copytree("data", "copy")
    assert command(*asked, "--data-dir", "copy", "--limit", "3")[0] == 0  # the same data, and all of them
    install_punkt(data_path)
    code, _, err = command(*asked, "--data-dir", "copy", "--limit", "3")
    assert code == 0, err
    last = json.loads(Path("out/record.json").read_text())
    assert last["result"]["scores"]["tasks"]["ifeval/en"]["n"] == 3
    assert last["inputs"]["manifest"] != first["inputs"]["manifest"]
    assert json.loads(Path("out/manifest.json").read_text())["punkt"]
    code, _, err = command(*asked, "--data-dir", "copy", "--limit", "1")
    assert code == 2
    assert "was made with" in err


STUDY = """
name: sentences
model: {model}
phases:
  - name: one
    data: {{english: {{source: "worldbook:lookup/en", limit: 8}}}}
  - name: two
    data: {{german: {{source: "worldbook:lookup/de", limit: 8}}}}
    strategies: [{strategies}]
held_out: 2
measures: []
contamination: null
training: {{precision: float32, tokens_per_batch: 512}}
evaluate:
  task_ability: [{{task: ifeval, data: {data}, max_new_tokens: 4}}]
  language_ability: [{{task: "worldbook:lookup", limit: 3, max_new_tokens: 4}}]
"""


@pytest.mark.slow
def test_a_study_goes_on_after_sentence_data_were_installed(
    command: Callable[..., tuple[int, str, str]], tiny_model: Path, tmp_path: Path, data_path: Path
) -> None:
    write_rows(tmp_path / "ifeval.jsonl", NEEDY, FREE, LOWER)
    write_rows(tmp_path / "moved" / "same.jsonl", NEEDY, FREE, LOWER)

    def run(strategies: str, data: str) -> dict[str, Any]:
        text = STUDY.format(model=tiny_model, strategies=strategies, data=data)
        (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
        code, out, err = command("run", "study.yaml", "--runs", str(tmp_path / "runs"), "--json")
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    first = run("plain", "ifeval.jsonl")
    stages = sorted(path.name for path in (tmp_path / "runs/sentences/stages").iterdir())
    assert first["cells"][0]["difference"]["tasks"]["ifeval/en"]["n"] == 2
    run("plain", "moved/same.jsonl")  # another path to the same data: nothing is evaluated again
    assert sorted(path.name for path in (tmp_path / "runs/sentences/stages").iterdir()) == stages
    install_punkt(data_path)  # as the run advised
    second = run("plain, half", "ifeval.jsonl")
    assert [cell["status"] for cell in second["cells"]] == ["done", "done"]
    assert [cell["difference"]["tasks"]["ifeval/en"]["n"] for cell in second["cells"]] == [3, 3]
    assert [cell["unpaired"] for cell in second["cells"]] == [{}, {}]


OTHER_BASE = """
name: base
model: {base}
phases:
  - name: one
    checkpoint: {checkpoint}
  - name: two
    data: {{german: {{source: "worldbook:lookup/de", limit: 8}}}}
held_out: 2
measures: []
contamination: null
training: {{precision: float32, tokens_per_batch: 512}}
evaluate:
  task_ability: [{{task: "worldbook:lookup", limit: 3, max_new_tokens: 4}}]
  language_ability: [{{task: "worldbook:lookup", limit: 3, max_new_tokens: 4}}]
"""


def with_another_template(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("\\n", "\\t")
    tokenizer.save_pretrained(folder)
    return folder


def test_a_base_of_another_chat_template_stands_in_no_matrix_of_abilities(
    command: Callable[..., tuple[int, str, str]], tiny_model: Path, tmp_path: Path
) -> None:
    base = with_another_template(tiny_model, tmp_path / "other")
    text = OTHER_BASE.format(base=base, checkpoint=tiny_model)
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    code, out, err = command("run", "study.yaml", "--runs", str(tmp_path / "runs"), "--json")
    assert code == 0, err
    result = json.loads(out)
    (cell,) = result["cells"]
    matrix = cell["forgetting"]["ability"]
    assert [row["after"] for row in matrix["rows"]] == ["one", "two"]
    assert "chat template" in matrix["not_paired"]["worldbook:lookup/en"]
    assert (cell["unpaired"], cell["not_paired"]) == ({}, {})
    assert result["base"]["task_ability"]["n"] == 3
    assert "the base model stands in no matrix of abilities" in err
    page = next((tmp_path / "runs").rglob("index.html")).read_text(encoding="utf-8")
    assert "base model: worldbook:lookup/de: not compared" in page
