"""Other targets than the default one, with the real Cohere SDK; prints one JSON object.

Arguments: BASE_URL KEY.
"""

import json
import sys

import cohere

SECOND = "cohere2/command-r7b-12-2024"
BODY = {"additional_body_parameters": {"fallbacks": [SECOND]}}
HEADER = {"additional_headers": {"x-bf-fallbacks": f"cohere2/demo-overloaded, {SECOND}"}}
MESSAGES = [{"role": "user", "content": "Hello"}]
SOUND = ("a.wav", b"RIFF\r\n--sound", "audio/wav")
V2 = {
    "body": ("demo-overloaded", BODY),
    "header": ("demo-overloaded", HEADER),
    "prefix": (SECOND, {}),
    "prefix of the default": ("cohere/command-r7b-12-2024", {}),
    "alias": ("ours", {}),
    "broken": ("dead/command-r7b-12-2024", BODY),
}


def served(response):
    fields = response.headers
    return {name[10:]: value for name, value in fields.items() if name.startswith("x-bifrost-")}


def v2_calls(client):
    seen = {}
    for name, (model, more) in V2.items():
        asked = {"model": model, "messages": MESSAGES, "request_options": {"max_retries": 0, **more}}
        answer = client.with_raw_response.chat(**asked)
        seen[name] = {"text": answer.data.message.content[0].text, "served": served(answer)}
        with client.with_raw_response.chat_stream(**asked) as stream:
            texts = [
                event.delta.message.content.text for event in stream.data if event.type == "content-delta"
            ]
            seen[f"{name}, stream"] = {"text": "".join(texts), "served": served(stream)}
    heard = {"model": "cohere2/cohere-transcribe-03-2026", "language": "de", "file": SOUND}
    seen["transcription"] = client.audio.transcriptions.create(**heard).text
    rank = {"query": "long", "documents": ["a", "abc", "ab"]}
    ranked = client.rerank(model="cohere2/rerank-v3.5", **rank)
    seen["rerank"] = [result.index for result in ranked.results]
    return seen


def v1_calls(client):
    def told(model, **more):
        options = {"request_options": {"max_retries": 0, **more}}
        named = {"model": model} if model else {}
        answer = client.with_raw_response.chat(message="Hello", **named, **options)
        with client.with_raw_response.chat_stream(message="Hello", **named, **options) as stream:
            texts = [event.text for event in stream.data if event.event_type == "text-generation"]
            return {
                "text": answer.data.text,
                "served": served(answer),
                "stream": "".join(texts),
                "stream_served": served(stream),
            }

    return {
        "prefix": told(SECOND),
        "body": told("demo-overloaded", **BODY),
        "header": told("demo-overloaded", **HEADER),
        "no model": told(None),
        "tokens": client.tokenize(text="one two", model=SECOND, offline=False).tokens,
    }


def main(base_url, key):
    with cohere.ClientV2(key, base_url=base_url) as client:
        v2 = v2_calls(client)
    with cohere.Client(key, base_url=base_url) as client:
        v1 = v1_calls(client)
    print(json.dumps({"v2": v2, "v1": v1}))


main(*sys.argv[1:])
