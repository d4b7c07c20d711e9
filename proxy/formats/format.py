"""What a wire format is: a record of data, and small functions where data does not reach.

Facts
  - Providers name the model in the JSON body, in a field of a form, or in the path.
  - Lower-case paths are matched: see `routes` for how a path is read.

Not here: any format's own data. Each has a module beside this one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from proxy.errors import ProxyError
from proxy.sse import first_event
from proxy.usage import Shape

Fields = tuple[tuple[bytes, bytes], ...]

NOTHING: Mapping[Any, Any] = MappingProxyType({})


class Place(enum.Enum):
    """Where a request names its model."""

    BODY = "body"
    """At the top level of a JSON object, which must name it."""
    OPTION = "option"
    """There too, or nowhere: the provider has a model of its own for who names none."""
    FORM = "form"
    """In the field ``model`` of multipart/form-data, which may be left out; a JSON body is as `OPTION`."""
    PATH = "path"


class Method(NamedTuple):
    """The end of a path that names the model in front of it."""

    name: str
    """As the provider spells it."""
    stream: bool = False
    place: Place = Place.PATH


class Listing(NamedTuple):
    """How a provider lists its models."""

    path: bytes
    """Below the base URL, for the longest page."""
    member: str
    """The list in the answer."""
    name: str
    """The name in each item of it."""
    before: str = ""
    """What stands before the name there, and not where it is used."""
    fields: Fields = ()
    """What the provider demands of the request's fields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A wire format. Paths are those below a base URL."""

    name: str
    roots: tuple[tuple[bytes, bytes], ...]
    """What paths to us begin with that are this format's, and what of it is ours and does not go upstream."""
    paths: Mapping[bytes, Place]
    """The POST paths, in lower case, that name the model in the body, and how."""
    credential: tuple[bytes, bytes]
    """The field in which a provider expects its key, and what stands before the key."""
    request_id: bytes
    """The field in which SDKs look for the id of a request."""
    error: Callable[[ProxyError, str], dict[str, Any]]
    """An error of ours, with the id of its request, as the JSON of an answer and of an event."""
    error_member: str = "error"
    """What every error has, and no other answer."""
    error_fields: Callable[[ProxyError], Fields] = lambda error: ()
    stream_type: bytes = b"text/event-stream"
    """The content type of a stream of which the first event is looked at."""
    first_event: Callable[[bytes], bytes | None] = first_event
    """The first event of a stream, of which so much is there; None while it is not whole."""
    is_error: re.Pattern[bytes]
    """What is found in the event of a stream if it is an error."""
    refused_key: re.Pattern[bytes] | None = None
    """What is found in an answer of status 400 if it refuses the key."""
    in_stream: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """What the JSON of an error becomes in a stream; None: it is the same there."""
    event: tuple[bytes, bytes] | None
    """What stands before and behind the JSON of an error in a stream; None where there is no such event."""
    ping: bytes
    """What keeps a stream alive between two events, and every SDK of the format ignores."""
    usage: Shape
    provider: str = ""
    """What its own provider is called; the name of the format."""
    label: str = ""
    """What stands before a path in the names of operations, for metrics; the name of the format."""
    bearer_prefixes: tuple[str, ...] = ()
    """How keys begin that go as a bearer, whatever `credential` says."""
    model_path: re.Pattern[bytes] | None = None
    """A path that names the model, in groups ``model`` and ``method``."""
    methods: Mapping[bytes, Method] = field(default_factory=lambda: NOTHING)
    """What such paths end in, by its lower-case form."""
    model_path_label: str = ""
    body_model: str | None = None
    """Where the model is in the path, the body may name it again, with this before it; None: never."""
    safe: str = "-._~:/@"
    """What stands in a path's model as it is, beside letters and digits; all else is percent-encoded."""
    read_path: re.Pattern[bytes] | None = None
    """A path to be read that names a model, in group ``model``, behind a provider's name perhaps."""
    sse_query: bytes = b""
    """What the query of a stream has, if it is one of server-sent events; empty: it always is."""
    line_paths: frozenset[bytes] = frozenset()
    """The paths whose streams are JSON, an object a line, and no server-sent events."""
    query_keys: Mapping[bytes, tuple[bytes, bytes]] = field(default_factory=lambda: NOTHING)
    """The members of the query that are credentials: the field in which each goes on, what is before it."""
    holds_all: bool = False
    """Whether every body is held, because requests are signed."""
    inner_model: Mapping[str, tuple[bytes, ...]] = field(default_factory=lambda: NOTHING)
    """By operation: where deeper in the body the path's model is named again, as keys; lists on the way do
    not count. What stands before it there is `body_model`."""
    listing: Listing | None = None
    locations: tuple[bytes, ...] = ()
    """Fields of answers, in lower case, that name the provider's host, for the rest of an upload."""
    batches: re.Pattern[bytes] = re.compile(rb"(?!)")
    """The paths whose answers name the provider's host in ``results_url``."""
    unseen: re.Pattern[bytes] = re.compile(rb"(?!)")
    """POST paths, in lower case, that name a model, and whose usage passes nowhere."""
    lasting: re.Pattern[bytes] = re.compile(rb"(?!)")
    """As `unseen`, and what they begin goes on when nobody waits for it: a batch, a video."""
    free_paths: re.Pattern[bytes] = re.compile(rb"(?!)")
    """POST paths, in lower case, that name no model and use up no tokens: they keep, change or end something.
    The usage of any other one that names no model is taken to pass nowhere."""
    free: frozenset[str] = frozenset()
    """Operations whose answers report no usage because they cost nothing."""
    media_in: frozenset[str] = frozenset()
    """Operations whose requests are sound or pictures, mostly: their bytes say nothing of tokens."""
    media_out: frozenset[str] = frozenset()
    """Operations whose answers are."""
    pending: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: NOTHING)
    """By operation: what a client gets, beside ``id`` and ``model``, for a job that is not over."""

    @property
    def own_provider(self) -> str:
        """What its own provider is called where nobody says otherwise."""
        return self.provider or self.name

    def operation(self, path: bytes) -> str:
        """What a POST to this path is called; its name in metrics."""
        return (self.label or f"/{self.name}") + path.decode()

    def body(self, error: ProxyError, request_id: str) -> bytes:
        """`error` as the body of an answer."""
        return orjson.dumps(self.error(error, request_id))

    def own_credential(self, key: str, *, bearer: bool = False) -> tuple[bytes, bytes]:
        """The field with a key of ours; `bearer`: the provider wants it as one."""
        name, scheme = self.credential
        if bearer or (self.bearer_prefixes and key.startswith(self.bearer_prefixes)):
            name, scheme = b"Authorization", b"Bearer "
        return name, scheme + key.encode("latin-1")

    def is_error_body(self, body: bytes) -> bool:
        """Whether `body` is an error answer in the wire format's shape."""
        try:
            parsed = orjson.loads(body)
        except orjson.JSONDecodeError:
            return False
        return isinstance(parsed, dict) and self.error_member in parsed

    def is_error_event(self, event: bytes) -> bool:
        """Whether the first event of a stream is an error."""
        if self.is_error.search(event):
            return True
        # Some providers put other members in front.
        try:
            parsed = orjson.loads(b"\n".join(_DATA.findall(event)))
        except orjson.JSONDecodeError:
            return False
        return isinstance(parsed, dict) and bool(parsed.get("error"))

    def error_event(self, data: bytes) -> bytes:
        """An event of a stream around the JSON `data` of an error; line ends in it are white space."""
        if self.event is None:
            return b""
        before, behind = self.event
        if self.in_stream is not None:
            data = orjson.dumps(self.in_stream(orjson.loads(data)))
        return before + data.replace(b"\r", b" ").replace(b"\n", b" ") + behind


