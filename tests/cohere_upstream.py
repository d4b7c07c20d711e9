"""Cohere's API, v1 and v2, on a real socket: the same answers every time, and every request kept as it came.

Facts
  - A v2 stream is named events whose data repeats the name as ``type``, then ``data: [DONE]``; a v1 stream is
    one JSON object per line, typed ``application/stream+json`` (docs.cohere.com, chat and chat v1).
  - v1 has a default model: /v1/chat, /v1/embed, /v1/rerank and /v1/classify may be asked without ``model``.
  - An error is ``{"id", "message"}``; a member that the API does not have is a 422 (docs.cohere.com, errors).
  - Usage is ``usage`` in v2/chat and ``meta`` elsewhere; ``billed_units`` in it is what is paid.

Rules
  1. Ids and times stand still: nothing in an answer depends on clock or chance.
  2. It is as strict as the real one where a proxy could go wrong: an unknown model, a model with a slash, a
     member that the API does not have, no key.

Not here: any judgement on the requests; the tests look at `requests`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

from scripted import JSON_TYPE, LAST_CHUNK, Conn, Request, Step, Upstream, answer, chunk, sse, stream_head

Json = dict[str, Any]
Between = Callable[[list[bytes]], Awaitable[None]]

ID = "c14c80c3-18eb-4519-9460-6c92edd8cfb4"
FIELDS = [
    (b"X-Debug-Trace-Id", b"4e1a9b8d3c6f4a0f9b7e2d1c0a9f8e7d"),
    (b"X-Endpoint-Monthly-Call-Limit", b"1000"),
    (b"X-Trial-Endpoint-Call-Limit", b"20"),
    (b"X-Trial-Endpoint-Call-Remaining", b"19"),
    (b"Cache-Control", b"no-cache, no-store, no-transform, must-revalidate, private, max-age=0"),
    (b"Vary", b"Origin"),
    (b"Via", b"1.1 google"),
]
SSE = [(b"Content-Type", b"text/event-stream"), *FIELDS]
NDJSON = [(b"Content-Type", b"application/stream+json"), *FIELDS]

DEFAULT_MODEL = "command-a-03-2025"
HEARING_MODEL = "cohere-transcribe-03-2026"
MODELS = (DEFAULT_MODEL, "command-r7b-12-2024", "embed-v4.0", "rerank-v3.5", HEARING_MODEL)
OVERLOADED = "demo-overloaded"
"""The model that is always overloaded."""
BROKEN = "demo-broken"
"""The model whose v2 streams end with ``finish_reason`` ERROR."""

KNOWN = frozenset(
    (
        *("model", "stream", "messages", "message", "tools", "temperature", "max_tokens", "thinking", "seed"),
        *("texts", "input_type", "embedding_types", "query", "documents", "top_n", "text", "tokens"),
    )
)
"""The members that the API knows; it refuses any other."""


class Refused(Exception):
    """A request that the API does not take."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class CohereUpstream(Upstream):
    """Answers every request on its own. `name` is in all that it says.

    `between` is awaited before each event of a stream; it is given those before.
    """

    def __init__(self, name: str = "cohere", between: Between | None = None) -> None:
        super().__init__()
        self.name = name
        self.streams: list[list[bytes]] = []
        """The pieces of every stream that was sent."""
        self._between = between

    def next_step(self) -> Step:
        self.arrived += 1
        return self._answer

    async def _answer(self, conn: Conn, request: Request) -> None:
        path = unquote(request.target.decode("latin-1").partition("?")[0])
        try:
            if not (request.header("authorization") or b"").startswith(b"Bearer "):
                raise Refused(401, "no api key supplied")
            if request.method == "GET":
                await conn.send(whole(_of_models(path)))
            elif path == "/v2/audio/transcriptions":
                await conn.send(whole(self._transcribed(request)))
            else:
                await self._operate(conn, path, json.loads(request.body or b"{}"))
        except Refused as refused:
            body = json.dumps({"id": ID, "message": str(refused)}).encode()
            await conn.send(answer(refused.status, [JSON_TYPE, *FIELDS], body))

    async def _operate(self, conn: Conn, path: str, body: Json) -> None:
        self._check(path, body)
        said = _said(body)
        # U+2028 ends a line for readers that take more than CR and LF for line ends.
        words = re.findall(r"\s*\S+", f"You said “{said}”.\u2028 Yours verbatim, {self.name} 🙂.")
        units = {"input_tokens": len(said.split()), "output_tokens": len(words)}
        if path == "/v2/chat" and body.get("stream"):
            await self._stream(conn, SSE, v2_events(words, units, body["model"] == BROKEN))
        elif path == "/v2/chat":
            await conn.send(whole(v2_message(words, units)))
        elif path == "/v1/chat" and body.get("stream"):
            await self._stream(conn, NDJSON, v1_lines(said, words, units))
        elif path == "/v1/chat":
            await conn.send(whole(v1_message(said, words, units)))
        else:
            await conn.send(whole(_other(path, body)))

    def _check(self, path: str, body: Json) -> None:
        model = body.get("model", DEFAULT_MODEL if path.startswith("/v1/") else None)
        if model is None:
            raise Refused(400, "invalid request: model is required")
        if unknown := body.keys() - KNOWN:
            raise Refused(422, f"unknown field: parameter '{min(unknown)}' is not a valid field")
        if model == OVERLOADED:
            raise Refused(503, "the model is overloaded")
        if model not in (*MODELS, BROKEN):
            raise Refused(404, f"model '{model}' not found, make sure the correct model ID was used")

    async def _stream(self, conn: Conn, fields: list[tuple[bytes, bytes]], pieces: list[bytes]) -> None:
        await conn.send(stream_head(fields))
        sent: list[bytes] = []
        self.streams.append(sent)
        for piece in pieces:
            if self._between is not None:
                await self._between(sent)
            sent.append(piece)
            await conn.send(chunk(piece))
        await conn.send(LAST_CHUNK)

    def _transcribed(self, request: Request) -> Json:
        model = form_field(request, "model")
        if model not in MODELS:
            raise Refused(404, f"model '{model}' not found, make sure the correct model ID was used")
        return {"text": f"{len(request.body.partition(b'filename=')[2])} bytes were heard by {self.name}."}


