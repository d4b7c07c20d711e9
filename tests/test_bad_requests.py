"""What a client may not send is refused with an error in Anthropic's shape, and nothing of it goes upstream.

After each the proxy serves the next good request: on a new connection always, and on the same one where that
stays open.
"""

from __future__ import annotations

import gzip
import re
import zlib

import pytest
from rawclient import Client, Response, asked, post, request_head
from refusals import error_message
from running import Proxy, StartProxy, StartUpstream
from scripted import LAST_CHUNK, MESSAGE, Upstream, answer, chunk

MESSAGES = "/anthropic/v1/messages"
GOOD = answer(body=MESSAGE)


async def refused(p: Proxy, up: Upstream, request: bytes, status: int, method: str = "POST") -> str:
    """Sends `request`; it must be refused with `status`, be logged, and leave the proxy as it was."""
    client = await p.connect()
    await client.send(request)
    response = await client.response(method)
    message = error_message(response, status)
    line = await p.line()
    assert line["status"] == status
    assert line["ending"][0] in "Dd"
    assert line["error"] == message
    assert up.connections == 0
    await works_still(p, up, client, response)
    return message


async def works_still(p: Proxy, up: Upstream, client: Client, response: Response) -> None:
    """A good request is answered on a new connection, and on the old one or that one is closed."""
    if response.header("connection") == b"close" or response.version == b"HTTP/1.0":
        # The proxy may read on for a while, so that the answer is not lost; it must not answer again.
        client.finish_sending()
        assert await client.eof() in ("fin", "reset")
        assert client.leftover == b""
    else:
        up.then(GOOD)
        await client.send(post(MESSAGES, asked()))
        assert (await client.response()).body == MESSAGE
    up.then(GOOD)
    assert (await p.post(MESSAGES, asked())).body == MESSAGE


# Bodies of model routes.

NOT_JSON: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b" \n",
    "text": b"hello",
    "cut": b'{"model":"claude-2"',
    "cut in a string": b'{"model":"clau',
    "cut in an escape": b'{"model":"claude-2","x":"\\u00',
    "text behind it": b'{"model":"claude-2"}x',
    "a second value": b'{"model":"claude-2"}{}',
    "a comma too many": b'{"model":"claude-2",}',
    "a comma too many in a list": b'{"model":"claude-2","x":[1,]}',
    "no comma": b'{"model":"claude-2" "x":1}',
    "no colon": b'{"model" "claude-2"}',
    "single quotes": b"{'model':'claude-2'}",
    "a bare name": b'{model:"claude-2"}',
    "a comment": b'{"model":"claude-2"/**/}',
    "NaN": b'{"model":"claude-2","x":NaN}',
    "Infinity": b'{"model":"claude-2","x":-Infinity}',
    "a leading zero": b'{"model":"claude-2","x":01}',
    "a plus": b'{"model":"claude-2","x":+1}',
    "a bare point": b'{"model":"claude-2","x":1.}',
    "True": b'{"model":"claude-2","x":True}',
    "a control character": b'{"model":"claude-2","x":"a\nb"}',
    "a bad escape": b'{"model":"claude-2","x":"\\x41"}',
    "a bad bracket": b'{"model":"claude-2","x":[1}}',
    "a form feed": b'{"model":"claude-2",\f"x":1}',
    "brackets without end": b"[" * 200_000,
    "a form": b"model=claude-2&x=1",
}


@pytest.mark.parametrize("case", NOT_JSON)
async def test_what_is_not_json_is_400(upstream: StartUpstream, proxy: StartProxy, case: str) -> None:
    """The message says what is wrong and at which byte."""
    up = await upstream()
    message = await refused(await proxy(up), up, post(MESSAGES, NOT_JSON[case]), 400)
    found = re.search(r"byte (\d+)", message)
    assert found, message
    assert int(found[1]) <= len(NOT_JSON[case])


