"""Crowds: the proxy as a process of its own, many clients at once, and a provider that keeps up with them.

Facts
  - The clock is CLOCK_MONOTONIC, the same for every process of a machine: what a provider stamps into an
    event can be compared with the moment in which a client gets it.
  - A process's memory, descriptors and CPU time stand in /proc (proc(5)).
  - A socket that the test holds open survives the proxy, as one of systemd's does: who connects while
    no process serves waits in its backlog.

Rules
  1. What a client receives is kept as it came, with the time; it is parsed when the load is over, so that the
     crowd takes little of the CPU that it shares with the proxy.
  2. Where a hard limit does not allow as many descriptors as are wanted, there are fewer clients, and the
     test's output says so.

Not here: a provider that misbehaves (`scripted`), expectations.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from prometheus_client.parser import text_string_to_metric_families
from rawclient import Body, Client, Wire, body_after, connect, get, header_values
from secrecy import KEY

clock = time.monotonic

SPARE_DESCRIPTORS = 200
"""What a process has open beside the crowd."""

SEND_BUFFER = 32768
"""The provider's SO_SNDBUF: what it sends beyond what the proxy takes shows soon."""

SEGMENT = 1448
"""TCP_MAXSEG, as over Ethernet. Those of a loopback are of 64 KB, and the kernel's buffers accordingly."""

HUSH_SECONDS = 60
"""Far more than any of this takes; a hang ends in an assertion."""

STAMP = re.compile(rb'"at": ([0-9.]+)')


def room(wanted: int, each: int) -> int:
    """How many clients there may be, of `wanted`, where each takes so many descriptors of a process."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    allowed = min(wanted, (most - SPARE_DESCRIPTORS) // each)
    if allowed < wanted:
        print(f"{allowed} clients instead of {wanted}: the hard limit is {most} descriptors")
    return allowed


def first_free(pid: int) -> int:
    """The number that the next descriptor of a process would have; as its limit it leaves none."""
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in itertools.count() if number not in used)


def descriptors(pid: int | None = None) -> int:
    """How many descriptors a process has open; this one's, if none is named."""
    return len(os.listdir(f"/proc/{pid or 'self'}/fd"))


def resident(pid: int) -> int:
    """The bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def until(condition: Callable[[], bool], what: str, seconds: float = HUSH_SECONDS) -> None:
    """Returns when `condition` holds: for what no event tells, such as another process's descriptors."""
    end = clock() + seconds
    while not condition():
        assert clock() < end, f"{what}: not within {seconds} s"
        await asyncio.sleep(0.02)


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of all `values` do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


ACTIVATE = """
import os, resource, sys
number, config, descriptors, *program = sys.argv[1:]
if descriptors != "0":
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(descriptors), int(descriptors)))
os.dup2(int(number), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, *program, "serve", "--config", config])
"""
"""What systemd does: the socket is descriptor 3, and LimitNOFILE is set."""


class Process:
    """One process of the proxy on a socket that is passed to it."""

    def __init__(self, running: asyncio.subprocess.Process, notified: socket.socket, port: int) -> None:
        self.pid = running.pid
        self.port = port
        self._running = running
        self._notified = notified

    async def told(self, line: str) -> None:
        """Returns when the process has told systemd `line`, READY=1 for example."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(HUSH_SECONDS):
            while line not in (await loop.sock_recv(self._notified, 4096)).decode().splitlines():
                pass

    def signal(self, number: signal.Signals) -> None:
        self._running.send_signal(number)

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        async with asyncio.timeout(HUSH_SECONDS):
            return await self._running.wait()

    async def stop(self) -> None:
        """End it if it runs, without patience."""
        if self._running.returncode is None:
            self._running.kill()
            await self._running.wait()
        self._notified.close()

    async def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        client = await connect(self.port)
        await client.send(get("/metrics", [(b"Connection", b"close")]))
        text = (await client.response("GET")).body.decode()
        client.close()
        for family in text_string_to_metric_families(text):
            if family.name == name:
                return float(family.samples[0].value)
        raise AssertionError(f"no metric {name}: {text}")


class Clocked(Wire):
    """A client's end that notes when what came."""

    def __init__(self) -> None:
        super().__init__()
        self.arrivals: list[tuple[float, int]] = []

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.arrivals.append((clock(), len(self.everything)))

    async def ends_with(self, mark: bytes) -> None:
        """Returns when `mark` is the last that came."""
        await self.until(lambda: self.everything.endswith(mark) or self.over, f"{mark!r}")


