"""What stands before, behind and between requests: pipelines, expectations, upgrades, ends that come early.

Facts
  - Answers come in the order of their requests (RFC 9112 section 9.3.2). A parser error takes the requests
    with it that came in the same read, so that the bytes whole get one 400, in pieces the answers before it.
  - ``100 Continue`` is no answer; whoever gets a final one instead need not send its body
    (RFC 9110 section 10.1.1).
  - An upgrade that is not taken is an ordinary request (RFC 9110 section 7.8). Bytes passed on behind one
    before it was agreed were CVE-2026-2833 of Pingora, requests hidden in its body CVE-2026-69243 of aiohttp.
"""

from __future__ import annotations

from hostile_case import (
    BODY,
    CHUNKED,
    CHUNKED_BODY,
    END,
    GET,
    MODEL,
    SIZED,
    UPLOAD,
    VERSION,
    Case,
    Do,
    Sent,
    got,
    model,
    refused,
    relayed,
    upload,
)

_GET = GET + b"\r\n"
_MODEL = MODEL + SIZED + BODY
_UPLOAD = UPLOAD + SIZED + BODY
_BAD = MODEL + b"Content-Length: 2" + END + b"{}"
_OLD = GET.replace(b"1.1", b"1.0")
_OLD_MODEL = MODEL.replace(b"1.1", b"1.0")


def _numbered(count: int) -> tuple[bytes, tuple[Sent, ...]]:
    targets = [b"/v1/models/%d" % number for number in range(count)]
    return (
        b"".join(b"GET /anthropic" + target + VERSION + b"\r\n" for target in targets),
        tuple(got(target=target) for target in targets),
    )


def _pipeline(count: int) -> Case:
    requests, sent = _numbered(count)
    return relayed(requests, upstream=sent)


def _posts(count: int) -> Case:
    bodies = [b'{"model":"m%d"}' % number for number in range(count)]
    requests = (MODEL + b"Content-Length: %d" % len(body) + END + body for body in bodies)
    return relayed(b"".join(requests), upstream=tuple(model(body=body) for body in bodies))


PIPELINES: dict[str, Case] = {
    "2": _pipeline(2),
    "32": _pipeline(32),
    "33": _pipeline(33),
    "1000": _pipeline(1000),
    "100 with bodies": _posts(100),
    "every kind": relayed(
        _GET + _MODEL + _UPLOAD + GET.replace(b"GET", b"HEAD") + b"\r\n" + _MODEL + _GET,
        upstream=(got(), model(), upload(), Sent("HEAD", b"/v1/models"), model(), got()),
    ),
    "an empty body and another": relayed(
        UPLOAD + b"Content-Length: 0" + END + _GET, upstream=(upload(body=b""), got())
    ),
    "a good one and a bad one": Case((_GET + b"GET\r\n\r\n",), (400,), (got(),), in_pieces=(200, 400)),
    "a good one with a body and a bad one": Case(
        (_MODEL + b"\x00\r\n\r\n",), (400,), (model(),), in_pieces=(200, 400)
    ),
    "two good ones and a long one": Case(
        (_GET + _GET + GET + b"X-A: " + b"v" * 9000 + END,), (431,), (got(), got()), in_pieces=(200, 200, 431)
    ),
    "a bad one and a good one": refused(b"GET\r\n\r\n" + _GET),
    "a bad body and a good one": Case((_BAD + _MODEL,), (400, 200), (model(),), goes_on=True),
    "a good one, a bad body, a good one": Case(
        (_MODEL + _BAD + _MODEL,), (200, 400, 200), (model(), model()), goes_on=True
    ),
    "an unknown path and a good one": refused(b"GET /unknown" + VERSION + b"\r\n" + _GET, status=404),
    "one byte short of its length": Case(
        (MODEL + b"Content-Length: 14" + END + BODY + _GET,),
        (400,),
        in_pieces=(400, 400),
    ),
    "one byte beyond its length": Case(
        (_MODEL + b"x" + _GET,),
        (400,),
        (model(),),
        in_pieces=(200, 400),
    ),
    "a request inside its length": Case(
        (MODEL + b"Content-Length: %d" % len(BODY + _GET) + END + BODY + _GET,), (400,), goes_on=True
    ),
    "a request inside an upload": relayed(
        UPLOAD + b"Content-Length: %d" % len(_GET) + END + _GET, upstream=upload(body=_GET)
    ),
    "a request inside a chunk": relayed(
        UPLOAD + CHUNKED + b"%x\r\n" % len(_GET) + _GET + b"\r\n0\r\n\r\n",
        upstream=upload(body=_GET, chunked=True),
        goes_on=None,
    ),
    "behind Connection: close": Case(
        (GET + b"Connection: close" + END + _GET,),
        (400,),
        (got(),),
        in_pieces=(200,),
    ),
    "behind HTTP/1.0": Case((_OLD + b"\r\n" + _GET,), (400,), (got(),), in_pieces=(200,), hides=False),
    "behind HTTP/1.0 with keep-alive": relayed(
        _OLD + b"Connection: keep-alive" + END + _GET, upstream=(got(), got())
    ),
    "HTTP/1.0 behind HTTP/1.1": relayed(_GET + _OLD + b"\r\n", upstream=(got(), got()), goes_on=False),
    "HTTP/1.0 with keep-alive and a body": relayed(
        _OLD_MODEL + b"Connection: Keep-Alive\r\n" + SIZED + BODY, upstream=model()
    ),
    "HTTP/1.0 with a body": relayed(_OLD_MODEL + SIZED + BODY, upstream=model(), goes_on=False),
    "HTTP/1.0 with close and keep-alive": relayed(
        _OLD + b"Connection: close, keep-alive" + END, upstream=got(), goes_on=False
    ),
}

