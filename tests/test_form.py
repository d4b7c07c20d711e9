"""The search for `model` in a form: what it finds, what it refuses and at which byte, in any chunking.

The references are python-multipart and Python's email; the bodies of clients were captured from them.
"""

from __future__ import annotations

import email
import io
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest
import python_multipart
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import ProxyError, Source
from proxy.form import LONGEST, LONGEST_HEAD, MOST_PARTS, Search

MIB = 1 << 20
TYPE = b"multipart/form-data; boundary=b"
HEAD = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n%b\r\n'
MODEL = HEAD % b"model" + b"one\r\n"
SECOND = HEAD % b"model" + b"two\r\n"
END = b"--b--\r\n"
START = len(HEAD % b"model")
"""Where the value stands in a form that begins with `MODEL`."""

Outcome = tuple[str, tuple[int, int] | None, bool] | tuple[str, int | None]


def pieces(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


def outcome(chunks: Iterable[bytes], content_type: bytes = TYPE) -> Outcome:
    """What becomes of a form: model, span and stream; or the message and the byte at fault."""
    search = Search(content_type)
    try:
        for chunk in chunks:
            search.feed(chunk)
        search.end()
    except ProxyError as error:
        return f"{error.status} {error.source.name} {error.message}", error.offset
    return search.model, search.span, search.stream


def read(body: bytes, content_type: bytes = TYPE) -> Outcome:
    """The outcome of a body, which must be the same whole, byte by byte, in pieces, and with empty ones."""
    whole = outcome([body], content_type)
    assert outcome(pieces(body, 1), content_type) == whole
    assert outcome(pieces(body, 7), content_type) == whole
    assert outcome([b"", *pieces(body, 40), b""], content_type) == whole
    return whole


def found(body: bytes, content_type: bytes = TYPE) -> bytes:
    """The bytes of the model in a body that is taken; they are what the model says."""
    model, span, _ = read(body, content_type)  # type: ignore[misc]
    assert body[slice(*span)] == model.encode()
    return model.encode()


def refused(body: bytes, at: int, message: str) -> bool:
    """Whether a body is refused with this message, at this byte."""
    problem, *offset = read(body)
    assert problem.startswith(f"400 DOWNSTREAM {message} at byte {at}: "), problem
    return offset == [at]


def part(*lines: bytes, value: bytes = b"one") -> bytes:
    return b"--b\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + value + b"\r\n"


def named(parameters: bytes) -> bytes:
    return part(b"Content-Disposition: form-data; " + parameters)


# What is found.


def test_the_model_is_found_with_its_span() -> None:
    """The span holds the value alone, without line ends, and counts from the body's first byte."""
    body = FILE % b"RIFF" + MODEL + END
    start = len(FILE % b"RIFF") + START
    assert read(body) == ("one", (start, start + 3), False)
    assert body[start : start + 3] == b"one"


def test_the_model_is_known_as_soon_as_its_part_has_ended() -> None:
    """From the last byte of the boundary behind it the answer is yes, and it stays so."""
    search = Search(TYPE)
    body = MODEL + FILE % b"RIFF" + END
    known = [search.feed(body[at : at + 1]) for at in range(len(body))]
    assert known.index(True) == len(MODEL + b"--b") - 1
    assert all(known[known.index(True) :])


def test_what_follows_the_model_may_stay_unread() -> None:
    """Model and span are there whatever else came in the same bytes, a second model's beginning included."""
    search = Search(TYPE)
    assert search.feed(MODEL + FILE % b"RIFF" + SECOND[:30])
    assert (search.model, search.span) == ("one", (START, START + 3))


@pytest.mark.parametrize(
    ("value", "stream"), [(b"true", True), (b"True", False), (b"false", False), (b"", False), (b"1", False)]
)
def test_only_true_streams(value: bytes, stream: bool) -> None:
    """Other values go upstream, which judges its own field; the order of the two fields does not matter."""
    streaming = HEAD % b"stream" + value + b"\r\n"
    assert read(streaming + MODEL + END)[2:] == (stream,)
    assert read(MODEL + streaming + END)[2:] == (stream,)


def test_a_stream_that_said_true_once_streams() -> None:
    """A second one takes nothing back: it is up to upstream which of them counts."""
    streaming = HEAD % b"stream" + b"true\r\n"
    assert read(streaming + streaming.replace(b"true", b"false") + MODEL + END)[2:] == (True,)


def test_a_stream_that_comes_behind_the_model_is_not_known_with_it() -> None:
    """It is only what has been seen; what is in the same bytes has been."""
    streaming = HEAD % b"stream" + b"true\r\n"
    search = Search(TYPE)
    assert search.feed(MODEL + b"--b")
    assert not search.stream
    assert search.feed((streaming + END).removeprefix(b"--b"))
    assert search.stream


SPELLINGS = [
    b'name="model"',
    b"name=model",
    b'NAME="model"',
    b' \t name="model" \t;y=z',
    b'x=y; name="model"; z="a;b\\"c"',
]


@pytest.mark.parametrize("parameters", SPELLINGS)
def test_the_name_may_be_spelt(parameters: bytes) -> None:
    """In quotes or not, in any case, among other parameters."""
    assert found(named(parameters) + END) == b"one"
    assert found(part(b"content-DISPOSITION:FORM-data;" + parameters) + END) == b"one"


@pytest.mark.parametrize(
    "name", [b"models", b"mode", b"model_", b"model2", b"", b"x model", b"model.x", b"m\xc3\xa9del"]
)
def test_another_name_is_another_field(name: bytes) -> None:
    """Names are compared exactly."""
    assert found(HEAD % name + b"two\r\n" + MODEL + END) == b"one"


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Type: text/plain; charset=utf-8",
        b'Content-Type: text/plain;charset="UTF-8"',
        b"content-type: text/plain; charset=ISO-8859-1",
        b"Content-Type: text/plain",
        b"Content-Transfer-Encoding: 8bit",
        b"Content-Transfer-Encoding: BINARY\t ",
        b"Content-Length: 3",
        b"X-Empty:",
    ],
)
def test_a_model_may_have_other_header_fields(line: bytes) -> None:
    """Those with which it is still the same text to everybody."""
    assert found(part(line, b'Content-Disposition: form-data; name="model"') + END) == b"one"


