"""Providers that need no base URLs in a config: where they are, and what their keys are called.

Facts
  - A base URL means what the SDK of its wire format means by it: OpenAI's ends in its version, Anthropic's
    does not. So an endpoint at ``https://HOST/x/v1/messages`` has the base ``https://HOST/x``.
  - Beside each entry stands where it is documented: in the provider's own SDK, which was read, or on a page,
    of which only copies could be read on 2026-11-22, and only what others quote of MiniMax's OpenAI page and
    of Moonshot's, NVIDIA's, Parasail's and Z.ai's. ``{region}`` is a region of AWS.
  - Of the providers that speak Anthropic's format beside their own, some document their key as a bearer, as
    Claude Code sends ``ANTHROPIC_AUTH_TOKEN``, and not as ``x-api-key``.

Rules
  1. A name is Bifrost's where it has one, for clients write it in front of models.
  2. What is documented nowhere stays out. Of several regions, the one that the pages begin with stands here.

Not here: Azure's address, for every resource has its own. llama.cpp, whose server listens on 8080, as this
proxy does: it would ask itself. Models and prices.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Known(NamedTuple):
    """A provider as its own documents describe it."""

    base_urls: Mapping[str, str]
    """By wire format; empty where there is no address but the user's own."""
    variables: tuple[str, ...] = ()
    """The environment variables in which its SDK looks for a key; of two, the first that is set counts."""
    is_key_less: bool = False
    """Whether it wants no key, unless its user has set one."""
    bearers: tuple[str, ...] = ()
    """The wire formats in which it wants its key as a bearer, although the format has a field for it."""


