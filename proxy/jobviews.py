"""How a job looks to whoever asks for it: in the wire format of its route, or as ``/v1/async`` says it.

Facts
  - On a provider's own route Bifrost answers 200 with a message that has the job's id and no content until
    the job is over; SDKs with strict types want every member that the format requires.
  - On ``/v1/async`` it answers 202 until then, and afterwards 200 whatever the job's own status is.

Rules
  1. The bytes of a result are put in as they are, never decoded and encoded again.

Not here: who may ask (`jobs`).
"""

from __future__ import annotations

import base64
import zlib
from datetime import UTC, datetime
from typing import Any

import orjson

from .formats import FORMATS
from .job import Ending, Found, State


def body(ending: Ending) -> bytes:
    """The answer's body as upstream sent it."""
    return zlib.decompress(ending.body) if ending.packed else ending.body


def pending(operation: str, id: str, model: str) -> bytes:
    """What a provider's own route answers while the job is not over."""
    shapes = (form.pending[operation] for form in FORMATS.values() if operation in form.pending)
    return orjson.dumps({"id": id, "model": model, **next(shapes, {})})


def unified(found: Found, plain: bytes = b"", error: bytes = b"", *, is_object: bool = False) -> bytes:
    """A job as ``/v1/async`` shows it; `plain` is the body of its result, uncompressed.

    `is_object` says that this is a JSON object. With an `error` of ours it is a part of a result.
    """
    shown: dict[str, Any] = {
        "id": found.id,
        "status": found.state.value,
        "created_at": instant(found.created),
    }
    ending = found.ending
    if ending is not None:
        shown |= {
            "completed_at": instant(ending.completed),
            "expires_at": instant(ending.expires),
            "status_code": ending.status,
            "error" if ending.failed else "result": embedded(error or plain, is_object or bool(error)),
        }
        if error:
            shown["partial_result"] = embedded(plain, False)
    return orjson.dumps(shown)


def removed(id: str, state: State) -> bytes:
    """What a DELETE answers; `state` is the one that it ended."""
    cancelled = not is_over(state)
    return orjson.dumps({"id": id, "deleted": True, "status": "cancelled" if cancelled else state.value})


def embedded(plain: bytes, is_object: bool) -> Any:
    """A body inside a JSON document: an object as it is, byte for byte, anything else as text or base64."""
    if is_object:
        return orjson.Fragment(plain)
    try:
        return {"text": plain.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(plain).decode()}


def instant(at: float) -> str:
    """A time as RFC 3339 has it, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_over(state: State) -> bool:
    return state in (State.COMPLETED, State.FAILED)
