"""What a client may try to spend past its limits, or at others' cost."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections import Counter

import crowd
import pytest
from backends import backend
from rawclient import asked, get, post
from running import StartProxy, StartUpstream, keyed
from scripted import JSON_TYPE, MESSAGE, Conn, Request, answer, head, raw, refusal
from test_quota import ALICE, BOB, COST, GOOD, MESSAGES, Governed, ask, budget, governed, rate, said

__all__ = ["backend", "governed"]

TOOL = b'{"type":"message","content":[{"type":"tool_use","input":{"usage":{"input_tokens":999999999999}}}],'
END = b'"usage":{"input_tokens":12,"output_tokens":6}}'


def lies(go_on: asyncio.Event, *, to_the_end: bool = True) -> object:
    """An answer in whose middle a tool's input looks like a usage of a million million tokens."""

    async def play(conn: Conn) -> None:
        await conn.request()
        length = (b"Content-Length", b"%d" % (len(TOOL) + len(END)))
        await conn.send(head(200, [JSON_TYPE, length]) + TOOL)
        await go_on.wait()
        if to_the_end:
            await conn.send(END)
        else:
            conn.reset()

    return raw(play)


async def test_what_a_tool_s_input_says_is_no_usage(upstream: StartUpstream, governed: Governed) -> None:
    """It is not charged, not even until the real usage comes, so it is never given back either."""
    go_on = asyncio.Event()
    up = await upstream(*[lies(go_on)] * 4, GOOD)
    p = await governed(up, alice=budget(10**9), bob=budget(10**9))
    asking = [asyncio.ensure_future(ask(p)) for _ in range(4)]
    await crowd.until(lambda: up.arrived == 4, "requests")
    await asyncio.sleep(0.1)
    assert (await ask(p, BOB)).status == 200
    assert (await governed.counters(p)).get("virtual_key/alice cost") == 0
    go_on.set()
    assert {response.status for response in await asyncio.gather(*asking)} == {200}
    assert (await governed.counters(p))["virtual_key/alice cost"] == 4 * COST * 10**6


