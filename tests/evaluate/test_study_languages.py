"""Every language of a study is scored in itself: by its nearest tag (told), besides those trained, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lingraft.config.load import load_study
from lingraft.config.schema import DataSource, Evaluation, EvaluationTask, Study
from lingraft.errors import ConfigError
from lingraft.evaluate.catalogue import code_of, copies_of
from lingraft.evaluate.checks import check_tasks
from lingraft.evaluate.scores import score_summary
from lingraft.evaluate.selection import ability_of, choose_tasks, language_notes, resolve_suites
from lingraft.evaluate.tasks.passage_questions import normalised_units
from lingraft.report.page import render_page
from lingraft.report.runs import report_of
from lingraft.report.tables import study_table
from lingraft.study.events import Watcher
from lingraft.study.result import CellResult
from lingraft.study.run import run_study
from lingraft.text.folding import fold_for_scores


def evaluation(*language_ability: str | dict[str, Any], languages: tuple[str, ...] = ()) -> Evaluation:
    tasks = [one if isinstance(one, dict) else {"task": one} for one in language_ability]
    return Evaluation.model_validate(
        {"task_ability": ["worldbook:lookup"], "language_ability": tasks, "languages": languages}
    )


def resolved(written: Evaluation, *languages: str) -> Evaluation:
    found = resolve_suites(written, Path(), languages=languages)
    check_tasks(found, Path(), languages=languages)
    return found


@pytest.mark.parametrize("tag", ["pt-BR", "pt-PT", "por", "PT", "pt"])
def test_worldbook_is_found_for_every_writing_of_its_languages(tag: str) -> None:
    written = evaluation("worldbook")
    found = resolved(written, tag)
    notes = language_notes(written, found, [tag])
    assert notes == ([] if tag == "pt" else [f"worldbook's pt stands for {tag}."])


def test_a_task_in_a_language_stands_for_its_regions_and_this_is_said() -> None:
    written = evaluation({"task": "xquad", "language": "zh"}, {"task": "mlqa", "language": "de"})
    found = resolved(written, "zh-Hant", "de")
    assert [one.language for one in found.language_ability] == ["zh-Hant", "de"]
    assert language_notes(written, found, ["zh-Hant", "de"]) == [
        "xquad in zh stands for zh-Hant.",
        "xquad's zh stands for zh-Hant.",
    ]


@pytest.mark.parametrize(
    ("written", "languages", "told"),
    [
        (
            evaluation({"task": "xquad", "language": "es"}),
            ("es", "fr"),
            "no task covers 'fr' .xquad is in es",
        ),
        (evaluation({"task": "xquad", "language": "pt"}), ("fr",), "no task covers 'fr' .xquad is in pt"),
        (evaluation({"task": "xquad", "language": "es"}, languages=("hi",)), ("es",), "no task covers 'hi'"),
        (evaluation("worldbook"), ("gl",), "no task covers 'gl'"),
        (evaluation("worldbook:lookup", languages=("tr",)), ("de",), "no task covers 'tr'"),
        (evaluation("suite:quick"), ("gl",), "suite:quick has no task in gl"),
    ],
)
def test_a_language_that_no_task_covers_is_refused(
    written: Evaluation, languages: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        resolved(written, *languages)


def test_a_language_that_worldbook_or_a_suite_lacks_may_have_another_task() -> None:
    for first in ("worldbook", "suite:quick"):
        found = resolved(evaluation(first, {"task": "xquad", "language": "tr"}), "de", "tr")
        assert ("xquad", "tr") in [(one.task, one.language) for one in found.language_ability]


def test_a_language_that_is_not_trained_counts_towards_no_language_ability() -> None:
    assert ability_of("language_ability", "fr", ["fr"]) == "language_ability"
    assert ability_of("language_ability", "pt", ["fr"]) == "further_languages"
    assert ability_of("task_ability", "en", ["fr"]) == "task_ability"


def test_a_suites_tasks_say_which_language_stands_for_another() -> None:
    chosen = choose_tasks("reading", ["mgsm", "xcopa"], languages=["zh-Hant", "th"], data_dir=None, limit=2)
    assert language_notes(chosen.evaluation, chosen.evaluation, ["zh-Hant", "th"]) == [
        "mgsm's zh stands for zh-Hant.",
        "xcopa's zh stands for zh-Hant.",
    ]


def test_scorers_know_a_language_by_any_tag() -> None:
    assert normalised_units("das Haus", "deu") == normalised_units("das Haus", "de-AT") == ["haus"]
    assert normalised_units("das Haus", "German") == ["haus"]
    assert (
        fold_for_scores("I", "tur")
        == fold_for_scores("I", "tr-TR")
        == fold_for_scores("I", "tr")
        != fold_for_scores("I", "en")
    )
    assert code_of("belebele", "por") == code_of("belebele", "PT") == "por_Latn"
    assert code_of("belebele", "zh-Hant") == "zho_Hans"
    assert code_of("xquad", "pt") is None
    assert str(Path("data/mgsm/zh.jsonl")) in copies_of("mgsm", "zho_Hant", "data")


def test_the_study_file_takes_languages_in_any_writing() -> None:
    assert DataSource(source="x.jsonl", language="por").language == "pt"
    assert DataSource(source="x.jsonl", language="Standard Arabic").language == "ar"
    assert Evaluation(languages=("iw", "zho_Hans")).languages == ("he", "zh-Hans")
    assert EvaluationTask(task="xquad", language="ZH").language == "zh"


@pytest.mark.parametrize(
    ("languages", "told"),
    [("[en]", "is English"), ("[hi, hin]", "hi stands 2 times"), ("[Gibberish]", "Gibberish")],
)
def test_further_languages_are_checked_with_the_file(languages: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(model="embedded:smollm2-135m", languages=languages), encoding="utf-8")
    with pytest.raises(ConfigError, match=told):
        load_study(file)


STUDY = """
name: tags
model: {model}
phases:
  - name: one
    data: {{english: {{source: "worldbook:lookup/en", limit: 8}}}}
  - name: two
    data: {{brazilian: {{source: rows.jsonl}}}}
