"""Chunked bodies: sizes, extensions, ends and trailers in forms that two readers could take differently.

Facts
  - chunk = 1*HEXDIG [ chunk-ext ] CRLF data CRLF; the last one has the size 0; trailers follow it
    (RFC 9112 section 7.1). Extensions are ignored, and ought to be bounded (7.1.1).
  - A trailer is no header field, and is dropped unless its meaning is known (RFC 9110 section 6.5.1).
  - CVE-2024-52304 (LF in an extension) and CVE-2025-53643 (trailers that were not read) are of this kind.
"""

from __future__ import annotations

from hostile_case import (
    BODY,
    CHUNKED,
    CHUNKED_BODY,
    MODEL,
    UPLOAD,
    Case,
    Sent,
    model,
    refused,
    relayed,
    upload,
)

REST = b"\r\n" + BODY + b"\r\n0\r\n\r\n"
ENDING = b"\r\n0\r\n\r\n"
FIRST = b"d\r\n" + BODY + b"\r\n"

BAD: dict[str, bytes] = {
    "no size": REST,
    "no size but an extension": b";a=b" + REST,
    "minus": b"-d" + REST,
    "plus": b"+d" + REST,
    "prefix": b"0xd" + REST,
    "no digit": b"g" + REST,
    "a digit and none": b"dg" + REST,
    "underscore": b"0_d" + REST,
    "point": b"d.0" + REST,
    "blank before": b" d" + REST,
    "tab before": b"\td" + REST,
    "blank behind": b"d " + REST,
    "tab behind": b"d\t" + REST,
    "blank inside": b"0 d" + REST,
    "NUL before": b"\x00d" + REST,
    "NUL behind": b"d\x00" + REST,
    "full-width digit": "ｄ".encode() + REST,  # noqa: RUF001
    "17 digits": b"1000000000000000d" + REST,
    "20 digits": b"fffffffffffffffffffd" + REST,
    "bare LF behind the size": b"d\n" + BODY + ENDING,
    "bare CR behind the size": b"d\r" + BODY + ENDING,
    "CR CR LF behind the size": b"d\r" + REST,
    "LF CR behind the size": b"d\n\r" + BODY + ENDING,
    "bare LF behind an extension": b"d;a\n" + BODY + ENDING,
    "LF in an extension": b"d;a\nb" + REST,
    "CR in an extension": b"d;a\rb" + REST,
    "NUL in an extension": b"d;a\x00b" + REST,
    "DEL in an extension": b"d;a\x7fb" + REST,
    "CR LF in a quoted extension": b'd;a="\r\n"' + REST,
    "extension without a name": b"d;" + REST,
    "comma for a semicolon": b"d,a=b" + REST,
    "one byte too short": b"c" + REST,
    "half of it": b"1" + REST,
    "nothing behind the data": b"d\r\n" + BODY + b"0\r\n\r\n",
    "bare LF behind the data": b"d\r\n" + BODY + b"\n0\r\n\r\n",
    "bare CR behind the data": b"d\r\n" + BODY + b"\r0\r\n\r\n",
    "NUL behind the data": b"d\r\n" + BODY + b"\x000\r\n\r\n",
    "two line ends behind the data": b"d\r\n" + BODY + b"\r\n\r\n0\r\n\r\n",
    "bare LFs at the end": FIRST + b"0\n\n",
    "bare LF behind the last size": FIRST + b"0\n\r\n",
    "bare LF at the end": FIRST + b"0\r\n\n",
    "bare CR at the end": FIRST + b"0\r\n\r\r",
    "minus zero": FIRST + b"-0\r\n\r\n",
    "bad second size": FIRST + b"zz\r\n",
    "trailer without a colon": FIRST + b"0\r\nno colon\r\n\r\n",
    "trailer with a blank before the colon": FIRST + b"0\r\nX-A : 1\r\n\r\n",
    "trailer that is folded": FIRST + b"0\r\nX-A: 1\r\n 2\r\n\r\n",
    "trailer that begins with a blank": FIRST + b"0\r\n X-A: 1\r\n\r\n",
    "trailer with a bare LF": FIRST + b"0\r\nX-A: 1\n\r\n",
    "trailer with a bare CR": FIRST + b"0\r\nX-A: 1\rX-B: 2\r\n\r\n",
    "trailer with NUL": FIRST + b"0\r\nX-A: \x00\r\n\r\n",
    "trailer: Content-Length": FIRST + b"0\r\nContent-Length: 13\r\n\r\n",
    "trailer: Transfer-Encoding": FIRST + b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "trailer: Transfer-Encoding, another": FIRST + b"0\r\nTransfer-Encoding: gzip\r\n\r\n",
}

