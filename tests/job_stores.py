"""The stores of jobs that a test runs over, jobs to put into them, and processes that use them too.

Rules
  1. Times are long ago: no clock of a store may matter. A result is kept for longer than any test runs.

Not here: expectations.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from rawclient import PATIENCE
from redis_server import RedisServer
from secrecy import overhear

from proxy.job import Bounds, Claim, Ending, Job, Lease
from proxy.ports import JobStore, StoreError
from proxy.store import open_jobs

LONG = 30.0
"""More than the longest wait of a store, for a slow machine."""

NOW = 1000.0
ENDED = NOW + 5
EXPIRES = ENDED + 3600

AMPLE = Bounds(jobs=100_000, jobs_of_owner=100_000, bytes=1 << 40)

PASSWORD = "sk-test-redis"

AT_ONCE = 50
"""So many calls at once have their turn soon, also on a slow disk."""

Process = asyncio.subprocess.Process
Spawn = Callable[..., Awaitable[Process]]
Opened = Callable[..., JobStore]
T = TypeVar("T")

PROGRAM = """
import asyncio, os, sys
from proxy.job import Bounds, Ending, Job
from proxy.store import open_jobs

async def main(url, *args):
    store = open_jobs(url, os.environ.get("PASSWORD"))
    print("ready", flush=True)
    try:
        # Not the loop's own: nothing is begun before the line has come.
        while sys.stdin.readline():
            await work(store, *args)
    finally:
        await store.close()
