"""Provider keys: which is used, which rotates, which is out, and whose it is."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
from rawclient import CLIENT_KEY, Response, asked, get, post
from running import StartProxy, StartUpstream, keyed
from scripted import MESSAGE, answer, refusal

from proxy import config, keys, plan
from proxy.keys import Cooling

MESSAGES = "/anthropic/v1/messages"
GOOD = answer(body=MESSAGE)
REFUSED = refusal(401, "authentication_error")
QUICK = {"max_retries": 0}


def used(*requests: Any) -> list[str]:
    return [request.header("x-api-key").decode().removeprefix("sk-test-") for request in requests]


def said(response: Response) -> str:
    message = json.loads(response.body)["error"]["message"]
    assert isinstance(message, str)
    return message


def with_keys(url: str, *entries: dict[str, Any]) -> dict[str, Any]:
    named = [{"value": f"env.TEST_KEY_{entry['name'].upper()}", **entry} for entry in entries]
    return {"base_urls": {"anthropic": url}, "keys": named}


async def test_keys_are_drawn_by_their_weight(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Of a key with three times the weight three times as many requests are made, within chance."""
    up = await upstream(*[GOOD] * 200)
    entries = ({"name": "big", "weight": 3}, {"name": "small"}, {"name": "spare", "weight": 0})
    p = await proxy(with_keys(up.url, *entries))
    client = await p.connect()
    for _ in range(200):
        await client.send(post(MESSAGES, asked()))
        assert (await client.response()).status == 200
    counts = Counter(used(*up.requests))
    assert 110 <= counts["big"] <= 185
    assert counts["spare"] == 0


