"""A task file of somebody else is data: it runs no code unasked, and its templates stay within bounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import TemplateError
from lm_eval.api.registry import metric_registry

from lingraft.config.schema import EvaluationTask
from lingraft.errors import ConfigError, EvaluationError
from lingraft.evaluate.expressions import Expression
from lingraft.evaluate.loading import load_tasks, task_identities
from lingraft.evaluate.task_files import check_task_file, harness_metrics
from lingraft.text import templates
from lingraft.text.templates import Sandbox

ESCAPES = [
    "{{ cycler.__init__.__globals__.os.system('touch HIT') }}",
    "{{ lipsum.__globals__['os'].system('touch HIT') }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ range.__globals__ }}",
    "{{ dict.mro() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ ['{a.__class__}']|map('format', a='')|list }}{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ words.append(3) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]
BOMBS = [
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ [0] * 10**9 }}",
    "{{ range(10**9)|list }}",
    "{{ 2 ** (10 ** 9) }}",
    "{{ 'a'|center(10**10) }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ ('\t' * 10000).expandtabs(10**7) }}",
    "{{ ('a' * 10**6).replace('', 'b' * 10**6) }}",
    "{{ ('a' * 10**6)|replace('a', 'b' * 10**6) }}",
    "{{ ('a' * 10**6).join(range(100000)|map('string')) }}",
    "{{ 'a'.translate({97: 'b' * 10**6 * 10**3}) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%.1000000000f'|format(1.0) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=10**9) }}",
    "{{ 'x'|indent(10**9) }}{{ [1, 2]|tojson(indent=10**9) }}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}" + "text " * 1000 + "{% endfor %}",
    "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for i in range(9999) recursive %}{% if loop.depth < 2 %}{{ loop(range(99999)) }}{% endif %}{% endfor %}",
    "{% for i in range(100000) %}{{ '" + "text " * 1000 + "' }}{% endfor %}",
    "{{ (1).to_bytes(10**9, 'big') }}",
    "{{ 'a'.encode().ljust(10**9) }}",
    "{{ '%(a)1000000000d' % {'a': 1} }}",
    "{{ ('{0:9999}' * 10**5).format(1) }}",
    "{% set b = 'a' * 10**5 %}{{ ('{0}' * 10**5).format(b) }}",
    *(
        f"{{% set ns = namespace(x={start}) %}}{{% for i in range(500) %}}{{% set ns.x = {grown} %}}{{% endfor %}}"
        "{{ ns.x }}"
        for start, grown in (
            ("'a'", "ns.x ~ ns.x"),
            ("'a'", "ns.x + ns.x"),
            ("'a'", "'%s%s' % (ns.x, ns.x)"),
            ("'a'", "'{}{}'.format(ns.x, ns.x)"),
            ("'a'", "'%s%s'|format(ns.x, ns.x)"),
            ("'a'", "[ns.x, ns.x]|join"),
            ("[1]", "ns.x + ns.x"),
            ("[1]", "[ns.x, ns.x]"),
            ("[1]", "(ns.x, ns.x)"),
            ("[1]", "{'a': ns.x, 'b': ns.x}"),
            ("3", "ns.x * ns.x"),
        )
    ),
]
SECONDS = 60  # a bomb that is not bounded takes hours, or all memory


@pytest.mark.parametrize("template", ESCAPES)
def test_no_template_reaches_python(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sandbox = Sandbox()
    with pytest.raises((TemplateError, TypeError)):
        sandbox.from_string(template).render(words=["a"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("template", BOMBS)
def test_no_template_fills_the_memory_or_loops_for_hours(template: str) -> None:
    began = time.process_time()
    with pytest.raises((TemplateError, OverflowError, RecursionError)):
        Sandbox().from_string(template).render(words=["a"])
    assert time.process_time() - began < SECONDS


def test_no_template_takes_hours_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sandbox, "most_seconds", 0.2)
    slow = "{% set x = 'a' * 999999 %}{% for i in range(99999) %}{% if 'ab' in x %}{% endif %}{% endfor %}"
    with pytest.raises(TemplateError, match="takes more than"):
        Sandbox().from_string(slow).render()


def test_a_pattern_that_takes_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_REGEX_SECONDS", 0.2)
    with pytest.raises(TemplateError, match="takes more than"):
        Sandbox().from_string("{{ ('a' * 40)|regex_replace('(a|aa)+$x', '') }}").render()


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("{{ a }}, {{ words|join('-') }}\n", "A, x-y\n"),
        ("{% for w in words %}{{ loop.index }}{{ w }}{{ ', ' if not loop.last }}{% endfor %}", "1x, 2y"),
        ("{{ a ~ 1 ~ none }}{{ words[0] + 'z' }}{{ 2 ** 10 }}", "A1Nonexz1024"),
        (
            "{% set ns = namespace(i=0) %}{% for w in words %}{% set ns.i = ns.i + 1 %}{% endfor %}{{ ns.i }}",
            "2",
        ),
        ("{{ '%05d' % 7 }}{{ '{:>3}'.format(a) }}{{ '%s!'|format(a) }}", "00007  AA!"),
        ("{{ absent|default('d') }}{{ a.strip().split('x')[0]|lower }}{{ words.index('y') }}", "da1"),
        ("{{ 'abc'|regex_replace('b+', '\\\\g<0>!') }}{{ words|tojson }}", 'ab!c["x", "y"]'),
        ("{% for i in range(60) %}{{ words|map('upper')|join }}{% endfor %}", "XY" * 60),
        ("{{ (a * 100000)|replace('A' * 200, a)|length }}", "500"),
        (
            "{{ 'call %s at 0123456789'|format(a) }}{{ '{} {:>3}'.format(123456789, a) }}",
            "call A at 0123456789123456789   A",
        ),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(a) }}{{ words|map('upper')|list }}", "<A>['X', 'Y']"),
    ],
)
def test_ordinary_templates_are_rendered_as_ever(template: str, rendered: str) -> None:
    sandbox = Sandbox()
    for _ in range(2):  # the second time compiled already
        assert sandbox.from_string(template).render(a="A", words=["x", "y"]) == rendered


@pytest.mark.parametrize(
    "source",
    [
        "cycler.__init__",
        "a.__class__",
        "first_row.__globals__",
        "'a' * 10 ** 10",
        "range(10 ** 9)|list",
        "(" * 5000,
    ],
)
def test_an_expression_of_a_study_is_bounded_as_well(source: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        Expression(source, "rows")({"a": "x"}, 0)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


TASK = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{ question }}",
    "doc_to_target": "{{ answer }}",
    "generation_kwargs": {"until": ["\n"]},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
Write = Callable[..., EvaluationTask]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a task file with changes and further text; the code beside it makes a file when it is imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    for name in ("evil", "evil_metric/evil_metric"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text("from pathlib import Path\nPath('HIT').touch()\nscore = str\n")

    def written(more: str = "", **changes: object) -> EvaluationTask:
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**TASK, **changes}) + more)
        return EvaluationTask(task="mine.yaml")

    return written


def test_a_task_file_without_code_is_loaded(write: Write, tmp_path: Path) -> None:
    (task,) = load_tasks(write(), tmp_path)
    assert task.doc_to_text(task.eval_docs[0]) == "q"


CODE = [
    ("process_results: !function evil.score\n", {}, "`!function evil.score`"),
    ("process_docs: !function os.system\n", {}, "`!function os.system`"),
    ("class: !function evil.score\n", {}, "`!function evil.score`"),
    ("fewshot_config: {samples: !function evil.score}\n", {}, "`!function evil.score`"),
    ("include: other.yaml\n", {}, "other.yaml:1"),
    ("", {"metric_list": [{"metric": "evil_metric", "aggregation": "mean"}]}, "'evil_metric'"),
    ("", {"metric_list": [{"metric": "exact_mach"}]}, "(did you mean 'exact_match'?)"),
    ("", {"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "metric_list"),
    ("", {"dataset_path": "pandas"}, "'pandas'"),
    ("", {"dataset_path": "sql"}, "'sql'"),
    ("", {"unsafe_code": True}, "unsafe_code"),
    ("", {"use_prompt": "prompts.yaml:a"}, "use_prompt"),
    ("", {"dataset_kwargs": {"data_files": "reference://::evil.json"}}, "reference://"),
    ("", {"dataset_kwargs": {"data_files": {"test": ["github://a@b"]}}}, "github://"),
    ("", {"dataset_kwargs": {"cache_dir": "/etc", "data_files": "rows.jsonl"}}, "'cache_dir'"),
    ("", {"dataset_kwargs": {"trust_remote_code": True, "data_files": "rows.jsonl"}}, "runs code"),
]


@pytest.mark.parametrize(("more", "changes", "says"), CODE)
def test_what_runs_code_is_refused_before_anything_is_imported(
    write: Write, tmp_path: Path, more: str, changes: dict[str, object], says: str
) -> None:
    (tmp_path / "other.yaml").write_text("doc_to_text: !function evil.score\n")
    task = write(more, **changes)
    with pytest.raises(EvaluationError, match=r"mine\.yaml cannot be loaded") as caught:
        load_tasks(task, tmp_path)
    assert says in str(caught.value)
    assert "trust_remote_code: true" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "HIT").exists()


def test_a_function_is_run_where_it_is_trusted(write: Write, tmp_path: Path) -> None:
    task = write("doc_to_text: !function evil.score\n")
    text = (tmp_path / "mine.yaml").read_text().replace("doc_to_text: '{{ question }}'\n", "")
    (tmp_path / "mine.yaml").write_text(text)
    load_tasks(task, tmp_path, trust_remote_code=True)
    assert (tmp_path / "HIT").exists()


def rendered(tasks: list[Any]) -> None:
    for task in tasks:
        task.doc_to_prefix(task.eval_docs[0])


@pytest.mark.parametrize("template", [*ESCAPES[:4], BOMBS[0]])
@pytest.mark.parametrize("field", ["doc_to_text", "doc_to_target", "gen_prefix"])
def test_its_templates_are_rendered_in_the_sandbox_trusted_or_not(
    write: Write, tmp_path: Path, field: str, template: str
) -> None:
    task = write(**{field: template})
    for trusted in (False, True):
        with pytest.raises((EvaluationError, TemplateError)):
            rendered(load_tasks(task, tmp_path, trust_remote_code=trusted))
    assert not (tmp_path / "HIT").exists()


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is no task"),
        ("- a\n", "is no task"),
        ("task: {a\n", "not valid YAML"),
        ("task: !!python/object/apply:os.system [touch HIT]\n", "python/object"),
        (ALIASES, "aliases"),
        ("task: a\ninclude: mine.yaml\n", "includes itself"),
        ("task: a\ninclude: absent.yaml\n", "no such file"),
        ("task: a\ninclude: [3]\n", "include is [3]"),
        ("task: a\ndataset_kwargs: [x]\n", "dataset_kwargs"),
        ("task: a\ndataset_kwargs: {data_files: [3]}\n", "data_files"),
        ("task: a\nnum_fewshot: 010\n", "octal"),
        ("task: a\ntask: b\n", "twice"),
        ('task: "a\\0b"\n', "control character"),
        (b"\xff\xfet\x00", "UTF-16"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_task_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    for trusted in (False, True):
        with pytest.raises(ConfigError) as caught:
            check_task_file(path, trust_remote_code=trusted)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(EvaluationError):
        load_tasks(EvaluationTask(task="mine.yaml"), tmp_path)
    assert not (tmp_path / "HIT").exists()


def test_the_harness_s_own_files_may_name_their_functions(write: Write, tmp_path: Path) -> None:
    import lm_eval

    ifeval = Path(lm_eval.__file__).parent / "tasks" / "ifeval" / "ifeval.yaml"
    (tmp_path / "mine.yaml").write_text(f"include: {ifeval}\ntask: mine\n")
    check_task_file(tmp_path / "mine.yaml", trust_remote_code=False)
    (tmp_path / "mine.yaml").write_text(f"include: {ifeval}\ntask: mine\nclass: !function evil.score\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml:3"):
        check_task_file(tmp_path / "mine.yaml", trust_remote_code=False)


def test_the_metrics_of_the_harness_are_all_known() -> None:
    import lm_eval.api.metrics  # noqa: F401 (which fills the registry)

    assert harness_metrics() == frozenset(metric_registry)


def test_files_are_hashed_although_they_cannot_be_loaded(tmp_path: Path) -> None:
    from lingraft.config.schema import Evaluation

    (tmp_path / "mine.yaml").write_text("task: {a\n")
    asked = Evaluation(task_ability=(EvaluationTask(task="mine.yaml"),))
    assert len(task_identities(asked, tmp_path)) == 1
