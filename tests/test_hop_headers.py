"""Which headers pass, which stop here, and which are ours, on both hops.

Hop-by-hop headers are those of RFC 9110 section 7.6.1 and whatever ``Connection`` names; credentials go to
nobody but the provider they are meant for.
"""

from __future__ import annotations

import json

import pytest
from rawclient import CLIENT_KEY, Headers, Response, asked, connect, get, post, request_head
from running import StartProxy, StartUpstream, keyed
from scripted import (
    JSON_TYPE,
    LAST_CHUNK,
    MESSAGE,
    MESSAGE_EVENTS,
    SSE_TYPE,
    Request,
    answer,
    chunk,
    head,
    refusal,
    streamed,
)

MESSAGES = "/anthropic/v1/messages"
GOOD = answer(body=MESSAGE)

HOP_BY_HOP: Headers = [
    (b"Keep-Alive", b"timeout=5"),
    (b"Proxy-Connection", b"keep-alive"),
    (b"Proxy-Authenticate", b"Basic"),
    (b"proxy-authorization", b"Basic c2stdGVzdA=="),
    (b"TE", b"trailers"),
    (b"Trailer", b"X-Sum"),
    (b"HTTP2-Settings", b"AAMAAABkAAQAAP__"),
]
CREDENTIALS: Headers = [
    (b"Authorization", b"Bearer sk-test-bearer"),
    (b"X-Api-Key", b"sk-test-client"),
    (b"x-goog-api-key", b"sk-test-goog"),
    (b"Api-Key", b"sk-test-azure"),
]
OURS = {b"x-bifrost-provider", b"x-bifrost-resolved-model", b"x-bifrost-original-model"} | {
    b"x-bifrost-fallback-index",
    b"x-bifrost-attempts",
    b"x-accel-buffering",
    b"date",
    b"connection",
    b"transfer-encoding",
}
"""What the proxy may add to an answer."""


def message(headers: Headers) -> bytes:
    """A message request with exactly these headers besides Host and Content-Length."""
    body = asked()
    fields = [(b"Host", b"proxy.test"), *headers, (b"Content-Length", b"%d" % len(body))]
    return request_head("POST", MESSAGES, fields) + body


def passed(request: Request) -> Headers:
    """What reached upstream besides what frames and addresses the request there."""
    return [pair for pair in request.headers if pair[0].lower() not in (b"host", b"content-length")]


def relayed(response: Response) -> Headers:
    """What came down besides what the proxy may add."""
    return [pair for pair in response.headers if pair[0].lower() not in OURS]


# End-to-end headers, upstream.

EVERY_8_BIT = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])

