"""The ledger: every charge reaches the store exactly once, whatever fails in between."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from proxy import ledger as ledger_room
from proxy.journal import HALF, Journal
from proxy.ledger import Ledger
from proxy.ports import Change, StoreError
from proxy.store import open_store

ENDS = 4_000_000_000


class Faulty:
    """The real SQLite store, which fails when it is told to."""

    def __init__(self, path: Path) -> None:
        self.store = open_store(f"sqlite:{path}", None)
        self.refuse = 0
        """Calls that fail and do nothing."""
        self.swallow = 0
        """Calls that are carried out, and seem to fail."""
        self.adds: list[list[Change]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def add(self, changes: Sequence[Change]) -> list[int]:
        self.adds.append(list(changes))
        await self.gate.wait()
        if self.refuse:
            self.refuse -= 1
            raise StoreError("refused")
        values = await self.store.add(changes)
        if self.swallow:
            self.swallow -= 1
            raise StoreError("no answer")
        return values

    async def read(self, names: Sequence[str]) -> list[int]:
        if self.refuse:
            self.refuse -= 1
            raise StoreError("refused")
        return await self.store.read(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Faulty]:
    faulty = Faulty(tmp_path / "state.db")
    yield faulty
    await faulty.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_room, "RETRY_SECONDS", 0.01)


@pytest.fixture
async def start(store: Faulty, tmp_path: Path) -> AsyncIterator[Callable[[], Ledger]]:
    started: list[Ledger] = []

    def start() -> Ledger:
        ledger = Ledger(store, Journal(tmp_path))
        ledger.start()
        started.append(ledger)
        return ledger

    yield start
    for ledger in started:
        await ledger.close()
    assert journals(tmp_path) == []


def charge(name: str, amount: int) -> Change:
    return Change(name, ENDS, amount)


def below(name: str, maximum: int) -> Callable[[Mapping[str, int]], bool]:
    return lambda used: used[name] < maximum


async def value(store: Faulty, name: str) -> int:
    (found,) = await store.store.read([name])
    return found


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def settled(ledger: Ledger) -> None:
    await until(lambda: not ledger.waiting)


def journals(directory: Path) -> list[Path]:
    return list(directory.glob("*.unsettled"))


async def test_reservations_of_one_batch_see_each_other(store: Faulty, start: Callable[[], Ledger]) -> None:
    """Of fifty that ask in one moment as many are admitted as there is room for, and no more is counted."""
    ledger = start()
    asked = [ledger.reserve([charge("r", 1)], below("r", 7)) for _ in range(50)]
    assert (await asyncio.gather(*asked)).count(True) == 7
    await settled(ledger)
    assert await value(store, "r") == 7
    assert len(store.adds) < 10


async def test_who_leaves_while_it_waits_is_not_counted(store: Faulty, start: Callable[[], Ledger]) -> None:
    """A reservation that nobody waits for any more is given back, wherever it was on its way."""
    ledger = start()
    await ledger.reserve([charge("r", 1)], below("r", 100))
    store.gate.clear()
    sent = asyncio.ensure_future(ledger.reserve([charge("r", 1)], below("r", 100)))
    await until(lambda: len(store.adds) == 2)
    queued = asyncio.ensure_future(ledger.reserve([charge("r", 1)], below("r", 100)))
    await asyncio.sleep(0)
    for left in (sent, queued):
        left.cancel()
    await asyncio.wait([sent, queued])
    store.gate.set()
    await ledger.reserve([charge("other", 1)], below("other", 100))
    await settled(ledger)
    assert await value(store, "r") == 1


@pytest.mark.parametrize("failure", ["refuse", "swallow"])
async def test_a_charge_is_made_once_whether_a_failed_call_took_effect_or_not(
    store: Faulty, start: Callable[[], Ledger], failure: str
) -> None:
    """The store says which batch it has seen last, so nothing is lost and nothing is made twice."""
    ledger = start()
    for round_number in range(1, 20):
        setattr(store, failure, round_number % 3)
        ledger.charge([charge("c", 10), charge("d", 1)])
        await asyncio.sleep(0.003 * (round_number % 4))
        ledger.charge([charge("c", 1)])
    await settled(ledger)
    assert (await value(store, "c"), await value(store, "d")) == (19 * 11, 19)


@pytest.mark.parametrize("failure", ["refuse", "swallow"])
async def test_a_reservation_that_failed_is_not_counted(
    store: Faulty, start: Callable[[], Ledger], failure: str
) -> None:
    """Who was told that the store failed has reserved nothing, even if the call took effect."""
    ledger = start()
    assert await ledger.reserve([charge("r", 1)], below("r", 9))
    setattr(store, failure, 1)
    with pytest.raises(StoreError):
        await ledger.reserve([charge("r", 1)], below("r", 9))
    with pytest.raises(StoreError):
        await ledger.reserve([charge("r", 1)], below("r", 9))
    await until(lambda: not ledger.ill)
    assert await ledger.reserve([charge("r", 1)], below("r", 9))
    await settled(ledger)
    assert await value(store, "r") == 2


async def test_what_could_not_be_taken_is_kept_for_the_next_start(store: Faulty, tmp_path: Path) -> None:
    """A worker that ends while the store is away leaves its journal; the next one makes the charges, once."""
    first = Ledger(store, Journal(tmp_path))
    first.start()
    store.refuse = 10**6
    first.charge([charge("c", 5)])
    await first.close()
    (left,) = journals(tmp_path)
    assert left.stat().st_mode & 0o777 == 0o600
    store.refuse = 0
    for _ in range(2):
        again = Ledger(store, Journal(tmp_path))
        again.start()
        await again.reserve([charge("other", 0)], below("other", 9))
        await again.close()
        assert await value(store, "c") == 5
    assert journals(tmp_path) == []


WORKER = """
    import asyncio, sys
    from pathlib import Path
    from proxy.journal import HALF, Journal
    from proxy.ledger import Ledger
    from proxy.ports import Change
    from proxy.store import open_store

    async def main(directory):
        store = open_store(f"sqlite:{directory}/state.db", None)
        ledger = Ledger(store, Journal(Path(directory)))
        ledger.start()
        for number in range(1, 10**9):
            ledger.charge([Change("c", 4_000_000_000, 1)])
            if number % 7 == 0:
                # What is said here has been charged: it must be found.
                print(number, flush=True)
                await asyncio.sleep(0.001)

    asyncio.run(main(sys.argv[1]))
