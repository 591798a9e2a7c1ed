"""A run folder that several processes make stages in: each is published once, whoever is stopped or killed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from lingraft import claims, records, stage_record
from lingraft.claims import claim
from lingraft.errors import ClaimedError, ClaimLostError, ConfigError, DiskError, LingraftError, as_disk_error
from lingraft.records import read_json
from lingraft.stage import Json, StageSpec, Work, Workplace
from lingraft.study import store as store_module
from lingraft.study.store import FORMER, Store, unfinished

# Makes the stage, and stops itself at the place that it is given; prints what it is about to do.
MAKE = """
import os, signal, sys
from pathlib import Path
from lingraft import claims
claims.SECONDS_BETWEEN_BEATS = 0.05
from lingraft.study.store import Store
from tests.study.test_shared_store import Stage, work_of
run, place = Path(sys.argv[1]), sys.argv[2]

def here(name):
    if name == place:
        print("here", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)

rename, check = Path.rename, claims.Claim.check
def renamed(self, target):
    if self.parent.name == "work":
        here("before the rename")
    elif Path(target).name == ".former":
        here("before it is moved aside")
    done = rename(self, target)
    if Path(target).name == ".former":
        here("after it was moved aside")
    return done
Path.rename = renamed
notes = []
store = Store.shared(run, notes.append)
done = store.run(Stage("one"), work_of("loser", lambda: here("in its work")), with_artefacts=True)
print((done.folder / "file").read_text(), len(notes), flush=True)
"""


class Stage(StageSpec):
    """A stage that goes on with what lies in `kept`."""

    kind: ClassVar[str] = "train"
    continues: ClassVar[tuple[str, ...]] = ("kept",)

    @property
    def inputs(self) -> dict[str, Json]:
        return {"of": 1}

    def work(self, place: Workplace) -> Work:
        raise NotImplementedError


STAGE = Stage("one")


def work_of(name: str, then: Callable[[], None] = lambda: None) -> Callable[[Path], Work]:
    """Return work that writes a file before and after what is to happen meanwhile."""

    def work(folder: Path) -> Work:
        (folder / "kept").mkdir(exist_ok=True)
        (folder / "kept" / name).write_text("checkpoint")
        (folder / "more").mkdir()
        (folder / "more" / "first").write_text(name)
        then()
        folder.mkdir(exist_ok=True)  # as what saves a checkpoint does, whoever renamed it meanwhile
        (folder / "file").write_text(name)
        return Work({"answer": 42}, {})

    return work


@contextmanager
def another_process(run: Path, place: str) -> Iterator[subprocess.Popen[str]]:
    """Give a process that makes the stage and has stopped itself at a place."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE, str(run), place],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "here\n"
        while "T" not in Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]:
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


PLACES = ("in its work", "before the rename", "before it is moved aside", "after it was moved aside")


def prepared(run: Path, place: str) -> None:
    """Make the run folder, with the artefacts of the stage discarded where the place is one of a remake."""
    with Store(run) as store:
        if "aside" in place:
            store.run(STAGE, work_of("loser"))
            store.discard(STAGE)


@pytest.mark.parametrize("place", PLACES)
def test_whoever_was_stopped_past_its_claim_cannot_publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    prepared(tmp_path, place)
    with another_process(tmp_path, place) as loser:
        monkeypatch.setattr(claims, "SECONDS_UNTIL_LOST", 0.5)
        notes: list[str] = []
        store = Store.shared(tmp_path, notes.append)
        made = store.run(STAGE, work_of("winner"), with_artefacts=True)
        assert f"process {loser.pid} on " in notes[0]
        # What was finished and not yet published is published by whoever comes next.
        expected = "winner" if place == "in its work" else "loser"
        assert (made.folder / "file").read_text() == expected
        before = {path: path.stat() for path in tmp_path.glob("stages/**/*")}
        os.kill(loser.pid, signal.SIGCONT)
        assert loser.wait(60) == 0
        assert loser.stdout is not None
        # It notices, unless what was published is its own, and goes on with it.
        assert loser.stdout.read() == f"{expected} {1 if expected == 'winner' else 0}\n"
        after = {path: path.stat() for path in tmp_path.glob("stages/**/*")}
        same = ("st_ino", "st_mtime_ns", "st_size")
        assert [[getattr(one, name) for name in same] for one in after.values() if not_folder(one)] == [
            [getattr(one, name) for name in same] for one in before.values() if not_folder(one)
        ]
    assert [path.name for path in (tmp_path / "work").iterdir()] == []
    with Store(tmp_path) as again:
        assert again.run(STAGE, work_of("third"), with_artefacts=True).reused


def test_whoever_lost_its_claim_because_all_claims_were_removed_cannot_publish(tmp_path: Path) -> None:
    prepared(tmp_path, "in its work")
    with another_process(tmp_path, "in its work") as loser:
        shutil.rmtree(tmp_path / "claims")
        made = Store.shared(tmp_path).run(STAGE, work_of("winner"))
        os.kill(loser.pid, signal.SIGCONT)
        assert loser.wait(60) == 0
        assert loser.stdout is not None
        assert loser.stdout.read() == "winner 1\n"
    assert (made.folder / "file").read_text() == "winner"
    assert list((tmp_path / "work").iterdir()) == []


