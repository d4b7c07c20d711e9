"""The journal: charges that the store has not taken yet, in a file of this worker.

Facts
  - What is written to a mapped file (mmap(2)) outlives a killed process. It costs no system call, and nothing
    needs to be flushed for that; only the machine's own end may lose it.
  - A lock (flock(2)) ends with the process that holds it, however it ends.

Rules
  1. One file per worker, locked while the worker lives, beside the store's file or in ``$STATE_DIRECTORY``.
  2. A record is one line of JSON: a number, the changes, and whether it stands for all before it. A record is
     there once its first byte is: before, a reader sees a NUL, and stops.
  3. The file has two halves. When one is nearly full, the other begins with a record that stands for all
     before it, and the full one is emptied.
  4. Who starts reads the files that nobody holds, and removes them when they are settled.

Not here: what numbers and changes mean (`ledger`).
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

SUFFIX = ".unsettled"

HALF = 524288
"""Bytes in one half of the file."""

Entries = Iterable[tuple[str, int, int]]
"""Changes, as `ports.Change`."""

logger = logging.getLogger(__name__)


class Journal:
    """The journal of this worker; without a directory it keeps nothing."""

    def __init__(self, directory: Path | None, store: str = "") -> None:
        """`store` tells the journals of one store from those of another in the same directory."""
        self.id = secrets.token_hex(8)
        self._suffix = f".{hashlib.sha256(store.encode()).hexdigest()[:8]}{SUFFIX}"
        self._path = directory / (self.id + self._suffix) if directory is not None else None
        self._file: int | None = None
        self._memory: mmap.mmap | None = None
        self._end = 0
        """Where the next record begins."""
        self._limit = HALF
        """The end of the half in use."""
        self._failed = False

    @property
    def kept(self) -> str:
        """Where the charges are, for a person; empty when they are nowhere."""
        return f"kept in {self._path} for the next start" if self._memory is not None else ""

    @property
    def is_long(self) -> bool:
        """Whether it is time to begin anew with what is left."""
        return self._end > self._limit - HALF // 2

    def write(self, number: int, changes: Entries) -> None:
        """Add a record."""
        self._write(number, changes, stands_for_all=False)

    def renew(self, left: Iterable[tuple[int, Entries]]) -> None:
        """All is settled but these records, which are in the order of their numbers."""
        if self._memory is None:
            return
        full = self._limit - HALF
        self._end = HALF - full
        self._limit = self._end + HALF
        self._failed = False
        for place, (number, changes) in enumerate(left):
            self._write(number, changes, stands_for_all=not place)
        self._memory[full : full + HALF] = bytes(HALF)

    def orphans(self) -> Iterator[Orphan]:
        """The journals that nobody holds any more; each is to be closed."""
        for path in sorted(self._path.parent.glob("*" + self._suffix)) if self._path is not None else ():
            try:
                file = _locked(path, 0)
            except OSError:
                # Its worker lives, or another one has just settled it.
                continue
            yield Orphan(path, file)

    def close(self, *, keep: bool) -> None:
        """Let go; the file goes too unless its records are still to be settled."""
        memory, self._memory = self._memory, None
        file, self._file = self._file, None
        if memory is not None:
            memory.close()
        if file is not None:
            if self._path is not None and memory is not None and not keep:
                self._path.unlink()
            os.close(file)

    def _write(self, number: int, changes: Entries, *, stands_for_all: bool) -> None:
        if self._path is None or (self._memory is None and not self._begin(self._path)):
            return
        line = orjson.dumps((number, list(map(tuple, changes)), stands_for_all)) + b"\n"
        end = self._end + len(line)
        if self._memory is None or end >= self._limit:
            # The charge itself goes its way.
            self._fail("it is full")
            return
        self._memory[self._end + 1 : end] = line[1:]
        self._memory[self._end] = line[0]
        self._end = end

    def _begin(self, path: Path) -> bool:
        # It gets its name when it is locked: nobody may take it for one that was left behind.
        hidden = path.with_suffix(".new")
        try:
            file = _locked(hidden, os.O_CREAT | os.O_EXCL)
        except OSError as error:
            self._fail(str(error.strerror))
            return False
        try:
            # A page for which the disk has no room would end the process when it is written.
            os.posix_fallocate(file, 0, 2 * HALF)
            self._memory = mmap.mmap(file, 2 * HALF)
            hidden.rename(path)
        except OSError as error:
            self._fail(str(error.strerror))
            hidden.unlink()
            os.close(file)
            return False
        self._file = file
        return True

    def _fail(self, reason: str) -> None:
        if not self._failed:
            logger.error("the journal cannot be written, a killed worker would forget charges: %s", reason)
        self._failed = True


class Orphan:
    """The journal of a worker that was killed."""

    def __init__(self, path: Path, file: int) -> None:
        self.id = path.name.partition(".")[0]
        self._path = path
        self._file = file

    def records(self) -> list[tuple[int, list[tuple[str, int, int]]]]:
        """Number and changes of each record that counts, in their order."""
        data = self._path.read_bytes()
        halves = (data[start : start + HALF].partition(b"\0")[0] for start in (0, HALF))
        records = [orjson.loads(line) for half in halves for line in half.split(b"\n")[:-1]]
        begin = max((number for number, _, stands_for_all in records if stands_for_all), default=0)
        return sorted(
            (number, changes)
            for number, changes, stands_for_all in records
            if number > begin or (stands_for_all and number == begin)
        )

    def forget(self) -> None:
        self._path.unlink()

    def set_aside(self) -> str:
        """Let nobody take it for a journal any more; returns its new name."""
        return self._path.rename(self._path.with_suffix(".unreadable")).name

    def close(self) -> None:
        os.close(self._file)


def _locked(path: Path, flags: int) -> int:
    """The file opened and locked. Raises OSError when another process holds it."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it before may have removed it between the two calls.
        if os.fstat(file).st_nlink == 0:
            raise FileNotFoundError(path)
    except OSError:
        os.close(file)
        raise
    return file
