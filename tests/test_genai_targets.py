"""Gemini's model in the path: which provider it leads to, and which bytes go there.

Not here: what the SDK sends (`test_sdk_genai`), keys in the query (`test_genai_keys`).
"""

from __future__ import annotations

import asyncio
import json

import pytest
from genai_sdk import MODELS, StartGemini, gemini, provider, settings
from genai_upstream import GenaiUpstream, whole
from rawclient import Response, get, post
from running import Proxy, StartProxy, StartUpstream
from scripted import Conn, Request

__all__ = ["gemini"]

BODY = '{"contents":[{"role":"user","parts":[{"text":"Grüß \\u00e4 dich"}]}]}'.encode()
FLASH = "gemini-2.5-flash"
ODD = "gemini-tuned+v1@2"

FORMS = {
    "plain": (f"{FLASH}:generateContent", "gemini", f"{FLASH}:generateContent"),
    "prefix": (f"gemini2/{FLASH}:generateContent", "gemini2", f"{FLASH}:generateContent"),
    "prefix with %2F": (f"gemini2%2F{FLASH}:generateContent", "gemini2", f"{FLASH}:generateContent"),
    "prefix with %2f": (f"gemini2%2f{FLASH}:generateContent", "gemini2", f"{FLASH}:generateContent"),
    "encoded prefix": (f"%67emini2/{FLASH}:generateContent", "gemini2", f"{FLASH}:generateContent"),
    "colon as %3A": (f"{FLASH}%3AgenerateContent", "gemini", f"{FLASH}%3AgenerateContent"),
    "prefix, colon as %3A": (f"gemini2/{FLASH}%3AgenerateContent", "gemini2", f"{FLASH}%3AgenerateContent"),
    "odd model": (f"gemini2/{ODD}:generateContent", "gemini2", f"{ODD}:generateContent"),
    "odd model, encoded": (
        "gemini2/gemini-tuned%2bv1%402:generateContent",
        "gemini2",
        "gemini-tuned%2bv1%402:generateContent",
    ),
    "odd model, all encoded": (
        "gemini2%2fgemini-tuned%2bv1%402%3agenerateContent",
        "gemini2",
        "gemini-tuned%2bv1%402%3agenerateContent",
    ),
    "no provider's prefix": ("nobody/model:generateContent", "gemini", "nobody/model:generateContent"),
    "query": (
        f"gemini2/{FLASH}:generateContent?fields=a%2Cb&&$alt=json&x",
        "gemini2",
        f"{FLASH}:generateContent?fields=a%2Cb&&$alt=json&x",
    ),
    "stream": (
        f"gemini2/{FLASH}:streamGenerateContent?alt=sse",
        "gemini2",
        f"{FLASH}:streamGenerateContent?alt=sse",
    ),
}
"""The end of a path as it comes, the provider that it leads to, and the end of the path there."""


async def two(
    gemini: StartGemini, proxy: StartProxy, **more: object
) -> tuple[Proxy, dict[str, GenaiUpstream]]:
    """The proxy, and its providers ``gemini``, the default one, and ``gemini2``."""
    ups = {name: await gemini(name) for name in ("gemini", "gemini2")}
    providers = {name: provider(up, name.removesuffix("2")) for name, up in ups.items()}
    return await proxy(providers=providers, **settings(**more)), ups


def served(response: Response) -> tuple[bytes | None, bytes | None]:
    return response.header("x-bifrost-provider"), response.header("x-bifrost-resolved-model")


@pytest.mark.parametrize("root", ["/genai", "/litellm/genai", "/langchain/genai", "/pydanticai/genai"])
@pytest.mark.parametrize("form", FORMS)
async def test_a_model_in_the_path(gemini: StartGemini, proxy: StartProxy, form: str, root: str) -> None:
    """The provider's name is cut off, and every other byte of the target is as it came."""
    path, name, wanted = FORMS[form]
    p, ups = await two(gemini, proxy)
    response = await p.post(f"{root}/v1beta/models/{path}", BODY)
    assert response.status == (404 if form == "no provider's prefix" else 200)
    assert (response.header("x-bifrost-provider") or b"").decode() == name
    ((other, request),) = [(up.name, request) for up in ups.values() for request in up.requests]
    assert (other, request.target.decode()) == (name, f"/v1beta/models/{wanted}")
    assert request.body == BODY