"""

SUBMITTER = f"""{PROGRAM}
async def work(store, name, count):
    for number in range(int(count)):
        body = b"%d" % number * 500
        job = Job(f"{{name}}-{{number}}", "dev", "/v1/messages", 1000.0, 60, "", b"{{}}", body)
        assert await store.submit(job, Bounds(10**6, 10**6, 10**12)) == ""
        print(job.id, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""
"""Submits so many jobs for each line, and prints the id of each when it is told that it is kept."""

CLAIMER = f"""{PROGRAM}
async def work(store, worker):
    while claim := await store.claim(worker, 10**6):
        print(claim.lease.id, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""
"""Claims for each line all that there is."""

WORKER = f"""{PROGRAM}
async def work(store, worker):
    while claim := await store.claim(worker, 10**6):
        print("claimed", claim.lease.id, flush=True)
        assert await store.begin(claim.lease)
        print("begun", claim.lease.id, flush=True)
        ending = Ending(False, 200, b"{{}}", claim.job.body[::-1], False, 1005.0, 4605.0)
        assert await store.finish(claim.lease, ending)
        print("finished", claim.lease.id, flush=True)
    print("idle", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""
"""Does for each line all jobs that there are. A result is the request's body, backwards."""


class Backend(Protocol):
    """A place where jobs can be, which a test can break."""

    url: str
    password: str | None

    async def fail(self) -> None: ...

    async def recover(self) -> None: ...

    async def kept(self) -> str:
        """All that can be read there, as text."""
        ...


class SqliteBackend:
    """A file. It fails as a file does for root as well: a directory stands in its place."""

    password = None

    def __init__(self, directory: Path) -> None:
        self.url = f"sqlite:{directory}/state.db"
        self.path = directory / "state.db-jobs"
        self._away = directory / "away"

    @property
    def files(self) -> list[Path]:
        """The file, and the two that are beside it while it is open."""
        return [self.path, Path(f"{self.path}-shm"), Path(f"{self.path}-wal")]

    async def fail(self) -> None:
        if self.path.exists():
            self.path.rename(self._away)
        self.path.mkdir()

    async def recover(self) -> None:
        self.path.rmdir()
        if self._away.exists():
            self._away.rename(self.path)

    def look(self, statement: str) -> list[tuple[Any, ...]]:
        """What somebody else sees in the file."""
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            return db.execute(statement).fetchall()

    async def kept(self) -> str:
        tables = self.look("SELECT name FROM sqlite_schema WHERE type = 'table'")
        return "\n".join(str(self.look(f"SELECT * FROM {table}")) for (table,) in tables)


class RedisBackend:
    """A server. It fails by SIGKILL."""

    password = PASSWORD

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self.url = server.url

    async def fail(self) -> None:
        await self._server.kill()

    async def recover(self) -> None:
        await self._server.start()

    async def kept(self) -> str:
        commands = {
            "string": ("GET",),
            "hash": ("HGETALL",),
            "set": ("SMEMBERS",),
            "zset": ("ZRANGE", "0", "-1", "WITHSCORES"),
        }
        said = []
        for key in filter(None, await self._server.ask("KEYS", "*")):
            (kind,) = await self._server.ask("TYPE", key)
            command, *more = commands[kind]
            said += [key, *await self._server.ask(command, key, *more)]
        return "\n".join(said)


@pytest.fixture(params=["sqlite", "redis"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    """Each of the two, as the real thing."""
    if request.param == "sqlite":
        yield SqliteBackend(tmp_path)
        return
    server = RedisServer(tmp_path, password=PASSWORD)
    await server.start()
    yield RedisBackend(server)
    await server.kill()


@pytest.fixture
async def opened() -> AsyncIterator[Opened]:
    """Opens stores, and closes them after the test: `opened(backend)`."""
    stores: list[JobStore] = []

    def start(backend: Backend) -> JobStore:
        stores.append(open_jobs(backend.url, backend.password))
        return stores[-1]

    before = set(threading.enumerate())
    yield start
    for store in stores:
        await store.close()
    assert left_behind(before) == []


@pytest.fixture
async def store(backend: Backend, opened: Opened) -> JobStore:
    return opened(backend)


@pytest.fixture
async def spawn() -> AsyncIterator[Spawn]:
    """Starts Python programs for a backend; what a failed test leaves running is killed."""
    processes: list[Process] = []

    async def start(program: str, backend: Backend, *arguments: object) -> Process:
        password = {} if backend.password is None else {"PASSWORD": backend.password}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, backend.url, *map(str, arguments)),
            env={**os.environ, **password},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        overhear(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def left_behind(before: set[threading.Thread]) -> list[threading.Thread]:
    """Threads that were begun, do not end, and would keep the process from it."""
    begun = {thread for thread in set(threading.enumerate()) - before if not thread.daemon}
    for thread in begun:
        # It has told the loop that it is done, and is on its last line.
        thread.join(PATIENCE)
    return [thread for thread in begun if thread.is_alive()]


# Other processes.


async def line(process: Process) -> str:
    """The next line that a process prints; it is empty at the end."""
    assert process.stdout is not None
    async with asyncio.timeout(LONG):
        return (await process.stdout.readline()).decode().rstrip()


async def next_steps(process: Process, count: int) -> list[tuple[str, str]]:
    """The next steps of a `WORKER`, and the jobs that it did them with; no more when it has none left."""
    told = []
    for _ in range(count):
        step, _, id = (await line(process)).partition(" ")
        if step == "idle":
            break
        told.append((step, id))
    return told


async def last_steps(process: Process) -> list[tuple[str, str]]:
    """Those that it had told when SIGKILL came."""
    split = [told.partition(" ") for told in await killed(process)]
    return [(step, id) for step, _, id in split if step != "idle"]


async def tell(process: Process) -> None:
    """Give a process the line that it waits for."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    await process.stdin.drain()


async def ended(process: Process) -> list[str]:
    """What a process printed until its end, a good one, which comes when it is told nothing more."""
    async with asyncio.timeout(2 * LONG):
        printed, complaints = await process.communicate(b"")
    assert process.returncode == 0, complaints.decode()
    return printed.decode().splitlines()


async def killed(process: Process) -> list[str]:
    """The whole lines that a process had printed when SIGKILL came."""
    process.kill()
    printed, _ = await process.communicate()
    return [text.rstrip() for text in printed.decode().splitlines(keepends=True) if text.endswith("\n")]


# Jobs.


def job(id: str = "a", **about: Any) -> Job:
    """A job, like any other but for what is given of it."""
    plain = Job(id, "dev", "/v1/messages", NOW, 60, "", b'{"path": "/"}', b'{"model": "m"}')
    return plain._replace(**about)


def ending(body: bytes = b'{"ok": 1}', **about: Any) -> Ending:
    return Ending(False, 200, b'{"fields": []}', body, False, ENDED, EXPIRES)._replace(**about)


def there(value: T | None) -> T:
    assert value is not None
    return value


async def submitted(store: JobStore, *jobs: Job) -> None:
    """Keep these, in this order."""
    for each in jobs:
        assert await store.submit(each, AMPLE) == ""


async def filled(store: JobStore, jobs: Iterable[Job]) -> None:
    """Keep these, in any order, quickly."""
    waiting = list(jobs)
    while waiting:
        some, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        assert set(await asyncio.gather(*(store.submit(each, AMPLE) for each in some))) == {""}


async def claimed(store: JobStore, id: str = "a", worker: str = "w1", **about: Any) -> Lease:
    """The lease of a new job, the only one that waits."""
    await submitted(store, job(id, **about))
    claim = there(await store.claim(worker, 100_000))
    assert claim.job == job(id, **about)
    return claim.lease


async def begun(store: JobStore, id: str = "a", worker: str = "w1", **about: Any) -> Lease:
    lease = await claimed(store, id, worker, **about)
    assert await store.begin(lease) is True
    return lease


async def finished(store: JobStore, id: str = "a", end: Ending | None = None, **about: Any) -> Lease:
    lease = await begun(store, id, **about)
    assert await store.finish(lease, end or ending()) is True
    return lease


async def all_claims(store: JobStore, worker: str = "w1") -> list[Claim]:
    """Claim whatever waits."""
    claims = []
    while claim := await store.claim(worker, 100_000):
        claims.append(claim)
    return claims


async def refused(call: Awaitable[object]) -> str:
    """What the `StoreError` says with which a call ends."""
    async with asyncio.timeout(LONG):
        with pytest.raises(StoreError) as caught:
            await call
    assert "sk-test" not in str(caught.value)
    return str(caught.value)


def everything(store: JobStore) -> list[Awaitable[object]]:
    """One call of each method that asks. None of them changes a job."""
    nobodys = Lease("z", "z", 1)
    return [
        store.submit(job("z"), Bounds(0, 0, 0)),
        store.claim("z", 0),
        store.begin(nobodys),
        store.hand_back(nobodys),
        store.finish(nobodys, ending()),
        store.peek("z", NOW),
        store.look("z", NOW),
        store.remove("z"),
        store.beat("z"),
        store.held("z"),
        store.adopt("z", "y", 1),
        store.leave("z"),
        store.pending(),
        store.purge(0.0),
        store.due(0.0, 0.0),
        store.told("z", None),
        store.told("z", NOW),
    ]


async def some_steps(count: int) -> None:
    """Lets the others in this loop go on, each by so many steps."""
    for _ in range(count):
        await asyncio.sleep(0)
