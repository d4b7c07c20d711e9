"""The OpenAI SDK sees nothing of the pings that stand between all events of its streams.

Fact: its decoder dispatches an event at every blank line once an ``id:`` has come, and then fails on its
empty data; so a ping is one line without a blank one.
"""

from __future__ import annotations

import collections
import json
import re

import pytest
from environments import RunScript
from hop import Hop, StartHop, hop
from openai_sdk import BEFORE, CURRENT, StartOpenAI, azure, openai, openai_upstream, provider, serving
from rawclient import Body
from running import StartProxy

__all__ = ["hop", "openai_upstream"]

PING = b": ping\n"
CALLS = ("chat", "lines", "completions", "responses", "images", "transcriptions")


def streams_in(answers: bytes) -> list[bytes]:
    """The streams in answers that follow one another.

    The SDK may leave behind ``[DONE]``, and so before the last chunk.
    """
    found = []
    for answer in re.split(rb"(?=HTTP/1\.1 \d{3} )", answers)[1:]:
        head, _, rest = answer.partition(b"\r\n\r\n")
        if b"text/event-stream" in head:
            body = Body(length=None, chunked=True)
            body.pull(bytearray(rest))
            assert body.done or b"[DONE]" in body.data
            found.append(bytes(body.data))
    return found


class AfterPings:
    """Lets upstreams go on when the event before has passed, and a ping after it. One stream at a time."""

    def __init__(self) -> None:
        self.hop: Hop | None = None
        self._sent: collections.Counter[bytes] = collections.Counter()

    async def __call__(self, before: bytes) -> None:
        assert self.hop is not None
        if before:
            self._sent[before] += 1
            await self.hop.answered(before, self._sent[before])
        await self.hop.answered(PING, self.hop.answers.count(PING) + 1)


@pytest.mark.parametrize("version", [CURRENT, BEFORE])
async def test_pings_are_invisible(
    run_script: RunScript, openai_upstream: StartOpenAI, proxy: StartProxy, hop: StartHop, version: str
) -> None:
    """Chat, responses in every form, completions, images, transcriptions: a ping in front of every event.

    Upstream sends no event before a ping has passed. But for the pings the bytes are upstream's.
    """
    pinged = AfterPings()
    straight, up = await openai_upstream(), await openai_upstream(pause=pinged)
    p = await serving(proxy, {"openai": provider(up)}, ping_interval=0.002)
    pinged.hop = through = await hop(p.port)
    beside = await hop(int(straight.url.rpartition(":")[2]))
    there, here = f"http://127.0.0.1:{beside.port}", f"http://127.0.0.1:{through.port}"
    clients = [
        *(openai(f"{there}/v1", calls=CALLS), openai(f"{here}/openai/v1", calls=CALLS)),
        *(azure(there, calls=("lines",)), azure(f"{here}/openai", calls=("lines",))),
    ]
    seen = await run_script((version,), "openai_calls", json.dumps(clients))
    for first, other in (seen[:2], seen[2:]):
        for form in ("sync", "async"):
            for call, told in first[form].items():
                assert other[form][call] == told, (form, call)
    plain, streams = streams_in(beside.answers), streams_in(through.answers)
    assert sorted(stream.replace(PING, b"") for stream in streams) == sorted(plain)
    for stream in streams:
        *events, rest = re.split(rb"(?<=\n\n)|(?<=\r\n\r\n)", stream)
        assert rest == b""
        assert all(event.startswith(PING) for event in events), stream