END_TO_END: Headers = [
    (b"accept", b"application/json"),
    (b"Content-Type", b"application/json; charset=utf-8"),
    (b"anthropic-version", b"2023-06-01"),
    (b"anthropic-beta", b"one-2025-01-01,two-2025-02-02"),
    (b"X-Stainless-Timeout", b"NOT_GIVEN"),
    (b"Anthropic-Beta", b"three-2026-03-03"),
    (b"X_Under", b"score"),
    (b"X-Empty", b""),
    (b"ANTHROPIC-BETA", b"one-2025-01-01"),
    (b"Cookie", b"a=b; c=d"),
    (b"Accept-Encoding", b"gzip, br;q=0.5"),
    (b"User-Agent", b"Anthropic/Python 0.125.0"),
    (b"x-app", b"cli"),
    (b"X-Bytes", b"." + EVERY_8_BIT + b"."),
    (b"X-Long", b"l" * 8000),
    (b"x-bfx", b"is not a control of the gateway"),
    (b"anthropic-workspace-id", b"wrkspc_1"),
    (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
]


async def test_end_to_end_headers_reach_upstream_as_they_came(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Order, case, repeats, unknown names and every byte that a value may hold; and nothing is added."""
    up = await upstream(GOOD)
    p = await proxy(up)
    assert (await p.ask(message(END_TO_END))).status == 200
    assert passed(up.requests[0]) == END_TO_END


async def test_host_is_upstreams_own(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The client's Host named the proxy; upstream gets its own name, once."""
    up = await upstream(GOOD)
    p = await proxy(up)
    assert (await p.post(MESSAGES, asked())).status == 200
    assert up.requests[0].values("host") == [f"127.0.0.1:{up.port}".encode()]


@pytest.mark.parametrize("repeat", [1, 8])
async def test_every_beta_reaches_upstream(upstream: StartUpstream, proxy: StartProxy, repeat: int) -> None:
    """No `anthropic-beta` is dropped, merged or reordered, on any target of a plan."""
    betas = [(b"anthropic-beta", b"b%d-2026-01-01,c%d" % (i, i)) for i in range(repeat)]
    up, backup = await upstream(refusal(529)), await upstream(GOOD)
    p = await proxy(providers={"anthropic": up, "backup": backup}, network={"max_retries": 0})
    assert (await p.post(MESSAGES, asked(fallbacks=["backup/x"]), betas)).status == 200
    for request in up.requests + backup.requests:
        assert request.values("anthropic-beta") == [value for _, value in betas]


# End-to-end headers, downstream.

RELAYED: Headers = [
    (b"Content-Type", b"application/json"),
    (b"request-id", b"req_011CSHoEeqs5C35K2UUqR7Fy"),
    (b"retry-after", b"7"),
    (b"retry-after-ms", b"7000"),
    (b"x-should-retry", b"false"),
    (b"anthropic-ratelimit-requests-limit", b"50"),
    (b"anthropic-ratelimit-requests-reset", b"2026-11-21T20:00:00Z"),
    (b"anthropic-ratelimit-unified-status", b"allowed"),
    (b"anthropic-priority-input-tokens-limit", b"1"),
    (b"anthropic-organization-id", b"b4c1"),
    (b"Set-Cookie", b"a=1; Path=/"),
    (b"set-cookie", b"b=2"),
    (b"X-Bytes", b"." + EVERY_8_BIT + b"."),
    (b"X-Empty", b""),
    (b"Server", b"cloudflare"),
    (b"CF-RAY", b"9a-IAD"),
    (b"via", b"1.1 google"),
    (b"Cache-Control", b"no-cache"),
]


async def test_end_to_end_headers_come_down_as_they_were_sent(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """Order, case, repeats, unknown names and every byte that a value may hold."""
    up = await upstream(answer(200, RELAYED, MESSAGE))
    p = await proxy(up)
    response = await p.post(MESSAGES, asked())
    assert relayed(response) == [*RELAYED, (b"Content-Length", b"%d" % len(MESSAGE))]


async def test_nothing_is_invented(upstream: StartUpstream, proxy: StartProxy) -> None:
    """An answer without Content-Type, Server and Date gets no type and no server name from the proxy."""
    up = await upstream(answer(200, [], MESSAGE))
    p = await proxy(up)
    response = await p.post(MESSAGES, asked())
    assert relayed(response) == [(b"Content-Length", b"%d" % len(MESSAGE))]
    assert len(response.values("date")) == 1


async def test_upstreams_date_is_kept(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A second Date would be invalid, and another one would be wrong."""
    date = b"Sat, 21 Nov 2026 20:00:00 GMT"
    up = await upstream(answer(200, [(b"date", date)], MESSAGE))
    p = await proxy(up)
    assert (await p.post(MESSAGES, asked())).values("Date") == [date]


async def test_who_served_cannot_be_forged(upstream: StartUpstream, proxy: StartProxy) -> None:
    """An upstream's own x-bifrost headers are replaced, and no X-Accel command of its reaches nginx."""
    forged = [
        (b"X-Bifrost-Provider", b"forged"),
        (b"x-bifrost-attempts", b"forged:200"),
        (b"x-bifrost-fallback-index", b"9"),
        (b"X-Accel-Redirect", b"/etc/passwd"),
        (b"X-Accel-Buffering", b"yes"),
    ]
    up = await upstream(streamed(MESSAGE_EVENTS, [SSE_TYPE, *forged]))
    p = await proxy(up)
    response = await p.post(MESSAGES, asked(stream=True))
    assert response.values("x-bifrost-provider") == [b"anthropic"]
    assert response.values("x-bifrost-attempts") == [b"anthropic/claude-2:200"]
    assert response.values("x-bifrost-fallback-index") == [b"0"]
    assert response.values("x-accel-redirect") == []
    assert response.values("x-accel-buffering") == [b"no"]


async def test_event_streams_tell_nginx_not_to_buffer(upstream: StartUpstream, proxy: StartProxy) -> None:
    """X-Accel-Buffering is for event streams; a JSON answer goes without."""
    up = await upstream(streamed(MESSAGE_EVENTS), GOOD)
    p = await proxy(up)
    assert (await p.post(MESSAGES, asked(stream=True))).values("x-accel-buffering") == [b"no"]
    assert (await p.post(MESSAGES, asked())).values("x-accel-buffering") == []


async def test_names_of_models_cannot_break_a_header(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A model name is client text: line ends, commas and non-ASCII letters in it stay inside one value."""
    up = await upstream(GOOD)
    p = await proxy(up)
    model = "m\r\nX-Injected: 1, anthropic/other:200 é"
    response = await p.post(MESSAGES, asked(model))
    assert response.values("x-injected") == []
    (attempts,) = response.values("x-bifrost-attempts")
    assert b"," not in attempts
    assert attempts.isascii()
    assert json.loads(up.requests[0].body)["model"] == model


# Hop-by-hop.


async def test_hop_by_hop_headers_do_not_reach_upstream(upstream: StartUpstream, proxy: StartProxy) -> None:
    """None of the client's hop-by-hop headers, in any case, and what stands between them stays."""
    sent: Headers = [(b"Connection", b"keep-alive"), (b"x-first", b"1")]
    for name, value in HOP_BY_HOP:
        sent += [(name.swapcase(), value), (b"x-between", name)]
    up = await upstream(GOOD)
    p = await proxy(up)
    assert (await p.ask(message(sent))).status == 200
    assert passed(up.requests[0]) == [(b"x-first", b"1"), *((b"x-between", name) for name, _ in HOP_BY_HOP)]


async def test_hop_by_hop_headers_do_not_come_down(upstream: StartUpstream, proxy: StartProxy) -> None:
    """None of upstream's hop-by-hop headers; the proxy's own Connection and framing are its own."""
    up = await upstream(
        answer(200, [(b"Connection", b"keep-alive"), *HOP_BY_HOP, (b"x-last", b"1")], MESSAGE)
    )
    p = await proxy(up)
    response = await p.post(MESSAGES, asked())
    assert relayed(response) == [(b"x-last", b"1"), (b"Content-Length", b"%d" % len(MESSAGE))]
    assert response.body == MESSAGE


NOMINATIONS: dict[str, Headers] = {
    "one": [(b"Connection", b"x-secret")],
    "list": [(b"Connection", b"close, X-SECRET ,keep-alive")],
    "repeated": [(b"Connection", b"keep-alive"), (b"connection", b"\tx-Secret")],
    "odd list": [(b"Connection", b",, x-secret,")],
}


@pytest.mark.parametrize("connection", NOMINATIONS.values(), ids=NOMINATIONS)
async def test_nominated_headers_do_not_reach_upstream(
    upstream: StartUpstream, proxy: StartProxy, connection: Headers
) -> None:
    """What `Connection` names is the client's hop-by-hop header too."""
    sent = [(b"X-Secret", b"1"), *connection, (b"x-kept", b"2"), (b"x-secret", b"3")]
    up = await upstream(GOOD)
    p = await proxy(up)
    assert (await p.ask(message(sent))).status == 200
    assert passed(up.requests[0]) == [(b"x-kept", b"2")]


@pytest.mark.parametrize("connection", NOMINATIONS.values(), ids=NOMINATIONS)
async def test_nominated_headers_do_not_come_down(
    upstream: StartUpstream, proxy: StartProxy, connection: Headers
) -> None:
    """The same in the other direction."""
    up = await upstream(answer(200, [(b"X-Secret", b"1"), *connection, (b"x-kept", b"2")], MESSAGE))
    p = await proxy(up)
    response = await p.post(MESSAGES, asked())
    assert relayed(response) == [(b"x-kept", b"2"), (b"Content-Length", b"%d" % len(MESSAGE))]


@pytest.mark.parametrize("name", [b"x-api-key", b"X-Api-Key, authorization"])
async def test_a_client_cannot_remove_our_key(
    upstream: StartUpstream, proxy: StartProxy, name: bytes
) -> None:
    """Ours are set after the client's were stripped, so its `Connection: x-api-key` takes its own away."""
    up = await upstream(GOOD)
    p = await proxy(keyed(up, "main"))
    assert (await p.post(MESSAGES, asked(), [(b"Connection", name)])).status == 200
    assert up.requests[0].values("x-api-key") == [b"sk-test-main"]


@pytest.mark.parametrize("name", [b"content-length", b"host", b"content-length, host, transfer-encoding"])
async def test_a_client_cannot_remove_the_framing(
    upstream: StartUpstream, proxy: StartProxy, name: bytes
) -> None:
    """Naming Content-Length or Host in `Connection` does not unframe the request upstream."""
    up = await upstream(GOOD, GOOD)
    p = await proxy(up)
    body = asked()
    assert (await p.post(MESSAGES, body, [(b"Connection", name)])).status == 200
    assert (await p.post(MESSAGES, body)).status == 200
    for request in up.requests:
        assert request.body == body
        assert request.values("content-length") == [b"%d" % len(body)]
        assert len(request.values("host")) == 1


async def test_an_upstream_cannot_remove_the_framing(upstream: StartUpstream, proxy: StartProxy) -> None:
    """An answer that names Content-Length in `Connection` still has an end that can be seen."""
    up = await upstream(answer(200, [(b"Connection", b"content-length"), JSON_TYPE], MESSAGE))
    p = await proxy(up)
    response = await p.post(MESSAGES, asked())
    assert (response.body, response.complete) == (MESSAGE, True)
    assert response.values("content-length") or response.values("transfer-encoding")


async def test_an_upgrade_is_not_offered_upstream(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A client's Upgrade stops here: the request goes on without it, and the answer is an ordinary one."""
    up = await upstream(answer(body=b"{}"))
    p = await proxy(up)
    upgrade = [
        (b"Connection", b"Upgrade, HTTP2-Settings"),
        (b"Upgrade", b"h2c"),
        (b"HTTP2-Settings", b"AAMAAABkAAQAAP__"),
    ]
    response = await p.get("/anthropic/v1/models", upgrade)
    assert (response.status, response.body) == (200, b"{}")
    names = [name.lower() for name, _ in up.requests[0].headers]
    assert not {b"connection", b"upgrade", b"http2-settings"} & set(names)


async def test_bytes_after_an_upgrade_are_no_second_request(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """What follows a request with an Upgrade reaches upstream as a request of its own, or not at all."""
    up = await upstream(answer(body=b"{}"))
    up.allow_unused = True
    p = await proxy(up)
    upgrade = [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"), (b"Content-Length", b"47")]
    smuggled = b"GET /anthropic/v1/evil HTTP/1.1\r\nHost: evil\r\n\r\n"
    assert len(smuggled) == 47
    client = await p.connect()
    await client.send(request_head("POST", "/anthropic/v1/x", [(b"Host", b"h"), *upgrade]) + smuggled)
    await client.response()
    assert [request.target for request in up.requests] in ([], [b"/v1/x"])
    assert [request.body for request in up.requests] in ([], [smuggled])


async def test_trailers_are_dropped_on_both_hops(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A trailer is never merged into headers, and the body around it is whole."""
    up = await upstream(
        head(200, [JSON_TYPE, (b"Trailer", b"X-Sum"), (b"Transfer-Encoding", b"chunked")])
        + chunk(b'{"a":')
        + chunk(b"1}")
        + LAST_CHUNK.removesuffix(b"\r\n")
        + b"X-Sum: 1\r\nx-api-key: forged\r\n\r\n"
    )
    p = await proxy(keyed(up, "main"))
    client = await p.connect()
    await client.send(
        request_head(
            "POST",
            "/anthropic/v1/files",
            [(b"Host", b"h"), (b"Trailer", b"X-Sum"), (b"Transfer-Encoding", b"chunked")],
        )
        + chunk(b"abc")
        + b"0\r\nX-Sum: 1\r\nx-api-key: forged\r\n\r\n"
    )
    response = await client.response()
    assert (response.body, response.complete, response.trailers) == (b'{"a":1}', True, [])
    (request,) = up.requests
    assert (request.body, request.values("x-sum"), request.values("trailer")) == (b"abc", [], [])
    assert request.values("x-api-key") == [b"sk-test-main"]
    assert request.raw.endswith(b"0\r\n\r\n")


async def test_informational_answers_do_not_come_down(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Upstream's 1xx answers are for the hop to it; the final answer comes down alone."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    up = await upstream(b"HTTP/1.1 100 Continue\r\n\r\n" + hints * 3 + GOOD)
    p = await proxy(up)
    response = await p.post(MESSAGES, asked())
    assert (response.status, response.body, response.informational) == (200, MESSAGE, [])
    assert response.values("link") == []


# Expect.


async def test_expect_is_answered_here(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The proxy asks for the body itself, and upstream hears nothing of an expectation."""
    up = await upstream(GOOD)
    p = await proxy(up)
    body = asked()
    whole = post(MESSAGES, body, [(b"Expect", b"100-continue")])
    client = await p.connect()
    await client.send(whole.removesuffix(body))
    await client.wire.until(lambda: b"\r\n\r\n" in client.wire.received, "100 Continue")
    assert client.leftover.startswith(b"HTTP/1.1 100 ")
    assert up.connections == 0
    await client.send(body)
    response = await client.response()
    assert [seen.status for seen in response.informational] == [100]
    assert (response.status, response.body) == (200, MESSAGE)
    assert up.requests[0].values("expect") == []
    assert up.requests[0].body == body


async def test_a_body_that_is_there_already_needs_no_100(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A client that sends Expect and the body at once gets one final answer."""
    up = await upstream(GOOD)
    p = await proxy(up)
    response = await p.post(MESSAGES, asked(), [(b"Expect", b"100-Continue")])
    assert (response.status, response.body, response.complete) == (200, MESSAGE, True)
    assert up.requests[0].values("expect") == []


# Accept-Encoding.


@pytest.mark.parametrize("accepted", [None, b"gzip, deflate, br, zstd", b"identity"])
async def test_a_stream_is_asked_for_uncompressed(
    upstream: StartUpstream, proxy: StartProxy, accepted: bytes | None
) -> None:
    """A compressed stream has no visible event boundary, so `Accept-Encoding` becomes identity."""
    up = await upstream(streamed(MESSAGE_EVENTS))
    p = await proxy(up)
    headers = [(b"Accept-Encoding", accepted)] if accepted else []
    assert (await p.post(MESSAGES, asked(stream=True), headers)).status == 200
    assert up.requests[0].values("accept-encoding") == [b"identity"]


@pytest.mark.parametrize("accepted", [None, b"gzip, deflate, br, zstd"])
async def test_a_json_answer_may_be_compressed_as_the_client_likes(
    upstream: StartUpstream, proxy: StartProxy, accepted: bytes | None
) -> None:
    """Without a stream the client's `Accept-Encoding` goes on as it is, or stays away."""
    up = await upstream(GOOD)
    p = await proxy(up)
    headers = [(b"Accept-Encoding", accepted)] if accepted else []
    assert (await p.post(MESSAGES, asked(stream=False), headers)).status == 200
    assert up.requests[0].values("accept-encoding") == ([accepted] if accepted else [])


# Credentials.


async def test_a_provider_with_keys_gets_its_own_key_only(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Every credential of the client's stays here, on model routes and on all others."""
    up = await upstream(GOOD, answer(body=b"{}"))
    p = await proxy(keyed(up, "main"))
    assert (await p.ask(message([*CREDENTIALS, (b"x-kept", b"1")]))).status == 200
    fields = [(b"Host", b"h"), *CREDENTIALS, (b"anthropic-version", b"2023-06-01")]
    assert (await p.ask(request_head("GET", "/v1/models", fields), "GET")).status == 200
    for request in up.requests:
        found = [pair for pair in request.headers if b"sk-test" in pair[1]]
        assert found == [(b"x-api-key", b"sk-test-main")]
    assert passed(up.requests[0])[0] == (b"x-kept", b"1")


async def test_an_oauth_token_of_ours_goes_as_a_bearer(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Anthropic takes its OAuth tokens in Authorization only."""
    up = await upstream(GOOD)
    p = await proxy(keyed(up, "main"), environ={"TEST_KEY_MAIN": "sk-ant-oat01-sk-test-token"})
    assert (await p.ask(message(CREDENTIALS))).status == 200
    found = [pair for pair in up.requests[0].headers if b"sk-" in pair[1]]
    assert found == [(b"Authorization", b"Bearer sk-ant-oat01-sk-test-token")]


async def test_the_default_provider_without_keys_gets_the_clients_credentials(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """The local dev proxy: keys and OAuth bearers go through as they came."""
    up = await upstream(GOOD)
    p = await proxy(up)
    assert (await p.ask(message(CREDENTIALS))).status == 200
    assert passed(up.requests[0]) == CREDENTIALS


async def test_no_other_provider_gets_the_clients_credentials(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """A client's key for one provider is never shown to another: not as a fallback, not as the primary."""
    up, other = await upstream(refusal(529)), await upstream(GOOD, GOOD)
    p = await proxy(providers={"anthropic": up, "other": other}, network={"max_retries": 0})
    body = asked(fallbacks=["other/x"])
    fields = [*CREDENTIALS, (b"Content-Length", b"%d" % len(body))]
    request = request_head("POST", MESSAGES, [(b"Host", b"h"), *fields]) + body
    assert (await p.ask(request)).header("x-bifrost-provider") == b"other"
    body = asked("other/x")
    fields = [*CREDENTIALS, (b"Content-Length", b"%d" % len(body))]
    request = request_head("POST", MESSAGES, [(b"Host", b"h"), *fields]) + body
    assert (await p.ask(request)).header("x-bifrost-provider") == b"other"
    assert all(b"sk-test" not in request.raw for request in other.requests)


async def test_the_default_provider_gets_the_clients_credentials_as_a_fallback_too(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """What counts is who the provider is, not its place in the plan."""
    up, other = await upstream(GOOD), await upstream(refusal(529))
    p = await proxy(providers={"anthropic": up, "other": other}, network={"max_retries": 0})
    assert (await p.post(MESSAGES, asked("other/x", fallbacks=["anthropic/y"]))).status == 200
    assert up.requests[0].values("x-api-key") == [CLIENT_KEY]
    assert b"sk-test" not in other.requests[0].raw


@pytest.mark.parametrize("own_key", [False, True], ids=["without keys", "with keys"])
async def test_controls_of_the_gateway_never_go_upstream(
    upstream: StartUpstream, proxy: StartProxy, own_key: bool
) -> None:
    """Every `x-bf-` header is for the proxy."""
    up = await upstream(GOOD)
    p = await proxy(keyed(up, "main") if own_key else up)
    controls = [(b"x-bf-session-id", b"1"), (b"X-BF-Dim-Team", b"blue"), (b"x-bf-", b"")]
    assert (await p.ask(message([*controls, (b"x-kept", b"1")]))).status == 200
    assert passed(up.requests[0])[0] == (b"x-kept", b"1")
    assert b"x-bf-" not in up.requests[0].raw.lower()


VIRTUAL: Headers = [
    (b"x-bf-vk", b"sk-bf-sk-test-virtual"),
    (b"X-Api-Key", b"sk-bf-sk-test-virtual"),
    (b"Authorization", b"Bearer sk-bf-sk-test-virtual"),
    (b"authorization", b"bearer  sk-bf-sk-test-virtual"),
    (b"x-goog-api-key", b"sk-bf-sk-test-virtual"),
    (b"api-key", b"sk-bf-sk-test-virtual"),
]


@pytest.mark.parametrize("field", VIRTUAL, ids=lambda field: field[0].decode())
@pytest.mark.parametrize("own_key", [False, True], ids=["without keys", "with keys"])
async def test_virtual_keys_never_go_upstream(
    upstream: StartUpstream, proxy: StartProxy, field: tuple[bytes, bytes], own_key: bool
) -> None:
    """A credential that Verbatim issues means nothing to a provider; one that it does not know is a 401."""
    up = await upstream()
    p = await proxy(keyed(up, "main") if own_key else up)
    other = (b"x-api-key", CLIENT_KEY) if field[0].lower() != b"x-api-key" else (b"x-other", b"1")
    response = await p.ask(message([field, other]))
    error = json.loads(response.body)
    assert (response.status, error["error"]["type"]) == (401, "authentication_error")
    assert error["request_id"].encode() == response.header("request-id")
    assert up.connections == 0


async def test_a_virtual_key_can_be_required(upstream: StartUpstream, proxy: StartProxy) -> None:
    """With `require_virtual_key` a request without one is a 401."""
    up = await upstream()
    p = await proxy(up, require_virtual_key=True)
    assert (await p.post(MESSAGES, asked())).status == 401
    assert (await p.get("/anthropic/v1/models")).status == 401
    assert up.connections == 0


# Keep-alive downstream.


async def test_a_connection_serves_many_requests(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Upstream's `Connection: close` is upstream's business: the client's connection stays."""
    up = await upstream(answer(200, [(b"Connection", b"close")], MESSAGE), streamed(MESSAGE_EVENTS), GOOD)
    p = await proxy(up)
    client = await p.connect()
    for stream, body in ((False, MESSAGE), (True, b"".join(MESSAGE_EVENTS)), (False, MESSAGE)):
        await client.send(post(MESSAGES, asked(stream=stream)))
        assert (await client.response()).body == body
    await client.send(get("/health"))
    assert (await client.response("GET")).status == 200


async def test_a_client_that_says_close_gets_a_close(upstream: StartUpstream, proxy: StartProxy) -> None:
    """`Connection: close` is about the client's own hop: it is honoured here, and not sent on."""
    up = await upstream(GOOD)
    p = await proxy(up)
    async with await connect(p.port) as client:
        await client.send(post(MESSAGES, asked(), [(b"Connection", b"close")]))
        response = await client.response()
        assert (response.body, response.values("connection")) == (MESSAGE, [b"close"])
        assert await client.eof() == "fin"
    assert up.requests[0].values("connection") == []
