"""The demo's upstream speaks Anthropic's wire format, always alike, and refuses what Anthropic refuses."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from proxy.demo_upstream import DemoUpstream

HEADERS = {"x-api-key": "sk-test-demo", "anthropic-version": "2023-06-01"}
MESSAGE = {
    "model": "claude-haiku-4-5",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "Say »grüß Gott« to 🙂"}],
}
COMPLETION = {
    "model": "claude-2",
    "max_tokens_to_sample": 64,
    "prompt": "\n\nHuman: Hello there\n\nAssistant:",
}
SAID = "You said “Hello there” and it reached me just as you wrote it. Yours verbatim, demo."


@pytest.fixture
async def upstream() -> AsyncIterator[DemoUpstream]:
    demo = DemoUpstream(interval=0, silence=0.2)
    await demo.start()
    yield demo
    await demo.stop()


@pytest.fixture
async def http(upstream: DemoUpstream) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(upstream.url, headers=HEADERS) as session:
        yield session


async def events_of(response: aiohttp.ClientResponse) -> list[tuple[str, dict[str, Any]]]:
    """The named events of a stream; fails where one is not a name line and a data line, with LF alone."""
    assert response.status == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *blocks, end = (await response.read()).decode().split("\n\n")
    assert end == ""
    events = []
    for block in blocks:
        name, data = block.split("\n")
        fields = json.loads(data.removeprefix("data: "))
        assert name.removeprefix("event: ") == fields["type"]
        events.append((fields["type"], fields))
    return events


async def refused(response: aiohttp.ClientResponse, status: int, kind: str) -> str:
    """The message of an error answer, which must be in Anthropic's shape with its own request id."""
    body = await response.json()
    assert (response.status, body["type"], body["error"]["type"]) == (status, "error", kind)
    assert body["request_id"] == response.headers["request-id"]
    return str(body["error"]["message"])


async def test_a_message_says_what_was_asked(http: aiohttp.ClientSession) -> None:
    """The JSON answer quotes the question, echoes the model, and counts its words as tokens."""
    async with http.post("/v1/messages?beta=true", json=MESSAGE) as response:
        message = await response.json()
    text = "You said “Say »grüß Gott« to 🙂” and it reached me just as you wrote it. Yours verbatim, demo."
    assert message["content"] == [{"type": "text", "text": text}]
    assert (message["model"], message["stop_reason"]) == ("claude-haiku-4-5", "end_turn")
    assert message["usage"] == {"input_tokens": 5, "output_tokens": len(text.split())}
    assert response.headers["anthropic-organization-id"] == "org_demo"
    assert response.headers["anthropic-ratelimit-requests-limit"] == "4000"


async def test_two_upstreams_answer_alike() -> None:
    """Nothing in an answer depends on clock or chance: two upstreams send the same bytes."""
    seen = []
    for _ in range(2):
        demo = DemoUpstream(interval=0)
        await demo.start()
        async with aiohttp.ClientSession(demo.url, headers=HEADERS) as session:
            for body in (MESSAGE, {**MESSAGE, "stream": True}):
                async with session.post("/v1/messages", json=body) as response:
                    seen.append(await response.read())
        await demo.stop()
    assert seen[:2] == seen[2:]


