"""``?key=``: a credential in the query becomes a header field, and stands nowhere else.

That no log line and no metric has it is checked after every test, by the fixture `proxy`.
"""

from __future__ import annotations

import json

import pytest
from genai_sdk import KEY, MODELS, VIRTUAL_KEY, StartGemini, gemini, provider, settings
from rawclient import Response, post, request_head
from running import Proxy, StartProxy

__all__ = ["gemini"]

BODY = b'{"contents":[{"parts":[{"text":"Hello"}]}]}'
GENERATE = f"{MODELS}gemini-2.5-flash:generateContent"


async def ask(
    p: Proxy, target: str, *fields: tuple[bytes, bytes], method: str = "POST", body: bytes = BODY
) -> Response:
    """A request whose only credential is the target's, unless `fields` has one."""
    if method == "POST":
        return await p.ask(post(target, body, fields, key=None))
    return await p.ask(request_head(method, target, [(b"Host", b"proxy.test"), *fields]), method)


QUERIES = {
    "alone": (f"?key={KEY}", ""),
    "first": (f"?key={KEY}&alt=json", "?alt=json"),
    "last": (f"?alt=json&key={KEY}", "?alt=json"),
    "between": (f"?b=%7e&key={KEY}&a=1%2C2", "?b=%7e&a=1%2C2"),
    "members that look alike": (f"?keys=1&key={KEY}&monkey=key=2&$key", "?keys=1&monkey=key=2&$key"),
    "odd members": (f"?a&&=b&key={KEY}&&c=d=e&", "?a&&=b&&c=d=e&"),
    "twice": (f"?key={KEY}&a=1&key={KEY}", "?a=1"),
    "an encoded name": (f"?a=1&%6bey={KEY}&c", "?a=1&c"),
    "all of the name encoded": (f"?%6B%65%79={KEY}", ""),
    "an encoded key": ("?a=1&key=sk%2dtest%2Dclient", "?a=1"),
}
"""A query as it comes, and as it goes on."""


@pytest.mark.parametrize("query", QUERIES)
async def test_a_key_in_the_query(gemini: StartGemini, proxy: StartProxy, query: str) -> None:
    """It goes on as x-goog-api-key; what else the query has keeps its order and its bytes."""
    came, wanted = QUERIES[query]
    up = await gemini()
    p = await proxy(providers={"gemini": provider(up, "")}, **settings())
    assert (await ask(p, GENERATE + came)).status == 200
    (request,) = up.requests
    assert request.target.decode() == f"/v1beta/models/gemini-2.5-flash:generateContent{wanted}"
    assert request.header("x-goog-api-key") == KEY.encode()
    assert request.raw.count(KEY.encode()) == 1
    assert request.body == BODY


OPEN = {
    "list": ("GET", "/v1beta/models", "?pageSize=5"),
    "get": ("GET", "/v1beta/models/gemini-2.5-flash", ""),
    "files": ("GET", "/v1beta/files", "?pageSize=5"),
    "upload": ("POST", "/upload/v1beta/files", ""),
}


@pytest.mark.parametrize("route", OPEN)
async def test_a_key_in_the_query_of_other_routes(gemini: StartGemini, proxy: StartProxy, route: str) -> None:
    """The same where no model is named."""
    method, path, query = OPEN[route]
    up = await gemini()
    p = await proxy(providers={"gemini": provider(up, "")}, **settings())
    start = [(b"X-Goog-Upload-Protocol", b"resumable"), (b"X-Goog-Upload-Command", b"start")]
    target = f"/genai{path}?key={KEY}{query.replace('?', '&')}"
    response = await ask(p, target, *start, method=method, body=b"{}")
    assert response.status == 200, response
    (request,) = up.requests
    assert request.target.decode() == path + query
    assert request.header("x-goog-api-key") == KEY.encode()
    assert KEY.encode() not in response.raw
    if route == "upload":
        # With its own credentials the client goes on at the provider's.
        assert (response.header("x-goog-upload-url") or b"").startswith(f"{up.url}/upload/".encode())


