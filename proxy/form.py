"""Forms: where the field `model` stands in a multipart/form-data body, found while the body streams in.

Facts
  - A delimiter is CR LF, ``--`` and the boundary; behind the last one is ``--`` (RFC 2046, 5.1.1). A boundary
    has 1 to 70 characters of a set, and stands in quotes unless it is a token.
  - A part is named by its ``Content-Disposition: form-data; name="NAME"``, and is a file if that has a
    ``filename``. ``name*`` is not allowed, Content-Transfer-Encoding is no longer (RFC 7578, 4.2 and 4.7).
  - Fields come in any order: openai-python sends files last, browsers, Node and curl as they were added.
  - Readers of one form may find different models in it (run on 2026-11-22). Werkzeug 3.1 and Python's email
    end lines at a lone LF. Django 5.2 finds a boundary within a line, and a part behind the last one. All of
    them take a boundary right behind a head for a delimiter. Of two dispositions python-multipart 0.0.34 and
    Django read the last, email, Werkzeug and busboy 1.6 the first. Werkzeug reads ``mod\\el`` as `model`;
    formidable 3.5 finds ``name=model`` in the name of a file; busboy drops a field for two semicolons in a
    row; some decode base64; Node's undici drops a BOM, from names as well.

Rules
  1. What is read in two ways is refused where it is seen, in files too. It costs no honest client anything:
     they draw boundaries at random, and write few kinds of header fields.
  2. However the body is cut into chunks, the outcome is the same, offsets included. Held are a delimiter's
     length, or the head of one part, or the value; nothing of a file.
  3. The first `model` is the one. `feed` may go on behind it, and then refuses a second one.

A caller that stops at the first `model` streams what follows unseen, and a second one may be in there. Which
of the two counts is up to the provider: Go's FormValue takes the first, Starlette the last. So a client whose
key allows one model could use another, and be charged for the first. Where a key's models are limited or paid
for, go on feeding, and let no form that is refused reach its end upstream.

python-multipart is as fast, but tells no offsets, and hands on as data what others take for a delimiter: all
of it would have to be searched again. It also says nothing of a form that ends too early.

What it costs, measured on 2026-11-22 on a 2-core Xeon with Debian's CPython 3.11.2: random bytes pass with
3.8 GB/s in chunks of 64 KiB (python-multipart: 4.4), 2.0 GB/s as 25 MiB at once (3.3) and 1.5 GB/s in chunks
of 1400 bytes (0.7). A part costs 3 µs. The slowest known, all dashes with a boundary nearly of dashes, pass
with 35 MB/s; parts whose head has 8 KiB with 17 MB/s.

Not here: JSON (`body`), who must name a model (`formats`), what its name means (`plan`), putting in another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from urllib.parse import unquote_to_bytes

from .errors import ProxyError, Source
from .grammar import bad

LONGEST = 1 << 14
"""Bytes of `model` at most; as many as in JSON."""

LONGEST_HEAD = 1 << 13
"""Bytes of one part's header fields at most."""

MOST_PARTS = 1000
"""Parts at most, as in Starlette and Django: each costs a turn in Python."""

_TOKEN = rb"[!#$%&'+.^_`|~0-9A-Za-z-]+"
"""As in RFC 9110, section 5.6.2, but for the asterisk: it marks what RFC 7578 does not allow."""

_LINE = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
"""A header field. It takes one line: readers differ on what a space at a line's start means."""

_PARAMETER = re.compile(
    # Clients do send `filename*`; it makes a file like `filename` does.
    rb"[ \t]*;[ \t]*(filename[*]|" + _TOKEN + rb")=(?:([*!#$%&'+.^_`|~0-9A-Za-z-]+)|\"((?:[^\"\\]|\\.)*)\")",
    re.IGNORECASE,
)

_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")

_NAMED = re.compile(rb"\bname[ \t]*[*=]", re.IGNORECASE)

_MARKS = re.compile(rb"[^a-z0-9_]+")
"""What some readers drop from a name, or give a meaning: blanks, a BOM, backslashes, brackets."""

_PLAIN = re.compile(
    rb"text/plain(?:[ \t]*;[ \t]*charset=(?:\"?(?:(utf-8)|us-ascii|iso-8859-1)\"?))?", re.IGNORECASE
)
"""The Content-Type of a field that every reader takes for the same text, if it is ASCII or has the group."""


