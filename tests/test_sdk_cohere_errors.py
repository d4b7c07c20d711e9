"""Errors of the proxy's own, under the official Cohere SDK: it raises its own exceptions, in v1, v2, async.

Not here: errors of Cohere (`test_sdk_cohere`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cohere_sdk import KEY, SDK, VIRTUAL_KEY, StartCohere, cohere, provider, settings
from cohere_upstream import NDJSON, SSE, event
from environments import RunScript
from hop import Hop, StartHop, hop
from rawclient import post
from refusing import HEADERS, HELD, LIMIT, Told, one_window, refusing, silent
from running import Proxy, StartProxy, StartUpstream
from scripted import JSON_TYPE, LAST_CHUNK, Conn, Request, answer, chunk, stream_head

__all__ = ["cohere", "hop"]

CALLS = ("chat", "stream", "v1 chat", "v1 stream", "async chat")
STATUSES = {
    400: ("BadRequestError", "nowhere"),
    401: ("UnauthorizedError", "virtual_key_required"),
    403: ("ForbiddenError", "model_blocked"),
    404: ("NotFoundError", "job"),
    413: ("ApiError", "20000 bytes"),
    429: ("TooManyRequestsError", "request_limited"),
    502: ("ApiError", "provider"),
    504: ("GatewayTimeoutError", "provider"),
}
"""By status: the SDK's class (413 and 502 have none of their own), and what the message must say."""

BROKEN = ("ReadError", "RemoteProtocolError")
"""What the SDK's HTTP library raises where an answer is cut; the SDK lets it pass."""

LINE = b'{"is_finished":true,"event_type":"stream-end","finish_reason":"COMPLETE"}\n'
STARTED = event("message-start", id="x", delta={"message": {"role": "assistant"}})


async def cut(conn: Conn, _: Request) -> None:
    """An upstream that dies between two events."""
    await conn.send(stream_head(SSE) + chunk(STARTED))
    conn.reset()


class Late:
    """An upstream that refuses a v2 stream only when the proxy has begun one of its own, all else at once."""

    def __init__(self) -> None:
        self.hop: Hop | None = None

    async def __call__(self, conn: Conn, request: Request) -> None:
        assert self.hop is not None
        if b'"stream":true' in request.body and request.target == b"/v2/chat":
            await self.hop.answered(b"text/event-stream", 1)
        await conn.send(answer(503, [JSON_TYPE], b'{"id":"x","message":"the model is overloaded"}'))


@pytest.fixture(scope="session")
def raised() -> dict[str, Told]:
    """What all cases raised. They are run together, in one process of the SDK."""
    return {}


@pytest.fixture
async def errors(
    raised: dict[str, Told],
    run_script: RunScript,
    cohere: StartCohere,
    upstream: StartUpstream,
    proxy: StartProxy,
    hop: StartHop,
    closed_port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Told]:
    """What each case raised; a case is a status, or what happens to a stream."""
    if raised:
        return raised
    one_window(monkeypatch)
    up = await cohere()
    hurry = {"first_byte_timeout": 0.2, "max_retries": 0}

    async def start(where: str, **more: Any) -> Proxy:
        return await proxy(providers={"cohere": provider(where)}, **settings(**more))

    async def dying(play: Callable[[Conn, Request], Awaitable[None]], **more: Any) -> Proxy:
        return await start((await upstream(*[play] * len(CALLS))).url, **more)

    late = Late()
    proxies = await refusing(
        start,
        up.url,
        provider="cohere",
        other_model="command-r7b-12-2024",
        key=VIRTUAL_KEY,
        dead=f"http://127.0.0.1:{closed_port}",
        place=tmp_path,
    )
    proxies |= {
        "504": await dying(silent, network=hurry),
        "early": await dying(silent, network=hurry, early_stream_after=0.05, ping_interval=0.02),
        "late": await dying(late, early_stream_after=0.05),
        "cut": await dying(cut),
    }
    body = b'{"model":"command-a-03-2025","message":"Hello"}'
    assert (await proxies["429"].ask(post("/cohere/v1/chat", body, key=VIRTUAL_KEY.encode()))).status == 200
    late.hop = await hop(proxies["late"].port)
    cases = {
        name: {
            "base_url": f"http://127.0.0.1:{late.hop.port if name == 'late' else p.port}/cohere",
            "key": VIRTUAL_KEY if name in HELD else KEY,
            "headers": HEADERS.get(name, {}),
            "length": LIMIT + 10_000 if name == "413" else 10,
        }
        for name, p in proxies.items()
    }
    seen = await run_script(SDK, "cohere_errors", json.dumps(cases))
    for name, p in proxies.items():
        await p.stop()
        raised[name] = Told(seen[name], p.lines[name == "429" :])
    return raised


