"""Verdicts that are kept: no question is put twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from judge_server import (
    ANSWERS,
    REFERENCE,
    JudgeServer,
    failure,
    outputs,
    prefers_longer,
    verdict,
)

from lingraft.errors import EvaluationError
from lingraft.judge.client import Endpoint
from lingraft.judge.win_rate import Judge, Judged, Output, judge_answers


def test_a_run_that_failed_goes_on_and_asks_nothing_twice(
    judged: Callable[..., Judged], judge_server: JudgeServer
) -> None:
    answers, reference = outputs(*(["answer"] * 20)), outputs(*(["reference"] * 20))
    judge_server.behaviour = lambda asked: (
        failure(401) if len(judge_server.requests) > 13 else prefers_longer(asked)
    )
    with pytest.raises(EvaluationError, match="401"):
        judged(answers, reference)
    answered = judge_server.questions[:13]
    judge_server.requests.clear()
    judge_server.behaviour = prefers_longer
    found = judged(answers, reference)
    assert len(judge_server.questions) == 27
    assert not set(answered) & set(judge_server.questions)
    assert (found.usage.verdicts, found.usage.new, found.win_rate.n) == (40, 27, 20)
    again = judged(answers, reference)
    assert len(judge_server.questions) == 27
    assert (again.usage.new, again.win_rate, again.preferences) == (0, found.win_rate, found.preferences)


def test_another_judge_option_or_output_is_asked_anew(
    judged: Callable[..., Judged], judge_server: JudgeServer, tmp_path: Path
) -> None:
    judged()
    judged(logprobs=False)
    assert len(judge_server.requests) == 16
    other = Judge(Endpoint(judge_server.url, "other"))
    judge_answers(ANSWERS, REFERENCE, other, cache=tmp_path / "verdicts.jsonl")
    assert len(judge_server.requests) == 24
    judged([*ANSWERS[:3], Output("row 3", "Say 3.", "another")])
    assert len(judge_server.requests) == 26


def test_an_answer_that_names_no_output_is_asked_again_in_the_next_run_and_both_are_counted(
    judged: Callable[..., Judged], judge_server: JudgeServer
) -> None:
    judge_server.behaviour = lambda asked: (
        verdict("Hmm") if asked.output("B") == "short" else prefers_longer(asked)
    )
    assert judged().win_rate.n == 3
    judge_server.requests.clear()
    judge_server.behaviour = prefers_longer
    found = judged()
    assert [one.output("B") for one in judge_server.requests] == ["short"]
    assert (found.win_rate.n, found.left_out, found.usage.unparseable) == (4, (), 0)
    assert (found.usage.verdicts, found.usage.new, found.usage.tokens.read) == (8, 1, 900)
    assert judged().usage.tokens.read == 900
    assert len(judge_server.requests) == 1


def test_two_servers_do_not_share_verdicts_although_their_models_have_the_same_name(
    judged: Callable[..., Judged], judge_server: JudgeServer
) -> None:
    assert judged().win_rate.value == 0.5
    judge_server.behaviour = lambda asked: verdict("A" if "middle" in asked.output("B") else "B")
    other = judge_server.url.replace("127.0.0.1", "localhost")
    assert judged(url=other).win_rate.value == 1.0
    assert judged(url=f"{other}/").usage.new == 0  # the same address


def test_a_torn_last_line_is_cut_off_and_asked_again(
    judged: Callable[..., Judged], judge_server: JudgeServer, tmp_path: Path
) -> None:
    cache = tmp_path / "verdicts.jsonl"
    whole = judged()
    lines = cache.read_bytes().splitlines(keepends=True)
    for torn in (b"".join(lines[:-1]) + lines[-1][:40], b"".join(lines[:-1]) + b"{"):
        cache.write_bytes(torn)
        judge_server.requests.clear()
        found = judged()
        assert len(judge_server.requests) == 1
        assert found.preferences == whole.preferences
        assert sorted(cache.read_bytes().splitlines()) == sorted(line.rstrip(b"\n") for line in lines)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"instruction": "a"}', r"verdicts\.jsonl:1: is no verdict \(no line that lingraft wrote\)"),
        ('{"verdict": "a", "first": 2}\n', r"verdicts\.jsonl:1: is no verdict \(TypeError"),
        ("\n", r"verdicts\.jsonl:1: is no verdict"),
    ],
)
def test_another_file_is_not_taken_for_a_cache_and_stays_as_it_is(
    judged: Callable[..., Judged], judge_server: JudgeServer, tmp_path: Path, content: str, says: str
) -> None:
    (tmp_path / "verdicts.jsonl").write_text(content)
    with pytest.raises(EvaluationError, match=says):
        judged()
    assert (tmp_path / "verdicts.jsonl").read_text() == content
    assert judge_server.requests == []
