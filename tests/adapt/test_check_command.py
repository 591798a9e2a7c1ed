"""`lingraft check` decides by intervals, keeps what it asked, and tells servers of continuous integration."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml

from lingraft.adapt.check import Gate, check, compare_evaluations
from lingraft.adapt.checked import Checked
from lingraft.adapt.gate import MaxLosses
from lingraft.config.schema import Evaluation
from lingraft.errors import ConfigError, LingraftError
from lingraft.evaluate.predictions import Ability, Prediction
from lingraft.evaluate.results import EvaluationRecord
from lingraft.evaluate.scores import score_summary
from lingraft.evaluate.task_records import EvaluationSettings, ScoreSettings, TaskRecord
from lingraft.records import from_json
from lingraft.report.check import check_junit, check_markdown
from lingraft.study.evaluation import Asked, EvaluationOptions, ModelEvaluation
from lingraft.study.stages.evaluate import Questions

ITEMS = 60
Lingraft = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def place(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a task whose answer is always A, two models that always say A, and one that says B.

    Every position has the same large first component, and the heads of the two letters alone read it.
    """
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("check")
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = False
    for name, letter, seed in (("start", "A", 0), ("same_answers", "A", 1), ("worse", "B", 0)):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.model.embed_tokens.weight[:, 0] = 1.0
            model.lm_head.weight[:, 0] = 0.0
            for one in "AB":
                token = tokenizer(one, add_special_tokens=False).input_ids[-1]
                model.lm_head.weight[token, 0] = 4.0 if one == letter else -4.0
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    shutil.copytree(folder / "start", folder / "copy")
    rows = [json.dumps({"q": f"What is {number}?"}) for number in range(ITEMS)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    task = {
        "task": "letters",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_target": 0,
        "doc_to_choice": ["A", "B"],
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "letters.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture
def checked(lingraft: Lingraft, place: Path, monkeypatch: pytest.MonkeyPatch) -> Lingraft:
    """Runs `lingraft check` with the task, in the folder of the models; what was asked before is not asked again."""
    monkeypatch.chdir(place)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return lingraft("check", *arguments, "--task", "letters.yaml", "--precision", "float32")

    return run


@pytest.mark.parametrize(
    ("model", "max_loss", "code", "answer"),
    [
        ("same_answers", "0.2", 0, "held"),
        ("worse", "0.2", 1, "broken"),
        ("same_answers", "0.02", 3, "undecided"),
        ("same_answers", "2", 2, ""),
    ],
)
def test_the_exit_code_says_whether_more_was_lost_than_allowed(
    checked: Lingraft, model: str, max_loss: str, code: int, answer: str
) -> None:
    result = checked(model, "--against", "start", "--max-loss", max_loss)
    assert result.returncode == code, result.stderr
    if code == 2:
        assert "2 % is 0.02" in result.stderr
        assert result.stdout == ""
    else:
        assert f"{model} against start: {answer}" in result.stdout
        assert f"en: {answer}: " in result.stdout


def test_what_undecided_needs_is_said(checked: Lingraft) -> None:
    result = checked("same_answers", "--against", "start", "--max-loss", "0.02")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("en: undecided")]
    assert "60 items cannot tell whether no more than 2 % of English was lost" in line
    assert "they can certify 10.4 %; 2 % needs about 1,6" in line


def test_the_model_from_before_is_asked_once_for_all_checks(
    checked: Lingraft, lingraft: Lingraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lingraft.models.adapters import load_merged

    loaded = []

    def counted(folder: str, **options: Any) -> Any:
        loaded.append(Path(folder).name)
        return load_merged(folder, **options)

    monkeypatch.setattr("lingraft.models.adapters.load_merged", counted)
    for model in ("same_answers", "worse", "worse"):
        assert checked(model, "--against", "start", "--max-loss", "0.2", "--output", "kept").returncode in (
            0,
            1,
        )
    assert loaded == ["start", "same_answers", "worse"]
    assert lingraft("report", "kept").returncode == 0  # of the last of them
    assert "worse against start" in Path("kept/report/index.html").read_text()


def test_a_limit_of_its_own_for_a_language_or_a_task_goes_first(checked: Lingraft) -> None:
    both = ("--against", "start", "--task", "de=letters.yaml", "--json")
    held = checked("same_answers", *both, "--max-loss", "0.2", "--max-loss", "de=0.3")
    found = from_json(Checked, json.loads(held.stdout))
    assert held.returncode == 0
    assert [(one.name, one.max_loss) for one in found.abilities] == [("en", 0.2), ("de", 0.3)]
    assert found.deciding_tasks == ()
    by_task = checked("same_answers", *both, "--max-loss", "0.2", "--max-loss", "letters.yaml/de=0.01")
    found = from_json(Checked, json.loads(by_task.stdout))
    assert by_task.returncode == 3
    assert found.deciding_tasks == ("letters.yaml/de",)
    assert [one.answer for one in found.abilities] == ["held", "held"]
    each = checked("same_answers", *both, "--max-loss", "0.2", "--each-task")
    assert from_json(Checked, json.loads(each.stdout)).deciding_tasks == (
        "letters.yaml/en",
        "letters.yaml/de",
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("worse", "--against", "worse"), "worse: would be checked against itself"),
        (("worse", "--against", "./worse/../worse"), "would be checked against itself"),
        (("worse", "--against", "nowhere/at/all"), "there is no such folder"),
        (("worse", "--against", "start", "--max-loss", "0.3"), "the default has a limit already"),
        (
            ("worse", "--against", "start", "--max-loss", "fr=0.3"),
            "fr=0.3: is nothing that is asked. Options: en",
        ),
        (("worse", "--against", "start", "--max-loss", "de"), "'de': write a share such as 0.02"),
        (("worse", "--against", "start", "--max-loss", "en=nan"), "nan: is a share"),
        (("worse", "--against", "start", "--junit", "."), "--junit .: is a folder, a link or a device"),
        (("worse", "--against", "start", "--markdown", "/dev/stdout"), "--markdown /dev/stdout: is a folder"),
        (("worse", "--against", "start", "--markdown", "no/where.md"), "there is no folder no"),
        (("worse", "--against", "start", "--output", "rows.jsonl"), "a file is in the way"),
        (("worse", "--against", "start", "--output", "a_study"), "is the run folder of a study"),
        (("worse", "--against", "start", "--output", "of_evaluate"), "was not written by `lingraft check`"),
    ],
)
def test_wrong_input_is_refused_with_what_to_do(
    checked: Lingraft, place: Path, arguments: tuple[str, ...], says: str
) -> None:
    for name, file in (("a_study", "study.yaml"), ("of_evaluate", "record.json")):
        (place / name).mkdir(exist_ok=True)
        (place / name / file).write_text('{"measure": "evaluate"}')
    result = checked(*arguments, "--max-loss", "0.2", "--json")
    assert result.returncode == 2
    error = json.loads(result.stdout)["error"]
    assert error["exit_code"] == 2
    assert says in error["message"]


