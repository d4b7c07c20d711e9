"""Token usage is read from the bytes that pass, whatever their chunking and their wire format."""

from __future__ import annotations

import gc
import itertools
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import usage
from proxy.formats import FORMATS
from proxy.usage import Usage

SHAPES = {name: form.usage for name, form in FORMATS.items() if name != "azure"}

STREAM = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":25,'
    b'"cache_creation_input_tokens":7,"cache_read_input_tokens":3,"output_tokens":1}}}\n\n'
    b'event: content_block_delta\ndata: {"delta":{"text":"the \\"usage\\":{\\"input_tokens\\":999}"}}\n\n'
    b'event: message_delta\ndata: {"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":15}}\n\n'
)
EXPECTED = {
    "input_tokens": 25,
    "cache_creation_input_tokens": 7,
    "cache_read_input_tokens": 3,
    "output_tokens": 15,
}


def fed(wire_format: str, chunks: Iterable[bytes]) -> Usage:
    seen = Usage(SHAPES[wire_format])
    for chunk in chunks:
        seen.feed(chunk)
    return seen


def counted(*chunks: bytes, wire_format: str = "anthropic") -> dict[str, int]:
    return fed(wire_format, chunks).counts()


def cut(data: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """`data` in chunks that end at `cuts`."""
    edges = [0, *sorted({min(at, len(data)) for at in cuts}), len(data)]
    return (data[a:b] for a, b in itertools.pairwise(edges))


def sse(*events: object, name: str = "") -> bytes:
    """A stream, as compact as servers write it."""
    head = f"event: {name}\n" if name else ""
    texts = (each if isinstance(each, str) else json.dumps(each, separators=(",", ":")) for each in events)
    return "".join(f"{head}data: {text}\n\n" for text in texts).encode()


def test_a_whole_stream_in_one_chunk() -> None:
    """The first usage names the input, the last one the final output; escaped text is not usage."""
    assert counted(STREAM) == EXPECTED


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=8))
@settings(deadline=None)
def test_any_chunking_gives_the_same_counts(cuts: list[int]) -> None:
    """A mark or a number may be split anywhere."""
    assert counted(*cut(STREAM, cuts)) == EXPECTED


def test_byte_by_byte() -> None:
    """The smallest chunks there are."""
    assert counted(*(STREAM[i : i + 1] for i in range(len(STREAM)))) == EXPECTED


def test_a_json_answer() -> None:
    """Spaces do not matter, and the usage at the end wins over a tool input of the same name."""
    body = b'{"x":[{"usage":{"input_tokens":9}}], "usage" : { "input_tokens" : 4, "output_tokens": 2 } }'
    assert counted(body) == {"input_tokens": 4, "output_tokens": 2}


@pytest.mark.parametrize("wire_format", SHAPES)
@pytest.mark.parametrize("body", [b"", b"{}", b'{"usage":null}', b'"usage"'])
def test_nothing_seen_is_nothing_counted(body: bytes, wire_format: str) -> None:
    """No usage, no counts."""
    assert counted(body, wire_format=wire_format) == {}


# The wire formats, as their providers write them.

NAMES = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
TALK = 'the "usage":{"input_tokens":999,"prompt_tokens":999},"usageMetadata":{"promptTokenCount":999}'
TOOL = {"name": "report", "parameters": {"properties": {"usage": {"input_tokens": {"type": "integer"}}}}}

