"""Errors of ours: the one exception type of the path, and how it looks on the wire.

Facts
  - Anthropic's error body is ``{"type":"error","error":{"type":T,"message":M},"request_id":R}``
    and ``R`` equals the ``request-id`` response header (platform.claude.com, API errors page).
  - OpenAI's is ``{"error":{"message":M,"type":T,"param":null,"code":null}}`` (openai/openai-openapi,
    schema ErrorResponse).
  - SDKs choose the exception class by status, and read ``error.type`` for mid-stream errors,
    where the status is already 200.

Rules
  1. Inside the path only `ProxyError` travels; foreign exceptions are mapped where they arise.
  2. An error knows the status for the client, who caused it, and whether a retry is allowed.
  3. A message says what is wrong and what to do about it. It never holds a secret or an
     exception's text, because exception texts hold URLs, header lines and keys.

Not here: upstream's own error answers. They are relayed untouched and never become a `ProxyError`.
"""

from __future__ import annotations

import enum
import errno
import traceback

import orjson

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What an OSError says when this machine is out of descriptors or memory: nobody else's fault."""

RETRY_SOON = (b"retry-after", b"1")
"""A field of a 503 that will have passed in a moment."""


def frames(failure: BaseException) -> str:
    """An exception that nobody expected, for the log. Frames only: its text may hold what a client sent."""
    return f"{type(failure).__name__}\n{''.join(traceback.format_tb(failure.__traceback__))}"


class Source(enum.Enum):
    """Who caused an error; the first letter of the ending in the access log."""

    DOWNSTREAM = "D"
    UPSTREAM = "U"
    PROXY = "P"


class ProxyError(Exception):
    """What went wrong on the path, as much as the client may know.

    `event` names the failure for the plan's fallback table and the attempt header: ``connect``,
    ``reset``, ``timeout``, ``protocol``, ``stream_error``; it is empty when no retry may follow.
    `reused` says that the connection came from the pool, so that upstream most likely never saw
    the request. `offset` is the byte of the request body at fault. `headers` go out with the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        source: Source = Source.PROXY,
        event: str = "",
        reused: bool = False,
        offset: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.source = source
        self.event = event
        self.reused = reused
        self.offset = offset
        self.headers = headers


ANTHROPIC_TYPES = {
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


OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
"""The same of OpenAI; other 4xx are ``invalid_request_error``, other 5xx ``server_error``."""


def body(error: ProxyError, request_id: str, wire_format: str = "anthropic") -> bytes:
    """`error` as the JSON body of an answer, or as the data of an SSE ``error`` event."""
    message = error.message.encode("utf-8", "replace").decode()
    own = error.status >= 500
    if wire_format != "anthropic":
        kind = OPENAI_TYPES.get(error.status, "server_error" if own else "invalid_request_error")
        return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})
    kind = ANTHROPIC_TYPES.get(error.status, "api_error" if own else "invalid_request_error")
    details = {"type": kind, "message": message}
    return orjson.dumps({"type": "error", "error": details, "request_id": request_id})


def is_error_body(data: bytes) -> bool:
    """Whether `data` is an error answer in the wire format's shape."""
    try:
        parsed = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return isinstance(parsed, dict) and parsed.get("type") == "error"
