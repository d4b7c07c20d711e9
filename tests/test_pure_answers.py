"""Pure rooms on an answer's way down: what holds for everything that an upstream may send, in any pieces.

What must hold is said in `fuzz.stream` and `fuzz.response`; here it is asked of answers and streams as they
are meant to be, and of such with a few changes.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from random import Random
from urllib.parse import unquote_to_bytes

from fuzz import response, stream
from fuzz.mutate import mutated
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_pure_rooms import (
    FIELD_VALUES,
    HOP_BY_HOP,
    PASSING,
    WHO_SERVED,
    Fields,
    among,
    field_lists,
    nominated,
)

from proxy import inbound, results, sse
from proxy.formats import ANTHROPIC


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """`data` in pieces."""
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=6))
    return [data[start:end] for start, end in pairwise(sorted({0, *cuts, len(data)}))]


# Header fields.


@given(field_lists(), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
@example([(b"Connection", b"Content-Length, date"), (b"Date", b"x"), (b"Content-Length", b"7")], False, True)
def test_the_fields_that_come_down(fields: Fields, streams: bool, sized: bool) -> None:
    """All but the hop-by-hop ones, nginx's and who served; what is known about them is true."""
    head = inbound.Inbound(fields).head(stream=streams, sized=sized)
    named = nominated(fields)
    expected = [
        b"%b: %b" % (name, value)
        for name, value in fields
        if not among(name, HOP_BY_HOP)
        and name.lower() not in named
        and not among(name, WHO_SERVED)
        and not name.lower().startswith(b"x-accel-")
        and (sized or name.lower() != b"content-length")
    ]
    assert head.lines == expected + [b"X-Accel-Buffering: no"] * streams
    left = {line.partition(b":")[0].lower() for line in expected}
    assert (head.has_length, head.has_date) == (b"content-length" in left, b"date" in left)


ATTEMPTS = st.lists(st.tuples(st.text(st.characters(), max_size=300), st.sampled_from(["200", "reset"])))


@given(st.text(st.characters(), max_size=300), ATTEMPTS)
@settings(max_examples=100, deadline=None)
@example("%41", [("a,b:c%2C", "200")])
def test_who_served_is_said_in_visible_letters(model: str, attempts: list[tuple[str, str]]) -> None:
    """Whatever a client calls its model, its name stands in one line, and can be read back."""

    def read(written: bytes) -> str:
        return unquote_to_bytes(written).decode("utf-8", "surrogatepass")

    said = dict(line.split(b": ", 1) for line in inbound.served_by("p", model, "m", "0", attempts))
    assert all(re.fullmatch(rb"[!-~]+", value) for value in said.values())
    assert read(said.get(b"x-bifrost-original-model", b"")) == model[:200]
    tried = [each.rpartition(b":") for each in said.get(b"x-bifrost-attempts", b"").split(b",") if each]
    assert [(read(name), outcome.decode()) for name, _, outcome in tried] == [
        (name[:200], outcome) for name, outcome in attempts
    ]


# Bodies.


@given(st.lists(st.sampled_from(['{"error"', ":", '"error"', "}", '"', "[", "1"]), max_size=8).map("".join))
@settings(max_examples=200, deadline=None)
@example('{"error":"type"}')
@example('["type","error"]')
@example("[" * 3000)
def test_whether_a_body_is_an_error_is_what_a_parser_says(body: str) -> None:
    """And nothing that it meets is raised."""
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        tree = None
    is_error = isinstance(tree, dict) and "error" in tree
    assert ANTHROPIC.is_error_body(body.encode()) is is_error


WORDS = [
    b'"results_url":',
    b"results_url",
    b'"x":"',
    b'"',
    b"\\",
    b"null,",
    b" : ",
    b"?x",
    b"%22",
    b"b/results",
]
WORDS += [b"http://h", b"https:\\/\\/h:1", b"/v1/messages/batches/", b"\\/v1\\/messages\\/batches\\/"]


@given(st.lists(st.sampled_from(WORDS) | st.binary(min_size=1, max_size=4), max_size=12).map(b"".join))
@settings(max_examples=300, deadline=None)
@example(b'"results_url" : "http://h/v1/messages/batches/b","results_url":"\\/v1\\/messages\\/batches\\/"')
@example(b'"no_results_url":"http://h/v1/messages/batches/b"')
def test_only_what_stands_in_front_in_a_results_url_changes(answer: bytes) -> None:
    """Between its opening quote and the path; every other byte stays, and a second time changes nothing."""
    base = b"https://proxy.example/anthropic"
    after = results.localized(answer, base)
    assert results.localized(after, base) == after
    path = rb"(\\?/v1\\?/messages\\?/batches\\?/)"
    expected = re.split(path, answer)
    for at in range(0, len(expected) - 1, 2):
        front = expected[at][: expected[at].rfind(b'"') + 1]
        if re.search(rb'"results_url"\s*:\s*"\Z', front):
            expected[at] = front + base
    assert after == b"".join(expected)


# Streams.

