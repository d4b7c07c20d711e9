"""Token usage, picked out of bytes that pass.

Facts
  - Anthropic: a message, and the ``message_start`` and ``message_delta`` events of a stream, have a ``usage``
    object; the counts in ``message_delta`` are cumulative, so the last value is the value (streaming
    messages page). They leave out what ``usage.iterations`` lists as ``compaction`` and ``advisor_message``,
    which is billed too (compaction page, advisor tool page).
  - OpenAI: ``usage`` is an object in a whole answer and in the last chunk of a stream, and null before.
    ``cached_tokens`` and ``cache_write_tokens`` are parts of the input (API reference: chat, Responses).
  - Gemini: ``usageMetadata`` is in every chunk, and cumulative. ``cachedContentTokenCount`` is a part of
    ``promptTokenCount``; thoughts and tool results are in neither of the two main counts (UsageMetadata).
  - Cohere: ``billed_units`` is what is paid for, ``tokens`` beside it is not (pricing page); v1 has it in
    ``meta``, v2 in ``usage``, once.
  - The word also stands inside answers that talk about usage. In a text its quotes are escaped. In the input
    of a tool they are not, but in no format does that come after the usage of the same event or answer.

Rules
  1. Per chunk one byte search. What follows a hit is cut out; it is read when the counts are asked for.
  2. A format is data: a `Shape`.
  3. What is kept is bounded, and the time for a chunk grows with its length only, whatever upstream says.

Not here: prices. What passes is counted, not judged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

_WINDOW = 8192
"""The most bytes kept behind a hit. Usage objects measure 100 to 600, one with many iterations more."""

_APART = "apart "
"""Before the name of a count that the count of that name leaves out."""


class Shape(NamedTuple):
    """How a wire format tells what was used up."""

    mark: bytes
    """The name of the member with the counts."""
    begin: re.Pattern[bytes]
    """A mark before an object; before anything else it is none: null, a text, a client's own metadata."""
    may_begin: re.Pattern[bytes]
    """A mark at the end of what is there."""
    counts: re.Pattern[bytes]
    """One count: its name and its number, of which 15 digits count. One that is cut short has no end."""
    read: Callable[[re.Pattern[bytes], bytes], dict[str, int]]
    """All counts of an object."""
    normal: Callable[[Mapping[str, int]], dict[str, int]]
    """The same by Anthropic's field names; it is given some counts."""
    firsts: int
    """How many objects a stream begins with that later ones only complete."""


def _read(counts: re.Pattern[bytes], text: bytes) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in counts.findall(text)}


_ITERATIONS = re.compile(rb'"iterations"\s*+:\s*+\[[^\]]*+')
_ITERATION = re.compile(rb"\{[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+\}")
_LEFT_OUT = re.compile(rb'"type"\s*+:\s*+"(?:compaction|advisor_message)"')


def _read_with_iterations(counts: re.Pattern[bytes], text: bytes) -> dict[str, int]:
    found = _read(counts, _ITERATIONS.sub(b"", text))
    for iterations in _ITERATIONS.findall(text):
        for iteration in filter(_LEFT_OUT.search, _ITERATION.findall(iterations)):
            for name, value in _read(counts, iteration).items():
                found[_APART + name] = found.get(_APART + name, 0) + value
    return found


def _anthropic(found: Mapping[str, int]) -> dict[str, int]:
    normal: dict[str, int] = {}
    for name, value in found.items():
        own = name.removeprefix(_APART)
        normal[own] = normal.get(own, 0) + value
    return normal


def _with_cache(whole: int, output: int, read: int | None, written: int | None) -> dict[str, int]:
    """Counts of a format whose input, `whole`, includes what is read from the cache and written to it."""
    normal = {"input_tokens": whole, "output_tokens": output}
    for name, part in (("cache_read_input_tokens", read), ("cache_creation_input_tokens", written)):
        if part is not None:
            normal[name] = min(part, normal["input_tokens"])
            normal["input_tokens"] -= normal[name]
    return normal


def _openai(found: Mapping[str, int]) -> dict[str, int]:
    normal = _with_cache(
        found.get("prompt_tokens", found.get("input_tokens", 0)),
        found.get("completion_tokens", found.get("output_tokens", 0)),
        found.get("cached_tokens"),
        found.get("cache_write_tokens"),
    )
    if "ttl_12h_tokens" in found:
        # The longer of two times that a cache lasts, and the dearer, as Anthropic's hour is.
        written = normal.get("cache_creation_input_tokens", 0)
        normal["ephemeral_1h_input_tokens"] = min(found["ttl_12h_tokens"], written)
    return normal


def _genai(found: Mapping[str, int]) -> dict[str, int]:
    return _with_cache(
        found.get("promptTokenCount", 0) + found.get("toolUsePromptTokenCount", 0),
        found.get("candidatesTokenCount", 0) + found.get("thoughtsTokenCount", 0),
        found.get("cachedContentTokenCount"),
        None,
    )


