"""What a request asks of jobs, and what a job keeps of a request and of its answer.

Facts
  - Header names and their meaning are Bifrost's (docs.getbifrost.ai/features/async-inference). There any
    value submits, and a time that cannot be read is the default one.

Rules
  1. What cannot be understood is a 400: a client that believes that it has a job must have one.
  2. Of the client's credentials a job keeps those that its plan sends upstream, and no virtual key.

Not here: what is answered (`jobs`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

import orjson

from . import headers
from .errors import ProxyError, Source
from .formats import Place
from .routes import Kind, Route

_SUBMIT = headers.JOB_PREFIX
_TTL = headers.JOB_PREFIX + b"-job-result-ttl"
_WEBHOOK = headers.JOB_PREFIX + b"-webhook"

_KNOWN = frozenset((_SUBMIT, headers.JOB_ID, headers.JOB_STATUS, _TTL, _WEBHOOK))

_ID = re.compile(rb"[!-~]{1,200}")

_SECONDS = re.compile(rb"[1-9][0-9]{0,8}")


class Order(NamedTuple):
    """What is asked: a job, or with an `id` about one."""

    id: str
    ttl: int | None
    """Seconds; None for the default."""
    webhook: str


class Request(NamedTuple):
    """A request but for its body, as a job keeps it."""

    route: Route
    fields: list[tuple[bytes, bytes]]
    holder: str
    """The id of the virtual key that it came with; empty without one."""
    identity: bool
    """Whether the answer must come uncompressed."""

    @property
    def codings(self) -> str:
        """The content codings of the body."""
        values = (value for name, value in self.fields if name.lower() == b"content-encoding")
        return b", ".join(values).decode("latin-1")

    def dumps(self) -> bytes:
        route = self.route
        return orjson.dumps(
            {
                "wire_format": route.wire_format,
                "prefix": route.prefix.decode("latin-1"),
                "path": route.path.decode("latin-1"),
                "operation": route.operation,
                "place": (route.place or Place.BODY).value,
                "span": list(route.span),
                "unseen": route.unseen,
                "lasting": route.lasting,
                "fields": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in self.fields],
                "holder": self.holder,
                "identity": self.identity,
            }
        )

    @classmethod
    def loads(cls, kept: bytes) -> Request:
        """Raises ValueError for what another version has kept, and this one does not know."""
        try:
            held = orjson.loads(kept)
            # Before 0.1.0 was out all were named in the body.
            begin, end = held.get("span", (0, 0))
            route = Route(
                Kind.MODEL,
                held["wire_format"],
                held["prefix"].encode("latin-1"),
                held["path"].encode("latin-1"),
                label(held["operation"]),
                held["operation"],
                place=Place(held.get("place", Place.BODY)),
                span=(begin, end),
                unseen=held.get("unseen", False),
                lasting=held.get("lasting", False),
            )
            fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in held["fields"]]
            return cls(route, fields, held["holder"], held["identity"])
        except (KeyError, TypeError, AttributeError):
            raise ValueError("not a request that this version has kept") from None


class Answer(NamedTuple):
    """An answer but for its body, as a job keeps it."""

    reason: bytes
    lines: list[bytes]
    """Field lines that go downstream, without a length."""
    has_date: bool
    codings: str
    """The content codings of the body."""
    error: bytes
    """An answer of ours that stands for what was kept, because that is not whole; empty otherwise."""
    size: int = 0
    """Bytes of the body, whatever it is packed into."""
    is_object: bool = False
    """Whether the body is a JSON object."""

    def dumps(self) -> bytes:
        texts = [line.decode("latin-1") for line in (self.reason, self.error, *self.lines)]
        return orjson.dumps([self.has_date, self.codings, self.size, self.is_object, *texts])

    @classmethod
    def loads(cls, kept: bytes) -> Answer:
        has_date, codings, size, is_object, *texts = orjson.loads(kept)
        reason, error, *lines = [text.encode("latin-1") for text in texts]
        return cls(reason, lines, has_date, codings, error, size, is_object)


def label(operation: str) -> str:
    """What the log and the metrics call a job that is done, beside the request that made it."""
    return f"job {operation}"


def read(route: Route, outgoing: headers.Outgoing) -> Order | None:
    """What a request asks of jobs; None where there are none. Raises `ProxyError` 400."""
    fields = outgoing.job_fields
    if route.job:
        return Order(route.job, None, "")
    if not route.operation:
        # As Bifrost does: what answers at once may be asked for in any way.
        return None
    unknown = fields.keys() - _KNOWN
    if unknown:
        raise _bad(f"There is no such field as {min(unknown).decode('latin-1')[:100]}")
    if headers.JOB_ID in fields:
        if not _ID.fullmatch(fields[headers.JOB_ID]):
            raise _bad("x-bf-async-id is not the id of a job")
        return Order(fields[headers.JOB_ID].decode("ascii"), None, "")
    if _SUBMIT not in fields and not route.by_job_path:
        raise _bad("x-bf-async: true is missing, which makes a job; without it the other fields mean nothing")
    if fields.get(_SUBMIT, b"true") != b"true":
        raise _bad("Only x-bf-async: true makes a job; leave the fields out for an ordinary request")
    return Order("", _ttl(fields.get(_TTL)), fields.get(_WEBHOOK, b"").decode("latin-1"))


def _ttl(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not _SECONDS.fullmatch(value):
        raise _bad("x-bf-async-job-result-ttl is not a whole number of seconds from 1 to 999999999")
    return int(value)


def _bad(message: str) -> ProxyError:
    return ProxyError(400, f"{message}.", source=Source.DOWNSTREAM)
