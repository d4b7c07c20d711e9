"""A Redis for jobs, what it has of them, and whether that can be true.

Rules
  1. It is read past the store, by another client.
  2. Of the jobs only the hashes are believed: everything else has to follow from them.

Not here: jobs to put into it (`job_stores`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis_server import RedisServer

from proxy.ports import JobStore
from proxy.store import open_jobs

Opened = Callable[..., JobStore]


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    server = RedisServer(tmp_path)
    await server.start()
    yield server
    await server.kill()


@pytest.fixture
async def opened() -> AsyncIterator[Opened]:
    """Opens stores, and closes them after the test: `opened(url)`."""
    stores: list[JobStore] = []

    def start(url: str, password: str | None = None) -> JobStore:
        stores.append(open_jobs(url, password))
        return stores[-1]

    yield start
    for store in stores:
        await store.close()


@pytest.fixture
def store(redis: RedisServer, opened: Opened) -> JobStore:
    return opened(redis.url)


async def keys(server: RedisServer, pattern: str = "*") -> list[str]:
    return sorted(key for key in await server.ask("KEYS", pattern) if key)


async def expire(server: RedisServer) -> int:
    """Let the time of every key come that has one; returns how many these were."""
    gone = 0
    for key in await keys(server):
        if await server.ask("TTL", key) != ["-1"]:
            await server.ask("EXPIRE", key, "0")
            gone += 1
    return gone


async def audit(server: RedisServer) -> None:
    """All that the server has follows from the jobs, and from who has beaten."""
    async with Redis.from_url(server.url, protocol=2) as client:
        names = sorted(await client.keys("*"))
        jobs = {
            name.removeprefix(b"verbatim:job:"): await client.hgetall(name)
            for name in names
            if name.startswith(b"verbatim:job:")
        }
        bodies = {
            name: await client.strlen(name)
            for name in names
            if name.startswith((b"verbatim:jobs:request:", b"verbatim:jobs:result:"))
        }
        kept = {name: await _value(client, name) for name in names if name not in bodies}
    want: dict[bytes, Any] = defaultdict(dict)
    want_bodies = set()
    waiting = []
    for id, each in jobs.items():
        over = each[b"state"] in (b"completed", b"failed")
        want[b"verbatim:job:" + id] = each
        want_bodies.add(b"verbatim:jobs:%b:%b" % (b"result" if over else b"request", id))
        assert [field in each for field in (b"expires", b"answer", b"head", b"place")] == [over] * 2 + [
            not over
        ] * 2
        if each[b"state"] == b"pending":
            place = each[b"place"] + b":" + id
            want[b"verbatim:jobs:queue:" + each[b"owner"]][place] = float(each[b"created"])
            waiting.append((float(each[b"created"]), each[b"place"], each[b"owner"], id))
        elif each[b"state"] == b"processing":
            want[b"verbatim:jobs:doing:" + each[b"owner"]][id] = True
            want[b"verbatim:jobs:held:" + each[b"worker"]][id] = True
    for created, place, owner, _ in sorted(waiting, reverse=True):
        entries = want[b"verbatim:jobs:owners"]
        for entry in [entry for entry in entries if entry[17:] == owner]:
            del entries[entry]
        entries[place + b":" + owner] = created
    places = [each[b"place"] for each in jobs.values() if b"place" in each]
    if places:
        totals = kept[b"verbatim:jobs:totals"]
        size = sum(bodies[b"verbatim:jobs:request:" + id] for _, _, _, id in waiting)
        assert int(totals[b"last"]) >= int(max(places))
        assert len(set(places)) == len(places)
        want[b"verbatim:jobs:totals"] = {
            b"last": totals[b"last"],
            b"pending": b"%d" % len(waiting),
            b"bytes": b"%d" % size,
            b"unfinished": b"%d" % len(places),
        }
    for given in (b"verbatim:jobs:beats", b"verbatim:jobs:due"):
        if given in kept:
            want[given] = kept[given]
    assert kept == dict(want)
    assert set(bodies) == want_bodies
    beaten = set(want[b"verbatim:jobs:beats"])
    assert {name.split(b":", 3)[3] for name in kept if b":held:" in name} <= beaten
    due = {id for id, each in jobs.items() if b"expires" in each and each[b"webhook"]}
    assert set(want[b"verbatim:jobs:due"]) <= due


async def _value(client: Redis, name: bytes) -> object:
    kind = await client.type(name)
    if kind == b"hash":
        return await client.hgetall(name)
    if kind == b"set":
        return dict.fromkeys(await client.smembers(name), True)
    assert kind == b"zset", name
    return dict(await client.zrange(name, 0, -1, withscores=True))
