"""The languages of new rows: what they say, what they read like, and what was said of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lingraft.adapt.languages import RowLanguages, check_languages, language_lines, languages_of
from lingraft.config.schema import PhaseData
from lingraft.data.sources import load_data
from lingraft.data.worldbook import load_items
from lingraft.errors import ConfigError
from lingraft.study.materials import DataSet

Spoken = Callable[..., RowLanguages]


def rows_in(tag: str, count: int = 20, **fields: str) -> list[dict[str, str]]:
    return [
        {"instruction": one.example.instruction, "output": one.example.answer, **fields}
        for one in load_items("lookup", tag, "train")[:count]
    ]


@pytest.fixture
def spoken(tmp_path: Path) -> Spoken:
    """A function that returns what languages rows are in, of which some are said."""

    def run(rows: Sequence[dict[str, Any]], said: Sequence[str], **source: Any) -> RowLanguages:
        lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
        language = {"language": said[0]} if len(said) == 1 else {}
        spec = PhaseData.model_validate({"source": "rows.jsonl", **language, **source})
        loaded = load_data(spec, base_folder=tmp_path)
        return languages_of(DataSet("rows", spec, loaded, (), 0), said, tmp_path)

    return run


def test_rows_in_the_language_that_was_said_need_no_word(spoken: Spoken) -> None:
    for tag in ("de", "th", "ar", "ja"):
        found = spoken(rows_in(tag), [tag])
        check_languages([found], [tag])
        assert language_lines(found) == []
        assert (found.read, found.otherwise) == (20, {})


def test_rows_that_read_otherwise_are_refused_with_counts_an_example_and_what_to_type(spoken: Spoken) -> None:
    found = spoken([*rows_in("de", 18), *rows_in("th", 2)], ["th"])
    with pytest.raises(ConfigError) as refused:
        check_languages([found], ["th"])
    text = str(refused.value)
    assert "rows.jsonl: 18 of 20 rows that were read are not in th (Thai)" in text
    assert "de (German) 18" in text
    assert "(row 1: '" in text
    assert "--language de" in text


def test_a_few_rows_in_another_language_are_counted_and_english_ones_always(spoken: Spoken) -> None:
    found = spoken([*rows_in("de", 97), *rows_in("en", 1), *rows_in("fr", 2)], ["de"])
    check_languages([found], ["de"])
    (line,) = language_lines(found)
    assert "3 of 100 rows that were read seem to be in another language" in line
    one = spoken([*rows_in("de", 300), *rows_in("en", 1)], ["de"])
    assert one.otherwise == {"en": 1}
    assert "en (English) 1" in language_lines(one)[0]


def test_rows_whose_own_field_says_another_language_are_refused(spoken: Spoken) -> None:
    found = spoken([*rows_in("fr", 15, language="fr"), *rows_in("de", 5, language="de")], ["de"])
    assert found.claimed == {"fr": 15, "de": 5}
    with pytest.raises(
        ConfigError, match=r"15 of 20 rows say themselves that they are not in de.*--language fr"
    ):
        check_languages([found], ["de"])


def test_a_tag_of_the_same_language_is_no_other(spoken: Spoken) -> None:
    found = spoken(rows_in("pt", language="pt"), ["pt-BR"])
    check_languages([found], ["pt-BR"])
    assert language_lines(found) == []


def test_rows_that_say_the_language_themselves_are_believed_and_the_doubt_is_shown(spoken: Spoken) -> None:
    found = spoken(rows_in("de", language="th"), ["th"])
    check_languages([found], ["th"])
    assert (
        "20 of 20 rows that were read seem to be in another language than said: de"
        in language_lines(found)[0]
    )


def test_a_language_that_was_named_and_has_no_row_is_refused(spoken: Spoken) -> None:
    found = spoken(rows_in("th", language="th"), ["th", "ar"])
    with pytest.raises(
        ConfigError, match=r"no row is in ar \(Arabic\) \(rows.jsonl: th \(Thai\) 20\).*--language ar"
    ):
        check_languages([found], ["th", "ar"])


def test_english_is_no_new_language(spoken: Spoken) -> None:
    with pytest.raises(ConfigError, match="all rows are English"):
        check_languages([spoken(rows_in("en", language="en"), [])], [])


def test_short_rows_are_undetermined_and_never_refused(spoken: Spoken) -> None:
    rows = [{"instruction": f"{n} plus {n}?", "output": str(2 * n)} for n in range(30)]
    found = spoken(rows, ["de"])
    check_languages([found], ["de"])
    assert found.undetermined == 30
    assert "30 of 30 rows could not be checked: most are too short to tell" in language_lines(found)[0]


def test_a_single_misread_row_refuses_nothing(spoken: Spoken) -> None:
    short = [{"instruction": f"{n} + {n}?", "output": str(2 * n)} for n in range(9)]
    found = spoken([*short, *rows_in("de", 2), *rows_in("fr", 3)], ["de"])
    assert sum(found.otherwise.values()) == 3  # more than half of five, but three of them alone
    check_languages([found], ["de"])


def test_of_a_language_that_the_identifier_does_not_know_the_script_alone_refuses(spoken: Spoken) -> None:
    tigrinya = [{"instruction": "ስምካ መን እዩ? ካበይ መጺእካ?", "output": "ስመይ ዮናስ እዩ።"}] * 8
    found = spoken(tigrinya, ["ti"])
    check_languages([found], ["ti"])
    assert "does not know ti" in language_lines(found)[0]
    with pytest.raises(ConfigError, match="8 of 8 rows that were read are not in ti"):
        check_languages([spoken(rows_in("de", 8), ["ti"])], ["ti"])


def test_code_says_nothing_of_the_language_around_it(spoken: Spoken) -> None:
    code = "```python\nfor line in open('the file of the other machine'):\n    print(line)\n```"
    rows = [{**row, "output": f"{row['output']}\n{code}"} for row in rows_in("th")]
    found = spoken(rows, ["th"])
    assert found.otherwise == {}


def test_another_script_than_the_usual_one_is_the_users_to_say(spoken: Spoken) -> None:
    serbian = {
        "instruction": "Kako se zove glavni grad Srbije i gde se nalazi?",
        "output": "Beograd, na Dunavu.",
    }
    for tag in ("sr", "sr-Latn"):
        check_languages([spoken([serbian] * 8, [tag])], [tag])
    hindi = {
        "instruction": "Bharat ki rajdhani kya hai aur yah kahan hai?",
        "output": "Nai Dilli, uttar mein.",
    }
    check_languages([spoken([hindi] * 8, ["hi-Latn"])], ["hi-Latn"])
    with pytest.raises(ConfigError, match="not in hi"):
        check_languages([spoken([hindi] * 8, ["hi"])], ["hi"])


def test_what_rows_hold_cannot_steer_a_terminal(spoken: Spoken) -> None:
    rows = [{**row, "instruction": f"\x1b[2J\u202e{row['instruction']}"} for row in rows_in("de")]
    with pytest.raises(ConfigError) as refused:
        check_languages([spoken(rows, ["th"])], ["th"])
    assert not {"\x1b", "\u202e"} & set(str(refused.value))


def test_the_real_mixed_set_is_mostly_english_at_its_end(shared_data: Path) -> None:
    spec = PhaseData(source=str(shared_data / "alpaca_12345_mixed/zh_en_mixed.jsonl"), language="zh")
    found = languages_of(DataSet("zh", spec, load_data(spec), (), 0), ["zh"])
    assert max(found.otherwise, key=lambda tag: found.otherwise[tag]) == "en"
    assert found.otherwise["en"] > 100
