"""How is the source shaped? Lines, functions, private functions called once and untyped dictionaries, by package.

    python benchmarks/code_shape.py [FOLDER]

A function is any `def`, methods and nested ones included. Private ones (one leading underscore) count as called once
where their own file names them at most once beside the definition. No limit is enforced: the figures say where to look.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from dataclasses import astuple, dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "lingraft"
UNTYPED = "dict[str, Any]"


@dataclass
class Shape:
    """Counts of some files; lines include docstrings, comments and empty ones."""

    lines: int = 0
    functions: int = 0
    called_once: int = 0
    untyped: int = 0

    def __add__(self, other: Shape) -> Shape:
        return Shape(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        share = self.called_once / max(self.functions, 1)
        density = 1000 * self.untyped / max(self.lines, 1)
        return f"{self.lines:7,}  {self.functions:9,}  {share:11.1%}  {density:24.1f}"


def shape_of(path: Path) -> Shape:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    named = Counter(
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    )
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    private = [one.name for one in functions if one.name.startswith("_") and not one.name.startswith("__")]
    return Shape(
        lines=text.count("\n"),
        functions=len(functions),
        called_once=sum(named[name] <= 1 for name in private),
        untyped=text.count(UNTYPED),
    )


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE
    packages: dict[str, Shape] = defaultdict(Shape)
    for path in sorted(folder.rglob("*.py")):
        packages[path.relative_to(folder).parts[0]] += shape_of(path)
    print(f"{'package':24}  {'lines':>7}  functions  called once  {UNTYPED} / 1,000")
    for name, shape in packages.items():
        print(f"{name:24}  {shape}")
    print(f"{'all':24}  {sum(packages.values(), Shape())}")


if __name__ == "__main__":
    main()
