"""Bad input of every kind is answered by one line that names its place and its value, and by exit code 2."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lingraft.cli import main
from lingraft.evaluate.predictions import Prediction, write_predictions

Content = str | bytes | Callable[[Path], None]
"""What a file holds, or a function that makes it, given its path."""
Refuses = Callable[..., None]
"""A function of a command and the texts that its message holds: places and values."""


@pytest.fixture
def refuses(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Refuses:
    """Runs a command in a folder with the files that it is given; `model` in it is a good model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model)

    def check(
        command: str, *says: str, files: Mapping[str, Content] | None = None, lines: int | None = 1
    ) -> None:
        for name, content in (files or {}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        capfd.readouterr()
        assert main._run(shlex.split(command)) == 2
        printed = capfd.readouterr()
        assert (printed.out, "Traceback" in printed.err) == ("", False)
        # What progress and notes say comes before it.
        found = re.search(r"^[A-Z][A-Za-z]*Error: ", printed.err, re.MULTILINE)
        assert found, printed.err
        message = printed.err[found.start() :].rstrip("\n")
        assert [text for text in says if text not in message] == [], message
        assert len(message.splitlines()) == lines, message

    return check


ROW = {"instruction": "Say a.", "output": "a"}
GOOD = json.dumps(ROW)
SHOW = "show data {} --model model --max-broken-share 0 "
TREE = '{"message_id": "a", "parent_id": null, "role": "prompter", "text": "x", "message_tree_id": "a"}'


@pytest.mark.parametrize(
    ("source", "content", "says"),
    [
        ("rows.jsonl", "", ("rows.jsonl: ",)),
        ("rows.json", "[ ]\n", ("rows.json: ",)),
        ("./rows.xml", GOOD, ("rows.xml: ", "'.xml'")),
        ("rows.jsonl", GOOD.encode("utf-16"), ("rows.jsonl:1: ", "UTF-16")),
        ("rows.json", '[\n{"instruction": "é"}]'.encode("latin-1"), ("rows.json:2: ", "byte 20")),
        ("rows.json", f"[{GOOD},\n{GOOD[:-4]}", ("rows.json:2: ", "JSON")),
        ("rows.json", f"[\n{GOOD}\n", ("rows.json:2: ", "']'")),
        ("rows.json", '{\n "data": []\n}', ("rows.json", "{")),
        ("rows.parquet", b"PAR1 no table PAR1", ("rows.parquet: ", "parquet")),
        ("rows.jsonl", json.dumps(ROW | {"prompt": "a", "completion": "b"}), ("rows.jsonl:1: ", "'prompt'")),
        ("rows.jsonl", '{"text": "a"}', ("rows.jsonl:1: ", "'text'")),
        ("d/", None, ("d/: ",)),
        ("'d/*.csv'", None, ("d/*.csv: ",)),
        ("absent.jsonl", None, ("absent.jsonl: ",)),
        ("x.jsonl.gz", b"no", ("x.jsonl.gz: ", "gzip")),
        ("x.jsonl.gz", gzip.compress(GOOD.encode() * 999, mtime=0)[:-9], ("x.jsonl.gz: ", "gzip")),
        ("x.csv", "", ("x.csv:1: ",)),
        ("x.csv", "a,a\n1,2\n", ("x.csv:1: ", "'a'")),
        ("x.csv", "a,\n1,2\n", ("x.csv:1: ", "name")),
        ("x.csv", "instruction,output\nQ\n", ("x.csv:2: ", "1 columns", "2")),
        ("x.csv", 'instruction,output\n"Q,A\n', ("x.csv:2: ", "CSV")),
        ("x.jsonl", '{"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]}',
         ("x.jsonl:1: ", "'conversations'", "'user'")),
        ("x.jsonl", '{"instruction": "Q", "instances": [{}, {}]}', ("x.jsonl:1: ", "2 instances")),
        ("x.jsonl", TREE, ("x.jsonl:1: ", "assistant")),
    ],
)  # fmt: skip
def test_a_data_file(
    refuses: Refuses, source: str, content: str | bytes | None, says: tuple[str, ...]
) -> None:
    name = source.strip("'") if content is not None else "d/a.txt"
    refuses(SHOW.format(source), "Error: ", *says, files={name: content or ""})


def test_too_many_broken_rows_are_listed(refuses: Refuses) -> None:
    places = ("rows.jsonl: 2 of 3 rows", "0.00%", "\n  rows.jsonl:2: ", "'instruction'", "\n  rows.jsonl:3: ")
    refuses(SHOW.format("rows.jsonl"), *places, files={"rows.jsonl": f"{GOOD}\n{{}}\n[]\n"}, lines=3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--format alpacca", ("--format", "'alpacca'", "alpaca")),
        ("--format messages", ("rows.jsonl:1: ", "'messages'")),
        ("--special-tokens cut", ("--special-tokens", "'cut'")),
        ("--field instruction", ("--field", "'instruction'", "NAME=PATH")),
        ("--field wisdom=output", ("'wisdom'",)),
        ("--field instruction=instructoin", ("rows.jsonl:1: ", "'instructoin'", "'instruction'")),
        ("--max-broken-share 1", ("--max-broken-share", "1")),
        ("--language Spanish!", ("--language", "Spanish!", "BCP-47")),
        ("--max-length=-3", ("--max-length", "-3")),
    ],
)
def test_an_option_of_data(refuses: Refuses, options: str, says: tuple[str, ...]) -> None:
    refuses(SHOW.format("rows.jsonl") + options, *says, files={"rows.jsonl": GOOD})


