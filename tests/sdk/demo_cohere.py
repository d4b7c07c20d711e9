"""The Cohere SDK with nothing but its variables set: JSON and a stream; prints one JSON object."""

import json

import cohere

ASKED = {"model": "command-a-03-2025", "messages": [{"role": "user", "content": "Say »grüß Gott«"}]}


def main():
    with cohere.ClientV2() as client:
        whole = client.chat(**ASKED)
        events = list(client.chat_stream(**ASKED))
        try:
            client.models.get("nobody")
            error = None
        except cohere.NotFoundError as raised:
            error = [raised.status_code, sorted(raised.body)]
        texts = [event.delta.message.content.text for event in events if event.type == "content-delta"]
        ended = events[-1].delta
        seen = {
            "whole": whole.message.content[0].text,
            "stream": "".join(texts),
            "usage": [usage.billed_units.dict() for usage in (whole.usage, ended.usage)],
            "reason": ended.finish_reason,
            "models": [model.name for model in client.models.list().models],
            "error": error,
        }
    print(json.dumps(seen))


main()
