"""Two thousand streams at once, half of them to clients that never read; and more clients than descriptors.

Facts
  - Provider, proxy and clients share a machine. What is late may be late by the provider's or the clients'
    own fault; streams that go past the proxy show how much of it is.
  - While a thousand streams are flooded, each turn of the proxy's loop moves what all of them can take, and
    in the end it resets all of them in a few turns. The others wait for a turn: these times are judged apart.
"""

from __future__ import annotations

import asyncio
import hashlib
import resource
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import crowd
from crowd import Call, Clocked, Process, Service, clock
from rawclient import Client, Response, asked, get, post
from scripted import LAST_CHUNK, answer, chunk, refusal, sse, stream_head

MESSAGES = "/anthropic/v1/messages"
STREAMS = 2000
COMPARED = 50
"""Streams that go past the proxy."""

SEND_TIMEOUT = 10
BUFFER = 262144
"""`max_buffer_bytes`: the default."""

BESIDE = 32768
"""What a stream may cost beside its buffer: two connections, a task, an exchange."""

FLAT = 2**20
"""By so much memory may grow while nothing can move."""

LATE = 1.0
"""Seconds that the proxy may add to an event's way in 99 of 100 cases, beside a flood that stands still."""

VERY_LATE = 7.0
"""The same while the flood moves. A reader that had to wait for those who do not read would wait longer."""

BUSY = 3
"""By so much more may a busy machine delay what goes through two processes instead of one."""

FLOOD = chunk(sse("content_block_delta", "x" * 16_000))

CONFIG = f"""
listen: ["127.0.0.1:0"]
ping_interval: 0
send_timeout: {SEND_TIMEOUT}
providers:
  anthropic:
    base_urls: {{{{anthropic: "{{url}}"}}}}
"""


class Streams:
    """What the provider does: it floods some clients, and paces the others, 5 to 20 events a second."""

    def __init__(self) -> None:
        self.go, self.over = asyncio.Event(), asyncio.Event()
        self.begun = 0
        self.floods: list[Call] = []
        self.digests: dict[str, Any] = defaultdict(hashlib.sha256)

    async def __call__(self, call: Call, _: bytes) -> None:
        await call.send(stream_head())
        self.begun += 1
        if call.field("x-crowd") == "floods":
            self.floods.append(call)
            await self.go.wait()
            while True:
                await call.send(FLOOD)
                await asyncio.sleep(0)
        await self.go.wait()
        number = call.field("x-id")
        seconds = 0.05 if int(number) % 20 == 0 else 0.2
        # Not all in the same moment.
        await asyncio.sleep(seconds * (int(number) % 100) / 100)
        while not self.over.is_set():
            event = sse("content_block_delta", {"at": clock(), "text": "word " * 8})
            self.digests[number].update(event)
            await call.send(chunk(event))
            await asyncio.sleep(seconds)
        await call.send(LAST_CHUNK)

    def flooded(self) -> int:
        """The bytes that the floods came to so far."""
        return sum(call.sent for call in self.floods)


async def all_enter(service: Service, kind: str, numbers: Iterable[int], **options: Any) -> list[Clocked]:
    """Clients with these numbers, a hundred at a time."""
    gate = asyncio.Semaphore(100)

    async def enter(number: int) -> Clocked:
        fields = [(b"x-crowd", kind.encode()), (b"x-id", b"%d" % number)]
        async with gate:
            return await service.enter(post(MESSAGES, asked(stream=True), fields), **options)

    return await asyncio.gather(*map(enter, numbers))


async def end_of_the_flood(streams: Streams, process: Process, most: int) -> int:
    """The bytes of the floods, when a second has brought no more of them. Memory stays below `most`."""
    before, after = -1, 0
    async with asyncio.timeout(crowd.HUSH_SECONDS):
        while before != after:
            before = after
            await asyncio.sleep(1)
            after = streams.flooded()
            assert crowd.resident(process.pid) < most, "the memory of the flooded streams"
    return after


Delays = list[tuple[float, float]]


def late(delays: Delays, since: float, until: float) -> list[float]:
    """The median, the 99th percentile and the longest of the delays of what was sent in a span of time."""
    some = [delay for sent, delay in delays if since <= sent < until]
    return [crowd.percentile(some, share) for share in (0.5, 0.99, 1)]


def shown(delays: list[float]) -> str:
    return "p50 {:.0f}, p99 {:.0f}, at most {:.0f} ms".format(*(1e3 * delay for delay in delays))


