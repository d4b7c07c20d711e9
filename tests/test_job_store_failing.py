"""The store of jobs, whatever fails meanwhile: nothing is lost, and nothing is done by halves.

Not here: what it does (`test_job_store`).
"""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from job_stores import (
    AMPLE,
    ENDED,
    EXPIRES,
    SUBMITTER,
    WORKER,
    Backend,
    Opened,
    Spawn,
    all_claims,
    backend,
    begun,
    claimed,
    ending,
    everything,
    filled,
    finished,
    job,
    killed,
    last_steps,
    left_behind,
    line,
    next_steps,
    opened,
    refused,
    some_steps,
    spawn,
    store,
    submitted,
    tell,
    there,
)
from running import LogText

from proxy.job import Held, Lease, State
from proxy.ports import JobStore, StoreError
from proxy.store import open_jobs

__all__ = ["backend", "opened", "spawn", "store"]

FOREVER = 1e12
"""Long after everything."""


# What is kept.


async def test_all_is_there_when_it_is_opened_again(backend: Backend, opened: Opened) -> None:
    """By the same worker after a restart or by another, and after the backend was away."""
    first = opened(backend)
    lease = await begun(first, "held", webhook="hook")
    await finished(first, "over", ending(b"answer"), webhook="hook")
    await submitted(first, job("waits", body=b"request"))
    await first.beat("w1")
    await first.close()
    await backend.fail()
    await backend.recover()
    again = opened(backend)
    assert await again.pending() == 1
    assert await again.held("w1") == [Held(lease, job().operation, 60, True, 1)]
    assert there(there(await again.look("over", ENDED)).ending) == ending(b"answer")
    assert there(await again.due(ENDED, FOREVER)).found.id == "over"
    assert await again.beat("w1") == {"w1": 2}
    assert await again.finish(lease, ending())
    assert there(await again.claim("w1", 10)).job == job("waits", body=b"request")


async def test_a_submitted_job_survives_kill_9(backend: Backend, store: JobStore, spawn: Spawn) -> None:
    """Whatever the moment: each one that was answered is there, whole, and at most one more."""
    rng = random.Random(6)
    for round_ in range(4):
        process = await spawn(SUBMITTER, backend, f"r{round_}", 100_000)
        assert await line(process) == "ready"
        await tell(process)
        told = [await line(process) for _ in range(rng.randrange(1, 120))]
        told += await killed(process)
        assert told == [f"r{round_}-{number}" for number in range(len(told))]
        claims = await all_claims(store, f"w{round_}")
        assert [claim.job.body for claim in claims] == [b"%d" % n * 500 for n in range(len(claims))]
        ids = [claim.job.id for claim in claims]
        assert ids[: len(told)] == told
        assert len(ids) - len(told) in (0, 1)


async def test_a_killed_worker_leaves_every_job_in_one_state(
    backend: Backend, store: JobStore, spawn: Spawn
) -> None:
    """Killed while it does jobs: what it said it did was done, at most one step more, and nothing is lost."""
    rng = random.Random(6)
    bodies = {f"j{number}": b"%d" % number * 100 for number in range(600)}
    await filled(store, (job(id, body=body) for id, body in bodies.items()))
    over: set[str] = set()
    for round_ in range(5):
        process = await spawn(WORKER, backend, f"w{round_}")
        assert await line(process) == "ready"
        await tell(process)
        told = await next_steps(process, rng.randrange(1, 150))
        told += await last_steps(process)
        over.update(id for step, id in told if step == "finished")
        held = await store.held(f"w{round_}")
        assert len(held) <= 1
        last, id = told[-1] if told else ("finished", "")
        # It may have done one more step, and had no time to tell of it.
        if last == "claimed":
            assert [each.lease.id for each in held] == [id]
        elif last == "begun" and held:
            assert [(each.lease.id, each.begun) for each in held] == [(id, True)]
        elif last == "begun":
            over.add(id)
        await store.adopt("settler", f"w{round_}", 0)
        for each in await store.held("settler"):
            assert await store.hand_back(each.lease)
    for id in over:
        assert there(there(await store.look(id, ENDED)).ending).body == bodies[id][::-1]
    left = {claim.job.id: claim.job.body for claim in await all_claims(store)}
    assert left == {id: body for id, body in bodies.items() if id not in over}


