"""Jobs on the real path, to a real upstream; the dispatcher takes its turns when the test says so.

Not here: what the dispatcher does with any job (`test_dispatcher`), what jobs take of memory
(`test_job_memory`), the whole server (`test_job_server`).
"""

from __future__ import annotations

import asyncio
import errno
import zlib

import pytest
from backends import backend
from dispatching import (
    BODY,
    HEAD,
    WALL,
    Books,
    StartWorker,
    books,
    clock,
    said,
    sent,
    stays,
    until,
    worker,
    working,
)
from running import StartProxy, StartUpstream
from scripted import MESSAGE, Conn, answer, raw, refusal

from proxy import jobheads
from proxy.dispatcher import BEAT_SECONDS, DEAD_SECONDS, LOOK_SECONDS, MAX_CLAIMS, REST_SECONDS
from proxy.errors import ProxyError
from proxy.job import State
from proxy.work import PACK_BYTES

__all__ = ["backend", "books", "clock", "sent", "worker"]

FOUND = DEAD_SECONDS + BEAT_SECONDS

SECRET = "sk-test-in-the-text-of-an-exception"


async def test_a_result_is_kept_as_upstream_sent_it(
    upstream: StartUpstream, proxy: StartProxy, worker: StartWorker, books: Books
) -> None:
    """Status, reason, fields, body; it is packed only where that makes it shorter."""
    long = b'{"text": "%b"}' % (b"z" * 4 * PACK_BYTES)
    up = await upstream(
        answer(201, [(b"X-Odd", b"a\x80b")], MESSAGE, "Fine"), answer(body=long), refusal(529, message="full")
    )
    p = await proxy(up, network={"max_retries": 0})
    one = worker(work=working(p), concurrent=1)
    for id, status, body in (("job_1", 201, MESSAGE), ("job_2", 200, long), ("job_3", 529, None)):
        await books.submit(id)
        await one.turn()
        await one.idle()
        found = await books.found(id)
        assert found is not None
        ending = found.ending
        assert ending is not None
        assert ending.status == status
        assert ending.failed == (status >= 400)
        assert (ending.completed, ending.expires) == (WALL, WALL + 600)
        kept = jobheads.Answer.loads(ending.head)
        plain = zlib.decompress(ending.body) if ending.packed else ending.body
        assert ending.packed == (body is long)
        assert body is None or plain == body
        if id == "job_1":
            assert kept.reason == b"Fine"
            assert b"X-Odd: a\x80b" in kept.lines
    assert [request.body for request in up.requests] == [BODY] * 3


