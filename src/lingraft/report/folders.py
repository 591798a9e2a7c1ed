"""What the page of a folder shows: of runs, or of what `evaluate`, `check`, `adapt` or `rescue` left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingraft.adapt import PAGE as ADAPTATION
from lingraft.config.named import named
from lingraft.config.paths import user_path
from lingraft.errors import ConfigError
from lingraft.evaluate.results import ModelDifferences, Scores
from lingraft.evaluate.shown_names import names_in_files, names_in_keys, names_of_records, renamed
from lingraft.evaluate.task_records import TaskRecord
from lingraft.records import from_json, path_inside, read_json, to_json
from lingraft.report.contents import Block, Lines, PlacedTable, Section
from lingraft.report.evaluation import difference_table, score_table
from lingraft.report.notes import equal_task_notes
from lingraft.report.page import Page, page_of
from lingraft.report.runs import MANIFEST, Report, read_report
from lingraft.report.signs import legend
from lingraft.stage_record import RECORD
from lingraft.study.made import without_secrets
from lingraft.study.result import RESULT, STUDY


@dataclass(frozen=True)
class Reported:
    """What `lingraft report` has to show.

    Attributes:
        page: What its page shows.
        report: Of the runs; None: the folder is no study's.
        result: What was found, as JSON.
    """

    page: Page
    report: Report | None
    result: Any


def adaptation_page(folder: Path) -> Path | None:
    """Return the page that `adapt` or `rescue` wrote into a folder, which has nothing to make one of; None: no such."""
    is_there = not _is_of_study(folder) and (folder / ADAPTATION).is_file()
    return folder / ADAPTATION if is_there else None


def read_reported(written: Sequence[str]) -> Reported:
    """Return what there is to show of run folders, or of one folder that `evaluate` or `check` made.

    Args:
        written: The folders, each as `PATH` or `NAME=PATH`.

    Raises:
        ConfigError: As of `read_report`, or a record is damaged or another version's.
    """
    alone = named(written[0]) if len(written) == 1 else None
    other = None if alone is None else _of_record(user_path(alone.value))
    if other is not None:
        return other
    report = read_report(written)
    return Reported(page_of(report), report, to_json(report.result))


def _is_of_study(folder: Path) -> bool:
    return (folder / STUDY).exists() or (folder / RESULT).exists()


def _of_record(folder: Path) -> Reported | None:
    """Return what there is to show of a folder with a record; None: it is a study's, or has none that is shown."""
    if _is_of_study(folder) or not (folder / RECORD).is_file():
        return None
    try:
        record = read_json(folder / RECORD)
        measure, inputs, result = record["measure"], record["inputs"], record["result"]
        if measure == "check":
            page = _of_check(folder, result, record)
        elif measure == "evaluate" and "compared" in result:
            page = _of_two(folder, from_json(ModelDifferences, result), record)
        elif measure == "evaluate":
            sections = (_scores(str(inputs.get("name") or inputs["model"]), result, "scores"),)
            page = _page(folder, "A lingraft evaluation: what a model scored", record, sections)
        else:
            return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder / RECORD}: is damaged, or of another version of lingraft ({error}); run the command that made it "
            "again."
        ) from None
    return Reported(page, None, result)


def _page(folder: Path, kind: str, record: dict[str, Any], sections: tuple[Section, ...]) -> Page:
    inputs = record["inputs"]
    names = inputs.get("models") or [inputs[key] for key in ("model", "against") if key in inputs]
    facts = {
        "Models": ", ".join(without_secrets(str(name)) for name in names),
        "lingraft": str(record.get("lingraft", "")),
        "Suite": str(inputs.get("suite", "")),
        "Computed in": str(inputs.get("precision", "")),
    }
    return Page(folder.name, kind, tuple((name, text) for name, text in facts.items() if text), (), sections)


def _scores(title: str, result: dict[str, Any], name: str) -> Section:
    """Return the scores of one model, with what was not run of it."""
    names = _names(result)
    scores = renamed(from_json(Scores, result["scores"]), names)
    tasks = sorted(scores.tasks, key=lambda one: one.rpartition("/")[::-1])
    blocks: list[Block] = [
        PlacedTable(f"{name}-table", "", "Brackets are 95 % intervals.", score_table(scores, tasks))
    ]
    same = {task: one.value if one.value in (0, 1) else None for task, one in scores.tasks.items()}
    left_out = [
        *equal_task_notes(same, "models"),
        *(
            f"{renamed(task, names)}: not run: {reason}"
            for task, reason in (result["not_run"] | result["no_room"]).items()
        ),
        *scores.left_out,
    ]
    if left_out:
        blocks.append(Lines("", tuple(map(without_secrets, left_out))))
    return Section(name, without_secrets(title), tuple(blocks))


def _names(*results: dict[str, Any]) -> dict[str, str]:
    """Return what the tasks are called that evaluations were given as files."""
    return names_of_records(from_json(dict[str, TaskRecord], one.get("tasks", {})) for one in results)


def _of_two(folder: Path, compared: ModelDifferences, record: dict[str, Any]) -> Page:
    first, second = compared.compared
    places = [path_inside(folder, place).parent / RECORD for place in compared.predictions or ()]
    results = [read_json(place)["result"] if place.is_file() else None for place in places]
    compared = renamed(compared, _names(*filter(None, results)))
    legends = [legend("Difference", one) for one in {own.margin for own in compared.differences.values()}]
    equal = {name: own.all_scores for name, own in compared.differences.items()}
    notes = (
        *legends,
        *equal_task_notes(equal, "these models"),
        *(
            f"{task}: {count} items have a score of one model only."
            for task, count in compared.unpaired.items()
        ),
        *compared.not_paired.values(),
    )
    caption = "Paired: the same items, asked alike."
    blocks = (PlacedTable("difference", "", caption, difference_table(compared)), Lines("", notes))
    sections = [Section("compared", without_secrets(f"{second} - {first}"), blocks)]
    for number, (name, own) in enumerate(zip(compared.compared, results, strict=False), 1):
        if own is not None:
            sections.append(_scores(name, own, f"scores-{number}"))
    return _page(folder, "A lingraft evaluation: two models on the same items", record, tuple(sections))


def _of_check(folder: Path, result: Any, record: dict[str, Any]) -> Page:
    from lingraft.adapt.checked import ABILITY, TASK, Checked  # loads torch, which other pages need not
    from lingraft.report.check import check_table

    found = from_json(Checked, result)
    for place in found.predictions or ():
        manifest = path_inside(folder, place).parent / MANIFEST
        if manifest.is_file():
            found = renamed(found, names_in_files(names_in_keys(read_json(manifest)["tasks"])))
            break
    blocks: list[Block] = [Lines("", (found.title, *found.sentences()), "notes")]
    if found.abilities:
        blocks.append(PlacedTable("abilities", "", "", check_table(ABILITY, found.abilities)))
    if found.tasks:
        blocks.append(PlacedTable("tasks", found.task_title, "", check_table(TASK, found.tasks)))
    if found.left_out():
        blocks.append(Lines("What was left out", tuple(found.left_out())))
    section = Section("answer", "Answer", tuple(blocks))
    return _page(folder, "A lingraft check: whether a model lost more than it may", record, (section,))
