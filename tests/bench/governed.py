"""What virtual keys, limits and budgets add to a request.

Facts
  - The same proxy in every row, on the same load, taking turns: only its config and the clients' bearer differ.
  - The limits are far away, and in a SQLite file on this machine's disk. CPU is that of all threads, SQLite's too.

Not here: one run (`measure`), how peers are set up (`peers`).
"""

from __future__ import annotations

import hashlib
import shutil
import sys

import peers
from compare import JSON_CONNECTIONS, WARM_MS, Round, per_request, ratio
from measure import Bench, middle
from peers import Peer, running

FEW_CONNECTIONS = 4
"""So few that hardly two requests share a call of the store."""


def keys(bench: Bench) -> str:
    shutil.copy(peers.ROOT / "conf" / "prices.yaml", bench.folder)
    held = peers.VIRTUAL_KEY.format(digest=hashlib.sha256(b"sk-bf-bench").hexdigest())
    rows = {"no virtual key": "", "virtual key": held, "rate limit and budget": held + peers.LIMITS}
    tables = []
    for connections in (JSON_CONNECTIONS, FEW_CONNECTIONS):
        runs: dict[str, list[Round]] = {name: [] for name in rows}
        for number in range(1, bench.rounds + 1):
            for name, more in rows.items():
                peer = bench.verbatim(f"Verbatim-{name.replace(' ', '-')}", more=more)
                runs[name].append(_round(bench, peer, connections, virtual=bool(more)))
            print(f"keys: round {number} of {bench.rounds} is done", file=sys.stderr)
        tables.append(_table(runs, connections))
    return "\n\n".join(tables)


def _round(bench: Bench, peer: Peer, connections: int, *, virtual: bool) -> Round:
    window = {"warm_ms": WARM_MS, "measure_ms": bench.milliseconds}
    with running(peer, bench.folder) as pid:
        run = bench.load.run(
            peer.name, peer.port, pid, connections=connections, virtual_key=int(virtual), **window
        )
    return Round(run, None)


def _table(runs: dict[str, list[Round]], connections: int) -> str:
    first = next(iter(runs.values()))
    lines = [[f"{connections} connections", "µs CPU per JSON request", "x no virtual key"], ["---"] * 3]
    for name, rounds in runs.items():
        lines.append([name, middle(map(per_request, rounds), ".0f"), ratio(rounds, first, per_request)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
