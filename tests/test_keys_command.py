"""``verbatim-proxy keys``: what it prints where, its exit codes, and that it needs no server."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from rawclient import asked
from running import StartProxy, StartUpstream, keyed
from scripted import MESSAGE, answer

from proxy import config as proxy_config
from proxy import grants, holders, keycommand, limits
from proxy.ports import Change, Record, Store
from proxy.store import open_store

CONFIG = """
providers:
  anthropic:
    base_urls: {anthropic: "http://127.0.0.1:9"}
    keys: [{name: main, value: env.KEY}, {name: spare, value: env.KEY}]
  other: {base_urls: {anthropic: "http://127.0.0.1:9"}, is_key_less: true}
default_providers: {anthropic: anthropic}
prices: prices.yaml
virtual_keys: {fixed: {value: env.FIXED, allow_all_providers: true}}
teams: {blue: {}}
customers: {acme: {}}
"""

STORE = "store: sqlite:state.db\n"

ENVIRON = {"KEY": "sk-test-own", "FIXED": "sk-bf-test-fixed"}

VALUE = re.compile("sk-bf-[A-Za-z0-9_-]{43}\n")

SOON = f"every worker follows within {holders.CHANGE_SECONDS:g} seconds"

T = TypeVar("T")


class Run(NamedTuple):
    """What a call came to."""

    code: int
    out: str
    err: str


Keys = Callable[..., Run]


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Keys:
    """Runs ``keys …`` in a directory with a config and a store: ``keys("list")``.

    `config` is the config's text. No value is ever printed but alone on stdout, and none on stderr.
    """
    monkeypatch.chdir(tmp_path)
    values: list[str] = []

    def run(action: str, *arguments: str, config: str = CONFIG + STORE, stdin: bytes = b"") -> Run:
        loaded = proxy_config.load(config, ENVIRON, lambda _: "default: {input: 3, output: 15}")
        parser = argparse.ArgumentParser("verbatim-proxy")
        keycommand.add_parser(parser.add_subparsers(dest="command"))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            parsed = parser.parse_args(["keys", action, "--config", "proxy.yaml", *arguments])
            code = keycommand.new() if action == "new" else keycommand.run(parsed, loaded)
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        made = VALUE.fullmatch(printed.out)
        assert (made is not None) is (code == 0 and action in ("create", "rotate", "new"))
        for value in values:
            assert value not in printed.out + printed.err
        if made:
            values.append(made[0].strip())
            assert values[-1] not in printed.err
        return Run(code, printed.out, printed.err)

    return run


def stored(use: Callable[[Store], Awaitable[T]]) -> T:
    """What `use` makes of the store."""

    async def ask() -> T:
        store = open_store("sqlite:state.db")
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(ask())


def kept(name: str) -> tuple[Record, grants.VirtualKey]:
    record = stored(lambda store: store.named("virtual_key", name))
    assert record is not None
    key = holders.read(record)
    assert isinstance(key, grants.VirtualKey)
    return record, key


def shown(run: Run) -> Any:
    assert (run.code, run.err) == (0, "")
    return json.loads(run.out, parse_float=Decimal)


def test_create_prints_the_value_alone(keys: Keys) -> None:
    """The value is all of stdout; what was made, and where it is kept, is on stderr."""
    run = keys("create", "ci", "--all-providers")
    record, key = kept("ci")
    assert run.err == f'virtual key "ci" ({record.id}) is kept in sqlite:state.db\n'
    assert record.digest == keycommand.values.digest(run.out.strip().encode())
    assert key == grants.VirtualKey(name="ci", allow_all_providers=True)


def test_every_option_of_create(keys: Keys) -> None:
    """Each says one member of a key; amounts are exact."""
    keys(
        *(
            "create",
            "ci",
            "--description",
            "for builds",
            "--provider",
            "anthropic=claude-*,x",
            "--key",
            "main",
        ),
        *(
            "--budget",
            "100/1M",
            "--budget",
            "0.123456789012/5d",
            "--requests",
            "60/1m",
            "--tokens",
            "100000/1h",
        ),
        *("--expires", "2027-01-31T01:00:00+01:00", "--team", "blue"),
    )
    assert kept("ci")[1] == grants.VirtualKey(
        name="ci",
        description="for builds",
        expires_at=1801353600,
        provider_configs=(grants.ProviderConfig("anthropic", ("claude-*", "x"), key_ids=("main",)),),
        budgets=(grants.Budget(100 * limits.PICO, "1M"), grants.Budget(123_456_789_012, "5d")),
        rate_limit=grants.RateLimit(60, "1m", 100000, "1h"),
        team_id="blue",
    )
    keys("create", "cd", "--provider", "anthropic", "--provider", "other=y", "--customer", "acme")
    assert kept("cd")[1] == grants.VirtualKey(
        name="cd",
        provider_configs=(grants.ProviderConfig("anthropic", ("*",)), grants.ProviderConfig("other", ("y",))),
        customer_id="acme",
    )


def test_a_key_that_may_use_nothing(keys: Keys) -> None:
    """It is made, for its providers may come later, and stderr says so."""
    run = keys("create", "ci")
    assert (run.code, run.err.splitlines()[1:]) == (0, ["it may use no provider yet"])


@pytest.mark.parametrize("where", ["file", "stdin"])
def test_create_from_json(keys: Keys, tmp_path: Path, where: str) -> None:
    """All that the management API takes, from a file or from stdin; its name there or in the call."""
    body = (
        b'{"allow_all_providers": true, "budgets": [{"max_limit": 0.000000000001, "reset_duration": "1d"}]%s}'
    )
    for name, text in (("a", body % b""), ("b", body % b', "name": "b"')):
        (tmp_path / "key.json").write_bytes(text)
        call = [name] if name == "a" else []
        run = keys("create", *call, "--json", "-" if where == "stdin" else "key.json", stdin=text)
        assert run.code == 0, run.err
        assert kept(name)[1].budgets == (grants.Budget(1, "1d"),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "NAME is missing"),
        (("ci", "--json", "-", "--budget", "1/1d"), "--json says all of it"),
        (("ci", "--json", "-", "--key", "main"), "--json says all of it"),
        (("ci", "--json", "-", "--all-providers"), "--json says all of it"),
        (("ci", "--key", "main"), "--key goes with one --provider"),
        (("ci", "--key", "main", "--provider", "a", "--provider", "b"), "--key goes with one --provider"),
        (("ci", "--budget", "100"), "wanted DOLLARS/WINDOW"),
        (("ci", "--budget", "1e3/1d"), "wanted DOLLARS/WINDOW"),
        (("ci", "--budget", "007/1d"), "wanted DOLLARS/WINDOW"),
        (("ci", "--budget=-1/1d"), "wanted DOLLARS/WINDOW"),
        (("ci", "--budget", "1/1d/1d"), "wanted DOLLARS/WINDOW"),
        (("ci", "--budget", "1/0d"), "wanted DOLLARS/WINDOW"),
        (("ci", "--requests", "1.5/1m"), "wanted COUNT/WINDOW"),
        (("ci", "--tokens", "10/1x"), "wanted COUNT/WINDOW"),
        (("ci", "--provider", "=x"), "wanted NAME or NAME=MODEL"),
        (("ci", "--provider", "anthropic="), "wanted NAME or NAME=MODEL"),
        (("ci", "--provider", "anthropic=a,,b"), "wanted NAME or NAME=MODEL"),
        (("ci", "--rate", "1/1d"), "unrecognized arguments"),
        (("ci", "--description", "\udcff"), "an option is not UTF-8"),
    ],
)
def test_a_call_that_is_not_understood(keys: Keys, arguments: Sequence[str], message: str) -> None:
    """2, and nothing is made."""
    run = keys("create", *arguments, stdin=b"{}")
    assert (run.code, run.out) == (2, "")
    assert message in run.err
    assert shown(keys("list", "--json"))["count"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fixed",), 'another virtual key is called "fixed" already'),
        (("a\nb",), "name: the string holds a character that cannot be printed"),
        (("ci", "--budget", "0/1d"), "budgets[0].max_limit: wanted dollars above 0"),
        (("ci", "--requests", "0/1d"), "rate_limit.request_max_limit: wanted a whole number from 1"),
        (("ci", "--expires", "tomorrow"), "expires_at: wanted a time with its offset"),
        (("ci", "--team", "bleu"), 'team_id: no team is called "bleu"; did you mean "blue"?'),
        (("ci", "--team", "blue", "--customer", "acme"), "a key has a team or a customer, not both"),
        (("ci", "--provider", "antropic"), 'no provider is called "antropic"; did you mean "anthropic"?'),
        (("ci", "--provider", "anthropic", "--key", "mian"), 'called "mian"; did you mean "main"?'),
        (("ci", "--json", "missing.json"), "missing.json: cannot be read: No such file or directory"),
        (("ci", "--json", "latin.json"), "latin.json: is not UTF-8"),
        (("ci", "--json", "-"), "not valid JSON"),
        (("ci", "--json", "named.json"), "name: repeated key"),
    ],
)
def test_a_key_that_is_refused(keys: Keys, tmp_path: Path, arguments: Sequence[str], message: str) -> None:
    """1, each problem on a line of stderr, and nothing is made."""
    (tmp_path / "latin.json").write_bytes(b'"\xff"')
    (tmp_path / "named.json").write_text('{"name": "ci"}')
    run = keys("create", *arguments)
    assert (run.code, run.out) == (1, "")
    assert run.err.startswith("keys: ")
    assert message in run.err
    assert shown(keys("list", "--json"))["count"] == 1


def test_all_problems_are_said(keys: Keys) -> None:
    """A line each."""
    run = keys("create", "ci", "--expires", "x", "--provider", "x", "--team", "x")
    assert [line.split(":")[:2] for line in run.err.splitlines()] == [
        ["keys", " expires_at"],
        ["keys", " provider_configs[0].provider"],
        ["keys", " team_id"],
    ]


def test_a_name_that_is_taken(keys: Keys) -> None:
    """1, and the key that has it stays as it is."""
    assert keys("create", "ci").code == 0
    before = kept("ci")
    run = keys("create", "ci")
    assert (run.code, run.err) == (1, 'keys: another virtual key is called "ci" already\n')
    assert kept("ci") == before


def test_list_is_a_table(keys: Keys) -> None:
    """Aligned, by name, with the keys of the config."""
    keys("create", "builds", "--all-providers", "--budget", "2.5/1M", "--requests", "60/1m")
    keys("create", "old", "--expires", "2020-01-01T00:00:00Z")
    budgets = [{"max_limit": 1, "reset_duration": "1d"}]
    members = {
        "is_active": False,
        "expires_at": "9999-12-31T23:59:59Z",
        "provider_configs": [{"provider": "other", "budgets": budgets}],
    }
    keys("create", "zoe", "--json", "-", stdin=json.dumps(members).encode())
    run = keys("list")
    ids = {name: kept(name)[0].id for name in ("builds", "old", "zoe")}
    rows = [
        ("NAME", "ID", "ACTIVE", "EXPIRES", "LIMITS", "SOURCE"),
        ("builds", ids["builds"], "yes", "never", "60 requests per 1m, $2.5 per 1M", "store"),
        ("fixed", "fixed", "yes", "never", "none", "config"),
        ("old", ids["old"], "expired", "2020-01-01T00:00:00Z", "none", "store"),
        ("zoe", ids["zoe"], "no", "9999-12-31T23:59:59Z", "$1 per 1d (other)", "store"),
    ]
    lines = run.out.splitlines()
    assert [tuple(re.split("  +", line)) for line in lines] == rows
    starts = [lines[0].index(word) for word in rows[0]]
    for line, row in zip(lines, rows, strict=True):
        for start, cell in zip(starts, row, strict=True):
            assert line[start:].startswith(cell)
    assert run.err == ""


def test_list_as_json(keys: Keys) -> None:
    """What the management API shows of them."""
    keys("create", "ci")
    listed = shown(keys("list", "--json"))
    assert [(key["name"], key["source"]) for key in listed["virtual_keys"]] == [
        ("ci", "store"),
        ("fixed", "config"),
    ]
    assert listed["count"] == 2


def test_show_has_what_is_used_up(keys: Keys) -> None:
    """By name or by id; money is exact."""
    keys("create", "ci", "--budget", "100/1Y")
    record, _ = kept("ci")
    key = shown(keys("show", "ci"))
    (budget,) = key["budgets"]
    ends = int(limits.datetime.fromisoformat(budget["next_reset"]).timestamp())
    change = Change(f"virtual_key/{record.id}/cost/1Y/{ends}", ends, 123_456_789_012)
    stored(lambda store: store.add([change]))
    run = keys("show", record.id)
    assert '"current_usage": 0.123456789012,' in run.out
    budget["current_usage"] = Decimal("0.123456789012")
    assert shown(run) == key
    assert shown(keys("show", "fixed"))["source"] == "config"


def test_rotate_makes_a_new_value(keys: Keys) -> None:
    """Alone on stdout; the old one is no longer kept."""
    first = keys("create", "ci").out
    record, key = kept("ci")
    run = keys("rotate", "ci")
    after, same = kept("ci")
    assert run.err == (
        f'virtual key "ci" ({record.id}) has a new value; {SOON}\nit may use no provider yet\n'
    )
    assert run.out != first
    assert (after.id, same) == (record.id, key)
    assert after.digest == keycommand.values.digest(run.out.strip().encode())


def test_revoke_blocks_and_deletes_nothing(keys: Keys) -> None:
    """By id or by name, and as often as one likes."""
    keys("create", "ci", "--all-providers", "--description", "stays")
    record, _ = kept("ci")
    for reference in ("ci", record.id):
        run = keys("revoke", reference)
        assert (run.code, run.out) == (0, "")
        assert run.err == f'virtual key "ci" ({record.id}) is revoked; {SOON}\n'
    after, key = kept("ci")
    assert (key.is_active, key.description, after.digest) == (False, "stays", record.digest)


@pytest.mark.parametrize("action", ["show", "rotate", "revoke"])
@pytest.mark.parametrize(
    "reference", ["nobody", "", "\udcff", "a\x1b[31m", "00000000-0000-4000-8000-000000000000"]
)
def test_a_key_that_there_is_not(keys: Keys, action: str, reference: str) -> None:
    """1, and what cannot be printed is escaped."""
    run = keys(action, reference)
    assert (run.code, run.out) == (1, "")
    assert run.err.startswith("keys: no virtual key has ")
    assert run.err.removesuffix("\n").isprintable()


def test_a_key_of_the_config_is_changed_there(keys: Keys) -> None:
    """1 for rotate and revoke, which say where it stands."""
    for action in ("rotate", "revoke"):
        run = keys(action, "fixed")
        assert (run.code, run.out) == (1, "")
        assert run.err == 'keys: the virtual key "fixed" stands in the config file; change it there\n'


def test_without_a_store(keys: Keys, tmp_path: Path) -> None:
    """The config's keys can be seen; to make one takes a store, and the message says how it is called."""
    assert "fixed" in keys("list", config=CONFIG).out
    assert shown(keys("show", "fixed", config=CONFIG))["name"] == "fixed"
    run = keys("create", "ci", config=CONFIG)
    assert (run.code, run.out) == (1, "")
    assert "store:" in run.err
    assert list(tmp_path.iterdir()) == []


