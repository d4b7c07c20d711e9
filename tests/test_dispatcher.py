"""The dispatcher's turns: how many jobs it takes, when it lets go of them, and that nothing stops it.

Not here: workers that are gone (`test_job_leases`), jobs that are (`test_job_removals`), a store that fails
(`test_job_troubles`), the end (`test_job_ends`).
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from backends import backend
from dispatching import (
    WALL,
    Books,
    Clock,
    StartWorker,
    Worker,
    answer,
    books,
    clock,
    holding,
    said,
    sent,
    settings,
    until,
    worker,
)

from proxy import dispatcher as room
from proxy.dispatcher import BEAT_SECONDS, DEAD_SECONDS, LOOK_SECONDS, MAX_CLAIMS, PURGE_SECONDS
from proxy.job import State

__all__ = ["backend", "books", "clock", "sent", "worker"]

SECRET = "sk-test-in-the-text-of-an-exception"


# How many.


async def test_a_worker_does_so_many_at_a_time(worker: StartWorker, books: Books, sent: list[str]) -> None:
    """Not more than `concurrent`; the oldest first, and the next one when there is room."""
    ids = [f"job_{number}" for number in range(5)]
    await books.submit(*ids)
    one = await holding(worker(concurrent=2), sent_upstream=True)
    await one.turns(3 * LOOK_SECONDS)
    assert sorted(sent) == ids[:2]
    assert one.dispatcher.running == 2
    assert not one.dispatcher.idle.is_set()
    one.doing.answering.set()
    await one.idle()
    one.doing.answering.clear()
    await one.turn()
    await until(lambda: len(sent) == 4)
    assert sorted(sent[2:]) == ids[2:4]
    assert await books.state(ids[4]) is State.PENDING


async def test_of_one_owner_all_workers_do_so_many_at_a_time(
    worker: StartWorker, books: Books, sent: list[str]
) -> None:
    """`concurrent_per_key` is for all workers together; others' jobs go past those that wait for it."""
    await books.submit("job_a1", "job_a2", "job_a3", owner="key a")
    await books.submit("job_b1", owner="key b")
    one = await holding(worker(concurrent_per_key=1), sent_upstream=True)
    other = await holding(worker(concurrent_per_key=1), sent_upstream=True)
    assert sorted(sent) == ["job_a1", "job_b1"]
    assert (one.dispatcher.running, other.dispatcher.running) == (2, 0)
    one.doing.answering.set()
    await one.idle()
    other.doing.answering.set()
    await other.turn()
    await other.idle()
    assert sorted(sent) == ["job_a1", "job_a2", "job_b1"]


async def test_a_new_config_counts_at_once(worker: StartWorker, books: Books) -> None:
    """More at a time after a reload, or fewer: then nothing is ended, but nothing is begun either."""
    await books.submit("job_1", "job_2", "job_3", "job_4")
    one = await holding(worker(concurrent=1), sent_upstream=True)
    assert one.dispatcher.running == 1
    one.dispatcher.use(settings(concurrent=3))
    await one.turn()
    assert one.dispatcher.running == 3
    one.dispatcher.use(settings(concurrent=2))
    one.dispatcher.drop("job_1")
    await until(lambda: one.dispatcher.running == 2)
    await one.turn()
    assert one.dispatcher.running == 2
    assert await books.state("job_4") is State.PENDING


async def test_without_room_for_bodies_nothing_is_claimed(worker: StartWorker, books: Books) -> None:
    """Jobs wait in the store while this worker holds enough; they are claimed when it has room again."""
    await books.submit("job_1")
    one = worker()
    one.doing.has_room = False
    await one.turns(3 * LOOK_SECONDS)
    assert one.store.calls["claim"] == 0
    assert await books.state("job_1") is State.PENDING
    one.doing.has_room = True
    await one.turn()
    await one.idle()
    assert await books.state("job_1") is State.COMPLETED


