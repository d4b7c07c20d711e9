"""Bedrock, as bytes: what goes upstream is signed, what comes down is what the provider sent.

The upstream checks every signature by itself (`bedrock_signatures`). What boto3 makes of it all is in
`test_sdk_bedrock`, how credentials are found in `test_aws_credentials`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from bedrock_sdk import MODEL, environ, provider
from bedrock_signatures import Credentials, Signed
from bedrock_upstream import (
    OURS,
    THEIRS,
    BedrockUpstream,
    StartBedrock,
    bedrock,
    converse_frames,
    event,
    exception,
)
from rawclient import post, request_head
from running import Proxy, StartProxy, StartUpstream, keyed
from scripted import LAST_CHUNK, Conn, Request, answer, chunk, refusal, stream_head

__all__ = ["bedrock"]

BODY = b'{"messages": [{"role": "user", "content": [{"text": "Hi"}]}]}'
WRONG = Credentials(OURS.access_key, "sk-test-secret/wrong")
DEFAULT = {"bedrock": "bedrock"}
FRAMES = (b"Content-Type", b"application/vnd.amazon.eventstream")
SIGNATURE = [
    (
        b"Authorization",
        b"AWS4-HMAC-SHA256 Credential=AKIDTHEIRS/20261122/us-east-1/bedrock/aws4_request, "
        b"SignedHeaders=host;x-amz-date, Signature=" + b"0" * 64,
    ),
    (b"X-Amz-Date", b"20261122T120000Z"),
    (b"x-amz-security-token", str(THEIRS.token).encode()),
    (b"X-Amz-Content-SHA256", b"0" * 64),
]

Before = Callable[..., Awaitable[tuple[Proxy, BedrockUpstream]]]


def sent(path: str, body: bytes = BODY, *fields: tuple[bytes, bytes]) -> bytes:
    """A request as boto3 signs and sends it."""
    return post(path, body, [*SIGNATURE, *fields], key=None)


@pytest.fixture
def before(bedrock: StartBedrock, proxy: StartProxy) -> Before:
    """Starts the proxy before one Bedrock runtime."""

    async def start(**settings: Any) -> tuple[Proxy, BedrockUpstream]:
        up = await bedrock(credentials=[OURS])
        settings = {"default_providers": DEFAULT, "environ": environ(), **settings}
        return await proxy(providers={"bedrock": provider(up)}, **settings), up

    return start


@pytest.mark.parametrize(
    "path",
    [
        "/model/a.b%3A0/converse",
        "/model/a.b%3a0/converse",
        "/model/a.b:0/converse",
        "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Aprofile%2Fa.b/converse",
        "/model/a.b%3A0/converse?b=2&a=1&a=%2F&c",
        "/async-invoke/arn%3Aaws%2Fx//y?sortBy=SubmissionTime",
    ],
)
async def test_a_path_goes_on_as_it_came_and_is_signed_so(before: Before, path: str) -> None:
    """Percent-encoding in either case, bare colons, double slashes, and the query's order."""
    p, up = await before()
    response = await p.ask(sent(f"/bedrock{path}"))
    assert up.requests[0].target == path.encode()
    (said,) = up.signed
    assert isinstance(said, Signed), said
    assert said.access_key == OURS.access_key
    assert response.status == (404 if "async" in path else 200)


async def test_nothing_of_the_clients_signature_goes_out(before: Before) -> None:
    """Its credential, date, token and hash stay; ours are there once; all else is as it was."""
    p, up = await before()
    other = [(b"amz-sdk-request", b"attempt=1"), (b"X-Amzn-Bedrock-Trace", b"ENABLED"), (b"X-Amz-Meta", b"1")]
    assert (await p.ask(sent(f"/bedrock/model/{MODEL}/converse", BODY, *other))).status == 200
    (request,) = up.requests
    assert b"AKIDTHEIRS" not in request.raw
    assert b"theirs" not in request.raw
    assert b"20261122T120000Z" not in request.raw
    for name in ("authorization", "x-amz-date", "x-amz-content-sha256"):
        assert len(request.values(name)) == 1
    assert request.values("x-amz-security-token") == []
    assert [request.header(name.decode()) for name, _ in other] == [value for _, value in other]
    (said,) = up.signed
    assert isinstance(said, Signed)
    assert said.fields == ("content-type", "host", "x-amz-content-sha256", "x-amz-date", "x-amz-meta")


