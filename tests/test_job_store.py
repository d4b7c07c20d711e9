"""The store of jobs: the same over SQLite and over Redis.

Not here: failures, kills and cancelled calls (`test_job_store_failing`), and what only one of the two stores
has (`test_sqlite_jobs`, `test_redis_jobs`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from job_stores import (
    AMPLE,
    AT_ONCE,
    CLAIMER,
    ENDED,
    EXPIRES,
    NOW,
    Backend,
    Opened,
    Spawn,
    all_claims,
    backend,
    begun,
    claimed,
    ended,
    ending,
    filled,
    finished,
    job,
    line,
    opened,
    refused,
    spawn,
    store,
    submitted,
    tell,
    there,
)

from proxy.job import Bounds, Ending, Found, Held, Lease, State
from proxy.ports import JobStore

__all__ = ["backend", "opened", "spawn", "store"]

MIB = 1024 * 1024

FOREVER = 1e12
"""Long after everything."""


# Submitting.


async def test_a_submitted_job_waits(store: JobStore) -> None:
    """Whoever looks for it finds it pending, and it is counted; nobody holds it."""
    assert await store.pending() == 0
    await submitted(store, job("a", created=NOW + 0.125))
    assert await store.pending() == 1
    found = Found("a", "dev", "/v1/messages", State.PENDING, NOW + 0.125, None)
    assert await store.look("a", NOW) == await store.peek("a", NOW) == found
    assert await store.look("b", NOW) is await store.peek("b", NOW) is None
    assert await store.held("w1") == []


async def test_a_job_comes_back_as_it_went(store: JobStore) -> None:
    """Every byte of its head and its body, every sign of its texts, and no body at all."""
    odd = 'it\'s "quoted" \\ %s {x} ? \t\n\x7f ä 日本 🔑 \u2028 :*'
    jobs = [
        job("bytes", head=bytes(range(256)), body=bytes(range(256)) * 3 + b"\r\n\x00"),
        job("empty", owner="", head=b"", body=b""),
        job(f"odd {odd}", owner=odd, operation=odd, webhook=odd),
        job("time", created=1793452812.123457, ttl=604800),
    ]
    for each in jobs:
        await submitted(store, each)
        assert there(await store.claim("w1", 10)).job == each


async def test_a_body_of_32_mib(store: JobStore) -> None:
    """There and back, as a request and as a result."""
    request, answer = os.urandom(32 * MIB), os.urandom(32 * MIB)
    lease = await claimed(store, "a", body=request)
    assert await store.finish(lease, ending(answer)) is True
    found = there(await store.look("a", ENDED))
    assert there(found.ending).body == answer
    assert await store.remove("a") is State.COMPLETED


async def test_what_is_no_text_is_the_callers_fault(store: JobStore) -> None:
    """Half a surrogate pair: that is no `StoreError`, for the store is well, and serves who comes next."""
    with pytest.raises(UnicodeEncodeError):
        await store.submit(job("a", owner="\ud800"), AMPLE)
    assert await store.pending() == 0
    await submitted(store, job("a"))


class Bound(NamedTuple):
    """A bound, and jobs of which all but the last fit."""

    name: str
    bounds: Bounds
    owners: str
    sizes: tuple[int, ...]


BOUND = [
    Bound("jobs", AMPLE._replace(jobs=3), "abca", (1, 1, 1, 1)),
    Bound("jobs", AMPLE._replace(jobs=0), "a", (0,)),
    Bound("jobs_of_owner", AMPLE._replace(jobs_of_owner=2), "abaa", (1, 1, 1, 1)),
    Bound("jobs_of_owner", AMPLE._replace(jobs_of_owner=0), "a", (1,)),
    Bound("bytes", AMPLE._replace(bytes=1000), "abab", (400, 0, 600, 1)),
    Bound("bytes", AMPLE._replace(bytes=1000), "aba", (999, 0, 2)),
    Bound("bytes", AMPLE._replace(bytes=1000), "a", (1001,)),
    Bound("jobs", Bounds(1, 1, 1), "aa", (1, 1)),
    Bound("jobs_of_owner", Bounds(2, 1, 1), "aa", (1, 1)),
    Bound("bytes", Bounds(2, 2, 1), "aa", (1, 1)),
]


@pytest.mark.parametrize("bound", BOUND)
async def test_a_bound_is_reached_exactly(store: JobStore, bound: Bound) -> None:
    """What fills it is kept, and nothing of what comes then; the first one that is reached is named."""
    *fitting, last = [
        job(f"j{number}", owner=owner, body=b"x" * size)
        for number, (owner, size) in enumerate(zip(bound.owners, bound.sizes, strict=True))
    ]
    for each in fitting:
        assert await store.submit(each, bound.bounds) == ""
    for _ in range(2):
        assert await store.submit(last, bound.bounds) == bound.name
    assert await store.pending() == len(fitting)
    assert await store.look(last.id, NOW) is None
    assert [claim.job for claim in await all_claims(store)] == fitting


@pytest.mark.parametrize("name", Bounds._fields)
async def test_only_what_waits_counts(store: JobStore, name: str) -> None:
    """A claimed job and a removed one make room; one that is handed back takes it again."""
    bounds = AMPLE._replace(**{name: 200 if name == "bytes" else 2})
    jobs = [job(f"j{number}", created=NOW + number, body=b"x" * 100) for number in range(9)]

    async def room() -> int:
        """How many more are kept, which are then removed."""
        kept = list(
            itertools.takewhile(
                lambda each: each[1] == "", [(each, await store.submit(each, bounds)) for each in jobs[6:]]
            )
        )
        for each, _ in kept:
            assert await store.remove(each.id) is State.PENDING
        return len(kept)

    assert await room() == 2
    await submitted(store, *jobs[:2])
    assert await room() == 0
    lease = there(await store.claim("w1", 10)).lease
    assert await room() == 1
    assert await store.begin(lease)
    assert await room() == 1
    assert await store.hand_back(lease)
    assert await room() == 0
    lease = there(await store.claim("w1", 10)).lease
    assert await store.finish(lease, ending(b"x" * 1000))
    assert await room() == 1
    assert await store.remove("j1") is State.PENDING
    assert await room() == 2


async def test_no_bound_is_passed_by_many_at_once(backend: Backend, opened: Opened) -> None:
    """However many submit at the same moment, through two stores."""
    stores = [opened(backend) for _ in range(2)]
    bounds = AMPLE._replace(jobs=20, jobs_of_owner=7)
    answers = await asyncio.gather(
        *(stores[n % 2].submit(job(f"j{n}", owner=f"o{n % 5}"), bounds) for n in range(2 * AT_ONCE))
    )
    assert set(answers) <= {"", "jobs", "jobs_of_owner"}
    assert answers.count("") == 20
    kept = [claim.job for claim in await all_claims(stores[0])]
    assert {each.id for each in kept} == {f"j{n}" for n, answer in enumerate(answers) if answer == ""}
    assert max(Counter(each.owner for each in kept).values()) <= 7


async def test_submitted_again_is_kept_once(store: JobStore) -> None:
    """As when the answer was lost: it says that the job is kept, whatever became of it, bounds or not."""
    full = Bounds(1, 1, 100)
    for _ in range(2):
        assert await store.submit(job("a", body=b"x" * 100), full) == ""
    assert await store.pending() == 1
    lease = there(await store.claim("w1", 10)).lease
    assert await store.submit(job("a"), full) == ""
    assert await store.pending() == 0
    assert await store.finish(lease, ending())
    assert await store.submit(job("a"), full) == ""
    assert await store.pending() == 0
    assert there(await store.look("a", ENDED)).ending == ending()


# Claiming.


async def test_where_nothing_waits_nothing_is_claimed(store: JobStore) -> None:
    """And a job that is held, over or removed does not wait."""
    assert await store.claim("w1", 10) is None
    await finished(store, "over")
    await claimed(store, "held")
    await submitted(store, job("gone"))
    await store.remove("gone")
    assert await store.claim("w1", 10) is None


async def test_the_oldest_is_claimed_first(store: JobStore) -> None:
    """By when it was created, and of one time by when it was submitted, whatever the ids and the owners."""
    times = [3.5, 1.25, 2.0, 1.25, 3.5, 0.5, 2.0, 10.0, 9.0]
    ids = "qzamfbyck"
    jobs = [
        job(id, created=created, owner=owner)
        for id, created, owner in zip(ids, times, itertools.cycle("nm"), strict=False)
    ]
    await submitted(store, *jobs)
    wanted = sorted(jobs, key=lambda each: each.created)
    assert [claim.job for claim in await all_claims(store)] == wanted


async def test_a_job_that_is_handed_back_has_its_old_place(store: JobStore) -> None:
    """Before those that came later, also those of its own time."""
    await submitted(store, *(job(id) for id in "abc"))
    leases = {claim.lease.id: claim.lease for claim in await all_claims(store)}
    await submitted(store, job("d"))
    for id in "cba":
        assert await store.hand_back(leases[id])
    assert [claim.lease.id for claim in await all_claims(store)] == list("abcd")


async def test_an_owner_has_no_more_than_most_in_processing(store: JobStore) -> None:
    """Whoever holds them; what others have counts for nothing, and when one is over the next is taken."""
    jobs = [job(f"{owner}{number}", owner=owner) for number in range(4) for owner in ("a", "A", "")]
    await submitted(store, *jobs)
    claims = []
    for worker in itertools.cycle(["w1", "w2"]):
        claim = await store.claim(worker, 2)
        if claim is None:
            break
        claims.append(claim)
    assert [claim.job for claim in claims] == jobs[:6]
    assert await store.claim("w1", 0) is None
    by_owner = {claim.job.owner: claim.lease for claim in claims}
    assert await store.finish(by_owner["A"], ending())
    assert there(await store.claim("w3", 2)).job.id == "A2"
    assert await store.remove(by_owner["a"].id) is State.PROCESSING
    assert there(await store.claim("w3", 2)).job.id == "a2"
    assert await store.hand_back(by_owner[""])
    assert there(await store.claim("w3", 2)).job.id == by_owner[""].id
    assert await store.claim("w3", 2) is None
    assert there(await store.claim("w3", 3)).job.id == "2"


async def test_another_owners_job_is_found_behind_a_thousand(store: JobStore) -> None:
    """Those of who has enough in processing are passed over, and come in their order when they may."""
    await submitted(store, job("first", owner="many"))
    many = there(await store.claim("w1", 1))
    await filled(store, (job(f"m{number}", owner="many", created=NOW + number) for number in range(1000)))
    assert await store.claim("w1", 1) is None
    await submitted(store, job("last", owner="few", created=NOW + 5000))
    assert there(await store.claim("w1", 1)).job.id == "last"
    assert await store.claim("w1", 1) is None
    assert await store.finish(many.lease, ending())
    assert there(await store.claim("w1", 1)).job.id == "m0"


async def test_a_thousand_jobs_to_many_callers(backend: Backend, opened: Opened) -> None:
    """In one process, through two stores: each job is given to one of them, and none is forgotten."""
    stores = [opened(backend) for _ in range(2)]
    await filled(stores[0], (job(f"j{number}") for number in range(1000)))

    async def work(number: int) -> list[Lease]:
        return [claim.lease for claim in await all_claims(stores[number % 2], f"w{number}")]

    leases = list(itertools.chain(*await asyncio.gather(*(work(number) for number in range(AT_ONCE)))))
    assert sorted(lease.id for lease in leases) == sorted(f"j{number}" for number in range(1000))
    assert {lease.number for lease in leases} == {1}
    held = [held.lease for number in range(AT_ONCE) for held in await stores[1].held(f"w{number}")]
    assert sorted(held) == sorted(leases)


async def test_a_thousand_jobs_to_two_processes(backend: Backend, store: JobStore, spawn: Spawn) -> None:
    """Each job is given to one of them, and none is forgotten."""
    await filled(store, (job(f"j{number}") for number in range(1000)))
    workers = [await spawn(CLAIMER, backend, f"w{number}") for number in range(2)]
    for worker in workers:
        assert await line(worker) == "ready"
    for worker in workers:
        await tell(worker)
    first, second = [await ended(worker) for worker in workers]
    assert sorted(first + second) == sorted(f"j{number}" for number in range(1000))
    for worker, ids in (("w0", first), ("w1", second)):
        assert sorted(held.lease.id for held in await store.held(worker)) == sorted(ids)


async def test_many_callers_do_not_pass_an_owners_most(backend: Backend, opened: Opened) -> None:
    """However many claim at the same moment, through two stores."""
    stores = [opened(backend) for _ in range(2)]
    await filled(stores[0], (job(f"{owner}{n}", owner=owner) for n in range(20) for owner in "ab"))
    claims = await asyncio.gather(*(stores[n % 2].claim(f"w{n % 3}", 3) for n in range(AT_ONCE)))
    owners = Counter(claim.job.owner for claim in claims if claim is not None)
    assert owners == {"a": 3, "b": 3}


# Leases.


async def test_what_is_held_is_known(store: JobStore) -> None:
    """By its worker alone: the lease, the head, how long it is kept, and whether it has gone upstream."""
    await submitted(store, job("a", head=b"\x00head\xff", ttl=77), job("b"), job("c"), job("d"))
    first, second = [there(await store.claim("w1", 10)).lease for _ in range(2)]
    third = there(await store.claim("w2", 10)).lease
    assert await store.begin(second) is True
    assert sorted(await store.held("w1")) == [
        Held(first, job().operation, 77, False, 0),
        Held(second, job().operation, 60, True, 1),
    ]
    assert await store.held("w2") == [Held(third, job().operation, 60, False, 0)]
    assert await store.held("w3") == []
    assert there(await store.look("a", NOW)).state is State.PROCESSING
    assert there(await store.look("d", NOW)).state is State.PENDING
    assert await store.finish(first, ending())
    assert await store.hand_back(second)
    assert await store.held("w1") == []


async def test_beginnings_are_counted(store: JobStore) -> None:
    """Once for a lease. Who hands back has begun nothing, and what was begun stays counted."""
    lease = await claimed(store)
    for begins in range(1, 4):
        for _ in range(2):
            assert await store.begin(lease) is True
            assert await store.held("w1") == [Held(lease, job().operation, 60, True, begins)]
        assert await store.hand_back(lease) is True
        assert there(await store.look("a", NOW)).state is State.PENDING
        lease = there(await store.claim("w1", 10)).lease
        assert lease == Lease("a", "w1", begins + 1)
        assert await store.held("w1") == [Held(lease, job().operation, 60, False, begins)]


async def test_who_has_adopted_a_job_may_send_it_again(store: JobStore) -> None:
    """It is begun as the other left it, and a beginning of its own is one more."""
    await begun(store, "a", "dead")
    await store.adopt("w1", "dead", 0)
    lease = Lease("a", "w1", 2)
    assert await store.held("w1") == [Held(lease, job().operation, 60, True, 1)]
    for _ in range(2):
        assert await store.begin(lease) is True
        assert await store.held("w1") == [Held(lease, job().operation, 60, True, 2)]


async def lost_by_hand_back(store: JobStore, lease: Lease) -> None:
    assert await store.hand_back(lease)


async def lost_by_its_own_next_claim(store: JobStore, lease: Lease) -> None:
    assert await store.hand_back(lease)
    assert there(await store.claim(lease.worker, 10)).lease.id == lease.id


async def lost_to_another(store: JobStore, lease: Lease) -> None:
    assert await store.hand_back(lease)
    assert there(await store.claim("w2", 10)).lease.id == lease.id


async def lost_by_adoption(store: JobStore, lease: Lease) -> None:
    beats = await store.beat(lease.worker)
    await store.adopt("w2", lease.worker, beats[lease.worker])


async def lost_and_adopted_back(store: JobStore, lease: Lease) -> None:
    await lost_by_adoption(store, lease)
    beats = await store.beat("w2")
    await store.adopt(lease.worker, "w2", beats["w2"])


async def lost_and_begun_by_another(store: JobStore, lease: Lease) -> None:
    await lost_by_adoption(store, lease)
    (held,) = await store.held("w2")
    assert await store.begin(held.lease)


async def lost_by_an_end_of_another(store: JobStore, lease: Lease) -> None:
    await lost_by_adoption(store, lease)
    (held,) = await store.held("w2")
    assert await store.finish(held.lease, ending(b"the other's"))


async def lost_by_removal(store: JobStore, lease: Lease) -> None:
    assert await store.remove(lease.id) is State.PROCESSING


async def lost_to_a_namesake(store: JobStore, lease: Lease) -> None:
    assert await store.remove(lease.id) is State.PROCESSING
    await submitted(store, job(lease.id))


LOST = [
    lost_by_hand_back,
    lost_by_its_own_next_claim,
    lost_to_another,
    lost_by_adoption,
    lost_and_adopted_back,
    lost_and_begun_by_another,
    lost_by_an_end_of_another,
    lost_by_removal,
    lost_to_a_namesake,
]


async def seen(store: JobStore, id: str) -> tuple[Any, ...]:
    """All that can be seen of a job without changing it."""
    held = [await store.held(worker) for worker in ("w1", "w2")]
    return await store.look(id, ENDED), held, await store.pending()


@pytest.mark.parametrize("was_begun", [False, True])
@pytest.mark.parametrize("lose", LOST)
async def test_a_lost_lease_does_nothing(
    store: JobStore, lose: Callable[[JobStore, Lease], Awaitable[None]], was_begun: bool
) -> None:
    """It is told so, whatever it tries, and the job is as its new holder left it."""
    lease = await (begun if was_begun else claimed)(store, "a", webhook="hook")
    await lose(store, lease)
    before = await seen(store, "a")
    assert await store.begin(lease) is False
    assert await store.hand_back(lease) is False
    assert await store.finish(lease, ending(b"too late")) is False
    assert await seen(store, "a") == before
    claim = await store.claim("w3", 10)
    assert claim is None or claim.job.body == job().body


@pytest.mark.parametrize(
    "wrong", [Lease("b", "w1", 1), Lease("a", "w2", 1), Lease("a", "w1", 0), Lease("a", "w1", 2)]
)
async def test_a_lease_that_never_was_does_nothing(store: JobStore, wrong: Lease) -> None:
    """Another id, another worker, another number."""
    lease = await claimed(store, "a")
    before = await seen(store, "a")
    assert await store.begin(wrong) is False
    assert await store.hand_back(wrong) is False
    assert await store.finish(wrong, ending()) is False
    assert await seen(store, "a") == before
    assert await store.finish(lease, ending()) is True
    assert await store.finish(wrong, ending()) is False


# The end.


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("body", [b"", bytes(range(256)) * 3], ids=["empty", "bytes"])
async def test_an_end_is_found_as_it_was(store: JobStore, failed: bool, packed: bool, body: bytes) -> None:
    """Whoever looks gets it, and the state says which of the two it was."""
    end = Ending(
        failed, 529 if failed else 201, bytes(range(256)), body, packed, 1793452812.125, 1793456412.5
    )
    await finished(store, "a", end)
    state = State.FAILED if failed else State.COMPLETED
    for _ in range(2):
        found = await store.look("a", 1793452812.125)
        assert found == Found("a", "dev", "/v1/messages", state, NOW, end)
        peeked = await store.peek("a", 1793452812.125)
        assert peeked == found._replace(ending=end._replace(body=b""))


async def test_an_end_without_a_beginning(store: JobStore) -> None:
    """A job that never went upstream can have failed."""
    lease = await claimed(store)
    assert await store.finish(lease, ending(failed=True)) is True
    assert there(await store.look("a", ENDED)).state is State.FAILED


async def test_after_its_end_nothing_is_left_of_a_request(backend: Backend, store: JobStore) -> None:
    """Neither its body nor its head, which may hold a credential; nor of a job that was removed."""
    secret = {"head": b'{"authorization": "Bearer HEADSECRET"}', "body": b"BODYSECRET" * 1000}
    jobs = [job(id, **secret) for id in ("over", "failed", "gone", "waited")]
    await submitted(store, *jobs)
    leases = [claim.lease for claim in await all_claims(store)]
    before = await backend.kept()
    assert "HEADSECRET" in before
    assert "BODYSECRET" in before
    assert await store.finish(leases[0], ending(b"ANSWER"))
    assert await store.finish(leases[1], ending(b"ANSWER", failed=True))
    assert await store.remove("gone") is State.PROCESSING
    assert await store.hand_back(leases[3])
    assert await store.remove("waited") is State.PENDING
    after = await backend.kept()
    assert "ANSWER" in after
    assert "HEADSECRET" not in after
    assert "BODYSECRET" not in after
    assert await store.remove("over") is State.COMPLETED
    assert await store.remove("failed") is State.FAILED
    assert "ANSWER" not in await backend.kept()


async def test_an_end_is_kept_once(store: JobStore) -> None:
    """Said again by who said it, as when the answer was lost, it is kept; and it is the first that is."""
    lease = await finished(store, "a", ending(b"first"))
    assert await store.finish(lease, ending(b"second", failed=True)) is True
    found = there(await store.look("a", ENDED))
    assert (found.state, found.ending) == (State.COMPLETED, ending(b"first"))
    assert await store.begin(lease) is False
    assert await store.hand_back(lease) is False
    assert await store.remove("a") is State.COMPLETED
    assert await store.finish(lease, ending(b"first")) is False


# Expiring and removing.


async def test_a_result_is_there_until_it_expires(store: JobStore) -> None:
    """By the clock of who looks, to the fraction of a second."""
    await finished(store, "a", ending(completed=NOW + 0.25, expires=NOW + 3600.5))
    for now in (NOW, NOW + 0.25, NOW + 3600.4):
        assert await store.look("a", now) is not None
        assert await store.peek("a", now) is not None
    for now in (NOW + 3600.5, NOW + 3600.6, FOREVER):
        assert await store.look("a", now) is None
        assert await store.peek("a", now) is None
    # The clock of another machine may be late.
    assert await store.look("a", NOW + 3600.4) is not None


async def test_what_is_not_over_never_expires(store: JobStore) -> None:
    """However long it waits or is being done; it is not purged either."""
    await submitted(store, *(job(id, ttl=1) for id in "abc"))
    first, second = [there(await store.claim("w1", 10)).lease for _ in range(2)]
    assert await store.begin(second)
    while await store.purge(FOREVER):
        pass
    for id, state in (("a", State.PROCESSING), ("b", State.PROCESSING), ("c", State.PENDING)):
        assert there(await store.look(id, FOREVER)).state is state
        assert there(await store.peek(id, FOREVER)).state is state
    assert await store.finish(first, ending())
    assert await store.begin(second) is True
    assert there(await store.claim("w1", 10)).job == job("c", ttl=1)


async def test_purging_takes_only_what_has_expired(store: JobStore) -> None:
    """To the fraction of a second; whoever purges until there is no more comes to an end."""
    for number in range(20):
        await finished(store, f"j{number}", ending(expires=EXPIRES + number / 4))
    while await store.purge(EXPIRES + 2.25):
        pass
    found = [await store.look(f"j{number}", EXPIRES + 2.25) is not None for number in range(20)]
    assert found == [False] * 10 + [True] * 10


async def at_pending(store: JobStore, id: str) -> None:
    await submitted(store, job(id))


async def at_processing(store: JobStore, id: str) -> None:
    await begun(store, id)


async def at_completed(store: JobStore, id: str) -> None:
    await finished(store, id, webhook="hook")


async def at_failed(store: JobStore, id: str) -> None:
    await finished(store, id, ending(failed=True), webhook="hook")


AT = {
    State.PENDING: at_pending,
    State.PROCESSING: at_processing,
    State.COMPLETED: at_completed,
    State.FAILED: at_failed,
}


@pytest.mark.parametrize("state", State)
async def test_a_job_can_be_removed_in_every_state(store: JobStore, state: State) -> None:
    """It says in which; then nobody finds it, holds it, gets it or is told of it, and its id is free."""
    await AT[state](store, "a")
    assert there(await store.look("a", ENDED)).state is state
    assert await store.remove("a") is state
    assert await store.remove("a") is None
    assert await store.look("a", ENDED) is None
    assert await store.held("w1") == []
    assert await store.pending() == 0
    assert await store.claim("w1", 10) is None
    assert await store.due(ENDED, FOREVER) is None
    lease = await claimed(store, "a", body=b"another")
    assert await store.finish(lease, ending(b"another's"))
    assert there(there(await store.look("a", ENDED)).ending).body == b"another's"


async def test_of_two_that_remove_one_has_removed(backend: Backend, opened: Opened) -> None:
    """Whoever else does something with the job at the same moment."""
    stores = [opened(backend) for _ in range(2)]
    for number in range(20):
        lease = await begun(stores[0], f"j{number}")
        first, _, second, _ = await asyncio.gather(
            stores[0].remove(lease.id),
            stores[1].finish(lease, ending()),
            stores[1].remove(lease.id),
            stores[0].hand_back(lease),
        )
        assert [first, second].count(None) == 1
        assert await stores[0].look(lease.id, ENDED) is None
        assert await stores[0].pending() == 0
        assert await stores[0].held("w1") == []


# Workers.


async def test_beats_are_counted(store: JobStore) -> None:
    """Each worker's own, and all are told."""
    assert await store.beat("w1") == {"w1": 1}
    assert await store.beat("w2") == {"w1": 1, "w2": 1}
    for count in range(2, 5):
        assert await store.beat("w1") == {"w1": count, "w2": 1}


