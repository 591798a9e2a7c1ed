"""Suites: every task that they name can be found, in every language, and local copies of any form are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lingraft.config.checks import check_study
from lingraft.config.schema import Evaluation, EvaluationTask, Study
from lingraft.data.worldbook import LANGUAGES
from lingraft.errors import ConfigError, EvaluationError
from lingraft.evaluate.catalogue import catalogue, code_of, data_places, suites
from lingraft.evaluate.lm_eval_compat import load_config
from lingraft.evaluate.loading import load_tasks
from lingraft.evaluate.running import evaluate_model
from lingraft.evaluate.selection import choose_tasks, resolve_suites
from lingraft.evaluate.task_names import OWN_TASKS, harness_names
from lingraft.models.loading import load_model, load_tokenizer

OF_OUR_OWN = ("alpaca_eval", "instructions", "mlqa", "xlsum", "xquad")


@pytest.fixture
def copies(tmp_path: Path) -> Callable[..., str]:
    """Writes rows as a local copy and returns the data folder."""

    def write(name: str, rows: list[dict[str, Any]]) -> str:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return str(tmp_path / "data")

    return write


def chosen(name: str, task: str, language: str, data_dir: str | None) -> EvaluationTask:
    """Return one task of a suite in one language."""
    found = choose_tasks(name, [f"{language}={task}"], languages=[], data_dir=data_dir, limit=None)
    (entry,) = (*found.evaluation.task_ability, *found.evaluation.language_ability)
    return entry


def documents(entry: EvaluationTask) -> list[tuple[str, Any, Any]]:
    """Return prompt, target and choices of every item, as the harness makes them."""
    found = []
    for task in load_tasks(entry, Path()):
        for doc in task.eval_docs:
            choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else None
            found.append((task.doc_to_text(doc), task.doc_to_target(doc), choices))
    return found


@pytest.mark.parametrize("name", suites())
def test_a_suite_names_tasks_of_the_catalogue_and_says_what_it_is_for(name: str) -> None:
    assert suites()[name].meaning
    assert {task.partition(":")[0] for task in suites()[name].names} <= {*catalogue(), "worldbook"}


def test_the_paper_suites_hold_the_papers_tasks() -> None:
    for name in ("paper", "paper-lite"):
        task_ability = [one.task for one in suites()[name].task_ability]
        assert task_ability == ["ifeval", "alpaca_eval", "mmlu", "hellaswag", "xlsum"]
        assert [one.task for one in suites()[name].language_ability] == [
            "mlqa",
            "xquad",
            "xlsum",
            "global_mmlu",
        ]
    assert all(one.limit for one in suites()["paper-lite"].task_ability)
    assert not any(one.limit for one in suites()["paper"].task_ability)


@pytest.mark.parametrize("name", catalogue())
def test_every_task_of_the_catalogue_exists_in_every_language(name: str) -> None:
    task = catalogue()[name]
    if name in OF_OUR_OWN:
        assert task.task in OWN_TASKS
        return
    for code in task.languages.values():
        config: Any = {"task": [task.task.replace("{code}", code)]}
        while not isinstance(config["task"], str):
            found = harness_names()[config["task"][0]]
            config = {"task": found.tags} if found.path is None else load_config(Path(found.path))
        assert config["dataset_path"] == task.hub


def test_languages_are_found_by_their_whole_tag_and_by_its_first_part() -> None:
    assert code_of("belebele", "pt-BR") == "por_Latn"
    assert code_of("mgsm", "vi") is None
    entry = chosen("reading", "belebele", "pt-BR", None)
    assert (entry.task, entry.name, entry.language) == ("belebele_por_Latn", "belebele", "pt-BR")


def test_a_suite_of_a_study_becomes_its_tasks_in_the_studys_languages(copies: Callable[..., str]) -> None:
    row = {"premise": "a.", "choice1": "b", "choice2": "c", "question": "cause", "label": 0, "idx": 0}
    folder = copies("xcopa/th.jsonl", [row])
    evaluation = Evaluation.model_validate(
        {
            "task_ability": ["suite:quick", {"task": "arc_easy", "limit": 5}],
            "language_ability": [{"task": "suite:reading", "limit": 7, "sample": 3}],
            "data_dir": Path(folder).name,
        }
    )
    found = resolve_suites(evaluation, Path(folder).parent, languages=["th", "de"])
    assert [(one.task, one.language) for one in found.task_ability] == [
        ("worldbook", "en"),
        ("instructions", "en"),
        ("arc_easy", None),
    ]
    placed = {(one.name, one.language): one for one in found.language_ability}
    assert list(placed) == [
        ("belebele", "th"),
        ("belebele", "de"),
        ("xcopa", "th"),
        ("mgsm", "th"),
        ("mgsm", "de"),
    ]
    assert placed["xcopa", "th"].data == str(Path("data") / "xcopa" / "th.jsonl")
    assert placed["mgsm", "th"].data is None
    assert {(one.limit, one.sample) for one in found.language_ability} == {(7, 3)}
    assert found.data_dir is None


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"language_ability": ["suite:quik"]}, "Did you mean 'quick'"),
        ({"language_ability": ["suite:quick"]}, "suite:quick has no task in sw"),
        ({"language_ability": ["suite:reading"], "data_dir": "absent"}, "there is no folder absent"),
        (
            {"task_ability": [{"task": "suite:paper", "without": ["alpaca"]}]},
            "without 'alpaca', which it has not. Did you mean 'alpaca_eval'",
        ),
    ],
)
def test_what_a_suite_cannot_give_is_refused(entry: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        resolve_suites(Evaluation.model_validate(entry), tmp_path, languages=["sw"])


def test_a_suite_can_be_had_without_some_of_its_tasks() -> None:
    entry = {"task": "suite:paper", "without": ["alpaca_eval", "mmlu"]}
    found = resolve_suites(Evaluation.model_validate({"task_ability": [entry]}), Path(), languages=["de"])
    assert [one.name for one in found.task_ability] == ["ifeval", "hellaswag", "xlsum"]


@pytest.mark.parametrize(
    ("only", "languages", "refused"),
    [
        ([], ["xx"], "xx"),
        ([], ["de", "xx"], "xx"),
        (["instructions"], ["de"], "de"),  # English alone
        (["hellaswag"], ["de"], "de"),
        (["worldbook", "hi=xquad"], ["de", "hi"], None),
        (["de=belebele"], ["de"], None),
        ([], ["en"], None),
    ],
)
def test_a_language_that_no_task_has_is_refused(
    only: list[str], languages: list[str], refused: str | None
) -> None:
    if refused is None:
        choose_tasks("quick", only, languages=languages, data_dir=None, limit=None)
        return
    with pytest.raises(
        ConfigError, match=rf"--languages {refused}: no task is in {refused} .*--task {refused}="
    ):
        choose_tasks("quick", only, languages=languages, data_dir=None, limit=None)


def test_a_command_takes_english_and_the_languages_that_each_task_has() -> None:
    found = choose_tasks("paper", [], languages=["de", "th"], data_dir=None, limit=2)
    tasks = [(one.name, one.language) for one in found.evaluation.language_ability]
    assert tasks == [("xlsum", "th"), ("mlqa", "de"), ("xquad", "de"), ("xquad", "th"), ("global_mmlu", "de")]
    assert found.missing == ("xlsum/de", "mlqa/th", "global_mmlu/th")
    assert {one.language for one in found.evaluation.task_ability} == {"en"}
    assert "xquad" not in [one.name for one in found.evaluation.task_ability]
    assert {one.limit for one in found.evaluation.task_ability} == {2}
    with_english = choose_tasks("paper", [], languages=["en"], data_dir=None, limit=None).evaluation
    assert [one.name for one in with_english.task_ability] == suites()["paper"].names
    assert with_english.language_ability == ()


def test_a_command_may_name_single_tasks() -> None:
    only = ["xlsum", "arc_easy", "es=tasks/mine.yaml", "worldbook:lookup"]
    found = choose_tasks("paper", only, languages=["th"], data_dir=None, limit=None).evaluation
    assert [(one.task, one.language) for one in found.task_ability] == [
        ("xlsum", "en"),
        ("arc_easy", "en"),
        ("worldbook:lookup", "en"),
    ]
    assert [(one.task, one.language) for one in found.language_ability] == [
        ("xlsum", "th"),
        ("tasks/mine.yaml", "es"),
        ("worldbook:lookup", "th"),
    ]


@pytest.mark.parametrize(
    ("only", "told"),
    [
        (["xcopa", "th=xcopa"], "xcopa in th"),
        (["worldbook", "worldbook:lookup"], "worldbook:lookup in en"),
        (["ifeval", "ifeval"], "ifeval in en"),
    ],
)
def test_a_command_asks_no_task_twice_in_a_language(only: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=f"{told} is in .* already; keep one"):
        choose_tasks("paper", only, languages=["th"], data_dir=None, limit=1)


def test_it_is_told_where_data_are_looked_for() -> None:
    assert data_places("hellaswag", "en", "d") == (
        f"{Path('d/hellaswag/en.jsonl')} or {Path('d/hellaswag_500/en.jsonl')}, or Rowan/hellaswag on the hub"
    )
    assert "facebook/belebele on the hub; no --data-dir" in data_places("belebele", "th", None)


def test_belebele_of_sea_helm_and_of_the_hub_make_the_same_prompt(copies: Callable[..., str]) -> None:
    prompt = {"text": "P", "question": "Q?", **{f"choice{i}": f"c{i}" for i in range(1, 5)}}
    folder = copies("belebele/th.jsonl", [{"id": 0, "label": 2, "prompts": [prompt]}])
    theirs = documents(chosen("reading", "belebele", "th", folder))
    hub = {"link": "L", "flores_passage": "P", "question": "Q?", "correct_answer_num": "3"}
    hub |= {f"mc_answer{i}": f"c{i}" for i in range(1, 5)}
    folder = copies("belebele/th.jsonl", [hub])
    assert documents(chosen("reading", "belebele", "th", folder)) == theirs
    assert theirs == [("P: P\nQ: Q?\nA: c1\nB: c2\nC: c3\nD: c4\nAnswer:", 2, ["A", "B", "C", "D"])]


def test_hellaswag_without_its_two_halves_makes_the_harness_own_prompt(copies: Callable[..., str]) -> None:
    endings = ["one", "two [step] three", "four", "five"]
    activity = {
        "context": "A man sits. He eats. the cat",
        "endings": endings,
        "label": 1,
        "activity_label": "Eating",
        "source_id": "activitynet~v_1",
    }
    recipe = activity | {"context": "[header] How to eat [title] Sit. [step] Down.", "source_id": "wikihow~1"}
    folder = copies("hellaswag_500/en.jsonl", [activity, recipe])
    entry = chosen("paper", "hellaswag", "en", folder)
    assert (entry.metric, entry.cluster) == ("acc_norm", "source_id")
    texts = [text for text, _, _ in documents(entry)]
    assert texts == ["Eating: A man sits. He eats. The cat", "Eating: How to eat. Sit. Down."]
    assert documents(entry)[0][2] == ["one", "two three", "four", "five"]


def test_global_mmlu_rows_go_to_the_task_of_their_subject(copies: Callable[..., str]) -> None:
    row = {"question": "Q", "label": "C", **{f"option_{one}": one for one in "abcd"}}
    subjects = ("astronomy", "virology", "astronomy")
    rows = [row | {"sample_id": f"{i}", "subject": subject} for i, subject in enumerate(subjects)]
    entry = chosen("paper", "global_mmlu", "vi", copies("global_mmlu_lite/vi.jsonl", rows))
    tasks = load_tasks(entry, Path())
    assert {task.config.task.rpartition("vi_")[2]: len(task.eval_docs) for task in tasks} == {
        "astronomy": 2,
        "virology": 1,
    }
    assert documents(entry)[0] == ("Q\nA. a\nB. b\nC. c\nD. d\nAnswer:", "C", ["A", "B", "C", "D"])


def test_mgsm_answers_become_numbers_and_xcopa_leaves_out_its_validation_rows(
    copies: Callable[..., str],
) -> None:
    folder = copies("mgsm/de.jsonl", [{"question": "Wie viel?", "answer": "2,125"}])
    assert documents(chosen("reading", "mgsm", "de", folder)) == [
        ("Frage: Wie viel?\nAntwort:", "2125", None)
    ]
    row = {"premise": "Ia lapar.", "choice1": "Ya", "choice2": "Tidak", "question": "cause", "label": 1}
    rows = [row | {"split": split, "idx": i} for i, split in enumerate(("val", "test"))]
    folder = copies("xcopa/id.jsonl", rows)
    assert documents(chosen("reading", "xcopa", "id", folder)) == [("Ia lapar karena", 1, ["ya", "tidak"])]


def test_items_of_one_passage_are_one_cluster_in_every_language(
    copies: Callable[..., str], tiny_model: Path
) -> None:
    for tag in ("th", "vi"):
        rows = [
            {"id": i, "label": 0, "prompts": [{"text": f"{tag} {passage}", "question": f"{i}?"}]}
            for i, passage in enumerate("aabca")
        ]
        for row in rows:
            row["prompts"][0] |= {f"choice{i}": str(i) for i in range(1, 5)}  # type: ignore[index]
        folder = copies(f"belebele/{tag}.jsonl", rows)
    found = choose_tasks("reading", ["th=belebele", "vi=belebele"], languages=[], data_dir=folder, limit=4)
    drawn = [one.model_copy(update={"sample": 1}) for one in found.evaluation.language_ability]
    evaluated = evaluate_model(
        load_model(tiny_model),
        load_tokenizer(tiny_model),
        Evaluation(task_ability=(), language_ability=tuple(drawn)),
        languages=["th", "vi"],
    )
    cluster_of = {0: "0", 1: "0", 2: "2", 3: "3", 4: "0"}
    for tag in ("th", "vi"):
        own = [p for p in evaluated.predictions if p.language == tag]
        assert len(own) == 4
        assert all(p.cluster == cluster_of[int(p.item.rpartition("/")[2])] for p in own)
        assert [p.item.rpartition("/")[2] for p in own] != ["0", "1", "2", "3"]
    assert evaluated.tasks["belebele/th"].sample == 1
    assert [list(one.files or {}) for one in evaluated.tasks["belebele/th"].data] == [["th.jsonl"]]
    assert evaluated.tasks["belebele/th"].template == evaluated.tasks["belebele/vi"].template
    assert {p.task for p in evaluated.predictions} == {"belebele"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"fields": {"question": "q"}},
            r"fields\.question: 'q' cannot be read from row 1: .*no such field.*has: answer",
        ),
        ({"fields": {"question": "(q"}}, "is no Jinja expression"),
        ({"rows": "answer == 'no'"}, "no row of the 1 is used"),
        ({"rows": "question.foo.bar"}, "rows: 'question.foo.bar' cannot be read"),
    ],
)
def test_a_mapping_that_does_not_fit_the_rows_is_refused(
    changes: dict[str, Any], told: str, copies: Callable[..., str]
) -> None:
    data = Path(copies("mgsm/de.jsonl", [{"question": "Wie?", "answer": "1"}])) / "mgsm" / "de.jsonl"
    entry = EvaluationTask(task="mgsm_direct_de", language="de", data=str(data)).model_copy(update=changes)
    with pytest.raises(EvaluationError, match=told):
        load_tasks(entry, Path())


def test_a_group_over_a_local_file_must_say_whose_rows_are_whose(copies: Callable[..., str]) -> None:
    folder = copies(
        "mmlu/en.jsonl", [{"question": "Q", "subject": "anatomy", "choices": list("abcd"), "answer": 0}]
    )
    entry = chosen("paper", "mmlu", "en", folder)
    assert [task.config.task for task in load_tasks(entry, Path())] == ["mmlu_anatomy"]
    with pytest.raises(EvaluationError, match="group of 57 tasks: `rows` must say"):
        load_tasks(entry.model_copy(update={"rows": None}), Path())


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (
            {"task": "ifeval", "fields": {"a": "b"}},
            "fields: says what a local file's rows are; give the file",
        ),
        ({"task": "ifeval", "sample": 0}, "sample: 0 is the seed by which `limit` items are drawn"),
        ({"task": "worldbook", "cluster": "a"}, "cluster: worldbook brings its own"),
        ({"task": "suite:quick", "data": "a"}, "data: suite brings its own"),
        ({"task": "suite:quick", "language": "de"}, "task ability is English, not 'de'"),
    ],
)
def test_options_that_would_be_read_by_nothing_are_refused(entry: dict[str, Any], told: str) -> None:
    phases = [{"name": name, "data": {"d": {"source": "worldbook:lookup/en"}}} for name in "ab"]
    study = {
        "name": "s",
        "model": "m",
        "phases": phases,
        "evaluate": {"task_ability": [entry], "data_dir": "copies"},
    }
    problems = check_study(Study.model_validate(study))
    assert any(told in problem.text for problem in problems), problems


def test_quick_needs_no_data_and_has_every_language_of_worldbook() -> None:
    found = choose_tasks("quick", [], languages=LANGUAGES, data_dir=None, limit=None)
    assert found.missing == ()
    assert {one.language for one in found.evaluation.language_ability} == {*LANGUAGES} - {"en"}


def test_a_hub_out_of_reach_is_asked_once_only(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    import datasets

    asked = []

    def unreachable(path: str, **_: Any) -> None:
        asked.append((path, datasets.config.HF_HUB_OFFLINE))
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    found = choose_tasks("reading", ["mgsm", "th=xcopa"], languages=[], data_dir=None, limit=1)
    evaluated = evaluate_model(
        load_model(tiny_model),
        load_tokenizer(tiny_model),
        found.evaluation,
        languages=["th"],
        skip_missing=True,
    )
    assert asked == [("juletxara/mgsm", False), ("cambridgeltl/xcopa", True)]
    assert evaluated.predictions == ()
    assert evaluated.not_run == {
        "mgsm/en": "ConnectionError: no network",
        "xcopa/th": "ConnectionError: no network",
    }
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_yaml_task_whose_data_the_hub_does_not_give_is_named_and_the_rest_runs(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    import datasets

    def unreachable(path: str, **_: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    own = tmp_path / "own.yaml"
    own.write_text(
        "task: own\ndataset_path: somebody/set\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\nmetric_list: [{metric: exact_match}]\n"
    )
    found = choose_tasks("quick", [str(own), "worldbook:lookup"], languages=[], data_dir=None, limit=1)
    evaluated = evaluate_model(
        load_model(tiny_model), load_tokenizer(tiny_model), found.evaluation, languages=[], skip_missing=True
    )
    assert evaluated.not_run == {f"{own}/en": "ConnectionError: no network"}
    assert [one.task for one in evaluated.predictions] == ["worldbook:lookup"]


def test_the_place_of_a_copy_names_the_language_also_without_a_data_folder() -> None:
    assert "(belebele/de.jsonl in it)" in data_places("belebele", "de", None)
