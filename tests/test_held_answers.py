"""Answers that wait while the plan goes on: which of them comes down, what of it, and when it is let go.

A primary's answer is held until the plan has ended; the first event of a stream is held while it could still
be an error; and with `early_stream_after` a stream of ours has begun before any of it is decided.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rawclient import Client, asked, post
from running import Proxy, StartProxy, StartUpstream, keyed
from scripted import (
    JSON_TYPE,
    LAST_CHUNK,
    MESSAGE,
    MESSAGE_EVENTS,
    PING,
    SSE_TYPE,
    Conn,
    Request,
    Step,
    answer,
    chunk,
    head,
    raw,
    refusal,
    sse,
    stream_head,
    streamed,
)

from proxy.attempt import MAX_HELD_BYTES
from proxy.config import NetworkConfig, Provider
from proxy.keys import Cooling
from proxy.outcome import Outcome
from proxy.plan import Target
from proxy.tries import Tries

MESSAGES = "/anthropic/v1/messages"
FIRST = MESSAGE_EVENTS[0]
WHOLE = b"".join(MESSAGE_EVENTS)
ONCE = {"max_retries": 0}
TO_BACKUP = ["backup/claude-2"]
EARLY = 0.05
OVERLOADED = refusal(529, "overloaded_error", [(b"x-a", b"1")], "the primary's")


async def ask(p: Proxy, fallbacks: list[str] | None = None) -> Client:
    """A client that has asked for a stream."""
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True, fallbacks=fallbacks)))
    return client


def error_event(data: bytes) -> dict[str, Any]:
    """The data of the one event that `data` is, which must be an error as the provider spells it."""
    assert data.startswith(b"event: error\ndata: {"), data
    assert data.endswith(b"\n\n")
    assert data.count(b"\n") == 3
    return dict(json.loads(data.split(b"\n")[1].removeprefix(b"data: ")))


# Who is asked, and with what.


async def test_a_default_provider_without_keys_gets_no_credentials(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """`is_key_less` says that the provider wants none, so it sees none, of the client's least of all."""
    up = await upstream(answer(body=MESSAGE))
    p = await proxy({"base_urls": {"anthropic": up.url}, "is_key_less": True})
    fields = [(name, b"sk-test-other") for name in (b"Authorization", b"x-goog-api-key", b"api-key")]
    assert (await p.post(MESSAGES, asked(), fields)).status == 200
    assert b"sk-test" not in up.requests[0].raw
    assert b"authorization" not in up.requests[0].raw.lower()


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_refusal_by_a_provider_without_keys_moves_on(
    upstream: StartUpstream, proxy: StartProxy, status: int
) -> None:
    """It is not about the client's key, which it was not shown; the next target may help."""
    up, backup = await upstream(refusal(status)), await upstream(answer(body=MESSAGE))
    key_less = {"base_urls": {"anthropic": up.url}, "is_key_less": True}
    p = await proxy(providers={"anthropic": key_less, "backup": keyed(backup, "main")})
    response = await p.post(MESSAGES, asked(fallbacks=TO_BACKUP))
    assert (response.status, response.body) == (200, MESSAGE)
    assert response.header("x-bifrost-attempts") == b"anthropic/claude-2:%d,backup/claude-2:200" % status


# The primary's answer.


async def resets(conn: Conn) -> None:
    await conn.request()
    conn.reset()


async def closes(conn: Conn) -> None:
    await conn.request()
    await conn.close()


async def stays_silent(conn: Conn) -> None:
    await conn.request()
    await conn.gone()


async def breaks(conn: Conn) -> None:
    await conn.request()
    await conn.send(b"HTTP/1.1 200 OK\r\nContent-Le")
    await conn.close()


NO_ANSWER = {
    "reset": (resets, "reset"),
    "closed": (closes, "reset"),
    "silence": (stays_silent, "timeout"),
    "half a head": (breaks, "protocol"),
}