async def test_a_message_stream_adds_up_to_the_message(http: aiohttp.ClientSession) -> None:
    """The stream has Anthropic's events in Anthropic's order, and its deltas make the JSON answer's text."""
    async with http.post("/v1/messages", json=MESSAGE) as response:
        whole = await response.json()
    async with http.post("/v1/messages", json={**MESSAGE, "stream": True}) as response:
        events = await events_of(response)
    names = [name for name, _ in events]
    deltas = [fields["delta"]["text"] for name, fields in events if name == "content_block_delta"]
    assert names[:3] == ["message_start", "content_block_start", "ping"]
    assert names[3:-3] == ["content_block_delta"] * len(deltas)
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "".join(deltas) == whole["content"][0]["text"]
    assert events[0][1]["message"]["content"] == []
    assert events[0][1]["message"]["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    assert events[-2][1]["delta"]["stop_reason"] == whole["stop_reason"]
    assert events[-2][1]["usage"] == {"output_tokens": whole["usage"]["output_tokens"]}


async def test_max_tokens_cuts_the_answer(http: aiohttp.ClientSession) -> None:
    """An answer longer than `max_tokens` words stops there and says so."""
    async with http.post("/v1/messages", json={**MESSAGE, "max_tokens": 2}) as response:
        message = await response.json()
    assert (message["content"][0]["text"], message["stop_reason"]) == ("You said", "max_tokens")
    async with http.post("/v1/complete", json={**COMPLETION, "max_tokens_to_sample": 2}) as response:
        completion = await response.json()
    assert (completion["completion"], completion["stop_reason"]) == (" You said", "max_tokens")


async def test_a_completion(http: aiohttp.ClientSession) -> None:
    """The legacy JSON answer begins with a blank, as it did, and stops at the next turn."""
    async with http.post("/v1/complete", json=COMPLETION) as response:
        completion = await response.json()
    assert completion["completion"] == " " + SAID
    assert (completion["type"], completion["stop_reason"]) == ("completion", "stop_sequence")


async def test_a_completion_stream_of_2023_06_01(http: aiohttp.ClientSession) -> None:
    """Version 2023-06-01: named events, each with its own word, the last one empty with the stop reason."""
    async with http.post("/v1/complete", json={**COMPLETION, "stream": True}) as response:
        events = await events_of(response)
    assert events[0] == ("ping", {"type": "ping"})
    pieces = [fields for _, fields in events[1:]]
    assert {piece["type"] for piece in pieces} == {"completion"}
    assert [piece["completion"] for piece in pieces[:2]] == [" You", " said"]
    assert "".join(piece["completion"] for piece in pieces) == " " + SAID
    assert [piece["stop_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["stop_sequence"]
    assert pieces[-1]["completion"] == ""


async def test_a_completion_stream_of_2023_01_01(http: aiohttp.ClientSession) -> None:
    """Version 2023-01-01: data alone, each event with the whole text so far, then [DONE]."""
    old = {"anthropic-version": "2023-01-01"}
    async with http.post("/v1/complete", json={**COMPLETION, "stream": True}, headers=old) as response:
        *blocks, done, end = (await response.read()).decode().split("\r\n\r\n")
    assert (done, end) == ("data: [DONE]", "")
    pieces = [json.loads(block.removeprefix("data: ")) for block in blocks]
    assert [piece["completion"] for piece in pieces[:2]] == [" You", " You said"]
    assert pieces[-1]["completion"] == " " + SAID
    assert [piece["stop_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["stop_sequence"]


@pytest.mark.parametrize(("path", "body"), [("/v1/messages", MESSAGE), ("/v1/complete", COMPLETION)])
@pytest.mark.parametrize("stream", [True, False])
async def test_overloaded(http: aiohttp.ClientSession, path: str, body: dict[str, Any], stream: bool) -> None:
    """``demo-overloaded`` answers 529 with Anthropic's body and a retry-after, streaming or not."""
    asked = {**body, "model": "demo-overloaded", "stream": stream}
    async with http.post(path, json=asked) as response:
        assert await refused(response, 529, "overloaded_error") == "Overloaded"
    assert response.headers["retry-after"] == "1"


async def test_thinking_is_silent_and_sends_no_ping(
    http: aiohttp.ClientSession, machine: Callable[[], float]
) -> None:
    """``demo-thinking`` starts a signed thinking block, says nothing for `silence` s, and pings never."""
    loop = asyncio.get_running_loop()
    late = machine()
    async with http.post(
        "/v1/messages", json={**MESSAGE, "model": "demo-thinking", "stream": True}
    ) as response:
        await response.content.readuntil(b"\n\n")
        await response.content.readuntil(b"\n\n")
        silent_since = loop.time()
        await response.content.readuntil(b"\n\n")
        silence = loop.time() - silent_since
        rest = await response.text()
    # The server's timer may have begun before this side saw the event, on a slow machine long before.
    assert silence > 0.1 - (machine() - late)
    assert "event: ping" not in rest
    assert '"type":"signature_delta"' in rest


@pytest.mark.parametrize(
    ("path", "body", "version", "word"),
    [
        ("/v1/messages", MESSAGE, "2023-06-01", "event: content_block_delta\n"),
        ("/v1/complete", COMPLETION, "2023-06-01", "event: completion\n"),
        ("/v1/complete", COMPLETION, "2023-01-01", '"completion":'),
    ],
)
async def test_error_breaks_off_in_the_middle(
    http: aiohttp.ClientSession, path: str, body: dict[str, Any], version: str, word: str
) -> None:
    """``demo-error`` ends its streams with an ``error`` event after three words, and is a 500 otherwise."""
    headers = {"anthropic-version": version}
    asked = {**body, "model": "demo-error"}
    async with http.post(path, json={**asked, "stream": True}, headers=headers) as response:
        told, error = (await response.text()).split("event: error\n")
    assert told.count(word) == 3
    overloaded = {"type": "overloaded_error", "message": "Overloaded"}
    assert error.endswith("\n\n")
    assert json.loads(error.removeprefix("data: ")) == {"type": "error", "error": overloaded}
    async with http.post(path, json=asked, headers=headers) as response:
        await refused(response, 500, "api_error")


async def test_batch_results_are_where_results_url_says(
    http: aiohttp.ClientSession, upstream: DemoUpstream
) -> None:
    """A batch ends when it is looked at; its absolute `results_url` names this host and holds a line each."""
    requests = [{"custom_id": name, "params": MESSAGE} for name in ("one", "two")]
    async with http.post("/v1/messages/batches", json={"requests": requests}) as response:
        created = await response.json()
    assert (created["processing_status"], created["results_url"]) == ("in_progress", None)
    async with http.get(f"/v1/messages/batches/{created['id']}") as response:
        ended = await response.json()
    assert ended["results_url"] == f"{upstream.url}/v1/messages/batches/{created['id']}/results"
    assert ended["request_counts"]["succeeded"] == 2
    async with http.get(ended["results_url"]) as response:
        lines = [json.loads(line) for line in (await response.text()).splitlines()]
    assert [line["custom_id"] for line in lines] == ["one", "two"]
    assert lines[0]["result"]["message"]["content"][0]["text"].startswith("You said “Say »grüß Gott«")


async def test_a_canceled_batch(http: aiohttp.ClientSession) -> None:
    """A batch canceled before it ended has canceled results, is listed, and can be deleted."""
    requests = [{"custom_id": "one", "params": MESSAGE}]
    async with http.post("/v1/messages/batches", json={"requests": requests}) as response:
        batch_id = (await response.json())["id"]
    async with http.post(f"/v1/messages/batches/{batch_id}/cancel") as response:
        assert (await response.json())["processing_status"] == "canceling"
    async with http.get("/v1/messages/batches") as response:
        listed = (await response.json())["data"]
    assert [batch["request_counts"]["canceled"] for batch in listed] == [1]
    async with http.get(listed[0]["results_url"]) as response:
        assert json.loads(await response.text())["result"] == {"type": "canceled"}
    async with http.delete(f"/v1/messages/batches/{batch_id}") as response:
        assert response.status == 200
    async with http.get(f"/v1/messages/batches/{batch_id}") as response:
        await refused(response, 404, "not_found_error")


async def test_a_file_comes_back_as_it_went_up(http: aiohttp.ClientSession) -> None:
    """A file is uploaded as multipart, listed, downloaded byte for byte, and deleted."""
    content = bytes(range(256)) * 4000
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("file", content, filename="grüße.bin", content_type="application/x-test")
    async with http.post("/v1/files", data=form) as response:
        metadata = await response.json()
    assert (metadata["filename"], metadata["size_bytes"]) == ("grüße.bin", len(content))
    async with http.get("/v1/files") as response:
        assert (await response.json())["data"] == [metadata]
    async with http.get(f"/v1/files/{metadata['id']}/content") as response:
        assert response.content_type == "application/x-test"
        assert await response.read() == content
    async with http.delete(f"/v1/files/{metadata['id']}") as response:
        assert response.status == 200
    async with http.get(f"/v1/files/{metadata['id']}") as response:
        await refused(response, 404, "not_found_error")


async def test_what_is_kept_is_bounded(http: aiohttp.ClientSession) -> None:
    """Of many files only the last hundred are held."""
    for number in range(103):
        form = aiohttp.FormData()
        form.add_field("file", b"x", filename=f"{number}.txt")
        async with http.post("/v1/files", data=form) as response:
            assert response.status == 200
    async with http.get("/v1/files") as response:
        names = [file["filename"] for file in (await response.json())["data"]]
    assert names == [f"{number}.txt" for number in range(3, 103)]


async def test_models_skills_and_token_counts(http: aiohttp.ClientSession) -> None:
    """The lists have Anthropic's shape, and count_tokens counts what the message's usage counts."""
    async with http.get("/v1/models?limit=1000") as response:
        models = await response.json()
    assert models["first_id"] == models["data"][0]["id"] == "claude-2"
    async with http.get("/v1/models/demo-thinking") as response:
        assert (await response.json())["id"] == "demo-thinking"
    async with http.get("/v1/skills") as response:
        assert (await response.json())["data"][0]["type"] == "skill"
    asked = {key: value for key, value in MESSAGE.items() if key != "max_tokens"}
    async with http.post("/v1/messages/count_tokens", json={**asked, "system": "Be kind"}) as response:
        assert await response.json() == {"input_tokens": 7}


async def test_a_session_streams_over_get(http: aiohttp.ClientSession) -> None:
    """A session's events come as SSE over GET."""
    async with http.get("/v1/sessions/sesn_7/events/stream") as response:
        events = await events_of(response)
    assert [name for name, _ in events] == ["session.status_running", "agent.message", "session.status_idle"]
    assert "sesn_7" in events[1][1]["content"][0]["text"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "model: "),
        ({"model": ""}, "model: "),
        ({"max_tokens": "9"}, "max_tokens: "),
        ({"max_tokens": True}, "max_tokens: "),
        ({"max_tokens": -1}, "max_tokens: "),
        ({"messages": []}, "messages: "),
        ({"messages": {}}, "messages: "),
        ({"messages": ["hi"]}, "messages.0: "),
        ({"messages": [{"role": "system", "content": "hi"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user"}]}, "messages.0.content: "),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages.0.content: "),
        ({"fallbacks": ["backup/claude-2"]}, "fallbacks: Extra inputs are not permitted"),
    ],
)
async def test_bad_messages(http: aiohttp.ClientSession, change: dict[str, Any], message: str) -> None:
    """A message request that Anthropic refuses is a 400 that names the member."""
    async with http.post("/v1/messages", json={**MESSAGE, **change}) as response:
        assert (await refused(response, 400, "invalid_request_error")).startswith(message)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([], "requests: "),
        (["one"], "requests.0: "),
        ([{"params": MESSAGE}], "requests.0.custom_id: "),
        ([{"custom_id": "one", "params": {}}], "requests.0.params: "),
        ([{"custom_id": "one", "params": {"model": "claude-2"}}], "max_tokens: "),
    ],
)
async def test_bad_batches(http: aiohttp.ClientSession, requests: list[Any], message: str) -> None:
    """A batch with a request that Anthropic refuses is a 400."""
    async with http.post("/v1/messages/batches", json={"requests": requests}) as response:
        assert (await refused(response, 400, "invalid_request_error")).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "Hello"}, "prompt: "),
        ({"prompt": "\n\nAssistant: \n\nHuman:"}, "prompt: "),
        ({"max_tokens_to_sample": 0}, "max_tokens_to_sample: "),
        ({"fallbacks": ["backup/claude-2"]}, "fallbacks: Extra inputs are not permitted"),
    ],
)
async def test_bad_completions(http: aiohttp.ClientSession, change: dict[str, Any], message: str) -> None:
    """A completion request that Anthropic refuses is a 400 that names the member."""
    async with http.post("/v1/complete", json={**COMPLETION, **change}) as response:
        assert (await refused(response, 400, "invalid_request_error")).startswith(message)


