"""Jobs over HTTP: submit, poll, cancel; what belongs to whom, and what a result looks like."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Any

import pytest
from backends import Backend, backend
from rawclient import PATIENCE, Response, asked, get, post, request_head
from running import Proxy, StartProxy, StartUpstream, keyed
from scripted import JSON_TYPE, MESSAGE, Conn, answer, raw, refusal

from proxy import dispatcher
from proxy.job import Bounds, Job

__all__ = ["backend"]

MESSAGES = "/anthropic/v1/messages"
COMPLETE = "/anthropic/v1/complete"
UNIFIED = "/v1/async/messages"
SUBMIT = (b"x-bf-async", b"true")
ALICE = (b"x-bf-vk", b"sk-bf-sk-test-alice")
BOB = (b"x-bf-vk", b"sk-bf-sk-test-bob")
KEYS = {
    "virtual_keys": {
        name: {"value": f"env.{name.upper()}", "allow_all_providers": True} for name in ("alice", "bob")
    },
    "environ": {"ALICE": ALICE[1].decode(), "BOB": BOB[1].decode()},
}
Fields = Iterable[tuple[bytes, bytes]]


def job_of(response: Response) -> bytes:
    """The id that a submit has answered with."""
    id = response.header("x-bf-async-id")
    assert id is not None
    assert re.fullmatch(rb"job_[0-9a-f]{32}", id)
    return id


async def submit(p: Proxy, path: str = MESSAGES, fields: Fields = (), **more: Any) -> bytes:
    """Submits a message on an ordinary route; returns the job's id."""
    response = await p.post(path, asked("claude-2", **more), [SUBMIT, *fields])
    assert response.status == 200, response.body
    assert response.header("x-bf-async-status") == b"pending"
    return job_of(response)


async def poll(p: Proxy, id: bytes, path: str = MESSAGES, fields: Fields = ()) -> Response:
    """Polls once, as an SDK does: with the whole request again."""
    return await p.post(path, asked("claude-2"), [(b"x-bf-async-id", id), *fields])


async def eventually(probe: Callable[[], Awaitable[Response | None]]) -> Response:
    """What `probe` returns when it returns something."""
    async with asyncio.timeout(20):
        while True:
            if (found := await probe()) is not None:
                return found
            await asyncio.sleep(0.01)


async def shown(p: Proxy, path: str) -> Response:
    """A job that is over, on the route of jobs."""

    async def probe() -> Response | None:
        response = await p.get(path, [(b"x-api-key", b"sk-test-client")])
        return None if response.status == 202 else response

    return await eventually(probe)


async def over(p: Proxy, id: bytes, path: str = MESSAGES, fields: Fields = ()) -> Response:
    """Polls until the job is over."""

    async def probe() -> Response | None:
        response = await poll(p, id, path, fields)
        waits = response.header("x-bf-async-status") in (b"pending", b"processing")
        return None if waits else response

    return await eventually(probe)


