"""The link to Redis: one client, few connections, and its errors as `StoreError`.

Facts
  - `Redis` asks up to ten times by default: a change whose answer was lost would be made again.
  - It sends with `asyncio.wait_for`, which before Python 3.12 forgets that it was cancelled if what it waits
    for is done just then (github.com/python/cpython/issues/86296): one of five calls that were cancelled.
  - An error about an unknown command repeats its arguments, and those of AUTH are the password.

Rules
  1. Nothing is asked twice. A connection that failed is made anew.
  2. The server's own words about an error go nowhere, only its code.

Not here: what is asked (`redis`, `redis_jobs`).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from proxy.ports import StoreError

_CONNECTIONS = 8
"""So many calls at once; others wait."""

# Codes that the package keeps only within the server's text, or that a script's error wraps.
_CODE = re.compile("OOM|MISCONF|NOREPLICAS|READONLY")


class RedisLink:
    """A client and its connections, which are made when they are needed."""

    def __init__(self, url: str, password: str | None, *, silence: float, patience: float) -> None:
        """`silence`: how long the server may say nothing, in seconds; `patience`: how long a whole call may
        take, waiting for a connection included."""
        self.url = url
        self.redis = Redis.from_url(
            url,
            password=password,
            # What it takes to understand servers before 6.0, and less work than RESP3.
            protocol=2,
            # It would tell the server its name with two more commands on each connection.
            driver_info=None,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=silence,
            socket_connect_timeout=silence,
            socket_keepalive_options=_kernel(silence),
        )
        self._patience = patience
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._closing: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"{self.url}{'' if self._closing is None else ' closed'}"

    async def ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        cancels = _cancels()
        try:
            return await self._ask(call)
        finally:
            if _cancels() > cancels:
                # The package may have forgotten it.
                raise asyncio.CancelledError

    async def _ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        if self._closing is not None:
            raise StoreError(f"{self.url}: the store is closed")
        try:
            async with asyncio.timeout(self._patience), self._slots:
                return await call()
        except UnicodeError:
            # What was asked cannot be said.
            raise
        except (exceptions.RedisError, OSError, ValueError) as error:
            # ValueError: it is no Redis. Without the cause, for a traceback would show it.
            reason = self._reason(error)
            if reason.endswith("READONLY"):
                # A replica now. The name may lead to the new master; the connections that are there do not.
                with contextlib.suppress(exceptions.RedisError, OSError):
                    await self.redis.connection_pool.disconnect(inuse_connections=False)
            raise StoreError(f"{self.url}: {reason}") from None

    def _reason(self, error: Exception) -> str:
        if type(error) in (exceptions.ConnectionError, exceptions.TimeoutError):
            # The package's own words.
            return str(error)
        if isinstance(error, TimeoutError):
            return f"no answer within {self._patience:g} s"
        code = _CODE.search(str(error))
        said = code[0] if code else getattr(error, "status_code", None)
        return f"the server answered {said or type(error).__name__}"

    async def close(self) -> None:
        """Returns when those who have asked are answered and all connections have ended."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._end())
        # Also for whoever is cancelled here.
        await asyncio.shield(self._closing)

    async def _end(self) -> None:
        for _ in range(_CONNECTIONS):
            # Who is being answered is not interrupted; it takes the patience at most.
            await self._slots.acquire()
        await self.redis.aclose()


def _cancels() -> int:
    """How often whoever asks has been cancelled."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _kernel(silence: float) -> dict[int, int]:
    """The kernel gives up when we do.

    If it still sent a change after we asked whether that was made, it would be made twice.
    """
    return {socket.TCP_USER_TIMEOUT: int(silence * 1000)} if hasattr(socket, "TCP_USER_TIMEOUT") else {}
