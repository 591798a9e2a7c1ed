"""The folder of an adapted or rescued model: the model, its card, its history and the page, all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from math import prod
from pathlib import Path

from lingraft.adapt import PAGE
from lingraft.adapt.card import (
    CARD,
    CardFacts,
    DataFact,
    Licence,
    LossFact,
    ScoreFact,
    card_text,
    licence_of,
    public_name,
)
from lingraft.adapt.export import write_model
from lingraft.adapt.folder import new_folder
from lingraft.adapt.gguf import check_gguf, convert
from lingraft.adapt.history import History, Learnt, read_history, write_history
from lingraft.adapt.promise import ability_name
from lingraft.adapt.push import check_push, push
from lingraft.adapt.result import Adapted
from lingraft.errors import ConfigError
from lingraft.records import from_json, to_json
from lingraft.stage import Json
from lingraft.text.language_tags import ENGLISH

Draw = Callable[[Adapted, History], str]
"""Returns the page of what was done, and of what the model was taught, as HTML."""


@dataclass(frozen=True)
class Delivery:
    """Where a model goes.

    Attributes:
        folder: Its folder.
        overwrite: Replace a model that lingraft wrote there.
        draw: Draws the page; None: there is none.
        repository: Id on the hub to which it is uploaded; None: it is not.
        private: Make that repository a private one.
        gguf: Type of a GGUF file beside it; None: there is none.
        trust_remote_code: Run Python code that the model brings along.
    """

    folder: Path
    overwrite: bool = False
    draw: Draw | None = None
    repository: str | None = None
    private: bool = False
    gguf: str | None = None
    trust_remote_code: bool = False

    def check(self) -> None:
        """Refuse what could not be done in the end, before anything long.

        Raises:
            ConfigError: There is no converter, no token, or the hub does not let it be uploaded; or nothing is to be.
        """
        if self.private and self.repository is None:
            raise ConfigError("--private: belongs to an upload; add --push OWNER/NAME.")
        if self.gguf is not None:
            check_gguf(self.gguf)
        if self.repository is not None:
            check_push(self.repository)

    def send(self) -> list[str]:
        """Convert and upload the written folder as asked; return a sentence for each.

        Raises:
            ConfigError, LingraftError: It failed; the folder is whole all the same.
        """
        said = []
        if self.gguf is not None:
            said.append(f"GGUF: {convert(self.folder, self.gguf)}")
        if self.repository is not None:
            said.append(f"Uploaded: {push(self.folder, self.repository, private=self.private)}")
        return said


def known_by(identity: Mapping[str, str]) -> str:
    """Return by what a history knows a model: the hash of its weights, or the stage that made it."""
    return next(iter(identity.values()))


def is_made_of(
    folder: Path,
    start: Mapping[str, str],
    damaged: Mapping[str, str] | None = None,
    data: Collection[str] = (),
) -> bool:
    """Return whether the model that lies in a folder was made of these: an adaptation's start, or a rescue's two.

    Args:
        folder: Where the model lies.
        start: What the start is known by.
        damaged: What a damaged model is known by; None: it was adapted.
        data: Sources of the rows that it is to have learnt, at least.
    """
    learnt = read_history(folder).learnt
    if not learnt:
        return False
    last, other = learnt[-1], "" if damaged is None else known_by(damaged)
    is_same = (last.start_identity, last.damaged_identity) == (known_by(start), other)
    return is_same and {public_name(one) for one in data} <= {public_name(one) for one in last.data}


def write_adapted(
    adapted: Adapted, checkpoint: Path, start: Path, delivery: Delivery, *, damaged: Path | None = None
) -> None:
    """Write the folder of a model that was adapted or rescued.

    Args:
        adapted: What was done; its `folder` is where it goes.
        checkpoint: The model's checkpoint.
        start: Folder of the model that was adapted, whose history goes on.
        delivery: Where it goes.
        damaged: Of a rescue the folder of the damaged model: what lingraft taught it since then goes on as well.

    Raises:
        ConfigError: The folder holds something else.
        DiskError: It cannot be written; what was there before is as it was.
    """
    report = adapted.report
    learnt = Learnt(
        date=date.today().isoformat(),
        languages=adapted.learnt,
        data={one.source: one.train for one in adapted.data},
        strategy=strategy_in_words(adapted),
        alpha=report.alpha,
        kept_back=report.kept_back,
        max_loss=adapted.max_loss,
        losses=report.losses,
        gain=report.gain,
        start=adapted.start,
        start_identity=known_by(adapted.start_identity),
        lingraft=version("lingraft"),
        damaged_identity="" if adapted.trained_identity is None else known_by(adapted.trained_identity),
    )
    earlier = read_history(start).learnt
    since = () if damaged is None else read_history(damaged).learnt
    history = (*earlier, *(since[len(earlier) :] if since[: len(earlier)] == earlier else ()), learnt)
    with new_folder(delivery.folder, overwrite=delivery.overwrite) as folder:
        written = write_model(
            checkpoint, folder, dtype=adapted.dtype, trust_remote_code=delivery.trust_remote_code
        )
        write_history(folder, History(learnt=history))
        public, published = _published(adapted), read_history(folder)
        facts = card_facts(
            public,
            published.learnt,
            licence=licence_of(adapted.start),
            own_template=written.own_template,
            brings_code=any(folder.glob("*.py")),
            repository=delivery.repository,
        )
        (folder / CARD).write_text(card_text(facts), encoding="utf-8")
        if delivery.draw is not None:
            (folder / PAGE).write_text(delivery.draw(public, published), encoding="utf-8")


def _published(adapted: Adapted) -> Adapted:
    """Return what was done, with what may be published of the names in it and its sentences; see `public_name`."""
    names = {adapted.start, adapted.trained or "", adapted.folder, *(one.source for one in adapted.data)}
    if adapted.outlook is not None:
        names |= {adapted.outlook.model, *(one.against for one in adapted.outlook.alike)}
    private = [name for name in sorted(names, key=len, reverse=True) if public_name(name) not in ("", name)]

    def published(value: Json) -> Json:
        if isinstance(value, str):
            for name in private:
                value = value.replace(name, public_name(name))
            return value
        if isinstance(value, dict):
            return {key: published(own) for key, own in value.items()}
        return [published(own) for own in value] if isinstance(value, list) else value

    return from_json(Adapted, published(to_json(adapted)))


def strategy_in_words(adapted: Adapted) -> str:
    """Return how a model was trained, and that its weights lie between two."""
    trained = "weights of two models" if adapted.strategy is None else adapted.strategy
    return f"{trained}, interpolated"


def kept_over_history(history: tuple[Learnt, ...]) -> str | None:
    """Return what all rounds together may have lost of English; None: there was one, or one without a limit."""
    limits = [one.max_loss for one in history]
    if len(limits) < 2 or any(limit is None for limit in limits):
        return None
    lost = 1 - prod(1 - limit for limit in limits if limit is not None)
    return (
        f"Each of {len(limits)} rounds promised a share of the score of the model that it began with, so over all of "
        f"them up to {100 * lost:.1f} % of the first one's English may be gone. `lingraft check` compares with it "
        "directly."
    )


def card_facts(
    adapted: Adapted,
    history: tuple[Learnt, ...],
    *,
    licence: Licence | None,
    own_template: bool,
    brings_code: bool,
    repository: str | None = None,
) -> CardFacts:
    """Return what the card says of an adapted model, as the report part sees it."""
    report = adapted.report
    gain = report.gain
    layers = "" if report.kept_back is None else f"; decoder layers {report.kept_back} keep the start's"
    rescued = "the damaged model" if adapted.strategy is None else "the damaged model after its repair"
    other = rescued if adapted.command == "rescue" else "the trained model"
    sets = () if adapted.outlook is None else tuple(adapted.outlook.data.values())
    # Those that the outlook does not have are replayed from.
    languages = [tuple(one.languages.rows) for one in sets] + [(ENGLISH,)] * (len(adapted.data) - len(sets))
    rows = sum(one.train for one in adapted.data)
    trained_on = f"{rows:,} rows" if rows else "its own answers"
    notes = [adapted.sentence]
    if adapted.trained is not None:
        notes.append(f"The damaged model is {adapted.trained}.")
    notes += filter(None, [kept_over_history(history)])
    if not own_template:
        notes.append(
            "The start has no chat template of its own; the one here is what it was trained and scored with."
        )
    return CardFacts(
        name=repository or Path(adapted.folder).absolute().name,
        repository=repository,
        start=adapted.start,
        languages=adapted.learnt,
        data=tuple(
            DataFact(source=one.source, rows=one.train, languages=tags)
            for one, tags in zip(adapted.data, languages, strict=True)
        ),
        strategy=strategy_in_words(adapted),
        amount=f"{trained_on}, {adapted.steps:,} steps" if adapted.steps else None,
        combined=f"start + {report.alpha:g} x ({other} - start){layers}",
        dtype=adapted.dtype,
        scores=tuple(
            ScoreFact(
                name="English" if one.name == ENGLISH else "what was learnt before",
                language=one.name,
                before=one.before,
                after=one.after,
                is_task=False,
            )
            for one in report.losses
        ),
        scored_on=(
            f"On items on which nothing was chosen, by the written weights ({adapted.dtype}) in {adapted.precision}."
        ),
        losses=tuple(
            LossFact(
                name=ability_name(one.name),
                loss=one.loss,
                low=one.low,
                high=one.high,
                limit=f"{100 * one.max_loss:g} %",
                answer=one.answer,
                n=one.n,
            )
            for one in report.losses
        ),
        gain=None if gain is None else f"{gain.sentence[0].upper()}{gain.sentence[1:]} ({gain.n} items).",
        licence=licence,
        history=history,
        notes=tuple(notes),
        is_adapter=False,
        brings_code=brings_code,
        lingraft=version("lingraft"),
    )
