"""What models answered to the same items, packed into the page: read once, each text once, within a number of bytes.

Items are matched by the fingerprint of what was asked and how, so two answers beside each other are answers to the same
prompt. `answers.js` unpacks the data in the browser and shows them; the names of its fields are those of `_Packed`.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from lingraft.errors import ConfigError, EvaluationError, escape_control_characters
from lingraft.evaluate.predictions import Prediction, read_predictions
from lingraft.report.answers import check_whole
from lingraft.report.runs import Report
from lingraft.report.tables import BASE, Model, models_of
from lingraft.report.verdict import verdict_of

BUDGET: Final = 6_000_000
"""Bytes of the page, which may have 15 million in all."""
LARGE_CHANGE: Final = 0.5
"""Of a score in [0, 1]: of a task of right and wrong it is the one from right to wrong."""
_SHOWN = 4  # models beside each other at first
_LONGEST = 4_000  # characters of a text, where not all of the texts fit
_TRIALS = 6  # numbers of items, the next one by the size of the last
_EXAMPLES = 2  # of each outcome
_CLIPPED = 600  # characters of a text in an example
_LIKELIHOOD = re.compile(r"\(\s*'?(-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf|nan))'?\s*,\s*'?(True|False)'?\s*\)")

# What is true of an answer; `answers.js` has the same.
WRONG_LANGUAGE, EMPTY, LOOPING, TRUNCATED, LOST, GAINED = (1 << bit for bit in range(6))


class ItemKey(NamedTuple):
    """What answers are matched by.

    Attributes:
        ability: As of a prediction.
        task: Without its language.
        language: BCP-47 tag.
        asked: Fingerprint of what was asked and how; of predictions of earlier versions the item's name.
        number: Of those before it that ask the same.
    """

    ability: str
    task: str
    language: str
    asked: str
    number: int


@dataclass(frozen=True, slots=True)
class Item:
    """What was asked; control characters in the texts are visible."""

    task: str
    language: str
    name: str
    prompt: str
    reference: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What one model answered to one item.

    Attributes:
        text: The answer; of a likelihood task what its numbers say. Control characters are visible.
        score: In [0, 1].
        flags: What is true of it: a sum of `WRONG_LANGUAGE` and the others.
    """

    text: str
    score: float
    flags: int

    @property
    def outcome(self) -> str:
        """What became of the item since Phase 1, and what is wrong with the answer; empty: nothing."""
        words = {
            LOST: "lost",
            GAINED: "gained",
            WRONG_LANGUAGE: "wrong language",
            EMPTY: "empty",
            LOOPING: "looping",
            TRUNCATED: "truncated",
        }
        return ", ".join(word for flag, word in words.items() if self.flags & flag)


@dataclass(frozen=True)
class Example:
    """An item that stands on the page also where no script runs.

    Attributes:
        item: What was asked.
        replies: Of each model that is shown at first; None: it was not asked this.
    """

    item: Item
    replies: tuple[Reply | None, ...]


@dataclass(frozen=True)
class Answering:
    """The answers of all models to the same items.

    Attributes:
        titles: Of the models.
        shown: Places in `titles` of those that stand beside each other at first.
        examples: Some items that were lost, gained or answered in the wrong language.
        remarks: What is missing, and why.
        packed: All of it as JSON, gzip and base64; empty: there are no answers, or not one item fits.
    """

    titles: tuple[str, ...]
    shown: tuple[int, ...]
    examples: tuple[Example, ...]
    remarks: tuple[str, ...]
    packed: str

    @property
    def shown_titles(self) -> tuple[str, ...]:
        """Names of the models that are shown at first."""
        return tuple(self.titles[place] for place in self.shown)


