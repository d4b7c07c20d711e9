"""Workers that do jobs are killed: every job that was accepted has an end, and none is sent twice.

Facts
  - A worker that is killed is known to be dead when its beats have stood still for 20 s. Among the thousand
    jobs the dispatcher's times are a fifth of what they are (`job_worker`), so that a dead worker's jobs are
    settled while others are killed, those who settle them among them.
  - Between the note that a job goes upstream and its first byte there a kill may fall: such a job is
    interrupted without a call.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import crowd
import pytest
from backends import Backend, backend
from crowd import Call, Process, Provider, Service, clock
from job_client import CONCURRENT, Answers, JobClient, config, is_interrupted, state, unfinished
from job_worker import program
from rawclient import Response

__all__ = ["backend"]

JOBS = 1000
CLIENTS = 64
KILLS = 14
STOPS = 4
SLOWEST = 0.6
"""Seconds that the provider takes at most."""


class Fate:
    """What became of the jobs."""

    def __init__(self) -> None:
        self.ids: dict[str, bytes] = {}
        """By ``x-id``, of the submits that were answered."""
        self.ends: dict[str, Response] = {}
        self.unanswered = 0
        """Submits that were cut."""

    async def client(self, port: int, numbers: Iterator[int]) -> None:
        """Submits jobs, each as often as it takes to be told an id, and polls each to its end."""
        client = JobClient(port)
        for number in numbers:
            tries = 0
            while (id := await client.submit(f"{number}.{tries}")) is None:
                tries += 1
            self.unanswered += tries
            self.ids[f"{number}.{tries}"] = id
            self.ends[f"{number}.{tries}"] = await client.over(id, pause=0.2)
        client.close()

    async def again(self, port: int) -> dict[str, Response]:
        """The ends, asked for once more."""
        client = JobClient(port)
        ends = {name: await client.poll(id) for name, id in self.ids.items()}
        client.close()
        return ends


async def end_workers(service: Service, workers: list[Process], provider: Provider) -> None:
    """Kill or stop one or the other whenever some more jobs have been sent, and start it again."""
    chance = random.Random(6)
    moments = sorted(chance.sample(range(JOBS // 20, JOBS * 9 // 10), KILLS + STOPS))
    numbers = [signal.SIGKILL] * KILLS + [signal.SIGTERM] * STOPS
    chance.shuffle(numbers)
    for moment, number in zip(moments, numbers, strict=True):
        await crowd.until(lambda moment=moment: provider.asked.total() >= moment, "jobs at the provider", 120)
        await asyncio.sleep(chance.random() * 0.1)
        place = chance.randrange(len(workers))
        workers[place].signal(number)
        await workers[place].ended()
        workers[place] = await service.start(program=program(divisor=5))


@pytest.mark.timeout(300)
async def test_a_thousand_jobs_under_kills(tmp_path: Path, backend: Backend) -> None:
    """Each ends, none is sent twice, each result is that job's own, and only what was sent is given up."""
    answers, fate = Answers(SLOWEST), Fate()
    async with (
        crowd.provider(answers.provide) as provider,
        Service(tmp_path, config(provider.url, backend.url)) as service,
    ):
        workers = [await service.start(program=program(divisor=5)) for _ in range(2)]
        numbers = iter(range(JOBS))
        clients = [asyncio.create_task(fate.client(service.port, numbers)) for _ in range(CLIENTS)]
        await end_workers(service, workers, provider)
        await asyncio.gather(*clients)
        began = set(re.findall(r"^begins (\w+)$", service.log, re.M))
        pending, held, _ = await unfinished(backend.url)
        # What was told once is there for whoever comes.
        for worker in workers:
            worker.signal(signal.SIGKILL)
            await worker.ended()
        await service.start()
        later = await fate.again(service.port)
        assert "Traceback" not in service.log
    interrupted = {name for name, end in fate.ends.items() if is_interrupted(end)}
    without = sum(not provider.asked[name] for name in interrupted)
    print(
        f"\n{KILLS} kills, {STOPS} stops, {fate.unanswered} submits unanswered: {len(interrupted)} of"
        f" {JOBS} jobs interrupted, {without} of them before their first byte"
    )
    assert len(fate.ends) == len(set(fate.ids.values())) == JOBS
    assert max(provider.asked.values()) == 1
    assert answers.wrong == []
    for name in fate.ends.keys() - interrupted:
        end = fate.ends[name]
        assert (end.status, state(end), end.body) == (200, "completed", *answers.sent[name]), name
    assert KILLS < len(interrupted) <= KILLS * CONCURRENT
    assert {fate.ids[name].decode() for name in interrupted} <= began
    assert (pending, held) == (0, [])
    assert {name: (end.status, end.body) for name, end in later.items()} == {
        name: (end.status, end.body) for name, end in fate.ends.items()
    }


@pytest.mark.timeout(180)
async def test_a_dead_workers_jobs_are_settled_within_30_s(
    tmp_path: Path, backend: Backend, machine: Callable[[], float]
) -> None:
    """With the real times: what was sent has failed then, and its worker is forgotten."""

    async def never(call: Call, _: bytes) -> None:
        await asyncio.Event().wait()

    async with (
        crowd.provider(never) as provider,
        Service(tmp_path, config(provider.url, backend.url)) as service,
    ):
        dying = await service.start()
        client = JobClient(service.port)
        ids = [await client.submit(str(number)) for number in range(CONCURRENT + 1)]
        await crowd.until(lambda: provider.asked.total() == CONCURRENT, "the jobs at the provider")
        await service.start()
        await crowd.until(lambda: provider.asked.total() == CONCURRENT + 1, "the job that waited")
        dying.signal(signal.SIGKILL)
        killed, late = clock(), machine()
        await dying.ended()
        states = Counter([state(await client.poll(id)) for id in ids if id])
        assert states == {"processing": CONCURRENT + 1}
        for id in ids[:CONCURRENT]:
            assert is_interrupted(await client.over(id or b""))
        settled, late = clock() - killed, machine() - late
        print(f"\nsettled {settled:.1f} s after the kill; this process was late by {late:.1f} s meanwhile")
        assert settled < 30 + late
        assert state(await client.poll(ids[-1] or b"")) == "processing"
        assert max(provider.asked.values()) == 1
        client.close()
        _, held, workers = await unfinished(backend.url)
        assert (len(held), len(workers)) == (1, 1)
