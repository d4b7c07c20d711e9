"""Requests are signed for AWS: what goes upstream is what the signature covers.

Each is checked by `bedrock_signatures`, which knows nothing of botocore. The proxy around it is in
`test_bedrock`, credentials that have to be looked for in `test_aws_credentials`.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest
from bedrock_signatures import Credentials, Refused, Signed, check
from rawclient import header_pairs
from running import LogText
from scripted import Request as Received

from proxy import signing
from proxy.config import Key, NetworkConfig
from proxy.connection import Origin
from proxy.errors import ProxyError, Source
from proxy.providers import BedrockKeyConfig
from proxy.sending import SEND_BYTES, Request
from proxy.signing import Signer
from proxy.values import Secret

OURS = Credentials("sk-test-access", "sk-test-secret/+")
HOST = "bedrock-runtime.eu-west-1.amazonaws.com"
JSON = (b"Content-Type", b"application/json")


def key(credentials: Credentials = OURS, region: str = "eu-west-1") -> Key:
    token = Secret(credentials.token) if credentials.token else None
    secrets = Secret(credentials.access_key), Secret(credentials.secret_key)
    return Key("main", bedrock_key_config=BedrockKeyConfig(region, *secrets, token))


def request(
    target: str = "/model/a/converse",
    *fields: tuple[bytes, bytes],
    body: object = b'{"messages": []}',
    method: str = "POST",
    host: str = HOST,
) -> Request:
    """A request as an attempt has it, before it is signed."""
    lines = [b"%b %b HTTP/1.1" % (method.encode(), target.encode()), b"Host: " + host.encode()]
    lines += [name + b": " + value for name, value in fields]
    return Request(
        origin=Origin.parse(f"https://{host}"),
        method=method,
        head=b"\r\n".join(lines) + b"\r\n",
        body=body,  # type: ignore[arg-type]
        chunked=False,
        network=NetworkConfig(),
        buffer_bytes=65536,
        fresh=False,
        hear=lambda _: None,
        hear_end=lambda: None,
    )


def received(sent: Request) -> Received:
    """The request as the provider has it."""
    line, *lines = sent.head.removesuffix(b"\r\n").split(b"\r\n")
    method, target, version = line.split(b" ", 2)
    body = b"".join(sent.body) if isinstance(sent.body, list) else sent.body or b""
    assert isinstance(body, bytes)
    return Received(sent.head, method.decode(), target, version, header_pairs(lines), body, False, 0)


async def signed(sent: Request, credentials: Credentials = OURS) -> Signed:
    """What the signature of `sent` says; it must be good, and have been added to what there was."""
    result = await Signer().sign(key(credentials), sent)
    assert result.head.startswith(sent.head)
    assert result._replace(head=b"") == sent._replace(head=b"")
    return check(received(result), {credentials.access_key: credentials})


PATHS = (
    "/model/anthropic.claude-haiku-4-5-20251001-v1%3A0/converse",
    "/model/anthropic.claude-haiku-4-5-20251001-v1:0/invoke-with-response-stream",
    "/model/arn%3Aaws%3Abedrock%3Aeu-west-1%3A1%3Aprofile%2Fx%3a0/converse-stream",
    "/anthropic/v1/messages?beta=true",
    "//model/a//converse/",
    "/model/~-._/converse?b=2&a=1&a=0&c&%C3%A4=%20&d=",
    "/",
)


@pytest.mark.parametrize("path", PATHS)
async def test_a_path_is_signed_as_it_goes_out(path: str) -> None:
    """Percent-encoding, double slashes and the query's order stay, and the signature covers them so."""
    said = await signed(request(path, JSON))
    assert (said.region, said.service) == ("eu-west-1", "bedrock")


async def test_fields_that_proxies_may_touch_are_not_signed() -> None:
    """Host, type and x-amz-* are; user agents, traces, lengths and x-amzn-* are not."""
    said = await signed(
        request(
            "/model/a/invoke",
            *(JSON, (b"User-Agent", b"Boto3"), (b"X-Amzn-Bedrock-Trace", b"1"), (b"amz-sdk-request", b"a")),
            *((b"X-Amz-Meta", b"a   b"), (b"x-amz-meta", b" c"), (b"Accept", b"*/*")),
            (b"Content-Length", b"16"),
        )
    )
    names = ("content-type", "host", "x-amz-content-sha256", "x-amz-date", "x-amz-meta")
    assert said.fields == names


LARGE = bytes(range(256)) * 2048
BODIES = (
    None,
    b"",
    b"{}",
    LARGE,
    [memoryview(b"{"), memoryview(b"}")],
    [memoryview(LARGE), memoryview(b"!"), memoryview(LARGE)],
)


