"""Bad input of every kind is answered by one line that names place and value, and by exit code 2."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lingraft.cli import main

Content = str | bytes | Callable[[Path, Path], None]
"""What a file holds, or a function that makes it, given its path and a good model's folder."""


@dataclass(frozen=True)
class Case:
    """One kind of bad input.

    Attributes:
        name: What is wrong, in words.
        files: Content by name, relative to the folder in which the command runs.
        command: What the user typed after `lingraft`; `model` is a good model's folder.
        says: Texts that the message must hold: the place and the value.
        lines: Lines of the message: one for each separate problem.
    """

    name: str
    command: str
    says: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)
    lines: int = 1


ROW = {"instruction": "Say a.", "output": "a"}
GOOD = json.dumps(ROW)
SHOW = "show data {} --model model --max-broken-share 0"


def file(name: str, source: str, content: Content, *says: str, options: str = "", lines: int = 1) -> Case:
    """A data file that is wrong as a whole."""
    return Case(name, f"{SHOW.format(source)} {options}", says, {source: content}, lines)


def rows(name: str, bad: str | bytes | Mapping[str, Any], *says: str) -> Case:
    """A json lines file whose second row is bad."""
    line = json.dumps(bad) if isinstance(bad, Mapping) else bad
    content = GOOD.encode() + b"\n" + (line.encode() if isinstance(line, str) else line) + b"\n"
    return Case(
        name,
        SHOW.format("rows.jsonl"),
        ("DataError: rows.jsonl:2: ", "1 of 2 rows", *says),
        {"rows.jsonl": content},
    )


def chat(name: str, messages: Any, *says: str) -> Case:
    """A json lines file whose second conversation is bad."""
    good = [{"role": "user", "content": "Say a."}, {"role": "assistant", "content": "a"}]
    content = "".join(json.dumps({"messages": turns}) + "\n" for turns in (good, messages))
    return Case(
        name, SHOW.format("chat.jsonl"), ("DataError: chat.jsonl:2: ", *says), {"chat.jsonl": content}
    )


USER = {"role": "user", "content": "Say a."}
ANSWER = {"role": "assistant", "content": "a"}

FILES = [
    Case(
        "no such data file", SHOW.format("absent.jsonl"), ("DataError: absent.jsonl: there is no such file",)
    ),
    file("empty file", "rows.jsonl", "", "DataError: rows.jsonl: there are no rows in it"),
    file("empty JSON list", "rows.json", "[ ]\n", "DataError: rows.json: there are no rows in it"),
    file("wrong suffix", "./rows.xml", GOOD, "rows.xml: a data file's name must end in", "'.xml'"),
    file("UTF-16 file", "rows.jsonl", GOOD.encode("utf-16"), "rows.jsonl:1: ", "UTF-16", "UTF-8"),
    file(
        "Latin-1 list", "rows.json", '[\n{"instruction": "é"}]'.encode("latin-1"), "rows.json:2: ", "byte 20"
    ),
    file("truncated JSON list", "rows.json", f"[{GOOD},\n{GOOD[:-4]}", "rows.json:2: ", "not valid JSON"),
    file("JSON list without its end", "rows.json", f"[\n{GOOD}\n", "rows.json:2: ", "',' or ']' is missing"),
    file("one JSON object that is no row", "rows.json", '{\n "data": []\n}', "rows.json", "{"),
    file(
        "broken parquet",
        "rows.parquet",
        b"PAR1 no table PAR1",
        "rows.parquet: the parquet file cannot be read",
    ),
    file(
        "too many broken rows",
        "rows.jsonl",
        f"{GOOD}\n{{}}\n[]\n",
        "rows.jsonl: 2 of 3 rows (66.67%) are broken",
        "max_broken_share allows (0.00%)",
        "\n  rows.jsonl:2: field 'instruction' is missing",
        "\n  rows.jsonl:3: the row must be an object",
        lines=3,
    ),
    file(
        "rows of two formats at once",
        "rows.jsonl",
        json.dumps(ROW | {"prompt": "a", "completion": "b"}),
        "rows.jsonl:1: ",
        "alpaca and prompt_completion",
        "'prompt'",
    ),
    file("rows without a known format", "rows.jsonl", '{"text": "a"}', "rows.jsonl:1: ", "'text'"),
    file(
        "an unknown format", "rows.jsonl", GOOD, "--format", "'alpacca'", "alpaca", options="--format alpacca"
    ),
    file(
        "an unknown way with special tokens",
        "rows.jsonl",
        GOOD,
        "ConfigError: --special-tokens is 'cut'",
        options="--special-tokens cut",
    ),
    file(
        "the format of other rows",
        "rows.jsonl",
        GOOD,
        "rows.jsonl:1: field 'messages' is missing",
        options="--format messages",
    ),
    Case("a folder without data", SHOW.format("d/"), ("DataError: d/: ", "no data file"), {"d/a.txt": ""}),
    Case(
        "a pattern that fits nothing", SHOW.format("'d/*.csv'"), ("DataError: d/*.csv: ", "no file matches")
    ),
    Case(
        "a file name that is no language",
        SHOW.format("'x-{language}.jsonl'"),
        ("x-nowhere.jsonl", "'nowhere'", "no language"),
        {"x-nowhere.jsonl": GOOD},
    ),
    file("a file that is not gzip", "x.jsonl.gz", b"no", "x.jsonl.gz: the gzip file is broken"),
    file(
        "gzip that is cut off",
        "x.jsonl.gz",
        gzip.compress(GOOD.encode() * 999)[:-9],
        "x.jsonl.gz: the gzip file is broken or cut off",
    ),
    file("csv without a header", "x.csv", "", "x.csv:1: ", "empty"),
    file("csv with one name twice", "x.csv", "a,a\n1,2\n", "x.csv:1: 2 columns are named 'a'"),
    file("csv with a column without name", "x.csv", "a,\n1,2\n", "x.csv:1: a column has no name"),
    file(
        "csv with too few columns",
        "x.csv",
        "instruction,output\nQ\n",
        "x.csv:2: ",
        "has 1 columns, the header names 2",
    ),
    file(
        "csv with an open quotation mark", "x.csv", 'instruction,output\n"Q,A\n', "x.csv:2: ", "not valid CSV"
    ),
    file(
        "a mapping that is no pair",
        "x.jsonl",
        GOOD,
        "'instruction'",
        "NAME=PATH",
        options="--field instruction",
    ),
    file(
        "a mapping to what no format reads",
        "x.jsonl",
        GOOD,
        "'wisdom'",
        "fields",
        options="--field wisdom=output",
    ),
    file(
        "a mapped field that is not there",
        "x.jsonl",
        '{"question": "Q"}',
        "x.jsonl:1: ",
        "'questoin'",
        "Did you mean 'question'",
        options="--field instruction=questoin",
    ),
]