async def test_who_lost_the_lease_writes_nothing_upstream(
    upstream: StartUpstream,
    proxy: StartProxy,
    worker: StartWorker,
    books: Books,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The connection is there, and is closed without a byte: the job is another's now, who sends it once."""
    slow = await upstream()
    quick = await upstream(answer(body=MESSAGE))
    asleep = worker(work=working(await proxy(slow)))
    awake = worker(work=working(await proxy(quick)))
    gate = asyncio.Event()
    begin = asleep.dispatcher._begin

    async def sleeps(lease: object) -> None:
        await gate.wait()
        await begin(lease)

    asleep.dispatcher._begin = sleeps
    await books.submit("job_1")
    await asleep.turn()
    await until(lambda: slow.connections == 1)
    await awake.turn()
    await awake.turns(FOUND)
    await awake.idle()
    gate.set()
    await asleep.idle()
    await slow.quiet()
    assert slow.arrived == 0
    assert slow.conns[0].reads() == b""
    assert len(quick.requests) == 1
    found = await books.found("job_1")
    assert found is not None
    assert found.ending is not None
    assert (found.state, found.ending.body) == (State.COMPLETED, MESSAGE)
    assert said(caplog) == [f"worker {asleep.name} of jobs is gone; what it did is settled"]


async def test_a_beginning_that_cannot_be_noted_is_no_attempt(
    upstream: StartUpstream, proxy: StartProxy, worker: StartWorker, books: Books
) -> None:
    """Neither a retry nor a fallback is made of it: nothing goes upstream before the store says so."""
    first, second = await upstream(answer(body=MESSAGE)), await upstream()
    p = await proxy(
        providers={"anthropic": first, "backup": {"base_urls": {"anthropic": second.url}}},
        network={"max_retries": 3},
        models={"claude-2": ["anthropic/claude-2", "backup/claude-2"]},
    )
    one = worker(work=working(p))
    one.store.refused = {"begin"}
    await books.submit("job_1")
    await one.turn()
    await one.idle()
    assert one.store.calls["begin"] == 1
    assert (first.arrived, second.arrived) == (0, 0)
    one.store.refused = set()
    await one.turn(LOOK_SECONDS)
    await one.idle()
    assert await books.state("job_1") is State.COMPLETED
    assert first.arrived == 1


async def test_a_job_begins_once_whatever_is_tried_again(
    upstream: StartUpstream, proxy: StartProxy, worker: StartWorker, books: Books
) -> None:
    """Retries and fallbacks are one job: they do not count as beginnings."""
    first, second = await upstream(refusal(529), refusal(500)), await upstream(answer(body=MESSAGE))
    p = await proxy(
        providers={"anthropic": first, "backup": {"base_urls": {"anthropic": second.url}}},
        network={"max_retries": 1},
        models={"claude-2": ["anthropic/claude-2", "backup/claude-2"]},
    )
    one = worker(work=working(p))
    await books.submit("job_1")
    await one.turn()
    await one.idle()
    assert one.store.calls["begin"] == 1
    assert await books.state("job_1") is State.COMPLETED
    line = await p.line()
    assert line["attempts"] == ["anthropic/claude-2:529", "anthropic/claude-2:500", "backup/claude-2:200"]


async def test_what_cannot_be_looked_up_now_is_looked_up_later(
    upstream: StartUpstream,
    proxy: StartProxy,
    worker: StartWorker,
    books: Books,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A 503 of ours says "again, soon" to a client; a job is its own client. Nothing has gone upstream."""
    up = await upstream(answer(body=MESSAGE))
    p = await proxy(up)
    one = worker(work=working(p))
    assert p.server._handler is not None

    async def away(id: str) -> None:
        raise ProxyError(503, "The virtual key cannot be looked up now; try again.")

    monkeypatch.setattr(p.server._handler.holders, "by_id", away)
    await books.submit("job_1", head=HEAD.replace(b'"holder":""', b'"holder":"it"'))
    for _ in range(3 * MAX_CLAIMS):
        await one.turn(REST_SECONDS)
        await one.idle()
    assert one.store.calls["begin"] == 0
    assert await books.state("job_1") in (State.PENDING, State.PROCESSING)
    monkeypatch.undo()
    monkeypatch.setattr(p.server._handler.holders, "by_id", nobody)
    await one.turn(REST_SECONDS)
    await one.turn(REST_SECONDS)
    await one.idle()
    assert await books.state("job_1") is State.COMPLETED


async def nobody(id: str) -> None:
    """The holder of no virtual key."""


async def test_what_has_begun_is_not_done_later(
    upstream: StartUpstream,
    proxy: StartProxy,
    worker: StartWorker,
    books: Books,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A 503 of ours after the first attempt: upstream may have answered that, so the job has failed."""

    async def resets(conn: Conn) -> None:
        await conn.request()
        monkeypatch.setattr(p.server._upstream, "_dial", out_of_descriptors)
        conn.reset()

    async def out_of_descriptors(origin: object) -> None:
        raise OSError(errno.EMFILE, "no descriptors")

    up = await upstream(raw(resets))
    p = await proxy(up, network={"max_retries": 1})
    one = worker(work=working(p))
    await books.submit("job_1")
    for _ in range(3):
        await one.turn(REST_SECONDS)
        await one.idle()
    assert await books.state("job_1") is State.FAILED
    assert (await books.result("job_1"))[0] == 503
    assert up.arrived == 1


@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_a_removed_job_closes_its_upstream_connection(
    upstream: StartUpstream,
    proxy: StartProxy,
    worker: StartWorker,
    books: Books,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    """So that generation and billing stop: at once if this worker was asked, else with its next look."""
    up = await upstream(raw(stays))
    p = await proxy(up)
    one = worker(work=working(p))
    await books.submit("job_1")
    await one.turn()
    await up.received()
    await books.store.remove("job_1")
    if where == "here":
        one.dispatcher.drop("job_1")
    else:
        await one.turn(LOOK_SECONDS)
    await up.quiet()
    await one.idle()
    assert await books.state("job_1") is None
    line = await p.line()
    assert (line["job"], line["ending"]) == ("job_1", "DH")
    assert said(caplog) == []


async def test_an_answer_that_comes_too_late_is_not_kept(
    upstream: StartUpstream,
    proxy: StartProxy,
    worker: StartWorker,
    books: Books,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker that was stopped for a while: its job has failed meanwhile, with an answer that says why."""
    go_on = asyncio.Event()

    async def later(conn: Conn) -> None:
        await conn.request()
        await go_on.wait()
        await conn.send(answer(body=MESSAGE))

    asleep = worker(work=working(await proxy(await upstream(raw(later)))))
    other = worker(work=working(await proxy(await upstream())))
    await books.submit("job_1")
    await asleep.turn()
    await until(lambda: asleep.store.done["begin"] == 1)
    await other.turn()
    await other.turns(FOUND)
    settled = await books.found("job_1")
    assert settled is not None
    assert settled.ending is not None
    assert (settled.state, settled.ending.status) == (State.FAILED, 500)
    assert b'"type":"api_error"' in settled.ending.body
    assert b"job_interrupted: " in settled.ending.body
    go_on.set()
    await asleep.idle()
    assert await books.found("job_1") == settled
    assert "job_1: its result came too late" in said(caplog)


async def test_an_exception_on_the_path_is_a_failed_job(
    upstream: StartUpstream,
    proxy: StartProxy,
    worker: StartWorker,
    books: Books,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """500 in the wire format's shape; the log has its frames and not its text."""
    up = await upstream()
    p = await proxy(up)
    work = working(p)
    one = worker(work=work)

    def raises(*_: object, **__: object) -> None:
        raise RuntimeError(SECRET)

    assert p.server._handler is not None
    monkeypatch.setattr(p.server._handler.rules.runner, "_request", raises)
    await books.submit("job_1")
    await one.turn()
    await one.idle()
    found = await books.found("job_1")
    assert found is not None
    assert found.ending is not None
    assert (found.state, found.ending.status) == (State.FAILED, 500)
    assert b"Internal error" in found.ending.body
    assert SECRET.encode() not in found.ending.head + found.ending.body
    assert "job_1: RuntimeError" in p.log_text
    assert (await p.line())["ending"] == "PP"


async def test_a_job_of_another_release_fails_and_the_others_are_done(
    upstream: StartUpstream, proxy: StartProxy, worker: StartWorker, books: Books
) -> None:
    """What cannot be read cannot be done: it does not come again and again, nor hold up what is behind it."""
    up = await upstream(answer(body=MESSAGE), answer(body=MESSAGE))
    p = await proxy(up)
    one = worker(work=working(p))
    heads = [b"", b"[]", b"{}", b'"text"', HEAD.replace(b'"fields":[[', b'"fields":[[[')]
    for number, kept in enumerate(heads):
        await books.submit(f"job_bad{number}", head=kept)
    await books.submit("job_1")
    for _ in range(MAX_CLAIMS + 2):
        await one.turn(LOOK_SECONDS)
        await one.idle()
    await books.submit("job_2")
    await one.turn()
    await one.idle()
    assert await books.states("job_1", "job_2") == [State.COMPLETED] * 2
    assert await books.states(*(f"job_bad{number}" for number in range(5))) == [State.FAILED] * 5
    for number in range(5):
        assert (await books.result(f"job_bad{number}"))[0] >= 500
