"""Following instructions in English: 300 prompts of ours in IFEval's format, scored by the harness's own verifiers.

The prompts come with the package and need no other data: none of their instruction types counts sentences, for
which NLTK's sentence data would have to be downloaded. How they were written and how hard they are:
docs/instructions.md. A file of the user's in the same format can take their place.

Source: Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models" (the format, the verifiers and
the four metrics; the prompts are not theirs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict
from unittest.mock import patch

from lingraft.data.rows import open_rows
from lingraft.errors import EvaluationError, did_you_mean
from lingraft.evaluate.lm_eval_compat import ifeval_verifiers
from lingraft.evaluate.own_task import Documents, Options
from lingraft.text.language_tags import ENGLISH

NEW_TOKENS = 160  # every prompt can be answered in fewer; the longest answer asked for has 80 words
_OURS = Path(__file__).parent / "instructions.jsonl"


class Row(TypedDict):
    """A request in IFEval's format; `kwargs` holds the arguments of each instruction's verifier."""

    key: int
    prompt: str
    instruction_id_list: list[str]
    kwargs: list[dict[str, Any]]


def documents(options: Options) -> Documents:
    """Return the requests, from the first on; any prefix of ours mixes the instruction types.

    Args:
        options: `data` may name a file of the same fields.

    Raises:
        DataError: The file cannot be read.
        EvaluationError: Another language, or a row that cannot be read or scored.
    """
    if options.language != ENGLISH:
        raise EvaluationError(
            f"instructions: there are no prompts in {options.language!r}, only in {ENGLISH!r}; name another "
            "task for this language."
        )
    rows = read_instructions(options.data)
    names = dict.fromkeys(name for row in rows for given in row["kwargs"] for name in given)
    chosen = [
        {**row, "kwargs": [{name: given.get(name) for name in names} for given in row["kwargs"]]}
        for row in rows[: options.limit]
    ]
    return Documents(chosen, NEW_TOKENS)


def target(doc: Row) -> str:
    """Return the names of the instructions."""
    return ", ".join(doc["instruction_id_list"])


def scores(doc: Row, results: Sequence[str]) -> Mapping[str, Any]:
    """Return IFEval's four metrics of an answer."""
    return score_response(doc, results[0])


def share_of_all(items: Sequence[Sequence[bool]]) -> float:
    """Return the share of all instructions that are followed, each counted once."""
    return ifeval_verifiers().agg_inst_level_acc(items)


def score_response(row: Row, response: str) -> Mapping[str, Any]:
    """Return IFEval's four metrics of one answer: yes or no for the prompt, and a yes or no per instruction.

    Equal answers get equal scores: language identification, by which the verifiers of letter case find out whether an
    answer is English, draws at random, and is seeded here.
    """
    from langdetect import DetectorFactory

    with patch.object(DetectorFactory, "seed", 0):
        return ifeval_verifiers().process_results(row, [response])


def read_instructions(path: Path | None = None) -> list[Row]:
    """Return the rows of a file in IFEval's format, of our prompts where no file is named.

    Raises:
        DataError: The file cannot be read.
        EvaluationError: It is empty, or a row cannot be read or scored.
    """
    rows = []
    for raw in open_rows(path or _OURS).sound(EvaluationError):
        fields = Row.__annotations__
        if not fields.keys() <= raw.value.keys():
            raise EvaluationError(f"instructions: {raw.place}: needs the fields {', '.join(fields)}.")
        row = Row(
            key=raw.value["key"],
            prompt=raw.value["prompt"],
            instruction_id_list=raw.value["instruction_id_list"],
            kwargs=raw.value["kwargs"],
        )
        problem = row_problem(row)
        if problem is not None:
            raise EvaluationError(f"instructions: {raw.place}: {problem}")
        rows.append(row)
    return rows


def row_problem(row: Row) -> str | None:
    """Return why the verifiers cannot score a row alike every time, None where they can.

    A verifier draws an argument that is missing at random: such a row is refused.
    """
    known = ifeval_verifiers().instructions_registry.INSTRUCTION_DICT
    names, arguments = row["instruction_id_list"], row["kwargs"]
    if not (
        isinstance(row["prompt"], str)
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and isinstance(arguments, list)
        and all(isinstance(given, dict) for given in arguments)
    ):
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
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            return f"{name}: {type(error).__name__}: {error}"
        kept = verifier.get_instruction_args() or {}
        replaced = [key for key, value in present.items() if _plain(kept[key]) != _plain(value)]
        if replaced:
            return f"{name}: {', '.join(replaced)}: not a value that it takes."
    return None


def _plain(value: object) -> object:
    """Return an argument as verifiers may keep it: words in another order, a word in lower case or without spaces."""
    if isinstance(value, str):
        return value.strip().lower()
    return sorted(set(value)) if isinstance(value, Iterable) else value