async def test_a_key_in_query_and_head(gemini: StartGemini, proxy: StartProxy) -> None:
    """Clients that send both send one key; upstream it comes once."""
    up = await gemini()
    p = await proxy(providers={"gemini": provider(up, "")}, **settings())
    assert (await ask(p, f"{GENERATE}?key={KEY}", (b"X-Goog-Api-Key", KEY.encode()))).status == 200
    (request,) = up.requests
    assert request.values("x-goog-api-key") == [KEY.encode()]
    assert b"key=" not in request.target


async def test_a_provider_with_keys_of_its_own(gemini: StartGemini, proxy: StartProxy) -> None:
    """The client's key goes nowhere."""
    up = await gemini()
    p = await proxy(providers={"gemini": provider(up)}, **settings())
    assert (await ask(p, f"{GENERATE}?alt=json&key={KEY}")).status == 200
    (request,) = up.requests
    assert request.target.endswith(b":generateContent?alt=json")
    assert request.values("x-goog-api-key") == [b"sk-test-main"]
    assert KEY.encode() not in request.raw


async def test_the_key_is_for_the_default_provider_only(gemini: StartGemini, proxy: StartProxy) -> None:
    """A fallback with keys gets its own, one without keys is passed over."""
    ups = {name: await gemini(name) for name in ("gemini", "keyless", "keyed")}
    providers = {
        "gemini": provider(ups["gemini"], ""),
        "keyless": provider(ups["keyless"], "", is_key_less=False),
        "keyed": provider(ups["keyed"], "own"),
    }
    p = await proxy(providers=providers, **settings())
    fallbacks = (b"x-bf-fallbacks", b"keyless/gemini-2.5-pro, keyed/gemini-2.5-pro")
    response = await ask(p, f"{MODELS}demo-overloaded:generateContent?key={KEY}", fallbacks)
    assert response.status == 200
    assert response.header("x-bifrost-attempts") == (
        b"keyless/gemini-2.5-pro:no_key,gemini/demo-overloaded:503,keyed/gemini-2.5-pro:200"
    )
    assert ups["gemini"].requests[0].values("x-goog-api-key") == [KEY.encode()]
    assert ups["keyed"].requests[0].values("x-goog-api-key") == [b"sk-test-own"]
    assert KEY.encode() not in ups["keyed"].requests[0].raw
    assert ups["keyless"].connections == 0


VIRTUAL = {
    "plain": VIRTUAL_KEY,
    "encoded": VIRTUAL_KEY.replace("-", "%2D"),
    "wholly encoded": "".join(f"%{ord(letter):02x}" for letter in VIRTUAL_KEY),
}


@pytest.mark.parametrize("own_keys", [True, False], ids=["provider with keys", "provider without"])
@pytest.mark.parametrize("spelling", VIRTUAL)
async def test_a_virtual_key_in_the_query(
    gemini: StartGemini, proxy: StartProxy, spelling: str, own_keys: bool
) -> None:
    """It is taken there as in a field, and stays here."""
    up = await gemini()
    more = settings("gemini", require_virtual_key=True)
    providers = {"gemini": provider(up) if own_keys else provider(up, "", is_key_less=True)}
    p = await proxy(providers=providers, **more)
    response = await ask(p, f"{GENERATE}?key={VIRTUAL[spelling]}&alt=json")
    # The upstream itself wants a key.
    assert response.status == (200 if own_keys else 403)
    (request,) = up.requests
    assert request.target.endswith(b":generateContent?alt=json")
    assert b"sk-bf" not in request.raw
    assert request.values("x-goog-api-key") == ([b"sk-test-main"] if own_keys else [])
    line = await p.line()
    assert (line["virtual_key"], line["path"]) == ("alice", GENERATE)


async def test_an_unknown_virtual_key_in_the_query(gemini: StartGemini, proxy: StartProxy) -> None:
    """A 401, in Google's shape, that does not repeat it."""
    up = await gemini()
    p = await proxy(providers={"gemini": provider(up)}, **settings("gemini"))
    response = await ask(p, f"{GENERATE}?key={VIRTUAL_KEY}x")
    assert (response.status, up.connections) == (401, 0)
    assert json.loads(response.body)["error"]["status"] == "UNAUTHENTICATED"
    assert b"sk-bf" not in response.raw


