"""What the patterns of the scan read by themselves: the same is found and refused as if Python read it.

A run is one call of a pattern. It ends at a window, at a bracket too deep for it, and at a member that needs
Python; the next one must know what the runs before it have found.
"""

from __future__ import annotations

import json
import time
from itertools import permutations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_body_scan import agree, attempt, damaged, windowed

from proxy import grammar
from proxy.body import scan
from proxy.errors import ProxyError

TEXT = "The quick brown fox jumps over the lazy dog. " * 45
TOOLS = [{"name": "f", "input_schema": {"type": "object", "properties": {"x": {"enum": ["a", "b"]}}}}]
SDK = {
    "max_tokens": 256,
    "messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": '{"\n'}],
    "metadata": {"user_id": "u"},
    "model": "claude-2",
    "stream": True,
    "system": "é",
    "temperature": 0.5,
}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\r\n\t", " : ")])
def test_one_call_reads_the_whole_of_a_usual_body(separators: tuple[str, str]) -> None:
    """A chat with texts as its contents needs no turn of Python at all."""
    body = json.dumps(SDK, separators=separators, ensure_ascii=False).encode()
    run = grammar.TOP.run.match(body, 1)
    assert run is not None
    assert (run.end(), run.lastgroup) == (len(body), "bracket")
    assert run["model"].endswith(b'"claude-2"')
    assert run["stream"].endswith(b"true")


# In front of a value and behind it, and between the members.
BLANKS = st.sampled_from(["", "", "", " ", "\n", "\r\n\t ", " " * 70])
OURS = {
    '"model"': st.sampled_from(['"claude-2"', '"a/b"', '"~ !#"', f'"{"m" * 256}"', f'"{"m" * 257}"'])
    | st.sampled_from(
        ['""', '"\x7f"', '"é"', '"\\u0061"', '"\\ud800"', "null", "[]", '{"a":1}', '"a', '"\n"']
    ),
    '"stream"': st.sampled_from(["true", "false", "null", "1", '"true"', "[true]", "tru", "truer", "{}"]),
    '"fallbacks"': st.sampled_from(['["a/b"]', "[]", '"a/b"', '"default"', '[{"model":"m"}]', '["a",1]']),
    '"mod\\u0065l"': st.just('"claude-2"'),
    '"\\u0073tream"': st.just("true"),
    '"Stream"': st.just("true"),
    '"stream "': st.just("true"),
}
OTHERS = {
    '"messages"': st.sampled_from(
        [
            '[{"role":"user","content":"x"}]',
            '[{"content":[{"type":"text","text":"\\"model\\":\\"no\\""}]}]',
            '[{"model":"no","stream":true,"content":"' + "x" * 90 + '"},{}]',
            "[" * 9 + "]" * 9,
            "[1,]",
        ]
    ),
    '"x"': st.sampled_from(["1", '"model"', '{"model":"no"}', '{"a":{"b":{"stream":true}}}', '"\\n"', "01"]),
}
MEMBERS = [(key, value) for keys in (OURS, OTHERS) for key, value in keys.items()]
USUAL = [MEMBERS[0], MEMBERS[1], *((key, value) for key, value in OTHERS.items())]


@st.composite
def written(draw: st.DrawFn) -> bytes:
    """A body of plainly spelt members, in any order, some of them more than once."""
    members = draw(st.lists(st.sampled_from(USUAL) | st.sampled_from(MEMBERS), max_size=6))
    text = ",".join(
        draw(BLANKS) + key + draw(BLANKS) + ":" + draw(BLANKS) + draw(value) + draw(BLANKS)
        for key, value in draw(st.permutations([MEMBERS[0], *members]))
    )
    return ("{" + text + "}").encode()


SIZES = st.sampled_from([16, 40, 64, 100, 257, 1 << 16])


