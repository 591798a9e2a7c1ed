"""A model is converted by llama.cpp's converter, wherever it is; a small script stands in for it here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lingraft.adapt.gguf import check_gguf, convert, converter_of
from lingraft.adapt.history import History, read_history, write_history
from lingraft.errors import ConfigError, DiskError, LingraftError

STAND_IN = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("--outfile", type=pathlib.Path)
parser.add_argument("--outtype", choices=["f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto"])
asked = parser.parse_args()
config = json.loads((asked.model / "config.json").read_text())
asked.outfile.write_bytes(b"GGUF" + config["model_type"].encode() + asked.outtype.encode())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "thai"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    write_history(folder, History(files=("config.json", "lingraft.json")))
    return folder


def converter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str = STAND_IN) -> Path:
    script = tmp_path / "llama.cpp" / "convert_hf_to_gguf.py"
    script.parent.mkdir(exist_ok=True)
    script.write_text(text)
    monkeypatch.setenv("LLAMA_CPP", str(script.parent))
    return script


def test_the_file_lies_in_the_folder_and_belongs_to_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converter(monkeypatch, tmp_path)
    made = convert(folder, "Q8_0")
    assert made == folder / "thai-q8_0.gguf"
    assert made.read_bytes() == b"GGUFllamaq8_0"
    assert read_history(folder).files == ("config.json", "lingraft.json", "thai-q8_0.gguf")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "lingraft.json",
        "thai-q8_0.gguf",
    ]


def test_the_converter_is_found_on_the_path_and_named_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = converter(monkeypatch, tmp_path)
    assert converter_of("f16") == [sys.executable, str(script)]
    monkeypatch.setenv("LLAMA_CPP", str(script))
    assert converter_of("f16") == [sys.executable, str(script)]
    monkeypatch.delenv("LLAMA_CPP")
    monkeypatch.setenv("PATH", str(script.parent))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    with pytest.raises(ConfigError, match=r"Put its convert_hf_to_gguf.py on PATH, or set LLAMA_CPP"):
        converter_of("f16")  # it may not be run
    script.chmod(0o755)
    assert converter_of("f16")[-1] == str(script)
    command = script.with_name("convert-hf-to-gguf")
    script.rename(command)
    assert converter_of("f16") == [str(command)]


def test_a_wrong_type_or_place_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converter(monkeypatch, tmp_path)
    with pytest.raises(ConfigError, match=r"--gguf q4_k_m: is no type .*q8_0.*run llama-quantize"):
        check_gguf("q4_k_m")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"holds no convert_hf_to_gguf.py; name the folder of llama.cpp's sources"
    ):
        check_gguf("q8_0")


def test_a_converter_that_cannot_run_here_is_refused_before_anything_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converter(monkeypatch, tmp_path)
    check_gguf("q8_0")
    converter(monkeypatch, tmp_path, "import a_package_that_nobody_has")
    with pytest.raises(
        ConfigError, match=r"cannot be run here: .*a_package_that_nobody_has.*pip install gguf"
    ):
        check_gguf("q8_0")


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (
            "import sys; sys.exit('BPE was \\x1b[31mnot recognized')",
            LingraftError,
            r"exit code 1: .*\\x1b\[31m",
        ),
        ("", LingraftError, "exit code 0: it said nothing"),
        (
            "import sys, pathlib; pathlib.Path(sys.argv[3]).write_text('no GGUF')",
            LingraftError,
            "exit code 0",
        ),
        (
            "raise OSError(28, 'No space left on device')",
            DiskError,
            "the disk is full",
        ),
    ],
)
def test_a_converter_that_fails_leaves_the_folder_as_it_was(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    kind: type[LingraftError],
    said: str,
) -> None:
    converter(monkeypatch, tmp_path, text)
    with pytest.raises(kind, match=said):
        convert(folder, "q8_0")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "lingraft.json"]
