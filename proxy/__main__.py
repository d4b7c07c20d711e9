"""The command line: ``serve``, ``check``, ``demo``, ``version``.

Exit codes: 0 when all went well, 1 when the config has problems or an address is taken, 2 for a call
that is not understood.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import logging
import os
import signal
import sys
from pathlib import Path

from . import __version__, config, demo, systemd, values
from .accesslog import AccessLog
from .config import Config, ConfigError, Provider
from .server import Server, start_failure

logger = logging.getLogger("proxy")

GARBAGE_THRESHOLD = 20_000
"""Objects made and not freed before the collector looks. Python's own 700 costs a tenth of the CPU."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    command = arguments.command
    if command == "version":
        print(f"verbatim-proxy {__version__}")
        return 0
    if command == "demo":
        return _show(arguments.listen, once=arguments.once)
    try:
        loaded = _load(arguments.config)
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        _complain(arguments.config, error)
        return 1
    if command == "check":
        print(f"{arguments.config}: good; providers: {', '.join(loaded.providers)}")
        return 0
    try:
        listen = tuple(values.address(address) for address in arguments.listen or loaded.listen)
    except ValueError as error:
        print(f"--listen: {error}", file=sys.stderr)
        return 2
    return asyncio.run(_serve(dataclasses.replace(loaded, listen=listen)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "verbatim-proxy", description="A reverse proxy for LLM APIs that never re-encodes."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve; without a config, as a local dev proxy")
    serve.add_argument(
        "--config", metavar="FILE", help="the YAML config; default: known providers, your own credentials"
    )
    serve.add_argument(
        "--listen", metavar="ADDR", action="append", help="HOST:PORT or unix:/PATH, instead of the config's"
    )
    check = commands.add_parser("check", help="say every problem of a config, with its line")
    check.add_argument("--config", metavar="FILE", required=True)
    show = commands.add_parser("demo", help="watch it work, without a key and without a network")
    show.add_argument("--listen", metavar="ADDR", default="127.0.0.1:8080")
    show.add_argument("--once", action="store_true", help="end after the show")
    commands.add_parser("version", help="print the version")
    return parser


def _show(listen: str, *, once: bool) -> int:
    try:
        return asyncio.run(demo.run(listen, once, sys.stdout))
    except BrokenPipeError:
        # The reader has seen enough; nothing may be written when the interpreter flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _load(path: str | None) -> Config:
    if path is None:
        return config.local(os.environ)
    return config.load(Path(path).read_text("utf-8"), os.environ, lambda name: Path(name).read_text("utf-8"))


def _complain(path: str | None, error: Exception) -> None:
    if isinstance(error, ConfigError):
        for problem in error.problems:
            print(f"{path or 'environment'}: {problem}", file=sys.stderr)
    elif isinstance(error, OSError):
        print(f"{path}: cannot be read: {error.strerror}", file=sys.stderr)
    else:
        print(f"{path}: is not UTF-8", file=sys.stderr)


async def _serve(loaded: Config) -> int:
    server = Server(loaded, log=AccessLog(_write_line), sockets=systemd.passed_sockets(os.environ))
    try:
        await server.start()
    except (OSError, RuntimeError) as error:
        print(f"cannot start on {', '.join(loaded.listen)}: {start_failure(error)}", file=sys.stderr)
        await server.stop()
        return 1
    for provider in loaded.providers.values():
        logger.info("provider %s: %s", provider.name, _credentials(loaded, provider))
    # What the start made lives as long as the process: the collector need not walk it again and again.
    gc.freeze()
    # A request leaves no cycles behind (`tests/test_garbage.py`), so looking for them seldom loses nothing.
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)
    logger.info("serving on %s", ", ".join(server.addresses))
    signals: asyncio.Queue[None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, None)
    await signals.get()
    logger.info("stopping: open requests may finish; a second signal ends them")
    again = loop.create_task(signals.get())
    again.add_done_callback(lambda _: server.hurry())
    await server.stop()
    again.cancel()
    return 0


def _credentials(loaded: Config, provider: Provider) -> str:
    if provider.keys:
        return "keys of its own: " + ", ".join(key.name for key in provider.keys)
    if provider.is_key_less:
        return "no credentials"
    if provider.name in loaded.default_providers.values():
        return "the client's own credentials"
    return "no keys, so nobody can use it"


def _write_line(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
