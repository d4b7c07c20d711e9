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
  2. A pattern reads many items in one call, several brackets deep, `model` and `stream` among them. Python
     takes a turn for each bracket deeper than that, for `fallbacks`, for our names in odd spellings, for
     long strings, and where a window ends.
  3. Inside an item that is too deep for its pattern only shallow patterns are tried: a byte is read a few
     times at most, and no depth makes the cost jump.
  4. What is not replaced stays as it came, white space too.

What one scan costs, measured on 2026-11-22 on a 2-core Xeon with Debian's CPython 3.11.2 (in brackets: the
time in relation to `json.loads` and to `orjson.loads`, which build a tree):

    body                                        2 KB                200 KB               20 MB
    a chat: text, an escape in 40 bytes         9.5 µs (1.9, 8.3)   0.45 ms (1.3, 4.0)   51 ms (1.2, 1.4)
    the same without escapes                    6.2 µs (2.2, 7.3)
    an agent: tools, calls, their results       17 µs (2.8, 7.0)    0.64 ms (1.4, 3.4)   67 ms (1.0, 1.2)
    tools with schemas deeper than the patterns 34 µs (5.8, 15)     4.0 ms (5.7, 10)     386 ms (2.9, 3.1)
    one image in base64                         8.6 µs (2.6, 7.7)   0.07 ms (0.6, 1.0)   6.4 ms (0.3, 0.3)
    objects of small values, 50 bytes each      38 µs (2.5, 5.1)    3.3 ms (2.2, 3.6)    352 ms (1.7, 1.5)

No step of these took more than about 1.5 ms; the slowest known, over an array of single digits, takes
3 ms. At its worst, on brackets only, a scan takes 0.4 µs a byte.

Not here: the grammar (`grammar`), what a model's name means, which fallbacks can be used, compressed bodies.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import NamedTuple

import orjson

from . import grammar
from .errors import ProxyError

_LONGEST = 1 << 14
"""Bytes of `model` at most, and of the strings in the gateway's `fallbacks`: they are held and decoded."""

_TURN = 100
"""What a turn in Python costs, about, in bytes that a pattern reads in the same time."""


class Scan(NamedTuple):
    """What stands in a body. A span is two byte offsets, the second one exclusive."""

    model: str
    """Empty where it is named elsewhere, or nowhere."""
    model_span: tuple[int, int]
    """With its quotes."""
    fallbacks: tuple[str, ...]
    """The gateway's own; empty when there are none, or when they are Anthropic's."""
    fallbacks_cut: tuple[int, int] | None
    """The gateway's member with exactly one comma; None when there is nothing to cut."""
    stream: bool
    again: tuple[tuple[int, int], ...] = ()
    """Where deeper in the body the path's model is named again, with quotes."""
    native_fallbacks: bool = False
    """Whether there are fallbacks of Anthropic's own."""
    is_json: bool = True
    """Whether the model stands in the body as JSON has it, or as it is."""


def scan(body: bytes, *, named: bool = True) -> Scan:
    """What stands in `body`; a `ProxyError` with status 400 and the byte's offset, if that is not allowed.

    `named` says that it must name a model.
    """
    walk = steps(body, named=named)
    try:
        while True:
            next(walk)
    except StopIteration as done:
        found: Scan = done.value
        return found


def steps(body: bytes, *, named: bool = True) -> Generator[None, None, Scan]:
    """`scan`, pausing after every millisecond or so, so that its caller can let others run."""
    ours = _Ours(body)
    return ours.result((yield from _walk(body, ours)), named=named)


def object_steps(body: bytes) -> Generator[None, None, bool]:
    """Whether `body` is a JSON object, whatever is in it; it pauses as `steps` does."""
    try:
        yield from _walk(body, None)
    except ProxyError:
        return False
    return True


