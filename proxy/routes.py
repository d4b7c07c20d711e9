"""Which wire format a request has, and which path goes upstream.

Facts
  - A request target in origin form is ``/path?query`` (RFC 9112 section 3.2.1). It is matched on the
    path, never with the query: SDKs add ``?beta=true``.
  - Below a prefix the path list is open: the remainder goes upstream exactly as it came.
  - Most wire formats name the model in the body; Gemini's, Bedrock's and Azure's in the path (`formats`).
  - Coding agents probe a base URL with ``HEAD /`` or ``HEAD {base}/api/hello``.

Rules
  1. The string that is matched decides; the string that is forwarded is the raw one. A target whose
     decoded form could mean another path to the upstream (dot segments, backslashes, a fragment) is
     refused, not repaired; a backslash counts as a slash.
  2. A path that an upstream may read as a model route is one: ``%6d`` for ``m``, another case, ``;x=1``
     and doubled or trailing slashes do not lead past the body rules.
  3. A model in a path has one reading, or is refused: a virtual key may allow one and not another.

Not here: a wire format's own paths (`formats`; but for what tells Anthropic's and Azure's SDK at the proxy's
own root), how a path may be read (`readings`), methods of the upstream API: an unknown path below a prefix is
relayed, and upstream judges.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Iterator
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from . import readings
from .errors import ProxyError, Source
from .formats import FORMATS, Format, Place


class Kind(enum.Enum):
    """What the path does with a request."""

    MODEL = "model"
    """It names a model: plan, fallbacks and retries apply. A JSON body is read whole and scanned."""
    OPEN = "open"
    """The body is streamed to one provider."""
    HELD = "held"
    """As `OPEN`, but the body is read whole: it has to be signed."""
    MODELS = "models"
    """The models of all providers; an answer of ours."""
    BATCH = "batch"
    """As `OPEN`, but the answer may name the provider's host in ``results_url``."""
    JOB = "job"
    """A job is asked for, or is to be forgotten; never relayed."""
    PROBE = "probe"
    HEALTH = "health"
    METRICS = "metrics"
    API = "api"
    """The management of virtual keys; there only where the config has an admin key."""


class Route(NamedTuple):
    """Where a request goes. `path` is what follows the base URL, query included, as it came."""

    kind: Kind
    wire_format: str
    prefix: bytes
    path: bytes
    label: str
    """A name from a closed set, for metrics."""
    operation: str = ""
    """Of a model route: what it is called whichever path leads to it. A job belongs to its operation."""
    job: str = ""
    """The id of the job that the path names."""
    by_job_path: bool = False
    """Whether it is a route to jobs, and not a provider's own."""
    place: Place | None = None
    """Of a model route: where its requests name the model."""
    span: tuple[int, int] = (0, 0)
    """Where in `path` a model is named, if it is."""
    stream: bool = False
    """Whether the path itself asks for a stream."""
    events: bool = True
    """Whether a stream is one of server-sent events."""
    unseen: bool = False
    """Whether it may use up what is told nowhere."""
    lasting: bool = False
    """Whether it begins what goes on when nobody waits for it."""

    @property
    def model(self) -> str:
        """The model that the path names."""
        return unquote_to_bytes(self.path[slice(*self.span)]).decode()


class Root(NamedTuple):
    """What a path begins with, and where it leads."""

    begins: bytes
    cut: bytes
    """What of it is ours, and does not go upstream."""
    format: Format
    lists: bool = False
    """Whether the list of models below it is that of all providers."""


FRAMEWORKS = (b"/litellm", b"/langchain", b"/pydanticai")


def _roots() -> Iterator[Root]:
    unified = FORMATS["openai"]
    yield Root(b"/v1/", b"/v1", unified, True)
    for framework in (b"", *FRAMEWORKS):
        for form in FORMATS.values():
            for begins, cut in form.roots:
                yield Root(framework + begins, framework + cut, form)
        if framework:
            yield Root(framework + b"/", framework, unified, True)
            yield Root(framework + b"/v1/", framework + b"/v1", unified, True)


ROOTS = tuple(sorted(_roots(), key=lambda root: -len(root.begins)))
"""The longest first."""

_BARE_ROOT = next(root for root in ROOTS if root.begins == b"/v1/")

ASYNC = b"/v1/async/"

ASYNC_PATHS = MappingProxyType(
    {
        path.removeprefix(b"/v1").removeprefix(b"/"): (name, path)
        for name in ("anthropic", "openai")
        for path, place in FORMATS[name].paths.items()
        if place is not Place.FORM
    }
)
"""What follows `ASYNC`: wire format and path upstream of the request that is done later. Its body is JSON."""

