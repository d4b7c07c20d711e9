"""The parser of upstream's answers, against a strict reader of the same bytes.

What is found: an answer that is taken for whole and is not, or the other way round; bytes of a body that are
lost, doubled or not the body's; an outcome that depends on how the bytes came; a connection that remembers
the answer before.
"""

from __future__ import annotations

from random import Random
from zlib import crc32

import pytest
from fuzz.answer_reader import Answer, read
from fuzz.mutate import pieces_of

from proxy import framing
from proxy.framing import Framing

WORDS = (
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n",
    b"HTTP/1.0 ",
    b"RTSP/1.0 200 OK\r\n",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"Upgrade: x\r\nConnection: upgrade\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"2\r\nhi\r\n",
    b"0\r\n\r\n",
    b"0\r\nX: y\r\n\r\n",
    b";a=b",
    b';a="b"',
    b"101",
    b"304",
    b"\t",
    b"\x00",
    b"gzip, ",
)

NEXT = (
    ("POST", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"),
    (
        "POST",
        b"HTTP/1.1 100 A\r\n\r\nHTTP/1.1 404 B\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ),
    ("POST", b"HTTP/1.0 200 OK\r\n\r\nhi"),
    ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
)
"""Answers that may come next on a connection."""


class Taken(Framing):
    """Keeps the body, and asks at every turn what must always hold."""

    def __init__(self, method: str) -> None:
        super().__init__(self._keep, method)
        self.body = b""
        self.fed = 0

    def _keep(self, data: bytes) -> None:
        self.body += data

    def next(self, method: str) -> None:
        """Get ready for another answer on the same connection."""
        self.expect(method)
        self.body = b""
        self.fed = 0

    def feed(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            ended, fault, body = self.ended, self.fault, self.body
            self.parse(piece)
            self.fed += len(piece)
            assert not (self.ended and self.fault), "whole and faulty at once"
            assert self.ended or not ended, "an end was taken back"
            assert not fault or self.fault == fault, "another fault came after the first"
            assert self.body.startswith(body), "the body changed"
            assert self.body == body or not ended, "the body went on behind its end"
            assert len(self.body) <= self.fed, "more was delivered than came"
            assert self.has_head or not self.body, "a body before its head"
            assert self.has_head or not self.ended, "an end before the head"
            assert not (self.fault and self.clean), "faulty and clean"
            assert not (self.until_close and self.ended), "only the connection ends this body"

    @property
    def reusable(self) -> bool:
        """Whether the connection would carry another answer (`proxy.answer`)."""
        return self.ended and self.clean and self.keep_alive and not self.until_close

    def outcome(self) -> tuple[object, ...]:
        head = (self.status, self.reason, tuple(self.headers)) if self.has_head else ()
        return head, self.body, self.ended, bool(self.fault), self.until_close, self.keep_alive


def fed(pieces: list[bytes], method: str) -> Taken:
    taken = Taken(method)
    taken.feed(pieces)
    return taken


def check(data: bytes) -> None:
    """All that must hold for an answer with these bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(framing, "MAX_INTERIM", 3)
        for method in ("POST", "HEAD"):
            check_answer(data, method, Random(crc32(data)))


def check_answer(data: bytes, method: str, random: Random) -> None:
    whole, expected = fed([data], method), read(data, method)
    agree(whole, expected)
    for pieces in ([data[i : i + 1] for i in range(len(data))], pieces_of(data, random)):
        split = fed(pieces, method)
        assert split.outcome() == whole.outcome(), "the chunking made a difference"
        if not (expected.behind or expected.doubtful):
            assert split.clean == whole.clean, "the chunking made a difference"
        agree(split, expected)
        if split.reusable:
            follow(split)
    part = data[: random.randint(0, len(data))]
    agree(fed([part], method), read(part, method))


def agree(taken: Taken, expected: Answer) -> None:
    """The parser and the reader have understood the same."""
    if expected.doubtful:
        return
    if expected.unjudged:
        assert not taken.ended
    else:
        assert bool(taken.fault) == expected.bad, "one takes what the other refuses"
    assert taken.ended == expected.ended
    assert taken.body == expected.body
    if taken.has_head:
        assert (taken.status, taken.reason, taken.headers) == (
            expected.status,
            expected.reason,
            expected.fields,
        )
        assert taken.until_close == expected.until_close or taken.fault
    else:
        assert expected.status == 0
    assert not taken.keep_alive or expected.stays_open, "the connection is to be closed"
    if behind(expected):
        assert not taken.reusable, "what stands behind the answer was not seen"
    elif expected.ended and not expected.behind:
        assert taken.clean, "nothing stands behind the answer"


def behind(expected: Answer) -> bytes:
    """What stands behind the answer, without the empty lines that a parser may skip."""
    return expected.behind.strip(b"\r\n")


def follow(taken: Taken) -> None:
    """The next answers on a connection are what they are on a new one."""
    for method, data in NEXT:
        taken.next(method)
        taken.feed([data])
        new = fed([data], method)
        assert taken.outcome() == new.outcome(), "the connection remembers"
        assert taken.clean == new.clean, "the connection remembers"
        if taken.until_close or not taken.keep_alive:
            return
