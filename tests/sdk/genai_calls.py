"""Gemini's models under their real SDK, sync and async; prints one JSON object.

Arguments: BASE_URL KEY API_VERSION.
"""

import asyncio
import json
import sys

from google import genai
from google.genai import errors, types

MODEL = "gemini-2.5-flash"
ASKED = {"model": MODEL, "contents": "Sag »grüß Gott« 🙂, please"}
CITY = {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}
TOOL = types.Tool(function_declarations=[{"name": "weather", "parameters": CITY}])


def plain(answer):
    return answer.model_dump(mode="json", exclude_none=True, exclude={"sdk_http_response"})


def config(**more):
    return types.GenerateContentConfig(
        automatic_function_calling={"disable": True},
        system_instruction="Be »exact«.",
        temperature=0.5,
        **more,
    )


def talk(first):
    """A conversation that goes on from an answer: its signature must come back as it was."""
    return [
        types.Content(role="user", parts=[types.Part(text="Hello")]),
        first.candidates[0].content,
        types.Content(role="user", parts=[types.Part(text="And?")]),
    ]


def raised(call):
    told = []
    try:
        told.extend(call())
    except errors.APIError as error:
        seen = {"class": type(error).__name__, "code": error.code, "status": error.status}
        return {**seen, "message": error.message, "told": [chunk.text for chunk in told]}
    return None


def sync_calls(models):
    first = models.generate_content(**ASKED, config=config())
    return {
        "generate": plain(first),
        "tools": plain(models.generate_content(**ASKED, config=config(tools=[TOOL]))),
        "talk": plain(models.generate_content(model=MODEL, contents=talk(first))),
        "odd model": plain(models.generate_content(model="gemini-tuned+v1@2", contents="Hello")),
        "stream": [plain(chunk) for chunk in models.generate_content_stream(**ASKED, config=config())],
        "tokens": plain(models.count_tokens(**ASKED)),
        "embed": plain(models.embed_content(model="gemini-embedding-001", contents=["one", "zwölf"])),
        "models": [plain(model) for model in models.list()],
        "model": plain(models.get(model=MODEL)),
        "broken": raised(lambda: models.generate_content_stream(model="demo-broken", contents="Hello")),
        "overloaded": raised(lambda: models.generate_content(model="demo-overloaded", contents="Hello")),
        "not found": raised(lambda: models.generate_content_stream(model="nobody", contents="Hello")),
    }


async def async_calls(client):
    async with client.aio as aclient:
        models = aclient.models
        stream = [plain(chunk) async for chunk in await models.generate_content_stream(**ASKED)]
        return {
            "generate": plain(await models.generate_content(**ASKED)),
            "stream": stream,
            "tokens": plain(await models.count_tokens(**ASKED)),
            "embed": plain(await models.embed_content(model="gemini-embedding-001", contents="one")),
        }


def main(base_url, key, api_version):
    options = types.HttpOptions(base_url=base_url, api_version=api_version)
    with genai.Client(api_key=key, http_options=options) as client:
        seen = sync_calls(client.models)
    again = genai.Client(api_key=key, http_options=options)
    print(json.dumps({"sync": seen, "async": asyncio.run(async_calls(again))}))


main(*sys.argv[1:])
