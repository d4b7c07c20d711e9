"""Jobs in one SQLite file, for all workers of one machine.

Facts
  - With synchronous=FULL a commit is on the disk: not even a power cut takes it back (sqlite.org/wal.html).
  - With secure_delete what is deleted is overwritten in the file (sqlite.org/pragma.html). In ``-wal`` it
    stays until the next `purge`, or for longer while others are using that.
  - Columns of a row that come before a large one can be read without it (sqlite.org/fileformat2.html, 1.6).
  - RETURNING gives a whole number of a REAL column as an integer.

Rules
  1. Bodies and heads are in tables of their own, so that no change of a job's state writes them again.

Not here: when to ask (`dispatcher`), transactions (`sqlite_thread`).
"""

from __future__ import annotations

import asyncio
import copy
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

import orjson

from proxy.job import Bounds, Claim, Delivery, Ending, Found, Held, Job, Lease, State

from .sqlite_file import Layout, check_version
from .sqlite_thread import SqliteThread

P = ParamSpec("P")
T = TypeVar("T")

_PURGED_ROWS = 500
_PURGED_BYTES = 64 * 1024 * 1024
"""So much goes in one transaction: nobody may wait for it as long as the busy timeout."""

_FREED_PAGES = _PURGED_BYTES // 4096
"""So many of the file's free pages each purge gives back to the disk."""

# `row` is one above the highest, so it tells the order of submission. `size` is that of the body that is
# there: the request's, then the result's. `begun` is the number of the lease under which it began, or 0.
_LAYOUT = Layout(
    version=1,
    settings=f"""
PRAGMA synchronous = FULL;
PRAGMA secure_delete = ON;
PRAGMA foreign_keys = ON;
PRAGMA wal_autocheckpoint = 1000;
PRAGMA journal_size_limit = {64 * 1024 * 1024};
""",
    form="PRAGMA auto_vacuum = INCREMENTAL",
    schema="""
CREATE TABLE jobs (
    row INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    operation TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending',
    created REAL NOT NULL,
    ttl INTEGER NOT NULL,
    webhook TEXT NOT NULL,
    size INTEGER NOT NULL,
    worker TEXT,
    number INTEGER NOT NULL DEFAULT 0,
    begun INTEGER NOT NULL DEFAULT 0,
    begins INTEGER NOT NULL DEFAULT 0,
    status INTEGER,
    packed INTEGER,
    completed REAL,
    expires REAL,
    due REAL,
    tries INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX waiting ON jobs (state, created, row, owner, size) WHERE state = 'pending';
CREATE INDEX running ON jobs (state, owner) WHERE state = 'processing';
CREATE INDEX held ON jobs (worker) WHERE state = 'processing';
CREATE INDEX expiring ON jobs (expires) WHERE expires IS NOT NULL;
CREATE INDEX telling ON jobs (due) WHERE due IS NOT NULL;
CREATE TABLE requests (
    row INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE, head BLOB NOT NULL, body BLOB NOT NULL
);
CREATE TABLE results (
    row INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE, head BLOB NOT NULL, body BLOB NOT NULL
);
CREATE TABLE workers (name TEXT PRIMARY KEY, beats INTEGER NOT NULL) WITHOUT ROWID
""",
)

_WAITING = """
SELECT count(*), count(*) FILTER (WHERE owner = ?), coalesce(sum(size), 0) FROM jobs WHERE state = 'pending'
"""

_SUBMIT = """
INSERT INTO jobs (id, owner, operation, created, ttl, webhook, size)
VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING row
"""

_CLAIM = """
UPDATE jobs SET state = 'processing', worker = ?, number = number + 1 WHERE row = (
    SELECT row FROM jobs WHERE state = 'pending' AND owner NOT IN (
        SELECT owner FROM jobs WHERE state = 'processing' GROUP BY owner HAVING count(*) >= ?
    ) ORDER BY created, row LIMIT 1
) RETURNING row
"""

_CLAIMED = """
SELECT number, id, owner, operation, created, ttl, webhook, head, body FROM jobs JOIN requests USING (row)
WHERE row = ?
"""

_KNOW = "INSERT INTO workers (name, beats) VALUES (?, 0) ON CONFLICT DO NOTHING"

_LEASED = "WHERE id = ? AND worker = ? AND number = ?"
"""In the order of a lease."""

_BEGIN = f"""
UPDATE jobs SET begins = begins + (begun != number), begun = number
{_LEASED} AND state = 'processing' RETURNING row
"""

_HAND_BACK = f"UPDATE jobs SET state = 'pending', begun = 0 {_LEASED} AND state = 'processing' RETURNING row"

