"""Pure rooms on a request's way up: what holds for everything that may come, thought of or not.

The scan and the splice of a body are in `test_body_scan`, `test_body_runs` and `test_body_splice`, documents
of the config in `test_config`, the way down in `test_pure_answers`.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy import coding, config, headers, plan, routes, sse, values
from proxy.body import scan, splice
from proxy.connection import Origin
from proxy.errors import ProxyError, Source
from proxy.formats import ANTHROPIC, FORMATS
from proxy.routes import Kind

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
"""What UTF-8 can say."""


def attempt(call: Callable[..., Any], *values: Any, **named: Any) -> Any:
    """What `call` returns, or the error with which it refuses."""
    try:
        return call(*values, **named)
    except (ProxyError, config.ConfigError, ValueError) as error:
        return error


# Header fields.

# RFC 9110 section 7.6.1 and, though no list there has them, Proxy-Connection and HTTP2-Settings.
HOP_BY_HOP = [b"Connection", b"Keep-Alive", b"Proxy-Connection", b"Proxy-Authenticate", b"Upgrade"]
HOP_BY_HOP += [b"Proxy-Authorization", b"TE", b"Trailer", b"Transfer-Encoding", b"HTTP2-Settings"]
CREDENTIALS = [b"Authorization", b"X-Api-Key", b"X-Goog-Api-Key", b"Api-Key"]
WRITTEN_ANEW = [b"Host", b"Content-Length", b"Expect"]
WHO_SERVED = [b"X-Bifrost-Provider", b"x-bifrost-resolved-model", b"x-bifrost-original-model"]
WHO_SERVED += [b"x-bifrost-fallback-index", b"x-bifrost-attempts"]
PASSING = [b"Accept-Encoding", b"anthropic-version", b"anthropic-beta", b"Cookie", b"Content-Type", b"_x"]
PASSING += [b"Content-Encoding", b"Date", b"request-id", b"retry-after", b"Accept"]
OTHERS = [b"X-Bf-Vk", b"X-BF-Cache-Key", b"X-Accel-Redirect"]
KNOWN = [*HOP_BY_HOP, *CREDENTIALS, *WRITTEN_ANEW, *WHO_SERVED, *PASSING, *OTHERS]

Fields = list[tuple[bytes, bytes]]


@st.composite
def names(draw: st.DrawFn) -> bytes:
    """The name of a field that means something, in any case, or one that is longer."""
    name = draw(st.sampled_from(KNOWN))
    ways = [name, name.lower(), name.upper(), name.replace(b"-", b"_"), b"X-" + name, name + b"2"]
    return draw(st.sampled_from(ways))


FIELD_VALUES = st.sampled_from(
    [b"", b"gzip", b"sk-test-1", b"Bearer sk-bf-1", b"a, b", b"\x80\xff:", b"text/event-stream"]
) | st.binary(max_size=8).map(lambda data: re.sub(rb"[\x00-\x1f\x7f]", b"~", data).strip())
OPTIONS = st.lists(names(), max_size=3).map(lambda given: b" , ".join(given))


@st.composite
def field_lists(draw: st.DrawFn) -> Fields:
    listed = draw(st.lists(names(), max_size=12))
    return [(name, draw(OPTIONS if name.lower() == b"connection" else FIELD_VALUES)) for name in listed]


def among(name: bytes, known: list[bytes]) -> bool:
    return name.lower() in [each.lower() for each in known]


def read_as(name: bytes) -> bytes:
    """The name as CGI reads it (RFC 3875 section 4.1.18): a provider may take ``x_api_key`` for a key."""
    return name.lower().replace(b"_", b"-")


def nominated(fields: Fields) -> set[bytes]:
    """What the ``Connection`` fields name."""
    given = [value for name, value in fields if name.lower() == b"connection"]
    return {option.strip().lower() for value in given for option in value.split(b",")}


@given(field_lists(), st.booleans(), st.booleans(), st.sampled_from([None, 0, 7]), st.booleans())
@settings(max_examples=300, deadline=None)
def test_the_fields_that_go_upstream(
    fields: Fields, keep: bool, identity: bool, length: int | None, has_key: bool
) -> None:
    """All but the hop-by-hop ones and ours, in their order, case and number; then what the proxy sets."""
    chunked = length is None and not keep
    head = headers.Outgoing(fields).head(
        host=b"h:1",
        own=ANTHROPIC.own_credential("sk-test-own") if has_key else None,
        keep_credentials=keep,
        identity=identity,
        length=length,
        chunked=chunked,
    )
    named = nominated(fields)
    expected = [
        (name, value)
        for name, value in fields
        if not among(read_as(name), [*HOP_BY_HOP, *WRITTEN_ANEW])
        and name.lower() not in named
        and not read_as(name).startswith(b"x-bf-")
        and (keep or not among(read_as(name), CREDENTIALS))
        and (not identity or read_as(name) != b"accept-encoding")
        and b"sk-bf-" not in value
    ]
    expected += [(b"Accept-Encoding", b"identity")] * identity
    expected += [(b"x-api-key", b"sk-test-own")] * has_key
    expected += [(b"Transfer-Encoding", b"chunked")] * chunked
    expected += [(b"Content-Length", b"%d" % (length or 0))] * (length is not None)
    assert head == b"".join(b"%b: %b\r\n" % field for field in [(b"Host", b"h:1"), *expected])


def is_virtual(name: bytes, value: bytes) -> bool:
    return read_as(name) == b"x-bf-vk" or (among(read_as(name), CREDENTIALS) and b"sk-bf-" in value)


@given(field_lists())
@settings(max_examples=200, deadline=None)
def test_a_virtual_key_is_seen_wherever_it_stands(fields: Fields) -> None:
    """In its own field, and in each that carries credentials; no field that holds one goes upstream."""
    carriers = [value for name, value in fields if is_virtual(name, value)]
    outgoing = headers.Outgoing(fields)
    assert bool(outgoing.virtual_keys) is bool(carriers)
    assert all(any(key in value for value in carriers) for key in outgoing.virtual_keys)
    head = outgoing.head(
        host=b"h", own=None, keep_credentials=True, identity=False, length=None, chunked=False
    )
    assert b"sk-bf-" not in head


# Routes.

PARTS = [b"/v1", b"/messages", b"/count_tokens", b"/complete", b"/batches", b"/b_1", b"/files", b"/health"]
PARTS += [b"/", b"/%6dessages", b"/%256dessages", b"%2f", b"%5c", b"\\", b";x", b";a=b", b"%3b", b"%00"]
PARTS += [b"%20", b"%3F", b"%23", b"/.", b"/..", b"%2e", b"%252e", b".", b"M", b"%4D", b"/Messages"]
PARTS += [b"?", b"?a=b", b"?/../x", b"#f", b"\xff", b"%", b" "]
BASES = [b"/anthropic", b"/anthropic/v1/messages", b"/anthropic/v1", b"", b"/v1", b"http://h"]
TARGETS = st.builds(
    lambda base, parts: base + b"".join(parts),
    st.sampled_from(BASES),
    st.lists(st.sampled_from(PARTS) | st.binary(max_size=3), max_size=6),
)
METHODS = st.sampled_from(["GET", "POST", "HEAD", "DELETE", "CONNECT", "TRACE", "PURGE"])
MODEL_PATHS = list(ANTHROPIC.paths)
LABELS = {"probe", "/health", "/metrics", "/anthropic/*", "/anthropic/batches"}
LABELS |= {"/openai/*", "/v1/models"} | {"/openai/v1" + path.decode() for path in FORMATS["openai"].paths}
LABELS |= {"/anthropic" + path.decode() for path in MODEL_PATHS}

READERS: dict[str, Callable[[bytes], bytes]] = {
    "decodes": unquote_to_bytes,
    "drops parameters": lambda path: re.sub(rb";[^/]*", b"", path),
    "ends at NUL": lambda path: path.partition(b"\0")[0],
    "ends at a question mark": lambda path: path.partition(b"?")[0],
    "ends at a hash": lambda path: path.partition(b"#")[0],
    "takes a backslash for a slash": lambda path: path.replace(b"\\", b"/"),
    "merges slashes": lambda path: re.sub(rb"//+", b"/", path),
    "ignores the last slash": lambda path: path.removesuffix(b"/"),
    "ignores case": bytes.lower,
    "ignores blanks at the end": bytes.rstrip,
}
"""What servers do with a path, each in an order of its own."""


DISGUISES: list[Callable[[bytes, int], bytes]] = [
    lambda path, at: path[:at] + b"%%%02x" % path[at] + path[at + 1 :],
    lambda path, at: path[:at] + path[at:].replace(b"/", b"//", 1),
    lambda path, at: path[:at] + path[at:].replace(b"/", b"\\", 1),
    lambda path, at: path[:at] + path[at:].upper(),
    lambda path, at: path + b"/",
    lambda path, at: path + b";x=y",
    lambda path, at: path + b"\0x",
    lambda path, at: path + b"%20",
    lambda path, at: path + b";%2fx",
    lambda path, at: path + b";%2f" + path,
    lambda path, at: path + b"%3f/x",
    lambda path, at: path + b"%23/x",
]
"""Each is undone by one of the `READERS`."""


@st.composite
def disguised(draw: st.DrawFn) -> bytes:
    """A model route that has been made to look like another, at most as often as paths are decoded here."""
    path = draw(st.sampled_from(MODEL_PATHS))
    for disguise in draw(st.lists(st.sampled_from(DISGUISES), max_size=3)):
        path = disguise(path, draw(st.integers(0, len(path) - 1)))
    return path


@given(disguised(), st.sampled_from([b"", b"?", b"?x=/../y"]))
@settings(max_examples=500, deadline=None)
def test_no_disguise_leads_past_the_rules(path: bytes, query: bytes) -> None:
    """A model route is one however it is spelt, or it is refused."""
    route = attempt(routes.match, "POST", b"/anthropic" + path + query, anthropic_version=False)
    assert route.status == 400 if isinstance(route, ProxyError) else route.kind is Kind.MODEL


@given(METHODS, TARGETS, st.booleans())
@settings(max_examples=300, deadline=None)
@example("GET", b"/anthropic/v1/models?", False)
def test_any_target_has_a_route_or_an_error(method: str, target: bytes, version: bool) -> None:
    """The path that goes upstream is what follows the prefix, untouched; the label is from a closed set."""
    route = attempt(routes.match, method, target, anthropic_version=version)
    if isinstance(route, ProxyError):
        assert route.status in (400, 404, 405)
        assert route.source is Source.DOWNSTREAM
    else:
        assert route.prefix + route.path == target
        assert route.label in LABELS
        assert route.path.startswith(b"/")


@given(TARGETS, st.lists(st.sampled_from(sorted(READERS)), max_size=6))
@settings(max_examples=1000, deadline=None)
@example(b"/anthropic/v1/messages;%2fx", ["drops parameters"])
@example(b"/anthropic/v1/messages;%2fv1/messages", ["drops parameters"])
@example(b"/anthropic/v1/messages%00/x", ["decodes", "ends at NUL"])
@example(b"/anthropic/v1/messages%3f/x", ["decodes", "ends at a question mark"])
def test_no_reading_of_a_path_leads_past_the_rules(target: bytes, reader: list[str]) -> None:
    """What some server takes for a model route is one here; what it takes for a way up is refused."""
    route = attempt(routes.match, "POST", target, anthropic_version=True)
    if isinstance(route, ProxyError):
        return
    path = route.path.partition(b"?")[0]
    for step in reader:
        path = READERS[step](path)
    assert not {b".", b".."} & set(path.split(b"/"))
    assert route.kind is Kind.MODEL or path not in MODEL_PATHS


# Plans, codings, errors.

CONFIG = config.load(
    """