def test_abilities_without_a_limit_are_refused(checked: Lingraft) -> None:
    result = checked("worse", "--against", "start", "--task", "de=letters.yaml", "--max-loss", "de=0.1")
    assert (result.returncode, "nothing is said of en" in result.stderr) == (2, True)


def test_two_copies_of_a_model_are_called_one_and_lose_nothing(checked: Lingraft) -> None:
    result = checked("copy", "--against", "start", "--max-loss", "0.001")
    assert result.returncode == 0
    assert "Both are the same model" in result.stdout
    assert "the 95 % interval of the loss is 0.0 % to 0.0 %" in result.stdout


def test_two_chat_templates_are_found_before_a_model_is_asked(
    checked: Lingraft, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place / "start", place / "other")
    template = place / "other" / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "helper"))

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded although nothing can be compared")

    monkeypatch.setattr("lingraft.models.adapters.load_merged", loaded)
    asked = ("other", "--against", "start", "--max-loss", "0.2")
    result = checked(*asked, "--output", "templates", "--junit", "templates.xml")
    assert result.returncode == 3
    assert result.stdout.splitlines()[0] == "other against start: undecided"
    assert "different chat templates; ask both without one (`--no-chat`)" in result.stdout
    (case,) = ElementTree.parse(place / "templates.xml").getroot().iter("testcase")
    assert [one.tag for one in case] == ["skipped"]
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert checked(*asked, "--no-chat", "--output", "templates").returncode == 0


def test_half_of_the_items_is_asked_where_a_part_is_named(checked: Lingraft) -> None:
    both = ("same_answers", "--against", "start", "--max-loss", "0.3", "--json")
    sizes = []
    for part in ("all", "selection", "report"):
        found = from_json(Checked, json.loads(checked(*both, "--part", part).stdout))
        assert found.part == part
        sizes.append(found.abilities[0].n)
    assert sizes[0] == ITEMS == sizes[1] + sizes[2]
    refused = checked(*both, "--part", "half")
    assert (refused.returncode, "--part 'half': Options: all, report, selection" in refused.stdout) == (
        2,
        True,
    )