def _walk(body: bytes, ours: _Ours | None) -> Generator[None, None, int]:
    """Read all of `body`, and tell `ours` of its members; returns where its object closes."""
    pos = yield from grammar.opening(body)
    frame, stack = grammar.OBJECT if ours is None else grammar.TOP, list[grammar.Frame]()
    at_top = grammar.WINDOW if len(body) <= grammar.WINDOW else grammar.GLANCE
    due = pos + grammar.WINDOW
    while True:
        due -= _TURN
        if pos >= due:
            due = pos + grammar.WINDOW
            yield
        run = frame.run.match(body, pos, pos + (grammar.WINDOW if stack else at_top))
        if run and not stack and ours is not None:
            ours.take(run)
        if run and run.lastgroup == "bracket":
            pos = run.end()
            bracket = body[pos - 1]
        else:
            pos, bracket = yield from _turn(body, pos, run, frame, ours)
        if bracket == grammar.OBJECT_OPENS:
            stack.append(frame)
            frame = grammar.OBJECT
        elif bracket == grammar.ARRAY_OPENS:
            stack.append(frame)
            frame = ours.array(pos) if ours is not None and frame is grammar.TOP else grammar.ARRAY
        elif bracket and stack:
            frame = stack.pop()
        elif bracket:
            break
    end = (yield from grammar.blank(body, pos)) if pos < len(body) else pos
    if end < len(body):
        raise grammar.syntax(body, end, "nothing behind the object")
    return pos - 1


def splice(body: bytes, scan: Scan, model: str, again: str = "") -> bytes:
    """`body` with this `model` and without the gateway's fallbacks; `body` itself if that is the same.

    `scan` must be the scan of this `body`. `model` must be encodable as UTF-8. `again`, if given, goes to
    `scan.again`.
    """
    parts = spliced(body, scan, model, again)
    return b"".join(parts) if len(parts) > 1 else body


def spliced(body: bytes, scan: Scan, model: str, again: str = "") -> list[memoryview]:
    """As `splice`, in parts: what stays is not copied."""
    edits = [(*scan.fallbacks_cut, b"")] if scan.fallbacks_cut else []
    if again:
        name = orjson.dumps(again)
        edits += ((*span, name) for span in scan.again)
    if model != scan.model and scan.model:
        new = orjson.dumps(model) if scan.is_json else model.encode("utf-8", "surrogatepass")
        edits.append((*scan.model_span, new))
    whole = memoryview(body)
    parts, kept = [], 0
    for start, end, new in sorted(edits):
        parts += [whole[kept:start], memoryview(new)]
        kept = end
    return [*parts, whole[kept:]]