def test_new_needs_no_store(keys: Keys, tmp_path: Path) -> None:
    """A value for a key of the config, and its digest as the config takes it."""
    run = keys("new", config=CONFIG)
    digest = run.err.removeprefix("its digest, for the config: ").strip()
    written = CONFIG.replace("env.FIXED", f'"{digest}"')
    loaded = proxy_config.load(written, ENVIRON, lambda _: "default: {input: 3, output: 15}")
    assert loaded.virtual_keys["fixed"].value == keycommand.values.digest(run.out.strip().encode())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A config whose store is in the same directory."""
    path = tmp_path / "proxy.yaml"
    path.write_text(CONFIG.replace("prices: prices.yaml\n", "") + f"store: sqlite:{tmp_path}/state.db\n")
    return path


def process(config_file: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The command as a process."""
    return subprocess.run(
        [sys.executable, "-m", "proxy", "keys", *arguments, "--config", str(config_file)],
        env={**os.environ, **ENVIRON},
        timeout=60,
        check=False,
        **options,
    )


def test_a_shell_can_take_the_value(config_file: Path, tmp_path: Path) -> None:
    """``KEY=$(verbatim-proxy keys create …)``: stdout is the value and a line's end; the store is 0600."""
    run = process(config_file, "create", "ci", capture_output=True)
    assert run.returncode == 0, run.stderr
    assert VALUE.fullmatch(run.stdout.decode())
    assert b"sk-bf-" not in run.stderr
    assert (tmp_path / "state.db").stat().st_mode & 0o777 == 0o600
    assert run.stdout.strip() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_a_value_that_cannot_be_written(config_file: Path) -> None:
    """The disk is full: 1, and what to do, for the value cannot be shown again."""
    with open("/dev/full", "wb") as full:
        run = process(config_file, "create", "ci", stdout=full, stderr=subprocess.PIPE)
    lines = run.stderr.decode().splitlines()
    assert run.returncode == 1
    assert lines[0] == "keys: stdout: No space left on device"
    assert lines[1].startswith(
        'the value could not be written, and cannot be shown again: rotate virtual key "ci"'
    )
    assert len(lines) == 2


