"""Jobs in SQLite: what is in the file, what a call costs, and what may happen to the file.

Not here: what is the same over Redis (`test_job_store`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from job_stores import (
    AMPLE,
    AT_ONCE,
    ENDED,
    EXPIRES,
    LONG,
    NOW,
    SUBMITTER,
    WORKER,
    Opened,
    Spawn,
    SqliteBackend,
    all_claims,
    begun,
    claimed,
    ended,
    ending,
    everything,
    filled,
    finished,
    job,
    last_steps,
    line,
    next_steps,
    opened,
    refused,
    spawn,
    submitted,
    tell,
    there,
)

from proxy.job import State
from proxy.ports import JobStore, StoreError
from proxy.store import open_jobs
from proxy.store.sqlite_jobs import SqliteJobs

__all__ = ["opened", "spawn"]

MIB = 1024 * 1024

FOREVER = 1e12

LOCKER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1].removeprefix("sqlite:") + "-jobs", isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
"""
"""Somebody who keeps all others from writing until a line comes."""

READER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1].removeprefix("sqlite:") + "-jobs", isolation_level=None)
db.execute("BEGIN")
db.execute("SELECT count(*) FROM jobs").fetchall()
print("reading", flush=True)
sys.stdin.readline()
"""
"""Somebody who goes on seeing what is there now, until a line comes; a backup does so."""


@pytest.fixture
def file(tmp_path: Path) -> SqliteBackend:
    return SqliteBackend(tmp_path)


@pytest.fixture
def store(file: SqliteBackend, opened: Opened) -> SqliteJobs:
    store = opened(file)
    assert isinstance(store, SqliteJobs)
    return store


async def inside(store: SqliteJobs, look: Callable[[sqlite3.Connection], Any]) -> Any:
    """What is seen in the thread that writes."""
    return await store._thread.ask(look, urgent=False, writes=False)


async def in_both(store: SqliteJobs, look: Callable[[sqlite3.Connection], Any]) -> list[Any]:
    """What is seen in the thread that writes, and in the one that only reads."""
    threads = (store._thread, store._reader)
    return [await thread.ask(look, urgent=False, writes=False) for thread in threads]


def listing(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def access(path: Path) -> tuple[str, int, int]:
    """Mode, owner and group, as ls shows them."""
    status = path.stat()
    return stat.filemode(status.st_mode), status.st_uid, status.st_gid


def overdue(file: SqliteBackend, count: int, size: int = 100, expires: float = EXPIRES) -> None:
    """Put jobs into the file that are over."""
    with contextlib.closing(sqlite3.connect(file.path)) as db, db:
        for _ in range(count):
            (row,) = db.execute(
                "INSERT INTO jobs (id, owner, operation, state, created, ttl, webhook, size, status, packed,"
                " completed, expires) VALUES (hex(randomblob(16)), 'dev', '/', 'completed', ?, 60, '', ?,"
                " 200, 0, ?, ?) RETURNING row",
                (NOW, size, ENDED, expires),
            ).fetchone()
            db.execute("INSERT INTO results (row, head, body) VALUES (?, x'7b7d', zeroblob(?))", (row, size))


# The file.


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_the_files_are_for_their_owner_alone(
    file: SqliteBackend, opened: Opened, tmp_path: Path, umask: int
) -> None:
    """Beside the state's, whatever the umask; what root creates belongs to whoever has the directory."""
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, 54321)
    before = os.umask(umask)
    try:
        await submitted(opened(file), job())
    finally:
        os.umask(before)
    _, *owner = access(tmp_path)
    assert listing(tmp_path) == file.files
    for path in file.files:
        assert access(path) == ("-rw-------", *owner)


