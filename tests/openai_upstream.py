"""OpenAI's API and Azure's on a free port of 127.0.0.1, with every request kept as it came.

Facts
  - OpenAI's base URL ends in /v1; its credential is ``Authorization: Bearer``.
  - Azure has /openai/deployments/D/OPERATION and /openai/OPERATION, both with ``?api-version=``, and
    /openai/v1/OPERATION without it; its credential is ``api-key``, or a bearer token of Entra
    (learn.microsoft.com, Azure OpenAI REST reference). The deployment is the model, whatever the body says.
  - ``web.BaseRequest.read`` stops at 1 MiB; files are larger, so bodies are read here.

Rules
  1. The same requests get the same bytes, from every upstream of this kind.
  2. Some models do something: ``fails-NNN`` is answered with that status, ``silent`` never. Streams of
     ``cut`` are reset behind the third event, of ``torn`` in the middle of the fourth; those of ``ids`` have
     ``id:`` lines, and those of ``crlf`` CRLF line ends.
  3. What OpenAI would refuse is refused: no credential, an unknown path, a body without a model.

Not here: what is said (`openai_answers`), and any judgement on the requests.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple
from urllib.parse import unquote

import openai_answers as answers
from aiohttp import web
from openai_answers import Json
from rawclient import Headers, header_values

MODELS = ("gpt-4o-mini", "gpt-4o-transcribe", "text-embedding-3-small")
IN_DEPLOYMENTS = {
    *("chat/completions", "completions", "embeddings", "audio/speech", "audio/transcriptions"),
    *("images/generations", "images/edits"),
}
VERSION = "2025-04-01-preview"
"""What tests send as ``api-version``."""


class Part(NamedTuple):
    """One part of a form: its head as it came, and its content."""

    head: bytes
    content: bytes

    @property
    def name(self) -> str:
        found = re.search(rb'; name="([^"]*)"', self.head)
        assert found, self.head
        return found[1].decode()

    @property
    def filename(self) -> str:
        found = re.search(rb'; filename="([^"]*)"', self.head)
        return found[1].decode() if found else ""


class Kept(NamedTuple):
    """One request as it came."""

    method: str
    target: bytes
    headers: Headers
    body: bytes

    def values(self, name: str) -> list[bytes]:
        return header_values(self.headers, name)

    @property
    def steady(self) -> bytes:
        """The body, but for a form's boundary, which is drawn anew for every request."""
        _, mark, boundary = (self.values("content-type") or [b""])[0].partition(b"; boundary=")
        return self.body.replace(boundary, b"BOUNDARY") if mark else self.body

    @property
    def form(self) -> list[Part]:
        """The parts of a body that is multipart/form-data (RFC 7578)."""
        (content_type,) = self.values("content-type")
        kind, _, boundary = content_type.partition(b"; boundary=")
        assert kind == b"multipart/form-data", content_type
        first, *parts, last = (b"\r\n" + self.body).split(b"\r\n--" + boundary)
        assert (first, last) == (b"", b"--\r\n"), (first, last)
        return [Part(*part.removeprefix(b"\r\n").split(b"\r\n\r\n", 1)) for part in parts]


