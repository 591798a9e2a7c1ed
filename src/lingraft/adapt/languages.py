"""In which languages the new rows are, against what was said of them: before anything is trained.

Three things can say otherwise than the user: a row's own field, its script, and the identifier of languages. A set most
of which is in another language is refused; what is less is counted and shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lingraft.data.example import UNDETERMINED_LANGUAGE, Example
from lingraft.data.example_table import columns_of, select
from lingraft.data.field_paths import with_field_paths
from lingraft.data.filters import OTHERS
from lingraft.data.formats import row_language
from lingraft.data.language_id import LanguageIdentifier, known_tags, shares_of_languages
from lingraft.data.readers import RawRow
from lingraft.data.row_fields import RowError
from lingraft.data.rows import open_rows
from lingraft.data.sources import WORLDBOOK_PREFIX
from lingraft.errors import ConfigError, escape_control_characters
from lingraft.study.materials import DataSet, Materials
from lingraft.text.language_tags import ENGLISH, english_name, is_english, nearest_language, primary_subtag
from lingraft.text.scripts import is_in_usual_script, share_in_script

SAMPLED = 500
"""Rows of each language that are read to tell it; a share of so many is known to about 4 %."""
_FEWEST = 5  # rows that say or read otherwise, before a set is refused: one may be misread
_MOST = 0.5
_WORTH_SAYING = 0.01
_SHOWN_ROWS = 3
_LISTED = 4  # languages
_SHOWN_CHARACTERS = 60
_READ_CHARACTERS = 1000
_OTHER_SCRIPT = (
    0.2  # of the letters, at least, are in the language's script; names, units and code are in others
)
_FEWEST_LETTERS = 5
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)  # is in no language
# So near that a row's identified language is no reason to refuse the other.
_NEAR = (
    {"id", "ms", "jv", "su"},
    {"es", "gl", "an", "ast", "ca"},
    {"pt", "gl"},
    {"nb", "nn", "no", "da"},
    {"hr", "bs", "sr"},
    {"nl", "af"},
    {"de", "lb"},
    {"hi", "mr", "ne"},
)


@dataclass(frozen=True, kw_only=True)
class RowLanguages:
    """The languages of a data set's rows.

    Attributes:
        source: The data set, as the user named it.
        said: The languages that were said of it, BCP-47 tags.
        rows: By the language that they are trained as, how many there are.
        claimed: By the language that their own field says, how many there are; empty: none says any.
        read: Rows that were read to tell their language.
        undetermined: Of these, the ones that are too short to tell, or in a language that the identifier does not know.
        otherwise: Of these, the ones in another language than is said, by the language that they seem to be in. A row
            that is misread for a near language is none of them.
        examples: The first rows that claim or read otherwise, each in one line.
        unknown: Those of `rows` that the identifier does not know; of these the script alone is looked at.
    """

    source: str
    said: tuple[str, ...]
    rows: dict[str, int]
    claimed: dict[str, int]
    read: int
    undetermined: int
    otherwise: dict[str, int]
    examples: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def not_said(self) -> dict[str, int]:
        """Rows that are trained as, or themselves say, a language that was not said."""
        found = dict(self.rows)
        for tag, count in self.claimed.items():
            found[tag] = max(count, found.get(tag, 0))
        return {tag: count for tag, count in found.items() if not _is_one_of(tag, self.said)}

    @property
    def is_believed(self) -> bool:
        """Whether most rows say themselves what was said of them."""
        own = sum(count for tag, count in self.claimed.items() if _is_one_of(tag, self.said))
        return own > _MOST * sum(self.rows.values())


def languages_of(data: DataSet, said: Sequence[str], base_folder: Path = Path()) -> RowLanguages:
    """Return the languages of a data set's rows. Its files are read once more, for what the rows say themselves.

    Args:
        data: The set, read.
        said: The languages that were said of it, BCP-47 tags; none: those that its rows say.
        base_folder: What relative paths of data are relative to.
    """
    examples = data.loaded.examples
    columns = columns_of(examples)
    said = said or columns.languages
    counts = np.bincount(columns.language, minlength=len(columns.languages))
    claimed, shown = _claimed(data, said, base_folder)
    read = undetermined = 0
    unlike: list[Example] = []
    for code, tag in enumerate(columns.languages):
        places = np.flatnonzero(columns.language == code)
        chosen = places[np.unique(np.linspace(0, len(places) - 1, SAMPLED).astype(np.int64))]
        reader = _Reader(tag)
        for example in select(examples, chosen):
            fits = reader.fits(_text_of(example))
            read += 1
            undetermined += fits is None
            if fits is False:
                unlike.append(example)
    # All of them together name the language: a single row is easily misread among so many.
    shares = shares_of_languages(map(_text_of, unlike)) or ({UNDETERMINED_LANGUAGE: 1.0} if unlike else {})
    seem = {tag: count for tag, share in shares.items() if (count := round(share * len(unlike)))}
    shown += [f"row {one.id}: {_line(one.instruction)}" for one in unlike]
    return RowLanguages(
        source=data.source.source,
        said=tuple(said),
        rows={tag: int(counts[code]) for code, tag in enumerate(columns.languages)},
        claimed=claimed,
        read=read,
        undetermined=undetermined,
        otherwise=seem,
        examples=tuple(shown[:_SHOWN_ROWS]),
        unknown=tuple(sorted({*columns.languages} - {*known_tags(columns.languages)})),
    )


def checked_languages(
    materials: Materials, said: Sequence[str], base_folder: Path = Path()
) -> dict[str, RowLanguages]:
    """Return the languages of each data set's rows, by its name.

    Args:
        materials: The data sets, read.
        said: The languages that the user named, BCP-47 tags; none: those that rows and sets say. A set with a
            `language` of its own is in that one.
        base_folder: What relative paths of data are relative to.

    Raises:
        ConfigError: See `check_languages`.
    """
    found = {
        name: languages_of(one, [one.source.language] if one.source.language else said, base_folder)
        for (_, name), one in materials.data.items()
    }
    check_languages(tuple(found.values()), said)
    return found


def check_languages(found: Sequence[RowLanguages], said: Sequence[str]) -> None:
    """Refuse data that are mostly in another language than was said, or hold no row of a language that was.

    Rows that read otherwise but whose own field says what the user says are believed: two against the identifier.

    Args:
        found: Of each data set.
        said: All languages that the user named, BCP-47 tags.

    Raises:
        ConfigError: With every problem, each with counts and examples.
    """
    problems: list[str] = []
    for one in found:
        named, all_rows = " or ".join(map(_named, one.said)), sum(one.rows.values())
        such_as = f" ({'; '.join(one.examples)})" if one.examples else ""
        not_said = sum(one.not_said.values())
        determined, otherwise = one.read - one.undetermined, sum(one.otherwise.values())
        if not_said > _MOST * max(all_rows, sum(one.claimed.values())):
            problems.append(
                f"{one.source}: {not_said} of {all_rows} rows say themselves that they are not in {named}: "
                f"{_counts(one.not_said)}{such_as}. Say their language (--language {_first(one.not_said)}), or give "
                f"rows in {named}."
            )
        elif (
            otherwise > _MOST * determined
            and (otherwise >= _FEWEST or otherwise == determined)
            and not one.is_believed
        ):
            problems.append(
                f"{one.source}: {otherwise} of {determined} rows that were read are not in {named}; they seem to be "
                f"in {_counts(one.otherwise)}{such_as}. Say their language (--language {_first(one.otherwise)}), or "
                f"give rows in {named}. If they are in it all the same, say so in each row: a field `language`."
            )
    has_rows = {tag for one in found for tag in one.rows}
    if all(map(is_english, has_rows)) and not problems:
        listed = ", ".join(one.source for one in found)
        problems.append(
            f"{listed}: all rows are English, so there is no language to learn. Say the rows' language "
            "(--language th), or give rows in a new one."
        )
    missing = [tag for tag in said if not any(_is_one_of(other, (tag,)) for other in has_rows)]
    if missing and not problems:
        listed = "; ".join(f"{one.source}: {_counts(one.rows)}" for one in found)
        problems.append(
            f"no row is in {' or '.join(map(_named, missing))} ({listed}). Give a file with such rows, or leave "
            f"--language {' and --language '.join(missing)} out."
        )
    if problems:
        raise ConfigError("\n".join(problems))


def language_lines(one: RowLanguages) -> list[str]:
    """Return what is to be known of a set that is not refused: rows in languages that were not said, English ones, and
    how many are too short for it."""
    lines = []
    named = " or ".join(one.said)
    such_as = f" ({'; '.join(one.examples)})" if one.examples else ""
    if one.not_said:
        lines.append(
            f"{one.source}: {sum(one.not_said.values())} rows say that they are in another language than {named}: "
            f"{_counts(one.not_said)}{such_as}. They are trained on all the same."
        )
    otherwise = sum(one.otherwise.values())
    if otherwise > _WORTH_SAYING * one.read or ENGLISH in one.otherwise:
        lines.append(
            f"{one.source}: {otherwise} of {one.read} rows that were read seem to be in another language than said: "
            f"{_counts(one.otherwise)}{'' if one.not_said else such_as}. They are trained on all the same; the filter "
            "`language` leaves such rows out."
        )
    if one.undetermined > _MOST * one.read:
        why = (
            f"the identifier of languages does not know {' and '.join(one.unknown)}"
            if one.unknown
            else "most are too short to tell"
        )
        lines.append(
            f"{one.source}: the language of {one.undetermined} of {one.read} rows could not be checked: {why}."
        )
    return lines


class _Reader:
    """Tells whether a text is in a language."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        is_known = bool(known_tags([tag])) and is_in_usual_script(tag)
        primary = primary_subtag(tag)
        self._identifier = LanguageIdentifier(sorted({primary, *OTHERS})) if is_known else None
        self._same = {primary}.union(*(near for near in _NEAR if primary in near))

    def fits(self, text: str) -> bool | None:
        """Return whether a text is in the language; None: it is too short to tell."""
        share = share_in_script(text, self._tag)
        if share is None:
            return None
        if share < _OTHER_SCRIPT and sum(map(str.isalpha, text)) >= _FEWEST_LETTERS:
            return False
        found = None if self._identifier is None else self._identifier.identify(text)
        return None if found is None else found in self._same


