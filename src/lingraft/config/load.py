"""Read a study file: YAML, then `key=value` overrides, then the schema, then the cross-field checks.

All that is wrong is reported together, each problem with the place, the value, and where it was written: the line of
the file, or the override as it was typed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from lingraft.config.checks import check_study
from lingraft.config.problems import Location, Problem
from lingraft.config.schema import (
    TAG_PATTERN,
    Backend,
    DataSource,
    Evaluation,
    JudgeChoice,
    Section,
    ServerChoice,
    Study,
)
from lingraft.config.yaml_text import compose, content_of, line_of, odd_values, read_text
from lingraft.errors import ConfigError, did_you_mean
from lingraft.records import write_text_atomically

_NAME_RULE = "a name is letters, digits and . _ + -, and starts with a letter or digit"
_TAG_RULE = (
    "no language that is known; write a BCP-47 tag such as es or zh-Hant, or an English name such as Spanish"
)

_AFTER_ALL_LINES = 10**9
_RECIPES = "`lingraft ls recipes` lists ready-made ones, `lingraft copy` copies one."

FurtherChecks = Callable[[Study], Sequence[Problem]]
SectionOf = TypeVar("SectionOf", bound=Section)
Checks = Callable[[SectionOf], Sequence[Problem]]


def load_study(
    path: Path | str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    further_checks: FurtherChecks | None = None,
) -> Study:
    """Read, override and check a study file.

    Args:
        path: The YAML file, or its content.
        overrides: `key=value` pairs; the key is a dotted place (`training.epochs`, `phases.two.data.similar.limit`,
            a phase by name or number), the value is YAML.
        further_checks: Returns problems of a study whose fields are right, such as unknown names
            (`study.checks.name_problems`); they are reported with the cross-field errors.

    Raises:
        ConfigError: The file cannot be read, or anything in it is wrong; one message with every error, sorted by line,
            those of overrides last.
    """

    def problems_of(study: Study) -> list[Problem]:
        return [*check_study(study), *(() if further_checks is None else further_checks(study))]

    if isinstance(path, Mapping):
        return checked_section(Study, path, overrides, problems_of)
    return load_section(
        Study, path, overrides, problems_of, "a study is a mapping (name:, model:, phases:, ...)"
    )


def load_section(
    kind: type[SectionOf], path: Path | str, overrides: Sequence[str], checks: Checks[SectionOf], form: str
) -> SectionOf:
    """Read, override and check a YAML file of any kind.

    Args:
        kind: What it holds.
        path: The file.
        overrides: See `load_study`.
        checks: Returns the problems of a section whose fields are right.
        form: What such a file is, in words for those whose file is something else.

    Raises:
        ConfigError: As `load_study`.
    """
    path = Path(path)
    root = _read_yaml(path, form)
    odd_nodes = odd_values(root)
    lines = [(line_of(odd.node), f"{path}:{line_of(odd.node)}: {odd.problem}") for odd in odd_nodes]
    written = content_of(root, str(path))
    content, places, wrong = _overridden(written, overrides)
    lines += [(_AFTER_ALL_LINES, problem) for problem in wrong]
    section, problems = _problems_of(kind, content, checks)

    @cache
    def texts_with(some: tuple[str, ...]) -> frozenset[str]:
        return frozenset(one.text for one in _problems_of(kind, _overridden(written, some)[0], checks)[1])

    for problem in problems:
        inside = [place for place in places if problem.location[: len(place)] == place]
        culprit = places[max(inside, key=len)] if inside else None
        if not inside and places and problem.text not in texts_with(()):  # two places do not go together
            culprit = next(
                one
                for number, one in enumerate(overrides)
                if number == len(overrides) - 1
                or problem.text not in texts_with((*overrides[:number], *overrides[number + 1 :]))
            )
        line, node = _found_at(root, problem.location)
        if culprit is None and any(odd.node is node for odd in odd_nodes):
            continue  # a consequence
        if culprit is None:
            lines.append((line, f"{path}:{line}: {problem.text}"))
        else:
            lines.append((_AFTER_ALL_LINES, f"{_name(culprit)}: {problem.text}"))
    if section is None or lines:
        lines.sort(key=lambda one: one[0])
        raise ConfigError("\n".join(dict.fromkeys(text for _, text in lines)))
    return section


def overridden_section(section: SectionOf, overrides: Sequence[str], checks: Checks[SectionOf]) -> SectionOf:
    """Return a section that no file holds with overrides, checked.

    Args:
        section: As options say it.
        overrides: See `load_study`.
        checks: As of `load_section`.

    Raises:
        ConfigError: With every problem.
    """
    content = section.model_dump(mode="json", exclude_unset=True)
    return checked_section(type(section), content, overrides, checks)


def checked_section(
    kind: type[SectionOf], given: Mapping[str, Any], overrides: Sequence[str], checks: Checks[SectionOf]
) -> SectionOf:
    """Return a section of what a file would hold, with overrides, checked.

    Raises:
        ConfigError: With every problem.
    """
    content, _, wrong = _overridden(_copied(dict(given)), overrides)
    found, problems = _problems_of(kind, content, checks)
    if found is None or problems or wrong:
        raise ConfigError("\n".join(dict.fromkeys([*(one.text for one in problems), *wrong])))
    return found


def _problems_of(
    kind: type[SectionOf], content: Any, checks: Checks[SectionOf]
) -> tuple[SectionOf | None, list[Problem]]:
    """Return a section and what is wrong with it; where fields are wrong, what others say wrong together as well."""
    found: list[Problem] = []
    left_out: list[Location] = []
    try:
        section: SectionOf | None = kind.model_validate(content)
    except ValidationError as error:
        details = error.errors(include_url=False)
        deeper = [detail["loc"] for detail in details if detail["type"] != "too_short"]
        for detail in details:
            location = detail["loc"]
            if detail["type"] == "too_short" and any(one[: len(location)] == location for one in deeper):
                continue  # pydantic drops the broken elements, then finds too few: only the first is news
            found.append(Problem(location, f"{_place(location)} {_problem(kind, location, detail)}"))
        content = _copied(content)
        left_out = [_leave_out(content, detail["loc"]) for detail in details if detail["type"] != "missing"]
        try:
            section = kind.model_validate(content)
        except ValidationError:
            section = None
    if section is None:
        return None, found
    found += [
        one
        for one in checks(section)
        if not any(one.location[: len(location)] == location for location in left_out)
    ]
    return section, found


def _leave_out(content: Any, location: Location) -> Location:
    """Take the value at a place out of a file's content, with the list that it stands in; return its place."""
    holder, last = content, None
    reached: list[str | int] = []
    place: Location = ()
    for part in location:
        if isinstance(content, dict) and part in content:
            reached.append(part)
            holder, last, place = content, part, tuple(reached)
        elif isinstance(content, list) and isinstance(part, int) and part < len(content):
            reached.append(part)
        else:
            continue  # a part that the schema adds
        content = content[part]
    if last is not None:
        holder.pop(last, None)
    return place


