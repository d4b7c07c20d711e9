"""The demo shows a fallback, a ping and the tokens as they come, checks itself, and serves until Ctrl-C."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from environments import RunScript

from proxy import demo


class Paper(io.StringIO):
    """A text file that knows when each piece was written, and may call itself a terminal."""

    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__()
        self.pieces: list[tuple[float, str]] = []
        self._terminal = terminal

    def write(self, text: str) -> int:
        self.pieces.append((time.monotonic(), text))
        return super().write(text)

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A show with shorter silences and slower words, where their length is not what is tested."""
    monkeypatch.setattr(demo, "PING_INTERVAL", 0.1)
    # Several pings long: one that comes late, on a slow machine, does not count.
    monkeypatch.setattr(demo, "SILENCE", 0.5)
    monkeypatch.setattr(demo, "INTERVAL", 0.03)


def words_of(text: str) -> str:
    """The answers without the pings in between, of which a slow machine has more than are planned."""
    return re.sub(r"\n   [·?] ping [·?] after [0-9.]+ s of silence\n   > ", " ", text)


async def test_the_show() -> None:
    """Once: exit code 0, and everything that a person would want to see is there."""
    out = Paper()
    assert await demo.run("127.0.0.1:0", True, out) == 0
    text = out.getvalue()
    assert "You said “What becomes of me when a provider is overloaded?”" in words_of(text)
    assert "Yours verbatim, backup." in words_of(text)
    assert "a fallback: demo/demo-overloaded answered 529, then backup/claude-2 answered 200\n" in text
    assert "x-bifrost-provider: backup\n" in text
    assert "x-bifrost-fallback-index: 1\n" in text
    assert "x-bifrost-attempts: demo/demo-overloaded:529,backup/claude-2:200\n" in text
    assert re.search(r"· ping · after \d+\.\d s of silence\n", text)
    assert "Yours verbatim, demo." in words_of(text)
    assert re.search(r"usage: \d+ input_tokens, \d+ output_tokens\n", text)
    assert len(re.findall(r"first token after \d\.\d+ s, \d+ tokens in \d\.\d+ s\n", text)) == 3
    assert "then backup/claude-haiku-4-5 answered 200\n" in text
    assert re.search(r"usage: \d+ prompt_tokens, \d+ completion_tokens, \d+ total_tokens\n", text)
    listed = re.search("GET /v1/models: (.+)\n", text)
    assert listed is not None
    assert {"demo/claude-2", "backup/claude-2"} <= set(listed[1].split(", "))
    assert re.search(
        r"200 -\S+ POST /anthropic/v1/complete: demo/demo-overloaded:529, backup/claude-2:200", text
    )
    assert "POST /anthropic/v1/messages: demo/demo-thinking:200" in text
    assert "POST /v1/chat/completions: demo/demo-overloaded:503, backup/claude-haiku-4-5:200" in text
    assert "GET /v1/models: demo:200, backup:200" in text
    assert "\ncurl -N http://127.0.0.1:" in text
    assert "\x1b" not in text


@pytest.mark.usefixtures("quick")
async def test_tokens_are_printed_as_they_come() -> None:
    """Each word is written when it arrives: the answer of half a second takes half a second to appear."""
    out = Paper()
    await demo.run("127.0.0.1:0", True, out)
    written = [when for when, piece in out.pieces if piece in ("   > You", " verbatim,", " backup.")]
    assert len(written) >= 3
    assert written[2] - written[0] > 0.3


