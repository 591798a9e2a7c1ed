"""Whatever a study file or an override holds is a study, or is refused by lines that say where; nothing is run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from lingraft.cli.main import _run
from lingraft.config.load import load_study as load_file
from lingraft.config.schema import Study
from lingraft.errors import ConfigError, LingraftError
from lingraft.study.checks import load_study

STUDY = """\
name: small
model: some/model
phases:
  - name: one
    data:
      english: {source: "worldbook:lookup/en", limit: 20}
  - name: two
    data:
      german: {source: "worldbook:lookup/de", limit: 20}
    strategies: [plain]
held_out: 2
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(content: str | bytes, *overrides: str) -> str:
    """Return the message by which a study is refused by `lingraft validate`'s loading."""
    path = Path("study.yaml")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load_study(path, overrides, Path())
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("010", "YAML reads 010 as 8 (an octal number, as it begins with 0); write 10 or 8"),
        ("01", "write 1, or '01'"),
        ("-017", "YAML reads -017 as -15"),
        ("1:30", "YAML reads 1:30 as 90 (base 60); write 90"),
        ("1:30.5", "YAML reads 1:30.5 as 90.5"),
        ("!!int abc", "the tag !!int does not fit 'abc'"),
        ("!!bool maybe", "the tag !!bool does not fit 'maybe'"),
        ("!!binary YQ==", "binary"),
        ("!!set {a}", "set"),
        ("!!python/object/apply:os.system [touch HIT]", "python/object"),
        ("9" * 5000, "more than 300 digits"),
        (".inf", "finite"),
        (".nan", "finite"),
        ("yes", "YAML reads yes and on as true"),
        ("2024-01-01", "'2024-01-01'"),
        ("0o17", "'0o17'"),
        ('"1\\0"', "control character"),
        ("&x [*x]", "inside the very value"),
    ],
)
@pytest.mark.parametrize("by", ["file", "override"])
def test_a_value_that_is_not_what_it_looks_like_is_refused(value: str, says: str, by: str) -> None:
    if by == "file":
        message, place = refusal(STUDY.replace("held_out: 2", f"held_out: {value}")), "study.yaml:11: "
    else:
        message, place = refusal(STUDY, f"held_out={value}"), "override 'held_out="
    assert message.startswith(place)
    assert says in message
    assert len(message.splitlines()) == 1
    assert not Path("HIT").exists()


@pytest.mark.parametrize(
    ("value", "held_out"), [("0x10", 16), ("1_000", 1000), ("'10'", 10), ("+7", 7), ("0", 0)]
)
def test_a_number_that_can_mean_one_thing_is_taken(value: str, held_out: int) -> None:
    Path("study.yaml").write_text(STUDY.replace("held_out: 2", f"held_out: {value}"))
    assert load_file("study.yaml").held_out == held_out


def test_a_rate_without_a_point_is_a_number() -> None:  # which YAML reads as text
    Path("study.yaml").write_text(STUDY + "training: {learning_rate: 1e-5}\n")
    assert load_file("study.yaml").training.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (one, "a name is letters, digits")
        for one in ("a/b", "..", ".", "...", "''", "a\\b", '"a\\nb"', '"\\u202e"', "'a '", "~x", "-a", "../x", "/x")
    ]
    + [("a" * 300, "at most 80"), ("CON", "Windows"), ("nul.txt", "Windows"), ("Com1", "Windows"), ("a.", "Windows")]
    + [("no", "quotation marks ('no')"), ("1_0", "quotation marks"), ('"\\ud800"', "control character")],
)  # fmt: skip
def test_a_name_is_never_a_path(name: str, says: str) -> None:
    message = refusal(STUDY.replace("name: small", f"name: {name}"))
    assert message.startswith("study.yaml:1: ")
    assert says in message
    assert len(message.splitlines()) == 1


