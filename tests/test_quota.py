"""Limits and budgets: who is refused and how, what is charged, and what happens without the store."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from backends import Backend, backend
from rawclient import Response, asked, get, post
from running import Proxy, StartProxy, StartUpstream, keyed
from scripted import (
    JSON_TYPE,
    MESSAGE,
    MESSAGE_EVENTS,
    Conn,
    answer,
    chunk,
    raw,
    refusal,
    stream_head,
    streamed,
)

from proxy import holders, ledger, limits

MESSAGES = "/anthropic/v1/messages"
GOOD = answer(body=MESSAGE)
"""12 tokens in, 6 out."""

COST = 12 * 3 + 6 * 15
"""In millionths of a dollar, at the prices below."""

PRICES = """
default: {input: 30, output: 150}
models:
  claude-2: {input: 3, output: 15}
  cached: {input: 3, output: 15, cache_read: 0.3, cache_write: 3.75, cache_write_1h: 6}
"""
ALICE = (b"x-bf-vk", b"sk-bf-sk-test-alice")
BOB = (b"x-bf-vk", b"sk-bf-sk-test-bob")
ALL = [{"provider": "anthropic", "allowed_models": ["*"]}, {"provider": "backup", "allowed_models": ["*"]}]


__all__ = ["backend"]


@pytest.fixture(autouse=True)
def _windows_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """No window ends in the middle of a test."""
    monkeypatch.setattr(limits, "_window", lambda duration, minute: (0, 4_000_000_000))


class Governed:
    """Starts proxies with a store, prices, and the keys ``alice`` and ``bob``."""

    def __init__(self, start: StartProxy, backend: Backend, directory: Path) -> None:
        self._start = start
        self._backend = backend
        self._prices = directory / "prices.yaml"
        self._prices.write_text(PRICES)

    async def __call__(self, *arguments: Any, alice: Any = None, bob: Any = None, **more: Any) -> Proxy:
        own = {"alice": alice or {}, "bob": bob or {}}
        allowed = ALL if "backup" in (more.get("providers") or {}) else ALL[:1]
        settings: dict[str, Any] = {
            "store": self._backend.url,
            "prices": str(self._prices),
            "virtual_keys": {
                name: {"value": f"env.{name.upper()}", "provider_configs": allowed, **key}
                for name, key in own.items()
            },
        }
        environ = {"ALICE": ALICE[1].decode(), "BOB": BOB[1].decode()}
        return await self._start(
            *arguments, environ=environ, network={"max_retries": 0}, **{**settings, **more}
        )

    async def counters(self, p: Proxy) -> dict[str, int]:
        """What the store counts, by owner and kind, once everything has reached it."""
        assert p.server._ledger is not None
        async with asyncio.timeout(20):
            while p.server._ledger.waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return await self._backend.counters()


@pytest.fixture
def governed(backend: Backend, proxy: StartProxy, tmp_path: Path) -> Governed:
    return Governed(proxy, backend, tmp_path)


def rate(requests: int | None = None, tokens: int | None = None) -> dict[str, Any]:
    limit: dict[str, Any] = {}
    if requests is not None:
        limit |= {"request_max_limit": requests, "request_reset_duration": "1m"}
    if tokens is not None:
        limit |= {"token_max_limit": tokens, "token_reset_duration": "1h"}
    return {"rate_limit": limit}


def budget(millionths: int, window: str = "1d") -> dict[str, Any]:
    return {"budgets": [{"max_limit": float(f"{millionths / 1e6:.6f}"), "reset_duration": window}]}


async def ask(p: Proxy, field: tuple[bytes, bytes] = ALICE, model: str = "claude-2", **more: Any) -> Response:
    return await p.ask(post(MESSAGES, asked(model, **more), [field], key=None))


def said(response: Response) -> str:
    message = json.loads(response.body)["error"]["message"]
    assert isinstance(message, str)
    return message


REFUSALS: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "requests": (rate(requests=2), 429, "request_limited: ", "rate_limit_error"),
    "tokens": (rate(tokens=36), 429, "token_limited: ", "rate_limit_error"),
    "budget": (budget(2 * COST), 402, "budget_exceeded: ", "billing_error"),
    "the rate limit before the budget": (
        {**budget(2 * COST), **rate(tokens=36)},
        429,
        "token_limited: ",
        "rate_limit_error",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
async def test_a_full_limit_refuses(upstream: StartUpstream, governed: Governed, what: str) -> None:
    """Two requests fill it; the third is refused, says until when, and is not counted. Others go on."""
    settings, status, code, kind = REFUSALS[what]
    up = await upstream(GOOD, GOOD, GOOD)
    p = await governed(up, alice=settings)
    for _ in range(2):
        assert (await ask(p)).status == 200
    before = await governed.counters(p)
    response = await ask(p)
    assert (response.status, said(response)[: len(code)]) == (status, code)
    assert json.loads(response.body)["error"]["type"] == kind
    seconds = int(response.header("retry-after") or 0)
    assert abs(seconds - (4_000_000_000 - time.time())) < 5
    assert response.header("x-should-retry") == b"false"
    assert await governed.counters(p) == before
    assert (await ask(p, BOB)).status == 200


async def test_a_wait_of_a_minute_is_one_that_sdks_may_make(
    upstream: StartUpstream, governed: Governed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``x-should-retry`` says no only where ``retry-after`` is longer than SDKs obey."""
    end = int(time.time()) + 40
    monkeypatch.setattr(limits, "_window", lambda duration, minute: (0, end))
    up = await upstream(GOOD)
    p = await governed(up, alice=rate(requests=1))
    assert (await ask(p)).status == 200
    response = await ask(p)
    assert 35 <= int(response.header("retry-after") or 0) <= 40
    assert response.header("x-should-retry") is None


