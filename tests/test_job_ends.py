"""A worker that stops: what is done is kept, what is not is settled at once, and nothing of it is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from backends import backend
from dispatching import (
    Books,
    StartWorker,
    Worker,
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
from proxy.dispatcher import LOOK_SECONDS
from proxy.job import State

__all__ = ["backend", "books", "clock", "sent", "worker"]

SECRET = "sk-test-in-the-text-of-an-exception"

QUICK = 0.3
"""What stands for `CLOSE_SECONDS` where a test waits for it."""


async def ended(one: Worker, within: float = 5.0) -> float:
    """Closes the dispatcher; returns how long that took. Nothing that it began is left."""
    loop = asyncio.get_running_loop()
    before = loop.time()
    async with asyncio.timeout(within):
        await one.dispatcher.close()
    assert one.dispatcher.running == 0
    assert one.dispatcher.idle.is_set()
    assert one.doing.open == []
    return loop.time() - before


async def test_begun_jobs_fail_at_once_and_others_wait_again(
    worker: StartWorker, books: Books, sent: list[str]
) -> None:
    """Nobody has to find out that this worker is gone: the next one begins with what was handed back."""
    await books.submit("job_begun")
    one = await holding(worker(), sent_upstream=True)
    one.doing.sending.clear()
    await books.submit("job_unsent")
    await one.turn()
    await until(lambda: len(one.doing.open) == 2)
    await books.submit("job_pending")
    one.dispatcher.retire()
    await ended(one)
    states = await books.states("job_begun", "job_unsent", "job_pending")
    assert states == [State.FAILED, State.PENDING, State.PENDING]
    status, body = await books.result("job_begun")
    assert status == 500
    assert b"job_interrupted" in body
    assert await books.workers() == set()
    other = worker()
    await other.turn()
    await other.idle()
    assert await books.states("job_unsent", "job_pending") == [State.COMPLETED] * 2
    assert sorted(sent) == ["job_begun", "job_pending", "job_unsent"]


async def test_with_retry_begun_jobs_wait_again(worker: StartWorker, books: Books, sent: list[str]) -> None:
    """``on_restart: retry`` is about every way in which a worker ends."""
    await books.submit("job_1")
    one = await holding(worker(on_restart="retry"), sent_upstream=True)
    await ended(one)
    assert await books.state("job_1") is State.PENDING
    other = worker()
    await other.turn()
    await other.idle()
    assert await books.result("job_1") == (200, answer("job_1"))
    assert sent == ["job_1"] * 2


async def test_a_result_that_is_there_is_kept(
    worker: StartWorker, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store was away when it came, and comes back in time."""
    monkeypatch.setattr(room, "SAVE_SECONDS", 0.01)
    await books.submit("job_1")
    one = worker()
    one.store.refused = {"finish"}
    await one.turn()
    await until(lambda: one.store.calls["finish"] > 0)
    closing = asyncio.ensure_future(ended(one))
    tries = one.store.calls["finish"]
    await until(lambda: one.store.calls["finish"] > tries + 2)
    assert not closing.done()
    one.store.refused = set()
    await closing
    assert await books.result("job_1") == (200, answer("job_1"))
    assert await books.workers() == set()


async def test_nothing_is_claimed_any_more(worker: StartWorker, books: Books) -> None:
    """Not even by a turn that is under way: what that claims is handed back."""
    await books.submit("job_1")
    one = worker()
    one.store.hanging = {"claim"}
    one.dispatcher.start()
    await until(lambda: one.store.done["claim"] == 1)
    assert await books.state("job_1") is State.PROCESSING
    await ended(one)
    assert await books.state("job_1") is State.PENDING
    assert await books.workers() == set()


@pytest.mark.parametrize("method", ["beat", "held", "claim", "pending", "purge", "hand_back", "finish"])
async def test_the_end_takes_bounded_time(
    worker: StartWorker,
    books: Books,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    """Whatever the store does not answer: what is left is settled by the other workers, later."""
    monkeypatch.setattr(room, "CLOSE_SECONDS", QUICK)
    await books.submit("job_1", "job_2")
    one = await holding(worker(), sent_upstream=True)
    one.doing.sending.clear()
    await books.submit("job_3")
    one.dispatcher.start()
    await until(lambda: len(one.doing.open) == 3)
    one.store.hanging = {method}
    one.clock.now += LOOK_SECONDS
    one.dispatcher.come()
    await ended(one, within=QUICK + 5.0)
    for line in said(caplog):
        assert line == "jobs are left to the other workers: the store does not answer"


async def test_the_end_takes_bounded_time_while_results_wait(
    worker: StartWorker,
    books: Books,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A store that takes nothing: the results are lost, and their jobs left to be settled."""
    monkeypatch.setattr(room, "CLOSE_SECONDS", QUICK)
    monkeypatch.setattr(room, "SAVE_SECONDS", 0.01)
    await books.submit("job_1")
    one = worker()
    one.store.refused = {"finish"}
    await one.turn()
    await until(lambda: one.store.calls["finish"] > 0)
    assert await ended(one, within=QUICK + 5.0) >= QUICK
    assert await books.state("job_1") is State.PROCESSING
    assert "jobs are left to the other workers: the store does not answer" in said(caplog)


async def test_the_end_without_the_store(
    worker: StartWorker, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be settled is left to the other workers, who find it 20 s later."""
    await books.submit("job_1")
    one = await holding(worker(), sent_upstream=True)
    one.store.refused = {"held", "finish", "hand_back", "leave", "remove"}
    await ended(one)
    assert said(caplog) == ["jobs are left to the other workers: refused"]
    assert await books.state("job_1") is State.PROCESSING
    other = worker()
    await other.turn()
    await other.turns(30.0)
    assert await books.state("job_1") is State.FAILED
    assert await books.workers() == {other.name}


async def test_a_job_to_forget_is_forgotten_before_the_end(
    worker: StartWorker, books: Books, sent: list[str]
) -> None:
    """Its client left in the last moment: nobody else would do it."""
    await books.submit("job_1")
    one = worker()
    one.dispatcher.forget("job_1")
    await ended(one)
    assert await books.state("job_1") is None


async def test_nothing_keeps_the_process_from_ending(
    worker: StartWorker, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody expected is logged by its frames, and the rest of the server is closed as usual."""
    await books.submit("job_1")
    one = await holding(worker(), sent_upstream=True)

    def raises() -> None:
        raise RuntimeError(SECRET)

    one.store.before["held"] = raises
    await ended(one)
    (line,) = said(caplog)
    assert "RuntimeError" in line
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "ways",
    [lambda one: one.dispatcher.start(), lambda one: None],
    ids=["with its loop", "without"],
)
async def test_a_worker_that_did_nothing_leaves_nothing(
    worker: StartWorker, books: Books, ways: Callable[[Worker], None]
) -> None:
    """No row, no task."""
    one = worker()
    ways(one)
    await one.turn()
    assert await books.workers() == {one.name}
    await ended(one)
    assert await books.workers() == set()
