"""HTTP/1.1 framing of an upstream answer: where its head and its body end, and whether that is so.

Facts
  - llhttp, through `httptools`, is strict: repeated or odd ``Content-Length``, length beside chunked,
    obs-fold, bare LF, NUL and bad chunk sizes are errors. It does not know ``HEAD``, cannot tell the
    end of a body that lasts until close, and takes ``gzip, chunked`` and HTTP/2.0; these are judged
    here (RFC 9112 section 6.3).
  - After a complete message llhttp goes on parsing, so bytes behind an answer show up as another one.
  - It calls trailers header fields, and hands a split reason phrase out in pieces.

Rules
  1. The first fault stays; nothing that comes after it is believed.
  2. What is no body byte is counted, and there is a limit: heads, chunk extensions, trailers.
  3. One parser reads all answers of a connection, as llhttp is made to.

Not here: waiting, connections, errors of the path (`answer`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import httptools

MAX_OVERHEAD_BYTES = 65536
"""Bytes without a body byte between them: a head, or chunk extensions, or trailers."""

MAX_INTERIM = 64
"""Interim (1xx) responses before the final one."""

_NOT_HTTP = "The provider sent something that is not HTTP/1.1."
_ENDLESS = "The provider sent a response head or trailers without end."
_BAD_CODING = "The provider sent a transfer coding that is not supported."

_NO_BODY = (204, 304)

_NAME = operator.itemgetter(0)


class Framing:
    """The answers on one connection, as they are parsed; the methods ``on_…`` are the parser's callbacks."""

    def __init__(self, take: Callable[[bytes], None], method: str = "") -> None:
        self.take = take
        """Gets the bytes of the body that one `parse` brings, together."""
        self._body: list[bytes] = []
        self._parser: httptools.HttpResponseParser | None = None
        self.expect(method)

    def expect(self, method: str) -> None:
        """Get ready for the next answer. Only for a connection whose last one was `clean`."""
        self.status = 0
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.has_head = False
        self.ended = False
        """Whether the whole body has come."""
        self.until_close = False
        """Whether only the end of the connection ends the body."""
        self.keep_alive = False
        self.clean = True
        """False when something stood behind the answer, or it was not HTTP."""
        self.fault = ""
        """What is wrong with it, for a person; empty while nothing is."""
        self.seen = False
        """Whether any byte came."""
        self._begun = False
        self._method = method
        self._overhead = 0
        self._read_bytes = 0
        self._interim = 0

    def forget(self) -> None:
        """No answer comes any more. The parser and its callbacks hold each other."""
        self._parser = None

    def parse(self, data: bytes | memoryview) -> None:
        """Parse what came; never raises."""
        if self.fault:
            return
        self.seen = True
        if not self._begun and data[:5] == b"HTTP/":
            self._begun = True
        elif not self._begun:
            start = bytes(data[:5])
            if start[:1] in (b"\r", b"\n"):
                start = bytes(data).lstrip(b"\r\n")[:5]
            self._begun = bool(start)
            if not b"HTTP/".startswith(start):
                # llhttp takes RTSP/ and ICE/ as well.
                self._fail(_NOT_HTTP)
                return
        self._read_bytes = len(data)
        self._overhead += self._read_bytes
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.clean = False
            if not self.ended:
                self._fail(_NOT_HTTP)
        if self._overhead > MAX_OVERHEAD_BYTES and not self.ended:
            self._fail(_ENDLESS)
        if self._body:
            # Of one read at once: it may hold ten thousand chunks.
            body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
            self._body.clear()
            self.take(body)

    def on_message_begin(self) -> None:
        if self.ended:
            self.clean = False

    def on_status(self, reason: bytes) -> None:
        if not self.has_head:
            self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        # A trailer is no header field: what it would say was decided without it (RFC 9110 section 6.5.1).
        if not self.has_head:
            self.headers.append((name, value if value[-1:] not in b" \t" else self._stripped(name, value)))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is None or self.ended or self.fault:
            return
        status = parser.get_status_code()
        if (
            max(self._overhead, self._read_bytes) > MAX_OVERHEAD_BYTES
            and self._head_bytes() > MAX_OVERHEAD_BYTES
        ):
            # One read may bring a large head and bytes of its body, which set `_overhead` back.
            self._fail(_ENDLESS)
            return
        if 100 <= status < 200:
            return
        if not 200 <= status <= 599 or parser.get_http_version() not in ("1.1", "1.0"):
            self._fail(_NOT_HTTP)
            return
        names = set(map(bytes.lower, map(_NAME, self.headers)))
        chunked = b"transfer-encoding" in names
        if chunked:
            codings = [value for name, value in self.headers if name.lower() == b"transfer-encoding"]
            if len(codings) > 1 or codings[0].strip().lower() != b"chunked":
                self._fail(_BAD_CODING)
                return
        self.status = status
        self.has_head = True
        # llhttp forgets it when the message is complete. HTTP/1.0 knows no chunks: whoever sends them there
        # is not to be trusted with another request (RFC 9112 section 6.1).
        # After a HEAD it reads on, and of a chunk that should not be there it tells only the data.
        doubtful = chunked and (parser.get_http_version() == "1.0" or self._method == "HEAD")
        self.keep_alive = parser.should_keep_alive() and not doubtful
        if self._method == "HEAD":
            # llhttp waits for a body that does not come.
            self._parser = None
            self.ended = True
        elif status not in _NO_BODY:
            self.until_close = not chunked and b"content-length" not in names

    def on_body(self, data: bytes) -> None:
        if self.ended:
            self.clean = False
        elif not self.has_head:
            # RFC 9110 section 15.2: an interim response has none. Whose would these bytes be?
            self._fail("The provider sent an interim response with a body.")
        elif not self.fault:
            self._overhead = 0
            self._body.append(data)

    def on_message_complete(self) -> None:
        if self.has_head:
            self.ended = True
            if self._parser is not None and not self._parser.should_keep_alive():
                # A trailer said so, to llhttp; its next answer needs a parser that did not hear it.
                self._parser = None
            return
        self._interim += 1
        if self._interim > MAX_INTERIM or (self._parser and self._parser.get_status_code() == 101):
            self._fail("The provider answered with an interim response that nobody asked for.")
        self.headers.clear()
        self.reason = b""
        self._overhead = 0

    def _stripped(self, name: bytes, value: bytes) -> bytes:
        """`value` without the blanks behind it."""
        stripped = value.rstrip(b" \t")
        if b"\t" in value[len(stripped) :] and name.lower() == b"transfer-encoding":
            # llhttp knows no coding with a tab behind it: it would take the chunks for the body.
            self._fail(_BAD_CODING)
        return stripped

    def _head_bytes(self) -> int:
        return len(self.reason) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _fail(self, fault: str) -> None:
        self.clean = False
        self.fault = self.fault or fault
