"""Errors of the proxy's own, to be seen with an SDK: a proxy for each status, and what is asked of it.

Not here: what an SDK makes of them. Its own test file says that.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from running import Proxy
from scripted import Conn, Request

from proxy import limits

Start = Callable[..., Awaitable[Proxy]]
"""``await start(url, **settings)``: a proxy in front of an upstream."""

HEADERS = {"400": {"x-bf-fallbacks": "nowhere/x"}, "404": {"x-bf-async-id": "job_nobody"}}
"""What a status needs in the request."""

HELD = ("403", "429")
"""Statuses for which the virtual key is sent instead of a provider's."""

LIMIT = 20_000
"""The longest body for the proxy that answers 413, in bytes."""


class Told(NamedTuple):
    """What each call raised, and the access-log lines of the calls."""

    seen: dict[str, dict[str, Any]]
    lines: list[dict[str, Any]]


async def silent(conn: Conn, _: Request) -> None:
    """An upstream that never answers."""
    await conn.gone()


async def refusing(
    start: Start, up: str, *, provider: str, other_model: str, key: str, dead: str, place: Path
) -> dict[str, Proxy]:
    """The proxies by status. That of 403 allows only `other_model`, that of 429 one request."""
    store = f"sqlite:{place / 'state.db'}"
    alice = {"environ": {"ALICE": key}}

    def holding(model: str, **limited: Any) -> dict[str, Any]:
        allowed = [{"provider": provider, "allowed_models": [model]}]
        return {"virtual_keys": {"alice": {"value": "env.ALICE", "provider_configs": allowed, **limited}}}

    once = {"rate_limit": {"request_max_limit": 1, "request_reset_duration": "1d"}}
    return {
        "400": await start(up),
        "401": await start(up, require_virtual_key=True),
        "403": await start(up, **holding(other_model), **alice),
        "404": await start(up, store=store),
        "413": await start(up, max_body_bytes=LIMIT),
        "429": await start(up, store=store, **holding("*", **once), **alice),
        "502": await start(dead),
    }


def one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """No window of a limit ends while this lasts."""
    monkeypatch.setattr(limits, "_window", lambda duration, minute: (0, 4_000_000_000))