def not_folder(found: os.stat_result) -> bool:
    return not found.st_mode & 0o040000


@pytest.mark.parametrize("place", PLACES)
def test_whoever_is_killed_leaves_what_the_next_one_goes_on_with(tmp_path: Path, place: str) -> None:
    prepared(tmp_path, place)
    with another_process(tmp_path, place) as killed:
        killed.kill()
        killed.wait()
        with Store(tmp_path) as store:
            assert (store.find(STAGE) is not None) is ("aside" in place)  # its record was there all the time
            seen: list[bool] = []
            made = store.run(
                STAGE,
                work_of("next", lambda: seen.append((store.work / f"{STAGE.folder_name}.2").is_dir())),
                with_artefacts=True,
            )
    assert (made.folder / "file").read_text() == ("next" if seen else "loser")
    assert bool(seen) is (place == "in its work")
    assert sorted(path.name for path in made.folder.iterdir()) == [
        "file",
        "more",
        "record.json",
        "timing.json",
    ]
    assert list((tmp_path / "work").iterdir()) == []


def test_the_next_owner_keeps_what_the_stage_continues_from_and_nothing_else(tmp_path: Path) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    found: list[list[str]] = []

    def look(folder: Path) -> Work:
        found.append(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")))
        return work_of("second")(folder)

    with Store(tmp_path) as store:
        with pytest.raises(KeyboardInterrupt):
            store.run(STAGE, work_of("first", stopped))
        assert unfinished(tmp_path, STAGE.folder_name) == store.work / f"{STAGE.folder_name}.1"
        store.run(STAGE, look)
    assert found == [["kept", "kept/first"]]
    assert unfinished(tmp_path, STAGE.folder_name) is None


def test_what_an_earlier_version_left_among_the_stages_is_gone_on_with(tmp_path: Path) -> None:
    own = tmp_path / "stages" / STAGE.folder_name
    (own / "kept").mkdir(parents=True)
    (own / "kept" / "checkpoint").write_text("x")
    (own / "half").write_text("x")
    assert unfinished(tmp_path, STAGE.folder_name) == own

    def look(folder: Path) -> Work:
        assert sorted(path.name for path in folder.rglob("*")) == ["checkpoint", "kept"]
        assert not own.exists()
        return Work({}, {})

    with Store(tmp_path) as store:
        assert not store.run(STAGE, look).reused


def test_another_process_is_waited_for_and_its_result_used(tmp_path: Path) -> None:
    prepared(tmp_path, "in its work")
    with another_process(tmp_path, "in its work") as other:
        os.kill(other.pid, signal.SIGCONT)
        made = Store.shared(tmp_path).run(STAGE, work_of("late"))
        assert made.reused
        assert (made.folder / "file").read_text() == "loser"


def test_a_second_driver_is_told_who_where_and_since(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        with (
            pytest.raises(
                ClaimedError, match=rf"another lingraft.*process {os.getpid()} on .*, since \d{{4}}-"
            ),
            Store(tmp_path),
        ):
            pass
        store.check_held()
        (tmp_path / "claims" / "run" / "9").touch()  # another one took it over
        with pytest.raises(ClaimLostError):
            store.check_held()
    with Store.shared(tmp_path) as shared:  # a worker needs no claim of the run
        shared.run(STAGE, work_of("worker"))


def test_what_another_process_published_is_taken_over_without_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(tmp_path) as driver:
        assert driver.find(STAGE) is None
        with monkeypatch.context() as patched:
            patched.setattr(store_module, "SECONDS_UNTIL_LOST", 0.1)
            with pytest.raises(LingraftError, match="is not there or not whole"):
                driver.take_over(STAGE)
        Store.shared(tmp_path).run(STAGE, work_of("worker"))
        monkeypatch.setattr(stage_record, "hash_once", lambda path: pytest.fail(f"{path} was read"))
        assert not driver.take_over(STAGE).reused
        assert driver.find(STAGE) is not None
        (driver.folder_of(STAGE) / "file").write_text("longer than it was")
        with pytest.raises(LingraftError, match="is not there or not whole"):
            driver.take_over(STAGE)


def test_what_a_network_shows_late_is_waited_for(tmp_path: Path) -> None:
    with Store(tmp_path) as driver:
        hidden = tmp_path / "hidden"
        Store.shared(tmp_path).run(STAGE, work_of("worker"))
        driver.folder_of(STAGE).rename(hidden)
        shown = threading.Timer(0.5, lambda: hidden.rename(driver.folder_of(STAGE)))
        shown.start()
        assert driver.take_over(STAGE).result == {"answer": 42}
        shown.join()


def test_a_process_reads_an_artefact_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        made = store.run(STAGE, work_of("one"))
    read: list[str] = []
    hashed = records.hash_file

    def counted(path: Path) -> str:
        read.append(path.name)
        return hashed(path)

    monkeypatch.setattr(records, "hash_file", counted)
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 10_000_000_000)  # they are no longer new
    for _ in range(3):  # as a worker, which opens the store for each stage
        assert Store.shared(tmp_path).find(STAGE, with_artefacts=True) is not None
    assert sorted(read) == ["file", "first"]
    (made.folder / "file").write_text("two")
    assert Store.shared(tmp_path).find(STAGE) is None
    assert read[2:] == ["file"]


def test_a_link_or_a_file_among_the_work_leads_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    run = tmp_path / "run"
    (run / "work").mkdir(parents=True)
    (run / "work" / f"{STAGE.folder_name}.0").write_text("no number")
    claim(run / "claims" / STAGE.folder_name).release()
    (run / "work" / f"{STAGE.folder_name}.1").symlink_to(outside)
    for name in ("..", "x", f"{STAGE.folder_name}.1.2"):
        (run / "work" / name).mkdir(exist_ok=True)
    with Store(run) as store:
        store.run(STAGE, work_of("one"))
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert {path.name for path in (run / "work").iterdir()} == {
        "x",
        f"{STAGE.folder_name}.0",
        f"{STAGE.folder_name}.1.2",
    }
    linked = run / "claims" / Stage("other").folder_name
    shutil.rmtree(linked)
    linked.symlink_to(outside)
    shutil.rmtree(run / "stages")
    with pytest.raises(ConfigError, match="is a link"), Store(run) as store:
        store.run(STAGE, work_of("one"))


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.ENOSYS, errno.EACCES])
def test_a_folder_in_which_nothing_can_be_published_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    is_closed = number == errno.EACCES  # then another disk would not help
    words = "stages/.*: permission denied" if is_closed else "cannot be renamed from work/ into stages/"

    def refused(_: Path, target: Path) -> Path:
        raise OSError(number, os.strerror(number), str(target))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        with pytest.raises(DiskError if is_closed else ConfigError, match=words), Store(tmp_path):
            pass
    assert [list((tmp_path / name).iterdir()) for name in ("work", "stages")] == [[], []]
    with Store(tmp_path):
        pass


