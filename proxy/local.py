"""The local dev proxy: the configuration that there is without a file.

Facts
  - The variables are those that the providers' own SDKs read; of two, the first that is set counts.

Rules
  1. A provider has a key of its own where the environment has one; else the client's credentials go through.

Not here: what a config means (`config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from . import values
from .config import Config, ConfigError, Key, Problem, Provider

_LOCAL = (
    ("anthropic", {"anthropic": "https://api.anthropic.com", "openai": "https://api.anthropic.com/v1"}),
    ("openai", {"openai": "https://api.openai.com/v1"}),
    ("gemini", {"genai": "https://generativelanguage.googleapis.com"}),
    ("cohere", {"cohere": "https://api.cohere.com"}),
)
_VARIABLES = {
    "anthropic": ("ANTHROPIC_API_KEY",),
    "openai": ("OPENAI_API_KEY",),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
}


def local_config(environ: Mapping[str, str]) -> Config:
    """The local dev proxy: the known providers, each with a key from the first of its variables that is set.

    Where none is, the client's own credentials go through. Raises `ConfigError` on a key unfit for a header.
    """
    providers: dict[str, Provider] = {}
    problems: list[Problem] = []
    for name, base_urls in _LOCAL:
        variables = [variable for variable in _VARIABLES[name] if environ.get(variable)]
        keys: tuple[Key, ...] = ()
        try:
            keys = tuple(
                Key(variable, values.checked(environ[variable], variable)) for variable in variables[:1]
            )
        except ValueError as error:
            problems.append(Problem(f"providers.{name}.keys[0].value", 0, str(error)))
        providers[name] = Provider(name, MappingProxyType(base_urls), keys)
    if problems:
        raise ConfigError(problems)
    defaults = {"anthropic": "anthropic", "openai": "openai", "genai": "gemini", "cohere": "cohere"}
    return Config(providers=MappingProxyType(providers), default_providers=MappingProxyType(defaults))
