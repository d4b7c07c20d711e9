"""The management API: ``/api/governance/*``.

Facts
  - Paths, members and statuses are Bifrost's (transports/bifrost-http/handlers/governance.go and
    docs/openapi): POST answers 200, a page has 25 entries unless `limit` says another number up to 100, and
    without any parameter there is one page with all.
  - There a key's value can be read again at any time. Here it cannot.
  - A 401 says how to authenticate (RFC 9110 section 11.6.1); a 405 says what is allowed (section 15.5.6).

Rules
  1. The admin key opens everything but the quota route, whose credential is the virtual key that it is about.
  2. Credentials are compared as digests, in constant time. Of what is sent only names are repeated or logged.
  3. The value of a virtual key stands in the answers of POST and of rotate, and in no other.

Not here: what an operation does (`registry`), how things are shown (`views`), the limit of a body (`handle`).
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

import orjson

from . import values, views
from .config import Config
from .entry import IN_WORDS, Entry, Spent
from .errors import RETRY_SOON, ProxyError, Source
from .headers import Fields, Outgoing
from .holders import Holders
from .ports import Store, StoreError
from .registry import Registry
from .schema import nearest, printable

PATH = "/api/governance/"

COLLECTIONS = {"virtual-keys": "virtual_key", "teams": "team", "customers": "customer"}

DEFAULT_PAGE, MAX_PAGE = 25, 100

_FILTERS = {"virtual_key": ("team_id", "customer_id"), "team": ("customer_id",), "customer": ()}

_NO_STORE = (b"Cache-Control", b"no-store")
_AUTHENTICATE = (b"WWW-Authenticate", b"Bearer")

logger = logging.getLogger(__name__)

Body = Callable[[], Awaitable[bytes]]


class Answer(NamedTuple):
    """A JSON answer. `fields` are those besides its type and length."""

    status: int
    body: bytes
    fields: tuple[tuple[bytes, bytes], ...] = ()


class Governance:
    """Answers the management routes. One per server."""

    def __init__(self, store: Store | None, holders: Holders, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._holders = holders
        self._clock = clock
        self._admin: bytes | None = None
        self._registry: Registry | None = None

    def use(self, config: Config) -> None:
        """Go by this config from now on."""
        key = config.admin_key
        self._admin = values.digest(key.reveal().encode("latin-1")) if key is not None else None
        self._registry = Registry(self._store, config, self._clock)

    async def answer(
        self, method: str, target: str, raw_headers: Fields, outgoing: Outgoing, body: Body
    ) -> Answer:
        """The answer to one request, whatever was sent. `target` is a path below `PATH` with its query."""
        if self._registry is None:
            raise AssertionError("no config is used yet")
        try:
            answer = await self._route(self._registry, method, target, raw_headers, outgoing, body)
        except ProxyError as error:
            answer = _failed(error.status, error.message, error.headers)
        except StoreError:
            wrong = "the store cannot be asked now; look whether a change was made before you repeat it"
            answer = _failed(503, wrong, (RETRY_SOON,))
        return answer._replace(fields=(*answer.fields, _NO_STORE))

    async def _route(
        self,
        registry: Registry,
        method: str,
        target: str,
        raw_headers: Fields,
        outgoing: Outgoing,
        body: Body,
    ) -> Answer:
        path, _, query = target.partition("?")
        steps = path.removeprefix(PATH).split("/")
        if steps == ["virtual-keys", "quota"]:
            return await _chosen(method, {"GET": lambda: self._quota(registry, outgoing)})
        if not self._is_admin(raw_headers):
            raise _refused(
                401, "the admin key is wanted, as Authorization: Bearer … or x-api-key", _AUTHENTICATE
            )
        kind = COLLECTIONS.get(steps[0])
        handlers: dict[str, Callable[[], Awaitable[Answer]]] = {}
        if kind is not None and len(steps) == 1:
            handlers = {
                "GET": lambda: _list(registry, kind, query),
                "POST": lambda: self._create(registry, kind, body),
            }
        elif kind is not None and len(steps) == 2:
            id = unquote(steps[1])
            handlers = {
                "GET": lambda: _get(registry, kind, id),
                "PUT": lambda: self._change(registry, kind, id, body),
                "DELETE": lambda: self._delete(registry, kind, id),
            }
        elif kind == "virtual_key" and len(steps) == 3 and steps[2] == "rotate":
            id = unquote(steps[1])
            handlers = {"POST": lambda: self._rotate(registry, id)}
        if not handlers:
            raise _refused(404, f"nothing is served at this path; {PATH} has: {', '.join(COLLECTIONS)}")
        return await _chosen(method, handlers)

    def _is_admin(self, raw_headers: Fields) -> bool:
        if self._admin is None:
            return False
        admin = False
        for name, value in raw_headers:
            if name.lower() == b"authorization" and value[:7].lower() == b"bearer ":
                value = value[7:]
            elif name.lower() != b"x-api-key":
                continue
            # Of both only the digests, so that not even a length can be measured.
            admin |= hmac.compare_digest(values.digest(value.strip()), self._admin)
        return admin

    async def _quota(self, registry: Registry, outgoing: Outgoing) -> Answer:
        try:
            holder = await self._holders.authenticate(outgoing)
            if holder is None:
                raise _refused(401, "virtual_key_required: send the virtual key that it is about")
        except ProxyError as error:
            if error.status == 401:
                error.headers = (*error.headers, _AUTHENTICATE)
            raise
        return _answer(await views.quota(registry, holder))

    async def _create(self, registry: Registry, kind: str, body: Body) -> Answer:
        text = await _text(body)
        try:
            entry, value = await registry.create(kind, text)
        finally:
            # Whatever came of it: a store that failed may have done it.
            self._holders.forget()
        # Nothing is asked of the store any more: were it to fail now, the value would be lost.
        return _changed(entry, await registry.used(()), "created", value)

    async def _change(self, registry: Registry, kind: str, id: str, body: Body) -> Answer:
        text = await _text(body)
        try:
            entry = await registry.change(kind, id, text)
        finally:
            self._holders.forget()
        return _changed(entry, await registry.used(entry.limits()), "updated")

    async def _rotate(self, registry: Registry, id: str) -> Answer:
        usage = await registry.used((await registry.get("virtual_key", id)).limits())
        try:
            entry, value = await registry.rotate(id)
        finally:
            self._holders.forget()
        return _changed(entry, usage, "rotated", value)

    async def _delete(self, registry: Registry, kind: str, id: str) -> Answer:
        try:
            await registry.delete(kind, id)
        finally:
            self._holders.forget()
        logger.info("%s %s deleted", IN_WORDS[kind], id)
        return _answer({"message": f"{IN_WORDS[kind].capitalize()} deleted successfully"})


def _changed(entry: Entry, usage: Spent, done: str, value: str = "") -> Answer:
    logger.info("%s %s (%s) %s", IN_WORDS[entry.kind], entry.id, ascii(entry.name), done)
    shown = views.shown_as(entry, usage) | ({"value": value} if value else {})
    message = f"{IN_WORDS[entry.kind].capitalize()} {done} successfully"
    return _answer({"message": message, entry.kind: shown})


async def _list(registry: Registry, kind: str, query: str) -> Answer:
    asked = _asked(query, ("limit", "offset", "search", *_FILTERS[kind]))
    entries = [
        entry
        for entry in await registry.entries(kind, asked.get("search", ""))
        if all(getattr(entry.holds, name) == asked[name] for name in _FILTERS[kind] if name in asked)
    ]
    offset, limit = _number(asked, "offset"), _number(asked, "limit")
    # Bifrost's page sizes: all of them for who asks for nothing.
    limit = min(limit or DEFAULT_PAGE, MAX_PAGE) if asked else len(entries)
    page = entries[offset : offset + limit]
    return _answer(
        {
            f"{kind}s": await views.show(registry, page),
            "count": len(page),
            "total_count": len(entries),
            "limit": limit,
            "offset": offset,
        }
    )


async def _get(registry: Registry, kind: str, id: str) -> Answer:
    (shown,) = await views.show(registry, [await registry.get(kind, id)])
    return _answer({kind: shown})


async def _chosen(method: str, handlers: dict[str, Callable[[], Awaitable[Answer]]]) -> Answer:
    """What the handler of a method answers; HEAD is a GET whose body is not sent."""
    handler = handlers.get("GET" if method == "HEAD" else method)
    if handler is None:
        allowed = [*handlers, *(["HEAD"] if "GET" in handlers else [])]
        raise _refused(405, "this method is not served here", (b"Allow", ", ".join(allowed).encode()))
    return await handler()


async def _text(body: Body) -> str:
    try:
        return (await body()).decode()
    except UnicodeDecodeError:
        raise _refused(400, "not valid JSON: it is not UTF-8") from None


def _asked(query: str, known: Sequence[str]) -> dict[str, str]:
    """The parameters of a query. Raises `ProxyError` 400."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=20)
    except ValueError:
        raise _refused(400, "the query has too many parameters") from None
    asked: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            raise _refused(400, f'unknown parameter "{printable(name)}"{nearest(name, known)}')
        if name in asked:
            raise _refused(400, f"the parameter {name} stands in the query twice")
        asked[name] = value
    return asked


def _number(asked: dict[str, str], name: str) -> int:
    text = asked.get(name, "") or "0"
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise _refused(400, f"the parameter {name} must be a whole number that is not negative")
    return int(text)


def _answer(shown: dict[str, Any]) -> Answer:
    return Answer(200, orjson.dumps(shown))


def _failed(status: int, message: str, fields: tuple[tuple[bytes, bytes], ...]) -> Answer:
    """An error in Bifrost's shape."""
    shown = {"is_bifrost_error": True, "status_code": status, "error": {"message": message}}
    return Answer(status, orjson.dumps(shown), fields)


def _refused(status: int, message: str, *fields: tuple[bytes, bytes]) -> ProxyError:
    return ProxyError(status, message, source=Source.DOWNSTREAM, headers=fields)
