"""Verbatim: a reverse proxy for LLM APIs that never re-encodes a body."""

__version__ = "0.1.0"
