"""Header fields by which a client reaches for what is the proxy's: its key, the framing, the hop, the names.

Facts
  - `Connection` names fields that end at this hop (RFC 9110 section 7.6.1). Taken at its word before ours are
    set it removes the client's own; after, it would remove our key (CVE-2026-105299 of Pingora).
  - CGI, WSGI and their kin read ``_`` in a name as ``-`` (RFC 3875 section 4.1.18), so that ``x_api_key`` is
    ``x-api-key`` to an upstream of that kind. Such a spelling has the fate of the name that it stands for.
"""

from __future__ import annotations

from hostile_case import (
    BODY,
    CHUNKED,
    CHUNKED_BODY,
    END,
    GET,
    MODEL,
    OWN_KEY,
    SIZED,
    UPLOAD,
    Case,
    got,
    model,
    refused,
    relayed,
    upload,
)

_VERSION = (b"anthropic-version", b"2023-06-01")
_TYPE = (b"Content-Type", b"application/json")
_OWN = b"anthropic-version: 2023-06-01\r\nContent-Type: application/json\r\nx-api-key: sk-test-client\r\n"

NAMED: dict[str, tuple[bytes, tuple[tuple[bytes, bytes], ...]]] = {
    "our key": (b"x-api-key", (_VERSION, _TYPE)),
    "our key, in capitals": (b"X-API-KEY", (_VERSION, _TYPE)),
    "our key and close": (b"close, x-api-key", (_VERSION, _TYPE)),
    "our key, behind commas": (b",, ,x-api-key,", (_VERSION, _TYPE)),
    "a bearer": (b"authorization", (_VERSION, _TYPE)),
    "the length": (b"content-length", (_VERSION, _TYPE)),
    "the host": (b"host", (_VERSION, _TYPE)),
    "the coding": (b"transfer-encoding", (_VERSION, _TYPE)),
    "the type": (b"content-type", (_VERSION,)),
    "the version": (b"anthropic-version", (_TYPE,)),
    "the encoding": (b"accept-encoding", (_VERSION, _TYPE)),
    "itself": (b"connection", (_VERSION, _TYPE)),
    "everything": (
        b"host, content-length, transfer-encoding, content-type, anthropic-version, x-api-key, authorization",
        (),
    ),
    "nothing": (b"", (_VERSION, _TYPE)),
    "what is no name": (b'"x-api-key", (x), @', (_VERSION, _TYPE)),
    "1000 names": (b",".join(b"x-%d" % number for number in range(1000)), (_VERSION, _TYPE)),
}

CONNECTION: dict[str, Case] = {
    **{
        name: relayed(
            MODEL + _OWN + b"Connection: " + value + b"\r\n" + SIZED + BODY,
            upstream=model(*fields, OWN_KEY),
            goes_on=b"close" not in value,
            own_key=True,
        )
        for name, (value, fields) in NAMED.items()
    },
    **{
        f"{name}, chunked upload": relayed(
            UPLOAD + _OWN + b"Connection: " + value + b"\r\n" + CHUNKED + CHUNKED_BODY,
            upstream=upload(*fields, OWN_KEY, chunked=True),
            goes_on=None,
            own_key=True,
        )
        for name, (value, fields) in NAMED.items()
        if name in ("our key", "the length", "the coding", "everything")
    },
    "in two fields": relayed(
        MODEL + _OWN + b"Connection: keep-alive\r\nConnection: x-api-key, content-type\r\n" + SIZED + BODY,
        upstream=model(_VERSION, OWN_KEY),
        own_key=True,
    ),
    "hop-by-hop fields that it does not name": relayed(
        GET
        + b"Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\n"
        + b"Proxy-Authenticate: Basic\r\nTE: trailers\r\nTrailer: X-A\r\nHTTP2-Settings: AAMAAABk\r\nX-A: 1"
        + END,
        upstream=got((b"X-A", b"1")),
    ),
    "X-Forwarded-For": relayed(
        GET + b"Connection: x-forwarded-for\r\nX-Forwarded-For: 192.0.2.1" + END, upstream=got()
    ),
    "control byte": refused(GET + b"Connection: x-api-key\x01" + END),
}

# Credentials in every spelling that an upstream could take for one.
SPELLINGS: dict[str, bytes] = {
    "as usual": b"x-api-key: sk-test-client",
    "twice": b"x-api-key: sk-test-client\r\nX-Api-Key: sk-test-other",
    "every one": b"Authorization: Bearer sk-test-a\r\nx-api-key: sk-test-b\r\n"
    b"x-goog-api-key: sk-test-c\r\napi-key: sk-test-d",
    "x_api_key": b"x_api_key: sk-test-client",
    "X_Api-Key": b"X_Api-Key: sk-test-client",
    "x-api_key": b"x-api_key: sk-test-client",
    "api_key": b"API_KEY: sk-test-client",
    "x_goog_api_key": b"x_goog_api_key: sk-test-client",
    "a basic one": b"Authorization: Basic c2stdGVzdA==",
    "one of a proxy": b"Proxy-Authorization: Bearer sk-test-client",
    "one of a proxy, underscored": b"Proxy_Authorization: Bearer sk-test-client",
    "empty": b"x-api-key:",
}

CREDENTIALS: dict[str, Case] = {
    **{
        f"{name}, own key": relayed(
            MODEL + lines + b"\r\n" + SIZED + BODY, upstream=model(OWN_KEY), own_key=True
        )
        for name, lines in SPELLINGS.items()
    },
    **{
        f"virtual key in {name.decode()}": refused(
            MODEL + name + b": sk-bf-0123456789\r\n" + SIZED + BODY, status=401, goes_on=None
        )
        for name in (b"x-bf-vk", b"X_BF_VK", b"x-api-key", b"x_api_key", b"Authorization", b"api_key")
    },
}

UNDERSCORES: dict[str, Case] = {
    **{
        name: relayed(MODEL + name.encode() + b": " + value + b"\r\n" + SIZED + BODY, upstream=model())
        for name, value in {
            "Content_Length": b"0",
            "content-length_": b"0",
            "Transfer_Encoding": b"chunked",
            "TRANSFER_ENCODING": b"chunked",
            "Proxy_Connection": b"close",
            "Keep_Alive": b"timeout=1",
            "HTTP2_Settings": b"AAMAAABk",
            "x_bf_control": b"1",
        }.items()
        if not name.endswith("_")
    },
    "what stands for no name of ours": relayed(
        GET + b"x_trace_id: 1\r\n_: 2" + END, upstream=got((b"x_trace_id", b"1"), (b"_", b"2"))
    ),
}
