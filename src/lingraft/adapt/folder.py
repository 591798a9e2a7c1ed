"""The place at which a model's folder goes: whole or not there, and never over what lingraft did not write."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from lingraft.adapt.history import HISTORY, read_history, write_history
from lingraft.claims import claim
from lingraft.errors import ClaimedError, ClaimLostError, ConfigError, LingraftError, as_disk_error
from lingraft.records import flush_folder, is_foreign, remove

_CLAIMS = re.compile(r"\..+\.claims")  # inside of a place that is a disk of its own


def check_place(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse a place at which nothing may be written, before anything long is done.

    Raises:
        ConfigError: It is a file, a folder that is not empty, or with `overwrite` one that holds what lingraft did not
            write.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder.")
    found = sorted(_names_in(folder)) if folder.is_dir() else []
    if not found:
        return
    if not (folder / HISTORY).is_file():
        raise ConfigError(f"{folder}: is not empty, and lingraft did not write it; name another folder.")
    if not overwrite:
        raise ConfigError(f"{folder}: is not empty; name another folder, or replace it by --overwrite.")
    written = read_history(folder).files
    foreign = [name for name in found if name not in written]
    if foreign:
        raise ConfigError(
            f"{folder}: holds {foreign[0]}{' and other files' if len(foreign) > 1 else ''}, which lingraft did not "
            "write; move it away, or name another folder."
        )


def run_folder(runs: Path, command: str, output: Path) -> Path:
    """Return where the stages of a run are kept whose model goes to a folder: RUNS/COMMAND/<its name>.

    Raises:
        ConfigError: It would lie in the model's folder, which is to hold the model alone.
    """
    place = output.resolve() if output.name in ("", "..") else output
    folder = runs / command / place.name
    if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(place)):
        raise ConfigError(
            f"--output {output}: would hold {folder} as well, where the run is kept; name another folder."
        )
    return folder


@contextmanager
def new_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder, which takes the place of `folder` when the block ends without an error.

    Blocks may be nested: what they write into the outer one's folder is a part of it. The list of its files goes into
    its `lingraft.json`. However the block ends, nothing but a whole folder is left, unless the process is killed: then
    the next one for the same place removes what lies beside it.

    Args:
        folder: The place: absent, or empty.
        overwrite: It may also hold what lingraft wrote.

    Raises:
        ConfigError: See `check_place`.
        LingraftError: Another process writes there.
        DiskError: It cannot be written; what was there before is as it was.
    """
    check_place(folder, overwrite=overwrite)
    place = Path(os.path.realpath(folder))
    # Nothing can be moved onto a mounted disk's own folder, so what goes there is moved file by file.
    inside = place.is_mount()
    parent = place if inside else place.parent
    staging = parent / f".{place.name}.part"
    claims = parent / f".{place.name}.claims"
    with as_disk_error(parent):
        parent.mkdir(parents=True, exist_ok=True)
        try:
            own = claim(claims)
        except ClaimedError as error:
            raise LingraftError(
                f"{folder}: another lingraft writes it: {error.owner or 'a process'}; wait for it, or name another "
                "folder."
            ) from None
        try:
            remove(staging)
            staging.mkdir()
            yield staging
            history = read_history(staging)
            write_history(staging, history)  # so that its name is listed
            write_history(staging, replace(history, files=tuple(sorted(_names_in(staging)))))
            _open_up(staging)
            flush_folder(staging)
            own.check()
            if inside:
                _move_into(staging, place)
            else:
                _put(staging, place)
        finally:
            with suppress(ClaimLostError):  # then it is another process's
                own.check()
                remove(staging)
            own.release(forget=True)


def _names_in(folder: Path) -> set[str]:
    """Return the files of a folder, its folders' as well, without claims and what systems and editors leave."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if (path.is_symlink() or not path.is_dir())
        and not is_foreign(path.name)
        and not (path.parent.parent == folder and _CLAIMS.fullmatch(path.parent.name))
    }


def _open_up(folder: Path) -> None:
    """Give all files of a folder the permissions of new ones: what is written atomically is its owner's alone."""
    mask = os.umask(0)
    os.umask(mask)
    for name in _names_in(folder):
        (folder / name).chmod(0o666 & ~mask)


def _put(staging: Path, place: Path) -> None:
    """Move a folder to a place, where an empty or a former one may be."""
    former = place.parent / f".{place.name}.former"
    remove(former)
    if place.exists():
        place.rename(former)
    try:
        staging.rename(place)
    except OSError:
        if former.exists():
            former.rename(place)
        raise
    remove(former)


def _move_into(staging: Path, place: Path) -> None:
    """Move all that a folder holds into one that is mounted; what makes it a model's comes last."""
    for name in _names_in(place) - {f"{staging.name}/{own}" for own in _names_in(staging)}:
        (place / name).unlink()
    for path in sorted(staging.iterdir(), key=lambda one: one.name == "config.json"):
        remove(place / path.name)
        path.rename(place / path.name)
