"""Jinja templates that others wrote (task files, expressions, chat templates), rendered within bounds.

Jinja's own sandbox keeps a template from Python's internals, but lets it fill the memory (`'a' * 10 ** 10`) and loop
for hours (ranges within ranges). Here each rendering has a budget of steps, of characters that it makes, and of time.
"""

from __future__ import annotations

import re
import time
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

_REGEX_SECONDS = 5
_MOST_KEPT = 1000  # compiled templates
_ELEMENT = 8  # bytes of a place in a list
_BITS = 10**5  # of a number
_SLACK = 10  # a size that is estimated before something is made may be so many times what is made
# Filters and methods whose result may be far longer than what they are given.
_GROWING = frozenset(
    {"batch", "center", "expandtabs", "indent", "join", "ljust", "pprint", "regex_replace", "replace", "rjust", "slice",
     "to_bytes", "tojson", "translate", "urlize", "wordwrap", "xmlattr", "zfill"}
)  # fmt: skip
_FIELD = re.compile(
    r"%(?:\([^%]*\))?[-+ #.\d]*\*?|\{[^{}]*\{?"
)  # of a text that formats; the last may compute its width


class TemplateLimitError(SecurityError):
    """A template takes or makes more than it may."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """An environment for templates that are not trusted.

    Rendering raises jinja2's SecurityError where a template reaches for Python's internals, and TemplateLimitError
    where it exceeds the budget that `begin` gave it.

    Attributes:
        most_steps: Rounds of loops, operations, filters and calls of one rendering.
        most_made: Characters and elements that one rendering makes, intermediate ones included.
        largest: Characters and elements of one value.
        most_seconds: Of the processor.
    """

    most_steps = 2_000_000
    most_made = 10**9
    largest = 10**8
    most_seconds = 60.0
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, optimized=False, finalize=self._made_of, **options)
        own = _Filters(self)
        for name, function in self.filters.items():
            own[name] = function
        own.update({"_round": self._round, "_concatenated": self._concatenated, "_collected": self._made_of})
        self.filters = own
        for name in ("cycler", "lipsum"):  # nothing that renders data needs them
            del self.globals[name]
        self.begin()

    def begin(self) -> None:
        """Give what is rendered next the whole budget."""
        self._steps = self._made = 0
        self._ends = time.thread_time() + self.most_seconds

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Return what an operator makes of two values, where that is not too long."""
        self.step()
        if operator == "%" and isinstance(left, str):
            self.check_format(left, right)
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _BITS:
                raise TemplateLimitError("computes a number that is too large")
        elif operator == "*":
            self.check_growth((left, right))
        return self._made_of(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Return what a call returns, where that is not too long."""
        self.step()
        name = getattr(obj, "__name__", "")
        if name in _GROWING:
            args = tuple(map(_in_memory, args))
            self.check_growth((getattr(obj, "__self__", None), *_making(name, args), *kwargs.values()))
        return self._made_of(super().call(context, obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the method `format` of a text in the sandbox, which refuses widths that fill the memory."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @wraps(wrapped)
        def checked(*args: Any, **kwargs: Any) -> str:
            self.check_format(value.__self__, [*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return checked

    def step(self) -> None:
        """Count one step, and see what time it is."""
        self._steps += 1
        if self._steps > self.most_steps:
            raise TemplateLimitError(f"takes more than {self.most_steps:,} steps")
        if self._steps % 32 == 0 and time.thread_time() > self._ends:
            raise TemplateLimitError(f"takes more than {self.most_seconds:g} seconds")

    def expect(self, size: int) -> None:
        """Count so many characters or elements."""
        self._made += size
        if size > self.largest or self._made > self.most_made:
            most = self.most_made if size <= self.largest else self.largest
            raise TemplateLimitError(f"makes more than {most:,} characters")

    def check_growth(self, values: Iterable[Any]) -> None:
        """Refuse values of which more could be made than is allowed: at worst their sizes are multiplied."""
        size = 1
        for one in values:
            size *= max(1, abs(one) if isinstance(one, int) else self._size(one))
        if size > _SLACK * self.largest:
            raise TemplateLimitError("makes a text of any length")

    def check_format(self, text: str, values: Any) -> None:
        """Refuse a text that formats if its fields are very wide, or many and their values long."""
        fields = _FIELD.findall(text)
        widths = [int(digits) for field in fields for digits in re.findall(r"\d{1,20}", field)]
        is_computed = any(field.endswith("*") or (":" in field and field.endswith("{")) for field in fields)
        if is_computed or sum(widths) + len(fields) * self._size(values) > _SLACK * self.largest:
            raise TemplateLimitError("makes a text of any length")

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        return super()._generate(_Counted().visit(source), *args, **options)

    def _made_of(self, value: Any) -> Any:
        self.expect(self._size(value))
        return value

    def _round(self, text: int) -> None:
        self.step()
        self.expect(text)

    def _concatenated(self, parts: list[Any]) -> str:
        self.step()
        made: str = self._made_of("".join(map(str, parts)))
        return made

    def _size(self, value: Any) -> int:
        """Return about how many characters or elements a value holds, or more than is allowed."""
        if isinstance(value, int):
            return 1 + value.bit_length() // 3
        if isinstance(value, dict):
            value = [*value, *value.values()]
        if isinstance(value, (list, tuple, set, frozenset)):
            size = _ELEMENT * len(value)
            for one in value:  # one list may stand in it twice, and so on inside of that
                size += self._size(one)
                if size > _SLACK * self.largest:
                    break
            return size
        return len(value) if isinstance(value, Sized) and not isinstance(value, Undefined) else 1


class Sandbox(BoundedEnvironment):
    """The environment of task files and expressions; making a template of a text begins a budget."""

    most_steps = 300_000
    most_made = largest = 10_000_000

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True)
        self.filters["regex_replace"] = _regex_replace
        self._templates: dict[str, Template] = {}

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


class _Filters(dict[str, Callable[..., Any]]):
    """Filters that refuse to make what is too large, also those that are put in later."""

    def __init__(self, environment: BoundedEnvironment) -> None:
        super().__init__()
        self._environment = environment

    def __setitem__(self, name: str, function: Callable[..., Any]) -> None:
        bounds = self._environment

        @wraps(function)  # Jinja's marks of what a filter is given come along
        def bounded(*args: Any, **kwargs: Any) -> Any:
            bounds.step()
            passed = [one for one in args if isinstance(one, (Environment, EvalContext, Context))]
            given = list(args[len(passed) :])
            if name == "format" and given:
                bounds.check_format(str(given[0]), [*given[1:], *kwargs.values()])
            elif name in _GROWING:
                given = list(map(_in_memory, given))
                bounds.check_growth([*given[:1], *_making(name, given[1:]), *kwargs.values()])
            made = function(*passed, *given, **kwargs)
            # What holds the elements that it was given makes nothing but the places for them.
            bounds.expect(_ELEMENT * len(made) if name in ("list", "sort") else bounds._size(made))
            return made

        super().__setitem__(name, bounded)


class _Counted(NodeTransformer):
    """Has every round of a loop counted, every concatenation, and every list that is written out."""

    def visit_List(self, node: nodes.List | nodes.Dict | nodes.Tuple) -> nodes.Node:  # noqa: N802 (jinja2 calls it by the node's name)
        self.generic_visit(node)
        return nodes.Filter(node, "_collected", [], [], None, None, lineno=node.lineno)

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        return self.visit_List(node) if node.ctx == "load" else node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        written = [part.data for part in node.find_all(nodes.TemplateData)]
        written += [part.value for part in node.find_all(nodes.Const) if isinstance(part.value, str)]
        size = nodes.Const(sum(map(len, written)), lineno=node.lineno)
        counted = nodes.Filter(size, "_round", [], [], None, None, lineno=node.lineno)
        node.body = [nodes.ExprStmt(counted, lineno=node.lineno), *node.body]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_concatenated", [], [], None, None, lineno=node.lineno)


def _in_memory(value: Any) -> Any:
    return tuple(value) if isinstance(value, Iterator) else value


def _making(name: str, arguments: Iterable[Any]) -> list[Any]:
    """Return the arguments of which a text is made: all but the one that is replaced."""
    return list(arguments)[1 if name in ("replace", "regex_replace") else 0 :]


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    """Return what the harness's filter of this name returns; a pattern that takes very long is refused."""
    try:
        return str(regex.sub(pattern, replacement, text, count=count, timeout=_REGEX_SECONDS))
    except TimeoutError:
        raise TemplateLimitError(
            f"has a pattern that takes more than {_REGEX_SECONDS} s: {pattern[:80]!r}"
        ) from None
