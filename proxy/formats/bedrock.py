"""Amazon Bedrock's wire format.

Facts
  - The model stands in the path, percent-encoded: ``/model/{modelId}/converse`` (Bedrock Runtime API
    reference). It may be an ARN, with ``/`` as ``%2F``.
  - Streams are ``application/vnd.amazon.eventstream``, frames with checksums: no ping can stand between them.
  - An error is ``{"message":M}`` with its name in the field ``x-amzn-ErrorType`` (Smithy, AWS restJson1).
  - Requests are signed (AWS Signature Version 4), over the body too, or carry a bearer key.
  - Converse tells ``inputTokens`` without what its cache read and wrote, which stand beside it; InvokeModel
    passes the model's own answer (API reference, TokenUsage).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from proxy.errors import ProxyError
from proxy.usage import shape

from .format import Fields, Format, Method, text

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
    "outputTokens": "output_tokens",
    "cacheReadInputTokens": "cache_read_input_tokens",
    "cacheWriteInputTokens": "cache_creation_input_tokens",
}


def _error(error: ProxyError, _: str) -> dict[str, Any]:
    return {"message": text(error)}


def _error_fields(error: ProxyError) -> Fields:
    default = b"InternalServerException" if error.status >= 500 else b"ValidationException"
    return ((b"x-amzn-ErrorType", _TYPES.get(error.status, default)),)


def _normal(found: Mapping[str, int]) -> dict[str, int]:
    return {_NAMES.get(name, name): value for name, value in found.items()}


BEDROCK = Format(
    name="bedrock",
    roots=((b"/bedrock/", b"/bedrock"),),
    paths=MappingProxyType({}),
    named=re.compile(
        rb"/model/(?P<model>.+)/(?P<method>%b)" % b"|".join(each.name.encode() for each in _METHODS), re.I
    ),
    methods=MappingProxyType({method.name.encode(): method for method in _METHODS}),
    label_of_named="/bedrock/model/{model}/",
    safe="-._~:",
    # No query asks for server-sent events.
    events=b"\0",
    holds_all=True,
    credential=(b"Authorization", b"Bearer "),
    request_id=b"x-amzn-RequestId",
    error=_error,
    member="message",
    error_fields=_error_fields,
    is_error=re.compile(rb"(?!)"),
    event=None,
    ping=b"",
    free=frozenset(("/bedrock/model/{model}/count-tokens",)),
    usage=shape(
        b'"usage"',
        "inputTokens outputTokens cacheReadInputTokens cacheWriteInputTokens input_tokens output_tokens"
        " cache_creation_input_tokens cache_read_input_tokens",
        _normal,
    ),
)