def test_a_date_is_a_name_like_any_other() -> None:
    Path("study.yaml").write_text(STUDY.replace("name: small", "name: 2024-01-01"))
    assert load_file("study.yaml").name == "2024-01-01"


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "x0: &x0 {k: 1}\n" + "".join(
    f"x{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 9)}]}}\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "study.yaml:1: the file is empty"),
        ("a\n", "one value"),
        (STUDY.encode("utf-16"), "UTF-16"),
        (STUDY.replace("small", "caf\u00e9").encode("latin-1"), "UTF-8"),
        (STUDY + "# " + "x" * 2_000_000, "larger than"),
        (STUDY + "x: " + "[" * 5000, "nested too deeply"),
        (STUDY + LAUGHS, "aliases"),
        (STUDY + MERGES, "aliases"),
        (STUDY + "x: &x {<<: *x}\n", "inside the very value"),
        (STUDY + "training: {<<: 3}\n", "study.yaml:12: not valid YAML"),
        (STUDY + "held_out: 3\n", "study.yaml:12: the key 'held_out' stands twice"),
        (STUDY + "7: 3\n", "study.yaml:12: a key must be text"),
        (
            STUDY.replace("german:", "no:"),
            "study.yaml:9: a key must be text, and YAML reads 'no' as a truth value",
        ),
        (STUDY + "\tx: 1\n", "tab"),
        (STUDY + "---\n" + STUDY, "study.yaml:12: "),
        ("name: a\0b\n", "#x0000"),
    ],
)
def test_a_file_that_is_none_is_refused_at_once(content: str | bytes, says: str) -> None:
    began = time.process_time()
    message = refusal(content)
    assert says in message
    assert len(message.splitlines()) == 1
    assert time.process_time() - began < 30


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter() -> None:
    Path("study.yaml").write_bytes(b"\xef\xbb\xbf" + STUDY.replace("\n", "\r\n").encode())
    assert load_file("study.yaml").name == "small"


@pytest.mark.parametrize(
    "name", ["/dev/zero", "folder", "a" * 400, "loop", "training.epochs=2", "no/such.yaml"]
)
def test_what_is_no_file_is_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    assert _run(["validate", name]) == 2
    printed = capfd.readouterr().err
    assert printed.startswith("ConfigError: ")
    assert len(printed.splitlines()) == 1
    assert ("override" in printed) == ("=" in name)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model", "~nouser/x", "there is no user 'nouser'"),
        ("model", "a" * 5000, "255 bytes"),
        ("model", "./absent", "there is no such folder"),
        ("model", "folder", "holds no config.json"),
        ("model", "study.yaml", "is a file"),
        ("model", "embedded:smolm", "smollm2-135m"),
        ("phases.two.data.german.source", "~nouser/x.jsonl", "there is no user 'nouser'"),
        ("phases.two.data.german.source", "a" * 5000, "nor a hub id"),
        ("phases.two.data.german.source", "absent.jsonl", "there is no such file"),
        ("phases.two.data.german.source", "'{language}.jsonl'", "no file matches"),
        ("phases.two.data.german.source", "worldbook:nope/de", "'nope'"),
        ("phases.two.data.german.english", "worldbook:lookup/xx", "'xx'"),
        ("phases.two.strategies", "[{spectrum: {plan: absent.yaml}}]", "cannot be read"),
        ("phases.two.strategies", "[{spectrum: {plan: ~nouser/x}}]", "there is no user"),
        ("phases.two.strategies", "[{lora: {rank: yes}}]", "must be a number"),
        ("phases.two.strategies", "[{lora: {alpha: .inf}}]", "finite"),
        ("evaluate.task_ability", "[absent.yaml]", "no such file"),
        (
            "evaluate.task_ability",
            "[{task: hellaswag, metric: bleu}]",
            "there is no metric 'bleu'. Options: acc",
        ),
        ("evaluate.task_ability", "[{task: gsm8k, filter: loose}]", "there is no filter 'loose'"),
        ("evaluate.task_ability", "[{task: hellaswag, cluster: '(('}]", "no Jinja expression"),
        ("evaluate.judge", "{url: 'ftp://x', model: m}", "http://"),
        ("training.report_to", "[no_tracker]", "is not a tracker"),
        ("measures", "[mpd, mpd]", "stands 2 times"),
    ],
)
def test_what_is_not_there_is_known_without_reading_data(field: str, value: str, says: str) -> None:
    Path("folder").mkdir()
    message = refusal(STUDY, f"{field}={value}")
    assert message.startswith("override ")
    assert says in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainig.epochs=2", "Did you mean 'training'"),
        ("training.epochs=", "is None"),
        ("=3", "key=value"),
        ("training..epochs=2", "key=value"),
        ("phases[9].name=x", "there is no '9' here"),
        ("phases.tow.name=x", "Did you mean 'two'"),
        ("name.x=3", "has no parts"),
        ("held_out.x=3", "has no parts"),
        ("seeds=[1", "not valid YAML"),
        ("seeds=!!python/object/apply:os.system [touch HIT]", "python/object"),
        ("seeds=" + "[" * 5000, "nested too deeply"),
        ("model=null", "model: is missing"),
        ("phases.two.name=one", "2 phases are named 'one'"),
        ("seeds=[1, 1]", "seeds: 1 stands 2 times"),
        ("phases.two.data=null", "phases[1]"),
        ("held_out=0", "measures: drift needs prompts"),  # of a line that is right by itself
    ],
)
def test_what_an_override_breaks_is_its_own_fault(override: str, says: str) -> None:
    message = refusal(STUDY + "measures: [drift]\n", override)
    assert [line for line in message.splitlines() if not line.startswith("override '")] == []
    assert says in message