_FINISH = f"""
UPDATE jobs SET state = ?, size = ?, status = ?, packed = ?, completed = ?, expires = ?,
    due = CASE WHEN webhook != '' THEN ? END
{_LEASED} AND state = 'processing' RETURNING row
"""

_FINISHED = f"SELECT 1 FROM jobs {_LEASED} AND expires IS NOT NULL"

_FOUND = """
SELECT id, owner, operation, state, created, status, head, body, packed, completed, expires
FROM jobs LEFT JOIN results USING (row)
"""

_PEEKED = _FOUND.replace(" body,", " x'' AS body,")

_LOOK, _PEEK = (f"{found} WHERE id = ? AND (expires IS NULL OR expires > ?)" for found in (_FOUND, _PEEKED))

_BEAT = "INSERT INTO workers (name, beats) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET beats = beats + 1"

_HELD = """
SELECT id, worker, number, operation, ttl, begun, begins FROM jobs
WHERE worker = ? AND state = 'processing' ORDER BY created, row
"""

_ADOPT = """
UPDATE jobs SET worker = ?, number = number + 1
WHERE worker = ? AND state = 'processing'
    AND EXISTS (SELECT 1 FROM workers WHERE name = ? AND beats = ?) RETURNING row
"""

_LEAVE = """
DELETE FROM workers
WHERE name = ? AND NOT EXISTS (SELECT 1 FROM jobs WHERE worker = ? AND state = 'processing')
"""

_EXPIRED = "SELECT row, size FROM jobs WHERE expires <= ? ORDER BY expires LIMIT ?"

_DUE = """
UPDATE jobs SET due = ?, tries = tries + 1 WHERE row = (
    SELECT row FROM jobs WHERE due <= ? AND expires > ? ORDER BY due LIMIT 1
) RETURNING row, webhook, tries
"""

# Who was late, and failed, does not make due what another has told meanwhile.
_TOLD = "UPDATE jobs SET due = ? WHERE id = ? AND due IS NOT NULL"


class SqliteJobs:
    """A `ports.JobStore`. `path` may be relative to the working directory of its first use."""

    def __init__(self, path: str) -> None:
        check_version()
        self._thread = SqliteThread(path, _LAYOUT)
        self._reader = SqliteThread(path, _LAYOUT)
        """For what only reads: it waits for no writer, here or in another process (sqlite.org/wal.html)."""
        self._urgent = False

    def urgently(self) -> SqliteJobs:
        other = copy.copy(self)
        other._urgent = True
        return other

    async def submit(self, job: Job, bounds: Bounds) -> str:
        return await self._write(_submit, job, bounds)

    async def claim(self, worker: str, most_of_owner: int) -> Claim | None:
        return await self._write(_claim, worker, most_of_owner)

    async def begin(self, lease: Lease) -> bool:
        return await self._write(_change, _BEGIN, lease)

    async def hand_back(self, lease: Lease) -> bool:
        return await self._write(_change, _HAND_BACK, lease)

    async def finish(self, lease: Lease, ending: Ending) -> bool:
        return await self._write(_finish, lease, ending)

    async def peek(self, id: str, now: float) -> Found | None:
        return await self._read(_look, _PEEK, id, now)

    async def look(self, id: str, now: float) -> Found | None:
        return await self._read(_look, _LOOK, id, now)

    async def remove(self, id: str) -> State | None:
        return await self._write(_remove, id)

    async def beat(self, worker: str) -> Mapping[str, int]:
        return await self._write(_beat, worker)

    async def held(self, worker: str) -> list[Held]:
        return await self._read(_held, worker)

    async def adopt(self, worker: str, dead: str, beat: int) -> None:
        await self._write(_adopt, worker, dead, beat)

    async def leave(self, worker: str) -> None:
        await self._write(_rows, _LEAVE, worker, worker)

    async def pending(self) -> int:
        return await self._read(_pending)

    async def purge(self, now: float) -> bool:
        try:
            return await self._write(_purge, now)
        finally:
            # It needs no room on the disk, and makes some.
            await self._thread.tidy(_FREED_PAGES)

    async def due(self, now: float, again: float) -> Delivery | None:
        return await self._write(_due, now, again)

    async def told(self, id: str, again: float | None) -> None:
        await self._write(_rows, _TOLD, again, id)

    async def close(self) -> None:
        await asyncio.gather(self._reader.close(), self._thread.close())

    async def _read(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **named: P.kwargs
    ) -> T:
        return await self._reader.ask(lambda db: work(db, *args, **named), urgent=self._urgent, writes=False)

    async def _write(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **named: P.kwargs
    ) -> T:
        return await self._thread.ask(lambda db: work(db, *args, **named), urgent=self._urgent, writes=True)


# What is done in the thread, each within a transaction.


