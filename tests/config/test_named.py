"""`NAME=PATH`: a name where there is one, a path where it exists, and short names that differ where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from lingraft.config.named import all_named, named
from lingraft.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "name", "value"),
    [
        ("new=models/a", "new", "models/a"),
        ("new = models/a", "new", " models/a"),
        ("models/a", "models/a", "models/a"),
        ("models/x=1", "models/x=1", "models/x=1"),
        ("embedded:a=b", "embedded:a=b", "embedded:a=b"),
        ("new=models/x=1", "new", "models/x=1"),
    ],
)
def test_a_name_stands_before_the_first_equal_sign(written: str, name: str, value: str) -> None:
    found = named(written)
    assert (found.name, found.value) == (name, value)
    assert found.is_given == (name != value)


def test_a_path_that_exists_is_a_path_whatever_it_contains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named("alpha=0.5").is_given
    Path("alpha=0.5").mkdir()
    assert named("alpha=0.5").value == "alpha=0.5"


@pytest.mark.parametrize("written", ["=a", "a=", " =a"])
def test_half_a_name_is_refused(written: str) -> None:
    with pytest.raises(ConfigError, match="write NAME=PATH"):
        named(written)


def test_what_has_no_name_gets_the_shortest_in_which_it_differs(tmp_path: Path) -> None:
    places = ["a/model", "b/model", "a/rows.jsonl", "b/rows.jsonl.gz", "a/other.txt"]
    for place in places:
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if path.suffix == "" else path.touch()
    given = [str(tmp_path / place) for place in places]
    found = all_named([*given, "org/model", f"other={tmp_path}"])
    names = ["a/model", "b/model", "rows.jsonl", "rows.jsonl.gz", "other.txt", "org/model", "other"]
    assert [one.name for one in found] == names
    assert [one.name for one in all_named(given[2:3])] == ["rows"]
    assert [one.name for one in all_named(given[:2], lambda place: ("m", place[-7:]))] == [
        "a/model",
        "b/model",
    ]


def test_a_name_that_is_proposed_for_two_leaves_a_folder_its_own(tmp_path: Path) -> None:
    for place in ("quickstart", "second"):
        (tmp_path / place).mkdir()
    given = [str(tmp_path / place) for place in ("quickstart", "second")]
    assert [one.name for one in all_named(given, lambda _: ("quickstart",))] == ["quickstart", "second"]


def test_a_name_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="m: is the name of a and b"):
        all_named(["m=a", "m=b"])