ANTHROPIC_START = {
    "input_tokens": 25,
    "cache_creation_input_tokens": 700,
    "cache_read_input_tokens": 3,
    "cache_creation": {"ephemeral_5m_input_tokens": 600, "ephemeral_1h_input_tokens": 100},
    "output_tokens": 1,
    "service_tier": "standard",
    "inference_geo": "not_available",
}
ANTHROPIC_END = {
    "input_tokens": 30,
    "cache_creation_input_tokens": 700,
    "cache_read_input_tokens": 8,
    "output_tokens": 15,
    "server_tool_use": {"web_search_requests": 1},
}
ANTHROPIC_COUNTS = {
    "input_tokens": 30,
    "cache_creation_input_tokens": 700,
    "cache_read_input_tokens": 8,
    "ephemeral_1h_input_tokens": 100,
    "output_tokens": 15,
}
CHAT = {
    "prompt_tokens": 1486,
    "completion_tokens": 651,
    "total_tokens": 2137,
    "prompt_tokens_details": {"cached_tokens": 1408, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 512, "accepted_prediction_tokens": 0},
}
CHAT_COUNTS = {"input_tokens": 78, "cache_read_input_tokens": 1408, "output_tokens": 651}
RESPONSES = {
    "input_tokens": 5000,
    "input_tokens_details": {
        "cache_write_tokens": 3207,
        "cached_tokens": 1024,
        "cache_write_tokens_details": {"ttl_12h_tokens": 207, "ttl_30m_tokens": 3000},
    },
    "output_tokens": 48,
    "output_tokens_details": {"reasoning_tokens": 7},
    "total_tokens": 5048,
}
RESPONSES_COUNTS = {
    "input_tokens": 769,
    "cache_read_input_tokens": 1024,
    "cache_creation_input_tokens": 3207,
    "ephemeral_1h_input_tokens": 207,
    "output_tokens": 48,
}
GEMINI = {
    "promptTokenCount": 900,
    "candidatesTokenCount": 12,
    "totalTokenCount": 1451,
    "cachedContentTokenCount": 800,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 900}],
    "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 800}],
    "toolUsePromptTokenCount": 60,
    "thoughtsTokenCount": 479,
}
GEMINI_COUNTS = {"input_tokens": 160, "cache_read_input_tokens": 800, "output_tokens": 491}
COHERE = {
    "billed_units": {"input_tokens": 5, "output_tokens": 418},
    "tokens": {"input_tokens": 71, "output_tokens": 420},
    "cached_tokens": 64,
}
COHERE_COUNTS = {"input_tokens": 5, "output_tokens": 418}


def chunk(delta: str, **others: object) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"delta": {"content": delta}}], **others}


def response(kind: str, **others: object) -> dict[str, Any]:
    answer = {"object": "response", "output": [], "tools": [TOOL], **others, "user": None}
    return {"type": f"response.{kind}", "response": {**answer, "metadata": {"usage": "mine"}}}


def candidates(text: str, **metadata: object) -> dict[str, Any]:
    call = {"functionCall": {"name": "report", "args": {"usageMetadata": {"promptTokenCount": 999}}}}
    return {"candidates": [{"content": {"parts": [{"text": text}, call]}}], "usageMetadata": metadata}