_EXPECT = b"Expect: 100-continue\r\n"
_HASTY = {"body_timeout": 0.1}

EXPECTATIONS: dict[str, Case] = {
    "the body at once": relayed(MODEL + _EXPECT + SIZED + BODY, upstream=model(), continues=1),
    "the body at once, upload": relayed(UPLOAD + _EXPECT + SIZED + BODY, upstream=upload(), continues=1),
    "the body at once, chunked": relayed(
        MODEL + _EXPECT + CHUNKED + CHUNKED_BODY, upstream=model(), continues=1, goes_on=None
    ),
    "the body behind the 100": relayed(
        MODEL + _EXPECT + SIZED, Do.AWAIT_100, BODY, upstream=model(), continues=1
    ),
    "the body behind the 100, upload": relayed(
        UPLOAD + _EXPECT + SIZED, Do.AWAIT_100, BODY, upstream=upload(), continues=1
    ),
    "capitals": relayed(
        MODEL + b"EXPECT: 100-Continue\r\n" + SIZED, Do.AWAIT_100, BODY, upstream=model(), continues=1
    ),
    "the body and another request behind the 100": relayed(
        MODEL + _EXPECT + SIZED, Do.AWAIT_100, BODY + _GET, upstream=(model(), got()), continues=1
    ),
    "no body at all": Case(
        (MODEL + _EXPECT + SIZED, Do.AWAIT_100), (408,), continues=1, lingers=True, settings=_HASTY
    ),
    "no body at all, upload": Case(
        (UPLOAD + _EXPECT + SIZED, Do.AWAIT_100),
        (408,),
        begun=upload(),
        continues=1,
        lingers=True,
        settings=_HASTY,
    ),
    "a request for a body": relayed(
        UPLOAD + _EXPECT + b"Content-Length: %d" % len(_GET) + END,
        Do.AWAIT_100,
        _GET,
        upstream=upload(body=_GET),
        continues=1,
    ),
    "nothing to continue with": relayed(GET + _EXPECT + b"\r\n", upstream=got()),
    # RFC 9110 section 10.1.1: from HTTP/1.0 it is ignored.
    "HTTP/1.0": relayed(_OLD_MODEL + _EXPECT + SIZED + BODY, upstream=model(), goes_on=False),
    "twice": relayed(MODEL + _EXPECT + _EXPECT + SIZED + BODY, upstream=model(), continues=1),
    # Decided before the body: no 100, so that nothing is uploaded for it.
    "of something else": refused(MODEL + b"Expect: 200-ok\r\n" + SIZED, status=417, lingers=True),
    "of nothing": refused(MODEL + b"Expect:\r\n" + SIZED, status=417, lingers=True),
    "of two things": refused(MODEL + b"Expect: 100-continue, 200-ok\r\n" + SIZED, status=417, lingers=True),
    "of two things in two fields": refused(
        MODEL + _EXPECT + b"Expect: 200-ok\r\n" + SIZED, status=417, lingers=True
    ),
    "with parameters": refused(MODEL + b"Expect: 100-continue;x=1\r\n" + SIZED, status=417, lingers=True),
    "a body beyond the limit": refused(
        MODEL + _EXPECT + b"Content-Length: 33554433" + END, status=413, lingers=True
    ),
    "an unknown path": refused(b"POST /unknown" + VERSION + _EXPECT + SIZED, status=404, lingers=True),
    "a bad target": refused(
        b"POST /anthropic/../v1/files" + VERSION + _EXPECT + SIZED, status=400, lingers=True
    ),
    "an unknown virtual key": refused(
        UPLOAD + _EXPECT + b"x-bf-vk: sk-bf-0123456789\r\n" + SIZED, status=401, lingers=True
    ),
    "an own path": refused(b"POST /health" + VERSION + _EXPECT + SIZED, status=405, lingers=True),
    "TRACE": refused(b"TRACE /anthropic/v1/files" + VERSION + _EXPECT + SIZED, status=405, lingers=True),
    "another coding": refused(
        UPLOAD + _EXPECT + b"Transfer-Encoding: gzip, chunked" + END, status=501, lingers=True
    ),
    "two hosts": refused(MODEL + b"Host: other\r\n" + _EXPECT + SIZED),
    "CL.TE": refused(MODEL + _EXPECT + b"Content-Length: 13\r\n" + CHUNKED),
}

