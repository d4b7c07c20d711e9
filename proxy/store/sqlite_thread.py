"""A thread in which transactions of a SQLite file are done, one after the other.

Facts
  - A transaction that reads before it writes must be IMMEDIATE: a deferred one fails where another process
    has written meanwhile, and no busy timeout helps (sqlite.org/lang_transaction.html).
  - What was deleted stays in ``-wal`` until that is overwritten or emptied.
  - `aiosqlite`, which counters use, awaits between two statements: whoever is cancelled there would leave a
    transaction open. A counter's call is one statement.

Rules
  1. One call is one function, and one transaction. Once begun it runs to its end: whoever is cancelled leaves
     nothing open, and of its call all is done or nothing.
  2. A connection that failed is closed, whatever it was: the next call has a new one.
  3. Who is urgent goes before all others that wait.

Not here: the file (`sqlite_file`), what is done with it (`sqlite_jobs`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from proxy.ports import StoreError

from .sqlite_file import Database, Layout, identity

T = TypeVar("T")

_Call = tuple[concurrent.futures.Future[Any], float, Callable[[sqlite3.Connection], Any]]
"""Where its answer goes, the latest moment at which it may begin, and what is to be done."""

_BUSY = 5.0
"""How long to wait for other processes, in seconds."""

_PATIENCE = 5.0
"""How long a call may wait for its turn, in seconds: while none gets through, all of them fail in time."""


class SqliteThread:
    """The thread, and the one connection in it. It begins, and opens the file, when it is first asked."""

    def __init__(self, path: str, layout: Layout) -> None:
        self._path = path
        self._layout = layout
        self._db: Database | None = None
        self._file: tuple[int, int] | None = None
        """The device and the inode of what is open."""
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "sqlite")
        # By whether they are urgent. The executor is told of each call, and takes whose turn it is then.
        self._calls: dict[bool, deque[_Call]] = {True: deque(), False: deque()}
        self._closing: concurrent.futures.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<SqliteThread {self._path} {'closed' if self._db is None else 'open'}>"

    async def ask(self, work: Callable[[sqlite3.Connection], T], *, urgent: bool, writes: bool) -> T:
        """What `work` returns, which sees one state of the file.

        Where it `writes`, what it has changed is committed; if it raises, it has changed nothing.
        """
        begin = "BEGIN IMMEDIATE" if writes else "BEGIN"
        return await self._ask(lambda db: _transaction(db, begin, lambda: work(db)), urgent)

    async def tidy(self, pages: int) -> None:
        """Give so many free pages back to the disk, and empty ``-wal``, unless somebody is using it."""
        statements = f"""
            PRAGMA incremental_vacuum({pages});
            -- It would keep all others from writing while it waits.
            PRAGMA busy_timeout = 0;
            PRAGMA wal_checkpoint(TRUNCATE);
            PRAGMA busy_timeout = {int(_BUSY * 1000)};
        """
        # A script, for `execute` would free one page only. It is no transaction, but each statement is one.
        await self._ask(lambda db: db.executescript(statements), urgent=False)

    async def close(self) -> None:
        """Answer those who have asked, then close the file and end."""
        if self._closing is None:
            self._closing = self._executor.submit(self._drop)
            self._executor.shutdown(wait=False)
        # Also for whoever is cancelled here.
        await asyncio.shield(asyncio.wrap_future(self._closing))

    async def _ask(self, work: Callable[[sqlite3.Connection], T], urgent: bool) -> T:
        if self._closing is not None:
            raise StoreError(f"{self._path}: the store is closed")
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._calls[urgent].append((future, time.monotonic() + _PATIENCE, work))
        self._executor.submit(self._turn)
        try:
            return await asyncio.wrap_future(future)
        finally:
            # A failure's traceback has this frame and that of `_turn`, and the future has the failure: that
            # would be a cycle, and what was to be done may hold a large body.
            del future

    def _turn(self) -> None:
        future, latest, work = (self._calls[True] or self._calls[False]).popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(self._do(latest, work))
        except BaseException as failure:
            future.set_exception(failure)
        finally:
            del future

    def _do(self, latest: float, work: Callable[[sqlite3.Connection], T]) -> T:
        """One call, in the thread."""
        if time.monotonic() > latest:
            raise StoreError(f"{self._path}: no turn within {_PATIENCE:g} s")
        try:
            try:
                return self._try(work)
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorname", "") != "SQLITE_FULL":
                    raise
                # What deletes must not need room: without overwriting, and with what -wal gives back.
                return self._try(work, "PRAGMA wal_checkpoint(TRUNCATE); PRAGMA secure_delete = OFF")
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self._path}: {error}") from error

    def _try(self, work: Callable[[sqlite3.Connection], T], settings: str = "") -> T:
        """What `work` returns. A connection with other settings is for this only."""
        try:
            db = self._connection()
            if settings:
                db.executescript(settings)
            answer = work(db)
        except BaseException:
            # This rolls back.
            self._drop()
            raise
        if settings:
            self._drop()
        return answer

    def _connection(self) -> sqlite3.Connection:
        if self._db is not None and (self._file is None or self._file != identity(self._path)):
            # Its file is gone, or another one is in its place: what went into it now would be lost.
            self._drop()
        if self._db is None:
            self._db = Database(self._path, self._layout, timeout=_BUSY)
            self._file = identity(self._path)
        return self._db

    def _drop(self) -> None:
        """Close the connection, if there is one."""
        db, self._db = self._db, None
        if db is not None:
            db.close()


def _transaction(db: sqlite3.Connection, begin: str, work: Callable[[], T]) -> T:
    db.execute(begin)
    answer = work()
    db.execute("COMMIT")
    return answer
