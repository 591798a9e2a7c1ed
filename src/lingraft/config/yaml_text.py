"""YAML that users write, as nodes that know their lines: read within bounds, and refused where YAML reads it oddly.

YAML reads 010 as 8, 1:30 as 90 and no as false. What would be silently another value than the one that was meant is
refused with its line, as is what no file for people holds: endless aliases, tags, control characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lingraft.errors import ConfigError, in_one_line

_MOST_BYTES = 300_000
_MOST_VALUES = 100_000
_MOST_DIGITS = 300
_SHOWN = 60  # characters of a wrong value
_YAML = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(f"{_YAML}{name}" for name in ("bool", "float", "int", "null"))
_KNOWN_TAGS = _PLAIN_TAGS | {f"{_YAML}{name}" for name in ("map", "merge", "seq", "str")}
_TEXT = f"{_YAML}str"


class Loader(yaml.SafeLoader):
    """YAML's safe loader, in which dates and a lone = are text, as people mean them."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag in _KNOWN_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True)
class OddValue:
    """A value of a file that cannot be meant as YAML reads it.

    Attributes:
        node: Where it stands.
        problem: What is wrong, as a sentence.
    """

    node: yaml.Node
    problem: str


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        ConfigError: It cannot be read, is no UTF-8 text, or is far larger than what people write.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name the file in it.") from None
    except (OSError, ValueError) as error:  # the latter: a name with a zero byte
        reason = getattr(error, "strerror", None) or in_one_line(error)
        raise ConfigError(f"{path}: cannot be read ({reason}).") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(
            f"{path}: is larger than {_MOST_BYTES:,} bytes, so it is no file that people write."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        raise ConfigError(
            f"{path}: cannot be read as UTF-8 text ({'it is UTF-16' if wide else error}); save it as UTF-8."
        ) from None


def compose(
    text: str, place: str, *, has_lines: bool = True, tags: frozenset[str] = frozenset()
) -> yaml.Node | None:
    """Return the node of a document, None where it is empty; `content_of` makes values of it.

    Args:
        text: The document.
        place: What errors begin with.
        has_lines: Name the line too.
        tags: Tags beside YAML's own that may stand in it.

    Raises:
        ConfigError: It is no YAML, is nested too deeply, holds a key twice, a key that is no text or a tag that has no
            meaning, or is endless or huge with its aliases written out.
    """
    try:
        root: yaml.Node | None = yaml.compose(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ConfigError(_not_yaml(error, place, has_lines)) from None
    except RecursionError:
        raise ConfigError(f"{place}: lists or mappings are nested too deeply.") from None
    if root is not None:
        total = _count_values(root, place, _KNOWN_TAGS | tags, {})
        if total > _MOST_VALUES:
            raise ConfigError(
                f"{place}: with its aliases written out it has {total} values; at most {_MOST_VALUES} are read."
            )
    return root


def content_of(root: yaml.Node | None, place: str, loader: type[Loader] = Loader) -> Any:
    """Return the values of a composed document that has no odd ones.

    Raises:
        ConfigError: A merge (`<<`) or a tag stands where it has no meaning.
    """
    try:
        return None if root is None else loader("").construct_document(root)
    except yaml.YAMLError as error:
        raise ConfigError(_not_yaml(error, place)) from None


def line_of(node: yaml.Node) -> int:
    """Return the line of a node, from 1."""
    return int(node.start_mark.line) + 1


def odd_values(root: yaml.Node | None) -> list[OddValue]:
    """Return the values that YAML reads otherwise than they look, in the order of the file; each node once.

    What has no value becomes text in the document, without control characters, so that it can be read on.
    """
    found = []
    for node in [] if root is None else dict.fromkeys(_scalars(root)):
        shown = node.value if len(node.value) <= _SHOWN else node.value[:_SHOWN] + "..."
        unreadable, misread = _unreadable(node, shown), None
        if unreadable is not None:
            node.tag, node.value = _TEXT, "".join(one for one in node.value if not _steers(one))
        else:
            misread = _misread(node, shown)
        problem = unreadable or misread
        if problem is not None:
            found.append(OddValue(node, problem))
    return found


def _unreadable(node: yaml.ScalarNode, shown: str) -> str | None:
    if any(map(_steers, node.value)):
        return f"{shown!r} holds a control character; leave it out."
    if node.tag not in _PLAIN_TAGS:
        return None
    plain: Any = Loader("")  # whose methods have no types
    if plain.resolve(yaml.ScalarNode, node.value, (True, False)) != node.tag:
        return f"the tag !!{node.tag.removeprefix(_YAML)} does not fit {shown!r}; leave the tag out."
    if node.tag == f"{_YAML}int" and sum(map(str.isdigit, node.value)) > _MOST_DIGITS:
        return f"{shown!r} is a number of more than {_MOST_DIGITS} digits; as text it needs quotation marks."
    return None


def _misread(node: yaml.ScalarNode, shown: str) -> str | None:
    is_octal = node.tag == f"{_YAML}int" and re.match(r"[-+]?0[0-9_]", node.value)
    is_sexagesimal = node.tag in (f"{_YAML}int", f"{_YAML}float") and ":" in node.value
    if not is_octal and not is_sexagesimal:
        return None
    read = Loader("").construct_document(yaml.ScalarNode(node.tag, node.value))
    why = "an octal number, as it begins with 0" if is_octal else "base 60"
    meant = [node.value.replace("_", "").lstrip("-+0") or "0"] if is_octal else []
    numbers = " or ".join(dict.fromkeys([*meant, str(read)]))
    return f"YAML reads {shown} as {read} ({why}); write {numbers}, or {shown!r} in quotation marks if it is text."


def _steers(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t\r\x85"


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from _scalars(one)
    else:
        for key, value in node.value:
            yield from _scalars(key)
            yield from _scalars(value)


def _not_yaml(error: yaml.YAMLError, place: str, has_lines: bool = True) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None or not has_lines:
        return f"{place}: not valid YAML: {in_one_line(error)}."
    found = ", ".join(
        part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part
    )
    advice = " Indent with spaces, not with a tab." if "'\\t'" in found else ""
    return f"{place}:{mark.line + 1}: not valid YAML: {found} (column {mark.column + 1}).{advice}"


def _count_values(node: yaml.Node, place: str, tags: frozenset[str], sizes: dict[int, int]) -> int:
    """Return how many values a node has, aliases written out; `sizes` holds the nodes so far, 0 while they are open.

    Raises:
        ConfigError: See `compose`.
    """
    known = sizes.get(id(node))
    if known == 0:
        raise ConfigError(f"{place}:{line_of(node)}: an alias stands inside the very value that it names.")
    if known is not None:
        return known
    sizes[id(node)] = 0
    if node.tag not in tags:
        raise ConfigError(
            f"{place}:{line_of(node)}: not valid YAML here: the tag {node.tag!r} has no meaning."
        )
    parts: list[yaml.Node] = list(node.value) if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(
                    f"{place}:{line_of(key)}: a list or mapping cannot be a key; a key must be text."
                )
            if key.value in seen:
                raise ConfigError(
                    f"{place}:{line_of(key)}: the key {key.value!r} stands twice in one mapping; keep one."
                )
            if key.tag in _PLAIN_TAGS:
                raise ConfigError(
                    f"{place}:{line_of(key)}: a key must be text, and YAML reads {key.value!r} as "
                    f"{_KINDS[key.tag]}: put it into quotation marks ('{key.value}')."
                )
            seen.add(key.value)
            parts.append(value)
    sizes[id(node)] = 1 + sum(_count_values(part, place, tags, sizes) for part in parts)
    return sizes[id(node)]


_KINDS = {
    f"{_YAML}bool": "a truth value",
    f"{_YAML}float": "a number",
    f"{_YAML}int": "a number",
    f"{_YAML}null": "nothing",
}
