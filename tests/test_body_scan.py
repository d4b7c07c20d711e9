"""The scan of a body: what it finds, what it refuses and at which byte, and that its cost is linear.

The reference is the standard library's parser, made strict. It builds a tree; the scan does not.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, NoReturn

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy import grammar
from proxy.body import Scan, scan, steps
from proxy.errors import ProxyError, Source

MIB = 1 << 20
NAMES = ("model", "fallbacks", "stream")


# What is found.


def test_the_three_members_are_found_with_their_spans() -> None:
    """A span holds the value with its quotes; the cut holds the member with exactly one comma."""
    body = b'{"max_tokens":1,"model":"claude-2","fallbacks":["a/b","c"],"stream":true}'
    result = scan(body)
    assert result == Scan("claude-2", (24, 34), ("a/b", "c"), (34, 58), True)
    assert body[24:34] == b'"claude-2"'
    assert body[34:58] == b',"fallbacks":["a/b","c"]'


BELOW = [
    b'{"x":{"model":"no","stream":true,"fallbacks":["no"]},"model":"yes"}',
    b'{"model":"yes","x":[{"model":"no","stream":true,"fallbacks":["no"]}]}',
    b'{"x":"\\"model\\":\\"no\\",\\"stream\\":true","model":"yes"}',
    b'{"x":"model","model":"yes","y":["model","fallbacks"]}',
    b'{"x":' + b'{"model":"no","x":[' * 9 + b'"stream"' + b"]}" * 9 + b',"model":"yes"}',
    b'{"model ":"no","mode":"no","models":"no","model":"yes"}',
    b'{"model\\u0000":"no","model":"yes"}',
    b'{"":"no","model":"yes"}',
]


@pytest.mark.parametrize("body", BELOW)
def test_only_the_top_level_counts(body: bytes) -> None:
    """The words occur in messages, tools and batches as well, and names are compared exactly."""
    result = scan(body)
    assert (result.model, result.fallbacks, result.fallbacks_cut, result.stream) == ("yes", (), None, False)
    assert body[slice(*result.model_span)] == b'"yes"'


@pytest.mark.parametrize(
    "name", ["mod\\u0065l", "\\u006dodel", "\\u006Dodel", "\\u006d\\u006f\\u0064\\u0065\\u006c"]
)
def test_a_name_spelt_with_escapes_counts(name: str) -> None:
    """It is the same name to every parser."""
    assert scan(b'{"%b":"claude-2"}' % name.encode()).model == "claude-2"


def test_values_are_decoded() -> None:
    """Escapes and UTF-8 in the model and in fallbacks become text."""
    body = '{"model":"\\u00e9é\\ud83d\\ude00","fallbacks":["\\n","😀"]}'.encode()
    assert scan(body)[0:3:2] == ("éé😀", ("\n", "😀"))


@pytest.mark.parametrize(
    ("value", "stream"), [("true", True), ("false", False), ("null", False), ("1", False)]
)
@pytest.mark.parametrize("blank", ["", " ", "\r\n\t "])
def test_only_a_literal_true_streams(value: str, stream: bool, blank: str) -> None:
    """Other values go upstream, which judges its own field."""
    body = f'{{"stream"{blank}:{blank}{value}{blank},"model":"m"}}'.encode()
    assert scan(body).stream is stream


@pytest.mark.parametrize("value", ['"true"', "[true]", '{"true":true}', "1.5e3", '"x"'])
def test_a_stream_of_another_type_is_left_alone(value: str) -> None:
    """It is no reason for an error of ours."""
    assert not scan(f'{{"stream":{value},"model":"m"}}'.encode()).stream


OWN = {
    "[]": (),
    "[ \n]": (),
    '["a/b"]': ("a/b",),
    ' [ "a/b" , "c" ] ': ("a/b", "c"),
    '"a/b"': ("a/b",),
    '["default"]': ("default",),
    '["default","a"]': ("default", "a"),
    '["' + "x" * 5000 + '","y"]': ("x" * 5000, "y"),
}


@pytest.mark.parametrize("value", OWN)
def test_strings_are_the_gateways_fallbacks(value: str) -> None:
    """A list of strings, an empty list, or one string other than "default"."""
    body = f'{{"model":"m","fallbacks":{value}}}'.encode()
    result = scan(body)
    assert result.fallbacks == OWN[value]
    assert result.fallbacks_cut is not None


UPSTREAMS = [
    '"default"',
    '"\\u0064efault"',
    '[{"model":"a"}]',
    ' [ {"model":"a","thinking":{"x":[1,{}]}} , {} ] ',
    '[{"a":[[[{"b":[{"c":[{}]}]}]]]},{}]',
    "null",
    "1",
    "false",
    '{"a":["b"]}',
]


@pytest.mark.parametrize("value", UPSTREAMS)
def test_anthropics_own_fallbacks_are_left_alone(value: str) -> None:
    """A list of objects and the string "default" are its own field; what is neither is its to judge."""
    result = scan(f'{{"fallbacks":{value},"model":"m"}}'.encode())
    assert (result.fallbacks, result.fallbacks_cut) == ((), None)


def test_blanks_may_stand_anywhere_and_of_any_length() -> None:
    """They are as long here as several windows of the scan."""
    blank = b" \t\r\n" * 50_000
    parts = [b"{", b'"x"', b":", b"[", b"1", b",", b"{", b"}", b"]", b",", b'"model"', b":", b'"m"', b"}"]
    body = blank + blank.join(parts) + blank
    assert body[slice(*scan(body).model_span)] == b'"m"'
    empty = b'{"model":"m","x":[' + blank + b'],"y":{' + blank + b'},"fallbacks":[' + blank + b"]}"
    assert scan(empty).fallbacks_cut == (empty.index(b',"fallbacks"'), len(empty) - 1)


def test_a_number_may_have_tens_of_thousands_of_digits() -> None:
    """RFC 8259 section 6 allows a limit; the one here only bounds the time of a step."""
    assert scan(b'{"x":-' + b"1" * 60_000 + b"." + b"0" * 5000 + b'e+1,"model":"m"}').model == "m"


def test_lone_surrogates_pass_where_nobody_reads_them() -> None:
    """RFC 8259 section 8.2: they are grammatical."""
    assert scan(b'{"x":["\\ud800","\\udc00\\ud800"],"\\udfff":1,"model":"m"}').model == "m"


# What is refused.

REFUSED: list[tuple[bytes, int, str]] = [
    (b"", 0, "empty"),
    (b" \n", 2, "object"),
    (b'\xef\xbb\xbf{"model":"m"}', 0, "byte order mark"),
    ('{"model":"m"}'.encode("utf-16"), 0, "UTF-8"),
    ('{"model":"m"}'.encode("utf-16-le"), 1, "not JSON"),
    (b'{"model":"m","x":"\xff"}', 18, "UTF-8"),
    (b'{"model":"m","x":"\xc3"}', 18, "UTF-8"),
    (b'{"model":"m","x":"\xed\xa0\x80"}', 18, "UTF-8"),
    (b'{"model":"m"}\xc3', 13, "UTF-8"),
    (b'{"model":"m","x":"' + "é".encode() * 300_000 + b'\xe9"}', 600_018, "UTF-8"),
    (b"[]", 0, "object"),
    (b" null", 1, "object"),
    (b'"model"', 0, "object"),
    (b"{", 1, "key"),
    (b"{,}", 1, "key"),
    (b"{1:2}", 1, "key"),
    (b"{'model':'m'}", 1, "key"),
    (b'{model:"m"}', 1, "key"),
    (b'{"model"}', 8, "':'"),
    (b'{"model" "m"}', 9, "':'"),
    (b'{"model":"m"', 12, "the end"),
    (b'{"model":"m",}', 13, "comma"),
    (b'{"model":"m",,"x":1}', 13, "key"),
    (b'{"model":"m" "x":1}', 13, "','"),
    (b'{"model":"m"]', 12, "'}'"),
    (b'{"model":"m"}}', 13, "behind"),
    (b'{"model":"m"} {}', 14, "behind"),
    (b'{"model":"m"}\0', 13, "behind"),
    (b'{"model":"m","x":[1,]}', 20, "comma"),
    (b'{"model":"m","x":[,1]}', 18, "value"),
    (b'{"model":"m","x":[1 2]}', 20, "','"),
    (b'{"model":"m","x":[1}', 19, "']'"),
    (b'{"model":"m","x":["a":1]}', 21, "','"),
    (b'{"model":"m","x":{"a"}}', 21, "':'"),
    (b'{"model":"m","x":{1}}', 18, "key"),
    (b'{"model":"m","x":}', 17, "value"),
    (b'{"model":"m","x":NaN}', 17, "value"),
    (b'{"model":"m","x":-Infinity}', 17, "value"),
    (b'{"model":"m","x":True}', 17, "value"),
    (b'{"model":"m","x":truer}', 21, "','"),
    (b'{"model":"m","x":01}', 17, "value"),
    (b'{"model":"m","x":-}', 17, "value"),
    (b'{"model":"m","x":+1}', 17, "value"),
    (b'{"model":"m","x":.5}', 17, "value"),
    (b'{"model":"m","x":1.}', 18, "','"),
    (b'{"model":"m","x":1.e5}', 18, "','"),
    (b'{"model":"m","x":1e}', 18, "','"),
    (b'{"model":"m","x":0x1}', 18, "','"),
    (b'{"model":"m","x":' + b"1" * 70_000 + b"}", 17, "digits"),
    (b'{"model":"m","x":1/**/}', 18, "','"),
    (b'{"model":"m","x":"a\nb"}', 19, "0x0a"),
    (b'{"model":"m","x":"' + b"e" * 9000 + b'\x1f"}', 9018, "0x1f"),
    (b'{"model":"m","x":"' + b"e" * 900_000 + b'\x00"}', 900_018, "0x00"),
    (b'{"model":"m","x":"\\x41"}', 18, "escape"),
    (b'{"model":"m","x":"\\u12G4"}', 18, "escape"),
    (b'{"model":"m","x":"\\u12g4"}', 18, "escape"),
    (b'{"model":"m","x":"\\u 123"}', 18, "escape"),
    (b'{"model":"m","x":"\\U0041"}', 18, "escape"),
    (b'{"model":"m","x":"\\\'"}', 18, "escape"),
    (b'{"model":"m","x":"\\u00', 18, "escape"),
    (b'{"model":"m","x":"\\', 18, "escape"),
    (b'{"model":"m","x":"abc', 21, "string that starts at byte 17"),
    (b'{"model":"m","x":"abc\\"}', 24, "string that starts at byte 17"),
    (b'{"model":"m","' + b"k" * 9000 + b'":}', 9016, "value"),
    (b'{"model":"m","x\n":1}', 15, "0x0a"),
    (b'{"model":"m","x":' + b"[" * 5000 + b"]" * 4999 + b"}", 10_016, "']'"),
    (b'{"model":"m",\f"x":1}', 13, "key"),
    (b'{"model":"m","x":\xc2\xa01}', 17, "value"),
    (b"{}", 1, "`model`"),
    (b' {"x":{"model":"m"}} ', 19, "`model`"),
    (b'{"model":""}', 9, "empty"),
    (b'{"model":null}', 9, "string"),
    (b'{"model": 1}', 10, "string"),
    (b'{"model":["m"]}', 9, "string"),
    (b'{"model":{}}', 9, "string"),
    (b'{"model":}', 9, "string"),
    (b'{"model":"\\ud800"}', 9, "surrogate"),
    (b'{"model":"\\udc00\\ud800"}', 9, "surrogate"),
    (b'{"model":"' + b"m" * 70_000 + b'"}', 9, "too long"),
    (b'{"model":"m","fallbacks":""}', 25, "empty"),
    (b'{"model":"m","fallbacks":["a",""]}', 30, "empty"),
    (b'{"model":"m","fallbacks":["\\ud800"]}', 26, "surrogate"),
    (b'{"model":"m","fallbacks":["a",{}]}', 30, "list"),
    (b'{"model":"m","fallbacks":[{}, "a"]}', 30, "list"),
    (b'{"model":"m","fallbacks":[1]}', 26, "list"),
    (b'{"model":"m","fallbacks":[null]}', 26, "list"),
    (b'{"model":"m","fallbacks":[["a"]]}', 26, "list"),
    (b'{"model":"m","fallbacks":[{"a":1},[]]}', 34, "list"),
    (b'{"model":"m","fallbacks":["a",]}', 30, "comma"),
    (b'{"model":"m","fallbacks":[{},]}', 29, "comma"),
    (b'{"model":"m","fallbacks":["a" "b"]}', 30, "','"),
    (b'{"model":"m","fallbacks":["a"}', 29, "']'"),
    (b'{"model":"m","fallbacks":[', 26, "list"),
    (b'{"model":"m","fallbacks":["' + b"a" * 10_000 + b'","' + b"a" * 10_000 + b'"]}', 10_029, "too long"),
    (b'{"model":"m","model":"m"}', 13, "`model`"),
    (b'{"model":"m","mod\\u0065l":"n"}', 13, "`model`"),
    (b'{"mod\\u0065l":"m","\\u006Dodel":"n"}', 18, "`model`"),
    (b'{"model":"m","x":"' + b"e" * 300_000 + b'","model":"n"}', 300_020, "`model`"),
    (b'{"model":"m","fallbacks":[],"fallbacks":[]}', 28, "`fallbacks`"),
    (b'{"model":"m","fallbacks":[{}],"fallback\\u0073":"default"}', 30, "`fallbacks`"),
    (b'{"model":"m","fallbacks":null,"fallbacks":null}', 30, "`fallbacks`"),
    (b'{"stream":true,"model":"m","stream":true}', 27, "`stream`"),
    (b'{"stream":false,"model":"m","stre\\u0061m":1}', 28, "`stream`"),
]


@pytest.mark.parametrize(("body", "at", "why"), REFUSED, ids=[f"{b[:30]!r}{len(b)}" for b, _, _ in REFUSED])
def test_what_is_not_allowed_is_a_400_with_its_byte(body: bytes, at: int, why: str) -> None:
    """The message says what is wrong, at which byte, and the caller gets the byte as a number too."""
    with pytest.raises(ProxyError) as caught:
        scan(body)
    error = caught.value
    assert (error.status, error.source, error.offset) == (400, Source.DOWNSTREAM, at)
    assert f" at byte {at}: " in error.message
    assert why in error.message


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","Model":"b"}',
        b'{"MODEL":"a"}',
        b'{"m\\u004fdel":"a"}',
        b'{"model":"a","Stream":true}',
        b'{"model":"a","fallBacks":[]}',
        '{"model":"a","\u017ftream":true}'.encode(),
        '{"model":"a","fallbac\u212as":[]}'.encode(),
        b'{"model":"a","fallbac\\u212A\\u017F":[]}',
    ],
)
def test_a_name_in_another_case_is_refused(body: bytes) -> None:
    """Go's parser takes it for the name, others do not: they would disagree about the model."""
    with pytest.raises(ProxyError, match="to some parsers and not to others") as caught:
        scan(body)
    assert caught.value.status == 400
    scan(b'{"model":"a","x":{"Model":1},"models":2,"Streams":3}')


