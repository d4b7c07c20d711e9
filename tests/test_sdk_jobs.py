"""The official Anthropic SDKs submit jobs and poll them with their typed clients.

Facts
  - A client that knows nothing of jobs tells that one is over by its answer that is not empty any more.
  - The SDKs ask again by themselves after 408, 409, 429 and 5xx, twice by default, unless ``x-should-retry``
    says no (anthropic-sdk-python, ``_base_client.py``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sdks import (
    LAST_WITH_COMPLETIONS,
    MAJORS,
    Run,
    StartDemo,
    base_urls,
    demo_proxy,
    run,
    upstream_like,
)

__all__ = ["demo_proxy", "run", "upstream_like"]

ERRORS = {
    "bad_request": ("BadRequestError", 400, "invalid_request_error"),
    "server_error": ("InternalServerError", 500, "api_error"),
    "overloaded": ("OverloadedError", 529, "overloaded_error"),
}

NO_MESSAGE = {
    "type": "message",
    "role": "assistant",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"input_tokens": 0, "output_tokens": 0},
}

NO_COMPLETION = {"type": "completion", "completion": "", "stop_reason": None}


THINKS = 1.0
"""Seconds that the provider takes for a message: far longer than a poll."""


def check_job(job: dict[str, Any], shape: dict[str, Any], without: dict[str, Any]) -> None:
    """All answers are empty but the last, and that is what the same request gets without a job."""
    id = job["empty"][0]["id"]
    assert id.startswith("job_")
    # A poll's body is not read, so its model is not known.
    models = [without["model"], *[""] * (len(job["empty"]) - 1)]
    assert job["empty"] == [{"id": id, "model": model, **shape} for model in models]
    assert same_but_for_id(job["result"], without)
    assert job["request_id"].startswith("req_demo")


def same_but_for_id(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two answers of the provider differ only in their ids, which count up."""
    return json.dumps(one).replace(one["id"], "msg_") == json.dumps(other).replace(other["id"], "msg_")


@pytest.mark.parametrize(
    ("base", "keys"), [(0, True), (1, False)], ids=["anthropic_own_keys", "root_client_keys"]
)
@pytest.mark.parametrize("version", MAJORS)
async def test_jobs(
    run: Run, demo_proxy: StartDemo, tmp_path: Path, version: str, base: int, keys: bool
) -> None:
    """Submit, poll until there is an answer: it is the message. A job that has failed raises, once."""
    proxy = await demo_proxy(keys=keys, silence=THINKS, store=f"sqlite:{tmp_path}/state.db")
    seen = await run(version, "jobs", base_urls(proxy)[base])
    without = seen["without"]
    jobs = (seen["message"], *seen["async"]["messages"])
    for job in jobs:
        check_job(job, NO_MESSAGE, without)
    # That of the submit, and of a poll at least. On a slow machine a job may be over at the first poll.
    assert max(len(job["empty"]) for job in jobs) > 1
    assert seen["raw"]["statuses"][0] == "pending"
    assert seen["raw"]["statuses"][-1] == "completed"
    assert seen["raw"]["content"] == without["content"]
    if version == LAST_WITH_COMPLETIONS:
        for job in (seen["completion"], seen["async"]["completion"]):
            check_job(job, NO_COMPLETION, seen["completion_without"])
    told = {name: (error["class"], error["status"], error["type"]) for name, error in seen["errors"].items()}
    assert told == ERRORS
    unknown = seen["unknown"]
    assert (unknown["class"], unknown["status"], unknown["type"]) == ("NotFoundError", 404, "not_found_error")
    await proxy.stop()
    for name, error in seen["errors"].items():
        assert error["request_id"].startswith("req_demo"), name
        assert error["job_status"] == "failed", name
        refused = [line for line in proxy.lines if line.get("job") == error["job"] and line["status"] >= 400]
        # One is the job itself at the provider, one the poll that told of it.
        assert len(refused) == 2, name
    assert len([line for line in proxy.lines if line["status"] == 404]) == 1
