"""Framing of answers, fed whole, byte by byte, and with bytes behind the end."""

from __future__ import annotations

import pytest

from proxy.framing import MAX_INTERIM, MAX_OVERHEAD_BYTES, Framing


class Taken(Framing):
    """Keeps the body, in the pieces in which it was handed over."""

    def __init__(self, method: str = "POST") -> None:
        self.pieces: list[bytes] = []
        super().__init__(self.pieces.append, method)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def fed(data: bytes, size: int, method: str = "POST") -> Taken:
    framing = Taken(method)
    for start in range(0, len(data), size):
        framing.parse(data[start : start + size])
    return framing


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

WHOLE = [
    ("POST", OK + b"Content-Length: 2\r\n\r\nhi", b"hi"),
    ("POST", OK + b"Content-Length: 0\r\n\r\n", b""),
    ("POST", CHUNKED + b"2\r\nhi\r\n3;a=b\r\n yo\r\n0\r\n\r\n", b"hi yo"),
    ("POST", CHUNKED + b"2\r\nhi\r\n0\r\nContent-Encoding: gzip\r\nX: y\r\n\r\n", b"hi"),
    ("HEAD", OK + b"Content-Length: 2\r\n\r\n", b""),
    ("POST", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ("POST", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b""),
    ("POST", b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + OK + b"Content-Length: 2\r\n\r\nhi", b"hi"),
]


@pytest.mark.parametrize("size", [10**6, 1, 7])
@pytest.mark.parametrize(("method", "data", "body"), WHOLE)
def test_a_whole_answer(method: str, data: bytes, body: bytes, size: int) -> None:
    """It ends exactly where it says, in any chunking, and its connection may be used again."""
    framing = fed(data, size, method)
    assert (framing.body, framing.ended, framing.fault, framing.clean) == (body, True, "", True)
    assert framing.keep_alive
    assert not {b"X", b"Content-Encoding"} & {name for name, _ in framing.headers}


@pytest.mark.parametrize("size", [10**6, 1])
@pytest.mark.parametrize(("method", "data", "body"), WHOLE)
def test_bytes_behind_an_answer_spoil_its_connection(
    method: str, data: bytes, body: bytes, size: int
) -> None:
    """The answer itself is whole; nothing behind it is taken for its body."""
    framing = fed(data + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", size, method)
    assert (framing.body, framing.ended, framing.fault, framing.clean) == (body, True, "", False)


@pytest.mark.parametrize(("method", "data", "body"), WHOLE)
def test_a_cut_answer_is_never_ended(method: str, data: bytes, body: bytes) -> None:
    """Cut at any byte, it has not ended."""
    for size in range(len(data)):
        framing = Taken(method)
        framing.parse(data[:size])
        assert not framing.ended, data[:size]
        assert body.startswith(framing.body)


@pytest.mark.parametrize("size", [65536, 1])
@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 099 Low\r\n\r\n",
        b"HTTP/1.1 600 High\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"RTSP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"ICE/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"ICE/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"\r\nRTSP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_INTERIM + 1),
        b"HTTP/1.1 104 Hm\r\nContent-Length: 3\r\n\r\nabc" + OK + b"Content-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 104 Hm\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + OK + b"\r\n",
        OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
        OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: gzip\r\n\r\nhi",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\t\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked \t \r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        OK + b"A: b\r\n c\r\n\r\n",
        OK + b"A: b\x00\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"2\r\nhiXX",
        OK + b"A: " + b"b" * (MAX_OVERHEAD_BYTES * 3),
        CHUNKED + b"2\r\nhi\r\n0\r\n" + b"A: b\r\n" * (MAX_OVERHEAD_BYTES // 2),
        CHUNKED + b"2;" + b"a" * (MAX_OVERHEAD_BYTES * 3),
    ],
    ids=lambda data: repr(data[:60]),
)
def test_a_faulty_answer_is_said_to_be_one(data: bytes, size: int) -> None:
    """Never an end, always a fault, and the connection is not used again."""
    framing = fed(data, size)
    assert framing.fault
    assert (framing.ended, framing.clean) == (False, False)


def test_a_body_without_a_length_lasts_until_close() -> None:
    """Only the end of the connection can end it."""
    framing = fed(OK + b"\r\nhello", 10**6)
    assert (framing.body, framing.ended, framing.until_close) == (b"hello", False, True)


def test_a_reason_may_come_in_pieces() -> None:
    """The whole phrase counts."""
    assert fed(b"HTTP/1.1 404 Not Found At All\r\nContent-Length: 0\r\n\r\n", 1).reason == b"Not Found At All"


def test_the_body_of_one_read_is_handed_over_together() -> None:
    """However many chunks a read holds; and nothing waits for the next read."""
    framing = Taken()
    framing.parse(CHUNKED + b"1\r\nx\r\n" * 10_000)
    assert framing.pieces == [b"x" * 10_000]
    framing.parse(b"2\r\nhi\r\n")
    framing.parse(b"0\r\n\r\n")
    assert framing.pieces == [b"x" * 10_000, b"hi"]
    assert framing.ended


def test_the_body_before_a_fault_is_handed_over() -> None:
    """Bytes that came in the same read as the fault did come."""
    framing = Taken()
    framing.parse(CHUNKED + b"2\r\nhi\r\n2\r\nyo\r\nzz\r\n")
    assert framing.pieces == [b"hiyo"]
    assert (bool(framing.fault), framing.ended) == (True, False)


@pytest.mark.parametrize("more", [0, 1])
def test_a_head_has_the_same_limit_with_its_body_behind_it(more: int) -> None:
    """The body in the same read neither counts nor hides what the head has too much."""
    length = b"Content-Length: %d\r\n" % (2 * MAX_OVERHEAD_BYTES)
    value = b"b" * (MAX_OVERHEAD_BYTES - len(b"OK" + length + b"A: \r\n") + more)
    framing = Taken()
    framing.parse(OK + length + b"A: " + value + b"\r\n\r\n" + b"x" * 2 * MAX_OVERHEAD_BYTES)
    if more:
        assert (bool(framing.fault), framing.ended, framing.pieces) == (True, False, [])
    else:
        assert (framing.fault, framing.ended) == ("", True)
        assert len(framing.body) == 2 * MAX_OVERHEAD_BYTES


KEPT = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n"


@pytest.mark.parametrize("size", [10**6, 1])
def test_chunks_in_http_1_0_end_the_connection(size: int) -> None:
    """Whatever its head promises; with a length the promise is kept (RFC 9112 section 6.1)."""
    chunked = fed(KEPT + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", size)
    assert (chunked.body, chunked.ended, chunked.fault, chunked.keep_alive) == (b"hi", True, "", False)
    assert fed(KEPT + b"Content-Length: 2\r\n\r\nhi", size).keep_alive
