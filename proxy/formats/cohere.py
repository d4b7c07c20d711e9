"""Cohere's wire format.

Facts
  - An error is ``{"message":M}``, since v2 with an ``id`` (docs.cohere.com, errors page).
  - v2 needs a model, v1 has one of its own for who names none (API reference).
  - ``billed_units`` is what is paid for, ``tokens`` beside it is not (pricing page); v1 has it in ``meta``,
    v2 in ``usage``, once.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Any

from proxy.errors import ProxyError
from proxy.usage import shape

from .format import COMMENT_PING, ERROR_EVENT, NAMED_ERROR, Format, Listing, Place, text


def _error(error: ProxyError, request_id: str) -> dict[str, Any]:
    return {"id": request_id, "message": text(error)}


def _in_stream(error: dict[str, Any]) -> dict[str, Any]:
    """As Cohere says that a message failed; of an event without ``type`` its SDK makes a message-start."""
    # Whatever upstream's message is: what is too deep could be read and not be written.
    ended = {"finish_reason": "ERROR", "error": str(error.get("message"))}
    return {"type": "message-end", "id": str(error.get("id", "")), "delta": ended}


COHERE = Format(
    name="cohere",
    roots=((b"/cohere/", b"/cohere"),),
    paths=MappingProxyType(
        {
            **dict.fromkeys((b"/v2/chat", b"/v2/embed", b"/v2/rerank", b"/v2/parse"), Place.BODY),
            **dict.fromkeys(
                (
                    *(b"/v1/chat", b"/v1/generate", b"/v1/embed", b"/v1/rerank", b"/v1/classify"),
                    *(b"/v1/summarize", b"/v1/tokenize", b"/v1/detokenize"),
                ),
                Place.OPTION,
            ),
            b"/v2/audio/transcriptions": Place.FORM,
        }
    ),
    line_paths=frozenset((b"/v1/chat", b"/v1/generate")),
    credential=(b"Authorization", b"Bearer "),
    request_id=b"x-request-id",
    error=_error,
    error_member="message",
    is_error=NAMED_ERROR,
    in_stream=_in_stream,
    event=ERROR_EVENT,
    ping=COMMENT_PING,
    usage=shape(b'"billed_units"', "input_tokens output_tokens", dict),
    free_paths=re.compile(
        rb"/v1/(datasets|check-api-key|connectors(/.*)?|embed-jobs/[^/]+/cancel)|/v2/batches/[^/]+(:|%3a)cancel"
    ),
    media_in=frozenset(("/cohere/v2/audio/transcriptions",)),
    free=frozenset(("/cohere/v1/tokenize", "/cohere/v1/detokenize")),
    listing=Listing(b"/v1/models?page_size=1000", "models", "name"),
)