async def test_who_has_not_beaten_since_is_adopted_from(store: JobStore) -> None:
    """With what is known of its jobs; its own leases are lost, and the new ones work."""
    await submitted(store, *(job(id) for id in "abc"))
    dead = [there(await store.claim("dead", 10)).lease for _ in range(2)]
    assert await store.begin(dead[1])
    beats = await store.beat("dead")
    own = there(await store.claim("w1", 10)).lease
    await store.adopt("w1", "dead", beats["dead"])
    assert await store.held("dead") == []
    held = sorted(await store.held("w1"))
    assert held == [
        Held(Lease("a", "w1", 2), job().operation, 60, False, 0),
        Held(Lease("b", "w1", 2), job().operation, 60, True, 1),
        Held(own, job().operation, 60, False, 0),
    ]
    for lease in dead:
        assert await store.begin(lease) is False
        assert await store.finish(lease, ending()) is False
    assert await store.hand_back(held[0].lease) is True
    assert await store.finish(held[1].lease, ending(failed=True)) is True
    assert await store.finish(own, ending()) is True
    assert there(await store.claim("w1", 10)).lease == Lease("a", "w1", 3)


@pytest.mark.parametrize("beat", [0, 1, 3])
async def test_who_has_beaten_since_keeps_its_jobs(store: JobStore, beat: int) -> None:
    """Whoever thought it dead had seen another count."""
    lease = await begun(store, "a", "w2")
    for _ in range(2):
        await store.beat("w2")
    await store.adopt("w1", "w2", beat)
    assert await store.held("w1") == []
    assert await store.held("w2") == [Held(lease, job().operation, 60, True, 1)]
    assert await store.finish(lease, ending()) is True