def test_a_message_shows_one_byte_of_the_body_at_most() -> None:
    """A body holds secrets, and messages are logged."""
    with pytest.raises(ProxyError) as caught:
        scan(b'{"model":"m","secret":"password" password}')
    assert "'p'" in caught.value.message
    assert "pa" not in caught.value.message.replace("parsers", "")


def test_no_beginning_of_a_body_is_a_body() -> None:
    """A body that was cut anywhere is refused."""
    body = b'{"x":[1,{"y":[true,"\\u00e9"]}],"fallbacks":["a"],"model":"m\xc3\xa9","stream":true}'
    assert scan(body)
    for end in range(len(body)):
        assert found(body[:end]) is None


# Against the reference.

Found = tuple[str, tuple[str, ...], bool, bool]
"""The model, the gateway's fallbacks, whether they are to be cut out, and whether the answer streams."""


class Pairs(tuple[tuple[str, Any], ...]):
    """An object, with its repeated names."""

    __slots__ = ()


class Number(str):
    """A number as it is written: the standard library refuses long integers, which JSON allows."""

    __slots__ = ()


def refuse(_: str) -> NoReturn:
    raise ValueError


def is_name(value: object) -> bool:
    return type(value) is str and value != "" and not any("\ud800" <= x <= "\udfff" for x in value)


