"""Lengths and codings: where a request ends, told in ways that two readers could take differently.

Facts
  - Content-Length is 1*DIGIT, once (RFC 9110 section 8.6); a list of equal ones may be refused as well.
  - A request with both Content-Length and Transfer-Encoding ought to be handled as an error, and with a
    coding whose last one is not chunked it must be 400 (RFC 9112 section 6.3).
  - CVE-2023-47641 (lengths and codings), CVE-2026-2835 (a coding in HTTP/1.0) and most of HTTP Garden's
    findings are of this kind.
"""

from __future__ import annotations

from hostile_case import (
    BODY,
    CHUNKED,
    CHUNKED_BODY,
    END,
    GET,
    MODEL,
    UPLOAD,
    Case,
    Sent,
    model,
    refused,
    relayed,
    upload,
)

NO_LENGTHS: dict[str, bytes] = {
    "list of equal ones": b"13, 13",
    "list of different ones": b"13, 14",
    "list with nothing behind": b"13,",
    "list with nothing before": b",13",
    "plus": b"+13",
    "minus": b"-13",
    "minus zero": b"-0",
    "hexadecimal": b"0xd",
    "octal": b"0o15",
    "underscore": b"1_3",
    "point": b"13.0",
    "exponent": b"1e1",
    "blank inside": b"1 3",
    "tab inside": b"1\t3",
    "semicolon": b"13;",
    "quoted": b'"13"',
    "letters": b"thirteen",
    "nothing": b"",
    "blanks": b"  ",
    "Arabic digits": "١٣".encode(),
    "full-width digits": "１３".encode(),  # noqa: RUF001
    "superscript": "¹³".encode(),
    "superscript in latin-1": b"\xb9\xb3",
    "vertical tab before": b"\x0b13",
    "vertical tab behind": b"13\x0b",
    "form feed behind": b"13\x0c",
    "no-break space before": b"\xa013",
    "NUL behind": b"13\x00",
    "23 digits": b"99999999999999999999999",
    "2 to the 64": b"18446744073709551616",
    "2 to the 64 and 13": b"18446744073709551629",
    # The largest that a parser with 64 bits can hold; some take it for "unknown".
    "2 to the 64 less 1": b"18446744073709551615",
    "1000 digits": b"1" * 1000,
}

LENGTHS: dict[str, Case] = {
    **{
        f"{name}, {route}": refused(begin + b"Content-Length: " + value + END + BODY)
        for name, value in NO_LENGTHS.items()
        for route, begin in (("model", MODEL), ("upload", UPLOAD))
    },
    "two equal ones": refused(MODEL + b"Content-Length: 13\r\nContent-Length: 13" + END + BODY),
    "two different ones": refused(MODEL + b"Content-Length: 13\r\nContent-Length: 0" + END + BODY),
    "two different ones, upload": refused(UPLOAD + b"Content-Length: 0\r\nContent-Length: 13" + END + BODY),
    "two, far apart": refused(
        UPLOAD + b"Content-Length: 13\r\n" + b"X-A: 1\r\n" * 50 + b"content-length: 12" + END + BODY
    ),
    "two on a GET": refused(GET + b"Content-Length: 0\r\nContent-Length: 0" + END),
    "folded": refused(UPLOAD + b"Content-Length: 1\r\n 3" + END + BODY),
    "folded from the start": refused(UPLOAD + b"Content-Length:\r\n 13" + END + BODY),
    "blank before the colon": refused(UPLOAD + b"Content-Length : 13" + END + BODY),
    "tab before the colon": refused(UPLOAD + b"Content-Length\t: 13" + END + BODY),
    "NUL in the name": refused(UPLOAD + b"Content-Length\x00: 13" + END + BODY),
    "leading zeros": relayed(UPLOAD + b"Content-Length: 0013" + END + BODY, upstream=upload()),
    "1000 leading zeros": relayed(
        MODEL + b"Content-Length: " + b"0" * 1000 + b"13" + END + BODY, upstream=model()
    ),
    "blanks around": relayed(UPLOAD + b"Content-Length:   13 \t" + END + BODY, upstream=upload()),
    "no blank": relayed(UPLOAD + b"CONTENT-LENGTH:13" + END + BODY, upstream=upload()),
    "zero": relayed(UPLOAD + b"Content-Length: 0" + END, upstream=upload(body=b"")),
    "zero on a GET": relayed(GET + b"Content-Length: 0" + END, upstream=Sent("GET", b"/v1/models", body=b"")),
    "none on a POST": relayed(UPLOAD + b"X-A: 1" + END, upstream=upload((b"X-A", b"1"), body=None)),
    "underscore in the name": relayed(
        UPLOAD + b"Content_Length: 99\r\nContent-Length: 13" + END + BODY, upstream=upload()
    ),
}

NO_CODINGS: dict[str, bytes] = {
    "xchunked": b"xchunked",
    "chunkedx": b"chunkedx",
    "chunke": b"chunke",
    "chunked-": b"chunked-",
    "x-chunked": b"x-chunked",
    "identity": b"identity",
    "gzip": b"gzip",
    "chunked, identity": b"chunked, identity",
    "chunked, gzip": b"chunked, gzip",
    "chunked twice": b"chunked, chunked",
    "comma behind": b"chunked,",
    "commas": b",,",
    "parameter": b"chunked;q=1",
    "semicolon": b"chunked;",
    "quoted": b'"chunked"',
    "single quotes": b"'chunked'",
    "vertical tab before": b"\x0bchunked",
    "vertical tab behind": b"chunked\x0b",
    "form feed before": b"\x0cchunked",
    "no-break space before": b"\xa0chunked",
    "no-break space in UTF-8 behind": b"chunked\xc2\xa0",
    "NUL behind": b"chunked\x00",
    "NUL inside": b"chun\x00ked",
    "DEL behind": b"chunked\x7f",
    "Kelvin sign": "chun\u212aed".encode(),
    "d with a stroke": "chunke\u0111".encode(),
    "blank inside": b"chunk ed",
    "true": b"true",
    "a number": b"13",
}