def test_a_file_name_that_holds_no_language(refuses: Refuses) -> None:
    refuses(
        SHOW.format("'x-{language}.jsonl'"), "x-nowhere.jsonl", "'nowhere'", files={"x-nowhere.jsonl": GOOD}
    )


USER = {"role": "user", "content": "Say a."}
ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"instruction": "a", "output"', ("JSON", "30")),
        (b'{"instruction": "\xff", "output": "b"}', ("UTF-8", "byte 18")),
        ("\ufeff" + GOOD, ("byte order mark",)),
        ("NaN", ("nan",)),
        ('["a", "b"]', ("['a', 'b']",)),
        ("17", ("17",)),
        ('"abc"', ("'abc'",)),
        ("[" * 100_000, ("JSON",)),
        ('{"n": ' + "9" * 5000 + "}", ("JSON", "4300")),
        ({"instruction": "a"}, ("'output'",)),
        (ROW | {"output": None}, ("'output'", "null")),
        (ROW | {"instruction": " \n"}, ("'instruction'", "empty")),
        (ROW | {"output": True}, ("'output'", "True")),
        (ROW | {"input": ["b"]}, ("'input'", "['b']")),
        ('{"instruction": "a", "output": NaN}', ("'output'", "NaN")),
        ('{"instruction": "a", "output": "x\\ud800"}', ("'output'", "character 1")),
        (ROW | {"language": "Klingonese (Latin)"}, ("'language'", "'Klingonese (Latin)'", "BCP-47")),
        (ROW | {"id": [1]}, ("'id'", "[1]")),
        (ROW | {"group": ""}, ("'group'", "empty")),
        ('{"instruction": "a", "output": "b", "output": "c"}', ("'output'", "twice")),
    ],
)
def test_a_row(refuses: Refuses, row: str | bytes | dict[str, Any], says: tuple[str, ...]) -> None:
    line = json.dumps(row) if isinstance(row, dict) else row
    content = GOOD.encode() + b"\n" + (line.encode() if isinstance(line, str) else line) + b"\n"
    refuses(SHOW.format("rows.jsonl"), "DataError: rows.jsonl:2: ", *says, files={"rows.jsonl": content})


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("Hello", ("'messages'", "'Hello'")),
        (["Hello"], ("'messages[0]'", "'Hello'")),
        ([USER, {"content": "a"}], ("'messages[1].role'",)),
        ([{"role": "user"}, ANSWER], ("'messages[0].content'",)),
        ([USER, {"role": "judge", "content": "a"}], ("'messages[1].role'", "'judge'")),
        ([ANSWER], ("'messages'", "user")),
        ([USER], ("'messages'", "assistant")),
        ([USER, ANSWER, USER], ("'user'", "assistant")),
    ],
)
def test_a_conversation(refuses: Refuses, messages: Any, says: tuple[str, ...]) -> None:
    content = "".join(json.dumps({"messages": turns}) + "\n" for turns in ([USER, ANSWER], messages))
    refuses(SHOW.format("chat.jsonl"), "DataError: chat.jsonl:2: ", *says, files={"chat.jsonl": content})


def test_tools_that_are_no_json(refuses: Refuses) -> None:
    content = json.dumps({"messages": [USER, ANSWER], "tools": "{"})
    refuses(SHOW.format("x.jsonl"), "x.jsonl:1: ", "'tools'", files={"x.jsonl": content})


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