def _claimed(data: DataSet, said: Sequence[str], base_folder: Path) -> tuple[dict[str, int], list[str]]:
    """Return what rows say themselves of their language, and the first that say another than was said."""
    if data.source.source.startswith(WORLDBOOK_PREFIX):
        return {}, []
    rows: Iterable[RawRow] = open_rows(data.source, base_folder=base_folder, null_in_tables=True)
    if data.source.fields:
        rows = with_field_paths(rows, data.source.fields)
    found: Counter[str] = Counter()
    shown: list[str] = []
    for row in rows:
        with suppress(RowError):  # it is counted among the broken ones
            tag = UNDETERMINED_LANGUAGE if row.problem is not None else row_language(row.value)
            found[tag] += 1
            if tag != UNDETERMINED_LANGUAGE and not _is_one_of(tag, said) and len(shown) < _SHOWN_ROWS:
                shown.append(f"{row.place} says {tag}")
    del found[UNDETERMINED_LANGUAGE]
    return dict(found.most_common()), shown


def _is_one_of(tag: str, languages: Sequence[str]) -> bool:
    """Return whether a language is one of some, in whatever region or script."""
    return any(tag == one or nearest_language(tag, (one,)) is not None for one in languages)


def _text_of(example: Example) -> str:
    turns = (turn.content for turn in example.messages if turn.role != "system")
    return _CODE.sub(" ", " ".join(turns))[:_READ_CHARACTERS]


def _line(text: str) -> str:
    """Return the beginning of a text that is not ours, in one line."""
    flat = escape_control_characters(" ".join(text.split()), keep="")
    return repr(flat[:_SHOWN_CHARACTERS] + "…") if len(flat) > _SHOWN_CHARACTERS else repr(flat)


def _named(tag: str) -> str:
    name = english_name(tag)
    return tag if name == tag else f"{tag} ({name})"


def _counts(rows: Mapping[str, int]) -> str:
    listed = sorted(rows.items(), key=lambda one: -one[1])
    more = f" and {len(listed) - _LISTED} more languages" if len(listed) > _LISTED else ""
    return ", ".join(f"{_named(tag)} {count}" for tag, count in listed[:_LISTED]) + more


def _first(rows: Mapping[str, int]) -> str:
    return max(rows, key=lambda tag: rows[tag])