@pytest.mark.usefixtures("quick")
async def test_a_terminal_gets_styles() -> None:
    """Colour codes are written to a terminal, and switched off again each time."""
    out = Paper(terminal=True)
    assert await demo.run("127.0.0.1:0", True, out) == 0
    styles = re.findall(r"\x1b\[(\d+)m", out.getvalue())
    assert styles[1::2] == ["0"] * (len(styles) // 2)
    assert set(styles[::2]) == {"1", "2", "36"}


@pytest.mark.usefixtures("quick")
async def test_a_narrow_encoding() -> None:
    """An output that cannot show a character gets a question mark for it, not a traceback."""
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    assert await demo.run("127.0.0.1:0", True, out) == 0
    assert "You said ?What becomes of me" in words_of(raw.getvalue().decode("ascii"))


async def test_a_port_that_is_taken() -> None:
    """A port that is taken: exit code 1, and one line that says so."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        out = Paper()
        assert await demo.run(address, True, out) == 1
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().startswith(
        f"verbatim-proxy demo: cannot listen on '{address}': another program listens there"
    )


@pytest.mark.parametrize("listen", ["8080", "", "127.0.0.1:99999", 'x"]\nstore: "', "unix:/tmp/x.sock"])
async def test_an_address_that_is_none(listen: str) -> None:
    """An address that cannot be listened on, or not be shown in a URL: exit code 1, and one line."""
    out = Paper()
    assert await demo.run(listen, True, out) == 1
    assert re.fullmatch("verbatim-proxy demo: cannot listen on [^\n]+\n", out.getvalue())


@pytest.mark.parametrize(
    ("written", "instead", "missing"),
    [
        ("ping_interval: {ping_interval}", "ping_interval: 0", "no ping"),
        ("[demo/{overloaded}, backup/claude-2]", "[backup/claude-2]", "no fallback"),
        (
            ", backup/claude-2]",
            "]",
            "the completion did not end well; no token of the completion came; no fallback",
        ),
        (
            "name: backup, value: env.DEMO_KEY",
            "name: backup, value: env.DEMO_KEY, models: [claude-2]",
            "the chat did not end well; no fallback of the chat; no usage of the chat",
        ),
        (
            "name: backup, value: env.DEMO_KEY",
            "name: backup, value: env.DEMO_KEY, models: [another]",
            "the completion did not end well; no token of the completion came; no fallback; "
            "the chat did not end well; no fallback of the chat; no usage of the chat; "
            "no list of both providers' models",
        ),
    ],
)
@pytest.mark.usefixtures("quick")
async def test_what_did_not_happen_is_said(
    monkeypatch: pytest.MonkeyPatch, written: str, instead: str, missing: str
) -> None:
    """A show without its ping, its fallback or its tokens ends with 1 and says what was missing."""
    config = demo._CONFIG.replace(written, instead)
    assert config != demo._CONFIG
    monkeypatch.setattr(demo, "_CONFIG", config)
    if missing == "no ping":
        # Nor is the provider's own, behind its head, taken for one when it comes late.
        monkeypatch.setattr(demo, "PING_INTERVAL", 60.0)
    out = Paper()
    assert await demo.run("127.0.0.1:0", True, out) == 1
    assert out.getvalue().endswith(f"\nverbatim-proxy demo: this did not happen: {missing}\n")


async def test_cancelled_from_outside() -> None:
    """A cancelled `run` is cancelled: only a signal is a normal end."""
    task = asyncio.create_task(demo.run("127.0.0.1:0", False, Paper()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", "demo", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def read_until(process: asyncio.subprocess.Process, mark: bytes) -> list[str]:
    """The lines up to the one that begins with `mark`."""
    assert process.stdout is not None
    lines = []
    async for line in process.stdout:
        lines.append(line.decode().rstrip("\n"))
        if line.startswith(mark):
            return lines
    raise AssertionError(f"{mark!r} never came: {lines}")


async def curl(line: str) -> tuple[aiohttp.ClientResponse, str]:
    """Does what a printed curl line does."""
    words = shlex.split(line)
    headers = dict(words[i + 1].split(": ", 1) for i, word in enumerate(words) if word == "-H")
    url = next(word for word in words if word.startswith("http"))
    method, body = ("POST", words[words.index("-d") + 1]) if "-d" in words else ("GET", None)
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, url, headers=headers, data=body) as response,
    ):
        return response, await response.text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_serves_until_ctrl_c(number: signal.Signals) -> None:
    """The printed curl lines work as they are, requests are logged, and a signal ends it with code 0."""
    async with running("--listen", "127.0.0.1:0") as process:
        stream, fallback, job, answer = (
            line for line in await read_until(process, b"export ") if line.startswith("curl ")
        )
        response, text = await curl(stream)
        assert (response.status, response.headers["x-bifrost-provider"]) == (200, "demo")
        assert "“Hello," in text
        assert text.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')
        response, text = await curl(fallback)
        assert (
            response.headers["x-bifrost-attempts"] == "demo/demo-overloaded:529,backup/claude-haiku-4-5:200"
        )
        response, text = await curl(job)
        assert response.status == 202
        status = 202
        while status == 202:
            response, text = await curl(answer.replace("ID", json.loads(text)["id"]))
            status = response.status
        assert "“Hello," in json.loads(text)["result"]["content"][0]["text"]
        await read_until(process, b"   More models")
        await read_until(process, b"   ")
        logged = (await read_until(process, b"   "))[-1]
        assert "demo/demo-overloaded:529, backup/claude-haiku-4-5:200" in logged
        while " 200 -- GET /v1/async/messages/job_" not in logged:
            logged = (await read_until(process, b"   "))[-1]
        process.send_signal(number)
        out, err = await process.communicate()
        assert (process.returncode, out, err) == (0, b"", b"")


async def test_ctrl_c_in_the_middle_of_the_show() -> None:
    """Ctrl-C while tokens are coming ends it at once, with code 0 and no traceback."""
    async with running("--listen", "127.0.0.1:0") as process:
        await read_until(process, b"   claude-2 is an alias")
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")


async def test_once_as_a_command() -> None:
    """``demo --once`` ends by itself with code 0 and says nothing on stderr."""
    async with running("--listen", "127.0.0.1:0", "--once") as process:
        out, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")
        body = next(line for line in out.decode().splitlines() if line.startswith("curl ")).rsplit(" -d ", 1)[
            1
        ]
        assert json.loads(shlex.split(body)[0])["stream"] is True


ANSWER = "You said “Say »grüß Gott«” and it reached me just as you wrote it. Yours verbatim, demo."
SDKS = {
    "openai": (("openai==3.54.0",), {"OPENAI_API_KEY": "any-key"}),
    "genai": (("google-genai==3.4.0",), {"GEMINI_API_KEY": "any-key"}),
    "cohere": (("cohere==7.3.1",), {"CO_API_KEY": "any-key"}),
}


async def test_sdks_go_where_the_printed_variables_say(run_script: RunScript) -> None:
    """Real SDKs with any key and the printed variables have JSON, streams, lists and errors of their own."""
    async with running("--listen", "127.0.0.1:0") as process:
        lines = await read_until(process, b"   More models")
        printed = dict(re.findall(r"^export (\w+)=(\S+) +# [a-z-]+$", "\n".join(lines), re.M))
        seen = {}
        for name, (requirements, key) in SDKS.items():
            seen[name] = await run_script(requirements, f"demo_{name}", **key, **printed)
    for name, said in seen.items():
        assert (name, said["whole"], said["stream"]) == (name, ANSWER, ANSWER)
        assert len({json.dumps(usage) for usage in said["usage"]}) == 1, name
    openai, genai, cohere = seen.values()
    assert (openai["usage"][0]["prompt_tokens"], openai["usage"][0]["completion_tokens"]) == (3, 17)
    assert (openai["response"], openai["response_stream"]) == (ANSWER, ANSWER)
    assert openai["response_types"] == ["response.created", "response.completed"]
    assert len(openai["embedding"]) == 8
    assert {"demo/claude-2", "backup/claude-2"} <= set(openai["models"])
    assert openai["error"] == [404, "not_found_error"]
    assert (genai["reason"], genai["tokens"], genai["error"]) == ("STOP", 3, [404, "NOT_FOUND"])
    assert genai["usage"][0]["candidates_token_count"] == 17
    assert genai["models"][0] == "models/claude-2"
    assert (cohere["reason"], cohere["error"]) == ("COMPLETE", [404, ["id", "message"]])
    assert cohere["usage"][0] == {"input_tokens": 3, "output_tokens": 17}
    assert cohere["models"][0] == "claude-2"
