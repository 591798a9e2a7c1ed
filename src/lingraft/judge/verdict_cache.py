"""Verdicts that were paid for, in a JSONL file that only grows: no question that has a verdict is asked again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lingraft.errors import EvaluationError
from lingraft.judge.budget import Tokens

_START = b'{"verdict": "'  # of every line, so that no other file is taken for a cache and cut


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's answer to one question: which of two outputs, in this order, is better.

    Attributes:
        first: Preference for the output that was shown first, in [0, 1]; None: the answer names none.
        weighted: Whether `first` is from the probabilities of the two letters, not from the letter alone.
        text: The answer.
        model: Which model answered, as the endpoint says.
        read: Tokens of the prompt; None: the endpoint did not count.
        written: Tokens of the answer; None: the endpoint did not count.
    """

    first: float | None
    weighted: bool
    text: str
    model: str
    read: int | None
    written: int | None

    @property
    def tokens(self) -> Tokens | None:
        """What the question used, where the endpoint counted."""
        return None if self.read is None or self.written is None else Tokens(self.read, self.written)


class VerdictCache:
    """Verdicts by fingerprint of their question.

    Answers of an earlier run that name no output are no verdicts: their questions are asked again, since another try
    may name one, and what they took is remembered. A last line without its end was torn when a run was killed; it is
    cut off when the file is opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Verdict] = {}
        self._paid: dict[str, list[Verdict]] = {}
        if path.exists():
            self._read()

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Verdict:
        return self._found[key]

    def paid_before(self, key: str) -> Sequence[Verdict]:
        """Return all answers of earlier runs to a question, also those that named no output."""
        return self._paid.get(key, ())

    def append(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict; it is on disk when this returns."""
        line = json.dumps({"verdict": key, **asdict(verdict)}, ensure_ascii=False)
        with self._path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
        self._found[key] = verdict

    def _read(self) -> None:
        whole = 0  # bytes of complete lines
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                is_torn = not line.endswith(b"\n")
                if not (line.startswith(_START) or (is_torn and _START.startswith(line))):
                    raise EvaluationError(self._no_verdict(number, "no line that lingraft wrote"))
                if is_torn:
                    break
                self._keep(number, line)
                whole += len(line)
        os.truncate(self._path, whole)

    def _keep(self, number: int, line: bytes) -> None:
        try:
            row = json.loads(line)
            key, verdict = row.pop("verdict"), Verdict(**row)
            if not (verdict.first is None or 0 <= verdict.first <= 1):
                raise ValueError(f"first is {verdict.first!r}")
        except (ValueError, TypeError) as error:
            raise EvaluationError(self._no_verdict(number, f"{type(error).__name__}: {error}")) from None
        self._paid.setdefault(key, []).append(verdict)
        if verdict.first is not None:
            self._found[key] = verdict

    def _no_verdict(self, number: int, problem: str) -> str:
        return (
            f"{self._path}:{number}: is no verdict ({problem}); repair the file, move it away, or name another one "
            "(`lingraft judge --cache`)."
        )


@contextmanager
def open_cache(path: Path) -> Iterator[VerdictCache]:
    """Open a cache, made where it is absent, and keep other processes from asking the same meanwhile.

    Raises:
        EvaluationError: Another process has it open, or it is another kind of file.
    """
    if not path.parent.is_dir() or path.is_dir():
        raise EvaluationError(
            f"{path}: verdicts are kept in a file, in a folder that exists (`lingraft judge` takes one with --cache)."
        )
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise EvaluationError(f"{path}: another lingraft is judging into it; wait for it.") from None
    except OSError as error:
        raise EvaluationError(
            f"{path}: cannot be written ({error.strerror}); see to its permissions, or have the results elsewhere."
        ) from None
    try:
        yield VerdictCache(path)
    finally:
        lock.release()
