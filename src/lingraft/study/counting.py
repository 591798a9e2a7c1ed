"""How many stages a study has, so that progress can say how far it is."""

from __future__ import annotations

from collections.abc import Sequence

from lingraft.config.schema import PathStep, Study
from lingraft.similarity.encoders import Encoder
from lingraft.strategies.composition import build
from lingraft.study.grid import Cell
from lingraft.study.materials import Materials
from lingraft.study.measures import cell_pairs, set_of, unknown_to
from lingraft.study.stages.job import training_identity

Key = tuple[object, ...]


def count_stages(study: Study, materials: Materials, encoder: Encoder | None) -> int:
    """Count the different stages of the study; what is shared between cells counts once.

    `encoder` is DES's, which decides what can be compared.
    """
    wanted: set[Key] = set()
    for name, model in (("base", materials.base), ("checkpoint", materials.checkpoint)):
        if model is not None:
            wanted.add(("evaluate", name))
    for cell in materials.cells:
        wanted |= _trained(study, cell) | _measured(study, materials, cell, encoder)
    return len(wanted)


def _trained(study: Study, cell: Cell) -> set[Key]:
    wanted: set[Key] = set()
    for index in range(len(cell.phases_one_by_one)):
        wanted |= _phase(study, cell.steps[: index + 1], cell.seed)
    if cell.is_mixed:
        wanted |= {mixed_key(cell), ("evaluate", _key(cell.steps) + "mixed", cell.seed)}
    return wanted


def needed_keys(study: Study, cell: Cell) -> set[Key]:
    """Return a key of each training and state that a cell's stages begin with or measure; equal for shared ones."""
    needed: set[Key] = {mixed_key(cell)} if cell.is_mixed else set()
    for index in range(len(cell.phases_one_by_one)):
        steps = cell.steps[: index + 1]
        needed |= {train_key(steps, cell.seed), *prepare_keys(study, steps, cell.seed).values()}
    return needed


def train_key(steps: Sequence[PathStep], seed: int) -> Key:
    """Return the key of the training of a path's last phase; combinations of one training share it."""
    before, last = _key(steps[:-1]), steps[-1]
    overrides = [part.training.model_dump(exclude_none=True) for part in last.strategy.parts]
    training = (last.phase, last.data, training_identity(last.strategy), [one for one in overrides if one])
    return "train", before, repr(training), seed


def mixed_key(cell: Cell) -> Key:
    """Return the key of the training of a mixed cell's one phase."""
    return "train", _key(cell.steps) + "mixed", cell.seed


def prepare_keys(study: Study, steps: Sequence[PathStep], seed: int) -> dict[str, Key]:
    """Return, by kind of strategy, a key of each state that a path's last phase prepares; equal for shared ones."""
    before, last = _key(steps[:-1]), steps[-1]
    phase = next(phase for phase in study.phases if phase.name == last.phase)
    old_rows_known = len(steps) > 1 and study.phases[0].checkpoint is None
    english = None if old_rows_known or phase.data[last.data].english is None else last.data
    keys: dict[str, Key] = {}
    for part in build(last.strategy).parts:
        if part.preparation is not None:
            rows = english if "old_english" in part.uses else None
            # A phase before was trained by the seed, which so decides the model that is looked at.
            own_seed = seed if part.prepares_by_seed or len(steps) > 1 else None
            keys[part.kind] = ("prepare", before, part.kind, repr(part.preparation), rows, own_seed)
    return keys


def _phase(study: Study, steps: Sequence[PathStep], seed: int) -> set[Key]:
    """Return the stages of a path's last phase."""
    wanted: set[Key] = {train_key(steps, seed), ("evaluate", _key(steps), seed)}
    if build(steps[-1].strategy).combines:
        wanted.add(("combine", _key(steps), seed))
    return wanted | set(prepare_keys(study, steps, seed).values())


def _measured(study: Study, materials: Materials, cell: Cell, encoder: Encoder | None) -> set[Key]:
    pairs = cell_pairs(cell, has_checkpoint=materials.checkpoint is not None)
    wanted: set[Key] = set()
    for i, j in pairs:
        sets = [one for place in (i, j) if (one := set_of(materials, cell, place)) is not None]
        if encoder is not None and len(sets) == 2 and unknown_to(encoder, sets) is None:
            wanted.add(("similarity", _set(cell, i), _set(cell, j), cell.seed))
    if "mpd" in study.measures:
        wanted |= {
            ("difference", _key(cell.steps[: i + 1]), _key(cell.steps[: j + 1]), cell.is_mixed, cell.seed)
            for i, j in pairs
        }
    if "drift" in study.measures:
        wanted.add(("drift", _key(cell.steps), cell.is_mixed, cell.seed))
    if "mpd_pair" in study.measures and not cell.is_mixed:
        last = cell.steps[-1].data
        wanted |= {(kind, "pair", last, cell.seed) for kind in ("train", "difference")}
    return wanted


def _set(cell: Cell, index: int) -> tuple[str, str] | None:
    return None if index < 0 else (cell.steps[index].phase, cell.steps[index].data)


def _key(steps: Sequence[PathStep]) -> str:
    return repr(steps)
