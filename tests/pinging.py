"""Streams that go on only when a ping has come: there is one at every boundary, however slow the machine.

Not here: what a ping is. Each wire format has its own.
"""

from __future__ import annotations

import re

from hop import Hop
from rawclient import Body, Headers, header_pairs, take
from scripted import chunk


class Gate:
    """Stands in an upstream, and knows from a hop downstream what has come there.

    Called between two events, it returns when the event before has come, and a ping after it.
    """

    def __init__(self, ping: bytes) -> None:
        self.hop: Hop | None = None
        self._ping = chunk(ping)
        self._streams = 0

    async def __call__(self, sent: list[bytes]) -> None:
        assert self.hop is not None
        if sent:
            # Each event differs from all others of its stream, and the streams are alike.
            await self.hop.answered(sent[-1], self._streams)
        else:
            self._streams += 1
        await self.hop.answered(self._ping, self.hop.answers.count(self._ping) + 1)


def streams_in(answers: bytes) -> list[tuple[Headers, bytes]]:
    """Head and content of each chunked answer in what connections have carried."""
    left, found = bytearray(answers), []
    while left:
        lines = take(left, left.index(b"\r\n\r\n") + 4).split(b"\r\n")
        body = Body(length=None, chunked=True)
        body.pull(left)
        assert body.done, f"an answer is not whole: {bytes(body.data[-200:])!r}"
        found.append((header_pairs(lines[1:-2]), bytes(body.data)))
    return found


def without_pings(content: bytes, ping: bytes, events: list[bytes], *, at_end: bool) -> bytes:
    """`content` without its pings; fails where a boundary of `events` has none, or another place has one."""
    some = b"(?:%b)+" % re.escape(ping)
    wanted = some + some.join(map(re.escape, events)) + (some if at_end else b"")
    assert re.fullmatch(wanted, content), content
    return b"".join(events)