def form_field(request: Request, name: str) -> str:
    """The value of a field of a multipart form."""
    boundary = b"--" + (request.header("content-type") or b"").partition(b"boundary=")[2]
    for part in request.body.split(boundary):
        fields, _, value = part.partition(b"\r\n\r\n")
        if f'name="{name}"'.encode() in fields:
            return value.removesuffix(b"\r\n").decode()
    return ""


def whole(data: Json) -> bytes:
    return answer(200, [JSON_TYPE, *FIELDS], json.dumps(data, ensure_ascii=False).encode())


def event(kind: str, **more: Any) -> bytes:
    """One event of a v2 stream; characters beyond ASCII stand for themselves, as Cohere sends them."""
    return sse(kind, json.dumps({"type": kind, **more}, ensure_ascii=False))


def v2_message(words: list[str], units: Json) -> Json:
    content = [{"type": "text", "text": "".join(words)}]
    return {
        "id": ID,
        "message": {"role": "assistant", "content": content},
        "finish_reason": "COMPLETE",
        "usage": _usage(units),
    }


def v2_events(words: list[str], units: Json, broken: bool) -> list[bytes]:
    message = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
    ended: Json = {"finish_reason": "COMPLETE", "usage": _usage(units)}
    if broken:
        ended = {"finish_reason": "ERROR", "error": "the model is overloaded"}
    return [
        event("message-start", id=ID, delta={"message": message}),
        event("content-start", index=0, delta={"message": {"content": {"type": "text", "text": ""}}}),
        *(event("content-delta", index=0, delta={"message": {"content": {"text": word}}}) for word in words),
        event("content-end", index=0),
        event("message-end", delta=ended),
        sse(None, "[DONE]"),
    ]


def v1_message(said: str, words: list[str], units: Json) -> Json:
    text = "".join(words)
    return {
        "response_id": ID,
        "text": text,
        "generation_id": ID,
        "chat_history": [{"role": "USER", "message": said}, {"role": "CHATBOT", "message": text}],
        "finish_reason": "COMPLETE",
        "meta": {"api_version": {"version": "1"}, **_usage(units)},
    }


def v1_lines(said: str, words: list[str], units: Json) -> list[bytes]:
    started = {"is_finished": False, "event_type": "stream-start", "generation_id": ID}
    ended = {"is_finished": True, "event_type": "stream-end", "finish_reason": "COMPLETE"}
    lines = [
        started,
        *({"is_finished": False, "event_type": "text-generation", "text": word} for word in words),
        {**ended, "response": v1_message(said, words, units)},
    ]
    return [json.dumps(line).encode() + b"\n" for line in lines]


def _said(body: Json) -> str:
    """The last text of the user."""
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    return str(body.get("message", ""))


def _usage(units: Json) -> Json:
    return {"billed_units": units, "tokens": {**units, "input_tokens": units["input_tokens"] + 66}}


def _vector(text: str) -> list[float]:
    return [byte / 256 for byte in hashlib.sha256(text.encode()).digest()[:4]]


def _other(path: str, body: Json) -> Json:
    """What is neither chat nor a file."""
    version = {"api_version": {"version": path[2]}}
    if path in ("/v1/embed", "/v2/embed"):
        vectors = [_vector(text) for text in body["texts"]]
        billed = {**version, "billed_units": {"input_tokens": len(" ".join(body["texts"]).split())}}
        by_type = "embedding_types" in body
        return {
            "id": ID,
            "texts": body["texts"],
            "embeddings": {"float": vectors} if by_type else vectors,
            "meta": billed,
            "response_type": "embeddings_by_type" if by_type else "embeddings_floats",
        }
    if path in ("/v1/rerank", "/v2/rerank"):
        documents = body["documents"]
        ranked = sorted(range(len(documents)), key=lambda index: -len(documents[index]))
        results = [{"index": at, "relevance_score": 0.5 / place} for place, at in enumerate(ranked, 1)]
        return {"id": ID, "results": results, "meta": {**version, "billed_units": {"search_units": 1}}}
    if path == "/v1/tokenize":
        texts = re.findall(r"\s*\S+", body["text"])
        return {"tokens": [len(text) for text in texts], "token_strings": texts, "meta": version}
    if path == "/v1/detokenize":
        return {"text": "x" * len(body["tokens"]), "meta": version}
    if path == "/v1/check-api-key":
        return {"valid": True, "organization_id": ID, "owner_id": ID}
    raise Refused(404, f"path {path} was not found")


def _of_models(path: str) -> Json:
    if path == "/v1/models":
        return {"models": [_model(name) for name in MODELS]}
    name = path.removeprefix("/v1/models/")
    if name not in MODELS:
        raise Refused(404, f"model '{name}' not found, make sure the correct model ID was used")
    return _model(name)


def _model(name: str) -> Json:
    return {"name": name, "endpoints": ["chat"], "finetuned": False, "context_length": 288000}
