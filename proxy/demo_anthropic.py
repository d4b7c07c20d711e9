"""Anthropic's API of the demo's upstream: its routes, and what it keeps.

Facts
  - A batch's ``results_url`` is absolute, and SDKs send their key to whatever host it names
    (anthropic-sdk-python, resources/messages/batches.py).

Rules
  1. What is kept (files, batches) is bounded: a demo may be left running for weeks.

Not here: what a message says (`demo_messages`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import orjson
from aiohttp import web

from . import demo_messages as messages
from .demo_answers import DATE, MODELS, Json, Pace, Refusal, Said, Step, field, invalid, not_found
from .demo_bodies import read_json, read_upload

_KEPT = 100
_SKILL = {
    "id": "skill_verbatim",
    "type": "skill",
    "display_name": "Verbatim",
    "latest_version_id": "1",
    "source": {"type": "anthropic"},
    "created_at": DATE,
    "updated_at": DATE,
}

Reply: TypeAlias = Said | Json | web.Response | Iterator[Step]


class Anthropic:
    """The API of one upstream: `name` signs its answers, `new_id` gives ids, `pace` is how it speaks."""

    def __init__(self, name: str, new_id: Callable[[str], str], pace: Pace) -> None:
        self.url = ""
        """The upstream's own base URL, which some answers name."""
        self._name = name
        self._new_id = new_id
        self._pace = pace
        self._files: dict[str, tuple[Json, bytes]] = {}
        self._batches: dict[str, messages.Batch] = {}

    def refused(self, refusal: Refusal, request_id: str) -> bytes:
        """The body of an error answer."""
        error = {"type": refusal.kind, "message": refusal.message}
        return orjson.dumps({"type": "error", "error": error, "request_id": request_id})

    def fields(self, request_id: str) -> dict[str, str]:
        """The header fields that every answer has."""
        return {
            "request-id": request_id,
            "anthropic-organization-id": f"org_{self._name}",
            "anthropic-ratelimit-requests-limit": "4000",
            "anthropic-ratelimit-requests-remaining": "3999",
            "anthropic-ratelimit-requests-reset": DATE,
        }

    async def answer(self, request: web.BaseRequest) -> Reply:
        """What a request is answered. Raises `Refusal`."""
        if not (request.headers.get("x-api-key") or request.headers.get("authorization")):
            raise Refusal(401, "authentication_error", "x-api-key header is required")
        if not request.headers.get("anthropic-version"):
            raise invalid("anthropic-version: header is required")
        match request.method, request.path.split("/")[1:]:
            case "POST", ["v1", "messages"]:
                return await self._messages(request)
            case "POST", ["v1", "complete"]:
                return await self._complete(request)
            case "POST", ["v1", "messages", "count_tokens"]:
                body = await read_json(request)
                messages.check_messages(body, request.headers, counting=True)
                return {"input_tokens": messages.count_tokens(body)}
            case "GET", ["v1", "models"]:
                return _page([_model(name) for name in MODELS])
            case "GET", ["v1", "models", name] if name in MODELS:
                return _model(name)
            case method, ["v1", "messages", "batches", *rest]:
                return await self._batch_route(request, method, rest)
            case method, ["v1", "files", *rest]:
                return await self._file_route(request, method, rest)
            case "GET", ["v1", "skills"]:
                return {"data": [_SKILL], "has_more": False, "next_page": None}
            case "GET", ["v1", "sessions", session_id, "events", "stream"]:
                return _session_events(session_id, self._pace.interval)
        raise not_found(request.method, request.path)

    async def _messages(self, request: web.BaseRequest) -> Said:
        body = await read_json(request)
        messages.check_messages(body, request.headers)
        answer = messages.message(body, self._new_id("msg"), self._name)
        return self._said(body, answer, messages.message_events)

    async def _complete(self, request: web.BaseRequest) -> Said:
        body = await read_json(request)
        messages.check_completion(body)
        answer = messages.completion(body, self._new_id("compl"), self._name)
        if request.headers["anthropic-version"] == "2023-01-01":
            return self._said(body, answer, messages.cumulative_events)
        return self._said(body, answer, messages.completion_events)

    def _said(self, body: Json, answer: Json, events: Callable[[Json, Pace], Iterator[Step]]) -> Said:
        return Said(answer["model"], answer, events(answer, self._pace) if body.get("stream") else None)

    async def _batch_route(self, request: web.BaseRequest, method: str, rest: list[str]) -> Reply:
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
                lines = self._batches[batch_id].results(self._name)
                return web.Response(body=lines, content_type="application/x-jsonl")
        raise not_found(request.method, request.path)

    async def _create_batch(self, request: web.BaseRequest) -> Json:
        requests = field(await read_json(request), "requests", list)
        messages.check_batch(requests, request.headers)
        batch = messages.Batch(self._new_id("msgbatch"), requests)
        _keep(self._batches, batch.batch_id, batch)
        return batch.shown(self.url)

    async def _file_route(self, request: web.BaseRequest, method: str, rest: list[str]) -> Reply:
        match method, rest:
            case "POST", []:
                metadata, content = await read_upload(request, self._new_id("file"))
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
        raise not_found(request.method, request.path)


def _session_events(session_id: str, interval: float) -> Iterator[Step]:
    """A session's short life; its ``agent.message`` names it."""
    running = {"id": f"{session_id}_1", "processed_at": DATE}
    yield 0, messages.event("session.status_running", running)
    content = [{"type": "text", "text": f"{session_id} is in good hands. Yours verbatim."}]
    yield interval, messages.event("agent.message", {**running, "id": f"{session_id}_2", "content": content})
    idle = {"id": f"{session_id}_3", "stop_reason": {"type": "end_turn"}, "stop_details": None}
    yield interval, messages.event("session.status_idle", {**running, **idle})


def _keep(kept: dict[str, Any], key: str, value: Any) -> None:
    kept[key] = value
    while len(kept) > _KEPT:
        del kept[next(iter(kept))]


def _model(name: str) -> Json:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": DATE,
        "lifecycle": "active",
    }


def _page(items: list[Json]) -> Json:
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"data": items, "has_more": False, "first_id": first, "last_id": last}
