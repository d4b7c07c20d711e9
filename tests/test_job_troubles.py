"""A store that fails: no job is lost, none is done twice, the dispatcher goes on, and the log stays short.

Facts
  - After a `StoreError` what was asked may have been done or not (`ports`).
"""

from __future__ import annotations

import pytest
from backends import backend
from dispatching import (
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

from proxy import dispatcher as room
from proxy.dispatcher import BEAT_SECONDS, DEAD_SECONDS, LOOK_SECONDS, MAX_CLAIMS, REST_SECONDS
from proxy.job import State
from proxy.work import NotNow

__all__ = ["backend", "books", "clock", "sent", "worker"]

METHODS = ("adopt", "beat", "begin", "claim", "finish", "hand_back", "held", "leave", "pending", "purge")

FOUND = DEAD_SECONDS + BEAT_SECONDS


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SAVE_SECONDS", 0.001)


@pytest.mark.parametrize("how", ["refused", "unanswered"])
@pytest.mark.parametrize("methods", [*((name,) for name in METHODS), METHODS], ids=[*METHODS, "all"])
async def test_nothing_is_lost_and_nothing_done_twice(
    worker: StartWorker,
    books: Books,
    sent: list[str],
    caplog: pytest.LogCaptureFixture,
    methods: tuple[str, ...],
    how: str,
) -> None:
    """Seconds of trouble, while a dead worker's jobs are settled and new ones done: all end as usual."""
    await books.submit("job_begun")
    await holding(worker(concurrent=1), sent_upstream=True)
    await books.submit("job_unsent")
    await holding(worker(concurrent=1), sent_upstream=False)
    one = worker()
    await one.turn()
    await one.turns(FOUND - BEAT_SECONDS / 2)
    await books.submit("job_new1", "job_new2")
    setattr(one.store, how, set(methods))
    await one.turns(BEAT_SECONDS + 3 * LOOK_SECONDS)
    setattr(one.store, how, set())
    await one.turns(FOUND + 2 * BEAT_SECONDS)
    await one.idle()
    states = await books.states("job_begun", "job_unsent", "job_new1", "job_new2")
    assert states == [State.FAILED, *[State.COMPLETED] * 3]
    assert sorted(sent) == ["job_begun", "job_new1", "job_new2", "job_unsent"]
    for id in ("job_unsent", "job_new1", "job_new2"):
        assert await books.result(id) == (200, answer(id))
    # What it waits for, that both workers are gone (perhaps once more), and of each result that it waits, or
    # that it was there already when it was offered again.
    assert len(said(caplog)) <= 1 + 4 + 2 * 4
    assert sum("jobs wait for their store" in line for line in said(caplog)) <= 1


@pytest.mark.parametrize("method", ["beat", "held", "claim", "pending"])
async def test_an_outage_is_said_once(
    worker: StartWorker, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """When it begins, and when it is over; the next one is said again."""
    one = worker()
    for _ in range(2):
        one.store.refused = {method}
        await one.turns(60.0)
        one.store.refused = set()
        await one.turns(2 * BEAT_SECONDS)
    levels = [(record.levelname, record.getMessage()) for record in caplog.records]
    outage = [("ERROR", "jobs wait for their store: refused"), ("INFO", "the store of jobs is back")]
    assert [line for line in levels if line[0] != "INFO" or "store" in line[1]] in (
        outage * 2,
        # Where INFO is not captured.
        outage[:1] * 2,
    )


async def test_a_store_that_is_away_from_the_start(
    worker: StartWorker, books: Books, sent: list[str]
) -> None:
    """A worker that starts before its store does its jobs when that comes."""
    await books.submit("job_1")
    one = worker()
    one.store.refused = set(METHODS)
    await one.turns(60.0)
    assert sent == []
    one.store.refused = set()
    await one.turn(LOOK_SECONDS)
    await one.idle()
    assert await books.state("job_1") is State.COMPLETED


async def test_what_is_done_goes_on_without_the_store(
    worker: StartWorker, books: Books, sent: list[str]
) -> None:
    """A job that is at the provider is paid for: that nobody can be asked about it is no reason to end it."""
    await books.submit("job_1")
    one = await holding(worker(), sent_upstream=True)
    one.store.refused = set(METHODS)
    await one.turns(60.0)
    assert one.doing.open == ["job_1"]
    one.store.refused = set()
    one.doing.answering.set()
    await one.idle()
    assert await books.result("job_1") == (200, answer("job_1"))


async def test_a_result_waits_as_long_as_it_takes(
    worker: StartWorker, books: Books, sent: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It is offered again until the store takes it. Nobody settles the job meanwhile; one line says so."""
    await books.submit("job_1", "job_2")
    one = worker()
    one.store.refused = {"finish"}
    await one.turn()
    await until(lambda: one.store.calls["finish"] >= 100)
    await one.turns(60.0)
    assert await books.states("job_1", "job_2") == [State.PROCESSING] * 2
    assert one.dispatcher.running == 2
    one.store.refused = set()
    await one.idle()
    assert await books.result("job_1") == (200, answer("job_1"))
    assert await books.result("job_2") == (200, answer("job_2"))
    assert sorted(sent) == ["job_1", "job_2"]
    waits = [line for line in said(caplog) if "waits for the store" in line]
    assert sorted(waits) == [f"{id}: its result waits for the store: refused" for id in ("job_1", "job_2")]


async def test_a_result_whose_keeping_was_not_answered_is_kept(
    worker: StartWorker, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    """Offered again, it changes nothing: the first is the one that clients get."""
    await books.submit("job_1")
    one = worker()
    one.store.unanswered = {"finish"}
    await one.turn()
    await until(lambda: one.store.done["finish"] >= 1)
    kept = await books.found("job_1")
    assert kept is not None
    assert kept.state is State.COMPLETED
    one.doing.wall += 1000.0
    one.store.unanswered = set()
    await one.idle()
    assert await books.found("job_1") == kept


@pytest.mark.parametrize("how", ["refused", "unanswered"])
async def test_a_job_whose_beginning_cannot_be_noted_waits(
    worker: StartWorker, books: Books, sent: list[str], clock: Clock, how: str
) -> None:
    """However long: a Redis without memory lets jobs be claimed, not begun. It was never sent, nor failed."""
    await books.submit("job_1")
    one = worker()
    setattr(one.store, how, {"begin"})
    for _ in range(3 * MAX_CLAIMS):
        await one.turn(LOOK_SECONDS)
        await one.idle()
    assert one.store.calls["begin"] > MAX_CLAIMS
    assert await books.state("job_1") in (State.PENDING, State.PROCESSING)
    setattr(one.store, how, set())
    await one.turns(2 * LOOK_SECONDS)
    await one.idle()
    assert await books.result("job_1") == (200, answer("job_1"))
    assert sent == ["job_1"]


async def test_a_job_that_cannot_be_done_now_waits(
    worker: StartWorker, books: Books, sent: list[str], clock: Clock
) -> None:
    """However often that is so; and nothing is claimed for a moment, for others would fare no better."""
    await books.submit("job_1")
    one = worker()
    one.doing.early_failure = NotNow()
    await one.turn()
    await one.idle()
    claims = one.store.calls["claim"]
    while clock.now + LOOK_SECONDS / 2 < 1000.0 + REST_SECONDS:
        await one.turn(LOOK_SECONDS / 2)
    assert one.store.calls["claim"] == claims
    for _ in range(2 * MAX_CLAIMS):
        await one.turn(REST_SECONDS)
        await one.idle()
    assert one.store.calls["claim"] > claims + MAX_CLAIMS
    one.doing.early_failure = None
    await one.turn(REST_SECONDS)
    await one.turn(REST_SECONDS)
    await one.idle()
    assert await books.result("job_1") == (200, answer("job_1"))
    assert sent == ["job_1"]


async def test_with_retry_too_what_was_not_begun_costs_no_beginning(
    worker: StartWorker, books: Books, sent: list[str]
) -> None:
    """A beginning that was noted, and of which the worker does not know, is followed by no request."""
    await books.submit("job_1")
    one = worker(on_restart="retry")
    one.store.unanswered = {"begin"}
    await one.turn()
    await one.idle()
    assert sent == []
    one.store.unanswered = set()
    await one.turns(2 * LOOK_SECONDS)
    await one.idle()
    assert await books.result("job_1") == (200, answer("job_1"))
    assert sent == ["job_1"]


async def test_a_claim_that_was_not_answered_is_found_again(
    worker: StartWorker, books: Books, sent: list[str]
) -> None:
    """In the store the job is this worker's, which knows nothing of it: it waits again, and is done."""
    await books.submit("job_1")
    one = worker(concurrent=1)
    one.store.unanswered = {"claim"}
    await one.turn()
    assert await books.state("job_1") is State.PROCESSING
    one.store.unanswered = set()
    await one.turn(LOOK_SECONDS)
    await one.idle()
    assert await books.state("job_1") is State.COMPLETED
    assert sent == ["job_1"]


async def test_a_job_to_forget_is_forgotten_when_the_store_is_back(
    worker: StartWorker, books: Books, sent: list[str]
) -> None:
    """Its submit failed for want of an answer, and so did the removal."""
    await books.submit("job_1")
    one = worker()
    one.store.refused = {"remove", "submit", *METHODS}
    one.dispatcher.forget("job_1")
    await one.turns(60.0)
    assert await books.state("job_1") is State.PENDING
    one.store.refused = set()
    await one.turn(LOOK_SECONDS)
    assert await books.state("job_1") is None
    assert sent == []
