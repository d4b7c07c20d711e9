"""The store in one SQLite file, for all workers of one machine.

Facts
  - In WAL mode readers and one writer do not wait for each other; writers wait up to the busy timeout
    (sqlite.org/wal.html). With synchronous=NORMAL a killed process loses nothing; a power cut may lose the
    last changes, but never the file.
  - WAL needs memory that all processes share: no network file system.
  - SQLite gives ``-wal`` and ``-shm`` the mode of the file and, as root, its owner.
  - Closing any descriptor of a file drops this process's locks on it (sqlite.org/howtocorrupt.html, 2.2).
  - RETURNING came with 3.35, and promises no order (sqlite.org/lang_returning.html).

Rules
  1. One call is one statement, committed by itself: a cancelled call leaves no transaction open, and an await
     costs one hop into the thread of `aiosqlite`.
  2. `_create` makes the file, with mode 0600, before SQLite opens it.
  3. A connection that failed is closed, whatever it was: the next call has a new one.

Not here: when to ask (`ledger`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import aiosqlite
import orjson

from proxy.ports import Change, Record, StoreError, Taken

_BUSY = 2.0
"""How long to wait for other processes, in seconds."""

_KEPT = 86400
"""How long a counter is kept after its window's end, in seconds: for who still has to give back."""

_VERSION = 1
_SCHEMA = f"""
BEGIN;
CREATE TABLE counters (name TEXT PRIMARY KEY, ends INTEGER NOT NULL, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE records (
    kind TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, digest BLOB UNIQUE, document TEXT NOT NULL,
    PRIMARY KEY (kind, id), UNIQUE (kind, name)
);
PRAGMA user_version = {_VERSION};
COMMIT;
"""

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
        if sqlite3.sqlite_version_info < (3, 35):
            raise RuntimeError(
                f"the store needs SQLite 3.35 or newer; this Python has {sqlite3.sqlite_version}"
            )
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
        if db is not None and self._file is not None and self._file == _file(self._path):
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

            def database(path: str, *arguments: Any, **options: Any) -> sqlite3.Connection:
                try:
                    return _Database(path, *arguments, **options)
                except (sqlite3.Error, OSError) as error:
                    # Raised here, it would leave the thread of `aiosqlite` to end when it likes.
                    failures.append(error)
                    return sqlite3.connect(":memory:")

            db = await aiosqlite.connect(self._path, factory=database, timeout=_BUSY, isolation_level=None)
            if failures:
                await db.close()
                raise failures[0]
            self._db, self._file = db, _file(self._path)
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


def _file(path: str) -> tuple[int, int] | None:
    # At each call, in the event loop: it takes a microsecond, for the kernel has the inode of an open file.
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class _Database(sqlite3.Connection):
    """The file, created where it is missing. `aiosqlite` makes this in its own thread."""

    def __init__(self, path: str, **options: Any) -> None:
        # What SQLite does too: its other two files are beside the file, not beside a link to it.
        path = os.path.realpath(path)
        with _alone(os.path.dirname(path)):
            _create(path)
            super().__init__(path, **options)
            try:
                self._set_up()
            except BaseException:
                self.close()
                raise

    def _set_up(self) -> None:
        self.execute("PRAGMA synchronous = NORMAL")
        (mode,) = self.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise sqlite3.OperationalError("its file system has no shared memory, which WAL needs")
        (version,) = self.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self.executescript(_SCHEMA)
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"its schema is version {version}, and this program's {_VERSION}")


@contextlib.contextmanager
def _alone(directory: str) -> Iterator[None]:
    """One process after the other opens files of a directory.

    SQLite does not wait for others where it switches to WAL: of two that do so at once, one would fail.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + _BUSY
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _create(path: str) -> None:
    """An empty file for its owner alone, where there is none.

    Root gives it to the owner of the directory, so that the service, which is not root, can open it.
    """
    if os.path.lexists(path):
        # Not even opened: see the facts.
        return
    for left in (f"{path}-wal", f"{path}-shm"):
        # They belong to a file that was removed, and whoever has that open still uses them.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(left)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        if os.geteuid() == 0:
            owner = os.stat(os.path.dirname(path))
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)
