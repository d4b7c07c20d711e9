"""Messages under a real SDK, sync and async; prints one JSON object. Arguments: BASE_URL KEY."""

import asyncio
import json
import sys

import anthropic


def asked(text="Sag »grüß Gott« 🙂, please", **more):
    messages = [{"role": "user", "content": text}]
    return {"model": "claude-haiku-4-5", "max_tokens": 64, "messages": messages, **more}


def error_seen(error):
    return {
        "class": type(error).__name__,
        "status": error.status_code,
        "request_id": error.request_id,
        "type": error.body["error"]["type"],
    }


def sync_calls(client):
    created = client.messages.create(**asked())
    with client.messages.stream(**asked()) as stream:
        words = list(stream.text_stream)
        streamed = stream.get_final_message()
    raw = [event.type for event in client.messages.create(**asked(), stream=True)]
    with client.messages.stream(**asked(model="demo-thinking")) as stream:
        thought = stream.get_final_message()
    told = []
    with client.messages.stream(**asked(model="demo-error")) as stream:
        try:
            for word in stream.text_stream:
                told.append(word)
            broken = None
        except anthropic.APIStatusError as error:
            broken = error_seen(error)
    with client.messages.with_streaming_response.create(**asked(), stream=True) as response:
        pings = "".join(response.iter_text()).count("event: ping\n")
    counted = client.messages.count_tokens(model="claude-2", messages=asked()["messages"])
    return {
        "create": created.to_dict(mode="json"),
        "create_request_id": created._request_id,
        "stream": streamed.to_dict(mode="json"),
        "stream_words": words,
        "raw": raw,
        "thinking": thought.to_dict(mode="json")["content"],
        "error": broken,
        "error_words": told,
        "pings": pings,
        "tokens": counted.input_tokens,
    }


async def async_calls(client):
    created = await client.messages.create(**asked())
    async with client.messages.stream(**asked()) as stream:
        words = [word async for word in stream.text_stream]
        streamed = await stream.get_final_message()
    raw = [event.type async for event in await client.messages.create(**asked(), stream=True)]
    both = await asyncio.gather(*(client.messages.create(**asked(f"call {n}")) for n in range(5)))
    return {
        "create": created.to_dict(mode="json"),
        "stream": streamed.to_dict(mode="json"),
        "stream_words": words,
        "raw": raw,
        "together": [message.content[0].text for message in both],
    }


async def async_main(base_url, key):
    async with anthropic.AsyncAnthropic(base_url=base_url, api_key=key, max_retries=0) as client:
        return await async_calls(client)


def main(base_url, key):
    with anthropic.Anthropic(base_url=base_url, api_key=key, max_retries=0) as client:
        sync = sync_calls(client)
    print(json.dumps({"sync": sync, "async": asyncio.run(async_main(base_url, key))}))


main(*sys.argv[1:])