@pytest.mark.parametrize(
    "value",
    [
        b"provider/model:free@1 + 2%41&x=y",
        "grüße-😀".encode(),
        b"-",
        b"--",
        b"--c",
        b"m" * LONGEST,
    ],
)
def test_a_value_is_taken_as_it_stands(value: bytes) -> None:
    """UTF-8, undecoded otherwise, up to the limit."""
    assert found(HEAD % b"model" + value + b"\r\n" + END) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n",
        b"\r\n--",
        b"\r\n--\r\n\r\n",
        b"\r\n\r\n-b",
        b"\r\n-\r\n--a",
        b"\r\n--a\r\n\r",
        b"\n--B\n--B--",
        bytes(range(256)) * 9,
        b'Content-Disposition: form-data; name="model"\r\n\r\ntwo\r\n',
    ],
)
def test_a_file_may_hold_anything_but_the_boundary(data: bytes) -> None:
    """Dashes, line ends, and what looks like a part."""
    assert found(FILE % data + MODEL + END) == b"one"


@pytest.mark.parametrize("end", [b"", b"\r\n", b"\r", b"\n", b"\r\n\r\n"])
def test_a_form_may_end_with_line_ends(end: bytes) -> None:
    """Behind the last delimiter they say nothing to anybody."""
    assert found(MODEL + b"--b--" + end) == b"one"


def test_a_form_may_begin_with_a_line_end() -> None:
    """It belongs to the first delimiter (RFC 2046, 5.1.1), and hand-written clients send it."""
    assert read(b"\r\n" + MODEL + END) == ("one", (START + 2, START + 5), False)