ROWS = [
    rows(
        "broken JSON line",
        '{"instruction": "a", "output"',
        "not JSON: Expecting ':' delimiter at character 30",
    ),
    rows("not UTF-8 in a row", b'{"instruction": "\xff", "output": "b"}', "not UTF-8 at byte 18 of the line"),
    rows("byte order mark in the middle", "\ufeff" + GOOD, "byte order mark"),
    rows("NaN as a row", "NaN", "must be an object, not float (nan)"),
    rows("a list as a row", '["a", "b"]', "must be an object, not list (['a', 'b'])"),
    rows("a number as a row", "17", "must be an object, not int (17)"),
    rows("text as a row", '"abc"', "must be an object, not str ('abc')"),
    rows("too deep JSON", "[" * 100_000, "not usable JSON: "),
    rows("a number of 5000 digits", '{"n": ' + "9" * 5000 + "}", "not usable JSON: ", "4300"),
    rows("missing field", {"instruction": "a"}, "field 'output' is missing"),
    rows("null field", ROW | {"output": None}, "field 'output' is null"),
    rows("empty field", ROW | {"instruction": " \n"}, "field 'instruction' is empty"),
    rows("truth field", ROW | {"output": True}, "field 'output' must be text, not true or false (True)"),
    rows("list field", ROW | {"input": ["b"]}, "field 'input' must be text, not a list (['b'])"),
    rows("NaN field", '{"instruction": "a", "output": NaN}', "field 'output' is NaN"),
    rows(
        "half a surrogate pair",
        '{"instruction": "a", "output": "x\\ud800"}',
        "field 'output' holds half a surrogate pair at character 1",
    ),
    rows(
        "a bad language tag in a row",
        ROW | {"language": "Klingonese (Latin)"},
        "field 'language' is 'Klingonese (Latin)'",
        "BCP-47",
    ),
    rows(
        "an id that is a list",
        ROW | {"id": [1]},
        "field 'id' must be text or a number, not a list ([1])",
    ),
    rows("an empty group", ROW | {"group": ""}, "field 'group' is empty"),
    rows("the id of another row", ROW | {"id": "1"}, "field 'id' is '1', as in rows.jsonl:1"),
    rows("a key twice in a row", '{"instruction": "a", "output": "b", "output": "c"}', "'output'", "twice"),
    chat("messages that are text", "Hello", "field 'messages' must be a list", "'Hello'"),
    chat("a turn that is text", ["Hello"], "field 'messages[0]' must be an object", "'Hello'"),
    chat("a turn without role", [USER, {"content": "a"}], "field 'messages[1].role' is missing"),
    chat("a turn without content", [{"role": "user"}, ANSWER], "field 'messages[0].content' is missing"),
    chat("an unknown role", [USER, {"role": "judge", "content": "a"}], "field 'messages[1].role' is 'judge'"),
    chat("no user turn", [ANSWER], "field 'messages' has no user turn"),
    chat("no answer", [USER], "field 'messages' has no assistant turn"),
    file(
        "a ShareGPT conversation that ends with a question",
        "x.jsonl",
        '{"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]}',
        "x.jsonl:1: field 'conversations' must end with an assistant turn, not with 'user'",
    ),
    file(
        "tools that are no JSON",
        "x.jsonl",
        json.dumps({"messages": [USER, ANSWER], "tools": "{"}),
        "x.jsonl:1: field 'tools' is not JSON",
    ),
    file(
        "several instances in a row",
        "x.jsonl",
        '{"instruction": "Q", "instances": [{}, {}]}',
        "x.jsonl:1: ",
        "2 instances",
    ),
    file(
        "a tree without an answer",
        "x.jsonl",
        '{"message_id": "a", "parent_id": null, "role": "prompter", "text": "x", "message_tree_id": "a"}',
        "x.jsonl:1: ",
        "no assistant turn",
    ),
    chat("a user turn at the end", [USER, ANSWER, USER], "must end with an assistant turn, not with 'user'"),
]

