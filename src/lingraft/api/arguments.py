"""How arguments are taken, and what errors call them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lingraft.errors import ConfigError, LingraftError

_OPTION = re.compile(r"--([a-z]+(?:-[a-z]+)*)")
_ARGUMENTS = {"task": "tasks", "language": "languages", "no-chat": "chat=False"}


@contextmanager
def options_as_arguments() -> Iterator[None]:
    """Let errors call options as Python does: `max_new_tokens` in place of `--max-new-tokens`."""
    try:
        yield
    except LingraftError as error:
        said = _OPTION.sub(lambda found: _ARGUMENTS.get(found[1], found[1].replace("-", "_")), str(error))
        if said == str(error):
            raise
        raise type(error)(said) from error


def names_given(argument: str, given: str | Path | Sequence[str | Path] | None) -> tuple[str, ...]:
    """Return names that are given as one, as several in one text with commas between them, or as a list.

    Raises:
        ConfigError: They are something else.
    """
    if given is None:
        return ()
    listed = given.split(",") if isinstance(given, str) else [given] if isinstance(given, Path) else given
    if not isinstance(listed, Sequence) or not all(isinstance(one, (str, Path)) for one in listed):
        raise ConfigError(f"{argument} {given!r:.80}: give a list of names.")
    return tuple(name for one in listed if (name := str(one).strip()))