async def test_native_fallbacks_need_their_beta_header(http: aiohttp.ClientSession) -> None:
    """Anthropic's own `fallbacks` are accepted with the beta header that they need."""
    headers = {"anthropic-beta": "server-side-fallback-2026-07-01"}
    async with http.post(
        "/v1/messages", json={**MESSAGE, "fallbacks": "default"}, headers=headers
    ) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (b"", {}),
        (b"{", {}),
        (b'{"a":NaN}', {}),
        (b'{"a":"\\ud800"}', {}),
        (b"\xff", {}),
        (b"[]", {}),
        (b"[" * 100_000, {}),
        (b"not gzip", {"content-encoding": "gzip"}),
        (gzip.compress(json.dumps(MESSAGE).encode())[:-20], {"content-encoding": "gzip"}),
    ],
)
async def test_bodies_that_are_no_object(
    http: aiohttp.ClientSession, data: bytes, headers: dict[str, str]
) -> None:
    """A body that is not a JSON object, or cannot be decoded, is a 400."""
    async with http.post("/v1/messages", data=data, headers=headers) as response:
        await refused(response, 400, "invalid_request_error")


async def test_a_compressed_body_is_read(http: aiohttp.ClientSession) -> None:
    """A gzip body is accepted, as it is by Anthropic."""
    data = gzip.compress(json.dumps(MESSAGE).encode())
    async with http.post("/v1/messages", data=data, headers={"content-encoding": "gzip"}) as response:
        assert response.status == 200