def test_an_override_that_would_be_lost_is_refused() -> None:
    assert "would undo" in refusal(STUDY, "training.epochs=1", "training.epochs=2")
    assert "would undo" in refusal(STUDY, "training.epochs=2", "training={epochs: 1}")


def test_an_override_changes_no_alias_of_the_value() -> None:
    aliased = STUDY.replace("name: small", "name: small\ntraining: &t {epochs: 2}")
    Path("study.yaml").write_text(aliased.replace("strategies: [plain]", "training: *t"))
    study = load_file("study.yaml", ["training.epochs=3"])
    assert (study.training.epochs, study.phases[1].training.epochs) == (3, 2)


def test_all_problems_come_in_one_message_sorted_by_line() -> None:
    wrong = STUDY.replace("[plain]", "[lorra]").replace("limit: 20", "limit: 010", 1)
    wrong = wrong.replace("held_out: 2", "held_out: -2\nkeeep: all\nmeasures: [mpd, dess]")
    wrong += "evaluate: {task_ability: [absent.yaml]}\n"
    lines = refusal(wrong, "trainig.epochs=2", "phases.tow.name=x").splitlines()
    numbers = [int(line.split(":")[1]) for line in lines if line.startswith("study.yaml:")]
    assert numbers == [6, 10, 11, 12, 13, 14]
    assert [line.split("'")[1] for line in lines[6:]] == ["phases.tow.name=x", "trainig.epochs=2"]


def fields(annotation: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the place of every field below a type, as overrides name it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield (*place, name)
            yield from fields(field.annotation, (*place, name))
        return
    inner = get_args(annotation)
    if get_origin(annotation) is dict:
        yield from fields(inner[1], (*place, "german" if place[-1] == "data" else "x"))
    elif get_origin(annotation) is tuple and inner:
        yield from fields(inner[0], (*place, "1" if place[-1] == "phases" else "0"))
    else:
        for branch in inner:
            yield from fields(branch, place)


FIELDS = sorted({place for place in fields(Study) if "parts" not in place})
WORDS = st.sampled_from(
    [
        "no", "010", "1:30", ".inf", "-.nan", "~", "{}", "[]", "[[]]", "{a: {b: c}}", "'", "!!int x",
        "&a *a", "*a", "<<", "=", "~nouser/x", "../..", "/dev/null", "worldbook:", "worldbook:/",
        "worldbook:lookup/,", "suite:", "suite:x", "embedded:", "{", "{,}", "{language}", "*", "**/[",
        "a@b", "!function os.system", "{{", "{{ 1 }}", "{% for %}", "x.yaml", "1e400",
        "[plain, {lora: {rank: -1}}]", "[{interpolate: {alpha: []}}]", "[{freeze_modules: {layers: 9-0}}]",
        "[[plain]]", "[{}]", "[null]", "[{x: null}]", "[{lora: 3}]", "[{lora: {name: ..}}]",
        "{x: {source: y}}", "{x: null}",
    ]
)  # fmt: skip
SCALARS = st.one_of(
    WORDS,
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.one_of(WORDS, st.integers(), st.text(max_size=5)), max_size=3).map(
        lambda one: yaml.safe_dump(one).strip()
    ),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(FIELDS), value=SCALARS)
def test_no_value_of_any_field_is_an_internal_error(place: tuple[str, ...], value: str) -> None:
    Path("study.yaml").write_text(STUDY)
    with contextlib.suppress(LingraftError):
        load_study("study.yaml", [f"{'.'.join(place)}={value}"], Path())
    assert {path.name for path in Path().iterdir()} == {"study.yaml"}


CONTENTS = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60).map(lambda one: one.encode("utf-8", "replace")),
    st.tuples(st.sampled_from(STUDY.splitlines()), st.text(max_size=10)).map(
        lambda both: STUDY.replace(both[0], both[0] + both[1]).encode("utf-8", "replace")
    ),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENTS)
def test_no_file_is_an_internal_error(content: bytes) -> None:
    Path("study.yaml").write_bytes(content)
    with contextlib.suppress(LingraftError):
        load_study("study.yaml", (), Path())
