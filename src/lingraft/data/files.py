"""Which local files a source names: one file, a folder, a pattern, or a file for each language.

data/es.jsonl               one file
data/                       every data file in the folder and below it
data/*.jsonl                a pattern: `*`, `?`, `[...]`, `**` for folders at any depth
{first,second}.jsonl        alternatives
data/{language}.jsonl       the language of each file stands in its name
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from lingraft.config.paths import user_path
from lingraft.data.readers import COMPRESSED, FILE_FORMATS, SUFFIXES, data_suffix
from lingraft.errors import DataError
from lingraft.text.language_tags import canonical_tag, primary_subtag, tag_as_written

_LANGUAGE = "{language}"
_ALTERNATIVES = re.compile(r"\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a source."""

    path: Path  # where it lies
    name: str  # as places name it
    language: str | None = None  # BCP-47 tag from its name, where the source has `{language}`

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
    return "{" in source or has_magic(source) or (base_folder / source).exists()


def files_of(source: str, base_folder: Path) -> list[SourceFile]:
    """Return the files that a source names, sorted by name; of alternatives in the order written.

    Hidden files and folders are left out of folders and patterns. A file that is named itself may be missing.

    Raises:
        DataError: No file matches.
    """
    files: list[SourceFile] = []
    for pattern in _alternatives(source):
        path = base_folder / user_path(pattern)
        if _LANGUAGE in pattern:
            named = re.compile(re.escape(str(path)).replace(re.escape(_LANGUAGE), r"(?P<language>[^/.]+)", 1))
            matches = (
                named.fullmatch(str(one)) for one in _found(Path(str(path).replace(_LANGUAGE, "*")), source)
            )
            for match in filter(None, matches):
                written = match["language"]
                tag = tag_as_written(written)
                if tag is None:
                    raise DataError(
                        f"{source}: {{language}} is {written!r} in {match[0]}, which is no language; give the pattern "
                        "more of the name, or move that file."
                    )
                files.append(SourceFile(Path(match[0]), pattern.replace(_LANGUAGE, written), tag))
        elif path.is_dir():
            below = (one for one in sorted(path.rglob("*")) if data_suffix(one) in SUFFIXES and one.is_file())
            parts = ((one, one.relative_to(path).parts) for one in below)
            found = [one for one, names in parts if not any(name.startswith(".") for name in names)]
            if not found:
                raise DataError(f"{source}: no data file ({', '.join(SUFFIXES)}) lies in the folder {path}.")
            files += [SourceFile(one, f"{pattern.rstrip('/')}/{one.relative_to(path)}") for one in found]
        elif path.is_file() or not has_magic(pattern):
            files.append(SourceFile(path, pattern))
        else:
            files += [SourceFile(one, str(one)) for one in _found(path, source)]
    return files


def checked_files(files: Sequence[SourceFile], *, with_text: bool) -> tuple[SourceFile, ...]:
    """Return the files.

    Raises:
        DataError: One is missing or of an unknown ending; .txt is known `with_text` alone.
    """
    for file in files:
        if data_suffix(file.path) not in (FILE_FORMATS if with_text else SUFFIXES):
            raise DataError(
                f"{file.name}: a data file's name must end in {', '.join(SUFFIXES)} (or these and {COMPRESSED}), "
                f"not in {file.path.suffix or 'nothing'!r}."
            )
        if not file.path.is_file():
            raise DataError(f"{file.name}: there is no such file (looked for {file.path.absolute()}).")
    return tuple(files)


def _alternatives(source: str) -> list[str]:
    """Return what {a,b} stands for; several such parts give every combination."""
    found = _ALTERNATIVES.search(source)
    if found is None:
        return [source]
    start, end = source[: found.start()], source[found.end() :]
    return [each for part in found[1].split(",") for each in _alternatives(f"{start}{part.strip()}{end}")]


def _found(pattern: Path, source: str) -> list[Path]:
    # Not Path.glob: the pattern may be absolute, and hidden files are to stay out.
    found = [Path(one) for one in sorted(glob(str(pattern), recursive=True)) if Path(one).is_file()]  # noqa: PTH207
    if not found:
        raise DataError(f"{source}: no file matches (looked for {pattern.absolute()}).")
    return found
