"""The models of all providers, as one list: ``GET /v1/models`` of the unified API.

Facts
  - OpenAI's list is ``{"object":"list","data":[{"id","object","created","owned_by"}]}`` (API reference).
  - A provider may list its models in one wire format that it speaks and not in another; its own comes first.

Rules
  1. All are asked at once, and none for longer than `PATIENCE`. Who fails is named in the answer.
  2. A virtual key sees the models that it may use; who has none for it is not asked, nor who has no keys.
  3. The client's own credentials go to the default provider of OpenAI's format, and to nobody else.

Not here: how a provider is asked (`attempt`), where its list is (`formats`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from . import headers
from .access import Holder
from .config import Provider
from .errors import ProxyError, Source
from .exchange import Exchange
from .formats import FORMATS, Format, Listing
from .original import Original
from .routes import Kind, Route
from .rules import Rules

PATIENCE = 5.0
"""Seconds in which a provider must have given its list."""

MAX_LIST_BYTES = 4194304

MOST = 10000
"""Models of one provider at most."""

MAX_NAME = 200
"""Characters of a model's name; what has more, or some that cannot be printed, is not listed."""

_NO_LIST = "no list"
"""The event of an error after which the provider is asked in its next format."""

_UNIFIED = "openai"


async def listed(
    rules: Rules,
    holder: Holder | None,
    outgoing: headers.Outgoing,
    exchange: Exchange,
    hold: Callable[[int], None],
) -> bytes:
    """The list as JSON; `hold` is told of the bytes of the answers.

    Raises `ProxyError`: 402, 403, 429 and 503 of the holder's limits, 502 where nobody has a list.
    """
    default = rules.config.default_providers.get(_UNIFIED)
    asked = [
        provider
        for provider in rules.config.providers.values()
        if (holder is None or holder.access(provider.name) is not None)
        and (provider.keys or provider.is_key_less or provider.name == default)
        and any(_formats(provider))
    ]
    if holder is not None:
        await rules.count(asked[0] if asked else None, holder, exchange)
    # A group: whatever one of them raises, none of the others goes on without anybody.
    async with asyncio.TaskGroup() as group:
        asking = [
            group.create_task(_names(provider, rules, holder, outgoing, exchange, hold)) for provider in asked
        ]
    answers = [task.result() for task in asking]
    failed = {
        provider.name: answer.message
        for provider, answer in zip(asked, answers, strict=True)
        if isinstance(answer, ProxyError)
    }
    named = [
        (provider, answer)
        for provider, answer in zip(asked, answers, strict=True)
        if isinstance(answer, list)
    ]
    if failed and not any(answer for _, answer in named):
        said = "; ".join(f"{name}: {message}" for name, message in failed.items())
        raise ProxyError(502, f"No provider has listed its models ({said}).", source=Source.UPSTREAM)
    marks = {"partial": True, "failed": failed} if failed else {}
    # Large lists would hold the loop.
    body = await asyncio.to_thread(_dumped, named, holder, marks)
    hold(len(body))
    return body


def _dumped(
    named: list[tuple[Provider, list[tuple[str, int]]]], holder: Holder | None, marks: dict[str, Any]
) -> bytes:
    models = [model for provider, names in named for model in _allowed(provider, names, holder)]
    return orjson.dumps({"object": "list", "data": models, **marks})


def _formats(provider: Provider) -> Iterator[Format]:
    """The wire formats in which the provider may list its models, its own first."""
    spoken = (FORMATS[name] for name in provider.base_urls)
    yield from sorted((form for form in spoken if form.listing), key=lambda form: form.name == _UNIFIED)


async def _names(
    provider: Provider,
    rules: Rules,
    holder: Holder | None,
    outgoing: headers.Outgoing,
    exchange: Exchange,
    hold: Callable[[int], None],
) -> list[tuple[str, int]] | ProxyError:
    """Names of the provider's models and when they were made; or why there are none."""
    failure = ProxyError(504, "it did not answer in time", source=Source.UPSTREAM)
    try:
        async with asyncio.timeout(PATIENCE):
            for form in _formats(provider):
                try:
                    return await _ask(provider, form, rules, holder, outgoing, exchange, hold)
                except ProxyError as error:
                    error.__traceback__ = None
                    failure = error
                    if error.event != _NO_LIST:
                        break
    except TimeoutError:
        pass
    return failure


async def _ask(
    provider: Provider,
    form: Format,
    rules: Rules,
    holder: Holder | None,
    outgoing: headers.Outgoing,
    exchange: Exchange,
    hold: Callable[[int], None],
) -> list[tuple[str, int]]:
    listing = form.listing
    if listing is None:
        raise AssertionError("only who has a list is asked")
    route = Route(Kind.OPEN, form.name, b"", listing.path, "/v1/models")
    is_unified = provider.name == rules.config.default_providers.get(_UNIFIED) and form.name == _UNIFIED
    own = outgoing.credentials() if is_unified else ()
    original = Original("GET", route, headers.Outgoing((*listing.fields, *own)))
    if not (provider.keys or provider.is_key_less or original.outgoing.has_credential):
        raise ProxyError(400, "it has no keys of its own", source=Source.DOWNSTREAM)
    original.identity = original.once = True
    # One of its own: several are asked for one request.
    asking = Exchange(exchange.request_id, "GET", exchange.path, exchange.started, exchange.at)
    asking.take(route)
    try:
        plan = rules.at(provider.name, original, holder, route, asking)
        served = await rules.runner.run(original, plan, asking)
    finally:
        exchange.attempts += asking.attempts
    answer = served.answer
    try:
        if answer.status != 200:
            event = _NO_LIST if answer.status in (404, 405) else ""
            raise ProxyError(502, f"it answered {answer.status}", source=Source.UPSTREAM, event=event)
        body = served.held + await answer.body(MAX_LIST_BYTES, hold)
    finally:
        answer.abort()
    try:
        return await asyncio.to_thread(_read, body, listing)
    except (ValueError, KeyError, TypeError, AttributeError):
        wrong = "its answer is no list of models, or too long a one"
        raise ProxyError(502, wrong, source=Source.UPSTREAM, event=_NO_LIST) from None


def _read(body: bytes, listing: Listing) -> list[tuple[str, int]]:
    """Names, and when the models were made. Raises what a list raises that is none, or too long."""
    said = orjson.loads(body)
    # Together AI has it bare (docs.together.ai, GET /models).
    items = said if isinstance(said, list) else said[listing.member]
    if len(items) > MOST:
        raise ValueError
    named = [
        (item[listing.name].removeprefix(listing.before), _second(item.get("created")))
        for item in items
        if isinstance(item, dict) and isinstance(item.get(listing.name), str)
    ]
    if items and not named:
        raise ValueError
    return [(name, made) for name, made in named if 0 < len(name) <= MAX_NAME and name.isprintable()]


def _second(created: Any) -> int:
    return created if isinstance(created, int) else 0


def _allowed(
    provider: Provider, names: list[tuple[str, int]], holder: Holder | None
) -> Iterator[dict[str, Any]]:
    access = holder.access(provider.name) if holder is not None else None
    for name, created in names:
        by_keys = not provider.keys or any(key.allows(name) for key in provider.keys)
        if by_keys and (access is None or access.allows(name)):
            yield {
                "id": f"{provider.name}/{name}",
                "object": "model",
                "created": created,
                "owned_by": provider.name,
            }