def answering(report: Report, budget: int = BUDGET) -> Answering:
    """Return what the models of a report answered.

    Args:
        report: Of one or several runs; only their files of predictions are read.
        budget: Bytes of `packed` at most. Where not all fits, long texts are cut, then items are chosen: of each
            language, task and outcome as many, in an order that depends on the items alone.
    """
    models = models_of(report.result)
    items: dict[ItemKey, Item] = {}
    replies: list[dict[ItemKey, Reply]] = []
    absent: dict[str, list[str]] = {}
    titles = tuple(
        escape_control_characters(model.title(with_seed=report.result.has_seeds), keep="") for model in models
    )
    for title, model in zip(titles, models, strict=True):
        own: dict[ItemKey, Reply] = {}
        try:
            for key, one in _keyed(_predictions(report, model.predictions)):
                if key not in items:
                    items[key] = _item(one, report.task_names.get(one.task, one.task))
                own[key] = _reply(one)
        except _AbsentError as error:
            absent.setdefault(str(error), []).append(title)
        replies.append(own)
    starts = _starts(models)
    _mark_changes(replies, starts)
    needed = min(2, sum(map(bool, replies)))
    shared = [key for key in items if sum(key in own for own in replies) >= needed]
    shown = tuple(place for place in _first_shown(report, models, starts) if replies[place])[:_SHOWN]
    read = _Read(titles, starts, shown, items, replies)
    packed, packing = _within(budget, read, _in_strata(shared, replies)) if shared else ("", [])
    remarks = [f"Not here: the answers of {_listed(own)} ({reason})." for reason, own in absent.items()]
    if asked_once := len(items) - len(shared):
        what = "item was" if asked_once == 1 else "items were"
        remarks.append(
            f"Left out: {asked_once:,} {what} asked of one model only, or of each model in another way."
        )
    remarks += packing
    examples = tuple(
        Example(_clipped_item(items[key]), tuple(_clipped_reply(replies[place].get(key)) for place in shown))
        for key in _telling(read, shared)
    )
    return Answering(titles, shown, examples, tuple(remarks), packed)


@dataclass(frozen=True)
class _Read:
    """All that was read.

    Attributes:
        titles: Of the models.
        starts: Of each cell the place of its Phase 1; None: a model is no cell's, or its Phase 1 is not there.
        shown: As of `Answering`.
        items: All that any model was asked, in order.
        replies: Of each model.
    """

    titles: tuple[str, ...]
    starts: Sequence[int | None]
    shown: tuple[int, ...]
    items: Mapping[ItemKey, Item]
    replies: Sequence[Mapping[ItemKey, Reply]]


class _AbsentError(Exception):
    """Why a model's answers are not there."""


def _predictions(report: Report, name: str) -> Sequence[Prediction]:
    try:
        path = report.path_of(name) if name else None
    except OSError:  # a name that no disk has
        path = None
    if path is None:
        raise _AbsentError("their files are gone: deleted, or discarded as `keep` says")
    try:
        check_whole(path)
        return read_predictions(path)
    except (ConfigError, EvaluationError, OSError):
        raise _AbsentError(
            "their files are damaged, or not those that were scored; run the study again"
        ) from None


def _keyed(predictions: Iterable[Prediction]) -> Iterable[tuple[ItemKey, Prediction]]:
    seen: Counter[tuple[str, str, str, str]] = Counter()
    for one in predictions:
        asked = (one.ability, one.task, one.language, one.asked or one.item)
        yield ItemKey(*asked, seen[asked]), one
        seen[asked] += 1


def _item(one: Prediction, task: str) -> Item:
    texts = (escape_control_characters(text, keep="") for text in (task, one.language, one.item))
    return Item(*texts, *map(escape_control_characters, (one.prompt, one.reference)))


def _reply(one: Prediction) -> Reply:
    flags = (
        (WRONG_LANGUAGE, one.wrong_language),
        (EMPTY, one.empty),
        (LOOPING, one.looping),
        (TRUNCATED, one.truncated),
    )
    text = likelihoods(one.response) if one.empty is None else one.response
    return Reply(escape_control_characters(text), one.score, sum(flag for flag, is_so in flags if is_so))