async def test_a_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the directory in which the worker runs, also one that SQLite would understand in another way."""
    monkeypatch.chdir(tmp_path)
    for name in ("state.db", "file:x", "a b?c#d%41"):
        store = open_jobs(f"sqlite:{name}")
        await submitted(store, job())
        await store.close()
        assert (tmp_path / f"{name}-jobs").stat().st_size > 0


async def test_one_file_is_left_when_all_have_closed(file: SqliteBackend, opened: Opened) -> None:
    """What can be copied by itself."""
    first, second = opened(file), opened(file)
    await submitted(first, job("a"))
    await submitted(second, job("b"))
    await first.close()
    assert [path.exists() for path in file.files] == [True, True, True]
    await second.close()
    assert [path.exists() for path in file.files] == [True, False, False]
    assert file.look("SELECT id FROM jobs ORDER BY id") == [("a",), ("b",)]


async def test_a_thread_begins_with_the_first_call(file: SqliteBackend, opened: Opened) -> None:
    """One for all that changes something, one for all that only reads; whoever asks nothing has none."""
    before = set(threading.enumerate())
    store = opened(file)
    assert set(threading.enumerate()) == before
    await filled(store, (job(f"j{number}") for number in range(AT_ONCE)))
    assert len(set(threading.enumerate()) - before) == 1
    await asyncio.gather(*(store.look(f"j{number}", NOW) for number in range(AT_ONCE)))
    await store.urgently().beat("w1")
    assert len(set(threading.enumerate()) - before) == 2


async def test_settings(store: SqliteJobs) -> None:
    """A commit is on the disk, what is deleted is overwritten, and neither file grows for ever."""
    await submitted(store, job())
    names = {
        "journal_mode": "wal",
        "synchronous": 2,
        "secure_delete": 1,
        "foreign_keys": 1,
        "auto_vacuum": 2,
        "busy_timeout": 5000,
        "wal_autocheckpoint": 1000,
        "journal_size_limit": 64 * MIB,
    }
    for _ in range(2):
        for name, value in names.items():
            read = f"PRAGMA {name}"
            seen = await in_both(store, lambda db, read=read: db.execute(read).fetchone())
            assert seen == [(value,), (value,)]
        # It changes the timeout for a moment.
        await store.purge(0.0)


async def test_too_old(file: SqliteBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start says so, not the first job."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(RuntimeError, match=r"SQLite 3\.35"):
        open_jobs(file.url)


# What a call costs.


async def every_call(store: JobStore) -> None:
    """Each call, with something to do, and with nothing."""
    for call in everything(store):
        await call
    await store.beat("w1")
    assert await store.submit(job("full"), AMPLE._replace(jobs=0)) == "jobs"
    lease = await begun(store, "a", webhook="hook")
    assert await store.hand_back(lease)
    lease = there(await store.claim("w1", 10)).lease
    await store.adopt("w2", "w1", 1)
    (held,) = await store.held("w2")
    assert await store.finish(held.lease, ending())
    assert await store.finish(held.lease, ending())
    assert await store.pending() == 0
    assert await store.due(ENDED, ENDED + 10) is not None
    await store.told("a", ENDED + 20)
    await store.told("a", None)
    assert await store.look("a", ENDED) is not None
    assert await store.peek("a", ENDED) is not None
    assert await store.remove("a") is not None
    await store.leave("w1")
    await store.leave("w2")


async def test_no_statement_reads_all_jobs(file: SqliteBackend, store: SqliteJobs) -> None:
    """Every one that any call makes finds its rows by an index, and so does all that follows from it."""
    statements: list[str] = []
    await in_both(store, lambda db: db.set_trace_callback(statements.append))
    await every_call(store)
    await finished(store, "b")
    await store.purge(FOREVER)
    await in_both(store, lambda db: db.set_trace_callback(None))
    plans = {
        statement: [detail for *_, detail in file.look(f"EXPLAIN QUERY PLAN {statement}")]
        for statement in statements
        if statement.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE")
    }
    assert len(plans) > 30
    # One row for each worker.
    plans.pop("SELECT name, beats FROM workers")
    scans = {
        statement: plan
        for statement, plan in plans.items()
        if any(detail.startswith("SCAN") and "json_each" not in detail for detail in plan)
    }
    assert scans == {}
    details = {detail for plan in plans.values() for detail in plan}
    # All that is done for each job that waits is done in the index.
    assert "SEARCH jobs USING COVERING INDEX waiting (state=?)" in details
    assert "SEARCH jobs USING INDEX waiting (state=?)" not in details
    for index in ("running", "held", "expiring", "telling"):
        assert any(f" INDEX {index} (" in detail for detail in details)


@contextlib.asynccontextmanager
async def counted(store: SqliteJobs) -> Any:
    """A list that has as many elements as SQLite has made steps."""
    steps: list[int] = []

    def step() -> int:
        steps.append(1)
        return 0

    await in_both(store, lambda db: db.set_progress_handler(step, 1))
    steps.clear()
    yield steps
    await in_both(store, lambda db: db.set_progress_handler(None, 1))


async def test_results_that_are_kept_cost_nothing(file: SqliteBackend, store: SqliteJobs) -> None:
    """All calls together take as many steps among thousands of jobs that are over as among none."""
    await every_call(store)
    async with counted(store) as steps:
        await every_call(store)
    alone = len(steps)
    overdue(file, 3000)
    async with counted(store) as steps:
        await every_call(store)
    assert alone > 500
    assert len(steps) <= alone * 1.05


async def test_a_claim_past_a_thousand_jobs_is_cheap(store: SqliteJobs) -> None:
    """A dozen steps for each job of who has enough in processing; they are all in one index."""
    await claimed(store, "first")
    await filled(store, (job(f"j{number}", created=NOW + number) for number in range(1000)))
    await submitted(store, job("other", owner="other", created=FOREVER))
    async with counted(store) as steps:
        assert there(await store.claim("w1", 1)).job.id == "other"
    assert 1000 < len(steps) < 12_000


async def test_no_change_of_state_writes_a_body_again(file: SqliteBackend, store: SqliteJobs) -> None:
    """Nor its head: they are written when the job comes, and read when it is claimed."""
    await submitted(store, job("a", head=os.urandom(MIB), body=os.urandom(8 * MIB)))
    await store.purge(0.0)
    lease = there(await store.claim("w1", 10)).lease
    for _ in range(3):
        assert await store.begin(lease)
        await store.adopt("w2", "w1", 0)
        (held,) = await store.held("w2")
        assert await store.hand_back(held.lease)
        lease = there(await store.claim("w1", 10)).lease
    assert 0 < file.files[2].stat().st_size < 256 * 1024


async def test_whoever_polls_reads_no_request(store: SqliteJobs) -> None:
    """And whoever peeks, and a worker that asks what it holds or whom it is to tell, reads no body at all."""
    await finished(store, "over", webhook="hook")
    await claimed(store, "held")
    await submitted(store, job("waits"))
    statements: list[str] = []
    await in_both(store, lambda db: db.set_trace_callback(statements.append))
    for id in ("waits", "held", "over"):
        assert await store.look(id, ENDED) is not None
    assert not any("requests" in statement for statement in statements)
    assert any("body" in statement for statement in statements)
    statements.clear()
    for id in ("waits", "held", "over"):
        assert await store.peek(id, ENDED) is not None
    assert len(await store.held("w1")) == 1
    assert await store.due(ENDED, FOREVER) is not None
    assert not any("body" in statement.replace("x'' AS body", "") for statement in statements)
    await in_both(store, lambda db: db.set_trace_callback(None))


async def test_who_polls_waits_for_no_writer(store: SqliteJobs, file: SqliteBackend) -> None:
    """Nor for a process that stands still in the middle of a write, as one that is stopped there does."""
    await finished(store, "over")
    with contextlib.closing(sqlite3.connect(file.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.ensure_future(store.beat("w1"))
        async with asyncio.timeout(2):
            assert await store.look("over", ENDED) is not None
            assert await store.held("w1") == []
        assert not waiting.done()
        other.execute("ROLLBACK")
    assert await waiting == {"w1": 1}


async def test_what_is_urgent_is_next(store: SqliteJobs) -> None:
    """After the one call that is under way, whoever else came before; and in the order of its own."""
    loop, began, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def hold(db: sqlite3.Connection) -> bool:
        loop.call_soon_threadsafe(began.set)
        return go_on.wait(LONG)

    order: list[str] = []

    async def ask(name: str, call: Awaitable[object]) -> None:
        await call
        order.append(name)

    urgent = store.urgently()
    holding = asyncio.create_task(inside(store, hold))
    await began.wait()
    names = [*(f"normal{number}" for number in range(5)), *(f"urgent{number}" for number in range(5))]
    calls = [
        asyncio.create_task(ask(name, (urgent if name.startswith("urgent") else store).beat("w1")))
        for name in names
    ]
    calls.append(asyncio.create_task(ask("given up", urgent.submit(job(), AMPLE))))
    await asyncio.sleep(0)
    # Nothing is done for who has given up.
    for gone in (1, 7, -1):
        calls[gone].cancel()
    await asyncio.sleep(0)
    go_on.set()
    assert await holding is True
    await asyncio.wait(calls)
    assert await store.pending() == 0
    assert order == ["urgent0", "urgent1", "urgent3", "urgent4", "normal0", "normal2", "normal3", "normal4"]


async def test_a_call_that_failed_keeps_nothing(file: SqliteBackend, store: SqliteJobs) -> None:
    """Its job may be large: nothing holds that until the next collection of garbage."""
    await file.fail()
    large = job("a", body=bytes(MIB))
    gc.disable()
    try:
        before = sys.getrefcount(large)
        for _ in range(3):
            with contextlib.suppress(StoreError):
                await store.submit(large, AMPLE)
        # When its last call is done its thread may have a line to go.
        await store.close()
        assert sys.getrefcount(large) == before
    finally:
        gc.enable()
    await file.recover()


# What goes.


def raw(directory: Path) -> bytes:
    """All bytes of all files."""
    return b"".join(path.read_bytes() for path in sorted(directory.iterdir()))


@pytest.mark.parametrize("size", [10, 1000, 20_000])
async def test_of_a_request_that_is_over_no_byte_is_left(
    file: SqliteBackend, store: SqliteJobs, tmp_path: Path, size: int
) -> None:
    """In no file, after the next purge, whether it ended or was removed; of others nothing is lost."""
    secrets = [b"HEAD-SECRET", b"BODY-SECRET"]
    some = {"head": secrets[0] * size, "body": secrets[1] * size}
    await submitted(store, job("first"), job("a", **some), job("b", **some), job("c", **some), job("last"))
    assert await store.remove("b") is State.PENDING
    assert there(await store.claim("w1", 10)).job.id == "first"
    lease = there(await store.claim("w1", 10)).lease
    assert await store.finish(lease, ending(b"ANSWER" * size))
    lease = there(await store.claim("w1", 10)).lease
    assert await store.hand_back(lease)
    assert await store.remove("c") is State.PENDING
    assert all(secret in raw(tmp_path) for secret in secrets)
    await store.purge(ENDED)
    left = raw(tmp_path)
    assert not any(secret in left for secret in secrets)
    assert b"ANSWER" * min(size, 10) in left
    assert there(await store.claim("w1", 10)).job == job("last")
    await store.purge(EXPIRES)
    assert b"ANSWER" not in raw(tmp_path)


async def test_a_purge_is_bounded(file: SqliteBackend, store: SqliteJobs) -> None:
    """By 500 jobs; who goes on until there are no more has purged all, the oldest first."""
    await store.pending()
    overdue(file, 700)
    overdue(file, 600, expires=EXPIRES - 10)
    left = []
    while await store.purge(EXPIRES):
        left.append(file.look("SELECT count(*), count(*) FILTER (WHERE expires < 4600) FROM jobs")[0])
    assert left == [(800, 100), (300, 0)]
    for table in ("jobs", "results"):
        assert file.look(f"SELECT count(*) FROM {table}") == [(0,)]


async def test_a_purge_is_bounded_by_size(file: SqliteBackend, store: SqliteJobs) -> None:
    """Nobody may wait for it long; a job that is larger than the bound goes too."""
    await store.pending()
    overdue(file, 4, size=24 * MIB)
    overdue(file, 1, size=65 * MIB, expires=EXPIRES - 1)
    left = []
    while await store.purge(EXPIRES):
        left += file.look("SELECT count(*) FROM jobs")[0]
    assert left == [4, 1]
    assert file.look("SELECT count(*) FROM results") == [(0,)]


async def test_the_disk_gets_its_room_back(file: SqliteBackend, store: SqliteJobs) -> None:
    """As much as was purged, whatever is left between."""
    for number in range(20):
        await finished(store, f"j{number}", ending(os.urandom(MIB), expires=EXPIRES + number % 2))
    assert file.path.stat().st_size > 19 * MIB
    assert await store.purge(EXPIRES) is False
    assert file.path.stat().st_size < 11 * MIB
    assert file.files[2].stat().st_size == 0
    assert there(await store.look("j1", EXPIRES)).state is State.COMPLETED
    assert await store.purge(EXPIRES + 1) is False
    assert file.path.stat().st_size < MIB
    assert file.look("PRAGMA integrity_check") == [("ok",)]


async def test_a_purge_waits_for_no_reader(
    file: SqliteBackend, store: SqliteJobs, spawn: Spawn, machine: Callable[[], float]
) -> None:
    """What it cannot tidy up while somebody makes a backup, it does the next time."""
    await submitted(store, job())
    reader = await spawn(READER, file)
    assert await line(reader) == "reading"
    await submitted(store, job("b"))
    begun_at = time.monotonic()
    assert await store.purge(FOREVER) is False
    assert time.monotonic() - begun_at < 4 + machine()
    await submitted(store, job("c"))
    assert file.files[2].stat().st_size > 0
    await tell(reader)
    await ended(reader)
    assert await store.purge(FOREVER) is False
    assert file.files[2].stat().st_size == 0


# What may happen.


async def test_another_writer_is_waited_for_but_not_for_ever(
    file: SqliteBackend, store: SqliteJobs, spawn: Spawn, machine: Callable[[], float]
) -> None:
    """While it stays every change is a `StoreError` in bounded time, however many ask; polls are answered."""
    await submitted(store, job("a"))
    locker = await spawn(LOCKER, file)
    assert await line(locker) == "locked"
    assert there(await store.look("a", NOW)).state is State.PENDING
    begun_at = time.monotonic()
    reasons = await asyncio.gather(
        *(refused(store.submit(job(f"j{number}"), AMPLE)) for number in range(AT_ONCE))
    )
    assert 4 < time.monotonic() - begun_at < 20 + machine()
    assert "locked" in reasons[0]
    assert set(reasons[3:]) == {f"{file.path}: no turn within 5 s"}
    waiting = asyncio.create_task(store.submit(job("b"), AMPLE))
    assert there(await opened_look(file, "a")).state is State.PENDING
    await tell(locker)
    await ended(locker)
    assert await waiting == ""
    assert [claim.job.id for claim in await all_claims(store)] == ["a", "b"]


async def opened_look(file: SqliteBackend, id: str) -> Any:
    """What another worker finds."""
    other = open_jobs(file.url)
    try:
        return await other.look(id, NOW)
    finally:
        await other.close()


async def test_a_full_disk(file: SqliteBackend, store: SqliteJobs) -> None:
    """Whatever the step at which nothing fits any more: a `StoreError`; with room again all goes on."""
    # Nothing that this process writes gets larger than so.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    failures = 0
    kept: set[str] = set()
    for room in (0, 1, 4096, 30_000, 60_000, 100_000, 200_000, 300_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            for number in range(20):
                try:
                    id = f"{room}-{number}"
                    await store.submit(job(id, body=os.urandom(10_000)), AMPLE)
                    kept.add(id)
                    lease = there(await store.claim("w1", 100_000)).lease
                    assert await store.begin(lease)
                    assert await store.finish(lease, ending(os.urandom(10_000)))
                    await store.remove(lease.id)
                    kept.discard(lease.id)
                except StoreError:
                    failures += 1
                    break
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await finished(store, f"after-{room}", created=0.0)
        assert await store.remove(f"after-{room}") is State.COMPLETED
    assert failures >= 4
    # Of each call that failed nobody knows.
    there_are = {id for (id,) in file.look("SELECT id FROM jobs")}
    assert len(there_are ^ kept) <= failures
    assert file.look("PRAGMA integrity_check") == [("ok",)]
    assert file.look("PRAGMA foreign_key_check") == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[None]:
    """Until the test ends no file of this process grows beyond 2 MiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_disk")