def test_the_answers_of_the_last_check_can_be_read(checked: Lingraft, lingraft: Lingraft) -> None:
    checked("worse", "--against", "start", "--max-loss", "0.2")
    shown = lingraft("show", "predictions", "runs/check", "--worst", "2", "--json")
    found = json.loads(shown.stdout)
    assert (found["model"], found["before"]) == ("worse", "start")
    assert [one["score"] - one["before"]["score"] for one in found["items"]] == [-1.0, -1.0]


def test_the_files_say_what_the_check_said_and_an_old_one_does_not_outlive_a_failure(
    checked: Lingraft, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ("--junit", "check.xml", "--markdown", "check.md")
    both = ("--max-loss", "0.2", "--max-loss", "de=0.01", "--task", "de=letters.yaml")
    assert checked("same_answers", "--against", "start", *both, *files).returncode == 3
    suite = ElementTree.parse(place / "check.xml").getroot()[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "2",
        "failures": "0",
        "errors": "0",
        "skipped": "1",
    }
    assert [(case.get("name"), [one.tag for one in case]) for case in suite.iter("testcase")] == [
        ("en", []),
        ("de", ["skipped"]),
    ]
    summary = (place / "check.md").read_text()
    assert summary.startswith("### lingraft check: undecided\n")
    assert "| en | 60 | 1.000 | 1.000 |" in summary
    checked("same_answers", "--against", "start", *both, *files)
    assert (place / "check.md").read_text() == summary  # written anew
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place / "step.md"))
    (place / "step.md").write_text("An earlier line.\n")
    for _ in range(2):
        checked("same_answers", "--against", "start", *both, "--markdown", "step.md")
    assert (place / "step.md").read_text() == f"An earlier line.\n{summary}{summary}"
    (place / "broken").mkdir(exist_ok=True)
    (place / "broken" / "config.json").write_text("{}")
    assert checked("broken", "--against", "start", *both, *files).returncode == 2
    assert not (place / "check.xml").exists()


