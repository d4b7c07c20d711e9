"""What a strict reader takes bytes for: requests by RFC 9112, and nothing that only a lenient one would see.

Facts
  - Lines end in CRLF. Of what section 2.2 and 3 let a reader do beside that, this one does two things that
    change no request: it ignores line ends before a request line, and takes several blanks in it for one.
  - A body is framed by one Content-Length, or by the one coding ``chunked``, in HTTP/1.1 only (section 6).

Not here: what may be relayed of it. A proxy may refuse more; it may not see more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rawclient import Headers

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") +([!-~]+) +HTTP/1\.([01])")
_FIELD = re.compile(
    rb"(" + _TOKEN + rb"):[ \t]*((?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?)[ \t]*"
)
# Extensions are ignored (section 7.1.1), so how one is built changes nothing; control bytes are in none.
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]+)(?:[ \t]*;[\t -~\x80-\xff]*)?")

_THIS_HOP = (b"connection", b"content-length", b"host", b"transfer-encoding")


class Unreadable(ValueError):
    """The bytes are no request, or not the whole of one."""


@dataclass(frozen=True)
class Reading:
    """One request."""

    method: bytes
    target: bytes
    fields: Headers
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name]

    @property
    def end_to_end(self) -> Headers:
        """The fields that are not for this hop alone, of those that the tests send."""
        named = {name.strip().lower() for value in self.values(b"connection") for name in value.split(b",")}
        return [pair for pair in self.fields if pair[0].lower() not in named | set(_THIS_HOP)]


def read_all(data: bytes) -> list[Reading]:
    """The requests that `data` begins with, up to the first byte that belongs to none."""
    readings = []
    while True:
        try:
            reading, data = read(data)
        except Unreadable:
            return readings
        readings.append(reading)


def read(data: bytes) -> tuple[Reading, bytes]:
    """The request that `data` begins with, and what follows it. Raises `Unreadable`."""
    lines, rest = _section(data.lstrip(b"\r\n"))
    line = _REQUEST_LINE.fullmatch(lines[0]) if lines else None
    if line is None:
        raise Unreadable
    fields = [_field(text) for text in lines[1:]]
    reading = Reading(line[1], line[2], fields, b"")
    old = line[3] == b"0"
    hosts, codings = reading.values(b"host"), reading.values(b"transfer-encoding")
    lengths = reading.values(b"content-length")
    if len(hosts) > 1 or not (hosts or old) or len(lengths) + len(codings) > 1 or (codings and old):
        raise Unreadable
    if codings:
        if codings[0].lower() != b"chunked":
            raise Unreadable
        body, rest = _chunked(rest)
    else:
        body, rest = _sized(rest, lengths[0] if lengths else b"0")
    return Reading(line[1], line[2], fields, body), rest


def _section(data: bytes) -> tuple[list[bytes], bytes]:
    """The lines up to an empty one, and what follows that."""
    lines = []
    while True:
        line, end, data = data.partition(b"\r\n")
        if not end:
            raise Unreadable
        if not line:
            return lines, data
        lines.append(line)


def _field(line: bytes) -> tuple[bytes, bytes]:
    field = _FIELD.fullmatch(line)
    if field is None:
        raise Unreadable
    return field[1], field[2]


def _sized(data: bytes, length: bytes) -> tuple[bytes, bytes]:
    if re.fullmatch(rb"[0-9]+", length) is None or len(data) < int(length):
        raise Unreadable
    return data[: int(length)], data[int(length) :]


def _chunked(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line, end, data = data.partition(b"\r\n")
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None or not end:
            raise Unreadable
        length = int(size[1], 16)
        if length == 0:
            break
        if data[length : length + 2] != b"\r\n":
            raise Unreadable
        body, data = body + data[:length], data[length + 2 :]
    trailers, rest = _section(data)
    for trailer in trailers:
        _field(trailer)
    return body, rest
