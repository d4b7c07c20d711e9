"""Forms that name their model: what goes upstream of them, when, and what is refused.

Not here: how a form is read (`proxy.form`), the SDK's own forms (`test_sdk_openai`).
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai_sdk import provider, serving
from rawclient import Headers, Response, request_head
from running import Proxy, StartProxy, StartUpstream
from scripted import LAST_CHUNK, Conn, Request, Upstream, answer, chunk, raw

TRANSCRIPTIONS = "/v1/audio/transcriptions"
TOLD = b'{"text":"Hello"}'
GOOD = answer(body=TOLD)
BOUNDARY = b"----4f2a91d07c"
MEBIBYTE = 1024 * 1024


def field(name: bytes, value: bytes) -> bytes:
    return b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (BOUNDARY, name, value)


def file(content: bytes) -> bytes:
    head = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\n' % BOUNDARY
    return head + b"Content-Type: audio/mpeg\r\n\r\n" + content + b"\r\n"


END = b"--" + BOUNDARY + b"--\r\n"


def form_head(path: str, length: int | None, more: Headers | None = None) -> bytes:
    """The head of a form's request; without a `length` its body is chunked."""
    framing = (b"Transfer-Encoding", b"chunked") if length is None else (b"Content-Length", b"%d" % length)
    fields = [
        (b"Host", b"proxy.test"),
        (b"Authorization", b"Bearer sk-test-client"),
        (b"Content-Type", b"multipart/form-data; boundary=" + BOUNDARY),
        *(more or []),
        framing,
    ]
    return request_head("POST", path, fields)


async def send(p: Proxy, body: bytes, path: str = TRANSCRIPTIONS, more: Headers | None = None) -> Response:
    return await p.ask(form_head(path, len(body), more) + body)


async def started(proxy: StartProxy, up: Upstream, **settings: Any) -> Proxy:
    return await serving(proxy, {"openai": provider(up.url)}, **settings)


def got(request: Request, body: bytes) -> None:
    assert request.body == body
    assert request.header("content-length") == b"%d" % len(body)
    assert request.header("content-type") == b"multipart/form-data; boundary=" + BOUNDARY
    assert request.header("authorization") == b"Bearer sk-test-main"


SOUND = bytes(range(256)) * 40

ORDERS = ("model first", "file first", "between files")


def form(order: str, model: bytes, sound: bytes = SOUND) -> bytes:
    """A form with its parts in this order."""
    named, other = field(b"model", model), field(b"language", b"de")
    parts = {
        "model first": (named, file(sound), other),
        "file first": (file(sound), other, named),
        "between files": (file(sound), named, file(sound)),
    }
    return b"".join(parts[order]) + END


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("path", [TRANSCRIPTIONS, "/openai/v1/images/edits", "/openai/audio/translations"])
async def test_only_a_prefix_is_taken_out(
    upstream: StartUpstream, proxy: StartProxy, order: str, path: str
) -> None:
    """Wherever the field stands: without a prefix the form arrives as it is, with one as if it had none."""
    up = await upstream(GOOD, GOOD)
    p = await started(proxy, up)
    for model in (b"whisper-1", b"openai/whisper-1"):
        response = await send(p, form(order, model), path)
        assert (response.status, response.body) == (200, TOLD)
        assert response.header("x-bifrost-original-model") == model
        assert response.header("x-bifrost-resolved-model") == b"whisper-1"
    for request in up.requests:
        got(request, form(order, b"whisper-1"))


