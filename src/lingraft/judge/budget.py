"""What a judge's tokens cost, and a budget that is never exceeded."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

from lingraft.errors import EvaluationError

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of prompts (`read`) and of answers (`written`), those of hidden reasoning included."""

    read: int = 0
    written: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.read + other.read, self.written + other.written)


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of a million tokens of prompts (`read`) and of answers (`written`), in the budget's currency."""

    read: float
    written: float

    def of(self, tokens: Tokens) -> float:
        """Return what these tokens cost."""
        return (tokens.read * self.read + tokens.written * self.written) / _MILLION


class BudgetReachedError(EvaluationError):
    """The next question could cost more than is left."""


class Ledger:
    """Tokens used so far, and those that requests under way may use; safe to share among threads.

    Before a request its most expensive outcome is reserved, so that the budget holds whatever comes back, for however
    many requests run at once. Requests that were sent but not answered count in full: they may have been billed.
    """

    def __init__(self, prices: Prices | None, budget: float | None) -> None:
        if budget is not None and prices is None:
            raise EvaluationError("a budget needs the prices of a million tokens, read and written.")
        self._prices = prices
        self._budget = budget
        self._lock = Lock()
        self._used = Tokens()
        self._reserved = Tokens()

    @property
    def used(self) -> Tokens:
        """Tokens settled so far."""
        return self._used

    def cost_of(self, tokens: Tokens) -> float | None:
        """Return what tokens cost; None: no prices are known."""
        return None if self._prices is None else self._prices.of(tokens)

    def count(self, tokens: Tokens) -> None:
        """Add what was used before, such as for verdicts of an earlier run."""
        with self._lock:
            self._used += tokens

    def reserve(self, most: Tokens) -> None:
        """Reserve what a request may use at most; raise BudgetReachedError where that could exceed the budget."""
        with self._lock:
            wanted = self._used + self._reserved + most
            if (
                self._prices is not None
                and self._budget is not None
                and self._prices.of(wanted) > self._budget
            ):
                raise BudgetReachedError(
                    f"the budget of {self._budget:g} could be exceeded by the next question: "
                    f"{self._prices.of(self._used):.4f} are spent."
                )
            self._reserved += most

    def settle(self, most: Tokens, used: Tokens) -> None:
        """Replace a reservation by what the request used."""
        with self._lock:
            self._reserved += Tokens(-most.read, -most.written)
            self._used += used
