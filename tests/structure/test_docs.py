"""What the documentation shows works: study files validate, commands exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lingraft.config.load import load_study
from lingraft.config.recipes import recipes
from lingraft.config.schema import Study

Lingraft = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^ *```\s*$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


@dataclass(frozen=True)
class Example:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    body: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def examples(*languages: str) -> list[Example]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        for block in BLOCK.finditer(text):
            line = text.count("\n", 0, block.start()) + 1
            body = re.sub(rf"^{block['indent']}", "", block["body"], flags=re.MULTILINE)
            found.append(Example(page, line, block["language"], body))
    return [example for example in found if example.language in languages]


def commands() -> list[tuple[Example, str]]:
    """Return every line after a `$ ` prompt in the pages' console blocks."""
    return [
        (example, line[2:])
        for example in examples("console", "bash", "sh")
        for line in example.body.splitlines()
        if line.startswith("$ ")
    ]


STUDIES = [example for example in examples("yaml") if re.search(r"^phases:", example.body, re.MULTILINE)]


@pytest.mark.parametrize("example", STUDIES, ids=str)
def test_a_study_file_in_the_documentation_validates(example: Example, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(example.body, encoding="utf-8")
    assert len(load_study(path, overrides=[]).phases) >= 2


@pytest.mark.parametrize("example", examples("yaml"), ids=str)
def test_every_piece_of_a_study_file_is_yaml(example: Example) -> None:
    content = yaml.safe_load(example.body)
    if isinstance(content, dict) and "phases" not in content and set(content) <= set(Study.model_fields):
        skeleton = {
            "name": "piece",
            "model": "a/model",
            "phases": [{"name": n, "data": {"d": {"source": n}}} for n in "ab"],
        }
        Study.model_validate(skeleton | content)


TRAIN = ("docs/python.md", "docs/trainer.md")  # their examples take tens of seconds


def is_slow(example: Example) -> bool:
    return str(example).startswith(TRAIN) or "embedded:smollm2" in example.body


@pytest.mark.parametrize(
    "example",
    [pytest.param(one, marks=[pytest.mark.slow] if is_slow(one) else []) for one in examples("python")],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_a_python_example_in_the_documentation_runs(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(example.body, str(example), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("example", "line"), commands(), ids=str)
def test_a_command_in_the_documentation_exists(example: Example, line: str, lingraft: Lingraft) -> None:
    words = shlex.split(line, comments=True)
    words = words[words.index("lingraft") :] if "lingraft" in words else words
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in words[1:] if "=" not in word]
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    elif words[0] == "lingraft":
        check_lingraft(words[1:], lingraft)


def check_lingraft(words: list[str], lingraft: Lingraft) -> None:
    command = [] if words[0].startswith("-") else words[: 2 if words[0] == "show" else 1]
    done = lingraft(*command, "--help")
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    if not command:
        assert words[0] in shown
        return
    for word in words[1:]:
        if word.startswith("--"):
            assert word.split("=")[0] in shown, f"lingraft {words[0]} has no option {word}"
    for word in words[1:]:
        if word.startswith("recipes/"):
            assert Path(word).stem in recipes()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_to_files(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_every_page_has_its_place_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert not [page for page in pages if page not in navigation]


def test_the_readme_shows_command_and_table_place_within_25_lines() -> None:
    head = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:25])
    assert "make quickstart" in head
    assert "| similar | plain |" in head


@pytest.mark.parametrize(
    "section", ["When to use it", "What it costs", "What its paper found", "What we measured"]
)
@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs" / "strategies").glob("*.md")), ids=lambda page: page.stem
)
def test_a_strategy_page_answers_the_four_questions(page: Path, section: str) -> None:
    assert page.stem == "index" or f"## {section}" in page.read_text(encoding="utf-8")
