"""Claude at Bedrock, under Anthropic's SDK; prints one JSON object. Argument: CASES, as JSON.

A case has a name, a client (a class of the SDK), its options, the model, and headers for every request.
"""

import asyncio
import json
import sys

import anthropic

ASKED = {"max_tokens": 64, "messages": [{"role": "user", "content": "Sag »grüß Gott« 🙂, please"}]}


def served(headers):
    return {name: value for name, value in headers.items() if name.startswith("x-bifrost-")}


def told(error):
    seen = {"class": type(error).__name__, "message": error.message}
    if isinstance(error, anthropic.APIStatusError):
        seen |= {"status": error.status_code}
    return seen


def seen(client, model):
    """A message, a stream of one, and who served; or what was raised."""
    try:
        raw = client.messages.with_raw_response.create(model=model, **ASKED)
        with client.messages.with_streaming_response.create(model=model, stream=True, **ASKED) as response:
            events = [event.to_dict(mode="json") for event in response.parse()]
            streamed_by = served(response.headers)
        with client.messages.stream(model=model, **ASKED) as stream:
            final = stream.get_final_message()
    except anthropic.APIError as error:
        return told(error)
    return {
        "message": raw.parse().to_dict(mode="json"),
        "events": events,
        "final": final.to_dict(mode="json"),
        "served": [served(raw.headers), streamed_by],
    }


async def seen_by_async(client, model):
    async with client:
        message = await client.messages.create(model=model, **ASKED)
        async with client.messages.stream(model=model, **ASKED) as stream:
            final = await stream.get_final_message()
    return {"message": message.to_dict(mode="json"), "final": final.to_dict(mode="json")}


def main(cases):
    result = {}
    for name, (kind, options, model, headers) in json.loads(cases).items():
        client = getattr(anthropic, kind)(max_retries=0, default_headers=headers, **options)
        if kind.startswith("Async"):
            result[name] = asyncio.run(seen_by_async(client, model))
        else:
            with client:
                result[name] = seen(client, model)
    print(json.dumps(result))


main(*sys.argv[1:])
