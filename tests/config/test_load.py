"""A study file is read with places, overrides and checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from lingraft.config import schema
from lingraft.config.load import data_source, dump_study, judge_choice, load_study
from lingraft.config.schema import StrategyChoice, Study, TrainingOverrides
from lingraft.errors import ConfigError, did_you_mean

GOOD = """
name: small
model: some/model
phases:
  - name: one
    data: {english: {source: "worldbook:lookup/en", limit: 20}}
  - name: two
    data:
      similar: {source: "worldbook:lookup/de", limit: 20}
      other:
        source: "worldbook:counting/de"
        strategies: [{lora: {rank: 4, training: {learning_rate: 1.0e-3}}}, mixed]
    strategies: [plain]
training: {learning_rate: 2.0e-4}
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(GOOD)
    return path


def rewritten(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_a_resolved_study_loads_again_as_the_same_study(study_file: Path, tmp_path: Path) -> None:
    study = load_study(study_file)
    again = tmp_path / "resolved.yaml"
    again.write_text(dump_study(study))
    assert load_study(again) == study


def test_a_strategy_takes_training_options_out_of_its_own(study_file: Path) -> None:
    (lora, mixed) = load_study(study_file).phases[1].data["other"].strategies
    assert lora.parts[0].options == {"rank": 4}
    assert lora.parts[0].training.learning_rate == 1e-3
    assert mixed.is_mixed


def test_overrides_reach_into_phases_by_name_and_by_number(study_file: Path) -> None:
    study = load_study(
        study_file,
        ["training.epochs=3", "phases.two.data.similar.limit=7", "phases[0].name=first", "seeds=[1, 2]"],
    )
    assert study.training.epochs == 3
    assert study.phases[1].data["similar"].limit == 7
    assert study.phases[0].name == "first"
    assert study.seeds == (1, 2)


BAD = [
    ("limit: 20}}", "limitt: 20}}", [":6:", "phases[0].data.english.limitt", "Did you mean 'limit'"]),
    ("limit: 20}}", "limit: many}}", [":6:", "phases[0].data.english.limit", "'many'"]),
    ("learning_rate: 2.0e-4", "learning_rate: -1", ["training.learning_rate", "-1"]),
    ("training: {learn", "trainig: {learn", ["trainig", "Did you mean 'training'"]),
    ("[plain]", "[[plain, 3]]", ["phases[1].strategies[0]", "3"]),
    ("name: small", "name: ../small", ["name", "'../small'"]),
    ("model: some/model\n", "", ["model: is missing"]),
    ("name: two", "name: one", ["phases: 2 phases are named 'one'"]),
    ("name: small", "name: small\nname: other", [":3:", "'name'", "twice"]),
    ("phases:", "phases: [", ["not valid YAML"]),
    (
        "name: small",
        "name: small\nevaluate: {language_ability: [hellaswag]}",
        ["which language", "hellaswag"],
    ),
    ("name: small", "name: small\nevaluate: {task_ability: []}", ["evaluate.task_ability", "empty"]),
    ("name: small", "name: small\nseeds: [1, 1]", ["seeds: 1 stands 2 times"]),
    ("name: small", "name: small\npaths: [[{phase: two, data: similar}]]", ["paths[0]", "['one', 'two']"]),
    (
        "name: small",
        "name: small\npaths: [[{phase: one, data: english}, {phase: two, data: simlar}]]",
        ["paths[0]", "'simlar'", "Did you mean 'similar'"],
    ),
    ("  - name: two\n", "  - name: two\n    checkpoint: x\n", ["only the first phase can be a checkpoint"]),
    (
        "limit: 20}}",
        "fields: {instrction: q}}}",
        ["data.english.fields.instrction is not a field", "Did you mean 'instruction'"],
    ),
]


def sections(annotation: Any, content: Callable[[Any], Any]) -> Iterator[tuple[type[BaseModel], Any]]:
    """Yield every section below a type, with a file's content in which the section has a misspelt key only."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation is StrategyChoice:  # is written as the strategies' names and options
            yield from sections(TrainingOverrides, lambda inner: content({"lora": {"training": inner}}))
            return
        yield annotation, content({f"{next(iter(annotation.model_fields))}x": 1})
        for name, field in annotation.model_fields.items():
            yield from sections(field.annotation, lambda inner, name=name: content({name: inner}))  # type: ignore[misc]
        return
    inner = get_args(annotation)
    if get_origin(annotation) is dict:
        # Called like a field of the section, which a data set may be.
        yield from sections(inner[1], lambda one: content({"english": one}))
    elif get_origin(annotation) is tuple:
        yield from sections(inner[0], lambda one: content([one]))
    else:
        for branch in inner:
            yield from sections(branch, content)


SECTIONS = list(sections(Study, lambda content: content))


@pytest.mark.parametrize(
    ("section", "content"),
    SECTIONS,
    ids=[f"{number}-{one[0].__name__}" for number, one in enumerate(SECTIONS)],
)
def test_a_misspelt_key_is_answered_with_the_fields_of_its_section(
    tmp_path: Path, section: type[BaseModel], content: Any
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    right = next(iter(section.model_fields))
    (line,) = [one for one in str(caught.value).splitlines() if f"{right}x is not a field" in one]
    assert line.endswith(did_you_mean(f"{right}x", section.model_fields))


def test_every_section_of_a_study_is_misspelt_once() -> None:
    written = {section for section, _ in SECTIONS}
    known = {
        one for one in vars(schema).values() if isinstance(one, type) and issubclass(one, schema.Section)
    }
    lifted = {schema.Section, StrategyChoice, schema.StrategySpec}
    assert known - lifted == written
    assert len(SECTIONS) > len(written)  # a section is reached by several ways


@pytest.mark.parametrize(("old", "new", "expected"), BAD)
def test_a_wrong_file_is_refused_with_place_and_value(
    study_file: Path, old: str, new: str, expected: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(rewritten(study_file, old, new))
    for part in expected:
        assert part in str(caught.value)


def test_all_errors_come_together(study_file: Path) -> None:
    rewritten(study_file, "limit: 20}}", "limitt: 20}}")
    rewritten(study_file, "learning_rate: 2.0e-4", "epochs: 0")
    with pytest.raises(ConfigError) as caught:
        load_study(study_file, ["keep=some"])
    assert "limitt" in str(caught.value)
    assert "epochs" in str(caught.value)
    assert "override 'keep=some'" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.epochs", "key=value"),
        ("training.epoch=2", "Did you mean 'epochs'"),
        ("phases.three.name=x", "there is no 'three'"),
        ("name.first=x", "has no parts"),
        ("seeds=[1", "not valid YAML"),
        ("training.epochs.first=1", "override 'training.epochs.first=1': training.epochs is {'first': 1}"),
        ("evaluate.judge.budget=1", "override 'evaluate.judge.budget=1': evaluate.judge.url is missing"),
        ("tranining.epochs=1", "override 'tranining.epochs=1': tranining is not a field"),
    ],
)
def test_a_wrong_override_is_named(study_file: Path, override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match="override") as caught:
        load_study(study_file, [override])
    assert expected in str(caught.value)


def test_of_two_overrides_that_make_one_section_the_wrong_one_is_named(study_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(study_file, ["evaluate.repeats=2", "evaluate.batch_size=0"])
    assert str(caught.value).startswith("override 'evaluate.batch_size=0': evaluate.batch_size is 0")


def test_options_of_a_command_are_called_as_they_are_typed() -> None:
    with pytest.raises(ConfigError, match=r"^--judge-url is ''.*\. --price-in is -1: [^;]*$"):
        judge_choice("", "some", price_in=-1, price_out=1)
    with pytest.raises(
        ConfigError, match=r"^--field 'instrction' is not a field\. Did you mean 'instruction'"
    ):
        data_source("rows.jsonl", fields={"instrction": "q"})


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("2.0e-4}", "2.0e-4, optimizer: adamw_8bit}", None),
        ("2.0e-4}", "2.0e-4, optimizer: adamw_8bit, precision: bf16_pure}", None),
        (
            "2.0e-4}",
            "2.0e-4, optimizer: adamw_8bit, precision: bf16}",
            "study.yaml:14: training: optimizer adamw_8bit trains bf16 weights, and precision is 'bf16'",
        ),
        (
            "1.0e-3}",
            "1.0e-3, optimizer: adamw_8bit, precision: float32}",
            "phases[1] (two).data.other.strategies: 'lora', training: optimizer adamw_8bit",
        ),
    ],
)
def test_8_bit_moments_are_refused_with_float32_weights(
    study_file: Path, old: str, new: str, expected: str | None
) -> None:
    path = rewritten(study_file, old, new)
    if expected is None:
        assert "adamw_8bit" in dump_study(load_study(path))
        return
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    assert str(caught.value).count("adamw_8bit") == 1
    assert expected in str(caught.value)


def test_mixed_is_refused_where_phase_one_is_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        dedent(
            """
            name: rescue
            phases:
              - {name: one, checkpoint: some/instruct}
              - {name: two, data: {es: {source: es.jsonl}}, strategies: [mixed]}
            """
        )
    )
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    assert "mixed needs `model` and Phase 1 data" in str(caught.value)


THREE = """
name: chain
model: some/model
phases:
  - {name: one, data: {english: {source: en.jsonl}}}
  - {name: two, data: {german: {source: de.jsonl}}}
  - {name: three, data: {spanish: {source: es.jsonl}}}
paths:
"""


def path_of(second: str, third: str) -> str:
    return (
        f"  - [{{phase: one, data: english}}, {{phase: two, data: german, strategy: {second}}}, "
        f"{{phase: three, data: spanish, strategy: {third}}}]\n"
    )


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([("plain", "plain"), ("lora", "plain"), ("plain", "lora"), ("plain", "mixed")], None),
        ([("{lora: {rank: 4}}", "plain"), ("{lora: {rank: 8}}", "plain")], "give a strategy of one of them"),
        ([("{lora: {rank: 4}}", "plain"), ("{lora: {rank: 8, name: wide}}", "plain")], None),
        ([("plain", "mixed"), ("lora", "mixed")], "paths[1]: stands twice (first as paths[0])"),
        ([("mixed", "plain")], "mixed belongs to the last phase"),
    ],
)
def test_paths_of_three_phases_are_checked(
    tmp_path: Path, paths: list[tuple[str, str]], expected: str | None
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(THREE + "".join(path_of(*one) for one in paths))
    if expected is None:
        assert len(load_study(path).paths) == len(paths)
    else:
        with pytest.raises(ConfigError) as caught:
            load_study(path)
        assert expected in str(caught.value)


def test_strategies_that_paths_leave_unread_are_refused(study_file: Path) -> None:
    rewritten(
        study_file,
        "name: small",
        "name: small\npaths: [[{phase: one, data: english}, {phase: two, data: other}]]",
    )
    with pytest.raises(ConfigError) as caught:
        load_study(study_file)
    assert "phases[1] (two).strategies: with `paths`" in str(caught.value)
    assert "phases[1] (two).data.other.strategies: with `paths`" in str(caught.value)


@pytest.mark.parametrize(
    ("written", "language"),
    [("tuned.jsonl", None), ("{source: tuned.jsonl, language: de, limit: 50}", "de")],
)
def test_instructions_of_a_checkpoint_are_a_source_or_a_data_set(
    tmp_path: Path, written: str, language: str | None
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        f"name: rescue\nphases:\n  - {{name: one, checkpoint: some/instruct, instructions: {written}}}\n"
        "  - {name: two, data: {es: {source: es.jsonl}}}\n"
    )
    study = load_study(path)
    instructions = study.phases[0].instructions
    assert instructions is not None
    assert (instructions.source, instructions.language) == ("tuned.jsonl", language)
    again = tmp_path / "resolved.yaml"
    again.write_text(dump_study(study))
    assert load_study(again) == study
    rewritten(path, f"instructions: {written}", "instructions: {source: tuned.jsonl, langage: de}")
    with pytest.raises(ConfigError, match=r"phases\[0\]\.instructions\.langage.*Did you mean 'language'"):
        load_study(path)


def test_a_missing_file_says_where_recipes_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lingraft ls recipes"):
        load_study(tmp_path / "absent.yaml")
    (tmp_path / "spanish.yaml").touch()
    for typed in ("spanish.yml", "spansh.yaml", "spanish"):
        with pytest.raises(ConfigError, match=r"Did you mean .*/spanish\.yaml\? `lingraft ls recipes`"):
            load_study(tmp_path / typed)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (
            "[Klingonish]",
            r"evaluate\.languages\[0\] is 'Klingonish': no language that is known; write a BCP-47",
        ),
        ("[hi, no]", r"evaluate\.languages\[1\] is False: .*quotation marks \('no'\)"),
        ("hi", r"evaluate\.languages is 'hi': write a list"),
        ("[PT, por]", r"evaluate\.languages: pt stands 2 times"),
        ("[en-GB]", r"evaluate\.languages: en-GB is English"),
    ],
)
def test_a_wrong_language_is_refused_with_what_to_write(study_file: Path, written: str, told: str) -> None:
    rewritten(study_file, "name: small", f"name: small\nevaluate: {{languages: {written}}}")
    with pytest.raises(ConfigError, match=told):
        load_study(study_file)


@pytest.mark.parametrize("language", ["en", "English", "en_GB"])
def test_english_is_no_language_ability(study_file: Path, language: str) -> None:
    tasks = f"[worldbook, {{task: xquad, language: {language}}}]"
    rewritten(study_file, "name: small", f"name: small\nevaluate: {{language_ability: {tasks}}}")
    with pytest.raises(
        ConfigError, match=r"language_ability\[1\] .xquad.: en.* is English, .* to task_ability"
    ):
        load_study(study_file)
