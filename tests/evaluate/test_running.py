"""Evaluation through the harness on a tiny random model: what is asked, what is scored, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nltk
import pytest
import torch
import yaml

from lingraft.config.schema import Evaluation, EvaluationTask, JudgeChoice
from lingraft.data.chat_format import chat_format
from lingraft.data.chat_template import FALLBACK_TEMPLATE
from lingraft.data.worldbook import load_items, score_answer
from lingraft.errors import ConfigError, EvaluationError
from lingraft.evaluate.checks import check_tasks
from lingraft.evaluate.loading import task_identities
from lingraft.evaluate.running import Evaluated, evaluate_model
from lingraft.evaluate.scores import differences, score_summary
from lingraft.models.loading import load_model, load_tokenizer

PUNKT = "length_constraints:number_sentences"
WORLDBOOK = EvaluationTask(task="worldbook", limit=3, max_new_tokens=4)


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> tuple[Any, Any]:
    torch.set_num_threads(1)
    return load_model(tiny_model, dtype=torch.bfloat16), load_tokenizer(tiny_model)


@pytest.fixture
def evaluate(tiny: tuple[Any, Any], tmp_path: Path) -> Callable[..., Evaluated]:
    def run(*tasks: EvaluationTask, **options: Any) -> Evaluated:
        evaluation = Evaluation(task_ability=tasks, language_ability=options.pop("language_ability", ()))
        return evaluate_model(*tiny, evaluation, languages=["de", "es"], base_folder=tmp_path, **options)

    return run


@pytest.fixture
def local_task(tmp_path: Path) -> Callable[..., EvaluationTask]:
    """Writes a YAML task over a local file, named relative to the folder of the study."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "data").mkdir()
    rows = [{"q": f"what is {i}", "a": str(i)} for i in range(4)]
    (tmp_path / "data" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def write(name: str = "mine", **changes: Any) -> EvaluationTask:
        content = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": "data/rows.jsonl"}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{q}}",
            "doc_to_target": "{{a}}",
            "doc_to_choice": ["0", "1", "2", "3"],
            "metric_list": [{"metric": "acc"}],
            **changes,
        }
        (tmp_path / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(content))
        return EvaluationTask(task=f"tasks/{name}.yaml")

    return write


