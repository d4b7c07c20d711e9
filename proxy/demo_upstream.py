"""The demo's upstream: a small stand-in for a provider on 127.0.0.1 that speaks four wire formats.

Facts
  - Several APIs have a ``/v1/models``. So Anthropic's is at the root, and the others below their names.

Rules
  1. Ids count up and dates stand still: nothing in an answer depends on clock or chance.
  2. Bad input gets the API's status and error shape, never a traceback.

Not here: what is said (`demo_anthropic`, `demo_openai`, `demo_genai`, `demo_cohere`), the show (`demo`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import orjson
from aiohttp import web

from . import demo_answers as answers
from .demo_answers import Api, Asked, Json, Pace, Refusal, Said, Step
from .demo_anthropic import Anthropic
from .demo_bodies import read_json
from .demo_cohere import COHERE
from .demo_genai import GENAI
from .demo_openai import OPENAI
from .errors import ProxyError
from .formats import FORMATS

_APIS: Mapping[str, Api] = MappingProxyType({api.wire_format: api for api in (OPENAI, GENAI, COHERE)})
"""By what their paths begin with."""


class DemoUpstream:
    """A provider on a free port of 127.0.0.1.

    `name` signs the answers. `interval` is the pause before each word and `silence` the length of
    ``demo-thinking``'s pause, both in seconds. Any credential is accepted; none at all is refused.
    """

    def __init__(self, name: str = "demo", *, interval: float = 0.03, silence: float = 2.5) -> None:
        self.name = name
        self.url = ""
        self._pace = Pace(interval, silence)
        self._runner: web.ServerRunner | None = None
        self._numbers = itertools.count(1)
        self._anthropic = Anthropic(name, self._id, self._pace)

    @property
    def base_urls(self) -> dict[str, str]:
        """By wire format, as a config has them."""
        paths = {"anthropic": "", "openai": "/openai/v1", "genai": "/genai", "cohere": "/cohere"}
        return {wire_format: self.url + path for wire_format, path in paths.items()}

    async def start(self) -> None:
        """Listen; from here on `url` is Anthropic's base URL, without a slash at its end."""
        server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = self._anthropic.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Stop listening and end every open answer."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        request_id = self._id("req")
        api = _APIS.get(request.path.split("/")[1])
        if api is None:
            fields = self._anthropic.fields(request_id)
        else:
            fields = {FORMATS[api.wire_format].request_id.decode(): request_id}
        reply: Json | web.Response | Iterator[Step]
        try:
            said = await (self._anthropic.answer(request) if api is None else self._answer(api, request))
            reply = await self._say(said, 503 if api else 529) if isinstance(said, Said) else said
        except Refusal as refusal:
            body = _refused(api, refusal, request_id) if api else self._anthropic.refused(refusal, request_id)
            reply = web.Response(body=body, status=refusal.status, content_type="application/json")
            fields.update(refusal.headers)
        if isinstance(reply, dict):
            reply = web.Response(body=orjson.dumps(reply), content_type="application/json")
        if isinstance(reply, web.Response):
            reply.headers.update(fields)
            return reply
        fields |= {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        return await _stream(request, reply, fields)

    async def _answer(self, api: Api, request: web.BaseRequest) -> Said | Json:
        if not request.headers.get(FORMATS[api.wire_format].credential[0].decode()):
            raise Refusal(api.no_key, "authentication_error", "A key is required.")
        if request.content_type.startswith("multipart/"):
            raise answers.invalid("The demo takes no forms here: neither sound nor pictures")
        body = await read_json(request) if request.method == "POST" else {}
        if "fallbacks" in body:
            raise answers.invalid("fallbacks: Extra inputs are not permitted")
        path = request.path.split("/")[2:]
        return api.answer(Asked(request.method, path, request.query, body, self.name, self._id, self._pace))

    async def _say(self, said: Said, overloaded: int) -> Json | Iterator[Step]:
        """The answer whole or as a stream; the special models do here what they are for."""
        if said.model == answers.OVERLOADED:
            raise Refusal(overloaded, "overloaded_error", "Overloaded", {"retry-after": "1"})
        if said.stream is not None:
            return said.stream
        if said.model == answers.ERROR:
            raise Refusal(500, "api_error", "Internal server error")
        if said.model == answers.THINKING:
            await asyncio.sleep(self._pace.silence)
        return said.whole

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self.name}{next(self._numbers):06}"


async def _stream(
    request: web.BaseRequest, steps: Iterator[Step], fields: Mapping[str, str]
) -> web.StreamResponse:
    response = web.StreamResponse(headers=fields)
    await response.prepare(request)
    for seconds, data in steps:
        await asyncio.sleep(seconds)
        await response.write(data)
    return response


def _refused(api: Api, refusal: Refusal, request_id: str) -> bytes:
    """The body of an error answer, in the shape that the wire format's table has."""
    return FORMATS[api.wire_format].body(ProxyError(refusal.status, refusal.message), request_id)
