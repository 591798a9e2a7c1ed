"""What evaluations find, as frozen dataclasses: scores, differences, forgetting matrices, and how tasks were run.

`scores`, `forgetting`, `noise` and `running` make them, `records.to_json` writes them, the report reads them.
Scores lie in [0, 1]; `low` and `high` are the ends of 95 % intervals, `n` counts items.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from lingraft.evaluate.predictions import Ability
from lingraft.evaluate.task_records import TaskRecord
from lingraft.intervals.changes import Answer
from lingraft.intervals.macro_mean import Difference, Interval, Ratio
from lingraft.intervals.multiple_testing import Correction

Entry_co = TypeVar("Entry_co", covariant=True)
Change_co = TypeVar("Change_co", covariant=True)


@dataclass(frozen=True, slots=True)
class MeanBits:
    """A loss of held-out answers in bits per character; lower is better.

    Attributes:
        value: Bits per character.
        low: Lower end of the 95 % interval (bootstrap over groups); None: fewer than 5 groups of some language of a
            column, of which no bootstrap can say how uncertain it is.
        high: Upper end.
        n: Examples.
    """

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class BitsDifference(MeanBits):
    """A paired difference of such losses; in forgetting matrices it is turned, so that above 0 the loss fell.

    Attributes:
        answer: Rose or fell: the interval excludes 0; else undecided, also where there is none. It is never unchanged,
            because no margin is stated for bits.
    """

    answer: Answer


@dataclass(frozen=True, slots=True)
class BitsPerCharacter:
    """Cross entropy of held-out answers, divided by their characters.

    Attributes:
        value: Bits per character; 0 is perfect prediction, lower is better.
        low: Lower end of the 95 % interval (bootstrap over examples).
        high: Upper end.
        n: Examples.
        characters: Characters (Unicode code points) of all assistant turns.
        left_out: Examples that are too long or that the chat template refuses; they count nowhere else.
    """

    value: float
    low: float
    high: float
    n: int
    characters: int
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """What is wrong with generated answers, one perhaps in several ways.

    Attributes:
        n: Generated answers.
        empty: Nothing but white space.
        looping: Say the same again and again.
        truncated: Used all the tokens that they were allowed.
    """

    n: int
    empty: int
    looping: int
    truncated: int


@dataclass(frozen=True, slots=True)
class TaskScore(Interval):
    """The score of one task in one language.

    Attributes:
        ability: What the task counts towards.
        form: worldbook: share of constraints followed; None, as the next two: another task.
        content: worldbook: exact match of the slot.
        chrf: worldbook: sentence chrF against the reference.
        wrong_language: Share of answers in another language than the items', of those whose language is clear; None:
            there are none.
        undetermined_language: Answers whose language is not clear, mostly because they are short.
        answers: Generated answers, and what is wrong with them; None: nothing is generated.
    """

    ability: Ability
    form: float | None
    content: float | None
    chrf: float | None
    wrong_language: float | None
    undetermined_language: int
    answers: AnswerCounts | None


@dataclass(frozen=True, slots=True)
class LanguageScore:
    """What a model does in one language; English has its task ability here.

    Attributes:
        value: The macro mean; None, as `low` and `high`: only the held-out loss is known.
        low: Lower end.
        high: Upper end.
        n: Items.
        held_out: Loss of the held-out answers; None: there are none.
        wrong_language: As of a task.
        undetermined_language: As of a task.
        answers: As of a task.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    held_out: BitsPerCharacter | None
    wrong_language: float | None
    undetermined_language: int
    answers: AnswerCounts | None


@dataclass(frozen=True, slots=True)
class ScoreRange:
    """A score when its answers were generated several times (`noise`).

    Attributes:
        scores: Of each round.
        low: The lowest.
        high: The highest.
        deviation: Standard deviation over rounds (n - 1).
        changed: Items whose score was not the same in all rounds.
    """

    scores: tuple[float, ...]
    low: float
    high: float
    deviation: float
    changed: int


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """How far scores moved when their answers were generated again.

    Attributes:
        repeats: Rounds.
        task_ability: None, as the next two: the ability has no item.
        language_ability: Of the trained languages.
        further_languages: Of those that are evaluated besides.
        tasks: By task and language, of those that generate.
    """

    repeats: int
    task_ability: ScoreRange | None
    language_ability: ScoreRange | None
    further_languages: ScoreRange | None
    tasks: dict[str, ScoreRange]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one model.

    Attributes:
        task_ability: Of the English tasks; None, as of the next two: no such task was run, in a study never.
        language_ability: Of the trained languages.
        further_languages: Of those that are evaluated and not trained.
        per_language: By BCP-47 tag: every language that has a score or held-out rows.
        wrong_language: As of a task, over all tasks.
        undetermined_language: As of a task, over all tasks.
        answers: As of a task, over all tasks.
        tasks: By task and language, such as `worldbook:lookup/de`.
        left_out: Items that could not be scored, each with its reason; they count nowhere.
        truncated: Answers that used all the tokens that they were allowed, by task and language.
        truncated_prompts: Items whose prompts did not fit into the model and lost their beginning, likewise.
        spelled_prompts: Items that spell control tokens of the model, which are read as text, likewise.
        noise: What repeating the generating tasks changed; None: they ran once.
    """

    task_ability: Interval | None
    language_ability: Interval | None
    further_languages: Interval | None
    per_language: dict[str, LanguageScore]
    wrong_language: float | None
    undetermined_language: int
    answers: AnswerCounts | None
    tasks: dict[str, TaskScore]
    left_out: tuple[str, ...]
    truncated: dict[str, int]
    truncated_prompts: dict[str, int]
    noise: NoiseFloor | None
    spelled_prompts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskDifference(Difference):
    """The paired difference of two models in one task and language.

    Attributes:
        p: How often a difference at least as large would come up if the two models were alike; two-sided.
        p_adjusted: The same, corrected for the number of tasks.
    """

    p: float
    p_adjusted: float


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The paired differences of two models, after - before.

    Attributes:
        task_ability: Of the English tasks.
        language_ability: Of the trained languages.
        further_languages: Of those that are evaluated and not trained; None: there are none.
        per_language: Of language ability, by BCP-47 tag.
        tasks: By task and language.
        correction: How p-values are corrected for the number of tasks.
    """

    task_ability: Difference
    language_ability: Difference
    further_languages: Difference | None
    per_language: dict[str, Difference]
    tasks: dict[str, TaskDifference]
    correction: Correction


