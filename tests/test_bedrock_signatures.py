"""The check of signatures that the tests of Bedrock rest on: it takes what AWS signed, and nothing else.

Facts
  - The signed requests are those of AWS' own test suite for Signature Version 4 (awslabs/aws-c-auth,
    tests/aws-signing-test-suite/v4, header-signed-request.txt), with its example credentials.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from bedrock_signatures import Credentials, Refused, Signed, check
from rawclient import header_pairs
from scripted import Request

SIGNED_AT = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
TOKEN = (
    "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflf"
    "KD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd"
    "8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3i"
    "SIlTJabIQwj2ICCR/oLxBA=="
)
EXAMPLE = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
FORM = [
    b"Content-Type: application/x-www-form-urlencoded",
    b"Content-Length: 13",
    b"x-amz-content-sha256: 9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e",
]
FORM_NAMES = "content-length;content-type;host;x-amz-content-sha256;x-amz-date"
FORM_SIGNATURE = "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b"

VECTORS = {
    "get-header-key-duplicate": (
        *(b"GET", b"/", [b"My-Header1:value2", b"My-Header1:value2", b"My-Header1:value1"], b""),
        "host;my-header1;x-amz-date",
        "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
    ),
    "get-header-value-trim": (
        *(b"GET", b"/", [b"My-Header1: value1", b'My-Header2: "a   b   c"'], b""),
        "host;my-header1;my-header2;x-amz-date",
        "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
    ),
    "get-slashes-normalized": (
        *(b"GET", b"//example//", [], b"", "host;x-amz-date"),
        "9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84",
    ),
    "get-relative-normalized": (
        *(b"GET", b"/example/..", [], b"", "host;x-amz-date"),
        "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    ),
    "get-space-normalized": (
        *(b"GET", b"/example space/", [], b"", "host;x-amz-date"),
        "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741",
    ),
    "get-unreserved": (
        *(b"GET", b"/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", [], b""),
        "host;x-amz-date",
        "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f",
    ),
    "get-utf8": (
        *(b"GET", "/ሴ".encode(), [], b"", "host;x-amz-date"),
        "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85",
    ),
    "get-vanilla-query-order-key-case": (
        *(b"GET", b"/?Param2=value2&Param1=value1", [], b"", "host;x-amz-date"),
        "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    ),
    "get-vanilla-query-order-encoded": (
        *(b"GET", b"/?Param-3=Value3&Param=Value2&%E1%88%B4=Value1", [], b"", "host;x-amz-date"),
        "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac",
    ),
    "post-x-www-form-urlencoded": (b"POST", b"/", FORM, b"Param1=value1", FORM_NAMES, FORM_SIGNATURE),
    "post-sts-header-before": (
        *(b"POST", b"/", [b"X-Amz-Security-Token:" + TOKEN.encode()], b""),
        "host;x-amz-date;x-amz-security-token",
        "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
    ),
}


def request(
    method: bytes, target: bytes, lines: list[bytes], body: bytes, names: str, signature: str
) -> Request:
    """A request as it stands in AWS' suite."""
    authorization = (
        "Authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    lines = [
        *(b"Host: example.amazonaws.com", *lines),
        *(authorization.encode(), b"X-Amz-Date: 20150830T123600Z"),
    ]
    return Request(b"", method.decode(), target, b"HTTP/1.1", header_pairs(lines), body, False, 0)


def form(lines: list[bytes] = FORM, body: bytes = b"Param1=value1", names: str = FORM_NAMES) -> Request:
    """One of them, with something changed."""
    return request(b"POST", b"/", lines, body, names, FORM_SIGNATURE)


def judge(
    made: Request, credentials: Credentials = EXAMPLE, now: datetime = SIGNED_AT, access_key: str = ""
) -> str:
    """What is wrong with a request; empty when nothing is."""
    try:
        check(made, {access_key or credentials.access_key: credentials}, now)
    except Refused as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("name", VECTORS)
def test_aws_own_signatures_are_good(name: str) -> None:
    """What AWS says is signed is signed."""
    made = request(*VECTORS[name])
    token = TOKEN if name == "post-sts-header-before" else None
    known = {"AKIDEXAMPLE": Credentials(EXAMPLE.access_key, EXAMPLE.secret_key, token)}
    signed = check(made, known, SIGNED_AT)
    assert signed == Signed("AKIDEXAMPLE", "us-east-1", "service", tuple(VECTORS[name][4].split(";")))


WRONG = {
    "body": (form(body=b"Param1=value2"), "not the hash of the body"),
    "body_and_hash": (form(FORM[:2], b"Param1=value2", FORM_NAMES), "not there"),
    "field": (form([b"Content-Type: text/plain", *FORM[1:]]), "not the one that was calculated"),
    "unsigned_field": (form([*FORM, b"x-amz-target: Model"]), "not signed: ['x-amz-target']"),
    "names_out_of_order": (form(names="host;content-type;x-amz-date"), "not in order"),
    "two_authorizations": (form([*FORM, b"authorization: Bearer x"]), "2 Authorization"),
    "two_dates": (form([*FORM, b"x-amz-date: 20150830T123600Z"]), "2 X-Amz-Date"),
    "token": (form([*FORM, b"x-amz-security-token: x"]), "security token"),
    "path": (request(b"POST", b"/x", *VECTORS["post-x-www-form-urlencoded"][2:]), "not the one"),
    "query": (request(b"POST", b"/?x", *VECTORS["post-x-www-form-urlencoded"][2:]), "not the one"),
    "method": (request(b"PUT", b"/", *VECTORS["post-x-www-form-urlencoded"][2:]), "not the one"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_request_that_was_changed_is_refused(name: str) -> None:
    """One change to a signed request, or to its fields, and it is refused."""
    made, wrong = WRONG[name]
    assert wrong in judge(made)


def test_other_credentials_and_other_times_are_refused() -> None:
    """Another secret, an access key that nobody has, a token that is missing, and five minutes."""
    assert judge(form()) == judge(form(), now=SIGNED_AT - timedelta(minutes=5)) == ""
    assert "not the one" in judge(form(), Credentials("AKIDEXAMPLE", "another"))
    assert "nobody's" in judge(form(), access_key="AKIDANOTHER")
    assert "token" in judge(form(), Credentials("AKIDEXAMPLE", EXAMPLE.secret_key, "a token"))
    assert "expired" in judge(form(), now=SIGNED_AT + timedelta(minutes=5, seconds=1))
