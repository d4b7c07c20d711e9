"""The Gemini SDK with nothing but its variables set: JSON and a stream; prints one JSON object."""

import json

from google import genai
from google.genai import errors

ASKED = {"model": "gemini-2.5-flash", "contents": "Say »grüß Gott«"}


def main():
    with genai.Client() as client:
        whole = client.models.generate_content(**ASKED)
        chunks = list(client.models.generate_content_stream(**ASKED))
        try:
            client.models.get(model="nobody")
            error = None
        except errors.ClientError as raised:
            error = [raised.code, raised.status]
        seen = {
            "whole": whole.text,
            "stream": "".join(chunk.text for chunk in chunks),
            "usage": [answer.usage_metadata.model_dump(exclude_none=True) for answer in (whole, chunks[-1])],
            "reason": chunks[-1].candidates[0].finish_reason,
            "tokens": client.models.count_tokens(**ASKED).total_tokens,
            "models": [model.name for model in client.models.list()],
            "error": error,
        }
    print(json.dumps(seen))


main()
