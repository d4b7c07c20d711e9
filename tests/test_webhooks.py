"""Webhooks: the end of a job is told to whom the config names, signed, until it is heard, and to nobody else.

Receivers verify with the library of Standard Webhooks.

Not here: what is told and when, and the config (`test_notices`), which jobs end how.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp.payload
import pytest
import standardwebhooks
import trustme
import yaml
from rawclient import PATIENCE
from redis_server import RedisServer
from running import LogText, StartUpstream
from scripted import MESSAGE, Conn, Request, answer, head, raw
from secrecy import overhear
from telling import LONG, MARK, OPERATION, SECRET, configured, ending, found

from proxy import jobviews, notices, webhooks
from proxy.job import Bounds, Delivery, Found, Job
from proxy.ports import JobStore, StoreError
from proxy.store import open_jobs
from proxy.webhooks import Webhooks

HEARD = answer(204)

NO_BOUNDS = Bounds(10**6, 10**6, 10**12)


class Clock:
    """Seconds since the epoch, as the test says."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Ends:
    """Ends jobs in a real store."""

    def __init__(self, store: JobStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self._count = 0

    async def __call__(
        self,
        webhook: str = "billing",
        *,
        body: bytes = MESSAGE,
        failed: bool = False,
        ttl: int = LONG,
    ) -> str:
        """Ends one job more; returns its id."""
        self._count += 1
        id = f"job_{self._count:032x}"
        about = (id, "credential x", OPERATION, self.clock.now, ttl, webhook)
        assert await self.store.submit(Job(*about, b"{}", b"{}"), NO_BOUNDS) == ""
        claim = await self.store.claim("a-worker", 10**6)
        assert claim is not None
        assert await self.store.begin(claim.lease)
        ended = ending(body, failed=failed, at=self.clock.now, ttl=ttl)
        assert await self.store.finish(claim.lease, ended)
        return id

    async def is_due(self) -> bool:
        """Whether an end is due now; if so it no longer is."""
        return await self.store.due(self.clock.now, self.clock.now + LONG) is not None


Start = Callable[..., Webhooks]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite"])
async def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """Where a store is: in a file, or in a real Redis."""
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'state.db'}"
        return
    server = RedisServer(tmp_path)
    await server.start()
    yield server.url
    await server.kill()


BOTH = pytest.mark.parametrize("store_url", ["sqlite", "redis"], indirect=True)


@pytest.fixture
async def end(store_url: str, clock: Clock) -> AsyncIterator[Ends]:
    """Ends jobs: ``id = await end(...)``."""
    store = open_jobs(store_url)
    yield Ends(store, clock)
    await store.close()


@pytest.fixture
async def tell(end: Ends, logged: LogText) -> AsyncIterator[Start]:
    """Starts a worker that tells: ``worker = tell(billing=url)``.

    What it leaves behind or shows fails the test.
    """
    before = asyncio.all_tasks()
    started: list[Webhooks] = []

    def start(store: JobStore | None = None, **urls: str) -> Webhooks:
        worker = Webhooks(store or end.store, end.clock)
        worker.use(configured(**urls))
        started.append(worker)
        return worker

    yield start
    for worker in started:
        await worker.close()
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert {task for task in left if "Upstream._played" not in repr(task)} == set()
    assert "sk-test" not in logged.text
    assert MARK not in logged.text
    assert "127.0.0.1" not in logged.text


def open_sockets() -> int:
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return sum(os.path.islink(link) and os.readlink(link).startswith("socket:") for link in links)


async def step(worker: Webhooks) -> None:
    """One look, and all that comes of it."""
    async with asyncio.timeout(PATIENCE):
        await worker.step()
        await worker.settle()


def verified(request: Request) -> Any:
    """The payload of a request whose signature, by now, the library of Standard Webhooks finds good."""
    return standardwebhooks.Webhook(SECRET).verify(request.body, fields(request))


def fields(request: Request) -> dict[str, str]:
    assert len({name.lower() for name, _ in request.headers}) == len(request.headers)
    return {name.decode().lower(): value.decode() for name, value in request.headers}


# What is sent.


