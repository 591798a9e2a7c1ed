"""Run a study: plan it, make its stages, and sum up what they found.

A cell that fails does not stop the others. A study that was stopped goes on at the first unfinished stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lingraft.config.engines import RETRIES, check_engines
from lingraft.config.load import load_study, save_study
from lingraft.config.paths import make_named_folder, path_of
from lingraft.config.ray_address import RAY_AUTO, RAY_LOCAL
from lingraft.config.schema import Study
from lingraft.data.encodings import discard_encodings
from lingraft.errors import ConfigError, ModelError, as_disk_error
from lingraft.evaluate.checks import check_tasks
from lingraft.evaluate.selection import language_notes, resolve_suites
from lingraft.stage import StageSpec
from lingraft.study.checks import check_names
from lingraft.study.checks import load_study as read_study
from lingraft.study.contamination import report_contamination
from lingraft.study.engines import Engine
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor, share_on
from lingraft.study.fitting import check_divided, check_memory, fitting_line
from lingraft.study.forecast import Forecast, disk_needed, disk_problem, forecast, free_disk
from lingraft.study.made import noted_in
from lingraft.study.materials import Materials, check_added_tokens, gather, report_costs
from lingraft.study.plan import Plan, listed_stages, plan_study
from lingraft.study.pool import Pool, cards_of_a_worker, check_workers
from lingraft.study.reach import check_reach
from lingraft.study.result import STUDY, StudyResult, write_result
from lingraft.study.stages.evaluate import questions
from lingraft.study.store import Store
from lingraft.study.summary import Summary, reason_of
from lingraft.study.under_way import UnderWayFile
from lingraft.study.unused import UnusedStage, unused_stages, write_plan
from lingraft.train.processes import Processes


@dataclass(frozen=True)
class Prepared:
    """A study that is ready to be planned.

    Attributes:
        study: Its suites resolved.
        materials: All that its stages draw from.
        language_notes: Which language of a task stands for which of the study's.
    """

    study: Study
    materials: Materials
    language_notes: tuple[str, ...]

    def plan(self, store: Store, base_folder: Path, processes: Processes | None = None) -> Plan:
        """Return the plan, with what an earlier run resolved where the hub cannot be reached."""
        asked = questions(
            self.study.evaluate,
            self.materials.languages,
            self.materials.held_out,
            base_folder=base_folder,
            cache=store.cache if store.stages.is_dir() else None,  # no run folder is made for a plan alone
            trust_remote_code=self.study.trust_remote_code,
            workers=(processes or Processes()).workers,
        )
        return plan_study(self.study, self.materials, asked, processes)


def run_study(
    study: Study | str | Path | Mapping[str, Any],
    *,
    runs: str | Path = Path("runs"),
    base_folder: str | Path = Path(),
    watcher: Watcher | None = None,
    processes: Processes | None = None,
    workers: int | None = None,
    ray: str | None = None,
    retries: int = RETRIES,
    on_result: Callable[[StudyResult], None] | None = None,
    command: Sequence[str] | None = None,
) -> StudyResult:
    """Run (or go on with) a study and return its result.

    Args:
        study: The study as `load_study` returns it, or a study file or its content, which are checked as there.
        runs: Folder of all runs; this one's is `runs/<study.name>`.
        base_folder: What relative paths of data, prompts and tasks are relative to; those of models and of strategies'
            files are relative to the working directory. On the command line both are the same folder.
        watcher: Receives what happens.
        processes: How many processes train a phase, and how many answer; None: this one trains. Models differ by
            rounding and answers not at all, so records do not depend on it; any number continues a phase.
        workers: How many processes of this machine make stages at the same time, each with as many accelerators as
            there are for it; a phase is trained by `processes` of each. None: this process makes one after the other.
        ray: The address of a Ray cluster that makes the stages: `local`, `auto` or HOST:PORT.
        retries: How often a stage is made again whose process died, or that failed by something that may pass, such as
            a connection.
        on_result: Called with the result so far, before the first stage is made and whenever a model of it is done or
            has failed; it was written to `result.json` just before.
        command: What was typed, for the report; None: nothing was, this is Python.

    Returns:
        What `lingraft run --json` prints (docs/report.md). Cells that failed are in it, with their reason.

    Raises:
        ConfigError, DataError, ModelError: Something is wrong with the study as a whole, before any training.
        DiskError: The run folder cannot be written any more; the same call goes on when it can.
    """
    watcher = watcher or Watcher()
    processes = _checked_processes(processes or Processes(), workers, ray, retries)
    base_folder = path_of(base_folder, "base_folder")
    asked = study if isinstance(study, Study) else read_study(study, base_folder=base_folder)
    if processes.sharded:
        check_divided(asked)
    folder = path_of(runs, "runs") / asked.name
    make_named_folder(folder, argument="the run's folder", advice="give other --runs")
    prepared = prepare_study(
        asked,
        base_folder,
        watcher,
        check=partial(
            _check_first, asked, base_folder, _study_before(folder), None if ray is not None else processes
        ),
    )
    study, materials = prepared.study, prepared.materials
    costs = report_costs(materials, watcher, trust_remote_code=study.trust_remote_code)
    with (
        as_disk_error(folder),
        Store(folder, watcher.noted) as store,
        noted_in(folder, command, processes.count, engine_name(workers, ray)) as ending,
        UnderWayFile(folder, workers or 1) as said,
    ):
        plan = prepared.plan(store, base_folder, processes)
        for note in plan.notes:
            watcher.noted(note)
        contamination = report_contamination(study, materials, store, base_folder, watcher)
        # From here on the folder is this study's, whatever it was before: file, plan and result are of one.
        save_study(study, folder / STUDY)
        write_plan(folder, listed_stages(plan))
        executor = Executor(store, watcher, said)
        executor.look(plan)
        unused = unused_stages(folder)
        _say_ahead(plan, executor, unused, watcher)
        summary = Summary(study, materials, plan, executor, watcher)

        def sum_up() -> StudyResult:
            result = summary.result(
                folder,
                tokenizer_cost=costs,
                contamination=contamination,
                language_notes=prepared.language_notes,
                unused=unused,
            )
            write_result(result)
            if on_result is not None:
                on_result(result)
            return result

        sum_up()
        known = summary.known
        with _begun(folder, executor.ahead(plan), study, watcher, workers, ray) as engine:
            for stage in executor.run(plan, engine, retries=retries):
                failure = executor.failed.get(stage.fingerprint) if stage is plan.base else None
                if failure is not None or summary.known != known:
                    known = summary.known
                    sum_up()
                if isinstance(failure, ModelError):
                    raise failure  # every cell starts from a model that cannot be used
                if failure is not None:
                    watcher.cell_failed("base", reason_of(failure), failure)
        result = sum_up()
        if result.base_reason is None and len(result.done) == len(result.cells):
            ending.outcome = "done"
        discard_encodings(store.cache)
    return result


def prepare_study(
    study: Study,
    base_folder: Path,
    watcher: Watcher,
    *,
    check: Callable[[], None] = lambda: None,
    check_materials: Callable[[Materials], None] = lambda _: None,
    without_tasks: bool = False,
    most_held_out: float | None = None,
) -> Prepared:
    """Read and find all that a study needs, and check it, before anything is computed.

    Args:
        study: The study.
        base_folder: See `run_study`.
        watcher: Receives what happens.
        check: Refuses what else is wrong with it, before data are read.
        check_materials: Refuses what is wrong with the data and models, before tasks are looked at.
        without_tasks: The languages that are trained may be without a task.
        most_held_out: See `gather`.

    Raises:
        ConfigError, DataError, ModelError: Something is wrong with the study as a whole.
    """
    check_names(study, base_folder)
    check()
    materials = gather(study, base_folder, watcher, most_held_out)
    check_materials(materials)
    check_added_tokens(materials, trust_remote_code=study.trust_remote_code)
    evaluation = resolve_suites(
        study.evaluate, base_folder, languages=materials.languages, without_tasks=without_tasks
    )
    check_tasks(
        evaluation,
        base_folder,
        languages=materials.languages,
        without_tasks=without_tasks,
        trust_remote_code=study.trust_remote_code,
    )
    notes = language_notes(study.evaluate, evaluation, materials.languages)
    for note in notes:
        watcher.noted(note)
    return Prepared(study.model_copy(update={"evaluate": evaluation}), materials, tuple(notes))


def forecast_study(
    study: Study,
    *,
    runs: Path = Path("runs"),
    base_folder: Path = Path(),
    watcher: Watcher | None = None,
    processes: Processes | None = None,
    measure: bool = False,
) -> Forecast:
    """Return the stages of a study in the order in which they run, what they will take, and what of them is finished.

    Nothing is written but rates that were measured, into the user's cache.

    Args:
        study: The study, checked.
        runs: Folder of all runs.
        base_folder: See `run_study`.
        watcher: Receives what happens while the data are read.
        processes: See `run_study`.
        measure: Time a few real steps and answers on this machine.

    Raises:
        ConfigError, DataError, ModelError: As `run_study`.
    """
    watcher, processes = watcher or Watcher(), processes or Processes()
    processes.check()
    if processes.sharded:
        check_divided(study)
    store = Store(runs / study.name)
    is_new = not store.stages.is_dir()  # what is finished need not fit any more
    check = partial(check_memory, study, processes) if is_new else lambda: None
    prepared = prepare_study(study, base_folder, watcher, check=check)
    plan = prepared.plan(store, base_folder, processes)
    for note in plan.notes:
        watcher.noted(note)
    return forecast(
        plan.stages,
        plan.kept,
        store,
        measure_from=0 if measure else None,
        watcher=watcher,
        trust_remote_code=study.trust_remote_code,
    )


def _checked_processes(processes: Processes, workers: int | None, ray: str | None, retries: int) -> Processes:
    """Return the processes that a stage may have of what makes it, checked before anything is read.

    Raises:
        ConfigError: They do not fit the machine, or what was asked does not go together.
    """
    check_engines(workers, ray, retries, processes.nodes)
    if workers is not None:
        processes.check()
        check_workers(workers, processes.count)
        return replace(processes, answering=max(1, cards_of_a_worker(workers)))
    if ray is not None:  # the cards are the cluster's
        from lingraft.study.ray_cluster import check_answers

        check_answers(ray)
        return replace(processes, answering=1)
    processes.check()
    return processes


def _study_before(folder: Path) -> Study | None:
    """Return the study that a run folder holds stages of; None: none, or another version's."""
    if any((folder / "stages").glob("*/")):
        with suppress(ConfigError):
            return load_study(folder / STUDY)
    return None


