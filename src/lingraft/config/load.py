"""Read a study file: YAML, then `key=value` overrides, then the schema, then the cross-field checks.

All schema errors are reported together, and so are all cross-field errors; each with the file, the line, the
place inside the file and the value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lingraft.config.checks import check_study
from lingraft.config.schema import (
    TAG_PATTERN,
    DataSource,
    Evaluation,
    EvaluationTask,
    JudgeChoice,
    PathStep,
    Phase,
    PhaseData,
    Section,
    StrategyChoice,
    StrategySpec,
    Study,
    Training,
    TrainingOverrides,
)
from lingraft.errors import ConfigError, did_you_mean, in_one_line
from lingraft.records import write_text_atomically

_SECTIONS: tuple[type[Section], ...] = (
    Study,
    Phase,
    PhaseData,
    DataSource,
    Training,
    TrainingOverrides,
    Evaluation,
    EvaluationTask,
    JudgeChoice,
    PathStep,
    StrategyChoice,
    StrategySpec,
)

_NAME_RULE = "a name is letters, digits and . _ + -, and starts with a letter or digit"
_TAG_RULE = (
    "no language that is known; write a BCP-47 tag such as es or zh-Hant, or an English name such as Spanish"
)

_MOST_VALUES = 100_000

Location = tuple[str | int, ...]


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
    root = _compose(path)
    content = _construct(root, path)
    places = {}
    for override in overrides:
        places[_apply_override(content, override)] = override
    try:
        study = Study.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_render_errors(error, path, root, places)) from None
    problems = [*check_study(study), *(() if further_checks is None else further_checks(study))]
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return study


def data_source(source: str, **options: Any) -> DataSource:
    """Return a data set's description from command-line options.

    Raises:
        ConfigError: An option is wrong; the message names it and its value.
    """
    try:
        return DataSource(source=source, **options)
    except ValidationError as error:
        raise ConfigError(_render_option_errors(error)) from None


def judge_choice(url: str, model: str, **options: Any) -> JudgeChoice:
    """Return a judge from command-line options.

    Raises:
        ConfigError: An option is wrong; the message names it and its value.
    """
    try:
        return JudgeChoice(url=url, model=model, **options)
    except ValidationError as error:
        raise ConfigError(_render_option_errors(error)) from None


def _render_option_errors(error: ValidationError) -> str:
    problems = []
    for detail in error.errors():
        location = tuple(detail["loc"])
        if location:
            field = _place(location).removeprefix("filters.")  # each filter is an option of its own
            problems.append(f"{_option(field)} {_problem(location, detail)}")
        else:  # of several options, which the message names as the study file does
            message = detail["msg"].removeprefix("Value error, ")
            problems.append(f"{re.sub('`([a-z_]+)`', lambda name: _option(name[1]), message)}.")
    return "; ".join(problems)


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def dump_study(study: Study) -> str:
    """Return the resolved study as YAML; loading it again gives an equal study."""
    return yaml.safe_dump(
        study.model_dump(mode="json", exclude_defaults=False), sort_keys=False, allow_unicode=True
    )


def save_study(study: Study, path: Path) -> None:
    """Write the resolved study atomically."""
    write_text_atomically(path, dump_study(study))


def _compose(path: Path) -> yaml.Node:
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


def _construct(root: yaml.Node, path: Path) -> dict[str, Any]:
    _check_nodes(root, path)
    loader = yaml.SafeLoader("")
    try:
        content: dict[str, Any] = loader.construct_document(root)
    except yaml.YAMLError as error:
        raise ConfigError(_not_yaml(error, path)) from None
    return content


def _check_nodes(root: yaml.Node, path: Path) -> None:
    """Refuse keys that stand twice or are no text, and aliases that make a file endless or far larger than it is."""
    sizes: dict[int, int] = {}  # by node; 0 while its parts are counted

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node))
        if known == 0:
            raise ConfigError(f"{path}:{_line(node)}: an alias stands inside the very value that it names.")
        if known is None:
            sizes[id(node)] = 0
            known = sizes[id(node)] = 1 + sum(size(part) for part in _parts(node, path))
        return known

    total = size(root)
    if total > _MOST_VALUES:
        raise ConfigError(
            f"{path}: with its aliases written out the file has {total} values; a study has at most {_MOST_VALUES}."
        )


def _parts(node: yaml.Node, path: Path) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if not isinstance(node, yaml.MappingNode):
        return []
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{path}:{_line(key)}: a list or mapping cannot be a key; a key must be text.")
        if key.value in seen:
            raise ConfigError(
                f"{path}:{_line(key)}: the key {key.value!r} stands twice in one mapping; keep one."
            )
        seen.add(key.value)
    return [value for _, value in node.value]


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _apply_override(content: dict[str, Any], override: str) -> Location:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {override!r}: write key=value, such as training.epochs=2.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not valid YAML.") from None
    parts = key.strip().replace("[", ".").replace("]", "").split(".")
    target: Any = content
    location: list[str | int] = []
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        step = _step_into(target, part, override)
        location.append(step)
        if last:
            target[step] = value
        else:
            if isinstance(target, dict) and target.get(step) is None:
                target[step] = {}
            target = target[step]
    return tuple(location)


def _step_into(target: Any, part: str, override: str) -> str | int:
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


def _render_errors(
    error: ValidationError, path: Path, root: yaml.Node, overrides: dict[Location, str]
) -> str:
    details = error.errors(include_url=False)
    deeper = [tuple(detail["loc"]) for detail in details if detail["type"] != "too_short"]
    lines = []
    for detail in details:
        location = tuple(detail["loc"])
        if detail["type"] == "too_short" and any(place[: len(location)] == location for place in deeper):
            continue  # pydantic drops the broken elements, then finds too few: only the first is news
        where = _where(location, path, root, overrides)
        lines.append(f"{where}: {_place(location)} {_problem(location, detail)}")
    return "\n".join(dict.fromkeys(lines))


def _where(location: Location, path: Path, root: yaml.Node, overrides: dict[Location, str]) -> str:
    for place, override in overrides.items():
        if location[: len(place)] == place:
            return f"override {override!r}"
    line = _line_of(root, location)
    return f"{path}:{line}"


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
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    return place or "the study"


def _problem(location: Location, detail: Any) -> str:
    if detail["type"] == "extra_forbidden":
        fields = _fields_at(location[:-1])
        return f"is not a field. {did_you_mean(str(location[-1]), fields)}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "invalid_key":
        return "is not a field: a key must be text."
    if detail["type"] == "missing":
        return "is missing: it must be given."
    message = message[0].lower() + message[1:]
    if detail["type"] == "string_pattern_mismatch":
        message = _TAG_RULE if detail["ctx"]["pattern"] == TAG_PATTERN else _NAME_RULE
    if detail["type"] == "string_type" and isinstance(detail["input"], bool):
        message = "YAML takes no, yes, on and off for truth values; put it into quotation marks ('no')"
    if detail["type"] == "tuple_type":
        message = "write a list ([one, two])"
    if detail["type"] == "too_short":
        message = f"give at least {detail['ctx']['min_length']}, not {detail['ctx']['actual_length']}"
    shown = repr(detail["input"])
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return f"is {shown}: {message}."


def _fields_at(location: Location) -> list[str]:
    """Return the field names of the section at `location`, walking the schema's annotations."""
    section: type[BaseModel] = Study
    for part in location:
        field = section.model_fields.get(part) if isinstance(part, str) else None
        if field is None:
            continue
        named = re.findall(r"\w+", str(field.annotation))
        candidates = [known for known in _SECTIONS if known.__name__ in named]
        if candidates:
            section = candidates[0]
    return list(section.model_fields)