@pytest.mark.parametrize("fields", [b"", FILE % b"RIFF", HEAD % b"x" + b"model\r\n"])
def test_a_form_may_lack_a_model(fields: bytes) -> None:
    """Images and videos have models of their own for who names none; the search says that there is none."""
    assert read(fields + END) == ("", None, False)


# Bodies of clients.

RIFF = b"RIFF\r\n--\xff\x00"
FIELD = b"Content-Disposition: form-data; name=%b"
CLIENTS = {
    "openai-python 3.54.0, transcriptions": (
        b"885a0df34e48441d25c177d1f096d29d",
        (FIELD % b'"model"', b"openai/whisper-1"),
        (FIELD % b'"language"', b"de"),
        (FIELD % b'"temperature"', b"0"),
        (FIELD % b'"timestamp_granularities[]"', b"word"),
        (FIELD % b'"file"; filename="a.wav"\r\nContent-Type: audio/wav', RIFF),
    ),
    "openai-python 3.54.0, images": (
        b"781d7b5531ee33789edcfb1709b44105",
        (FIELD % b'"prompt"', "grüße".encode()),
        (FIELD % b'"model"', b"gpt-image-1"),
        (FIELD % b'"image[]"; filename="a.png"\r\nContent-Type: image/png', b"PNG"),
        (FIELD % '"image[]"; filename="ü.png"\r\nContent-Type: image/png'.encode(), b"PNG"),
    ),
    "httpx 0.28.1": (
        b"c5858470462aa300d46427f5f390a000",
        (FIELD % b'"stream"', b"true"),
        (FIELD % b'"model"', b"whisper-1"),
        (FIELD % '"file"; filename="a %22ü%22.wav"\r\nContent-Type: audio/x-wav'.encode(), RIFF),
    ),
    "requests 2.34.2": (
        b"b9dcf3e40f2b8baa5d9a5afeef14ebcd",
        (FIELD % b'"file"; filename="a.wav"', RIFF),
        (FIELD % b'"model"', b"whisper-1"),
    ),
    "aiohttp 3.14.5": (
        b"77145f97373b4070972cdd40edd30c39",
        (b"Content-Type: audio/x-wav\r\n" + FIELD % b'"file"; filename="a%20%22%C3%BC%22.wav"', RIFF),
        (b"Content-Type: text/plain; charset=utf-8\r\n" + FIELD % b'"model"', b"whisper-1"),
    ),
    "Node 20.20.2, fetch with FormData": (
        b"----formdata-undici-029109157779",
        (FIELD % '"file"; filename="a %22ü%22.wav"\r\nContent-Type: audio/wav'.encode(), RIFF),
        (FIELD % b'"model"', b"whisper-1"),
        (FIELD % b'"stream"', b"true"),
    ),
    "curl 7.88.1": (
        b"------------------------28ffea6575f849ab",
        (
            FIELD % '"file"; filename="a %22ü%22.wav"\r\nContent-Type: application/octet-stream'.encode(),
            RIFF,
        ),
        (FIELD % b'"model"\r\nContent-Type: text/plain', b"whisper-1"),
        (FIELD % b'"x"', RIFF),
    ),
}


@pytest.mark.parametrize("client", CLIENTS)
def test_bodies_of_clients(client: str) -> None:
    """What clients in use send is read, the file first or last."""
    boundary, *parts = CLIENTS[client]
    body = b"".join(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, *each) for each in parts)
    body += b"--%b--\r\n" % boundary
    content_type = b"multipart/form-data; boundary=" + boundary
    model = next(value for head, value in parts if b'"model"' in head)
    assert found(body, content_type) == model
    assert read(body, content_type)[2:] == (b'"stream"' in body,)
    assert reference(body, content_type) == [model.decode()] * 2


# The Content-Type.