class Search:
    """The search in one form. After an error it is over."""

    def __init__(self, content_type: bytes) -> None:
        """Raises `ProxyError` 400 if `content_type` is no multipart/form-data with a sound boundary."""
        self.model = ""
        self.span: tuple[int, int] | None = None
        """Where the value of `model` stands in the whole body; None while it is not found."""
        self.stream = False
        """Whether a field `stream` has been seen that says true. It may come behind the model, too."""
        self._dash = b"--" + _boundary(content_type)
        self._read: Callable[[Search], bool] = Search._opening
        """What comes next. It returns False when it wants more bytes."""
        self._window = b""
        self._base = 0
        """The offset of the window's first byte in the body."""
        self._pos = 0
        """Where in the window reading goes on."""
        self._parts = 0
        self._closed = False
        self._name = b""
        """Of the current part: `model`, `stream`, or empty."""
        self._ascii = False
        self._value = bytearray()

    def feed(self, data: bytes) -> bool:
        """Read on; whether the model is known. Raises `ProxyError` 400 if no form can become of it."""
        self._window = self._window[self._pos :] + data
        self._base += self._pos
        self._pos = 0
        while self._read(self):
            pass
        return self.span is not None

    def end(self) -> None:
        """All of the body has been fed. Raises `ProxyError` 400 if it is no whole form; a model may lack."""
        if not self._closed:
            at = self._base + len(self._window)
            raise bad(at, "the form ends too early", "end it with its boundary between `--` and `--`")

    def _opening(self) -> bool:
        """The first delimiter. Nothing may be in front of it but its own CR LF, which most leave out."""
        if len(self._window) < 2 + len(self._dash):
            return False
        start = 2 if self._window.startswith(b"\r\n") else 0
        if not self._window.startswith(self._dash, start):
            raise bad(start, "the form does not begin with its boundary", "send the one of the Content-Type")
        self._pos = start + len(self._dash)
        self._read = Search._behind_boundary
        return True

    def _behind_boundary(self) -> bool:
        """What follows the boundary in a delimiter's line: a part, or the end."""
        mark = self._window[self._pos : self._pos + 2]
        if len(mark) < 2:
            return False
        if mark == b"\r\n":
            self._parts += 1
            if self._parts > MOST_PARTS:
                raise self._bad("the form has too many parts", f"send {MOST_PARTS} at most")
            self._read = Search._head
        elif mark == b"--":
            self._closed = True
            self._read = Search._behind_end
        else:
            raise self._bad("a line begins with the boundary and goes on", "draw another boundary")
        self._pos += 2
        return True

    def _behind_end(self) -> bool:
        """Line ends at most. RFC 2046 has an epilogue, but forms have none, and Django reads it as a part."""
        rest = self._window[self._pos :]
        self._pos += len(rest) - len(rest.lstrip(b"\r\n"))
        if self._pos < len(self._window):
            raise self._bad("the form goes on behind its last boundary", "end it there")
        return False

    def _head(self) -> bool:
        """The header fields of a part, and the empty line behind them."""
        if self._window.startswith(b"\r\n", self._pos):
            raise self._bad("a part has no Content-Disposition", "send one with its name")
        end = self._window.find(b"\r\n\r\n", self._pos)
        if (end if end >= 0 else len(self._window) - 3) - self._pos > LONGEST_HEAD:
            raise self._bad("the header fields of a part are too long", f"send {LONGEST_HEAD} bytes at most")
        if end < 0:
            return False
        head = self._window[self._pos : end]
        if self._dash in head:
            raise self._bad("the boundary stands where no delimiter is", "draw another boundary")
        self._begin(self._field(head))
        self._pos = end + 4
        return True

    def _field(self, head: bytes) -> bytes:
        """The name of the field that has this head, if it is one of ours."""
        fields: dict[bytes, bytes] = {}
        for line in head.split(b"\r\n"):
            field = _LINE.fullmatch(line)
            if field is None:
                raise self._bad("a part has a header field that is none", "send NAME: VALUE in one line each")
            if field[1].lower() in fields:
                raise self._bad("a part has the same header field twice", "send it once")
            fields[field[1].lower()] = field[2].rstrip(b" \t")
        disposition = fields.get(b"content-disposition", b"")
        parameters = _parameters(b"form-data", disposition)
        if parameters is None or b"name" not in parameters or len(_NAMED.findall(disposition)) > 1:
            raise self._bad(
                "a part's Content-Disposition is missing or ambiguous",
                'send one such as form-data; name="NAME", with one name, in ASCII or UTF-8',
            )
        name = parameters[b"name"]
        if name == b"stream":
            return name
        if name != b"model":
            if _MARKS.sub(b"", unquote_to_bytes(name).lower()) == b"model":
                raise self._bad("a field is `model` to some parsers and not to others", "send `model`")
            return b""
        if b"filename" in parameters or b"filename*" in parameters:
            raise self._bad("`model` is a file", "send it as a field, without a file name")
        if self.span is not None:
            raise self._bad("`model` comes a second time", "send it once: parsers differ on which counts")
        encoding = fields.get(b"content-transfer-encoding", b"binary").lower()
        plain = _PLAIN.fullmatch(fields.get(b"content-type", b'text/plain; charset="utf-8"'))
        if encoding not in (b"7bit", b"8bit", b"binary") or plain is None:
            raise self._bad("`model` is encoded", "send it as plain text in UTF-8")
        self._ascii = plain[1] is None
        return name

    def _begin(self, name: bytes) -> None:
        """What follows is data, up to a delimiter."""
        self._read = Search._data
        self._name = name
        self._value.clear()

    def _data(self) -> bool:
        window, start = self._window, self._pos
        at = window.find(self._dash, start)
        # What comes next may complete a delimiter, of which all but one byte may be here.
        end = max(start, (at if at >= 0 else len(window) - len(self._dash) + 1) - 2)
        if self._name == b"model" and len(self._value) + end - start > LONGEST:
            self._pos -= len(self._value)
            raise self._bad("`model` is too long", f"send {LONGEST} bytes at most")
        if self._name and len(self._value) <= LONGEST:
            self._value += window[start : min(end, start + LONGEST + 1)]
        self._pos = end
        if at < 0:
            return False
        if window[end:at] != b"\r\n":
            self._pos = at
            raise self._bad("the boundary stands where no delimiter is", "draw another boundary")
        self._end_part()
        self._pos = at + len(self._dash)
        self._read = Search._behind_boundary
        return True

    def _end_part(self) -> None:
        value = bytes(self._value)
        if self._name == b"stream":
            self.stream = self.stream or value == b"true"
        if self._name != b"model":
            return
        end = self._base + self._pos
        start = end - len(value)
        try:
            model = value.decode("ascii" if self._ascii else "utf-8")
        except UnicodeDecodeError as error:
            raise bad(start + error.start, "`model` is not UTF-8", "send the name of a model") from None
        if not model:
            raise bad(start, "`model` is empty", "send the name of a model")
        if not model.isprintable() or model != model.strip():
            # Some readers drop these, and then mean another model than the one that was checked.
            raise bad(start, "`model` holds control characters, or spaces around it", "send it without")
        self.model, self.span = model, (start, end)

    def _bad(self, problem: str, remedy: str) -> ProxyError:
        return bad(self._base + self._pos, problem, remedy)


def _boundary(content_type: bytes) -> bytes:
    parameters = _parameters(b"multipart/form-data", content_type)
    if parameters is None:
        raise _bad_type("is not multipart/form-data with sound parameters, each of them once")
    boundary = parameters.get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise _bad_type("has no boundary of 1 to 70 of the characters that RFC 2046 allows")
    return boundary


def _bad_type(problem: str) -> ProxyError:
    return ProxyError(400, f"The Content-Type of the request {problem}.", source=Source.DOWNSTREAM)


def _parameters(kind: bytes, value: bytes) -> Mapping[bytes, bytes] | None:
    """The parameters of a `value` of this kind, as they stand in their quotes; None if one is not sound."""
    found: dict[bytes, bytes] = {}
    pos = len(kind)
    if value[:pos].lower() != kind:
        return None
    while pos < len(value):
        parameter = _PARAMETER.match(value, pos)
        if parameter is None or parameter[1].lower() in found:
            return None
        found[parameter[1].lower()] = parameter[2] if parameter[2] is not None else parameter[3]
        pos = parameter.end()
    return found