async def test_a_full_disk_can_be_emptied(file: SqliteBackend, store: SqliteJobs) -> None:
    """What is purged or removed makes room, without anybody's help."""
    with contextlib.suppress(StoreError):
        for number in range(1000):
            await finished(store, f"j{number}", ending(os.urandom(20_000), expires=EXPIRES + number % 2))
    assert number < 200
    count = len(file.look("SELECT id FROM jobs WHERE state = 'completed'"))
    assert count > 20
    while await store.purge(EXPIRES):
        pass
    for claim in await all_claims(store, "w2"):
        await store.remove(claim.job.id)
    for held in await store.held("w1"):
        await store.remove(held.lease.id)
    for number in range(10):
        await finished(store, f"again{number}", ending(os.urandom(20_000)))


async def test_what_removes_needs_no_room(store: SqliteJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing fits any more it is tried once without overwriting, and for this call only."""
    await submitted(store, *(job(f"j{number}", body=os.urandom(20_000)) for number in range(20)))
    await store.purge(0.0)
    connect = store._thread._connection
    pages = await inside(store, lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    rooms: list[int] = []

    def full() -> sqlite3.Connection:
        db = connect()
        db.execute(f"PRAGMA max_page_count = {pages + rooms.pop(0)}")
        return db

    def overwrites(db: sqlite3.Connection) -> bool:
        return bool(db.execute("PRAGMA secure_delete").fetchone()[0])

    def work(db: sqlite3.Connection) -> bool:
        db.execute("INSERT INTO results (row, head, body) VALUES (1, x'', zeroblob(100000))")
        db.execute("DELETE FROM results WHERE row = 1")
        return overwrites(db)

    with monkeypatch.context() as patched:
        patched.setattr(store._thread, "_connection", full)
        rooms += [0, 0, 0]
        assert "full" in await refused(store.submit(job("more", body=bytes(100_000)), AMPLE))
        assert await inside(store, overwrites) is True
        rooms += [0, 1000, 0]
        assert await store._thread.ask(work, urgent=False, writes=True) is False
        assert await inside(store, overwrites) is True
        rooms += [0, 0]
        assert await store.remove("j1") is State.PENDING
        assert await store.submit(job("more", body=bytes(16_000)), AMPLE) == ""
        assert rooms == []
    await submitted(store, job("again", body=bytes(100_000)))


async def test_what_is_no_database(file: SqliteBackend, store: SqliteJobs) -> None:
    """It is not touched; when it is taken away the store works."""
    junk = b"not a database" * 1000
    file.path.write_bytes(junk)
    for call in everything(store):
        assert await refused(call) == f"{file.path}: file is not a database"
    assert file.path.read_bytes() == junk
    file.path.unlink()
    await finished(store)


async def test_of_a_newer_program(file: SqliteBackend, opened: Opened) -> None:
    """What another version wrote is left alone."""
    store = opened(file)
    await submitted(store, job())
    await store.close()
    file.look("PRAGMA user_version = 2")
    newer = opened(file)
    for call in everything(newer):
        assert "its schema is version 2, and this program's 1" in await refused(call)
    assert file.look("SELECT id FROM jobs") == [("a",)]
    file.look("PRAGMA user_version = 1")
    assert there(await newer.claim("w1", 10)).job == job()


async def test_a_file_that_is_damaged(file: SqliteBackend, store: SqliteJobs) -> None:
    """A `StoreError`; when the file is in order again the same store works."""
    await filled(store, (job(f"j{number}", body=os.urandom(4000)) for number in range(50)))
    file.look("PRAGMA wal_checkpoint(TRUNCATE)")
    sound = file.path.read_bytes()
    with file.path.open("r+b") as damaged:
        damaged.write(b"\xff" * len(sound))
    await refused(store.claim("w1", 10))
    await refused(store.look("j1", NOW))
    with file.path.open("r+b") as mended:
        mended.write(sound)
    assert len(await all_claims(store)) == 50


async def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    """It is not created, for it would have no owner; when it is there the store works."""
    store = open_jobs(f"sqlite:{tmp_path}/missing/state.db")
    assert "No such file or directory" in await refused(store.pending())
    (tmp_path / "missing").mkdir()
    await finished(store)
    await store.close()


@pytest.mark.parametrize("ends", ["-jobs", "", "-wal", "-shm"])
async def test_a_file_that_is_removed_underneath(file: SqliteBackend, opened: Opened, ends: str) -> None:
    """Alone or with what belongs to it: all workers go over to one new file, without a failing call."""
    stores = [opened(file) for _ in range(3)]
    for number, store in enumerate(stores):
        await submitted(store, job(f"old{number}"))
    for path in file.files:
        if path == file.path or path.name.endswith(ends):
            path.unlink()
    for number, store in enumerate(stores * 3):
        await submitted(store, job(f"new{number}"))
    assert [claim.job.id for claim in await all_claims(stores[1])] == [f"new{number}" for number in range(9)]
    assert file.look("PRAGMA integrity_check") == [("ok",)]


async def test_a_file_that_is_replaced_underneath(
    file: SqliteBackend, opened: Opened, tmp_path: Path
) -> None:
    """By a copy that somebody put back: it is taken up, and what the other one had is not mixed in."""
    (tmp_path / "other").mkdir()
    other = SqliteBackend(tmp_path / "other")
    first = opened(other)
    await submitted(first, job("copied"))
    await first.close()
    store = opened(file)
    await submitted(store, job("lost"))
    for path in file.files:
        path.unlink()
    other.path.rename(file.path)
    assert [claim.job.id for claim in await all_claims(store)] == ["copied"]


async def test_it_begins_once_however_many_begin(file: SqliteBackend, opened: Opened, spawn: Spawn) -> None:
    """Four processes find no file at the same moment, and then one that all the others have left."""
    store = opened(file)
    for round_ in range(3):
        workers = [await spawn(SUBMITTER, file, f"{round_}-{number}", 5) for number in range(4)]
        for worker in workers:
            assert await line(worker) == "ready"
        for worker in workers:
            await tell(worker)
        told = [id for worker in workers for id in await ended(worker)]
        assert sorted(claim.job.id for claim in await all_claims(store)) == sorted(told)
        await store.close()
        assert file.look("PRAGMA integrity_check") == [("ok",)]
        file.path.unlink()
        assert not any(path.exists() for path in file.files)
        store = opened(file)


async def test_killed_in_the_middle_it_leaves_a_sound_file(
    file: SqliteBackend, store: SqliteJobs, spawn: Spawn
) -> None:
    """Four workers, one after the other killed while all do jobs and others purge."""
    await filled(store, (job(f"j{number}", body=os.urandom(5000)) for number in range(800)))
    workers = [await spawn(WORKER, file, f"w{number}") for number in range(4)]
    for worker in workers:
        assert await line(worker) == "ready"
        await tell(worker)
    told = set()
    for worker in workers:
        first = await next_steps(worker, 60)
        await store.purge(ENDED)
        told.update(id for step, id in first + await last_steps(worker) if step == "finished")
    over = {id for (id,) in file.look("SELECT id FROM jobs WHERE state = 'completed'")}
    assert told <= over
    assert len(over - told) <= 4
    assert file.look("SELECT count(*) FROM jobs") == [(800,)]
    assert file.look("SELECT count(*) FROM requests") == [(800 - len(over),)]
    assert file.look("SELECT count(*) FROM results") == [(len(over),)]
    assert file.look("PRAGMA integrity_check") == [("ok",)]
    assert file.look("PRAGMA foreign_key_check") == []