async def test_a_cut_answer_is_charged_by_its_bytes_not_by_what_it_claims(
    upstream: StartUpstream, governed: Governed
) -> None:
    """A team is not charged a million dollars because somebody left in the right moment."""
    go_on = asyncio.Event()
    up = await upstream(lies(go_on, to_the_end=False))
    p = await governed(up, alice=budget(10**9))
    asking = asyncio.ensure_future(ask(p))
    await crowd.until(lambda: up.arrived == 1, "a request")
    await asyncio.sleep(0.1)
    go_on.set()
    assert not (await asking).complete
    line = await p.line()
    assert line["usage"] == {"input_tokens": line["bytes_in"] // 4, "output_tokens": line["bytes_out"] // 4}
    cost = line["usage"]["input_tokens"] * 3 + line["usage"]["output_tokens"] * 15
    assert (await governed.counters(p))["virtual_key/alice cost"] == cost * 10**6


UNREPORTED = {
    "legacy completion": (
        "/anthropic/v1/complete",
        answer(body=b'{"type":"completion","completion":" Hi","stop_reason":"stop_sequence"}'),
    ),
    "compressed answer": (
        MESSAGES,
        answer(headers=[JSON_TYPE, (b"Content-Encoding", b"gzip")], body=gzip.compress(MESSAGE)),
    ),
}


@pytest.mark.parametrize("what", UNREPORTED)
async def test_what_reports_no_usage_is_not_free(
    upstream: StartUpstream, governed: Governed, what: str
) -> None:
    """It is charged by the bytes that passed, four to a token, and the log says so, once."""
    path, step = UNREPORTED[what]
    up = await upstream(step, step)
    p = await governed(up, alice=budget(10**9))
    for _ in range(2):
        assert (await p.ask(post(path, asked(), [ALICE], key=None))).status == 200
    lines = [await p.line(), await p.line()]
    tokens = [(line["bytes_in"] // 4, line["bytes_out"] // 4) for line in lines]
    cost = sum(taken * 3 + given * 15 for taken, given in tokens)
    assert (await governed.counters(p))["virtual_key/alice cost"] == cost * 10**6
    assert p.log_text.count("no usage from 'anthropic/claude-2'") == 1


async def test_an_early_stream_that_failed_costs_nothing(upstream: StartUpstream, governed: Governed) -> None:
    """Its 200 is the proxy's own: nobody has answered."""

    begun = asyncio.Event()

    async def refuses_late(conn: Conn) -> None:
        await conn.request()
        await begun.wait()
        await conn.send(refusal(529))

    up = await upstream(raw(refuses_late))
    p = await governed(up, alice=budget(10**9), early_stream_after=0.05)
    client = await p.connect()
    await client.send(post(MESSAGES, asked(stream=True), [ALICE], key=None))
    await client.head()
    begun.set()
    response = await client.rest()
    assert (response.status, b"event: error" in response.body) == (200, True)
    assert (await p.line())["cost"] == "0"
    assert (await governed.counters(p))["virtual_key/alice cost"] == 0


async def test_reading_what_others_used_up_costs_nothing(upstream: StartUpstream, governed: Governed) -> None:
    """The results of a batch are full of usages, however often they are read."""
    line = b'{"custom_id":"a","result":{"message":{"usage":{"input_tokens":9,"output_tokens":9}}}}\n'
    up = await upstream(answer(body=line * 3))
    p = await governed(up, alice=budget(10**9))
    path = MESSAGES + "/batches/msgbatch_1/results"
    assert (await p.ask(get(path, [ALICE]), "GET")).status == 200
    assert (await governed.counters(p))["virtual_key/alice cost"] == 0


async def test_counting_tokens_costs_none(upstream: StartUpstream, governed: Governed) -> None:
    """Its answer has a number of tokens, which nobody has used."""
    up = await upstream(answer(body=b'{"input_tokens":2095}'))
    p = await governed(up, alice=budget(10**9))
    path = MESSAGES + "/count_tokens"
    assert (await p.ask(post(path, asked(), [ALICE], key=None))).status == 200
    assert (await governed.counters(p))["virtual_key/alice cost"] == 0


SPELLINGS = ["%62atches", "batches%2f", "batches;x=1", "batches%20", "batche%73", "batches%3fx", "Batches"]


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_a_batch_is_one_in_any_spelling(
    upstream: StartUpstream, governed: Governed, spelling: str
) -> None:
    """What an upstream may read as the batches' path is refused where batches are."""
    up = await upstream()
    p = await governed(up, alice=budget(10**9))
    response = await p.ask(post(f"/anthropic/v1/messages/{spelling}", b"{}", [ALICE], key=None))
    assert (response.status, up.connections) == (403, 0)


async def test_a_limit_at_one_provider_holds_for_requests_at_once(
    upstream: StartUpstream, governed: Governed
) -> None:
    """Of forty as many are served as there is room for; the others have nowhere else to go."""
    up = await upstream(*[GOOD] * 2)
    allowed = [{"provider": "anthropic", "allowed_models": ["*"], **rate(requests=2)}]
    p = await governed(up, alice={"provider_configs": allowed})
    statuses = Counter(response.status for response in await asyncio.gather(*(ask(p) for _ in range(40))))
    assert statuses == {200: 2, 429: 38}
    assert (await governed.counters(p))["virtual_key/alice/anthropic requests"] == 2


async def test_a_key_that_is_revoked_while_its_body_comes_is_refused(
    upstream: StartUpstream, governed: Governed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow body keeps no door open."""
    monkeypatch.setattr("proxy.handle.FRESH_SECONDS", 0.05)
    up = await upstream()
    p = await governed(up)
    other = await governed(up, alice={"is_active": False})
    request = post(MESSAGES, asked(), [ALICE], key=None)
    client = await p.connect()
    await client.send(request[:-5])
    await asyncio.sleep(0.1)
    p.server.use(other.server._config)
    await client.send(request[-5:])
    response = await client.response()
    assert (response.status, said(response)[:21]) == (403, "virtual_key_blocked: ")


@pytest.mark.parametrize("status", [401, 403])
async def test_a_request_that_every_key_refuses_takes_no_good_key_out(
    upstream: StartUpstream, proxy: StartProxy, status: int
) -> None:
    """It is the request, as far as anybody knows, if the keys have just worked for others."""
    good = answer(body=MESSAGE)

    async def judges(conn: Conn, request: Request) -> None:
        await conn.send(refusal(status) if request.header("origin") else good)

    up = await upstream(*[judges] * 14)
    p = await proxy(keyed(up, "one", "two"), network={"max_retries": 0})
    for _ in range(10):
        assert (await p.post(MESSAGES, asked())).status == 200
    assert len({request.header("x-api-key") for request in up.requests}) == 2
    response = await p.post(MESSAGES, asked(), [(b"Origin", b"https://elsewhere.example")])
    assert (response.status, json.loads(response.body)["error"]["type"]) == (502, "api_error")
    for _ in range(2):
        assert (await p.post(MESSAGES, asked())).status == 200
