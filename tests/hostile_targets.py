"""Request targets: what is relayed as it came, what is no path of ours, and what another could read as one.

Facts
  - A target is relayed raw. So one that a reader could take for another path, by decoding it, by its dots,
    or by taking a backslash for a slash, is refused and not repaired.
  - A server takes the authority of an absolute-form for the host (RFC 9112 section 3.2.2), which would let a
    client choose it; such targets are refused (CVE-2026-111748 came of one).
"""

from __future__ import annotations

from hostile_case import BODY, CHUNKED, CHUNKED_BODY, SIZED, VERSION, Case, got, refused, relayed

NOT_FOUND: dict[str, bytes] = {
    "the root": b"/",
    "unknown": b"/unknown",
    "another version of a unified path": b"/v2/models",
    "no separator": b"/anthropicv1/messages",
    "the prefix alone": b"/anthropic",
    "the prefix with a query": b"/anthropic?/v1/messages",
    "scheme-relative": b"//evil.test/anthropic/v1/models",
    "the prefix in the middle": b"/x/anthropic/v1/models",
    "own admin path": b"/api/keys",
    "8000 slashes": b"/" * 8000,
}

BAD: dict[str, bytes] = {
    # Dots.
    "dot segments": b"/anthropic/../v1/messages",
    "a dot segment": b"/anthropic/./v1/messages",
    "dots at the end": b"/anthropic/v1/..",
    "a dot at the end": b"/anthropic/v1/.",
    "dots before the prefix": b"/../anthropic/v1/models",
    "dots that lead to the prefix": b"/x/../anthropic/v1/models",
    "dots behind two slashes": b"/anthropic//../v1/models",
    "%2e%2E": b"/anthropic/%2e%2E/v1/messages",
    ".%2e": b"/anthropic/.%2e/v1/messages",
    "%2e.": b"/anthropic/%2e./v1/messages",
    "%2e": b"/anthropic/%2e/v1/messages",
    "%252e%252e": b"/anthropic/%252e%252e/v1/messages",
    "%25252e.": b"/anthropic/%25252e./v1/messages",
    "%%32%65": b"/anthropic/%%32%65%%32%65/v1/messages",
    "overlong dots": b"/anthropic/%c0%ae%c0%ae/v1/messages",
    "overlong dots, three bytes": b"/anthropic/%e0%80%ae%e0%80%ae/v1/messages",
    "overlong slash": b"/anthropic/v1/..%c0%afmessages",
    "overlong backslash": b"/anthropic/v1/..%c1%9cmessages",
    "dots with parameters": b"/anthropic/..;x=1/v1/messages",
    "a dot with parameters": b"/anthropic/.;/v1/messages",
    "dots with encoded parameters": b"/anthropic/..%3bx/v1/messages",
    "dots and NUL": b"/anthropic/..%00/v1/messages",
    "dots and a blank": b"/anthropic/..%20/v1/messages",
    "dots and a tab": b"/anthropic/..%09/v1/messages",
    "dots and a line end": b"/anthropic/..%0d%0a/v1/messages",
    "dots and a question mark": b"/anthropic/v1/..%3f/messages",
    "dots and a fragment": b"/anthropic/v1/..%23/messages",
    # Slashes.
    "encoded slash": b"/anthropic/v1/..%2fmessages",
    "encoded slash before": b"/anthropic/v1/x%2f../messages",
    "encoded slash, twice": b"/anthropic/v1/..%252fmessages",
    "backslash": b"/anthropic/v1/..\\messages",
    "backslash before": b"/anthropic/v1/x\\../messages",
    "encoded backslash": b"/anthropic/v1/..%5cmessages",
    "encoded backslash, twice": b"/anthropic/v1/..%255Cmessages",
    "both": b"/anthropic/v1/..%5c%2fmessages",
    "the prefix behind a backslash": b"/\\anthropic/v1/models",
    "the prefix behind two slashes": b"//anthropic/v1/models",
    "the prefix with a backslash": b"/anthropic\\v1/models",
    "the prefix with an encoded slash": b"/anthropic%2fv1/models",
    # Another spelling of the prefix would not be cut off.
    "encoded prefix": b"/%61nthropic/v1/models",
    "prefix encoded twice": b"/%2561nthropic/v1/models",
    "prefix in capitals": b"/ANTHROPIC/v1/models",
    "prefix with parameters": b"/anthropic;x=1/v1/models",
    # Other forms than the origin-form.
    "absolute-form": b"http://evil.test/anthropic/v1/models",
    "absolute-form, own name": b"http://h/anthropic/v1/models",
    "absolute-form, https": b"https://evil.test/anthropic/v1/models",
    "absolute-form, capitals": b"HTTP://EVIL.TEST/anthropic/v1/models",
    "absolute-form, userinfo": b"http://h@evil.test/anthropic/v1/models",
    "absolute-form, no path": b"http://evil.test",
    "absolute-form, no host": b"http:///anthropic/v1/models",
    "absolute-form, no slashes": b"http:/anthropic/v1/models",
    "absolute-form, ftp": b"ftp://evil.test/anthropic/v1/models",
    "absolute-form, file": b"file:///etc/passwd",
    "absolute-form, websocket": b"ws://evil.test/anthropic/v1/models",
    "absolute-form, the cloud's metadata": b"http://169.254.169.254/latest/meta-data/",
    "authority-form": b"evil.test:80",
    "authority-form, no port": b"evil.test",
    "asterisk": b"*",
    "asterisk with a slash": b"*/anthropic/v1/models",
    "no slash": b"anthropic/v1/models",
    "userinfo": b"@evil.test/anthropic/v1/models",
    "a query alone": b"?/anthropic/v1/models",
    "a fragment": b"/anthropic/v1/models#x",
    "a fragment with dots": b"/anthropic/v1/models#/../x",
    "a fragment in the query": b"/anthropic/v1/models?x#y",
    "an empty fragment": b"/anthropic/v1/models#",
    "a fragment alone": b"#/anthropic/v1/models",
    # Bytes that are no part of a URI.
    "UTF-8": "/anthropic/v1/modéls".encode(),
    "0xff": b"/anthropic/v1/\xff",
    "0x80 in the query": b"/anthropic/v1/models?\x80",
}

