"""What the real Cohere SDK raises, v1, v2 and async; prints one JSON object. Argument: CASES, as JSON.

A case has a name, and is the arguments of `seen`.
"""

import asyncio
import json
import sys

import cohere
import httpx
from cohere.core import ApiError

MODEL = "command-a-03-2025"


def told(error, events):
    if not isinstance(error, ApiError):
        return {"class": type(error).__name__, "events": events}
    return {
        "class": type(error).__name__,
        "status": error.status_code,
        "body": error.body,
        "id": error.headers.get("x-request-id"),
        "events": events,
    }


def named(event):
    """The type of an event, and the error that it tells, if it does."""
    return [event.type, getattr(getattr(event, "delta", None), "error", None)]


def raised(call, is_stream):
    events = []
    try:
        answer = call()
        if is_stream:
            events.extend(map(named, answer))
    except Exception as error:
        return told(error, events)
    return {"class": "", "events": events}


async def async_raised(http, base_url, key, asked):
    try:
        await cohere.AsyncClientV2(key, base_url=base_url, httpx_client=http).chat(**asked)
    except Exception as error:
        return told(error, [])
    return None


async def seen(http, async_http, base_url, key, headers, length):
    text = "x" * length
    options = {"request_options": {"max_retries": 0, "additional_headers": headers}}
    asked = {"model": MODEL, "messages": [{"role": "user", "content": text}], **options}
    old = {"model": MODEL, "message": text, **options}
    v2 = cohere.ClientV2(key, base_url=base_url, httpx_client=http)
    v1 = cohere.Client(key, base_url=base_url, httpx_client=http)
    return {
        "chat": raised(lambda: v2.chat(**asked), False),
        "stream": raised(lambda: v2.chat_stream(**asked), True),
        "v1 chat": raised(lambda: v1.chat(**old), False),
        "v1 stream": raised(lambda: list(v1.chat_stream(**old)), False),
        "async chat": await async_raised(async_http, base_url, key, asked),
    }


async def main(cases):
    # The libraries of HTTP read all authorities for each client that they make.
    with httpx.Client() as http:
        async with httpx.AsyncClient() as async_http:
            found = {name: await seen(http, async_http, **case) for name, case in cases.items()}
    print(json.dumps(found))


asyncio.run(main(json.loads(sys.argv[1])))
