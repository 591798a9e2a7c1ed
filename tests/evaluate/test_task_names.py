"""The names of tasks: what is unknown is said without loading anything, and the harness is asked once."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lingraft.evaluate import task_names
from lingraft.evaluate.task_names import HarnessName, harness_names, unknown_tasks

IFEVAL = HarnessName("TASK", "ifeval.yaml", ())


@pytest.fixture
def times_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[None]:
    """The cache folder is empty, and the harness knows one task; holds an entry for each time that it is asked."""
    asked: list[None] = []

    def ask(_: Path) -> dict[str, HarnessName]:
        asked.append(None)
        return {"ifeval": IFEVAL}

    monkeypatch.setenv("LINGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(task_names, "index_of", ask)
    monkeypatch.setattr(task_names, "_state_of", lambda _: "a state")
    return asked


def names_of_a_new_process() -> dict[str, HarnessName]:
    return harness_names.__wrapped__()


def test_the_harness_is_asked_once_and_again_when_a_file_of_it_changes(
    times_asked: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names_of_a_new_process() == names_of_a_new_process() == {"ifeval": IFEVAL}
    assert len(times_asked) == 1
    monkeypatch.setattr(task_names, "_state_of", lambda _: "another state")
    assert names_of_a_new_process() == {"ifeval": IFEVAL}
    assert len(times_asked) == 2


def test_a_state_is_another_one_when_a_file_changes(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine")
    states = [task_names._state_of(tmp_path)]
    (tmp_path / "mine.yaml").write_text("task: other")
    states.append(task_names._state_of(tmp_path))
    (tmp_path / "mine.yaml").rename(tmp_path / "other.yaml")
    states.append(task_names._state_of(tmp_path))
    assert len(set(states)) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "a state", "names": {"a": 1}}'])
def test_a_broken_file_of_names_is_made_again(content: str, times_asked: list[None], tmp_path: Path) -> None:
    names_of_a_new_process()
    (kept,) = (tmp_path / "cache").glob("*.json")
    kept.write_text(content)
    assert names_of_a_new_process() == {"ifeval": IFEVAL}
    assert len(times_asked) == 2


def test_without_a_folder_to_keep_them_in_the_harness_is_asked(
    times_asked: list[None], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    assert names_of_a_new_process() == {"ifeval": IFEVAL}
    assert len(times_asked) == 1


def test_names_that_are_kept_are_read_where_nothing_can_be_written(
    times_asked: list[None], tmp_path: Path
) -> None:
    names_of_a_new_process()
    shutil.rmtree(tmp_path / "cache" / "claims")
    (tmp_path / "cache" / "claims").write_text("so that nothing can be claimed")
    assert names_of_a_new_process() == {"ifeval": IFEVAL}
    assert len(times_asked) == 1


def test_names_that_cannot_be_written_are_asked_for_once(
    times_asked: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(task_names, "write_kept", full)
    assert names_of_a_new_process() == {"ifeval": IFEVAL}
    assert len(times_asked) == 1


def test_unknown_tasks_are_named_with_the_closest_ones_and_nothing_heavy_is_imported() -> None:
    harness_names()  # so that the other process finds them
    names = [
        "worldbook:lokup",
        "suite:papr",
        "ifevl",
        "absent.yaml",
        "ifeval",
        "xquad",
        "worldbook",
        "suite:quick",
    ]
    code = (
        "import sys; from lingraft.evaluate.task_names import unknown_tasks\n"
        f"for name, problem in unknown_tasks({names}).items(): print(name, problem)\n"
        "assert not {'torch', 'datasets', 'lm_eval', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["worldbook:lokup", "suite:papr", "ifevl", "absent.yaml"]
    assert "'lookup'" in lines[0]
    assert "'paper'" in lines[1]
    assert "Did you mean ifeval" in lines[2]


def test_a_yaml_file_is_looked_for_beside_the_study(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine")
    assert unknown_tasks(["mine.yaml"], tmp_path) == {}
    assert unknown_tasks(["mine.yaml"]) == {"mine.yaml": "there is no such file."}


@pytest.mark.slow
def test_the_names_are_those_of_the_harness_itself() -> None:
    from lm_eval.tasks import TaskManager

    index = TaskManager().task_index
    found = harness_names()
    assert found.keys() == index.keys()
    assert all(found[name].kind == one.kind.name for name, one in index.items())
    assert all(set(found[name].tags) == one.tags for name, one in index.items())


def harness_s_own(**options: Any) -> dict[str, HarnessName]:
    from lm_eval.tasks import TaskManager

    return {
        name: HarnessName(
            one.kind.name, None if one.yaml_path is None else str(one.yaml_path), tuple(sorted(one.tags))
        )
        for name, one in TaskManager(**options).task_index.items()
    }


def test_a_folder_is_indexed_as_the_harness_does(tmp_path: Path) -> None:
    files = {
        "a.yaml": "task: a\ntag:\n  - one\n  # a comment\n\n  - two\ndoc_to_text: '{{ x }}'\n",
        "b/base": "dataset_path: json\ntag: [one]\nprocess_docs: !function utils.f\n",
        "b/b.yaml": "\"task\": 'b'\n'include': base\ndoc_to_text: |\n  task: no\n  group: no\n",
        "c.yaml": "group: c\ntask:\n- a\n- task: b\n  tag: no\n",
        "d.yaml": "task: d\nclass: !function utils.D\n",
        "e.yaml": "task: a\ntag: three\n",  # whose name is taken
        "f.yaml": "include: absent\ntask: f\n",
        "g.yaml": "include: g.yaml\ntask: g\n",
        "h.yaml": "dataset_path: json\n",
        "__pycache__/i.yaml": "task: i\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = task_names.index_of(tmp_path)
    assert set(found) == {"a", "b", "c", "d", "one", "two"}
    assert found == harness_s_own(include_path=str(tmp_path), include_defaults=False)


@pytest.mark.slow  # the harness takes half a minute to parse its files
def test_the_harness_s_folder_is_indexed_as_the_harness_does() -> None:
    assert task_names.index_of(task_names.harness_folder()) == harness_s_own()