OWN = {b"/health": Kind.HEALTH, b"/metrics": Kind.METRICS}

_API_VERSION = re.compile(rb"api-version=")
"""Azure wants it in every query, but for its v1 API; OpenAI has none (openai-python, ``lib/azure.py``)."""

MAX_REMEMBERED = 256
"""Routes kept. Clients choose paths, so there is a bound."""

_BARE = re.compile(rb"/v1/(messages|complete)(?![^/])")
"""Anthropic's own paths, whatever the header fields say; `_BARE.match` needs no end."""

_KEY = re.compile(rb"[!-~]+")
"""A credential that can stand in a header field."""


def match(method: str, target: bytes, *, anthropic_version: bool) -> Route:
    """The route of a request; `anthropic_version` says whether it has that header.

    Raises `ProxyError`: 400 for a target that is refused, 404 for a path nobody serves, 405 for a
    method that is never relayed or that an own route lacks.
    """
    path, mark, query = target.partition(b"?")
    if b"#" in target:
        raise readings.bad_target()
    # Without the query: it may hold a key, which nothing may remember.
    azure = any(map(_API_VERSION.match, query.split(b"&")))
    route = _match(method, path, anthropic_version, azure)
    if route.span[1] and (asked := FORMATS[route.wire_format].sse_query):
        route = route._replace(events=asked in query.split(b"&"))
    return route._replace(path=route.path + mark + query) if mark else route