def folded(name: str) -> str:
    """`name` as a parser reads it that ignores case: letter by letter, in all of Unicode."""
    return "".join({"\u017f": "s"}.get(letter, letter.lower()) for letter in name)


def reference(body: bytes) -> Found | None:
    """What a strict parser finds in `body`; None if a rule forbids it."""
    try:
        tree = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=Pairs,
            parse_constant=refuse,
            parse_int=Number,
            parse_float=Number,
        )
    except ValueError:
        return None
    if not isinstance(tree, Pairs):
        return None
    names = [folded(name) for name, _ in tree]
    if any(names.count(name) > 1 for name in NAMES) or any(
        name in NAMES and name != given for name, (given, _) in zip(names, tree, strict=True)
    ):
        return None
    members = dict(tree)
    model, fallbacks = members.get("model"), members.get("fallbacks")
    if type(fallbacks) is str and fallbacks != "default":
        fallbacks = [fallbacks]
    own = isinstance(fallbacks, list) and (not fallbacks or not all(isinstance(x, Pairs) for x in fallbacks))
    if not is_name(model) or (own and not all(map(is_name, fallbacks))):
        return None
    return model, tuple(fallbacks) if own else (), own, members.get("stream") is True


def attempt(body: bytes) -> Scan | ProxyError:
    try:
        return scan(body)
    except ProxyError as error:
        return error