async def test_from_nobody_nothing_is_adopted(store: JobStore) -> None:
    """A worker that is not known, or that holds nothing."""
    lease = await claimed(store, "a", "w2")
    await store.beat("idle")
    await store.adopt("w1", "nobody", 0)
    await store.adopt("w1", "idle", 1)
    assert await store.held("w1") == []
    assert await store.held("w2") == [Held(lease, job().operation, 60, False, 0)]


async def test_two_adopt_at_once(backend: Backend, opened: Opened) -> None:
    """Each job has one new holder, and one new number."""
    stores = [opened(backend) for _ in range(2)]
    for round_ in range(10):
        dead = f"dead{round_}"
        ids = [f"{round_}-{number}" for number in range(10)]
        await submitted(stores[0], *(job(id) for id in ids))
        assert len(await all_claims(stores[0], dead)) == 10
        (beats, _) = await asyncio.gather(stores[0].beat(dead), stores[1].pending())
        workers = [f"w{round_}-{number}" for number in range(2)]
        await asyncio.gather(
            *(one.adopt(worker, dead, beats[dead]) for one, worker in zip(stores, workers, strict=True))
        )
        held = [held.lease for worker in workers for held in await stores[0].held(worker)]
        assert sorted(lease.id for lease in held) == ids
        assert {lease.number for lease in held} == {2}


