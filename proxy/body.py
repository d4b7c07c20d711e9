"""The request body: where `model`, `fallbacks` and `stream` stand in it, and how to replace them.

Facts
  - RFC 8259: a byte order mark must not be sent (8.1); an escaped half of a surrogate pair is grammatical
    (8.2); names may repeat, and parsers differ on which of them counts (4).
  - `fallbacks` is Anthropic's own field too (platform.claude.com, refusals and fallback): a list of objects,
    or the string "default". The gateway's is a list of strings, or one string.
  - Anthropic's Python SDK sends `model` last, behind megabytes of messages, where the word occurs as well.

Rules
  1. One pass in linear time: no tree, no recursion, no limit on depth. All of it is checked against the
     grammar, because parsers that disagree about the body would disagree about its model. Two things have
     a limit, so that no step takes long: a number (64 KiB; section 6 allows it) and our names (16 KiB).
  2. A pattern reads many items in one call, several brackets deep. Python takes a turn for each bracket
     deeper than that, for the three members, for long strings, and where a window ends.
  3. Inside an item that is too deep for its pattern only shallow patterns are tried: a byte is read a few
     times at most, and no depth makes the cost jump.
  4. What is not replaced stays as it came, white space too.
  5. (Rule zero.) This room is longer than others, because the patterns, the turns between them and the
     errors must agree to the byte.

What one scan costs, measured on 2026-11-21 on a 2-core Xeon with CPython 3.11.7 (in brackets: the time in
relation to `json.loads` and to `orjson.loads`, which build a tree):

    body                                        2 KB                200 KB               20 MB
    a chat: text, an escape in 40 bytes         15 µs (2.5, 8.2)    0.54 ms (2.1, 4.7)   54 ms (1.4, 1.4)
    an agent: tools, calls, their results       23 µs (2.5, 6.5)    0.70 ms (1.2, 2.7)   84 ms (0.7, 0.9)
    tools with schemas deeper than `_DEPTH`                         1.6 ms (2.8, 5.7)    174 ms (1.7, 2.1)
    one image in base64                         13 µs (2.9, 8.3)    0.17 ms (1.5, 2.7)   14 ms (0.6, 0.5)
    objects of small values, 50 bytes each      40 µs (2.2, 4.6)    3.5 ms (1.6, 2.4)    371 ms (0.5, 0.5)

The slowest step of them all took 2 ms. At its worst, on brackets only, a scan takes 0.5 µs a byte.
To compile the patterns takes 40 ms, once, at import.

Not here: what a model's name means, which fallbacks can be used, compressed bodies.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Generator
from typing import NamedTuple

import orjson

from .errors import ProxyError, Source

_WINDOW = 1 << 16
"""Bytes that one call of a pattern reads at most: it bounds the time between pauses, and the memory."""

_STRETCH = 1 << 18
"""The same for text that needs no pattern, which is read several times as fast."""

_LONGEST = 1 << 14
"""Bytes of `model` at most, and of the strings in the gateway's `fallbacks`: they are held and decoded."""

_PLAIN_LIMIT = 4096
"""Bytes without an escape that a pattern reads; over longer stretches `bytes.find` is faster."""

_TURN = 100
"""What a turn in Python costs, about, in bytes that a pattern reads in the same time."""

_DEPTH = 6
"""Levels of brackets that a pattern reads in a message or a tool; 7 would compile 1.6 times as long."""

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
_ESCAPED = rf"(?>(?:{_ESCAPE}{_PLAIN})*)"
_STRING = rf'"{_PLAIN}(?:"|{_ESCAPED}")'
_NUMBER = r"-?+(?!0\d)\d++(?:\.\d++(?:[eE][+-]?\d++)?|[eE][+-]?\d++|)"
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


class _Frame(NamedTuple):
    """How to read between one pair of brackets.

    `run` starts behind the opening bracket or behind a value, and reads whole items. Its group then takes
    the closing bracket, or a bracket too deep for it with its key; if neither comes, Python takes a turn.
    """

    run: re.Pattern[bytes]
    close: bytes
    keyed: bool


def _frame(brackets: str, items: str, deeper: str) -> _Frame:
    start, close = brackets[0], brackets[1]
    run = rf"(?:(?<=\{start}){_SPACE}|{_more(close)}){items}(\{close}|{deeper})?"
    return _Frame(_compiled(run), close.encode(), close == "}")


