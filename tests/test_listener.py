"""Accepting connections: how many, what happens beyond, and what is left when listening ends."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy import listener, server
from proxy.listener import Listener


class Held(asyncio.Protocol):
    """A connection that is answered with one byte."""

    def __init__(self, left: Callable[[], None]) -> None:
        self._left = left

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"x")

    def connection_lost(self, exc: Exception | None) -> None:
        self._left()


@pytest.fixture
async def listening() -> AsyncIterator[Callable[[int], Listener]]:
    """Makes listeners; they are closed when the test ends."""
    made: list[Listener] = []

    def make(limit: int) -> Listener:
        made.append(Listener(limit))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def begin(one: Listener, address: str = "127.0.0.1:0") -> int:
    await one.bind(address)
    one.start(lambda: Held(one.left), lambda: None)
    return int(one.addresses[0].rpartition(":")[2]) if ":" in address and "unix" not in address else 0


async def taken(reader: asyncio.StreamReader, seconds: float = 5) -> bool:
    """Whether the connection is accepted within so many seconds."""
    try:
        return await asyncio.wait_for(reader.readexactly(1), seconds) == b"x"
    except TimeoutError:
        return False


async def two_are_taken(ends: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> bool:
    """Whether the first two connections are accepted, and then no other."""
    first = [await taken(reader) for reader, _ in ends[:2]]
    return first == [True, True] and not any([await taken(reader, 0.2) for reader, _ in ends[2:]])


async def test_beyond_the_limit_connections_wait(
    listening: Callable[[int], Listener], caplog: pytest.LogCaptureFixture
) -> None:
    """None is refused; each comes in when another leaves, and the log says it once."""
    one = listening(2)
    port = await begin(one)
    with caplog.at_level(logging.WARNING):
        ends = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        assert await two_are_taken(ends)
        assert one.open == 2
        for index in range(3):
            ends[index][1].close()
            assert await taken(ends[index + 2][0])
            assert one.open == 2
    assert len(caplog.records) == 1
    for _, writer in ends:
        writer.close()
    async with asyncio.timeout(5):
        await one.all_left.wait()


async def test_without_descriptors_connections_wait(
    listening: Callable[[int], Listener], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepting rests while there are none, without spinning, and goes on by itself."""
    one = listening(100)
    tries = 0

    class Exhausted(socket.socket):
        out = True

        def accept(self) -> tuple[socket.socket, object]:
            nonlocal tries
            tries += 1
            if self.out:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super().accept()

    monkeypatch.setattr(listener, "REST_SECONDS", 0.05)
    exhausted = Exhausted()
    exhausted.bind(("127.0.0.1", 0))
    exhausted.listen()
    one.add(exhausted)
    one.start(lambda: Held(one.left), lambda: None)
    reader, writer = await asyncio.open_connection(*exhausted.getsockname())
    began = time.monotonic()
    assert not await taken(reader, 0.3)
    async with asyncio.timeout(5):
        while tries < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert tries <= 4 + (time.monotonic() - began) / 0.05
    assert [record.message for record in caplog.records] == [
        f"connections have to wait: {os.strerror(errno.EMFILE)}"
    ]
    Exhausted.out = False
    assert await taken(reader)
    writer.close()


async def test_who_waits_is_taken_in(listening: Callable[[int], Listener]) -> None:
    """Those who are in the backlog when listening ends are not reset; later ones are refused."""
    one = listening(100)
    port = await begin(one)
    waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
    await one.close()
    assert one.open == 30
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    loop = asyncio.get_running_loop()
    for end in waiting:
        end.setblocking(False)
        assert await asyncio.wait_for(loop.sock_recv(end, 1), 5) == b"x"
        end.close()


async def test_who_waits_beyond_the_limit_is_taken_in_too(listening: Callable[[int], Listener]) -> None:
    """When listening ends there is no later."""
    one = listening(2)
    port = await begin(one)
    ends = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
    assert await two_are_taken(ends)
    await one.close()
    assert [await taken(reader) for reader, _ in ends[2:]] == [True, True, True]
    for _, writer in ends:
        writer.close()