BOUNDARIES = [
    (b"multipart/form-data; boundary=b", b"b"),
    (b'Multipart/Form-Data;BOUNDARY="b"', b"b"),
    (b"multipart/form-data; charset=utf-8 ;boundary=b", b"b"),
    (b'multipart/form-data; boundary="a b=c:(d)?"', b"a b=c:(d)?"),
    (b"multipart/form-data; boundary=" + b"b" * 70, b"b" * 70),
    (b'multipart/form-data; boundary="----="', b"----="),
    (b"multipart/form-data; boundary=--", b"--"),
]


@pytest.mark.parametrize(("content_type", "boundary"), BOUNDARIES)
def test_the_boundary_is_the_one_of_the_content_type(content_type: bytes, boundary: bytes) -> None:
    """A token, or any of RFC 2046 in quotes."""
    assert found((MODEL + END).replace(b"--b", b"--" + boundary), content_type) == b"one"


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"application/json",
        b"multipart/mixed; boundary=b",
        b"multipart/form-data",
        b"multipart/form-datab; boundary=b",
        b"multipart/form-data, multipart/form-data; boundary=b",
        b"multipart/form-data; boundary=b, multipart/form-data; boundary=c",
        b"multipart/form-data; boundary=b; boundary=c",
        b"multipart/form-data; boundary=b; Boundary=b",
        b"multipart/form-data; boundary*=b",
        b"multipart/form-data; boundary*0=b",
        b"multipart/form-data; boundary=b; boundary*=utf-8''c",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b'multipart/form-data; boundary="b',
        b'multipart/form-data; boundary="b"c',
        b"multipart/form-data; boundary=b c",
        b"multipart/form-data; boundary=a=b",
        b"multipart/form-data; boundary=b;",
        b"multipart/form-data;; boundary=b",
        b'multipart/form-data; boundary="b "',
        b'multipart/form-data; boundary="a\\b"',
        b'multipart/form-data; boundary="a\tb"',
        b"multipart/form-data; boundary=\xc3\xa9",
        b"multipart/form-data; boundary=" + b"b" * 71,
    ],
)
def test_a_content_type_that_readers_understand_differently_is_refused(content_type: bytes) -> None:
    """Without a sound boundary nobody knows where a part ends; no byte of the body is to blame."""
    with pytest.raises(ProxyError) as caught:
        Search(content_type)
    assert (caught.value.status, caught.value.source, caught.value.offset) == (400, Source.DOWNSTREAM, None)
    assert caught.value.message.startswith("The Content-Type of the request ")


# What is refused.

AMBIGUOUS = "a part's Content-Disposition is missing or ambiguous"
NO_FIELD = "a part has a header field that is none"
PARTLY = "a field is `model` to some parsers and not to others"
NOT_A_DELIMITER = "the boundary stands where no delimiter is"
GOES_ON = "a line begins with the boundary and goes on"


def test_a_second_model_is_refused() -> None:
    """The same or another, wherever it stands: parsers differ on which counts."""
    for second in (MODEL, SECOND):
        body = MODEL + FILE % b"RIFF" + second + END
        assert refused(body, len(MODEL + FILE % b"RIFF") + 5, "`model` comes a second time")


@pytest.mark.parametrize(
    "parameters",
    [
        b'name="mod\\el"',
        b'name="mod%65l"',
        b'name="Model"',
        b"name=MODEL",
        b'name=" model"',
        b'name="model "',
        b'name="\\m%4Fdel "',
        b'name="\xef\xbb\xbfmodel"',
        b'name="model[]"',
    ],
)
def test_a_name_that_is_model_to_some_is_refused(parameters: bytes) -> None:
    """Werkzeug drops backslashes, Django blanks, undici a BOM, and brackets make a list of it for some."""
    assert refused(named(parameters) + MODEL + END, 5, PARTLY)


