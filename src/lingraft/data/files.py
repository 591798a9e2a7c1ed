"""Which local files a source names: one file, a folder, a pattern, or a file for each language.

data/es.jsonl               one file
data/                       every data file in the folder and below it
data/*.jsonl                a pattern: `*`, `?`, `[...]`, `**` for folders at any depth
{first,second}.jsonl        alternatives
data/{language}.jsonl       the language of each file stands in its name
"""

from __future__ import annotations

import fnmatch
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from glob import has_magic
from itertools import dropwhile
from pathlib import Path

from lingraft.config.paths import user_path
from lingraft.data.readers import COMPRESSED, FILE_FORMATS, SUFFIXES, data_suffix
from lingraft.errors import DataError, in_one_line
from lingraft.records import Stamp
from lingraft.text.language_tags import canonical_tag, primary_subtag, tag_as_written

_LANGUAGE = "{language}"
_MOST_ALTERNATIVES = 10_000
_ALTERNATIVES = re.compile(r"\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source."""

    path: Path  # where it lies
    name: str  # as places name it
    language: str | None = None  # BCP-47 tag from its name, where the source has `{language}`
    also: tuple[str, ...] = ()  # other names under which the source has the same file, which is read once
    stamp: Stamp | None = None  # of the file when its source was opened; None: it was not yet

    @property
    def likely_language(self) -> str | None:
        """BCP-47 tag where the whole name is a language with a two-letter code, as in es.jsonl; None: it is not.

        It counts where the rows say none. Longer codes are left to `{language}`: all, new and val are languages too.
        """
        name = self.path.with_suffix("") if self.path.suffix.lower() == COMPRESSED else self.path
        tag = canonical_tag(name.stem)
        return tag if tag is not None and len(primary_subtag(tag)) == 2 else None


def is_local(source: str, base_folder: Path) -> bool:
    """Return whether a source means local files rather than a hub id: by its ending, a leading path or a pattern."""
    if source.startswith(("/", "./", "../", "~")) or data_suffix(Path(source)) in FILE_FORMATS:
        return True
    return "{" in source or has_magic(source) or os.path.exists(base_folder / source)  # noqa: PTH110 - never raises


def files_of(source: str, base_folder: Path) -> list[SourceFile]:
    """Return the files that a source names, sorted by name; of alternatives in the order written.

    Hidden files and folders are left out of folders and patterns. Links are followed, wherever they lead, but each file
    and folder is there once, rather under its own name than a link's. A file that is named itself may be missing.

    Raises:
        ConfigError: It is no path (see `user_path`).
        DataError: No file matches, one file has two languages, or a folder cannot be read.
    """
    try:
        named = [
            file for pattern in _alternatives(source) for file in _files_of(pattern, source, base_folder)
        ]
        reals = [os.path.realpath(file.path) for file in named]
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {in_one_line(error)}.") from None
    found: dict[str, SourceFile] = {}
    for real, file in zip(reals, named, strict=True):
        known = found.setdefault(real, file)
        if known.language != file.language:
            raise DataError(f"{source}: {known.name} and {file.name} are one file, which has one language.")
        if known is not file:
            first, other = (
                (file, known) if known.path.is_symlink() and not file.path.is_symlink() else (known, file)
            )
            found[real] = replace(first, also=(*known.also, other.name))
    return list(found.values())


def _files_of(pattern: str, source: str, base_folder: Path) -> list[SourceFile]:
    written = user_path(pattern)
    path = base_folder / written
    if _LANGUAGE in pattern:
        language = re.escape(str(path)).replace(re.escape(_LANGUAGE), r"(?P<language>[^/]+?)", 1)
        language = language.replace(re.escape(_LANGUAGE), r"(?P=language)")
        for sign, meaning in ((r"\*\*/", r"(?:.*/)?"), (r"\*", r"[^/]*"), (r"\?", r"[^/]")):
            language = language.replace(sign, meaning)
        matches = (
            (one, re.fullmatch(language, str(one)))
            for one in _found(Path(str(written).replace(_LANGUAGE, "*")), source, base_folder)
        )
        files = []
        for one, match in matches:
            name = one.name if match is None else match["language"]
            tag = tag_as_written(name)
            if tag is None:
                raise DataError(
                    f"{source}: {{language}} is {name!r} in {one}, which is no language; give the pattern more of the "
                    "name, or move that file."
                )
            files.append(SourceFile(one, pattern.replace(_LANGUAGE, name), tag))
        return files
    if path.is_dir():
        entries = (one for folder in _folders_below(path) for one in folder.iterdir())
        found = [
            one
            for one in sorted(entries)
            if data_suffix(one) in SUFFIXES and not one.name.startswith(".") and not one.is_dir()
        ]
        if not found:
            raise DataError(f"{source}: no data file ({', '.join(SUFFIXES)}) lies in the folder {path}.")
        return [SourceFile(one, f"{pattern.rstrip('/')}/{one.relative_to(path)}") for one in found]
    if path.is_file() or not has_magic(pattern):
        return [SourceFile(path, pattern)]
    return [SourceFile(one, str(one)) for one in _found(written, source, base_folder)]


def checked_files(files: Sequence[SourceFile], *, with_text: bool) -> tuple[SourceFile, ...]:
    """Return the files with their stamps.

    Raises:
        DataError: One is missing, no regular file, or of an unknown ending; .txt is known `with_text` alone.
    """
    checked = []
    for file in files:
        if not file.name.isprintable() and any("\ud800" <= sign <= "\udfff" for sign in file.name):
            raise DataError(f"{file.name!a}: the file's name is not UTF-8; rename it.")
        if os.path.isdir(file.path):  # noqa: PTH112 - never raises
            raise DataError(
                f"{file.name}: is a folder, not a file whose rows can be read; name a file in it."
            )
        if data_suffix(file.path) not in (FILE_FORMATS if with_text else SUFFIXES):
            raise DataError(
                f"{file.name}: a data file's name must end in {', '.join(SUFFIXES)} (or these and {COMPRESSED}), "
                f"not in {file.path.suffix or 'nothing'!r}."
            )
        try:
            mode, stamp = file.path.stat().st_mode, Stamp.of(file.path)
        except (FileNotFoundError, NotADirectoryError):
            place = str(file.path.absolute())
            looked = "" if place == file.name else f" (looked for {place})"
            raise DataError(f"{file.name}: there is no such file{looked}.") from None
        except (
            OSError,
            ValueError,
        ) as error:  # a name that is too long, a loop of links; a zero byte in a name
            raise DataError(f"{file.name}: the file cannot be read: {in_one_line(error)}.") from None
        if not stat.S_ISREG(mode):
            raise DataError(
                f"{file.name}: is a pipe, a socket or a device, not a file whose rows can be read."
            )
        checked.append(replace(file, stamp=stamp))
    return tuple(checked)


def _alternatives(source: str) -> list[str]:
    """Return what {a,b} stands for; several such parts give every combination."""
    if math.prod(part.count(",") + 1 for part in _ALTERNATIVES.findall(source)) > _MOST_ALTERNATIVES:
        raise DataError(f"{source}: its alternatives stand for more than {_MOST_ALTERNATIVES:,} names.")
    found = _ALTERNATIVES.search(source)
    if found is None:
        return [source]
    start, end = source[: found.start()], source[found.end() :]
    return [each for part in found[1].split(",") for each in _alternatives(f"{start}{part.strip()}{end}")]


def _found(pattern: Path, source: str, base_folder: Path) -> list[Path]:
    """Return what a pattern matches, folders apart, sorted by name."""
    start, parts = (
        (base_folder, pattern.parts) if not pattern.anchor else (Path(pattern.anchor), pattern.parts[1:])
    )
    found = sorted({str(one) for one in _matching(start, parts) if os.path.lexists(one) and not one.is_dir()})
    if not found:
        raise DataError(f"{source}: no file matches (looked for {(base_folder / pattern).absolute()}).")
    return [Path(one) for one in found]


def _matching(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """Yield what lies below a folder by the parts of a pattern; a loop of links is gone through once."""
    if not parts:
        yield folder
    elif parts[0] == "**":
        rest = tuple(dropwhile("**".__eq__, parts))  # two in a row mean what one does
        for below in _folders_below(folder):
            yield from _matching(below, rest or ("*",))
    elif not has_magic(parts[0]):
        yield from _matching(folder / parts[0], parts[1:])
    elif folder.is_dir():
        names = (
            one.name for one in folder.iterdir() if parts[0].startswith(".") or not one.name.startswith(".")
        )
        for name in fnmatch.filter(names, parts[0]):
            yield from _matching(folder / name, parts[1:])


def _folders_below(folder: Path) -> Iterator[Path]:
    """Yield a folder and those below it that are not hidden, each real one once and rather by its own name."""
    seen: set[str] = set()
    own, linked = [folder] if folder.is_dir() else [], list[Path]()
    while own or linked:
        here = own.pop() if own else linked.pop(0)
        real = os.path.realpath(here)
        if real not in seen:
            seen.add(real)
            yield here
            for one in sorted(here.iterdir()):
                if one.is_dir() and not one.name.startswith("."):
                    (linked if one.is_symlink() else own).append(one)
