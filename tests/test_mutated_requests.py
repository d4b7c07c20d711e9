"""However good requests are damaged, upstream sees none but those that a strict reader sees in the bytes.

Facts
  - The bytes that are taken out, put in and doubled are those that frame a request: line ends, blanks,
    colons, commas, semicolons, NUL and hexadecimal digits.
  - Behind the damaged requests stands one that asks for a close, and all waits of the proxy are short here,
    so that every connection comes to an end by itself.

Rules
  1. The proxy may refuse what a strict reader takes; it may not relay what that one does not see, nor
     anything twice, nor out of order.
  2. All examples go through one proxy and its pool, so that one that spoils a connection spoils a later one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest
from hostile_case import BODY, CHUNKED, END, GET, MODEL, SIZED, UPLOAD, VERSION
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from lateness import sent_at_once
from rawclient import Client, Gone, Response, asked, post
from running import Proxy, StartProxy, StartUpstream
from scripted import Conn, Request, Upstream, answer
from strict_reading import Reading, read, read_all
from test_hostile_downstream import turns

from proxy import accesslog, door

EXAMPLES = int(os.environ.get("MUTATIONS", "300"))
"""For long runs it is set from outside, and then every run has other examples."""

_FIELDS = b"X-A: 1\r\nContent-Type: text/plain\r\nx-api-key: sk-test-client\r\n"
_CHUNKS = b'4;a="b"\r\n{"mo\r\n9\r\ndel":"m"}\r\n0\r\nX-T: 1\r\nX-U: 2\r\n\r\n'
REQUESTS = [
    MODEL + _FIELDS + SIZED + BODY,
    UPLOAD + _FIELDS + SIZED + BODY,
    MODEL + _FIELDS + CHUNKED + _CHUNKS,
    UPLOAD + _FIELDS + CHUNKED + _CHUNKS,
    UPLOAD + b"Content-Length: 57\r\nX-A: 1" + END + GET + b"X-B: abc,def:\t;0" + END,
    GET + _FIELDS + b"\r\n",
]
LAST = b"GET /anthropic/v1/last" + VERSION + b"Connection: close" + END
FRAMING_BYTES = b"\r\n\x00\t:;, 0123456789abcdefABCDEF"


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Two good requests with up to three changes, and the last one behind them."""
    data = b"".join(draw(st.tuples(*[st.sampled_from(REQUESTS)] * 2)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from([place for place, byte in enumerate(data) if byte in FRAMING_BYTES]))
        change = draw(st.sampled_from(["delete", "insert", "double", "replace"]))
        byte = bytes([draw(st.sampled_from(FRAMING_BYTES))])
        count = draw(st.integers(1, 20)) if change == "double" else 1
        if change == "delete":
            data = data[:at] + data[at + 1 :]
        elif change == "insert":
            data = data[:at] + byte + data[at:]
        elif change == "replace":
            data = data[:at] + byte + data[at + 1 :]
        else:
            data = data[: at + count] + data[at:]
    return data + LAST


async def echo(conn: Conn, request: Request) -> None:
    """Answers with what came, byte for byte."""
    await conn.send(answer(body=request.raw))


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accesslog, "BATCH_SECONDS", 0)
    monkeypatch.setattr(door, "LINGER_SECONDS", 0.05)


@pytest.fixture
async def served(upstream: StartUpstream, proxy: StartProxy) -> tuple[Proxy, Upstream]:
    """The one proxy of all examples, in a hurry."""
    up = await upstream()
    up.allow_unused = True
    return await proxy(up, body_timeout=0.3, head_timeout=0.5, keepalive_timeout=0.3), up


@given(data=damaged(), size=st.sampled_from([None, None, 1, 7, 50]))
@settings(
    max_examples=EXAMPLES,
    derandomize="MUTATIONS" not in os.environ,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_nothing_is_relayed_that_a_strict_reader_does_not_see(
    served: tuple[Proxy, Upstream], data: bytes, size: int | None
) -> None:
    """Sent at once or in pieces of `size` bytes; and the next good request is answered."""
    p, up = served
    before = len(up.requests)
    up.then(*[echo] * 10)
    answers = await answers_to(p, data, size or len(data))
    relayed = up.requests[before:]
    event(f"{len(relayed)} relayed, then {answers[-1].status if answers else 'nothing'}")
    readings = read_all(data)
    for request in relayed:
        itself, rest = read(request.raw)
        assert rest == b""
        while readings and not is_same(readings[0], itself):
            readings.pop(0)
        assert readings, f"nobody asked for {request.raw!r}"
        readings.pop(0)
    assert [response.body for response in answers if response.status == 200] == [r.raw for r in relayed]
    assert {response.status for response in answers} <= {200, 400, 404, 405, 408, 413, 417, 431, 501, 505}
    body = asked()
    client = await sent_at_once(p, post("/anthropic/v1/messages", body))
    good = await client.response()
    client.close()
    assert good.status == 200
    assert good.body == up.requests[-1].raw == up.requests[before + len(relayed)].raw
    assert up.requests[-1].body == body


async def answers_to(p: Proxy, data: bytes, size: int) -> list[Response]:
    """Every final answer on one connection that gets these bytes, until the proxy closes it."""
    client = await p.connect()
    sending = asyncio.ensure_future(send(client, data, size))
    answers = []
    while (response := await client.response("GET")).status:
        assert response.complete
        answers.append(response)
    await sending
    assert client.leftover == b""
    client.close()
    return answers


async def send(client: Client, data: bytes, size: int) -> None:
    with contextlib.suppress(Gone):
        for start in range(0, len(data), size):
            await client.send(data[start : start + size])
            await turns(2)


def is_same(reading: Reading, relayed: Reading) -> bool:
    """Whether this is what the proxy makes of the request: the path below the prefix, its own framing."""
    return (
        reading.method == relayed.method
        and reading.target.removeprefix(b"/anthropic") == relayed.target
        and reading.end_to_end == relayed.end_to_end
        and reading.body == relayed.body
    )