def found(body: bytes) -> Found | None:
    """The same by the scan. Its spans and its errors are checked on the way."""
    result = attempt(body)
    if isinstance(result, ProxyError):
        assert result.offset is not None
        assert 0 <= result.offset <= len(body)
        assert f" at byte {result.offset}: " in result.message
        return None
    assert json.loads(body[slice(*result.model_span)]) == result.model
    if result.fallbacks_cut:
        member = body[slice(*result.fallbacks_cut)].strip(b" \t\r\n,")
        name, _, value = member.partition(b":")
        assert json.loads(name) == "fallbacks"
        assert json.loads(value) in (list(result.fallbacks), *result.fallbacks)
    return result.model, result.fallbacks, result.fallbacks_cut is not None, result.stream


SHORT = {
    '"': '\\"',
    "\\": "\\\\",
    "/": "\\/",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}


def spelt(text: str, random: Random) -> str:
    """`text` as a JSON string, each letter in one of the ways that the grammar allows."""
    letters = []
    for letter in text:
        units = letter.encode("utf-16-be", "surrogatepass").hex()
        escaped = "".join("\\u" + units[i : i + 4] for i in range(0, len(units), 4))
        ways = [SHORT.get(letter, escaped), escaped, escaped.upper().replace("U", "u")]
        if letter >= " " and letter not in '"\\' and not "\ud800" <= letter <= "\udfff":
            ways += [letter] * 6
        letters.append(random.choice(ways))
    return '"' + "".join(letters) + '"'


