"""Legacy completions under the last SDK that has them; prints one JSON object. Arguments: BASE_URL KEY."""

import asyncio
import json
import sys

import anthropic

ASKED = {
    "model": "claude-2",
    "max_tokens_to_sample": 64,
    "prompt": "\n\nHuman: Sag »grüß Gott«\n\nAssistant:",
}


async def async_main(base_url, key):
    async with anthropic.AsyncAnthropic(base_url=base_url, api_key=key, max_retries=0) as client:
        created = await client.completions.create(**ASKED)
        events = [event async for event in await client.completions.create(**ASKED, stream=True)]
    return {"create": created.completion, "stream": [event.completion for event in events]}


def main(base_url, key):
    with anthropic.Anthropic(base_url=base_url, api_key=key, max_retries=0) as client:
        created = client.completions.create(**ASKED)
        events = list(client.completions.create(**ASKED, stream=True))
        with client.completions.with_streaming_response.create(**ASKED, stream=True) as response:
            pings = "".join(response.iter_text()).count("event: ping\n")
    result = {
        "create": created.completion,
        "model": created.model,
        "stop_reason": created.stop_reason,
        "stream": [event.completion for event in events],
        "stream_stop_reasons": [event.stop_reason for event in events],
        "pings": pings,
        "async": asyncio.run(async_main(base_url, key)),
    }
    print(json.dumps(result))


main(*sys.argv[1:])
