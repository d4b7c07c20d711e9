"""The store: counters and records, the same over SQLite and over Redis, whatever fails meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import resource
import socket
import sqlite3
import ssl
import stat
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Protocol

import pytest
import trustme
from rawclient import PATIENCE
from redis_server import RedisServer, Relay
from running import LogText
from secrecy import overhear

from proxy.ports import Change, Record, Store, StoreError, Taken
from proxy.store import open_store

LONG = 30.0
"""More than the longest wait of a store, for a slow machine."""

BILLION = 10**18
"""More than a float can tell from its neighbours: a million dollars."""

MOST = 4 * BILLION

PASSWORD = "sk-test-redis"

ADDER = """
import asyncio, os, sys, time
from proxy.ports import Change
from proxy.store import open_store

async def main(url, count, *names):
    store = open_store(url, os.environ.get("PASSWORD"))
    print("ready", flush=True)
    ends = int(time.time()) + 3600
    try:
        for _ in sys.stdin:
            for _ in range(int(count)):
                print(*await store.add([Change(name, ends, 1) for name in names]), flush=True)
    finally:
        await store.close()

asyncio.run(main(*sys.argv[1:]))
"""
"""A worker that for each line adds 1 to each counter, so often, and prints each answer."""

LOCKER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1].removeprefix("sqlite:"), isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
"""
"""Somebody who keeps all others from writing until a line comes."""

Process = asyncio.subprocess.Process
Spawn = Callable[..., Awaitable[Process]]


class Backend(Protocol):
    """A place where a store can be, which a test can break."""

    url: str
    password: str | None

    async def fail(self) -> None: ...

    async def recover(self) -> None: ...


class SqliteBackend:
    """A file. It fails as a file does for root as well: a directory stands in its place."""

    password = None

    def __init__(self, directory: Path) -> None:
        self.path = directory / "state.db"
        self.url = f"sqlite:{self.path}"

    async def fail(self) -> None:
        if self.path.exists():
            self.path.rename(self.path.with_suffix(".away"))
        self.path.mkdir()

    async def recover(self) -> None:
        self.path.rmdir()
        away = self.path.with_suffix(".away")
        if away.exists():
            away.rename(self.path)


class RedisBackend:
    """A server. It fails by SIGKILL."""

    password = PASSWORD

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.url = server.url

    async def fail(self) -> None:
        await self.server.kill()

    async def recover(self) -> None:
        await self.server.start()


Opened = Callable[..., Store]


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A server without a password."""
    server = RedisServer(tmp_path)
    await server.start()
    yield server
    await server.kill()


@pytest.fixture(params=["sqlite", "redis"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    if request.param == "sqlite":
        yield SqliteBackend(tmp_path)
        return
    server = RedisServer(tmp_path, password=PASSWORD)
    await server.start()
    yield RedisBackend(server)
    await server.kill()


@pytest.fixture
async def opened() -> AsyncIterator[Opened]:
    """Opens stores, and closes them after the test: `opened(url)`."""
    stores: list[Store] = []

    def start(url: str, password: str | None = None) -> Store:
        store = open_store(url, password)
        stores.append(store)
        return store

    before = set(threading.enumerate())
    yield start
    for store in stores:
        await store.close()
    assert left_behind(before) == []


@pytest.fixture
async def store(backend: Backend, opened: Opened) -> Store:
    return opened(backend.url, backend.password)


@pytest.fixture
async def spawn() -> AsyncIterator[Spawn]:
    """Starts Python programs for a backend; what a failed test leaves running is killed."""
    processes: list[Process] = []

    async def start(program: str, backend: Backend, *arguments: object) -> Process:
        password = {} if backend.password is None else {"PASSWORD": backend.password}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, backend.url, *map(str, arguments)),
            env={**os.environ, **password},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        overhear(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def left_behind(before: set[threading.Thread]) -> list[threading.Thread]:
    """Threads that were begun, do not end, and would keep the process from it."""
    begun = {thread for thread in set(threading.enumerate()) - before if not thread.daemon}
    for thread in begun:
        # It has told the loop that it is done, and is on its last line.
        thread.join(PATIENCE)
    return [thread for thread in begun if thread.is_alive()]


def changes(*named: tuple[str, int]) -> list[Change]:
    """Changes of counters whose windows end within the hour."""
    ends = int(time.time()) + 3600
    return [Change(name, ends, amount) for name, amount in named]


def record(
    name: str = "dev", *, kind: str = "virtual_key", id: str = "id-1", value: str = "sk-test"
) -> Record:
    digest = hashlib.sha256(value.encode()).digest() if kind == "virtual_key" else None
    return Record(kind, id, name, digest, f'{{"spec": "{name}"}}')


async def line(process: Process) -> str:
    """The next line that a process prints; it is empty at the end."""
    assert process.stdout is not None
    async with asyncio.timeout(LONG):
        return (await process.stdout.readline()).decode().rstrip()


async def tell(process: Process) -> None:
    """Give a process the line that it waits for."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    await process.stdin.drain()


async def ended(process: Process) -> list[str]:
    """What a process printed until its end, a good one, which comes when it is told nothing more."""
    async with asyncio.timeout(2 * LONG):
        printed, complaints = await process.communicate(b"")
    assert process.returncode == 0, complaints.decode()
    return printed.decode().splitlines()


async def refused(call: Awaitable[object]) -> str:
    """What the `StoreError` says with which a call ends."""
    async with asyncio.timeout(LONG):
        with pytest.raises(StoreError) as caught:
            await call
    assert "sk-test" not in str(caught.value)
    return str(caught.value)


# Counters.