async def test_the_limits_of_key_team_and_customer_hold_at_once(
    upstream: StartUpstream, governed: Governed
) -> None:
    """Each request is charged to all three, and the first that is full refuses; its owner is named."""
    up = await upstream(*[GOOD] * 4)
    p = await governed(
        up,
        alice={**budget(1_000_000), "team_id": "red"},
        bob={**budget(1_000_000), "team_id": "red"},
        teams={"red": {**budget(3 * COST), "customer_id": "acme"}},
        customers={"acme": {**budget(1_000_000), **rate(requests=100)}},
    )
    for who in (ALICE, BOB, ALICE):
        assert (await ask(p, who)).status == 200
    response = await ask(p, BOB)
    assert (response.status, said(response)) == (
        402,
        "budget_exceeded: the limit of this team is reached: $0.000378 per 1d;"
        " it begins anew at 2096-10-02T07:06:40Z.",
    )
    pico = COST * 10**6
    assert await governed.counters(p) == {
        "virtual_key/alice cost": 2 * pico,
        "virtual_key/bob cost": pico,
        "team/red cost": 3 * pico,
        "customer/acme cost": 3 * pico,
        "customer/acme requests": 3,
    }
    up.allow_unused = True


async def test_a_target_whose_budget_is_spent_is_passed_over(
    upstream: StartUpstream, governed: Governed
) -> None:
    """The next target serves; when every one is spent the first refusal is the answer."""
    up, backup = await upstream(GOOD), await upstream(GOOD, GOOD)
    configs = [{**ALL[0], **budget(COST), **rate(requests=9)}, {**ALL[1], **rate(requests=2)}]
    p = await governed(providers={"anthropic": up, "backup": backup}, alice={"provider_configs": configs})
    tried = []
    for _ in range(4):
        response = await ask(p, fallbacks=["backup/claude-2"])
        tried.append((response.status, response.header("x-bifrost-attempts")))
    assert tried[:3] == [
        (200, b"anthropic/claude-2:200"),
        (200, b"anthropic/claude-2:budget_exceeded,backup/claude-2:200"),
        (200, b"anthropic/claude-2:budget_exceeded,backup/claude-2:200"),
    ]
    assert (response.status, said(response)[:17]) == (402, "budget_exceeded: ")
    assert await governed.counters(p) == {
        "virtual_key/alice/anthropic cost": COST * 10**6,
        "virtual_key/alice/anthropic requests": 1,
        "virtual_key/alice/backup requests": 2,
    }


async def test_a_provider_that_failed_is_counted_as_asked(
    upstream: StartUpstream, governed: Governed
) -> None:
    """Requests per provider are those that went there; the cost is charged to who served."""
    up, backup = await upstream(refusal(529)), await upstream(GOOD)
    configs = [
        {**ALL[0], **budget(10**6), **rate(requests=9)},
        {**ALL[1], **budget(10**6), **rate(requests=9)},
    ]
    p = await governed(providers={"anthropic": up, "backup": backup}, alice={"provider_configs": configs})
    assert (await ask(p, fallbacks=["backup/claude-2"])).status == 200
    assert await governed.counters(p) == {
        "virtual_key/alice/anthropic requests": 1,
        "virtual_key/alice/anthropic cost": 0,
        "virtual_key/alice/backup requests": 1,
        "virtual_key/alice/backup cost": COST * 10**6,
    }


async def test_what_a_failed_attempt_reported_is_charged_too(
    upstream: StartUpstream, governed: Governed
) -> None:
    """Upstream will bill it: the sum is that of all attempts."""
    up, backup = await upstream(answer(500, [JSON_TYPE], MESSAGE)), await upstream(GOOD)
    p = await governed(providers={"anthropic": up, "backup": backup}, alice=budget(10**9))
    assert (await ask(p, fallbacks=["backup/claude-2"])).status == 200
    assert await governed.counters(p) == {"virtual_key/alice cost": 2 * COST * 10**6}


