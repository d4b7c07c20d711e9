"""The show: requests to the demo's proxy, printed as they go, and the checks on what was seen.

Rules
  1. It goes through a real socket and looks at nothing but what a client can see, and the access log.
  2. What did not happen is said: the demo doubles as a smoke test.

Not here: the upstreams and the proxy of the show (`demo`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any, TextIO

import aiohttp
import orjson

from . import demo_answers
from .demo_answers import Json

_COMPLETION = {
    "model": "claude-2",
    "prompt": "\n\nHuman: What becomes of me when a provider is overloaded?\n\nAssistant:",
    "max_tokens_to_sample": 100,
    "stream": True,
}
_MESSAGE = {
    "model": demo_answers.THINKING,
    "max_tokens": 100,
    "stream": True,
    "messages": [{"role": "user", "content": "What do I see while you are silent?"}],
}
_CHAT: Json = {
    "model": f"demo/{demo_answers.OVERLOADED}",
    "fallbacks": ["backup/claude-haiku-4-5"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "messages": [{"role": "user", "content": "Who answers me?"}],
}
_DONE = "[DONE]"
_VERSION = {"anthropic-version": "2023-06-01"}


@dataclasses.dataclass
class Watched:
    """What a client saw of one streamed answer. `first` is the seconds to its first token."""

    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    usage: dict[str, Any] = dataclasses.field(default_factory=dict)
    words: int = 0
    pings: int = 0
    first: float = 0
    finished: bool = False

    @property
    def fell_back(self) -> bool:
        return self.headers.get("x-bifrost-fallback-index") == "1"


class Show:
    """The scenes, on `screen`. `ping_interval` is the proxy's, `log_batches` gets its access log."""

    def __init__(
        self, base_url: str, ping_interval: float, log_batches: asyncio.Queue[bytes], screen: Screen
    ) -> None:
        self._base_url = base_url
        self._ping_interval = ping_interval
        self._log_batches = log_batches
        self._screen = screen

    async def run(self) -> list[str]:
        """All scenes. Returns what did not happen."""
        screen = self._screen
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(self._base_url, timeout=timeout) as http:
            screen.title("1. A legacy completion, streamed: POST /anthropic/v1/complete, model claude-2")
            screen.note(f"claude-2 is an alias: first demo/{demo_answers.OVERLOADED}, then backup/claude-2.")
            completion = await self._watch(http, "/anthropic/v1/complete", _COMPLETION, _VERSION)
            screen.title(f"2. A message, streamed: POST /anthropic/v1/messages, model {_MESSAGE['model']}")
            screen.note(f"It thinks in silence; each {self._ping_interval} s of it the proxy sends a ping.")
            message = await self._watch(http, "/anthropic/v1/messages", _MESSAGE, _VERSION)
            screen.title(f"3. The unified API: POST /v1/chat/completions, model {_CHAT['model']}")
            screen.note(f"In OpenAI's format; the request's own fallbacks: {', '.join(_CHAT['fallbacks'])}.")
            chat = await self._watch(http, "/v1/chat/completions", _CHAT, {})
            owners = await self._list(http)
        screen.title("4. The access log: one JSON line per request, here in short")
        logged = await self._logged(4)
        checks = {
            "the completion did not end well": completion.finished,
            "no token of the completion came": completion.words > 0,
            "no fallback": completion.fell_back,
            "the message did not end well": message.finished,
            "no token of the message came": message.words > 0,
            "no ping": message.pings > 0,
            "no usage": "output_tokens" in message.usage,
            "the chat did not end well": chat.finished and chat.words > 0,
            "no fallback of the chat": chat.fell_back,
            "no usage of the chat": "completion_tokens" in chat.usage,
            "no list of both providers' models": owners == {"demo", "backup"},
            "no access-log line for each request": logged == 4,
        }
        return [name for name, happened in checks.items() if not happened]

    async def _watch(
        self, http: aiohttp.ClientSession, path: str, body: Json, headers: dict[str, str]
    ) -> Watched:
        """Send one streamed request and print the answer as it comes, then who served it and how fast."""
        seen = Watched()
        screen = self._screen
        loop = asyncio.get_running_loop()
        started = last = loop.time()
        try:
            async with http.post(path, json=body, headers=headers) as response:
                seen.headers = {name.lower(): value for name, value in response.headers.items()}
                if response.status != 200:
                    screen.note(f"status {response.status}: {(await response.text())[:300]}")
                    return seen
                async for name, data in _events(response):
                    silence, last = loop.time() - last, loop.time()
                    # The upstream's own ping follows its head at once; only one that ends a silence is news.
                    if name == "ping" and silence > self._ping_interval / 2:
                        seen.pings += 1
                        screen.note(f"· ping · after {silence:.1f} s of silence")
                    text, is_thought = _told(data)
                    if text:
                        seen.words += 1
                        seen.first = seen.first or loop.time() - started
                        screen.word(text, dim=is_thought)
                    if name == "content_block_stop":
                        screen.end_words()
                    seen.usage |= data.get("message", data).get("usage") or {}
                    seen.finished |= name in ("message_stop", _DONE) or bool(data.get("stop_reason"))
        except (aiohttp.ClientError, TimeoutError) as error:
            screen.note(f"broken off: {type(error).__name__}")
        screen.end_words()
        tried = seen.headers.get("x-bifrost-attempts", "").split(",")
        if len(tried) > 1:
            told = ", then ".join(attempt.replace(":", " answered ") for attempt in tried)
            screen.note(f"a fallback: {told}")
        for name in ("x-bifrost-provider", "x-bifrost-fallback-index", "x-bifrost-attempts"):
            screen.note(f"{name}: {seen.headers.get(name, 'missing')}")
        if seen.usage:
            screen.note("usage: " + ", ".join(f"{count} {name}" for name, count in seen.usage.items()))
        screen.note(f"first token after {seen.first:.3f} s, {seen.words} tokens in {last - started:.3f} s")
        return seen

    async def _list(self, http: aiohttp.ClientSession) -> set[str]:
        """Print the list of all models. Returns whose they are."""
        try:
            async with http.get("/v1/models") as response:
                models = (await response.json()).get("data", [])
        except (aiohttp.ClientError, TimeoutError) as error:
            self._screen.note(f"broken off: {type(error).__name__}")
            models = []
        self._screen.note(f"GET /v1/models: {', '.join(model['id'] for model in models)}")
        return {model["owned_by"] for model in models}

    async def _logged(self, lines: int) -> int:
        """Print the access log until it has `lines`. Returns how many came."""
        logged = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while logged < lines:
                    logged += print_log(await self._log_batches.get(), self._screen)
        return logged


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Json]]:
    name = ""
    async for line in response.content:
        if line.startswith(b"event: "):
            name = line[7:].strip().decode()
        elif line.startswith(b"data: [DONE]"):
            yield _DONE, {}
        elif line.startswith(b"data: "):
            yield name, orjson.loads(line[6:])


