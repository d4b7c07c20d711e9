"""The client of LiteLLM; prints one JSON list. Argument: a JSON list of models.

A model has a name, which begins with the provider that LiteLLM is to speak to, and a base URL.
"""

import json
import sys

import litellm

# It prints advice about models that it does not know.
litellm.suppress_debug_info = True

SAID = "Sag »grüß Gott« 🙂, please"


def asked(name, base_url):
    call = {
        "model": name,
        "api_base": base_url,
        "api_key": "sk-test-client",
        "messages": [{"role": "user", "content": SAID}],
        "max_tokens": 64,
    }
    answer = litellm.completion(**call)
    return {
        "completion": [answer.choices[0].message.content, answer.usage.total_tokens],
        "stream": [chunk.choices[0].delta.content for chunk in litellm.completion(**call, stream=True)],
    }


print(json.dumps([asked(**model) for model in json.loads(sys.argv[1])]))
