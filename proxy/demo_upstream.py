"""The demo's upstream: a small stand-in for Anthropic's API on 127.0.0.1, the same answers every time.

Facts
  - A batch's ``results_url`` is absolute, and SDKs send their key to whatever host it names
    (anthropic-sdk-python, resources/messages/batches.py).
  - ``web.BaseRequest.read`` stops at 1 MiB; Anthropic takes 32 MB, so the body is read here.

Rules
  1. Ids count up and dates stand still: nothing in an answer depends on clock or chance.
  2. Bad input gets Anthropic's status and error shape, never a traceback.
  3. What is kept (files, batches) is bounded: a demo may be left running for weeks.

Not here: what is said (`demo_answers`), the show (`demo`), and any wire format but Anthropic's.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import orjson
from aiohttp import BodyPartReader, web
from aiohttp.http import HttpProcessingError

from . import demo_answers as answers
from .demo_answers import Json, Refusal, Step

_MODELS = ("claude-2", "claude-haiku-4-5", answers.OVERLOADED, answers.THINKING, answers.ERROR)
_MAX_BODY = 32 * 1024 * 1024
_KEPT = 100
_SKILL = {
    "id": "skill_verbatim",
    "type": "skill",
    "display_name": "Verbatim",
    "latest_version_id": "1",
    "source": {"type": "anthropic"},
    "created_at": answers.DATE,
    "updated_at": answers.DATE,
}

_Events: TypeAlias = Callable[[Json, float, float], Iterator[Step]]
_Reply: TypeAlias = Json | web.Response | Iterator[Step]


class DemoUpstream:
    """Anthropic's API on a free port of 127.0.0.1.

    `name` signs the answers. `interval` is the pause before each word and `silence` the length of
    ``demo-thinking``'s pause, both in seconds. Any credential is accepted; none at all is a 401.
    """

    def __init__(self, name: str = "demo", *, interval: float = 0.03, silence: float = 2.5) -> None:
        self.name = name
        self.url = ""
        self._interval = interval
        self._silence = silence
        self._runner: web.ServerRunner | None = None
        self._numbers = itertools.count(1)
        self._files: dict[str, tuple[Json, bytes]] = {}
        self._batches: dict[str, answers.Batch] = {}

    async def start(self) -> None:
        """Listen; from here on `url` is the base URL, without a slash at its end."""
        server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Stop listening and end every open answer."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        request_id = self._id("req")
        headers = {
            "request-id": request_id,
            "anthropic-organization-id": f"org_{self.name}",
            "anthropic-ratelimit-requests-limit": "4000",
            "anthropic-ratelimit-requests-remaining": "3999",
            "anthropic-ratelimit-requests-reset": answers.DATE,
        }
        try:
            reply = await self._route(request)
        except Refusal as refusal:
            error = {"type": refusal.kind, "message": refusal.message}
            body = orjson.dumps({"type": "error", "error": error, "request_id": request_id})
            reply = web.Response(body=body, status=refusal.status, content_type="application/json")
            headers.update(refusal.headers)
        if isinstance(reply, dict):
            reply = web.Response(body=orjson.dumps(reply), content_type="application/json")
        if isinstance(reply, web.Response):
            reply.headers.update(headers)
            return reply
        headers |= {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        for seconds, data in reply:
            await asyncio.sleep(seconds)
            await response.write(data)
        return response

    async def _route(self, request: web.BaseRequest) -> _Reply:
        if not (request.headers.get("x-api-key") or request.headers.get("authorization")):
            raise Refusal(401, "authentication_error", "x-api-key header is required")
        if not request.headers.get("anthropic-version"):
            raise answers.invalid("anthropic-version: header is required")
        match request.method, request.path.split("/")[1:]:
            case "POST", ["v1", "messages"]:
                return await self._messages(request)
            case "POST", ["v1", "complete"]:
                return await self._complete(request)
            case "POST", ["v1", "messages", "count_tokens"]:
                body = await _read_json(request)
                answers.check_messages(body, request.headers, counting=True)
                return {"input_tokens": answers.count_tokens(body)}
            case "GET", ["v1", "models"]:
                return _page([_model(name) for name in _MODELS])
            case "GET", ["v1", "models", name] if name in _MODELS:
                return _model(name)
            case method, ["v1", "messages", "batches", *rest]:
                return await self._batch_route(request, method, rest)
            case method, ["v1", "files", *rest]:
                return await self._file_route(request, method, rest)
            case "GET", ["v1", "skills"]:
                return {"data": [_SKILL], "has_more": False, "next_page": None}
            case "GET", ["v1", "sessions", session_id, "events", "stream"]:
                return _session_events(session_id, self._interval)
        raise _not_found(request)

    async def _messages(self, request: web.BaseRequest) -> _Reply:
        body = await _read_json(request)
        answers.check_messages(body, request.headers)
        answer = answers.message(body, self._id("msg"), self.name)
        return await self._answer(body, answer, answers.message_events)

    async def _complete(self, request: web.BaseRequest) -> _Reply:
        body = await _read_json(request)
        answers.check_completion(body)
        answer = answers.completion(body, self._id("compl"), self.name)
        if request.headers["anthropic-version"] == "2023-01-01":
            return await self._answer(body, answer, answers.cumulative_events)
        return await self._answer(body, answer, answers.completion_events)

    async def _answer(self, body: Json, answer: Json, events: _Events) -> _Reply:
        """`answer` whole or as a stream, as `body` asks; the special models do here what they are for."""
        model = answer["model"]
        if model == answers.OVERLOADED:
            raise Refusal(529, "overloaded_error", "Overloaded", {"retry-after": "1"})
        if body.get("stream"):
            return events(answer, self._interval, self._silence)
        if model == answers.ERROR:
            raise Refusal(500, "api_error", "Internal server error")
        if model == answers.THINKING:
            await asyncio.sleep(self._silence)
        return answer

    async def _batch_route(self, request: web.BaseRequest, method: str, rest: list[str]) -> _Reply:
        match method, rest:
            case "POST", []:
                return await self._create_batch(request)
            case "GET", []:
                return _page([batch.end().shown(self.url) for batch in self._batches.values()])
            case "GET", [batch_id] if batch_id in self._batches:
                return self._batches[batch_id].end().shown(self.url)
            case "DELETE", [batch_id] if batch_id in self._batches:
                del self._batches[batch_id]
                return {"id": batch_id, "type": "message_batch_deleted"}
            case "POST", [batch_id, "cancel"] if batch_id in self._batches:
                return self._batches[batch_id].cancel().shown(self.url)
            case "GET", [batch_id, "results"] if batch_id in self._batches:
                lines = self._batches[batch_id].results(self.name)
                return web.Response(body=lines, content_type="application/x-jsonl")
        raise _not_found(request)

    async def _create_batch(self, request: web.BaseRequest) -> Json:
        requests = answers.field(await _read_json(request), "requests", list)
        answers.check_batch(requests, request.headers)
        batch = answers.Batch(self._id("msgbatch"), requests)
        _keep(self._batches, batch.batch_id, batch)
        return batch.shown(self.url)

    async def _file_route(self, request: web.BaseRequest, method: str, rest: list[str]) -> _Reply:
        match method, rest:
            case "POST", []:
                metadata, content = await _read_upload(request, self._id("file"))
                _keep(self._files, metadata["id"], (metadata, content))
                return metadata
            case "GET", []:
                return _page([metadata for metadata, _ in self._files.values()])
            case "GET", [file_id] if file_id in self._files:
                return self._files[file_id][0]
            case "GET", [file_id, "content"] if file_id in self._files:
                metadata, content = self._files[file_id]
                return web.Response(body=content, headers={"Content-Type": metadata["mime_type"]})
            case "DELETE", [file_id] if file_id in self._files:
                del self._files[file_id]
                return {"id": file_id, "type": "file_deleted"}
        raise _not_found(request)

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self.name}{next(self._numbers):06}"


def _session_events(session_id: str, interval: float) -> Iterator[Step]:
    """A session's short life; its ``agent.message`` names it."""
    running = {"id": f"{session_id}_1", "processed_at": answers.DATE}
    yield 0, answers.event("session.status_running", running)
    content = [{"type": "text", "text": f"{session_id} is in good hands. Yours verbatim."}]
    yield interval, answers.event("agent.message", {**running, "id": f"{session_id}_2", "content": content})
    idle = {"id": f"{session_id}_3", "stop_reason": {"type": "end_turn"}, "stop_details": None}
    yield interval, answers.event("session.status_idle", {**running, **idle})