_UPGRADE = b"Connection: Upgrade\r\nUpgrade: "
_H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
_WEBSOCKET = (
    _UPGRADE + b"websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
_WEBSOCKET_FIELDS = ((b"Sec-WebSocket-Version", b"13"), (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="))
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def _plain(*steps: bytes, upstream: Sent) -> Case:
    """Relayed as the plain request that it also is, and nothing behind it."""
    return relayed(*steps, upstream=upstream, goes_on=False)


UPGRADES: dict[str, Case] = {
    **{
        f"{protocol.decode()}{name}": _plain(begin + _UPGRADE + protocol + rest, upstream=sent)
        for protocol in (b"foo", b"h2c", b"tcp", b"websocket", b"TLS/1.2", b"websocket, h2c")
        for name, begin, rest, sent in (
            ("", GET, END, got()),
            (" and a request", GET, END + _GET, got()),
            (" and garbage", GET, END + b"\x81\x05hello\x00\r\n\r\n", got()),
            (" with a body", MODEL, b"\r\n" + SIZED + BODY, model()),
            (" with a body and a request", MODEL, b"\r\n" + SIZED + BODY + _MODEL, model()),
            (" with an upload and a request", UPLOAD, b"\r\n" + SIZED + BODY + _GET, upload()),
        )
    },
    "h2c with settings": _plain(GET + _H2C + b"\r\n", upstream=got()),
    "h2c with settings and the preface": _plain(GET + _H2C + b"\r\n" + _PREFACE, upstream=got()),
    "h2c with settings and a body": _plain(MODEL + _H2C + SIZED + BODY + _PREFACE, upstream=model()),
    "h2c, chunked": _plain(UPLOAD + _H2C + CHUNKED + CHUNKED_BODY + _GET, upstream=upload(chunked=True)),
    "websocket with its key": _plain(GET + _WEBSOCKET + b"\r\n", upstream=got(*_WEBSOCKET_FIELDS)),
    "websocket with its key and a frame": _plain(
        GET + _WEBSOCKET + b"\r\n\x81\x85\x00\x00\x00\x00hello", upstream=got(*_WEBSOCKET_FIELDS)
    ),
    "websocket, chunked": _plain(
        UPLOAD + _UPGRADE + b"websocket\r\n" + CHUNKED + CHUNKED_BODY + _GET, upstream=upload(chunked=True)
    ),
    "websocket with a request for a body": _plain(
        UPLOAD + _UPGRADE + b"websocket\r\nContent-Length: %d" % len(_GET) + END + _GET,
        upstream=upload(body=_GET),
    ),
    "websocket of the old draft": refused(
        GET + _UPGRADE + b"websocket\r\nSec-WebSocket-Key1: 4 @1  46546xW%0l 1 5" + END
    ),
    "Upgrade that Connection does not name": _plain(GET + b"Upgrade: h2c" + END + _GET, upstream=got()),
    "Connection without Upgrade": relayed(GET + b"Connection: Upgrade" + END, upstream=got(), goes_on=None),
    "an empty Upgrade": _plain(GET + _UPGRADE + END, upstream=got()),
}

ENDS: dict[str, Case] = {
    "FIN at once": Case((Do.FIN,), ()),
    "FIN in the request line": Case((b"GET /anthropic/v1/mo", Do.FIN), ()),
    "FIN in the head": Case((GET, Do.FIN), ()),
    "FIN in the body": Case((MODEL + SIZED + BODY[:-1], Do.AWAIT_READ, Do.FIN), (), logged=(0,)),
    "FIN in an upload": Case(
        (UPLOAD + SIZED + BODY[:-1], Do.AWAIT_READ, Do.FIN), (), begun=upload(), logged=(0,)
    ),
    "FIN in a chunk": Case((MODEL + CHUNKED + b"d\r\n" + BODY[:-1], Do.AWAIT_READ, Do.FIN), (), logged=(0,)),
    "FIN before the last chunk": Case(
        (UPLOAD + CHUNKED + b"d\r\n" + BODY + b"\r\n", Do.AWAIT_READ, Do.FIN),
        (),
        begun=upload(chunked=True),
        logged=(0,),
    ),
    "FIN in the trailers": Case(
        (UPLOAD + CHUNKED + b"d\r\n" + BODY + b"\r\n0\r\nX-A: 1\r\n", Do.AWAIT_READ, Do.FIN),
        (),
        begun=upload(chunked=True),
        logged=(0,),
    ),
    "FIN instead of the body": Case(
        (MODEL + _EXPECT + SIZED, Do.AWAIT_100, Do.FIN), (), continues=1, logged=(0,)
    ),
    "FIN behind a good one and a half": Case((_GET + GET, Do.AWAIT_ANSWER, Do.FIN), (200,), (got(),)),
    "RST at once": Case((Do.RESET,), ()),
    "RST in the head": Case((GET, Do.RESET), ()),
    "RST in the body": Case((MODEL + SIZED + BODY[:-1], Do.AWAIT_READ, Do.RESET), (), logged=(0,)),
    "RST in an upload": Case(
        (UPLOAD + SIZED + BODY[:-1], Do.AWAIT_READ, Do.RESET), (), begun=upload(), logged=(0,)
    ),
    "RST before the last chunk": Case(
        (UPLOAD + CHUNKED + b"d\r\n" + BODY + b"\r\n", Do.AWAIT_READ, Do.RESET),
        (),
        begun=upload(chunked=True),
        logged=(0,),
    ),
    "silence in the body": Case((MODEL + SIZED + BODY[:-1],), (408,), lingers=True, settings=_HASTY),
    "silence in an upload": Case(
        (UPLOAD + SIZED + BODY[:-1],), (408,), begun=upload(), lingers=True, settings=_HASTY
    ),
    "silence in a chunk size": Case((MODEL + CHUNKED + b"d",), (408,), lingers=True, settings=_HASTY),
    "silence in the trailers": Case(
        (MODEL + CHUNKED + b"d\r\n" + BODY + b"\r\n0\r\nX-A: 1\r\n",), (408,), lingers=True, settings=_HASTY
    ),
    "silence in a chunk of 16 EiB": Case(
        (MODEL + CHUNKED + b"ffffffffffffffff\r\n" + BODY,), (408,), lingers=True, settings=_HASTY
    ),
}
