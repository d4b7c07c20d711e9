"""Virtual keys: who holds one, what it allows, and that it never goes upstream."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pytest
from rawclient import CLIENT_KEY, Response, asked, get, post
from running import Proxy, StartProxy, StartUpstream, keyed
from scripted import JSON_TYPE, MESSAGE, answer, refusal

MESSAGES = "/anthropic/v1/messages"
VALUE = "sk-bf-sk-test-alice"
BEARER = "Bearer " + VALUE
OTHER = "sk-bf-sk-test-bob"
GOOD = answer(body=MESSAGE)

CARRIERS = {
    "x-bf-vk": (b"x-bf-vk", VALUE.encode()),
    "bearer": (b"Authorization", BEARER.encode()),
    "lower case bearer": (b"authorization", b"bearer   " + VALUE.encode() + b" "),
    "x-api-key": (b"X-Api-Key", VALUE.encode()),
    "x-goog-api-key": (b"x-goog-api-key", VALUE.encode()),
    "api-key": (b"api-key", VALUE.encode()),
    "basic": (b"Authorization", b"Basic " + base64.b64encode(f"any:{VALUE}".encode())),
    "basic, as curl -u has it": (b"Authorization", b"basic " + base64.b64encode(f"{VALUE}:".encode())),
}


def holding(**more: Any) -> dict[str, Any]:
    """Settings with the key ``alice``, which may use every model of ``anthropic`` unless `more` says else."""
    key = {
        "value": "env.ALICE",
        "provider_configs": [{"provider": "anthropic", "allowed_models": ["*"]}],
        **more,
    }
    return {"virtual_keys": {"alice": key}, "environ": {"ALICE": VALUE}}


async def ask(p: Proxy, *fields: tuple[bytes, bytes], model: str = "claude-2", **more: Any) -> Response:
    return await p.ask(post(MESSAGES, asked(model, **more), fields, key=None))


def said(response: Response) -> str:
    message = json.loads(response.body)["error"]["message"]
    assert isinstance(message, str)
    return message


@pytest.mark.parametrize("own_keys", [True, False], ids=["provider with keys", "provider without"])
@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_key_is_taken_wherever_clients_put_it_and_stays_here(
    upstream: StartUpstream, proxy: StartProxy, carrier: str, own_keys: bool
) -> None:
    """The request is served; nothing of the key goes upstream, is logged or is counted, but its name is."""
    up = await upstream(GOOD)
    p = await proxy(keyed(up, "main") if own_keys else up, **holding())
    response = await ask(p, CARRIERS[carrier], (b"x-odd", b"a " + VALUE.encode()))
    assert response.status == 200
    (request,) = up.requests
    assert b"sk-bf" not in request.raw
    assert b"asic " not in request.raw
    assert request.header("x-api-key") == (b"sk-test-main" if own_keys else None)
    line = await p.line()
    assert (line["virtual_key"], line["key"]) == ("alice", "main" if own_keys else "")
    assert 'virtual_key_name="alice"' in p.metrics_text


async def test_a_client_s_credentials_pass_beside_its_virtual_key(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """A provider without keys gets the client's own credentials, as they came."""
    up = await upstream(GOOD)
    p = await proxy(up, **holding())
    response = await ask(p, CARRIERS["x-bf-vk"], (b"Authorization", b"Bearer oauth-token"))
    assert response.status == 200
    assert up.requests[0].header("authorization") == b"Bearer oauth-token"
    assert up.requests[0].header("x-bf-vk") is None