async def _read_json(request: web.BaseRequest) -> Json:
    data = bytearray()
    try:
        async for chunk in request.content.iter_any():
            data += chunk
            if len(data) > _MAX_BODY:
                raise Refusal(
                    413, "request_too_large", "Request exceeds the maximum allowed number of bytes."
                )
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise answers.invalid(f"The request body is not valid JSON: {error}") from error
    except web.RequestPayloadError as error:
        raise answers.invalid("The request body could not be decoded") from error
    if type(body) is not dict:
        raise answers.invalid("Input should be a valid dictionary")
    return body


async def _read_upload(request: web.BaseRequest, file_id: str) -> tuple[Json, bytes]:
    """The part named ``file``. All parts are read: only the last boundary tells that nothing is missing."""
    if request.content_type != "multipart/form-data":
        raise answers.invalid("content-type: should be multipart/form-data")
    upload = None
    try:
        async for part in await request.multipart():
            if isinstance(part, BodyPartReader) and part.name == "file":
                upload = await _read_part(part, file_id)
    except (ValueError, HttpProcessingError, web.RequestPayloadError) as error:
        raise answers.invalid("The multipart body could not be read") from error
    if upload is None:
        raise answers.invalid("file: Field required")
    return upload


async def _read_part(part: BodyPartReader, file_id: str) -> tuple[Json, bytes]:
    content = bytearray()
    while chunk := await part.read_chunk():
        content += chunk
        if len(content) > _MAX_BODY:
            raise Refusal(413, "request_too_large", "The file is too large")
    metadata = {
        "id": file_id,
        "type": "file",
        "filename": part.filename or "unnamed",
        "mime_type": part.headers.get("Content-Type", "application/octet-stream"),
        "size_bytes": len(content),
        "created_at": answers.DATE,
        "downloadable": True,
    }
    return metadata, bytes(content)


def _keep(kept: dict[str, Any], key: str, value: Any) -> None:
    kept[key] = value
    while len(kept) > _KEPT:
        del kept[next(iter(kept))]


def _model(name: str) -> Json:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": answers.DATE,
        "lifecycle": "active",
    }


def _page(items: list[Json]) -> Json:
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"data": items, "has_more": False, "first_id": first, "last_id": last}


def _not_found(request: web.BaseRequest) -> Refusal:
    return Refusal(404, "not_found_error", f"Not found: {request.method} {request.path}")
