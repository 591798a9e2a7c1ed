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


def _no_vocabulary(language: str) -> tuple[str, ...]:  # noqa: ARG001
    return ()


def _number_vocabulary(language: str) -> tuple[str, ...]:
    return lexicon.number_words(language)[_SMALLEST_ASKED:]


def _noun_vocabulary(language: str) -> tuple[str, ...]:
    return tuple(nouns(language).values())


# --- lookup -----------------------------------------------------------------------------------------------


_NAMES = {
    "day": (lexicon.weekdays, lexicon.weekday_cases),
    "month": (lexicon.months, lexicon.month_cases),
}


def _names_in_all_cases(field: str, language: str) -> tuple[str, ...]:
    names, cases = _NAMES[field]
    return (*names(language), *itertools.chain.from_iterable(cases(language).values()))


def _calendar_task(name: str, field: str, length: int, offset: int) -> Task:
    """Neighbours in a cycle: the day after, the month before."""
    names, cases = _NAMES[field]

    def render(content: Content, language: str) -> Rendered:
        words, position = names(language), int(content[0])
        inflected = {f"{field}_{case}": forms[position] for case, forms in cases(language).items()}
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


def _dates() -> list[Content]:
    """All days but the first of each month, for which French needs an ordinal that CLDR does not give."""
    return [(month, day) for month in range(1, 13) for day in range(2, 29)]


def _render_date(content: Content, language: str) -> Rendered:
    month, day = int(content[0]), int(content[1])
    fields = {"month": str(month), "day": str(day)}
    return Rendered(fields, lexicon.date_in_words(month, day, language), (str(month), str(day)))


def _render_unit(content: Content, language: str) -> Rendered:
    count, symbol = int(content[0]), str(content[1])
    slot = lexicon.amount_in_words(count, symbol, language)
    return Rendered({"amount": f"{count} {symbol}"}, slot, (str(count),))


def _unit_vocabulary(language: str) -> tuple[str, ...]:
    return _names_in_all_numbers(lexicon.amount_in_words, lexicon.UNITS, language)


def _render_money(content: Content, language: str) -> Rendered:
    count, currency = int(content[0]), str(content[1])
    slot = lexicon.money_in_words(count, currency, language)
    return Rendered({"amount": f"{count} {currency}"}, slot, (str(count),))


def _currency_vocabulary(language: str) -> tuple[str, ...]:
    return _names_in_all_numbers(lexicon.money_in_words, lexicon.CURRENCIES, language)


def _names_in_all_numbers(
    in_words: Callable[[int, str, str], str], symbols: Iterable[str], language: str
) -> tuple[str, ...]:
    """Return the names without a count, in the forms that Arabic and Russian counts ask for, too."""
    return tuple(
        in_words(count, symbol, language).replace(str(count), "").strip()
        for symbol in symbols
        for count in (2, 3, 12, 21)
    )


def _render_country(content: Content, language: str) -> Rendered:
    territory = str(content[0])
    fields = {"country": lexicon.country_name(territory, language)}
    return Rendered(fields, lexicon.official_language(territory, language))


def _language_vocabulary(language: str) -> tuple[str, ...]:
    return tuple(lexicon.official_language(territory, language) for territory in lexicon.COUNTRIES)


# --- counting ---------------------------------------------------------------------------------------------


def _render_digits(content: Content, language: str) -> Rendered:
    number = int(content[0])
    return Rendered({"number": str(number)}, lexicon.number_words(language)[number])


def _render_sum(content: Content, language: str) -> Rendered:
    first, second = int(content[0]), int(content[1])
    words = lexicon.number_words(language)
    given = (words[first], words[second])
    return Rendered({"first": given[0], "second": given[1]}, words[first + second], given)


def _sequences() -> list[Content]:
    """Start and step; four terms are shown."""
    return [(start, step) for start in range(1, 60) for step in (1, 2, 3, 5, 10)]


def _render_sequence(content: Content, language: str) -> Rendered:
    start, step = int(content[0]), int(content[1])
    terms = tuple(str(start + step * position) for position in range(4))
    return Rendered({"list": _bare_list(terms, language)}, str(start + 4 * step), terms)


