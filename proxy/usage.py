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
from typing import NamedTuple

_WINDOW = 8192
"""The most bytes kept behind a hit. Usage objects measure 100 to 600, one with many iterations more."""


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
    unwrap: Callable[[], Callable[[bytes], bytes]] | None = None
    """Makes what turns the bytes of an answer into those that are looked at; None: they stay as they are."""


def read_counts(counts: re.Pattern[bytes], text: bytes) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in counts.findall(text)}


def shape(
    mark: bytes,
    names: str,
    normal: Callable[[Mapping[str, int]], dict[str, int]],
    read: Callable[[re.Pattern[bytes], bytes], dict[str, int]] = read_counts,
    firsts: int = 0,
    unwrap: Callable[[], Callable[[bytes], bytes]] | None = None,
) -> Shape:
    """The shape whose counts have `names`, with blanks between them."""
    count = rb'"(%b)"\s*+:\s*+(\d{1,15}+)\d*+(?=[\s,.}\]])' % b"|".join(names.encode().split())
    begin = re.compile(mark + rb"\s*+:\s*+(?=\{)")
    may_begin = re.compile(mark + rb"\s*+(?::\s*+)?\Z")
    return Shape(mark, begin, may_begin, re.compile(count), read, normal, firsts, unwrap)


_OBJECT = re.compile(
    # Three objects deep: a usage, its iterations, their caches. No step back, so linear.
    rb"\{(?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})*+\}"
)


class Usage:
    """Feed it what passes; ask `counts` at the end, or at any time."""

    __slots__ = (
        *("_carry", "_firsts", "_mark", "_overlap", "_seen", "_unwrap"),
        *("ended", "is_whole", "on_sight", "shape"),
    )

    def __init__(self, shape: Shape, on_sight: Callable[[], None] | None = None) -> None:
        self.shape = shape
        self._mark = shape.mark
        self._overlap = 1 - len(shape.mark)
        self._unwrap = shape.unwrap() if shape.unwrap is not None else None
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

    def anew(self) -> Usage:
        """The same for another answer."""
        return Usage(self.shape, self.on_sight)

    def feed(self, chunk: bytes) -> None:
        """Look at one chunk; a mark or an object may be split over chunks."""
        if self._unwrap is not None:
            chunk = self._unwrap(chunk)
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
            self._firsts = 0 if self.is_whole else self.shape.firsts
        if at < 0:
            return b""
        shape = self.shape
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
        if not self.shape.counts.search(text):
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
        shape = self.shape
        found: dict[str, int] = {}
        for text in (*self._seen, self._carry):
            found |= shape.read(shape.counts, text)
        return shape.normal(found) if found else {}
