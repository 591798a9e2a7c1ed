"""The parallel groups of a family: contents, phrasings and constraints, dealt out to the splits.

Nothing here is in a language, except that a content is left out where another language's slot is or holds the
English one. Adding a language may therefore change the groups; VERSION is raised with it.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import cache

from lingraft.data.worldbook.choice import number_from, shuffle
from lingraft.data.worldbook.forms import FIRST_KINDS, ConstraintChoice, choose_constraints
from lingraft.data.worldbook.tasks import Content, Task, tasks_of
from lingraft.data.worldbook.templates import LANGUAGES
from lingraft.data.worldbook.writing import phrase_pattern
from lingraft.text.folding import fold_for_worldbook
from lingraft.text.language_tags import ENGLISH

SPLITS = ("train", "selection", "report")
GROUPS_PER_TASK = {"train": 120, "selection": 30, "report": 50}
PHRASINGS = 4
SHARED_SLOTS = 40  # up to so many slot values of a task may occur in several splits

_ATTEMPTS = 400


@dataclass(frozen=True, slots=True)
class Group:
    """One question and its answer before they are put into a language."""

    task: Task
    number: int
    split: str
    content: Content
    phrasing: int
    constraints: tuple[ConstraintChoice, ...]

    @property
    def name(self) -> str:
        """The group's name over all languages, such as "lookup/month_after/17"."""
        return f"{self.task.family}/{self.task.name}/{self.number}"


@cache
def groups_of(family: str, split: str) -> tuple[Group, ...]:
    """Return a split's groups, each round of as many as there are tasks holding every task once."""
    tasks = tasks_of(family)
    columns = {
        task.name: [group for group in _groups_of_task(task.name) if group.split == split] for task in tasks
    }
    rounds = (
        [columns[task.name][position] for task in shuffle_tasks(tasks, split, position)]
        for position in range(GROUPS_PER_TASK[split])
    )
    return tuple(itertools.chain.from_iterable(rounds))


def shuffle_tasks(tasks: tuple[Task, ...], *parts: object) -> list[Task]:
    """Return the tasks in a seeded order."""
    return sorted(tasks, key=lambda task: number_from("round", task.name, *parts))


@cache
def _groups_of_task(name: str) -> tuple[Group, ...]:
    """Deal out one task: contents take turns, and no question comes twice over all splits."""
    task = next(task for family in ("lookup", "counting") for task in tasks_of(family) if task.name == name)
    contents = _contents_of_splits(task)
    seen: set[tuple[object, ...]] = set()
    groups: list[Group] = []
    for split in SPLITS:
        for position in range(GROUPS_PER_TASK[split]):
            content = contents[split][position % len(contents[split])]
            groups.append(_new_group(task, len(groups), split, content, seen))
    return tuple(groups)


def _new_group(task: Task, number: int, split: str, content: Content, seen: set[tuple[object, ...]]) -> Group:
    tasks = tasks_of(task.family)
    for attempt in range(_ATTEMPTS):
        parts = (task.name, number, attempt)
        phrasing = number_from("phrasing", *parts) % PHRASINGS
        turn = number * len(tasks) + tasks.index(task)  # so kinds take turns along the corpus, too
        kind = FIRST_KINDS[turn % len(FIRST_KINDS)]
        constraints = choose_constraints(kind, *parts) if task.family == "lookup" else ()
        key = (content, phrasing, constraints)
        if key not in seen:
            seen.add(key)
            return Group(task, number, split, content, phrasing, constraints)
    raise AssertionError(f"worldbook task {task.name}: too few contents for its number of groups")


def _contents_of_splits(task: Task) -> dict[str, list[Content]]:
    """Return each split's contents; with over SHARED_SLOTS slot values, those of one value stay in one split."""
    contents = shuffle(
        {content for content in task.contents() if _differs_from_english(task, content)}, task.name
    )
    keys = shuffle({task.slot_key(content) for content in contents}, "slots", task.name)
    if len(keys) <= SHARED_SLOTS:
        return dict.fromkeys(SPLITS, contents)
    total = sum(GROUPS_PER_TASK.values())
    bounds = [
        0,
        *(round(len(keys) * share / total) for share in itertools.accumulate(GROUPS_PER_TASK.values())),
    ]
    split_of = {
        key: split
        for split, start, end in zip(SPLITS, bounds, bounds[1:], strict=False)
        for key in keys[start:end]
    }
    return {
        split: [content for content in contents if split_of[task.slot_key(content)] == split]
        for split in SPLITS
    }


def _differs_from_english(task: Task, content: Content) -> bool:
    """Whether no other language's slot is or holds the English one, so that an English answer cannot pass."""
    if not task.word_slot:
        return True
    english = re.compile(phrase_pattern(fold_for_worldbook(task.render(content, ENGLISH).slot)))
    others = (language for language in LANGUAGES if language != ENGLISH)
    return not any(
        english.search(fold_for_worldbook(task.render(content, language).slot)) for language in others
    )
