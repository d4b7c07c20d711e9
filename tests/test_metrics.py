"""`/metrics`: Bifrost's names where the thing is the same, and series that clients cannot multiply."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rawclient import asked, post, request_head
from running import Proxy, StartProxy, StartUpstream
from scripted import (
    MESSAGE,
    MESSAGE_EVENTS,
    PING,
    Conn,
    Request,
    answer,
    chunk,
    raw,
    refusal,
    stream_head,
    streamed,
)

MESSAGES = "/anthropic/v1/messages"
ONCE = {"max_retries": 0}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def samples(p: Proxy) -> Samples:
    """Every sample of `/metrics`, by name and labels."""
    response = await p.get("/metrics")
    assert response.status == 200
    assert (response.header("content-type") or b"").startswith(b"text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.body.decode())
        for sample in family.samples
    }


def total(found: Samples, name: str, **labels: str) -> float:
    """The sum over all samples of `name` that have these labels."""
    wanted = labels.items()
    return sum(value for (key, pairs), value in found.items() if key == name and wanted <= pairs)


def series(found: Samples) -> int:
    """How many series there are, creation times aside."""
    return sum(1 for name, _ in found if not name.endswith("_created"))


async def test_requests_are_counted(upstream: StartUpstream, proxy: StartProxy) -> None:
    """By route, method and status; successes and errors of upstream apart."""
    up = await upstream(answer(body=MESSAGE), answer(body=MESSAGE), refusal(529), answer(body=b"{}"))
    p = await proxy(up, network=ONCE)
    for _ in range(3):
        await p.post(MESSAGES, asked())
    await p.get("/anthropic/v1/models")
    await p.get("/unknown")
    found = await samples(p)
    assert total(found, "http_requests_total", method="POST", status="200") == 2
    assert total(found, "http_requests_total", method="POST", status="529") == 1
    assert total(found, "http_requests_total", method="GET", status="404") == 1
    assert total(found, "http_requests_total") == 5
    assert total(found, "http_request_duration_seconds_count") == 5
    assert total(found, "http_request_size_bytes_sum") == 3 * len(asked())
    assert total(found, "bifrost_upstream_requests_total", provider="anthropic", model="claude-2") == 3
    assert total(found, "bifrost_success_requests_total", provider="anthropic", model="claude-2") == 2
    assert total(found, "bifrost_error_requests_total", provider="anthropic", status_code="529") == 1


async def test_tokens_pings_and_endings_are_counted(upstream: StartUpstream, proxy: StartProxy) -> None:
    """What passed: tokens in and out, pings of ours, and how requests ended."""

    async def pauses(conn: Conn, _: Request) -> None:
        await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
        await conn.gone()

    up = await upstream(answer(body=MESSAGE), streamed(MESSAGE_EVENTS), pauses)
    p = await proxy(up, ping_interval=0.02)
    await p.post(MESSAGES, asked())
    await p.post(MESSAGES, asked(stream=True))
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True)))
    await client.head()
    await client.read_until(PING)
    client.close()
    lines = [await p.line() for _ in range(3)]
    found = await samples(p)
    assert total(found, "bifrost_input_tokens_total", model="claude-2") == 12 + 12 + 12
    assert total(found, "bifrost_output_tokens_total", model="claude-2") == 6 + 6 + 1
    assert total(found, "verbatim_pings_total") == sum(line["pings"] for line in lines) >= 1
    assert total(found, "verbatim_endings_total", ending="--") == 2
    assert total(found, "verbatim_endings_total", ending="DD") == 1
    assert total(found, "bifrost_stream_first_token_latency_seconds_count") == 2


async def test_retries_and_fallbacks_are_counted(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Who served is counted under its own name and its place in the plan."""
    up, backup = await upstream(refusal(529), refusal(529)), await upstream(answer(body=MESSAGE))
    p = await proxy(providers={"anthropic": up, "backup": backup}, network={"max_retries": 1})
    await p.post(MESSAGES, asked(fallbacks=["backup/b"]))
    found = await samples(p)
    served = {"provider": "backup", "model": "b", "fallback_index": "1"}
    assert total(found, "bifrost_success_requests_total", **served) == 1
    assert total(found, "bifrost_request_retries_sum", **served) == 2
    assert total(found, "bifrost_upstream_latency_seconds_count", is_success="true") == 1


