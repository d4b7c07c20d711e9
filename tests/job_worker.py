"""The proxy as a process that ends, or stands still, where a job says so. Run by `program`.

A job says it in its field ``x-end``: a signal and a point, ``KILL claimed`` or ``STOP claimed``. Where its
way through the store has come to that point, the process sends itself this signal. The points, in order:

    stored      the job is in the store, its client has not been told
    told        its client has been told, nobody has claimed it
    claimed     a worker has claimed it
    begun       the store knows that it goes upstream, and nothing has been written there
    ended       upstream's answer is there, and not in the store
    kept        it is

It happens once, to the job's first claim; with ``always`` behind it, to every one. On SIGUSR1 the process
stands still wherever it is.

Facts
  - A process that stands still as it writes into a file of SQLite, or opens it, keeps its lock: until it goes
    on nobody else can do that.

Rules
  1. Nothing of the proxy is another than in service, but for two things. The times by which the dispatcher
     looks, beats and finds others dead are divided by a divisor, where one is given. And no claim is under
     way while a job with such a field comes in, for that would take it before the first two points.
  2. What a test must know of is printed before it happens.
  3. The process stands still only while it asks nothing of the stores.

Not here: what comes of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import importlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

SCRIPT = """
import sys
sys.path.append(sys.argv.pop(1))
import job_worker
sys.exit(job_worker.main())
"""
"""Found by its path, while the proxy is found as ``-m proxy`` finds it."""

PR_SET_PDEATHSIG = 1
"""prctl(2): a signal for when the parent ends."""


def program(*, divisor: int = 1, again: bool = False) -> Sequence[str]:
    """What Python runs; with `again` the worker is started anew whenever a signal has ended it."""
    return ("-c", SCRIPT, str(Path(__file__).parent), str(divisor), "again" if again else "once")


def main() -> int:
    from proxy import __main__, dispatcher, server

    divisor, mode = int(sys.argv.pop(1)), sys.argv.pop(1)
    for name in ("LOOK_SECONDS", "BEAT_SECONDS", "DEAD_SECONDS"):
        setattr(dispatcher, name, getattr(dispatcher, name) / divisor)
    ends = Ends()
    open_store, open_jobs = server.open_store, server.open_jobs
    server.open_store = lambda *where: QuietStore(open_store(*where), ends)
    server.open_jobs = lambda *where: EndingStore(open_jobs(*where), ends)
    if mode == "once":
        say(f"worker {os.getpid()}")
        return __main__.main()
    # So that not every worker has to import it again.
    importlib.import_module("proxy.store.redis_jobs")
    importlib.import_module("proxy.store.sqlite_jobs")
    while True:
        worker = os.fork()
        if not worker:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            # As systemd does for each process that it starts.
            os.environ["LISTEN_PID"] = str(os.getpid())
            say(f"worker {os.getpid()}")
            return __main__.main()
        signal.signal(signal.SIGTERM, lambda number, _, worker=worker: os.kill(worker, number))
        _, status = os.waitpid(worker, 0)
        if not os.WIFSIGNALED(status):
            return os.waitstatus_to_exitcode(status)


def say(line: str) -> None:
    """Print a line at once and whole: the next step may be the last."""
    os.write(sys.stderr.fileno(), f"{line}\n".encode())


class Ends:
    """Where jobs end this process, and what of it is in the way."""

    def __init__(self) -> None:
        self.claiming = asyncio.Lock()
        self._wishes: dict[str, list[str]] = {}
        self._calls = 0
        """Those of the stores that are under way."""
        self._quiet = asyncio.Event()
        """Set when there are none any more."""
        self._stopping: asyncio.Task[None] | None = None

    def listen(self) -> None:
        """Stand still on SIGUSR1 from now on."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._stop_soon)

    async def call(self, method: Callable[..., Awaitable[Any]], *asked: Any) -> Any:
        """What a method of the store answers."""
        self._calls += 1
        self._quiet.clear()
        try:
            return await method(*asked)
        finally:
            self._calls -= 1
            if not self._calls:
                self._quiet.set()

    def wish(self, job: Any) -> bool:
        """Take note of what a job says; whether it says something."""
        from proxy.jobheads import Request

        for name, value in Request.loads(job.head).fields:
            if name.lower() == b"x-end":
                self._wishes[job.id] = value.decode().split()
        return job.id in self._wishes

    async def reach(self, point: str, id: str, worker: str = "", number: int = 1) -> None:
        """Do what the job says of this point; `number` is its lease's."""
        if self._wishes.get(id, [])[:2] == ["STOP", point] and number == 1:
            await self._stop()
        self.kill(point, id, number)

    def kill(self, point: str, id: str, number: int = 1) -> None:
        name, where, *always = self._wishes.get(id, ["", ""])
        if (name, where) == ("KILL", point) and (number == 1 or always):
            say(f"KILL {point} {id}")
            os.kill(os.getpid(), signal.SIGKILL)

    def _stop_soon(self) -> None:
        self._stopping = asyncio.get_running_loop().create_task(self._stop())

    async def _stop(self) -> None:
        while self._calls:
            await self._quiet.wait()
        os.kill(os.getpid(), signal.SIGSTOP)


class QuietStore:
    """A store while whose calls are under way the process does not stand still."""

    def __init__(self, store: Any, ends: Ends) -> None:
        self._store = store
        self._ends = ends

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._ends.call, getattr(self._store, name))


class EndingStore(QuietStore):
    """A store of jobs, of which each may end the process."""

    def __init__(self, store: Any, ends: Ends) -> None:
        super().__init__(store, ends)
        ends.listen()

    def urgently(self) -> EndingStore:
        return EndingStore(self._store.urgently(), self._ends)

    async def submit(self, job: Any, bounds: Any) -> Any:
        async with self._ends.claiming if self._ends.wish(job) else contextlib.nullcontext():
            full = await self._ends.call(self._store.submit, job, bounds)
            await self._ends.reach("stored", job.id)
            # What is returned is answered before anybody else has a turn.
            asyncio.get_running_loop().call_soon(self._ends.kill, "told", job.id)
        return full

    async def claim(self, worker: str, most_of_owner: int) -> Any:
        async with self._ends.claiming:
            claim = await self._ends.call(self._store.claim, worker, most_of_owner)
        if claim is not None:
            self._ends.wish(claim.job)
            await self._ends.reach("claimed", *claim.lease)
        return claim

    async def begin(self, lease: Any) -> Any:
        say(f"begins {lease.id}")
        begun = await self._ends.call(self._store.begin, lease)
        await self._ends.reach("begun", *lease)
        return begun

    async def finish(self, lease: Any, ending: Any) -> Any:
        await self._ends.reach("ended", *lease)
        kept = await self._ends.call(self._store.finish, lease, ending)
        await self._ends.reach("kept", *lease)
        return kept
