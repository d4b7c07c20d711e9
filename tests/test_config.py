"""A configuration is loaded whole, or refused with every problem in it: path, line, and what to do."""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy import known
from proxy.config import (
    FALLBACK_ON,
    Config,
    ConfigError,
    Key,
    NetworkConfig,
    Problem,
    Provider,
    Secret,
    load,
)
from proxy.local import local_config
from proxy.values import address

KEY = "sk-test-" + "a1B2" * 25
"""As long as a provider's real key is."""

LITERAL = "sk-test-" + "z9Y8" * 25
"""Another, that stands in the file itself."""

ENVIRON = {
    "GOOD_KEY": KEY,
    "EMPTY": "",
    "LINES": f"{KEY}\n{KEY}",
    "SPACE": f"{KEY} ",
    "SNOWMAN": f"{KEY}\u2603",
    "LATIN": f"{KEY}\xe9",
}
FILES = {"/run/key": f"{KEY}\n", "/run/dos": f"{KEY}\r\n", "/run/empty": "\n", "/run/nul": f"{KEY}\0"}

PROVIDERS = """\
providers:
  anthropic:
    base_urls: {anthropic: https://api.anthropic.com}
"""

# What DESIGN.md, section 8, shows; its provider `backup` wants no key, and OpenAI's format has a provider.
DESIGN = """\
listen: [127.0.0.1:8080]              # also unix:/run/verbatim/proxy.sock; sockets that systemd passes win
max_body_bytes: 33554432
ping_interval: 15
providers:
  anthropic:
    base_urls: {anthropic: https://api.anthropic.com, openai: https://api.anthropic.com/v1}
    keys:
      - {name: main, value: env.GOOD_KEY, weight: 1, models: ["*"]}
    network_config: {connect_timeout: 5, first_byte_timeout: 600, idle_timeout: 300, max_retries: 1,
                     retry_backoff_initial: 0.5, retry_backoff_max: 5}
  backup:
    base_urls: {anthropic: http://127.0.0.1:9010}
    is_key_less: true
default_providers: {anthropic: anthropic, openai: anthropic}
store: sqlite:/var/lib/verbatim/state.db        # or redis://HOST/0; only features that need it open it
admin_key: file:/run/key                        # without it there are no /api/ routes
require_virtual_key: false
models: {claude-2: [anthropic/claude-haiku-4-5, backup/claude-haiku-4-5]}
"""


def read(path: str) -> str:
    if path == "/run/latin":
        raise UnicodeDecodeError(
            "utf-8", KEY.encode() + b"\xff", len(KEY), len(KEY) + 1, "invalid start byte"
        )
    if path == "/run/closed":
        raise PermissionError(13, "Permission denied", path)
    if path not in FILES:
        raise FileNotFoundError(2, "No such file or directory", path)
    return FILES[path]


def loaded(text: str, environ: Mapping[str, str] = ENVIRON) -> Config:
    return load(text, environ, read)


def problems(text: str, environ: Mapping[str, str] = ENVIRON) -> tuple[Problem, ...]:
    """All problems of a text that has some. None of them ever shows a key, nor more than one line."""
    with pytest.raises(ConfigError) as caught:
        load(text, environ, read)
    shown = (
        "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(caught.value.problems)
    )
    assert KEY not in shown
    assert LITERAL not in shown
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    return caught.value.problems


Row = tuple[str, str, int, str]
"""A document with one problem; the problem's path and line, and a part of its message."""


def root(line: str, path: str, fragment: str) -> Row:
    """A document that goes on with `line` after its providers."""
    return f"{PROVIDERS}{line}\n", path, 4, fragment


def of_url(value: str, fragment: str) -> Row:
    """A document with that base URL."""
    text = f"providers:\n  a:\n    base_urls: {{anthropic: {value}}}\n"
    return text, "providers.a.base_urls.anthropic", 3, fragment


def of_network(value: str, name: str, fragment: str) -> Row:
    """A document with that network_config; the problem is in its key `name`."""
    text = f"{PROVIDERS}    network_config: {value}\n"
    return text, f"providers.anthropic.network_config.{name}", 4, fragment


def of_key(value: str, name: str, fragment: str) -> Row:
    """A document whose provider has that key; the problem is in the key's `name`."""
    return with_key(value), f"providers.anthropic.keys[0].{name}", 5, fragment


def with_key(value: str) -> str:
    return f"{PROVIDERS}    keys:\n      - {value}\n"


LISTEN = "wanted HOST:PORT, [IPv6]:PORT or unix:/PATH"
HOST = "the host is neither a name nor an IP address"
URL = "wanted http:// or https:// and HOST[:PORT][/PATH]"
REFERENCE = "a secret is written env.NAME or file:PATH, never as it is"
HEADER = "holds what no header value may"
TEXT = "wanted a string, found"
NO_KEYS = (
    'provider "backup" has no keys, so it gets no credentials and cannot be used;'
    " give it keys, or is_key_less: true if it wants none"
)
BACKUP = """\
providers:
  anthropic: {base_urls: {anthropic: https://api.anthropic.com}}
  backup: {base_urls: {anthropic: http://127.0.0.1:9010}}
"""
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 9)
)

