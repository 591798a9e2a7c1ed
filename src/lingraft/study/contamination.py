"""How much of a study's evaluation stands in its training rows, reported before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lingraft.config.schema import PhaseData, Study
from lingraft.contamination.items import evaluation_texts
from lingraft.contamination.overlap import CHARACTERS, WORDS, overlap
from lingraft.data.example import Example
from lingraft.data.worldbook import VERSION as WORLDBOOK_VERSION
from lingraft.evaluate.loading import task_identities
from lingraft.records import fingerprint_of, from_json, read_kept, to_json, write_kept
from lingraft.stage import libraries
from lingraft.study.events import Watcher
from lingraft.study.materials import DataSet, Materials
from lingraft.study.result import Contamination
from lingraft.study.store import Store

_REPORTED_EVERY = 1000  # rows


def report_contamination(
    study: Study, materials: Materials, store: Store, base_folder: Path, watcher: Watcher
) -> Contamination | None:
    """Measure the overlap of all evaluation tasks with all training rows, and warn; return it for the result.

    It is kept in the run's cache, so that a finished study needs neither its tasks' data nor its rows again, unless a
    task could not be read. None: the study does not ask for it.
    """
    if study.contamination is None:
        return None
    path = store.cache / f"contamination-{_fingerprint(study, materials, base_folder)}.json"
    found: Contamination | None = None
    try:
        found = from_json(Contamination, read_kept(path))
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        watcher.noted(f"{path}: is damaged; the contamination is measured again.")
    if found is None:
        asked = evaluation_texts(
            study.evaluate,
            languages=materials.languages,
            base_folder=base_folder,
            trust_remote_code=study.trust_remote_code,
        )

        def rows() -> Iterator[Example]:
            for number, row in enumerate(training_rows(study, materials)):
                if number % _REPORTED_EVERY == 0:
                    watcher.preparing("contamination", number, 0)
                yield row

        found = Contamination(
            words=WORDS,
            characters=CHARACTERS,
            tasks=dict(sorted(overlap(asked.texts, rows()).items())),
            unread=tuple(asked.unread),
        )
        if not found.unread:
            write_kept(path, to_json(found))
    for task, one in found.tasks.items():
        if one.contaminated > study.contamination:
            worst = one.worst[0]
            watcher.noted(
                f"{task}: {one.contaminated:.1%} of its {one.items} items stand in the training rows, such as "
                f"{worst.item} in {worst.row}: its score tells what was seen, not what was learned."
            )
    for reason in found.unread:
        watcher.noted(f"contamination: {reason}")
    return found


def training_rows(study: Study, materials: Materials) -> Iterator[Example]:
    """Return every row that some cell may train on, replayed English included; some twice."""
    for data in materials.data.values():
        # Without a limit every seed draws the same rows.
        for seed in study.seeds[:1] if data.source.limit is None else study.seeds:
            yield from materials.drawn(data, seed).rows
    for source, data, english in _with_english(study, materials):
        for seed in study.seeds[:1] if english.source.limit is None else study.seeds:
            drawn = materials.drawn_english(source, data, seed)
            yield from () if drawn is None else drawn.rows


def _with_english(study: Study, materials: Materials) -> Iterator[tuple[PhaseData, DataSet, DataSet]]:
    """Yield the sets whose English parallel some cell takes rows of: as the file names them, read, and the parallel."""
    for phase in study.phases:
        for name, source in phase.data.items():
            english, data = materials.english_of(source), materials.data.get((phase.name, name))
            if english is not None and data is not None:
                yield source, data, english


def _fingerprint(study: Study, materials: Materials, base_folder: Path) -> str:
    english = [[data.identity, own.identity] for _, data, own in _with_english(study, materials)]
    return fingerprint_of(
        {
            "evaluation": study.evaluate.model_dump(mode="json", exclude=study.evaluate.idle_fields),
            "tasks": task_identities(study.evaluate, base_folder),
            "languages": list(materials.languages),
            "worldbook": WORLDBOOK_VERSION,
            "data": [one.identity for one in materials.data.values()],
            "seeds": list(study.seeds),
            "libraries": libraries(("lingraft", "lm-eval")),
        }
        | ({"english": english} if english else {})
    )
