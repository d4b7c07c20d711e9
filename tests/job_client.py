"""Clients of jobs whose workers are killed, and a provider that knows what it has sent to whom.

Facts
  - Whether a job was kept whose submit was not answered is not known; to poll twice does no harm.

Rules
  1. Every request and every answer is another one, so that none can be taken for another's.

Not here: the workers (`job_worker`), the connections of the provider (`crowd`).
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections.abc import Iterable

from crowd import HUSH_SECONDS, Call, clock
from rawclient import Client, Gone, Response, asked, connect, post
from scripted import JSON_TYPE, answer

from proxy.job import Held
from proxy.store import open_jobs

MESSAGES = "/anthropic/v1/messages"
CONCURRENT = 8
"""How many jobs a worker does at a time."""

CONFIG = """
listen: ["127.0.0.1:0"]
drain_timeout: {drain}
store: {store}
jobs: {{concurrent: {concurrent}, concurrent_per_key: 1000, on_restart: {on_restart}}}
providers:
  anthropic:
    base_urls: {{anthropic: "{url}"}}
    is_key_less: true
    network_config: {{max_retries: 0}}
"""

LARGE = 400_000
"""More than is written upstream at once."""


def config(
    url: str, store: str, *, drain: float = 20, concurrent: int = CONCURRENT, on_restart: str = "fail"
) -> str:
    """The config of workers that share a store, before the provider at `url`."""
    return CONFIG.format(url=url, store=store, drain=drain, concurrent=concurrent, on_restart=on_restart)


def request_body(name: str) -> bytes:
    """The body of the request whose ``x-id`` is `name`: no other is like it, some are large."""
    chance = random.Random(name)
    size = LARGE if chance.random() < 0.02 else chance.randrange(200)
    return asked(metadata={"user_id": name}, padding="x" * size)


class Answers:
    """A provider that answers each call with bytes of its own, after a while."""

    def __init__(self, seconds: float = 0.0) -> None:
        """`seconds`: the longest that an answer takes."""
        self._seconds = seconds
        self._chance = random.Random(6)
        self.sent: dict[str, list[bytes]] = {}
        """By ``x-id``: the body of each answer."""
        self.wrong: list[str] = []
        """Requests that did not come as they were sent."""

    async def provide(self, call: Call, body: bytes) -> None:
        name = call.field("x-id")
        if body != request_body(name):
            self.wrong.append(name)
        await asyncio.sleep(self._chance.random() * self._seconds)
        await call.send(self.answer(name))

    def answer(self, name: str) -> bytes:
        """The next answer to the request with this ``x-id``: short or long, compressed or not to be."""
        before = self.sent.setdefault(name, [])
        noise = self._chance.randbytes(4000).hex()
        text = (noise[:20], noise[:3000], noise[:20] * 1000)[len(self.sent) % 3]
        content = [{"type": "text", "text": f"{name}, {len(before)}: {text}"}]
        body = json.dumps({"type": "message", "content": content}, indent=1).encode()
        fields = [JSON_TYPE]
        if len(self.sent) % 5 == 0:
            body = gzip.compress(body)
            fields.append((b"Content-Encoding", b"gzip"))
        before.append(body)
        return answer(headers=fields, body=body)


class JobClient:
    """A client with one connection at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._client: Client | None = None

    async def submit(self, name: str, fields: Iterable[tuple[bytes, bytes]] = ()) -> bytes | None:
        """The id of a new job; None when the connection was cut instead."""
        more = [(b"x-bf-async", b"true"), (b"x-id", name.encode()), *fields]
        response = await self._ask(post(MESSAGES, request_body(name), more))
        if response is None:
            return None
        assert (response.status, response.header("x-bf-async-status")) == (200, b"pending"), response
        return response.header("x-bf-async-id")

    async def poll(self, id: bytes) -> Response:
        """What there is of a job now. It is 200, unless it is the end of a job that has failed."""
        while (response := await self._ask(post(MESSAGES, b"", [(b"x-bf-async-id", id)]))) is None:
            pass
        assert response.status == 200 or state(response) == "failed", response
        assert state(response) in ("pending", "processing", "completed", "failed"), response
        return response

    async def over(self, id: bytes, *, seconds: float = HUSH_SECONDS, pause: float = 0.05) -> Response:
        """The end of a job."""
        latest = clock() + seconds
        while state(response := await self.poll(id)) in ("pending", "processing"):
            assert clock() < latest, f"not over within {seconds} s: {response}"
            await asyncio.sleep(pause)
        return response

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    async def _ask(self, request: bytes) -> Response | None:
        try:
            if self._client is None:
                self._client = await connect(self._port)
                self._client.wire.patience = HUSH_SECONDS
            await self._client.send(request)
            response = await self._client.response()
        except (Gone, ConnectionError):
            self.close()
            return None
        if not response.complete or response.header("connection") == b"close":
            self.close()
        return response if response.complete else None


def state(response: Response) -> str:
    """What a poll says of its job."""
    return (response.header("x-bf-async-status") or b"").decode()


def is_interrupted(response: Response) -> bool:
    """Whether a poll says that the job has failed because its worker ended."""
    own = response.header("x-should-retry") == b"false" and b"job_interrupted" in response.body
    return own and (response.status, state(response)) == (500, "failed")


async def unfinished(url: str) -> tuple[int, list[Held], set[str]]:
    """What a store still has to do: how many wait, what is held; and the workers that it knows."""
    store = open_jobs(url)
    try:
        workers = set(await store.beat("onlooker")) - {"onlooker"}
        held = [each for worker in workers for each in await store.held(worker)]
        await store.leave("onlooker")
        return await store.pending(), held, workers
    finally:
        await store.close()
