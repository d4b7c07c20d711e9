"""Providers that need no base URLs in a config."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Known(NamedTuple):
    """A provider as its own documents describe it."""

    base_urls: Mapping[str, str]
    variables: tuple[str, ...] = ()
    is_key_less: bool = False


PROVIDERS: Mapping[str, Known] = MappingProxyType(
    {
        "anthropic": Known(
            {"anthropic": "https://api.anthropic.com", "openai": "https://api.anthropic.com/v1"},
            ("ANTHROPIC_API_KEY",),
        ),
        "openai": Known({"openai": "https://api.openai.com/v1"}, ("OPENAI_API_KEY",)),
        "gemini": Known(
            {"genai": "https://generativelanguage.googleapis.com"}, ("GEMINI_API_KEY", "GOOGLE_API_KEY")
        ),
        "cohere": Known({"cohere": "https://api.cohere.com"}, ("COHERE_API_KEY", "CO_API_KEY")),
        "groq": Known({"openai": "https://api.groq.com/openai/v1"}, ("GROQ_API_KEY",)),
        "ollama": Known({"openai": "http://localhost:11434/v1"}, (), True),
        "bedrock": Known(
            {
                "bedrock": "https://bedrock-runtime.{region}.amazonaws.com",
                "anthropic": "https://bedrock-runtime.{region}.amazonaws.com/anthropic",
            }
        ),
    }
)
