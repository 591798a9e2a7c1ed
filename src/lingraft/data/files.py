"""Which local files a source names: one file, a folder, a pattern, or a file for each language.

data/es.jsonl               one file
data/                       every data file in the folder and below it
data/*.jsonl                a pattern: `*`, `?`, `[...]`, `**` for folders at any depth
{first,second}.jsonl        alternatives
data/{language}.jsonl       the language of each file stands in its name
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from lingraft.data.language_tags import language_tag
from lingraft.data.row_fields import RowError
from lingraft.errors import DataError
from lingraft.text.language_tags import canonical_tag

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
COMPRESSED = ".gz"
_LANGUAGE = "{language}"
_ALTERNATIVES = re.compile(r"\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source.

    Attributes:
        path: Where it lies.
        name: As places name it.
        language: BCP-47 tag from its name, where the source has `{language}`.
    """

    path: Path
    name: str
    language: str | None = None

    @property
    def likely_language(self) -> str | None:
        """BCP-47 tag where the whole name is a language with a two-letter code, as in es.jsonl; None: it is not.

        It counts where the rows say none. Longer codes are left to `{language}`: all, new and val are languages too.
        """
        name = self.path.with_suffix("") if self.path.suffix.lower() == COMPRESSED else self.path
        tag = canonical_tag(name.stem)
        return tag if tag is not None and len(tag.partition("-")[0]) == 2 else None


def is_local(source: str, base_folder: Path) -> bool:
    """Return whether a source means local files rather than a hub id: by its ending, a leading path or a pattern."""
    if source.startswith(("/", "./", "../", "~")) or data_suffix(Path(source)) in SUFFIXES:
        return True
    return "{" in source or has_magic(source) or (base_folder / source).exists()


def data_suffix(path: Path) -> str:
    """Return a data file's ending in lower case, without `.gz`."""
    name = path.name.lower().removesuffix(COMPRESSED)
    return Path(name).suffix


def files_of(source: str, base_folder: Path) -> list[SourceFile]:
    """Return the files that a source names, sorted by name; of alternatives in the order written.

    Hidden files and folders are left out of folders and patterns.

    Raises:
        DataError: There is none, or a file is of another kind.
    """
    files = [file for one in _alternatives(source) for file in _matching(one, source, base_folder)]
    for file in files:
        if data_suffix(file.path) not in SUFFIXES:
            raise DataError(
                f"{file.name}: a data file's name must end in {', '.join(SUFFIXES)} (or these and {COMPRESSED}), "
                f"not in {file.path.suffix or 'nothing'!r}."
            )
    return files


def _alternatives(source: str) -> list[str]:
    """Return what {a,b} stands for; several such parts give every combination."""
    found = _ALTERNATIVES.search(source)
    if found is None:
        return [source]
    start, end = source[: found.start()], source[found.end() :]
    return [each for part in found[1].split(",") for each in _alternatives(f"{start}{part.strip()}{end}")]


def _matching(pattern: str, source: str, base_folder: Path) -> list[SourceFile]:
    path = base_folder / Path(pattern).expanduser()
    if _LANGUAGE in pattern:
        return _by_language(pattern, source, path)
    if path.is_dir():
        found = [one for one in sorted(path.rglob("*")) if one.is_file() and not _is_hidden(one, path)]
        found = [one for one in found if data_suffix(one) in SUFFIXES]
        if not found:
            raise DataError(f"{source}: no data file ({', '.join(SUFFIXES)}) lies in the folder {path}.")
        return [SourceFile(one, f"{pattern.rstrip('/')}/{one.relative_to(path)}") for one in found]
    if path.is_file() or not has_magic(pattern):
        if not path.is_file():
            raise DataError(f"{source}: there is no such file (looked for {path.absolute()}).")
        return [SourceFile(path, pattern)]
    return [SourceFile(one, str(one)) for one in _found(path, source)]


def _by_language(pattern: str, source: str, path: Path) -> list[SourceFile]:
    """Return the files of a pattern with {language}, each with the language that its name holds there."""
    named = re.compile(re.escape(str(path)).replace(re.escape(_LANGUAGE), r"(?P<language>[^/.]+)", 1))
    files = []
    for one in _found(Path(str(path).replace(_LANGUAGE, "*")), source):
        match = named.fullmatch(str(one))
        if match is None:
            continue
        try:
            tag = language_tag(match["language"])
        except RowError:
            raise DataError(
                f"{source}: {{language}} is {match['language']!r} in {one}, which is no language; give the pattern "
                "more of the name, or move that file."
            ) from None
        files.append(SourceFile(one, pattern.replace(_LANGUAGE, match["language"]), tag))
    return files


def _found(pattern: Path, source: str) -> list[Path]:
    # Not Path.glob: the pattern may be absolute, and hidden files are to stay out.
    found = [Path(one) for one in sorted(glob(str(pattern), recursive=True)) if Path(one).is_file()]  # noqa: PTH207
    if not found:
        raise DataError(f"{source}: no file matches (looked for {pattern.absolute()}).")
    return found


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
