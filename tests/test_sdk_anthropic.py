"""The official Anthropic SDKs see through the proxy what they see without it, and its errors as their own.

Not here: how the SDKs are installed and run (`sdks`), jobs (`test_sdk_jobs`).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sdks import (
    CURRENT,
    LAST_WITH_COMPLETIONS,
    MAJORS,
    Run,
    StartDemo,
    base_urls,
    demo_proxy,
    run,
    upstream_like,
)

from proxy.demo_upstream import DemoUpstream

__all__ = ["demo_proxy", "run", "upstream_like"]

OF_2023_01_01 = "0.2.10"
PINGS = {"ping_interval": 0.005, "interval": 0.03}
"""Words every 30 ms and a ping after 5 ms of silence: several pings in every gap."""

Direct = Callable[[str, str], Awaitable[dict[str, Any]]]


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


def without_origin(seen: dict[str, Any], base_url: str) -> dict[str, Any]:
    """`seen` with every URL below `base_url` as a path."""
    return dict(json.loads(json.dumps(seen).replace(f'"{base_url}/', '"/')))


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
