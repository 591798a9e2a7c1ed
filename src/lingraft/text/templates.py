"""Jinja templates that others wrote (task files, expressions), rendered without running code and within bounds.

Jinja's own sandbox keeps a template from Python's internals, but lets it fill the memory (`'a' * 10 ** 10`) and loop
for hours (ranges within ranges). Here each rendering has a budget of steps, and of characters that it makes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import wraps
from typing import Any

import regex
from jinja2 import Environment, StrictUndefined, Template, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_STEPS = 300_000
"""Rounds of loops, operations and calls of one rendering."""
MOST_MADE = 10_000_000
"""Characters and elements that one rendering makes, intermediate ones included."""

_ITERATED = 100_000  # what is taken for the length of what has none: jinja2's longest range
_REGEX_SECONDS = 5
_MOST_KEPT = 1000  # compiled templates
_ELEMENT = 8  # bytes of a place in a list
# Filters and methods of texts whose result may be far longer than what they are given.
_GROWING = frozenset(
    {"batch", "center", "expandtabs", "indent", "join", "ljust", "pprint", "regex_replace", "replace", "rjust", "slice",
     "tojson", "translate", "urlize", "wordwrap", "zfill"}
)  # fmt: skip
# In a text that formats: a width or precision of 10,000 and more, or one that is given as an argument.
_WIDE = re.compile(r"%[-+ #0-9]*\.?(?:\*|\d{5})|\{[^{}]*:[^{}]*(?:\{|\d{5})")


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment for templates that are not trusted.

    Rendering raises jinja2's SecurityError where a template reaches for Python's internals or exceeds the budget that
    `begin` gave it; making a template of a text begins one too.
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            undefined=StrictUndefined, keep_trailing_newline=True, optimized=False, finalize=self._written
        )
        self._steps = self._made = 0
        for name, function in {**self.filters, "regex_replace": _regex_replace}.items():
            self.filters[name] = self._bounded(name, function)
        self.filters |= {
            "_rounds": self._rounds,
            "_concatenated": self._concatenated,
            "_collected": self._written,
        }
        self._templates: dict[str, Template] = {}
        for name in ("cycler", "lipsum"):  # nothing that renders data needs them
            del self.globals[name]

    def begin(self) -> None:
        """Give what is rendered next the whole budget."""
        self._steps = self._made = 0

    def from_string(self, source: str | nodes.Template, *args: Any, **options: Any) -> Template:
        """Return a template, and begin a budget; a text that came before is not compiled again."""
        self.begin()
        if not isinstance(source, str) or args or options:
            return super().from_string(source, *args, **options)
        if source not in self._templates:
            if len(self._templates) >= _MOST_KEPT:
                self._templates.clear()
            self._templates[source] = super().from_string(source)
        return self._templates[source]

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        return super()._generate(_Counted().visit(source), *args, **options)

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise SecurityError(f"it takes more than {MOST_STEPS:,} steps")

    def _expect(self, size: int) -> None:
        self._made += size
        if self._made > MOST_MADE:
            raise SecurityError(f"it makes more than {MOST_MADE:,} characters")

    def _written(self, value: Any) -> Any:
        self._expect(1 if isinstance(value, (int, Undefined)) else _size(value))
        return value

    def _rounds(self, values: Iterable[Any], text: int) -> Iterator[Any]:
        """Yield the values of a loop whose body holds so many characters of plain text."""
        for value in values:
            self._step()
            self._expect(text)
            yield value

    def _concatenated(self, parts: list[Any]) -> str:
        self._step()
        texts = [str(part) for part in parts]
        self._expect(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Return what an operator makes of two values, where that is not too long."""
        self._step()
        if operator == "%" and isinstance(left, str):
            _check_widths(left)
            self._expect(len(left) + _size(right) if isinstance(right, (tuple, Sized)) else len(left))
        elif isinstance(left, Sized) or isinstance(right, Sized):
            self._expect(_size(left) * _size(right) if operator == "*" else _size(left) + _size(right))
        elif isinstance(left, int) and isinstance(right, int):
            self._expect(left.bit_length() * (abs(right) if operator == "**" else 1) + right.bit_length())
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Return what a call returns, where that is not too long."""
        self._step()
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str) and getattr(obj, "__name__", "") in _GROWING:
            self._expect(_product((owner, *args, *kwargs.values())))
        made = super().call(context, obj, *args, **kwargs)
        self._written(made)
        return made

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the method `format` of a text in the sandbox, which refuses widths that fill the memory."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @wraps(wrapped)
        def checked(*args: Any, **kwargs: Any) -> str:
            _check_widths(value.__self__)
            return wrapped(*args, **kwargs)

        return checked

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter that is refused where it makes too much."""

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self._step()
            given = [one for one in args if not isinstance(one, (Environment, EvalContext, Context))]
            if name == "format" and given:
                _check_widths(str(given[0]))
            elif name in _GROWING:
                self._expect(_product((*given, *kwargs.values())))
            made = function(*args, **kwargs)
            self._written(made)
            return made

        return bounded


class _Counted(NodeTransformer):
    """Has every loop counted, every concatenation, and every list that is written out."""

    def visit_List(self, node: nodes.List | nodes.Dict | nodes.Tuple) -> nodes.Node:  # noqa: N802 (jinja2 calls it by the node's name)
        self.generic_visit(node)
        return nodes.Filter(node, "_collected", [], [], None, None, lineno=node.lineno)

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        return self.visit_List(node) if node.ctx == "load" else node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        text = sum(len(part.data) for part in node.find_all(nodes.TemplateData))
        size = nodes.Const(text, lineno=node.lineno)
        node.iter = nodes.Filter(node.iter, "_rounds", [size], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_concatenated", [], [], None, None, lineno=node.lineno)


def _size(value: Any) -> int:
    """Return about how many characters or elements a value holds; of a whole number itself, as it may be a width."""
    if isinstance(value, int):
        return abs(value)
    if isinstance(value, Undefined):
        return 1
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(
        value, (list, tuple, set, frozenset)
    ):  # one list may stand in it twice, and so on inside of that
        return _ELEMENT * len(value) + sum(_size(one) for one in value if not isinstance(one, int))
    return len(value) if isinstance(value, Sized) else _ITERATED if isinstance(value, Iterator) else 1


def _product(values: Iterable[Any]) -> int:
    whole = 1
    for one in values:
        whole *= max(1, _size(one))
    return whole


def _check_widths(text: str) -> None:
    if _WIDE.search(text):
        raise SecurityError("a width of 10,000 or more, or a computed one, stands in a format")


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    """Return what the harness's filter of this name returns; a pattern that takes very long is refused."""
    try:
        return str(regex.sub(pattern, replacement, text, count=count, timeout=_REGEX_SECONDS))
    except TimeoutError:
        raise SecurityError(f"the pattern {pattern[:80]!r} takes more than {_REGEX_SECONDS} s") from None
