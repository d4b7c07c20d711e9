"""The wire formats: one table, and one module for each.

To add one, write its module and put it here. A field for credentials that is new stands in
`headers.CREDENTIALS`, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .anthropic import ANTHROPIC
from .azure import AZURE
from .bedrock import BEDROCK
from .cohere import COHERE
from .format import Fields, Format, Listing, Place
from .genai import GENAI
from .openai import OPENAI

__all__ = ["ANTHROPIC", "FORMATS", "Fields", "Format", "Listing", "Place"]

FORMATS: Mapping[str, Format] = MappingProxyType(
    {each.name: each for each in (ANTHROPIC, OPENAI, AZURE, GENAI, COHERE, BEDROCK)}
)
"""By name."""