providers:
  anthropic: {base_urls: {anthropic: "http://127.0.0.1:1"}}
  keyed:
    base_urls: {anthropic: "http://127.0.0.1:2"}
    keys: [{name: k, value: env.KEY, models: ["claude-*"]}]
  bare: {base_urls: {anthropic: "http://127.0.0.1:3"}}
  local: {base_urls: {anthropic: "http://127.0.0.1:4"}, is_key_less: true}
  other: {base_urls: {openai: "http://127.0.0.1:5"}, is_key_less: true}
default_providers: {anthropic: anthropic}
models: {fast: [keyed/claude-haiku, local/haiku], "a/b": [local/x]}
""",
    {"KEY": "sk-test-1"},
    lambda path: "",
)
NAMES = st.sampled_from([*CONFIG.providers, "fast", "a", "b", "claude-3", ""])
MODELS = (TEXT | st.lists(NAMES, min_size=1, max_size=3).map("/".join)).filter(bool)


@given(MODELS, st.lists(MODELS, max_size=40))
@settings(max_examples=300, deadline=None)
@example("m", ["local/x"] * 31)
@example("m", ["local/x"] * 32)
def test_a_plan_keeps_credentials_where_they_belong(model: str, fallbacks: list[str]) -> None:
    """Every target speaks the format and has credentials; the body that it gets asks for its model."""
    body = json.dumps({"model": model, "fallbacks": fallbacks, "x": [model]}, ensure_ascii=False).encode()
    found = scan(body)
    assert (found.model, found.fallbacks) == (model, tuple(fallbacks))
    planner = plan.Planner(CONFIG)
    chosen = attempt(planner.plan, "anthropic", found.model, found.fallbacks)
    if isinstance(chosen, ProxyError):
        assert chosen.status == 400
        return
    assert planner.plan("anthropic", found.model, found.fallbacks) == chosen
    indices = [target.index for target in chosen.targets]
    assert indices == sorted(set(indices))
    assert max(indices) < len(chosen.targets) + len(chosen.skipped) <= plan.MAX_TARGETS
    for target in chosen.targets:
        assert "anthropic" in target.provider.base_urls
        assert target.keys or target.provider.is_key_less or target.provider.name == "anthropic"
        sent = scan(splice(body, found, target.model))
        assert (sent.model, sent.fallbacks_cut) == (target.model, None)


@given(st.binary(max_size=300), st.sampled_from(["gzip", "x-gzip", "deflate"]), st.data())
@settings(max_examples=200, deadline=None)
def test_a_coding_is_undone_or_refused(body: bytes, name: str, data: st.DataObject) -> None:
    """Whole bodies up to the limit come out as they went in; what is cut, lengthened or none is refused."""
    packer = zlib.compressobj(wbits=15 if name == "deflate" else 31)
    packed = packer.compress(body) + packer.flush()
    limit = data.draw(st.integers(max(0, len(body) - 2), len(body) + 2))
    plain = attempt(coding.decoded, packed, name, limit)
    assert plain == body if len(body) <= limit else plain.status == 413
    cut = packed[: data.draw(st.integers(0, len(packed) - 1))]
    for broken in (cut, packed + b"\0", data.draw(st.binary(max_size=40))):
        assert attempt(coding.decoded, broken, name, 1000).status in (400, 413)


@given(st.integers(400, 599), st.text(st.characters()), TEXT)
@settings(max_examples=200, deadline=None)
@example(400, "half a surrogate pair: \ud800", "req_1")
def test_every_error_is_json(status: int, message: str, request_id: str) -> None:
    """In Anthropic's shape, as an answer and as an event; what UTF-8 cannot say is replaced."""
    error = ProxyError(status, message)
    body = json.loads(ANTHROPIC.body(error, request_id))
    assert list(body) == ["type", "error", "request_id"]
    assert (body["type"], body["request_id"]) == ("error", request_id)
    assert re.fullmatch("[a-z_]+_error|request_too_large", body["error"]["type"])
    assert body["error"]["message"] == message.encode("utf-8", "replace").decode()
    event = ANTHROPIC.error_event(ANTHROPIC.body(error, request_id))
    assert sse.first_event(event) == event
    assert ANTHROPIC.is_error.search(event)


