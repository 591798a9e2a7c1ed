"""Reads what can be read of a result that does not fit this version: an older one's, an edited one, one that was cut.

A field that is missing is taken as not measured, one that is not known is left out, and a cell that does not fit is
shown as one that cannot be read. Whatever was done is said.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from lingraft.config.schema import Study
from lingraft.errors import ConfigError
from lingraft.evaluate.results import BitsDifference
from lingraft.intervals.changes import DEFAULT_MARGIN, answer
from lingraft.intervals.macro_mean import Difference, Ratio
from lingraft.measures.base import Measured
from lingraft.records import from_json, to_json
from lingraft.study.grid import cells_of
from lingraft.study.result import (
    FORMAT,
    RESULT,
    CellResult,
    FailedCell,
    PendingCell,
    PhaseResult,
    Precision,
    StudyResult,
)

_UNKNOWN = "unknown"
_NAMED = 5  # places in a sentence
_TRIED = 64  # ends of entries, from the last


@dataclass
class _Lost:
    """What does not fit: fields by place, without the numbers in it, and how often."""

    missing: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)

    def sentences(self) -> Iterator[str]:
        for names, what in (
            (self.missing, "it does not say {}, which is shown as not measured"),
            (self.unknown, "{} is of no meaning to this version and is left out"),
        ):
            if names:
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                yield what.format(", ".join(list(names)[:_NAMED]) + more)
        if self.unreadable:
            yield f"{len(self.unreadable)} of its entries cannot be read; the first: {self.unreadable[0]}"


def read_any_result(folder: Path, study: Study | None) -> tuple[StudyResult, tuple[str, ...]]:
    """Return what can be read of a run folder's result, and what a reader must know of it.

    Args:
        folder: The run folder.
        study: Its study, whose cells are pending where no result says more; None: it cannot be read.

    Raises:
        ConfigError: A later version of lingraft wrote it, or nothing can be read.
    """
    path = folder / RESULT
    remarks, is_whole = [], True
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        text = ""
        remarks.append(f"{RESULT} is missing: which cells are done is not known.")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); change its permissions.") from None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content, is_whole = _beginning(text), False
    if not isinstance(content, dict):
        content, is_whole = {}, False
    if not is_whole and path.exists():
        shown = "what stands before that place is shown" if content else "nothing of it can be read"
        remarks.append(f"{RESULT} was cut or damaged: {shown}.")
    made_by = content.get("format")
    if isinstance(made_by, int) and made_by > FORMAT:
        raise ConfigError(
            f"{path}: a later version of lingraft wrote it (format {made_by}, this one reads up to {FORMAT}); update "
            "lingraft."
        )
    if not content and study is None:
        raise ConfigError(f"{folder}: neither {RESULT} nor the study file can be read; run the study anew.")
    if is_whole and made_by != FORMAT:
        older = "without a format number" if made_by is None else f"of format {made_by!r}"
        remarks.append(f"An earlier version of lingraft wrote {RESULT} ({older}; now {FORMAT}).")
    if is_whole and made_by == FORMAT:
        with suppress(
            ValueError, RecursionError
        ):  # what does not fit is looked for below, field by field, which takes far longer
            return replace(from_json(StudyResult, content), run=str(folder)), tuple(remarks)
    lost = _Lost()
    result = _result(folder, content, study, lost, is_whole=is_whole)
    remarks += [f"Of {RESULT}: {sentence}." for sentence in lost.sentences()]
    if remarks:
        remarks.append(
            "`lingraft run` with the study file writes it anew, and repeats no finished stage that fits."
        )
    return result, tuple(remarks)


def _result(
    folder: Path, content: Mapping[str, Any], study: Study | None, lost: _Lost, *, is_whole: bool
) -> StudyResult:
    known = {one.name for one in fields(StudyResult)}
    for name in content:
        if name not in known:
            lost.unknown[name] += 1
    hints = get_type_hints(StudyResult)
    found: dict[str, Any] = {}
    for one in fields(StudyResult):
        given = content.get(one.name)
        if one.name in ("format", "run", "cells", "precision"):
            continue
        if get_origin(hints[one.name]) is tuple:
            (kind, _) = get_args(hints[one.name])
            entries = [_read(kind, entry, one.name, lost) for entry in given or () if isinstance(given, list)]
            found[one.name] = tuple(entry for entry in entries if entry is not None)
        elif given is None:
            found[one.name] = None if NoneType in get_args(hints[one.name]) else {}
        else:
            found[one.name] = _read(hints[one.name], given, one.name, lost)
            if found[one.name] is None and get_origin(hints[one.name]) is dict:
                found[one.name] = {}
        if one.name not in content and is_whole:
            lost.missing[one.name] += 1
    given = content.get("cells")
    cells = [_cell(one, lost) for one in (given if isinstance(given, list) else ())]
    if study is not None and not is_whole:
        there = {(one.data, one.strategy, one.seed) for one in cells if one is not None}
        cells += [
            PendingCell(data=one.data, strategy=one.strategy, seed=one.seed, options={})
            for one in cells_of(study)
            if (one.data, one.strategy, one.seed) not in there
        ]
    precision = None
    if "precision" in content:
        precision = _read(Precision, content["precision"], "precision", lost)
    return StudyResult(
        run=str(folder),
        cells=tuple(one for one in cells if one is not None),
        precision=precision or Precision(training=(), evaluation=_UNKNOWN, device=_UNKNOWN),
        **found,
    )


def _cell(given: Any, lost: _Lost) -> CellResult | FailedCell | PendingCell | None:
    """Return a cell; one that cannot be read as failed, with the reason; None: nothing says which it is."""
    kinds: dict[object, Any] = {"done": CellResult, "failed": FailedCell, "pending": PendingCell}
    if not isinstance(given, dict):
        lost.unreadable.append("cells: an entry is no object")
        return None
    kind = kinds.get(given.get("status"), CellResult)
    before = len(lost.unreadable)
    found: CellResult | FailedCell | PendingCell | None = _read(kind, given, "cells", lost)
    if found is not None:
        return found
    reason = lost.unreadable[before] if len(lost.unreadable) > before else "it does not fit"
    try:
        return FailedCell(
            data=str(given["data"]),
            strategy=str(given["strategy"]),
            seed=int(given["seed"]),
            options={},
            reason=f"its result cannot be read by this version of lingraft: {reason}",
        )
    except (KeyError, TypeError, ValueError):
        return None


def _read(kind: Any, given: Any, place: str, lost: _Lost) -> Any:
    """Return a value of a type; None: it does not fit, which is noted."""
    try:
        return from_json(kind, _fitted(kind, given, place, lost))
    except (ValueError, TypeError) as error:
        lost.unreadable.append(f"{place}: {error}")
        return None


def _fitted(kind: Any, given: Any, place: str, lost: _Lost) -> Any:
    """Return JSON that has just the fields of a type.

    Raises:
        ValueError: A field is missing that nothing can stand for.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if given is None and NoneType in arguments:
            return None
        rest = [one for one in arguments if one is not NoneType]
        return _fitted(rest[0], given, place, lost) if len(rest) == 1 else given
    if origin is tuple and isinstance(given, list):
        several = arguments[1:] == (...,)
        if not several and len(arguments) != len(given):
            raise ValueError(f"{place} has {len(given)} entries, not {len(arguments)}")
        kinds = arguments[:1] * len(given) if several else arguments
        return [_fitted(one, entry, place, lost) for one, entry in zip(kinds, given, strict=True)]
    if origin is dict and isinstance(given, dict):
        return {name: _fitted(arguments[1], entry, f"{place}.*", lost) for name, entry in given.items()}
    of = origin or kind
    if not is_dataclass(of):
        return given
    if of is Ratio and not isinstance(given, dict):
        reason = "an earlier version did not say" if given is None else None
        return {"value": given, "low": None, "high": None, "n": 0, "reason": reason}
    if not isinstance(given, dict):
        raise ValueError(f"{place} is no object")
    if of is Measured and "found" not in given:  # of versions that knew each measure's own fields
        lost.missing[place] += 1
        return {"found": {}, "reason": "an earlier version recorded it in another form"}
    meant = dict(zip(getattr(of, "__parameters__", ()), arguments, strict=False))
    hints = get_type_hints(of)
    known = {one.name: one for one in fields(of)}
    for name in given:
        if name not in known:
            lost.unknown[f"{place}.{name}"] += 1
    found = {}
    for name, one in known.items():
        hint = hints[name]
        hint = meant.get(hint, hint) if not get_args(hint) else _with(hint, meant)
        if name in given:
            found[name] = _fitted(hint, given[name], f"{place}.{name}", lost)
        else:
            found[name] = _absent(of, one, hint, given, f"{place}.{name}", lost)
    return found


