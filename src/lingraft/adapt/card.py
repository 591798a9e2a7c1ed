"""The model card of an exported model: README.md, as the Hugging Face hub reads it, made of typed facts.

Names of models, data and tasks are a user's or a download's. They stand in code spans, where neither Markdown nor HTML
means anything, and in YAML as its writer quotes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingraft.adapt.history import Learnt
from lingraft.adapt.history import public_name as public_name  # noqa: PLC0414 - what cards say of a user's names
from lingraft.config.paths import user_path
from lingraft.errors import escape_control_characters
from lingraft.intervals.changes import LimitAnswer
from lingraft.intervals.macro_mean import Interval
from lingraft.models.checkpoints import WeightType
from lingraft.models.embedded import EMBEDDED
from lingraft.models.model_names import EMBEDDED_PREFIX
from lingraft.records import read_json
from lingraft.text.language_tags import ENGLISH, english_name, primary_subtag

CARD = "README.md"
_LONGEST = 300  # characters of a name
_LONGEST_NOTE = 3000  # sentences of our own
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_ANSWERS: dict[LimitAnswer, str] = {
    "held": "kept",
    "broken": "not kept",
    "undecided": "these items cannot tell",
    "seeds_disagree": "seeds disagree",
}


@dataclass(frozen=True, kw_only=True)
class Licence:
    """The licence of the start, as its own card or configuration states it.

    Attributes:
        identifier: The hub's, such as apache-2.0 or other.
        name: Where the identifier is `other`; None: not stated.
        link: Likewise.
        stated_in: Where it was read.
    """

    identifier: str
    name: str | None
    link: str | None
    stated_in: str


@dataclass(frozen=True, kw_only=True)
class DataFact:
    """A data set that the model was trained on.

    Attributes:
        source: As the user named it; see `public_name`.
        rows: Rows trained on.
        languages: BCP-47 tags; empty: not known.
    """

    source: str
    rows: int
    languages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ScoreFact:
    """A score, before and after.

    Attributes:
        name: What it is of: an ability, or a task.
        language: BCP-47 tag; None: several.
        before: The start's; None: it was not asked.
        after: This model's.
        is_task: Whether it is of a single task. The metadata list those, and abilities where there are none.
    """

    name: str
    language: str | None
    before: Interval | None
    after: Interval
    is_task: bool


@dataclass(frozen=True, kw_only=True)
class LossFact:
    """What of an ability was lost, relative to the start.

    Attributes:
        name: Of the ability.
        loss: 1 - after / before; below 0 it rose. None: not known.
        low: Lower end of the 95 % interval.
        high: Upper end.
        limit: What could be lost, in words with its number; None: nothing was stated.
        answer: Whether that was kept; None: nothing was stated.
        n: Items.
    """

    name: str
    loss: float | None
    low: float | None
    high: float | None
    limit: str | None
    answer: LimitAnswer | None
    n: int


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All that a card says.

    Attributes:
        name: Of the model: its folder's, or its repository's on the hub.
        repository: Its id on the hub; None: it is in a folder.
        start: The model that it was made of; see `public_name`.
        languages: BCP-47 tags of the languages that were taught.
        data: What it was trained on.
        strategy: How.
        amount: How much, in words; None: not known.
        combined: How the trained weights were combined with the start's; None: they are as trained.
        dtype: What the weights are stored in.
        scores: With their intervals.
        scored_on: Which items the scores are of, and in which type, in a sentence.
        losses: Of the abilities that it had before.
        gain: Of the languages, in words with its interval; None: nothing was asked in them.
        licence: The start's; None: it states none.
        history: What it was taught, the oldest first.
        notes: Sentences about what a user of the model should know.
        is_adapter: Whether the folder holds a LoRA adapter alone.
        brings_code: Whether it runs code of its own.
        lingraft: Version.
    """

    name: str
    repository: str | None
    start: str
    languages: tuple[str, ...]
    data: tuple[DataFact, ...]
    strategy: str
    amount: str | None
    combined: str | None
    dtype: WeightType | None
    scores: tuple[ScoreFact, ...]
    scored_on: str
    losses: tuple[LossFact, ...]
    gain: str | None
    licence: Licence | None
    history: tuple[Learnt, ...]
    notes: tuple[str, ...]
    is_adapter: bool
    brings_code: bool
    lingraft: str