@BOTH
async def test_the_end_of_a_job_is_told(
    upstream: StartUpstream, end: Ends, tell: Start, logged: LogText, clock: Clock
) -> None:
    """Once, as one signed POST to the configured URL with nothing else in it, and never again after a 2xx."""
    up = await upstream(HEARD)
    worker = tell(billing=f"{up.url}/told")
    id = await end()
    found = await end.store.look(id, clock.now)
    assert found is not None
    await step(worker)
    (request,) = up.requests
    said = verified(request)
    assert said == {
        "type": "async_job.completed",
        "timestamp": jobviews.instant(clock.now),
        "data": json.loads(jobviews.unified(found, MESSAGE, is_object=True)),
    }
    assert said["data"]["result"] == json.loads(MESSAGE)
    names = fields(request)
    signature = names.pop("webhook-signature")
    assert re.fullmatch("v1,[A-Za-z0-9+/]{43}=", signature)
    assert (request.method, request.target) == ("POST", b"/told")
    assert names == {
        "host": f"127.0.0.1:{up.port}",
        "user-agent": "verbatim-proxy",
        "content-type": "application/json",
        "content-length": str(len(request.body)),
        "connection": "close",
        "webhook-id": id,
        "webhook-timestamp": str(int(clock.now)),
    }
    assert (worker.delivered, worker.failed, worker.given_up) == (1, 0, 0)
    clock.now += LONG - 1
    await step(worker)
    assert len(up.requests) == 1
    assert logged.text == "" or "webhook" not in logged.text


async def test_a_failed_job_is_told_as_such(upstream: StartUpstream, end: Ends, tell: Start) -> None:
    """Its event has another type, and `error` in the place of `result`."""
    up = await upstream(HEARD)
    worker = tell(billing=up.url)
    await end(body=b'{"type":"error"}', failed=True)
    await step(worker)
    said = verified(up.requests[0])
    assert said["type"] == "async_job.failed"
    assert (said["data"]["status"], said["data"]["status_code"]) == ("failed", 529)
    assert said["data"]["error"] == {"type": "error"}
    assert "result" not in said["data"]


async def test_a_job_without_a_webhook_is_told_to_nobody(
    upstream: StartUpstream, end: Ends, tell: Start
) -> None:
    """Only who names a webhook has one."""
    up = await upstream()
    worker = tell(billing=up.url)
    await end("")
    await step(worker)
    assert up.connections == 0


async def test_the_url_is_as_configured(upstream: StartUpstream, end: Ends, tell: Start) -> None:
    """Path and query go out byte for byte; no log line has them."""
    up = await upstream(answer(500), HEARD)
    worker = tell(billing=f"{up.url}/a%2Fb//c/?code=sk-test-code%3d&x=%7e")
    for _ in range(2):
        await end()
        await step(worker)
    assert {request.target for request in up.requests} == {b"/a%2Fb//c/?code=sk-test-code%3d&x=%7e"}