def rendered(value: Any, random: Random) -> str:
    """`value` as JSON, with blanks anywhere. A `Number` stands as it is."""

    def spaced(text: str) -> str:
        blanks = ["", "", "", " ", "\n", "\t\r ", " " * 70]
        return random.choice(blanks) + text + random.choice(blanks)

    if isinstance(value, Number):
        return value
    if isinstance(value, str):
        return spelt(value, random)
    if isinstance(value, Pairs):
        members = (spaced(spelt(k, random)) + ":" + spaced(rendered(v, random)) for k, v in value)
        return "{" + (",".join(members) or spaced("")) + "}"
    return "[" + (",".join(spaced(rendered(item, random)) for item in value) or spaced("")) + "]"


TEXTS = st.text(st.characters(), max_size=5) | st.sampled_from(
    [
        *NAMES,
        "default",
        '"model":"x"',
        "{",
        "}]",
        "\\",
        '\\"',
        "\0",
        "é" * 40,
        "x" * 90,
        "\ud800",
        "😀",
        "Model",
        "\u017ftream",
    ]
)
BARE = [Number(x) for x in ("0", "-0", "12", "1.50", "-1e9", "2E+00", "9" * 30, "true", "false", "null")]
VALUES = st.recursive(
    st.sampled_from(BARE) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(st.tuples(TEXTS, inner), max_size=3).map(lambda x: Pairs(x))
    ),
    max_leaves=12,
)