STUDY = """\
name: small
model: ./model
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
ON_CHECKPOINT = STUDY.replace(
    '    data:\n      english: {source: "worldbook:lookup/en", limit: 20}\n', "    checkpoint: ./model\n"
)
WITHOUT_STRATEGIES = STUDY.replace("    strategies: [plain]\n", "")
VALIDATE = "validate study.yaml"
RUN = "run study.yaml"


def study(
    name: str,
    old: str,
    new: str,
    *says: str,
    command: str = VALIDATE,
    lines: int = 1,
    text: str = STUDY,
    files: Mapping[str, Content] | None = None,
) -> Case:
    """A good study with one part replaced."""
    assert old in text
    return Case(name, command, says, {"study.yaml": text.replace(old, new, 1), **(files or {})}, lines)


def whole(name: str, content: Content, *says: str) -> Case:
    """A study file that is wrong as a whole."""
    return Case(name, VALIDATE, ("ConfigError: study.yaml", *says), {"study.yaml": content})


def override(name: str, text: str, *says: str, command: str = VALIDATE) -> Case:
    """The good study with an override that is wrong."""
    return Case(name, f"{command} {shlex.quote(text)}", says, {"study.yaml": STUDY})


STUDY_FILES = [
    Case("no such study file", "validate absent.yaml", ("ConfigError: absent.yaml: no such file",)),
    whole("empty study", "", "the file is empty"),
    whole("a study that is a list", "- name: one\n", "the file is a list"),
    whole("a study file that is not UTF-8", b"name: caf\xe9\n", "UTF-8", "0xe9"),
    whole("a study file with a control character", "name: a\x00b\n", "#x0000"),
    whole("a broken YAML mapping", "name: {a\nmodel: b\n", "study.yaml:2: not valid YAML"),
    whole("a tab as indentation", "name: a\nphases:\n\t- name: one\n", "study.yaml:3: not valid YAML", "tab"),
    whole("two documents in a file", STUDY + "---\n" + STUDY, "study.yaml:12: not valid YAML"),
    whole(
        "an alias to nothing", "name: *there\n", "not valid YAML", "study.yaml:1: not valid YAML", "'there'"
    ),
    whole(
        "a tag that would run code",
        "name: !!python/object:os.system {}\n",
        "study.yaml:1: not valid YAML",
        "python/object:os.system",
    ),
    whole("a folder as a study file", lambda path, _: path.mkdir(), "is a folder"),
    study(
        "a key twice",
        "held_out: 2",
        "held_out: 2\nheld_out: 3",
        "study.yaml:12: the key 'held_out' stands twice",
    ),
    study("a key that is a number", "held_out: 2", "7: 2", "study.yaml:11: ", "7"),
    study(
        "an unknown key at the top",
        "held_out",
        "heldout",
        "study.yaml:11: heldout is not a field",
        "'held_out'",
    ),
    study(
        "an unknown key of a phase",
        "strategies",
        "stratgies",
        "study.yaml:10: phases[1].stratgies",
        "'strategies'",
    ),
    study(
        "an unknown key of a data set",
        '/de", limit',
        '/de", limits',
        "study.yaml:9: phases[1].data.german.limits",
        "'limit'",
    ),
    study(
        "an unknown key of the training",
        "held_out: 2",
        "training: {lr: 0.1}",
        "study.yaml:11: training.lr",
        "learning_rate",
    ),
    study("a wrong type", "held_out: 2", "held_out: [2]", "study.yaml:11: held_out is [2]", "integer"),
    study(
        "limit 0",
        "limit: 20",
        "limit: 0",
        "study.yaml:6: phases[0].data.english.limit is 0",
        "greater than or equal to 1",
    ),
    study(
        "a limit that is no number",
        "limit: 20",
        "limit: many",
        "phases[0].data.english.limit is 'many'",
        "integer",
    ),
    study(
        "a share of broken rows of 1",
        "limit: 20",
        "max_broken_share: 1",
        "english.max_broken_share is 1",
        "less than 1",
    ),
    study(
        "NaN as a learning rate",
        "held_out: 2",
        "training: {learning_rate: .nan}",
        "study.yaml:11: training.learning_rate is nan",
    ),
    study(
        "negative tokens_per_batch",
        "held_out: 2",
        "training: {tokens_per_batch: -5}",
        "training.tokens_per_batch is -5",
        "16",
    ),
    study(
        "an unknown precision",
        "held_out: 2",
        "training: {precision: fp16}",
        "training.precision is 'fp16'",
        "'bf16'",
    ),
    study(
        "a name with a slash", "name: small", "name: ../small", "study.yaml:1: name is '../small'", "letters"
    ),
    study(
        "a bad language tag of a data set",
        "limit: 20",
        "language: es_MX!",
        "english.language is 'es_MX!'",
        "BCP-47",
    ),
    study(
        "Norwegian as YAML reads it",
        "limit: 20",
        "language: no",
        "english.language is False",
        "quotation marks ('no')",
    ),
    study(
        "only one phase",
        STUDY[STUDY.index("  - name: two") : STUDY.index("held")],
        "",
        "study.yaml:3: phases is",
        "at least 2",
    ),
    study(
        "a wrong type inside an override of the training",
        "strategies: [plain]",
        "training: {epochs: two}",
        "phases[1].training.epochs is 'two'",
    ),
    study(
        "several problems",
        "held_out: 2",
        "held_out: -1\nkeep: some",
        "study.yaml:11: held_out is -1",
        "study.yaml:12: keep is 'some'",
        lines=2,
    ),
    override("an override without =", "training.epochs", "override 'training.epochs'", "key=value"),
    override("an override of no field", "training.epoch=2", "override 'training.epoch=2'", "'epochs'"),
    override("an override of a wrong type", "held_out=few", "override 'held_out=few'", "held_out is 'few'"),
    override(
        "an override of an unknown phase",
        "phases.three.name=x",
        "override 'phases.three.name=x'",
        "'three'",
        "two",
    ),
    override("an override inside a value", "name.first=x", "override 'name.first=x'", "'small'"),
    override("an override that is no YAML", "seeds=[0", "override 'seeds=[0'", "'[0'"),
]

CHECKS = [
    study("two phases of one name", "name: two", "name: one", "study.yaml: phases: 2 phases are named 'one'"),
    study(
        "a phase without data",
        'limit: 20}\n  - name: two\n    data:\n      german: {source: "worldbook:lookup/de", limit: 20}',
        "limit: 20}\n  - name: two",
        "phases[1] (two)",
        "neither data nor a checkpoint",
    ),
    study("neither model nor checkpoint", "model: ./model\n", "", "study.yaml: model: is missing"),
    study(
        "a checkpoint as the second phase",
        "  - name: two\n",
        "  - name: two\n    checkpoint: ./model\n",
        "phases[1] (two).checkpoint",
        "./model",
        "only the first phase",
        lines=3,
    ),
    study(
        "a checkpoint with data",
        "  - name: one\n",
        "  - name: one\n    checkpoint: ./model\n",
        "phases[0] (one)",
        "a checkpoint and data",
    ),
    study(
        "instructions of a phase that is trained",
        "  - name: one\n",
        "  - name: one\n    instructions: x.jsonl\n",
        "phases[0] (one).instructions",
        "x.jsonl",
    ),
    study("duplicate seeds", "held_out: 2", "seeds: [3, 3]", "study.yaml: seeds: 3 stands 2 times"),
    study("no seed at all", "held_out: 2", "seeds: []", "study.yaml:11: seeds is []", "at least 1"),
    study(
        "an unknown measure",
        "held_out: 2",
        "measures: [mpd_pairs]",
        "study.yaml:11: measures[0] is 'mpd_pairs'",
        "'mpd_pair'",
    ),
    study(
        "an unknown strategy", "[plain]", "[lorra]", "phase 'two', data 'german', strategy 'lorra'", "'lora'"
    ),
    study(
        "an unknown option of a strategy",
        "[plain]",
        "[{lora: {rang: 4}}]",
        "strategy 'lora'",
        "'rang'",
        "'rank'",
    ),
    study(
        "an option out of range",
        "[plain]",
        "[{freeze_random: {share: 1.5}}]",
        "strategy 'freeze_random'",
        "'share'",
        "1.5",
        "less than or equal to 1",
    ),
    study(
        "a replay share of 1",
        "[plain]",
        "[{english_replay: {share: 1, from: phase_one}}]",
        "'share' of 'english_replay' is 1",
        "less than 1",
    ),
    study(
        "an option of a wrong type",
        "[plain]",
        "[{lora: {rank: many}}]",
        "'rank' of 'lora' is 'many'",
        "integer",
    ),
    study(
        "a strategy that is a number",
        "[plain]",
        "[3]",
        "study.yaml:10: phases[1].strategies[0] is 3",
        "not 3",
    ),
    study(
        "two strategies of one name",
        "[plain]",
        "[plain, plain]",
        "phases[1] (two).data.german",
        "2 strategies are named 'plain'",
    ),
    study(
        "strategies in conflict",
        "[plain]",
        "[[lora, freeze_random]]",
        "strategy 'lora+freeze_random'",
        "'freeze_random' cannot be composed with 'lora'",
    ),
    study(
        "one strategy twice in a composition",
        "[plain]",
        "[[lora, lora]]",
        "strategy 'lora+lora'",
        "'lora' stands twice",
    ),
    study(
        "mixed in the first phase",
        "limit: 20}",
        "limit: 20, strategies: [mixed]}",
        "phases[0] (one).data.english.strategies",
        "mixed belongs to the last phase",
    ),
    study(
        "mixed with a checkpoint",
        "[plain]",
        "[mixed]",
        "phases[1] (two).strategies",
        "mixed needs `model` and Phase 1 data",
        text=ON_CHECKPOINT,
    ),
    study(
        "english_replay without english",
        "[plain]",
        "[english_replay]",
        "strategy 'english_replay'",
        "english: SOURCE",
    ),
    study(
        "freeze_changed in the first phase",
        "limit: 20}",
        "limit: 20, strategies: [freeze_changed]}",
        "phase 'one', data 'english', strategy 'freeze_changed'",
        "needs the base model and a phase before",
    ),
    study(
        "freeze_changed without a base",
        "model: ./model\n",
        "",
        "strategy 'freeze_changed'",
        "give the study a `model`",
        text=ON_CHECKPOINT.replace("plain", "freeze_changed"),
    ),
    study(
        "replay of unknown data",
        "[plain]",
        "[{english_replay: {from: phase_one}}]",
        "strategy 'english_replay'",
        "needs the data of a trained first phase",
        text=ON_CHECKPOINT,
    ),
    study(
        "mpd_pair with a checkpoint",
        "held_out: 2",
        "measures: [mpd_pair]",
        "study.yaml: measures: mpd_pair",
        text=ON_CHECKPOINT,
    ),
    study(
        "drift without prompts",
        "held_out: 2",
        "held_out: 0\nmeasures: [drift]",
        "measures: drift needs prompts",
    ),
    study(
        "prompts without drift", "held_out: 2", "prompts: [a.txt]", "prompts: only drift is measured on them"
    ),
    study(
        "prompts of a study that are not there",
        "held_out: 2",
        "held_out: 2\nmeasures: [drift]\nprompts: [nowhere.txt]",
        "nowhere.txt: there is no such file",
        command=RUN,
    ),
    study(
        "an unknown phase in a path",
        "held_out: 2",
        "paths: [[{phase: one, data: english}, {phase: too, data: german}]]",
        "paths[0]",
        "'too'",
        "'two'",
        text=WITHOUT_STRATEGIES,
    ),
    study(
        "unknown data in a path",
        "held_out: 2",
        "paths: [[{phase: one, data: english}, {phase: two, data: germn}]]",
        "paths[0]",
        "'germn'",
        "'german'",
        text=WITHOUT_STRATEGIES,
    ),
    study(
        "a path with a missing step",
        "held_out: 2",
        "paths: [[{phase: two, data: german}]]",
        "paths[0]",
        "['two']",
        "['one', 'two']",
        text=WITHOUT_STRATEGIES,
    ),
    study(
        "paths beside strategies",
        "held_out: 2",
        "paths: [[{phase: one, data: english}, {phase: two, data: german}]]",
        "phases[1] (two).strategies",
        "with `paths`",
    ),
    study("no task at all", "held_out: 2", "evaluate: {task_ability: []}", "evaluate.task_ability: is empty"),
    study(
        "a language task without language",
        "held_out: 2",
        "evaluate: {language_ability: [hellaswag]}",
        "evaluate.language_ability[0] (hellaswag)",
        "language:",
    ),
    study(
        "task ability in another language",
        "held_out: 2",
        "evaluate: {task_ability: [{task: worldbook, language: de}]}",
        "evaluate.task_ability[0] (worldbook)",
        "'de'",
        "English",
    ),
]


def source(name: str, written: str, *says: str, options: str = "") -> Case:
    """The good study, run with another source of its first data set."""
    return study(name, '"worldbook:lookup/en", limit: 20', f"{written}{options}", *says, command=RUN)


def evaluation(
    name: str, written: str, *says: str, command: str = RUN, files: Mapping[str, Content] | None = None
) -> Case:
    """The good study, run with other tasks."""
    return study(name, "held_out: 2", f"evaluate: {written}", *says, command=command, files=files)


HELLASWAG = {"ind": 1, "activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "e"], "label": "0"}


def model(name: str, change: Callable[[Path], object], *says: str) -> Case:
    """The good study over a copy of the good model, changed."""

    def make(folder: Path, good: Path) -> None:
        shutil.copytree(good, folder)
        change(folder)

    return study(name, "./model", "./mine", *says, command=RUN, files={"mine": make})


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut_off(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.truncate(10_000)


def _without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _configured(**options: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = folder / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | options))

    return change


def _write(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


MODELS = [
    study("no such model folder", "./model", "./mine", "'./mine': there is no such folder", command=RUN),
    study(
        "a malformed hub id",
        "./model",
        "meta llama",
        "'meta llama': there is no such folder",
        "OWNER/NAME",
        command=RUN,
    ),
    study(
        "a hub id offline", "./model", "lingraft-test/absent", "lingraft-test/absent: ", "hub", command=RUN
    ),
    study(
        "an unknown embedded model",
        "./model",
        "embedded:smolm2",
        "'smolm2' is not an embedded model",
        "smollm2-135m",
        command=RUN,
    ),
    model(
        "a model without config.json",
        lambda folder: (folder / "config.json").unlink(),
        "mine: holds no config.json",
    ),
    model("a config.json that is not JSON", _write("config.json", "{"), "mine", "config.json"),
    model("an unknown architecture", _configured(model_type="lama"), "mine", "config.json", "`lama`"),
    model(
        "a model that is no causal language model",
        _configured(model_type="t5", architectures=["T5Model"]),
        "mine",
        "'t5'",
        "causal",
    ),
    model(
        "a model without weights",
        lambda folder: (folder / "model.safetensors").unlink(),
        "mine: holds neither model.safetensors",
    ),
    model("pickled weights alone", _pickled, "mine: only pickled weights (pytorch_model.bin)"),
    model("truncated weights", _cut_off, "mine/model.safetensors: damaged"),
    model(
        "an index of shards that are missing",
        lambda folder: (
            (folder / "model.safetensors").rename(folder / "model-1.safetensors")
            and (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model-2.safetensors"}}'
            )
        ),
        "mine: the shard model-2.safetensors is missing",
    ),
    model("weights of another size", _configured(hidden_size=64), "mine", "64"),
    model("weights of fewer layers", _configured(num_hidden_layers=3), "mine", "layers.2"),
    model("a model without tokenizer", _without_tokenizer, "mine", "tokenizer"),
    model("a broken tokenizer", _write("tokenizer.json", "{}"), "mine", "tokenizer"),
    model(
        "a chat template that is broken", _write("chat_template.jinja", "{% for m in %}"), "mine", "template"
    ),
]

SOURCES = [
    source(
        "an unknown family of worldbook",
        "worldbook:lokup/en",
        "worldbook:lokup/en",
        "'lokup' is not a family",
        "'lookup'",
    ),
    source(
        "an unknown language of worldbook", "'worldbook:lookup/en,xx'", "'xx' is not a language of worldbook"
    ),
    source(
        "an unknown split of worldbook",
        "'worldbook:lookup/en#tests'",
        "'tests' is not a split of worldbook",
        "report",
    ),
    source("a language of worldbook twice", "'worldbook:lookup/en,en'", "worldbook:lookup/en,en", "twice"),
    source(
        "worldbook without languages",
        "'worldbook:lookup'",
        "'worldbook:lookup' is not a source of worldbook",
        "FAMILY/LANGUAGE",
    ),
    source(
        "worldbook with a format",
        "'worldbook:lookup/en'",
        "worldbook:lookup/en: worldbook has no format",
        "'alpaca'",
        options=", format: alpaca",
    ),
    source(
        "worldbook with another language",
        "'worldbook:lookup/en'",
        "worldbook:lookup/en",
        "not fr",
        options=", language: fr",
    ),
    source(
        "a data set that the hub must give, offline",
        "lingraft-test/absent",
        "lingraft-test/absent: cannot be read",
        "hub",
    ),
    source("a malformed source", "'my data'", "'my data' is neither", "hub id"),
    source(
        "a local file with a revision",
        "rows.jsonl",
        "rows.jsonl: ",
        "revision ('main')",
        options=", revision: main",
    ),
    study(
        "rows that do not say their language",
        '"worldbook:lookup/de", limit: 20',
        "rows.jsonl",
        "phase 'two', data 'german' (rows.jsonl)",
        "language:",
        command=RUN,
        files={"rows.jsonl": "".join(json.dumps(ROW | {"instruction": str(n)}) + "\n" for n in range(9))},
    ),
    study(
        "held_out as large as the data",
        "held_out: 2",
        "held_out: 100000",
        "worldbook:lookup/",
        "100000 groups are to be held out",
        command=RUN,
    ),
    study(
        "a study of English alone",
        "lookup/de",
        "counting/en",
        "evaluate: the study trains no language other than English",
        command=RUN,
    ),
    study("an unknown encoder", "held_out: 2", "encoder: labsee", "encoder 'labsee'", command=RUN),
]

TASKS = [
    evaluation(
        "an unknown task", "{task_ability: [hellaswagg]}", "evaluate.task_ability: hellaswagg: ", "hellaswag"
    ),
    evaluation(
        "an unknown family as a task",
        "{task_ability: ['worldbook:lokup']}",
        "evaluate.task_ability: worldbook:lokup",
        "'lookup'",
    ),
    evaluation(
        "worldbook's task in an unknown language",
        "{language_ability: [{task: worldbook, language: xx}]}",
        "evaluate.language_ability: worldbook",
        "'xx'",
    ),
    evaluation(
        "a task file that is missing",
        "{task_ability: [mine.yaml]}",
        "evaluate.task_ability: mine.yaml: there is no such file",
    ),
    evaluation(
        "a task's data that are missing",
        "{task_ability: [{task: ifeval, data: absent.jsonl}]}",
        "evaluate.task_ability: ifeval: there is no file absent.jsonl",
    ),
    evaluation(
        "a task's data of other fields",
        "{task_ability: [{task: hellaswag, data: rows.jsonl}]}",
        "evaluate.task_ability: hellaswag",
        "rows.jsonl",
        "'ctx_a'",
        files={"rows.jsonl": GOOD},
    ),
    evaluation(
        "a metric that a task does not have",
        "{task_ability: [{task: hellaswag, data: rows.jsonl, metric: bleu}]}",
        "hellaswag",
        "'bleu'",
        "acc",
        files={"rows.jsonl": json.dumps(HELLASWAG)},
    ),
    evaluation(
        "a task file that is no task",
        "{task_ability: [mine.yaml]}",
        "evaluate.task_ability: mine.yaml",
        files={"mine.yaml": "dataset_path: json\n"},
    ),
    evaluation(
        "one task twice",
        "{task_ability: [worldbook, 'worldbook:lookup']}",
        "evaluate.task_ability: worldbook:lookup",
        "in en is in",
    ),
    evaluation(
        "limit 0 of a task",
        "{task_ability: [{task: worldbook, limit: 0}]}",
        "study.yaml:11: evaluate.task_ability[0].limit is 0",
        command=VALIDATE,
    ),
]

SIMILARITY = [
    Case(
        "one data set to compare",
        "similarity rows.jsonl",
        ("ConfigError: rows.jsonl: is alone",),
        {"rows.jsonl": GOOD},
    ),
    Case(
        "a data set to compare that is not there",
        "similarity rows.jsonl absent.jsonl --language en",
        ("DataError: absent.jsonl: there is no such file",),
        {"rows.jsonl": GOOD},
    ),
    Case(
        "a data set compared with itself",
        "similarity rows.jsonl rows.jsonl",
        ("ConfigError: rows.jsonl: stands 2 times",),
        {"rows.jsonl": GOOD},
    ),
    Case(
        "rows to compare that do not say their language",
        "similarity rows.jsonl worldbook:lookup/en",
        ("DataError: rows.jsonl: row '1' does not say its language",),
        {"rows.jsonl": GOOD},
    ),
    Case(
        "a language to compare that the encoder does not know",
        "similarity rows.jsonl worldbook:lookup/en --language rows.jsonl=vi",
        ("DataError: rows.jsonl: its rows are in 'vi'",),
        {"rows.jsonl": GOOD},
    ),
    Case(
        "a language of another source",
        "similarity rows.jsonl worldbook:lookup/en --language x.jsonl=vi",
        ("ConfigError: --language 'x.jsonl=vi'", "rows.jsonl"),
        {"rows.jsonl": GOOD},
    ),
    Case(
        "a precision of nothing",
        "similarity worldbook:lookup/en worldbook:lookup/de --precision 0",
        ("ConfigError: --precision is 0.0", "--all"),
    ),
    Case(
        "a closeness that is no cosine",
        "similarity worldbook:lookup/en worldbook:lookup/de --closeness 2",
        ("ConfigError: --closeness is 2.0",),
    ),
    Case(
        "a figure of an unknown kind",
        "similarity worldbook:lookup/en worldbook:lookup/de --figure a.pdf",
        ("ConfigError: a.pdf: ", ".svg, .png, .html"),
    ),
    Case(
        "an encoder to compare with that is none",
        "similarity worldbook:lookup/en worldbook:lookup/de --encoder labsee",
        ("ConfigError: encoder 'labsee'",),
    ),
]


def compared(name: str, change: Callable[[Path], object], *says: str, options: str = "") -> Case:
    """The good model against a copy of it, changed."""

    def make(folder: Path, good: Path) -> None:
        shutil.copytree(good, folder)
        change(folder)

    return Case(name, f"difference model mine {options}", says, {"mine": make})


def scanned(name: str, change: Callable[[Path], object], *says: str) -> Case:
    """A copy of the good model, changed."""

    def make(folder: Path, good: Path) -> None:
        shutil.copytree(good, folder)
        change(folder)

    return Case(name, "snr mine", says, {"mine": make})


def _corrupt(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.write(b"\xff" * 64)


def _with_a_truncated_shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {name: names[place % 2] for place, name in enumerate(sorted(tensors))}
    for file in names:
        own = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        save_file(own, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "model.safetensors").unlink()
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:-100])


def _of_another_width(folder: Path) -> None:
    tensors = {"model.norm.weight": torch.ones(7), "lm_head.weight": torch.ones(3, 7)}
    save_file(tensors, folder / "model.safetensors")


def _of_another_architecture(folder: Path) -> None:
    save_file({"wte": torch.ones(7, 3)}, folder / "model.safetensors")


def _not_finite(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def _not_finite_inside(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _as_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "./absent"}'
    )


DIFFERENCES = [
    Case(
        "a model to compare that is not there",
        "difference model ./mine",
        ("'./mine': there is no such folder",),
    ),
    compared(
        "a model to compare without weights",
        lambda path: (path / "model.safetensors").unlink(),
        "mine: holds neither",
    ),
    compared("a model to compare with pickled weights", _pickled, "mine: only pickled weights"),
    compared("a corrupt shard to compare", _corrupt, "mine/model.safetensors: damaged"),
    compared("a truncated shard to compare", _cut_off, "mine/model.safetensors: damaged"),
    compared(
        "two hidden sizes to compare",
        _of_another_width,
        "model and mine",
        "model.embed_tokens.weight is (600, 32)",
        "(3, 7)",
    ),
    compared(
        "two architectures to compare", _of_another_architecture, "model and mine", "no tensor in common"
    ),
    compared(
        "two architectures to compare by their configurations",
        _configured(model_type="mistral"),
        "model is a llama, ",
        "mine a mistral: weights of two architectures",
    ),
    compared(
        "a truncated shard of several to compare",
        _with_a_truncated_shard,
        "mine/model-00002-of-00002.safetensors",
    ),
    Case(
        "a file in place of a model's folder",
        "difference model a.safetensors",
        ("ModelError: a.safetensors: is a file",),
        {"a.safetensors": "x"},
    ),
    compared(
        "weights to compare that are not finite",
        _not_finite,
        "model.norm.weight: holds weights that are not finite",
    ),
    compared("an adapter whose base is not there", _as_adapter, "'./absent': there is no such folder"),
    compared(
        "an adapter without its weights",
        _as_adapter,
        "mine: holds no adapter_model.safetensors",
        options="--adapter-base model",
    ),
    Case(
        "an unknown estimator",
        "snr model --estimator mean",
        ("ConfigError: --estimator 'mean'", "median and reference"),
    ),
    Case("a share to select above 1", "snr model --share 1.5", ("ConfigError: --share is 1.5",)),
    scanned(
        "a folder to scan that is no model",
        lambda path: (path / "config.json").unlink(),
        "mine: holds no config",
    ),
    scanned("pickled weights to scan", _pickled, "mine: only pickled weights"),
    scanned("a corrupt shard to scan", _corrupt, "mine/model.safetensors: damaged"),
    scanned(
        "a truncated shard of several to scan",
        _with_a_truncated_shard,
        "mine/model-00002-of-00002.safetensors",
    ),
    scanned("a truncated shard to scan", _cut_off, "mine/model.safetensors: damaged"),
    scanned(
        "weights to scan that are not finite", _not_finite_inside, "mine: model.layers.1.mlp.up_proj.weight"
    ),
    Case("a model to scan that is not there", "snr ./mine", ("'./mine': there is no such folder",)),
    Case("a plan in no folder", "snr model --plan absent/a.yaml", ("absent/a.yaml", "no folder absent")),
    Case("a base to compare from that is not there", "difference model model --base ./mine", ("'./mine'",)),
    Case(
        "a record in no folder",
        "difference model model --record absent/a.json",
        ("absent/a.json", "no folder absent"),
    ),
]


def drifted(name: str, change: Callable[[Path], object], *says: str) -> Case:
    """The good model's states against those of a copy of it, changed."""

    def make(folder: Path, good: Path) -> None:
        shutil.copytree(good, folder)
        change(folder)

    return Case(name, "drift model mine --prompts p.txt", says, {"mine": make, "p.txt": "Say a.\n"})


