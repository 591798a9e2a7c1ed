"""The study that an adaptation is trained as, its one cell, and what can be known to be wrong with it beforehand.

Nothing heavy is imported: a wrong name is refused at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lingraft.config.adaptation import Adaptation, sources_of
from lingraft.config.schema import (
    PLAIN,
    Evaluation,
    EvaluationTask,
    Phase,
    PhaseData,
    StrategyChoice,
    Study,
    Training,
)
from lingraft.errors import ConfigError, DataError
from lingraft.study.checks import check_names
from lingraft.text.language_tags import is_english

START, ADAPTED = "start", "adapted"
"""The study's phases."""
_REPLAY = "english_replay"
# What the study calls them, and what the user does.
_PLACES = (
    (r"phases\[0\] \(start\)\.checkpoint|phase 'start', checkpoint", "model"),
    (r"phases\[0\] \(start\)\.instructions(\.source)?|\S+: phase 'start', instructions", "english_data"),
    (r"phases\[1\] \(adapted\)\.data\.[^:]*?\.english(\.source)?", "english_data"),
    (r"phases\[1\] \(adapted\)\.data\.[^:]*?(\.source)?(?=:)|(\S+: )?phase 'adapted', data '[^']*'", "data"),
    (r"phase 'adapted', strategy '[^']*'", "strategy"),
    (r"evaluate\.(task|language)_ability(\[\d+\])?: suite:[^:]*", "suite"),
    (r"evaluate\.(task|language)_ability(\[\d+\])?", "tasks"),
    (r"evaluate\.data_dir|data_dir", "data_dir"),
)


@contextmanager
def in_words_of_adapt() -> Iterator[None]:
    """Name what is refused inside by the fields of an adaptation, each problem once.

    Raises:
        ConfigError, DataError: What the block raised, in other words.
    """
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(words_of_adapt(str(error))) from error


def words_of_adapt(message: str) -> str:
    """Return a message about a study in the words of an adaptation, each line once."""

    def named(line: str) -> str:
        for pattern, field in _PLACES:
            found = re.match(pattern, line)
            if found is not None:
                return field + line[found.end() :]
        return line

    return "\n".join(dict.fromkeys(map(named, message.split("\n"))))


def check_adaptation(adaptation: Adaptation, base_folder: Path) -> None:
    """Refuse unknown strategies, suites, tasks and options, and files that are not there; nothing is read.

    Raises:
        ConfigError: With every problem.
    """
    with in_words_of_adapt():
        check_names(study_of(adaptation, "adaptation"), base_folder)


def strategy_of(adaptation: Adaptation) -> StrategyChoice:
    """Return the strategies of the training: those that are asked for, else what docs/results.md supports.

    There, replayed English with interpolated weights kept the most of English on dissimilar instructions, at 97 % of
    plain's gain; interpolated weights alone, which need no English rows, kept it at 94 % (similar) and 96 %
    (dissimilar) of plain's gain. The weights are interpolated by the walk.
    """
    if adaptation.strategy is not None:
        return adaptation.strategy
    return StrategyChoice.model_validate(PLAIN if adaptation.english_data is None else _REPLAY)


def study_of(adaptation: Adaptation, name: str, earlier: tuple[str, ...] = ()) -> Study:
    """Return the study that an adaptation is trained as; its one cell is the training.

    Args:
        adaptation: What was asked.
        name: Of the run folder.
        earlier: Languages that the model was taught before, which are evaluated as well.
    """
    english = adaptation.english_data
    strategy = strategy_of(adaptation)
    data: dict[str, PhaseData] = {}
    for number, source in enumerate(sources_of(adaptation), start=1):
        stem = re.sub(r"[^A-Za-z0-9._+-]+", "-", Path(source.source).stem).lstrip("._+-")[:40]
        called = stem if stem and stem not in data else f"{stem or 'rows'}-{number}"
        # What is replayed is drawn once, however many sets there are.
        data[called] = PhaseData(**source.model_dump(), english=english if number == 1 else None)
    name_of_suite = adaptation.suite or ("" if adaptation.tasks else "quick")
    suite = [EvaluationTask(task=f"suite:{name_of_suite}", limit=adaptation.limit)] if name_of_suite else []
    given: dict[bool, list[EvaluationTask]] = {True: [], False: []}
    for task in adaptation.tasks:
        own = task if task.limit is not None else task.model_copy(update={"limit": adaptation.limit})
        given[task.language is None or is_english(task.language)].append(own)
    evaluation = Evaluation(
        task_ability=(*suite, *given[True]),
        language_ability=(*suite, *given[False]),
        languages=earlier,
        data_dir=adaptation.data_dir,
        part="selection",
        part_seed=adaptation.seed,
    )
    return Study(
        name=name,
        phases=(
            Phase(name=START, checkpoint=adaptation.model, instructions=english),
            Phase(name=ADAPTED, data=data, strategies=(strategy,)),
        ),
        training=adaptation.training.apply_to(Training()),
        encoder=adaptation.encoder,
        held_out=adaptation.held_out,
        measures=(),
        evaluate=evaluation,
        seeds=(adaptation.seed,),
        keep="all",
        trust_remote_code=adaptation.trust_remote_code,
    )
