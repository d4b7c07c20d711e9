"""What is tried again, where, and what is not: the table of retries and fallbacks, row by row.

Before the first byte goes downstream everything may be tried again by rule, each time from the original
bytes; after it nothing is.
"""

from __future__ import annotations

import asyncio
import email.utils
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from rawclient import Response, asked, post
from running import StartProxy, StartUpstream, keyed
from scripted import (
    ERROR_EVENT,
    JSON_TYPE,
    LAST_CHUNK,
    MESSAGE,
    MESSAGE_EVENTS,
    PING,
    Conn,
    Raw,
    Request,
    Step,
    Upstream,
    answer,
    chunk,
    raw,
    refusal,
    stream_head,
    streamed,
)

MESSAGES = "/anthropic/v1/messages"
WHOLE = b"".join(MESSAGE_EVENTS)
TO_BACKUP = ["backup/claude-2"]
GOOD = {False: answer(body=MESSAGE), True: streamed(MESSAGE_EVENTS)}
GOOD_BODY = {False: MESSAGE, True: WHOLE}


async def resets(conn: Conn) -> None:
    await conn.request()
    conn.reset()


async def resets_early(conn: Conn) -> None:
    await conn.read_until(b"\r\n\r\n")
    conn.reset()


async def closes(conn: Conn) -> None:
    await conn.request()
    await conn.close()


async def stays_silent(conn: Conn) -> None:
    await conn.request()
    await conn.gone()


NO_ANSWER: dict[str, tuple[Raw, str]] = {
    "reset": (raw(resets), "reset"),
    "reset in the body": (raw(resets_early), "reset"),
    "closed": (raw(closes), "reset"),
}
"""Upstreams that end the connection before any byte of an answer, and the name of the event."""

STATUSES = {str(status): (refusal(status), str(status)) for status in (408, 429, 500, 502, 503, 504, 529)}
SAME_TARGET: dict[str, tuple[Step, str]] = {**NO_ANSWER, **STATUSES}
"""What is tried again on the same target."""

NEXT_TARGET: dict[str, tuple[Step, str]] = {
    **SAME_TARGET,
    "silence": (raw(stays_silent), "timeout"),
    "404": (refusal(404), "404"),
}
"""What moves on to the next target. A refused connection and a refused key have tests of their own."""

FINAL = {str(status): refusal(status) for status in (400, 401, 402, 403, 405, 409, 413, 422, 501)}
"""Answers that are relayed as they are, when the key is the client's."""


def primary(up: Upstream, event: str) -> dict[str, Any]:
    """The provider that fails; it has little time only where it uses it up, however slow the machine is."""
    network = {"first_byte_timeout": 0.2} if event == "silence" else {}
    return {"base_urls": {"anthropic": up.url}, "network_config": network}


