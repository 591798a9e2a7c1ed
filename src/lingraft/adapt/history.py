"""What a model that lingraft wrote was taught, and when: `lingraft.json` beside its weights.

The next adaptation reads it, so that it can promise every language that was taught before; the card shows it. The file
may come with a model from anywhere: it is read strictly, and what does not fit is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from lingraft.adapt.promise import AbilityLoss, Gain
from lingraft.errors import ModelError, in_one_line
from lingraft.records import from_json, read_json, to_json, write_json_atomically
from lingraft.study.stages.merge import HISTORY as HISTORY  # noqa: PLC0414 - the one home of its meaning
from lingraft.text.language_tags import ENGLISH

FORMAT: Final = 1
_MOST_BYTES = 2**24


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """One round of training that a model went through.

    Attributes:
        date: Day on which it ended, such as 2026-05-01.
        languages: BCP-47 tags of the languages that were taught.
        data: The data sets with their rows; see `public_name`.
        strategy: How it was trained.
        alpha: Share of the way from the start to the trained model; see the strategy `interpolate`. None: all of it.
        kept_back: Decoder layers that kept the start's weights, such as `0-9`; None: none did.
        max_loss: What could be lost of each promised ability, in [0, 1); None: nothing was promised.
        losses: Of each promised ability, on items on which nothing was chosen.
        gain: Of the languages, likewise; None: nothing was asked in them.
        start: The model that was taught; see `public_name`.
        start_identity: By what it is known: the hash of its weights, or the stage that made it.
        lingraft: Version.
        damaged_identity: Of a rescue by what the damaged model is known; else empty.
    """

    date: str
    languages: tuple[str, ...]
    data: dict[str, int]
    strategy: str
    alpha: float | None
    kept_back: str | None
    max_loss: float | None
    losses: tuple[AbilityLoss, ...]
    gain: Gain | None
    start: str
    start_identity: str
    lingraft: str
    damaged_identity: str = ""


@dataclass(frozen=True, kw_only=True)
class History:
    """What lingraft knows of a folder that it wrote.

    Attributes:
        format: Version of this format.
        learnt: What the model was taught, the oldest first.
        files: All files of the folder, this one included; `--overwrite` replaces a folder of no others.
    """

    format: Literal[1] = FORMAT
    learnt: tuple[Learnt, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def languages(self) -> tuple[str, ...]:
        """BCP-47 tags of all languages besides English that the model was taught, the oldest first."""
        tags = dict.fromkeys(tag for one in self.learnt for tag in one.languages)
        return tuple(tag for tag in tags if tag != ENGLISH)


def read_history(folder: Path) -> History:
    """Return what a folder's `lingraft.json` says; an empty history where there is none.

    Raises:
        ModelError: It is damaged, or another version's.
    """
    path = folder / HISTORY
    if not path.exists():
        return History()
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("larger than 16 MiB")
        found = read_json(path)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        return from_json(History, found)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot be used ({in_one_line(error)}). It says what the model was taught; to go without, remove "
            "it: then nothing is promised about languages that were taught before."
        ) from None


def write_history(folder: Path, history: History) -> None:
    """Write `lingraft.json` into a model's folder; of names of models and data what may be published."""
    learnt = []
    for one in history.learnt:
        data: dict[str, int] = {}
        for name, rows in one.data.items():
            data[public_name(name)] = data.get(public_name(name), 0) + rows
        learnt.append(replace(one, start=public_name(one.start), data=data))
    write_json_atomically(folder / HISTORY, to_json(replace(history, learnt=tuple(learnt))))
    (folder / HISTORY).chmod(0o644)  # others read the model too


def public_name(name: str) -> str:
    """Return what may be published of a user's name of a model or file: of a path outside of the project its end."""
    is_path = name.startswith(("/", "~", "..", "\\\\")) or re.match(r"[A-Za-z]:[\\/]", name) is not None
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1] if is_path else name
