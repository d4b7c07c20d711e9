"""Sound and pictures: their bytes are no tokens, where nothing else says what was used up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rawclient import request_head
from running import StartProxy, StartUpstream
from scripted import answer

ALICE = "sk-bf-sk-test-alice"
JSON = b"application/json"
FORM = b"multipart/form-data; boundary=b"
SAID = b'{"text":"Hello"}'
MEGABYTE = bytes(1_000_000)
FILE = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + MEGABYTE + b"\r\n--b--\r\n"
)
ASKED = b'{"model":"m","input":"Hello"}'
CASES: dict[str, tuple[str, bytes, bytes, bytes, bytes]] = {
    "a transcription": ("/openai/v1/audio/transcriptions", FORM, FILE, JSON, SAID),
    "a transcription at Cohere": ("/cohere/v2/audio/transcriptions", FORM, FILE, JSON, SAID),
    "a transcription at Azure": (
        *("/openai/deployments/m/audio/transcriptions?api-version=1", FORM, FILE, JSON, SAID),
    ),
    "speech": ("/openai/v1/audio/speech", JSON, ASKED, b"audio/mpeg", MEGABYTE),
    "a picture": ("/openai/v1/images/generations", JSON, ASKED, JSON, b'{"data":"%b"}' % MEGABYTE),
    "a picture of Gemini": ("/genai/v1beta/models/m:predict", JSON, b"{}", JSON, b'{"x":"%b"}' % MEGABYTE),
}
"""Path, content types and bodies of request and answer."""


@pytest.mark.parametrize("what", CASES)
async def test_only_text_is_charged_by_its_bytes(
    upstream: StartUpstream, proxy: StartProxy, tmp_path: Path, what: str
) -> None:
    """A megabyte of sound would cost what a quarter of a million tokens do."""
    path, asked_type, body, told_type, told = CASES[what]
    up = await upstream(answer(headers=[(b"Content-Type", told_type)], body=told))
    providers: dict[str, Any] = {
        name: {"base_urls": {name: up.url}, "keys": [{"name": "main", "value": "env.TEST_KEY_MAIN"}]}
        for name in ("openai", "azure", "genai", "cohere")
    }
    grants = [{"provider": name, "allowed_models": ["*"]} for name in providers]
    limit = {"rate_limit": {"token_max_limit": 1000, "token_reset_duration": "1Y"}}
    p = await proxy(
        providers=providers,
        default_providers={},
        store=f"sqlite:{tmp_path / 'state.db'}",
        virtual_keys={"alice": {"value": "env.ALICE", "provider_configs": grants, **limit}},
        environ={"ALICE": ALICE},
    )
    fields = [(b"x-bf-vk", ALICE.encode()), (b"Content-Type", asked_type)]
    sized = (b"Content-Length", b"%d" % len(body))
    head = request_head("POST", path, [(b"Host", b"proxy.test"), *fields, sized])
    assert (await p.ask(head + body)).status == 200
    line = await p.line()
    small = {"input_tokens": min(line["bytes_in"], 1000), "output_tokens": min(line["bytes_out"], 1000)}
    large = {name for name, count in small.items() if count == 1000}
    assert len(large) == 1
    assert line["usage"] == {name: 0 if name in large else count // 4 for name, count in small.items()}
