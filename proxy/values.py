"""Single values of the config: addresses, URLs, names, secrets.

Facts
  - systemd hands secrets over as files in ``$CREDENTIALS_DIRECTORY`` (systemd.exec(5), LoadCredential=).
  - A header value holds no control character (RFC 9110, 5.5); here it goes out as latin-1.
  - The path of a unix socket has at most 107 bytes (unix(7), sun_path).

Rules
  1. A check takes a text and returns it, or raises ValueError with what is wanted.
  2. A secret is written ``env.NAME`` or ``file:PATH``, never as it is, and it is never shown.

Not here: which keys there are (`config`).
"""

from __future__ import annotations

import base64
import fnmatch
import functools
import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import yaml

from .formats import FORMATS
from .limits import MOST, PICO
from .schema import BROKEN, Document, Path, nearest, printable
from .shapes import text

WIRE_FORMATS = tuple(FORMATS)
EVENTS = ("connect", "reset", "timeout", "protocol", "stream_error")


class Secret:
    """A string that only `reveal` shows. It is no dataclass, for `dataclasses.asdict` would open it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


def _at(pattern: str, wanted: str, *, lowest: int = 1) -> Callable[[str], str]:
    """A check of a text. In `pattern`, ``AT`` is HOST:PORT, and ``AT?`` HOST with or without a port.

    The lowest port is `lowest`.

    It returns the text without slashes at its end.
    """
    host_and_port = r"(?P<host>\[[0-9A-Za-z.:%]*\]|[^][:/@]+)(:(?P<port>[0-9]{1,5}))"
    compiled = re.compile(pattern.replace("AT", host_and_port))

    def check(value: str) -> str:
        match = compiled.fullmatch(value)
        if not match or not lowest <= int(match["port"] or lowest) <= 65535:
            raise ValueError(f"wanted {wanted}")
        try:
            if match["host"].startswith("["):
                ipaddress.IPv6Address(match["host"][1:-1])
            elif re.fullmatch("[0-9.]+", match["host"]):
                ipaddress.IPv4Address(match["host"])
            elif not re.fullmatch("[A-Za-z0-9_.-]+", match["host"]):
                raise ValueError
        except ValueError:
            raise ValueError(f"the host is neither a name nor an IP address; wanted {wanted}") from None
        return value.rstrip("/")

    return check


_URL = "http:// or https:// and HOST[:PORT]"
_tcp = _at("AT", "HOST:PORT, [IPv6]:PORT or unix:/PATH, with a HOST and a PORT from 0 to 65535", lowest=0)
_redis = _at(
    "rediss?://AT?/[0-9]+",
    "redis://HOST[:PORT]/DB or rediss:// for TLS, DB a number; the password has a setting of its own",
)
origin = _at("https?://AT?/?", f"{_URL}, without path, user, query or fragment")
base_url = _at(r'https?://AT?(/[!"$->@-~]*)?', f"{_URL}[/PATH], without user, query, fragment or spaces")
_webhook_url = _at(
    r'https?://AT?(/[!"$->@-~]*([?][!"$-~]*)?)?',
    f"{_URL}[/PATH][?QUERY], without user, fragment or spaces, and a query only after a path",
)


def address(value: str) -> str:
    """An address to listen on, unchanged. Raises ValueError with what is wanted."""
    if not value.startswith("unix:"):
        return _tcp(value)
    if value[5:6] != "/" or len(value[5:].encode()) > 107:
        raise ValueError("wanted unix:/PATH, an absolute path of at most 107 bytes")
    return value


def store(value: str) -> str:
    if value.startswith(("redis:", "rediss:")):
        return _redis(value)
    if not re.fullmatch("sqlite:(?!//).+", value):
        raise ValueError("wanted sqlite:PATH or redis://HOST[:PORT]/DB")
    return value


def one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    """A check for one of these words."""

    def check(value: str) -> str:
        if value not in words:
            raise ValueError(f"wanted {' or '.join(words)}")
        return value

    return check


def dangling(kind: str, name: str, known: Iterable[str]) -> str:
    """The message about a name that names nothing."""
    return f'no {kind} is called "{printable(name)}"{nearest(name, known)}'


def dollars(document: Document, node: yaml.Node, path: Path) -> Any:
    """An amount of US dollars above 0 and up to a million, in pico-dollars: exact, so no float."""
    text = node.value if isinstance(node, yaml.ScalarNode) and node.style is None else ""
    if not re.fullmatch("(0|[1-9][0-9]{0,6})([.][0-9]{1,12})?", text):
        return document.problem(
            path, "wanted dollars in plain decimal digits, at most 12 of them after the point"
        )
    whole, _, fraction = text.partition(".")
    pico = int(whole) * PICO + int(fraction.ljust(12, "0"))
    if not 0 < pico <= MOST:
        return document.problem(path, "wanted dollars above 0 and up to 1000000; this is out of range")
    return pico


VIRTUAL_KEY_PREFIX = "sk-bf-"

_SHORTEST_KEY = 16

LAST_SECOND = 253402300799
"""The end of the year 9999 in UTC, beyond which no time can be written."""


def own_name(value: str) -> str:
    """The name of a virtual key, a team or a customer, which is also its id."""
    if "/" in value or not value.isprintable() or len(value) > 200:
        raise ValueError("a name here has no '/' and at most 200 characters, all of them printable")
    return value


def instant(document: Document, node: yaml.Node, path: Path) -> Any:
    """A point in time with its offset from UTC (RFC 3339), as whole seconds since the epoch."""
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        return document.problem(path, "wanted a time with its offset, such as 2027-01-31T00:00:00Z")
    second = int(at.timestamp())
    if not 0 <= second <= LAST_SECOND:
        return document.problem(path, "wanted a time from 1970 to 9999, in UTC")
    return second


def digest(value: bytes) -> bytes:
    """What is kept of a virtual key: it is random and long, so its plain SHA-256 leads nobody back to it."""
    return hashlib.sha256(value).digest()


def key_digest(document: Document, node: yaml.Node, path: Path) -> Any:
    """The SHA-256 of a virtual key, from the key as a secret or from ``sha256:HEX``."""
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    if re.fullmatch("sha256:[0-9a-fA-F]{64}", text):
        return bytes.fromhex(text.removeprefix("sha256:"))
    if text.startswith("sha256:"):
        return document.problem(path, "wanted sha256: and 64 hexadecimal digits")
    held = secret(document, node, path)
    if held is BROKEN:
        return held
    if not held.reveal().startswith(VIRTUAL_KEY_PREFIX) or len(held.reveal()) < _SHORTEST_KEY:
        return document.problem(path, "wanted a virtual key, as `verbatim-proxy keys new` prints one")
    return digest(held.reveal().encode("latin-1"))


@functools.lru_cache(1024)
def glob(pattern: str) -> re.Pattern[str]:
    """A pattern in which only ``*`` is special. It takes no longer than the text's length times its own."""
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]").replace("?", "[?]")))


