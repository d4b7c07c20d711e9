"""The official Cohere SDK sees through the proxy what it sees without it, and what it sends arrives as sent.

Not here: errors of ours (`test_sdk_cohere_errors`).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cohere_sdk import KEY, SDK, VIRTUAL_KEY, StartCohere, base_url, cohere, provider, settings
from cohere_upstream import form_field
from environments import RunScript
from hop import StartHop, hop
from pinging import Gate, streams_in, without_pings
from rawclient import Headers, post
from running import StartProxy
from scripted import Request

__all__ = ["cohere", "hop"]

PING = b": ping\n"
NOT_COMPARED = ("host", "connection", "accept-encoding", "authorization", "content-length")
"""What may differ between a request that came straight and one that came through the proxy."""

Sent = tuple[str, bytes, Headers, bytes]
"""Method, target, fields and body."""

Straight = Callable[[], Awaitable[tuple[dict[str, Any], list[Sent]]]]


def sent(request: Request) -> Sent:
    """All of a request that must be the same; the SDK draws a form's boundary by lot."""
    boundary = re.search(rb"boundary=(\w+)", request.header("content-type") or b"")
    drawn = boundary[1] if boundary else b"no boundary"
    fields = [
        (name, value.replace(drawn, b"drawn"))
        for name, value in request.headers
        if name.lower().decode() not in NOT_COMPARED
    ]
    return request.method, request.target, fields, request.body.replace(drawn, b"drawn")


@pytest.fixture(scope="session")
def seen_straight() -> list[tuple[dict[str, Any], list[Sent]]]:
    """What the script saw and sent without the proxy: always the same, so it is run once."""
    return []


@pytest.fixture
def straight(
    run_script: RunScript, cohere: StartCohere, seen_straight: list[tuple[dict[str, Any], list[Sent]]]
) -> Straight:
    """Runs the script straight against an upstream: what it saw, and what came."""

    async def run() -> tuple[dict[str, Any], list[Sent]]:
        if not seen_straight:
            up = await cohere()
            seen = await run_script(SDK, "cohere_calls", up.url, KEY)
            seen_straight.append((seen, [sent(request) for request in up.requests]))
        return seen_straight[0]

    return run


@pytest.mark.parametrize("keys", ["virtual", "client"])
async def test_calls(
    run_script: RunScript, straight: Straight, cohere: StartCohere, proxy: StartProxy, keys: str
) -> None:
    """Answers, streams and refusals are the same, and so is every byte of a request.

    With a virtual key where one is required, and with the client's own key.
    """
    wanted, wanted_requests = await straight()
    up = await cohere()
    more = settings("cohere", require_virtual_key=True) if keys == "virtual" else settings()
    p = await proxy(
        providers={"cohere": provider(up, "" if keys == "client" else "main")}, ping_interval=0, **more
    )
    seen = await run_script(SDK, "cohere_calls", base_url(p), VIRTUAL_KEY if keys == "virtual" else KEY)
    assert list(seen) == list(wanted)
    for version, calls in wanted.items():
        for call, told in calls.items():
            assert seen[version][call] == told, (version, call)
    assert [sent(request) for request in up.requests] == wanted_requests
    own = b"Bearer sk-test-client" if keys == "client" else b"Bearer sk-test-main"
    for request in up.requests:
        assert request.values("authorization") == [own]
        # A form may be found to ask for a stream when its head has long gone upstream.
        may_stream = b'"stream":true' in request.body or b"transcriptions" in request.target
        assert (request.header("accept-encoding") == b"identity") is may_stream, request.target
    assert wanted["v2"]["chat"]["message"]["content"][0]["text"].startswith("You said “Sag »grüß Gott« 🙂")
    assert wanted["v2"]["broken"][-1]["delta"]["finish_reason"] == "ERROR"
    assert len(wanted["v1"]["stream"]) == len(wanted["v1"]["stream_of_default_model"]) == 13
    await p.stop()
    chats = [line for line in p.lines if line["path"].endswith("/chat") and line["status"] == 200]
    assert len(chats) == 10
    billed = {"input_tokens": 5, "output_tokens": 11}
    assert [line["usage"] for line in chats] == [billed, billed, {}, *[billed] * 7]
    assert [line["model"] for line in p.lines].count("") == 4


