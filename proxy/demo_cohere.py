"""Cohere's API of the demo's upstream: v2 chat, models.

Facts
  - A stream is named events whose data repeat the name as ``type``, and then ``data: [DONE]``
    (docs.cohere.com, chat stream).
  - ``billed_units`` is what is paid for, ``tokens`` what the model read and wrote.
"""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from .demo_answers import (
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
    limit,
    not_found,
    reply,
    turns,
)


def _answer(asked: Asked) -> Said | Json:
    match asked.method, asked.path:
        case "POST", ["v2", "chat"]:
            return _chat(asked)
        case "GET", ["v1", "models"]:
            return {"models": [_model(name) for name in MODELS]}
        case "GET", ["v1", "models", name] if name in MODELS:
            return _model(name)
    raise not_found(asked.method, "/".join(["", *asked.path]))


def _model(name: str) -> Json:
    return {"name": name, "endpoints": ["chat"], "finetuned": False, "context_length": 256000}


def _chat(asked: Asked) -> Said:
    model = field(asked.body, "model", str)
    told = turns(asked.body, "messages", "content")
    said, stopped = reply(told[-1], asked.name, limit(asked.body, "max_tokens"))
    counts = {"input_tokens": count(told), "output_tokens": len(said)}
    whole = {
        "id": asked.new_id("chat"),
        "message": {"role": "assistant", "content": [{"type": "text", "text": "".join(said)}]},
        "finish_reason": "MAX_TOKENS" if stopped else "COMPLETE",
        "usage": {"billed_units": counts, "tokens": counts},
    }
    return Said(model, whole, _events(whole, model, asked.pace) if asked.body.get("stream") else None)


def _events(whole: Json, model: str, pace: Pace) -> Iterator[Step]:
    begun = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
    yield 0, _event("message-start", {"id": whole["id"], "delta": {"message": begun}})
    block = whole["message"]["content"][0]
    yield 0, _event("content-start", {"index": 0, "delta": {"message": {"content": {**block, "text": ""}}}})
    for wait, word in pace.words(model, block["text"]):
        delta = {"message": {"content": {"text": word}}}
        yield wait, _event("content-delta", {"index": 0, "delta": delta})
    if model == ERROR:
        ended = {"finish_reason": "ERROR", "error": "Overloaded"}
        yield pace.interval, _event("message-end", {"id": whole["id"], "delta": ended})
        return
    yield 0, _event("content-end", {"index": 0})
    ended = {"finish_reason": whole["finish_reason"], "usage": whole["usage"]}
    yield 0, _event("message-end", {"id": whole["id"], "delta": ended})
    yield 0, b"data: [DONE]\n\n"


def _event(name: str, fields: Json) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps({"type": name, **fields}) + b"\n\n"


COHERE = Api("cohere", _answer)