def likelihoods(response: str) -> str:
    """Return what the numbers say that stand for the answer of a likelihood task; a text of another form as it is."""
    found = _LIKELIHOOD.findall(response)
    if not found or not re.fullmatch(r"[\[\](),\s]*", _LIKELIHOOD.sub("", response)):
        return response
    values = [float(value) for value, _ in found]
    written = ", ".join(f"{value:.2f}" for value in values)
    if len(values) == 1:
        is_greedy = "is" if found[0][1] == "True" else "is not"
        return f"log-likelihood {written}; it {is_greedy} what the model would say"
    return f"choice {values.index(max(values))} of 0 to {len(values) - 1} is the likeliest; log-likelihoods: {written}"


def _starts(models: Sequence[Model]) -> list[int | None]:
    """Return of each cell the place of its Phase 1; None: a model is no cell's, or its Phase 1 is not there."""
    places = {model.predictions: place for place, model in enumerate(models) if model.cell is None}
    return [None if one.cell is None else places.get(one.cell.phase_one_predictions) for one in models]


def _mark_changes(replies: Sequence[dict[ItemKey, Reply]], starts: Sequence[int | None]) -> None:
    """Add to the answers of cells what was lost and gained since Phase 1."""
    for own, start in zip(replies, starts, strict=True):
        if start is None:
            continue
        for key, one in own.items():
            before = replies[start].get(key)
            change = 0.0 if before is None else one.score - before.score
            if abs(change) >= LARGE_CHANGE:
                own[key] = Reply(one.text, one.score, one.flags | (LOST if change < 0 else GAINED))


def _first_shown(report: Report, models: Sequence[Model], starts: Sequence[int | None]) -> list[int]:
    """Return places of models, those that matter most first: base, Phase 1, the verdict's best cell, plain, others."""
    found = verdict_of(report).best
    best = None if found is None else found.cells[0]
    cells = [place for place, model in enumerate(models) if model.cell is not None]
    cells.sort(
        key=lambda place: (
            models[place].cell is not best,
            models[place].strategy != "plain",
            best is not None and models[place].data != best.data,
            best is not None and models[place].seed != best.seed,
        )
    )
    start = starts[cells[0]] if cells else None
    others = [place for place, model in enumerate(models) if model.cell is None]
    firsts = [place for place in others if place == start or (place == 0 and models[place].data == BASE)]
    return [*firsts, *cells, *(place for place in others if place not in firsts)]


def _outcome(key: ItemKey, replies: Sequence[Mapping[ItemKey, Reply]]) -> int:
    """Return what most models did with an item: 0 lost it, 1 gained it, 2 answered in the wrong language, 3 none."""
    flags = [own[key].flags for own in replies if key in own]
    lost, gained, wrong = (sum(bool(one & flag) for one in flags) for flag in (LOST, GAINED, WRONG_LANGUAGE))
    if lost or gained:
        return 0 if lost >= gained else 1
    return 2 if wrong else 3


def _in_strata(keys: Sequence[ItemKey], replies: Sequence[Mapping[ItemKey, Reply]]) -> list[ItemKey]:
    """Return the items in an order whose beginnings hold of each language, then of each task and outcome, as many."""
    languages: dict[str, dict[tuple[int, str], list[tuple[str, ItemKey]]]] = {}
    for key in keys:
        drawn = hashlib.sha256("\0".join(map(str, key)).encode(errors="replace")).hexdigest()
        strata = languages.setdefault(key.language, {})
        strata.setdefault((_outcome(key, replies), key.task), []).append((drawn, key))
    ranked = [
        (rank, place, language, key)
        for language, strata in languages.items()
        for place, stratum in enumerate(sorted(strata))
        for rank, (_, key) in enumerate(sorted(strata[stratum]))
    ]
    return [key for *_, key in sorted(ranked)]


