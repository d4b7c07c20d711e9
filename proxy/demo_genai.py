"""Gemini's API of the demo's upstream: generateContent, its stream, countTokens, models.

Facts
  - Events are ``data:`` lines without names, each with CRLF CRLF; nothing stands for the end
    (ai.google.dev, streamGenerateContent).
  - Each chunk has the usage so far, the last a ``finishReason``.
  - Who has no key at all gets a 403 (google.rpc.Code, PERMISSION_DENIED).

Not here: streams without ``alt=sse``, which are JSON arrays.
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
    invalid,
    limit,
    not_found,
    reply,
    turns,
)

_VERSIONS = ("v1", "v1beta", "v1alpha")
_METHODS = ("generateContent", "streamGenerateContent", "countTokens")
_MID_STREAM_ERROR = {"error": {"code": 503, "message": "Overloaded", "status": "UNAVAILABLE"}}


def _answer(asked: Asked) -> Said | Json:
    if asked.path[:1] and asked.path[0] in _VERSIONS:
        match asked.method, asked.path[1:]:
            case "GET", ["models"]:
                return {"models": [_model(name) for name in MODELS]}
            case "GET", ["models", name] if name in MODELS:
                return _model(name)
            case "POST", ["models", operation]:
                model, _, method = operation.rpartition(":")
                if model and method in ("generateContent", "streamGenerateContent"):
                    return _generate(asked, model, stream=method != "generateContent")
                if model and method == "countTokens":
                    return _count(asked.body)
    raise not_found(asked.method, "/".join(["", *asked.path]))


def _model(name: str) -> Json:
    return {
        "name": f"models/{name}",
        "version": "1",
        "displayName": name,
        "inputTokenLimit": 1048576,
        "outputTokenLimit": 65536,
        "supportedGenerationMethods": list(_METHODS),
    }


def _count(body: Json) -> Json:
    tokens = count(turns(body, "contents", "parts"))
    return {"totalTokens": tokens, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens}]}


def _generate(asked: Asked, model: str, *, stream: bool) -> Said:
    told = turns(asked.body, "contents", "parts")
    config = asked.body.get("generationConfig") and field(asked.body, "generationConfig", dict)
    said, stopped = reply(told[-1], asked.name, limit(config or {}, "maxOutputTokens"))
    reason = "MAX_TOKENS" if stopped else "STOP"
    whole = _chunk("".join(said), reason, count(told), len(said))
    whole |= {"modelVersion": model, "responseId": asked.new_id("resp")}
    if not stream:
        return Said(model, whole, None)
    if asked.query.get("alt") != "sse":
        raise invalid("alt: the demo streams with alt=sse only")
    return Said(model, whole, _chunks(whole, asked.pace))


def _chunk(text: str, reason: str | None, prompt: int, told: int) -> Json:
    candidate: Json = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if reason:
        candidate["finishReason"] = reason
    counts = {"promptTokenCount": prompt, "candidatesTokenCount": told, "totalTokenCount": prompt + told}
    return {"candidates": [candidate], "usageMetadata": counts}


def _chunks(whole: Json, pace: Pace) -> Iterator[Step]:
    candidate, usage = whole["candidates"][0], whole["usageMetadata"]
    text = candidate["content"]["parts"][0]["text"]
    for number, (wait, word) in enumerate(pace.words(whole["modelVersion"], text), 1):
        reason = candidate["finishReason"] if number == usage["candidatesTokenCount"] else None
        yield wait, _data({**whole, **_chunk(word, reason, usage["promptTokenCount"], number)})
    if whole["modelVersion"] == ERROR:
        yield pace.interval, _data(_MID_STREAM_ERROR)


def _data(chunk: Json) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\r\n\r\n"


GENAI = Api("genai", _answer, no_key=403)