FALLBACKS = {
    "plain": (f"gemini2/{FLASH}", FLASH),
    "plus and at": (f"gemini2/{ODD}", "gemini-tuned%2Bv1@2"),
    "slash and colon": ("gemini2/org/ft:one:2", "org/ft:one:2"),
    "the operator's own": ("ours", "a%3Fzw%C3%B6lf%20%252F"),
}
"""A fallback, and the model in the path that it leads to."""


@pytest.mark.parametrize("fallback", FALLBACKS)
@pytest.mark.parametrize("place", ["body", "header"])
async def test_a_fallback_s_model_in_the_path(
    gemini: StartGemini, proxy: StartProxy, place: str, fallback: str
) -> None:
    """It stands where the first model stood, percent-encoded where it must be; method and query stay."""
    asked, wanted = FALLBACKS[fallback]
    p, ups = await two(gemini, proxy, models={"ours": ["gemini2/a?zwölf %2F"]})
    body, fields = BODY, [(b"x-bf-fallbacks", asked.encode())]
    if place == "body":
        body, fields = b'{"fallbacks":' + json.dumps([asked]).encode() + b"," + BODY[1:], []
    target = f"{MODELS}demo-overloaded:streamGenerateContent?alt=sse&x=%7e"
    response = await p.post(target, body, fields)
    requests = [request for up in ups.values() for request in up.requests]
    assert [request.target.decode() for request in requests] == [
        "/v1beta/models/demo-overloaded:streamGenerateContent?alt=sse&x=%7e",
        f"/v1beta/models/{wanted}:streamGenerateContent?alt=sse&x=%7e",
    ]
    assert [request.body for request in requests] == [BODY, BODY]
    assert response.header("x-bifrost-fallback-index") == (b"1" if response.status == 200 else b"0")


ELSEWHERE = [
    *(
        "gemini2/a?b#c",
        "gemini2/a%2Fb",
        "gemini2/a zwölf",
        "gemini2/cheap/../dear",
        "gemini2/a/../../files/x",
    ),
    *("gemini2/a:x/models/dear", "gemini2/models/dear", "gemini2/..", "gemini2/a//b"),
]


@pytest.mark.parametrize("fallback", ELSEWHERE)
@pytest.mark.parametrize("place", ["body", "header"])
async def test_a_fallback_that_may_lead_elsewhere_is_a_400(
    gemini: StartGemini, proxy: StartProxy, place: str, fallback: str
) -> None:
    """A virtual key that allows `cheap*` would else open what is behind dots, or another resource."""
    p, ups = await two(gemini, proxy)
    body, fields = BODY, [(b"x-bf-fallbacks", fallback.encode())]
    if place == "body":
        body, fields = b'{"fallbacks":' + json.dumps([fallback]).encode() + b"," + BODY[1:], []
    response = await p.post(f"{MODELS}demo-overloaded:generateContent", body, fields)
    assert response.status == 400
    assert not any(up.requests for up in ups.values())


FIRST, REST = BODY[:-1], b'"tools":[{"fallbacks":["inside/x"]}]}'
MEMBERS = {
    "first": (b'{"fallbacks": ["gemini2/x"] ,' + BODY[1:], BODY),
    "last": (FIRST + b',"fallbacks":["gemini2/x"]}', BODY),
    "between": (FIRST + b' , "fallbacks" : [ "gemini2/x" ],' + REST, FIRST + b" ," + REST),
    "one string": (FIRST + b',"fallbacks":"gemini2/x"}', BODY),
    "inside only": (FIRST + b"," + REST, FIRST + b"," + REST),
}


@pytest.mark.parametrize("member", MEMBERS)
async def test_the_member_fallbacks(gemini: StartGemini, proxy: StartProxy, member: str) -> None:
    """The top level's is the gateway's, and is cut out of the body with one comma; no other byte changes."""
    body, wanted = MEMBERS[member]
    p, ups = await two(gemini, proxy)
    response = await p.post(f"{MODELS}{FLASH}:generateContent", body)
    assert response.status == 200
    assert ups["gemini"].requests[0].body == wanted


async def test_a_body_that_names_its_model_again(gemini: StartGemini, proxy: StartProxy) -> None:
    """As curl users write it; the name goes with the path's, and one that is another's is not touched."""
    p, ups = await two(gemini, proxy)
    for inside, wanted in (
        ("models/gemini2/gemini-embedding-001", b"models/gemini-embedding-001"),
        ("models/gemini-embedding-001", b"models/gemini-embedding-001"),
    ):
        body = json.dumps({"model": inside, "content": {"parts": [{"text": "one"}]}}).encode()
        response = await p.post(f"{MODELS}gemini2/gemini-embedding-001:embedContent", body)
        assert response.status == 200, response
        assert ups["gemini2"].requests[-1].body == body.replace(inside.encode(), wanted)


