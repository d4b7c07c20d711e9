"""Completions under the SDK of API version 2023-01-01; prints one JSON object. Arguments: BASE_URL KEY."""

import asyncio
import json
import sys

import anthropic

ASKED = {
    "model": "claude-v1",
    "max_tokens_to_sample": 64,
    "prompt": "\n\nHuman: Sag »grüß Gott«\n\nAssistant:",
}


async def async_main(client):
    created = await client.acompletion(**ASKED)
    events = [event async for event in await client.acompletion_stream(**ASKED)]
    return {"create": created["completion"], "stream": [event["completion"] for event in events]}


def main(base_url, key):
    client = anthropic.Client(key, api_url=base_url + "/")
    created = client.completion(**ASKED)
    events = list(client.completion_stream(**ASKED))
    try:
        client.completion(**{**ASKED, "model": "nobody/claude-v1", "fallbacks": ["nobody/claude-v1"]})
        refused = None
    except anthropic.ApiException as error:
        refused = error.args[1]["error"]
    result = {
        "version": anthropic.ANTHROPIC_CLIENT_VERSION,
        "create": created["completion"],
        "stream": [event["completion"] for event in events],
        "stream_stop_reasons": [event["stop_reason"] for event in events],
        "refused": refused,
        "async": asyncio.run(async_main(client)),
    }
    print(json.dumps(result))


main(*sys.argv[1:])
