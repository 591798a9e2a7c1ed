"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path

from lingraft.errors import ConfigError

_LONGEST_NAME = 255


def path_of(given: object, argument: str) -> Path:
    """Return the path that a Python function is given, as a text or a path.

    Raises:
        ConfigError: It is neither.
    """
    if not isinstance(given, (str, Path)) or not str(given):
        raise ConfigError(f"{argument} {given!r:.80}: give a path.")
    return user_path(str(given))


def user_path(written: str) -> Path:
    """Return a path with `~` and `~name` as the home folder that they stand for.

    Raises:
        ConfigError: There is no such user, or the name holds a zero byte.
    """
    if "\0" in written:
        raise ConfigError(f"{written!r}: no path holds a zero byte.")
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in written.split("/")):
        raise ConfigError(
            f"{written[:80]!r}...: no file or folder has a name of more than {_LONGEST_NAME} bytes."
        )
    try:
        return Path(written).expanduser()
    except RuntimeError:
        user = written.partition("/")[0]
        raise ConfigError(
            f"{written}: there is no user {user.removeprefix('~')!r}, whose home folder {user} is; write the path "
            "itself (or ./ before it, where a folder is called so)."
        ) from None


def make_named_folder(folder: Path, *, argument: str = "", advice: str = "") -> None:
    """Make a folder that a user named, where it is not there.

    Args:
        folder: The folder.
        argument: By which it was named, as it stands in the sentence, such as `--output`.
        advice: What to type instead.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{argument}{' ' * bool(argument)}{folder}: cannot be made ({error.strerror}: {error.filename})"
            f"{'; ' * bool(advice)}{advice}."
        ) from None


def check_may_read(folder: Path) -> None:
    """Refuse a folder, such as another user's, that this process may not read.

    Raises:
        ConfigError: It may not.
    """
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ConfigError(f"{folder}: you may not read it; ask its owner for read permission.")
