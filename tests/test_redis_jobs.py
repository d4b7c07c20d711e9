"""Jobs in Redis: what its server may do to them, and what becomes of an answer that is lost.

Not here: what is the same over SQLite (`test_job_store`), and all that may be done (`test_redis_books`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from job_stores import (
    AMPLE,
    ENDED,
    EXPIRES,
    LONG,
    NOW,
    PASSWORD,
    claimed,
    ending,
    everything,
    finished,
    job,
    refused,
    some_steps,
    submitted,
    there,
)
from redis_books import Opened, audit, expire, keys, opened, redis, store
from redis_server import RedisServer, Relay
from running import LogText

from proxy.job import Claim, Delivery, Found, Held, Lease, State
from proxy.ports import JobStore

__all__ = ["opened", "redis", "store"]

MIB = 1 << 20

Call = Callable[[], Awaitable[object]]


async def test_an_entry_for_each_owner(redis: RedisServer, store: JobStore) -> None:
    """Who claims passes over owners, not over jobs: behind one that waits for itself the next is at hand."""
    for number in range(1000):
        await submitted(store, job(f"a{number}", owner="busy"))
    assert there(await store.claim("w1", 1)).job.id == "a0"
    assert await store.claim("w1", 1) is None
    await submitted(store, job("b", owner="other"))
    await redis.ask("CONFIG", "RESETSTAT")
    assert there(await store.claim("w1", 1)).job.id == "b"
    lines = await redis.ask("INFO", "commandstats")
    # Those within the script too.
    calls = sum(int(line.partition("calls=")[2].partition(",")[0]) for line in lines if "calls=" in line)
    assert calls < 40


async def test_many_owners_that_have_enough(redis: RedisServer, store: JobStore) -> None:
    """However many, the one that has not is found among them."""
    for number in range(2):
        for owner in range(250):
            await submitted(store, job(f"{owner}-{number}", owner=f"owner {owner}"))
    for owner in range(250):
        assert there(await store.claim("w1", 1)).job.id == f"{owner}-0"
    assert await store.claim("w1", 1) is None
    for owner in (249, 200, 199, 101, 100, 99, 0):
        assert await store.remove(f"{owner}-0") is State.PROCESSING
        assert there(await store.claim("w1", 1)).job.id == f"{owner}-1"
    assert await store.claim("w1", 1) is None
    await audit(redis)


# What a body may be.


async def test_a_large_body_comes_back(redis: RedisServer, store: JobStore) -> None:
    """32 MiB of any bytes, to and fro; nothing of it went through Lua, and nothing is left of it."""
    body = bytes(range(256)) * (32 * MIB // 256)
    lease = await claimed(store, "a", body=body)
    assert await store.begin(lease)
    assert await store.finish(lease, ending(body[::-1]))
    found = there(await store.look("a", NOW))
    assert there(found.ending).body == body[::-1]
    stats = dict(line.split(":", 1) for line in await redis.ask("INFO", "memory") if ":" in line)
    assert int(stats["used_memory_lua"]) < MIB
    assert 32 * MIB < int(stats["used_memory"]) < 64 * MIB
    assert await store.remove("a") is State.COMPLETED
    stats = dict(line.split(":", 1) for line in await redis.ask("INFO", "memory") if ":" in line)
    assert int(stats["used_memory"]) < 32 * MIB


async def test_an_empty_body_is_one(redis: RedisServer, store: JobStore) -> None:
    """It is not taken for one that is gone."""
    lease = await claimed(store, "a", body=b"")
    assert await store.hand_back(lease)
    lease = there(await store.claim("w1", 1)).lease
    assert await store.finish(lease, ending(b""))
    assert there(there(await store.look("a", NOW)).ending).body == b""
    await audit(redis)


async def test_a_refused_body_is_not_kept(redis: RedisServer, store: JobStore) -> None:
    """Nor is the result of who has lost the lease; what another kept stays."""
    assert await store.submit(job("a"), AMPLE._replace(jobs=0)) == "jobs"
    assert await keys(redis) == []
    lost = await claimed(store, "a")
    assert await store.hand_back(lost)
    lease = there(await store.claim("w2", 1)).lease
    assert not await store.finish(lost, ending(b"late"))
    assert await store.finish(lease, ending(b"right"))
    assert not await store.finish(lost, ending(b"later"))
    assert there(there(await store.look("a", NOW)).ending).body == b"right"
    await audit(redis)


# How long what is kept.


async def test_only_what_is_over_expires(redis: RedisServer, store: JobStore) -> None:
    """A result after the time that its job gives it, whatever the server's clock says; all else never."""
    lease = await claimed(store, "a", webhook="hook")
    await submitted(store, job("b"))
    assert await store.begin(lease)
    await store.beat("w1")
    assert {key: await redis.ask("TTL", key) for key in await keys(redis)} == {
        key: ["-1"] for key in await keys(redis)
    }
    assert await store.finish(lease, ending(expires=ENDED + 99.5))
    lives = {key: int((await redis.ask("TTL", key))[0]) for key in await keys(redis)}
    ends = {key: life for key, life in lives.items() if life != -1}
    assert sorted(ends) == ["verbatim:job:a", "verbatim:jobs:result:a"]
    assert all(90 <= life <= 100 for life in ends.values())


