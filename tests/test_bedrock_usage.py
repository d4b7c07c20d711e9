"""Tokens of Bedrock's answers: plain, in frames, and in frames as base64, whatever the chunks are."""

from __future__ import annotations

import base64
import itertools
import json
import random
import sys
import time
from collections.abc import Iterable
from typing import Any

import pytest
from bedrock_sdk import MODEL, environ, provider
from bedrock_upstream import (
    CLAUDE_USAGE,
    METRICS,
    OURS,
    USAGE,
    StartBedrock,
    bedrock,
    claude_events,
    claude_message,
    converse_frames,
    wrapped,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from rawclient import post
from running import StartProxy

from proxy.formats import FORMATS
from proxy.formats.unwrapping import Unwrapping
from proxy.usage import Usage

__all__ = ["bedrock"]

COUNTS = {
    "input_tokens": 11,
    "output_tokens": 7,
    "cache_read_input_tokens": 3,
    "cache_creation_input_tokens": 2,
}
LONG = {"ephemeral_1h_input_tokens": 2}

CLAUDE = claude_events(MODEL)
INVOKED = [wrapped(each) for each in CLAUDE[:-1]]
INVOKED.append(wrapped(CLAUDE[-1] | {"amazon-bedrock-invocationMetrics": METRICS}))
LLAMA: list[dict[str, Any]] = [
    {"generation": "Hi", "prompt_token_count": 11, "generation_token_count": 1, "stop_reason": None},
    {"generation": "", "stop_reason": "stop", "amazon-bedrock-invocationMetrics": METRICS},
]
ANSWERS = {
    "converse": (json.dumps({"metrics": {"latencyMs": 1}, "output": {}, "usage": USAGE}), COUNTS | LONG),
    "converse-stream": (b"".join(converse_frames(MODEL)), COUNTS | LONG),
    "invoke": (json.dumps(claude_message(MODEL)), COUNTS),
    "invoke-stream": (b"".join(INVOKED), COUNTS),
    "invoke-stream without metrics": (b"".join(INVOKED[:-1]), COUNTS),
    "invoke-stream cut short": (b"".join(INVOKED[:3]) + INVOKED[3][:90], {**COUNTS, "output_tokens": 1}),
    "another model": (b"".join(map(wrapped, LLAMA)), COUNTS),
}


def fed(chunks: Iterable[bytes]) -> Usage:
    seen = Usage(FORMATS["bedrock"].usage)
    for chunk in chunks:
        seen.feed(chunk)
    return seen


def counted(data: bytes | str, cuts: Iterable[int] = ()) -> dict[str, int]:
    raw = data.encode() if isinstance(data, str) else data
    edges = [0, *sorted({min(at, len(raw)) for at in cuts}), len(raw)]
    return fed(raw[a:b] for a, b in itertools.pairwise(edges)).counts()


@pytest.mark.parametrize("name", ANSWERS)
def test_counts(name: str) -> None:
    """In each form of an answer, whole, and byte by byte."""
    data, counts = ANSWERS[name]
    assert counted(data) == counts
    assert counted(data, range(len(data))) == counts


@pytest.mark.parametrize("name", ["converse-stream", "invoke-stream", "another model"])
@given(cuts=st.lists(st.integers(1, 4000), max_size=12))
@settings(deadline=None)
def test_any_chunking_gives_the_same_counts(name: str, cuts: list[int]) -> None:
    """A frame, a member, four characters of base64 and a number may be split anywhere."""
    data, counts = ANSWERS[name]
    assert counted(data, cuts) == counts


@pytest.mark.parametrize("first", ["cacheDetails", "inputTokens"])
def test_details_are_no_totals(first: str) -> None:
    """What was written to the cache is told twice, in any order; the hour's part of it has a name."""
    details = [{"inputTokens": 5, "ttl": "1h"}, {"ttl": "5m", "inputTokens": 900}]
    usage = {"inputTokens": 18, "cacheWriteInputTokens": 905, "outputTokens": 4, "cacheDetails": details}
    ordered = {first: usage[first]} | usage
    assert counted(json.dumps({"usage": ordered})) == {
        "input_tokens": 18,
        "cache_creation_input_tokens": 905,
        "output_tokens": 4,
        "ephemeral_1h_input_tokens": 5,
    }


def test_what_claude_bills_besides() -> None:
    """Compaction is in a list of its own, as in Anthropic's format."""
    iterations = [{"type": "compaction", "input_tokens": 100, "output_tokens": 50}]
    message = claude_message(MODEL) | {"usage": {**CLAUDE_USAGE, "iterations": iterations}}
    assert counted(json.dumps(message))["input_tokens"] == 111


def test_a_text_about_usage() -> None:
    """In base64 as in plain, a text that talks about it is none."""
    talk = {"type": "content_block_delta", "delta": {"text": '"usage":{"input_tokens":999}'}}
    assert counted(b"".join([*INVOKED[:2], wrapped(talk), *INVOKED[2:]])) == COUNTS


def test_on_sight() -> None:
    """A stream's counts are told as soon as they are there."""
    seen = Usage(FORMATS["bedrock"].usage)
    told = []
    seen.on_sight = lambda: told.append(seen.counts()["output_tokens"])
    for frame in INVOKED:
        seen.feed(frame)
    assert told == [1, 7, 7]
    assert seen.is_told


@pytest.mark.parametrize("name", ["converse", "converse-stream", "invoke"])
def test_all_else_passes_unchanged(name: str) -> None:
    """Bytes without the member are the same, and none is held back at the end."""
    data = ANSWERS[name][0]
    raw = data.encode() if isinstance(data, str) else data
    for size in (1, 7, 1000):
        unwrap = Unwrapping()
        assert b"".join(unwrap(raw[at : at + size]) for at in range(0, len(raw), size)) == raw


def test_a_member_is_decoded_wherever_it_is_cut() -> None:
    """Any two cuts, and any lengths of base64."""
    for length in range(8):
        text = b'{"bytes":"%b","p":"ab"}' % base64.b64encode(b"x" * length)
        for first, second in itertools.combinations(range(len(text) + 1), 2):
            unwrap = Unwrapping()
            parts = (text[:first], text[first:second], text[second:])
            assert b"".join(map(unwrap, parts)) == b'{"bytes":"%b","p":"ab"}' % (b"x" * length)


@pytest.mark.parametrize("text", ["%%%", "a", "YQ==YQ==", "Y\\/Q", "Ä"])
def test_what_is_no_base64(text: str) -> None:
    """It is no error, and what follows it is seen."""
    assert counted(b'{"bytes":"%b"}' % text.encode() + b"".join(INVOKED)) == COUNTS


HOSTILE = {
    "members": b'"bytes":"',
    "quotes": b'"',
    "begun": b'"bytes"',
    "base64": b"QUFB",
    "metrics": base64.b64encode(b'"amazon-bedrock-invocationMetrics":{'),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("size", [1, 65536])
def test_hostile_streams_are_bounded(name: str, size: int) -> None:
    """However the bytes are chosen and cut: little is held, and the time grows with their number only."""

    def spent(count: int) -> float:
        data = b'"bytes":"' + HOSTILE[name] * (count // len(HOSTILE[name]))
        unwrap = Unwrapping()
        began = time.process_time()
        for at in range(0, len(data), size):
            unwrap(data[at : at + size])
            assert sys.getsizeof(unwrap._carry) < 200
            assert len(unwrap._event) <= 8192 + size
        return time.process_time() - began

    small = min(spent(20_000) for _ in range(3))
    large = min(spent(80_000) for _ in range(3))
    assert large < 12 * small + 0.01


def test_random_bytes() -> None:
    """Nothing that can come raises."""
    rng = random.Random(7)
    for _ in range(300):
        parts = [rng.choice([b'"bytes":"', b'"', rng.randbytes(5), b"QUJD", b"\n"]) for _ in range(30)]
        fed(parts).counts()


@pytest.mark.parametrize(
    ("method", "counts"),
    [
        ("converse", COUNTS | LONG),
        ("converse-stream", COUNTS | LONG),
        ("invoke", COUNTS),
        ("invoke-with-response-stream", COUNTS),
        ("count-tokens", {}),
    ],
)
async def test_in_the_log(
    bedrock: StartBedrock, proxy: StartProxy, method: str, counts: dict[str, int]
) -> None:
    """Each operation's line says what it used up."""
    up = await bedrock(credentials=[OURS])
    p = await proxy(
        providers={"bedrock": provider(up)}, default_providers={"bedrock": "bedrock"}, environ=environ()
    )
    response = await p.ask(post(f"/bedrock/model/{MODEL}/{method}", b'{"messages": []}', key=None))
    assert response.status == 200
    assert (await p.line())["usage"] == counts
