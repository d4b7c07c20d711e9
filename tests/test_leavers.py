"""A thousand clients that leave at random moments, in every phase: nothing of them stays.

Facts
  - For a client that it does not read the proxy looks twice a second.
  - An upstream that does not read sees no FIN. There it counts when the proxy has closed the connection.
  - Provider, proxy and clients share this loop: whatever happens may be seen one of its turns late.

Rules
  1. `SEED` decides everything that is random. It is printed with a failure.

Not here: the phases (`leaving`), what the log says of those who left (`test_client_leaves`).
"""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import crowd
import leaving
import pytest
from crowd import clock
from leaving import LEAVE, MESSAGES, PHASES, Guest
from rawclient import asked, header_pairs, header_values
from running import Proxy, StartProxy, keyed
from scripted import MESSAGE, Conn, Raw, Upstream, answer, raw

from proxy.connection import Connection
from proxy.upstream import POOL_SIZE

SEED = 20261121
EACH = 50
"""Clients in each phase."""

TOGETHER = 50
"""Clients at a time."""

SPREAD = 0.3
"""Seconds that a client stays in its phase, at most."""

PROMPTLY = 1.0
"""Seconds within which everything of a client that left is closed."""

TURNS = 3
"""Turns of the loop that it takes: the proxy's two, for either side, and the provider's own."""

EARLY = 0.1
PING = 0.05


class Leavers:
    """All guests, the proxies that they come to, and when upstream connections of theirs were closed."""

    def __init__(self) -> None:
        self.guests: dict[int, Guest] = {}
        self.carried: Counter[int] = Counter()
        """How many requests of each guest came upstream."""
        self.closings: list[tuple[float, str]] = []
        """For each connection that ended, how long after its guest's leaving, and the phase."""
        self.proxies: list[Proxy] = []
        self._numbers = itertools.count(1)
        self._rng = random.Random(SEED)

    def closed(self, guest: Guest) -> None:
        """The proxy has closed an upstream connection of this guest."""
        assert guest.left_at, f"closed before its client left: {guest.phase}"
        self.closings.append((clock() - guest.left_at, f"upstream, {guest.phase}"))

    async def comes_and_goes(self, phase: str, goes: asyncio.Event | None = None) -> None:
        """One client comes, enters its phase and leaves; returns when the proxy has closed its connection."""
        number, rng = next(self._numbers), random.Random(self._rng.random())
        proxy = self.proxies[number % len(self.proxies)]
        narrow = 4096 if PHASES[phase].enter is leaving.reads_nothing else None
        async with await proxy.connect(receive_buffer=narrow) as client:
            guest = self.guests[number] = Guest(number, phase, rng, client)
            try:
                await asyncio.wait_for(PHASES[phase].enter(guest), crowd.HUSH_SECONDS)
            except TimeoutError:
                raise AssertionError(f"does not get to its phase: {phase}, seed {SEED}") from None
            if goes is not None:
                await goes.wait()
            await asyncio.sleep(rng.random() * SPREAD)
            name = client.wire.transport.get_extra_info("sockname")
            guest.left_at = clock()
            LEAVE[rng.choice(PHASES[phase].ways)](client)
            await crowd.until(lambda: name not in doors(proxy), f"the client's connection, {phase}", 20)
            self.closings.append((clock() - guest.left_at, f"downstream, {phase}"))

    def check(self, lag: float) -> str:
        """Everything was closed in time, and nothing was sent for who had left; what there is to say."""
        slowest, what = max(self.closings)
        assert slowest < PROMPTLY + TURNS * lag, f"{what}: {slowest:.2f} s, seed {SEED}"
        for guest in self.guests.values():
            phase = PHASES[guest.phase]
            expected = (phase.play is not None) + (phase.fallback is not None)
            assert self.carried[guest.number] == expected, f"{guest.phase}, seed {SEED}"
        upstream = sum(what.startswith("upstream") for _, what in self.closings)
        usual = crowd.percentile([seconds for seconds, _ in self.closings], 0.99)
        return (
            f"{len(self.guests)} clients left, and {upstream} upstream connections: closed after "
            f"{usual:.3f} s (p99), {slowest:.3f} s at most ({what}); the loop's longest turn was {lag:.3f} s"
        )