async def test_what_expires_leaves_nothing(redis: RedisServer, store: JobStore) -> None:
    """Webhooks that were not told are forgotten, by whoever asks for them or by a purge."""
    for ask in (store.purge(NOW), store.due(NOW + 20, NOW + 30)):
        await finished(store, "a", webhook="hook")
        await finished(store, "b")
        assert await expire(redis) == 4
        assert await keys(redis) == ["verbatim:jobs:beats", "verbatim:jobs:due"]
        assert await store.look("a", NOW) is None
        assert not await ask
        assert await keys(redis) == ["verbatim:jobs:beats"]


async def test_a_result_without_its_body_is_none(redis: RedisServer, store: JobStore) -> None:
    """They expire together, but each by itself."""
    await finished(store, "a")
    await redis.ask("DEL", "verbatim:jobs:result:a")
    assert await store.look("a", NOW) is None


async def test_the_clock_of_who_asks_says_what_has_expired(redis: RedisServer, store: JobStore) -> None:
    """Also where the server still has it: its webhook is not told any more."""
    await finished(store, "a", webhook="hook")
    assert await store.due(EXPIRES, EXPIRES) is None
    assert await keys(redis, "verbatim:jobs:due") == []


async def test_a_delivery_behind_many_that_have_expired(redis: RedisServer, store: JobStore) -> None:
    """It is found with one call, and a purge takes them all, in steps."""
    for number in range(250):
        await finished(store, f"a{number}", webhook="hook")
    await expire(redis)
    await finished(store, "b", webhook="hook")
    assert there(await store.due(NOW + 10, NOW + 20)).found.id == "b"
    assert await redis.ask("ZCARD", "verbatim:jobs:due") == ["1"]
    for number in range(250):
        await finished(store, f"a{number}", webhook="hook")
    await expire(redis)
    steps = 1
    while await store.purge(NOW):
        steps += 1
    assert steps > 1
    assert await keys(redis) == ["verbatim:jobs:beats"]


# The server ends.


async def test_killed_between_calls(redis: RedisServer, store: JobStore) -> None:
    """What was answered is there when the server is back, at every step of a job."""

    async def again() -> None:
        await redis.kill()
        await redis.start()
        await audit(redis)

    await submitted(store, job("a", webhook="hook"))
    await again()
    assert there(await store.look("a", NOW)).state is State.PENDING
    assert await store.pending() == 1
    await again()
    claim = there(await store.claim("w1", 1))
    assert claim.job == job("a", webhook="hook")
    await again()
    assert await store.held("w1") == [Held(claim.lease, claim.job.operation, 60, False, 0)]
    assert await store.begin(claim.lease)
    await again()
    await store.adopt("w2", "w1", 0)
    await again()
    (held,) = await store.held("w2")
    assert held == Held(Lease("a", "w2", 2), claim.job.operation, 60, True, 1)
    assert await store.finish(held.lease, ending(b"answer"))
    await again()
    found = Found("a", "dev", "/v1/messages", State.COMPLETED, NOW, ending(b"answer"))
    assert await store.look("a", NOW) == found
    found = found._replace(ending=ending(b""))
    assert await store.peek("a", NOW) == found
    shown = found._replace(ending=ending(b""))
    assert await store.due(NOW + 5, NOW + 6) == Delivery("hook", shown, 1)
    await again()
    assert await store.due(NOW + 5, NOW + 6) is None
    assert await store.due(NOW + 6, NOW + 7) == Delivery("hook", shown, 2)
    await store.told("a", None)
    await again()
    assert await store.due(NOW + 7, NOW + 8) is None
    assert await store.remove("a") is State.COMPLETED
    await again()
    assert await keys(redis) == ["verbatim:jobs:beats"]


