"""The command as a process: serve, signals, sockets that are passed, exit codes, what it prints."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rawclient import connect, get, post
from running import StartUpstream
from scripted import MESSAGE_EVENTS, Conn, Request, answer, chunk, stream_head
from secrecy import overhear

CONFIG = """
listen: ["127.0.0.1:0"]
providers:
  anthropic:
    base_urls: {{anthropic: "{url}"}}
    keys: [{{name: main, value: env.KEY}}]
"""


ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": sys.argv[3] if len(sys.argv) > 3 else str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "proxy", "serve", "--config", sys.argv[2]])
"""
"""What systemd does; LISTEN_PID is the pid of the process itself, unless another is given."""

Process = asyncio.subprocess.Process


Spawn = Callable[..., Awaitable[Process]]


@pytest.fixture
async def spawn() -> AsyncIterator[Spawn]:
    """Starts the command with some arguments; what a failed test leaves running is killed."""
    processes: list[Process] = []

    async def start(
        *arguments: str,
        program: Sequence[str] = ("-m", "proxy"),
        environ: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *program,
            *arguments,
            env={**os.environ, "KEY": "sk-test-own", **(environ or {})},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            **options,
        )
        processes.append(process)
        overhear(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def ends_with(process: Process, number: signal.Signals = signal.SIGTERM) -> tuple[bytes, bytes]:
    """What it printed, after a signal that it must take for a clean end."""
    process.send_signal(number)
    printed = await process.communicate()
    assert process.returncode == 0
    return printed


async def healthy(port: int) -> None:
    client = await connect(port)
    await client.send(get("/health"))
    assert (await client.response("GET")).body == b'{"status":"ok"}'
    client.close()


async def port_of(process: Process) -> int:
    """The port that the process says it serves on."""
    assert process.stderr is not None
    async with asyncio.timeout(20):
        while line := await process.stderr.readline():
            if b"serving on" in line:
                return int(line.rpartition(b":")[2])
    pytest.fail("it ended without serving")


async def test_serve_answers_logs_and_ends_with_0(
    tmp_path: Path, upstream: StartUpstream, spawn: Spawn
) -> None:
    """One request, one JSON line on stdout, no key in it, and SIGTERM is a clean end."""
    up = await upstream(answer(body=b"{}"))
    config = tmp_path / "proxy.yaml"
    config.write_text(CONFIG.format(url=up.url))
    process = await spawn("serve", "--config", str(config))
    client = await connect(await port_of(process))
    await client.send(post("/anthropic/v1/messages", b'{"model":"claude-2"}'))
    assert (await client.response("POST")).status == 200
    client.close()
    out, err = await ends_with(process)
    line = json.loads(out)
    assert (line["status"], line["ending"], line["attempts"]) == (200, "--", ["anthropic/claude-2:200"])
    assert b"sk-test" not in out + err
    assert up.requests[0].values("x-api-key") == [b"sk-test-own"]


async def test_an_open_request_may_finish_after_sigterm(
    tmp_path: Path, upstream: StartUpstream, spawn: Spawn
) -> None:
    """The process stops listening, answers what is open, then ends."""
    asked, go = asyncio.Event(), asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        asked.set()
        await go.wait()
        await conn.send(answer(body=b"{}"))

    up = await upstream(step)
    config = tmp_path / "proxy.yaml"
    config.write_text(CONFIG.format(url=up.url))
    process = await spawn("serve", "--config", str(config))
    port = await port_of(process)
    client = await connect(port)
    await client.send(post("/anthropic/v1/messages", b'{"model":"claude-2"}'))
    await asked.wait()
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert b"stopping" in await process.stderr.readline()
    async with asyncio.timeout(10):
        while True:
            try:
                (await connect(port)).close()
            except OSError:
                break
    go.set()
    assert (await client.response("POST")).status == 200
    client.close()
    await process.communicate()
    assert process.returncode == 0


async def test_a_second_sigterm_ends_at_once(tmp_path: Path, upstream: StartUpstream, spawn: Spawn) -> None:
    """What is still open gets its error event and a reset; the exit code is 0 all the same."""

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
        await conn.gone()

    up = await upstream(step)
    config = tmp_path / "proxy.yaml"
    config.write_text(CONFIG.format(url=up.url) + "drain_timeout: 600\n")
    process = await spawn("serve", "--config", str(config))
    client = await connect(await port_of(process))
    await client.send(post("/anthropic/v1/messages", b'{"model":"claude-2","stream":true}'))
    await client.head()
    await client.read_until(b"message_start")
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    while b"stopping" not in await process.stderr.readline():
        pass
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        await process.communicate()
    assert process.returncode == 0
    response = await client.rest()
    assert b"event: error" in response.body
    assert (response.complete, response.reset) == (False, True)


async def test_serve_without_a_config_is_the_local_dev_proxy(spawn: Spawn) -> None:
    """No file, no key, no environment: it serves, and says so."""
    quiet = {name: "" for name in os.environ if name.endswith("_API_KEY")}
    process = await spawn("serve", "--listen", "127.0.0.1:0", environ=quiet)
    await healthy(await port_of(process))
    await ends_with(process, signal.SIGINT)


@pytest.mark.parametrize("meant", [True, False], ids=["for this process", "for another"])
async def test_sockets_that_systemd_passes_win(tmp_path: Path, spawn: Spawn, *, meant: bool) -> None:
    """It serves on the socket it was given and on no other; what a parent was given is none of its own."""
    config = tmp_path / "proxy.yaml"
    config.write_text(CONFIG.format(url="http://127.0.0.1:1"))
    with socket.socket() as passed:
        passed.bind(("127.0.0.1", 0))
        passed.listen()
        descriptor = passed.fileno()
        foreign = [] if meant else [str(os.getpid())]
        process = await spawn(
            str(descriptor), str(config), *foreign, program=("-c", ACTIVATE), pass_fds=[descriptor]
        )
        port = await port_of(process)
        assert (port == passed.getsockname()[1]) is meant
        await healthy(port)
        await ends_with(process)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["version"], 0, "verbatim-proxy "),
        ([], 2, "COMMAND"),
        (["check"], 2, "--config"),
        (["check", "--config", "BAD"], 1, "line 3: provider"),
        (["check", "--config", "MISSING"], 1, "cannot be read"),
        (["check", "--config", "GOOD"], 0, "good; providers: anthropic"),
        (["serve", "--config", "BAD"], 1, "line 3: provider"),
        (["serve", "--listen", "8080"], 2, "--listen: "),
    ],
)
async def test_exit_codes_and_messages(
    tmp_path: Path, spawn: Spawn, arguments: list[str], code: int, words: str
) -> None:
    """What is wrong is said with its place; no traceback is ever shown."""
    (tmp_path / "GOOD").write_text(CONFIG.format(url="http://127.0.0.1:1"))
    (tmp_path / "BAD").write_text("listen: ['127.0.0.1:0']\n\nprovider: {}\n")
    process = await spawn(
        *(str(tmp_path / a) if a.isupper() else a for a in arguments),
        environ={"PYTHONPATH": str(Path(__file__).parent.parent)},
        cwd=tmp_path,
    )
    out, err = await process.communicate()
    assert process.returncode == code, (out, err)
    assert words in (out + err).decode()
    assert b"Traceback" not in err