LINES = [b"data: x", b": c", b"", b"", b"event: error", b"event: message_stop", b"data: [DONE]", b"\xff"]
LINES += [b"data: " + b"y" * 600]
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(st.sampled_from(LINES), ENDS), max_size=14), st.data())
@settings(max_examples=300, deadline=None)
def test_a_stream_is_read_alike_in_any_pieces(lines: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    """With any line ends, mixed; behind every piece the answer is a line reader's."""
    text = b"".join(line + end for line, end in lines)
    between = stream.betweens(text)
    stream.check_boundary(text, data.draw(pieces(text)), between)
    stream.check_first_event(text, between)


@given(st.integers(0, 8), st.integers(480, 520), st.data())
@settings(max_examples=200, deadline=None)
@example(0, sse.TAIL - len("data: [DONE]\n\n"), None)
def test_words_within_a_line_end_no_stream(before: int, behind: int, data: st.DataObject | None) -> None:
    """Wherever in the line the bytes begin that are kept."""
    text = b"data: " + b"x" * before + b"data: [DONE]" + b"y" * behind + b"\n\n"
    boundary = sse.Boundary()
    for piece in data.draw(pieces(text)) if data else [text[:10], text[10:]]:
        boundary.feed(piece)
        assert not boundary.finished


COUNTS = st.dictionaries(
    st.sampled_from(sorted(stream.COUNTED)), st.integers(0, 10**9), min_size=1, max_size=4
)


@given(st.lists(COUNTS, min_size=1, max_size=4), st.integers(0, 1100), st.data())
@settings(max_examples=200, deadline=None)
def test_tokens_are_counted_alike_in_any_pieces(
    counts: list[dict[str, int]], gap: int, data: st.DataObject
) -> None:
    """The first usage, and the last one over it, wherever the bytes are cut."""
    text = b"".join(b'data: {"usage":%b}%b\n' % (json.dumps(count).encode(), b"-" * gap) for count in counts)
    expected = {**counts[0], **counts[-1]} if counts else {}
    assert stream.counted([text]) == expected
    assert stream.counted(data.draw(pieces(text))) == expected


ODDS = [*stream.WORDS, b'"usage":null,', b'"usage":{"output_tokens":', b"1" * 20, b"-" * 400]


@given(st.lists(st.sampled_from(ODDS) | st.binary(max_size=3), max_size=20).map(b"".join), st.data())
@settings(max_examples=300, deadline=None)
@example(b'"usage":null,"usage":{"input_tokens":7}},"usage":null', None)
@example(b'"usage":{"input_tokens":12345678901234567890}}', None)
def test_what_is_hardly_usage_is_counted_alike_too(text: bytes, data: st.DataObject | None) -> None:
    """Nothing is ever raised, and the pieces make no difference."""
    counts = stream.counted([text])
    assert counts == stream.counted(data.draw(pieces(text)) if data else [text[:20], text[20:]])
    assert counts.keys() <= stream.COUNTED
    assert all(0 <= count < 10**15 for count in counts.values())


# Answers.


@st.composite
def chunks(draw: st.DrawFn, body: bytes) -> bytes:
    """`body` in chunks, some with extensions, and some with trailers behind them."""
    parts = [part for part in draw(pieces(body)) if part]
    extensions = st.sampled_from([b"", b"", b";a=b", b';a="b;c"'])
    lines = [b"%x%b\r\n%b\r\n" % (len(part), draw(extensions), part) for part in parts]
    return b"".join(lines) + draw(st.sampled_from([b"0\r\n\r\n", b"000;x\r\nA: b\r\n\r\n"]))


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer as RFC 9112 has it, interim ones in front of some."""
    interim = draw(
        st.lists(st.sampled_from([b"HTTP/1.1 100\r\n\r\n", b"HTTP/1.1 103 E\r\nLink: x\r\n\r\n"]), max_size=2)
    )
    fields = draw(st.lists(st.tuples(st.sampled_from(PASSING), FIELD_VALUES), min_size=1, max_size=4))
    body = draw(st.binary(max_size=20))
    framing = draw(st.sampled_from(["length", "chunks", "close"]))
    if framing == "length":
        fields.append((b"content-length", b"%d" % len(body)))
    elif framing == "chunks":
        fields.append((b"Transfer-Encoding", draw(st.sampled_from([b"chunked", b"Chunked"]))))
        body = draw(chunks(body))
    status = draw(st.sampled_from([200, 204, 304, 429, 500, 599]))
    line = b"HTTP/1.%d %d %b\r\n" % (
        draw(st.integers(0, 1)),
        status,
        draw(st.sampled_from([b"OK", b"", b"\xe9 x"])),
    )
    head = [*interim, line, *(b"%b: %b\r\n" % field for field in draw(st.permutations(fields)))]
    return b"".join(head) + b"\r\n" + (b"" if status in (204, 304) else body)


@given(answers(), st.sampled_from(["GET", "HEAD"]))
@settings(max_examples=200, deadline=None)
def test_every_good_answer_is_taken(answer: bytes, method: str) -> None:
    """In any pieces; and it leaves its connection as it found it."""
    assert not response.fed([answer], method).fault
    response.check_answer(answer, method, Random(0))


@given(answers(), st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\t\r\n\r\n2\r\nhi\r\n0\r\n\r\n", None)
def test_a_changed_answer_is_judged_as_a_strict_reader_judges_it(answer: bytes, seed: int | None) -> None:
    """Taken or refused, whole or cut, with a few changes to it."""
    response.check(answer if seed is None else mutated(answer, response.WORDS, Random(seed)))