@given(written(), SIZES)
@settings(max_examples=1000, deadline=None)
@example(b'{"model":"a","model":"a"}', 1 << 16)
@example(b'{"stream":true,"model":"a","x":[[[]]],"stream":true}', 1 << 16)
@example(b'{"model":"a"x"stream":true}', 1 << 16)
@example(b'{"model":"a","stream":truer}', 1 << 16)
def test_members_are_found_as_a_parser_finds_them(body: bytes, window: int) -> None:
    """Plainly spelt or not, once or twice, of any type, in any order, with blanks and windows anywhere."""
    agree(body, window)


@given(st.tuples(written(), SIZES) | st.tuples(damaged(), st.sampled_from([100, 257])))
@settings(max_examples=1000, deadline=None)
def test_windows_change_nothing(case: tuple[bytes, int]) -> None:
    """Neither what is found, nor what is refused, nor why and at which byte."""
    body, window = case
    with windowed(window):
        small = attempt(body)
    whole = attempt(body)
    if isinstance(whole, ProxyError):
        assert isinstance(small, ProxyError)
        assert (small.message, small.offset) == (whole.message, whole.offset)
    else:
        assert small == whole


DEEP = b'"x":[[[[]]]]'
LONG = b'"x":"' + b"e" * 5000 + b'"'


@pytest.mark.parametrize("between", [b'"x":1', DEEP, LONG, b'"x":{"y":{"model":"n"}}'])
@pytest.mark.parametrize(
    "members", sorted({*permutations([b'"model":"m"', b'"stream":true', b'"model":"m"'])})
)
def test_a_second_time_is_seen_in_every_run(between: bytes, members: tuple[bytes, ...]) -> None:
    """Whether one run reads both, or two with a turn of Python between them."""
    body = b"{" + (b"," + between + b",").join(members) + b"}"
    with pytest.raises(ProxyError, match="`model` comes a second time") as caught:
        scan(body)
    assert caught.value.offset == body.rindex(b'"model":"m"')


@pytest.mark.parametrize("again", [*permutations([b'"model":"m"', b'"stream":true'])])
def test_of_two_that_come_again_the_first_counts(again: tuple[bytes, ...]) -> None:
    """Both stand in one run."""
    first = b'{"model":"m","stream":true,' + DEEP + b","
    with pytest.raises(ProxyError) as caught:
        scan(first + b",".join(again) + b"}")
    assert caught.value.offset == len(first)


@pytest.mark.parametrize("length", [256, 257])
@pytest.mark.parametrize("first", ["model", "fallbacks"])
def test_names_have_one_limit_together(length: int, first: str) -> None:
    """It is 16 KiB with their quotes; whoever reads the model, it counts."""

    def body(names: int) -> bytes:
        members = {"model": "m" * length, "fallbacks": "f" * (names - length - 4)}
        return json.dumps({first: members.pop(first), **members}).encode()

    assert scan(body(16384)).model == "m" * length
    with pytest.raises(ProxyError, match="too long") as caught:
        scan(body(16385))
    assert caught.value.offset == body(16385).rindex(b' "') + 1


@pytest.mark.parametrize("letter", ["x", "é", "\x7f"])
def test_a_control_character_is_seen_in_long_text(letter: str) -> None:
    """Each of the thirty-two, and the one that JSON allows is none of them."""
    text = letter.encode() * 5000
    assert scan(b'{"model":"m","x":"' + text + b'"}').model == "m"
    for code in range(0x20):
        with pytest.raises(ProxyError, match=f"found the byte 0x{code:02x}") as caught:
            scan(b'{"model":"m","x":"' + text + bytes([code]) + text + b'"}')
        assert caught.value.offset == 18 + len(text)


def test_an_item_that_a_window_cuts_is_read_once() -> None:
    """Not once more for each bracket in it, nor twice as often for each."""

    def cost(opening: bytes) -> float:
        body = opening + b'"' + b"\\n" * 30_000
        times = []
        for _ in range(5):
            start = time.process_time()
            run = grammar.LIST.run.match(body, 1)
            times.append(time.process_time() - start)
            assert run is not None
            assert run.end() < 10
        return min(times)

    assert cost(b'[{"a":{"a":{"a":{"a":{"a":{"a":') < 3 * cost(b"[")
