"""Errors of the proxy's own, under the official Gemini SDK: it raises its own exceptions, sync and async.

Not here: errors of Gemini (`test_sdk_genai`).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from environments import RunScript
from genai_sdk import KEY, MODELS, SDK, VIRTUAL_KEY, StartGemini, gemini, provider, settings
from genai_upstream import whole
from hop import Hop, StartHop, hop
from rawclient import post
from refusing import HEADERS, HELD, LIMIT, Told, one_window, refusing, silent
from running import Proxy, StartProxy, StartUpstream
from scripted import Conn, Request, chunk, stream_head

__all__ = ["gemini", "hop"]

CALLS = ("generate_content", "generate_content_stream")
STATUSES = {
    400: ("ClientError", "INVALID_ARGUMENT", "nowhere"),
    401: ("ClientError", "UNAUTHENTICATED", "virtual_key_required"),
    403: ("ClientError", "PERMISSION_DENIED", "model_blocked"),
    404: ("ClientError", "NOT_FOUND", "job"),
    413: ("ClientError", "INVALID_ARGUMENT", "20000 bytes"),
    429: ("ClientError", "RESOURCE_EXHAUSTED", "request_limited"),
    502: ("ServerError", "UNAVAILABLE", "provider"),
    504: ("ServerError", "DEADLINE_EXCEEDED", "provider"),
}
"""By status: the SDK's class, Google's name, and what the message must say."""

OVERLOADED = {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}
CHUNK = b'data: {"candidates": [{"content": {"parts": [{"text": "You"}], "role": "model"}}]}\r\n\r\n'


async def cut(conn: Conn, _: Request) -> None:
    """An upstream that dies between two chunks."""
    await conn.send(stream_head() + chunk(CHUNK))
    conn.reset()


async def cut_in_a_chunk(conn: Conn, _: Request) -> None:
    await conn.send(stream_head() + chunk(CHUNK) + chunk(CHUNK[:30]))
    conn.reset()


class Late:
    """An upstream that refuses a stream only when the proxy has begun one of its own, else at once."""

    def __init__(self) -> None:
        self.hop: Hop | None = None
        self._streams = 0

    async def __call__(self, conn: Conn, request: Request) -> None:
        assert self.hop is not None
        if b":streamGenerateContent" in request.target:
            self._streams += 1
            await self.hop.answered(b"text/event-stream", self._streams)
        await conn.send(whole({"error": OVERLOADED}, 503))


@pytest.fixture(scope="session")
def raised() -> dict[str, Told]:
    """What all cases raised. They are run together, in one process of the SDK."""
    return {}


@pytest.fixture
async def errors(
    raised: dict[str, Told],
    run_script: RunScript,
    gemini: StartGemini,
    upstream: StartUpstream,
    proxy: StartProxy,
    hop: StartHop,
    closed_port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Told]:
    """What each case raised; a case is a status, or what happens to a stream."""
    if raised:
        return raised
    one_window(monkeypatch)
    up = await gemini()
    hurry = {"first_byte_timeout": 0.2, "max_retries": 0}

    async def start(where: str, **more: Any) -> Proxy:
        return await proxy(providers={"gemini": provider(where)}, **settings(**more))

    async def dying(play: Callable[[Conn, Request], Awaitable[None]], calls: int, **more: Any) -> Proxy:
        return await start((await upstream(*[play] * calls)).url, **more)

    late = Late()
    proxies = await refusing(
        start,
        up.url,
        provider="gemini",
        other_model="gemini-2.5-pro",
        key=VIRTUAL_KEY,
        dead=f"http://127.0.0.1:{closed_port}",
        place=tmp_path,
    )
    proxies |= {
        "504": await dying(silent, 4, network=hurry),
        "early": await dying(silent, 4, network=hurry, early_stream_after=0.05, ping_interval=0.02),
        "late": await dying(late, 4, early_stream_after=0.05),
        "cut": await dying(cut, 4),
        "cut in a chunk": await dying(cut_in_a_chunk, 4),
    }
    body = b'{"contents":[{"parts":[{"text":"Hello"}]}]}'
    first = post(MODELS + "gemini-2.5-flash:generateContent", body, key=VIRTUAL_KEY.encode())
    assert (await proxies["429"].ask(first)).status == 200
    late.hop = await hop(proxies["late"].port)
    cases = {
        name: {
            "base_url": f"http://127.0.0.1:{late.hop.port if name == 'late' else p.port}/genai",
            "headers": {
                "x-goog-api-key": VIRTUAL_KEY if name in HELD else KEY,
                **HEADERS.get(name, {}),
            },
            "length": LIMIT + 10_000 if name == "413" else 10,
        }
        for name, p in proxies.items()
    }
    seen = await run_script(SDK, "genai_errors", json.dumps(cases))
    for name, p in proxies.items():
        await p.stop()
        raised[name] = Told(seen[name], p.lines[name == "429" :])
        assert len(raised[name].lines) == 4
    return raised


@pytest.mark.parametrize("status", STATUSES)
async def test_a_status(errors: dict[str, Told], status: int) -> None:
    """JSON and streams, sync and async: the SDK's class, Google's shape, and the id that the log has."""
    told = errors[str(status)]
    kind, name, says = STATUSES[status]
    assert list(told.seen) == [*CALLS, *(f"async {call}" for call in CALLS)]
    for call, error in told.seen.items():
        assert (error["class"], error["code"], error["status"]) == (kind, status, name), call
        assert error["details"] == {
            "error": {"code": status, "message": error["message"], "status": name},
        }
        assert says in error["message"], error["message"]
        assert "sk-test" not in error["message"]
    assert [error["id"] for error in told.seen.values()] == [line["request_id"] for line in told.lines]
    assert [line["status"] for line in told.lines] == [status] * 4


@pytest.mark.parametrize("call", ["generate_content_stream", "async generate_content_stream"])
async def test_a_stream_that_was_begun_early(errors: dict[str, Told], call: str) -> None:
    """The status is 200 by then, and pings have come; the error is the SDK's own all the same."""
    error = errors["early"].seen[call]
    assert (error["class"], error["code"], error["status"]) == ("ServerError", 504, "DEADLINE_EXCEEDED")
    assert (error["details"]["error"]["code"], error["chunks"]) == (504, 0)
    assert max(line["pings"] for line in errors["early"].lines) > 0


