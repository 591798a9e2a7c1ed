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


NOTHING = Tokens()


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

    An endpoint that counts more than a request can use breaks that once, for the requests under way: each later one
    reserves as many times its most as the worst of them took.
    """

    def __init__(self, prices: Prices | None, budget: float | None) -> None:
        if budget is not None and prices is None:
            raise EvaluationError("a budget needs the prices of a million tokens, read and written.")
        self._prices = prices
        self._budget = budget
        self._lock = Lock()
        self._used = Tokens()
        self._reserved = Tokens()
        self._excess = 1  # the worst of what was counted, in multiples of the most that a request can use

    @property
    def used(self) -> Tokens:
        """Tokens settled so far."""
        return self._used

    def cost_of(self, tokens: Tokens) -> float | None:
        """Return what tokens cost; None: no prices are known."""
        return None if self._prices is None else self._prices.of(tokens)

    @property
    def excess(self) -> int:
        """How many times the most that a request can use the endpoint counted, at the worst; 1: never more."""
        return self._excess

    def reserve(self, most: Tokens) -> Tokens:
        """Reserve what a request may use at most, and return it.

        Raises:
            BudgetReachedError: That could exceed the budget.
        """
        with self._lock:
            most = Tokens(most.read * self._excess, most.written * self._excess)
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
            return most

    def settle(self, most: Tokens, used: Tokens, *, reserved: Tokens = NOTHING) -> None:
        """Count what a request used that can use `most`, in place of what was reserved for it.

        Of a request of an earlier run nothing is reserved.
        """
        with self._lock:
            self._reserved += Tokens(-reserved.read, -reserved.written)
            self._used += used
            self._excess = max(
                self._excess, -(-used.read // max(1, most.read)), -(-used.written // max(1, most.written))
            )
