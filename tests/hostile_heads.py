"""Request heads: lines, control bytes, versions, methods, hosts and sizes.

Facts
  - A head is lines that end in CRLF; a bare CR is invalid, a bare LF may be refused, a folded line is refused
    (RFC 9112 sections 2.2 and 5.2), and so is a blank before a colon (5.1).
  - A field value has no control bytes but the tab (RFC 9110 section 5.5), a name is a token (5.6.2).
  - A request without a Host, with two, or with one that is none, is 400 (RFC 9112 section 3.2).
  - CVE-2023-37276 (CR in a value) and CVE-2026-34525 (two hosts) are of this kind.
"""

from __future__ import annotations

from hostile_case import (
    BODY,
    CHUNKED,
    END,
    GET,
    MODEL,
    SIZED,
    UPLOAD,
    VERSION,
    Case,
    Sent,
    got,
    model,
    refused,
    relayed,
    upload,
)

CONTROLS = [*range(0x20), 0x7F]

_PLACES: dict[str, tuple[bytes, bytes]] = {
    "a name": (GET + b"X-A", b"B: 1" + END),
    "a value": (GET + b"X-A: a", b"b" + END),
    "the start of a value": (GET + b"X-A:", b"b" + END),
    "the end of a value": (GET + b"X-A: a", END),
    "a method": (b"GE", b"T /anthropic/v1/models" + VERSION + b"\r\n"),
    "a target": (b"GET /anthropic/v1/mo", b"dels" + VERSION + b"\r\n"),
    "a query": (b"GET /anthropic/v1/models?a=", b"b" + VERSION + b"\r\n"),
    "a version": (b"GET /anthropic/v1/models HTTP/1.", b"1\r\nHost: h" + END),
    "a chunk size": (UPLOAD + CHUNKED + b"d", b"\r\n" + BODY + b"\r\n0\r\n\r\n"),
}

_TAB_IS_BLANK = {
    "a value": got((b"X-A", b"a\tb")),
    "the start of a value": got((b"X-A", b"b")),
    "the end of a value": got((b"X-A", b"a")),
}

CONTROL_BYTES: dict[str, Case] = {
    f"0x{byte:02x} in {place}": (
        relayed(before + b"\t" + behind, upstream=_TAB_IS_BLANK[place])
        if byte == 9 and place in _TAB_IS_BLANK
        else refused(
            before + bytes((byte,)) + behind, begun=upload(chunked=True) if place == "a chunk size" else None
        )
    )
    for place, (before, behind) in _PLACES.items()
    for byte in CONTROLS
}

NAMES: dict[str, Case] = {
    **{
        f"{chr(byte)} in a name": refused(GET + b"X-A" + bytes((byte,)) + b"B: 1" + END)
        for byte in b'"(),/;<=>?@[\\]{} '
    },
    **{
        f"0x{byte:02x} in a name": refused(GET + b"X" + bytes((byte,)) + b": 1" + END)
        for byte in (0x80, 0xFF)
    },
    "every token character": relayed(
        GET + b"!#$%&'*+-.^`|~09azAZ: 1" + END, upstream=got((b"!#$%&'*+-.^`|~09azAZ", b"1"))
    ),
    "bytes from 0x80 in a value": relayed(
        GET + b"X-A: \x80\xff\xc3\xa9" + END, upstream=got((b"X-A", b"\x80\xff\xc3\xa9"))
    ),
    "empty name": refused(GET + b": 1" + END),
    "blank for a name": refused(GET + b" : 1" + END),
    "no colon": refused(GET + b"x-api-key sk-test-leak" + END),
    "blank before the colon": refused(GET + b"X-A : 1" + END),
    "two colons": relayed(GET + b"X-A:: 1" + END, upstream=got((b"X-A", b": 1"))),
    "empty value": relayed(GET + b"X-A:" + END, upstream=got((b"X-A", b""))),
    "repeated": relayed(
        GET + b"X-A: 1\r\nx-a: 2\r\nX-A: 1" + END,
        upstream=got((b"X-A", b"1"), (b"x-a", b"2"), (b"X-A", b"1")),
    ),
    # A colon in front, as the pseudo-fields of HTTP/2 have it.
    "pseudo-field": refused(GET + b":path: /evil" + END),
}