async def test_who_has_retired_claims_nothing_and_still_beats(worker: StartWorker, books: Books) -> None:
    """What it does already goes on, however long: nobody takes it for dead."""
    await books.submit("job_1")
    one, other = await holding(worker(), sent_upstream=True), worker()
    one.dispatcher.retire()
    other.dispatcher.retire()
    await books.submit("job_2")
    for _ in range(40):
        await one.turn(LOOK_SECONDS)
        await other.turn()
    assert await books.states("job_1", "job_2") == [State.PROCESSING, State.PENDING]
    one.doing.answering.set()
    await one.idle()
    assert await books.result("job_1") == (200, answer("job_1"))


async def test_what_waits_and_what_runs_can_be_counted(worker: StartWorker, books: Books) -> None:
    """`pending` is what the store has for anybody, as of the last beat; `running` is what is done here."""
    await books.submit("job_1", "job_2", "job_3")
    one = await holding(worker(concurrent=1), sent_upstream=True)
    assert (one.dispatcher.pending, one.dispatcher.running) == (3, 1)
    await one.turns(BEAT_SECONDS)
    assert (one.dispatcher.pending, one.dispatcher.running) == (2, 1)


# How often the store is asked.


async def test_how_often_the_store_is_asked(worker: StartWorker) -> None:
    """Each second what it holds, every four seconds a beat, every minute what has expired."""
    one = worker()
    await one.turn()
    one.store.calls.clear()
    for _ in range(480):
        await one.turn(0.125)
    assert 60 / LOOK_SECONDS - 3 <= one.store.calls["held"] <= 60 / LOOK_SECONDS
    assert 60 / BEAT_SECONDS - 1 <= one.store.calls["beat"] <= 60 / BEAT_SECONDS
    assert one.store.calls["purge"] <= 1
    assert one.store.calls["adopt"] == 0


async def test_beats_go_on_while_short_jobs_come_without_end(
    worker: StartWorker, books: Books, clock: Clock
) -> None:
    """A queue that never empties does not keep a worker from saying that it lives, nor from looking."""
    await books.submit(*(f"job_{number}" for number in range(120)))
    one = worker()
    beats: list[float] = []
    looks: list[float] = []

    def takes_time() -> None:
        clock.now += 0.25

    one.store.before = {
        "claim": takes_time,
        "beat": lambda: beats.append(clock.now),
        "held": lambda: looks.append(clock.now),
    }
    while not one.store.answers or one.store.answers[-1] != ("claim", None):
        await one.turn()
        await one.idle()
    assert max(after - before for before, after in pairwise(beats)) <= 2 * BEAT_SECONDS
    assert max(after - before for before, after in pairwise(looks)) <= 2 * LOOK_SECONDS
    assert await books.state("job_119") is State.COMPLETED


async def test_jobs_are_claimed_however_slow_the_store_is(worker: StartWorker, books: Books) -> None:
    """Each turn claims one at least, even if all its time went by before."""
    await books.submit("job_1", "job_2", "job_3")
    one = worker()
    one.doing.answering.clear()

    def takes_time() -> None:
        one.clock.now += 1.5 * LOOK_SECONDS

    one.store.before = dict.fromkeys(["beat", "held", "claim", "pending"], takes_time)
    for number in (1, 2, 3):
        await one.turn()
        assert one.dispatcher.running == number


async def test_beats_go_on_while_much_has_expired(worker: StartWorker, clock: Clock) -> None:
    """To forget what has expired takes as long as it takes; nobody takes this worker for dead meanwhile."""
    one = worker()
    beats: list[float] = []
    batches = iter([True] * 50 + [False])

    async def purge(now: float) -> bool:
        clock.now += 1.0
        return next(batches, False)

    one.store.purge = purge
    one.store.before["beat"] = lambda: beats.append(clock.now)
    for _ in range(100):
        await one.turn(0.1)
    assert next(batches, None) is None
    assert max(after - before for before, after in pairwise(beats)) <= 2 * BEAT_SECONDS


async def test_expired_results_are_forgotten(worker: StartWorker) -> None:
    """Every minute, by the wall clock, without anybody asking for them."""
    one = worker()
    purged: list[float] = []

    async def purge(now: float) -> bool:
        purged.append(now)
        return False

    one.store.purge = purge
    await one.turn()
    one.doing.wall += 1000.0
    await one.turns(PURGE_SECONDS + LOOK_SECONDS)
    assert purged == [WALL, WALL + 1000.0]


