"""``verbatim-proxy demo``: two built-in upstreams, the proxy in front of them, and a show that checks itself.

Facts
  - `demo_answers.OVERLOADED` is always overloaded, so a plan that begins with it must fall back.
  - `demo_answers.THINKING` is silent for longer than the ping interval set here and sends no ping of its own,
    so a ping that ends a silence is the proxy's.
  - Each SDK reads its base URL from a variable of its own.

Rules
  1. The exit code tells whether all of the show happened.
  2. No key, no network: everything is on 127.0.0.1.

Not here: what is shown (`demo_show`), what the upstream says (`demo_upstream`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import tempfile
from pathlib import Path
from typing import TextIO

import orjson

from . import __version__, config, demo_answers
from .accesslog import AccessLog
from .demo_show import Screen, Show, print_log
from .demo_upstream import DemoUpstream
from .server import Server, start_failure

PING_INTERVAL = 0.3
SILENCE = 0.7
"""Seconds; long enough for two pings."""

INTERVAL = 0.01
"""Seconds before each word."""

_CONFIG = """\
listen: [{listen}]
ping_interval: {ping_interval}
drain_timeout: 1
providers:
  demo:
    base_urls: {demo}
    keys: [{{name: demo, value: env.DEMO_KEY}}]
    network_config: {{max_retries: 0}}
  backup:
    base_urls: {backup}
    keys: [{{name: backup, value: env.DEMO_KEY}}]
    network_config: {{max_retries: 0}}
default_providers: {{anthropic: demo, openai: demo, genai: demo, cohere: demo}}
models: {{claude-2: [demo/{overloaded}, backup/claude-2]}}
store: {store}
"""

_TRY = {"model": "claude-haiku-4-5", "max_tokens": 100, "stream": True,
        "messages": [{"role": "user", "content": "Hello, Verbatim!"}]}  # fmt: skip
_TRY_JOB = _TRY | {"stream": False}
_TRY_FALLBACK = _TRY | {"model": demo_answers.OVERLOADED, "fallbacks": ["backup/claude-haiku-4-5"]}

_SDKS = (
    ("anthropic", "ANTHROPIC_BASE_URL", "/anthropic"),
    ("openai", "OPENAI_BASE_URL", "/v1"),
    ("google-genai", "GOOGLE_GEMINI_BASE_URL", "/genai"),
    ("cohere", "CO_API_URL", "/cohere"),
)
"""The variable in which each SDK looks for its base URL, and the path of that."""


async def run(listen: str, once: bool, out: TextIO) -> int:
    """Give the show on `listen` and print it to `out`; then serve until SIGINT or SIGTERM, unless `once`.

    Returns the exit code: 0, or 1 when the address cannot be had or something in the show did not happen.
    """
    demo = asyncio.ensure_future(_demo(listen, once, Screen(out)))
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


async def _demo(listen: str, once: bool, screen: Screen) -> int:
    async with contextlib.AsyncExitStack() as stack:
        upstreams = [DemoUpstream(name, interval=INTERVAL, silence=SILENCE) for name in ("demo", "backup")]
        for upstream in upstreams:
            stack.push_async_callback(upstream.stop)
            await upstream.start()
        log_batches: asyncio.Queue[bytes] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        log = AccessLog(lambda batch: loop.call_soon_threadsafe(log_batches.put_nowait, batch))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="verbatim-demo-")))
        try:
            server = Server(_config(listen, directory / "state.db", *upstreams), log=log)
            stack.push_async_callback(server.stop)
            await server.start()
        except (config.ConfigError, OSError, RuntimeError) as error:
            screen.line(f"verbatim-proxy demo: cannot listen on {listen!r}: {_reason(error)}")
            return 1
        base_url = f"http://{server.addresses[0]}"
        screen.line(f"Verbatim {__version__}: the proxy on {base_url}; built-in providers: demo, backup.")
        missing = await Show(base_url, PING_INTERVAL, log_batches, screen).run()
        if missing:
            screen.line(f"verbatim-proxy demo: this did not happen: {'; '.join(missing)}")
            return 1
        _invite(base_url, screen, once)
        while not once:
            print_log(await log_batches.get(), screen)
        return 0


def _config(listen: str, store: Path, demo: DemoUpstream, backup: DemoUpstream) -> config.Config:
    if listen.startswith("unix:"):
        raise OSError(errno.EADDRNOTAVAIL, "the demo shows URLs; give HOST:PORT")
    text = _CONFIG.format(
        listen=orjson.dumps(listen).decode(),
        ping_interval=PING_INTERVAL,
        demo=orjson.dumps(demo.base_urls).decode(),
        backup=orjson.dumps(backup.base_urls).decode(),
        overloaded=demo_answers.OVERLOADED,
        store=orjson.dumps(f"sqlite:{store}").decode(),
    )
    return config.load(text, {"DEMO_KEY": "demo"}, lambda name: Path(name).read_text("utf-8"))


def _reason(error: config.ConfigError | OSError | RuntimeError) -> str:
    return error.problems[0].message if isinstance(error, config.ConfigError) else start_failure(error)


def _invite(base_url: str, screen: Screen, once: bool) -> None:
    """Commands to copy: a stream, one with a fallback, a job; and where SDKs go."""
    url = f"{base_url}/anthropic/v1/messages"
    headers = "-H 'content-type: application/json' -H 'anthropic-version: 2023-06-01'"
    screen.title("Now you. " + ("Without --once this goes on serving, for:" if once else "Until Ctrl-C:"))
    for option, body in (("-N", _TRY), ("-N -i", _TRY_FALLBACK)):
        screen.line(f"\ncurl {option} {url} {headers} -d '{orjson.dumps(body).decode()}'")
    job = f"{base_url}/v1/async/messages"
    screen.line(f"\ncurl {job} {headers} -d '{orjson.dumps(_TRY_JOB).decode()}'")
    screen.line(f"curl {job}/ID    # with the id that came")
    screen.line("\nAny SDK, with any key; each reads its base URL from a variable:\n")
    for sdk, variable, path in _SDKS:
        screen.line(f"{f'export {variable}={base_url}{path}':<62}# {sdk}")
    screen.line("")
    screen.note(
        f"More models: {demo_answers.THINKING} (silence), {demo_answers.ERROR} (breaks off), or any name."
    )
