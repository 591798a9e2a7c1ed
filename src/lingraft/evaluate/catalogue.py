"""The catalogue: of each task that suites name, which languages and data it has; and the suites themselves.

`catalogue.yaml` and `suites/*.yaml` are data of the package. `selection` makes entries of an evaluation of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from lingraft.config.schema import EvaluationTask, Section, Text
from lingraft.errors import ConfigError, did_you_mean
from lingraft.text.language_tags import nearest_language, primary_subtag

_HERE = Path(__file__).resolve().parent


class CatalogueTask(Section):
    """A task of the catalogue. `{language}` and `{code}` in its texts are filled in for each language."""

    meaning: Text
    """One line for people."""
    task: Text
    """A task of lingraft's own, or the harness's."""
    hub: Text | None = None
    """Data set on the hub; null: the task brings its data along."""
    languages: dict[str, Text] = Field(min_length=1)
    """BCP-47 tag -> what the task's name has for it."""
    copies: tuple[Text, ...] = ()
    """Local copies inside the data folder, the first one that exists is used."""
    recognised: Text | None = None
    """Jinja expression over a row: whether it has one of the forms that a copy may have; null: they do not say."""
    metric: Text | None = None
    """See EvaluationTask."""
    filter: Text | None = None
    """See EvaluationTask."""
    cluster: Text | None = None
    """See EvaluationTask."""
    rows: Text | None = None
    """See EvaluationTask; for local copies."""
    missing: Text | None = None
    """A field of the hub's data set; `fields` is for local copies whose rows have none."""
    fields: dict[str, Text] = Field(default_factory=dict)
    """See EvaluationTask; for local copies."""


class Suite(Section):
    """A list of tasks of the catalogue, and worldbook."""

    meaning: Text
    """One line for people."""
    task_ability: tuple[EvaluationTask, ...]
    """What English is tested by."""
    language_ability: tuple[EvaluationTask, ...]
    """What the other languages are tested by."""

    @property
    def names(self) -> list[str]:
        """The names of its tasks, English ones first, each once."""
        return list(dict.fromkeys(one.task for one in (*self.task_ability, *self.language_ability)))


@cache
def catalogue() -> dict[str, CatalogueTask]:
    """Return every task that suites can name."""
    content = _read(_HERE / "catalogue.yaml")
    return {name: CatalogueTask.model_validate(entry) for name, entry in content.items()}


@cache
def suites() -> dict[str, Suite]:
    """Return every suite by its name, sorted."""
    return {
        path.stem: Suite.model_validate(_read(path)) for path in sorted((_HERE / "suites").glob("*.yaml"))
    }


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def suite(name: str) -> Suite:
    """Return a suite.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in suites():
        raise ConfigError(f"{name!r} is not a suite. {did_you_mean(name, suites())}")
    return suites()[name]


def code_of(name: str, language: str) -> str | None:
    """Return what a task of the catalogue calls a language, or its nearest one; None: it has neither."""
    languages = catalogue()[name].languages
    own = nearest_language(language, tuple(languages))
    return None if own is None else languages[own]


def copies_of(name: str, language: str, data_dir: str | None) -> Iterator[str]:
    """Yield the places of local copies of a task's data, in the order in which they are looked for."""
    if data_dir is None:
        return
    own = nearest_language(language, tuple(catalogue()[name].languages))
    tags = dict.fromkeys((language, primary_subtag(language), *([] if own is None else [own])))
    for pattern in catalogue()[name].copies:
        for tag in tags:
            yield str(Path(data_dir) / filled(pattern, tag, tag))


def filled(text: str, language: str, code: str) -> str:
    """Return a text of the catalogue with the names filled in; Jinja's own braces may stand beside them."""
    return text.replace("{language}", language).replace("{code}", code)


def data_places(name: str, language: str, data_dir: str | None) -> str:
    """Return in words where the data of a task are looked for: local copies, then the hub."""
    known = catalogue().get(name)
    if known is None or known.hub is None:
        return "it brings its data along" if known is not None else "its data set on the hub"
    copies = list(copies_of(name, language, data_dir))
    if not copies:
        copy = filled(known.copies[0], language, language)
        return f"{known.hub} on the hub; no --data-dir was given ({copy} in it)"
    return f"{' or '.join(copies)}, or {known.hub} on the hub"