async def test_whoever_holds_a_job_is_known(store: JobStore) -> None:
    """Also who has not beaten yet: if it ends before, somebody must be able to find it dead."""
    await claimed(store, "a", "w1")
    assert await store.beat("w2") == {"w1": 0, "w2": 1}
    await store.adopt("w3", "w1", 0)
    assert await store.beat("w2") == {"w1": 0, "w2": 2, "w3": 0}
    assert [held.lease.id for held in await store.held("w3")] == ["a"]
    assert await store.beat("w3") == {"w1": 0, "w2": 2, "w3": 1}
    # To know it again does not count from the beginning.
    await claimed(store, "b", "w3")
    assert (await store.beat("w2"))["w3"] == 1


async def test_who_leaves_is_forgotten_unless_it_holds_a_job(store: JobStore) -> None:
    """Else nobody would ever settle that."""
    lease = await claimed(store, "a", "w1")
    await store.beat("w2")
    await store.leave("w1")
    assert await store.beat("w2") == {"w1": 0, "w2": 2}
    assert await store.finish(lease, ending())
    await store.leave("w1")
    await store.leave("nobody")
    assert await store.beat("w2") == {"w2": 3}
    await store.leave("w2")
    assert await store.beat("w2") == {"w2": 1}


async def test_what_is_urgent_is_the_same_store(store: JobStore) -> None:
    """Asked by either, done for both; they close together."""
    urgent = store.urgently()
    await submitted(store, job("a"))
    lease = there(await urgent.claim("w1", 10)).lease
    assert await store.begin(lease) is True
    assert await urgent.beat("w1") == {"w1": 1}
    assert await store.beat("w1") == {"w1": 2}
    assert await urgent.held("w1") == [Held(lease, job().operation, 60, True, 1)]
    assert await urgent.finish(lease, ending()) is True
    assert there(await store.look("a", ENDED)).ending == ending()
    await store.close()
    assert "closed" in await refused(urgent.pending())


