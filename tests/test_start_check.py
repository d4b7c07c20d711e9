"""An aiohttp that is known to be unsafe is refused at the start."""

from __future__ import annotations

from importlib import metadata

import pytest
from aiohttp import http_parser

from proxy import config
from proxy.accesslog import AccessLog
from proxy.server import Server

CONFIG = config.load(
    'listen: ["127.0.0.1:0"]\nproviders: {a: {base_urls: {anthropic: "http://127.0.0.1:1"}}}',
    {},
    lambda _: "",
)


async def test_an_old_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    """3.14.4 and older have request-smuggling holes."""
    monkeypatch.setattr(metadata, "version", lambda _: "3.14.4")
    with pytest.raises(RuntimeError, match="older than"):
        await Server(CONFIG, log=AccessLog(lambda _: None)).start()


async def test_the_pure_python_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes requests that the C parser refuses."""
    monkeypatch.setattr(http_parser, "HttpRequestParser", http_parser.HttpRequestParserPy)
    with pytest.raises(RuntimeError, match="C parser"):
        await Server(CONFIG, log=AccessLog(lambda _: None)).start()