async def test_a_counter_begins_at_nothing_and_adds_up(store: Store) -> None:
    """Each answer is the sum of all changes so far."""
    assert await store.read(["a"]) == [0]
    assert await store.add(changes(("a", 5))) == [5]
    assert await store.add(changes(("a", 7))) == [12]
    assert await store.read(["a"]) == [12]


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 11_000])
async def test_values_come_in_the_order_of_the_changes(store: Store, count: int) -> None:
    """However many there are, and whatever order the names have."""
    names = sorted((f"counter/{number}" for number in range(count)), key=lambda name: name[::-1])
    first = [(name, 10 + index) for index, name in enumerate(names)]
    assert await store.add(changes(*first)) == [amount for _, amount in first]
    assert await store.add(changes(*reversed(first))) == [2 * amount for _, amount in reversed(first)]
    assert await store.read(names) == [2 * amount for _, amount in first]


async def test_nothing_is_asked_for_nothing(store: Store) -> None:
    """No changes have no values."""
    assert await store.add([]) == []
    assert await store.read([]) == []


async def test_a_change_by_zero_only_asks(store: Store) -> None:
    """It answers as the others do, for counters that are there and for those that are not."""
    await store.add(changes(("there", 3)))
    assert await store.add(changes(("missing", 0), ("there", 0))) == [0, 3]
    assert await store.read(["missing", "there"]) == [0, 3]


async def test_a_negative_change_gives_back(store: Store) -> None:
    """What was reserved and not used is free again."""
    assert await store.add(changes(("a", 100))) == [100]
    assert await store.add(changes(("a", -30))) == [70]
    assert await store.add(changes(("a", -70))) == [0]
    assert await store.add(changes(("a", 1))) == [1]


async def test_no_value_is_below_zero(store: Store) -> None:
    """Who gives back what nobody took does not get a credit shown."""
    assert await store.add(changes(("new", -5), ("old", 3))) == [0, 3]
    assert await store.add(changes(("old", -4))) == [0]
    assert await store.read(["new", "old"]) == [0, 0]


async def test_large_values_are_exact(store: Store) -> None:
    """A million dollars in pico-dollars, to the last one, in whatever number of changes."""
    assert await store.add(changes(("a", BILLION - 1))) == [BILLION - 1]
    assert await store.add(changes(("a", 2))) == [BILLION + 1]
    assert await store.add(changes(("a", BILLION))) == [2 * BILLION + 1]
    assert await store.add(changes(("a", -BILLION))) == [BILLION + 1]
    assert await store.read(["a"]) == [BILLION + 1]
    many = changes(*((f"m{number}", BILLION + number) for number in range(200)))
    assert await store.add(many) == [BILLION + number for number in range(200)]
    assert await store.add(many) == [2 * (BILLION + number) for number in range(200)]


async def test_names_are_kept_apart(store: Store) -> None:
    """By case, by spaces, by what other languages mean by their signs."""
    names = ["a", "A", "a ", "a/b", "a'b", 'a"b', "a:b", "a%b", "a*", "ä", "日本", "🔑", "\\", "[1]"]
    await store.add(changes(*((name, 1 << index) for index, name in enumerate(names))))
    assert await store.read(names) == [1 << index for index in range(len(names))]


async def test_what_is_no_text_is_the_callers_fault(store: Store) -> None:
    """Half a surrogate pair: that is no `StoreError`, for the store is well, and serves who comes next."""
    with pytest.raises(UnicodeEncodeError):
        await store.add(changes(("\ud800", 1), ("a", 1)))
    with pytest.raises((UnicodeEncodeError, TypeError)):
        await store.create(record("\ud800"))
    assert await store.read(["a"]) == [0]
    assert await store.records("virtual_key") == []


async def test_many_calls_at_once_are_all_counted(store: Store) -> None:
    """In one worker; each answer is another number."""
    answers = await asyncio.gather(*(store.add(changes(("a", 1), (f"b{n}", n))) for n in range(200)))
    assert sorted(total for total, _ in answers) == list(range(1, 201))
    assert [own for _, own in answers] == list(range(200))


async def test_others_see_all_changes_of_a_call_or_none(backend: Backend, opened: Opened) -> None:
    """Whoever reads meanwhile, and however many changes there are."""
    writer, reader = (opened(backend.url, backend.password) for _ in range(2))
    batch = changes(*((f"counter/{number}", 1) for number in range(5000)))
    ends = [batch[0].name, batch[-1].name]
    writing = asyncio.gather(*(writer.add(batch) for _ in range(5)))
    seen = set()
    while not writing.done():
        seen.add(tuple(await reader.read(ends)))
    assert seen <= {(count, count) for count in range(6)}
    assert len(seen) > 1
    assert sorted(await writing) == [[count] * 5000 for count in range(1, 6)]


async def test_four_workers_lose_nothing(backend: Backend, store: Store, spawn: Spawn) -> None:
    """Four processes begin at once, with a store that nobody has used yet, and add 500 times each."""
    workers = [await spawn(ADDER, backend, 500, "shared", f"own{number}") for number in range(4)]
    for worker in workers:
        assert await line(worker) == "ready"
    for worker in workers:
        await tell(worker)
    answers = [[tuple(map(int, text.split())) for text in await ended(worker)] for worker in workers]
    assert sorted(shared for worker in answers for shared, _ in worker) == list(range(1, 2001))
    assert [[own for _, own in worker] for worker in answers] == [list(range(1, 501))] * 4
    assert await store.read(["shared", "own0", "own1", "own2", "own3"]) == [2000, 500, 500, 500, 500]


