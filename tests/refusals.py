"""What an error of the proxy's own looks like: Anthropic's shape, one id, a message."""

from __future__ import annotations

import json
import re

from rawclient import Response

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    417: "invalid_request_error",
    431: "invalid_request_error",
    501: "api_error",
    505: "api_error",
}


def error_message(response: Response, status: int) -> str:
    """The message of an error of ours; everything else about it is checked here."""
    assert response.status == status, response
    assert response.complete
    assert response.header("content-type") == b"application/json"
    body = json.loads(response.body)
    assert list(body) == ["type", "error", "request_id"]
    assert body["type"] == "error"
    assert body["error"]["type"] == TYPES[status]
    assert re.fullmatch("req_[0-9A-Za-z]+", body["request_id"])
    assert response.header("request-id") == body["request_id"].encode()
    return str(body["error"]["message"])
