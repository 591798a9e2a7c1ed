"""Files that hold test items or prompts rather than rows to train on: of which task, and where they go.

Known by the catalogue that suites use (`recognised`, `copies`), for `lingraft show data`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lingraft.data.files import COMPRESSED, SourceFile, data_suffix, files_of, is_local
from lingraft.data.language_id import CLEAR_SHARE, shares_of_languages
from lingraft.data.readers import read_file
from lingraft.data.row_fields import Row
from lingraft.errors import EvaluationError
from lingraft.evaluate.catalogue import catalogue, code_of
from lingraft.evaluate.local_rows import Expression
from lingraft.representation.prompts import holds_prompts
from lingraft.text.language_tags import canonical_tag

_LOOKED_AT = 20  # rows that must all have a task's form


@dataclass(frozen=True, slots=True)
class ItemsFile:
    """A file of test items or prompts.

    Attributes:
        name: Of the file.
        rows: In it.
        fields: Of its first row.
        language: BCP-47 tag that its name holds, or None.
        likely_language: BCP-47 tag by the language identifier where the name holds none; None: it is not clear.
        places: Task -> where suites look for the file, in the folder of `--data-dir`; `{language}` stays where the
            language is not known. Several tasks may share a form.
        data_dir: The folder to give as `--data-dir` where the file already lies in such a place; None: it does not.
        are_prompts: Whether drift reads the rows as prompts; then there are no places.
    """

    name: str
    rows: int
    fields: tuple[str, ...]
    language: str | None
    likely_language: str | None
    places: dict[str, str]
    data_dir: str | None
    are_prompts: bool


def items_files(source: str, base_folder: Path = Path()) -> tuple[ItemsFile, ...]:
    """Return the files of a source that hold test items or prompts; none where it is on the hub or the embedded corpus.

    Raises:
        DataError: There is no such file, or it cannot be read as a whole.
    """
    if not is_local(source, base_folder):
        return ()
    found = (_items_file(file) for file in files_of(source, base_folder))
    return tuple(one for one in found if one is not None)


def hub_tasks(source: str) -> tuple[str, ...]:
    """Return the tasks of the catalogue that take their items from a data set of the hub."""
    return tuple(name for name, task in catalogue().items() if task.hub == source)


def _items_file(file: SourceFile) -> ItemsFile | None:
    sample: list[Row] = []
    count = 0
    for row in read_file(file.path, file.name):
        count += 1
        if row.problem is None and len(sample) < _LOOKED_AT:
            sample.append(row.value)
    tasks = [
        name for name, task in catalogue().items() if task.recognised and _all_fit(task.recognised, sample)
    ]
    are_prompts = not tasks and bool(sample) and all(holds_prompts(row) for row in sample)
    if not tasks and not are_prompts:
        return None
    language = _language_in_name(file.path, tasks)
    placed = [(task, root) for task in tasks if (root := _data_dir(file.path, task, language)) is not None]
    if placed:  # of tasks that share a form, the one in whose place it lies
        tasks = [task for task, _ in placed]
    places = {task: _place(task, language, data_suffix(file.path)) for task in tasks}
    data_dir = placed[0][1] if placed else None
    likely = _language_of_texts(sample, tasks) if language is None else None
    return ItemsFile(file.name, count, tuple(sample[0]), language, likely, places, data_dir, are_prompts)


def _all_fit(recognised: str, rows: list[Row]) -> bool:
    fits = Expression(recognised, "recognised")
    try:
        return bool(rows) and all(fits(row, number) for number, row in enumerate(rows))
    except EvaluationError:  # a row lacks what the expression reads
        return False


def _language_in_name(path: Path, tasks: list[str]) -> str | None:
    """Return the language that a file's name or that of its folder holds: de.jsonl, mgsm_de.tsv, xquad.de.json."""
    for name in (path.name.removesuffix(COMPRESSED).rpartition(".")[0], path.parent.name):
        for part in (name, *re.split(r"[._-]", name)):
            tag = canonical_tag(part)
            is_short = tag is not None and len(tag.partition("-")[0]) == 2
            if tag and is_short and all(code_of(task, tag) is not None for task in tasks):
                return tag
    return None


def _language_of_texts(rows: list[Row], tasks: list[str]) -> str | None:
    """Return the language that nearly all rows are in and the tasks have."""
    fields = ([value if isinstance(value, list) else [value] for value in row.values()] for row in rows)
    texts = (" ".join(part for one in row for part in one if isinstance(part, str)) for row in fields)
    tag, share = next(iter(shares_of_languages(texts).items()), ("", 0.0))
    return tag if share >= CLEAR_SHARE and all(code_of(task, tag) is not None for task in tasks) else None


def _data_dir(path: Path, task: str, language: str | None) -> str | None:
    """Return the folder in which a file lies where the task's copies are looked for, or None."""
    for place in (Path(one.replace("{language}", language or "")) for one in catalogue()[task].copies):
        if path.parts[-len(place.parts) :] == place.parts:
            return str(Path(*path.parts[: -len(place.parts)]))
    return None


def _place(task: str, language: str | None, ending: str) -> str:
    """Return the place of the copies that has the file's ending, else the first one."""
    copies = catalogue()[task].copies
    place = next((one for one in copies if one.endswith(ending)), copies[0])
    return place if language is None else place.replace("{language}", language)