# One problem each: the document, and the path, the line and a part of the message.
ONE: dict[str, Row] = {
    # The document as a whole.
    "empty": ("", "providers", 1, "is missing, and there is no default"),
    "only a comment": ("# nothing\n", "providers", 1, "is missing"),
    "no providers": ("ping_interval: 1\n", "providers", 1, "is missing"),
    "null": ("null\n", "", 1, "wanted a mapping, found no value"),
    "a list": ("- a\n", "", 1, "wanted a mapping, found a list"),
    "a string": ("providers\n", "", 1, "wanted a mapping, found a string"),
    "two documents": (f"{PROVIDERS}---\n{PROVIDERS}", "", 4, "but found another document"),
    "NUL": root("# \x00", "", "the character U+0000 is not allowed in YAML"),
    "escape": root("# \x1b[2J", "", "the character U+001B is not allowed in YAML"),
    "lone surrogate": root("# \ud800", "", "the character U+D800 is not allowed in YAML"),
    "CR and line separator count as line ends": (f"{PROVIDERS}#\r#\r\n#\u2028\0", "", 7, "U+0000"),
    "syntax": root("store: a: b", "", "not valid YAML: mapping values are not allowed here"),
    "open quote": (
        f"listen: ['a\n{PROVIDERS}",
        "",
        5,
        "while scanning a quoted scalar that begins in line 1, found unexpected end of stream",
    ),
    "tab": root("\tstore: a", "", "not valid YAML: while scanning"),
    "undefined alias": root(f"store: *{LITERAL}", "", "not valid YAML: found undefined alias '…'"),
    "undefined tag handle": root(f"store: !{LITERAL}!a b", "", "not valid YAML: while parsing a node"),
    "escape too large": root('store: "\\UFFFFFFFF"', "", "a number or an escape is out of range"),
    "escape beyond Unicode": root('store: "\\U00110000"', "", "a number or an escape is out of range"),
    "huge YAML version": (
        f"%YAML 1.{'9' * 5000}\n---\n{PROVIDERS}",
        "",
        1,
        "a number or an escape is out of range",
    ),
    "tag": root("store: !!python/object:os.system x", "", "tags (!…) are not supported"),
    "tag on a mapping": ("store: a\nproviders: !!omap\n  a: {}\n", "", 2, "tags (!…) are not supported"),
    "nested lists": (f"{PROVIDERS}store: {'[' * 100_000}", "", 4, "nested more than 20 levels deep"),
    "nested dashes": (f"{PROVIDERS}store:\n {'- ' * 10_000}a", "", 5, "nested more than 20 levels deep"),
    "alias that holds itself": root("models: &a {x: *a}", "", "more than 100000 values"),
    "alias bomb": (BOMB + PROVIDERS, "", 1, "more than 100000 values, counting what aliases repeat"),
    "many aliases of a long list": (
        f"a: &a [{'x, ' * 1000}]\nb: [{'*a, ' * 100}]\n{PROVIDERS}",
        "",
        1,
        "more than 100000 values, counting what aliases repeat",
    ),
    # Keys.
    "unknown key": (f"lisen: [a:1]\n{PROVIDERS}", "lisen", 1, 'unknown key; did you mean "listen"?'),
    "unknown key in capitals": (f"LISTEN: [a:1]\n{PROVIDERS}", "LISTEN", 1, 'did you mean "listen"?'),
    "unlike any key": (
        f"qqq: 1\n{PROVIDERS}",
        "qqq",
        1,
        "unknown key; known: listen, public_url, max_body_bytes, ",
    ),
    "unknown provider key": root("    key: []", "providers.anthropic.key", 'did you mean "keys"?'),
    "a provider's name is its key": root("    name: b", "providers.anthropic.name", "unknown key"),
    "unknown network key": of_network("{max_retry: 1}", "max_retry", 'did you mean "max_retries"?'),
    "unknown key of a key": of_key("{name: a, value: env.GOOD_KEY, wait: 1}", "wait", 'mean "weight"?'),
    "repeated key": (
        f"ping_interval: 1\n{PROVIDERS}ping_interval: 1\n",
        "ping_interval",
        5,
        "first in line 1",
    ),
    "repeated provider": root("  anthropic: {}", "providers.anthropic", "first in line 2"),
    "repeated key, quoted": root('"providers": {}', "providers", "repeated key, first in line 1"),
    "boolean key": (f"no: 1\n{PROVIDERS}", "", 1, "a key here: wanted a string, found a boolean; quote it"),
    "number key": root("models: {4: anthropic/a}", "models", "found a number; quote it"),
    "null key": root("models: {~: anthropic/a}", "models", "found no value"),
    "empty key": root("models: {'': anthropic/a}", "models", "a key here: the string is empty"),
    "unprintable key": root('models: {"\\e": anthropic/a}', "models", "cannot be printed"),
    "list as a key": root("? [a]\n: b", "", "a key here: wanted a string, found a list"),
    "merge key": root("models: {<<: {a: b}}", "models", "merge keys (<<) are not supported"),
    # Types, and what YAML 1.1 makes of plain words.
    "no as a boolean": root("require_virtual_key: no", "require_virtual_key", "the word true or false"),
    "quoted boolean": root("require_virtual_key: 'true'", "require_virtual_key", "found a string"),
    "number as a boolean": root("require_virtual_key: 1", "require_virtual_key", "found a number"),
    "sexagesimal": root("ping_interval: 12:30:00", "ping_interval", "in plain decimal digits"),
    "underscore": root("max_body_bytes: 1_000", "max_body_bytes", "in plain decimal digits"),
    "octal": root("max_body_bytes: 010", "max_body_bytes", "in plain decimal digits"),
    "hexadecimal": root("max_body_bytes: 0x10", "max_body_bytes", "in plain decimal digits"),
    "quoted number": root("ping_interval: '15'", "ping_interval", "found a string"),
    "number with a unit": root("ping_interval: 15s", "ping_interval", "found a string"),
    "fraction of a byte": root("max_body_bytes: 1.5", "max_body_bytes", "wanted a whole number from 1"),
    "endless number": root(f"max_body_bytes: {'9' * 5000}", "max_body_bytes", "wanted a whole number"),
    "list as a number": root("ping_interval: [1]", "ping_interval", "found a list"),
    "no value": root("ping_interval:", "ping_interval", "found no value"),
    "null for a number": root("ping_interval: null", "ping_interval", "found no value"),
    "nothing is not null": root("store:", "store", f"{TEXT} no value"),
    "number as a string": root("store: 5", "store", f"{TEXT} a number; quote it"),
    "date as a string": root("store: 2026-01-01", "store", f"{TEXT} something else; quote it"),
    "empty string": root("store: ''", "store", "the string is empty"),
    "control character": root('store: "sqlite:a\\nb"', "store", "cannot be printed"),
    "surrogate escape": root('store: "sqlite:\\ud800"', "store", "cannot be printed"),
    "string as a list": root("listen: 127.0.0.1:80", "listen", "wanted a list, found a string"),
    "string as a mapping": ("providers: anthropic\n", "providers", 1, "wanted a mapping, found a string"),
    "provider without a value": ("providers:\n  anthropic:\n", "providers.anthropic", 2, "found no value"),
    # Ranges.
    "zero timeout": root("body_timeout: 0", "body_timeout", "a number above 0; this is out of range"),
    "negative timeout": root("drain_timeout: -1", "drain_timeout", "out of range"),
    "negative ping": root("ping_interval: -0.1", "ping_interval", "a number from 0; this is out of range"),
    "infinite timeout": root("keepalive_timeout: .inf", "keepalive_timeout", "in plain decimal digits"),
    "overflowing timeout": root("keepalive_timeout: 1.0e+999", "keepalive_timeout", "out of range"),
    "not a number": root("early_stream_after: .nan", "early_stream_after", "in plain decimal digits"),
    "no body at all": root("max_body_bytes: 0", "max_body_bytes", "a whole number from 1"),
    "no buffer": root("max_buffer_bytes: 0", "max_buffer_bytes", "a whole number from 1024"),
    "too many retries": of_network("{max_retries: 11}", "max_retries", "from 0 to 10; this is out of range"),
    "negative retries": of_network("{max_retries: -1}", "max_retries", "from 0 to 10; this is out of range"),
    "connect timeout": of_network("{connect_timeout: 0}", "connect_timeout", "above 0"),
    "first byte timeout": of_network("{first_byte_timeout: 0}", "first_byte_timeout", "above 0"),
    "idle timeout": of_network("{idle_timeout: 0}", "idle_timeout", "above 0"),
    "no backoff": of_network("{retry_backoff_initial: 0}", "retry_backoff_initial", "above 0"),
    "backoff upside down": of_network(
        "{retry_backoff_initial: 3, retry_backoff_max: 2.5}",
        "retry_backoff_max",
        "less than retry_backoff_initial, which is 3",
    ),
    "first wait above the default longest": of_network(
        "{retry_backoff_initial: 6}", "retry_backoff_max", "less than retry_backoff_initial, which is 6"
    ),
    # Addresses and URLs.
    "no addresses": root("listen: []", "listen", "the list is empty"),
    "no host": root("listen: [':8080']", "listen[0]", LISTEN),
    "no port": root("listen: [localhost]", "listen[0]", LISTEN),
    "empty port": root("listen: ['localhost:']", "listen[0]", LISTEN),
    "port too large": root("listen: ['a:1', 'a:65536']", "listen[1]", LISTEN),
    "digits beyond ASCII": root("listen: ['a:١٢']", "listen[0]", LISTEN),
    "bare IPv6": root("listen: ['::1:80']", "listen[0]", LISTEN),
    "bad IPv6": root("listen: ['[::g]:80']", "listen[0]", HOST),
    "bad IPv4": root("listen: ['127.0.0.256:80']", "listen[0]", HOST),
    "star": root("listen: ['*:80']", "listen[0]", HOST),
    "relative socket": root("listen: ['unix:a']", "listen[0]", "wanted unix:/PATH, an absolute path"),
    "long socket": root(f"listen: ['unix:/{'a' * 107}']", "listen[0]", "at most 107 bytes"),
    "YAML eats the port": root("listen: [80:30]", "listen[0]", f"{TEXT} a number; quote it"),
    "no scheme": of_url("api.anthropic.com", URL),
    "wrong scheme": of_url("ftp://api.anthropic.com", URL),
    "no URL host": of_url("https:///v1", URL),
    "user in the URL": of_url(f"https://a:{LITERAL}@h", URL),
    "query": of_url("'https://h/?a=b'", URL),
    "empty query": of_url("'https://h?'", URL),
    "fragment": of_url("'https://h/#a'", URL),
    "space in the URL": of_url("https://h/a b", URL),
    "letters beyond ASCII": of_url("https://h/é", URL),
    "host beyond ASCII": of_url("https://é", HOST),
    "backslash in the host": of_url(r"https://h\a", HOST),
    "URL port too large": of_url("https://h:65536", URL),
    "empty URL port": of_url("'https://h:/'", URL),
    "unknown wire format": (
        "providers:\n  a:\n    base_urls: {antropic: https://h}\n",
        "providers.a.base_urls.antropic",
        3,
        'unknown wire format; did you mean "anthropic"?',
    ),
    "path in public_url": root("public_url: https://h/a", "public_url", "without path"),
    "store": root("store: mysql://h/a", "store", "wanted sqlite:PATH or redis://HOST[:PORT]/DB"),
    "store without a path": root("store: 'sqlite:'", "store", "wanted sqlite:PATH"),
    "store as a URL": root("store: sqlite:///a.db", "store", "wanted sqlite:PATH"),
    "redis without a database": root("store: redis://h", "store", "wanted redis://HOST[:PORT]/DB"),
    "redis with a password": root(
        f"store: redis://:{LITERAL}@h/0", "store", "the password has a setting of its own"
    ),
    # Secrets.
    "literal key": of_key(f"{{name: a, value: {LITERAL}}}", "value", REFERENCE),
    "literal admin key": root(f"admin_key: {LITERAL}", "admin_key", REFERENCE),
    "literal key where a reference begins": of_key(f"{{name: a, value: env.{LITERAL}}}", "value", REFERENCE),
    "literal key as a file": root(f"admin_key: file:{LITERAL}", "admin_key", "cannot be read: No such file"),
    "credential without systemd": root(
        "admin_key: file:admin",
        "admin_key",
        "file admin (CREDENTIALS_DIRECTORY is not set) cannot be read: No such file or directory",
    ),
    "number as a key": of_key("{name: a, value: 1234}", "value", f"{TEXT} a number"),
    "key in a list": (
        with_key(LITERAL),
        "providers.anthropic.keys[0]",
        5,
        "wanted a mapping, found a string",
    ),
    "unset variable": of_key("{name: a, value: env.NOPE}", "value", "variable NOPE is not set, or empty"),
    "empty variable": of_key("{name: a, value: env.EMPTY}", "value", "variable EMPTY is not set, or empty"),
    "variable with a line end": of_key("{name: a, value: env.LINES}", "value", f"variable LINES {HEADER}"),
    "variable with a space": of_key("{name: a, value: env.SPACE}", "value", f"variable SPACE {HEADER}"),
    "variable beyond latin-1": of_key("{name: a, value: env.SNOWMAN}", "value", f"SNOWMAN {HEADER}"),
    "no file": root("admin_key: file:/nope", "admin_key", "file /nope cannot be read: No such file"),
    "closed file": root("admin_key: file:/run/closed", "admin_key", "be read: Permission denied"),
    "file that is no text": root("admin_key: file:/run/latin", "admin_key", "it is not UTF-8 text"),
    "empty file": root("admin_key: file:/run/empty", "admin_key", "file /run/empty is not set, or empty"),
    "file with a NUL": root("admin_key: file:/run/nul", "admin_key", f"file /run/nul {HEADER}"),
    "file without a path": root("admin_key: 'file:'", "admin_key", REFERENCE),
    # Providers and keys.
    "empty providers": ("providers: {}\n", "providers", 1, "name at least one provider"),
    "no base URLs": ("providers:\n  a: {keys: []}\n", "providers.a.base_urls", 2, "is missing"),
    "slash in a provider's name": (
        "providers:\n  a/b: {base_urls: {anthropic: http://h}}\n",
        "providers.a/b",
        2,
        "a provider's name begins with a letter or digit",
    ),
    "dot first in a provider's name": (
        "providers:\n  .a: {base_urls: {anthropic: http://h}}\n",
        "providers..a",
        2,
        "a provider's name begins with a letter or digit",
    ),
    "key without a name": of_key("{value: env.GOOD_KEY}", "name", "is missing"),
    "key without a value": (
        with_key("{name: a}"),
        "providers.anthropic.keys[0]",
        5,
        "has a value or a bedrock_key_config, one of the two",
    ),
    "key with both": (
        with_key("{name: a, value: env.GOOD_KEY, bedrock_key_config: {region: us-east-1}}"),
        "providers.anthropic.keys[0]",
        5,
        "has a value or a bedrock_key_config, one of the two",
    ),
    "half of a pair that signs": (
        with_key("{name: a, bedrock_key_config: {region: us-east-1, access_key: env.GOOD_KEY}}"),
        "providers.anthropic.keys[0].bedrock_key_config",
        5,
        "access_key and secret_key go together",
    ),
    "region": (
        with_key("{name: a, bedrock_key_config: {region: evil.test/}}"),
        "providers.anthropic.keys[0].bedrock_key_config.region",
        5,
        "wanted a region of AWS, such as us-east-1",
    ),
    "no base URLs, and an unknown name": (
        "providers:\n  grok: {}\n",
        "providers.grok.base_urls",
        2,
        "is missing, and no provider that is known has this name",
    ),
    "base URLs that are everybody's own": (
        "providers:\n  azure: {}\n",
        "providers.azure.base_urls",
        2,
        "is missing: each resource has its own",
    ),
    "no region": (
        "providers:\n  bedrock: {}\n",
        "providers.bedrock.base_urls",
        2,
        "is missing, and the keys name no region, or several (bedrock_key_config); write base_urls:",
    ),
    "negative weight": of_key("{name: a, value: env.GOOD_KEY, weight: -1}", "weight", "from 0 to 100000"),
    "no weight": (
        with_key("{name: a, value: env.GOOD_KEY, weight: 0}"),
        "providers.anthropic.keys",
        5,
        "no key has a weight above 0",
    ),
    "key for no model": of_key("{name: a, value: env.GOOD_KEY, models: []}", "models", "the list is empty"),
    "two keys of one name": (
        with_key("{name: a, value: env.GOOD_KEY}\n      - {name: a, value: file:/run/key}"),
        "providers.anthropic.keys[1].name",
        6,
        "another key of this provider has this name",
    ),
    "key-less with keys": (
        with_key("{name: a, value: env.GOOD_KEY}\n    is_key_less: true"),
        "providers.anthropic.is_key_less",
        6,
        "true, and yet there are keys",
    ),
    # Names that must name something.
    "dangling default": root(
        "default_providers: {anthropic: antropic}",
        "default_providers.anthropic",
        'no provider is called "antropic"; did you mean "anthropic"?',
    ),
    "default of an unknown format": root(
        "default_providers: {antropic: anthropic}",
        "default_providers.antropic",
        'unknown wire format; did you mean "anthropic"?',
    ),
    "default that does not speak the format": root(
        "default_providers: {openai: anthropic}",
        "default_providers.openai",
        'provider "anthropic" has no base URL for openai',
    ),
    "dangling target": (
        f"{PROVIDERS}models:\n  a:\n    - anthropic/b\n    - anthropc/b\n",
        "models.a[1]",
        7,
        'no provider is called "anthropc"; did you mean "anthropic"?',
    ),
    "dangling lone target": root(
        "models: {a: qqq/b}", "models.a[0]", 'no provider is called "qqq"; known: anthropic'
    ),
    "very long name": root(
        f"default_providers: {{anthropic: {LITERAL}}}",
        "default_providers.anthropic",
        f'no provider is called "{LITERAL[:39]}…"',
    ),
    "target without a model": root("models: {a: anthropic/}", "models.a[0]", 'wanted "provider/model"'),
    "target without a provider": root("models: {a: [/b]}", "models.a[0]", 'wanted "provider/model"'),
    "target without a slash": root("models: {a: [b]}", "models.a[0]", 'wanted "provider/model"'),
    "alias for nothing": root("models: {a: []}", "models.a", "the list is empty"),
    "alias without a value": (f"{PROVIDERS}models:\n  a:\n", "models.a[0]", 5, f"{TEXT} no value"),
    "fallback that gets no credentials": (
        f"{BACKUP}default_providers: {{anthropic: anthropic}}\nmodels: {{a: [anthropic/b, backup/b]}}\n",
        "models.a[1]",
        5,
        NO_KEYS,
    ),
    "first target that gets no credentials": (
        f"{BACKUP}default_providers: {{anthropic: anthropic}}\nmodels: {{a: backup/b}}\n",
        "models.a[0]",
        5,
        NO_KEYS,
    ),
    "unknown event": root(
        "fallback_on: [429, tiemout]",
        "fallback_on[1]",
        'wanted a status from 400 to 599, or an event; did you mean "timeout"?',
    ),
    "status that is no error": root("fallback_on: [399]", "fallback_on[0]", "a status from 400 to 599"),
    "status too large": root("fallback_on: [600]", "fallback_on[0]", "a status from 400 to 599"),
    "status in octal": root("fallback_on: [0o620]", "fallback_on[0]", "a status from 400 to 599"),
    "list as an event": root("fallback_on: [[429]]", "fallback_on[0]", "a status from 400 to 599"),
}


