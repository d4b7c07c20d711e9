"""Pydantic AI's models of OpenAI and Anthropic; prints one JSON list. Argument: a JSON list of models.

A model has a class, a name and a base URL.
"""

import asyncio
import json
import sys

from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

SAID = "Sag »grüß Gott« 🙂, please"


def made(kind, name, base_url):
    credentials = {"base_url": base_url, "api_key": "sk-test-client"}
    match kind:
        case "chat":
            return OpenAIChatModel(name, provider=OpenAIProvider(**credentials))
        case "responses":
            return OpenAIResponsesModel(name, provider=OpenAIProvider(**credentials))
        case "anthropic":
            return AnthropicModel(name, provider=AnthropicProvider(**credentials))


def seen(usage):
    return [usage.input_tokens, usage.output_tokens]


async def asked(model):
    agent = Agent(model)
    answer = await agent.run(SAID)
    async with agent.run_stream(SAID) as stream:
        words = [word async for word in stream.stream_text(delta=True, debounce_by=None)]
    return {
        "run": [answer.output, seen(answer.usage)],
        "stream": [words, seen(stream.usage)],
    }


async def main(models):
    return [await asked(made(**model)) for model in models]


print(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))))
