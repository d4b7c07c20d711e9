"""Webhooks as bytes: what is told of a job's end, how it is signed, and when it is told again.

Facts
  - The form is Standard Webhooks 1.0.0 (github.com/standard-webhooks/standard-webhooks): what is signed is
    ``ID.TIMESTAMP.BODY``, and the id must hold no dot. The id is the same in every try, by which receivers
    know what they have had; the timestamp is the try's own, by which they know what is old.
  - Names of events, the size, and the first wait are Bifrost's (docs.getbifrost.ai/features/webhooks).
  - An expired result is deleted, and nothing can be told of it.

Rules
  1. `data` is what ``/v1/async`` shows of the job. Where that is too large, the result is left out, and
     `truncated` says so: the receiver fetches it.

Not here: sending (`webhooks`).
"""

from __future__ import annotations

import base64
import hmac
import zlib
from dataclasses import dataclass, field

import orjson

from . import coding, jobviews, values
from .errors import ProxyError
from .job import Ending, Found
from .jobheads import Answer
from .shapes import row, text
from .values import Secret

MOST_BYTES = 262144
"""The largest body that is sent."""

FIRST_WAIT = 30.0

BUSY_WAIT = 1.0
"""The first wait of what found a receiver busy."""

LONGEST_WAIT = 3600.0
"""Whoever was away for a night is told within the hour of coming back."""

MOST_TRIES = 31
"""A day with these waits: time for somebody to mend a receiver that nobody watches at night."""

MOST_TRIES_UNKNOWN = 5
"""Of a webhook that the config does not name: eight minutes, in which a reload reaches every worker."""

LAST_CHANCE = 15.0
"""The last try is so many seconds before the result expires: more than a try takes."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A receiver."""

    url: str = field(
        # Some receivers want a credential in the query.
        repr=False,
        metadata=row(
            text(values.webhook_url),
            "Where a job's end is told: http:// or https:// and HOST[:PORT][/PATH][?QUERY]. No redirect is"
            " followed, so it must be the final one.",
        ),
    )
    secret: Secret = field(
        metadata=row(
            values.webhook_secret,
            "What signs it, as env.NAME or file:PATH: whsec_ and 24 to 64 random bytes as base64, as printed"
            ' by `echo "whsec_$(openssl rand -base64 32)"`.',
        )
    )


def signed(secret: Secret, id: str, at: float, body: bytes) -> dict[str, str]:
    """The header fields that vouch for `body`, sent `at` that time."""
    key = base64.b64decode(secret.reveal().removeprefix(values.WEBHOOK_PREFIX))
    timestamp = str(int(at))
    digest = hmac.digest(key, b"%b.%b.%b" % (id.encode(), timestamp.encode(), body), "sha256")
    return {
        "webhook-id": id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def fits(found: Found) -> bool:
    """Whether the body of a job that is over may be told: else it need not even be read."""
    return found.ending is not None and Answer.loads(found.ending.head).size <= MOST_BYTES


def payload(found: Found, *, whole: bool) -> bytes:
    """What is told of a job that is over; of a `found` that is not `whole` the body is not there."""
    ending = found.ending
    if ending is None:
        raise ValueError("the job is not over")
    kept = Answer.loads(ending.head)
    plain = _plain(ending, kept.codings) if whole else None
    if plain is not None:
        is_object = _is_object(plain) if kept.codings else kept.is_object
        event = _event(ending, jobviews.unified(found, plain, kept.error, is_object=is_object))
        if len(event) <= MOST_BYTES:
            return event
    shown = orjson.loads(jobviews.unified(found, b"", kept.error))
    del shown["partial_result" if kept.error else "error" if ending.failed else "result"]
    return _event(ending, orjson.dumps(shown | {"truncated": True}))


def again(
    now: float,
    tries: int,
    expires: float,
    draw: float,
    *,
    first: float = FIRST_WAIT,
    most: int = MOST_TRIES,
) -> float | None:
    """When an end is told again after so many tries in vain; None for never.

    `draw` is from 0 to 1: a receiver that was away is not asked by everybody at once when it comes back.
    """
    if tries >= most:
        return None
    wait = min(first * 2 ** (tries - 1), LONGEST_WAIT)
    at = min(now + wait * (0.75 + draw / 2), expires - LAST_CHANCE)
    return at if at > now else None


def _plain(ending: Ending, codings: str) -> bytes | None:
    """The answer's body, decoded; None where it is too large to be told. No more than that is unpacked."""
    plain = ending.body
    if ending.packed:
        plain = zlib.decompressobj().decompress(plain, MOST_BYTES + 1)
    if len(plain) > MOST_BYTES:
        return None
    if codings:
        try:
            return coding.decoded(plain, codings, MOST_BYTES)
        except ProxyError as error:
            # What cannot be decoded is told as it is.
            return None if error.status == 413 else plain
    return plain


def _is_object(plain: bytes) -> bool:
    try:
        return isinstance(orjson.loads(plain), dict)
    except orjson.JSONDecodeError:
        return False


def _event(ending: Ending, data: bytes) -> bytes:
    return orjson.dumps(
        {
            "type": "async_job.failed" if ending.failed else "async_job.completed",
            "timestamp": jobviews.instant(ending.completed),
            "data": orjson.Fragment(data),
        }
    )