async def test_nothing_comes_from_the_environment_nor_from_cookies(
    upstream: StartUpstream, end: Ends, tell: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Proxies and passwords of the machine, and cookies of an earlier answer, have no effect."""
    elsewhere = await upstream()
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password sk-test-netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, elsewhere.url)
    up = await upstream(answer(200, [(b"Set-Cookie", b"a=b; Path=/")]), HEARD)
    worker = tell(billing=up.url)
    for _ in range(2):
        await end()
        await step(worker)
    assert elsewhere.connections == 0
    assert [set(fields(request)) & {"cookie", "authorization"} for request in up.requests] == [set(), set()]


# What is an answer.


@pytest.mark.parametrize("status", [200, 201, 202, 204, 205, 299])
async def test_2xx_is_success(upstream: StartUpstream, end: Ends, tell: Start, status: int) -> None:
    """Whatever its body says."""
    up = await upstream(answer(status, body=b"" if status in (204, 205) else b'{"error": "no"}'))
    worker = tell(billing=up.url)
    await end()
    await step(worker)
    end.clock.now += 3600
    assert not await end.is_due()
    assert (worker.delivered, worker.failed, worker.given_up) == (1, 0, 0)


@pytest.mark.parametrize("status", [300, 304, 400, 401, 404, 408, 409, 422, 429, 500, 503, 599, 999])
async def test_any_other_status_is_tried_again(
    upstream: StartUpstream, end: Ends, tell: Start, logged: LogText, status: int
) -> None:
    """It is logged once, and so is that the receiver is back; nothing else of its answers is."""
    up = await upstream(
        answer(status, [(b"X-A", b"said")], b"" if status == 304 else b"said", b"said"), HEARD
    )
    worker = tell(billing=up.url)
    id = await end()
    await step(worker)
    assert (worker.delivered, worker.failed, worker.given_up) == (0, 1, 0)
    end.clock.now += 60
    await step(worker)
    assert (worker.delivered, worker.failed, worker.given_up) == (1, 1, 0)
    assert [fields(request)["webhook-id"] for request in up.requests] == [id, id]
    assert f"webhook billing: status {status}; it is tried again\n" in logged.text
    assert logged.text.count("webhook billing answers again\n") == 1
    assert "said" not in logged.text


async def test_410_is_the_end(upstream: StartUpstream, end: Ends, tell: Start, logged: LogText) -> None:
    """Who is gone is not told again; the next job's end is tried."""
    up = await upstream(answer(410), HEARD)
    worker = tell(billing=up.url)
    id = await end()
    await step(worker)
    assert f"webhook billing is not told of job {id}, try 1 was the last: status 410\n" in logged.text
    assert (worker.delivered, worker.failed, worker.given_up) == (0, 1, 1)
    end.clock.now += 7200
    assert not await end.is_due()
    await end()
    await step(worker)
    assert worker.delivered == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(upstream: StartUpstream, end: Ends, tell: Start, status: int) -> None:
    """Where it points is never connected to, neither elsewhere nor at the receiver itself."""
    elsewhere = await upstream()
    up = await upstream(
        answer(status, [(b"Location", elsewhere.url.encode())]), answer(status, [(b"Location", b"/b")])
    )
    worker = tell(billing=f"{up.url}/a")
    await end()
    await step(worker)
    end.clock.now += 60
    await step(worker)
    assert [request.target for request in up.requests] == [b"/a", b"/a"]
    assert elsewhere.connections == 0
    assert worker.failed == 2


async def hangs_up(conn: Conn) -> None:
    await conn.request()
    await conn.close()


async def resets(conn: Conn) -> None:
    await conn.request()
    conn.reset()


async def resets_early(conn: Conn) -> None:
    conn.reset()


async def cuts_its_head(conn: Conn) -> None:
    await conn.request()
    await conn.send(b"HTTP/1.1 204 No Con")
    await conn.close()


async def speaks_another_language(conn: Conn) -> None:
    await conn.request()
    await conn.send(b"220 mail.test ESMTP\r\n")
    await conn.close()


async def switches(conn: Conn) -> None:
    await conn.request()
    await conn.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
    await conn.gone()


async def sends_a_large_head(conn: Conn) -> None:
    await conn.request()
    await conn.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await conn.send(b"X-A: b\r\n" * 1000)


@pytest.mark.parametrize(
    "play",
    [
        *(hangs_up, resets, resets_early, cuts_its_head, speaks_another_language, switches),
        sends_a_large_head,
    ],
)
async def test_a_receiver_that_does_not_answer_is_told_again(
    upstream: StartUpstream, end: Ends, tell: Start, play: Callable[[Conn], Awaitable[None]]
) -> None:
    """However it breaks off, at once, with the same id."""
    up = await upstream(raw(play), HEARD)
    worker = tell(billing=up.url)
    id = await end()
    await step(worker)
    assert (worker.delivered, worker.failed) == (0, 1)
    await up.quiet()
    end.clock.now += 60
    await step(worker)
    assert fields(up.requests[-1])["webhook-id"] == id
    assert worker.delivered == 1


async def test_nobody_is_there(end: Ends, tell: Start, closed_port: int, logged: LogText) -> None:
    """A port that refuses, and a name that is none, are tried again as everything else."""
    worker = tell(
        billing=f"http://127.0.0.1:{closed_port}", invalid="http://a..b/", gone="http://gone.invalid/"
    )
    for name in ("billing", "invalid", "gone"):
        await end(name)
    await step(worker)
    assert (worker.failed, worker.given_up) == (3, 0)
    assert logged.text.count("it is tried again") == 3
    assert "a..b" not in logged.text


async def says_nothing(conn: Conn) -> None:
    await conn.request()
    await conn.gone()


async def drips(conn: Conn) -> None:
    await conn.request()
    await conn.send(b"HTTP/1.1 204 No Content\r\nX-A: ")
    while True:
        await conn.send(b"b")
        await asyncio.sleep(0.01)


async def promises(conn: Conn) -> None:
    await conn.request()
    while True:
        await conn.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("play", [says_nothing, drips, promises])
async def test_a_try_ends_in_time(
    upstream: StartUpstream,
    end: Ends,
    tell: Start,
    logged: LogText,
    monkeypatch: pytest.MonkeyPatch,
    play: Callable[[Conn], Awaitable[None]],
) -> None:
    """The time is for the whole of it: bytes that come do not lengthen it."""
    assert webhooks.TRY_SECONDS == 10
    monkeypatch.setattr(webhooks, "TRY_SECONDS", 1.0)
    up = await upstream(raw(play))
    worker = tell(billing=up.url)
    await end()
    await step(worker)
    await up.quiet()
    assert (worker.delivered, worker.failed) == (0, 1)
    assert "webhook billing: TimeoutError; it is tried again\n" in logged.text


async def test_an_endless_body_is_not_read(upstream: StartUpstream, end: Ends, tell: Start) -> None:
    """The status says all. When a few kilobytes have come the connection is closed."""

    async def goes_on(conn: Conn) -> None:
        await conn.request()
        await conn.send(head(200, [(b"Content-Length", b"1000000000")]) + bytes(4096))
        await conn.gone()

    async def never_stops(conn: Conn) -> None:
        await conn.request()
        await conn.send(head(200, [(b"Transfer-Encoding", b"chunked"), (b"Content-Encoding", b"gzip")]))
        while True:
            await conn.send(b"1000\r\n" + bytes(4096) + b"\r\n")

    up = await upstream(raw(goes_on), raw(never_stops))
    worker = tell(billing=up.url)
    for _ in range(2):
        await end()
        await step(worker)
        await up.quiet()
    assert worker.delivered == 2


async def test_a_body_that_does_not_come_changes_nothing(
    upstream: StartUpstream, end: Ends, tell: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that said 200 has heard, whatever becomes of the rest of its answer."""
    monkeypatch.setattr(webhooks, "TRY_SECONDS", 2.0)

    async def stalls(conn: Conn, _: Request) -> None:
        await conn.send(head(200, [(b"Content-Length", b"2")]))
        await conn.gone()

    async def cuts(conn: Conn, _: Request) -> None:
        await conn.send(head(200, [(b"Content-Length", b"2")]) + b"x")
        conn.reset()

    up = await upstream(stalls, cuts)
    worker = tell(billing=up.url)
    for _ in range(2):
        await end()
        await step(worker)
    assert (worker.delivered, worker.failed) == (2, 0)


async def test_what_a_receiver_does_not_read_is_dropped(
    upstream: StartUpstream, end: Ends, tell: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A try that is over holds no connection, not even one that has not taken its request."""
    monkeypatch.setattr(webhooks, "TRY_SECONDS", 2.5)
    # More than the kernel takes.
    monkeypatch.setattr(notices, "MOST_BYTES", 2**25)
    monkeypatch.setattr(aiohttp.payload, "TOO_LARGE_BYTES_BODY", 2**25)
    released = asyncio.Event()

    async def answers_early(conn: Conn) -> None:
        conn.stop_reading()
        await conn.send(HEARD)
        await released.wait()

    up = await upstream(raw(answers_early))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sockets = open_sockets()
        worker = tell(billing=up.url, silent=f"http://127.0.0.1:{silent.getsockname()[1]}")
        for name in ("billing", "silent"):
            await end(name, body=b'"%b"' % (b"x" * 2**24))
        await step(worker)
        # What is dropped is closed in the next turn. The receiver's own end is left.
        await asyncio.sleep(0)
        assert open_sockets() - sockets == 1
    assert (worker.delivered, worker.failed) == (1, 1)
    released.set()


# TLS.


def of(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


async def test_a_trusted_receiver_is_told(
    upstream: StartUpstream, end: Ends, tell: Start, authority: trustme.CA
) -> None:
    """Over TLS, with a certificate of an authority that this machine trusts."""
    up = await upstream(HEARD, tls=of(authority.issue_cert("127.0.0.1")))
    worker = tell(billing=f"{up.url}/a")
    await end()
    await step(worker)
    assert verified(up.requests[0])["type"] == "async_job.completed"
    assert worker.delivered == 1


@pytest.mark.parametrize("whose", ["another authority's", "another name's"])
async def test_an_impostor_is_told_nothing(
    upstream: StartUpstream, end: Ends, tell: Start, authority: trustme.CA, logged: LogText, whose: str
) -> None:
    """Without a certificate that proves the name no byte of a request goes out."""
    issuer, name = (
        (trustme.CA(), "127.0.0.1") if whose == "another authority's" else (authority, "other.test")
    )
    up = await upstream(tls=of(issuer.issue_cert(name)))
    worker = tell(billing=up.url)
    await end()
    await step(worker)
    assert up.arrived == 0
    assert worker.failed == 1
    assert "webhook billing: ClientConnectorCertificateError; it is tried again\n" in logged.text


# When it is told again.


@BOTH
async def test_tries_follow_the_schedule_and_end(
    upstream: StartUpstream, end: Ends, tell: Start, clock: Clock, logged: LogText
) -> None:
    """Not earlier than the wait and not much later, with one id, each try signed with its own time."""
    up = await upstream(*[answer(503)] * 31)
    worker = tell(billing=up.url)
    id = await end()
    at = [clock.now]
    await step(worker)
    for wait in [30, 60, 120, 240, 480, 960, 1920] + [3600] * 23:
        clock.now = at[-1] + 0.74 * wait
        await step(worker)
        assert len(up.requests) == len(at)
        clock.now = at[-1] + 1.26 * wait
        await step(worker)
        at.append(clock.now)
        assert len(up.requests) == len(at)
    assert worker.failed == 31
    assert worker.given_up == 1
    assert logged.text.count("webhook billing") == 2
    assert f"webhook billing is not told of job {id}, try 31 was the last: status 503\n" in logged.text
    assert not await end.is_due()
    for request, second in zip(up.requests, at, strict=True):
        names = fields(request)
        assert (names["webhook-id"], names["webhook-timestamp"]) == (id, str(int(second)))
        when = datetime.fromtimestamp(int(second), UTC)
        signature = standardwebhooks.Webhook(SECRET).sign(id, when, request.body.decode())
        assert names["webhook-signature"] == signature
    assert len({request.body for request in up.requests}) == 1


async def test_a_short_lived_result_is_told_of_until_it_expires(
    upstream: StartUpstream, end: Ends, tell: Start, clock: Clock, logged: LogText
) -> None:
    """The last try comes a little before, and the log has the end of it."""
    up = await upstream(answer(503), answer(503))
    worker = tell(billing=up.url)
    await end(ttl=20)
    await step(worker)
    clock.now += 4.9
    await step(worker)
    assert len(up.requests) == 1
    clock.now += 0.2
    await step(worker)
    assert len(up.requests) == 2
    assert (worker.failed, worker.given_up) == (2, 1)
    assert "try 2 was the last: status 503" in logged.text


class Given:
    """A store that only gives out what it was given, and keeps what it is told."""

    def __init__(self, *deliveries: Delivery) -> None:
        self.deliveries = list(deliveries)
        self.told_of: dict[str, float | None] = {}

    async def due(self, now: float, again: float) -> Delivery | None:
        if not self.deliveries:
            return None
        self._last = self.deliveries.pop(0)
        return self._last

    async def look(self, id: str, now: float) -> Found | None:
        return self._last.found

    async def told(self, id: str, again: float | None) -> None:
        self.told_of[id] = again


def given(count: int, tries: int = 1) -> list[Delivery]:
    at = time.time()
    ended = ending(MESSAGE, at=at)
    return [Delivery("billing", found(ended, f"job_{number}"), tries) for number in range(count)]


async def test_those_who_wait_do_not_come_back_together(tell: Start, closed_port: int, clock: Clock) -> None:
    """The times of the next tries are spread over half of the wait."""
    store = Given(*given(100, tries=4))
    worker = tell(store, billing=f"http://127.0.0.1:{closed_port}")
    while store.deliveries:
        await step(worker)
    waits = sorted((again or 0.0) - clock.now for again in store.told_of.values())
    refused = [wait for wait in waits if wait >= 180]
    assert len(refused) >= 10
    assert 180 <= refused[0] < refused[-1] <= 300
    assert len(set(waits)) == 100


@BOTH
async def test_a_worker_that_is_killed_has_told_nothing(
    upstream: StartUpstream, end: Ends, tell: Start, clock: Clock, store_url: str, tmp_path: Path
) -> None:
    """What it was about is told by another within half a minute, with the same id; not before."""
    asked = asyncio.Event()

    async def thinks(conn: Conn, _: Request) -> None:
        asked.set()
        await conn.gone()

    up = await upstream(thinks, HEARD)
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "store": store_url,
                "providers": {"anthropic": {"base_urls": {"anthropic": up.url}}},
                "webhooks": {"billing": {"url": up.url, "secret": "env.HOOK"}},
            }
        )
    )
    id = await end()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, str(tmp_path / "config.yaml")),
        env={**os.environ, "HOOK": SECRET},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    overhear(process)
    try:
        async with asyncio.timeout(3 * PATIENCE):
            await asked.wait()
    finally:
        process.kill()
        await process.communicate()
    worker = tell(billing=up.url)
    clock.now = time.time()
    await step(worker)
    assert len(up.requests) == 1
    clock.now += 30
    await step(worker)
    assert [fields(request)["webhook-id"] for request in up.requests] == [id, id]
    assert up.requests[0].body == up.requests[1].body
    assert verified(up.requests[1])["data"]["id"] == id


