"""OpenAI's API of the demo's upstream: chat, responses, embeddings, models.

Facts
  - A chat streams ``data:`` alone and ends with ``data: [DONE]``. With ``stream_options.include_usage`` every
    chunk has ``"usage": null`` but the one before the end, which has no choices (API reference, chat).
  - A response streams named events, numbered in ``sequence_number`` (API reference, Responses).
  - The official SDK asks for embeddings in base64, as little-endian floats of 32 bits.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterator
from typing import Any

import orjson

from .demo_answers import (
    CREATED,
    ERROR,
    MODELS,
    Api,
    Asked,
    Json,
    Pace,
    Said,
    Step,
    count,
    field,
    invalid,
    limit,
    not_found,
    reply,
    turns,
)

_DONE = b"data: [DONE]\n\n"
_MID_STREAM_ERROR = (
    b'data: {"error":{"message":"Overloaded","type":"server_error","param":null,"code":null}}\n\n'
)
_MAX_DIMENSIONS = 4096


def _answer(asked: Asked) -> Said | Json:
    match asked.method, asked.path:
        case "POST", ["v1", "chat", "completions"]:
            return _chat(asked)
        case "POST", ["v1", "responses"]:
            return _response(asked)
        case "POST", ["v1", "embeddings"]:
            return _embeddings(asked.body)
        case "GET", ["v1", "models"]:
            return {"object": "list", "data": [_model(name) for name in MODELS]}
        case "GET", ["v1", "models", name] if name in MODELS:
            return _model(name)
    raise not_found(asked.method, "/".join(["", *asked.path]))


def _model(name: str) -> Json:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "demo"}


def _chat(asked: Asked) -> Said:
    body = asked.body
    model = field(body, "model", str)
    told = turns(body, "messages", "content")
    most = limit(body, "max_completion_tokens") or limit(body, "max_tokens")
    said, stopped = reply(told[-1], asked.name, most)
    message: Json = {"role": "assistant", "content": "".join(said), "refusal": None, "annotations": []}
    reason = "length" if stopped else "stop"
    counts = count(told), len(said)
    whole = {
        "id": asked.new_id("chatcmpl"),
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": {
            "prompt_tokens": counts[0],
            "completion_tokens": counts[1],
            "total_tokens": sum(counts),
        },
    }
    options = body.get("stream_options")
    counted = type(options) is dict and bool(options.get("include_usage"))
    return Said(model, whole, _chunks(whole, counted, asked.pace) if body.get("stream") else None)


def _chunks(whole: Json, counted: bool, pace: Pace) -> Iterator[Step]:
    choice = whole["choices"][0]
    common = {**whole, "object": "chat.completion.chunk"}
    del common["usage"]
    if counted:
        common["usage"] = None

    def chunk(delta: Json, reason: str | None = None) -> bytes:
        piece = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _data({**common, "choices": [piece]})

    yield 0, chunk({"role": "assistant", "content": "", "refusal": None})
    for wait, word in pace.words(whole["model"], choice["message"]["content"]):
        yield wait, chunk({"content": word})
    if whole["model"] == ERROR:
        yield pace.interval, _MID_STREAM_ERROR
        return
    yield 0, chunk({}, choice["finish_reason"])
    if counted:
        yield 0, _data({**common, "choices": [], "usage": whole["usage"]})
    yield 0, _DONE


def _response(asked: Asked) -> Said:
    body = asked.body
    model = field(body, "model", str)
    is_text = type(body.get("input")) is str
    told = [field(body, "input", str)] if is_text else turns(body, "input", "content")
    said, stopped = reply(told[-1], asked.name, limit(body, "max_output_tokens"))
    counts = count([str(body.get("instructions") or ""), *told]), len(said)
    status = "incomplete" if stopped else "completed"
    part = {"type": "output_text", "text": "".join(said), "annotations": [], "logprobs": []}
    message: Json = {
        "id": asked.new_id("msg"),
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [part],
    }
    whole = {
        "id": asked.new_id("resp"),
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if stopped else None,
        "instructions": body.get("instructions"),
        "metadata": {},
        "model": model,
        "output": [message],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": counts[0],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": counts[1],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sum(counts),
        },
    }
    return Said(model, whole, _numbered(whole, asked.pace) if body.get("stream") else None)


def _numbered(whole: Json, pace: Pace) -> Iterator[Step]:
    for number, (wait, name, fields) in enumerate(_events(whole, pace)):
        kind = name if name == "error" else f"response.{name}"
        data = _data({"type": kind, "sequence_number": number, **fields})
        yield wait, b"event: " + kind.encode() + b"\n" + data


def _events(whole: Json, pace: Pace) -> Iterator[tuple[float, str, Json]]:
    """The stream of a `_response`: seconds to wait, name, and data of each event."""
    begun = {**whole, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    yield 0, "created", {"response": begun}
    yield 0, "in_progress", {"response": begun}
    message = whole["output"][0]
    part = message["content"][0]
    item = {"output_index": 0, "item": {**message, "status": "in_progress", "content": []}}
    yield 0, "output_item.added", item
    at = {"item_id": message["id"], "output_index": 0, "content_index": 0}
    yield 0, "content_part.added", {**at, "part": {**part, "text": ""}}
    for wait, word in pace.words(whole["model"], part["text"]):
        yield wait, "output_text.delta", {**at, "delta": word, "logprobs": []}
    if whole["model"] == ERROR:
        yield pace.interval, "error", {"code": "server_error", "message": "Overloaded", "param": None}
        return
    yield 0, "output_text.done", {**at, "text": part["text"], "logprobs": []}
    yield 0, "content_part.done", {**at, "part": part}
    yield 0, "output_item.done", {"output_index": 0, "item": message}
    yield 0, whole["status"], {"response": whole}


def _embeddings(body: Json) -> Json:
    model = field(body, "model", str)
    given: Any = body.get("input")
    texts: list[str] = given if type(given) is list else [given]
    if not texts or not all(type(text) is str and text for text in texts):
        raise invalid("input: Input should be a valid string or list of strings, and not empty")
    size = limit(body, "dimensions", _MAX_DIMENSIONS) or 8
    data = []
    for index, text in enumerate(texts):
        # A float of 32 bits holds such fractions exactly, so both codings say the same.
        vector = [byte / 128 - 1 for byte in hashlib.shake_256(text.encode()).digest(size)]
        in_base64 = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        shown = in_base64 if body.get("encoding_format") == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": shown})
    tokens = count(texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def _data(fields: Json) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"


OPENAI = Api("openai", _answer)
