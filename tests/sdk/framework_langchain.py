"""LangChain's models of OpenAI, Azure and Anthropic; prints one JSON list. Argument: a JSON list of models.

A model has a class, a name and a base URL.
"""

import json
import sys

from langchain_anthropic import ChatAnthropic
from langchain_openai import AzureChatOpenAI, ChatOpenAI

SAID = "Sag »grüß Gott« 🙂, please"


def made(kind, name, base_url):
    more = {"model": name, "base_url": base_url, "api_key": "sk-test-client", "max_retries": 0}
    match kind:
        case "chat":
            return ChatOpenAI(**more)
        case "responses":
            return ChatOpenAI(**more, use_responses_api=True)
        case "azure":
            more = {"azure_deployment": name, "azure_endpoint": base_url, "api_key": "sk-test-client"}
            return AzureChatOpenAI(**more, api_version="2025-04-01-preview", max_retries=0)
        case "anthropic":
            return ChatAnthropic(**more, max_tokens=64)


def seen(answer):
    return {"content": answer.content, "usage": answer.usage_metadata}


def asked(model):
    return {
        "invoke": seen(model.invoke(SAID)),
        "stream": [seen(chunk) for chunk in model.stream(SAID)],
    }


print(json.dumps([asked(made(**model)) for model in json.loads(sys.argv[1])]))
