"""`results_url` of a batch: where the keys are the proxy's, the results are fetched through the proxy too.

SDKs GET that absolute address with their key, whatever their base URL is. Left as it is, the request would
show the client's credential to the provider, and fail.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from rawclient import get, post, request_head
from running import StartProxy, StartUpstream, keyed
from scripted import JSON_TYPE, LAST_CHUNK, Conn, Request, answer, chunk, head, refusal, stream_head

BATCHES = "/anthropic/v1/messages/batches"
PROVIDER = "https://api.anthropic.com/v1/messages/batches/msgbatch_1/results"


def batch(results_url: str | None = PROVIDER, **more: Any) -> dict[str, Any]:
    return {
        "id": "msgbatch_1",
        "type": "message_batch",
        "processing_status": "ended",
        "request_counts": {"processing": 0, "succeeded": 2, "errored": 0, "canceled": 0, "expired": 0},
        "created_at": "2026-11-21T18:37:24.100435Z",
        "results_url": results_url,
        **more,
    }


def localized(body: bytes, base: str = "http://proxy.test/anthropic") -> bytes:
    return body.replace(b"https://api.anthropic.com/", base.encode() + b"/")


SPELLINGS: dict[str, bytes] = {
    "compact": json.dumps(batch(), separators=(",", ":")).encode(),
    "spaced": json.dumps(batch(), indent=2).encode(),
    "a list": json.dumps({"data": [batch(), batch(), batch(None)], "has_more": False}).encode(),
    "empty list": b'{"data":[],"has_more":false}',
    "not ended": json.dumps(batch(None)).encode(),
    "odd bytes": b'{"id":1 ,\t"results_url" :\n"'
    + PROVIDER.encode()
    + b'", "x": 1.0, "y": "\\u00e9\xc3\xa9"}\n',
}


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_the_address_of_the_results_points_here(
    upstream: StartUpstream, proxy: StartProxy, spelling: str
) -> None:
    """Its origin becomes the one that the client uses; no other byte of the answer changes."""
    body = SPELLINGS[spelling]
    up = await upstream(answer(200, [JSON_TYPE, (b"request-id", b"req_1")], body))
    p = await proxy(keyed(up, "main"))
    response = await p.get(BATCHES + "/msgbatch_1" if "list" not in spelling else BATCHES)
    assert (response.status, response.body, response.complete) == (200, localized(body), True)
    assert response.header("content-length") == b"%d" % len(response.body)
    assert response.header("request-id") == b"req_1"


ROUTES = [
    ("GET", "/msgbatch_1", "/anthropic"),
    ("GET", "/msgbatch_1?beta=true", "/anthropic"),
    ("GET", "?limit=20", "/anthropic"),
    ("POST", "", "/anthropic"),
    ("POST", "?beta=true", "/anthropic"),
    ("POST", "/msgbatch_1/cancel", "/anthropic"),
    ("GET", "/msgbatch_1", ""),
    ("POST", "", ""),
]


@pytest.mark.parametrize(("method", "path", "prefix"), ROUTES)
async def test_every_answer_that_is_a_batch(
    upstream: StartUpstream, proxy: StartProxy, method: str, path: str, prefix: str
) -> None:
    """Create, get, list and cancel, below the prefix and without it."""
    body = json.dumps(batch()).encode()
    up = await upstream(answer(body=body))
    p = await proxy(keyed(up, "main"))
    target = f"{prefix}/v1/messages/batches{path}"
    requests = b'{"requests":[{"custom_id":"a","params":{"model":"other/x","stream":true}}]}'
    response = await p.ask(post(target, requests) if method == "POST" else get(target), method)
    assert response.body == localized(body, f"http://proxy.test{prefix}")
    assert up.requests[0].body == (requests if method == "POST" else b"")
    assert up.requests[0].values("accept-encoding") == [b"identity"]


async def test_the_results_come_through_the_proxy(upstream: StartUpstream, proxy: StartProxy) -> None:
    """What an SDK does: it takes the address out of the batch, asks there, and gets the lines untouched."""
    lines = b"".join(
        json.dumps({"custom_id": str(i), "result": {"text": f'"results_url":"{PROVIDER}"'}}).encode() + b"\n"
        for i in range(3)
    )
    lines += b'{"results_url":"' + PROVIDER.encode() + b'"}\n'
    results = head(200, [(b"Content-Type", b"application/x-jsonl"), (b"Transfer-Encoding", b"chunked")])
    up = await upstream(answer(body=json.dumps(batch()).encode()), results + chunk(lines) + LAST_CHUNK)
    p = await proxy(keyed(up, "main"))
    address = urlsplit(json.loads((await p.get(f"{BATCHES}/msgbatch_1")).body)["results_url"])
    assert address.netloc == "proxy.test"
    response = await p.get(address.path, [(b"Accept", b"application/binary")])
    assert (response.status, response.body) == (200, lines)
    assert [request.target for request in up.requests] == [
        b"/v1/messages/batches/msgbatch_1",
        b"/v1/messages/batches/msgbatch_1/results",
    ]
    assert [request.values("x-api-key") for request in up.requests] == [[b"sk-test-main"]] * 2


async def test_chunked_batch_answers(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The address may be split over chunks."""
    body = json.dumps(batch()).encode()
    chunks = b"".join(chunk(body[i : i + 7]) for i in range(0, len(body), 7)) + LAST_CHUNK
    up = await upstream(head(200, [JSON_TYPE, (b"Transfer-Encoding", b"chunked")]) + chunks)
    p = await proxy(keyed(up, "main"))
    response = await p.get(f"{BATCHES}/msgbatch_1")
    assert (response.body, response.complete) == (localized(body), True)


