"""What is read from a stream that passes: where an event ends, whether the stream has ended, how many tokens.

What is found: an answer that depends on how the bytes came; a ping or an error event that would stand within
an event; an error event that is not exactly one.
"""

from __future__ import annotations

import re
from random import Random
from zlib import crc32

import pytest
from fuzz.mutate import pieces_of

from proxy import sse, usage
from proxy.formats import ANTHROPIC as FORM

WORDS = (
    b"event: message_stop\n",
    b'data: {"type":"message_stop"}\n\n',
    b"data: [DONE]\n\n",
    b"event: error\n",
    b"event: ping\ndata: {}\n\n",
    b": comment\n",
    b"\n\n",
    b"\r\n",
    b"\r\r",
    b"\n\r",
    b'"usage":{"input_tokens":7,"output_tokens":3}}',
    b'"usage":{"output_tokens":9',
    b'"cache_read_input_tokens" : 5',
    b'"cache_creation_input_tokens":4',
    b'\\"usage\\"',
    b"}}",
    b"x" * 30,
)

LINE_END = re.compile(rb"\r\n|\r|\n")

FIELD = re.compile(rb"(?:\A|(?<=[\r\n]))(?=[^:\r\n])")
"""The beginning of a line that is neither empty nor a comment."""

END = re.compile(rb"event:[ ]?message_stop|data:[ ]?\[DONE\]|data:[ ]?\{\s*\"type\":\s*\"message_stop\"")

COUNTED = {
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
}

TAIL, MAX_TAIL, WINDOW = 64, 160, 100
"""Small ones bring into small streams what happens where they end."""


def check(data: bytes) -> None:
    """All that must hold for a stream of these bytes."""
    random = Random(crc32(data))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "TAIL", TAIL)
        patch.setattr(sse, "MAX_TAIL", MAX_TAIL)
        patch.setattr(usage, "_WINDOW", WINDOW)
        between, counts = betweens(data), counted([data])
        assert counts.keys() <= COUNTED
        for pieces in ([data], [data[i : i + 1] for i in range(len(data))], pieces_of(data, random)):
            check_boundary(data, pieces, between)
            assert counted(pieces) == counts, "the chunking made a difference"
    check_first_event(data, between)
    check_error_event(data)


def check_boundary(data: bytes, pieces: list[bytes], between: list[bool]) -> None:
    boundary, at = sse.Boundary(), 0
    for piece in pieces:
        boundary.feed(piece)
        at += len(piece)
        assert boundary.between == between[at], data[:at]
        assert len(boundary.tail) <= sse.MAX_TAIL
    starts = (0, *(match.end() for match in LINE_END.finditer(data)))
    assert not boundary.finished or any(END.match(data, start) for start in starts), "no line says so"
    if ends_with_an_end(data):
        assert boundary.finished, "the last event says so"


def betweens(data: bytes) -> list[bool]:
    """For each beginning of `data`, the empty one first: whether it ends with an empty line, or is empty."""
    found = [True]
    last, is_empty, was_empty = 0x0A, True, False
    for byte in data:
        if byte == 0x0A and last == 0x0D:
            found.append(was_empty)
        elif byte in b"\r\n":
            was_empty, is_empty = is_empty, True
            # A CR behind an LF is half of a CR LF, as it seems: the lines of this stream do not end with CRs.
            found.append(was_empty and not (byte == 0x0D and last == 0x0A))
        else:
            is_empty = False
            found.append(False)
        last = byte
    return found


def ends_with_an_end(data: bytes) -> bool:
    """Whether the last event is one that ends a stream, and short enough to be seen."""
    if not betweens(data)[-1]:
        return False
    lines = LINE_END.split(data)
    while lines and not lines[-1]:
        lines.pop()
    size = 0
    while lines and lines[-1]:
        size += len(lines[-1]) + 2
        if END.match(lines[-1]):
            # Many empty lines behind it would push it out of what is kept.
            return size < sse.TAIL - 8 and not data.endswith((b"\n" * 3, b"\r" * 3))
        lines.pop()
    return False


def check_first_event(data: bytes, between: list[bool]) -> None:
    """It ends with the first empty line behind anything but comments, and with all of that line's end."""
    event = sse.first_event(data)
    FORM.is_error_event(event or data)  # Must not raise.
    if data[:1] in (b"\r", b"\n"):
        # Empty lines in front of the first event may count as one.
        assert event is None or data.startswith(event)
        return
    field = FIELD.search(data)
    begin = field.start() if field else len(data)
    end = next((at for at in range(begin + 1, len(data) + 1) if between[at]), None)
    if end is not None and data[end - 1 : end + 1] == b"\r\n":
        end += 1
    assert event == (None if end is None else data[:end])


def check_error_event(data: bytes) -> None:
    """Whatever it holds, it is one event, and its name is error."""
    event = FORM.error_event(data)
    assert sse.first_event(event) == event
    assert FORM.is_error.search(event)
    assert len(event) == len(FORM.error_event(b"")) + len(data)


def counted(pieces: list[bytes]) -> dict[str, int]:
    seen = usage.Usage(FORM.usage)
    for piece in pieces:
        seen.feed(piece)
    return seen.counts()