def _rows(db: sqlite3.Connection, statement: str, *parameters: Any) -> list[Any]:
    """All rows at once: a statement that is not done keeps a transaction open."""
    return db.execute(statement, parameters).fetchall()


def _submit(db: sqlite3.Connection, job: Job, bounds: Bounds) -> str:
    if _rows(db, "SELECT 1 FROM jobs WHERE id = ?", job.id):
        # It was kept, and the answer was lost.
        return ""
    ((jobs, jobs_of_owner, size),) = _rows(db, _WAITING, job.owner)
    after = Bounds(jobs + 1, jobs_of_owner + 1, size + len(job.body))
    for name, value, most in zip(Bounds._fields, after, bounds, strict=True):
        if value > most:
            return name
    about = (job.id, job.owner, job.operation, job.created, job.ttl, job.webhook, len(job.body))
    ((row,),) = _rows(db, _SUBMIT, *about)
    _rows(db, "INSERT INTO requests (row, head, body) VALUES (?, ?, ?)", row, job.head, job.body)
    return ""


def _claim(db: sqlite3.Connection, worker: str, most_of_owner: int) -> Claim | None:
    claimed = _rows(db, _CLAIM, worker, most_of_owner)
    if not claimed:
        return None
    _rows(db, _KNOW, worker)
    ((number, *about),) = _rows(db, _CLAIMED, *claimed[0])
    job = Job(*about)
    return Claim(Lease(job.id, worker, number), job)


def _change(db: sqlite3.Connection, statement: str, lease: Lease) -> bool:
    return bool(_rows(db, statement, *lease))


def _finish(db: sqlite3.Connection, lease: Lease, ending: Ending) -> bool:
    state = State.FAILED if ending.failed else State.COMPLETED
    about = (state.value, len(ending.body), ending.status, ending.packed, ending.completed, ending.expires)
    for (row,) in _rows(db, _FINISH, *about, ending.completed, *lease):
        _rows(db, "DELETE FROM requests WHERE row = ?", row)
        _rows(db, "INSERT INTO results (row, head, body) VALUES (?, ?, ?)", row, ending.head, ending.body)
        return True
    # It was kept, and the answer was lost.
    return bool(_rows(db, _FINISHED, *lease))


def _look(db: sqlite3.Connection, statement: str, id: str, now: float) -> Found | None:
    for row in _rows(db, statement, id, now):
        return _found(*row)
    return None


def _found(
    id: str,
    owner: str,
    operation: str,
    state: str,
    created: float,
    status: int,
    head: bytes | None,
    body: bytes,
    packed: int,
    completed: float,
    expires: float,
) -> Found:
    ending = None
    if head is not None:
        failed = State(state) is State.FAILED
        ending = Ending(failed, status, head, body, bool(packed), completed, expires)
    return Found(id, owner, operation, State(state), created, ending)


def _remove(db: sqlite3.Connection, id: str) -> State | None:
    for (state,) in _rows(db, "DELETE FROM jobs WHERE id = ? RETURNING state", id):
        return State(state)
    return None


def _beat(db: sqlite3.Connection, worker: str) -> Mapping[str, int]:
    _rows(db, _BEAT, worker)
    return dict(_rows(db, "SELECT name, beats FROM workers"))


def _held(db: sqlite3.Connection, worker: str) -> list[Held]:
    return [
        Held(Lease(id, holder, number), operation, ttl, bool(begun), begins)
        for id, holder, number, operation, ttl, begun, begins in _rows(db, _HELD, worker)
    ]


def _adopt(db: sqlite3.Connection, worker: str, dead: str, beat: int) -> None:
    if _rows(db, _ADOPT, worker, dead, dead, beat):
        _rows(db, _KNOW, worker)


def _pending(db: sqlite3.Connection) -> int:
    ((count,),) = _rows(db, "SELECT count(*) FROM jobs WHERE state = 'pending'")
    return int(count)


def _purge(db: sqlite3.Connection, now: float) -> bool:
    expired = _rows(db, _EXPIRED, now, _PURGED_ROWS)
    gone: list[int] = []
    size = 0
    for row, result in expired:
        gone.append(row)
        size += result
        if size > _PURGED_BYTES:
            break
    _rows(db, "DELETE FROM jobs WHERE row IN (SELECT value FROM json_each(?))", orjson.dumps(gone).decode())
    return len(gone) < len(expired) or len(gone) == _PURGED_ROWS


def _due(db: sqlite3.Connection, now: float, again: float) -> Delivery | None:
    for row, webhook, tries in _rows(db, _DUE, again, now, now):
        (found,) = _rows(db, f"{_PEEKED} WHERE row = ?", row)
        return Delivery(webhook, _found(*found), tries)
    return None