def attempts(response: Response) -> list[bytes]:
    return (response.header("x-bifrost-attempts") or b"").split(b",")


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("event", SAME_TARGET)
async def test_the_same_target_is_tried_again(
    upstream: StartUpstream, proxy: StartProxy, event: str, stream: bool
) -> None:
    """A failure that may pass is tried again with the same bytes, and the client sees the good answer."""
    step, name = SAME_TARGET[event]
    up = await upstream(step, GOOD[stream])
    p = await proxy(up, network={"max_retries": 1})
    response = await p.post(MESSAGES, asked(stream=stream))
    assert (response.status, response.body, response.complete) == (200, GOOD_BODY[stream], True)
    assert attempts(response) == [f"anthropic/claude-2:{name}".encode(), b"anthropic/claude-2:200"]
    assert response.header("x-bifrost-fallback-index") == b"0"
    assert len({request.raw for request in up.requests}) == 1
    assert up.arrived == 2
    line = await p.line()
    assert line["attempts"] == [f"anthropic/claude-2:{name}", "anthropic/claude-2:200"]
    assert (line["status"], line["ending"]) == (200, "--")


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("event", NEXT_TARGET)
async def test_the_next_target_is_tried(
    upstream: StartUpstream, proxy: StartProxy, event: str, stream: bool
) -> None:
    """When the primary fails, the next target answers, and the headers and the log say who it was."""
    step, name = NEXT_TARGET[event]
    up, backup = await upstream(step), await upstream(GOOD[stream])
    p = await proxy(providers={"anthropic": primary(up, event), "backup": backup}, network={"max_retries": 0})
    response = await p.post(MESSAGES, asked(stream=stream, fallbacks=["backup/claude-3"]))
    assert (response.status, response.body, response.complete) == (200, GOOD_BODY[stream], True)
    assert attempts(response) == [f"anthropic/claude-2:{name}".encode(), b"backup/claude-3:200"]
    assert response.header("x-bifrost-provider") == b"backup"
    assert response.header("x-bifrost-original-model") == b"claude-2"
    assert response.header("x-bifrost-resolved-model") == b"claude-3"
    assert response.header("x-bifrost-fallback-index") == b"1"
    assert response.header("request-id") is None, "a header of the failed attempt came down"
    line = await p.line()
    assert line["attempts"] == [f"anthropic/claude-2:{name}", "backup/claude-3:200"]
    assert (line["provider"], line["model"], line["served_model"]) == ("backup", "claude-2", "claude-3")


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_a_refused_connection_is_tried_again_and_moves_on(
    upstream: StartUpstream, proxy: StartProxy, closed_port: int, stream: bool
) -> None:
    """A target that refuses connections is tried `max_retries` times more, then the next one."""
    backup = await upstream(GOOD[stream])
    dead = {"base_urls": {"anthropic": f"http://127.0.0.1:{closed_port}"}}
    p = await proxy(providers={"anthropic": dead, "backup": backup}, network={"max_retries": 2})
    response = await p.post(MESSAGES, asked(stream=stream, fallbacks=TO_BACKUP))
    assert (response.status, response.body) == (200, GOOD_BODY[stream])
    assert attempts(response) == [b"anthropic/claude-2:connect"] * 3 + [b"backup/claude-2:200"]


