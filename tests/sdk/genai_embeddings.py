"""Embeddings of other targets than the default one, with the real Gemini SDK; prints one JSON object.

Arguments: BASE_URL KEY.
"""

import json
import sys

from google import genai
from google.genai import types

MODEL = "gemini-embedding-001"
FALLBACK = {"headers": {"x-bf-fallbacks": f"gemini2/{MODEL}"}}
CALLS = {"prefix": (f"gemini2/{MODEL}", {}), "fallback": ("demo-overloaded", FALLBACK)}


def main(base_url, key):
    options = types.HttpOptions(base_url=base_url, api_version="v1beta")
    with genai.Client(api_key=key, http_options=options) as client:
        seen = {}
        for name, (model, more) in CALLS.items():
            config = types.EmbedContentConfig(http_options=more, task_type="RETRIEVAL_QUERY")
            answer = client.models.embed_content(model=model, contents=["one", "zwölf"], config=config)
            seen[name] = [embedding.values for embedding in answer.embeddings]
    print(json.dumps(seen))


main(*sys.argv[1:])
