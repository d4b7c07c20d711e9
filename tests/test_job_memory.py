"""What jobs take of memory while they are done, and that nothing of it is left.

Not here: what bodies of requests take (`test_held_bodies`).
"""

from __future__ import annotations

import asyncio
import gc
import zlib
from pathlib import Path
from typing import Any

from backends import backend
from dispatching import (
    BODY,
    Books,
    StartWorker,
    books,
    clock,
    sent,
    stays,
    worker,
    working,
)
from running import StartProxy, StartUpstream
from scripted import MESSAGE, Conn, answer, head, raw, refusal

from proxy import jobheads
from proxy.dispatcher import BEAT_SECONDS, DEAD_SECONDS, LOOK_SECONDS
from proxy.job import State

__all__ = ["backend", "books", "clock", "sent", "worker"]

FOUND = DEAD_SECONDS + BEAT_SECONDS


async def talks_nonsense(conn: Conn) -> None:
    await conn.request()
    await conn.send(b"nonsense\r\n\r\n")
    await conn.gone()


async def test_of_too_large_an_answer_no_more_is_read(
    upstream: StartUpstream, proxy: StartProxy, worker: StartWorker, books: Books, tmp_path: Path
) -> None:
    """What is kept is its beginning; the connection is closed, so that upstream sends no more of it."""

    async def endless(conn: Conn) -> None:
        await conn.request()
        await conn.send(head(200, [(b"Content-Length", b"1000000000")]) + b"x" * 5000)
        await conn.gone()

    up = await upstream(raw(endless))
    p = await proxy(up, jobs={"max_result_bytes": 3000})
    work = working(p)
    one = worker(work=work)
    await books.submit("job_1")
    await one.turn()
    await one.idle()
    await up.quiet()
    found = await books.found("job_1")
    assert found is not None
    assert found.ending is not None
    assert (found.state, found.ending.status) == (State.FAILED, 502)
    assert zlib.decompress(found.ending.body) == b"x" * 3000
    kept = jobheads.Answer.loads(found.ending.head)
    assert b"job_result_too_large: " in kept.error
    assert b"x-bifrost-attempts: anthropic/claude-2:200" in kept.lines


async def test_claims_stop_while_the_bodies_of_jobs_fill_their_room(
    upstream: StartUpstream, proxy: StartProxy, worker: StartWorker, books: Books
) -> None:
    """Jobs can wait: they have half of ``max_buffered_bytes``. When there is room again they go on."""
    body = BODY[:-1] + b',"pad":"%b"}' % (b"x" * 800)
    go_on = asyncio.Event()

    async def later(conn: Conn) -> None:
        await conn.request()
        await go_on.wait()
        await conn.send(answer(body=b"{}"))

    up = await upstream(*[raw(later)] * 20)
    p = await proxy(up, max_body_bytes=1000, max_buffered_bytes=16_000)
    work = working(p)
    one = worker(work=work, concurrent=1000, concurrent_per_key=1000)
    await books.submit(*(f"job_{number}" for number in range(20)), body=body)
    await one.turns(3 * LOOK_SECONDS)
    assert not work.has_room
    half = 8_000 // len(body)
    # The last one is counted when its task has begun.
    assert half < one.dispatcher.running <= half + 2
    assert await books.state("job_19") is State.PENDING
    go_on.set()
    for _ in range(5):
        await one.idle()
        await one.turn()
    await one.idle()
    assert await books.states(*(f"job_{number}" for number in range(20))) == [State.COMPLETED] * 20
    assert work.buffered == 0


async def test_answers_of_jobs_take_their_room_and_one_more(
    upstream: StartUpstream, proxy: StartProxy, worker: StartWorker, books: Books
) -> None:
    """Where all come at once only one is read on, to its end: what it asked for has been paid for."""
    part, parts, jobs = 50_000, 8, 6
    free = asyncio.Event()

    async def slowly(conn: Conn) -> None:
        await conn.request()
        await free.wait()
        await conn.send(head(200, [(b"Content-Length", b"%d" % (part * parts))]))
        for _ in range(parts):
            await conn.send(b"x" * part)

    up = await upstream(*[raw(slowly)] * jobs)
    room = 2 * part
    p = await proxy(up, max_body_bytes=1000, max_buffered_bytes=2 * room)
    work = working(p)
    one = worker(work=work)
    most = 0
    grow = work._bodies.grow

    def watched(*what: Any) -> None:
        nonlocal most
        grow(*what)
        most = max(most, work.buffered)

    work._bodies.grow = watched
    await books.submit(*(f"job_{number}" for number in range(jobs)))
    await one.turn()
    await up.received(jobs)
    free.set()
    for _ in range(jobs):
        await one.idle()
        await one.turn()
    assert await books.states(*(f"job_{number}" for number in range(jobs))) == [State.COMPLETED] * jobs
    assert most > room
    # Each may have had one read under way when the room was full.
    assert most <= room + part * parts + jobs * 65536
    assert work.buffered == 0


async def test_jobs_leave_nothing_behind(
    upstream: StartUpstream, proxy: StartProxy, worker: StartWorker, books: Books
) -> None:
    """Two hundred jobs, some of which fail, some of which are dropped: no task, no byte, no cycle of ours."""
    rounds, warm = 200, 12
    steps = [answer(body=MESSAGE), refusal(529), raw(talks_nonsense), raw(stays)]
    up = await upstream(*(steps * (rounds + warm))[: rounds + warm])
    p = await proxy(up, network={"max_retries": 0})
    work = working(p)
    one = worker(work=work)
    tasks = asyncio.all_tasks()

    async def do(number: int) -> None:
        id = f"job_{number}"
        await books.submit(id)
        await one.turn()
        if number % 4 == 3:
            await up.received(number + 1)
            await books.store.remove(id)
            one.dispatcher.drop(id)
        await one.idle()

    for number in range(warm):
        await do(number)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for number in range(warm, warm + rounds):
            await do(number)
        gc.collect()
        left = [type(thing).__name__ for thing in gc.garbage if type(thing).__module__.startswith("proxy.")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert len(left) < rounds / 10, left[:50]
    await up.quiet()
    assert asyncio.all_tasks() - tasks - up.tasks == set()
    assert one.dispatcher.running == 0
    assert work.buffered == 0


async def test_a_worker_keeps_no_note_of_jobs_that_are_over(
    upstream: StartUpstream, proxy: StartProxy, worker: StartWorker, books: Books
) -> None:
    """Neither of those whose beginning failed, nor of those it was told to forget, nor of dead workers."""
    up = await upstream(*[answer(body=MESSAGE)] * 20)
    up.allow_unused = True
    p = await proxy(up)
    one = worker(work=working(p))
    for number in range(20):
        await books.submit(f"job_{number}")
        one.store.unanswered = {"begin", "hand_back"} if number % 2 else {"begin"}
        await one.turn(LOOK_SECONDS)
        await one.idle()
        await one.store.remove(f"job_{number}") if number % 5 == 0 else None
    one.store.unanswered = set()
    for number in range(20, 30):
        one.dispatcher.forget(f"job_{number}")
    dead = [worker(work=working(p)) for _ in range(3)]
    for each in dead:
        await each.store.beat(each.name)
    await one.turns(2 * FOUND)
    await one.idle()
    notes = {name: held for name, held in vars(one.dispatcher).items() if isinstance(held, dict | set)}
    assert len(notes) >= 5
    assert not any(notes.values()), notes
