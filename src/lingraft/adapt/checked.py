"""What a check found, as a frozen dataclass that prints as a table; `adapt.check` makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lingraft.adapt.promise import EXIT_CODES, AbilityLoss, undecided_sentence
from lingraft.errors import escape_control_characters
from lingraft.intervals.changes import LimitAnswer
from lingraft.notebook import InNotebook

FORMAT = 1
"""Of what `lingraft check --json` prints."""

COLUMNS = {
    "n": "items that both models were asked alike",
    "before": "mean score of the model that is checked against",
    "after": "mean score of the model that is checked, on the same items",
    "loss": "share of the score before that is gone, with its 95 % interval",
    "at most": "what may be lost",
    "answer": "held: the whole interval lies at or below it; broken: above it; undecided: neither",
    "could certify": "the smallest limit that as many items certify in 4 of 5 cases if nothing is lost on average",
    "items needed": "how many items certify this limit so",
}
"""Titles of the table behind the name of the ability or task, and what they mean."""

ABILITY, TASK = "ability", "task"


@dataclass(frozen=True, kw_only=True, repr=False)
class Checked(InNotebook):
    """What a model lost against an earlier one.

    Attributes:
        format: Version of this format.
        answer: Held: all that decides is held. Broken: something is. Undecided: neither, or something could not be
            measured.
        model: The model that is checked, as it was named.
        against: The one from before.
        are_equal: Whether both are one model, file by file: nothing can be lost then.
        abilities: English (task ability) first, then each language that was asked, on the items that both models were
            asked alike. All of them decide.
        tasks: The same of each task in a language.
        deciding_tasks: Those of them that decide as well.
        unmeasured: What should decide and could not be measured, with the reason.
        not_run: By task and language, why it was not asked of both.
        unpaired: By task and language, items that only one of the two has a score of; they count nowhere.
        not_paired: By task and language, why the two are not compared in it: they were asked in different ways.
        notes: What else was left out or truncated, one sentence each.
        part: Which items were asked: all, or one half of each task's.
        precision: Of the arithmetic.
        folder: Where the evaluations are kept; None, as `predictions`: nowhere.
        predictions: In it, the answers of the model from before and of the one that is checked.
    """

    format: int
    answer: LimitAnswer
    model: str
    against: str
    are_equal: bool
    abilities: tuple[AbilityLoss, ...]
    tasks: tuple[AbilityLoss, ...]
    deciding_tasks: tuple[str, ...]
    unmeasured: dict[str, str]
    not_run: dict[str, str]
    unpaired: dict[str, int]
    not_paired: dict[str, str]
    notes: tuple[str, ...]
    part: str
    precision: str
    folder: str | None
    predictions: tuple[str, str] | None

    @property
    def exit_code(self) -> int:
        """0 held, 1 broken, 3 undecided: what `lingraft check` exits with."""
        return EXIT_CODES[self.answer]

    @property
    def deciding(self) -> tuple[AbilityLoss, ...]:
        """What decides: the abilities, and the tasks that were asked to."""
        return (*self.abilities, *(one for one in self.tasks if one.name in self.deciding_tasks))

    @property
    def title(self) -> str:
        """What was found in a few words."""
        return f"{self.model} against {self.against}: {self.answer}"

    def sentences(self) -> list[str]:
        """Return what is to be said below the table: of all that decides, then what counts nowhere."""
        said = [sentence_of(one) for one in self.deciding]
        said += [f"{name}: undecided: {reason}" for name, reason in self.unmeasured.items()]
        if self.are_equal:
            said.insert(
                0,
                "Both are the same model (equal weights, tokenizer and settings): no score can differ.",
            )
        return said

    def left_out(self) -> list[str]:
        """Return what counts nowhere and is no reason for `unmeasured`, and what else is to be known."""
        said = " ".join(self.unmeasured.values())
        return [
            *(problem for problem in self.not_paired.values() if problem not in said),
            *(
                f"{name}: {count} items were asked alike of one of the two models only; they are left out."
                for name, count in self.unpaired.items()
            ),
            *(
                f"{name}: not run: {reason}"
                for name, reason in self.not_run.items()
                if f"{name} was not run" not in said
            ),
            *self.notes,
        ]

    def __str__(self) -> str:
        lines = [self.title, *_text_table(ABILITY, self.abilities)]
        if self.tasks:
            lines += ["", self.task_title, *_text_table(TASK, self.tasks)]
        return "\n".join(
            escape_control_characters(line, keep="")
            for line in (*lines, "", *self.sentences(), *self.left_out())
        )

    __repr__ = __str__

    @property
    def task_title(self) -> str:
        """What stands above the table of tasks: which of them decide."""
        if not self.deciding_tasks:
            return "By task, which decides nothing"
        if len(self.deciding_tasks) == len(self.tasks):
            return "By task, each of which decides as well"
        return f"By task; besides the abilities, these decide: {', '.join(self.deciding_tasks)}"


def cells_of(one: AbilityLoss) -> tuple[str, ...]:
    """Return the row of a table: its name, then as `COLUMNS`; a dash stands for what is not known."""
    loss = "-"
    if one.loss is not None and one.low is not None and one.high is not None:
        loss = f"{_percent(one.loss)} [{100 * one.low:.1f}, {100 * one.high:.1f}]"
    return (
        one.name,
        f"{one.n:,}",
        f"{one.before.value:.3f}",
        f"{one.after.value:.3f}",
        loss,
        limit_text(one.max_loss),
        one.answer,
        "-" if one.certifiable_loss is None else _percent(one.certifiable_loss),
        "-" if one.items_needed is None else f"{one.items_needed:,}",
    )


def sentence_of(one: AbilityLoss) -> str:
    """Return what a loss says, and where it says nothing what to do."""
    if one.answer == "undecided" or one.low is None or one.high is None:
        return f"{one.name}: undecided: {undecided_sentence(one)}"
    done = "no more than" if one.answer == "held" else "more than"
    interval = f"{_percent(one.low)} to {_percent(one.high)}"
    return (
        f"{one.name}: {one.answer}: {done} {limit_text(one.max_loss)} was lost; the 95 % interval of the loss is "
        f"{interval}."
    )


def limit_text(max_loss: float) -> str:
    """Return a limit as a percentage, as precise as it was given."""
    return f"{100 * max_loss:.10g} %"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _text_table(title: str, losses: Sequence[AbilityLoss]) -> list[str]:
    """Return the lines of a table in plain text; none where there is nothing."""
    if not losses:
        return []
    rows = [(title, *COLUMNS), *(cells_of(one) for one in losses)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