async def test_a_killed_worker_takes_nothing_with_it(backend: Backend, store: Store, spawn: Spawn) -> None:
    """What it was told is there; what it was not told was done as a whole or not at all."""
    names = [f"n{number}" for number in range(20)]
    for seen in (1, 40, 80):
        before = (await store.read(names))[0]
        worker = await spawn(ADDER, backend, 100_000, *names)
        await line(worker)
        await tell(worker)
        for _ in range(seen):
            last = await line(worker)
        worker.kill()
        printed, _ = await worker.communicate()
        lines = [text for text in printed.decode().splitlines(keepends=True) if text.endswith("\n")]
        told = int(([last, *lines])[-1].split()[0])
        values = await store.read(names)
        assert told >= before + seen
        assert values in ([told] * 20, [told + 1] * 20)


async def test_ended_windows_are_forgotten(store: Store) -> None:
    """Not at once: whoever reserved in one may still have to give back."""
    now = int(time.time())
    hour, day = 3600, 86400
    ages = {"now": -hour, "hour": hour, "day": day - hour, "two": 2 * day, "month": 30 * day}
    await store.add([Change(name, now - ago, 1) for name, ago in ages.items()])
    await store.purge(now)
    assert await store.read(list(ages)) == [1, 1, 1, 0, 0]


async def test_the_last_change_says_when_the_window_ends(store: Store) -> None:
    """A row that is used goes on; its end moves with it."""
    now = int(time.time())
    await store.add([Change("moves", now - 85000, 1), Change("ends", now + 3600, 1)])
    await store.add([Change("moves", now + 3600, 1), Change("ends", now - 90000, 1)])
    await store.purge(now)
    assert await store.read(["moves", "ends"]) == [2, 0]


# Records.


async def test_a_record_is_found_by_all_that_it_is_known_by(store: Store) -> None:
    """By id, by name, and a virtual key by its digest; nobody else is."""
    key, team = record("dev"), record("dev", kind="team", id="t-1")
    assert key.digest is not None
    await store.create(key)
    await store.create(team)
    assert await store.get("virtual_key", "id-1") == key
    assert await store.named("virtual_key", "dev") == key
    assert await store.find(key.digest) == key
    assert await store.get("team", "t-1") == await store.named("team", "dev") == team
    assert await store.get("team", "id-1") is None
    assert await store.get("virtual_key", "dev") is None
    assert await store.named("customer", "dev") is None
    assert await store.named("virtual_key", "DEV") is None
    assert await store.find(bytes(32)) is None


async def test_records_come_by_name(store: Store) -> None:
    """All of a kind, whole, and no others."""
    names = ["b", "a", "B", "ä", "z", "a b"]
    keys = [record(name, id=f"id-{index}", value=name) for index, name in enumerate(names)]
    for key in keys:
        await store.create(key)
    teams = [record("c", kind="team", id="t-1"), record("d", kind="team", id="t-2")]
    for team in teams:
        await store.create(team)
    assert await store.records("virtual_key") == sorted(keys, key=lambda key: key.name)
    assert await store.records("team") == teams
    assert await store.records("customer") == []


async def test_a_record_comes_back_as_it_went(store: Store) -> None:
    """Every byte and sign, and a megabyte of them."""
    digest = bytes(range(32))
    odd = 'it\'s "quoted" \\ %s {x} ? \t\n\r\x7f ä 日本 🔑 \u2028 ]]'
    for index, document in enumerate([odd, "", odd * 20_000]):
        kept = Record("virtual_key", f"{odd}{index}", f"{odd}{index}", digest, document)
        await store.create(kept)
        assert await store.find(digest) == kept
        assert await store.get("virtual_key", kept.id) == await store.named("virtual_key", kept.name) == kept
        assert await store.records("virtual_key") == [kept]
        assert await store.delete("virtual_key", kept.id)


async def test_a_replaced_record_is_known_by_its_new_self(store: Store) -> None:
    """Its old name and its old digest lead nowhere, and are free."""
    old = record("old", value="sk-test-old")
    new = record("new", value="sk-test-new")
    assert old.digest is not None
    assert new.digest is not None
    await store.create(old)
    assert await store.replace(new, old) is True
    assert await store.get("virtual_key", "id-1") == new
    assert await store.named("virtual_key", "new") == await store.find(new.digest) == new
    assert await store.named("virtual_key", "old") is None
    assert await store.find(old.digest) is None
    await store.create(old._replace(id="id-2"))
    assert await store.find(old.digest) == old._replace(id="id-2")
    # Only the document changes.
    assert await store.replace(new._replace(document="{}"), new) is True
    assert await store.find(new.digest) == new._replace(document="{}")


@pytest.mark.parametrize("other", ["name", "digest", "document"])
async def test_what_another_has_changed_is_not_replaced(store: Store, other: str) -> None:
    """Who has seen an older version is told so: a rotation and a revocation never undo each other."""
    seen = record("old", value="sk-test-old")
    await store.create(seen)
    changes = {"name": "else", "digest": hashlib.sha256(b"sk-test-else").digest(), "document": "{}"}
    now = seen._replace(**{other: changes[other]})
    assert await store.replace(now, seen) is True
    assert await store.replace(seen._replace(document="[]"), seen) is False
    assert await store.get("virtual_key", "id-1") == now


async def test_what_is_not_there_is_not_replaced(store: Store) -> None:
    """A record that somebody deleted does not come back."""
    assert await store.replace(record(), record()) is False
    assert await store.records("virtual_key") == []


async def test_a_deleted_record_is_gone(store: Store) -> None:
    """By whatever it was known; its name and its digest are free."""
    key = record()
    assert key.digest is not None
    assert await store.delete("virtual_key", "id-1") is False
    await store.create(key)
    assert await store.delete("team", "id-1") is False
    assert await store.delete("virtual_key", "id-1") is True
    assert await store.delete("virtual_key", "id-1") is False
    assert await store.get("virtual_key", "id-1") is None
    assert await store.named("virtual_key", "dev") is None
    assert await store.find(key.digest) is None
    await store.create(key._replace(id="id-2"))