class Refused(Exception):
    """The request is answered with an error."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(body)
        self.status = status
        self.body = body


class Stream(NamedTuple):
    events: list[bytes]


class Sound(NamedTuple):
    data: bytes


Reply = Json | Stream | Sound


class OpenAIUpstream:
    """`pause` is awaited before each event of a stream, with the event before it, or ``b""``."""

    def __init__(self, *, pause: Callable[[bytes], Awaitable[object]] | None = None) -> None:
        self.requests: list[Kept] = []
        self.url = ""
        self._pause = pause
        self._files: dict[str, tuple[Json, bytes]] = {}
        self._batches: dict[str, Json] = {}
        self._responses: dict[str, Json] = {}

    async def start(self) -> None:
        server = web.Server(self._handle, handler_cancellation=True, auto_decompress=False, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        target = request.raw_path.encode("utf-8", "surrogateescape")
        body = await request.content.read()
        kept = Kept(request.method, target, list(request.raw_headers), body)
        self.requests.append(kept)
        headers = {
            "openai-version": "2020-10-01",
            "x-request-id": answers.named("req_", request.method, body),
        }
        model = ""
        try:
            asked = self._understood(kept)
            model = str(asked.body.get("model", ""))
            if model.startswith("fails-"):
                status = int(model.removeprefix("fails-"))
                kind = "server_error" if status >= 500 else "invalid_request_error"
                raise Refused(status, answers.error(status, f"Upstream says {status}.", kind))
            if model == "silent":
                await asyncio.get_running_loop().create_future()
            reply = self._answered(asked)
        except Refused as refused:
            if refused.status == 429:
                headers |= {"retry-after": "7", "x-ratelimit-remaining-requests": "0"}
            data, headers["Content-Type"] = answers.packed(refused.body), "application/json"
            return web.Response(body=data, status=refused.status, headers=headers)
        if isinstance(reply, Stream):
            return await self._stream(request, reply.events, headers, model)
        if isinstance(reply, Sound):
            response = web.StreamResponse(headers={**headers, "Content-Type": "audio/mpeg"})
            await response.prepare(request)
            for start in range(0, len(reply.data), 50_000):
                await response.write(reply.data[start : start + 50_000])
            return response
        return web.Response(
            body=answers.packed(reply), headers={**headers, "Content-Type": "application/json"}
        )

    async def _stream(
        self, request: web.BaseRequest, events: Iterable[bytes], headers: dict[str, str], model: str
    ) -> web.StreamResponse:
        headers |= {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        sent = b""
        for number, event in enumerate(events):
            if self._pause is not None:
                await self._pause(sent)
            if number == 3 and model in ("cut", "torn"):
                if model == "torn":
                    await response.write(event[: len(event) // 2])
                assert request.transport is not None
                request.transport.abort()
                break
            if model == "ids":
                event = b"id: %d\n" % number + event
            elif model == "crlf":
                event = event.replace(b"\n", b"\r\n")
            await response.write(event)
            sent = event
        return response

    def _understood(self, kept: Kept) -> _Asked:
        """Which operation it is, and with what."""
        path, _, query = kept.target.decode().partition("?")
        fields = kept.values("authorization")
        bearer = bool(fields) and fields[0].startswith(b"Bearer ") and len(fields[0]) > 7
        if path.startswith("/openai/"):
            if not bearer and not kept.values("api-key"):
                raise Refused(401, {"error": {"code": "401", "message": "Access denied: no key."}})
            operation = path.removeprefix("/openai/")
            deployment = ""
            if operation.startswith("v1/"):
                operation = operation.removeprefix("v1/")
            elif f"api-version={VERSION}" not in query.split("&"):
                raise Refused(404, {"error": {"code": "404", "message": "Resource not found"}})
            elif operation.startswith("deployments/"):
                _, name, operation = operation.split("/", 2)
                deployment = unquote(name)
                if operation not in IN_DEPLOYMENTS:
                    raise Refused(404, {"error": {"code": "404", "message": "Resource not found"}})
            asked = _Asked(kept, operation, query, _content(kept), azure=True)
            return asked._replace(body={**asked.body, "model": deployment}) if deployment else asked
        if not path.startswith("/v1/"):
            raise Refused(404, answers.error(404, f"Invalid URL ({kept.method} {path})"))
        if not bearer:
            raise Refused(401, answers.error(401, "You didn't provide an API key."))
        return _Asked(kept, path.removeprefix("/v1/"), query, _content(kept), azure=False)

    def _answered(self, asked: _Asked) -> Reply:
        body = asked.body
        streamed = body.get("stream") in (True, "true")
        match asked.kept.method, asked.operation.split("/"):
            case "POST", _ if asked.operation in NEED_MODEL and not body.get("model"):
                raise Refused(400, answers.error(400, "you must provide a model parameter"))
            case "POST", ["chat", "completions"]:
                if streamed:
                    return Stream(answers.chat_events(body, azure=asked.azure))
                return answers.chat(body, azure=asked.azure)
            case "POST", ["completions"]:
                return Stream(answers.completion_events(body)) if streamed else answers.completion(body)
            case "POST", ["embeddings"]:
                return answers.embeddings(body)
            case "POST", ["moderations"]:
                return answers.moderation(body)
            case "POST", ["images", "generations" | "edits"]:
                return Stream(answers.image_events()) if streamed else answers.images()
            case "POST", ["audio", "speech"]:
                if body.get("stream_format") == "sse":
                    return Stream(answers.speech_events())
                return Sound(answers.SOUND)
            case "POST", ["audio", "transcriptions"]:
                (sound,) = (part.content for part in asked.kept.form if part.filename)
                if streamed:
                    return Stream(answers.transcription_events(sound))
                return answers.transcription(sound)
            case "GET", ["models"]:
                return {"object": "list", "data": [answers.model(id) for id in MODELS]}
            case "GET", ["models", id] if unquote(id) in MODELS:
                return answers.model(unquote(id))
            case method, ["responses", *rest]:
                return self._response_route(asked, method, rest)
            case method, ["files", *rest]:
                return self._file_route(asked, method, rest)
            case method, ["batches", *rest]:
                return self._batch_route(asked, method, rest)
        raise Refused(404, answers.error(404, f"Invalid URL ({asked.kept.method} {asked.operation})"))

    def _response_route(self, asked: _Asked, method: str, rest: list[str]) -> Reply:
        match method, rest:
            case "POST", []:
                self._responses[answers.response(asked.body)["id"]] = asked.body
                if asked.body.get("stream"):
                    return Stream(answers.response_events(asked.body))
                return answers.response(asked.body)
            case "GET", [id] if id in self._responses:
                # It goes on where a stream was left.
                after = re.search(r"(?:^|&)starting_after=(\d+)", asked.query)
                if "stream=true" in asked.query.split("&"):
                    events = answers.response_events(self._responses[id])
                    return Stream(events[int(after[1]) + 1 if after else 0 :])
                return answers.response(self._responses[id])
        raise Refused(404, answers.error(404, f"Response with id '{'/'.join(rest)}' not found."))

    def _file_route(self, asked: _Asked, method: str, rest: list[str]) -> Reply:
        match method, rest:
            case "POST", []:
                (part,) = (part for part in asked.kept.form if part.filename)
                told = answers.file(part.filename, str(asked.body["purpose"]), part.content)
                self._files[told["id"]] = told, part.content
                return told
            case "GET", []:
                data = [told for told, _ in self._files.values()]
                ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
                return {"object": "list", "data": data, "has_more": False, **ends}
            case "GET", [id] if id in self._files:
                return self._files[id][0]
            case "GET", [id, "content"] if id in self._files:
                return Sound(self._files[id][1])
            case "DELETE", [id] if id in self._files:
                del self._files[id]
                return {"id": id, "object": "file", "deleted": True}
        raise Refused(404, answers.error(404, "No such File object."))

    def _batch_route(self, asked: _Asked, method: str, rest: list[str]) -> Reply:
        match method, rest:
            case "POST", []:
                told = answers.batch(asked.body)
                self._batches[told["id"]] = asked.body
                return told
            case "GET", []:
                data = [answers.batch(body, "completed") for body in self._batches.values()]
                ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
                return {"object": "list", "data": data, "has_more": False, **ends}
            case "GET", [id] if id in self._batches:
                return answers.batch(self._batches[id], "completed")
            case "POST", [id, "cancel"] if id in self._batches:
                return answers.batch(self._batches[id], "cancelling")
        raise Refused(404, answers.error(404, "No batch found."))


NEED_MODEL = {*IN_DEPLOYMENTS, "responses", "moderations"}


class _Asked(NamedTuple):
    """A request that was understood. `body` is its JSON, or the fields of its form."""

    kept: Kept
    operation: str
    query: str
    body: Json
    azure: bool


def _content(kept: Kept) -> Json:
    (content_type,) = kept.values("content-type") or [b""]
    if content_type.startswith(b"multipart/form-data"):
        return {part.name: part.content.decode() for part in kept.form if not part.filename}
    if not kept.body:
        return {}
    try:
        body = json.loads(kept.body)
    except ValueError:
        raise Refused(400, answers.error(400, "We could not parse the JSON body of your request.")) from None
    assert isinstance(body, dict)
    return body