RAW: dict[str, bytes] = {
    "dots in a name": b"/v1/a..b/.c/d./...",
    "encoded dots in a name": b"/v1/a%2e%2Eb",
    "dots in the query": b"/v1/models?a=/../b/./c/%2e%2e/",
    "encoded slash in a name": b"/v1/a%2Fb%2fc",
    "backslash in the query": b"/v1/models?a=\\..\\b",
    "doubled slashes": b"/v1//models//",
    "a URL in the path": b"/v1/http://evil.test/",
    "a URL in the query": b"/v1/models?next=http://evil.test/%23",
    "userinfo in the path": b"/v1/user:pw@evil.test/x",
    "userinfo at the start": b"/@evil.test/x",
    "a port at the start": b"/:80/x",
    "encoded line end": b"/v1/x%0d%0aX-A:%201",
    "encoded line end in the query": b"/v1/x?a=%0d%0a%0d%0aGET%20/evil",
    "encoded NUL": b"/v1/x%00",
    "encoded blank": b"/v1/x%20HTTP/1.1",
    "encoded fragment": b"/v1/x%23y",
    "encoded question mark": b"/v1/x%3fy",
    "no escape": b"/v1/x%zz%",
    "no escape in the query": b"/v1/x?%zz%",
    "an empty query": b"/v1/models?",
    "two question marks": b"/v1/models??a?b",
    "parameters": b"/v1/models;a=b;c",
    "brackets": b'/v1/a[0]{b}|c^`<d>"e"',
    "sub-delimiters": b"/v1/!$&'()*+,;=:@-._~",
    "capitals": b"/V1/MODELS",
}

# What upstream might read as the model route goes by the rules for bodies: these name no model.
MODEL_ROUTES: list[bytes] = [
    b"/anthropic/v1/messages?beta=true",
    b"/anthropic/v1/messages/",
    b"/anthropic/v1//messages",
    b"/anthropic//v1/messages",
    b"/anthropic/V1/Messages",
    b"/anthropic/v1/%6dessages",
    b"/anthropic/v1/%256dessages",
    b"/anthropic/v1/messages;x=1",
    b"/anthropic/v1/messages%3bx",
    b"/anthropic/v1/messages%3fx",
    b"/anthropic/v1/messages%23x",
    b"/anthropic/v1/messages%00",
    b"/anthropic/v1/messages%20",
    b"/anthropic/v1%2fmessages",
    b"/anthropic/v1\\messages",
    b"/anthropic/v1%5cmessages",
    b"//v1/messages",
    b"/v1/messages/count_tokens/",
    b"/v1/complete%00x",
]


def _get(target: bytes) -> bytes:
    return b"GET " + target + VERSION + b"\r\n"


TARGETS: dict[str, Case] = {
    **{name: refused(_get(target), status=404) for name, target in NOT_FOUND.items()},
    **{name: refused(_get(target)) for name, target in BAD.items()},
    **{
        f"{name}, as it is": relayed(_get(b"/anthropic" + target), upstream=got(target=target))
        for name, target in RAW.items()
    },
    **{
        f"a model route: {target.decode()}": Case(
            (b"POST " + target + VERSION + SIZED + BODY.replace(b"model", b"mudel"),), (400,), goes_on=True
        )
        for target in MODEL_ROUTES
    },
    "asterisk, OPTIONS": refused(b"OPTIONS *" + VERSION + b"\r\n"),
    "absolute-form with a body": refused(
        b"POST http://evil.test/anthropic/v1/files" + VERSION + SIZED + BODY
    ),
    "absolute-form, chunked": refused(
        b"POST http://evil.test/anthropic/v1/files" + VERSION + CHUNKED + CHUNKED_BODY
    ),
    "absolute-form, other host": refused(
        b"GET http://evil.test/anthropic/v1/models HTTP/1.1\r\nHost: other.test\r\n\r\n"
    ),
    "unknown with a body": refused(b"POST /unknown" + VERSION + SIZED + BODY, status=404),
    "unknown with a request for a body": refused(
        b"POST /unknown"
        + VERSION
        + b"Content-Length: %d\r\n\r\n" % len(_get(b"/anthropic/v1/evil"))
        + _get(b"/anthropic/v1/evil"),
        status=404,
    ),
    "own path with a method that it lacks": refused(b"DELETE /health" + VERSION + b"\r\n", status=405),
    "own path with a body": refused(b"POST /metrics" + VERSION + SIZED + BODY, status=405),
}