LINES: dict[str, Case] = {
    "folded": refused(GET + b"X-A: 1\r\n 2" + END),
    "folded with a tab": refused(GET + b"X-A: 1\r\n\t2" + END),
    "folded to nothing": refused(GET + b"X-A: 1\r\n " + END),
    "folded host": refused(b"GET /anthropic/v1/models HTTP/1.1\r\nHost:\r\n h" + END),
    "first line that begins with a blank": refused(b"GET /anthropic/v1/models HTTP/1.1\r\n Host: h" + END),
    "bare LF behind the request line": refused(b"GET /anthropic/v1/models HTTP/1.1\nHost: h" + END),
    "bare LF behind a field": refused(GET + b"X-A: 1\nX-B: 2" + END),
    "bare LFs everywhere": refused(GET.replace(b"\r", b"") + b"X-A: 1\n\n"),
    "bare LF for the blank line": refused(GET + b"X-A: 1\r\n\n"),
    "bare CR behind the request line": refused(b"GET /anthropic/v1/models HTTP/1.1\rHost: h" + END),
    "bare CR behind a field": refused(GET + b"X-A: 1\rX-B: 2" + END),
    "bare CR for the blank line": refused(GET + b"X-A: 1\r\n\r"),
    "bare CRs everywhere": refused(GET.replace(b"\n", b"") + b"X-A: 1\r\r"),
    "CR CR LF": refused(GET + b"X-A: 1\r\r\n\r\n"),
    "LF CR": refused(GET + b"X-A: 1\n\r\n\r"),
    "blank line with a blank": refused(GET + b"X-A: 1\r\n \r\n"),
    "NUL for the line end": refused(GET + b"X-A: 1\x00\x00"),
    # RFC 9112 section 2.2: empty lines before a request line are ignored.
    "empty lines before the request": relayed(b"\r\n\r\n" + GET + b"\r\n", upstream=got()),
    "empty lines between requests": relayed(
        (GET + b"\r\n") + b"\r\n\r\n" + (GET + b"\r\n"), upstream=(got(), got())
    ),
    "bare LFs before the request": relayed(b"\n\n" + GET + b"\r\n", upstream=got()),
    "bare CRs before the request": relayed(b"\r\r" + GET + b"\r\n", upstream=got()),
    "blank before the request": refused(b" " + GET + b"\r\n"),
    "tab before the request": refused(b"\t" + GET + b"\r\n"),
    "NUL before the request": refused(b"\x00" + GET + b"\r\n"),
    "BOM before the request": refused(b"\xef\xbb\xbf" + GET + b"\r\n"),
    # Section 3: what parses on blanks may take several for one.
    "two blanks before the target": relayed(GET.replace(b"GET ", b"GET  ") + b"\r\n", upstream=got()),
    "two blanks before the version": relayed(GET.replace(b" HTTP", b"  HTTP") + b"\r\n", upstream=got()),
    "blank behind the version": refused(GET.replace(b"1.1", b"1.1 ") + b"\r\n"),
    "blank in the target": refused(b"GET /anthropic/v1/mo dels" + VERSION + b"\r\n"),
    "version in the target": refused(b"GET /anthropic/v1/models HTTP/1.1" + VERSION + b"\r\n"),
    "no target": refused(b"GET" + VERSION + b"\r\n"),
    "only a method": refused(b"GET\r\n\r\n"),
    "a status line": refused(b"HTTP/1.1 200 OK\r\nContent-Length: 0" + END),
    "SMTP": refused(b"EHLO evil.test\r\nMAIL FROM:<a@evil.test>\r\n"),
    "SSH": refused(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "TLS": refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "PROXY protocol": refused(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + GET + b"\r\n"),
    "PROXY protocol, version 2": refused(
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + b"\x01" * 12 + GET + b"\r\n"
    ),
    "the preface of HTTP/2": refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "Redis": refused(b"*1\r\n$4\r\nPING\r\n"),
}

# The parser reads these three, so alone they are refused for their version; with bytes behind them it stops
# at those (an HTTP/1.0 or HTTP/2.0 request without keep-alive must be the last) and all is 400.
_OTHER_VERSIONS: dict[str, bytes] = {
    "HTTP/2.0": b"POST /anthropic/v1/files HTTP/2.0\r\nHost: h\r\nContent-Length: 0" + END,
    "HTTP/0.9": b"GET /anthropic/v1/models HTTP/0.9\r\nHost: h" + END,
    "no version": b"GET /anthropic/v1/models\r\nHost: h" + END,
}

VERSIONS: dict[str, Case] = {
    **{
        f"{version}": refused(b"GET /anthropic/v1/models " + version.encode() + b"\r\nHost: h" + END)
        for version in (
            "HTTP/1.2",
            "HTTP/1.9",
            "HTTP/1.10",
            "HTTP/1.01",
            "HTTP/01.1",
            "HTTP/11.1",
            "HTTP/1",
            "HTTP/1.",
            "HTTP/.1",
            "HTTP/1,1",
            "HTTP/1.1.1",
            "HTTP/1.1x",
            "HTTP/+1.1",
            "HTTP/-1.1",
            "HTTP/0x1.1",
            "HTTP/3.0",
            "HTTP/9.9",
            "HTTP 1.1",
            "HTTP1.1",
            "http/1.1",
            "Http/1.1",
            "HTTPS/1.1",
            "HTP/1.1",
            "SPDY/1.1",
            "/1.1",
            "1.1",
        )
    },
    # The parser takes these for HTTP. It is one request whatever it calls itself, and goes on as HTTP/1.1.
    "RTSP/1.0": relayed(GET.replace(b"HTTP/1.1", b"RTSP/1.0") + b"\r\n", upstream=got(), goes_on=False),
    "ICE/1.0": relayed(
        b"SOURCE /anthropic/v1/models ICE/1.0\r\n\r\n",
        upstream=Sent("SOURCE", b"/v1/models"),
        goes_on=False,
    ),
    **{f"{name} alone": refused(head, status=505, hides=False) for name, head in _OTHER_VERSIONS.items()},
    **{name: refused(head, in_pieces=(505,)) for name, head in _OTHER_VERSIONS.items()},
    "HTTP/2.0, chunked": refused(
        b"POST /anthropic/v1/files HTTP/2.0\r\nHost: h\r\n" + CHUNKED + b"0\r\n\r\n", in_pieces=(505,)
    ),
    "HTTP/0.9, chunked": refused(
        b"POST /anthropic/v1/files HTTP/0.9\r\nHost: h\r\n" + CHUNKED + b"0\r\n\r\n", in_pieces=(505,)
    ),
}

METHODS: dict[str, Case] = {
    **{
        f"{method[:20]}": refused(method.encode() + b" /anthropic/v1/models" + VERSION + b"\r\n")
        for method in (
            "get",
            "Get",
            "gET",
            "GETS",
            "GE",
            "FOO",
            "G",
            "PRI",
            "GET,POST",
            "GET/",
            "(GET)",
            "1GET",
        )
    },
    "no method": refused(b" /anthropic/v1/models" + VERSION + b"\r\n"),
    "1000 bytes long": refused(b"G" * 1000 + b" /anthropic/v1/models" + VERSION + b"\r\n"),
    "a million bytes long": refused(b"G" * 1_000_000, hides=False),
    "0x80": refused(b"G\x80T /anthropic/v1/models" + VERSION + b"\r\n"),
    **{
        method: relayed(
            method.encode() + b" /anthropic/v1/models" + VERSION + b"\r\n",
            upstream=Sent(method, b"/v1/models"),
        )
        for method in ("DELETE", "OPTIONS", "PROPFIND", "SEARCH", "PURGE", "HEAD")
    },
    "GET with a body": relayed(GET + SIZED + BODY, upstream=Sent("GET", b"/v1/models", body=BODY)),
    "HEAD with a body": relayed(
        GET.replace(b"GET", b"HEAD") + SIZED + BODY, upstream=Sent("HEAD", b"/v1/models", body=BODY)
    ),
    "DELETE with a body": relayed(
        GET.replace(b"GET", b"DELETE") + SIZED + BODY, upstream=Sent("DELETE", b"/v1/models", body=BODY)
    ),
    # It is dropped: the method that was judged is the one that counts.
    "another method in a field": relayed(
        MODEL + b"X-HTTP-Method-Override: DELETE\r\n" + SIZED + BODY, upstream=model()
    ),
    # CONNECT would make a tunnel, TRACE would echo our key; what follows either is no second request.
    **{
        f"{method} {target}": refused(
            method.encode()
            + b" "
            + target.encode()
            + b" HTTP/1.1\r\nHost: api.anthropic.com\r\nContent-Length: %d" % len(MODEL)
            + END
            + MODEL,
            status=405,
        )
        for method in ("CONNECT", "TRACE")
        for target in ("/anthropic/v1/messages", "/")
    },
    "CONNECT api.anthropic.com:443": refused(
        b"CONNECT api.anthropic.com:443 HTTP/1.1\r\nHost: api.anthropic.com" + END, status=405
    ),
    "CONNECT with a request for a body": refused(
        b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\nContent-Length: %d" % len(GET + b"\r\n") + END + GET + b"\r\n",
        status=405,
    ),
    "CONNECT, chunked": refused(
        b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n" + CHUNKED + b"0\r\n\r\n" + GET + b"\r\n", status=405
    ),
    "CONNECT in HTTP/1.0": refused(b"CONNECT h:443 HTTP/1.0" + END, status=405),
    "TRACE with a body": refused(b"TRACE /anthropic/v1/messages" + VERSION + SIZED + BODY, status=405),
    "TRACE api.anthropic.com:443": refused(b"TRACE api.anthropic.com:443" + VERSION + b"\r\n"),
}


def _with_host(*lines: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join((b"GET /anthropic/v1/models " + version, *lines)) + END


HOSTS: dict[str, Case] = {
    "none": refused(_with_host(b"X-A: 1")),
    "two": refused(_with_host(b"Host: h", b"Host: other")),
    "two equal ones": refused(_with_host(b"Host: h", b"host: h")),
    "two, HTTP/1.0": refused(_with_host(b"Host: h", b"Host: other", version=b"HTTP/1.0")),
    **{
        name: refused(_with_host(b"Host: " + value))
        for name, value in {
            "with a path": b"h/x",
            "with a scheme": b"http://h",
            "with userinfo": b"user:pw@h",
            "with a query": b"h?x",
            "with a fragment": b"h#x",
            "with a backslash": b"h\\x",
            "with a blank": b"h other",
            "with a comma": b"h, other",
            "with two ports": b"h:80:81",
            "with a port that is none": b"h:http",
            "with a signed port": b"h:+80",
            "with a bracket": b"[::1",
            "with brackets around nothing": b"[]",
            "with a quote": b'"h"',
            "with a bad escape": b"h%zz",
            "in UTF-8": "hé".encode(),
        }.items()
    },
    "blank before the colon": refused(_with_host(b"Host : h")),
    "underscored": refused(_with_host(b"Host_: h")),
    "none, HTTP/1.0": relayed(_with_host(version=b"HTTP/1.0"), upstream=got(), goes_on=False),
    "empty": relayed(_with_host(b"Host:"), upstream=got()),
    "with a port": relayed(_with_host(b"Host: api.anthropic.com:443"), upstream=got()),
    "IPv6": relayed(_with_host(b"Host: [::1]:8080"), upstream=got()),
    "another in X-Forwarded-Host": relayed(
        GET + b"X-Forwarded-Host: evil.test" + END, upstream=got((b"X-Forwarded-Host", b"evil.test"))
    ),
}


def _fields(count: int, size: int) -> tuple[tuple[bytes, bytes], ...]:
    """`count` fields, each with `size` bytes of name and value."""
    return tuple((b"X-%04d" % number, b"v" * (size - 6)) for number in range(count))


def _many(count: int, size: int) -> bytes:
    lines = (b"%b: %b\r\n" % pair for pair in _fields(count, size))
    return GET + b"".join(lines) + b"\r\n"


LIMITS: dict[str, Case] = {
    "a field of 8190 bytes": relayed(_many(1, 8190), upstream=got(*_fields(1, 8190))),
    "a value of 8191 bytes": refused(GET + b"X-A: " + b"v" * 8191 + END, status=431),
    "a field of 64 KB": refused(_many(1, 65536), status=431),
    "a field of a megabyte": refused(_many(1, 1_000_000), status=431),
    "a name of 8190 bytes": refused(GET + b"X" * 8190 + b": 1" + END, status=431),
    "a name without end": refused(GET + b"X" * 100_000, status=431, hides=False),
    "a value without end": refused(GET + b"X: " + b"v" * 100_000, status=431, hides=False),
    # Blanks around a value are no part of it, and nobody keeps them.
    "100,000 blanks": relayed(GET + b"X-A:" + b" " * 100_000 + b"v" + END, upstream=got((b"X-A", b"v"))),
    "fields without end": refused(GET + b"X: v\r\n" * 10_000, status=431, hides=False),
    "127 fields and Host": relayed(_many(127, 10), upstream=got(*_fields(127, 10))),
    "128 fields and Host": refused(_many(128, 10), status=431),
    "1000 fields": refused(_many(1000, 10), status=431),
    "64 KB in 100 fields": relayed(_many(100, 655), upstream=got(*_fields(100, 655))),
    "a megabyte in 127 fields": relayed(_many(127, 8190), upstream=got(*_fields(127, 8190))),
    "a target of 8190 bytes": relayed(
        b"GET /anthropic/v1/models?" + b"x" * 8169 + VERSION + b"\r\n",
        upstream=got(target=b"/v1/models?" + b"x" * 8169),
    ),
    "a target of 8191 bytes": refused(
        b"GET /anthropic/v1/models?" + b"x" * 8170 + VERSION + b"\r\n", status=431
    ),
    "a target without end": refused(b"GET /anthropic/v1/models?" + b"x" * 100_000, status=431, hides=False),
    "a path of 8000 segments": relayed(
        b"GET /anthropic/v1" + b"/a" * 4000 + VERSION + b"\r\n", upstream=got(target=b"/v1" + b"/a" * 4000)
    ),
    "100 blank lines": relayed(b"\r\n" * 100 + GET + b"\r\n", upstream=got()),
    # 413 at once, though not a byte of the body has come; nothing is uploaded.
    "a declared body beyond the limit": refused(
        MODEL + b"Content-Length: 33554433" + END, status=413, lingers=True
    ),
    "a declared body of 8 EiB": refused(
        MODEL + b"Content-Length: 9223372036854775807" + END, status=413, lingers=True
    ),
    "a body that grows beyond the limit": refused(
        MODEL + CHUNKED + b"3e9\r\n" + b" " * 1001 + b"\r\n",
        status=413,
        lingers=True,
        settings={"max_body_bytes": 1000},
    ),
    "a whole body beyond the limit": Case(
        (MODEL + b"Content-Length: 1001" + END + b" " * 1001,),
        (413,),
        goes_on=None,
        settings={"max_body_bytes": 1000},
    ),
    "a body at the limit": relayed(
        MODEL + b"Content-Length: 1000" + END + BODY + b" " * 987,
        upstream=model(body=BODY + b" " * 987),
        settings={"max_body_bytes": 1000},
    ),
    "an upload beyond the limit": relayed(
        UPLOAD + b"Content-Length: 100000" + END + b"x" * 100_000,
        upstream=upload(body=b"x" * 100_000),
        settings={"max_body_bytes": 1000},
    ),
}
