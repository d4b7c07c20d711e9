"""`early_stream_after`: a stream is begun before upstream answers, at the price of status and fallbacks.

It helps where something between client and proxy cuts connections that are silent for a minute.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from rawclient import Client, asked, post
from running import Proxy, StartProxy, StartUpstream
from scripted import (
    JSON_TYPE,
    LAST_CHUNK,
    MESSAGE,
    MESSAGE_EVENTS,
    PING,
    Conn,
    Raw,
    Request,
    Step,
    answer,
    chunk,
    raw,
    refusal,
    stream_head,
    streamed,
)

MESSAGES = "/anthropic/v1/messages"
WHOLE = b"".join(MESSAGE_EVENTS)
EARLY = 0.05


def answers_late(data: bytes, go_on: asyncio.Event) -> Step:
    async def play(conn: Conn, _: Request) -> None:
        await go_on.wait()
        await conn.send(data)

    return play


async def begun(p: Proxy, fallbacks: list[str] | None = None) -> Client:
    """A client whose stream has begun, though upstream has not answered."""
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True, fallbacks=fallbacks)))
    head = await client.head()
    assert (head.status, head.header("transfer-encoding")) == (200, b"chunked")
    assert (head.header("content-type") or b"").partition(b";")[0] == b"text/event-stream"
    assert head.header("x-accel-buffering") == b"no"
    assert (head.header("request-id") or b"").startswith(b"req_")
    return client


def error_event(data: bytes) -> dict[str, Any]:
    """The data of the one event that `data` is, which must be an error as the provider spells it."""
    assert data.startswith(b"event: error\ndata: {"), data
    assert data.endswith(b"\n\n")
    assert data.count(b"\n") == 3
    return dict(json.loads(data.split(b"\n")[1].removeprefix(b"data: ")))


async def test_a_late_answer_goes_into_the_stream(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Head and pings come while upstream thinks; then its stream comes down byte for byte."""
    go_on = asyncio.Event()
    up = await upstream(answers_late(streamed(MESSAGE_EVENTS), go_on))
    p = await proxy(up, early_stream_after=EARLY, ping_interval=0.03)
    client = await begun(p)
    assert [await anext(client) for _ in range(3)] == [PING] * 3
    go_on.set()
    response = await client.rest()
    assert response.complete
    pings = response.body.removesuffix(WHOLE)
    assert response.body.endswith(WHOLE)
    assert pings == PING * (len(pings) // len(PING))
    line = await p.line()
    assert (line["status"], line["ending"]) == (200, "--")
    assert line["attempts"] == ["anthropic/claude-2:200"]
    assert line["usage"]["output_tokens"] == 6


async def test_an_answer_in_time_is_as_ever(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Upstream's own head comes down where it is there in time: status, headers and fallbacks as usual."""
    up = await upstream(streamed(MESSAGE_EVENTS), refusal(529), refusal(529))
    backup = await upstream(streamed(MESSAGE_EVENTS))
    p = await proxy(
        providers={"anthropic": up, "backup": backup}, early_stream_after=30, network={"max_retries": 0}
    )
    response = await p.post(MESSAGES, asked(stream=True))
    assert (response.body, response.header("x-bifrost-attempts")) == (WHOLE, b"anthropic/claude-2:200")
    assert (await p.post(MESSAGES, asked(stream=True))).status == 529
    response = await p.post(MESSAGES, asked(stream=True, fallbacks=["backup/x"]))
    assert response.header("x-bifrost-provider") == b"backup"


@pytest.mark.parametrize("status", [400, 401, 429, 500, 529])
async def test_a_late_error_becomes_an_event(upstream: StartUpstream, proxy: StartProxy, status: int) -> None:
    """The status is given away, so upstream's error goes down as an `error` event with its own JSON."""
    go_on = asyncio.Event()
    kinds = {401: "authentication_error", 429: "rate_limit_error", 529: "overloaded_error"}
    kind = kinds.get(status, "api_error")
    up = await upstream(answers_late(refusal(status, kind, message="Nein, süß"), go_on))
    p = await proxy(up, early_stream_after=EARLY, ping_interval=0, network={"max_retries": 0})
    client = await begun(p)
    go_on.set()
    response = await client.rest()
    error = error_event(response.body)
    assert error["type"] == "error"
    assert error["error"] == {"type": kind, "message": "Nein, süß"}
    assert (await p.line())["attempts"] == [f"anthropic/claude-2:{status}"]


async def test_an_error_on_many_lines_is_one_event(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A line end in upstream's JSON would end the event's data too early."""
    go_on = asyncio.Event()
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": "x"}}
    body = json.dumps(error, indent=2).replace("\n", "\r\n").encode()
    up = await upstream(answers_late(answer(400, body=body), go_on))
    client = await begun(await proxy(up, early_stream_after=EARLY, ping_interval=0))
    go_on.set()
    assert error_event((await client.rest()).body) == error


STRANGE = {
    "HTML": answer(502, [(b"Content-Type", b"text/html")], b"<html>\n\nBad gateway</html>"),
    "nothing": answer(503, [], b""),
    "other JSON": answer(500, body=b'{"message":"x"}'),
    "a message": answer(200, body=MESSAGE),
    "not UTF-8": answer(500, body=b'{"type":"error","error":{"type":"x","message":"\xff"}}'),
    "large": answer(500, [JSON_TYPE], b"[" * 1_000_000),
}


@pytest.mark.parametrize("case", STRANGE)
async def test_an_answer_that_fits_no_stream_becomes_an_error_of_ours(
    upstream: StartUpstream, proxy: StartProxy, case: str
) -> None:
    """What is neither a stream nor an error in the format's shape is reported, not copied in."""
    go_on = asyncio.Event()
    up = await upstream(answers_late(STRANGE[case], go_on))
    up.allow_unused = True
    client = await begun(
        await proxy(up, early_stream_after=EARLY, ping_interval=0, network={"max_retries": 0})
    )
    go_on.set()
    assert error_event((await client.rest()).body)["error"]["type"] == "api_error"


def never(how: str, go_on: asyncio.Event) -> Raw:
    async def play(conn: Conn) -> None:
        await conn.request()
        await go_on.wait()
        if how == "RST":
            conn.reset()
        elif how == "FIN":
            await conn.close()
        else:
            await conn.gone()

    return raw(play)


@pytest.mark.parametrize("how", ["RST", "FIN", "silence"])
async def test_no_answer_at_all_becomes_an_event(
    upstream: StartUpstream, proxy: StartProxy, how: str
) -> None:
    """A failure that would have been 502 or 504 is an `error` event of ours."""
    go_on = asyncio.Event()
    up = await upstream(never(how, go_on))
    p = await proxy(
        up,
        early_stream_after=EARLY,
        ping_interval=0,
        # Only silence may meet the timer, and after the stream has begun, however slow the machine is.
        network={"max_retries": 0, "first_byte_timeout": 1.0 if how == "silence" else 60},
    )
    client = await begun(p)
    go_on.set()
    error = error_event((await client.rest()).body)
    assert error["error"]["type"] == ("timeout_error" if how == "silence" else "api_error")
    line = await p.line()
    assert line["status"] == 200
    assert line["ending"][0] in "uU"
    assert line["attempts"] == ["anthropic/claude-2:" + ("timeout" if how == "silence" else "reset")]


async def test_fallbacks_by_status_are_given_up(upstream: StartUpstream, proxy: StartProxy) -> None:
    """After the commit nothing is tried again, though a fallback is named."""
    go_on = asyncio.Event()
    up, backup = await upstream(answers_late(refusal(529, "overloaded_error"), go_on)), await upstream()
    p = await proxy(
        providers={"anthropic": up, "backup": backup},
        early_stream_after=EARLY,
        ping_interval=0,
        network={"max_retries": 5},
    )
    client = await begun(p, fallbacks=["backup/x"])
    go_on.set()
    assert error_event((await client.rest()).body)["error"]["type"] == "overloaded_error"
    assert (up.arrived, backup.arrived) == (1, 0)


async def test_a_late_stream_that_is_cut_is_reset(upstream: StartUpstream, proxy: StartProxy) -> None:
    """From then on it is a stream like any other."""
    go_on = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await go_on.wait()
        await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0] + b"event: x\n"))
        await conn.close()

    client = await begun(await proxy(await upstream(step), early_stream_after=EARLY, ping_interval=0))
    go_on.set()
    response = await client.rest()
    assert response.body == MESSAGE_EVENTS[0] + b"event: x\n"
    assert (response.complete, response.reset) == (False, True)