async def test_who_is_refused_does_not_keep_the_store_busy(
    upstream: StartUpstream, governed: Governed
) -> None:
    """For a second a full limit is taken for full, without a look."""
    up = await upstream(GOOD)
    p = await governed(up, alice=budget(COST))
    assert (await ask(p)).status == 200
    await governed.counters(p)
    assert (await ask(p)).status == 402
    await governed.counters(p)
    store = p.server._store
    assert store is not None
    store.add = _fails  # type: ignore[method-assign]
    assert [(await ask(p)).status for _ in range(5)] == [402] * 5


async def test_no_limit_is_passed_by_more_than_what_is_in_flight(
    upstream: StartUpstream, governed: Governed
) -> None:
    """Of forty requests at once exactly as many pass as a limit on requests has room for."""
    up = await upstream(*[GOOD] * 7)
    p = await governed(up, alice=rate(requests=7))
    statuses = [response.status for response in await asyncio.gather(*(ask(p) for _ in range(40)))]
    assert (statuses.count(200), statuses.count(429)) == (7, 33)
    assert await governed.counters(p) == {"virtual_key/alice requests": 7}


USAGES = {
    "plain": ({"input_tokens": 100, "output_tokens": 10}, 100 * 3 + 10 * 15),
    "cached": (
        {
            "input_tokens": 1,
            "cache_creation_input_tokens": 1000,
            "cache_read_input_tokens": 10000,
            "cache_creation": {"ephemeral_5m_input_tokens": 600, "ephemeral_1h_input_tokens": 400},
            "output_tokens": 2,
        },
        1 * 3 + 600 * 3.75 + 400 * 6 + 10000 * 0.3 + 2 * 15,
    ),
}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("usage", USAGES)
async def test_what_is_charged_is_what_upstream_reported(
    upstream: StartUpstream, governed: Governed, usage: str, stream: bool
) -> None:
    """Exactly, to the last digit; the log line says it as well."""
    counts, millionths = USAGES[usage]
    body = json.dumps({"type": "message", "usage": counts}).encode()
    if stream:
        start = json.dumps({"type": "message_start", "message": {"usage": {**counts, "output_tokens": 1}}})
        delta = json.dumps({"type": "message_delta", "usage": {"output_tokens": counts["output_tokens"]}})
        events = [f"event: message_start\ndata: {start}\n\n", f"event: message_delta\ndata: {delta}\n\n"]
        up = await upstream(streamed([event.encode() for event in events]))
    else:
        up = await upstream(answer(body=body))
    p = await governed(up, alice=budget(10**9))
    assert (await ask(p, model="cached", stream=stream)).status == 200
    assert await governed.counters(p) == {"virtual_key/alice cost": round(millionths * 10**6)}
    assert (await p.line())["cost"] == limits.dollars(round(millionths * 10**6))


async def test_an_unknown_model_is_charged_at_the_default_price_and_logged(
    upstream: StartUpstream, governed: Governed
) -> None:
    """Nothing is free because nobody knows its price; the log names the model once."""
    up = await upstream(GOOD, GOOD)
    p = await governed(up, alice=budget(10**9))
    for _ in range(2):
        assert (await ask(p, model="claude-9")).status == 200
    assert await governed.counters(p) == {"virtual_key/alice cost": 2 * 10 * COST * 10**6}
    assert p.log_text.count("no price for 'anthropic/claude-9'") == 1


async def test_a_cut_stream_is_charged_for_what_was_seen(upstream: StartUpstream, governed: Governed) -> None:
    """The usage of its first event, when nothing else came."""

    async def cuts(conn: Conn) -> None:
        await conn.request()
        await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]) + chunk(MESSAGE_EVENTS[1]))
        conn.reset()

    up = await upstream(raw(cuts))
    p = await governed(up, alice={**budget(10**9), **rate(tokens=1000)})
    response = await ask(p, stream=True)
    assert not response.complete
    assert await governed.counters(p) == {
        "virtual_key/alice cost": (12 * 3 + 1 * 15) * 10**6,
        "virtual_key/alice tokens": 13,
    }


