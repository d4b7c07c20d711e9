"""Webhooks before they are sent: what is told, when it is told again, and what the config may say."""

from __future__ import annotations

import base64
import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest
from scripted import MESSAGE
from telling import MARK, SECRET, configured, ending, found, secret

from proxy import config, notices
from proxy.config import ConfigError
from proxy.job import Ending

# What is told.


def told(ended: Ending) -> Any:
    return json.loads(notices.payload(found(ended), whole=True))["data"]


def test_a_result_is_told_byte_for_byte() -> None:
    """JSON stands in the payload as upstream wrote it."""
    body = b'{ "a" :1.0, "b":"\\u00e9",\n"a":1e2}'
    assert b'"result":' + body + b"}}" in notices.payload(found(ending(body)), whole=True)
    assert b'"result":' + body + b"}}" in notices.payload(
        found(ending(zlib.compress(body), packed=True)), whole=True
    )


def test_what_is_not_there_is_left_out() -> None:
    """Without the body, as it is where that is known to be too large, the rest is told."""
    data = json.loads(notices.payload(found(ending(b"")), whole=False))["data"]
    assert (data["truncated"], "result" in data, data["status_code"]) == (True, False, 200)


def test_a_compressed_result_is_told_as_what_it_holds() -> None:
    """What upstream compressed is decoded; what cannot be decoded is told as it is."""
    small = gzip.compress(MESSAGE)
    assert told(ending(small, codings="gzip"))["result"] == json.loads(MESSAGE)
    assert told(ending(zlib.compress(small), codings="gzip", packed=True))["result"] == json.loads(MESSAGE)
    for coding in ("br", "gzip, br"):
        assert told(ending(small, codings=coding))["result"] == {"base64": base64.b64encode(small).decode()}
    assert told(ending(MESSAGE, codings="gzip"))["result"] == json.loads(MESSAGE)


@pytest.mark.parametrize("failed", [False, True])
def test_a_result_that_is_too_large_is_left_out(failed: bool) -> None:
    """A payload has at most 256 KiB. Beyond it there is `truncated` instead of the result, all else stays."""
    frame = len(notices.payload(found(ending(b'{"":""}', failed=failed)), whole=True))
    largest = b'{"":"%b"}' % (b"x" * (262144 - frame))
    whole = notices.payload(found(ending(largest, failed=failed)), whole=True)
    assert len(whole) == 262144
    name = "error" if failed else "result"
    assert json.loads(whole)["data"][name] == json.loads(largest)
    kept = {key: value for key, value in json.loads(whole)["data"].items() if key != name}
    too_large = largest[:-2] + b'x"}'
    for ended in (
        ending(too_large, failed=failed),
        ending(zlib.compress(too_large), failed=failed, packed=True),
        ending(gzip.compress(too_large), failed=failed, codings="gzip"),
    ):
        assert told(ended) == {**kept, "truncated": True}
    assert (
        json.loads(notices.payload(found(ending(too_large, failed=failed)), whole=True))["type"]
        == json.loads(whole)["type"]
    )


def test_a_part_of_a_result_is_told_if_it_is_small() -> None:
    """The error that stands for an answer that is not whole is never left out."""
    error = b'{"type":"error"}'
    data = told(ending(b'"part', failed=True, error=error))
    assert (data["error"], data["partial_result"]) == ({"type": "error"}, {"text": '"part'})
    data = told(ending(b"x" * 262144, failed=True, error=error))
    assert (data["error"], data["truncated"], "partial_result" in data) == ({"type": "error"}, True, False)


def test_no_more_is_unpacked_than_may_be_told() -> None:
    """A few kilobytes that stand for gigabytes cost no memory."""
    packer = zlib.compressobj(9)
    bomb = b"".join([packer.compress(bytes(2**20)) for _ in range(64)]) + packer.flush()
    for ended in (ending(bomb, packed=True), ending(bomb, codings="deflate")):
        tracemalloc.start()
        try:
            assert told(ended)["truncated"] is True
            assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
        finally:
            tracemalloc.stop()


# When it is told again.