held_out: 0
measures: []
contamination: null
training: {{precision: float32, tokens_per_batch: 512}}
evaluate:
  task_ability: [{{task: "worldbook:lookup", limit: 4, max_new_tokens: 4}}]
  language_ability: [{{task: "worldbook:lookup", limit: 4, max_new_tokens: 4}}]
  languages: {languages}
"""


class Noting(Watcher):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, message: str) -> None:
        self.notes.append(message)


def test_a_study_has_a_column_for_each_language_and_a_mean_for_those_only_evaluated(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = [f'{{"instruction": "Diga {i}", "output": "sim {i}", "language": "pt_br"}}' for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(model=tiny_model, languages="[Korean, th]"), encoding="utf-8")
    watcher = Noting()
    result = run_study(load_study(file), runs=tmp_path / "runs", base_folder=tmp_path, watcher=watcher)
    assert "worldbook's pt stands for pt-BR." in watcher.notes
    assert result.language_notes == ("worldbook's pt stands for pt-BR.",)
    assert "worldbook&#39;s pt stands for pt-BR." in render_page(report_of(result, load_study(file)))
    (cell,) = result.cells
    assert isinstance(cell, CellResult), cell
    by_language, language, further = (
        cell.scores.per_language,
        cell.scores.language_ability,
        cell.scores.further_languages,
    )
    assert set(by_language) == {"en", "pt-BR", "ko", "th"}
    assert language is not None
    assert further is not None
    assert (language.n, further.n) == (4, 8)
    mean = sum(by_language[tag].value or 0.0 for tag in ("ko", "th")) / 2
    assert further.value == pytest.approx(mean)
    assert language.value == by_language["pt-BR"].value
    assert set(cell.difference.per_language) == {"pt-BR", "ko", "th"}
    titles = [column.title for column in study_table(result).columns]
    assert {"pt-BR", "ko", "th", "further languages"} <= set(titles)


def test_scores_without_further_languages_have_no_mean_of_them() -> None:
    from lingraft.evaluate.predictions import Prediction

    def one(ability: Any, language: str) -> Prediction:
        return Prediction(ability, "t", language, "c", "i", 1.0, "p", "r", "r")

    found = score_summary([one("task_ability", "en"), one("language_ability", "fr")], {})
    assert found.further_languages is None


def test_english_of_any_region_is_no_language_beside_english(tiny_model: Path, tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"instruction": f"Say {i}.", "output": f"It is {i}."}) for i in range(12))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    data = {
        "english": {"source": "rows.jsonl", "language": "en-US"},
        "german": {"source": "worldbook:lookup/de", "limit": 6},
    }
    one_task = [{"task": "worldbook:lookup", "limit": 2, "max_new_tokens": 2}]
    study = Study.model_validate(
        {
            "name": "regions",
            "model": str(tiny_model),
            "phases": [
                {"name": "one", "data": {"english": data["english"]}},
                {"name": "two", "data": {"german": data["german"]}},
            ],
            "held_out": 2,
            "contamination": None,
            "measures": [],
            "evaluate": {"task_ability": one_task, "language_ability": one_task},
        }
    )
    result = run_study(study, runs=tmp_path / "runs", base_folder=tmp_path)
    (cell,) = result.cells
    assert isinstance(cell, CellResult), cell
    assert result.language_notes == ()
    assert cell.forgetting.ability is not None
    assert [(one.data, one.measured_by) for one in cell.forgetting.ability.columns] == [
        ("english", ("task ability",)),
        ("german", ("de",)),
    ]
    assert cell.scores.language_ability is not None
    assert cell.scores.language_ability.n == 2
    held_out = cell.scores.per_language["en-US"].held_out
    assert held_out is not None
    assert held_out.value > 0


def test_a_command_takes_languages_as_people_write_them() -> None:
    chosen = choose_tasks("paper", ["mlqa", "GER=xquad"], languages=["en-GB", "spa"], data_dir=None, limit=2)
    assert [(one.name, one.language) for one in chosen.evaluation.task_ability] == [("mlqa", "en")]
    assert [(one.name, one.language) for one in chosen.evaluation.language_ability] == [
        ("mlqa", "es"),
        ("xquad", "de"),
    ]