class _Ours:
    """The three members, as far as the scan has come."""

    model = ""
    model_span = (0, 0)
    fallbacks: tuple[str, ...] = ()
    fallbacks_cut: tuple[int, int] | None = None
    native_fallbacks = False
    native = 0
    """The byte behind the bracket that opens Anthropic's own fallbacks."""
    stream = False
    names_length = 0
    null = 0
    """The byte at which `model` is null: as good as none, where none must be named."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.keys: dict[str, int] = {}

    def take(self, run: re.Match[bytes]) -> None:
        """Take the members that `run` has read, in their order: the first error counts."""
        for name in ("model", "stream") if run.start("model") < run.start("stream") else ("stream", "model"):
            key, end = run.span(name)
            if key < 0:
                continue
            self._claim(name, key)
            if name == "stream":
                self.stream = self.body.endswith(b"true", key, end)
            else:
                value = self.body.index(b'"', key + len('"model"'))
                self.model, self.model_span = self._name(name, value, end), (value, end)

    def read(self, name: str, key: int, value: int) -> grammar.Reader:
        """Read the member's value; or return its start, if it may be any JSON and is read like any other."""
        spelt = orjson.loads(self.body[key : self.body.index(b'"', key + 1) + 1])
        if spelt != name:
            # Go's encoding/json takes it for that name, others take it for another.
            raise grammar.bad(
                key, f"`{spelt}` is `{name}` to some parsers and not to others", f"send `{name}`"
            )
        self._claim(name, key)
        if name == "stream":
            self.stream = self.body.startswith(b"true", value)
            return value
        if name == "fallbacks":
            return (yield from self._read_fallbacks(key, value))
        if self.body.startswith(b"null", value):
            self.null = value
            return value
        if not self.body.startswith(b'"', value):
            raise _no_string(value)
        end = yield from grammar.string(self.body, value)
        self.model, self.model_span = self._name(name, value, end), (value, end)
        return end

    def _claim(self, name: str, key: int) -> None:
        if name in self.keys:
            raise grammar.bad(
                key, f"`{name}` comes a second time", "send it once: parsers differ on which counts"
            )
        self.keys[name] = key

    def _read_fallbacks(self, key: int, value: int) -> grammar.Reader:
        body, names = self.body, list[str]()
        if body.startswith(b'"', value):
            end = yield from grammar.string(body, value)
            name = self._name("fallbacks", value, end)
            if name == "default":
                self.native_fallbacks = True
                return end
            names.append(name)
        elif body.startswith(b"[", value):
            item = yield from grammar.blank(body, value + 1)
            if body.startswith(b"{", item):
                self.native, self.native_fallbacks = value + 1, True
                return value
            while body.startswith(b'"', item):
                end = yield from grammar.string(body, item)
                names.append(self._name("fallbacks", item, end))
                item = yield from grammar.after(body, end, b"]")
                yield
            if not body.startswith(b"]", item):
                raise _mixed(item)
            end = item + 1
        else:
            return value
        self.fallbacks = tuple(names)
        self.fallbacks_cut = body.rfind(b",", 0, key), end
        return end

    def _name(self, member: str, start: int, end: int) -> str:
        """The text of a string that stands in one of the members."""
        self.names_length += end - start
        if self.names_length > _LONGEST:
            raise grammar.bad(start, f"`{member}` makes the names too long", f"send {_LONGEST} bytes at most")
        try:
            name: str = orjson.loads(self.body[start:end])
        except orjson.JSONDecodeError:
            # The grammar is checked by now, so only this can be wrong.
            raise grammar.bad(
                start, f"`{member}` holds half of a surrogate pair", "send both halves"
            ) from None
        if not name:
            raise grammar.bad(start, f"`{member}` holds an empty string", "send the name of a model")
        return name

    def array(self, pos: int) -> grammar.Frame:
        """The frame of the top-level array that opens in front of `pos`."""
        return grammar.NATIVE if pos == self.native else grammar.LIST

    def result(self, at: int, *, named: bool) -> Scan:
        """The scan of a body whose object closes at byte `at`."""
        if not self.model and named:
            if self.null:
                raise _no_string(self.null)
            raise grammar.bad(
                at, "the object ends without a top-level `model`", "add it, the name of a model"
            )
        cut = self.fallbacks_cut
        if cut and cut[0] < 0:
            # No comma in front: it is the first member. Behind it is a comma, or the end.
            comma = self.body.find(b",", cut[1], at)
            cut = self.keys["fallbacks"], comma + 1 if comma >= 0 else cut[1]
        native = self.native_fallbacks
        return Scan(self.model, self.model_span, self.fallbacks, cut, self.stream, native_fallbacks=native)


def _no_string(at: int) -> ProxyError:
    return grammar.bad(at, "`model` is not a string", "send the name of a model in double quotes")


def _mixed(at: int) -> ProxyError:
    return grammar.bad(
        at, "`fallbacks` is neither a list of strings nor a list of objects", "send one or the other"
    )


def _turn(
    body: bytes, pos: int, run: re.Match[bytes] | None, frame: grammar.Frame, ours: _Ours | None
) -> Generator[None, None, tuple[int, int]]:
    """Read on where `run` stopped: a scalar, or a bracket, which is returned with the byte behind it."""
    pos = run.end() if run else (yield from grammar.after(body, pos, frame.close))
    if body[pos : pos + 1].isspace():
        pos = yield from grammar.blank(body, pos)
    if body.startswith(frame.close, pos):
        return pos + 1, frame.close[0]
    if frame.keyed:
        key = grammar.KEY.match(body, pos, pos + grammar.WINDOW)
        value = key.end() if key else (yield from grammar.key(body, pos))
        if ours is not None and frame is grammar.TOP and (name := grammar.NAME.match(body, pos)):
            pos = yield from ours.read(str(name.lastgroup), pos, value)
            if pos > value:
                return pos, 0
        pos = value
    opens = body[pos : pos + 1]
    if frame is grammar.NATIVE and opens != b"{":
        raise _mixed(pos)
    if opens in (b"{", b"["):
        return pos + 1, opens[0]
    return (yield from grammar.scalar(body, pos)), 0