@pytest.mark.parametrize("call", ["generate_content_stream", "async generate_content_stream"])
async def test_a_stream_that_was_begun_early_and_is_refused(errors: dict[str, Told], call: str) -> None:
    """Google's own error, as without the proxy."""
    error = errors["late"].seen[call]
    assert (error["class"], error["details"]) == ("ServerError", {"error": OVERLOADED})
    assert [line["status"] for line in errors["late"].lines] == [503, 200, 503, 200]


@pytest.mark.parametrize("call", ["generate_content_stream", "async generate_content_stream"])
async def test_a_stream_that_is_cut(errors: dict[str, Told], call: str) -> None:
    """Between two chunks an error of ours follows, which the SDK raises after the chunks that came."""
    error = errors["cut"].seen[call]
    assert (error["class"], error["code"], error["status"]) == ("ServerError", 502, "UNAVAILABLE")
    assert error["chunks"] == 1


@pytest.mark.parametrize("call", ["generate_content_stream", "async generate_content_stream"])
async def test_a_stream_that_is_cut_in_a_chunk(errors: dict[str, Told], call: str) -> None:
    """There is no place for an error, but it never looks finished: the connection is reset."""
    error = errors["cut in a chunk"].seen[call]
    assert error["chunks"] == 1
    assert error["class"] in ("ReadError", "RemoteProtocolError", "ClientOSError", "ClientPayloadError")
