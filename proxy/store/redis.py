"""The store in Redis, for workers of several machines.

Facts
  - INCRBY is exact in 64 bits (redis.io/commands/incrby); a number of Lua is a float and is not, so counters
    are never numbers there.
  - What stands between MULTI and EXEC is sent at once and done without anything in between, or not at all
    (redis.io/docs/interact/transactions).
  - A Redis that is killed loses what ``appendfsync`` allows: with ``everysec``, up to two seconds of answers
    (redis.io/docs/management/persistence).

Rules
  1. Everything is under ``verbatim:``. Of each kind of record there are three hashes: id -> record,
     name -> id, digest -> id. Only the scripts `_KEEP` and `_FORGET` change them.

Not here: the connections (`redis_link`), and when to ask (`ledger`). A Redis that evicts keys
(``maxmemory-policy``) forgets what was spent.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from proxy.ports import Change, Record, Taken

from .redis_link import RedisLink

_SILENCE = 2.0
"""How long the server may say nothing, in seconds."""

_PATIENCE = 5.0
"""How long a whole call may take, waiting for a connection included."""

_KEPT = 86400
"""How long a counter is kept after its window's end, in seconds: for who still has to give back."""

# KEYS: records, names, digests. ARGV: id, name, digest or "", record, what it was or "" where it is new.
_KEEP = """
local held = redis.call('HGET', KEYS[1], ARGV[1])
if ARGV[5] ~= '' and held ~= ARGV[5] then return 'missing' end
local named = redis.call('HGET', KEYS[2], ARGV[2])
local bearer = redis.call('HGET', KEYS[3], ARGV[3])
if ARGV[5] == '' and held or named and named ~= ARGV[1] or bearer and bearer ~= ARGV[1] then
    return 'taken'
end
if held then
    local old = cjson.decode(held)
    redis.call('HDEL', KEYS[2], old[2])
    redis.call('HDEL', KEYS[3], old[3])
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[1])
if ARGV[3] ~= '' then redis.call('HSET', KEYS[3], ARGV[3], ARGV[1]) end
return 'kept'
"""

# KEYS: records, names, digests. ARGV: id.
_FORGET = """
local held = redis.call('HGET', KEYS[1], ARGV[1])
if not held then return 0 end
local old = cjson.decode(held)
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], old[2])
redis.call('HDEL', KEYS[3], old[3])
return 1
"""

# KEYS: records, and names or digests. ARGV: a name or a digest.
_FIND = """
local id = redis.call('HGET', KEYS[2], ARGV[1])
return id and redis.call('HGET', KEYS[1], id)
"""


class RedisStore:
    """A `ports.Store`. Counters are not bounded above; a total below 0 is said to be 0."""

    def __init__(self, url: str, password: str | None) -> None:
        self._link = RedisLink(url, password, silence=_SILENCE, patience=_PATIENCE)
        self._redis = self._link.redis
        self._ask = self._link.ask
        self._keep = self._redis.register_script(_KEEP)
        self._forget = self._redis.register_script(_FORGET)
        self._find = self._redis.register_script(_FIND)

    def __repr__(self) -> str:
        return f"<RedisStore {self._link}>"

    # The counters.

    async def add(self, changes: Sequence[Change]) -> list[int]:
        if not changes:
            return []
        transaction = self._redis.pipeline(transaction=True)
        for change in changes:
            key = _counter(change.name)
            transaction.execute_command("INCRBY", key, change.amount)
            transaction.execute_command("EXPIREAT", key, change.ends + _KEPT)
        answers = await self._ask(transaction.execute)
        return [max(0, total) for total in answers[::2]]

    async def read(self, names: Sequence[str]) -> list[int]:
        if not names:
            return []
        values = await self._ask(lambda: self._redis.mget([_counter(name) for name in names]))
        return [max(0, int(value or 0)) for value in values]

    async def purge(self, now: int) -> None:
        """Nothing is left to do: Redis forgets a counter by itself, a day after its window's end."""

    # The records.

    async def find(self, digest: bytes) -> Record | None:
        return await self._by("virtual_key", 2, digest.hex())

    async def get(self, kind: str, id: str) -> Record | None:
        held = await self._ask(lambda: self._redis.hget(_hashes(kind)[0], id))
        return _record(kind, held)

    async def named(self, kind: str, name: str) -> Record | None:
        return await self._by(kind, 1, name)

    async def records(self, kind: str) -> list[Record]:
        everything = await self._ask(lambda: self._redis.hvals(_hashes(kind)[0]))
        records = [Record(kind, *_fields(held)) for held in everything]
        return sorted(records, key=lambda record: record.name)

    async def create(self, record: Record) -> None:
        await self._put(record, b"")

    async def replace(self, record: Record, was: Record) -> bool:
        return await self._put(record, _held(was))

    async def delete(self, kind: str, id: str) -> bool:
        return bool(await self._ask(lambda: self._forget(keys=_hashes(kind), args=[id])))

    async def _put(self, record: Record, was: bytes) -> bool:
        arguments: list[str | bytes] = [record.id, record.name, _hex(record), _held(record), was]
        answer = await self._ask(lambda: self._keep(keys=_hashes(record.kind), args=arguments))
        if answer == b"taken":
            raise Taken("the name or the digest is another record's")
        return bool(answer == b"kept")

    async def _by(self, kind: str, index: int, value: str) -> Record | None:
        hashes = _hashes(kind)
        held = await self._ask(lambda: self._find(keys=[hashes[0], hashes[index]], args=[value]))
        return _record(kind, held)

    async def close(self) -> None:
        await self._link.close()


def _hex(record: Record) -> str:
    return "" if record.digest is None else record.digest.hex()


def _held(record: Record) -> bytes:
    """A record as its hash holds it."""
    return orjson.dumps([record.id, record.name, _hex(record), record.document])


def _counter(name: str) -> str:
    return f"verbatim:counter:{name}"


def _hashes(kind: str) -> list[str]:
    """The keys of a kind: records, names, digests."""
    return [f"verbatim:{kind}", f"verbatim:{kind}:names", f"verbatim:{kind}:digests"]


def _fields(held: bytes) -> tuple[str, str, bytes | None, str]:
    id, name, digest, document = orjson.loads(held)
    return id, name, bytes.fromhex(digest) if digest else None, document


def _record(kind: str, held: bytes | None) -> Record | None:
    return None if held is None else Record(kind, *_fields(held))
