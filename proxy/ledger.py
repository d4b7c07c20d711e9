"""The ledger: what this worker changes in the store's counters, in batches.

Facts
  - A store call costs about as much as a request. While one is under way others gather for the next, so the
    busier the worker is, the less a request pays.
  - A call that failed may have taken effect.

Rules
  1. One call at a time. A batch holds reservations, which somebody waits for, and charges, which nobody does.
  2. Everything is applied exactly once. Batches and charges have numbers, one after the other; the worker's
     own row in the store holds the last number applied, and is changed in the same step as the counters.
  3. A charge is written to the journal first, so not even a killed worker forgets it.
  4. While the store cannot be asked charges add up here, and reservations fail at once.

Not here: which counters, and what they allow (`quota`), the store itself (`store`).
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence

from .journal import Journal
from .limits import MOST
from .ports import Change, Store, StoreError

CHARGE_SECONDS = 0.02
"""How long a charge waits for company."""

RETRY_SECONDS = 1.0
"""How long a store that failed is left alone."""

STORE_SECONDS = 10.0
"""How long a call may take; both stores have shorter times of their own, but a disk may hang."""

CLOSE_SECONDS = 5.0
"""How long the end waits for the last charges to be taken."""

PURGE_SECONDS = 900.0

ROW_SECONDS = 90 * 86400
"""How long a worker's own row is kept after its last batch: as long as its journal may lie about."""

MAX_BATCH = 500
"""Reservations in a batch."""

logger = logging.getLogger(__name__)


Judge = Callable[[Mapping[str, int]], bool]
"""Told the counters as they are without its own reservation; returns whether it is admitted."""


class _Reservation:
    __slots__ = ("admitted", "changes", "judge", "waiter")

    def __init__(self, changes: Sequence[Change], judge: Judge, waiter: asyncio.Future[bool]) -> None:
        self.changes = changes
        self.judge = judge
        self.waiter = waiter
        self.admitted = False


_Totals = dict[str, list[int]]
"""By counter: when its window ends, and what is added to it."""


