"""The scan of a request body and its splice, against the standard library's parser, made strict.

What is found: a body that one takes and the other refuses; members that the two read differently; a splice
that changes more than the model and the gateway's fallbacks; a window that changes the outcome.
"""

from __future__ import annotations

import json
import re

from fuzz.json_reader import is_json
from test_body_scan import attempt, found, reference, windowed

from proxy import grammar
from proxy.body import Scan, splice
from proxy.errors import ProxyError

WORDS = (
    b'"model"',
    b'"model":"m",',
    b'"fallbacks"',
    b',"fallbacks":["a/b"]',
    b'"default"',
    b'"stream":true',
    b'"mod\\u0065l"',
    b'"\\u017ftream"',
    b"\\ud83d\\ude00",
    b"\\ud800",
    b'\\"',
    b"true",
    b"null",
    b"-0.5e+3",
    b"[{",
    b"}]",
    b'{"a":[',
    b"[]",
    b"{}",
    b"NaN",
    b"\xef\xbb\xbf",
    b"\xc3\xa9",
    b"\x7f",
    b"        ",
)

WINDOWS = (grammar.WINDOW, 64)
"""Small windows bring the seams of the scan into small bodies."""

LONG_NUMBER = re.compile(rb"[-+.0-9eE]{60}")
"""The scan may refuse a number as long as a window."""

MODEL = 'n"\\\n\u00e9'


def check(data: bytes) -> None:
    """All that must hold for this body."""
    try:
        expected = reference(data)
        grammatical = is_json(data)
    except RecursionError:
        # The scan knows no such limit; the tests of the scan nest deeper, without a reference.
        return
    assert grammatical or expected is None
    result = attempt(data)
    for window in WINDOWS[:1] if LONG_NUMBER.search(data) else WINDOWS:
        with windowed(window):
            assert found(data) == expected
            assert said(attempt(data)) == said(result), "a window made a difference"
    if grammatical and data.lstrip().startswith(b"{") and isinstance(result, ProxyError):
        assert "is not JSON" not in result.message
    if expected is not None:
        check_splice(data, expected[0])


def said(result: Scan | ProxyError) -> object:
    return result.message if isinstance(result, ProxyError) else result


def check_splice(body: bytes, model: str) -> None:
    """Another model, and no fallbacks of the gateway's; all else as it was."""
    scan = attempt(body)
    assert not isinstance(scan, ProxyError)
    if not scan.fallbacks_cut:
        assert splice(body, scan, model) is body
    result = splice(body, scan, MODEL)
    assert reference(result) == (MODEL, (), False, scan.stream)
    edits = [(scan.model_span, json.dumps(MODEL, ensure_ascii=False).encode())]
    if scan.fallbacks_cut:
        edits.append((scan.fallbacks_cut, b""))
    edited = body
    for (start, end), new in sorted(edits, reverse=True):
        edited = edited[:start] + new + edited[end:]
    assert result == edited
    before, after = json.loads(body), json.loads(result)
    assert {**before, "model": MODEL} == {**after, **{k: before[k] for k in before if k not in after}}
    assert before.keys() - after.keys() == ({"fallbacks"} if scan.fallbacks_cut else set())
