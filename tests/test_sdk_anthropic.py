"""The official Anthropic SDKs see through the proxy what they see without it, and its errors as their own.

Each SDK is installed with pip into a directory of its own, once, and runs in a process of its own: the majors
cannot live in one environment. The scripts are in ``sdk/``; each prints what it saw as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from running import Proxy, StartProxy

from proxy.demo_upstream import DemoUpstream

LAST_WITH_COMPLETIONS = "0.125.0"
CURRENT = "2.12.0"
OF_2023_01_01 = "0.2.10"
MAJORS = (LAST_WITH_COMPLETIONS, CURRENT)
KEY = "sk-test-client"
PINGS = {"ping_interval": 0.005, "interval": 0.03}
"""Words every 30 ms and a ping after 5 ms of silence: several pings in every gap."""

Run = Callable[[str, str, str], Awaitable[dict[str, Any]]]
Direct = Callable[[str, str], Awaitable[dict[str, Any]]]
StartDemo = Callable[..., Awaitable[Proxy]]


@pytest.fixture(scope="session")
def sdk(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """The directory that holds one version of the SDK and what it needs; installed when first asked for."""
    assert request.config.cache is not None, "pytest's cache holds the SDKs; do not switch it off"
    home = request.config.cache.mkdir("anthropic-sdks")

    def install(version: str) -> Path:
        place = home / f"{version}-{sys.implementation.cache_tag}-{platform.system()}-{platform.machine()}"
        if place.exists():
            return place
        # Whole or not at all: a run that is interrupted, or another at the same time, leaves no half behind.
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--only-binary=:all:"]
            target = Path(scratch) / "sdk"
            done = subprocess.run(
                [*command, "--disable-pip-version-check", "--target", str(target), f"anthropic=={version}"],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"pip could not install anthropic {version}:\n{done.stderr}"
            if not place.exists():
                target.rename(place)
        return place

    return install


@pytest.fixture
def run(sdk: Callable[[str], Path]) -> Run:
    """Runs a script under one version of the SDK against a base URL, and returns what it printed."""

    async def run_script(version: str, script: str, base_url: str) -> dict[str, Any]:
        home = await asyncio.to_thread(sdk, version)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC_")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", str(Path(__file__).parent / "sdk" / f"sdk_{script}.py"), base_url, KEY),
            env={**inherited, "PYTHONPATH": str(home), "NO_PROXY": "127.0.0.1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, err.decode()
        return dict(json.loads(out))

    return run_script


@pytest.fixture
async def upstream_like(proxy: StartProxy) -> AsyncIterator[Callable[..., Awaitable[DemoUpstream]]]:
    """Starts demo upstreams, all alike, so that two can be compared. They stop before the proxy does."""
    started: list[DemoUpstream] = []

    async def start(name: str = "demo", interval: float = 0.002) -> DemoUpstream:
        upstream = DemoUpstream(name, interval=interval, silence=0.3)
        started.append(upstream)
        await upstream.start()
        return upstream

    yield start
    for upstream in started:
        await upstream.stop()


@pytest.fixture(scope="session")
def seen_directly() -> dict[tuple[str, str], str]:
    """What a version's script saw without the proxy, as JSON: always the same, so it is run once."""
    return {}


@pytest.fixture
def direct(
    run: Run,
    upstream_like: Callable[..., Awaitable[DemoUpstream]],
    seen_directly: dict[tuple[str, str], str],
) -> Direct:
    """Runs a script against a demo upstream, without the proxy."""

    async def run_directly(version: str, script: str) -> dict[str, Any]:
        if (version, script) not in seen_directly:
            upstream = await upstream_like()
            seen = without_origin(await run(version, script, upstream.url), upstream.url)
            seen_directly[version, script] = json.dumps(seen)
        return dict(json.loads(seen_directly[version, script]))

    return run_directly


@pytest.fixture
async def demo_proxy(
    upstream_like: Callable[..., Awaitable[DemoUpstream]], proxy: StartProxy, closed_port: int
) -> StartDemo:
    """Starts the proxy before two demo upstreams, with keys of its own unless `keys` says otherwise."""

    async def start(*, keys: bool = True, interval: float = 0.002, **settings: Any) -> Proxy:
        providers: dict[str, dict[str, Any]] = {}
        for name in ("demo", "backup"):
            upstream = await upstream_like(name, interval)
            providers[name] = {"base_urls": {"anthropic": upstream.url}, "network_config": {"max_retries": 0}}
        providers["dead"] = {
            "base_urls": {"anthropic": f"http://127.0.0.1:{closed_port}"},
            "network_config": {"max_retries": 0},
        }
        if keys:
            for name, provider in providers.items():
                provider["keys"] = [{"name": name, "value": f"env.{name.upper()}_KEY"}]
        return await proxy(providers=providers, **settings)

    return start


