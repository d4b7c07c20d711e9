"""Gemini's wire format.

Facts
  - The model stands in the path: ``/v1beta/models/{model}:generateContent`` (ai.google.dev, API reference).
    SDKs leave a slash in it as it is. ``:embedContent`` names it in the body again, as ``models/{model}``.
  - A stream is one of server-sent events with ``alt=sse`` in the query, and else a JSON array that grows.
  - A key may stand in the query, as ``key=``, a token as ``access_token=`` or ``oauth_token=`` (Google APIs,
    system parameters); there it would get into logs.
  - An upload is begun with a request whose answer says in ``X-Goog-Upload-URL`` where the rest goes
    (ai.google.dev, Files API). Who knows that needs no key, and SDKs send none.
  - An error is ``{"error":{"code":S,"message":M,"status":C}}``, and ``C`` a canonical code (google.rpc.Code,
    AIP-193).
  - A bad key is answered 400, with ``reason`` ``API_KEY_INVALID`` (google.rpc.ErrorInfo).
  - The official SDK fails on pings and on comments; an empty line is all that it ignores.
  - ``usageMetadata`` is in every chunk, and cumulative. ``cachedContentTokenCount`` is a part of
    ``promptTokenCount``; thoughts and tool results are in neither of the two main counts (UsageMetadata).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from proxy.errors import ProxyError
from proxy.usage import shape

from .format import KEY_REFUSAL, Format, Listing, Method, Place, text, with_cache

_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "RESOURCE_EXHAUSTED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""``error.status`` by status; others are ``INVALID_ARGUMENT`` below 500 and ``INTERNAL`` above."""

_METHODS = (
    Method("generateContent"),
    Method("streamGenerateContent", stream=True),
    Method("countTokens"),
    Method("embedContent"),
    Method("batchEmbedContents"),
    Method("predict"),
    Method("predictLongRunning"),
    Method("batchGenerateContent"),
    Method("asyncBatchEmbedContent"),
)


def _error(error: ProxyError, _: str) -> dict[str, Any]:
    default = "INTERNAL" if error.status >= 500 else "INVALID_ARGUMENT"
    status = _STATUSES.get(error.status, default)
    return {"error": {"code": error.status, "message": text(error), "status": status}}


def _normal(found: Mapping[str, int]) -> dict[str, int]:
    return with_cache(
        found.get("promptTokenCount", 0) + found.get("toolUsePromptTokenCount", 0),
        found.get("candidatesTokenCount", 0) + found.get("thoughtsTokenCount", 0),
        found.get("cachedContentTokenCount"),
        None,
    )


GENAI = Format(
    name="genai",
    roots=((b"/genai/", b"/genai"),),
    provider="gemini",
    paths=MappingProxyType(
        {b"/%b/interactions" % version: Place.OPTION for version in (b"v1", b"v1alpha", b"v1beta")}
    ),
    model_path=re.compile(
        rb"/[^/]+/(?:publishers/[^/]+/)?models/(?P<model>.+)(?::|%3a)(?P<method>[a-z]+)", re.I
    ),
    methods=MappingProxyType({method.name.lower().encode(): method for method in _METHODS}),
    model_path_label="/genai/models/{model}:",
    body_model="models/",
    read_path=re.compile(rb"/[^/]+/models/(?P<model>[^:]+)"),
    inner_model=MappingProxyType(
        {
            "/genai/models/{model}:countTokens": (b"generateContentRequest", b"model"),
            "/genai/models/{model}:batchEmbedContents": (b"requests", b"model"),
            "/genai/models/{model}:batchGenerateContent": (
                *(b"batch", b"inputConfig", b"requests", b"requests", b"request", b"model"),
            ),
        }
    ),
    sse_query=b"alt=sse",
    query_keys=MappingProxyType(
        {
            b"key": (b"x-goog-api-key", b""),
            b"access_token": (b"Authorization", b"Bearer "),
            b"oauth_token": (b"Authorization", b"Bearer "),
        }
    ),
    locations=(b"x-goog-upload-url", b"x-goog-upload-control-url"),
    credential=(b"x-goog-api-key", b""),
    request_id=b"x-request-id",
    error=_error,
    is_error=re.compile(rb'(^|[\r\n])data:[ ]?\{\s*"error"\s*:'),
    refused_key=KEY_REFUSAL,
    event=(b"data: ", b"\r\n\r\n"),
    ping=b"\n",
    usage=shape(
        b'"usageMetadata"',
        "promptTokenCount toolUsePromptTokenCount candidatesTokenCount thoughtsTokenCount "
        "cachedContentTokenCount",
        _normal,
    ),
    # The usage of an interaction has a name and a shape of its own, which nobody looks for.
    unseen=re.compile(rb"/[^/]+/interactions"),
    lasting=re.compile(
        rb"/[^/]+/models/.+(:|%3a)(batchgeneratecontent|asyncbatchembedcontent|predictlongrunning)"
    ),
    free_paths=re.compile(
        rb"(/upload)?/[^/]+/files([:/].*)?|/[^/]+/(filesearchstores|batches/[^/]+(:|%3a)cancel)"
    ),
    media_out=frozenset(("/genai/models/{model}:predict",)),
    free=frozenset(("/genai/models/{model}:countTokens",)),
    listing=Listing(b"/v1beta/models?pageSize=1000", "models", "name", before="models/"),
)