def _with_another_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}!{% endfor %}")


DRIFTS = [
    drifted("states that are not finite", _not_finite_inside, "mine", "the states of layer 1 are not finite"),
    drifted(
        "two architectures to look into",
        _configured(model_type="mistral", architectures=["MistralForCausalLM"]),
        "mine: is a mistral, the first model a llama",
    ),
    Case(
        "prompts that are not there",
        "drift model model --prompts absent.txt",
        ("DataError: absent.txt: there is no such file",),
    ),
    Case(
        "prompts without any",
        "drift model model --prompts p.txt",
        ("DataError: p.txt: there are no rows",),
        {"p.txt": "\n\n"},
    ),
    Case(
        "a prompt that is no text",
        "drift model model --prompts p.jsonl",
        ("DataError: p.jsonl:2: ", "'turns' or 'prompt'", "3"),
        {"p.jsonl": '{"prompt": "a"}\n{"prompt": 3}\n'},
    ),
    Case("one model alone", "drift model --prompts p.txt", ("ConfigError: model: is alone",), {"p.txt": "a"}),
    Case(
        "unknown tokens",
        "drift model model --prompts p.txt --tokens all",
        ("ConfigError: --tokens 'all'",),
        {"p.txt": "a"},
    ),
    drifted(
        "a model whose states cannot be had",
        lambda path: (path / "config.json").unlink(),
        "mine: holds no config.json",
    ),
    drifted("a corrupt shard to look into", _corrupt, "mine/model.safetensors: damaged"),
    drifted(
        "a truncated shard of several to look into",
        _with_a_truncated_shard,
        "mine/model-00002-of-00002.safetensors",
    ),
    drifted("a truncated shard to look into", _cut_off, "mine/model.safetensors: damaged"),
    drifted(
        "weights of another width to look into", _configured(hidden_size=48), "mine: its states are 48 wide"
    ),
    drifted("pickled weights to look into", _pickled, "mine: only pickled weights"),
    drifted(
        "a model of fewer layers to look into", _configured(num_hidden_layers=1), "mine", "1 decoder layers"
    ),
    drifted(
        "another chat template to look through",
        _with_another_template,
        "mine: its tokenizer or chat template makes other",
    ),
]


