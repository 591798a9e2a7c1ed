"""The recipes of the paper's grids: its data pairs, mitigations and languages, and tasks that the harness has."""

from __future__ import annotations

from pathlib import Path

import pytest

from lingraft.config.load import load_study
from lingraft.config.recipes import recipes
from lingraft.evaluate.checks import check_tasks
from lingraft.evaluate.selection import resolve_suites
from lingraft.study.checks import name_problems
from lingraft.study.grid import cells_of

LANGUAGES = ("ar", "de", "es", "fr", "id", "ja", "ko", "pt", "ru", "th", "vi")
MITIGATIONS = {"plain", "GR_5", "GR_10", "ER_10", "LF_H1", "LF_H2", "Spectrum", "LoRA"}
TRAINED = ("paper_mistral_7b", "paper_llama_3_8b")
INSTRUCT = ("paper_mistral_7b_instruct", "paper_llama_3_8b_instruct")


@pytest.mark.parametrize("name", [*TRAINED, *INSTRUCT])
def test_a_recipe_of_the_paper_has_its_mitigations_and_nothing_that_its_phase_one_refuses(
    tmp_path: Path, name: str
) -> None:
    study = load_study(recipes()[name])
    cells = cells_of(study)
    for folder in ("multialpaca", "mopenorca"):  # the user's own copies
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "es.jsonl").touch()
    wrong = name_problems(study, tmp_path)
    assert not [one for one in wrong if one.location != ("encoder",)]  # an extra, which may not be installed
    assert {cell.strategy for cell in cells} == MITIGATIONS | ({"mixed"} if name in TRAINED else set())


@pytest.mark.parametrize("name", TRAINED)
def test_the_papers_data_pairs_are_among_the_cells(name: str) -> None:
    pairs = {cell.data for cell in cells_of(load_study(recipes()[name]))}
    assert {"alpaca > multialpaca", "alpaca > mopenorca", "openorca > mopenorca"} <= pairs


@pytest.mark.slow  # the harness takes seconds to list its tasks
def test_the_tasks_are_the_harnesss_and_cover_every_language_of_the_paper() -> None:
    evaluations = [load_study(recipes()[name]).evaluate for name in (*TRAINED, *INSTRUCT)]
    assert all(evaluation == evaluations[0] for evaluation in evaluations)
    evaluation = resolve_suites(evaluations[0], Path(), languages=LANGUAGES)
    check_tasks(evaluation, Path(), languages=LANGUAGES)
    assert {task.language for task in evaluation.language_ability} == set(LANGUAGES)
