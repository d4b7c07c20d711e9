"""What a request asks of jobs, and what a job keeps of it and of its answer: values in, values out.

Not here: how a job looks (`test_job_views`).
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy import jobheads, routes
from proxy.errors import ProxyError
from proxy.formats import FORMATS, Place
from proxy.headers import Outgoing
from proxy.jobheads import Order
from proxy.routes import Kind, Route

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
"""What UTF-8 can say."""

BYTES = st.binary(max_size=30)

VALUES = BYTES.map(lambda data: re.sub(rb"[\x00\r\n]", b"~", data))

FIELDS = st.lists(st.tuples(st.binary(min_size=1, max_size=12), BYTES), max_size=6)

SUBMIT, ID = b"x-bf-async", b"x-bf-async-id"
TTL, WEBHOOK = b"x-bf-async-job-result-ttl", b"x-bf-async-webhook"


def route(method: str, path: bytes, *, anthropic: bool = True) -> Route:
    return routes.match(method, path, anthropic_version=anthropic)


MESSAGES = route("POST", b"/anthropic/v1/messages")
UNIFIED = route("POST", b"/v1/async/chat/completions")
OPEN = route("GET", b"/anthropic/v1/models")


def asked(way: Route, *fields: tuple[bytes, bytes]) -> Order | None:
    """What a request with these fields asks on this route."""
    return jobheads.read(way, Outgoing(fields))


def refused(way: Route, *fields: tuple[bytes, bytes]) -> str:
    """The message of a refusal."""
    with pytest.raises(ProxyError) as caught:
        asked(way, *fields)
    assert caught.value.status == 400
    return caught.value.message


# What is asked.


@pytest.mark.parametrize(
    ("way", "fields", "expected"),
    [
        (MESSAGES, [(SUBMIT, b"true")], Order("", None, "")),
        (MESSAGES, [(b"X-BF-Async", b"true")], Order("", None, "")),
        (MESSAGES, [(b"x_bf_async", b"true")], Order("", None, "")),
        (MESSAGES, [(SUBMIT, b"true"), (TTL, b"1")], Order("", 1, "")),
        (MESSAGES, [(SUBMIT, b"true"), (TTL, b"999999999")], Order("", 999_999_999, "")),
        (MESSAGES, [(SUBMIT, b"true"), (WEBHOOK, b"done")], Order("", None, "done")),
        (MESSAGES, [(SUBMIT, b"true"), (WEBHOOK, b"\xe9")], Order("", None, "é")),
        (MESSAGES, [(ID, b"job_1")], Order("job_1", None, "")),
        (MESSAGES, [(ID, b"!" * 200)], Order("!" * 200, None, "")),
        # Whoever polls with the whole request again, its submit included, polls.
        (MESSAGES, [(SUBMIT, b"true"), (ID, b"job_1"), (TTL, b"x")], Order("job_1", None, "")),
        # SDKs copy the fields of an answer into the next request.
        (MESSAGES, [(ID, b"job_1"), (b"x-bf-async-status", b"pending")], Order("job_1", None, "")),
        (UNIFIED, [], Order("", None, "")),
        (UNIFIED, [(SUBMIT, b"true"), (TTL, b"60")], Order("", 60, "")),
        (UNIFIED, [(TTL, b"60")], Order("", 60, "")),
        (UNIFIED, [(ID, b"job_1")], Order("job_1", None, "")),
        (route("GET", b"/v1/async/responses/job_2"), [], Order("job_2", None, "")),
        (route("DELETE", b"/v1/async/messages/count_tokens/job_3"), [], Order("job_3", None, "")),
        # What the path names counts, whatever the fields say.
        (route("GET", b"/v1/async/responses/job_2"), [(ID, b"job_1")], Order("job_2", None, "")),
        (route("GET", b"/v1/async/responses/job_2"), [(SUBMIT, b"no")], Order("job_2", None, "")),
        # What is no model route has no jobs, and is relayed whatever it asks for.
        (OPEN, [(SUBMIT, b"true")], None),
        (OPEN, [(SUBMIT, b"perhaps"), (TTL, b"x")], None),
    ],
)
def test_what_a_request_asks(way: Route, fields: list[tuple[bytes, bytes]], expected: Order | None) -> None:
    """A job, something about one, or nothing."""
    assert asked(way, *fields) == expected


@pytest.mark.parametrize("value", [b"True", b"TRUE", b"1", b"yes", b"", b"false", b"true, true", b" true"])
@pytest.mark.parametrize("way", [MESSAGES, UNIFIED], ids=["own", "unified"])
def test_only_true_submits(way: Route, value: bytes) -> None:
    """A client that believes that it has a job must have one; false is no way to say that it wants none."""
    assert "x-bf-async: true" in refused(way, (SUBMIT, value))


def test_a_repeated_field_is_no_true() -> None:
    """Repeats are one list (RFC 9110 section 5.3), and a list is not what is understood."""
    assert "x-bf-async: true" in refused(MESSAGES, (SUBMIT, b"true"), (b"X-Bf-Async", b"true"))
    assert "whole number" in refused(MESSAGES, (SUBMIT, b"true"), (TTL, b"5"), (TTL, b"5"))


@pytest.mark.parametrize("field", [(TTL, b"5"), (WEBHOOK, b"done"), (b"x-bf-async-status", b"pending")])
def test_a_setting_of_jobs_without_a_job_is_refused(field: tuple[bytes, bytes]) -> None:
    """Somebody has forgotten the field that submits."""
    assert "x-bf-async: true" in refused(MESSAGES, field)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0",
        b"-1",
        b"+5",
        b"05",
        b"5.0",
        b"1e3",
        b" 5",
        b"5s",
        b"1000000000",
        b"9" * 5000,
        b"\xb2",
        b"5,",
    ],
)
def test_a_time_that_cannot_be_read_is_refused(value: bytes) -> None:
    """Bifrost takes its default then; a result that is gone too early is worse than a 400."""
    assert "from 1 to 999999999" in refused(MESSAGES, (SUBMIT, b"true"), (TTL, value))


@pytest.mark.parametrize("value", [b"", b"a b", b"job_\xe9", b"a\tb", b"x" * 201, b"job_1, job_1 "])
def test_what_is_no_id_is_refused(value: bytes) -> None:
    """It is said to be none, and not that there is no such job."""
    assert "not the id of a job" in refused(MESSAGES, (ID, value))


def test_an_unknown_field_is_refused_by_its_name() -> None:
    """A typo would otherwise be a request that is not a job, or one that lasts too short."""
    assert "x-bf-async-ttl" in refused(MESSAGES, (SUBMIT, b"true"), (b"X-Bf-Async-TTL", b"5"))
    assert "x-bf-asynchronous" in refused(MESSAGES, (b"x-bf-asynchronous", b"true"))
    assert len(refused(MESSAGES, (b"x-bf-async-" + b"x" * 5000, b"true"))) < 200


@given(
    st.sampled_from([MESSAGES, UNIFIED, OPEN, route("GET", b"/v1/async/complete/job_1")]),
    st.lists(
        st.tuples(
            st.sampled_from([SUBMIT, ID, TTL, WEBHOOK, b"x-bf-async-status", b"X-BF-ASYNC", b"x-bf-async-x"]),
            st.sampled_from([b"true", b"", b"60", b"job_1"]) | VALUES,
        ),
        min_size=1,
        max_size=4,
    ),
)
@settings(max_examples=400, deadline=None)
def test_whatever_is_asked_is_understood_or_refused(way: Route, fields: list[tuple[bytes, bytes]]) -> None:
    """A job is made only of what says ``true``, or came to the routes of jobs."""
    try:
        found = asked(way, *fields)
    except ProxyError as error:
        if error.status != 400:
            raise
        return
    if found is None:
        assert not way.operation
    elif not found.id:
        said = [value for name, value in fields if name.lower() == SUBMIT]
        assert said == [b"true"] or (way.by_job_path and not said)
        assert found.ttl is None or 1 <= found.ttl <= 999_999_999


# What is kept.


@given(
    st.builds(
        lambda place, span, *parts: Route(Kind.MODEL, *parts, place=place, span=span),
        st.sampled_from(Place),
        st.tuples(st.integers(0, 99), st.integers(0, 99)),
        st.sampled_from(list(FORMATS)),
        BYTES,
        BYTES,
        TEXT,
        TEXT,
    ),
    FIELDS,
    TEXT,
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_a_request_is_kept_as_it_is(
    way: Route, fields: list[tuple[bytes, bytes]], holder: str, identity: bool
) -> None:
    """Any bytes in path and fields, in their order and number; what is kept is one line of JSON."""
    request = jobheads.Request(way, fields, holder, identity)
    kept = request.dumps()
    assert json.loads(kept)
    again = jobheads.Request.loads(kept)
    assert again.fields == fields
    assert (again.holder, again.identity) == (holder, identity)
    expected = way._replace(label=f"job {way.operation}")
    assert again.route == expected
    assert jobheads.Request.loads(again.dumps()) == again


def test_the_label_of_a_job_is_of_a_closed_set() -> None:
    """It is a label of metrics: which operation, and nothing that a client chooses."""
    path = b"/anthropic/v1/messages?beta=true&x=sk-test-in-a-query"
    request = jobheads.Request(route("POST", path), [], "", False)
    again = jobheads.Request.loads(request.dumps())
    assert again.route.label == "job /anthropic/v1/messages"
    assert again.route.path == b"/v1/messages?beta=true&x=sk-test-in-a-query"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | TEXT,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["wire_format", "prefix", "path", "operation", "fields", "holder", "identity"]
                )
                | TEXT,
                inner,
                max_size=8,
            )
        ),
        max_leaves=12,
    )
    | BYTES
)
@settings(max_examples=300, deadline=None)
@example({"wire_format": "anthropic", "prefix": "\u0100", "path": "", "operation": "", "fields": []})
@example({"wire_format": "a", "prefix": "", "path": "", "operation": "", "fields": [["a"]], "holder": ""})
@example(b"\xff")
@example(b"")
def test_what_another_version_kept_is_a_value_error(kept: Any) -> None:
    """Nothing else may come of it: a job that cannot be read has to end, and not the worker."""
    data = kept if isinstance(kept, bytes) else json.dumps(kept).encode()
    try:
        jobheads.Request.loads(data)
    except ValueError:
        return
    assert json.loads(data).keys() >= {"wire_format", "prefix", "path", "operation", "fields"}


@given(FIELDS)
def test_the_codings_of_a_kept_body(fields: list[tuple[bytes, bytes]]) -> None:
    """As one list, in whatever case the field's name came."""
    fields = [*fields, (b"Content-Encoding", b"gzip"), (b"content-encoding", b"br")]
    assert jobheads.Request(MESSAGES, fields, "", False).codings.endswith("gzip, br")
    assert jobheads.Request(MESSAGES, [], "", False).codings == ""