@pytest.mark.parametrize("query", [f"?a={VIRTUAL_KEY}", f"?key=x&b={VIRTUAL_KEY}", "?key=a&b=%73k-bf-x"])
async def test_a_virtual_key_elsewhere_in_the_query(
    gemini: StartGemini, proxy: StartProxy, query: str
) -> None:
    """It would go upstream, and into others' logs; so it is a 400."""
    up = await gemini()
    p = await proxy(providers={"gemini": provider(up)}, **settings("gemini"))
    response = await ask(p, GENERATE + query)
    assert (response.status, up.connections) == (400, 0)


SESSION = "/genai/upload/v1beta/files?upload_id=AP-000001&upload_protocol=resumable"
PART = ((b"X-Goog-Upload-Command", b"upload, finalize"), (b"X-Goog-Upload-Offset", b"0"))


@pytest.mark.parametrize("required", [True, False])
async def test_where_the_parts_of_an_upload_go(
    gemini: StartGemini, proxy: StartProxy, required: bool
) -> None:
    """Through the proxy, which has the key; but where a virtual key is required to the provider itself.

    SDKs send no key with a part, so it would be refused: its session lets it in at the provider.
    """
    up = await gemini()
    p = await proxy(providers={"gemini": provider(up)}, **settings("gemini", require_virtual_key=required))
    start = [(b"X-Goog-Upload-Command", b"start")]
    begun = await p.ask(post("/genai/upload/v1beta/files", b"{}", start, key=VIRTUAL_KEY.encode()))
    url = begun.header("x-goog-upload-url") or b""
    assert begun.header("x-goog-upload-control-url") == url
    assert url.startswith(b"http://proxy.test/genai/upload/") is not required
    assert url.startswith(up.url.encode()) is required
    if not required:
        assert url == f"http://proxy.test{SESSION}".encode()
        part = await ask(p, SESSION, *PART, body=b"all of it")
        assert (part.status, part.header("x-goog-upload-status")) == (200, b"final")
        assert list(up.contents.values()) == [b"all of it"]


NO_PART = {
    "a part of an upload": (SESSION, ()),
    "no session": ("/genai/upload/v1beta/files", ()),
    "a session that is none": ("/genai/upload/v1beta/files?x=upload_id=AP-1&upload_idx=2", ()),
    "a generation": (f"{GENERATE}?upload_id=AP-000001", ()),
    "a list": ("/genai/v1beta/files?upload_id=AP-000001", ()),
    "a provider's key": (SESSION, ((b"x-goog-api-key", KEY.encode()),)),
    "a provider's key in the query": (f"{SESSION}&key={KEY}", ()),
    "an unknown virtual key": (SESSION, ((b"x-bf-vk", b"sk-bf-sk-test-nobody"),)),
}


@pytest.mark.parametrize("what", NO_PART)
async def test_no_part_of_an_upload_passes_without_a_virtual_key(
    gemini: StartGemini, proxy: StartProxy, what: str
) -> None:
    """Where one is required; it goes nowhere."""
    target, fields = NO_PART[what]
    up = await gemini()
    p = await proxy(providers={"gemini": provider(up)}, **settings("gemini", require_virtual_key=True))
    assert (await ask(p, target, *PART, *fields)).status == 401
    assert up.connections == 0


@pytest.mark.parametrize("path", ["/anthropic/v1/models", "/cohere/v1/models", "/openai/v1/models"])
async def test_only_gemini_has_keys_in_queries(gemini: StartGemini, proxy: StartProxy, path: str) -> None:
    """A virtual key in any other format's target stays a 400."""
    up = await gemini()
    p = await proxy(providers={"gemini": provider(up)}, **settings("gemini"))
    response = await ask(p, f"{path}?key={VIRTUAL_KEY}", method="GET")
    assert (response.status, up.connections) == (400, 0)
