"""A worker ends, or stands still, at each step of a job's way: what becomes of the job.

Facts
  - At most once is the rule: a job of which the store knows that it goes upstream is not sent again, whether
    or not anything of it arrived.
  - A worker that is killed is known to be dead when another has seen its beats stand still for 20 s. No
    worker of the rounds lives so long but the last, which settles what all of them have left.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path

import crowd
import pytest
from backends import Backend, backend
from crowd import Call, Service, clock
from job_client import Answers, JobClient, config, is_interrupted, state, unfinished
from job_worker import program
from rawclient import Response

__all__ = ["backend"]

ROUNDS = 20

POINTS = {
    "stored": (1, "completed"),
    "told": (1, "completed"),
    "claimed": (1, "completed"),
    "begun": (0, "interrupted"),
    "asked": (1, "interrupted"),
    "answering": (1, "interrupted"),
    "ended": (1, "interrupted"),
    "kept": (1, "completed"),
}
"""Where the worker is killed; how often the provider is asked then, and how the job ends.

`job_worker` says what they mean. When the provider is ``asked``, and in the middle of its ``answering``, it
is the provider that kills the worker.
"""

AGAIN = {"begun": 1, "asked": 2, "answering": 2, "ended": 2}
"""The points after which ``on_restart: retry`` sends a job again; how often the provider is asked then."""

DRAIN_SECONDS = 4

SETTLED_SECONDS = 30
"""A dead worker's jobs are settled within this."""


class Assassin(Answers):
    """A provider that may end or stop the worker that asks it, at the first call for a job."""

    service: Service

    async def provide(self, call: Call, body: bytes) -> None:
        name, *end = call.field("x-id"), *call.field("x-end").split()
        if name in self.sent or end[1:] not in (["asked"], ["answering"]):
            await super().provide(call, body)
            return
        data = self.answer(name)
        before = len(data) - 10 if end[1] == "answering" else 0
        await call.send(data[:before])
        worker = last_worker(self.service)
        if end[0] == "KILL":
            os.kill(worker, signal.SIGKILL)
            return
        os.kill(worker, signal.SIGUSR1)
        await crowd.until(lambda: is_stopped(worker), "the worker standing still")
        await call.send(data[before:])


def last_worker(service: Service) -> int:
    """The process id of the worker that was started last."""
    return int(re.findall(r"^worker (\d+)$", service.log, re.M)[-1])


def starts(service: Service) -> int:
    return len(re.findall(r"^worker ", service.log, re.M))


async def crash(service: Service, client: JobClient, name: str, point: str) -> bytes:
    """Submit a job that ends its worker at a point; its id, when another worker is there."""
    before = starts(service)
    id = await client.submit(name, [(b"x-end", b"KILL " + point.encode())])
    await crowd.until(lambda: starts(service) > before, f"another worker after {point}")
    client.close()
    if point == "stored":
        assert id is None
        id = re.findall(rb"^KILL stored (\w+)$", service.log.encode(), re.M)[-1]
    assert id is not None
    return id


def outcome(end: Response) -> str:
    return "interrupted" if is_interrupted(end) else state(end)


@pytest.mark.timeout(300)
async def test_a_crash_at_each_point(tmp_path: Path, backend: Backend, machine: Callable[[], float]) -> None:
    """What was not sent is done by the next worker, what was sent is given up, what was kept stays."""
    answers = Assassin()
    chance = random.Random(6)
    rounds = [(f"{point} {number}", point) for point in POINTS for number in range(ROUNDS)]
    chance.shuffle(rounds)
    ids: dict[str, bytes] = {}
    async with (
        crowd.provider(answers.provide) as provider,
        Service(tmp_path, config(provider.url, backend.url)) as service,
    ):
        answers.service = service
        await service.start(program=program(again=True))
        client = JobClient(service.port)
        for name, point in rounds:
            ids[name] = await crash(service, client, name, point)
            seen = await client.poll(ids[name])
            if point in ("stored", "told"):
                # Or else it would be under way when the next worker is killed.
                await client.over(ids[name])
            else:
                assert state(seen) == ("completed" if point == "kept" else "processing"), name
        began, late = clock(), machine()
        ends = {name: await client.over(id) for name, id in ids.items()}
        assert clock() - began < SETTLED_SECONDS + machine() - late
        client.close()
        assert (await unfinished(backend.url))[:2] == (0, [])
        assert "Traceback" not in service.log
    for name, point in rounds:
        assert (provider.asked[name], outcome(ends[name])) == POINTS[point], name
        if outcome(ends[name]) == "completed":
            assert ends[name].body == answers.sent[name][0]
    assert len(set(ids.values())) == len(rounds)
    assert answers.wrong == []