PROVIDERS: Mapping[str, Known] = MappingProxyType(
    {
        # platform.claude.com, API overview, and OpenAI SDK compatibility
        "anthropic": Known(
            {"anthropic": "https://api.anthropic.com", "openai": "https://api.anthropic.com/v1"},
            ("ANTHROPIC_API_KEY",),
        ),
        # openai 3.54.0
        "openai": Known({"openai": "https://api.openai.com/v1"}, ("OPENAI_API_KEY",)),
        # openai 3.54.0, lib/azure.py
        "azure": Known({}, ("AZURE_OPENAI_API_KEY",)),
        # google-genai 3.4.0, which prefers GOOGLE_API_KEY; ai.google.dev, OpenAI compatibility
        "gemini": Known(
            {
                "genai": "https://generativelanguage.googleapis.com",
                "openai": "https://generativelanguage.googleapis.com/v1beta/openai",
            },
            ("GOOGLE_API_KEY", "GEMINI_API_KEY"),
        ),
        # cohere 7.3.1, which prefers CO_API_KEY; docs.cohere.com, compatibility API
        "cohere": Known(
            {"cohere": "https://api.cohere.com", "openai": "https://api.cohere.ai/compatibility/v1"},
            ("CO_API_KEY", "COHERE_API_KEY"),
        ),
        # docs.aws.amazon.com/bedrock: inference with the Messages API, with the Responses API; API keys
        "bedrock": Known(
            {
                "bedrock": "https://bedrock-runtime.{region}.amazonaws.com",
                "anthropic": "https://bedrock-runtime.{region}.amazonaws.com/anthropic",
                "openai": "https://bedrock-runtime.{region}.amazonaws.com/openai/v1",
            },
            ("AWS_BEARER_TOKEN_BEDROCK",),
        ),
        # docs.aws.amazon.com/bedrock: bedrock-mantle
        "bedrock_mantle": Known(
            {
                "anthropic": "https://bedrock-mantle.{region}.api.aws/anthropic",
                "openai": "https://bedrock-mantle.{region}.api.aws/v1",
            },
            ("AWS_BEARER_TOKEN_BEDROCK",),
        ),
        # cerebras-cloud-sdk 1.91.0
        "cerebras": Known({"openai": "https://api.cerebras.ai/v1"}, ("CEREBRAS_API_KEY",)),
        # api-docs.deepseek.com, first call; guides/anthropic_api: "x-api-key: fully supported"
        "deepseek": Known(
            {"openai": "https://api.deepseek.com", "anthropic": "https://api.deepseek.com/anthropic"},
            ("DEEPSEEK_API_KEY",),
        ),
        # fireworks-ai 1.2.30, resources/chat/completions.py and resources/messages.py
        "fireworks": Known(
            {
                "openai": "https://api.fireworks.ai/inference/v1",
                "anthropic": "https://api.fireworks.ai/inference",
            },
            ("FIREWORKS_API_KEY",),
            bearers=("anthropic",),
        ),
        # groq 1.7.0
        "groq": Known({"openai": "https://api.groq.com/openai/v1"}, ("GROQ_API_KEY",)),
        # huggingface_hub 2.4.0, inference/_providers/_common.py and utils/_auth.py
        "huggingface": Known(
            {"openai": "https://router.huggingface.co/v1"}, ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
        ),
        # lmstudio.ai/docs/developer: openai-compat, anthropic-compat
        "lmstudio": Known(
            {"openai": "http://localhost:1234/v1", "anthropic": "http://localhost:1234"},
            ("LM_API_TOKEN",),
            is_key_less=True,
        ),
        # platform.minimax.io/docs/api-reference: text-openai-api, text-anthropic-api
        "minimax": Known(
            {"openai": "https://api.minimax.io/v1", "anthropic": "https://api.minimax.io/anthropic"},
            ("MINIMAX_API_KEY",),
        ),
        # mistralai 3.7.0
        "mistral": Known({"openai": "https://api.mistral.ai/v1"}, ("MISTRAL_API_KEY",)),
        # platform.kimi.ai/docs, API overview; Claude Code guide
        "moonshot": Known(
            {"openai": "https://api.moonshot.ai/v1", "anthropic": "https://api.moonshot.ai/anthropic"},
            ("MOONSHOT_API_KEY",),
            bearers=("anthropic",),
        ),
        # docs.tokenfactory.nebius.com/api-reference/introduction
        "nebius": Known({"openai": "https://api.tokenfactory.nebius.com/v1"}, ("NEBIUS_API_KEY",)),
        # build.nvidia.com, API catalog
        "nvidia": Known({"openai": "https://integrate.api.nvidia.com/v1"}, ("NVIDIA_API_KEY",)),
        # docs.ollama.com, OpenAI compatibility and Anthropic compatibility
        "ollama": Known(
            {"openai": "http://localhost:11434/v1", "anthropic": "http://localhost:11434"},
            is_key_less=True,
        ),
        # openrouter 1.3.84; openrouter.ai/docs/guides/coding-agents/claude-code-integration
        "openrouter": Known(
            {"openai": "https://openrouter.ai/api/v1", "anthropic": "https://openrouter.ai/api"},
            ("OPENROUTER_API_KEY",),
            bearers=("anthropic",),
        ),
        # docs.parasail.io, API reference, authentication
        "parasail": Known({"openai": "https://api.parasail.io/v1"}, ("PARASAIL_API_KEY",)),
        # perplexityai 0.46.1: /v1/responses, /v1/models, /v1/embeddings. Sonar's /chat/completions, which was
        # without a version, ended on 2026-09-27 (docs.perplexity.ai, migrate from Sonar).
        "perplexity": Known({"openai": "https://api.perplexity.ai/v1"}, ("PERPLEXITY_API_KEY",)),
        # sambanova 1.13.0
        "sambanova": Known(
            {"openai": "https://api.sambanova.ai/v1", "anthropic": "https://api.sambanova.ai"},
            ("SAMBANOVA_API_KEY",),
            bearers=("anthropic",),
        ),
        # docs.sglang.io/docs/basic_usage: send_request, anthropic_api
        "sgl": Known(
            {"openai": "http://localhost:30000/v1", "anthropic": "http://localhost:30000"},
            is_key_less=True,
        ),
        # together 3.1.1; it was api.together.xyz before
        "together": Known({"openai": "https://api.together.ai/v1"}, ("TOGETHER_API_KEY",)),
        # docs.vllm.ai: OpenAI-compatible server; serving/integrations/claude_code
        "vllm": Known(
            {"openai": "http://localhost:8000/v1", "anthropic": "http://localhost:8000"},
            is_key_less=True,
        ),
        # xai-sdk 1.21.0; docs.x.ai, API reference. Its Anthropic format is deprecated.
        "xai": Known({"openai": "https://api.x.ai/v1"}, ("XAI_API_KEY",)),
        # zai-sdk 0.2.3; docs.z.ai/devpack/tool/claude
        "zai": Known(
            {"openai": "https://api.z.ai/api/paas/v4", "anthropic": "https://api.z.ai/api/anthropic"},
            ("ZAI_API_KEY",),
            bearers=("anthropic",),
        ),
    }
)
