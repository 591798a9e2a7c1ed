"""A damaged or foreign plan.json costs names and nothing else: a run goes on, a clean-up removes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lingraft.errors import ConfigError
from lingraft.records import write_kept
from lingraft.study.unused import PLAN, ListedStage, leftovers, read_plan, unused_stages, write_plan

OLD, NEW = (f"train-{number:016x}" for number in (1, 2))
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name in (OLD, NEW):
        (tmp_path / "stages" / name).mkdir(parents=True)
        (tmp_path / "stages" / name / "file").write_text("x")
    (tmp_path / "study.yaml").write_text("name: tiny\n")
    write_plan(tmp_path, {OLD: ListedStage("old", is_continued=True)})
    return tmp_path


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=JSON, is_kept=st.booleans())
def test_any_json_in_place_of_a_plan_is_refused_by_a_clean_up_and_replaced_by_a_run(
    run: Path, plan: object, is_kept: bool
) -> None:
    if is_kept:
        write_kept(run / PLAN, plan)
    else:
        (run / PLAN).write_text(json.dumps(plan), encoding="utf-8")
    with pytest.raises(ConfigError, match="Run the study once more") as caught:
        leftovers(run)
    assert "\n" not in str(caught.value)
    write_plan(run, {NEW: ListedStage("new", is_continued=True)})
    assert [(one.path, one.name) for one in unused_stages(run)] == [(f"stages/{OLD}", None)]


def test_a_flipped_bit_in_a_plan_never_makes_a_clean_up_remove_what_is_listed(run: Path) -> None:
    write_plan(run, {NEW: ListedStage("new", is_continued=True)})
    whole = (run / PLAN).read_bytes()
    for place in range(8 * len(whole)):
        torn = bytearray(whole)
        torn[place // 8] ^= 1 << place % 8
        (run / PLAN).write_bytes(torn)
        try:
            found = leftovers(run)
        except ConfigError:
            continue
        assert [one.path for one in found.removable if NEW in one.path] == []


def test_a_plan_that_names_places_elsewhere_removes_nothing_there(run: Path, tmp_path: Path) -> None:
    names = ("../../victim", str(tmp_path / "victim"), "..", "")
    plan = {"format": 1, "former": dict.fromkeys(names, "x")}
    plan["stages"] = {name: {"name": "x", "is_continued": False} for name in names}
    write_kept(run / PLAN, plan)
    with pytest.raises(ConfigError, match="damaged"):
        leftovers(run)
    write_plan(run, {})
    assert read_plan(run).former == {}