@pytest.mark.parametrize(
    "second",
    [
        record("dev", id="id-2", value="sk-test-2"),
        record("ops", id="id-2"),
        record("ops", id="id-1", value="sk-test-2"),
    ],
    ids=["name", "digest", "id"],
)
async def test_what_is_taken_is_not_created(store: Store, second: Record) -> None:
    """A name, a digest, an id; the first record stays as it is, and nothing is left of the second."""
    await store.create(record())
    with pytest.raises(Taken) as caught:
        await store.create(second)
    assert "sk-test" not in str(caught.value)
    assert await store.records("virtual_key") == [record()]
    # What of it was free is free still.
    await store.create(record("ops", id="id-2", value="sk-test-2"))


@pytest.mark.parametrize("second", [record("ops", value="sk-test"), record("dev", value="sk-test-ops")])
async def test_a_record_cannot_become_another(store: Store, second: Record) -> None:
    """Its name and its digest may change, but not into those of another; then nothing changes."""
    ops = record("ops", id="id-2", value="sk-test-ops")
    await store.create(record())
    await store.create(ops)
    with pytest.raises(Taken):
        await store.replace(second._replace(document="new"), record())
    assert await store.records("virtual_key") == [record(), ops]
    assert ops.digest is not None
    assert await store.find(ops.digest) == ops


async def test_of_two_with_one_name_one_is_created(backend: Backend, opened: Opened) -> None:
    """Whoever is first, and however close the other."""
    stores = [opened(backend.url, backend.password) for _ in range(2)]
    for round_ in range(20):
        rivals = [
            record(f"n{round_}", id=f"id-{round_}-{number}", value=f"sk-test-{round_}-{number}")
            for number in range(6)
        ]
        calls = (one.create(rival) for rival, one in zip(rivals, itertools.cycle(stores), strict=False))
        results = await asyncio.gather(*calls, return_exceptions=True)
        winners = [rival for rival, result in zip(rivals, results, strict=True) if result is None]
        assert len(winners) == 1
        assert sum(isinstance(result, Taken) for result in results) == 5
        assert await stores[0].named("virtual_key", f"n{round_}") == winners[0]
    assert len(await stores[1].records("virtual_key")) == 20


async def test_whoever_deletes_while_others_replace_has_the_last_word(
    backend: Backend, opened: Opened
) -> None:
    """Each record is deleted once, and nothing of it is left, whatever came before or after."""
    stores = [opened(backend.url, backend.password) for _ in range(3)]
    for round_ in range(20):
        key = record(f"n{round_}", value=f"sk-test-{round_}")
        await stores[0].create(key)
        results = await asyncio.gather(
            stores[0].replace(key._replace(name=f"m{round_}"), key),
            stores[1].delete("virtual_key", "id-1"),
            stores[2].delete("virtual_key", "id-1"),
            stores[0].replace(key._replace(document="late"), key),
        )
        assert sorted(results[1:3]) == [False, True]
        assert key.digest is not None
        assert await stores[0].find(key.digest) is None
        assert await stores[0].named("virtual_key", f"m{round_}") is None
    assert await stores[0].records("virtual_key") == []


# Connecting, failing, recovering.


async def test_all_is_there_when_it_is_opened_again(backend: Backend, opened: Opened) -> None:
    """By the same worker after a restart, or by another."""
    first = opened(backend.url, backend.password)
    await first.add(changes(("a", 41)))
    await first.create(record())
    await first.close()
    for _ in range(2):
        again = opened(backend.url, backend.password)
        assert await again.add(changes(("a", 1))) in ([42], [43])
        assert await again.records("virtual_key") == [record()]
        await again.close()
    await backend.fail()
    await backend.recover()
    assert await opened(backend.url, backend.password).read(["a"]) == [43]


async def test_a_store_is_made_without_touching_anything(backend: Backend, opened: Opened) -> None:
    """It connects when it is first asked, so a worker starts whatever the store is like."""
    await backend.fail()
    store = opened(backend.url, backend.password)
    await refused(store.add(changes(("a", 1))))
    await refused(store.records("virtual_key"))
    await backend.recover()
    assert await store.add(changes(("a", 1))) == [1]


async def test_a_store_that_failed_recovers_by_itself(backend: Backend, store: Store) -> None:
    """While it is away every call is a `StoreError`; when it is back it has all that was answered."""
    for round_ in range(1, 4):
        assert await store.add(changes(("a", 10))) == [round_ * 10]
        await store.create(record(f"n{round_}", id=f"id-{round_}", value=f"sk-test-{round_}"))
        await backend.fail()
        for call in everything(store):
            await refused(call)
        await backend.recover()
        # Nothing had to be told that it is back.
        assert await store.read(["a"]) == [round_ * 10]
        assert len(await store.records("virtual_key")) == round_


async def test_an_error_shows_no_secret(backend: Backend, store: Store, logged: LogText) -> None:
    """Neither in its text nor in its causes, nor what a debugger or a log shows of the store."""
    await store.create(record())
    await backend.fail()
    for call in everything(store):
        with pytest.raises(StoreError) as caught:
            await call
        error: BaseException | None = caught.value
        while error is not None:
            assert "sk-test" not in f"{error!s} {error!r}"
            error = error.__cause__
    assert "sk-test" not in repr(store)
    await backend.recover()
    await store.read(["a"])
    assert "sk-test" not in logged.text