async def test_a_job_is_answered_at_once_and_its_result_is_upstreams_own(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Submit and pending polls are 200 with a message without content; the end is what upstream sent."""
    go_on = asyncio.Event()

    async def later(conn: Conn) -> None:
        await conn.request()
        await go_on.wait()
        body = b'{ "type":"message",  "id":"msg_1","content":[{"type":"text","text":"\\u00e9"}] }\n'
        await conn.send(
            b"HTTP/1.1 201 Fine\r\nContent-Type: application/json; charset=utf-8\r\nX-Odd:  a, b\r\n"
            b"request-id: req_up\r\nDate: Sun, 22 Nov 2026 08:00:00 GMT\r\nContent-Length: %d\r\n\r\n%b"
            % (len(body), body)
        )

    up = await upstream(raw(later))
    p = await proxy(up, store=backend.url)
    id = await submit(p, max_tokens=7)
    await up.received()
    response = await poll(p, id)
    assert response.status == 200
    assert response.header("x-bf-async-status") == b"processing"
    shown = json.loads(response.body)
    assert (shown["id"], shown["type"], shown["content"]) == (id.decode(), "message", [])
    go_on.set()
    response = await over(p, id)
    assert (response.status, response.reason) == (201, b"Fine")
    assert (
        response.body == b'{ "type":"message",  "id":"msg_1","content":[{"type":"text","text":"\\u00e9"}] }\n'
    )
    assert response.header("x-bf-async-status") == b"completed"
    assert response.header("x-bf-async-id") == id
    assert response.header("x-odd") == b"a, b"
    assert response.header("request-id") == b"req_up"
    assert response.header("date") == b"Sun, 22 Nov 2026 08:00:00 GMT"
    assert response.header("x-bifrost-attempts") == b"anthropic/claude-2:201"
    (request,) = up.requests
    assert request.body == asked("claude-2", max_tokens=7)
    assert request.header("x-api-key") == b"sk-test-client"
    assert not [name for name, _ in request.headers if name.lower().startswith(b"x-bf-")]
    # As often as one likes.
    assert (await poll(p, id)).body == response.body


PENDING = {
    MESSAGES: {
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    },
    COMPLETE: {"type": "completion", "completion": "", "stop_reason": None},
    "/anthropic/v1/messages/count_tokens": {"input_tokens": 0},
    "/v1/messages?beta=true": {
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    },
}


@pytest.mark.parametrize("path", PENDING)
async def test_every_model_route_takes_jobs(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy, path: str
) -> None:
    """The shape of what waits is the route's; the request goes upstream on its own path."""
    up = await upstream(answer(body=MESSAGE))
    p = await proxy(up, store=backend.url)
    response = await p.post(path, asked("claude-2"), [SUBMIT])
    id = job_of(response)
    assert response.status == 200
    assert json.loads(response.body) == {"id": id.decode(), "model": "claude-2", **PENDING[path]}
    response = await over(p, id, path)
    assert (response.status, response.body) == (200, MESSAGE)
    assert up.requests[0].target == path.removeprefix("/anthropic").encode()


async def test_a_poll_may_be_a_get(backend: Backend, upstream: StartUpstream, proxy: StartProxy) -> None:
    """GET and HEAD on the same path, with the same header, say the same as a POST."""
    up = await upstream(answer(body=MESSAGE))
    p = await proxy(up, store=backend.url)
    id = await submit(p)
    await over(p, id)
    key = (b"x-api-key", b"sk-test-client")
    response = await p.ask(get(MESSAGES, [(b"x-bf-async-id", id), key]), "GET")
    assert (response.status, response.body) == (200, MESSAGE)
    head = await p.ask(get(MESSAGES, [(b"x-bf-async-id", id), key], method="HEAD"), "HEAD")
    assert (head.status, head.header("content-length"), head.body) == (200, b"%d" % len(MESSAGE), b"")


@pytest.mark.parametrize(
    "body",
    [b"", b"{broken", b"\xff" * 200_000, b'{"stream": true}'],
    ids=["none", "broken", "large", "stream"],
)
async def test_a_polls_body_is_ignored(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy, body: bytes
) -> None:
    """It is read to its end, so that the connection goes on, and nothing of it counts."""
    up = await upstream(answer(body=MESSAGE))
    p = await proxy(up, store=backend.url)
    id = await submit(p)
    await over(p, id)
    client = await p.connect()
    for _ in range(2):
        await client.send(post(MESSAGES, body, [(b"x-bf-async-id", id), (b"x-bf-async", b"true")]))
        response = await client.response()
        assert (response.status, response.body) == (200, MESSAGE)


async def test_the_id_wins_over_a_submit(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """A client that always sends ``x-bf-async: true`` can poll; nothing is submitted twice."""
    up = await upstream(answer(body=MESSAGE))
    p = await proxy(up, store=backend.url)
    id = await submit(p)
    assert (await over(p, id, fields=[SUBMIT])).body == MESSAGE
    assert len(up.requests) == 1


BAD: dict[str, list[tuple[bytes, bytes]]] = {
    "false": [(b"x-bf-async", b"false")],
    "another case": [(b"x-bf-async", b"True")],
    "one": [(b"x-bf-async", b"1")],
    "empty": [(b"x-bf-async", b"")],
    "twice": [SUBMIT, (b"X-BF-Async", b"false")],
    "only a ttl": [(b"x-bf-async-job-result-ttl", b"60")],
    "ttl of words": [SUBMIT, (b"x-bf-async-job-result-ttl", b"an hour")],
    "ttl below zero": [SUBMIT, (b"x-bf-async-job-result-ttl", b"-1")],
    "ttl zero": [SUBMIT, (b"x-bf-async-job-result-ttl", b"0")],
    "ttl with a point": [SUBMIT, (b"x-bf-async-job-result-ttl", b"1.5")],
    "ttl empty": [SUBMIT, (b"x-bf-async-job-result-ttl", b"")],
    "ttl beyond all bounds": [SUBMIT, (b"x-bf-async-job-result-ttl", b"9" * 5000)],
    "ttl twice": [SUBMIT, *[(b"x-bf-async-job-result-ttl", b"60")] * 2],
    "no such webhook": [SUBMIT, (b"x-bf-async-webhook", b"nobody")],
    "no such field": [SUBMIT, (b"x-bf-async-ttl", b"60")],
    "no id": [(b"x-bf-async-id", b"")],
    "two ids": [(b"x-bf-async-id", b"job_1"), (b"x-bf-async-id", b"job_2")],
    "an id of spaces": [(b"x-bf-async-id", b"job 1")],
}


@pytest.mark.parametrize("what", BAD)
async def test_what_cannot_be_understood_is_refused(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy, what: str
) -> None:
    """Only ``true`` submits, and a client that believes that it has a job has one."""
    p = await proxy(await upstream(), store=backend.url)
    response = await p.post(MESSAGES, asked("claude-2"), BAD[what])
    assert response.status == 400
    assert json.loads(response.body)["error"]["type"] == "invalid_request_error"


REFUSED: dict[str, tuple[bytes, int]] = {
    "stream": (asked("claude-2", stream=True), 400),
    "not JSON": (b'{"model": "claude-2"', 400),
    "no model": (b'{"max_tokens": 1}', 400),
    "no such fallback": (asked("claude-2", fallbacks=["nobody/claude-2"]), 400),
}


@pytest.mark.parametrize("path", [MESSAGES, UNIFIED])
@pytest.mark.parametrize("what", REFUSED)
async def test_what_can_never_be_done_is_no_job(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy, what: str, path: str
) -> None:
    """A stream, a body that breaks the rules, and a plan that does not work are refused at once."""
    body, status = REFUSED[what]
    p = await proxy(await upstream(), store=backend.url)
    response = await p.post(path, body, [SUBMIT])
    assert response.status == status
    assert response.header("x-bf-async-id") is None


async def test_without_a_store_there_are_no_jobs(upstream: StartUpstream, proxy: StartProxy) -> None:
    """It is said so, and nothing is sent."""
    p = await proxy(await upstream())
    for path, fields in ((MESSAGES, [SUBMIT]), (UNIFIED, []), (MESSAGES, [(b"x-bf-async-id", b"job_1")])):
        response = await p.post(path, asked("claude-2"), fields)
        assert (response.status, b"jobs_unavailable" in response.body) == (400, True)


async def test_elsewhere_the_fields_mean_nothing(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """A client that sends them always can use files and lists; they do not go upstream."""
    up = await upstream(answer(), answer())
    p = await proxy(up, store=backend.url)
    assert (await p.get("/anthropic/v1/models", [SUBMIT])).status == 200
    assert (await p.get("/anthropic/v1/files/file_1", [(b"x-bf-async-id", b"job_1")])).status == 200
    assert not [name for each in up.requests for name, _ in each.headers if b"async" in name.lower()]


async def test_a_job_belongs_to_who_made_it(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Another virtual key, another credential or none gets the 404 of an id that never was, byte for byte."""
    up = await upstream(answer(body=MESSAGE), answer(body=MESSAGE))
    p = await proxy(providers={"anthropic": keyed(up, "main")}, store=backend.url, **KEYS)
    mine = await submit(p, fields=[ALICE])
    assert (await over(p, mine, fields=[ALICE])).status == 200
    own = job_of(await p.ask(post(MESSAGES, asked("claude-2"), [SUBMIT], key=b"sk-test-own")))
    own_poll = post(
        MESSAGES, b"", [(b"x-bf-async-id", own), (b"authorization", b"Bearer sk-test-own")], key=None
    )

    async def probe() -> Response | None:
        response = await p.ask(own_poll)
        return response if response.body == MESSAGE else None

    await eventually(probe)
    strangers = {
        "another virtual key": (mine, [BOB], None),
        "no virtual key": (mine, [], b"sk-test-client"),
        "nothing": (mine, [], None),
        "an unknown id": (b"job_" + b"0" * 32, [ALICE], None),
        "another credential": (own, [], b"sk-test-other"),
        "no credential": (own, [], None),
        "a virtual key for a credential's": (own, [ALICE], b"sk-test-own"),
    }
    seen = set()
    for method in ("POST", "GET", "DELETE"):
        for id, fields, key in strangers.values():
            head = [(b"x-bf-async-id", id), *fields, *([(b"x-api-key", key)] if key else [])]
            request = (
                post(MESSAGES, b"", head, key=None)
                if method == "POST"
                else get(MESSAGES, head, method=method)
            )
            response = await p.ask(request, method)
            body = json.loads(response.body)
            del body["request_id"]
            seen.add((response.status, json.dumps(body), response.header("x-bf-async-status")))
    assert len(seen) == 1
    assert seen.pop()[0] == 404
    assert (await over(p, mine, fields=[ALICE])).body == MESSAGE


async def test_a_job_is_found_on_its_own_route_only(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """A completion's id is no message's; the route of jobs shows it as the same operation."""
    up = await upstream(answer(body=MESSAGE))
    p = await proxy(up, store=backend.url)
    id = await submit(p)
    assert (await over(p, id)).status == 200
    assert (await poll(p, id, COMPLETE)).status == 404
    key = [(b"x-api-key", b"sk-test-client")]
    assert (await p.get(f"/v1/async/complete/{id.decode()}", key)).status == 404
    assert (await p.get(f"{UNIFIED}/{id.decode()}", key)).status == 200


async def test_the_route_of_jobs(backend: Backend, upstream: StartUpstream, proxy: StartProxy) -> None:
    """202 until it is over, then 200 with the result's own bytes in it, and when it expires."""
    go_on = asyncio.Event()
    body = b'{"content":[{"text":"\\u00e9"}] ,  "usage":{}}'

    async def later(conn: Conn) -> None:
        await conn.request()
        await go_on.wait()
        await conn.send(answer(body=body, headers=[JSON_TYPE]))

    up = await upstream(raw(later))
    p = await proxy(up, store=backend.url)
    response = await p.post(UNIFIED, asked("claude-2"), [(b"x-bf-async-job-result-ttl", b"60")])
    waits = json.loads(response.body)
    assert (response.status, list(waits), waits["status"]) == (202, ["id", "status", "created_at"], "pending")
    await up.received()
    key = [(b"x-api-key", b"sk-test-client")]
    path = f"{UNIFIED}/{waits['id']}"
    response = await p.get(path, key)
    assert (response.status, json.loads(response.body)) == (202, {**waits, "status": "processing"})
    go_on.set()
    response = await shown(p, path)
    assert response.status == 200
    assert response.header("x-bf-async-status") == b"completed"
    assert body in response.body
    result = json.loads(response.body)
    assert list(result) == [*waits, "completed_at", "expires_at", "status_code", "result"]
    assert (result["status"], result["status_code"]) == ("completed", 200)
    completed, expires = (datetime.fromisoformat(result[name]) for name in ("completed_at", "expires_at"))
    assert (expires - completed).total_seconds() == 60
    (request,) = up.requests
    assert request.target == b"/v1/messages"
    assert request.header("accept-encoding") == b"identity"
    assert (await p.get(UNIFIED, key)).status == 405
    assert (await p.ask(post(path, b"", key))).status == 405


OPENAI = ["chat/completions", "completions", "responses", "embeddings", "images/generations", "audio/speech"]


@pytest.mark.parametrize("operation", OPENAI)
async def test_the_route_of_jobs_speaks_openai(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy, operation: str
) -> None:
    """The path goes below the provider's base URL, the key as a bearer, and errors have OpenAI's shape."""
    body = b"\xff\xfbmp3" if operation == "audio/speech" else b'{"choices":[],"usage":{"prompt_tokens":3}}'
    up = await upstream(answer(body=body), answer(429, body=b'{"no":1}'))
    urls = {"openai": f"{up.url}/v1"}
    keys = [{"name": "main", "value": "env.TEST_KEY_MAIN"}]
    p = await proxy(
        providers={"anthropic": {"base_urls": urls, "keys": keys}},
        network={"max_retries": 0},
        store=backend.url,
        default_providers={"openai": "anthropic"},
    )
    path = f"/v1/async/{operation}"
    response = await p.post(path, asked("gpt-5", stream=True))
    assert json.loads(response.body)["error"]["code"] is None
    results = []
    for _ in range(2):
        id = json.loads((await p.post(path, asked("anthropic/gpt-5"))).body)["id"]
        results.append(json.loads((await shown(p, f"{path}/{id}")).body))
    assert up.requests[0].target == b"/v1/" + operation.encode()
    assert up.requests[0].header("authorization") == b"Bearer sk-test-main"
    assert json.loads(up.requests[0].body)["model"] == "gpt-5"
    expected = {"base64": "//ttcDM="} if operation == "audio/speech" else json.loads(body)
    assert results[0]["result"] == expected
    assert results[1]["status"] == "failed"
    assert (results[1]["status_code"], results[1]["error"]) == (429, {"no": 1})


async def test_an_error_of_upstream_is_the_result(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Its status, fields and body as they came; the SDK is told that polling again does not help."""
    up = await upstream(answer(529, body=b'{"type":"error","error":{"type":"overloaded_error"}}'))
    p = await proxy(up, network={"max_retries": 0}, store=backend.url)
    response = await over(p, await submit(p))
    assert (response.status, response.header("x-bf-async-status")) == (529, b"failed")
    assert response.body == b'{"type":"error","error":{"type":"overloaded_error"}}'
    assert response.header("x-should-retry") == b"false"


async def test_an_upstream_that_cannot_be_reached(
    backend: Backend, proxy: StartProxy, closed_port: int
) -> None:
    """The job has failed with the error that a client would have got."""
    p = await proxy(
        providers={"anthropic": {"base_urls": {"anthropic": f"http://127.0.0.1:{closed_port}"}}},
        network={"max_retries": 0},
        store=backend.url,
    )
    response = await over(p, await submit(p))
    assert (response.status, response.header("x-bf-async-status")) == (502, b"failed")
    shown = json.loads(response.body)
    assert shown["error"]["message"] == "The provider cannot be reached."
    assert response.header("request-id") == shown["request_id"].encode()


async def test_an_answer_that_is_cut_is_no_result(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Nothing cut looks whole, here neither."""

    async def cut(conn: Conn) -> None:
        await conn.request()
        await conn.send(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"content": [')
        conn.reset()

    p = await proxy(await upstream(raw(cut)), network={"max_retries": 0}, store=backend.url)
    response = await over(p, await submit(p))
    assert (response.status, response.header("x-bf-async-status")) == (502, b"failed")
    assert json.loads(response.body)["error"]["type"] == "api_error"


async def test_a_job_has_fallbacks_and_retries(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """The plan is a request's: the header says who was tried, and the log line is one of a request."""
    up, backup = await upstream(refusal(529), refusal(529)), await upstream(answer(body=MESSAGE))
    p = await proxy(
        up, providers={"backup": keyed(backup, "second")}, network={"max_retries": 1}, store=backend.url
    )
    id = await submit(p, fallbacks=["backup/claude-3"])
    response = await over(p, id)
    assert response.header("x-bifrost-attempts") == (
        b"anthropic/claude-2:529,anthropic/claude-2:529,backup/claude-3:200"
    )
    assert response.header("x-bifrost-fallback-index") == b"1"
    assert backup.requests[0].header("x-api-key") == b"sk-test-second"
    assert json.loads(backup.requests[0].body)["model"] == "claude-3"
    await p.stop()
    assert {line["job"] for line in p.lines} == {id.decode()}
    # The others are those of its submit and of its polls.
    (line,) = [line for line in p.lines if line["attempts"]]
    assert (line["status"], line["ending"], line["usage"]["output_tokens"]) == (200, "--", 6)
    assert line["attempts"] == ["anthropic/claude-2:529", "anthropic/claude-2:529", "backup/claude-3:200"]


async def test_a_compressed_result_stays_as_it_came(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """On the provider's route it is given back in its coding; the route of jobs shows what is in it."""
    packed = gzip.compress(MESSAGE)
    up = await upstream(answer(body=packed, headers=[JSON_TYPE, (b"Content-Encoding", b"gzip")]))
    p = await proxy(up, store=backend.url)
    id = await submit(p, fields=[(b"accept-encoding", b"gzip, br")])
    response = await over(p, id)
    assert (response.header("content-encoding"), response.body) == (b"gzip", packed)
    assert up.requests[0].header("accept-encoding") == b"gzip, br"
    response = await p.get(f"{UNIFIED}/{id.decode()}", [(b"x-api-key", b"sk-test-client")])
    assert json.loads(response.body)["result"] == json.loads(MESSAGE)


async def test_a_result_that_is_too_large(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """It is kept up to the cap, upstream is left, and nothing of it looks whole."""
    left = asyncio.Event()

    async def endless(conn: Conn) -> None:
        await conn.request()
        await conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
        await conn.send(b'{"text": "' + b"x" * 20_000)
        await conn.gone()
        left.set()

    p = await proxy(await upstream(raw(endless)), store=backend.url, jobs={"max_result_bytes": 10_000})
    id = await submit(p)
    response = await over(p, id)
    assert (response.status, response.header("x-bf-async-status")) == (502, b"failed")
    assert "job_result_too_large" in json.loads(response.body)["error"]["message"]
    response = await p.get(f"{UNIFIED}/{id.decode()}", [(b"x-api-key", b"sk-test-client")])
    shown = json.loads(response.body)
    assert (shown["status"], "result" in shown) == ("failed", False)
    assert shown["partial_result"] == {"text": '{"text": "' + "x" * 9_990}
    async with asyncio.timeout(10):
        await left.wait()


async def test_a_full_queue_says_when_to_come_again(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """One job is done, one waits; the third is a 429, of this key first and then of all."""
    go_on = asyncio.Event()

    async def later(conn: Conn) -> None:
        await conn.request()
        await go_on.wait()
        await conn.send(answer(body=MESSAGE))
        await conn.request()
        await conn.send(answer(body=MESSAGE))

    up = await upstream(raw(later), raw(later), raw(later))
    p = await proxy(
        providers={"anthropic": keyed(up, "main")},
        store=backend.url,
        jobs={"concurrent": 1, "max_pending": 2, "max_pending_per_key": 1},
        **KEYS,
    )
    first = await submit(p, fields=[ALICE])
    await up.received()
    ids = [first, await submit(p, fields=[ALICE])]
    response = await p.post(MESSAGES, asked("claude-2"), [SUBMIT, ALICE])
    assert (response.status, response.header("retry-after")) == (429, b"5")
    assert "too many jobs of yours wait" in json.loads(response.body)["error"]["message"]
    ids.append(await submit(p, fields=[BOB]))
    response = await p.post(MESSAGES, asked("claude-2"), [SUBMIT])
    assert (response.status, response.header("retry-after")) == (429, b"5")
    assert "too many jobs wait" in json.loads(response.body)["error"]["message"]
    go_on.set()
    for id, who in zip(ids, (ALICE, ALICE, BOB), strict=True):
        assert (await over(p, id, fields=[who])).body == MESSAGE
    up.allow_unused = True


@pytest.mark.parametrize("form", ["native", "unified"])
async def test_a_job_can_be_cancelled(
    backend: Backend,
    upstream: StartUpstream,
    proxy: StartProxy,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    """Upstream's connection closes at once, and the job is gone."""
    # What nobody looks for is not found later.
    monkeypatch.setattr(dispatcher, "LOOK_SECONDS", 3600.0)
    left = asyncio.Event()

    async def hangs(conn: Conn) -> None:
        await conn.request()
        await conn.gone()
        left.set()

    up = await upstream(raw(hangs))
    p = await proxy(up, store=backend.url, jobs={"concurrent": 1})
    running, waiting = await submit(p), await submit(p)
    await up.received()

    async def delete(id: bytes) -> Response:
        key = (b"x-api-key", b"sk-test-client")
        if form == "native":
            return await p.ask(get(MESSAGES, [(b"x-bf-async-id", id), key], method="DELETE"), "DELETE")
        return await p.ask(get(f"{UNIFIED}/{id.decode()}", [key], method="DELETE"), "DELETE")

    for id in (waiting, running):
        response = await delete(id)
        assert response.status == 200
        assert json.loads(response.body) == {"id": id.decode(), "deleted": True, "status": "cancelled"}
        assert (await poll(p, id)).status == (await delete(id)).status == 404
    async with asyncio.timeout(PATIENCE):
        await left.wait()
    assert len(up.requests) == 1


async def test_a_result_can_be_deleted(backend: Backend, upstream: StartUpstream, proxy: StartProxy) -> None:
    """Nobody finds it any more."""
    p = await proxy(await upstream(answer(body=MESSAGE)), store=backend.url)
    id = await submit(p)
    await over(p, id)
    key = (b"x-api-key", b"sk-test-client")
    response = await p.ask(get(f"{UNIFIED}/{id.decode()}", [key], method="DELETE"), "DELETE")
    assert json.loads(response.body) == {"id": id.decode(), "deleted": True, "status": "completed"}
    assert (await poll(p, id)).status == 404


async def test_a_result_expires(backend: Backend, upstream: StartUpstream, proxy: StartProxy) -> None:
    """The time is counted from its completion; the config's cap bounds what is asked for."""
    p = await proxy(
        await upstream(*[answer(body=MESSAGE)] * 3),
        store=backend.url,
        jobs={"result_ttl": 100, "max_result_ttl": 1000},
    )
    ttl = b"x-bf-async-job-result-ttl"
    began = time.time()
    lasting = {
        100: await submit(p),
        30: await submit(p, fields=[(ttl, b"30")]),
        1000: await submit(p, fields=[(ttl, b"86400")]),
    }
    for id in lasting.values():
        assert (await over(p, id)).status == 200
    assert p.server._handler is not None
    jobs = p.server._handler._jobs
    ended = time.time()
    for seconds, id in lasting.items():
        jobs._clock = lambda at=began + seconds - 1: at
        assert (await poll(p, id)).status == 200
        jobs._clock = lambda at=ended + seconds + 1: at
        assert (await poll(p, id)).status == 404


async def test_a_key_that_was_taken_away_meanwhile(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """A job is refused when its turn comes as its request would be; who holds the key sees that."""
    go_on = asyncio.Event()

    async def later(conn: Conn) -> None:
        await conn.request()
        await go_on.wait()
        await conn.send(answer(body=MESSAGE))

    up = await upstream(raw(later))
    p = await proxy(
        providers={"anthropic": keyed(up, "main")},
        store=backend.url,
        jobs={"concurrent": 1},
        admin_key="env.ADMIN",
        environ={"ADMIN": "sk-test-admin"},
    )

    async def manage(method: str, path: str, **members: Any) -> dict[str, Any]:
        body = json.dumps(members).encode()
        fields = [(b"Host", b"p"), (b"x-api-key", b"sk-test-admin"), (b"Content-Length", b"%d" % len(body))]
        response = await p.ask(
            request_head(method, f"/api/governance/virtual-keys{path}", fields) + body, method
        )
        assert response.status == 200, response.body
        return dict(json.loads(response.body)["virtual_key"])

    allowed = [{"provider": "anthropic", "allowed_models": ["*"]}]
    made = await manage("POST", "", name="carol", provider_configs=allowed)
    carol = (b"x-bf-vk", made["value"].encode())
    first, second = await submit(p, fields=[carol]), await submit(p, fields=[carol])
    await up.received()
    await manage("PUT", f"/{made['id']}", is_active=False)
    assert (await poll(p, first, fields=[carol])).status == 403
    go_on.set()
    lines = [await p.line() for _ in range(7)]
    assert [line["status"] for line in lines if line["path"].startswith("job ")] == [200, 403]
    await manage("PUT", f"/{made['id']}", is_active=True)
    refused = await over(p, second, fields=[carol])
    assert (refused.status, refused.header("x-bf-async-status")) == (403, b"failed")
    assert "virtual_key_blocked" in json.loads(refused.body)["error"]["message"]
    assert (await over(p, first, fields=[carol])).body == MESSAGE


async def test_what_is_kept_of_a_request(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """No virtual key ever, and the client's credentials only where they go upstream."""
    ours, theirs = await upstream(), await upstream()
    p = await proxy(
        providers={"anthropic": {"base_urls": {"anthropic": theirs.url}}, "keyed": keyed(ours, "main")},
        store=backend.url,
        **KEYS,
    )
    jobs, dispatcher = p.server._job_store, p.server._dispatcher
    assert jobs is not None
    assert dispatcher is not None
    dispatcher.retire()
    fields = [ALICE, (b"x-marker", b"sk-test-marker")]
    shown = job_of(await p.ask(post(MESSAGES, asked("claude-2"), [SUBMIT, *fields], key=b"sk-test-own")))
    hidden = job_of(await p.ask(post(MESSAGES, asked("keyed/x"), [SUBMIT, *fields], key=b"sk-test-own")))
    claims = [await jobs.claim("another worker", 9) for _ in range(2)]
    heads = {claim.job.id.encode(): claim.job.head for claim in claims if claim is not None}
    assert b"sk-test-own" in heads[shown]
    assert b"sk-test-own" not in heads[hidden]
    for head in heads.values():
        assert b"sk-bf" not in head
        assert b"sk-test-marker" in head


async def test_a_job_that_this_version_cannot_read(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """What a newer version has kept ends with an error that says so; others go on."""
    up = await upstream(answer(body=MESSAGE))
    p = await proxy(up, store=backend.url)
    jobs = p.server._job_store
    assert jobs is not None
    owner = f"credential {hashlib.sha256(b'sk-test-client').hexdigest()}"
    for number, head in enumerate((b"{}", b"[]", b"not JSON", b'{"wire_format": 1}')):
        job = Job(f"job_{number}", owner, "/anthropic/v1/messages", 0.0, 60, "", head, b"{}")
        assert await jobs.submit(job, Bounds(9, 9, 999)) == ""
        response = await over(p, job.id.encode())
        assert (response.status, b"job_unreadable" in response.body) == (500, True)
    assert (await over(p, await submit(p))).status == 200


async def test_a_client_that_leaves_before_it_is_told(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """The job that it cannot know of is forgotten, and does not go upstream."""
    p = await proxy(await upstream(), store=backend.url)
    jobs, handler = p.server._job_store, p.server._handler
    assert jobs is not None
    assert handler is not None
    kept, left = asyncio.Event(), asyncio.Event()
    ids: list[str] = []
    keep = jobs.submit

    async def submit_and_wait(job: Job, bounds: Bounds) -> str:
        full = await keep(job, bounds)
        ids.append(job.id)
        kept.set()
        await left.wait()
        return full

    jobs.submit = submit_and_wait  # type: ignore[method-assign]
    p.server._dispatcher._claims = False  # type: ignore[union-attr]
    client = await p.connect()
    await client.send(post(MESSAGES, asked("claude-2"), [SUBMIT]))
    await kept.wait()
    assert await jobs.look(ids[0], 0) is not None
    client.close()
    line = await p.line()
    assert line["ending"].startswith("D")
    async with asyncio.timeout(10):
        while True:
            if await jobs.look(ids[0], 0) is None:
                break
            await asyncio.sleep(0.01)
