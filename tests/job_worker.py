"""The proxy as a process that ends, or stands still, where a job says so. Run by `program`.

A job says it in its field ``x-end``: a signal and a point, ``KILL claimed``. Where its way through the store
has come to that point, the process sends itself this signal. The points, in their order:

    stored      the job is in the store, its client has not been told
    told        its client has been told, nobody has claimed it
    claimed     a worker has claimed it
    begun       the store knows that it goes upstream, and nothing has been written there
    ended       upstream's answer is there, and not in the store
    kept        it is

It happens once, to the job's first claim; with ``always`` behind it, to every one.

Rules
  1. Nothing of the proxy is another than in service, but for two things. The times of the dispatcher are
     divided by a divisor, where one is given. And no claim is under way while a job with such a field comes
     in, for that would take it before it has come to the first two points.
  2. What a test must know of is printed before it happens.

Not here: what comes of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import os
import signal
import sys
from collections.abc import Sequence
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
    opened = server.open_jobs
    server.open_jobs = lambda url, password=None: EndingStore(opened(url, password))  # type: ignore[assignment]
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


class EndingStore:
    """A store of jobs, of which each may end the process."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._wishes: dict[str, list[str]] = {}
        self._claiming = asyncio.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def submit(self, job: Any, bounds: Any) -> Any:
        self._wish(job)
        async with self._claiming if job.id in self._wishes else contextlib.nullcontext():
            full = await self._store.submit(job, bounds)
            self._reach("stored", job.id)
            # What is returned is answered before anybody else has a turn.
            asyncio.get_running_loop().call_soon(self._reach, "told", job.id)
        return full

    async def claim(self, worker: str, most_of_owner: int) -> Any:
        async with self._claiming:
            claim = await self._store.claim(worker, most_of_owner)
        if claim is not None:
            self._wish(claim.job)
            self._reach("claimed", *claim.lease)
        return claim

    async def begin(self, lease: Any) -> Any:
        say(f"begins {lease.id}")
        begun = await self._store.begin(lease)
        self._reach("begun", *lease)
        return begun

    async def finish(self, lease: Any, ending: Any) -> Any:
        self._reach("ended", *lease)
        kept = await self._store.finish(lease, ending)
        self._reach("kept", *lease)
        return kept

    def _wish(self, job: Any) -> None:
        from proxy.order import Request

        for name, value in Request.loads(job.head).fields:
            if name.lower() == b"x-end":
                self._wishes[job.id] = value.decode().split()

    def _reach(self, point: str, id: str, worker: str = "", number: int = 1) -> None:
        name, where, *always = self._wishes.get(id, ["", ""])
        if where == point and (number == 1 or always):
            say(f"{name} {point} {id}")
            os.kill(os.getpid(), signal.Signals[f"SIG{name}"])