@pytest.mark.parametrize("status", STATUSES)
async def test_a_status(errors: dict[str, Told], status: int) -> None:
    """In v1, v2, streams and async: the SDK's class, Cohere's shape, and the id that the log has."""
    told = errors[str(status)]
    kind, says = STATUSES[status]
    assert list(told.seen) == list(CALLS)
    for call, error in told.seen.items():
        assert (error["class"], error["status"], error["events"]) == (kind, status, []), call
        assert list(error["body"]) == ["id", "message"]
        assert error["body"]["id"] == error["id"]
        assert says in error["body"]["message"], error
        assert "sk-test" not in error["body"]["message"]
    assert [error["id"] for error in told.seen.values()] == [line["request_id"] for line in told.lines]
    assert [line["status"] for line in told.lines] == [status] * len(CALLS)


async def test_a_stream_that_was_begun_early(errors: dict[str, Told]) -> None:
    """The error is Cohere's own, the end of a message that failed; then the connection is reset."""
    error = errors["early"].seen["stream"]
    assert error["events"] == [["message-end", "The provider did not answer in time."]]
    assert error["class"] in BROKEN
    assert max(line["pings"] for line in errors["early"].lines) > 0


async def test_a_stream_that_was_begun_early_and_is_refused(errors: dict[str, Told]) -> None:
    """Cohere's own words, where the SDK looks for them; then a reset, for to it they are an end like any."""
    error = errors["late"].seen["stream"]
    assert error["class"] in BROKEN
    assert error["events"] == [["message-end", "the model is overloaded"]]
    assert [line["status"] for line in errors["late"].lines] == [503, 200, 503, 503, 503]


async def test_lines_are_not_begun_early(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A v1 stream is no server-sent events, so the proxy cannot begin it, however long it waits."""
    begun = asyncio.Event()

    async def step(conn: Conn, request: Request) -> None:
        if request.target == b"/v2/chat":
            await conn.gone()
            return
        await begun.wait()
        await conn.send(stream_head(NDJSON) + chunk(LINE) + LAST_CHUNK)

    up = await upstream(step, step)
    p = await proxy(providers={"cohere": provider(up.url)}, **settings(early_stream_after=0.05))
    asked = b'"model":"command-a-03-2025","stream":true}'
    lines, clock = await p.connect(), await p.connect()
    await lines.send(post("/cohere/v1/chat", b'{"message":"Hi",' + asked))
    await up.received()
    await clock.send(post("/cohere/v2/chat", b'{"messages":[{"role":"user","content":"Hi"}],' + asked))
    # When the later request has been answered early, the time is over for the other one too.
    assert (await clock.head()).status == 200
    begun.set()
    response = await lines.response()
    assert response.header("content-type") == b"application/stream+json"
    assert (response.complete, response.body) == (True, LINE)


async def test_a_stream_that_is_cut(errors: dict[str, Told]) -> None:
    """What came is told, then an error, and then an exception: it never looks finished."""
    error = errors["cut"].seen["stream"]
    started, (kind, message) = error["events"]
    assert (started, kind) == (["message-start", None], "message-end")
    assert message
    assert error["class"] in BROKEN