def _without_a_place_for_the_user(folder: Path, good: Path) -> None:
    shutil.copytree(good, folder)
    end = "(eos_token if m['role'] == 'assistant' else '\n')"
    template = "{% for m in messages %}{{ m['content'] + " + end + " }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)


REPLAYS = [
    Case(
        "a model to replay that is not there",
        "replay ./mine --n 2 --output a.jsonl",
        ("'./mine'", "no such folder"),
    ),
    Case("no rows to replay", "replay model --n 0 --output a.jsonl", ("UsageError: ", "--n", "0")),
    Case("replay without a file", "replay model --n 2", ("UsageError: ", "--output")),
    Case(
        "replay into no folder",
        "replay model --n 2 --output absent/a.jsonl",
        ("absent/a.jsonl", "no folder absent"),
    ),
    Case("replay into a wrong suffix", "replay model --n 2 --output a.csv", ("--output a.csv", ".jsonl")),
    Case(
        "replay over another file",
        "replay model --n 2 --output a.jsonl",
        ("--output a.jsonl: exists already", "another file"),
        {"a.jsonl": GOOD},
    ),
    Case(
        "replay over rows that were made otherwise",
        "replay model --n 2 --output a.jsonl",
        ("--output a.jsonl: was made with", "seed 4, not 0"),
        {"a.jsonl": GOOD, "a.record.json": '{"inputs": {"seed": 4}}'},
    ),
    Case(
        "prompts to answer that are not there",
        "replay model --prompts absent.txt --n 2 --output a.jsonl",
        ("DataError: absent.txt: there is no such file",),
    ),
    Case(
        "a temperature below 0",
        "replay model --n 2 --output a.jsonl --temperature=-1",
        ("UsageError: ", "--temperature", "-1"),
    ),
    Case(
        "a temperature that is no number",
        "replay model --n 2 --output a.jsonl --temperature=inf",
        ("ConfigError: --temperature is inf",),
    ),
    Case(
        "a top_p above 1", "replay model --n 2 --output a.jsonl --top-p 1.5", ("ConfigError: --top-p is 1.5",)
    ),
    Case(
        "an unknown engine",
        "replay model --n 2 --output a.jsonl --backend tgi",
        ("ConfigError: --backend 'tgi'", "transformers and vllm"),
    ),
    Case(
        "a model without an empty user turn",
        "replay mine --n 2 --output a.jsonl",
        ("mine: its chat template does not show", "give prompts"),
        {"mine": _without_a_place_for_the_user},
    ),
    Case(
        "answers of which none can be trained on",
        "replay model --prompts p.txt --n 2 --output a.jsonl --max-new-tokens 2",
        ("DataError: p.txt: none of the answers of model", " 1)", "--max-new-tokens"),
        {"p.txt": "Say a.\n"},
    ),
    study(
        "generative replay in the first phase",
        "limit: 20}",
        "limit: 20, strategies: [generative_replay]}",
        "phase 'one', data 'english', strategy 'generative_replay'",
        "needs a phase before this one",
    ),
    study(
        "generative replay of parallels that are not there",
        "[plain]",
        "[{generative_replay: {prompts: parallel}}]",
        "strategy 'generative_replay'",
        "english: SOURCE",
    ),
    study(
        "generative replay of unknown prompts",
        "[plain]",
        "[{generative_replay: {prompts: phase_one}}]",
        "strategy 'generative_replay'",
        "needs the data of a trained first phase",
        text=ON_CHECKPOINT,
    ),
    study(
        "an unknown source of prompts",
        "[plain]",
        "[{generative_replay: {prompts: myself}}]",
        "'prompts' of 'generative_replay' is 'myself'",
        "'self'",
    ),
    study(
        "a top_p of 0",
        "[plain]",
        "[{generative_replay: {top_p: 0}}]",
        "'top_p' of 'generative_replay' is 0",
        "greater than 0",
    ),
]