async def test_who_comes_to_a_passed_socket_later_is_for_the_next(
    listening: Callable[[int], Listener],
) -> None:
    """Somebody else holds it open: who waits when we close it is taken in, who comes then is not."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        first, second = listening(100), listening(100)
        first.add(held.dup())
        first.start(lambda: Held(first.left), lambda: None)
        loop = asyncio.get_running_loop()
        with socket.create_connection(held.getsockname()) as waits:
            await first.close()
            with socket.create_connection(held.getsockname()) as comes:
                waits.setblocking(False)
                comes.setblocking(False)
                assert await asyncio.wait_for(loop.sock_recv(waits, 1), 5) == b"x"
                assert first.open == 1
                second.add(held.dup())
                second.start(lambda: Held(second.left), lambda: None)
                assert await asyncio.wait_for(loop.sock_recv(comes, 1), 5) == b"x"
                assert second.open == 1


async def test_a_socket_file_goes_with_its_listener(
    listening: Callable[[int], Listener], tmp_path: Path
) -> None:
    """A file that a dead process left is replaced, ours is removed, a successor's is not."""
    path = tmp_path / "proxy.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    first, second = listening(10), listening(10)
    await begin(first, f"unix:{path}")
    assert first.addresses == [f"unix:{path}"]
    await begin(second, f"unix:{path}")
    await first.close()
    assert path.exists()
    reader, writer = await asyncio.open_unix_connection(path)
    assert await taken(reader)
    writer.close()
    await second.close()
    assert not path.exists()


async def test_a_file_that_is_no_socket_is_kept(listening: Callable[[int], Listener], tmp_path: Path) -> None:
    """It is somebody's, and the start fails."""
    path = tmp_path / "proxy.sock"
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        await listening(10).bind(f"unix:{path}")
    assert path.read_text() == "precious"


async def test_a_connection_that_cannot_be_made_is_not_counted(
    listening: Callable[[int], Listener],
) -> None:
    """A protocol that fails at its start leaves no count and no descriptor."""
    one = listening(1)
    fails = [True]
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    def factory() -> asyncio.Protocol:
        if fails.pop():
            fails.append(False)
            raise ValueError("no")
        return Held(one.left)

    await one.bind("127.0.0.1:0")
    one.start(factory, lambda: None)
    port = int(one.addresses[0].rpartition(":")[2])
    refused, ending = await asyncio.open_connection("127.0.0.1", port)
    assert await refused.read() == b""
    ending.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await taken(reader)
    writer.close()
    fails.clear()


async def test_an_error_of_the_network_is_no_end(
    listening: Callable[[int], Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """accept(2) tells of errors of the connection that it would have brought; it rests, and goes on."""
    monkeypatch.setattr(listener, "REST_SECONDS", 0.05)

    class Troubled(socket.socket):
        left = 3

        def accept(self) -> tuple[socket.socket, object]:
            if self.left:
                self.left -= 1
                raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
            return super().accept()

    troubled = Troubled()
    troubled.bind(("127.0.0.1", 0))
    troubled.listen()
    one = listening(10)
    one.add(troubled)
    one.start(lambda: Held(one.left), lambda: None)
    reader, writer = await asyncio.open_connection(*troubled.getsockname())
    assert await taken(reader)
    writer.close()


async def test_an_abstract_socket_has_a_name(listening: Callable[[int], Listener]) -> None:
    """As systemd writes it."""
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0verbatim-test-{os.getpid()}")
    abstract.listen()
    one = listening(10)
    one.add(abstract)
    assert one.addresses == [f"unix:@verbatim-test-{os.getpid()}"]


@pytest.mark.parametrize(
    ("descriptors", "most"), [(1024, 480), (70, 3), (10, 1), (resource.RLIM_INFINITY, sys.maxsize)]
)
def test_there_are_as_many_connections_as_descriptors_for_two(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, most: int
) -> None:
    """One downstream and one upstream; where there is no limit there is none here."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    assert server._connection_limit() == most