async def test_a_closed_store_stays_closed(backend: Backend, store: Store) -> None:
    """Whoever is late is told so, and opens nothing again; closing twice is closing."""
    before = set(threading.enumerate())
    await store.add(changes(("a", 1)))
    await store.close()
    assert left_behind(before) == []
    await store.close()
    for call in everything(store):
        assert "closed" in await refused(call)
    assert left_behind(before) == []
    unused = open_store(backend.url, backend.password)
    await unused.close()


async def test_closing_waits_for_who_is_being_answered(store: Store) -> None:
    """A change that is under way is made, and its answer comes."""
    await store.add(changes(("a", 1)))
    adding = asyncio.create_task(store.add(changes(("a", 1))))
    await asyncio.sleep(0)
    await store.close()
    assert await adding == [2]


@pytest.mark.parametrize("cancels", [1, 2])
async def test_a_cancelled_call_harms_nobody(backend: Backend, opened: Opened, cancels: int) -> None:
    """At whatever step it is given up, from connecting on: the next call is answered, and nothing is left."""
    for steps in range(50):
        before = set(threading.enumerate())
        store = opened(backend.url, backend.password)
        batch = changes((f"a{steps}", 1), (f"b{steps}", 1))
        calls = [asyncio.create_task(store.add(batch)) for _ in range(2)]
        await some_steps(steps)
        for _ in range(cancels):
            for call in calls:
                call.cancel()
            await asyncio.sleep(0)
        assert await store.add(batch) in ([1, 1], [2, 2], [3, 3])
        await asyncio.wait(calls)
        await store.close()
        assert left_behind(before) == []


async def test_a_store_closed_while_it_connects(backend: Backend, opened: Opened) -> None:
    """At whatever step: its call ends, and nothing is left."""
    for steps in range(50):
        before = set(threading.enumerate())
        store = opened(backend.url, backend.password)
        call = asyncio.create_task(store.add(changes(("a", 0))))
        await some_steps(steps)
        if steps % 2:
            call.cancel()
        await store.close()
        await asyncio.wait([call])
        assert left_behind(before) == []


async def some_steps(count: int) -> None:
    """Lets the others in this loop go on, each by so many steps."""
    for _ in range(count):
        await asyncio.sleep(0)


def everything(store: Store) -> list[Awaitable[object]]:
    """One call of each method that asks, after a record `record()` was created."""
    key = record("late", id="id-9", value="sk-test-late")
    return [
        store.add(changes(("a", 0))),
        store.read(["a"]),
        store.find(bytes(32)),
        store.get("virtual_key", "id-1"),
        store.named("virtual_key", "dev"),
        store.records("virtual_key"),
        store.create(key),
        store.replace(key, key),
        store.delete("virtual_key", "id-9"),
    ]


# SQLite only.


@pytest.fixture
def file(tmp_path: Path) -> SqliteBackend:
    return SqliteBackend(tmp_path)


def files(file: SqliteBackend) -> list[Path]:
    return [file.path, Path(f"{file.path}-shm"), Path(f"{file.path}-wal")]


def listing(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def access(path: Path) -> tuple[str, int, int]:
    """Mode, owner and group, as ls shows them."""
    status = path.stat()
    return stat.filemode(status.st_mode), status.st_uid, status.st_gid


def look(file: SqliteBackend, statement: str) -> list[tuple[object, ...]]:
    """What somebody else sees in the file."""
    with contextlib.closing(sqlite3.connect(file.path)) as db:
        return db.execute(statement).fetchall()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_sqlite_files_are_for_their_owner_alone(
    file: SqliteBackend, opened: Opened, tmp_path: Path, umask: int
) -> None:
    """Whatever the umask; and what root creates belongs to whoever has the directory."""
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, 54321)
    _, *owner = access(tmp_path)
    before = os.umask(umask)
    try:
        await opened(file.url).add(changes(("a", 1)))
    finally:
        os.umask(before)
    assert listing(tmp_path) == files(file)
    for path in files(file):
        assert access(path) == ("-rw-------", *owner)


async def test_sqlite_leaves_one_file_when_all_have_closed(file: SqliteBackend, opened: Opened) -> None:
    """What can be copied by itself."""
    first, second = opened(file.url), opened(file.url)
    await first.add(changes(("a", 1)))
    await second.add(changes(("a", 1)))
    await first.close()
    assert [path.exists() for path in files(file)] == [True, True, True]
    await second.close()
    assert [path.exists() for path in files(file)] == [True, False, False]
    assert look(file, "SELECT value FROM counters") == [(2,)]