WORKER = """
import asyncio, os, sys
from proxy import config
from proxy.store import open_jobs
from proxy.webhooks import Webhooks

async def main(path):
    read = config.load(open(path).read(), os.environ, None)
    worker = Webhooks(open_jobs(read.store))
    worker.use(read)
    worker.start()
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""
"""A worker that tells and does nothing else."""


async def test_who_is_killed_in_every_try_is_given_up(
    upstream: StartUpstream, end: Ends, tell: Start, clock: Clock, logged: LogText
) -> None:
    """Tries that came to no end count as well, so there is an end to them."""
    up = await upstream()
    id = await end()
    for _ in range(31):
        assert await end.store.due(clock.now, clock.now + 30) is not None
        clock.now += 30
    worker = tell(billing=up.url)
    await step(worker)
    assert worker.given_up == 1
    assert f"is not told of job {id}, try 32 was the last: no try came to its end\n" in logged.text
    assert not await end.is_due()


# The config.


@BOTH
async def test_a_webhook_that_is_no_longer_configured_is_given_up(
    upstream: StartUpstream, end: Ends, tell: Start, clock: Clock, logged: LogText
) -> None:
    """But not at once: the workers do not all read a new config in the same moment."""
    up = await upstream(HEARD)
    old, new = tell(), tell(billing=up.url)
    first = await end()
    await step(old)
    clock.now += 40
    await step(new)
    assert fields(up.requests[0])["webhook-id"] == first
    second = await end()
    for number in range(5):
        assert old.given_up == 0
        await step(old)
        clock.now += 30 * 2**number * 1.3
    assert old.given_up == 1
    last = "try 5 was the last: the config has no such webhook\n"
    assert f"webhook billing is not told of job {second}, {last}" in logged.text
    assert not await end.is_due()
    assert (old.delivered, old.failed) == (0, 0)


async def test_a_reload_changes_url_and_secret(
    upstream: StartUpstream, end: Ends, tell: Start, clock: Clock
) -> None:
    """The next try goes by the new config; one that is under way stays as it was."""
    asked, answered = asyncio.Event(), asyncio.Event()

    async def thinks(conn: Conn, _: Request) -> None:
        asked.set()
        await answered.wait()
        await conn.send(HEARD)

    before, after = await upstream(thinks, answer(500)), await upstream(HEARD)
    worker = tell(billing=before.url)
    first = await end()
    await worker.step()
    await asked.wait()
    worker.use(configured(billing=after.url))
    answered.set()
    await worker.settle()
    assert worker.delivered == 1
    worker.use(configured(billing=before.url))
    second = await end()
    await step(worker)
    worker.use(configured(billing=after.url))
    clock.now += 60
    await step(worker)
    assert [fields(request)["webhook-id"] for request in before.requests] == [first, second]
    assert [fields(request)["webhook-id"] for request in after.requests] == [second]


# Many at a time.


@BOTH
async def test_a_slow_receiver_does_not_hold_up_the_others(
    upstream: StartUpstream, end: Ends, tell: Start, clock: Clock, logged: LogText
) -> None:
    """It has ten tries at a time; what is more is soon due again, and whoever is behind it is told now."""
    released = asyncio.Event()

    async def thinks(conn: Conn, _: Request) -> None:
        await released.wait()
        await conn.send(HEARD)

    slow, quick = await upstream(*[thinks] * 25), await upstream(HEARD)
    worker = tell(billing=slow.url, quick=quick.url)
    for _ in range(25):
        await end()
    await end("quick")
    await worker.step()
    await quick.received(1)
    await slow.received(10)
    assert slow.connections == 10
    released.set()
    await worker.settle()
    assert worker.delivered == 11
    for seconds in (1.3, 2.6):
        clock.now += seconds
        await step(worker)
    assert (worker.delivered, slow.connections) == (26, 25)
    assert (worker.failed, worker.given_up) == (0, 0)
    assert "webhook" not in logged.text


async def test_no_more_are_open_than_may_be(
    upstream: StartUpstream, end: Ends, tell: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What finds no room stays in the store, and is told when there is."""
    monkeypatch.setattr(webhooks, "MOST_OPEN", 3)
    monkeypatch.setattr(webhooks, "LOOK_SECONDS", 60.0)
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def thinks(conn: Conn, _: Request) -> None:
        await conn.send(await answers.get())

    up = await upstream(*[thinks] * 4)
    worker = tell(billing=up.url)
    for _ in range(5):
        await end()
    await worker.step()
    assert await end.is_due()
    worker.start()
    for answered in range(4):
        await up.received(min(3 + answered, 4))
        assert up.connections == min(3 + answered, 4)
        answers.put_nowait(HEARD)
    assert await worker.settle(PATIENCE) == set()
    assert worker.delivered == 4


