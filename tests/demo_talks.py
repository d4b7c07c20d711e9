"""How the demo's APIs are talked to, OpenAI's, Gemini's and Cohere's, and where in their answers is what."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import aiohttp
import pytest

from proxy.demo_upstream import DemoUpstream

Json = dict[str, Any]

SAID = "You said “Hello there” and it reached me just as you wrote it. Yours verbatim, demo."
KEYS = {
    "openai": {"authorization": "Bearer sk-test"},
    "genai": {"x-goog-api-key": "sk-test"},
    "cohere": {"authorization": "Bearer sk-test"},
}
MODELS = ["claude-2", "claude-haiku-4-5", "demo-overloaded", "demo-thinking", "demo-error"]


class Talk(NamedTuple):
    """How one API is talked to, and where in its answers is what."""

    wire_format: str
    ask: Callable[[str, bool, int | None], tuple[str, Json]]
    """Path and body for a model, streamed or not, with a limit of tokens or none."""
    text: Callable[[Json], str]
    piece: Callable[[Json], str]
    reason: Callable[[Json], str]
    reasons: tuple[str, str]
    """Of an answer that ended by itself, and of one that was cut."""
    usage: Callable[[Json], tuple[int, int]]
    end: str = "\n\n"
    """Of an event."""
    last: str = ""
    """What the stream ends with."""


def ask_chat(model: str, stream: bool, most: int | None) -> tuple[str, Json]:
    messages = [{"role": "system", "content": [{"type": "text", "text": "Be kind"}]}]
    messages += [{"role": "user", "content": [{"type": "text", "text": "Hello there"}]}]
    body = {"model": model, "messages": messages, "stream": stream, "max_completion_tokens": most}
    return "/openai/v1/chat/completions", body


def ask_response(model: str, stream: bool, most: int | None) -> tuple[str, Json]:
    items = [{"role": "user", "content": [{"type": "input_text", "text": "Hello there"}]}]
    body = {"model": model, "instructions": "Be kind", "input": items, "stream": stream}
    return "/openai/v1/responses", {**body, "max_output_tokens": most}


def ask_gemini(model: str, stream: bool, most: int | None) -> tuple[str, Json]:
    method = "streamGenerateContent?alt=sse" if stream else "generateContent"
    turns = [{"role": "user", "parts": [{"text": text}]} for text in ("Be kind", "Hello there")]
    config = {"generationConfig": {"maxOutputTokens": most}}
    return f"/genai/v1beta/models/{model}:{method}", {"contents": turns, **config}


def ask_cohere(model: str, stream: bool, most: int | None) -> tuple[str, Json]:
    messages = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hello there"}]
    return "/cohere/v2/chat", {"model": model, "messages": messages, "stream": stream, "max_tokens": most}


TALKS = {
    "chat": Talk(
        "openai",
        ask_chat,
        text=lambda whole: whole["choices"][0]["message"]["content"],
        piece=lambda data: data["choices"][0]["delta"].get("content", ""),
        reason=lambda whole: whole["choices"][0]["finish_reason"],
        reasons=("stop", "length"),
        usage=lambda whole: (whole["usage"]["prompt_tokens"], whole["usage"]["completion_tokens"]),
        last="data: [DONE]\n\n",
    ),
    "responses": Talk(
        "openai",
        ask_response,
        text=lambda whole: whole["output"][0]["content"][0]["text"],
        piece=lambda data: data["delta"] if data["type"] == "response.output_text.delta" else "",
        reason=lambda whole: whole["status"],
        reasons=("completed", "incomplete"),
        usage=lambda whole: (whole["usage"]["input_tokens"], whole["usage"]["output_tokens"]),
    ),
    "genai": Talk(
        "genai",
        ask_gemini,
        text=lambda whole: whole["candidates"][0]["content"]["parts"][0]["text"],
        piece=lambda data: data["candidates"][0]["content"]["parts"][0]["text"],
        reason=lambda whole: whole["candidates"][0]["finishReason"],
        reasons=("STOP", "MAX_TOKENS"),
        usage=lambda whole: (
            whole["usageMetadata"]["promptTokenCount"],
            whole["usageMetadata"]["candidatesTokenCount"],
        ),
        end="\r\n\r\n",
    ),
    "cohere": Talk(
        "cohere",
        ask_cohere,
        text=lambda whole: whole["message"]["content"][0]["text"],
        piece=lambda data: (
            data["delta"]["message"]["content"]["text"] if data["type"] == "content-delta" else ""
        ),
        reason=lambda whole: whole["finish_reason"],
        reasons=("COMPLETE", "MAX_TOKENS"),
        usage=lambda whole: (
            whole["usage"]["billed_units"]["input_tokens"],
            whole["usage"]["billed_units"]["output_tokens"],
        ),
        last="data: [DONE]\n\n",
    ),
}


@pytest.fixture(params=TALKS)
def talk(request: pytest.FixtureRequest) -> Talk:
    return TALKS[request.param]


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    demo = DemoUpstream(interval=0, silence=0.2)
    await demo.start()
    async with aiohttp.ClientSession(demo.url) as session:
        yield session
    await demo.stop()


async def ask(
    http: aiohttp.ClientSession, talk: Talk, model: str = "any", most: int | None = None, **change: Any
) -> Json:
    """The JSON answer."""
    path, body = talk.ask(model, False, most)
    async with http.post(path, json={**body, **change}, headers=KEYS[talk.wire_format]) as response:
        assert (response.status, response.content_type) == (200, "application/json")
        return dict(await response.json())


async def events_of(
    http: aiohttp.ClientSession, talk: Talk, model: str = "any", *, last: str | None = None, **change: Any
) -> list[Json]:
    """The data of a stream; each event is one data line, behind one with its type if it is named."""
    path, body = talk.ask(model, True, None)
    async with http.post(path, json={**body, **change}, headers=KEYS[talk.wire_format]) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        text = (await response.read()).decode()
    last = talk.last if last is None else last
    assert text.endswith(last)
    *blocks, end = text.removesuffix(last).split(talk.end)
    assert end == ""
    events = []
    for block in blocks:
        *name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == ([f"event: {events[-1]['type']}"] if "type" in events[-1] else [])
    return events


async def refused(response: aiohttp.ClientResponse, wire_format: str, status: int) -> str:
    """The message of an error answer, which must be in the format's own shape."""
    assert (response.status, response.content_type) == (status, "application/json")
    assert response.headers["x-request-id"].startswith("req_demo")
    body = await response.json()
    if wire_format == "cohere":
        assert body == {"id": response.headers["x-request-id"], "message": body["message"]}
        return str(body["message"])
    error = body.pop("error")
    if wire_format == "genai":
        names = {400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 413: "INVALID_ARGUMENT"}
        names |= {500: "INTERNAL", 503: "UNAVAILABLE"}
        assert (body, error["code"], error["status"]) == ({}, status, names[status])
    else:
        names = {
            401: "authentication_error",
            404: "not_found_error",
            500: "server_error",
            503: "server_error",
        }
        kind = names.get(status, "invalid_request_error")
        assert (body, error["type"], error["param"], error["code"]) == ({}, kind, None, None)
    return str(error["message"])
