"""Workers that are gone: their jobs are settled, once, in time, and never those of a worker that lives."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from backends import backend
from dispatching import (
    TTL,
    WALL,
    Books,
    Clock,
    StartWorker,
    answer,
    books,
    clock,
    holding,
    said,
    sent,
    until,
    worker,
)

from proxy.dispatcher import BEAT_SECONDS, DEAD_SECONDS, LOOK_SECONDS, MAX_BEGINS, MAX_CLAIMS
from proxy.job import State

__all__ = ["backend", "books", "clock", "sent", "worker"]

WITHIN = 30.0
"""A dead worker's jobs are settled so many seconds after its last beat."""

FOUND = DEAD_SECONDS + BEAT_SECONDS
"""Whoever has beaten at an observer's own beat is found dead by then."""


async def test_what_a_dead_worker_had_not_sent_is_done_by_another(
    worker: StartWorker, books: Books, sent: list[str]
) -> None:
    """A job that did not go upstream is taken up again: it is done once, and nobody needs to ask again."""
    await books.submit("job_1", "job_2")
    await holding(worker(), sent_upstream=False)
    other = worker()
    await other.turn()
    await other.turns(DEAD_SECONDS - BEAT_SECONDS)
    assert await books.states("job_1", "job_2") == [State.PROCESSING] * 2
    assert sent == []
    await other.turns(BEAT_SECONDS)
    await other.idle()
    assert await books.states("job_1", "job_2") == [State.COMPLETED] * 2
    assert sorted(sent) == ["job_1", "job_2"]


async def test_what_a_dead_worker_had_sent_has_failed(
    worker: StartWorker, books: Books, sent: list[str]
) -> None:
    """It may have been answered and billed, so it is not sent again; its client is told so."""
    await books.submit("job_1")
    await holding(worker(), sent_upstream=True)
    other = worker()
    await other.turn()
    await other.turns(DEAD_SECONDS - BEAT_SECONDS)
    assert await books.state("job_1") is State.PROCESSING
    await other.turns(BEAT_SECONDS)
    assert await books.state("job_1") is State.FAILED
    status, body = await books.result("job_1")
    assert status == 500
    assert b"job_interrupted" in body
    assert sent == ["job_1"]
    assert other.dispatcher.running == 0
    assert other.doing.reported == ["job_1"]


@pytest.mark.parametrize("spacing", [0.25, 0.94, 0.999, 1.0, 1.3, 1.9])
async def test_a_dead_workers_jobs_are_settled_between_20_and_30_seconds(
    worker: StartWorker, books: Books, clock: Clock, spacing: float
) -> None:
    """From its last beat, whenever that was in relation to the observer's own, however often that looks."""
    observer = worker()
    observer.dispatcher.retire()
    last: dict[str, float] = {}
    took: dict[str, float] = {}
    while clock.now < 1060.0:
        await observer.turn(spacing)
        if clock.now < 1006.0:
            for place in ("before", "after"):
                id = f"job_{len(last)} {place} a turn"
                await books.submit(id, owner=id)
                # Died between two turns of the observer, or right after one.
                clock.now += spacing / 2 if place == "before" else 0.0
                await holding(worker(), sent_upstream=True)
                last[id] = clock.now
                if place == "before":
                    clock.now -= spacing / 2
        for id in last.keys() - took.keys():
            if await books.state(id) is not State.PROCESSING:
                took[id] = clock.now - last[id]
    assert took.keys() == last.keys()
    assert len(took) >= 6
    assert min(took.values()) >= DEAD_SECONDS
    assert max(took.values()) <= WITHIN


async def test_silence_counts_from_when_it_was_seen(
    worker: StartWorker, books: Books, clock: Clock, sent: list[str]
) -> None:
    """A store that answers late tells of beats that came after it was asked: nobody is dead any earlier."""
    await books.submit("job_1")
    alive = await holding(worker(), sent_upstream=True)
    other = worker()

    def late() -> None:
        # The answer is what the store knows then.
        clock.now += 2 * BEAT_SECONDS - LOOK_SECONDS

    other.store.before["beat"] = late
    await other.turn()
    other.store.before = {}
    seen_at = clock.now
    while clock.now + LOOK_SECONDS < seen_at + DEAD_SECONDS:
        await other.turn(LOOK_SECONDS)
    assert await books.state("job_1") is State.PROCESSING
    alive.doing.answering.set()
    await alive.idle()
    assert await books.state("job_1") is State.COMPLETED