def test_a_reader_that_has_seen_enough(config_file: Path) -> None:
    """As ``keys list | head -0``: 1, and no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        run = process(config_file, "list", stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (run.returncode, run.stderr) == (1, b"keys: stdout: Broken pipe\n")


def test_a_store_that_cannot_be_used(config_file: Path, tmp_path: Path) -> None:
    """1 and one line that says why."""
    config_file.write_text(config_file.read_text().replace("/state.db", "/missing/state.db"))
    for arguments in (("list",), ("create", "ci"), ("revoke", "ci")):
        run = process(config_file, *arguments, capture_output=True)
        assert (run.returncode, run.stdout) == (1, b"")
        assert re.fullmatch(rb"keys: the store cannot be used: [^\n]*No such file[^\n]*\n", run.stderr)


async def test_a_running_proxy_knows_it(proxy: StartProxy, upstream: StartUpstream, tmp_path: Path) -> None:
    """A key that the command has made in the same store is known at once."""
    up = await upstream(answer(body=MESSAGE))
    p = await proxy(keyed(up, "main"), store=f"sqlite:{tmp_path}/state.db", require_virtual_key=True)
    path = tmp_path / "proxy.yaml"
    path.write_text(CONFIG.replace("prices: prices.yaml\n", "") + f"store: sqlite:{tmp_path}/state.db\n")
    run = await asyncio.to_thread(
        process, path, "create", "ci", "--provider", "anthropic", capture_output=True
    )
    value = run.stdout.strip()
    response = await p.post("/anthropic/v1/messages", asked(), [(b"x-bf-vk", value)], key=None)
    assert response.status == 200
    assert value.decode() not in p.log_text