def pretty(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()


ANSWERS = {
    "anthropic stream": (
        "anthropic",
        sse({"type": "message_start", "message": {"content": [], "usage": ANTHROPIC_START}})
        + sse({"type": "content_block_delta", "delta": {"text": TALK}}, name="content_block_delta")
        + sse({"type": "message_delta", "usage": {**ANTHROPIC_END, "output_tokens": 9}})
        + sse({"type": "message_delta", "usage": ANTHROPIC_END, "context_management": {"applied_edits": []}})
        + sse({"type": "message_stop"}),
        ANTHROPIC_COUNTS,
    ),
    "anthropic answer": (
        "anthropic",
        pretty({"content": [{"text": TALK}, {"input": {"usage": {"output_tokens": 999}}}]})[:-2]
        + b', "usage": '
        + pretty(ANTHROPIC_START)
        + b"}",
        {**ANTHROPIC_COUNTS, "input_tokens": 25, "cache_read_input_tokens": 3, "output_tokens": 1},
    ),
    "chat stream": (
        "openai",
        sse(chunk("the", usage=None), chunk(TALK, usage=None), {"choices": [], "usage": CHAT}, "[DONE]"),
        CHAT_COUNTS,
    ),
    "chat answer": ("openai", pretty({"choices": [{"text": TALK}], "usage": CHAT, "id": "x"}), CHAT_COUNTS),
    "responses stream": (
        "openai",
        sse(response("created", usage=None), {"type": "response.output_text.delta", "delta": TALK})
        + sse(response("completed", usage=RESPONSES)),
        RESPONSES_COUNTS,
    ),
    "responses answer": (
        "openai",
        pretty(response("completed", usage=RESPONSES)["response"]),
        RESPONSES_COUNTS,
    ),
    "embeddings": (
        "openai",
        b'{"data":[],"usage":{"prompt_tokens":8,"total_tokens":8}}',
        {"input_tokens": 8, "output_tokens": 0},
    ),
    "gemini stream": (
        "genai",
        sse(
            candidates("the", promptTokenCount=900, totalTokenCount=900),
            candidates(TALK, promptTokenCount=900, candidatesTokenCount=5, totalTokenCount=905),
            candidates("", **GEMINI),
        ),
        GEMINI_COUNTS,
    ),
    "gemini answer": (
        "genai",
        pretty([candidates("the", promptTokenCount=1), candidates(TALK, **GEMINI)]),
        GEMINI_COUNTS,
    ),
    "cohere stream": (
        "cohere",
        sse({"type": "content-delta", "delta": {"message": {"content": {"text": TALK}}}})
        + sse(
            {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": COHERE}},
            name="message-end",
        ),
        COHERE_COUNTS,
    ),
    "cohere answer": (
        "cohere",
        pretty({"message": {"content": [{"text": TALK}]}, "usage": COHERE}),
        COHERE_COUNTS,
    ),
    "cohere v1 answer": (
        "cohere",
        b'{"text":"","meta":{"api_version":{"version":"1"},"billed_units":{"input_tokens":5.0,'
        b'"output_tokens":418.0},"tokens":{"input_tokens":71.0,"output_tokens":420.0}}}',
        COHERE_COUNTS,
    ),
}
BY_ANSWER = pytest.mark.parametrize(("wire_format", "data", "expected"), ANSWERS.values(), ids=ANSWERS)


@BY_ANSWER
def test_a_format_s_answer_is_counted(wire_format: str, data: bytes, expected: dict[str, int]) -> None:
    """In one chunk, in events, and byte by byte, with and without a byte before."""
    assert counted(data, wire_format=wire_format) == expected
    assert fed(wire_format, data.splitlines(keepends=True)).counts() == expected
    single = [data[i : i + 1] for i in range(len(data))]
    assert fed(wire_format, single).counts() == expected
    assert fed(wire_format, [b"", b"\n", b" ", *single]).counts() == expected


@BY_ANSWER
@given(cuts=st.lists(st.integers(1, 2500), max_size=12))
@settings(deadline=None)
def test_any_chunking_of_a_format_gives_the_same_counts(
    wire_format: str, data: bytes, expected: dict[str, int], cuts: list[int]
) -> None:
    """A mark, an object or a number may be split anywhere, in every format."""
    assert fed(wire_format, cut(data, cuts)).counts() == expected


@BY_ANSWER
def test_an_answer_cut_short_counts_only_what_was_said(
    wire_format: str, data: bytes, expected: dict[str, int]
) -> None:
    """Wherever it ends, its input and its output are numbers that were there in full, or the sum of two."""
    said = {0, *map(int, re.findall(r"\d+", data.decode()))}
    said |= {a + b for a in said for b in said}
    seen = Usage(SHAPES[wire_format])
    for i in range(len(data)):
        seen.feed(data[i : i + 1])
        found = seen.counts()
        if wire_format in ("openai", "genai"):
            assert sum(found.get(name, 0) for name in NAMES if name != "output_tokens") in said
        else:
            assert said.issuperset(found.values())
        assert found.get("output_tokens", 0) in said
    assert found == expected


# Against an oracle that parses every event.

COUNT = st.one_of(st.none(), st.integers(0, 10**15 - 1))
TEXTS = st.lists(
    st.one_of(st.text(max_size=30), st.sampled_from([TALK, '"usage":', "\\", '{"usage', "}}", "\n\ndata: "])),
    max_size=4,
)
ITERATION = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "fallback_message", "compaction", "advisor_message"])},
    optional={**dict.fromkeys(NAMES, st.integers(0, 10**6)), "cache_creation": st.just({"x": 1})},
)
ANTHROPIC_USAGE = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(NAMES, COUNT),
        "cache_creation": st.fixed_dictionaries({"ephemeral_1h_input_tokens": st.integers(0, 99)}),
        "iterations": st.lists(ITERATION, max_size=3),
        "service_tier": st.sampled_from(["standard", "usage"]),
    },
).filter(lambda each: any(isinstance(each.get(name), int) for name in NAMES))


