"""Files as they lie about: links, loops, pipes, names that are none, and files that change while they are read."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from lingraft.config.schema import DataSource
from lingraft.data.files import files_of
from lingraft.data.rows import OpenedRows, open_rows
from lingraft.data.sources import load_data
from lingraft.errors import DataError, LingraftError
from lingraft.representation.prompts import read_prompts

ROWS = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(3)]
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS)


def write(path: Path, content: str = LINES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def names(source: str, folder: Path) -> list[str]:
    return [str(one.path.relative_to(folder)) for one in files_of(source, folder)]


# --- links and patterns


@pytest.mark.parametrize("source", ["data/**/*.jsonl", "data/", "data/**", "data", "{data,data}/**/*.jsonl"])
def test_a_loop_of_links_is_gone_through_once(tmp_path: Path, source: str) -> None:
    write(tmp_path / "data" / "a.jsonl")
    write(tmp_path / "data" / "deep" / "b.jsonl")
    for name, target in (("data/self", "."), ("data/deep/up", ".."), ("data/deep/again", "../deep")):
        (tmp_path / name).symlink_to(target)
    assert load_data(DataSource(source=source), base_folder=tmp_path).n_rows == 6
    assert sorted(names(source, tmp_path)) == ["data/a.jsonl", "data/deep/b.jsonl"]


def test_a_file_is_read_once_however_often_it_is_named_and_that_is_counted(tmp_path: Path) -> None:
    write(tmp_path / "data" / "b.jsonl")
    (tmp_path / "data" / "a.jsonl").symlink_to("b.jsonl")
    for source, again in (("data/", 1), ("data/*.jsonl", 1), ("data/{b,b,a}.jsonl", 2), ("data/b.jsonl", 0)):
        found = load_data(DataSource(source=source), base_folder=tmp_path)
        assert (found.n_rows, dict(found.filtered)) == (3, {"same_file_again": again} if again else {}), (
            source
        )
        assert names(source, tmp_path) == ["data/b.jsonl"]


def test_folders_behind_links_are_read(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a.jsonl")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "more").symlink_to("../elsewhere")
    assert names("data/", tmp_path) == names("data/**/*.jsonl", tmp_path) == ["data/more/a.jsonl"]


def test_one_file_has_one_language(tmp_path: Path) -> None:
    write(tmp_path / "es.jsonl")
    (tmp_path / "pt.jsonl").symlink_to("es.jsonl")
    with pytest.raises(DataError, match=r"es.jsonl and pt.jsonl are one file, which has one language"):
        load_data(DataSource(source="{language}.jsonl"), base_folder=tmp_path)


def test_the_language_may_stand_twice_and_beside_other_signs(tmp_path: Path) -> None:
    for language in ("es", "de"):
        write(tmp_path / language / f"train-{language}.jsonl")
    write(tmp_path / "es" / "train-x.jsonl")
    for source in ("{language}/train-{language}.jsonl", "*/*-{language}.jsonl", "**/train-{language}.jsonl"):
        if source.startswith("{"):
            (tmp_path / "es" / "train-x.jsonl").unlink()
        found = files_of(source, tmp_path)
        assert [one.language for one in found] == ["de", "es"], source


def test_signs_of_patterns_in_the_folder_of_the_study_mean_themselves(tmp_path: Path) -> None:
    folder = tmp_path / "study [1] *"
    write(folder / "data" / "a.jsonl")
    write(folder / "data" / "b[1].jsonl")
    assert names("data/*.jsonl", folder) == ["data/a.jsonl", "data/b[1].jsonl"]
    assert names("data/b[1].jsonl", folder) == ["data/b[1].jsonl"]
    write(folder / "data" / ".hidden.jsonl")
    write(folder / "data" / ".cache" / "c.jsonl")
    assert len(names("data/", folder)) == len(names("**/*.jsonl", folder)) == 2


# --- what is no file, or no name


def pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (pipe, "is a pipe, a socket or a device, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a pipe, a socket or a device, not a file"),
        (lambda path: path.symlink_to("nowhere.jsonl"), "there is no such file"),
        (lambda path: path.symlink_to(path.name), "the file cannot be read: .*symbolic links"),
    ],
)
def test_what_is_no_file_is_refused_before_anything_is_read(
    tmp_path: Path, make: Callable[[Path], None], problem: str
) -> None:
    make(write(tmp_path / "data" / "a.jsonl").with_name("x.jsonl"))
    for source in ("data/x.jsonl", "data/", "data/*.jsonl", "data/**/*.jsonl"):
        with pytest.raises(DataError, match=rf"x.jsonl: {problem}") as raised:
            load_data(DataSource(source=source), base_folder=tmp_path)
        assert "\n" not in str(raised.value)


def test_a_folder_with_the_name_of_a_file_is_looked_into(tmp_path: Path) -> None:
    write(tmp_path / "data" / "x.jsonl" / "a.jsonl")
    assert names("data", tmp_path) == ["data/x.jsonl/a.jsonl"]
    for folder in ("data/x.jsonl", "data"):  # a folder's name has no wrong ending
        with pytest.raises(DataError, match=rf"{folder}: is a folder, not a file .* name a file in it"):
            open_rows(tmp_path / folder)
    with pytest.raises(DataError, match=r"y.jsonl: there is no such file\.$"):  # nor is its place said twice
        open_rows(tmp_path / "y.jsonl")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("~no-such-user/x.jsonl", "there is no user 'no-such-user'"),
        ("~no-such-user", "there is no user 'no-such-user'"),
        ("x" * 5000 + ".jsonl", "name of more than 255 bytes"),
        ("x/" * 3000 + "y.jsonl", "cannot be read: .*too long"),
        ("*/" + "x" * 5000 + ".jsonl", "name of more than 255 bytes"),
        ("a\0b.jsonl", "no path holds a zero byte"),
        ("a\0*.jsonl", "no path holds a zero byte"),
        ("$HOME/x.jsonl", r"there is no such file \(looked for .*/\$HOME/x.jsonl"),
        ("{a,b}" * 20 + ".jsonl", "alternatives stand for more than 10,000 names"),
        ("**/" * 12 + "*.jsonl", "no file matches"),
        ("[", "no file matches"),
        ("x" * 5000, "is neither a worldbook set|name of more than 255 bytes"),
    ],
    ids=range(12),
)
def test_a_name_that_is_none_is_refused_in_one_line(tmp_path: Path, source: str, problem: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "loop").symlink_to("..")
    with pytest.raises(LingraftError, match=problem) as raised:
        load_data(DataSource(source=source), base_folder=tmp_path)
    assert "\n" not in str(raised.value)
    with pytest.raises(LingraftError, match=problem):
        read_prompts(source, base_folder=tmp_path)


def test_the_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data" / "a.jsonl")
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("~/data/a.jsonl", "~/data", "~/data/*.jsonl"):
        assert load_data(DataSource(source=source)).n_rows == 3
    write(tmp_path / "turns.jsonl", '{"turns": ["a", "b"]}')
    assert [one.messages[0].content for one in read_prompts("~/turns.jsonl")] == ["a"]


def test_a_name_that_is_not_utf8_is_to_be_changed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    try:
        write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/data/\xff.jsonl")))
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    for source in ("data/", "data/*.jsonl"):
        with pytest.raises(DataError, match=r"the file's name is not UTF-8; rename it") as raised:
            load_data(DataSource(source=source), base_folder=tmp_path)
        str(raised.value).encode("utf-8")


def test_what_the_system_does_not_let_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "data" / "a.jsonl")
    kept = Path.open

    def refuse(self: Path, *given: Any, **options: Any) -> Any:
        if self == path:
            raise OSError(5, "Input/output error", str(self))
        return kept(self, *given, **options)

    monkeypatch.setattr(Path, "open", refuse)
    for source in ("data/a.jsonl", "data/"):
        with pytest.raises(DataError, match=r"^data/a.jsonl: the file cannot be read: .*Input/output error"):
            load_data(DataSource(source=source), base_folder=tmp_path)
    monkeypatch.undo()

    def closed(self: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", closed)
    for source in ("data/", "data/*.jsonl"):
        with pytest.raises(DataError, match=rf"^{source[:5]}.*: cannot be read: .*Permission denied"):
            load_data(DataSource(source=source), base_folder=tmp_path)


# --- what is read is what was hashed

OTHER = LINES.replace("c1", "X1")  # as many bytes


def replaced(path: Path, content: str) -> None:
    """Put another file in the place of one."""
    write(path.with_name("other"), content).replace(path)


def rewritten(path: Path, content: str) -> None:
    """Write into the file, and set its time back."""
    status = path.stat()
    path.write_text(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def aged(path: Path) -> None:
    """Make a file older than the clock of any file system can err."""
    os.utime(path, (time.time() - 3600,) * 2)


@pytest.mark.parametrize(
    "change", [replaced, rewritten, lambda path, _: path.unlink(), lambda path, _: write(path, "")]
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_file_that_changes_between_hash_and_rows_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, str], None], name: str
) -> None:
    contents = {
        "a.jsonl": (LINES, OTHER),
        "a.json": (json.dumps(ROWS), json.dumps(ROWS).replace("c1", "X1")),
        "a.csv": ("prompt,completion\na,b\n", "prompt,completion\na,X\n"),
    }
    before, after = contents[name]
    path = write(tmp_path / name, before)
    aged(path)
    kept = OpenedRows.hash_and_lines
    calls: list[int] = []

    def hash_then_change(self: OpenedRows) -> tuple[str | None, int]:
        found = kept(self)
        if not calls:
            change(path, after)
        calls.append(1)
        return found

    monkeypatch.setattr(OpenedRows, "hash_and_lines", hash_then_change)
    with pytest.raises(DataError, match=rf"^{name}:.*(while it was read|cannot be read|is empty)"):
        load_data(DataSource(source=name), base_folder=tmp_path)


def test_a_file_that_changes_while_its_rows_are_read_is_noticed(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    write(tmp_path / "b.jsonl")
    for source in ("a.parquet", "b.jsonl"):
        for change in (replaced, rewritten):
            content = OTHER
            with pytest.raises(DataError, match=rf"^{source}: .*(while it was read|cannot be read)"):
                load_data(
                    DataSource(source=source),
                    base_folder=tmp_path,
                    on_progress=lambda *_, path=tmp_path / source, do=change, text=content: do(path, text),
                )
            write(tmp_path / "b.jsonl")
            datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    rows = iter(open_rows(tmp_path / "b.jsonl"))
    next(rows)
    replaced(tmp_path / "b.jsonl", OTHER)
    with pytest.raises(DataError, match=r"b.jsonl: was changed while it was read; run again"):
        list(rows)


def test_a_link_made_to_a_file_is_no_change(tmp_path: Path) -> None:
    path = write(tmp_path / "b.jsonl")
    aged(path)
    found = load_data(
        DataSource(source="b.jsonl"),
        base_folder=tmp_path,
        on_progress=lambda *_: _link(path, tmp_path / "link"),
    )
    assert found.n_rows == 3


def _link(path: Path, link: Path) -> None:
    if not link.exists():
        link.hardlink_to(path)


def test_a_row_of_the_hub_that_cannot_be_had_is_an_error_of_the_data() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield ROWS[0]
        raise OverflowError("date value out of range")

    with pytest.raises(
        DataError, match=r"^owner/name: a row of the hub's data set cannot be read: OverflowError"
    ):
        list(OpenedRows("owner/name", hub=rows()))


def test_a_copy_of_a_file_has_its_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "b.jsonl")
    shutil.copy(path, tmp_path / "c.jsonl")
    hashes = {
        load_data(DataSource(source=name), base_folder=tmp_path).content_hash
        for name in ("b.jsonl", "c.jsonl")
    }
    assert len(hashes) == 1