def text(error: ProxyError) -> str:
    """An error's message; what UTF-8 cannot say is replaced."""
    return error.message.encode("utf-8", "replace").decode()


def with_cache(whole: int, output: int, read: int | None, written: int | None) -> dict[str, int]:
    """Counts of a format whose input, `whole`, includes what is read from the cache and written to it."""
    normal = {"input_tokens": whole, "output_tokens": output}
    for name, part in (("cache_read_input_tokens", read), ("cache_creation_input_tokens", written)):
        if part is not None:
            normal[name] = min(part, normal["input_tokens"])
            normal["input_tokens"] -= normal[name]
    return normal


_DATA = re.compile(rb"(?m)^data:[ ]?([^\r\n]*)")

KEY_REFUSAL = re.compile(
    # Google says the first (google.rpc.ErrorInfo of googleapis.com), xAI the second. With its quotes it is
    # no echo: in a text they would be escaped.
    rb'"reason"\s*:\s*"API_KEY_(INVALID|EXPIRED)"|"error"\s*:\s*"Incorrect API key provided'
)

NAMED_ERROR = re.compile(rb"(^|[\r\n])event:[ ]?error[ ]*[\r\n]")
"""An event that is called ``error``."""

ERROR_EVENT = (b"event: error\ndata: ", b"\n\n")

COMMENT_PING = b": ping\n"
"""A comment (WHATWG HTML, section 9.2.6), without the empty line, at which some SDKs dispatch an event."""