@pytest.mark.parametrize("name", ["a b?c#d%41.db", "ä.db", ":memory:", "file:x"])
async def test_sqlite_takes_any_path(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Also a relative one, and one that a URI would understand in another way."""
    monkeypatch.chdir(tmp_path)
    await opened(f"sqlite:{name}").add(changes(("a", 1)))
    assert (tmp_path / name).stat().st_size > 0


async def test_sqlite_follows_a_link(file: SqliteBackend, opened: Opened, tmp_path: Path) -> None:
    """To a file that is not there yet; both names are one store."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file.path.symlink_to(elsewhere / "real.db")
    assert await opened(file.url).add(changes(("a", 1))) == [1]
    assert await opened(f"sqlite:{elsewhere}/real.db").add(changes(("a", 1))) == [2]
    assert listing(tmp_path) == [elsewhere, file.path]


async def test_sqlite_begins_once_however_many_begin(
    file: SqliteBackend, spawn: Spawn, tmp_path: Path
) -> None:
    """Four processes find no file at the same moment, and then one that all the others have left."""
    for _ in range(3):
        workers = [await spawn(ADDER, file, 1, "a") for _ in range(4)]
        for worker in workers:
            assert await line(worker) == "ready"
        for worker in workers:
            await tell(worker)
        assert sorted([await ended(worker) for worker in workers]) == [["1"], ["2"], ["3"], ["4"]]
        assert look(file, "PRAGMA integrity_check") == [("ok",)]
        file.path.unlink()
        assert listing(tmp_path) == []


async def test_sqlite_waits_for_another_writer_but_not_for_ever(
    file: SqliteBackend, opened: Opened, spawn: Spawn
) -> None:
    """A lock that stays is a `StoreError`; reading goes on meanwhile, and writing when it is gone."""
    store = opened(file.url)
    await store.add(changes(("a", 1)))
    locker = await spawn(LOCKER, file)
    assert await line(locker) == "locked"
    begun = time.monotonic()
    assert "locked" in await refused(store.add(changes(("a", 1))))
    assert time.monotonic() - begun > 1.5
    assert await store.read(["a"]) == [1]
    waiting = asyncio.create_task(store.add(changes(("a", 1))))
    await tell(locker)
    await ended(locker)
    assert await waiting == [2]


async def test_sqlite_killed_in_the_middle_leaves_a_sound_file(
    file: SqliteBackend, opened: Opened, spawn: Spawn
) -> None:
    """Four workers, one after the other killed while all add; the last one sees all that was answered."""
    workers = [await spawn(ADDER, file, 100_000, f"n{number}", "all") for number in range(4)]
    for worker in workers:
        await line(worker)
        await tell(worker)
    told = []
    for worker in workers:
        for _ in range(50):
            await line(worker)
        worker.kill()
        printed, _ = await worker.communicate()
        whole = [text for text in printed.decode().splitlines(keepends=True) if text.endswith("\n")]
        told.append(50 + len(whole))
    store = opened(file.url)
    *own, total = await store.read(["n0", "n1", "n2", "n3", "all"])
    assert all(value in (least, least + 1) for value, least in zip(own, told, strict=True))
    assert total == sum(own)
    assert look(file, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("ends", [".db", "", "-wal", "-shm"])
async def test_sqlite_file_removed_underneath(file: SqliteBackend, spawn: Spawn, ends: str) -> None:
    """Alone or with what belongs to it: all workers go over to one new file, without a failing call."""
    workers = [await spawn(ADDER, file, 1, "a") for _ in range(3)]
    for count, worker in enumerate(workers, 1):
        assert await line(worker) == "ready"
        await tell(worker)
        assert await line(worker) == str(count)
    for path in files(file):
        if path == file.path or path.name.endswith(ends):
            path.unlink()
    for count in range(1, 10):
        await tell(workers[count % 3])
        assert await line(workers[count % 3]) == str(count)
    for worker in workers:
        assert await ended(worker) == []
    assert look(file, "SELECT name, value FROM counters") == [("a", 9)]
    assert look(file, "PRAGMA integrity_check") == [("ok",)]


async def test_sqlite_file_replaced_underneath(file: SqliteBackend, opened: Opened, tmp_path: Path) -> None:
    """By a copy that somebody put back: it is taken up, and what the other one had is not mixed in."""
    other = SqliteBackend(tmp_path / "other")
    other.path.parent.mkdir()
    first = opened(other.url)
    await first.add(changes(("a", 7)))
    await first.close()
    store = opened(file.url)
    await store.add(changes(("a", 100)))
    for path in files(file):
        path.unlink()
    other.path.rename(file.path)
    assert await store.add(changes(("a", 1))) == [8]


async def test_sqlite_directory_missing(opened: Opened, tmp_path: Path) -> None:
    """It is not created, for it would have no owner; when it is there the store works."""
    store = opened(f"sqlite:{tmp_path}/missing/state.db")
    assert "No such file or directory" in await refused(store.read(["a"]))
    (tmp_path / "missing").mkdir()
    assert await store.add(changes(("a", 1))) == [1]


async def test_sqlite_on_a_full_disk(file: SqliteBackend, opened: Opened) -> None:
    """Whatever the step at which nothing fits any more: a `StoreError`; with room again all goes on."""
    store = opened(file.url)
    # Nothing that this process writes gets larger than so.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    failures = 0
    value = 0
    for room in (0, 1, 4096, 10_000, 50_000, 90_000, 150_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            for _ in range(30):
                try:
                    (value,) = await store.add(changes(("a", 1)))
                except StoreError:
                    failures += 1
                    break
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        # Of the change that failed nobody knows.
        (after,) = await store.add(changes(("a", 1)))
        assert after in (value + 1, value + 2)
        value = after
    assert failures >= 4
    assert look(file, "PRAGMA integrity_check") == [("ok",)]


async def test_sqlite_on_what_is_no_database(file: SqliteBackend, opened: Opened) -> None:
    """It is not touched; when it is taken away the store works."""
    junk = b"not a database" * 1000
    file.path.write_bytes(junk)
    store = opened(file.url)
    assert "not a database" in await refused(store.add(changes(("a", 1))))
    assert file.path.read_bytes() == junk
    file.path.unlink()
    assert await store.add(changes(("a", 1))) == [1]


async def test_sqlite_damaged_while_open(file: SqliteBackend, opened: Opened) -> None:
    """A `StoreError`; when the file is in order again the same store works."""
    store = opened(file.url)
    await store.add(changes(*((f"n{number}", 1) for number in range(5000))))
    look(file, "PRAGMA wal_checkpoint(TRUNCATE)")
    sound = file.path.read_bytes()
    with file.path.open("r+b") as damaged:
        damaged.write(b"\xff" * len(sound))
    await refused(store.records("team"))
    await refused(store.add(changes(("n1", 1))))
    with file.path.open("r+b") as mended:
        mended.write(sound)
    assert await store.add(changes(("n1", 1))) == [2]


async def test_sqlite_of_a_newer_program(file: SqliteBackend, opened: Opened) -> None:
    """What another version wrote is left alone."""
    store = opened(file.url)
    await store.add(changes(("a", 1)))
    await store.close()
    look(file, "PRAGMA user_version = 2")
    assert "version 2" in await refused(opened(file.url).add(changes(("a", 1))))
    assert look(file, "SELECT value FROM counters") == [(1,)]


async def test_sqlite_counters_are_saturated(file: SqliteBackend, opened: Opened) -> None:
    """They stay whole numbers at both ends, and come back from them."""
    store = opened(file.url)
    few = changes(("a", 9 * BILLION), ("b", MOST - 1), ("c", -9 * BILLION), ("d", -5))
    many = changes(*((f"m{number}", 9 * BILLION) for number in range(200)))
    assert await store.add(few) == [MOST, MOST - 1, 0, 0]
    assert await store.add(many) == [MOST] * 200
    assert await store.add(changes(("d", 5))) == [5]
    assert await store.add(few) == [MOST, MOST, 0, 0]
    assert await store.add(many) == [MOST] * 200
    assert await store.add(changes(("a", -BILLION), ("b", -MOST - 1), ("c", 5))) == [3 * BILLION, 0, 5]
    assert look(file, "SELECT DISTINCT typeof(value) FROM counters") == [("integer",)]


async def test_sqlite_purges_a_great_many(file: SqliteBackend, opened: Opened) -> None:
    """In steps, between which others write."""
    store = opened(file.url)
    now = int(time.time())
    old = [Change(f"{'b' if number % 3 else 'a'}{number}", now - 90_000, 1) for number in range(5000)]
    await store.add([*old, *changes(("aa", 1), ("zz", 1))])
    purging = asyncio.create_task(store.purge(now))
    answers = [await store.add(changes(("zz", 1))) for _ in range(3)]
    await purging
    assert answers == [[2], [3], [4]]
    assert look(file, "SELECT name, value FROM counters ORDER BY name") == [("aa", 1), ("zz", 4)]


async def test_sqlite_is_opened_without_dropping_this_process_locks(
    file: SqliteBackend, opened: Opened, spawn: Spawn
) -> None:
    """A second store in one process, as at a reload: the first one's file is not taken for a left one."""
    first, second = opened(file.url), opened(file.url)
    await first.add(changes(("a", 1)))
    await second.read(["a"])
    await second.close()
    adder = await spawn(ADDER, file, 1, "a")
    await tell(adder)
    assert await ended(adder) == ["ready", "2"]
    # The last to leave removes it; the other process was not the last.
    assert files(file)[2].exists()
    assert await first.add(changes(("a", 1))) == [3]


async def test_sqlite_too_old(file: SqliteBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start says so, not the first request."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(RuntimeError, match=r"SQLite 3\.35"):
        open_store(file.url)


# Redis only.


async def test_redis_keys_have_one_prefix_and_counters_an_end(redis: RedisServer, opened: Opened) -> None:
    """A counter goes a day after its window's end; records stay."""
    store = opened(redis.url)
    now = int(time.time())
    await store.add([Change("a", now + 1000, 1), Change("b", now + 2_000_000, 1)])
    await store.create(record())
    keys = await redis.ask("KEYS", "*")
    assert all(key.startswith("verbatim:") for key in keys)
    ends = {key: int((await redis.ask("TTL", key))[0]) for key in keys}
    lives = {key: seconds for key, seconds in ends.items() if seconds != -1}
    assert sorted(lives) == ["verbatim:counter:a", "verbatim:counter:b"]
    assert 0 <= 87_400 - lives["verbatim:counter:a"] <= LONG
    assert 0 <= 2_086_400 - lives["verbatim:counter:b"] <= LONG
    assert await store.delete("virtual_key", "id-1")
    assert sorted(await redis.ask("KEYS", "*")) == sorted(lives)


async def test_redis_databases_are_kept_apart(redis: RedisServer, opened: Opened) -> None:
    """By the number at the end of the URL."""
    assert await opened(redis.url).add(changes(("a", 1))) == [1]
    assert await opened(redis.url[:-1] + "7").add(changes(("a", 1))) == [1]
    assert await redis.ask("GET", "verbatim:counter:a", database=7) == ["1"]


@pytest.mark.parametrize(("password", "code"), [(None, "NOAUTH"), ("sk-test-wrong", "WRONGPASS")])
async def test_redis_wants_another_password(
    tmp_path: Path, opened: Opened, password: str | None, code: str
) -> None:
    """The error says which, and shows none; with the right one the same server works."""
    server = RedisServer(tmp_path, password=PASSWORD)
    await server.start()
    try:
        assert code in await refused(opened(server.url, password).add(changes(("a", 1))))
        assert await opened(server.url, PASSWORD).add(changes(("a", 1))) == [1]
    finally:
        await server.kill()


async def test_redis_repeats_the_password_in_an_error(tmp_path: Path, opened: Opened) -> None:
    """A server that does not know AUTH says what came with it; we do not."""
    server = RedisServer(tmp_path, 'rename-command AUTH ""')
    await server.start()
    try:
        store = opened(server.url, PASSWORD)
        with pytest.raises(StoreError, match="answered ERR") as caught:
            await store.add(changes(("a", 1)))
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
        assert "sk-test" not in str(caught.value)
    finally:
        await server.kill()


async def test_redis_nothing_is_asked_twice(redis: RedisServer, opened: Opened) -> None:
    """An answer that was lost is a `StoreError`; the change was made, and made once."""
    relay = Relay(redis)
    await relay.start()
    store = opened(relay.url)
    assert await store.add(changes(("a", 1))) == [1]
    await store.create(record())
    relay.losing = True
    await refused(store.add(changes(("a", 1))))
    await refused(store.create(record("ops", id="id-2", value="sk-test-2")))
    relay.losing = False
    assert await store.read(["a"]) == [2]
    assert len(await store.records("virtual_key")) == 2
    await store.close()
    await relay.stop()


async def test_redis_silent(redis: RedisServer, opened: Opened) -> None:
    """A `StoreError` in bounded time. What it was told is done before a later call, or never."""
    store = opened(redis.url)
    await store.add(changes(("a", 1)))
    for count in (20, 1):
        redis.pause()
        reasons = await asyncio.gather(*(refused(store.add(changes(("a", 1)))) for _ in range(count)))
        redis.go_on()
        seen = await store.read(["a"])
        for _ in range(5):
            assert await store.read(["a"]) == seen
        # The first were asked, the last got no turn.
        assert "Timeout reading" in reasons[0]
        assert ("no answer within 5 s" in reasons[-1]) == (count > 1)


async def test_redis_and_the_kernel_give_up_together(redis: RedisServer, opened: Opened) -> None:
    """What was not acknowledged by then is not sent again, so it cannot come after what is asked next."""
    store = opened(redis.url)
    await store.add(changes(("a", 1)))
    (connection,) = connections_to(redis.port)
    with connection:
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 2000


def connections_to(port: int) -> list[socket.socket]:
    """This process's own, each by a descriptor more."""
    numbers = [int(link.name) for link in Path("/proc/self/fd").iterdir() if link.is_socket()]
    found = []
    for number in numbers:
        one = socket.socket(fileno=os.dup(number))
        with contextlib.suppress(OSError):
            if one.getpeername()[1:] == (port,):
                found.append(one)
                continue
        one.close()
    return found


async def test_redis_takes_no_more_connections_than_few(redis: RedisServer, opened: Opened) -> None:
    """However many ask at once."""
    store = opened(redis.url)
    await asyncio.gather(*(store.find(bytes([number]) * 32) for number in range(200)))
    clients = await redis.ask("CLIENT", "LIST")
    assert 1 < len(clients) <= 9


async def test_redis_without_memory(redis: RedisServer, opened: Opened) -> None:
    """None of the changes is made; with memory again all are."""
    store = opened(redis.url)
    await store.add(changes(("a", 1)))
    await redis.ask("CONFIG", "SET", "maxmemory", "1")
    assert "OOM" in await refused(store.add(changes(("a", 1), ("b", 1))))
    assert "OOM" in await refused(store.create(record()))
    assert await store.read(["a", "b"]) == [1, 0]
    await redis.ask("CONFIG", "SET", "maxmemory", "0")
    assert await store.add(changes(("a", 1), ("b", 1))) == [2, 1]


async def test_redis_refusing_to_write(redis: RedisServer, opened: Opened) -> None:
    """The server's code is in the error, for whoever has to mend it."""
    store = opened(redis.url)
    await redis.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    assert "NOREPLICAS" in await refused(store.add(changes(("a", 1))))
    await redis.ask("CONFIG", "SET", "min-replicas-to-write", "0")
    assert await store.add(changes(("a", 1))) == [1]


async def test_redis_become_a_replica(redis: RedisServer, opened: Opened, closed_port: int) -> None:
    """The next call connects anew: the name may lead to the new master."""
    store = opened(redis.url)
    await store.add(changes(("a", 1)))
    await redis.ask("REPLICAOF", "127.0.0.1", str(closed_port))
    before = await redis.ask("CLIENT", "LIST")
    assert "READONLY" in await refused(store.add(changes(("a", 1))))
    # Ours is gone, and whoever asks is in its own list.
    assert len(before) == 2
    assert len(await redis.ask("CLIENT", "LIST")) == 1
    await redis.ask("REPLICAOF", "NO", "ONE")
    assert await store.add(changes(("a", 1))) == [2]


async def test_redis_forgot_the_scripts(redis: RedisServer, opened: Opened) -> None:
    """It is told again, within the same call."""
    store = opened(redis.url)
    await store.create(record())
    await redis.ask("SCRIPT", "FLUSH")
    assert await store.replace(record("ops"), record())
    await redis.ask("SCRIPT", "FLUSH")
    assert await store.named("virtual_key", "ops") == record("ops")
    await redis.ask("SCRIPT", "FLUSH")
    assert await store.delete("virtual_key", "id-1")


async def test_redis_over_tls(redis: RedisServer, opened: Opened, authority: trustme.CA) -> None:
    """With ``rediss:`` the server must show a certificate that this machine trusts."""
    for trusted in (True, False):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (authority if trusted else trustme.CA()).issue_cert("127.0.0.1").configure_cert(context)
        relay = Relay(redis, context)
        await relay.start()
        store = opened(relay.url)
        if trusted:
            assert await store.add(changes(("a", 1))) == [1]
        else:
            assert "CERTIFICATE_VERIFY_FAILED" in await refused(store.add(changes(("a", 1))))
        await store.close()
        await relay.stop()
    assert await redis.ask("GET", "verbatim:counter:a") == ["1"]


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b":x\r\n", b"*1\r\n", b"\xff" * 70_000]
)
async def test_redis_is_something_else(opened: Opened, answer: bytes) -> None:
    """Whatever answers at that port, and then leaves: a `StoreError`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        store = opened(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", PASSWORD)
        for call in everything(store):
            await refused(call)


async def test_redis_package_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how to get it; SQLite does not need it."""
    monkeypatch.setitem(sys.modules, "redis", None)
    for module in ("proxy.store.redis", "proxy.store.redis_link"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(RuntimeError, match=r"pip install 'verbatim-proxy\[redis\]'"):
        open_store("redis://127.0.0.1/0")
    open_store("sqlite:never-asked.db")