# Values of the config.

URL_WORDS = ["http://", "https://", "h", "a.b", "127.0.0.1", "[::1]", "[fe80::1%eth0]", ":", ":80", ":0", "/"]
URL_WORDS += ["/v1", "@", "?", "#", "%", "..", "[", "]", ":65536", "\u00e9", " ", "\x00"]


@given(st.lists(st.sampled_from(URL_WORDS) | st.text(max_size=2), max_size=8).map("".join))
@settings(max_examples=300, deadline=None)
@example("http://[::1%\u00e9]")
@example("http://[::1%x?y]/")
@example("http://h:0")
def test_a_base_url_that_is_taken_can_be_connected_to(text: str) -> None:
    """It has a host, no user and no query; its port is what stands there; it goes into a head as it is."""
    url = attempt(values.base_url, text)
    if isinstance(url, ValueError):
        assert str(url).isprintable()
        return
    origin = Origin.parse(url)
    assert origin.host
    assert urlsplit(url).port in (None, origin.port)
    assert urlsplit(url)[3:] == ("", "")
    assert re.fullmatch(rb"[!-?A-~]+", origin.host_field)
    assert re.fullmatch(rb"[!-~]*", origin.path)


AROUND = st.sampled_from(["", "", " ", "\t", "\n", "\r\n", "\x00", "\x7f", "\u00e9", "\u2603"])