@pytest.mark.parametrize(
    "parameters",
    [
        b"name*=utf-8''model",
        b"name=x; name*=utf-8''model",
        b"name*0=mod; name*1=el",
        b'name="model"; name="x"',
        b'name=x; NAME="model"',
        b'filename="; name=model; "; name="x"',
        b'name="x"; filename="a\\"; name=\\"model"',
        b'filename="a name*=utf-8x"; name="x"',
        b'filename="; NAME=model; "; name="x"',
        b"my-name=model; name=x",
        b'name = "model"',
        b'name="model',
        b'name="model"x',
        b'name="model";',
        b'; name="model"',
        b'name="model" x=y',
        b"name=a b",
        b"name=\xc3\xa9",
        b"name",
        b"filename=x",
        b"",
    ],
)
def test_a_part_with_two_names_or_none_is_refused(parameters: bytes) -> None:
    """Extended ones (RFC 5987) included: readers differ on which they know, and on where one ends."""
    assert refused(named(parameters) + MODEL + END, 5, AMBIGUOUS)


@pytest.mark.parametrize(
    "value", [b"attachment; name=model", b"form-data", b"form-datax; name=model", b"form-data name=model"]
)
def test_a_part_that_is_no_form_data_is_refused(value: bytes) -> None:
    """Go and busboy pass over such parts, others read them as fields (RFC 7578, 4.2)."""
    assert refused(part(b"Content-Disposition: " + value) + MODEL + END, 5, AMBIGUOUS)


def test_a_part_without_a_disposition_is_refused() -> None:
    """It has no name (RFC 7578, 4.2), with other header fields or with none."""
    assert refused(part(b"Content-Type: text/plain") + MODEL + END, 5, AMBIGUOUS)
    assert refused(part() + MODEL + END, 5, "a part has no Content-Disposition")


def test_a_header_field_that_comes_twice_is_refused() -> None:
    """Django and python-multipart take the last disposition, Werkzeug and busboy the first."""
    model, other = (b'Content-Disposition: form-data; name="%b"' % name for name in (b"model", b"x"))
    assert refused(part(model, other) + END, 5, "a part has the same header field twice")
    assert refused(part(other, model.upper()) + END, 5, "a part has the same header field twice")


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Disposition: form-data;", b' name="model"'),
        (b'Content-Disposition : form-data; name="model"',),
        (b' Content-Disposition: form-data; name="model"',),
        (b'X: y\nContent-Disposition: form-data; name="model"', b"Content-Disposition: form-data; name=x"),
        (b'X: y\rContent-Disposition: form-data; name="model"', b"Content-Disposition: form-data; name=x"),
        (b'Content-Disposition: form-data; name="model\x00"',),
        (b'Content-Disposition: form-data; name="model"', b"no colon"),
        (b'Content-Disposition: form-data; name="model"', b": no name"),
    ],
)
def test_a_head_that_readers_split_differently_is_refused(lines: tuple[bytes, ...]) -> None:
    """Folded lines, lone line ends, blanks before a colon, control characters."""
    assert refused(part(*lines) + END, 5, NO_FIELD)


@pytest.mark.parametrize("lines", [(b"--b",), (b"Con--bent: x",), (b'X: "\r\n--b\r\n"',)])
def test_a_boundary_in_a_head_is_refused(lines: tuple[bytes, ...]) -> None:
    """It ends the part before for Django, and not for others."""
    body = part(b'Content-Disposition: form-data; name="model"', *lines) + END
    assert refused(body, 5, NOT_A_DELIMITER)


@pytest.mark.parametrize(
    "between", [b"x\n--b\n", b"x\n--b\r\n", b"x\r--b\r\n", b"x--b\r\n", b"x--b", b"--b\r\n", b"\n--b--"]
)
def test_a_boundary_where_no_delimiter_is_is_refused(between: bytes) -> None:
    """Behind a lone LF it ends a part for Werkzeug, behind a head for Go, anywhere for Django."""
    start = len(FILE % b"") - 2
    body = FILE % (between + SECOND) + MODEL + END
    assert refused(body, start + between.index(b"--b"), NOT_A_DELIMITER)
    behind = MODEL + body
    assert refused(behind, len(MODEL) + start + between.index(b"--b"), NOT_A_DELIMITER)