async def test_the_loop_comes_when_it_is_called(
    worker: StartWorker, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that was just submitted does not wait for the next look, nor one that there is room for again."""
    monkeypatch.setattr(room, "LOOK_SECONDS", 3600.0)
    one = worker(concurrent=1)
    one.dispatcher.start()
    await until(lambda: ("claim", None) in one.store.answers)
    await books.submit("job_1", "job_2")
    one.dispatcher.come()
    await until(lambda: [name for name, _ in one.store.answers].count("finish") == 2)
    assert await books.states("job_1", "job_2") == [State.COMPLETED] * 2


async def test_the_ends_of_jobs_are_told(worker: StartWorker, books: Books) -> None:
    """Once it is in the store: whoever waits for ends, as webhooks do, is called then."""
    await books.submit("job_1")
    one = worker()
    told: list[int] = []
    one.dispatcher.take(one.doing, lambda: told.append(one.store.answers.count(("finish", True))))
    await one.turn()
    await one.idle()
    assert told == [1]


# What nobody expects.


async def failed_in_time(one: Worker, books: Books, id: str) -> bytes:
    """The body of a job's ending, which is a failure, after as many turns as that may take."""
    for _ in range(MAX_CLAIMS + 2):
        await one.turn(LOOK_SECONDS)
        await one.idle()
    assert await books.state(id) is State.FAILED
    status, body = await books.result(id)
    assert status == 500
    return body


async def test_a_job_that_raises_at_the_provider_has_failed(
    worker: StartWorker, books: Books, sent: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It is not sent again; what it raised is logged without its text, which may hold what a client sent."""
    await books.submit("job_1")
    one = worker()
    one.doing.failure = RuntimeError(SECRET)
    await failed_in_time(one, books, "job_1")
    assert sent == ["job_1"]
    (line,) = said(caplog)
    assert line.startswith("job_1: RuntimeError\n")
    assert "dispatching.py" in line
    assert SECRET not in caplog.text


async def test_a_job_that_raises_before_it_is_sent_is_given_up(
    worker: StartWorker, books: Books, sent: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again some times, not for ever; others are done meanwhile."""
    await books.submit("job_1")
    one = worker()
    one.doing.early_failure = RuntimeError(SECRET)
    body = await failed_in_time(one, books, "job_1")
    assert SECRET.encode() not in body
    assert sent == []
    assert len(said(caplog)) <= MAX_CLAIMS
    assert SECRET not in caplog.text
    one.doing.early_failure = None
    await books.submit("job_2")
    await one.turn()
    await one.idle()
    assert await books.state("job_2") is State.COMPLETED


async def test_what_cannot_be_settled_does_not_hold_up_the_others(
    worker: StartWorker, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose request cannot be read, of another release, say: it fails, and those behind it are done."""
    await books.submit("job_1", head=b'["sk-test-unreadable"]')
    await holding(worker(), sent_upstream=True)
    other = worker()
    other.dispatcher.start()
    await until(lambda: ("claim", None) in other.store.answers)
    for _ in range(round(DEAD_SECONDS + BEAT_SECONDS)):
        other.clock.now += LOOK_SECONDS
        turns = other.store.calls["claim"]
        other.dispatcher.come()
        await until(lambda turns=turns: other.store.calls["claim"] > turns)
    await books.submit("job_2")
    other.dispatcher.come()
    await until(lambda: other.store.answers.count(("finish", True)) == 2)
    assert await books.states("job_1", "job_2") == [State.FAILED, State.COMPLETED]
    assert "sk-test" not in caplog.text


async def test_the_loop_survives_what_nobody_expected(
    worker: StartWorker,
    books: Books,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An exception in a turn is logged by its frames alone, and the next turn is taken."""
    monkeypatch.setattr(room, "LOOK_SECONDS", 0.01)
    one = worker()

    def raises() -> None:
        one.store.before = {}
        raise RuntimeError(SECRET)

    one.store.before["claim"] = raises
    await books.submit("job_1")
    one.dispatcher.start()
    await until(lambda: ("finish", True) in one.store.answers)
    assert await books.state("job_1") is State.COMPLETED
    (line,) = said(caplog)
    assert line.startswith("jobs: RuntimeError\n")
    assert "dispatcher.py" in line
    assert SECRET not in caplog.text
