"""The card says what is known and nothing else, and what others named means nothing to its readers."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from lingraft.adapt.card import (
    CardFacts,
    DataFact,
    Licence,
    LossFact,
    ScoreFact,
    card_text,
    code,
    hub_id,
    licence_of,
    public_name,
)
from lingraft.adapt.history import Learnt
from lingraft.intervals.macro_mean import Interval

HOSTILE = (
    "x</code><script>alert(1)</script>",
    "a`` ` ```b\n---\nlicense: mit\n# head",
    "![i](http://evil/x.png)|[l](javascript:alert(1))|",
    "'\": {a: [b, *c]} # &x !!python/object",
    "\x1b[31m\u202ered\u2028",
    "{{ 7*7 }}{% raw %}",
    "x" * 5000,
)
LEARNT = Learnt(
    date="2026-05-01",
    languages=("th",),
    data={"owner/rows": 600},
    strategy="english_replay",
    alpha=0.6,
    kept_back=None,
    max_loss=0.01,
    losses=(),
    gain=None,
    start="owner/start",
    start_identity="abc",
    lingraft="1.0",
)
FACTS = CardFacts(
    name="thai",
    repository=None,
    start="owner/start",
    languages=("th", "pt-BR"),
    data=(
        DataFact(source="owner/rows", rows=600, languages=("th",)),
        DataFact(source="mine.jsonl", rows=5, languages=()),
    ),
    strategy="english_replay",
    amount="605 examples",
    combined="alpha 0.6",
    dtype="bf16",
    scores=(
        ScoreFact(
            name="task ability",
            language="en",
            before=Interval(0.5, 0.4, 0.6, 90),
            after=Interval(0.49, 0.4, 0.6, 90),
            is_task=False,
        ),
        ScoreFact(
            name="xquad", language="th", before=None, after=Interval(0.31234, 0.2, 0.4, 50), is_task=True
        ),
    ),
    scored_on="On items on which nothing was chosen.",
    losses=(
        LossFact(
            name="task ability (English)",
            loss=0.02,
            low=-0.01,
            high=0.05,
            limit="1 %",
            answer="undecided",
            n=90,
        ),
    ),
    gain="Gain +0.1",
    licence=None,
    history=(LEARNT,),
    notes=("a note",),
    is_adapter=False,
    brings_code=False,
    lingraft="1.0",
)


def metadata(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.split("\n---\n", maxsplit=1)[0].removeprefix("---\n"))
    return found


def test_the_card_holds_every_fact_and_its_metadata_are_the_hubs() -> None:
    text = card_text(FACTS)
    found = metadata(text)
    assert found["language"] == ["th", "pt", "en"]
    assert found["language_bcp47"] == ["th", "pt-BR", "en"]
    assert found["base_model"] == "owner/start"
    assert found["base_model_relation"] == "finetune"
    assert found["datasets"] == ["owner/rows"]
    assert found["library_name"] == "transformers"
    (result,) = found["model-index"][0]["results"]
    assert result["dataset"] == {"name": "xquad", "type": "xquad", "config": "th"}
    assert result["metrics"][0]["value"] == 0.3123
    assert result["metrics"][0]["args"] == {"low": 0.2, "high": 0.4, "confidence": 0.95, "n": 50}
    for said in (
        "# thai",
        "Thai (th), Brazilian Portuguese (pt-BR)",
        "| task ability | en | 0.500 [0.400, 0.600] | 0.490 [0.400, 0.600] | 90 |",
        "| `xquad` | th | - | 0.312 [0.200, 0.400] | 50 |",
        "| task ability (English) | 2.0 % | -1.0 % to 5.0 % | 1 % | these items cannot tell | 90 |",
        "| `owner/rows` | 600 | th |",
        "- weights: alpha 0.6",
        "- stored in bf16",
        "| `2026-05-01` | `th` | `owner/start` | `owner/rows` (600 rows) | `english_replay` | 1.0 % | `1.0` |",
        "- a note",
        "Written by lingraft 1.0.",
    ):
        assert said in text
    card: Any = ModelCard(text)
    assert card.data.to_dict()["model-index"] == found["model-index"]


def test_abilities_stand_in_the_metadata_where_no_task_does() -> None:
    (result,) = metadata(card_text(replace(FACTS, scores=FACTS.scores[:1])))["model-index"][0]["results"]
    assert (result["dataset"]["name"], result["dataset"]["config"]) == ("task ability", "en")
    assert "model-index" not in metadata(card_text(replace(FACTS, scores=())))


def test_a_licence_is_never_invented() -> None:
    text = card_text(FACTS)
    assert "license" not in metadata(text)
    assert "\n# license: add the licence here" in text.split("\n---\n")[0]
    known = Licence(
        identifier="other", name="own", link="https://x.org/l", stated_in="the card of owner/start"
    )
    text = card_text(replace(FACTS, licence=known))
    assert {key: metadata(text)[key] for key in ("license", "license_name", "license_link")} == {
        "license": "other",
        "license_name": "own",
        "license_link": "https://x.org/l",
    }
    assert "add the licence" not in text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_others_named_means_nothing_to_markdown_html_or_yaml(hostile: str) -> None:
    facts = replace(
        FACTS,
        name=hostile,
        start=hostile,
        languages=("th",),
        data=(DataFact(source=hostile, rows=1, languages=()),),
        strategy=hostile,
        scores=(replace(FACTS.scores[1], name=hostile),),
        history=(
            replace(
                LEARNT, languages=(hostile,), data={hostile: 1}, start=hostile, strategy=hostile, date=hostile
            ),
        ),
        notes=(hostile,),
    )
    text = card_text(facts)
    assert set(metadata(text)) == set(metadata(card_text(FACTS))) - {
        "base_model",
        "base_model_relation",
        "datasets",
    } - {"language_bcp47"}
    assert not {"\x1b", "\u202e", "\u2028"} & set(text)
    body = text.split("\n---\n", 1)[1]
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    flat = [inner for token in tokens for inner in (token, *(token.children or ()))]
    kinds = {token.type for token in flat}
    assert not kinds & {"html_block", "html_inline", "image", "link_open", "hr"}
    headings = [token for token in flat if token.type == "heading_open"]
    clean = MarkdownIt().enable("table").parse(card_text(FACTS).split("\n---\n", 1)[1])
    assert len(headings) == sum(token.type == "heading_open" for token in clean)
    rows = [token for token in flat if token.type == "td_open"]
    assert len(rows) == 5 + 6 + 3 + 7
    assert max(map(len, body.splitlines())) < 5000


def test_code_shows_what_it_holds() -> None:
    assert code("a`b") == "``a`b``"
    assert code("`a") == "`` `a ``"
    assert code("a|b") == "`a\\|b`"
    assert code("") == "`-`"


def test_names_that_may_be_published_and_that_are_the_hubs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert public_name("/data/jane/models/mine/") == "mine"
    assert public_name("~/rows.jsonl") == "rows.jsonl"
    assert public_name("C:\\data\\rows.jsonl") == "rows.jsonl"
    for name in ("owner/model@v1", "embedded:smollm2-135m", "worldbook:lookup/de", "data/rows.jsonl"):
        assert public_name(name) == name
    assert hub_id("owner/model@v1") == "owner/model"
    for name in (
        "models/mine",
        "embedded:smollm2-135m",
        "data/rows.jsonl",
        "worldbook:lookup/de",
        "a/b/c",
        "/a/b",
    ):
        assert hub_id(name) is None


def test_a_licence_is_read_from_the_starts_card_or_configuration(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "start"
    shutil.copytree(tiny_model, folder)
    assert licence_of(str(folder)) is None
    (folder / "README.md").write_text("---\nlicense: Apache-2.0\nlicense_link: LICENSE\n---\n# x\n")
    assert licence_of(str(folder)) == Licence(
        identifier="apache-2.0", name=None, link=None, stated_in="README.md"
    )
    for wrong in ("no card", "---\nlicense: [a, b]\n---\n", "---\nlicense: 'a b'\n---\n", "---\n: [\n---\n"):
        (folder / "README.md").write_text(wrong)
        assert licence_of(str(folder)) is None
    config = folder / "config.json"
    config.write_text(config.read_text().replace("{", '{"license": "mit",', 1))
    assert licence_of(str(folder)) == Licence(identifier="mit", name=None, link=None, stated_in="config.json")
    assert licence_of("owner/never-fetched") is None
