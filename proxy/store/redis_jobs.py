"""Jobs in Redis, for workers of several machines.

Facts
  - What stands between MULTI and EXEC is sent at once and done without anything in between, or not at all
    (redis.io/docs/interact/transactions).
  - An argument of a script is copied into Lua and from there to its key: for 32 MiB the server stood still
    for 60 ms, for SET and RENAME 17 ms. Lua keeps its copy until it collects.
  - With ``appendonly yes`` and ``appendfsync always`` what was answered is on disk
    (redis.io/docs/management/persistence).

Rules
  1. Every change of a job's state is one script (`redis_scripts`).
  2. No body goes through Lua. SET puts it aside, and a script of the same transaction renames it.
  3. The server's clock says nothing. A result is kept for as long as lies between its `completed` and its
     `expires`, from when it came; and a poll compares `expires` with its own `now`.

When an answer is lost, what was asked may be done all the same. Asked again,
  - `submit` keeps no job twice, `begin` counts no beginning twice, `finish` says True: its end is kept;
  - `claim` takes another job: the first is the worker's, who sees it in `held`;
  - `hand_back` says False and `remove` None, for nothing is left to do;
  - `due` gives another delivery: the first comes again when its `again` has come.

Not here: the connections (`redis_link`). A Redis that evicts keys (``maxmemory-policy``) loses jobs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from redis import exceptions
from redis.commands.core import AsyncScript

from proxy.job import Bounds, Claim, Delivery, Ending, Found, Held, Job, Lease, State
from proxy.ports import StoreError

from . import redis_scripts
from .redis_link import RedisLink

logger = logging.getLogger(__name__)

# Bodies are large: 32 MiB are sent within 3 s at 100 Mbit/s.
_SILENCE = 5.0
"""How long the server may say nothing, in seconds."""

_PATIENCE = 10.0
"""How long a whole call may take, waiting for a connection included: no beat may wait until others think
that the worker is dead."""

_JOB, _REQUEST, _RESULT = "verbatim:job:", "verbatim:jobs:request:", "verbatim:jobs:result:"
_TOTALS, _BEATS, _DUE = "verbatim:jobs:totals", "verbatim:jobs:beats", "verbatim:jobs:due"
_STAGED = "verbatim:jobs:staged"

_FOUND = ("state", "owner", "operation", "created", "status", "answer", "packed", "completed", "expires")


class RedisJobs:
    """A `ports.JobStore`."""

    def __init__(self, url: str, password: str | None) -> None:
        self._url, self._password = url, password
        self._others: list[RedisJobs] = []
        self._link = RedisLink(url, password, silence=_SILENCE, patience=_PATIENCE)
        self._redis = self._link.redis
        self._claim = self._script(redis_scripts.CLAIM)
        self._begin = self._script(redis_scripts.BEGIN)
        self._hand_back = self._script(redis_scripts.HAND_BACK)
        self._remove = self._script(redis_scripts.REMOVE)
        self._held = self._script(redis_scripts.HELD)
        self._adopt = self._script(redis_scripts.ADOPT)
        self._leave = self._script(redis_scripts.LEAVE)
        self._next = self._script(redis_scripts.NEXT)
        self._purge = self._script(redis_scripts.PURGE)
        self._cursor: bytes | int = 0
        self._knows_persistence = False

    def __repr__(self) -> str:
        return f"<RedisJobs {self._link}>"

    def urgently(self) -> RedisJobs:
        """One with connections of its own."""
        other = RedisJobs(self._url, self._password)
        # What the server keeps need not be said twice.
        other._knows_persistence = True
        self._others.append(other)
        return other

    async def submit(self, job: Job, bounds: Bounds) -> str:
        answer = await self._stage(
            job.body,
            redis_scripts.SUBMIT,
            *(job.id, job.owner, job.operation, repr(job.created), job.ttl, job.webhook, job.head),
            *(bounds.jobs, bounds.jobs_of_owner, bounds.bytes),
        )
        return str(answer, "ascii")

    async def claim(self, worker: str, most_of_owner: int) -> Claim | None:
        taken: Claim | None = await self._ask(lambda: self._take(worker, most_of_owner))
        return taken

    async def _take(self, worker: str, most_of_owner: int) -> Claim | None:
        while answer := await self._claim(args=[worker, most_of_owner]):
            id, number, owner, operation, created, ttl, webhook, head = answer
            lease = Lease(id.decode(), worker, int(number))
            body: Any = await self._redis.get(_REQUEST + lease.id)
            if body is not None:
                texts = (lease.id, owner.decode(), operation.decode())
                told = (float(created), int(ttl), webhook.decode())
                return Claim(lease, Job(*texts, *told, head, body))
            # It was removed meanwhile.
        return None

    async def begin(self, lease: Lease) -> bool:
        return bool(await self._ask(lambda: self._begin(args=lease)))

    async def hand_back(self, lease: Lease) -> bool:
        return bool(await self._ask(lambda: self._hand_back(args=lease)))

    async def finish(self, lease: Lease, ending: Ending) -> bool:
        state = State.FAILED if ending.failed else State.COMPLETED
        answer = await self._stage(
            ending.body,
            redis_scripts.FINISH,
            *lease,
            *(state.value, ending.status, ending.head, int(ending.packed)),
            *(repr(ending.completed), repr(ending.expires)),
            max(1, math.ceil(ending.expires - ending.completed)),
        )
        return bool(answer)

    async def peek(self, id: str, now: float) -> Found | None:
        found: Found | None = await self._ask(lambda: self._glance(id, now))
        return found

    async def _glance(self, id: str, now: float) -> Found | None:
        fields: Any = self._redis.hmget(_JOB + id, _FOUND)
        return _found(id, await fields, b"", now)

    async def look(self, id: str, now: float) -> Found | None:
        found: Found | None = await self._ask(lambda: self._find(id, now))
        return found

    async def _find(self, id: str, now: float) -> Found | None:
        transaction = self._redis.pipeline(transaction=True)
        transaction.hmget(_JOB + id, _FOUND)
        transaction.get(_RESULT + id)
        fields, body = await transaction.execute()
        return _found(id, fields, body, now)

    async def remove(self, id: str) -> State | None:
        state = await self._ask(lambda: self._remove(args=[id]))
        return None if state is None else State(state.decode())

    # The workers.

    async def beat(self, worker: str) -> Mapping[str, int]:
        transaction = self._redis.pipeline(transaction=True)
        transaction.hincrby(_BEATS, worker, 1)
        transaction.hgetall(_BEATS)
        _, beats = await self._ask(transaction.execute)
        return {name.decode(): int(count) for name, count in beats.items()}

    async def held(self, worker: str) -> list[Held]:
        return [
            Held(
                Lease(id.decode(), worker, int(number)),
                operation.decode(),
                int(ttl),
                begun is not None,
                int(begins or 0),
            )
            for id, number, operation, ttl, begun, begins in await self._ask(
                lambda: self._held(args=[worker])
            )
        ]

    async def adopt(self, worker: str, dead: str, beat: int) -> None:
        await self._ask(lambda: self._adopt(args=[worker, dead, beat]))

    async def leave(self, worker: str) -> None:
        await self._ask(lambda: self._leave(args=[worker]))

    async def pending(self) -> int:
        return int(await self._ask(lambda: self._redis.hget(_TOTALS, "pending")) or 0)

    async def purge(self, now: float) -> bool:
        """Redis forgets jobs by itself. What it leaves are the ids of those whose webhook was not told."""
        self._cursor = await self._ask(lambda: self._purge(args=[self._cursor]))
        return self._cursor != b"0"

    # The webhooks.

    async def due(self, now: float, again: float) -> Delivery | None:
        delivery: Delivery | None = await self._ask(lambda: self._deliver(now, again))
        return delivery

    async def _deliver(self, now: float, again: float) -> Delivery | None:
        while (answer := await self._next(args=[repr(now), repr(again)])) is not None:
            if not answer:
                continue
            id, tries, webhook = answer
            found = await self._glance(id.decode(), now)
            if found is not None:
                return Delivery(webhook.decode(), found, tries)
            # It was removed meanwhile.
        return None

    async def told(self, id: str, again: float | None) -> None:
        if again is None:
            await self._ask(lambda: self._redis.zrem(_DUE, id))
        else:
            # Only if it still is there.
            await self._ask(lambda: self._redis.zadd(_DUE, {id: again}, xx=True))

    # The link.

    async def close(self) -> None:
        for other in self._others:
            await other.close()
        await self._link.close()

    def _script(self, text: str) -> AsyncScript:
        return self._redis.register_script(redis_scripts.SHARED + text)

    async def _stage(self, body: bytes, script: str, *arguments: str | bytes | int) -> Any:
        """Put a body aside and run a script that renames or forgets it, at once or not at all."""
        transaction = self._redis.pipeline(transaction=True)
        transaction.set(_STAGED, body)
        transaction.execute_command("EVAL", redis_scripts.SHARED + script, 0, *arguments)
        _, answer = await self._ask(transaction.execute)
        return answer

    async def _ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        answer = await self._link.ask(call)
        if not self._knows_persistence:
            self._knows_persistence = True
            await self._warn_unless_persistent()
        return answer

    async def _warn_unless_persistent(self) -> None:
        try:
            settings = await self._link.ask(self._persistence)
        except StoreError:
            # What was asked before has been answered. The next call finds out.
            self._knows_persistence = False
            return
        if settings == {"appendonly": "no", "save": ""}:
            logger.warning(
                "%s keeps nothing on disk: jobs are lost when it ends (appendonly and save are off)",
                self._link.url,
            )

    async def _persistence(self) -> Mapping[str | None, str | None]:
        """The settings that say what is kept on disk; none where the server does not tell."""
        try:
            return await self._redis.config_get("appendonly") | await self._redis.config_get("save")
        except exceptions.ResponseError:
            return {}


def _found(id: str, fields: Sequence[Any], body: bytes | None, now: float) -> Found | None:
    """A job from its fields `_FOUND` and from its result's body."""
    state, owner, operation, created, status, answer, packed, completed, expires = fields
    if state is None:
        return None
    ending = None
    if expires is not None:
        if body is None or float(expires) <= now:
            return None
        ended = (int(status), answer, body, packed == b"1", float(completed), float(expires))
        ending = Ending(state == b"failed", *ended)
    return Found(id, owner.decode(), operation.decode(), State(state.decode()), float(created), ending)