def doors(proxy: Proxy) -> set[object]:
    """The other ends of the connections that the proxy has open downstream."""
    downstream = proxy.server._downstream
    assert downstream is not None
    open_ones = [door.transport for door in downstream.connections if door.transport is not None]
    return {transport.get_extra_info("peername") for transport in open_ones}


def own_ends(proxy: Proxy) -> set[object]:
    """The own ends of the connections that the proxy has open upstream."""
    upstream = proxy.server._upstream
    assert upstream is not None
    return {connection.transport.get_extra_info("sockname") for connection in upstream._open}


class Provider(Upstream):
    """Does with each request what its phase says; notes when the proxy left the connection."""

    def __init__(self, leavers: Leavers, *, backup: bool = False) -> None:
        super().__init__()
        self._leavers = leavers
        self._backup = backup

    def next_step(self) -> Raw:
        super().next_step()
        return raw(self._play)

    async def _play(self, conn: Conn) -> None:
        lines = (await conn.read_until(b"\r\n\r\n")).split(b"\r\n")
        fields = header_pairs(lines[1:-2])
        lengths = header_values(fields, "content-length")
        if lengths and lines[0].startswith(b"POST /v1/messages"):
            await conn.read_exactly(int(lengths[0]))
        numbers = header_values(fields, "x-id")
        if not numbers:
            await conn.send(answer(body=MESSAGE))
            return
        guest = self._leavers.guests[int(numbers[0])]
        self._leavers.carried[guest.number] += 1
        phase = PHASES[guest.phase]
        play = phase.fallback if self._backup else phase.play
        assert play is not None, f"came upstream: {guest.phase}"
        try:
            await play(conn, guest.reached.set)
            if play is leaving.does_not_read:
                end = conn._wire.transport.get_extra_info("peername")
                await crowd.until(
                    lambda: not any(end in own_ends(proxy) for proxy in self._leavers.proxies),
                    "the upload's end",
                    20,
                )
        finally:
            if play is leaving.does_not_read or not conn.open:
                self._leavers.closed(guest)
            if play is leaving.does_not_read:
                conn.go_on_reading()


@pytest.fixture
def leavers() -> Leavers:
    return Leavers()


@pytest.fixture
async def providers(leavers: Leavers) -> AsyncIterator[tuple[Provider, Provider]]:
    """The provider, and the one that is its fallback."""
    both = Provider(leavers), Provider(leavers, backup=True)
    for one in both:
        await one.start()
    yield both
    for one in both:
        await one.stop()
        one.check()


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port that neither accepts nor refuses: its queue of connections is full, so the kernel drops more."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for queued in waiting:
            queued.setblocking(False)
            queued.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for queued in waiting:
            queued.close()


@pytest.fixture
async def lag() -> AsyncIterator[list[float]]:
    """The longest turn of this loop so far: by so much everything here may be late."""
    longest = [0.0]

    async def ticks() -> None:
        while True:
            began = clock()
            await asyncio.sleep(0.01)
            longest[0] = max(longest[0], clock() - began - 0.01)

    ticking = asyncio.create_task(ticks())
    yield longest
    ticking.cancel()


StartProxies = Callable[..., Awaitable[list[Proxy]]]


@pytest.fixture
def proxies(
    leavers: Leavers, providers: tuple[Provider, Provider], full_port: int, proxy: StartProxy
) -> StartProxies:
    """Starts a proxy, and one that begins streams early and pings often."""

    async def start() -> list[Proxy]:
        main, backup = providers
        waits = {"max_retries": 5, "retry_backoff_initial": 30, "retry_backoff_max": 30}
        full = {"base_urls": {"anthropic": f"http://127.0.0.1:{full_port}"}}
        for settings in ({}, {"early_stream_after": EARLY, "ping_interval": PING}):
            one = await proxy(
                providers={
                    "anthropic": keyed(main, "main", network_config={"max_retries": 0}),
                    "backup": backup,
                    "busy": {"base_urls": {"anthropic": main.url}, "network_config": waits},
                    "full": {**full, "network_config": {"connect_timeout": 60}},
                },
                **settings,
            )
            assert (await one.get("/health")).status == 200
            leavers.proxies.append(one)
        await all_have_left(leavers.proxies)
        return leavers.proxies

    return start


