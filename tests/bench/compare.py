"""The peers side by side: plain HTTP, and TLS to upstream.

Facts
  - A ratio is the median of the rounds' ratios: within a round the machine has changed least.
  - 100-event streams on kept connections: an event's cost holds a hundredth of its request's.
  - A delay compares peers only at the same offered load: 200 streams with 50 events/s each, and the events and
    the beginnings of the streams evenly spread over time. It is the time from upstream's write to the arrival.

Not here: one run (`measure`), how peers are set up (`peers`).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import NamedTuple

import peers
from measure import Bench, Run, middle
from peers import LOAD_CORE, Peer, running

JSON_CONNECTIONS, STREAMS, INTERVAL_US, WARM_MS = 32, 200, 20_000, 700
SATURATED = 0.95
"""Of its core's time, what a peer uses that could not have done more requests."""


class Round(NamedTuple):
    """One peer's runs in one round; None where a run had errors."""

    json: Run | None
    stream: Run | None


Cost = Callable[[Round], float | None]


def per_request(one: Round) -> float | None:
    """Microseconds of CPU for one JSON request."""
    return one.json.cpu_us / one.json.answers if one.json else None


def per_event(one: Round) -> float | None:
    """Microseconds of CPU for one event of a stream."""
    return one.stream.cpu_us / one.stream.events if one.stream else None


def plain(bench: Bench, *, envoy: bool = True) -> str:
    candidates = [peer for peer in bench.plain() if envoy or peer.name != "Envoy"]
    return interleaved(bench, candidates, "plain HTTP") + "\n\n" + alone(bench)


def tls(bench: Bench) -> str:
    folder = bench.folder
    front = peers.nginx(folder, "front", bench.upstream, bench.files, pem=folder / "server.pem")
    impostor = peers.nginx(folder, "impostor", bench.upstream, bench.files, pem=folder / "impostor.pem")
    ca = folder / "ca.pem"

    def candidates(port: int) -> list[Peer]:
        return [
            peers.nginx(folder, "nginx", port, bench.files, ca=ca),
            peers.envoy(folder, "Envoy", port, ca=ca),
            peers.verbatim(folder, "Verbatim", f"https://127.0.0.1:{port}"),
        ]

    with running(impostor, folder, LOAD_CORE):
        refuse(bench, candidates(impostor.port))
    with running(front, folder, LOAD_CORE):
        return interleaved(bench._replace(front=True), candidates(front.port), "TLS to upstream")


def refuse(bench: Bench, candidates: list[Peer]) -> None:
    """Every peer has to refuse an upstream whose certificate comes from an authority that it does not trust."""
    for peer in candidates:
        with running(peer, bench.folder) as pid:
            seen = bench.load.raw(peer.port, pid, warm_ms=0, measure_ms=100)
        if seen["requests"] or not seen["errors"]:
            bench.load.fault(f"{peer.name} does not verify its upstream's certificate")


def interleaved(bench: Bench, candidates: list[Peer], title: str) -> str:
    runs: dict[str, list[Round]] = {peer.name: [] for peer in candidates}
    for number in range(1, bench.rounds + 1):
        for peer in candidates:
            with running(peer, bench.folder) as pid:
                runs[peer.name].append(both(bench, f"{title}, {peer.name}, round {number}", peer.port, pid))
        print(f"{title}: round {number} of {bench.rounds} is done", file=sys.stderr)
    return table(title, runs)


def both(bench: Bench, what: str, port: int, pid: int) -> Round:
    window = {"warm_ms": WARM_MS, "measure_ms": bench.milliseconds}
    streams = {"stream": 1, "connections": STREAMS, "interval_us": INTERVAL_US}
    return Round(
        bench.load.run(f"{what}, JSON", port, pid, front=bench.front, connections=JSON_CONNECTIONS, **window),
        bench.load.run(f"{what}, streams", port, pid, front=bench.front, **streams, **window),
    )


def alone(bench: Bench) -> str:
    """What the load program does without a proxy: the floor under every delay, and the roof over every rate."""
    one = both(bench, "no proxy", bench.upstream, 0)
    return (
        f"The load program without a proxy: {rate([one])} requests/s;"
        f" delay of an event {delay([one], 0)} / {delay([one], 1)} µs."
    )


def table(title: str, runs: dict[str, list[Round]]) -> str:
    references = [name for name in runs if name != "Verbatim"]
    against = [f"x {name}" for name in references]
    heads = [title, "µs CPU per JSON request", *against, "requests/s on one core"]
    heads += ["µs CPU per SSE event", *against, "delay of an event, p50 / p99"]
    lines = [heads, ["---"] * len(heads)]
    for name, rounds in runs.items():
        lines.append(
            [
                name,
                middle(map(per_request, rounds), ".0f"),
                *(ratio(rounds, runs[other], per_request) for other in references),
                rate(rounds),
                middle(map(per_event, rounds), ".1f"),
                *(ratio(rounds, runs[other], per_event) for other in references),
                f"{delay(rounds, 0)} / {delay(rounds, 1)} µs",
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def ratio(rounds: list[Round], others: list[Round], cost: Cost) -> str:
    """The median of the rounds' ratios, with the least and the greatest."""
    if rounds is others:
        return "1"
    ratios = []
    for one, other in zip(rounds, others, strict=True):
        above, below = cost(one), cost(other)
        if above is None or below is None:
            return "failed"
        ratios.append(above / below)
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def rate(rounds: list[Round]) -> str:
    """Answers a second; ``≥`` where a peer had time left, so that the load was the limit."""
    text = middle((one.json.answers / one.json.seconds if one.json else None for one in rounds), ",.0f")
    return f"≥ {text}" if any(one.json and 0 < one.json.share < SATURATED for one in rounds) else text


def delay(rounds: list[Round], place: int) -> str:
    """The median over the rounds of one of `Spread`'s values."""
    spreads = [one.stream.delay_us if one.stream else None for one in rounds]
    return middle((spread[place] if spread else None for spread in spreads), ".0f")
