"""The management API: who may, what it answers, what it refuses, and that it shows a value exactly once."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rawclient import asked, request_head
from running import Proxy, StartProxy, StartUpstream
from scripted import MESSAGE, answer

from proxy import config as proxy_config
from proxy import governance, limits, registry, views
from proxy.governance import Governance
from proxy.headers import Outgoing
from proxy.holders import Holders
from proxy.ports import Change, Record, Store, StoreError
from proxy.store import open_store

ADMIN = b"sk-test-admin"
AS_ADMIN = ((b"Authorization", b"Bearer " + ADMIN),)
KEYS, TEAMS, CUSTOMERS = (f"/api/governance/{name}" for name in ("virtual-keys", "teams", "customers"))
ALL = (KEYS, TEAMS, CUSTOMERS)
UNKNOWN = "00000000-0000-4000-8000-000000000000"

PROVIDERS = """
admin_key: env.ADMIN
providers:
  anthropic:
    base_urls: {anthropic: "http://127.0.0.1:9"}
    keys: [{name: main, value: env.KEY}, {name: spare, value: env.KEY}]
  other: {base_urls: {anthropic: "http://127.0.0.1:9"}, is_key_less: true}
default_providers: {anthropic: anthropic}
"""

PRICES = "default: {input: 3, output: 15}\n"

AT = 1_800_000_000.0
"""2027-01-15T08:00:00Z, a Friday."""


class Said(NamedTuple):
    """An answer of the API. The numbers of `json` that have a fraction are decimals."""

    status: int
    json: Any
    text: str
    fields: dict[bytes, bytes]


class Api:
    """Asks, and holds every answer against what none may show: the admin key, and a value that was shown."""

    def __init__(
        self, send: Callable[[str, str, Sequence[tuple[bytes, bytes]], bytes], Awaitable[Said]]
    ) -> None:
        self._send = send
        self.values: list[str] = []

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        fields: Iterable[tuple[bytes, bytes]] = AS_ADMIN,
    ) -> Said:
        """`body` goes as JSON, or as it is when it is bytes."""
        sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        said = await self._send(method, path, tuple(fields), sent)
        assert said.fields.get(b"cache-control") == b"no-store", said
        for secret in (ADMIN.decode(), *self.values):
            assert secret not in said.text
        if said.status == 200 and isinstance(said.json, dict):
            value = said.json.get("virtual_key", {}).get("value")
            assert (value is not None) is (method == "POST" and "virtual-keys" in path)
            if value is not None:
                assert said.text.count(value) == 1
                self.values.append(value)
        return said

    async def made(self, path: str, **members: Any) -> dict[str, Any]:
        """What is made of `members`."""
        said = await self("POST", path, members)
        assert said.status == 200, said
        (made,) = (value for name, value in said.json.items() if name != "message")
        assert isinstance(made, dict)
        return made

    async def refused(self, status: int, method: str, path: str, body: Any = None, **options: Any) -> str:
        """The message of an error; everything else about it is checked here."""
        said = await self(method, path, body, **options)
        assert said.status == status, said
        assert said.json == {
            "is_bifrost_error": True,
            "status_code": status,
            "error": {"message": said.json["error"]["message"]},
        }
        return str(said.json["error"]["message"])


def said(status: int, body: bytes, fields: Iterable[tuple[bytes, bytes]]) -> Said:
    parsed = json.loads(body, parse_float=Decimal) if body else None
    return Said(status, parsed, body.decode(), {name.lower(): value for name, value in fields})


def bytes_in(directory: Path) -> bytes:
    """All that the files of a store hold."""
    return b"".join(path.read_bytes() for path in directory.glob("state.db*"))


def over_http(p: Proxy) -> Api:
    """The API of a running proxy."""

    async def send(method: str, path: str, fields: Sequence[tuple[bytes, bytes]], body: bytes) -> Said:
        framed = [(b"Host", b"proxy.test"), *fields, (b"Content-Length", b"%d" % len(body))]
        response = await p.ask(request_head(method, path, framed) + body, method)
        assert response.complete, response
        assert response.header("content-type") == b"application/json"
        return said(response.status, response.body, response.headers)

    return Api(send)


@pytest.fixture
async def api(proxy: StartProxy, upstream: StartUpstream, tmp_path: Path) -> Api:
    """The API of a proxy with a store and prices, and a config with one of each."""
    return over_http(await start(proxy, await upstream(), tmp_path))


async def start(proxy: StartProxy, up: Any, directory: Path, **settings: Any) -> Proxy:
    (directory / "prices.yaml").write_text(PRICES)
    defaults: dict[str, Any] = {
        "admin_key": "env.ADMIN",
        "environ": {"ADMIN": ADMIN.decode(), "FIXED": "sk-bf-test-fixed"},
        "store": f"sqlite:{directory}/state.db",
        "prices": str(directory / "prices.yaml"),
        "virtual_keys": {"fixed": {"value": "env.FIXED", "allow_all_providers": True, "team_id": "blue"}},
        "teams": {"blue": {"customer_id": "acme"}},
        "customers": {"acme": {"budgets": [{"max_limit": 10, "reset_duration": "1M"}]}},
    }
    return await proxy(up, **{**defaults, **settings})


class Direct:
    """Governance without a server: its clock stands still, and its store may be a faulty one."""

    def __init__(self, store: Store | None, config: str = "") -> None:
        self.config = proxy_config.load(PROVIDERS + config, ENVIRON, lambda _: PRICES)
        self.holders = Holders(store)
        self.governance = Governance(store, self.holders, lambda: AT)
        self.use(self.config)
        self.api = Api(self._send)

    def use(self, config: proxy_config.Config) -> None:
        self.holders.use(config)
        self.governance.use(config)

    async def _send(self, method: str, path: str, fields: Sequence[tuple[bytes, bytes]], body: bytes) -> Said:
        async def read() -> bytes:
            return body

        got = await self.governance.answer(method, path, fields, Outgoing(fields), read)
        return said(got.status, got.body, got.fields)


ENVIRON = {"ADMIN": ADMIN.decode(), "KEY": "sk-test-own"}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = open_store(f"sqlite:{tmp_path}/direct.db")
    yield opened
    await opened.close()


# What a key's life looks like.


async def test_a_key_is_made_used_rotated_blocked_and_deleted(
    proxy: StartProxy, upstream: StartUpstream, tmp_path: Path
) -> None:
    """Each change holds from the next request on, and the value goes no further than the proxy."""
    up = await upstream(answer(body=MESSAGE), answer(body=MESSAGE))
    p = await start(proxy, up, tmp_path)
    api = over_http(p)

    async def used(value: str) -> int:
        return (await p.post("/anthropic/v1/messages", asked(), [(b"x-bf-vk", value.encode())])).status

    key = await api.made(KEYS, name="ci", allow_all_providers=True)
    path = f"{KEYS}/{key['id']}"
    assert await used(key["value"]) == 200
    rotated = (await api("POST", f"{path}/rotate")).json["virtual_key"]
    assert rotated["id"] == key["id"]
    assert rotated["value"] != key["value"]
    assert await used(key["value"]) == 401
    assert await used(rotated["value"]) == 200
    assert (await api("PUT", path, {"is_active": False})).json["virtual_key"]["is_active"] is False
    assert await used(rotated["value"]) == 403
    assert (await api("DELETE", path)).json == {"message": "Virtual key deleted successfully"}
    assert await used(rotated["value"]) == 401
    assert await api.refused(404, "GET", path) == "no virtual key has this id"
    for value in api.values:
        assert value not in p.log_text
        assert value not in p.metrics_text
        assert all(value.encode() not in request.raw for request in up.requests)


async def test_what_is_kept_of_a_value_is_its_digest(api: Api, tmp_path: Path) -> None:
    """256 random bits; no file of the store holds the value, and one of them holds its SHA-256."""
    key = await api.made(KEYS, name="ci")
    await api("POST", f"{KEYS}/{key['id']}/rotate")
    kept = bytes_in(tmp_path)
    for value in api.values:
        assert value.startswith("sk-bf-")
        assert len(value) == 6 + 43
        assert value.encode() not in kept
    assert hashlib.sha256(api.values[-1].encode()).digest() in kept


async def test_what_each_operation_answers(store: Store) -> None:
    """Bifrost's members, all of them each time, and our own: source, and the window of each limit."""
    api = Direct(store, "prices: x\nstore: sqlite:x\n").api
    rate = {"request_max_limit": 60, "request_reset_duration": "1m"}
    team = await api.made(TEAMS, name="blue", rate_limit=rate)
    members = {
        "name": "ci",
        "description": "for builds",
        "expires_at": "2027-02-01T01:00:00+01:00",
        "provider_configs": [
            {
                "provider": "anthropic",
                "allowed_models": ["claude-*"],
                "key_ids": ["main"],
                "rate_limit": {"token_max_limit": 5000, "token_reset_duration": "1h"},
            }
        ],
        "budgets": [{"max_limit": 100, "reset_duration": "1M"}, {"max_limit": 5.5, "reset_duration": "1w"}],
        "team_id": team["id"],
    }
    made = await api("POST", KEYS, members)
    shown = {
        "id": made.json["virtual_key"]["id"],
        "name": "ci",
        "description": "for builds",
        "is_active": True,
        "expires_at": "2027-02-01T00:00:00Z",
        "allow_all_providers": False,
        "team_id": team["id"],
        "customer_id": None,
        "provider_configs": [
            {
                "provider": "anthropic",
                "allowed_models": ["claude-*"],
                "blacklisted_models": [],
                "key_ids": ["main"],
                "budgets": [],
                "rate_limit": {
                    "token_max_limit": 5000,
                    "token_current_usage": 0,
                    "token_reset_duration": "1h",
                    "token_last_reset": "2027-01-15T08:00:00Z",
                    "token_next_reset": "2027-01-15T09:00:00Z",
                },
            }
        ],
        "budgets": [
            {
                "max_limit": 100,
                "current_usage": 0,
                "reset_duration": "1M",
                "last_reset": "2027-01-01T00:00:00Z",
                "next_reset": "2027-02-01T00:00:00Z",
            },
            {
                "max_limit": Decimal("5.5"),
                "current_usage": 0,
                "reset_duration": "1w",
                "last_reset": "2027-01-11T00:00:00Z",
                "next_reset": "2027-01-18T00:00:00Z",
            },
        ],
        "rate_limit": None,
        "source": "store",
        "created_at": "2027-01-15T08:00:00Z",
        "updated_at": "2027-01-15T08:00:00Z",
    }
    assert made.json == {
        "message": "Virtual key created successfully",
        "virtual_key": {**shown, "value": made.json["virtual_key"]["value"]},
    }
    path = f"{KEYS}/{shown['id']}"
    assert (await api("GET", path)).json == {"virtual_key": shown}
    page = {"count": 1, "total_count": 1, "limit": 1, "offset": 0}
    assert (await api("GET", KEYS)).json == {"virtual_keys": [shown], **page}
    changed = await api("PUT", path, {"description": None})
    shown["description"] = None
    assert changed.json == {"message": "Virtual key updated successfully", "virtual_key": shown}
    rotated = await api("POST", f"{path}/rotate")
    value = rotated.json["virtual_key"]["value"]
    assert rotated.json == {
        "message": "Virtual key rotated successfully",
        "virtual_key": {**shown, "value": value},
    }
    assert (await api("GET", f"{TEAMS}/{team['id']}")).json == {"team": team}
    assert team["rate_limit"] == {
        "request_max_limit": 60,
        "request_current_usage": 0,
        "request_reset_duration": "1m",
        "request_last_reset": "2027-01-15T08:00:00Z",
        "request_next_reset": "2027-01-15T08:01:00Z",
    }
    customer = await api.made(CUSTOMERS, name="acme")
    assert list(customer) == ["id", "name", "budgets", "rate_limit", "source", "created_at", "updated_at"]


