"""What is wrong is told in one line that names place and value, and ends with exit code 2: a table of wrong inputs.

Each case is a kind of its own. The commands run in this process, through the same function as the command line.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lingraft.cli.main import _run
from lingraft.errors import EXIT_WRONG_INPUT

GOOD = {"instruction": "Q", "output": "A"}
PHASES: list[dict[str, Any]] = [
    {"name": "one", "data": {"english": {"source": "worldbook:lookup/en", "limit": 8}}},
    {"name": "two", "data": {"new": {"source": "worldbook:lookup/es", "limit": 8}}},
]
Content = str | bytes | list[Any] | dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A wrong input.

    Attributes:
        name: Its kind.
        command: The command line; {model} stands for a tiny model's folder, {broken} for its spoilt copy.
        told: What one line of the message must hold: place and value.
        files: Content by name; lists become JSON lines, objects YAML.
        spoil: Breaks a copy of the model.
    """

    name: str
    command: str
    told: tuple[str, ...]
    files: dict[str, Content]
    spoil: Callable[[Path], object] | None = None


def rows(name: str, content: Content, *told: str, file: str = "x.jsonl", more: str = "") -> Case:
    command = f"show data {file} --model {{model}} --max-broken-share 0 {more}"
    return Case(name, command, told, {file: content})


def study(kind: str, *told: str, command: str = "validate study.yaml", **changes: Any) -> Case:
    content = {"name": "s", "model": "embedded:smollm2-135m", "phases": PHASES, **changes}
    return Case(kind, command, told, {"study.yaml": content})


def second(**changes: Any) -> list[dict[str, Any]]:
    return [PHASES[0], {**PHASES[1], **changes}]


def second_data(**changes: Any) -> list[dict[str, Any]]:
    return second(data={"new": {**PHASES[1]["data"]["new"], **changes}})


def run(kind: str, *told: str, files: dict[str, Content] | None = None, **changes: Any) -> Case:
    """Return a case of a study that runs on the tiny model and must stop before it trains."""
    case = study(kind, *told, command="run study.yaml model={model} --runs runs", **changes)
    return Case(case.name, case.command, case.told, {**case.files, **(files or {})})


def model(name: str, spoil: Callable[[Path], object], *told: str) -> Case:
    content = {"name": "s", "model": "m", "phases": PHASES}
    command = "run study.yaml model={broken} --runs runs"
    return Case(name, command, told, {"study.yaml": content}, spoil)


def edit_config(**changes: Any) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