def _within(budget: int, read: _Read, keys: Sequence[ItemKey]) -> tuple[str, list[str]]:
    """Return the data that fit, and what must be said of those that do not."""
    places = {key: place for place, key in enumerate(read.items)}

    def packed(count: int, longest: int | None) -> str:
        chosen = sorted(keys[:count], key=places.__getitem__)  # as they were asked
        return _packed(read, chosen, longest)

    whole = packed(len(keys), None)
    if len(whole) <= budget:
        return whole, []
    long = {
        text
        for key in keys
        for text in (
            *(read.items[key].prompt, read.items[key].reference),
            *(own[key].text for own in read.replies if key in own),
        )
        if len(text) > _LONGEST
    }
    remarks = [f"{len(long)} texts are cut after {_LONGEST:,} characters."] if long else []
    count, found = len(keys), packed(len(keys), _LONGEST) if long else whole
    best, fits = "", 0
    for _ in range(_TRIALS):
        if len(found) <= budget and count > fits:
            best, fits = found, count
        if count == fits and (count == len(keys) or len(found) > 0.9 * budget):
            break
        count = min(len(keys), max(1, int(0.97 * count * budget / len(found))))
        found = packed(count, _LONGEST)
    if fits < len(keys):
        remarks.append(
            f"Here are {fits:,} of {len(keys):,} items, chosen by chance, of each language, task and outcome as many "
            "as there is room for; `lingraft show predictions` prints all."
        )
    return best, remarks


def _packed(read: _Read, keys: Sequence[ItemKey], longest: int | None) -> str:
    """Return the items and their answers as base64 of gzip of JSON; each text stands there once."""
    texts: dict[str, int] = {}

    def place_of(text: str) -> int:
        return texts.setdefault(
            text if longest is None or len(text) <= longest else f"{text[:longest]} …", len(texts)
        )

    rows, answers, scores, flags = [], [], [], []
    for key in keys:
        item = read.items[key]
        rows.append([*map(place_of, (item.task, item.language, item.name, item.prompt, item.reference))])
        own = [one.get(key) for one in read.replies]
        answers.append([-1 if one is None else place_of(one.text) for one in own])
        scores.append([-1 if one is None else round(one.score, 3) for one in own])
        flags.append([0 if one is None else one.flags for one in own])
    content = {
        "models": read.titles,
        "starts": read.starts,
        "shown": read.shown,
        "texts": list(texts),
        "items": rows,
        "answers": answers,
        "scores": scores,
        "flags": flags,
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _telling(read: _Read, keys: Sequence[ItemKey]) -> list[ItemKey]:
    """Return some items that cells shown lost, gained or answered in the wrong language, short ones first."""
    cells = [place for place in read.shown if read.starts[place] is not None]
    found: list[ItemKey] = []
    for flag in (LOST, GAINED, WRONG_LANGUAGE):
        fit = {}
        for key in keys:
            own = [read.replies[place][key] for place in cells if key in read.replies[place]]
            if any(one.flags & flag for one in own):
                fit[key] = max(len(read.items[key].prompt), *(len(one.text) for one in own))
        for _ in range(_EXAMPLES):
            seen = Counter((key.language, key.task) for key in found)
            rest = [key for key in fit if key not in found]
            if rest:  # of another language and task than the ones before, where there is any
                found.append(min(rest, key=lambda key: (seen[key.language, key.task], fit[key], key)))
    return found


def _clipped_item(item: Item) -> Item:
    """Return an item for an example: of a long prompt the end, where the question is."""
    prompt = item.prompt if len(item.prompt) <= _CLIPPED else f"… {item.prompt[-_CLIPPED:]}"
    return replace(item, prompt=prompt, reference=_clipped(item.reference))


def _clipped_reply(reply: Reply | None) -> Reply | None:
    return None if reply is None else replace(reply, text=_clipped(reply.text))


def _clipped(text: str) -> str:
    return text if len(text) <= _CLIPPED else f"{text[:_CLIPPED]} …"


def _listed(titles: Sequence[str], most: int = 3) -> str:
    """Return names, of many the first and how many more there are."""
    more = len(titles) - most
    return ", ".join(titles[:most]) + (f" and {more} more models" if more > 0 else "")