async def test_head_is_a_get_without_a_body(api: Api) -> None:
    """RFC 9110 section 9.3.2: the same fields, the length included."""
    assert (await api("HEAD", KEYS)).fields[b"content-length"] == b"%d" % len((await api("GET", KEYS)).text)
    assert (await api("HEAD", KEYS)).text == ""


# Who may.


@pytest.mark.parametrize(
    "fields",
    [
        AS_ADMIN,
        [(b"authorization", b"bearer  " + ADMIN)],
        [(b"X-API-Key", ADMIN)],
        [(b"Authorization", b"Basic YTpi"), (b"x-api-key", ADMIN)],
    ],
)
async def test_the_admin_key_opens(api: Api, fields: Sequence[tuple[bytes, bytes]]) -> None:
    """As a bearer or in x-api-key; a scheme has no case (RFC 9110 section 11.1)."""
    assert (await api("GET", KEYS, fields=fields)).status == 200


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"Authorization", b"Bearer")],
        [(b"Authorization", b"Bearer ")],
        [(b"Authorization", ADMIN)],
        [(b"Authorization", b"Basic " + ADMIN)],
        [(b"Authorization", b"Bearer " + ADMIN[:-1])],
        [(b"Authorization", b"Bearer " + ADMIN + b"x")],
        [(b"Authorization", b"Bearer " + ADMIN.upper())],
        [(b"Authorization", b"Bearer sk-bf-test-fixed")],
        [(b"x-api-key", b"")],
        [(b"x_api_key", ADMIN)],
        [(b"x-bf-vk", ADMIN)],
        [(b"Cookie", b"admin_key=" + ADMIN)],
    ],
)
async def test_nothing_else_does(api: Api, fields: Sequence[tuple[bytes, bytes]]) -> None:
    """401 before anything else is said: not which paths there are, and not which ids."""
    told = set()
    for method, path in (
        ("GET", KEYS),
        ("POST", TEAMS),
        ("PUT", f"{KEYS}/fixed"),
        ("DELETE", f"{KEYS}/{UNKNOWN}"),
        ("PATCH", CUSTOMERS),
        ("POST", f"{KEYS}/{UNKNOWN}/rotate"),
        ("GET", "/api/governance/nothing"),
        ("GET", f"{KEYS}?admin_key={ADMIN.decode()}"),
    ):
        said = await api(method, path, b"{", fields=fields)
        assert said.status == 401
        assert said.fields[b"www-authenticate"] == b"Bearer"
        told.add(said.text)
    assert len(told) == 1