_OTHER = rf'(?!"(?:{"|".join(map(_spelt, _NAMES))})"){_STRING}'
_TOP = _frame("{}", _members(1, _OTHER), rf"{_OTHER}{_SPACE}:{_SPACE}[\[{{]")
_LIST = _frame("[]", _items(_value(_DEPTH), "]"), r"[\[{]")
_NATIVE = _frame("[]", _items(_object(2), "]"), r"\{")
_OBJECT = _frame("{}", _members(1), rf"{_STRING}{_SPACE}:{_SPACE}[\[{{]")
_ARRAY = _frame("[]", _items(_value(1), "]"), r"[\[{]")
_OBJECT_OPENS, _ARRAY_OPENS = b"{["

_NAME = _compiled(rf'"(?:{"|".join(f"(?P<{name}>{_spelt(name)})" for name in _NAMES)})"')
_KEY = _compiled(rf"{_STRING}{_SPACE}:{_SPACE}(?=.)")
_BLANK = _compiled(_SPACE)
_BARE = _compiled(_BARE_WORD)
_TEXT = _compiled(_PLAIN + _ESCAPED)
_ONE_ESCAPE = _compiled(_ESCAPE)

_Reader = Generator[None, None, int]
"""Reads a piece of the body and returns the byte behind it. Pauses in long pieces; raises the 400s."""


class Scan(NamedTuple):
    """What stands in a body. A span is two byte offsets, the second one exclusive."""

    model: str
    model_span: tuple[int, int]
    """With its quotes."""
    fallbacks: tuple[str, ...]
    """The gateway's own; empty when there are none, or when they are Anthropic's."""
    fallbacks_cut: tuple[int, int] | None
    """The gateway's member with exactly one comma; None when there is nothing to cut."""
    stream: bool


def scan(body: bytes) -> Scan:
    """What stands in `body`; a `ProxyError` with status 400 and the byte's offset, if that is not allowed."""
    walk = steps(body)
    try:
        while True:
            next(walk)
    except StopIteration as done:
        found: Scan = done.value
        return found


def steps(body: bytes) -> Generator[None, None, Scan]:
    """`scan`, pausing after every millisecond or so, so that its caller can let others run."""
    pos = yield from _opening(body)
    ours = _Ours(body)
    frame, stack = _TOP, list[_Frame]()
    due = pos + _WINDOW
    while True:
        due -= _TURN
        if pos >= due:
            due = pos + _WINDOW
            yield
        run = frame.run.match(body, pos, pos + _WINDOW)
        if run and run.lastindex:
            pos = run.end()
            bracket = body[pos - 1]
        else:
            pos, bracket = yield from _turn(body, pos, run, frame, ours)
        if bracket == _OBJECT_OPENS:
            stack.append(frame)
            frame = _OBJECT
        elif bracket == _ARRAY_OPENS:
            stack.append(frame)
            frame = ours.array(pos) if frame is _TOP else _ARRAY
        elif bracket and stack:
            frame = stack.pop()
        elif bracket:
            break
    end = (yield from _blank(body, pos)) if pos < len(body) else pos
    if end < len(body):
        raise _syntax(body, end, "nothing behind the object")
    return ours.result(pos - 1)


def splice(body: bytes, scan: Scan, model: str) -> bytes:
    """`body` with this `model` and without the gateway's fallbacks; `body` itself if that is the same.

    `scan` must be the scan of this `body`. `model` must be encodable as UTF-8.
    """
    edits = [(*scan.fallbacks_cut, b"")] if scan.fallbacks_cut else []
    if model != scan.model:
        edits.append((*scan.model_span, orjson.dumps(model)))
    if not edits:
        return body
    pieces, kept = [], 0
    for start, end, new in sorted(edits):
        pieces += [body[kept:start], new]
        kept = end
    return b"".join([*pieces, body[kept:]])


