"""Cohere under its real SDK, v1 and v2, sync and async; prints one JSON object. Arguments: BASE_URL KEY."""

import asyncio
import json
import sys

import cohere

MODEL = "command-r7b-12-2024"
SAID = "Sag »grüß Gott« 🙂, please"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": SAID}]}
EMBED = {"model": "embed-v4.0", "texts": ["one", "zwölf"], "input_type": "search_query"}
RANK = {"model": "rerank-v3.5", "query": "long", "documents": ["a", "abc", "ab"]}
SOUND = ("a.wav", b"RIFF\r\n--sound", "audio/wav")
HEARD = {"model": "cohere-transcribe-03-2026", "language": "de", "file": SOUND}
ONCE = {"request_options": {"max_retries": 0}}


def plain(answer):
    return json.loads(answer.json())


def error_seen(call, **arguments):
    try:
        call(**arguments, **ONCE)
    except cohere.core.ApiError as error:
        return {"class": type(error).__name__, "status": error.status_code, "body": error.body}
    return None


def v2_calls(client):
    return {
        "chat": plain(client.chat(**ASKED, temperature=0.5)),
        "stream": [plain(event) for event in client.chat_stream(**ASKED)],
        "broken": [plain(event) for event in client.chat_stream(**{**ASKED, "model": "demo-broken"})],
        "embed": plain(client.embed(**EMBED, embedding_types=["float"])),
        "rerank": plain(client.rerank(**RANK)),
        "transcription": plain(client.audio.transcriptions.create(**HEARD)),
        "not_found": error_seen(client.chat, **{**ASKED, "model": "nobody"}),
        "overloaded": error_seen(client.chat, **{**ASKED, "model": "demo-overloaded"}),
    }


def v1_calls(client):
    return {
        "chat": plain(client.chat(message=SAID, model=MODEL)),
        "chat_of_default_model": plain(client.chat(message=SAID)),
        "stream": [plain(event) for event in client.chat_stream(message=SAID, model=MODEL)],
        "stream_of_default_model": [plain(event) for event in client.chat_stream(message=SAID)],
        "embed": plain(client.embed(**EMBED)),
        "rerank": plain(client.rerank(**RANK)),
        "tokenize": plain(client.tokenize(text=SAID, model=MODEL, offline=False)),
        "detokenize": plain(client.detokenize(tokens=[1, 2, 3], model=MODEL, offline=False)),
        "models": plain(client.models.list()),
        "model": plain(client.models.get(MODEL)),
    }


async def async_calls(base_url, key):
    async with cohere.AsyncClientV2(key, base_url=base_url) as client:
        chat = await client.chat(**ASKED)
        stream = [plain(event) async for event in client.chat_stream(**ASKED)]
        embed = await client.embed(**EMBED, embedding_types=["float"])
    async with cohere.AsyncClient(key, base_url=base_url) as client:
        v1 = [plain(event) async for event in client.chat_stream(message=SAID, model=MODEL)]
    return {"chat": plain(chat), "stream": stream, "embed": plain(embed), "v1_stream": v1}


def main(base_url, key):
    with cohere.ClientV2(key, base_url=base_url) as client:
        v2 = v2_calls(client)
    with cohere.Client(key, base_url=base_url) as client:
        v1 = v1_calls(client)
    print(json.dumps({"v2": v2, "v1": v1, "async": asyncio.run(async_calls(base_url, key))}))


main(*sys.argv[1:])