async def test_credentials_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `hmac.compare_digest`, and as digests, so that not even a length can be measured."""
    compared: list[tuple[Any, Any]] = []
    compare = hmac.compare_digest

    def spy(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(governance.hmac, "compare_digest", spy)
    await Direct(None).api("GET", KEYS, fields=[(b"x-api-key", b"x")])
    assert compared == [(hashlib.sha256(b"x").digest(), hashlib.sha256(ADMIN).digest())]


async def test_without_an_admin_key_there_is_nothing(
    proxy: StartProxy, upstream: StartUpstream, tmp_path: Path
) -> None:
    """404, as at any path where nothing is served; the quota is no exception."""
    p = await start(proxy, await upstream(), tmp_path, admin_key=None)
    for path in (KEYS, f"{KEYS}/quota"):
        for fields in ([], AS_ADMIN, [(b"Authorization", b"Bearer "), (b"x-bf-vk", b"sk-bf-test-fixed")]):
            assert (await p.get(path, fields)).status == 404


async def test_a_governance_without_an_admin_key_lets_nobody_in() -> None:
    """Should it ever be asked all the same: an empty key is not the key that there is not."""
    direct = Direct(None)
    direct.use(dataclasses.replace(direct.config, admin_key=None))
    for value in (b"", ADMIN, b"None"):
        assert (await direct.api("GET", KEYS, fields=[(b"x-api-key", value)])).status == 401


# What its holder may know.


@pytest.mark.parametrize("name", [b"x-bf-vk", b"x-api-key", b"x-goog-api-key", b"api-key", b"Authorization"])
async def test_the_quota_is_for_the_holder(api: Api, name: bytes) -> None:
    """The virtual key is the credential, wherever a client puts it; no admin key is needed."""
    prefix = b"Bearer " if name == b"Authorization" else b""
    said = await api("GET", f"{KEYS}/quota", fields=[(name, prefix + b"sk-bf-test-fixed")])
    assert (said.status, said.json["virtual_key_name"]) == (200, "fixed")
    assert said.json["team"] == {"id": "blue", "budgets": [], "rate_limit": None}
    assert said.json["customer"]["id"] == "acme"
    assert said.json["customer"]["budgets"][0]["max_limit"] == 10


async def test_the_quota_shows_all_that_holds_for_a_key(store: Store) -> None:
    """Its own limits, those of each provider, of its team and of that one's customer, and what is used up."""
    api = Direct(store, "prices: x\nstore: sqlite:x\n").api
    budget = [{"max_limit": 2, "reset_duration": "1d"}]
    rate = {"request_max_limit": 60, "request_reset_duration": "1m"}
    customer = await api.made(CUSTOMERS, name="acme", budgets=budget)
    team = await api.made(TEAMS, name="blue", rate_limit=rate, customer_id=customer["id"])
    key = await api.made(
        KEYS,
        name="ci",
        expires_at="2027-02-01T00:00:00Z",
        budgets=budget,
        team_id=team["id"],
        provider_configs=[
            {"provider": "anthropic", "allowed_models": ["a"], "key_ids": ["main"], "budgets": budget},
            {"provider": "other", "blacklisted_models": ["b"], "rate_limit": rate},
        ],
    )
    day, minute = limits.window_end("1d", AT), limits.window_end("1m", AT)
    own = f"virtual_key/{key['id']}"
    used = {
        f"{own}/cost/1d/{day}": 123_456_789_012,
        f"{own}/anthropic/cost/1d/{day}": 1,
        f"{own}/other/requests/1m/{minute}": 3,
        f"team/{team['id']}/requests/1m/{minute}": 4,
        f"customer/{customer['id']}/cost/1d/{day}": 2_500_000_000_000,
        f"{own}/cost/1d/{day - 86400}": 7,
    }
    await store.add([Change(name, day, amount) for name, amount in used.items()])
    said = await api("GET", f"{KEYS}/quota", fields=[(b"x-bf-vk", key["value"].encode())])

    def spent(text: str) -> dict[str, Any]:
        window = {"last_reset": "2027-01-15T00:00:00Z", "next_reset": "2027-01-16T00:00:00Z"}
        return {"max_limit": 2, "current_usage": Decimal(text), "reset_duration": "1d", **window}

    def asked_for(count: int) -> dict[str, Any]:
        return {
            "request_max_limit": 60,
            "request_current_usage": count,
            "request_reset_duration": "1m",
            "request_last_reset": "2027-01-15T08:00:00Z",
            "request_next_reset": "2027-01-15T08:01:00Z",
        }

    assert said.json == {
        "virtual_key_name": "ci",
        "is_active": True,
        "expires_at": "2027-02-01T00:00:00Z",
        "budgets": [spent("0.123456789012")],
        "rate_limit": None,
        "provider_configs": [
            {
                "provider": "anthropic",
                "allowed_models": ["a"],
                "blacklisted_models": [],
                "budgets": [spent("0.000000000001")],
                "rate_limit": None,
            },
            {
                "provider": "other",
                "allowed_models": [],
                "blacklisted_models": ["b"],
                "budgets": [],
                "rate_limit": asked_for(3),
            },
        ],
        "team": {"id": team["id"], "budgets": [], "rate_limit": asked_for(4)},
        "customer": {"id": customer["id"], "budgets": [spent("2.5")], "rate_limit": None},
    }
    assert '"current_usage":0.123456789012,' in said.text