@pytest.mark.parametrize("body", BODIES, ids=["none", "empty", "small", "large", "parts", "large_parts"])
async def test_a_body_is_covered(body: bytes | list[memoryview] | None) -> None:
    """Whole, in parts, large enough for a thread, or not there."""
    assert len(LARGE) > SEND_BYTES
    await signed(request(body=body))
    result = await Signer().sign(key(), request(body=body))
    with pytest.raises(Refused, match="hash of the body"):
        check(received(result._replace(body=b"another")), {OURS.access_key: OURS})


@pytest.mark.parametrize("body", BODIES[2:], ids=["small", "large", "parts", "large_parts"])
async def test_a_large_body_is_hashed_aside(
    monkeypatch: pytest.MonkeyPatch, body: bytes | list[memoryview]
) -> None:
    """The loop hashes none that would hold it up."""
    threads = []
    hashed = signing._sha256

    def watched(parts: object) -> str:
        threads.append(threading.current_thread() is threading.main_thread())
        return hashed(parts)

    monkeypatch.setattr(signing, "_sha256", watched)
    await signed(request(body=body))
    length = len(body) if isinstance(body, bytes) else sum(map(len, body))
    assert threads == [length <= SEND_BYTES]


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
async def test_other_methods(method: str) -> None:
    """A request without a body, and without a type, is signed as well."""
    said = await signed(request("/async-invoke?maxResults=5", body=None, method=method))
    assert said.fields == ("host", "x-amz-content-sha256", "x-amz-date")


async def test_the_service_of_mantle_has_a_name_of_its_own() -> None:
    """At bedrock-mantle hosts the service is bedrock-mantle, and only there."""
    mantle = await signed(request("/anthropic/v1/messages", host="bedrock-mantle.us-east-1.api.aws"))
    assert mantle.service == "bedrock-mantle"
    assert (await signed(request(host="bedrock-mantle-like.example:8443"))).service == "bedrock"


async def test_temporary_credentials() -> None:
    """A session token goes out, and is signed."""
    temporary = Credentials(OURS.access_key, OURS.secret_key, "sk-test-token//==")
    said = await signed(request(), temporary)
    assert "x-amz-security-token" in said.fields


async def test_each_signature_has_its_time() -> None:
    """The clock is read for every request: a retry does not go out with an old date."""
    times = iter(datetime(2026, 11, 22, 12, 0, second, tzinfo=UTC) for second in (1, 2))
    signer = Signer(lambda: next(times))
    for second in (1, 2):
        result = received(await signer.sign(key(), request()))
        assert result.header("x-amz-date") == b"20261122T12000%dZ" % second
        check(result, {OURS.access_key: OURS}, datetime(2026, 11, 22, 12, 0, second, tzinfo=UTC))
    with pytest.raises(Refused, match="expired"):
        check(result, {OURS.access_key: OURS}, datetime(2026, 11, 22, 12, 0, tzinfo=UTC) + timedelta(hours=1))


@pytest.mark.parametrize(
    "unsignable",
    [
        request("/model/ä/converse"),
        request("/model/a/converse?ä"),
        request("/", (b"X-Amz-Meta", b"\xe4")),
        request("/", (b"Content-Type", b"text/\xff")),
        request(body=iter(())),
    ],
    ids=["path", "query", "field", "type", "stream"],
)
async def test_what_cannot_be_signed_is_refused(unsignable: Request) -> None:
    """Bytes that AWS and botocore may read differently, and a body that nobody has yet: 400."""
    with pytest.raises(ProxyError, match="cannot be signed") as caught:
        await Signer().sign(key(), unsignable)
    assert (caught.value.status, caught.value.source) == (400, Source.DOWNSTREAM)


async def test_fields_beyond_ascii_that_are_not_signed_pass() -> None:
    """Only what is signed has to be read alike."""
    await signed(request("/", (b"X-Title", b"\xff\xe4")))


async def test_nothing_of_a_signature_is_logged(logged: LogText) -> None:
    """With everything logged that can be, no token, secret or access key is."""
    logging.getLogger("tests").debug("something is")
    await signed(request(), Credentials("sk-test-access", "sk-test-secret", "sk-test-token"))
    assert "something is" in logged.text
    assert "sk-test" not in logged.text


MISSING = """
import sys
import proxy.signing

class Missing:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            raise ModuleNotFoundError("it is not there", name=name)

assert not [name for name in sys.modules if name.startswith("botocore")]
sys.meta_path.insert(0, Missing())
try:
    proxy.signing.Signer()
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("botocore", "RuntimeError: a key has a bedrock_key_config"),
        ("jmespath", "ModuleNotFoundError: it is"),
    ],
)
def test_botocore_is_imported_by_who_signs(missing: str, said: str) -> None:
    """Nobody else pays for it; and where it is missing, the message says what to install."""
    command = [sys.executable, "-c", MISSING, missing]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith(said)
    assert ("pip install 'verbatim-proxy[bedrock]'" in done.stdout) == (missing == "botocore")
