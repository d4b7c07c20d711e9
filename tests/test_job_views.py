"""How a job looks to whoever asks for it: any result can be had back, and none breaks what it stands in.

Not here: who may ask, and which status and fields go with it (`test_jobs`).
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy import body, jobviews
from proxy.formats import FORMATS
from proxy.job import Ending, Found, State

PENDING = sorted(operation for form in FORMATS.values() for operation in form.pending)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
"""What UTF-8 can say."""


def ended(
    body: bytes, *, status: int = 200, packed: bool = False, expires: float = 1_800_003_600.25
) -> Ending:
    return Ending(status >= 400, status, b"[]", body, packed, 1_800_000_000.125, expires)


def shown(about: Found, plain: bytes = b"", error: bytes = b"") -> bytes:
    """What ``/v1/async`` answers, as the scan of the result has it."""
    return jobviews.unified(about, plain, error, is_object=is_object(plain))


def is_object(plain: bytes) -> bool:
    walk = body.object_steps(plain)
    while True:
        try:
            next(walk)
        except StopIteration as done:
            return bool(done.value)


def found(state: State, ending: Ending | None = None) -> Found:
    return Found("job_1", "key a", "/anthropic/v1/messages", state, 1_799_999_999.9996, ending)


@given(st.binary(max_size=5000))
def test_a_packed_body_is_what_it_was(body: bytes) -> None:
    """Deflated or not."""
    assert jobviews.body(ended(body)) == body
    assert jobviews.body(ended(zlib.compress(body, 1), packed=True)) == body


def test_a_pending_poll_is_an_empty_answer_of_its_format() -> None:
    """With every member that the format requires, so that a typed client can read it."""
    message = json.loads(jobviews.pending("/anthropic/v1/messages", "job_1", "claude-2"))
    assert message == {
        "id": "job_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-2",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }
    completion = json.loads(jobviews.pending("/anthropic/v1/complete", "job_1", "claude-2"))
    assert (completion["type"], completion["completion"], completion["stop_reason"]) == (
        "completion",
        "",
        None,
    )
    counted = json.loads(jobviews.pending("/anthropic/v1/messages/count_tokens", "job_1", "claude-2"))
    assert counted == {"id": "job_1", "model": "claude-2", "input_tokens": 0}
    other = json.loads(jobviews.pending("/openai/v1/moderations", "job_1", "gpt"))
    assert other == {"id": "job_1", "model": "gpt"}


@given(st.sampled_from(PENDING), TEXT, TEXT)
def test_a_pending_poll_names_any_model(operation: str, id: str, model: str) -> None:
    """As the client spelt it."""
    shown = json.loads(jobviews.pending(operation, id, model))
    assert (shown["id"], shown["model"]) == (id, model)


def test_a_job_that_is_not_over_as_the_route_of_jobs_shows_it() -> None:
    """Who it is, how far, since when; nothing of an end."""
    for state in (State.PENDING, State.PROCESSING):
        assert json.loads(shown(found(state))) == {
            "id": "job_1",
            "status": state.value,
            "created_at": "2027-01-15T07:59:59.999Z",
        }


def test_a_job_that_is_over_as_the_route_of_jobs_shows_it() -> None:
    """With its times, upstream's status, and the result as it came."""
    plain = b'{ "a":1.0,"a" : 12345678901234567890123 , "b":"\\u00e9" }'
    document = shown(found(State.COMPLETED, ended(plain, status=201)), plain)
    assert plain in document
    assert json.loads(document) == {
        "id": "job_1",
        "status": "completed",
        "created_at": "2027-01-15T07:59:59.999Z",
        "completed_at": "2027-01-15T08:00:00.125Z",
        "expires_at": "2027-01-15T09:00:00.250Z",
        "status_code": 201,
        "result": json.loads(plain),
    }


