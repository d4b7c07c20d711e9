"""The dispatcher: takes jobs from the store and has them done, and cleans up after workers that are gone.

Facts
  - Clocks of machines differ and jump. So no time stands in a lease: a worker counts its beats in the store,
    and who sees another's count stand still for `DEAD_SECONDS` of its own monotonic clock takes its jobs.
  - A worker that was stopped for so long and goes on finds that its leases are lost.

Rules
  1. One task claims, beats and settles, in turns; each job has a task of its own, owned here.
  2. What the store says counts: a job that it does not know as ours ends here, and one that it does while
     nobody does it is settled. It waits again if it had not gone upstream; else it has failed, or is sent
     again where ``jobs.on_restart`` says so.
  3. A result is kept as soon as the store can be asked, however long that takes.

Not here: how a job is done (`work`), what clients see of it (`jobs`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable

from . import errors
from .config import Config
from .job import Claim, Ending, Held, Lease
from .ports import JobStore, StoreError
from .work import LostLease, NotNow, Work

LOOK_SECONDS = 1.0
"""How often the store is asked what has changed."""

BEAT_SECONDS = 4.0
"""How often a worker says that it lives."""

DEAD_SECONDS = 20.0
"""A worker that has not beaten for so long is dead: its jobs are settled within 30 s."""

PURGE_SECONDS = 60.0
"""How often expired jobs are looked for."""

SAVE_SECONDS = 2.0
"""How long to wait before a result is offered again to a store that did not take it."""

CLOSE_SECONDS = 5.0
"""What a stop may take beside the drain: to hand back what is left."""

REST_SECONDS = 2.0
"""How long nothing is claimed after a job that could not be done at that moment."""

MAX_BEGINS = 3
"""So often a job goes upstream in all, where it may be sent again."""

MAX_CLAIMS = 10
"""So often a job is claimed. Perhaps it is what ends its workers."""

logger = logging.getLogger(__name__)


class Dispatcher:
    """Has jobs done. One per worker."""

    def __init__(self, store: JobStore, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._work: Work | None = None
        self._ended: Callable[[], None] | None = None
        self._config = config
        self._clock = clock
        self.name = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        """In the store; a worker that is started again has another."""
        self.pending = 0
        """How many jobs waited when it was last looked."""
        self.idle = asyncio.Event()
        """Set while no job is done here."""
        self.idle.set()
        self._doing: dict[Lease, asyncio.Task[None]] = {}
        self._saving: set[Lease] = set()
        """Those of which the ending is there."""
        self._unsent: set[Lease] = set()
        """Those that are known not to have gone upstream, whatever the store says."""
        self._forgotten: dict[str, float | None] = {}
        """Jobs that nobody knows of, and until when they are looked for, once the store has answered."""
        self._seen: dict[str, tuple[int, float]] = {}
        """By worker: its beats, and since when there are no more of them."""
        self._look_at = self._beat_at = self._purge_at = self._beaten_at = clock()
        self._rested_at = self._look_at
        self._called = asyncio.Event()
        self._claims = True
        self._failing = False
        self._loop: asyncio.Task[None] | None = None

    def use(self, config: Config) -> None:
        """Go by this config from now on."""
        self._config = config
        self.come()

    @property
    def _does(self) -> Work:
        if self._work is None:
            raise AssertionError("nobody does the jobs")
        return self._work

    @property
    def running(self) -> int:
        """How many jobs are done here at the moment."""
        return len(self._doing)

    # What the path says.

    def come(self) -> None:
        self._called.set()

    def drop(self, id: str) -> None:
        for lease, task in self._doing.items():
            if lease.id == id and lease not in self._saving:
                task.cancel()

    def forget(self, id: str) -> None:
        self._forgotten[id] = None

    # The loop.

    def take(self, work: Work, ended: Callable[[], None] | None = None) -> None:
        """Have jobs done by this, and call `ended` when one has its ending."""
        self._work = work
        self._ended = ended

    def start(self) -> None:
        """Take turns from now on, until `close`."""
        self._loop = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            try:
                await self.tick()
            except Exception as failure:
                # Without this loop no job would ever be done again.
                logger.error("%s: %s", "jobs", errors.frames(failure))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._called.wait()
            self._called.clear()

    async def tick(self) -> None:
        """One turn: beat when that is due, settle what the store and we see differently, claim."""
        try:
            if self._clock() >= self._beat_at:
                await self._beat()
            if self._clock() >= self._look_at:
                self._look_at = self._clock() + LOOK_SECONDS
                await self._settle()
            if self._clock() >= self._purge_at:
                await self._purge()
            await self._remove_forgotten()
            if self._clock() >= self._rested_at:
                await self._claim()
        except StoreError as error:
            # Nobody was seen meanwhile, so nobody can be called dead.
            self._seen.clear()
            if not self._failing:
                logger.error("jobs wait for their store: %s", error)
            self._failing = True
        else:
            if self._failing:
                logger.info("the store of jobs is back")
            self._failing = False

    async def _beat(self) -> None:
        now = self._clock()
        if now > self._beaten_at + 2 * BEAT_SECONDS:
            # This process stood still, and others may have too.
            self._seen.clear()
        beats = await self._store.beat(self.name)
        self._beaten_at = now
        # What a slow store tells of may have come after it was asked.
        told = self._clock()
        self._seen = {
            worker: (beat, self._seen[worker][1] if self._seen.get(worker, (None,))[0] == beat else told)
            for worker, beat in beats.items()
            if worker != self.name
        }
        for worker, (beat, since) in tuple(self._seen.items()):
            if now >= since + DEAD_SECONDS:
                logger.warning("worker %s of jobs is gone; what it did is settled", worker)
                await self._store.adopt(self.name, worker, beat)
                # Else it would be found again and again. One that lives all the same is known again by its
                # next beat.
                await self._store.leave(worker)
                del self._seen[worker]
                self._look_at = now
        self.pending = await self._store.pending()
        self._beat_at = now + BEAT_SECONDS

    async def _purge(self) -> None:
        """Forget a batch of what has expired; more of it in the next turns, for a beat may be due."""
        if await self._store.purge(self._does.now()):
            self.come()
        else:
            self._purge_at = self._clock() + PURGE_SECONDS

    async def _settle(self) -> None:
        """Make what is done here and what the store says the same."""
        doing = set(self._doing)
        held = await self._store.held(self.name)
        self._unsent.intersection_update(each.lease for each in held)
        for each in held:
            # As it was when that was asked: what has ended since then is no more there than here.
            if each.lease not in doing and await self._leave(each):
                self._does.report(each)
        for lease in doing - {each.lease for each in held} - self._saving:
            if lease in self._doing:
                self._doing[lease].cancel()

    async def _leave(self, held: Held) -> bool:
        """Settle a job that nobody does; returns whether it was interrupted."""
        lease = held.lease
        begun = held.begun and lease not in self._unsent
        again = self._config.jobs.on_restart == "retry" and held.begins < MAX_BEGINS
        suspect = lease.number >= MAX_CLAIMS and lease not in self._unsent
        if (begun and not again) or suspect:
            return await self._store.finish(lease, self._does.interrupted(held))
        await self._store.hand_back(lease)
        self._unsent.discard(lease)
        self.come()
        return False

    async def _claim(self) -> None:
        jobs = self._config.jobs
        while self._claims and len(self._doing) < jobs.concurrent and self._does.has_room:
            claim = await self._store.claim(self.name, jobs.concurrent_per_key)
            if claim is None:
                return
            task = asyncio.get_running_loop().create_task(self._do(claim))
            self._doing[claim.lease] = task
            self.idle.clear()
            task.add_done_callback(functools.partial(self._done, claim.lease))
            if self._clock() >= self._look_at:
                # Jobs may end as fast as they are claimed, and a beat may be due.
                self.come()
                return

    async def _remove_forgotten(self) -> None:
        for id, until in tuple(self._forgotten.items()):
            await self._store.remove(id)
            self.drop(id)
            del self._forgotten[id]
            # Again: the store may do what it was told before only after it was told to remove it.
            until = self._clock() + BEAT_SECONDS if until is None else until
            if self._clock() < until:
                self._forgotten[id] = until
            if self._clock() >= self._look_at:
                # There may be thousands, and a beat may be due. The others come first next time.
                self.come()
                return

    # One job.

    async def _do(self, claim: Claim) -> None:
        lease = claim.lease
        try:
            ending = await self._does.do(claim.job, functools.partial(self._begin, lease))
        except LostLease:
            return
        except (StoreError, NotNow) as failure:
            # The next look hands it back.
            self._unsent.add(lease)
            if isinstance(failure, NotNow):
                self._rested_at = self._clock() + REST_SECONDS
            return
        self._saving.add(lease)
        await self._save(lease, ending)

    async def _begin(self, lease: Lease) -> None:
        if not await self._store.begin(lease):
            raise LostLease

    async def _save(self, lease: Lease, ending: Ending) -> None:
        waits = False
        while True:
            try:
                if not await self._store.finish(lease, ending):
                    logger.warning("%s: its result came too late", lease.id)
                return
            except StoreError as error:
                if not waits:
                    logger.error("%s: its result waits for the store: %s", lease.id, error)
                waits = True
                await asyncio.sleep(SAVE_SECONDS)

    def _done(self, lease: Lease, task: asyncio.Task[None]) -> None:
        del self._doing[lease]
        self._saving.discard(lease)
        if not self._doing:
            self.idle.set()
        if not task.cancelled() and (failure := task.exception()) is not None:
            logger.error("%s: %s", lease.id, errors.frames(failure))
        if self._ended is not None:
            self._ended()
        self.come()

    # The end.

    def retire(self) -> None:
        """Claim no more."""
        self._claims = False

    async def close(self) -> None:
        """End the jobs that are left, and hand back or settle what the store says is ours."""
        self._claims = False
        self._does.stop()
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._end()
        except (StoreError, TimeoutError) as error:
            logger.error("jobs are left to the other workers: %s", str(error) or "the store does not answer")
        except Exception as failure:
            # What comes after this has to be closed all the same.
            logger.error("jobs are left to the other workers: %s", errors.frames(failure))
        for task in self._doing.values():
            task.cancel()
        if self._doing:
            await asyncio.wait(self._doing.values())

    async def _end(self) -> None:
        for lease, task in self._doing.items():
            if lease not in self._saving:
                task.cancel()
        if self._doing:
            # What is there is kept, if the store takes it.
            await asyncio.wait(self._doing.values())
        for held in await self._store.held(self.name):
            await self._leave(held)
        await self._store.leave(self.name)
        for id in tuple(self._forgotten):
            await self._store.remove(id)