NOT_UTF_8 = {
    "latin-1": (b'{"model":"claude-2","x":"\xe9"}', 25),
    "cut": (b'{"model":"claude-2","x":"\xc3"}', 25),
    "overlong": (b'{"model":"claude-2","x":"\xc0\xaf"}', 25),
    "a surrogate": (b'{"model":"claude-2","x":"\xed\xa0\x80"}', 25),
    "beyond Unicode": (b'{"model":"claude-2","x":"\xf4\x90\x80\x80"}', 25),
    "UTF-16": ('{"model":"claude-2"}'.encode("utf-16"), 0),
    "far behind": (b'{"model":"claude-2","x":"' + b"e" * 300_000 + b'\xff"}', 300_025),
}


@pytest.mark.parametrize("case", NOT_UTF_8)
async def test_what_is_not_utf_8_is_400(upstream: StartUpstream, proxy: StartProxy, case: str) -> None:
    """Parsers guess differently at bytes that are not UTF-8, so nobody gets to guess."""
    body, at = NOT_UTF_8[case]
    up = await upstream()
    message = await refused(await proxy(up), up, post(MESSAGES, body), 400)
    assert f"byte {at}" in message


async def test_a_byte_order_mark_is_400(upstream: StartUpstream, proxy: StartProxy) -> None:
    """RFC 8259 section 8.1 lets parsers ignore or refuse one; upstream's might do either."""
    up = await upstream()
    message = await refused(await proxy(up), up, post(MESSAGES, b"\xef\xbb\xbf" + asked()), 400)
    assert "byte 0" in message


@pytest.mark.parametrize("body", [b"[]", b'"model"', b"1", b"null", b"true", b'[{"model":"claude-2"}]'])
async def test_what_is_not_an_object_is_400(upstream: StartUpstream, proxy: StartProxy, body: bytes) -> None:
    """A request is a JSON object."""
    up = await upstream()
    message = await refused(await proxy(up), up, post(MESSAGES, body), 400)
    assert "object" in message


@pytest.mark.parametrize("path", [MESSAGES, "/v1/messages", "/v1/complete", "/v1/messages/count_tokens?x=1"])
@pytest.mark.parametrize(
    "body", [b"{}", b'{"Model":"claude-2"}', b'{"x":{"model":"claude-2"}}', b'{"x":["model"],"y":"model"}']
)
async def test_a_missing_model_is_400(
    upstream: StartUpstream, proxy: StartProxy, path: str, body: bytes
) -> None:
    """`model` must stand at the top level, on every model route."""
    up = await upstream()
    message = await refused(await proxy(up), up, post(path, body), 400)
    assert "model" in message


@pytest.mark.parametrize("value", [b"null", b"1", b"true", b"[]", b"{}", b'["claude-2"]', b'""'])
async def test_a_model_that_is_no_name_is_400(
    upstream: StartUpstream, proxy: StartProxy, value: bytes
) -> None:
    """`model` must be a string, and not an empty one."""
    up = await upstream()
    message = await refused(await proxy(up), up, post(MESSAGES, b'{"model":' + value + b"}"), 400)
    assert "model" in message


TWICE: dict[str, bytes] = {
    "model": b'{"model":"claude-2","model":"claude-2"}',
    "model, far apart": b'{"model":"claude-2","x":"' + b"e" * 300_000 + b'","model":"other"}',
    "model, escaped": b'{"model":"claude-2","mode\\u006c":"other"}',
    "model, escaped first": b'{"\\u006dodel":"claude-2","model":"other"}',
    "model, escaped twice": b'{"\\u006Dodel":"claude-2","m\\u006fdel":"other"}',
    "fallbacks": b'{"model":"claude-2","fallbacks":[],"fallbacks":[]}',
    "fallbacks, escaped": b'{"model":"claude-2","fallbacks":[],"fallback\\u0073":"default"}',
    "stream": b'{"model":"claude-2","stream":true,"stream":false}',
    "stream, escaped": b'{"model":"claude-2","stream":true,"\\u0073tream":true}',
}


@pytest.mark.parametrize("case", TWICE)
async def test_a_repeated_member_is_400(upstream: StartUpstream, proxy: StartProxy, case: str) -> None:
    """Parsers disagree about which one counts, so the proxy and the provider could bill different models."""
    up = await upstream()
    message = await refused(await proxy(up), up, post(MESSAGES, TWICE[case]), 400)
    assert case.partition(",")[0] in message
    assert re.search(r"byte \d+", message)


