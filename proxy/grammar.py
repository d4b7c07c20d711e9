"""The grammar of JSON as patterns, and readers for what a pattern cannot read in one call.

Facts
  - The grammar is RFC 8259, sections 2 to 7; a number may be refused for its length (section 6).
  - Possessive and atomic groups do not step back, so a match costs time in proportion to its bytes.

Rules
  1. A pattern reads many items in one call, several brackets deep; what is deeper, long, or cut by a window
     is left to the readers.
  2. A reader pauses after about a millisecond; it raises the 400 that says which byte is wrong.

To compile the patterns takes 20 ms, once, at import.

Not here: what the members mean that the gateway looks for (`body`).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Generator
from typing import NamedTuple

import orjson

from .errors import ProxyError, Source

WINDOW = 1 << 16
"""Bytes that one call of a pattern reads at most: it bounds the time between pauses, and the memory."""

GLANCE = 1 << 10
"""The same at the top level of a body larger than `WINDOW`, where it would read most arrays in vain."""

STRETCH = 1 << 18
"""The same for text that needs no pattern, which is read several times as fast."""

_PLAIN_LIMIT = 4096
"""Bytes without an escape that a pattern reads; over longer stretches `bytes.find` is faster."""

_DEPTH = 6
"""Levels of brackets that a pattern reads at most; 7 would take 1.6 times as long to compile."""

_NAMES = ("model", "fallbacks", "stream")

_FOLDS = {"s": "\u017f", "k": "\u212a"}
"""The letters beyond ASCII that simple case folding takes for these: a long s, and the sign for kelvin."""

_BLANKED = bytes([0x20] * 0x20) + bytes(range(0x20, 0x100))
"""For `bytes.translate`: changes a text that holds control characters, and no other."""

# The grammar as patterns. No group is repeated by `*+`: CPython before 3.11.5 (Debian 12 has 3.11.2) matches
# that wrongly, gh-106052. The atomic group `(?>(?:…)*)` means the same and is right everywhere.

_SPACE = r"[ \t\n\r]*+"
_PLAIN = rf"[ !#-\[\]-\xff]{{0,{_PLAIN_LIMIT}}}+"
_ESCAPE = r'\\(?:["\\/bfnrt]|u[\da-fA-F]{4})'
# Not `*`: with two ways to read a key, an item that a window cuts would be read twice, and twice again for
# each bracket in it.
_ESCAPED = rf"(?>(?:{_ESCAPE}{_PLAIN})+)"
_STRING = rf'"{_PLAIN}(?:"|{_ESCAPED}")'
_NUMBER = r"-?+(?!0\d)\d++(?:\.\d++|)(?:[eE][+-]?\d++|)"
_BARE_WORD = rf"{_NUMBER}|true|false|null"
_SCALAR = rf"{_STRING}|{_BARE_WORD}"


def _more(close: str) -> str:
    """After an item: a comma with a further item in sight, or the closing bracket in sight."""
    return rf"{_SPACE}(?:,{_SPACE}(?=[^\{close}])|(?=\{close}))"


def _items(item: str, close: str) -> str:
    return rf"(?>(?:(?>(?:{item}){_more(close)}))*)"


def _members(depth: int, key: str = _STRING) -> str:
    return _items(rf"{key}{_SPACE}:{_SPACE}(?:{_value(depth)})", "}")


def _object(depth: int) -> str:
    return rf"\{{{_SPACE}{_members(depth - 1)}\}}"


def _array(depth: int) -> str:
    # No array directly in an array: so the pattern grows by 1.6 a level, and not by 2.
    inner = rf"|{_object(depth - 1)}" if depth > 1 else ""
    return rf"\[{_SPACE}{_items(_SCALAR + inner, ']')}\]"


def _value(depth: int) -> str:
    return rf"{_SCALAR}|{_object(depth)}|{_array(depth)}" if depth else _SCALAR


def _spelt(name: str) -> str:
    """`name` in every spelling: each letter, and each that folds to it, as itself or as its escape."""
    folds = ((letter, letter.upper(), *_FOLDS.get(letter, "")) for letter in name)
    return "".join("(?:" + "|".join(rf"{x}|\\u(?i:{ord(x):04x})" for x in fold) + ")" for fold in folds)


def _compiled(pattern: str) -> re.Pattern[bytes]:
    return re.compile(pattern.encode("utf-8"), re.DOTALL)


class Frame(NamedTuple):
    """How to read between one pair of brackets.

    `run` starts behind the opening bracket or behind a value, and reads whole items. Its group `bracket` then
    takes the closing bracket, or one too deep for it with its key; if neither comes, Python takes a turn.
    At the top level the groups `model` and `stream` take those members, if their names are plainly spelt.
    """

    run: re.Pattern[bytes]
    close: bytes
    keyed: bool


def _frame(brackets: str, items: str, deeper: str) -> Frame:
    start, close = brackets[0], brackets[1]
    run = rf"(?:(?<=\{start}){_SPACE}|{_more(close)}){items}(?P<bracket>\{close}|{deeper})?"
    return Frame(_compiled(run), close.encode(), close == "}")


_OTHER = rf'(?!"(?:{"|".join(map(_spelt, _NAMES))})"){_STRING}'
# In any other spelling, or when its group is taken (`(?(1)(?!))` then fails), a member is left to Python.
_MODEL = rf'(?(1)(?!))(?P<model>"model"{_SPACE}:{_SPACE}{_STRING})'
_STREAM = rf'(?(2)(?!))(?P<stream>"stream"{_SPACE}:{_SPACE}(?:true|false))'
_ANY = rf"{_OTHER}{_SPACE}:{_SPACE}(?:{_SCALAR}|{_object(1)}|{_array(2)})"
TOP = _frame("{}", _items(rf"{_MODEL}|{_STREAM}|{_ANY}", "}"), rf"{_OTHER}{_SPACE}:{_SPACE}[\[{{]")
LIST = _frame("[]", _items(rf"{_SCALAR}|{_object(_DEPTH)}|{_array(1)}", "]"), r"[\[{]")
NATIVE = _frame("[]", _items(_object(2), "]"), r"\{")
OBJECT = _frame("{}", _members(1), rf"{_STRING}{_SPACE}:{_SPACE}[\[{{]")
ARRAY = _frame("[]", _items(_value(1), "]"), r"[\[{]")
OBJECT_OPENS, ARRAY_OPENS = b"{["

NAME = _compiled(rf'"(?:{"|".join(f"(?P<{name}>{_spelt(name)})" for name in _NAMES)})"')
KEY = _compiled(rf"{_STRING}{_SPACE}:{_SPACE}(?=.)")
_BLANK = _compiled(_SPACE)
_BARE = _compiled(_BARE_WORD)
_TEXT = _compiled(rf"{_PLAIN}(?:{_ESCAPED}|)")
_ONE_ESCAPE = _compiled(_ESCAPE)

Reader = Generator[None, None, int]
"""Reads a piece of the body and returns the byte behind it. Pauses in long pieces; raises the 400s."""


def bad(at: int, problem: str, remedy: str) -> ProxyError:
    return ProxyError(400, f"{problem} at byte {at}: {remedy}", source=Source.DOWNSTREAM, offset=at)


def syntax(body: bytes, at: int, wanted: str) -> ProxyError:
    if at == len(body):
        found = "the end"
    else:
        found = repr(chr(body[at])) if 0x20 < body[at] < 0x7F else f"the byte 0x{body[at]:02x}"
    return bad(at, "the body is not JSON", f"expected {wanted}, found {found}")


def opening(body: bytes) -> Reader:
    """UTF-8 from end to end, and the bracket that opens the object."""
    if len(body) < STRETCH and body.startswith(b"{") and body.isascii():
        return 1
    if not body:
        raise bad(0, "the body is empty", "send a JSON object")
    if body.startswith(codecs.BOM_UTF8):
        raise bad(0, "the body has a byte order mark", "send UTF-8 without it")
    view, pos = memoryview(body), 0
    while pos < len(body):
        end = pos + STRETCH
        try:
            pos += codecs.utf_8_decode(view[pos:end], "strict", end >= len(body))[1]
        except UnicodeDecodeError as error:
            raise bad(pos + error.start, "the body is not UTF-8", "encode it as UTF-8") from None
        if len(body) > STRETCH:
            yield
    pos = yield from blank(body, 0)
    if not body.startswith(b"{", pos):
        raise syntax(body, pos, "the '{' of an object")
    return pos + 1


def _reach(pattern: re.Pattern[bytes], body: bytes, pos: int) -> int:
    """How far `pattern` matches, a window at most."""
    match = pattern.match(body, pos, pos + WINDOW)
    return match.end() if match else pos


def blank(body: bytes, pos: int) -> Reader:
    while (end := _reach(_BLANK, body, pos)) == pos + WINDOW:
        pos = end
        yield
    return end


def after(body: bytes, pos: int, close: bytes) -> Reader:
    """From a value to the next item or to the closing bracket."""
    pos = yield from blank(body, pos)
    if body.startswith(close, pos):
        return pos
    if not body.startswith(b",", pos):
        raise syntax(body, pos, f"',' or '{close.decode()}'")
    pos = yield from blank(body, pos + 1)
    if body.startswith(close, pos):
        raise syntax(body, pos, "an item behind the comma")
    return pos


def key(body: bytes, pos: int) -> Reader:
    """From a key to its value."""
    if not body.startswith(b'"', pos):
        raise syntax(body, pos, "a key in double quotes")
    pos = yield from string(body, pos)
    pos = yield from blank(body, pos)
    if not body.startswith(b":", pos):
        raise syntax(body, pos, "':'")
    return (yield from blank(body, pos + 1))


def scalar(body: bytes, pos: int) -> Reader:
    if body.startswith(b'"', pos):
        return (yield from string(body, pos))
    end = _reach(_BARE, body, pos)
    if end == pos or end == pos + WINDOW:
        raise syntax(body, pos, "a value" if end == pos else f"a number of less than {WINDOW} digits")
    return end


def string(body: bytes, pos: int) -> Reader:
    start, due = pos, pos + WINDOW
    pos += 1
    while True:
        pos = _reach(_TEXT, body, pos)
        if body.startswith(b'"', pos):
            return pos + 1
        if not body.startswith(b"\\", pos):
            pos = yield from _plain(body, pos, start)
        elif escape := _ONE_ESCAPE.match(body, pos):
            pos = escape.end()
        else:
            raise syntax(body, pos, "an escape that JSON knows")
        if pos >= due:
            due = pos + WINDOW
            yield


def _plain(body: bytes, pos: int, start: int) -> Reader:
    """On to the next quote or backslash, in the string that starts at `start`."""
    while pos < len(body) and body[pos] not in b'"\\':
        end = min(pos + STRETCH, len(body))
        for mark in (b'"', b"\\"):
            found = body.find(mark, pos, end)
            end = found if found >= 0 else end
        piece = body[pos:end]
        if piece.isascii():
            # orjson lengthens what needs an escape, and nothing else; `translate` takes five times as long.
            clean = len(orjson.dumps(piece.decode())) == len(piece) + len('""')
        else:
            clean = piece.translate(_BLANKED) == piece
        if not clean:
            control = min(at for code in range(0x20) if (at := piece.find(code)) >= 0)
            raise syntax(body, pos + control, "a character that needs no escape")
        if end - pos == STRETCH:
            yield
        pos = end
    if pos == len(body):
        raise syntax(body, pos, f"the end of the string that starts at byte {start}")
    return pos
