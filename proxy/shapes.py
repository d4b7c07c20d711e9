"""Shapes: what a value of a document may be, and the table of a record's keys.

Facts
  - PyYAML speaks YAML 1.1 (yaml.org/type): plain ``no`` is a boolean, ``12:30:00`` and ``1_000`` are
    integers, ``010`` is eight. It lets the last of several equal keys win without a word.

Rules
  1. A shape reads one value: it returns it, or notes what is wrong with it and returns `BROKEN`.
  2. What YAML 1.1 and 1.2 read differently is a problem, not a guess.
  3. A record is a dataclass: a field holds a key's name, type, default, shape and explanation.

Not here: how a text becomes nodes (`schema`), what single values mean (`values`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

import yaml

from .schema import YAML_TAG, Document, Path, Shape, line_of, nearest

_STRING = YAML_TAG + "str"
_KINDS = {"str": "a string", "bool": "a boolean", "int": "a number", "float": "a number", "null": "no value"}


def row(shape: Shape | None, doc: str) -> dict[str, Any]:
    """The metadata of a field that is a key. One without a shape gets the key that its record is under."""
    return {"doc": doc} | ({"shape": shape} if shape else {})


def setting(default: Any, shape: Shape, doc: str) -> Any:
    """A field that may be left out. `default` is immutable."""
    return dataclasses.field(default_factory=lambda: default, metadata=row(shape, doc))


def text(check: Callable[[str], Any] = str) -> Shape:
    """A string, not empty and printable. `check` returns the value, or raises ValueError with the message."""

    def read(document: Document, node: yaml.Node, path: Path) -> Any:
        if wrong := _not_text(node):
            return document.problem(path, wrong)
        try:
            return check(node.value)
        except ValueError as error:
            return document.problem(path, str(error))

    return read


def number(low: float, high: float = math.inf, *, above: bool = False, whole: bool = False) -> Shape:
    """A decimal number from `low` to `high`; `above` leaves `low` itself out; `whole` makes it an int."""
    fraction = "" if whole else r"(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?"
    pattern = re.compile(r"-?(0|[1-9][0-9]{0,14})" + fraction)
    limits = f"from {low:g} to {high:.15g}" if high < math.inf else f"{'above' if above else 'from'} {low:g}"
    wanted = f"wanted a {'whole ' if whole else ''}number {limits}"

    def read(document: Document, node: yaml.Node, path: Path) -> Any:
        if not _is_plain(node) or not pattern.fullmatch(node.value):
            return document.problem(path, f"{wanted}, in plain decimal digits{_found(node, 'a number')}")
        value = int(node.value) if whole else float(node.value)
        if not low <= value <= high or value == math.inf or (above and value == low):
            return document.problem(path, f"{wanted}; this is out of range")
        return value

    return read


def boolean(document: Document, node: yaml.Node, path: Path) -> Any:
    """``true`` or ``false``: what YAML 1.1 calls a boolean besides is a string in YAML 1.2."""
    if not _is_plain(node) or node.value not in ("true", "false"):
        return document.problem(path, f"wanted the word true or false{_found(node, 'a boolean')}")
    return bool(node.value == "true")


def optional(shape: Shape) -> Shape:
    """What `shape` reads, or None for ``null``. A key with nothing after it is still a problem."""

    def read(document: Document, node: yaml.Node, path: Path) -> Any:
        return None if _is_plain(node) and node.value == "null" else shape(document, node, path)

    return read


def sequence(shape: Shape, *, least: int = 0, one: bool = False) -> Shape:
    """A list of at least `least` values, as a tuple; `one` takes a lone string for a list of one."""

    def read(document: Document, node: yaml.Node, path: Path) -> Any:
        if one and isinstance(node, yaml.ScalarNode):
            return (document.read(shape, node, (*path, 0)),)
        if not isinstance(node, yaml.SequenceNode):
            return document.problem(path, f"wanted a list, found {_kind(node)}")
        if len(node.value) < least:
            return document.problem(path, "the list is empty")
        return tuple(document.read(shape, item, (*path, index)) for index, item in enumerate(node.value))

    return read


def mapping(name: Callable[[str], object], shape: Shape) -> Shape:
    """A mapping whose keys the file chooses. `name` raises ValueError, with the message, on a bad one."""

    def read(document: Document, node: yaml.Node, path: Path) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return document.problem(path, f"wanted a mapping, found {_kind(node)}")
        values: dict[str, Any] = {}
        for key, line, value in _entries(document, node, path):
            try:
                name(key)
            except ValueError as error:
                document.problem((*path, key), str(error), line)
            values[key] = document.read(shape, value, (*path, key))
        return MappingProxyType(values)

    return read


def record(cls: type) -> Shape:
    """A mapping with the keys that the fields of the dataclass `cls` name.

    The metadata of a field hold its ``shape``. A field without one gets the key that the record is under.
    """
    known = {field.name: field for field in dataclasses.fields(cls) if "shape" in field.metadata}
    named = [field.name for field in dataclasses.fields(cls) if "shape" not in field.metadata]

    def read(document: Document, node: yaml.Node, path: Path) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return document.problem(path, f"wanted a mapping, found {_kind(node)}")
        values: dict[str, Any] = dict.fromkeys(named, path[-1] if path else "")
        for key, line, value in _entries(document, node, path):
            if key in known:
                values[key] = document.read(known[key].metadata["shape"], value, (*path, key))
            else:
                document.problem((*path, key), f"unknown key{nearest(key, known)}", line)
        for name, field in known.items():
            if name not in values and field.default is field.default_factory is dataclasses.MISSING:
                values[name] = document.problem((*path, name), "is missing, and there is no default")
        return cls(**values)

    return read


def _entries(document: Document, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, int, yaml.Node]]:
    """Each key with its line and its value. What cannot be a key, and what repeats one, is noted instead."""
    first: dict[str, int] = {}
    for key, value in node.value:
        line = line_of(key)
        if key.tag == YAML_TAG + "merge":
            document.problem(path, "merge keys (<<) are not supported; write the keys out", line)
        elif wrong := _not_text(key):
            document.problem(path, f"a key here: {wrong}", line)
        elif key.value in first:
            where = f", first in line {first[key.value]}" if line else ""
            document.problem((*path, key.value), f"repeated key{where}", line)
        else:
            first[key.value] = line
            yield key.value, line, value


def _is_plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None


def _not_text(node: yaml.Node) -> str:
    """Why `node` is no text, or nothing."""
    if node.tag != _STRING:
        hint = "; quote it if you mean the text" if _is_plain(node) and node.value else ""
        return f"wanted a string, found {_kind(node)}{hint}"
    if not node.value:
        return "the string is empty"
    return "" if node.value.isprintable() else "the string holds a character that cannot be printed"


def _found(node: yaml.Node, wanted: str) -> str:
    """The end of a message, unless what was found is of the kind wanted, and only spelt in a doubtful way."""
    return "" if _kind(node) == wanted else f", found {_kind(node)}"


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return _KINDS.get(node.tag.removeprefix(YAML_TAG), "something else")
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