@pytest.mark.parametrize("method", ["converse-stream", "invoke-with-response-stream"])
async def test_frames_are_not_changed(before: Before, method: str) -> None:
    """An event stream comes down byte for byte, with its type, and nothing between the frames."""
    p, up = await before(ping_interval=0.001)
    response = await p.ask(sent(f"/bedrock/model/{MODEL}/{method}"))
    assert response.complete
    assert response.body == up.sent[0]
    assert response.header("content-type") == FRAMES[1]
    assert response.header("x-amzn-requestid") == b"11111111-2222-4333-8444-555555555555"
    assert response.header("x-bifrost-provider") == b"bedrock"


async def test_no_ping_in_a_silence(upstream: StartUpstream, proxy: StartProxy) -> None:
    """A frame comes down when it comes in; then nothing does, for many times the interval of pings.

    The checksum of this one ends as a server-sent event would.
    """
    first = event("messageStart", {"role": "assistant"}, padding="255268")
    assert first.endswith(b"\n\n")
    others = converse_frames(MODEL)[1:]
    go_on = asyncio.Event()

    async def pausing(conn: Conn, _: Request) -> None:
        await conn.send(stream_head([FRAMES]) + chunk(first))
        await go_on.wait()
        await conn.send(b"".join(map(chunk, others)) + LAST_CHUNK)

    up = await upstream(pausing)
    p = await proxy(
        providers={"bedrock": {"base_urls": {"bedrock": up.url}, "is_key_less": True}},
        default_providers=DEFAULT,
        ping_interval=0.005,
    )
    client = await p.connect()
    await client.send(post(f"/bedrock/model/{MODEL}/converse-stream", BODY, key=None))
    await client.head()
    await client.read_until(first)
    await asyncio.sleep(0.1)
    go_on.set()
    response = await client.rest()
    assert response.complete
    assert response.body == first + b"".join(others)
    assert (await p.line())["pings"] == 0


async def test_no_early_answer(upstream: StartUpstream, proxy: StartProxy) -> None:
    """No binary stream is committed to before the provider has: its status and its type are not known."""

    async def late(conn: Conn, _: Request) -> None:
        await asyncio.sleep(0.1)
        await conn.send(answer(429, body=b'{"message": "slowly"}'))

    up = await upstream(late)
    p = await proxy(
        providers={"bedrock": {"base_urls": {"bedrock": up.url}, "is_key_less": True}},
        default_providers=DEFAULT,
        network={"max_retries": 0},
        early_stream_after=0.01,
        ping_interval=0.005,
    )
    response = await p.ask(post(f"/bedrock/model/{MODEL}/converse-stream", BODY, key=None))
    assert (response.status, response.body) == (429, b'{"message": "slowly"}')


async def test_a_stream_that_is_cut_is_reset(before: Before) -> None:
    """In the middle of a frame: what came goes down, and then the connection is reset."""
    p, up = await before()
    response = await p.ask(sent("/bedrock/model/cut-1/converse-stream"))
    assert response.reset
    assert up.sent[0].startswith(response.body)
    assert len(response.body) > 100
    assert (await p.line())["ending"] == "UD"


async def test_fallbacks_in_a_large_body(before: Before) -> None:
    """They are cut out of the body, and the hash in the signature is that of the rest."""
    p, up = await before()
    text = json.dumps({"messages": [{"role": "user", "content": [{"text": "x" * 600_000}]}]}).encode()
    asked = text.removesuffix(b"}") + b', "fallbacks": ["bedrock/another-1"]}'
    response = await p.ask(sent("/bedrock/model/unavailable-1/converse", asked))
    assert response.status == 200
    assert [request.body for request in up.requests] == [text, text]
    assert up.models == ["unavailable-1", "another-1"]
    assert all(isinstance(said, Signed) for said in up.signed)


async def test_a_chunked_body_is_held_and_signed(before: Before) -> None:
    """Also on a path that names no model: what is signed has to be known; it goes out with its length."""
    p, up = await before()
    fields = [(b"Host", b"h"), (b"Content-Type", b"application/json"), (b"Transfer-Encoding", b"chunked")]
    for path in (f"/bedrock/model/{MODEL}/converse", "/bedrock/guardrail/g/version/1/apply"):
        parts = chunk(BODY[:5]) + chunk(BODY[5:]) + LAST_CHUNK
        response = await p.ask(request_head("POST", path, [*fields, *SIGNATURE]) + parts)
        assert response.status == 200
    for request in up.requests:
        assert not request.chunked
        assert request.body == BODY
    assert all(isinstance(said, Signed) for said in up.signed)


