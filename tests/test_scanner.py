"""Scanning beside other work: the loop turns on, and nobody's scan outlives its request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Generator

import pytest

from proxy import scanner as room
from proxy.body import scan
from proxy.errors import ProxyError
from proxy.scanner import LARGE_BYTES, Scanner

TEXT = json.dumps({"messages": [{"role": "user", "content": 'a "line"\n' * 400_000}], "model": "claude-2"})
BRACKETS = b'{"x":' + b"[" * 15_000_000 + b"]" * 15_000_000 + b',"model":"claude-2"}'


@pytest.fixture
async def scanner() -> AsyncGenerator[Scanner, None]:
    scanner = Scanner()
    yield scanner
    scanner.close()


async def turns_during(scanning: asyncio.Task[object]) -> int:
    """How often the loop turns until `scanning` is done."""
    turns = 0
    while not scanning.done():
        turns += 1
        await asyncio.sleep(0)
    return turns


async def test_a_large_body_is_scanned_as_a_small_one_is(scanner: Scanner) -> None:
    """The thread finds what the scan finds."""
    body = TEXT.encode()
    assert len(body) > LARGE_BYTES
    assert await scanner.scan(body) == scan(body)


async def test_the_loop_turns_while_a_large_body_is_scanned(scanner: Scanner) -> None:
    """Other streams get many turns during one scan."""
    scanning = asyncio.ensure_future(scanner.scan(TEXT.encode()))
    assert await turns_during(scanning) > 20


async def test_the_loop_turns_while_a_dense_body_is_scanned(scanner: Scanner) -> None:
    """A body of brackets is slow though it is not large; it gives way as well."""
    dense = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"model":"claude-2"}'
    assert len(dense) < LARGE_BYTES
    scanning = asyncio.ensure_future(scanner.scan(dense))
    assert await turns_during(scanning) > 20


async def test_what_is_wrong_with_a_large_body_is_said(scanner: Scanner) -> None:
    """The thread's error is the scan's own, with its offset."""
    body = TEXT.encode()[:-1] + b" !"
    with pytest.raises(ProxyError) as said:
        await scanner.scan(body)
    with pytest.raises(ProxyError) as expected:
        scan(body)
    assert (said.value.status, said.value.message) == (400, expected.value.message)


async def test_a_slow_body_does_not_keep_another_waiting(scanner: Scanner) -> None:
    """They take turns: an ordinary large body is done while one of brackets goes on for many seconds."""
    slow = asyncio.ensure_future(scanner.scan(BRACKETS))
    await asyncio.sleep(0)
    assert (await scanner.scan(TEXT.encode())).model == "claude-2"
    assert not slow.done()
    slow.cancel()


async def test_a_scan_ends_with_its_request(scanner: Scanner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that leaves does not keep the thread busy, though its body would for many seconds."""
    turns: list[object] = []
    turn = room._turn

    def counted(walk: Generator[None, None, object]) -> object:
        turns.append(walk)
        return turn(walk)

    monkeypatch.setattr(room, "_turn", counted)
    slow = asyncio.ensure_future(scanner.scan(BRACKETS))
    while not turns:  # noqa: ASYNC110
        await asyncio.sleep(0)
    slow.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await slow
    # When this has had its turn, the one that was under way is over.
    await asyncio.get_running_loop().run_in_executor(scanner._thread, int)
    until_now = len(turns)
    assert (await scanner.scan(TEXT.encode())).model == "claude-2"
    assert len(set(turns[until_now:])) == 1
    assert turns[0] not in turns[until_now:]


async def test_names_deeper_in_a_body_are_found_in_linear_time(scanner: Scanner) -> None:
    """However deep the brackets are in which they stand; too many of them are refused."""
    path = (b"requests", b"model")
    deep = b'{"a":' + b"[" * 50_000 + b'{"k":"v"},' * 8_000 + b"0" + b"]" * 50_000
    body = deep + b',"requests":[{"model":"models/a"},{"x":{"model":"models/a"}}]}'
    began = time.process_time()
    spans = await scanner.named(body, path, "models/a")
    assert [body[begin:end] for begin, end in spans] == [b'"models/a"']
    assert time.process_time() - began < 2
    many = b'{"requests":[' + b",".join([b'{"model":"models/a"}'] * 1001) + b"]}"
    with pytest.raises(ProxyError) as caught:
        await scanner.named(many, path, "models/a")
    assert caught.value.status == 400
