"""The books that Redis keeps of jobs are right, whatever is done by whomever at once."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import defaultdict

import pytest
from job_stores import NOW, ending, job
from redis_books import Opened, audit, expire, keys, opened, redis
from redis_server import RedisServer

from proxy.job import Bounds, Lease
from proxy.ports import JobStore

__all__ = ["opened", "redis"]


class Chaos:
    """Does anything at all with the jobs of a store, as several workers that know of each other's leases."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._number = itertools.count()
        self.ids: list[str] = []
        self.leases: list[Lease] = []
        self.done: dict[str, int] = defaultdict(int)
        """How often which call said that it changed something."""

    def _id(self) -> str:
        return self._random.choice(self.ids) if self.ids else "none"

    def _lease(self) -> Lease:
        # The later ones are more likely to be valid.
        some = self.leases[-20:]
        return self._random.choice(some) if some else Lease("none", "w1", 1)

    async def act(self, store: JobStore) -> None:
        choose = self._random
        worker, other = (f"w{choose.randrange(4)}" for _ in range(2))
        acts = {"submit": 5, "claim": 5, "begin": 3, "finish": 4, "hand_back": 1, "remove": 2, "adopt": 1}
        acts |= {"beat": 1, "leave": 1, "due": 1, "told": 1, "purge": 1}
        (act,) = choose.choices(list(acts), list(acts.values()))
        self.done[act] += await getattr(self, f"_{act}")(store, worker, other)

    async def _submit(self, store: JobStore, worker: str, other: str) -> bool:
        choose = self._random
        new = job(
            f"job-{next(self._number)}" if choose.random() < 0.9 else self._id(),
            owner=f"owner {choose.randrange(5)}",
            body=bytes(choose.randrange(3) * 10),
            webhook=choose.choice(["", "hook"]),
            created=NOW + choose.randrange(5) / 3,
        )
        bound = await store.submit(new, Bounds(jobs=40, jobs_of_owner=15, bytes=300))
        self.ids.append(new.id)
        return not bound

    async def _claim(self, store: JobStore, worker: str, other: str) -> bool:
        claim = await store.claim(worker, 4)
        if claim is not None:
            self.leases.append(claim.lease)
        return claim is not None

    async def _begin(self, store: JobStore, worker: str, other: str) -> bool:
        return await store.begin(self._lease())

    async def _finish(self, store: JobStore, worker: str, other: str) -> bool:
        lease = self._lease()
        return await store.finish(lease, ending(bytes(self._random.randrange(20))))

    async def _hand_back(self, store: JobStore, worker: str, other: str) -> bool:
        return await store.hand_back(self._lease())

    async def _remove(self, store: JobStore, worker: str, other: str) -> bool:
        return await store.remove(self._id()) is not None

    async def _adopt(self, store: JobStore, worker: str, other: str) -> bool:
        await store.adopt(worker, other, (await store.beat(worker)).get(other, 0))
        held = await store.held(worker)
        self.leases += [each.lease for each in held]
        return bool(held)

    async def _beat(self, store: JobStore, worker: str, other: str) -> bool:
        return (await store.beat(worker))[worker] > 0

    async def _leave(self, store: JobStore, worker: str, other: str) -> bool:
        await store.leave(worker)
        return True

    async def _due(self, store: JobStore, worker: str, other: str) -> bool:
        return await store.due(NOW + 10, NOW + self._random.randrange(20)) is not None

    async def _told(self, store: JobStore, worker: str, other: str) -> bool:
        await store.told(self._id(), self._random.choice([None, NOW]))
        return True

    async def _purge(self, store: JobStore, worker: str, other: str) -> bool:
        return not await store.purge(NOW)


@pytest.mark.parametrize("seed", range(3))
async def test_the_books_are_right_whatever_is_done(redis: RedisServer, opened: Opened, seed: int) -> None:
    """After 4,000 random calls by four workers at once, what is written down is what is there."""
    stores = [opened(redis.url) for _ in range(4)]
    chaos = Chaos(seed)

    async def work(store: JobStore) -> None:
        for _ in range(100):
            await chaos.act(store)

    for _ in range(10):
        await asyncio.gather(*map(work, stores))
        await audit(redis)
    assert min(chaos.done[act] for act in ("submit", "claim", "begin", "finish", "hand_back", "adopt")) >= 10
    assert min(chaos.done[act] for act in ("remove", "due")) >= 10


async def test_the_books_are_closed(redis: RedisServer, opened: Opened) -> None:
    """When all jobs are gone and all workers have left no key is there, whatever was done before."""
    stores = [opened(redis.url) for _ in range(4)]
    chaos = Chaos(4)
    for _ in range(250):
        await asyncio.gather(*map(chaos.act, stores))
    store = stores[0]
    for worker in ("w0", "w1", "w2", "w3"):
        for held in await store.held(worker):
            assert await store.finish(held.lease, ending())
    while claim := await store.claim("w1", 1000):
        assert await store.finish(claim.lease, ending())
    await expire(redis)
    while await store.purge(NOW):
        pass
    assert await keys(redis) == ["verbatim:jobs:beats"]
    for worker in ("w0", "w1", "w2", "w3"):
        await store.leave(worker)
    assert await keys(redis) == []
