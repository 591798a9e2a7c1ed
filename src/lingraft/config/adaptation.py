"""What `lingraft adapt` does, as a pydantic model: on the command line its options, in a YAML file its fields."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from lingraft.config.load import load_section, overridden_section, section_from_options
from lingraft.config.problems import Problem
from lingraft.config.schema import (
    DataSource,
    EvaluationTask,
    LanguageTag,
    Section,
    Seed,
    StrategyChoice,
    Text,
    TrainingOverrides,
)
from lingraft.text.language_tags import is_english

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _as_source(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


Source = Annotated[DataSource, BeforeValidator(_as_source, json_schema_input_type=str | DataSource)]


class Adaptation(Section):
    """A model, rows in languages that it is to learn, and what may be lost."""

    model: Text
    """The model that learns: hub id, folder, `embedded:NAME`, or what an earlier `adapt` wrote."""
    data: tuple[Source, ...] = Field(min_length=1)
    """Rows to learn from, all in one training: each written as its source alone, or with the fields of a data set."""
    languages: tuple[LanguageTag, ...] = ()
    """What the rows are in. One: of all rows, unless a source says otherwise. Several: every row says its own, and each
    language occurs. None given: as the sources and rows say."""
    english_data: Source | None = None
    """English instructions such as the model was tuned on: compared with the new ones, and replayed; null: prompts that
    the model writes are compared, and nothing is replayed."""
    max_loss: float = Field(0.01, ge=0, lt=1)
    """What may be lost of English, and of each language of an earlier `adapt`: 1 - retention of the model's score."""
    suite: Text | None = None
    """Suite of tasks that measures both; `lingraft ls suites` lists them. Null: quick, where no `tasks` are named."""
    tasks: tuple[EvaluationTask, ...] = ()
    """Tasks, English where they name no language; those of a named suite are asked as well."""
    data_dir: Text | None = None
    """Folder of local files that stand for the data sets of the suite."""
    limit: int | None = Field(None, ge=1)
    """Most items of each task in each half of the items; null: all that there are."""
    strategy: StrategyChoice | None = None
    """Strategy or composition of the training; null: english_replay with `english_data`, else plain. In both cases the
    weights are then interpolated, which docs/results.md finds to keep the most of both abilities."""
    training: TrainingOverrides = TrainingOverrides()
    """Training options; null: the learning rate is 2e-4 below a billion parameters, else 2e-5."""
    steps: int = Field(5, ge=1, le=100)
    """Points between the model as it was and the trained one, evenly spaced."""
    groups: int = Field(3, ge=0, le=16)
    """Groups of layers of which each is tried with the weights that it had; 0: none."""
    budget: float | None = None
    """Time for everything, as `2h`, `90m` or seconds: the walk ends in time, and a training that takes longer is
    refused; null: no bound."""
    dtype: Literal["bf16", "float16", "float32"] = "bf16"
    """Type of the written weights, and of those that are evaluated on the way."""
    held_out: int = Field(100, ge=0)
    """Groups of each source's rows that are never trained on, at most a tenth; their answers' loss is measured."""
    encoder: Text = "embedded"
    """Sentence encoder of DES."""
    seed: Seed = 0
    """Of everything that is drawn: rows, their order, and the halves of the items."""
    trust_remote_code: bool = False
    """Run code that a model or a YAML task brings along. Leave it off unless you have read that code."""

    @field_validator("budget", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        """Return seconds of what is written with a unit."""
        if isinstance(value, str):
            match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])?\s*", value)
            if match is None:
                raise ValueError("write a time such as 2h, 90m or 3600 (seconds)")
            value = float(match[1]) * _UNITS[match[2] or "s"]
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not value > 0:
            raise ValueError("must be a time above 0, such as 2h")
        return value


def sources_of(adaptation: Adaptation) -> tuple[DataSource, ...]:
    """Return the sources of rows, each with its language where the adaptation names one for all."""
    if len(adaptation.languages) != 1:
        return adaptation.data
    (tag,) = adaptation.languages
    return tuple(one.model_copy(update={"language": one.language or tag}) for one in adaptation.data)


def problems_of(adaptation: Adaptation) -> list[Problem]:
    """Return what more than one field has wrong."""
    return [*_in_data(adaptation), *_in_languages(adaptation)]


def _in_languages(adaptation: Adaptation) -> Iterator[Problem]:
    named = (*adaptation.languages, *(one.language for one in adaptation.data if one.language))
    if (english := next(filter(is_english, named), None)) is not None:
        yield Problem(
            ("languages",),
            f"language: {english!r} is English, the ability that is kept, and no new one. Give English rows as "
            "--english-data (english_data), and as data those of the languages that the model is to learn.",
        )


def _in_data(adaptation: Adaptation) -> Iterator[Problem]:
    sources = [one.source for one in adaptation.data]
    for place, source in enumerate(sources):
        if source in sources[:place]:
            yield Problem(("data", place), f"data: {source!r} stands twice; name each once.")


def load_adaptation(path: Path, overrides: Sequence[str] = ()) -> Adaptation:
    """Read a YAML file.

    Raises:
        ConfigError: It cannot be read, or anything in it is wrong.
    """
    form = "an adaptation is a mapping (model:, data:, max_loss:, ...)"
    return load_section(Adaptation, path, overrides, problems_of, form)


def adaptation_of(
    model: str,
    data: Sequence[str | Mapping[str, Any]],
    languages: Sequence[str],
    overrides: Sequence[str] = (),
    **options: Any,
) -> Adaptation:
    """Return what command-line options say.

    Args:
        model: The model.
        data: Sources of rows, or the fields of data sets.
        languages: See `Adaptation`; as many as there are sources: of each its own, in order.
        overrides: `key=value` pairs.
        options: Further fields; None: the default. A task may be written as `[TAG=]NAME`, strategies that go together
            with `+` between them, and paths as such.

    Raises:
        ConfigError: An option is wrong.
    """
    sources = [{"source": one} if isinstance(one, str) else dict(one) for one in data]
    if len(data) > 1 and len(languages) == len(data):  # one each, in order
        sources = [one | {"language": tag} for one, tag in zip(sources, languages, strict=True)]
    given = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in options.items()
        if value is not None
    }
    if isinstance(given.get("strategy"), str):
        given["strategy"] = given["strategy"].split("+")
    if "tasks" in given:
        tasks = [given["tasks"]] if isinstance(given["tasks"], str) else given["tasks"]
        given["tasks"] = [_task_of(one) if isinstance(one, (str, Path)) else one for one in tasks]
    written = section_from_options(
        Adaptation, {"languages": "language"}, model=model, data=sources, languages=languages, **given
    )
    return overridden_section(written, overrides, problems_of)


def _task_of(written: str | Path) -> dict[str, str]:
    """Return a task that is written as `[TAG=]NAME` as a file has it."""
    before, separator, after = str(written).partition("=")
    return {"task": after, "language": before} if separator else {"task": str(written)}


def name_of_adapted(adaptation: Adaptation) -> str:
    """Return what the new model is called where the user does not say: the model and its new languages."""
    tags = adaptation.languages or tuple(one.language for one in adaptation.data if one.language)
    last = adaptation.model.rstrip("/").removeprefix("embedded:").rpartition("/")[2]
    named = "-".join([last, *(tags or [Path(one.source).stem for one in adaptation.data])])
    return re.sub(r"[^\w.+-]+", "-", named)[:80]
