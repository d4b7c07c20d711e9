"""No secret is ever shown: in a log, an error, a metric, a representation, a traceback."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from rawclient import asked, post
from running import StartProxy, StartUpstream, keyed
from scripted import MESSAGE, answer, refusal

from proxy import answer as answer_room
from proxy import sending
from proxy.upstream import Upstream

MESSAGES = "/anthropic/v1/messages"

WHAT_PRINTS: dict[str, str] = {
    "print": 'def test(): print("sk-test-1")',
    "stderr": 'import sys\ndef test(): sys.stderr.write("sk-test-1")',
    "a descriptor": 'import os\ndef test(): os.write(2, b"sk-test-1")',
    "a process": 'import subprocess\ndef test(): subprocess.run(["echo", "sk-test-1"], check=True)',
    "a log": 'import logging\ndef test(): logging.getLogger("x").warning("sk-test-1")',
    "a teardown": (
        "import pytest\n@pytest.fixture\ndef late():\n    yield\n    print('sk-test-1')\ndef test(late): pass"
    ),
    "a pipe": (
        "import asyncio, secrecy\n"
        "async def run():\n"
        "    pipe = asyncio.subprocess.PIPE\n"
        "    process = await asyncio.create_subprocess_exec('echo', 'sk-test-1', stdout=pipe)\n"
        "    secrecy.overhear(process)\n"
        "    await process.communicate()\n"
        "def test(): asyncio.run(run())"
    ),
}


@pytest.mark.parametrize("how", WHAT_PRINTS)
def test_a_test_that_prints_a_key_fails(tmp_path: Path, how: str) -> None:
    """The search that every test of this suite goes through finds a key, whatever way it is printed."""
    (tmp_path / "conftest.py").write_text("from secrecy import pytest_runtest_makereport\n")
    (tmp_path / "test_it.py").write_text(WHAT_PRINTS[how])
    for text, code in ((WHAT_PRINTS[how], 1), (WHAT_PRINTS[how].replace("sk-test", "none"), 0)):
        (tmp_path / "test_it.py").write_text(text)
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                f"--rootdir={tmp_path}",
                tmp_path,
            ],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(Path(__file__).parent), "PATH": "/usr/bin:/bin"},
            timeout=60,
            check=False,
        )
        assert run.returncode == code, run.stdout + run.stderr
        assert ("a key was printed" in run.stdout) is (code == 1)


async def test_no_error_and_no_metric_shows_one(
    upstream: StartUpstream, proxy: StartProxy, closed_port: int
) -> None:
    """Keys in every place where a client may put one, and answers of ours of every kind."""
    up = await upstream(answer(body=MESSAGE), b"nonsense sk-test-upstream\r\n\r\n", refusal(401))
    p = await proxy(
        keyed(up, "main"),
        providers={"gone": {"base_urls": {"anthropic": f"http://127.0.0.1:{closed_port}"}}},
        network={"max_retries": 0},
    )
    places = [
        (b"authorization", b"Bearer sk-test-1"),
        (b"x-api-key", b"sk-test-2"),
        (b"x-goog-api-key", b"sk-test-3"),
        (b"cookie", b"session=sk-test-4"),
        (b"proxy-authorization", b"Basic sk-test-5"),
    ]
    shown = []
    for body in (
        asked(),
        asked(),
        asked(),
        asked("gone/x"),
        b"sk-test-body",
        asked("sk-test-model/x") + b"}",
    ):
        shown.append((await p.post(MESSAGES + "?key=sk-test-6", body, places, key=None)).raw)
    shown.append((await p.get("/sk-test-in-a-path?key=sk-test-8", places)).raw)
    shown.append((await p.ask(b"GET / HTTP/1.1\r\nsk-test-9\r\n\r\n")).raw)
    shown.append((await p.get("/metrics")).raw)
    assert [raw for raw in shown if b"sk-test" in raw] == []


async def test_no_representation_shows_one(
    upstream: StartUpstream, proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of the config nor of a request on its way, where tools that print local variables look."""
    seen: list[sending.Request] = []
    opened = Upstream.open

    async def noted(self: Upstream, request: sending.Request) -> answer_room.Answer:
        seen.append(request)
        return await opened(self, request)

    monkeypatch.setattr(Upstream, "open", noted)
    p = await proxy(keyed(await upstream(answer(body=MESSAGE)), "main"))
    assert (await p.post(MESSAGES, asked())).status == 200
    assert b"sk-test-main" in seen[0].head
    for thing in (*seen, p.server._config, *p.server._config.providers.values()):
        assert "sk-test" not in f"{thing!r} {thing}"


async def test_a_stray_exception_is_logged_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What nobody caught may hold anything: its type and its frames are logged."""
    from proxy import __main__ as command

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(command._stray)

    def fails() -> None:
        raise KeyError("secret")

    loop.call_soon(fails)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert "KeyError" in caplog.text
    assert "in fails" in caplog.text
    assert "'secret'" not in caplog.text


async def test_a_failure_in_the_path_keeps_its_locals_to_itself(
    upstream: StartUpstream, proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of our own mistake has frames, not values."""
    shown: list[str] = []

    async def broken(self: Upstream, request: sending.Request) -> answer_room.Answer:
        shown.append("".join(traceback.format_stack()))
        raise RuntimeError(bytes(request.head))

    monkeypatch.setattr(Upstream, "open", broken)
    p = await proxy(keyed(await upstream(), "main"))
    assert (await p.ask(post(MESSAGES, asked()))).status == 500
    assert "RuntimeError" in p.log_text
    assert "sk-test" not in p.log_text + "".join(shown)
