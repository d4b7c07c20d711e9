"""Verbatim at its limits: thousands of streams, pings, large bodies beside streams, the start.

Facts
  - ``many`` holds the event rate and changes the number of streams, so that a cost which grows with the open
    streams shows in the cost of an event. nginx stands beside it: caches and the kernel get slower for it too.
  - A ping's lateness is the silence before it, as the client sees it, less the interval.
  - ``stall``: an event that waits while the proxy works on a large body arrives late, and by as much.

Not here: one run (`measure`), the comparison of costs (`compare`).
"""

from __future__ import annotations

import http.client
import os
import statistics
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import peers
from measure import Bench, Run, Spread, middle
from peers import PEER_CORE, Peer, running

EVENTS_PER_SECOND = 5000
MANY, MANY_ROUNDS = (100, 1000, 8000), 2
PING_SECONDS, SILENCE_SECONDS, PING_STREAMS = 2, 5, 8000
ENDLESS = 1_000_000
"""Events of a stream that does not end within a run."""

STALL_STREAMS, STALL_INTERVAL_US = 50, 20_000
STARTS = 5
KIB, MIB = 1024, 1024 * 1024


def resident(pid: int) -> int:
    """Resident memory in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- many


class Held(NamedTuple):
    """One run with many streams."""

    run: Run
    bytes_per_stream: float


def hold(
    bench: Bench, peer: Peer, streams: int, interval_us: int, measure_ms: int, ping_us: int = 0
) -> Held | None:
    """Hold that many streams open; all of them, the whole window long, or it is a fault."""
    what = f"{peer.name}, {streams} streams"
    with running(peer, bench.folder) as pid:
        bench.load.run(f"{what}, before", peer.port, pid, connections=8, warm_ms=500, measure_ms=500)
        before = resident(pid)
        run = bench.load.run(
            what,
            peer.port,
            pid,
            stream=1,
            connections=streams,
            events=ENDLESS,
            interval_us=interval_us,
            ping_us=ping_us,
            warm_ms=max(1000, interval_us // 1000),
            measure_ms=measure_ms,
        )
    if run is None:
        return None
    if run.fewest_open != streams:
        bench.load.fault(f"{what}: only {run.fewest_open} were open at once")
        return None
    return Held(run, (run.resident - before) / streams)


def many(bench: Bench) -> str:
    candidates = [peers.nginx(bench.folder, "nginx", bench.upstream, bench.files), bench.verbatim()]
    held: dict[tuple[str, int], list[Held | None]] = {}
    for _ in range(MANY_ROUNDS):
        for peer in candidates:
            for streams in MANY:
                interval_us = streams * 1_000_000 // EVENTS_PER_SECOND
                one = hold(
                    bench, peer, streams, interval_us, max(bench.milliseconds, 2 * interval_us // 1000)
                )
                held.setdefault((peer.name, streams), []).append(one)
    lines = [
        f"| {EVENTS_PER_SECOND:,} events/s in all | streams open at once | µs CPU per SSE event | resident memory per stream |",
        "|---|---|---|---|",
    ]
    for (name, streams), all_held in held.items():
        cost = middle((one.run.cpu_us / one.run.events if one else None for one in all_held), ".1f")
        memory = middle((one.bytes_per_stream / KIB if one else None for one in all_held), ".1f")
        lines.append(f"| {name} | {streams:,} | {cost} | {memory} KiB |")
    return "\n".join(lines) + "\n\n" + pings(bench)


def pings(bench: Bench) -> str:
    """Streams that are silent for longer than the ping interval; every one has to get each of its pings."""
    peer = bench.verbatim("Verbatim-pings", PING_SECONDS)
    window = 2 * SILENCE_SECONDS * 1000
    held = hold(bench, peer, PING_STREAMS, SILENCE_SECONDS * 1_000_000, window, PING_SECONDS * 1_000_000)
    late = held.run.ping_late_us if held else None
    if held is None or late is None:
        return "Pings: failed"
    return (
        f"Pings, {PING_STREAMS:,} streams, an event every {SILENCE_SECONDS} s, `ping_interval: {PING_SECONDS}`:"
        f" {held.run.pings:,} pings, none missed or doubled,"
        f" late by {late.p50 / 1000:.1f} / {late.p99 / 1000:.1f} / {late.max / 1000:.1f} ms (p50 / p99 / worst)."
    )


# ---- stall


def stall(bench: Bench) -> str:
    """Streams beside large posts: what an event waits, and what a megabyte costs."""
    lines = [
        f"| {STALL_STREAMS} streams beside 20 MB posts | events without posts, p99 / worst | with posts, p99 / worst | posts/s | ms CPU per MB |",
        "|---|---|---|---|---|",
    ]
    for peer in bench.plain():
        with running(peer, bench.folder) as pid:
            quiet, busy = (
                bench.load.run(
                    f"stall, {peer.name}, {posts} posting",
                    peer.port,
                    pid,
                    stream=1,
                    connections=STALL_STREAMS,
                    interval_us=STALL_INTERVAL_US,
                    posts=posts,
                    warm_ms=700,
                    measure_ms=2 * bench.milliseconds,
                )
                for posts in (0, 1)
            )
        if busy is not None and not busy.posts:
            bench.load.fault(f"stall, {peer.name}: no post was answered")
        if quiet is None or busy is None or not busy.posts:
            lines.append(f"| {peer.name} | failed |")
            continue
        streams_us = quiet.cpu_us / quiet.events * busy.events
        per_mb = (busy.cpu_us - streams_us) / 1000 / (busy.posts * busy.post_bytes / 1e6)
        cells = [
            worst(quiet.delay_us),
            worst(busy.delay_us),
            f"{busy.posts / busy.seconds:.1f}",
            f"{per_mb:.2f}",
        ]
        lines.append(f"| {peer.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def worst(spread: Spread | None) -> str:
    return f"{spread.p99 / 1000:.2f} / {spread.max / 1000:.2f} ms" if spread else "failed"


# ---- start


def start(bench: Bench) -> str:
    """From exec to the first answer to /health."""
    peer = bench.verbatim()
    # The first start compiles the modules.
    first_answer(bench, peer)
    seconds, memory = zip(*(first_answer(bench, peer) for _ in range(STARTS)), strict=True)
    return (
        f"Start: {statistics.median(seconds):.2f} s from exec to the first `/health`"
        f" ({min(seconds):.2f}-{max(seconds):.2f}, {STARTS} starts, modules compiled);"
        f" resident then: {statistics.median(memory) / MIB:.1f} MiB."
    )


def first_answer(bench: Bench, peer: Peer) -> tuple[float, int]:
    """Seconds to the first answer, and resident memory then. Raises SystemExit after 20 s."""
    begin = time.perf_counter()
    process = peers.launch(peer, bench.folder, PEER_CORE)
    try:
        while time.perf_counter() - begin < peers.START_SECONDS:
            with suppress(ConnectionError):
                connection = http.client.HTTPConnection("127.0.0.1", peer.port, timeout=5)
                connection.request("GET", "/health")
                status = connection.getresponse().status
                took = time.perf_counter() - begin
                connection.close()
                if status == 200:
                    return took, resident(process.pid)
            time.sleep(0.001)
        raise SystemExit("/health does not answer")
    finally:
        process.kill()
        process.wait()