async def test_a_window_that_ends_while_the_quota_is_looked_up(store: Store) -> None:
    """All that is shown is of one moment, though a request takes the holder's limits into the next window."""
    counted = Counted(store)
    direct = Direct(counted, "store: sqlite:x\n")
    rate = {"request_max_limit": 60, "request_reset_duration": "1m"}
    key = await direct.api.made(KEYS, name="ci", rate_limit=rate)
    end = limits.window_end("1m", AT)
    await store.add([Change(f"virtual_key/{key['id']}/requests/1m/{end}", end, 5)])
    fields = [(b"x-bf-vk", key["value"].encode())]
    holder = await direct.holders.authenticate(Outgoing(fields))
    assert holder is not None
    counted.on_read = lambda: holder.limits[0].counter(AT + 60)
    shown = (await direct.api("GET", f"{KEYS}/quota", fields=fields)).json["rate_limit"]
    assert (shown["request_current_usage"], shown["request_next_reset"]) == (5, "2027-01-15T08:01:00Z")


async def test_the_quota_of_a_key_that_is_not_valid(api: Api) -> None:
    """Its holder sees that it is blocked, or when it expired."""
    key = await api.made(KEYS, name="old", is_active=False, expires_at="2020-01-01T00:00:00Z")
    said = await api("GET", f"{KEYS}/quota", fields=[(b"x-bf-vk", key["value"].encode())])
    assert (said.json["is_active"], said.json["expires_at"]) == (False, "2020-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (401, []),
        (401, AS_ADMIN),
        (401, [(b"x-bf-vk", b"sk-bf-test-unknown")]),
        (401, [(b"x-bf-vk", b"")]),
        (400, [(b"x-bf-vk", b"sk-bf-test-fixed"), (b"x-api-key", b"sk-bf-test-unknown")]),
    ],
)
async def test_the_quota_of_nobody(api: Api, status: int, fields: Sequence[tuple[bytes, bytes]]) -> None:
    """The admin key is no virtual key, and of two keys none is guessed."""
    said = await api("GET", f"{KEYS}/quota", fields=fields)
    assert (said.status, said.json["status_code"]) == (status, status)
    assert said.fields.get(b"www-authenticate") == (b"Bearer" if status == 401 else None)


# Lists.


async def test_a_list_has_pages(api: Api) -> None:
    """By name, the config's among the others; all for who asks for nothing, and Bifrost's 25 for who does."""
    for name in ("b", "Build", "a", "z"):
        await api.made(KEYS, name=name)

    async def page(query: str) -> tuple[list[str], list[int]]:
        said = (await api("GET", KEYS + query)).json
        counts = [said[name] for name in ("count", "total_count", "limit", "offset")]
        return [key["name"] for key in said["virtual_keys"]], counts

    assert await page("") == (["Build", "a", "b", "fixed", "z"], [5, 5, 5, 0])
    assert await page("?limit=2") == (["Build", "a"], [2, 5, 2, 0])
    assert await page("?limit=2&offset=4") == (["z"], [1, 5, 2, 4])
    assert await page("?offset=5") == ([], [0, 5, 25, 5])
    assert await page("?limit=0&offset=") == (["Build", "a", "b", "fixed", "z"], [5, 5, 25, 0])
    assert await page("?limit=101") == (["Build", "a", "b", "fixed", "z"], [5, 5, 100, 0])
    assert await page("?search=B") == (["Build", "b"], [2, 2, 25, 0])
    assert await page("?search=%66ix&limit=1") == (["fixed"], [1, 1, 1, 0])
    assert await page("?team_id=blue") == (["fixed"], [1, 1, 25, 0])
    assert await page("?customer_id=blue") == ([], [0, 0, 25, 0])
    assert (await api("GET", f"{TEAMS}?customer_id=acme")).json["count"] == 1


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=-1", "the parameter limit must be a whole number that is not negative"),
        ("offset=1e3", "the parameter offset must be a whole number that is not negative"),
        ("limit=%D9%A3", "the parameter limit must be a whole number that is not negative"),
        ("limit=1000000000", "the parameter limit must be a whole number that is not negative"),
        ("limit=1&limit=2", "the parameter limit stands in the query twice"),
        ("serach=x", 'unknown parameter "serach"; did you mean "search"?'),
        ("%0a%00=x", 'unknown parameter "\\n\\x00"; known: limit, offset, search, team_id, customer_id'),
        ("&".join("x=1" for _ in range(21)), "the query has too many parameters"),
    ],
)
async def test_a_query_that_means_nothing(api: Api, query: str, message: str) -> None:
    """It is refused: a filter that is passed over would show what was not asked for."""
    assert await api.refused(400, "GET", f"{KEYS}?{query}") == message


