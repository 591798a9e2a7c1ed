"""One process at a time makes a thing, and whoever was taken for dead notices."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lingraft import claims
from lingraft.claims import Claim, Owner, claim, claim_when_free, owner_of
from lingraft.errors import ClaimedError, ClaimLostError, ConfigError
from lingraft.records import Stamp

HOLD = """
import sys, time
from pathlib import Path
from lingraft import claims
claims.SECONDS_BETWEEN_BEATS = 0.05
held = claims.claim(Path(sys.argv[1]))
print(held.number, flush=True)
if sys.argv[2:] == ["fork"]:
    import os
    if os.fork() == 0:
        held.release()
        os._exit(0)
    os.wait()
    print("forked", flush=True)
time.sleep(60)
"""


@contextmanager
def another_process(
    thing: Path, *options: str, before: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Give a process that holds the claim until it is killed."""
    process = subprocess.Popen(
        [*before, sys.executable, "-c", HOLD, str(thing), *options], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let owners be lost after a second."""
    monkeypatch.setattr(claims, "SECONDS_BETWEEN_BEATS", 0.05)
    monkeypatch.setattr(claims, "SECONDS_UNTIL_LOST", 1.0)


def from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_this_machine", lambda: "another machine")


def test_numbers_grow_and_of_released_claims_the_last_stays(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with claim(tmp_path / "thing") as held:
            assert held.number == number
            held.check()
    assert [path.name for path in (tmp_path / "thing").iterdir()] == ["3"]
    assert (tmp_path / "thing" / "3").read_bytes() == b""


def test_an_owner_that_lives_is_named(tmp_path: Path) -> None:
    with claim(tmp_path / "thing"):
        with pytest.raises(ClaimedError, match=rf"process {os.getpid()} on .*, since 20") as refused:
            claim(tmp_path / "thing")
        owner = owner_of(tmp_path / "thing")
        assert refused.value.owner == owner
    assert owner is not None
    assert owner.process == os.getpid()
    assert owner_of(tmp_path / "thing") is None
    assert owner_of(tmp_path / "nothing") is None


def test_an_owner_that_was_killed_is_followed_at_once(tmp_path: Path) -> None:
    with another_process(tmp_path) as other:
        with pytest.raises(ClaimedError, match=f"process {other.pid} "):
            claim(tmp_path)
        other.kill()
        other.wait()
        began = time.monotonic()
        with claim(tmp_path) as held:
            assert held.number == 2
        assert time.monotonic() - began < 1


def test_a_dead_process_that_nobody_waited_for_is_dead(tmp_path: Path) -> None:
    with another_process(tmp_path) as other:
        other.kill()
        while claims._start_of(other.pid) is not None:  # a zombie until `wait`
            time.sleep(0.01)
        claim(tmp_path).release()


def test_a_number_of_a_process_that_is_another_one_by_now_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(claims, "_start_of", lambda _: "12")
        held = claim(tmp_path)
    with claim(tmp_path) as after:
        assert after.number == 2
        with pytest.raises(ClaimLostError):
            held.check()
    held.release()


def test_a_stopped_owner_is_followed_after_a_while_and_notices(tmp_path: Path, short: None) -> None:
    with another_process(tmp_path) as other:
        with pytest.raises(ClaimedError):
            claim(tmp_path, patience=1.5)  # it lives
        os.kill(other.pid, signal.SIGSTOP)
        began = time.monotonic()
        with claim(tmp_path, patience=None) as held:
            assert held.number == 2
            assert time.monotonic() - began >= 0.9
            os.kill(other.pid, signal.SIGCONT)
            time.sleep(0.3)  # its beats do not bring its claim back
            held.check()
            assert [path.name for path in tmp_path.iterdir()] == ["2"]


@pytest.mark.usefixtures("short")
def test_an_owner_on_another_machine_is_watched_before_it_is_refused_or_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with another_process(tmp_path) as other:
        from_elsewhere(monkeypatch)
        began = time.monotonic()
        with pytest.raises(ClaimedError, match=f"process {other.pid} on "):
            claim(tmp_path)
        assert time.monotonic() - began < 0.9
        os.kill(other.pid, signal.SIGSTOP)
        notes: list[str] = []
        with claim_when_free(tmp_path, "rows", notes.append) as held:
            assert held.number == 2
        assert len(notes) == 1
        assert f"rows: held by process {other.pid} on " in notes[0]
        assert "it takes up to 1 seconds to see whether it lives" in notes[0]


@pytest.mark.usefixtures("short")
def test_no_clock_on_a_wall_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    with another_process(tmp_path) as other:
        from_elsewhere(monkeypatch)
        for hours in (1, -1, 1000, 0):
            monkeypatch.setattr(time, "time", lambda hours=hours: now() + 3600 * hours)
            with pytest.raises(ClaimedError):
                claim(tmp_path)
            # A beat counts as a change, whatever time it names.
            stamp = now() + 3600 * hours
            os.utime(tmp_path / "1", (stamp, stamp))
        assert other.poll() is None


def test_an_observer_that_was_stopped_itself_has_seen_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    seen, stamp = claims._Seen(), Stamp(1, 1, 1, 1, 1)
    assert not seen.is_quiet(1, stamp)
    now += 5000
    assert not seen.is_quiet(1, stamp)
    for _ in range(60):
        now += 1
        quiet = seen.is_quiet(1, stamp)
    assert quiet
    assert not seen.is_quiet(1, Stamp(1, 1, 1, 2, 2))


def test_a_forked_process_releases_nothing(tmp_path: Path) -> None:
    with another_process(tmp_path, "fork") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "forked\n"
        with pytest.raises(ClaimedError):
            claim(tmp_path)


@pytest.mark.parametrize("forget", [False, True])
def test_of_many_at_once_one_has_it(tmp_path: Path, forget: bool) -> None:
    inside, most, numbers, guard = 0, 0, [], threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            held = claim(tmp_path / "thing", patience=None)
            try:
                with guard:
                    inside += 1
                    most = max(most, inside)
                    numbers.append(held.number)
                time.sleep(0.001)
                with guard:
                    inside -= 1
            finally:
                held.release(forget=forget)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert len(numbers) == 30
    if not forget:
        assert numbers == sorted(set(numbers))
    assert (tmp_path / "thing").exists() is not forget


def test_a_file_system_without_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    with claim(tmp_path), pytest.raises(ClaimedError, match=f"process {os.getpid()}"):
        claim(tmp_path)
    with claim(tmp_path) as held:
        assert held.number == 2


def test_a_link_whose_answer_was_lost_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def twice(*names: Path) -> None:
        link(*names)
        link(*names)

    monkeypatch.setattr(os, "link", twice)
    with claim(tmp_path) as held:
        held.check()
        assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_claim_whose_file_is_gone_is_lost(tmp_path: Path) -> None:
    held = claim(tmp_path)
    (tmp_path / "1").unlink()
    with pytest.raises(ClaimLostError, match="was removed while this process held it"):
        held.check()
    held.release()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_was_removed_and_is_another_one_s_by_now_is_lost_and_left_alone(tmp_path: Path) -> None:
    held = claim(tmp_path / "thing")
    shutil.rmtree(tmp_path / "thing")
    with another_process(tmp_path / "thing") as other:  # by the same number
        with pytest.raises(ClaimLostError, match="was removed while this process held it"):
            held.check()
        held.release()
        with pytest.raises(ClaimedError, match=f"process {other.pid} "):
            claim(tmp_path / "thing")


def test_a_number_is_above_those_of_owners_whose_claims_were_removed(tmp_path: Path) -> None:
    with claim(tmp_path, above=6) as held:
        assert held.number == 7
    with claim(tmp_path, above=3) as held:
        assert held.number == 8


def test_what_a_killed_process_left_of_its_claim_goes_with_the_next_one(tmp_path: Path) -> None:
    (tmp_path / ".1.0123abcd.part").write_text("{")
    with claim(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE])
def test_who_finds_its_file_removed_by_one_that_was_faster_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    link = os.link

    def removed_before(file: Path, _: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        with claim(tmp_path):
            assert not file.exists()
        raise OSError(number, os.strerror(number), str(file))  # ESTALE on NFS, by another machine

    monkeypatch.setattr(os, "link", removed_before)
    with claim(tmp_path) as held:
        assert held.number == 2


def test_a_name_of_a_machine_that_is_no_text_is_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "h\udcffst\n\x1b[2J")
    claims._this_machine.cache_clear()
    try:
        with claim(tmp_path):
            owner = owner_of(tmp_path)
            assert owner is not None
            assert owner.is_here
            assert r"on h?st\n\x1b[2J, since" in str(owner)
    finally:
        claims._this_machine.cache_clear()


@pytest.mark.usefixtures("short")
def test_processes_that_count_time_from_another_start_do_not_take_each_other_for_dead(tmp_path: Path) -> None:
    apart = ["unshare", "--time", "--boottime", "3600", "--fork", "--kill-child"]
    if subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("time namespaces can be made by root alone, where there are any")
    with another_process(tmp_path, before=apart), pytest.raises(ClaimedError):
        claim(tmp_path)


@pytest.mark.parametrize("found", ["link", "folder", "pipe", "folder link", "file", "last number"])
def test_what_is_no_claim_is_refused(tmp_path: Path, found: str) -> None:
    thing, victim = tmp_path / "thing", tmp_path / "victim"
    victim.write_text("x")
    if found == "folder link":
        (tmp_path / "far").mkdir()
        thing.symlink_to(tmp_path / "far")
    elif found == "file":
        thing.touch()
    else:
        thing.mkdir()
    if found == "link":
        (thing / "4").symlink_to(victim)
    elif found == "folder":
        (thing / "4").mkdir()
    elif found == "pipe":
        os.mkfifo(thing / "4")
    elif found == "last number":
        (thing / ("9" * 18)).touch()
    with pytest.raises(ConfigError, match=r"is a link|is no file|is no folder|never counted to 9+"):
        claim(thing)
    assert owner_of(thing) is None
    assert victim.read_text() == "x"


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff\xfe", b'{"process": 1}', b"[" * 5000, b'{"process": -1}', b"x" * 9999]
)
def test_a_claim_that_says_nothing_is_of_someone_until_it_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(claims, "SECONDS_UNTIL_LOST", 0.2)
    (tmp_path / "7").write_bytes(content)
    (tmp_path / "0x9").write_bytes(content)
    (tmp_path / "08").write_bytes(content)
    notes: list[str] = []
    with claim_when_free(tmp_path, "rows", notes.append) as held:
        assert held.number == 8
    assert notes == [
        "rows: held by a process that its claim does not name; it takes up to 0 seconds to see whether it lives."
    ]


def test_control_characters_of_a_claim_do_not_reach_the_terminal() -> None:
    owner = Owner(1, "\x1b[2Jhost", "", "", float("nan"), "lingraft \x1b]0;x\x07\nrun")
    assert str(owner) == r"process 1 on \x1b[2Jhost (lingraft \x1b]0;x\x07\nrun)"


def test_a_claim_that_cannot_be_given_back_is_taken_for_dead_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", refused)
        held: Claim = claim(tmp_path)
        held.release()
    monkeypatch.setattr(claims, "SECONDS_UNTIL_LOST", 0.3)
    with claim(tmp_path, patience=None) as after:
        assert after.number == 2
