"""A Gemini stream under its real SDK, sync and async; prints one JSON object. Arguments: BASE_URL KEY."""

import asyncio
import json
import sys

from google import genai
from google.genai import types

ASKED = {"model": "gemini-2.5-flash", "contents": "Sag »grüß Gott« 🙂, please"}


def plain(answer):
    return answer.model_dump(mode="json", exclude_none=True, exclude={"sdk_http_response"})


async def async_stream(client):
    async with client.aio as aclient:
        return [plain(chunk) async for chunk in await aclient.models.generate_content_stream(**ASKED)]


def main(base_url, key):
    options = types.HttpOptions(base_url=base_url, api_version="v1beta")
    with genai.Client(api_key=key, http_options=options) as client:
        seen = [plain(chunk) for chunk in client.models.generate_content_stream(**ASKED)]
    again = genai.Client(api_key=key, http_options=options)
    print(json.dumps({"sync": seen, "async": asyncio.run(async_stream(again))}))


main(*sys.argv[1:])
