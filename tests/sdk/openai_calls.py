"""Every resource of the OpenAI SDK that goes through the proxy, sync and async. Argument: clients, as JSON.

A client is ``{"class": "OpenAI", "options": {...}, "prefix": "openai/", "calls": ["chat", ...]}``; the prefix
stands before every model. Prints a list: what each client saw and sent.
"""

import asyncio
import hashlib
import json
import sys
from functools import partial as ask

import openai

SOUND = b"".join(hashlib.sha256(b"spoken %d" % n).digest() for n in range(8192))
USER = "Sag »grüß Gott« 🙂"
MESSAGES = [{"role": "developer", "content": 'Say "model": nothing'}, {"role": "user", "content": USER}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "model": {"type": "string"}},
    "required": ["city", "model"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "description": "Tells the weather", "parameters": PARAMETERS, "strict": True}
TOOL = {"type": "function", "function": WEATHER}
LINE = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-4o-mini"}}


def digest(data):
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def shown(value):
    if isinstance(value, openai.BaseModel):
        return value.to_dict(mode="json")
    if isinstance(value, openai.APIStatusError):
        names = ("retry-after", "x-ratelimit-remaining-requests")
        headers = {name: value.response.headers.get(name) for name in names}
        told = [type(value).__name__, value.status_code, value.body, value.message, value.code]
        return [*told, value.request_id, headers]
    if isinstance(value, dict):
        return {name: shown(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shown(each) for each in value]
    if isinstance(getattr(value, "content", None), bytes):
        return {**digest(value.content), "type": value.response.headers["content-type"]}
    return value


# Each is given a client and what stands before a model. What it yields is called, awaited where that is due,
# and read to its end; an error is handed back.


def chat(client, prefix):
    create = client.chat.completions.create
    asked = {"model": prefix + "gpt-4o-mini", "messages": MESSAGES}
    told = yield ask(create, **asked)
    return {
        "create": told,
        "request_id": told._request_id,
        "stream": (yield ask(create, **asked, stream=True)),
        "counted": (yield ask(create, **asked, stream=True, stream_options={"include_usage": True})),
        "tools": (yield ask(create, **asked, tools=[TOOL])),
        "tools_stream": (yield ask(create, **asked, tools=[TOOL, TOOL], stream=True)),
        "unknown": (yield ask(create, **asked, extra_body={"new": {"model": "x/y", "n": 1.10}})),
    }


def raw(client, prefix):
    create = client.chat.completions.with_raw_response.create
    asked = {"model": prefix + "gpt-4o-mini", "messages": MESSAGES}
    told = yield ask(create, **asked, extra_headers={"X-New": "1"}, extra_query={"new": "x/y"})
    names = ("openai-version", "x-request-id", "content-type")
    return {"headers": {name: told.headers.get(name) for name in names}, "parsed": told.parse()}


def lines(client, prefix):
    """Streams as other providers write them: with ``id:`` lines, and with CRLF."""
    create = client.chat.completions.create
    return {
        "ids": (yield ask(create, model=prefix + "ids", messages=MESSAGES, stream=True)),
        "crlf": (yield ask(create, model=prefix + "crlf", messages=MESSAGES, stream=True)),
    }


def completions(client, prefix):
    asked = {"model": prefix + "gpt-3.5-turbo-instruct", "prompt": USER}
    return {
        "create": (yield ask(client.completions.create, **asked)),
        "stream": (yield ask(client.completions.create, **asked, stream=True)),
    }


def responses(client, prefix):
    create = client.responses.create
    asked = {"model": prefix + "gpt-4o-mini", "input": USER}
    told = yield ask(create, **asked)
    return {
        "create": told,
        "stream": (yield ask(create, **asked, stream=True)),
        "tools": (yield ask(create, **asked, tools=[{"type": "function", **WEATHER}], stream=True)),
        "retrieve": (yield ask(client.responses.retrieve, told.id)),
        "goes_on": (yield ask(client.responses.retrieve, told.id, stream=True, starting_after=3)),
    }


def embeddings(client, prefix):
    asked = {"model": prefix + "text-embedding-3-small", "input": ["Hello", "Grüße"]}
    return (yield ask(client.embeddings.create, **asked))


def moderations(client, prefix):
    return (yield ask(client.moderations.create, model=prefix + "omni-moderation-latest", input=USER))


def images(client, prefix):
    asked = {"model": prefix + "gpt-image-1", "prompt": "Ein grüner Baum"}
    picture = ("a.png", b"\x89PNG" + SOUND[:500], "image/png")
    return {
        "generate": (yield ask(client.images.generate, **asked)),
        "stream": (yield ask(client.images.generate, **asked, stream=True, partial_images=1)),
        "edit": (yield ask(client.images.edit, **asked, image=[picture, picture], mask=picture)),
    }


def speech(client, prefix):
    create = client.audio.speech.create
    asked = {"model": prefix + "gpt-4o-mini-tts", "voice": "alloy", "input": USER}
    return {"audio": (yield ask(create, **asked)), "sse": (yield ask(create, **asked, stream_format="sse"))}


def transcriptions(client, prefix):
    create = client.audio.transcriptions.create
    asked = {"model": prefix + "gpt-4o-transcribe", "file": ("grüße.mp3", SOUND, "audio/mpeg")}
    return {
        "create": (yield ask(create, **asked, language="de", prompt="model=x/y")),
        "stream": (yield ask(create, **asked, stream=True)),
    }


def files(client, prefix):
    lines = "".join(json.dumps({**LINE, "n": n}) + "\n" for n in range(500)).encode()
    made = yield ask(client.files.create, file=("in.jsonl", lines, "application/jsonl"), purpose="batch")
    return {
        "made": made,
        "sent": digest(lines),
        "list": (yield ask(client.files.list)).data,
        "retrieve": (yield ask(client.files.retrieve, made.id)),
        "content": (yield ask(client.files.content, made.id)),
        "delete": (yield ask(client.files.delete, made.id)),
        "gone": (yield ask(client.files.retrieve, made.id)),
    }


def batches(client, prefix):
    asked = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made = yield ask(client.batches.create, **asked, metadata={"model": "x/y"})
    return {
        "made": made,
        "list": (yield ask(client.batches.list, limit=10)).data,
        "retrieve": (yield ask(client.batches.retrieve, made.id)),
        "cancel": (yield ask(client.batches.cancel, made.id)),
    }


def models(client, prefix):
    return {
        "list": (yield ask(client.models.list)).data,
        "retrieve": (yield ask(client.models.retrieve, prefix + "gpt-4o-mini")),
        "unknown": (yield ask(client.models.retrieve, "nobody")),
    }


def refusals(client, prefix, statuses=(400, 404, 409, 422, 429, 500, 503)):
    told = {}
    for status in statuses:
        asked = {"model": f"{prefix}fails-{status}", "messages": MESSAGES, "stream": status % 2 == 0}
        told[status] = yield ask(client.chat.completions.create, **asked)
    return told


def denials(client, prefix):
    return refusals(client, prefix, (401, 403))


CALLS = {
    call.__name__: call
    for call in (
        *(chat, raw, lines, completions, responses, embeddings, moderations, images, speech, transcriptions),
        *(files, batches, models, refusals, denials),
    )
}


def play(steps):
    """One of the calls above with a client that is not async."""
    try:
        step = next(steps)
        while True:
            try:
                told = step()
            except openai.APIStatusError as error:
                told = error
            step = steps.send(list(told) if isinstance(told, openai.Stream) else told)
    except StopIteration as end:
        return shown(end.value)


async def play_async(steps):
    try:
        step = next(steps)
        while True:
            try:
                told = await step()
            except openai.APIStatusError as error:
                told = error
            if isinstance(told, openai.AsyncStream):
                told = [each async for each in told]
            step = steps.send(told)
    except StopIteration as end:
        return shown(end.value)


def streams(client, prefix):
    """The forms that are contexts: they gather the answer from its stream."""
    model = prefix + "gpt-4o-mini"
    with client.responses.stream(model=model, input=USER) as stream:
        events = [event.type for event in stream]
        response = stream.get_final_response()
    with client.chat.completions.stream(model=model, messages=MESSAGES) as stream:
        chunks = [event.type for event in stream]
        completion = stream.get_final_completion()
    spoken = client.audio.speech.with_streaming_response
    with spoken.create(model=prefix + "gpt-4o-mini-tts", voice="alloy", input=USER) as answer:
        sound = b"".join(answer.iter_bytes())
    return shown([events, response, chunks, completion, digest(sound)])


async def streams_async(client, prefix):
    model = prefix + "gpt-4o-mini"
    async with client.responses.stream(model=model, input=USER) as stream:
        events = [event.type async for event in stream]
        response = await stream.get_final_response()
    async with client.chat.completions.stream(model=model, messages=MESSAGES) as stream:
        chunks = [event.type async for event in stream]
        completion = await stream.get_final_completion()
    spoken = client.audio.speech.with_streaming_response
    async with spoken.create(model=prefix + "gpt-4o-mini-tts", voice="alloy", input=USER) as answer:
        sound = b"".join([part async for part in answer.iter_bytes()])
    return shown([events, response, chunks, completion, digest(sound)])


async def async_main(client, prefix, names, sent):
    async def keep(request):
        sent.append([request.method, hashlib.sha256(await request.aread()).hexdigest()])

    options = {
        **client["options"],
        "http_client": openai.DefaultAsyncHttpxClient(event_hooks={"request": [keep]}),
    }
    kind = getattr(openai, "Async" + client["class"])
    async with kind(max_retries=0, **options) as made:
        told = {name: await play_async(CALLS[name](made, prefix)) for name in names}
        return {**told, "streams": await streams_async(made, prefix)}


def main(client):
    sent = []

    def keep(request):
        sent.append([request.method, hashlib.sha256(request.read()).hexdigest()])

    prefix, names = client["prefix"], client["calls"]
    http_client = openai.DefaultHttpxClient(event_hooks={"request": [keep]})
    kind = getattr(openai, client["class"])
    with kind(max_retries=0, http_client=http_client, **client["options"]) as made:
        told = {name: play(CALLS[name](made, prefix)) for name in names}
        told["streams"] = streams(made, prefix)
    return {"sync": told, "async": asyncio.run(async_main(client, prefix, names, sent)), "sent": sent}


print(json.dumps([main(client) for client in json.loads(sys.argv[1])]))