async def test_what_looks_like_a_key_goes_nowhere_without_one_either(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """In a field that carries no credential nobody takes it for one; it stays here all the same."""
    up = await upstream(GOOD)
    p = await proxy(up, **holding())
    fields = [(b"cookie", b"k=" + VALUE.encode()), (b"x-other", VALUE.encode()), (b"x-fine", b"1")]
    assert (await ask(p, *fields)).status == 200
    assert b"sk-bf" not in up.requests[0].raw
    assert up.requests[0].header("x-fine") == b"1"


async def test_a_digest_in_the_config_is_enough(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The config need not know the key, only its SHA-256."""
    up = await upstream(GOOD)
    p = await proxy(up, **holding(value="sha256:" + hashlib.sha256(VALUE.encode()).hexdigest()))
    assert (await ask(p, CARRIERS["bearer"])).status == 200


UNKNOWN = {
    "another key": VALUE[:-1] + "f",
    "a shorter one": VALUE[:-1],
    "a longer one": VALUE + "x",
    "another case": VALUE.upper(),
    "only the prefix": "sk-bf-",
    "its digest": hashlib.sha256(VALUE.encode()).hexdigest(),
    "nothing": "",
}


@pytest.mark.parametrize("value", UNKNOWN)
async def test_an_unknown_key_is_a_401(upstream: StartUpstream, proxy: StartProxy, value: str) -> None:
    """In ``x-bf-vk`` every text is a virtual key; an unknown one is refused in the wire format's shape."""
    up = await upstream()
    p = await proxy(up, **holding())
    response = await ask(p, (b"x-bf-vk", UNKNOWN[value].encode()))
    assert (response.status, up.connections) == (401, 0)
    assert json.loads(response.body)["error"]["type"] == "authentication_error"
    assert said(response).startswith("virtual_key_not_found: ")


async def test_without_a_key_there_is_a_401_where_one_is_required(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """A client's own provider key is no virtual key. `/health` and `/metrics` want none."""
    up = await upstream()
    p = await proxy(up, require_virtual_key=True, **holding())
    response = await ask(p, (b"x-api-key", CLIENT_KEY))
    assert (response.status, up.connections) == (401, 0)
    assert said(response).startswith("virtual_key_required: ")
    assert (await p.get("/health")).status == 200


async def test_two_different_keys_are_a_400(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Nobody can say who is asking. The same key twice is one key."""
    up = await upstream(GOOD)
    p = await proxy(up, **holding())
    assert (await ask(p, CARRIERS["x-bf-vk"], (b"x-api-key", OTHER.encode()))).status == 400
    assert (await ask(p, CARRIERS["x-bf-vk"], CARRIERS["bearer"])).status == 200


@pytest.mark.parametrize("place", ["?key=", "/", "?a=b&key=%73k%2Dbf%2D"])
async def test_a_key_in_the_request_target_is_refused(
    upstream: StartUpstream, proxy: StartProxy, place: str
) -> None:
    """There it would go upstream, and into logs; so it is a 400, in any spelling."""
    up = await upstream()
    p = await proxy(up, **holding())
    response = await p.ask(get("/anthropic/v1/models" + place + VALUE), "GET")
    assert (response.status, up.connections) == (400, 0)


BLOCKED: dict[str, tuple[dict[str, Any], str]] = {
    "no provider": ({"provider_configs": []}, "provider_blocked: "),
    "another provider": (
        {"provider_configs": [{"provider": "backup", "allowed_models": ["*"]}]},
        "provider_blocked: ",
    ),
    "no model": ({"provider_configs": [{"provider": "anthropic"}]}, "model_blocked: "),
    "other models": (
        {"provider_configs": [{"provider": "anthropic", "allowed_models": ["claude-3*", "claude"]}]},
        "model_blocked: ",
    ),
    "blacklisted": (
        {
            "provider_configs": [
                {"provider": "anthropic", "allowed_models": ["*"], "blacklisted_models": ["*-2"]}
            ]
        },
        "model_blocked: ",
    ),
    "other provider keys": (
        {"provider_configs": [{"provider": "anthropic", "allowed_models": ["*"], "key_ids": []}]},
        "key_blocked: ",
    ),
    "not active": ({"is_active": False}, "virtual_key_blocked: "),
    "expired": ({"expires_at": "2026-01-01T00:00:00Z"}, "virtual_key_blocked: "),
    "the model comes before the expiry": (
        {"is_active": False, "provider_configs": [{"provider": "anthropic"}]},
        "model_blocked: ",
    ),
}


OWN_FALLBACKS: dict[str, Any] = {
    "objects": [{"model": "claude-opus-4-8"}],
    "the provider's choice": "default",
}


@pytest.mark.parametrize("what", OWN_FALLBACKS)
async def test_a_provider_s_own_fallbacks_are_for_who_may_use_every_model(
    upstream: StartUpstream, proxy: StartProxy, what: str
) -> None:
    """The provider alone reads them; names of ours are checked like the model."""
    up, own = await upstream(GOOD), OWN_FALLBACKS[what]
    grants = [{"provider": "anthropic", "allowed_models": ["claude-2"]}]
    p = await proxy(keyed(up, "main"), **holding(provider_configs=grants))
    response = await ask(p, CARRIERS["x-bf-vk"], fallbacks=own)
    assert (response.status, up.connections) == (403, 0)
    assert said(response).startswith("model_blocked: ")
    assert (await ask(p, CARRIERS["x-bf-vk"], fallbacks=["anthropic/claude-3"])).status == 200
    up.then(GOOD)
    p = await proxy(keyed(up, "main"), **holding())
    assert (await ask(p, CARRIERS["x-bf-vk"], fallbacks=own)).status == 200


@pytest.mark.parametrize("why", BLOCKED)
async def test_what_a_key_does_not_allow_is_a_403(
    upstream: StartUpstream, proxy: StartProxy, why: str
) -> None:
    """Provider, model, active, expiry, in that order; Bifrost's code is in the message."""
    more, code = BLOCKED[why]
    up, backup = await upstream(), await upstream()
    p = await proxy(providers={"anthropic": keyed(up, "main"), "backup": backup}, **holding(**more))
    response = await ask(p, CARRIERS["x-bf-vk"])
    assert (response.status, up.connections, backup.connections) == (403, 0, 0)
    assert json.loads(response.body)["error"]["type"] == "permission_error"
    assert said(response).startswith(code)
    line = await p.line()
    assert (line["virtual_key"], line["ending"], line["status"]) == ("alice", "DP", 403)


ALLOWED: dict[str, Mapping[str, Any]] = {
    "exact": {"provider": "anthropic", "allowed_models": ["claude-2"]},
    "glob": {"provider": "anthropic", "allowed_models": ["x", "claude-*"]},
    "key by name": {"provider": "anthropic", "allowed_models": ["*"], "key_ids": ["two"]},
    "all keys": {"provider": "anthropic", "allowed_models": ["*"], "key_ids": ["*"]},
}


@pytest.mark.parametrize("how", ALLOWED)
async def test_what_a_key_allows_is_served(upstream: StartUpstream, proxy: StartProxy, how: str) -> None:
    """Models by exact name or glob, and with the provider keys that it names only."""
    up = await upstream(GOOD, GOOD, GOOD)
    p = await proxy(keyed(up, "one", "two"), **holding(provider_configs=[ALLOWED[how]]))
    for _ in range(3):
        assert (await ask(p, CARRIERS["x-bf-vk"])).status == 200
    if how == "key by name":
        assert {request.header("x-api-key") for request in up.requests} == {b"sk-test-two"}


async def test_only_a_star_is_a_pattern(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Brackets and question marks stand for themselves: model names have them."""
    up = await upstream(GOOD, GOOD)
    allowed = {"provider": "anthropic", "allowed_models": ["claude[1m]", "a?b*"]}
    p = await proxy(up, **holding(provider_configs=[allowed]))
    for model, status in (("claude[1m]", 200), ("claude1", 403), ("a?bc", 200), ("axbc", 403)):
        assert (await ask(p, CARRIERS["x-bf-vk"], model=model)).status == status


async def test_all_providers_can_be_allowed_at_once(upstream: StartUpstream, proxy: StartProxy) -> None:
    """What stands under provider_configs still holds for the provider that it names."""
    up, backup = await upstream(), await upstream(GOOD)
    more = {"allow_all_providers": True, "provider_configs": [{"provider": "anthropic"}]}
    p = await proxy(providers={"anthropic": up, "backup": backup}, **holding(**more))
    assert (await ask(p, CARRIERS["x-bf-vk"])).status == 403
    assert (await ask(p, CARRIERS["x-bf-vk"], model="backup/claude-2")).status == 200


async def test_a_target_that_is_not_allowed_is_passed_over(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """The plan goes on with the next target that the key allows, and says why it did."""
    up, backup = await upstream(), await upstream(GOOD)
    allowed = [{"provider": "backup", "allowed_models": ["claude-3"]}]
    p = await proxy(providers={"anthropic": up, "backup": backup}, **holding(provider_configs=allowed))
    fallbacks = ["backup/claude-1", "backup/claude-3"]
    response = await ask(p, CARRIERS["x-bf-vk"], fallbacks=fallbacks)
    assert (response.status, up.connections) == (200, 0)
    assert response.header("x-bifrost-attempts") == (
        b"anthropic/claude-2:provider_blocked,backup/claude-1:model_blocked,backup/claude-3:200"
    )
    assert response.header("x-bifrost-fallback-index") == b"2"
    assert json.loads(backup.requests[0].body)["model"] == "claude-3"


@pytest.mark.parametrize("models", [["*"], ["claude-2"]], ids=["every model", "one model"])
async def test_routes_that_name_no_model(
    upstream: StartUpstream, proxy: StartProxy, models: list[str]
) -> None:
    """Everybody whose provider it is may read; only who may use every model may write."""
    up = await upstream(
        answer(200, [JSON_TYPE], b"{}"), *[answer(200, [JSON_TYPE], b"{}")] * (models == ["*"])
    )
    allowed = [{"provider": "anthropic", "allowed_models": models}]
    p = await proxy(keyed(up, "main"), **holding(provider_configs=allowed))
    field = CARRIERS["bearer"]
    assert (await p.ask(get("/anthropic/v1/models", [field]), "GET")).status == 200
    response = await p.ask(post("/anthropic/v1/skills", b"{}", [field], key=None))
    assert response.status == (200 if models == ["*"] else 403)


async def test_a_reload_changes_what_a_key_allows(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Keys of the config are those of the config in use."""
    up = await upstream(GOOD)
    p = await proxy(up, **holding())
    other = await proxy(up, **holding(is_active=False))
    assert (await ask(p, CARRIERS["bearer"])).status == 200
    p.server.use(other.server._config)
    assert (await ask(p, CARRIERS["bearer"])).status == 403


async def test_a_refused_provider_key_does_not_blame_the_client(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """The client's virtual key is good: a provider's 401 about ours is a 502."""
    up = await upstream(refusal(401, "authentication_error"))
    p = await proxy(keyed(up, "main"), **holding())
    response = await ask(p, CARRIERS["x-api-key"])
    assert response.status == 502
    assert said(response).startswith("upstream_credentials_exhausted: anthropic takes none of the keys")
