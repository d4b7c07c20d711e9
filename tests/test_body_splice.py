"""The splice of a body: the model is replaced, the gateway's fallbacks are cut out, the rest stays."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_body_scan import Number, Pairs, bodies

from proxy.body import scan, splice
from proxy.errors import ProxyError

UNCHANGED = [
    b'{"model":"m"}',
    b' {\n"model" : "\\u006d" ,"x":1e2}\t',
    b'{"model":"m","fallbacks":"default"}',
    b'{"fallbacks":[{"model":"m"}],"model":"m"}',
    b'{"model":"m","fallbacks":null,"stream":true}',
]


@pytest.mark.parametrize("body", UNCHANGED)
def test_a_body_that_needs_no_change_is_the_same_object(body: bytes) -> None:
    """Not a copy, even if the model is spelt with escapes."""
    assert splice(body, scan(body), "m") is body


CUT: list[tuple[bytes, bytes]] = [
    (b'{"fallbacks":["a"],"model":"m"}', b'{"model":"m"}'),
    (b'{"model":"m","fallbacks":["a"]}', b'{"model":"m"}'),
    (b'{"x":1,"fallbacks":["a"],"model":"m"}', b'{"x":1,"model":"m"}'),
    (b'{"model":"m","fallbacks":"a","x":1}', b'{"model":"m","x":1}'),
    (b'{"model":"m","fallbacks":[]}', b'{"model":"m"}'),
    (b' { "fallbacks" : [ ] , "model" : "m" } ', b' {  "model" : "m" } '),
    (b' { "model" : "m" , "fallbacks" : [ "a" , "b" ] } ', b' { "model" : "m"  } '),
    (b'{"x":1 ,\n"fallbacks":["a"]\n, "model":"m"}', b'{"x":1 \n, "model":"m"}'),
    (b'{"x":",",  "fallbacks":["a,b",","],"model":"m"}', b'{"x":",","model":"m"}'),
    (b'{"fallbacks":"a,",\n"model":"m","x":[1,2]}', b'{\n"model":"m","x":[1,2]}'),
    (b'{"model":"m","\\u0066allbacks":["a"]}', b'{"model":"m"}'),
]


@pytest.mark.parametrize(("body", "expected"), CUT)
def test_the_gateways_fallbacks_are_cut_out_with_one_comma(body: bytes, expected: bytes) -> None:
    """The comma in front; or behind, if the member is the first. White space on the other side stays."""
    assert splice(body, scan(body), "m") == expected


REPLACED: list[tuple[bytes, str, bytes]] = [
    (b'{"model":"m"}', "claude-2", b'{"model":"claude-2"}'),
    (b'{ "model" : "\\u006d\\n" }', "m", b'{ "model" : "m" }'),
    (b'{"model":"m"}', 'a"\\\n\0é😀', '{"model":"a\\"\\\\\\n\\u0000é😀"}'.encode()),
    (b'{"x":{"model":"m"},"model":"m","y":"m"}', "n", b'{"x":{"model":"m"},"model":"n","y":"m"}'),
    (b'{"fallbacks":["m"],"model":"m"}', "n", b'{"model":"n"}'),
    (b'{"model":"m","fallbacks":["m"]}', "n", b'{"model":"n"}'),
    (b'{"model":"m" , "fallbacks":["m"] , "x":1}', "longer", b'{"model":"longer"  , "x":1}'),
    (b'{"fallbacks":[],"x":1,"model":"long"}', "n", b'{"x":1,"model":"n"}'),
    (b'{"model":"m","fallbacks":[{"model":"m"}]}', "n", b'{"model":"n","fallbacks":[{"model":"m"}]}'),
]


@pytest.mark.parametrize(("body", "model", "expected"), REPLACED)
def test_only_the_value_of_the_model_is_replaced(body: bytes, model: str, expected: bytes) -> None:
    """It is written anew as JSON, with or without fallbacks to cut out on either side of it."""
    assert splice(body, scan(body), model) == expected


@given(bodies(), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@settings(max_examples=300, deadline=None)
def test_all_other_bytes_stay(body: bytes, model: str) -> None:
    """The result parses like the original with the same edits, and its other bytes are the same."""
    try:
        found = scan(body)
    except ProxyError:
        assume(False)
    result = splice(body, found, model)

    def read(text: bytes) -> Pairs:
        tree = json.loads(text, object_pairs_hook=Pairs, parse_int=Number, parse_float=Number)
        assert isinstance(tree, Pairs)
        return tree

    edited = Pairs(
        (name, model if name == "model" else value)
        for name, value in read(body)
        if name != "fallbacks" or not found.fallbacks_cut
    )
    assert read(result) == edited
    again = scan(result)
    assert (again.model, again.fallbacks_cut, again.stream) == (model, None, found.stream)
    assert splice(result, again, model) is result

    start, end = again.model_span
    first, last = body[: found.model_span[0]], body[found.model_span[1] :]
    if found.fallbacks_cut:
        out, behind = found.fallbacks_cut
        if out < len(first):
            first = first[:out] + first[behind:]
        else:
            out, behind = out - found.model_span[1], behind - found.model_span[1]
            last = last[:out] + last[behind:]
    assert (result[:start], result[end:]) == (first, last)