def anthropic_bill(usages: list[dict[str, Any]]) -> dict[str, int]:
    """What Anthropic's pages say is to be paid for a stream whose events had these usages."""
    said: dict[str, int] = {}
    apart: dict[str, int] = {}
    for each in usages:
        flat = {**each, **each.get("cache_creation", {})}
        names = (*NAMES, "ephemeral_1h_input_tokens")
        said |= {name: flat[name] for name in names if flat.get(name) is not None}
        left_out = [i for i in each.get("iterations", []) if i["type"] in ("compaction", "advisor_message")]
        apart |= {
            name: sum(i.get(name, 0) for i in left_out) for name in NAMES if any(name in i for i in left_out)
        }
    return {name: said.get(name, 0) + apart.get(name, 0) for name in said | apart}


@given(
    ANTHROPIC_USAGE,
    TEXTS,
    st.lists(ANTHROPIC_USAGE, max_size=3),
    st.booleans(),
    st.lists(st.integers(1, 3000), max_size=6),
)
@settings(deadline=None)
def test_any_stream_of_anthropic_s_is_billed_as_its_pages_say(
    first: dict[str, Any], texts: list[str], later: list[dict[str, Any]], spaced: bool, cuts: list[int]
) -> None:
    """The last value of each count, and what is listed apart besides; texts change nothing."""
    events: list[object] = [{"message": {"content": [], "usage": first}}]
    events += [{"delta": {"text": text}} for text in texts]
    events += [{"delta": {}, "usage": each} for each in later]
    separators = (", ", ": ") if spaced else (",", ":")
    data = b"".join(
        b"data: " + json.dumps(event, separators=separators).encode() + b"\n\n" for event in events
    )
    assert fed("anthropic", cut(data, cuts)).counts() == anthropic_bill([first, *later[-1:]])


def test_iterations_that_the_totals_leave_out_are_counted() -> None:
    """Compaction and advisors are billed besides; other iterations are in the totals already."""
    message = {"type": "message", "input_tokens": 23000, "output_tokens": 1000, "cache_read_input_tokens": 4}
    compaction = {
        "type": "compaction",
        "input_tokens": 180000,
        "output_tokens": 3500,
        "cache_creation_input_tokens": 9,
        "cache_creation": {"ephemeral_1h_input_tokens": 9, "ephemeral_5m_input_tokens": 0},
    }
    advisor = {
        "type": "advisor_message",
        "model": "claude-opus-5",
        "input_tokens": 823,
        "output_tokens": 1612,
    }
    totals = {"input_tokens": 23000, "output_tokens": 1000, "cache_read_input_tokens": 4}
    expected = {
        "input_tokens": 23000 + 180000 + 823,
        "output_tokens": 1000 + 3500 + 1612,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 9,
        "ephemeral_1h_input_tokens": 9,
    }
    for order in itertools.permutations([compaction, advisor, message]):
        for around in ({"iterations": order, **totals}, {**totals, "iterations": order}):
            assert counted(pretty({"usage": around})) == expected
            assert (
                counted(sse({"usage": {"input_tokens": 9, "output_tokens": 9}}, {"usage": around}))
                == expected
            )
    none = {**totals, "iterations": [message]}
    assert counted(pretty({"usage": none})) == totals


def test_a_stream_cut_inside_of_a_usage_counts_what_is_there() -> None:
    """Whole numbers of the last object count, over those of earlier ones; half a number does not."""
    begun = b'data: {"message":{"usage":{"input_tokens":25,"cache_read_input_tokens":3,"output_tok'
    assert counted(begun) == {"input_tokens": 25, "cache_read_input_tokens": 3}
    assert counted(begun[:-30]) == {"input_tokens": 25}
    assert counted(STREAM[:-8]) == {**EXPECTED, "output_tokens": 1}
    assert counted(STREAM, begun) == {**EXPECTED}
    assert counted(STREAM, begun, b'ens":99,') == {**EXPECTED, "output_tokens": 99}