def deeper(member: str, model: str) -> bytes:
    """A body that names its model in its parts; in a tool's arguments and in a text it is not its own."""
    told = "models/demo-overloaded"
    parts = [{"text": f'{{"model": "{told}"}}'}, {"functionCall": {"name": "x", "args": {"model": told}}}]
    one = {"model": f"models/{model}", "contents": [{"parts": parts}], "content": {"parts": parts}}
    return json.dumps({member: [one, one] if member == "requests" else one}, indent=1).encode()


@pytest.mark.parametrize("member", ["requests", "generateContentRequest"])
async def test_a_body_that_names_its_model_deeper(
    gemini: StartGemini, proxy: StartProxy, member: str
) -> None:
    """In each request of a batch, and in what is counted: there too it must be the path's."""
    p, ups = await two(gemini, proxy)
    method = "batchEmbedContents" if member == "requests" else "countTokens"
    fields = [(b"x-bf-fallbacks", f"gemini2/{FLASH}".encode())]
    body = deeper(member, "demo-overloaded")
    assert (await p.post(f"{MODELS}demo-overloaded:{method}", body, fields)).status == 200
    assert ups["gemini"].requests[0].body == body
    assert ups["gemini2"].requests[0].body == deeper(member, FLASH)
    body = deeper(member, f"gemini2/{FLASH}")
    assert (await p.post(f"{MODELS}gemini2/{FLASH}:{method}", body)).status == 200
    assert ups["gemini2"].requests[1].body == deeper(member, FLASH)


READ = {
    f"models/{FLASH}": ("gemini", f"models/{FLASH}"),
    f"models/gemini2/{FLASH}": ("gemini2", f"models/{FLASH}"),
    f"models/gemini2%2F{FLASH}?x=1": ("gemini2", f"models/{FLASH}?x=1"),
    "models?pageSize=5": ("gemini", "models?pageSize=5"),
    "files?pageSize=5": ("gemini", "files?pageSize=5"),
}


@pytest.mark.parametrize("path", READ)
async def test_what_is_only_read(gemini: StartGemini, proxy: StartProxy, path: str) -> None:
    """A model that is asked about is found at the provider that its name begins with."""
    name, wanted = READ[path]
    p, ups = await two(gemini, proxy)
    assert (await p.get(f"/genai/v1beta/{path}")).status == 200
    ((other, request),) = [(up.name, request) for up in ups.values() for request in up.requests]
    assert (other, request.target.decode()) == (name, f"/v1beta/{wanted}")


REFUSED = [
    "models/../files:generateContent",
    "models/gemini2/..%2Fx:generateContent",
    "models/a%3Fb:generateContent",
    "models/a%23b:generateContent",
    "models/a%00b:generateContent",
    "models/a\\b:generateContent",
]


