"""Following instructions in English: 300 prompts of ours in IFEval's format, scored by the harness's own verifiers.

The prompts come with the package and need no other data: none of their instruction types counts sentences, for
which NLTK's sentence data would have to be downloaded. How they were written and how hard they are:
docs/instructions.md. A file of the user's in the same format can take their place.

Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models" (the format, the verifiers and
the four metrics; the prompts are not theirs).
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lm_eval.api.task import ConfigurableTask

from lingraft.data.row_fields import Row
from lingraft.data.rows import open_rows
from lingraft.errors import EvaluationError, did_you_mean
from lingraft.text.language_tags import ENGLISH

VERSION = 1
SCORE = "prompt_level_strict_acc"
NEW_TOKENS = 160  # every prompt can be answered in fewer; the longest answer asked for has 80 words
FIELDS = ("key", "prompt", "instruction_id_list", "kwargs")


def instructions_task(
    language: str, *, data: Path | None = None, limit: int | None = None, max_new_tokens: int | None = None
) -> ConfigurableTask:
    """Return the harness task: greedy answers; a prompt scores 1 where all its instructions are followed, else 0.

    Beside that score stand IFEval's other three: the share of instructions followed, and both counted loosely (the
    first line, the last line or the asterisks of an answer may be left out).

    Args:
        language: Must be `en`: prompts and verifiers are English.
        data: A file of the same fields in the place of our prompts.
        limit: Prompts, from the first on; None: all. Any prefix of ours mixes the instruction types.
        max_new_tokens: Longest answer; None: 160.

    Raises:
        EvaluationError: Another language, or a row that the verifiers cannot score.
        DataError: The file cannot be read.
    """
    import datasets

    if language != ENGLISH:
        raise EvaluationError(
            f"instructions: there are no prompts in {language!r}, only in {ENGLISH!r}; "
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
            "metric_list": [
                {
                    "metric": f"{level}_level_{counted}_acc",
                    "aggregation": "mean" if level == "prompt" else verifiers().agg_inst_level_acc,
                    "higher_is_better": True,
                }
                for counted in ("strict", "loose")
                for level in ("prompt", "inst")
            ],
            "metadata": {"version": VERSION},
        }
    )


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
        DataError: The file cannot be read.
        EvaluationError: It is empty, or a row cannot be read or scored.
    """
    own = Path(str(files("lingraft.evaluate").joinpath("data/instructions.jsonl")))
    rows: list[Row] = []
    for raw in open_rows(path or own).sound(EvaluationError):
        row = {name: raw.value.get(name) for name in FIELDS}
        has_all = set(FIELDS) <= raw.value.keys()
        problem = row_problem(row) if has_all else f"needs the fields {', '.join(FIELDS)}."
        if problem is not None:
            raise EvaluationError(f"instructions: {raw.place}: {problem}")
        rows.append(row)
    return rows


def row_problem(row: Row) -> str | None:
    """Return why the verifiers cannot score a row alike every time, None where they can.

    A verifier draws an argument that is missing at random: such a row is refused.
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
        verifier = known[name](name)
        present = {key: value for key, value in given.items() if value}  # as the harness's scoring reads them
        needed = set(verifier.get_instruction_args_keys())
        if present.keys() != needed:
            return f"{name}: needs the arguments {sorted(needed)}, and has {sorted(present)}."
        try:
            verifier.build_description(**present)
        except (TypeError, ValueError) as error:
            return f"{name}: {error}"
        kept = verifier.get_instruction_args() or {}
        replaced = [key for key, value in present.items() if _plain(kept[key]) != _plain(value)]
        if replaced:
            return f"{name}: {', '.join(replaced)}: not a value that it takes."
    return None


def _are_all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _plain(value: Any) -> Any:
    """Return an argument as verifiers may keep it: words in another order, a word in lower case or without spaces."""
    if isinstance(value, str):
        return value.strip().lower()
    return sorted(set(value)) if isinstance(value, (list, tuple)) else value
