"""Routing: which paths are served, which kind each is, what goes upstream."""

from __future__ import annotations

import pytest

from proxy.errors import ProxyError
from proxy.routes import Kind, match


@pytest.mark.parametrize(
    ("method", "target", "kind", "path"),
    [
        ("POST", b"/anthropic/v1/messages", Kind.MODEL, b"/v1/messages"),
        ("POST", b"/anthropic/v1/messages?beta=true", Kind.MODEL, b"/v1/messages?beta=true"),
        ("POST", b"/anthropic/v1/messages?a=/../x", Kind.MODEL, b"/v1/messages?a=/../x"),
        ("POST", b"/anthropic/v1/messages/count_tokens", Kind.MODEL, b"/v1/messages/count_tokens"),
        ("POST", b"/anthropic/v1/complete", Kind.MODEL, b"/v1/complete"),
        ("POST", b"/v1/messages", Kind.MODEL, b"/v1/messages"),
        ("POST", b"/v1/complete", Kind.MODEL, b"/v1/complete"),
        ("POST", b"/anthropic/v1/%6dessages", Kind.MODEL, b"/v1/%6dessages"),
        ("POST", b"/anthropic//v1//messages/", Kind.MODEL, b"//v1//messages/"),
        *(
            ("POST", b"/anthropic" + path, Kind.MODEL, path)
            for path in (
                b"/v1/messages;x=1",
                b"/v1;a/messages",
                b"/v1/messages%3Bx",
                b"/v1/messages%20",
                b"/v1/messages%00",
                b"/v1/messages%3Fx",
                b"/v1/messages%23",
                b"/v1/Messages",
                b"/v1/%256dessages",
                b"/v1\\messages",
                b"/v1/%5cmessages",
            )
        ),
        ("GET", b"/anthropic/v1/messages", Kind.OPEN, b"/v1/messages"),
        (
            "GET",
            b"/anthropic/v1/models/a%2Fb//c?limit=1&limit=2",
            Kind.OPEN,
            b"/v1/models/a%2Fb//c?limit=1&limit=2",
        ),
        ("PATCH", b"/anthropic/v9/tomorrow", Kind.OPEN, b"/v9/tomorrow"),
        ("POST", b"/anthropic/v1/messages/batches", Kind.BATCH, b"/v1/messages/batches"),
        ("GET", b"/v1/messages/batches/b_1?x=y", Kind.BATCH, b"/v1/messages/batches/b_1?x=y"),
        (
            "POST",
            b"/anthropic/v1/messages/batches/b_1/cancel",
            Kind.BATCH,
            b"/v1/messages/batches/b_1/cancel",
        ),
        (
            "GET",
            b"/anthropic/v1/messages/batches/b_1/results",
            Kind.OPEN,
            b"/v1/messages/batches/b_1/results",
        ),
        ("GET", b"/health", Kind.HEALTH, b"/health"),
        ("HEAD", b"/metrics", Kind.METRICS, b"/metrics"),
        ("HEAD", b"/", Kind.PROBE, b"/"),
        ("HEAD", b"/anthropic/api/hello", Kind.PROBE, b"/anthropic/api/hello"),
    ],
)
def test_a_served_path(method: str, target: bytes, kind: Kind, path: bytes) -> None:
    """The path decides, never the query; what goes upstream is the raw remainder."""
    route = match(method, target, anthropic_version=False)
    assert (route.kind, route.path, route.wire_format) == (kind, path, "anthropic")


def test_a_bare_path_with_the_version_header_is_anthropics() -> None:
    """Any bare /v1/ path is Anthropic's when the request says so, and the unified API's otherwise."""
    assert match("GET", b"/v1/files", anthropic_version=True).path == b"/v1/files"
    route = match("GET", b"/v1/files", anthropic_version=False)
    assert (route.wire_format, route.prefix, route.path) == ("openai", b"/v1", b"/files")


@pytest.mark.parametrize(
    "target", [b"/", b"/nope", b"/anthropic", b"/anthropicx/v1/messages", b"/v2/chat", b"/api/x"]
)
def test_an_unknown_path_is_a_404(target: bytes) -> None:
    """Only what is served is relayed."""
    with pytest.raises(ProxyError) as caught:
        match("POST", target, anthropic_version=False)
    assert caught.value.status == 404


@pytest.mark.parametrize(
    "target",
    [
        b"http://evil/anthropic/v1/messages",
        b"*",
        b"evil:443",
        b"//evil/../anthropic/v1/messages",
        b"/anthropic/../health",
        b"/anthropic/v1/../../health",
        b"/anthropic/%2e%2e/health",
        b"/anthropic/v1/.%2E/x",
        b"/anthropic/v1/..%2fx",
        b"/anthropic/v1/..;a=b/x",
        b"/anthropic/v1/..\\x",
        b"/anthropic/v1/%2e",
        b"/anthropic/v1/messages#f",
        b"/anthropic/v1/x/%252e%252e/messages",
        b"/anthropic/v1/x/..%20/messages",
        b"/anthropic/v1/x/..%00/messages",
        b"/%61nthropic/v1/messages",
        b"//anthropic/v1/messages",
    ],
)
def test_a_target_that_another_reader_could_take_for_another_path_is_a_400(target: bytes) -> None:
    """Dot segments in any spelling, fragments and forms other than origin-form are refused."""
    with pytest.raises(ProxyError) as caught:
        match("POST", target, anthropic_version=True)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "path", [b"/anthropic/v1/files/a..b", b"/anthropic/v1/x/...", b"/anthropic/v1/.well-known"]
)
def test_dots_that_are_no_dot_segments_pass(path: bytes) -> None:
    """Only whole segments are dot segments."""
    assert match("GET", path, anthropic_version=False).path == path[len(b"/anthropic") :]


@pytest.mark.parametrize(
    ("method", "target"), [("CONNECT", b"evil:443"), ("TRACE", b"/anthropic/v1/x"), ("POST", b"/health")]
)
def test_a_method_that_is_never_served_is_a_405(method: str, target: bytes) -> None:
    """No tunnels, no echo of our own key, and nothing to post to our own routes."""
    with pytest.raises(ProxyError) as caught:
        match(method, target, anthropic_version=False)
    assert caught.value.status == 405


@pytest.mark.parametrize(
    "target",
    [b"/METRICS", b"//metrics", b"/metrics;x", b"/metrics/", b"/%6detrics", b"/%25256detrics", b"/Health"],
)
def test_own_routes_have_one_spelling(target: bytes) -> None:
    """Who denies `/metrics` to the public in front of the proxy has denied all of it."""
    with pytest.raises(ProxyError) as caught:
        match("GET", target, anthropic_version=False)
    assert caught.value.status == 404