def test_python_returns_what_the_command_prints_and_shows_it_as_a_table(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    found = check(place / "worse", "start", 0.2, tasks=["letters.yaml"], precision="float32")
    assert (found.answer, found.exit_code) == ("broken", 1)
    lines = str(found).splitlines()
    assert lines[0] == f"{place / 'worse'} against start: broken"
    assert lines[2].split()[:4] == ["en", "60", "1.000", "0.000"]
    assert repr(found) == str(found)
    assert "What is" not in str(found)  # no prompt
    assert from_json(Checked, json.loads(json.dumps(_json(found)))) == found
    with pytest.raises(ConfigError, match="say what may be lost"):
        check("worse", "start")
    with pytest.raises(ConfigError, match="limit 0: must be a whole number"):
        check("worse", "start", 0.2, limit=0)
    with pytest.raises(ConfigError, match="part 'half': Options: all, report, selection"):
        check("worse", "start", 0.2, part="half")  # type: ignore[arg-type]
    with pytest.raises(LingraftError, match="is a share of the score before"):
        check("worse", "start", "0.2")  # type: ignore[arg-type]


def _json(found: Checked) -> Any:
    from lingraft.records import to_json

    return to_json(found)


SETTINGS = ScoreSettings(EvaluationSettings("e 1", "1", "bf16", "x"), {})
TASK = TaskRecord("1", "acc", "none", 1, "", "", (), None, SETTINGS)


def evaluation(
    name: str,
    scores: Mapping[str, list[float]],
    *,
    template: str = "x",
    no_room: Mapping[str, str] | None = None,
) -> ModelEvaluation:
    """Return an evaluation with recorded scores, by task and language."""
    predictions = []
    for label, own in scores.items():
        task, _, tag = label.partition("/")
        ability: Ability = "task_ability" if tag == "en" else "language_ability"
        for item, score in enumerate(map(float, own)):
            name_of, what = str(item), f"{item} {template}"
            one = Prediction(ability, task, tag, name_of, name_of, score, "a prompt", "", "", asked=what)
            predictions.append(one)
    settings = replace(TASK.settings, evaluation=EvaluationSettings("e 1", "1", "bf16", template))
    tasks = {label: replace(TASK, settings=settings) for label in scores}
    record = EvaluationRecord(score_summary(predictions, {}), tasks, "float32", {}, dict(no_room or {}))
    return ModelEvaluation(name, record, tuple(predictions))


def gate(
    *labels: str,
    max_loss: float = 0.1,
    each_task: bool = False,
    not_run: Mapping[str, str] | None = None,
    tasks: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Gate:
    """Return what should have been asked; `tasks`: what was named."""
    keys: Any = {
        f"{'task_ability' if label.endswith('/en') else 'language_ability'}|{label.replace('/', '|')}|": None
        for label in labels
    }
    resolved = Questions(Evaluation(), (), (), Path(), True, {"tasks": keys}, dict(not_run or {}))
    what = Asked(EvaluationOptions(tasks=tasks), resolved, (), notes)
    return Gate(what, MaxLosses.of(max_loss, {}), each_task, not_run or {})


GOOD, BAD = [1.0] * 90 + [0.0] * 10, [1.0] * 30 + [0.0] * 70


def test_one_broken_ability_breaks_the_whole_and_one_undecided_leaves_it_open() -> None:
    labels = ("a/en", "a/de", "a/th")
    before = evaluation("m1", dict.fromkeys(labels, GOOD))
    broken = compare_evaluations(
        before, evaluation("m2", {"a/en": GOOD, "a/de": BAD, "a/th": GOOD[:88] + BAD[88:]}), gate(*labels)
    )
    assert [one.answer for one in broken.abilities] == ["held", "broken", "held"]
    assert (broken.answer, broken.exit_code) == ("broken", 1)
    some = [0.0] * 8 + GOOD[8:]
    left = compare_evaluations(
        before, evaluation("m2", {"a/en": GOOD, "a/de": GOOD, "a/th": some}), gate(*labels)
    )
    assert [one.answer for one in left.abilities] == ["held", "held", "undecided"]
    assert (left.answer, left.exit_code) == ("undecided", 3)


def test_tasks_decide_nothing_unless_they_are_asked_to() -> None:
    # The one task makes up for the other.
    before = evaluation("m1", {"a/en": BAD + GOOD, "b/en": BAD + GOOD})
    after = evaluation("m2", {"a/en": GOOD + GOOD, "b/en": BAD + BAD})
    found = compare_evaluations(before, after, gate("a/en", "b/en"))
    assert found.answer == "held"
    assert {one.name: one.answer for one in found.tasks} == {"a/en": "held", "b/en": "broken"}
    assert compare_evaluations(before, after, gate("a/en", "b/en", each_task=True)).answer == "broken"


def test_a_score_of_0_before_cannot_tell_and_says_why() -> None:
    nothing = [0.0] * 100
    found = compare_evaluations(
        evaluation("m1", {"a/en": nothing}), evaluation("m2", {"a/en": GOOD}), gate("a/en")
    )
    assert found.exit_code == 3
    (line,) = found.sentences()
    assert line.startswith("en: undecided: ")
    assert "the score before is 0. Ask tasks" in line


def test_what_was_asked_in_another_way_is_left_out_and_what_is_left_decides() -> None:
    before = evaluation("m1", {"a/en": GOOD, "b/en": GOOD})
    other = evaluation("m2", {"b/en": GOOD}, template="y")
    after = evaluation("m2", {"a/en": GOOD})
    mixed = ModelEvaluation(
        "m2",
        replace(after.record, tasks=after.record.tasks | other.record.tasks),
        after.predictions + other.predictions,
    )
    found = compare_evaluations(before, mixed, gate("a/en", "b/en"))
    assert found.exit_code == 0
    assert found.abilities[0].n == 100
    assert [line for line in found.left_out() if line.startswith("b/en: not compared")]
    nothing_left = compare_evaluations(
        before, evaluation("m2", {"a/en": GOOD, "b/en": GOOD}, template="y"), gate("a/en", "b/en")
    )
    assert (nothing_left.exit_code, nothing_left.abilities) == (3, ())
    assert "other chat template" in nothing_left.unmeasured["en"]
    assert "en: undecided: a/en: not compared" in str(nothing_left)


def test_a_language_that_could_not_be_asked_leaves_the_answer_open() -> None:
    before, after = evaluation("m1", {"a/en": GOOD}), evaluation("m2", {"a/en": GOOD})
    found = compare_evaluations(before, after, gate("a/en", not_run={"a/th": "no file a/th.jsonl."}))
    assert found.abilities[0].answer == "held"
    assert (found.answer, found.unmeasured) == ("undecided", {"th": "a/th was not run: no file a/th.jsonl."})
    # Of a suite a task may be missing where others measure the ability; one that was named may not.
    missing = {"b/en": "no file b.jsonl."}
    assert compare_evaluations(before, after, gate("a/en", not_run=missing)).answer == "held"
    named = compare_evaluations(before, after, gate("a/en", not_run=missing, tasks=("a", "b")))
    assert (named.answer, list(named.unmeasured)) == ("undecided", ["b"])
    small = evaluation("m2", {"a/en": GOOD}, no_room={"b/en": "its answers have no room."})
    wide = evaluation("m1", {"a/en": GOOD, "b/en": GOOD})
    found = compare_evaluations(wide, small, gate("a/en", "b/en", each_task=True))
    assert found.unmeasured == {"b/en": "b/en was not run: m2: its answers have no room."}


NASTY = "a|b`<script>&\x1b[31m\n\ud800\ufffe*_]]>"


def test_names_break_neither_xml_nor_markdown() -> None:
    found = compare_evaluations(
        evaluation(NASTY, {"a/en": GOOD, "a/de": GOOD}),
        evaluation(f"{NASTY}2", {"a/en": BAD, "a/de": GOOD}),
        gate("a/en", "a/de", notes=(f"A note on {NASTY}.",)),
    )
    suite = ElementTree.fromstring(check_junit(found, 1.5))[0]
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message", "").startswith("en: broken: more than 10 % was lost")
    assert "\\x1b" in suite.findtext("system-out", "")
    lines = check_markdown(found).splitlines()
    assert lines[2].startswith("Of a\\|b\\`\\<script\\>\\&\\\\x1b\\[31m\\\\n")
    rows = [line for line in lines if line.startswith("| en ")]
    assert [row.count(" | ") for row in rows] == [8]
    html = found._repr_html_()
    assert html.count("<table>") == 2
    assert "<td>broken</td>" in html
    assert "a|b`&lt;script&gt;&amp;\\x1b[31m" in html
    assert "<script" not in html
    assert not set("\x1b\ud800") & set(str(found) + check_markdown(found) + html)


def test_junit_is_what_the_common_schemas_ask_for() -> None:
    """Of windyroad's JUnit.xsd, the stricter one: every attribute, and the order of what is inside."""
    found = compare_evaluations(
        evaluation("m1", {"a/en": GOOD}),
        evaluation("m2", {"a/en": BAD}),
        gate("a/en", not_run={"a/th": "no."}),
    )
    text = check_junit(found, 12.3456)
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<testsuites>')
    (suite,) = ElementTree.fromstring(text.encode())
    assert set(suite.keys()) == {
        *("name", "package", "id", "timestamp", "hostname"),
        *("tests", "failures", "errors", "skipped", "time"),
    }
    assert len(suite.get("timestamp", "")) == len("2026-01-01T00:00:00")
    assert [one.tag for one in suite] == ["properties", "testcase", "testcase", "system-out", "system-err"]
    for case in suite.iter("testcase"):
        assert set(case.keys()) == {"name", "classname", "time"}
    outcomes = [outcome for case in suite.iter("testcase") for outcome in case]
    assert [(one.tag, set(one.keys())) for one in outcomes] == [
        ("failure", {"type", "message"}),
        ("skipped", {"message"}),
    ]


def test_the_workflow_of_the_page_is_whole_and_its_line_runs(
    lingraft: Lingraft, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    workflow = yaml.load(
        page.partition("```yaml\n")[2].partition("```")[0], yaml.BaseLoader
    )  # `on` is no boolean
    assert workflow.keys() >= {"name", "on", "jobs"}
    (job,) = workflow["jobs"].values()
    assert job.keys() >= {"runs-on", "steps"}
    assert all(step.keys() & {"uses", "run"} for step in job["steps"])
    (kept,) = [
        step["with"]["path"] for step in job["steps"] if step.get("uses", "").startswith("actions/cache")
    ]
    (line,) = [step["run"] for step in job["steps"] if "lingraft check" in step.get("run", "")]
    models = tmp_path / "models"
    for name, model in (("start", "start"), ("new", "same_answers")):
        shutil.copytree(place / model, models / name)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    words = [os.path.expandvars(word) for word in shlex.split(line)]
    # The suite's own tasks, of which such a model knows nothing; few and short.
    result = lingraft(*words[1:], "--limit", "2", "--max-new-tokens", "2")
    assert result.returncode == 3, result.stderr
    assert (tmp_path / kept / "record.json").is_file()
    assert ElementTree.parse(tmp_path / "check.xml").getroot().tag == "testsuites"
    assert "models/new against models/start" in (tmp_path / "summary.md").read_text()
