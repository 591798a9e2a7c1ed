"""The names that tasks have: worldbook's, suites, tasks of lingraft's own, the harness's, YAML files.

Cheap: nothing here imports torch, and the harness's 14,000 YAML files are parsed once per installation of it.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import astuple, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from lingraft.claims import CLAIMS, claim
from lingraft.data.worldbook import FAMILIES
from lingraft.errors import ConfigError, did_you_mean
from lingraft.evaluate.catalogue import suite
from lingraft.records import cache_folder, read_kept, write_kept

TASKS_FOLDER = Path(__file__).resolve().parent / "tasks"
WORLDBOOK = "worldbook"
SUITE = "suite:"
OWN_TASKS = tuple(sorted({path.parent.name for path in TASKS_FOLDER.glob("*/*.yaml")} - {WORLDBOOK}))
"""Tasks of lingraft's own beside worldbook: the folders of `tasks/`."""


@dataclass(frozen=True)
class HarnessName:
    """What the harness knows under a name.

    Attributes:
        kind: TASK, PY_TASK, GROUP or TAG.
        path: Its YAML file; None: a tag has none.
        tags: Of a tag, the tasks that have it.
    """

    kind: str
    path: str | None
    tags: tuple[str, ...]


def unknown_tasks(names: Iterable[str], base_folder: Path = Path()) -> dict[str, str]:
    """Return, by name, why there is no such task or suite, with the closest known names.

    No data and no task are loaded.

    Args:
        names: As a study file writes them under `evaluate`: `worldbook`, `worldbook:FAMILY`, `suite:NAME`, a task of
            lingraft's own or of the harness, or a YAML file.
        base_folder: What YAML files are relative to.
    """
    problems = {}
    for name in dict.fromkeys(names):
        prefix, _, rest = name.partition(":")
        if name.startswith(SUITE):
            try:
                suite(rest)
            except ConfigError as error:
                problems[name] = str(error)
        elif prefix == WORLDBOOK:
            if rest and rest not in FAMILIES:
                problems[name] = f"worldbook has no family {rest!r}. {did_you_mean(rest, FAMILIES)}"
        elif is_task_file(name):
            if not (base_folder / name).is_file():
                problems[name] = "there is no such file."
        elif name not in OWN_TASKS and name not in harness_names():
            problems[name] = _unknown(name)
    return problems


@cache
def _unknown(name: str) -> str:
    known = [*OWN_TASKS, *harness_names()]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"Did you mean {', '.join(close)}? " if close else ""
    return f"is no task of lingraft's own and no harness task. {hint}There are {len(known)} names."


def is_worldbook(name: str) -> bool:
    """Return whether a name is worldbook's or that of a family of it."""
    return name.partition(":")[0] == WORLDBOOK


def is_task_file(name: str) -> bool:
    """Return whether a task is named by its YAML file."""
    return name.endswith((".yaml", ".yml"))


@cache
def harness_folder() -> Path:
    """Return the folder of the harness's own tasks."""
    spec = find_spec("lm_eval")
    assert spec is not None  # a dependency
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks"


@cache
def harness_names() -> dict[str, HarnessName]:
    """Return all that the harness knows, by name.

    That takes some seconds to find out. So the answer is kept in the user's cache folder, until a file of the
    harness changes. Of several processes one looks, and the others wait.
    """
    root = harness_folder()
    place = hashlib.sha256(str(root).encode()).hexdigest()[:8]
    path = cache_folder() / f"harness-{place}.json"
    state = _state_of(root)
    kept = _read(path, state)  # also from a folder that cannot be written to
    if kept is not None:
        return kept
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(claim(path.parent / CLAIMS / path.stem, patience=None))
        except (OSError, ConfigError):  # nothing can be written here
            return index_of(root)
        kept = _read(path, state)
        if kept is None:
            kept = index_of(root)
            content = {"state": state, "names": {name: astuple(one) for name, one in kept.items()}}
            with suppress(OSError):  # a full disk
                write_kept(path, content)
    return kept


def _state_of(root: Path) -> str:
    """Return a hash of the names, sizes and times of all files below a folder."""
    files = [
        (str(path), found.st_size, found.st_mtime_ns)
        for folder, _, names in os.walk(root)
        for path in (Path(folder, name) for name in names if not name.endswith(".pyc"))
        for found in (path.stat(),)
    ]
    return hashlib.sha256(repr(sorted(files)).encode()).hexdigest()


def _read(path: Path, state: str) -> dict[str, HarnessName] | None:
    """Return the names that a file holds; None: there is none, or it was written in another state of the harness."""
    try:
        content = read_kept(path)
        if content["state"] != state:
            return None
        return {
            name: HarnessName(kind, file, tuple(tags))
            for name, (kind, file, tags) in content["names"].items()
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def index_of(root: Path) -> dict[str, HarnessName]:
    """Return what the harness's `TaskManager` knows of a folder of tasks, in a sixth of its time.

    Of each YAML file only the keys that name it are parsed; a test holds the two equal.
    """
    files = [
        Path(folder, name)
        for folder, _, names in os.walk(root)
        if not folder.endswith(("__pycache__", ".ipynb_checkpoints"))
        for name in names
        if name.endswith(".yaml")
    ]
    found: dict[str, tuple[str, str | None, set[str]]] = {}
    for path in sorted(files, key=Path.as_posix):
        try:
            own = _naming_keys(path, ())
        except (OSError, ValueError, TypeError, yaml.YAMLError):  # which the harness leaves out as well
            continue
        kind = next((kind for key, kind in _KINDS.items() if key in own), None)
        name = own.get("group" if kind == "GROUP" else "task")
        if kind is None or not isinstance(name, str) or name in found:
            continue
        tags = own.get("tag") or []
        tags = tags if isinstance(tags, list) else [tags]
        found[name] = (kind, str(path), set(tags))
        for tag in tags if kind != "GROUP" else []:
            found.setdefault(tag, ("TAG", None, set()))[2].add(name)
    return {name: HarnessName(kind, file, tuple(sorted(tags))) for name, (kind, file, tags) in found.items()}


_KINDS = {"class": "PY_TASK", "group": "GROUP", "task": "TASK"}  # by the first key that a file has
_NAMING = re.compile(
    rb"^[\"']?(?:task|group|tag|include|class|task_list)[\"']?[ ]*:.*(?:\n(?:[ \t#-].*)?)*", re.MULTILINE
)


class _NamingLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads a function as the name that it has."""


_NamingLoader.add_constructor("!function", lambda _, node: str(node.value))


def _naming_keys(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    """Return the keys by which the harness knows a task file, those of what it includes among them."""
    if path in before:
        raise ValueError(f"{path} includes itself")
    own = dict(_own_keys(path))
    included = own.pop("include", [])
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        merged |= _naming_keys((path.parent / name).resolve(), (*before, path))
    merged.pop("task_list", None)
    return merged | own


@cache
def _own_keys(path: Path) -> dict[str, Any]:
    parts = _NAMING.findall(path.read_bytes())
    return yaml.load(b"\n".join(parts), Loader=_NamingLoader) or {}
