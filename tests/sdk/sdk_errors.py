"""What a real SDK raises for the proxy's own errors; prints one JSON object. Arguments: BASE_URL KEY."""

import asyncio
import json
import sys

import anthropic

ASKED = {"model": "claude-2", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}
CALLS = {
    "bad_fallback": {**ASKED, "extra_body": {"fallbacks": ["nowhere/claude-2"]}},
    "mixed_fallbacks": {**ASKED, "extra_body": {"fallbacks": ["backup/claude-2", {"model": "claude-2"}]}},
    "too_large": {**ASKED, "messages": [{"role": "user", "content": "x" * 200_000}]},
    "too_large_stream": {**ASKED, "messages": [{"role": "user", "content": "x" * 200_000}], "stream": True},
    "unreachable": {**ASKED, "model": "dead/claude-2"},
    "unreachable_stream": {**ASKED, "model": "dead/claude-2", "stream": True},
    "overloaded": {**ASKED, "model": "demo-overloaded"},
    "upstream_400": {**ASKED, "max_tokens": -1},
}


def seen(error):
    return {
        "class": type(error).__name__,
        "status": error.status_code,
        "request_id": error.request_id,
        "body_request_id": error.body["request_id"],
        "type": error.body["error"]["type"],
        "message": error.body["error"]["message"],
        "retry_after": error.response.headers.get("retry-after"),
    }


def raised(call, **arguments):
    try:
        call(**arguments)
    except anthropic.APIStatusError as error:
        return seen(error)
    return None


async def async_raised(base_url, key):
    async with anthropic.AsyncAnthropic(base_url=base_url, api_key=key, max_retries=0) as client:
        try:
            await client.messages.create(**CALLS["bad_fallback"])
        except anthropic.APIStatusError as error:
            return seen(error)
    return None


def main(base_url, key):
    with anthropic.Anthropic(base_url=base_url, api_key=key, max_retries=0) as client:
        nobody = client.with_options(api_key="sk-bf-nobody")
        nowhere = client.with_options(base_url=base_url.removesuffix("/anthropic") + "/nowhere")
        result = {name: raised(client.messages.create, **call) for name, call in CALLS.items()}
        result["unknown_virtual_key"] = raised(nobody.messages.create, **ASKED)
        result["unknown_path"] = raised(nowhere.messages.create, **ASKED)
        result["upstream_404"] = raised(client.models.retrieve, model_id="nobody")
        result["proxy_goes_on"] = client.messages.create(**ASKED).model
    result["async_bad_fallback"] = asyncio.run(async_raised(base_url, key))
    print(json.dumps(result))


main(*sys.argv[1:])
