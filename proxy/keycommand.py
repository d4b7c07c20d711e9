"""``verbatim-proxy keys``: virtual keys from the command line, in the store of the config. No server needed.

Facts
  - A worker goes by what it knows of a key for a few seconds (`holders.CHANGE_SECONDS`).

Rules
  1. A new key's value stands alone on stdout, so that ``KEY=$(verbatim-proxy keys create …)`` works; all else
     goes to stderr.
  2. What is wrong with a key is said by `registry`, here as in the management API.

Exit codes: 0 when all went well, 1 for problems of the config, the store or the key, 2 for a call that is not
understood.

Not here: what an operation does (`registry`), what is shown as JSON (`views`).
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from . import holders, values, views
from .config import Config
from .entry import Entry, instant
from .errors import ProxyError
from .grants import VirtualKey
from .limits import DURATION
from .ports import StoreError
from .registry import Registry
from .schema import printable
from .store import open_store

_COLUMNS = ("NAME", "ID", "ACTIVE", "EXPIRES", "LIMITS", "SOURCE")


def add_parser(commands: Any) -> None:
    """Add ``keys`` to the subparsers of the command line."""
    keys = commands.add_parser("keys", help="virtual keys: create, list, show, rotate, revoke")
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, help: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = actions.add_parser(name, help=help, description=help)
        parser.add_argument("--config", metavar="FILE", required=name != "new")
        return parser

    create = action("create", "make a virtual key and print its value, which is never shown again")
    create.add_argument("name", metavar="NAME", nargs="?", help="what logs and metrics call it")
    _add_members(create)
    listing = action("list", "all virtual keys, those of the config included")
    listing.add_argument(
        "--json", action="store_true", help="with all that holds for them, and what is used up"
    )
    show = action("show", "one virtual key as JSON, with what is used up of its limits")
    rotate = action("rotate", "give a virtual key a new value, print it, and forget the old one")
    revoke = action("revoke", "refuse a virtual key from now on; nothing is deleted")
    for parser in (show, rotate, revoke):
        parser.add_argument("key", metavar="NAME_OR_ID")
    action("new", "print a new value, and its digest for a virtual key that stands in the config")


def _add_members(create: argparse.ArgumentParser) -> None:
    for flag, metavar, repeated, shape, help in (
        ("--description", "TEXT", False, str, "for people"),
        ("--provider", "NAME[=MODEL,…]", True, _provider, "may be used; without models: with any model"),
        ("--key", "NAME", True, str, "which of the provider's keys may be used; without any: all of them"),
        ("--budget", "DOLLARS/WINDOW", True, _budget, "as 100/1M or 0.5/1d"),
        ("--requests", "COUNT/WINDOW", False, _rate, "as 60/1m"),
        ("--tokens", "COUNT/WINDOW", False, _rate, "as 100000/1h"),
        ("--expires", "TIME", False, str, "as 2027-01-31T00:00:00Z"),
        ("--team", "ID", False, str, "whose limits hold too"),
        ("--customer", "ID", False, str, "whose limits hold too"),
        ("--json", "FILE", False, str, "all of this as the management API has it; - is stdin"),
    ):
        again = "; may be given again" if repeated else ""
        action = "append" if repeated else "store"
        create.add_argument(flag, metavar=metavar, action=action, type=shape, help=help + again)
    create.add_argument("--all-providers", action="store_true", help="every provider and model may be used")


def new() -> int:
    """Print a new value, which is kept nowhere; returns the exit code."""
    value = holders.new_value()
    _say(f"its digest, for the config: sha256:{values.digest(value.encode()).hex()}")
    return _print(value)


def run(arguments: argparse.Namespace, config: Config) -> int:
    """Do what the command line asks for; returns the exit code."""
    text = ""
    if arguments.action == "create":
        members = _members(arguments)
        if wrong := _misunderstood(arguments, members):
            return _fail(wrong, 2)
        try:
            text = _read(arguments.json) if arguments.json else orjson.dumps(members).decode()
        except OSError as error:
            return _fail(f"{arguments.json}: cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            return _fail(f"{arguments.json}: is not UTF-8")
        except orjson.JSONEncodeError:
            return _fail("an option is not UTF-8", 2)
    try:
        return asyncio.run(_act(arguments, config, text))
    except ProxyError as error:
        return _fail(error.message)
    except (StoreError, RuntimeError) as error:
        return _fail(f"the store cannot be used: {error}")


async def _act(arguments: argparse.Namespace, config: Config, text: str) -> int:
    password = config.store_password.reveal() if config.store_password is not None else None
    store = open_store(config.store, password) if config.store is not None else None
    registry = Registry(store, config)
    soon = f"every worker follows within {holders.CHANGE_SECONDS:g} seconds"
    try:
        if arguments.action == "list":
            return await _list(registry, as_json=arguments.json)
        if arguments.action == "create":
            entry, value = await registry.create("virtual_key", text, arguments.name)
            return _made(entry, value, f"is kept in {config.store}")
        entry = await registry.find("virtual_key", arguments.key)
        if arguments.action == "show":
            (shown,) = await views.show(registry, [entry])
            return _print(_json(shown))
        if arguments.action == "rotate":
            entry, value = await registry.rotate(entry.id)
            return _made(entry, value, f"has a new value; {soon}")
        entry = await registry.revoke(entry.id)
        _say(f"{_called(entry)} is revoked; {soon}")
        return 0
    finally:
        if store is not None:
            await store.close()


async def _list(registry: Registry, *, as_json: bool) -> int:
    entries = await registry.entries("virtual_key")
    if as_json:
        return _print(_json({"virtual_keys": await views.show(registry, entries), "count": len(entries)}))
    rows = [_COLUMNS, *map(_row, entries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return _print("\n".join(lines))


def _row(entry: Entry) -> tuple[str, ...]:
    key = entry.holds
    expires_at = key.expires_at if isinstance(key, VirtualKey) else None
    active = "yes" if isinstance(key, VirtualKey) and key.is_active else "no"
    if expires_at is not None and expires_at <= time.time():
        active = "expired"
    own = f"{entry.kind}/{entry.id}"
    limits = [
        limit.in_words if limit.owner == own else f"{limit.in_words} ({limit.owner.removeprefix(own + '/')})"
        for limit in entry.limits()
    ]
    expires = instant(expires_at) if expires_at is not None else "never"
    return entry.name, entry.id, active, expires, ", ".join(limits) or "none", entry.source


def _members(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the options say, as the management API has it."""
    requests, tokens = arguments.requests or (None, None), arguments.tokens or (None, None)
    rate = {
        "request_max_limit": requests[0],
        "request_reset_duration": requests[1],
        "token_max_limit": tokens[0],
        "token_reset_duration": tokens[1],
    }
    members = {
        "description": arguments.description,
        "allow_all_providers": arguments.all_providers,
        "provider_configs": [
            {"provider": name, "allowed_models": models, "key_ids": arguments.key}
            for name, models in arguments.provider or ()
        ],
        "budgets": [
            {"max_limit": orjson.Fragment(amount), "reset_duration": window}
            for amount, window in arguments.budget or ()
        ],
        "rate_limit": rate if arguments.requests or arguments.tokens else None,
        "expires_at": arguments.expires,
        "team_id": arguments.team,
        "customer_id": arguments.customer,
    }
    return {name: value for name, value in members.items() if value is not None and value not in (False, [])}