def _told(data: Json) -> tuple[str, bool]:
    """The text in an event of either format, and whether it is a thought."""
    choices = data.get("choices")
    delta = choices[0]["delta"] if choices else data.get("delta", {})
    text = data.get("completion") or delta.get("thinking") or delta.get("text") or delta.get("content")
    return text or "", "thinking" in delta


def print_log(batch: bytes, screen: Screen) -> int:
    """Print the access-log lines of `batch` in short; returns how many they are."""
    lines = [orjson.loads(line) for line in batch.splitlines()]
    for line in lines:
        spans = {name: line[f"{name}_ms"] for name in ("head", "first", "total")}
        facts = [*line["attempts"], *(f"{name} {ms} ms" for name, ms in spans.items() if ms is not None)]
        facts += [f"{name} {line[name]}" for name in ("pings", "usage") if line[name]]
        facts += [f"{line['bytes_in']} bytes in, {line['bytes_out']} out"]
        start = f"{line['time'][11:19]} {line['status']} {line['ending']} {line['method']} {line['path']}"
        screen.note(f"{start}: {', '.join(facts)}")
    return len(lines)


class Screen:
    """Prints to `out`; styled where `out` is a terminal. Characters that it cannot show become ``?``."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._styled = out.isatty()
        self._in_words = False

    def line(self, text: str) -> None:
        self.end_words()
        self._write(text + "\n")

    def title(self, text: str) -> None:
        self.line("\n" + self._style("1", text))

    def note(self, text: str) -> None:
        self.line("   " + self._style("2", text))

    def word(self, text: str, *, dim: bool = False) -> None:
        """A piece of an answer, on the line that the pieces before it began."""
        start, text = ("", text) if self._in_words else ("   > ", text.lstrip())
        self._in_words = True
        self._write(start + self._style("2" if dim else "36", text))

    def end_words(self) -> None:
        """End the line of the pieces, if there is one."""
        if self._in_words:
            self._in_words = False
            self._write("\n")

    def _style(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._styled else text

    def _write(self, text: str) -> None:
        encoding = self._out.encoding or "utf-8"
        self._out.write(text.encode(encoding, "replace").decode(encoding))
        self._out.flush()