def data_source(source: str, **options: Any) -> DataSource:
    """Return a data set's description from command-line options.

    Raises:
        ConfigError: An option is wrong; the message names it and its value.
    """
    return section_from_options(DataSource, {"fields": "field"}, source=source, **options)


def judge_choice(url: str, model: str, **options: Any) -> JudgeChoice:
    """Return a judge from command-line options.

    Raises:
        ConfigError: An option is wrong; the message names it and its value.
    """
    return section_from_options(
        JudgeChoice, {"url": "judge-url", "model": "judge-model"}, url=url, model=model, **options
    )


def section_from_options(kind: type[SectionOf], names: Mapping[str, str], **options: Any) -> SectionOf:
    """Return a section made of command-line options; `names` holds those that are not called like their field."""

    def option(place: str) -> str:
        field, _, inner = place.partition(".")
        return f"--{names.get(field, field.replace('_', '-'))}" + (f" {inner!r}" if inner else "")

    try:
        return kind(**options)
    except ValidationError as error:
        raise ConfigError(" ".join(_section_problems(kind, error, option))) from None


def backend_of(given: object, place: str) -> Backend:
    """Return what generates, of what a Python function is given: a name, a `ServerChoice`, or its fields in a mapping.

    Raises:
        ConfigError: It is no engine, or a field is wrong.
    """
    if isinstance(given, str):
        try:
            return Evaluation(backend=given).backend
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{place} {given!r}: {message}.") from None
    return section_of(ServerChoice, given, place)