def card_text(facts: CardFacts) -> str:
    """Return the text of README.md: metadata as the hub reads them, and what people read."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    taught = (tag for one in facts.history for tag in one.languages)
    tags = [tag for tag in dict.fromkeys((*facts.languages, *taught, ENGLISH)) if _TAG.fullmatch(tag)]
    codes = list(dict.fromkeys(primary_subtag(tag) for tag in tags))
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=_line(score.name),
            dataset_name=_line(score.name),
            dataset_config=score.language,
            metric_type="score",
            metric_name="mean score",
            metric_value=round(score.after.value, 4),
            metric_args={
                "low": round(score.after.low, 4),
                "high": round(score.after.high, 4),
                "confidence": 0.95,
                "n": score.after.n,
            },
        )
        for score in [one for one in facts.scores if one.is_task] or facts.scores
    ]
    start = hub_id(facts.start)
    datasets = [found for one in facts.data if (found := hub_id(one.source)) is not None]
    data = ModelCardData(
        language=codes,
        language_bcp47=tags if codes != tags else None,
        license=None if facts.licence is None else facts.licence.identifier,
        license_name=None if facts.licence is None else facts.licence.name,
        license_link=None if facts.licence is None else facts.licence.link,
        library_name="peft" if facts.is_adapter else "transformers",
        pipeline_tag="text-generation",
        base_model=start,
        base_model_relation=None if start is None else "adapter" if facts.is_adapter else "finetune",
        datasets=datasets or None,
        tags=["lingraft", *(["lora"] if facts.is_adapter else [])],
        model_name=_line(facts.name),
        eval_results=results or None,
    )
    metadata = data.to_yaml(line_break="\n")
    if facts.licence is None:
        metadata += (
            "\n# license: add the licence here; the card of the model that this one was made of states none"
        )
    text = "\n".join(("---", metadata, "---", "", *_body(facts), ""))
    ModelCard(text)  # reads the metadata back, without the hub
    return text


def hub_id(name: str) -> str | None:
    """Return the id on the hub of a model or data set that is there by its name; None: it is elsewhere."""
    identifier = name.partition("@")[0]
    if not _HUB_ID.fullmatch(identifier) or user_path(name).exists():
        return None
    return (
        None if re.search(r"\.(jsonl?|csv|tsv|parquet|txt|ya?ml|gz|zst|xz|bz2)$", identifier) else identifier
    )


def licence_of(start: str) -> Licence | None:
    """Return the licence that a model's card or configuration states; None: none does, or they cannot be had.

    Of a model on the hub its card is fetched where it can be, and nothing else.
    """
    if start.startswith(EMBEDDED_PREFIX):
        known = EMBEDDED[start.removeprefix(EMBEDDED_PREFIX)]
        return Licence(identifier=known.licence, name=None, link=None, stated_in=f"the wheel {known.module}")
    place, identifier = user_path(start), hub_id(start)
    found: list[tuple[str, dict[str, Any], str | None]] = []
    if place.is_dir():
        found = [
            (CARD, _metadata_of(place / CARD), None),
            ("config.json", _json_of(place / "config.json"), None),
        ]
    elif identifier is not None:
        from huggingface_hub import hf_hub_download

        with suppress(
            Exception
        ):  # hub, http and cache errors share no base class; without a card nothing is stated
            path = hf_hub_download(identifier, CARD, revision=start.partition("@")[2] or None)
            found = [(f"the card of {identifier}", _metadata_of(Path(path)), identifier)]
    for stated_in, stated, repository in found:
        licence, name, link = (stated.get(key) for key in ("license", "license_name", "license_link"))
        if isinstance(licence, str) and _LICENCE.fullmatch(licence.lower()):
            link = link if isinstance(link, str) else None
            if link is not None and not link.startswith("https://"):  # a file beside the card
                link = f"https://huggingface.co/{repository}/blob/main/{link}" if repository else None
            return Licence(
                identifier=licence.lower(),
                name=_line(name) if isinstance(name, str) else None,
                link=_line(link) if link else None,
                stated_in=stated_in,
            )
    return None


def _metadata_of(card: Path) -> dict[str, Any]:
    from huggingface_hub import ModelCard

    with suppress(Exception):  # a card from anywhere: what is no card states nothing
        data: Any = ModelCard(card.read_text(encoding="utf-8")).data
        found: dict[str, Any] = data.to_dict()
        return found
    return {}


def _json_of(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = read_json(path)
        return found if isinstance(found, dict) else {}
    return {}


def _body(facts: CardFacts) -> Iterator[str]:
    languages = ", ".join(f"{english_name(tag)} ({tag})" for tag in facts.languages)
    what = "A LoRA adapter for" if facts.is_adapter else "Made of"
    yield f"# {_escaped(facts.name)}"
    yield ""
    yield f"{what} {code(facts.start)}{f', which was taught {languages}' if languages else ''}, with lingraft."
    yield ""
    yield from _use(facts)
    if facts.scores:
        yield from ("## Scores", "")
        yield f"{facts.scored_on} Scores lie between 0 and 1, in brackets are 95 % intervals."
        yield ""
        scores = [
            (
                code(one.name) if one.is_task else one.name,
                "" if one.language is None else one.language,
                "-" if one.before is None else _interval(one.before),
                _interval(one.after),
                str(one.after.n),
            )
            for one in facts.scores
        ]
        yield from _table(("score of", "language", "start", "this model", "items"), scores)
        if facts.gain is not None:
            yield from ("", facts.gain)
        yield ""
    if facts.losses:
        yield from ("## What was lost", "")
        yield "Share of the start's score that is gone, on the same items; below 0 it rose."
        yield ""
        losses = [
            (
                one.name,
                "not known" if one.loss is None else _share(one.loss),
                "-" if one.low is None or one.high is None else f"{_share(one.low)} to {_share(one.high)}",
                one.limit or "-",
                "-" if one.answer is None else _ANSWERS[one.answer],
                str(one.n),
            )
            for one in facts.losses
        ]
        yield from _table(("ability", "loss", "95 % interval", "limit", "limit is", "items"), losses)
        yield ""
    yield from ("## Training", "")
    yield f"- strategy: {code(facts.strategy)}"
    if facts.amount is not None:
        yield f"- trained on: {facts.amount}"
    if facts.combined is not None:
        yield f"- weights: {facts.combined}"
    if facts.dtype is not None:
        yield f"- stored in {facts.dtype}"
    yield ""
    if facts.data:
        data = [(code(one.source), f"{one.rows:,}", ", ".join(one.languages) or "-") for one in facts.data]
        yield from _table(("data", "rows", "languages"), data)
        yield ""
    if facts.history:
        yield from ("## History", "")
        rounds = [
            (
                code(one.date),
                code(", ".join(one.languages)),
                code(one.start),
                ", ".join(f"{code(name)} ({count:,} rows)" for name, count in one.data.items()),
                code(one.strategy),
                "-" if one.max_loss is None else _share(one.max_loss),
                code(one.lingraft),
            )
            for one in facts.history
        ]
        titles = ("when", "languages", "made of", "data", "strategy", "most that could be lost", "lingraft")
        yield from _table(titles, rounds)
        yield ""
    yield from ("## Licence", "")
    if facts.licence is None:
        yield (
            "The model that this one was made of states no licence in its card. Whoever publishes this model adds the "
            "licence above, and looks at those of the data as well."
        )
    else:
        yield f"{code(facts.licence.identifier)}, as {code(facts.start)} states it ({facts.licence.stated_in})."
        yield "The data have licences of their own."
    yield ""
    if facts.notes:
        yield from ("## Notes", "")
        yield from (f"- {_escaped(note, _LONGEST_NOTE)}" for note in facts.notes)
        yield ""
    yield f"Written by lingraft {facts.lingraft}."


def _use(facts: CardFacts) -> Iterator[str]:
    model = facts.repository or "."
    extra = ", trust_remote_code=True" if facts.brings_code else ""
    where = "" if facts.repository else "  # this folder"
    needs = "transformers, torch and peft" if facts.is_adapter else "transformers and torch"
    yield from (
        "## How to use it",
        "",
        f"With {needs}:",
        "",
        "```python",
        "from transformers import pipeline",
        "",
    )
    yield f'chat = pipeline("text-generation", model="{model}"{extra}, dtype="auto"){where}'
    yield 'messages = [{"role": "user", "content": "Tell me about yourself."}]'
    yield 'answer = chat(messages, max_new_tokens=64)[0]["generated_text"][-1]'
    yield 'print(answer["content"])'
    yield from ("```", "")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{' --- |' * len(titles)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def code(text: str) -> str:
    """Return a text that is not ours as a code span, also for a table: what Markdown or HTML it holds is shown."""
    line = _line(text) or "-"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line.replace('|', chr(92) + '|')}{space}{fence}"


def _line(text: str, longest: int = _LONGEST) -> str:
    """Return a text in one line, of a length that can be read, with what steers a terminal made visible."""
    line = " ".join(escape_control_characters(text).split())
    return line if len(line) <= longest else f"{line[:longest]}..."


def _escaped(text: str, longest: int = _LONGEST) -> str:
    """Return a text in which no sign means anything to Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!$])", r"\\\1", _line(text, longest))


def _interval(one: Interval) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
