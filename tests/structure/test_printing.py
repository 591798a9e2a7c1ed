"""Text reaches the terminal through one module, which shows what is not ours as text."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "lingraft"
PRINTS = {
    "print",
    "echo",
    "secho",
    "rich_print",
    "print_exc",
    "print_exception",
    "input",
    "confirm",
    "prompt",
}
STREAMS = {"sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"}
ALLOWED = {
    "cli/output.py": "the place",
    "study/stage_worker.py": "sends what a stage prints into its log",
    "train/processes.py": "lines of a worker, which its launcher reads",
}


def touches(source: str) -> list[str]:
    """Return what of a module's source writes to a terminal by itself."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            if name in PRINTS and not (isinstance(called, ast.Attribute) and name == "prompt"):
                found.append(f"line {node.lineno}: {name}()")
        if isinstance(node, ast.Attribute) and f"{ast.unparse(node.value)}.{node.attr}" in STREAMS:
            found.append(f"line {node.lineno}: sys.{node.attr}")
    return found


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda one: one.relative_to(SOURCE).as_posix()
)
def test_no_other_module_prints(path: Path) -> None:
    name = path.relative_to(SOURCE).as_posix()
    found = touches(path.read_text(encoding="utf-8"))
    assert (found != []) is (name in ALLOWED), found


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "typer.echo('x')",
        "console.print('x')",
        "import sys\nsys.stderr.write('x')",
        "click.secho('x')",
    ],
)
def test_each_way_of_printing_is_found(source: str) -> None:
    assert touches(source)