def _say_ahead(plan: Plan, executor: Executor, unused: Sequence[UnusedStage], watcher: Watcher) -> None:
    """Say what the stages need that are to be made, and what lies in the run folder that is not this study's."""
    folder = executor.store.folder
    problem = disk_problem(disk_needed(plan.stages, plan.kept, executor.done), free_disk(folder))
    if problem is not None:
        watcher.noted(problem)
    if ahead := executor.ahead(plan):
        watcher.planned(fitting_line(ahead))
    if unused and not executor.done:
        watcher.noted(_other_study_sentence(folder, unused))


def engine_name(workers: int | None, ray: str | None) -> str:
    """Return what makes the stages, as a report says it; empty: one process."""
    if workers is not None:
        return f"{workers} worker{'s' * (workers > 1)}"
    return "" if ray is None else f"Ray ({ray if ray in (RAY_LOCAL, RAY_AUTO) else 'a cluster'})"


@contextmanager
def _begun(
    folder: Path,
    ahead: Sequence[StageSpec],
    study: Study,
    watcher: Watcher,
    workers: int | None,
    ray: str | None,
) -> Iterator[Engine | None]:
    """Let an engine begin, and end; None where this process makes all stages, or none is left.

    Raises:
        ConfigError: A node of the cluster cannot make the stages that are ahead.
    """
    if not ahead or (workers is None and ray is None):
        yield None
    elif workers is not None:
        with Pool(folder, workers) as pool:
            yield pool
    elif ray is not None:
        from lingraft.study.ray_engine import RayEngine

        with RayEngine(folder, ray, noted=watcher.noted) as cluster:
            cluster.check_nodes(ahead, asks_precision=_asks_precision(study))
            cluster.check_shares([(stage, share_on(cluster, stage)) for stage in ahead])
            yield cluster


def _asks_precision(study: Study) -> bool:
    """Return whether a type of numbers is left to the machine anywhere in a study."""
    return '"precision": "auto"' in study.model_dump_json(indent=1)


def _check_first(study: Study, base_folder: Path, before: Study | None, processes: Processes | None) -> None:
    """Refuse what cannot be had or does not fit here (None: it is not here), before data and models are read."""
    check_reach(study, base_folder, before)
    if before is None and processes is not None:  # what is finished need not fit any more
        check_memory(study, processes)


def _other_study_sentence(folder: Path, unused: Sequence[UnusedStage]) -> str:
    return (
        f"{folder}: holds {len(unused)} stages, and none of this study: another study of this name was run here, or "
        "the model, the data, the options or the version of lingraft changed. They stay, but are not in this result; "
        "to keep both results, give this study another `name`."
    )