@pytest.mark.parametrize("rest", [b"X\r\n", b" \r\n", b"\t\r\n", b"\n", b"\r\r\n", b"-\r\n", b"-X", b"b\r\n"])
def test_a_boundary_that_begins_another_is_refused(rest: bytes) -> None:
    """By RFC 2046 such a line is a delimiter all the same; most readers take it for data, or skip blanks.

    So a boundary must not be the beginning of another one that occurs in the form.
    """
    body = FILE % (b"x\r\n--b" + rest + SECOND) + MODEL + END
    assert refused(body, body.index(b"x\r\n--b") + 6, GOES_ON)
    assert refused(b"--b" + rest + MODEL + END, 3, GOES_ON)


def test_a_form_of_lines_that_end_in_lf_is_refused() -> None:
    """Go and Python's email read it, busboy and python-multipart do not."""
    assert refused((MODEL + END).replace(b"\r\n", b"\n"), 3, GOES_ON)


@pytest.mark.parametrize(
    "preamble", [b"x", b"\n", b"\r\n\r\n", b"a preamble\r\n", b"--a\r\n", b" ", b"{}" * 9]
)
def test_a_body_that_does_not_begin_with_the_boundary_is_refused_at_once(preamble: bytes) -> None:
    """HTTP knows no preamble; so the wrong body costs nobody the time to read it."""
    search = Search(TYPE)
    with pytest.raises(ProxyError, match="the form does not begin with its boundary"):
        search.feed(preamble + MODEL[:5])
    start = 2 if preamble.startswith(b"\r\n") else 0
    assert refused(preamble + MODEL + END, start, "the form does not begin with its boundary")


@pytest.mark.parametrize(
    "rest", [b"X", b"-", b" ", b"b", b"--b\r\n", SECOND, SECOND.removeprefix(b"--b\r\n")]
)
def test_a_form_that_goes_on_behind_its_end_is_refused(rest: bytes) -> None:
    """Python's email takes the rest of the line for data, and Django for the head of one more part.

    RFC 2046 lets an epilogue follow, which is to be ignored; forms have none.
    """
    message = "the form goes on behind its last boundary"
    assert refused(MODEL + b"--b--" + rest, len(MODEL) + 5, message)
    assert refused(MODEL + END + b"\r\n" + rest, len(MODEL) + 9, message)


@pytest.mark.parametrize("cut", range(len(MODEL + END) - 2))
def test_a_form_that_ends_too_early_is_refused(cut: int) -> None:
    """Wherever it was cut, an empty body included: Django and Python's email take what they have got."""
    body = (MODEL + END)[:cut]
    assert refused(body, cut, "the form ends too early")


@pytest.mark.parametrize("parameter", [b'filename="a"', b'filename=""', b"filename*=utf-8''a", b"FileName=a"])
def test_a_model_that_is_a_file_is_refused(parameter: bytes) -> None:
    """Readers differ on whether it is a field, most of all with an empty file name."""
    assert refused(named(b'name="model"; ' + parameter) + MODEL + END, 5, "`model` is a file")


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Transfer-Encoding: base64",
        b"Content-Transfer-Encoding: quoted-printable",
        b"Content-Transfer-Encoding:",
        b"Content-Type: application/json",
        b"Content-Type: text/plain; charset=utf-16",
        b"Content-Type: text/plain; charset=utf-7",
        b"Content-Type: text/plain; charset=utf-8; charset=utf-7",
    ],
)
def test_a_model_that_is_encoded_is_refused(line: bytes) -> None:
    """Python's email and Django decode it, python-multipart's parser and Werkzeug do not."""
    disposition = b'Content-Disposition: form-data; name="model"'
    assert refused(part(disposition, line) + END, 5, "`model` is encoded")
    assert found(part(b'Content-Disposition: form-data; name="x"', line) + MODEL + END) == b"one"