MIXED = [b'["anthropic/a",{"model":"b"}]', b'[{"model":"b"},"anthropic/a"]', b'["a",1]', b'["a",null]']


@pytest.mark.parametrize("value", MIXED)
async def test_a_mixed_list_of_fallbacks_is_400(
    upstream: StartUpstream, proxy: StartProxy, value: bytes
) -> None:
    """A list of strings is the gateway's, a list of objects is the provider's; a mixed one is nobody's."""
    up = await upstream()
    body = b'{"model":"claude-2","fallbacks":' + value + b"}"
    message = await refused(await proxy(up), up, post(MESSAGES, body), 400)
    assert "fallbacks" in message


async def test_deep_nesting_is_no_error(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A hundred thousand brackets are valid JSON: they pass, whatever upstream thinks of them."""
    up = await upstream(GOOD)
    body = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"model":"claude-2"}'
    assert (await (await proxy(up)).post(MESSAGES, body)).status == 200
    assert up.requests[0].body == body


# Sizes.


async def test_a_declared_length_beyond_the_limit_is_413(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The declared length is enough: not a byte of the body is waited for, nor asked for."""
    up = await upstream()
    p = await proxy(up, max_body_bytes=1000)
    fields = [(b"Host", b"h"), (b"Content-Length", b"1001"), (b"Expect", b"100-continue")]
    message = await refused(p, up, request_head("POST", MESSAGES, fields), 413)
    assert "1000" in message


async def test_a_body_at_the_limit_is_taken(upstream: StartUpstream, proxy: StartProxy) -> None:
    """`max_body_bytes` itself is allowed, declared or not."""
    body = asked()
    up = await upstream(GOOD, GOOD)
    p = await proxy(up, max_body_bytes=len(body))
    assert (await p.post(MESSAGES, body)).status == 200
    fields = [(b"Host", b"h"), (b"Transfer-Encoding", b"chunked")]
    request = request_head("POST", MESSAGES, fields) + chunk(body[:9]) + chunk(body[9:]) + LAST_CHUNK
    assert (await p.ask(request)).status == 200
    assert [request.body for request in up.requests] == [body, body]


async def test_a_header_line_beyond_the_limit_is_431(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A line of 8190 bytes at most; a longer one is refused and not repeated."""
    up = await upstream()
    p = await proxy(up)
    request = request_head("GET", "/anthropic/v1/models", [(b"Host", b"h"), (b"X-Long", b"sk-test" * 3000)])
    message = await refused(p, up, request, 431, "GET")
    assert "sk-test" not in message


async def test_too_many_headers_are_431(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The message says how many there may be."""
    up = await upstream()
    fields = [(b"Host", b"h"), *((b"X-%d" % i, b"1") for i in range(129))]
    request = request_head("GET", "/anthropic/v1/models", fields)
    message = await refused(await proxy(up), up, request, 431, "GET")
    assert "128" in message


async def test_a_body_that_does_not_come_is_408(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A client has `body_timeout` for each next byte of its body."""
    up = await upstream()
    p = await proxy(up, body_timeout=0.1)
    client = await p.connect()
    await client.send(post(MESSAGES, asked())[:-5])
    response = await client.response()
    error_message(response, 408)
    assert response.header("connection") == b"close"
    line = await p.line()
    assert (line["status"], line["ending"]) == (408, "dR")
    assert up.connections == 0


async def test_an_upload_that_stops_is_408(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The same where the body streams through; upstream sees that it was broken off."""
    up = await upstream()
    up.allow_unused = True
    p = await proxy(up, body_timeout=0.1)
    fields = [(b"Host", b"h"), (b"Content-Length", b"100")]
    response = await p.ask(request_head("POST", "/anthropic/v1/files", fields) + b"half")
    error_message(response, 408)
    await up.quiet()
    assert up.requests == []


# Content codings.


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, gzip", b"x-unknown"])
async def test_a_coding_that_cannot_be_looked_into_is_415(
    upstream: StartUpstream, proxy: StartProxy, coding: bytes
) -> None:
    """A body that cannot be read cannot be planned for."""
    up = await upstream()
    await refused(await proxy(up), up, post(MESSAGES, asked(), [(b"Content-Encoding", coding)]), 415)


@pytest.mark.parametrize(
    "body", [asked("anthropic/claude-2"), asked(fallbacks=["anthropic/x"]), asked("claude-2", fallbacks=[])]
)
async def test_a_compressed_body_that_needs_rewriting_is_415(
    upstream: StartUpstream, proxy: StartProxy, body: bytes
) -> None:
    """Compressed bytes are not edited: the model cannot be replaced, the fallbacks cannot be cut out."""
    up = await upstream()
    request = post(MESSAGES, gzip.compress(body), [(b"Content-Encoding", b"gzip")])
    await refused(await proxy(up), up, request, 415)


DAMAGED = {
    "plain": asked(),
    "cut": gzip.compress(asked())[:-4],
    "no gzip": zlib.compress(asked()),
    "bytes behind it": gzip.compress(asked()) + b"x",
    "bad inside": gzip.compress(b"{}"),
}


@pytest.mark.parametrize("case", DAMAGED)
async def test_a_damaged_compressed_body_is_400(
    upstream: StartUpstream, proxy: StartProxy, case: str
) -> None:
    """The rules for bodies hold for compressed ones."""
    up = await upstream()
    request = post(MESSAGES, DAMAGED[case], [(b"Content-Encoding", b"gzip")])
    await refused(await proxy(up), up, request, 400)


async def test_a_compression_bomb_is_413(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Kilobytes that decode to more than the limit are refused at the limit."""
    up = await upstream()
    p = await proxy(up, max_body_bytes=100_000)
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    await refused(p, up, post(MESSAGES, bomb, [(b"Content-Encoding", b"gzip")]), 413)


# Targets and methods.


async def test_unknown_bare_paths_need_the_version_header(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A bare `/v1/` path is Anthropic's where the request says so, and nobody's otherwise."""
    up = await upstream(answer(body=b"{}"))
    p = await proxy(up)
    request = request_head("GET", "/v1/models", [(b"Host", b"h"), (b"Anthropic-Version", b"2023-06-01")])
    assert (await p.ask(request, "GET")).status == 200


@pytest.mark.parametrize("path", ["/health", "/metrics"])
@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_own_routes_take_get_only(
    upstream: StartUpstream, proxy: StartProxy, path: str, method: str
) -> None:
    """405 with the methods that are allowed."""
    up = await upstream()
    p = await proxy(up)
    request = request_head(method, path, [(b"Host", b"h"), (b"Content-Length", b"0")])
    response = await p.ask(request, method)
    error_message(response, 405)
    assert response.header("allow") == b"GET, HEAD"


@pytest.mark.parametrize("target", ["/", "/anthropic/api/hello", "/api/hello", "/anthropic/api/hello?x=1"])
async def test_probes_are_answered(upstream: StartUpstream, proxy: StartProxy, target: str) -> None:
    """Coding agents ask HEAD before they begin, without a key."""
    up = await upstream()
    p = await proxy(up)
    request = request_head("HEAD", target, [(b"Host", b"h")])
    response = await p.ask(request, "HEAD")
    assert (response.status, response.body) == (200, b"")
    assert up.connections == 0


# Secrets.


async def test_a_bad_line_is_not_repeated(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Neither the answer nor a log holds a byte of what could not be parsed; it may be a key."""
    up = await upstream()
    p = await proxy(up)
    client = await p.connect()
    await client.send(b"GET /anthropic/v1/models HTTP/1.1\r\nx-api-key sk-test-secret\r\n\r\n")
    response = await client.response("GET")
    error_message(response, 400)
    assert b"sk-test" not in response.raw
    await p.line()
    assert "secret" not in p.log_text
    assert "Traceback" not in p.log_text


async def test_no_secret_in_an_error_of_ours(
    upstream: StartUpstream, proxy: StartProxy, closed_port: int
) -> None:
    """A message never holds a key, a query or an upstream's address."""
    p = await proxy({"base_urls": {"anthropic": f"http://127.0.0.1:{closed_port}"}})
    response = await p.post(MESSAGES + "?key=sk-test-query", asked())
    assert response.status == 502
    assert b"sk-test" not in response.raw
    assert str(closed_port).encode() not in response.raw
    assert "sk-test" not in p.log_text
