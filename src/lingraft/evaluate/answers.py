"""What a model has answered so far, kept as it comes: an interrupted evaluation goes on from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingraft.append_log import AppendLog
from lingraft.claims import Claim
from lingraft.records import fingerprint_of

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance


class AnswerLog:
    """Answers, as JSON values, by the key of their request; the model is that of the folder in which the file lies.

    Args:
        path: A log (see `AppendLog`); None: the answers are kept in memory alone.
        claim: Of the log, where other processes may want it; see there.

    Attributes:
        damage: What of the log was damaged, in one sentence; None: nothing.
    """

    def __init__(self, path: Path | None = None, claim: Claim | None = None) -> None:
        self._log = (
            None if path is None else AppendLog(path, lambda row: (str(row["asked"]), row["answer"]), claim)
        )
        self._found: dict[str, Any] = dict(self._log.rows) if self._log else {}
        self.damage = None if self._log is None else self._log.damage

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def append(self, answers: Mapping[str, Any]) -> None:
        """Keep those of `answers` that are not there yet; they are on disk when this returns."""
        new = {key: answer for key, answer in answers.items() if key not in self._found}
        if self._log is not None:
            self._log.append({"asked": key, "answer": answer} for key, answer in new.items())
        self._found.update(new)

    def remove(self) -> None:
        """Remove the file, when the answers are kept elsewhere."""
        if self._log is not None:
            self._log.path.unlink(missing_ok=True)


def request_keys(requests: Sequence[Instance], repeat: int) -> list[str]:
    """Return the keys of the harness's requests: all that decides their answers but the model.

    Args:
        requests: With their prompts and settings. One that stands several times gets a key for each time.
        repeat: Number of the run of the same requests, from 0.
    """
    times: Counter[str] = Counter()
    keys = []
    for request in requests:
        one = request_key(request.args)
        keys.append(fingerprint_of([one, times[one], repeat]))
        times[one] += 1
    return keys


def request_key(arguments: Sequence[Any]) -> str:
    """Return the fingerprint of a request's prompt and settings, or of its context and continuation."""
    return fingerprint_of(list(arguments))


class ItemCount:
    """Reports how many items are answered; one with several requests, such as choices, counts when it has all.

    Args:
        total: Items in all.
        on_progress: Called with the items so far and in all.
    """

    def __init__(self, total: int, on_progress: Callable[[int, int], None] | None) -> None:
        self._total, self._on_progress, self._done = total, on_progress, 0
        self._open: Counter[tuple[str | None, int | None]] = Counter()

    def expect(self, requests: Sequence[Instance]) -> None:
        """Note that these are about to be answered."""
        self._open.update((one.task_name, one.doc_id) for one in requests)

    def answered(self, request: Instance) -> None:
        """Note that one is."""
        item = (request.task_name, request.doc_id)
        self._open[item] -= 1
        if self._open[item] == 0:
            self._done += 1
            if self._on_progress is not None:
                self._on_progress(min(self._done, self._total), self._total)