async def test_a_key_that_does_not_allow_the_model_is_not_used(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Only those that allow the model are drawn from."""
    up = await upstream(*[GOOD] * 10)
    entries = ({"name": "old", "models": ["claude-2*"]}, {"name": "new", "models": ["claude-3*", "x"]})
    p = await proxy(with_keys(up.url, *entries))
    for model in ("claude-2", "claude-3-x") * 5:
        assert (await p.post(MESSAGES, asked(model))).status == 200
    assert used(*up.requests) == ["old", "new"] * 5


async def test_a_key_can_be_asked_for_by_its_name(upstream: StartUpstream, proxy: StartProxy) -> None:
    """``x-bf-api-key`` names one; it goes upstream as little as any ``x-bf-`` field."""
    up = await upstream(*[GOOD] * 6)
    p = await proxy(keyed(up, "one", "two"))
    for name in (b"one", b"two") * 3:
        assert (await p.post(MESSAGES, asked(), [(b"X-BF-Api-Key", name)])).status == 200
    assert used(*up.requests) == ["one", "two"] * 3
    assert all(request.header("x-bf-api-key") is None for request in up.requests)


async def test_a_key_that_is_not_there_cannot_be_asked_for(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """An unknown name is a 400; a target whose provider has no such key is passed over."""
    up, backup = await upstream(), await upstream(GOOD)
    p = await proxy(providers={"anthropic": keyed(up, "one"), "backup": keyed(backup, "other")})
    response = await p.post(MESSAGES, asked(), [(b"x-bf-api-key", b"three")])
    assert (response.status, "three" in said(response)) == (400, True)
    response = await p.post(MESSAGES, asked(fallbacks=["backup/x"]), [(b"x-bf-api-key", b"other")])
    assert response.header("x-bifrost-attempts") == b"anthropic/claude-2:no_such_key,backup/x:200"


async def test_a_pinned_key_does_not_rotate(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Who asks for one key gets no other, even when it is refused."""
    up = await upstream(REFUSED)
    p = await proxy(keyed(up, "one", "two"), network=QUICK)
    response = await p.post(MESSAGES, asked(), [(b"x-bf-api-key", b"two")])
    assert (response.status, used(*up.requests)) == (502, ["two"])


async def test_a_429_rotates_and_takes_no_key_out(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The next key is tried at once; the limited one is drawn again by the next request."""
    # Keys are drawn: that one of two never comes first has a chance of one in half a million.
    up = await upstream(*[refusal(429), GOOD] * 20)
    p = await proxy(keyed(up, "one", "two"), network=QUICK)
    for _ in range(20):
        assert (await p.post(MESSAGES, asked())).status == 200
    first = used(*up.requests[::2])
    assert set(first) == {"one", "two"}
    assert all(a != b for a, b in zip(first, used(*up.requests[1::2]), strict=True))


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_a_refused_key_is_out_for_everybody(
    upstream: StartUpstream, proxy: StartProxy, status: int
) -> None:
    """The requests that follow do not try it, and `/metrics` says which it is."""
    up = await upstream(*[GOOD] * 30)
    p = await proxy(keyed(up, "one", "two"), network=QUICK)
    up._steps[:0] = [refusal(status)]
    assert (await p.post(MESSAGES, asked())).status == 200
    lost, kept = used(*up.requests)
    for _ in range(20):
        assert (await p.post(MESSAGES, asked())).status == 200
    assert set(used(*up.requests[2:])) == {kept}
    is_down = f'bifrost_provider_key_up{{key_name="{lost}",provider="anthropic"}} 0.0' in p.metrics_text
    # A 403 is about the model as well as about the key.
    assert is_down is (status != 403)
    for _ in range(9):
        assert (await p.post(MESSAGES, asked("claude-3"))).status == 200
    assert (lost in used(*up.requests[22:])) is (status == 403)


@pytest.mark.parametrize("again", [False, True], ids=["the first", "those that follow"])
async def test_all_keys_out_is_a_502_that_names_the_provider(
    upstream: StartUpstream, proxy: StartProxy, again: bool
) -> None:
    """The client's own key is not to blame, so it is no 401; and no request is made while all are out."""
    up = await upstream(REFUSED, REFUSED)
    p = await proxy(keyed(up, "one", "two"), network=QUICK)
    response = await p.post(MESSAGES, asked())
    if again:
        response = await p.post(MESSAGES, asked())
    assert response.status == 502
    assert said(response).startswith("upstream_credentials_exhausted: anthropic ")
    assert up.arrived == 2


async def test_while_all_keys_are_out_the_plan_goes_on(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The next target serves, and the provider is not asked in vain."""
    up, backup = await upstream(REFUSED), await upstream(GOOD, GOOD)
    p = await proxy(providers={"anthropic": keyed(up, "one"), "backup": backup}, network=QUICK)
    tried = []
    for _ in range(2):
        response = await p.post(MESSAGES, asked(fallbacks=["backup/claude-2"]))
        assert response.status == 200
        tried.append(response.header("x-bifrost-attempts"))
    assert tried == [
        b"anthropic/claude-2:401,backup/claude-2:200",
        b"anthropic/claude-2:no_key_left,backup/claude-2:200",
    ]


async def test_a_route_that_names_no_model_takes_no_key_out(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Clients choose such paths, and a 403 may be about what they name: it is relayed, and no key is out."""
    up = await upstream(refusal(403, "permission_error"), REFUSED, GOOD)
    p = await proxy(keyed(up, "one"), network=QUICK)
    assert (await p.ask(get("/anthropic/v1/files/file_1"), "GET")).status == 403
    assert (await p.ask(get("/anthropic/v1/organizations"), "GET")).status == 502
    assert (await p.post(MESSAGES, asked())).status == 200


def chosen(text: str) -> plan.Target:
    loaded = config.load(text, {"K": "sk-test-k"}, lambda name: "")
    (target,) = plan.build(loaded, "anthropic", "m", ()).targets
    return target


def test_the_time_that_a_key_is_out_grows_and_ends() -> None:
    """5 seconds, then twice as long each time, up to ten minutes; a success forgets it all."""
    target = chosen("providers: {a: {base_urls: {anthropic: 'http://h'}, keys: [{name: k, value: env.K}]}}")
    (key,) = target.keys
    now = 1000.0
    cooling = Cooling(lambda: now)
    for expected in (5, 10, 20, 40, 80, 160, 320, 600, 600):
        cooling.refused(target, key, "401")
        cooling.refused(target, key, "401")  # One more request that was under way.
        now += expected - 0.01
        assert list(cooling.usable(target)) == []
        assert cooling.out() == [("a", "k")]
        now += 0.02
        assert list(cooling.usable(target)) == [key]
    cooling.worked(target, key)
    cooling.refused(target, key, "402")
    now += 5.01
    assert list(cooling.usable(target)) == [key]


def test_what_is_remembered_of_refused_keys_is_bounded() -> None:
    """Clients choose models, so 403s for ever new ones take no more memory."""
    target = chosen("providers: {a: {base_urls: {anthropic: 'http://h'}, keys: [{name: k, value: env.K}]}}")
    cooling = Cooling(lambda: 0.0)
    for number in range(5000):
        other = plan.Target(0, target.provider, f"m{number}", target.keys, True)
        cooling.refused(other, target.keys[0], "403")
    assert len(cooling._refused) == keys.MAX_REMEMBERED


DIRECT = (b"x-api-key", CLIENT_KEY)


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_client_s_own_key_is_used_only_where_that_is_allowed(
    upstream: StartUpstream, proxy: StartProxy, allowed: bool
) -> None:
    """Without allow_direct_keys ours is used instead; with it a client without a key still gets ours."""
    up = await upstream(GOOD, GOOD)
    p = await proxy(keyed(up, "main"), allow_direct_keys=allowed)
    for fields in ([DIRECT], []):
        assert (await p.ask(post(MESSAGES, asked(), fields, key=None))).status == 200
    first, second = up.requests
    assert first.header("x-api-key") == (CLIENT_KEY if allowed else b"sk-test-main")
    assert second.header("x-api-key") == b"sk-test-main"
    assert [line["key"] for line in (await p.line(), await p.line())] == ["" if allowed else "main", "main"]


async def test_a_client_s_own_key_goes_to_the_default_provider_only(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """A fallback at another provider gets the key that we have for it."""
    up, backup = await upstream(refusal(529)), await upstream(GOOD)
    p = await proxy(
        providers={"anthropic": keyed(up, "main"), "backup": keyed(backup, "other")},
        network=QUICK,
        allow_direct_keys=True,
    )
    assert (await p.post(MESSAGES, asked(fallbacks=["backup/x"]))).status == 200
    assert up.requests[0].header("x-api-key") == CLIENT_KEY
    assert backup.requests[0].header("x-api-key") == b"sk-test-other"


async def test_a_client_s_own_key_that_is_refused_takes_none_of_ours_out(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """It is told to the client, and the next client gets our key."""
    up = await upstream(REFUSED, GOOD)
    p = await proxy(keyed(up, "main"), allow_direct_keys=True, network=QUICK)
    assert (await p.post(MESSAGES, asked())).status == 401
    assert (await p.ask(post(MESSAGES, asked(), key=None))).status == 200


async def test_a_virtual_key_that_names_provider_keys_allows_no_other(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Not the client's own one either, which would escape whoever pays."""
    up = await upstream(GOOD)
    allowed = [{"provider": "anthropic", "allowed_models": ["*"], "key_ids": ["main"]}]
    p = await proxy(
        keyed(up, "main"),
        allow_direct_keys=True,
        virtual_keys={"alice": {"value": "env.ALICE", "provider_configs": allowed}},
        environ={"ALICE": "sk-bf-sk-test-alice"},
    )
    fields = [DIRECT, (b"x-bf-vk", b"sk-bf-sk-test-alice")]
    assert (await p.ask(post(MESSAGES, asked(), fields, key=None))).status == 200
    assert up.requests[0].header("x-api-key") == b"sk-test-main"


def test_a_draw_without_luck_is_still_a_draw() -> None:
    """Keys of weight 0 come last, and every key is in the order once."""
    loaded = config.load(
        "providers: {a: {base_urls: {anthropic: 'http://h'}, keys: ["
        "{name: z, value: env.K, weight: 0}, {name: a, value: env.K}, {name: b, value: env.K, weight: 9}]}}",
        {"K": "sk-test-k"},
        lambda name: "",
    )
    pool = loaded.providers["a"].keys
    for seed in range(50):
        drawn = [key.name for key in keys.draw(pool, random.Random(seed))]
        assert (drawn[-1], sorted(drawn)) == ("z", ["a", "b", "z"])
