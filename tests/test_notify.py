"""What systemd is told, over a real socket: ready, reloading, stopping, and that the loop is alive."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import crowd
import pytest

from proxy import systemd

CONFIG = """
listen: ["127.0.0.1:0"]
providers:
  anthropic: {base_urls: {anthropic: "http://127.0.0.1:1"}}
"""


class Notified:
    """The socket that systemd would read, and the process that writes to it."""

    def __init__(self, receiver: socket.socket, process: asyncio.subprocess.Process) -> None:
        self._receiver = receiver
        self.process = process

    async def stand_still(self) -> None:
        """Stops the process; what it has said until then is dropped."""
        self.process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        await crowd.until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "its standing still")
        with contextlib.suppress(BlockingIOError):
            while self._receiver.recv(4096):
                pass

    async def message(self, beginning: str) -> dict[str, str]:
        """The next message whose first line is `beginning`; others are dropped."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(20):
            while True:
                text = (await loop.sock_recv(self._receiver, 4096)).decode()
                if text.startswith(beginning):
                    return dict(line.split("=", 1) for line in text.splitlines())


Begin = Callable[..., Awaitable[Notified]]


@pytest.fixture
async def begin(tmp_path: Path) -> AsyncIterator[Begin]:
    """Starts the command with a NOTIFY_SOCKET of its own."""
    started: list[Notified] = []
    receivers: list[socket.socket] = []

    async def start(*, abstract: bool = False, environ: Mapping[str, str] | None = None) -> Notified:
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receivers.append(receiver)
        receiver.setblocking(False)
        name = f"@verbatim-{secrets.token_hex(8)}" if abstract else str(tmp_path / "notify")
        receiver.bind(name.replace("@", "\0") if abstract else name)
        config = tmp_path / "proxy.yaml"
        config.write_text(CONFIG)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "proxy", "serve", "--config", str(config)),
            env={**os.environ, "NOTIFY_SOCKET": name, **(environ or {})},
            stderr=asyncio.subprocess.DEVNULL,
        )
        started.append(Notified(receiver, process))
        return started[-1]

    yield start
    for one in started:
        if one.process.returncode is None:
            one.process.kill()
            await one.process.wait()
    for receiver in receivers:
        receiver.close()


@pytest.mark.parametrize("abstract", [False, True], ids=["a path", "an abstract name"])
async def test_ready_reloading_and_stopping(begin: Begin, tmp_path: Path, *, abstract: bool) -> None:
    """In this order, each with a status for a person; a refused reload ends in READY as well, and says so."""
    notified = await begin(abstract=abstract)
    ready = await notified.message("READY=1")
    assert ready["STATUS"].startswith("serving on 127.0.0.1:")
    port = int(ready["STATUS"].split(";")[0].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)):
        before = time.monotonic_ns() // 1000
        notified.process.send_signal(signal.SIGHUP)
        reloading = await notified.message("RELOADING=1")
        assert before < int(reloading["MONOTONIC_USEC"]) < time.monotonic_ns() // 1000
        ready = await notified.message("READY=1")
        assert "refused" not in ready["STATUS"]
        assert "open connections: 1" in ready["STATUS"]
    (tmp_path / "proxy.yaml").write_text("nonsense: [")
    notified.process.send_signal(signal.SIGHUP)
    await notified.message("RELOADING=1")
    assert "refused" in (await notified.message("READY=1"))["STATUS"]
    notified.process.send_signal(signal.SIGTERM)
    stopping = await notified.message("STOPPING=1")
    assert "draining" in stopping["STATUS"]
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 30_000_000, "the drain_timeout that is the default"
    assert await notified.process.wait() == 0


async def test_the_watchdog_is_fed_in_time(begin: Begin, machine: Callable[[], float]) -> None:
    """More often than it asks for; and not at all by a process that stands still."""
    notified = await begin(environ={"WATCHDOG_USEC": "600000"})
    await notified.message("WATCHDOG=1")
    began = time.monotonic()
    for _ in range(4):
        assert "serving" in (await notified.message("WATCHDOG=1"))["STATUS"]
    # Who reads late has the messages in less time.
    assert 0.4 - machine() < time.monotonic() - began < 2 + machine()
    await notified.stand_still()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.8):
            await notified.message("WATCHDOG=1")
    notified.process.send_signal(signal.SIGCONT)
    await notified.message("WATCHDOG=1")


async def test_another_processs_watchdog_is_not_ours(begin: Begin) -> None:
    """WATCHDOG_PID names who is meant."""
    notified = await begin(environ={"WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())})
    await notified.message("READY=1")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await notified.message("WATCHDOG=1")


async def test_a_blocked_loop_does_not_feed_it(tmp_path: Path) -> None:
    """The watchdog is fed by the loop that serves; when that stands still, nobody feeds it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setblocking(False)
        receiver.bind(str(tmp_path / "notify"))
        supervisor = systemd.Supervisor(
            {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "150000"}
        )
        supervisor.watch(lambda: "well")
        assert receiver.recv(100) == b"WATCHDOG=1\nSTATUS=well"
        time.sleep(0.3)  # noqa: ASYNC251 - The loop is blocked on purpose.
        with pytest.raises(BlockingIOError):
            receiver.recv(100)
        await asyncio.sleep(0.1)
        assert receiver.recv(100) == b"WATCHDOG=1\nSTATUS=well"
        supervisor.close()


async def test_without_systemd_nothing_is_said() -> None:
    """No socket is made, nothing is scheduled."""
    supervisor = systemd.Supervisor({})
    supervisor.ready("well")
    supervisor.watch(lambda: "well")
    supervisor.close()


async def test_a_systemd_that_does_not_listen_is_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, with what could not be said."""
    supervisor = systemd.Supervisor({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    supervisor.ready("well")
    supervisor.close()
    assert "cannot be told READY=1" in caplog.text
