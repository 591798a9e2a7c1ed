"""Resumable checkpoints of a phase: which are whole, whose they are, and when they go.

    trainer/phase.json               what the phase is, by which a checkpoint of another one is recognised
           /checkpoint-STEP/         weights, optimiser, random states (`train.saved_state`)
                           /manifest.json   their sizes and hashes; written last, atomically
           /other-FINGERPRINT/       checkpoints of another phase, until this one has saved its first
           /runs/                    what trackers write

At rest the last two are kept, so that one that was damaged has one before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingraft.records import (
    canonical_json,
    fingerprint_of,
    flush_folder,
    from_json,
    hash_file,
    read_json,
    remove,
    to_json,
    write_json_atomically,
)

FOLDER = "trainer"
MANIFEST = "manifest.json"
_PHASE = "phase.json"
_STATE = "trainer_state.json"
_OTHER = "other-"
_FORMAT = 2


@dataclass(frozen=True, slots=True)
class FileSeal:
    """What a file of a checkpoint must be: its size in bytes, and its SHA-256."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What makes a checkpoint whole.

    Attributes:
        format: Of this file.
        phase: Fingerprint of the phase.
        step: Optimiser steps done.
        files: By path inside the checkpoint, all of its files but this one.
    """

    format: int
    phase: str
    step: int
    files: Mapping[str, FileSeal]


@dataclass(frozen=True, slots=True)
class Found:
    """What an interrupted run left.

    Attributes:
        step: Of the newest whole checkpoint; None: the phase begins anew.
        refused: How many newer ones are not whole.
    """

    step: int | None
    refused: int


class Checkpoints:
    """The resumable checkpoints of one phase; the first process alone uses it.

    Args:
        folder: Where they lie.
        identity: All that decides the phase's steps, by name; checkpoints of another identity are not continued.
        noted: Receives what happens to them, a sentence each time.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], noted: Callable[[str], None]) -> None:
        self.folder = folder
        self._identity = json.loads(canonical_json(identity))  # as it is read back
        self._phase = fingerprint_of(self._identity)
        self._noted = noted

    def find(self) -> Found:
        """Return the newest whole checkpoint; remove those that are not whole, set those of another phase aside."""
        make_folder(self.folder)
        self._set_others_aside()
        problems: list[str] = []
        found: int | None = None
        goes_on = "training begins anew"
        for step, checkpoint in sorted(_checkpoints(self.folder).items(), reverse=True):
            problem = self._problem_of(checkpoint, step)
            if problem is None:
                found, goes_on = step, f"training goes on from step {step}"
                break
            problems.append(f"that of step {step} {problem}")
            remove(checkpoint)
        if problems:
            self._noted(f"resumable checkpoints are refused and removed ({'; '.join(problems)}); {goes_on}.")
        for other in sorted(self.folder.glob(f"{_OTHER}*")):
            last = max(_checkpoints(other), default=None)
            if last is None or found is not None:
                remove(other)
            else:
                self._noted(
                    f"a stopped training lies here at step {last}, which this one cannot continue: "
                    f"{_differences(_json_in(other / _PHASE), self._identity)}. This one begins anew, and deletes the "
                    "other when it saves its first checkpoint. To continue the other, stop now and run it as it was."
                )
        return Found(found, len(problems))

    def make_room(self) -> None:
        """Remove all checkpoints but the newest, before another is written: never are more than two on the disk."""
        whole = [step for step, one in _checkpoints(self.folder).items() if _manifest_of(one) is not None]
        for step, checkpoint in _checkpoints(self.folder).items():
            if step != max(whole, default=None):
                remove(checkpoint)

    def seal(self, step: int) -> None:
        """Put the files of a new checkpoint on disk, and list them in its manifest; from then on it counts.

        Raises:
            OSError: The disk is full or fails.
        """
        checkpoint = self.path_of(step)
        flush_folder(checkpoint)
        found = dict(sorted(_files(checkpoint).items()))
        with ThreadPoolExecutor() as threads:  # a stopped training waits for this
            hashes = threads.map(hash_file, found.values())
            files = {
                name: FileSeal(path.stat().st_size, own)
                for (name, path), own in zip(found.items(), hashes, strict=True)
            }
        write_json_atomically(checkpoint / MANIFEST, to_json(Manifest(_FORMAT, self._phase, step, files)))
        for other in self.folder.glob(f"{_OTHER}*"):
            remove(other)

    def path_of(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step` steps."""
        return self.folder / f"checkpoint-{step}"

    def clear(self) -> None:
        """Remove the phase's checkpoints."""
        for checkpoint in _checkpoints(self.folder).values():
            remove(checkpoint)

    def _problem_of(self, checkpoint: Path, step: int) -> str | None:
        """Return why a checkpoint is not whole; None: it is."""
        if checkpoint.is_symlink() or not (checkpoint / MANIFEST).exists():
            return "was not finished"
        manifest = _manifest_of(checkpoint)
        if manifest is None:
            stated = _json_in(checkpoint / MANIFEST)
            if (
                isinstance(stated, dict)
                and isinstance(stated.get("format"), int)
                and stated["format"] < _FORMAT
            ):
                return "was written by an older lingraft in another format"
            return f"has no {MANIFEST} that can be read"
        if (manifest.phase, manifest.step) != (self._phase, step):
            return "is of another step or phase than it says"
        files = _files(checkpoint)
        for name in sorted(files.keys() | manifest.files.keys()):
            path, expected = files.get(name), manifest.files.get(name)
            if path is None:
                return f"has no {name}"
            if expected is None or path.is_symlink() or not path.is_file():
                return f"holds {name}, which is not its own"
            if path.stat().st_size != expected.bytes:
                return f"has {path.stat().st_size} of the {expected.bytes} bytes of {name}"
            try:
                if hash_file(path) != expected.sha256:
                    return f"has other bytes in {name} than were written"
            except OSError as error:
                return f"has {name}, which cannot be read ({error.strerror})"
        state = _json_in(checkpoint / _STATE)
        if not isinstance(state, dict) or state.get("global_step") != step:
            return f"is of another step than its {_STATE}"
        return None

    def _set_others_aside(self) -> None:
        """Keep checkpoints of another phase, such as one with another learning rate, and say what they are."""
        was = _json_in(self.folder / _PHASE)
        if was is None:
            remove(self.folder / _PHASE)  # whatever it is
        if was != self._identity:
            for checkpoint in _checkpoints(self.folder).values():
                manifest = _manifest_of(checkpoint)
                if manifest is not None and manifest.phase != self._phase:
                    aside = self.folder / f"{_OTHER}{manifest.phase}"
                    make_folder(aside)
                    if isinstance(was, dict):
                        write_json_atomically(aside / _PHASE, was)
                    remove(aside / checkpoint.name)
                    checkpoint.rename(aside / checkpoint.name)
            write_json_atomically(self.folder / _PHASE, self._identity)
        own = self.folder / f"{_OTHER}{self._phase}"
        for step, checkpoint in _checkpoints(own).items():
            remove(self.path_of(step))
            checkpoint.rename(self.path_of(step))
        remove(own)


def make_folder(folder: Path) -> None:
    """Make the folder of checkpoints where there is none; links in its place and inside, which lead elsewhere, go."""
    if folder.is_symlink() or not folder.is_dir():
        remove(folder)
        folder.mkdir(parents=True)
    for path in folder.iterdir():
        if path.is_symlink():
            path.unlink()


def _differences(was: object, now: Mapping[str, Any]) -> str:
    """Return what differs between two identities, with both values where a reader knows them."""
    parts = []
    before: Mapping[str, Any] = was if isinstance(was, dict) else now
    for name, new in now.items():
        old = before.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            parts += [f"{own} was {old.get(own)}, not {new[own]}" for own in new if old.get(own) != new[own]]
        elif old != new:
            parts.append(f"{name} was {old}, not {new}" if isinstance(new, int) else f"other {name}")
    return "; ".join(parts) or "nothing says what differs"


def _manifest_of(checkpoint: Path) -> Manifest | None:
    """Return a checkpoint's manifest; None where it is missing or no manifest."""
    try:
        path = checkpoint / MANIFEST
        manifest = from_json(Manifest, None if path.is_symlink() else _json_in(path))
    except (ValueError, RecursionError):
        return None
    is_named = re.fullmatch("[0-9a-f]{16}", manifest.phase)  # it becomes a folder's name
    return manifest if is_named and manifest.format == _FORMAT else None


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of a folder by their steps, whole or not."""
    if not folder.is_dir():
        return {}
    found = ((re.fullmatch(r"checkpoint-([1-9][0-9]{0,14})", path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in found if match}


def _files(checkpoint: Path) -> dict[str, Path]:
    """Return all that lies in a checkpoint but folders and its manifest, by path inside."""
    return {
        path.relative_to(checkpoint).as_posix(): path
        for path in checkpoint.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and path != checkpoint / MANIFEST
    }


def _json_in(path: Path) -> object:
    """Return a file's content; None where it is missing or torn."""
    try:
        content: object = read_json(path)
    except (OSError, ValueError):
        return None
    return content
