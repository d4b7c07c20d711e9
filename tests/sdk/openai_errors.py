"""What the OpenAI SDK raises, sync and async. Argument: calls, as JSON; prints what each one raised.

A call is ``{"client": {...}, "call": "chat", "model": "m"}``; it may have ``stream``, ``headers``, and how
many ``characters`` to send.
"""

import asyncio
import json
import sys

import openai


def asked(call):
    """The method of a client and what it is given."""
    model, headers = call["model"], call.get("headers", {})
    text = "x" * call.get("characters", 10)
    more = {"model": model, "extra_headers": headers}
    if call.get("stream"):
        more["stream"] = True
    match call["call"]:
        case "chat":
            return "chat.completions.create", {**more, "messages": [{"role": "user", "content": text}]}
        case "completions":
            return "completions.create", {**more, "prompt": text}
        case "responses":
            return "responses.create", {**more, "input": text}
        case "gathered":
            return "responses.stream", {**more, "input": text}
        case "speech":
            return "audio.speech.create", {**more, "input": text, "voice": "alloy"}
        case "transcriptions":
            return "audio.transcriptions.create", {**more, "file": ("a.mp3", text.encode(), "audio/mpeg")}
    raise ValueError(call)


def made(call, kind, http_client):
    """The client of a call. All share their connections: to load certificates for each takes long."""
    client = call["client"]
    return getattr(openai, kind + client["class"])(
        max_retries=0, http_client=http_client, **client["options"]
    )


def method(client, path):
    for name in path.split("."):
        client = getattr(client, name)
    return client


def shown(error, events):
    told = {"class": type(error).__name__, "events": events, "message": getattr(error, "message", str(error))}
    if isinstance(error, openai.APIError):
        told |= {"body": error.body, "type": error.type, "code": error.code}
    if isinstance(error, openai.APIStatusError):
        told |= {
            "status": error.status_code,
            "request_id": error.request_id,
            "retry_after": error.response.headers.get("retry-after"),
            "content_type": error.response.headers["content-type"],
        }
    return told


def raised(call, http_client):
    events = 0
    path, arguments = asked(call)
    try:
        answer = method(made(call, "", http_client), path)(**arguments)
        if call["call"] == "gathered":
            with answer as stream:
                for _ in stream:
                    events += 1
        elif call.get("stream"):
            for _ in answer:
                events += 1
    except Exception as error:
        return shown(error, events)
    return None


async def raised_async(call, http_client):
    events = 0
    path, arguments = asked(call)
    try:
        answer = method(made(call, "Async", http_client), path)(**arguments)
        if call["call"] == "gathered":
            async with answer as stream:
                async for _ in stream:
                    events += 1
        elif call.get("stream"):
            async for _ in await answer:
                events += 1
        else:
            await answer
    except Exception as error:
        return shown(error, events)
    return None


async def all_async(calls):
    async with openai.DefaultAsyncHttpxClient() as http_client:
        told = await asyncio.gather(*(raised_async(call, http_client) for call in calls.values()))
    return dict(zip(calls, told, strict=True))


def main(calls):
    with openai.DefaultHttpxClient() as http_client:
        told = {name: raised(call, http_client) for name, call in calls.items()}
    print(json.dumps({"sync": told, "async": asyncio.run(all_async(calls))}))


main(json.loads(sys.argv[1]))