def test_waits_double_for_a_day() -> None:
    """From half a minute to an hour; each is up to a quarter shorter or longer."""
    for draw, factor in ((0.0, 0.75), (0.5, 1.0), (1.0, 1.25)):
        waits = [(notices.again(0.0, tries, 1e9, draw) or 0.0) / factor for tries in range(1, 31)]
        assert waits == [30, 60, 120, 240, 480, 960, 1920] + [3600] * 23
    assert notices.again(0.0, 31, 1e9, 0.5) is None
    assert 24 <= sum(waits) / 3600 < 25


def test_the_last_try_is_before_the_result_expires() -> None:
    """While there is time for one; what is deleted cannot be told."""
    assert notices.again(1000.0, 8, 4600.0, 0.5) == 4585.0
    assert notices.again(4584.0, 9, 4600.0, 0.5) == 4585.0
    assert notices.again(4585.0, 9, 4600.0, 0.5) is None


# What the config may say.


GOOD_URLS = [
    "http://127.0.0.1:8000",
    "http://[::1]:8000/",
    "https://hooks.example.com/verbatim/told/",
    "https://hooks.example.com/api?code=a%3D&x=1?2",
]
BAD_URLS = [
    "hooks.example.com/a",
    "ftp://hooks.example.com/",
    "https://user:sk-test-password@hooks.example.com/",
    "https://hooks.example.com/#sk-test-part",
    "https://hooks.example.com?code=sk-test-code",
    "https://hooks.example.com/a b",
    "https://hooks.example.com:70000/",
    "https://hooks.example.com:/",
    "https:///a",
    "https://hooks_é.example.com/",
    "unix:/run/hooks.sock",
]


@pytest.mark.parametrize("url", GOOD_URLS)
def test_a_good_url_is_taken_as_it_is(url: str) -> None:
    """A slash at its end included."""
    assert configured(billing=url).webhooks["billing"].url == url


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_url_is_a_problem(url: str) -> None:
    """Which says what is wanted, and does not repeat it."""
    (problem,) = problems(url, SECRET)
    assert problem.startswith("webhooks.billing.url: ")
    assert "http:// or https:// and HOST[:PORT][/PATH][?QUERY]" in problem
    assert url not in problem
    assert "sk-test" not in problem


@pytest.mark.parametrize("size", [24, 25, 26, 32, 63, 64])
def test_a_good_secret_is_taken(size: int) -> None:
    """Any number of bytes from 24 to 64."""
    loaded = configured(secret(size), billing="http://127.0.0.1")
    assert loaded.webhooks["billing"].secret.reveal() == secret(size)


BAD_SECRETS = {
    "too short": secret(23),
    "too long": secret(65),
    "without its prefix": secret().removeprefix("whsec_"),
    "of another kind": secret().replace("whsec_", "whsk_"),
    "of a third kind": secret().replace("whsec_", "whpub_"),
    "not base64": "whsec_sk-test-not-in-base64-sk-test-not-in-base64",
    "without padding": secret().rstrip("="),
    "with a space": secret()[:20] + " " + secret()[20:],
    "for URLs": "whsec_" + base64.urlsafe_b64encode(b"\xff" * 32).decode(),
    "with stray bits": secret()[:-2] + "B=",
    "nothing else": "whsec_",
    "beyond ASCII": secret()[:-1] + "é",
}


@pytest.mark.parametrize("what", BAD_SECRETS)
def test_a_bad_secret_is_a_problem(what: str) -> None:
    """Which says how to make a good one, and shows nothing of this one."""
    (problem,) = problems("http://127.0.0.1", BAD_SECRETS[what])
    assert problem.startswith("webhooks.billing.secret: wanted whsec_ and 24 to 64 random bytes as base64")
    assert "openssl rand -base64 32" in problem
    assert MARK not in problem
    assert "sk-test" not in problem


def test_a_secret_stands_nowhere_as_it_is() -> None:
    """Neither in the file nor in what is printed of the config; nor is the URL, whose query may be one."""
    document = f"webhooks: {{billing: {{url: 'http://127.0.0.1', secret: {SECRET}}}}}"
    with pytest.raises(ConfigError, match=r"env\.NAME or file:PATH, never as it is") as caught:
        config.load(f"providers: {{}}\n{document}", {}, lambda path: "")
    loaded = configured(billing="http://127.0.0.1/?code=sk-test-code")
    for shown in (str(caught.value), repr(loaded), str(loaded.webhooks)):
        assert MARK not in shown
        assert "sk-test" not in shown


def problems(url: str, key: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        configured(key, billing=url)
    return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]