async def test_a_held_body_has_its_limit(before: Before) -> None:
    """Where no model is named as well."""
    p, up = await before(max_body_bytes=100)
    response = await p.ask(sent("/bedrock/guardrail/g/version/1/apply", b"x" * 101))
    assert response.status == 413
    assert response.header("x-amzn-errortype") == b"ValidationException"
    assert up.requests == []


async def test_the_next_key_signs(bedrock: StartBedrock, proxy: StartProxy) -> None:
    """A provider that refuses one key's signature gets the next one's; the refused key is out."""
    up = await bedrock(credentials=[THEIRS])
    wrong, right = (provider(up, each)["keys"][0] for each in (WRONG, THEIRS))
    keys = [wrong | {"name": "wrong"}, right | {"name": "right", "weight": 0}]
    p = await proxy(
        providers={"bedrock": provider(up) | {"keys": keys}},
        default_providers=DEFAULT,
        environ=environ(WRONG, THEIRS),
    )
    for _ in range(2):
        assert (await p.ask(sent(f"/bedrock/model/{MODEL}/converse"))).status == 200
    refused, *good = up.signed
    assert "access key is nobody's" in str(refused)
    assert [type(said) for said in good] == [Signed, Signed]


async def test_a_wrong_region_is_the_operators_error(bedrock: StartBedrock, proxy: StartProxy) -> None:
    """The provider's 403 is about our credentials: the client gets a 502 that says so."""
    up = await bedrock(region="eu-west-1")
    p = await proxy(
        providers={"bedrock": provider(up, region="us-east-1")}, default_providers=DEFAULT, environ=environ()
    )
    response = await p.ask(sent(f"/bedrock/model/{MODEL}/converse"))
    assert response.status == 502
    assert b"bedrock takes none of the keys that the proxy has" in response.body
    assert response.header("x-amzn-errortype") == b"InternalServerException"
    assert up.signed == ["the credential is scoped to bedrock in us-east-1"]


