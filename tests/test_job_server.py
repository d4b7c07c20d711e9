"""Jobs in the whole server: what a reload changes, what can be watched, and how a stop treats them.

Not here: what clients send and get (`test_jobs`), one dispatcher by itself (`test_dispatcher`).
"""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from backends import Backend, backend
from dispatching import until
from prometheus_client.parser import text_string_to_metric_families
from rawclient import PATIENCE, asked
from running import Proxy, StartProxy, StartUpstream
from scripted import MESSAGE, Conn, Raw, answer, raw

from proxy import dispatcher
from proxy.job import Found, State
from proxy.store import open_jobs

__all__ = ["backend"]

MESSAGES = "/anthropic/v1/messages"

SUBMIT = (b"x-bf-async", b"true")


class Gate:
    """Upstream steps that are answered when the test opens it."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self.left = asyncio.Event()
        """Set when the proxy has left while it waited."""

    def open(self) -> None:
        self._open.set()

    @property
    def step(self) -> Raw:
        return raw(self._play)

    async def _play(self, conn: Conn) -> None:
        await conn.request()
        opened, gone = (asyncio.ensure_future(wait) for wait in (self._open.wait(), conn.gone()))
        await asyncio.wait([opened, gone], return_when=asyncio.FIRST_COMPLETED)
        opened.cancel()
        if gone.done():
            self.left.set()
        else:
            gone.cancel()
            await conn.send(answer(body=MESSAGE))
        await asyncio.wait([opened, gone])


async def submit(p: Proxy, *fields: tuple[bytes, bytes], **more: Any) -> str:
    """Submits a job; returns its id."""
    response = await p.post(MESSAGES, asked(**more), [SUBMIT, *fields])
    assert response.status == 200, response.body
    id = response.header("x-bf-async-id")
    assert id is not None
    return id.decode()


async def over(p: Proxy, id: str) -> str:
    """The state in which a job ends."""
    async with asyncio.timeout(20):
        while True:
            response = await p.post(MESSAGES, asked(), [(b"x-bf-async-id", id.encode())])
            state = response.header("x-bf-async-status")
            assert state is not None, response.body
            if state not in (b"pending", b"processing"):
                return state.decode()
            await asyncio.sleep(0.01)


class Seen:
    """The store as it is for another worker."""

    def __init__(self, backend: Backend) -> None:
        self._store = open_jobs(backend.url)

    async def __aenter__(self) -> Seen:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._store.close()

    async def job(self, id: str) -> Found:
        found = await self._store.look(id, 0.0)
        assert found is not None
        return found

    async def workers(self) -> set[str]:
        known = set(await self._store.beat("who asks"))
        await self._store.leave("who asks")
        return known - {"who asks"}


def gauge(p: Proxy, name: str) -> float:
    """A sample without labels, from what ``/metrics`` answers."""
    families = text_string_to_metric_families(p.metrics_text)
    (value,) = [sample.value for family in families for sample in family.samples if sample.name == name]
    return value


def reload(p: Proxy, **jobs: Any) -> None:
    """What SIGHUP does, with other settings of jobs."""
    was = p.server._config
    p.server.use(dataclasses.replace(was, jobs=dataclasses.replace(was.jobs, **jobs)))


async def test_a_reload_changes_what_jobs_may_take(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """How many are done at a time, at once; how large a result may be, how long it is kept, for new ones."""
    gate = Gate()
    up = await upstream(*[gate.step] * 3)
    p = await proxy(up, store=backend.url, jobs={"concurrent": 1})
    first, second = await submit(p), await submit(p)
    await up.received(1)
    reload(p, concurrent=2, max_result_bytes=len(MESSAGE) - 1, result_ttl=77)
    await up.received(2)
    third = await submit(p)
    gate.open()
    # Each job goes by the config with which it began.
    assert [await over(p, id) for id in (first, second, third)] == ["completed", "failed", "failed"]
    async with Seen(backend) as seen:
        for id, ttl in ((first, 3600), (third, 77)):
            ending = (await seen.job(id)).ending
            assert ending is not None
            assert ending.expires - ending.completed == pytest.approx(ttl, abs=0.01)


async def test_jobs_can_be_watched(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``/metrics`` says how many are done here, and how many wait for anybody, as of the last beat."""
    monkeypatch.setattr(dispatcher, "BEAT_SECONDS", 0.1)
    gate = Gate()
    up = await upstream(*[gate.step] * 3)
    p = await proxy(up, store=backend.url, jobs={"concurrent": 1})
    assert (gauge(p, "verbatim_jobs_running"), gauge(p, "verbatim_jobs_pending")) == (0, 0)
    ids = [await submit(p) for _ in range(3)]
    await up.received(1)
    await until(lambda: gauge(p, "verbatim_jobs_pending") == 2)
    assert gauge(p, "verbatim_jobs_running") == 1
    assert b"verbatim_jobs_running 1.0" in (await p.get("/metrics")).body
    gate.open()
    assert [await over(p, id) for id in ids] == ["completed"] * 3
    await until(lambda: gauge(p, "verbatim_jobs_running") == 0)
    await until(lambda: gauge(p, "verbatim_jobs_pending") == 0)