async def test_a_chunked_form_stays_chunked(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Nobody knows its length, so nobody says one. Chunks may end anywhere."""
    up = await upstream(GOOD)
    p = await started(proxy, up)
    whole = form("model first", b"openai/whisper-1")
    cuts = [whole[at : at + 7] for at in range(0, 400, 7)] + [whole[406:]]
    request = form_head(TRANSCRIPTIONS, None) + b"".join(map(chunk, cuts)) + LAST_CHUNK
    assert (await p.ask(request)).status == 200
    assert up.requests[0].chunked
    assert up.requests[0].body == form("model first", b"whisper-1")


async def test_a_large_file_behind_the_model_is_not_held(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Of 25 MB the first half is upstream before the second is sent; no limit for held bodies counts."""
    half = asyncio.Event()
    halves: list[bytes] = []

    async def read(conn: Conn) -> None:
        halves.append(await conn.read_until(b"<half of it>"))
        half.set()
        halves.append(await conn.read_until(END))
        await conn.send(GOOD)

    up = await upstream(raw(read))
    p = await started(proxy, up, max_body_bytes=MEBIBYTE, max_buffered_bytes=2 * MEBIBYTE)
    large = bytes(25 * MEBIBYTE // 2) + b"<half of it>" + bytes(25 * MEBIBYTE // 2)
    body = form("model first", b"openai/whisper-1", large)
    at = body.index(b"<half of it>") + len(b"<half of it>")
    client = await p.connect()
    await client.send(form_head(TRANSCRIPTIONS, len(body)) + body[:at])
    await half.wait()
    await client.send(body[at:])
    assert (await client.response()).body == TOLD
    head, _, came = b"".join(halves).partition(b"\r\n\r\n")
    assert came == form("model first", b"whisper-1", large)
    assert b"\r\nContent-Length: %d" % len(came) in head


async def test_a_large_file_before_the_model_is_held(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Nobody knows where it goes before it has come; what is too large for that is a 413."""
    up = await upstream(GOOD)
    p = await started(proxy, up)
    body = form("file first", b"openai/whisper-1", bytes(25 * MEBIBYTE))
    client = await p.connect()
    await client.send(form_head(TRANSCRIPTIONS, len(body)) + body[:-200])
    assert up.connections == 0
    await client.send(body[-200:])
    assert (await client.response()).body == TOLD
    got(up.requests[0], form("file first", b"whisper-1", bytes(25 * MEBIBYTE)))


async def test_a_form_that_does_not_name_its_model_in_time_is_413(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """The message says to send the model first. Nothing goes upstream."""
    up = await upstream()
    p = await started(proxy, up, max_body_bytes=100_000)
    response = await send(p, file(bytes(200_000)) + field(b"model", b"whisper-1") + END)
    assert response.status == 413
    assert "`model` first" in json.loads(response.body)["error"]["message"]
    assert up.connections == 0


async def test_a_form_without_a_model_goes_to_the_default_provider(
    upstream: StartUpstream, proxy: StartProxy
) -> None:
    """OpenAI has a model of its own for image edits and variations that name none."""
    up = await upstream(GOOD)
    p = await started(proxy, up)
    body = file(SOUND) + field(b"prompt", b"a tree") + END
    assert (await send(p, body, "/openai/v1/images/variations")).status == 200
    got(up.requests[0], body)


@pytest.mark.parametrize("size", [10_000, 3 * MEBIBYTE], ids=["small", "large"])
@pytest.mark.parametrize("order", ["model first", "file first"])
async def test_fallbacks_of_a_form_stand_in_the_header(
    upstream: StartUpstream, proxy: StartProxy, order: str, size: int
) -> None:
    """Who asks for them has the form held, so that it can be sent again, with the other provider's model."""
    first, second = await upstream(answer(529)), await upstream(GOOD)
    p = await serving(proxy, {"first": provider(first.url), "second": provider(second.url, "second")})
    fallbacks = [(b"X-BF-Fallbacks", b"second/other-1")]
    sound = bytes(size)
    response = await send(p, form(order, b"first/whisper-1", sound), more=fallbacks)
    assert (response.status, response.body) == (200, TOLD)
    assert response.header("x-bifrost-attempts") == b"first/whisper-1:529,second/other-1:200"
    assert first.requests[0].body == form(order, b"whisper-1", sound)
    assert second.requests[0].body == form(order, b"other-1", sound)
    assert second.requests[0].header("x-bf-fallbacks") is None


AMBIGUOUS = {
    "a second model": field(b"model", b"whisper-1") + field(b"model", b"other") + file(SOUND),
    "a second model behind a file": field(b"model", b"whisper-1") + file(SOUND) + field(b"model", b"other"),
    "a second model far behind": field(b"model", b"a") + file(bytes(3 * MEBIBYTE)) + field(b"model", b"b"),
    "an empty model": field(b"model", b"") + file(SOUND),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
async def test_an_ambiguous_model_is_refused(upstream: StartUpstream, proxy: StartProxy, case: str) -> None:
    """Readers disagree about which of two fields counts, so a limited key could use another model.

    Where the second one comes late, the request upstream is broken off before its end.
    """
    up = await upstream()
    up.allow_unused = True
    up.then(GOOD)
    p = await started(proxy, up)
    response = await send(p, AMBIGUOUS[case] + END)
    assert response.status == 400
    assert "model" in json.loads(response.body)["error"]["message"]
    await up.quiet()
    assert up.requests == []


async def test_files_and_other_forms_are_not_looked_into(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A field `model` of an upload is its own business."""
    up = await upstream(GOOD)
    p = await started(proxy, up)
    body = field(b"purpose", b"batch") + field(b"model", b"openai/x") + file(SOUND) + END
    assert (await send(p, body, "/openai/v1/files")).status == 200
    got(up.requests[0], body)


async def test_json_is_taken_where_forms_are(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Image edits come as JSON, too; they are read like every other JSON."""
    up = await upstream(GOOD)
    p = await started(proxy, up)
    body = b'{"images":[{"file_id":"f"}],"prompt":"p","model":"openai/gpt-image-1"}'
    fields = [(b"Host", b"h"), (b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(body))]
    assert (await p.ask(request_head("POST", "/v1/images/edits", fields) + body)).status == 200
    assert up.requests[0].body == body.replace(b"openai/", b"")


async def test_at_azure_the_deployment_is_the_model(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Azure reads the path and not the form, so a key for one model cannot use another deployment."""
    up = await upstream(GOOD)
    key = {
        "value": "env.ALICE",
        "provider_configs": [{"provider": "openai", "allowed_models": ["whisper-1"]}],
    }
    environ = {"ALICE": "sk-bf-sk-test-alice"}
    p = await started(proxy, up, virtual_keys={"alice": key}, environ=environ)
    more = [(b"api-key", environ["ALICE"].encode())]
    body = form("model first", b"whisper-1")
    for deployment, status in (("dear-1", 403), ("whisper-1", 200)):
        path = f"/openai/deployments/{deployment}/audio/transcriptions?api-version=1"
        response = await send(p, body, path, more)
        assert response.status == status, deployment
    assert [request.target for request in up.requests] == [path.encode()]


async def test_what_is_neither_a_form_nor_json_is_a_415(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A form of another kind could name another model than the JSON that it also is."""
    up = await upstream()
    p = await proxy(providers={"openai": provider(up)}, default_providers={})
    body = b'{"model":"cheap","x":"&model=dear&"}'
    fields = [
        (b"Host", b"proxy.test"),
        (b"Content-Type", b"application/x-www-form-urlencoded"),
        (b"Content-Length", b"%d" % len(body)),
    ]
    response = await p.ask(request_head("POST", "/openai/v1/images/edits", fields) + body)
    assert response.status == 415
    assert not up.requests
