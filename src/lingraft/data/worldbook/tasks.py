"""The task types of worldbook: which contents each one asks about, and what the right answer must hold.

A *content* is language-neutral (numbers, ISO codes, keys of nouns); `render` turns it into one language's
words. Nothing here knows of templates, constraints or splits: `groups` and `items` add those.

Contents are chosen so that a model of 135M parameters can learn them from a few hundred examples: a short
closed list (weekdays, months), a rule that carries over to new cases (units, number words), or copying from
the question (lists).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lingraft.data.worldbook import lexicon
from lingraft.data.worldbook.choice import number_from, shuffle
from lingraft.data.worldbook.templates import noun_keys, nouns
from lingraft.data.worldbook.writing import writing_of

Content = tuple[int | str, ...]

_DRAWN_CONTENTS = 900  # of tasks whose contents are without number; four times what the splits need
# Number words are asked for, and compete, from here on: smaller ones are ordinary words or syllables in several
# languages ("um", Korean 이 "this", Vietnamese năm "year", Japanese 十 in 十分 "enough").
_SMALLEST_ASKED = 11


@dataclass(frozen=True, slots=True)
class Rendered:
    """A content in one language.

    Attributes:
        fields: What the question's and the answer's template are filled with.
        slot: What a right answer must contain.
        given: Words of the task's vocabulary that the question itself holds and an answer may repeat.
    """

    fields: dict[str, str]
    slot: str
    given: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """One type of question.

    Attributes:
        family: "lookup" or "counting".
        name: Unique; the key of its templates.
        contents: All contents, in any order.
        slot_key: The language-neutral value of the slot: contents that share it have the same slot.
        render: Content and language to words.
        vocabulary: The words of a language that compete with the slot: any of them in an answer that is neither
            in the slot nor given makes the answer wrong.
        digits_compete: Whether numbers written in digits compete, too.
        each_once: Whether a word of the vocabulary may occur only once (lists: else a model that says a list
            forwards and backwards would be right either way).
        given_first: Whether the question's value may be repeated only before the slot: else "the day after Tuesday
            is Monday" would be right about the day after Monday, as both answers hold the same two words.
        word_slot: Whether the slot is the language's own words, which must then differ from the English ones.
    """

    family: str
    name: str
    contents: Callable[[], Sequence[Content]]
    slot_key: Callable[[Content], str]
    render: Callable[[Content, str], Rendered]
    vocabulary: Callable[[str], tuple[str, ...]]
    digits_compete: bool = False
    each_once: bool = False
    given_first: bool = False
    word_slot: bool = True


def _names_in_all_cases(field: lexicon.CalendarField, language: str) -> tuple[str, ...]:
    cases = lexicon.calendar_cases(field, language).values()
    return (*lexicon.calendar_names(field, language), *itertools.chain.from_iterable(cases))


def _calendar_task(name: str, field: lexicon.CalendarField, length: int, offset: int) -> Task:
    """Neighbours in a cycle: the day after, the month before."""

    def render(content: Content, language: str) -> Rendered:
        words, position = lexicon.calendar_names(field, language), int(content[0])
        cases = lexicon.calendar_cases(field, language)
        inflected = {f"{field}_{case}": forms[position] for case, forms in cases.items()}
        slot = words[(position + offset) % length]
        return Rendered({field: words[position], **inflected}, slot, (words[position], *inflected.values()))

    return Task(
        family="lookup",
        name=name,
        contents=lambda: [(position,) for position in range(length)],
        slot_key=lambda content: str((int(content[0]) + offset) % length),
        render=render,
        vocabulary=lambda language: _names_in_all_cases(field, language),
        given_first=True,
    )


def _amount_task(name: str, in_words: Callable[[int, str, str], str], symbols: Iterable[str]) -> Task:
    """Amounts whose unit is given as a symbol. Names without a count compete, in the forms that counts ask for."""

    def render(content: Content, language: str) -> Rendered:
        count, symbol = int(content[0]), str(content[1])
        return Rendered({"amount": f"{count} {symbol}"}, in_words(count, symbol, language), (str(count),))

    return Task(
        family="lookup",
        name=name,
        contents=lambda: list(itertools.product(range(2, 60), symbols)),
        slot_key=str,
        render=render,
        vocabulary=lambda language: tuple(
            in_words(count, symbol, language).replace(str(count), "").strip()
            for symbol in symbols
            for count in (2, 3, 12, 21)  # of Arabic and Russian as well
        ),
        digits_compete=True,
    )


def _number_words(language: str) -> tuple[str, ...]:
    return lexicon.number_words(language)[_SMALLEST_ASKED:]


def _pair_task(
    name: str, contents: Callable[[], list[Content]], slot_of: Callable[[int, int], int], *, repeats: bool
) -> Task:
    """Two numbers in words, and a third that follows from them; `repeats`: an answer may name the two."""

    def render(content: Content, language: str) -> Rendered:
        first, second = map(int, content)
        words = lexicon.number_words(language)
        fields = {"first": words[first], "second": words[second]}
        return Rendered(fields, words[slot_of(first, second)], tuple(fields.values()) if repeats else ())

    return Task(
        family="counting",
        name=name,
        contents=contents,
        slot_key=lambda content: str(slot_of(int(content[0]), int(content[1]))),
        render=render,
        vocabulary=_number_words,
    )


def _bare_list(words: Sequence[str], language: str) -> str:
    return writing_of(language).list_separator.join(words)


def _drawn_lists(name: str, shortest: int, longest: int) -> list[Content]:
    """Lists of different nouns, by their keys; lengths take turns, so that each is equally frequent."""
    lengths = itertools.cycle(range(shortest, longest + 1))
    keys = noun_keys()
    return [
        tuple(shuffle(keys, name, number)[:length])
        for number, length in zip(range(_DRAWN_CONTENTS), lengths, strict=False)
    ]


def _list_task(name: str, slot_of: Callable[[list[str], str], str], shortest: int, longest: int) -> Task:
    """A list of nouns and a slot that is made of its own words."""

    def render(content: Content, language: str) -> Rendered:
        words = [nouns(language)[str(key)] for key in content]
        return Rendered({"list": _bare_list(words, language)}, slot_of(words, language))

    return Task(
        family="counting",
        name=name,
        contents=lambda: _drawn_lists(name, shortest, longest),
        slot_key=(lambda content: str(content[-1])) if name == "last_of_list" else str,
        render=render,
        vocabulary=lambda language: tuple(nouns(language).values()),
        each_once=True,
    )


def _render_date(content: Content, language: str) -> Rendered:
    month, day = int(content[0]), int(content[1])
    fields = {"month": str(month), "day": str(day)}
    return Rendered(fields, lexicon.date_in_words(month, day, language), tuple(fields.values()))


def _render_sequence(content: Content, language: str) -> Rendered:
    start, step = int(content[0]), int(content[1])
    terms = tuple(str(start + step * position) for position in range(4))
    return Rendered({"list": _bare_list(terms, language)}, str(start + 4 * step), terms)


TASKS: tuple[Task, ...] = (
    _calendar_task("weekday_after", "day", 7, 1),
    _calendar_task("weekday_before", "day", 7, -1),
    _calendar_task("month_after", "month", 12, 1),
    _calendar_task("month_before", "month", 12, -1),
    Task(
        "lookup",
        "date_in_words",
        # Not the first of a month, for which French needs an ordinal that CLDR does not give.
        lambda: [(month, day) for month in range(1, 13) for day in range(2, 29)],
        str,
        _render_date,
        lambda language: _names_in_all_cases("month", language),
        digits_compete=True,
    ),
    _amount_task("unit_in_words", lexicon.amount_in_words, lexicon.UNITS),
    _amount_task("currency_in_words", lexicon.money_in_words, lexicon.CURRENCIES),
    Task(
        "lookup",
        "language_of_country",
        lambda: [(territory,) for territory in lexicon.COUNTRIES],
        str,
        lambda content, language: Rendered(
            {"country": lexicon.country_name(str(content[0]), language)},
            lexicon.official_language(str(content[0]), language),
        ),
        lambda language: tuple(lexicon.official_language(one, language) for one in lexicon.COUNTRIES),
    ),
    Task(
        "counting",
        "digits_to_words",
        lambda: [(number,) for number in range(_SMALLEST_ASKED, lexicon.LARGEST_NUMBER + 1)],
        str,
        lambda content, language: Rendered(
            {"number": str(content[0])}, lexicon.number_words(language)[int(content[0])]
        ),
        _number_words,
    ),
    _pair_task(
        "sum_in_words",
        lambda: [pair for pair in itertools.product(range(2, 13), repeat=2) if sum(pair) >= _SMALLEST_ASKED],
        lambda first, second: first + second,
        repeats=True,
    ),
    Task(
        "counting",
        "next_number",
        lambda: list(
            itertools.product(range(1, 60), (1, 2, 3, 5, 10))
        ),  # start and step; four terms are shown
        lambda content: str(int(content[0]) + 4 * int(content[1])),
        _render_sequence,
        lambda _: (),
        digits_compete=True,
        word_slot=False,
    ),
    _pair_task(
        "larger_of_two",
        lambda: [  # drawn per larger one, so that every slot has equally many
            (larger, smaller) if number_from("order", larger, smaller) % 2 else (smaller, larger)
            for larger in range(_SMALLEST_ASKED + 2, lexicon.LARGEST_NUMBER + 1)
            for smaller in shuffle(range(_SMALLEST_ASKED, larger), "smaller", larger)[:4]
        ],
        max,
        repeats=False,
    ),
    Task(
        "counting",
        "count_items",
        lambda: _drawn_lists("count_items", 3, 7),
        lambda content: str(len(content)),
        lambda content, language: Rendered(
            {"list": _bare_list([nouns(language)[str(key)] for key in content], language)}, str(len(content))
        ),
        lambda _: (),
        digits_compete=True,
        word_slot=False,
    ),
    _list_task("join_list", lexicon.join_words, 3, 4),
    _list_task("reverse_list", lambda words, language: _bare_list(words[::-1], language), 3, 4),
    _list_task("last_of_list", lambda words, _: words[-1], 4, 5),
)


def tasks_of(family: str) -> tuple[Task, ...]:
    """Return the tasks of one family, in the order of TASKS."""
    return tuple(task for task in TASKS if task.family == family)


def task_named(name: str) -> Task:
    """Return the task of that name; names are unique over both families."""
    return next(task for task in TASKS if task.name == name)