def _with(hint: Any, meant: Mapping[Any, Any]) -> Any:
    """Return a type with what its parameters stand for."""
    parameters = getattr(hint, "__parameters__", ())
    return hint[tuple(meant.get(one, one) for one in parameters)] if parameters else hint


def _absent(of: Any, one: Field[Any], hint: Any, given: Mapping[str, Any], place: str, lost: _Lost) -> Any:
    """Return what stands for a field that is missing.

    Raises:
        ValueError: Nothing can.
    """
    if issubclass(of, Difference | BitsDifference) and one.name in ("margin", "answer"):
        margin = given.get("margin", DEFAULT_MARGIN) if issubclass(of, Difference) else None
        if one.name == "margin":
            return margin
        low, high = given.get("low"), given.get("high")
        if low is None or high is None:
            return "undecided"
        said = answer(low, high, margin or 0.0)
        return "undecided" if margin is None and said == "unchanged" else said
    if one.default is not MISSING:
        return to_json(one.default) if is_dataclass(one.default) else one.default
    if one.default_factory is not MISSING:
        return one.default_factory()
    if of is PhaseResult and one.name == "measures":
        lost.missing[place] += 1
        return {}
    lost.missing[place] += 1
    if NoneType in get_args(hint):
        return None
    if hint is Ratio:
        return _fitted(Ratio, None, place, lost)
    if get_origin(hint) is tuple and get_args(hint)[1:] == (...,):
        return []
    if get_origin(hint) is dict:
        return {}
    raise ValueError(f"{place} is missing")


def _beginning(text: str) -> Any:
    """Return the whole entries that stand at the beginning of JSON which was cut; None: there is none."""
    ends: deque[tuple[int, str]] = deque(
        maxlen=_TRIED
    )  # behind a whole entry, and what closes all that is open there
    open_: list[str] = []
    in_string = escaped = False
    for place, character in enumerate(text):
        if in_string:
            in_string = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            in_string = True
        elif character in "{[":
            open_.append("}" if character == "{" else "]")
            if (
                len(open_) > sys.getrecursionlimit()
            ):  # what no parser reads; each end would take as long as it is deep
                break
        elif character in "}]":
            if not open_ or open_.pop() != character:
                break
            ends.append((place + 1, "".join(reversed(open_))))
        elif character == ",":
            ends.append((place, "".join(reversed(open_))))
    for end, closing in reversed(ends):
        try:
            return json.loads(text[:end] + closing)
        except (ValueError, RecursionError):
            continue
    return None