async def test_a_long_list_lets_others_have_a_turn(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams go on while entries are read and shown; one that is not asked for is not even read."""
    direct = Direct(store)
    for number in range(registry.SLICE * 3):
        await direct.api.made(TEAMS, name=f"t{number:03}")
    await store.create(Record("team", UNKNOWN, "odd", None, "nonsense"))
    done: list[object] = []
    turns: list[int] = []

    def noted(work: Callable[..., Any]) -> Callable[..., Any]:
        def do(*given: Any) -> Any:
            done.append(given)
            return work(*given)

        return do

    async def take_turns() -> None:
        while True:
            turns.append(len(done))
            await asyncio.sleep(0)

    monkeypatch.setattr(registry, "entry_of", noted(registry.entry_of))
    monkeypatch.setattr(views, "shown_as", noted(views.shown_as))
    taking = asyncio.create_task(take_turns())
    assert (await direct.api("GET", f"{TEAMS}?search=T")).json["total_count"] == registry.SLICE * 3
    await direct.api("DELETE", f"{TEAMS}/{UNKNOWN}")
    done.clear()
    turns.clear()
    assert (await direct.api("GET", TEAMS)).json["count"] == registry.SLICE * 3
    taking.cancel()
    steps = [later - earlier for earlier, later in itertools.pairwise([*turns, len(done)])]
    assert len(done) == registry.SLICE * 6
    assert max(steps) <= registry.SLICE


async def test_an_answer_asks_for_counters_once(store: Store) -> None:
    """However many keys a list has; and not at all when there is nothing to count."""
    counted = Counted(store)
    api = Direct(counted, "prices: x\nstore: sqlite:x\n").api
    rate = {"request_max_limit": 60, "request_reset_duration": "1m"}
    await api.made(KEYS, name="free")
    await api("GET", KEYS)
    assert counted.reads == []
    for name in ("a", "b", "c"):
        await api.made(KEYS, name=name, rate_limit=rate)
    counted.reads.clear()
    await api("GET", KEYS)
    assert [len(names) for names in counted.reads] == [3]


# Changes.


async def test_a_change_keeps_what_it_does_not_name(api: Api) -> None:
    """The name too: there an update that left it out cleared it (maximhq/bifrost, issue 6416)."""
    key = await api.made(
        KEYS,
        name="ci",
        description="for builds",
        budgets=[{"max_limit": 1, "reset_duration": "1d"}],
        provider_configs=[{"provider": "anthropic", "allowed_models": ["*"]}],
    )
    path = f"{KEYS}/{key.pop('id')}"
    del key["value"], key["updated_at"]

    async def after(**members: Any) -> dict[str, Any]:
        changed = (await api("PUT", path, members)).json["virtual_key"]
        assert changed == (await api("GET", path)).json["virtual_key"]
        return {name: value for name, value in changed.items() if name not in ("id", "updated_at")}

    assert await after() == key
    assert await after(is_active=False) == key | {"is_active": False}
    assert await after(is_active=None) == key
    assert await after(name="cd", budgets=[]) == key | {"name": "cd", "budgets": []}
    assert await after(provider_configs=None, description=None, name="ci", budgets=None) == key | {
        "budgets": [],
        "provider_configs": [],
        "description": None,
    }


@pytest.mark.parametrize(
    "written",
    ["0.123456789012", "999999.999999999999", "1000000", "0.000000000001", "0.1", "123456.789012345678"],
)
async def test_money_is_exact(api: Api, written: str) -> None:
    """Every digit that is sent comes back, through a change of something else too."""
    body = b'{"name": "ci", "budgets": [{"max_limit": %s, "reset_duration": "1d"}]}' % written.encode()
    said = await api("POST", KEYS, body)
    path = f"{KEYS}/{said.json['virtual_key']['id']}"
    for text in (
        said.text,
        (await api("PUT", path, {"is_active": False})).text,
        (await api("GET", path)).text,
    ):
        assert f'"max_limit":{written},' in text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"name": "a",}', "not valid JSON"),
        (b'{"name": "a", "budgets": NaN}', "not valid JSON"),
        (b'{"name": "a", "description": -Infinity}', "not valid JSON"),
        (b'\xef\xbb\xbf{"name": "a"}', "not valid JSON"),
        (b'{"name": "\xff"}', "not valid JSON: it is not UTF-8"),
        (b'{"name": "a"}{}', "not valid JSON"),
        (b"[" * 60000, "not valid JSON"),
        (b'{"a":' * 21 + b"1" + b"}" * 21, "nested more than 20 levels deep"),
        (b"[]", "wanted a JSON object"),
        (b'"name"', "wanted a JSON object"),
        (b"null", "wanted a JSON object"),
        (b"{}", "name: is missing, and there is no default"),
        (b'{"name": null}', "name: wanted a string, found no value; quote it if you mean the text"),
        (b'{"name": ["a"]}', "name: wanted a string, found a list"),
        (b'{"name": 1}', "name: wanted a string, found a number; quote it if you mean the text"),
        (b'{"name": "a", "name": "a"}', "name: repeated key"),
        (b'{"name": "a", "is_active": 1}', "is_active: wanted the word true or false, found a number"),
        (
            b'{"name": "a", "budget": {"max_limit": 1, "reset_duration": "1d"}}',
            'budget: unknown key; did you mean "budgets"?',
        ),
        (b'{"name": "a", "budget": null}', 'budget: unknown key; did you mean "budgets"?'),
        (
            b'{"name": "a", "budgets": [{"max_limit": 1e999, "reset_duration": "1d"}]}',
            "budgets[0].max_limit: wanted dollars in plain decimal digits,"
            " at most 12 of them after the point",
        ),
        (
            b'{"name": "a", "budgets": [{"max_limit": 1%s, "reset_duration": "1d"}]}' % (b"0" * 60000),
            "budgets[0].max_limit: wanted dollars in plain decimal digits,"
            " at most 12 of them after the point",
        ),
        (
            b'{"name": "a", "expires_at": "9999-12-31T23:59:59-01:00"}',
            "expires_at: wanted a time from 1970 to 9999, in UTC",
        ),
        (
            b'{"name": "a", "expires_at": "1969-12-31T23:59:59Z"}',
            "expires_at: wanted a time from 1970 to 9999, in UTC",
        ),
        (
            b'{"name": "a", "description": "sk-bf-abc"}',
            "description: holds what looks like a virtual key (sk-bf-…), and this is not secret",
        ),
        (b'{"name": "a", "team_id": "bleu"}', 'team_id: no team is called "bleu"; did you mean "blue"?'),
        (
            b'{"name": "a", "team_id": "blue", "customer_id": "acme"}',
            "customer_id: a key has a team or a customer, not both",
        ),
        (
            b'{"name": "a", "provider_configs": [{"provider": "antropic"}]}',
            'provider_configs[0].provider: no provider is called "antropic"; did you mean "anthropic"?',
        ),
        (
            b'{"name": "a", "rate_limit": {"request_max_limit": 1}}',
            "rate_limit.request_reset_duration: is missing; the two go together",
        ),
    ],
)
async def test_a_body_that_is_refused(api: Api, body: bytes, message: str) -> None:
    """400 says what is wrong, and nothing is kept of it."""
    assert await api.refused(400, "POST", KEYS, body) == message
    assert (await api("GET", KEYS)).json["count"] == 1


async def test_members_that_are_repeated(api: Api) -> None:
    """Readers disagree which of them counts, so none does; not even where one of them is null."""
    for twice in (b'"is_active": true, "is_active": false', b'"budgets": null, "budgets": []'):
        message = await api.refused(400, "POST", KEYS, b'{"name": "a", %s}' % twice)
        name = twice.split(b'"')[1].decode()
        assert any(line.startswith(f"{name}: repeated key") for line in message.splitlines())
    inner = b'"rate_limit": {"token_max_limit": 1, "token_max_limit": 9, "token_reset_duration": "1m"}'
    message = await api.refused(400, "POST", KEYS, b'{"name": "a", %s}' % inner)
    assert message.startswith("rate_limit.token_max_limit: repeated key")


async def test_every_problem_is_said_at_once(api: Api) -> None:
    """One answer has them all, a line each; of too many it says how many more there are."""
    message = await api.refused(
        400,
        "POST",
        KEYS,
        {
            "nmae": "x",
            "is_active": "yes",
            "expires_at": "tomorrow",
            "budgets": [{"max_limit": "1", "reset_duration": "1x"}],
            "team_id": "red",
        },
    )
    assert [line.partition(":")[0] for line in message.splitlines()] == [
        "nmae",
        "is_active",
        "expires_at",
        "budgets[0].max_limit",
        "budgets[0].reset_duration",
        "name",
        "team_id",
    ]
    many = {"name": "a", "budgets": [1] * 50}
    lines = (await api.refused(400, "POST", KEYS, many)).splitlines()
    assert (len(lines), lines[-1]) == (21, "and 30 more")


async def test_a_change_that_is_refused_changes_nothing(api: Api) -> None:
    """Neither the members that were wrong nor the others."""
    key = await api.made(KEYS, name="ci")
    path = f"{KEYS}/{key['id']}"
    before = (await api("GET", path)).text
    for body in ({"is_active": False, "budget": 1}, {"is_active": False, "name": "fixed"}, {"value": "x"}):
        assert (await api("PUT", path, body)).status in (400, 409)
    assert (await api("GET", path)).text == before


async def test_a_body_that_is_too_large(api: Api) -> None:
    """What the path says of it, in this API's shape."""
    await api.refused(413, "POST", KEYS, b'{"name": "%s"}' % (b"a" * 70_000))


# Names and ids.


@pytest.mark.parametrize(
    "name", ["ключ", "鍵🔑", "مفتاح", "naïve team", "a/b?c#d%20", "<b>&amp;", "x" * 200, "'--"]
)
async def test_names_of_all_scripts(api: Api, name: str) -> None:
    """They are kept as they are sent, and found again."""
    for path in ALL:
        made = await api.made(path, name=name)
        got = (await api("GET", f"{path}/{made['id']}")).json
        assert [each["name"] for each in got.values()] == [name]
    assert (await api("GET", KEYS)).json["count"] == 2


@pytest.mark.parametrize(
    "name",
    [
        *("", "a\nb", "a\x00", "\x1b[31mred", "a\u202eb", "a\u2028", "\ud800", "\x7f", "\u200b", "a\tb"),
        *(" a", "a ", "x" * 201, "sk-bf-abc", "my sk-bf-key"),
    ],
)
async def test_names_that_are_refused(api: Api, name: str) -> None:
    """What cannot be printed, hides a space, is endless, or looks like a value; for a change as well."""
    for path in ALL:
        assert (await api.refused(400, "POST", path, {"name": name})).startswith("name: ")
    key = await api.made(KEYS, name="ci")
    message = await api.refused(400, "PUT", f"{KEYS}/{key['id']}", {"name": name})
    assert message.startswith("name: ")
    assert message.isprintable()


IDS = [
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    "..",
    ".",
    "%00",
    f"{UNKNOWN}%00",
    f"{UNKNOWN}%0a",
    UNKNOWN.upper().replace("0", "A"),
    "%ff%fe",
    "%c0%ae",
    "%",
    "%zz",
    "*",
    "'%20OR%201=1%20--",
    "virtual_key%2ffixed",
    "%D0%BA%D0%BB%D1%8E%D1%87",
    "\u00e9",
    "x" * 6000,
    "",
    "fixed%20",
    "FIXED",
]


@pytest.mark.parametrize("id", IDS, ids=range(len(IDS)))
async def test_hostile_ids(store: Store, id: str) -> None:
    """They are ids of nothing: 404 for every operation, and none of them is repeated."""
    api = Direct(store).api
    for path in ALL:
        for method in ("GET", "PUT", "DELETE"):
            message = await api.refused(404, method, f"{path}/{id}", {})
            assert message.startswith("no ")
    await api.refused(404, "POST", f"{KEYS}/{id}/rotate")


async def test_hostile_ids_over_http(proxy: StartProxy, upstream: StartUpstream, tmp_path: Path) -> None:
    """Some do not come in at all; those that do are answered the same, and the rest goes on working."""
    p = await start(proxy, await upstream(), tmp_path)
    statuses = [(await p.get(f"{KEYS}/{id}", AS_ADMIN)).status for id in IDS]
    assert set(statuses) == {400, 404}
    assert statuses.count(404) > 10
    assert (await over_http(p)("GET", KEYS)).status == 200


async def test_an_id_that_is_none_never_reaches_the_store(store: Store) -> None:
    """The store is asked for what may be there, which is a UUID."""
    counted = Counted(store)
    api = Direct(counted).api
    for id in (*IDS, "x"):
        await api("GET", f"{KEYS}/{id}")
    assert counted.gets == []
    await api("GET", f"{KEYS}/{UNKNOWN}")
    assert counted.gets == [UNKNOWN]


async def test_paths_and_methods(api: Api) -> None:
    """404 where nothing is, and 405 says what is there instead."""
    for path in (
        "",
        "virtual-keys/",
        "virtual_keys",
        "virtual-keys/a/b",
        "teams/a/rotate",
        "teams/a/b/c",
        "/",
    ):
        assert (await api("GET", f"/api/governance/{path}")).status == 404, path
    for method, path, allowed in (
        ("DELETE", KEYS, b"GET, POST, HEAD"),
        ("PATCH", f"{TEAMS}/x", b"GET, PUT, DELETE, HEAD"),
        ("POST", f"{CUSTOMERS}/x", b"GET, PUT, DELETE, HEAD"),
        ("GET", f"{KEYS}/fixed/rotate", b"POST"),
        ("PUT", f"{KEYS}/quota", b"GET, HEAD"),
        ("OPTIONS", TEAMS, b"GET, POST, HEAD"),
    ):
        said = await api(method, path)
        assert (said.status, said.fields[b"allow"]) == (405, allowed)


# What stands elsewhere.


async def test_what_stands_in_the_config_is_only_shown(api: Api) -> None:
    """Its id is its name; it cannot be changed here, and no other takes its name. No digest is shown."""
    for path, name in ((KEYS, "fixed"), (TEAMS, "blue"), (CUSTOMERS, "acme")):
        said = await api("GET", f"{path}/{name}")
        (shown,) = said.json.values()
        assert (shown["id"], shown["name"], shown["source"]) == (name, name, "config")
        assert (shown["created_at"], shown["updated_at"]) == (None, None)
        assert hashlib.sha256(b"sk-bf-test-fixed").hexdigest() not in said.text
        assert "value" not in shown
        for method in ("PUT", "DELETE"):
            message = await api.refused(409, method, f"{path}/{name}", {"name": "other"})
            assert message.endswith(f'"{name}" stands in the config file; change it there')
        assert (await api.refused(409, "POST", path, {"name": name})).endswith(f'called "{name}" already')
        other = await api.made(path, name="other")
        await api.refused(409, "PUT", f"{path}/{other['id']}", {"name": name})
    await api.refused(409, "POST", f"{KEYS}/fixed/rotate")


async def test_a_team_or_a_customer_that_is_named_stays(api: Api) -> None:
    """409 says who names it, whether that stands in the store or in the config; then it can go."""
    customer = await api.made(CUSTOMERS, name="big")
    team = await api.made(TEAMS, name="red", customer_id=customer["id"])
    one = await api.made(KEYS, name="one", team_id=team["id"])
    two = await api.made(KEYS, name="two", customer_id=customer["id"])
    team_path, customer_path = f"{TEAMS}/{team['id']}", f"{CUSTOMERS}/{customer['id']}"
    assert await api.refused(409, "DELETE", team_path) == (
        'the team "red" is still named by the virtual key "one"'
    )
    assert await api.refused(409, "DELETE", customer_path) == (
        'the customer "big" is still named by the virtual key "two", the team "red"'
    )
    for path in (f"{KEYS}/{one['id']}", f"{KEYS}/{two['id']}", team_path, customer_path):
        assert (await api("DELETE", path)).status == 200
        assert (await api("DELETE", path)).status == 404


async def test_a_team_is_named_by_its_id(api: Api) -> None:
    """A name instead of the id is wrong, and the answer says which id was meant."""
    team = await api.made(TEAMS, name="red")
    message = await api.refused(400, "POST", KEYS, {"name": "ci", "team_id": "red"})
    assert message == f'team_id: wanted an id; the team called "red" has the id {team["id"]}'
    assert (await api.made(KEYS, name="ci", team_id=team["id"]))["team_id"] == team["id"]
    assert (await api.refused(400, "POST", KEYS, {"name": "cd", "team_id": UNKNOWN})).startswith("team_id: ")


async def test_a_key_changes_from_a_team_to_a_customer(api: Api) -> None:
    """It has one or the other, so the old one must be named, as null."""
    key = await api.made(KEYS, name="ci", team_id="blue")
    path = f"{KEYS}/{key['id']}"
    await api.refused(400, "PUT", path, {"customer_id": "acme"})
    changed = (await api("PUT", path, {"customer_id": "acme", "team_id": None})).json["virtual_key"]
    assert (changed["team_id"], changed["customer_id"]) == (None, "acme")
    assert "not both" in await api.refused(400, "PUT", path, {"team_id": "blue"})


async def test_a_key_can_be_blocked_though_its_provider_has_gone(store: Store) -> None:
    """What a change does not name is not checked again, or nobody could revoke such a key."""
    direct = Direct(store, "prices: x\nstore: sqlite:x\n")
    key = await direct.api.made(
        KEYS,
        name="ci",
        provider_configs=[{"provider": "other"}],
        budgets=[{"max_limit": 1, "reset_duration": "1d"}],
    )
    path = f"{KEYS}/{key['id']}"
    providers = {name: each for name, each in direct.config.providers.items() if name != "other"}
    direct.use(dataclasses.replace(direct.config, providers=providers, prices=None))
    assert (await direct.api("PUT", path, {"is_active": False, "name": "gone"})).status == 200
    rate = {"request_max_limit": 1, "request_reset_duration": "1d"}
    assert (await direct.api("PUT", path, {"rate_limit": rate})).status == 200
    message = await direct.api.refused(
        400, "PUT", path, {"budgets": [{"max_limit": 2, "reset_duration": "1d"}]}
    )
    assert message == "budgets: need prices: name a file of them in the config (prices: PATH)"
    message = await direct.api.refused(400, "PUT", path, {"provider_configs": [{"provider": "other"}]})
    assert message.startswith('provider_configs[0].provider: no provider is called "other"')


async def test_without_a_store_nothing_can_be_kept() -> None:
    """409 says which setting is missing; what the config has is shown all the same."""
    api = Direct(None, 'virtual_keys: {fixed: {value: "sha256:%s"}}' % ("0" * 64)).api
    assert (await api("GET", KEYS)).json["count"] == 1
    for method, path in (("POST", KEYS), ("PUT", f"{KEYS}/x"), ("DELETE", f"{TEAMS}/x")):
        assert "store:" in await api.refused(409, method, path, {"name": "a"})
    await api.refused(404, "GET", f"{KEYS}/{UNKNOWN}")


# A store that fails, and others beside us.


async def test_a_store_that_cannot_be_asked(store: Store) -> None:
    """503, and when to come again; not what the store said."""
    faulty = Counted(store)
    faulty.dead = True
    api = Direct(faulty).api
    for method, path in (("GET", KEYS), ("POST", TEAMS), ("DELETE", f"{KEYS}/{UNKNOWN}")):
        said = await api(method, path, {"name": "a"})
        assert (said.status, said.fields[b"retry-after"]) == (503, b"1")
        assert "dead" not in said.text


async def test_a_value_is_not_lost_with_the_store(store: Store) -> None:
    """Once a key is made or rotated its value is answered, though the store cannot be asked any more."""
    faulty = Counted(store)
    api = Direct(faulty).api
    rate = {"request_max_limit": 1, "request_reset_duration": "1m"}
    faulty.dies_after_change = True
    made = await api("POST", KEYS, {"name": "ci", "rate_limit": rate})
    assert made.status == 200
    faulty.dead = False
    rotated = await api("POST", f"{KEYS}/{made.json['virtual_key']['id']}/rotate")
    assert (rotated.status, faulty.dead) == (200, True)
    assert rotated.json["virtual_key"]["value"] != made.json["virtual_key"]["value"]


async def test_a_record_that_cannot_be_read(store: Store) -> None:
    """It is named, and it can be deleted; a later version may have written it."""
    api = Direct(store).api
    now = "2027-01-01T00:00:00Z"
    later = json.dumps({"spec": '{"colour": "red"}', "created_at": now, "updated_at": now})
    for path, kind in zip(ALL, registry.IN_WORDS, strict=True):
        for document in ("nonsense", "{}", '{"spec": "{}"}', later):
            await store.create(Record(kind, UNKNOWN, "odd", None, document))
            for method, where in (("GET", path), ("GET", f"{path}/{UNKNOWN}"), ("PUT", f"{path}/{UNKNOWN}")):
                message = await api.refused(500, method, where, {})
                what = f'{registry.IN_WORDS[kind]} "odd" (id {UNKNOWN})'
                assert message == f"the record of the {what} cannot be read; it can be deleted"
            assert (await api("DELETE", f"{path}/{UNKNOWN}")).status == 200
        assert (await api("GET", path)).json["count"] == 0


async def test_two_workers_make_one_name(proxy: StartProxy, upstream: StartUpstream, tmp_path: Path) -> None:
    """Of requests that come together exactly one is kept, whichever worker took it; the others get 409."""
    up = await upstream()
    apis = [over_http(await start(proxy, up, tmp_path)) for _ in range(2)]
    for path in ALL:
        answers = await asyncio.gather(*(apis[n % 2]("POST", path, {"name": "ci"}) for n in range(8)))
        assert sorted(each.status for each in answers) == [200, *[409] * 7]
        counts = [(await api("GET", f"{path}?search=ci")).json["count"] for api in apis]
        assert counts == [1, 1]


async def test_a_change_beside_a_rotation_does_not_undo_it(store: Store) -> None:
    """A change that has read the record writes before the rotation reads it: the old value stays invalid."""
    gated = Gated(store)
    direct = Direct(gated)
    key = await direct.api.made(KEYS, name="ci")
    path = f"{KEYS}/{key['id']}"
    gated.armed = True
    change = asyncio.create_task(direct.api("PUT", path, {"description": "x"}))
    await gated.reached.wait()
    rotate = asyncio.create_task(direct.api("POST", f"{path}/rotate"))
    for _ in range(20):
        # As far as it comes while the change is under way.
        await asyncio.sleep(0)
    gated.go_on.set()
    await change
    value = (await rotate).json["virtual_key"]["value"]
    record = await store.get("virtual_key", key["id"])
    assert record is not None
    assert record.digest == hashlib.sha256(value.encode()).digest()
    assert "description" in record.document


async def test_a_name_that_is_taken(api: Api) -> None:
    """409 for a new one and for one that is renamed; a name that stays its own is no problem."""
    for path in ALL:
        await api.made(path, name="one")
        two = await api.made(path, name="two")
        for method, where in (("POST", path), ("PUT", f"{path}/{two['id']}")):
            assert (await api.refused(409, method, where, {"name": "one"})).endswith('called "one" already')
        assert (await api("PUT", f"{path}/{two['id']}", {"name": "two"})).status == 200


async def test_what_is_changed_is_logged_by_id_and_name(
    proxy: StartProxy, upstream: StartUpstream, tmp_path: Path
) -> None:
    """One line a change, in ASCII."""
    p = await start(proxy, await upstream(), tmp_path)
    api = over_http(p)
    key = await api.made(KEYS, name="ключ")
    await api("PUT", f"{KEYS}/{key['id']}", {"is_active": False})
    await api("DELETE", f"{KEYS}/{key['id']}")
    for line in (
        f"{key['id']} ({'ключ'!a}) created",
        f"{'ключ'!a}) updated",
        f"{key['id']} deleted",
    ):
        assert p.log_text.count(line) == 1


class Counted:
    """A store whose calls are noted, and which may die with its next change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.reads: list[Sequence[str]] = []
        self.gets: list[str] = []
        self.on_read: Callable[[], object] = lambda: None
        self.dies_after_change = False
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            if self.dead:
                raise StoreError("it is dead")
            if name == "read":
                self.reads.append(*arguments)
                self.on_read()
            if name == "get":
                self.gets.append(arguments[1])
            result = await getattr(self._store, name)(*arguments)
            self.dead = self.dies_after_change and name in ("create", "replace")
            return result

        return call


class Gated:
    """A store in which the first replacement waits."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.armed = False
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def replace(self, record: Record, was: Record) -> bool:
        if self.armed:
            self.armed = False
            self.reached.set()
            await self.go_on.wait()
        return await self._store.replace(record, was)
