"""The page carries what models answered to the same items: each text once, and what does not fit is counted."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from example_result import done_cell, result
from hostile_run import BASE, FIRST, hostile_run
from large_run import Size, large_run

from lingraft.evaluate.predictions import Prediction, write_predictions
from lingraft.report import side_by_side
from lingraft.report.page import write_page
from lingraft.report.runs import Report, read_report, report_of
from lingraft.report.side_by_side import GAINED, LOST, WRONG_LANGUAGE, Answering, answering, likelihoods

CELL = "stages/evaluate-1/predictions.parquet"


def unpacked(view: Answering) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(view.packed)))
    return found


def prediction(item: str, score: float, response: str = "yes", **changes: Any) -> Prediction:
    plain = Prediction("language_ability", "lookup", "de", item, item, score, f"{item}?", response, "yes")
    given: dict[str, Any] = {"empty": False, "asked": item} | changes
    return replace(plain, **given)


def report_with(
    folder: Path, base: Sequence[Prediction], before: Sequence[Prediction], after: Sequence[Prediction]
) -> Report:
    """Return the report of a run of one cell, whose base, Phase 1 and last model answered so."""
    found = result(folder, [replace(done_cell("plain"), predictions=CELL, phase_one_predictions=FIRST)])
    one = replace(found.phase_ones[0], predictions=FIRST)
    for name, own in ((BASE, base), (FIRST, before), (CELL, after)):
        (folder / name).parent.mkdir(parents=True)
        write_predictions(folder / name, own)
    return report_of(replace(found, base_predictions=BASE, phase_ones=(one,)), None)


def test_what_was_lost_and_gained_is_counted_from_phase_one(tmp_path: Path) -> None:
    base = [prediction(item, 0.0) for item in "abcde"]
    before = [prediction(item, score) for item, score in zip("abcde", (1.0, 0.0, 1.0, 0.5, 1.0), strict=True)]
    after = [
        prediction("a", 0.0, "non", wrong_language=True),
        prediction("b", 1.0),
        prediction("c", 1.0),
        prediction("d", 0.25),  # less than half of the scale
        prediction("e", 0.5, "ye", truncated=True),
    ]
    view = answering(report_with(tmp_path, base, before, after))
    found = unpacked(view)
    assert view.remarks == ()
    assert found["models"] == ["base model", "phase 1", "similar / plain"]
    assert found["starts"] == [None, None, 1]
    assert found["shown"] == [0, 1, 2]
    last = [row[2] for row in found["flags"]]
    assert last == [LOST | WRONG_LANGUAGE, GAINED, 0, 0, LOST | side_by_side.TRUNCATED]
    assert [row[:2] for row in found["flags"]] == [[0, 0]] * 5  # base and Phase 1 lose nothing
    assert [row[2] for row in found["scores"]] == [0, 1, 1, 0.25, 0.5]
    assert [found["texts"][row[2]] for row in found["answers"]] == ["non", "yes", "yes", "yes", "ye"]
    assert len(found["texts"]) == len(set(found["texts"]))
    assert [one.item.name for one in view.examples] == ["e", "a", "b"]
    assert [one.replies[2].outcome for one in view.examples if one.replies[2]] == [
        *("lost, truncated", "lost, wrong language", "gained")
    ]


def test_items_are_matched_by_what_was_asked_not_by_their_name(tmp_path: Path) -> None:
    base = [prediction("a", 1.0, "base's", asked="other prompt"), prediction("b", 0.0)]
    before = [prediction("a", 1.0), prediction("b", 1.0), prediction("b", 0.0, "twice")]
    after = [prediction("a", 0.0), prediction("b", 1.0), prediction("b", 0.0, "again")]
    view = answering(report_with(tmp_path, base, before, after))
    found = unpacked(view)
    assert [row[0] >= 0 for row in found["answers"]] == [True, False, False]
    assert found["texts"][found["answers"][2][2]] == "again"
    assert view.remarks == ("Left out: 1 item was asked of one model only, or of each model in another way.",)


def test_files_that_are_gone_or_damaged_are_counted_and_cost_no_others(tmp_path: Path) -> None:
    view = answering(read_report([str(hostile_run(tmp_path / "run"))]))
    damaged, gone = view.remarks
    assert damaged.startswith("Not here: the answers of __proto__ / broken [a](javascript:")
    assert damaged.endswith("(their files are damaged, or not those that were scored; run the study again).")
    assert gone.endswith("(their files are gone: deleted, or discarded as `keep` says).")
    found = unpacked(view)
    assert len(found["models"]) == 8
    assert {sum(text >= 0 for text in row) for row in found["answers"]} == {6}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", "".join(found["texts"]))
    assert "a\\x00b\\x1b[31mred" in "".join(found["texts"])


def test_without_any_answers_there_is_a_reason_in_their_place(tmp_path: Path) -> None:
    view = answering(report_of(result(tmp_path, [done_cell("plain")]), None))
    assert view.remarks == (
        "Not here: the answers of base model, phase 1, similar / plain (their files are gone: deleted, or discarded as "
        "`keep` says).",
    )
    assert (view.packed, view.examples) == ("", ())


def test_numbers_of_likelihood_tasks_are_said_in_words() -> None:
    choice = "choice 1 of 0 to 2 is the likeliest; log-likelihoods: -3.50, -0.25, -inf"
    assert likelihoods("[('-3.5', 'False'), ('-0.25', 'True'), ('-inf', 'False')]") == choice
    assert likelihoods("[(-3.5, False), (-0.25, True), (-inf, False)]") == choice
    assert likelihoods("[(-12.3, True)]") == "log-likelihood -12.30; it is what the model would say"
    for other in ("The answer is (-3.5, True).", "[]", "(A)", "", "(1.2.3, True)"):
        assert likelihoods(other) == other


def test_the_script_knows_the_same_flags_and_fields() -> None:
    script = files("lingraft.report").joinpath("answers.js").read_text(encoding="utf-8")
    (listed,) = re.findall(r"const FLAGS = \{(.*?)\};", script)
    flags = {name: int(value) for name, value in re.findall(r"(\w+): (\d+)", listed)}
    assert flags == {
        "wrong": WRONG_LANGUAGE,
        "empty": side_by_side.EMPTY,
        "looping": side_by_side.LOOPING,
        "truncated": side_by_side.TRUNCATED,
        "lost": LOST,
        "gained": GAINED,
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 cells in 12 languages, with few items and steps."""
    folder = tmp_path_factory.mktemp("large") / "run"
    large_run(folder, Size(sets=5, strategies=6, seeds=2, items=36, steps=20, layers=4))
    return folder