@pytest.mark.parametrize(("text", "path", "line", "fragment"), ONE.values(), ids=ONE.keys())
def test_one_problem(text: str, path: str, line: int, fragment: str) -> None:
    """What is wrong is told once, with its path, its line, and what to do about it."""
    (problem,) = problems(text)
    assert (problem.path, problem.line) == (path, line)
    assert fragment in problem.message


def test_every_problem_at_once() -> None:
    """A file with many mistakes is told all of them, in the order of its lines, each once."""
    text = f"""\
listn: ["127.0.0.1:8080"]
ping_interval: 12:30
listen: [":80", "127.0.0.1:8080", "unix:x"]
providers:
  anthropic:
    base_urls: {{antropic: https://api.anthropic.com, openai: "https://a:{LITERAL}@h"}}
    keys:
      - {{name: a, value: {LITERAL}, weight: -1}}
      - {{name: a, value: env.NOPE}}
    network_config: {{max_retries: 99, retry_backoff_initial: 9}}
  backup: {{base_urls: {{genai: http://127.0.0.1:9010}}, is_key_less: maybe}}
  broken:
default_providers: {{anthropic: anthropic, openai: nobody, genai: brokn}}
models: {{a: [anthropic/x, backup/x, broken/x, bckup/x], b: 5}}
admin_key: {LITERAL}
"""
    told = [(problem.line, problem.path) for problem in problems(text)]
    assert told == sorted(told, key=lambda one: one[0])
    assert sorted(told) == [
        (1, "listn"),
        (2, "ping_interval"),
        (3, "listen[0]"),
        (3, "listen[2]"),
        (6, "providers.anthropic.base_urls.antropic"),
        (6, "providers.anthropic.base_urls.openai"),
        (8, "providers.anthropic.keys[0].value"),
        (8, "providers.anthropic.keys[0].weight"),
        (9, "providers.anthropic.keys[1].name"),
        (9, "providers.anthropic.keys[1].value"),
        (10, "providers.anthropic.network_config.max_retries"),
        (10, "providers.anthropic.network_config.retry_backoff_max"),
        (11, "providers.backup.is_key_less"),
        (12, "providers.broken"),
        (13, "default_providers.genai"),
        (13, "default_providers.openai"),
        (14, "models.a[3]"),
        (14, "models.b[0]"),
        (15, "admin_key"),
    ]


