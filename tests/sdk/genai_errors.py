"""What the real Gemini SDK raises, sync and async; prints one JSON object. Argument: CASES, as JSON.

A case has a name, and says which URL and which fields the request goes to, and how long its text is.
"""

import asyncio
import json
import sys

from google import genai
from google.genai import errors, types

METHODS = ("generate_content", "generate_content_stream")


def told(error, chunks):
    if not isinstance(error, errors.APIError):
        return {"class": type(error).__name__, "chunks": len(chunks)}
    return {
        "class": type(error).__name__,
        "code": error.code,
        "status": error.status,
        "message": error.message,
        "details": error.details,
        "id": error.response.headers.get("x-request-id"),
        "chunks": len(chunks),
    }


def asked(base_url, headers, length):
    options = types.HttpOptions(base_url=base_url, api_version="v1beta", headers=headers)
    config = types.GenerateContentConfig(http_options=options)
    return {"model": "gemini-2.5-flash", "contents": "x" * length, "config": config}


def sync_calls(client, case):
    seen = {}
    for method in METHODS:
        chunks = []
        try:
            for chunk in getattr(client.models, method)(**asked(**case)):
                chunks.append(chunk)
        except Exception as error:
            seen[method] = told(error, chunks)
    return seen


async def async_calls(client, cases):
    seen = {name: {} for name in cases}
    async with client.aio as aclient:
        for name, case in cases.items():
            for method in METHODS:
                chunks = []
                try:
                    answer = await getattr(aclient.models, method)(**asked(**case))
                    async for chunk in answer:
                        chunks.append(chunk)
                except Exception as error:
                    seen[name][f"async {method}"] = told(error, chunks)
    return seen


def main(cases):
    with genai.Client(api_key="none") as client:
        seen = {name: sync_calls(client, case) for name, case in cases.items()}
    later = asyncio.run(async_calls(genai.Client(api_key="none"), cases))
    print(json.dumps({name: {**seen[name], **later[name]} for name in cases}))


main(json.loads(sys.argv[1]))