async def test_an_address_that_is_taken_is_said(spawn: Spawn) -> None:
    """Exit code 1 and one line, not a traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = await spawn("serve", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        _, err = await process.communicate()
    assert process.returncode == 1
    assert b"cannot start" in err
    assert b"Traceback" not in err


async def test_a_stalled_reader_of_the_log_does_not_hold_the_end(
    tmp_path: Path, upstream: StartUpstream, spawn: Spawn
) -> None:
    """Nobody takes what it prints; it ends within a moment all the same, and says what is lost."""
    up = await upstream()
    config = tmp_path / "proxy.yaml"
    config.write_text(CONFIG.format(url=up.url) + "drain_timeout: 1\n")
    taken, given = os.pipe()
    os.set_blocking(given, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(given, b"x" * 65536)
    os.set_blocking(given, True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "serve", "--config", str(config)),
        env={**os.environ, "KEY": "sk-test-own"},
        stdout=given,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(given)
    try:
        await healthy(await port_of(process))
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            _, err = await process.communicate()
        assert process.returncode == 0
        assert b"access log is lost" in err
        assert b"Fatal" not in err
    finally:
        os.close(taken)


async def test_sigterm_is_heard_during_a_reload_that_hangs(
    tmp_path: Path, upstream: StartUpstream, spawn: Spawn
) -> None:
    """The config has become a pipe that nobody writes to: the stop does not wait for it."""
    up = await upstream()
    config = tmp_path / "proxy.yaml"
    config.write_text(CONFIG.format(url=up.url))
    process = await spawn("serve", "--config", str(config))
    await healthy(await port_of(process))
    config.unlink()
    os.mkfifo(config)
    process.send_signal(signal.SIGHUP)
    writer = None
    async with asyncio.timeout(10):
        while writer is None:
            # Only when somebody reads can it be opened.
            with contextlib.suppress(OSError):
                writer = os.open(config, os.O_WRONLY | os.O_NONBLOCK)
            await asyncio.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    async with asyncio.timeout(10):
        while b"stopping" not in await process.stderr.readline():
            pass
    # The thread that reads has to come back before Python ends.
    os.close(writer)
    await process.communicate()
    assert process.returncode == 0