# Failing, recovering, closing.


async def test_a_store_is_made_without_touching_anything(backend: Backend, opened: Opened) -> None:
    """It connects when it is first asked, so a worker starts whatever the store is like."""
    await backend.fail()
    store = opened(backend)
    await refused(store.submit(job("a"), AMPLE))
    await refused(store.claim("w1", 10))
    await backend.recover()
    assert await store.claim("w1", 10) is None
    await claimed(store, "a")


async def test_a_store_that_failed_recovers_by_itself(backend: Backend, store: JobStore) -> None:
    """While it is away every call is a `StoreError`; when it is back it has all that was answered."""
    for round_ in range(1, 4):
        lease = await begun(store, f"j{round_}")
        await backend.fail()
        for call in everything(store):
            await refused(call)
        await backend.recover()
        # Nothing had to be told that it is back.
        assert await store.finish(lease, ending()) is True
        for number in range(1, round_ + 1):
            assert there(await store.look(f"j{number}", ENDED)).state is State.COMPLETED


async def test_an_error_shows_no_secret(backend: Backend, store: JobStore, logged: LogText) -> None:
    """Neither in its text nor in its causes, nor what a debugger or a log shows of the store."""
    secret = job("z", head=b'"sk-test-head"', body=b"sk-test-body")
    lease = await claimed(store, "a", head=secret.head, body=secret.body)
    await backend.fail()
    calls = [
        store.submit(secret, AMPLE),
        store.finish(lease, ending(b"sk-test-answer")),
        *everything(store),
    ]
    for call in calls:
        with pytest.raises(StoreError) as caught:
            await call
        error: BaseException | None = caught.value
        while error is not None:
            assert "sk-test" not in f"{error!s} {error!r}"
            error = error.__cause__
    assert "sk-test" not in repr(store)
    await backend.recover()
    assert await store.finish(lease, ending())
    assert "sk-test" not in logged.text


async def test_a_closed_store_stays_closed(backend: Backend, store: JobStore) -> None:
    """Whoever is late is told so, and opens nothing again; closing twice is closing."""
    before = set(threading.enumerate())
    await submitted(store, job("a"))
    await store.close()
    assert left_behind(before) == []
    await asyncio.gather(store.close(), store.close())
    for call in everything(store):
        assert "closed" in await refused(call)
    assert left_behind(before) == []
    unused = open_jobs(backend.url, backend.password)
    await unused.close()
    assert left_behind(before) == []


async def test_closing_waits_for_who_is_being_answered(backend: Backend, opened: Opened) -> None:
    """A job whose keeping is under way is kept, and the answer comes."""
    store = opened(backend)
    await store.beat("w1")
    submitting = asyncio.create_task(store.submit(job("a"), AMPLE))
    await asyncio.sleep(0)
    await store.close()
    assert await submitting == ""
    assert await opened(backend).pending() == 1


async def test_a_store_closed_while_it_connects(backend: Backend, opened: Opened) -> None:
    """At whatever step: its call ends, and nothing is left."""
    for steps in range(50):
        before = set(threading.enumerate())
        store = opened(backend)
        call = asyncio.create_task(store.submit(job(f"j{steps}"), AMPLE))
        await some_steps(steps)
        if steps % 2:
            call.cancel()
        await store.close()
        await asyncio.wait([call])
        assert left_behind(before) == []


async def test_who_closes_may_be_cancelled(backend: Backend, opened: Opened) -> None:
    """At whatever step: closing goes on, and who closes again waits for its end."""
    for steps in range(20):
        before = set(threading.enumerate())
        store = opened(backend)
        await store.beat("w1")
        await store.pending()
        call = asyncio.create_task(store.submit(job(f"j{steps}"), AMPLE))
        closing = asyncio.create_task(store.close())
        await some_steps(steps)
        closing.cancel()
        await store.close()
        assert call.done()
        await asyncio.wait([closing])
        assert left_behind(before) == []
        # A connection that was not closed says so.
        gc.collect()


class Step(NamedTuple):
    """A call, and how to get a job to where it can be made."""

    before: Callable[[JobStore, str, str], Awaitable[Lease | None]]
    call: Callable[[JobStore, str, str], Awaitable[object]]


async def nothing(store: JobStore, id: str, worker: str) -> None:
    await store.beat(worker)


