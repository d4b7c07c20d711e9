"""Amazon Bedrock's wire format.

Facts
  - The model stands in the path, percent-encoded: ``/model/{modelId}/converse`` (Bedrock Runtime API
    reference). It may be an ARN, with ``/`` as ``%2F``.
  - Streams are ``application/vnd.amazon.eventstream``, frames with checksums: no ping can stand between.
    A frame is its length in four bytes, that of its headers, a checksum, headers, payload, a checksum; a
    header is a name, a type, 7 for a text, and its value (Amazon Transcribe guide, event stream encoding).
  - An error is ``{"message":M}`` with its name in the field ``x-amzn-ErrorType`` (Smithy, AWS restJson1).
  - Requests are signed (AWS Signature Version 4), over the body too, or carry a bearer key.
  - Converse tells ``inputTokens`` without what its cache read and wrote, which stand beside it; of the latter
    ``cacheDetails`` says again how much is kept for how long (API reference, TokenUsage, CacheDetail).
    InvokeModel passes the model's own answer; its streams end with metrics for every model (`unwrapping`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from proxy.errors import ProxyError
from proxy.usage import shape

from . import anthropic
from .format import Fields, Format, Method, text
from .unwrapping import Unwrapping

_TYPES = {
    401: b"AccessDeniedException",
    402: b"ServiceQuotaExceededException",
    403: b"AccessDeniedException",
    404: b"ResourceNotFoundException",
    408: b"ModelTimeoutException",
    429: b"ThrottlingException",
    503: b"ServiceUnavailableException",
    504: b"ModelTimeoutException",
}
"""By status; other 4xx are a ``ValidationException``, other 5xx an ``InternalServerException``."""

_METHODS = (
    Method("converse"),
    Method("converse-stream", stream=True),
    Method("invoke"),
    Method("invoke-with-response-stream", stream=True),
    Method("count-tokens"),
)

_NAMES = {
    "inputTokens": "input_tokens",
    "inputTokenCount": "input_tokens",
    "prompt_tokens": "input_tokens",
    "outputTokens": "output_tokens",
    "outputTokenCount": "output_tokens",
    "completion_tokens": "output_tokens",
    "cacheReadInputTokens": "cache_read_input_tokens",
    "cacheReadInputTokenCount": "cache_read_input_tokens",
    "cacheWriteInputTokens": "cache_creation_input_tokens",
    "cacheWriteInputTokenCount": "cache_creation_input_tokens",
}
"""Converse's and the metrics' own, and those of models in OpenAI's format, by Anthropic's."""

_DETAILS = re.compile(rb'"cacheDetails"\s*+:\s*+\[[^\]]*+')
_DETAIL = re.compile(rb"\{[^{}]*+\}")
_HOUR = re.compile(rb'"ttl"\s*+:\s*+"1h"')


def _error(error: ProxyError, _: str) -> dict[str, Any]:
    return {"message": text(error)}


def _error_fields(error: ProxyError) -> Fields:
    default = b"InternalServerException" if error.status >= 500 else b"ValidationException"
    return ((b"x-amzn-ErrorType", _TYPES.get(error.status, default)),)


def _first_frame(data: bytes) -> bytes | None:
    """A frame begins with its length, which is not judged here: one that is too short is no error either."""
    size = int.from_bytes(data[:4], "big")
    return data[: max(size, 4)] if len(data) >= max(size, 4) else None


def _read(counts: re.Pattern[bytes], text: bytes) -> dict[str, int]:
    found = anthropic.read_with_iterations(counts, _DETAILS.sub(b"", text))
    for details in _DETAILS.findall(text):
        for detail in filter(_HOUR.search, _DETAIL.findall(details)):
            for _, value in counts.findall(detail):
                found["ephemeral_1h_input_tokens"] = int(value)
    return found


def _normal(found: Mapping[str, int]) -> dict[str, int]:
    return anthropic.normal({_NAMES.get(name, name): value for name, value in found.items()})


BEDROCK = Format(
    name="bedrock",
    roots=((b"/bedrock/", b"/bedrock"),),
    paths=MappingProxyType({}),
    model_path=re.compile(
        rb"/model/(?P<model>.+)/(?P<method>%b)" % b"|".join(each.name.encode() for each in _METHODS), re.I
    ),
    methods=MappingProxyType({method.name.encode(): method for method in _METHODS}),
    model_path_label="/bedrock/model/{model}/",
    safe="-._~:",
    # No query asks for server-sent events.
    sse_query=b"\0",
    holds_all=True,
    credential=(b"Authorization", b"Bearer "),
    request_id=b"x-amzn-RequestId",
    error=_error,
    error_member="message",
    error_fields=_error_fields,
    stream_type=b"application/vnd.amazon.eventstream",
    first_event=_first_frame,
    is_error=re.compile(rb":message-type\x07\x00(?:\x09exception|\x05error)"),
    event=None,
    ping=b"",
    free_paths=re.compile(rb"/model-invocation-job/[^/]+/stop"),
    free=frozenset(("/bedrock/model/{model}/count-tokens",)),
    usage=shape(
        b'"usage"',
        " ".join((*_NAMES, *dict.fromkeys(_NAMES.values()), "ephemeral_1h_input_tokens")),
        _normal,
        _read,
        firsts=1,
        unwrap=Unwrapping,
    ),
)