# The worker's own task.


class Faulty:
    """A real store that fails while it is told to."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self.broken: set[str] = set()
        self.failed = asyncio.Event()
        self.had_nothing = asyncio.Event()

    async def due(self, now: float, again: float) -> Delivery | None:
        self._check("due")
        delivery = await self._store.due(now, again)
        if delivery is None:
            self.had_nothing.set()
        return delivery

    async def look(self, id: str, now: float) -> Found | None:
        return await self._store.look(id, now)

    async def told(self, id: str, again: float | None) -> None:
        self._check("told")
        await self._store.told(id, again)

    def _check(self, name: str) -> None:
        if name in self.broken:
            self.failed.set()
            raise StoreError("it is away")


async def test_it_looks_every_second(
    upstream: StartUpstream, end: Ends, tell: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what others have ended, and for what is to be told again."""
    assert webhooks.LOOK_SECONDS == 1
    monkeypatch.setattr(webhooks, "LOOK_SECONDS", 0.01)
    store = Faulty(end.store)
    up = await upstream(HEARD)
    tell(store, billing=up.url).start()
    await store.had_nothing.wait()
    await end()
    await up.received(1)


async def test_it_looks_when_it_is_called(
    upstream: StartUpstream, end: Ends, tell: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has ended here is told at once."""
    monkeypatch.setattr(webhooks, "LOOK_SECONDS", 3600.0)
    store = Faulty(end.store)
    up = await upstream(HEARD)
    worker = tell(store, billing=up.url)
    worker.start()
    await store.had_nothing.wait()
    await end()
    assert up.connections == 0
    worker.come()
    await up.received(1)


async def test_a_store_that_fails_is_asked_again(
    upstream: StartUpstream, end: Ends, tell: Start, logged: LogText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says so, however long it takes."""
    monkeypatch.setattr(webhooks, "LOOK_SECONDS", 0.01)
    up = await upstream(HEARD)
    store = Faulty(end.store)
    store.broken = {"due"}
    worker = tell(store, billing=up.url)
    await end()
    worker.start()
    for _ in range(3):
        store.failed.clear()
        await store.failed.wait()
    store.broken = set()
    await up.received(1)
    assert logged.text.count("webhooks cannot be told: it is away") == 1


async def test_what_the_store_has_not_heard_is_told_twice(
    upstream: StartUpstream, end: Ends, tell: Start, clock: Clock, logged: LogText
) -> None:
    """At least once is not at most once."""
    up = await upstream(HEARD, HEARD)
    store = Faulty(end.store)
    store.broken = {"told"}
    worker = tell(store, billing=up.url)
    id = await end()
    await step(worker)
    assert f"webhook billing: job {id} is told again: it is away\n" in logged.text
    store.broken = set()
    clock.now += 31
    await step(worker)
    assert len({fields(request)["webhook-id"] for request in up.requests}) == 1
    assert len(up.requests) == 2


async def test_what_cannot_be_read_stops_nobody(
    upstream: StartUpstream, tell: Start, logged: LogText, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end that is damaged is logged without what it holds, and the others are told."""
    monkeypatch.setattr(webhooks, "LOOK_SECONDS", 0.01)
    up = await upstream(HEARD)
    damaged, good = given(2)
    kept = ending(b"sk-test-damaged")._replace(packed=True)
    store = Given(damaged._replace(found=damaged.found._replace(ending=kept)), good)
    worker = tell(store, billing=up.url)
    worker.start()
    await up.received(1)
    assert fields(up.requests[0])["webhook-id"] == good.found.id
    assert "webhooks cannot be told: error\n" in logged.text
    assert "_plain" in logged.text


async def test_the_end_waits_a_moment_for_what_is_under_way(
    upstream: StartUpstream, end: Ends, tell: Start, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done in that time is told; what is not is cut, and due again. No task, no socket is left."""
    assert webhooks.CLOSE_SECONDS == 3
    monkeypatch.setattr(webhooks, "CLOSE_SECONDS", 2.0)
    monkeypatch.setattr(webhooks, "TRY_SECONDS", 60.0)
    closing = asyncio.Event()

    async def late(conn: Conn, _: Request) -> None:
        await closing.wait()
        await conn.send(HEARD)

    up = await upstream(late)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        before, sockets = asyncio.all_tasks(), open_sockets()
        worker = tell(billing=up.url, silent=f"http://127.0.0.1:{silent.getsockname()[1]}")
        await end()
        second = await end("silent")
        worker.start()
        async with asyncio.timeout(PATIENCE):
            taken, _ = await asyncio.get_running_loop().sock_accept(silent)
        await up.received(1)
        closing.set()
        async with asyncio.timeout(PATIENCE):
            await worker.close()
        assert asyncio.all_tasks() - before <= up.tasks
        taken.close()
        await up.stop()
        # What is dropped is closed in the next turn. The receiver listens no more.
        await asyncio.sleep(0)
        assert open_sockets() == sockets - 1
    assert (worker.delivered, worker.failed) == (1, 0)
    clock.now += 31
    delivery = await end.store.due(clock.now, clock.now + 30)
    assert delivery is not None
    assert (delivery.found.id, delivery.tries) == (second, 2)
    assert not await end.is_due()


async def test_a_worker_that_never_told_anything_ends(tell: Start) -> None:
    """Whether it was started or not."""
    await tell().close()
    worker = tell()
    worker.start()
    await worker.close()
