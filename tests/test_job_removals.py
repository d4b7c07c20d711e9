"""Jobs that are gone, and jobs that nobody knows of: what is done for them ends, and no more is begun.

Not here: what a DELETE answers (`test_jobs`), the connection upstream (`test_job_work`).
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from backends import backend
from dispatching import (
    Books,
    Clock,
    StartWorker,
    books,
    clock,
    holding,
    sent,
    until,
    worker,
)

from proxy import dispatcher as room
from proxy.dispatcher import BEAT_SECONDS, LOOK_SECONDS
from proxy.job import State

__all__ = ["backend", "books", "clock", "sent", "worker"]


async def test_a_dropped_job_ends_at_once(worker: StartWorker, books: Books) -> None:
    """The worker that took the DELETE does not ask the store first; other jobs go on."""
    await books.submit("job_1", "job_2")
    one = await holding(worker(), sent_upstream=True)
    await books.store.remove("job_1")
    calls = one.store.calls.copy()
    one.dispatcher.drop("job_1")
    await until(lambda: one.doing.open == ["job_2"])
    assert one.store.calls == calls
    await until(lambda: one.dispatcher.running == 1)
    await one.turns(2 * LOOK_SECONDS)
    assert await books.states("job_1", "job_2") == [None, State.PROCESSING]


async def test_a_job_that_was_removed_elsewhere_ends_within_a_look(worker: StartWorker, books: Books) -> None:
    """The DELETE came by another worker: who does the job sees in the store that it is gone."""
    await books.submit("job_1", "job_2")
    one = await holding(worker(), sent_upstream=True)
    await books.store.remove("job_1")
    await one.turn(LOOK_SECONDS)
    await until(lambda: one.doing.open == ["job_2"])
    one.doing.answering.set()
    await one.idle()
    assert await books.states("job_1", "job_2") == [None, State.COMPLETED]


async def test_a_job_that_is_removed_while_its_result_waits_stays_removed(
    worker: StartWorker, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store was away when the result came; what is kept then is nothing."""
    monkeypatch.setattr(room, "SAVE_SECONDS", 0.001)
    await books.submit("job_1")
    one = worker()
    one.store.refused = {"finish"}
    await one.turn()
    await until(lambda: one.store.calls["finish"] > 0)
    await books.store.remove("job_1")
    one.dispatcher.drop("job_1")
    await one.turn(LOOK_SECONDS)
    one.store.refused = set()
    await one.idle()
    assert ("finish", False) in one.store.answers
    assert await books.state("job_1") is None


async def test_a_job_that_nobody_knows_of_is_removed(
    worker: StartWorker, books: Books, sent: list[str]
) -> None:
    """Its client left before it was told the id: what has not been sent never is, what has been is ended."""
    one = await holding(worker(), sent_upstream=True)
    await books.submit("job_1")
    one.dispatcher.forget("job_1")
    await one.turn()
    assert await books.state("job_1") is None
    assert sent == []
    await books.submit("job_2")
    await one.turn()
    await until(lambda: sent == ["job_2"])
    one.dispatcher.forget("job_2")
    await one.turn()
    await one.idle()
    assert await books.state("job_2") is None


@pytest.mark.parametrize("away", [0.0, 60.0])
async def test_a_job_that_nobody_knows_of_and_that_comes_late_is_removed(
    worker: StartWorker, books: Books, sent: list[str], away: float
) -> None:
    """A store that was stopped may keep a job after it was told to remove it, however long it was away."""
    one = worker()
    one.dispatcher.forget("job_1")
    one.store.refused = {"remove", "beat"}
    await one.turns(away)
    one.store.refused = set()
    await one.turn()
    assert ("remove", None) in one.store.answers
    await books.submit("job_1")
    await one.turns(BEAT_SECONDS + LOOK_SECONDS)
    assert await books.state("job_1") is None
    assert sent == []


async def test_beats_go_on_while_much_is_to_be_forgotten(
    worker: StartWorker, books: Books, clock: Clock
) -> None:
    """After an outage under load thousands of submits have failed: all are looked for, and nobody waits."""
    one = worker()
    await books.submit("job_here", "job_399")
    await one.turn()
    await one.idle()
    for number in range(400):
        one.dispatcher.forget(f"job_{number}")
    beats: list[float] = []

    def takes_time() -> None:
        clock.now += 0.1

    one.store.before = {"remove": takes_time, "beat": lambda: beats.append(clock.now)}
    while clock.now < 1300.0:
        await one.turn(0.01)
    assert max(after - before for before, after in pairwise(beats)) <= 2 * BEAT_SECONDS
    assert one.store.calls["remove"] >= 800
    assert await books.states("job_here", "job_399") == [State.COMPLETED, None]


async def test_what_was_forgotten_is_not_looked_for_for_ever(worker: StartWorker, books: Books) -> None:
    """A few seconds after the store has answered nothing more is asked about it."""
    one = worker()
    for number in range(10):
        one.dispatcher.forget(f"job_{number}")
    await one.turns(2 * BEAT_SECONDS)
    calls = one.store.calls["remove"]
    assert calls >= 20
    await one.turns(2 * BEAT_SECONDS)
    assert one.store.calls["remove"] == calls