def test_an_object_that_never_ends_hides_no_other() -> None:
    """The next usage ends it: what it had counts, and what comes counts by itself."""
    parts = [
        b'data: {"usage":{"input_tokens":5,{{{{ ',
        b'{"usage":{"output_tokens":7}',
        b'{"usage":{"cache_read_input_tokens":1}}',
    ]
    expected = {"input_tokens": 5, "cache_read_input_tokens": 1}
    assert counted(*parts) == counted(b"".join(parts)) == expected
    seen = Usage(SHAPES["anthropic"])
    calls = told(seen)
    for part in parts:
        seen.feed(part)
    assert calls == [{"input_tokens": 5, "output_tokens": 7}, expected]


# What a model or a client can put into an answer.


def test_the_input_of_a_tool_adds_nothing_to_a_whole_answer() -> None:
    """In a whole answer only the last usage counts, so that nobody's budget is spent by a tool's input."""
    fake = {
        "usage": {
            "cache_read_input_tokens": 10**14,
            "iterations": [{"type": "compaction", "output_tokens": 10**14}],
        }
    }
    body = {
        "content": [{"type": "tool_use", "input": fake}],
        "usage": {"input_tokens": 4, "output_tokens": 2},
    }
    for data in (pretty(body), b" \r\n" + json.dumps(body).encode()):
        for size in (1, 7, len(data)):
            parts = (data[i : i + size] for i in range(0, len(data), size))
            assert fed("anthropic", parts).counts() == {"input_tokens": 4, "output_tokens": 2}


@pytest.mark.parametrize(
    "after", ['"x"', "null", "7", "[1]", "{}", '{"type":"object"}', '{"prompt_tokens":"9"}']
)
def test_a_mark_without_counts_hides_none(after: str) -> None:
    """A key of the same name in somebody's metadata does not take the place of the counts."""
    data = f'{{"usage":{{"prompt_tokens":5,"completion_tokens":6}},"metadata":{{"usage":{after}}}}}'.encode()
    expected = {"input_tokens": 5, "output_tokens": 6}
    for size in (1, 2, 3, 5, len(data)):
        parts = (data[i : i + size] for i in range(0, len(data), size))
        assert fed("openai", parts).counts() == expected


def test_counts_count_in_the_usage_only() -> None:
    """The same names elsewhere, also behind a null, are no usage."""
    elsewhere = (
        b'{"prompt_tokens":1,"usage":null,"x":{"prompt_tokens":5},"usage" : "y","z":{"prompt_tokens":6}}'
    )
    assert counted(elsewhere, wire_format="openai") == {}
    assert counted(b'{"input_tokens":1,"usage":{"output_tokens":2},"input_tokens":9}') == {"output_tokens": 2}


@pytest.mark.parametrize("prefix", [b"", b"data: "])
def test_a_usage_in_a_usage_begins_another(prefix: bytes) -> None:
    """There is none; but what such a thing counts must not depend on its chunking."""
    data = prefix + b'{"usage":{"output_tokens":2,"x":{"usage":{"input_tokens":7}},"output_tokens":3}}'
    expected = {"output_tokens": 2, "input_tokens": 7} if prefix else {"input_tokens": 7}
    for size in (1, 3, len(data)):
        assert fed("anthropic", (data[i : i + size] for i in range(0, len(data), size))).counts() == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"prompt_tokens": 5, "cached_tokens": 9}, {"input_tokens": 0, "cache_read_input_tokens": 5}),
        (
            {"prompt_tokens": 5, "cached_tokens": 3, "cache_write_tokens": 9},
            {"input_tokens": 0, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2},
        ),
        (
            {"prompt_tokens": 5, "cache_write_tokens": 2, "ttl_12h_tokens": 9},
            {"input_tokens": 3, "cache_creation_input_tokens": 2, "ephemeral_1h_input_tokens": 2},
        ),
        ({"prompt_tokens": 5, "ttl_12h_tokens": 9}, {"input_tokens": 5, "ephemeral_1h_input_tokens": 0}),
    ],
)
def test_parts_are_never_more_than_the_whole(found: dict[str, int], expected: dict[str, int]) -> None:
    """Contradictory counts leave no negative number, and no input is counted twice."""
    assert counted(pretty({"usage": found}), wire_format="openai") == {**expected, "output_tokens": 0}


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("7", 7),
        ("7.0", 7),
        ("999999999999999", 10**15 - 1),
        ("9999999999999999999999", 10**15 - 1),
        ("-7", None),
        ("7e3", None),
        ('"7"', None),
        ("null", None),
    ],
)
def test_what_counts_as_a_number(number: str, expected: int | None) -> None:
    """Whole numbers that are not negative, of which 15 digits count."""
    found = counted(f'{{"usage":{{"output_tokens":1,"input_tokens":{number}}}}}'.encode())
    assert found == {"output_tokens": 1} | ({} if expected is None else {"input_tokens": expected})


