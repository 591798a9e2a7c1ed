"""What is written down of how a run was made: all that is needed to make it again, and nothing secret."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from lingraft.stopping import Stopped
from lingraft.study.made import MADE, invocations, noted_in, without_secrets

HOME = "/".join(("", "home", "anna"))  # of nobody


def test_each_invocation_is_kept_with_how_it_ended(tmp_path: Path) -> None:
    with noted_in(tmp_path, ["lingraft", "run", "a b.yaml"], 1) as ending:
        ending.outcome = "done"
    with pytest.raises(OSError, match="disk"), noted_in(tmp_path, None, 2):
        raise OSError("the disk fails")
    with pytest.raises(Stopped), noted_in(tmp_path, None, 1):
        raise Stopped(15)
    found = invocations(tmp_path)
    assert [one.outcome for one in found] == ["done", "failed", "stopped"]
    assert found[0].command == "lingraft run 'a b.yaml'"
    assert found[0].libraries["torch"] == version("torch")
    assert found[0].ended is not None
    assert found[0].began < found[0].ended < found[1].began
    assert found[1].processes == 2


def test_one_that_was_killed_has_no_end_and_the_next_is_kept_as_well(tmp_path: Path) -> None:
    with noted_in(tmp_path, None, 1):
        begun = (tmp_path / MADE).read_bytes()
        assert [one.ended for one in invocations(tmp_path)] == [None]
    (tmp_path / MADE).write_bytes(begun + b'{"format": 1, "beg')  # killed while it wrote
    assert [one.ended for one in invocations(tmp_path)] == [None]
    with noted_in(tmp_path, None, 1) as ending:
        ending.outcome = "done"
    assert [one.outcome for one in invocations(tmp_path)] == [None, "done"]


def test_a_folder_of_an_earlier_version_has_no_invocation(tmp_path: Path) -> None:
    assert invocations(tmp_path) == ()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("evaluate.judge.url=https://me:pw@host/v1", "evaluate.judge.url=https://***@host/v1"),
        ("https://host/v1?api_key=abc&version=1", "https://host/v1?api_key=***&version=1"),
        ("--hf-token hf_abc x", "--hf-token *** x"),
        ("judge.api_key=abc", "judge.api_key=***"),
        ("sk-abcdefghijkl", "sk-***"),
        ("--set 'judge.api_key=two words' 'a b'", "--set 'judge.api_key=***' 'a b'"),
        ("--hf-token 'two words' x", "--hf-token *** x"),
        ("https://me:p@w@host/v1 https://host/a@b", "https://***@host/v1 https://host/a@b"),
        ("api_key: 'quoted'\nkey:\n  name: 1", "api_key: ***\nkey:\n  name: 1"),
        ('{"api_key": "quoted", "n": 1}', '{"api_key": ***, "n": 1}'),
        ("Authorization: Bearer abcdefgh; the bearer of it", "Authorization: Bearer *** the bearer of it"),
        ("github_pat_11ABCDEFG0abcdef glpat-abcdefgh", "github_pat_*** glpat-***"),
        (
            "training.max_new_tokens=5 special_tokens: strip",
            "training.max_new_tokens=5 special_tokens: strip",
        ),
        (f"source: {HOME}/rows.jsonl", "source: ~/rows.jsonl"),
        (f"'{HOME}'", "'~'"),
        ("/data/home/rows /rooted", "/data/home/rows /rooted"),
    ],
)
def test_keys_and_home_folders_are_taken_out(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_what_an_environment_variable_keeps_secret_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "a-long-secret")
    assert without_secrets("x=a-long-secret") == "x=***"