async def test_a_client_that_leaves_stops_upstream(
    upstream: StartUpstream, proxy: StartProxy, machine: Callable[[], float]
) -> None:
    """Before upstream's head, after our own: the same as ever."""
    go_on = asyncio.Event()
    up = await upstream(never("silence", go_on))
    go_on.set()
    p = await proxy(up, early_stream_after=EARLY, ping_interval=0)
    client = await begun(p)
    started, late = time.monotonic(), machine()
    client.close()
    await up.quiet()
    assert time.monotonic() - started < 1 + machine() - late
    assert (await p.line())["ending"][0] == "D"


@pytest.mark.parametrize(("early", "stream"), [(0, True), (EARLY, False)], ids=["off", "no stream"])
async def test_only_streams_and_only_where_configured(
    upstream: StartUpstream, proxy: StartProxy, early: float, stream: bool
) -> None:
    """Without the setting, and for requests without `stream`, nothing comes before upstream's answer."""
    go_on = asyncio.Event()
    body = WHOLE if stream else MESSAGE
    late = answers_late(streamed(MESSAGE_EVENTS) if stream else answer(body=MESSAGE), go_on)
    up = await upstream(late)
    clock_up = await upstream(never("silence", asyncio.Event()))
    p = await proxy(up, early_stream_after=early, ping_interval=0)
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=stream)))
    await up.received()
    # A stream beside it that does begin early shows that the time has passed.
    clock = await begun(await proxy(clock_up, early_stream_after=2 * EARLY, ping_interval=0.01))
    await clock.read_until(PING)
    assert bytes(client.wire.everything) == b""
    go_on.set()
    response = await client.response()
    assert (response.body, response.complete) == (body, True)
    assert LAST_CHUNK not in response.body