# Being told.


def told(seen: Usage) -> list[dict[str, int]]:
    """A list that gets the counts each time `seen` tells of them."""
    calls: list[dict[str, int]] = []
    seen.on_sight = lambda: calls.append(seen.counts())
    return calls


def test_new_counts_are_told_once_and_are_there() -> None:
    """The hook is called once after a chunk that changed the counts, and not after others."""
    seen = Usage(SHAPES["anthropic"])
    calls = told(seen)
    for event in STREAM.split(b"\n\n"):
        seen.feed(event + b"\n\n")
    assert calls == [{**EXPECTED, "output_tokens": 1}, EXPECTED]
    seen.feed(STREAM)
    assert len(calls) == 3


def test_an_object_in_pieces_is_told_when_it_is_whole() -> None:
    """A mark whose numbers come in a later chunk is told of with that one."""
    seen = Usage(SHAPES["anthropic"])
    calls = told(seen)
    for byte in STREAM:
        seen.feed(bytes([byte]))
    assert calls == [{**EXPECTED, "output_tokens": 1}, EXPECTED]


def test_null_and_talk_are_not_told() -> None:
    """The null of OpenAI's chunks, an object without counts and an escaped word are no news."""
    seen = Usage(SHAPES["openai"])
    calls = told(seen)
    for event in (chunk("a", usage=None), chunk(TALK), {"usage": {}}, {"metadata": {"usage": "x"}}):
        seen.feed(sse(event))
    assert calls == []
    seen.feed(sse({"usage": CHAT}))
    assert calls == [CHAT_COUNTS]