def _number_pairs() -> list[Content]:
    """Pairs of unlike numbers, drawn per larger one so that every slot has equally many."""
    return [
        (larger, smaller) if number_from("order", larger, smaller) % 2 else (smaller, larger)
        for larger in range(_SMALLEST_ASKED + 2, lexicon.LARGEST_NUMBER + 1)
        for smaller in shuffle(range(_SMALLEST_ASKED, larger), "smaller", larger)[:4]
    ]


def _render_larger(content: Content, language: str) -> Rendered:
    words = lexicon.number_words(language)
    first, second = int(content[0]), int(content[1])
    return Rendered({"first": words[first], "second": words[second]}, words[max(first, second)])


def _drawn_lists(name: str, shortest: int, longest: int) -> list[Content]:
    """Lists of different nouns, by their keys; lengths take turns, so that each is equally frequent."""
    lengths = itertools.cycle(range(shortest, longest + 1))
    keys = noun_keys()
    return [
        tuple(shuffle(keys, name, number)[:length])
        for number, length in zip(range(_DRAWN_CONTENTS), lengths, strict=False)
    ]


def _sums() -> list[Content]:
    """Two addends of at most twelve."""
    return [
        (first, second)
        for first, second in itertools.product(range(2, 13), repeat=2)
        if first + second >= _SMALLEST_ASKED
    ]


def _bare_list(words: Sequence[str], language: str) -> str:
    return writing_of(language).list_separator.join(words)


def _noun_list(content: Content, language: str) -> list[str]:
    return [nouns(language)[str(key)] for key in content]


def _list_task(name: str, slot_of: Callable[[list[str], str], str], shortest: int, longest: int) -> Task:
    """A task over a list of nouns whose slot is made of the list's own words."""

    def render(content: Content, language: str) -> Rendered:
        words = _noun_list(content, language)
        return Rendered({"list": _bare_list(words, language)}, slot_of(words, language))

    return Task(
        family="counting",
        name=name,
        contents=lambda: _drawn_lists(name, shortest, longest),
        slot_key=(lambda content: str(content[-1])) if name == "last_of_list" else str,
        render=render,
        vocabulary=_noun_vocabulary,
        each_once=True,
    )


def _render_count(content: Content, language: str) -> Rendered:
    return Rendered({"list": _bare_list(_noun_list(content, language), language)}, str(len(content)))


TASKS: tuple[Task, ...] = (
    _calendar_task("weekday_after", "day", 7, 1),
    _calendar_task("weekday_before", "day", 7, -1),
    _calendar_task("month_after", "month", 12, 1),
    _calendar_task("month_before", "month", 12, -1),
    Task(
        "lookup",
        "date_in_words",
        _dates,
        str,
        _render_date,
        lambda language: _names_in_all_cases("month", language),
        digits_compete=True,
    ),
    Task(
        "lookup",
        "unit_in_words",
        lambda: list(itertools.product(range(2, 60), lexicon.UNITS)),
        str,
        _render_unit,
        _unit_vocabulary,
        digits_compete=True,
    ),
    Task(
        "lookup",
        "currency_in_words",
        lambda: list(itertools.product(range(2, 60), lexicon.CURRENCIES)),
        str,
        _render_money,
        _currency_vocabulary,
        digits_compete=True,
    ),
    Task(
        "lookup",
        "language_of_country",
        lambda: [(territory,) for territory in lexicon.COUNTRIES],
        str,
        _render_country,
        _language_vocabulary,
    ),
    Task(
        "counting",
        "digits_to_words",
        lambda: [(number,) for number in range(_SMALLEST_ASKED, lexicon.LARGEST_NUMBER + 1)],
        str,
        _render_digits,
        _number_vocabulary,
    ),
    Task(
        "counting",
        "sum_in_words",
        _sums,
        lambda content: str(int(content[0]) + int(content[1])),
        _render_sum,
        _number_vocabulary,
    ),
    Task(
        "counting",
        "next_number",
        _sequences,
        lambda content: str(int(content[0]) + 4 * int(content[1])),
        _render_sequence,
        _no_vocabulary,
        digits_compete=True,
        word_slot=False,
    ),
    Task(
        "counting",
        "larger_of_two",
        _number_pairs,
        lambda content: str(max(int(content[0]), int(content[1]))),
        _render_larger,
        _number_vocabulary,
    ),
    Task(
        "counting",
        "count_items",
        lambda: _drawn_lists("count_items", 3, 7),
        lambda content: str(len(content)),
        _render_count,
        _no_vocabulary,
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
