"""A YAML document, read value by value against `shapes`; each problem is noted with its path and line.

Facts
  - A few bytes can ask for a lot: aliases of aliases multiply, nested brackets exhaust the stack.
  - PyYAML's error texts quote the file.

Rules
  1. Nodes are read, never objects that PyYAML made of them: a node knows its line, a tag runs no code.
  2. A wrong value is noted and becomes `BROKEN`, and reading goes on: one run shows every problem.
  3. A message says what is wanted and what kind of thing was found. It never repeats a value, which may
     be a secret in the wrong place; it does repeat names.

Not here: what a value may be (`shapes`), which keys there are and what they mean (`config`).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
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

YAML_TAG = "tag:yaml.org,2002:"
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
        self._lines.setdefault(path, line_of(node))
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
            raise _fatal(line_of(node), f"more than {MAX_VALUES} values, counting what aliases repeat")
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


def line_of(node: yaml.Node) -> int:
    """The line of a node, from 1; 0 where it was made of JSON."""
    return int(node.start_mark.line) + 1 if node.start_mark else 0


def from_json(text: str) -> yaml.Node:
    """The root node of a JSON document, for the same shapes; its nodes have no lines.

    Raises `ConfigError` on a syntax error, and on a document too deep or too large.
    """
    try:
        value = json.loads(
            text,
            parse_int=_Number,
            parse_float=_Number,
            parse_constant=_no_constant,
            object_pairs_hook=_Members,
        )
    except (ValueError, RecursionError):
        raise _fatal(0, "not valid JSON") from None
    root = _node(value, 0)
    _check_size(root)
    return root


def _no_constant(name: str) -> None:
    raise ValueError(name)


class _Number(str):
    """A number as it is spelt: money is exact."""


class _Members(list[tuple[str, Any]]):
    """The members of an object, repeated ones included."""


def _node(value: Any, depth: int) -> yaml.Node:
    if depth == MAX_DEPTH:
        raise _fatal(0, f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, _Members):
        pairs = [(_node(name, depth + 1), _node(inner, depth + 1)) for name, inner in value]
        return yaml.MappingNode(YAML_TAG + "map", pairs)
    if isinstance(value, list):
        return yaml.SequenceNode(YAML_TAG + "seq", [_node(inner, depth + 1) for inner in value])
    if isinstance(value, _Number):
        return yaml.ScalarNode(YAML_TAG + "float", str(value))
    if isinstance(value, str):
        return yaml.ScalarNode(YAML_TAG + "str", value, style='"')
    if isinstance(value, bool):
        return yaml.ScalarNode(YAML_TAG + "bool", "true" if value else "false")
    return yaml.ScalarNode(YAML_TAG + "null", "null")