class _Ours:
    """The three members, as far as the scan has come."""

    model = ""
    model_span = (0, 0)
    fallbacks: tuple[str, ...] = ()
    fallbacks_cut: tuple[int, int] | None = None
    native = 0
    """The byte behind the bracket that opens Anthropic's own fallbacks."""
    stream = False
    names_length = 0

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.keys: dict[str, int] = {}

    def read(self, name: str, key: int, value: int) -> _Reader:
        """Read the member's value; or return its start, if it may be any JSON and is read like any other."""
        spelt = orjson.loads(self.body[key : self.body.index(b'"', key + 1) + 1])
        if spelt != name:
            # Go's encoding/json takes it for that name, others take it for another.
            raise _bad(key, f"`{spelt}` is `{name}` to some parsers and not to others", f"send `{name}`")
        if name in self.keys:
            raise _bad(key, f"`{name}` comes a second time", "send it once: parsers differ on which counts")
        self.keys[name] = key
        if name == "stream":
            self.stream = self.body.startswith(b"true", value)
            return value
        if name == "fallbacks":
            return (yield from self._read_fallbacks(key, value))
        if not self.body.startswith(b'"', value):
            raise _bad(value, "`model` is not a string", "send the name of a model in double quotes")
        self.model, end = yield from self._read_name(name, value)
        self.model_span = value, end
        return end

    def _read_fallbacks(self, key: int, value: int) -> _Reader:
        body, names = self.body, list[str]()
        if body.startswith(b'"', value):
            name, end = yield from self._read_name("fallbacks", value)
            if name == "default":
                return end
            names.append(name)
        elif body.startswith(b"[", value):
            item = yield from _blank(body, value + 1)
            if body.startswith(b"{", item):
                self.native = value + 1
                return value
            while body.startswith(b'"', item):
                name, end = yield from self._read_name("fallbacks", item)
                names.append(name)
                item = yield from _after(body, end, b"]")
                yield
            if not body.startswith(b"]", item):
                raise _mixed(item)
            end = item + 1
        else:
            return value
        self.fallbacks = tuple(names)
        self.fallbacks_cut = body.rfind(b",", 0, key), end
        return end

    def _read_name(self, member: str, start: int) -> Generator[None, None, tuple[str, int]]:
        """The string at `start`, and the byte behind it."""
        end = yield from _string(self.body, start)
        self.names_length += end - start
        if self.names_length > _LONGEST:
            raise _bad(start, f"`{member}` makes the names too long", f"send {_LONGEST} bytes at most")
        try:
            name: str = orjson.loads(self.body[start:end])
        except orjson.JSONDecodeError:
            # The grammar is checked by now, so only this can be wrong.
            raise _bad(start, f"`{member}` holds half of a surrogate pair", "send both halves") from None
        if not name:
            raise _bad(start, f"`{member}` holds an empty string", "send the name of a model")
        return name, end

    def array(self, pos: int) -> _Frame:
        """The frame of the top-level array that opens in front of `pos`."""
        return _NATIVE if pos == self.native else _LIST

    def result(self, at: int) -> Scan:
        """The scan of a body whose object closes at byte `at`."""
        if not self.model:
            raise _bad(at, "the object ends without a top-level `model`", "add it, the name of a model")
        cut = self.fallbacks_cut
        if cut and cut[0] < 0:
            # No comma in front: it is the first member, and `model` comes after it, behind another comma.
            cut = self.keys["fallbacks"], self.body.index(b",", cut[1]) + 1
        return Scan(self.model, self.model_span, self.fallbacks, cut, self.stream)


def _bad(at: int, problem: str, remedy: str) -> ProxyError:
    return ProxyError(400, f"{problem} at byte {at}: {remedy}", source=Source.DOWNSTREAM, offset=at)


def _mixed(at: int) -> ProxyError:
    return _bad(at, "`fallbacks` is neither a list of strings nor a list of objects", "send one or the other")


def _syntax(body: bytes, at: int, wanted: str) -> ProxyError:
    if at == len(body):
        found = "the end"
    else:
        found = repr(chr(body[at])) if 0x20 < body[at] < 0x7F else f"the byte 0x{body[at]:02x}"
    return _bad(at, "the body is not JSON", f"expected {wanted}, found {found}")