def closing(data: bytes) -> bytes:
    """`data`, an answer, on a connection that carries no further request."""
    return data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


@pytest.mark.parametrize("how", NO_ANSWER)
@pytest.mark.parametrize("fallback", [False, True], ids=["alone", "with a fallback that fails"])
async def test_a_retry_that_is_lost_does_not_lose_the_answer(
    upstream: StartUpstream, proxy: StartProxy, how: str, fallback: bool
) -> None:
    """What the primary said goes down, status, fields and body, though it said nothing when asked again."""
    step, event = NO_ANSWER[how]
    up = await upstream(closing(OVERLOADED), raw(step))
    backup = await upstream(*[refusal(503)] * 2 * fallback)
    # Only silence may meet the timer, however slow the machine is.
    first_byte = 1.0 if how == "silence" else 60
    p = await proxy(
        providers={"anthropic": up, "backup": backup},
        network={"max_retries": 1, "first_byte_timeout": first_byte},
    )
    response = await p.post(MESSAGES, asked(fallbacks=TO_BACKUP if fallback else None))
    _, _, body = OVERLOADED.partition(b"\r\n\r\n")
    assert (response.status, response.reason, response.body) == (529, b"", body)
    assert (response.header("x-a"), response.header("request-id")) == (b"1", b"req_upstream")
    assert response.complete
    attempts = (response.header("x-bifrost-attempts") or b"").split(b",")
    assert attempts[:2] == [b"anthropic/claude-2:529", b"anthropic/claude-2:" + event.encode()]
    assert len(attempts) == (4 if fallback else 2)
    line = await p.line()
    assert (line["status"], line["ending"], line["provider"]) == (529, "--", "anthropic")


