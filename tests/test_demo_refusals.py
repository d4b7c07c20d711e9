"""The demo's upstream refuses what OpenAI, Gemini and Cohere refuse, in the shape of each."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from demo_talks import KEYS, Json, Talk, http, refused, talk

__all__ = ["http", "talk"]


@pytest.mark.parametrize("data", [b"", b"{", b'{"a":NaN}', b"\xff", b"[]", b"[" * 100_000])
async def test_bodies_that_are_no_object(http: aiohttp.ClientSession, talk: Talk, data: bytes) -> None:
    """A body that is not a JSON object is a 400."""
    path, _ = talk.ask("any", False, None)
    async with http.post(path, data=data, headers=KEYS[talk.wire_format]) as response:
        await refused(response, talk.wire_format, 400)


async def test_forms(http: aiohttp.ClientSession) -> None:
    """What the demo cannot do it says, and takes no form for bad JSON."""
    form = aiohttp.FormData({"model": "whisper-1"})
    form.add_field("file", b"sound", filename="a.mp3")
    path = "/openai/v1/audio/transcriptions"
    async with http.post(path, data=form, headers=KEYS["openai"]) as response:
        assert "no forms" in await refused(response, "openai", 400)


@pytest.mark.parametrize("wrong", [None, [], {}, "", ["hi"], [{"role": "user", "content": 1, "parts": 1}]])
async def test_bad_conversations(http: aiohttp.ClientSession, talk: Talk, wrong: Any) -> None:
    """A conversation that is none is a 400 that names the member."""
    path, body = talk.ask("any", False, None)
    member = next(name for name in ("messages", "contents", "input") if name in body)
    async with http.post(path, json={**body, member: wrong}, headers=KEYS[talk.wire_format]) as response:
        assert (await refused(response, talk.wire_format, 400)).startswith(member)
    del body[member]
    async with http.post(path, json=body, headers=KEYS[talk.wire_format]) as response:
        assert (await refused(response, talk.wire_format, 400)).startswith(f"{member}: ")


@pytest.mark.parametrize("most", [0, -1, "9", True, 1.5])
async def test_bad_limits(http: aiohttp.ClientSession, talk: Talk, most: Any) -> None:
    """A limit of tokens that is no positive integer is a 400."""
    path, body = talk.ask("any", False, most)
    async with http.post(path, json=body, headers=KEYS[talk.wire_format]) as response:
        assert "okens: Input should be " in await refused(response, talk.wire_format, 400)


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        ("/openai/v1/chat/completions", {"model": None}, "model: "),
        ("/openai/v1/chat/completions", {"model": ""}, "model: "),
        ("/openai/v1/responses", {"model": 1}, "model: "),
        ("/openai/v1/embeddings", {"input": None}, "input: "),
        ("/openai/v1/embeddings", {"input": []}, "input: "),
        ("/openai/v1/embeddings", {"input": ["a", 1]}, "input: "),
        ("/openai/v1/embeddings", {"dimensions": 4097}, "dimensions: "),
        ("/cohere/v2/chat", {"model": {}}, "model: "),
        ("/genai/v1/models/m:generateContent", {"generationConfig": "x"}, "generationConfig: "),
        ("/genai/v1/models/m:streamGenerateContent", {}, "alt: "),
    ],
)
async def test_bad_members(http: aiohttp.ClientSession, path: str, change: Json, message: str) -> None:
    """Any other member that is wrong is a 400 that names it."""
    text = "Hello there"
    turns = [{"role": "user", "content": text, "parts": [{"text": text}]}]
    body = {"model": "any", "messages": turns, "contents": turns, "input": text, **change}
    wire_format = path.split("/")[1]
    async with http.post(path, json=body, headers=KEYS[wire_format]) as response:
        assert (await refused(response, wire_format, 400)).startswith(message)


async def test_fallbacks_are_the_gateways(http: aiohttp.ClientSession, talk: Talk) -> None:
    """None of the APIs knows a member `fallbacks`, so one that the proxy left in would show."""
    path, body = talk.ask("any", False, None)
    asked = {**body, "fallbacks": ["backup/any"]}
    async with http.post(path, json=asked, headers=KEYS[talk.wire_format]) as response:
        assert (await refused(response, talk.wire_format, 400)).startswith("fallbacks: ")


async def test_no_key(http: aiohttp.ClientSession, talk: Talk) -> None:
    """Without a key it is a 401, at Gemini's a 403; the key of another API is none."""
    path, body = talk.ask("any", False, None)
    async with http.post(path, json=body, headers={"x-api-key": "sk-test"}) as response:
        await refused(response, talk.wire_format, 403 if talk.wire_format == "genai" else 401)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/openai"),
        ("GET", "/openai/v1/chat/completions"),
        ("POST", "/openai/chat/completions"),
        ("POST", "/openai/v1/models"),
        ("GET", "/genai/"),
        ("POST", "/genai/v2/models/m:generateContent"),
        ("POST", "/genai/v1/models/demo/m:generateContent"),
        ("POST", "/genai/v1/models/:generateContent"),
        ("POST", "/genai/v1/models/m:predict"),
        ("GET", "/cohere/v2/chat"),
        ("POST", "/cohere/v1/chat"),
    ],
)
async def test_unknown_paths(http: aiohttp.ClientSession, method: str, path: str) -> None:
    """What is not there is a 404; a model with a slash is not there either."""
    wire_format = path.split("/")[1]
    async with http.request(method, path, json={}, headers=KEYS[wire_format]) as response:
        await refused(response, wire_format, 404)