def test_what_cannot_be_published_is_published_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.parent.name == "work" and not path.name.startswith("."):
            raise OSError(errno.EIO, "Input/output error", str(target))
        return rename(path, target)

    with monkeypatch.context() as patch, Store(tmp_path) as store:
        patch.setattr(Path, "rename", refused)
        with pytest.raises(DiskError, match="which goes on with the finished stage"):
            store.run(STAGE, work_of("one"))
    with Store(tmp_path) as store:
        made = store.run(STAGE, lambda _: pytest.fail("it is finished"))
    assert (made.folder / "file").read_text() == "one"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_folder_in_which_nothing_can_be_claimed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    opened = os.open

    def refused(path: str, flags: int, *options: int) -> int:
        if flags & os.O_EXCL:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags, *options)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(ConfigError, match="name a folder on another file system"), Store(tmp_path):
        pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if mount is None or subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root alone, where mounting is allowed")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_told_and_nothing_is_lost(small_disk: Path) -> None:
    def large(folder: Path) -> Work:
        (folder / "file").write_bytes(b"x" * 2_000_000)
        return Work({}, {})

    with Store(small_disk) as store, pytest.raises(OSError, match="No space left"):
        store.run(STAGE, large)
    with Store(small_disk) as store:
        (small_disk / "filler").write_bytes(b"x" * shutil.disk_usage(small_disk).free)
        with pytest.raises(DiskError, match="the disk is full"), as_disk_error(small_disk):
            store.run(STAGE, work_of("one"))
    # The claims are given back although the disk is full.
    assert claims.owner_of(small_disk / "claims" / "run") is None
    assert claims.owner_of(small_disk / "claims" / STAGE.folder_name) is None
    (small_disk / "filler").unlink()
    with Store(small_disk) as store:
        assert (store.run(STAGE, work_of("two")).folder / "file").read_text() == "two"


def test_a_read_only_folder_is_told_and_read(small_disk: Path) -> None:
    with Store(small_disk) as store:
        store.run(STAGE, work_of("one"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(DiskError, match="read-only"), Store(small_disk):
        pass
    assert Store(small_disk).find(STAGE, with_artefacts=True) is not None


def test_clocks_that_jump_decide_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, hours = time.time, 0
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)

    def jump() -> None:
        nonlocal hours
        hours = 1
        with pytest.raises(ClaimedError), Store(tmp_path):
            pass
        hours = -2
        with pytest.raises(ClaimedError):
            claim(tmp_path / "claims" / STAGE.folder_name)

    with Store(tmp_path) as store:
        made = store.run(STAGE, work_of("one", jump))
        store.check_held()
    assert 0 <= read_json(made.folder / "timing.json")["seconds"] < 60
    with Store(tmp_path) as store:
        assert store.run(STAGE, work_of("two")).reused


def test_leftovers_of_a_publication_are_removed(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        folder = store.run(STAGE, work_of("one")).folder
    (folder / FORMER).mkdir()
    (folder / FORMER / "record.json").write_text("{}")
    with Store(tmp_path) as store:
        assert store.run(STAGE, work_of("two")).reused
    assert not (folder / FORMER).exists()