def test_problem_reads_as_one_line() -> None:
    """A problem prints as line, path and message, and as what it has where there is no file or no path."""
    message = 'unknown wire format; did you mean "anthropic"?'
    assert str(Problem("providers.backup.base_urls.antropic", 12, message)) == (
        'line 12: providers.backup.base_urls.antropic: unknown wire format; did you mean "anthropic"?'
    )
    assert str(Problem("", 3, "not valid YAML")) == "line 3: not valid YAML"
    assert str(Problem("providers.openai.keys", 0, "no")) == "providers.openai.keys: no"


def test_design_example_loads() -> None:
    """The design's own example is read as it says."""
    network_config = NetworkConfig(
        connect_timeout=5,
        first_byte_timeout=600,
        idle_timeout=300,
        max_retries=1,
        retry_backoff_initial=0.5,
        retry_backoff_max=5,
    )
    assert loaded(DESIGN) == Config(
        listen=("127.0.0.1:8080",),
        max_body_bytes=33554432,
        ping_interval=15,
        providers={
            "anthropic": Provider(
                "anthropic",
                {"anthropic": "https://api.anthropic.com", "openai": "https://api.anthropic.com/v1"},
                (Key("main", Secret(KEY), 1, ("*",)),),
                network_config=network_config,
            ),
            "backup": Provider("backup", {"anthropic": "http://127.0.0.1:9010"}, is_key_less=True),
        },
        default_providers={"anthropic": "anthropic", "openai": "anthropic"},
        store="sqlite:/var/lib/verbatim/state.db",
        admin_key=Secret(KEY),
        require_virtual_key=False,
        models={"claude-2": ("anthropic/claude-haiku-4-5", "backup/claude-haiku-4-5")},
    )


