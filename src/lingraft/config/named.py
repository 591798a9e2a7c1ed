"""Names that a user gives to what is compared: `NAME=PATH`, wherever a command takes several models, sets or runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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

    @property
    def label(self) -> str:
        """What objects and records are keyed by: the name, but of one that is just a path's end all of the path."""
        return self.value if self.value.endswith(self.name) and not self.is_given else self.name


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
    written: Sequence[str], proposed: Callable[[str], Sequence[str]] = lambda _: ()
) -> tuple[Named, ...]:
    """Return what each of several arguments stands for; their names differ.

    Args:
        written: The arguments.
        proposed: The names that one without a name could have, the best first; after these, a file's stem and the ends
            of its path. It gets the first that no other could have; where there is none, all of its path.

    Raises:
        ConfigError: A name is given twice, or one is not written as `NAME=PATH`.
    """
    found = [named(one) for one in written]
    for one in found:
        same = [other.value for other in found if other.is_given and other.name == one.name]
        if one.is_given and len(same) > 1:
            raise ConfigError(
                f"{one.name}: is the name of {' and '.join(same)}; give each another name (NAME=PATH)."
            )
    proposals = [() if one.is_given else tuple(dict.fromkeys(proposed(one.value))) for one in found]
    counts = Counter(name for own in proposals for name in own)
    options = [
        # What is proposed for two tells neither apart, and must not take a folder's own name from it.
        (one.name,) if one.is_given else (*(name for name in own if counts[name] == 1), *_ends(one.value))
        for one, own in zip(found, proposals, strict=True)
    ]
    names = []
    for number, one in enumerate(found):
        others = {name for place, own in enumerate(options) if place != number for name in own}
        names.append(
            one.name
            if one.is_given
            else next((name for name in options[number] if name not in others), one.value)
        )
    return tuple(Named(name, one.value, one.is_given) for one, name in zip(found, names, strict=True))


def _ends(value: str) -> Iterator[str]:
    """Yield a file's name without its endings, then longer and longer ends of a path; of what is no path nothing."""
    path = user_path(value)
    if not path.exists():
        yield value
        return
    path = path.absolute()
    if path.is_file() and (stem := path.name.partition(".")[0]):
        yield stem
    for parts in range(1, len(path.parts)):
        yield "/".join(path.parts[-parts:])
