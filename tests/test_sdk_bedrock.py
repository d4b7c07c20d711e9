"""boto3 through the proxy: the same as without it, and every request signed with the proxy's credentials.

Errors of the proxy's own are in `test_sdk_bedrock_errors`, bytes in `test_bedrock`.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from bedrock_sdk import ARN, MODEL, ON_THE_WIRE, Boto, base_url, boto, environ, provider
from bedrock_signatures import Credentials, Signed
from bedrock_upstream import OURS, BedrockUpstream, StartBedrock, bedrock
from running import StartProxy

__all__ = ["bedrock", "boto"]

ELSEWHERE = Credentials("sk-test-access-elsewhere", "sk-test-secret/elsewhere", "sk-test-token/elsewhere")
OPERATIONS = (b"converse", b"converse-stream", b"invoke", b"invoke-with-response-stream", b"count-tokens")
DIRECT = ("operations", "arn", "others", "cut", "erring", "invalid", "broken")
"""What is also done without the proxy."""


class Told(NamedTuple):
    """What boto3 saw, what came upstream, and the access log."""

    seen: dict[str, Any]
    east: BedrockUpstream
    west: BedrockUpstream
    bearer: BedrockUpstream
    lines: list[dict[str, Any]]


@pytest.fixture(scope="session")
def once() -> list[Told]:
    """All steps are taken together, in one process of boto3."""
    return []


@pytest.fixture
async def told(once: list[Told], boto: Boto, bedrock: StartBedrock, proxy: StartProxy) -> Told:
    if once:
        return once[0]
    direct = await bedrock()
    east = await bedrock(credentials=[OURS])
    west = await bedrock(region="eu-west-1", credentials=[ELSEWHERE])
    bearer = await bedrock(credentials=[], bearers=["sk-test-bearer"])
    p = await proxy(
        providers={
            "bedrock": provider(east),
            "bedrock2": provider(west, ELSEWHERE),
            "plain": {
                "base_urls": {"bedrock": bearer.url},
                "keys": [{"name": "bearer", "value": "env.TEST_KEY_BEARER"}],
            },
        },
        default_providers={"bedrock": "bedrock"},
        environ=environ(OURS, ELSEWHERE),
        # A ping after every silence that lasts a millisecond, where pings may be.
        ping_interval=0.001,
    )
    url = base_url(p)
    fallbacks = {"x-bf-fallbacks": f"bedrock/unavailable-1, bedrock2/{ARN}, bedrock/never"}
    steps = {
        "operations": (url, "operations", MODEL, {}),
        "arn": (url, "operations", ARN, {}),
        "prefixed": (url, "operations", f"bedrock2/{MODEL}", {}),
        "bearer": (url, "operations", f"plain/{MODEL}", {}),
        "fallbacks": (url, "operations", "throttled-1:0", fallbacks),
        "others": (url, "others", "", {}),
        "cut": (url, "stream", "cut-1", {}),
        "erring": (url, "stream", "erring-1", {}),
        "nested": (url.replace("/bedrock", "/langchain/bedrock"), "operations", MODEL, {}),
        "denied": (url, "converse", "denied-1", {}),
        "invalid": (url, "converse", "invalid-1", {}),
        "broken": (url, "converse", "broken-1", {}),
    }
    without = {f"direct {name}": (direct.url, *steps[name][1:]) for name in DIRECT}
    seen = await boto(steps | without)
    await p.stop()
    once.append(Told(seen, east, west, bearer, p.lines))
    return once[0]


def targets(upstream: BedrockUpstream) -> list[bytes]:
    return [request.target for request in upstream.requests]


def without_served(seen: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in seen.items() if name != "served"}


@pytest.mark.parametrize("name", ["operations", "arn"])
async def test_every_operation(told: Told, name: str) -> None:
    """Converse, invoke, their streams and count-tokens: boto3 sees what it sees without the proxy."""
    through, direct = told.seen[name], told.seen[f"direct {name}"]
    assert without_served(through) == without_served(direct)
    events, error = through["converse_stream"]
    assert error is None
    assert events[-1]["metadata"]["usage"]["outputTokens"] == 7
    assert [each["id"] for each in through["served"]] == [each["id"] for each in direct["served"]]
    chunks, error = through["invoke_stream"]
    assert error is None
    last = json.loads(chunks[-1]["chunk"]["bytes"])
    assert last["amazon-bedrock-invocationMetrics"]["inputTokenCount"] == 11
    assert {each["x-bifrost-provider"] for each in through["served"]} == {"bedrock"}


async def test_every_request_is_signed_anew(told: Told) -> None:
    """By the provider's own credentials, region and time; nothing of the client's signature goes out."""
    for upstream, credentials in ((told.east, OURS), (told.west, ELSEWHERE)):
        wanted = (credentials.access_key, upstream.region, "bedrock")
        assert upstream.signed
        for said in upstream.signed:
            assert isinstance(said, Signed), said
            assert (said.access_key, said.region, said.service) == wanted
        assert not [each for each in upstream.requests if b"theirs" in each.raw]
    # What the client's SDK says of itself does.
    assert all(each.header("amz-sdk-request") for each in told.east.requests)


async def test_percent_encoding_is_kept(told: Told) -> None:
    """A model id with colons, and an ARN with a slash, stand in the path as the client wrote them."""
    assert targets(told.east)[:5] == [b"/model/%b/%b" % (ON_THE_WIRE, each) for each in OPERATIONS]
    arn = b"arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Ainference-profile%2F" + ON_THE_WIRE
    assert targets(told.east)[5:10] == [b"/model/%b/%b" % (arn, each) for each in OPERATIONS]


async def test_the_provider_in_front_of_the_model(told: Told) -> None:
    """``provider/model`` in the path goes to that provider, without its name."""
    assert targets(told.west)[:5] == [b"/model/%b/%b" % (ON_THE_WIRE, each) for each in OPERATIONS]
    assert without_served(told.seen["prefixed"]) == without_served(told.seen["operations"])
    for each in told.seen["prefixed"]["served"]:
        assert each["x-bifrost-provider"] == "bedrock2"
        assert each["x-bifrost-resolved-model"] == MODEL


async def test_a_bearer_key(told: Told) -> None:
    """A provider whose key is no AWS credential gets it as a bearer, and no signature."""
    assert without_served(told.seen["bearer"]) == without_served(told.seen["operations"])
    assert told.bearer.signed == ["bearer"] * 5
    assert not [each for each in told.bearer.requests if b"x-amz-date" in each.raw.lower()]


async def test_fallbacks(told: Told) -> None:
    """A model that is throttled, one that is unavailable, then the same in another region: streams too."""
    seen = told.seen["fallbacks"]
    assert without_served(seen) == without_served(told.seen["arn"])
    for each in seen["served"]:
        assert each["x-bifrost-fallback-index"] == "2"
        assert each["x-bifrost-resolved-model"] == ARN
        assert each["x-bifrost-attempts"] == (
            f"bedrock/throttled-1:0:429,bedrock/unavailable-1:503,bedrock2/{ARN}:200"
        )
    asked = targets(told.east)
    assert asked.count(b"/model/throttled-1%3A0/converse-stream") == 1
    assert asked.count(b"/model/unavailable-1/converse-stream") == 1
    # Colons may be encoded or not, for AWS and its SDKs; slashes must be.
    arn = ARN.replace("/", "%2F").encode()
    assert targets(told.west)[5:] == [b"/model/%b/%b" % (arn, each) for each in OPERATIONS]
    assert told.west.models[5:] == [ARN] * 5


async def test_paths_without_a_model(told: Told) -> None:
    """A guardrail with a body, and a list with a query, are signed and relayed as well."""
    assert told.seen["others"] == told.seen["direct others"]
    arn = b"arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Aguardrail%2Fg1"
    wanted = [b"/guardrail/%b/version/1/apply" % arn, b"/async-invoke?maxResults=5&sortOrder=Ascending"]
    assert [each for each in targets(told.east) if b"/model/" not in each] == wanted


async def test_a_stream_that_breaks_off(told: Told) -> None:
    """A cut is an error to boto3, never an end; so is the provider's own exception in a stream."""
    events, error = told.seen["cut"]
    direct, _ = told.seen["direct cut"]
    assert events == direct
    assert error["class"] == "ProtocolError"
    assert told.seen["erring"] == told.seen["direct erring"]
    assert told.seen["erring"][1]["class"] == "EventStreamError"
    assert "modelStreamErrorException" in told.seen["erring"][1]["text"]


async def test_below_a_framework(told: Told) -> None:
    """The same below /langchain."""
    assert without_served(told.seen["nested"]) == without_served(told.seen["operations"])


async def test_errors_of_the_provider(told: Told) -> None:
    """Each is the client's own typed error, as the provider said it, down to its request id.

    But for a 403: that is about the proxy's credentials, not about the client's.
    """
    assert told.seen["invalid"] == told.seen["direct invalid"]
    assert (told.seen["invalid"]["class"], told.seen["invalid"]["status"]) == ("ValidationException", 400)
    assert told.seen["broken"] == told.seen["direct broken"]
    assert (told.seen["broken"]["class"], told.seen["broken"]["status"]) == ("ModelErrorException", 424)
    denied = told.seen["denied"]
    assert (denied["class"], denied["status"]) == ("InternalServerException", 502)
    assert "bedrock takes none of the keys that the proxy has" in denied["Message"]


async def test_no_pings(told: Told) -> None:
    """Between the frames of a binary stream there are none, however long the silence."""
    streams = [line for line in told.lines if line["stream"]]
    assert len(streams) >= 12
    assert {line["pings"] for line in told.lines} == {0}
