"""Ends of jobs that are to be told, and configs that say to whom."""

from __future__ import annotations

import base64
import zlib

import yaml

from proxy import config
from proxy.config import Config
from proxy.job import Ending, Found, State
from proxy.jobheads import Answer

LONG = 7 * 86400
"""A result is kept for longer than anybody tries to tell of it."""

OPERATION = "/anthropic/v1/messages"


def secret(size: int = 32) -> str:
    """A secret; in base64 the mark of test keys looks like `MARK`."""
    return "whsec_" + base64.b64encode(b"sk-test-" + bytes(range(size - 8))).decode()


MARK = "c2stdGVzdC"
"""What `secrecy` cannot find: base64 has no dash."""

SECRET = secret()


def ending(
    body: bytes,
    *,
    failed: bool = False,
    at: float = 1_800_000_000.0,
    ttl: int = LONG,
    codings: str = "",
    error: bytes = b"",
    packed: bool = False,
) -> Ending:
    """How a job ended whose answer had this body."""
    plain = zlib.decompress(body) if packed else body
    about = {"size": len(plain), "is_object": plain.lstrip().startswith(b"{")}
    kept = Answer(b"OK", [b"content-type: application/json"], False, codings, error, **about).dumps()
    return Ending(failed, 529 if failed else 200, kept, body, packed, at, at + ttl)


def found(ended: Ending, id: str = "job_0123456789abcdef") -> Found:
    """A job that ended so."""
    state = State.FAILED if ended.failed else State.COMPLETED
    return Found(id, "credential x", OPERATION, state, ended.completed - 60, ended)


def configured(key: str = SECRET, **urls: str) -> Config:
    """A config with these webhooks by name."""
    document = {
        "store": "sqlite:state.db",
        "providers": {"anthropic": {"base_urls": {"anthropic": "http://127.0.0.1:9"}}},
        "webhooks": {name: {"url": url, "secret": "env.HOOK"} for name, url in urls.items()},
    }
    return config.load(yaml.safe_dump(document, allow_unicode=True), {"HOOK": key}, lambda path: "")