async def test_two_thousand_streams(tmp_path: Path) -> None:
    """Who never reads costs a bounded amount of memory, and is reset in the end; the others notice nothing.

    The delay of an event is from the provider's sending to the client's receiving.
    """
    count = crowd.room(STREAMS, 2) // 2
    streams = Streams()
    async with (
        crowd.provider(streams) as provider,
        Service(tmp_path, CONFIG.format(url=provider.url)) as service,
    ):
        process = await service.start()
        # What a first use costs for good is not the crowd's.
        assert await process.metric("verbatim_connections") == 1
        memory, open_before = crowd.resident(process.pid), crowd.descriptors(process.pid)
        most = memory + count * BUFFER + 2 * count * BESIDE

        past = int(provider.url.rpartition(":")[2])
        readers = await all_enter(service, "reads", range(count))
        compared = await all_enter(service, "reads", range(count, count + COMPARED), port=past)
        deaf = await all_enter(service, "floods", range(count), receive_buffer=4096, reads=False)
        await crowd.until(lambda: streams.begun == 2 * count + COMPARED, "all streams' begin")
        idle = crowd.resident(process.pid) - memory

        began = clock()
        streams.go.set()
        flooded = await end_of_the_flood(streams, process, most)
        stood = clock()
        held = crowd.resident(process.pid)
        used = crowd.cpu_seconds(process.pid)
        await asyncio.sleep(2)
        used = crowd.cpu_seconds(process.pid) - used
        assert streams.flooded() == flooded, "the provider goes on pouring"
        assert crowd.resident(process.pid) < min(most, held + FLAT)
        assert len([call for call in streams.floods if not call.closed_at]) == count, "too late to tell"

        await crowd.until(lambda: all(call.closed_at for call in streams.floods), "the end of the floods")
        ended = [call.closed_at - began for call in streams.floods]
        assert min(ended) > SEND_TIMEOUT
        await asyncio.sleep(1)
        over = clock()
        streams.over.set()
        for wire in (*readers, *compared):
            await wire.ends_with(LAST_CHUNK)
        for wire in deaf:
            wire.transport.resume_reading()
            await wire.until(lambda wire=wire: wire.over, "the reset")  # type: ignore[misc]
        assert {wire.end for wire in deaf} == {"reset"}
        for wire in (*readers, *compared, *deaf):
            wire.transport.abort()
        provider.hang_up()
        await crowd.until(lambda: crowd.descriptors(process.pid) <= open_before, "the descriptors' return")
        assert await process.metric("verbatim_connections") == 1
        assert await process.metric("bifrost_active_requests") == 1

        through: Delays = []
        direct: Delays = []
        for number, wire in enumerate((*readers, *compared)):
            one = await crowd.heard(wire)
            assert one.complete
            assert hashlib.sha256(one.body).digest() == streams.digests[str(number)].digest()
            assert len(one.delays) > 10
            (through if number < count else direct).extend(one.delays)
        kilobyte = 1e3 * count
        print(
            f"\n{2 * count} streams, {count} of them not read\n"
            f"memory: {idle / 2 / kilobyte:.0f} KB a stream at their begin, "
            f"{(held - memory) / 2 / kilobyte:.0f} KB when the flood stood still\n"
            f"flood: {flooded / kilobyte:.0f} KB a stream in {stood - began - 1:.1f} s; reset after "
            f"{min(ended):.1f} to {max(ended):.1f} s; CPU while it stood {used / 2:.0%}"
        )
        spans = {
            "flowed": (began, stood),
            "stood": (stood, began + min(ended)),
            "ended": (began + min(ended), over),
        }
        for what, span in spans.items():
            added, own = late(through, *span), late(direct, *span)
            print(f"delay while the flood {what}: {shown(added)}; past the proxy: {shown(own)}")
            assert added[1] < BUSY * own[1] + (LATE if what == "stood" else VERY_LATE)
        assert "Traceback" not in service.log


LIMIT = 256
TAKEN_IN = (LIMIT - 64) // 2
CLIENTS = 600

TWO_PROVIDERS = """
listen: ["127.0.0.1:0"]
providers:
  first: {{base_urls: {{anthropic: "{first}"}}, network_config: {{max_retries: 0}}}}
  second: {{base_urls: {{anthropic: "{second}"}}, is_key_less: true, network_config: {{max_retries: 0}}}}
default_providers: {{anthropic: first}}
"""


class Holds:
    """Answers when it may."""

    def __init__(self, data: bytes) -> None:
        self.go = asyncio.Event()
        self.data = data
        self.begun = 0

    async def __call__(self, call: Call, _: bytes) -> None:
        self.begun += 1
        await self.go.wait()
        await call.send(self.data)


async def answered(wire: Clocked, *, leaves: bool = True) -> Response:
    """The answer to what a client asked; then it leaves."""
    response = await Client(wire).response()
    if leaves:
        wire.transport.close()
    return response


