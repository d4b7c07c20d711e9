"""The demo's upstream speaks the wire formats of OpenAI, Gemini and Cohere, always alike."""

from __future__ import annotations

import asyncio
import base64
import json
import struct

import aiohttp
import pytest
from demo_talks import KEYS, MODELS, SAID, TALKS, Talk, ask, events_of, http, refused, talk

from proxy.demo_upstream import DemoUpstream

__all__ = ["http", "talk"]


async def test_an_answer_says_what_was_asked(http: aiohttp.ClientSession, talk: Talk) -> None:
    """The JSON answer quotes the last turn, has ended by itself, and counts words as tokens."""
    whole = await ask(http, talk)
    assert talk.text(whole) == SAID
    assert talk.reason(whole) == talk.reasons[0]
    assert talk.usage(whole) == (4, len(SAID.split()))


async def test_a_stream_adds_up_to_the_answer(http: aiohttp.ClientSession, talk: Talk) -> None:
    """The pieces of a stream, a word each, make the text of the JSON answer."""
    pieces = [piece for piece in map(talk.piece, await events_of(http, talk)) if piece]
    assert "".join(pieces) == SAID
    assert len(pieces) == len(SAID.split())


async def test_a_limit_cuts_the_answer(http: aiohttp.ClientSession, talk: Talk) -> None:
    """An answer longer than the limit stops there and says so."""
    whole = await ask(http, talk, most=2)
    assert (talk.text(whole), talk.reason(whole)) == ("You said", talk.reasons[1])
    assert talk.usage(whole) == (4, 2)


async def test_two_upstreams_answer_alike(talk: Talk) -> None:
    """Nothing in an answer depends on clock or chance."""
    seen = []
    for _ in range(2):
        demo = DemoUpstream(interval=0)
        await demo.start()
        async with aiohttp.ClientSession(demo.url) as session:
            seen.append([await ask(session, talk), *await events_of(session, talk)])
        await demo.stop()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("stream", [True, False])
async def test_overloaded(http: aiohttp.ClientSession, talk: Talk, stream: bool) -> None:
    """``demo-overloaded`` answers 503 with a retry-after, streaming or not."""
    path, body = talk.ask("demo-overloaded", stream, None)
    async with http.post(path, json=body, headers=KEYS[talk.wire_format]) as response:
        assert await refused(response, talk.wire_format, 503) == "Overloaded"
    assert response.headers["retry-after"] == "1"


async def test_thinking_is_silent(http: aiohttp.ClientSession, talk: Talk) -> None:
    """``demo-thinking`` says nothing for `silence` seconds, streaming or not, and then all its words."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert talk.text(await ask(http, talk, "demo-thinking")) == SAID
    between = loop.time()
    assert "".join(map(talk.piece, await events_of(http, talk, "demo-thinking"))) == SAID
    # A timer may end a little early by the clock of the other side.
    assert between - started > 0.15
    assert loop.time() - between > 0.15


async def test_error_breaks_off_in_the_middle(http: aiohttp.ClientSession, talk: Talk) -> None:
    """``demo-error`` ends its streams after three words, as the API would, and is a 500 otherwise."""
    *events, error = await events_of(http, talk, "demo-error", last="")
    assert "".join(map(talk.piece, events)) == "You said “Hello"
    overloaded = {"message": "Overloaded", "param": None}
    assert (
        error
        == {
            "/openai/v1/chat/completions": {"error": {**overloaded, "type": "server_error", "code": None}},
            "/openai/v1/responses": {
                **overloaded,
                "type": "error",
                "sequence_number": len(events),
                "code": "server_error",
            },
            "/genai/v1beta/models/m:generateContent": {
                "error": {"code": 503, "message": "Overloaded", "status": "UNAVAILABLE"}
            },
            "/cohere/v2/chat": {
                "type": "message-end",
                "id": error.get("id"),
                "delta": {"finish_reason": "ERROR", "error": "Overloaded"},
            },
        }[talk.ask("m", False, None)[0]]
    )
    path, body = talk.ask("demo-error", False, None)
    async with http.post(path, json=body, headers=KEYS[talk.wire_format]) as response:
        await refused(response, talk.wire_format, 500)


async def test_the_usage_chunk(http: aiohttp.ClientSession) -> None:
    """With ``include_usage`` a chat's chunks have a null usage, but one before the end, without choices."""
    talk = TALKS["chat"]
    whole = await ask(http, talk)
    *chunks, counted = await events_of(http, talk, stream_options={"include_usage": True})
    assert {json.dumps(chunk["usage"]) for chunk in chunks} == {"null"}
    assert (counted["choices"], counted["usage"]) == ([], whole["usage"])
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-2:]] == [None, "stop"]
    assert {chunk["object"] for chunk in [*chunks, counted]} == {"chat.completion.chunk"}
    plain = await events_of(http, talk)
    assert [chunk for chunk in plain if "usage" in chunk] == []
    assert plain[0]["choices"][0]["delta"]["role"] == "assistant"


