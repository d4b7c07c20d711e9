"""Which targets a request may go to: the model's name, aliases, `fallbacks`, and what cannot be used."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from rawclient import Response, asked
from running import StartProxy, StartUpstream, keyed
from scripted import MESSAGE, answer, refusal

MESSAGES = "/anthropic/v1/messages"
GOOD = answer(body=MESSAGE)
FAILS = refusal(529, "overloaded_error")
ONCE = {"max_retries": 0}


def attempts(response: Response) -> list[bytes]:
    return (response.header("x-bifrost-attempts") or b"").split(b",")


def refusal_of(response: Response) -> str:
    """The message of a 400 of ours."""
    assert response.status == 400, response
    body = json.loads(response.body)
    assert body["error"]["type"] == "invalid_request_error"
    assert body["request_id"].encode() == response.header("request-id")
    return str(body["error"]["message"])


# The model's name.

NAMES: dict[str, tuple[str, bytes, str]] = {
    "a bare name": ("claude-2", b"anthropic", "claude-2"),
    "the default provider's": ("anthropic/claude-2", b"anthropic", "claude-2"),
    "another provider's": ("other/claude-2", b"other", "claude-2"),
    "split at the first slash": ("other/meta/llama-3", b"other", "meta/llama-3"),
    "a provider's name twice": ("other/anthropic/x", b"other", "anthropic/x"),
    "an unknown left side": ("meta-llama/Llama-3", b"anthropic", "meta-llama/Llama-3"),
    "an other spelling": ("Other/claude-2", b"anthropic", "Other/claude-2"),
    "a provider's name alone": ("other", b"anthropic", "other"),
    "nothing behind the slash": ("other/", b"anthropic", "other/"),
    "a slash in front": ("/claude-2", b"anthropic", "/claude-2"),
    "letters of all kinds": ("other/größe 🦙", b"other", "größe 🦙"),
}


@pytest.mark.parametrize("case", NAMES)
async def test_a_models_name_names_its_provider(
    upstream: StartUpstream, proxy: StartProxy, case: str
) -> None:
    """Split at the first slash, and only where the left side is a configured provider."""
    name, provider, model = NAMES[case]
    up, other = await upstream(), await upstream()
    served = other if provider == b"other" else up
    served.then(GOOD)
    p = await proxy(providers={"anthropic": up, "other": other})
    response = await p.post(MESSAGES, asked(name))
    assert response.header("x-bifrost-provider") == provider
    assert json.loads(served.requests[0].body)["model"] == model
    line = await p.line()
    assert (line["model"], line["provider"], line["served_model"]) == (name, provider.decode(), model)


async def test_the_default_provider_is_the_configs(upstream: StartUpstream, proxy: StartProxy) -> None:
    """`default_providers` says who answers bare names."""
    up, other = await upstream(), await upstream(GOOD)
    p = await proxy(providers={"anthropic": up, "other": other}, default_providers={"anthropic": "other"})
    assert (await p.post(MESSAGES, asked())).header("x-bifrost-provider") == b"other"


# The bytes.

SPANS: dict[str, tuple[bytes, bytes]] = {
    "only the model": (b'{"model":"other/m"}', b'{"model":"m"}'),
    "blanks stay": (b'{ "a" : 1 ,\r\n "model"\t:\n"other/m"  }\n', b'{ "a" : 1 ,\r\n "model"\t:\n"m"  }\n'),
    "escapes in the value": (b'{"model":"\\u006fther\\/m"}', b'{"model":"m"}'),
    "escapes in the key": (b'{"\\u006dodel":"other/m"}', b'{"\\u006dodel":"m"}'),
    "other models stay": (
        b'{"x":{"model":"other/m"},"model":"other/m","y":["other/m"],"z":"\\"model\\":\\"other/m\\""}',
        b'{"x":{"model":"other/m"},"model":"m","y":["other/m"],"z":"\\"model\\":\\"other/m\\""}',
    ),
    "numbers stay": (
        b'{"model":"other/m","x":[1.0,1e2,-0]}',
        b'{"model":"m","x":[1.0,1e2,-0]}',
    ),
    "fallbacks first": (b'{"fallbacks":["anthropic/b"],"model":"other/m"}', b'{"model":"m"}'),
    "fallbacks between": (b'{"a":1,"fallbacks":["anthropic/b"],"model":"other/m"}', b'{"a":1,"model":"m"}'),
    "fallbacks last": (b'{"model":"other/m","fallbacks":["anthropic/b"]}', b'{"model":"m"}'),
    "an empty list": (b'{"model":"other/m","fallbacks":[ ],"a":1}', b'{"model":"m","a":1}'),
    "one string": (b'{"model":"other/m","fallbacks":"anthropic/b"}', b'{"model":"m"}'),
    "an escaped key": (b'{"model":"other/m","f\\u0061llbacks":["anthropic/b"]}', b'{"model":"m"}'),
    "the provider's default": (
        b'{"model":"other/m","fallbacks":"default"}',
        b'{"model":"m","fallbacks":"default"}',
    ),
    "the provider's list": (
        b'{"model":"other/m","fallbacks":[{"model":"anthropic/b"} ]}',
        b'{"model":"m","fallbacks":[{"model":"anthropic/b"} ]}',
    ),
    "inner fallbacks stay": (
        b'{"x":{"fallbacks":["anthropic/b"]},"model":"other/m"}',
        b'{"x":{"fallbacks":["anthropic/b"]},"model":"m"}',
    ),
}


@pytest.mark.parametrize("case", SPANS)
async def test_only_model_and_fallbacks_are_rewritten(
    upstream: StartUpstream, proxy: StartProxy, case: str
) -> None:
    """The model's value is replaced, the gateway's fallbacks are cut out with one comma; nothing else."""
    sent, arrives = SPANS[case]
    up, other = await upstream(), await upstream(GOOD)
    p = await proxy(providers={"anthropic": up, "other": other})
    assert (await p.post(MESSAGES, sent)).status == 200
    assert other.requests[0].body == arrives
    assert other.requests[0].values("content-length") == [b"%d" % len(arrives)]


@pytest.mark.parametrize("seed", range(20))
async def test_what_stands_around_the_model_is_never_changed(
    upstream: StartUpstream, proxy: StartProxy, seed: int
) -> None:
    """Random members in random places: what arrives is what was sent, with the model's value put in."""
    rng = random.Random(seed)
    pieces = [
        b'"a":"model\\"',
        b'"b":{"model":"x","fallbacks":["y"]}',
        b'"c" : [ ]',
        b'"stream":false',
        b'"\xc3\xa9":1',
    ]
    pieces[0] += b'"'
    rng.shuffle(pieces)
    place = rng.randint(0, len(pieces))
    before, after = b",".join([*pieces[:place], b'"model":']), b",".join([b"", *pieces[place:]])
    up, other = await upstream(), await upstream(GOOD)
    p = await proxy(providers={"anthropic": up, "other": other})
    assert (await p.post(MESSAGES, b"{" + before + b'"other/m"' + after + b"}")).status == 200
    assert other.requests[0].body == b"{" + before + b'"m"' + after + b"}"