def pooled(proxy: Proxy) -> set[Connection]:
    """The connections that wait for a next request."""
    upstream = proxy.server._upstream
    assert upstream is not None
    return {connection for idle in upstream._idle.values() for connection in idle}


async def all_have_left(proxies: list[Proxy]) -> None:
    await crowd.until(lambda: not any(one.server.connections for one in proxies), "the last connections' end")


async def is_clean(proxy: Proxy) -> int:
    """Nothing of a request is left in the proxy; the number of pooled connections upstream, all unused."""
    handler, upstream = proxy.server._handler, proxy.server._upstream
    assert handler is not None
    assert upstream is not None
    assert handler._open == {}
    assert handler.buffered() == 0
    unused = pooled(proxy)
    assert upstream._open == unused
    assert all(connection.answer is None and connection.clean for connection in unused)
    assert all(len(idle) <= POOL_SIZE for idle in upstream._idle.values())
    text = (await proxy.get("/metrics")).body.decode()
    # The one that asks.
    assert "\nbifrost_active_requests 1.0\n" in text
    assert "\nverbatim_connections 1.0\n" in text
    return len(unused)


async def test_a_thousand_clients_that_leave(
    leavers: Leavers, providers: tuple[Provider, Provider], proxies: StartProxies, lag: list[float]
) -> None:
    """Connections, tasks, descriptors, held bytes: when all have left, everything is as it was."""
    both = await proxies()
    tasks, descriptors = len(asyncio.all_tasks()), crowd.descriptors()
    phases = list(PHASES) * EACH
    random.Random(SEED).shuffle(phases)
    gate = asyncio.Semaphore(TOGETHER)

    async def one(phase: str) -> None:
        async with gate:
            await leavers.comes_and_goes(phase)

    began = clock()
    async with asyncio.TaskGroup() as coming:
        for phase in phases:
            coming.create_task(one(phase))
    seconds = clock() - began
    await crowd.until(
        lambda: sum(provider.open for provider in providers) == sum(len(pooled(p)) for p in both),
        "the last upstream connections",
        PROMPTLY + TURNS * lag[0],
    )
    print(f"\n{leavers.check(lag[0])}; {seconds:.1f} s in all")
    unused = [await is_clean(p) for p in both]
    for p in both:
        for _ in range(2 * EACH):
            assert (await p.post(MESSAGES, asked())).body == MESSAGE
    await all_have_left(both)
    for provider in providers:
        for conn in provider.conns:
            conn.drop()
    await crowd.until(lambda: len(asyncio.all_tasks()) == tasks, "the tasks' end")
    await crowd.until(lambda: crowd.descriptors() == descriptors, "the descriptors' return")
    print(
        f"before and after: {tasks} tasks, {descriptors} descriptors, 0 requests, 0 bytes held; "
        f"pooled upstream: {unused}, from {sum(provider.connections for provider in providers)} connections"
    )


DRAINED = [phase for phase, what in PHASES.items() if what.play is not None and "backing" not in phase]


async def test_leaving_while_the_proxy_stops(
    leavers: Leavers, providers: tuple[Provider, Provider], proxies: StartProxies, lag: list[float]
) -> None:
    """Who leaves during the drain is not waited for: the proxies stop when the last one has left."""
    both = await proxies()
    goes, come = asyncio.Event(), DRAINED * 6
    async with asyncio.TaskGroup() as coming:
        for phase in come:
            coming.create_task(leavers.comes_and_goes(phase, goes))
        await crowd.until(
            lambda: (
                len(leavers.guests) == len(come)
                and all(guest.reached.is_set() for guest in leavers.guests.values())
            ),
            "all phases",
        )
        stopping = asyncio.gather(*(p.stop() for p in both))
        await asyncio.sleep(0)
        began = clock()
        goes.set()
    await stopping
    assert clock() - began < SPREAD + PROMPTLY + TURNS * lag[0]
    print(f"\nwhile it drained: {leavers.check(lag[0])}")
    await crowd.until(lambda: not any(provider.open for provider in providers), "upstream's connections")
