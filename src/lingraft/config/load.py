"""Read a study file: YAML, then `key=value` overrides, then the schema, then the cross-field checks.

All schema errors are reported together, and so are all cross-field errors; each with the file, the line, the
place inside the file and the value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from lingraft.config.checks import check_study
from lingraft.config.schema import TAG_PATTERN, DataSource, JudgeChoice, Section, Study
from lingraft.errors import ConfigError, did_you_mean, in_one_line
from lingraft.records import write_text_atomically

_NAME_RULE = "a name is letters, digits and . _ + -, and starts with a letter or digit"
_TAG_RULE = (
    "no language that is known; write a BCP-47 tag such as es or zh-Hant, or an English name such as Spanish"
)

_MOST_VALUES = 100_000

Location = tuple[str | int, ...]
SectionOf = TypeVar("SectionOf", bound=Section)


def load_study(
    path: Path | str,
    overrides: Sequence[str] = (),
    further_checks: Callable[[Study], Sequence[str]] | None = None,
) -> Study:
    """Read, override and check a study file.

    Args:
        path: The YAML file.
        overrides: `key=value` pairs; the key is a dotted place (`training.epochs`, `phases.two.data.similar.limit`,
            a phase by name or number), the value is YAML.
        further_checks: Returns problems of a study whose fields are right, such as unknown names
            (`study.checks.name_problems`); they are reported with the cross-field errors.

    Raises:
        ConfigError: The file cannot be read, or anything in it is wrong; one message with every error.
    """
    path = Path(path)
    root = _read_yaml(path)
    try:
        content = yaml.SafeLoader("").construct_document(root)
    except yaml.YAMLError as error:
        raise ConfigError(_not_yaml(error, path)) from None
    places = {_override(content, override): override for override in overrides}
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        details = error.errors(include_url=False)
        deeper = [detail["loc"] for detail in details if detail["type"] != "too_short"]
        lines = []
        for detail in details:
            location = detail["loc"]
            if detail["type"] == "too_short" and any(one[: len(location)] == location for one in deeper):
                continue  # pydantic drops the broken elements, then finds too few: only the first is news
            overridden = [place for place in places if location[: len(place)] == place]
            where = (
                f"override {places[max(overridden, key=len)]!r}"
                if overridden
                else f"{path}:{_line_of(root, location)}"
            )
            lines.append(f"{where}: {_place(location)} {_problem(Study, location, detail)}")
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None
    problems = [*check_study(study), *(() if further_checks is None else further_checks(study))]
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return study


def data_source(source: str, **options: Any) -> DataSource:
    """Return a data set's description from command-line options.

    Raises:
        ConfigError: An option is wrong; the message names it and its value.
    """
    return _from_options(DataSource, {"fields": "field"}, source=source, **options)


def judge_choice(url: str, model: str, **options: Any) -> JudgeChoice:
    """Return a judge from command-line options.

    Raises:
        ConfigError: An option is wrong; the message names it and its value.
    """
    return _from_options(
        JudgeChoice, {"url": "judge-url", "model": "judge-model"}, url=url, model=model, **options
    )


def _from_options(kind: type[SectionOf], names: Mapping[str, str], **options: Any) -> SectionOf:
    """Return a section made of command-line options; `names` holds those that are not called like their field."""

    def option(place: str) -> str:
        field, _, inner = place.partition(".")
        return f"--{names.get(field, field.replace('_', '-'))}" + (f" {inner!r}" if inner else "")

    try:
        return kind(**options)
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            location = detail["loc"]
            if location:
                field = _place(location).removeprefix("filters.")  # each filter is an option of its own
                problems.append(f"{option(field)} {_problem(kind, location, detail)}")
            else:  # of several options, which the message names as the study file does
                message = detail["msg"].removeprefix("Value error, ")
                problems.append(f"{re.sub('`([a-z_]+)`', lambda name: option(name[1]), message)}.")
        raise ConfigError(" ".join(problems)) from None


def dump_study(study: Study) -> str:
    """Return the resolved study as YAML; loading it again gives an equal study."""
    return yaml.safe_dump(
        study.model_dump(mode="json", exclude_defaults=False), sort_keys=False, allow_unicode=True
    )


def save_study(study: Study, path: Path) -> None:
    """Write the resolved study atomically."""
    write_text_atomically(path, dump_study(study))


def _read_yaml(path: Path) -> yaml.MappingNode:
    """Return a study file's nodes, which know their lines; keys and aliases are checked."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file. `lingraft ls recipes` lists ready-made ones, `lingraft copy` copies one."
        ) from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name the study file in it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(_not_yaml(error, path)) from None
    except RecursionError:
        raise ConfigError(f"{path}: lists or mappings are nested too deeply for a study.") from None
    if not isinstance(root, yaml.MappingNode):
        found = "empty" if root is None else "a list" if isinstance(root, yaml.SequenceNode) else "one value"
        raise ConfigError(
            f"{path}:1: the file is {found}; a study is a mapping (name:, model:, phases:, ...). "
            "`lingraft ls recipes` lists ready-made ones, `lingraft copy` copies one."
        )
    total = _count_values(root, path, {})
    if total > _MOST_VALUES:
        raise ConfigError(
            f"{path}: with its aliases written out the file has {total} values; a study has at most {_MOST_VALUES}."
        )
    return root