async def test_what_is_urgent_waits_for_no_client(store: JobStore) -> None:
    """A beat is counted before a crowd of large jobs is kept, which came before it."""
    body = bytes(512 * 1024)
    await store.leave("nobody")
    crowd = [
        asyncio.create_task(store.submit(job(f"j{number}", body=body), AMPLE)) for number in range(AT_ONCE)
    ]
    await asyncio.sleep(0)
    assert await store.urgently().beat("w1") == {"w1": 1}
    assert sum(call.done() for call in crowd) < AT_ONCE / 2
    assert set(await asyncio.gather(*crowd)) == {""}


# Webhooks.


async def test_an_end_is_due_when_it_has_come(store: JobStore) -> None:
    """Not before, not for a job without a webhook; the delivery has what a poll would find."""
    end = ending(b"\x00answer\xff", completed=ENDED)
    await finished(store, "quiet", end)
    lease = await begun(store, "a", webhook="hook")
    assert await store.due(FOREVER - 1, FOREVER) is None
    assert await store.finish(lease, end)
    assert await store.due(ENDED - 0.5, FOREVER) is None
    delivery = there(await store.due(ENDED, ENDED + 30))
    assert delivery.webhook == "hook"
    assert delivery.tries == 1
    assert delivery.found == await store.peek("a", ENDED)
    assert delivery.found.ending == end._replace(body=b"")


