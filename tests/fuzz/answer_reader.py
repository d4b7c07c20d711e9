"""A strict reader of one HTTP/1.1 answer: the reference for `proxy.framing`.

Facts
  - RFC 9112: the status line (4), field lines (5), which body an answer has (6.3), chunks (7.1).
  - What llhttp takes although a sender must not write it, and what does no harm: empty lines in front of an
    answer, control characters in a reason phrase (`proxy.reply` replaces it), a missing space behind the
    code, names and values of chunk extensions that are empty, ``RTSP/`` behind an interim answer.

Rules
  1. It has the whole of the bytes and judges line by line; what has not ended is not judged.
  2. It shares no code with the parser it is compared with, and is written to be read, not to be fast.

Not here: limits on sizes. Inputs of the fuzzer stay below all of them but one, the number of interim answers.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from proxy import framing

_STATUS_LINE = re.compile(rb"(HTTP|RTSP|ICE)/(0\.9|1\.0|1\.1|2\.0) ([0-9]{3})(?: ([^\r\n]*))?")
_LETTER = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_FIELD_LINE = re.compile(rb"(%b+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*" % _LETTER)
# llhttp knows no coding with a tab behind it, so one must not be taken for chunked.
_TAB_BEHIND_CODING = re.compile(rb"\ntransfer-encoding:[^\r]*\t *\r", re.IGNORECASE)
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]+)(?:;(?=.)%b*(?:=%b*(?:%b)?)?)*" % (_LETTER, _LETTER, _QUOTED))

Fields = list[tuple[bytes, bytes]]


class Bad(Exception):
    """No answer goes on like this."""


class Doubtful(Exception):
    """An interim answer that says it has chunks, which none may (RFC 9112 section 6.1): not judged."""


class Short(Exception):
    """More bytes may come."""


@dataclass
class Answer:
    """What the bytes so far say."""

    status: int = 0
    reason: bytes = b""
    fields: Fields = field(default_factory=list)
    body: bytes = b""
    ended: bool = False
    until_close: bool = False
    stays_open: bool = False
    """Whether the connection may carry another answer: what the fields of the head allow."""
    bad: bool = False
    unjudged: bool = False
    """Whether the last head, or the last line between chunks, has not ended."""
    doubtful: bool = False
    """Whether nothing is said about it."""
    behind: bytes = b""
    """What stands behind the end."""


def read(data: bytes, method: str) -> Answer:
    """The answer to a request with this method."""
    answer = Answer()
    lines = _Lines(data)
    try:
        for number in range(framing.MAX_INTERIM + 1):
            if _read_one(lines, answer, method, first=number == 0):
                answer.ended = True
                answer.behind = data[lines.at :]
                return answer
        raise Bad
    except Bad:
        answer.bad = True
    except Doubtful:
        answer.doubtful = True
    except Short:
        answer.unjudged = lines.within
    return answer


class _Lines:
    """The bytes, and how far they are read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.within = False
        """Whether a head, or the line of a chunk's size, has begun and not ended."""

    def line(self) -> bytes:
        """The next line, without its CR LF. A line ends so and no other way."""
        end = re.compile(rb"[\r\n]").search(self.data, self.at)
        if end is None or self.data[end.start() :] == b"\r":
            self.within = True
            raise Short
        if not self.data.startswith(b"\r\n", end.start()):
            raise Bad
        line = self.data[self.at : end.start()]
        self.at = end.start() + 2
        return line

    def take(self, size: int) -> Iterator[bytes]:
        """The next bytes, as many as are there; then, if they are not all, the reading is over."""
        part = self.data[self.at : self.at + size]
        self.at += len(part)
        yield part
        if len(part) < size:
            raise Short

    def fields(self) -> Fields:
        """Field lines up to the empty one."""
        found: Fields = []
        while line := self.line():
            match = _FIELD_LINE.fullmatch(line)
            if match is None:
                raise Bad
            found.append((match[1], match[2]))
        return found


def _read_one(lines: _Lines, answer: Answer, method: str, *, first: bool) -> bool:
    """Read a whole answer; False if it was an interim one."""
    while lines.data[lines.at : lines.at + 1] in (b"\r", b"\n"):
        lines.at += 1
    begin = lines.at
    start = _STATUS_LINE.fullmatch(lines.line())
    if start is None or (first and start[1] != b"HTTP"):
        raise Bad
    version, status = start[2], int(start[3])
    fields = lines.fields()
    if _TAB_BEHIND_CODING.search(lines.data, begin, lines.at):
        raise Bad
    lengths, codings = _values(fields, b"content-length"), _values(fields, b"transfer-encoding")
    if len(lengths) > 1 or (lengths and codings):
        raise Bad
    if b"" in codings:
        raise Bad
    if lengths and (not re.fullmatch(rb"[0-9]+", lengths[0]) or int(lengths[0]) >= 1 << 64):
        raise Bad
    options = {
        option.strip().lower() for value in _values(fields, b"connection") for option in value.split(b",")
    }
    stays_open = b"close" not in options and (version == b"1.1" or b"keep-alive" in options)
    if 100 <= status < 200:
        _read_interim(lines, status, lengths, codings)
        if not stays_open and lines.data[lines.at :].strip(b"\r\n"):
            # To llhttp the connection is over; a server that says so and goes on contradicts itself.
            raise Bad
        return False
    if not 200 <= status <= 599 or version not in (b"1.0", b"1.1"):
        raise Bad
    if codings and [coding.lower() for coding in codings] != [b"chunked"]:
        raise Bad
    answer.status, answer.reason, answer.fields = status, start[4] or b"", fields
    answer.stays_open = stays_open
    if method == "HEAD" or status in (204, 304):
        return True
    answer.until_close = not lengths and not codings
    for part in _body(lines, lengths, codings):
        answer.body += part
    return True


def _read_interim(lines: _Lines, status: int, lengths: list[bytes], codings: list[bytes]) -> None:
    """What stands behind the head of an interim answer: no body, and no protocol that nobody asked for."""
    if status == 101:
        raise Bad
    if status in (100, 102, 103):
        # llhttp knows that these have none; behind the others it reads one, if a field declares it.
        return
    if codings:
        raise Doubtful
    for part in lines.take(int(lengths[0]) if lengths else 0):
        if part:
            raise Bad


def _body(lines: _Lines, lengths: list[bytes], codings: list[bytes]) -> Iterator[bytes]:
    """The parts of a body as they come."""
    if codings:
        while size := _size(lines.line()):
            yield from lines.take(size)
            yield from _line_end(lines)
        trailers = lines.fields()
        if _values(trailers, b"content-length") or b"" in _values(trailers, b"transfer-encoding"):
            raise Bad
    else:
        yield from lines.take(int(lengths[0]) if lengths else sys.maxsize)


def _line_end(lines: _Lines) -> Iterator[bytes]:
    """What ends the data of a chunk."""
    end = lines.data[lines.at : lines.at + 2]
    if not b"\r\n".startswith(end):
        raise Bad
    if end != b"\r\n":
        raise Short
    lines.at += 2
    yield b""


def _size(line: bytes) -> int:
    match = _SIZE_LINE.fullmatch(line)
    if match is None or int(match[1], 16) >= 1 << 64:
        raise Bad
    return int(match[1], 16)


def _values(fields: Fields, name: bytes) -> list[bytes]:
    return [value for key, value in fields if key.lower() == name]