def calls_of_one_feed(seen: Usage, data: bytes) -> list[str]:
    """The names of all functions that one `feed` calls, its own first."""
    names: list[str] = []

    def note(frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            names.append(frame.f_code.co_name)
        elif event == "c_call":
            names.append(arg.__name__)

    # A collection would call whoever waits for one.
    gc.disable()
    sys.setprofile(note)
    try:
        seen.feed(data)
    finally:
        sys.setprofile(None)
        gc.enable()
    return names[:-1]


@pytest.mark.parametrize("wire_format", [name for name, each in SHAPES.items() if each.unwrap is None])
@pytest.mark.parametrize("data", [sse({"delta": {"text": TALK}}), b"half an event", b"\n", b""])
def test_a_chunk_without_a_mark_costs_one_search(data: bytes, wire_format: str) -> None:
    """Nothing is called but the search and the look at the chunk's end, hook or not."""
    seen = Usage(SHAPES[wire_format])
    told(seen)
    seen.feed(STREAM)
    assert calls_of_one_feed(seen, data) == ["feed", "find", "endswith"]


# Hostile upstreams.

MARK = {name: shape.mark for name, shape in SHAPES.items()}
COUNTED = {
    "anthropic": "output_tokens",
    "openai": "prompt_tokens",
    "genai": "promptTokenCount",
    "cohere": "input_tokens",
    "bedrock": "inputTokens",
}
HOSTILE = {
    "marks": b"%(mark)s",
    "marks and colons": b"%(mark)s:",
    "nested": b"%(mark)s:{",
    "nested with counts": b'%(mark)s:{"%(count)s":1,',
    "whole objects": b'%(mark)s:{"%(count)s":1}',
    "empty objects": b"%(mark)s:{}",
    "blanks": b"%(mark)s" + b" " * 50,
    "brackets": b"%(mark)s:{{{{{{}}}}}}",
    "open objects": b"%(mark)s:{" + b"{}" * 300,
    "iterations": b'%(mark)s:{"iterations":[' + b'{"type":"compaction","%(count)s":1},' * 20,
    "one endless object": b'"%(count)s":1,"x":{"a":[{}]},',
    "digits": b"1234567890",
    "endless blanks": b" ",
}


HEADS = {"one endless object": b":{", "digits": b':{"output_tokens":', "endless blanks": b":"}


def held(seen: Usage) -> int:
    """Bytes that are kept of what passed."""
    return sum(map(len, seen._seen)) + len(seen._carry)


@pytest.mark.timeout(110)
@pytest.mark.parametrize("wire_format", SHAPES)
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_answer_is_held_within_bounds(what: str, wire_format: str) -> None:
    """Whatever upstream repeats, in whatever chunks, little is kept, and a megabyte takes no minute."""
    piece = HOSTILE[what] % {b"mark": MARK[wire_format], b"count": COUNTED[wire_format].encode()}
    head = MARK[wire_format] + HEADS.get(what, b"")
    data = head + piece * (2**20 // len(piece))
    for size in (64, 4096, 2**16, 2**20):
        seen = Usage(SHAPES[wire_format])
        for at in range(0, len(data), size):
            seen.feed(data[at : at + size])
            assert held(seen) <= 3 * usage._WINDOW + 2**8
        assert sum(seen.counts().values()) <= 10**15


def test_the_time_for_hostile_chunks_grows_with_their_length_only() -> None:
    """Eight times as many marks in one chunk take about eight times as long, where a square would be 64."""

    def seconds(data: bytes) -> float:
        best = float("inf")
        for _ in range(5):
            seen = Usage(SHAPES["anthropic"])
            # Of this thread's own time, so that others who want the processor do not count.
            begin = time.thread_time()
            seen.feed(data)
            best = min(best, time.thread_time() - begin)
        return best

    for what in ("marks", "nested", "nested with counts", "open objects"):
        piece = HOSTILE[what] % {b"mark": MARK["anthropic"], b"count": b"output_tokens"}
        short = piece * (2**16 // len(piece))
        assert seconds(short * 8) < 32 * seconds(short) + 0.01


@pytest.mark.parametrize("wire_format", SHAPES)
def test_an_object_beyond_the_window_counts_what_is_in_it(wire_format: str) -> None:
    """Counts that stand at the beginning of an object without end are counted, and what follows is not."""
    name = COUNTED[wire_format].encode()
    data = MARK[wire_format] + b':{"%b":5,"x":"' % name + b"y" * 10**5 + b'","%b":7}' % name
    for size in (1000, len(data)):
        parts = (data[i : i + size] for i in range(0, len(data), size))
        assert max(fed(wire_format, parts).counts().values()) == 5
    seen = fed(wire_format, [b"data: " + data + MARK[wire_format] + b":{}\n"])
    assert max(seen.counts().values()) == 5
    assert held(seen) <= usage._WINDOW


PIECES = [
    *(
        b'"usage":{',
        b'"usage" : {',
        b'"usage"',
        b'"output_tokens":9',
        b'"input_tokens" : 17',
        b'"input_tokens"',
    ),
    *(
        b'"iterations":[{"type":"compaction",',
        b"{",
        b"}",
        b"}}",
        b"]",
        b":",
        b",",
        b" ",
        b'"',
        b"\n",
        b"1",
        b"null",
    ),
    *(b"x" * 40, b" " * 40),
]


@given(
    st.lists(st.sampled_from(PIECES), max_size=40), st.lists(st.integers(1, 300), max_size=8), st.booleans()
)
@settings(max_examples=400, deadline=None)
def test_garbage_is_counted_alike_in_any_chunking(pieces: list[bytes], cuts: list[int], single: bool) -> None:
    """Also what is no JSON at all gives the same counts, whole or cut, at the window's end too."""
    data = b"".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(usage, "_WINDOW", 100)
        assert fed("anthropic", cut(data, range(len(data)) if single else cuts)).counts() == counted(data)