async def test_nobody_else_gets_it_until_again(store: JobStore) -> None:
    """Then it comes again, and each time is counted, until it was told."""
    await finished(store, "a", webhook="hook")
    for tries in range(1, 5):
        now = ENDED + 10 * tries
        assert there(await store.due(now, now + 9.5)).tries == tries
        assert await store.due(now + 9.25, FOREVER) is None
    await store.told("a", None)
    assert await store.due(EXPIRES - 1, FOREVER) is None
    assert await store.look("a", ENDED) is not None


async def test_an_end_can_be_put_off(store: JobStore) -> None:
    """To the time that `told` says, earlier or later than what `due` was told."""
    await finished(store, "a", webhook="hook")
    assert await store.due(ENDED, ENDED + 10) is not None
    await store.told("a", ENDED + 500)
    assert await store.due(ENDED + 499, FOREVER) is None
    assert there(await store.due(ENDED + 500, ENDED + 1000)).tries == 2
    await store.told("a", ENDED + 600)
    assert there(await store.due(ENDED + 600, ENDED + 1000)).tries == 3


async def test_who_is_late_does_not_put_off_what_was_told(store: JobStore) -> None:
    """A second worker took it over and told it; then the first gives up."""
    await finished(store, "a", webhook="hook")
    assert await store.due(ENDED, ENDED + 10) is not None
    assert await store.due(ENDED + 10, ENDED + 20) is not None
    await store.told("a", None)
    await store.told("a", ENDED + 30)
    assert await store.due(ENDED + 3000, FOREVER) is None


