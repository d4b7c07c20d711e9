"""Fallbacks that a real SDK asks for in its body; prints one JSON object. Arguments: BASE_URL KEY."""

import json
import sys

import anthropic

ASKED = {"model": "demo-overloaded", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}
FALLBACKS = {"fallbacks": ["demo/demo-overloaded", "backup/claude-2"]}


def served(headers):
    names = ("provider", "resolved-model", "original-model", "fallback-index", "attempts")
    return {name: headers.get(f"x-bifrost-{name}") for name in names}


def main(base_url, key):
    with anthropic.Anthropic(base_url=base_url, api_key=key, max_retries=0) as client:
        raw = client.messages.with_raw_response.create(**ASKED, extra_body=FALLBACKS)
        with client.messages.stream(**ASKED, extra_body=FALLBACKS) as stream:
            text = stream.get_final_text()
            streamed = served(stream.response.headers)
        primary = client.messages.with_raw_response.create(
            **{**ASKED, "model": "claude-2"}, extra_body=FALLBACKS
        )
    result = {
        "create": {"text": raw.parse().content[0].text, "served": served(raw.headers)},
        "stream": {"text": text, "served": streamed},
        "primary": {"text": primary.parse().content[0].text, "served": served(primary.headers)},
    }
    print(json.dumps(result))


main(*sys.argv[1:])
