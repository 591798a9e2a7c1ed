"""How tasks were asked and scored: what a record keeps of each, and what decides whether two scores are comparable."""

from __future__ import annotations

from dataclasses import dataclass

from lingraft.judge.win_rate import JudgeRecord


@dataclass(frozen=True)
class DataRevision:
    """Which data a task was run on.

    Attributes:
        files: Hash by name of its local files; None: it has none.
        hub: The hub's data set.
        config: Of the data set.
        commit: The hub's; None also where the datasets library's cache does not say it.
        fingerprint: The datasets library's own, which changes with the rows.
        worldbook: Version of worldbook, for its tasks.
        split: worldbook's.
    """

    files: dict[str, str] | None = None
    hub: str | None = None
    config: str | None = None
    commit: str | None = None
    fingerprint: str | None = None
    worldbook: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class EvaluationSettings:
    """What holds for every task of an evaluation, and decides answers beside the prompt.

    Attributes:
        engine: What generates, with its version.
        harness: Version of lm-evaluation-harness, which builds prompts and scores.
        precision: Of the arithmetic, as it was resolved.
        chat_template: Fingerprint of the template that prompts go through, and of the date that it is given; `none`:
            they go through none.
    """

    engine: str
    harness: str
    precision: str
    chat_template: str


@dataclass(frozen=True)
class TaskSettings:
    """How one harness task is asked and scored.

    Attributes:
        version: The task's own.
        metric: Its score.
        filter: What answers go through before they are scored.
        kind: The harness's output type.
        template: Fingerprint of what makes prompts and expected answers of documents; code stands for itself.
        generation: Fingerprint of the generation settings, the longest answer among them.
        few_shot: Fingerprint of number and texts of the examples that stand before an item; empty: there are none.
        code: Fingerprint of the task's own scoring code.
        judge: Fingerprint of the judge that scores the answers; empty: none does.
    """

    version: str
    metric: str
    filter: str
    kind: str
    template: str
    generation: str
    few_shot: str
    code: str
    judge: str


@dataclass(frozen=True)
class ScoreSettings:
    """How a task was asked and scored: of two models, what differs here makes their scores incomparable.

    Attributes:
        evaluation: What holds for the whole evaluation.
        parts: By the harness's name of the task; a group has several.
    """

    evaluation: EvaluationSettings
    parts: dict[str, TaskSettings]


@dataclass(frozen=True)
class TaskRecord:
    """What a record keeps of one task in one language; the tasks of a group are pooled.

    Attributes:
        version: The task's own.
        metric: Its score.
        filter: What answers go through before they are scored.
        items: Number of them.
        prompts: Hash of all prompts.
        template: Hash of what makes them of documents.
        data: Revision of its data; several where the tasks of a group differ.
        sample: Seed by which items were drawn; None: they were not.
        settings: How it was asked and scored.
        judged: What a judge found; None: none scored it.
    """

    version: str
    metric: str
    filter: str
    items: int
    prompts: str
    template: str
    data: tuple[DataRevision, ...]
    sample: int | None
    settings: ScoreSettings
    judged: JudgeRecord | None = None
