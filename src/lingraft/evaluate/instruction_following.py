"""Following instructions in English: 300 prompts of ours in IFEval's format, scored by the harness's own verifiers.

The prompts come with the package and need no other data: none of their instruction types counts sentences, for
which NLTK's sentence data would have to be downloaded. How they were written and how hard they are:
docs/instructions.md. A file of the user's in the same format can take their place.

Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models" (the format, the verifiers and
the four metrics; the prompts are not theirs).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lm_eval.api.task import ConfigurableTask

from lingraft.errors import EvaluationError, did_you_mean

LANGUAGE = "en"
VERSION = 1
SCORE = "prompt_level_strict_acc"
NEW_TOKENS = 160  # every prompt can be answered in fewer; the longest answer asked for has 80 words
FIELDS = ("key", "prompt", "instruction_id_list", "kwargs")

Row = dict[str, Any]


def instructions_task(
    language: str, *, data: Path | None = None, limit: int | None = None, max_new_tokens: int | None = None
) -> ConfigurableTask:
    """Return the harness task: greedy answers; a prompt scores 1 where all its instructions are followed, else 0.

    Beside that score stand IFEval's other three: the share of instructions followed, and both counted loosely (the
    first line, the last line or the asterisks of an answer may be left out).

    Args:
        language: Must be `en`: prompts and verifiers are English.
        data: A JSON Lines file of the same fields in the place of our prompts.
        limit: Prompts, from the first on; None: all. Any prefix of ours mixes the instruction types.
        max_new_tokens: Longest answer; None: 160.

    Raises:
        EvaluationError: Another language; a file that cannot be read or has a row that the verifiers cannot score.
    """
    import datasets

    if language != LANGUAGE:
        raise EvaluationError(
            f"instructions: there are no prompts in {language!r}, only in {LANGUAGE!r}; "
            "name another task for this language."
        )
    # Built from all rows before the limit: the columns of `kwargs` are those of every row.
    rows = datasets.Dataset.from_list(read_instructions(data))
    chosen = rows.select(range(min(len(rows), limit or len(rows))))
    return ConfigurableTask(
        config={
            "task": f"instructions/{language}",
            "custom_dataset": lambda **_: {"test": chosen},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "prompt",
            "doc_to_target": lambda doc: ", ".join(doc["instruction_id_list"]),
            "process_results": lambda doc, results: score_response(doc, results[0]),
            "generation_kwargs": {
                "until": [],
                "do_sample": False,
                "max_gen_toks": max_new_tokens or NEW_TOKENS,
            },
            "metric_list": list(_metrics()),
            "metadata": {"version": VERSION},
        }
    )


def _metrics() -> Iterator[dict[str, Any]]:
    share_of_all = verifiers().agg_inst_level_acc
    for counted in ("strict", "loose"):
        for level, aggregation in (("prompt", "mean"), ("inst", share_of_all)):
            yield {
                "metric": f"{level}_level_{counted}_acc",
                "aggregation": aggregation,
                "higher_is_better": True,
            }


def score_response(row: Row, response: str) -> dict[str, Any]:
    """Return IFEval's four metrics of one answer: yes or no for the prompt, and a yes or no per instruction.

    Equal answers get equal scores: language identification, by which the verifiers of letter case tell whether an
    answer is English, draws at random, and is seeded here.
    """
    from langdetect import DetectorFactory

    with patch.object(DetectorFactory, "seed", 0):
        scores: dict[str, Any] = verifiers().process_results(row, [response])
    return scores


@cache
def verifiers() -> Any:
    """Return the harness's IFEval module, imported without the download and the print that it begins with."""
    with redirect_stdout(io.StringIO()), patch("nltk.download", return_value=False):
        from lm_eval.tasks.ifeval import utils
    return utils


def read_instructions(path: Path | None = None) -> list[Row]:
    """Return the rows of a file in IFEval's format, of our prompts where no file is named.

    Raises:
        EvaluationError: The file cannot be read, is empty, or has rows that cannot be scored, with the first of them.
    """
    source = files("lingraft.evaluate").joinpath("data/instructions.jsonl") if path is None else path
    try:
        lines = source.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"instructions: {path} cannot be read ({error}).") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row, problem = _parsed(line)
        if problem is not None:
            raise EvaluationError(f"instructions: {path}, line {number}: {problem}")
        rows.append(row)
    if not rows:
        raise EvaluationError(f"instructions: {path} holds no row.")
    return rows


def _parsed(line: str) -> tuple[Row, str | None]:
    try:
        row = json.loads(line)
    except ValueError as error:
        return {}, f"is no JSON ({error})."
    if not isinstance(row, dict) or not set(FIELDS) <= row.keys():
        return {}, f"must be an object with {', '.join(FIELDS)}."
    kept = {name: row[name] for name in FIELDS}
    return kept, row_problem(kept)


def row_problem(row: Row) -> str | None:
    """Return why the verifiers cannot score a row alike every time, None where they can.

    A verifier that lacks an argument draws one at random: such a row is refused.
    """
    known = verifiers().instructions_registry.INSTRUCTION_DICT
    names, arguments = row["instruction_id_list"], row["kwargs"]
    if not _are_all(names, str) or not _are_all(arguments, dict) or not isinstance(row["prompt"], str):
        return "prompt must be a text, instruction_id_list a list of names, kwargs a list of objects."
    if not names or len(names) != len(arguments):
        return f"has {len(names)} instructions and {len(arguments)} kwargs; each instruction needs its own."
    for name, given in zip(names, arguments, strict=True):
        if name not in known:
            return f"has the instruction {name!r}. {did_you_mean(name, known)}"
        problem = _argument_problem(known[name](name), given)
        if problem is not None:
            return f"{name}: {problem}"
    return None


def _are_all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _argument_problem(verifier: Any, given: dict[str, Any]) -> str | None:
    present = {name: value for name, value in given.items() if value}  # as the harness's scoring reads them
    needed = set(verifier.get_instruction_args_keys())
    if present.keys() != needed:
        return f"needs the arguments {sorted(needed)}, and has {sorted(present)}."
    try:
        verifier.build_description(**present)
    except (TypeError, ValueError) as error:
        return str(error)
    kept = verifier.get_instruction_args() or {}
    replaced = [name for name, value in present.items() if _plain(kept[name]) != _plain(value)]
    return f"{', '.join(replaced)}: not a value that it takes." if replaced else None


def _plain(value: Any) -> Any:
    """Return an argument as verifiers may keep it: words in another order, a word in lower case or without spaces."""
    if isinstance(value, str):
        return value.strip().lower()
    return sorted(set(value)) if isinstance(value, (list, tuple)) else value