async def test_a_stream_is_charged_as_it_goes(upstream: StartUpstream, governed: Governed) -> None:
    """While it is still open its first usage is in the store: not even a kill would forget it."""
    seen, go_on = asyncio.Event(), asyncio.Event()

    async def waits(conn: Conn) -> None:
        await conn.request()
        await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
        seen.set()
        await go_on.wait()
        await conn.send(b"".join(map(chunk, MESSAGE_EVENTS[1:])) + b"0\r\n\r\n")

    up = await upstream(raw(waits))
    p = await governed(up, alice=rate(tokens=1000))
    asking = asyncio.ensure_future(ask(p, stream=True))
    await seen.wait()
    async with asyncio.timeout(20):
        while (await governed.counters(p)).get("virtual_key/alice tokens") != 13:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    go_on.set()
    assert (await asking).complete
    assert await governed.counters(p) == {"virtual_key/alice tokens": 18}


async def test_who_leaves_is_charged_for_what_was_seen(upstream: StartUpstream, governed: Governed) -> None:
    """A client that has gone does not take its bill with it."""

    async def streams(conn: Conn) -> None:
        await conn.request()
        await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
        await conn.gone()

    up = await upstream(raw(streams))
    p = await governed(up, alice=rate(tokens=1000))
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True), [ALICE], key=None))
    await client.head()
    await client.read_until(b"message_start")
    client.close()
    assert (await p.line())["ending"] == "DD"
    assert await governed.counters(p) == {"virtual_key/alice tokens": 13}


async def test_a_metered_request_asks_for_a_plain_answer(upstream: StartUpstream, governed: Governed) -> None:
    """In a compressed answer no usage can be seen; who has no such limit gets what the client asked for."""
    up = await upstream(GOOD, GOOD)
    p = await governed(up, alice=budget(10**9), bob=rate(requests=5))
    fields = [(b"Accept-Encoding", b"gzip, br")]
    for who in (ALICE, BOB):
        assert (await p.ask(post(MESSAGES, asked(), [who, *fields], key=None))).status == 200
    assert [request.header("accept-encoding") for request in up.requests] == [b"identity", b"gzip, br"]


async def test_a_batch_is_refused_where_its_cost_would_matter(
    upstream: StartUpstream, governed: Governed
) -> None:
    """What a batch uses up is seen nowhere, so who has a budget cannot make one."""
    up = await upstream(answer(200, [JSON_TYPE], b"{}"), answer(200, [JSON_TYPE], b"{}"))
    p = await governed(up, alice=budget(10**9))
    path = "/anthropic/v1/messages/batches"
    response = await p.ask(post(path, b"{}", [ALICE], key=None))
    assert (response.status, said(response)[:15]) == (403, "model_blocked: ")
    assert (await p.ask(post(path, b"{}", [BOB], key=None))).status == 200
    assert (await p.ask(get(path + "/b_1", [ALICE]), "GET")).status == 200


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(holders, "FRESH_SECONDS", 0.05)


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("choice", ["refuse", "allow"])
async def test_without_the_store(
    upstream: StartUpstream, governed: Governed, tmp_path: Path, choice: str
) -> None:
    """Who has limits is refused or allowed, as configured; who has none goes on; then all is well again."""
    up = await upstream(*[GOOD] * 5)
    up.allow_unused = True
    p = await governed(up, alice={**budget(10**9), **rate(requests=100)}, on_store_failure=choice)
    assert (await ask(p)).status == 200
    assert (await governed.counters(p))["virtual_key/alice cost"] == COST * 10**6
    store = p.server._store
    assert store is not None
    real, store.add = store.add, _fails  # type: ignore[method-assign]
    response = await ask(p)
    assert response.status == (503 if choice == "refuse" else 200)
    assert (response.header("retry-after") is not None) == (choice == "refuse")
    assert (await ask(p, BOB)).status == 200
    store.add = real  # type: ignore[method-assign]
    async with asyncio.timeout(20):
        while (await ask(p)).status != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    allowed = 3 if choice == "allow" else 2
    counters = await governed.counters(p)
    assert counters["virtual_key/alice cost"] == allowed * COST * 10**6
    assert counters["virtual_key/alice requests"] == allowed
    assert "the store cannot be asked: " in p.log_text
    assert p.log_text.count("the store can be asked again") == 1


async def _fails(changes: object) -> list[int]:
    raise ledger.StoreError("gone")


async def test_counts_are_per_provider_key_and_virtual_key(
    upstream: StartUpstream, governed: Governed
) -> None:
    """`/metrics` has the names of both, and the cost."""
    up = await upstream(GOOD)
    p = await governed(keyed(up, "main"), alice=budget(10**9))
    assert (await ask(p)).status == 200
    await p.line()
    labels = (
        'fallback_index="0",method="/anthropic/v1/messages",model="claude-2",provider="anthropic",'
        'selected_key_name="main",virtual_key_name="alice"'
    )
    for name, value in (
        ("bifrost_cost_total", COST / 1e6),
        ("bifrost_input_tokens_total", 12.0),
        ("bifrost_upstream_requests_total", 1.0),
    ):
        assert f"{name}{{{labels}}} {value}" in p.metrics_text