def section_of(kind: type[SectionOf], given: object, place: str) -> SectionOf:
    """Return a section of the study file that a Python function is given: itself, or its fields in a mapping.

    Args:
        kind: Of which section.
        given: What is given.
        place: What messages call it.

    Raises:
        ConfigError: A field is wrong, or it is neither.
    """
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise ConfigError(f"{place} {_shown(given)}: give a {kind.__name__}, or its fields in a dict.")
    try:
        return kind(**given)
    except ValidationError as error:
        problems = _section_problems(kind, error, lambda field: f"{place}.{field}")
        raise ConfigError(" ".join(problems)) from None


def _section_problems(
    kind: type[BaseModel], error: ValidationError, named: Callable[[str], str]
) -> Iterator[str]:
    """Yield what is wrong with a section's fields, each field as it is `named` where it was given."""
    for detail in error.errors():
        location = detail["loc"]
        if location:
            field = _place(location).removeprefix("filters.")  # each filter is an option of its own
            yield f"{named(field)} {_problem(kind, location, detail)}"
        else:  # of several, which the message names as the study file does
            message = detail["msg"].removeprefix("Value error, ")
            yield f"{re.sub('`([a-z_]+)`', lambda name: named(name[1]), message)}."


def dump_study(study: Study) -> str:
    """Return the resolved study as YAML; loading it again gives an equal study."""
    return yaml.safe_dump(
        study.model_dump(mode="json", exclude_defaults=False), sort_keys=False, allow_unicode=True
    )


def save_study(study: Study, path: Path) -> None:
    """Write the resolved study atomically."""
    write_text_atomically(path, dump_study(study))


def _read_yaml(path: Path, form: str) -> yaml.MappingNode:
    """Return a file's nodes, which know their lines; keys and aliases are checked."""
    if not os.path.exists(path):  # noqa: PTH110 (which no name is too long for)
        is_override = re.match(r"[\w.\[\]-]+=", str(path))
        advice = (
            f"It reads like an override: the study file comes first (STUDY {path})."
            if is_override
            else _RECIPES
        )
        beside = [one.name for one in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        close = [] if is_override else get_close_matches(path.name, beside, n=1)
        hint = f"Did you mean {path.parent / close[0]}? " if close else ""
        raise ConfigError(f"{path}: no such file. {hint}{advice}")
    root = compose(read_text(path), str(path))
    if not isinstance(root, yaml.MappingNode):
        found = "empty" if root is None else "a list" if isinstance(root, yaml.SequenceNode) else "one value"
        raise ConfigError(f"{path}:1: the file is {found}; {form}. {_RECIPES}")
    return root


def _copied(value: Any) -> Any:
    """Return a file's content of which no part is another's too, as aliases are."""
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, Path):  # where Python gives the content
        return str(value)
    return [_copied(one) for one in value] if isinstance(value, list) else value


def _overridden(written: Any, overrides: Sequence[str]) -> tuple[Any, dict[Location, str], list[str]]:
    """Return a file's content with overrides, by the place below which all is its own each override, and what is wrong.

    A wrong override changes nothing.
    """
    content = _copied(written)
    places: dict[Location, str] = {}
    exact: dict[Location, str] = {}
    wrong = []
    for override in overrides:
        before = _copied(content)
        try:
            own, place = _override(content, override)
        except ConfigError as error:
            wrong.append(str(error))
            content = before
            continue
        lost = next((earlier for one, earlier in exact.items() if one[: len(place)] == place), None)
        if lost is not None:
            wrong.append(f"{_name(override)}: would undo {_name(lost)} before it; keep one.")
            content = before
            continue
        places[own], exact[place] = override, override
    return content, places, wrong


def _override(content: Any, override: str) -> tuple[Location, Location]:
    """Set what a `key=value` pair says in a file's content; return the place below which all is its own, and its place.

    Raises:
        ConfigError: It is no such pair, its value is no YAML, or its place lies in nothing that has parts.
    """
    key, separator, text = override.partition("=")
    *parts, last = key.strip().replace("[", ".").replace("]", "").split(".")
    if not separator or not all((*parts, last)):
        raise ConfigError(f"{_name(override)}: write key=value, such as training.epochs=2.")
    node = compose(text, f"{_name(override)}: {_shown(text)}", has_lines=False)
    for odd in odd_values(node):
        raise ConfigError(f"{_name(override)}: {odd.problem}")
    target = content
    location: list[str | int] = []
    made: Location = ()  # the outermost mapping that the file does not have
    for part in parts:
        location.append(_step(target, part, override))
        if isinstance(target, dict) and target.get(part) is None:
            target[part] = {}
            made = made or tuple(location)
        target = target[location[-1]]
    location.append(_step(target, last, override))
    target[location[-1]] = content_of(node, _name(override))
    return made or tuple(location), tuple(location)