FILES = [
    Case(
        "a file that is not there", "show data none.jsonl --model {model}", ("none.jsonl", "no such file"), {}
    ),
    rows("an empty file", "", "x.jsonl", "no rows"),
    rows("a file of another kind", "", "x.txt", "'.txt'", ".jsonl", file="./x.txt"),
    Case("a folder without data", "show data d/ --model {model}", ("d/", "no data file"), {"d/a.txt": ""}),
    Case(
        "a pattern that fits nothing", "show data d/*.csv --model {model}", ("d/*.csv", "no file matches"), {}
    ),
    Case(
        "a file name that is no language",
        "show data x-{{language}}.jsonl --model {model}",
        ("'nowhere'", "no language"),
        {"x-nowhere.jsonl": [GOOD]},
    ),
    rows(
        "bytes that are not UTF-8",
        b'{"instruction": "Q", "output": "\xff"}\n',
        "x.jsonl:1",
        "not UTF-8",
        "byte 33",
    ),
    rows("a UTF-16 file", "{}".encode("utf-16"), "x.jsonl:1", "UTF-16"),
    rows(
        "a byte order mark within",
        '{"prompt": "a", "completion": "b"}\n\ufeff{}\n',
        "x.jsonl:2",
        "byte order mark",
    ),
    rows("a line that is no JSON", '{"instruction": "Q",\n', "x.jsonl:1", "not JSON", "character"),
    rows("a JSON list that is cut off", json.dumps([GOOD, GOOD])[:-1], "x.json:1", "cut off", file="x.json"),
    rows("JSON without commas", '[{"prompt": "a", "completion": "b"} {}]', "x.json:1", "','", file="x.json"),
    rows("one object in place of rows", '{\n"a": 1\n}', "x.json:1", "one object", file="x.json"),
    rows("a key twice in a row", '{"a": 1, "a": 2}\n', "x.jsonl:1", "'a' stands twice"),
    rows("broken gzip", b"no", "x.jsonl.gz", "gzip", file="x.jsonl.gz"),
    rows(
        "gzip that is cut off",
        gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 999)[:-9],
        "x.jsonl.gz",
        "cut off",
        file="x.jsonl.gz",
    ),
    rows("parquet that is none", b"PAR1 no", "x.parquet", "cannot be read", file="x.parquet"),
    rows("csv without a header", b"", "x.csv:1", "empty", file="x.csv"),
    rows("csv with one name twice", b"a,a\n1,2\n", "x.csv:1", "'a'", "2 columns", file="x.csv"),
    rows(
        "csv with too few columns",
        b"instruction,output\nQ\n",
        "x.csv:2",
        "1 columns",
        "names 2",
        file="x.csv",
    ),
    rows(
        "csv with an open quotation mark",
        b'instruction,output\n"Q,A\n',
        "x.csv:2",
        "not valid CSV",
        file="x.csv",
    ),
]
ROWS = [
    rows("a row that is a list", [GOOD, [1]], "x.jsonl:2", "list"),
    rows("a row that is NaN", [GOOD, float("nan")], "x.jsonl:2", "float"),
    rows("a row nested too deeply", b"[" * 100_000 + b"\n", "x.jsonl:1", "recursion"),
    rows("rows of no known format", [{"text": "a"}], "x.jsonl:1", "'text'", "none of the known formats"),
    rows("rows of two formats", [{**GOOD, "messages": []}], "x.jsonl:1", "alpaca and messages", "format:"),
    rows("a field that is missing", [GOOD, {"instruction": "Q"}], "x.jsonl:2", "'output'", "missing"),
    rows("a field that is null", [{**GOOD, "output": None}], "x.jsonl:1", "'output'", "null"),
    rows("a field that is empty", [{**GOOD, "output": " "}], "x.jsonl:1", "'output'", "empty"),
    rows("a field that is a number", [{**GOOD, "output": 3}], "x.jsonl:1", "'output'", "int (3)"),
    rows(
        "half a surrogate pair",
        b'{"instruction": "Q", "output": "\\ud800"}\n',
        "x.jsonl:1",
        "'output'",
        "surrogate",
    ),
    rows("an id twice", [{**GOOD, "id": "a"}, {**GOOD, "id": "a"}], "x.jsonl:2", "'a'", "x.jsonl:1"),
    rows("an id that is a list", [{**GOOD, "id": ["a"]}], "x.jsonl:1", "'id'", "['a']"),
    rows(
        "a language that is none",
        [{**GOOD, "language": "Klingonese"}],
        "x.jsonl:1",
        "'language'",
        "'Klingonese'",
    ),
    rows("messages that are text", [{"messages": "hi"}], "x.jsonl:1", "'messages'", "text ('hi')"),
    rows(
        "a turn without content",
        [{"messages": [{"role": "user"}]}],
        "x.jsonl:1",
        "messages[0].content",
        "missing",
    ),
    rows(
        "a role that is none",
        [{"messages": [{"role": "judge", "content": "a"}]}],
        "x.jsonl:1",
        "messages[0].role",
        "'judge'",
    ),
    rows(
        "a conversation without an answer",
        [{"messages": [{"role": "user", "content": "a"}]}],
        "x.jsonl:1",
        "no assistant",
    ),
    rows(
        "a conversation that ends with a question",
        [{"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]}],
        "x.jsonl:1",
        "conversations",
        "'user'",
    ),
    rows(
        "tools that are no JSON",
        [
            {
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                "tools": "{",
            }
        ],
        "x.jsonl:1",
        "'tools'",
        "not JSON",
    ),
    rows(
        "several instances in a row",
        [{"instruction": "Q", "instances": [{}, {}]}],
        "x.jsonl:1",
        "2 instances",
    ),
    rows(
        "a tree without an answer",
        [{"message_id": "a", "parent_id": None, "role": "prompter", "text": "x", "message_tree_id": "a"}],
        "x.jsonl:1",
        "no assistant message",
    ),
    rows(
        "a mapped field that is not there",
        [{"question": "Q"}],
        "x.jsonl:1",
        "'questoin'",
        "Did you mean 'question'",
        more="--field instruction=questoin",
    ),
    rows(
        "a mapping that is no pair", [GOOD], "--field 'instruction'", "NAME=PATH", more="--field instruction"
    ),
    rows("a mapping to what no format reads", [GOOD], "'wisdom'", "fields", more="--field wisdom=output"),
    rows("a format that is none", [GOOD], "'alpacka'", "format", more="--format alpacka"),
    rows("a declared language that is none", [GOOD], "'Klingon!'", "language", more="--language Klingon!"),
]
CONFIGS = [
    Case("a study that is not there", "validate none.yaml", ("none.yaml", "no such file"), {}),
    Case("an empty study", "validate study.yaml", ("study.yaml", "empty"), {"study.yaml": ""}),
    Case("a study that is a list", "validate study.yaml", ("study.yaml:1", "list"), {"study.yaml": "- 1\n"}),
    Case("broken YAML", "validate study.yaml", ("study.yaml:2",), {"study.yaml": "name: s\n  phases: [\n"}),
    Case(
        "a tab as indentation", "validate study.yaml", ("study.yaml:2", "\\t"), {"study.yaml": "a:\n\tb: 1\n"}
    ),
    Case(
        "a key twice", "validate study.yaml", ("study.yaml:2", "'name'"), {"study.yaml": "name: s\nname: t\n"}
    ),
    study("an unknown key", "study.yaml", "trainig", "Did you mean 'training'", trainig={}),
    study(
        "an unknown key of a data set",
        "phases[1].data.new.limmit",
        "Did you mean 'limit'",
        phases=second_data(limmit=3),
    ),
    study("a value of the wrong type", "training.epochs", "'many'", training={"epochs": "many"}),
    study("a value out of range", "training.tokens_per_batch", "-5", training={"tokens_per_batch": -5}),
    study("a choice that is none", "training.precision", "'fp8'", "bf16", training={"precision": "fp8"}),
    study("a limit of nothing", "phases[1].data.new.limit", "0", phases=second_data(limit=0)),
    study("a share of everything", "max_broken_share", "1", phases=second_data(max_broken_share=1)),
    study("one phase", "phases", "1", phases=PHASES[:1]),
    study("two phases of one name", "phases", "'one'", phases=[PHASES[0], {**PHASES[1], "name": "one"}]),
    study(
        "a phase without data",
        "phases[1]",
        "neither data nor a checkpoint",
        phases=[PHASES[0], {"name": "two"}],
    ),
    study(
        "a checkpoint that is not first",
        "phases[1]",
        "checkpoint",
        phases=[PHASES[0], {"name": "two", "checkpoint": "x/y"}],
    ),
    study(
        "instructions without a checkpoint",
        "phases[1]",
        "instructions",
        phases=second(instructions="worldbook:lookup/en"),
    ),
    study("a name that is a path", "name", "'../up'", name="../up"),
    study("a seed twice", "seeds", "1 stands 2 times", seeds=[1, 1]),
    study(
        "an unknown strategy",
        "'freeze_chnged'",
        "Did you mean 'freeze_changed'",
        phases=second(strategies=["freeze_chnged"]),
    ),
    study(
        "an unknown option of a strategy",
        "'rnak'",
        "Did you mean 'rank'",
        phases=second(strategies=[{"lora": {"rnak": 3}}]),
    ),
    study(
        "an option out of range",
        "share",
        "1.5",
        phases=second(strategies=[{"freeze_random": {"share": 1.5}}]),
    ),
    study(
        "strategies that do not go together",
        "mixed+plain",
        "cannot be composed",
        phases=second(strategies=[["mixed", "plain"]]),
    ),
    study(
        "mixed before the last phase",
        "phases[0]",
        "mixed",
        phases=[{**PHASES[0], "strategies": ["mixed"]}, PHASES[1]],
    ),
    study(
        "replay without an English set",
        "english_replay",
        "english: SOURCE",
        phases=second(strategies=[{"english_replay": {"share": 0.1}}]),
    ),
    study(
        "mpd_pair without a base",
        "measures",
        "mpd_pair",
        model=None,
        measures=["mpd_pair"],
        phases=[{"name": "one", "checkpoint": "x/y"}, PHASES[1]],
    ),
    study(
        "a path through an unknown set",
        "paths[0]",
        "'nwe'",
        "Did you mean 'new'",
        paths=[[{"phase": "one", "data": "english"}, {"phase": "two", "data": "nwe"}]],
    ),
    study("a path that leaves a phase out", "paths[0]", "['two']", paths=[[{"phase": "two", "data": "new"}]]),
    study(
        "an override of no field",
        "training.epoch",
        "Did you mean 'epochs'",
        command="validate study.yaml training.epoch=2",
    ),
    study(
        "an override without a value",
        "training.epochs",
        "key=value",
        command="validate study.yaml training.epochs",
    ),
    study("no tasks", "evaluate.task_ability", "empty", evaluate={"task_ability": []}),
    study(
        "a task of no language",
        "evaluate.language_ability[0]",
        "xquad_es",
        "language",
        evaluate={"language_ability": ["xquad_es"]},
    ),
    study(
        "a number of processes below one", "--processes 0", command="run study.yaml --processes 0 --runs runs"
    ),
    study(
        "sharding on one process",
        "--sharded",
        "--processes 2",
        command="run study.yaml --sharded --runs runs",
    ),
    Case("a command that is none", "rn study.yaml", ("rn",), {}),
    Case("a recipe that is none", "copy quickstrat", ("'quickstrat'", "Did you mean 'quickstart'"), {}),
]
LANGUAGES = [
    run(
        "a family that is none",
        "worldbook:lookop/es",
        "Did you mean 'lookup'",
        phases=second_data(source="worldbook:lookop/es"),
    ),
    run(
        "a language that worldbook lacks",
        "worldbook:lookup/xx",
        "'xx'",
        phases=second_data(source="worldbook:lookup/xx"),
    ),
    run("a format for worldbook", "worldbook:lookup/es", "format", phases=second_data(format="alpaca")),
    run(
        "a hub that is out of reach",
        "someone/something",
        "hub",
        phases=second_data(source="someone/something"),
    ),
    run("a source that is none", "'no id!'", "neither", phases=second_data(source="no id!")),
    run(
        "rows that do not say their language",
        "'new'",
        "x.jsonl",
        "language:",
        files={"x.jsonl": [GOOD, {**GOOD, "output": "B"}]},
        phases=second_data(source="x.jsonl"),
        held_out=0,
    ),
    run(
        "more groups held out than there are",
        "9999 groups",
        "held_out",
        files={"x.jsonl": [{**GOOD, "language": "es"}]},
        phases=second_data(source="x.jsonl"),
        held_out=9999,
    ),
    run(
        "a language that the encoder lacks",
        "'vi'",
        "another `encoder`",
        phases=second_data(source="worldbook:lookup/vi"),
    ),
    run("an encoder that is none", "'labsy'", encoder="labsy"),
    run("a task that is none", "ifevel", "Did you mean ifeval", evaluate={"task_ability": ["ifevel"]}),
    run(
        "evaluation data that are not there",
        "none.jsonl",
        evaluate={"task_ability": [{"task": "ifeval", "data": "none.jsonl"}]},
    ),
]
MODELS = [
    Case(
        "a model folder that is not there",
        "run study.yaml model=./nowhere --runs runs",
        ("./nowhere", "no such"),
        {"study.yaml": {"name": "s", "model": "m", "phases": PHASES}},
    ),
    Case(
        "an embedded model that is none",
        "run study.yaml model=embedded:smol --runs runs",
        ("'smol'", "smollm2-135m"),
        {"study.yaml": {"name": "s", "model": "m", "phases": PHASES}},
    ),
    model("a model without config.json", without_config, "broken", "config.json"),
    model("a model without a tokenizer", without_tokenizer, "broken", "tokenizer"),
    model("a model with pickled weights alone", only_pickle, "broken", "safetensors"),
    model("weights that are cut off", cut_off, "broken", "model.safetensors"),
    model(
        "a model that is no language model",
        edit_config(model_type="vit", architectures=["ViTModel"]),
        "broken",
        "vit",
    ),
    model(
        "a model of an unknown kind",
        edit_config(model_type="nonesuch", architectures=["X"]),
        "broken",
        "nonesuch",
    ),
    model(
        "a configuration that is no JSON",
        lambda folder: (folder / "config.json").write_text("{"),
        "broken",
        "config.json",
    ),
]
CASES = [*FILES, *ROWS, *CONFIGS, *LANGUAGES, *MODELS]


def test_there_are_sixty_kinds_and_no_two_of_one_name() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 60


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_wrong_input_is_told_in_one_line_with_exit_code_2(
    case: Case,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in case.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(content))
    broken = tmp_path / "broken"
    if case.spoil is not None:
        shutil.copytree(tiny_model, broken)
        case.spoil(broken)
    arguments = case.command.format(model=tiny_model, broken="./broken").split()
    code = _run(arguments)
    told = capfd.readouterr()
    assert code == EXIT_WRONG_INPUT, told.err
    assert told.out == ""
    assert "Traceback" not in told.err
    assert any(all(part in line for part in case.told) for line in told.err.splitlines()), told.err


def encoded(content: Content) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return content.encode()
    if isinstance(content, list):
        return "".join(json.dumps(row) + "\n" for row in content).encode()
    return yaml.safe_dump(content, sort_keys=False).encode()