@pytest.mark.timeout(300)
async def test_a_job_that_may_be_sent_again_completes(tmp_path: Path, backend: Backend) -> None:
    """With ``on_restart: retry`` a crash at any point costs a call at most, never the answer."""
    answers = Assassin()
    rounds = [(f"{point} {number}", point) for point in AGAIN for number in range(3)]
    async with (
        crowd.provider(answers.provide) as provider,
        Service(tmp_path, config(provider.url, backend.url, on_restart="retry")) as service,
    ):
        answers.service = service
        await service.start(program=program(divisor=10, again=True))
        client = JobClient(service.port)
        ids = {name: await crash(service, client, name, point) for name, point in rounds}
        for name, point in rounds:
            end = await client.over(ids[name])
            assert (state(end), end.body) == ("completed", answers.sent[name][-1]), name
            assert provider.asked[name] == AGAIN[point]
        client.close()


@pytest.mark.timeout(300)
async def test_a_job_that_ends_every_worker_ends(tmp_path: Path, backend: Backend) -> None:
    """It goes upstream three times and is claimed ten times at most; then it has failed, and others go on."""
    answers = Answers()
    async with (
        crowd.provider(answers.provide) as provider,
        Service(tmp_path, config(provider.url, backend.url, on_restart="retry")) as service,
    ):
        await service.start(program=program(divisor=10, again=True))
        client = JobClient(service.port)
        for point, calls, most in (("ended", 3, 3), ("begun", 0, 3), ("claimed", 0, 10)):
            before = starts(service)
            id = await client.submit(point, [(b"x-end", b"KILL %b always" % point.encode())])
            assert is_interrupted(await client.over(id or b""))
            assert provider.asked[point] == calls
            assert 3 <= starts(service) - before <= most
            other = await client.submit(f"after {point}")
            assert state(await client.over(other or b"")) == "completed"
        client.close()


STILL = {
    "claimed": (1, "completed"),
    "begun": (1, "interrupted"),
    "asked": (1, "interrupted"),
    "answering": (1, "interrupted"),
    "ended": (1, "interrupted"),
}
"""Where a worker stands still until its job is settled; then it goes on. As in `POINTS`."""


@pytest.mark.parametrize("point", STILL)
async def test_a_worker_that_stood_still_has_lost_its_job(
    tmp_path: Path, backend: Backend, point: str
) -> None:
    """What it does to that job when it goes on is in vain, and it does the jobs that come then."""
    answers = Assassin()
    async with (
        crowd.provider(answers.provide) as provider,
        Service(tmp_path, config(provider.url, backend.url)) as service,
    ):
        answers.service = service
        still = await service.start(program=program(divisor=10))
        client = JobClient(service.port)
        id = await client.submit("one", [(b"x-end", b"STOP " + point.encode())]) or b""
        client.close()
        await crowd.until(lambda: is_stopped(still.pid), "the worker standing still")
        other = await service.start(program=program(divisor=10))
        end = await client.over(id)
        still.signal(signal.SIGCONT)
        client.close()
        other.signal(signal.SIGTERM)
        await other.ended()
        new = await client.submit("two") or b""
        assert (await client.over(new)).body == answers.sent["two"][0]
        # It has had its turns with the first job by then.
        later = await client.poll(id)
        client.close()
        assert (provider.asked["one"], outcome(end)) == STILL[point]
        assert (later.status, later.body) == (end.status, end.body)
        assert (await unfinished(backend.url))[:2] == (0, [])
        assert point != "ended" or "its result came too late" in service.log
        assert "Traceback" not in service.log