def test_defaults() -> None:
    """A file that names only a provider gets the documented defaults, and the provider for its format."""
    config = loaded(PROVIDERS)
    assert config == Config(
        listen=("127.0.0.1:8080",),
        public_url=None,
        max_body_bytes=33554432,
        body_timeout=30,
        keepalive_timeout=75,
        drain_timeout=30,
        ping_interval=15,
        early_stream_after=0,
        max_buffer_bytes=262144,
        providers={"anthropic": Provider("anthropic", {"anthropic": "https://api.anthropic.com"})},
        default_providers={"anthropic": "anthropic"},
        models={},
        fallback_on=FALLBACK_ON,
        store=None,
        admin_key=None,
        require_virtual_key=False,
    )
    assert config.providers["anthropic"] == Provider(
        "anthropic",
        {"anthropic": "https://api.anthropic.com"},
        (),
        False,
        NetworkConfig(5, 600, 300, 1, 0.5, 5),
    )
    assert loaded(with_key("{name: a, value: env.GOOD_KEY}")).providers["anthropic"].keys == (
        Key("a", Secret(KEY), 1, ("*",)),
    )


def test_config_cannot_be_changed() -> None:
    """What was loaded is the same for every request: neither its fields nor its mappings can be set."""
    config: Any = loaded(DESIGN)
    for value in (config, config.providers["backup"], config.providers["backup"].network_config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, dataclasses.fields(value)[0].name, None)
    for mapping in (
        config.providers,
        config.default_providers,
        config.models,
        config.providers["backup"].base_urls,
    ):
        with pytest.raises(TypeError):
            mapping["x"] = None


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:0",
        "0.0.0.0:65535",
        "localhost:80",
        "a-b.example.com:80",
        "[::]:80",
        "[fe80::1%eth0]:80",
        "unix:/a",
        "unix:/" + "a" * 106,
    ],
)
def test_address_is_kept(text: str) -> None:
    """Every form of address to listen on is taken, and kept as it came."""
    assert loaded(f"{PROVIDERS}listen: ['{text}']\n").listen == (text,)
    assert address(text) == text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://api.anthropic.com", "https://api.anthropic.com"),
        ("https://api.anthropic.com/", "https://api.anthropic.com"),
        ("http://10.0.0.5:8000/a/b//", "http://10.0.0.5:8000/a/b"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://vllm_1/a%2Fb@c:d;e", "http://vllm_1/a%2Fb@c:d;e"),
    ],
)
def test_base_url_is_kept_without_slash(text: str, kept: str) -> None:
    """A base URL keeps every byte of its path but the slashes at its end; plain http works in a LAN."""
    assert loaded(of_url(f"'{text}'", "")[0]).providers["a"].base_urls == {"anthropic": kept}


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("public_url: https://llm.example.com:8443/", "public_url", "https://llm.example.com:8443"),
        ("public_url: null", "public_url", None),
        ("store: redis://cache:6379/2", "store", "redis://cache:6379/2"),
        ("store: redis://cache/0", "store", "redis://cache/0"),
        ("store: sqlite:state.db", "store", "sqlite:state.db"),
        ("admin_key: null", "admin_key", None),
        ("ping_interval: 0", "ping_interval", 0),
        ("ping_interval: 1.5e-1", "ping_interval", 0.15),
        ("early_stream_after: 0.25", "early_stream_after", 0.25),
        ("max_body_bytes: 1", "max_body_bytes", 1),
        ("require_virtual_key: true", "require_virtual_key", True),
        ("fallback_on: []", "fallback_on", ()),
        ("fallback_on: [connect, 429, '503', 599]", "fallback_on", ("connect", "429", "503", "599")),
        ("models: {'no': 'anthropic/a/b'}", "models", {"no": ("anthropic/a/b",)}),
        ("models: &m {a: [&t anthropic/b, *t]}", "models", {"a": ("anthropic/b", "anthropic/b")}),
    ],
)
def test_value(line: str, field: str, value: object) -> None:
    """A value is read as it is meant."""
    assert getattr(loaded(f"{PROVIDERS}{line}\n"), field) == value