ORIGINS: list[tuple[list[tuple[bytes, bytes]], dict[str, str], str]] = [
    ([(b"Host", b"gateway.test:8443")], {}, "http://gateway.test:8443"),
    ([(b"Host", b"gateway.test"), (b"X-Forwarded-Proto", b"https")], {}, "https://gateway.test"),
    ([(b"Host", b"inner.test")], {"public_url": "https://llm.test"}, "https://llm.test"),
    ([(b"Host", b"inner.test")], {"public_url": "https://llm.test/"}, "https://llm.test"),
]


@pytest.mark.parametrize(("fields", "settings", "origin"), ORIGINS)
async def test_the_origin_is_the_clients(
    upstream: StartUpstream,
    proxy: StartProxy,
    fields: list[tuple[bytes, bytes]],
    settings: dict[str, str],
    origin: str,
) -> None:
    """The request's own Host, with the scheme that nginx tells; or `public_url` where the config has one."""
    body = json.dumps(batch()).encode()
    up = await upstream(answer(body=body))
    p = await proxy(keyed(up, "main"), **settings)
    request = request_head("GET", f"{BATCHES}/msgbatch_1", fields)
    assert (await p.ask(request, "GET")).body == localized(body, origin + "/anthropic")


async def test_with_the_clients_key_nothing_is_changed(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The client's own credential is meant for the provider: the answer passes as it is."""
    body = json.dumps(batch()).encode()
    up = await upstream(answer(body=body))
    assert (await (await proxy(up)).get(f"{BATCHES}/msgbatch_1")).body == body


async def test_other_routes_are_not_touched(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Only batch answers have a `results_url` of this kind."""
    body = json.dumps(batch()).encode()
    up = await upstream(*[answer(body=body)] * 2)
    p = await proxy(keyed(up, "main"))
    assert (await p.get("/anthropic/v1/models")).body == body
    assert (await p.get("/anthropic/v1/files/batches")).body == body


async def test_errors_pass(upstream: StartUpstream, proxy: StartProxy) -> None:
    """An error on a batch route is relayed as upstream sent it."""
    failure = refusal(404, "not_found_error")
    up = await upstream(failure)
    response = await (await proxy(keyed(up, "main"))).get(f"{BATCHES}/nobody")
    assert (response.status, response.body) == (404, failure.partition(b"\r\n\r\n")[2])


async def test_a_cut_batch_answer_is_an_error(upstream: StartUpstream, proxy: StartProxy) -> None:
    """It is read whole before anything goes down, so a cut is a plain 502."""
    body = json.dumps(batch()).encode()

    async def cut(conn: Conn, _: Request) -> None:
        await conn.send(answer(body=body)[:-10])
        await conn.close()

    up = await upstream(cut)
    response = await (await proxy(keyed(up, "main"))).get(f"{BATCHES}/msgbatch_1")
    assert (response.status, response.complete) == (502, True)
    assert PROVIDER.encode() not in response.raw


async def test_a_batch_compressed_against_our_wish(upstream: StartUpstream, proxy: StartProxy) -> None:
    """What cannot be read cannot be rewritten: better an error than an address that leaks a key."""
    body = gzip.compress(json.dumps(batch()).encode())
    up = await upstream(answer(200, [JSON_TYPE, (b"Content-Encoding", b"gzip")], body))
    response = await (await proxy(keyed(up, "main"))).get(f"{BATCHES}/msgbatch_1")
    assert response.status == 502
    assert json.loads(response.body)["error"]["type"] == "api_error"


async def test_no_ping_goes_before_the_head_of_a_rewritten_answer(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """The answer is read whole first, and whatever upstream calls it, silence is no place for a ping then."""
    go_on = asyncio.Event()

    async def step(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(b": x\n\n"))
        await go_on.wait()
        await conn.send(LAST_CHUNK)

    up = await upstream(step)
    p = await proxy(keyed(up, "main"), ping_interval=0.02)
    client = await p.connect()
    await client.send(get("/anthropic/v1/messages/batches/b_1"))
    await up.received()
    await asyncio.sleep(0.1)
    go_on.set()
    response = await client.response("GET")
    assert (response.status, response.body, response.complete) == (200, b": x\n\n", True)
    assert (await p.line())["pings"] == 0


async def test_a_large_rewritten_answer_waits_for_its_reader(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """A reader that takes none of it is reset after `send_timeout`, as with any other answer."""
    body = b'{"data":["' + b"x" * 30_000_000 + b'"]}'
    p = await proxy(keyed(await upstream(answer(body=body)), "main"), send_timeout=0.2)
    client = await p.connect()
    client.stop_reading()
    await client.send(get("/anthropic/v1/messages/batches"))
    assert (await p.line())["ending"] == "dD"
    client.go_on_reading()
    assert await client.eof() == "reset"
