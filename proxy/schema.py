"""A YAML document, read value by value against shapes; each problem is noted with its path and line.

Facts
  - PyYAML speaks YAML 1.1 (yaml.org/type): plain ``no`` is a boolean, ``12:30:00`` and ``1_000`` are
    integers, ``010`` is eight. It lets the last of several equal keys win without a word.
  - A few bytes can ask for a lot: aliases of aliases multiply, nested brackets exhaust the stack.
  - PyYAML's error texts quote the file.

Rules
  1. Nodes are read, never objects that PyYAML made of them: a node knows its line, a tag runs no code.
  2. A wrong value is noted and becomes `BROKEN`, and reading goes on: one run shows every problem.
  3. A message says what is wanted and what kind of thing was found. It never repeats a value, which may
     be a secret in the wrong place; it does repeat names.
  4. What YAML 1.1 and 1.2 read differently is a problem, not a guess.

Not here: which keys there are, and what they mean (`config`).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

MAX_DEPTH = 20
MAX_VALUES = 100_000
"""Values of a document, those that aliases repeat counted each time."""

BROKEN: Any = object()
"""Stands where a value was wrong. A document without problems holds none."""

Path = tuple[str | int, ...]
Shape = Callable[["Document", yaml.Node, Path], Any]
"""Reads one value: returns it, or notes what is wrong with it and returns `BROKEN`."""

_YAML = "tag:yaml.org,2002:"
_STRING = _YAML + "str"
_KINDS = {"str": "a string", "bool": "a boolean", "int": "a number", "float": "a number", "null": "no value"}
_LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")


class Problem(NamedTuple):
    """One thing that is wrong.

    `path` is empty when it is the document as a whole. `line` counts from 1; it is 0 where there is no file.
    """

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        where = f"line {self.line}" if self.line else ""
        return ": ".join(part for part in (where, self.path, self.message) if part)


class ConfigError(Exception):
    """All that is wrong, in the order of the lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        super().__init__("\n".join(map(str, self.problems)))


class Document:
    """One document's problems so far. A value takes nothing from outside but `environ` and `read_file`."""

    def __init__(self, environ: Mapping[str, str], read_file: Callable[[str], str]) -> None:
        self.environ = environ
        self.read_file = read_file
        self.problems: list[Problem] = []
        self._lines: dict[Path, int] = {}
        self._broken: set[Path] = set()

    def read(self, shape: Shape, node: yaml.Node, path: Path) -> Any:
        """The value of `node`, or `BROKEN`."""
        self._lines.setdefault(path, _line(node))
        return shape(self, node, path)

    def problem(self, path: Path, message: str, line: int = 0) -> Any:
        """Note a problem, by default in the line of the nearest value around it, and return `BROKEN`."""
        around = (path[:end] for end in range(len(path), -1, -1))
        line = line or next((self._lines[near] for near in around if near in self._lines), 1)
        dotted = "".join(f"[{step}]" if isinstance(step, int) else f".{printable(step)}" for step in path)
        self.problems.append(Problem(dotted.removeprefix("."), line, message))
        self._broken.update(path[:end] for end in range(len(path) + 1))
        return BROKEN

    def sound(self, path: Path) -> bool:
        """Whether no problem was noted at `path` or below it."""
        return path not in self._broken


class _Loader(yaml.SafeLoader):
    """Refuses depth before it exhausts the stack, and explicit tags, which a node does not show."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if self.depth == MAX_DEPTH:
            raise _fatal(line, f"nested more than {MAX_DEPTH} levels deep")
        if getattr(event, "tag", None) is not None:
            raise _fatal(line, "tags (!…) are not supported; write the plain value")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def compose(text: str) -> yaml.Node | None:
    """The root node of the one YAML document in `text`, or None when there is nothing in it.

    Raises `ConfigError` on a syntax error, a tag, and a document too deep or too large for a config.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = len(_LINE_END.findall(text, 0, error.position)) + 1
        raise _fatal(line, f"the character U+{error.character:04X} is not allowed in YAML") from None
    try:
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error) from None
    except (ValueError, OverflowError):
        # PyYAML gives the digits of an escape and of a %YAML directive to chr() and int() unchecked.
        raise _fatal(loader.line + 1, "not valid YAML: a number or an escape is out of range") from None
    if root is not None:
        _check_size(root)
    return root


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
    limits = f"from {low:g} to {high:g}" if high < math.inf else f"{'above' if above else 'from'} {low:g}"
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


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that it looks like, else all of them."""
    known = list(known)
    if near := difflib.get_close_matches(name.lower(), known, n=1):
        return f'; did you mean "{printable(near[0])}"?'
    return "; known: " + (", ".join(map(printable, known[:12])) or "none") + ", …" * (len(known) > 12)


def printable(name: str) -> str:
    """A name from the file, fit for one line of a terminal, and cut shorter than any API key."""
    name = name if len(name) <= 40 else name[:39] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _entries(document: Document, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, int, yaml.Node]]:
    """Each key with its line and its value. What cannot be a key, and what repeats one, is noted instead."""
    first: dict[str, int] = {}
    for key, value in node.value:
        line = _line(key)
        if key.tag == _YAML + "merge":
            document.problem(path, "merge keys (<<) are not supported; write the keys out", line)
        elif wrong := _not_text(key):
            document.problem(path, f"a key here: {wrong}", line)
        elif key.value in first:
            document.problem((*path, key.value), f"repeated key, first in line {first[key.value]}", line)
        else:
            first[key.value] = line
            yield key.value, line, value


def _check_size(root: yaml.Node) -> None:
    """Refuse aliases that multiply. Values are counted before any is visited: a bomb costs no memory."""
    count, waiting = 1, [root]
    while waiting:
        node = waiting.pop()
        inside = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            inside = [part for entry in node.value for part in entry]
        count += len(inside)
        if count > MAX_VALUES:
            raise _fatal(_line(node), f"more than {MAX_VALUES} values, counting what aliases repeat")
        waiting.extend(inside)


def _syntax_error(error: yaml.MarkedYAMLError) -> ConfigError:
    """PyYAML's message without what it quotes, except single characters and token kinds (``'<scalar>'``)."""
    mark = error.problem_mark or error.context_mark
    begin = f" that begins in line {error.context_mark.line + 1}" if error.context_mark else ""
    parts = [f"{error.context}{begin}" if error.context else "", error.problem or ""]
    message = re.sub("'(?!<)[^']{2,}'", "'…'", ", ".join(filter(None, parts)))
    return _fatal(mark.line + 1 if mark else 1, f"not valid YAML: {message}")


def _fatal(line: int, message: str) -> ConfigError:
    return ConfigError([Problem("", line, message)])


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


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
        return _KINDS.get(node.tag.removeprefix(_YAML), "something else")
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