def test_a_job_that_has_failed_as_the_route_of_jobs_shows_it() -> None:
    """Upstream's error is the error; where it is ours, what there is of an answer stands beside it."""
    document = json.loads(shown(found(State.FAILED, ended(b'{"e":1}', status=529)), b'{"e":1}'))
    assert (document["status"], document["status_code"], document["error"]) == ("failed", 529, {"e": 1})
    assert "result" not in document
    for part, expected in ((b'{"a": "b', {"text": '{"a": "b'}), (b'{"a":1}', {"text": '{"a":1}'})):
        cut = shown(found(State.FAILED, ended(part, status=502)), part, b'{"ours":1}')
        document = json.loads(cut)
        assert (document["error"], document["partial_result"]) == ({"ours": 1}, expected)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


@given(
    st.dictionaries(TEXT, JSON, max_size=4),
    st.sampled_from([None, 1]),
    st.sampled_from([b"", b" ", b"\r\n\t"]),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_a_result_that_is_an_object_is_put_in_byte_for_byte(
    value: dict[str, Any], indent: int | None, blank: bytes, ascii_only: bool
) -> None:
    """However it is spelt: spaces, escapes, the order of members."""
    plain = blank + json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode() + blank
    document = shown(found(State.COMPLETED, ended(plain)), plain)
    assert b'"result":' + plain + b"}" in document
    assert json.loads(document)["result"] == value


@given(st.binary(max_size=60))
@settings(max_examples=400, deadline=None)
@example(b"")
@example(b"NaN")
@example(b"[1]")
@example(b'{"a":NaN}')
@example(b"\xef\xbb\xbf{}")
@example(b'{"a":1}{"b":2}')
@example(b'{"a":1}}')
@example(b'},"status":"completed",{')
@example(b'{"a":"\\ud800"}')
@example(b'{"a":' * 5000 + b"1" + b"}" * 5000)
@example(b"\x00\xff")
@example(b"data: {}\n\n")
def test_a_result_of_any_bytes_can_be_had_back(plain: bytes) -> None:
    """What is no object cannot break the document that it stands in: it is text, or base64."""
    for state, member in ((State.COMPLETED, "result"), (State.FAILED, "error")):
        ending = ended(plain, status=200 if state is State.COMPLETED else 500)
        whole = shown(found(state, ending), plain)
        if is_object(plain):
            assert whole.endswith(f'"{member}":'.encode() + plain + b"}")
            if plain.count(b"{") > 900:
                # Python's own reader gives up.
                continue
        document = json.loads(whole)
        assert list(document) == [
            *("id", "status", "created_at", "completed_at", "expires_at", "status_code"),
            member,
        ]
        given_back = document[member]
        if is_object(plain):
            assert given_back == json.loads(plain)
        elif given_back.keys() == {"text"}:
            assert given_back["text"].encode() == plain
        else:
            assert base64.b64decode(given_back["base64"]) == plain


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State.PENDING, "cancelled"),
        (State.PROCESSING, "cancelled"),
        (State.COMPLETED, "completed"),
        (State.FAILED, "failed"),
    ],
)
def test_what_a_delete_answers(state: State, expected: str) -> None:
    """Whether it ended a job or forgot the result of one."""
    assert json.loads(jobviews.removed("job_1", state)) == {
        "id": "job_1",
        "deleted": True,
        "status": expected,
    }
    assert jobviews.is_over(state) == (expected != "cancelled")


@given(st.floats(0, 4_000_000_000))
@example(0.0)
@example(1_800_000_000.0)
@example(1_799_999_999.9999999)
def test_a_time_is_rfc_3339_to_the_millisecond(at: float) -> None:
    """In UTC, never later than it was."""
    shown = jobviews.instant(at)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", shown)
    read = datetime.fromisoformat(shown.replace("Z", "+00:00"))
    assert read.utcoffset() == UTC.utcoffset(None)
    assert -1e-6 <= at - read.timestamp() < 0.001 + 1e-6
