"""The command line: ``serve``, ``check``, ``keys``, ``demo``, ``version``.

Exit codes: 0 when all went well, 1 when the config has problems or an address is taken, 2 for a call
that is not understood.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import importlib.util
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from . import __version__, config, demo, errors, keycommand, local, systemd, values
from .accesslog import AccessLog
from .config import Config, ConfigError, Problem, Provider
from .server import Server, start_failure

logger = logging.getLogger("proxy")

GARBAGE_THRESHOLD = 20_000
"""Objects made and not freed before the collector looks. Python's own 700 costs a tenth of the CPU."""

STOP_SECONDS = 15.0
"""What a stop may take beside the drain."""


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
    if command == "keys" and arguments.action == "new":
        return keycommand.new()
    try:
        loaded = _load(arguments.config)
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        for problem in _problems(arguments.config, error):
            print(problem, file=sys.stderr)
        return 1
    if command == "keys":
        return keycommand.run(arguments, loaded)
    if command == "check":
        print(f"{arguments.config}: good; providers: {', '.join(loaded.providers)}")
        return 0
    try:
        listen = tuple(values.address(address) for address in arguments.listen or loaded.listen)
    except ValueError as error:
        print(f"--listen: {error}", file=sys.stderr)
        return 2
    return asyncio.run(_serve(loaded, listen, arguments.config))


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
    keycommand.add_parser(commands)
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
    can_sign = importlib.util.find_spec("botocore") is not None
    if path is None:
        return local.local_config(os.environ, can_sign=can_sign)
    beside = Path(path).parent
    source = Path(path).read_text("utf-8")
    loaded = config.load(source, os.environ, lambda name: (beside / name).read_text("utf-8"))
    signing = [name for name, provider in loaded.providers.items() if any(key.signs for key in provider.keys)]
    if signing and not can_sign:
        missing = "has a bedrock_key_config, which needs: pip install 'verbatim-proxy[bedrock]'"
        raise ConfigError([Problem(f"providers.{name}.keys", 0, missing) for name in signing])
    if loaded.store is None or not loaded.store.startswith("sqlite:"):
        return loaded
    return dataclasses.replace(loaded, store=f"sqlite:{beside / loaded.store.removeprefix('sqlite:')}")


def _problems(path: str | None, error: Exception) -> list[str]:
    """What is wrong with the config, a line each."""
    if isinstance(error, ConfigError):
        return [f"{path or 'environment'}: {problem}" for problem in error.problems]
    if isinstance(error, OSError):
        return [f"{path}: cannot be read: {error.strerror}"]
    return [f"{path}: is not UTF-8"]


async def _serve(loaded: Config, listen: tuple[str, ...], path: str | None) -> int:
    """Serve until SIGTERM or SIGINT; reload on SIGHUP."""
    _allow_descriptors()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_stray)
    stops: asyncio.Queue[None] = asyncio.Queue()
    reloads: asyncio.Queue[None] = asyncio.Queue()
    for number, heard in ((signal.SIGTERM, stops), (signal.SIGINT, stops), (signal.SIGHUP, reloads)):
        loop.add_signal_handler(number, heard.put_nowait, None)
    supervisor = systemd.Supervisor(os.environ)
    server = Server(
        dataclasses.replace(loaded, listen=listen),
        log=AccessLog(_write_lines),
        sockets=systemd.passed_sockets(os.environ),
        state=Path(state.partition(":")[0]) if (state := os.environ.get("STATE_DIRECTORY")) else None,
    )
    try:
        await server.start()
    except (OSError, RuntimeError) as error:
        print(f"cannot start on {', '.join(listen)}: {start_failure(error)}", file=sys.stderr)
        await server.stop()
        return 1
    _say_providers(loaded)
    # What the start made lives as long as the process: the collector need not walk it again and again.
    gc.freeze()
    # A request leaves no cycles behind (`tests/test_garbage.py`), so looking for them seldom loses nothing.
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)
    logger.info("serving on %s", ", ".join(server.addresses))
    supervisor.ready(server.status)
    supervisor.watch(lambda: server.status)
    reloading = loop.create_task(_reload_when_asked(server, loaded, path, reloads, supervisor))
    await stops.get()
    reloading.cancel()
    logger.info("stopping: open requests may finish; a second signal ends them")
    stopping = loop.create_task(server.stop())
    supervisor.stopping("draining: open requests may finish", server.drain_timeout + STOP_SECONDS)
    again = loop.create_task(stops.get())
    again.add_done_callback(lambda _: server.hurry())
    await stopping
    again.cancel()
    await asyncio.wait([again, reloading])
    supervisor.close()
    return 0


async def _reload_when_asked(
    server: Server,
    loaded: Config,
    path: str | None,
    asked: asyncio.Queue[None],
    supervisor: systemd.Supervisor,
) -> None:
    """Never returns. What is read late, when a stop has begun, is not used any more."""
    while True:
        await asked.get()
        supervisor.reloading()
        loaded = await _reload(server, loaded, path)
        supervisor.ready(server.status)


async def _reload(server: Server, used: Config, path: str | None) -> Config:
    """Read the config again and use it if it is good; returns the one in use."""
    try:
        fresh = await asyncio.to_thread(_load, path)
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        for problem in _problems(path, error):
            logger.error("%s", problem)
        logger.error("the config is not reloaded; the one in use stays")
        server.keep_config()
        return used
    for name in ("listen", "store", "store_password"):
        if getattr(fresh, name) != getattr(used, name):
            logger.warning("%s has changed: that is not reloaded, it takes a restart", name)
    server.use(fresh)
    logger.info("the config is reloaded")
    _say_providers(fresh)
    return fresh


def _allow_descriptors() -> None:
    """Take as many file descriptors as the system allows; the usual default is meant for select(2)."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError):
        # macOS says "unlimited" and does not mean it; what there is has to do.
        logger.info("the limit of file descriptors stays as it is")


def _stray(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an exception that nobody caught, without its text: it may hold what a client sent."""
    failure = context.get("exception")
    logger.error("%s: %s", context.get("message"), errors.frames(failure) if failure is not None else "")


def _say_providers(loaded: Config) -> None:
    useless = []
    for provider in loaded.providers.values():
        credentials = _credentials(loaded, provider)
        if credentials:
            logger.info("provider %s: %s", provider.name, credentials)
        else:
            useless.append(provider.name)
    if useless:
        logger.info("no keys, so nobody can use: %s", ", ".join(useless))


def _credentials(loaded: Config, provider: Provider) -> str:
    """What requests to the provider carry; empty when there is nothing that they could."""
    if provider.keys:
        return "keys of its own: " + ", ".join(key.name for key in provider.keys)
    if provider.is_key_less:
        return "no credentials"
    return "the client's own credentials" if provider.name in loaded.default_providers.values() else ""


def _write_lines(data: bytes) -> None:
    # Past `sys.stdout`, whose lock a write that never returns would hold at the end of the process.
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


if __name__ == "__main__":
    sys.exit(main())
