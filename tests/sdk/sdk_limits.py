"""What a real SDK raises when a key may not, or upstream says nothing. Arguments: BASE_URL ALICE BOB."""

import json
import sys

import anthropic

ASKED = {"max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}


def raised(client, model, key, stream):
    try:
        client.with_options(api_key=key).messages.create(**ASKED, model=model, stream=stream)
    except anthropic.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.body["error"]["type"], error.request_id]
    return None


def main(base_url, alice, bob):
    with anthropic.Anthropic(base_url=base_url, api_key=alice, max_retries=0) as client:
        raised(client, "silent/claude-2", bob, False)  # The one request that Bob has.
        result = [
            [
                raised(client, "claude-opus-4-5", alice, stream),
                raised(client, "claude-2", bob, stream),
                raised(client, "silent/claude-2", alice, stream),
            ]
            for stream in (False, True)
        ]
    print(json.dumps(result))


main(*sys.argv[1:])
