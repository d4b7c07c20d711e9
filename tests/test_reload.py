"""Reloading the config: checked whole, swapped between requests, refused when it is bad."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rawclient import Client, asked, connect, get, post
from running import StartProxy, StartUpstream
from scripted import MESSAGE_EVENTS, Conn, Request, Upstream, answer, chunk, stream_head
from secrecy import overhear

from proxy import config as config_room

MESSAGES = "/anthropic/v1/messages"

CONFIG = """
listen: ["127.0.0.1:0"]
providers:
  anthropic:
    base_urls: {{anthropic: "{url}"}}
    keys: [{{name: main, value: {key}}}]
models:
  alias: [anthropic/{model}]
"""


class Served:
    """The command as a process, with a config that can be written anew."""

    def __init__(self, path: Path, process: asyncio.subprocess.Process) -> None:
        self.path = path
        self.process = process
        self.port = 0

    async def said(self, words: str) -> str:
        """What it printed on stderr up to the line that holds `words`."""
        assert self.process.stderr is not None
        printed = ""
        async with asyncio.timeout(20):
            while words not in printed:
                line = await self.process.stderr.readline()
                assert line, f"it ended without {words!r}: {printed}"
                printed += line.decode()
        return printed

    async def reload(self, text: str | None, words: str) -> str:
        """Write the config, or remove it, and send SIGHUP; what it said of that."""
        if text is None:
            self.path.unlink()
        else:
            fresh = self.path.with_suffix(".new")
            fresh.write_text(text)
            fresh.rename(self.path)
        self.process.send_signal(signal.SIGHUP)
        return await self.said(words)

    async def ask(self, client: Client, model: str = "alias") -> tuple[int, bytes | None]:
        """The status of an answer, and the model that was asked for upstream."""
        await client.send(post(MESSAGES, asked(model)))
        response = await client.response()
        return response.status, response.header("x-bifrost-resolved-model")


@pytest.fixture
async def always(_upstreams: list[Upstream]) -> Upstream:
    """An upstream that answers every request."""

    class Always(Upstream):
        def next_step(self) -> bytes:
            return answer(body=b"{}")

    one = Always()
    await one.start()
    _upstreams.append(one)
    return one


@pytest.fixture
async def served(tmp_path: Path, always: Upstream) -> AsyncIterator[Served]:
    path = tmp_path / "proxy.yaml"
    path.write_text(CONFIG.format(url=always.url, key="env.KEY", model="first"))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "proxy", "serve", "--config", str(path)),
        env={**os.environ, "KEY": "sk-test-own"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    overhear(process)
    one = Served(path, process)
    printed = await one.said("serving on")
    one.port = int(printed.rpartition(":")[2])
    yield one
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert process.returncode == 0


async def test_a_good_config_is_used_by_the_next_request(served: Served, always: Upstream) -> None:
    """On the same connection; the process and its port stay."""
    client = await connect(served.port)
    assert await served.ask(client) == (200, b"first")
    text = CONFIG.format(url=always.url, key="env.KEY", model="second")
    assert "is reloaded" in await served.reload(text, "is reloaded")
    assert await served.ask(client) == (200, b"second")
    client.close()


BAD: dict[str, tuple[str | None, str]] = {
    "no YAML": ("providers: [", "line 1"),
    "an unknown key": ("listen: ['127.0.0.1:0']\nprovider: {}\n", "line 2: provider: "),
    "half a file": (CONFIG[: CONFIG.index("base_urls")], "line 4"),
    "a variable that is not set": (
        CONFIG.format(url="http://127.0.0.1:1", key="env.NOT_SET", model="x"),
        "NOT_SET",
    ),
    "no file": (None, "cannot be read"),
    "a key twice": (
        CONFIG.format(url="http://127.0.0.1:1", key="env.KEY", model="x") + "models: {}\n",
        "models",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_config_is_refused(served: Served, case: str) -> None:
    """What is wrong is logged with its place, the old config stays, and the metrics say it."""
    text, words = BAD[case]
    client = await connect(served.port)
    assert await served.ask(client) == (200, b"first")
    printed = await served.reload(text, "the one in use stays")
    assert words in printed
    assert "Traceback" not in printed
    assert await served.ask(client) == (200, b"first")
    await client.send(get("/metrics"))
    metrics = (await client.response("GET")).body.decode()
    assert 'verbatim_config_reloads_total{outcome="refused"} 1.0' in metrics
    client.close()


async def test_where_it_listens_is_not_reloaded(served: Served, always: Upstream) -> None:
    """That is said, and the rest is used."""
    text = CONFIG.format(url=always.url, key="env.KEY", model="second").replace("127.0.0.1:0", "127.0.0.1:1")
    assert "listen has changed" in await served.reload(text, "is reloaded")
    client = await connect(served.port)
    assert await served.ask(client) == (200, b"second")
    client.close()


async def test_a_request_keeps_the_config_that_it_began_with(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """A stream goes on by the old one, its pings too; what comes next goes by the new one."""
    go = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
        await go.wait()
        await conn.send(chunk(MESSAGE_EVENTS[-1]) + b"0\r\n\r\n")

    up = await upstream(step, answer(body=b"{}"))
    p = await proxy(up, ping_interval=0.1, models={"alias": ["anthropic/first"]})
    client = await p.connect()
    await client.send(post(MESSAGES, asked("alias", stream=True)))
    await client.head()
    await client.read_until(b"message_start")
    used = p.server._config
    p.server.use(dataclasses.replace(used, ping_interval=0.0, models={"alias": ("anthropic/second",)}))
    await client.read_until(b"event: ping")
    await client.read_until(b"event: ping")
    response = await p.post(MESSAGES, asked("alias"))
    assert response.header("x-bifrost-resolved-model") == b"second"
    go.set()
    assert (await client.rest()).complete
    assert json.loads(up.requests[0].body)["model"] == "first"
    assert json.loads(up.requests[1].body)["model"] == "second"


async def test_a_thousand_reloads_under_load_mix_nothing(always: Upstream, proxy: StartProxy) -> None:
    """Key, model and limits of an answer are always of one and the same config."""
    environ = {f"KEY_{number}": f"sk-test-{number}" for number in range(2)}
    texts = [
        CONFIG.format(url=always.url, key=f"env.KEY_{number}", model=f"model-{number}") for number in range(2)
    ]
    configs = [config_room.load(text, environ, str) for text in texts]
    p = await proxy(always)
    p.server.use(configs[0])
    done = asyncio.Event()
    answered = 0

    async def ask() -> None:
        nonlocal answered
        client = await p.connect()
        while not done.is_set():
            await client.send(post(MESSAGES, asked("alias")))
            response = await client.response()
            assert response.status == 200
            answered += 1

    asking = [asyncio.ensure_future(ask()) for _ in range(8)]
    for number in range(1000):
        p.server.use(configs[number % 2])
        await asyncio.sleep(0)
    done.set()
    await asyncio.gather(*asking)
    assert answered > 50
    seen = {(json.loads(request.body)["model"], request.header("x-api-key")) for request in always.requests}
    assert seen == {("model-0", b"sk-test-0"), ("model-1", b"sk-test-1")}
    assert len(always.requests) == answered
