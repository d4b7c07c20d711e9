"""``verbatim-proxy demo``: two built-in upstreams, the proxy in front of them, and a show that checks itself.

Facts
  - `demo_answers.OVERLOADED` always answers 529, so a plan that begins with it must fall back.
  - `demo_answers.THINKING` is silent for longer than the ping interval set here and sends no ping of its own,
    so a ping that ends a silence is the proxy's.

Rules
  1. The show goes through a real socket and looks at nothing but what a client can see, and the access log.
  2. What did not happen is said, and the exit code tells: the demo doubles as a smoke test.
  3. No key, no network: everything is on 127.0.0.1.

Not here: what the upstream says (`demo_upstream`, `demo_answers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TextIO

import aiohttp
import orjson

from . import __version__, config, demo_answers
from .accesslog import AccessLog
from .demo_upstream import DemoUpstream
from .server import Server, start_failure

PING_INTERVAL = 1
SILENCE = 2.5
"""Seconds; long enough for two pings."""

_CONFIG = """\
listen: [{listen}]
ping_interval: {ping_interval}
drain_timeout: 1
providers:
  demo:
    base_urls: {{anthropic: {demo}}}
    keys: [{{name: demo, value: env.DEMO_KEY}}]
    network_config: {{max_retries: 0}}
  backup:
    base_urls: {{anthropic: {backup}}}
    keys: [{{name: backup, value: env.DEMO_KEY}}]
    network_config: {{max_retries: 0}}