def _misunderstood(arguments: argparse.Namespace, members: dict[str, Any]) -> str:
    """What is wrong with the options together."""
    if arguments.json and (members or arguments.key):
        return "--json says all of it: no other option goes with it"
    if not arguments.json and not arguments.name:
        return "NAME is missing"
    if arguments.key and len(arguments.provider or ()) != 1:
        return "--key goes with one --provider; for more use --json"
    return ""


def _provider(text: str) -> tuple[str, list[str]]:
    name, equals, models = text.partition("=")
    named = models.split(",") if equals else ["*"]
    if not name or not all(named):
        raise argparse.ArgumentTypeError("wanted NAME or NAME=MODEL,MODEL…")
    return name, named


def _budget(text: str) -> tuple[str, str]:
    return _per(text, "(0|[1-9][0-9]*)([.][0-9]+)?", "DOLLARS/WINDOW, as 100/1M")


def _rate(text: str) -> tuple[orjson.Fragment, str]:
    count, window = _per(text, "0|[1-9][0-9]*", "COUNT/WINDOW, as 60/1m")
    return orjson.Fragment(count), window


def _per(text: str, number: str, wanted: str) -> tuple[str, str]:
    amount, _, window = text.partition("/")
    if not re.fullmatch(number, amount) or not DURATION.fullmatch(window):
        raise argparse.ArgumentTypeError(
            f"wanted {wanted}; windows are 1m, 1h, 1d, 1w, 1M, 1Q, 1Y or multiples"
        )
    return amount, window


def _read(name: str) -> str:
    data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    return data.decode()


def _json(shown: Any) -> str:
    return orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode()


def _made(entry: Entry, value: str, said: str) -> int:
    """Print a value, the only time that it is shown."""
    if _print(value):
        _say(f"the value could not be written, and cannot be shown again: rotate {_called(entry)}")
        return 1
    _say(f"{_called(entry)} {said}")
    key = entry.holds
    if isinstance(key, VirtualKey) and not key.allow_all_providers and not key.provider_configs:
        _say("it may use no provider yet")
    return 0


def _called(entry: Entry) -> str:
    return f'virtual key "{printable(entry.name)}" ({entry.id})'


def _print(text: str) -> int:
    """Print what was asked for; returns the exit code."""
    try:
        print(text, flush=True)
    except OSError as error:
        # A full disk, or a reader that has seen enough.
        return _fail(f"stdout: {error.strerror}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _fail(text: str, code: int = 1) -> int:
    for line in text.splitlines():
        _say(f"keys: {line}")
    return code