async def test_a_response_is_told_in_numbered_events(http: aiohttp.ClientSession) -> None:
    """A response's events are numbered, open and close each other in order, and the last has the answer."""
    events = await events_of(http, TALKS["responses"])
    types = [event["type"].removeprefix("response.") for event in events]
    assert types[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(types[4:-4]) == {"output_text.delta"}
    assert types[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert (events[0]["response"]["status"], events[0]["response"]["output"]) == ("in_progress", [])
    whole = events[-1]["response"]
    assert TALKS["responses"].text(whole) == events[-4]["text"] == SAID
    assert whole["output"] == [events[-2]["item"]]


async def test_a_response_to_a_string(http: aiohttp.ClientSession) -> None:
    """`input` may be a string."""
    whole = await ask(http, TALKS["responses"], input="Hello there")
    assert TALKS["responses"].text(whole) == SAID


async def test_gemini_counts_in_every_chunk(http: aiohttp.ClientSession) -> None:
    """Every chunk has the usage so far; the last says why it ended; countTokens counts the same prompt."""
    talk = TALKS["genai"]
    chunks = await events_of(http, talk)
    count = len(SAID.split())
    assert [talk.usage(chunk) for chunk in chunks] == [(4, number) for number in range(1, count + 1)]
    reasons = [chunk["candidates"][0].get("finishReason") for chunk in chunks]
    assert reasons == [None] * (count - 1) + ["STOP"]
    body = talk.ask("any", False, None)[1]
    path = "/genai/v1/models/any:countTokens"
    async with http.post(path, json=body, headers=KEYS["genai"]) as response:
        assert (await response.json())["totalTokens"] == 4


async def test_cohere_opens_and_closes(http: aiohttp.ClientSession) -> None:
    """A message and its content are opened before the words and closed after them, the usage at the end."""
    events = await events_of(http, TALKS["cohere"])
    types = [event["type"] for event in events]
    assert types[:2] == ["message-start", "content-start"]
    assert set(types[2:-2]) == {"content-delta"}
    assert types[-2:] == ["content-end", "message-end"]
    assert events[-1]["delta"]["finish_reason"] == "COMPLETE"
    assert TALKS["cohere"].usage(events[-1]["delta"]) == (4, len(SAID.split()))


async def test_embeddings(http: aiohttp.ClientSession) -> None:
    """Each text has a vector of its own, the same in both codings, as long as `dimensions` says."""
    vectors = {}
    for coding in ("float", "base64"):
        body = {
            "model": "any",
            "input": ["Hello", "there", "Hello"],
            "encoding_format": coding,
            "dimensions": 5,
        }
        async with http.post("/openai/v1/embeddings", json=body, headers=KEYS["openai"]) as response:
            answer = await response.json()
        assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
        assert [item["index"] for item in answer["data"]] == [0, 1, 2]
        vectors[coding] = [item["embedding"] for item in answer["data"]]
    assert [list(struct.unpack("<5f", base64.b64decode(each))) for each in vectors["base64"]] == vectors[
        "float"
    ]
    one, two, three = vectors["float"]
    assert one == three != two
    async with http.post(
        "/openai/v1/embeddings", json={"model": "m", "input": "Hi"}, headers=KEYS["openai"]
    ) as response:
        assert len((await response.json())["data"][0]["embedding"]) == 8


@pytest.mark.parametrize(
    ("path", "member", "name"),
    [
        ("/openai/v1/models", "data", "{}"),
        ("/genai/v1beta/models", "models", "models/{}"),
        ("/cohere/v1/models", "models", "{}"),
    ],
)
async def test_models(http: aiohttp.ClientSession, path: str, member: str, name: str) -> None:
    """The list has the API's shape, each item is there by itself, and an unknown model is a 404."""
    wire_format = path.split("/")[1]
    key = "id" if wire_format == "openai" else "name"
    async with http.get(path, headers=KEYS[wire_format]) as response:
        listed = (await response.json())[member]
    assert [item[key] for item in listed] == [name.format(model) for model in MODELS]
    async with http.get(f"{path}/demo-thinking", headers=KEYS[wire_format]) as response:
        assert await response.json() == listed[3]
    async with http.get(f"{path}/nobody", headers=KEYS[wire_format]) as response:
        await refused(response, wire_format, 404)
