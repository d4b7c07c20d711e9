"""Where Gemini's resumable uploads go: through the proxy, for SDKs send their key along."""

from __future__ import annotations

import pytest
from rawclient import request_head
from running import StartProxy, StartUpstream
from scripted import answer

URL = (
    b"https://generativelanguage.googleapis.com/upload/v1beta/files?upload_id=a%2Fb&upload_protocol=resumable"
)
BEGUN = answer(headers=[(b"X-Goog-Upload-URL", URL), (b"X-Goog-Upload-Status", b"active")], body=b"")


@pytest.mark.parametrize("prefix", ["/genai", "/litellm/genai"])
async def test_an_upload_goes_on_through_the_proxy(
    upstream: StartUpstream, proxy: StartProxy, prefix: str
) -> None:
    """Where the proxy has the key: the field names it, and the path and the query behind it stay."""
    up = await upstream(BEGUN, answer(body=b"{}"))
    provider = {"base_urls": {"genai": up.url}, "keys": [{"name": "main", "value": "env.TEST_KEY_MAIN"}]}
    p = await proxy(providers={"gemini": provider}, default_providers={})
    fields = [(b"Host", b"proxy.test"), (b"X-Goog-Upload-Command", b"start"), (b"Content-Length", b"0")]
    begun = await p.ask(request_head("POST", f"{prefix}/upload/v1beta/files", fields))
    url = begun.header("x-goog-upload-url") or b""
    assert url == b"http://proxy.test" + prefix.encode() + URL.removeprefix(
        b"https://generativelanguage.googleapis.com"
    )
    target = url.removeprefix(b"http://proxy.test").decode()
    fields = [
        (b"Host", b"proxy.test"),
        (b"X-Goog-Upload-Command", b"upload, finalize"),
        (b"Content-Length", b"3"),
    ]
    assert (await p.ask(request_head("POST", target, fields) + b"abc")).status == 200
    assert up.requests[1].target == b"/upload/v1beta/files?upload_id=a%2Fb&upload_protocol=resumable"
    assert up.requests[1].header("x-goog-api-key") == b"sk-test-main"


async def test_another_provider_s_upload_goes_on_there(upstream: StartUpstream, proxy: StartProxy) -> None:
    """Who names the provider in a field does not name it in the requests that follow."""
    default, other = await upstream(), await upstream(BEGUN)
    keys = [{"name": "main", "value": "env.TEST_KEY_MAIN"}]
    p = await proxy(
        providers={
            name: {"base_urls": {"genai": up.url}, "keys": keys}
            for name, up in (("gemini", default), ("other", other))
        },
        default_providers={},
    )
    fields = [(b"Host", b"proxy.test"), (b"x-model-provider", b"other"), (b"Content-Length", b"0")]
    begun = await p.ask(request_head("POST", "/genai/upload/v1beta/files", fields))
    assert begun.header("x-goog-upload-url") == URL


async def test_without_a_key_of_ours_nothing_changes(upstream: StartUpstream, proxy: StartProxy) -> None:
    """The client's own key is the provider's: it may go there."""
    up = await upstream(BEGUN)
    p = await proxy(providers={"gemini": {"base_urls": {"genai": up.url}}}, default_providers={})
    fields = [(b"Host", b"proxy.test"), (b"Content-Length", b"0")]
    begun = await p.ask(request_head("POST", "/genai/upload/v1beta/files", fields))
    assert begun.header("x-goog-upload-url") == URL