NOT_ONLY_CHUNKED: dict[str, bytes] = {
    "identity, chunked": b"identity, chunked",
    "gzip, chunked": b"gzip, chunked",
    "comma before": b", chunked",
}

TWICE: dict[str, bytes] = {
    "chunked and chunked": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "chunked and identity": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "identity and chunked": b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "gzip and chunked": b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
    "nothing and chunked": b"Transfer-Encoding:\r\nTransfer-Encoding: chunked",
    "chunked and x, another case": b"Transfer-Encoding: chunked\r\ntransfer-encoding: x",
}

HIDDEN: dict[str, bytes] = {
    "blank before the colon": b"Transfer-Encoding : chunked",
    "tab before the colon": b"Transfer-Encoding\t: chunked",
    "blank before the name": b"X-A: 1\r\n Transfer-Encoding: chunked",
    "NUL in the name": b"Transfer-\x00Encoding: chunked",
    "NUL before the name": b"\x00Transfer-Encoding: chunked",
    "soft hyphen in the name": b"Transfer\xadEncoding: chunked",
    "behind a bare CR": b"X-A: 1\rTransfer-Encoding: chunked",
    "behind a bare LF": b"X-A: 1\nTransfer-Encoding: chunked",
    "behind LF CR": b"X-A: 1\n\rTransfer-Encoding: chunked",
    "folded": b"Transfer-Encoding: chun\r\n ked",
    "folded from the start": b"Transfer-Encoding:\r\n chunked",
    "folded with LF": b"Transfer-Encoding:\n chunked",
    "no colon": b"Transfer-Encoding chunked",
    "equals sign": b"Transfer-Encoding= chunked",
}

CODINGS: dict[str, Case] = {
    **{
        name: refused(UPLOAD + b"Transfer-Encoding: " + value + END + CHUNKED_BODY)
        for name, value in NO_CODINGS.items()
    },
    # These the parser takes for chunked; what is asked for is not implemented (RFC 9112 section 6.1).
    **{
        name: refused(UPLOAD + b"Transfer-Encoding: " + value + END + CHUNKED_BODY, status=501)
        for name, value in NOT_ONLY_CHUNKED.items()
    },
    # Here it sees no coding, so that what follows is no body but bytes behind a request.
    **{
        name: refused(UPLOAD + b"Transfer-Encoding:" + value + END + CHUNKED_BODY, in_pieces=(501,))
        for name, value in {"nothing": b"", "blanks": b" \t "}.items()
    },
    **{name: refused(UPLOAD + lines + END + CHUNKED_BODY) for name, lines in (TWICE | HIDDEN).items()},
    **{
        f"{name}, with a length": refused(UPLOAD + b"Content-Length: 13\r\n" + lines + END + CHUNKED_BODY)
        for name, lines in HIDDEN.items()
    },
    "CL.TE": refused(MODEL + b"Content-Length: 13\r\n" + CHUNKED + CHUNKED_BODY),
    "CL.TE, upload": refused(UPLOAD + b"Content-Length: 23\r\n" + CHUNKED + CHUNKED_BODY),
    "CL.TE, zero": refused(UPLOAD + b"Content-Length: 0\r\n" + CHUNKED + CHUNKED_BODY),
    "TE.CL": refused(MODEL + b"Transfer-Encoding: chunked\r\nContent-Length: 4" + END + CHUNKED_BODY),
    "TE.CL, upload": refused(
        UPLOAD + b"Transfer-Encoding: chunked\r\nContent-Length: 0" + END + CHUNKED_BODY
    ),
    "TE.CL on a GET": refused(GET + b"Transfer-Encoding: chunked\r\nContent-Length: 0" + END + b"0\r\n\r\n"),
    "a coding that is none, and a length": refused(
        UPLOAD + b"Transfer-Encoding: identity\r\nContent-Length: 13" + END + BODY
    ),
    "in HTTP/1.0": refused(UPLOAD.replace(b"1.1", b"1.0") + CHUNKED + CHUNKED_BODY),
    "in HTTP/1.0 with keep-alive": refused(
        UPLOAD.replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\n" + CHUNKED + CHUNKED_BODY
    ),
    "underscore in the name": relayed(
        UPLOAD + b"Transfer_Encoding: chunked\r\nContent-Length: 13" + END + BODY, upstream=upload()
    ),
    "capitals": relayed(
        MODEL + b"TRANSFER-ENCODING:CHUNKED" + END + CHUNKED_BODY, upstream=model(), goes_on=None
    ),
    "upload": relayed(UPLOAD + CHUNKED + CHUNKED_BODY, upstream=upload(chunked=True), goes_on=None),
    "on a GET": relayed(
        GET + CHUNKED + b"0\r\n\r\n",
        upstream=Sent("GET", b"/v1/models", body=b"", chunked=True),
        goes_on=None,
    ),
    "TE is no coding": relayed(UPLOAD + b"TE: chunked\r\nContent-Length: 13" + END + BODY, upstream=upload()),
}
