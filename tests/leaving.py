"""Clients that leave, and what upstream does with their requests: the phases of a request, one by one.

Facts
  - A client leaves with FIN (it closed), with half of one (it says no more, but could read), or with RST.
  - Behind bytes for which the proxy has no room a FIN does not arrive. Of a client that uploads faster than
    its upstream reads only a RST can be seen.

Rules
  1. A client that has entered its phase is in it: upstream has got, or sent, what belongs to it. It stays
     there until it leaves.

Not here: when they leave, and what must have happened then (`test_leavers`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from rawclient import Client, asked, get, post, request_head
from scripted import JSON_TYPE, MESSAGE, MESSAGE_EVENTS, Conn, chunk, head, refusal, stream_head

MESSAGES = "/anthropic/v1/messages"
FILES = "/anthropic/v1/files"

LARGE = 300_000
"""Bytes of a body that is sent in more than one piece."""

STREAM_SECONDS = 0.15
"""How long a whole stream takes."""

LEAVE: dict[str, Callable[[Client], None]] = {
    "FIN": Client.close,
    "half-close": Client.finish_sending,
    "RST": Client.reset,
}


@dataclass
class Guest:
    """One client of the thousand."""

    number: int
    phase: str
    rng: random.Random
    client: Client
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    """Upstream is where the phase wants it."""
    left_at: float = 0.0

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        return [(b"x-phase", self.phase.encode()), (b"x-id", b"%d" % self.number)]

    def message(self, model: str = "claude-2", *, stream: bool = False, **more: object) -> bytes:
        return post(MESSAGES, asked(model, stream=stream, **more), self.fields)  # type: ignore[arg-type]

    def upload_head(self, length: int, path: str = FILES) -> bytes:
        fields = [(b"Host", b"h"), *self.fields, (b"Content-Length", b"%d" % length)]
        return request_head("POST", path, fields)


# What clients do until they are where they leave.


async def says_nothing(guest: Guest) -> None:
    """Connected, and not a byte sent."""


async def begins_a_head(guest: Guest) -> None:
    request = guest.message()
    await guest.client.send(request[: guest.rng.randrange(1, request.index(b"\r\n\r\n") + 3)])


async def begins_a_body(guest: Guest) -> None:
    request = guest.message(metadata={"pad": "x" * LARGE})
    await guest.client.send(request[: guest.rng.randrange(request.index(b"\r\n\r\n") + 4, len(request))])


async def asks(guest: Guest) -> None:
    await guest.client.send(guest.message())
    await guest.reached.wait()


async def asks_for_a_stream(guest: Guest) -> None:
    await guest.client.send(guest.message(stream=True))
    await guest.reached.wait()


async def asks_with_a_large_body(guest: Guest) -> None:
    await guest.client.send(guest.message(metadata={"pad": "x" * LARGE}))
    await guest.reached.wait()


async def asks_for_batches(guest: Guest) -> None:
    await guest.client.send(get("/anthropic/v1/messages/batches", guest.fields))
    await guest.reached.wait()


async def asks_thrice(guest: Guest) -> None:
    await guest.client.send(guest.message() * 3)
    await guest.reached.wait()


async def asks_the_busy(guest: Guest) -> None:
    await guest.client.send(guest.message("busy/claude-2"))
    await guest.reached.wait()


async def asks_the_unreachable(guest: Guest) -> None:
    await guest.client.send(guest.message("full/claude-2"))


async def asks_with_a_fallback(guest: Guest) -> None:
    await guest.client.send(guest.message(fallbacks=["backup/claude-2"]))
    await guest.reached.wait()


async def uploads_half(guest: Guest) -> None:
    await guest.client.send(guest.upload_head(LARGE) + b"u" * guest.rng.randrange(1, LARGE))
    await guest.reached.wait()


async def uploads_more_than_is_read(guest: Guest) -> None:
    await guest.client.send(guest.upload_head(1 << 40))
    await guest.reached.wait()
    # More than all buffers on the way hold. It is not all taken: the rest is dropped with the connection.
    guest.client.wire.transport.write(b"u" * 20_000_000)


async def waits_to_continue(guest: Guest) -> None:
    fields = [(b"Host", b"h"), *guest.fields, (b"Expect", b"100-continue"), (b"Content-Length", b"9")]
    await guest.client.send(request_head("POST", MESSAGES, fields))
    await guest.client.wire.read_until(b"100 Continue")


async def reads_nothing(guest: Guest) -> None:
    guest.client.stop_reading()
    await asks_for_a_stream(guest)


# What upstream does with their requests. `reached` is called when it is where the phase wants it.

Reached = Callable[[], None]


async def is_silent(conn: Conn, reached: Reached) -> None:
    reached()
    await conn.gone()


async def refuses(conn: Conn, reached: Reached) -> None:
    await conn.send(refusal(503))
    reached()


async def is_cut_in_a_refusal(conn: Conn, reached: Reached) -> None:
    """Keeps the primary's answer open while the fallback is asked."""
    await conn.send(refusal(529)[:-5])
    await conn.gone()