@st.composite
def nested(draw: st.DrawFn) -> Any:
    """A value with up to twelve brackets around it: more than the patterns of the scan read in one call."""
    value = draw(VALUES)
    for wrap in draw(st.lists(st.booleans(), max_size=12)):
        beside = draw(st.sampled_from(BARE))
        value = Pairs([("a", beside), ("b", value)]) if wrap else [beside, value]
    return value


MODELS = st.just("claude-2") | TEXTS | VALUES
FALLBACKS = st.lists(st.just("a/b") | TEXTS, max_size=3) | st.lists(
    st.just(Pairs([("model", "a")])), max_size=2
)
MEMBERS = {
    "model": MODELS,
    "fallbacks": FALLBACKS | st.sampled_from(["default", "a/b"]) | VALUES,
    "stream": st.sampled_from(BARE) | VALUES,
}


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """An object of random members, mostly with a model, written in a random way."""
    members = draw(st.lists(st.tuples(TEXTS, nested()), max_size=4))
    for name, often in (("model", 9), ("fallbacks", 5), ("stream", 5)):
        if draw(st.integers(0, 9)) < often:
            members.append((name, draw(MEMBERS[name])))
    random = draw(st.randoms(use_true_random=False))
    random.shuffle(members)
    return rendered(Pairs(members), random).encode("utf-8")


WINDOWS = st.sampled_from([64, 100, 257, grammar.WINDOW])
"""Small windows bring the seams of the scan into small bodies."""


@contextmanager
def windowed(window: int) -> Iterator[None]:
    """With windows of at most this size, each of which ends a run of a pattern."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WINDOW", "STRETCH", "GLANCE"):
            patch.setattr(grammar, name, min(window, getattr(grammar, name)))
        yield


def agree(body: bytes, window: int) -> None:
    with windowed(window):
        assert found(body) == reference(body)


@given(bodies(), WINDOWS)
@settings(max_examples=300, deadline=None)
def test_the_scan_finds_what_a_parser_finds(body: bytes, window: int) -> None:
    """Any body: any blanks, any order, any spelling of names and values, any depth."""
    agree(body, window)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A body in which bytes were deleted, inserted, doubled or replaced."""
    body = draw(bodies())
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.integers(0, 6)))
        new = draw(st.sampled_from([b"", body[start:end] * 2, *DAMAGE]))
        body = body[:start] + new + body[end:]
    return body