async def test_a_body_beyond_32_mib(http: aiohttp.ClientSession) -> None:
    """A body that is too large is a 413."""
    async with http.post("/v1/messages", data=io.BytesIO(b" " * (32 * 1024 * 1024 + 1))) as response:
        await refused(response, 413, "request_too_large")


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"{}", "application/json"),
        (b"", "multipart/form-data"),
        (b"garbage", "multipart/form-data; boundary=b"),
        (
            b"--b\r\nContent-Disposition: form-data; name=other\r\n\r\nx\r\n--b--\r\n",
            "multipart/form-data; boundary=b",
        ),
        (
            b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\nx\r\n--b",
            "multipart/form-data; boundary=b",
        ),
        (b"--b\r\nno header\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b"),
        (b"", "multipart/form-data; boundary=" + "b" * 71),
    ],
)
async def test_bad_uploads(http: aiohttp.ClientSession, data: bytes, content_type: str) -> None:
    """An upload without a whole `file` part is a 400."""
    async with http.post("/v1/files", data=data, headers={"content-type": content_type}) as response:
        await refused(response, 400, "invalid_request_error")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1/messages"),
        ("GET", "/v1/models/nobody"),
        ("GET", "/v1/files/nobody/content"),
        ("POST", "/v1/messages/batches/nobody/cancel"),
        ("POST", "/v1/messages/"),
    ],
)
async def test_unknown_paths(http: aiohttp.ClientSession, method: str, path: str) -> None:
    """What is not there is a 404."""
    async with http.request(method, path) as response:
        await refused(response, 404, "not_found_error")


async def test_credentials_and_version(upstream: DemoUpstream) -> None:
    """No credential is a 401; either kind will do; without anthropic-version it is a 400."""
    version = {"anthropic-version": "2026-10-21"}
    async with aiohttp.ClientSession(upstream.url) as bare:
        async with bare.get("/v1/models", headers=version) as response:
            await refused(response, 401, "authentication_error")
        async with bare.get("/v1/models", headers={"x-api-key": "k"}) as response:
            await refused(response, 400, "invalid_request_error")
        for credential in ({"x-api-key": "k"}, {"authorization": "Bearer k"}):
            async with bare.get("/v1/models", headers=version | credential) as response:
                assert response.status == 200


async def test_a_reader_that_leaves_ends_its_stream() -> None:
    """An upstream with an endless silence stops at once when its reader left and it is told to stop."""
    demo = DemoUpstream(interval=3600)
    await demo.start()
    async with (
        aiohttp.ClientSession(demo.url, headers=HEADERS) as session,
        session.post("/v1/messages", json={**MESSAGE, "stream": True}) as response,
    ):
        await response.content.readuntil(b"\n\n")
    async with asyncio.timeout(5):
        await demo.stop()