@pytest.mark.parametrize(
    ("value", "at", "message"),
    [
        (b"", 0, "`model` is empty"),
        (b"\r\n", 0, "`model` holds control characters, or spaces around it"),
        (b"one\r\n", 0, "`model` holds control characters, or spaces around it"),
        (b" one", 0, "`model` holds control characters, or spaces around it"),
        (b"one\x00", 0, "`model` holds control characters, or spaces around it"),
        (b"\xef\xbb\xbfone", 0, "`model` holds control characters, or spaces around it"),
        (b"one\xff", 3, "`model` is not UTF-8"),
        (b"\xed\xa0\x80", 0, "`model` is not UTF-8"),
        (b"m" * (LONGEST + 1), 0, "`model` is too long"),
        (b"m" * (LONGEST + 3) + b"--b", 0, "`model` is too long"),
        (b"m" * LONGEST + b"--b", LONGEST, NOT_A_DELIMITER),
        (b"m" * 3 * LONGEST, 0, "`model` is too long"),
    ],
)
def test_a_value_that_is_no_models_name_is_refused(value: bytes, at: int, message: str) -> None:
    """Blanks, line ends and a BOM are dropped by some readers: undici drops the BOM."""
    assert refused(HEAD % b"model" + value + b"\r\n" + END, START + at, message)


def test_a_charset_other_than_utf_8_is_for_ascii_only() -> None:
    """Werkzeug heeds the charset of a part, others do not."""
    lines = b'Content-Disposition: form-data; name="model"', b"Content-Type: text/plain; charset=iso-8859-1"
    body = part(*lines, value="é".encode()) + END
    assert refused(body, body.index("é".encode()), "`model` is not UTF-8")


# Limits.


def test_a_head_has_a_limit() -> None:
    """One byte more is refused, before the head has ended, too; so is a line that never ends."""
    line = b'Content-Disposition: form-data; name="model"'
    fits = part(line, b"X: ".ljust(LONGEST_HEAD - len(line) - 2, b"x")) + END
    assert found(fits) == b"one"
    message = "the header fields of a part are too long"
    assert refused(fits.replace(b"X: ", b"X: x"), 5, message)
    search = Search(TYPE)
    search.feed(b"--b\r\n" + b"x" * (LONGEST_HEAD + len(b"\r\n\r")))
    with pytest.raises(ProxyError, match=message):
        search.feed(b"x")


def test_parts_have_a_limit() -> None:
    """The last part allowed may be the model; one more is refused, wherever the model stands."""
    others = HEAD % b"x" + b"\r\n"
    assert found(others * (MOST_PARTS - 1) + MODEL + END) == b"one"
    at = len(others * MOST_PARTS) + 3
    assert refused(others * MOST_PARTS + MODEL + END, at, "the form has too many parts")
    at += len(MODEL) - len(others)
    assert refused(MODEL + others * MOST_PARTS + END, at, "the form has too many parts")


