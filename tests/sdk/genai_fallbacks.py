"""Other targets than the default one, with the real Gemini SDK; prints one JSON object.

Arguments: BASE_URL KEY. Every call is made sync and async: two HTTP libraries write the path.
"""

import asyncio
import json
import sys

from google import genai
from google.genai import types

SECOND = "gemini2/gemini-2.5-pro"
BODY = {"extra_body": {"fallbacks": [SECOND]}}
HEADER = {"headers": {"x-bf-fallbacks": f"gemini2/demo-overloaded, {SECOND}"}}
ODD = {"headers": {"x-bf-fallbacks": "gemini2/gemini-tuned+v1@2"}}
CALLS = {
    "body": ("generate_content", "demo-overloaded", BODY),
    "body, stream": ("generate_content_stream", "demo-overloaded", BODY),
    "header": ("generate_content", "demo-overloaded", HEADER),
    "header, stream": ("generate_content_stream", "demo-overloaded", HEADER),
    "header, odd model": ("generate_content", "demo-overloaded", ODD),
    "header, tokens": ("count_tokens", "demo-overloaded", HEADER),
    "prefix": ("generate_content", SECOND, {}),
    "prefix, stream": ("generate_content_stream", SECOND, {}),
    "prefix, encoded": ("generate_content", "gemini2%2Fgemini-2.5-pro", {}),
    "prefix, odd model": ("generate_content", "gemini2/gemini-tuned+v1@2", {}),
    "prefix of the default": ("generate_content", "gemini/gemini-2.5-pro", {}),
    "alias": ("generate_content", "ours", {}),
    "broken, stream": ("generate_content_stream", "dead/gemini-2.5-pro", BODY),
}


def served(answer):
    fields = answer.sdk_http_response.headers
    return {name[10:]: value for name, value in fields.items() if name.startswith("x-bifrost-")}


def told(answers):
    """What was said, and who said it."""
    text = "".join(str(getattr(answer, "text", None) or answer.total_tokens) for answer in answers)
    return {"text": text, "served": served(answers[0])}


def sync_calls(models):
    seen = {}
    for name, (method, model, options) in CALLS.items():
        kind = types.CountTokensConfig if method == "count_tokens" else types.GenerateContentConfig
        answer = getattr(models, method)(model=model, contents="Hello", config=kind(http_options=options))
        seen[name] = told(list(answer) if method.endswith("stream") else [answer])
    return seen


async def async_calls(client):
    seen = {}
    async with client.aio as aclient:
        for name, (method, model, options) in CALLS.items():
            kind = types.CountTokensConfig if method == "count_tokens" else types.GenerateContentConfig
            made = getattr(aclient.models, method)(
                model=model, contents="Hello", config=kind(http_options=options)
            )
            answer = await made
            seen[name] = told([chunk async for chunk in answer] if method.endswith("stream") else [answer])
    return seen


def main(base_url, key):
    options = types.HttpOptions(base_url=base_url, api_version="v1beta")
    with genai.Client(api_key=key, http_options=options) as client:
        seen = sync_calls(client.models)
    again = genai.Client(api_key=key, http_options=options)
    print(json.dumps({"sync": seen, "async": asyncio.run(async_calls(again))}))


main(*sys.argv[1:])
