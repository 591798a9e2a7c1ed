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
        task.name: [group for group in _groups_of_task(task) if group.split == split] for task in tasks
    }
    rounds = (
        sorted(tasks, key=lambda task: number_from("round", task.name, split, position))
        for position in range(GROUPS_PER_TASK[split])
    )
    return tuple(columns[task.name][position] for position, row in enumerate(rounds) for task in row)


@cache
def _groups_of_task(task: Task) -> tuple[Group, ...]:
    """Deal out one task: contents take turns, and no question comes twice over all splits."""
    tasks, contents = tasks_of(task.family), _contents_of_splits(task)
    seen: set[tuple[object, ...]] = set()
    groups: list[Group] = []
    for split in SPLITS:
        for position in range(GROUPS_PER_TASK[split]):
            content, number = contents[split][position % len(contents[split])], len(groups)
            place = number * len(tasks) + tasks.index(task)  # so kinds take turns along the corpus, too
            kind = FIRST_KINDS[place % len(FIRST_KINDS)]
            for attempt in range(_ATTEMPTS):
                parts = (task.name, number, attempt)
                phrasing = number_from("phrasing", *parts) % PHRASINGS
                constraints = choose_constraints(kind, *parts) if task.family == "lookup" else ()
                if (content, phrasing, constraints) not in seen:
                    break
            else:
                raise AssertionError(f"worldbook task {task.name}: too few contents for its number of groups")
            seen.add((content, phrasing, constraints))
            groups.append(Group(task, number, split, content, phrasing, constraints))
    return tuple(groups)


def _contents_of_splits(task: Task) -> dict[str, list[Content]]:
    """Return each split's contents; with over SHARED_SLOTS slot values, those of one value stay in one split.

    Where another language's slot is or holds the English one, the content is left out: an English answer would pass.
    """
    usable = set(task.contents())
    if task.word_slot:
        others = [language for language in LANGUAGES if language != ENGLISH]
        for content in tuple(usable):
            english = re.compile(phrase_pattern(fold_for_worldbook(task.render(content, ENGLISH).slot)))
            if any(
                english.search(fold_for_worldbook(task.render(content, language).slot)) for language in others
            ):
                usable.remove(content)
    contents = shuffle(usable, task.name)
    keys = shuffle({task.slot_key(content) for content in contents}, "slots", task.name)
    if len(keys) <= SHARED_SLOTS:
        return dict.fromkeys(SPLITS, contents)
    total = sum(GROUPS_PER_TASK.values())
    ends = [round(len(keys) * share / total) for share in itertools.accumulate(GROUPS_PER_TASK.values())]
    split_of = {
        key: split
        for split, (start, end) in zip(SPLITS, itertools.pairwise([0, *ends]), strict=True)
        for key in keys[start:end]
    }
    return {
        split: [content for content in contents if split_of[task.slot_key(content)] == split]
        for split in SPLITS
    }
