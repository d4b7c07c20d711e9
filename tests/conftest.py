"""Fixtures: a scripted upstream, and the real proxy in front of it in the test's own event loop.

Rules
  1. What a test leaves behind fails it: a task, an open upstream connection, a step that nobody asked for,
     or a test key in anything that was logged, counted or printed.

Not here: expectations. Each test file states its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import running
import scripted
import trustme
from environments import installed, run_script
from hypothesis import HealthCheck, settings
from lateness import machine
from running import LogText, Provider, Proxy, StartProxy, StartUpstream
from scripted import Upstream
from secrecy import pytest_runtest_makereport

__all__ = ["installed", "machine", "pytest_runtest_makereport", "run_script"]


def pytest_configure() -> None:
    """An example of hypothesis may take as long as it likes: a slow machine is no fault of what is tested."""
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")


@pytest.fixture
async def _upstreams() -> AsyncIterator[list[Upstream]]:
    """The upstreams of one test. Stopped after the proxy, so that its connections can be looked at."""
    upstreams: list[Upstream] = []
    yield upstreams
    for upstream in upstreams:
        await upstream.stop()
    for upstream in upstreams:
        upstream.check()


@pytest.fixture
def upstream(_upstreams: list[Upstream]) -> StartUpstream:
    """Starts a scripted upstream: ``up = await upstream(*steps)``."""

    async def start(*steps: scripted.Step, **options: Any) -> Upstream:
        started = Upstream(*steps, **options)
        await started.start()
        _upstreams.append(started)
        return started

    return start


@pytest.fixture
def logged() -> Iterator[LogText]:
    """Everything that Python's logging is given during the test."""
    handler = LogText()
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
async def proxy(_upstreams: list[Upstream], logged: LogText) -> AsyncIterator[StartProxy]:
    """Starts the proxy: ``p = await proxy(up)``, or ``p = await proxy(providers={...}, ping_interval=0)``.

    The first provider is the default one; one that is given alone is called ``anthropic``. `network` is added
    to every provider's network_config, and `environ` to the variables; all else is the config's own.
    """
    before = asyncio.all_tasks()
    started: list[Proxy] = []

    async def start(
        default: Provider | None = None,
        *,
        providers: Mapping[str, Provider] | None = None,
        network: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Proxy:
        named = {} if default is None else {"anthropic": default}
        named.update(providers or {})
        first = next(iter(named))
        shaped = {
            name: running.provider_config(entry, default=name == first) for name, entry in named.items()
        }
        for entry in shaped.values():
            entry["network_config"].update(network or {})
        text = running.config_text(shaped, settings)
        one = Proxy(text, {**running.key_environment(shaped), **(environ or {})}, logged)
        await one.start()
        started.append(one)
        return one

    yield start
    for one in started:
        for client in one.clients:
            client.close()
        await one.stop()
    for up in _upstreams:
        await up.quiet()
    playing = {task for up in _upstreams for task in up.tasks}
    left = asyncio.all_tasks() - before - playing - {asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"
    for one in started:
        assert "sk-test" not in one.log_text, f"a key was logged:\n{one.log_text}"
        assert "sk-test" not in one.metrics_text


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses connections."""
    with scripted.closed_port() as port:
        yield port


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> trustme.CA:
    """The only authority that this machine trusts during the test."""
    authority = trustme.CA()
    trusted = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(trusted))
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    return authority