async def refuses_quietly(conn: Conn, reached: Reached) -> None:
    await conn.send(refusal(529))


async def sends_an_event(conn: Conn, reached: Reached) -> None:
    await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
    await is_silent(conn, reached)


async def sends_half_an_event(conn: Conn, reached: Reached) -> None:
    await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0][:-9]))
    await is_silent(conn, reached)


async def sends_half_a_message(conn: Conn, reached: Reached) -> None:
    await conn.send(head(200, [JSON_TYPE, (b"Content-Length", b"%d" % len(MESSAGE))]) + MESSAGE[:40])
    await is_silent(conn, reached)


async def streams(conn: Conn, reached: Reached) -> None:
    """A whole stream; whoever leaves, leaves somewhere in it, or behind it."""
    reached()
    await conn.send(stream_head())
    for event in MESSAGE_EVENTS:
        await conn.send(chunk(event))
        await asyncio.sleep(STREAM_SECONDS / len(MESSAGE_EVENTS))
    await conn.send(b"0\r\n\r\n")


async def floods(conn: Conn, reached: Reached) -> None:
    await conn.send(stream_head())
    reached()
    while True:
        await conn.send(chunk(b"data: " + b"x" * 60_000 + b"\n\n"))


async def does_not_read(conn: Conn, reached: Reached) -> None:
    conn.stop_reading()
    reached()


@dataclass(frozen=True)
class Phase:
    enter: Callable[[Guest], Awaitable[None]]
    play: Callable[[Conn, Reached], Awaitable[None]] | None = None
    """None where nothing gets upstream."""
    fallback: Callable[[Conn, Reached], Awaitable[None]] | None = None
    ways: tuple[str, ...] = tuple(LEAVE)


PHASES: dict[str, Phase] = {
    "before a byte": Phase(says_nothing),
    "in the head": Phase(begins_a_head),
    "in the body": Phase(begins_a_body),
    "before the body": Phase(waits_to_continue),
    "a held body": Phase(asks_with_a_large_body, is_silent),
    "in an upload": Phase(uploads_half, is_silent),
    "an upload that is not read": Phase(uploads_more_than_is_read, does_not_read, ways=("RST",)),
    "connecting": Phase(asks_the_unreachable),
    "backing off": Phase(asks_the_busy, refuses),
    "in a fallback": Phase(asks_with_a_fallback, refuses_quietly, is_silent),
    "in a fallback, the first open": Phase(asks_with_a_fallback, is_cut_in_a_refusal, is_silent),
    "before a head": Phase(asks, is_silent),
    "before a stream's head": Phase(asks_for_a_stream, is_silent),
    "between events": Phase(asks_for_a_stream, sends_an_event),
    "in an event": Phase(asks_for_a_stream, sends_half_an_event),
    "anywhere in a stream": Phase(asks_for_a_stream, streams),
    "in a message": Phase(asks, sends_half_a_message),
    "in batches": Phase(asks_for_batches, sends_half_a_message),
    "reading nothing": Phase(reads_nothing, floods),
    "pipelined": Phase(asks_thrice, is_silent),
}
