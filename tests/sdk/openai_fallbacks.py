"""Fallbacks under the OpenAI SDK. Argument: clients, as JSON, each with ``model``, ``fallbacks`` and ``by``.

``by`` is ``body`` or ``header``; a form has no place for them but the header. Prints a list: of each client
and call what it was told, by whom, and the JSON that it sent.
"""

import asyncio
import hashlib
import json
import sys

import openai

SOUND = hashlib.sha256(b"spoken").digest() * 5000
MESSAGES = [{"role": "user", "content": '"model":"first/fails-529", »grüß Gott« 🙂, "fallbacks":["a/b"]'}]


def calls(client, model):
    """By name: a resource, and what it is asked."""
    chat, responses, asked = client.chat.completions, client.responses, {"model": model}
    return {
        "chat": (chat, {**asked, "messages": MESSAGES, "extra_body": {"late": [1.0, 2]}}),
        "chat_stream": (chat, {**asked, "messages": MESSAGES, "stream": True}),
        "completions": (client.completions, {**asked, "prompt": "Hi"}),
        "responses": (responses, {**asked, "input": "Hi"}),
        "responses_stream": (responses, {**asked, "input": "Hi", "stream": True}),
        "embeddings": (client.embeddings, {**asked, "input": ["Hi"]}),
        "speech": (client.audio.speech, {**asked, "input": "Hi", "voice": "alloy"}),
        "transcription": (client.audio.transcriptions, {**asked, "file": ("a.mp3", SOUND, "audio/mpeg")}),
    }


def with_fallbacks(asked, client):
    fallbacks = client["fallbacks"]
    if not fallbacks:
        return asked
    if client["by"] == "body" and "file" not in asked:
        return {**asked, "extra_body": {**asked.get("extra_body", {}), "fallbacks": fallbacks}}
    return {**asked, "extra_headers": {"x-bf-fallbacks": ", ".join(fallbacks)}}


def shown(raw, told):
    if isinstance(told, list):
        told = [each.to_dict(mode="json") for each in told]
    elif isinstance(told, openai.BaseModel):
        told = told.to_dict(mode="json")
    else:
        told = hashlib.sha256(told.content).hexdigest()
    names = ("provider", "resolved-model", "original-model", "fallback-index", "attempts")
    sent = None
    if raw.http_request.headers["content-type"] == "application/json":
        sent = raw.http_request.content.decode()
    return {"told": told, "sent": sent, "served": [raw.headers.get(f"x-bifrost-{name}") for name in names]}


def main(client):
    with getattr(openai, client["class"])(max_retries=0, **client["options"]) as made:
        told = {}
        for name, (resource, asked) in calls(made, client["model"]).items():
            raw = resource.with_raw_response.create(**with_fallbacks(asked, client))
            parsed = raw.parse()
            told[name] = shown(raw, list(parsed) if isinstance(parsed, openai.Stream) else parsed)
    return {"sync": told, "async": asyncio.run(async_main(client))}


async def async_main(client):
    async with getattr(openai, "Async" + client["class"])(max_retries=0, **client["options"]) as made:
        told = {}
        for name, (resource, asked) in calls(made, client["model"]).items():
            raw = await resource.with_raw_response.create(**with_fallbacks(asked, client))
            parsed = raw.parse()
            if isinstance(parsed, openai.AsyncStream):
                parsed = [each async for each in parsed]
            told[name] = shown(raw, parsed)
    return told


print(json.dumps([main(client) for client in json.loads(sys.argv[1])]))