default_providers: {{anthropic: demo}}
models: {{claude-2: [demo/{overloaded}, backup/claude-2]}}
store: {store}
"""

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
_TRY = {"model": "claude-haiku-4-5", "max_tokens": 100, "stream": True,
        "messages": [{"role": "user", "content": "Hello, Verbatim!"}]}  # fmt: skip
_TRY_JOB = _TRY | {"stream": False}
_TRY_FALLBACK = _TRY | {"model": demo_answers.OVERLOADED, "fallbacks": ["backup/claude-haiku-4-5"]}


async def run(listen: str, once: bool, out: TextIO) -> int:
    """Give the show on `listen` and print it to `out`; then serve until SIGINT or SIGTERM, unless `once`.

    Returns the exit code: 0, or 1 when the address cannot be had or something in the show did not happen.
    """
    demo = asyncio.ensure_future(_demo(listen, once, _Screen(out)))
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, demo.cancel)
    try:
        return await demo
    except asyncio.CancelledError:
        # Two ways lead here: a signal cancelled the demo, which is how it ends, or somebody cancelled us.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return 0
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _demo(listen: str, once: bool, screen: _Screen) -> int:
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [DemoUpstream(name, silence=SILENCE) for name in ("demo", "backup")]
        for upstream in upstreams:
            stack.push_async_callback(upstream.stop)
            await upstream.start()
        log_batches: asyncio.Queue[bytes] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        log = AccessLog(lambda batch: loop.call_soon_threadsafe(log_batches.put_nowait, batch))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="verbatim-demo-")))
        try:
            urls = [upstream.url for upstream in upstreams]
            server = Server(_config(listen, directory / "state.db", *urls), log=log)
            stack.push_async_callback(server.stop)
            await server.start()
        except (config.ConfigError, OSError, RuntimeError) as error:
            screen.line(f"verbatim-proxy demo: cannot listen on {listen!r}: {_reason(error)}")
            return 1
        base_url = f"http://{server.addresses[0]}"
        missing = await _show(base_url, log_batches, screen)
        if missing:
            screen.line(f"verbatim-proxy demo: this did not happen: {'; '.join(missing)}")
            return 1
        _invite(base_url, screen, once)
        while not once:
            _print_log(await log_batches.get(), screen)
        return 0


def _config(listen: str, store: Path, demo: str, backup: str) -> config.Config:
    if listen.startswith("unix:"):
        raise OSError(errno.EADDRNOTAVAIL, "the demo shows URLs; give HOST:PORT")
    text = _CONFIG.format(
        listen=orjson.dumps(listen).decode(),
        ping_interval=PING_INTERVAL,
        demo=demo,
        backup=backup,
        overloaded=demo_answers.OVERLOADED,
        store=orjson.dumps(f"sqlite:{store}").decode(),
    )
    return config.load(text, {"DEMO_KEY": "demo"}, lambda name: Path(name).read_text("utf-8"))


def _reason(error: config.ConfigError | OSError | RuntimeError) -> str:
    return error.problems[0].message if isinstance(error, config.ConfigError) else start_failure(error)


async def _show(base_url: str, log_batches: asyncio.Queue[bytes], screen: _Screen) -> list[str]:
    """The two requests and their log lines, printed as they come. Returns what did not happen."""
    screen.line(f"Verbatim {__version__}: the proxy on {base_url}; built-in providers: demo, backup.")
    headers = {"anthropic-version": "2023-06-01"}
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(base_url, headers=headers, timeout=timeout) as http:
        screen.title("1. A legacy completion, streamed: POST /anthropic/v1/complete, model claude-2")
        screen.note(f"claude-2 is an alias: first demo/{demo_answers.OVERLOADED}, then backup/claude-2.")
        completion = await _watch(http, "/anthropic/v1/complete", _COMPLETION, screen)
        screen.title(f"2. A message, streamed: POST /anthropic/v1/messages, model {demo_answers.THINKING}")
        screen.note(f"It thinks in silence; the proxy sends a ping after each {PING_INTERVAL} s of it.")
        message = await _watch(http, "/anthropic/v1/messages", _MESSAGE, screen)
    screen.title("3. The access log: one JSON line per request, here in short")
    logged = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            while logged < 2:
                logged += _print_log(await log_batches.get(), screen)
    checks = {
        "the completion did not end well": completion.finished,
        "no token of the completion came": completion.words > 0,
        "no fallback": completion.headers.get("x-bifrost-fallback-index") == "1",
        "the message did not end well": message.finished,
        "no token of the message came": message.words > 0,
        "no ping": message.pings > 0,
        "no usage": "output_tokens" in message.usage,
        "no access-log line for each request": logged == 2,
    }
    return [name for name, happened in checks.items() if not happened]


@dataclasses.dataclass
class _Watched:
    """What a client saw of one streamed answer. `first` is the seconds to its first token."""

    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    usage: dict[str, int] = dataclasses.field(default_factory=dict)
    words: int = 0
    pings: int = 0
    first: float = 0
    finished: bool = False


async def _watch(http: aiohttp.ClientSession, path: str, body: dict[str, Any], screen: _Screen) -> _Watched:
    """Send one streamed request and print the answer as it comes, then who served it and how fast."""
    seen = _Watched()
    loop = asyncio.get_running_loop()
    started = last = loop.time()
    try:
        async with http.post(path, json=body) as response:
            seen.headers = {name.lower(): value for name, value in response.headers.items()}
            if response.status != 200:
                screen.note(f"status {response.status}: {(await response.text())[:300]}")
                return seen
            async for name, data in _events(response):
                silence, last = loop.time() - last, loop.time()
                # The upstream's own ping follows its head at once; only one that ends a silence is news.
                if name == "ping" and silence > PING_INTERVAL / 2:
                    seen.pings += 1
                    screen.note(f"· ping · after {silence:.1f} s of silence")
                delta = data.get("delta", {})
                text = data.get("completion") or delta.get("thinking") or delta.get("text")
                if text:
                    seen.words += 1
                    seen.first = seen.first or loop.time() - started
                    screen.word(text, dim="thinking" in delta)
                if name == "content_block_stop":
                    screen.end_words()
                seen.usage |= data.get("message", data).get("usage") or {}
                seen.finished |= name == "message_stop" or bool(data.get("stop_reason"))
    except (aiohttp.ClientError, TimeoutError) as error:
        screen.note(f"broken off: {type(error).__name__}")
    screen.end_words()
    tried = seen.headers.get("x-bifrost-attempts", "").split(",")
    if len(tried) > 1:
        screen.note("a fallback: " + ", then ".join(attempt.replace(":", " answered ") for attempt in tried))
    for name in ("x-bifrost-provider", "x-bifrost-fallback-index", "x-bifrost-attempts"):
        screen.note(f"{name}: {seen.headers.get(name, 'missing')}")
    if seen.usage:
        screen.note("usage: " + ", ".join(f"{count} {name}" for name, count in seen.usage.items()))
    screen.note(f"first token after {seen.first:.3f} s, {seen.words} tokens in {last - started:.3f} s")
    return seen


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    name = ""
    async for line in response.content:
        if line.startswith(b"event: "):
            name = line[7:].strip().decode()
        elif line.startswith(b"data: "):
            yield name, orjson.loads(line[6:])


def _print_log(batch: bytes, screen: _Screen) -> int:
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


def _invite(base_url: str, screen: _Screen, once: bool) -> None:
    """Commands to copy: a stream, one with a fallback, a job, an SDK."""
    url = f"{base_url}/anthropic/v1/messages"
    headers = "-H 'content-type: application/json' -H 'anthropic-version: 2023-06-01'"
    screen.title("Now you. " + ("Without --once this goes on serving, for:" if once else "Until Ctrl-C:"))
    for option, body in (("-N", _TRY), ("-N -i", _TRY_FALLBACK)):
        screen.line(f"\ncurl {option} {url} {headers} -d '{orjson.dumps(body).decode()}'")
    job = f"{base_url}/v1/async/messages"
    screen.line(f"\ncurl {job} {headers} -d '{orjson.dumps(_TRY_JOB).decode()}'")
    screen.line(f"curl {job}/ID    # with the id that came")
    screen.line(
        f"\nANTHROPIC_BASE_URL={base_url}/anthropic ANTHROPIC_API_KEY=any-key python your_program.py\n"
    )
    screen.note(
        f"More models: {demo_answers.THINKING} (silence), {demo_answers.ERROR} (breaks off), or any name."
    )


class _Screen:
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