def test_anchor_is_read_where_it_is_used() -> None:
    """A plain anchor saves writing the same value twice."""
    config = loaded(
        "providers:\n"
        "  a: {base_urls: {anthropic: http://a}, network_config: &quick {max_retries: 0}}\n"
        "  b: {base_urls: {openai: http://b}, network_config: *quick}\n"
    )
    assert config.providers["b"].network_config == NetworkConfig(max_retries=0)


@pytest.mark.parametrize("prefix", ["\ufeff", "%YAML 1.2\n---\n", "---\n"])
def test_document_start(prefix: str) -> None:
    """A byte order mark and YAML's own ways to begin a document are no problem."""
    assert loaded(prefix + PROVIDERS) == loaded(PROVIDERS)


@given(value=st.floats(min_value=1e-9, max_value=1e9))
def test_any_number_survives(value: float) -> None:
    """A number that YAML writes is the number that is read."""
    assert loaded(f"{PROVIDERS}{yaml.safe_dump({'body_timeout': value})}").body_timeout == value


def test_implied_default_provider() -> None:
    """The only one that speaks a format is its default; of two the format's own is, or whoever is named."""
    two = f"{BACKUP}  third: {{base_urls: {{openai: http://127.0.0.1:1/v1}}}}\n"
    assert loaded(two).default_providers == {"openai": "third", "anthropic": "anthropic"}
    assert loaded(two.replace("  anthropic:", "  other:")).default_providers == {"openai": "third"}
    named = loaded(f"{two}default_providers: {{anthropic: backup}}\nmodels: {{a: [backup/b, third/b]}}\n")
    assert named.default_providers == {"openai": "third", "anthropic": "backup"}