def changed(text: str, old: str, new: str) -> dict[str, Content]:
    """A good study with one part replaced."""
    assert old in text
    return {"study.yaml": text.replace(old, new, 1)}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", ("empty",)),
        ("- name: one\n", ("list",)),
        (b"name: caf\xe9\n", ("UTF-8", "0xe9")),
        ("name: a\x00b\n", ("#x0000",)),
        ("name: {a\nmodel: b\n", ("study.yaml:2: ", "YAML")),
        ("name: a\nphases:\n\t- name: one\n", ("study.yaml:3: ", "tab")),
        (STUDY + "---\n" + STUDY, ("study.yaml:12: ", "YAML")),
        ("name: *there\n", ("study.yaml:1: ", "'there'")),
        ("name: !!python/object:os.system {}\n", ("study.yaml:1: ", "python/object:os.system")),
        (Path.mkdir, ("folder",)),
    ],
)
def test_a_study_file(refuses: Refuses, content: Content, says: tuple[str, ...]) -> None:
    refuses("validate study.yaml", "ConfigError: study.yaml", *says, files={"study.yaml": content})


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("held_out: 2", "held_out: 2\nheld_out: 3", (":12: ", "'held_out'")),
        ("held_out: 2", "7: 2", (":11: ", "7")),
        ("held_out", "heldout", (":11: heldout", "'held_out'")),
        ("strategies", "stratgies", (":10: phases[1].stratgies", "'strategies'")),
        ('/de", limit', '/de", limits', (":9: phases[1].data.german.limits", "'limit'")),
        ("held_out: 2", "training: {lr: 0.1}", (":11: training.lr", "learning_rate")),
        ("held_out: 2", "held_out: [2]", (":11: held_out is [2]", "integer")),
        ("limit: 20", "limit: 0", (":6: phases[0].data.english.limit is 0", "1")),
        ("limit: 20", "limit: many", ("phases[0].data.english.limit is 'many'", "integer")),
        ("limit: 20", "max_broken_share: 1", ("english.max_broken_share is 1", "less than 1")),
        ("held_out: 2", "training: {learning_rate: .nan}", (":11: training.learning_rate is nan",)),
        ("held_out: 2", "training: {tokens_per_batch: -5}", ("training.tokens_per_batch is -5", "16")),
        ("held_out: 2", "training: {precision: fp16}", ("training.precision is 'fp16'", "'bf16'")),
        ("name: small", "name: ../small", (":1: name is '../small'",)),
        ("limit: 20", "language: es_MX!", ("english.language is 'es_MX!'", "BCP-47")),
        ("limit: 20", "language: no", ("english.language is False", "'no'")),
        (STUDY[STUDY.index("  - name: two") : STUDY.index("held")], "", (":3: phases is", "2")),
        ("strategies: [plain]", "training: {epochs: two}", ("phases[1].training.epochs is 'two'",)),
        ("held_out: 2", "seeds: []", (":11: seeds is []", "1")),
        ("held_out: 2", "measures: [mpd_pairs]", ("measures[0]: 'mpd_pairs'", "'mpd_pair'")),
        ("[plain]", "[3]", (":10: phases[1].strategies[0] is 3",)),
        ("held_out: 2", "evaluate: {task_ability: [{task: worldbook, limit: 0}]}",
         (":11: evaluate.task_ability[0].limit is 0",)),
    ],
)  # fmt: skip
def test_a_field_of_a_study(refuses: Refuses, old: str, new: str, says: tuple[str, ...]) -> None:
    refuses("validate study.yaml", "ConfigError: study.yaml", *says, files=changed(STUDY, old, new))


def test_several_problems_come_together(refuses: Refuses) -> None:
    files = changed(STUDY, "held_out: 2", "held_out: -1\nkeep: some")
    places = ("study.yaml:11: held_out is -1", "study.yaml:12: keep is 'some'")
    refuses("validate study.yaml", *places, files=files, lines=2)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.epochs", ("key=value",)),
        ("training.epoch=2", ("'epochs'",)),
        ("held_out=few", ("held_out is 'few'",)),
        ("phases.three.name=x", ("'three'", "two")),
        ("name.first=x", ("'small'",)),
        ("seeds=[0", ("'[0'",)),
        ("contamination=5", ("contamination", "5")),
    ],
)
def test_an_override(refuses: Refuses, override: str, says: tuple[str, ...]) -> None:
    command = f"validate study.yaml {shlex.quote(override)}"
    refuses(command, f"override '{override}'", *says, files={"study.yaml": STUDY})


PATH = "paths: [[{phase: one, data: english}, {phase: two, data: german}]]"


