"""Chat templates come with a model and are programs: rendering one takes bounded time and memory, or is refused.

transformers renders in Jinja's sandbox, which keeps templates from Python, but not from loops without end or texts of
any size. `compiled` is what transformers compiles, in a sandbox that counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import wraps
from itertools import islice
from typing import Any
from unittest.mock import patch

from jinja2 import Environment, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

STEPS = 2_000_000
"""Passes of loops, and calls, that one rendering may take: about a second. A conversation takes some dozens."""
LARGEST = 10**8
"""Characters or items that a value may have."""
_BITS = 10**5  # of a number
_GROWING = frozenset(
    ("*", "%", "batch", "center", "expandtabs", "format", "format_map", "indent", "join", "ljust", "replace")
) | {"rjust", "slice", "to_bytes", "tojson", "translate", "xmlattr", "zfill"}
_WIDE = re.compile(r"\d{7}")  # a width in a format


class TemplateLimitError(TemplateError):
    """A template took more than it may."""


def compiled(source: str) -> Any:
    """Return transformers' compiled template, whose `environment.left` is set to what one rendering may take.

    Raises:
        TemplateSyntaxError: It is not valid Jinja.
    """
    from transformers.utils import chat_template_utils

    with patch.object(chat_template_utils, "ImmutableSandboxedEnvironment", LimitedEnvironment):
        found: Any = chat_template_utils._compile_jinja_template(source)
    found.environment.left = STEPS
    return found


def limited(source: str) -> str:
    """Return a template's text by which only `compiled` knows it: transformers keeps what it compiled by its text."""
    return f"{{#- limited -#}}{source}"


class _LimitedCode(CodeGenerator):
    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802 - Jinja's name
        own = {"lineno": node.lineno, "environment": node.environment}
        charge = nodes.EnvironmentAttribute("charged", **own)
        node.iter = nodes.Call(charge, [node.iter], [], None, None, **own)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.joined((")
        for one in node.nodes:
            self.visit(one, frame)
            self.write(", ")
        self.write("))")


class _Filters(dict[str, Callable[..., Any]]):
    """Filters that refuse to make what is too large, also those that are put in later."""

    def __setitem__(self, name: str, function: Callable[..., Any]) -> None:
        @wraps(function)  # Jinja's marks of what a filter is given come along
        def checked(*args: Any, **kwargs: Any) -> Any:
            given = [one for one in args if not isinstance(one, (Environment, Context, EvalContext))]
            _check_growth(name, next(iter(given), None), [*given[1:], *kwargs.values()])
            return _checked(function(*args, **kwargs))

        super().__setitem__(name, checked)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, with a budget of steps and a largest size of values."""

    code_generator_class = _LimitedCode
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    left = STEPS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = _Filters()
        for name, function in self.filters.items():
            own[name] = function
        self.filters = own
        self.globals.pop("lipsum", None)  # makes texts of any length

    def _spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise TemplateLimitError(
                f"takes more than {STEPS:,} steps for a conversation, as if it had no end"
            )

    def charged(self, items: Any) -> Any:
        """Return what a loop runs over, paid for."""
        if not isinstance(items, Sized):
            items = list(islice(items, max(0, self.left) + 1))
        self._spend(len(items) + 1)
        return items

    @staticmethod
    def joined(parts: Iterable[Any]) -> str:
        """Return what `~` makes of values."""
        return LimitedEnvironment.concat(map(str, parts))

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Return texts put together, as whole renderings are."""
        return "".join(_up_to_largest(parts))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls; see Jinja."""
        self._spend(1)
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)  # the sandbox wraps `format`
        _check_growth(str(getattr(obj, "__name__", "")), owner, [*args, *kwargs.values()])
        return _checked(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute; see Jinja."""
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _BITS:
                raise TemplateLimitError("computes a number that is too large")
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _check_size(len(left) + len(right))
        elif operator in ("*", "%"):
            one, other = (right, left) if isinstance(left, int) else (left, right)
            _check_growth(operator, one, [other])
        return super().call_binop(context, operator, left, right)


def _up_to_largest(parts: Iterable[str]) -> Iterator[str]:
    size = 0
    for one in parts:
        size += len(one)
        _check_size(size)
        yield one


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise TemplateLimitError(f"makes a text or list of more than {LARGEST:,} characters or items")


def _checked(made: Any) -> Any:
    if isinstance(made, (str, list, tuple, dict)):
        _check_size(len(made))
    return made


def _check_growth(name: str, first: Any, others: list[Any]) -> None:
    """Refuse arguments of what could make more of them than is allowed: at worst their sizes are multiplied.

    Args:
        name: Of a filter or method.
        first: What it is done to.
        others: Numbers are lengths, also those inside of a list.
    """
    if name not in _GROWING:
        return
    size = max(1, len(first)) if isinstance(first, Sized) else 1
    for one in others:
        parts = one if isinstance(one, (list, tuple)) else (one,)
        lengths = [abs(part) for part in parts if isinstance(part, int)]
        size *= max(1, *lengths, len(one) if isinstance(one, Sized) else 1)
    is_wide = isinstance(first, str) and name in ("format", "%") and _WIDE.search(first)
    if is_wide or size > 10 * LARGEST:
        raise TemplateLimitError("makes a text of any length")