@pytest.mark.parametrize("stood_in", ["between its turns", "a beat", "a look", "a claim"])
async def test_who_stood_still_calls_nobody_dead(
    worker: StartWorker, books: Books, clock: Clock, stood_in: str
) -> None:
    """A machine that was stopped for a minute stopped all of its workers: they go on as if nothing was."""
    await books.submit("job_1")
    alive = await holding(worker(), sent_upstream=True)
    other = worker()
    await other.turn()
    await other.turns(BEAT_SECONDS - LOOK_SECONDS)

    def stands_still() -> None:
        other.store.before = {}
        clock.now += 60.0

    if stood_in == "between its turns":
        stands_still()
    else:
        method = {"a beat": "beat", "a look": "held", "a claim": "claim"}[stood_in]
        other.store.before[method] = stands_still
    for _ in range(8):
        # Who has stood still looks first, before the other can say that it lives.
        await other.turn(LOOK_SECONDS)
    await alive.turn()
    for _ in range(40):
        await other.turn(LOOK_SECONDS)
        await alive.turn()
    assert await books.state("job_1") is State.PROCESSING
    alive.doing.answering.set()
    await alive.idle()
    assert await books.result("job_1") == (200, answer("job_1"))


@pytest.mark.parametrize("method", ["beat", "held", "claim"])
async def test_who_could_not_ask_calls_nobody_dead(
    worker: StartWorker, books: Books, clock: Clock, method: str
) -> None:
    """While the store was away nobody could beat: the time without it counts against nobody."""
    await books.submit("job_1")
    alive = await holding(worker(), sent_upstream=True)
    other = worker()
    await other.turn()
    other.store.refused = {method}
    await other.turns(60.0)
    other.store.refused = set()
    await other.turns(DEAD_SECONDS - BEAT_SECONDS)
    assert await books.state("job_1") is State.PROCESSING
    await alive.turn()
    await other.turns(DEAD_SECONDS - BEAT_SECONDS)
    assert await books.state("job_1") is State.PROCESSING
    # Now it is dead.
    await other.turns(2 * BEAT_SECONDS)
    assert await books.state("job_1") is State.FAILED