def _step(target: Any, part: str, override: str) -> str | int:
    """Return the key or the number by which a part of an override's place is found in `target`."""
    if isinstance(target, dict):
        return part
    if isinstance(target, list):
        names = [entry.get("name") if isinstance(entry, dict) else None for entry in target]
        if part in names:
            return names.index(part)
        if part.isdecimal() and len(part) < 10 and int(part) < len(target):
            return int(part)
        known = [str(name) for name in names if name is not None] or [str(i) for i in range(len(target))]
        raise ConfigError(f"{_name(override)}: there is no {_shown(part)} here. {did_you_mean(part, known)}")
    raise ConfigError(
        f"{_name(override)}: {_shown(part)} lies inside a value that has no parts ({_shown(target)})."
    )


def _found_at(node: yaml.Node, location: Location) -> tuple[int, yaml.Node]:
    """Return the line of a place in a file, and its node; of what the file does not have, those of what holds it."""
    line = node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            # What is merged into a mapping (`<<`) stands before its own keys.
            match = next(
                ((key, value) for key, value in reversed(node.value) if key.value == str(part)), None
            )
            if match is None:
                continue  # a part that the schema adds (`parts`, a union's branch) and the file does not have
            line, node = match[0].start_mark.line + 1, match[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line, node


def _place(location: Location) -> str:
    place = ""
    for before, part in zip(("", *location), location, strict=False):
        if part == "parts" or (before == "parts" and part == 0):
            continue  # the schema's own wrapping of a strategy; the file does not have it
        if part in ("[key]", "[name]", "[section]"):
            continue  # how pydantic says that the key is wrong, or which branch of a union
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    return place or "the study"


def _problem(section: type[BaseModel], location: Location, detail: Any) -> str:
    """Return what is wrong at a place inside of a section, as the end of a sentence that begins with the place."""
    kind = detail["type"]
    if kind == "extra_forbidden":
        inner = next(sections_at(section, location[:-1]), section)
        return f"is not a field. {did_you_mean(str(location[-1]), inner.model_fields)}"
    if location[-1:] == ("[key]",) and kind == "literal_error":  # of a mapping whose keys are fixed
        inner_keys = re.findall(r"'(\w+)'", detail["ctx"]["expected"])
        return f"is not a field. {did_you_mean(str(location[-2]), inner_keys)}"
    if kind == "invalid_key":
        return "is not a field: a key must be text."
    if kind == "missing":
        return "is missing: it must be given."
    message = str(detail["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if kind == "string_pattern_mismatch":
        message = _TAG_RULE if detail["ctx"]["pattern"] == TAG_PATTERN else _NAME_RULE
    if kind == "string_type" and isinstance(detail["input"], bool):
        message = "YAML takes no, yes, on and off for truth values; put it into quotation marks ('no')"
    elif kind == "string_type" and isinstance(detail["input"], (int, float)):
        message = "must be text; put it into quotation marks"
    if kind == "tuple_type":
        message = "write a list ([one, two])"
    if kind in ("model_type", "dict_type"):
        message = "write fields and their values ({field: value})"
    if kind == "too_short":
        message = f"give at least {detail['ctx']['min_length']}, not {detail['ctx']['actual_length']}"
    return f"is {_shown(detail['input'])}: {message}."


def _name(override: str) -> str:
    shown = override if len(override) <= 120 else override[:117] + "..."
    return f"override {shown!r}"


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def sections_at(annotation: Any, location: Location) -> Iterator[type[BaseModel]]:
    """Yield the sections that a place inside of a type may hold, following fields, keys and numbers.

    Parts of the place that the type does not have are passed over: pydantic names the branches of a union.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not location:
            yield annotation
        elif (field := annotation.model_fields.get(str(location[0]))) is not None:
            yield from sections_at(field.annotation, location[1:])
        else:
            yield from sections_at(annotation, location[1:])
        return
    inner = get_args(annotation)
    if get_origin(annotation) in (dict, tuple):
        inner, location = ((inner[1],) if get_origin(annotation) is dict else inner[:1]), location[1:]
    for one in inner:
        yield from sections_at(one, location)