def without_origin(seen: dict[str, Any], base_url: str) -> dict[str, Any]:
    """`seen` with every URL below `base_url` as a path."""
    return dict(json.loads(json.dumps(seen).replace(f'"{base_url}/', '"/')))


def base_urls(proxy: Proxy) -> list[str]:
    """The two base URLs that users of this SDK may set."""
    return [f"http://127.0.0.1:{proxy.port}/anthropic", f"http://127.0.0.1:{proxy.port}"]


@pytest.mark.parametrize(
    ("base", "keys"), [(0, True), (1, False)], ids=["anthropic_own_keys", "root_client_keys"]
)
@pytest.mark.parametrize("version", MAJORS)
async def test_messages(
    run: Run, direct: Direct, demo_proxy: StartDemo, version: str, base: int, keys: bool
) -> None:
    """Messages, sync and async, JSON, streams, raw streams, a broken stream: as without the proxy."""
    proxy = await demo_proxy(keys=keys, ping_interval=0)
    through = await run(version, "messages", base_urls(proxy)[base])
    assert through == await direct(version, "messages")
    sync = through["sync"]
    assert sync["create"]["content"][0]["text"].startswith("You said “Sag »grüß Gott« 🙂, please”")
    assert "".join(sync["stream_words"]) == sync["stream"]["content"][0]["text"]
    assert sync["create_request_id"] == "req_demo000001"
    assert sync["thinking"][0]["signature"]
    assert sync["error"] == {
        "class": "APIStatusError",
        "status": 200,
        "request_id": sync["error"]["request_id"],
        "type": "overloaded_error",
    }
    assert (sync["error_words"], sync["tokens"]) == (["You", " said", " “Sag"], 5)
    assert len(through["async"]["together"]) == 5


@pytest.mark.parametrize("version", MAJORS)
async def test_pings_are_invisible_in_messages(
    run: Run, direct: Direct, demo_proxy: StartDemo, version: str
) -> None:
    """With a ping in every gap between two events the SDK sees what it sees without one."""
    wanted = await direct(version, "messages")
    assert wanted["sync"].pop("pings") == 1
    proxy = await demo_proxy(**PINGS)
    through = await run(version, "messages", base_urls(proxy)[0])
    assert through["sync"].pop("pings") > len(through["sync"]["raw"])
    assert through == wanted


async def test_completions(run: Run, direct: Direct, demo_proxy: StartDemo) -> None:
    """Legacy completions, sync and async, JSON and streams, with a ping in every gap: the same as without."""
    wanted = await direct(LAST_WITH_COMPLETIONS, "completions")
    assert wanted.pop("pings") == 1
    assert wanted["create"] == "".join(wanted["stream"]) == wanted["async"]["create"]
    assert wanted["stream_stop_reasons"][-2:] == [None, "stop_sequence"]
    proxy = await demo_proxy(**PINGS)
    for base_url in base_urls(proxy):
        through = await run(LAST_WITH_COMPLETIONS, "completions", base_url)
        assert through.pop("pings") > len(through["stream"])
        assert through == wanted


async def test_completions_of_2023_01_01(run: Run, direct: Direct, demo_proxy: StartDemo) -> None:
    """The SDK of API version 2023-01-01 bears the pings too, and reads our errors."""
    wanted = await direct(OF_2023_01_01, "2023_01_01")
    wanted.pop("refused")
    assert wanted["version"] == f"anthropic-python/{OF_2023_01_01}"
    assert wanted["stream"][-1] == wanted["create"] == wanted["async"]["stream"][-1]
    proxy = await demo_proxy(**PINGS)
    for base_url in base_urls(proxy):
        through = await run(OF_2023_01_01, "2023_01_01", base_url)
        refused = through.pop("refused")
        assert refused["type"] == "invalid_request_error"
        assert "nobody" in refused["message"]
        assert through == wanted
    await proxy.stop()
    pings = [line["pings"] for line in proxy.lines if line["stream"]]
    assert len(pings) == 4
    assert min(pings) > len(wanted["stream"])


