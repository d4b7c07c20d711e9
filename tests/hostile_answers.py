"""What an upstream may send instead of a good answer: the bytes, and what must become of them.

Facts
  - How an answer is framed, and what a faulty framing is: RFC 9112 sections 4 to 8. What a field value may
    hold: RFC 9110 section 5.5. Interim answers: RFC 9110 section 15.2.
  - Nothing has gone downstream while the head is not there. Until then the client gets an error of ours, or
    the next target's answer; after it a reset.

Rules
  1. Bytes are written out as they go over the wire. Only `TYPE` and `BODY` are filled in: the value of
     Content-Type, and a body of that type, which is 32 (hexadecimal 20) bytes long.
  2. A case says all that must become of it; nothing is worked out from its bytes.
  3. A field ``X-Not`` never comes down, whatever else does.

Not here: playing them (`test_upstream_faults`), connections that fail (there too), answers that end at any
byte (`test_upstream_cut`) or never (`test_hostile_upstream`).
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Literal

SHAPES = {
    "json": (b"application/json", b'{"id":"msg_10","type":"message"}'),
    "stream": (b"text/event-stream", b'event: a\ndata: {"type":"abcd"}\n\n'),
}


def spelt(data: bytes, shape: str) -> bytes:
    """`data` with TYPE and BODY filled in."""
    content_type, body = SHAPES[shape]
    return data.replace(b"TYPE", content_type).replace(b"BODY", body)


@dataclass(frozen=True)
class Hostile:
    """One hostile answer. What is not given is as in an answer that is refused at once."""

    sends: bytes
    later: bytes = b""
    """Sent when what `sends` brings has come down."""
    ends: Literal["", "FIN", "RST"] = ""
    """How upstream then ends the connection; else it stays."""
    event: str = "protocol"
    """What it means to the plan; with an empty one no other target is asked."""
    held: str = ""
    """The same where the plan has another target, and so waits for a stream's first event."""
    status: int = 502
    """What comes down where no other target is asked."""
    gets: bytes | None = None
    """The body that comes down with it; None for an error of ours."""
    cut: bool = False
    """Whether the answer is incomplete, and the connection reset."""
    reusable: bool = False
    """Whether the connection carries another request."""
    calls: int = 1
    """How often a target with one retry is asked."""


def relayed(sends: bytes, gets: bytes = b"BODY", **more: object) -> Hostile:
    """An answer that goes down whole as it is."""
    told = {"event": "", "status": 200, "gets": gets, "reusable": True}
    return Hostile(sends, **(told | more))  # type: ignore[arg-type]


def cut(sends: bytes, later: bytes = b"", gets: bytes = b"BODY", **more: object) -> Hostile:
    """An answer whose head goes down, and then it breaks."""
    told = {"event": "", "status": 200, "gets": gets, "cut": True}
    return Hostile(sends, later, **(told | more))  # type: ignore[arg-type]


TYPE = b"Content-Type: TYPE\r\n"
LENGTH = b"Content-Length: 32\r\n"
REST = b"\r\n" + TYPE + LENGTH + b"\r\nBODY"
OK = b"HTTP/1.1 200 OK\r\n"
SIZED = OK + TYPE + LENGTH + b"\r\n"
CHUNKED = OK + TYPE + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"20\r\nBODY\r\n"
END = b"0\r\n\r\n"
EMPTY = OK + b"Content-Length: 0\r\n\r\n"