@pytest.mark.parametrize("credentials", ["keys: [{name: a, value: env.GOOD_KEY}]", "is_key_less: true"])
def test_fallback_with_credentials(credentials: str) -> None:
    """A provider that is nobody's default may be a target once it has keys, or wants none."""
    text = BACKUP.replace("9010}}", f"9010}}, {credentials}}}")
    config = loaded(
        f"{text}default_providers: {{anthropic: anthropic}}\nmodels: {{a: [anthropic/b, backup/b]}}\n"
    )
    assert config.models == {"a": ("anthropic/b", "backup/b")}


@pytest.mark.parametrize(
    "line",
    [
        "default_providers: {anthropic: bakup}",
        "default_providers: {antropic: backup}",
        "default_providers: []",
    ],
)
def test_mistaken_default_does_not_condemn_targets(line: str) -> None:
    """While a default is misspelt nobody knows whom it meant: one mistake is one problem."""
    (problem,) = problems(f"{BACKUP}{line}\nmodels: {{a: [backup/b]}}\n")
    assert problem.line == 4


@pytest.mark.parametrize(
    ("reference", "value"),
    [
        ("env.GOOD_KEY", KEY),
        ("env.LATIN", f"{KEY}\xe9"),
        ("file:/run/key", KEY),
        ("file:/run/dos", KEY),
    ],
)
def test_secret(reference: str, value: str) -> None:
    """A secret comes from a variable or from a file, without the file's last line end."""
    config = loaded(f"{PROVIDERS}admin_key: {reference}\n")
    assert config.admin_key is not None
    assert config.admin_key.reveal() == value


@pytest.mark.parametrize(
    ("reference", "directory", "opened"),
    [
        ("admin", "/run/credentials/verbatim", "/run/credentials/verbatim/admin"),
        ("/etc/admin", "/run/credentials/verbatim", "/etc/admin"),
        ("admin", None, "admin"),
        ("admin", "", "admin"),
    ],
)
def test_relative_file_is_a_systemd_credential(reference: str, directory: str | None, opened: str) -> None:
    """A relative path is looked up in systemd's credentials directory, where there is one."""
    environ = {} if directory is None else {"CREDENTIALS_DIRECTORY": directory}
    config = load(
        f"{PROVIDERS}admin_key: file:{reference}\n", environ, {opened: "sk-test-admin\n"}.__getitem__
    )
    assert config.admin_key == Secret("sk-test-admin")


def test_secret_is_never_shown() -> None:
    """No way of printing a secret, or what holds it, shows it; `reveal` does."""
    secret, config = Secret(KEY), loaded(DESIGN)
    (main,) = config.providers["anthropic"].keys
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret:>20}",
        f"{secret!r}",
        format(secret, "s"),
    ]
    shown += [repr(config), str(config), repr(main), str(dataclasses.asdict(main)), str(vars(type(secret)))]
    assert not [text for text in shown if "a1B2" in text]
    assert repr(secret) == "Secret(***)"
    assert secret.reveal() == main.value.reveal() == KEY


def test_secrets_compare_by_value() -> None:
    """Equal secrets are one in a set; a secret equals no string."""
    assert {Secret("a"), Secret("a"), Secret("b")} == {Secret("b"), Secret("a")}
    assert Secret("a") != "a"


def test_local_without_variables() -> None:
    """With no file and no variables every known provider is there, without keys of ours."""
    config = local_config({})
    assert {name: dict(provider.base_urls) for name, provider in config.providers.items()} == {
        name: dict(found.base_urls)
        for name, found in known.PROVIDERS.items()
        if found.base_urls and "{region}" not in "".join(found.base_urls.values())
    }
    assert config.default_providers == {
        "anthropic": "anthropic",
        "openai": "openai",
        "genai": "gemini",
        "cohere": "cohere",
    }
    assert not any(provider.keys for provider in config.providers.values())
    assert [name for name, provider in config.providers.items() if provider.is_key_less] == [
        *("lmstudio", "ollama", "sgl", "vllm")
    ]
    assert dataclasses.replace(config, providers={}, default_providers={}) == Config(providers={})


@pytest.mark.parametrize(
    ("variable", "provider"),
    [
        ("ANTHROPIC_API_KEY", "anthropic"),
        ("OPENAI_API_KEY", "openai"),
        ("GEMINI_API_KEY", "gemini"),
        ("GOOGLE_API_KEY", "gemini"),
        ("COHERE_API_KEY", "cohere"),
        ("CO_API_KEY", "cohere"),
        ("GROQ_API_KEY", "groq"),
    ],
)
def test_local_key(variable: str, provider: str) -> None:
    """A provider's usual variable, if it is set and not empty, gives that provider a key, and no other."""
    keys = {name: each.keys for name, each in local_config({variable: KEY}).providers.items() if each.keys}
    assert keys == {provider: (Key(variable, Secret(KEY)),)}
    assert local_config({variable: ""}) == local_config({})


def test_local_takes_the_first_variable() -> None:
    """Of two variables for one provider the first that is set counts."""
    both = local_config({"GEMINI_API_KEY": "sk-test-1", "GOOGLE_API_KEY": "sk-test-2"})
    assert both.providers["gemini"].keys == (Key("GOOGLE_API_KEY", Secret("sk-test-2")),)
    second = local_config({"GEMINI_API_KEY": "sk-test-1", "GOOGLE_API_KEY": ""})
    assert second.providers["gemini"].keys == (Key("GEMINI_API_KEY", Secret("sk-test-1")),)