async def test_without_credentials_the_next_target_is_taken(
    bedrock: StartBedrock, proxy: StartProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A profile that is nowhere is an event of its target; alone it is a 502 that names the key."""
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    up = await bedrock()
    nobody = {"region": "us-east-1", "profile": "nobody"}
    lost = provider(up) | {"keys": [{"name": "lost", "bedrock_key_config": nobody}]}
    p = await proxy(
        providers={"lost": lost, "bedrock": provider(up)},
        default_providers={"bedrock": "lost"},
        environ=environ(),
    )
    alone = await p.ask(sent(f"/bedrock/model/{MODEL}/converse"))
    assert alone.status == 502
    message = json.loads(alone.body)["message"]
    assert message == (
        "The proxy has no AWS credentials for its key 'lost': its profile could not be asked for them."
        " Whoever runs the proxy must look at them."
    )
    to_bedrock = (b"x-bf-fallbacks", f"bedrock/{MODEL}".encode())
    served = await p.ask(sent(f"/bedrock/model/{MODEL}/converse", BODY, to_bedrock))
    assert served.status == 200
    attempts = f"lost/{MODEL}:no_credentials,bedrock/{MODEL}:200"
    assert served.header("x-bifrost-attempts") == attempts.encode()
    assert len(up.requests) == 1


async def test_without_credentials_the_next_key_is_taken(
    bedrock: StartBedrock, proxy: StartProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At once, as when the provider refuses a key; and its key is not out when they are back."""
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    up = await bedrock()
    good = provider(up)
    nobody = {"name": "lost", "bedrock_key_config": {"region": "us-east-1", "profile": "nobody"}}
    spare = [key | {"weight": 0} for key in good["keys"]]
    network = {"retry_backoff_initial": 30, "retry_backoff_max": 60}
    p = await proxy(
        providers={"bedrock": good | {"keys": [nobody, *spare], "network_config": network}},
        default_providers=DEFAULT,
        environ=environ(),
    )
    assert (await p.ask(sent("/bedrock/guardrail/g/version/1/apply"))).status == 200
    for _ in range(2):
        served = await p.ask(sent(f"/bedrock/model/{MODEL}/converse"))
        assert served.status == 200
        attempts = f"bedrock/{MODEL}:no_credentials,bedrock/{MODEL}:200"
        assert served.header("x-bifrost-attempts") == attempts.encode()


async def test_a_signature_is_no_credential_for_others(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Where the default provider has no keys, a client's bearer goes there, and its signature nowhere."""
    up = await upstream(answer(body=b"{}"))
    p = await proxy(providers={"bedrock": {"base_urls": {"bedrock": up.url}}}, default_providers=DEFAULT)
    response = await p.ask(sent(f"/bedrock/model/{MODEL}/converse"))
    assert response.status == 401
    assert response.header("x-amzn-errortype") == b"AccessDeniedException"
    bearer = [(b"Authorization", b"Bearer sk-test-client")]
    response = await p.ask(post(f"/bedrock/model/{MODEL}/converse", BODY, bearer, key=None))
    assert response.status == 200
    assert up.requests[0].header("authorization") == b"Bearer sk-test-client"


async def test_an_upload_in_anthropics_format_cannot_be_signed(before: Before) -> None:
    """There bodies of paths without a model are streamed; a client is told so, in the format's shape."""
    p, up = await before(default_providers={"anthropic": "bedrock"})
    response = await p.ask(sent("/anthropic/v1/files", b"a file"))
    assert response.status == 400
    error = json.loads(response.body)["error"]
    assert error["type"] == "invalid_request_error"
    assert "a body on this path is streamed" in error["message"]
    assert up.requests == []


async def test_from_anthropic_to_bedrock(
    upstream: StartUpstream, bedrock: StartBedrock, proxy: StartProxy
) -> None:
    """A message that Anthropic has no room for is signed and goes to Bedrock; only the model differs."""
    overloaded, up = await upstream(refusal(529, "overloaded_error")), await bedrock()
    p = await proxy(
        providers={"anthropic": keyed(overloaded, "main"), "bedrock": provider(up)},
        default_providers={"anthropic": "anthropic"},
        environ=environ(),
        network={"max_retries": 0},
    )
    body = b'{"model": "claude-haiku-4-5", "messages": [], "stream": true, "fallbacks": ["bedrock/a.b:0"]}'
    response = await p.post("/anthropic/v1/messages", body)
    assert response.status == 200
    assert response.body == up.sent[0]
    assert up.requests[0].target == b"/anthropic/v1/messages"
    assert up.requests[0].body == b'{"model": "a.b:0", "messages": [], "stream": true}'
    assert up.requests[0].header("x-api-key") is None
    (said,) = up.signed
    assert isinstance(said, Signed)


@pytest.mark.parametrize("pieces", [1, 5])
async def test_an_exception_as_the_first_frame_moves_on(
    upstream: StartUpstream, proxy: StartProxy, pieces: int
) -> None:
    """As an error event does in other streams, in however many pieces it comes; a later one is relayed."""
    first = exception("throttlingException", "slow down")
    size = -(-len(first) // pieces)
    cut = [first[at : at + size] for at in range(0, len(first), size)]
    frames = converse_frames(MODEL)
    late = [*frames[:2], exception("modelStreamErrorException", "oh")]
    up = await upstream(
        answer_of(cut),
        answer_of(frames),
        answer_of(late),
    )
    keys = [{"name": "main", "value": "env.TEST_KEY_MAIN"}]
    p = await proxy(
        providers={"bedrock": {"base_urls": {"bedrock": up.url}, "keys": keys}}, default_providers=DEFAULT
    )
    path = f"/bedrock/model/{MODEL}/converse-stream"
    fallback = (b"x-bf-fallbacks", b"bedrock/other")
    response = await p.ask(post(path, BODY, [fallback], key=None))
    assert response.body == b"".join(frames)
    assert response.header("x-bifrost-attempts") == f"bedrock/{MODEL}:stream_error,bedrock/other:200".encode()
    assert (await p.ask(post(path, BODY, [fallback], key=None))).body == b"".join(late)


def answer_of(frames: list[bytes]) -> bytes:
    return stream_head([FRAMES]) + b"".join(map(chunk, frames)) + LAST_CHUNK