# Fallbacks.


async def test_fallbacks_are_tried_in_their_order(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The request's own list comes after the primary; the same provider may stand in it twice."""
    up, other = await upstream(FAILS, FAILS), await upstream(FAILS, GOOD)
    p = await proxy(providers={"anthropic": up, "other": other}, network=ONCE)
    response = await p.post(MESSAGES, asked(fallbacks=["other/a", "anthropic/b", "other/c"]))
    assert attempts(response) == [
        b"anthropic/claude-2:529",
        b"other/a:529",
        b"anthropic/b:529",
        b"other/c:200",
    ]
    assert response.header("x-bifrost-fallback-index") == b"3"


async def test_one_string_is_one_fallback(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A string other than "default" counts as a list of one."""
    up, other = await upstream(FAILS), await upstream(GOOD)
    p = await proxy(providers={"anthropic": up, "other": other}, network=ONCE)
    response = await p.post(MESSAGES, asked(fallbacks="other/a"))
    assert attempts(response) == [b"anthropic/claude-2:529", b"other/a:200"]


NATIVE = ["default", [{"model": "claude-3"}], [{"model": "other/x", "max_tokens": 5}]]


@pytest.mark.parametrize("value", NATIVE)
async def test_the_providers_own_fallbacks_are_the_providers(
    upstream: StartUpstream, proxy: StartProxy, value: object
) -> None:
    """They make no plan here, and the body goes on as the identical bytes."""
    up, other = await upstream(FAILS), await upstream()
    p = await proxy(providers={"anthropic": up, "other": other}, network=ONCE)
    body = asked(fallbacks=value)
    assert (await p.post(MESSAGES, body)).status == 529
    assert up.requests[0].body == body


@pytest.mark.parametrize(
    ("fallback", "hint"),
    [
        ("othre/a", "other/a"),
        ("nobody/a", ""),
        ("claude-3", ""),
        ("Other/a", "other/a"),
        ("other", ""),
        ("other/", ""),
        ("/a", ""),
        ("", ""),
    ],
)
async def test_a_typo_in_a_fallback_is_400(
    upstream: StartUpstream, proxy: StartProxy, fallback: str, hint: str
) -> None:
    """A fallback that names no configured provider would only show on the worst day, so it shows at once."""
    up, other = await upstream(), await upstream()
    p = await proxy(providers={"anthropic": up, "other": other})
    message = refusal_of(await p.post(MESSAGES, asked(fallbacks=["other/x", fallback])))
    assert fallback in message
    assert hint in message
    assert up.connections + other.connections == 0


async def test_a_plan_is_bounded(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Every target may cost a paid request: an endless list is a 400."""
    up = await upstream()
    p = await proxy(up)
    refusal_of(await p.post(MESSAGES, asked(fallbacks=["anthropic/a"] * 1000)))
    assert up.connections == 0


# Aliases.

ALIASES = {"claude-2": ["anthropic/claude-haiku-4-5", "other/claude-haiku-4-5"], "fast": "other/small"}


async def test_an_alias_stands_for_its_targets(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The client's name stays in the record; each target gets its own model."""
    up, other = await upstream(FAILS), await upstream(GOOD)
    p = await proxy(providers={"anthropic": up, "other": other}, network=ONCE, models=ALIASES)
    response = await p.post(MESSAGES, asked("claude-2"))
    assert attempts(response) == [b"anthropic/claude-haiku-4-5:529", b"other/claude-haiku-4-5:200"]
    assert response.header("x-bifrost-original-model") == b"claude-2"
    assert response.header("x-bifrost-resolved-model") == b"claude-haiku-4-5"
    assert json.loads(up.requests[0].body)["model"] == "claude-haiku-4-5"
    assert (await p.line())["model"] == "claude-2"


async def test_an_alias_may_be_one_target(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A lone string in the config is a list of one."""
    up, other = await upstream(), await upstream(GOOD)
    p = await proxy(providers={"anthropic": up, "other": other}, models=ALIASES)
    assert (await p.post(MESSAGES, asked("fast"))).header("x-bifrost-resolved-model") == b"small"


async def test_a_requests_fallbacks_come_after_the_aliass(upstream: StartUpstream, proxy: StartProxy) -> None:
    """First all targets of the alias, then the request's own list."""
    up, other = await upstream(FAILS, GOOD), await upstream(FAILS)
    p = await proxy(providers={"anthropic": up, "other": other}, network=ONCE, models=ALIASES)
    response = await p.post(MESSAGES, asked("claude-2", fallbacks=["anthropic/last"]))
    assert attempts(response) == [
        b"anthropic/claude-haiku-4-5:529",
        b"other/claude-haiku-4-5:529",
        b"anthropic/last:200",
    ]


async def test_a_fallback_may_be_an_alias(upstream: StartUpstream, proxy: StartProxy) -> None:
    """An alias in the list stands for its targets there too."""
    up, other = await upstream(FAILS), await upstream(GOOD)
    p = await proxy(providers={"anthropic": up, "other": other}, network=ONCE, models=ALIASES)
    response = await p.post(MESSAGES, asked("x", fallbacks=["fast"]))
    assert attempts(response) == [b"anthropic/x:529", b"other/small:200"]


async def test_an_alias_wins_over_a_provider(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The whole name is looked up first; an alias may hold a slash."""
    up, other = await upstream(GOOD), await upstream()
    p = await proxy(providers={"anthropic": up, "other": other}, models={"other/x": "anthropic/y"})
    assert (await p.post(MESSAGES, asked("other/x"))).header("x-bifrost-resolved-model") == b"y"


# Targets that cannot be used.


def speaks_openai(url: str) -> dict[str, Any]:
    return {"base_urls": {"openai": url}, "is_key_less": True}


async def test_a_target_of_another_wire_format_is_skipped(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Nothing is translated: such a target is passed over, and the header and the log say so."""
    up, foreign, other = await upstream(FAILS), await upstream(), await upstream(GOOD)
    p = await proxy(
        providers={"anthropic": up, "foreign": speaks_openai(foreign.url + "/v1"), "other": other},
        network=ONCE,
    )
    response = await p.post(MESSAGES, asked(fallbacks=["foreign/a", "other/b"]))
    assert response.header("x-bifrost-provider") == b"other"
    assert response.header("x-bifrost-fallback-index") == b"2"
    tried = attempts(response)
    assert {part.partition(b":")[0] for part in tried} == {b"anthropic/claude-2", b"foreign/a", b"other/b"}
    (skipped,) = [part for part in tried if part.startswith(b"foreign/a:")]
    assert skipped not in (b"foreign/a:", b"foreign/a:200")
    assert skipped.decode() in (await p.line())["attempts"]
    assert foreign.connections == 0


async def test_a_target_that_would_need_the_clients_key_is_skipped(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """A provider without keys, that is not the default one, would need a credential that is not its own."""
    up, keyless, other = await upstream(FAILS), await upstream(), await upstream(GOOD)
    p = await proxy(
        providers={
            "anthropic": up,
            "keyless": {"base_urls": {"anthropic": keyless.url}, "is_key_less": False},
            "other": keyed(other, "main"),
        },
        network=ONCE,
    )
    response = await p.post(MESSAGES, asked(fallbacks=["keyless/a", "other/b"]))
    assert response.header("x-bifrost-provider") == b"other"
    assert any(part.startswith(b"keyless/a:") for part in attempts(response))
    assert keyless.connections == 0


async def test_a_key_that_does_not_allow_the_model_is_not_used(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """A key's `models` are shell globs; a provider none of whose keys allows the model is skipped."""
    up, other = await upstream(GOOD), await upstream(GOOD)
    keys = [
        {"name": "haiku", "value": "env.TEST_KEY_HAIKU", "models": ["claude-haiku-*"]},
        {"name": "opus", "value": "env.TEST_KEY_OPUS", "models": ["claude-opus-*", "old"]},
    ]
    limited = {"base_urls": {"anthropic": up.url}, "keys": keys}
    p = await proxy(providers={"anthropic": limited, "other": other})
    assert (await p.post(MESSAGES, asked("claude-opus-5"))).status == 200
    assert up.requests[0].values("x-api-key") == [b"sk-test-opus"]
    response = await p.post(MESSAGES, asked("claude-2", fallbacks=["other/b"]))
    assert response.header("x-bifrost-provider") == b"other"
    assert up.arrived == 1


async def test_a_plan_without_a_usable_target_is_400(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The message says of each target why it cannot be used."""
    up, foreign = await upstream(), await upstream()
    p = await proxy(providers={"anthropic": up, "foreign": speaks_openai(foreign.url + "/v1")})
    response = await p.post(MESSAGES, asked("foreign/a", fallbacks=["foreign/b"]))
    message = refusal_of(response)
    assert "foreign/a" in message
    assert "foreign/b" in message
    line = await p.line()
    assert (line["status"], line["ending"]) == (400, "DP")
    assert up.connections + foreign.connections == 0


async def test_fallback_on_decides_what_moves_on(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The config's own list replaces the table: here only 404 moves on, and 529 is final."""
    up, other = await upstream(FAILS, refusal(404)), await upstream(GOOD)
    p = await proxy(providers={"anthropic": up, "other": other}, network=ONCE, fallback_on=["404"])
    assert (await p.post(MESSAGES, asked(fallbacks=["other/a"]))).status == 529
    assert (await p.post(MESSAGES, asked(fallbacks=["other/a"]))).status == 200


async def test_a_status_can_be_added_to_fallback_on(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A status that is final by default can be made to move on."""
    up, other = await upstream(refusal(400)), await upstream(GOOD)
    p = await proxy(providers={"anthropic": up, "other": other}, fallback_on=["400", "529"])
    response = await p.post(MESSAGES, asked(fallbacks=["other/a"]))
    assert attempts(response) == [b"anthropic/claude-2:400", b"other/a:200"]


@pytest.mark.parametrize(
    "path", ["/anthropic/v1/complete", "/v1/messages/count_tokens", "/v1/messages?beta=true"]
)
async def test_plans_are_for_every_model_route(upstream: StartUpstream, proxy: StartProxy, path: str) -> None:
    """Completions and token counts fall back as messages do."""
    up, other = await upstream(FAILS), await upstream(answer(body=b"{}"))
    p = await proxy(providers={"anthropic": up, "other": other}, network=ONCE)
    response = await p.post(path, asked(fallbacks=["other/a"]))
    assert attempts(response) == [b"anthropic/claude-2:529", b"other/a:200"]
    assert other.requests[0].target == path.removeprefix("/anthropic").encode()