def test_what_does_not_fit_is_chosen_alike_from_all_languages_tasks_and_outcomes(run: Path) -> None:
    report = read_report([str(run)])
    whole = unpacked(answering(report))
    assert len(whole["items"]) == 36
    assert len(whole["models"]) == 63
    view = answering(report, budget=60_000)
    found = unpacked(view)
    count = len(found["items"])
    assert 40_000 < len(view.packed) <= 60_000
    assert view.remarks == (
        f"Here are {count} of 36 items, chosen by chance, of each language, task and outcome as many as there is room "
        "for; `lingraft show predictions` prints all.",
    )
    languages = Counter(found["texts"][row[1]] for row in found["items"])
    assert len(languages) >= min(count, 11)
    assert answering(report, budget=60_000).packed == view.packed
    nothing = answering(report, budget=100)
    assert (nothing.packed, nothing.remarks[0][:20]) == ("", "Here are 0 of 36 ite")
    assert len(nothing.examples) == len(view.examples) > 0


def test_long_answers_are_cut_only_where_not_all_fits(tmp_path: Path) -> None:
    letters = random.Random(0)
    own = [prediction(item, 1.0, "".join(letters.choices("abcdefgh", k=100_000))) for item in "abc"]
    report = report_with(tmp_path, own, own, own)
    assert max(map(len, unpacked(answering(report))["texts"])) == 100_000
    view = answering(report, budget=20_000)
    assert view.remarks == ("3 texts are cut after 4,000 characters.",)
    assert max(map(len, unpacked(view)["texts"])) == 4_002


def test_examples_are_short_and_hold_the_end_of_a_prompt(tmp_path: Path) -> None:
    before = [prediction("a", 1.0, prompt="shot " * 1_000 + "What?")]
    after = [prediction("a", 0.0, "no " * 1_000, prompt="shot " * 1_000 + "What?")]
    (example,) = answering(report_with(tmp_path, before, before, after)).examples
    assert example.item.prompt.endswith("shot What?")
    assert example.replies[2] is not None
    assert example.replies[2].text.endswith(" …")
    assert max(len(example.item.prompt), len(example.replies[2].text)) < 610


def test_the_page_of_many_cells_stays_small(run: Path, tmp_path: Path) -> None:
    said: list[str] = []
    page = write_page(read_report([str(run)]), tmp_path / "page.html", reported=said.append)
    assert said == []
    # Of it 6 MB are the most that answers may take; the others grow with the cells, and 500 may have 9 MB.
    assert page.stat().st_size < 3_000_000
