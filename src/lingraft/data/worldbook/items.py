"""Items: a group in one language, with everything that scoring an answer to it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from lingraft.data.example import Example, Message
from lingraft.data.worldbook.constraints import COUNTED, Constraint
from lingraft.data.worldbook.forms import instruct, resolve_constraint, write_answer
from lingraft.data.worldbook.groups import SPLITS, Group, groups_of
from lingraft.data.worldbook.templates import LANGUAGES, load_templates
from lingraft.data.worldbook.writing import writing_of
from lingraft.errors import DataError, did_you_mean

VERSION = "2"  # raised whenever any question, answer or split changes; part of what a stage depends on
FAMILIES = ("lookup", "counting")


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its reference answer and what judges an answer to it.

    Attributes:
        example: The question and the reference answer, which follows all constraints.
        family: "lookup" or "counting".
        task: The task type, such as "month_after".
        split: "train", "selection" or "report".
        slot: What a right answer must contain, in the item's language.
        sentence: The plain answer sentence, without the form that the constraints ask for.
        given: Words of the task's vocabulary that stand in the question and that an answer may repeat.
        other_answers: Language to the plain answer sentence of the same group, for every other language.
        constraints: What the question asks of the answer's form; empty for counting.
    """

    example: Example
    family: str
    task: str
    split: str
    slot: str
    sentence: str
    given: tuple[str, ...]
    other_answers: Mapping[str, str]
    constraints: tuple[Constraint, ...]


@cache
def load_items(family: str, language: str, split: str) -> tuple[Item, ...]:
    """Return the items of one of FAMILIES, LANGUAGES and SPLITS.

    The order is seeded and mixes all tasks evenly, so that any prefix holds each task equally often (within one);
    position i is the same group in every language.

    Raises:
        DataError: A name is not known; the message names the closest one.
    """
    check_name("family", family, FAMILIES)
    check_name("language", language, LANGUAGES)
    check_name("split", split, SPLITS)
    items = []
    for group in groups_of(family, split):
        rendered = group.task.render(group.content, language)
        template = load_templates(language)["tasks"][group.task.name]["questions"][group.phrasing]
        demands = [instruct(choice, language) for choice in group.constraints]
        question = writing_of(language).between_sentences.join(
            [template.format_map(rendered.fields), *demands]
        )
        sentence = plain_sentence(group, language)
        answer = write_answer(sentence, rendered.slot, group.constraints, language)
        example = Example(
            id=f"{group.name}/{language}",
            messages=(Message("user", question), Message("assistant", answer)),
            language=language,
            group=group.name,
            source=f"worldbook:{family}/{language}",
            task_type=group.task.name,
        )
        items.append(
            Item(
                example=example,
                family=family,
                task=group.task.name,
                split=split,
                slot=rendered.slot,
                sentence=sentence,
                given=rendered.given,
                other_answers={
                    other: plain_sentence(group, other) for other in LANGUAGES if other != language
                },
                constraints=tuple(resolve_constraint(choice, language) for choice in group.constraints),
            )
        )
    return tuple(items)


def check_name(kind: str, value: str, options: Iterable[str], source: str = "worldbook") -> None:
    """Raise DataError, with a hint, where `value` is none of `options`."""
    if value not in options:
        raise DataError(f"{source}: {value!r} is not a {kind} of worldbook. {did_you_mean(value, options)}")


@cache
def plain_sentence(group: Group, language: str) -> str:
    """Return the answer sentence of a group, before any form is put on it."""
    rendered = group.task.render(group.content, language)
    template = load_templates(language)["tasks"][group.task.name]["answer"]
    return template.format_map({**rendered.fields, "slot": rendered.slot})


def item_to_row(item: Item) -> dict[str, Any]:
    """Return an item as plain JSON values, for the documents of an evaluation task."""
    row = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    row["example"] = {key: getattr(item.example, key) for key in ("id", "language", "group", "source")}
    row["example"]["messages"] = [{"role": one.role, "content": one.content} for one in item.example.messages]
    row["given"] = list(item.given)
    # Pairs, not an object: Arrow, which evaluation tasks read rows with, gives all rows the union of all keys.
    row["other_answers"] = [[language, answer] for language, answer in item.other_answers.items()]
    # Arguments are text in a row, because one Arrow column holds one type.
    row["constraints"] = [
        {"kind": constraint.kind, "arguments": [str(argument) for argument in constraint.arguments]}
        for constraint in item.constraints
    ]
    return row


def item_from_row(row: Mapping[str, Any]) -> Item:
    """Return the item that `item_to_row` wrote."""
    example = row["example"]
    return Item(
        example=Example(
            messages=tuple(Message(turn["role"], turn["content"]) for turn in example["messages"]),
            task_type=row["task"],
            **{key: example[key] for key in ("id", "language", "group", "source")},
        ),
        **{key: row[key] for key in ("family", "task", "split", "slot", "sentence")},
        given=tuple(row["given"]),
        other_answers=dict(row["other_answers"]),
        constraints=tuple(
            Constraint(kind, tuple(int(text) if kind in COUNTED else text for text in arguments))
            for kind, arguments in ((one["kind"], one["arguments"]) for one in row["constraints"])
        ),
    )
