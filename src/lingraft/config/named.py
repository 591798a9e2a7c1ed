"""Names that a user gives to what is compared: `NAME=PATH`, wherever a command takes several models, sets or runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lingraft.config.paths import user_path
from lingraft.errors import ConfigError


@dataclass(frozen=True)
class Named:
    """What is compared, and what tables and figures call it.

    Attributes:
        name: The user's, or a short one; unique among what is compared.
        value: The path or name behind it, as the user wrote it.
        is_given: The user gave the name.
    """

    name: str
    value: str
    is_given: bool = False


def named(written: str) -> Named:
    """Return what `NAME=PATH` or `PATH` stands for; without a name it is the path's own.

    A path that exists is a path, whatever it contains, and so is what has a slash or a colon before its first `=`.

    Raises:
        ConfigError: There is nothing before the `=`, or nothing behind it.
    """
    name, separator, value = written.partition("=")
    if not separator or "/" in name or ":" in name or user_path(written).exists():
        return Named(written, written)
    if not name.strip() or not value.strip():
        raise ConfigError(f"{written!r}: write NAME=PATH, or the path alone.")
    return Named(name.strip(), value, is_given=True)


def all_named(
    written: Sequence[str], short: Callable[[str], str | None] = lambda _: None
) -> tuple[Named, ...]:
    """Return what each of several arguments stands for; their names differ.

    Args:
        written: The arguments.
        short: The name of one without a name; None: the shortest end of its path in which it differs from the others.

    Raises:
        ConfigError: A name is given twice, or one is not written as `NAME=PATH`.
    """
    found = [named(one) for one in written]
    proposed = [one.name if one.is_given else short(one.value) or _end(one.value, 1) for one in found]
    for one, name in zip(found, proposed, strict=True):
        both = [other.value for other, own in zip(found, proposed, strict=True) if own == name]
        if one.is_given and len(both) > 1:
            raise ConfigError(
                f"{name}: is the name of {' and '.join(both)}; give each another name (NAME=PATH)."
            )
    return tuple(
        Named(name if proposed.count(name) == 1 else _unique_end(one, found), one.value, one.is_given)
        for one, name in zip(found, proposed, strict=True)
    )


def _unique_end(one: Named, among: Sequence[Named]) -> str:
    """Return the shortest end of a path that no other path ends in; where there is none, all of it."""
    others = [other.value for other in among if other is not one]
    for parts in range(1, len(Path(one.value).parts)):
        end = _end(one.value, parts)
        if end not in (_end(other, parts) for other in others):
            return end
    return one.value


def _end(path: str, parts: int) -> str:
    """Return the last parts of a path; what is no path, such as `embedded:NAME`, stays whole."""
    if ":" in path and not user_path(path).exists():
        return path
    return "/".join(user_path(path).absolute().parts[-parts:])