STATUS_LINES: dict[str, Hostile] = {
    "HTTP/0.9 text": Hostile(b"hello\n", ends="FIN"),
    "HTTP/0.9 in a status line": Hostile(b"HTTP/0.9 200 OK" + REST),
    "HTTP/1.2": Hostile(b"HTTP/1.2 200 OK" + REST),
    "HTTP/2.0": Hostile(b"HTTP/2.0 200 OK" + REST),
    "HTTP/11": Hostile(b"HTTP/11 200 OK" + REST),
    "HTTP/1": Hostile(b"HTTP/1 200 OK" + REST),
    "HTTP/1.": Hostile(b"HTTP/1. 200 OK" + REST),
    "HTTP/01.1": Hostile(b"HTTP/01.1 200 OK" + REST),
    "HTTP/1,1": Hostile(b"HTTP/1,1 200 OK" + REST),
    "lower case": Hostile(b"http/1.1 200 OK" + REST),
    "another protocol's version": Hostile(b"ICY 200 OK" + REST),
    "RTSP": Hostile(b"RTSP/1.0 200 OK" + REST),
    "ICE, which is not even its own version": Hostile(b"ICE/1.1 200 OK" + REST),
    "nothing behind the version": Hostile(b"HTTP/1.1" + REST),
    "a blank behind the version": Hostile(b"HTTP/1.1 " + REST),
    "two blanks": Hostile(b"HTTP/1.1  200 OK" + REST),
    "a tab": Hostile(b"HTTP/1.1\t200 OK" + REST),
    "a blank before it": Hostile(b" HTTP/1.1 200 OK" + REST),
    "a byte order mark": Hostile(b"\xef\xbb\xbfHTTP/1.1 200 OK" + REST),
    "UTF-16": Hostile("HTTP/1.1 200 OK\r\n\r\n".encode("utf-16")),
    "status 0": Hostile(b"HTTP/1.1 0 Zero" + REST),
    "status 000": Hostile(b"HTTP/1.1 000 Zero" + REST),
    "status 20": Hostile(b"HTTP/1.1 20 OK" + REST),
    "status 99": Hostile(b"HTTP/1.1 99 Low" + REST),
    "status 099": Hostile(b"HTTP/1.1 099 Low" + REST),
    "status 600": Hostile(b"HTTP/1.1 600 High" + REST),
    "status 999": Hostile(b"HTTP/1.1 999 High" + REST),
    "status 1000": Hostile(b"HTTP/1.1 1000 High" + REST),
    "status 2000": Hostile(b"HTTP/1.1 2000 High" + REST),
    "status 999999": Hostile(b"HTTP/1.1 999999 High" + REST),
    "status 65736, which is 200 in 16 bits": Hostile(b"HTTP/1.1 65736 OK" + REST),
    "status 4294967496, which is 200 in 32 bits": Hostile(b"HTTP/1.1 4294967496 OK" + REST),
    "status -200": Hostile(b"HTTP/1.1 -200 OK" + REST),
    "status +200": Hostile(b"HTTP/1.1 +200 OK" + REST),
    "status 2OO, with letters": Hostile(b"HTTP/1.1 2OO OK" + REST),
    "status 0xc8": Hostile(b"HTTP/1.1 0xc8 OK" + REST),
    "status 200.5": Hostile(b"HTTP/1.1 200.5 OK" + REST),
    "status 200OK": Hostile(b"HTTP/1.1 200OK" + REST),
    "NUL in the version": Hostile(b"HTTP/1.1\x00 200 OK" + REST),
    "NUL in the status": Hostile(b"HTTP/1.1 2\x0000 OK" + REST),
    "CR in the reason": Hostile(b"HTTP/1.1 200 O\rK" + REST),
    "CR as a line end": Hostile(b"HTTP/1.1 200 OK\r" + REST.removeprefix(b"\r\n")),
    "LF as a line end": Hostile(b"HTTP/1.1 200 OK\n" + REST.removeprefix(b"\r\n")),
    "a reason of 64 KB": Hostile(b"HTTP/1.1 200 " + b"a" * 65536 + REST),
    "a reason without end": Hostile(b"HTTP/1.1 200 " + b"a" * 1_000_000),
    "a request": Hostile(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "a connection preface of HTTP/2": Hostile(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a settings frame of HTTP/2": Hostile(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"),
    "a TLS alert": Hostile(b"\x15\x03\x01\x00\x02\x02\x46"),
    "SSH": Hostile(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "SMTP": Hostile(b"220 mail.test ESMTP\r\n"),
    "Redis": Hostile(b"-ERR unknown command 'POST'\r\n"),
    "only line ends": Hostile(b"\r\n" * 10, ends="FIN"),
    "NULs": Hostile(b"\x00" * 100),
    "a gzip file": Hostile(gzip.compress(b"BODY", mtime=0)),
    "no reason": relayed(b"HTTP/1.1 200 " + REST),
    "no reason and no blank": relayed(b"HTTP/1.1 200" + REST),
    "a reason of 8-bit bytes": relayed(b"HTTP/1.1 200 \xff\x80\xe4" + REST),
    "a reason with NUL": relayed(b"HTTP/1.1 200 O\x00K" + REST),
    "a line end before it": relayed(b"\r\nHTTP/1.1 200 OK" + REST),
    "HTTP/1.0": relayed(b"HTTP/1.0 200 OK" + REST, reusable=False),
    "HTTP/1.0 that stays": relayed(b"HTTP/1.0 200 OK\r\nConnection: keep-alive" + REST),
}

FIELDS: dict[str, Hostile] = {
    "folded": Hostile(OK + b"X-A: 1\r\n folded" + REST),
    "folded with a tab": Hostile(OK + b"X-A: 1\r\n\tfolded" + REST),
    "folded at once": Hostile(OK + b" X-A: 1" + REST),
    "a folded length": Hostile(OK + TYPE + b"Content-Length:\r\n 32\r\n\r\nBODY"),
    "a bare LF": Hostile(OK + b"X-A: 1\nX-B: 2" + REST),
    "a bare LF at the end": Hostile(OK + b"Content-Length: 32\n\nBODY"),
    "a bare CR": Hostile(OK + b"X-A: 1\rX-B: 2" + REST),
    "a bare CR before the end": Hostile(OK + b"X-A: 1\r\r\n" + TYPE + LENGTH + b"\r\nBODY"),
    "CR LF CR": Hostile(OK + TYPE + LENGTH + b"\rBODY"),
    "NUL in a value": Hostile(OK + b"X-A: a\x00b" + REST),
    "NUL in a name": Hostile(OK + b"X\x00A: ab" + REST),
    "no colon": Hostile(OK + b"nonsense" + REST),
    "no colon at the end": Hostile(OK + TYPE + LENGTH + b"nonsense\r\n\r\nBODY"),
    "no name": Hostile(OK + b": 1" + REST),
    "a blank before the colon": Hostile(OK + b"X-A : 1" + REST),
    "a tab before the colon": Hostile(OK + b"X-A\t: 1" + REST),
    "a blank in the name": Hostile(OK + b"X A: 1" + REST),
    "an 8-bit name": Hostile(OK + b"X-\xc3\xa4: 1" + REST),
    "a name with a slash": Hostile(OK + b"X/A: 1" + REST),
    "a name with brackets": Hostile(OK + b"X(A): 1" + REST),
    "a field of 1 MB": Hostile(OK + b"X-A: " + b"b" * 1_000_000 + REST),
    "a name of 1 MB": Hostile(OK + b"X" * 1_000_000 + b": b" + REST),
    "fields without end": Hostile(OK + b"X-A: b\r\n" * 100_000),
    "1,000 fields of 100 bytes": Hostile(OK + (b"X-A: " + b"b" * 93 + b"\r\n") * 1000 + REST[2:]),
    "1,000 short fields": relayed(OK + b"X-A: b\r\n" * 1000 + REST[2:]),
    "8-bit values": relayed(OK + b"X-A: \xff\x80\xe4" + REST),
    "an empty value": relayed(OK + b"X-A:" + REST),
    "no blank behind the colon": relayed(OK + b"X-A:b" + REST),
    "blanks around a value": relayed(OK + b"X-A: \t b \t " + REST),
    "no field": relayed(OK + b"\r\nBODY", ends="FIN", reusable=False),
    "cut in the status line": Hostile(b"HTTP/1.1 20", ends="FIN"),
    "cut behind the status line": Hostile(OK, ends="FIN"),
    "cut in a name": Hostile(OK + b"Content-Le", ends="FIN"),
    "cut in a value": Hostile(OK + b"Content-Length: 3", ends="RST"),
    "cut behind a field": Hostile(OK + LENGTH, ends="FIN"),
    "cut in the line end of the head": Hostile(OK + LENGTH + b"\r", ends="RST"),
}

HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\nX-Not: a\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"

INTERIM: dict[str, Hostile] = {
    "a 100 nobody waits for": relayed(CONTINUE + SIZED + b"BODY"),
    "a 103 with fields": relayed(HINTS + SIZED + b"BODY"),
    "a 102": relayed(b"HTTP/1.1 102 Processing\r\n\r\n" + SIZED + b"BODY"),
    "a 199": relayed(b"HTTP/1.1 199 Who\r\n\r\n" + SIZED + b"BODY"),
    "64 of them": relayed(HINTS * 64 + SIZED + b"BODY"),
    "65 of them": Hostile(HINTS * 65 + SIZED + b"BODY"),
    "10,000 of them": Hostile(CONTINUE * 10_000),
    "64 of 10 KB": relayed((HINTS[:-2] + b"X-A: " + b"b" * 10_000 + b"\r\n\r\n") * 64 + SIZED + b"BODY"),
    "one of 1 MB": Hostile(HINTS[:-2] + b"X-A: " + b"b" * 1_000_000 + b"\r\n\r\n" + SIZED + b"BODY"),
    "one with a length and a body": Hostile(
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 32\r\n\r\nBODY" + SIZED + b"BODY"
    ),
    "a 199 with a length and a body": Hostile(
        b"HTTP/1.1 199 Who\r\nContent-Length: 32\r\n\r\nBODY" + SIZED + b"BODY"
    ),
    "one with chunks": Hostile(
        b"HTTP/1.1 100 Continue\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNK + END + SIZED + b"BODY"
    ),
    "one, and the end": Hostile(CONTINUE, ends="FIN"),
    "one, and a reset": Hostile(HINTS, ends="RST"),
    "one, and half a head": Hostile(HINTS + OK, ends="FIN"),
    "one, and garbage": Hostile(CONTINUE + b"hello\r\n"),
    "a 101 nobody asked for": Hostile(SWITCH),
    "a 101 with bytes behind it": Hostile(SWITCH + b"\x00\x00\x06\x04\x00\x00\x00\x00\x00"),
    "a 101 with an answer behind it": Hostile(SWITCH + SIZED + b"BODY"),
    "a 101 without Upgrade": Hostile(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + SIZED + b"BODY"),
    "a 101 with a length": Hostile(b"HTTP/1.1 101 S\r\nContent-Length: 32\r\n\r\nBODY" + SIZED + b"BODY"),
    "Upgrade in a 200": relayed(OK + b"Connection: Upgrade\r\nUpgrade: h2c" + REST),
    "a 426 with Upgrade": relayed(
        b"HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: h2c" + REST, status=426
    ),
}


def sized(length: bytes) -> bytes:
    """An answer with this Content-Length."""
    return OK + TYPE + b"Content-Length:" + length + b"\r\n\r\nBODY"


LENGTHS: dict[str, Hostile] = {
    "two that differ": Hostile(sized(b" 32\r\nContent-Length: 33")),
    "two that differ, the true one last": Hostile(sized(b" 31\r\nContent-Length: 32")),
    "two that are equal": Hostile(sized(b" 32\r\nContent-Length: 32")),
    "a list of equal ones": Hostile(sized(b" 32, 32")),
    "a list that differs": Hostile(sized(b" 32, 33")),
    "signed": Hostile(sized(b" +32")),
    "negative": Hostile(sized(b" -32")),
    "hexadecimal": Hostile(sized(b" 0x20")),
    "hexadecimal digits": Hostile(sized(b" 2F")),
    "a blank in it": Hostile(sized(b" 3 2")),
    "an underscore in it": Hostile(sized(b" 3_2")),
    "letters behind it": Hostile(sized(b" 32abc")),
    "a fraction": Hostile(sized(b" 32.0")),
    "an exponent": Hostile(sized(b" 32e0")),
    "a parameter": Hostile(sized(b" 32;a=b")),
    "quoted": Hostile(sized(b' "32"')),
    "empty": Hostile(sized(b"")),
    "blank": Hostile(sized(b"  ")),
    "full-width digits": Hostile(sized(b" " + "\uff13\uff12".encode())),
    "2^64": Hostile(sized(b" 18446744073709551616")),
    "2^64 + 32, which is 32 in 64 bits": Hostile(sized(b" 18446744073709551648")),
    "2^32 + 32, which is 32 in 32 bits": cut(sized(b" 4294967328"), b"x", b"BODYx", ends="FIN"),
    "2^63 + 32": cut(sized(b" 9223372036854775840"), b"x", b"BODYx", ends="RST"),
    "200 digits": Hostile(sized(b" " + b"9" * 200)),
    "leading zeros": relayed(sized(b" 00032")),
    "no blank before it": relayed(sized(b"32")),
    "blanks around it": relayed(sized(b" \t32 \t")),
    "length, then chunked": Hostile(OK + TYPE + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK + END),
    "chunked, then length": Hostile(
        OK + TYPE + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n" + CHUNK + END
    ),
    "one too long": cut(sized(b" 33"), b"", ends="FIN"),
    "one too short": relayed(sized(b" 32") + b"x", reusable=False),
    "a body that never comes": cut(SIZED, b"", b"", ends="FIN", held="stream_error"),
    "a body that is reset": cut(SIZED, b"", b"", ends="RST", held="stream_error"),
}


def coded(coding: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    """A chunked answer with this Transfer-Encoding."""
    return version + b" 200 OK\r\n" + TYPE + b"Transfer-Encoding:" + coding + b"\r\n\r\n" + CHUNK + END


CODINGS: dict[str, Hostile] = {
    "gzip, chunked": Hostile(coded(b" gzip, chunked")),
    "chunked, gzip": Hostile(coded(b" chunked, gzip")),
    "gzip alone": Hostile(coded(b" gzip")),
    "gzip and chunked on two lines": Hostile(coded(b" gzip\r\nTransfer-Encoding: chunked")),
    "chunked twice": Hostile(coded(b" chunked, chunked")),
    "chunked on two lines": Hostile(coded(b" chunked\r\nTransfer-Encoding: chunked")),
    "identity": Hostile(coded(b" identity")),
    "identity, chunked": Hostile(coded(b" identity, chunked")),
    "chunked, identity": Hostile(coded(b" chunked, identity")),
    "xchunked": Hostile(coded(b" xchunked")),
    "chunkedx": Hostile(coded(b" chunkedx")),
    "quoted": Hostile(coded(b' "chunked"')),
    "a parameter": Hostile(coded(b" chunked;a=b")),
    "a comma before it": Hostile(coded(b" , chunked")),
    "a comma behind it": Hostile(coded(b" chunked,")),
    "empty": Hostile(coded(b"")),
    "a vertical tab before it": Hostile(coded(b" \x0bchunked")),
    "a no-break space before it": Hostile(coded(b" \xc2\xa0chunked")),
    "NUL behind it": Hostile(coded(b" chunked\x00")),
    "a blank before the colon": Hostile(coded(b" chunked").replace(b"Encoding:", b"Encoding :")),
    "in HTTP/1.0": relayed(coded(b" chunked", b"HTTP/1.0"), reusable=False),
    "in HTTP/1.0 that stays": relayed(
        coded(b" chunked\r\nConnection: keep-alive", b"HTTP/1.0"), reusable=False
    ),
    "upper case": relayed(coded(b" CHUNKED")),
    "a tab before it": relayed(coded(b"\tchunked")),
    "a blank behind it": relayed(coded(b" chunked ")),
    "a tab behind it": Hostile(coded(b" chunked\t")),
    "a tab and a blank behind it": Hostile(coded(b" chunked\t ")),
    "a length in a field of another name": relayed(coded(b" chunked\r\nContent_Length: 3")),
}

BAD_CHUNKS: dict[str, tuple[bytes, bytes]] = {
    "no hexadecimal number": (b"zz\r\n", b""),
    "a negative size": (b"-20\r\nBODY\r\n", b""),
    "a signed size": (b"+20\r\nBODY\r\n", b""),
    "a size with 0x": (b"0x20\r\nBODY\r\n", b""),
    "a size with an underscore": (b"2_0\r\nBODY\r\n", b""),
    "a blank before the size": (b" 20\r\nBODY\r\n", b""),
    "a blank behind the size": (b"20 \r\nBODY\r\n", b""),
    "a tab behind the size": (b"20\t\r\nBODY\r\n", b""),
    "no size": (b"\r\nBODY\r\n", b""),
    "no size, only an extension": (b";a=b\r\nBODY\r\n", b""),
    "a size of 2^64": (b"10000000000000000\r\nBODY\r\n", b""),
    "a size of 2^64 + 32": (b"10000000000000020\r\nBODY\r\n", b""),
    "a size of 200 digits": (b"f" * 200 + b"\r\nBODY\r\n", b""),
    "LF behind the size": (b"20\nBODY\r\n", b""),
    "CR behind the size": (b"20\rBODY\r\n", b""),
    "NUL behind the size": (b"20\x00\r\nBODY\r\n", b""),
    "LF in an extension": (b"20;a\nb\r\nBODY\r\n", b""),
    "CR in an extension": (b"20;a\rb\r\nBODY\r\n", b""),
    "NUL in an extension": (b"20;a\x00\r\nBODY\r\n", b""),
    "more data than its size": (b"20\r\nBODYx\r\n", b"BODY"),
    "less data than its size": (b"21\r\nBODY\r\n0\r\n\r\n", b"BODY\r"),
    "no line end behind the data": (b"20\r\nBODY0\r\n\r\n", b"BODY"),
    "LF behind the data": (b"20\r\nBODY\n0\r\n\r\n", b"BODY"),
    "CR behind the data": (b"20\r\nBODY\r0\r\n\r\n", b"BODY"),
    "another answer": (b"HTTP/1.1 500 Oh\r\n\r\n", b""),
    "plain text": (b"upstream connect error or disconnect/reset before headers", b""),
    "a field without a colon behind the last chunk": (b"0\r\nnonsense\r\n\r\n", b""),
    "a folded field behind the last chunk": (b"0\r\nX-A: 1\r\n 2\r\n\r\n", b""),
    "LF behind a trailer field": (b"0\r\nX-A: 1\n\r\n", b""),
    "NUL in a trailer field": (b"0\r\nX-A: \x00\r\n\r\n", b""),
    "LF behind the last chunk": (b"0\n\n", b""),
    "a length behind the last chunk": (b"0\r\nContent-Length: 3\r\n\r\n", b""),
}
"""What stands where a chunk should: the bytes, and what of them is body before the fault."""

CHUNKS: dict[str, Hostile] = {
    **{f"{name}, at first": Hostile(CHUNKED + bad) for name, (bad, _) in BAD_CHUNKS.items()},
    **{
        f"{name}, later": cut(CHUNKED + CHUNK, bad, b"BODY" + data)
        for name, (bad, data) in BAD_CHUNKS.items()
    },
    "a size of 2^64 - 1": cut(CHUNKED + CHUNK, b"ffffffffffffffff\r\nx", b"BODYx", ends="FIN"),
    "an end without its last line end": cut(CHUNKED + CHUNK, b"0\r\n", ends="FIN"),
    "only a size": cut(CHUNKED + CHUNK, b"20", ends="RST"),
    "leading zeros": relayed(CHUNKED + b"0000000020\r\nBODY\r\n" + END),
    "an extension": relayed(CHUNKED + b'20;a="b;c";d\r\nBODY\r\n' + END),
    "60 KB of extensions": relayed(CHUNKED + b"20" + b";a=b" * 15_000 + b"\r\nBODY\r\n" + END),
    "an extension of 1 MB": cut(
        CHUNKED + b"20;a=" + b"b" * 1_000_000 + b"\r\nBODY\r\n" + END, b"", b"", held="stream_error"
    ),
    "an extension of 1 MB, later": cut(CHUNKED + CHUNK, b"20;a=" + b"b" * 1_000_000),
    "32 chunks of a byte each, zeros before": relayed(
        CHUNKED + b"".join(b"%032x\r\n%c\r\n" % (1, 97 + i % 26) for i in range(32)) + END,
        bytes(97 + i % 26 for i in range(32)),
        held="stream_error",
    ),
    "trailers": relayed(CHUNKED + CHUNK + b"0\r\nX-Not: b\r\nServer: b\r\n\r\n"),
    "a coding as a trailer": relayed(CHUNKED + CHUNK + b"0\r\nTransfer-Encoding: gzip\r\n\r\n"),
    "an end as a trailer": relayed(CHUNKED + CHUNK + b"0\r\nConnection: close\r\n\r\n"),
    "60 KB of trailers": relayed(CHUNKED + CHUNK + b"0\r\n" + b"X-A: b\r\n" * 7_500 + b"\r\n"),
    "trailers without end": cut(CHUNKED + CHUNK, b"0\r\n" + b"X-A: b\r\n" * 100_000),
}

BEHIND: dict[str, Hostile] = {
    "a byte": relayed(SIZED + b"BODYx", reusable=False),
    "another answer": relayed(SIZED + b"BODY" + EMPTY, reusable=False),
    "another answer, later": relayed(SIZED + b"BODY", later=EMPTY, reusable=False),
    "half another answer, later": relayed(SIZED + b"BODY", later=OK, reusable=False),
    "a byte, later": relayed(SIZED + b"BODY", later=b"x", reusable=False),
    "line ends, later": relayed(SIZED + b"BODY", later=b"\r\n\r\n", reusable=False),
    "an interim answer": relayed(SIZED + b"BODY" + CONTINUE, reusable=False),
    "chunks": relayed(SIZED + b"BODY" + CHUNK + END, reusable=False),
    "NUL": relayed(SIZED + b"BODY\x00", reusable=False),
    "a line end and a byte": relayed(SIZED + b"BODY\r\nx", reusable=False),
    "a byte behind chunks": relayed(CHUNKED + CHUNK + END + b"x", reusable=False),
    "another answer behind chunks": relayed(CHUNKED + CHUNK + END + EMPTY, reusable=False),
    "another end behind chunks": relayed(CHUNKED + CHUNK + END + END, reusable=False),
    "another answer behind none": relayed(EMPTY + EMPTY, b"", reusable=False),
    "a FIN": relayed(SIZED + b"BODY", ends="FIN", reusable=False),
    "a FIN behind chunks": relayed(CHUNKED + CHUNK + END, ends="FIN", reusable=False),
    "a RST, later": relayed(SIZED + b"BODY", later=b"\r", ends="RST", reusable=False),
    "Connection: close, and it stays": relayed(OK + b"Connection: close" + REST, reusable=False),
}

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n"
NOT_MODIFIED = b"HTTP/1.1 304 Not Modified\r\n"

BODILESS: dict[str, Hostile] = {
    "204": relayed(NO_CONTENT + b"\r\n", b"", status=204),
    "204 with a length of 0": relayed(NO_CONTENT + b"Content-Length: 0\r\n\r\n", b"", status=204),
    "204 with a length": relayed(NO_CONTENT + LENGTH + b"\r\n", b"", status=204),
    "204 with a body": relayed(NO_CONTENT + LENGTH + b"\r\nBODY", b"", status=204, reusable=False),
    "204 with an undeclared body": relayed(NO_CONTENT + b"\r\nBODY", b"", status=204, reusable=False),
    "204 with a body that comes later": relayed(
        NO_CONTENT + LENGTH + b"\r\n", b"", later=b"BODY", status=204, reusable=False
    ),
    "204 with chunks": relayed(
        NO_CONTENT + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK + END, b"", status=204, reusable=False
    ),
    "204 with an answer behind it": relayed(
        NO_CONTENT + b"\r\n" + SIZED + b"BODY", b"", status=204, reusable=False
    ),
    "205": relayed(b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", b"", status=205),
    "304": relayed(NOT_MODIFIED + b'ETag: "1"\r\n\r\n', b"", status=304),
    "304 with a length": relayed(NOT_MODIFIED + LENGTH + b"\r\n", b"", status=304),
    "304 with a body": relayed(NOT_MODIFIED + LENGTH + b"\r\nBODY", b"", status=304, reusable=False),
    "304 with chunks": relayed(
        NOT_MODIFIED + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK + END, b"", status=304, reusable=False
    ),
    "304 with undeclared chunks": relayed(
        NOT_MODIFIED + b"\r\n" + CHUNK + END, b"", status=304, reusable=False
    ),
    "304 with an answer behind it": relayed(
        NOT_MODIFIED + b"\r\n" + SIZED + b"BODY", b"", status=304, reusable=False
    ),
    "an empty 200": relayed(EMPTY, b""),
    "an empty 200 of its type": relayed(OK + TYPE + b"Content-Length: 0\r\n\r\n", b"", held="stream_error"),
    "an empty 200 in chunks": relayed(CHUNKED + END, b"", held="stream_error"),
    "an empty 200 until close": relayed(OK + b"\r\n", b"", ends="FIN", reusable=False),
}

UNTIL_CLOSE: dict[str, Hostile] = {
    "FIN": relayed(OK + TYPE + b"\r\nBODY", ends="FIN", reusable=False),
    "FIN, in HTTP/1.0": relayed(b"HTTP/1.0 200 OK\r\n" + TYPE + b"\r\nBODY", ends="FIN", reusable=False),
    "FIN, later": relayed(OK + TYPE + b"\r\nBODY", b"BODYx", later=b"x", ends="FIN", reusable=False),
    "RST": cut(OK + TYPE + b"\r\nBODY", ends="RST"),
    "RST, later": cut(OK + TYPE + b"\r\nBODY", b"x", b"BODYx", ends="RST"),
    "what looks like chunks": relayed(
        OK + TYPE + b"\r\n" + CHUNK + END, b"20\r\nBODY\r\n0\r\n\r\n", ends="FIN", reusable=False
    ),
    "what looks like an answer": relayed(
        OK + TYPE + b"\r\nBODY" + EMPTY, b"BODY" + EMPTY, ends="FIN", reusable=False
    ),
}

PAGE = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


def page(status: bytes, fields: bytes = b"") -> bytes:
    """An error page of a middlebox."""
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: text/html\r\n" + fields
    return head + b"Content-Length: %d\r\n\r\n" % len(PAGE) + PAGE


def refused(status: int, fields: bytes = b"", **more: object) -> Hostile:
    """A refusal, as a page that comes down where no other target helps; it is an event by its status."""
    told = {"event": str(status), "status": status, "gets": PAGE, "calls": 2}
    return relayed(page(b"%d No" % status, fields), **(told | more))  # type: ignore[arg-type]


REFUSALS: dict[str, Hostile] = {
    "500": refused(500),
    "502": refused(502),
    "503": refused(503),
    "504": refused(504),
    "408": refused(408),
    "529": refused(529),
    "404": refused(404, calls=1),
    "400": refused(400, calls=1, event=""),
    "401": refused(401, calls=1, event=""),
    "402": refused(402, calls=1, event=""),
    "403": refused(403, calls=1, event=""),
    "413": refused(413, calls=1, event=""),
    "422": refused(422, calls=1, event=""),
    "501": refused(501, calls=1, event=""),
    "520": refused(520, calls=1, event=""),
    "599": refused(599, calls=1, event=""),
    "a redirect": refused(302, b"Location: http://127.0.0.1:9/\r\n", calls=1, event=""),
    "a page with 200": refused(200, calls=1, event=""),
    "500, cut": cut(
        b"HTTP/1.1 500 No\r\n" + TYPE + b"Content-Length: 33\r\n\r\nBODY",
        ends="FIN",
        event="500",
        calls=2,
        status=500,
    ),
    "500, garbled at once": Hostile(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "503 until close": relayed(
        b"HTTP/1.1 503 No\r\n" + TYPE + b"\r\nBODY",
        status=503,
        event="503",
        ends="FIN",
        calls=2,
        reusable=False,
    ),
    "429": refused(429),
    "429, at once": refused(429, b"Retry-After: 0\r\n"),
    "429, in a minute": refused(429, b"Retry-After: 60\r\n", calls=1),
    "429, in 60,000 ms": refused(429, b"Retry-After: 0\r\nRetry-After-Ms: 60000\r\n", calls=1),
    "429, in 1 ms": refused(429, b"Retry-After: 60\r\nRetry-After-Ms: 1\r\n"),
    "429, in 30 years": refused(429, b"Retry-After: 1000000000\r\n", calls=1),
    "429, in 10^400 seconds": refused(429, b"Retry-After: 1" + b"0" * 400 + b"\r\n", calls=1),
    "429, never": refused(429, b"Retry-After: inf\r\n", calls=1),
    "429, a date in the past": refused(429, b"Retry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\n"),
    "429, a date in 2099": refused(429, b"Retry-After: Wed, 21 Oct 2099 07:28:00 GMT\r\n", calls=1),
    "429, a date before dates": refused(429, b"Retry-After: Mon, 01 Jan 0000 00:00:00 GMT\r\n"),
    "429, negative": refused(429, b"Retry-After: -60\r\n"),
    "429, no number": refused(429, b"Retry-After: nan\r\n"),
    "429, words": refused(429, b"Retry-After: soon\r\n"),
    "429, empty": refused(429, b"Retry-After:\r\n"),
    "429, the wrong digits": refused(429, "Retry-After: \u0663\u0660\r\n".encode()),
    "429, a year no clock can hold": refused(
        429, b"Retry-After: Mon, 01 Jan 99999999999999999999 00:00:00 GMT\r\n"
    ),
    "429, a day no clock can hold": refused(
        429, b"Retry-After: Sat, 99999999999999999999 Jan 2000 00:00:00 GMT\r\n"
    ),
    "429, an hour no clock can hold": refused(
        429, b"Retry-After: Sat, 01 Jan 2000 99999999999:00:00 GMT\r\n"
    ),
    "429, a zone no clock can hold": refused(
        429, b"Retry-After: Sat, 01 Jan 2000 00:00:00 +9999999999999999\r\n"
    ),
    "429, half a date": refused(429, b"Retry-After: Mon\r\n"),
    "429, commas": refused(429, b"Retry-After: , , \r\n"),
}

OVERLOADED = b'event: error\ndata: {"type":"error"}\n\n'
HALF = b"data: a"

STREAMS: dict[str, Hostile] = {
    "an error at first": relayed(
        OK + TYPE + b"Content-Length: %d\r\n\r\n" % len(OVERLOADED) + OVERLOADED,
        OVERLOADED,
        held="stream_error",
    ),
    "an error at first, and a cut": cut(
        OK + TYPE + b"Content-Length: 100\r\n\r\n" + OVERLOADED,
        b"",
        OVERLOADED,
        ends="FIN",
        held="stream_error",
    ),
    "an error behind an event": relayed(
        CHUNKED + CHUNK + b"25\r\n" + OVERLOADED + b"\r\n" + END, b"BODY" + OVERLOADED
    ),
    "half an event until close": relayed(
        OK + TYPE + b"\r\n" + HALF, HALF, ends="FIN", reusable=False, held="stream_error"
    ),
    "half an event": cut(
        OK + TYPE + b"Content-Length: 100\r\n\r\n" + HALF, b"", HALF, ends="RST", held="stream_error"
    ),
    "garbage behind half an event": Hostile(
        OK + TYPE + b"Transfer-Encoding: chunked\r\n\r\n7\r\n" + HALF + b"\r\nzz\r\n"
    ),
}

HOSTILE: dict[str, Hostile] = {
    f"{title}: {name}": case
    for title, table in {
        "status line": STATUS_LINES,
        "fields": FIELDS,
        "interim": INTERIM,
        "length": LENGTHS,
        "coding": CODINGS,
        "chunks": CHUNKS,
        "behind it": BEHIND,
        "no body": BODILESS,
        "until close": UNTIL_CLOSE,
        "refusal": REFUSALS,
        "stream": STREAMS,
    }.items()
    for name, case in table.items()
}

TO_HEAD: dict[str, Hostile] = {
    "a length": relayed(SIZED, b""),
    "chunked": relayed(CHUNKED, b"", reusable=False),
    "nothing": relayed(OK + b"\r\n", b"", reusable=False),
    "two lengths": Hostile(sized(b" 32\r\nContent-Length: 33")),
    "length and chunked": Hostile(OK + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n"),
    "a body": relayed(SIZED + b"BODY", b"", reusable=False),
    "a body in chunks": relayed(CHUNKED + CHUNK + END, b"", reusable=False),
    "a body until close": relayed(OK + b"\r\nBODY", b"", ends="FIN", reusable=False),
    "a body that comes later": relayed(SIZED, b"", later=b"BODY", reusable=False),
    "another answer behind it": relayed(SIZED + EMPTY, b"", reusable=False),
}
"""The same for a HEAD request, whose answer has no body, whatever it says (RFC 9110 section 9.3.2)."""
