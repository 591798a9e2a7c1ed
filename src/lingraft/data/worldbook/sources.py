"""How a study names a part of worldbook: "worldbook:lookup/de,es,fr#report"."""

from __future__ import annotations

from lingraft.data.example import Example
from lingraft.data.worldbook.groups import SPLITS
from lingraft.data.worldbook.items import FAMILIES, check_name, load_items
from lingraft.data.worldbook.templates import LANGUAGES
from lingraft.errors import DataError

_PREFIX = "worldbook:"
_FORM = '"worldbook:FAMILY/LANGUAGE,LANGUAGE", with "#selection" or "#report" for another split than train'


def parse_source(source: str) -> tuple[str, tuple[str, ...], str]:
    """Return family, languages (in the order written) and split of a source.

    Args:
        source: "worldbook:lookup/de,es,fr", optionally followed by "#train", "#selection" or "#report".

    Raises:
        DataError: The text has another form, names something unknown, or a language twice.
    """
    body, _, split = source.removeprefix(_PREFIX).partition("#")
    family, slash, tags = body.partition("/")
    if not source.startswith(_PREFIX) or not slash or ("#" in source and not split):
        raise DataError(f"{source!r} is not a source of worldbook. Write {_FORM}.")
    languages = tuple(tag.strip() for tag in tags.split(","))
    split = split or SPLITS[0]
    check_name("family", family, FAMILIES, source)
    for language in languages:
        check_name("language", language, LANGUAGES, source)
    check_name("split", split, SPLITS, source)
    if len(set(languages)) < len(languages):
        raise DataError(f"{source}: a language is named twice. Name each once.")
    return family, languages, split


def load_examples(source: str) -> tuple[Example, ...]:
    """Return all examples of a source; languages alternate: group 0 in each language, group 1 in each, ...

    So any prefix holds the languages equally often (within one), and each task, too. The caller takes limits.

    Raises:
        DataError: As in `parse_source`.
    """
    family, languages, split = parse_source(source)
    columns = [load_items(family, language, split) for language in languages]
    return tuple(item.example for parallel in zip(*columns, strict=True) for item in parallel)
