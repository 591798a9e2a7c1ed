"""Verdicts that were paid for, in a log: no question that has a verdict is asked again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lingraft.append_log import AppendLog, ForeignLineError, salvage
from lingraft.claims import Claim, claim
from lingraft.errors import ClaimedError, EvaluationError
from lingraft.judge.budget import Tokens
from lingraft.records import remove

_BEGINS = b'{"verdict": "'


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's answer to one question: which of two outputs, in this order, is better.

    Attributes:
        first: Preference for the output that was shown first, in [0, 1]; None: the answer names none.
        weighted: Whether `first` is from the probabilities of the two letters, not from the letter alone.
        text: The beginning of the answer.
        model: Which model answered, as the endpoint says.
        read: Tokens of the prompt; None, as `written`: the endpoint did not count.
        written: Tokens of the answer.
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


def _parse(row: Any) -> tuple[str, Verdict]:
    key, verdict = row.pop("verdict"), Verdict(**row)
    if not (verdict.first is None or 0 <= verdict.first <= 1):
        raise ValueError(f"first is {verdict.first!r}")
    for count in (verdict.read, verdict.written):
        if not (count is None or (type(count) is int and count >= 0)):
            raise ValueError(f"{count!r} is no count of tokens")
    return key, verdict


class VerdictCache:
    """Verdicts by fingerprint of their question, in a log (see `AppendLog`).

    Answers of an earlier run that name no output are no verdicts: their questions are asked again, since another try
    may name one, and what they took is remembered, as is what requests took that were lost.

    Args:
        path: The log.
        claim: Of the log; None: nobody else wants it.

    Raises:
        EvaluationError: The file is another kind of file, or holds a line that is no verdict.
    """

    def __init__(self, path: Path, claim: Claim | None = None) -> None:
        self._claim = claim
        self._found: dict[str, Verdict] = {}
        self._paid: dict[str, list[Verdict]] = {}

        try:
            self._log = AppendLog(path, _parse, begins=_BEGINS)
        except ForeignLineError as error:
            raise EvaluationError(
                f"{path}:{error.line}: is no verdict ({error}); repair the file, move it away, or name another one "
                "(`lingraft judge --cache`)."
            ) from None
        for key, verdict in self._log.rows:
            self._paid.setdefault(key, []).append(verdict)
            if verdict.first is not None:
                self._found[key] = verdict

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Verdict:
        return self._found[key]

    def paid_before(self, key: str) -> Sequence[Verdict]:
        """Return what earlier runs paid for a question: answers, also those that named no output, and lost requests."""
        return self._paid.get(key, ())

    def append_lost(self, key: str, tokens: Tokens) -> None:
        """Keep what a request may have cost that was not answered."""
        self._write(key, Verdict(None, False, "", "", tokens.read, tokens.written))

    def append(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict; it is on disk when this returns."""
        self._write(key, verdict)
        self._found[key] = verdict

    def _write(self, key: str, verdict: Verdict) -> None:
        if self._claim is not None:  # one file serves all, whoever pays: what a loser writes could spoil it
            self._claim.check()
        self._log.append([{"verdict": key, **asdict(verdict)}])


@contextmanager
def open_cache(path: Path) -> Iterator[VerdictCache]:
    """Open a cache, made where it is missing, and hold it: who else wants it waits, and then finds these verdicts.

    So no question is paid for twice, and no more requests are under way than one judge is asked for at a time.

    Raises:
        EvaluationError: It cannot be written, or it is another kind of file.
    """
    if not path.parent.is_dir() or path.is_dir():
        raise EvaluationError(
            f"{path}: verdicts are kept in a file, in a folder that exists (`lingraft judge` takes one with --cache)."
        )
    with ExitStack() as stack:
        try:
            held = stack.enter_context(claim(_claims(path), patience=None))
        except OSError as error:
            raise EvaluationError(
                f"{path}: cannot be written ({error.strerror}); check its permissions, or keep the results elsewhere."
            ) from None
        yield VerdictCache(path, held)


def mend_cache(path: Path) -> str | None:
    """Make a run's own cache one that can be opened, and say in a sentence what was wrong; None: nothing.

    A file of the user's is refused instead (see `VerdictCache`): it may be another kind of file. One that another
    process judges into is left as it is: that one has mended it.
    """
    try:
        with claim(_claims(path)):
            if path.is_symlink() or path.is_dir():
                remove(path)
                return f"{path}: was no file; verdicts are asked for again."
            try:
                VerdictCache(path)
            except EvaluationError:
                removed = salvage(path, _parse, _BEGINS)
                return f"{path}: {removed} damaged lines are left out; these verdicts are asked for again."
    except ClaimedError:
        pass
    return None


def _claims(path: Path) -> Path:
    return path.with_name(f".{path.name}.claims")