async def test_a_lost_retry_moves_on_as_a_lost_request_does(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """The answer that is kept does not stand in the way of a fallback that can help."""
    up, backup = await upstream(closing(OVERLOADED), raw(resets)), await upstream(answer(body=MESSAGE))
    p = await proxy(providers={"anthropic": up, "backup": backup}, network={"max_retries": 1})
    response = await p.post(MESSAGES, asked(fallbacks=TO_BACKUP))
    assert (response.status, response.body, response.header("x-bifrost-provider")) == (
        200,
        MESSAGE,
        b"backup",
    )


async def test_a_held_answer_has_the_time_that_the_plan_takes(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Nobody waits for a primary's body while a fallback is tried, so no timer runs against it."""
    came = asyncio.Event()

    async def late_body(conn: Conn, _: Request) -> None:
        await conn.send(head(529, [JSON_TYPE, (b"Content-Length", b"10")]) + b"hello")
        await asyncio.sleep(1.2)
        await conn.send(b"world")
        came.set()
        await conn.gone()

    async def later_still(conn: Conn, _: Request) -> None:
        await came.wait()
        await conn.send(refusal(500))

    up, backup = await upstream(late_body), await upstream(later_still)
    p = await proxy(providers={"anthropic": up, "backup": backup}, network={**ONCE, "idle_timeout": 0.6})
    response = await p.post(MESSAGES, asked(fallbacks=TO_BACKUP))
    assert (response.status, response.body, response.complete) == (529, b"helloworld", True)
    assert (await p.line())["ending"] == "--"


# What is not needed any more is let go at once.


def unfinished(status: int) -> Step:
    """A refusal whose body does not end, so that its connection stays open until the proxy leaves."""

    async def play(conn: Conn, _: Request) -> None:
        await conn.send(head(status, [JSON_TYPE, (b"Content-Length", b"1000")]) + b"{")
        await conn.gone()

    return play


async def unfinished_error(conn: Conn, _: Request) -> None:
    await conn.send(stream_head() + chunk(sse("error", {"type": "error", "error": {"type": "api_error"}})))
    await conn.gone()


LOST: dict[str, tuple[list[Step], list[Step]]] = {
    "the primary": ([unfinished(529)], []),
    "the primary, an error event": ([unfinished_error], []),
    "a fallback": ([unfinished(529)], [unfinished(503)]),
    "a fallback, an error event": ([unfinished(529)], [unfinished_error]),
    "a fallback, 404": ([unfinished(529)], [unfinished(404)]),
}
"""What the primary answers, and what the first fallback does where there is one; the last target streams."""


@pytest.mark.parametrize("case", LOST)
async def test_lost_answers_are_let_go_while_the_request_runs(
    upstream: StartUpstream, proxy: StartProxy, case: str
) -> None:
    """Nobody pays for what nobody will read: their connections are closed when another target serves."""
    primary, between = LOST[case]
    up, middle = await upstream(*primary), await upstream(*between)

    async def serves(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(FIRST))
        for lost in (*up.conns, *middle.conns):
            await lost.gone()
        await conn.send(b"".join(map(chunk, MESSAGE_EVENTS[1:])) + LAST_CHUNK)

    last = await upstream(serves)
    p = await proxy(providers={"anthropic": up, "middle": middle, "last": last}, network=ONCE)
    fallbacks = ["middle/x", "last/x"] if between else ["last/x"]
    response = await p.post(MESSAGES, asked(stream=True, fallbacks=fallbacks))
    assert (response.status, response.body, response.complete) == (200, WHOLE, True)
    assert middle.arrived == len(between)


async def test_a_lost_fallback_is_let_go_while_the_primary_is_relayed(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """When all fail only the primary's answer is still of use."""
    backup = await upstream(unfinished(503))

    async def ends_later(conn: Conn, _: Request) -> None:
        await conn.send(head(529, [JSON_TYPE, (b"Content-Length", b"2")]) + b"{")
        await backup.received()
        await backup.conns[0].gone()
        await conn.send(b"}")

    up = await upstream(ends_later)
    p = await proxy(providers={"anthropic": up, "backup": backup}, network=ONCE)
    response = await p.post(MESSAGES, asked(fallbacks=TO_BACKUP))
    assert (response.status, response.body, response.complete) == (529, b"{}", True)


async def test_an_answer_is_let_go_when_its_retry_answers(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Of several answers of one target the last counts."""

    async def second(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(FIRST))
        await up.conns[0].gone()
        await conn.send(LAST_CHUNK)

    up = await upstream(unfinished(529), second)
    p = await proxy(up, network={"max_retries": 1})
    response = await p.post(MESSAGES, asked(stream=True))
    assert (response.body, response.complete) == (FIRST, True)


# The first event, held back while targets remain.


async def test_a_dribbled_first_event_is_held_for_one_interval_in_all(
    upstream: StartUpstream, proxy: StartProxy, machine: Callable[[], float]
) -> None:
    """A byte now and then does not start the time anew: the head and what there is go down."""
    seen = asyncio.Event()

    async def dribbles(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        for byte in FIRST[:-1]:
            await conn.send(chunk(bytes((byte,))))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(seen.wait(), 0.04)
            if seen.is_set():
                break
        await conn.gone()

    up, backup = await upstream(dribbles), await upstream()
    p = await proxy(providers={"anthropic": up, "backup": backup}, ping_interval=0.2)
    clock = asyncio.get_running_loop().time
    started = clock()
    client = await ask(p, TO_BACKUP)
    response = await client.head()
    assert 0.1 < clock() - started < 2 + machine()
    assert response.status == 200
    await client.read_until(FIRST[:3])
    seen.set()
    assert FIRST.startswith(client.received)
    client.close()


async def test_an_endless_first_event_is_held_up_to_a_bound(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """What is larger than `MAX_HELD_BYTES` is relayed, though a target remains that could be tried."""
    seen = asyncio.Event()
    data = b"data: " + b"x" * 122 + b"\n"
    count = MAX_HELD_BYTES // len(data) + 1

    async def endless(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        for _ in range(count):
            await conn.send(chunk(data))
        await seen.wait()
        await conn.send(chunk(b"\n") + LAST_CHUNK)

    up, backup = await upstream(endless), await upstream()
    p = await proxy(providers={"anthropic": up, "backup": backup}, ping_interval=0)
    client = await ask(p, TO_BACKUP)
    await client.head()
    await client.wire.until(lambda: len(client.received) >= count * len(data), "what was held")
    seen.set()
    response = await client.rest()
    assert (response.body, response.complete) == (data * count + b"\n", True)


async def test_a_large_first_event_within_the_bound_is_held(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Just below the bound nothing has gone down, so a cut there still moves on."""
    up, backup = await upstream(), await upstream(streamed(MESSAGE_EVENTS))

    async def cut(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(b"data: " + b"x" * (MAX_HELD_BYTES - 100)))
        await conn.close()

    up.then(cut)
    p = await proxy(providers={"anthropic": up, "backup": backup}, ping_interval=0)
    response = await p.post(MESSAGES, asked(stream=True, fallbacks=TO_BACKUP))
    assert (response.body, response.complete) == (WHOLE, True)
    assert response.header("x-bifrost-attempts") == b"anthropic/claude-2:stream_error,backup/claude-2:200"


# The end of a stream.


@pytest.mark.parametrize("pieces", [1, 2], ids=["one chunk", "two chunks"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "data only"])
async def test_no_ping_after_a_long_end(
    upstream: StartUpstream, proxy: StartProxy, named: bool, end: bytes, pieces: int
) -> None:
    """`message_stop` is the end with 300 bytes of a provider's own metrics in it, too."""
    data: dict[str, object] = {"type": "message_stop", "metrics": {"x": ""}}
    data["metrics"] = {"x": "y" * (300 - len(json.dumps(data)))}
    assert len(json.dumps(data)) == 300
    last = sse("message_stop" if named else None, data).replace(b"\n", end)
    parts = [last] if pieces == 1 else [last[:150], last[150:]]

    def silent_after(sent: bytes) -> Step:
        async def play(conn: Conn, _: Request) -> None:
            await conn.send(sent)
            await conn.gone()

        return play

    begun = stream_head() + chunk(FIRST)
    up = await upstream(silent_after(begun), silent_after(begun + b"".join(map(chunk, parts))))
    p = await proxy(up, ping_interval=0.03)
    clock = await ask(p)
    await clock.head()
    client = await ask(p)
    await client.head()
    await client.read_until(last)
    for _ in range(3):
        await clock.read_until(PING)
    assert client.received == FIRST + last


# A stream of ours that has begun before upstream's.


async def test_no_request_is_sent_after_an_early_commit(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A backoff in which the stream is begun ends the plan: the answer that there is becomes an event."""
    begun = asyncio.Event()
    start, rest = OVERLOADED[:-20], OVERLOADED[-20:]

    async def in_two_parts(conn: Conn, _: Request) -> None:
        await conn.send(start)
        await begun.wait()
        await conn.send(rest)

    up, backup = await upstream(in_two_parts), await upstream()
    network = {"max_retries": 3, "retry_backoff_initial": 1, "retry_backoff_max": 1}
    p = await proxy(
        providers={"anthropic": up, "backup": backup},
        early_stream_after=EARLY,
        ping_interval=0,
        network=network,
    )
    client = await ask(p, TO_BACKUP)
    assert (await client.head()).status == 200
    begun.set()
    response = await client.rest()
    assert response.complete
    assert error_event(response.body)["error"] == {"type": "overloaded_error", "message": "the primary's"}
    assert (up.arrived, backup.arrived) == (1, 0)
    line = await p.line()
    assert (line["status"], line["ending"]) == (200, "UD")
    assert line["attempts"] == ["anthropic/claude-2:529"]


@pytest.mark.parametrize("ping_interval", [5, 0], ids=["no ping due", "no pings"])
async def test_an_early_commit_loses_no_held_byte(
    upstream: StartUpstream, proxy: StartProxy, ping_interval: float
) -> None:
    """Half an event was held back when the stream of ours began; it goes down before the rest."""
    go_on = asyncio.Event()
    half = FIRST[: len(FIRST) // 2]

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(half))
        await go_on.wait()
        await conn.send(chunk(WHOLE.removeprefix(half)) + LAST_CHUNK)

    up, backup = await upstream(step), await upstream()
    p = await proxy(
        providers={"anthropic": up, "backup": backup}, early_stream_after=EARLY, ping_interval=ping_interval
    )
    client = await ask(p, TO_BACKUP)
    response = await client.head()
    assert response.header("cache-control") == b"no-cache"
    go_on.set()
    response = await client.rest()
    assert (response.body, response.complete) == (WHOLE, True)
    assert (await p.line())["ending"] == "--"


async def test_no_ping_comes_into_what_was_held(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Half an event that is held no more stays half an event until its rest comes, pings before it or not."""
    go_on = asyncio.Event()
    half = FIRST[: len(FIRST) // 2]

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(half))
        await go_on.wait()
        await conn.send(chunk(WHOLE.removeprefix(half)) + LAST_CHUNK)

    async def silent(conn: Conn, _: Request) -> None:
        await conn.send(stream_head())
        await conn.gone()

    up, backup = await upstream(step), await upstream(silent)
    # Longer than it takes to begin a stream, so that it begins while the half event is held.
    p = await proxy(
        providers={"anthropic": up, "backup": keyed(backup, "main")},
        early_stream_after=EARLY,
        ping_interval=0.4,
    )
    client = await ask(p, TO_BACKUP)
    assert (await client.head()).header("cache-control") == b"no-cache"
    before = (await client.read_until(half)).removesuffix(half)
    assert before == PING * (len(before) // len(PING))
    clock = await p.connect()
    await clock.send(post(MESSAGES, asked("backup/claude-2", stream=True)))
    await clock.head()
    for _ in range(2):
        await clock.read_until(PING)
    assert client.received == before + half
    go_on.set()
    response = await client.rest()
    assert (response.body, response.complete) == (before + WHOLE, True)


async def samples(p: Proxy) -> dict[str, float]:
    """The sum of each series that starts with Bifrost's prefix."""
    response = await p.get("/metrics")
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(response.body.decode()):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return sums


LATE: dict[str, tuple[bytes, str]] = {
    "529": (OVERLOADED, "The provider answered 529 without a stream."),
    "401": (refusal(401), "The provider answered 401 without a stream."),
    "a message": (answer(body=MESSAGE), "The provider answered 200 without a stream."),
    "an error without a body": (answer(503, [], b""), "The provider answered 503 without a stream."),
    "an error as a stream": (
        head(500, [SSE_TYPE, (b"Content-Length", b"%d" % len(FIRST))]) + FIRST,
        "The provider answered 500 without a stream.",
    ),
}


@pytest.mark.parametrize("case", LATE)
async def test_a_late_error_is_logged_as_one(upstream: StartUpstream, proxy: StartProxy, case: str) -> None:
    """The status 200 was ours; the log and the metrics say what it came to."""
    go_on = asyncio.Event()
    data, message = LATE[case]

    async def late(conn: Conn, _: Request) -> None:
        await go_on.wait()
        await conn.send(data)

    p = await proxy(await upstream(late), early_stream_after=EARLY, ping_interval=0, network=ONCE)
    client = await ask(p)
    await client.head()
    go_on.set()
    response = await client.rest()
    assert response.complete
    assert error_event(response.body)["type"] == "error"
    line = await p.line()
    assert (line["status"], line["ending"], line["error"]) == (200, "UD", message)
    counted = await samples(p)
    assert counted["bifrost_upstream_requests_total"] == 1
    assert counted.get("bifrost_success_requests_total", 0) == 0
    assert counted["bifrost_error_requests_total"] == 1


@pytest.mark.parametrize("how", ["reset", "closed", "half a head"])
async def test_a_late_failure_is_logged_as_one(upstream: StartUpstream, proxy: StartProxy, how: str) -> None:
    """So is an upstream that did not answer at all."""
    go_on = asyncio.Event()
    play, _ = NO_ANSWER[how]

    async def late(conn: Conn) -> None:
        await go_on.wait()
        await play(conn)

    p = await proxy(await upstream(raw(late)), early_stream_after=EARLY, ping_interval=0, network=ONCE)
    client = await ask(p)
    await client.head()
    go_on.set()
    assert error_event((await client.rest()).body)["error"]["type"] == "api_error"
    line = await p.line()
    assert (line["status"], line["ending"]) == (200, "UD")
    assert line["error"].startswith("The provider")
    assert (await samples(p)).get("bifrost_success_requests_total", 0) == 0


@pytest.mark.parametrize("begun", [True, False], ids=["after the commit", "before the commit"])
async def test_a_client_that_leaves_as_the_plan_ends_leaves_no_answer(
    upstream: StartUpstream, proxy: StartProxy, begun: bool
) -> None:
    """Upstream's head and the client's reset come in one turn of the loop: the answer is not forgotten."""
    asked_for, go_on = asyncio.Event(), asyncio.Event()
    clients: list[Client] = []

    async def both_at_once(conn: Conn, _: Request) -> None:
        asked_for.set()
        await go_on.wait()
        # No turn of the loop between the two, and the proxy runs in the same loop.
        conn._wire.transport.write(stream_head() + chunk(FIRST))
        clients[-1].reset()

    rounds = 20
    steps: list[Step] = [both_at_once] * rounds
    up = await upstream(*steps)
    p = await proxy(up, early_stream_after=0.02 if begun else 30, ping_interval=0)
    for _ in range(rounds):
        asked_for.clear()
        go_on.clear()
        clients.append(await ask(p))
        await asked_for.wait()
        if begun:
            await clients[-1].head()
        go_on.set()
        assert (await p.line())["ending"][0] == "D"
    await up.quiet()
    assert up.open == 0


# Backoff.


def drawn(retries: int, rng: random.Random, network: NetworkConfig) -> list[float]:
    """The waits of one target that answers 503 again and again."""
    provider = Provider(name="p", base_urls={"anthropic": "http://127.0.0.1:1"}, network_config=network)
    target = Target(0, provider, "m", (), is_default=True)
    tries = Tries(target, Cooling(time.monotonic), rng, direct=False)
    waits = [tries.wait_after(Outcome(target, "503")) for _ in range(retries)]
    assert tries.wait_after(Outcome(target, "503")) is None
    return [wait for wait in waits if wait is not None]


def test_backoff_has_jitter() -> None:
    """Each wait is 0.8 to 1.2 of its nominal length, spread evenly: clients that failed together part."""
    network = NetworkConfig(max_retries=4, retry_backoff_initial=0.1, retry_backoff_max=60.0)
    rng = random.Random(20261121)
    series = [drawn(4, rng, network) for _ in range(500)]
    for number, nominal in enumerate((0.1, 0.2, 0.4, 0.8)):
        ratios = [waits[number] / nominal for waits in series]
        assert 0.8 <= min(ratios) < 0.82
        assert 1.18 < max(ratios) <= 1.2 + 1e-9
        assert len(set(ratios)) > 400
        assert statistics.fmean(ratios) == pytest.approx(1, abs=0.02)


def test_jitter_does_not_exceed_the_longest_wait() -> None:
    """`retry_backoff_max` holds with the jitter, and the shorter half of the spread stays."""
    network = NetworkConfig(max_retries=3, retry_backoff_initial=1.0, retry_backoff_max=1.0)
    rng = random.Random(20261121)
    waits = [wait for _ in range(500) for wait in drawn(3, rng, network)]
    assert max(waits) == 1.0
    assert 0.8 <= min(waits) < 0.82