@pytest.mark.parametrize(
    ("text", "old", "new", "says"),
    [
        (STUDY, "name: two", "name: one", ("phases: ", "'one'")),
        (WITHOUT_STRATEGIES, '    data:\n      german: {source: "worldbook:lookup/de", limit: 20}\n', "",
         ("phases[1] (two)", "data")),
        (STUDY, "model: ./model\n", "", ("model: ",)),
        (STUDY, "  - name: one\n", "  - name: one\n    checkpoint: ./model\n", ("phases[0] (one)", "checkpoint")),
        (STUDY, "  - name: one\n", "  - name: one\n    instructions: x.jsonl\n",
         ("phases[0] (one).instructions", "x.jsonl")),
        (STUDY, "held_out: 2", "seeds: [3, 3]", ("seeds: 3",)),
        (STUDY, "limit: 20}", "limit: 20, strategies: [mixed]}", ("phases[0] (one).data.english.strategies",)),
        (ON_CHECKPOINT, "[plain]", "[mixed]", ("phases[1] (two).strategies", "`model`")),
        (ON_CHECKPOINT, "held_out: 2", "measures: [mpd_pair]", ("measures: mpd_pair",)),
        (STUDY, "held_out: 2", "held_out: 0\nmeasures: [drift]", ("measures: drift", "prompts")),
        (STUDY, "held_out: 2", "prompts: [a.txt]", ("prompts: ", "drift")),
        (WITHOUT_STRATEGIES, "held_out: 2", PATH.replace("two", "too"), ("paths[0]", "'too'", "'two'")),
        (WITHOUT_STRATEGIES, "held_out: 2", PATH.replace("german", "germn"), ("paths[0]", "'germn'", "'german'")),
        (WITHOUT_STRATEGIES, "held_out: 2", PATH.replace("{phase: one, data: english}, ", ""),
         ("paths[0]", "['two']", "['one', 'two']")),
        (STUDY, "held_out: 2", PATH, ("phases[1] (two).strategies", "`paths`")),
        (STUDY, "held_out: 2", "evaluate: {task_ability: []}", ("evaluate.task_ability: ",)),
        (STUDY, "held_out: 2", "evaluate: {language_ability: [hellaswag]}",
         ("evaluate.language_ability[0] (hellaswag)", "language:")),
        (STUDY, "held_out: 2", "evaluate: {task_ability: [{task: worldbook, language: de}]}",
         ("evaluate.task_ability[0] (worldbook)", "'de'")),
    ],
)  # fmt: skip
def test_fields_that_do_not_go_together(
    refuses: Refuses, text: str, old: str, new: str, says: tuple[str, ...]
) -> None:
    refuses("validate study.yaml", "ConfigError: study.yaml:", *says, files=changed(text, old, new))


def test_a_checkpoint_as_the_second_phase_is_wrong_in_three_ways(refuses: Refuses) -> None:
    files = changed(STUDY, "  - name: two\n", "  - name: two\n    checkpoint: ./model\n")
    refuses("validate study.yaml", "phases[1] (two).checkpoint", "./model", files=files, lines=3)


@pytest.mark.parametrize(
    ("text", "strategies", "says"),
    [
        (STUDY, "[lorra]", ("'lorra'", "'lora'")),
        (STUDY, "[{lora: {rang: 4}}]", ("'lora'", "'rang'", "'rank'")),
        (STUDY, "[{freeze_random: {share: 1.5}}]", ("'freeze_random'", "'share'", "1.5")),
        (STUDY, "[{english_replay: {share: 1, from: phase_one}}]", ("'english_replay'", "'share'", "1")),
        (STUDY, "[{lora: {rank: many}}]", ("'lora'", "'rank'", "'many'")),
        (STUDY, "[[lora, freeze_random]]", ("'lora+freeze_random'",)),
        (STUDY, "[[lora, lora]]", ("'lora+lora'", "twice")),
        (STUDY, "[english_replay]", ("'english_replay'", "english: SOURCE")),
        (ON_CHECKPOINT.replace("model: ./model\n", ""), "[freeze_changed]", ("'freeze_changed'", "`model`")),
        (ON_CHECKPOINT, "[{english_replay: {from: phase_one}}]", ("'english_replay'", "first phase")),
        (STUDY, "[{generative_replay: {prompts: parallel}}]", ("'generative_replay'", "english: SOURCE")),
        (
            ON_CHECKPOINT,
            "[{generative_replay: {prompts: phase_one}}]",
            ("'generative_replay'", "first phase"),
        ),
        (STUDY, "[{generative_replay: {prompts: myself}}]", ("'prompts'", "'myself'", "'self'")),
        (STUDY, "[{generative_replay: {top_p: 0}}]", ("'top_p'", "0")),
        (STUDY, "[{generative_replay: {backend: vllm}}]", ("'generative_replay'", "vllm serve {model}")),
    ],
)
def test_a_strategy(refuses: Refuses, text: str, strategies: str, says: tuple[str, ...]) -> None:
    files = changed(text, "[plain]", strategies)
    refuses("validate study.yaml", "phase 'two', ", *says, files=files)


def test_two_strategies_of_one_name(refuses: Refuses) -> None:
    files = changed(STUDY, "[plain]", "[plain, plain]")
    refuses("validate study.yaml", "phases[1] (two).data.german", "'plain'", "`name:`", files=files)