def _not_yaml(error: yaml.YAMLError, path: Path) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{path}: not valid YAML: {in_one_line(error)}."
    found = ", ".join(
        part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part
    )
    advice = " Indent with spaces, not with a tab." if "'\\t'" in found else ""
    return f"{path}:{mark.line + 1}: not valid YAML: {found} (column {mark.column + 1}).{advice}"


def _count_values(node: yaml.Node, path: Path, sizes: dict[int, int]) -> int:
    """Return how many values a node has, aliases written out; `sizes` holds the nodes so far, 0 while they are open.

    Raises:
        ConfigError: A key stands twice or is no text, or an alias makes the file endless.
    """
    known = sizes.get(id(node))
    if known == 0:
        raise ConfigError(f"{path}:{_line(node)}: an alias stands inside the very value that it names.")
    if known is not None:
        return known
    sizes[id(node)] = 0
    parts: list[yaml.Node] = list(node.value) if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(
                    f"{path}:{_line(key)}: a list or mapping cannot be a key; a key must be text."
                )
            if key.value in seen:
                raise ConfigError(
                    f"{path}:{_line(key)}: the key {key.value!r} stands twice in one mapping; keep one."
                )
            seen.add(key.value)
            parts.append(value)
    sizes[id(node)] = 1 + sum(_count_values(part, path, sizes) for part in parts)
    return sizes[id(node)]


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _override(content: Any, override: str) -> Location:
    """Set what a `key=value` pair says in a file's content, in place; return the place below which all is its own."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {override!r}: write key=value, such as training.epochs=2.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not valid YAML.") from None
    *parts, last = key.strip().replace("[", ".").replace("]", "").split(".")
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
    target[location[-1]] = value
    return made or tuple(location)


def _step(target: Any, part: str, override: str) -> str | int:
    """Return the key or the number by which a part of an override's place is found in `target`."""
    if isinstance(target, dict):
        return part
    if isinstance(target, list):
        names = [entry.get("name") if isinstance(entry, dict) else None for entry in target]
        if part in names:
            return names.index(part)
        if part.isdecimal() and int(part) < len(target):
            return int(part)
        known = [str(name) for name in names if name is not None] or [str(i) for i in range(len(target))]
        raise ConfigError(f"override {override!r}: there is no {part!r} here. {did_you_mean(part, known)}")
    raise ConfigError(f"override {override!r}: {part!r} lies inside a value that has no parts ({target!r}).")


def _line_of(node: yaml.Node, location: Location) -> int:
    line = node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            match = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if match is None:
                continue  # a part that the schema adds (`parts`, a union's branch) and the file does not have
            line, node = match[0].start_mark.line + 1, match[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _place(location: Location) -> str:
    place = ""
    for before, part in zip(("", *location), location, strict=False):
        if part == "parts" or (before == "parts" and part == 0):
            continue  # the schema's own wrapping of a strategy; the file does not have it
        if part == "[key]":
            continue  # how pydantic says that not the value but the key is wrong
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
    if kind == "tuple_type":
        message = "write a list ([one, two])"
    if kind in ("model_type", "dict_type"):
        message = "write fields and their values ({field: value})"
    if kind == "too_short":
        message = f"give at least {detail['ctx']['min_length']}, not {detail['ctx']['actual_length']}"
    shown = repr(detail["input"])
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return f"is {shown}: {message}."


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
