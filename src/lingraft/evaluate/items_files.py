"""Files that hold test items or prompts rather than rows to train on: of which task, and where they go.

Known by the catalogue that suites use (`recognised`, `copies`), for `lingraft show data`.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lingraft.data.files import SourceFile, files_of, is_local
from lingraft.data.language_id import CLEAR_SHARE, shares_of_languages
from lingraft.data.readers import COMPRESSED, data_suffix
from lingraft.data.row_fields import Row
from lingraft.data.rows import OpenedRows, open_rows
from lingraft.errors import EvaluationError
from lingraft.evaluate.catalogue import catalogue, code_of
from lingraft.evaluate.expressions import Expression
from lingraft.representation.prompts import holds_prompts
from lingraft.text.language_tags import canonical_tag, primary_subtag

_LOOKED_AT = 20  # rows that must all have a task's form


@dataclass(frozen=True, slots=True)
class ItemsFile:
    """A file of test items or prompts."""

    name: str  # of the file
    rows: int  # in it
    fields: tuple[str, ...]  # of its first row
    language: str | None  # BCP-47 tag that its name holds, or None
    # BCP-47 tag by the language identifier where the name holds none; None: it is not clear.
    likely_language: str | None
    # Task -> where suites look for the file, in the folder of `--data-dir`; `{language}` stays where the
    # language is not known. Several tasks may share a form.
    places: dict[str, str]
    # The folder to give as `--data-dir` where the file already lies in such a place; None: it does not.
    data_dir: str | None
    are_prompts: bool  # whether drift reads the rows as prompts; then there are no places


def items_files(source: str, base_folder: Path = Path()) -> tuple[ItemsFile, ...]:
    """Return the files of a source that hold test items or prompts; none where it is on the hub or the embedded corpus.

    Raises:
        DataError: There is no such file, or it cannot be read as a whole.
    """
    if not is_local(source, base_folder):
        return ()
    found = (_items_file(file) for file in files_of(source, base_folder))
    return tuple(one for one in found if one is not None)


def holds_test_items(source: str, base_folder: Path = Path()) -> bool:
    """Return whether every file of a local source holds test items of a task, whatever else its rows could be."""
    return is_local(source, base_folder) and all(
        _tasks_of(_sample(open_rows(file, first=_LOOKED_AT))) for file in files_of(source, base_folder)
    )


def hub_tasks(source: str) -> tuple[str, ...]:
    """Return the tasks of the catalogue that take their items from a data set of the hub."""
    return tuple(name for name, task in catalogue().items() if task.hub == source)


def _sample(rows: OpenedRows) -> list[Row]:
    return list(islice((row.value for row in rows if row.problem is None), _LOOKED_AT))


def _tasks_of(sample: list[Row]) -> list[str]:
    """Return the tasks of the catalogue that all rows have the form of."""
    found = []
    for name, task in catalogue().items():
        if task.recognised and sample:
            fits = Expression(task.recognised, "recognised")
            with suppress(EvaluationError):  # what the expression reads is missing in a row
                if all(fits(row, number) for number, row in enumerate(sample)):
                    found.append(name)
    return found


def _items_file(file: SourceFile) -> ItemsFile | None:
    rows = open_rows(file)
    sample = _sample(rows)
    tasks = _tasks_of(sample)
    are_prompts = not tasks and bool(sample) and all(holds_prompts(row) for row in sample)
    if not tasks and not are_prompts:
        return None
    language = _language_in_name(file.path, tasks)
    likely = None
    if language is None:  # the one that nearly all rows are in, where the tasks have it
        values = ([value if isinstance(value, list) else [value] for value in row.values()] for row in sample)
        texts = (" ".join(part for one in row for part in one if isinstance(part, str)) for row in values)
        tag, share = next(iter(shares_of_languages(texts).items()), ("", 0.0))
        if share >= CLEAR_SHARE and all(code_of(task, tag) is not None for task in tasks):
            likely = tag
    roots: dict[
        str, str
    ] = {}  # of the tasks in whose place the file lies: the folder that it is looked for in
    for task in tasks:
        for place in (Path(one.replace("{language}", language or "")) for one in catalogue()[task].copies):
            if file.path.parts[-len(place.parts) :] == place.parts:
                roots.setdefault(task, str(Path(*file.path.parts[: -len(place.parts)])))
    places = {}
    for task in roots or tasks:
        copies = catalogue()[task].copies
        copy = next((one for one in copies if one.endswith(data_suffix(file.path))), copies[0])
        places[task] = copy if language is None else copy.replace("{language}", language)
    return ItemsFile(
        name=file.name,
        rows=sum(1 for _ in rows),
        fields=tuple(sample[0]),
        language=language,
        likely_language=likely,
        places=places,
        data_dir=next(iter(roots.values()), None),
        are_prompts=are_prompts,
    )


def _language_in_name(path: Path, tasks: list[str]) -> str | None:
    """Return the language that a file's name or that of its folder holds: de.jsonl, mgsm_de.tsv, xquad.de.json."""
    for name in (path.name.removesuffix(COMPRESSED).rpartition(".")[0], path.parent.name):
        for part in (name, *re.split(r"[._-]", name)):
            tag = canonical_tag(part)
            is_short = tag is not None and len(primary_subtag(tag)) == 2
            if tag and is_short and all(code_of(task, tag) is not None for task in tasks):
                return tag
    return None