@pytest.mark.parametrize("seen", [1, 50, 200])
async def test_killed_while_many_ask(redis: RedisServer, opened: Opened, seen: int) -> None:
    """Every job whose submission was answered waits when the server is back; none is there by half."""
    stores = [opened(redis.url) for _ in range(4)]
    kept: list[str] = []
    enough = asyncio.Event()

    async def submit(number: int, store: JobStore) -> None:
        for count in itertools.count():
            id = f"{number}-{count}"
            await store.submit(job(id, owner=f"owner {number}"), AMPLE)
            kept.append(id)
            if len(kept) >= seen:
                enough.set()

    tasks = [asyncio.ensure_future(submit(*each)) for each in enumerate(stores)]
    async with asyncio.timeout(LONG):
        await enough.wait()
    await redis.kill()
    for task in tasks:
        await refused(task)
    await redis.start()
    await audit(redis)
    for id in kept:
        assert await stores[0].remove(id) is State.PENDING
    # One that was under way for each worker.
    assert await stores[0].pending() <= 4


async def test_the_server_is_away(redis: RedisServer, store: JobStore) -> None:
    """Every call is a `StoreError`, at once; when the server is back the same store works."""
    await finished(store, "a")
    await redis.kill()
    for call in everything(store):
        await refused(call)
    await redis.start()
    assert there(await store.look("a", NOW)).state is State.COMPLETED
    await finished(store, "b")


