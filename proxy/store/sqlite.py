"""The store in one SQLite file, for all workers of one machine.

Facts
  - With synchronous=NORMAL a killed process loses nothing; a power cut may lose the last changes, but never
    the file (sqlite.org/wal.html).

Rules
  1. One call is one statement, committed by itself: a cancelled call leaves no transaction open, and an await
     costs one hop into the thread of `aiosqlite`.
  2. A connection that failed is closed, whatever it was: the next call has a new one.

Not here: when to ask (`ledger`), the file itself (`sqlite_file`).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import aiosqlite
import orjson

from proxy.ports import Change, Record, StoreError, Taken

from .sqlite_file import Database, Layout, check_version, identity

_BUSY = 2.0
"""How long to wait for other processes, in seconds."""

_KEPT = 86400
"""How long a counter is kept after its window's end, in seconds: for who still has to give back."""

_LAYOUT = Layout(
    version=1,
    settings="PRAGMA synchronous = NORMAL",
    schema="""
CREATE TABLE counters (name TEXT PRIMARY KEY, ends INTEGER NOT NULL, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE records (
    kind TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, digest BLOB UNIQUE, document TEXT NOT NULL,
    PRIMARY KEY (kind, id), UNIQUE (kind, name)
)
""",
)

# A row can hold a negative value, for a new one must tell the upsert by how much an old one changes. That is
# 0 wherever it is read. Both numbers of the sum are below 2**62, so that it is an integer still.
_ADD = """
INSERT INTO counters (name, ends, value) {rows}
ON CONFLICT (name) DO UPDATE
    SET value = min(4000000000000000000, max(0, value) + excluded.value), ends = excluded.ends
RETURNING name, max(0, value)
"""
_ROW = "(?, ?, min(4000000000000000000, ?))"
_JSON_ROWS = """
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'),
    min(4000000000000000000, json_extract(value, '$[2]'))
FROM json_each(?) WHERE true
"""
_MOST_ROWS = 100
"""Up to here each number of changes has a statement of its own, and `sqlite3` keeps 128 of them prepared."""

_READ = "SELECT name, max(0, value) FROM counters WHERE name IN (SELECT value FROM json_each(?))"

_PURGE = """
DELETE FROM counters WHERE name IN (
    SELECT name FROM counters WHERE name > ? AND ends < ? ORDER BY name LIMIT 1000
) RETURNING name
"""

_RECORD = "SELECT kind, id, name, digest, document FROM records WHERE"


class SqliteStore:
    """A `ports.Store`. `path` may be relative to the working directory of its first use."""

    def __init__(self, path: str) -> None:
        check_version()
        self._path = path
        self._db: aiosqlite.Connection | None = None
        self._file: tuple[int, int] | None = None
        """The device and the inode of what is open."""
        self._opening: asyncio.Task[aiosqlite.Connection] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<SqliteStore {self._path} {'closed' if self._db is None else 'open'}>"

    # The counters.

    async def add(self, changes: Sequence[Change]) -> list[int]:
        if not changes:
            return []
        parameters: Iterable[Any]
        if len(changes) <= _MOST_ROWS:
            rows = "VALUES " + ",".join([_ROW] * len(changes))
            parameters = tuple(chain.from_iterable(changes))
        else:
            rows = _JSON_ROWS
            parameters = (_json([tuple(change) for change in changes]),)
        values = dict(await self._ask(_ADD.format(rows=rows), parameters))
        return [values[change.name] for change in changes]

    async def read(self, names: Sequence[str]) -> list[int]:
        values = dict(await self._ask(_READ, (_json(names),)))
        return [values.get(name, 0) for name in names]

    async def purge(self, now: int) -> None:
        last: str | None = ""
        while last is not None:
            # A thousand at a time: nobody may wait for this longer than the busy timeout.
            gone = await self._ask(_PURGE, (last, now - _KEPT))
            last = max((name for (name,) in gone), default=None)

    # The records.

    async def find(self, digest: bytes) -> Record | None:
        return await self._one("digest = ?", digest)

    async def get(self, kind: str, id: str) -> Record | None:
        return await self._one("kind = ? AND id = ?", kind, id)

    async def named(self, kind: str, name: str) -> Record | None:
        return await self._one("kind = ? AND name = ?", kind, name)

    async def records(self, kind: str) -> list[Record]:
        rows = await self._ask(f"{_RECORD} kind = ? ORDER BY name", (kind,))
        return [Record(*row) for row in rows]

    async def create(self, record: Record) -> None:
        await self._ask(
            "INSERT INTO records (kind, id, name, digest, document) VALUES (?, ?, ?, ?, ?)", record
        )

    async def replace(self, record: Record, was: Record) -> bool:
        rows = await self._ask(
            "UPDATE records SET name = ?, digest = ?, document = ?"
            " WHERE kind = ? AND id = ? AND name = ? AND digest IS ? AND document = ? RETURNING id",
            (record.name, record.digest, record.document, *was[:2], was.name, was.digest, was.document),
        )
        return bool(rows)

    async def delete(self, kind: str, id: str) -> bool:
        return bool(await self._ask("DELETE FROM records WHERE kind = ? AND id = ? RETURNING id", (kind, id)))

    async def _one(self, where: str, *parameters: Any) -> Record | None:
        rows = await self._ask(f"{_RECORD} {where}", parameters)
        return Record(*rows[0]) if rows else None

    # The connection.

    async def close(self) -> None:
        self._closed = True
        if self._opening is not None:
            await asyncio.wait((self._opening,))
        if self._db is not None:
            await self._drop(self._db)

    async def _ask(self, statement: str, parameters: Iterable[Any]) -> list[Any]:
        """The rows of one statement, which is committed when this returns."""
        try:
            db = await self._connection()
            try:
                return list(await db.execute_fetchall(statement, parameters))
            except sqlite3.IntegrityError as error:
                raise Taken("the name or the digest is another record's") from error
            except sqlite3.Error:
                await self._drop(db)
                raise
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self._path}: {error}") from error

    async def _connection(self) -> aiosqlite.Connection:
        db = self._db
        # `identity`, in the event loop: it takes a microsecond, for the kernel has the inode of an open file.
        if db is not None and self._file is not None and self._file == identity(self._path):
            return db
        if self._closed:
            raise StoreError(f"{self._path}: the store is closed")
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(db))
        # Whoever is cancelled leaves it to the others and to `close`. A connection that nobody has would be a
        # thread that never ends.
        return await asyncio.shield(self._opening)

    async def _open(self, lost: aiosqlite.Connection | None) -> aiosqlite.Connection:
        try:
            if lost is not None:
                # Its file is gone, or another one is in its place: what went into it now would be lost.
                await self._drop(lost)
            failures: list[Exception] = []

            def database(path: str, **options: Any) -> sqlite3.Connection:
                try:
                    return Database(path, _LAYOUT, **options)
                except (sqlite3.Error, OSError) as error:
                    # Raised here, it would leave the thread of `aiosqlite` to end when it likes.
                    failures.append(error)
                    return sqlite3.connect(":memory:")

            db = await aiosqlite.connect(self._path, factory=database, timeout=_BUSY)
            if failures:
                await db.close()
                raise failures[0]
            self._db, self._file = db, identity(self._path)
            return db
        finally:
            self._opening = None

    async def _drop(self, db: aiosqlite.Connection) -> None:
        """Close a connection, once."""
        if self._db is db:
            self._db = None
            await db.close()


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
