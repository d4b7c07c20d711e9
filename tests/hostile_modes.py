"""What clients ask of a hostile upstream, what they got for it, and what is common to such tests.

Facts
  - There are two shapes of an answer, JSON and a stream, and two plans, with another target and without.
    Each combination is a `Mode`; what one of them got is a `Came`.

Not here: what upstream does (`test_upstream_faults`, `test_upstream_tls`, `hostile_answers`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from hostile_answers import SHAPES
from rawclient import Response, asked, post
from running import Proxy
from scripted import MESSAGE, Conn, Raw, Upstream, answer, raw

MESSAGES = "/anthropic/v1/messages"
GOOD = answer(body=MESSAGE)
PATIENT = {"max_retries": 1, "connect_timeout": 20, "first_byte_timeout": 20, "idle_timeout": 20}
"""No timer ends what these tests are about, where they do not say so."""

AT_ONCE = 4.0
"""Seconds within which the proxy must have closed a connection that carries no further request.

It takes none of them; the machine may."""


class Mode(NamedTuple):
    """What a client asks for, and whether the plan has another target."""

    shape: str
    fallback: bool

    def request(self, **more: object) -> bytes:
        fallbacks = ["backup/claude-2"] if self.fallback else None
        return post(MESSAGES, asked(stream=self.shape == "stream", fallbacks=fallbacks, **more))


MODES = [Mode(shape, fallback) for shape in SHAPES for fallback in (False, True)]


class Came(NamedTuple):
    """What a client got. `body` is None for an error of ours; an `error_event` of ours stood behind it."""

    mode: Mode
    status: int
    body: bytes | None
    error_event: bool
    how: str
    attempts: str

    @classmethod
    def of(cls, mode: Mode, response: Response) -> Came:
        body, error_event, rest = response.body.partition(b'event: error\ndata: {"type":"error","error":{')
        assert not rest or rest.endswith(b'"}\n\n')
        assert response.values("x-not") == []
        our_id = b'"request_id":"%b"}' % (response.header("request-id") or b"none")
        return cls(
            mode,
            response.status,
            None if body.endswith(our_id) else body,
            bool(error_event),
            "whole" if response.complete else "reset" if response.reset else "ended",
            (response.header("x-bifrost-attempts") or b"").decode(),
        )

    @classmethod
    def failed(cls, mode: Mode, status: int, outcome: str, calls: int) -> Came:
        """What must come where the primary fails `calls` times and has answered nothing that is relayed."""
        attempts = [f"anthropic/claude-2:{outcome}"] * calls
        if mode.fallback:
            attempts.append("backup/claude-2:200")
            return cls(mode, 200, MESSAGE, False, "whole", ",".join(attempts))
        return cls(mode, status, None, False, "whole", ",".join(attempts))


async def let_go(up: Upstream) -> None:
    """Returns when the proxy has closed all its connections to `up`; at once, or the test fails."""
    async with asyncio.timeout(AT_ONCE):
        await up.quiet()


async def ask_in_all_modes(p: Proxy, padding: str = "") -> list[Came]:
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(p.ask(mode.request(padding=padding))) for mode in MODES]
    return [Came.of(mode, task.result()) for mode, task in zip(MODES, asking, strict=True)]


async def check_endings(p: Proxy, ending: str) -> None:
    """One line for each request: the fallback served half of them, and the others ended so."""
    await p.stop()
    assert Counter(line["ending"] for line in p.lines) == {ending: 2, "--": 2}


def then(read: Callable[[Conn], Awaitable[object]], how: str) -> Raw:
    """A step that reads so much of a request, and then ends the connection, or does nothing more."""

    async def play(conn: Conn) -> None:
        await read(conn)
        if how == "FIN":
            await conn.close()
        elif how == "RST":
            conn.reset()
        await conn.gone()

    return raw(play)