@pytest.mark.parametrize("name", ["freeze_changed", "generative_replay"])
def test_a_strategy_of_the_first_phase(refuses: Refuses, name: str) -> None:
    files = changed(STUDY, "limit: 20}", f"limit: 20, strategies: [{name}]}}")
    refuses("validate study.yaml", f"phase 'one', data 'english', strategy '{name}'", files=files)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("./model", "./mine", ("'./mine'",)),
        ("./model", "meta llama", ("'meta llama'", "OWNER/NAME")),
        ("./model", "lingraft-test/absent", ("lingraft-test/absent: ", "hub")),
        ("./model", "embedded:smolm2", ("'smolm2'", "smollm2-135m")),
        ("held_out: 2", "held_out: 2\nmeasures: [drift]\nprompts: [nowhere.txt]", ("nowhere.txt: ",)),
        ("worldbook:lookup/en", "worldbook:lokup/en", ("worldbook:lokup/en", "'lokup'", "'lookup'")),
        ("lookup/en", "lookup/en,xx", ("'xx'",)),
        ("lookup/en", "lookup/en#tests", ("'tests'", "report")),
        ("lookup/en", "lookup/en,en", ("worldbook:lookup/en,en", "twice")),
        ("lookup/en", "lookup", ("'worldbook:lookup'", "FAMILY/LANGUAGE")),
        ("limit: 20", "format: alpaca", ("worldbook:lookup/en", "'alpaca'")),
        ("limit: 20", "language: fr", ("worldbook:lookup/en", "fr")),
        ("worldbook:lookup/en", "lingraft-test/absent", ("lingraft-test/absent: ", "hub")),
        ("worldbook:lookup/en", "my data", ("'my data'", "hub")),
        ('"worldbook:lookup/en", limit: 20', "rows.jsonl, revision: main", ("rows.jsonl: ", "'main'")),
        ('"worldbook:lookup/de", limit: 20', "rows.jsonl", ("phase 'two', data 'german' (rows.jsonl)",)),
        ("held_out: 2", "held_out: 100000", ("worldbook:lookup/", "100000")),
        ("lookup/de", "counting/en", ("evaluate: ", "English")),
        ("held_out: 2", "encoder: labsee", ("encoder", "'labsee'")),
    ],
)
def test_what_a_study_names(refuses: Refuses, old: str, new: str, says: tuple[str, ...]) -> None:
    rows = "".join(json.dumps(ROW | {"instruction": str(n)}) + "\n" for n in range(9))
    refuses("run study.yaml", *says, files={"rows.jsonl": rows, **changed(STUDY, old, new)})


HELLASWAG = {"ind": 1, "activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["d", "e"], "label": "0"}


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ("task_ability: [hellaswagg]", ("task_ability[0]: hellaswagg", "hellaswag")),
        ("task_ability: ['worldbook:lokup']", ("task_ability[0]: worldbook:lokup", "'lookup'")),
        ("language_ability: [{task: worldbook, language: xx}]", ("language_ability[0]: worldbook", "'xx'")),
        ("task_ability: [mine.yaml]", ("task_ability[0]: mine.yaml",)),
        ("task_ability: [no_task.yaml]", ("task_ability: no_task.yaml",)),
        ("task_ability: [{task: ifeval, data: absent.jsonl}]", ("task_ability[0]: ifeval: ", "absent.jsonl")),
        ("task_ability: [{task: hellaswag, data: rows.jsonl}]", ("hellaswag", "rows.jsonl", "'ctx_a'")),
        ("task_ability: [{task: hellaswag, data: h.jsonl, metric: bleu}]", ("hellaswag", "'bleu'", "acc")),
        ("task_ability: [worldbook, 'worldbook:lookup']", ("task_ability: worldbook:lookup", "en")),
    ],
)
def test_a_task(refuses: Refuses, tasks: str, says: tuple[str, ...]) -> None:
    files: dict[str, Content] = {
        "rows.jsonl": GOOD, "h.jsonl": json.dumps(HELLASWAG), "no_task.yaml": "dataset_path: json\n",
    }  # fmt: skip
    refuses("run study.yaml", *says, files=files | changed(STUDY, "held_out: 2", f"evaluate: {{{tasks}}}"))


def _configured(**options: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = folder / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | options))

    return change