DAMAGE = [bytes([byte]) for byte in b'{}[]",:\\ \n\t\f0159-+.eEtfnu/x\x00\x1f\x7f\x80\xc3\xa9\xed\xff']
DAMAGE += [
    b"\\u00",
    b"\\ud800",
    b'"model":',
    b",1",
    b",{}",
    b"NaN",
    b"null",
    b"01",
    b"1.",
    b"[]",
    b"{}",
    b'""',
]


@given(damaged(), WINDOWS)
@settings(max_examples=600, deadline=None)
@example(b'{"model":"m","x":[[1],2,]}', 64)
@example(b'{"model":"m","x":{"a":{},}}', 64)
def test_the_scan_refuses_what_a_strict_parser_refuses(body: bytes, window: int) -> None:
    """A body is accepted if and only if the reference accepts it, and then they agree on its members."""
    agree(body, window)


# What it costs.

Shape = Callable[[int], bytes]


def around(inner: Callable[[int], bytes]) -> Shape:
    """A body with a member of about so many bytes, and the model behind it."""
    return lambda size: b'{"x":' + inner(size) + b',"model":"m"}'


MESSAGE = b'{"role":"user","content":[{"type":"text","text":"Say \\"yes\\".\\nOr no."}]}'
LEVELS = b'{"a":1,"b":[' * 9 + b'"c"' + b"]}" * 9