"""


def killed_in_the_middle(directory: Path) -> int:
    """Kills a worker that charges without pause; returns how many charges it said it had made."""
    worker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WORKER), str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    said = [worker.stdout.readline() for _ in range(40)]
    os.kill(worker.pid, signal.SIGKILL)
    said += worker.stdout.read().splitlines()
    worker.wait()
    worker.stdout.close()
    return int(said[-1])


async def test_a_killed_worker_s_charges_are_found(store: Faulty, tmp_path: Path) -> None:
    """After ``kill -9`` in the middle of it, ten times, every charge that was made is in the store, once."""
    said = [await asyncio.to_thread(killed_in_the_middle, tmp_path) for _ in range(10)]
    again = Ledger(store, Journal(tmp_path))
    again.start()
    await again.reserve([charge("other", 0)], below("other", 9))
    await again.close()
    # It says so once in seven charges.
    assert sum(said) <= await value(store, "c") < sum(said) + 7 * len(said)
    assert journals(tmp_path) == []


def read(directory: Path) -> list[Any]:
    """The records of the one journal that was left behind."""
    (orphan,) = Journal(directory).orphans()
    records = orphan.records()
    orphan.close()
    return records


def test_a_record_is_there_once_its_first_byte_is(tmp_path: Path) -> None:
    """A worker that is killed while it writes one leaves the others."""
    journal = Journal(tmp_path)
    journal.write(1, [("a", ENDS, 1)])
    (path,) = journals(tmp_path)
    end = len(path.read_bytes().partition(b"\0")[0])
    journal.write(2, [("a", ENDS, 2)])
    journal.close(keep=True)
    assert read(tmp_path) == [(1, [["a", ENDS, 1]]), (2, [["a", ENDS, 2]])]
    data = path.read_bytes()
    path.write_bytes(data[:end] + b"\0" + data[end + 1 :])
    assert read(tmp_path) == [(1, [["a", ENDS, 1]])]


def test_a_journal_that_is_renewed_keeps_what_is_left(tmp_path: Path) -> None:
    """Over many turns from one half to the other nothing is lost, and nothing stands in both."""
    journal = Journal(tmp_path)
    number = turns = 0
    while turns < 5:
        number += 1
        journal.write(number, [("a" * 100, ENDS, 1)])
        if journal.is_long:
            turns += 1
            number += 1
            journal.renew([(number, [("left", ENDS, turns)])])
    journal.write(number + 1, [("b", ENDS, 7)])
    journal.close(keep=True)
    assert read(tmp_path) == [(number, [["left", ENDS, 5]]), (number + 1, [["b", ENDS, 7]])]


def test_a_worker_killed_while_it_renews_its_journal_counts_nothing_twice(tmp_path: Path) -> None:
    """Between the first record of the new half and the emptying of the old one both are there."""
    journal = Journal(tmp_path)
    for number in (1, 2, 3):
        journal.write(number, [("a", ENDS, number)])
    (path,) = journals(tmp_path)
    old = path.read_bytes()[:HALF]
    journal.renew([(3, [("a", ENDS, 3)])])
    journal.close(keep=True)
    path.write_bytes(old + path.read_bytes()[HALF:])
    assert read(tmp_path) == [(3, [["a", ENDS, 3]])]


async def test_a_journal_that_cannot_be_read_is_set_aside(
    store: Faulty, start: Callable[[], Ledger], tmp_path: Path
) -> None:
    """One that a power cut has spoilt stops nobody; it is kept for a person."""
    spoilt = Journal(tmp_path)
    spoilt.write(1, [("a", ENDS, 1)])
    spoilt.close(keep=True)
    (path,) = journals(tmp_path)
    path.write_bytes(b"garbage\n")
    ledger = start()
    assert await ledger.reserve([charge("r", 1)], below("r", 2))
    assert path.with_suffix(".unreadable").read_bytes() == b"garbage\n"


@pytest.mark.parametrize("swallowed", [False, True], ids=["not applied", "applied"])
async def test_a_long_outage_fits_into_the_journal(
    store: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swallowed: bool
) -> None:
    """Ten thousand charges while the store is away: the next start makes each of them, once."""
    monkeypatch.setattr(ledger_room, "RETRY_SECONDS", 60.0)
    monkeypatch.setattr(ledger_room, "CLOSE_SECONDS", 0.1)
    first = Ledger(store, Journal(tmp_path))
    first.start()
    store.swallow, store.refuse = int(swallowed), int(not swallowed)
    first.charge([charge("c" * 100, 1)])
    await until(lambda: first.ill)
    for _ in range(10_000):
        first.charge([charge("c" * 100, 1)])
    await first.close()
    assert len(journals(tmp_path)) == 1
    again = Ledger(store, Journal(tmp_path))
    again.start()
    await again.reserve([charge("other", 0)], below("other", 9))
    await again.close()
    assert await value(store, "c" * 100) == 10_001
    assert journals(tmp_path) == []


def test_a_journal_in_use_is_nobody_else_s(tmp_path: Path) -> None:
    """While its worker lives a journal is left alone, though it is in the same directory."""
    journal = Journal(tmp_path)
    journal.write(1, [("a", ENDS, 1)])
    assert list(Journal(tmp_path).orphans()) == []
    journal.close(keep=False)
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once in the log, and the charges go their way without it."""
    journal = Journal(tmp_path / "missing")
    journal.write(1, [("a", ENDS, 1)])
    journal.write(2, [("a", ENDS, 1)])
    said = "the journal cannot be written, a killed worker would forget charges: No such file or directory"
    assert [record.message for record in caplog.records].count(said) == 1
    assert journal.kept == ""
    journal.close(keep=True)
