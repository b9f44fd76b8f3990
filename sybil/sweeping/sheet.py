"""Reads a sweep's YAML file as untrusted text: its values, and the line of each value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sybil.errors import InvalidSetting, one_line, told
from sybil.measuring.files import bounded_text

LARGEST = 1 << 16
"""The most bytes of a file."""
DEEPEST = 8
"""The most levels of nested lists and mappings. A sweep's file has two levels."""

Place = tuple[str | int, ...]
"""The place of a value: its key, and the number of an entry in the key's list, from 0."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A sweep's file. values: by key. lines: the line of each value by its place, counted from 1."""

    name: str
    values: dict[str, Any]
    lines: dict[Place, int] = field(default_factory=dict)

    def fault(self, place: Place, reason: str) -> InvalidSetting:
        """The error that names the file, the line and the key."""
        known = next((place[:size] for size in range(len(place), 0, -1) if place[:size] in self.lines), ())
        line = f", line {self.lines[known]}" if known else ""
        return InvalidSetting(f"{self.name}{line}: {reason}")


def read(path: Path) -> Sheet:
    """The file's keys and values, of YAML's plain kinds. Raises InvalidSetting for a file that can't be read, is too
    large or too deeply nested, or has aliases, duplicate keys or tags."""
    name, remedy = path.name, "name a YAML file of a sweep"
    unread = "name a YAML file, or one of --list"
    text = bounded_text(path, LARGEST, unread=unread, too_large=remedy, no_text=remedy)
    try:
        _check(name, text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            raise InvalidSetting(f"{name} holds no keys: write lines such as `pairs: [stdlib]`")
        return Sheet(name, *_values(name, node))
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        reason = one_line(" ".join(filter(None, (error.context, error.problem))))
        raise InvalidSetting(f"{name}{line} is no YAML ({reason}): mend it") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        if isinstance(error, InvalidSetting):
            raise
        raise InvalidSetting(f"{name} is no YAML ({told(error)}): mend it") from None


def _check(name: str, text: str) -> None:
    """Raises InvalidSetting for aliases and for deep nesting, which could make the parsed file grow without bound."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise InvalidSetting(f"{name}, line {line}, has an alias, *{one_line(str(event.anchor), 40)}: write it out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise InvalidSetting(f"{name}, line {line}, is more than {DEEPEST} lists deep: a list of values is enough")


def _values(name: str, node: yaml.MappingNode) -> tuple[dict[str, Any], dict[Place, int]]:
    loader, values, lines = yaml.SafeLoader(""), dict[str, Any](), dict[Place, int]()
    for key_node, value_node in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise InvalidSetting(f"{name}, line {line}, has a list or a mapping as a key: write a word")
        if key in values:
            raise InvalidSetting(f"{name}, line {line}: {one_line(key, 40)} stands in line {lines[key,]} too: keep one")
        values[key] = loader.construct_object(value_node, deep=True)
        lines |= {place: each.start_mark.line + 1 for place, each in _places((key,), value_node)}
        lines[key,] = line
    return values, lines


def _places(place: Place, node: yaml.Node) -> Iterator[tuple[Place, yaml.Node]]:
    yield place, node
    if isinstance(node, yaml.SequenceNode):
        for number, each in enumerate(node.value):
            yield from _places((*place, number), each)