def test_local_asks_bedrock_in_the_region_that_is_set() -> None:
    """With its own key, or with what AWS's SDKs find; without a region its address is not known."""
    region = {"AWS_DEFAULT_REGION": "eu-west-1"}
    assert "bedrock" not in local_config({"AWS_BEARER_TOKEN_BEDROCK": "sk-test-1"}).providers
    keyed = local_config(region | {"AWS_BEARER_TOKEN_BEDROCK": "sk-test-1"}).providers["bedrock"]
    assert keyed.base_urls["bedrock"] == "https://bedrock-runtime.eu-west-1.amazonaws.com"
    assert [key.signs for key in keyed.keys] == [False]
    signing = local_config(region, can_sign=True)
    assert [key.signs for key in signing.providers["bedrock"].keys] == [True]
    assert signing.default_providers["bedrock"] == "bedrock"
    assert not local_config(region).providers["bedrock"].keys
    with pytest.raises(ConfigError):
        local_config({"AWS_REGION": "evil.test/"})


def test_a_known_provider_needs_no_base_urls() -> None:
    """The table has them, for a region that the keys name; what a file says itself is left alone."""
    text = (
        "providers:\n  groq: {}\n  ollama: {}\n  moonshot: {keys: [{name: a, value: env.GOOD_KEY}]}\n"
        "  openai: {base_urls: {openai: 'http://h/v1'}}\n"
        "  bedrock: {keys: [{name: a, bedrock_key_config: {region: us-west-2}}]}\n"
    )
    providers = loaded(text).providers
    assert providers["groq"].base_urls == {"openai": "https://api.groq.com/openai/v1"}
    assert (providers["ollama"].is_key_less, providers["groq"].is_key_less) == (True, False)
    assert (providers["moonshot"].bearers, providers["groq"].bearers) == (("anthropic",), ())
    assert providers["openai"].base_urls == {"openai": "http://h/v1"}
    assert providers["bedrock"].base_urls["anthropic"] == (
        "https://bedrock-runtime.us-west-2.amazonaws.com/anthropic"
    )


def test_local_refuses_unfit_keys() -> None:
    """A variable that no header can hold is a problem, one for each, by its name and without its value."""
    with pytest.raises(ConfigError) as caught:
        local_config({"OPENAI_API_KEY": f"{KEY}\n", "CO_API_KEY": f"{KEY}\u2603"})
    assert [(problem.path, problem.line) for problem in caught.value.problems] == [
        ("providers.openai.keys[0].value", 0),
        ("providers.cohere.keys[0].value", 0),
    ]
    assert "OPENAI_API_KEY" in str(caught.value)
    assert "CO_API_KEY" in str(caught.value)
    assert KEY not in str(caught.value)


def loads_or_tells(text: str) -> None:
    """What holds for every text: it is a sound `Config`, or it has problems in its lines; no key is shown."""
    try:
        config = loaded(text)
    except ConfigError as error:
        refused = error
    else:
        assert_sound(config)
        return
    assert refused.problems
    lines = len(text.splitlines()) + 1
    assert all(1 <= problem.line <= lines for problem in refused.problems)
    assert all(problem.message and str(problem).isprintable() for problem in refused.problems)
    assert KEY not in str(refused)
    assert LITERAL not in str(refused)


def assert_sound(config: Config) -> None:
    """What else in the proxy relies on."""
    assert KEY not in repr(config)
    assert config.providers
    assert set(config.default_providers.values()) <= set(config.providers)
    assert all(
        target.split("/")[0] in config.providers for targets in config.models.values() for target in targets
    )
    assert all(0 < seconds < math.inf for seconds in (config.body_timeout, config.drain_timeout))


MARKS = "\n\t :-?[]{}&*!|>'\"%@`#,~<=\0\ufeff\u2028\ud800"
WORDS = ["null", "no", "1_000", "0x1", "12:30", ".inf", "2026-01-01", "&a ", "*a", "!!int ", "!x ", "<<: "]
WORDS += ["env.GOOD_KEY", "env.NOPE", "file:/run/key", "file:/nope", "anthropic/", "backup", "providers:"]
SNIPPETS = st.sampled_from(
    [*MARKS, *WORDS, '"\\x', '"\\u', '"\\U00110000"', "- ", ": ", "? ", "---\n", "%YAML 1.1\n"]
)
EDITS = st.lists(
    st.tuples(
        st.integers(0, len(DESIGN)), st.integers(0, 40), st.one_of(st.just(""), SNIPPETS, st.text(max_size=4))
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=400)
@given(edits=EDITS)
def test_edited_text_loads_or_tells(edits: list[tuple[int, int, str]]) -> None:
    """However a good file is damaged, it loads or its problems are told; nothing else is ever raised."""
    text = DESIGN
    for start, length, put in edits:
        text = text[:start] + put + text[start + length :]
    loads_or_tells(text)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.sampled_from(MARKS) | st.characters(), max_size=60))
@example("a: &a [*a]")
@example('"\\UFFFFFFFF": ')
def test_any_text_loads_or_tells(text: str) -> None:
    """Any text at all loads or its problems are told."""
    loads_or_tells(text)


NAMES = st.sampled_from(
    [field.name for cls in (Config, Provider, Key, NetworkConfig) for field in dataclasses.fields(cls)]
) | st.text(max_size=3)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.dates()
    | st.sampled_from(
        ["env.GOOD_KEY", "env.NOPE", "file:/run/key", "anthropic", "backup/x", "http://h", LITERAL]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every container in a document with each of its keys or indices."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
    return [place for key in keys for place in [(node, key), *places(node[key])]]


PLACES = len(places(yaml.safe_load(DESIGN)))


@settings(deadline=None, max_examples=400)
@given(
    edits=st.lists(st.tuples(st.integers(0, PLACES - 1), NAMES | st.none(), VALUES), min_size=1, max_size=3)
)
def test_edited_values_load_or_tell(edits: list[tuple[int, str | None, Any]]) -> None:
    """Whatever stands in place of a value of a good file, or under a key beside it, loads or is told."""
    document = yaml.safe_load(DESIGN)
    for index, name, value in edits:
        here = places(document)
        container, key = here[index % len(here)] if here else (document, None)
        container[name if name and isinstance(container, dict) else key] = value
    loads_or_tells(yaml.safe_dump(document, allow_unicode=True))