class Service:
    """The proxy as systemd would run it: a socket that is held, and processes on it, one after another."""

    def __init__(self, directory: Path, config: str, *, backlog: int = 4096) -> None:
        self.held = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self.port: int = self.held.getsockname()[1]
        self._directory = directory
        self._config = directory / "proxy.yaml"
        self._config.write_text(config)
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._errors = os.open(directory / "stderr", append)
        self._lines = os.open(directory / "stdout", append)
        self._processes: list[Process] = []
        self._wires: list[Clocked] = []

    async def start(self, *, descriptors: int = 0, program: Sequence[str] = ("-m", "proxy")) -> Process:
        """A new process that serves; `descriptors` is its hard limit of them, if any.

        `program` is what Python runs: the proxy, or what has the same command line.
        """
        notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notified.setblocking(False)
        name = str(self._directory / f"notify{len(self._processes)}")
        notified.bind(name)
        number = self.held.fileno()
        running = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ACTIVATE, str(number), str(self._config), str(descriptors), *program),
            env={**os.environ, "NOTIFY_SOCKET": name},
            pass_fds=[number],
            stdout=self._lines,
            stderr=self._errors,
        )
        self._processes.append(Process(running, notified, self.port))
        await self._processes[-1].told("READY=1")
        return self._processes[-1]

    async def enter(
        self, request: bytes, *, port: int = 0, receive_buffer: int = 0, reads: bool = True
    ) -> Clocked:
        """A client that asks at once; one that does not read leaves everything in the kernel's buffers.

        It goes to the service, or past it to another `port`; what it leaves open is closed in the end.
        """
        loop = asyncio.get_running_loop()
        endpoint = socket.socket()
        endpoint.setblocking(False)
        if receive_buffer:
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
        try:
            async with asyncio.timeout(HUSH_SECONDS):
                await loop.sock_connect(endpoint, ("127.0.0.1", port or self.port))
        except BaseException:
            endpoint.close()
            raise
        _, wire = await loop.create_connection(Clocked, sock=endpoint)
        self._wires.append(wire)
        wire.patience = HUSH_SECONDS
        if not reads:
            wire.transport.pause_reading()
        await wire.send(request)
        return wire

    @property
    def log(self) -> str:
        """What its processes have said on stderr."""
        return (self._directory / "stderr").read_text()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for wire in self._wires:
            wire.transport.abort()
        for process in self._processes:
            await process.stop()
        os.close(self._errors)
        os.close(self._lines)
        self.held.close()
        printed = self.log + (self._directory / "stdout").read_text()
        assert KEY not in printed, next(line for line in printed.splitlines() if KEY in line)


@dataclass
class Heard:
    """What a client got, parsed afterwards."""

    status: int
    complete: bool
    body: bytes
    delays: list[tuple[float, float]]
    """For each event with a stamp, when it was sent, and the seconds that it took."""