async def test_what_is_no_end_is_not_told(store: JobStore) -> None:
    """A job that is not over, that has no webhook or that is gone."""
    await finished(store, "quiet")
    await finished(store, "gone", webhook="hook")
    await store.remove("gone")
    await begun(store, "held", webhook="hook")
    await submitted(store, job("waits", webhook="hook"))
    for id in ("quiet", "gone", "held", "waits", "nobody"):
        await store.told(id, NOW)
        await store.told(id, None)
        await store.told(id, NOW)
    assert await store.due(ENDED, FOREVER) is None
    assert await store.look("nobody", NOW) is None


async def test_the_first_that_is_due_comes_first(store: JobStore) -> None:
    """By the time at which it is due, each with its own webhook."""
    for id, completed in (("a", 30.0), ("b", 10.0), ("c", 20.0)):
        await finished(store, id, ending(completed=completed), webhook=f"hook-{id}")
    order = [there(await store.due(100.0, 200.0 + number)) for number in range(3)]
    assert [(delivery.found.id, delivery.webhook) for delivery in order] == [
        ("b", "hook-b"),
        ("c", "hook-c"),
        ("a", "hook-a"),
    ]
    assert await store.due(100.0, FOREVER) is None
    await store.told("c", 150.0)
    assert there(await store.due(150.0, 201.5)).found.id == "c"
    assert [there(await store.due(202.0, FOREVER)).found.id for _ in range(3)] == ["b", "c", "a"]


async def test_what_has_expired_is_not_told(store: JobStore) -> None:
    """Nobody could fetch it; what comes after it is told."""
    await finished(store, "a", ending(completed=10.0, expires=4000.0), webhook="hook")
    await finished(store, "b", ending(completed=20.0, expires=5000.0), webhook="hook")
    assert there(await store.due(4000.0, FOREVER)).found.id == "b"
    assert await store.due(4000.0, FOREVER) is None


async def test_many_ask_what_is_due(backend: Backend, opened: Opened) -> None:
    """At the same moment, through two stores: each end is given to one of them."""
    stores = [opened(backend) for _ in range(2)]
    for number in range(20):
        await finished(stores[0], f"j{number}", webhook="hook")
    deliveries = await asyncio.gather(*(stores[n % 2].due(ENDED, FOREVER) for n in range(40)))
    told = [delivery for delivery in deliveries if delivery is not None]
    assert sorted(delivery.found.id for delivery in told) == sorted(f"j{number}" for number in range(20))
    assert {delivery.tries for delivery in told} == {1}
