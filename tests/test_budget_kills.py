"""Workers come, go and are killed on one budget: what is charged is what upstream has reported.

Facts
  - A report that lies unread in a socket when its reader is killed was told to nobody: the kernel says so
    with a reset (RFC 1122 section 4.2.2.13), and it counts as not made here.
  - Between the moment in which a worker reads a report and the one in which it is written down lie some
    microseconds of its own work. A kill may fall into them, for one request of that worker.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import random
import signal
import socket
from pathlib import Path

import crowd
import pytest
from backends import Backend, backend
from crowd import Call, Process, Service
from rawclient import Gone, asked, connect, post
from scripted import LAST_CHUNK, answer, chunk, sse, stream_head

MESSAGES = "/anthropic/v1/messages"
VALUE = b"sk-bf-sk-test-alice"
CLIENTS = 24
CENT = 10**10
"""In pico-dollars."""

CONFIG = """
listen: ["127.0.0.1:0"]
drain_timeout: 20
store: {store}
prices: prices.yaml
providers:
  anthropic: {{base_urls: {{anthropic: "{url}"}}, is_key_less: true}}
virtual_keys:
  alice:
    value: "sha256:{digest}"
    allow_all_providers: true
    team_id: red
    rate_limit: {{token_max_limit: 1000000000, token_reset_duration: 1Y}}
teams:
  red: {{budgets: [{{max_limit: 1000000, reset_duration: 1Y}}]}}
"""
PRICES = """
default: {input: 1, output: 5}
"""
INPUT, OUTPUT = 10**6, 5 * 10**6
"""Pico-dollars for a token."""


__all__ = ["backend"]


class Reports:
    """A provider that reports a usage of chance, and remembers what it has reported to whom."""

    def __init__(self) -> None:
        self._chance = random.Random(5)
        self.made = 0
        """Pico-dollars that were reported."""
        self._last: dict[Call, list[int]] = {}
        """What the last answer on a connection has reported, each report by itself."""

    async def provide(self, call: Call, body: bytes) -> None:
        tokens, words = self._chance.randrange(1, 500), self._chance.randrange(1, 100)
        cost = tokens * INPUT + words * OUTPUT
        self._last[call] = []
        if b'"stream":true' in body:
            start = {
                "type": "message_start",
                "message": {"usage": {"input_tokens": tokens, "output_tokens": 1}},
            }
            await self._report(
                call, stream_head() + chunk(sse("message_start", start)), tokens * INPUT + OUTPUT
            )
            await asyncio.sleep(self._chance.random() * 0.02)
            delta = {"type": "message_delta", "usage": {"output_tokens": words}}
            last = chunk(sse("message_delta", delta)) + LAST_CHUNK
            await self._report(call, last, cost - tokens * INPUT - OUTPUT)
        else:
            usage = {"type": "message", "usage": {"input_tokens": tokens, "output_tokens": words}}
            await self._report(call, answer(body=json.dumps(usage).encode()), cost)

    async def _report(self, call: Call, data: bytes, cost: int) -> None:
        if is_gone(call):
            raise ConnectionResetError
        self.made += cost
        self._last[call].append(cost)
        await call.send(data)

    @property
    def unread(self) -> tuple[int, int]:
        """Pico-dollars that nobody has read, at least and at most.

        Of the last answer on a connection that was reset the last report was not read; those before it may
        have been, and on a slow machine they often were.
        """
        lost = [costs for call, costs in self._last.items() if call.was_reset and costs]
        return sum(costs[-1] for costs in lost), sum(map(sum, lost))


def is_gone(call: Call) -> bool:
    """Whether the other end has closed by now, though the loop may not have heard of it yet."""
    with socket.socket(fileno=os.dup(call.transport.get_extra_info("socket").fileno())) as end:
        try:
            return end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True


def journals(directory: Path) -> list[Path]:
    return list(directory.glob("*.unsettled"))


async def client(port: int, numbers: itertools.count[int], total: int) -> int:
    """Asks until `total` requests have been sent by all; returns how many it lost."""
    lost = 0
    connection = None
    while (number := next(numbers)) <= total:
        try:
            connection = connection or await connect(port)
            fields = [(b"x-bf-vk", VALUE), (b"x-id", b"%d" % number)]
            await connection.send(post(MESSAGES, asked(stream=number % 4 == 0), fields, key=None))
            response = await connection.response()
            assert not response.complete or response.status == 200, response.body
            if response.complete and response.header("connection") != b"close":
                continue
            lost += not response.complete
        except (Gone, ConnectionError):
            lost += 1
        if connection is not None:
            connection.close()
        connection = None
    if connection is not None:
        connection.close()
    return lost


async def run(
    directory: Path, store: str, total: int, kills: int, number: signal.Signals
) -> tuple[Reports, int]:
    """`total` requests over two workers, of which one or the other ends in between; what was reported."""
    reports = Reports()
    (directory / "prices.yaml").write_text(PRICES)
    async with crowd.provider(reports.provide) as provider:
        digest = hashlib.sha256(VALUE).hexdigest()
        config = CONFIG.format(url=provider.url, store=store, digest=digest)
        async with Service(directory, config) as service:
            workers: list[Process] = [await service.start() for _ in range(2)]
            numbers = itertools.count(1)
            asking = [asyncio.create_task(client(service.port, numbers, total)) for _ in range(CLIENTS)]
            for kill in range(kills):
                share = total * (kill + 1) // (kills + 1)
                await crowd.until(lambda share=share: sum(provider.asked.values()) >= share, "requests", 120)
                workers[kill % 2].signal(number)
                await workers[kill % 2].ended()
                workers[kill % 2] = await service.start()
            lost = sum(await asyncio.gather(*asking))
            for worker in workers:
                worker.signal(signal.SIGTERM)
                await worker.ended()
            # One more start settles what the last one that was killed has left.
            last = await service.start()
            last.signal(signal.SIGTERM)
            await last.ended()
            assert "Traceback" not in service.log
    return reports, lost


async def test_restarts_charge_exactly_what_was_reported(tmp_path: Path, backend: Backend) -> None:
    """Workers that are stopped in the middle of it finish what they have, and charge it to the last digit."""
    reports, lost = await run(tmp_path, backend.url, 2000, 6, signal.SIGTERM)
    counters = await backend.counters()
    assert (counters["team/red cost"], lost) == (reports.made, 0)


@pytest.mark.timeout(300)
async def test_kills_charge_what_was_reported_to_the_cent(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand requests, two workers, twelve kills: nothing is charged twice, nothing forgotten."""
    kills = 12
    # Beside SQLite's file a journal is kept anyhow.
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    reports, lost = await run(tmp_path, backend.url, 10_000, kills, signal.SIGKILL)
    counters = await backend.counters()
    cost = counters["team/red cost"]
    least, most = reports.unread
    print(
        f"\n{kills} kills, {lost} requests lost: reported ${reports.made / 1e12:.6f}, of which nobody read"
        f" ${least / 1e12:.6f} to ${most / 1e12:.6f}; charged ${cost / 1e12:.6f}"
    )
    assert lost > kills
    assert reports.made - most - CENT < cost <= reports.made - least
    assert reports.made > 100 * CENT
    assert journals(tmp_path) == []
