"""What all APIs of the demo's upstream have in common: models, words, the checks on what is asked.

Rules
  1. No clock and no chance: the same request gets the same answer, and a token is a word.
  2. A stream is made from the whole answer to the same request, so the two cannot disagree.
  3. Bad input is a `Refusal`.

Not here: any wire format. Each has a module of its own; a refusal gets its shape from `formats`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

Json: TypeAlias = dict[str, Any]
Step: TypeAlias = tuple[float, bytes]
"""Seconds to wait, then bytes to send."""

OVERLOADED = "demo-overloaded"
"""Answers 529 or 503, as a provider under load does."""
THINKING = "demo-thinking"
"""Thinks in silence first, and sends no ping of its own: a ping in its stream is the proxy's."""
ERROR = "demo-error"
"""Breaks off with an error after three words; a 500 where no stream was asked for."""

MODELS = ("claude-2", "claude-haiku-4-5", OVERLOADED, THINKING, ERROR)
"""What is listed. Any other name is answered as well."""

DATE = "2026-01-01T00:00:00Z"
CREATED = 1767225600
"""The same in seconds."""

_QUOTED = 120  # so many characters of a question are said back at most
_KINDS: dict[type, str] = {str: "string", int: "integer", list: "list", dict: "dictionary"}


class Refusal(Exception):
    """An error answer: its status, Anthropic's ``error.type``, a message, and headers of its own."""

    def __init__(
        self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.headers = headers or {}


class Pace(NamedTuple):
    """How fast is spoken, in seconds."""

    interval: float
    """Before each word."""
    silence: float
    """Before the first word of `THINKING`, instead."""

    def words(self, model: str, text: str) -> Iterator[tuple[float, str]]:
        """Each word of `text`, after the seconds to wait before it; `ERROR` gets to say three."""
        for number, word in enumerate(words_of(text)[: 3 if model == ERROR else None]):
            yield self.silence if number == 0 and model == THINKING else self.interval, word


class Said(NamedTuple):
    """What a model has to say: as a whole, or as a stream where one was asked for."""

    model: str
    whole: Json
    stream: Iterator[Step] | None


class Asked(NamedTuple):
    """A request: `path` is in segments, without what stands for the API; `body` is empty in a GET."""

    method: str
    path: list[str]
    query: Mapping[str, str]
    body: Json
    name: str
    """Who signs the answer."""
    new_id: Callable[[str], str]
    """Gives an id that begins with what it is given."""
    pace: Pace


class Api(NamedTuple):
    """How the requests of a wire format are answered."""

    wire_format: str
    answer: Callable[[Asked], Said | Json]
    no_key: int = 401
    """The status for who has no credential."""


def invalid(message: str) -> Refusal:
    return Refusal(400, "invalid_request_error", message)


def not_found(method: str, path: str) -> Refusal:
    return Refusal(404, "not_found_error", f"Not found: {method} {path}")


def field(body: Json, name: str, kind: type, where: str = "") -> Any:
    """The member `name` of `body`, of exactly the type `kind` and not empty or zero; else a 400 naming it."""
    if name not in body:
        raise invalid(f"{where}{name}: Field required")
    value = body[name]
    if type(value) is not kind or not value:
        raise invalid(f"{where}{name}: Input should be a valid {_KINDS[kind]} and not empty")
    return value


def limit(body: Json, name: str, most: int | None = None) -> int | None:
    """The member `name` of `body`, from 1 to `most`; None where it is none."""
    if body.get(name) is None:
        return None
    value = int(field(body, name, int))
    if value < 1 or (most is not None and value > most):
        raise invalid(f"{name}: Input should be at least 1" + (f" and at most {most}" if most else ""))
    return value


def turns(body: Json, name: str, content: str) -> list[str]:
    """The texts of a conversation, the member `name` of `body`, each in the member `content` of a turn."""
    for index, turn in enumerate(field(body, name, list)):
        if type(turn) is not dict:
            raise invalid(f"{name}.{index}: Input should be a valid dictionary")
        if type(turn.get(content)) not in (str, list, type(None)):
            raise invalid(f"{name}.{index}.{content}: Input should be a valid string or list")
    return [text_of(turn.get(content)) for turn in body[name]]


def reply(asked: str, name: str, most: int | None) -> tuple[list[str], bool]:
    """The words of the answer to `asked`, at most `most`, and whether they were cut short."""
    asked = " ".join(asked.split())
    quoted = asked if len(asked) <= _QUOTED else asked[:_QUOTED] + "…"
    said = words_of(f"You said “{quoted}” and it reached me just as you wrote it. Yours verbatim, {name}.")
    return said[:most], most is not None and len(said) > most


def words_of(text: str) -> list[str]:
    return re.findall(r"\s*\S+", text)


def count(texts: list[str]) -> int:
    """How many tokens they are."""
    return len(" ".join(texts).split())


def text_of(content: Any) -> str:
    """The text of a turn, which is a string or a list of parts with texts."""
    if type(content) is list:
        return " ".join(b["text"] for b in content if type(b) is dict and type(b.get("text")) is str)
    return content if type(content) is str else ""