def _write(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def _alone(name: str, content: str) -> Callable[[Path], object]:
    """Return what leaves a file of this content in the place of a model's weights."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_text(content)

    return change


def _without(pattern: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return change


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut_off(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.truncate(10_000)


def _corrupt(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.write(b"\xff" * 64)


def _without_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    _write("model.safetensors.index.json", '{"weight_map": {"a": "model-2.safetensors"}}')(folder)


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


def _not_finite(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[name][0] = float("nan")
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


def _of(**tensors: torch.Tensor) -> Callable[[Path], object]:
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return lambda folder: save_file(named, folder / "model.safetensors")


RUN = "run study.yaml model=./mine"
DIFFERENCE = "difference model mine"
SNR = "snr mine"
DRIFT = "drift model mine --prompts p.txt"
UP = "model.layers.1.mlp.up_proj.weight"
ADAPTER = '{"peft_type": "LORA", "base_model_name_or_path": "./absent"}'
NO_TURNS = "{% for m in messages %}{{ m['content'] + (eos_token if m['role'] == 'assistant' else '\n') }}{% endfor %}"


@pytest.mark.parametrize(
    ("change", "commands", "says"),
    [
        (_without("config.json"), (RUN, SNR, DRIFT), ("mine: ", "config.json")),
        (_write("config.json", "{"), (RUN,), ("mine", "config.json")),
        (_configured(model_type="lama"), (RUN,), ("mine", "config.json", "`lama`")),
        (_configured(model_type="t5", architectures=["T5Model"]), (RUN,), ("mine", "'t5'")),
        (_without("model.safetensors"), (RUN, DIFFERENCE), ("mine: ", "model.safetensors")),
        (_pickled, (RUN,), ("mine: ", "pytorch_model.bin")),
        (_pickled, (DIFFERENCE, SNR, DRIFT), ("mine: ", "pickled")),
        (_cut_off, (RUN, DIFFERENCE, SNR, DRIFT), ("mine/model.safetensors: ",)),
        (_corrupt, (DIFFERENCE, SNR, DRIFT), ("mine/model.safetensors: ",)),
        (_without_a_shard, (RUN,), ("mine: ", "model-2.safetensors")),
        (_with_a_truncated_shard, (DIFFERENCE, SNR, DRIFT), ("mine/model-00002-of-00002.safetensors",)),
        (_configured(hidden_size=64), (RUN,), ("mine", "64")),
        (_configured(hidden_size=48), (DRIFT,), ("mine: ", "48")),
        (_configured(num_hidden_layers=3), (RUN,), ("mine", "layers.2")),
        (_configured(num_hidden_layers=1), (DRIFT,), ("mine", "it has 1 layers, its files hold 2")),
        (_without("tokenizer*"), (RUN,), ("mine", "tokenizer")),
        (_write("tokenizer.json", "{}"), (RUN,), ("mine", "tokenizer")),
        (_write("chat_template.jinja", "{% for m in %}"), (RUN,), ("mine", "template")),
        (_write("chat_template.jinja", "{% for m in messages %}{{ m['content'] }}!{% endfor %}"), (DRIFT,),
         ("mine: ", "template")),
        (_write("chat_template.jinja", NO_TURNS), ("replay mine --n 2 --output a.jsonl",), ("mine: ", "template")),
        (_of(model__norm__weight=torch.ones(7), lm_head__weight=torch.ones(3, 7)), (DIFFERENCE,),
         ("model and mine", "model.embed_tokens.weight", "(600, 32)", "(3, 7)")),
        (_of(wte=torch.ones(7, 3)), (DIFFERENCE,), ("model and mine", "tensor")),
        (_configured(model_type="mistral", architectures=["MistralForCausalLM"]), (DIFFERENCE, DRIFT),
         ("llama", "mine", "mistral")),
        (_not_finite("model.norm.weight"), (DIFFERENCE,), ("model.norm.weight: ", "finite")),
        (_not_finite(UP), (SNR,), (f"mine: {UP}", "finite")),
        (_not_finite(UP), (DRIFT,), ("mine", UP, "finite")),
        (_write("adapter_config.json", ADAPTER), (DIFFERENCE,), ("mine: ", "model.safetensors", "adapter_config.json")),
        (_alone("adapter_config.json", ADAPTER), (DIFFERENCE,), ("'./absent'",)),
        (_alone("adapter_config.json", ADAPTER), (f"{DIFFERENCE} --adapter-base model",),
         ("mine: ", "adapter_model.safetensors")),
    ],
)  # fmt: skip
def test_a_model(
    refuses: Refuses,
    tiny_model: Path,
    change: Callable[[Path], object],
    commands: tuple[str, ...],
    says: tuple[str, ...],
) -> None:
    def make(folder: Path) -> None:
        shutil.copytree(tiny_model, folder)
        change(folder)

    files: dict[str, Content] | None = {"mine": make, "p.txt": "Say a.\n", "study.yaml": STUDY}
    for command in commands:
        refuses(command, *says, files=files)
        files = None


COMPARE = "similarity worldbook:lookup/en worldbook:lookup/de"
REPLAY = "replay model --n 2 --output a.jsonl"
PROMPTS = "drift model model --prompts"
FILES: dict[str, Content] = {
    "rows.jsonl": GOOD,
    "p.txt": "Say a.\n",
    "none.txt": "\n\n",
    "p.jsonl": '{"prompt": "a"}\n{"prompt": 3}\n',
    "a.safetensors": "x",
    "study.yaml": STUDY,
    "b.jsonl": GOOD,
    "b.record.json": '{"inputs": {"seed": 4}}',
}


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("rnu study.yaml", ("UsageError: ", "'rnu'", "'run'")),
        ("run study.yaml --proceses 2", ("UsageError: ", "--proceses", "--processes")),
        ("run", ("UsageError: ", "'study'")),
        ("run study.yaml --processes two", ("UsageError: ", "--processes", "'two'")),
        ("run study.yaml --processes=0", ("--processes", "0")),
        ("run study.yaml --sharded", ("--sharded", "--processes 2")),
        ("run study.yaml --runs=study.yaml", ("--runs", "study.yaml")),
        ("validate absent.yaml", ("ConfigError: absent.yaml: ",)),
        ("copy quikstart", ("ConfigError: ", "'quikstart'", "'quickstart'")),
        ("copy quickstart rows.jsonl", ("ConfigError: rows.jsonl: ", "--force")),
        ("copy quickstart absent/mine.yaml", ("absent/mine.yaml", "absent")),
        ("ls strategy", ("ConfigError: ", "'strategy'", "'strategies'")),
        ("show runs/small", ("UsageError: ", "'runs/small'")),
        ("show study runs/small/study.yaml", ("ConfigError: runs/small/study.yaml: ",)),
        ("judge rows.jsonl --judge-url http://127.0.0.1:9/v1", ("UsageError: ", "--judge-model")),
        ("judge rows.jsonl --judge-model m", ("UsageError: ", "--judge-url")),
        ("similarity rows.jsonl", ("ConfigError: rows.jsonl: ",)),
        ("similarity rows.jsonl absent.jsonl --language en", ("DataError: absent.jsonl: ",)),
        ("similarity rows.jsonl rows.jsonl", ("ConfigError: rows.jsonl: ", "2 times")),
        ("similarity rows.jsonl worldbook:lookup/en", ("DataError: rows.jsonl: ", "'1'")),
        ("similarity rows.jsonl worldbook:lookup/en --language rows.jsonl=vi", ("rows.jsonl: ", "'vi'")),
        ("similarity rows.jsonl worldbook:lookup/en --language x.jsonl=vi", ("--language", "'x.jsonl=vi'")),
        (f"{COMPARE} --precision 0", ("ConfigError: --precision is 0.0",)),
        (f"{COMPARE} --closeness 2", ("ConfigError: --closeness is 2.0",)),
        (f"{COMPARE} --figure a.eps", ("ConfigError: a.eps: ", ".svg, .png, .pdf, .html")),
        (f"{COMPARE} --figure a.pdf --fonts absent", ("ConfigError: --fonts absent: ",)),
        (f"{COMPARE} --fonts .", ("ConfigError: --fonts .: holds no font", ".ttf")),
        (f"{COMPARE} --encoder labsee", ("ConfigError: encoder", "'labsee'")),
        ("difference model ./mine", ("'./mine'",)),
        ("difference model model --base ./mine", ("'./mine'",)),
        ("difference model a.safetensors", ("ModelError: a.safetensors: ",)),
        ("difference model model --record absent/a.json", ("absent/a.json", "absent")),
        ("snr ./mine", ("'./mine'",)),
        ("snr model --estimator mean", ("ConfigError: --estimator", "'mean'", "median")),
        ("snr model --share 1.5", ("ConfigError: --share is 1.5",)),
        ("snr model --plan absent/a.yaml", ("absent/a.yaml", "absent")),
        (f"{PROMPTS} absent.txt", ("DataError: absent.txt: ",)),
        (f"{PROMPTS} none.txt", ("DataError: none.txt: ",)),
        (f"{PROMPTS} p.jsonl", ("DataError: p.jsonl:2: ", "'prompt'", "3")),
        (f"{PROMPTS} p.txt --tokens all", ("ConfigError: --tokens", "'all'")),
        ("drift model --prompts p.txt", ("ConfigError: model: ",)),
        ("replay ./mine --n 2 --output a.jsonl", ("'./mine'",)),
        ("replay model --n 0 --output a.jsonl", ("UsageError: ", "--n", "0")),
        ("replay model --n 2", ("UsageError: ", "--output")),
        ("replay model --n 2 --output absent/a.jsonl", ("absent/a.jsonl", "absent")),
        ("replay model --n 2 --output a.csv", ("--output a.csv", ".jsonl")),
        ("replay model --n 2 --output rows.jsonl", ("--output rows.jsonl: ",)),
        ("replay model --n 2 --output b.jsonl", ("--output b.jsonl: ", "seed 4, not 0")),
        (f"{REPLAY} --prompts absent.txt", ("DataError: absent.txt: ",)),
        (f"{REPLAY} --temperature=-1", ("UsageError: ", "--temperature", "-1")),
        (f"{REPLAY} --temperature=inf", ("ConfigError: --temperature is inf",)),
        (f"{REPLAY} --top-p 1.5", ("ConfigError: --top-p is 1.5",)),
        (f"{REPLAY} --backend tgi", ("ConfigError: --backend", "'tgi'", "--backend server=URL")),
        (f"{REPLAY} --prompts p.txt --max-new-tokens 2", ("DataError: p.txt: ", " 1)", "--max-new-tokens")),
        (f"{REPLAY} --backend vllm", ("ConfigError: ", "'vllm'", "--backend command=")),
        (
            f"{REPLAY} --backend server=localhost",
            ("ConfigError: ", "'localhost'", "http://localhost:8000/v1"),
        ),
        (f"{REPLAY} --backend sever=http://a/v1", ("ConfigError: --backend sever=", "'server'")),
        (f"{REPLAY} --backend at_once=4", ("ConfigError: ", "--backend server=", "--backend command=")),
        (
            f"{REPLAY} --backend server=http://a/v1 --backend at_once=x",
            ("ConfigError: --backend at_once=", "'x'"),
        ),
    ],
)
def test_a_command(refuses: Refuses, command: str, says: tuple[str, ...]) -> None:
    refuses(command, *says, files=FILES)


@pytest.mark.parametrize(
    ("options", "files", "says"),
    [
        ("", {}, ("EvaluationError: ", "http://127.0.0.1:9/v1")),
        ("--judge-url localhost:8000", {}, ("ConfigError", "'localhost:8000'", "http://")),
        ("--judge-url https://a:b@c.org", {}, ("ConfigError", "LINGRAFT_JUDGE_KEY")),
        ("", {"r.jsonl": None}, ("DataError: r.jsonl: ",)),
        ("", {"a.jsonl": None}, ("DataError: a.jsonl: ",)),
        ("", {"a.jsonl": ""}, ("DataError: a.jsonl: ",)),
        ("", {"a.jsonl": '{"instruction": "a"}'}, ("DataError: a.jsonl:1: ", "'output'")),
        ("", {"a.jsonl": "{"}, ("DataError: a.jsonl:1: ", "JSON")),
        ("", {"a.jsonl": GOOD.replace("Say a.", "Say b.")}, ("EvaluationError: ", "a.jsonl:1: ", "'Say b.'")),
        ("", {"a.jsonl": f"{GOOD}\n{GOOD}"}, ("a.jsonl:2: ", "a.jsonl:1")),
        ("--budget 5", {}, ("ConfigError: --budget", "--price-in", "--price-out")),
        ("--price-in 5", {}, ("ConfigError: --price-in", "--price-out")),
        ("--price-in=-1 --price-out 1", {}, ("ConfigError: --price-in is -1.0",)),
        ("--timeout 0", {}, ("ConfigError: --timeout is 0.0",)),
        ("--at-once 0", {}, ("UsageError: ", "--at-once", "0")),
        ("--price-in 10 --price-out 10 --budget 0", {}, ("budget of 0",)),
        ("--cache b.jsonl", {"b.jsonl": GOOD}, ("b.jsonl:1: ", "--cache")),
        ("--cache absent/b.jsonl", {}, ("EvaluationError: absent/b.jsonl: ", "--cache")),
        ("--length-data b.csv", {}, ("EvaluationError: ", "length-controlled")),
        ("--record absent/a.json", {}, ("absent/a.json: ", "absent")),
    ],
)
def test_a_judge(refuses: Refuses, options: str, files: dict[str, str | None], says: tuple[str, ...]) -> None:
    given = {"a.jsonl": GOOD, "r.jsonl": GOOD.replace('"a"', '"b"')} | files
    command = "judge a.jsonl --reference r.jsonl --judge-url http://127.0.0.1:9/v1 --judge-model m"
    refuses(
        f"{command} {options}", *says, files={name: text for name, text in given.items() if text is not None}
    )


ANSWERS = [Prediction("task_ability", "towns", "en", i, i, float(i), "?", ".", ".") for i in "01"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--cell 'similar / plian'", ("--cell", "'similar / plian'", "'similar / plain'")),
        ("--against base", ("--against", "'base'", "base model, phase 1")),
        ("--language ne", ("--language", "'ne'", "en")),
        ("--task town", ("--task", "'town'", "'towns'")),
        ("--worst 0", ("--worst", "0")),
    ],
)
def test_answers_of_a_run(
    refuses: Refuses, write_run: Callable[..., None], options: str, says: tuple[str, ...]
) -> None:
    refuses(
        f"show predictions run {options}", *says, files={"run": lambda run: write_run(run, *[ANSWERS] * 3)}
    )


def test_answers_of_a_run_of_which_no_cell_is_done(refuses: Refuses, write_run: Callable[..., None]) -> None:
    def write(run: Path) -> None:
        write_run(run, *[ANSWERS] * 3, is_done=False)

    refuses("show predictions run", "run: ", "--cell", "base model, phase 1", files={"run": write})


@pytest.mark.parametrize("result", ["[]", '{"cells": []}', "{"])
def test_a_result_that_is_none(refuses: Refuses, result: str) -> None:
    refuses("show predictions run", "run/result.json", files={"run/result.json": result})


@pytest.mark.parametrize(
    ("command", "content", "says"),
    [
        ("show predictions runs/absent", "", ("ConfigError: runs/absent: ", "predictions.parquet")),
        ("show predictions run", b"PAR1 no table PAR1", ("EvaluationError: run/predictions.parquet: ",)),
        (
            "show predictions run --cell plain",
            lambda path: write_predictions(path, ANSWERS),
            ("--cell", "'plain'", "run"),
        ),
    ],
)
def test_answers_of_an_evaluation(
    refuses: Refuses, command: str, content: str | bytes | None, says: tuple[str, ...]
) -> None:
    def write(path: Path) -> None:
        write_predictions(path, ANSWERS)

    refuses(command, *says, files={"run/predictions.parquet": write if content is None else content})