@dataclass(frozen=True, slots=True)
class MatrixColumn(Generic[Change_co]):
    """What one phase taught, and how it fared.

    Attributes:
        phase: The phase.
        data: Its data set; empty for a checkpoint, whose data are unknown.
        measured_by: `task ability`, or BCP-47 tags.
        not_measured: Languages of the set that nothing measures.
        n: Items.
        left_out: Held-out examples that not every model could be measured on; 0 of abilities.
        backward_transfer: After the last phase - just after learning; None: it was learned last.
        forward_transfer: Just before learning - base model; None: it was learned first, or there is no base model.
        forgetting: The best of the phases before the last - last; None: it was learned last.
    """

    phase: str
    data: str
    measured_by: tuple[str, ...]
    not_measured: tuple[str, ...]
    n: int
    left_out: int
    backward_transfer: Change_co | None
    forward_transfer: Change_co | None
    forgetting: float | None


@dataclass(frozen=True, slots=True)
class MatrixRow(Generic[Entry_co]):
    """The model after one phase.

    Attributes:
        after: The phase; `base` of the base model; of a mixed cell its strategy.
        scores: One for each column.
    """

    after: str
    scores: tuple[Entry_co, ...]


@dataclass(frozen=True, slots=True)
class ForgettingMatrix(Generic[Entry_co, Change_co]):
    """Scores on what each phase taught, after each phase; docs/concepts.md defines the summary.

    Attributes:
        columns: What the phases taught.
        unmeasured: Phases that nothing measures; they have no column.
        rows: The models, the base model first if there is one.
        average: Mean of the last row.
        backward_transfer: Mean over the columns learned before the last phase; below 0: forgotten.
        forward_transfer: Mean over the columns that another phase came before; above 0: earlier phases helped.
        forgetting: Mean over the columns learned before the last phase; leans upwards, as the best of several does.
        unpaired: By task and language, items that not all of these models have a score of; they count nowhere here.
        not_paired: By task and language, why the base model stands in no row: it was asked in another way.
    """

    columns: tuple[MatrixColumn[Change_co], ...]
    unmeasured: tuple[str, ...]
    rows: tuple[MatrixRow[Entry_co], ...]
    average: Entry_co
    backward_transfer: Change_co | None
    forward_transfer: Change_co | None
    forgetting: float | None
    unpaired: dict[str, int]
    not_paired: dict[str, str]


AbilityMatrix = ForgettingMatrix[Interval, Difference]
LossMatrix = ForgettingMatrix[MeanBits, BitsDifference]
AnyMatrix = ForgettingMatrix[Interval | MeanBits, Difference | BitsDifference]


@dataclass(frozen=True, slots=True)
class Forgetting:
    """The forgetting matrices of a cell.

    Attributes:
        ability: By the abilities of each phase's languages; None: nothing measures what any phase taught.
        bits_per_character: By the loss of each phase's held-out answers; lower is better, and all differences are
            turned, so that below 0 is worse as with abilities. None: nothing is held out.
    """

    ability: AbilityMatrix | None
    bits_per_character: LossMatrix | None


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """What the evaluation of a model records.

    Attributes:
        scores: Of the model.
        tasks: By task and language.
        precision: Of the arithmetic, as it was resolved.
        not_run: By task and language, why its data (or its judge) could not be had; in a study empty.
        no_room: By task and language, why its answers do not fit into the model; in a study empty.
    """

    scores: Scores
    tasks: dict[str, TaskRecord]
    precision: str
    not_run: dict[str, str]
    no_room: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ModelDifferences:
    """The second of two models against the first, on the items that both were asked alike: second - first, paired.

    Attributes:
        compared: The two models, as the user names them.
        predictions: Where their answers are, in the folder of results; None: they were not kept.
        task_ability: Of the English tasks; None, as the next two: no such task was asked of both alike.
        language_ability: Of the other languages.
        further_languages: Of those that are evaluated and not trained: in a study alone.
        per_language: Of each language besides English, by BCP-47 tag.
        retention: Task ability of the second model over that of the first; None: as `task_ability`.
        differences: By task and language.
        unpaired: By task and language, items that only one of the two has a score of.
        not_paired: By task and language, why the two are not compared.
    """

    compared: tuple[str, str]
    predictions: tuple[str, str] | None
    task_ability: Difference | None = None
    language_ability: Difference | None = None
    further_languages: Difference | None = None
    per_language: dict[str, Difference] = field(default_factory=dict)
    retention: Ratio | None = None
    differences: dict[str, TaskDifference]
    unpaired: dict[str, int]
    not_paired: dict[str, str]