async def test_the_server_says_nothing(
    redis: RedisServer, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call is a `StoreError` in bounded time; what was asked may be done later, as a whole."""
    monkeypatch.setattr("proxy.store.redis_jobs._SILENCE", 1.0)
    monkeypatch.setattr("proxy.store.redis_jobs._PATIENCE", 2.5)
    hasty = opened(redis.url)
    await finished(hasty, "a")
    monkeypatch.undo()
    redis.pause()
    calls = [*everything(hasty), *(hasty.pending() for _ in range(16))]
    reasons = await asyncio.gather(*map(refused, calls))
    redis.go_on()
    # The first had a connection, the last had waited for one too long.
    assert "Timeout reading" in reasons[0]
    assert "no answer within 2.5 s" in reasons[-1]
    await opened(redis.url).beat("w1")
    await audit(redis)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b":x\r\n", b"*1\r\n", b"\xff" * 70_000]
)
async def test_it_is_no_redis(opened: Opened, answer: bytes) -> None:
    """Whatever answers at that port, and then leaves: a `StoreError`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        store = opened(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", PASSWORD)
        for call in everything(store):
            await refused(call)


async def test_the_server_has_no_memory(redis: RedisServer, store: JobStore) -> None:
    """What needs some is not done, and leaves nothing; jobs can be removed; later all goes on."""
    lease = await claimed(store, "a", body=bytes(1000))
    await submitted(store, job("b"))
    await redis.ask("CONFIG", "SET", "maxmemory", "1")
    for call in (
        store.submit(job("c"), AMPLE),
        store.begin(lease),
        store.finish(lease, ending(bytes(1000))),
        store.beat("w1"),
    ):
        assert "OOM" in await refused(call)
    await audit(redis)
    assert await store.remove("b") is State.PENDING
    await redis.ask("CONFIG", "SET", "maxmemory", "0")
    assert await store.begin(lease)
    assert await store.finish(lease, ending(bytes(1000)))
    await audit(redis)


async def test_the_server_is_a_replica(redis: RedisServer, store: JobStore, closed_port: int) -> None:
    """It refuses to write; nothing is left half done."""
    lease = await claimed(store, "a")
    await redis.ask("REPLICAOF", "127.0.0.1", str(closed_port))
    assert "READONLY" in await refused(store.submit(job("b"), AMPLE))
    assert "READONLY" in await refused(store.begin(lease))
    assert "READONLY" in await refused(store.finish(lease, ending()))
    await redis.ask("REPLICAOF", "NO", "ONE")
    await audit(redis)
    assert await store.finish(lease, ending())


async def test_the_server_forgot_the_scripts(redis: RedisServer, store: JobStore) -> None:
    """It is told again, within the same call."""

    async def told_again(call: Call) -> Any:
        await redis.ask("SCRIPT", "FLUSH")
        return await call()

    assert await told_again(lambda: store.submit(job("a"), AMPLE)) == ""
    claim: Claim = await told_again(lambda: store.claim("w1", 1))
    assert await told_again(lambda: store.begin(claim.lease))
    assert len(await told_again(lambda: store.held("w1"))) == 1
    assert await told_again(lambda: store.hand_back(claim.lease))
    assert await told_again(lambda: store.remove("a")) is State.PENDING


# An answer is lost.


class Lossy:
    """A store by way of a relay, and the same store directly."""

    def __init__(self, relay: Relay, store: JobStore, direct: JobStore) -> None:
        self._relay = relay
        self.store = store
        self.direct = direct

    async def lose(self, call: Awaitable[object]) -> None:
        """The call is made, and its answer is lost."""
        self._relay.losing = True
        await refused(call)
        self._relay.losing = False


@pytest.fixture
async def lossy(redis: RedisServer, opened: Opened) -> AsyncIterator[Lossy]:
    relay = Relay(redis)
    await relay.start()
    lossy = Lossy(relay, opened(relay.url), opened(redis.url))
    # The server learns all scripts: an answer that says that it has to is not the one that is to be lost.
    for call in everything(lossy.direct):
        await call
    assert await keys(redis) == []
    await lossy.store.pending()
    yield lossy
    await lossy.store.close()
    await relay.stop()
    await audit(redis)


async def test_the_answer_to_submit_is_lost(lossy: Lossy) -> None:
    """The job is there, once; submitted again it still is, and `remove` takes it back."""
    await lossy.lose(lossy.store.submit(job("a"), AMPLE))
    assert there(await lossy.direct.look("a", NOW)).state is State.PENDING
    assert await lossy.store.submit(job("a", body=b"other"), AMPLE._replace(jobs=1)) == ""
    assert await lossy.store.pending() == 1
    assert there(await lossy.direct.claim("w1", 1)).job == job("a")
    await submitted(lossy.store, job("a"))
    assert await lossy.store.pending() == 0
    assert await lossy.store.remove("a") is State.PROCESSING


async def test_the_answer_to_claim_is_lost(lossy: Lossy) -> None:
    """The job is the worker's, who sees it in what it holds; nobody else gets it until it is handed back."""
    await lossy.store.submit(job("a"), AMPLE)
    await lossy.lose(lossy.store.claim("w1", 9))
    assert await lossy.store.claim("w1", 9) is None
    assert await lossy.direct.claim("w2", 9) is None
    (held,) = await lossy.store.held("w1")
    assert not held.begun
    assert await lossy.store.hand_back(held.lease)
    assert there(await lossy.direct.claim("w2", 9)).lease.number == held.lease.number + 1


async def test_the_answer_to_begin_is_lost(lossy: Lossy) -> None:
    """It has begun, and is counted once however often the same lease says so."""
    lease = await claimed(lossy.store, "a")
    await lossy.lose(lossy.store.begin(lease))
    (held,) = await lossy.direct.held("w1")
    assert (held.begun, held.begins) == (True, 1)
    assert await lossy.store.begin(lease)
    assert (await lossy.direct.held("w1")) == [held]
    # Who did not send it can still give it back, as if it had not begun.
    assert await lossy.store.hand_back(lease)
    lease = there(await lossy.store.claim("w1", 9)).lease
    (held,) = await lossy.direct.held("w1")
    assert (held.begun, held.begins) == (False, 1)
    assert await lossy.store.begin(lease)
    (held,) = await lossy.direct.held("w1")
    assert (held.begun, held.begins) == (True, 2)


async def test_the_answer_to_hand_back_is_lost(lossy: Lossy) -> None:
    """The job waits once; asked again there is nothing to hand back, also when another has it."""
    lease = await claimed(lossy.store, "a")
    await lossy.lose(lossy.store.hand_back(lease))
    assert not await lossy.store.hand_back(lease)
    assert not await lossy.store.begin(lease)
    assert not await lossy.store.finish(lease, ending(b"late"))
    assert await lossy.store.pending() == 1
    other = there(await lossy.direct.claim("w1", 9)).lease
    assert not await lossy.store.hand_back(lease)
    assert not await lossy.store.finish(lease, ending(b"late"))
    assert await lossy.store.begin(other)


async def test_the_answer_to_finish_is_lost(lossy: Lossy) -> None:
    """The end is kept. Offered again it is said to be, and stays; any other lease is told that it is late."""
    lease = await claimed(lossy.store, "a", webhook="hook")
    await lossy.lose(lossy.store.finish(lease, ending(b"right")))
    assert there(there(await lossy.direct.look("a", NOW)).ending).body == b"right"
    await lossy.store.told("a", None)
    assert await lossy.store.finish(lease, ending(b"right", completed=ENDED + 9))
    for late in (lease._replace(number=lease.number + 1), lease._replace(worker="w2")):
        assert not await lossy.store.finish(late, ending(b"late"))
    assert there(await lossy.direct.look("a", NOW)).ending == ending(b"right")
    # Its webhook was told, and is not due once more.
    assert await lossy.direct.due(NOW + 99, NOW + 99) is None


async def test_the_answer_to_remove_is_lost(lossy: Lossy) -> None:
    """The job is gone; asked again there is none."""
    await claimed(lossy.store, "a")
    await lossy.lose(lossy.store.remove("a"))
    assert await lossy.direct.look("a", NOW) is None
    assert await lossy.store.remove("a") is None


async def test_the_answers_of_workers_are_lost(lossy: Lossy) -> None:
    """A beat is counted, and one more does no harm; an adoption is found in what is held."""
    lease = await claimed(lossy.store, "a", worker="w2")
    await lossy.lose(lossy.store.beat("w1"))
    assert await lossy.store.beat("w1") == {"w1": 2, "w2": 0}
    await lossy.lose(lossy.store.adopt("w1", "w2", 0))
    await lossy.store.adopt("w1", "w2", 0)
    (held,) = await lossy.direct.held("w1")
    assert held.lease == Lease("a", "w1", lease.number + 1)
    for lost in (lease, lease._replace(number=held.lease.number)):
        assert not await lossy.store.begin(lost)
    await lossy.lose(lossy.store.leave("w2"))
    await lossy.store.leave("w2")
    assert await lossy.store.beat("w1") == {"w1": 3}


async def test_the_answers_of_webhooks_are_lost(lossy: Lossy) -> None:
    """A delivery comes again at its time, as one more try; what was told stays told."""
    await finished(lossy.store, "a", webhook="hook")
    await lossy.lose(lossy.store.due(NOW + 10, NOW + 20))
    assert await lossy.store.due(NOW + 19, NOW + 30) is None
    assert there(await lossy.store.due(NOW + 20, NOW + 30)).tries == 2
    await lossy.lose(lossy.store.told("a", NOW + 40))
    assert await lossy.store.due(NOW + 39, NOW + 50) is None
    assert there(await lossy.store.due(NOW + 40, NOW + 50)).tries == 3
    await lossy.lose(lossy.store.told("a", None))
    await lossy.store.told("a", NOW + 50)
    assert await lossy.store.due(NOW + 50, NOW + 60) is None


@pytest.mark.parametrize("steps", range(1, 13))
async def test_who_asks_is_cancelled(redis: RedisServer, store: JobStore, steps: int) -> None:
    """At whatever step: it ends as cancelled, and its job is there or is not."""
    await store.pending()
    for number in range(20):
        task = asyncio.ensure_future(store.submit(job(f"a{number}", body=bytes(number * 5000)), AMPLE))
        await some_steps(steps)
        cancelled = task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() == cancelled
    await audit(redis)
    while claim := await store.claim("w1", 1000):
        number = int(claim.lease.id[1:])
        assert claim.job == job(f"a{number}", body=bytes(number * 5000))
        assert await store.finish(claim.lease, ending())
    assert await store.pending() == 0
    await audit(redis)


# Whether anything is kept.


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (("appendonly yes",), 0),
        (("appendonly no", "save 3600 1"), 0),
        (("appendonly no",), 1),
        (("appendonly no", 'rename-command CONFIG ""'), 0),
    ],
)
async def test_a_server_that_keeps_nothing(
    tmp_path: Path, opened: Opened, logged: LogText, options: tuple[str, ...], warned: int
) -> None:
    """It is said once, as far as the server tells."""
    server = RedisServer(tmp_path, *options, password=PASSWORD)
    await server.start()
    try:
        store = opened(server.url, PASSWORD)
        await asyncio.gather(*(store.submit(job(f"a{number}"), AMPLE) for number in range(10)))
        assert await store.pending() == await store.urgently().pending() == 10
        assert logged.text.count(f"{server.url} keeps nothing on disk") == warned
        assert logged.text.count("appendonly") == warned
        # Who does not tell is not asked again.
        errors = [line for line in await server.ask("INFO", "errorstats") if line.startswith("errorstat_ERR")]
        assert errors == (["errorstat_ERR:count=1"] if "rename-command" in options[-1] else [])
    finally:
        await server.kill()