@pytest.mark.parametrize("size", [1 << 16, 1400])
def test_memory_is_constant_in_front_of_the_model(size: int) -> None:
    """Of 32 MiB of file nothing is kept but a delimiter's length, and of a field that is not ours neither."""
    boundary = b"-" * 69 + b"b"
    search = Search(b"multipart/form-data; boundary=" + boundary)
    search.feed((FILE % b"").removesuffix(b"\r\n").replace(b"--b", b"--" + boundary))
    # So that every piece ends in what may be a delimiter.
    piece = b"\r\n--".rjust(size, b"\xff")
    tracemalloc.start()
    try:
        for _ in range(32 * MIB // size):
            assert not search.feed(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * size + 10_000
    assert search.feed(b"\r\n" + (MODEL + b"--b").replace(b"--b", b"--" + boundary))
    assert search.span is not None
    assert search.span[0] > 32 * MIB - size


def test_a_large_stream_field_is_not_kept() -> None:
    """It says nothing that is asked, whatever its size."""
    search = Search(TYPE)
    search.feed(HEAD % b"stream" + b"true")
    tracemalloc.start()
    try:
        for _ in range(256):
            search.feed(b"x" * (1 << 16))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MIB
    assert search.feed(b"\r\n" + MODEL + END)
    assert not search.stream


# Whatever comes.


def reference(body: bytes, content_type: bytes = TYPE) -> list[str]:
    """The models that python-multipart and Python's email read in a form, all of them."""
    models: list[str] = []

    def take(field: python_multipart.multipart.Field) -> None:
        if field.field_name == b"model":
            models.append((field.value or b"").decode("utf-8", "replace"))

    head = {"Content-Type": content_type}
    python_multipart.parse_form(head, io.BytesIO(body), take, lambda file: file.close())  # type: ignore[arg-type]
    message = email.message_from_bytes(b"Content-Type: " + content_type + b"\r\n\r\n" + body)
    for each in message.get_payload():
        if each.get_param("name", header="content-disposition") == "model":  # type: ignore[union-attr]
            models.append(each.get_payload(decode=True).decode("utf-8", "replace"))  # type: ignore[union-attr]
    return models


WORDS = [
    b"--b",
    b"--b--",
    b"\r\n",
    b"\r",
    b"\n",
    b"-",
    b"--",
    b"b",
    b" ",
    b"model",
    b"two",
    b'"',
    b"\\",
    b";",
]
WORDS += [
    b"\r\n--b\r\n",
    b"\r\n--b--\r\n",
    b"\r\n\r\n",
    b'Content-Disposition: form-data; name="model"',
    b"\x00",
]
WORDS += [
    b"name=",
    b"filename=",
    b"Content-Type: text/plain",
    b"\xef\xbb\xbf",
    "é".encode(),
    b"%6d",
    b"*=",
    b":",
]
WORDS += [b"\r\nContent-Transfer-Encoding: base64", b"form-data", b"x", b"\t", MODEL, SECOND]
FILES = st.lists(st.sampled_from([b"\r\n", b"-", b"--", b"\n", b"b", b"x", b"\xff", b"model"]), max_size=9)
PARTS = st.one_of(
    FILES.map(lambda data: FILE % b"".join(data).replace(b"--b", b"")),
    st.sampled_from([b"x", b"stream", b"models"]).map(lambda name: HEAD % name + b"true\r\n"),
)


@st.composite
def forms(draw: st.DrawFn) -> bytes:
    """A sound form with one model, or one in which a few bytes are others."""
    before, after = draw(st.lists(PARTS, max_size=3)), draw(st.lists(PARTS, max_size=2))
    body = b"".join([*before, MODEL, *after, END])
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(st.sampled_from(WORDS)) + body[at + draw(st.integers(0, 4)) :]
    return body


@given(forms(), st.data())
@settings(max_examples=300, deadline=None)
def test_the_chunking_makes_no_difference(body: bytes, data: st.DataObject) -> None:
    """Any split of the same bytes comes to the same, the byte at fault included."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    chunks = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert outcome(chunks) == outcome(pieces(body, 1)) == outcome([body])


@given(forms())
@settings(max_examples=500, deadline=None)
def test_a_form_that_is_taken_has_one_model_for_everybody(body: bytes) -> None:
    """Two other parsers read the same one model in it, and no second; or none, if there is none."""
    result = outcome([body])
    if len(result) == 3:
        assert reference(body) == ([result[0]] * 2 if result[1] else [])


def test_the_references_differ_on_what_is_refused() -> None:
    """They would notice: each of these has other models for one of them than for the other."""
    for between in (b"x\n--b\n", b"x\r--b\r\n", b"--b\r\n"):
        assert reference(FILE % (between + SECOND) + MODEL + END) != ["one", "one"]
    dispositions = (b"Content-Disposition: form-data; name=" + name for name in (b"x", b"model"))
    assert len(reference(part(*dispositions) + END)) == 1
