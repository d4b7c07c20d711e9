"""Dispatchers that take their turns when a test says so: over a real store, by a clock of the test.

Rules
  1. Nothing here waits for time. A turn is `Worker.turn`, and time goes on when the test moves `Clock.now`.
  2. A worker is dead or asleep while it gets no turns; its tasks stay where they are.

Not here: any expectation. Where the path is not the point `Doing` stands for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import yaml
from backends import Backend
from rawclient import PATIENCE
from running import Proxy
from scripted import Conn

from proxy import config, jobheads, routes
from proxy.config import Config
from proxy.dispatcher import LOOK_SECONDS, Dispatcher
from proxy.job import Bounds, Ending, Found, Held, Job, State
from proxy.ports import JobStore, StoreError
from proxy.store import open_jobs
from proxy.work import Work

WALL = 1_800_000_000.0
"""Seconds since the epoch, where a test does not care."""

AMPLE = Bounds(10_000, 10_000, 1 << 30)

TTL = 600

MESSAGES = "/anthropic/v1/messages"

HEAD = jobheads.Request(
    routes.match("POST", MESSAGES.encode(), anthropic_version=True),
    [(b"x-api-key", b"sk-test-client"), (b"anthropic-version", b"2023-06-01")],
    "",
    False,
).dumps()

BODY = b'{"model":"claude-2","max_tokens":64,"messages":[{"role":"user","content":"Hi"}]}'

Begin = Callable[[], Awaitable[None]]


def settings(**jobs: Any) -> Config:
    """A config with these settings of jobs."""
    providers = {"anthropic": {"base_urls": {"anthropic": "http://127.0.0.1:9"}, "is_key_less": True}}
    text = yaml.safe_dump({"store": "sqlite:state.db", "providers": providers, "jobs": jobs})
    return config.load(text, {}, lambda path: "")


async def until(condition: Callable[[], bool]) -> None:
    """Returns when `condition` holds: what other tasks do meanwhile needs turns of the loop, and threads."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)


class Clock:
    """Stands still until the test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Shaky:
    """A store that fails as it is told to: all calls of a method, until it is told otherwise."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.refused: set[str] = set()
        """Methods that do nothing and raise."""
        self.unanswered: set[str] = set()
        """Methods that do it and raise all the same."""
        self.hanging: set[str] = set()
        """Methods that do it and never return."""
        self.before: dict[str, Callable[[], object]] = {}
        """Called before a method does it."""
        self.calls: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        """Calls that did what was asked, answered or not."""
        self.answers: list[tuple[str, Any]] = []
        """Every method that answered, and what."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def call(*args: Any) -> Any:
            self.calls[name] += 1
            if name in self.before:
                self.before[name]()
            if name in self.refused:
                raise StoreError("refused")
            answer = await method(*args)
            self.done[name] += 1
            if name in self.unanswered:
                raise StoreError("no answer")
            if name in self.hanging:
                await asyncio.Event().wait()
            self.answers.append((name, answer))
            return answer

        return call


class Doing(Work):
    """Does jobs as the test says: each waits until it may go upstream, and there until it is answered."""

    has_room = True

    def __init__(self, sent: list[str]) -> None:
        self.wall = WALL
        self._clock = lambda: self.wall
        self.sent = sent
        """Ids of the jobs that went upstream, of all workers, in order."""
        self.open: list[str] = []
        """Ids of those that are being done here."""
        self.reported: list[str] = []
        """Ids of those that were interrupted."""
        self.sending, self.answering = asyncio.Event(), asyncio.Event()
        self.sending.set()
        self.answering.set()
        self.failure: Exception | None = None
        """Raised at the provider."""
        self.early_failure: Exception | None = None
        """Raised before that."""

    def report(self, held: Held) -> None:
        self.reported.append(held.lease.id)

    async def do(self, job: Job, begin: Begin) -> Ending:
        self.open.append(job.id)
        try:
            await self.sending.wait()
            if self.early_failure is not None:
                raise self.early_failure
            await begin()
            self.sent.append(job.id)
            await self.answering.wait()
            if self.failure is not None:
                raise self.failure
        finally:
            self.open.remove(job.id)
        return Ending(False, 200, b"[]", answer(job.id), False, self.now(), self.now() + job.ttl)


def answer(id: str) -> bytes:
    """What upstream answers to a job."""
    return b"answer to " + id.encode()


class Worker:
    """A dispatcher with a connection to the store and a `Doing` of its own."""

    def __init__(
        self, url: str, clock: Clock, sent: list[str], work: Work | None = None, **jobs: Any
    ) -> None:
        self._store = open_jobs(url)
        self.store = Shaky(self._store.urgently())
        self.clock = clock
        self.doing = Doing(sent)
        self.dispatcher = Dispatcher(self.store, settings(**jobs), clock)
        self.dispatcher.take(work if work is not None else self.doing)

    @property
    def name(self) -> str:
        return self.dispatcher.name

    async def turn(self, seconds: float = 0.0) -> None:
        """One turn, so much later."""
        self.clock.now += seconds
        await self.dispatcher.tick()

    async def turns(self, seconds: float) -> None:
        """As the loop does: a turn each second, for so long."""
        for _ in range(round(seconds / LOOK_SECONDS)):
            await self.turn(LOOK_SECONDS)

    async def idle(self) -> None:
        """Returns when no job is done here."""
        async with asyncio.timeout(PATIENCE):
            await self.dispatcher.idle.wait()

    async def stop(self) -> None:
        self.store.refused, self.store.unanswered, self.store.hanging = set(), set(), set()
        self.store.before = {}
        try:
            await self.dispatcher.close()
        finally:
            await self._store.close()


class Books:
    """The store as clients see it."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self._made = 0

    async def submit(self, *ids: str, owner: str = "key a", head: bytes = HEAD, body: bytes = BODY) -> None:
        """Keeps new jobs, each younger than the one before."""
        for id in ids:
            self._made += 1
            job = Job(id, owner, MESSAGES, WALL + self._made, TTL, "", head, body)
            assert await self.store.submit(job, AMPLE) == ""

    async def found(self, id: str, now: float = WALL) -> Found | None:
        return await self.store.look(id, now)

    async def state(self, id: str) -> State | None:
        found = await self.found(id)
        return found.state if found is not None else None

    async def states(self, *ids: str) -> list[State | None]:
        return [await self.state(id) for id in ids]

    async def result(self, id: str) -> tuple[int, bytes]:
        """Status and body of a job that is over."""
        found = await self.found(id)
        assert found is not None
        assert found.ending is not None
        return found.ending.status, found.ending.body

    async def workers(self) -> set[str]:
        """The names of the workers that the store knows."""
        known = set(await self.store.beat("who asks"))
        await self.store.leave("who asks")
        return known - {"who asks"}