TOO_MUCH: dict[str, bytes] = {
    "trailer of 9000 bytes": FIRST + b"0\r\nX-A: " + b"1" * 9000 + b"\r\n\r\n",
    "1000 trailers": FIRST + b"0\r\n" + b"X-A: 1\r\n" * 1000 + b"\r\n",
}

GOOD: dict[str, bytes] = {
    "one chunk": CHUNKED_BODY,
    "one-byte chunks": b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n",
    "capital": b"D" + REST,
    "leading zeros": b"000000d" + REST,
    "100 leading zeros": b"0" * 100 + b"d" + REST,
    "many zeros at the end": FIRST + b"00000000\r\n\r\n",
    "extension": b"d;a" + REST,
    "extension with a value": b"d;a=b;c=d" + REST,
    "quoted extension": b'd;a="b;c=\\"d"' + REST,
    "size in an extension": b"d;0=0" + REST,
    "extension of the last chunk": FIRST + b"0;a=b\r\n\r\n",
    "10,000 extensions": b"d" + b";a=b" * 10_000 + REST,
    # Nothing bounds one but the time that a body may take; see `test_an_endless_extension_is_408`.
    "extension of a megabyte": b"d;" + b"a" * 1_000_000 + REST,
}

TRAILERS: dict[str, bytes] = {
    "unknown": b"X-A: 1",
    "three": b"X-A: 1\r\nX-B: 2\r\nX-C: 3",
    "credential": b"x-api-key: sk-test-forged",
    "bearer": b"Authorization: Bearer sk-test-forged",
    "virtual key": b"x-bf-vk: sk-bf-forged",
    "version": b"anthropic-version: 1999-01-01",
    "type": b"Content-Type: text/plain",
    "coding": b"Content-Encoding: gzip",
    "Expect": b"Expect: 200-ok",
    "Upgrade": b"Upgrade: websocket",
    "Connection": b"Connection: close",
    "Connection, our key": b"Connection: x-api-key",
    "Host": b"Host: evil.test",
    "Trailer": b"Trailer: X-A",
    "without a value": b"X-A:",
}

_SENT: dict[str, tuple[bytes, Sent]] = {
    "model": (MODEL, model()),
    "upload": (UPLOAD, upload(chunked=True)),
}

CHUNKS: dict[str, Case] = {
    f"{name}, {route}": case
    for route, (begin, sent) in _SENT.items()
    for name, case in {
        **{
            name: refused(begin + CHUNKED + body, begun=sent if route == "upload" else None)
            for name, body in BAD.items()
        },
        **{
            name: refused(
                begin + CHUNKED + body,
                status=431,
                in_pieces=(400,),
                begun=sent if route == "upload" else None,
            )
            for name, body in TOO_MUCH.items()
        },
        # Only the byte behind the chunk shows that it was too long.
        "one byte too long": refused(
            begin + CHUNKED + b"e" + REST,
            begun=upload(body=BODY + b"\r", chunked=True) if route == "upload" else None,
        ),
        **{name: relayed(begin + CHUNKED + body, upstream=sent, goes_on=None) for name, body in GOOD.items()},
        **{
            f"trailer: {name}": relayed(
                begin + CHUNKED + FIRST + b"0\r\n" + trailer + b"\r\n\r\n", upstream=sent, goes_on=None
            )
            for name, trailer in TRAILERS.items()
        },
    }.items()
}
