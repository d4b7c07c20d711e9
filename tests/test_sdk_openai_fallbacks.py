"""Fallbacks across providers of the OpenAI format and of Azure, as the official SDK asks for them."""

from __future__ import annotations

import json
from typing import Any

from environments import RunScript
from openai_sdk import CURRENT, Client, StartOpenAI, azure, openai, openai_upstream, origin, provider, serving
from openai_upstream import Kept, OpenAIUpstream
from running import StartProxy

__all__ = ["openai_upstream"]

MODEL = "gpt-4o-mini"
FALLBACKS = [f"second/{MODEL}"]


def asking(client: Client, model: str, by: str = "", fallbacks: list[str] = FALLBACKS) -> Client:
    return {**client, "model": model, "by": by, "fallbacks": fallbacks if by else []}


def same_but_for_model(kept: Kept, sent: str | None, form: Kept, model: str, named: str) -> None:
    """JSON as it was sent, or a form, with another model, and without the fallbacks."""
    if sent is None:
        parts = [part for part in kept.form if part.name != "model"]
        assert parts == [part for part in form.form if part.name != "model"]
        assert [part.content.decode() for part in kept.form if part.name == "model"] == [named]
        return
    fallbacks = json.dumps(FALLBACKS, separators=(",", ":"))
    cut = sent.replace(f',"fallbacks":{fallbacks}', "")
    assert kept.body == cut.replace(f'"model":"{model}"', f'"model":"{named}"').encode()


def check(
    seen: dict[str, Any], plain: dict[str, Any], model: str, second: list[Kept], first: list[Kept]
) -> None:
    """The answers are those of `plain`; both providers got what was sent, with models of their own."""
    named = model.removeprefix("first/")
    tried = f"first/{named}:{named.removeprefix('fails-')},second/{MODEL}:200"
    calls = [(name, told) for way in ("sync", "async") for name, told in seen[way].items()]
    ends = [told for way in ("sync", "async") for told in plain[way].values()]
    for (name, told), wanted, ours, failed in zip(calls, ends, second, first, strict=True):
        assert told["told"] == wanted["told"], name
        assert told["served"] == ["second", MODEL, model, "1", tried], name
        same_but_for_model(ours, told["sent"], failed, model, MODEL)
        same_but_for_model(failed, told["sent"], ours, model, named)
        assert ours.values("x-bf-fallbacks") == failed.values("x-bf-fallbacks") == [], name


async def test_the_unified_api_goes_on_to_the_next_provider(
    run_script: RunScript, openai_upstream: StartOpenAI, proxy: StartProxy
) -> None:
    """Every resource, JSON, form and stream: after a 500 or a 529 of the first the second answers.

    The fallbacks stand in the body or in the header. Each provider gets its own key and model.
    """
    straight, first, second = [await openai_upstream() for _ in range(3)]
    p = await serving(proxy, {"first": provider(first), "second": provider(second, "second")})
    clients = [
        asking(openai(f"{straight.url}/v1"), MODEL),
        asking(openai(f"{origin(p)}/v1"), "first/fails-529", "body"),
        asking(openai(f"{origin(p)}/v1"), "first/fails-500", "header"),
    ]
    plain, *others = await run_script((CURRENT,), "openai_fallbacks", json.dumps(clients))
    count = len(straight.requests)
    assert len(first.requests) == len(second.requests) == 2 * count
    for number, (seen, client) in enumerate(zip(others, clients[1:], strict=True)):
        part = slice(number * count, (number + 1) * count)
        check(seen, plain, client["model"], second.requests[part], first.requests[part])
    assert targets(first) == targets(second) == 2 * targets(straight)
    assert credentials(first, "authorization") == {b"Bearer sk-test-main"}
    assert credentials(second, "authorization") == {b"Bearer sk-test-second"}


async def test_azure_goes_on_to_the_next_deployment(
    run_script: RunScript, openai_upstream: StartOpenAI, proxy: StartProxy
) -> None:
    """The deployment in the path is that of the fallback, at the other resource, with its key."""
    straight, first, second = [await openai_upstream() for _ in range(3)]
    p = await serving(proxy, {"first": provider(first), "second": provider(second, "second")})
    clients = [
        asking(azure(straight.url), MODEL),
        asking(azure(f"{origin(p)}/openai"), "fails-529", "header"),
    ]
    plain, seen = await run_script((CURRENT,), "openai_fallbacks", json.dumps(clients))
    check(seen, plain, "fails-529", second.requests, first.requests)
    assert targets(second) == targets(straight)
    assert targets(first) == [target.replace(MODEL.encode(), b"fails-529") for target in targets(straight)]
    assert credentials(first, "api-key") == {b"sk-test-main"}
    assert credentials(second, "api-key") == {b"sk-test-second"}


def targets(upstream: OpenAIUpstream) -> list[bytes]:
    return [kept.target for kept in upstream.requests]


def credentials(upstream: OpenAIUpstream, field: str) -> set[bytes]:
    return {value for kept in upstream.requests for value in kept.values(field)}