@pytest.fixture
async def books(backend: Backend) -> AsyncIterator[Books]:
    store = open_jobs(backend.url)
    yield Books(store)
    await store.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sent() -> list[str]:
    """Ids of the jobs that went upstream, in order."""
    return []


StartWorker = Callable[..., Worker]


@pytest.fixture
async def worker(backend: Backend, clock: Clock, sent: list[str]) -> AsyncIterator[StartWorker]:
    """Makes a worker: ``w = worker(concurrent=2)``; what is given are settings of jobs."""
    made: list[Worker] = []

    def make(**more: Any) -> Worker:
        one = Worker(backend.url, clock, sent, **more)
        made.append(one)
        return one

    yield make
    for one in made:
        await one.stop()
    mine = {one.dispatcher for one in made}
    left = [task for task in asyncio.all_tasks() if of_whom(task) in mine]
    assert not left, f"tasks left behind: {left}"


def of_whom(task: asyncio.Task[Any]) -> object:
    """Whose method a task is."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    return frame.f_locals.get("self") if frame is not None else None


def working(p: Proxy) -> Work:
    """Does jobs by the path of a proxy, for another dispatcher than its own."""
    assert p.server._handler is not None
    return Work(p.server._handler, lambda: WALL)


async def stays(conn: Conn) -> None:
    """A step of an upstream that takes its time until the proxy leaves."""
    await conn.request()
    await conn.gone()


def said(caplog: pytest.LogCaptureFixture, least: int = logging.WARNING) -> list[str]:
    """What the dispatchers logged at this level and above."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "proxy.dispatcher" and record.levelno >= least
    ]


async def holding(one: Worker, *, sent_upstream: bool) -> Worker:
    """A worker that takes a turn, and does what it has until the test says otherwise."""
    gate = one.doing.answering if sent_upstream else one.doing.sending
    gate.clear()
    await one.turn()
    running = one.dispatcher.running
    await until(lambda: len(one.doing.open) == running)
    if sent_upstream:
        await until(lambda: set(one.doing.open) <= set(one.doing.sent))
    return one
