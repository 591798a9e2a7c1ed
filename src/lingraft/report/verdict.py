"""The verdict on a study, in sentences: which strategy kept English and gained most, and which are as good.

`adapt.choice` decides which cell that is, as for `lingraft export`; `rivals` which others are not distinguishable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lingraft.adapt.choice import Candidate, best_of, candidates_of
from lingraft.intervals.confidence_intervals import fewest_for_no_change
from lingraft.intervals.macro_mean import Difference
from lingraft.measures.look import MIXED, PLAIN
from lingraft.report.rivals import Rivals
from lingraft.report.runs import Report
from lingraft.report.tables import spelled_limit
from lingraft.study.result import FailedCell, PendingCell, StudyResult
from lingraft.text.language_tags import ENGLISH

_ROLES = {MIXED: "the upper bound", PLAIN: "the lower bound"}
_NAMED = 3  # cells named in a sentence, and data sets with a sentence of their own; the table has all
_OF_ENGLISH = ("task_ability", ENGLISH)


@dataclass(frozen=True)
class Verdict:
    """What a study says.

    Attributes:
        answer: Kept: some cell is shown to have kept English. Undecided: none is, and of some it is not known. Lost:
            all cells lost more than they may. Nothing: no cell is done.
        best: Of cells that kept English the one with the most language ability; else the one that lost least of
            English, of those of which nothing is decided if there are any. None: no cell is done.
        alike: Those that are not distinguishable from it: in language ability, of those that kept English as well; else
            in task ability.
        sentence: The verdict.
        notes: What else must be known to believe it: the bounds beside it, what is not done, how it was compared.
    """

    answer: Literal["kept", "undecided", "lost", "nothing"]
    best: Candidate | None
    alike: tuple[Candidate, ...]
    sentence: str
    notes: tuple[str, ...]


def verdict_of(report: Report) -> Verdict:
    """Return the verdict on what a report shows."""
    result = report.result
    found = candidates_of(result)
    if not found:
        return Verdict("nothing", None, (), _nothing(result), ())
    best = best_of(found)
    if best is not None:
        kept = [one for one in found if one.kept == "held" and one.score is not None]
        rivals = report.comparer.rivals("language_ability", best, kept)
        sentence = _kept_sentence(result, best, kept, len(found))
        sentence += _rivals_sentence(result, rivals, len(kept)) + _next_sentence(result, best, kept, found)
        return Verdict("kept", best, rivals.alike, sentence, tuple(_notes(result, found, best, rivals)))
    held = [one for one in found if one.kept == "held"]
    if held:  # and no task measures the new languages
        return _by_held_out(result, found, held)
    unknown = [one for one in found if one.kept != "broken"]
    least = max(unknown or found, key=lambda one: one.task_ability.value)
    rivals = report.comparer.rivals("task_ability", least, unknown or found)
    sentence = (
        _lost_sentence(result, least, found) if not unknown else _undecided_sentence(result, least, found)
    )
    if rivals.alike:
        sentence += f" {_named(result, rivals.alike)} not distinguishable from it in English."
    return Verdict(
        "undecided" if unknown else "lost",
        least,
        rivals.alike,
        sentence,
        tuple(_notes(result, found, least, rivals)),
    )


def _nothing(result: StudyResult) -> str:
    failed = [cell for cell in result.cells if isinstance(cell, FailedCell)]
    pending = len(result.cells) - len(failed)
    if not failed:
        whom = "the only cell is not" if pending == 1 else f"none of the {pending} cells is"
        return f"There is no verdict yet: {whom} done."
    reasons = list(dict.fromkeys(cell.reason for cell in failed))
    why = reasons[0].rstrip(".")
    if len(reasons) > 1:
        why += f"; and {len(reasons) - 1} more reason{'s' if len(reasons) > 2 else ''}"
    if pending:
        count = "1 cell" if len(failed) == 1 else f"{len(failed)} cells"
        are = "is" if pending == 1 else "are"
        return f"There is no verdict yet: {count} failed ({why}) and {pending} {are} pending."
    whom = "the only cell" if len(failed) == 1 else f"all {len(failed)} cells"
    return f"There is no verdict: {whom} failed ({why})."


def _kept_sentence(result: StudyResult, best: Candidate, kept: Sequence[Candidate], of: int) -> str:
    """Return what the best of those that kept English did, and of how many it is."""
    what = _kept_what(best)
    gain = best.language_ability
    has_gained = gain.value > 0 and gain.all_scores is None
    most = (
        "the most" if has_gained else "the highest score in them"
    )  # "lost 0.02: the most" says the opposite
    if of == 1:
        rank = f"it is {_only(result)}, and {what}"
    elif len(kept) == 1:
        rank = f"the only one of the {_counted(result, of)} that is shown to have {what}"
    elif len(kept) == of:
        rank = f"{most} of the {_counted(result, of)}, all of which {what}"
    else:
        rank = f"{most} of the {len(kept)} of {_counted(result, of)} that {what}"
    return f"{_name(result, best)} {_did(best)}: {rank}.{_seeds(best)}"


def _kept_what(one: Candidate) -> str:
    return "kept English" + (" and all limits" if set(one.cells[0].limits) - set(_OF_ENGLISH) else "")


def _next_sentence(
    result: StudyResult, best: Candidate, kept: Sequence[Candidate], found: Sequence[Candidate]
) -> str:
    """Return how the best strategy did where a bound is the best of all: a bound is the yardstick, and no answer."""
    strategies = [one for one in found if one.strategy not in _ROLES]
    if best.strategy not in _ROLES or not strategies:
        return ""
    own = max(
        (one for one in kept if one.strategy not in _ROLES), key=lambda one: one.score or 0.0, default=None
    )
    if own is not None:
        return f" Of the strategies besides the bounds {_name(result, own)} did best: it {_did(own)}."
    least = max(strategies, key=lambda one: one.task_ability.value)
    return (
        f" No strategy besides the bounds is shown to have {_kept_what(best)}; {_name(result, least)} "
        f"{'lost least' if least.task_ability.value < 0 else 'did best'}: it {_did(least)}."
    )


def _rivals_sentence(result: StudyResult, rivals: Rivals, kept: int) -> str:
    if rivals.alike:
        return f" {_named(result, rivals.alike)} not distinguishable from it."
    if kept > 1:
        return " It is ahead of the other." if kept == 2 else " It is ahead of all others of them."
    return ""


def _lost_sentence(result: StudyResult, least: Candidate, found: Sequence[Candidate]) -> str:
    only = _only(result)
    whom = (
        f"None of the {_counted(result, len(found))}"
        if len(found) > 1
        else f"{only[0].upper()}{only[1:]} has not"
    )
    begin = f"{whom} kept English" + (" within the limits" if least.cells[0].limits else "")
    return f"{begin}. {_name(result, least)} {_least(least, found)}{_did(least)}.{_seeds(least)}"


def _undecided_sentence(result: StudyResult, least: Candidate, found: Sequence[Candidate]) -> str:
    """Return that nothing is decided, and what is known of the one that lost least."""
    lost = sum(one.kept == "broken" for one in found)
    begin = (
        "It is not shown whether English was kept."
        if len(found) == 1
        else f"None of the {_counted(result, len(found))} is shown to have kept English."
    )
    if lost:
        begin = f"{begin[:-1]}, and {lost} lost more than {'it' if lost == 1 else 'they'} may."
    return (
        f"{begin} {_name(result, least)} {_least(least, found)}{_did(least)}, but "
        f"{_open_question(least)}.{_seeds(least)}"
    )


def _only(result: StudyResult) -> str:
    one = _counted(result, 1).removeprefix("1 ")
    is_whole = len({(cell.data, cell.strategy) for cell in result.cells}) == 1
    return f"the only {one}" + ("" if is_whole else " that is done")


def _counted(result: StudyResult, count: int) -> str:
    """Return how many are compared: cells, or where these have several seeds what has one mean over them."""
    if not result.has_seeds:
        return f"{count} cell{'' if count == 1 else 's'}"
    if len({cell.data for cell in result.cells}) == 1:
        return f"{count} {'strategy' if count == 1 else 'strategies'}"
    return f"{count} pair{'' if count == 1 else 's'} of data and strategy"


def _least(least: Candidate, found: Sequence[Candidate]) -> str:
    if len(found) == 1:
        return ""
    return f"{'lost least' if least.task_ability.value < 0 else 'did best'}: it "


def _open_question(one: Candidate) -> str:
    """Return why a candidate is not shown to have kept English and its limits."""
    if one.kept == "seeds_disagree":
        return "its seeds disagree on what it lost"
    change = one.task_ability
    limits = {name: limit for name, limit in one.cells[0].limits.items() if limit.answer != "held"}
    asked = ", ".join(f"{limit.limit:g} of {_spelled(name)}" for name, limit in limits.items())
    if change.all_scores is not None and not limits:
        return (
            f"all its answers and Phase 1's score {change.all_scores:g}, so that nothing is known of English"
        )
    return f"{change.n:,} items cannot rule out a loss of more than {asked or f'{change.margin:g}'}"


def _by_held_out(result: StudyResult, found: Sequence[Candidate], held: Sequence[Candidate]) -> Verdict:
    """Return the verdict where no task measures the new languages: by the loss of their held-out answers."""
    bits = [(value, one) for one in held if (value := _held_out(one)) is not None]
    kept = f"{len(held)} of {_counted(result, len(found))}"
    if not bits:
        sentence = f"{kept} kept English; nothing measures what was gained in the new languages."
        return Verdict("kept", None, (), sentence, tuple(_notes(result, found, None, None)))
    value, best = min(bits, key=lambda pair: pair[0])
    sentence = (
        f"No task measures the new languages. Of the {kept} that kept English "
        f"{_name(result, best)} has the lowest loss of held-out answers in them, {value:.2f} bits per character; it "
        f"{_kept(best)}.{_seeds(best)}"
    )
    return Verdict("kept", best, (), sentence, tuple(_notes(result, found, best, None)))


def _held_out(one: Candidate) -> float | None:
    """Return the mean loss of held-out answers over the new languages and seeds, in bits per character."""
    known = [
        score.held_out.value
        for cell in one.cells
        for tag, score in cell.scores.per_language.items()
        if tag != ENGLISH and score.held_out is not None
    ]
    return sum(known) / len(known) if known else None


def _notes(
    result: StudyResult, found: Sequence[Candidate], best: Candidate | None, rivals: Rivals | None
) -> Iterator[str]:
    """Yield what else must be known."""
    if best is not None and best.kept == "undecided":
        yield from _needed(result, best)
    yield from _bounds(result, found, best)
    if {one.strategy for one in found} <= _ROLES.keys():
        yield "Nothing but the bounds plain and mixed is done: no strategy is compared."
    failed = [cell for cell in result.cells if isinstance(cell, FailedCell)]
    pending = sum(isinstance(cell, PendingCell) for cell in result.cells)
    if failed:
        lost = list(dict.fromkeys(f"{cell.strategy} on {cell.data}" for cell in failed))
        yield f"{len(failed)} of {len(result.cells)} cells failed: {_first(lost)}."
    if pending:
        are = "is" if pending == 1 else "are"
        yield f"{pending} of {len(result.cells)} cells {are} pending: the verdict may change."
    if rivals is not None and rivals.by_overlap:
        names = _first([_name(result, one) for one in rivals.by_overlap])
        yield (
            f"{names}: compared by whether the intervals of the two scores overlap, since answers are gone or were "
            "asked otherwise."
        )


def _needed(result: StudyResult, one: Candidate) -> Iterator[str]:
    """Yield how many items would show whether English was kept."""
    change = one.task_ability
    limit = next((name for name in _OF_ENGLISH if name in result.limits), None)
    margin = change.margin if limit is None else result.limits[limit].limit
    if limit is not None:
        needed = result.limits[limit].needed
    elif change.all_scores is not None:
        return
    else:
        growth = (change.minimum_detectable_effect / margin) ** 2
        needed = max(math.ceil(change.n * growth), fewest_for_no_change(margin))
    if needed > change.n:
        yield (
            f"About {_rounded(needed):,} items of English tasks would show in 4 of 5 cases that no more than "
            f"{margin:g} was lost, if nothing was; {change.n:,} were asked."
        )


def _bounds(result: StudyResult, found: Sequence[Candidate], best: Candidate | None) -> Iterator[str]:
    """Yield what plain and mixed did: the yardstick of all strategies."""
    data = [best.data] if best is not None else []
    sets = list(dict.fromkeys((*data, *(one.data for one in found))))
    shown = [
        one
        for name in sets[:_NAMED]
        for strategy in (PLAIN, MIXED)
        for one in found
        if one.data == name and one.strategy == strategy and one is not best
    ]
    for one in shown:
        yield f"{_name(result, one)} {_did(one)}."
    rest = sum(one.strategy in _ROLES and one.data in sets[_NAMED:] for one in found)
    if rest:
        yield f"The bounds of {len(sets) - _NAMED} more data sets stand in the table."


def _name(result: StudyResult, one: Candidate) -> str:
    role = f" ({_ROLES[one.strategy]})" if one.strategy in _ROLES else ""
    is_plain_enough = len({cell.data for cell in result.cells}) == 1
    return one.strategy + ("" if is_plain_enough else f" on {one.data}") + role


def _named(result: StudyResult, some: Sequence[Candidate]) -> str:
    """Return the names of some with their verb."""
    return f"{_first([_name(result, one) for one in some])} {'is' if len(some) == 1 else 'are'}"


def _first(names: Sequence[str]) -> str:
    if len(names) <= _NAMED:
        return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"


def _did(one: Candidate) -> str:
    """Return what was kept and gained."""
    return f"{_kept(one)} and {_gained(one.language_ability)}"


def _kept(one: Candidate) -> str:
    """Return how much English is left; it is called kept only where that is decided."""
    own = one.retention
    if own.value is None or own.low is None or own.high is None:
        change = one.task_ability
        return f"changed English by {change.value:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"
    share = f"{100 * own.value:.0f} % [{100 * own.low:.0f}, {100 * own.high:.0f}]"
    if one.kept in ("held", "broken"):
        return f"kept {share} of the English score"
    return f"has {share} of Phase 1's English score"


def _gained(gain: Difference) -> str:
    if gain.all_scores is not None:
        return f"shows no gain, since all answers in the new languages score {gain.all_scores:g}"
    if gain.high < 0:
        return f"lost {-gain.value:.2f} [{-gain.high:.2f}, {-gain.low:.2f}] in the new languages"
    if gain.value <= 0:
        return f"shows no gain in the new languages ({gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}])"
    unsure = "" if gain.low > 0 else ", which is not shown to be above 0"
    return f"gained {gain.value:.2f} [{gain.low:.2f}, {gain.high:.2f}] in the new languages{unsure}"


def _seeds(one: Candidate) -> str:
    return "" if len(one.cells) == 1 else f" These are means over {len(one.cells)} seeds."


def _spelled(name: str) -> str:
    return "English" if name in _OF_ENGLISH else spelled_limit(name)


def _rounded(count: int) -> int:
    """Return a count with two digits that matter, rounded up: it is an estimate."""
    step: int = 10 ** max(len(str(count)) - 2, 0)
    return math.ceil(count / step) * step
