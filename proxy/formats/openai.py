"""OpenAI's wire format, which many providers speak; and the unified API.

Facts
  - An error is ``{"error":{"message":M,"type":T,"param":null,"code":null}}`` (openai/openai-openapi, schema
    ErrorResponse). SDKs raise for an event of a stream whose data have an ``error``.
  - ``/images/edits`` and its like are forms, ``/images/edits`` also JSON (API reference, images).
  - ``/responses``, ``/images/*`` and ``/moderations`` need no model (API reference).
  - ``usage`` is an object in a whole answer and in the last chunk of a stream, and null before.
    ``cached_tokens`` and ``cache_write_tokens`` are parts of the input (API reference: chat, Responses).
  - ``/rerank``, ``/ocr`` and their like are not OpenAI's; providers that are else compatible have them: vLLM
    (OpenAI-compatible server), Mistral (API reference).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from proxy.errors import ProxyError
from proxy.usage import shape

from .format import COMMENT_PING, ERROR_EVENT, KEY_REFUSAL, Format, Listing, Place, text, with_cache

_TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""``error.type`` by status; other 4xx are ``invalid_request_error``, other 5xx ``server_error``."""

_CODES = {402: "insufficient_quota", 429: "rate_limit_exceeded"}

_IS_ERROR = re.compile(rb'(^|[\r\n])(event:[ ]?error[ ]*[\r\n]|data:[ ]?\{\s*"error"\s*:\s*[{"])')

PATHS = MappingProxyType(
    {
        **dict.fromkeys(
            (
                *(b"/chat/completions", b"/completions", b"/embeddings", b"/audio/speech"),
                *(b"/responses/compact", b"/decisions", b"/rerank", b"/ocr", b"/score", b"/pooling"),
                *(b"/classify", b"/fim/completions", b"/classifications"),
                *(b"/chat/moderations", b"/chat/classifications"),
            ),
            Place.BODY,
        ),
        **dict.fromkeys(
            (b"/responses", b"/responses/input_tokens", b"/images/generations", b"/moderations"), Place.OPTION
        ),
        **dict.fromkeys(
            (
                *(b"/audio/transcriptions", b"/audio/translations"),
                *(b"/images/edits", b"/images/variations", b"/videos"),
            ),
            Place.FORM,
        ),
    }
)


LASTING = rb"/videos"

FREE = (
    rb"/((files|uploads|vector_stores|assistants|skills)(/.*)?|containers/[^/]+/files"
    rb"|threads(/[^/]+(/messages(/[^/]+)?)?)?(?<!threads/runs)|threads/[^/]+/runs/[^/]+(/cancel)?"
    rb"|evals(/[^/]+)?|evals/[^/]+/runs/[^/]+|chat/completions/chatcmpl-[^/]+"
    rb"|(responses|batches|fine_tuning/jobs)/[^/]+/(cancel|pause)"
    rb"|realtime/calls/[^/]+/(hangup|refer|reject)|conversations/[^/]+/items)"
)
"""What uses up no tokens, whoever has these paths. At Mistral ``/conversations`` answers (API reference), and
at vLLM ``/chat/completions/batch``: they are not among them."""


def _error(error: ProxyError, _: str) -> dict[str, Any]:
    kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    code = _CODES.get(error.status)
    return {"error": {"message": text(error), "type": kind, "param": None, "code": code}}


def _normal(found: Mapping[str, int]) -> dict[str, int]:
    normal = with_cache(
        found.get("prompt_tokens", found.get("input_tokens", 0)),
        found.get("completion_tokens", found.get("output_tokens", 0)),
        found.get("cached_tokens"),
        found.get("cache_write_tokens"),
    )
    if "ttl_12h_tokens" in found:
        # The longer of two times that a cache lasts, and the dearer, as Anthropic's hour is.
        written = normal.get("cache_creation_input_tokens", 0)
        normal["ephemeral_1h_input_tokens"] = min(found["ttl_12h_tokens"], written)
    return normal


_PICTURES = ("/images/edits", "/images/variations")

# Where sound and pictures are sent, and where they come back.
MEDIA_IN = ("/audio/transcriptions", "/audio/translations", *_PICTURES)

MEDIA_OUT = ("/audio/speech", "/images/generations", *_PICTURES)

OPENAI = Format(
    name="openai",
    roots=((b"/openai/", b"/openai"), (b"/openai/v1/", b"/openai/v1")),
    label="/openai/v1",
    paths=PATHS,
    credential=(b"Authorization", b"Bearer "),
    request_id=b"x-request-id",
    error=_error,
    is_error=_IS_ERROR,
    refused_key=KEY_REFUSAL,
    event=ERROR_EVENT,
    ping=COMMENT_PING,
    usage=shape(
        b'"usage"',
        "prompt_tokens completion_tokens input_tokens output_tokens cached_tokens cache_write_tokens "
        "ttl_12h_tokens",
        _normal,
    ),
    read_path=re.compile(rb"/models/(?P<model>.+)"),
    listing=Listing(b"/models", "data", "id", before="models/"),
    lasting=re.compile(LASTING),
    free_paths=re.compile(FREE),
    free=frozenset(("/openai/v1/responses/input_tokens", "/openai/v1/moderations")),
    media_in=frozenset(f"/openai/v1{path}" for path in MEDIA_IN),
    media_out=frozenset(f"/openai/v1{path}" for path in MEDIA_OUT),
    pending=MappingProxyType(
        {
            "/openai/v1/chat/completions": {"object": "chat.completion", "created": 0, "choices": []},
            "/openai/v1/completions": {"object": "text_completion", "created": 0, "choices": []},
            "/openai/v1/responses": {
                "object": "response",
                "created_at": 0,
                "status": "queued",
                "output": [],
                "error": None,
            },
            "/openai/v1/embeddings": {
                "object": "list",
                "data": [],
                "usage": {"prompt_tokens": 0, "total_tokens": 0},
            },
            "/openai/v1/images/generations": {"created": 0, "data": []},
        }
    ),
)