async def heard(wire: Clocked) -> Heard:
    """Everything that came as the answer to the one request of `wire`."""
    client = Client(wire)
    everything = bytes(wire.everything)
    head = everything.find(b"\r\n\r\n") + 4
    assert head > 3, f"no answer: {everything!r}, {wire.end}"
    wire.received[:] = everything[:head]
    body = body_after(response := await client.head(), "POST")
    delays: list[tuple[float, float]] = []
    buffer, seen, came = bytearray(), 0, head
    for at, position in wire.arrivals:
        buffer += everything[came:position]
        came = max(came, position)
        body.pull(buffer)
        while (end := body.data.find(b"\n\n", seen)) >= 0:
            if stamp := STAMP.search(body.data, seen, end):
                delays.append((float(stamp[1]), at - float(stamp[1])))
            seen = end + 2
    return Heard(response.status, body.done, bytes(body.data), delays)


class Call(asyncio.Protocol):
    """One connection of the proxy to the provider, and the request that is on it."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.head = b""
        self.sent = 0
        """Bytes that were given to the kernel, or are about to be."""
        self.closed_at = 0.0
        self.was_reset = False
        """Whether the other end went without having read everything."""
        self._received = bytearray()
        self._body: Body | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        # The kernel is the only buffer, and it holds nothing back: what `send` has sent is at the other end.
        transport.set_write_buffer_limits(high=0)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.provider.calls.add(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._body is None:
            end = self._received.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            self.head = bytes(self._received[:end])
            del self._received[:end]
            lengths = re.findall(rb"(?i)\r\ncontent-length: ([0-9]+)", self.head)
            chunked = b"\r\ntransfer-encoding: chunked" in self.head.lower()
            self._body = Body(length=int(lengths[0]) if lengths else 0, chunked=chunked)
        self._body.pull(self._received)
        if self._body.done:
            body, self._body = self._body, None
            self.provider.asked[self.field("x-id")] += 1
            self.provider.received += len(body.data)
            self._task = asyncio.get_running_loop().create_task(self._play(bytes(body.data)))

    async def _play(self, body: bytes) -> None:
        # A proxy that leaves is what many tests are about; they look at the connections.
        with contextlib.suppress(ConnectionError):
            await self.provider.play(self, body)

    def field(self, name: str) -> str:
        """The value of a header field of the request; empty if there is none."""
        lines = [tuple(line.split(b": ", 1)) for line in self.head.split(b"\r\n")[1:-2]]
        return b"".join(header_values(lines, name)).decode()  # type: ignore[arg-type]

    async def send(self, data: bytes) -> None:
        """Returns when the kernel has taken all of it."""
        if self.closed_at:
            raise ConnectionResetError
        self.sent += len(data)
        self.transport.write(data)
        if not self._writable.is_set():
            await self._writable.wait()
        if self.closed_at:
            raise ConnectionResetError

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed_at = clock()
        self.was_reset = exc is not None
        self._writable.set()
        self.provider.calls.discard(self)
        if self._task is not None:
            self._task.cancel()


class Provider:
    """A provider in this process, fast enough for a crowd. `play` answers each request."""

    def __init__(self, play: Callable[[Call, bytes], Awaitable[None]]) -> None:
        self.play = play
        self.calls: set[Call] = set()
        """Connections that are open."""
        self.asked: collections.Counter[str] = collections.Counter()
        """How often a request with this x-id came whole."""
        self.received = 0
        self.url = ""

    async def start(self) -> None:
        endpoint = socket.create_server(("127.0.0.1", 0), backlog=4096)
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Call(self), sock=endpoint, backlog=4096
        )
        self.url = f"http://127.0.0.1:{endpoint.getsockname()[1]}"

    def hang_up(self) -> None:
        """Close every connection, idle ones in the proxy's pool as well."""
        for call in tuple(self.calls):
            call.transport.abort()

    async def stop(self) -> None:
        self._server.close()
        self.hang_up()
        await until(lambda: not self.calls, "the provider's connections")
        await self._server.wait_closed()


@contextlib.asynccontextmanager
async def provider(play: Callable[[Call, bytes], Awaitable[None]]) -> AsyncIterator[Provider]:
    """A provider that is up, and that is stopped in the end."""
    one = Provider(play)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()