SHAPES: dict[str, Shape] = {
    "brackets": around(lambda size: b"[" * (size // 2) + b"]" * (size // 2)),
    "objects": around(lambda size: b'{"":' * (size // 5) + b"1" + b"}" * (size // 5)),
    "both kinds": around(lambda size: b'[{"":' * (size // 7) + b"1" + b"}]" * (size // 7)),
    "brackets beside brackets": around(lambda size: b"[" + b",".join([b"[[[]]]"] * (size // 7)) + b"]"),
    "deep items": around(lambda size: b"[" + b",".join([LEVELS] * (size // len(LEVELS))) + b"]"),
    "messages": around(lambda size: b"[" + b",".join([MESSAGE] * (size // len(MESSAGE))) + b"]"),
    "numbers": around(lambda size: b"[" + b",".join([b"1"] * (size // 2)) + b"]"),
    "names": lambda size: b"{" + b'"k\\n":1,' * (size // 8) + b'"model":"m"}',
    "names with escapes": lambda size: b"{" + b'"\\u006dode":1,' * (size // 14) + b'"model":"m"}',
    "long names": lambda size: b"{" + (b'"' + b"k" * 5000 + b'":1,') * (size // 5005) + b'"model":"m"}',
    "a long string": around(lambda size: b'"' + b"e" * size + b'"'),
    "a long string in UTF-8": around(lambda size: b'"' + "é".encode() * (size // 2) + b'"'),
    "escapes": around(lambda size: b'"' + b"\\n\\u00e9\\\\" * (size // 10) + b'"'),
    "backslashes": around(lambda size: b'"' + b"\\\\" * (size // 2) + b'"'),
    "quotes": around(lambda size: b'"' + b'\\"' * (size // 2) + b'"'),
    "escapes far apart": around(lambda size: b'"' + (b"e" * 4200 + b"\\n") * (size // 4202) + b'"'),
    "blanks": around(lambda size: b" " * size + b"1"),
    "blanks and commas": around(lambda size: b"[" + b"1 ,\n" * (size // 4) + b"1]"),
    "upstream's fallbacks": lambda size: b'{"fallbacks":[' + b"{}," * (size // 3) + b'{}],"model":"m"}',
}

CUT: dict[str, Shape] = {
    "brackets, never closed": lambda size: b'{"x":' + b"[" * size,
    "a string, never closed": lambda size: b'{"x":"' + b"e" * size,
    "quotes, never closed": lambda size: b'{"x":"' + b'\\"' * (size // 2),
    "a bad byte behind it all": lambda size: SHAPES["messages"](size)[:-1] + b"\0",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_bodies_of_every_shape_are_read(shape: str) -> None:
    """They are larger than any window, and the model comes last."""
    body = SHAPES[shape](300_000)
    assert body[slice(*scan(body).model_span)] == b'"m"'


def cost(body: bytes, good: bool) -> float:
    """Seconds of processor time that one scan of `body` takes, the best of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        result = attempt(body)
        times.append(time.process_time() - start)
        assert isinstance(result, Scan) is good
    return min(times)


@pytest.mark.parametrize("shape", [*SHAPES, *CUT])
def test_the_cost_is_linear(shape: str) -> None:
    """Four times the body takes about four times as long; quadratic work would take sixteen times."""
    build = SHAPES.get(shape) or CUT[shape]
    size = 250_000
    while (once := cost(build(size), shape in SHAPES)) < 0.01:
        size *= 2
    assert cost(build(4 * size), shape in SHAPES) < 9 * once


@pytest.mark.parametrize("shape", SHAPES)
def test_the_scan_pauses_often(shape: str) -> None:
    """At least once in 256 KiB, and the result is that of `scan`."""
    body = SHAPES[shape](MIB)
    results = []

    def walk() -> Iterator[None]:
        results.append((yield from steps(body)))

    pauses = sum(1 for _ in walk())
    assert results == [scan(body)]
    assert pauses >= len(body) // (MIB // 4)


@pytest.mark.parametrize("letter", ["x", "é"])
def test_the_check_for_utf_8_pauses_too(letter: str) -> None:
    """It goes over the whole body before the first bracket is looked at."""
    walk = steps((letter * MIB).encode())
    for _ in range(4):
        next(walk)
    with pytest.raises(ProxyError, match="at byte 0:"):
        list(walk)


def test_the_scan_pauses_in_brackets_by_their_number() -> None:
    """A bracket that Python reads costs as much as a hundred bytes, so fewer of them go into a step."""
    assert sum(1 for _ in steps(SHAPES["brackets"](200_000))) >= 200


def test_thirty_megabytes_with_the_model_last() -> None:
    """The official SDK's order; the words occur in the messages all over the place."""
    message = (
        b'{"role":"user","content":"a \\"model\\":\\"no\\" \\u00e9\\n","model":"no","fallbacks":["no"]},'
    )
    image = b'{"type":"image","data":"' + b"iVBORw0KGgoAAAANSUhEUgAA" * 400_000 + b'"},'
    body = b'{"messages":[' + message * 125_000 + image * 2 + b'{}],"stream":true,"model":"claude-2"}'
    assert len(body) > 30_000_000
    result = scan(body)
    assert (result.model, result.fallbacks, result.stream) == ("claude-2", (), True)
    assert result.model_span == (len(body) - 11, len(body) - 1)


@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"x":', b"}"), (b'[{"x":[', b"]}]"), (b"[ ", b" ]")])
def test_a_hundred_thousand_nested_brackets(pair: tuple[bytes, bytes]) -> None:
    """No recursion, and no limit on depth."""
    start, end = pair
    body = b'{"x":' + start * 100_000 + b"1" + end * 100_000 + b',"model":"m"}'
    assert scan(body).model == "m"
    assert found(body[:-20] + body[-19:]) is None


def test_a_hundred_thousand_names() -> None:
    """With the three of ours among them."""
    names = [f'"name_{i}":{{"model":{i}}},' for i in range(100_000)]
    names[70_000] += '"stream":true,'
    body = ("{" + "".join(names) + '"model":"m"}').encode()
    assert scan(body)[0::4] == ("m", True)
    assert found(body[:-1] + b',"stream":true}') is None


def test_no_tree_is_built() -> None:
    """Of twelve megabytes in small values a tree would take a hundred and more; a window takes a few."""
    body = b'{"x":[' + b'{"a":1,"b":[2,"c"]},' * 600_000 + b'{}],"model":"m"}'
    tracemalloc.start()
    try:
        scan(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(body)
