"""The real proxy, running in the test's own event loop, and what it logged.

Rules
  1. It is configured as an operator does it: by YAML text, an environment and `proxy.config.load`.
  2. Every key of a test begins with ``sk-test``, so that one search of `Proxy.log_text` finds any of them.

Not here: stopping it and the checks after a test. They are in the fixture `proxy` of `conftest`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from rawclient import CLIENT_KEY, PATIENCE, Client, Response, connect, get, post
from scripted import Upstream

from proxy import config as proxy_config
from proxy.accesslog import AccessLog
from proxy.server import Server

Provider = Upstream | Mapping[str, Any]
"""An upstream, or a provider in the config's own shape."""


class Proxy:
    """The running proxy, as tests see it."""

    def __init__(self, config_text: str, environ: Mapping[str, str], logged: LogText) -> None:
        self.clients: list[Client] = []
        self._logged = logged
        self._lines = Lines()
        self._seen = 0
        self._log = AccessLog(self._lines.write)
        config = proxy_config.load(config_text, environ, lambda path: Path(path).read_text())
        self.server = Server(config, log=self._log)

    async def start(self) -> None:
        await self.server.start()

    async def stop(self) -> None:
        """Stops the server; what it had to log has been written when this returns."""
        await self.server.stop()
        await self._log.close()

    @property
    def port(self) -> int:
        return int(self.server.addresses[0].rpartition(":")[2])

    async def connect(self, **options: Any) -> Client:
        """A new connection to the proxy's first address; it is closed when the test ends."""
        client = await connect(self.port, **options)
        self.clients.append(client)
        return client

    async def post(
        self,
        path: str,
        body: bytes,
        headers: Iterable[tuple[bytes, bytes]] = (),
        *,
        key: bytes | None = CLIENT_KEY,
    ) -> Response:
        """One POST on a connection of its own, as an SDK sends it; `key` goes as x-api-key."""
        return await self.ask(post(path, body, headers, key=key))

    async def get(self, path: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> Response:
        """One GET on a connection of its own."""
        return await self.ask(get(path, headers), "GET")

    async def ask(self, request: bytes, method: str = "POST") -> Response:
        """One request, given as bytes, on a connection of its own."""
        client = await self.connect()
        await client.send(request)
        response = await client.response(method)
        client.close()
        return response

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The access-log lines so far."""
        return [json.loads(line) for line in self._lines.whole()]

    async def line(self) -> dict[str, Any]:
        """The next access-log line; waits for it."""
        self._seen += 1
        await self._lines.at_least(self._seen)
        return self.lines[self._seen - 1]

    @property
    def metrics_text(self) -> str:
        """What `/metrics` says, or would have said last."""
        assert self.server._metrics is not None
        return self.server._metrics.text().decode()

    @property
    def log_text(self) -> str:
        """Everything that was logged: the access log and Python's logging."""
        return b"\n".join(self._lines.whole()).decode() + "\n" + self._logged.text


class Lines:
    """Access-log lines: written from a thread, awaited in the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._written = b""
        self._more = asyncio.Event()

    def write(self, batch: bytes) -> None:
        with self._lock:
            self._written += batch
        self._loop.call_soon_threadsafe(self._more.set)

    def whole(self) -> list[bytes]:
        with self._lock:
            return self._written.splitlines()

    async def at_least(self, count: int) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while len(self.whole()) < count:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            came = len(self.whole())
            raise AssertionError(f"{came} access-log lines, not {count}, after {PATIENCE} s") from None


class LogText(logging.Handler):
    """Everything that Python's logging was given, as text."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += self.format(record) + "\n"


def provider_config(provider: Provider, *, default: bool) -> dict[str, Any]:
    """A provider as the config file has it; retries are quick, so that no test waits for a backoff."""
    config: dict[str, Any] = (
        {"base_urls": {"anthropic": provider.url}} if isinstance(provider, Upstream) else dict(provider)
    )
    # Without it a provider that is not the default one, and has no keys, cannot be used.
    if not default and not config.get("keys"):
        config.setdefault("is_key_less", True)
    quick = {"retry_backoff_initial": 0.001, "retry_backoff_max": 0.01}
    config["network_config"] = {**quick, **config.get("network_config", {})}
    return config


def keyed(upstream: Upstream, *names: str, **more: Any) -> dict[str, Any]:
    """The config of a provider that has keys of its own. The key ``main`` has the value ``sk-test-main``."""
    keys = [{"name": name, "value": f"env.TEST_KEY_{name.upper()}"} for name in names]
    return {"base_urls": {"anthropic": upstream.url}, "keys": keys, **more}


def key_environment(providers: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The variables that the providers' keys name; each value is ``sk-test-`` and the key's name."""
    return {
        key["value"].removeprefix("env."): f"sk-test-{key['name']}"
        for provider in providers.values()
        for key in provider.get("keys", ())
        if "value" in key
    }


def config_text(providers: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """The config file; the first provider is the default one."""
    document = {
        "listen": ["127.0.0.1:0"],
        "default_providers": {"anthropic": next(iter(providers))},
        **settings,
        "providers": dict(providers),
    }
    return yaml.safe_dump(document, sort_keys=False)


StartUpstream = Callable[..., Awaitable[Upstream]]
StartProxy = Callable[..., Awaitable[Proxy]]
