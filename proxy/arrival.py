"""A request body as it arrives, and the patience with it.

Facts
  - aiohttp has no timer on a body's arrival where it is read as here. Silence alone is no measure: a byte now
    and then would hold a connection for ever.

Rules
  1. A body must come by a step within ``body_timeout`` of waiting for it; while nobody waits none is used up.

Not here: what is held of it, and up to which size (`incoming`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from .config import Config
from .errors import ProxyError, Source
from .exchange import Exchange

STEP_BYTES = 4096
"""A body must come by so much, or to its end, within ``body_timeout`` of waiting for it."""

HELD_SHARE = 1 / 64
"""A body that is held must come by this share of what has come, if that is more: it takes others' room."""


class Arrival:
    """A body as it arrives, and the patience with it. While nobody waits for it, none is used up."""

    __slots__ = ("_came", "_content", "_exchange", "_left", "_patience", "_share", "_step")

    def __init__(
        self, request: web.BaseRequest, exchange: Exchange, config: Config, share: float = 0.0
    ) -> None:
        self._content = request.content
        self._exchange = exchange
        self._patience = self._left = config.body_timeout
        self._came = 0
        self._step = float(STEP_BYTES)
        self._share = share

    async def rest(self) -> AsyncGenerator[bytes, None]:
        """The parts that have not come yet."""
        while part := await self.part():
            yield part

    async def part(self) -> bytes:
        """The next bytes of the body, ``b""`` after the last."""
        content = self._content
        try:
            if content.is_eof():
                part = content.read_nowait()
            else:
                clock = asyncio.get_running_loop().time
                began = clock()
                async with asyncio.timeout(self._left):
                    part = await content.readany()
                self._left -= clock() - began
        except TimeoutError:
            raise ProxyError(
                408, "The request body did not arrive in time.", source=Source.DOWNSTREAM, event="timeout"
            ) from None
        except ConnectionError:
            raise _broken("The client left.") from None
        except (web.RequestPayloadError, HttpProcessingError):
            raise _broken("The request body is not framed as its header fields say.") from None
        self._exchange.bytes_in += len(part)
        self._came += len(part)
        if self._came >= self._step:
            self._came, self._left = 0, self._patience
            self._step = max(STEP_BYTES, self._share * self._exchange.bytes_in)
        return part


def _broken(message: str) -> ProxyError:
    return ProxyError(400, message, source=Source.DOWNSTREAM)