@pytest.mark.parametrize("version", MAJORS)
async def test_other_resources(run: Run, direct: Direct, demo_proxy: StartDemo, version: str) -> None:
    """Models, batches, files, skills, a session's stream; a batch's results come back through the proxy."""
    wanted = await direct(version, "resources")
    assert wanted["files"]["same"] is wanted["async"]["same"] is True
    assert [line[:2] for line in wanted["batches"]["results"]] == [["one", "succeeded"], ["two", "succeeded"]]
    assert len(wanted["session"]) == 3
    for base in (0, 1):
        proxy = await demo_proxy()
        base_url = base_urls(proxy)[base]
        # Equal only if every results_url lies below the base URL, here the proxy's.
        assert without_origin(await run(version, "resources", base_url), base_url) == wanted


@pytest.mark.parametrize("version", MAJORS)
async def test_results_url_without_own_keys(run: Run, demo_proxy: StartDemo, version: str) -> None:
    """With the client's own credentials `results_url` is not touched: they are the provider's."""
    proxy = await demo_proxy(keys=False)
    through = await run(version, "resources", base_urls(proxy)[0])
    assert not [url for url in through["batches"]["results_urls"] if f":{proxy.port}/" in url]
    assert through["batches"]["results"]


@pytest.mark.parametrize("version", MAJORS)
async def test_fallbacks(run: Run, demo_proxy: StartDemo, version: str) -> None:
    """Fallbacks that the SDK sends as an extra member are the gateway's; who served is in the headers."""
    proxy = await demo_proxy(ping_interval=0)
    for base_url in base_urls(proxy):
        seen = await run(version, "fallbacks", base_url)
        for answer in (seen["create"], seen["stream"]):
            assert answer["text"].endswith("Yours verbatim, backup.")
            assert answer["served"] == {
                "provider": "backup",
                "resolved-model": "claude-2",
                "original-model": "demo-overloaded",
                "fallback-index": "2",
                "attempts": "demo/demo-overloaded:529,demo/demo-overloaded:529,backup/claude-2:200",
            }
        assert seen["primary"]["text"].endswith("Yours verbatim, demo.")
        assert seen["primary"]["served"]["fallback-index"] == "0"


TOO_LARGE = {LAST_WITH_COMPLETIONS: "RequestTooLargeError", CURRENT: "ContentTooLargeError"}
ERRORS = {
    "bad_fallback": ("BadRequestError", 400, "invalid_request_error"),
    "async_bad_fallback": ("BadRequestError", 400, "invalid_request_error"),
    "mixed_fallbacks": ("BadRequestError", 400, "invalid_request_error"),
    "too_large": ("", 413, "request_too_large"),
    "too_large_stream": ("", 413, "request_too_large"),
    "unreachable": ("InternalServerError", 502, "api_error"),
    "unreachable_stream": ("InternalServerError", 502, "api_error"),
    "unknown_virtual_key": ("AuthenticationError", 401, "authentication_error"),
    "unknown_path": ("NotFoundError", 404, "not_found_error"),
    "overloaded": ("OverloadedError", 529, "overloaded_error"),
    "upstream_404": ("NotFoundError", 404, "not_found_error"),
    "upstream_400": ("BadRequestError", 400, "invalid_request_error"),
}


@pytest.mark.parametrize("base", [0, 1], ids=["anthropic", "root"])
@pytest.mark.parametrize("version", MAJORS)
async def test_errors(run: Run, demo_proxy: StartDemo, version: str, base: int) -> None:
    """The SDK raises its own class for our errors and upstream's, with the request id that the log has."""
    proxy = await demo_proxy(max_body_bytes=100_000)
    seen = await run(version, "errors", base_urls(proxy)[base])
    assert seen.pop("proxy_goes_on") == "claude-2"
    wanted = {name: (kind or TOO_LARGE[version], *rest) for name, (kind, *rest) in ERRORS.items()}
    assert {name: (e["class"], e["status"], e["type"]) for name, e in seen.items()} == wanted
    await proxy.stop()
    ours = {line["request_id"] for line in proxy.lines}
    for name, error in seen.items():
        assert error["request_id"] == error["body_request_id"], name
        assert (error["request_id"] in ours) == (name != "overloaded" and "upstream" not in name), name
    assert "nowhere" in seen["bad_fallback"]["message"]
    assert seen["overloaded"]["retry_after"] == "1"
