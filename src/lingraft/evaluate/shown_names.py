"""What tables call a task that is given as a YAML file: the name in the file, in place of its path."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import PurePath
from typing import Any, TypeVar

from lingraft.evaluate.task_names import is_task_file
from lingraft.evaluate.task_records import TaskRecord

Found = TypeVar("Found")
_PLACES = frozenset(("checkpoint", "folder", "phase_one_predictions", "predictions", "reason", "run"))
"""Fields that say where something lies, or why it failed: who mends that looks for the file."""


def names_in_files(asked: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Return by path what a task that is given as a file is called; tasks with a name of their own are left out.

    Args:
        asked: By task as the user wrote it, the harness's names of what it stands for. Of a group, and where nothing is
            known, it is called by the file's stem. A path stays where another task has its name.
    """
    names = {
        task: next(iter(own)) if is_task_file(task) and len(own) == 1 else PurePath(task).stem
        for task, own in asked.items()
    }
    shown = {task: name if is_task_file(task) else task for task, name in names.items()}
    counts = Counter(shown.values())
    return {task: name for task, name in shown.items() if is_task_file(task) and counts[name] == 1}


def names_of_records(records: Iterable[Mapping[str, TaskRecord]]) -> dict[str, str]:
    """Return `names_in_files` of tasks by their records, whose keys end in the language."""
    asked: dict[str, set[str]] = {}
    for own in records:
        for label, one in own.items():
            asked.setdefault(label.rpartition("/")[0], set()).update(one.settings.parts)
    return names_in_files(asked)


def names_in_keys(keys: Iterable[str]) -> dict[str, set[str]]:
    """Return by task as the user wrote it what it stands for, by the keys of an evaluation's manifest.

    Raises:
        ValueError: One is no such key.
    """
    asked: dict[str, set[str]] = {}
    for key in keys:
        _, task, _, own = key.split("|")
        asked.setdefault(task, set()).add(own)
    return asked


def renamed(found: Found, names: Mapping[str, str]) -> Found:
    """Return scores, differences or a whole result with the tasks called by `names`, in keys and in sentences."""
    if not names:
        return found
    paths = "|".join(re.escape(one) for one in sorted(names, key=len, reverse=True))
    task = re.compile(rf"(?<![\w./\\-])(?:{paths})(?![\w-])")
    return _renamed(found, lambda text: task.sub(lambda match: names[match[0]], text))  # type: ignore[no-any-return]


def _renamed(found: Any, call: Callable[[str], str]) -> Any:
    if isinstance(found, str):
        return call(found)
    if is_dataclass(found) and not isinstance(found, type):
        return replace(
            found,
            **{
                one.name: _renamed(getattr(found, one.name), call)
                for one in fields(found)
                if one.name not in _PLACES
            },
        )
    if isinstance(found, Mapping):
        return {_renamed(key, call): _renamed(value, call) for key, value in found.items()}
    if isinstance(found, (tuple, list)):
        return type(found)(_renamed(one, call) for one in found)
    return found