def without_keys(target: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """A request target without the credentials in its query, and these as fields. Raises `ProxyError` 400."""
    path, mark, query = target.partition(b"?")
    root = _root(path) if mark else None
    if root is None or not root.format.query_keys:
        return target, []
    kept, fields = [], []
    for member in query.split(b"&"):
        name, _, value = member.partition(b"=")
        field = root.format.query_keys.get(unquote_to_bytes(name))
        if field is None:
            kept.append(member)
        elif key := unquote_to_bytes(value):
            if not _KEY.fullmatch(key):
                wrong = f"`{unquote_to_bytes(name).decode()}` in the query is no credential."
                raise ProxyError(400, wrong, source=Source.DOWNSTREAM)
            fields.append((field[0], field[1] + key))
    return path + mark * bool(kept) + b"&".join(kept), fields


@functools.lru_cache(MAX_REMEMBERED)
def _match(method: str, target: bytes, anthropic_version: bool, azure: bool = False) -> Route:
    if method in ("CONNECT", "TRACE"):
        # CONNECT would make us a tunnel; TRACE would echo our own key back (RFC 9110 section 9.3.8).
        raise ProxyError(405, f"{method} is not served.", source=Source.DOWNSTREAM)
    if target in OWN:
        # In this one spelling: who keeps a path from the public in front of us names it so.
        if method not in ("GET", "HEAD"):
            raise _not_allowed("GET, HEAD")
        return Route(OWN[target], "anthropic", b"", target, target.decode())
    found = _checked(target)
    if method == "HEAD" and (found[0] == b"/" or found[0].endswith(b"/api/hello")):
        return Route(Kind.PROBE, "anthropic", b"", target, "probe")
    if target.startswith(b"/api/governance/"):
        return Route(Kind.API, "anthropic", b"", target, "/api/*")
    if target.startswith(ASYNC):
        return _job(method, target.removeprefix(ASYNC))
    root = _root(target)
    if root in (None, _BARE_ROOT):
        bare = [read for read in found if read.startswith(b"/v1/")]
        if bare and (anthropic_version or any(map(_BARE.match, bare))):
            # An Anthropic SDK whose base URL is our root.
            root = Root(b"", b"", FORMATS["anthropic"])
        elif bare and root is None:
            raise readings.bad_target()
    if root is None:
        raise nothing()
    framework, openai, _ = root.cut.partition(b"/openai")
    if azure and openai and root.format.name == "openai":
        # Azure's SDK at our root: what has no deployment is told from OpenAI's by the version alone.
        root = Root(root.begins, framework, FORMATS["azure"])
    return _below(method, root, target, found)


def wire_format_of(path: str) -> str:
    """The wire format in which to say that a request cannot be routed."""
    target = path.encode("utf-8", "surrogateescape")
    root = _root(target)
    return root.format.name if root is not None and not _BARE.match(target) else "anthropic"


@functools.lru_cache(MAX_REMEMBERED)
def _root(path: bytes) -> Root | None:
    return next((root for root in ROOTS if path.startswith(root.begins)), None)


def _job(method: str, rest: bytes) -> Route:
    """The route to jobs by paths of their own."""
    prefix = ASYNC.rstrip(b"/")
    if rest in ASYNC_PATHS:
        wire_format, path = ASYNC_PATHS[rest]
        form = FORMATS[wire_format]
        if method != "POST":
            raise _not_allowed("POST")
        return Route(
            Kind.MODEL,
            wire_format,
            prefix,
            path,
            f"/v1/async/{rest.decode()}",
            form.operation(path),
            by_job_path=True,
            place=form.paths[path],
        )
    name, _, job = rest.rpartition(b"/")
    if name not in ASYNC_PATHS or not job:
        raise nothing()
    if method not in ("GET", "HEAD", "DELETE"):
        raise _not_allowed("GET, HEAD, DELETE")
    route = _job("POST", name)
    return route._replace(kind=Kind.JOB, path=b"", job=job.decode("latin-1"))


def nothing() -> ProxyError:
    """What a path is answered at which nothing is."""
    return ProxyError(
        404,
        "Nothing is served at this path. Use /anthropic, /openai, /genai, /cohere or /bedrock and the"
        " provider's own path behind it, or /v1/... with provider/model as the model.",
        source=Source.DOWNSTREAM,
    )


def _below(method: str, root: Root, target: bytes, ways: list[bytes]) -> Route:
    """The route of a path below `root`; `ways` are those in which the whole path may be read."""
    form, raw = root.format, target[len(root.cut) :]
    route = Route(Kind.OPEN, form.name, root.cut, raw, f"/{form.name}/*")
    below = [read[len(root.cut) :] for read in ways if read.startswith(root.cut + b"/")]
    if method in ("GET", "HEAD") and root.lists and b"/models" in below:
        return route._replace(kind=Kind.MODELS, label="/v1/models")
    writes = method not in ("GET", "HEAD", "DELETE", "OPTIONS")
    if writes and not (below and all(map(form.free_paths.fullmatch, below))):
        route = route._replace(unseen=True)
    if any(map(form.batches.fullmatch, below)):
        return route._replace(kind=Kind.BATCH, label=f"/{form.name}/batches")
    if method != "POST":
        found = form.read_path.fullmatch(raw) if form.read_path is not None else None
        return route._replace(span=found.span("model")) if found and _is_plain(found) else route
    path = next(filter(form.paths.__contains__, below), None)
    # What names a model tells what it uses up, but for these; of what names none nobody knows.
    lasting = any(map(form.lasting.fullmatch, below))
    unseen = lasting or any(map(form.unseen.fullmatch, below))
    if path is not None:
        operation = form.operation(path)
        events = path not in form.line_paths
        return route._replace(
            kind=Kind.MODEL,
            label=operation,
            operation=operation,
            place=form.paths[path],
            events=events,
            unseen=unseen,
            lasting=lasting,
        )
    if form.model_path is None or not any(map(form.model_path.fullmatch, below)):
        return route._replace(kind=Kind.HELD) if form.holds_all else route
    found = form.model_path.fullmatch(raw)
    if found is None or not _is_plain(found):
        raise ProxyError(
            400,
            "The model in the path is not to be read in one way only; write it with letters, digits and"
            " . _ - : / @ + = , ~ ( ), percent-encoded where you like.",
            source=Source.DOWNSTREAM,
        )
    known = form.methods.get(found["method"].lower())
    operation = form.model_path_label + (known.name if known else "*")
    return route._replace(
        kind=Kind.MODEL,
        label=operation,
        operation=operation,
        place=known.place if known else Place.PATH,
        span=found.span("model"),
        stream=known is not None and known.stream,
        unseen=unseen,
        lasting=lasting,
    )


def _is_plain(found: re.Match[bytes]) -> bool:
    return readings.is_plain(unquote_to_bytes(found["model"]))


def _checked(path: bytes) -> list[bytes]:
    """What `path` may be to the laxest upstream; the first is the likeliest."""
    found = readings.of(path)
    here = _root(path)
    if any(there is not here for there in map(_root, found) if there not in (None, _BARE_ROOT)):
        # What is one only after decoding would not be cut off the raw target.
        raise readings.bad_target()
    return found


def _not_allowed(allowed: str) -> ProxyError:
    return ProxyError(
        405,
        f"This method is not served here; allowed: {allowed}.",
        source=Source.DOWNSTREAM,
        headers=((b"Allow", allowed.encode()),),
    )