def _shape(
    mark: bytes,
    names: str,
    normal: Callable[[Mapping[str, int]], dict[str, int]],
    read: Callable[[re.Pattern[bytes], bytes], dict[str, int]] = _read,
    firsts: int = 0,
) -> Shape:
    """The shape whose counts have `names`, with blanks between them."""
    count = rb'"(%b)"\s*+:\s*+(\d{1,15}+)\d*+(?=[\s,.}\]])' % b"|".join(names.encode().split())
    begin = re.compile(mark + rb"\s*+:\s*+(?=\{)")
    may_begin = re.compile(mark + rb"\s*+(?::\s*+)?\Z")
    return Shape(mark, begin, may_begin, re.compile(count), read, normal, firsts)


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "anthropic": _shape(
            b'"usage"',
            "input_tokens output_tokens cache_creation_input_tokens cache_read_input_tokens "
            "ephemeral_1h_input_tokens",
            _anthropic,
            _read_with_iterations,
            firsts=1,
        ),
        "openai": _shape(
            b'"usage"',
            "prompt_tokens completion_tokens input_tokens output_tokens cached_tokens cache_write_tokens "
            "ttl_12h_tokens",
            _openai,
        ),
        "genai": _shape(
            b'"usageMetadata"',
            "promptTokenCount toolUsePromptTokenCount candidatesTokenCount thoughtsTokenCount "
            "cachedContentTokenCount",
            _genai,
        ),
        "cohere": _shape(b'"billed_units"', "input_tokens output_tokens", dict),
    }
)
"""By wire format."""

_OBJECT = re.compile(
    # Three objects deep: a usage, its iterations, their caches. No step back, so linear.
    rb"\{(?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})*+\}"
)


class Usage:
    """Feed it what passes; ask `counts` at the end, or at any time."""

    __slots__ = (
        *("_carry", "_firsts", "_mark", "_overlap", "_seen", "_shape"),
        *("ended", "is_whole", "on_sight", "wire_format"),
    )

    def __init__(self, wire_format: str = "anthropic", on_sight: Callable[[], None] | None = None) -> None:
        self.wire_format = wire_format
        self._shape = shape = SHAPES[wire_format]
        self._mark = shape.mark
        self._overlap = 1 - len(shape.mark)
        self._carry = b""
        """The end of what was fed: maybe the beginning of a mark, or a mark whose object is not whole."""
        self._seen: list[bytes] = []
        """The objects that count."""
        self._firsts: int | None = None
        """As in the shape, but 0 in a JSON answer: what comes first there may be the input of a tool."""
        self.on_sight = on_sight
        """Called after each chunk of a stream that may have changed the counts; at a JSON answer's end."""
        self.is_whole = False
        """Whether it is a JSON answer. Its own usage is the last one in it, so only its end is sure."""
        self.ended = False

    def feed(self, chunk: bytes) -> None:
        """Look at one chunk; a mark or an object may be split over chunks."""
        data = self._carry + chunk if self._carry else chunk
        at = data.find(self._mark)
        if (at >= 0 or self._firsts is None) and (rest := self._look(data, at)):
            self._carry = rest
        else:
            # No mark goes over the end of a line, where most chunks of a stream end.
            self._carry = b"" if data.endswith(b"\n") else data[self._overlap :]

    def _look(self, data: bytes, at: int) -> bytes:
        """Take the objects behind the marks, of which `at` is the first; returns one that is not whole."""
        if self._firsts is None and (first := data.lstrip()[:1]):
            self.is_whole = first == b"{"
            self._firsts = 0 if self.is_whole else self._shape.firsts
        if at < 0:
            return b""
        shape = self._shape
        changed = False
        found = shape.begin.search(data, at)
        while found:
            begin, full = found.end(), found.start() + _WINDOW
            after = shape.begin.search(data, begin)
            end = min(full, after.start()) if after else full
            whole = _OBJECT.match(data, begin, end)
            if whole or after or len(data) >= full:
                # What another mark cuts off, and what is too long, is hardly a usage; its counts count.
                changed |= self._take(whole[0] if whole else data[begin:end])
            else:
                at = found.start()
                break
            found = after
        else:
            at = data.rfind(shape.mark)
            if len(data) - at >= _WINDOW or not shape.may_begin.match(data, at):
                at = len(data)
        if changed and not self.is_whole and self.on_sight is not None:
            self.on_sight()
        return data[at:]

    def _take(self, text: bytes) -> bool:
        """Keep an object if it has counts."""
        if not self._shape.counts.search(text):
            return False
        # The last is final; those between the first and the last are replaced.
        del self._seen[self._firsts or 0 :]
        self._seen.append(text)
        return True

    def end(self) -> None:
        """All of it has passed."""
        self.ended = True
        if self.is_whole and self.on_sight is not None:
            self.on_sight()

    @property
    def is_told(self) -> bool:
        """Whether `on_sight` was called after all that `counts` has; False where that is not sure."""
        return self.ended if self.is_whole else len(self._carry) < len(self._mark)

    def counts(self) -> dict[str, int]:
        """Tokens by Anthropic's field names, later ones over earlier; empty when none were seen."""
        shape = self._shape
        found: dict[str, int] = {}
        for text in (*self._seen, self._carry):
            found |= shape.read(shape.counts, text)
        return shape.normal(found) if found else {}