async def test_workers_that_beat_live_as_long_as_they_like(
    worker: StartWorker, books: Books, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A job may take hours: its worker's beats keep it, at whatever phase they come."""
    await books.submit("job_1", "job_2")
    one, other = worker(concurrent=1), worker(concurrent=1)
    await holding(one, sent_upstream=True)
    clock.now += 0.7
    await holding(other, sent_upstream=True)
    for _ in range(200):
        await one.turn(0.3)
        await other.turn(0.7)
    assert await books.states("job_1", "job_2") == [State.PROCESSING] * 2
    assert said(caplog) == []


async def test_what_ends_while_it_is_looked_at_is_no_interrupted_job(
    worker: StartWorker, books: Books
) -> None:
    """The store's answer is older than the end of the job: it is here, it says, and nobody does it."""
    await books.submit("job_1")
    one = await holding(worker(), sent_upstream=True)
    held = one.store.held

    async def slowly(name: str) -> Any:
        answer = await held(name)
        one.doing.answering.set()
        await one.idle()
        return answer

    one.store.held = slowly
    await one.turn(LOOK_SECONDS)
    assert await books.result("job_1") == (200, answer("job_1"))
    assert one.doing.reported == []
    assert one.store.calls["finish"] == 1


async def test_two_observers_settle_each_job_once(worker: StartWorker, books: Books, sent: list[str]) -> None:
    """Both find the same worker dead in the same moment: what one has settled the other leaves alone."""
    unsent = [f"job_u{number}" for number in range(5)]
    begun = [f"job_b{number}" for number in range(5)]
    await books.submit(*begun)
    await holding(worker(), sent_upstream=True)
    await books.submit(*unsent)
    await holding(worker(), sent_upstream=False)
    observers = [worker(), worker(), worker()]
    for _ in range(round(FOUND) + 2):
        await asyncio.gather(*(each.turn() for each in observers))
        observers[0].clock.now += LOOK_SECONDS
    for each in observers:
        await each.idle()
    assert await books.states(*unsent) == [State.COMPLETED] * 5
    assert await books.states(*begun) == [State.FAILED] * 5
    assert sorted(sent) == sorted([*begun, *unsent])
    settled = [name for each in observers for name, done in each.store.answers if done is True]
    assert settled.count("hand_back") == 5
    # Each of the five that failed, and each of the five that were done.
    assert settled.count("finish") == 10


async def test_a_dead_worker_is_found_once(
    worker: StartWorker, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is gone is said to be gone once, and then forgotten: the store does not fill with the dead."""
    await books.submit("job_1")
    dead = await holding(worker(), sent_upstream=True)
    other = worker()
    await other.turn()
    await other.turns(5 * DEAD_SECONDS)
    assert [line for line in said(caplog) if dead.name in line] == [
        f"worker {dead.name} of jobs is gone; what it did is settled"
    ]
    assert await books.workers() == {other.name}


async def test_who_is_found_dead_and_lives_is_known_again(
    worker: StartWorker, books: Books, sent: list[str]
) -> None:
    """Who wakes up goes on to take jobs, and others notice when it dies for good."""
    sleeper, other = worker(), worker()
    await sleeper.turn()
    await other.turn()
    await other.turns(FOUND + BEAT_SECONDS)
    other.dispatcher.retire()
    await books.submit("job_1")
    await holding(sleeper, sent_upstream=True)
    assert sleeper.name in await books.workers()
    await other.turns(FOUND + BEAT_SECONDS)
    assert await books.state("job_1") is State.FAILED


async def test_who_slept_sends_nothing(worker: StartWorker, books: Books, sent: list[str]) -> None:
    """A worker that was adopted from before it sent a job finds its lease lost, and drops the job."""
    await books.submit("job_1")
    sleeper = await holding(worker(), sent_upstream=False)
    other = worker()
    await other.turn()
    await other.turns(FOUND)
    await other.idle()
    assert sent == ["job_1"]
    sleeper.doing.sending.set()
    await sleeper.idle()
    assert sent == ["job_1"]
    assert ("begin", False) in sleeper.store.answers
    assert await books.result("job_1") == (200, answer("job_1"))


async def test_who_slept_keeps_nothing(
    worker: StartWorker, books: Books, sent: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A result that comes after its job was settled by others is refused: the first ending stays."""
    await books.submit("job_1")
    sleeper = await holding(worker(), sent_upstream=True)
    other = worker()
    await other.turn()
    await other.turns(FOUND)
    settled = await books.found("job_1")
    sleeper.doing.answering.set()
    await sleeper.idle()
    assert ("finish", False) in sleeper.store.answers
    assert await books.found("job_1") == settled
    assert "job_1: its result came too late" in said(caplog)


@pytest.mark.parametrize("sent_upstream", [False, True])
async def test_who_slept_ends_its_tasks_at_the_next_look(
    worker: StartWorker, books: Books, sent: list[str], sent_upstream: bool
) -> None:
    """It does not go on with what is another's, and takes new jobs in their place."""
    await books.submit("job_1")
    sleeper = await holding(worker(concurrent=1), sent_upstream=sent_upstream)
    other = worker()
    await other.turn()
    await other.turns(FOUND)
    await other.idle()
    other.dispatcher.retire()
    await sleeper.turn()
    await sleeper.idle()
    assert sleeper.doing.open == []
    await books.submit("job_2")
    sleeper.doing.sending.set()
    sleeper.doing.answering.set()
    await sleeper.turn()
    await sleeper.idle()
    assert await books.state("job_2") is State.COMPLETED
    assert sent == ["job_1", "job_2"]


async def test_who_adopts_and_dies_is_adopted_from(
    worker: StartWorker, books: Books, sent: list[str]
) -> None:
    """A worker that is killed between taking the jobs over and settling them leaves them to the next."""
    await books.submit("job_1")
    await holding(worker(concurrent=1), sent_upstream=True)
    await books.submit("job_2")
    await holding(worker(concurrent=1), sent_upstream=False)
    heir = worker()
    await heir.turn()
    heir.store.refused = {"finish", "hand_back"}
    await heir.turns(FOUND)
    assert heir.store.calls["adopt"] == 2
    assert await books.states("job_1", "job_2") == [State.PROCESSING] * 2
    other = worker()
    await other.turn()
    await other.turns(FOUND)
    await other.idle()
    assert await books.states("job_1", "job_2") == [State.FAILED, State.COMPLETED]
    assert sent == ["job_1", "job_2"]


async def test_with_retry_an_interrupted_job_is_sent_again_twice_at_most(
    worker: StartWorker, books: Books, sent: list[str]
) -> None:
    """``on_restart: retry`` asks for that; a job that was interrupted each time has failed in the end."""
    await books.submit("job_1")
    await holding(worker(on_restart="retry"), sent_upstream=True)
    for times in range(2, MAX_BEGINS + 2):
        next_one = worker(on_restart="retry")
        next_one.doing.answering.clear()
        await next_one.turn()
        await next_one.turns(FOUND)
        if times <= MAX_BEGINS:
            assert await books.state("job_1") is State.PROCESSING
            await until(lambda times=times: len(sent) == times)
    assert await books.state("job_1") is State.FAILED
    assert b"job_interrupted" in (await books.result("job_1"))[1]
    assert sent == ["job_1"] * MAX_BEGINS


async def test_with_retry_a_job_can_end_well(worker: StartWorker, books: Books, sent: list[str]) -> None:
    """What the second worker gets is the result."""
    await books.submit("job_1")
    await holding(worker(on_restart="retry"), sent_upstream=True)
    other = worker(on_restart="retry")
    await other.turn()
    await other.turns(FOUND)
    await other.idle()
    assert await books.result("job_1") == (200, answer("job_1"))
    assert sent == ["job_1"] * 2


async def test_a_job_that_kills_its_workers_is_given_up(
    worker: StartWorker, books: Books, sent: list[str]
) -> None:
    """Perhaps it is what ends them, even before it goes upstream. It is claimed so often and no more."""
    await books.submit("job_1")
    claims = 0
    while await books.state("job_1") is not State.FAILED:
        next_one = worker()
        next_one.doing.sending.clear()
        await next_one.turn()
        await next_one.turns(FOUND)
        claims += sum(name == "claim" and claim is not None for name, claim in next_one.store.answers)
        assert claims <= MAX_CLAIMS
    # One who was just unlucky has more chances than one.
    assert claims >= 3
    assert (await books.result("job_1"))[0] == 500
    assert sent == []
    await books.submit("job_2")
    last = worker()
    await last.turn()
    await last.idle()
    assert await books.state("job_2") is State.COMPLETED


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_a_jump_of_the_wall_clock_changes_only_how_long_a_result_is_kept(
    worker: StartWorker, books: Books, clock: Clock, sent: list[str], jump: float
) -> None:
    """Leases do not know it: nobody dies, nothing is done twice. A result expires by the clock of its end."""
    await books.submit("job_1", "job_2")
    one, other = worker(concurrent=1), worker(concurrent=1)
    await holding(one, sent_upstream=True)
    await holding(other, sent_upstream=False)
    one.doing.wall += jump
    for _ in range(round(2 * FOUND)):
        await one.turn(LOOK_SECONDS)
        await other.turn()
    assert await books.states("job_1", "job_2") == [State.PROCESSING] * 2
    one.doing.answering.set()
    other.doing.sending.set()
    await one.idle()
    await other.idle()
    ends = []
    for id in ("job_1", "job_2"):
        found = await books.found(id, WALL - abs(jump))
        assert found is not None
        assert found.ending is not None
        ends.append((found.state, found.ending.completed, found.ending.expires))
    assert ends == [
        (State.COMPLETED, WALL + jump, WALL + jump + TTL),
        (State.COMPLETED, WALL, WALL + TTL),
    ]
    assert sent == ["job_1", "job_2"]
