"""A file of SQLite that several processes share: for its owner alone, and opened by one after the other.

Facts
  - In WAL mode readers and one writer do not wait for each other; writers wait up to the busy timeout
    (sqlite.org/wal.html).
  - WAL needs memory that all processes share: no network file system.
  - SQLite gives ``-wal`` and ``-shm`` the mode of the file and, as root, its owner.
  - Closing any descriptor of a file drops this process's locks on it (sqlite.org/howtocorrupt.html, 2.2).
  - RETURNING came with 3.35, and promises no order (sqlite.org/lang_returning.html).

Rules
  1. `_create` makes the file, with mode 0600, before SQLite opens it.

Not here: what is in it, and in which thread (`sqlite`, `sqlite_jobs`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from typing import Any, NamedTuple


class Layout(NamedTuple):
    """What is in a file."""

    version: int
    settings: str
    """Statements for each connection."""
    schema: str
    """Statements for a new file, within one transaction."""
    form: str = ""
    """Statements for a new file that must come before it has a page. Later they could wait for a writer."""


class Database(sqlite3.Connection):
    """A connection to the file, which is created where it is missing."""

    def __init__(self, path: str, layout: Layout, *, timeout: float, **options: Any) -> None:
        # What SQLite does too: its other two files are beside the file, not beside a link to it.
        path = os.path.realpath(path)
        with _alone(os.path.dirname(path), timeout):
            _create(path)
            super().__init__(path, timeout=timeout, isolation_level=None, **options)
            try:
                self._set_up(layout)
            except BaseException:
                self.close()
                raise

    def _set_up(self, layout: Layout) -> None:
        self.executescript(layout.settings)
        (pages,) = self.execute("PRAGMA page_count").fetchone()
        if pages == 0:
            self.executescript(layout.form)
        (mode,) = self.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise sqlite3.OperationalError("its file system has no shared memory, which WAL needs")
        (version,) = self.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self.executescript(
                f"BEGIN; {layout.schema}; PRAGMA user_version = {layout.version}; COMMIT;",
            )
        elif version != layout.version:
            raise sqlite3.DatabaseError(
                f"its schema is version {version}, and this program's {layout.version}"
            )


def check_version() -> None:
    """Raises RuntimeError when SQLite is too old."""
    if sqlite3.sqlite_version_info < (3, 35):
        raise RuntimeError(f"the store needs SQLite 3.35 or newer; this Python has {sqlite3.sqlite_version}")


def identity(path: str) -> tuple[int, int] | None:
    """The device and the inode of a file: another one may be in its place."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _alone(directory: str, timeout: float) -> Iterator[None]:
    """One process after the other opens files of a directory.

    SQLite does not wait for others where it switches to WAL: of two that do so at once, one would fail.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("another process keeps its directory locked") from None
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
