"""Anthropic's wire format.

Facts
  - An error is ``{"type":"error","error":{"type":T,"message":M},"request_id":R}``, and ``R`` equals the
    ``request-id`` response header (platform.claude.com, API errors page).
  - An OAuth token goes as a bearer, everything else as ``x-api-key`` (authentication page); so do the keys of
    Bedrock, where it speaks this format (AWS, API keys page).
  - The stream has pings of its own: ``event: ping`` with typed data. Clients of API version 2023-01-01 break
    on comments, but skip that event.
  - A message, and the ``message_start`` and ``message_delta`` events of a stream, have a ``usage`` object.
    The counts in ``message_delta`` are cumulative, so the last is the value (streaming messages page). They
    leave out what ``usage.iterations`` lists as ``compaction`` and ``advisor_message``, which is billed too
    (compaction page, advisor tool page).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from proxy.errors import ProxyError
from proxy.usage import read_counts, shape

from .format import ERROR_EVENT, NAMED_ERROR, Format, Listing, Place, text

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""``error.type`` by status; other 4xx are ``invalid_request_error``, other 5xx ``api_error``."""

_APART = "apart "
"""Before the name of a count that the count of that name leaves out."""

_ITERATIONS = re.compile(rb'"iterations"\s*+:\s*+\[[^\]]*+')
_ITERATION = re.compile(rb"\{[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+\}")
_LEFT_OUT = re.compile(rb'"type"\s*+:\s*+"(?:compaction|advisor_message)"')


def read_with_iterations(counts: re.Pattern[bytes], text: bytes) -> dict[str, int]:
    found = read_counts(counts, _ITERATIONS.sub(b"", text))
    for iterations in _ITERATIONS.findall(text):
        for iteration in filter(_LEFT_OUT.search, _ITERATION.findall(iterations)):
            for name, value in read_counts(counts, iteration).items():
                found[_APART + name] = found.get(_APART + name, 0) + value
    return found


def normal(found: Mapping[str, int]) -> dict[str, int]:
    normal: dict[str, int] = {}
    for name, value in found.items():
        own = name.removeprefix(_APART)
        normal[own] = normal.get(own, 0) + value
    return normal


def _error(error: ProxyError, request_id: str) -> dict[str, Any]:
    kind = _TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": text(error)}, "request_id": request_id}


ANTHROPIC = Format(
    name="anthropic",
    roots=((b"/anthropic/", b"/anthropic"),),
    paths=MappingProxyType(
        dict.fromkeys((b"/v1/messages", b"/v1/messages/count_tokens", b"/v1/complete"), Place.BODY)
    ),
    credential=(b"x-api-key", b""),
    bearer_prefixes=("sk-ant-oat", "ABSK", "bedrock-api-key-"),
    request_id=b"request-id",
    error=_error,
    is_error=NAMED_ERROR,
    event=ERROR_EVENT,
    ping=b'event: ping\ndata: {"type": "ping"}\n\n',
    usage=shape(
        b'"usage"',
        "input_tokens output_tokens cache_creation_input_tokens cache_read_input_tokens "
        "ephemeral_1h_input_tokens",
        normal,
        read_with_iterations,
        firsts=1,
    ),
    listing=Listing(b"/v1/models?limit=1000", "data", "id", fields=((b"anthropic-version", b"2023-06-01"),)),
    batches=re.compile(rb"/v1/messages/batches(/[^/]+(/cancel)?)?"),
    free_paths=re.compile(
        rb"/v1/((files|skills|agents|environments|memory_stores|user_profiles|vaults)(/.*)?"
        rb"|messages/batches/[^/]+/cancel|(sessions|deployments|dreams)/[^/]+/(archive|cancel|pause))"
    ),
    free=frozenset(("/anthropic/v1/messages/count_tokens",)),
    pending=MappingProxyType(
        {
            "/anthropic/v1/messages": {
                "type": "message",
                "role": "assistant",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 0, "output_tokens": 0},
            },
            "/anthropic/v1/messages/count_tokens": {"input_tokens": 0},
            "/anthropic/v1/complete": {"type": "completion", "completion": "", "stop_reason": None},
        }
    ),
)
