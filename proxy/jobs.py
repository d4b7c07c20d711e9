"""Jobs as clients see them: submit, poll, cancel.

Facts
  - A job is answered for when it is in the store: whoever is told an id can be killed, and so can we.
  - SDKs ask again by themselves after a 5xx, 429, 408 or 409, unless ``x-should-retry`` says no. A job that
    has failed stays so.

Rules
  1. A job belongs to the virtual key, or else to the credentials, that it was made with. For everybody else,
     and after it has expired, it is the same 404 as an id that never was.
  2. A result is upstream's status, fields and body as they came; only what is ours is added to its fields.
  3. A job of which its client cannot know is forgotten again.

Not here: what the fields mean (`jobheads`), how things look (`jobviews`), who does the jobs (`work`).
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import secrets
import time
from collections.abc import Callable

from . import coding, headers, inbound, jobheads, jobviews
from .access import Holder
from .config import Config
from .errors import RETRY_SOON, ProxyError, Source
from .exchange import Exchange
from .job import Bounds, Ending, Found, Job, State
from .jobheads import Order
from .original import Original
from .plan import Plan
from .ports import Dispatch, JobStore, StoreError
from .reply import Reply
from .routes import Route
from .scanner import Scanner

RETRY_SECONDS = 5
"""What ``retry-after`` says when the queue is full."""

LARGE_BYTES = 65536
"""A result above this size is unpacked in a thread."""

SLICE_BYTES = 262144
"""A result is written in slices of this size, as fast as it is read."""

MAX_DECODED_BYTES = 67108864
"""A compressed result above this size is shown as it came."""

_BOUNDS = {
    "jobs": "jobs_full: too many jobs wait",
    "jobs_of_owner": "jobs_full: too many jobs of yours wait",
    "bytes": "jobs_full: the jobs that wait are too large together",
}


class Jobs:
    """Takes and answers for jobs. One per server."""

    def __init__(
        self,
        store: JobStore | None,
        dispatch: Dispatch | None,
        scanner: Scanner,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._scanner = scanner
        self._jobs = (store, dispatch) if store is not None and dispatch is not None else None
        self._clock = clock

    def _have(self) -> tuple[JobStore, Dispatch]:
        if self._jobs is None:
            raise _bad(400, "jobs_unavailable: jobs need a store, and this proxy has none.")
        return self._jobs

    async def submit(
        self,
        asked: Order,
        original: Original,
        route: Route,
        holder: Holder | None,
        plan: Plan,
        exchange: Exchange,
        config: Config,
        reply: Reply,
    ) -> None:
        """Keep a request as a job, and say so. Raises `ProxyError` 400, 429, 503."""
        store, dispatch = self._have()
        if exchange.stream:
            raise _bad(400, "A job cannot be streamed; leave `stream` out, or send false.")
        if original.body is None or (original.scan is not None and not original.scan.is_json):
            raise _bad(400, "A form cannot be sent as a job; leave x-bf-async out.")
        if asked.webhook and asked.webhook not in config.webhooks:
            raise _bad(400, f"No webhook is called {asked.webhook[:100]!r} (x-bf-async-webhook).")
        settings = config.jobs
        shows_own = any(target.may_show_credentials for target in plan.targets)
        unified = route.by_job_path
        request = jobheads.Request(
            route,
            original.outgoing.kept(credentials=shows_own),
            holder.id if holder is not None else "",
            # Its result will stand in a document of ours.
            unified,
        )
        job = Job(
            id=f"job_{secrets.token_hex(16)}",
            owner=_owner(holder, original.outgoing),
            operation=route.operation,
            created=self._clock(),
            ttl=min(asked.ttl or settings.result_ttl, settings.max_result_ttl),
            webhook=asked.webhook,
            head=request.dumps(),
            body=original.body or b"",
        )
        bounds = Bounds(settings.max_pending, settings.max_pending_per_key, settings.max_pending_bytes)
        try:
            full = await store.submit(job, bounds)
        except BaseException as failure:
            # It may be there all the same.
            dispatch.forget(job.id)
            if isinstance(failure, StoreError):
                raise _unanswered() from None
            raise
        if full:
            again = (b"retry-after", b"%d" % RETRY_SECONDS)
            message = f"{_BOUNDS[full]}; send this one again later."
            raise ProxyError(429, message, source=Source.DOWNSTREAM, headers=(again,))
        exchange.job = job.id
        waits = Found(job.id, job.owner, job.operation, State.PENDING, job.created, None)
        try:
            _say(waits, route, exchange, reply)
        except ConnectionError:
            dispatch.forget(job.id)
            raise
        dispatch.come()

    async def about(
        self,
        asked: Order,
        method: str,
        route: Route,
        holder: Holder | None,
        outgoing: headers.Outgoing,
        exchange: Exchange,
        reply: Reply,
        hold: Callable[[int], None],
    ) -> None:
        """Answer what is asked about a job; `hold` is told of its bytes.

        Raises `ProxyError` 400, 404, 503.
        """
        store, dispatch = self._have()
        exchange.job = asked.id
        try:
            found = await store.peek(asked.id, self._clock())
            owner = _owner(holder, outgoing)
            if (
                found is None
                or not hmac.compare_digest(found.owner.encode(), owner.encode())
                or found.operation != route.operation
            ):
                raise _gone()
            if method == "DELETE":
                state = await store.remove(found.id) or found.state
                dispatch.drop(found.id)
                head = _own_head(found, exchange)
                reply.whole(200, head, jobviews.removed(found.id, state))
            elif found.ending is None:
                _say(found, route, exchange, reply)
            else:
                await self._give(store, found, found.ending, method, route, exchange, reply, hold)
        except StoreError:
            raise _unanswered() from None

    async def _give(
        self,
        store: JobStore,
        found: Found,
        ending: Ending,
        method: str,
        route: Route,
        exchange: Exchange,
        reply: Reply,
        hold: Callable[[int], None],
    ) -> None:
        """Answer with a result, as fast as it is read."""
        kept = jobheads.Answer.loads(ending.head)
        plain = b""
        if method != "HEAD":
            # Before it is there; and once more for the document, or for what it is unpacked from.
            hold(2 * kept.size)
            whole = await store.look(found.id, self._clock())
            if whole is None or whole.ending is None:
                raise _gone()
            unpack = functools.partial(jobviews.body, whole.ending)
            plain = await asyncio.to_thread(unpack) if kept.size > LARGE_BYTES else unpack()
        if route.by_job_path:
            head = _own_head(found, exchange)
            body = await self._document(found, kept, plain, hold) if method != "HEAD" else b""
            status, reason = 200, b""
            if method != "HEAD":
                head.set_length(len(body))
        else:
            head = _head(found, ending, kept)
            body, status, reason = kept.error or plain, ending.status, kept.reason
            if status not in (204, 304):
                head.set_length(len(kept.error) or kept.size)
        reply.begin(status, reason, head, body[:SLICE_BYTES])
        for start in range(SLICE_BYTES, len(body), SLICE_BYTES):
            if reply.slow:
                await reply.drain()
            reply.push(body[start : start + SLICE_BYTES])
        if reply.waiting:
            # What waits for its reader is held until it has left.
            await reply.drain(last=True)
        reply.end()

    async def _document(
        self, found: Found, kept: jobheads.Answer, plain: bytes, hold: Callable[[int], None]
    ) -> bytes:
        """A job that is over as ``/v1/async`` shows it."""
        is_object = kept.is_object
        if kept.codings:
            try:
                plain = await self._scanner.decode(coding.decoded, plain, kept.codings, MAX_DECODED_BYTES)
            except ProxyError:
                # It is shown as what it is.
                pass
            else:
                hold(2 * len(plain))
                is_object = await self._scanner.is_object(plain)
        show = functools.partial(jobviews.unified, found, plain, kept.error, is_object=is_object)
        return await asyncio.to_thread(show) if len(plain) > LARGE_BYTES else show()


def _own_head(found: Found, exchange: Exchange) -> inbound.Head:
    """The head of an answer of ours about a job."""
    request_id = exchange.format.request_id, exchange.request_id.encode()
    return inbound.Head((headers.JSON, request_id, *_told(found)))


def _say(found: Found, route: Route, exchange: Exchange, reply: Reply) -> None:
    """Answer for a job that is not over."""
    head = _own_head(found, exchange)
    if route.by_job_path:
        reply.whole(202, head, jobviews.unified(found))
    else:
        reply.whole(200, head, jobviews.pending(found.operation, found.id, exchange.model))


def _head(found: Found, ending: Ending, kept: jobheads.Answer) -> inbound.Head:
    """The fields of a result on a provider's own route."""
    head = inbound.Head(_told(found))
    if ending.failed and not any(line.lower().startswith(b"x-should-retry:") for line in kept.lines):
        head.lines.append(b"x-should-retry: false")
    head.lines[:0] = kept.lines
    head.has_date = kept.has_date
    return head


def _told(found: Found) -> tuple[tuple[bytes, bytes], ...]:
    return (headers.JOB_STATUS, found.state.value.encode()), (headers.JOB_ID, found.id.encode("latin-1"))


def _owner(holder: Holder | None, outgoing: headers.Outgoing) -> str:
    return f"key {holder.id}" if holder is not None else f"credential {outgoing.credential_digest()}"


def _gone() -> ProxyError:
    return _bad(404, "job_not_found: there is no such job, or its result has expired.")


def _unanswered() -> ProxyError:
    return ProxyError(
        503, "The store of jobs cannot be asked now; send the request again.", headers=(RETRY_SOON,)
    )


def _bad(status: int, message: str) -> ProxyError:
    return ProxyError(status, message, source=Source.DOWNSTREAM)