def _opening(body: bytes) -> _Reader:
    """UTF-8 from end to end, and the bracket that opens the object."""
    if not body:
        raise _bad(0, "the body is empty", "send a JSON object")
    if body.startswith(codecs.BOM_UTF8):
        raise _bad(0, "the body has a byte order mark", "send UTF-8 without it")
    view, pos = memoryview(body), len(body) if len(body) < _STRETCH and body.isascii() else 0
    while pos < len(body):
        end = pos + _STRETCH
        try:
            pos += codecs.utf_8_decode(view[pos:end], "strict", end >= len(body))[1]
        except UnicodeDecodeError as error:
            raise _bad(pos + error.start, "the body is not UTF-8", "encode it as UTF-8") from None
        yield
    pos = 0 if body.startswith(b"{") else (yield from _blank(body, 0))
    if not body.startswith(b"{", pos):
        raise _syntax(body, pos, "the '{' of an object")
    return pos + 1


def _turn(
    body: bytes, pos: int, run: re.Match[bytes] | None, frame: _Frame, ours: _Ours
) -> Generator[None, None, tuple[int, int]]:
    """Read on where `run` stopped: a scalar, or a bracket, which is returned with the byte behind it."""
    pos = run.end() if run else (yield from _after(body, pos, frame.close))
    if body[pos : pos + 1].isspace():
        pos = yield from _blank(body, pos)
    if body.startswith(frame.close, pos):
        return pos + 1, frame.close[0]
    if frame.keyed:
        key = _KEY.match(body, pos, pos + _WINDOW)
        value = key.end() if key else (yield from _key(body, pos))
        if frame is _TOP and (name := _NAME.match(body, pos)):
            pos = yield from ours.read(str(name.lastgroup), pos, value)
            if pos > value:
                return pos, 0
        pos = value
    opens = body[pos : pos + 1]
    if frame is _NATIVE and opens != b"{":
        raise _mixed(pos)
    if opens in (b"{", b"["):
        return pos + 1, opens[0]
    return (yield from _scalar(body, pos)), 0


def _reach(pattern: re.Pattern[bytes], body: bytes, pos: int) -> int:
    """How far `pattern` matches, a window at most."""
    match = pattern.match(body, pos, pos + _WINDOW)
    return match.end() if match else pos


def _blank(body: bytes, pos: int) -> _Reader:
    while (end := _reach(_BLANK, body, pos)) == pos + _WINDOW:
        pos = end
        yield
    return end


def _after(body: bytes, pos: int, close: bytes) -> _Reader:
    """From a value to the next item or to the closing bracket."""
    pos = yield from _blank(body, pos)
    if body.startswith(close, pos):
        return pos
    if not body.startswith(b",", pos):
        raise _syntax(body, pos, f"',' or '{close.decode()}'")
    pos = yield from _blank(body, pos + 1)
    if body.startswith(close, pos):
        raise _syntax(body, pos, "an item behind the comma")
    return pos


def _key(body: bytes, pos: int) -> _Reader:
    """From a key to its value."""
    if not body.startswith(b'"', pos):
        raise _syntax(body, pos, "a key in double quotes")
    pos = yield from _string(body, pos)
    pos = yield from _blank(body, pos)
    if not body.startswith(b":", pos):
        raise _syntax(body, pos, "':'")
    return (yield from _blank(body, pos + 1))


def _scalar(body: bytes, pos: int) -> _Reader:
    if body.startswith(b'"', pos):
        return (yield from _string(body, pos))
    end = _reach(_BARE, body, pos)
    if end == pos or end == pos + _WINDOW:
        raise _syntax(body, pos, "a value" if end == pos else f"a number of less than {_WINDOW} digits")
    return end


def _string(body: bytes, pos: int) -> _Reader:
    start, due = pos, pos + _WINDOW
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
            raise _syntax(body, pos, "an escape that JSON knows")
        if pos >= due:
            due = pos + _WINDOW
            yield


def _plain(body: bytes, pos: int, start: int) -> _Reader:
    """On to the next quote or backslash, in the string that starts at `start`."""
    while pos < len(body) and body[pos] not in b'"\\':
        end = min(pos + _STRETCH, len(body))
        for mark in (b'"', b"\\"):
            found = body.find(mark, pos, end)
            end = found if found >= 0 else end
        piece = body[pos:end]
        if piece.translate(_BLANKED) != piece:
            control = min(at for code in range(0x20) if (at := piece.find(code)) >= 0)
            raise _syntax(body, pos + control, "a character that needs no escape")
        if end - pos == _STRETCH:
            yield
        pos = end
    if pos == len(body):
        raise _syntax(body, pos, f"the end of the string that starts at byte {start}")
    return pos