@pytest.mark.parametrize(("point", "calls"), [("claimed", 1), ("begun", 2), ("ended", 2)])
async def test_a_worker_that_stood_still_cannot_end_what_another_does(
    tmp_path: Path, backend: Backend, point: str, calls: int
) -> None:
    """Where another worker has its job by then, the job's end is that one's, whoever is ready first."""
    answers = Answers()
    go_on = asyncio.Event()

    async def provide(call: Call, body: bytes) -> None:
        if is_stopped(still.pid):
            await go_on.wait()
        await answers.provide(call, body)

    async with (
        crowd.provider(provide) as provider,
        Service(tmp_path, config(provider.url, backend.url, on_restart="retry")) as service,
    ):
        still = await service.start(program=program(divisor=10))
        client = JobClient(service.port)
        id = await client.submit("one", [(b"x-end", b"STOP " + point.encode())]) or b""
        client.close()
        await crowd.until(lambda: is_stopped(still.pid), "the worker standing still")
        before = provider.asked["one"]
        other = await service.start(program=program(divisor=10))
        await crowd.until(lambda: provider.asked["one"] > before, "the other worker's call")
        still.signal(signal.SIGCONT)
        other.signal(signal.SIGTERM)
        await other.told("STOPPING=1")
        new = await client.submit("two") or b""
        assert (await client.over(new)).body == answers.sent["two"][0]
        assert state(await client.poll(id)) == "processing"
        go_on.set()
        assert (await client.over(id)).body == answers.sent["one"][-1]
        assert await other.ended() == 0
        client.close()
        assert provider.asked["one"] == calls == len(answers.sent["one"])
        assert (await unfinished(backend.url))[:2] == (0, [])
        assert "Traceback" not in service.log


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped a process (proc(5), ``stat``)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


async def test_a_stop_settles_its_jobs_at_once(tmp_path: Path, backend: Backend) -> None:
    """What ends within the drain is kept, what does not has failed, what waits is done by the next worker."""
    answers = Answers()
    go_on = asyncio.Event()

    async def provide(call: Call, body: bytes) -> None:
        if call.field("x-id") == "endless":
            await asyncio.Event().wait()
        if call.field("x-id") == "slow":
            await go_on.wait()
        await answers.provide(call, body)

    async with (
        crowd.provider(provide) as provider,
        Service(tmp_path, config(provider.url, backend.url, drain=DRAIN_SECONDS, concurrent=2)) as service,
    ):
        stopping = await service.start()
        client = JobClient(service.port)
        slow, endless, waiting = [await client.submit(name) or b"" for name in ("slow", "endless", "waiting")]
        await crowd.until(lambda: provider.asked.total() == 2, "two jobs at the provider")
        assert state(await client.poll(waiting)) == "pending"
        client.close()
        stopped = clock()
        stopping.signal(signal.SIGTERM)
        await stopping.told("STOPPING=1")
        go_on.set()
        assert await stopping.ended() == 0
        assert DRAIN_SECONDS <= clock() - stopped < DRAIN_SECONDS + 10
        pending, held, workers = await unfinished(backend.url)
        assert (pending, held, workers) == (1, [], set())
        await service.start()
        ends = [await client.poll(id) for id in (slow, endless)]
        assert [outcome(end) for end in ends] == ["completed", "interrupted"]
        assert ends[0].body == answers.sent["slow"][0]
        assert (await client.over(waiting)).body == answers.sent["waiting"][0]
        client.close()
        assert provider.asked == {"slow": 1, "endless": 1, "waiting": 1}
        assert "Traceback" not in service.log