if find_spec("vllm") is None:
    REPLAYS += [
        Case(
            "an engine that is not installed",
            "replay model --n 2 --output a.jsonl --backend vllm",
            ("ConfigError: backend 'vllm'", "lingraft[vllm]"),
        ),
        study(
            "a study with an engine that is not installed",
            "[plain]",
            "[{generative_replay: {backend: vllm}}]",
            "strategy 'generative_replay'",
            "lingraft[vllm]",
        ),
    ]

PAIR = json.dumps({"instruction": "Say a.", "output": "a"})
JUDGE = "judge a.jsonl --reference r.jsonl --judge-url http://127.0.0.1:9/v1 --judge-model m"


def judges(
    name: str,
    options: str,
    *says: str,
    answers: str = PAIR,
    reference: str = PAIR.replace('"a"', '"b"'),
    **files: str,
) -> Case:
    """Answers and a reference that belong together, but for what is wrong."""
    given = {"a.jsonl": answers, "r.jsonl": reference}
    return Case(
        name, f"{JUDGE} {options}", says, given | {f"{file}.jsonl": text for file, text in files.items()}
    )


JUDGES = [
    judges(
        "a judge that is not there",
        "",
        "EvaluationError: the judge at http://127.0.0.1:9/v1",
        "cannot be reached",
    ),
    judges(
        "a judge's address without http",
        "--judge-url localhost:8000",
        "ConfigError",
        "'localhost:8000'",
        "http://",
    ),
    judges(
        "a judge's address with a secret",
        "--judge-url https://a:b@c.org",
        "neither a user",
        "LINGRAFT_JUDGE_KEY",
    ),
    Case(
        "no judge named", "judge a.jsonl --judge-url http://127.0.0.1:9/v1", ("UsageError: ", "--judge-model")
    ),
    Case("no judge's address", "judge a.jsonl --judge-model m", ("UsageError: ", "--judge-url")),
    Case(
        "a reference that is not there",
        JUDGE,
        ("DataError: r.jsonl: there is no such file",),
        {"a.jsonl": PAIR},
    ),
    Case("answers that are not there", JUDGE, ("DataError: a.jsonl: there is no such",), {"r.jsonl": PAIR}),
    judges("no answers to judge", "", "DataError: a.jsonl: there are no rows", answers=""),
    judges(
        "an answer without output",
        "",
        "DataError: a.jsonl:1: field 'output' is missing",
        answers='{"instruction": "a"}',
    ),
    judges("an answer that is no JSON", "", "DataError: a.jsonl:1: not JSON", answers="{"),
    judges(
        "an answer to another question",
        "",
        "EvaluationError: the answers: a.jsonl:1: the reference has no output for its instruction 'Say b.'",
        answers=PAIR.replace("Say a.", "Say b."),
    ),
    judges(
        "one answer twice",
        "",
        "the answers: a.jsonl:2: has the instruction of a.jsonl:1",
        answers=f"{PAIR}\n{PAIR}",
    ),
    judges("a budget without prices", "--budget 5", "ConfigError: --budget needs --price-in and --price-out"),
    judges("one price alone", "--price-in 5", "ConfigError: --price-in and --price-out belong together"),
    judges("a price below 0", "--price-in=-1 --price-out 1", "ConfigError: --price-in is -1.0"),
    judges("a judge's timeout of 0", "--timeout 0", "ConfigError: --timeout is 0.0"),
    judges("no question at once", "--at-once 0", "UsageError: ", "--at-once", "0"),
    judges(
        "a budget too small for one question",
        "--price-in 10 --price-out 10 --budget 0",
        "the budget of 0 could be exceeded",
    ),
    judges("a cache that is another file", "--cache b.jsonl", "b.jsonl:1: is no verdict", "--cache", b=PAIR),
    judges("a cache in no folder", "--cache absent/b.jsonl", "EvaluationError: absent/b.jsonl: ", "--cache"),
    judges(
        "a length control without its instructions",
        "--length-data b.csv",
        "EvaluationError: the length-controlled win",
    ),
    judges(
        "a judge's record in no folder", "--record absent/a.json", "absent/a.json: there is no folder absent"
    ),
]


