"""A mistake of ours: a 500 in the wire format, frames in the log, no text of the exception anywhere."""

from __future__ import annotations

import json

import pytest
from rawclient import asked
from running import StartProxy, StartUpstream
from scripted import answer

from proxy import plan

MESSAGES = "/anthropic/v1/messages"
SECRET = "sk-test-in-the-text-of-an-exception"


async def test_a_bug_is_a_500_and_no_leak(
    upstream: StartUpstream, proxy: StartProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception's text may hold what a client sent; only its type and its frames are logged."""

    def broken(*_: object, **__: object) -> plan.Plan:
        raise ValueError(SECRET)

    p = await proxy(await upstream(answer(body=b"{}")))
    with monkeypatch.context() as patched:
        patched.setattr(plan.Planner, "plan", broken)
        response = await p.post(MESSAGES, asked())
    error = json.loads(response.body)
    assert (response.status, error["error"]["type"]) == (500, "api_error")
    assert b"sk-test" not in response.body
    assert "ValueError" in p.log_text
    assert "in broken" in p.log_text
    line = await p.line()
    assert (line["status"], line["ending"], line["request_id"]) == (500, "PP", error["request_id"])
    assert (await p.post(MESSAGES, asked())).status == 200