async def starved(process: Process, seconds: float = 2) -> float:
    """The share of a CPU that the process takes while nothing can go on."""
    used = crowd.cpu_seconds(process.pid)
    await asyncio.sleep(seconds)
    return (crowd.cpu_seconds(process.pid) - used) / seconds


async def test_more_clients_than_descriptors(tmp_path: Path) -> None:
    """All ask at once. Some are taken in, the others wait; nobody is refused, and each has its answer."""
    count = crowd.room(CLIENTS, 1)
    holds = Holds(answer(body=b"{}"))
    async with (
        crowd.provider(holds) as provider,
        Service(tmp_path, CONFIG.format(url=provider.url)) as service,
    ):
        process = await service.start(descriptors=LIMIT)
        requests = [post(MESSAGES, asked(), [(b"x-id", b"%d" % number)]) for number in range(count)]
        wires = await asyncio.gather(*(service.enter(request) for request in requests))
        await crowd.until(lambda: holds.begun == TAKEN_IN, "the first requests")
        share = await starved(process)
        assert holds.begun == TAKEN_IN
        health = await service.enter(get("/health"))
        began = clock()
        holds.go.set()
        answers = await asyncio.gather(*map(answered, wires))
        assert Counter(one.status for one in answers) == {200: count}
        assert Counter(provider.asked.values()) == {1: count}
        assert (await answered(health)).status == 200
        print(
            f"\n{count} clients, {LIMIT} descriptors: CPU while they wait {share:.1%}; the last answer "
            f"{clock() - began:.1f} s after the provider may answer"
        )
        assert share < 0.2
        assert service.log.count("further ones wait") == 1


async def test_no_descriptor_at_all(tmp_path: Path) -> None:
    """Accepting fails: connections wait, and the CPU rests. Who is in is told to come again; it passes."""
    holds = Holds(answer(body=b"{}"))
    holds.go.set()
    async with (
        crowd.provider(holds) as provider,
        Service(tmp_path, CONFIG.format(url=provider.url)) as service,
    ):
        process = await service.start()
        inside = Client(await service.enter(get("/health")))
        assert (await inside.response()).status == 200
        _, most = limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (crowd.first_free(process.pid), most))

        wires = await asyncio.gather(*(service.enter(post(MESSAGES, asked())) for _ in range(50)))
        share = await starved(process)
        assert share < 0.2
        await inside.send(get("/health"))
        assert (await inside.response()).status == 200
        await inside.send(post(MESSAGES, asked()))
        response = await inside.response()
        assert not any(wire.everything or wire.over for wire in wires)

        began = clock()
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
        assert Counter([(await answered(wire)).status for wire in wires]) == {200: len(wires)}
        print(
            f"\nno descriptor: CPU {share:.1%}; all are answered {clock() - began:.1f} s after there are some"
        )
        await inside.send(post(MESSAGES, asked()))
        assert (await inside.response()).status == 200
        assert service.log.count("connections have to wait") == 1
        assert (response.status, response.header("retry-after")) == (503, b"1")


async def test_idle_connections_upstream_make_room(tmp_path: Path) -> None:
    """Those that the pool keeps to one provider are closed where another cannot be connected to without."""
    holds = Holds(answer(body=b"{}"))

    async def overloaded(call: Call, _: bytes) -> None:
        await call.send(refusal(529))

    async with (
        crowd.provider(overloaded) as first,
        crowd.provider(holds) as second,
        Service(tmp_path, TWO_PROVIDERS.format(first=first.url, second=second.url)) as service,
    ):
        await service.start(descriptors=LIMIT)
        request = post(MESSAGES, asked(fallbacks=["second/claude-2"]))
        wires = await asyncio.gather(*(service.enter(request) for _ in range(TAKEN_IN)))
        await crowd.until(lambda: sum(first.asked.values()) == TAKEN_IN, "the requests at the first provider")
        await crowd.until(lambda: holds.begun == TAKEN_IN, "the requests at the second provider", 10)
        holds.go.set()
        assert Counter([(await answered(wire)).status for wire in wires]) == {200: TAKEN_IN}


async def test_idle_clients_make_room(tmp_path: Path) -> None:
    """Who has had an answer and stays keeps nobody out who asks now."""
    holds = Holds(answer(body=b"{}"))
    holds.go.set()
    async with (
        crowd.provider(holds) as provider,
        Service(tmp_path, CONFIG.format(url=provider.url)) as service,
    ):
        await service.start(descriptors=LIMIT)
        stay = [await service.enter(post(MESSAGES, asked())) for _ in range(TAKEN_IN)]
        for wire in stay:
            assert (await answered(wire, leaves=False)).status == 200
        for _ in range(20):
            wire = await service.enter(post(MESSAGES, asked()))
            wire.patience = 20
            assert (await answered(wire, leaves=False)).status == 200
