"""The harness's private names, and patches of it, stand in one module: another version is met there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "lingraft"
COMPAT = SOURCE / "evaluate" / "lm_eval_compat.py"
MODULES = [path for path in sorted(SOURCE.rglob("*.py")) if path != COMPAT]
OWN = {"self", "cls"}
OTHERS_PRIVATE = {"rows._fingerprint"}  # of the datasets library


def touches(source: str) -> list[str]:
    """Return where a module imports private names of lm_eval, replaces its names, or reads private attributes."""
    tree = ast.parse(source)
    found, imported = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lm_eval":
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            imported |= {alias.asname or alias.name for alias in node.names}
            found += [f"{node.lineno}: import of {name}" for name in names if name.startswith("_")]
        elif isinstance(node, ast.Import):
            imported |= {
                alias.asname or "lm_eval" for alias in node.names if alias.name.split(".")[0] == "lm_eval"
            }
        elif isinstance(node, ast.Constant) and str(node.value).startswith("lm_eval."):
            found.append(f"{node.lineno}: {node.value!r}, as for a patch")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        text = ast.unparse(node)
        base = text.split(".")[0]
        if isinstance(node.ctx, ast.Store) and base in imported:
            found.append(f"{node.lineno}: assignment to {text}")
        if (
            imported
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and ast.unparse(node.value) not in OWN
        ):
            found.append(f"{node.lineno}: {text}")
    return [one for one in found if one.split(": ")[1] not in OTHERS_PRIVATE]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_other_module_touches_what_is_private_to_the_harness(path: Path) -> None:
    assert touches(path.read_text(encoding="utf-8")) == []


def test_our_model_calls_no_private_method_of_the_harness_s() -> None:
    from lm_eval.models.huggingface import HFLM

    tree = ast.parse((SOURCE / "evaluate" / "in_memory.py").read_text(encoding="utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in (*OWN, "super()")
    }
    assert not {name for name in (own | used) & set(dir(HFLM)) if name.startswith("_") and name[1] != "_"}


@pytest.mark.parametrize(
    "source",
    [
        "from lm_eval.tasks._yaml_loader import load_yaml",
        "from lm_eval.tasks import TaskManager\nTaskManager()._index",
        "import lm_eval.api.task as tasks\ntasks.tqdm = None",
        "patch('lm_eval.evaluator.get_git_commit_hash')",
    ],
)
def test_the_test_sees_each_kind_of_touch(source: str) -> None:
    assert len(touches(source)) == 1


def test_the_module_itself_touches_private_names() -> None:
    assert touches(COMPAT.read_text(encoding="utf-8"))