@pytest.mark.parametrize("path", REFUSED)
async def test_a_path_with_two_readings_is_refused(gemini: StartGemini, proxy: StartProxy, path: str) -> None:
    """In Google's shape; nothing goes upstream."""
    p, ups = await two(gemini, proxy)
    response = await p.post(f"/genai/v1beta/{path}", BODY)
    error = json.loads(response.body)["error"]
    assert (response.status, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert not any(up.connections for up in ups.values())


async def test_a_stream_that_is_a_json_array(gemini: StartGemini, proxy: StartProxy) -> None:
    """Without ``alt=sse`` the bytes pass as they came, with no ping, while another stream gets its pings."""
    pinged = asyncio.Event()
    done = asyncio.Event()

    async def wait(sent: list[bytes]) -> None:
        if sent and not sent[0].startswith(b"["):
            # The other stream: it lasts until this one is over.
            await done.wait()
        elif len(sent) == 3:
            await pinged.wait()

    up = await gemini("gemini", wait)
    p = await proxy(providers={"gemini": provider(up)}, ping_interval=0.02, **settings())
    clock, client = await p.connect(), await p.connect()
    await client.send(post(f"{MODELS}{FLASH}:streamGenerateContent", BODY))
    head = await client.head()
    await client.read_until(b" said")
    await clock.send(post(f"{MODELS}{FLASH}:streamGenerateContent?alt=sse", BODY))
    await clock.head()
    await clock.read_until(b"\n\n\n\n")
    pinged.set()
    response = await client.rest()
    done.set()
    assert head.header("content-type") == b"application/json; charset=UTF-8"
    assert response.complete
    array, _ = up.streams
    assert response.body == b"".join(array) + b"]"
    texts = [part["candidates"][0]["content"]["parts"][0]["text"] for part in json.loads(response.body)]
    assert "".join(texts).startswith("You said “Grüß ä dich”.")
    assert (await clock.rest()).complete
    assert (await p.line())["usage"]["output_tokens"] == len(texts)


async def test_a_json_array_is_not_begun_early(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The proxy cannot begin a stream that is no server-sent events, however long it waits."""
    begun = asyncio.Event()

    async def step(conn: Conn, request: Request) -> None:
        if request.target.endswith(b"alt=sse"):
            await conn.gone()
            return
        await begun.wait()
        await conn.send(whole([{"candidates": []}]))

    up = await upstream(step, step)
    p = await proxy(providers={"gemini": provider(up.url)}, **settings(early_stream_after=0.05))
    client, clock = await p.connect(), await p.connect()
    await client.send(post(f"{MODELS}{FLASH}:streamGenerateContent", BODY))
    await up.received()
    await clock.send(post(f"{MODELS}{FLASH}:streamGenerateContent?alt=sse", BODY))
    # When the later request has been answered early, the time is over for the other one too.
    assert (await clock.head()).header("content-type") == b"text/event-stream; charset=utf-8"
    begun.set()
    response = await client.response()
    assert response.header("content-type") == b"application/json; charset=UTF-8"
    assert (response.complete, json.loads(response.body)) == (True, [{"candidates": []}])


@pytest.mark.parametrize("model", ["demo-broken-at-once", "demo-broken"])
async def test_an_error_as_the_first_chunk(gemini: StartGemini, proxy: StartProxy, model: str) -> None:
    """While there are other targets it leads to the next one; behind another chunk it is too late."""
    p, ups = await two(gemini, proxy)
    fields = [(b"x-bf-fallbacks", f"gemini2/{FLASH}".encode())]
    response = await p.post(f"{MODELS}{model}:streamGenerateContent?alt=sse", BODY, fields)
    at_once = model == "demo-broken-at-once"
    (chunks,) = ups["gemini2" if at_once else "gemini"].streams
    assert (response.status, response.complete, response.body) == (200, True, b"".join(chunks))
    assert (
        response.header("x-bifrost-attempts")
        == (f"gemini/{model}:stream_error,gemini2/{FLASH}:200" if at_once else f"gemini/{model}:200").encode()
    )


async def test_another_provider_for_what_names_no_model(gemini: StartGemini, proxy: StartProxy) -> None:
    """``x-model-provider`` leads files and lists to a provider that is not the default one."""
    p, ups = await two(gemini, proxy)
    fields = [(b"x-model-provider", b"gemini2")]
    response = await p.get("/genai/v1beta/files?pageSize=5", fields)
    assert (response.status, response.header("x-bifrost-provider")) == (200, b"gemini2")
    (request,) = ups["gemini2"].requests
    assert request.target == b"/v1beta/files?pageSize=5"
    assert (await p.ask(get("/genai/v1beta/files", [(b"x-model-provider", b"nobody")]), "GET")).status == 400


async def test_a_route_that_the_provider_adds_tomorrow(gemini: StartGemini, proxy: StartProxy) -> None:
    """Any method, any path below the prefix; the answer is the provider's."""
    p, ups = await two(gemini, proxy)
    response = await p.ask(post("/genai/v9/dreams//x:dream?y=%7e", b"anything"))
    assert response.status == 404
    assert b"was not found on this server" in response.body
    (request,) = ups["gemini"].requests
    assert (request.target, request.body) == (b"/v9/dreams//x:dream?y=%7e", b"anything")


async def test_a_request_without_a_host(gemini: StartGemini, proxy: StartProxy) -> None:
    """The proxy need not know its own origin for an answer that names no other: this one is paid for."""
    p, ups = await two(gemini, proxy)
    head = f"POST {MODELS}{FLASH}:generateContent HTTP/1.0\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
    response = await p.ask(head + BODY)
    assert (response.status, len(ups["gemini"].requests)) == (200, 1)
