"""The stores that a test of limits runs over, and a look into them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from redis_server import RedisServer


class Backend(NamedTuple):
    """A store, and how to look into it."""

    url: str
    read: Callable[[], Awaitable[dict[str, int]]]
    """All counters, by the names that the store has for them."""

    async def counters(self) -> dict[str, int]:
        """What is counted, by owner and kind."""
        return {
            " ".join(name.rsplit("/", 3)[:2]): value
            for name, value in (await self.read()).items()
            if not name.startswith("ledger/")
        }


@pytest.fixture(params=["sqlite", "redis"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    """Each of the two, as the real thing."""
    if request.param == "sqlite":
        path = tmp_path / "state.db"

        def rows() -> dict[str, int]:
            with contextlib.closing(sqlite3.connect(path)) as db:
                return dict(db.execute("SELECT name, value FROM counters").fetchall())

        yield Backend(f"sqlite:{path}", functools.partial(asyncio.to_thread, rows))
        return
    server = RedisServer(tmp_path)
    await server.start()

    async def values() -> dict[str, int]:
        names = [name for name in await server.ask("KEYS", "verbatim:counter:*") if name]
        values = await server.ask("MGET", *names) if names else []
        return {
            name.removeprefix("verbatim:counter:"): int(value)
            for name, value in zip(names, values, strict=True)
        }

    yield Backend(server.url, values)
    await server.kill()
