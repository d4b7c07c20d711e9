"""One run of the load program against one peer, and what was wrong with it.

Rules
  1. A run with an error gives no number.
  2. A run in which other programs had a part of the cores is made again; what it measured has no say in that.
  3. What went wrong is kept to the end, and makes the benchmark fail.

Not here: which runs there are (`bench`), what the load program does (`load.c`).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import peers
from peers import LOAD_CORE, Peer

HERE = Path(__file__).parent
PATH = "/anthropic/v1/messages"
MAX_SHARE = 0.9
"""A delay says something about a peer that had time left."""

MAX_WAITED = 0.05
"""Of the window, that a peer or the load program may have been ready while others had its core."""

RETRIES = 10
"""How many runs are made again, in all, because others had a part of the cores."""

MIN_DELIVERED = 0.98
"""Of the events that upstream sent; less is a queue that grows."""


class Spread(NamedTuple):
    """Median, 99th percentile and maximum, in microseconds."""

    p50: float
    p99: float
    max: float


class Run(NamedTuple):
    """What the load program saw in its window; `load.c` explains the fields."""

    seconds: float
    answers: int
    events: int
    pings: int
    posts: int
    post_bytes: int
    cpu_us: float
    resident: int
    fewest_open: int
    answer_us: Spread | None
    delay_us: Spread | None
    ping_late_us: Spread | None

    @property
    def share(self) -> float:
        """Of its core's time, what the peer used."""
        return self.cpu_us / self.seconds / 1e6


class Load:
    """Runs the load program; remembers every fault."""

    def __init__(self, folder: Path, upstream: int, *, spin: bool) -> None:
        self._program = folder / "load"
        self._upstream = upstream
        self._spin = spin
        self.faults: list[str] = []
        self.runs = 0
        self.disturbed = 0
        """Runs that count although other programs had a part of the cores."""
        self._retries = RETRIES

    def build(self) -> None:
        """Compile it. Raises CalledProcessError."""
        sources = sorted(HERE.glob("*.c"))
        flags = ["-O2", "-Wall", "-Wextra", "-D_GNU_SOURCE"]
        subprocess.run(["gcc", *flags, "-o", self._program, *sources], check=True)

    def raw(self, port: int, pid: int, **options: int) -> dict[str, Any]:
        """What the program prints, errors and all."""
        settings = {"port": port, "upstream": self._upstream, "pid": pid, "spin": int(self._spin), **options}
        pairs = [f"{name}={value}" for name, value in settings.items()]
        command = ["taskset", "-c", str(LOAD_CORE), str(self._program), PATH, *pairs]
        result: dict[str, Any] = json.loads(
            subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        )
        return result

    def run(self, what: str, port: int, pid: int, *, front: bool = False, **options: int) -> Run | None:
        """One run, or None if anything in it was not as it has to be.

        `what` names it in complaints; with `front`, nginx has a part of the load program's core.
        """
        streaming = bool(options.get("stream"))
        while True:
            seen = self.raw(port, pid, **options)
            if seen["errors"]:
                self.fault(f"{what}: {seen['errors']} errors; the first: {seen['first_error']}")
                return None
            disturbed = seen["waited"] > MAX_WAITED or (seen["load_waited"] > MAX_WAITED and not front)
            if not disturbed or not self._retries:
                break
            self._retries -= 1
        self.runs += 1
        self.disturbed += disturbed
        run = Run(
            seconds=seen["seconds"],
            answers=seen["answers"],
            events=seen["events"],
            pings=seen["pings"],
            posts=seen["posts"],
            post_bytes=seen["post_bytes"],
            cpu_us=seen["cpu_ns"] / 1e3,
            resident=seen["resident"],
            fewest_open=seen["fewest_open"],
            answer_us=_spread(seen["answer_us"]),
            delay_us=_spread(seen["delay_us"]),
            ping_late_us=_spread(seen["ping_late_us"]),
        )
        if streaming and not options.get("posts"):
            self._warn(what, seen, run)
        return run

    def fault(self, text: str) -> None:
        """Say loudly what makes this benchmark fail."""
        self.faults.append(text)
        print(f"\n!!! {text}\n", file=sys.stderr, flush=True)

    @staticmethod
    def _warn(what: str, seen: dict[str, Any], run: Run) -> None:
        """Say why the delays of this run do not compare."""
        doubts = []
        if run.share > MAX_SHARE:
            doubts.append(f"the peer used {run.share:.0%} of its core, so its delays are not comparable")
        if run.events < MIN_DELIVERED * seen["events_sent"]:
            doubts.append(f"of {seen['events_sent']} events, {run.events} came through in time")
        if seen["busy"] > MAX_SHARE:
            doubts.append("the load program was itself busy all the time")
        for doubt in doubts:
            print(f"warning: {what}: {doubt}", file=sys.stderr)


def _spread(values: list[float] | None) -> Spread | None:
    return Spread(*values) if values else None


class Bench(NamedTuple):
    """What every section of the benchmark needs."""

    folder: Path
    upstream: int
    load: Load
    rounds: int
    milliseconds: int
    files: int
    front: bool = False
    """Whether nginx decrypts on the load program's core."""

    def verbatim(self, name: str = "Verbatim", ping_interval: float = 15, more: str = "") -> Peer:
        base = f"http://127.0.0.1:{self.upstream}"
        return peers.verbatim(self.folder, name, base, ping_interval=ping_interval, more=more)

    def plain(self) -> list[Peer]:
        """The peers in front of the load program's provider."""
        return [
            peers.nginx(self.folder, "nginx", self.upstream, self.files),
            peers.envoy(self.folder, "Envoy", self.upstream),
            self.verbatim(),
        ]


def middle(values: Iterable[float | None], spec: str) -> str:
    """The median, formatted; ``failed`` when a value is missing."""
    known = list(values)
    present = [value for value in known if value is not None]
    return format(statistics.median(present), spec) if present and len(present) == len(known) else "failed"