async def test_active_requests_go_up_and_down(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A gauge that comes back, also when a client left; the scrape itself is one."""

    async def silent(conn: Conn) -> None:
        await conn.request()
        await conn.gone()

    up = await upstream(*[raw(silent)] * 3)
    p = await proxy(up)
    assert total(await samples(p), "bifrost_active_requests") == 1
    clients = [await p.connect() for _ in range(3)]
    for client in clients:
        await client.send(post(MESSAGES, asked()))
    await up.received(3)
    assert total(await samples(p), "bifrost_active_requests") == 4
    for client in clients:
        client.reset()
    await up.quiet()
    for _ in range(5):
        await p.line()
    assert total(await samples(p), "bifrost_active_requests") == 1


@pytest.mark.parametrize("status", [200, 404])
async def test_models_cannot_make_series_without_end(
    upstream: StartUpstream, proxy: StartProxy, status: int
) -> None:
    """Three thousand different names, good or bad, are no more series than the cap allows."""
    reply = answer(body=MESSAGE) if status == 200 else refusal(404)
    counts = []
    up = await upstream(*[reply] * 3000)
    p = await proxy(up, network=ONCE)
    client = await p.connect()
    for start in range(0, 3000, 300):
        for number in range(start, start + 300):
            await client.send(post(MESSAGES, asked(f"model-{number}")))
            assert (await client.response()).status == status
        counts.append(series(await samples(p)))
    # A hundred models at most have series of their own, many of them a histogram's buckets.
    assert counts[-1] < 10_000
    assert counts[-1] - counts[4] < 20, f"series go on growing: {counts}"


async def test_nothing_else_of_a_client_is_a_label(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Paths, methods, queries and fallbacks of every kind add no series after the first of their kind."""
    up = await upstream()
    p = await proxy(up)

    async def nonsense(number: int) -> None:
        for method in (f"M{number}", "GET"):
            for path in (f"/unknown/{number}", f"/anthropic/{number}/../x", f"/v1/x{number}"):
                await p.ask(request_head(method, path, [(b"Host", b"h")]), method)
        await p.post(MESSAGES, asked(f"m{number}", fallbacks=[f"nobody{number}/x"]))
        await p.ask(b"nonsense%d\r\n\r\n" % number)

    await nonsense(0)
    before = series(await samples(p))
    async with asyncio.TaskGroup() as group:
        for number in range(1, 20):
            group.create_task(nonsense(number))
    # The first scrape made series of its own route.
    assert series(await samples(p)) <= before + 40
    await nonsense(20)
    settled = series(await samples(p))
    await nonsense(21)
    assert series(await samples(p)) == settled
    assert up.connections == 0


async def test_health_is_200(upstream: StartUpstream, proxy: StartProxy) -> None:
    """`/health` answers while the proxy serves; HEAD has no body."""
    p = await proxy(await upstream())
    response = await p.get("/health")
    assert (response.status, response.body) == (200, b'{"status":"ok"}')
    for path in ("/health", "/metrics"):
        response = await p.ask(request_head("HEAD", path, [(b"Host", b"h")]), "HEAD")
        assert (response.status, response.body) == (200, b"")


async def test_garbage_that_leaves_at_once_is_counted_and_logged(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Its answer finds nobody; the count of open requests goes down again all the same."""
    p = await proxy(await upstream())
    for _ in range(20):
        client = await p.connect()
        await client.send(b"garbage\r\n\r\n")
        client.reset()
        await p.line()
    assert total(await samples(p), "bifrost_active_requests") == 1


async def test_odd_statuses_are_counted_by_their_class(upstream: StartUpstream, proxy: StartProxy) -> None:
    """An upstream that invents numbers makes no series of each."""
    up = await upstream(*(answer(status, body=b"{}") for status in range(460, 499)))
    p = await proxy(up)
    for _ in range(460, 499):
        await p.get("/anthropic/v1/models")
    found = await samples(p)
    assert total(found, "http_requests_total", status="4xx") == 39
