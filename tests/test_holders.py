"""Who holds a key: how long that is remembered, and what happens when the store is slow or away."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import orjson
import pytest

from proxy import config, holders, values
from proxy.errors import ProxyError
from proxy.grants import Team
from proxy.headers import Outgoing
from proxy.holders import Holders
from proxy.ports import Record, StoreError

VALUE = b"sk-bf-sk-test-stored"
CONFIG = config.load(
    "providers: {a: {base_urls: {anthropic: 'http://h'}, is_key_less: true}}", {}, lambda name: ""
)


def record(**spec: Any) -> Record:
    document = orjson.dumps(
        {"spec": orjson.dumps(spec).decode(), "created_at": "", "updated_at": ""}
    ).decode()
    return Record("virtual_key", "id-1", "ci", values.digest(VALUE), document)


class Store:
    """A store with one key, which can be slow and away."""

    def __init__(self) -> None:
        self.there: Record | None = record()
        self.groups: dict[str, Record] = {}
        self.asked = 0
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def find(self, digest: bytes) -> Record | None:
        self.asked += 1
        await self.gate.wait()
        if self.away:
            raise StoreError("away")
        return self.there

    async def get(self, kind: str, id: str) -> Record | None:
        return self.groups.get(f"{kind}/{id}")


class Asking:
    """Holders over such a store, by a clock that the test sets."""

    def __init__(self) -> None:
        self.store = Store()
        self.now = 1000.0
        self.holders = Holders(self.store, lambda: self.now)  # type: ignore[arg-type]
        self.holders.use(CONFIG)

    async def ask(self) -> str:
        """``active``, ``inactive``, or the status of the refusal."""
        try:
            holder = await self.holders.authenticate(Outgoing([(b"x-bf-vk", VALUE)]))
        except ProxyError as error:
            return str(error.status)
        assert holder is not None
        return "active" if holder.refusal(0.0) is None else "inactive"


@pytest.fixture
async def asking() -> Asking:
    return Asking()


async def turns() -> None:
    """Lets whoever asks come as far as the store, where it waits for the gate."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_key_costs_one_look_into_the_store_in_two_seconds(asking: Asking) -> None:
    """Then the next request looks again."""
    for _ in range(10):
        assert await asking.ask() == "active"
    assert asking.store.asked == 1
    asking.now += holders.FRESH_SECONDS
    assert await asking.ask() == "active"
    assert asking.store.asked == 2


@pytest.mark.parametrize("seconds", [2.0, 2.9, 3.0, 8.0, 90_000.0])
async def test_a_revoked_key_is_refused_three_seconds_later_whoever_asks_first(
    asking: Asking, seconds: float
) -> None:
    """Of many requests at once, and however slow the store is, none goes by what is older than that."""
    assert await asking.ask() == "active"
    asking.store.there = record(is_active=False)
    asking.now += seconds
    asking.store.gate.clear()
    many = [asyncio.ensure_future(asking.ask()) for _ in range(20)]
    await turns()
    asking.store.gate.set()
    said = await asyncio.gather(*many)
    assert "inactive" in said
    assert (said.count("active") > 0) is (seconds < holders.CHANGE_SECONDS)


async def test_what_a_slow_store_says_is_as_old_as_the_question(asking: Asking) -> None:
    """A key that is revoked while its look-up takes two seconds is not good for three more."""
    asking.store.gate.clear()
    slow = asyncio.ensure_future(asking.ask())
    await turns()
    asking.now += holders.FRESH_SECONDS
    asking.store.gate.set()
    assert await slow == "active"
    asking.store.there = record(is_active=False)
    assert await asking.ask() == "inactive"


async def test_while_the_store_is_away_who_was_known_stays_known(asking: Asking) -> None:
    """For an hour; who was not known before cannot be."""
    asking.store.away = True
    assert await asking.ask() == "503"
    asking.store.away = False
    assert await asking.ask() == "active"
    asking.store.away = True
    asking.now += holders.STALE_SECONDS - 1
    assert await asking.ask() == "active"
    asking.now += 2
    assert await asking.ask() == "503"


async def test_an_unknown_key_is_asked_for_once_in_two_seconds(asking: Asking) -> None:
    """And is known as soon as it is made, after that."""
    asking.store.there, there = None, asking.store.there
    for _ in range(5):
        assert await asking.ask() == "401"
    assert asking.store.asked == 1
    asking.store.there = there
    asking.now += holders.FRESH_SECONDS
    assert await asking.ask() == "active"


@pytest.mark.parametrize("group", ["team", "customer"])
async def test_without_the_team_or_customer_that_it_names_a_key_is_not_active(
    asking: Asking, group: str
) -> None:
    """Their limits are not known then, so there would be none."""
    asking.store.there = record(**{f"{group}_id": "gone"})
    assert await asking.ask() == "inactive"
    asking.holders.forget()
    asking.store.groups[f"{group}/gone"] = record()._replace(kind=group, digest=None)
    assert await asking.ask() == "active"


async def test_a_reload_is_at_once_true_for_keys_of_the_store(asking: Asking) -> None:
    """Their teams may stand in the config."""
    asking.store.there = record(team_id="red")
    asking.holders.use(dataclasses.replace(CONFIG, teams={"red": Team("red")}))
    assert await asking.ask() == "active"
    asking.holders.use(CONFIG)
    assert await asking.ask() == "inactive"


async def test_what_is_remembered_is_bounded(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients choose keys, so unknown ones take no more and more memory."""
    monkeypatch.setattr(holders, "MAX_REMEMBERED", 10)
    asking.store.there = None
    for number in range(50):
        with pytest.raises(ProxyError):
            await asking.holders.authenticate(Outgoing([(b"x-bf-vk", b"sk-bf-%d" % number)]))
    assert len(asking.holders._unknown) == 10