def _answers(*scores: float) -> Callable[[Path, Path], None]:
    """Write the answers of one model to as many items."""

    def write(path: Path, _: Path) -> None:
        from lingraft.evaluate.predictions import Prediction, write_predictions

        own = [
            Prediction("task_ability", "towns", "en", str(i), str(i), score, "?", ".", ".")
            for i, score in enumerate(scores)
        ]
        write_predictions(path, own)

    return write


ANSWERS = "stages/evaluate-1/predictions.parquet"
CELL = {"data": "similar", "strategy": "plain", "seed": 0, "status": "done", "predictions": ANSWERS}
RESULT = {
    "base_predictions": ANSWERS,
    "phase_ones": [{"data": "e", "strategy": "plain", "seed": 0, "predictions": ANSWERS}],
    "cells": [CELL | {"phase_one_predictions": ANSWERS}],
}


def shown(name: str, options: str, *says: str, result: Any = RESULT) -> Case:
    """A run of one cell, of which something is asked that is not there."""
    files: dict[str, Any] = {"run/result.json": json.dumps(result), f"run/{ANSWERS}": _answers(1.0, 0.0)}
    return Case(name, f"show predictions run {options}", says, files)


PREDICTIONS = [
    Case(
        "no such run",
        "show predictions runs/absent",
        ("ConfigError: runs/absent: there is neither result.json", "predictions.parquet"),
    ),
    shown(
        "a cell that the run has not",
        "--cell 'similar / plian'",
        "--cell 'similar / plian'",
        "'similar / plain'",
    ),
    shown(
        "a model to compare with that is not there",
        "--against base",
        "--against 'base'",
        "Options: base model, phase 1",
    ),
    shown("a language that was not asked", "--language ne", "--language 'ne'", "Options: en."),
    shown("a task that was not asked", "--task town", "--task 'town'", "Did you mean 'towns'?"),
    shown("no item to show", "--worst 0", "--worst", "0"),
    shown("a result that names no answers", "", "run/result.json", "KeyError", "run", result={"cells": []}),
    shown("a result that is no object", "", "run/result.json", "TypeError", result=[]),
    shown(
        "no cell that is done",
        "",
        "run: no cell is done; name a model with --cell: base model, phase 1",
        result=RESULT | {"cells": [CELL | {"status": "failed"}]},
    ),
    Case(
        "broken answers",
        "show predictions run",
        ("EvaluationError: run/predictions.parquet: cannot be read",),
        {"run/predictions.parquet": b"PAR1 no table PAR1"},
    ),
    Case(
        "a cell of a single evaluation",
        "show predictions run --cell plain",
        ("--cell 'plain': run holds the answers of one model only",),
        {"run/predictions.parquet": _answers(1.0)},
    ),
    override("a share of contamination above 1", "contamination=5", "contamination", "5"),
]

