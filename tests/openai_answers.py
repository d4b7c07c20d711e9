"""What the OpenAI upstream of the tests says: OpenAI's shapes, the same bytes for the same request.

Facts
  - The shapes are those of the API reference (platform.openai.com/docs/api-reference). The official SDK's
    strict validation takes all but the legacy ``finish_reason: null`` and base64, right as they are.
  - Chat and legacy completions stream ``data:`` alone and end with ``data: [DONE]``. All others just end;
    each of their events bears its name in ``type``, and responses and images name it, too.
  - With ``stream_options: {"include_usage": true}`` every chunk has ``"usage": null`` but the one before
    ``[DONE]``, which has no choices.
  - Azure puts its content filter's results into answers, in streams as a first chunk without choices
    (learn.microsoft.com, Azure OpenAI, content filtering).

Rules
  1. Nothing depends on clock or chance: an id is a digest of what it is the id of.
  2. Text is not ASCII alone and has U+2028 in it, at which careless readers of lines break.

Not here: HTTP (`openai_upstream`).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

CREATED = 1790000000
SOUND = b"".join(hashlib.sha256(b"sound %d" % n).digest() for n in range(4096))
"""128 KiB that no coding shortens, and that hold every byte there is."""

PICTURE = base64.b64encode(SOUND[:600]).decode()
FILTERED = {"hate": {"filtered": False, "severity": "safe"}}


def packed(value: object) -> bytes:
    """JSON as OpenAI writes it: no blanks, characters as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def named(prefix: str, *parts: object) -> str:
    """An id that is the same for the same `parts`."""
    return f"{prefix}{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}"


def event(data: Json, *, name: bool = False) -> bytes:
    """One event; with `name`, the one that its ``type`` says."""
    return (f"event: {data['type']}\n" if name else "").encode() + b"data: " + packed(data) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def words(text: str) -> list[str]:
    """`text` in pieces, as tokens come."""
    first, *rest = text.split(" ")
    return [first, *(" " + word for word in rest)]


def echo(said: str) -> str:
    return f"You said “{said}”.\u2028Yours 🙂"