async def test_a_name_that_does_not_resolve_moves_on(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A DNS failure is a failure to connect."""
    backup = await upstream(GOOD[False])
    lost = {"base_urls": {"anthropic": "https://upstream.invalid"}}
    p = await proxy(providers={"anthropic": lost, "backup": backup}, network={"max_retries": 0})
    response = await p.post(MESSAGES, asked(fallbacks=TO_BACKUP))
    assert attempts(response) == [b"anthropic/claude-2:connect", b"backup/claude-2:200"]


@pytest.mark.parametrize("event", ["silence", "404"])
async def test_the_same_target_is_not_asked_twice(
    upstream: StartUpstream, proxy: StartProxy, event: str
) -> None:
    """After a timeout (it may be billed) and a 404 (the model is gone) the target is not asked again."""
    step, name = NEXT_TARGET[event]
    up, backup = await upstream(step), await upstream(GOOD[False])
    p = await proxy(providers={"anthropic": primary(up, event), "backup": backup}, network={"max_retries": 5})
    response = await p.post(MESSAGES, asked(fallbacks=TO_BACKUP))
    assert attempts(response) == [f"anthropic/claude-2:{name}".encode(), b"backup/claude-2:200"]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("status", FINAL)
async def test_an_answer_that_is_about_the_request_is_final(
    upstream: StartUpstream, proxy: StartProxy, status: str, stream: bool
) -> None:
    """An error that is the request's own fault is relayed at once: no retry, and no fallback."""
    up, backup = await upstream(FINAL[status]), await upstream()
    p = await proxy(providers={"anthropic": up, "backup": backup}, network={"max_retries": 5})
    response = await p.post(MESSAGES, asked(stream=stream, fallbacks=TO_BACKUP))
    assert (response.status, response.body) == (int(status), FINAL[status].partition(b"\r\n\r\n")[2])
    assert response.header("request-id") == b"req_upstream"
    assert attempts(response) == [f"anthropic/claude-2:{status}".encode()]
    assert backup.arrived == 0


async def test_redirects_are_relayed_and_never_followed(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Following a redirect would show the body and the key to somebody else."""
    other = await upstream()
    up = await upstream(answer(307, [(b"Location", other.url.encode() + b"/v1/messages")]))
    p = await proxy(up)
    response = await p.post(MESSAGES, asked())
    assert (response.status, response.header("location")) == (307, other.url.encode() + b"/v1/messages")
    assert other.arrived == 0


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_max_retries_counts_the_tries_after_the_first(
    upstream: StartUpstream, proxy: StartProxy, retries: int
) -> None:
    """`max_retries` more tries, not one more; then the client gets the failure as upstream sent it."""
    failure = refusal(529, "overloaded_error", [(b"x-should-retry", b"true")])
    up = await upstream(*[failure] * (retries + 1))
    p = await proxy(up, network={"max_retries": retries})
    response = await p.post(MESSAGES, asked())
    assert (response.status, response.body) == (529, failure.partition(b"\r\n\r\n")[2])
    assert response.header("x-should-retry") == b"true"
    assert up.arrived == retries + 1
    assert attempts(response) == [b"anthropic/claude-2:529"] * (retries + 1)


async def test_every_target_has_retries_of_its_own(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Each provider's own `max_retries` counts for its targets."""
    up = await upstream(refusal(503), refusal(503))
    backup = await upstream(refusal(503), refusal(503), refusal(503), GOOD[False])
    providers = {
        "anthropic": {"base_urls": {"anthropic": up.url}, "network_config": {"max_retries": 1}},
        "backup": {"base_urls": {"anthropic": backup.url}, "network_config": {"max_retries": 3}},
    }
    p = await proxy(providers=providers)
    response = await p.post(MESSAGES, asked(fallbacks=TO_BACKUP))
    assert response.status == 200
    assert attempts(response) == (
        [b"anthropic/claude-2:503"] * 2 + [b"backup/claude-2:503"] * 3 + [b"backup/claude-2:200"]
    )


async def test_targets_are_tried_in_the_order_of_the_plan(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The first target that answers ends the plan; those after it are never asked."""
    first, second, third, fourth = (
        await upstream(refusal(500)),
        await upstream(refusal(502)),
        await upstream(GOOD[False]),
        await upstream(),
    )
    p = await proxy(
        providers={"first": first, "second": second, "third": third, "fourth": fourth},
        network={"max_retries": 0},
    )
    response = await p.post(MESSAGES, asked(fallbacks=["second/b", "third/c", "fourth/d"]))
    assert attempts(response) == [b"first/claude-2:500", b"second/b:502", b"third/c:200"]
    assert response.header("x-bifrost-fallback-index") == b"2"
    assert fourth.arrived == 0


# Keys of the provider's own.


async def test_a_429_takes_the_next_key_at_once(upstream: StartUpstream, proxy: StartProxy) -> None:
    """With another key there is no reason to wait, and no retry is used up."""
    up = await upstream(refusal(429, headers=[(b"retry-after", b"60")]), GOOD[False])
    network = {"max_retries": 0, "retry_backoff_initial": 30, "retry_backoff_max": 30}
    p = await proxy(keyed(up, "one", "two"), network=network)
    response = await p.post(MESSAGES, asked())
    assert response.status == 200
    assert attempts(response) == [b"anthropic/claude-2:429", b"anthropic/claude-2:200"]
    used = [request.header("x-api-key") for request in up.requests]
    assert sorted(filter(None, used)) == [b"sk-test-one", b"sk-test-two"]


async def test_a_429_without_another_key_waits_out_the_backoff(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """The last key is tried again after the backoff, `max_retries` times, before the next target."""
    up, backup = await upstream(*[refusal(429)] * 3), await upstream(GOOD[False])
    p = await proxy(
        providers={"anthropic": keyed(up, "one", "two"), "backup": backup}, network={"max_retries": 1}
    )
    response = await p.post(MESSAGES, asked(fallbacks=TO_BACKUP))
    assert attempts(response) == [b"anthropic/claude-2:429"] * 3 + [b"backup/claude-2:200"]


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_refused_key_of_ours_is_replaced_at_once(
    upstream: StartUpstream, proxy: StartProxy, status: int
) -> None:
    """Our key is dead, not the request: every other key is tried, without waiting and without a retry."""
    up = await upstream(refusal(status), refusal(status), GOOD[False])
    network = {"max_retries": 0, "retry_backoff_initial": 30, "retry_backoff_max": 30}
    p = await proxy(keyed(up, "one", "two", "three"), network=network)
    response = await p.post(MESSAGES, asked())
    assert response.status == 200
    assert len({request.header("x-api-key") for request in up.requests}) == 3
    assert up.arrived == 3


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_refused_keys_of_ours_move_on_to_the_next_target(
    upstream: StartUpstream, proxy: StartProxy, status: int
) -> None:
    """A dead key is not used twice; when all are dead the next target is tried."""
    up, backup = await upstream(refusal(status), refusal(status)), await upstream(GOOD[False])
    p = await proxy(
        providers={"anthropic": keyed(up, "one", "two"), "backup": backup}, network={"max_retries": 5}
    )
    response = await p.post(MESSAGES, asked(fallbacks=TO_BACKUP))
    assert attempts(response) == [b"anthropic/claude-2:%d" % status] * 2 + [b"backup/claude-2:200"]


async def test_the_clients_own_refused_key_is_told_to_the_client(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """With the client's own key a 401 is final: only the client can do something about it."""
    up, backup = await upstream(refusal(401, "authentication_error")), await upstream()
    p = await proxy(providers={"anthropic": up, "backup": keyed(backup, "other")})
    response = await p.post(MESSAGES, asked(fallbacks=TO_BACKUP))
    assert response.status == 401
    assert json.loads(response.body)["error"]["type"] == "authentication_error"
    assert backup.arrived == 0


# Waiting.


def timed(step: bytes, arrivals: list[float]) -> Step:
    """`step`, with the time of the request's arrival noted."""

    async def play(conn: Conn, _: Request) -> None:
        arrivals.append(asyncio.get_running_loop().time())
        await conn.send(step)

    return play


async def test_backoff_grows(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The waits double from `retry_backoff_initial` on; jitter takes at most half of one away."""
    arrivals: list[float] = []
    up = await upstream(*[timed(refusal(503), arrivals)] * 3, timed(GOOD[False], arrivals))
    network = {"max_retries": 3, "retry_backoff_initial": 0.04, "retry_backoff_max": 5}
    p = await proxy(up, network=network)
    assert (await p.post(MESSAGES, asked())).status == 200
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    assert [gap >= 0.02 * 2**n for n, gap in enumerate(gaps)] == [True] * 3, gaps


async def test_backoff_is_capped(
    upstream: StartUpstream, proxy: StartProxy, machine: Callable[[], float]
) -> None:
    """No wait is longer than `retry_backoff_max`, however many retries there were."""
    up = await upstream(*[refusal(503)] * 10, GOOD[False])
    network = {"max_retries": 10, "retry_backoff_initial": 0.01, "retry_backoff_max": 0.01}
    p = await proxy(up, network=network)
    started = time.monotonic()
    assert (await p.post(MESSAGES, asked())).status == 200
    # Ten capped waits take 0.1 s at most; ten uncapped ones would take 5 s at least.
    assert time.monotonic() - started < 3 + machine()


@pytest.mark.parametrize(
    "header", [(b"retry-after-ms", b"120"), (b"retry-after", b"0.12")], ids=lambda header: header[0].decode()
)
@pytest.mark.parametrize("status", [429, 503, 529])
async def test_retry_after_is_obeyed(
    upstream: StartUpstream, proxy: StartProxy, header: tuple[bytes, bytes], status: int
) -> None:
    """Upstream's own wait, where it is longer than the backoff, is waited out on the same target."""
    arrivals: list[float] = []
    up = await upstream(timed(refusal(status, headers=[header]), arrivals), timed(GOOD[False], arrivals))
    network = {"max_retries": 1, "retry_backoff_initial": 0.001, "retry_backoff_max": 5}
    p = await proxy(up, network=network)
    assert (await p.post(MESSAGES, asked())).status == 200
    assert arrivals[1] - arrivals[0] >= 0.12


TOO_LONG = {
    "seconds": b"60",
    "absurd": b"1000000000",
    "infinite": b"inf",
    "date": email.utils.formatdate(time.time() + 3600, usegmt=True).encode(),
}


@pytest.mark.parametrize("value", TOO_LONG.values(), ids=TOO_LONG)
async def test_a_longer_retry_after_moves_on_at_once(
    upstream: StartUpstream, proxy: StartProxy, value: bytes
) -> None:
    """A wait beyond `retry_backoff_max` is not waited out: the next target is taken."""
    up = await upstream(refusal(429, headers=[(b"Retry-After", value)]))
    backup = await upstream(GOOD[False])
    p = await proxy(providers={"anthropic": up, "backup": backup}, network={"max_retries": 3})
    response = await p.post(MESSAGES, asked(fallbacks=TO_BACKUP))
    assert attempts(response) == [b"anthropic/claude-2:429", b"backup/claude-2:200"]


async def test_a_longer_retry_after_is_told_to_the_client(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Without a next target the answer goes down as it is, so that the client can wait."""
    up = await upstream(refusal(429, "rate_limit_error", [(b"retry-after", b"60")]))
    p = await proxy(up, network={"max_retries": 3})
    response = await p.post(MESSAGES, asked())
    assert (response.status, response.header("retry-after")) == (429, b"60")


@pytest.mark.parametrize(
    "value",
    [
        b"soon",
        b"",
        b"-5",
        b"nan",
        b"\xff",
        b"Thu, 01 Jan 1970 00:00:00 GMT",
        b"Thu, 99 Foo 1970 99:99:99 GMT",
    ],
)
async def test_an_unreadable_retry_after_is_ignored(
    upstream: StartUpstream, proxy: StartProxy, value: bytes
) -> None:
    """A `retry-after` that says nothing leaves the backoff as it was."""
    up = await upstream(refusal(429, headers=[(b"retry-after", value)]), GOOD[False])
    p = await proxy(up, network={"max_retries": 1})
    assert (await p.post(MESSAGES, asked())).status == 200


# An error as the first event of a 200 stream.

FIRST_EVENTS = {
    "whole": ERROR_EVENT,
    "CRLF": ERROR_EVENT.replace(b"\n", b"\r\n"),
    "CR": ERROR_EVENT.replace(b"\n", b"\r"),
    "no space": ERROR_EVENT.replace(b": ", b":", 1),
}


def in_pieces(data: bytes) -> bytes:
    """`data` as a chunked body, one chunk per byte."""
    return b"".join(chunk(data[i : i + 1]) for i in range(len(data)))


@pytest.mark.parametrize("pieces", [False, True], ids=["one chunk", "byte by byte"])
@pytest.mark.parametrize("event", FIRST_EVENTS)
async def test_an_error_as_the_first_event_moves_on(
    upstream: StartUpstream, proxy: StartProxy, event: str, pieces: bool
) -> None:
    """A 200 that turns out to be an error is a failure like any other; the client never sees it."""
    data = FIRST_EVENTS[event]
    up = await upstream(stream_head() + (in_pieces(data) if pieces else chunk(data)) + LAST_CHUNK)
    backup = await upstream(GOOD[True])
    p = await proxy(providers={"anthropic": up, "backup": backup}, network={"max_retries": 5})
    response = await p.post(MESSAGES, asked(stream=True, fallbacks=TO_BACKUP))
    assert (response.status, response.body, response.complete) == (200, WHOLE, True)
    assert attempts(response) == [b"anthropic/claude-2:stream_error", b"backup/claude-2:200"]
    assert up.arrived == 1
    assert (await p.line())["attempts"] == ["anthropic/claude-2:stream_error", "backup/claude-2:200"]


async def test_an_error_as_the_first_event_of_the_last_target_is_relayed(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """While no target remains a 200 is a 200: the last stream goes down as it is, byte for byte."""
    up, backup = await upstream(streamed([ERROR_EVENT])), await upstream(streamed([ERROR_EVENT, PING]))
    p = await proxy(providers={"anthropic": up, "backup": backup})
    response = await p.post(MESSAGES, asked(stream=True, fallbacks=TO_BACKUP))
    assert (response.status, response.body, response.complete) == (200, ERROR_EVENT + PING, True)
    assert attempts(response) == [b"anthropic/claude-2:stream_error", b"backup/claude-2:200"]


async def test_an_error_after_a_good_event_is_relayed(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Once the first event has gone down, nothing is tried again."""
    up, backup = await upstream(streamed([MESSAGE_EVENTS[0], ERROR_EVENT])), await upstream()
    p = await proxy(providers={"anthropic": up, "backup": backup})
    response = await p.post(MESSAGES, asked(stream=True, fallbacks=TO_BACKUP))
    assert response.body == MESSAGE_EVENTS[0] + ERROR_EVENT
    assert backup.arrived == 0


async def test_the_first_event_is_held_back_no_longer_than_needed(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """While a fallback is possible the first event is looked at, and it goes down before the second comes."""
    go_on = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
        await go_on.wait()
        await conn.send(b"".join(map(chunk, MESSAGE_EVENTS[1:])) + LAST_CHUNK)

    up, backup = await upstream(step), await upstream()
    p = await proxy(providers={"anthropic": up, "backup": backup})
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True, fallbacks=TO_BACKUP)))
    await client.head()
    assert await client.read_until(b"\n\n") == MESSAGE_EVENTS[0]
    go_on.set()
    assert (await client.rest()).body == WHOLE


# All fail.


async def test_when_all_fail_the_primarys_answer_is_the_answer(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Status, headers and body of the primary, as it sent them; the headers tell what was tried."""
    body = json.dumps(
        {"type": "error", "error": {"type": "overloaded_error", "message": "Überlastet"}}
    ).encode()
    first = answer(529, [JSON_TYPE, (b"request-id", b"req_first"), (b"X-Odd", b"\xe9")], body, reason="Busy")
    up, second, third = await upstream(first), await upstream(refusal(503)), await upstream(raw(resets))
    p = await proxy(providers={"anthropic": up, "second": second, "third": third}, network={"max_retries": 0})
    response = await p.post(MESSAGES, asked(fallbacks=["second/x", "third/y"]))
    assert (response.status, response.reason, response.body) == (529, b"Busy", body)
    assert response.values("request-id") == [b"req_first"]
    assert response.header("x-odd") == b"\xe9"
    assert response.header("x-bifrost-provider") == b"anthropic"
    assert response.header("x-bifrost-fallback-index") == b"0"
    assert attempts(response) == [b"anthropic/claude-2:529", b"second/x:503", b"third/y:reset"]
    assert (await p.line())["status"] == 529


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_fallbacks_refusal_is_not_the_answer(
    upstream: StartUpstream, proxy: StartProxy, status: int
) -> None:
    """A fallback that refuses the request has failed too; the client gets the primary's answer, not its."""
    up, backup = await upstream(refusal(529, "overloaded_error")), await upstream(refusal(status))
    p = await proxy(providers={"anthropic": up, "backup": keyed(backup, "other")}, network={"max_retries": 0})
    response = await p.post(MESSAGES, asked(fallbacks=TO_BACKUP))
    assert response.status == 529
    assert attempts(response) == [b"anthropic/claude-2:529", b"backup/claude-2:%d" % status]


NEVER_ANSWERED = {
    "reset": (raw(resets), 502),
    "closed": (raw(closes), 502),
    "silence": (raw(stays_silent), 504),
}


@pytest.mark.parametrize("fallback", [False, True], ids=["alone", "with a fallback"])
@pytest.mark.parametrize("event", NEVER_ANSWERED)
async def test_a_primary_that_never_answered_is_502_or_504(
    upstream: StartUpstream, proxy: StartProxy, event: str, fallback: bool
) -> None:
    """Without an answer of the primary's to relay, the error is ours, in the provider's shape."""
    step, status = NEVER_ANSWERED[event]
    up = await upstream(step)
    backup = await upstream(*([refusal(503)] if fallback else []))
    p = await proxy(providers={"anthropic": primary(up, event), "backup": backup}, network={"max_retries": 0})
    response = await p.post(MESSAGES, asked(fallbacks=TO_BACKUP if fallback else None))
    error = json.loads(response.body)
    assert response.status == status
    assert error["error"]["type"] == {502: "api_error", 504: "timeout_error"}[status]
    assert error["request_id"].encode() == response.header("request-id")
    line = await p.line()
    assert line["status"] == status
    assert line["ending"] == {502: "UH", 504: "uH"}[status]


async def test_a_refused_connection_is_502(proxy: StartProxy, closed_port: int) -> None:
    """Upstream cannot be reached, and nobody else can be asked."""
    p = await proxy({"base_urls": {"anthropic": f"http://127.0.0.1:{closed_port}"}})
    response = await p.post(MESSAGES, asked())
    assert response.status == 502
    assert json.loads(response.body)["error"]["type"] == "api_error"
    line = await p.line()
    assert (line["status"], line["ending"][0]) == (502, "U")


# The original bytes.


async def test_every_attempt_starts_from_the_original(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Each attempt has the client's bytes and headers with its own model, whatever came before it."""
    start = b'{ "messages" : [{"role":"user","content":"model \\u00e9 \xc3\xa9"}],\t"model" : '
    body = start + b'"first\\u002fm" ,\r\n"x":1e2,"fallbacks":[ "second/b","third/c" ] }'
    headers = [(b"anthropic-beta", b"a,b"), (b"Anthropic-Beta", b"c"), (b"X-Odd", b"\xe9")]
    ups = [
        await upstream(refusal(500), refusal(500)),
        await upstream(refusal(502)),
        await upstream(GOOD[False]),
    ]
    providers = {
        "first": keyed(ups[0], "one", network_config={"max_retries": 1}),
        "second": keyed(ups[1], "two", network_config={"max_retries": 0}),
        "third": ups[2],
    }
    p = await proxy(providers=providers)
    response = await p.post(MESSAGES, body, headers)
    assert response.status == 200
    sent = [request for up in ups for request in up.requests]
    assert sent[0].raw == sent[1].raw
    for request, model in zip(sent, [b"m", b"m", b"b", b"c"], strict=True):
        assert request.body == start + b'"' + model + b'" ,\r\n"x":1e2 }'
        passed = [pair for pair in request.headers if pair[0].lower() in (b"anthropic-beta", b"x-odd")]
        assert passed == headers
    assert [request.header("x-api-key") for request in sent] == [b"sk-test-one"] * 2 + [b"sk-test-two", None]


async def test_nothing_is_tried_again_after_the_head_went_down(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """An answer that is cut in its body is cut downstream as well; nobody else is asked."""

    async def cut(conn: Conn, _: Request) -> None:
        await conn.send(answer(body=MESSAGE)[:-10])
        conn.reset()

    up, backup = await upstream(cut), await upstream()
    p = await proxy(providers={"anthropic": up, "backup": backup}, network={"max_retries": 5})
    response = await p.post(MESSAGES, asked(fallbacks=TO_BACKUP))
    assert (response.status, response.complete, response.reset) == (200, False, True)
    assert (up.arrived, backup.arrived) == (1, 0)


# Other routes.


async def test_a_body_that_streams_through_is_not_sent_twice(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """An upload is never held, so it cannot be sent again: its failure is relayed."""
    up = await upstream(refusal(503))
    p = await proxy(up, network={"max_retries": 5})
    response = await p.post("/anthropic/v1/files", b"x" * 100_000)
    assert (response.status, up.arrived) == (503, 1)


async def test_a_get_is_tried_again(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A GET has no effect upstream, so it may be tried again on every route."""
    up = await upstream(raw(resets), answer(body=b"{}"))
    p = await proxy(up, network={"max_retries": 1})
    response = await p.get("/anthropic/v1/models")
    assert (response.status, response.body, up.arrived) == (200, b"{}", 2)
