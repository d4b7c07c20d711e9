"""The registry: virtual keys, teams and customers, wherever they stand, and what is used up of their limits.

Facts
  - The members of what is shown are Bifrost's. What happens there to a member that nobody knows, or that a
    change leaves out, has cost its users budgets (maximhq/bifrost, issues 5673 and 6416).

Rules
  1. What stands in the config is shown and never changed; its id is its name. In the store ids are UUIDs, and
     a text that is none is never looked up there.
  2. A change names members: one that it leaves out keeps its value, ``null`` stands for the default. What it
     names is checked as the config is, and every problem is said at once.
  3. What a change does not name is not checked again: a key can be blocked though its provider has gone.
  4. A key's value is returned by `create` and `rotate`. What is kept is its digest.

Not here: who may ask for what (`governance`, `keycommand`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson
import yaml

from . import grants, holders, values
from .config import Config
from .entry import IN_WORDS, Entry, Spent, document_of, entry_of, instant, spec_of
from .errors import ProxyError, Source
from .grants import KINDS, PREFIX, Holds
from .limits import Limit
from .ports import Record, Store, Taken
from .schema import BROKEN, ConfigError, Document, from_json, printable
from .shapes import record, text

_NAMED_BY = {"virtual_key": (), "team": ("virtual_key",), "customer": ("virtual_key", "team")}
"""By kind: which other kinds may name one."""

MAX_NAME = 200
"""Characters of a name. It stands in log lines and metrics."""

SLICE = 50
"""Entries that are read or shown before others in the event loop get a turn: a few milliseconds."""

TRIES = 10
"""How often a change is made anew because another worker has changed the record meanwhile."""

MAX_LISTED = 20
"""Names, or problems, that one message lists."""

_LOOKS_SECRET = f"holds what looks like a virtual key ({PREFIX}…), and this is not secret"

_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


_Member = tuple[yaml.Node, yaml.Node]


class Registry:
    """What there is by one config and one store.

    Every method may raise `ProxyError`, whose message is for who asked, and `StoreError`.
    """

    def __init__(self, store: Store | None, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._configured: Mapping[str, Mapping[str, Holds]] = {
            "virtual_key": config.virtual_keys,
            "team": config.teams,
            "customer": config.customers,
        }
        self._changing = asyncio.Lock()
        """Held from the look at a record to its change, so that only other workers can overtake."""

    async def entries(self, kind: str, search: str = "") -> list[Entry]:
        """Those of a kind whose name contains `search` in any case, by name."""
        search = search.casefold()
        found = [Entry(kind, name, holds) for name, holds in self._configured[kind].items()]
        found = [entry for entry in found if search in entry.name.casefold()]
        for number, there in enumerate(await self._store.records(kind) if self._store is not None else (), 1):
            if search in there.name.casefold():
                found.append(entry_of(there))
            if number % SLICE == 0:
                await asyncio.sleep(0)
        return sorted(found, key=lambda entry: entry.name)

    async def get(self, kind: str, id: str) -> Entry:
        holds = self._configured[kind].get(id)
        return Entry(kind, id, holds) if holds is not None else entry_of(await self._stored(kind, id))

    async def find(self, kind: str, reference: str) -> Entry:
        """The one with this id, else with this name."""
        if reference in self._configured[kind] or _UUID.fullmatch(reference):
            return await self.get(kind, reference)
        there = None
        # What cannot be printed is nobody's name, and may be no Unicode either.
        if self._store is not None and reference.isprintable():
            there = await self._store.named(kind, reference)
        if there is None:
            raise _refused(404, f'no {IN_WORDS[kind]} has the id or the name "{printable(reference)}"')
        return entry_of(there)

    async def create(self, kind: str, body: str, name: str | None = None) -> tuple[Entry, str]:
        """Keep a new one, made of a JSON object; returns it, and the value of a virtual key.

        A `name` that is given stands for the member.
        """
        store = self._writable()
        members = _members(body)
        if name is not None:
            members = [*members, (_node("name"), _node(name))]
        name, holds, spec = await self._read(kind, None, members)
        value = holders.new_value() if kind == "virtual_key" else ""
        now = instant(int(self._clock()))
        made = Record(
            kind,
            str(uuid.uuid4()),
            name,
            values.digest(value.encode()) if value else None,
            document_of(spec, now, now),
        )
        try:
            await store.create(made)
        except Taken:
            raise _taken(kind, name) from None
        return Entry(kind, made.id, holds, "store", now, now), value

    async def change(self, kind: str, id: str, body: str) -> Entry:
        """Change the members that a JSON object names."""
        store = self._writable()
        members = _members(body)
        async with self._changing:
            for _ in range(TRIES):
                there = await self._stored(kind, id)
                entry = entry_of(there)._replace(updated_at=instant(int(self._clock())))
                name, holds, spec = await self._read(kind, there, members)
                document = document_of(spec, entry.created_at, entry.updated_at)
                if await _replaced(store, there, there._replace(name=name, document=document)):
                    return entry._replace(holds=holds)
        raise _overtaken(kind)

    async def rotate(self, id: str) -> tuple[Entry, str]:
        """Give a virtual key a new value, in place of its old one."""
        store = self._writable()
        value = holders.new_value()
        digest = values.digest(value.encode())
        async with self._changing:
            for _ in range(TRIES):
                there = await self._stored("virtual_key", id)
                entry = entry_of(there)._replace(updated_at=instant(int(self._clock())))
                document = document_of(spec_of(there), entry.created_at, entry.updated_at)
                if await _replaced(store, there, there._replace(digest=digest, document=document)):
                    return entry, value
        raise _overtaken("virtual_key")

    async def revoke(self, id: str) -> Entry:
        """Let a virtual key be refused from now on."""
        return await self.change("virtual_key", id, '{"is_active": false}')

    async def delete(self, kind: str, id: str) -> None:
        store = self._writable()
        async with self._changing:
            there = await self._stored(kind, id)
            naming = [
                f'the {IN_WORDS[other]} "{printable(entry.name)}"'
                for other in _NAMED_BY[kind]
                for entry in await self.entries(other)
                if getattr(entry.holds, f"{kind}_id") == id
            ]
            if naming:
                named = f'the {IN_WORDS[kind]} "{printable(there.name)}"'
                raise _refused(409, f"{named} is still named by {_listed(naming, ', ')}")
            if not await store.delete(kind, id):
                raise _unknown(kind)

    async def used(self, limits: Iterable[Limit]) -> Spent:
        """What is used up of `limits` now. The store is asked once."""
        now = self._clock()
        names = list(dict.fromkeys(limit.counter(now)[0] for limit in limits))
        counters = await self._store.read(names) if names and self._store is not None else []
        return Spent(dict(zip(names, counters, strict=True)), now)

    def _writable(self) -> Store:
        if self._store is None:
            wrong = "there is no store to keep it in: the config has no store: (sqlite:PATH or redis://…)"
            raise _refused(409, wrong)
        return self._store

    async def _stored(self, kind: str, id: str) -> Record:
        if id in self._configured[kind]:
            wrong = f'the {IN_WORDS[kind]} "{printable(id)}" stands in the config file; change it there'
            raise _refused(409, wrong)
        there = await self._store.get(kind, id) if self._store is not None and _UUID.fullmatch(id) else None
        if there is None:
            raise _unknown(kind)
        return there

    async def _read(
        self, kind: str, there: Record | None, members: Sequence[_Member]
    ) -> tuple[str, Any, str]:
        """Name, meaning and JSON of what is there with these members put over it."""
        # No shape of a grant reads a file.
        document = Document({}, str)
        known = {field.name for field in dataclasses.fields(KINDS[kind]) if "shape" in field.metadata}
        given = Counter(map(_key, members))
        merged: list[_Member] = []
        if there is not None:
            merged += [member for member in _members(spec_of(there)) if _key(member) not in given]
        merged += [
            member
            for member in members
            if _key(member) != "name"
            # One that stands there twice is a problem, whatever it is.
            and not (_is_null(member[1]) and _key(member) in known and given[_key(member)] == 1)
        ]
        node = yaml.MappingNode("tag:yaml.org,2002:map", merged)
        holds = document.read(record(KINDS[kind]), node, ())
        name = there.name if there is not None else BROKEN
        if given["name"] == 1:
            (named,) = (value for key, value in members if key.value == "name")
            name = document.read(text(_name), named, ("name",))
        elif given["name"]:
            document.problem(("name",), "repeated key")
        elif there is None:
            document.problem(("name",), "is missing, and there is no default")
        if holds is not BROKEN:
            await self._check(document, holds, set(given))
        if document.problems:
            raise _refused(400, _listed([str(problem) for problem in document.problems], "\n"))
        if name in self._configured[kind]:
            raise _taken(kind, name)
        return name, dataclasses.replace(holds, name=name), orjson.dumps(_plain(node)).decode()

    async def _check(self, document: Document, holds: Any, given: set[str]) -> None:
        """Note what the shapes cannot see of the members that are given."""
        description = getattr(holds, "description", None)
        if isinstance(description, str) and PREFIX in description:
            document.problem(("description",), _LOOKS_SECRET)
        before = len(document.problems)
        grants.check(document, (), holds, self._config.key_names(), priced=self._config.prices is not None)
        # Of a team and a customer together the second one is the problem, whichever was given.
        judged = given | {"customer_id"} if "team_id" in given else given
        document.problems[before:] = [
            problem for problem in document.problems[before:] if _first(problem.path) in judged
        ]
        for other in ("team", "customer"):
            wanted = getattr(holds, f"{other}_id", None)
            if isinstance(wanted, str) and f"{other}_id" in given:
                await self._check_group(document, other, wanted)

    async def _check_group(self, document: Document, kind: str, wanted: str) -> None:
        """Note that there is no such team or customer."""
        configured = self._configured[kind]
        store = self._store
        if wanted in configured or store is None:
            return
        if _UUID.fullmatch(wanted) and await store.get(kind, wanted) is not None:
            return
        called = await store.named(kind, wanted)
        if called is not None:
            wrong = f'wanted an id; the {kind} called "{printable(wanted)}" has the id {called.id}'
        else:
            ids = [*configured, *(each.id for each in await store.records(kind))]
            wrong = values.dangling(kind, wanted, ids)
        document.problem((f"{kind}_id",), wrong)


async def _replaced(store: Store, there: Record, changed: Record) -> bool:
    """Whether the change was made; False when another worker has changed the record meanwhile."""
    try:
        return await store.replace(changed, there)
    except Taken:
        raise _taken(changed.kind, changed.name) from None


def _members(body: str) -> list[_Member]:
    """The members of a JSON object, repeated ones included. Raises `ProxyError` 400."""
    try:
        node = from_json(body)
    except ConfigError as error:
        raise _refused(400, str(error)) from None
    if not isinstance(node, yaml.MappingNode):
        raise _refused(400, "wanted a JSON object")
    return list(node.value)


def _key(member: _Member) -> str:
    return str(member[0].value)


def _node(value: str) -> yaml.Node:
    return yaml.ScalarNode("tag:yaml.org,2002:str", value, style='"')


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value == "null"


def _plain(node: yaml.Node) -> Any:
    """A value for `orjson.dumps`, with its numbers as they were spelt."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: _plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    text_there = isinstance(node, yaml.ScalarNode) and node.style is not None
    return node.value if text_there else orjson.Fragment(node.value)


def _name(value: str) -> str:
    if len(value) > MAX_NAME:
        raise ValueError(f"wanted at most {MAX_NAME} characters")
    if value != value.strip():
        raise ValueError("wanted no space at an end")
    if PREFIX in value:
        raise ValueError(_LOOKS_SECRET)
    return value


def _first(path: str) -> str:
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def _listed(items: Sequence[str], between: str) -> str:
    more = [f"and {len(items) - MAX_LISTED} more"] if len(items) > MAX_LISTED else []
    return between.join([*items[:MAX_LISTED], *more])


def _refused(status: int, message: str) -> ProxyError:
    return ProxyError(status, message, source=Source.PROXY if status >= 500 else Source.DOWNSTREAM)


def _unknown(kind: str) -> ProxyError:
    return _refused(404, f"no {IN_WORDS[kind]} has this id")


def _overtaken(kind: str) -> ProxyError:
    return _refused(409, f"others are changing this {IN_WORDS[kind]}; try again")


def _taken(kind: str, name: str) -> ProxyError:
    return _refused(409, f'another {IN_WORDS[kind]} is called "{printable(name)}" already')