def usage(answer: str) -> Json:
    """Of chat and completions."""
    count = len(words(answer))
    return {
        "prompt_tokens": 19,
        "completion_tokens": count,
        "total_tokens": 19 + count,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def called(tool: Json) -> Json:
    """A call of a tool, as chat has it."""
    function = {"name": tool["function"]["name"], "arguments": '{"city":"Zürich","unit":"°C"}'}
    return {"id": named("call_", tool), "type": "function", "function": function}


def chat(body: Json, *, azure: bool = False) -> Json:
    text = echo(body["messages"][-1]["content"])
    message: Json = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    reason = "stop"
    if body.get("tools"):
        message |= {"content": None, "tool_calls": [called(tool) for tool in body["tools"]]}
        reason = "tool_calls"
    choice: Json = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    answer: Json = {
        "id": named("chatcmpl-", body),
        "object": "chat.completion",
        "created": CREATED,
        "model": body["model"],
        "choices": [choice],
        "usage": usage(text),
        "service_tier": "default",
        "system_fingerprint": "fp_verbatim",
    }
    if azure:
        choice["content_filter_results"] = FILTERED
        answer["prompt_filter_results"] = [{"prompt_index": 0, "content_filter_results": FILTERED}]
    return answer


def chat_chunks(body: Json, *, azure: bool = False) -> Iterator[Json]:
    told = chat(body)
    counted = bool((body.get("stream_options") or {}).get("include_usage"))
    common = {key: told[key] for key in ("id", "created", "model", "service_tier", "system_fingerprint")}
    common["object"] = "chat.completion.chunk"
    if counted:
        common["usage"] = None
    if azure:
        filtered = [{"prompt_index": 0, "content_filter_results": FILTERED}]
        yield {**common, "id": "", "choices": [], "prompt_filter_results": filtered}
    deltas: list[Json] = [{"role": "assistant", "content": "", "refusal": None}]
    message = told["choices"][0]["message"]
    if message["content"] is None:
        for index, call in enumerate(message["tool_calls"]):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            begun = {**call, "index": index, "function": {"name": name, "arguments": ""}}
            deltas.append({"tool_calls": [begun]})
            for piece in (arguments[:7], arguments[7:]):
                deltas.append({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    else:
        deltas += [{"content": word} for word in words(message["content"])]
    for delta in deltas:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        yield {**common, "choices": [choice]}
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": told["choices"][0]["finish_reason"]}
    yield {**common, "choices": [last]}
    if counted:
        yield {**common, "choices": [], "usage": told["usage"]}


def chat_events(body: Json, *, azure: bool = False) -> list[bytes]:
    return [*map(event, chat_chunks(body, azure=azure)), DONE]


def completion(body: Json, text: str | None = None, reason: str | None = "stop") -> Json:
    whole = echo(body["prompt"])
    choice = {"text": text or whole, "index": 0, "logprobs": None, "finish_reason": reason}
    answer: Json = {
        "id": named("cmpl-", body),
        "object": "text_completion",
        "created": CREATED,
        "model": body["model"],
        "choices": [choice],
    }
    return answer if text else {**answer, "usage": usage(whole)}


def completion_events(body: Json) -> list[bytes]:
    pieces = words(echo(body["prompt"]))
    chunks = [completion(body, piece, "stop" if piece is pieces[-1] else None) for piece in pieces]
    return [*map(event, chunks), DONE]


def response(body: Json, status: str = "completed") -> Json:
    """An answer of the Responses API; what is not completed has no output yet."""
    id = named("resp_", body)
    text = echo(body["input"])
    output: list[Json] = []
    if status == "completed" and body.get("tools"):
        output = [
            {
                "id": named("fc_", id, tool),
                "type": "function_call",
                "status": "completed",
                "arguments": '{"city":"Zürich","unit":"°C"}',
                "call_id": named("call_", id, tool),
                "name": tool["name"],
            }
            for tool in body["tools"]
        ]
    elif status == "completed":
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
        output = [
            {
                "id": named("msg_", id),
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [part],
            }
        ]
    count = len(words(text))
    counted = {
        "input_tokens": 19,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": count,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 19 + count,
    }
    return {
        "id": id,
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "model": body["model"],
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [{"strict": True, **tool} for tool in body.get("tools", [])],
        "top_p": 1.0,
        "usage": counted if status == "completed" else None,
        "metadata": {},
    }


def _output_events(index: int, item: Json) -> Iterator[Json]:
    """What announces one item of a response's output, but for the sequence numbers."""
    at: Json = {"output_index": index}
    begun = {**item, "status": "in_progress"}
    within = {**at, "item_id": item["id"]}
    if item["type"] == "function_call":
        yield {"type": "response.output_item.added", **at, "item": {**begun, "arguments": ""}}
        arguments = item["arguments"]
        for piece in (arguments[:7], arguments[7:]):
            yield {"type": "response.function_call_arguments.delta", **within, "delta": piece}
        done = {"type": "response.function_call_arguments.done", **within}
        yield {**done, "arguments": arguments, "name": item["name"]}
    else:
        yield {"type": "response.output_item.added", **at, "item": {**begun, "content": []}}
        within["content_index"] = 0
        part = item["content"][0]
        yield {"type": "response.content_part.added", **within, "part": {**part, "text": ""}}
        for word in words(part["text"]):
            yield {"type": "response.output_text.delta", **within, "delta": word, "logprobs": []}
        yield {"type": "response.output_text.done", **within, "text": part["text"], "logprobs": []}
        yield {"type": "response.content_part.done", **within, "part": part}
    yield {"type": "response.output_item.done", **at, "item": item}


def response_events(body: Json) -> list[bytes]:
    begun = response(body, "in_progress")
    ended = response(body)
    told: list[Json] = [
        {"type": f"response.{name}", "response": begun} for name in ("created", "in_progress")
    ]
    for index, item in enumerate(ended["output"]):
        told += _output_events(index, item)
    told.append({"type": "response.completed", "response": ended})
    return [event({**each, "sequence_number": number}, name=True) for number, each in enumerate(told)]


def embeddings(body: Json) -> Json:
    """In base64, as the SDK asks for of its own accord: little-endian floats of 32 bits."""
    inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
    assert body["encoding_format"] == "base64", body
    data = []
    for index, each in enumerate(inputs):
        # Two bytes are the fraction, two the exponent of a small number: none of them is NaN.
        raw = b"".join(bytes((byte, byte, 0x10, 0x3C)) for byte in hashlib.sha256(each.encode()).digest()[:8])
        coded = base64.b64encode(raw).decode()
        data.append({"object": "embedding", "index": index, "embedding": coded})
    counted = {"prompt_tokens": 8 * len(inputs), "total_tokens": 8 * len(inputs)}
    return {"object": "list", "data": data, "model": body["model"], "usage": counted}


def moderation(body: Json) -> Json:
    names = (
        *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
        *("self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence"),
        "violence/graphic",
    )
    result = {
        "flagged": False,
        "categories": dict.fromkeys(names, False),
        "category_scores": dict.fromkeys(names, 1.5e-7),
        "category_applied_input_types": {name: ["text"] for name in names},
    }
    return {"id": named("modr-", body), "model": body["model"], "results": [result]}


def _image_usage() -> Json:
    details = {"text_tokens": 10, "image_tokens": 0}
    return {"input_tokens": 10, "output_tokens": 272, "total_tokens": 282, "input_tokens_details": details}


def images() -> Json:
    return {
        "created": CREATED,
        "background": "opaque",
        "data": [{"b64_json": PICTURE}],
        "output_format": "png",
        "quality": "low",
        "size": "1024x1024",
        "usage": _image_usage(),
    }


def image_events() -> list[bytes]:
    common = {
        "b64_json": PICTURE,
        "created_at": CREATED,
        "size": "1024x1024",
        "quality": "low",
        "background": "opaque",
        "output_format": "png",
    }
    partial = {"type": "image_generation.partial_image", **common, "partial_image_index": 0}
    whole = {"type": "image_generation.completed", **common, "usage": _image_usage()}
    return [event(partial, name=True), event(whole, name=True)]


def speech_events() -> list[bytes]:
    """Speech with ``stream_format: "sse"``."""
    halves = (SOUND[:30_000], SOUND[30_000:60_000])
    deltas = [{"type": "speech.audio.delta", "audio": base64.b64encode(half).decode()} for half in halves]
    counted = {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}
    return [*map(event, deltas), event({"type": "speech.audio.done", "usage": counted})]


def transcript(sound: bytes) -> str:
    return f"{len(sound)} bytes, grüß Gott, {hashlib.sha256(sound).hexdigest()[:16]}"


def transcription(sound: bytes) -> Json:
    details = {"text_tokens": 0, "audio_tokens": 14}
    counted = {"type": "tokens", "input_tokens": 14, "input_token_details": details}
    return {"text": transcript(sound), "usage": {**counted, "output_tokens": 45, "total_tokens": 59}}


def transcription_events(sound: bytes) -> list[bytes]:
    text = transcript(sound)
    deltas = [{"type": "transcript.text.delta", "delta": word} for word in words(text)]
    done = {"type": "transcript.text.done", "text": text, "usage": transcription(sound)["usage"]}
    return [*map(event, deltas), event(done)]


def model(id: str) -> Json:
    return {"id": id, "object": "model", "created": CREATED, "owned_by": "system"}


def file(filename: str, purpose: str, content: bytes) -> Json:
    return {
        "id": named("file-", filename, content),
        "object": "file",
        "bytes": len(content),
        "created_at": CREATED,
        "expires_at": None,
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
        "status_details": None,
    }


def batch(body: Json, status: str = "validating") -> Json:
    id = named("batch_", body)
    return {
        "id": id,
        "object": "batch",
        "endpoint": body["endpoint"],
        "errors": None,
        "input_file_id": body["input_file_id"],
        "completion_window": body["completion_window"],
        "status": status,
        "output_file_id": named("file-", id) if status == "completed" else None,
        "error_file_id": None,
        "created_at": CREATED,
        "expires_at": CREATED + 86_400,
        "request_counts": {"total": 2, "completed": 2 if status == "completed" else 0, "failed": 0},
        "metadata": body.get("metadata"),
    }


def error(status: int, message: str, kind: str = "invalid_request_error", code: str | None = None) -> Json:
    return {"error": {"message": message, "type": kind, "param": None, "code": code or f"says_{status}"}}
