"""IFEval over a local file without a network: what is scored with NLTK's sentence data, and what is named without."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nltk
import pytest
import torch
from nltk.tokenize.punkt import PunktTrainer, save_punkt_params

from lingraft.config.schema import Evaluation, EvaluationTask
from lingraft.data.worldbook import load_items
from lingraft.evaluate.lm_eval_compat import ifeval_verifiers
from lingraft.evaluate.running import Evaluated, evaluate_model
from lingraft.evaluate.task_runs import NEEDS_PUNKT
from lingraft.evaluate.tasks.instructions.task import Row, score_response
from lingraft.models.loading import load_model, load_tokenizer

SENTENCES = "length_constraints:number_sentences"
CAPITALS = "change_case:capital_word_frequency"
NEEDY_ROWS: tuple[Row, ...] = (
    {
        "key": 1,
        "prompt": "Say something in at least three sentences.",
        "instruction_id_list": [SENTENCES],
        "kwargs": [{"num_sentences": 3, "relation": "at least"}],
    },
    {
        "key": 2,
        "prompt": "Say something in at least four sentences.",
        "instruction_id_list": [SENTENCES],
        "kwargs": [{"num_sentences": 4, "relation": "at least"}],
    },
    {
        "key": 3,
        "prompt": "Write fewer than three words in capitals.",
        "instruction_id_list": [CAPITALS],
        "kwargs": [{"capital_frequency": 3, "capital_relation": "less than"}],
    },
)


@pytest.fixture
def data_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """NLTK looks for its data in this empty folder alone, and a download fails the test."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a download was tried")

    folder = tmp_path / "nltk_data"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(nltk.data, "path", [str(folder)])
    monkeypatch.setattr(nltk, "download", refuse)
    forget_punkt()
    yield folder
    forget_punkt()


def forget_punkt() -> None:
    """Empty the caches in which NLTK and the harness keep a Punkt model that they once found."""
    nltk.tokenize._get_punkt_tokenizer.cache_clear()
    ifeval_verifiers().instructions_registry.instructions.instructions_util._get_sentence_tokenizer.cache_clear()


def install_punkt(data_path: Path) -> None:
    """Train a Punkt model on worldbook's English and save it as NLTK itself does."""
    trainer = PunktTrainer()
    trainer.train(
        "\n".join(
            f"{i.example.instruction} {i.example.answer}" for i in load_items("lookup", "en", "train")[:200]
        )
    )
    folder = data_path / "tokenizers" / "punkt_tab" / "english"
    folder.parent.mkdir(parents=True)
    save_punkt_params(trainer.get_params(), dir=str(folder))


@pytest.fixture(scope="module")
def evaluate(tiny_model: Path) -> Callable[[Path], Evaluated]:
    torch.set_num_threads(1)
    model, tokenizer = load_model(tiny_model, dtype=torch.bfloat16), load_tokenizer(tiny_model)

    def run(rows: Path) -> Evaluated:
        task = EvaluationTask(task="ifeval", data=rows.name, max_new_tokens=1)
        evaluation = Evaluation(task_ability=(task,), language_ability=(), batch_size=16)
        return evaluate_model(model, tokenizer, evaluation, languages=["de"], base_folder=rows.parent)

    return run


def write_rows(path: Path, rows: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def ifeval_rows(shared_data: Path) -> list[dict[str, Any]]:
    lines = (shared_data / "ifeval" / "en.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def test_sentences_and_capital_words_are_counted_with_a_saved_punkt_model(data_path: Path) -> None:
    install_punkt(data_path)
    answer = "The first sentence is here. The SECOND one is there. Is that ALL?"
    scores = [score_response(row, answer)["prompt_level_strict_acc"] for row in NEEDY_ROWS]
    assert scores == [True, False, True]


def test_punkt_data_of_another_language_are_none_for_english(
    evaluate: Callable[..., Evaluated], data_path: Path, tmp_path: Path
) -> None:
    """The verifiers would stop at them with a stack."""
    install_punkt(data_path)
    (data_path / "tokenizers" / "punkt_tab" / "english").rename(
        data_path / "tokenizers" / "punkt_tab" / "german"
    )
    free = {
        "key": 4,
        "prompt": "No commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    }
    found = evaluate(write_rows(tmp_path / "rows.jsonl", [*NEEDY_ROWS, free]))
    assert [p.item for p in found.predictions] == ["ifeval/3"]
    assert [one.split(":")[1] for one in found.left_out] == [" item 1", " item 2", " item 3"]


def test_real_ifeval_items_that_need_sentence_data_are_scored_where_these_are_at_hand(
    evaluate: Callable[..., Evaluated], data_path: Path, shared_data: Path, tmp_path: Path
) -> None:
    install_punkt(data_path)
    needy = [row for row in ifeval_rows(shared_data) if NEEDS_PUNKT & set(row["instruction_id_list"])]
    found = evaluate(write_rows(tmp_path / "rows.jsonl", needy))
    assert len(found.predictions) == len(needy) == 64
    assert found.left_out == ()


def test_all_of_real_ifeval_is_scored_or_named_without_sentence_data(
    evaluate: Callable[..., Evaluated], data_path: Path, shared_data: Path, tmp_path: Path
) -> None:
    """The prompts are truncated, which neither scoring nor naming looks at."""
    rows = [row | {"prompt": row["prompt"][:40]} for row in ifeval_rows(shared_data)]
    found = evaluate(write_rows(tmp_path / "rows.jsonl", rows))
    assert (len(rows), len(found.predictions), len(found.left_out)) == (541, 477, 64)
    needy = [row["key"] for row in rows if NEEDS_PUNKT & set(row["instruction_id_list"])]
    assert [one.split(":")[1] for one in found.left_out] == [f" item {key}" for key in needy]