@given(st.text(max_size=3), st.sampled_from(["env.KEY", "file:/run/key"]), AROUND, AROUND)
@settings(max_examples=200, deadline=None)
def test_a_secret_is_fit_for_a_header_or_refused(
    value: str, reference: str, before: str, behind: str
) -> None:
    """Wherever it comes from; and no message and no repr ever holds it."""
    secret = f"{before}sk-test-a1B2c3D4{value}{behind}"
    key = f"{{name: k, value: '{reference}'}}"
    text = f"providers: {{p: {{base_urls: {{openai: 'http://h'}}, keys: [{key}]}}}}"
    loaded = attempt(config.load, text, {"KEY": secret}, lambda path: secret)
    if isinstance(loaded, config.ConfigError):
        assert "a1B2c3D4" not in str(loaded) + repr(loaded.problems)
        assert [problem.path for problem in loaded.problems] == ["providers.p.keys[0].value"]
        return
    assert "a1B2c3D4" not in repr(loaded)
    shown = loaded.providers["p"].keys[0].value.reveal()
    assert shown == (secret if reference == "env.KEY" else secret.rstrip("\r\n"))
    _, field = FORMATS["openai"].own_credential(shown)
    assert re.fullmatch(rb"Bearer [!-~\xa0-\xff]([ -~\xa0-\xff]*[!-~\xa0-\xff])?", field)


CHECKS = [values.address, values.origin, values.store, values.target, values.provider_name]


@pytest.mark.parametrize("check", CHECKS, ids=["address", "origin", "store", "target", "provider_name"])
@given(text=st.lists(st.sampled_from(URL_WORDS) | st.text(max_size=9), max_size=6).map("".join))
@settings(max_examples=100, deadline=None)
def test_a_value_is_taken_or_told(check: Callable[[str], str], text: str) -> None:
    """It comes back but for slashes at its end; or what is wanted is said, and what came is not repeated."""
    value = attempt(check, text)
    if isinstance(value, ValueError):
        assert not isinstance(value, UnicodeError)
        assert len(text) < 10 or text not in str(value)
    else:
        assert value.rstrip("/") == text.rstrip("/")