COMMANDS = [
    Case("an unknown command", "rnu study.yaml", ("UsageError: ", "'rnu'", "'run'")),
    Case("an unknown option", "run study.yaml --proceses 2", ("UsageError: ", "--proceses", "--processes")),
    Case("no study named", "run", ("UsageError: ", "'study'")),
    Case(
        "an option of the command line of a wrong type",
        "run study.yaml --processes two",
        ("UsageError: ", "--processes", "'two'"),
    ),
    override("no process", "--processes=0", "--processes 0", command=RUN),
    override("a sharded model on one process", "--sharded", "--sharded", "--processes 2", command=RUN),
    Case("an unknown recipe", "copy quikstart", ("ConfigError: 'quikstart'", "'quickstart'")),
    Case(
        "a copy over a file",
        "copy quickstart rows.jsonl",
        ("ConfigError: rows.jsonl: ", "--force"),
        {"rows.jsonl": GOOD},
    ),
    Case(
        "a copy into no folder", "copy quickstart absent/mine.yaml", ("absent/mine.yaml", "no folder absent")
    ),
    Case("an unknown kind to list", "ls strategy", ("ConfigError: 'strategy'", "'strategies'")),
    Case("nothing that can be shown", "show runs/small", ("UsageError: ", "'runs/small'")),
    Case(
        "a study to show that is not there",
        "show study runs/small/study.yaml",
        ("ConfigError: runs/small/study.yaml: no such file",),
    ),
    file(
        "a share of the command line that is 1",
        "rows.jsonl",
        GOOD,
        "--max-broken-share is 1",
        options="--max-broken-share 1",
    ),
    file(
        "a bad language tag of the command line",
        "rows.jsonl",
        GOOD,
        "--language is 'Spanish!'",
        "BCP-47",
        options="--language Spanish!",
    ),
    file("a negative length", "rows.jsonl", GOOD, "--max-length", "-3", options="--max-length=-3"),
    override("a file in the place of the runs", "--runs=study.yaml", "study.yaml", "--runs", command=RUN),
]

CASES = [
    *FILES,
    *ROWS,
    *STUDY_FILES,
    *CHECKS,
    *MODELS,
    *SOURCES,
    *TASKS,
    *SIMILARITY,
    *DIFFERENCES,
    *DRIFTS,
    *REPLAYS,
    *JUDGES,
    *PREDICTIONS,
    *COMMANDS,
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input_is_answered_by_one_line_with_place_and_value(
    case: Case,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model)
    for name, content in case.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path, tiny_model)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    code = main._run(shlex.split(case.command))
    printed = capfd.readouterr()
    assert code == 2, printed.err
    assert printed.out == ""
    message = _message(printed.err)
    for text in case.says:
        assert text in message
    assert len(message.splitlines()) == case.lines, message
    assert "Traceback" not in printed.err


def _message(errors: str) -> str:
    """Return the message; progress, which `run` tells before it, is cut off."""
    found = re.search(r"^[A-Z][A-Za-z]*Error: ", errors, re.MULTILINE)
    assert found, errors
    return errors[found.start() :].rstrip("\n")


def test_the_table_has_no_kind_twice() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60