async def test_without_a_store_there_are_no_gauges_of_jobs(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Nothing is shown that cannot be."""
    p = await proxy(await upstream())
    assert "verbatim_jobs" not in p.metrics_text


async def test_a_job_has_a_line_for_its_submit_and_one_for_its_run(
    upstream: StartUpstream, proxy: StartProxy, tmp_path: Path
) -> None:
    """Both with its id; the run's has what a request's has: status, attempts, usage, bytes."""
    up = await upstream(answer(body=MESSAGE, headers=[(b"request-id", b"req_up")]))
    p = await proxy(up, store=f"sqlite:{tmp_path}/state.db")
    id = await submit(p)
    lines = sorted([await p.line(), await p.line()], key=lambda line: line["attempts"])
    submitted, run = lines
    assert submitted["job"] == run["job"] == id
    assert (submitted["status"], submitted["ending"], submitted["attempts"]) == (200, "--", [])
    assert submitted["provider"] == ""
    assert (run["status"], run["ending"]) == (200, "--")
    assert run["attempts"] == ["anthropic/claude-2:200"]
    assert run["usage"] == {"input_tokens": 12, "output_tokens": 6}
    assert (run["bytes_in"], run["bytes_out"]) == (len(asked()), len(MESSAGE))
    assert run["upstream_request_id"] == "req_up"
    assert run["method"] == "POST"
    assert submitted["request_id"] != run["request_id"]
    await p.stop()
    assert len(p.lines) == 2


async def test_a_job_of_a_holder_names_its_key(
    upstream: StartUpstream, proxy: StartProxy, tmp_path: Path
) -> None:
    """The virtual key's name stands in both lines, as in a request's."""
    up = await upstream(answer(body=MESSAGE))
    p = await proxy(
        up,
        store=f"sqlite:{tmp_path}/state.db",
        virtual_keys={"alice": {"value": "env.ALICE", "allow_all_providers": True}},
        environ={"ALICE": "sk-bf-sk-test-alice"},
    )
    await submit(p, (b"x-bf-vk", b"sk-bf-sk-test-alice"))
    assert {line["virtual_key"] for line in (await p.line(), await p.line())} == {"alice"}


async def test_a_stop_waits_for_the_jobs_that_run(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """What ends within ``drain_timeout`` is kept; what waits is left to the others; no worker is left."""
    gate = Gate()
    up = await upstream(gate.step)
    p = await proxy(up, store=backend.url, jobs={"concurrent": 1}, drain_timeout=30)
    running, waiting = await submit(p), await submit(p)
    await up.received(1)
    stopping = asyncio.ensure_future(p.stop())
    # Twice as long as a connection must have been idle, and a look of the dispatcher.
    done, _ = await asyncio.wait([stopping], timeout=1.5)
    assert not done
    gate.open()
    async with asyncio.timeout(10):
        await stopping
    async with Seen(backend) as seen:
        found = await seen.job(running)
        assert found.ending is not None
        assert (found.state, found.ending.body) == (State.COMPLETED, MESSAGE)
        assert (await seen.job(waiting)).state is State.PENDING
        assert await seen.workers() == set()


async def test_a_job_that_outlasts_the_drain_is_interrupted(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """At once, and said so: its connection upstream is closed, and nobody sends it again."""
    gate = Gate()
    up = await upstream(gate.step)
    p = await proxy(up, store=backend.url, drain_timeout=0.2)
    id = await submit(p)
    await up.received(1)
    async with asyncio.timeout(10):
        await p.stop()
        await gate.left.wait()
    async with Seen(backend) as seen:
        found = await seen.job(id)
        assert found.ending is not None
        assert (found.state, found.ending.status) == (State.FAILED, 500)
        assert b"job_interrupted" in found.ending.body
        assert await seen.workers() == set()
    endings = {line["ending"] for line in p.lines if line["job"] == id}
    assert endings == {"--", "PH"}


async def test_a_hurried_stop_waits_for_no_job(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """What a second signal does."""
    gate = Gate()
    up = await upstream(gate.step)
    p = await proxy(up, store=backend.url, drain_timeout=60)
    id = await submit(p)
    await up.received(1)
    stopping = asyncio.ensure_future(p.stop())
    await asyncio.sleep(0)
    p.server.hurry()
    async with asyncio.timeout(10):
        await stopping
    async with Seen(backend) as seen:
        assert (await seen.job(id)).state is State.FAILED


async def test_what_a_stopped_worker_left_is_done_by_the_next(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """And the result of the one is given by the other, to whoever asks with the same credentials."""
    gate = Gate()
    up = await upstream(gate.step, answer(body=MESSAGE))
    settings = {"store": backend.url, "jobs": {"concurrent": 1}}
    p = await proxy(up, drain_timeout=30, **settings)
    running, waiting = await submit(p), await submit(p)
    await up.received(1)
    stopping = asyncio.ensure_future(p.stop())
    gate.open()
    await stopping
    other = await proxy(up, **settings)
    assert await over(other, waiting) == "completed"
    assert await over(other, running) == "completed"
    assert len(up.requests) == 2


async def test_two_servers_do_each_job_once(
    backend: Backend, upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Submitted to either and polled at the other; a DELETE at the one ends what the other does."""
    gate = Gate()
    up = await upstream(*[answer(body=MESSAGE)] * 40, gate.step)
    servers = [await proxy(up, store=backend.url, jobs={"concurrent": 3}) for _ in range(2)]
    ids = [await submit(servers[number % 2]) for number in range(40)]
    assert [await over(servers[number // 20], id) for number, id in enumerate(ids)] == ["completed"] * 40
    assert len(up.requests) == 40
    id = await submit(servers[0])
    await up.received(41)
    # What they did before may not be forgotten yet.
    await until(lambda: sum(gauge(server, "verbatim_jobs_running") for server in servers) == 1)
    # One of them does it; the other has to be told by the store.
    (idle,) = [server for server in servers if gauge(server, "verbatim_jobs_running") == 0]
    response = await idle.ask(
        b"DELETE %b HTTP/1.1\r\nHost: proxy.test\r\nx-api-key: sk-test-client\r\n"
        b"x-bf-async-id: %b\r\n\r\n" % (MESSAGES.encode(), id.encode()),
        "DELETE",
    )
    assert response.status == 200
    async with asyncio.timeout(PATIENCE):
        await gate.left.wait()