@pytest.fixture
def without_punkt(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No sentence data are found, and a download would be noticed."""
    downloads: list[str] = []
    find = nltk.data.find

    def absent(name: str, *arguments: Any) -> Any:
        if "punkt" in name:
            raise LookupError(name)
        return find(name, *arguments)

    monkeypatch.setattr(nltk.data, "find", absent)
    monkeypatch.setattr(nltk, "download", lambda name, **_: downloads.append(name))
    return downloads


@pytest.fixture(scope="module")
def worldbook(tiny: tuple[Any, Any]) -> tuple[Evaluated, list[tuple[int, int]]]:
    """Both families in English, German and Spanish, three items each."""
    told: list[tuple[int, int]] = []
    evaluation = Evaluation(task_ability=(WORLDBOOK,), language_ability=(WORLDBOOK,), batch_size=4)
    found = evaluate_model(
        *tiny, evaluation, languages=["de", "es"], on_progress=lambda done, total: told.append((done, total))
    )
    return found, told


def test_worldbook_is_english_and_every_language_of_both_families(
    worldbook: tuple[Evaluated, list[tuple[int, int]]],
) -> None:
    found, told = worldbook
    assert {(p.ability, p.task, p.language) for p in found.predictions} == {
        (ability, f"worldbook:{family}", tag)
        for family in ("lookup", "counting")
        for ability, tag in (("task_ability", "en"), ("language_ability", "de"), ("language_ability", "es"))
    }
    assert len(found.predictions) == 18
    assert told == [(done, 18) for done in range(1, 19)]
    assert found.left_out == ()
    assert found.tasks["worldbook:lookup/de"].items == 3


def test_prompts_references_and_scores_are_worldbooks_own(
    worldbook: tuple[Evaluated, list[tuple[int, int]]], tiny: tuple[Any, Any]
) -> None:
    for family in ("lookup", "counting"):
        for tag in ("en", "de"):
            own = [
                p for p in worldbook[0].predictions if (p.task, p.language) == (f"worldbook:{family}", tag)
            ]
            for prediction, item in zip(own, load_items(family, tag, "report")[:3], strict=True):
                assert prediction.prompt == chat_format(tiny[1]).prompt(item.example.messages[:1])
                assert prediction.reference == item.example.answer
                assert prediction.cluster == item.example.group
                verdict = score_answer(item, prediction.response)
                assert prediction.score == verdict.headline
                assert (prediction.form, prediction.content) == (verdict.form, verdict.content)
                assert (prediction.chrf, prediction.wrong_language) == (verdict.chrf, verdict.wrong_language)


def test_answers_are_the_models_own_greedy_ones(tiny_model: Path) -> None:
    model: Any = load_model(tiny_model, dtype=torch.float32)
    tokenizer = load_tokenizer(tiny_model)
    evaluation = Evaluation(task_ability=(WORLDBOOK,), language_ability=())
    for prediction in evaluate_model(model, tokenizer, evaluation, languages=["de"]).predictions:
        ids = tokenizer(prediction.prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=4,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        assert prediction.response == tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_same_model_gives_the_same_predictions_and_no_difference(
    worldbook: tuple[Evaluated, list[tuple[int, int]]], tiny: tuple[Any, Any]
) -> None:
    evaluation = Evaluation(task_ability=(WORLDBOOK,), language_ability=(WORLDBOOK,), batch_size=4)
    again = evaluate_model(*tiny, evaluation, languages=["de", "es"])
    assert again == worldbook[0]
    ability = score_summary(again.predictions, {}).language_ability
    assert ability is not None
    assert ability.n == 12
    assert differences(worldbook[0].predictions, again.predictions).task_ability.value == 0


def test_nothing_is_printed_to_stdout(
    evaluate: Callable[..., Evaluated], capfd: pytest.CaptureFixture[str]
) -> None:
    evaluate(replace_limit(WORLDBOOK, 1))
    assert capfd.readouterr().out == ""


def test_answers_that_used_all_their_tokens_are_counted(evaluate: Callable[..., Evaluated]) -> None:
    found = evaluate(EvaluationTask(task="worldbook:lookup", limit=3, max_new_tokens=1))
    assert 0 < found.truncated["worldbook:lookup/en"] <= 3


def test_a_tokenizer_without_a_template_gets_the_fallback_and_is_given_back(tiny_model: Path) -> None:
    model, tokenizer = load_model(tiny_model, dtype=torch.bfloat16), load_tokenizer(tiny_model)
    tokenizer.chat_template = None
    evaluation = Evaluation(task_ability=(replace_limit(WORLDBOOK, 1),), language_ability=())
    found = evaluate_model(model, tokenizer, evaluation, languages=["de"])
    assert "### Instruction:" in found.predictions[0].prompt
    assert "### Instruction:" in FALLBACK_TEMPLATE
    assert tokenizer.chat_template is None


def test_a_yaml_task_finds_its_data_beside_the_study(
    evaluate: Callable[..., Evaluated], local_task: Callable[..., EvaluationTask]
) -> None:
    found = evaluate(local_task())
    assert [p.reference for p in found.predictions] == ["0", "1", "2", "3"]
    assert {p.score for p in found.predictions} <= {0.0, 1.0}
    assert len({p.item for p in found.predictions}) == 4
    assert found.predictions[0].task == "tasks/mine.yaml"
    assert found.predictions[0].form is None


def test_a_limit_takes_the_first_items(
    evaluate: Callable[..., Evaluated], local_task: Callable[..., EvaluationTask]
) -> None:
    assert [p.reference for p in evaluate(replace_limit(local_task(), 2)).predictions] == ["0", "1"]


def test_a_task_can_include_another_and_its_files_are_identified(
    evaluate: Callable[..., Evaluated], local_task: Callable[..., EvaluationTask], tmp_path: Path
) -> None:
    local_task("base")
    (tmp_path / "tasks" / "mine.yaml").write_text("include: base.yaml\ntask: mine\n")
    task = EvaluationTask(task="tasks/mine.yaml")
    assert len(evaluate(task).predictions) == 4
    evaluation = Evaluation(task_ability=(task,))
    before = task_identities(evaluation, tmp_path)
    assert {name.split()[-1] for name in before} == {"mine.yaml", "base.yaml", "rows.jsonl"}
    with (tmp_path / "data" / "rows.jsonl").open("a") as file:
        file.write('\n{"q": "new", "a": "1"}')
    after = task_identities(evaluation, tmp_path)
    assert [name.split()[-1] for name in before if before[name] != after[name]] == ["rows.jsonl"]


def test_identities_do_not_depend_on_the_folder(
    local_task: Callable[..., EvaluationTask], tmp_path: Path
) -> None:
    evaluation = Evaluation(task_ability=(local_task(),))
    before = task_identities(evaluation, tmp_path)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("tasks", "data"):
        (tmp_path / name).rename(moved / name)
    assert task_identities(evaluation, moved) == before


def test_few_shot_examples_from_a_local_file_never_hold_the_item_that_is_asked(
    evaluate: Callable[..., Evaluated], local_task: Callable[..., EvaluationTask]
) -> None:
    task = local_task(num_fewshot=2, training_split="train", fewshot_split="train")
    found = evaluate(task.model_copy(update={"data": "data/rows.jsonl"}))
    for number, prediction in enumerate(found.predictions):
        assert prediction.prompt.count("what is") == 3
        assert prediction.prompt.count(f"what is {number}") == 1


def test_an_unknown_metric_is_refused_with_the_known_ones(
    evaluate: Callable[..., Evaluated], local_task: Callable[..., EvaluationTask]
) -> None:
    task = local_task().model_copy(update={"metric": "accuracy"})
    with pytest.raises(EvaluationError, match=r"no metric 'accuracy'.*acc"):
        evaluate(task)


def test_a_metric_of_the_whole_set_is_no_score_of_an_item(
    evaluate: Callable[..., Evaluated], local_task: Callable[..., EvaluationTask]
) -> None:
    task = local_task(
        output_type="generate_until",
        generation_kwargs={"max_gen_toks": 2, "until": []},
        metric_list=[{"metric": "bleu"}],
    )
    with pytest.raises(EvaluationError, match=r"'bleu' is .* one number per item"):
        evaluate(task)


def test_a_score_outside_zero_to_one_is_refused(
    evaluate: Callable[..., Evaluated], local_task: Callable[..., EvaluationTask], tmp_path: Path
) -> None:
    local_task("wild")
    (tmp_path / "tasks" / "wild.py").write_text("def score(doc, results):\n    return {'points': 7}\n")
    path = tmp_path / "tasks" / "wild.yaml"
    content = yaml.safe_load(path.read_text()) | {
        "metric_list": [{"metric": "points", "aggregation": "mean"}]
    }
    path.write_text(yaml.safe_dump(content) + "process_results: !function wild.score\n")
    with pytest.raises(EvaluationError, match=r"'points' is 7 .* \[0, 1\]"):
        evaluate(EvaluationTask(task="tasks/wild.yaml"), trust_remote_code=True)


def test_a_broken_task_is_reported_in_one_line(
    evaluate: Callable[..., Evaluated], local_task: Callable[..., EvaluationTask], tmp_path: Path
) -> None:
    task = local_task()
    (tmp_path / "data" / "rows.jsonl").unlink()
    with pytest.raises(EvaluationError, match=r"tasks/mine\.yaml cannot be loaded") as caught:
        evaluate(task)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_found_is_refused_before_training(tmp_path: Path) -> None:
    evaluation = Evaluation(
        task_ability=(
            EvaluationTask(task="worldbook:lokup"),
            EvaluationTask(task="ifevl"),
            EvaluationTask(task="absent.yaml"),
            EvaluationTask(task="ifeval", data="absent.jsonl"),
        ),
    )
    with pytest.raises(ConfigError) as caught:
        check_tasks(evaluation, tmp_path, languages=["de"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "lookup" in lines[0]
    assert "Did you mean ifeval" in lines[1]
    assert "no such file" in lines[2]
    assert "absent.jsonl" in lines[3]


def test_alpaca_eval_without_a_judge_is_refused_before_training(tmp_path: Path) -> None:
    entry = EvaluationTask(task="alpaca_eval")
    with pytest.raises(ConfigError, match=r"alpaca_eval: a judge scores its answers: give its `url`"):
        check_tasks(Evaluation(task_ability=(entry,)), tmp_path, languages=["de"])
    judge = JudgeChoice(url="http://localhost/v1", model="judge")
    check_tasks(Evaluation(task_ability=(entry,), judge=judge), tmp_path, languages=["de"])
    secret = judge.model_copy(update={"url": "http://me:secret@localhost/v1"})
    with pytest.raises(ConfigError, match="must hold neither a user nor a query"):
        check_tasks(Evaluation(task_ability=(entry,), judge=secret), tmp_path, languages=["de"])


def test_a_language_that_worldbook_lacks_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no task covers 'xx' \(worldbook has en, ar, de"):
        check_tasks(Evaluation(), tmp_path, languages=["de", "xx"])
    tasks = (EvaluationTask(task="worldbook"), EvaluationTask(task="worldbook:lookup", language="tr"))
    with pytest.raises(ConfigError, match="worldbook has no 'tr'"):
        check_tasks(Evaluation(language_ability=tasks), tmp_path, languages=["de"])
    check_tasks(Evaluation(), tmp_path, languages=["de"])


def test_ifeval_runs_over_a_local_file_without_a_network(
    evaluate: Callable[..., Evaluated],
    without_punkt: list[str],
    shared_data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    lines = (shared_data / "ifeval" / "en.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    needy = next(row for row in rows if PUNKT in row["instruction_id_list"])
    free = [row for row in rows[:20] if len(row["instruction_id_list"]) > 1][:3]
    chosen = [free[0], needy, *free[1:]]
    (tmp_path / "ifeval.jsonl").write_text("\n".join(map(json.dumps, chosen)))
    found = evaluate(
        EvaluationTask(task="ifeval", data="ifeval.jsonl", metric="inst_level_strict_acc", max_new_tokens=4)
    )
    assert [p.item for p in found.predictions] == ["ifeval/0", "ifeval/2", "ifeval/3"]
    assert [row["prompt"] in p.prompt for p, row in zip(found.predictions, free, strict=True)] == [True] * 3
    for prediction, row in zip(found.predictions, free, strict=True):
        count = len(row["instruction_id_list"])
        assert prediction.score * count == pytest.approx(round(prediction.score * count))
    assert len(found.left_out) == 1
    assert f"item {needy['key']}: needs NLTK's punkt_tab" in found.left_out[0]
    assert without_punkt == []
    assert capfd.readouterr().out == ""


def test_ifeval_of_which_nothing_can_be_scored_is_refused(
    evaluate: Callable[..., Evaluated], without_punkt: list[str], tmp_path: Path
) -> None:
    row = {"key": 7, "prompt": "Write.", "instruction_id_list": [PUNKT], "kwargs": [{"num_sentences": 2}]}
    (tmp_path / "ifeval.jsonl").write_text(json.dumps(row))
    with pytest.raises(EvaluationError, match=r"no item can be scored.*item 7"):
        evaluate(EvaluationTask(task="ifeval", data="ifeval.jsonl", max_new_tokens=2))
    assert without_punkt == []


def test_one_ability_may_ask_for_one_task_in_two_languages(
    evaluate: Callable[..., Evaluated], local_task: Callable[..., EvaluationTask]
) -> None:
    task = local_task()
    both = tuple(task.model_copy(update={"language": tag}) for tag in ("de", "es"))
    found = evaluate(language_ability=both)
    assert sorted(p.language for p in found.predictions) == ["de"] * 4 + ["es"] * 4
    assert len({p.cluster for p in found.predictions}) == 4  # parallel by position
    assert {replace(p, language="") for p in found.predictions if p.language == "de"} == {
        replace(p, language="") for p in found.predictions if p.language == "es"
    }


def replace_limit(task: EvaluationTask, limit: int) -> EvaluationTask:
    return task.model_copy(update={"limit": limit})


@pytest.mark.parametrize(
    ("task_ability", "language_ability"),
    [
        (["worldbook", "worldbook:lookup"], ["worldbook"]),
        (["worldbook"], ["worldbook", {"task": "worldbook:counting", "language": "de"}]),
        (["worldbook"], [{"task": "worldbook", "language": "en"}]),
    ],
)
def test_a_task_that_would_count_twice_is_refused(
    task_ability: list[Any], language_ability: list[Any], tmp_path: Path
) -> None:
    evaluation = Evaluation.model_validate(
        {"task_ability": task_ability, "language_ability": language_ability}
    )
    with pytest.raises(ConfigError, match="already; keep one"):
        check_tasks(evaluation, tmp_path, languages=["de", "es"])
