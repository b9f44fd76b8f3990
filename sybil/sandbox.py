"""Runs chat templates, which are untrusted programs, in jinja2's sandbox, with the functions that transformers gives
templates (5.23).

The sandbox keeps a template away from Python, but doesn't stop one that runs for ever. A budget of steps and text
does."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Template, nodes, pass_context, pass_environment
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

BUDGET, STEP = 1 << 26, 256
"""The most characters and list entries that a template may make, and the number of them that one step costs."""
LARGEST = 1 << 28
"""The limit for one operation: the product of its two largest sizes."""
MOST_VALUES = 1 << 18
SECONDS = 10.0
GROWING = {"batch", "center", "indent", "join", "replace", "slice", "tojson", "truncate", "urlize", "wordwrap"}
"""Filters whose result may be as long as the product of two arguments' sizes."""


class RefusedMessages(TemplateError):
    """The template refuses the messages: it called raise_exception()."""


class TooMuch(TemplateError):
    """The template is over its budget."""

    def __init__(self) -> None:
        super().__init__("it makes too much text or takes too many steps")


def render(text: str, variables: Mapping[str, Any]) -> str:
    """The text that a template makes. variables: plain data (None, strings, numbers, lists and dicts of them).

    Raises RefusedMessages where the template refuses the messages. A faulty template may raise any other Exception."""
    with _budget(BUDGET + STEP * _size(variables)):
        return _compiled(text).render(variables)


class _Budget:
    def __init__(self, most: int) -> None:
        self._left, self._until = most, time.monotonic() + SECONDS

    def spend(self, amount: int) -> None:
        """Take an amount from the budget. Raises TooMuch where it is exceeded."""
        self._left -= amount
        if self._left < 0 or time.monotonic() > self._until:
            raise TooMuch


_current: ContextVar[_Budget] = ContextVar("_current")


@contextmanager
def _budget(most: int) -> Iterator[None]:
    token = _current.set(_Budget(most))
    try:
        yield
    finally:
        _current.reset(token)


def _spend(amount: int) -> None:
    _current.get().spend(STEP + amount)


def _weigh(*values: Any) -> None:
    """Raises TooMuch if an operation on values of these sizes may make too much; called before the operation."""
    numbers = [abs(each) for each in values if isinstance(each, int)]
    second, first = sorted([1, 1, *numbers, *map(_size, values)])[-2:]
    if first * second > LARGEST:
        raise TooMuch


def _size(value: Any) -> int:
    """About how many characters a value's text has; lists and dicts count with everything inside them. Raises
    TooMuch."""
    total, seen, waiting = 0, 0, [value]
    while waiting:
        each, seen = waiting.pop(), seen + 1
        total += 1 + (len(each) if isinstance(each, str | range) else 0)
        if isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple):
            waiting += each
        elif isinstance(each, Namespace):
            waiting += each._Namespace__attrs.values()
        if total > LARGEST or seen > MOST_VALUES:  # a list may contain the same list many times
            raise TooMuch
    return total


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


@pass_context
def _written(context: Any, value: Any) -> Any:
    """A jinja2 filter that charges the budget for a value that will be read whole: written out, compared or used as a
    key. It takes the context, so that jinja2 calls it when rendering and not when compiling."""
    _spend(len(value) if isinstance(value, str) else _size(value))
    return value


@pass_context
def _made(context: Any, value: Any) -> Any:
    """A jinja2 filter that charges the budget for a value that was put together from other values."""
    _spend(_length(value))
    return value


class _Counting(NodeTransformer):
    """Puts the filters _written and _made into a template's syntax tree."""

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_filtered(each, "_written") for each in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_filtered(each, "_written") for each in node.nodes]
        return _filtered(node, "_made")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _filtered(node, "_made")
        node.arg = _read(node.arg)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.key = _read(node.key)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        """Charges for both sides. A list that contains another many times, at several levels, would be compared for
        ever."""
        self.generic_visit(node)
        node.expr = _read(node.expr)
        for operand in node.ops:
            operand.expr = _read(operand.expr)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        """Charges a step for every turn of a loop, even for one that the loop's own test skips."""
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_filtered(nodes.Const(""), "_written")]))
        if node.test is not None:
            node.test = nodes.And(_filtered(nodes.Const(True), "_made"), node.test)
        return node


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


def _read(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filtered(node, "_written")


class _GenerationTag(Extension):
    """The tag {% generation %}, by which templates mark the text to train on. Its content is rendered unchanged."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self.globals.update(
            raise_exception=_raise,
            strftime_now=_now,
            dict=_Dict(),
            namespace=_Namespace,
        )
        del self.globals["lipsum"]
        self.filters.update(tojson=_to_json, sum=_sum)
        self.filters = {name: _counting(name, each) for name, each in self.filters.items()}
        tests: Mapping[str, Any] = self.tests
        self.tests = {name: _counting(name, each) for name, each in tests.items()}
        self.filters.update(_written=_written, _made=_made)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        held = getattr(called, "__self__", None)
        if isinstance(held, str | list | tuple | dict):
            _weigh(held, *args, *kwargs.values())
        else:
            _size([*args, *kwargs.values()])
        result = super().call(context, called, *args, **kwargs)
        _spend(_length(result))
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int) and isinstance(right, int)
        if operator == "*":
            _weigh(*(each.bit_length() if numbers else each for each in (left, right)))
        elif operator == "**" and numbers:
            _weigh(left.bit_length() << 12, right)
        elif operator == "%" and isinstance(left, str):
            _check_format(left, *(right if isinstance(right, tuple) else [right]))
        return _made(context, super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        made = super().wrap_str_format(value)
        if made is None:
            return None
        formatted = made

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, *args, *kwargs.values())
            return formatted(*args, **kwargs)

        return checked


@lru_cache(16)
def _compiled(text: str) -> Template:
    return _Sandbox().from_string(text)


def _check_format(text: str, *values: Any) -> None:
    """Raises TooMuch for a format string with large widths, or with widths that come from its arguments."""
    if re.search(r"\{[^{}]*\{", text):
        raise TooMuch
    _weigh(text, *(int(digits) for digits in re.findall(r"\d{1,9}", text)), *values)


def _counting(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test of jinja2 that charges the budget. @wraps keeps the marks by which jinja2 knows the
    arguments."""

    @wraps(made)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        values = [*args, *kwargs.values()]
        if name == "format":
            _check_format(*values)
        elif name == "round":  # it computes ten to the power of its second argument
            _weigh(*(each << 12 for each in values[1:] if isinstance(each, int)))
        elif name in GROWING:
            _weigh(*values)
        else:
            for each in values:
                _weigh(each)
        result = made(*args, **kwargs)
        _spend(_length(result))
        return result

    return filtered


def _raise(message: Any) -> None:
    raise RefusedMessages(str(message))


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter tojson without jinja2's escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@pass_environment
def _sum(environment: Any, values: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    """The filter sum, which charges for every partial sum, because sums of lists grow."""
    read: Callable[[Any], Any] | None = None if attribute is None else make_attrgetter(environment, attribute)
    total = start
    for each in values:
        total = total + (read(each) if read else each)
        _spend(_length(total))
    return total


class _Dict:
    """dict() for templates. The class dict itself would give a template access to Python's classes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """namespace() for templates. It refuses names that begin as Python's own names do."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may have a name `self`
        self, *rest = args
        Namespace.__init__(self, {_public(name): value for name, value in dict(*rest, **kwargs).items()})

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(_public(name), value)


def _public(name: Any) -> Any:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no {name!r}")
    return name