class Ledger:
    """Keeps the accounts of one worker. One per server."""

    def __init__(self, store: Store, journal: Journal, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._journal = journal
        self._clock = clock
        self._row = f"ledger/{journal.id}"
        self._number = 0
        """Of the last charge or batch."""
        self._applied = 0
        """What the worker's row in the store says."""
        self._reservations: list[_Reservation] = []
        self._charges: _Totals = {}
        self._doubtful: tuple[int, _Totals, _Totals] | None = None
        """Number, charges and reservations of a batch of which nobody knows whether it was applied."""
        self._wanted = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._ill_until = 0.0
        self._purge_at = clock() + PURGE_SECONDS
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to take batches to the store; first those that killed workers have left."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def ill(self) -> bool:
        """Whether the store failed a moment ago."""
        return self._clock() < self._ill_until

    @property
    def waiting(self) -> int:
        """How many counters have charges that the store has not taken yet."""
        return len(self._charges) + (len(self._doubtful[1]) if self._doubtful else 0)

    async def reserve(self, changes: Sequence[Change], judge: Judge) -> bool:
        """Make `changes` if `judge` admits them by what the counters say. Raises `StoreError`."""
        if self.ill:
            raise StoreError("the store failed a moment ago")
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        reservation = _Reservation(changes, judge, waiter)
        self._reservations.append(reservation)
        self._wanted.set()
        try:
            return await waiter
        except asyncio.CancelledError:
            if reservation in self._reservations:
                self._reservations.remove(reservation)
            elif reservation.admitted:
                self.charge(_reversed(changes))
            else:
                # It is on its way to the store, and nobody wants it any more.
                reservation.judge = _refuse
            raise

    def charge(self, changes: Iterable[Change]) -> None:
        """Make `changes` as soon as may be."""
        changes = [change for change in changes if change.amount]
        if not changes:
            return
        self._number += 1
        self._journal.write(self._number, changes)
        _merge(self._charges, changes)
        if self._journal.is_long:
            self._renew()
        self._soon()

    async def close(self) -> None:
        """Take the last charges to the store, if it can be asked in `CLOSE_SECONDS`."""
        self._closing = True
        self._wanted.set()
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
            if late:
                self._task.cancel()
                await asyncio.wait(late)
        if self.waiting:
            where = self._journal.kept or "lost, for there is no journal"
            logger.error("charges on %d counters have not reached the store: %s", self.waiting, where)
        self._journal.close(keep=bool(self.waiting))

    async def _run(self) -> None:
        steps = self._recover
        while True:
            try:
                await steps()
                steps = self._serve
                if self._ill_until:
                    self._ill_until = 0.0
                    logger.warning("the store can be asked again")
            except StoreError as error:
                await self._fall_ill(str(error))
            except Exception as failure:
                # Whoever waits here would wait for ever. Frames only: the text may hold what the store said.
                frames = "".join(traceback.format_tb(failure.__traceback__))
                logger.error("the ledger failed: %s\n%s", type(failure).__name__, frames)
                await self._fall_ill(type(failure).__name__)
            if self._closing and (self.ill or not (self._reservations or self.waiting)):
                return
            await self._wanted.wait()
            self._wanted.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    async def _serve(self) -> None:
        """Take to the store what is there."""
        if self._doubtful is not None:
            await self._settle_doubt()
        if self._reservations or self._charges:
            await self._batch()
        while self._reservations:
            await self._batch()
        if self._charges:
            self._soon()
        if self._clock() >= self._purge_at:
            self._purge_at = self._clock() + PURGE_SECONDS
            await self._store.purge(int(time.time()))

    def _soon(self) -> None:
        if self._closing:
            self._wanted.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CHARGE_SECONDS, self._wanted.set)

    async def _batch(self) -> None:
        """One call of the store."""
        asking, self._reservations = self._reservations[:MAX_BATCH], self._reservations[MAX_BATCH:]
        charges, self._charges = self._charges, {}
        self._number += 1
        number = self._number
        reserved: _Totals = {}
        for reservation in asking:
            _merge(reserved, reservation.changes)
        totals = {name: [*total] for name, total in charges.items()}
        _merge(totals, _changes(reserved))
        own = Change(self._row, int(time.time()) + ROW_SECONDS, number - self._applied)
        self._doubtful = number, charges, reserved
        try:
            async with asyncio.timeout(STORE_SECONDS):
                *after, applied = await self._store.add([*_changes(totals), own])
        except Exception as error:
            # Whatever it is, nobody waits for ever.
            reason = str(error) if isinstance(error, StoreError) else type(error).__name__
            for reservation in asking:
                if not reservation.waiter.done():
                    reservation.waiter.set_exception(StoreError(reason))
            raise StoreError(reason) from error
        self._doubtful = None
        self._acknowledge(applied, number)
        counters = dict(zip(totals, after, strict=True))
        for name, (_, amount) in reserved.items():
            counters[name] -= amount
        for reservation in asking:
            self._judge(reservation, counters)

    def _judge(self, reservation: _Reservation, counters: dict[str, int]) -> None:
        """Admit or refuse one reservation of a batch that has been applied; the next one sees it."""
        reservation.admitted = reservation.judge(counters)
        if reservation.admitted:
            for change in reservation.changes:
                counters[change.name] += change.amount
        else:
            self.charge(_reversed(reservation.changes))
        if not reservation.waiter.done():
            reservation.waiter.set_result(reservation.admitted)

    async def _settle_doubt(self) -> None:
        """Find out whether the doubtful batch was applied, and make good what was not."""
        if self._doubtful is None:
            return
        (applied,) = await self._store.read([self._row])
        number, charges, reserved = self._doubtful
        self._doubtful = None
        if applied == number:
            # Who had reserved was told that it failed.
            self._acknowledge(applied, number)
            self.charge(_reversed(_changes(reserved)))
        else:
            self._applied = applied
            _merge(charges, _changes(self._charges))
            self._charges = charges

    def _acknowledge(self, applied: int, number: int) -> None:
        if applied != number:
            logger.warning("the store has lost counters: its row of this worker is not what it was")
        self._applied = applied

    def _renew(self) -> None:
        """Write the journal anew with what is left: there are many charges, but few counters."""
        left = [(self._number, _changes(self._charges))]
        if self._doubtful is not None:
            # With a number of its own: whether it was applied is for the store to say.
            number, charges, _ = self._doubtful
            left.insert(0, (number, _changes(charges)))
        self._journal.renew(left)

    async def _recover(self) -> None:
        """Take to the store what killed workers have left in their journals, once it can be asked."""
        await self._store.read([self._row])
        for orphan in self._journal.orphans():
            try:
                records = orphan.records()
            except (ValueError, TypeError):
                logger.error("a journal cannot be read; it is set aside as %s", orphan.set_aside())
                orphan.close()
                continue
            try:
                row = f"ledger/{orphan.id}"
                (applied,) = await self._store.read([row])
                left: _Totals = {}
                last = applied
                for number, changes in records:
                    if number > applied:
                        _merge(left, (Change(*change) for change in changes))
                        last = number
                if left:
                    until = int(time.time()) + ROW_SECONDS
                    await self._store.add([*_changes(left), Change(row, until, last - applied)])
                    logger.warning("charges that a killed worker left on %d counters are made", len(left))
                orphan.forget()
            finally:
                orphan.close()

    async def _fall_ill(self, reason: str) -> None:
        """Refuse whoever waits, and leave the store alone for a while."""
        if not self._ill_until:
            logger.error("the store cannot be asked: %s", reason)
        self._ill_until = self._clock() + RETRY_SECONDS
        waiting, self._reservations = self._reservations, []
        for reservation in waiting:
            if not reservation.waiter.done():
                reservation.waiter.set_exception(StoreError(reason))
        if not self._closing:
            await asyncio.sleep(RETRY_SECONDS)
        self._wanted.set()


def _merge(totals: _Totals, changes: Iterable[Change]) -> None:
    for name, ends, amount in changes:
        total = totals.get(name)
        if total is None:
            totals[name] = [ends, amount]
        else:
            total[1] = max(-MOST, min(total[1] + amount, MOST))


def _changes(totals: _Totals) -> list[Change]:
    return [Change(name, ends, amount) for name, (ends, amount) in totals.items()]


def _reversed(changes: Iterable[Change]) -> list[Change]:
    return [change._replace(amount=-change.amount) for change in changes]


def _refuse(counters: Mapping[str, int]) -> bool:
    return False
