"""A request leaves nothing behind that only the garbage collector could free.

The collector runs seldom on purpose (`proxy.__main__`), so a cycle per request would be a slow leak.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from rawclient import asked, post
from running import StartProxy, StartUpstream
from scripted import (
    MESSAGE,
    MESSAGE_EVENTS,
    Conn,
    Request,
    Step,
    answer,
    chunk,
    refusal,
    stream_head,
    streamed,
)

MESSAGES = "/anthropic/v1/messages"
ROUNDS = 20


async def resets(conn: Conn, _: Request) -> None:
    conn.reset()


async def is_cut(conn: Conn, _: Request) -> None:
    await conn.send(stream_head() + chunk(MESSAGE_EVENTS[0]))
    await conn.close()


async def stays_silent(conn: Conn, _: Request) -> None:
    await conn.gone()


KINDS: dict[str, tuple[list[bytes | Step], bool, int]] = {
    "json": ([answer(body=MESSAGE)], False, 200),
    "a stream": ([streamed(MESSAGE_EVENTS)], True, 200),
    "a retry": ([refusal(529), answer(body=MESSAGE)], False, 200),
    "a lost retry": ([refusal(529), resets, resets], False, 529),
    "resets": ([resets, resets], False, 502),
    "a cut stream": ([is_cut], True, 200),
    "silence": ([stays_silent], False, 504),
}


KEY = b"sk-bf-sk-test-garbage"
LIMITS = {"token_max_limit": 10**9, "token_reset_duration": "1Y"}


@pytest.mark.parametrize("limited", [False, True], ids=["anonymous", "with limits"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_leaves_no_cycle(
    upstream: StartUpstream, proxy: StartProxy, tmp_path: Path, kind: str, limited: bool
) -> None:
    """After the first requests on a connection, nothing of the proxy's own is left to collect."""
    steps, stream, status = KINDS[kind]
    up = await upstream(*steps * (ROUNDS + 3))
    network = {"retry_backoff_initial": 0.001, "retry_backoff_max": 0.001}
    if kind == "silence":
        network["first_byte_timeout"] = 0.05
    key = {"value": "env.KEY", "allow_all_providers": True, "rate_limit": LIMITS}
    p = await proxy(
        up,
        network=network,
        store=f"sqlite:{tmp_path}/state.db",
        virtual_keys={"it": key},
        environ={"KEY": KEY.decode()},
    )
    fields = [(b"x-bf-vk", KEY)] if limited else []

    async def ask() -> None:
        client = await p.connect()
        await client.send(post(MESSAGES, asked(stream=stream), fields))
        assert (await client.response()).status == status
        await p.line()

    for _ in range(3):
        await ask()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(ROUNDS):
            await ask()
        gc.collect()
        left = [type(thing).__name__ for thing in gc.garbage if type(thing).__module__.startswith("proxy.")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert len(left) < ROUNDS, left