async def waiting(store: JobStore, id: str, worker: str) -> None:
    await store.beat(worker)
    await submitted(store, job(id, webhook="hook"))


async def processing(store: JobStore, id: str, worker: str) -> None:
    await waiting(store, id, worker)
    assert there(await store.claim(worker, 10)).lease == Lease(id, worker, 1)


async def over(store: JobStore, id: str, worker: str) -> None:
    await processing(store, id, worker)
    assert await store.finish(Lease(id, worker, 1), ending())


STEPS = {
    "submit": Step(nothing, lambda store, id, worker: store.submit(job(id), AMPLE)),
    "claim": Step(waiting, lambda store, id, worker: store.claim(worker, 10)),
    "begin": Step(processing, lambda store, id, worker: store.begin(Lease(id, worker, 1))),
    "hand_back": Step(processing, lambda store, id, worker: store.hand_back(Lease(id, worker, 1))),
    "finish": Step(processing, lambda store, id, worker: store.finish(Lease(id, worker, 1), ending())),
    "look": Step(over, lambda store, id, worker: store.look(id, ENDED)),
    "peek": Step(over, lambda store, id, worker: store.peek(id, ENDED)),
    "remove": Step(processing, lambda store, id, worker: store.remove(id)),
    "beat": Step(nothing, lambda store, id, worker: store.beat(worker)),
    "held": Step(processing, lambda store, id, worker: store.held(worker)),
    "adopt": Step(processing, lambda store, id, worker: store.adopt("heir", worker, 1)),
    "leave": Step(nothing, lambda store, id, worker: store.leave(worker)),
    "pending": Step(waiting, lambda store, id, worker: store.pending()),
    "purge": Step(over, lambda store, id, worker: store.purge(EXPIRES)),
    "due": Step(over, lambda store, id, worker: store.due(ENDED, FOREVER)),
    "told": Step(over, lambda store, id, worker: store.told(id, None)),
}


async def whole(store: JobStore, id: str, worker: str) -> tuple[Any, ...]:
    """What can be seen of a job and its worker, by any names. The job is removed then."""
    # What was asked before, on whatever connection, is done by then, or never will be.
    await store.beat("observer")
    await store.beat("observer")
    found = await store.look(id, EXPIRES - 1)
    held = [
        (holder == worker, each.lease.number, each.begun, each.begins)
        for holder in (worker, "heir")
        for each in await store.held(holder)
        if each.lease.id == id
    ]
    beats = (await store.beat("observer")).get(worker)
    delivery = await store.due(EXPIRES - 1, FOREVER)
    pending = await store.pending()
    await store.remove(id)
    return found and found[1:], held, beats, delivery and delivery.tries, pending


@pytest.mark.parametrize("name", STEPS)
async def test_a_cancelled_call_has_done_all_or_nothing(store: JobStore, name: str) -> None:
    """At whatever step its caller is cancelled; and the store goes on to serve."""
    step = STEPS[name]
    await step.before(store, "before", "w-before")
    before = await whole(store, "before", "w-before")
    await step.before(store, "after", "w-after")
    await step.call(store, "after", "w-after")
    after = await whole(store, "after", "w-after")
    for steps in range(0, 160, 4):
        id, worker = f"j{steps}", f"w{steps}"
        await step.before(store, id, worker)
        call = asyncio.ensure_future(step.call(store, id, worker))
        await some_steps(steps)
        call.cancel()
        await asyncio.wait([call])
        assert await whole(store, id, worker) in (before, after)
    assert await store.pending() == 0


async def test_many_cancelled_calls_leave_a_store_that_works(backend: Backend, opened: Opened) -> None:
    """Also while it connects, and where others wait for their turn."""
    for steps in range(30):
        before = set(threading.enumerate())
        store = opened(backend)
        calls = [asyncio.create_task(store.submit(job(f"{steps}-{number}"), AMPLE)) for number in range(10)]
        await some_steps(steps)
        for call in calls[::2]:
            call.cancel()
        await asyncio.wait(calls)
        assert [await call for call in calls[1::2]] == [""] * 5
        ids = {claim.job.id for claim in await all_claims(store)}
        assert {f"{steps}-{number}" for number in range(1, 10, 2)} <= ids
        await store.close()
        assert left_behind(before) == []
