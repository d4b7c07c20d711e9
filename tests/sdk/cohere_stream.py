"""A Cohere v2 stream under its real SDK, sync and async; prints one JSON object. Arguments: BASE_URL KEY."""

import asyncio
import json
import sys

import cohere

ASKED = {
    "model": "command-r7b-12-2024",
    "messages": [{"role": "user", "content": "Sag »grüß Gott« 🙂, please"}],
}


def plain(answer):
    return json.loads(answer.json())


async def async_stream(base_url, key):
    async with cohere.AsyncClientV2(key, base_url=base_url) as client:
        return [plain(event) async for event in client.chat_stream(**ASKED)]


def main(base_url, key):
    with cohere.ClientV2(key, base_url=base_url) as client:
        seen = [plain(event) for event in client.chat_stream(**ASKED)]
    print(json.dumps({"sync": seen, "async": asyncio.run(async_stream(base_url, key))}))


main(*sys.argv[1:])