WEBHOOK_PREFIX = "whsec_"


def webhook_name(value: str) -> str:
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise ValueError(
            "a webhook's name begins with a letter or digit, and has at most 100 of those, '.', '_' and '-'"
        )
    return value


def webhook_url(value: str) -> str:
    """The URL of a webhook, unchanged: it is nobody's base, so a slash at its end says something."""
    _webhook_url(value)
    return value


def webhook_secret(document: Document, node: yaml.Node, path: Path) -> Any:
    """The `Secret` that signs webhooks, of the size that Standard Webhooks 1.0.0 demands."""
    held = secret(document, node, path)
    if held is BROKEN:
        return held
    encoded = held.reveal().removeprefix(WEBHOOK_PREFIX)
    try:
        key = base64.b64decode(encoded)
    except ValueError:
        key = b""
    # Receivers differ in what else they take for base64.
    sound = base64.b64encode(key).decode() == encoded
    if encoded == held.reveal() or not sound or not 24 <= len(key) <= 64:
        return document.problem(
            path,
            "wanted whsec_ and 24 to 64 random bytes as base64, as printed by"
            ' echo "whsec_$(openssl rand -base64 32)"',
        )
    return held


def region(value: str) -> str:
    """A region of AWS: it becomes a part of host names."""
    if not re.fullmatch("[a-z]{2}(-[a-z]+)+-[0-9]{1,2}", value):
        raise ValueError("wanted a region of AWS, such as us-east-1")
    return value


def provider_name(value: str) -> str:
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError(
            "a provider's name begins with a letter or digit and has only those, '.', '_' and '-'"
        )
    return value


def wire_format(value: str) -> str:
    if value not in WIRE_FORMATS:
        raise ValueError(f"unknown wire format{nearest(value, WIRE_FORMATS)}")
    return value


def target(value: str) -> str:
    provider, _, model = value.partition("/")
    if not provider or not model:
        raise ValueError('wanted "provider/model"')
    return value


def event(document: Document, node: yaml.Node, path: Path) -> Any:
    """One of `EVENTS`, or a status as a string."""
    value = node.value if isinstance(node, yaml.ScalarNode) else ""
    if value in EVENTS or re.fullmatch("[45][0-9][0-9]", value):
        return value
    return document.problem(path, f"wanted a status from 400 to 599, or an event{nearest(value, EVENTS)}")


def secret(document: Document, node: yaml.Node, path: Path) -> Any:
    """The `Secret` that ``env.NAME`` or ``file:PATH`` stands for."""
    return text(lambda reference: _resolve(document, reference))(document, node, path)


def _resolve(document: Document, reference: str) -> Secret:
    if re.fullmatch("env[.][A-Za-z_][A-Za-z0-9_]*", reference):
        name = reference.removeprefix("env.")
        return checked(document.environ.get(name, ""), f"environment variable {name}")
    if not re.fullmatch("file:.+", reference):
        raise ValueError("a secret is written env.NAME or file:PATH, never as it is")
    path = reference.removeprefix("file:")
    name = path if path.startswith("/") else printable(path)
    directory = document.environ.get("CREDENTIALS_DIRECTORY", "")
    if not path.startswith("/"):
        name += "" if directory else " (CREDENTIALS_DIRECTORY is not set)"
        path = f"{directory}/{path}" if directory else path
    try:
        value = document.read_file(path)
    except OSError as error:
        raise ValueError(f"file {name} cannot be read: {error.strerror or type(error).__name__}") from None
    except ValueError:
        raise ValueError(f"file {name} cannot be read: it is not UTF-8 text") from None
    return checked(value.rstrip("\r\n"), f"file {name}")


def checked(value: str, source: str) -> Secret:
    if not value:
        raise ValueError(f"{source} is not set, or empty")
    if not re.fullmatch("[ -~\xa0-\xff]+", value) or value != value.strip(" "):
        wrong = "a control character, a space at an end, or a character beyond latin-1"
        raise ValueError(f"{source} holds what no header value may: {wrong}")
    return Secret(value)