async def test_pings_at_every_boundary(
    run_script: RunScript, straight: Straight, cohere: StartCohere, proxy: StartProxy, hop: StartHop
) -> None:
    """With comments before and between all events, and none at the end, the SDK sees what it sees without."""
    wanted, _ = await straight()
    gate = Gate(PING)
    up = await cohere("cohere", gate)
    p = await proxy(providers={"cohere": provider(up)}, ping_interval=0.02, **settings())
    gate.hop = between = await hop(p.port)
    seen = await run_script(SDK, "cohere_stream", f"http://127.0.0.1:{between.port}/cohere", KEY)
    assert seen["sync"] == seen["async"] == wanted["v2"]["stream"] == wanted["async"]["stream"]
    streams = streams_in(between.answers)
    assert len(streams) == len(up.streams) == 2
    for (_, content), events in zip(streams, up.streams, strict=True):
        assert len(events) == 16
        assert without_pings(content, PING, events, at_end=False) == b"".join(events)


async def test_no_ping_in_a_stream_of_lines(cohere: StartCohere, proxy: StartProxy) -> None:
    """A v1 stream is no server-sent events: it gets no ping while another stream gets three."""
    pinged, done = asyncio.Event(), asyncio.Event()

    async def wait(sent: list[bytes]) -> None:
        if sent and sent[0].startswith(b"event:"):
            await done.wait()
        elif len(sent) == 3:
            await pinged.wait()

    up = await cohere("cohere", wait)
    p = await proxy(providers={"cohere": provider(up)}, ping_interval=0.02, **settings())
    clock, lines = await p.connect(), await p.connect()
    asked = b'"model":"command-a-03-2025","stream":true}'
    await lines.send(post("/cohere/v1/chat", b'{"message":"Hi",' + asked))
    head = await lines.head()
    await lines.read_until(b"said")
    await clock.send(post("/cohere/v2/chat", b'{"messages":[{"role":"user","content":"Hi"}],' + asked))
    await clock.head()
    await clock.read_until(PING * 3)
    pinged.set()
    rest = await lines.rest()
    done.set()
    assert head.header("content-type") == b"application/stream+json"
    assert (rest.complete, rest.body) == (True, b"".join(up.streams[0]))
    assert (await clock.rest()).complete


SERVED = {
    "body": ("1", "cohere/demo-overloaded:503,cohere2/command-r7b-12-2024:200"),
    "header": (
        "2",
        "cohere/demo-overloaded:503,cohere2/demo-overloaded:503,cohere2/command-r7b-12-2024:200",
    ),
    "prefix": ("0", "cohere2/command-r7b-12-2024:200"),
    "prefix of the default": ("0", "cohere/command-r7b-12-2024:200"),
    "alias": ("0", "cohere2/command-r7b-12-2024:200"),
    "broken": ("1", "dead/command-r7b-12-2024:connect,cohere2/command-r7b-12-2024:200"),
    "no model": ("0", "cohere:200"),
}
"""Index and attempts of each kind of call."""


async def test_other_targets(
    run_script: RunScript, cohere: StartCohere, proxy: StartProxy, closed_port: int
) -> None:
    """Fallbacks of body and header, ``provider/model``, an alias, in v1 and v2, in JSON and in a form."""
    up, second = await cohere(), await cohere("cohere2")
    providers = {
        "cohere": provider(up),
        "cohere2": provider(second, "second"),
        "dead": provider(f"http://127.0.0.1:{closed_port}"),
    }
    p = await proxy(providers=providers, **settings(models={"ours": ["cohere2/command-r7b-12-2024"]}))
    seen = await run_script(SDK, "cohere_fallbacks", base_url(p), KEY)
    v1, v2 = seen["v1"], seen["v2"]
    assert v2.pop("transcription").endswith(" bytes were heard by cohere2.")
    assert v2.pop("rerank") == [1, 2, 0]
    assert v1.pop("tokens") == [3, 4]
    told = [(name.partition(",")[0], each["text"], each["served"]) for name, each in v2.items()]
    for name, each in v1.items():
        told += [(name, each["text"], each["served"]), (name, each["stream"], each["stream_served"])]
    assert len(told) == 20
    for name, text, served in told:
        index, attempts = SERVED[name]
        who = "cohere" if name in ("prefix of the default", "no model") else "cohere2"
        assert text == f"You said “Hello”.\u2028 Yours verbatim, {who} 🙂.", name
        assert served["provider"] == who, name
        assert (served["fallback-index"], served["attempts"]) == (index, attempts), name
    assert {request.header("authorization") for request in second.requests} == {b"Bearer sk-test-second"}
    for request in up.requests + second.requests:
        assert b"fallbacks" not in request.raw
        if request.target == b"/v2/audio/transcriptions":
            assert form_field(request, "model") == "cohere-transcribe-03-2026"
            assert request.body.count(b"\r\n--sound") == 1
        else:
            assert "/" not in json.loads(request.body).get("model", "")