@given(
    BYTES,
    st.lists(BYTES, max_size=6),
    st.booleans(),
    TEXT,
    BYTES,
    st.integers(0, 2**40),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_an_answer_is_kept_as_it_is(
    reason: bytes, lines: list[bytes], has_date: bool, codings: str, error: bytes, size: int, is_object: bool
) -> None:
    """Any bytes in its reason and its field lines, in their order and number."""
    kept = jobheads.Answer(reason, lines, has_date, codings, error, size, is_object)
    assert jobheads.Answer.loads(kept.dumps()) == kept
    assert json.loads(kept.dumps())


NAMES = [
    *(b"Connection", b"Keep-Alive", b"Host", b"Content-Length", b"Expect", b"TE"),
    *(b"Authorization", b"X-Api-Key", b"x_api_key", b"Api-Key", b"x-goog-api-key"),
    *(b"X-Bf-Vk", b"x-bf-api-key", b"x-bf-async", b"x-bf-async-webhook", b"x-bf-cache-key"),
    *(b"Accept-Encoding", b"anthropic-version", b"anthropic-beta", b"Cookie", b"Content-Type", b"X-Own"),
]
KNOWN_VALUES = [
    *(b"", b"sk-test-1", b"Bearer sk-bf-sk-test", b"Basic " + base64.b64encode(b"x:sk-bf-sk-test")),
    *(b"a, b", b"x-own, X-Api-Key", b"keep-alive", b"\x80\xff"),
]


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(KNOWN_VALUES) | VALUES), max_size=10),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_a_job_sends_the_fields_that_its_request_would_have_sent(
    fields: list[tuple[bytes, bytes]], shows_own: bool, identity: bool
) -> None:
    """And keeps none of the others: no virtual key, and no credential that its plan does not send."""
    came = Outgoing(fields)
    kept = came.kept(credentials=shows_own)
    again = Outgoing(jobheads.Request.loads(jobheads.Request(MESSAGES, kept, "", False).dumps()).fields)

    def head(outgoing: Outgoing) -> bytes:
        return outgoing.head(
            host=b"h", own=None, keep_credentials=shows_own, identity=identity, length=7, chunked=False
        )

    assert head(again) == head(came)
    if b"sk-bf-" not in (came.key_name or b""):
        assert again.key_name == came.key_name
    assert not again.virtual_keys
    assert not again.job_fields
    assert b"sk-bf-" not in b"".join(map(b"".join, kept))
    if not shows_own:
        assert not again.has_credential
